/* pattern.c - a parser of regular expressions, by recursive descent.  See pattern.h. */
#include "pattern.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Limits, chosen by judgement far above the patterns of real schemas.  They bound the recursion
 * over the tree and the copies that a repetition makes, before stringset.c limits the automaton. */
#define MAX_NODES 4096
#define MAX_COUNT 10000                 /* in {n,m} */
#define MAX_GROUPS 100                  /* groups inside of groups */

#define LAST_CHARACTER 0x10ffff

typedef struct {
    const char *p;                      /* the next byte of the pattern, which ends with a 0 */
    Regex *made;                        /* the last node, a list of all nodes */
    int n_made, depth;                  /* nodes; open groups */
    int bad;                            /* 1: the error has been noted */
    Error *err;
} RegexParser;

/* Notes the first error.  Returns -1. */
static int refuse(RegexParser *r, const char *what) {
    if (!r->bad) fail(r->err, "%s", what);
    r->bad = 1;
    return -1;
}

static Regex *new_regex(RegexParser *r, RegexKind kind, Regex *a, Regex *b) {
    Regex *x = xcalloc(1, sizeof *x);
    x->kind = kind;
    x->a = a;
    x->b = b;
    x->made = r->made;
    if (++r->n_made > MAX_NODES) refuse(r, "it is too long");
    return r->made = x;
}

static void add_range(Regex *x, int lo, int hi) {
    x->range = xrealloc(x->range, x->n + 1, sizeof *x->range);
    x->range[x->n][0] = lo;
    x->range[x->n++][1] = hi;
}

static int compare_ranges(const void *x, const void *y) {
    return ((const int *)x)[0] - ((const int *)y)[0];
}

/* Sorts the ranges of a class and joins those that touch.  negate: replaces them by the ranges
 * of all other characters. */
static void tidy_class(Regex *x, int negate) {
    if (x->n) qsort(x->range, (size_t)x->n, sizeof *x->range, compare_ranges);
    int n = 0;
    for (int i = 0; i < x->n; i++) {
        if (n && x->range[i][0] <= x->range[n - 1][1] + 1) {
            if (x->range[i][1] > x->range[n - 1][1]) x->range[n - 1][1] = x->range[i][1];
        } else {
            x->range[n][0] = x->range[i][0];
            x->range[n++][1] = x->range[i][1];
        }
    }
    x->n = n;
    if (!negate) return;
    int (*was)[2] = x->range, from = 0;
    x->range = NULL;
    x->n = 0;
    for (int i = 0; i < n; i++) {
        if (was[i][0] > from) add_range(x, from, was[i][0] - 1);
        from = was[i][1] + 1;
    }
    if (from <= LAST_CHARACTER) add_range(x, from, LAST_CHARACTER);
    free(was);
}

/* Adds the characters of \d \w \s \D \W \S to a class, as in JavaScript: digits and letters are
 * those of ASCII.  A character that is a space in only one of JavaScript and Python matches
 * neither \s nor \S; so \s uses the short list, \S the complement of the long list, and a
 * negated class [^…] (negate) the other way round.  Returns 0 where the name is no such class. */
static int add_named_class(Regex *x, char name, int negate) {
    static const int digits[] = {'0', '9', -1};
    static const int word[] = {'0', '9', 'A', 'Z', '_', '_', 'a', 'z', -1};
    static const int spaces[] = {9, 13, ' ', ' ', 0xa0, 0xa0, 0x1680, 0x1680, 0x2000, 0x200a,
                                 0x2028, 0x2029, 0x202f, 0x202f, 0x205f, 0x205f,
                                 0x3000, 0x3000, -1};
    static const int more_spaces[] = {9, 13, 0x1c, ' ', 0x85, 0x85, 0xa0, 0xa0, 0x1680, 0x1680,
                                      0x2000, 0x200a, 0x2028, 0x2029, 0x202f, 0x202f,
                                      0x205f, 0x205f, 0x3000, 0x3000, 0xfeff, 0xfeff, -1};
    if (!name || !strchr("dwsDWS", name)) return 0;
    int is_opposite = strchr("DWS", name) != NULL, from = 0, kind = name | 32;
    const int *r = is_opposite == negate ? spaces : more_spaces;
    if (kind == 'd') r = digits;
    if (kind == 'w') r = word;
    for (; *r >= 0; r += 2) {
        if (!is_opposite) add_range(x, r[0], r[1]);
        else if (r[0] > from) add_range(x, from, r[0] - 1);
        from = r[1] + 1;
    }
    if (is_opposite) add_range(x, from, LAST_CHARACTER);
    return 1;
}

/* Takes one UTF-8 character, or one byte where the pattern is not UTF-8, and returns its code
 * point. */
static int read_character(RegexParser *r) {
    int n = utf8_char(r->p, strlen(r->p)), c = (uint8_t)*r->p;
    if (n > 1) {
        c &= 0xff >> (n + 1);
        for (int i = 1; i < n; i++) c = c << 6 | (r->p[i] & 63);
    }
    r->p += n > 0 ? n : *r->p != 0;
    return c;
}

