/* settings.c - the settings that /set at the chat prompt shows and changes.  See settings.h. */
#include "settings.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "options.h"

/* The types of the values in Engine: a float; an int; an int that is -1 for no limit; a
 * uint64_t. */
typedef enum { REAL_SETTING, WHOLE_SETTING, LIMIT_SETTING, SEED_SETTING } SettingKind;

typedef struct {
    const char *name;
    const char *option;                 /* the command-line option that has the same range */
    const char *others[3];              /* names that other programs have for it */
    SettingKind kind;
    size_t at;                          /* the value's offset in Engine */
} Setting;

#define AT(field) offsetof(Engine, field)

static const Setting settings[] = {
    {"temperature", "temp", {"temp"}, REAL_SETTING, AT(sampling.temperature)},
    {"top-p", "top-p", {NULL}, REAL_SETTING, AT(sampling.top_p)},
    {"top-k", "top-k", {NULL}, WHOLE_SETTING, AT(sampling.top_k)},
    {"min-p", "min-p", {NULL}, REAL_SETTING, AT(sampling.min_p)},
    {"repeat-penalty", "repeat-penalty", {"repetition-penalty"}, REAL_SETTING,
     AT(sampling.repeat_penalty)},
    {"seed", "seed", {NULL}, SEED_SETTING, AT(sampling.seed)},
    {"max-tokens", "max-tokens", {"n", "num-predict", "n-predict"}, LIMIT_SETTING, AT(max_tokens)},
    {"think-tokens", "think-tokens", {"thinking-budget", "think-budget", "budget"}, LIMIT_SETTING,
     AT(think_tokens)},
};
enum { N_SETTINGS = sizeof settings / sizeof *settings };

const char *const setting_names[] = {"temperature", "top-p", "top-k", "min-p", "repeat-penalty",
                                     "seed", "max-tokens", "think-tokens", "thoughts", NULL};

static const char *const thoughts_names[] = {"off", "on", "folded"};

/* Adds "name value" and a newline; the name is padded to `width` columns. */
static void add_setting(const Engine *e, const Setting *s, int width, Buf *out) {
    const void *value = (const char *)e + s->at;
    buf_printf(out, "%-*s ", width, s->name);
    if (s->kind == REAL_SETTING) buf_printf(out, "%.6g\n", (double)*(const float *)value);
    else if (s->kind == SEED_SETTING) buf_printf(out, "%" PRIu64 "\n", *(const uint64_t *)value);
    else if (s->kind == LIMIT_SETTING && *(const int *)value < 0) buf_puts(out, "none\n");
    else buf_printf(out, "%d\n", *(const int *)value);
}

void settings_list(const Engine *e, Thoughts thoughts, Buf *out) {
    for (int i = 0; i < N_SETTINGS; i++) {
        buf_puts(out, "  ");
        add_setting(e, &settings[i], 15, out);
    }
    buf_printf(out, "  %-15s %s\n", "thoughts", thoughts_names[thoughts]);
}

/* Copies the next word of *text to `word`, with - for _, and moves *text to the word after it.  A
 * word that is too long is cut: then it still is the name of no setting. */
static void next_word(const char **text, char word[32]) {
    size_t n = strcspn(*text, " \t"), kept = n < 31 ? n : 31;
    for (size_t i = 0; i < kept; i++) word[i] = (*text)[i] == '_' ? '-' : (*text)[i];
    word[kept] = 0;
    *text += n;
    *text += strspn(*text, " \t");
}

/* Returns the setting that has this name, or which other programs call so; or NULL. */
static const Setting *setting_named(const char *name) {
    for (int i = 0; i < N_SETTINGS; i++) {
        int is_it = !strcmp(settings[i].name, name);
        for (int j = 0; j < 3; j++)
            is_it |= settings[i].others[j] && !strcmp(settings[i].others[j], name);
        if (is_it) return &settings[i];
    }
    return NULL;
}

/* settings_change for `thoughts`.  value: "" shows the setting. */
static int change_thoughts(Thoughts *thoughts, const char *value, Buf *out, Error *err) {
    int is_known = !*value;
    for (int i = 0; i < 3; i++) {
        if (strcmp(value, thoughts_names[i])) continue;
        *thoughts = (Thoughts)i;
        is_known = 1;
    }
    if (!is_known) return fail(err, "thoughts %s: not on, off or folded", value);
    buf_printf(out, "thoughts %s\n", thoughts_names[*thoughts]);
    return 0;
}

/* Sets s to a number, or a limit to none.  Returns 0, or -1 with err. */
static int change_number(Engine *e, const Setting *s, const char *text, Error *err) {
    void *value = (char *)e + s->at;
    int is_none = !strcmp(text, "none") || !strcmp(text, "off") || !strcmp(text, "-1");
    if (s->kind == LIMIT_SETTING && is_none) {
        *(int *)value = -1;
        return 0;
    }
    return option_number(s->option, s->name, text, value, err);
}

int settings_change(Engine *e, Thoughts *thoughts, const char *what, Buf *out, Error *err) {
    char name[32];
    next_word(&what, name);
    if (!strcmp(name, "parameter")) next_word(&what, name);
    if (!strcmp(name, "thoughts")) return change_thoughts(thoughts, what, out, err);
    const Setting *s = setting_named(name);
    if (!s) return fail(err, "/set %s: no such setting; /set lists them", name);
    if (*what && change_number(e, s, what, err)) return -1;
    add_setting(e, s, 0, out);
    return 0;
}
