/* test_answer.c - answers taken apart into content, thought and calls; calls mended; calls there and back. */
#include "grammar.h"

#include "../answer.h"

static void assert_utf8(const Buf *b) {
    for (size_t i = 0; i < b->len;) {
        int n = utf8_char(b->data + i, b->len - i);
        assert_true(n > 0);
        i += n;
    }
}

static void check_stream(const Ids *ids, AnswerStart start, const char *content, const char *thought, const char *calls) {
    Answer s;
    Buf c = {0}, t = {0}, all = {0};
    answer_open(&s, tokenizer, start);
    for (int i = 0; i < ids->n; i++) {
        answer_feed(&s, ids->id[i], &c, &t);
        assert_utf8(&c);
        assert_utf8(&t);
    }
    answer_end(&s, &c, &t);
    assert_bytes(&c, content);
    assert_bytes(&t, thought);
    for (int i = 0; i < s.n_calls; i++) buf_printf(&all, "%s%s ", s.calls[i].name, s.calls[i].arguments);
    const char *warnings = s.warnings.len ? s.warnings.data : "";
    if (strstr(warnings, "was mended: ")) buf_puts(&all, "~");
    if (strstr(warnings, " as text")) buf_puts(&all, "!");
    if (strstr(warnings, "there is no answer")) buf_puts(&all, "?");
    if (strstr(warnings, "may be a thought")) buf_puts(&all, "^");
    assert_int_equal(s.warnings.len > 0, strcspn(all.data ? all.data : "", "~!?^") < all.len);
    assert_bytes(&all, calls);
    buf_free(&all);
    answer_free(&s);
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
static void check_answer_as(const char *answer, AnswerStart start, const char *content, const char *thought, const char *calls) {
    size_t n = strlen(answer);
    for (size_t k = 0; k <= n; k++) {
        Ids front = {0}, back = {0};
        if (encode_bytes(answer, k, &front)) {
            tokenizer_encode(tokenizer, answer + k, n - k, 1, &front);
            check_stream(&front, start, content, thought, calls);
            tokenizer_encode(tokenizer, answer, k, 1, &back);
            encode_bytes(answer + k, n - k, &back);
            check_stream(&back, start, content, thought, calls);
        }
        ids_free(&front);
        ids_free(&back);
    }
}

static void check_answer(const char *answer, int thinking, const char *content, const char *thought, const char *calls) {
    check_answer_as(answer, (AnswerStart){.thinking = thinking}, content, thought, calls);
}

#define THOUGHT "<|channel>thought\nLet me see.\n<channel|>"
#define EMPTY "<|channel>thought\n<channel|>"

static void test_answers(void **state) {
    (void)state;
    enum { OFF = 1, ON = 2, BOTH = 3, CUT = 4 /* there is no answer */, STRAY = 8 /* the end of a thought in an answer */ };
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
        {BOTH | STRAY, "Hel<channel|>lo<channel|><channel|>", "Hello", ""},
        {OFF | STRAY, "<|channel>I think so.<channel|>Hello", "I think so.Hello", ""},
        {BOTH | CUT, THOUGHT, "", "Let me see."},
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
        {BOTH | CUT, "<|channel>thought\nLet me", "", "Let me"},
        {BOTH | CUT, "<|channel>thought\nLet me\n", "", "Let me\n"},
        {BOTH | CUT, "<|channel>thought\nLet me\n\xe2\x82", "", "Let me\n\xef\xbf\xbd"},
        {BOTH | CUT, "<|channel>thought\n", "", ""},
        {BOTH | CUT, "<|channel>thought", "", ""},
        /* A thought without its opening token. */
        {BOTH, "thought\n<channel|>Hello", "Hello", ""},
        {BOTH, "thought<channel|>Hello", "Hello", ""},
        {BOTH, "thought\n" THOUGHT "Hello", "Hello", "Let me see."},
        {ON, "thought\nLet me see.\n<channel|>Hello", "Hello", "Let me see."},
        {OFF | STRAY, "thought\nis free", "thought\nis free", ""},
        {BOTH, "thought\nLet me see.\n<channel|>Hello", "Hello", "Let me see."},
        {BOTH, "thought\nLet me see.\n" THOUGHT "Hello", "Hello", "Let me see.\nLet me see."},
        {OFF | STRAY, "thought\nthought\n", "thought\nthought\n", ""},
        {BOTH, "\n thought\r\nHm.\n<channel|>Hello", "Hello", "Hm."},
        {BOTH, "thought\nOne.\n<channel|>thought\nTwo.\n<channel|>Hello", "Hello", "One.\nTwo."},
        {BOTH, "<|channel>thought Hm.<channel|>Hello", "Hello", "Hm."},
        {BOTH, "<|channel>thought\r\nHm.<channel|>Hello", "Hello", "Hm."},
        {ON, "thought\nthought\n<channel|>Hello", "Hello", "thought"},
        /* The header of the model's turn. */
        {BOTH, "<|turn>model\nHello", "Hello", ""},
        {BOTH, "<|turn>model\n" THOUGHT "Hello", "Hello", "Let me see."},
        {BOTH, THOUGHT "<|turn>model\nHello", "Hello", "Let me see."},
        {BOTH, "<|turn>models", "models", ""},
        {BOTH, "<|turn>mod", "", ""},
        {BOTH, "<|turn>model\nmodel\n", "model\n", ""},
        {OFF | STRAY, "thought\n", "thought\n", ""},
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
                check_answer(cases[i].answer, thinking, cases[i].content, cases[i].thought,
                             cases[i].thinking & CUT ? "?" : cases[i].thinking & STRAY ? "^" : "");
}

/* calls: name, arguments and a blank for each call; behind them `~` when one was mended, `!` when one could not be
 * read, `?` when the thought did not end. */
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
        /* What a model also writes.  A `~` says that a call was mended. */
        {CALL(" call:f { a : 1 , b : [ 1 , 2 ] } "), "", "", "f{\"a\":1,\"b\":[1,2]} "},
        {CALL("f{a:None}"), "", "", "f{\"a\":null} ~"},
        {CALL("call:f{" STR("a b") ":1}"), "", "", "f{\"a b\":1} ~"},
        {CALL("call:f{\"a\":\"x\\n\\u00e9\"}"), "", "", "f{\"a\":\"x\\n\xc3\xa9\"} ~"},
        {CALL("call:mcp.x-y_z/1{}"), "", "", "mcp.x-y_z/1{} "},
        {CALL("call:f{a:[-0,1.0,1e400,12345678901234567890]}"), "", "", "f{\"a\":[-0,1.0,1e400,12345678901234567890]} "},
        /* Marks that nobody asked for. */
        {"<|channel>" THOUGHT CALL("call:f{}"), "", "Let me see.", "f{} "},
        {EMPTY "I will<channel|>" CALL("call:f{}"), "I will", "", "f{} "},
        {"<|channel>thought\nLet me see.\n" CALL("call:f{}"), "", "Let me see.", "f{} "},
        {"<|channel>" CALL("call:f{}") "<channel|>", "", "", "f{} "},
        {"<|tool_call>call:f{a:<|channel>1<channel|>}<tool_call|>", "", "", "f{\"a\":1} "},
        {"<|tool_call>call:f{a:<|channel>thought\n<channel|>1}<tool_call|>", "", "", "f{\"a\":1} ~"},
        {"<|tool_call>call:f{<|channel>thought\nOne, I think.\n<channel|>a:1}<tool_call|>", "", "One, I think.", "f{\"a\":1} ~"},
        {"<|tool_call>call:f{a:1}<|channel>thought\nWas that right?<tool_call|>", "", "Was that right?", "f{\"a\":1} ~"},
        {"<|turn>model\n" CALL("call:f{}"), "", "", "f{} "},
        {"<tool_call|>" CALL("call:f{}") "<tool_call|>", "", "", "f{} "},
        {CALL("call:f{}") THOUGHT CALL("call:g{}"), "", "Let me see.", "f{} g{} "},
        /* The end mark is missing. */
        {"<|tool_call>call:f{a:1}", "", "", "f{\"a\":1} ~"},
        {"<|tool_call>call:f{a:1}<|tool_response>", "", "", "f{\"a\":1} ~"},
        {"<|tool_call>call:f{a:1}" CALL("call:g{}"), "", "", "f{\"a\":1} g{} ~"},
        /* Those that cannot be read are text. */
        {CALL(""), "", "", "!"},
        {CALL("f"), "f", "", "!"},
        {CALL("call:{}"), "call:{}", "", "!"},
        {CALL("call:f g{}"), "call:f g{}", "", "!"},
        {CALL("call:" STR("f") "{}"), "call:\"f\"{}", "", "!"},
        {CALL("call:f{a:" STR("x") "} y"), "call:f{a:\"x\"} y", "", "!"},
        {CALL("call:f{a}"), "call:f{a}", "", "!"},
        {CALL("call:f{a:}"), "call:f{a:}", "", "!"},
        {CALL("call:f{:1}"), "call:f{:1}", "", "!"},
        {CALL("call:f{a:1 b:2}"), "call:f{a:1 b:2}", "", "!"},
        {CALL("call:f{a:007}"), "call:f{a:007}", "", "!"},
        {CALL("call:f{a:1.}"), "call:f{a:1.}", "", "!"},
        {CALL("call:f{a:\"\\u0000\"}"), "call:f{a:\"\\u0000\"}", "", "!"},
        {CALL("call:f{a:-}"), "call:f{a:-}", "", "!"},
        {CALL("call:f{a:1e}"), "call:f{a:1e}", "", "!"},
        {CALL("call:f{a:" DIGITS63 "}"), "", "", "f{\"a\":" DIGITS63 "} "},      /* what json.c can read back, and what not */
        {CALL("call:f{a:" DIGITS63 "4}"), "call:f{a:" DIGITS63 "4}", "", "!"},
        {CALL("call:f{a:\"x}"), "call:f{a:\"x}", "", "!"},
        {CALL("call:f:\nBEGIN_ARG:\nls\nEND_ARG"), "call:f:\nBEGIN_ARG:\nls\nEND_ARG", "", "!"},
        {CALL("call:f:\nBEGIN_ARG:\n" EMPTY "ls\nEND_ARG\n"), "call:f:\nBEGIN_ARG:\nls\nEND_ARG\n", "", "!"},
        {CALL("call:f:\nBEGIN_ARG:\n<|channel>final\nls\nEND_ARG\n"), "call:f:\nBEGIN_ARG:\nls\nEND_ARG\n", "", "!"},
        {"call:f{}", "call:f{}", "", "!"},                                        /* no tools, so no tool of that name */
        {THOUGHT "call:f{}", "call:f{}", "Let me see.", "!"},
        {"<|tool_call>call:get_weather{city:<|\"|>Os", "call:get_weather{city:\"Os", "", "!"},
        {"Hm. <|tool_call>call:f{a:" STR("x") ",", "Hm. call:f{a:\"x\",", "", "!"},
        {"<|tool_call>call:f{a:" CALL("call:g{}") "Hello", "call:f{a:Hello", "", "g{} !"},
        {CALL("call:f{a:}") CALL("call:g{}"), "call:f{a:}", "", "g{} !"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int thinking = 0; thinking <= 1; thinking++)
            check_answer(cases[i].answer, thinking, cases[i].content, cases[i].thought, cases[i].calls);

    char deep[1000] = "<|tool_call>call:f{a:";      /* brackets without end take no stack without end */
    memset(deep + strlen(deep), '[', 900);
    check_answer(deep, 0, deep + strlen("<|tool_call>"), "", "!");
}

