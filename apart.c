/* apart.c - whether two schemas have a value in common.  See compile.h.
 *
 * Two schemas are *apart* where no value satisfies both.  That is certain where
 * - they admit no type in common,
 * - one has constants, and each is of a type that the other does not admit, or is not among the
 *   constants of the other, which has some,
 * - both admit objects alone, and one requires a property that the other forbids,
 * - both admit objects alone, and what they say of a required property is apart, or
 * - all alternatives of one are apart from the other. */
#include "compile.h"

#include "json.h"

/* Limits, chosen by judgement.  The last two bound a search that only looks for certainty: what
 * it does not find is taken for "may have a value in common". */
#define MAX_TOGETHER 16                 /* schemas that are known to hold together */
#define MAX_COMPARED 100000             /* comparisons of schemas in all */
#define MAX_APART 4                     /* depth of such comparisons */

/* Schemas that hold together: one and those that its $ref and allOf name, or those of a place. */
typedef struct {
    const cJSON *of[MAX_TOGETHER];
    int n;
} Together;

/* Adds a schema and those that its $ref and allOf name, as far as there is room. */
static void gather(const Compiler *c, const cJSON *schema, Together *t, int depth) {
    const char *ref = json_string(schema, "$ref");
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
