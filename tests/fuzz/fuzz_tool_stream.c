/* fuzz_tool_stream.c - libFuzzer on what a model answers: the same text in other tokens gives the same content, thought and calls,
 * and each call can be rendered again.  The first byte: thinking, and how the text is split.  `make fuzz-run`. */
#include <stdlib.h>
#include <string.h>

#include "../../chat.h"
#include "../../json.h"

static Tokenizer *t;
static unsigned seed;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    Error err;
    (void)argc, (void)argv;
    if (!(t = tokenizer_open("tests/fixtures/odd-bf16", &err))) abort();
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
    ChatStream s;
    Buf content, thought;
} Answer;

static Answer take_apart(const Ids *ids, int thinking) {
    Answer a = {0};
    chat_stream_open(&a.s, t, thinking);
    for (int i = 0; i < ids->n; i++) {
        size_t content = a.content.len, thought = a.thought.len;
        chat_stream_feed(&a.s, ids->id[i], &a.content, &a.thought);
        check_utf8(&a.content, content);
        check_utf8(&a.thought, thought);
    }
    chat_stream_end(&a.s, &a.content, &a.thought);
    check_utf8(&a.content, 0);
    return a;
}

static void answer_free(Answer *a) {
    chat_stream_free(&a->s);
    buf_free(&a->content);
    buf_free(&a->thought);
}

static int same(const Buf *a, const Buf *b) { return a->len == b->len && (!a->len || !memcmp(a->data, b->data, a->len)); }

/* The calls as history. */
static void render(const Answer *a, int thinking) {
    cJSON *messages = cJSON_CreateArray(), *m = cJSON_CreateObject(), *calls = cJSON_CreateArray();
    Prompt prompt = {0};
    Error err;
    for (int i = 0; i < a->s.n_calls; i++) {
        cJSON *call = cJSON_CreateObject(), *function = cJSON_AddObjectToObject(call, "function");
        cJSON_AddStringToObject(function, "name", a->s.calls[i].name);
        cJSON_AddStringToObject(function, "arguments", a->s.calls[i].arguments);
        cJSON_AddItemToArray(calls, call);
    }
    cJSON_AddStringToObject(m, "role", "assistant");
    cJSON_AddItemToObject(m, "tool_calls", calls);
    cJSON_AddItemToArray(messages, m);
    if (chat_render(t, messages, NULL, thinking, &prompt, &err)) abort();
    prompt_free(&prompt);
    cJSON_Delete(messages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    int thinking = data[0] & 1;
    seed = data[0];
    Ids whole = ids_of((const char *)data + 1, size - 1, 0), split = ids_of((const char *)data + 1, size - 1, 1);
    Answer a = take_apart(&whole, thinking), b = take_apart(&split, thinking);
    if (!same(&a.content, &b.content) || !same(&a.thought, &b.thought) || !same(&a.s.warning, &b.s.warning) || a.s.n_calls != b.s.n_calls)
        abort();
    for (int i = 0; i < a.s.n_calls; i++)
        if (strcmp(a.s.calls[i].name, b.s.calls[i].name) || strcmp(a.s.calls[i].arguments, b.s.calls[i].arguments)) abort();
    render(&a, thinking);
    answer_free(&a);
    answer_free(&b);
    ids_free(&whole);
    ids_free(&split);
    return 0;
}
