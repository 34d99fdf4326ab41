/* test_chat.c - conversations against the published template, and injected control tokens.
 *
 * Cases: tests/fixtures/chat_cases.jsonl (tests/make_chat_cases.py), tests/fixtures/chat_july.jsonl, and
 * chat_cases.jsonl of the reference folder where there is one (GEMMA4_REFERENCE). */
#include "grammar.h"

static int count_controls(const Ids *ids) {
    int n = 0;
    for (int i = 0; i < ids->n; i++) n += tokenizer_is_control(tokenizer, ids->id[i]);
    return n;
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
static void check_stable(const cJSON *messages, const cJSON *tools, ChatOptions options, const Prompt *p) {
    static const char *answers[] = {
        "Hello", "", "\n\n hello", "<|channel>thought\nx\n<channel|>1", "\xe2\x82", "\xf0\x9f\x99\x82",
    };
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        cJSON *longer = cJSON_Duplicate(messages, 1), *answer = cJSON_CreateObject();
        cJSON_AddStringToObject(answer, "role", "assistant");
        cJSON_AddStringToObject(answer, "content", answers[i]);
        cJSON_AddItemToArray(longer, answer);
        Prompt next = render_as(longer, tools, options);
        assert_true(next.ids.n >= p->n_stable);
        assert_memory_equal(next.ids.id, p->ids.id, p->n_stable * sizeof(int));
        prompt_free(&next);
        cJSON_Delete(longer);
    }
}

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), len = strlen(end);
    return n >= len && !strcmp(text + n - len, end);
}

static void check_case(const cJSON *c) {
    const cJSON *messages = cJSON_GetObjectItem(c, "messages"), *given = cJSON_GetObjectItem(c, "tools");
    const char *expected = cJSON_GetStringValue(cJSON_GetObjectItem(c, "rendered"));
    ChatOptions options = {.thinking = cJSON_IsTrue(cJSON_GetObjectItem(c, "thinking")),
                           .preserve_thinking = cJSON_IsTrue(cJSON_GetObjectItem(c, "preserve_thinking"))};
    cJSON *tools = cJSON_IsArray(given) ? tools_read(given, NULL) : NULL;
    Prompt p = render_as(messages, tools, options);
    assert_bytes(&p.text, expected);

    Buf joined = {0}, stable = {0};
    join(p.ids.id, p.ids.n, &joined);
    assert_bytes(&joined, expected);
    join(p.ids.id, p.n_stable, &stable);
    assert_memory_equal(stable.data, expected, stable.len);
    int opens = ends_with(expected, options.thinking ? "<|turn>model\n" : "<|turn>model\n<|channel>thought\n<channel|>");
    if (opens) {                        /* the model's turn begins: what is stable ends behind its header */
        buf_puts(&stable, options.thinking ? "" : "<|channel>thought\n<channel|>");
        assert_bytes(&stable, expected);
    }
    assert_int_equal(p.in_thought, ends_with(expected, "<|channel>thought\n"));

    if (!holds_control(messages) && !holds_control(tools)) {
        Ids ids = {0};
        tokenizer_encode(tokenizer, expected, strlen(expected), 1, &ids);
        assert_int_equal(p.ids.n, ids.n);
        assert_memory_equal(p.ids.id, ids.id, ids.n * sizeof(int));
        ids_free(&ids);
    }
    const cJSON *last = cJSON_GetArrayItem(messages, cJSON_GetArraySize(messages) - 1);
    const char *role = cJSON_GetStringValue(cJSON_GetObjectItem(last, "role"));
    if (strcmp(role, "assistant")) check_stable(messages, tools, options, &p);
    cJSON_Delete(tools);
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
    assert_true(check_cases("tests/fixtures/chat_cases.jsonl") >= 180);
    assert_int_equal(check_cases("tests/fixtures/chat_reference.jsonl"), 160);
}

