/* test_safetensors.c - reading checkpoints' files, and the JSON scanner under it: what is right is read, what is wrong is
 * named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../json.h"
#include "../safetensors.h"

#include <cmocka.h>

static char dir[] = "/tmp/test_safetensors.XXXXXX";

static void write_file(const char *name, const void *bytes, size_t n) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

/* A safetensors file: the header's length (its own, or `length` where that is not negative), the header, n_data bytes. */
static void write_tensors(const char *name, const char *header, int64_t length, int n_data) {
    Buf b = {0};
    uint64_t n = length < 0 ? strlen(header) : (uint64_t)length;
    buf_add(&b, &n, 8);
    buf_puts(&b, header);
    for (int i = 0; i < n_data; i++) buf_add(&b, &(char){i}, 1);
    write_file(name, b.data, b.len);
    buf_free(&b);
}

static void clean(void) {
    const char *names[] = {"model.safetensors", "model.safetensors.index.json", "a.safetensors", "b.safetensors",
                           "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
}

#define TENSOR(name, dtype, shape, offsets) "\"" name "\": {\"dtype\": \"" dtype "\", \"shape\": [" shape "], \"data_offsets\": [" offsets "]}"

static void one_file(void **state) {
    (void)state;
    Error err;
    int n;
    clean();
    write_tensors("model.safetensors",
                  " {\"__metadata__\": {\"format\": \"pt\", \"x\": [1, {\"y\": null}]}, " TENSOR("b.weight", "BF16", "3, 2", "4, 16") ", "
                  TENSOR("scalar", "F32", "", "0, 4") ", " TENSOR("na\\u00efve\\n", "U8", "0", "16,16") ", "
                  TENSOR("odd", "F64", "1", "16, 24") "}   ", -1, 24);
    SafeTensors *st = safetensors_open(dir, &err);
    assert_non_null(st);
    safetensors_all(st, &n);
    assert_int_equal(n, 4);
    const Tensor *t = safetensors_find(st, "b.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_BF16);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->shape[0], 3);
    assert_int_equal(t->n_bytes, 12);
    assert_int_equal(t->data[0], 4);
    t = safetensors_find(st, "scalar");
    assert_int_equal(t->n_dims, 0);
    assert_int_equal(t->data[3], 3);
    assert_int_equal(safetensors_find(st, "odd")->dtype, DT_OTHER);
    assert_non_null(safetensors_find(st, "na\xc3\xafve\n"));
    assert_null(safetensors_find(st, "b.weigh"));
    safetensors_close(st);
}

static void shards(void **state) {
    (void)state;
    Error err;
    clean();
    write_tensors("a.safetensors", "{" TENSOR("one", "U8", "4", "0, 4") "}", -1, 4);
    write_tensors("b.safetensors", "{" TENSOR("two", "U8", "4", "0, 4") "}", -1, 4);
    const char *index = "{\"metadata\": {}, \"weight_map\": {\"one\": \"a.safetensors\", \"two\": \"b.safetensors\"}}";
    write_file("model.safetensors.index.json", index, strlen(index));
    SafeTensors *st = safetensors_open(dir, &err);
    assert_non_null(st);
    assert_non_null(strstr(safetensors_find(st, "two")->file, "b.safetensors"));
    safetensors_close(st);
}

/* Each broken file: the error names the file and says what is wrong with what. */
static void broken_files(void **state) {
    (void)state;
    struct { const char *header; int64_t length; int n_data; const char *says; } table[] = {
        {"", 0, 0, "expected '{'"},
        {"{}", 3, 0, "beyond the file"},
        {"{}", INT64_MAX, 0, "header length 9223372036854775807 is more than 100000000"},
        {"{}", -1, 8, "data_offsets cover 0 of 8 bytes"},
        {"{" TENSOR("t", "F32", "1", "4, 8") "}", -1, 8, "data_offsets cover 4 of 8 bytes"},
        {"{" TENSOR("t", "F32", "1", "0, 4") "}", -1, 8, "data_offsets cover 4 of 8 bytes"},
        {"{\"t\": {\"dtype\": \"U8\", \"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}", -1, 4, "tensor t: dtype, shape or data_offsets stand twice"},
        {"{\"t\": {\"dtype\": \"F32\", \"shape\": [9], \"shape\": [1], \"data_offsets\": [0, 4]}}", -1, 4, "stand twice"},
        {"{" TENSOR("a\\u0000b", "F32", "1", "0, 4") "}", -1, 4, "a NUL character in a tensor's name"},
        {"{", -1, 0, "not valid JSON"},
        {"[]", -1, 0, "expected '{'"},
        {"{} x", -1, 0, "text after the header"},
        {"{\"t\": 3}", -1, 0, "expected '{'"},
        {"{\"t\": {\"dtype\": 3}}", -1, 0, "expected '\"'"},
        {"{\"t\": {\"dtype\": \"F32\", \"shape\": [1]}}", -1, 4, "tensor t: data_offsets"},
        {"{\"t\": {\"dtype\": \"F32\", \"data_offsets\": [0, 4]}}", -1, 4, "tensor t: no shape"},
        {"{\"t\": {\"shape\": [1], \"data_offsets\": [0, 4]}}", -1, 4, "tensor t: no dtype"},
        {"{\"t\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4, 8]}}", -1, 8, "tensor t: data_offsets"},
        {"{" TENSOR("t", "F32", "1", "0, 8") "}", -1, 4, "tensor t: data_offsets [0, 8] lie outside"},
        {"{" TENSOR("t", "F32", "1", "8, 4") "}", -1, 8, "tensor t: data_offsets [8, 4] lie outside"},
        {"{" TENSOR("t", "F32", "1", "-4, 0") "}", -1, 8, "negative"},
        {"{" TENSOR("t", "F32", "1", "0, 99999999999999999999") "}", -1, 8, "too large"},
        {"{" TENSOR("t", "F32", "1", "0.5, 4") "}", -1, 8, "not a whole number"},
        {"{" TENSOR("t", "F32", "2", "0, 4") "}", -1, 8, "tensor t: shape and dtype need 8 bytes"},
        {"{" TENSOR("t", "F32", "4611686018427387904, 4", "0, 0") "}", -1, 8, "tensor t: shape overflows"},
        {"{" TENSOR("t", "U8", "4", "0, 4") ", " TENSOR("u", "U8", "4", "2, 6") "}", -1, 8, "tensors t and u overlap"},
        {"{" TENSOR("t", "U8", "4", "0, 4") ", " TENSOR("t", "U8", "4", "4, 8") "}", -1, 8, "tensor t stands twice"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        Error err = {""};
        clean();
        write_tensors("model.safetensors", table[i].header, table[i].length, table[i].n_data);
        assert_null(safetensors_open(dir, &err));
        if (!strstr(err.text, table[i].says) || !strstr(err.text, "model.safetensors"))
            fail_msg("case %d says \"%s\", should \"%s\"", (int)i, err.text, table[i].says);
    }
}

static void broken_indexes(void **state) {
    (void)state;
    struct { const char *index, *says; } table[] = {
        {"{", "index.json: not valid JSON"},
        {"{}", "index.json: no weight_map"},
        {"{\"weight_map\": {}}", "index.json: no weight_map"},
        {"{\"weight_map\": {\"one\": \"a.safetensors\"}, \"weight_map\": {}}", "a second weight_map"},
        {"{\"weight_map\": {\"one\": \"a.safetensors\"}} x", "text after the object"},
        {"{\"weight_map\": {\"one\": \"a.safetensors\\u0000\"}}", "weight_map.one is not the name of a file"},
        {"{\"weight_map\": {\"one\": 3}}", "weight_map.one is not the name of a file"},
        {"{\"weight_map\": {\"one\": \"../a.safetensors\"}}", "weight_map.one is not the name of a file"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        Error err = {""};
        clean();
        write_tensors("a.safetensors", "{" TENSOR("one", "U8", "4", "0, 4") "}", -1, 4);
        write_tensors("b.safetensors", "{" TENSOR("two", "U8", "4", "0, 4") "}", -1, 4);
        write_file("model.safetensors.index.json", table[i].index, strlen(table[i].index));
        assert_null(safetensors_open(dir, &err));
        if (!strstr(err.text, table[i].says)) fail_msg("case %d says \"%s\", should \"%s\"", (int)i, err.text, table[i].says);
    }
    Error err = {""};
    clean();
    assert_null(safetensors_open(dir, &err));
    assert_non_null(strstr(err.text, "neither model.safetensors nor an index"));
    write_file("model.safetensors", "short", 5);
    assert_null(safetensors_open(dir, &err));
    assert_non_null(strstr(err.text, "too short"));
}

/* An index that names what is not there, or lacks a shard: all files that lie there are taken, if
 * they are whole. */
static void stale_indexes(void **state) {
    (void)state;
    static const char one[] = "{" TENSOR("one", "U8", "4", "0, 4") "}";
    static const char two[] = "{" TENSOR("two", "U8", "4", "0, 4") "}";
    static const char a[] = "x-00001-of-00002.safetensors", b[] = "x-00002-of-00002.safetensors";
    static const char *const table[] = {
        "{\"weight_map\": {\"one\": \"c.safetensors\"}}",
        "{\"weight_map\": {\"one\": \"x-00001-of-00002.safetensors\", \"two\": \"x-00001-of-00002.safetensors\"}}",
        "{\"weight_map\": {\"one\": \"x-00002-of-00002.safetensors\", \"two\": \"x-00001-of-00002.safetensors\"}}",
        "{\"weight_map\": {\"one\": \"x-00001-of-00002.safetensors\"}}",
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        Error err = {""};
        clean();
        write_tensors(a, one, -1, 4);
        write_tensors(b, two, -1, 4);
        write_file("model.safetensors.index.json", table[i], strlen(table[i]));
        SafeTensors *st = safetensors_open(dir, &err);
        if (!st) fail_msg("case %d says \"%s\"", (int)i, err.text);
        assert_non_null(safetensors_find(st, "one"));
        assert_non_null(safetensors_find(st, "two"));
        assert_non_null(strstr(safetensors_warning(st), "taking all 2 *.safetensors"));
        safetensors_close(st);
        write_tensors(b, one, -1, 4);
        assert_null(safetensors_open(dir, &err));
        assert_non_null(strstr(err.text, "tensor one stands twice"));
    }
    Error err = {""};
    clean();
    write_tensors(b, two, -1, 4);
    assert_null(safetensors_open(dir, &err));
    assert_non_null(strstr(err.text, "x-00001-of-00002.safetensors is missing"));
}

static void json_strings(void **state) {
    (void)state;
    struct { const char *json, *is; } table[] = {
        {"\"plain\"", "plain"}, {"\"a\\n\\t\\\"\\\\\\/\\b\"", "a\n\t\"\\/\b"}, {"\"\\u00e9\\u20ac\"", "\xc3\xa9\xe2\x82\xac"},
        {"\"\\ud83d\\ude00\"", "\xf0\x9f\x98\x80"}, {"\"\\ud83d\"", "\xef\xbf\xbd"}, {"\"\\ud83d\\u0041\"", "\xef\xbf\xbd" "A"},
        {"\"\\x\"", NULL}, {"\"\\u12g4\"", NULL}, {"\"open", NULL}, {"\"open\\", NULL}, {"\"new\nline\"", NULL}, {"\"\\u12", NULL},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        Error err;
        Str out;
        Scan s = scan_open(table[i].json, strlen(table[i].json), "file", &err);
        assert_int_equal(scan_string(&s, &out), table[i].is ? 0 : -1);
        if (table[i].is) assert_true(str_is(out, table[i].is));
        else assert_non_null(strstr(err.text, "file: not valid JSON"));
        scan_close(&s);
    }
    Buf out = {0}, deep = {0};
    json_quote(&out, "\x01\"\\\n\xc3\xa9\xff\x7f", 8);
    assert_string_equal(out.data, "\"\\u0001\\\"\\\\\\n\xc3\xa9\xef\xbf\xbd\\u007f\"");
    for (int i = 0; i < 100000; i++) buf_puts(&deep, "[");
    Error err;
    Scan s = scan_open(deep.data, deep.len, "file", &err);
    assert_int_equal(scan_skip(&s), -1);
    assert_non_null(strstr(err.text, "nested too deep"));
    buf_free(&out);
    buf_free(&deep);
    scan_close(&s);
}

static void json_objects(void **state) {
    (void)state;
    struct { const char *text, *says; } table[] = {
        {" {\"a\": [1, \"\\\\u0000\"]} \n", NULL}, {"{", "not valid JSON at byte 1"}, {"[]", "not a JSON object"},
        {"{} {}", "text after the JSON value, at byte 3"}, {"{\"a\": \"\\u0000\"}", "a NUL character"}, {"", "it is empty"}, {" \n", "it is empty"},
        {"{\"a\": [-0.5e-3, 10, 0, 1E9]}", NULL}, {"{\"a\": [1, 01]}", "not valid JSON at byte 11"}, {"{\"a\": -00.5}", "not valid JSON at byte 8"},
        {"{\"a\": 1.}", "not valid JSON at byte 8"}, {"{\"a\": 1.e5}", "not valid JSON at byte 8"}, {"{\"a\": 1e}", "not valid JSON at byte 8"},
        {"{\"a\": \"\\u12g4\"}", "not valid JSON at byte 11"}, {"\xef\xbb\xbf{\"a\"}", "not valid JSON at byte 7"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        Error err = {""};
        cJSON *o = json_object(table[i].text, strlen(table[i].text), &err);
        assert_int_equal(o == NULL, table[i].says != NULL);
        if (table[i].says) assert_non_null(strstr(err.text, table[i].says));
        cJSON_Delete(o);
    }
}

static void json_digits(void **state) {
    (void)state;
    static const char text[] = "{\"1\":[-0,1.0,{\"\\\"2\":1E+400}],\"3\":\"4\",\"5\":12345678901234567890}";
    cJSON *v = json_value(text, sizeof text - 1, NULL);
    char *again = json_text(v);
    assert_string_equal(again, text);
    assert_string_equal(cJSON_GetObjectItem(v, "5")->valuestring, "12345678901234567890");
    free(again);
    cJSON_Delete(v);
    v = json_value("123", 2, NULL);             /* what stands behind it is not its own */
    assert_string_equal(v->valuestring, "12");
    cJSON_Delete(v);
}

static int setup(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    clean();
    return rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_file),       cmocka_unit_test(shards),       cmocka_unit_test(broken_files),
        cmocka_unit_test(broken_indexes), cmocka_unit_test(stale_indexes), cmocka_unit_test(json_strings), cmocka_unit_test(json_objects),
        cmocka_unit_test(json_digits),
    };
    return cmocka_run_group_tests_name("safetensors", tests, setup, teardown);
}
