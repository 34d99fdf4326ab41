/* fuzz_tool_stream.c - libFuzzer on what a model answers.  The same text in other tokens gives the same content, thought, calls and
 * warnings; a call's arguments are a JSON object, which can be rendered; reading a call piece by piece takes any text.
 * The first byte: thinking, a prompt that ended inside of a thought, tools, and how the text is split.  `make fuzz-run`. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "../../answer.h"
#include "../../chat.h"
#include "../../declare.h"
#include "../../json.h"

static Tokenizer *t;
static cJSON *tools;
static unsigned seed;

static const char declared[] =
    "[{\"name\": \"f\", \"inputSchema\": {\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"string\"}, \"n\": {\"type\": \"integer\"},"
    " \"o\": {\"$ref\": \"#\"}, \"l\": {\"type\": \"array\", \"items\": {\"anyOf\": [{\"type\": \"boolean\"}, {\"type\": \"string\"}]}}}}},"
    " {\"name\": \"g\"}]";

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    Error err;
    (void)argc, (void)argv;
    if (!(t = tokenizer_open("tests/fixtures/odd-bf16", &err))) abort();
    cJSON *json = json_value(declared, strlen(declared), &err);
    if (!(tools = tools_read(json, &err))) abort();
    cJSON_Delete(json);
    return 0;
}

static int below(int n) { return ((seed = seed * 1664525u + 1013904223u) >> 8) % n; }

/* Adds the ids of text without control tokens, as one piece or in many. */
static void encode(const char *text, size_t n, int split, Ids *out) {
    while (n) {
        size_t some = split ? 1 + (size_t)below(4) : n;
        if (some > n) some = n;
        tokenizer_encode(t, text, some, 0, out);
        text += some;
        n -= some;
    }
}

/* The same with control tokens, which are never split. */
static Ids ids_of(const char *text, size_t n, int split) {
    Ids ids = {0};
    size_t from = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] != '<') continue;
        for (size_t len = 3; len <= 24 && len <= n - i; len++) {
            char name[25] = {0};
            memcpy(name, text + i, len);
            int id = text[i + len - 1] == '>' ? tokenizer_control(t, name) : -1;
            if (id < 0) continue;
            encode(text + from, i - from, split, &ids);
            ids_add(&ids, id);
            from = i + len;
            i = from - 1;
            break;
        }
    }
    encode(text + from, n - from, split, &ids);
    return ids;
}

static void check_utf8(const Buf *b, size_t from) {
    for (size_t i = from; i < b->len;) {
        int n = utf8_char(b->data + i, b->len - i);
        if (n <= 0) abort();
        i += n;
    }
}

typedef struct {
    Answer a;
    Buf content, thought;
} Taken;

static Taken take_apart(const Ids *ids, AnswerStart start) {
    Taken k = {0};
    CallDelta delta = {0};
    Buf name = {0}, arguments = {0};
    answer_open(&k.a, t, start);
    for (int i = 0; i < ids->n; i++) {
        size_t content = k.content.len, thought = k.thought.len;
        int n_calls = k.a.n_calls;
        answer_feed(&k.a, ids->id[i], &k.content, &k.thought);
        check_utf8(&k.content, content);
        check_utf8(&k.thought, thought);
        if (k.a.part == ANSWER_CALL && n_calls == k.a.n_calls && k.a.call.len) {
            call_delta(&delta, k.a.call.data, k.a.call.len, &name, &arguments);
            continue;
        }
        delta = (CallDelta){0};
        name.len = arguments.len = 0;
    }
    answer_end(&k.a, &k.content, &k.thought);
    check_utf8(&k.content, 0);
    buf_free(&name);
    buf_free(&arguments);
    return k;
}

static void taken_free(Taken *k) {
    answer_free(&k->a);
    buf_free(&k->content);
    buf_free(&k->thought);
}

static int same(const Buf *a, const Buf *b) { return a->len == b->len && (!a->len || !memcmp(a->data, b->data, a->len)); }

/* A call as history. */
static void render(const ToolCall *c) {
    cJSON *messages = cJSON_CreateArray(), *m = cJSON_CreateObject(), *calls = cJSON_CreateArray();
    cJSON *call = cJSON_CreateObject(), *function = cJSON_AddObjectToObject(call, "function");
    Prompt prompt = {0};
    Error err;
    cJSON *arguments = json_object(c->arguments, strlen(c->arguments), &err);
    if (!arguments) abort();
    cJSON_AddStringToObject(function, "name", c->name);
    cJSON_AddItemToObject(function, "arguments", arguments);
    cJSON_AddItemToArray(calls, call);
    cJSON_AddStringToObject(m, "role", "assistant");
    cJSON_AddItemToObject(m, "tool_calls", calls);
    cJSON_AddItemToArray(messages, m);
    if (chat_render(t, messages, NULL, (ChatOptions){0}, &prompt, &err)) abort();
    prompt_free(&prompt);
    cJSON_Delete(messages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size || memmem(data, size, "\xe2\x96\x81", 3)) return 0;     /* U+2581, which stands for a blank unless it is split */
    AnswerStart start = {.thinking = data[0] & 1, .in_thought = (data[0] & 3) == 3, .tools = data[0] & 4 ? tools : NULL};
    seed = data[0];
    Ids whole = ids_of((const char *)data + 1, size - 1, 0), split = ids_of((const char *)data + 1, size - 1, 1);
    Taken a = take_apart(&whole, start), b = take_apart(&split, start);
    if (!same(&a.content, &b.content) || !same(&a.thought, &b.thought) || !same(&a.a.warnings, &b.a.warnings)) abort();
    if (a.a.n_calls != b.a.n_calls) abort();
    for (int i = 0; i < a.a.n_calls; i++) {
        const ToolCall *x = &a.a.calls[i], *y = &b.a.calls[i];
        if (strcmp(x->name, y->name) || strcmp(x->arguments, y->arguments) || x->mended != y->mended) abort();
        render(x);
    }
    taken_free(&a);
    taken_free(&b);
    ids_free(&whole);
    ids_free(&split);
    return 0;
}
