/* holds.c - whether a value that is known satisfies a schema.  See compile.h. */
#include "compile.h"

#include <string.h>

#include "json.h"

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

/* Notes an error where `keyword` of the schema, unevaluatedProperties or unevaluatedItems, forbids
 * what the schema itself does not evaluate: whether others do is not known here.  Returns whether
 * it does not. */
static int is_decided(Compiler *c, const cJSON *schema, const char *keyword) {
    if (!cJSON_IsFalse(json_field(schema, keyword))) return 1;
    wrong(c, schema, keyword, "false is not supported for an enum or const of such values");
    return 0;
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
    if (!evaluated && !additional && !is_decided(c, schema, "unevaluatedProperties")) return 0;
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
        if (!own && !is_decided(c, schema, "unevaluatedItems")) return 0;
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
