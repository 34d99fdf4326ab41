/* test_schema.c - schemas as automata: what is accepted byte by byte, what is refused at the start, and masks that agree
 * with the automaton token by token.  (tests/test_schema.py lets models write under them.) */
#include "../schema.h"                  /* before cmocka.h, whose macro fail() would hide util.h's function */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../json.h"

static Tokenizer *tokenizer;
static Pieces *pieces;
static int n_vocab, end_id, byte_ids[256];

static int open_pieces(void **state) {
    (void)state;
    Error err;
    tokenizer = tokenizer_open("demo", &err);
    if (!tokenizer) return -1;
    n_vocab = tokenizer_n_vocab(tokenizer);
    end_id = tokenizer_control(tokenizer, "<turn|>");
    pieces = pieces_new(tokenizer, n_vocab, &end_id, 1);
    for (int id = 0; id < n_vocab; id++) {
        size_t n;
        const char *text = tokenizer_text(tokenizer, id, &n);
        if (n == 1 && !tokenizer_is_control(tokenizer, id)) byte_ids[(unsigned char)*text] = id;
    }
    return 0;
}

static int close_pieces(void **state) {
    (void)state;
    pieces_free(pieces);
    tokenizer_free(tokenizer);
    return 0;
}

static Schema *compile(const char *text, Error *err) {
    cJSON *json = json_value(text, strlen(text), err);
    if (!json) fail_msg("not JSON: %s", text);
    Schema *s = schema_new(pieces, json, err);
    cJSON_Delete(json);
    return s;
}

/* How many bytes of text are accepted; *end: may it end there? */
static int accepted(Schema *s, const char *text, int *end) {
    int state = schema_begin(s), n = 0;
    *end = 0;
    for (; text[n]; n++) {
        int next = schema_next(s, state, byte_ids[(unsigned char)text[n]]);
        if (next < 0) return n;
        state = next;
    }
    *end = schema_may_end(s, state);
    return n;
}