static void test_reference_cases(void **state) {
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s/chat_cases.jsonl", from_env("GEMMA4_REFERENCE", "../shared/reference"));
    int n = check_cases(path);
    if (n < 0) skip();
    assert_true(n >= 160);
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

#define ASK "{\"role\":\"user\",\"content\":\"Hi\"},"
#define CALLED(arguments) "{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"f\",\"arguments\":" arguments "}}]}"

/* Arguments in the history that the template would stop at, or print differently. */
static void test_arguments_in_history(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"\"{\\\"x\\\": 1, \\\"a\\\": \\\"b\\\"}\"", "call:f{a:<|\"|>b<|\"|>,x:1}"},
        {"\"{\\\"x\\\": \\\"abc\"", "call:f{{\"x\": \"abc}"},                       /* cut */
        {"\"{x:1}\"", "call:f{{x:1}}"},
        {"\"\\\"{\\\\\\\"x\\\\\\\": 1}\\\"\"", "call:f{x:1}"},                        /* JSON twice */
        {"\"{\\\"a\\\\u0000\\\": 1}\"", "call:f{a\xef\xbf\xbd:1}"},
        {"\"<|tool_call>\"", "call:f{<|tool_call>}"},
        {"\"[1, 2]\"", "call:f{[1, 2]}"},
        {"\"5\"", "call:f{5}"},
        {"[1, 2]", "call:f{[1,2]}"},
        {"true", "call:f{true}"},
        {"\"null\"", "call:f{}"},
        {"null", "call:f{}"},
        {"\"\"", "call:f{}"},
        {"\" \"", "call:f{ }"},
        {"{}", "call:f{}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Buf json = {0}, expected = {0};
        buf_printf(&json, "[" ASK CALLED("%s") ",{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"error\"}]", cases[i][0]);
        buf_printf(&expected, "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|tool_call>%s<tool_call|>"
                   "<|tool_response>response:f{value:<|\"|>error<|\"|>}<tool_response|>", cases[i][1]);
        cJSON *messages = parse(json.data);
        Prompt p = render(messages, 0);
        assert_bytes(&p.text, expected.data);
        assert_int_equal(count_controls(&p.ids), 10 + 2 * (i == 0));
        prompt_free(&p);
        cJSON_Delete(messages);
        buf_free(&json);
        buf_free(&expected);
    }
}

/* Parts under the names that other interfaces have for them. */
static void test_part_types(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"input_text\",\"text\":\" a \"},{\"type\":\"text\",\"text\":\"b\"}]}]",
         "<|turn>user\nab<turn|>\n<|turn>model\n"},
        {"[" ASK "{\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"a\"},{\"type\":\"refusal\",\"refusal\":\"No.\"}]},"
         "{\"role\":\"user\",\"content\":\"b\"}]",
         "<|turn>user\nHi<turn|>\n<|turn>model\naNo.<turn|>\n<|turn>user\nb<turn|>\n<|turn>model\n"},
        {"[" ASK "{\"role\":\"assistant\",\"content\":[{\"type\":\"thinking\",\"thinking\":\"Hm\"},{\"type\":\"text\",\"text\":\"a\"},"
         "{\"type\":\"reasoning\",\"text\":\"m\"}]}]",
         "<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\nHmm\n<channel|>a<turn|>\n<|turn>model\n"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"input_image\",\"image_url\":\"x\"}]}]",
         "<|turn>user\n<|image|><turn|>\n<|turn>model\n"},
        {"[" ASK CALLED("{}") ",{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\"}},"
         "{\"type\":\"output_text\",\"text\":\"a\"},{\"type\":\"video_url\"}]}]",
         "<|turn>user\nHi<turn|>\n<|turn>model\n<|tool_call>call:f{}<tool_call|>"
         "<|tool_response>response:f{value:<|\"|>a<|\"|>}<tool_response|><|image|><|video|><|channel>thought\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *messages = parse(cases[i][0]);
        Prompt p = render(messages, 1);
        assert_string_equal(p.text.data + strlen("<bos><|turn>system\n<|think|>\n<turn|>\n"), cases[i][1]);
        prompt_free(&p);
        cJSON_Delete(messages);
    }
}

