/* call.c - reads a tool call as the model writes it.  See call.h.
 *
 * The reader goes through the text once and writes JSON.  Where the text departs from the notation,
 * the reader mends it and sets a bit of `mends`.  Where a text could be mended in two ways, it
 * gives up with a reason: a tool must never run with arguments that the model did not mean. */
#define _GNU_SOURCE
#include "call.h"

#include <stdlib.h>
#include <string.h>

#include "declare.h"
#include "json.h"

#define MAX_NESTING 100                 /* nested brackets: far more than a tool's arguments need,
                                         * and few enough for the stack */
#define MAX_TOOL_NAME 128               /* bytes of a tool's name in a call without its opening
                                         * token: text is held back while it can be such a name */

/* The kinds of mends, as bits. */
enum {
    ROUND_BRACKETS = 1, EQUALS = 2, COLONS = 4, QUOTES = 8, BARE_WORD = 16, PYTHON_WORD = 32,
    MISSING_COMMA = 64, MISSING_CLOSER = 128, LAST_COMMA = 256, NO_CALL = 512, QUOTED_KEY = 1024,
    AS_STRING = 2048, NO_BRACKETS = 4096, EXTRA_BRACKETS = 8192, AS_JSON = 16384,
    NO_OPENING_QUOTE = 32768, INNER_QUOTES = 65536, OTHER_CASE = 131072, IN_STRING = 262144,
};

/* The warnings about mends, in the order of their bits. */
static const char *const mend_text[] = {
    "round brackets were read as braces", "`=` was read as `:`",
    "what stood around the name was dropped", "quotes of another kind were read as <|\"|>",
    "a word without quotes was read as a string",
    "True, False or None was read as true, false or null", "a missing comma was added",
    "missing closing brackets were added", "a comma at the end was dropped",
    "a missing `call:` was added", "quotes around a key were dropped",
    "a value without quotes was read as a string, as its schema says",
    "missing brackets of the arguments were added", "brackets too many were dropped",
    "JSON was read as a call", "a missing opening <|\"|> was added",
    "<|\"|> inside of a string was read as a quotation mark",
    "its name was in letters of the other case",
    "a string was read as the value in it, as its schema says",
};

void calls_free(ToolCall *calls, int n) {
    for (int i = 0; i < n; i++) {
        free(calls[i].name);
        free(calls[i].arguments);
    }
    free(calls);
}

void calls_check(const ToolCall *calls, int n, const cJSON *tools, Buf *warnings) {
    for (int i = 0; i < n; i++) {
        if (tool_named(tools, calls[i].name)) continue;
        buf_printf(warnings, "a call of %s, which is none of the tools\n", calls[i].name);
        return;
    }
}

void call_put_id(Buf *out, int i, int n_prompt) {
    buf_printf(out, "\"call_%d_%d\"", n_prompt, i);
}

void calls_put(Buf *out, const ToolCall *calls, int n, int n_prompt) {
    buf_puts(out, "[");
    for (int i = 0; i < n; i++) {
        buf_puts(out, i ? ", {\"id\": " : "{\"id\": ");
        call_put_id(out, i, n_prompt);
        buf_puts(out, ", \"type\": \"function\", \"function\": {\"name\": ");
        json_quote_text(out, calls[i].name);
        buf_puts(out, ", \"arguments\": ");
        json_quote_text(out, calls[i].arguments);
        buf_puts(out, "}}");
    }
    buf_puts(out, "]");
}

/* The state of reading a call. */
typedef struct {
    const char *p, *end;                /* what is left to read */
    Buf out;                            /* the arguments as JSON */
    const char *why;                    /* why the call cannot be read */
    int mends;                          /* bits ROUND_BRACKETS … IN_STRING */
    int closed, constrained;            /* CALL_CLOSED and CALL_CONSTRAINED of call_read */
    const cJSON *root;                  /* the schema of the tool's parameters; NULL: not known */
    Buf names;                          /* the keys so far of all open objects, each 0-terminated */
    char close[MAX_NESTING + 1];        /* [depth] closing brackets to come, innermost last */
    const cJSON *open[MAX_NESTING + 1]; /* [depth] the schemas of the open objects and lists */
    int depth;
    int astray;                         /* 1: an object or a list has a member that only an object
                                         * around it declares */
} CallReader;

/* Sets the reason why the call cannot be read.  Returns -1. */
static int give_up(CallReader *r, const char *why) {
    r->why = why;
    return -1;
}

static int is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

static int is_one_of(char c, const char *set) { return c && strchr(set, (unsigned char)c); }

/* Moves r->p to the next character that is not blank, and returns it; 0 at the end. */
static char peek(CallReader *r) {
    while (r->p < r->end && is_blank(*r->p)) r->p++;
    return r->p < r->end ? *r->p : 0;
}

/* ---- what the schema says ---- */

/* Whether `type`, a value of the keyword type, is the type `name` or draft 3's "any".  An integer
 * is a number. */
static int names_type(const cJSON *type, const char *name) {
    if (!cJSON_IsString(type)) return 0;
    if (!strcasecmp(type->valuestring, name) || !strcasecmp(type->valuestring, "any")) return 1;
    return !strcmp(name, "number") && !strcasecmp(type->valuestring, "integer");
}

static int is_of_type(const cJSON *value, const char *name) {
    if (!strcmp(name, "string")) return cJSON_IsString(value);
    if (!strcmp(name, "number")) return cJSON_IsNumber(value);
    if (!strcmp(name, "boolean")) return cJSON_IsBool(value);
    if (!strcmp(name, "array")) return cJSON_IsArray(value);
    return !strcmp(name, "object") ? cJSON_IsObject(value) : cJSON_IsNull(value);
}

/* A schema may refer to itself.  So alternatives nested deeper than this count as not known;
 * schemas that people write stay far below. */
#define MAX_CHOICES 8

/* Whether a value of the type `name` may be valid under the schema; 1 where that is not known.
 * depth: how many alternatives (anyOf …) the schema is nested in; callers pass 0. */