static void test_accepted(void **state) {
    (void)state;
    /* "yes" texts are complete, "no" texts are refused at their last byte or may not end there. */
    static const struct { const char *schema, *yes[12], *no[14]; } cases[] = {
        {"{\"type\":\"boolean\"}", {"true", "false"}, {"tru", "True", " ", "true ", "null"}},
        {"{\"type\":\"integer\"}", {"0", "-1", "123456789012345"}, {"-0", "01", "1.", "1e", "--", "1234567890123456", "+"}},
        {"{\"type\":\"number\"}", {"0", "-0.5", "1e5", "12.50E-03", "1.0e+9"}, {".", "1.", "1e", "00", "1e123", "-", "1.e"}},
        {"{\"type\":\"integer\",\"minimum\":-12,\"maximum\":105}", {"-12", "-9", "0", "9", "99", "100", "105"}, {"-13", "106", "11a", "200", "-2a"}},
        {"{\"type\":\"integer\",\"exclusiveMinimum\":7,\"exclusiveMaximum\":10.5}", {"8", "9", "10"}, {"7", "11", "0", "-"}},
        {"{\"type\":\"integer\",\"minimum\":0.5,\"maximum\":2.5}", {"1", "2"}, {"0", "3"}},
        {"{\"type\":\"number\",\"minimum\":1.25,\"exclusiveMaximum\":3}", {"1.25", "1.3", "2", "2.999999", "1.250001"},
         {"1", "1.2", "1.24", "3", "0", "1.249", "1e"}},
        {"{\"type\":\"number\",\"exclusiveMinimum\":-0.5,\"maximum\":0}", {"0", "-0.4", "-0.499999", "0.0"}, {"-0.5", "-1", "0.1", "-0.5000"}},
        {"{\"type\":\"string\"}", {"\"\"", "\"a\xc3\xa9\xf0\x9f\x99\x82\"", "\"\\n\\\"\\\\\\u00e9\\uABCD\\uD7ff\\u0001\""},
         {"\"\\x", "\"\n", "\"\\ud8", "\"\\u0000", "\"\xc3\xc3", "\"\xed\xa0", "\"\xff", "\"\xc0", "a", "\"\\u00g"}},
        {"{\"type\":\"string\",\"maxLength\":1}", {"\"\xed\x9f\xbf\"", "\"\xee\x80\x80\"", "\"\xf4\x8f\xbf\xbf\""},
         {"\"\xed\xa0", "\"\xf4\x90", "\"\xe0\x9f"}},
        {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}", {"\"ab\"", "\"\xc3\xa9\xe2\x82\xac\\n\"", "\"abc\""}, {"\"\"", "\"a\"", "\"abcd", "\"abc\\"}},
        {"{\"type\":\"string\",\"pattern\":\"^a+b?$\"}", {"\"a\"", "\"aaab\""}, {"\"\"", "\"b", "\"abb", "\"aba"}},
        {"{\"type\":\"string\",\"pattern\":\"x\"}", {"\"x\"", "\"axb\"", "\"xx\\n\""}, {"\"\"", "\"ab\""}},
        {"{\"pattern\":\"^[\\\"\\\\\\\\\\n]$\"}", {"\"\\\"\"", "\"\\\\\"", "\"\\n\""}, {"\"\\u", "\"n", "\"\""}},
        {"{\"pattern\":\"^[^a-y]{1,2}$\"}", {"\"z\"", "\"\xc3\xa9\xe2\x82\xac\""}, {"\"a", "\"zzz", "\"\""}},
        {"{\"pattern\":\"^(a|bc){2}$|^$\"}", {"\"\"", "\"aa\"", "\"bca\"", "\"bcbc\""}, {"\"a\"", "\"aaa", "\"b\""}},
        {"{\"pattern\":\"^(a*)*$\"}", {"\"\"", "\"aaa\""}, {"\"b"}},
        {"{\"pattern\":\"^\\\\x41\\\\u00e9\\\\t.$\"}", {"\"A\xc3\xa9\\t!\"", "\"A\xc3\xa9\\t\xe2\x80\xa7\""},
         {"\"a", "\"A\xc3\xa8", "\"A\xc3\xa9t", "\"A\xc3\xa9\\t\\n", "\"A\xc3\xa9\\t\xe2\x80\xa8", "\"A\xc3\xa9\\t\""}},
        {"{\"format\":\"date\"}", {"\"2024-02-28\"", "\"1999-12-01\""}, {"\"2024-13", "\"2024-00", "\"2024-02-29\"", "\"24-"}},
        {"{\"enum\":[\"a\",\"ab\",1,null,{\"x\":[1]}]}", {"\"a\"", "\"ab\"", "1", "null", "{\"x\":[1]}"}, {"\"b", "2", "{ ", "[", "12"}},
        {"{\"type\":\"string\",\"enum\":[\"a\",1]}", {"\"a\""}, {"1"}},
        {"{\"pattern\":\"(((){10000}){10000}){10000}\"}", {"\"x\"", "\"\""}, {"x"}},
        {"{\"pattern\":\"^a{2,4}$\"}", {"\"aa\"", "\"aaa\"", "\"aaaa\""}, {"\"a\"", "\"aaaaa"}},
        {"{\"pattern\":\"^(ab?){0,2}c$|d\"}", {"\"c\"", "\"abac\"", "\"aac\"", "\"xdx\"", "\"d\""}, {"\"aaac\"", "\"ab\""}},
        {"{\"pattern\":\"^$|^x|y$\"}", {"\"\"", "\"xa\"", "\"ay\"", "\"y\""}, {"\"ax\"", "\"a\""}},
        {"{\"pattern\":\"^[^\\\\d\303\251]$\"}", {"\"a\"", "\"~\""}, {"\"5", "\"\303\250", "\"\303\251"}},
        {"{\"pattern\":\"^\\\\S$\"}", {"\"!\"", "\"\\u0001\""}, {"\"\\u001c", "\" "}},
        {"{\"pattern\":\"^[^\\\\S]$\"}", {"\" \"", "\"\\t\""}, {"\"\\u001", "\"a"}},
        {"{\"type\":\"integer\",\"minimum\":9007199254740993,\"maximum\":9007199254740994}", {"9007199254740993", "9007199254740994"},
         {"9007199254740992", "9007199254740995", "8"}},
        {"{\"type\":\"integer\",\"exclusiveMinimum\":100000000000000000,\"exclusiveMaximum\":100000000000000002}", {"100000000000000001"},
         {"100000000000000000", "100000000000000002"}},
        {"{\"type\":\"number\",\"minimum\":1.5e-7,\"maximum\":2e-6}", {"0.00000015", "0.0000002", "0.00000199", "0.000002"},
         {"0", "1", "0.0000001", "0.00000014", "0.0000021", "0.00001"}},
        {"{\"exclusiveMinimum\":1e-7,\"exclusiveMaximum\":2e-7,\"type\":\"number\"}", {"0.00000011", "0.00000019"},
         {"0.0000001", "0.0000002", "0.000000111", "1"}},
        {"{\"type\":\"number\",\"minimum\":1e-15,\"maximum\":2e-15}", {"0.000000000000001", "0.000000000000002"}, {"0.000000000000003", "0.1"}},
        {"{\"type\":\"number\",\"exclusiveMinimum\":-0.50000001,\"exclusiveMaximum\":-0.5}", {"-0.500000001"}, {"-0.5", "-0.50000001", "0"}},
        {"{\"type\":\"number\",\"minimum\":1e16}", {"10000000000000000", "999999999999999999"}, {"9999999999999999", "1e", "10000000000000000."}},
        {"{\"type\":\"number\",\"exclusiveMaximum\":-1e16}", {"-10000000000000001"}, {"-10000000000000000", "1", "-9999999999999999"}},
        {"{\"enum\":[12345678901234567890,1.0,1e400,-0]}", {"12345678901234567890", "1.0", "1e400", "-0"}, {"12345678901234567891", "1", "-1"}},
        {"{\"const\":\"\xc3\xa9\\\"\"}", {"\"\xc3\xa9\\\"\""}, {"\"e"}},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},\"required\":[\"b\"]}",
         {"{\"b\":null}", "{\"a\":null,\"b\":null}", "{ \"b\": null }", "{\n  \"a\": null,\n  \"b\": null\n}"},
         {"{}", "{\"a\":null}", "{\"b\":null,", "{\"c", "{\"b\" ", "{  ", "{\n                 ", "{\"b\":  "}},
        {"{\"type\":\"object\"}", {"{}", "{\"x\":{\"y\":[1,true,\"\"]},\"z\":null}", "{\"\xc3\xa9\":1}"}, {"{\"a\":1,}", "{,", "[", "{\"\\"}},
        {"{\"type\":\"object\",\"properties\":{\"ab\":{\"type\":\"null\"},\"\xc3\xa9\":{\"const\":1}},\"additionalProperties\":{\"type\":\"integer\"}}",
         {"{}", "{\"ab\":null,\"a\":1,\"abc\":2,\"b\":3,\"\":4}", "{\"x\":1,\"y\":2}", "{\"\xc3\xa9\":1}"},
         {"{\"ab\":1", "{\"x\":1,\"ab\":", "{\"x\":\"", "{\"\xc3\xa9\":2"}},
        {"{\"type\":\"object\",\"properties\":{\"a\":true},\"additionalProperties\":false}", {"{}", "{\"a\":[]}"}, {"{\"b", "{\"a\":1,"}},
        {"{\"required\":[\"x\"]}", {"{\"x\":1}", "{\"x\":[],\"y\":2}"}, {"{}", "[", "{\"y\":1}"}},
        {"{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"minItems\":1,\"maxItems\":2}", {"[null]", "[null, null]", "[ null,\nnull ]"},
         {"[]", "[null,null,", "[null,]", "[1"}},
        {"{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"const\":3}}", {"[]", "[1]", "[1,2,3,3]"}, {"[2", "[1,3", "[1,2,2"}},
        {"{\"type\":\"array\",\"items\":false}", {"[]"}, {"[1"}},
        {"{\"anyOf\":[{\"type\":\"string\",\"maxLength\":1},{\"type\":\"string\",\"pattern\":\"^b+$\"}]}", {"\"a\"", "\"b\"", "\"bbb\""}, {"\"ab", "\"ba"}},
        {"{\"type\":[\"integer\",\"null\"],\"minimum\":5}", {"5", "null"}, {"4", "true", "\""}},
        {"{\"allOf\":[{\"properties\":{\"a\":{\"const\":1}}},{\"properties\":{\"b\":{\"const\":2}},\"required\":[\"b\"]}]}", {"{\"b\":2}", "{\"a\":1,\"b\":2}"},
         {"{}", "{\"a\":1}"}},
        {"{\"type\":\"object\",\"properties\":{\"k\":{\"const\":0}},\"anyOf\":[{\"required\":[\"k\"]},{\"properties\":{\"l\":{\"const\":1}},\"required\":[\"l\"]}]}",
         {"{\"k\":0}", "{\"l\":1}", "{\"k\":0,\"l\":1}"}, {"{}"}},
        {"{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"t\":{\"const\":\"a\"}},\"required\":[\"t\"]},"
         "{\"type\":\"object\",\"properties\":{\"t\":{\"const\":\"b\"},\"n\":{\"type\":\"integer\"}},\"required\":[\"t\"]}]}",
         {"{\"t\":\"a\"}", "{\"t\":\"b\",\"n\":1}"}, {"{\"t\":\"a\",", "{\"t\":\"c"}},
        {"{\"$ref\":\"#/$defs/t~1\",\"$defs\":{\"t/\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/t~1\"}}}}", {"[]", "[[],[[]]]"}, {"[1", "{"}},
        {"true", {"1", "\"\"", "{}", "[[]]", "null"}, {"x"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err;
        Schema *s = compile(cases[i].schema, &err);
        if (!s) fail_msg("%s: %s", cases[i].schema, err.text);
        int end;
        for (const char *const *t = cases[i].yes; *t; t++)
            if (accepted(s, *t, &end) < (int)strlen(*t) || !end) fail_msg("%s: %s is refused", cases[i].schema, *t);
        for (const char *const *t = cases[i].no; *t; t++)
            if (accepted(s, *t, &end) == (int)strlen(*t) && end) fail_msg("%s: %s is accepted", cases[i].schema, *t);
        schema_free(s);
    }
}

