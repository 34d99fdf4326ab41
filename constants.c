/* constants.c - what a schema says of numbers; which values of enum and const satisfy the
 * schemas beside them; whether two schemas have a value in common.  See compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"

/* Limits, chosen by judgement.  The last two bound a search that only looks for certainty: what
 * it does not find is taken for "may have a value in common". */
#define FEW_VALUES 8                    /* values of an enum that are compared one by one */
#define MAX_TOGETHER 16                 /* schemas that are known to hold together */
#define MAX_COMPARED 100000             /* comparisons of schemas in all */
#define MAX_APART 4                     /* depth of such comparisons */

/* ---- values ---- */

int decimal_of(const cJSON *v, Decimal *out) {
    char *text = json_text(v);
    int bad = decimal_read(text, out);
    free(text);
    return bad;
}

static int is_whole_number(const cJSON *v) {
    Decimal d;
    return cJSON_IsNumber(v) && !decimal_of(v, &d) && decimal_is_whole(&d);
}

int type_of_value(const cJSON *v) {
    if (cJSON_IsString(v)) return T_STRING;
    if (cJSON_IsNumber(v)) return is_whole_number(v) ? T_INTEGER : T_FRACTION;
    if (cJSON_IsBool(v)) return T_BOOLEAN;
    if (cJSON_IsArray(v)) return T_ARRAY;
    return cJSON_IsObject(v) ? T_OBJECT : T_NULL;
}

/* Whether two numbers are equal; where one has too many digits, whether their texts are. */
static int same_number(const cJSON *a, const cJSON *b) {
    Decimal x, y;
    int bad = decimal_of(a, &x) | decimal_of(b, &y);
    if (!bad) return !decimal_compare(&x, &y);
    return a->valuestring && b->valuestring && !strcmp(a->valuestring, b->valuestring);
}

int same_value(const cJSON *a, const cJSON *b) {
    if (cJSON_IsNumber(a) && cJSON_IsNumber(b)) return same_number(a, b);
    if ((cJSON_IsArray(a) && cJSON_IsArray(b)) || (cJSON_IsObject(a) && cJSON_IsObject(b))) {
        if (cJSON_GetArraySize(a) != cJSON_GetArraySize(b)) return 0;
        const cJSON *x, *y = b->child;
        cJSON_ArrayForEach(x, a) {
            if (cJSON_IsObject(a)) y = cJSON_GetObjectItemCaseSensitive(b, x->string);
            if (!y || !same_value(x, y)) return 0;
            if (cJSON_IsArray(a)) y = y->next;
        }
        return 1;
    }
    return cJSON_Compare(a, b, 1);
}

static void put_decimal(Buf *out, const cJSON *v) {
    Decimal d;
    char *text = json_text(v);
    if (decimal_read(text, &d)) buf_puts(out, text);    /* too many digits: the text itself */
    else buf_printf(out, "%s%s.%s", d.negative ? "-" : "", d.whole, d.part);
    free(text);
}

static const char *text_of_word(const cJSON *v) {
    if (cJSON_IsBool(v)) return cJSON_IsTrue(v) ? "true" : "false";
    return "null";
}

static int compare_properties(const void *x, const void *y) {
    const Property *a = x, *b = y;
    return strcmp(a->name, b->name);
}

/* Adds a text that is the same for two values exactly where same_value holds. */
static void put_value(Buf *out, const cJSON *v) {
    const cJSON *item;
    Property *p = NULL;
    int n = 0;
    if (cJSON_IsString(v)) json_quote(out, v->valuestring, strlen(v->valuestring));
    else if (cJSON_IsNumber(v)) put_decimal(out, v);
    else if (cJSON_IsArray(v)) {
        buf_puts(out, "[");
        cJSON_ArrayForEach(item, v) {
            put_value(out, item);
            buf_puts(out, ",");
        }
    } else if (cJSON_IsObject(v)) {
        buf_puts(out, "{");
        p = xcalloc(cJSON_GetArraySize(v) + 1, sizeof *p);
        cJSON_ArrayForEach(item, v) p[n++] = (Property){.name = item->string, .value = item};
        if (n) qsort(p, (size_t)n, sizeof *p, compare_properties);
        for (int i = 0; i < n; i++) {
            json_quote(out, p[i].name, strlen(p[i].name));
            put_value(out, p[i].value);
        }
        free(p);
    } else buf_puts(out, text_of_word(v));
    if (cJSON_IsArray(v) || cJSON_IsObject(v)) buf_puts(out, "]");
}

