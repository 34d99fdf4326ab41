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
#include <strings.h>

#include "../call.h"
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

#define HOST_50 "abcdefghi.abcdefghi.abcdefghi.abcdefghi.abcdefghi."
#define HOST HOST_50 HOST_50 HOST_50 HOST_50 HOST_50

static void test_accepted(void **state) {
    (void)state;
    /* "yes" texts are complete, "no" texts are refused at their last byte or may not end there. */
    static const struct { const char *schema, *yes[12], *no[14]; } cases[] = {
        {"{\"type\":\"boolean\"}", {"true", "false"}, {"tru", "True", " ", "true ", "null"}},
        {"{\"type\":\"integer\"}", {"0", "-1", "1234567890123456", "18446744073709551615", "-9223372036854775808"},
         {"-0", "01", "1.", "1e", "--", "123456789012345678901", "+"}},
        {"{\"type\":\"number\"}", {"0", "-0.5", "1e5", "12.50E-03", "1.0e+9", "1e123", "0.12345678901234567"},
         {".", "1.", "1e", "00", "1e1234", "-", "1.e", "0.123456789012345678"}},
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
        {"{\"format\":\"date\"}", {"\"2024-02-29\"", "\"1999-12-31\"", "\"2000-02-29\"", "\"2023-11-30\""},
         {"\"2024-13", "\"2024-00", "\"2023-02-29", "\"1900-02-29", "\"24-", "\"2024-04-31", "\"2024-02-30", "\"2024-01-32"}},
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
         {"0.0000001", "0.0000002", "0.00000021", "1"}},
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
        {"{\"$id\":\"http://x/r\",\"$defs\":{\"b\":{\"const\":1}},\"items\":{\"$ref\":\"#/$defs/b\"},\"prefixItems\":[{\"$ref\":\"http://x/r#/$defs/b\"}]}",
         {"[1,1]"}, {"[2", "[1,2"}},
        {"{\"$defs\":{\"b\":{\"const\":1},\"a\":{\"$id\":\"http://x/a\",\"$defs\":{\"b\":{\"const\":2}},\"properties\":{\"p\":{\"$ref\":\"#/$defs/b\"}}}},"
         "\"properties\":{\"a\":{\"$ref\":\"#/$defs/a\"},\"q\":{\"$ref\":\"#/$defs/b\"}}}", {"{\"a\":{\"p\":2},\"q\":1}"}, {"{\"a\":{\"p\":1", "{\"q\":2"}},
        {"{\"$defs\":{\"c\":{\"const\":{\"$anchor\":\"x\"}},\"a\":{\"$id\":\"a\",\"$defs\":{\"y\":{\"$anchor\":\"x\",\"const\":2}}},"
         "\"d\":{\"$anchor\":\"x\",\"const\":3}},\"$ref\":\"#x\"}", {"3"}, {"2", "{"}},
        {"{\"pattern\":\"^\\\\ud83d\\\\ude00[\\\\uD83D\\\\uDE01-\\\\ud83d\\\\ude02]$\"}", {"\"\xf0\x9f\x98\x80\xf0\x9f\x98\x81\""},
         {"\"\xf0\x9f\x98\x80\xf0\x9f\x98\x83", "\"\xf0\x9f\x98\x81"}},
        {"{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"not\":{\"contains\":true}}", {"[]"}, {"[1"}},
        {"{\"uniqueItems\":true,\"prefixItems\":[{\"type\":\"integer\"}],\"items\":false}", {"[]", "[5]"}, {"[5,"}},
        {"{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"minimum\":2,\"maximum\":1},\"c\":{\"minLength\":1,\"maxLength\":0}}}",
         {"{}", "{\"a\":null}"}, {"{\"b", "{\"a\":null,", "{\"c"}},
        {"{\"type\":\"object\",\"propertyNames\":{\"minLength\":5,\"maxLength\":2}}", {"{}"}, {"{\""}},
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
        /* What holds at once: allOf, and what stands beside $ref, enum, format and pattern. */
        {"{\"allOf\":[{\"properties\":{\"title\":{\"type\":\"boolean\"}},\"required\":[\"title\"]},{\"properties\":{\"default\":{\"const\":1}}}]}",
         {"{\"title\":true}", "{\"title\":false,\"default\":1}"}, {"{\"title\":1", "{}", "{\"title\":true,\"default\":2"}},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1}},\"additionalProperties\":false,\"anyOf\":[{\"properties\":{\"b\":{}},"
         "\"required\":[\"b\"]},{\"required\":[\"a\"]}]}", {"{\"a\":1}"}, {"{}", "{\"b", "{\"a\":1,"}},
        {"{\"allOf\":[{\"minimum\":1,\"type\":\"integer\"},{\"minimum\":2},{\"maximum\":11}]}", {"2", "11"}, {"1\"", "12", "0"}},
        {"{\"$ref\":\"#/$defs/a\",\"maxLength\":2,\"$defs\":{\"a\":{\"type\":\"string\",\"minLength\":2}}}", {"\"ab\""}, {"\"a\"", "\"abc"}},
        {"{\"enum\":[\"a\",\"bb\",\"ccc\",5,null],\"minLength\":2,\"minimum\":6,\"type\":[\"string\",\"number\"]}", {"\"bb\"", "\"ccc\""},
         {"\"a", "5", "n"}},
        {"{\"pattern\":\"^a+$\",\"minLength\":2,\"maxLength\":3}", {"\"aa\"", "\"aaa\""}, {"\"a\"", "\"aaaa", "\"b"}},
        {"{\"type\":\"string\",\"format\":\"uuid\",\"pattern\":\"^[0-9a-f]{8}-[0-9a-f]{4}-4\"}", {"\"01234567-89ab-4def-8123-456789abcdef\""},
         {"\"01234567-89ab-5", "\"A", "\"01234567-89ab-4def-8123-456789abcdefa"}},
        {"{\"pattern\":\"^(?!\\\\.)(?=.*x)[a-z.]+$\"}", {"\"x\"", "\"a.x.\""}, {"\".", "\"abc\""}},
        {"{\"pattern\":\"^(?!^[-+.]*$)[+-]?\\\\d*\\\\.?\\\\d*$\"}", {"\"1\"", "\"-.5\""}, {"\"\"", "\"-\"", "\"+.\""}},
        {"{\"pattern\":\"^(?=^a)(?!ab)\\\\w+$\"}", {"\"a\"", "\"ac\""}, {"\"ab", "\"b", "\"\""}},
        /* Formats. */
        {"{\"format\":\"date-time\"}", {"\"2024-11-30T23:59:59Z\"", "\"2024-11-30T00:00:00.123+05:30\""}, {"\"2024-11-31", "\"2024-11-30T24"}},
        {"{\"format\":\"email\"}", {"\"ann@mail.b2b.com\"", "\"a.b+c@x-y.org\"", "\"o'neil@example.com\""}, {"\".", "\"a..", "\"a@-", "\"a@b.\""}},
        {"{\"format\":\"uri\"}", {"\"https://example.com/a?b#c\"", "\"mailto:a@b.c\"", "\"urn:x:y\""}, {"\"a b", "\"1", "\"http://a/%z", "\"abc\"", "\"http://[:::", "\"http://[1]"}},
        {"{\"format\":\"uri-reference\"}", {"\"\"", "\"/a/b\"", "\"a?b\"", "\"https://x\"", "\"urn:a:b\""},
         {"\"a b", "\":a", "\"1:b"}},
        {"{\"format\":\"duration\"}", {"\"P1D\"", "\"PT5M\"", "\"P1Y2M3DT4H5M6S\"", "\"P2W\""}, {"\"P\"", "\"PT\"", "\"1", "\"P1S"}},
        {"{\"format\":\"time\"}", {"\"12:30:00Z\"", "\"23:59:59.5-08:00\""}, {"\"24", "\"12:30:00\""}},
        {"{\"format\":\"hostname\"}", {"\"example.com\"", "\"a-b.c1\""}, {"\"-", "\"a..", "\"a-.", "\"a\\u00e9"}},
        {"{\"format\":\"ipv4\"}", {"\"127.0.0.1\"", "\"255.249.10.99\""}, {"\"256", "\"1.2.3\"", "\"01"}},
        {"{\"format\":\"ipv6\"}", {"\"::1\"", "\"fe80::1:2\"", "\"1:2:3:4:5:6:7:8\"", "\"::ffff:10.0.0.1\"", "\"::\""}, {"\":::", "\"1::2::", "\"g"}},
        {"{\"format\":\"regex\"}", {"\"^[a-z0-9]+(x|y){2}$\"", "\"\\\\d*\""}, {"\"[b-a", "\"a{2,1", "\"*\"\"", "\"(a\""}},
        {"{\"properties\":{\"a\":{}},\"allOf\":[{\"unevaluatedProperties\":false}]}", {"{}"}, {"{\"a"}},
        {"{\"allOf\":[{\"properties\":{\"a\":{\"const\":1}}}],\"unevaluatedProperties\":false}", {"{}", "{\"a\":1}"}, {"{\"b"}},
        {"{\"format\":\"json-pointer\"}", {"\"\"", "\"/a/~0b\""}, {"\"a", "\"/~2"}},
        {"{\"type\":\"string\",\"format\":\"int64\"}", {"\"anything\""}, {"5"}},
        /* Numbers of 64 bits, multiples. */
        {"{\"type\":\"integer\",\"minimum\":-9223372036854775808,\"maximum\":18446744073709551615}", {"-9223372036854775808", "18446744073709551615", "0"},
         {"-9223372036854775809", "18446744073709551616"}},
        {"{\"type\":\"integer\",\"multipleOf\":5}", {"0", "5", "-15", "1000"}, {"1\"", "51\"", "-4\""}},
        {"{\"type\":\"number\",\"multipleOf\":0.01}", {"1", "0.05", "-12.34", "7.5"}, {"0.001", "1.234"}},
        {"{\"type\":\"integer\",\"multipleOf\":7,\"minimum\":10,\"maximum\":30}", {"14", "21", "28"}, {"7", "15", "35", "2\""}},
        {"{\"type\":\"integer\",\"minimum\":5,\"exclusiveMinimum\":true}", {"6"}, {"5\""}},
        /* Older drafts and notes. */
        {"{\"type\":\"array\",\"items\":[{\"const\":1},{\"const\":2}],\"additionalItems\":false}", {"[]", "[1]", "[1,2]"}, {"[2", "[1,2,"}},
        {"{\"type\":\"string\",\"nullable\":true,\"x-order\":3,\"deprecated\":true,\"contentEncoding\":\"base64\"}", {"null", "\"a\""}, {"1"}},
        {"{\"definitions\":{\"n\":{\"$anchor\":\"num\",\"type\":\"null\"}},\"items\":{\"$ref\":\"#num\"},\"type\":\"array\"}", {"[null]"}, {"[1"}},
        {"{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}},\"dependencies\":{\"a\":[\"b\"]}}", {"{}", "{\"b\":2}", "{\"a\":1,\"b\":2}"}, {"{\"a\":1}"}},
        {"{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}},\"dependentRequired\":{\"b\":[\"a\"]}}", {"{}", "{\"a\":1}", "{\"a\":1,\"b\":2}"}, {"{\"b"}},
        /* Objects. */
        {"{\"patternProperties\":{\"^x\":{\"type\":\"null\"}},\"additionalProperties\":{\"const\":1}}", {"{\"x\":null,\"y\":1,\"xz\":null}", "{}"},
         {"{\"x\":1", "{\"y\":null"}},
        {"{\"patternProperties\":{\"^x\":{\"type\":\"null\"}},\"additionalProperties\":false}", {"{\"x\":null}"}, {"{\"y"}},
        {"{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"^[a-z]$\"},\"maxProperties\":2}", {"{\"a\":1,\"b\":2}", "{}"}, {"{\"ab", "{\"a\":1,\"b\":2,"}},
        {"{\"type\":\"object\",\"propertyNames\":{\"enum\":[\"a\",\"bc\"]},\"minProperties\":1}", {"{\"a\":1}", "{\"bc\":1}"}, {"{}", "{\"b\""}},
        {"{\"properties\":{\"a\":{},\"b\":{\"const\":1},\"c\":{}},\"required\":[\"b\"]}", {"{\"b\":1}", "{\"a\":0,\"b\":1}", "{\"b\":1,\"c\":0}"}, {"{\"c", "{\"a\":0,\"c"}},
        /* Arrays. */
        {"{\"type\":\"array\",\"items\":{\"enum\":[1,2,3]},\"uniqueItems\":true,\"minItems\":2}", {"[1,2]", "[3,1,2]"}, {"[1]", "[1,1", "[1,2,3,"}},
        {"{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"contains\":{\"const\":5}}", {"[5]", "[1,5,2]", "[5,5]"}, {"[]", "[1]", "[15,6]"}},
        {"{\"type\":\"array\",\"contains\":{\"type\":\"null\"},\"items\":{\"type\":[\"null\",\"boolean\"]},\"minContains\":2}", {"[null,true,null]"}, {"[null]"}},
        /* Alternatives. */
        {"{\"oneOf\":[{\"type\":\"integer\",\"multipleOf\":2},{\"type\":\"string\"}]}", {"2", "\"a\""}, {"3\"", "true"}},
        {"{\"type\":\"string\",\"not\":{\"enum\":[\"a\",\"b\"]}}", {"\"c\"", "\"ab\"", "\"\""}, {"\"a\"", "\"b\""}},
        {"{\"type\":[\"string\",\"null\"],\"not\":{\"const\":null}}", {"\"c\""}, {"null"}},
        {"{\"oneOf\":[{\"enum\":[\"a\",\"b\"]},{\"enum\":[\"b\",\"c\"]}]}", {"\"a\"", "\"c\""}, {"\"b"}},
        {"{\"properties\":{\"k\":{\"enum\":[\"x\",\"y\"]},\"v\":{}},\"required\":[\"k\"],\"if\":{\"properties\":{\"k\":{\"const\":\"x\"}}},"
         "\"then\":{\"properties\":{\"v\":{\"type\":\"null\"}},\"required\":[\"v\"]},\"else\":{\"properties\":{\"v\":{\"type\":\"boolean\"}}}}",
         {"{\"k\":\"x\",\"v\":null}", "{\"k\":\"y\"}", "{\"k\":\"y\",\"v\":true}"}, {"{\"k\":\"x\"}", "{\"k\":\"x\",\"v\":true", "{\"k\":\"y\",\"v\":null"}},
        /* What only tests closes nothing: not, if, alternatives of oneOf that do not hold. */
        {"{\"type\":\"object\",\"not\":{\"required\":[\"a\"]}}",
         {"{}", "{\"b\":1,\"c\":2}"},
         {"{\"a\":1}", "{\"b\":1,\"a\":"}},
        {"{\"type\":\"object\",\"oneOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]}",
         {"{\"a\":1}", "{\"a\":1,\"x\":2}", "{\"b\":1,\"x\":2}"},
         {"{}", "{\"a\":1,\"b\":2}", "{\"x\":1}"}},
        {"{\"type\":\"object\",\"if\":{\"required\":[\"a\"]},\"then\":{\"required\":[\"b\"]}}",
         {"{}", "{\"x\":1}", "{\"a\":1,\"b\":2,\"c\":3}"},
         {"{\"a\":1}", "{\"a\":1,\"c\":2}"}},
        {"{\"type\":\"object\",\"if\":{\"properties\":{\"a\":{\"const\":1}},\"required\":[\"a\"]"
         "},\"then\":{\"required\":[\"b\"]}}",
         {"{\"a\":2,\"x\":1}", "{\"a\":1,\"b\":2,\"x\":3}"},
         {"{\"a\":1}", "{\"a\":1,\"x\":2}"}},
        /* Alternatives that never hold at once: by tags further inside, or without a type. */
        {"{\"oneOf\":[{\"oneOf\":[{\"$ref\":\"#/$defs/b\"},{\"$ref\":\"#/$defs/w\"}]},{\"$ref\":"
         "\"#/$defs/d\"}],\"$defs\":{\"b\":{\"type\":\"object\",\"properties\":{\"t\":{\"const\""
         ":\"c\"},\"k\":{\"const\":1}},\"required\":[\"t\",\"k\"]},\"w\":{\"type\":\"object\",\""
         "properties\":{\"t\":{\"const\":\"c\"},\"k\":{\"const\":2}},\"required\":[\"t\",\"k\"]}"
         ",\"d\":{\"type\":\"object\",\"properties\":{\"t\":{\"const\":\"d\"}},\"required\":[\"t"
         "\"]}}}",
         {"{\"t\":\"c\",\"k\":1}", "{\"t\":\"c\",\"k\":2}", "{\"t\":\"d\"}"},
         {"{\"t\":\"c\",\"k\":3", "{\"t\":\"d\",\"k\":1", "{\"t\":\"c\"}"}},
        {"{\"oneOf\":[{\"allOf\":[{\"$ref\":\"#/$defs/p\"},{\"properties\":{\"t\":{\"const\":\"c"
         "\"}}}]},{\"allOf\":[{\"$ref\":\"#/$defs/p\"},{\"properties\":{\"t\":{\"const\":\"d\"},"
         "\"n\":{\"type\":\"integer\"}}}]}],\"$defs\":{\"p\":{\"type\":\"object\",\"properties\""
         ":{\"t\":{\"type\":\"string\"}},\"required\":[\"t\"]}}}",
         {"{\"t\":\"c\"}", "{\"t\":\"d\",\"n\":1}"},
         {"{\"t\":\"x", "{\"t\":\"c\",\"n"}},
        {"{\"type\":\"object\",\"oneOf\":[{\"properties\":{\"a\":{\"enum\":[1]},\"b\":{\"const\""
         ":2}},\"required\":[\"a\"],\"additionalProperties\":false},{\"properties\":{\"a\":{\"en"
         "um\":[3]}},\"required\":[\"a\"],\"additionalProperties\":false}]}",
         {"{\"a\":1}", "{\"a\":1,\"b\":2}", "{\"a\":3}"},
         {"{\"a\":3,\"b", "{\"a\":2", "{}"}},
        {"{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"v\"},\"v\":{\"type"
         "\":\"integer\"}},\"required\":[\"v\"]},{\"type\":\"object\",\"properties\":{\"k\":{\"c"
         "onst\":\"l\"},\"l\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}},\"required\":[\"l"
         "\"]}]}",
         {"{\"v\":1}", "{\"k\":\"v\",\"v\":1}",
          "{\"l\":[{\"v\":2},{\"k\":\"l\",\"l\":[]}]}"},
         {"{\"k\":\"l\",\"v", "{\"v\":1,\"l\":", "{\"k\":\"v\"}", "{\"l\":[{\"v\":\""}},
        {"{\"oneOf\":[{\"const\":null},{\"type\":\"object\",\"nullable\":true}]}",
         {"{}"},
         {"null"}},
        {"{\"type\":\"array\",\"oneOf\":[{\"items\":{\"type\":\"integer\"}},{\"items\":{\"type\""
         ":[\"integer\",\"null\"]}}]}",
         {"[null]", "[1,null]"},
         {"[]", "[1]", "[1,2]", "[\""}},
        {"{\"type\":\"array\",\"not\":{\"prefixItems\":[{\"const\":1},{\"const\":2}]}}",
         {"[2]", "[1,3]", "[2,2]"},
         {"[]", "[1]", "[1,2]", "[1,2,3]"}},
        {"{\"type\":\"array\",\"items\":{\"enum\":[1,2]},\"if\":{\"contains\":{\"const\":1}},\"t"
         "hen\":{\"minItems\":3},\"else\":{\"maxItems\":1}}",
         {"[1,2,2]", "[2]", "[]"},
         {"[1]", "[2,2]", "[1,2]"}},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"in"
         "teger\"}},\"not\":{\"properties\":{\"a\":true},\"additionalProperties\":false}}",
         {"{\"b\":1}", "{\"a\":1,\"b\":2}"},
         {"{}", "{\"a\":1}"}},
        {"{\"type\":\"object\",\"properties\":{\"a1\":{\"type\":\"integer\"},\"b\":{\"type\":\"i"
         "nteger\"}},\"not\":{\"patternProperties\":{\"^a\":{\"minimum\":5}}}}",
         {"{\"a1\":4}", "{\"a1\":4,\"b\":9}"},
         {"{}", "{\"a1\":5}", "{\"b\":1}"}},
        {"{\"enum\":[1,2,\"x\",null],\"not\":{\"type\":\"integer\",\"nullable\":true}}",
         {"\"x\""},
         {"1", "null"}},
        {"{\"type\":\"string\",\"not\":{\"format\":\"int64\",\"type\":\"string\"},\"nullable\":t"
         "rue}",
         {"null"},
         {"\""}},
        {"{\"enum\":[\"a\",\"b\",\"c\"],\"not\":{\"oneOf\":[{\"enum\":[\"a\",\"b\"]},{\"enum\":["
         "\"b\",\"c\"]}]}}",
         {"\"b\""},
         {"\"a", "\"c"}},
        {"{\"type\":\"integer\",\"minimum\":0,\"maximum\":9,\"not\":{\"if\":{\"minimum\":5},\"th"
         "en\":{\"maximum\":6},\"else\":{\"minimum\":3}}}",
         {"7", "0", "2"},
         {"5\"", "6\"", "3\"", "4\""}},
        /* Schemas that depend on a property. */
        {"{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}},\"depend"
         "entSchemas\":{\"a\":{\"required\":[\"b\"]},\"b\":{\"properties\":{\"c\":false}}}}",
         {"{}", "{\"c\":3}", "{\"b\":2}", "{\"a\":1,\"b\":2}"},
         {"{\"a\":1}", "{\"a\":1,\"c\":3}", "{\"a\":1,\"b\":2,\"c", "{\"b\":2,\"c"}},
        {"{\"properties\":{\"a\":{\"const\":1},\"b\":{\"type\":\"string\"},\"c\":{\"const\":3}},"
         "\"dependencies\":{\"a\":{\"properties\":{\"b\":{\"minLength\":2}},\"required\":[\"b\"]"
         "},\"c\":[\"b\"]}}",
         {"{}", "{\"b\":\"\"}", "{\"a\":1,\"b\":\"xy\"}", "{\"b\":\"\",\"c\":3}"},
         {"{\"a\":1}", "{\"a\":1,\"b\":\"x\"}", "{\"c\":3}"}},
        {"{\"enum\":[{\"a\":1},{\"a\":1,\"b\":2},{\"b\":3}],\"dependentRequired\":{\"a\":[\"b\"]"
         "},\"dependentSchemas\":{\"b\":{\"maxProperties\":2}}}",
         {"{\"a\":1,\"b\":2}", "{\"b\":3}"},
         {"{\"a\":1}"}},
        /* Numbers that are none of some others. */
        {"{\"type\":\"number\",\"not\":{\"enum\":[1,2.5]}}",
         {"0", "2", "1.5", "2.51"},
         {"1", "1.0", "2.5", "2.50"}},
        {"{\"type\":\"integer\",\"not\":{\"enum\":[1,2,2.5,0]}}",
         {"-1", "3", "18446744073709551615"},
         {"1\"", "2\"", "0"}},
        /* Items that are counted, all different, or closed by another schema. */
        {"{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"contains\":{\"const\":7},\"maxC"
         "ontains\":2}",
         {"[7]", "[1,7,2,7,3]"},
         {"[]", "[1]", "[7,7,7", "[71,17]"}},
        {"{\"type\":\"array\",\"items\":{\"enum\":[1,2]},\"contains\":{\"const\":1},\"minContain"
         "s\":0,\"maxContains\":1,\"minItems\":2}",
         {"[2,2]", "[1,2]", "[2,1,2]"},
         {"[1]", "[1,1"}},
        {"{\"type\":\"array\",\"contains\":{\"type\":\"null\"},\"maxContains\":0,\"minContains\""
         ":0}",
         {"[]", "[1,{}]"},
         {"[null", "[1,null"}},
        {"{\"type\":\"array\",\"prefixItems\":[{\"enum\":[1,2]},{\"const\":3}],\"uniqueItems\":t"
         "rue}",
         {"[]", "[1]", "[2,3]"},
         {"[1,1", "[3", "[1,3,"}},
        {"{\"type\":\"array\",\"prefixItems\":[{\"enum\":[1,2]}],\"items\":{\"enum\":[1,\"x\"]},"
         "\"uniqueItems\":true}",
         {"[1,\"x\"]", "[2,1,\"x\"]", "[2,\"x\",1]"},
         {"[1,1", "[\"x", "[2,\"x\",\"x"}},
        {"{\"type\":\"array\",\"prefixItems\":[{\"enum\":[1,2]},{\"type\":\"boolean\"}],\"items"
         "\":false,\"uniqueItems\":true}",
         {"[1,true]", "[2,false]"},
         {"[1,2", "[1,true,"}},
        {"{\"type\":\"array\",\"items\":{\"enum\":[1,2,3]},\"uniqueItems\":true,\"contains\":{\""
         "minimum\":2},\"maxContains\":1}",
         {"[2]", "[1,3]", "[3,1]"},
         {"[]", "[1]", "[2,3"}},
        {"{\"items\":{\"enum\":[\"aaaa\",\"aaab\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\",\"j\",\"k\","
         "\"l\",\"m\",\"n\",\"o\"]},\"uniqueItems\":true,\"minItems\":14}",
         {"[\"o\",\"n\",\"m\",\"l\",\"k\", \"j\",\"i\",\"h\",\"g\",\"f\",\"e\",\"d\",\"aaab\",\"aaaa\"]"},
         {"[\"o\",\"o", "[\"aaaa\",\"aaaa", "[\"a\"",
          "[\"o\",\"n\",\"m\",\"l\",\"k\",\"j\",\"i\",\"h\",\"g\",\"f\",\"e\",\"d\",\"aaab\"]"}},
        {"{\"items\":{\"items\":{\"enum\":[1,2]},\"uniqueItems\":true},\"maxItems\":2}",
         {"[[1,2],[1]]", "[[],[2]]"}, {"[[1,1", "[[1],[2,2"}},
        {"{\"type\":\"array\",\"items\":{\"enum\":[\"a\"],\"nullable\":true},\"uniqueItems\":tru"
         "e}",
         {"[null,\"a\"]"},
         {"[null,null", "[\"a\",\"a"}},
        {"{\"allOf\":[{\"prefixItems\":[{\"type\":\"integer\"}]}],\"type\":\"array\",\"unevaluat"
         "edItems\":false}",
         {"[]", "[1]"},
         {"[\"", "[1,"}},
        {"{\"allOf\":[{\"items\":{\"type\":\"integer\"}}],\"type\":\"array\",\"unevaluatedItems"
         "\":false}",
         {"[]", "[1,2]"},
         {"[\""}},
        {"{\"allOf\":[{\"prefixItems\":[{\"type\":\"integer\"}]},{\"unevaluatedItems\":false}],"
         "\"type\":\"array\"}",
         {"[]"},
         {"[1"}},
        {"{\"allOf\":[{\"patternProperties\":{\"^x\":{\"type\":\"integer\"}},\"properties\":{\"a"
         "\":{}}}],\"type\":\"object\",\"unevaluatedProperties\":false}",
         {"{\"a\":null,\"x1\":1}"},
         {"{\"x\":\"", "{\"y"}},
        {"{\"allOf\":[{\"additionalProperties\":{\"type\":\"integer\"}}],\"type\":\"object\",\"u"
         "nevaluatedProperties\":false}",
         {"{\"y\":1}"},
         {"{\"y\":\""}},
        {"{\"allOf\":[{\"patternProperties\":{\"^x\":{\"type\":\"integer\"}}},{\"unevaluatedProp"
         "erties\":false}],\"type\":\"object\"}",
         {"{}"},
         {"{\"x", "{\"y"}},
        /* Properties come in the order in which the schemas are read. */
        {"{\"allOf\":[{\"$ref\":\"#/$defs/a\"},{\"anyOf\":[{\"properties\":{\"b\":{}}}]},{\"prop"
         "erties\":{\"c\":{}}}],\"$defs\":{\"a\":{\"type\":\"object\",\"properties\":{\"a\":{}}}"
         "}}",
         {"{\"a\":1,\"b\":2,\"c\":3}"},
         {"{\"b\":2,\"a", "{\"c\":1,\"b"}},
        /* Multiples beside bounds, bounds beyond all doubles, numbers that are not whole. */
        {"{\"type\":\"integer\",\"minimum\":-9007199254740991,\"maximum\":9007199254740991,\"mul"
         "tipleOf\":2}",
         {"0", "2", "-9007199254740990", "9007199254740990", "123456"},
         {"3\"", "9007199254740992", "-", "-0"}},
        {"{\"type\":\"number\",\"minimum\":0.3,\"multipleOf\":0.25}",
         {"0.5", "1", "1.75", "1000000.25"},
         {"0.25", "0\"", "0.30", "-"}},
        {"{\"type\":\"number\",\"exclusiveMinimum\":0,\"multipleOf\":0.25}",
         {"0.25", "12"},
         {"0\"", "0.0", "-"}},
        {"{\"type\":\"integer\",\"exclusiveMaximum\":-5,\"multipleOf\":999}",
         {"-999", "-1998"},
         {"0\"", "-5\"", "-998\""}},
        {"{\"type\":\"number\",\"not\":{\"type\":\"integer\"}}",
         {"0.5", "-12.05", "3.140"},
         {"0\"", "1\"", "2.0", "1e", "-0.0"}},
        {"{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\",\"minimum\":3}]}",
         {"2", "3.5", "-7"},
         {"3\"", "4.0", "2.5"}},
        {"{\"type\":\"number\",\"minimum\":-1.7976931348623157e+308,\"maximum\":1.79769313486231"
         "57e+308}",
         {"0", "-1.5", "1e5", "2.5E+99", "12345678901234567890.5e288", "1e-300"},
         {"1e289", "1e300", "1e999", "-1e308"}},
        {"{\"type\":\"number\",\"minimum\":0,\"exclusiveMaximum\":1e150}",
         {"0", "1e130", "1e-308"},
         {"-", "1e131", "1e150"}},
        /* A name that a $ref goes through is no keyword; three parts of a token. */
        {"{\"items\":{\"$ref\":\"#/item\"},\"item\":{\"type\":\"null\"},\"type\":\"array\"}",
         {"[null]"},
         {"[1"}},
        {"{\"format\":\"jwt\"}",
         {"\"eyJh.eyJz_w.c-2\"", "\"a.b.\""},
         {"\"a.b\"", "\"a b", "\"a..", "\"a.b.c."}},
        /* Classes and their opposites in all of Unicode; the edges of words. */
        {"{\"type\":\"string\",\"pattern\":\"^\\\\S\\\\D\\\\W$\"}",
         {"\"ééé\"", "\"漢漢漢\"", "\"aa-\""},
         {"\" ", "\"a1", "\"aaa\"", "\"\\u001c\"", "\"\\u00a0"}},
        {"{\"type\":\"string\",\"pattern\":\"^[^\\\\s-]{2}$\"}",
         {"\"é漢\""},
         {"\"é-", "\"a ", "\"　"}},
        {"{\"type\":\"string\",\"pattern\":\"^[\\\\s\\\\S]$\"}",
         {"\"é\"", "\"\\n\"", "\"\\u001c\""},
         {"\"\"", "\"aa"}},
        {"{\"type\":\"string\",\"pattern\":\"^\\\\s$\"}",
         {"\" \"", "\"\\n\"", "\" \""},
         {"\"​", "\"\\u001c\"", "\"é"}},
        {"{\"type\":\"string\",\"pattern\":\"^[^\\\\dé]$\"}",
         {"\"a\"", "\"è\""},
         {"\"1", "\"é\""}},
        {"{\"type\":\"string\",\"pattern\":\"\\\\btodo\\\\b\"}",
         {"\"todo\"", "\"a todo, b\"", "\"étodoé\"", "\"todo todos\""},
         {"\"todos\"", "\"_todo\"", "\"x\""}},
        {"{\"type\":\"string\",\"pattern\":\"^a\\\\B.\\\\b-$\"}",
         {"\"ab-\""},
         {"\"a--\"", "\"abb\"", "\"a-b"}},
        {"{\"type\":\"string\",\"pattern\":\"\\\\b$\"}",
         {"\"a\"", "\"-a\""},
         {"\"\"", "\"a-\""}},
        {"{\"type\":\"string\",\"pattern\":\"^(?!.*\\\\bno\\\\b).+$\"}",
         {"\"yes\"", "\"nono\"", "\"not\""},
         {"\"no\"", "\"a no b\""}},
        {"{\"type\":\"string\",\"pattern\":\"^(?=.*a)^b|^(?!a)c\"}",
         {"\"ba\"", "\"c\""},
         {"\"b\"", "\"a"}},
        {"{\"format\":\"regex\"}",
         {"\"^(?=.*[a-z])(?!b)[\\\\w-]{2,5}(((é)+?|x)\\\\b)$\"", "\"((((a))))\"",
          "\"a{0,10}\"", "\"\\\\u00e9\""},
         {"\"(((((a", "\"a{5,3}", "\"(?=a)*", "\"^*", "\"[a\""}},
        {"{\"type\":\"string\",\"format\":\"hostname\",\"pattern\":\"^(?=.{1,253}\\\\.?$)[a-zA-Z"
         "0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\\\\.[a-zA-Z0-9](?:[-0-9a-zA-Z]{0,61}[0-9a-zA"
         "-Z])?)*\\\\.?$\"}",
         {"\"a.b-c\"", "\"x\"",
          "\"" HOST "abc\""},
         {"\"-", "\"a..\"", "\"\"", "\"a.b.",
          "\"" HOST "abcd\""}},
        /* What comes out of a negation evaluates nothing. */
        {"{\"type\":\"array\",\"unevaluatedItems\":false,\"not\":{\"not\":{\"items\":{\"type\":"
         "\"integer\"}}}}",
         {"[]"},
         {"[1"}},
        {"{\"type\":\"object\",\"unevaluatedProperties\":false,\"not\":{\"not\":{\"properties\":"
         "{\"a\":{\"type\":\"integer\"}}}}}",
         {"{}"},
         {"{\"a"}},
        {"{\"type\":\"object\",\"unevaluatedProperties\":false,\"if\":{\"properties\":{\"a\":{\""
         "const\":1}},\"required\":[\"a\"]},\"else\":{\"properties\":{\"b\":{}}}}",
         {"{\"a\":1}", "{}", "{\"b\":1}"},
         {"{\"a\":2", "{\"a\":1,\"b"}},
        {"{\"type\":\"array\",\"not\":{\"contains\":{\"const\":1},\"minContains\":2}}",
         {"[]", "[1]", "[2,1]"},
         {"[1,1]", "[1,2,1]"}},
        {"{\"type\":\"array\",\"items\":{\"enum\":[1,2]},\"not\":{\"contains\":{\"const\":1},\"m"
         "axContains\":1}}",
         {"[]", "[2]", "[1,1]"},
         {"[1]", "[2,1]"}},
        {"{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{}},\"not\":{\"dependentRequired\""
         ":{\"a\":[\"b\"]}}}",
         {"{\"a\":1}"},
         {"{}", "{\"a\":1,\"b\":2}", "{\"b\":1}"}},
        {"{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\"}],\"contains\":{\"type\":\"i"
         "nteger\"}}",
         {"[\"a\",1]"},
         {"[\"a\"]", "[1"}},
        {"{\"format\":\"uuid4\"}",
         {"\"01234567-89ab-4def-8123-456789abcdef\""},
         {"\"01234567-89ab-5", "\"01234567-89ab-4def-7"}},
        {"{\"format\":\"relative-json-pointer\"}",
         {"\"0\"", "\"10/a/~0b\"", "\"1#\""},
         {"\"01", "\"/a", "\"1#/", "\"1/~2"}},
        {"{\"format\":\"uri-template\"}",
         {"\"https://x/{a}/{+b,c.d*}?{&e:3}\"", "\"\"", "\"%20é\""},
         {"\"{", "\"{}", "\"{a b", "\"a b", "\"{a:0", "\"%2g"}},
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
        {"{\"type\":\"array\",\"uniqueItems\":true}", "#/uniqueItems: supported for enums, constants, booleans and bounded integers of at most 16 values"},
        {"{\"properties\":{\"a/b\":{\"items\":{\"unknown\":3}}}}", "#/properties/a~1b/items/unknown: not supported"},
        {"{\"unevaluatedProperties\":{\"type\":\"string\"}}", "#/unevaluatedProperties: supported as true and false only"},
        {"{\"required\":[\"b\"],\"unevaluatedProperties\":false}",
         "#: nothing satisfies this schema (required, unevaluatedProperties)"},
        {"{\"type\":\"object\",\"minProperties\":2}", "#/minProperties: so many names that are not declared are not supported"},
        {"{\"type\":\"object\",\"maxProperties\":60000}", "#/maxProperties: above 4000 is not supported"},
        {"{\"pattern\":\"((a{90}){90}){3}\"}", "#/pattern: the automaton would have more than 20000 states"},
        {"{\"type\":\"text\"}", "#/type: must name string, number, integer, boolean, null, array or object"},
        {"{\"type\":\"string\",\"format\":\"glob\"}", "#/format: \"glob\" is not supported"},
        {"{\"pattern\":\"(a\"}", "#/pattern: a group without an end"},
        {"{\"pattern\":\"a)\"}", "#/pattern: a ) too many"},
        {"{\"pattern\":\"[a\"}", "#/pattern: a class without an end"},
        {"{\"pattern\":\"*a\"}", "#/pattern: nothing to repeat"},
        {"{\"pattern\":\"[[:alpha:]]\"}", "#/pattern: classes like [:alpha:] are not supported"},
        {"{\"pattern\":\"(?<=a)b\"}", "#/pattern: groups that begin with (? are supported for (?:, (?=, (?! and names only"},
        {"{\"enum\":[{\"a\":1},{}],\"unevaluatedProperties\":false}",
         "#/unevaluatedProperties: false is not supported for an enum or const of such values"},
        {"{\"properties\":{\"a\":{\"unevaluatedItems\":false}},\"const\":{\"a\":[1]}}",
         "#/properties/a/unevaluatedItems: false is not supported for an enum or const of such values"},
        {"{\"propertyNames\":{\"type\":\"number\"}}", "#/propertyNames: its type excludes strings, which all names are"},
        {"{\"pattern\":\"a\\\\p{L}\"}", "#/pattern: the escape \\p is not supported"},
        {"{\"pattern\":\"a(?=\\\\bb)\"}",
         "#/pattern: \\b in or behind a lookahead is supported behind a ^ only"},
        {"{\"pattern\":\"(a)\\\\1\"}", "#/pattern: the escape \\1 is not supported"},
        {"{\"pattern\":\"\\\\u00g0\"}",
         "#/pattern: \\u must be followed by four hexadecimal digits"},
        {"{\"pattern\":\"\\\\u{}\"}", "#/pattern: \\u{ must be followed by a hexadecimal number and }"},
        {"{\"pattern\":\"\\\\u{110000}\"}", "#/pattern: \\u{ must be followed by a hexadecimal number and }"},
        {"{\"pattern\":\"^a(?!^b)\"}", "#/pattern: ^ inside of a lookahead is supported behind a ^ only"},
        {"{\"pattern\":\"a$b\"}", "#: nothing satisfies this schema (pattern)"},
        {"{\"pattern\":\"a{3,2}\"}", "#/pattern: a count that goes backwards"},
        {"{\"pattern\":\"a{2\"}", "#/pattern: { is written \\{ when it is no count"},
        {"{\"pattern\":\"a{,2}\"}", "#/pattern: { is written \\{ when it is no count"},
        {"{\"pattern\":\"a{ 2}\"}", "#/pattern: { is written \\{ when it is no count"},
        {"{\"pattern\":\"a{3,-1}\"}", "#/pattern: { is written \\{ when it is no count"},
        {"{\"pattern\":\"a{99999999999}\"}", "#/pattern: counts above 10000 are not supported"},
        {"{\"pattern\":\"(a{10000}){10000}\"}", "#/pattern: it is too long"},
        {"{\"pattern\":\"[]a]\"}", "#/pattern: a class begins with \\], not with ]"},
        {"{\"pattern\":\"[^]\"}", "#/pattern: a class begins with \\], not with ]"},
        {"{\"pattern\":\"a**\"}", "#/pattern: nothing to repeat"},
        {"{\"pattern\":\"a++b\"}", "#/pattern: nothing to repeat"},
        {"{\"minLength\":-1}", "#/minLength: must be a whole number from 0"},
        {"{\"minLength\":9007199254740991}", "#/minLength: supported up to 1000000000"},
        {"{\"type\":\"array\",\"contains\":{\"type\":\"string\"},\"minContains\":0,\"unevaluatedItems\":false}",
         "#/unevaluatedItems: false beside contains is not supported"},
        {"{\"type\":\"string\",\"not\":{\"maxLength\":2147483647}}", "#: nothing satisfies this schema (type, not) together with not #/not (maxLength)"},
        {"{\"type\":\"array\",\"items\":[{}],\"prefixItems\":[{}]}", "#/items: must be no list beside prefixItems"},
        {"{\"minimum\":\"1\"}", "#/minimum: must be a number"},
        {"{\"type\":\"integer\",\"minimum\":2,\"maximum\":1}",
         "#: nothing satisfies this schema (type, minimum, maximum)"},
        {"{\"type\":\"integer\",\"minimum\":1.2,\"maximum\":1.8}",
         "#: nothing satisfies this schema (type, minimum, maximum)"},
        {"{\"type\":\"string\",\"enum\":[1]}", "#: nothing satisfies this schema (type, enum)"},
        {"{\"enum\":[1],\"minimum\":2}", "#: nothing satisfies this schema (enum, minimum)"},
        {"{\"not\":{}}", "#: nothing satisfies this schema (not) together with not #/not"},
        {"{\"allOf\":[{\"type\":\"object\",\"properties\":{\"a\":{}},\"required\":[\"a\"],\"additionalProperties\":false},"
         "{\"type\":\"object\",\"properties\":{\"b\":{}},\"required\":[\"b\"]}]}",
         "#: nothing satisfies this schema (allOf): \"b\" is required and not allowed"},
        {"{\"required\":[\"a\"],\"properties\":{\"a\":false}}",
         "#: nothing satisfies this schema (required, properties): \"a\" is required and not allowed"},
        {"{\"required\":[\"a\"],\"additionalProperties\":false}",
         "#: nothing satisfies this schema (required, additionalProperties): \"a\" is required and not allowed"},
        {"{\"type\":\"array\",\"minItems\":2,\"maxItems\":1}",
         "#: nothing satisfies this schema (type, minItems, maxItems)"},
        {"{\"type\":\"array\",\"items\":{\"$ref\":\"#\"},\"minItems\":1}",
         "#/items: nothing satisfies this schema ($ref)"},
        {"false", "#: nothing satisfies this schema"},
        {"{\"$ref\":\"#\"}", "#/$ref: leads to itself"},
        {"{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}", "#/anyOf/0/$ref: leads to itself"},
        {"{\"$ref\":\"#/$defs/a\"}", "#/$ref: must lead to a place in this document, by JSON pointer, $anchor or $id"},
        {"{\"$ref\":\"#/$defs/a/x\",\"$defs\":{\"a\":[{}]}}", "#/$ref: must lead to a place in this document, by JSON pointer, $anchor or $id"},
        {"{\"$ref\":\"#/$defs/a/4294967296\",\"$defs\":{\"a\":[{}]}}", "#/$ref: must lead to a place in this document, by JSON pointer, $anchor or $id"},
        {"{\"$ref\":\"http://x/y\"}", "#/$ref: must lead to a place in this document, by JSON pointer, $anchor or $id"},
        {"{\"anyOf\":[]}", "#/anyOf: must be a list that is not empty"},
        {"{\"required\":\"a\"}", "#/required: must be a list of names"},
        {"{\"required\":[1]}", "#/required: must be a list of names"},
        {"{\"anyOf\":[5],\"properties\":{}}", "#/anyOf/0: must be an object, true or false"},
        {"{\"properties\":[]}", "#/properties: must be an object"},
        {"{\"properties\":{\"a\":5}}", "#/properties/a: must be an object, true or false"},
        {"{\"type\":\"array\",\"items\":true,\"minItems\":1000000}", "#/minItems: the schema is too large"},
        {"{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"maxItems\":1000000}", "#/maxItems: the schema is too large"},
        {"{\"properties\":{\"x\":{\"properties\":{\"a\":{\"minimum\":2,\"maximum\":1}},\"required\":[\"a\"]},\"y\":false},\"required\":[\"x\"]}",
         "#/properties/x/properties/a: nothing satisfies this schema (minimum, maximum)"},
        {"{\"properties\":{\"x\":{\"minimum\":2}},\"required\":[\"x\"],\"allOf\":[{\"properties\":{\"x\":{\"maximum\":1}}}]}",
         "#/properties/x: nothing satisfies this schema (minimum) together with #/allOf/0/properties/x (maximum)"},
        {"{\"properties\":{\"a\":{\"anyOf\":[{\"enum\":[]},{\"minLength\":2,\"maxLength\":1}]}},\"required\":[\"a\"]}",
         "#/properties/a: nothing satisfies this schema (anyOf)"},
        {"{\"type\":\"array\",\"items\":{\"enum\":[]},\"minItems\":1}", "#/items: nothing satisfies this schema (enum)"},
        {"{\"items\":{\"multipleOf\":0.1234567}}", "#/items/multipleOf: its digits must make a number from 1 to 10000"},
        {"{\"properties\":{\"a\":{\"minimum\":1},\"b\":{\"minimum\":3,\"allOf\":[{\"multipleOf\":1234}]}}}",
         "#/properties/b/allOf/0/multipleOf: beside bounds it is supported up to 1000, its point left out, or for up to 5000 values"},
        {"{\"items\":{\"pattern\":\"a\\\\\"}}", "#/items/pattern: a \\ at the end"},
        {"{\"items\":{\"pattern\":\"\\\\xg\"}}", "#/items/pattern: \\x must be followed by two hexadecimal digits"},
        {"{\"not\":{\"properties\":{\"a\":{\"maxItems\":0.5}}}}", "#/not/properties/a/maxItems: must be a whole number from 0"},
        {"{\"not\":{\"properties\":{\"a\":{\"pattern\":\"(\"}}}}", "#/not/properties/a/pattern: a group without an end"},
        {"{\"properties\":{\"a\":{\"type\":\"string\",\"required\":true}}}",
         "#/properties/a/required: must be a list of names (true and false are of draft 3)"},
        {"{\"type\":\"array\",\"uniqueItems\":\"true\"}", "#/uniqueItems: must be true or false"},
        {"{\"type\":\"string\",\"nullable\":1}", "#/nullable: must be true or false"},
        {"{\"type\":\"string\",\"minItems\":\"1\"}", "#/minItems: must be a whole number from 0"},
        {"{\"minimum\":true}", "#/minimum: must be a number"},
        {"{\"type\":\"number\",\"exclusiveMaximum\":true}", "#/exclusiveMaximum: true needs a bound beside it"},
        {"{\"properties\":{\"a\":{\"$id\":\"a\",\"items\":{\"$ref\":\"#/$defs/b\"}}},\"$defs\":{\"b\":{}}}",
         "#/properties/a/items/$ref: must lead to a place in this document, by JSON pointer, $anchor or $id"},
        {"{\"properties\":{\"a\":{}},\"propertyNames\":{\"$ref\":\"#/$defs/a\"},"
         "\"$defs\":{\"a\":{\"allOf\":[{\"$ref\":\"#/$defs/a\"},{\"$ref\":\"#/$defs/a\"}]}}}", "#/$defs/a: nested too deep"},
        {"{\"type\":\"string\",\"if\":5}", "#/if: must be an object, true or false"},
        {"5", "#: must be an object, true or false"},
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
        "{\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"minimum\":2,\"maximum\":1},\"c\":{\"type\":\"array\",\"items\":{\"enum\":[]}}},"
        "\"additionalProperties\":{\"enum\":[]}}",
        "{\"items\":{\"enum\":[\"ab\",\"abc\",1,11,null,[1]]},\"uniqueItems\":true,\"minItems\":3}",
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

