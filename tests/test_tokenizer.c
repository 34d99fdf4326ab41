/* test_tokenizer.c - both file formats, against ids worked out by hand, those of SentencePiece for the demo
 * model, and those published for the real vocabulary.
 *
 * Cases: tests/fixtures/demo_tokenizer.jsonl; and of the reference folder, where there is one
 * (GEMMA4_REFERENCE), tokenizer_cases.jsonl with the vocabulary tokenizer.json.xz. */
#include "../json.h"                    /* before cmocka.h, whose macro fail() would hide util.h's function */
#include "../tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEN(a) ((int)(sizeof(a) / sizeof *(a)))

static char dir[] = "/tmp/gemma4-test-XXXXXX";     /* holds the tokenizer under test */

static const char *in_dir(const char *name) {
    static char path[200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void write_file(const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(in_dir(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static int make_dir(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int empty_dir(void **state) {
    (void)state;
    unlink(in_dir("tokenizer.json"));
    unlink(in_dir("tokenizer.model"));
    return 0;
}

static int remove_dir(void **state) {
    empty_dir(state);
    return rmdir(dir);
}

static Tokenizer *open_dir(const char *from) {
    Error err;
    Tokenizer *t = tokenizer_open(from, &err);
    if (!t) fail_msg("%s", err.text);
    return t;
}

/* ---- what any tokenizer must do ---- */

/* Is the text of the ids the text, with spaces for U+2581? */
static int decodes_to(const Tokenizer *t, const Ids *ids, const char *text, size_t n) {
    Buf out = {0}, spaced = {0};
    for (int i = 0; i < ids->n; i++) {
        size_t len;
        const char *s = tokenizer_text(t, ids->id[i], &len);
        buf_add(&out, s, len);
    }
    for (size_t i = 0; i < n; i++) {
        int is_space = n - i >= 3 && !memcmp(text + i, "\xe2\x96\x81", 3);
        buf_add(&spaced, is_space ? " " : text + i, 1);
        if (is_space) i += 2;
    }
    int same = out.len == spaced.len && (!out.len || !memcmp(out.data, spaced.data, out.len));
    buf_free(&out);
    buf_free(&spaced);
    return same;
}

static void check_round_trip(const Tokenizer *t, const char *text, size_t n, int controls) {
    Ids ids = {0};
    char *exact = xmalloc(n);           /* its own block, so that reading past the end shows */
    if (n) memcpy(exact, text, n);
    tokenizer_encode(t, exact, n, controls, &ids);
    for (int i = 0; i < ids.n; i++) {
        assert_in_range(ids.id[i], 0, tokenizer_n_vocab(t) - 1);
        if (!controls) assert_false(tokenizer_is_control(t, ids.id[i]));
    }
    if (!decodes_to(t, &ids, text, n)) fail_msg("%zu bytes '%.*s' do not come back", n, (int)n, text);
    free(exact);
    ids_free(&ids);
}

/* Bytes of all kinds: random, letters, parts of characters, what control tokens are made of. */
static void check_random_round_trips(const Tokenizer *t) {
    static const char *const likely[] = {"\xe2\x96\x81", "\xe2", "\x96\x81", " ", "  ", "\n", "\xf0\x9f\x99", "\x82", "\xc3", "\xa9",
                                         "\xed\xa0\x80", "\xc0\xaf", "\xf4\x90", "<", ">", "|", "<|turn>", "<bos>", "the", "a", "ab"};
    uint64_t random = 1;
    for (int round = 0; round < 3000; round++) {
        Buf text = {0};
        for (int i = round % 61; i > 0; i--) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const char *s = likely[(random >> 40) % LEN(likely)], byte = random >> 56;
            if (random >> 33 & 1) buf_add(&text, &byte, 1);
            else buf_puts(&text, s);
        }
        check_round_trip(t, text.data, text.len, round & 1);
        buf_free(&text);
    }
}

/* A million bytes of one kind, which a quadratic algorithm would not finish. */
static int count_million(const Tokenizer *t, const char *unit) {
    Buf text = {0};
    Ids ids = {0};
    while (text.len < 1000000) buf_puts(&text, unit);
    tokenizer_encode(t, text.data, text.len, 1, &ids);
    assert_true(decodes_to(t, &ids, text.data, text.len));
    int n = ids.n;
    buf_free(&text);
    ids_free(&ids);
    return n;
}

static void check_ids(const Tokenizer *t, const char *text, size_t n, int controls, const int *expected, int n_expected) {
    Ids ids = {0};
    Buf got = {0};
    tokenizer_encode(t, text, n, controls, &ids);
    for (int i = 0; i < ids.n; i++) buf_printf(&got, " %d", ids.id[i]);
    if (ids.n != n_expected || (ids.n && memcmp(ids.id, expected, ids.n * sizeof *expected)))
        fail_msg("'%.*s' (controls %d):%s", (int)n, text, controls, got.data ? got.data : " nothing");
    buf_free(&got);
    ids_free(&ids);
}

/* Lines of {"text": …, "ids": […]}, encoded with control tokens. */
static int check_cases(const Tokenizer *t, const char *path) {
    Buf file = {0};
    Error err = {0};
    Str key, text = {0};
    int n = 0, more;
    int64_t id;
    if (read_file(path, &file, &err)) fail_msg("%s", err.text);
    Scan s = scan_open(file.data, file.len, path, &err);
    for (; scan_peek(&s); n++) {
        Ids ids = {0};
        Buf copy = {0};
        if (scan_take(&s, '{')) fail_msg("%s", err.text);
        for (int i = 0; (more = scan_next(&s, i, '}')) > 0; i++) {
            if (scan_key(&s, &key)) fail_msg("%s", err.text);
            if (str_is(key, "text")) {
                if (scan_string(&s, &text)) fail_msg("%s", err.text);
                buf_add(&copy, text.s, text.n);
            } else if (str_is(key, "ids")) {
                if (scan_take(&s, '[')) fail_msg("%s", err.text);
                for (int k = 0; (more = scan_next(&s, k, ']')) > 0; k++) {
                    if (scan_int(&s, &id)) fail_msg("%s", err.text);
                    ids_add(&ids, id);
                }
                if (more < 0) fail_msg("%s", err.text);
            } else if (scan_skip(&s)) fail_msg("%s", err.text);
        }
        if (more < 0) fail_msg("%s", err.text);
        check_ids(t, copy.data, copy.len, 1, ids.id, ids.n);
        check_round_trip(t, copy.data, copy.len, 0);
        ids_free(&ids);
        buf_free(&copy);
    }
    scan_close(&s);
    buf_free(&file);
    return n;
}

/* ---- tokenizer.json ---- */

#define ADDED                                                                                                       \
    "[{\"id\":2,\"content\":\"<c>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,"  \
    "\"special\":true},{\"id\":401,\"content\":\"<c>ab\",\"special\":true,\"normalized\":false},"                   \
    "{\"id\":399,\"content\":\"<f f>\",\"normalized\":true}]"
#define MERGES "[[\"a\",\"b\"],[\"▁\",\"ab\"],[\"\\u2581\",\"a\"], [\"x\" , \"x\"],[\"xx\",\"xx\"],[\"\\\"\",\"\\\"\"]]"

/* Bytes have the ids 10 … 265. */
static void small_json(Buf *b) {
    b->len = 0;
    buf_puts(b, "{\"version\":\"1.0\",\"truncation\":null,\"added_tokens\":" ADDED ",\n  \"normalizer\": {\"type\":\"Replace\","
                "\"pattern\":{\"String\":\" \"},\"content\":\"▁\"},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{}, 1.5e3, []]},"
                "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"fuse_unk\":true,\"byte_fallback\":true,\"ignore_merges\":false,"
                "\"end_of_word_suffix\":null,\"vocab\":{\"<unk>\":0,\"<c>\":2,");
    for (int i = 0; i < 256; i++) buf_printf(b, "\"<0x%02X>\":%d,", i, 10 + i);
    buf_puts(b, "\"▁\":266,\"a\":267,\"b\":268,\"c\":269,\"x\":270,\"\\u00e9\":271,\"ab\":272,\"▁a\":273,\"▁ab\":274,\"xx\":275,"
                "\"xxxx\":276,\"<\":277,\">\":278,\"\\\"\":279,\"\\\"\\\"\":280},\"merges\":" MERGES "}}");
}

/* Replaces the first `from` in b. */
static void edit(Buf *b, const char *from, const char *to) {
    char *at = strstr(b->data, from);
    if (!at) fail_msg("no %s to replace", from);
    Buf whole = {0};
    buf_add(&whole, b->data, at - b->data);
    buf_puts(&whole, to);
    buf_puts(&whole, at + strlen(from));
    buf_free(b);
    *b = whole;
}

static const struct {
    const char *text;
    int n;                              /* bytes, when there is a 0 among them */
    int controls;
    int n_ids, ids[10];
} small_cases[] = {
    {"", 0, 1, 0, {0}},
    {"ab ab", 0, 1, 2, {272, 274}},
    {"a b", 0, 1, 3, {267, 266, 268}},
    {" a", 0, 1, 1, {273}},
    {"▁a", 0, 1, 1, {273}},
    {"xxxxxxx", 0, 1, 3, {276, 275, 270}},
    {"aab", 0, 1, 2, {267, 272}},
    {"é", 0, 1, 1, {271}},
    {"è", 0, 1, 2, {10 + 0xc3, 10 + 0xa8}},
    {"\xff", 0, 1, 1, {10 + 0xff}},
    {"a\xc3", 0, 1, 2, {267, 10 + 0xc3}},
    {"a\0b", 3, 1, 3, {267, 10, 268}},
    {"\"\"\"", 0, 1, 2, {280, 279}},
    {"<unk>", 0, 1, 5, {277, 10 + 'u', 10 + 'n', 10 + 'k', 278}},
    {"<0x41>", 0, 1, 6, {277, 10 + '0', 270, 10 + '4', 10 + '1', 278}},
    {"<c>", 0, 1, 1, {2}},
    {"<c>", 0, 0, 3, {277, 269, 278}},
    {"a<c>b", 0, 1, 3, {267, 2, 268}},
    {"<<c><c>ab<c>a<c", 0, 1, 7, {277, 2, 401, 2, 267, 277, 269}},
    {"<f f>", 0, 1, 1, {399}},
    {"a<f▁f>b", 0, 1, 3, {267, 399, 268}},
    {"<f f>", 0, 0, 5, {277, 10 + 'f', 266, 10 + 'f', 278}},
};

static void check_small_cases(const Tokenizer *t) {
    for (int i = 0; i < LEN(small_cases); i++) {
        const char *text = small_cases[i].text;
        size_t n = small_cases[i].n ? (size_t)small_cases[i].n : strlen(text);
        check_ids(t, text, n, small_cases[i].controls, small_cases[i].ids, small_cases[i].n_ids);
    }
}

static void test_json(void **state) {
    (void)state;
    Buf json = {0};
    small_json(&json);
    write_file("tokenizer.json", json.data, json.len);
    Tokenizer *t = open_dir(dir);
    check_small_cases(t);
    check_random_round_trips(t);
    assert_int_equal(count_million(t, "x"), 250000);
    assert_int_equal(count_million(t, " "), 1000000);
    assert_int_equal(count_million(t, "ab<c>"), 200001);
    tokenizer_free(t);
    buf_free(&json);
}

static void test_lookups(void **state) {
    (void)state;
    static const struct {
        int id;
        const char *text;
        size_t n;
        int control;
    } cases[] = {{0, "<unk>", 5, 0}, {1, "", 0, 0}, {2, "<c>", 3, 1}, {10, "\0", 1, 0}, {10 + 'A', "A", 1, 0}, {265, "\xff", 1, 0},
                 {266, " ", 1, 0}, {274, " ab", 3, 0}, {300, "", 0, 0}, {399, "<f f>", 5, 1}, {400, "", 0, 0}, {401, "<c>ab", 5, 1},
                 {402, "", 0, 0}, {-1, "", 0, 0}, {1 << 30, "", 0, 0}};
    Buf json = {0};
    small_json(&json);
    write_file("tokenizer.json", json.data, json.len);
    Tokenizer *t = open_dir(dir);
    assert_int_equal(tokenizer_n_vocab(t), 402);
    for (int i = 0; i < LEN(cases); i++) {
        size_t n;
        const char *text = tokenizer_text(t, cases[i].id, &n);
        assert_int_equal(n, cases[i].n);
        assert_memory_equal(text, cases[i].text, n);
        assert_int_equal(tokenizer_is_control(t, cases[i].id), cases[i].control);
    }
    assert_int_equal(tokenizer_control(t, "<c>"), 2);
    assert_int_equal(tokenizer_control(t, "<c>ab"), 401);
    assert_int_equal(tokenizer_control(t, "<c>a"), -1);
    assert_int_equal(tokenizer_control(t, "<c"), -1);
    assert_int_equal(tokenizer_control(t, "a"), -1);
    assert_int_equal(tokenizer_control(t, ""), -1);
    tokenizer_free(t);
    buf_free(&json);
}

/* Other spellings of the same file. */
static void test_json_dialects(void **state) {
    (void)state;
    static const char *const edits[][4] = {
        {MERGES, "[\"a b\",\"▁ ab\",\"\\u2581 a\",\"x x\",\"xx xx\",\"\\\" \\\"\"]"},
        {",\"merges\":" MERGES, "", "\"type\":\"BPE\"", "\"merges\":" MERGES ",\"type\":\"BPE\""},
        {"\"added_tokens\":" ADDED ",", "", "\"]]}", "\"]]},\"added_tokens\":" ADDED},
        {"\"type\":\"BPE\",", "", "\"merges\"", "\"type\":\"BPE\",\"merges\""},
        {"\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"\""},
        {"\"a\":267", "\"\\u0061\":267", "\"▁\":266", "\"\\u2581\":266"},
        {"[\"a\",\"b\"]", "[\"a\",\"b\"],[\"c\",\"c\"]", "\"xx\":275", "\"xx\":275,\"cc\":300,\"\xf0\x9f\x99\x82\":1"},
        {"\"<0x00>\"", "  \"<0x00>\" \n\t", "\"model\"", "\"more\":[[{\"a\":[]}],null,-1.5E+3,\"\\ud83d\\ude42\\ud83d\"],\"model\""},
    };
    for (int i = 0; i < LEN(edits); i++) {
        Buf json = {0};
        small_json(&json);
        for (int k = 0; k < 4 && edits[i][k]; k += 2) edit(&json, edits[i][k], edits[i][k + 1]);
        write_file("tokenizer.json", json.data, json.len);
        Tokenizer *t = open_dir(dir);
        check_small_cases(t);
        tokenizer_free(t);
        buf_free(&json);
    }
}

/* The line names the file and says what is expected of it. */
static void check_error(const char *file, const char *expected) {
    Error err = {.text = ""};
    Tokenizer *t = tokenizer_open(dir, &err);
    if (t) fail_msg("opened, without the error '%s'", expected);
    if (!strstr(err.text, file) || !strstr(err.text, expected)) fail_msg("'%s' does not say '%s'", err.text, expected);
    if (strchr(err.text, '\n')) fail_msg("'%s' is more than one line", err.text);
    assert_null(tokenizer_open(dir, NULL));
}

static void test_broken_json(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *error;
    } cases[] = {
        {"\"type\":\"BPE\"", "\"type\":\"Unigram\"", "model.type is 'Unigram', not BPE"},
        {"\"type\":\"BPE\",", "", "model.type missing"},
        {"\"type\":\"BPE\"", "\"type\":5", "model.type"},
        {"\"byte_fallback\":true", "\"byte_fallback\":false", "model.byte_fallback is not true"},
        {"\"byte_fallback\":true", "\"byte_fallback\":1", "model.byte_fallback"},
        {"\"byte_fallback\":true,", "", "model.byte_fallback is not true"},
        {"\"ignore_merges\":false", "\"ignore_merges\":true", "model.ignore_merges is not supported"},
        {"\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", "model.end_of_word_suffix is not supported"},
        {"\"dropout\":null", "\"continuing_subword_prefix\":\"##\"", "model.continuing_subword_prefix is not supported"},
        {"\"vocab\"", "\"vocabulary\"", "model.vocab missing"},
        {",\"merges\"", ",\"vocab\":{},\"merges\"", "model.vocab appears twice"},
        {"\"]]}}", "\"]]},\"model\":{}}", "model appears twice"},
        {"\"model\"", "\"modle\"", "model missing"},
        {"\"model\":{", "\"model\":[", "model"},
        {"\"normalizer\"", "\"normaliser\"", "normalizer missing"},
        {"\"Replace\"", "\"Prepend\"", "normalizer is not Replace"},
        {"\"String\":\" \"", "\"Regex\":\" \"", "normalizer is not Replace"},
        {"\"content\":\"▁\"", "\"content\":\"_\"", "normalizer is not Replace"},
        {"{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}", "null", "normalizer is not Replace"},
        {"\"<0x41>\"", "\"<0x4g>\"", "model.vocab: no byte piece <0x41>"},
        {"\"▁\":266,", "\"_\":266,", "model.merges: number 1: ' ' is not in model.vocab"},
        {"\"a\":267", "\"a\":266", "model.vocab: id 266 of 'a' is taken"},
        {"\"a\":267", "\"b\":267", "model.vocab: 'b' appears twice"},
        {"\"a\":267", "\"a\":-1", "model.vocab: id -1 of 'a' out of range"},
        {"\"a\":267", "\"a\":16777216", "model.vocab: id 16777216 of 'a' out of range"},
        {"\"a\":267", "\"a\":1e3", "model.vocab"},
        {"\"a\":267", "\"a\":\"267\"", "model.vocab"},
        {"\"a\":267", "\"a\":99999999999999999999", "model.vocab"},
        {"\"a\":267", "\"\":267", "model.vocab: empty string with id 267"},
        {"\"a\":267", "\"a:267", "model.vocab"},
        {"[\"a\",\"b\"]", "[\"a\",\"d\"]", "model.merges: number 0: 'd' is not in model.vocab"},
        {"[\"xx\",\"xx\"]", "[\"\",\"xx\"]", "model.merges: number 4: '' is not in model.vocab"},
        {"[\"xx\",\"xx\"]", "[\"xx\",\"a\"]", "model.merges: number 4: 'xxa' is not in model.vocab"},
        {"[\"xx\",\"xx\"]", "[\"xx\"]", "model.merges"},
        {"[\"xx\",\"xx\"]", "[\"x\",\"x\",\"xx\"]", "model.merges"},
        {"[\"xx\",\"xx\"]", "\"xxxx\"", "model.merges: 'xxxx' is not two strings"},
        {"[\"xx\",\"xx\"]", "\"x x xx\"", "model.merges: number 4: 'x xx' is not in model.vocab"},
        {"[\"xx\",\"xx\"]", "7", "model.merges"},
        {"[\"xx\",\"xx\"]", "[\"xx\",\"x\\x\"]", "model.merges"},
        {"\"merges\":[", "\"merges\":{", "model.merges"},
        {"\"id\":2,", "\"id\":0,", "added_tokens: '<c>' has id 0, which is '<unk>' in model.vocab"},
        {"\"id\":2,", "\"id\":3,", "added_tokens: '<c>' has another id in model.vocab"},
        {"\"id\":2,", "", "added_tokens: id of '<c>' missing or out of range"},
        {"\"id\":2,", "\"id\":16777216,", "added_tokens: id of '<c>' missing or out of range"},
        {"\"id\":2,", "\"id\":-3,", "added_tokens: id of '<c>' missing or out of range"},
        {"\"id\":2,", "\"id\":null,", "added_tokens"},
        {"\"content\":\"<c>\",", "", "added_tokens: number 0 has no content"},
        {"\"content\":\"<c>\"", "\"content\":\"\"", "added_tokens: number 0 has no content"},
        {"\"content\":\"<c>\"", "\"content\":{}", "added_tokens"},
        {"\"id\":2,\"content\":\"<c>\"", "\"id\":402,\"content\":\"<c>ab\"", "added_tokens: '<c>ab' appears twice"},
        {"\"single_word\":false", "\"single_word\":true", "added_tokens[].single_word is not supported"},
        {"\"lstrip\":false", "\"lstrip\":true", "added_tokens[].lstrip is not supported"},
        {"\"rstrip\":false", "\"rstrip\":true", "added_tokens[].rstrip is not supported"},
        {"\"added_tokens\":[", "\"added_tokens\":[7,", "added_tokens"},
        {"{\"version\"", "[\"version\"", "top level"},
        {"\"]]}}", "\"]]}}}", "more text after the end"},
        {"\"version\":\"1.0\"", "\"version\":tru", "top level"},
    };
    for (int i = 0; i < LEN(cases); i++) {
        Buf json = {0};
        small_json(&json);
        edit(&json, cases[i].from, cases[i].to);
        write_file("tokenizer.json", json.data, json.len);
        check_error("/tokenizer.json: ", cases[i].error);
        buf_free(&json);
    }
    Buf json = {0};
    small_json(&json);
    for (size_t n = 0; n < json.len; n += n < 700 || n + 700 > json.len ? 1 : 37) {
        write_file("tokenizer.json", json.data, n);
        check_error("/tokenizer.json: ", "");
    }
    buf_free(&json);
}

/* A vocabulary where nothing can stand for a space. */
static void test_no_space(void **state) {
    (void)state;
    Buf json = {0};
    small_json(&json);
    edit(&json, "\"▁\":266,", "");
    edit(&json, "[\"▁\",\"ab\"],[\"\\u2581\",\"a\"],", "");
    write_file("tokenizer.json", json.data, json.len);
    check_error("/tokenizer.json: ", "model.vocab: no piece U+2581");
    buf_free(&json);
}

/* ---- tokenizer.model ---- */

enum { T_NORMAL = 1, T_UNKNOWN, T_CONTROL, T_USER, T_UNUSED, T_BYTE };

/* A message as field `number` of b; lengths here fit two bytes of varint. */
static void add_message(Buf *b, int number, const Buf *message) {
    buf_printf(b, "%c%c%c", number << 3 | 2, (int)(message->len & 127) | 128, (int)(message->len >> 7));
    buf_add(b, message->data, message->len);
}

static void add_number(Buf *b, int number, int value) {
    char bytes[3] = {(number << 3 & 127) | (number > 15 ? 128 : 0), number >> 4, value};
    if (number <= 15) bytes[1] = value;
    buf_add(b, bytes, number > 15 ? 3 : 2);
}

static void add_piece(Buf *b, const char *piece, float score, int type) {
    Buf m = {0};
    buf_printf(&m, "\x0a%c%s", (int)strlen(piece), piece);
    buf_puts(&m, "\x15");
    buf_add(&m, &score, 4);
    if (type != T_NORMAL) add_number(&m, 3, type);
    add_message(b, 1, &m);
    buf_free(&m);
}

/* Pieces that the small model has besides the bytes, whose ids are 0 … 255. */
static const struct {
    const char *piece;
    float score;
    int type;
} small_pieces[] = {
    {"<unk>", 0, T_UNKNOWN}, {"<c>", 0, T_CONTROL}, {"<u>", 0, T_USER}, {"xy", 0, T_USER}, {"xyz", 0, T_USER}, {"▁▁", 0, T_USER},
    {"▁", -20, T_NORMAL}, {"a", -21, T_NORMAL}, {"b", -22, T_NORMAL}, {"c", -23, T_NORMAL}, {"x", -24, T_NORMAL}, {"é", -25, T_NORMAL},
    {"ab", -1, T_NORMAL}, {"▁ab", -2, T_NORMAL}, {"▁a", -3, T_NORMAL}, {"bb", -4, T_NORMAL}, {"ba", -4, T_NORMAL},
    {"cc", -5, T_UNUSED}, {"ccc", -6, T_NORMAL}, {"<", -26, T_NORMAL}, {">", -27, T_NORMAL}, {"xè", 1.5f, T_NORMAL}, {"e", -30, T_UNUSED},
};
enum { UNK = 256, C, U, XY, XYZ, SPACES, SP, A, B, CC_, X, E_ACUTE, AB, SP_AB, SP_A, BB, BA, CC, CCC, LT, GT, XE, UNUSED_E };

typedef struct {
    int model_type, byte_fallback, charsmap, dummy_prefix, remove_extra, escape, no_trainer, no_normalizer;
} Specs;
static const Specs good_specs = {2, 1, 0, 0, 0, 1, 0, 0};

static void add_specs(Buf *b, Specs s) {
    Buf trainer = {0}, normalizer = {0};
    add_number(&trainer, 3, s.model_type);
    add_number(&trainer, 35, s.byte_fallback);
    buf_puts(&normalizer, "\x0a\x08identity");
    if (s.charsmap) buf_puts(&normalizer, "\x12\x03xyz");
    add_number(&normalizer, 3, s.dummy_prefix);
    add_number(&normalizer, 4, s.remove_extra);
    add_number(&normalizer, 5, s.escape);
    if (!s.no_trainer) add_message(b, 2, &trainer);
    if (!s.no_normalizer) add_message(b, 3, &normalizer);
    buf_free(&trainer);
    buf_free(&normalizer);
}

/* The small model, with piece number `changed` replaced, or left out when `piece` is NULL. */
static void small_model(Buf *b, int changed, const char *piece, float score, int type) {
    for (int id = 0; id < 256 + LEN(small_pieces); id++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", id & 255);
        if (id == changed && piece) add_piece(b, piece, score, type);
        else if (id != changed && id < 256) add_piece(b, name, 0, T_BYTE);
        else if (id != changed) add_piece(b, small_pieces[id - 256].piece, small_pieces[id - 256].score, small_pieces[id - 256].type);
    }
}

static void test_model(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int controls, n_ids, ids[10];
    } cases[] = {
        {"ab ab", 1, 2, {AB, SP_AB}},
        {" a", 1, 1, {SP_A}},
        {"aaab", 1, 3, {A, A, AB}},
        {"bbb", 1, 2, {BB, B}},                     /* the leftmost of equals */
        {"bba", 1, 2, {BB, A}},
        {"b a b", 1, 4, {B, SP_A, SP, B}},
        {"xyzxyxa", 1, 4, {XYZ, XY, X, A}},         /* user-defined: longest first, never joined */
        {"   a", 1, 2, {SPACES, SP_A}},
        {"  ab", 1, 2, {SPACES, AB}},
        {"cc", 1, 2, {CC_, CC_}},                   /* unused: taken apart again */
        {"ccc", 1, 1, {CCC}},
        {"cccc", 1, 4, {CC_, CC_, CC_, CC_}},
        {"e", 1, 1, {'e'}},
        {"è", 1, 2, {0xc3, 0xa8}},
        {"xè", 1, 1, {XE}},                         /* a piece of which a part is no piece */
        {"\xe9", 1, 1, {0xe9}},
        {"<c><u>", 1, 2, {C, U}},
        {"<c><u>", 0, 6, {LT, CC_, GT, LT, 'u', GT}},
        {"<unk>", 1, 1, {UNK}},
        {"xy<0x41>", 0, 7, {XY, LT, '0', X, '4', '1', GT}},
    };
    Buf model = {0};
    small_model(&model, -1, NULL, 0, 0);
    add_specs(&model, good_specs);
    write_file("tokenizer.model", model.data, model.len);
    Tokenizer *t = open_dir(dir);
    assert_int_equal(tokenizer_n_vocab(t), 256 + LEN(small_pieces));
    for (int i = 0; i < LEN(cases); i++)
        check_ids(t, cases[i].text, strlen(cases[i].text), cases[i].controls, cases[i].ids, cases[i].n_ids);
    assert_int_equal(tokenizer_control(t, "<c>"), C);
    assert_int_equal(tokenizer_control(t, "<u>"), U);
    assert_int_equal(tokenizer_control(t, "xyz"), -1);
    assert_true(tokenizer_is_control(t, C) && tokenizer_is_control(t, U) && !tokenizer_is_control(t, XYZ));
    check_random_round_trips(t);
    assert_int_equal(count_million(t, "b"), 500000);
    assert_int_equal(count_million(t, "x"), 1000000);
    tokenizer_free(t);
    buf_free(&model);
}

static void test_broken_model(void **state) {
    (void)state;
    static const struct {
        Specs specs;
        int changed;                    /* that piece becomes this one */
        const char *piece;
        float score;
        int type;
        const char *error;
    } cases[] = {
        {{1, 1, 0, 0, 0, 1, 0, 0}, -1, NULL, 0, 0, "trainer_spec.model_type is 1, not 2 (BPE)"},
        {{2, 0, 0, 0, 0, 1, 0, 0}, -1, NULL, 0, 0, "trainer_spec.byte_fallback is not true"},
        {{2, 1, 1, 0, 0, 1, 0, 0}, -1, NULL, 0, 0, "normalizer_spec.precompiled_charsmap is not empty"},
        {{2, 1, 0, 1, 0, 1, 0, 0}, -1, NULL, 0, 0, "normalizer_spec.add_dummy_prefix is not false"},
        {{2, 1, 0, 0, 1, 1, 0, 0}, -1, NULL, 0, 0, "normalizer_spec.remove_extra_whitespaces is not false"},
        {{2, 1, 0, 0, 0, 0, 0, 0}, -1, NULL, 0, 0, "normalizer_spec.escape_whitespaces is not true"},
        {{2, 1, 0, 0, 0, 1, 1, 0}, -1, NULL, 0, 0, "trainer_spec.model_type is 1, not 2 (BPE)"},
        {{2, 1, 0, 0, 0, 1, 0, 1}, -1, NULL, 0, 0, "normalizer_spec.add_dummy_prefix is not false"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, 65, NULL, 0, 0, "pieces: no byte piece <0x41>"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, 65, "<0x4>", 0, T_BYTE, "pieces: number 65: '<0x4>' names no byte"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, A, "", 0, T_NORMAL, "pieces: empty string with id 263"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, A, "b", 0, T_NORMAL, "pieces: 'b' appears twice"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, A, "xyz", 0, T_USER, "pieces: 'xyz' appears twice"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, A, "a", 0, 7, "pieces: number 263: type 7 unknown"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, A, "a", __builtin_nanf(""), T_NORMAL, "pieces: number 263: score is not a number"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, SP, "_", 0, T_NORMAL, "pieces: no piece U+2581"},
        {{2, 1, 0, 0, 0, 1, 0, 0}, SP, "▁", 0, T_UNUSED, "pieces: no piece U+2581"},
    };
    for (int i = 0; i < LEN(cases); i++) {
        Buf model = {0};
        small_model(&model, cases[i].changed, cases[i].piece, cases[i].score, cases[i].type);
        add_specs(&model, cases[i].specs);
        write_file("tokenizer.model", model.data, model.len);
        check_error("/tokenizer.model: ", cases[i].error);
        buf_free(&model);
    }
    Buf model = {0};
    small_model(&model, -1, NULL, 0, 0);
    add_specs(&model, good_specs);
    for (size_t n = 0; n < model.len; n++) {
        write_file("tokenizer.model", model.data, n);
        check_error("/tokenizer.model: ", "");
    }
    buf_free(&model);
}

/* ---- which file ---- */

static void test_which_file(void **state) {
    (void)state;
    Buf json = {0}, model = {0};
    small_json(&json);
    small_model(&model, -1, NULL, 0, 0);
    add_specs(&model, good_specs);
    check_error(dir, "neither tokenizer.json nor tokenizer.model");
    write_file("tokenizer.model", model.data, model.len);
    Tokenizer *t = open_dir(dir);
    assert_int_equal(tokenizer_control(t, "<c>"), C);
    tokenizer_free(t);
    write_file("tokenizer.json", json.data, json.len);
    t = open_dir(dir);
    assert_int_equal(tokenizer_control(t, "<c>"), 2);
    tokenizer_free(t);
    write_file("tokenizer.json", "", 0);
    check_error("/tokenizer.json: ", "empty");
    unlink(in_dir("tokenizer.json"));
    assert_int_equal(mkdir(in_dir("tokenizer.json"), 0700), 0);
    check_error("/tokenizer.json: ", "");
    rmdir(in_dir("tokenizer.json"));
    buf_free(&json);
    buf_free(&model);
}

/* ---- the demo model and the real vocabulary ---- */

static void check_demo(const Tokenizer *t) {
    assert_true(check_cases(t, "tests/fixtures/demo_tokenizer.jsonl") > 0);
    check_random_round_trips(t);
    count_million(t, "x");
    count_million(t, "the quick brown 狐 ");
}

static void test_demo_json(void **state) {
    (void)state;
    Tokenizer *t = open_dir("demo");
    check_demo(t);
    tokenizer_free(t);
}

static void test_demo_model(void **state) {
    (void)state;
    Buf model = {0};
    Error err;
    if (read_file("demo/tokenizer.model", &model, &err)) fail_msg("%s", err.text);
    write_file("tokenizer.model", model.data, model.len);
    Tokenizer *t = open_dir(dir);
    check_demo(t);
    tokenizer_free(t);
    buf_free(&model);
}

static void test_real_vocabulary(void **state) {
    (void)state;
    const char *reference = getenv("GEMMA4_REFERENCE");
    if (!reference) reference = "../shared/reference";
    char cases[500], command[1200];
    snprintf(cases, sizeof cases, "%s/tokenizer_cases.jsonl", reference);
    if (access(cases, R_OK)) skip();
    snprintf(command, sizeof command, "xz -dc '%s/tokenizer.json.xz' > '%s'", reference, in_dir("tokenizer.json"));
    assert_int_equal(system(command), 0);
    Tokenizer *t = open_dir(dir);
    assert_int_equal(tokenizer_n_vocab(t), 262144);
    assert_int_equal(tokenizer_control(t, "<|turn>"), 105);
    assert_true(check_cases(t, cases) > 0);
    check_random_round_trips(t);
    assert_int_equal(count_million(t, "x"), 125000);
    assert_int_equal(count_million(t, " "), 32259);
    tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_json, empty_dir),
        cmocka_unit_test_teardown(test_lookups, empty_dir),
        cmocka_unit_test_teardown(test_json_dialects, empty_dir),
        cmocka_unit_test_teardown(test_broken_json, empty_dir),
        cmocka_unit_test_teardown(test_no_space, empty_dir),
        cmocka_unit_test_teardown(test_model, empty_dir),
        cmocka_unit_test_teardown(test_broken_model, empty_dir),
        cmocka_unit_test_teardown(test_which_file, empty_dir),
        cmocka_unit_test_teardown(test_demo_json, empty_dir),
        cmocka_unit_test_teardown(test_demo_model, empty_dir),
        cmocka_unit_test_teardown(test_real_vocabulary, empty_dir),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