static int compare_texts(const void *x, const void *y) {
    return strcmp(*(char *const *)x, *(char *const *)y);
}

/* The sorted texts of an enum's values, made once for each enum. */
static const KnownValues *known_values(Compiler *c, const cJSON *list) {
    const cJSON *item;
    for (int i = c->n_values - 1; i >= 0; i--)
        if (c->values[i].list == list) return &c->values[i];
    KnownValues k = {list, xcalloc(cJSON_GetArraySize(list) + 1, sizeof *k.text), 0};
    cJSON_ArrayForEach(item, list) {
        Buf text = {0};
        put_value(&text, item);
        k.text[k.n++] = text.data;
    }
    if (k.n) qsort(k.text, (size_t)k.n, sizeof *k.text, compare_texts);
    c->values = xrealloc(c->values, c->n_values + 1, sizeof *c->values);
    c->values[c->n_values] = k;
    return &c->values[c->n_values++];
}

/* Whether a value is in an enum.  A long enum is searched by bisection: comparing each of its
 * values with each of another long enum would take too long. */
static int is_among(Compiler *c, const cJSON *list, const cJSON *v) {
    const cJSON *item;
    int n = 0, found = 0;
    cJSON_ArrayForEach(item, list) {
        if (++n > FEW_VALUES) break;
        if (same_value(item, v)) return 1;
    }
    if (n <= FEW_VALUES) return 0;
    const KnownValues *k = known_values(c, list);
    Buf text = {0};
    put_value(&text, v);
    found = bsearch(&text.data, k->text, (size_t)k->n, sizeof *k->text, compare_texts) != NULL;
    buf_free(&text);
    return found;
}

void free_known_values(Compiler *c) {
    for (int i = 0; i < c->n_values; i++) {
        while (c->values[i].n) free(c->values[i].text[--c->values[i].n]);
        free(c->values[i].text);
    }
    for (int i = 0; i < c->n_strings; i++) {
        strings_free(c->strings[i].set);
        free(c->strings[i].key);
    }
    free(c->values);
    free(c->strings);
}

const cJSON *constants_of(const cJSON *schema) {
    const cJSON *list = json_field(schema, "enum");
    return list ? list->child : cJSON_GetObjectItemCaseSensitive(schema, "const");
}

const cJSON *next_constant(const cJSON *schema, const cJSON *v) {
    return json_field(schema, "enum") ? v->next : NULL;
}

/* ---- numbers ---- */

/* A keyword's number with all of its digits.  Returns 1, 0 where the keyword is missing or true
 * or false (as exclusiveMinimum in draft 4), or -1 with the error. */
static int number_of(Compiler *c, const cJSON *schema, const char *name, Decimal *out) {
    const cJSON *v = json_field(schema, name);
    if (!v || cJSON_IsBool(v)) return 0;
    if (!cJSON_IsNumber(v)) return wrong(c, schema, name, "must be a number"), -1;
    static const char many[] = "must be a number of at most 100 digits before and behind the point";
    if (decimal_of(v, out)) return wrong(c, schema, name, many), -1;
    return 1;
}

/* Narrows the range by a bound; sign: 1 for a lower bound, -1 for an upper one. */
static void bound(Range *r, const Decimal *d, int open, int sign) {
    int *has = sign > 0 ? &r->has_lo : &r->has_hi;
    int *is_open = sign > 0 ? &r->lo_open : &r->hi_open;
    Decimal *old = sign > 0 ? &r->lo : &r->hi;
    int order = *has ? sign * decimal_compare(d, old) : 1;
    if (order < 0) return;
    *is_open = order ? open : *is_open | open;
    *old = *d;
    *has = 1;
}

