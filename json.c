/* json.c - reading JSON, with and without a tree, and writing it.  See json.h. */
#include "json.h"

#include <stdlib.h>
#include <string.h>

/* Limit of a tree's values.  cJSON takes some hundred bytes for a value, and the INPUT_LIMIT of
 * 64 MB has room for 32 million values: 3 GB.  No request or schema comes near the limit. */
#define MAX_VALUES 1000000

Scan scan_open(const char *text, size_t n, const char *file, Error *err) {
    return (Scan){.start = text, .p = text, .end = text + n, .file = file, .err = err};
}

void scan_close(Scan *s) { buf_free(&s->text); }

int scan_fail(Scan *s, const char *what) {
    return fail(s->err, "%s: %s at byte %zu", s->file, what, (size_t)(s->p - s->start));
}

static int is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

char scan_peek(Scan *s) {
    while (s->p < s->end && is_space(*s->p)) s->p++;
    return s->p < s->end ? *s->p : 0;
}

int scan_take(Scan *s, char c) {
    if (scan_peek(s) != c) {
        char what[] = "not valid JSON: expected ' '";
        what[sizeof what - 3] = c;
        return scan_fail(s, what);
    }
    s->p++;
    return 0;
}

int scan_next(Scan *s, int i, char close) {
    if (scan_peek(s) == close) {
        s->p++;
        return 0;
    }
    if (i > 0 && scan_take(s, ',')) return -1;
    return 1;
}

/* Takes four hexadecimal digits. */
static int hex4(Scan *s, unsigned *out) {
    *out = 0;
    for (int i = 0; i < 4; i++, s->p++) {
        int digit = s->p < s->end ? hex_digit(*s->p) : -1;
        if (digit < 0) return scan_fail(s, "not valid JSON: broken \\u");
        *out = *out << 4 | (unsigned)digit;
    }
    return 0;
}

/* Takes the digits behind a \u, and the second escape of a surrogate pair; adds the character to
 * s->text. */
static int unicode_escape(Scan *s) {
    uint8_t u[4];
    unsigned c, low;
    if (hex4(s, &c)) return -1;
    if (c >= 0xd800 && c < 0xdc00 && s->end - s->p >= 6 && s->p[0] == '\\' && s->p[1] == 'u') {
        const char *back = s->p;
        s->p += 2;
        if (hex4(s, &low)) return -1;
        if (low >= 0xdc00 && low < 0xe000) c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        else s->p = back;               /* no pair: the second escape is a character of its own */
    }
    if (c >= 0xd800 && c < 0xe000) c = 0xfffd;
    buf_add(&s->text, u, utf8_encode(c, u));
    return 0;
}

/* Takes what follows a backslash, and adds the character to s->text. */
static int escape(Scan *s) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char c = *s->p++;
    const char *at = c ? strchr(letters, c) : NULL;
    if (at) buf_add(&s->text, meanings + (at - letters), 1);
    else if (c != 'u') return s->p--, scan_fail(s, "not valid JSON: unknown escape");
    else return unicode_escape(s);
    return 0;
}

int scan_string(Scan *s, Str *out) {
    if (scan_take(s, '"')) return -1;
    const char *from = s->p;
    while (s->p < s->end && *s->p != '"' && *s->p != '\\' && (unsigned char)*s->p >= 32) s->p++;
    if (s->p < s->end && *s->p == '"') {            /* the usual case: no escape, no copy */
        *out = (Str){from, (size_t)(s->p++ - from)};
        return 0;
    }
    s->text.len = 0;
    buf_add(&s->text, from, (size_t)(s->p - from));
    while (s->p < s->end && *s->p != '"') {
        if ((unsigned char)*s->p < 32)
            return scan_fail(s, "not valid JSON: control character in a string");
        if (*s->p != '\\') {
            buf_add(&s->text, s->p++, 1);
            continue;
        }
        if (++s->p == s->end) break;
        if (escape(s)) return -1;
    }
    if (s->p == s->end) return scan_fail(s, "not valid JSON: string without an end");
    s->p++;
    *out = (Str){s->text.data, s->text.len};
    return 0;
}

int scan_key(Scan *s, Str *out) { return scan_string(s, out) || scan_take(s, ':') ? -1 : 0; }

int scan_int(Scan *s, int64_t *out) {
    int negative = scan_peek(s) == '-';
    if (negative) s->p++;
    if (s->p == s->end || *s->p < '0' || *s->p > '9') return scan_fail(s, "not a whole number");
    int64_t v = 0;
    for (; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *s->p - '0', &v))
            return scan_fail(s, "number too large");
    if (s->p < s->end && (*s->p == '.' || *s->p == 'e' || *s->p == 'E'))
        return scan_fail(s, "not a whole number");
    *out = negative ? -v : v;
    return 0;
}

