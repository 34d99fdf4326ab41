/* constants.c - what a schema says of numbers, the values of enum and const that satisfy what is
 * beside them, and whether schemas have values in common.  See compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"

#define FEW_VALUES 8                    /* of an enum are compared one by one */
#define MAX_TOGETHER 16                 /* schemas that are compared with as many others, */
#define MAX_COMPARED 100000             /* in so many comparisons */

/* ---- values ---- */

/* A number with all of its digits: 0, or -1 when it has too many. */
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

/* Whether two values are the same, numbers by their worth. */
int same_value(const cJSON *a, const cJSON *b) {
    if (cJSON_IsNumber(a) && cJSON_IsNumber(b)) {
        Decimal x, y;
        int bad = decimal_of(a, &x) | decimal_of(b, &y);
        return bad ? a->valuestring && b->valuestring && !strcmp(a->valuestring, b->valuestring)
            : !decimal_compare(&x, &y);
    }
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
    if (decimal_read(text, &d)) buf_puts(out, text);    /* too many digits: as it is written */
    else buf_printf(out, "%s%s.%s", d.negative ? "-" : "", d.whole, d.part);
    free(text);
}

static int compare_properties(const void *x, const void *y) {
    const Property *a = x, *b = y;
    return strcmp(a->name, b->name);
}

/* Adds a text that is the same for the same value (same_value), and for no other. */
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
    } else buf_puts(out, cJSON_IsTrue(v) ? "true" : cJSON_IsFalse(v) ? "false" : "null");
    if (cJSON_IsArray(v) || cJSON_IsObject(v)) buf_puts(out, "]");
}

static int compare_texts(const void *x, const void *y) {
    return strcmp(*(char *const *)x, *(char *const *)y);
}

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

/* Whether a value is in an enum.  A long one is searched by halves: each of its values may be asked
 * for. */
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

/* The constants of a schema after one of them. */
const cJSON *next_constant(const cJSON *schema, const cJSON *v) {
    return json_field(schema, "enum") ? v->next : NULL;
}


/* ---- numbers ---- */

/* A keyword's number, with all of its digits: 1, 0 when it is missing, -1. */
static int number_of(Compiler *c, const cJSON *schema, const char *name, Decimal *out) {
    const cJSON *v = json_field(schema, name);
    if (!v || cJSON_IsBool(v)) return 0;
    if (!cJSON_IsNumber(v)) return wrong(c, schema, name, "must be a number"), -1;
    if (decimal_of(v, out))
        return wrong(c, schema, name, "must be a number of at most 100 digits before and behind the point"), -1;
    return 1;
}

/* Takes a bound into the range; sign: 1 for a lower one, -1. */
static void bound(Range *r, const Decimal *d, int open, int sign) {
    int *has = sign > 0 ? &r->has_lo : &r->has_hi, *is_open = sign > 0 ? &r->lo_open : &r->hi_open;
    Decimal *old = sign > 0 ? &r->lo : &r->hi;
    int order = *has ? sign * decimal_compare(d, old) : 1;
    if (order < 0) return;
    *is_open = order ? open : *is_open | open;
    *old = *d;
    *has = 1;
}

/* Takes a bound that has too many digits into the range, where it stands on the far side of 0: 1,
 * or 0. */
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