/* Narrows r->far by a bound that has too many digits for a Decimal and only excludes large
 * numbers: a maximum above 0 (sign -1) or a minimum below 0 (sign 1).  Returns 1, or 0 where it
 * is no such bound. */
static int far_bound(const cJSON *schema, const char *name, Range *r, int sign) {
    const cJSON *v = json_field(schema, name);
    Decimal d;
    if (!cJSON_IsNumber(v) || !decimal_of(v, &d)) return 0;
    char *text = json_text(v);
    int power = decimal_power(text), is_far = power >= MAX_DIGITS && (*text == '-') == (sign > 0);
    if (is_far && (!r->far || power < r->far)) r->far = power;
    free(text);
    return is_far;
}

int add_range(Compiler *c, const cJSON *schema, Range *r) {
    static const char *const names[][2] = {{"minimum", "exclusiveMinimum"},
                                           {"maximum", "exclusiveMaximum"}};
    Decimal d;
    for (int i = 0; i < 2; i++) {
        int sign = i ? -1 : 1;
        /* In draft 4 exclusiveMinimum: true excludes the `minimum` beside it. */
        int old_style = cJSON_IsTrue(json_field(schema, names[i][1]));
        if (old_style && !json_field(schema, names[i][0]))
            wrong(c, schema, names[i][1], "true needs a bound beside it");
        for (int k = 0; k < 2; k++) {
            if (far_bound(schema, names[i][k], r, sign)) continue;
            if (number_of(c, schema, names[i][k], &d) > 0) bound(r, &d, k || old_style, sign);
        }
    }
    if (number_of(c, schema, "multipleOf", &d) > 0) {
        if (r->has_step && decimal_compare(&r->step, &d) && !decimal_is_multiple(&d, &r->step))
            wrong(c, schema, "multipleOf", "beside another multipleOf is not supported");
        if (d.negative || (!strcmp(d.whole, "0") && !*d.part))
            wrong(c, schema, "multipleOf", "must be a number above 0");
        r->has_step = 1;
        r->step = d;
    }
    return c->bad ? -1 : 0;
}

static int compare_decimals(const void *a, const void *b) { return decimal_compare(a, b); }

/* The range is cut at each excluded number: between two of them lies an open range. */
int compile_number(Compiler *c, const Place *p, Range r) {
    const char *why = NULL;
    Decimal *out = NULL;                /* [n] the excluded numbers */
    int n = 0, pc = states_fail(c->s);
    for (int i = 0; i < p->n && !c->bad; i++) {
        const cJSON *schema = p->part[i].schema, *v;
        if (!(p->part[i].marks & NEGATED)) continue;
        for (v = constants_of(schema); v; v = next_constant(schema, v)) {
            if (!cJSON_IsNumber(v) || !(type_of_value(v) == T_INTEGER || !r.whole)) continue;
            out = xrealloc(out, n + 1, sizeof *out);
            if (decimal_of(v, &out[n++]))
                wrong(c, schema, "not", "a number of more than 100 digits is not supported");
        }
    }
    if (n) qsort(out, (size_t)n, sizeof *out, compare_decimals);
    for (int i = 0; i <= n && !c->bad && !why; i++) {
        Range some = r;
        if (i) bound(&some, &out[i - 1], 1, 1);
        if (i < n) bound(&some, &out[i], 1, -1);
        pc = put_either(c->s, pc, put_numbers(c->s, &some, states_ret(c->s), &why));
    }
    free(out);
    return why ? wrong(c, holder_of(p, "multipleOf"), "multipleOf", why) : pc;
}

/* ---- whether a value satisfies a schema ---- */

/* How many schemas of a list the value satisfies. */
static int holds_of(Compiler *c, const cJSON *v, const cJSON *list, int depth) {
    const cJSON *item;
    int n = 0;
    cJSON_ArrayForEach(item, list) n += holds(c, v, item, depth + 1);
    return n;
}

static size_t characters_in(const char *s) {
    size_t n = 0;
    for (; *s; s++) n += ((uint8_t)*s & 0xc0) != 0x80;
    return n;
}

