/* formats.c - what a schema says of strings: pattern, format and lengths.  See compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

#define MAX_TABLE 4000000               /* states of a set of strings times its lengths */

#define HEX "[0-9a-fA-F]"
#define UUID(version) "^" HEX "{8}-" HEX "{4}-" version HEX "{3}-[89abAB]" HEX "{3}-" HEX "{12}$"
#define DATE "(?!0000)(?:\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))" \
             "|(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
#define CLOCK "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d+)?"
#define OFFSET "(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"
#define LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define BYTE "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define IPV4 "(?:" BYTE "\\.){3}" BYTE
#define H16 "[0-9A-Fa-f]{1,4}"
#define LS32 "(?:" H16 ":" H16 "|" IPV4 ")"
#define IPV6 "(?:(?:" H16 ":){6}" LS32 "|::(?:" H16 ":){5}" LS32 "|(?:" H16 ")?::(?:" H16 ":){4}" LS32 "|(?:(?:" H16 ":){0,1}" H16 ")?::(?:" H16 ":){3}" LS32 \
             "|(?:(?:" H16 ":){0,2}" H16 ")?::(?:" H16 ":){2}" LS32 "|(?:(?:" H16 ":){0,3}" H16 ")?::" H16 ":" LS32 "|(?:(?:" H16 ":){0,4}" H16 ")?::" LS32 \
             "|(?:(?:" H16 ":){0,5}" H16 ")?::" H16 "|(?:(?:" H16 ":){0,6}" H16 ")?::)"
#define PCHAR "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
#define AUTHORITY "(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?(?:\\[" IPV6 "\\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::\\d*)?"
#define SCHEME "[A-Za-z][A-Za-z0-9+.-]*:"
#define ROOTED "//" AUTHORITY "(?:/" PCHAR "*)*|/(?:" PCHAR "+(?:/" PCHAR "*)*)?"
#define TAIL "(?:\\?(?:" PCHAR "|[/?])*)?(?:#(?:" PCHAR "|[/?])*)?"

/* What stands between the brackets of a template. */
#define NAME_PART "(?:[A-Za-z0-9_]|%" HEX "{2})+"
#define NAME NAME_PART "(?:\\." NAME_PART ")*(?::[1-9]\\d{0,3}|\\*)?"
#define NAMES NAME "(?:," NAME ")*"

/* A regular expression that JavaScript and Python read, groups up to four in one another. */
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
#define REGEX "^\\^?(?:" REGEX_AHEAD ")*" REGEX_OR(REGEX_GROUP(REGEX_GROUP(REGEX_TWO))) REGEX_MORE "$"

/* Formats as regular expressions: what RFC 3339, 5321, 1123, 2673, 4291, 3986, 6570, 6901, ISO
 * 8601's duration (as RFC 3339 has it) and the three parts of RFC 7519's compact tokens allow.  beside:
 * what holds instead where a pattern stands beside the format and excludes all of it, as zod writes
 * a time without an offset.  most: characters at most, 0: any number. */
static const struct { const char *name, *pattern, *beside; int most; } formats[] = {
    {"date", "^" DATE "$", NULL, 0},
    {"time", "^" CLOCK OFFSET "$", "", 0},
    {"date-time", "^" DATE "T" CLOCK OFFSET "$", "", 0},
    {"duration", "^P(?=[\\dT])(?:\\d+W|(?:\\d+D|\\d+M(?:\\d+D)?|\\d+Y(?:\\d+M(?:\\d+D)?)?)?(?:T(?:\\d+S|\\d+M(?:\\d+S)?|\\d+H(?:\\d+M(?:\\d+S)?)?))?)$", "", 0},
    {"uuid", "^" HEX "{8}-" HEX "{4}-" HEX "{4}-" HEX "{4}-" HEX "{12}$", NULL, 0},
    {"uuid1", UUID("1"), NULL, 0},
    {"uuid2", UUID("2"), NULL, 0},
    {"uuid3", UUID("3"), NULL, 0},
    {"uuid4", UUID("4"), NULL, 0},
    {"uuid5", UUID("5"), NULL, 0},
    {"uuid6", UUID("6"), NULL, 0},
    {"uuid7", UUID("7"), NULL, 0},
    {"uuid8", UUID("8"), NULL, 0},
    {"email", "^(?=.{1,64}@)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@" LABEL "(?:\\." LABEL ")*$", "", 0},
    {"hostname", "^" LABEL "(?:\\." LABEL ")*$", "", 253},
    {"ipv4", "^" IPV4 "$", NULL, 0},
    {"ipv6", "^" IPV6 "$", "", 0},
    {"uri", "^" SCHEME "(?:" ROOTED "|" PCHAR "+(?:/" PCHAR "*)*)?" TAIL "$", "", 0},
    {"uri-reference", "^(?:" SCHEME "(?:" ROOTED "|" PCHAR "+(?:/" PCHAR "*)*)?|" ROOTED
                      "|(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})+(?:/" PCHAR "*)*)?" TAIL "$", "", 0},
    {"jwt", "^[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]*$", "", 0},
    {"json-pointer", "^(?:/(?:[^~/]|~[01])*)*$", NULL, 0},
    {"relative-json-pointer", "^(?:0|[1-9]\\d*)(?:#|(?:/(?:[^~/]|~[01])*)*)$", NULL, 0},
    {"uri-template", "^(?:[!#$&(-;=?-\\[\\]_a-z~\\u00a0-\\ud7ff\\uf900-\\uffef]|%" HEX "{2}"
                     "|\\{[+#./;?&]?" NAMES "\\})*$", "", 0},
    {"regex", REGEX, NULL, 0},
};