/* Takes the numbers of a schema into the range.  0, or -1 with the error. */
int add_range(Compiler *c, const cJSON *schema, Range *r) {
    static const char *const names[][2] = {{"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}};
    Decimal d;
    for (int i = 0; i < 2; i++) {
        int old_style = cJSON_IsTrue(json_field(schema, names[i][1]));          /* draft 4: the bound itself is out */
        if (old_style && !json_field(schema, names[i][0]))
            wrong(c, schema, names[i][1], "true needs a bound beside it");
        for (int k = 0; k < 2; k++) {
            if (far_bound(schema, names[i][k], r, i ? -1 : 1)) continue;
            if (number_of(c, schema, names[i][k], &d) > 0) bound(r, &d, k || old_style, i ? -1 : 1);
        }
    }
    if (number_of(c, schema, "multipleOf", &d) > 0) {
        if (r->has_step && decimal_compare(&r->step, &d) && !decimal_is_multiple(&d, &r->step))
            wrong(c, schema, "multipleOf", "beside another multipleOf is not supported");
        if (d.negative || (!strcmp(d.whole, "0") && !*d.part)) wrong(c, schema, "multipleOf", "must be a number above 0");
        r->has_step = 1;
        r->step = d;
    }
    return c->bad ? -1 : 0;
}

static int compare_decimals(const void *a, const void *b) { return decimal_compare(a, b); }

/* Numbers without those that a negated const or enum of the place names: the range is cut at each of them. */
int compile_number(Compiler *c, const Place *p, Range r) {
    const char *why = NULL;
    Decimal *out = NULL;
    int n = 0, pc = states_fail(c->s);
    for (int i = 0; i < p->n && !c->bad; i++) {
        const cJSON *schema = p->part[i].schema, *list = json_field(schema, "enum"), *one = json_field(schema, "const"), *v;
        if (!(p->part[i].marks & NEGATED)) continue;
        for (v = list ? list->child : one; v; v = list ? v->next : NULL) {
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

/* ---- constants ---- */

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

/* The set of strings that a key stands for in *set: 1, or 0 where it is not known yet. */
static int find_strings(const Compiler *c, const char *key, Strings **set) {
    for (int i = c->n_strings - 1; i >= 0; i--)
        if (!strcmp(c->strings[i].key, key)) return *set = c->strings[i].set, 1;
    return 0;
}

/* Keeps a set under its key; takes both over. */
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
        else keep_strings(c, key.data, set), key = (Buf){0};
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
    if (decimal_of(v, &d)) return wrong(c, schema, "enum", "a number of more than 100 digits beside bounds"), 0;
    int lo = r.has_lo ? decimal_compare(&d, &r.lo) : 1, hi = r.has_hi ? decimal_compare(&d, &r.hi) : -1;
    return (lo > 0 || (lo == 0 && !r.lo_open)) && (hi < 0 || (hi == 0 && !r.hi_open)) && (!r.has_step || decimal_is_multiple(&d, &r.step) == 1);
}

int name_matches(Compiler *c, const cJSON *patterns, const char *name) {
    Error why;
    Strings *set = NULL;
    Buf key = {0};
    buf_printf(&key, "name %s", patterns->string);
    if (!find_strings(c, key.data, &set)) {
        set = strings_of_pattern(patterns->string, &why);
        if (!set) wrong(c, patterns, NULL, why.text);
        else keep_strings(c, key.data, set), key = (Buf){0};
    }
    buf_free(&key);
    return set && strings_hold(set, name, strlen(name));
}

static int object_holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    static const char *const dependent[] = {"dependentRequired", "dependentSchemas",
                                            "dependencies"};
    const cJSON *item, *k, *additional = json_field(schema, "additionalProperties");
    int n = cJSON_GetArraySize(v);
    if (n < count_of(c, schema, "minProperties", 0) || n > count_of(c, schema, "maxProperties", NO_LIMIT)) return 0;
    cJSON_ArrayForEach(item, json_field(schema, "required"))
        if (!cJSON_IsString(item) || !cJSON_GetObjectItemCaseSensitive(v, item->valuestring)) return 0;
    for (int i = 0; i < 3; i++)
        cJSON_ArrayForEach(k, json_field(schema, dependent[i])) {
            if (!cJSON_GetObjectItemCaseSensitive(v, k->string)) continue;
            if (!cJSON_IsArray(k) && !holds(c, v, k, depth + 1)) return 0;
            for (item = cJSON_IsArray(k) ? k->child : NULL; item; item = item->next)
                if (cJSON_IsString(item) && !cJSON_GetObjectItemCaseSensitive(v, item->valuestring))
                    return 0;
        }
    cJSON_ArrayForEach(item, v) {
        const cJSON *own = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), item->string);
        int evaluated = own != NULL;
        if (own && !holds(c, item, own, depth + 1)) return 0;
        cJSON_ArrayForEach(k, json_field(schema, "patternProperties")) {
            if (!name_matches(c, k, item->string)) continue;
            evaluated = 1;
            if (!holds(c, item, k, depth + 1)) return 0;
        }
        if (!evaluated && additional && !holds(c, item, additional, depth + 1)) return 0;
        if (json_field(schema, "propertyNames")) {
            cJSON *name = cJSON_CreateString(item->string);
            int ok = holds(c, name, json_field(schema, "propertyNames"), depth + 1);
            cJSON_Delete(name);
            if (!ok) return 0;
        }
    }
    return 1;
}

static int array_holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    const cJSON *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems"), *item, *other;
    const cJSON *rest = cJSON_IsArray(items) ? json_field(schema, "additionalItems") : items;
    int n = cJSON_GetArraySize(v), i = 0;
    if (cJSON_IsArray(items)) prefix = items;
    if (n < count_of(c, schema, "minItems", 0) || n > count_of(c, schema, "maxItems", NO_LIMIT)) return 0;
    cJSON_ArrayForEach(item, v) {
        const cJSON *own = i < cJSON_GetArraySize(prefix) ? cJSON_GetArrayItem(prefix, i) : rest;
        if (own && !holds(c, item, own, depth + 1)) return 0;
        for (other = item->next; other && cJSON_IsTrue(json_field(schema, "uniqueItems")); other = other->next)
            if (same_value(item, other)) return 0;
        i++;
    }
    if (!json_field(schema, "contains")) return 1;
    i = 0;
    cJSON_ArrayForEach(item, v) i += holds(c, item, json_field(schema, "contains"), depth + 1);
    return i >= count_of(c, schema, "minContains", 1) && i <= count_of(c, schema, "maxContains", NO_LIMIT);
}

int holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    const cJSON *type = json_field(schema, "type"), *list = json_field(schema, "enum");
    const cJSON *constant = cJSON_GetObjectItemCaseSensitive(schema, "const"), *ref = json_field(schema, "$ref");
    if (cJSON_IsBool(schema)) return cJSON_IsTrue(schema);
    if (depth > MAX_DEPTH) wrong(c, schema, NULL, "nested too deep");
    if (c->bad || !cJSON_IsObject(schema) || check_keywords(c, schema)) return 0;
    if (cJSON_IsNull(v) && cJSON_IsTrue(json_field(schema, "nullable"))) return 1;
    if (type && !(mask_of(type) & type_of_value(v))) return 0;
    if (constant && !same_value(constant, v)) return 0;
    if (list && !is_among(c, list, v)) return 0;
    if (ref) {
        const cJSON *there = cJSON_IsString(ref) ? resolve(c, ref->valuestring) : NULL;
        if (!there || !holds(c, v, there, depth + 1)) return 0;
    }
    if (json_field(schema, "allOf") && holds_of(c, v, json_field(schema, "allOf"), depth) < cJSON_GetArraySize(json_field(schema, "allOf"))) return 0;
    if (json_field(schema, "anyOf") && !holds_of(c, v, json_field(schema, "anyOf"), depth)) return 0;
    if (json_field(schema, "oneOf") && holds_of(c, v, json_field(schema, "oneOf"), depth) != 1) return 0;
    if (json_field(schema, "not") && holds(c, v, json_field(schema, "not"), depth + 1)) return 0;
    if (json_field(schema, "if")) {
        const cJSON *then = json_field(schema, holds(c, v, json_field(schema, "if"), depth + 1) ? "then" : "else");
        if (then && !holds(c, v, then, depth + 1)) return 0;
    }
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

/* Can nothing satisfy both?  By their types, their constants, what one requires and the other has
 * not, the same of a property that one requires and both declare, or as all alternatives of one are
 * apart from the other. */

/* What holds together: a schema and what its $ref and allOf name, or those of a place. */
typedef struct {
    const cJSON *of[MAX_TOGETHER];
    int n;
} Together;

