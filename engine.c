/* engine.c - the schemas of an Engine: compiles what an answer is held to, and keeps the last one.
 * generate.h declares the functions. */
#include <stdlib.h>
#include <string.h>

#include "generate.h"
#include "json.h"

/* Whether the schema that is made from `key` is the one that is kept.  If not, its place is made
 * free; the engine takes the key over. */
static int is_kept(Engine *e, char *key) {
    if (e->schema && !strcmp(key, e->schema_text)) {
        free(key);
        return 1;
    }
    if (!e->pieces) {
        const GenerationConfig *c = model_generation(e->model);
        /* <turn|> ends an answer of a chat, also where eos_token_id does not list it. */
        int ends[MAX_EOS + 1];
        memcpy(ends, c->eos, sizeof c->eos);
        ends[c->n_eos] = tokenizer_control(e->tokenizer, "<turn|>");
        int vocab = model_config(e->model)->vocab;
        e->pieces = pieces_new(e->tokenizer, vocab, ends, c->n_eos + 1);
    }
    schema_free(e->schema);
    e->schema = NULL;
    e->schema_warning.len = 0;
    free(e->schema_text);
    e->schema_text = key;
    return 0;
}

Schema *engine_schema(Engine *e, const cJSON *schema, Error *err) {
    if (!is_kept(e, json_text(schema))) e->schema = schema_new(e->pieces, schema, err);
    return e->schema;
}

/* What calls of these tools are compiled from; the caller frees it. */
static char *calls_key(const cJSON *tools, const char *kind, const char *name) {
    Buf key = {0};
    char *text = json_text(tools);
    buf_printf(&key, "%s %s %s", kind, name ? name : "", text);
    free(text);
    return key.data;
}

Schema *engine_calls(Engine *e, const cJSON *tools, const char *name, int several, Error *err) {
    if (!is_kept(e, calls_key(tools, several ? "calls" : "call", name)))
        e->schema = schema_calls(e->pieces, tools, name, several, NULL, err);
    return e->schema;
}

void engine_hold_calls(Engine *e, Generation *g) {
    Error err;
    if (!cJSON_GetArraySize(g->tools) || g->schema || g->raw) return;
    if (!is_kept(e, calls_key(g->tools, "any call", NULL)))
        e->schema = schema_calls(e->pieces, g->tools, NULL, 0, &e->schema_warning, &err);
    g->call_schema = e->schema;
    if (e->schema_warning.len) buf_printf(&g->warnings, "%s\n", e->schema_warning.data);
}