static int admits(const CallReader *r, const cJSON *schema, const char *name, int depth) {
    static const char *const choices[] = {"anyOf", "oneOf"};
    const cJSON *item, *list;
    schema = schema_behind_refs(r->root, schema);
    if (!cJSON_IsObject(schema) || depth > MAX_CHOICES) return 1;
    for (int i = 0; i < 2; i++) {
        if (!cJSON_IsArray(list = json_field(schema, choices[i]))) continue;
        cJSON_ArrayForEach(item, list)
            if (admits(r, item, name, depth + 1)) return 1;
        return 0;
    }
    cJSON_ArrayForEach(item, json_field(schema, "allOf"))
        if (!admits(r, item, name, depth + 1)) return 0;
    if ((list = json_field(schema, "const"))) return is_of_type(list, name);
    if (cJSON_IsArray(list = json_field(schema, "enum"))) {
        cJSON_ArrayForEach(item, list)
            if (is_of_type(item, name)) return 1;
        return 0;
    }
    if (!strcmp(name, "null") && cJSON_IsTrue(json_field(schema, "nullable"))) return 1;
    list = json_field(schema, "type");
    if (!cJSON_IsArray(list)) return !list || names_type(list, name);
    cJSON_ArrayForEach(item, list)
        if (names_type(item, name)) return 1;
    return 0;
}

/* Returns the schema of the member `key` of an object (index -1), or of element `index` of a list
 * (key NULL).  schema: that of the object or list.  NULL: it is not known, or alternatives disagree
 * about it.  depth: as in admits. */
static const cJSON *member_schema(const CallReader *r, const cJSON *schema, const char *key,
                                  int index, int depth) {
    static const char *const choices[] = {"anyOf", "oneOf", "allOf"};
    const cJSON *found = NULL, *item;
    schema = schema_behind_refs(r->root, schema);
    if (!cJSON_IsObject(schema) || depth > MAX_CHOICES) return NULL;
    if (key) found = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), key);
    else found = cJSON_GetArrayItem(json_field(schema, "prefixItems"), index);
    for (int i = 0; i < 3; i++)
        cJSON_ArrayForEach(item, json_field(schema, choices[i])) {
            const cJSON *one = member_schema(r, item, key, index, depth + 1);
            if (one && found && !cJSON_Compare(one, found, 1)) return NULL;
            if (one) found = one;
        }
    if (found || key) return found ? found : json_field(schema, "additionalProperties");
    /* In draft 7 `items` may be a list: one schema for each of the first elements. */
    const cJSON *items = json_field(schema, "items");
    if (!cJSON_IsArray(items)) return items;
    if (index < cJSON_GetArraySize(items)) return cJSON_GetArrayItem(items, index);
    return json_field(schema, "additionalItems");
}

/* ---- names ---- */

static int is_name_char(char c) {
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') ||
           (unsigned char)c >= 0x80 || is_one_of(c, "_-.$");
}

/* Whether s[0..n) looks like the name of a member: one word that is no number. */
static int is_word(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!is_name_char(s[i]) || s[i] == CALL_QUOTE) return 0;
    return n && !is_one_of(*s, "0123456789-.");
}

/* Returns the length of the text from s to the first of the `marks`, without blanks at its end; 0
 * when another separator, or the end, comes first. */
static size_t member_name(const char *s, const char *end, const char *marks) {
    const char *p = s;
    while (p < end && !is_one_of(*p, marks) && !is_one_of(*p, ",{}[]\xff")) p++;
    if (p == end || !is_one_of(*p, marks)) return 0;
    while (p > s && is_blank(p[-1])) p--;
    return (size_t)(p - s);
}

/* ---- strings ---- */

/* Whether a string may have ended too early: its text ends like a key, as in {a:<|"|>1,b:<|"|>….
 * The quote that closed the string was then perhaps meant to open the next one. */
static int ends_like_a_key(const char *s, size_t n) {
    while (n && is_blank(s[n - 1])) n--;
    return n && (s[n - 1] == ':' || s[n - 1] == '=');
}

static int is_delimiter(char c) { return !c || strchr(",:=}])", c) != NULL; }

/* The read_…quoted functions, read_json_string and read_string add the text of a string to *text.
 * They return 1; 0 when no such string begins here; -1 after give_up. */

/* A string between two CALL_QUOTEs. */
static int read_quoted(CallReader *r, Buf *text) {
    const char *from = r->p + 1;
    const char *end = memchr(from, (unsigned char)CALL_QUOTE, (size_t)(r->end - from));
    if (!end) return give_up(r, "a string without an end");
    buf_add(text, from, (size_t)(end - from));
    r->p = end + 1;
    return 1;
}

/* Whether a backslash in front of c stands for itself: neither JSON nor Python has such an escape,
 * but regular expressions have (\d, \., \s). */
static int is_plain_backslash(char c) { return c && !strchr("\\\"'/abfnrtvxuUN01234567\n", c); }

/* A string of JSON, with its escapes.  Unlike in JSON, it may contain line ends and tabs.  Where
 * one backslash in it stands for itself, it is not certain that another one begins \n, \t and the
 * like. */
static int read_json_string(CallReader *r, Buf *text) {
    const char *end = r->p + 1;
    Buf json = {0};
    Str s;
    int n_plain = 0, n_letters = 0;
    while (end < r->end && *end != '"') end += *end == '\\' ? 2 : 1;
    if (end >= r->end) return give_up(r, "a string without an end");
    for (const char *p = r->p; p <= end; p++) {
        if ((unsigned char)*p < 32) buf_printf(&json, "\\u%04x", *p);
        else if (*p != '\\') buf_add(&json, p, 1);
        else if (is_plain_backslash(p[1])) {
            buf_puts(&json, "\\\\");
            n_plain++;
        } else {
            n_letters += !is_one_of(p[1], "\\\"/");
            buf_add(&json, p++, 2);
        }
    }
    Scan scan = scan_open(json.data, json.len, "", NULL);
    int bad = scan_string(&scan, &s);
    if (!bad) buf_add(text, s.s, s.n);
    scan_close(&scan);
    buf_free(&json);
    r->p = end + 1;
    if (bad) return give_up(r, "an escape that nobody knows");
    if (n_plain && n_letters) return give_up(r, "a backslash that may be an escape");
    return memchr(text->data, 0, text->len) ? give_up(r, "a NUL character") : 1;
}

/* A string between single quotes.  The only escape is \': whether another backslash begins one that
 * JSON or Python has is not certain. */