int is_annotation(const char *format) {
    static const char *const names[] = {
        "binary", "byte", "password", "path", "file-path", "directory-path", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
        "uint64", "float", "double", "decimal", "base64", "base64url", "ipvanyaddress", "ipvanynetwork", "ipvanyinterface", "ipv4network",
        "ipv6network", "ipv4interface", "ipv6interface", "name-email", "time-delta", "unix-time", "date-time-local", "json-string", "html", "markdown", "textarea", "color", "multi-host-uri", NULL,
    };
    return is_in(format, names);
}

/* Adds what a regular expression asks for to *set (NULL: all strings); `not` its opposite.  0, or -1 with the error. */
int cut_pattern(Compiler *c, const cJSON *schema, const char *keyword, const char *source, int not, Strings **set) {
    Error why;
    Strings *one = strings_of_pattern(source, &why), *was = *set;
    if (one && not) {
        Strings *opposite = strings_not(one);
        strings_free(one);
        one = opposite;
    }
    if (one && was) {
        *set = strings_both(was, one, &why);
        strings_free(one);
        strings_free(was);
        one = *set;
    }
    *set = one;
    return one ? 0 : (wrong(c, schema, keyword, why.text), -1);
}

static int cut_format(Compiler *c, const cJSON *schema, const char *format, int not, int has_pattern, Strings **set) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (strcmp(format, formats[i].name)) continue;
        Strings *was = *set && formats[i].beside ? strings_both(*set, *set, NULL) : NULL;
        if (cut_pattern(c, schema, "format", formats[i].pattern, not, set)) {
            strings_free(was);
            return -1;
        }
        if (was && !not && !(*set)->n) {    /* the pattern has nothing of the format: it alone holds */
            strings_free(*set);
            *set = was;
        } else strings_free(was);
        return 0;
    }
    if (!not && (is_annotation(format) || has_pattern)) return 0;
    Buf what = {0};
    json_quote(&what, format, strlen(format));
    buf_puts(&what, " is not supported");
    wrong(c, schema, "format", what.data);
    buf_free(&what);
    return -1;
}

/* How many characters a format has at most. */
static int most_of(const char *format) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(format, formats[i].name) && formats[i].most) return formats[i].most;
    return NO_LIMIT;
}

/* Whether a format of the place bounds the length of a host's name. */
static int is_host(const Place *p) {
    for (int i = 0; i < p->n; i++) {
        const char *format = cJSON_GetStringValue(json_field(p->part[i].schema, "format"));
        if (format && !(p->part[i].done & NEGATED) && most_of(format) < NO_LIMIT) return 1;
    }
    return 0;
}

/* Takes pattern and format of a schema into the set.  zod's pattern of a host's name begins with a
 * lookahead that says what the format says, too; as an automaton it would be one of 253 lengths. */
static int cut_both(Compiler *c, const Place *p, const cJSON *keyword, const cJSON *schema, int not,
                    int has_pattern, Strings **set) {
    static const char ahead[] = "^(?=.{1,253}\\.?$)";
    const char *text = keyword->valuestring;
    if (!strcmp(keyword->string, "format"))
        return cut_format(c, schema, text, not, has_pattern, set);
    if (strncmp(text, ahead, strlen(ahead)) || !is_host(p) || strchr(text, '|'))
        return cut_pattern(c, schema, "pattern", text, not, set);
    Buf rest = {0};
    buf_printf(&rest, "^%s", text + strlen(ahead));
    int bad = cut_pattern(c, schema, "pattern", rest.data, not, set);
    buf_free(&rest);
    return bad;
}

