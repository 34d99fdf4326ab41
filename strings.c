/* strings.c - what a schema says of strings: `pattern`, `format`, `minLength`, `maxLength`.  See
 * compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

/* Limit of the states of a set of strings times the lengths that its bounds tell apart.  Chosen by
 * judgement for the memory: a TextSet (states.h) takes 5 bytes for each, 20 MB at the limit. */
#define MAX_TABLE 4000000
#define LEAST_MOST 1000                 /* a maxLength may be lowered to this for MAX_TABLE */

#define HEX "[0-9a-fA-F]"
#define UUID(version) "^" HEX "{8}-" HEX "{4}-" version HEX "{3}-[89abAB]" HEX "{3}-" HEX "{12}$"

/* Days 1 to 31, 30 or 28 by the month, or February 29 of a leap year. */
#define MONTH_31 "(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])"
#define MONTH_30 "(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)"
#define FEBRUARY "02-(?:0[1-9]|1\\d|2[0-8])"
#define LEAP_YEAR \
    "(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
#define DATE "(?!0000)(?:\\d{4}-(?:" MONTH_31 "|" MONTH_30 "|" FEBRUARY ")|" LEAP_YEAR "-02-29)"

#define CLOCK "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d+)?"
#define OFFSET "(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"

/* ISO 8601's duration as RFC 3339 has it: units in order, none left out between two. */
#define DAYS "\\d+D|\\d+M(?:\\d+D)?|\\d+Y(?:\\d+M(?:\\d+D)?)?"
#define SECONDS "\\d+S|\\d+M(?:\\d+S)?|\\d+H(?:\\d+M(?:\\d+S)?)?"
#define DURATION "^P(?=[\\dT])(?:\\d+W|(?:" DAYS ")?(?:T(?:" SECONDS "))?)$"

/* Mail and hosts. */
#define ATEXT "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
#define LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define BYTE "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define IPV4 "(?:" BYTE "\\.){3}" BYTE
#define H16 "[0-9A-Fa-f]{1,4}"
#define LS32 "(?:" H16 ":" H16 "|" IPV4 ")"
#define IPV6 \
    "(?:(?:" H16 ":){6}" LS32 \
    "|::(?:" H16 ":){5}" LS32 \
    "|(?:" H16 ")?::(?:" H16 ":){4}" LS32 \
    "|(?:(?:" H16 ":){0,1}" H16 ")?::(?:" H16 ":){3}" LS32 \
    "|(?:(?:" H16 ":){0,2}" H16 ")?::(?:" H16 ":){2}" LS32 \
    "|(?:(?:" H16 ":){0,3}" H16 ")?::" H16 ":" LS32 \
    "|(?:(?:" H16 ":){0,4}" H16 ")?::" LS32 \
    "|(?:(?:" H16 ":){0,5}" H16 ")?::" H16 \
    "|(?:(?:" H16 ":){0,6}" H16 ")?::)"

/* RFC 3986, with its names.  `more` are the characters that RFC 3987 adds for IRIs, or "". */
#define PCT_ENCODED "%[0-9A-Fa-f]{2}"
#define PCHAR(more) "(?:[A-Za-z0-9._~!$&'()*+,;=:@" more "-]|" PCT_ENCODED ")"
#define USERINFO(more) "(?:[A-Za-z0-9._~!$&'()*+,;=:" more "-]|" PCT_ENCODED ")*"
#define REG_NAME(more) "(?:[A-Za-z0-9._~!$&'()*+,;=" more "-]|" PCT_ENCODED ")*"
#define SEGMENT_NZ_NC(more) "(?:[A-Za-z0-9._~!$&'()*+,;=@" more "-]|" PCT_ENCODED ")+"
#define AUTHORITY(more) \
    "(?:" USERINFO(more) "@)?(?:\\[" IPV6 "\\]|" REG_NAME(more) ")(?::\\d*)?"
#define SCHEME "[A-Za-z][A-Za-z0-9+.-]*:"
#define SEGMENTS(more) "(?:/" PCHAR(more) "*)*"
#define ROOTED(more) \
    "//" AUTHORITY(more) SEGMENTS(more) "|/(?:" PCHAR(more) "+" SEGMENTS(more) ")?"
