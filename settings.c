/* settings.c - what /set at the chat prompt shows and changes.  See settings.h. */
#include "settings.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "options.h"

typedef enum { REAL_SETTING, WHOLE_SETTING, LIMIT_SETTING, SEED_SETTING } SettingKind;

typedef struct {
    const char *name;
    const char *option;                 /* whose range it has */
    const char *others[3];              /* how other programs call it */
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

/* Adds "name value" and a newline. */
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

/* Takes the next word from *text, with - for _, and moves *text to what follows.  A word that is
 * too long becomes one that no setting has. */
static void next_word(const char **text, char word[32]) {
    size_t n = strcspn(*text, " \t"), kept = n < 31 ? n : 31;
    for (size_t i = 0; i < kept; i++) word[i] = (*text)[i] == '_' ? '-' : (*text)[i];
    word[kept] = 0;
    *text += n;
    *text += strspn(*text, " \t");
}

static const Setting *setting_named(const char *name) {
    for (int i = 0; i < N_SETTINGS; i++) {
        int is_it = !strcmp(settings[i].name, name);
        for (int j = 0; j < 3; j++)
            is_it |= settings[i].others[j] && !strcmp(settings[i].others[j], name);
        if (is_it) return &settings[i];
    }
    return NULL;
}

static int change_thoughts(Thoughts *thoughts, const char *value, Buf *out, Error *err) {
    for (int i = 0; i < 3; i++)
        if (!strcmp(value, thoughts_names[i])) {
            *thoughts = (Thoughts)i;
            buf_printf(out, "thoughts %s\n", value);
            return 0;
        }
    return fail(err, "thoughts %s: not on, off or folded", value);
}

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
    int is_thoughts = !strcmp(name, "thoughts");
    const Setting *s = setting_named(name);
    if (!s && !is_thoughts) return fail(err, "/set %s: no such setting; /set lists them", name);
    if (!*what && is_thoughts) {
        buf_printf(out, "thoughts %s\n", thoughts_names[*thoughts]);
        return 0;
    }
    if (is_thoughts) return change_thoughts(thoughts, what, out, err);
    if (*what && change_number(e, s, what, err)) return -1;
    add_setting(e, s, 0, out);
    return 0;
}
