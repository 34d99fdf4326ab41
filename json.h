/* json.h - reading and writing JSON.
 *
 * cJSON reads configurations, requests and schemas into trees.  The two big texts, a safetensors
 * header (47,000 tensors) and tokenizer.json (32 MB), are scanned once from front to back with the
 * scan_ functions, without a tree.  Answers are written line by line with json_quote. */
#ifndef JSON_H
#define JSON_H

#include <cjson/cJSON.h>

#include "util.h"

/* A text that is being scanned.  A function that takes something skips the white space before
 * it, and returns -1 with the error where the text holds something else. */
typedef struct {
    const char *start, *p, *end;        /* the text [start, end), the caller's; p: the next byte */
    const char *file;                   /* for error messages */
    Error *err;
    Buf text;                           /* the last string that held escapes, unescaped */
} Scan;

typedef struct {
    const char *s;                      /* not 0-terminated; may hold any byte */
    size_t n;
} Str;

Scan scan_open(const char *text, size_t n, const char *file, Error *err);
void scan_close(Scan *s);               /* frees what the scan allocated, not the text */

/* fail() with the file's name and the byte where the scan stands.  Returns -1. */
int scan_fail(Scan *s, const char *what);

/* The next character that is not white space, which it does not take; 0 at the end. */
char scan_peek(Scan *s);

/* Takes the character c.  Returns 0 or -1. */
int scan_take(Scan *s, char c);

/* Goes on in a list or an object whose opening bracket was taken.  Returns 1 when element i (from
 * 0) follows, 0 when `close` follows, which it takes, or -1.
 *     if (scan_take(s, '[')) return -1;
 *     for (int i = 0; (more = scan_next(s, i, ']')) > 0; i++) …one value… */
int scan_next(Scan *s, int i, char close);

/* Takes a string.  *out points into the text; for a string with escapes it points into s->text,
 * which the next string with escapes overwrites.  Lone surrogates (\ud800) become U+FFFD.
 * Returns 0 or -1. */
int scan_string(Scan *s, Str *out);

/* Takes a key and its colon.  Returns 0 or -1. */
int scan_key(Scan *s, Str *out);

/* Takes a whole number that fits an int64_t.  Returns 0 or -1. */
int scan_int(Scan *s, int64_t *out);

/* Takes true or false.  Returns 0 or -1. */
int scan_bool(Scan *s, int *out);

/* Takes any value, nested up to 1000 deep.  Returns 0 or -1. */
int scan_skip(Scan *s);

/* The length in bytes of the JSON number that s[0..n) begins with; 0: it begins with none. */
size_t json_number(const char *s, size_t n);

/* 1 when the string equals text. */
int str_is(Str s, const char *text);

/* Parses text[0..n), which must be one JSON value and nothing else, into a tree that the caller
 * frees with cJSON_Delete.  The tree may hold a million values.  The valuestring of a number is
 * its text, because a double does not tell 1 from 1.0 or 2^53 from 2^53 + 1.  Lone surrogates
 * (\ud800) become U+FFFD.  NULL with err, which does not name the file.  It names the byte,
 * counted from 0, that is not UTF-8 or at which the text stops being the beginning of any JSON, or
 * the end. */
cJSON *json_value(const char *text, size_t n, Error *err);

/* Whether a text of JSON has a lone surrogate, which json_value replaces. */
int json_has_lone_surrogate(const char *text, size_t n);

/* A copy of text[0..n), JSON, in which each NUL character (\u0000) is U+FFFD; the caller frees it.
 * No 0 follows it.  NULL: there is none. */
char *json_without_nul(const char *text, size_t n);

/* json_value of a text whose value must be an object without a key that stands twice in it
 * (json_key_twice). */
cJSON *json_object(const char *text, size_t n, Error *err);

/* A tree as JSON, with its numbers as they were written; the caller frees it with free. */
char *json_text(const cJSON *v);

/* A key that stands twice in an object of v, or NULL.  Readers differ in which of them counts. */
const char *json_key_twice(const cJSON *v);

/* A member of the object o, or NULL when the member is missing or null, or o is no object. */
const cJSON *json_field(const cJSON *o, const char *name);

/* The text of a member of o, or NULL when json_field finds none or it is no string. */
const char *json_string(const cJSON *o, const char *name);

/* What a JSON pointer like `#/$defs/NAME` names in the document `root`; NULL: nothing. */
const cJSON *json_pointer(const cJSON *root, const char *pointer);

/* Adds s[0..n) as a JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. */
void json_quote(Buf *out, const char *s, size_t n);
void json_quote_text(Buf *out, const char *s);          /* json_quote of a C string */

/* Adds the lines of text as a JSON list of strings, without the newline that ends each line. */
void json_quote_lines(Buf *out, const char *text);

#endif