static void bad_escape(RegexParser *r) {
    char what[40];
    (void)snprintf(what, sizeof what, "the escape \\%.1s is not supported", r->p);
    refuse(r, *r->p ? what : "a \\ at the end");
}

/* Takes the n hexadecimal digits behind \x or \u (kind) and returns their number. */
static int read_hex(RegexParser *r, int n, char kind) {
    const char *what = kind == 'x' ? "\\x must be followed by two hexadecimal digits"
                                   : "\\u must be followed by four hexadecimal digits";
    int c = 0;
    for (int i = 0; i < n; i++, r->p++) {
        int digit = hex_digit(*r->p);
        if (digit < 0) return refuse(r, what), 0;
        c = c << 4 | digit;
    }
    return c;
}

/* Takes the hexadecimal number behind \u{, with its closing brace, and returns it. */
static int read_braced_hex(RegexParser *r) {
    int c = 0, digit;
    for (r->p++; (digit = hex_digit(*r->p)) >= 0 && c <= LAST_CHARACTER; r->p++) c = c << 4 | digit;
    if (*r->p != '}' || r->p[-1] == '{' || c > LAST_CHARACTER)
        return refuse(r, "\\u{ must be followed by a hexadecimal number and }"), 0;
    r->p++;
    return c;
}

static int is_letter_or_digit(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Takes what follows a backslash that stands for one character, and returns the character.  It
 * may be written as a surrogate pair, \uD83D\uDE00. */
static int read_escape(RegexParser *r) {
    static const char from[] = "nrtfv", to[] = "\n\r\t\f\v";
    const char *at = *r->p ? strchr(from, *r->p) : NULL;
    if (at) return r->p++, to[at - from];
    if (*r->p == 'x') return r->p++, read_hex(r, 2, 'x');
    if (*r->p == 'u') {
        r->p++;
        if (*r->p == '{') return read_braced_hex(r);
        int c = read_hex(r, 4, 'u');
        if (c < 0xd800 || c > 0xdbff || r->p[0] != '\\' || r->p[1] != 'u') return c;
        const char *behind = r->p;
        r->p += 2;
        int low = read_hex(r, 4, 'u');
        if (low >= 0xdc00 && low <= 0xdfff) return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        r->p = behind;
        return c;
    }
    if (!*r->p || is_letter_or_digit(*r->p)) return bad_escape(r), 0;
    return read_character(r);
}

/* Takes one character of a class, as it is or behind a backslash. */
static int read_in_class(RegexParser *r) {
    if (*r->p != '\\') return read_character(r);
    r->p++;
    return read_escape(r);
}

/* Takes a class behind its opening bracket. */
static Regex *read_class(RegexParser *r) {
    Regex *x = new_regex(r, R_CLASS, NULL, NULL);
    int negate = *r->p == '^', has_spaces = 0, has_others = 0;          /* \s, \S */
    if (negate) r->p++;
    /* [] is the empty class in JavaScript, and in Python a class that begins with a ]. */
    if (*r->p == ']') refuse(r, "a class begins with \\], not with ]");
    while (*r->p && *r->p != ']' && !r->bad) {
        int lo, hi;
        if (*r->p == '[' && r->p[1] == ':' && is_letter_or_digit(r->p[2]) && strstr(r->p, ":]"))
            refuse(r, "classes like [:alpha:] are not supported");
        if (*r->p == '\\' && add_named_class(x, r->p[1], negate)) {
            has_spaces |= r->p[1] == 's';
            has_others |= r->p[1] == 'S';
            r->p += 2;
            continue;
        }
        if (*r->p == '\\' && r->p[1] == 'b') {          /* in a class a backspace */
            r->p += 2;
            lo = '\b';
        } else lo = read_in_class(r);
        hi = lo;
        if (*r->p == '-' && r->p[1] && r->p[1] != ']') {
            r->p++;
            if (*r->p == '\\' && r->p[1] && strchr("dwsDWS", r->p[1]))
                refuse(r, "a range that ends in a class");
            hi = read_in_class(r);
        }
        if (hi < lo) refuse(r, "a range that goes backwards");
        add_range(x, lo, hi);
    }
    if (*r->p != ']') refuse(r, "a class without an end");
    else r->p++;
    /* [\s\S] means any character, also those that are neither \s nor \S here. */
    if (has_spaces && has_others) add_range(x, 0, LAST_CHARACTER);
    tidy_class(x, negate);
    return x;
}

static Regex *read_alternatives(RegexParser *r);

/* Takes ?<name>, or ?P<name> as Python writes it.  Without references to groups the name says
 * nothing.  Returns 0 where there is none. */
static int skip_group_name(RegexParser *r) {
    const char *p = r->p + 1;
    if (*p == 'P') p++;
    if (*p++ != '<' || (!is_letter_or_digit(*p) && *p != '_')) return 0;
    while (is_letter_or_digit(*p) || *p == '_') p++;
    if (*p != '>') return 0;
    r->p = p + 1;
    return 1;
}

/* Takes a group or a lookahead behind its opening parenthesis. */
static Regex *read_group(RegexParser *r) {
    int looks = *r->p == '?' && (r->p[1] == '=' || r->p[1] == '!') ? r->p[1] : 0;
    if (*r->p == '?' && (r->p[1] == ':' || looks)) r->p += 2;
    else if (*r->p == '?' && !skip_group_name(r))
        refuse(r, "groups that begin with (? are supported for (?:, (?=, (?! and names only");
    if (++r->depth > MAX_GROUPS) refuse(r, "nested too deep");
    Regex *x = r->bad ? new_regex(r, R_EMPTY, NULL, NULL) : read_alternatives(r);
    r->depth--;
    if (*r->p != ')') refuse(r, "a group without an end");
    else r->p++;
    if (!looks) return x;
    x = new_regex(r, R_AHEAD, x, NULL);
    x->min = looks == '=' ? 1 : -1;
    return x;
}

/* Takes what a repetition may follow: an anchor, a class, a group or one character. */
static Regex *read_atom(RegexParser *r) {
    char c = *r->p++;
    if (c == '^') return new_regex(r, R_BEGIN, NULL, NULL);
    if (c == '$') return new_regex(r, R_END, NULL, NULL);
    if (c == '[') return read_class(r);
    if (c == '(') return read_group(r);
    if (strchr("*+?{", c)) refuse(r, "nothing to repeat");
    Regex *x = new_regex(r, R_CLASS, NULL, NULL);
    if (c == '.') {                     /* any character but the ends of lines */
        add_range(x, '\n', '\n');
        add_range(x, '\r', '\r');
        add_range(x, 0x2028, 0x2029);
        tidy_class(x, 1);
    } else if (c != '\\') {
        r->p--;
        int one = read_character(r);
        add_range(x, one, one);
    } else if (add_named_class(x, *r->p, 0)) r->p++;
    else if (*r->p == 'b' || *r->p == 'B') {
        x->kind = R_EDGE;
        x->min = *r->p++ == 'b' ? 1 : -1;
    } else {
        int one = read_escape(r);
        add_range(x, one, one);
    }
    return x;
}

static int read_number(RegexParser *r) {
    int n = 0;
    if (*r->p < '0' || *r->p > '9') refuse(r, "{ is written \\{ when it is no count");
    for (; *r->p >= '0' && *r->p <= '9'; r->p++) {
        n = 10 * n + *r->p - '0';
        if (n > MAX_COUNT) return refuse(r, "counts above 10000 are not supported");
    }
    return n;
}

/* Takes {n}, {n,} or {n,m} behind its opening brace.  *max -1: any number. */
static void read_counts(RegexParser *r, int *min, int *max) {
    *min = *max = read_number(r);
    if (*r->p == ',') *max = *++r->p == '}' ? -1 : read_number(r);
    if (*r->p == '}') r->p++;
    else refuse(r, "{ is written \\{ when it is no count");
    if (*max >= 0 && *max < *min) refuse(r, "a count that goes backwards");
}

/* Takes atoms and their repetitions up to a |, a ) or the end. */
static Regex *read_sequence(RegexParser *r) {
    Regex *all = new_regex(r, R_EMPTY, NULL, NULL);
    while (*r->p && *r->p != '|' && *r->p != ')' && !r->bad) {
        Regex *x = read_atom(r);
        if (*r->p && strchr("*+?{", *r->p) && !r->bad) {
            char c = *r->p++;
            int min = c == '+', max = c == '?' ? 1 : -1;
            if (c == '{') read_counts(r, &min, &max);
            if (*r->p == '?') r->p++;   /* a lazy repetition matches the same texts */
            if (x->kind == R_BEGIN || x->kind == R_END || x->kind == R_EDGE || x->kind == R_AHEAD)
                refuse(r, "an anchor cannot be repeated");
            x = new_regex(r, R_REPEAT, x, NULL);
            x->min = min;
            x->max = max;
        }
        all = all->kind == R_EMPTY ? x : new_regex(r, R_CAT, all, x);
    }
    return all;
}

static Regex *read_alternatives(RegexParser *r) {
    Regex *x = read_sequence(r);
    while (*r->p == '|' && !r->bad) {
        r->p++;
        x = new_regex(r, R_ALT, x, read_sequence(r));
    }
    return x;
}

int pattern_parse(const char *source, Pattern *out, Error *err) {
    RegexParser r = {.p = source, .err = err};
    out->root = read_alternatives(&r);
    out->made = r.made;
    if (*r.p && !r.bad) refuse(&r, "a ) too many");
    return r.bad ? -1 : 0;
}

void pattern_free(Pattern *p) {
    for (Regex *x = p->made, *next; x; x = next) {
        next = x->made;
        free(x->range);
        free(x);
    }
}