static int read_single_quoted(CallReader *r, Buf *text) {
    for (r->p++; r->p < r->end && *r->p != '\''; r->p++) {
        char next = r->p + 1 < r->end ? r->p[1] : 0;
        if (*r->p == '\\' && next == '\'') r->p++;
        else if (*r->p == '\\' && !is_plain_backslash(next))
            return give_up(r, "a backslash that may be an escape");
        buf_add(text, r->p, 1);
    }
    if (r->p == r->end) return give_up(r, "a string without an end");
    r->p++;
    return 1;
}

/* A string between other quotation marks: `…`, “…”, ‘…’, FunctionGemma's <escape>, or something
 * like the name of the control token, spelt out.  It has no escapes. */
static int read_otherwise_quoted(CallReader *r, Buf *text) {
    static const char *const marks[][2] = {
        {"`", "`"}, {"\xe2\x80\x9c", "\xe2\x80\x9d"}, {"\xe2\x80\x98", "\xe2\x80\x99"},
        {"<escape>", "<escape>"}, {"<|\"|>", "<|\"|>"}, {"<|\">", "<|\">"}, {"<|'|>", "<|'|>"},
    };
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        size_t n = strlen(marks[i][0]);
        if ((size_t)(r->end - r->p) < n || memcmp(r->p, marks[i][0], n)) continue;
        const char *from = r->p + n, *end = memmem(from, (size_t)(r->end - from), marks[i][1], n);
        if (!end) return give_up(r, "a string without an end");
        buf_add(text, from, (size_t)(end - from));
        r->p = end + n;
        return 1;
    }
    return 0;
}

/* Whether a CALL_QUOTE at s ends a string that began with another quotation mark: a separator
 * follows it, and those behind it come in pairs. */
static int is_wrong_end(const CallReader *r, const char *s) {
    int n = 0;
    for (const char *p = s + 1; p < r->end; p++) n += *p == CALL_QUOTE;
    for (s++; s < r->end && is_blank(*s); s++) continue;
    return n % 2 == 0 && is_delimiter(s < r->end ? *s : 0);
}

static int read_any_quoted(CallReader *r, char c, Buf *text) {
    size_t left = (size_t)(r->end - r->p);
    const char *wrong = memchr(r->p, (unsigned char)CALL_QUOTE, left);
    if (wrong && is_one_of(c, "\"'") && !memchr(r->p + 1, c, (size_t)(wrong - r->p) - 1) &&
        is_wrong_end(r, wrong)) {
        buf_add(text, r->p + 1, (size_t)(wrong - r->p) - 1);
        r->p = wrong + 1;
        return 1;
    }
    if (c == '"') return read_json_string(r, text);
    if (c == '\'') return read_single_quoted(r, text);
    return read_otherwise_quoted(r, text);
}

/* A string between quotes of any kind. */
static int read_string(CallReader *r, Buf *text) {
    char c = peek(r);
    buf_add(text, "", 0);               /* so that text->data is a string in any case */
    if (c == CALL_QUOTE) return read_quoted(r, text);
    int got = read_any_quoted(r, c, text);
    if (got <= 0) return got;
    r->mends |= QUOTES;
    if (memchr(text->data, (unsigned char)CALL_QUOTE, text->len))
        return give_up(r, "a string without an end");
    /* A closing quote is followed by a separator, or by the next key, with the comma missing; or by
     * a CALL_QUOTE that nothing opened. */
    c = peek(r);
    if (c == CALL_QUOTE && is_wrong_end(r, r->p)) {
        r->p++;
        return 1;
    }
    if (is_delimiter(c) || is_word(r->p, member_name(r->p, r->end, ":="))) return 1;
    return give_up(r, "a quote inside of a string");
}

/* ---- values without quotes ---- */

/* Whether s[0..n) looks like a number, though perhaps not like one of JSON (+1, .5, 1.). */
static int is_broken_number(const char *s, size_t n) {
    const char *end = s + n, *p = s + (n && (*s == '-' || *s == '+'));
    if (n && !strchr("+-.0123456789", *s)) return 0;
    while (p < end && *p >= '0' && *p <= '9') p++;
    if (p < end && *p == '.') p++;
    while (p < end && *p >= '0' && *p <= '9') p++;
    if (p < end && (*p | 32) == 'e') p++, p += p < end && (*p == '-' || *p == '+');
    while (p < end && *p >= '0' && *p <= '9') p++;
    return p == end;
}

/* Whether the schema `object`, or one of those in its allOf, anyOf or oneOf, declares the member
 * `key`.  1: yes; 0: no; -1: none declares any members.  depth: as in admits. */
static int declares(const CallReader *r, const cJSON *object, const char *key, int depth) {
    static const char *const choices[] = {"anyOf", "oneOf", "allOf"};
    const cJSON *schema = schema_behind_refs(r->root, object), *item;
    const cJSON *properties = json_field(schema, "properties");
    int known = properties ? cJSON_GetObjectItemCaseSensitive(properties, key) != NULL : -1;
    for (int i = 0; i < 3 && depth < MAX_CHOICES; i++)
        cJSON_ArrayForEach(item, json_field(schema, choices[i])) {
            int one = declares(r, item, key, depth + 1);
            if (one > known) known = one;
        }
    return known;
}

/* Whether the schema `object` declares the member s[0..n), as `declares` says it. */
static int is_declared(const CallReader *r, const cJSON *object, const char *s, size_t n) {
    char *key = strndup(s, n);
    int known = declares(r, object, key, 0);
    free(key);
    return known;
}

/* Whether an object around the innermost object or list declares a member of the name s[0..n), and
 * the innermost one, whose schema is `object`, does not. */
static int is_astray(const CallReader *r, const cJSON *object, const char *s, size_t n) {
    if (is_declared(r, object, s, n) > 0) return 0;
    for (int i = r->depth - 2; i >= 0; i--)
        if (r->close[i] != ']' && is_declared(r, r->open[i], s, n) > 0) return 1;
    return 0;
}

/* Returns the length of the quotation mark at s, a place in the text from..end; 0: there is none.
 * ' and ’ within a word are apostrophes. */
static size_t quotation_mark(const char *s, const char *from, const char *end) {
    static const char *const marks[] = {        /* " ` ' ‘ ’ “ ” „ « » */
        "\"", "`", "'", "\xe2\x80\x98", "\xe2\x80\x99", "\xe2\x80\x9c", "\xe2\x80\x9d",
        "\xe2\x80\x9e", "\xc2\xab", "\xc2\xbb",
    };
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        size_t n = strlen(marks[i]);
        if ((size_t)(end - s) < n || memcmp(s, marks[i], n)) continue;
        int in_word = s > from && s + n < end && is_name_char(s[-1]) && is_name_char(s[n]);
        int is_apostrophe = (i == 2 || i == 4) && in_word;
        return is_apostrophe ? 0 : n;
    }
    return 0;
}