/* Returns the state after a text in which control tokens stand by their names, or -1. */
static int state_after(Schema *s, const char *text) {
    Ids ids = {0};
    tokenizer_encode(tokenizer, text, strlen(text), 1, &ids);
    int at = schema_begin(s);
    for (int k = 0; k < ids.n && at >= 0; k++) at = schema_next(s, at, ids.id[k]);
    ids_free(&ids);
    return at;
}

static int takes(Schema *s, const char *text) {
    int at = state_after(s, text);
    return at >= 0 && schema_may_end(s, at);
}

/* Calls in the model's own notation; they are read back by chat.c in tests/test_tools.py. */
static void test_calls(void **state) {
    (void)state;
    cJSON *tools = cJSON_Parse("[{\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"string\"},"
                               "\"l\":{\"type\":\"array\",\"items\":{\"enum\":[\"a\",1,true]}}},\"required\":[\"x\"]}}},"
                               "{\"function\":{\"name\":\"g\",\"parameters\":{}}},{\"function\":{\"name\":\"n\"}}]");
    static const struct { const char *text; int yes; } cases[] = {
        {"<|tool_call>call:f{x:<|\"|>any \" \\ \n text<|\"|>}<tool_call|>", 1},
        {"<|tool_call>call:f{l:[<|\"|>a<|\"|>,1,true],x:<|\"|><|\"|>}<tool_call|>", 1},
        {"<|tool_call>call:g{}<tool_call|>", 1},
        {"<|tool_call>call:g{a:1,B_2:{c:null}}<tool_call|><|tool_call>call:g{}<tool_call|>", 1},
        {"<|tool_call>call:n{}<tool_call|>", 1},
        {"<|tool_call>call:n{a:1", 0},
        {"<|tool_call>call:f{}<tool_call|>", 0},
        {"<|tool_call>call:f{x:\"a\"}<tool_call|>", 0},
        {"<|tool_call>call:f{ x", 0},
        {"<|tool_call>call:h{}<tool_call|>", 0},
        {"call:g{}", 0},
        {"<|tool_call>call:g{}", 0},
    };
    Error err;
    Schema *s = schema_calls(pieces, tools, NULL, 1, NULL, &err);
    if (!s) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(takes(s, cases[i].text), cases[i].yes);
    assert_false(schema_must_end(s, state_after(s, cases[2].text)));
    schema_free(s);
    s = schema_calls(pieces, tools, "g", 0, NULL, &err);
    assert_true(schema_must_end(s, state_after(s, cases[2].text)));     /* one call, not several */
    assert_false(takes(s, cases[3].text));
    schema_free(s);
    assert_null(schema_calls(pieces, tools, "none", 1, NULL, &err));
    cJSON_Delete(tools);
    static const char *const refused[][2] = {
        {"\"properties\":{\"a:b\":{\"type\":\"null\"}}", "properties: the name \"a:b\" cannot be written in a call"},
        {"\"properties\":{\")\":{}}", "properties: the name \")\" cannot be written in a call"},
        {"\"oneOf\":[{\"required\":[\"a=\"]},{\"required\":[\"q\"]}]", "properties: the name \"a=\" cannot be written in a call"},
        {"\"enum\":[{\"a\":1,\"l: b\":{}}]", "enum: the name \"l: b\" cannot be written in a call"},
        {"\"enum\":[{\"a\":\"\xff\x03\"}]", "enum: a string that is not UTF-8"},
    };
    for (int i = 0; i < 3; i++) {
        Buf list = {0};
        buf_printf(&list, "[{\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",%s}}}]", refused[i][0]);
        tools = cJSON_Parse(list.data);
        assert_null(schema_calls(pieces, tools, NULL, 1, NULL, &err));
        assert_non_null(strstr(err.text, refused[i][1]));
        cJSON_Delete(tools);
        buf_free(&list);
    }
}

