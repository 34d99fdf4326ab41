/* schemas.c - what structured output costs over many schemas, with the real vocabulary.
 *
 *     make build/bench_schemas && build/bench_schemas DIR_WITH_TOKENIZER_JSON SCHEMAS.jsonl
 *
 * A line of SCHEMAS.jsonl is {"name", "schema", "valid": [texts], "invalid": [texts]}.  Each schema
 * is compiled; then the tokens of its valid texts are followed, with a mask before each of them and
 * one at the end, and those of its invalid ones without masks.  What a schema has kept from one
 * text helps with the next, as from one answer to the next.  bench/schemas.py makes a table of the
 * lines that are printed, one for each schema:
 *
 *     {"name", "compiled", "error", "compile_ms", "mask_us": [for each mask], "first": how many of
 *      them belong to the first text, "next_us": all steps from token to token together, "tokens",
 *      "valid_taken", "valid", "invalid_refused", "invalid", "not_taken": [numbers of texts],
 *      "not_refused": [likewise]}
 *
 * All times are CPU time of the thread, so that other programs do not disturb them much. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../json.h"
#include "../schema.h"

#define TEXTS 10                        /* of each kind, at most, for each schema */
#define LEFT (1 << 30)                  /* tokens: no limit that could change a mask */

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
    Buf masks;                          /* their times, in microseconds, as they are printed */
    int n_masks, tokens;
    double next;                        /* seconds of all steps together */
} Times;

/* The mask in a state and the time that it took. */
static const uint64_t *timed_mask(Schema *s, int state, Times *times) {
    double start = cpu_seconds();
    const uint64_t *mask = schema_mask(s, state, LEFT, NULL);
    double us = 1e6 * (cpu_seconds() - start);
    buf_printf(&times->masks, times->n_masks++ ? ",%.1f" : "%.1f", us);
    return mask;
}

static int has(const uint64_t *mask, int id) { return mask[id / 64] >> id % 64 & 1; }

/* Whether the text is taken, to its end.  times: of its masks, NULL: it is read without them. */
static int is_taken(Schema *s, const Tokenizer *t, int end, const char *text, Times *times) {
    Ids ids = {0};
    tokenizer_encode(t, text, strlen(text), 0, &ids);
    int state = schema_begin(s), taken = 1;
    for (int i = 0; i < ids.n && taken; i++) {
        taken = !times || has(timed_mask(s, state, times), ids.id[i]);
        if (!taken) break;
        double start = cpu_seconds();
        state = schema_next(s, state, ids.id[i]);
        if (times) times->next += cpu_seconds() - start, times->tokens++;
        taken = state >= 0;
    }
    if (taken) taken = times ? has(timed_mask(s, state, times), end) : schema_may_end(s, state);
    ids_free(&ids);
    return taken;
}

/* Adds the number of a text to a list as it is printed. */
static void list_number(Buf *list, int number) {
    buf_printf(list, list->len ? ",%d" : "%d", number);
}

static void print_string(const char *name, const char *text) {
    cJSON *string = cJSON_CreateString(text);
    char *quoted = cJSON_PrintUnformatted(string);
    printf("\"%s\":%s,", name, quoted);
    free(quoted);
    cJSON_Delete(string);
}

static void measure(const Pieces *p, const Tokenizer *t, int end, const cJSON *line) {
    Error err = {""};
    Times times = {0};
    Buf lists[2] = {0};
    int taken[2] = {0}, n[2] = {0}, first = 0;
    double start = cpu_seconds();
    Schema *s = schema_new(p, json_field(line, "schema"), &err);
    double compiled = cpu_seconds() - start;
    for (int invalid = 0; invalid < 2; invalid++) {
        const cJSON *text;
        cJSON_ArrayForEach(text, json_field(line, invalid ? "invalid" : "valid")) {
            if (!cJSON_IsString(text) || n[invalid] == TEXTS) continue;
            int number = n[invalid]++;
            if (!s) continue;
            int is = is_taken(s, t, end, text->valuestring, invalid ? NULL : &times);
            taken[invalid] += is;
            if (is == invalid) list_number(&lists[invalid], number);
            if (!invalid && !number) first = times.n_masks;
        }
    }
    const cJSON *name = json_field(line, "name");
    printf("{");
    print_string("name", cJSON_IsString(name) ? name->valuestring : "");
    print_string("error", s ? "" : err.text);
    printf("\"compiled\":%s,\"compile_ms\":%.4f,\"mask_us\":[%s],\"first\":%d,\"next_us\":%.1f,"
           "\"tokens\":%d,", s ? "true" : "false", 1e3 * compiled,
           times.masks.data ? times.masks.data : "", first, 1e6 * times.next, times.tokens);
    printf("\"valid_taken\":%d,\"valid\":%d,\"invalid_refused\":%d,\"invalid\":%d,"
           "\"not_taken\":[%s],\"not_refused\":[%s]}\n", taken[0], n[0], s ? n[1] - taken[1] : 0,
           n[1], lists[0].data ? lists[0].data : "", lists[1].data ? lists[1].data : "");
    fflush(stdout);
    for (int i = 0; i < 2; i++) buf_free(&lists[i]);
    buf_free(&times.masks);
    schema_free(s);
}

int main(int argc, char **argv) {
    Error err = {"usage: bench_schemas DIR SCHEMAS.jsonl"};
    Tokenizer *t = argc == 3 ? tokenizer_open(argv[1], &err) : NULL;
    Buf file = {0};
    if (!t || read_file(argv[2], &file, &err)) return fprintf(stderr, "%s\n", err.text), 1;
    int end = tokenizer_control(t, "<turn|>"), failed = 0;
    double start = cpu_seconds();
    Pieces *p = pieces_new(t, tokenizer_n_vocab(t), &end, 1);
    fprintf(stderr, "%d tokens, their tree built in %.0f ms\n", tokenizer_n_vocab(t),
            1e3 * (cpu_seconds() - start));
    for (char *at = file.data; at && *at && !failed;) {
        size_t n = strcspn(at, "\n");
        cJSON *line = json_object(at, n, &err);
        if (line) measure(p, t, end, line);
        else failed = fprintf(stderr, "%s: %s\n", argv[2], err.text);
        cJSON_Delete(line);
        at += n + (at[n] == '\n');
    }
    pieces_free(p);
    tokenizer_free(t);
    buf_free(&file);
    return failed ? 1 : 0;
}
