/* fuzz_schema.c - libFuzzer on JSON schemas: compiled, and, where they are supported, written under at random within the least
 * number of tokens and a few more; what comes out must be JSON, or a call that can be read.  The first byte: which of both, and the
 * random numbers.  `make fuzz-run`. */
#include <stdlib.h>
#include <string.h>

#include "../../answer.h"
#include "../../json.h"
#include "../../schema.h"

static Tokenizer *t;
static Pieces *pieces;
static int n_vocab, end_id;
static unsigned seed;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    Error err;
    (void)argc, (void)argv;
    if (!(t = tokenizer_open("tests/fixtures/odd-bf16", &err))) abort();
    n_vocab = tokenizer_n_vocab(t);
    end_id = tokenizer_control(t, "<turn|>");
    pieces = pieces_new(t, n_vocab, &end_id, 1);
    return 0;
}

static int below(int n) { return ((seed = seed * 1664525u + 1013904223u) >> 8) % n; }

/* One of the bits in mask, by chance. */
static int draw(const uint64_t *mask) {
    int from = below(n_vocab);
    for (int i = 0; i < n_vocab; i++) {
        int id = (from + i) % n_vocab;
        if (mask[id / 64] >> id % 64 & 1) return id;
    }
    abort();
}

static void write_under(Schema *s, int of_calls) {
    int state = schema_begin(s), left = schema_distance(s, state);
    if (left > 60) return;              /* many ways through a long text take long */
    Buf text = {0}, content = {0}, thought = {0};
    Answer stream;
    answer_open(&stream, t, (AnswerStart){.constrained = of_calls});
    for (left += below(40); !schema_must_end(s, state); left--) {
        if (left <= 0 && !schema_may_end(s, state)) abort();
        if (left <= 0) break;
        int id = draw(schema_mask(s, state, left, NULL));
        if (id == end_id) break;
        size_t n;
        const char *piece = tokenizer_text(t, id, &n);
        buf_add(&text, piece, n);
        answer_feed(&stream, id, &content, &thought);
        if ((state = schema_next(s, state, id)) < 0) abort();
    }
    answer_end(&stream, &content, &thought);
    if (of_calls && (!stream.n_calls || stream.warnings.len || content.len)) abort();
    for (int i = 0; i < stream.n_calls; i++) {
        cJSON *arguments = json_object(stream.calls[i].arguments, strlen(stream.calls[i].arguments), NULL);
        if (!arguments) abort();
        cJSON_Delete(arguments);
    }
    cJSON *value = of_calls ? NULL : json_value(text.data, text.len, NULL);
    if (!of_calls && !value) abort();
    cJSON_Delete(value);
    answer_free(&stream);
    buf_free(&text);
    buf_free(&content);
    buf_free(&thought);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err;
    cJSON *schema = size ? json_value((const char *)data + 1, size - 1, &err) : NULL, *tools = NULL;
    Schema *s;
    if (!schema) return 0;
    seed = data[0];
    if (data[0] & 1 && cJSON_IsObject(schema)) {
        cJSON *tool = cJSON_CreateObject(), *function = cJSON_AddObjectToObject(tool, "function");
        cJSON_AddStringToObject(function, "name", "f");
        cJSON_AddItemToObject(function, "parameters", schema);
        cJSON_AddItemToArray(tools = cJSON_CreateArray(), tool);
        s = schema_calls(pieces, tools, NULL, data[0] & 2, NULL, &err);
    } else s = schema_new(pieces, schema, &err);
    for (int i = 0; s && i < 3; i++) write_under(s, tools != NULL);
    schema_free(s);
    cJSON_Delete(tools ? tools : schema);
    return 0;
}