static int takes_call(Schema *s, const char *name, const char *arguments) {
    Buf call = {0};
    buf_printf(&call, "<|tool_call>call:%s%s<tool_call|>", name, arguments);
    int yes = takes(s, call.data);
    buf_free(&call);
    return yes;
}

/* Makes the tools of a list that is written as [name, parameters, name, parameters, …]. */
static cJSON *make_tools(const char *list) {
    cJSON *tools = cJSON_CreateArray(), *pairs = cJSON_Parse(list);
    if (!pairs) fail_msg("not JSON: %s", list);
    for (const cJSON *at = pairs->child; at; at = at->next->next) {
        cJSON *tool = cJSON_CreateObject(), *function = cJSON_AddObjectToObject(tool, "function");
        cJSON_AddStringToObject(function, "name", at->valuestring);
        cJSON_AddItemToObject(function, "parameters", cJSON_Duplicate(at->next, 1));
        cJSON_AddItemToArray(tools, tool);
    }
    cJSON_Delete(pairs);
    return tools;
}

static Schema *compile_calls(const char *list, int several, Buf *uncompiled) {
    cJSON *tools = make_tools(list);
    Error err = {""};
    Schema *s = schema_calls(pieces, tools, NULL, several, uncompiled, &err);
    cJSON_Delete(tools);
    if (!s) fail_msg("%s: %s", list, err.text);
    return s;
}

