/* grammar.h - what test_chat.c and test_answer.c share: a tokenizer with its control tokens, and prompts.
 *
 * GEMMA4_TOKENIZER: a folder to take another tokenizer from. */
#include "../chat.h"                    /* before cmocka.h, whose macro fail() would hide util.h's function */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../declare.h"
#include "../json.h"

static Tokenizer *tokenizer;
static Ids controls;                    /* the ids of all control tokens */
static int byte_ids[256];               /* an id for each single byte */

static inline const char *from_env(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

static inline int open_tokenizer(void **state) {
    (void)state;
    Error err;
    tokenizer = tokenizer_open(from_env("GEMMA4_TOKENIZER", "demo"), &err);
    if (!tokenizer) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    memset(byte_ids, -1, sizeof byte_ids);
    for (int id = 0; id < tokenizer_n_vocab(tokenizer); id++) {
        size_t n;
        const char *text = tokenizer_text(tokenizer, id, &n);
        if (n == 1) byte_ids[(unsigned char)*text] = id;
        if (tokenizer_is_control(tokenizer, id)) ids_add(&controls, id);
    }
    return 0;
}

static inline int close_tokenizer(void **state) {
    (void)state;
    ids_free(&controls);
    tokenizer_free(tokenizer);
    return 0;
}

static inline void assert_bytes(const Buf *b, const char *expected) {
    assert_string_equal(b->data ? b->data : "", expected);
    assert_int_equal(b->len, strlen(expected));
}

static inline cJSON *parse(const char *json) {
    size_t n = strlen(json);            /* what json_value refuses reaches the functions below all the same */
    cJSON *value = strstr(json, "\\u0000") || utf8_until(json, n) < n ? cJSON_Parse(json) : json_value(json, n, NULL);
    if (!value) fail_msg("not JSON: %s", json);
    return value;
}

static inline Prompt render_as(const cJSON *messages, const cJSON *tools, ChatOptions options) {
    Prompt p = {0};
    Error err = {""};
    if (chat_render(tokenizer, messages, tools, options, &p, &err)) fail_msg("%s", err.text);
    return p;
}

static inline Prompt render(const cJSON *messages, int thinking) {
    return render_as(messages, NULL, (ChatOptions){.thinking = thinking});
}

static inline void join(const int *ids, int n, Buf *out) {
    for (int i = 0; i < n; i++) {
        size_t len;
        const char *text = tokenizer_text(tokenizer, ids[i], &len);
        buf_add(out, text, len);
    }
}

/* Length of the control token's name that stands at text, or 0. */
static inline size_t control_at(const char *text, size_t n, int *id) {
    for (int i = 0; i < controls.n; i++) {
        size_t len;
        const char *name = tokenizer_text(tokenizer, controls.id[i], &len);
        *id = controls.id[i];
        if (len <= n && !memcmp(text, name, len)) return len;
    }
    return 0;
}

static inline cJSON *conversation(const char *role, const char *content) {
    cJSON *messages = cJSON_CreateArray(), *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", role);
    cJSON_AddStringToObject(message, "content", content);
    cJSON_AddItemToArray(messages, message);
    return messages;
}

/* The demo's tokenizer.json without one of its control tokens, or with one more. */
static inline Tokenizer *tokenizer_changed(const char *without, const char *with) {
    char path[4096], dir[] = "/tmp/test_chat_XXXXXX";
    Buf file = {0};
    Error err;
    snprintf(path, sizeof path, "%s/tokenizer.json", from_env("GEMMA4_TOKENIZER", "demo"));
    if (read_file(path, &file, &err)) fail_msg("%s", err.text);
    cJSON *json = parse(file.data), *added = cJSON_GetObjectItem(json, "added_tokens"), *token;
    cJSON_ArrayForEach(token, added)
        if (!strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(token, "content")), without ? without : "<bos>")) break;
    assert_non_null(token);
    if (with) {
        cJSON *more = cJSON_Duplicate(token, 1);
        cJSON_SetNumberValue(cJSON_GetObjectItem(more, "id"), tokenizer_n_vocab(tokenizer));
        cJSON_SetValuestring(cJSON_GetObjectItem(more, "content"), with);
        cJSON_AddItemToArray(added, more);
    }
    if (without) cJSON_Delete(cJSON_DetachItemViaPointer(added, token));

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    char *text = cJSON_PrintUnformatted(json);
    fputs(text, f);
    fclose(f);
    Tokenizer *t = tokenizer_open(dir, &err);
    unlink(path);
    rmdir(dir);
    if (!t) fail_msg("%s", err.text);
    cJSON_free(text);
    cJSON_Delete(json);
    buf_free(&file);
    return t;
}