static void test_refused(void **state) {
    (void)state;
    static const struct { const char *schema, *error; } cases[] = {
        {"{\"not\":{}}", "$: not is not supported"},
        {"{\"properties\":{\"a\":{\"items\":{\"multipleOf\":3}}}}", "$.a.[]: multipleOf is not supported"},
        {"{\"x-unknown\":1}", "$: x-unknown is not supported"},
        {"{\"patternProperties\":{}}", "$: patternProperties is not supported"},
        {"{\"uniqueItems\":true}", "$: uniqueItems is not supported"},
        {"{\"type\":\"text\"}", "$: type: must name string, number, integer, boolean, null, array or object"},
        {"{\"type\":\"string\",\"format\":\"iri\"}", "$: format: only date, time, date-time, uuid, ipv4 and email are supported"},
        {"{\"pattern\":\"(?=a)\"}", "$: pattern: groups that begin with (? are not supported, but for (?:"},
        {"{\"pattern\":\"(a\"}", "$: pattern: a group without an end"},
        {"{\"pattern\":\"a)\"}", "$: pattern: a ) too many"},
        {"{\"pattern\":\"[a\"}", "$: pattern: a class without an end"},
        {"{\"pattern\":\"*a\"}", "$: pattern: nothing to repeat"},
        {"{\"pattern\":\"a\\\\b\"}", "$: pattern: this escape is not supported"},
        {"{\"pattern\":\"(a)\\\\1\"}", "$: pattern: this escape is not supported"},
        {"{\"pattern\":\"\\\\u00g0\"}", "$: pattern: not a hexadecimal number"},
        {"{\"pattern\":\"a$b\"}", "$: pattern: ^ and $ are supported at the ends of an alternative only"},
        {"{\"pattern\":\"a{3,2}\"}", "$: pattern: a count that goes backwards"},
        {"{\"pattern\":\"a\",\"maxLength\":3}", "$: minLength and maxLength beside a pattern are not supported: say it in the pattern"},
        {"{\"pattern\":\"a{2\"}", "$: pattern: { is written \\{ when it is no count"},
        {"{\"pattern\":\"a{,2}\"}", "$: pattern: { is written \\{ when it is no count"},
        {"{\"pattern\":\"a{ 2}\"}", "$: pattern: { is written \\{ when it is no count"},
        {"{\"pattern\":\"a{3,-1}\"}", "$: pattern: { is written \\{ when it is no count"},
        {"{\"pattern\":\"a{99999999999}\"}", "$: pattern: counts above 10000 are not supported"},
        {"{\"pattern\":\"(a{10000}){10000}\"}", "$: the schema is too large"},
        {"{\"minimum\":1000000000000000000}", "$: minimum: must be a number of at most 18 digits"},
        {"{\"pattern\":\"[]a]\"}", "$: pattern: a class begins with \\], not with ]"},
        {"{\"pattern\":\"[^]\"}", "$: pattern: a class begins with \\], not with ]"},
        {"{\"pattern\":\"a**\"}", "$: pattern: nothing to repeat"},
        {"{\"pattern\":\"a++b\"}", "$: pattern: nothing to repeat"},
        {"{\"minLength\":-1}", "$: minLength: must be a whole number from 0"},
        {"{\"minimum\":\"1\"}", "$: minimum: must be a number"},
        {"{\"exclusiveMinimum\":true}", "$: exclusiveMinimum: must be a number"},
        {"{\"type\":\"integer\",\"minimum\":2,\"maximum\":1}", "$: nothing satisfies this schema"},
        {"{\"type\":\"integer\",\"minimum\":1.2,\"maximum\":1.8}", "$: nothing satisfies this schema"},
        {"{\"type\":\"string\",\"enum\":[1]}", "$: nothing satisfies this schema"},
        {"{\"required\":[\"a\"],\"properties\":{\"a\":false}}", "$: nothing satisfies this schema"},
        {"{\"type\":\"array\",\"minItems\":2,\"maxItems\":1}", "$: nothing satisfies this schema"},
        {"{\"type\":\"array\",\"items\":{\"$ref\":\"#\"},\"minItems\":1}", "$: nothing satisfies this schema"},
        {"false", "$: nothing satisfies this schema"},
        {"{\"enum\":[1],\"minimum\":0}", "$: enum and const are supported alone and beside type"},
        {"{\"$ref\":\"#\"}", "$: $ref: leads to itself"},
        {"{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}", "$: $ref: leads to itself"},
        {"{\"$ref\":\"#/$defs/a\"}", "$: $ref: must lead to a place in this document"},
        {"{\"$ref\":\"#/$defs/a/x\",\"$defs\":{\"a\":[{}]}}", "$: $ref: must lead to a place in this document"},
        {"{\"$ref\":\"#/$defs/a/4294967296\",\"$defs\":{\"a\":[{}]}}", "$: $ref: must lead to a place in this document"},
        {"{\"$ref\":\"http://x/y\"}", "$: $ref: must lead to a place in this document"},
        {"{\"$ref\":\"#/$defs/a\",\"type\":\"string\",\"$defs\":{\"a\":{}}}", "$: keywords beside $ref are not supported"},
        {"{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "$: oneOf: alternatives that may hold at once are not supported (anyOf is)"},
        {"{\"anyOf\":[]}", "$: anyOf, oneOf, allOf: must be a list that is not empty"},
        {"{\"allOf\":[{\"minimum\":1},{\"minimum\":2}]}", "$: anyOf, oneOf or allOf: the same keyword twice is not supported"},
        {"{\"type\":\"array\",\"items\":[true]}", "$: items: a list is called prefixItems"},
        {"{\"required\":[\"a\"],\"additionalProperties\":false}", "$: required: names a property that is not allowed"},
        {"{\"required\":\"a\"}", "$: required: must be a list"},
        {"{\"required\":[1]}", "$: required: must be a list of names"},
        {"{\"anyOf\":[5],\"properties\":{}}", "$: anyOf, oneOf, allOf: must be a list of objects here"},
        {"{\"properties\":[]}", "$: properties: must be an object"},
        {"{\"properties\":{\"a\":5}}", "$.a: must be an object, true or false"},
        {"{\"type\":\"array\",\"items\":true,\"minItems\":1000000}", "$: the schema is too large"},
        {"5", "$: must be an object, true or false"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        assert_null(compile(cases[i].schema, &err));
        assert_string_equal(err.text, cases[i].error);
    }
}

static uint32_t seed = 1;
static int below(int n) { return (seed = seed * 1664525u + 1013904223u) / (4294967296.0 / n); }

/* In every state that random writing comes to, the mask allows exactly the tokens that the automaton follows; with a limit
 * those from which the end can be reached. */
static void test_masks(void **state) {
    (void)state;
    static const char *schemas[] = {
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"maxLength\":9},\"b\":{\"type\":\"array\",\"items\":{\"type\":\"integer\"}}},"
        "\"required\":[\"a\"]}",
        "true", "{\"type\":\"string\",\"minLength\":30,\"maxLength\":60}", "{\"pattern\":\"^[a-z ]+[0-9]{3}$\"}",
        "{\"anyOf\":[{\"type\":\"string\",\"maxLength\":5},{\"enum\":[\"seven letters\",\"eight\"]},{\"pattern\":\"^x+$\"}]}",
    };
    for (size_t i = 0; i < sizeof schemas / sizeof *schemas; i++) {
        Error err;
        Schema *s = compile(schemas[i], &err);
        assert_non_null(s);
        for (int round = 0; round < 6; round++) {
            int at = schema_begin(s), left = schema_distance(s, at) + below(40);
            for (; left > 0 && !schema_must_end(s, at); left--) {
                int limit = round % 2 ? left : 1 << 30, n = 0, chosen = -1, forced = 0;
                const uint64_t *mask = schema_mask(s, at, limit, &forced);
                for (int id = 0; id < n_vocab; id++) {
                    int next = schema_next(s, at, id), bit = mask[id / 64] >> id % 64 & 1;
                    int want = id == end_id ? schema_may_end(s, at) : next >= 0 && schema_distance(s, next) < limit;
                    if (bit != want) fail_msg("%s: token %d is %d, %d tokens left, %d steps", schemas[i], id, bit, limit, schema_distance(s, at));
                    if (bit && id != end_id && below(++n) == 0) chosen = id;
                }
                if (chosen < 0) break;
                at = schema_next(s, at, chosen);
            }
            assert_true(round % 2 == 0 || schema_may_end(s, at));
        }
        schema_free(s);
    }
}

static const uint64_t *allowed(Schema *s, int state) { return schema_mask(s, state, 1 << 30, NULL); }

/* More states than are kept from one value to the next, and more masks than are kept at all: what comes after that is as in a
 * schema that has not seen any yet. */
static void test_long_values(void **state) {
    (void)state;
    static char text[52001];
    Error err;
    int end;
    memset(text, 'a', sizeof text - 1);
    *text = '"';
    const char *schema = "{\"type\":\"string\",\"maxLength\":60000}";
    Schema *s = compile(schema, &err), *fresh = compile(schema, &err);
    assert_true(s && fresh);
    for (int round = 0; round < 2; round++) assert_int_equal(accepted(s, text, &end), sizeof text - 1);
    int at = schema_begin(s), there = schema_begin(fresh);
    for (const char *c = "\"\xc3\xa9\\n\""; *c; c++) {
        assert_memory_equal(allowed(s, at), allowed(fresh, there), (size_t)(n_vocab + 63) / 64 * 8);
        at = schema_next(s, at, byte_ids[(unsigned char)*c]);
        there = schema_next(fresh, there, byte_ids[(unsigned char)*c]);
        assert_int_equal(schema_distance(s, at), schema_distance(fresh, there));
    }
    assert_true(schema_must_end(s, at));
    schema_free(s);
    schema_free(fresh);

    char constant[2000] = "{\"const\":\"";
    size_t n = strlen(constant);
    for (; n < sizeof constant - 3; n++) constant[n] = (char)('a' + below(26));
    strcpy(constant + n, "\"}");
    assert_non_null(s = compile(constant, &err));
    for (int round = 0; round < 2; round++) {
        at = schema_begin(s);
        for (const char *c = strchr(constant, ':') + 1; *c != '}'; c++) {
            for (int b = 'a'; b <= 'z'; b++) {
                int id = byte_ids[b];
                assert_int_equal(allowed(s, at)[id / 64] >> id % 64 & 1, b == *c);
            }
            at = schema_next(s, at, byte_ids[(unsigned char)*c]);
        }
        assert_true(schema_must_end(s, at));
    }
    schema_free(s);
}

/* Calls in the model's own notation; they are read back by chat.c in tests/test_tools.py. */
static void test_calls(void **state) {
    (void)state;
    cJSON *tools = cJSON_Parse("[{\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"string\"},"
                               "\"l\":{\"type\":\"array\",\"items\":{\"enum\":[\"a\",1,true]}}},\"required\":[\"x\"]}}},{\"function\":{\"name\":\"g\"}}]");
    static const struct { const char *text; int yes; } cases[] = {
        {"<|tool_call>call:f{x:<|\"|>any \" \\ \n text<|\"|>}<tool_call|>", 1},
        {"<|tool_call>call:f{x:<|\"|><|\"|>,l:[<|\"|>a<|\"|>,1,true]}<tool_call|>", 1},
        {"<|tool_call>call:g{}<tool_call|>", 1},
        {"<|tool_call>call:g{a:1,B_2:{c:null}}<tool_call|><|tool_call>call:g{}<tool_call|>", 1},
        {"<|tool_call>call:f{}<tool_call|>", 0},
        {"<|tool_call>call:f{x:\"a\"}<tool_call|>", 0},
        {"<|tool_call>call:f{ x", 0},
        {"<|tool_call>call:h{}<tool_call|>", 0},
        {"call:g{}", 0},
        {"<|tool_call>call:g{}", 0},
    };
    Error err;
    Schema *s = schema_calls(pieces, tools, NULL, 1, &err);
    if (!s) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Ids ids = {0};
        tokenizer_encode(tokenizer, cases[i].text, strlen(cases[i].text), 1, &ids);
        int at = schema_begin(s);
        for (int k = 0; k < ids.n && at >= 0; k++) at = schema_next(s, at, ids.id[k]);
        assert_int_equal(at >= 0 && schema_may_end(s, at), cases[i].yes);
        ids_free(&ids);
    }
    schema_free(s);
    s = schema_calls(pieces, tools, "g", 0, &err);
    Ids ids = {0};
    tokenizer_encode(tokenizer, cases[2].text, strlen(cases[2].text), 1, &ids);
    int at = schema_begin(s);
    for (int k = 0; k < ids.n; k++) at = schema_next(s, at, ids.id[k]);
    assert_true(schema_must_end(s, at));            /* one call, not several */
    ids_free(&ids);
    schema_free(s);
    assert_null(schema_calls(pieces, tools, "none", 1, &err));
    cJSON_Delete(tools);
    static const char *const refused[][2] = {
        {"\"properties\":{\"a:b\":{\"type\":\"null\"}}", "properties: this name cannot be written in a call"},
        {"\"enum\":[{\"a\":1,\"l: b\":{}}]", "enum, const: this name cannot be written in a call"},
        {"\"enum\":[{\"a\":\"\xff\x03\"}]", "enum, const: a string that is not UTF-8"},
    };
    for (int i = 0; i < 3; i++) {
        Buf list = {0};
        buf_printf(&list, "[{\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",%s}}}]", refused[i][0]);
        tools = cJSON_Parse(list.data);
        assert_null(schema_calls(pieces, tools, NULL, 1, &err));
        assert_non_null(strstr(err.text, refused[i][1]));
        cJSON_Delete(tools);
        buf_free(&list);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted), cmocka_unit_test(test_refused), cmocka_unit_test(test_masks), cmocka_unit_test(test_long_values),
        cmocka_unit_test(test_calls),
    };
    return cmocka_run_group_tests_name("schema", tests, open_pieces, close_pieces);
}
