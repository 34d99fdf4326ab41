/* test_chat.c - conversations against the published template, injected control tokens, answers taken apart.
 *
 * Cases: tests/fixtures/chat_cases.jsonl (tests/make_chat_cases.py), and chat_cases.jsonl of the reference
 * folder where there is one (GEMMA4_REFERENCE).  GEMMA4_TOKENIZER: a folder to take another tokenizer from. */
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

#include "../json.h"

static Tokenizer *tokenizer;
static Ids controls;                    /* the ids of all control tokens */
static int byte_ids[256];               /* an id for each single byte */

static const char *from_env(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

static int open_tokenizer(void **state) {
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

static int close_tokenizer(void **state) {
    (void)state;
    ids_free(&controls);
    tokenizer_free(tokenizer);
    return 0;
}

static void assert_bytes(const Buf *b, const char *expected) {
    assert_string_equal(b->data ? b->data : "", expected);
    assert_int_equal(b->len, strlen(expected));
}

/* ---- prompts ---- */

static cJSON *parse(const char *json) {
    cJSON *value = strstr(json, "\\u0000") ? cJSON_Parse(json) : json_value(json, strlen(json), NULL);
    if (!value) fail_msg("not JSON: %s", json);
    return value;
}

static Prompt render_tools(const cJSON *messages, const cJSON *tools, int thinking) {
    Prompt p = {0};
    Error err = {""};
    if (chat_render(tokenizer, messages, tools, thinking, &p, &err)) fail_msg("%s", err.text);
    return p;
}

static Prompt render(const cJSON *messages, int thinking) { return render_tools(messages, NULL, thinking); }

static void join(const int *ids, int n, Buf *out) {
    for (int i = 0; i < n; i++) {
        size_t len;
        const char *text = tokenizer_text(tokenizer, ids[i], &len);
        buf_add(out, text, len);
    }
}

static int count_controls(const Ids *ids) {
    int n = 0;
    for (int i = 0; i < ids->n; i++) n += tokenizer_is_control(tokenizer, ids->id[i]);
    return n;
}

/* Length of the control token's name that stands at text, or 0. */
static size_t control_at(const char *text, size_t n, int *id) {
    for (int i = 0; i < controls.n; i++) {
        size_t len;
        const char *name = tokenizer_text(tokenizer, controls.id[i], &len);
        *id = controls.id[i];
        if (len <= n && !memcmp(text, name, len)) return len;
    }
    return 0;
}

/* 1 when a control token's name stands in any string of the JSON value. */
static int holds_control(const cJSON *value) {
    int id;
    for (const char *s = cJSON_GetStringValue(value); s && *s; s++)
        if (control_at(s, strlen(s), &id)) return 1;
    const cJSON *child;
    cJSON_ArrayForEach(child, value)
        if (holds_control(child)) return 1;
    return 0;
}

/* The prompt for the next turn, whatever was answered, begins with the stable ids: what a saved state of the
 * model at that place is good for. */
static void check_stable(const cJSON *messages, const cJSON *tools, int thinking, const Prompt *p) {
    static const char *answers[] = {
        "Hello", "", "\n\n hello", "<|channel>thought\nx\n<channel|>1", "\xe2\x82", "\xf0\x9f\x99\x82",
    };
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        cJSON *longer = cJSON_Duplicate(messages, 1), *answer = cJSON_CreateObject();
        cJSON_AddStringToObject(answer, "role", "assistant");
        cJSON_AddStringToObject(answer, "content", answers[i]);
        cJSON_AddItemToArray(longer, answer);
        Prompt next = render_tools(longer, tools, thinking);
        assert_true(next.ids.n >= p->n_stable);
        assert_memory_equal(next.ids.id, p->ids.id, p->n_stable * sizeof(int));
        prompt_free(&next);
        cJSON_Delete(longer);
    }
}

static void check_case(const cJSON *c) {
    const cJSON *messages = cJSON_GetObjectItem(c, "messages"), *tools = cJSON_GetObjectItem(c, "tools");
    const char *expected = cJSON_GetStringValue(cJSON_GetObjectItem(c, "rendered"));
    int thinking = cJSON_IsTrue(cJSON_GetObjectItem(c, "thinking"));
    tools = cJSON_IsArray(tools) ? tools : NULL;
    Prompt p = render_tools(messages, tools, thinking);
    assert_bytes(&p.text, expected);

    Buf joined = {0}, stable = {0};
    join(p.ids.id, p.ids.n, &joined);
    assert_bytes(&joined, expected);
    join(p.ids.id, p.n_stable, &stable);
    if (!strcmp(expected + strlen(expected) - strlen("response|>"), "response|>")) {
        assert_memory_equal(stable.data, expected, stable.len);     /* the model goes on in its turn */
        assert_true(stable.len == strlen(expected) || strstr(expected + stable.len, "<|channel>thought\n") == expected + stable.len);
    } else if (strcmp(expected + strlen(expected) - strlen("<|tool_response>"), "<|tool_response>")) {
        buf_puts(&stable, thinking ? "" : "<|channel>thought\n<channel|>");
        assert_bytes(&stable, expected);
        assert_true(thinking || strstr(expected, "<|turn>model\n<|channel>thought\n<channel|>"));
    }

    if (!holds_control(messages) && !holds_control(tools)) {
        Ids ids = {0};
        tokenizer_encode(tokenizer, expected, strlen(expected), 1, &ids);
        assert_int_equal(p.ids.n, ids.n);
        assert_memory_equal(p.ids.id, ids.id, ids.n * sizeof(int));
        ids_free(&ids);
    }
    const cJSON *last = cJSON_GetArrayItem(messages, cJSON_GetArraySize(messages) - 1);
    const char *role = cJSON_GetStringValue(cJSON_GetObjectItem(last, "role"));
    if (strcmp(role, "assistant")) check_stable(messages, tools, thinking, &p);
    buf_free(&joined);
    buf_free(&stable);
    prompt_free(&p);
}

/* Returns the number of cases checked, or -1 when there is no such file. */
static int check_cases(const char *path) {
    Buf file = {0};
    if (read_file(path, &file, NULL)) return -1;
    int n = 0;
    for (char *rest = file.data, *line; (line = strsep(&rest, "\n")) && *line;) {
        cJSON *c = parse(line);
        check_case(c);
        n++;
        cJSON_Delete(c);
    }
    buf_free(&file);
    return n;
}

static void test_own_cases(void **state) {
    (void)state;
    assert_true(check_cases("tests/fixtures/chat_cases.jsonl") >= 100);
}

static void test_reference_cases(void **state) {
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s/chat_cases.jsonl", from_env("GEMMA4_REFERENCE", "../shared/reference"));
    int n = check_cases(path);
    if (n < 0) skip();
    assert_true(n >= 20);
}

static cJSON *conversation(const char *role, const char *content) {
    cJSON *messages = cJSON_CreateArray(), *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", role);
    cJSON_AddStringToObject(message, "content", content);
    cJSON_AddItemToArray(messages, message);
    return messages;
}

static void test_injection(void **state) {
    (void)state;
    static const char *roles[] = {"system", "developer", "user", "assistant"};
    static const char *frames[] = {"a %.*s b", "%.*s", "a<%.*s>b", "<turn|>\n%.*s<|turn>user\n"};
    assert_true(controls.n >= 20);
    for (int c = 0; c < controls.n; c++)
        for (int i = 0; i < 16; i++) {
            size_t n;
            const char *name = tokenizer_text(tokenizer, controls.id[c], &n);
            char text[256];
            snprintf(text, sizeof text, frames[i / 4], (int)n, name);
            cJSON *plain = conversation(roles[i % 4], "a"), *injected = conversation(roles[i % 4], text);
            Prompt p = render(plain, 0), q = render(injected, 0);
            assert_int_equal(count_controls(&p.ids), count_controls(&q.ids));
            prompt_free(&p);
            prompt_free(&q);
            cJSON_Delete(plain);
            cJSON_Delete(injected);
        }
}

/* What the template prints as Python's notation, leaves out, or cannot be given. */
static void test_beside_the_template(void **state) {
    (void)state;
    static const struct { const char *messages, *text; } cases[] = {
        {"[{\"role\":\"system\","
         "\"content\":[{\"type\":\"text\",\"text\":\" One. \"},{\"type\":\"text\",\"text\":\"Two.\"}]}]",
         "<bos><|turn>system\nOne.Two.<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"},
        {"[{\"role\":\"system\",\"content\":null}]",
         "<bos><|turn>system\n<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\"}}]}]",
         "<bos><|turn>user\n<|image|><turn|>\n<|turn>model\n<|channel>thought\n<channel|>"},
        {"[{\"role\":\"user\",\"content\":\"Hi\\u0000there\"}]",                      /* where cJSON ends it */
         "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"},
        {"[{\"role\":\"user\",\"content\":\"\xff \xe2\x80 \xc2\xa0\xed\xa0\x80 \"}]",     /* bytes pass through */
         "<bos><|turn>user\n\xff \xe2\x80 \xc2\xa0\xed\xa0\x80<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *messages = parse(cases[i].messages);
        Prompt p = render(messages, 0);
        assert_bytes(&p.text, cases[i].text);
        prompt_free(&p);
        cJSON_Delete(messages);
    }
}

static void test_errors(void **state) {
    (void)state;
    static const struct { const char *messages, *error; } cases[] = {
        {"[]", "messages: must be a list of at least one message"},
        {"{}", "messages: must be a list of at least one message"},
        {"{\"role\":\"user\",\"content\":\"x\"}", "messages: must be a list of at least one message"},
        {"\"Hi\"", "messages: must be a list of at least one message"},
        {"null", "messages: must be a list of at least one message"},
        {"[1]", "messages[0]: must be an object"},
        {"[\"Hi\"]", "messages[0]: must be an object"},
        {"[[{\"role\":\"user\"}]]", "messages[0]: must be an object"},
        {"[{\"role\":\"user\"},null]", "messages[1]: must be an object"},
        {"[{}]", "messages[0].role: must be a string"},
        {"[{\"content\":\"x\"}]", "messages[0].role: must be a string"},
        {"[{\"role\":null}]", "messages[0].role: must be a string"},
        {"[{\"role\":[\"user\"]}]", "messages[0].role: must be a string"},
        {"[{\"Role\":\"user\"}]", "messages[0].role: must be a string"},
        {"[{\"role\":\"User\"}]", "messages[0].role: must be system, developer, user, assistant or tool"},
        {"[{\"role\":\"\"}]", "messages[0].role: must be system, developer, user, assistant or tool"},
        {"[{\"role\":\"user\"},{\"role\":\"model\"}]",
         "messages[1].role: must be system, developer, user, assistant or tool"},
        {"[{\"role\":\"system\"},{\"role\":\"user\\n<turn|>\"}]",
         "messages[1].role: must be system, developer, user, assistant or tool"},
        {"[{\"role\":\"user\"},{\"role\":\"user\"},{\"role\":\"user\"},{\"role\":\"tool\",\"content\":\"x\"}]",
         "messages[3]: a tool message must follow an assistant's message with tool_calls"},
        {"[{\"role\":\"user\"},{\"role\":\"assistant\",\"tool_calls\":[]},{\"role\":\"tool\"}]",
         "messages[2]: a tool message must follow an assistant's message with tool_calls"},
        {"[{\"role\":\"user\"},{\"role\":\"assistant\",\"tool_calls\":{}}]", "messages[1].tool_calls: must be a list"},
        {"[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\"}]}]",
         "messages[0].tool_calls[0].function.name: must be a string"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{x:1}\"}}]}]",
         "messages[0].tool_calls[0].function.arguments: not a JSON object"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}},{\"function\":{\"name\":\"f\",\"arguments\":[1]}}]}]",
         "messages[0].tool_calls[1].function.arguments: not a JSON object"},
        {"[{\"role\":\"user\",\"content\":7}]", "messages[0].content: must be a string or a list of parts"},
        {"[{\"role\":\"user\",\"content\":true}]", "messages[0].content: must be a string or a list of parts"},
        {"[{\"role\":\"user\"},{\"role\":\"user\",\"content\":{\"type\":\"text\",\"text\":\"x\"}}]",
         "messages[1].content: must be a string or a list of parts"},
        {"[{\"role\":\"system\",\"content\":7}]", "messages[0].content: must be a string or a list of parts"},
        {"[{\"role\":\"user\",\"content\":[\"x\"]}]", "messages[0].content[0]: must be an object"},
        {"[{\"role\":\"user\",\"content\":[{\"text\":\"x\"}]}]", "messages[0].content[0].type: must be a string"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":1}]}]", "messages[0].content[0].type: must be a string"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image\"},{\"type\":\"Text\",\"text\":\"x\"}]}]",
         "messages[0].content[1].type: must be text, image_url or video_url"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"audio\"}]}]",
         "messages[0].content[0].type: audio parts are not supported"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]",
         "messages[0].content[0].type: input_audio parts are not supported"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0].text: must be a string"},
        {"[{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":null}]}]",
         "messages[0].content[0].text: must be a string"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int thinking = 0; thinking <= 1; thinking++) {
            cJSON *messages = parse(cases[i].messages);
            Prompt p = {0};
            Error err = {""};
            assert_int_equal(chat_render(tokenizer, messages, NULL, thinking, &p, &err), -1);
            assert_string_equal(err.text, cases[i].error);
            prompt_free(&p);
            cJSON_Delete(messages);
        }
    Prompt p = {0};
    assert_int_equal(chat_render(tokenizer, NULL, NULL, 0, &p, NULL), -1);
    prompt_free(&p);
}

