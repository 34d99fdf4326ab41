/* json.h - reading and writing JSON.
 *
 * cJSON reads configurations and requests.  The two big ones, a safetensors header (47,000 tensors) and
 * tokenizer.json (32 MB), are scanned once from front to back with these few functions.  Answers are written line
 * by line with json_quote. */
#ifndef JSON_H
#define JSON_H

#include <cjson/cJSON.h>

#include "util.h"

typedef struct {
    const char *start, *p, *end;        /* the text [start, end) and the place in it; the caller owns it */
    const char *file;                   /* for error messages */
    Error *err;
    Buf text;                           /* strings that hold escapes are written out here */
} Scan;

typedef struct {
    const char *s;                      /* not 0-terminated; may hold any byte */
    size_t n;
} Str;

Scan scan_open(const char *text, size_t n, const char *file, Error *err);
void scan_close(Scan *s);               /* frees what the scan allocated, not the text */

/* fail() with the file's name and the byte where the scan stands.  Returns -1. */
int scan_fail(Scan *s, const char *what);

/* The next character that is no white space, or 0 at the end; does not move past it. */
char scan_peek(Scan *s);

/* Moves past the character c.  Returns 0, or -1 with the error set when something else stands there. */
int scan_take(Scan *s, char c);

/* For a list or an object, after its opening bracket was taken: 1 when another element follows (number i,
 * from 0), 0 when it is closed by `close`, which is taken, -1 on error.
 *     if (scan_take(s, '[')) return -1;
 *     for (int i = 0; (more = scan_next(s, i, ']')) > 0; i++) …one value… */
int scan_next(Scan *s, int i, char close);

/* A string.  out points into the text, or, when it holds escapes, into s->text, which the next string with
 * escapes overwrites.  Lone surrogates (\ud800) become U+FFFD.  Returns 0 or -1. */
int scan_string(Scan *s, Str *out);

/* A key and its colon. */
int scan_key(Scan *s, Str *out);

/* A whole number that fits.  Returns 0 or -1. */
int scan_int(Scan *s, int64_t *out);

/* true or false. */
int scan_bool(Scan *s, int *out);

/* Any value, nested up to 1000 deep. */
int scan_skip(Scan *s);

/* How many of the n bytes of s the number at their start takes, 0: there is none. */
size_t json_number(const char *s, size_t n);

/* 1 when the string equals text. */
int str_is(Str s, const char *text);

/* text[0..n), which must be one JSON value, of a million values at most, and nothing else, as a tree that the caller frees with
 * cJSON_Delete.  The valuestring of a number is its text, as doubles do not tell 1 from 1.0 and 2^53 from 2^53 + 1.  Lone
 * surrogates (\ud800) become U+FFFD.  NULL with err, which does not name the file; bytes in it count from 0 and name the
 * first with which no JSON could go on, or the end. */
cJSON *json_value(const char *text, size_t n, Error *err);

/* The same, where the value must be an object. */
cJSON *json_object(const char *text, size_t n, Error *err);

/* The way back, numbers as they were written; the caller frees it. */
char *json_text(const cJSON *v);

/* A member of an object, or NULL when it is missing or null (or o is no object). */
const cJSON *json_field(const cJSON *o, const char *name);

/* What a JSON pointer names in the document `root`, as `#/$defs/NAME`; NULL: nothing. */
const cJSON *json_pointer(const cJSON *root, const char *pointer);

/* Adds s[0..n) as a JSON string, quotes included; bytes that are not UTF-8 become U+FFFD. */
void json_quote(Buf *out, const char *s, size_t n);

/* Adds the lines of text, each of which ends with a newline, as a JSON list of strings. */
void json_quote_lines(Buf *out, const char *text);

#endif