static int take_word(Scan *s, const char *word) {
    for (; *word; word++, s->p++)
        if (s->p == s->end || *s->p != *word) return scan_fail(s, "not valid JSON");
    return 0;
}

int scan_bool(Scan *s, int *out) {
    *out = scan_peek(s) == 't';
    return take_word(s, *out ? "true" : "false");
}

/* How many digits s[0..n) begins with. */
static size_t digits(const char *s, size_t n) {
    size_t i = 0;
    while (i < n && s[i] >= '0' && s[i] <= '9') i++;
    return i;
}

/* How many of the bytes s[0..n) are a number (*ok 1), or the beginning of a number that the next
 * byte spoils (*ok 0): it is no digit where a digit must stand, or is a digit behind a leading
 * 0. */
static size_t number_part(const char *s, size_t n, int *ok) {
    size_t i = n && s[0] == '-', whole = digits(s + i, n - i), more = 1;
    *ok = whole && (s[i] != '0' || whole == 1);
    if (!*ok) return i + (whole > 0);
    i += whole;
    if (i < n && s[i] == '.') i += 1 + (more = digits(s + i + 1, n - i - 1));
    if (more && i < n && (s[i] | 32) == 'e') {
        if (++i < n && (s[i] == '+' || s[i] == '-')) i++;
        i += more = digits(s + i, n - i);
    }
    *ok = more > 0;
    return i;
}

size_t json_number(const char *s, size_t n) {
    int ok;
    size_t taken = number_part(s, n, &ok);
    return ok ? taken : 0;
}

static int skip(Scan *s, int depth) {
    char c = scan_peek(s);
    Str str;
    int more = 0;
    if (depth > 1000) return scan_fail(s, "JSON nested too deep");
    if (c == '"') return scan_string(s, &str);
    if (c == '{' || c == '[') {
        s->p++;
        for (int i = 0; (more = scan_next(s, i, c == '{' ? '}' : ']')) > 0; i++)
            if ((c == '{' && scan_key(s, &str)) || skip(s, depth + 1)) return -1;
        return more;
    }
    if (c == 't') return take_word(s, "true");
    if (c == 'f') return take_word(s, "false");
    if (c == 'n') return take_word(s, "null");
    int ok;
    s->p += number_part(s->p, (size_t)(s->end - s->p), &ok);
    return ok ? 0 : scan_fail(s, "not valid JSON");
}

int scan_skip(Scan *s) { return skip(s, 0); }

int str_is(Str s, const char *text) { return is_text(s.s, s.n, text); }

/* The code of the \uXXXX escape at p, or -1 where there is none. */
static int escaped_unit(const char *p, const char *end) {
    int code = 0;
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return -1;
    for (int i = 2; i < 6; i++) {
        int digit = hex_digit(p[i]);
        if (digit < 0) return -1;
        code = code << 4 | digit;
    }
    return code;
}

/* A copy of the text, which the caller frees, with \ufffd in place of every escape that is half of
 * a surrogate pair, or, where `nul` is 1, in place of every \u0000; NULL where the text holds none.
 * JavaScript's JSON.stringify writes half a pair for an emoji that was cut in two, and cJSON would
 * refuse the whole text for it. */
static char *without_escapes(const char *text, size_t n, int nul) {
    const char *end = text + n;
    char *copy = NULL;
    for (const char *p = text; p < end; p++) {
        int code = escaped_unit(p, end), is_high = code >= 0xd800 && code < 0xdc00;
        int next = is_high ? escaped_unit(p + 6, end) : -1;
        if (*p != '\\') continue;
        if (is_high && next >= 0xdc00 && next < 0xe000) p += 11;        /* a whole pair: 12 bytes */
        else if (nul ? !code : code >= 0xd800 && code < 0xe000) {
            if (!copy) copy = memcpy(xmalloc(n + 1), text, n);
            memcpy(copy + (p - text), "\\ufffd", 6);
            p += 5;
        } else p++;                     /* a \ hides the byte behind it, which may be a \ itself */
    }
    return copy;
}

char *json_without_nul(const char *text, size_t n) { return without_escapes(text, n, 1); }

/* Stores each number's text as its valuestring, for v, its children and its later siblings.  The
 * numbers stand in [*p, end) in the order of the tree; *p moves behind the last one.  Returns -1
 * with *p at a number that cJSON takes although it is not JSON, as 01 or `1.`. */