/* Whether the words s[0..n) begin with a separator, or contain the name of another parameter with
 * its colon, or a `=` in place of the colon. */
static int may_hold_a_member(const CallReader *r, const cJSON *object, const char *s, size_t n) {
    const char *end = s + n;
    if (n && is_one_of(*s, ":=>,")) return 1;
    for (const char *p = s + 1; p < end; p++) {
        if (is_name_char(p[-1]) || !is_name_char(*p)) continue;
        size_t name = member_name(p, end, ":=");
        if (is_word(p, name) && is_declared(r, object, p, name) > 0) return 1;
    }
    return 0;
}

/* Whether words without quotes may be something else than one string. */
static int are_unsure(const CallReader *r, const cJSON *object, const char *s, size_t n) {
    for (const char *p = s; p < s + n; p++)
        if (quotation_mark(p, s, s + n)) return 1;
    return may_hold_a_member(r, object, s, n);
}

/* give_up for a function that returns a pointer. */
static const char *no_words(CallReader *r, const char *why) {
    give_up(r, why);
    return NULL;
}

/* Returns the end of the words without quotes that begin at r->p: a closing bracket; in a list a
 * comma; in an object a comma that a name with a colon follows.  NULL with a reason where the end
 * is not certain. */
static const char *end_of_words(CallReader *r, const cJSON *object) {
    int in_list = r->close[r->depth - 1] == ']', open = 0;
    for (const char *p = r->p; p < r->end; p++) {
        open += (*p == '(') - (*p == ')');
        if (*p == '}' || *p == ']' || open < 0) return p;
        if (*p == CALL_QUOTE || *p == '{' || *p == '[' || (r->close[0] == ')' && *p == '('))
            return no_words(r, "quotes or brackets inside of words");
        if (*p != ',') continue;
        /* The comma ends the words, or is a part of them. */
        const char *next = p + 1;
        while (next < r->end && is_blank(*next)) next++;
        if (in_list || next == r->end || is_one_of(*next, "}])")) return p;
        if (*next == ',') return no_words(r, "a comma too many");
        size_t n = member_name(next, r->end, r->mends & EQUALS ? ":=" : ":");
        int word = is_word(next, n), declared = n ? is_declared(r, object, next, n) : 0;
        if (declared > 0 || (declared < 0 && word)) return p;
        if (word || is_one_of(*next, "\"'\xff"))
            return no_words(r, "words that can be read in two ways");
    }
    return r->end;
}

/* Returns the type of the literal s[0..n); NULL: it is none.  *json becomes its JSON text; NULL: s
 * itself.  Numbers are shorter than 64 bytes, which is what cJSON reads of one. */
static const char *literal_type(const char *s, size_t n, const char **json) {
    static const struct { const char *json, *python, *type; } known[] = {
        {"true", "True", "boolean"}, {"false", "False", "boolean"}, {"null", "None", "null"},
    };
    for (int i = 0; i < 3; i++)
        if (is_text(s, n, known[i].json) || is_text(s, n, known[i].python)) {
            *json = known[i].json;
            return known[i].type;
        }
    *json = NULL;
    return n < 64 && json_number(s, n) == n && n ? "number" : NULL;
}

/* Returns the length of the text from s to end, without blanks at its end. */
static size_t without_blanks(const char *s, const char *end) {
    while (end > s && is_blank(end[-1])) end--;
    return (size_t)(end - s);
}

/* Whether the words look like a literal and the next member, with the comma between them
 * missing. */
static int may_lack_a_comma(const char *s, size_t n) {
    const char *json;
    size_t first = 0;
    while (first < n && !is_blank(s[first])) first++;
    return first < n && literal_type(s, first, &json) && (memchr(s, ':', n) || memchr(s, '=', n));
}

/* Returns the length of the literal that s[0..n) begins with, where the schema admits it and no
 * string, and where the name of another parameter follows it, the comma between them missing; or
 * 0. */
static size_t literal_before_key(const CallReader *r, const cJSON *schema, const cJSON *object,
                                 const char *s, size_t n) {
    const char *json, *key;
    size_t first = 0;
    while (first < n && !is_blank(s[first])) first++;
    const char *type = literal_type(s, first, &json);
    if (first == n || !type || !schema || admits(r, schema, "string", 0)) return 0;
    for (key = s + first; is_blank(*key); key++) continue;
    size_t name = member_name(key, r->end, ":=");
    int follows = is_word(key, name) && is_declared(r, object, key, name) > 0;
    return follows && admits(r, schema, type, 0) ? first : 0;
}

/* Whether the string may end with the CALL_QUOTE at s: behind it stand brackets that close what is
 * open, and then the end of the call, or a comma and another member. */
static int is_proper_end(const CallReader *r, const char *s) {
    int depth = r->depth;
    for (s++; s < r->end && (is_blank(*s) || (depth && *s == r->close[depth - 1])); s++)
        depth -= !is_blank(*s);
    if (s == r->end) return r->closed || !depth;
    if (!depth || *s != ',') return 0;
    for (s++; s < r->end && is_blank(*s);) s++;
    if (r->close[depth - 1] == ']') return s < r->end && *s == CALL_QUOTE;
    size_t n = member_name(s, r->end, ":=");
    return is_word(s, n) && is_declared(r, r->open[depth - 1], s, n);
}

/* Returns the CALL_QUOTE that ends the words at r->p, a string whose opening CALL_QUOTE is missing;
 * NULL: it has none, or where the string begins or ends is not certain. */
static const char *end_of_unopened(const CallReader *r, const cJSON *object) {
    const char *end = memchr(r->p, (unsigned char)CALL_QUOTE, (size_t)(r->end - r->p));
    if (!end || (!is_wrong_end(r, end) && !is_proper_end(r, end))) return NULL;
    if (may_hold_a_member(r, object, r->p, (size_t)(end - r->p))) return NULL;
    int in_list = r->close[r->depth - 1] == ']';
    if (in_list && r->mends & BARE_WORD) return NULL;   /* [a, b<|"|>] may be one string */
    for (const char *p = r->p; p < end; p++) {
        if (*p != ',') continue;
        if (in_list) return NULL;
        for (p++; is_blank(*p);) p++;
        size_t n = member_name(p--, end, ":=");
        if (is_word(p + 1, n) && is_declared(r, object, p + 1, n)) return NULL;
    }
    return end;
}