/* Finds the set that is kept under a key.  Returns 1, or 0 where there is none. */
static int find_strings(const Compiler *c, const char *key, Strings **set) {
    for (int i = c->n_strings - 1; i >= 0; i--)
        if (!strcmp(c->strings[i].key, key)) return *set = c->strings[i].set, 1;
    return 0;
}

/* Keeps a set (NULL: all strings) under its key; takes both over. */
static void keep_strings(Compiler *c, char *key, Strings *set) {
    c->strings = xrealloc(c->strings, c->n_strings + 1, sizeof *c->strings);
    c->strings[c->n_strings++] = (KnownStrings){key, set};
}

static int string_holds(Compiler *c, const cJSON *v, const cJSON *schema) {
    Place p = {&(Part){schema, 0}, 1};
    Strings *set = NULL;
    Buf key = {0}, again = {0};
    int min = 0, max = NO_LIMIT, bad = strings_at(c, &p, NULL, &min, &max, &key);
    size_t n = characters_in(v->valuestring);
    if (!bad && !find_strings(c, key.data, &set)) {
        bad = strings_at(c, &p, &set, &min, &max, &again);
        if (bad) strings_free(set);
        else {
            keep_strings(c, key.data, set);
            key = (Buf){0};
        }
    }
    buf_free(&key);
    buf_free(&again);
    return !bad && n >= (size_t)min && n <= (size_t)max &&
        (!set || strings_hold(set, v->valuestring, strlen(v->valuestring)));
}

static int number_holds(Compiler *c, const cJSON *v, const cJSON *schema) {
    Range r = {0};
    Decimal d;
    if (add_range(c, schema, &r)) return 0;
    if (!r.has_lo && !r.has_hi && !r.has_step && !r.far) return 1;
    if (decimal_of(v, &d))
        return wrong(c, schema, "enum", "a number of more than 100 digits beside bounds"), 0;
    /* A number of so few digits is within every far bound. */
    int lo = r.has_lo ? decimal_compare(&d, &r.lo) : 1;
    int hi = r.has_hi ? decimal_compare(&d, &r.hi) : -1;
    if (lo < 0 || (lo == 0 && r.lo_open) || hi > 0 || (hi == 0 && r.hi_open)) return 0;
    return !r.has_step || decimal_is_multiple(&d, &r.step) == 1;
}

int name_matches(Compiler *c, const cJSON *pattern, const char *name) {
    Error why;
    Strings *set = NULL;
    Buf key = {0};
    buf_printf(&key, "name %s", pattern->string);       /* no key of strings_at begins so */
    if (!find_strings(c, key.data, &set)) {
        set = strings_of_pattern(pattern->string, &why);
        if (!set) wrong(c, pattern, NULL, why.text);
        else {
            keep_strings(c, key.data, set);
            key = (Buf){0};
        }
    }
    buf_free(&key);
    return set && strings_hold(set, name, strlen(name));
}

/* Whether n is from the count of keyword `min` to that of keyword `max`. */
static int is_within(Compiler *c, const cJSON *schema, int n, const char *min, int least,
                     const char *max) {
    return n >= count_of(c, schema, min, least) && n <= count_of(c, schema, max, NO_LIMIT);
}

/* Whether an object has all members that a list names. */
static int has_all(const cJSON *object, const cJSON *names) {
    const cJSON *name;
    cJSON_ArrayForEach(name, names)
        if (cJSON_IsString(name) && !cJSON_GetObjectItemCaseSensitive(object, name->valuestring))
            return 0;
    return 1;
}

/* Whether an object satisfies dependentRequired, dependentSchemas and dependencies. */
static int dependents_hold(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    static const char *const keywords[] = {"dependentRequired", "dependentSchemas",
                                           "dependencies"};
    const cJSON *k;
    for (int i = 0; i < 3; i++)
        cJSON_ArrayForEach(k, json_field(schema, keywords[i])) {
            if (!cJSON_GetObjectItemCaseSensitive(v, k->string)) continue;
            if (!(cJSON_IsArray(k) ? has_all(v, k) : holds(c, v, k, depth + 1))) return 0;
        }
    return 1;
}