#define TAIL(more) "(?:\\?(?:" PCHAR(more) "|[/?])*)?(?:#(?:" PCHAR(more) "|[/?])*)?"
#define ABSOLUTE(more) SCHEME "(?:" ROOTED(more) "|" PCHAR(more) "+" SEGMENTS(more) ")?"
#define URI(more) "^" ABSOLUTE(more) TAIL(more) "$"
#define URI_REFERENCE(more) \
    "^(?:" ABSOLUTE(more) "|" ROOTED(more) "|" SEGMENT_NZ_NC(more) SEGMENTS(more) ")?" \
    TAIL(more) "$"
#define UCSCHAR "\\u00a0-\\ud7ff\\uf900-\\ufdcf\\ufdf0-\\uffef"

/* A label of a host in letters that IDNA allows at any place: Latin, Greek and Cyrillic small
 * letters, kana, Chinese and Korean; so few of them that the A-label has at most 63 bytes. */
#define LETTER "a-z0-9\\u00df-\\u00f6\\u00f8-\\u00ff\\u03ac-\\u03ce\\u0430-\\u045f" \
               "\\u3041-\\u3096\\u30a1-\\u30fa\\u4e00-\\u9fa5\\uac00-\\ud7a3"
#define IDN_LABEL "(?:" LABEL "|[" LETTER "](?:-?[" LETTER "]){0,8})"
#define UTF8_ATEXT "[A-Za-z0-9!#$%&'*+/=?^_`{|}~" UCSCHAR "-]+"

/* What stands between the braces of an RFC 6570 template. */
#define NAME_PART "(?:[A-Za-z0-9_]|%" HEX "{2})+"
#define NAME NAME_PART "(?:\\." NAME_PART ")*(?::[1-9]\\d{0,3}|\\*)?"
#define NAMES NAME "(?:," NAME ")*"

/* A regular expression that JavaScript and Python both accept, with groups nested up to four
 * deep.  REGEX_RANGE is n,m with n <= m.  REGEX_OR(group) REGEX_MORE is a sequence of items and
 * groups, each with or without a count, and of |, ^, $, \b and \B. */
#define REGEX_ESCAPE "\\\\(?:[dDwWsSnrtfv.*+?()\\[\\]{}|^$\\\\/-]|u[0-9a-f]{4}|x[0-9A-Fa-f]{2})"
#define REGEX_CLASS "\\[\\^?(?:[A-Za-z0-9_ .,:;@!\"#%'()*+/<=>?{}$]|[^\\x00-\\x7f]|" REGEX_ESCAPE \
                    "|a-z|A-Z|a-f|A-F|0-9)+-?\\]"
#define REGEX_ITEM "(?:[A-Za-z0-9 _,:;<=>@!\"#%&'/~`-]|[^\\x00-\\x7f]|" REGEX_ESCAPE "|" \
                   REGEX_CLASS "|\\.)"
#define REGEX_RANGE "0,\\d|1,[1-9]|2,[2-9]|3,[3-9]|4,[4-9]|5,[5-9]|6,[6-9]|7,[7-9]|8,[89]|9,9|" \
                    "\\d,[1-9]\\d{1,2}"
#define REGEX_COUNT "(?:(?:[*+?]|\\{(?:\\d{1,3},?|" REGEX_RANGE ")\\})[?]?)?"
#define REGEX_OR(group) "(?:(?:" REGEX_ITEM "|" group ")"
#define REGEX_MORE REGEX_COUNT "|[|^$]|\\\\[bB])*"
#define REGEX_GROUP(group) "\\((?:\\?:)?(?:(?:" REGEX_ITEM "|" group ")" REGEX_MORE "\\)"
#define REGEX_TWO REGEX_GROUP(REGEX_GROUP(REGEX_ITEM))
#define REGEX_AHEAD "\\(\\?[=!]" REGEX_OR(REGEX_TWO) REGEX_MORE "\\)"
#define REGEX_FOUR REGEX_GROUP(REGEX_GROUP(REGEX_TWO))
#define REGEX "^\\^?(?:" REGEX_AHEAD ")*" REGEX_OR(REGEX_FOUR) REGEX_MORE "$"

/* The formats that are acted upon, as regular expressions of RFC 3339 (dates, times, durations),
 * 5321 (mail), 1123 (hosts), 2673 (IPv4), 4291 (IPv6), 3986 (URIs), 6570 (templates), 6901 (JSON
 * pointers) and 7519 (the three parts of a compact token). */