/* Reads a value without quotes: a literal, or words that are a string.  schema: that of the value;
 * object: that of the object or list around it.  *string becomes 1 where a comma may be missing
 * behind the value. */
static int read_words(CallReader *r, const cJSON *schema, const cJSON *object, int *string) {
    /* 1. The value's end: a literal ends at the first separator, words perhaps further on. */
    const char *from = r->p, *end = from, *json, *type;
    while (end < r->end && !is_one_of(*end, ",}])")) end++;
    size_t n = without_blanks(from, end), first = literal_before_key(r, schema, object, from, n);
    if (first) {
        n = first;
        end = from + first;
        *string = 1;
    }
    type = literal_type(from, n, &json);
    const char *quote = type ? NULL : end_of_unopened(r, object);
    if (quote && admits(r, schema, "string", 0)) {
        json_quote(&r->out, from, (size_t)(quote - from));
        r->p = quote + 1;
        r->mends |= NO_OPENING_QUOTE;
        return 0;
    }
    if (!type) {
        if (!(end = end_of_words(r, object))) return -1;
        n = without_blanks(from, end);
        if (may_lack_a_comma(from, n)) return give_up(r, "a comma is missing");
        if (are_unsure(r, object, from, n)) return give_up(r, "words that can be read in two ways");
    }
    if (!n) return give_up(r, "a value that is none");
    r->p = end;
    /* 2. A literal, unless the schema wants a string there. */
    int is_string = admits(r, schema, "string", 0), is_null = is_text(from, n, "null");
    if (type && (r->constrained || is_null || !is_string || admits(r, schema, type, 0))) {
        if (json && !is_text(from, n, json)) r->mends |= PYTHON_WORD;
        if (json) buf_puts(&r->out, json);
        else buf_add(&r->out, from, n);
        return 0;
    }
    /* 3. A string. */
    if (!is_string) return give_up(r, "a value that is none");
    size_t name = r->close[r->depth - 1] == ']' ? member_name(from, end, ":=") : 0;
    r->astray |= is_word(from, name) && is_astray(r, object, from, name);
    int is_broken = !type && is_broken_number(from, n);
    if (is_broken && admits(r, schema, "number", 0)) return give_up(r, "a number that is none");
    r->mends |= type || is_broken ? AS_STRING : BARE_WORD;
    json_quote(&r->out, from, n);
    return 0;
}

/* ---- a string with quotes in it ---- */

/* Whether the string from..s ends with the name of a member and its colon: the CALL_QUOTE at s may
 * then have been meant to open the value of that member. */
static int ends_like_a_member(const CallReader *r, const char *from, const char *s) {
    while (s > from && is_blank(s[-1])) s--;
    if (s == from || s[-1] != (r->mends & EQUALS ? '=' : ':')) return 0;
    const char *end = s - 1, *name = end;
    while (name > from && is_name_char(name[-1]) && name[-1] != CALL_QUOTE) name--;
    size_t n = (size_t)(end - name);
    return is_word(name, n) && is_declared(r, r->open[r->depth - 1], name, n);
}

/* Whether the quotation mark at s, in a string that begins at `from`, stands as a closing one does:
 * behind a word and before a blank. */
static int looks_like_an_end(const char *from, const char *s) {
    return s > from && !is_blank(s[-1]) && is_blank(s[1]);
}

/* A string that begins with a CALL_QUOTE.  Where the first one behind it cannot end the string, the
 * model has written a CALL_QUOTE for each quotation mark in it: the string then ends with the first
 * that can, if those inside come in pairs. */
static int read_quoted_value(CallReader *r, Buf *text) {
    const char *from = r->p + 1;
    int got = read_quoted(r, text);
    const char *s = r->p - 1;
    if (got < 0 || r->constrained || is_delimiter(peek(r))) return got;
    if (is_word(r->p, member_name(r->p, r->end, ":="))) return got;
    /* Two strings of a list, the comma between them missing, or the quotes of a third. */
    int in_list = r->close[r->depth - 1] == ']';
    if (in_list && (peek(r) == CALL_QUOTE || looks_like_an_end(from, s))) return got;
    for (int n_inner = 0; n_inner % 2 || !is_proper_end(r, s); n_inner++) {
        if (ends_like_a_member(r, from, s)) return give_up(r, "a string whose end is not certain");
        s = memchr(s + 1, (unsigned char)CALL_QUOTE, (size_t)(r->end - s - 1));
        if (!s) return give_up(r, "a comma is missing");
    }
    text->len = 0;
    for (const char *p = from; p < s; p++) buf_add(text, *p == CALL_QUOTE ? "\"" : p, 1);
    r->p = s + 1;
    r->mends |= INNER_QUOTES;
    return 1;
}

/* ---- objects and lists ---- */

static int read_members(CallReader *r, const cJSON *schema);

/* Whether the schema admits no string, but a value whose JSON is the string text[0..n).  Writes it
 * then. */
static int read_in_string(CallReader *r, const cJSON *schema, const char *text, size_t n) {
    static const char *const types[] = {"number", "boolean", "array", "object"};
    if (r->constrained || !schema || admits(r, schema, "string", 0)) return 0;
    cJSON *v = json_value(text, n, NULL);
    int fits = 0, is_sure = v && !json_key_twice(v);
    for (int i = 0; is_sure && i < 4; i++)
        fits |= is_of_type(v, types[i]) && admits(r, schema, types[i], 0);
    char *json = fits ? json_text(v) : NULL;
    if (fits) buf_puts(&r->out, json);
    if (fits) r->mends |= IN_STRING;
    free(json);
    cJSON_Delete(v);
    return fits;
}

/* Reads a value.  schema: that of the value; object: that of the object or list around it.  *string
 * becomes 1 if the value is a string between quotes, -1 if it is one whose end is not certain, 0
 * otherwise. */