/* Calls that were written in another way, with the tools of the request and without them. */
static void test_mends(void **state) {
    (void)state;
    static const char tools_text[] =
        "[{\"name\":\"bash\",\"parameters\":{\"type\":\"object\",\"properties\":{\"command\":{\"type\":\"string\"},\"n\":{\"type\":\"integer\"},"
        "\"unit\":{\"$ref\":\"#/$defs/U\"},\"ok\":{\"type\":[\"boolean\",\"null\"]},\"zip\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]},"
        "\"list\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},\"o\":{\"type\":\"object\",\"properties\":{\"s\":{\"type\":\"string\"}}},"
        "\"any\":{},\"a=b\":{},\"join\":{\"properties\":{\"p\":{\"type\":\"string\"}},\"allOf\":[{\"properties\":{\"q\":{\"type\":\"integer\"}}}]},\"all\":{\"allOf\":[{\"$ref\":\"#/$defs/S\"}]},\"list7\":{\"items\":[{\"type\":\"string\"},{\"type\":\"integer\"}]}},\"$defs\":{\"S\":{\"type\":\"string\"},\"U\":{\"enum\":[\"celsius\",\"kelvin\",\"5\"]}}}},{\"name\":\"bash_x\"},{\"name\":\"g:h.i-j/k\"}]";
    enum { NO_TOOLS = 1, TOOLS = 2, BOTH = 3 };
    static const struct { int with; const char *answer, *content, *calls; } cases[] = {
        /* Round brackets. */
        {BOTH, CALL("call:bash(command:" STR("ls -la") ")"), "", "bash{\"command\":\"ls -la\"} ~"},
        {BOTH, CALL("call:bash()"), "", "bash{} ~"},
        {BOTH, CALL("call:bash({\"command\": \"ls\"})"), "", "bash{\"command\":\"ls\"} ~"},
        {BOTH, CALL("call:bash(n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:bash{n:1)"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:bash(n=1, command='ls')"), "", "bash{\"n\":1,\"command\":\"ls\"} ~"},
        {BOTH, CALL("call:bash(any:f(x))"), "call:bash(any:f(x))", "!"},
        {BOTH, CALL("call:bash(ls)"), "call:bash(ls)", "!"},
        {BOTH, CALL("call:bash(n:(1))"), "call:bash(n:(1))", "!"},
        {BOTH, CALL("call:bash{any:f(x) + 1}"), "", "bash{\"any\":\"f(x) + 1\"} ~"},
        /* Equals signs. */
        {BOTH, CALL("call:bash{command=" STR("a=b") "}"), "", "bash{\"command\":\"a=b\"} ~"},
        {BOTH, CALL("call:bash{command=\"a:b\",n=2}"), "", "bash{\"command\":\"a:b\",\"n\":2} ~"},
        {NO_TOOLS, CALL("call:bash{a=b:1}"), "call:bash{a=b:1}", "!"},
        {TOOLS, CALL("call:bash{a=b:1}"), "", "bash{\"a=b\":1} "},
        /* Colons too many. */
        {BOTH, CALL(":bash{n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call::bash{n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:bash:{n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:g:h.i-j/k{n:1}"), "", "g:h.i-j/k{\"n\":1} "},
        {BOTH, CALL("::{n:1}"), "::{n:1}", "!"},
        {BOTH, CALL("call:call:bash{n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("Call:bash{n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call=bash{n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:bash={n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call: bash{n:1}"), "", "bash{\"n\":1} ~"},
        {TOOLS, CALL("call:default_api.bash{n:1}"), "", "bash{\"n\":1} ~"},
        {TOOLS, CALL("call:other_api.bash{n:1}"), "", "other_api.bash{\"n\":1} "},
        {BOTH, CALL("{\"name\": \"bash\", \"arguments\": {\"n\": 1.50}}"), "", "bash{\"n\":1.50} ~"},
        {BOTH, CALL("[{\"type\": \"function\", \"function\": {\"name\": \"bash\", \"arguments\": \"{\\\"n\\\": 1}\"}}]"), "", "bash{\"n\":1} ~"},
        {TOOLS, CALL("call:" STR("bash") "{n:1}"), "", "bash{\"n\":1} ~"},
        {TOOLS, CALL("call:Bash{n:1}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("{\"name\": \"bash\", \"n\": 1}"), "{\"name\": \"bash\", \"n\": 1}", "!"},
        /* Two calls, the tokens between them missing. */
        {BOTH, CALL("call:bash{n:1}call:bash{n:2}"), "", "bash{\"n\":1} bash{\"n\":2} ~"},
        {BOTH, CALL("call:bash{n:1}; call:bash{n:2}"), "", "bash{\"n\":1} bash{\"n\":2} ~"},
        {TOOLS, CALL("call:bash{n:1}, call:bash{n:x}"), " call:bash{n:x}", "bash{\"n\":1} ~!"},
        /* Quotes of other kinds. */
        {BOTH, CALL("call:bash{command:'it\\'s'}"), "", "bash{\"command\":\"it's\"} ~"},
        {BOTH, CALL("call:bash{command:'a\\\\b'}"), "call:bash{command:'a\\\\b'}", "!"},
        {BOTH, CALL("call:bash{command:'c:\\temp\\new'}"), "call:bash{command:'c:\\temp\\new'}", "!"},
        {BOTH, CALL("call:bash{command:\"a\nb\"}"), "", "bash{\"command\":\"a\\nb\"} ~"},
        {BOTH, CALL("call:bash{command:\"\\d\\\\\",any:'\\.py'}"), "", "bash{\"command\":\"\\\\d\\\\\",\"any\":\"\\\\.py\"} ~"},
        {BOTH, CALL("call:bash{command:'ls'" "<|\"|>" ",n:1}"), "", "bash{\"command\":\"ls\",\"n\":1} ~"},
        {BOTH, CALL("call:bash{command:\"ls" "<|\"|>" ",n:1}"), "", "bash{\"command\":\"ls\",\"n\":1} ~"},
        {BOTH, CALL("call:bash{command:\"ls\" n:5}"), "", "bash{\"command\":\"ls\",\"n\":5} ~"},
        {BOTH, CALL("call:bash{any:'a' n:5}"), "", "bash{\"any\":\"a\",\"n\":5} ~"},
        {BOTH, CALL("call:bash{any:r'a'}"), "call:bash{any:r'a'}", "!"},
        {BOTH, CALL("call:bash{any:\xc2\xabls\xc2\xbb}"), "call:bash{any:\xc2\xabls\xc2\xbb}", "!"},
        {BOTH, CALL("call:bash{command:'c:\\Users'}"), "call:bash{command:'c:\\Users'}", "!"},
        {BOTH, CALL("call:bash{command:'it's'}"), "call:bash{command:'it's'}", "!"},
        {BOTH, CALL("call:bash{command:'ls}"), "call:bash{command:'ls}", "!"},
        {BOTH, CALL("call:bash{command:\"say \"hi\"\"}"), "call:bash{command:\"say \"hi\"\"}", "!"},
        {BOTH, CALL("call:bash{command:`ls`}"), "", "bash{\"command\":\"ls\"} ~"},
        {BOTH, CALL("call:bash{command:<escape>ls<escape>,any:<|\">x<|\">}"), "", "bash{\"command\":\"ls\",\"any\":\"x\"} ~"},
        {BOTH, CALL("call:bash{command:\xe2\x80\x9cls\xe2\x80\x9d,any:\xe2\x80\x98x\xe2\x80\x99}"), "", "bash{\"command\":\"ls\",\"any\":\"x\"} ~"},
        {BOTH, CALL("call:bash{list:['a','b, c'],'n':1}"), "", "bash{\"list\":[\"a\",\"b, c\"],\"n\":1} ~"},
        {BOTH, CALL("call:bash{command: 'Dear Ann, first: hello {name}'}"), "", "bash{\"command\":\"Dear Ann, first: hello {name}\"} ~"},
        /* Words without quotes. */
        {BOTH, CALL("call:bash{command:ls -la,n:1}"), "", "bash{\"command\":\"ls -la\",\"n\":1} ~"},
        {BOTH, CALL("call:bash{command:Paris, France,n:1}"), "", "bash{\"command\":\"Paris, France\",\"n\":1} ~"},
        {BOTH, CALL("call:bash{command: at 12:30 }"), "", "bash{\"command\":\"at 12:30\"} ~"},
        {BOTH, CALL("call:bash{any:2024-01-31}"), "", "bash{\"any\":\"2024-01-31\"} ~"},
        {BOTH, CALL("call:bash{any:1.2.3}"), "", "bash{\"any\":\"1.2.3\"} ~"},
        {BOTH, CALL("call:bash{unit:celsius,list:[x, y z]}"), "", "bash{\"unit\":\"celsius\",\"list\":[\"x\",\"y z\"]} ~"},
        {BOTH, CALL("call:bash{o:{s:hello world}}"), "", "bash{\"o\":{\"s\":\"hello world\"}} ~"},
        {TOOLS, CALL("call:bash{n:three}"), "call:bash{n:three}", "!"},
        {NO_TOOLS, CALL("call:bash{n:three}"), "", "bash{\"n\":\"three\"} ~"},
        {NO_TOOLS, CALL("call:bash{command:see a, b:c}"), "", "bash{\"command\":\"see a\",\"b\":\"c\"} ~"},
        {TOOLS, CALL("call:bash{command:see a, b:c}"), "call:bash{command:see a, b:c}", "!"},     /* b is no parameter */
        {BOTH, CALL("call:bash{command:say " STR("x") "}"), "call:bash{command:say \"x\"}", "!"},
        {BOTH, CALL("call:bash{command:a {b} c}"), "call:bash{command:a {b} c}", "!"},
        {BOTH, CALL("call:bash{any:1 n:2}"), "call:bash{any:1 n:2}", "!"},
        {BOTH, CALL("call:bash{command:it's so}"), "", "bash{\"command\":\"it's so\"} ~"},
        {BOTH, CALL("call:bash{command:echo 'a, n: b'}"), "call:bash{command:echo 'a, n: b'}", "!"},
        {BOTH, CALL("call:bash{command:say \"x, n: z\" now}"), "call:bash{command:say \"x, n: z\" now}", "!"},
        {BOTH, CALL("call:bash{list:[echo 'a, b', lead]}"), "call:bash{list:[echo 'a, b', lead]}", "!"},
        {TOOLS, CALL("call:bash{command:ls\nn:5}"), "call:bash{command:ls\nn:5}", "!"},
        {NO_TOOLS, CALL("call:bash{command:a where x=1, y=2}"), "", "bash{\"command\":\"a where x=1, y=2\"} ~"},
        {BOTH, CALL("call:bash{any => 'x'}"), "call:bash{any => 'x'}", "!"},
        {BOTH, CALL("call:bash{any::x}"), "call:bash{any::x}", "!"},
        {BOTH, CALL("call:bash{any:x,,}"), "call:bash{any:x,,}", "!"},
        {BOTH, CALL("call:bash{n:1,n:2}"), "call:bash{n:1,n:2}", "!"},
        {BOTH, CALL("call:bash{o:{s:" STR("x") "},any:{s:" STR("y") "}}"), "", "bash{\"o\":{\"s\":\"x\"},\"any\":{\"s\":\"y\"}} "},
        {TOOLS, CALL("call:bash{command:[ls]}"), "call:bash{command:[ls]}", "!"},
        {TOOLS, CALL("call:bash{all:5,list7:[1,1]}"), "", "bash{\"all\":\"5\",\"list7\":[\"1\",1]} ~"},
        {TOOLS, CALL("call:bash{command:None}"), "", "bash{\"command\":\"None\"} ~"},
        {BOTH, CALL("call:bash{any:}"), "call:bash{any:}", "!"},
        /* The schema decides between a literal and a string. */
        {BOTH, CALL("call:bash{any:5,n:5}"), "", "bash{\"any\":5,\"n\":5} "},
        {NO_TOOLS, CALL("call:bash{command:5,zip:12345}"), "", "bash{\"command\":5,\"zip\":12345} "},
        {TOOLS, CALL("call:bash{command:5,zip:12345}"), "", "bash{\"command\":\"5\",\"zip\":\"12345\"} ~"},
        {TOOLS, CALL("call:bash{zip:007,unit:5}"), "", "bash{\"zip\":\"007\",\"unit\":\"5\"} ~"},
        {NO_TOOLS, CALL("call:bash{zip:007}"), "call:bash{zip:007}", "!"},
        {TOOLS, CALL("call:bash{n:007}"), "call:bash{n:007}", "!"},
        {NO_TOOLS, CALL("call:bash{command:True,ok:False,any:None}"), "", "bash{\"command\":true,\"ok\":false,\"any\":null} ~"},
        {TOOLS, CALL("call:bash{command:True,ok:False,any:None}"), "", "bash{\"command\":\"True\",\"ok\":false,\"any\":null} ~"},
        {TOOLS, CALL("call:bash{zip:null,command:null,list:[true,1]}"), "", "bash{\"zip\":null,\"command\":null,\"list\":[\"true\",\"1\"]} ~"},
        /* Values in strings, where the schema has no string. */
        {TOOLS, CALL("call:bash{n:" STR("5") ",ok:" STR("true") ",list:" STR("[\"a\"]") ",o:" STR("{\"s\": \"x\"}") "}"), "",
         "bash{\"n\":5,\"ok\":true,\"list\":[\"a\"],\"o\":{\"s\":\"x\"}} ~"},
        {TOOLS, CALL("call:bash{n:" STR("five") ",ok:" STR("yes") ",any:" STR("5") ",zip:" STR("5") "}"), "",
         "bash{\"n\":\"five\",\"ok\":\"yes\",\"any\":\"5\",\"zip\":\"5\"} "},
        {NO_TOOLS, CALL("call:bash{n:" STR("5") "}"), "", "bash{\"n\":\"5\"} "},
        /* Commas. */
        {BOTH, CALL("call:bash{command:" STR("look") "n:90}"), "", "bash{\"command\":\"look\",\"n\":90} ~"},
        {BOTH, CALL("call:bash{command:" STR("look") " n:90}"), "", "bash{\"command\":\"look\",\"n\":90} ~"},
        {BOTH, CALL("call:bash{command:" STR("x,any:") "y:1}"), "call:bash{command:\"x,any:\"y:1}", "!"},    /* or is a quote missing? */
        {BOTH, CALL("call:bash{list:[" STR("a") STR("b") "]}"), "call:bash{list:[\"a\"\"b\"]}", "!"},
        {BOTH, CALL("call:bash{n:1,}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:bash{list:[" STR("a") ",],}"), "", "bash{\"list\":[\"a\"]} ~"},
        {TOOLS, CALL("call:bash{n:1 command:" STR("ls") "}"), "", "bash{\"n\":1,\"command\":\"ls\"} ~"},
        {NO_TOOLS, CALL("call:bash{n:1 command:" STR("ls") "}"), "call:bash{n:1 command:\"ls\"}", "!"},
        {BOTH, CALL("call:bash{n:1,,any:2}"), "call:bash{n:1,,any:2}", "!"},
        {BOTH, CALL("call:bash{,}"), "call:bash{,}", "!"},
        /* Closing brackets. */
        {BOTH, CALL("call:bash{o:{s:" STR("x") "}"), "", "bash{\"o\":{\"s\":\"x\"}} ~"},
        {BOTH, CALL("call:bash{list:[" STR("x") "}"), "", "bash{\"list\":[\"x\"]} ~"},
        {BOTH, CALL("call:bash{any:[{a:1]}"), "", "bash{\"any\":[{\"a\":1}]} ~"},
        {BOTH, CALL("call:bash{n:1"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:bash{n:1,"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:bash{"), "", "bash{} ~"},
        {BOTH, CALL("call:bash{n:"), "call:bash{n:", "!"},
        {BOTH, CALL("call:bash{command:" STR("ls") ",n"), "call:bash{command:\"ls\",n", "!"},
        {BOTH, "<|tool_call>call:bash{n:1", "call:bash{n:1", "!"},                 /* the model did not end it */
        {BOTH, "<|tool_call>call:bash{n:1<|tool_response>", "call:bash{n:1", "!"},
        {BOTH, CALL("call:bash{command:<|\"|>ls}"), "call:bash{command:\"ls}", "!"},
        {BOTH, CALL("call:bash{n:1}}"), "", "bash{\"n\":1} ~"},
        {BOTH, CALL("call:bash{{n:1}}"), "", "bash{\"n\":1} ~"},
        {TOOLS, CALL("call:bash{command:a}}"), "call:bash{command:a}}", "!"},
        {TOOLS, CALL("call:bash{o:{s:" STR("x") ",n:1}"), "call:bash{o:{s:\"x\",n:1}", "!"},          /* n belongs to bash */
        {TOOLS, CALL("call:bash"), "", "bash{} ~"},
        {NO_TOOLS, CALL("call:bash"), "call:bash", "!"},
        {BOTH, CALL("call:bash{list:[1}, n:2}"), "call:bash{list:[1}, n:2}", "!"},
        /* No opening quote, or quotes for the quotation marks of a string. */
        {BOTH, CALL("call:bash{command:in Oslo, Norway<|\"|>,n:5}"), "", "bash{\"command\":\"in Oslo, Norway\",\"n\":5} ~"},
        {BOTH, CALL("call:bash{command:echo \"{a}\"<|\"|>,o:{s:x y<|\"|>}}"), "", "bash{\"command\":\"echo \\\"{a}\\\"\",\"o\":{\"s\":\"x y\"}} ~"},
        {BOTH, CALL("call:bash{list:[a b<|\"|>," STR("c") "]}"), "", "bash{\"list\":[\"a b\",\"c\"]} ~"},
        {BOTH, CALL("call:bash{list:[a, b<|\"|>]}"), "call:bash{list:[a, b\"]}", "!"},
        {TOOLS, CALL("call:bash{command:ls n:5<|\"|>}"), "call:bash{command:ls n:5\"}", "!"},
        {TOOLS, CALL("call:bash{n:5<|\"|>}"), "call:bash{n:5\"}", "!"},
        {BOTH, CALL("call:bash{command:" STR("say " STR("hi, you") " now") ",n:1}"), "", "bash{\"command\":\"say \\\"hi, you\\\" now\",\"n\":1} ~"},
        {BOTH, CALL("call:bash{list:[" STR("say " STR("hi")) "," STR("b") "]}"), "", "bash{\"list\":[\"say \\\"hi\\\"\",\"b\"]} ~"},
        {BOTH, CALL("call:bash{any:" STR("d={" STR("a") ":[" STR("b") "]}") "}"), "", "bash{\"any\":\"d={\\\"a\\\":[\\\"b\\\"]}\"} ~"},
        {BOTH, CALL("call:bash{command:" STR("say " STR("hi") ",any:" STR("x")) "}"), "call:bash{command:\"say \"hi\",any:\"x\"\"}", "!"},
        {BOTH, CALL("call:bash{command:<|\"|>x,list:[" STR("a") "],any:[" STR("b") "]}"), "call:bash{command:\"x,list:[\"a\"],any:[\"b\"]}", "!"},
        {BOTH, CALL("call:bash{list:[" STR("say <|\"|>hi") "," STR("b") "]}"), "call:bash{list:[\"say \"hi\",\"b\"]}", "!"},
        /* Two readings. */
        {TOOLS, CALL("call:bash{command:ls, n=3}"), "call:bash{command:ls, n=3}", "!"},
        {TOOLS, CALL("call:bash{command:ls n=3}"), "call:bash{command:ls n=3}", "!"},
        {BOTH, CALL("call:bash{command:ls k=3}"), "", "bash{\"command\":\"ls k=3\"} ~"},
        {TOOLS, CALL("call:bash{list:[a,n:1}"), "call:bash{list:[a,n:1}", "!"},
        {TOOLS, CALL("call:bash{list:[a,n:1]}"), "", "bash{\"list\":[\"a\",\"n:1\"]} ~"},
        {TOOLS, CALL("call:bash{any:{x:1,n:1}"), "call:bash{any:{x:1,n:1}", "!"},
        {TOOLS, CALL("call:bash{any:{x:1,n:1}}"), "", "bash{\"any\":{\"x\":1,\"n\":1}} "},
        {TOOLS, CALL("call:bash{o:" STR("{\"s\":\"a\",\"s\":\"b\"}") "}"), "", "bash{\"o\":\"{\\\"s\\\":\\\"a\\\",\\\"s\\\":\\\"b\\\"}\"} "},
        {BOTH, CALL("{\"name\":\"bash\",\"arguments\":{\"n\":1},\"parameters\":{\"n\":2}}"), "{\"name\":\"bash\",\"arguments\":{\"n\":1},\"parameters\":{\"n\":2}}", "!"},
        {BOTH, CALL("call:bash{command:\"C:\\dir\\new\"}"), "call:bash{command:\"C:\\dir\\new\"}", "!"},
        {BOTH, CALL("call:bash{list:[" STR("a") " and " STR("b") "]}"), "call:bash{list:[\"a\" and \"b\"]}", "!"},
        {TOOLS, CALL("call:bash{join:{p:x q:3}}"), "call:bash{join:{p:x q:3}}", "!"},
        {TOOLS, CALL("call:bash{join:{p:x, q:3}}"), "", "bash{\"join\":{\"p\":\"x\",\"q\":3}} ~"},
        /* No opening token. */
        {TOOLS, "call:bash{n:1}", "", "bash{\"n\":1} ~"},
        {TOOLS, THOUGHT "\ncall:bash {n:1}<tool_call|>", "", "bash{\"n\":1} ~"},
        {TOOLS, "call:bash(n:1)<|tool_response>", "", "bash{\"n\":1} ~"},
        {TOOLS, "call:bash_x{}" CALL("call:bash{}"), "", "bash_x{} bash{} ~"},
        {TOOLS, CALL("call:bash{}") "call:bash_x{}<tool_call|>", "", "bash{} bash_x{} ~"},
        {BOTH, "call:other{}", "call:other{}", "!"},
        {BOTH, "call:bash", "call:bash", ""},
        {BOTH, "call: bash{}", "call: bash{}", ""},
        {BOTH, "Then call:bash{n:1}", "Then call:bash{n:1}", ""},
        {TOOLS, "I look.\ncall:bash{n:1}", "I look.\ncall:bash{n:1}", "!"},
        {TOOLS, "I look. call:bash{n:1}<tool_call|>", "I look. call:bash{n:1}", "!"},
        {TOOLS, "call:bash{n:1} is what I did", "call:bash{n:1} is what I did", "!"},
    };
    cJSON *given = parse(tools_text), *tools = tools_read(given, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int with = 0; with <= 1; with++) {
            if (!(cases[i].with >> with & 1)) continue;
            const char *thought = strncmp(cases[i].answer, THOUGHT, strlen(THOUGHT)) ? "" : "Let me see.";
            check_answer_as(cases[i].answer, (AnswerStart){.tools = with ? tools : NULL}, cases[i].content, thought, cases[i].calls);
        }
    cJSON_Delete(given);
    cJSON_Delete(tools);
}

/* The words of the warnings, one line for each mend. */
static void test_warnings(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {CALL("call:f(a=True,b:'x'"),
         "the call of f was mended: `=` was read as `:`\n"
         "the call of f was mended: quotes of another kind were read as <|\"|>\n"
         "the call of f was mended: True, False or None was read as true, false or null\n"
         "the call of f was mended: missing closing brackets were added\n"},
        {CALL("f(a:b,)"),
         "the call of f was mended: round brackets were read as braces\n"
         "the call of f was mended: a word without quotes was read as a string\n"
         "the call of f was mended: a comma at the end was dropped\n"
         "the call of f was mended: a missing `call:` was added\n"},
        {CALL("f") CALL("call:g{"), "a tool call could not be read and was left as text: no arguments\n"
         "the call of g was mended: missing closing brackets were added\n"},
        {"<|channel>thought\nHm", "the thought did not end: there is no answer\n"},
        {"thought\nHm", "the answer may be a thought: it begins with the header of one\n"},
        {"thoughts", ""},
        {"Hello<|channel>thought\nHm", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Answer s;
        Ids ids = {0};
        Buf content = {0}, thought = {0};
        tokenizer_encode(tokenizer, cases[i][0], strlen(cases[i][0]), 1, &ids);
        answer_open(&s, tokenizer, (AnswerStart){0});
        for (int k = 0; k < ids.n; k++) answer_feed(&s, ids.id[k], &content, &thought);
        answer_end(&s, &content, &thought);
        assert_bytes(&s.warnings, cases[i][1]);
        answer_free(&s);
        ids_free(&ids);
        buf_free(&content);
        buf_free(&thought);
    }
}

/* Prompts that end inside of a thought, or of the content. */
static void test_starts(void **state) {
    (void)state;
    static const struct { AnswerStart start; const char *answer, *content, *thought, *calls; } cases[] = {
        {{.thinking = 1, .in_thought = 1}, "Let me see.\n<channel|>Hello", "Hello", "Let me see.", ""},
        {{.thinking = 1, .in_thought = 1}, "\n<channel|>Hello", "Hello", "", ""},
        {{.thinking = 1, .in_thought = 1}, "<channel|>Hello", "Hello", "", ""},
        {{.thinking = 1, .in_thought = 1}, "Hm" CALL("call:f{}"), "", "Hm", "f{} "},
        {{.thinking = 1, .in_thought = 1}, "<|channel>thought\nHm\n<channel|>x", "x", "Hm", ""},
        {{.thinking = 1, .in_thought = 1}, "Hm", "", "Hm", "?"},
        {{.thinking = 1, .in_thought = 1}, "thought\nHm\n<channel|>Hello", "Hello", "Hm", ""},
        {{.thinking = 1, .in_thought = 1}, "thoughts\n<channel|>Hello", "Hello", "thoughts", ""},
        {{.thinking = 1, .in_thought = 1}, "tho", "", "tho", "?"},
        {{.thinking = 1}, "<|channel>thought\nHm<|turn>", "", "Hm", "?"},
        {{.in_content = 1}, "thought\nis free", "thought\nis free", "", ""},
        {{.in_content = 1}, "call:f{}", "call:f{}", "", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_answer_as(cases[i].answer, cases[i].start, cases[i].content, cases[i].thought, cases[i].calls);
}

/* Behind content or calls another turn ends the answer; in front of them it is a header. */
static void test_ends(void **state) {
    (void)state;
    static const char *const cases[] = {"Hello<|turn>", CALL("call:f{}") "<|turn>", "Hi<turn|>", "<|tool_response>", CALL("call:f{}") "<|tool_response>"};
    static const char *const go_on[] = {"<|turn>", THOUGHT "<|turn>", "<|tool_call>call:f{<|turn>", "x<|channel>"};
    for (size_t i = 0; i < 9; i++) {
        const char *text = i < 5 ? cases[i] : go_on[i - 5];
        Answer s;
        Ids ids = {0};
        Buf content = {0}, thought = {0};
        tokenizer_encode(tokenizer, text, strlen(text), 1, &ids);
        answer_open(&s, tokenizer, (AnswerStart){0});
        for (int k = 0; k < ids.n; k++) {
            assert_int_equal(answer_ends(&s, ids.id[k]), i < 5 && k == ids.n - 1);
            answer_feed(&s, ids.id[k], &content, &thought);
        }
        answer_free(&s);
        ids_free(&ids);
        buf_free(&content);
        buf_free(&thought);
    }
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
        Answer s;
        Ids ids = {0};
        Buf content = {0}, thought = {0};
        answer_open(&s, tokenizer, (AnswerStart){.thinking = 1});
        tokenizer_encode(tokenizer, cases[i].answer, strlen(cases[i].answer), 1, &ids);
        for (int k = 0; k < ids.n; k++) answer_feed(&s, ids.id[k], &content, &thought);
        assert_bytes(&content, cases[i].content);
        assert_bytes(&thought, cases[i].thought);
        answer_free(&s);
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

/* All pieces of a call, from every prefix of its text, are together what call_read makes of the whole. */
static void check_pieces(const int *ids, int n, const ToolCall *call) {
    Answer s;
    CallDelta delta = {0};
    Buf content = {0}, thought = {0}, name = {0}, arguments = {0};
    answer_open(&s, tokenizer, (AnswerStart){0});
    for (int i = 0; i < n; i++) {
        answer_feed(&s, ids[i], &content, &thought);
        const char *text = s.call.data ? s.call.data : "";
        if (s.part == ANSWER_CALL) call_delta(&delta, text, s.call.len, &name, &arguments);
    }
    assert_string_equal(name.data, call->name);
    assert_string_equal(arguments.data, call->arguments);
    answer_free(&s);
    buf_free(&name);
    buf_free(&arguments);
}

/* A message that the model could have written: a thought perhaps, and calls, or content. */
static cJSON *random_message(int thinking, int calls) {
    cJSON *message = calls ? call_message() : conversation("assistant", "It is so.")->child;
    if (thinking) cJSON_AddStringToObject(message, below(2) ? "reasoning" : "reasoning_content", below(3) ? "Let me see" : "One.\n\nTwo: \xc3\xa9");
    for (int n = 1 + below(3); calls && n > 0; n--) {
        cJSON *arguments = random_value(0);
        while (!cJSON_IsObject(arguments)) cJSON_Delete(arguments), arguments = random_value(0);
        add_call(message, n & 1 ? "f" : "get_weather", arguments);
    }
    return message;
}

/* What the model writes for the last message of a conversation, whose prompt without it is p: the ids that stand in the
 * rendered conversation behind p, up to what ends the answer. */
static Ids answer_ids(const Prompt *p, const Prompt *whole, const char *thought) {
    Ids ids = {0};
    int from = p->n_stable, end = tokenizer_control(tokenizer, "<channel|>");
    if (p->in_thought) {                /* the prompt holds the header already */
        for (from = p->ids.n - 1; p->ids.id[from] != tokenizer_control(tokenizer, "<|channel>");) from--;
        while (whole->ids.id[from] != end) from++;
    }
    if (p->in_thought) {
        tokenizer_encode(tokenizer, thought, strlen(thought), 0, &ids);
        tokenizer_encode(tokenizer, "\n", 1, 0, &ids);
    }
    for (; from < whole->ids.n; from++) ids_add(&ids, whole->ids.id[from]);
    return ids;
}

/* The answer taken apart, as the message that a client would send back. */
static cJSON *message_of(const Ids *ids, const Prompt *p, int thinking) {
    Answer s;
    Buf content = {0}, thought = {0};
    answer_open(&s, tokenizer, (AnswerStart){.thinking = thinking, .in_thought = p->in_thought});
    for (int i = 0; i < ids->n && !answer_ends(&s, ids->id[i]); i++) answer_feed(&s, ids->id[i], &content, &thought);
    answer_end(&s, &content, &thought);
    if (s.warnings.len) fail_msg("%s", s.warnings.data);
    cJSON *message = s.n_calls ? call_message() : cJSON_CreateObject();
    if (!s.n_calls) cJSON_AddStringToObject(message, "role", "assistant");
    if (content.len) cJSON_AddStringToObject(message, "content", content.data);
    if (thought.len) cJSON_AddStringToObject(message, "reasoning_content", thought.data);
    for (int i = 0; i < s.n_calls; i++) add_call(message, s.calls[i].name, cJSON_CreateString(s.calls[i].arguments));
    if (s.n_calls == 1) check_pieces(ids->id, ids->n, &s.calls[0]);
    answer_free(&s);
    buf_free(&content);
    buf_free(&thought);
    return message;
}

static cJSON *result_message(void) {
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", "tool");
    cJSON *content = random_value(3);
    while (cJSON_IsArray(content)) cJSON_Delete(content), content = random_value(3);       /* a list is one of parts */
    cJSON_AddItemToObject(message, "content", content);
    return message;
}

/* Conversations with calls, results, thoughts and answers: each answer, read from the prompt it was written behind, renders
 * again as it stood. */
static void test_there_and_back(void **state) {
    (void)state;
    for (int round = 0; round < 2000; round++) {
        int thinking = below(2), steps = 1 + below(4);
        ChatOptions options = {.thinking = thinking, .preserve_thinking = below(2)};
        cJSON *messages = conversation("user", "Hi");
        if (!below(3)) {                /* an earlier turn */
            cJSON_AddItemToArray(messages, random_message(thinking, 1));
            cJSON_AddItemToArray(messages, result_message());
            cJSON_AddItemToArray(messages, random_message(thinking, 0));
            cJSON_AddItemToArray(messages, conversation("user", "And now?")->child);
        }
        for (int step = 0; step < steps; step++) {
            int calls = step + 1 < steps || below(2), at = cJSON_GetArraySize(messages);
            Prompt p = render_as(messages, NULL, options);
            cJSON *message = random_message(thinking, calls);
            cJSON_AddItemToArray(messages, message);
            Prompt whole = render_as(messages, NULL, options);
            const char *thought = cJSON_GetStringValue(json_field(message, "reasoning"));
            if (!thought) thought = cJSON_GetStringValue(json_field(message, "reasoning_content"));
            Ids ids = answer_ids(&p, &whole, thought);
            cJSON_ReplaceItemInArray(messages, at, message_of(&ids, &p, thinking));
            Prompt again = render_as(messages, NULL, options);
            assert_bytes(&again.text, whole.text.data);
            assert_int_equal(again.ids.n, whole.ids.n);
            assert_memory_equal(again.ids.id, whole.ids.id, whole.ids.n * sizeof(int));
            prompt_free(&p);
            prompt_free(&whole);
            prompt_free(&again);
            ids_free(&ids);
            if (calls) cJSON_AddItemToArray(messages, result_message());
        }
        cJSON_Delete(messages);
    }
}

/* A model that writes a NUL: no request could bring it back, so it is no part of an answer. */
static void test_nul(void **state) {
    (void)state;
    static const char *const around[] = {"a<|tool_call>call:f{x:<|\"|>b", "c<|\"|>}<tool_call|>d"};
    Answer s;
    Buf content = {0}, thought = {0};
    Ids ids = {0};
    answer_open(&s, tokenizer, (AnswerStart){.thinking = 0});
    ids_add(&ids, byte_ids[0]);
    tokenizer_encode(tokenizer, around[0], strlen(around[0]), 1, &ids);
    ids_add(&ids, byte_ids[0]);
    tokenizer_encode(tokenizer, around[1], strlen(around[1]), 1, &ids);
    for (int i = 0; i < ids.n; i++) answer_feed(&s, ids.id[i], &content, &thought);
    answer_end(&s, &content, &thought);
    assert_bytes(&content, "\xef\xbf\xbd" "ad");
    assert_int_equal(s.n_calls, 1);
    assert_string_equal(s.calls[0].arguments, "{\"x\":\"b\xef\xbf\xbd" "c\"}");
    answer_free(&s);
    ids_free(&ids);
    buf_free(&content);
}

static void test_raw(void **state) {
    (void)state;
    static const char text[] = "thought\n<channel|><bos><|turn>user\nHi<turn|>\n<|channel>thought\nx\n<channel|>"
                               "\xf0\x9f\x99\x82<pad>";
    Answer s;
    Ids ids = {0};
    Buf content = {0}, thought = {0};
    assert_true(encode_bytes(text, strlen(text), &ids));
    answer_open(&s, tokenizer, (AnswerStart){.raw = 1});
    for (int i = 0; i < ids.n; i++) answer_feed(&s, ids.id[i], &content, &thought);
    answer_end(&s, &content, &thought);
    assert_bytes(&content, text);
    assert_int_equal(thought.len, 0);
    answer_free(&s);
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
        Answer s;
        Buf content = {0}, thought = {0};
        answer_open(&s, t, (AnswerStart){.thinking = 0});
        answer_feed(&s, id, &content, &thought);
        answer_end(&s, &content, &thought);
        assert_bytes(&content, cases[i].content);
        answer_free(&s);
        buf_free(&content);
        tokenizer_free(t);
    }
}

static void test_unknown_ids(void **state) {
    (void)state;
    Answer s;
    Buf content = {0}, thought = {0};
    answer_open(&s, tokenizer, (AnswerStart){.thinking = 0});
    answer_feed(&s, -1, &content, &thought);
    answer_feed(&s, tokenizer_n_vocab(tokenizer), &content, &thought);
    answer_feed(&s, INT32_MAX, &content, &thought);
    answer_end(&s, &content, &thought);
    assert_int_equal(content.len + thought.len, 0);
    answer_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_mends),
        cmocka_unit_test(test_warnings),
        cmocka_unit_test(test_starts),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_no_delay),
        cmocka_unit_test(test_other_controls),
        cmocka_unit_test(test_nul),
        cmocka_unit_test(test_raw),
        cmocka_unit_test(test_unknown_ids),
    };
    return cmocka_run_group_tests_name("answer", tests, open_tokenizer, close_tokenizer);
}