static const struct {
    const char *name, *pattern;
    /* 1: a `pattern` beside the format that excludes all of the format counts alone, as zod writes
     * a time without an offset. */
    int yields;
    int most;                           /* characters at most, 0: any number */
} formats[] = {
    {"date", "^" DATE "$", 0, 0},
    {"time", "^" CLOCK OFFSET "$", 1, 0},
    {"date-time", "^" DATE "T" CLOCK OFFSET "$", 1, 0},
    {"iso-time", "^" CLOCK OFFSET "?$", 1, 0},
    {"iso-date-time", "^" DATE "T" CLOCK OFFSET "?$", 1, 0},
    {"partial-date-time", "^" DATE "T" CLOCK "$", 1, 0},
    {"duration", DURATION, 1, 0},
    {"uuid", "^" HEX "{8}-" HEX "{4}-" HEX "{4}-" HEX "{4}-" HEX "{12}$", 0, 0},
    {"guid", "^" HEX "{8}-" HEX "{4}-" HEX "{4}-" HEX "{4}-" HEX "{12}$", 0, 0},
    {"uuid1", UUID("1"), 0, 0},
    {"uuid2", UUID("2"), 0, 0},
    {"uuid3", UUID("3"), 0, 0},
    {"uuid4", UUID("4"), 0, 0},
    {"uuid5", UUID("5"), 0, 0},
    {"uuid6", UUID("6"), 0, 0},
    {"uuid7", UUID("7"), 0, 0},
    {"uuid8", UUID("8"), 0, 0},
    {"email", "^(?=.{1,64}@)" ATEXT "(?:\\." ATEXT ")*@" LABEL "(?:\\." LABEL ")*$", 1, 0},
    {"idn-email", "^(?=.{1,21}@)" UTF8_ATEXT "(?:\\." UTF8_ATEXT ")*@" IDN_LABEL
                  "(?:\\." IDN_LABEL ")*$", 1, 0},
    {"hostname", "^" LABEL "(?:\\." LABEL ")*$", 1, 253},
    {"host-name", "^" LABEL "(?:\\." LABEL ")*$", 1, 253},
    /* A character takes up to 6.4 bytes of the 253 that a host may have in ASCII. */
    {"idn-hostname", "^(?:" LABEL "(?:\\." LABEL ")*|(?=.{1,39}$)" IDN_LABEL
                     "(?:\\." IDN_LABEL ")*)$", 1, 253},
    {"ip", "^(?:" IPV4 "|" IPV6 ")$", 0, 0},
    {"ipvanyaddress", "^(?:" IPV4 "|" IPV6 ")$", 0, 0},
    {"ip-address", "^" IPV4 "$", 0, 0},
    {"ipv4", "^" IPV4 "$", 0, 0},
    {"ipv6", "^" IPV6 "$", 1, 0},
    {"uri", URI(""), 1, 0},
    {"uri-reference", URI_REFERENCE(""), 1, 0},
    {"iri", URI(UCSCHAR), 1, 0},
    {"iri-reference", URI_REFERENCE(UCSCHAR), 1, 0},
    {"url", "^(?:https?|ftp)://" LABEL "(?:\\." LABEL ")*(?::\\d{1,4})?" SEGMENTS("") TAIL("")
            "$", 1, 0},
    {"jwt", "^[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]*$", 1, 0},
    {"json-pointer", "^(?:/(?:[^~/]|~[01])*)*$", 0, 0},
    {"relative-json-pointer", "^(?:0|[1-9]\\d*)(?:#|(?:/(?:[^~/]|~[01])*)*)$", 0, 0},
    {"uri-template", "^(?:[!#$&(-;=?-\\[\\]_a-z~\\u00a0-\\ud7ff\\uf900-\\uffef]|%" HEX "{2}"
                     "|\\{[+#./;?&]?" NAMES "\\})*$", 1, 0},
    {"regex", REGEX, 0, 0},
};

int is_annotation(const char *format) {
    static const char *const names[] = {
        "binary", "byte", "password", "path", "file-path", "directory-path", "int8", "int16",
        "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double", "decimal",
        "ipvanynetwork", "ipvanyinterface", "ipv4network", "ipv6network", "ipv4interface",
        "ipv6interface", "name-email", "time-delta", "time-span", "unix-time", "utc-millisec",
        "date-time-local", "json-string", "html", "markdown", "textarea", "color", "style",
        "phone", "enum", "multi-host-uri", "base64", "base64url", NULL,
    };
    return is_in(format, names);
}