static int read_value(CallReader *r, const cJSON *schema, const cJSON *object, int *string) {
    char c = peek(r);
    Buf text = {0};
    int is_string = c == CALL_QUOTE ? read_quoted_value(r, &text) : read_string(r, &text);
    *string = 0;
    if (is_string > 0) {
        if (!read_in_string(r, schema, text.data, text.len))
            json_quote(&r->out, text.data, text.len);
        *string = ends_like_a_key(text.data, text.len) ? -1 : 1;
    }
    buf_free(&text);
    if (is_string) return is_string < 0 ? -1 : 0;
    if (c != '{' && c != '[') return read_words(r, schema, object, string);
    if (r->depth == MAX_NESTING) return give_up(r, "nested too deep");
    /* Where the schema wants a string, brackets are accepted only if nothing in them needs a mend:
     * otherwise they are more likely a text without quotes. */
    const char *type = c == '{' ? "object" : "array";
    int wants_string = admits(r, schema, "string", 0) && !admits(r, schema, type, 0);
    int before = r->mends;
    r->p++;
    buf_add(&r->out, &c, 1);
    r->open[r->depth] = schema;
    r->close[r->depth++] = c == '{' ? '}' : ']';
    if (read_members(r, schema)) return -1;
    if (wants_string && r->mends != before)
        return give_up(r, "brackets where the schema has a string");
    return 0;
}

/* Returns the end of the key that begins at r->p: its colon, or a `=` in place of the colon.  NULL
 * with a reason where a `=` may also be a part of the key. */
static const char *end_of_key(CallReader *r) {
    const char *p = r->p, *colon;
    while (p < r->end && !is_one_of(*p, ":=,{}[]\xff")) p++;
    if (p == r->end || *p != '=') return p;
    for (colon = p; colon < r->end && !is_one_of(*colon, ":,{}[]\"'`\xff"); colon++) continue;
    if (colon == r->end || *colon != ':') return p;
    give_up(r, "a key that can be read in two ways");
    return NULL;
}

/* Whether the name is among those of r->names from byte `first` on.  Always 0 for a call that was
 * written under a schema: a schema that permits any names permits the same name twice, and the
 * client already has the first half of the call. */
static int is_twice(const CallReader *r, size_t first, const char *name) {
    if (r->constrained) return 0;
    for (size_t i = first; i < r->names.len; i += strlen(r->names.data + i) + 1)
        if (!strcmp(r->names.data + i, name)) return 1;
    return 0;
}

/* Reads a key, without its colon, into *key.  If the text up to the colon is a name of the schema,
 * or the call was written under the schema, quotes and `=` in it belong to the name. */
static int read_key_alone(CallReader *r, const cJSON *object, Buf *key) {
    peek(r);
    size_t plain = member_name(r->p, r->end, ":");
    int is_plain = plain && (r->constrained || is_declared(r, object, r->p, plain) > 0);
    int is_string = is_plain ? 0 : read_string(r, key);
    if (is_string) {
        r->mends |= QUOTED_KEY;
        return is_string < 0 ? -1 : 0;
    }
    const char *end = is_plain ? r->p + plain : end_of_key(r);
    if (!end) return -1;
    buf_add(key, r->p, without_blanks(r->p, end));
    r->p = end;
    return key->len ? 0 : give_up(r, "a key is missing");
}

/* Reads a key with its colon, or `=`.  *value becomes the schema of the value that follows.
 * first_name: the byte of r->names at which the names of this object begin. */
static int read_key(CallReader *r, const cJSON *object, size_t first_name, const cJSON **value) {
    Buf key = {0};
    int bad = read_key_alone(r, object, &key);
    char c = bad ? 0 : peek(r);
    if (!bad && c != ':' && c != '=') bad = give_up(r, "a key without a value");
    if (!bad && is_twice(r, first_name, key.data)) bad = give_up(r, "a name twice");
    if (!bad) {
        r->p++;
        if (c == '=') r->mends |= EQUALS;
        r->astray |= is_astray(r, object, key.data, key.len);
        buf_add(&r->names, key.data, key.len + 1);
        json_quote(&r->out, key.data, key.len);
        buf_puts(&r->out, ":");
        *value = member_schema(r, object, key.data, -1, 0);
    }
    buf_free(&key);
    return bad;
}

/* Whether the closing bracket of the innermost object or list is missing: c closes an outer one,
 * and nothing but closing brackets follows. */
static int is_outer_closer(const CallReader *r, char c) {
    const char *p = r->p;
    while (p < r->end && (is_blank(*p) || is_one_of(*p, "}])"))) p++;
    if (p < r->end || !r->closed) return 0;
    for (int i = r->depth - 2; i >= 0; i--)
        if (r->close[i] == c) return 1;
    return 0;
}

/* Reads the closing bracket of the innermost object or list.  Returns 1: it was there, or was
 * missing and is added; 0: another member follows; -1 after give_up. */
static int read_closer(CallReader *r) {
    char c = peek(r), close = r->close[r->depth - 1];
    int is_round = r->depth == 1 && (c == ')' || c == '}') && (close == ')' || close == '}');
    if (c && !is_one_of(c, "}])")) return 0;
    if (c == close || is_round) {
        r->p++;
        if (c == ')' || close == ')') r->mends |= ROUND_BRACKETS;
    } else if ((!c && r->closed) || (c && is_outer_closer(r, c))) r->mends |= MISSING_CLOSER;
    else return give_up(r, c ? "a bracket that closes nothing" : "it has no end");
    buf_puts(&r->out, close == ']' ? "]" : "}");
    r->depth--;
    return 1;
}

/* Reads the comma between two members.  string: what read_value says of the member before the
 * comma. */
static int read_comma(CallReader *r, int string) {
    if (peek(r) == ',') {
        r->p++;
        char c = peek(r);
        if (is_one_of(c, "}])") || !c) {
            r->mends |= LAST_COMMA;
            return 0;
        }
    } else {
        int in_list = r->close[r->depth - 1] == ']';
        int is_member = !in_list && is_word(r->p, member_name(r->p, r->end, ":="));
        if (!string || !is_member) return give_up(r, "a comma is missing");
        if (string < 0) return give_up(r, "a string whose end is not certain");
        r->mends |= MISSING_COMMA;
    }
    buf_puts(&r->out, ",");
    return 0;
}