/* Whether the name and the value of a member satisfy what the schema says of them. */
static int member_holds(Compiler *c, const cJSON *member, const cJSON *schema, int depth) {
    const cJSON *own = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"),
                                                        member->string);
    const cJSON *k, *additional = json_field(schema, "additionalProperties");
    int evaluated = own != NULL;
    if (own && !holds(c, member, own, depth + 1)) return 0;
    cJSON_ArrayForEach(k, json_field(schema, "patternProperties")) {
        if (!name_matches(c, k, member->string)) continue;
        evaluated = 1;
        if (!holds(c, member, k, depth + 1)) return 0;
    }
    if (!evaluated && additional && !holds(c, member, additional, depth + 1)) return 0;
    if (!json_field(schema, "propertyNames")) return 1;
    cJSON *name = cJSON_CreateString(member->string);
    int ok = holds(c, name, json_field(schema, "propertyNames"), depth + 1);
    cJSON_Delete(name);
    return ok;
}

static int object_holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    const cJSON *item;
    int n = cJSON_GetArraySize(v);
    if (!is_within(c, schema, n, "minProperties", 0, "maxProperties")) return 0;
    cJSON_ArrayForEach(item, json_field(schema, "required"))
        if (!cJSON_IsString(item)) return 0;
    if (!has_all(v, json_field(schema, "required"))) return 0;
    if (!dependents_hold(c, v, schema, depth)) return 0;
    cJSON_ArrayForEach(item, v)
        if (!member_holds(c, item, schema, depth)) return 0;
    return 1;
}

/* Whether an item of an array comes again behind itself. */
static int comes_again(const cJSON *item) {
    for (const cJSON *other = item->next; other; other = other->next)
        if (same_value(item, other)) return 1;
    return 0;
}

static int array_holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    const cJSON *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems");
    const cJSON *contains = json_field(schema, "contains"), *item;
    const cJSON *rest = cJSON_IsArray(items) ? json_field(schema, "additionalItems") : items;
    int unique = cJSON_IsTrue(json_field(schema, "uniqueItems"));
    int n = cJSON_GetArraySize(v), i = 0, contained = 0;
    if (cJSON_IsArray(items)) prefix = items;
    if (!is_within(c, schema, n, "minItems", 0, "maxItems")) return 0;
    cJSON_ArrayForEach(item, v) {
        const cJSON *own = i < cJSON_GetArraySize(prefix) ? cJSON_GetArrayItem(prefix, i) : rest;
        if (own && !holds(c, item, own, depth + 1)) return 0;
        if (unique && comes_again(item)) return 0;
        i++;
    }
    if (!contains) return 1;
    cJSON_ArrayForEach(item, v) contained += holds(c, item, contains, depth + 1);
    return is_within(c, schema, contained, "minContains", 1, "maxContains");
}

/* Whether a value satisfies the keywords that apply other schemas to it: $ref, allOf, anyOf,
 * oneOf, not and if. */
static int applicators_hold(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    const cJSON *ref = json_field(schema, "$ref"), *all = json_field(schema, "allOf");
    const cJSON *any = json_field(schema, "anyOf"), *one = json_field(schema, "oneOf");
    const cJSON *not = json_field(schema, "not"), *condition = json_field(schema, "if");
    if (ref) {
        const cJSON *there = cJSON_IsString(ref) ? resolve(c, ref->valuestring) : NULL;
        if (!there || !holds(c, v, there, depth + 1)) return 0;
    }
    if (all && holds_of(c, v, all, depth) < cJSON_GetArraySize(all)) return 0;
    if (any && !holds_of(c, v, any, depth)) return 0;
    if (one && holds_of(c, v, one, depth) != 1) return 0;
    if (not && holds(c, v, not, depth + 1)) return 0;
    if (!condition) return 1;
    const char *branch = holds(c, v, condition, depth + 1) ? "then" : "else";
    const cJSON *then = json_field(schema, branch);
    return !then || holds(c, v, then, depth + 1);
}

int holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    const cJSON *type = json_field(schema, "type"), *list = json_field(schema, "enum");
    const cJSON *constant = cJSON_GetObjectItemCaseSensitive(schema, "const");
    if (cJSON_IsBool(schema)) return cJSON_IsTrue(schema);
    if (depth > MAX_DEPTH) wrong(c, schema, NULL, "nested too deep");
    if (c->bad || !cJSON_IsObject(schema) || check_keywords(c, schema)) return 0;
    if (cJSON_IsNull(v) && is_nullable(schema)) return 1;
    if (type && !(mask_of(type) & type_of_value(v))) return 0;
    if (constant && !same_value(constant, v)) return 0;
    if (list && !is_among(c, list, v)) return 0;
    if (!applicators_hold(c, v, schema, depth)) return 0;
    if (cJSON_IsString(v)) return string_holds(c, v, schema);
    if (cJSON_IsNumber(v)) return number_holds(c, v, schema);
    if (cJSON_IsObject(v)) return object_holds(c, v, schema, depth);
    return !cJSON_IsArray(v) || array_holds(c, v, schema, depth);
}

int place_holds(Compiler *c, const Place *p, const cJSON *v) {
    for (int i = 0; i < p->n; i++)
        if (holds(c, v, p->part[i].schema, 0) == !!(p->part[i].marks & NEGATED)) return 0;
    return 1;
}

/* ---- schemas that have no value in common ---- */

/* Two schemas are *apart* where no value satisfies both.  That is certain where
 * - they admit no type in common,
 * - one has constants, and each is of a type that the other does not admit, or is not among the
 *   constants of the other, which has some,
 * - both admit objects alone, and one requires a property that the other forbids,
 * - both admit objects alone, and what they say of a required property is apart, or
 * - all alternatives of one are apart from the other. */

/* Schemas that hold together: one and those that its $ref and allOf name, or those of a place. */
typedef struct {
    const cJSON *of[MAX_TOGETHER];
    int n;
} Together;

/* Adds a schema and those that its $ref and allOf name, as far as there is room. */
static void gather(const Compiler *c, const cJSON *schema, Together *t, int depth) {
    const char *ref = cJSON_GetStringValue(json_field(schema, "$ref"));
    const cJSON *item;
    if (!schema || t->n == MAX_TOGETHER || depth > MAX_TOGETHER) return;
    t->of[t->n++] = schema;
    if (is_nullable(schema)) return;    /* null need not satisfy its $ref and allOf */
    if (ref) gather(c, resolve(c, ref), t, depth + 1);
    cJSON_ArrayForEach(item, json_field(schema, "allOf")) gather(c, item, t, depth + 1);
}

/* The types that all of them admit. */
static int types_together(const Together *t) {
    int mask = T_ALL;
    for (int i = 0; i < t->n; i++) {
        const cJSON *type = json_field(t->of[i], "type");
        if (type) mask &= mask_of(type) | (is_nullable(t->of[i]) ? T_NULL : 0);
        if (cJSON_IsFalse(t->of[i])) mask = 0;
    }
    return mask;
}

static int has_nullable(const Together *t) {
    for (int i = 0; i < t->n; i++)
        if (is_nullable(t->of[i])) return 1;
    return 0;
}

/* Whether a has constants, and each is of a type outside of the mask, or is not among the constants
 * of b, which has some. */
static int shares_no_constant(Compiler *c, const cJSON *a, const cJSON *b, int mask) {
    const cJSON *list = json_field(b, "enum"), *one = constants_of(b), *x;
    if (!constants_of(a)) return 0;
    for (x = constants_of(a); x; x = next_constant(a, x)) {
        if (!(type_of_value(x) & mask)) continue;
        if (list && !is_among(c, list, x)) continue;
        if (list || !one || same_value(x, one)) return 0;
    }
    return 1;
}

/* Whether a requires a property that b forbids, because b allows none that it does not declare. */
static int lacks(const cJSON *a, const cJSON *b) {
    if (!cJSON_IsFalse(json_field(b, "additionalProperties")) || json_field(b, "patternProperties"))
        return 0;
    return !has_all(json_field(b, "properties"), json_field(a, "required"));
}