int cut_pattern(Compiler *c, const cJSON *schema, const char *keyword, const char *source, int not,
                Strings **set) {
    Error why;
    Strings *one = strings_of_pattern(source, &why), *was = *set;
    if (one && not) {
        Strings *opposite = strings_not(one);
        strings_free(one);
        one = opposite;
    }
    *set = one;
    if (one && was) {
        *set = strings_both(was, one, &why);
        strings_free(one);
    }
    strings_free(was);
    if (!*set) return wrong(c, schema, keyword, why.text), -1;
    return 0;
}

static Strings *strings_copy(const Strings *a) { return strings_both(a, a, NULL); }

/* Cuts *set (NULL: all strings) with a format, or with its opposite (not).  has_pattern: a
 * pattern of the place is in *set.  A format that is not known is ignored beside a pattern,
 * which says what is meant.  Returns 0, or -1 with the error. */
static int cut_format(Compiler *c, const cJSON *schema, const char *format, int not,
                      int has_pattern, Strings **set) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (strcmp(format, formats[i].name)) continue;
        Strings *was = *set && formats[i].yields ? strings_copy(*set) : NULL;
        if (cut_pattern(c, schema, "format", formats[i].pattern, not, set)) {
            strings_free(was);
            return -1;
        }
        if (was && !not && !(*set)->n) {
            strings_free(*set);
            *set = was;
        } else strings_free(was);
        return 0;
    }
    if (!not && (is_annotation(format) || has_pattern)) return 0;
    Buf what = {0};
    json_quote_text(&what, format);
    buf_puts(&what, " is not supported");
    wrong(c, schema, "format", what.data);
    buf_free(&what);
    return -1;
}

/* How many characters a format has at most, or NO_LIMIT. */
static int most_of(const char *format) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(format, formats[i].name) && formats[i].most) return formats[i].most;
    return NO_LIMIT;
}

/* Whether a format of the place is a hostname, the one format that bounds the length. */
static int is_host(const Place *p) {
    for (int i = 0; i < p->n; i++) {
        const char *format = json_string(p->part[i].schema, "format");
        if (format && !(p->part[i].marks & NEGATED) && most_of(format) < NO_LIMIT) return 1;
    }
    return 0;
}

/* Cuts *set with a `pattern` or a `format` (keyword) of a schema, as cut_format does.  zod's
 * pattern of a hostname begins with a lookahead for the length, which the format bounds, too: it
 * is dropped, because its automaton would have each state for each of 253 lengths. */
static int cut_both(Compiler *c, const Place *p, const cJSON *keyword, const cJSON *schema, int not,
                    int has_pattern, Strings **set) {
    static const char ahead[] = "^(?=.{1,253}\\.?$)";
    const char *text = keyword->valuestring;
    if (!strcmp(keyword->string, "format"))
        return cut_format(c, schema, text, not, has_pattern, set);
    if (!begins(text, ahead) || !is_host(p) || strchr(text, '|'))
        return cut_pattern(c, schema, "pattern", text, not, set);
    Buf rest = {0};
    buf_printf(&rest, "^%s", text + strlen(ahead));
    int bad = cut_pattern(c, schema, "pattern", rest.data, not, set);
    buf_free(&rest);
    return bad;
}

int strings_at(Compiler *c, const Place *p, Strings **set, int *min, int *max, Buf *key) {
    int has_pattern = 0;
    /* Patterns first, because a format may yield to them. */
    for (int formats_now = 0; formats_now < 2; formats_now++)
        for (int i = 0; i < p->n; i++) {
            const cJSON *schema = p->part[i].schema;
            const cJSON *keyword = json_field(schema, formats_now ? "format" : "pattern");
            const char *text = cJSON_GetStringValue(keyword);
            int not = p->part[i].marks & NEGATED;
            if (keyword && !text)
                return wrong(c, schema, keyword->string, "must be a string"), -1;
            if (text) {
                buf_printf(key, "%s%c%s\n", not ? "!" : "", *keyword->string, text);
                has_pattern |= !formats_now;
                if (formats_now && !not && most_of(text) < *max) *max = most_of(text);
                if (set && cut_both(c, p, keyword, schema, not, has_pattern, set)) return -1;
            }
            if (formats_now || not) continue;
            int lo = count_of(c, schema, "minLength", 0);
            int hi = count_of(c, schema, "maxLength", NO_LIMIT);
            if (lo > *min) *min = lo;
            if (hi < *max) *max = hi;
        }
    buf_printf(key, "%d %d", *min, *max);
    return c->bad ? -1 : 0;
}