static void test_continue_final(void **state) {
    (void)state;
    static const struct { const char *messages, *text, *error; } cases[] = {
        {"[" ASK "{\"role\":\"assistant\",\"content\":\" The \"}]", "<bos><|turn>user\nHi<turn|>\n<|turn>model\nThe", ""},
        {"[" ASK "{\"role\":\"assistant\",\"content\":null}]", "<bos><|turn>user\nHi<turn|>\n<|turn>model\n", ""},
        {"[" ASK "{\"role\":\"assistant\",\"content\":\"The\",\"reasoning\":\"Hm\"}]",
         "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\nHm\n<channel|>The", ""},
        {"[" ASK CALLED("{}") ",{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"It is\"}]",
         "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|tool_call>call:f{}<tool_call|>"
         "<|tool_response>response:f{value:<|\"|>x<|\"|>}<tool_response|>It is", ""},
        {"[{\"role\":\"user\",\"content\":\"Hi\"}]", NULL, "continue_final_message: messages[0] is not the assistant's"},
        {"[" ASK CALLED("{}") "]", NULL, "continue_final_message: messages[1] calls tools"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *messages = parse(cases[i].messages);
        Prompt p = {0};
        Error err = {""};
        assert_int_equal(chat_render(tokenizer, messages, NULL, (ChatOptions){.continue_final = 1}, &p, &err), cases[i].text ? 0 : -1);
        assert_string_equal(err.text, cases[i].error);
        if (cases[i].text) {
            Ids ids = {0};
            assert_bytes(&p.text, cases[i].text);
            tokenizer_encode(tokenizer, cases[i].text, strlen(cases[i].text), 1, &ids);
            assert_int_equal(p.ids.n, ids.n);
            assert_memory_equal(p.ids.id, ids.id, ids.n * sizeof(int));
            ids_free(&ids);
        }
        prompt_free(&p);
        cJSON_Delete(messages);
    }
}

/* Tools in the shapes that people have them in, and schemas that the template would print nothing of. */
static void test_declarations(void **state) {
    (void)state;
#define DECLARED(name, description, parameters) "<|tool>declaration:" name "{description:<|\"|>" description "<|\"|>" parameters "}<tool|>"
#define TYPE(t) "type:<|\"|>" t "<|\"|>"
    static const char *const cases[][2] = {
        {"[{\"name\":\"f\",\"inputSchema\":{\"type\":\"object\"}}]", DECLARED("f", "", ",parameters:{" TYPE("OBJECT") "}")},
        {"{\"tools\":[{\"name\":\"f\",\"title\":\"F\",\"description\":\"d\",\"inputSchema\":{\"type\":\"object\"},\"annotations\":{}}]}",
         DECLARED("f", "d", ",parameters:{" TYPE("OBJECT") "}")},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"tools\":[{\"name\":\"f\",\"inputSchema\":{}}]}}", DECLARED("f", "", "")},
        {"[{\"type\":\"function\",\"name\":\"f\",\"description\":\"d\",\"parameters\":{\"type\":\"object\"},\"strict\":true}]",
         DECLARED("f", "d", ",parameters:{" TYPE("OBJECT") "}")},
        {"[{\"function\":{\"name\":\"f\"}}]", DECLARED("f", "", "")},
        /* $ref, a choice with null, an allOf of one. */
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"w\":{\"$ref\":\"#/$defs/P\",\"description\":\"d\"},"
         "\"n\":{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"null\"}],\"description\":\"guests\"},"
         "\"o\":{\"oneOf\":[{\"type\":\"null\"},{\"$ref\":\"#/$defs/P\"}]},\"a\":{\"allOf\":[{\"type\":\"string\",\"enum\":[\"x\"]}]}},"
         "\"$defs\":{\"P\":{\"type\":\"object\",\"description\":\"a P\",\"properties\":{\"k\":{\"type\":\"boolean\"}}}}}}]",
         DECLARED("f", "", ",parameters:{properties:{a:{enum:[<|\"|>x<|\"|>]," TYPE("STRING") "},"
                  "n:{description:<|\"|>guests<|\"|>,nullable:true," TYPE("INTEGER") "},"
                  "o:{description:<|\"|>a P<|\"|>,nullable:true,properties:{k:{" TYPE("BOOLEAN") "}}," TYPE("OBJECT") "},"
                  "w:{description:<|\"|>d<|\"|>,properties:{k:{" TYPE("BOOLEAN") "}}," TYPE("OBJECT") "}},")},
        /* The ways to write null, a choice of one, a pointer with escapes of both kinds. */
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"c\":{\"anyOf\":[{\"type\":\"string\"},{\"const\":null}]},"
         "\"e\":{\"oneOf\":[{\"enum\":[null]},{\"type\":\"integer\"}]},\"l\":{\"anyOf\":[{\"type\":\"boolean\"},{\"type\":[\"null\"]}]},"
         "\"o\":{\"anyOf\":[{\"type\":\"number\"}]},\"p\":{\"$ref\":\"#/$defs/a%20b~1%C3%a9%zz\"}},"
         "\"$defs\":{\"a b/\u00e9%zz\":{\"type\":\"string\"}}}}]",
         DECLARED("f", "", ",parameters:{properties:{c:{nullable:true," TYPE("STRING") "},e:{nullable:true," TYPE("INTEGER") "},"
                  "l:{nullable:true," TYPE("BOOLEAN") "},o:{" TYPE("NUMBER") "},p:{" TYPE("STRING") "}},")},
        /* A circle is told once; a list of a $ref; names of properties that are keywords. */
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"t\":{\"$ref\":\"#/definitions/T\"}},"
         "\"definitions\":{\"T\":{\"type\":\"object\",\"properties\":{\"l\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/definitions/T\"}}}}}}}]",
         DECLARED("f", "", ",parameters:{properties:{t:{properties:{l:{items:{" TYPE("OBJECT") "}," TYPE("ARRAY") "}}," TYPE("OBJECT") "}},")},
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"anyOf\":{\"type\":\"string\"},\"$ref\":{\"type\":\"null\"},\"enum\":{\"$ref\":\"#/x\"}},"
         "\"x\":{\"type\":\"number\"}}}]",
         DECLARED("f", "", ",parameters:{properties:{$ref:{" TYPE("NULL") "},anyOf:{" TYPE("STRING") "},enum:{" TYPE("NUMBER") "}},")},
        /* allOf of several, choices between strings, types that are missing or lists; names of properties, and data, stay. */
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"allOf\":[{\"$ref\":\"#/$defs/P\"},{\"properties\":{\"q\":{\"const\":1}},\"required\":[\"q\"]}]},"
         "\"e\":{\"anyOf\":[{\"const\":\"x\"},{\"enum\":[\"y\"]}]},\"l\":{\"type\":[\"array\",\"null\"],\"items\":{\"enum\":[\"x\"]}},\"s\":{\"type\":[\"string\",\"null\"]},"
         "\"o\":{\"default\":{\"items\":{}},\"properties\":{\"items\":{\"type\":\"string\"}}}},"
         "\"$defs\":{\"P\":{\"type\":\"object\",\"properties\":{\"p\":{\"type\":\"string\"}},\"required\":[\"p\"]}}}}]",
         DECLARED("f", "", ",parameters:{properties:{a:{properties:{p:{" TYPE("STRING") "},q:{" TYPE("") "}},required:[<|\"|>p<|\"|>,<|\"|>q<|\"|>]," TYPE("OBJECT")
                  "},e:{enum:[<|\"|>x<|\"|>,<|\"|>y<|\"|>]," TYPE("STRING") "},l:{items:{enum:[<|\"|>x<|\"|>]," TYPE("STRING") "},nullable:true," TYPE("ARRAY")
                  "},o:{properties:{items:{" TYPE("STRING") "}}," TYPE("OBJECT") "},s:{" TYPE("['STRING', 'NULL']") "}},")},
        /* Choices between objects and between types. */
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"p\":{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"cat\"},\"l\":{\"type\":\"integer\"}},"
         "\"required\":[\"k\",\"l\"]},{\"type\":\"null\"},{\"$ref\":\"#/$defs/D\"},{\"properties\":{\"k\":{\"enum\":[\"cat\",\"ox\"]}},\"required\":[\"k\"]}]},"
         "\"t\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"integer\"},{\"type\":\"null\"}]},\"u\":{\"anyOf\":[{\"type\":\"string\",\"format\":\"uri\"},{\"type\":\"string\"}]}},"
         "\"$defs\":{\"D\":{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"dog\"},\"b\":{\"type\":\"boolean\"}},\"required\":[\"k\"]}}}}]",
         DECLARED("f", "", ",parameters:{properties:{p:{nullable:true,properties:{b:{" TYPE("BOOLEAN") "},k:{enum:[<|\"|>cat<|\"|>,<|\"|>dog<|\"|>,<|\"|>ox<|\"|>]," TYPE("STRING")
                  "},l:{" TYPE("INTEGER") "}},required:[<|\"|>k<|\"|>]," TYPE("OBJECT") "},t:{nullable:true," TYPE("['STRING', 'INTEGER']") "},u:{" TYPE("STRING") "}},")},
        /* Alternatives that differ in one property; descriptions, null and lists of types in them; const. */
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"p\":{\"properties\":{\"c\":{\"type\":\"string\"}},\"required\":[\"c\"],\"oneOf\":[{\"description\":\"one\",\"properties\":{\"v\":{\"type\":\"string\",\"description\":\"text\"},\"l\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}}},\"required\":[\"v\"]},{\"description\":\"two\",\"properties\":{\"v\":{\"type\":\"integer\",\"description\":\"number\"},\"l\":{\"type\":\"array\",\"items\":{\"type\":\"integer\"}}},\"required\":[\"v\"]}]}}}}]",
         DECLARED("f", "", ",parameters:{properties:{p:{description:<|\"|>one / two<|\"|>,properties:{c:{" TYPE("STRING") "},l:{items:{type:[<|\"|>STRING<|\"|>,<|\"|>INTEGER<|\"|>]}," TYPE("ARRAY") "},v:{description:<|\"|>text / number<|\"|>," TYPE("['STRING', 'INTEGER']") "}},required:[<|\"|>v<|\"|>,<|\"|>c<|\"|>]," TYPE("OBJECT") "}},")},
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"c\":{\"const\":\"x\"},\"e\":{\"enum\":[\"x\",null]},\"s\":{\"anyOf\":[{\"const\":\"x\"},{\"const\":\"y\"},{\"type\":\"null\"}]},\"t\":{\"anyOf\":[{\"type\":[\"string\",\"null\"]},{\"type\":\"integer\"}]}}}}]",
         DECLARED("f", "", ",parameters:{properties:{c:{enum:[<|\"|>x<|\"|>]," TYPE("STRING") "},e:{enum:[<|\"|>x<|\"|>],nullable:true," TYPE("STRING") "},s:{enum:[<|\"|>x<|\"|>,<|\"|>y<|\"|>],nullable:true," TYPE("STRING") "},t:{nullable:true," TYPE("['STRING', 'INTEGER']") "}},")},
        /* Properties beside a $ref, and beside an allOf of one schema. */
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"properties\":{\"b\":{\"type\":\"string\"}},\"required\":[\"b\"],\"allOf\":[{\"$ref\":\"#/$defs/B\"}]},\"r\":{\"$ref\":\"#/$defs/B\",\"properties\":{\"b\":{\"type\":\"string\"}},\"required\":[\"b\",\"c\"]}},\"$defs\":{\"B\":{\"type\":\"object\",\"properties\":{\"b\":{\"description\":\"what\"},\"c\":{\"type\":\"string\"}},\"required\":[\"c\"]}}}}]",
         DECLARED("f", "", ",parameters:{properties:{a:{properties:{b:{description:<|\"|>what<|\"|>," TYPE("STRING") "},c:{" TYPE("STRING") "}},required:[<|\"|>b<|\"|>,<|\"|>c<|\"|>]," TYPE("OBJECT") "},r:{properties:{b:{description:<|\"|>what<|\"|>," TYPE("STRING") "},c:{" TYPE("STRING") "}},required:[<|\"|>b<|\"|>,<|\"|>c<|\"|>]," TYPE("OBJECT") "}},")},
        /* What is no choice with null stays as the template has it. */
        {"[{\"name\":\"f\",\"parameters\":{\"properties\":{\"x\":{\"anyOf\":[{\"type\":\"string\"},{\"minimum\":1}]},\"y\":{\"$ref\":\"#/nowhere\"}}}}]",
         DECLARED("f", "", ",parameters:{properties:{x:{" TYPE("") "},y:{" TYPE("") "}},")},
    };
    cJSON *messages = parse("[{\"role\":\"user\",\"content\":\"Hi\"}]");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        cJSON *given = parse(cases[i][0]), *tools = tools_read(given, &err);
        assert_string_equal(err.text, "");
        Prompt p = render_as(messages, tools, (ChatOptions){0});
        Buf expected = {0};
        buf_printf(&expected, "<bos><|turn>system\n%s<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>", cases[i][1]);
        assert_bytes(&p.text, expected.data);
        buf_free(&expected);
        prompt_free(&p);
        cJSON_Delete(tools);
        cJSON_Delete(given);
    }
    cJSON_Delete(messages);
}