/* Whether a and b are apart as far as types in the mask go; depth: comparisons around this one. */
static int apart(Compiler *c, const Together *a, const Together *b, int mask, int depth);

/* Whether, for a property that `required` (a or b) requires, what a and b say of it is apart. */
static int members_apart(Compiler *c, const Together *required, const Together *a,
                         const Together *b, int depth) {
    const cJSON *name;
    for (int r = 0; r < required->n; r++)
        cJSON_ArrayForEach(name, json_field(required->of[r], "required")) {
            Together x = {0}, y = {0};
            if (!cJSON_IsString(name)) continue;
            for (int i = 0; i < a->n; i++)
                gather(c, json_field(json_field(a->of[i], "properties"), name->valuestring), &x, 0);
            for (int i = 0; i < b->n; i++)
                gather(c, json_field(json_field(b->of[i], "properties"), name->valuestring), &y, 0);
            if (x.n && y.n && apart(c, &x, &y, T_ALL, depth + 1)) return 1;
        }
    return 0;
}

/* Whether all alternatives of the schema's anyOf, or of its oneOf, are apart from b. */
static int alternatives_apart(Compiler *c, const cJSON *schema, const Together *b, int mask,
                              int depth) {
    static const char *const keywords[] = {"anyOf", "oneOf"};
    const cJSON *item;
    for (int i = 0; i < 2; i++) {
        int n = 0, n_apart = 0;
        cJSON_ArrayForEach(item, json_field(schema, keywords[i])) {
            Together a = {0};
            gather(c, item, &a, 0);
            n++;
            if (n_apart == n - 1) n_apart += apart(c, &a, b, mask, depth + 1);
        }
        if (n && n_apart == n) return 1;
    }
    return 0;
}

static int apart(Compiler *c, const Together *a, const Together *b, int mask, int depth) {
    mask &= types_together(a) & types_together(b);
    if (!mask) return 1;
    if (depth > MAX_APART || --c->left < 0) return 0;
    if (mask & T_NULL && (has_nullable(a) || has_nullable(b))) return 0;
    for (int i = 0; i < a->n; i++)
        for (int k = 0; k < b->n; k++) {
            const cJSON *x = a->of[i], *y = b->of[k];
            if (shares_no_constant(c, x, y, mask) || shares_no_constant(c, y, x, mask)) return 1;
            if (mask == T_OBJECT && (lacks(x, y) || lacks(y, x))) return 1;
        }
    if (mask == T_OBJECT && (members_apart(c, a, a, b, depth) || members_apart(c, b, a, b, depth)))
        return 1;
    for (int i = 0; i < a->n; i++)
        if (alternatives_apart(c, a->of[i], b, mask, depth)) return 1;
    for (int i = 0; i < b->n; i++)
        if (alternatives_apart(c, b->of[i], a, mask, depth)) return 1;
    return 0;
}

int all_apart(Compiler *c, const cJSON *list) {
    c->left = MAX_COMPARED;
    for (const cJSON *x = list->child; x; x = x->next)
        for (const cJSON *y = x->next; y; y = y->next) {
            Together a = {0}, b = {0};
            gather(c, x, &a, 0);
            gather(c, y, &b, 0);
            if (!apart(c, &a, &b, T_ALL, 0)) return 0;
        }
    return 1;
}

int never_holds(Compiler *c, const Place *p, const cJSON *schema, int mask) {
    Together a = {0}, b = {0};
    const cJSON *name;
    for (int i = 0; i < p->n; i++)
        if (!(p->part[i].marks & NEGATED) && a.n < MAX_TOGETHER) a.of[a.n++] = p->part[i].schema;
    gather(c, schema, &b, 0);
    c->left = MAX_COMPARED;
    if (apart(c, &a, &b, mask, 0)) return 1;
    for (int i = 0; i < b.n && mask == T_OBJECT; i++)
        cJSON_ArrayForEach(name, json_field(b.of[i], "required"))
            if (cJSON_IsString(name) && !may_have(c, p, name->valuestring)) return 1;
    return 0;
}