/* Takes the n words of a negated const or enum out of *set.  Returns 0, or -1 with the error. */
static int take_out(Compiler *c, const cJSON *schema, const char *const *word, int n,
                    Strings **set) {
    Error why;
    Strings *words = strings_of_words(word, n), *others = words ? strings_not(words) : NULL;
    Strings *was = *set;
    strings_free(words);
    const char *keyword = json_field(schema, "enum") ? "enum" : "const";
    if (!others) return wrong(c, schema, keyword, "too many strings are excluded"), -1;
    *set = was ? strings_both(was, others, &why) : others;
    if (was) {
        strings_free(others);
        strings_free(was);
    }
    return *set ? 0 : (wrong(c, schema, keyword, why.text), -1);
}

/* Takes the words of all negated consts and enums of the place out of *set (set NULL: only adds
 * them to the key, as strings_at).  Returns 0, or -1 with the error. */
static int cut_words(Compiler *c, const Place *p, Strings **set, Buf *key) {
    int bad = 0;
    for (int i = 0; i < p->n && !bad; i++) {
        const cJSON *schema = p->part[i].schema, *v;
        const char **words = NULL;
        int n = 0;
        if (!(p->part[i].marks & NEGATED)) continue;
        for (v = constants_of(schema); v; v = next_constant(schema, v)) {
            if (!cJSON_IsString(v)) continue;
            buf_printf(key, "\n-%s", v->valuestring);
            words = xrealloc(words, n + 1, sizeof *words);
            words[n++] = v->valuestring;
        }
        if (set && n) bad = take_out(c, schema, words, n, set);
        free(words);
    }
    return bad;
}

/* The program of the place's strings: their set and bounds are found and written. */
static int put_place_strings(Compiler *c, const Place *p) {
    Schema *s = c->s;
    Strings *set = NULL;
    Buf key = {0};
    TextStyle style = program_in_calls(s) ? CALL_TEXT : JSON_TEXT;
    int min = 0, max = NO_LIMIT, ret = program_ret(s), pc = program_fail(s);
    int bad = strings_at(c, p, &set, &min, &max, &key) || cut_words(c, p, &set, &key);
    int64_t room = !bad && set && set->n ? MAX_TABLE / set->n - 1 : max;
    if (max != NO_LIMIT && max > room && room >= LEAST_MOST && room >= min) max = (int)room;
    int64_t columns = max == NO_LIMIT ? (int64_t)min + 1 : (int64_t)max + 1;
    const char *bound = max == NO_LIMIT ? "minLength" : "maxLength";
    if (!bad && set && columns * set->n > MAX_TABLE) {
        wrong(c, holder_of(p, bound), bound, "too large beside a pattern or a format");
        bad = 1;
    }
    int takes_set = !bad && set && min <= max;          /* put_strings then owns it */
    if (takes_set) pc = put_quote(s, put_strings(s, set, min, max, style, ret));
    else if (!bad && !set) pc = put_quote(s, put_text(s, min, max, style, ret));
    if (!takes_set) strings_free(set);
    buf_free(&key);
    return pc;
}

/* Many places of a schema have the same strings, so each kind is compiled once, as a routine. */
int compile_string(Compiler *c, const Place *p) {
    Schema *s = c->s;
    Buf key = {0};
    int min = 0, max = NO_LIMIT, ret = program_ret(s);
    if (strings_at(c, p, NULL, &min, &max, &key) || cut_words(c, p, NULL, &key)) {
        buf_free(&key);
        return program_fail(s);
    }
    for (int i = 0; i < c->n_known; i++)
        if (!strcmp(c->known[i].key, key.data)) {
            buf_free(&key);
            int known = c->known[i].routine;
            return known < 0 ? program_fail(s) : put_call(s, known, ret);
        }
    int pc = put_place_strings(c, p);
    int routine = pc == program_fail(s) ? -1 : new_routine(s);
    if (routine >= 0) set_entry(s, routine, pc);
    c->known = xrealloc(c->known, c->n_known + 1, sizeof *c->known);
    c->known[c->n_known++] = (Known){key.data, routine};
    return routine < 0 ? pc : put_call(s, routine, ret);
}