static void test_bad_tools(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{}", "tools: must be a list"}, {"5", "tools: must be a list"}, {"{\"tools\":{}}", "tools: must be a list"},
        {"[1]", "tools[0].function: must be an object"}, {"[{}]", "tools[0].function: must be an object"},
        {"[{\"type\":\"web_search\"}]", "tools[0].type: must be function"},
        {"[{\"type\":\"custom\",\"name\":\"f\"}]", "tools[0].type: must be function"},
        {"[{\"name\":\"f\"},{\"type\":1,\"name\":\"f\"}]", "tools[1].type: must be function"},
        {"[{\"function\":{\"name\":\"a b\"}}]", "tools[0].function.name: must be a name"},
        {"[{\"function\":{\"name\":\"\"}}]", "tools[0].function.name: must be a name"},
        {"[{\"name\":\"f{\"}]", "tools[0].function.name: must be a name"},
        {"[{\"name\":\"f\"},{\"function\":{\"name\":\"f\"}}]", "tools[1].function.name: f is there twice"},
        {"[{\"name\":\"f\",\"parameters\":[]}]", "tools[0].function.parameters: must be an object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        cJSON *given = parse(cases[i][0]);
        assert_null(tools_read(given, &err));
        assert_string_equal(err.text, cases[i][1]);
        cJSON_Delete(given);
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
        {"[{\"role\":\"system\",\"content\":[{\"type\":\"image\"}]}]",
         "messages[0].content[0].type: must be text in a system message"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"thinking\",\"thinking\":\"x\"}]}]",
         "messages[0].content[0].type: only the assistant has thoughts"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]},{\"role\":\"tool\",\"content\":\"x\"},"
         "{\"role\":\"tool\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"type\":\"audio\"}]}]",
         "messages[2].content[1].type: audio parts are not supported"},
        {"[{\"role\":\"user\",\"content\":7}]", "messages[0].content: must be a string or a list of parts"},
        {"[{\"role\":\"user\",\"content\":true}]", "messages[0].content: must be a string or a list of parts"},
        {"[{\"role\":\"user\"},{\"role\":\"user\",\"content\":{\"type\":\"text\",\"text\":\"x\"}}]",
         "messages[1].content: must be a string or a list of parts"},
        {"[{\"role\":\"system\",\"content\":7}]", "messages[0].content: must be a string or a list of parts"},
        {"[{\"role\":\"user\",\"content\":[\"x\"]}]", "messages[0].content[0]: must be an object"},
        {"[{\"role\":\"user\",\"content\":[{\"text\":\"x\"}]}]", "messages[0].content[0].type: must be a string"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":1}]}]", "messages[0].content[0].type: must be a string"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image\"},{\"type\":\"Text\",\"text\":\"x\"}]}]",
         "messages[0].content[1].type: must be text, image_url, image or video_url"},
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
            assert_int_equal(chat_render(tokenizer, messages, NULL, (ChatOptions){.thinking = thinking}, &p, &err), -1);
            assert_string_equal(err.text, cases[i].error);
            prompt_free(&p);
            cJSON_Delete(messages);
        }
    Prompt p = {0};
    assert_int_equal(chat_render(tokenizer, NULL, NULL, (ChatOptions){0}, &p, NULL), -1);
    prompt_free(&p);
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
            assert_int_equal(chat_render(t, messages, NULL, (ChatOptions){.thinking = thinking}, &p, &err), -bad);
            assert_string_equal(err.text, expected);
            prompt_free(&p);
        }
        tokenizer_free(t);
    }
    cJSON_Delete(messages);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_cases),
        cmocka_unit_test(test_reference_cases),
        cmocka_unit_test(test_injection),
        cmocka_unit_test(test_beside_the_template),
        cmocka_unit_test(test_arguments_in_history),
        cmocka_unit_test(test_part_types),
        cmocka_unit_test(test_continue_final),
        cmocka_unit_test(test_declarations),
        cmocka_unit_test(test_bad_tools),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_missing_control),
    };
    return cmocka_run_group_tests_name("chat", tests, open_tokenizer, close_tokenizer);
}
