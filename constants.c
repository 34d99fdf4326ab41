/* constants.c - what a schema says of numbers, and the values of enum and const that satisfy what stands beside them.  See
 * compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"

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

/* Takes a bound that has too many digits into the range, where it stands on the far side of 0: 1, or 0. */
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
        if (!(p->part[i].done & NEGATED)) continue;
        for (v = list ? list->child : one; v; v = list ? v->next : NULL) {
            if (!cJSON_IsNumber(v) || !(type_of_value(v) == T_INTEGER || !r.whole)) continue;
            out = xrealloc(out, n + 1, sizeof *out);
            if (decimal_of(v, &out[n++])) wrong(c, schema, "not", "a number of more than 100 digits is not supported");
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
    return why ? wrong(c, p->n ? p->part[0].schema : NULL, NULL, why) : pc;
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

static int string_holds(Compiler *c, const cJSON *v, const cJSON *schema) {
    Place p = {&(Part){schema, 0}, 1};
    Strings *set = NULL;
    Buf key = {0};
    int min = 0, max = NO_LIMIT, bad = strings_at(c, &p, &set, &min, &max, &key);
    size_t n = characters_in(v->valuestring);
    int ok = !bad && n >= (size_t)min && n <= (size_t)max && (!set || strings_hold(set, v->valuestring, strlen(v->valuestring)));
    strings_free(set);
    buf_free(&key);
    return ok;
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
    Strings *set = strings_of_pattern(patterns->string, &why);
    if (!set) wrong(c, patterns, NULL, why.text);
    int yes = set && strings_hold(set, name, strlen(name));
    strings_free(set);
    return yes;
}

static int object_holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    static const char *const dependent[] = {"dependentRequired", "dependentSchemas", "dependencies"};
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
                if (cJSON_IsString(item) && !cJSON_GetObjectItemCaseSensitive(v, item->valuestring)) return 0;
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
    const cJSON *type = json_field(schema, "type"), *list = json_field(schema, "enum"), *item;
    const cJSON *constant = cJSON_GetObjectItemCaseSensitive(schema, "const"), *ref = json_field(schema, "$ref");
    if (cJSON_IsBool(schema)) return cJSON_IsTrue(schema);
    if (depth > MAX_DEPTH || !cJSON_IsObject(schema) || check_keywords(c, schema)) return 0;
    if (cJSON_IsNull(v) && cJSON_IsTrue(json_field(schema, "nullable"))) return 1;
    if (type && !(mask_of(type) & type_of_value(v))) return 0;
    if (constant && !same_value(constant, v)) return 0;
    if (list) {
        int found = 0;
        cJSON_ArrayForEach(item, list) found |= same_value(item, v);
        if (!found) return 0;
    }
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
        if (holds(c, v, p->part[i].schema, 0) == !!(p->part[i].done & NEGATED)) return 0;
    return 1;
}

/* A name and its colon.  In a call nothing quotes it; keyword: where it stands. */
void put_name(Compiler *c, const cJSON *schema, const char *keyword, const char *name, Buf *out) {
    if (!states_in_calls(c->s)) json_quote(out, name, strlen(name));
    else if (*name && !strpbrk(name, ":,{}[]\" \n\t\xff")) buf_puts(out, name);
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

static int compare_properties(const void *x, const void *y) {
    const Property *a = x, *b = y;
    int order = strcasecmp(a->name, b->name);
    return order ? order : a->at - b->at;
}

/* A call has its members in the order of jinja2's dictsort, as the declaration in the prompt does: the model has read
 * them in that order and writes them so.  JSON keeps the schema's order. */
void put_in_order(const Compiler *c, Property *p, int n) {
    for (int i = 0; i < n; i++) p[i].at = i;
    if (states_in_calls(c->s) && n) qsort(p, (size_t)n, sizeof *p, compare_properties);
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

static int compare_texts(const void *x, const void *y) { return strcmp(*(char *const *)x, *(char *const *)y); }

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