static void gather(const Compiler *c, const cJSON *schema, Together *t, int depth) {
    const char *ref = cJSON_GetStringValue(json_field(schema, "$ref"));
    const cJSON *item;
    if (!schema || t->n == MAX_TOGETHER || depth > MAX_TOGETHER) return;
    t->of[t->n++] = schema;
    if (is_nullable(schema)) return;    /* null stands beside the rest, too */
    if (ref) gather(c, resolve(c, ref), t, depth + 1);
    cJSON_ArrayForEach(item, json_field(schema, "allOf")) gather(c, item, t, depth + 1);
}

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

/* Whether a has constants, of which none is of those types, and among those of b if it has any. */
static int shares_no_constant(Compiler *c, const cJSON *a, const cJSON *b, int mask) {
    const cJSON *list = json_field(b, "enum"), *one = list ? NULL : constants_of(b), *x;
    if (!constants_of(a)) return 0;
    for (x = constants_of(a); x; x = next_constant(a, x)) {
        if (!(type_of_value(x) & mask)) continue;
        if (list ? is_among(c, list, x) : !one || same_value(x, one)) return 0;
    }
    return 1;
}

/* Whether a requires a property that b does not have. */
static int lacks(const cJSON *a, const cJSON *b) {
    const cJSON *name;
    if (!cJSON_IsFalse(json_field(b, "additionalProperties")) || json_field(b, "patternProperties"))
        return 0;
    cJSON_ArrayForEach(name, json_field(a, "required"))
        if (cJSON_IsString(name) &&
            !cJSON_GetObjectItemCaseSensitive(json_field(b, "properties"),
                                              name->valuestring)) return 1;
    return 0;
}

static int apart(Compiler *c, const Together *a, const Together *b, int mask, int depth);

/* Whether a property that one of them requires cannot be both. */
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

/* Whether all alternatives of a schema are apart from b. */
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
    if (depth > 4 || --c->left < 0 || (mask & T_NULL && (has_nullable(a) || has_nullable(b))))
        return 0;
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

/* A name and its colon.  In a call nothing quotes it; keyword: where it stands. */
void put_name(Compiler *c, const cJSON *schema, const char *keyword, const char *name, Buf *out) {
    if (!states_in_calls(c->s)) json_quote(out, name, strlen(name));
    else if (*name && !strchr("'`)", *name) && !strpbrk(name, ":=,{}[]\" \n\t\xff")) buf_puts(out, name);       /* as call.c reads them */
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

/* A call has its members in the order of jinja2's dictsort, as the declaration in the prompt does: the model has read
 * them in that order and writes them so.  JSON keeps the schema's order. */
void put_in_order(const Compiler *c, Property *p, int n) {
    for (int i = 0; i < n; i++) p[i].at = i;
    if (states_in_calls(c->s) && n) qsort(p, (size_t)n, sizeof *p, compare_in_calls);
}

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

/* A value in the notation of what is written, to be a literal. */
void put_constant(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out) {
    const cJSON *item;
    if (cJSON_IsString(v)) {
        int in_calls = states_in_calls(c->s);
        if (in_calls && strchr(v->valuestring, MARK)) wrong(c, schema, "enum", "a string that is not UTF-8");
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
    } else buf_puts(out, cJSON_IsTrue(v) ? "true" : cJSON_IsFalse(v) ? "false" : "null");
}

/* The values of an enum or const that satisfy all that stands beside it. */
int compile_constants(Compiler *c, const Place *p, const cJSON *schema) {
    const cJSON *list = json_field(schema, "enum"), *v = cJSON_GetObjectItemCaseSensitive(schema, "const");
    if (list && !cJSON_IsArray(list)) return wrong(c, schema, "enum", "must be a list");
    int n = 0, kept = 0;
    char **text = xcalloc(cJSON_GetArraySize(list) + 2, sizeof *text);
    if (list) v = list->child;
    for (; v && !c->bad; v = list ? v->next : NULL) {
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