#define STRING "{\"type\":\"string\"}"
#define INTEGER "{\"type\":\"integer\"}"
#define NULLS(b, a) "\"" b "\":{\"type\":\"null\"},\"" a "\":{\"type\":\"null\"}"
#define BOTH "\"properties\":{" NULLS("b", "A") "},\"required\":[\"b\",\"A\"]"

/* Calls have the members of objects sorted at every level, and optional ones in their places. */
static void test_order_in_calls(void **state) {
    (void)state;
    static const struct { const char *schema, *yes[8], *no[8]; } cases[] = {
        {"\"properties\":{\"path\":" STRING ",\"offset\":" INTEGER ",\"limit\":" INTEGER "},"
         "\"required\":[\"path\"]",
         {"{path:<|\"|>a<|\"|>}", "{limit:1,offset:2,path:<|\"|>a<|\"|>}",
          "{offset:2,path:<|\"|>a<|\"|>}", "{limit:1,path:<|\"|>a<|\"|>}"},
         {"{path:<|\"|>a<|\"|>,limit:1}", "{offset:2,limit:1,path:<|\"|>a<|\"|>}",
          "{limit:1,offset:2}", "{limit:1,limit:1,path:<|\"|>a<|\"|>}", "{}",
          "{path:<|\"|>a<|\"|>,}"}},
        /* Capitals count as small letters; equal names keep the order of the schema. */
        {"\"properties\":{" NULLS("b", "a") "," NULLS("B", "C") "}",
         {"{}", "{a:null,b:null,B:null,C:null}", "{a:null,C:null}", "{B:null}"},
         {"{B:null,b:null}", "{B:null,a:null}", "{C:null,b:null}"}},
        {"\"properties\":{" NULLS("B", "b") "," NULLS("c", "A") "}",
         {"{A:null,B:null,b:null,c:null}", "{}"}, {"{b:null,B:null}", "{c:null,A:null}"}},
        /* _ stands between the capitals and the small letters. */
        {"\"properties\":{" NULLS("AB", "a_") "," NULLS("ab1", "a") "}",
         {"{a:null,a_:null,AB:null,ab1:null}"}, {"{AB:null,a_:null}", "{a_:null,a:null}"}},
        {"\"properties\":{\"o\":{\"type\":\"object\"," BOTH "}}",
         {"{o:{A:null,b:null}}"}, {"{o:{b:null,A:null}}"}},
        {"\"properties\":{\"l\":{\"type\":\"array\",\"items\":{" BOTH "}}}",
         {"{l:[{A:null,b:null},{A:null,b:null}]}"}, {"{l:[{A:null,b:null},{b:null,A:null}]}"}},
        {"\"properties\":{\"l\":{\"type\":\"array\",\"prefixItems\":[{" BOTH "}]}}",
         {"{l:[{A:null,b:null}]}"}, {"{l:[{b:null,A:null}]}"}},
        {"\"properties\":{\"o\":{\"anyOf\":[{" BOTH "},{\"type\":\"null\"}]}}",
         {"{o:{A:null,b:null}}", "{o:null}"}, {"{o:{b:null,A:null}}"}},
        {"\"properties\":{\"z\":" INTEGER "},\"anyOf\":[{\"required\":[\"z\"]},{" BOTH "}]",
         {"{z:1}", "{A:null,b:null,z:1}", "{A:null,b:null}"},
         {"{b:null,A:null}", "{z:1,A:null,b:null}"}},
        {"\"allOf\":[{\"properties\":{" NULLS("d", "b") "}},"
         "{\"properties\":{" NULLS("c", "A") "}}]",
         {"{A:null,b:null,c:null,d:null}", "{A:null,d:null}"},
         {"{b:null,A:null}", "{d:null,c:null}"}},
        {"\"properties\":{\"t\":{\"$ref\":\"#/$defs/t\"}},\"$defs\":{\"t\":{\"properties\":{"
         "\"v\":" INTEGER ",\"next\":{\"$ref\":\"#/$defs/t\"}}}}",
         {"{t:{next:{next:{v:3},v:2},v:1}}", "{t:{next:{next:{}}}}"},
         {"{t:{v:1,next:{}}}", "{t:{next:{v:2,next:{}}}}"}},
        /* A name that only `required` has is sorted too; one that the schema lacks comes last. */
        {"\"properties\":{\"c\":" INTEGER "},\"required\":[\"D\",\"b\"]",
         {"{b:1,D:<|\"|><|\"|>}", "{b:null,c:2,D:3}"},
         {"{c:2,b:null,D:3}", "{D:3,b:null}", "{b:1,c:2}"}},
        {"\"properties\":{" NULLS("c", "b") "},\"additionalProperties\":" INTEGER,
         {"{b:null,c:null,a:1}", "{a:1,z:2,d:3}", "{c:null,a:1}"},
         {"{a:1,b:null}", "{c:null,b:null}"}},
        {"\"properties\":{\"k\":{\"const\":"
         "{\"b\":1,\"A\":{\"d\":[{\"f\":2,\"e\":3}],\"c\":null}}}}",
         {"{k:{A:{c:null,d:[{e:3,f:2}]},b:1}}"}, {"{k:{b:1,A:{d:[{f:2,e:3}],c:null}}}"}},
        {"\"properties\":{\"k\":{\"enum\":[0,{\"b\":1,\"a\":2}]}}",
         {"{k:{a:2,b:1}}", "{k:0}"}, {"{k:{b:1,a:2}}"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Buf list = {0};
        buf_printf(&list, "[\"f\",{\"type\":\"object\",%s}]", cases[i].schema);
        Schema *s = compile_calls(list.data, 0, NULL);
        for (const char *const *t = cases[i].yes; *t; t++)
            if (!takes_call(s, "f", *t)) fail_msg("%s: %s is refused", cases[i].schema, *t);
        for (const char *const *t = cases[i].no; *t; t++)
            if (takes_call(s, "f", *t)) fail_msg("%s: %s is accepted", cases[i].schema, *t);
        schema_free(s);
        buf_free(&list);
    }
}

/* JSON keeps the order of the schema. */
static void test_order_in_json(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"{" BOTH "}", "{\"b\":null,\"A\":null}", "{\"A\":null,\"b\":null}"},
        {"{\"const\":{\"b\":1,\"a\":2}}", "{\"b\":1,\"a\":2}", "{\"a\":2,\"b\":1}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err;
        int end;
        Schema *s = compile(cases[i][0], &err);
        if (!s) fail_msg("%s", err.text);
        assert_int_equal(accepted(s, cases[i][1], &end), strlen(cases[i][1]));
        assert_true(end);
        assert_true(accepted(s, cases[i][2], &end) < (int)strlen(cases[i][2]));
        schema_free(s);
    }
}

#define GOOD "\"good\",{\"properties\":{\"x\":" INTEGER "},\"required\":[\"x\"]}"

static void check_fallback(Schema *s, const char *what) {
    static const char *const cases[][4] = {     /* tool, arguments, are they taken? */
        {"good", "{x:1}", "yes"}, {"good", "{}"}, {"good", "{x:null}"}, {"good", "{x:1,y:2}"},
        {"bad", "{}", "yes"}, {"bad", "{a:{b:[1,<|\"|>t<|\"|>,null]},x:true}", "yes"},
        {"bad", "{x:<|\"|>{<|\"|>,a:-1.5e3}", "yes"}, {"bad", "{a:1"}, {"bad", "{a:[1}"},
        {"bad", "{a:}"}, {"bad", "{a:{}"}, {"bad", "{a:<|\"|>}"}, {"bad", "[1]"}, {"bad", "1"},
        {"bad", ""}, {"bad", "{}}"}, {"ba", "{}"}, {"bad2", "{}"}, {"other", "{}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (takes_call(s, cases[i][0], cases[i][1]) != !!cases[i][2])
            fail_msg("%s: %s%s", what, cases[i][0], cases[i][1]);
    static const char *const ends[] = {
        "<|tool_call>call:good{x:1}<tool_call|>", "<|tool_call>call:bad{a:1}<tool_call|>",
    };
    for (int i = 0; i < 2; i++) {
        assert_true(schema_must_end(s, state_after(s, ends[i])));
        assert_int_equal(schema_distance(s, state_after(s, ends[i])), 0);
    }
}

/* A tool whose parameters do not compile takes any object, and the other tool is as it was. */
static void test_fallback(void **state) {
    (void)state;
    static const struct { const char *parameters, *why; } cases[] = {
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"unknown\":{}}}}", "/properties/a/unknown: not supported"},
        {"{\"properties\":{\"a\":{\"anyOf\":[{\"items\":{\"unknown\":1}},{}],\"type\":\"array\"}}}",
         "/properties/a/anyOf/0/items/unknown: not supported"},
        {"{\"type\":\"string\"}", "/type: must be object"},
        {"{\"type\":5}", "/type: must be object"},
        {"[]", ": must be an object, true or false"},
        {"[{}]", ": must be an object, true or false"},
        {"\"object\"", ": must be an object, true or false"},
        {"{\"properties\":{\"a\":{\"$ref\":\"#/$defs/r\"}},"
         "\"$defs\":{\"r\":{\"$ref\":\"#/$defs/r\"}}}", "/$defs/r/$ref: leads to itself"},
        {"{\"properties\":{\"a\":false},\"required\":[\"a\"]}",
         ": nothing satisfies this schema (properties, required): \"a\" is required and not allowed"},
        {"{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}",
         "/properties/a: nothing satisfies this schema ($ref)"},
        {"{\"properties\":{\"a:b\":{}}}", "/properties: the name \"a:b\" cannot be written in a call"},
        {"{\"properties\":{\"a\":{\"enum\":[\"\xff\"]}}}",
         "/properties/a/enum: a string that is not UTF-8"},
        {"{\"properties\":{\"a\":{\"pattern\":\"(a{10000}){10000}\"}}}",
         "/properties/a/pattern: it is too long"},
    };
    Schema *plain = compile_calls("[\"bad\",{}," GOOD "]", 0, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int last = 0; last < 2; last++) {          /* the good tool comes last, or first */
            Buf list = {0}, said = {0}, why = {0}, line = {0};
            Error err = {""};
            buf_printf(&list, "[%s\"bad\",%s%s]", last ? "" : GOOD ",", cases[i].parameters,
                       last ? "," GOOD : "");
            Schema *s = compile_calls(list.data, 0, &said);
            buf_printf(&why, "parameters of bad: #%s", cases[i].why);
            buf_printf(&line, "the arguments of bad are not held to its schema: %s", why.data);
            assert_string_equal(said.data, line.data);
            check_fallback(s, cases[i].parameters);
            int behind = state_after(s, "<|tool_call>"), there = state_after(plain, "<|tool_call>");
            assert_int_equal(schema_distance(s, behind), schema_distance(plain, there));
            schema_free(s);
            cJSON *tools = make_tools(list.data);
            assert_null(schema_calls(pieces, tools, "bad", 0, NULL, &err));
            assert_string_equal(err.text, why.data);
            cJSON_Delete(tools);
            buf_free(&list);
            buf_free(&said);
            buf_free(&why);
            buf_free(&line);
        }
    }
    check_fallback(plain, "no parameters");
    schema_free(plain);
}

#define LONG_LIST "{\"properties\":{\"l\":{\"type\":\"array\",\"minItems\":400000}}}"

/* Each tool that does not compile has its line; one that is not asked for has none, and one without
 * parameters needs none. */
static void test_fallback_is_said(void **state) {
    (void)state;
    Buf said = {0};
    const char *several = "[\"f\",{\"odd\":1},\"g\",{},\"h\",null,\"i\",{\"type\":\"array\"},"
                          "\"j\",{\"odd\":2}]";
    Schema *s = compile_calls(several, 1, &said);
    assert_string_equal(said.data, "the arguments of f are not held to its schema: "
                        "parameters of f: #/odd: not supported; "
                        "the arguments of i are not held to its schema: "
                        "parameters of i: #/type: must be object; "
                        "the arguments of j are not held to its schema: "
                        "parameters of j: #/odd: not supported");
    const char *two = "<|tool_call>call:f{a:1}<tool_call|><|tool_call>call:j{b:2}<tool_call|>";
    assert_true(takes(s, two));
    assert_false(schema_must_end(s, state_after(s, two)));
    schema_free(s);
    said.len = 0;
    cJSON *tools = make_tools(several);
    Error err = {""};
    s = schema_calls(pieces, tools, "g", 0, &said, &err);
    assert_true(s && takes_call(s, "g", "{a:1}") && !takes_call(s, "f", "{a:1}"));
    assert_int_equal(said.len, 0);
    schema_free(s);
    assert_null(schema_calls(pieces, tools, "none", 0, &said, &err));
    assert_string_equal(err.text, "no such tool");
    assert_int_equal(said.len, 0);
    cJSON_Delete(tools);
    /* The program has room for two of these. */
    s = compile_calls("[\"f\"," LONG_LIST ",\"g\"," LONG_LIST ",\"h\"," LONG_LIST "]", 0, &said);
    assert_string_equal(said.data, "the arguments of h are not held to its schema: "
                        "parameters of h: #: the schema is too large");
    assert_true(takes_call(s, "h", "{l:[]}") && !takes_call(s, "g", "{l:[]}"));
    schema_free(s);
    buf_free(&said);
}

/* Names as tools have them are written as they are, also where one begins with another. */
static void test_tool_names(void **state) {
    (void)state;
    static const char *const names[] = {
        "google:mcp:text_generation:create-pdf-file", "google:mcp", "a.b-c", "a.b", "call:x",
        "/x/y@2", "gr\303\266\303\237e",
    };
    Buf list = {0};
    for (int i = 0; i < 7; i++)
        buf_printf(&list, "%c\"%s\",{\"properties\":{\"x\":{\"const\":%d}}}", i ? ',' : '[',
                   names[i], i);
    buf_puts(&list, "]");
    Schema *s = compile_calls(list.data, 0, NULL);
    for (int i = 0; i < 7; i++) {
        for (int k = 0; k < 7; k++) {
            char arguments[20];
            snprintf(arguments, sizeof arguments, "{x:%d}", k);
            assert_int_equal(takes_call(s, names[i], arguments), i == k);
        }
    }
    schema_free(s);
    buf_free(&list);
}

#define DRAWN \
    "[\"edit:file\",{\"properties\":{\"path\":{\"type\":\"string\",\"maxLength\":9}," \
    "\"Line\":" INTEGER ",\"edits\":{\"type\":\"array\",\"items\":{\"properties\":{" \
    "\"to\":" STRING ",\"from\":{\"pattern\":\"^[a-c]*$\"}},\"required\":[\"from\"]}}," \
    "\"mode\":{\"enum\":[{\"w\":1,\"R\":2},\"x\",null]}},\"required\":[\"path\"]}," \
    "\"tree\",{\"properties\":{\"v\":{\"type\":\"number\"},\"Next\":{\"$ref\":\"#\"}}," \
    "\"required\":[\"v\"]},\"bad\",{\"not\":1},\"none\",{\"additionalProperties\":false}]"

/* Are the members of every object in their order? */
static int in_order(const cJSON *v) {
    const cJSON *item;
    cJSON_ArrayForEach(item, v) {
        if (!in_order(item)) return 0;
        if (!item->string || !item->next) continue;
        if (strcasecmp(item->string, item->next->string) >= 0) return 0;
    }
    return 1;
}

/* Draws what stands between <|tool_call> and <tool_call|>, in `left` tokens, as call.h has it. */
static void draw_call(Schema *s, int left, Buf *text) {
    int at = state_after(s, "<|tool_call>"), quote = tokenizer_control(tokenizer, "<|\"|>");
    for (; !schema_must_end(s, at); left--) {
        assert_true(left > 0);
        int chosen = -1, n = 0;
        size_t len;
        const uint64_t *mask = schema_mask(s, at, left, NULL);
        for (int id = 0; id < n_vocab; id++)
            if (mask[id / 64] >> id % 64 & 1 && below(++n) == 0) chosen = id;
        at = schema_next(s, at, chosen);
        assert_true(at >= 0);
        if (schema_must_end(s, at)) continue;
        const char *bytes = tokenizer_text(tokenizer, chosen, &len);
        buf_add(text, chosen == quote ? (char[]){CALL_QUOTE} : bytes, chosen == quote ? 1 : len);
    }
}

/* Reads such a text, which needs no mending, and counts its tool in drawn[]. */
static void read_drawn(const Buf *text, int *drawn) {
    static const char *const names[] = {"edit:file", "tree", "none", "bad"};
    ToolCall call;
    Buf mends = {0};
    int which = 0;
    size_t used;
    const char *why = call_read(text->data, text->len, NULL, 1, &call, &mends, &used);
    if (why) fail_msg("%.*s: %s", (int)text->len, text->data, why);
    assert_false(mends.len || call.mended);
    while (which < 3 && strcmp(call.name, names[which])) which++;
    assert_string_equal(call.name, names[which]);
    cJSON *arguments = json_object(call.arguments, strlen(call.arguments), NULL);
    if (!arguments) fail_msg("no arguments: %s", call.arguments);
    if (which < 3 && !in_order(arguments)) fail_msg("out of order: %s", call.arguments);
    drawn[which]++;
    cJSON_Delete(arguments);
    free(call.name);
    free(call.arguments);
    buf_free(&mends);
}

/* Counts how few tokens lead from the state to the end.  It tries them all and stops after 30. */
static int least_tokens(Schema *s, int state) {
    int now[1000] = {state}, next[1000], n = 1;
    for (int d = 1; d <= 30; d++) {
        int m = 0;
        for (int i = 0; i < n * n_vocab; i++) {
            int to = schema_next(s, now[i / n_vocab], i % n_vocab), k = 0;
            if (to < 0) continue;
            if (schema_may_end(s, to)) return d;
            while (k < m && next[k] != to) k++;
            if (k == 1000) fail_msg("too many states");
            next[k] = to;
            if (k == m) m++;
        }
        memcpy(now, next, (size_t)m * sizeof *now);
        n = m;
    }
    return -1;
}

/* The distance of the state behind <|tool_call> is exact for these. */
static void test_distance_of_calls(void **state) {
    (void)state;
    static const char *const lists[] = {
        "[\"none\",{\"additionalProperties\":false}]",
        "[\"bad\",{\"not\":1}]",
        "[\"read_file\",{\"properties\":{\"path\":{\"enum\":[\"a\"]},\"limit\":{\"enum\":[1]}},"
        "\"required\":[\"path\"]}]",
        "[\"long_name_of_a_tool\",{}," GOOD "]",
    };
    for (int i = 0; i < 4; i++) {
        Buf said = {0};
        Schema *s = compile_calls(lists[i], 0, &said);
        int at = state_after(s, "<|tool_call>");
        assert_int_equal(schema_distance(s, at), least_tokens(s, at));
        schema_free(s);
        buf_free(&said);
    }
}

/* Whatever is drawn behind <|tool_call> is one call that can be read, in as few tokens as the state
 * asks for or in more. */
static void test_drawn_calls(void **state) {
    (void)state;
    Buf said = {0};
    int drawn[4] = {0};
    Schema *s = compile_calls(DRAWN, 0, &said);
    int least = schema_distance(s, state_after(s, "<|tool_call>"));
    assert_int_equal(schema_distance(s, schema_begin(s)), least + 1);
    for (int i = 0; i < 400; i++) {
        Buf text = {0};
        draw_call(s, least + (i % 4 ? below(60) : 0), &text);
        read_drawn(&text, drawn);
        buf_free(&text);
    }
    for (int i = 0; i < 4; i++) assert_true(drawn[i] > 5);
    schema_free(s);
    buf_free(&said);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted), cmocka_unit_test(test_refused), cmocka_unit_test(test_masks), cmocka_unit_test(test_long_values),
        cmocka_unit_test(test_calls), cmocka_unit_test(test_order_in_calls),
        cmocka_unit_test(test_order_in_json), cmocka_unit_test(test_fallback),
        cmocka_unit_test(test_fallback_is_said), cmocka_unit_test(test_tool_names),
        cmocka_unit_test(test_distance_of_calls), cmocka_unit_test(test_drawn_calls),
    };
    return cmocka_run_group_tests_name("schema", tests, open_pieces, close_pieces);
}