/* The demo's tokenizer.json without one of its control tokens, or with one more. */
static Tokenizer *tokenizer_changed(const char *without, const char *with) {
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

static void test_missing_control(void **state) {
    (void)state;
    /* thinking_needs: which of thinking off (1) and on (2) need the token. */
    static const struct { const char *name; int thinking_needs; } cases[] = {
        {"<bos>", 3}, {"<|turn>", 3}, {"<turn|>", 3}, {"<|think|>", 2}, {"<|channel>", 1}, {"<channel|>", 1},
        {"<|image|>", 3}, {"<|tool>", 0},
    };
    cJSON *messages = parse("[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Tokenizer *t = tokenizer_changed(cases[i].name, NULL);
        for (int thinking = 0; thinking <= 1; thinking++) {
            Prompt p = {0};
            Error err = {""};
            char expected[200] = "";
            int bad = cases[i].thinking_needs >> thinking & 1;
            if (bad) snprintf(expected, sizeof expected, "%s: no control token %s", tokenizer_file(t), cases[i].name);
            assert_int_equal(chat_render(t, messages, NULL, thinking, &p, &err), -bad);
            assert_string_equal(err.text, expected);
            prompt_free(&p);
        }
        tokenizer_free(t);
    }
    cJSON_Delete(messages);
}

/* ---- answers ---- */

static void assert_utf8(const Buf *b) {
    for (size_t i = 0; i < b->len;) {
        int n = utf8_char(b->data + i, b->len - i);
        assert_true(n > 0);
        i += n;
    }
}

static void check_stream(const Ids *ids, int thinking, const char *content, const char *thought, const char *calls) {
    ChatStream s;
    Buf c = {0}, t = {0}, all = {0};
    chat_stream_open(&s, tokenizer, thinking);
    for (int i = 0; i < ids->n; i++) {
        chat_stream_feed(&s, ids->id[i], &c, &t);
        assert_utf8(&c);
        assert_utf8(&t);
    }
    chat_stream_end(&s, &c, &t);
    assert_bytes(&c, content);
    assert_bytes(&t, thought);
    for (int i = 0; i < s.n_calls; i++) buf_printf(&all, "%s%s ", s.calls[i].name, s.calls[i].arguments);
    buf_puts(&all, s.warning.len ? "!" : "");
    assert_bytes(&all, calls);
    buf_free(&all);
    chat_stream_free(&s);
    buf_free(&c);
    buf_free(&t);
}

/* Control tokens, and between them a token for each byte.  Returns 0 when n ends inside a control token. */
static int encode_bytes(const char *text, size_t n, Ids *out) {
    for (size_t i = 0, len; i < n; i += len) {
        int id;
        len = control_at(text + i, strlen(text + i), &id);
        if (len > n - i) return 0;
        ids_add(out, len ? id : byte_ids[(unsigned char)text[i]]);
        if (!len) len = 1;
    }
    return 1;
}

/* The answer as the tokenizer cuts it, and cut into bytes up to any place or from any place on. */
static void check_answer(const char *answer, int thinking, const char *content, const char *thought, const char *calls) {
    size_t n = strlen(answer);
    for (size_t k = 0; k <= n; k++) {
        Ids front = {0}, back = {0};
        if (encode_bytes(answer, k, &front)) {
            tokenizer_encode(tokenizer, answer + k, n - k, 1, &front);
            check_stream(&front, thinking, content, thought, calls);
            tokenizer_encode(tokenizer, answer, k, 1, &back);
            encode_bytes(answer + k, n - k, &back);
            check_stream(&back, thinking, content, thought, calls);
        }
        ids_free(&front);
        ids_free(&back);
    }
}

#define THOUGHT "<|channel>thought\nLet me see.\n<channel|>"
#define EMPTY "<|channel>thought\n<channel|>"

static void test_answers(void **state) {
    (void)state;
    enum { OFF = 1, ON = 2, BOTH = 3 };
    static const struct { int thinking; const char *answer, *content, *thought; } cases[] = {
        /* As it should be. */
        {BOTH, "", "", ""},
        {BOTH, "Hello", "Hello", ""},
        {BOTH, "\n Hello \n\n", "\n Hello \n\n", ""},
        {BOTH, THOUGHT "Hello", "Hello", "Let me see."},
        {BOTH, THOUGHT "\n\nHello\n", "\n\nHello\n", "Let me see."},
        {BOTH, EMPTY "Hello", "Hello", ""},
        {BOTH, "<|channel>thought\n a\n\nb \n\n<channel|>c", "c", " a\n\nb \n"},
        {BOTH, "<|channel>thought\nI'm\nthinking<channel|>Hello,\nworld", "Hello,\nworld", "I'm\nthinking"},
        {BOTH, "<|channel>thought\n\n<channel|>Hello", "Hello", ""},
        {BOTH, "<|channel>thought\nna\xc3\xafve \xf0\x9f\x99\x82\n<channel|>\xe2\x82\xac 5", "\xe2\x82\xac 5",
         "na\xc3\xafve \xf0\x9f\x99\x82"},
        /* Marks that nobody asked for. */
        {BOTH, "<channel|>Hello", "Hello", ""},
        {BOTH, "Hello<channel|>", "Hello", ""},
        {BOTH, "Hel<channel|>lo<channel|><channel|>", "Hello", ""},
        {BOTH, THOUGHT "<channel|>Hello<channel|>", "Hello", "Let me see."},
        {BOTH, "Hello" EMPTY, "Hello", ""},
        {BOTH, "Hello" THOUGHT, "Hello", "Let me see."},
        {BOTH, "One. " THOUGHT "Two.", "One. Two.", "Let me see."},
        {BOTH, "<|channel>" THOUGHT "Hello", "Hello", "Let me see."},
        {BOTH, "<|channel><|channel><|channel>thought\n<channel|>Hello", "Hello", ""},
        {BOTH, "<|channel><channel|>Hello", "Hello", ""},
        {BOTH, "<|channel>thought<channel|>Hello", "Hello", ""},
        {BOTH, "Hello<|channel>", "Hello", ""},
        {BOTH, "Hello<|channel>tho", "Hello", ""},
        /* More than one thought; names. */
        {BOTH, THOUGHT THOUGHT "Hello", "Hello", "Let me see.\nLet me see."},
        {BOTH, EMPTY THOUGHT "Hello" EMPTY, "Hello", "Let me see."},
        {BOTH, "<|channel>thought\na<channel|>b<|channel>thought\nc<channel|>d", "bd", "ac"},
        {BOTH, "<|channel>thought\na\n<|channel>thought\nb\n<channel|>c", "c", "a\nb"},
        {BOTH, "<|channel>thought\na <|channel>b c<channel|>d", "d", "a b c"},
        {BOTH, "<|channel>analysis\na\n<channel|>b", "b", "a"},
        {BOTH, "<|channel>azAZ09_-\na\n<channel|>b", "b", "a"},
        {BOTH, "<|channel>abcdefghijklmnopqrstuvwxyzabcdef\na\n<channel|>b", "b", "a"},
        /* No end. */
        {BOTH, "<|channel>thought\nLet me", "", "Let me"},
        {BOTH, "<|channel>thought\nLet me\n", "", "Let me\n"},
        {BOTH, "<|channel>thought\nLet me\n\xe2\x82", "", "Let me\n\xef\xbf\xbd"},
        {BOTH, "<|channel>thought\n", "", ""},
        {BOTH, "<|channel>thought", "", ""},
        /* A thought without its opening token. */
        {BOTH, "thought\n<channel|>Hello", "Hello", ""},
        {BOTH, "thought<channel|>Hello", "Hello", ""},
        {BOTH, "thought\n" THOUGHT "Hello", "Hello", "Let me see."},
        {ON, "thought\nLet me see.\n<channel|>Hello", "Hello", "Let me see."},
        {OFF, "thought\nis free", "thought\nis free", ""},
        {OFF, "thought\n", "thought\n", ""},
        {BOTH, "thought", "thought", ""},
        {BOTH, "tho", "tho", ""},
        {BOTH, "tho<channel|>ught\n", "thought\n", ""},
        {BOTH, "thought is free", "thought is free", ""},
        {BOTH, "thoughts\n", "thoughts\n", ""},
        {BOTH, "Hello\nthought\n<channel|>", "Hello\nthought\n", ""},
        /* A channel without a name: an answer when no thought was asked for. */
        {ON, "<|channel>\nLet me see.\n<channel|>Hello", "Hello", "Let me see."},
        {OFF, "<|channel>\n```c\nint x;", "```c\nint x;", ""},
        {ON, "<|channel>I think so.<channel|>Hello", "Hello", "I think so."},
        {OFF, "<|channel>I think so.", "I think so.", ""},
        {OFF, THOUGHT "<|channel>\nor not<channel|>Hello", "Hello", "Let me see.\nor not"},
        {ON, "<|channel>abcdefghijklmnopqrstuvwxyzabcdefg\n<channel|>Hello", "Hello",
         "abcdefghijklmnopqrstuvwxyzabcdefg"},
        {ON, "<|channel>\xc3\xa9\n<channel|>Hello", "Hello", "\xc3\xa9"},
        /* Other control tokens. */
        {BOTH, "<pad><bos>Hel<|turn>lo<turn|><|image|><|image><image|><|audio|><|video|><|think|><eos><mask>",
         "Hello", ""},
        {BOTH, "<|channel><pad>thou<bos>ght\nLet<pad> me.\n<turn|><channel|>Hello", "Hello", "Let me."},
        {BOTH, "<|tool><tool|><tool_response|><tool_call|>Hello", "Hello", ""},
        {BOTH, "<|\"|>Hello<|\"|>", "\"Hello\"", ""},
        {BOTH, "<table> <unused1> < |turn> <|turn >", "<table> <unused1> < |turn> <|turn >", ""},
        /* Bytes that are no UTF-8, as Python's bytes.decode(errors="replace") has them. */
        {BOTH, "\xff", "\xef\xbf\xbd", ""},
        {BOTH, "a\x80\x80z", "a\xef\xbf\xbd\xef\xbf\xbdz", ""},
        {BOTH, "\xe2\x82", "\xef\xbf\xbd", ""},
        {BOTH, "\xe2\x82z", "\xef\xbf\xbdz", ""},
        {BOTH, "\xe2\x82\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac", ""},
        {BOTH, "\xf0\x9f\x99", "\xef\xbf\xbd", ""},
        {BOTH, "\xf0\x9f\x99\xff\xf0\x9f\x99\x82", "\xef\xbf\xbd\xef\xbf\xbd\xf0\x9f\x99\x82", ""},
        {BOTH, "\xc0\xafz", "\xef\xbf\xbd\xef\xbf\xbdz", ""},
        {BOTH, "\xe0\x80\x80z", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz", ""},
        {BOTH, "\xed\xa0\x80z", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz", ""},
        {BOTH, "\xf4\x90\x80\x80z", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz", ""},
        {BOTH, "\xf1\x80\x80\xe1\x80\xc2\xc2\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xc2\x80", ""},
        {BOTH, "\xe2\x82<channel|>\xac", "\xef\xbf\xbd\xef\xbf\xbd", ""},
        {BOTH, "\xe2<pad>\x82<turn|>\xac", "\xe2\x82\xac", ""},
        {BOTH, "<|channel>thought\n\xe2\x82<channel|>\xe2\x82\xac", "\xe2\x82\xac", "\xef\xbf\xbd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int thinking = 0; thinking <= 1; thinking++)
            if (cases[i].thinking >> thinking & 1)
                check_answer(cases[i].answer, thinking, cases[i].content, cases[i].thought, "");
}

/* calls: name, arguments and a blank for each call; a `!` for a warning. */
static void test_calls(void **state) {
    (void)state;
#define DIGITS63 "123456789012345678901234567890123456789012345678901234567890123"
#define CALL(text) "<|tool_call>" text "<tool_call|>"
#define STR(text) "<|\"|>" text "<|\"|>"
    static const struct { const char *answer, *content, *thought, *calls; } cases[] = {
        /* As it should be. */
        {CALL("call:f{}"), "", "", "f{} "},
        {CALL("call:f{}") "<|tool_response>", "", "", "f{} "},
        {CALL("call:get_weather{city:" STR("Oslo") ",days:3}"), "", "", "get_weather{\"city\":\"Oslo\",\"days\":3} "},
        {THOUGHT CALL("call:f{a:-2.5e+3,b:true,c:false,d:null,e:[],f:{},g:[1,[" STR("x") "],{h:0}]}"), "", "Let me see.",
         "f{\"a\":-2.5e+3,\"b\":true,\"c\":false,\"d\":null,\"e\":[],\"f\":{},\"g\":[1,[\"x\"],{\"h\":0}]} "},
        {"I look. " CALL("call:f{}") CALL("call:g{x:1}"), "I look. ", "", "f{} g{\"x\":1} "},
        {CALL("call:f{}") "\n" CALL("call:g{}") " done", "\n done", "", "f{} g{} "},
        /* Strings have no escapes, and may hold anything. */
        {CALL("call:f{a:" STR("}],{b:\\n\"\\ \"") "}"), "", "", "f{\"a\":\"}],{b:\\\\n\\\"\\\\ \\\"\"} "},
        {CALL("call:f{a:" STR("line\nline\tna\xc3\xafve \xf0\x9f\x99\x82") ",b:" STR("") "}"), "", "",
         "f{\"a\":\"line\\nline\\tna\xc3\xafve \xf0\x9f\x99\x82\",\"b\":\"\"} "},
        {CALL("call:f{a:" STR("\xff\xc3") "}"), "", "", "f{\"a\":\"\xef\xbf\xbd\xef\xbf\xbd\"} "},
        /* What a model also writes. */
        {CALL(" call:f { a : 1 , b : [ 1 , 2 ] } "), "", "", "f{\"a\":1,\"b\":[1,2]} "},
        {CALL("f{a:None}"), "", "", "f{\"a\":null} "},
        {CALL("call:f{" STR("a b") ":1}"), "", "", "f{\"a b\":1} "},
        {CALL("call:f{\"a\":\"x\\n\\u00e9\"}"), "", "", "f{\"a\":\"x\\n\xc3\xa9\"} "},
        {CALL("call:mcp.x-y_z/1{}"), "", "", "mcp.x-y_z/1{} "},
        {CALL("call:f{a:[-0,1.0,1e400,12345678901234567890]}"), "", "", "f{\"a\":[-0,1.0,1e400,12345678901234567890]} "},
        /* Marks that nobody asked for. */
        {"<|channel>" THOUGHT CALL("call:f{}"), "", "Let me see.", "f{} "},
        {EMPTY "I will<channel|>" CALL("call:f{}"), "I will", "", "f{} "},
        {"<|channel>thought\nLet me see.\n" CALL("call:f{}"), "", "Let me see.", "f{} "},
        {"<|channel>" CALL("call:f{}") "<channel|>", "", "", "f{} "},
        {"<|tool_call>call:f{a:<|channel>1<channel|>}<tool_call|>", "", "", "f{\"a\":1} "},
        {"<tool_call|>" CALL("call:f{}") "<tool_call|>", "", "", "f{} "},
        {CALL("call:f{}") THOUGHT CALL("call:g{}"), "", "Let me see.", "f{} g{} "},
        /* The end mark is missing. */
        {"<|tool_call>call:f{a:1}", "", "", "f{\"a\":1} "},
        {"<|tool_call>call:f{a:1}<|tool_response>", "", "", "f{\"a\":1} "},
        {"<|tool_call>call:f{a:1}" CALL("call:g{}"), "", "", "f{\"a\":1} g{} "},
        /* Those that cannot be read are text. */
        {CALL(""), "", "", "!"},
        {CALL("f"), "f", "", "!"},
        {CALL("call:{}"), "call:{}", "", "!"},
        {CALL("call:f()"), "call:f()", "", "!"},
        {CALL("call:f g{}"), "call:f g{}", "", "!"},
        {CALL("call:" STR("f") "{}"), "call:\"f\"{}", "", "!"},
        {CALL("call:f{a:" STR("x") "} y"), "call:f{a:\"x\"} y", "", "!"},
        {CALL("call:f{a}"), "call:f{a}", "", "!"},
        {CALL("call:f{a:}"), "call:f{a:}", "", "!"},
        {CALL("call:f{a:1,}"), "call:f{a:1,}", "", "!"},
        {CALL("call:f{:1}"), "call:f{:1}", "", "!"},
        {CALL("call:f{a:1 b:2}"), "call:f{a:1 b:2}", "", "!"},
        {CALL("call:f{a:Oslo}"), "call:f{a:Oslo}", "", "!"},
        {CALL("call:f{a:007}"), "call:f{a:007}", "", "!"},
        {CALL("call:f{a:1.}"), "call:f{a:1.}", "", "!"},
        {CALL("call:f{a:\"\\u0000\"}"), "call:f{a:\"\\u0000\"}", "", "!"},
        {CALL("call:f{a:-}"), "call:f{a:-}", "", "!"},
        {CALL("call:f{a:1e}"), "call:f{a:1e}", "", "!"},
        {CALL("call:f{a:" DIGITS63 "}"), "", "", "f{\"a\":" DIGITS63 "} "},      /* what json.c can read back, and what not */
        {CALL("call:f{a:" DIGITS63 "4}"), "call:f{a:" DIGITS63 "4}", "", "!"},
        {CALL("call:f{a:[1,2}"), "call:f{a:[1,2}", "", "!"},
        {CALL("call:f{a:\"x}"), "call:f{a:\"x}", "", "!"},
        {CALL("call:f:\nBEGIN_ARG:\nls\nEND_ARG"), "call:f:\nBEGIN_ARG:\nls\nEND_ARG", "", "!"},
        {"<|tool_call>call:get_weather{city:<|\"|>Os", "call:get_weather{city:\"Os", "", "!"},
        {"Hm. <|tool_call>call:f{a:" STR("x") ",", "Hm. call:f{a:\"x\",", "", "!"},
        {"<|tool_call>call:f{a:" CALL("call:g{}") "Hello", "call:f{a:Hello", "", "g{} !"},
        {CALL("call:f{a:x}") CALL("call:g{}"), "call:f{a:x}", "", "g{} !"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int thinking = 0; thinking <= 1; thinking++)
            check_answer(cases[i].answer, thinking, cases[i].content, cases[i].thought, cases[i].calls);

    char deep[1000] = "<|tool_call>call:f{a:";      /* brackets without end take no stack without end */
    memset(deep + strlen(deep), '[', 900);
    check_answer(deep, 0, deep + strlen("<|tool_call>"), "", "!");
}

/* What can be shown at once is: only a header, a name, a thought's last newline and half a character wait. */
static void test_no_delay(void **state) {
    (void)state;
    static const struct { const char *answer, *content, *thought; } cases[] = {
        {"Hello\n", "Hello\n", ""},
        {"thought", "", ""},
        {"thoughtf", "thoughtf", ""},
        {THOUGHT "H", "H", "Let me see."},
        {"<|channel>thought\nLet", "", "Let"},
        {"<|channel>thought\nLet\n", "", "Let"},
        {"<|channel>thought\nLet\n\n", "", "Let\n"},
        {"<|channel>thou", "", ""},
        {"a\xf0\x9f\x99", "a", ""},
        {"a\xff", "a\xef\xbf\xbd", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ChatStream s;
        Ids ids = {0};
        Buf content = {0}, thought = {0};
        chat_stream_open(&s, tokenizer, 1);
        tokenizer_encode(tokenizer, cases[i].answer, strlen(cases[i].answer), 1, &ids);
        for (int k = 0; k < ids.n; k++) chat_stream_feed(&s, ids.id[k], &content, &thought);
        assert_bytes(&content, cases[i].content);
        assert_bytes(&thought, cases[i].thought);
        chat_stream_free(&s);
        ids_free(&ids);
        buf_free(&content);
        buf_free(&thought);
    }
}

/* ---- there and back: random calls rendered, read as an answer, rendered again ---- */

static uint32_t seed = 1;
static int below(int n) { return (seed = seed * 1664525u + 1013904223u) / (4294967296.0 / n); }

static void random_text(Buf *b) {
    static const char *parts[] = {
        "a", "Oslo", " ", "\n", "\"", "\\", "{", "}", ",", ":", "<|\"|>", "<tool_call|>", "<|channel>", "call:f{", "\xc3\xa9", "\xf0\x9f\x99\x82",
        "null", "\t", "\xe2\x82\xac", "[", "]", "0",
    };
    buf_add(b, "", 0);
    for (int n = below(6); n > 0; n--) buf_puts(b, parts[below(sizeof parts / sizeof *parts)]);
}

static cJSON *random_value(int depth) {
    static const char *keys[] = {"a", "B", "b", "_x", "key-1", "long key", "\xc3\xa9", "Z"};
    int kind = below(depth > 3 ? 5 : 7);
    static const char *numbers[] = {"0", "-0", "7", "-12345678901234567890", "9007199254740993", "1e400", "-1E-400", "0.0", "-2.50", "1.0",
                                    "1e2", "0.1000000000000000055", "3.1415926535897932384626433"};
    if (kind < 2) return parse(numbers[below(13)]);
    if (kind == 2) return cJSON_CreateBool(below(2));
    if (kind == 3) return cJSON_CreateNull();
    if (kind == 4) {
        Buf b = {0};
        random_text(&b);
        cJSON *s = cJSON_CreateString(b.data);
        buf_free(&b);
        return s;
    }
    cJSON *v = kind == 5 ? cJSON_CreateArray() : cJSON_CreateObject();
    for (int n = below(4); n > 0; n--) {
        if (kind == 5) cJSON_AddItemToArray(v, random_value(depth + 1));
        else {
            const char *key = keys[below(8)];
            if (!cJSON_GetObjectItemCaseSensitive(v, key)) cJSON_AddItemToObject(v, key, random_value(depth + 1));
        }
    }
    return v;
}

static cJSON *call_message(void) {
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", "assistant");
    cJSON_AddItemToObject(message, "tool_calls", cJSON_CreateArray());
    return message;
}

static void add_call(cJSON *message, const char *name, cJSON *arguments) {
    cJSON *call = cJSON_CreateObject(), *function = cJSON_AddObjectToObject(call, "function");
    cJSON_AddStringToObject(function, "name", name);
    cJSON_AddItemToObject(function, "arguments", arguments);
    cJSON_AddItemToArray(cJSON_GetObjectItem(message, "tool_calls"), call);
}

static void test_there_and_back(void **state) {
    (void)state;
    for (int round = 0; round < 3000; round++) {
        cJSON *messages = conversation("user", "Hi"), *message = call_message(), *again = call_message();
        Buf thought = {0};
        int thinking = below(2);
        buf_puts(&thought, thinking ? "Let me see" : "");
        if (thinking) cJSON_AddStringToObject(message, "reasoning_content", thought.data);
        for (int n = 1 + below(3); n > 0; n--) {
            cJSON *arguments = random_value(0);
            while (!cJSON_IsObject(arguments)) cJSON_Delete(arguments), arguments = random_value(0);
            add_call(message, n & 1 ? "f" : "get_weather", arguments);
        }
        cJSON_AddItemToArray(messages, message);
        Prompt p = render(messages, thinking);

        ChatStream s;
        Buf content = {0}, got = {0};
        chat_stream_open(&s, tokenizer, thinking);
        int from = 0, begin = tokenizer_control(tokenizer, thinking ? "<|channel>" : "<|tool_call>");
        while (p.ids.id[from] != begin) from++;
        for (int i = from; i < p.ids.n && !chat_stream_ends(&s, p.ids.id[i]); i++) chat_stream_feed(&s, p.ids.id[i], &content, &got);
        for (int i = 0; i < s.n_calls; i++) add_call(again, s.calls[i].name, cJSON_CreateString(s.calls[i].arguments));
        if (got.len) cJSON_AddStringToObject(again, "reasoning_content", got.data);
        assert_int_equal(content.len + s.warning.len, 0);
        assert_bytes(&got, thought.data);

        cJSON_ReplaceItemInArray(messages, 1, again);
        Prompt q = render(messages, thinking);
        assert_bytes(&q.text, p.text.data);
        assert_int_equal(q.ids.n, p.ids.n);
        assert_memory_equal(q.ids.id, p.ids.id, p.ids.n * sizeof(int));
        chat_stream_free(&s);
        prompt_free(&p);
        prompt_free(&q);
        buf_free(&got);
        buf_free(&thought);
        cJSON_Delete(messages);
    }
}

/* A model that writes a NUL: no request could bring it back, so it is no part of an answer. */
static void test_nul(void **state) {
    (void)state;
    static const char *const around[] = {"a<|tool_call>call:f{x:<|\"|>b", "c<|\"|>}<tool_call|>d"};
    ChatStream s;
    Buf content = {0}, thought = {0};
    Ids ids = {0};
    chat_stream_open(&s, tokenizer, 0);
    ids_add(&ids, byte_ids[0]);
    tokenizer_encode(tokenizer, around[0], strlen(around[0]), 1, &ids);
    ids_add(&ids, byte_ids[0]);
    tokenizer_encode(tokenizer, around[1], strlen(around[1]), 1, &ids);
    for (int i = 0; i < ids.n; i++) chat_stream_feed(&s, ids.id[i], &content, &thought);
    chat_stream_end(&s, &content, &thought);
    assert_bytes(&content, "\xef\xbf\xbd" "ad");
    assert_int_equal(s.n_calls, 1);
    assert_string_equal(s.calls[0].arguments, "{\"x\":\"b\xef\xbf\xbd" "c\"}");
    chat_stream_free(&s);
    ids_free(&ids);
    buf_free(&content);
}

static void test_raw(void **state) {
    (void)state;
    static const char text[] = "thought\n<channel|><bos><|turn>user\nHi<turn|>\n<|channel>thought\nx\n<channel|>"
                               "\xf0\x9f\x99\x82<pad>";
    ChatStream s;
    Ids ids = {0};
    Buf content = {0}, thought = {0};
    assert_true(encode_bytes(text, strlen(text), &ids));
    chat_stream_open(&s, tokenizer, 1);
    s.raw = 1;
    for (int i = 0; i < ids.n; i++) chat_stream_feed(&s, ids.id[i], &content, &thought);
    chat_stream_end(&s, &content, &thought);
    assert_bytes(&content, text);
    assert_int_equal(thought.len, 0);
    chat_stream_free(&s);
    ids_free(&ids);
    buf_free(&content);
}

/* A tokenizer.model has pieces of this shape that are ordinary text. */
static void test_other_controls(void **state) {
    (void)state;
    static const struct { const char *name, *content; } cases[] = {
        {"<zz>", "<zz>"}, {"</zz>", "</zz>"}, {"<|zz|>", ""}, {"<|zz>", ""}, {"<zz|>", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Tokenizer *t = tokenizer_changed(NULL, cases[i].name);
        int id = tokenizer_control(t, cases[i].name);
        assert_true(id >= 0);
        ChatStream s;
        Buf content = {0}, thought = {0};
        chat_stream_open(&s, t, 0);
        chat_stream_feed(&s, id, &content, &thought);
        chat_stream_end(&s, &content, &thought);
        assert_bytes(&content, cases[i].content);
        chat_stream_free(&s);
        buf_free(&content);
        tokenizer_free(t);
    }
}

static void test_unknown_ids(void **state) {
    (void)state;
    ChatStream s;
    Buf content = {0}, thought = {0};
    chat_stream_open(&s, tokenizer, 0);
    chat_stream_feed(&s, -1, &content, &thought);
    chat_stream_feed(&s, tokenizer_n_vocab(tokenizer), &content, &thought);
    chat_stream_feed(&s, INT32_MAX, &content, &thought);
    chat_stream_end(&s, &content, &thought);
    assert_int_equal(content.len + thought.len, 0);
    chat_stream_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_cases),
        cmocka_unit_test(test_reference_cases),
        cmocka_unit_test(test_injection),
        cmocka_unit_test(test_beside_the_template),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_missing_control),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_no_delay),
        cmocka_unit_test(test_other_controls),
        cmocka_unit_test(test_nul), cmocka_unit_test(test_raw),
        cmocka_unit_test(test_unknown_ids),
    };
    return cmocka_run_group_tests_name("chat", tests, open_tokenizer, close_tokenizer);
}