/* The strings of the place as a set, NULL: all; their lengths in *min, *max.  0, or -1 with the error. */
int strings_at(Compiler *c, const Place *p, Strings **set, int *min, int *max, Buf *key) {
    int has_pattern = 0;
    for (int round = 0; round < 2; round++)             /* patterns first: a format may give way to them */
        for (int i = 0; i < p->n; i++) {
            const cJSON *schema = p->part[i].schema;
            const cJSON *keyword = json_field(schema, round ? "format" : "pattern");
            int not = p->part[i].done & NEGATED;
            if (keyword && !cJSON_IsString(keyword)) return wrong(c, schema, keyword->string, "must be a string"), -1;
            if (keyword) buf_printf(key, "%s%s%s\n", not ? "!" : "", round ? "f" : "p", keyword->valuestring);
            has_pattern |= keyword && !round;
            if (keyword && round && !not && most_of(keyword->valuestring) < *max) *max = most_of(keyword->valuestring);
            if (keyword && set && cut_both(c, p, keyword, schema, not, has_pattern, set)) return -1;
            if (round || not) continue;
            int lo = count_of(c, schema, "minLength", 0), hi = count_of(c, schema, "maxLength", NO_LIMIT);
            if (lo > *min) *min = lo;
            if (hi < *max) *max = hi;
        }
    buf_printf(key, "%d %d", *min, *max);
    return c->bad ? -1 : 0;
}

/* Takes the words of a negated schema out of *set.  0, or -1 with the error. */
static int take_out(Compiler *c, const cJSON *schema, const char *const *word, int n,
                    Strings **set) {
    Error why;
    Strings *words = strings_of_words(word, n), *others = words ? strings_not(words) : NULL;
    Strings *was = *set;
    strings_free(words);
    const char *keyword = json_field(schema, "enum") ? "enum" : "const";
    if (!others) return wrong(c, schema, keyword, "too many strings are excluded"), -1;
    *set = was ? strings_both(was, others, &why) : others;
    if (was) strings_free(others), strings_free(was);
    return *set ? 0 : (wrong(c, schema, keyword, why.text), -1);
}

/* Words that no negated const or enum of the place allows, as a set of strings taken out of *set. */
static int cut_words(Compiler *c, const Place *p, Strings **set, Buf *key) {
    int bad = 0;
    for (int i = 0; i < p->n && !bad; i++) {
        const cJSON *schema = p->part[i].schema, *list = json_field(schema, "enum"), *one = json_field(schema, "const"), *v;
        const char **words = NULL;
        int n = 0;
        if (!(p->part[i].done & NEGATED)) continue;
        for (v = list ? list->child : one; v; v = list ? v->next : NULL) {
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

static TextStyle text_style(const Compiler *c) { return states_in_calls(c->s) ? CALL_TEXT : JSON_TEXT; }

int compile_string(Compiler *c, const Place *p) {
    Schema *s = c->s;
    Buf key = {0};
    int min = 0, max = NO_LIMIT, ret = states_ret(s);
    if (strings_at(c, p, NULL, &min, &max, &key) || cut_words(c, p, NULL, &key)) {
        buf_free(&key);
        return states_fail(s);
    }
    for (int i = 0; i < c->n_known; i++)
        if (!strcmp(c->known[i].key, key.data)) {
            buf_free(&key);
            return c->known[i].routine < 0 ? states_fail(s) : put_call(s, c->known[i].routine, ret);
        }
    Strings *set = NULL;
    Buf again = {0};
    int bad = strings_at(c, p, &set, &min, &max, &again) || cut_words(c, p, &set, &again), pc = states_fail(s);
    int64_t columns = max == NO_LIMIT ? (int64_t)min + 1 : (int64_t)max + 1;
    const char *bound = max == NO_LIMIT ? "minLength" : "maxLength";
    if (!bad && set && columns * set->n > MAX_TABLE)
        bad = (wrong(c, holder_of(p, bound), bound, "too large beside a pattern or a format"), 1);
    if (!bad && set && min <= max) pc = put_quote(s, put_strings(s, set, min, max, text_style(c), ret));
    else if (!bad && !set) pc = put_quote(s, put_text(s, min, max, text_style(c), ret));
    if (bad || !set || min > max) strings_free(set);
    buf_free(&again);
    int routine = pc == states_fail(s) ? -1 : new_routine(s);
    if (routine >= 0) set_entry(s, routine, pc);
    c->known = xrealloc(c->known, c->n_known + 1, sizeof *c->known);
    c->known[c->n_known++] = (Known){key.data, routine};
    return routine < 0 ? pc : put_call(s, routine, ret);
}