/* ---- constants as they are written ---- */

/* Whether call.c reads the name, which has no quotes in a call, as it is. */
static int is_bare_name(const char *name) {
    return *name && !strchr("'`)", *name) && !strpbrk(name, ":=,{}[]\" \n\t\xff");
}

void put_name(Compiler *c, const cJSON *schema, const char *keyword, const char *name, Buf *out) {
    if (!states_in_calls(c->s)) json_quote(out, name, strlen(name));
    else if (is_bare_name(name)) buf_puts(out, name);
    else {
        Buf what = {0};
        buf_puts(&what, "the name ");
        json_quote(&what, name, strlen(name));
        buf_puts(&what, " cannot be written in a call");
        wrong(c, schema, keyword, what.data);
        buf_free(&what);
    }
    buf_puts(out, ":");
}

static int compare_in_calls(const void *x, const void *y) {
    const Property *a = x, *b = y;
    int order = strcasecmp(a->name, b->name);
    return order ? order : a->at - b->at;
}

/* A call has its members in the order of jinja2's dictsort, in which the chat template declares
 * them: the model has read them in that order and writes them so.  JSON keeps the schema's
 * order. */
void put_in_order(const Compiler *c, Property *p, int n) {
    for (int i = 0; i < n; i++) p[i].at = i;
    if (states_in_calls(c->s) && n) qsort(p, (size_t)n, sizeof *p, compare_in_calls);
}

/* Adds the members of an object v, a constant, to a literal. */
static void put_members(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out) {
    const cJSON *item;
    int n = 0;
    Property *p = xcalloc(cJSON_GetArraySize(v) + 1, sizeof *p);
    cJSON_ArrayForEach(item, v) p[n++] = (Property){.name = item->string, .value = item};
    put_in_order(c, p, n);
    for (int i = 0; i < n; i++) {
        if (i) buf_puts(out, ",");
        put_name(c, schema, "enum", p[i].name, out);
        put_constant(c, schema, p[i].value, out);
    }
    free(p);
}

void put_constant(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out) {
    const cJSON *item;
    if (cJSON_IsString(v)) {
        int in_calls = states_in_calls(c->s);
        if (in_calls && strchr(v->valuestring, MARK))
            wrong(c, schema, "enum", "a string that is not UTF-8");
        if (!in_calls) json_quote(out, v->valuestring, strlen(v->valuestring));
        else buf_printf(out, "\xff\x01%s\xff\x01", v->valuestring);
    } else if (cJSON_IsNumber(v)) {
        char *number = json_text(v);
        buf_puts(out, number);
        free(number);
    } else if (cJSON_IsArray(v)) {
        buf_puts(out, "[");
        cJSON_ArrayForEach(item, v) {
            if (item != v->child) buf_puts(out, ",");
            put_constant(c, schema, item, out);
        }
        buf_puts(out, "]");
    } else if (cJSON_IsObject(v)) {
        buf_puts(out, "{");
        put_members(c, schema, v, out);
        buf_puts(out, "}");
    } else buf_puts(out, text_of_word(v));
}

int compile_constants(Compiler *c, const Place *p, const cJSON *schema) {
    const cJSON *list = json_field(schema, "enum"), *v;
    if (list && !cJSON_IsArray(list)) return wrong(c, schema, "enum", "must be a list");
    int n = 0, kept = 0;
    char **text = xcalloc(cJSON_GetArraySize(list) + 2, sizeof *text);
    for (v = constants_of(schema); v && !c->bad; v = next_constant(schema, v)) {
        Buf out = {0};
        if (!place_holds(c, p, v)) continue;
        put_constant(c, schema, v, &out);
        text[n++] = out.data;
    }
    if (n) qsort(text, (size_t)n, sizeof *text, compare_texts);
    for (int i = 0; i < n; i++) {
        if (kept && !strcmp(text[i], text[kept - 1])) free(text[i]);
        else text[kept++] = text[i];
    }
    int pc = put_literals(c->s, text, kept, states_ret(c->s));
    while (kept) free(text[--kept]);
    free(text);
    return pc;
}