/* Reads the members of an object or a list, and its closing bracket. */
static int read_members(CallReader *r, const cJSON *schema) {
    int string = 0;
    size_t first_name = r->names.len;
    for (int i = 0;; i++) {
        const cJSON *value = NULL;
        int closed = read_closer(r), in_list = !closed && r->close[r->depth - 1] == ']';
        if (closed) {
            r->names.len = first_name;
            return closed < 0 ? -1 : 0;
        }
        if (i && read_comma(r, string)) return -1;
        if (i && (!peek(r) || is_one_of(*r->p, "}])"))) continue;       /* a comma at the end */
        if (in_list) value = member_schema(r, schema, NULL, i, 0);
        else if (read_key(r, schema, first_name, &value)) return -1;
        if (read_value(r, value, schema, &string)) return -1;
    }
}

/* ---- the call ---- */

/* Whether s[0..n) can be the name of a tool. */
static int is_name(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] <= ' ' || s[i] == CALL_QUOTE || is_one_of(s[i], "\"'`}[],"))
            return 0;
    return n > 0;
}

/* The tool of the name s[0..n), or NULL. */
static const cJSON *tool_at(const cJSON *tools, const char *s, size_t n) {
    char *key = strndup(s, n);
    const cJSON *tool = tool_named(tools, key);
    free(key);
    return tool;
}

/* The name of the only tool that s[0..n) names if capitals do not count; NULL: there is none, or
 * more than one. */
static const char *tool_in_other_case(const cJSON *tools, const char *s, size_t n) {
    const cJSON *tool;
    const char *found = NULL;
    cJSON_ArrayForEach(tool, tools) {
        const char *name = json_string(json_field(tool, "function"), "name");
        if (!name || strlen(name) != n || strncasecmp(name, s, n)) continue;
        if (found) return NULL;
        found = name;
    }
    return found;
}

/* Returns the length of what models put in front of the name of a tool as if it were a namespace,
 * with its separator; 0 where s[0..n) does not begin so. */
static size_t namespace_length(const cJSON *tools, const char *s, size_t n) {
    static const char *const names[] = {"default_api", "functions", "function", "tools", "tool",
                                        "tool_call", "tool_code"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t len = strlen(names[i]);
        if (n <= len + 1 || memcmp(s, names[i], len) || !is_one_of(s[len], ".:")) continue;
        if (tool_at(tools, s + len + 1, n - len - 1)) return len + 1;
    }
    return 0;
}

/* Removes what the model has put around the name: a second `call:`, colons, `=`, blanks, quotes, a
 * namespace.  Stops as soon as the name is the name of a tool, which may have these characters in
 * it. */
static void trim_name(CallReader *r, const cJSON *tools, const char **name, size_t *n) {
    const char *around = tools ? ":= \n\"\xff" : ":= \n";
    for (;;) {
        if (tool_at(tools, *name, *n) || !*n) return;
        int is_call = *n >= 5 && !strncasecmp(*name, "call", 4) && is_one_of((*name)[4], ":= \n");
        size_t front = is_call ? 5 : (size_t)is_one_of(**name, around);
        if (!front) front = namespace_length(tools, *name, *n);
        if (front) *name += front, *n -= front;
        else if (is_one_of((*name)[*n - 1], around)) --*n;
        else return;
        r->mends |= COLONS;
    }
}

/* Reads `call:NAME` and the bracket that opens the arguments. */
static int read_head(CallReader *r, const cJSON *tools, Buf *name) {
    peek(r);
    if (r->end - r->p >= 5 && !memcmp(r->p, "call:", 5)) r->p += 5;
    else if (r->p < r->end && !is_one_of(*r->p, ":=") && strncasecmp(r->p, "call", 4))
        r->mends |= NO_CALL;
    const char *from = r->p, *p = from;
    while (p < r->end && *p != '{' && *p != '(') p++;
    size_t n = without_blanks(from, p);
    if (n) trim_name(r, tools, &from, &n);
    const cJSON *tool = tool_at(tools, from, n);
    const char *other = tool || r->constrained ? NULL : tool_in_other_case(tools, from, n);
    if (other) {
        from = other;
        tool = tool_at(tools, from, n);
        r->mends |= OTHER_CASE;
    }
    r->root = json_field(tool, "parameters");
    int needs_some = cJSON_GetArraySize(json_field(r->root, "required")) > 0;
    if (p == r->end && (!r->closed || !tool || needs_some)) return give_up(r, "no arguments");
    if (!is_name(from, n)) return give_up(r, "no name");
    buf_add(name, from, n);
    r->p = p;
    if (p == r->end) {
        r->mends |= NO_BRACKETS;
        buf_puts(&r->out, "{}");
        return 0;
    }
    r->p++;
    r->open[r->depth] = r->root;
    r->close[r->depth++] = *p == '{' ? '}' : ')';
    buf_puts(&r->out, "{");
    return 0;
}

/* Moves r->p behind brackets at the end of the text that close nothing.  Behind words without
 * quotes they may be a part of these. */
static void skip_extra_closers(CallReader *r) {
    const char *p = r->p;
    while (p < r->end && (is_blank(*p) || is_one_of(*p, "}])"))) p++;
    if (p < r->end || !peek(r) || r->mends & (BARE_WORD | AS_STRING)) return;
    r->p = p;
    r->mends |= EXTRA_BRACKETS;
}

/* Whether the text goes on with another call, perhaps behind a comma or a semicolon.  Moves r->p to
 * it. */
static int is_next_call(CallReader *r, const cJSON *tools) {
    const char *p = r->p + is_one_of(peek(r), ",;");
    if (p == r->end || call_begins(p, (size_t)(r->end - p), tools) <= 0) return 0;
    r->p = p;
    return 1;
}

/* Reads the arguments.  In NAME({…}) the object between the round brackets is the arguments, and
 * in NAME{{…}} the inner one. */
static int read_arguments(CallReader *r, const cJSON *tools) {
    if (!r->depth) return 0;
    int in_round = r->close[0] == ')' && peek(r) == '{';
    if (r->close[0] == '}' && peek(r) == '{') {
        r->p++;
        r->mends |= EXTRA_BRACKETS;
    }
    if (in_round) {
        r->p++;
        r->close[0] = '}';
        r->mends |= ROUND_BRACKETS;
    }
    if (read_members(r, r->root)) return -1;
    if (in_round && peek(r) == ')') r->p++;
    else if (in_round && r->closed && !peek(r)) r->mends |= MISSING_CLOSER;
    else if (in_round) return give_up(r, "it has no end");
    if (r->mends & MISSING_CLOSER && r->astray)
        return give_up(r, "a closing bracket whose place is not certain");
    skip_extra_closers(r);
    return peek(r) && !is_next_call(r, tools) ? give_up(r, "something behind it") : 0;
}