static int keep_digits(const char **p, const char *end, cJSON *v) {
    for (; v; v = v->next) {
        if (keep_digits(p, end, v->child)) return -1;
        if (!cJSON_IsNumber(v)) continue;
        /* The next digit or minus outside of a string is the number: the text was parsed before. */
        for (; **p != '-' && (**p < '0' || **p > '9'); ++*p)
            if (**p == '"')
                while (*++*p != '"') *p += **p == '\\';
        size_t n = json_number(*p, (size_t)(end - *p));
        if (!n) return -1;
        v->valuestring = xcalloc((int64_t)n + 1, 1);
        memcpy(v->valuestring, *p, n);
        *p += n;
    }
    return 0;
}

/* Looks at a text before cJSON does.  Returns how many values it holds at most.  *nul: whether it
 * holds a NUL character, as a byte or as \u0000, at which cJSON would end a string in silence.
 * *broken: whether it holds a \u without four digits, which cJSON would accept. */
static size_t count_values(const char *text, size_t n, int *nul, int *broken) {
    size_t count = 1;
    int in_string = 0;
    *broken = 0;
    *nul = memchr(text, 0, n) != NULL;
    for (const char *p = text, *end = text + n; p < end; p++) {
        if (*p == '"') in_string = !in_string;
        else if (*p == '\\') {
            *nul |= end - p > 5 && !memcmp(p, "\\u0000", 6);
            *broken |= end - p > 1 && p[1] == 'u' && escaped_unit(p, end) < 0;
            p++;
        } else count += !in_string && (*p == ',' || *p == '[' || *p == '{');
    }
    return count;
}

/* Notes that text[0..n), which was refused, is not valid JSON, and at which byte (json_value). */
static void say_where(const char *text, size_t n, Error *err) {
    Error ours;
    /* cJSON passes over a byte order mark; so does this scan. */
    size_t mark = n >= 3 && !memcmp(text, "\xef\xbb\xbf", 3) ? 3 : 0;
    Scan s = scan_open(text + mark, n - mark, "", &ours);
    /* Depth is the only reason for which cJSON refuses valid JSON; its limit is scan_skip's. */
    if (!scan_skip(&s) || strstr(ours.text, "too deep")) fail(err, "JSON nested too deep");
    else fail(err, "not valid JSON at byte %zu", mark + (size_t)(s.p - s.start));
    scan_close(&s);
}

static cJSON *parse_value(const char *text, size_t n, Error *err) {
    const char *end = text, *number = text;
    int nul, broken;
    if (count_values(text, n, &nul, &broken) > MAX_VALUES) {
        fail(err, "JSON of more than %d values", MAX_VALUES);
        return NULL;
    }
    cJSON *v = broken ? NULL : cJSON_ParseWithLengthOpts(text, n, &end, 0);
    if (!v) {
        say_where(text, n, err);
        return NULL;
    }
    while (end < text + n && is_space(*end)) end++;
    if (nul) fail(err, "a NUL character");
    else if (end < text + n)
        fail(err, "text after the JSON value, at byte %zu", (size_t)(end - text));
    else if (keep_digits(&number, end, v)) say_where(text, n, err);
    else return v;
    cJSON_Delete(v);
    return NULL;
}

int json_has_lone_surrogate(const char *text, size_t n) {
    char *mended = without_escapes(text, n, 0);
    free(mended);
    return mended != NULL;
}

cJSON *json_value(const char *text, size_t n, Error *err) {
    size_t good = utf8_until(text, n);
    if (good < n) {
        fail(err, "not UTF-8 at byte %zu", good);
        return NULL;
    }
    size_t n_blank = 0;
    while (n_blank < n && is_space(text[n_blank])) n_blank++;
    if (n_blank == n) {
        fail(err, "it is empty, no JSON");
        return NULL;
    }
    char *mended = without_escapes(text, n, 0);
    cJSON *v = parse_value(mended ? mended : text, n, err);
    free(mended);
    return v;
}

cJSON *json_object(const char *text, size_t n, Error *err) {
    cJSON *v = json_value(text, n, err);
    const char *twice = v ? json_key_twice(v) : NULL;
    if (twice) fail(err, "%s stands twice", twice);
    else if (!v || cJSON_IsObject(v)) return v;
    else fail(err, "not a JSON object");
    cJSON_Delete(v);
    return NULL;
}

/* Makes cJSON print the numbers of v, its children and its later siblings by their text. */
static void print_as_written(cJSON *v) {
    for (; v; v = v->next) {
        if (cJSON_IsNumber(v) && v->valuestring) v->type = cJSON_Raw;
        print_as_written(v->child);
    }
}

char *json_text(const cJSON *v) {
    cJSON *copy = cJSON_Duplicate(v, 1);
    print_as_written(copy);
    char *text = cJSON_PrintUnformatted(copy);
    cJSON_Delete(copy);
    return text;
}

const cJSON *json_field(const cJSON *o, const char *name) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, name);
    return cJSON_IsNull(v) ? NULL : v;
}

const char *json_string(const cJSON *o, const char *name) {
    return cJSON_GetStringValue(json_field(o, name));
}

const char *json_key_twice(const cJSON *v) {
    const char *twice = NULL, **key = NULL;
    int n = 0, size = cJSON_IsObject(v) ? cJSON_GetArraySize(v) : 0;
    if (size) key = xmalloc((size_t)size * sizeof *key);
    for (const cJSON *a = v->child; a && size; a = a->next) key[n++] = a->string;
    if (n) qsort(key, (size_t)n, sizeof *key, by_text);
    for (int i = 1; i < n && !twice; i++)
        if (!strcmp(key[i - 1], key[i])) twice = key[i];
    free(key);
    for (const cJSON *a = v->child; a && !twice; a = a->next) twice = json_key_twice(a);
    return twice;
}

/* Adds the name between two slashes of a pointer, unescaped: %XX is a byte (RFC 3986), ~0 a ~
 * and ~1 a / (RFC 6901).  Returns the slash or 0 behind it. */
static const char *add_pointer_name(const char *pointer, Buf *name) {
    buf_add(name, "", 0);
    for (; *pointer && *pointer != '/'; pointer++) {
        char c = *pointer;
        if (c == '%' && hex_digit(pointer[1]) >= 0 && hex_digit(pointer[2]) >= 0) {
            c = (char)(hex_digit(pointer[1]) << 4 | hex_digit(pointer[2]));
            pointer += 2;
        }
        if (c == '~' && (pointer[1] == '0' || pointer[1] == '1'))
            c = *++pointer == '0' ? '~' : '/';
        buf_add(name, &c, 1);
    }
    return pointer;
}

const cJSON *json_pointer(const cJSON *root, const char *pointer) {
    const cJSON *at = root;
    if (*pointer++ != '#') return NULL;
    while (at && *pointer == '/') {
        Buf name = {0};
        pointer = add_pointer_name(pointer + 1, &name);
        int is_index = name.len && name.len < 10 && strspn(name.data, "0123456789") == name.len;
        if (!cJSON_IsArray(at)) at = cJSON_GetObjectItemCaseSensitive(at, name.data);
        else at = is_index ? cJSON_GetArrayItem(at, atoi(name.data)) : NULL;
        buf_free(&name);
    }
    return *pointer ? NULL : at;
}

/* The code of a character of n bytes that ends a line beside \n and \r, or 0.  json_quote
 * escapes such characters, since a reader of JSON lines like Python's str.splitlines() would cut
 * there. */
static unsigned unicode_line_end(const char *s, size_t n) {
    if (n == 2 && !memcmp(s, "\xc2\x85", 2)) return 0x85;
    if (n == 3 && !memcmp(s, "\xe2\x80\xa8", 3)) return 0x2028;
    return n == 3 && !memcmp(s, "\xe2\x80\xa9", 3) ? 0x2029 : 0;
}

void json_quote(Buf *out, const char *s, size_t n) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    buf_puts(out, "\"");
    for (size_t i = 0; i < n;) {
        int len = utf8_char(s + i, n - i);
        const char *at = s[i] ? strchr(from, s[i]) : NULL;
        unsigned line_end = len > 1 ? unicode_line_end(s + i, (size_t)len) : 0;
        if (len <= 0) buf_puts(out, "\xef\xbf\xbd");
        else if (line_end) buf_printf(out, "\\u%04x", line_end);
        else if (at) buf_printf(out, "\\%c", to[at - from]);
        else if ((unsigned char)s[i] < 32 || s[i] == 127) buf_printf(out, "\\u%04x", s[i]);
        else buf_add(out, s + i, (size_t)len);
        i += len > 0 ? (size_t)len : 1;
    }
    buf_puts(out, "\"");
}

void json_quote_text(Buf *out, const char *s) { json_quote(out, s, strlen(s)); }

void json_quote_lines(Buf *out, const char *text) {
    buf_puts(out, "[");
    for (size_t n, i = 0; *text; text += n + (text[n] == '\n'), i++) {
        n = strcspn(text, "\n");
        if (i) buf_puts(out, ", ");
        json_quote(out, text, n);
    }
    buf_puts(out, "]");
}