/* Reads {"name": …, "arguments": {…}}, the form of other models' calls, perhaps behind `call:`,
 * inside of [ ] or as the value of "function".  The arguments may be JSON in a string.  Returns 1;
 * 0: the text is none. */
static int read_as_json(CallReader *r, Buf *name) {
    static const char *const fields[] = {"arguments", "parameters", "args"};
    const char *from = r->p, *given;
    const cJSON *arguments = NULL;
    while (from < r->end && is_blank(*from)) from++;
    if (r->end - from > 5 && !memcmp(from, "call:", 5)) from += 5;
    size_t n = (size_t)(r->end - from);
    if (memchr(from, (unsigned char)CALL_QUOTE, n)) return 0;
    int in_list = n && *from == '[' && from[n - 1] == ']';
    cJSON *whole = json_object(from + in_list, n - 2 * (size_t)in_list, NULL), *inner = NULL;
    const cJSON *function = json_field(whole, "function");
    if (!cJSON_IsObject(function)) function = whole;
    int n_given = 0;
    for (int i = 0; i < 3; i++) {
        n_given += json_field(function, fields[i]) != NULL;
        if (!arguments) arguments = json_field(function, fields[i]);
    }
    if (cJSON_IsString(arguments)) {
        inner = json_object(arguments->valuestring, strlen(arguments->valuestring), NULL);
        arguments = inner;
    }
    given = json_string(function, "name");
    int is_call = given && is_name(given, strlen(given)) && cJSON_IsObject(arguments) &&
                  n_given == 1;
    if (is_call) {
        char *text = json_text(arguments);
        buf_puts(name, given);
        buf_puts(&r->out, text);
        free(text);
        r->mends |= AS_JSON;
        r->p = r->end;
    }
    cJSON_Delete(inner);
    cJSON_Delete(whole);
    return is_call;
}

const char *call_read(const char *text, size_t n, const cJSON *tools, int how, ToolCall *call,
                      Buf *mends, size_t *used) {
    if (!n) return "nothing in it";
    CallReader r = {.p = text, .end = text + n};
    r.closed = how & CALL_CLOSED;
    r.constrained = how & CALL_CONSTRAINED;
    Buf name = {0};
    int bad = !read_as_json(&r, &name) &&
              (read_head(&r, tools, &name) || read_arguments(&r, tools));
    buf_free(&r.names);
    *used = bad ? n : (size_t)(r.p - text);
    if (bad) {
        buf_free(&name);
        buf_free(&r.out);
        return r.why;
    }
    for (size_t i = 0; i < sizeof mend_text / sizeof *mend_text; i++)
        if (r.mends >> i & 1)
            buf_printf(mends, "the call of %s was mended: %s\n", name.data, mend_text[i]);
    *call = (ToolCall){name.data, r.out.data, r.mends != 0};
    return NULL;
}

int call_begins(const char *text, size_t n, const cJSON *tools) {
    static const char call[] = "call:";
    const char *end = text + n;
    while (text < end && is_blank(*text)) text++;
    n = (size_t)(end - text);
    if (memcmp(text, call, n < strlen(call) ? n : strlen(call))) return -1;
    if (n < strlen(call)) return 0;
    const char *name = text + strlen(call), *p = name;
    while (p < end && *p != '{' && *p != '(' && !is_blank(*p)) p++;
    size_t len = (size_t)(p - name);
    while (p < end && is_blank(*p)) p++;
    if (len > MAX_TOOL_NAME || (len && !is_name(name, len))) return -1;
    if (p == end) return 0;
    if ((*p != '{' && *p != '(') || !len) return -1;
    return tool_at(tools, name, len) ? 1 : 2;
}

/* ---- a call that is still being written ---- */

static int is_literal_char(char c) { return !is_one_of(c, "{}[],") && c != CALL_QUOTE; }

/* Adds s[0..n) as JSON writes it within a string, without the quotes. */
static void put_inside(Buf *out, const char *s, size_t n) {
    Buf quoted = {0};
    json_quote(&quoted, s, n);
    buf_add(out, quoted.data + 1, quoted.len - 2);
    buf_free(&quoted);
}

/* Takes one step in the arguments s[0..n): a part of a string, a key, a literal or a bracket.
 * Returns how many bytes it took; 0: the step needs more text. */
static size_t next_delta(CallDelta *p, const char *s, size_t n, Buf *out) {
    size_t i = 0;
    if (p->in_string) {
        while (i < n && s[i] != CALL_QUOTE) i++;
        put_inside(out, s, i);
        if (i == n) return i;
        buf_puts(out, "\"");
        p->in_string = 0;
        return i + 1;
    }
    if (p->at_key && *s != '}') {
        while (i < n && s[i] != ':') i++;
        if (i == n) return 0;
        json_quote(out, s, i);
        buf_puts(out, ":");
        p->at_key = 0;
        return i + 1;
    }
    p->at_key = 0;
    if (*s == CALL_QUOTE) {
        buf_puts(out, "\"");
        p->in_string = 1;
        return 1;
    }
    if (is_literal_char(*s)) {
        while (i < n && is_literal_char(s[i])) i++;
        buf_add(out, s, i);
        return i;
    }
    buf_add(out, s, 1);
    if ((*s == '{' || *s == '[') && p->depth < (int)sizeof p->open) p->open[p->depth++] = *s;
    if ((*s == '}' || *s == ']') && p->depth > 0) p->depth--;
    p->at_key = (*s == '{' || *s == ',') && p->depth > 0 && p->open[p->depth - 1] == '{';
    return 1;
}

void call_delta(CallDelta *p, const char *text, size_t n, Buf *name, Buf *arguments) {
    if (!p->in_arguments) {
        const char *brace = memchr(text, '{', n), *from = text + strlen("call:");
        if (!brace || brace < from) return;
        buf_add(name, from, (size_t)(brace - from));
        p->at = (size_t)(brace - text);
        p->in_arguments = 1;
    }
    for (size_t took = 1; p->at < n && took; p->at += took)
        took = next_delta(p, text + p->at, n - p->at, arguments);
}
