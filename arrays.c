/* arrays.c - what a schema says of arrays: each place, how many, all different, some of a kind.  See compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

#define MAX_UNIQUE 16                   /* values of uniqueItems */

typedef struct {
    Compiler *c;
    int *routine, *containing;          /* [n_prefix + 1] of the items, the last for all others; those that are counted */
    int n_prefix, min, max;
    int wanted, most;                   /* so many must and may be in `contains`; */
    int n_counts;                       /* up to so many are counted */
    int counted;                        /* positions that are told apart */
    int *before, *behind;               /* places made, by position and how many are in `contains` */
    int end;
} Array;

static int behind_item(Array *a, int i, int k);

/* In front of item i, when k so far are in `contains`. */
static int before_item(Array *a, int i, int k) {
    int *memo = &a->before[i * (a->n_counts + 1) + k], which = i < a->n_prefix ? i : a->n_prefix,
        next = i < a->counted ? i + 1 : i;
    Schema *s = a->c->s;
    if (*memo >= 0) return *memo;
    if (i >= a->max || a->routine[which] < 0) return *memo = states_fail(s);
    int pc = put_call(s, a->routine[which], behind_item(a, next, k));
    if (k < a->most && a->containing[which] >= 0)
        pc = put_either(s, pc, put_call(s, a->containing[which],
                                        behind_item(a, next, k < a->n_counts ? k + 1 : k)));
    return *memo = pc;
}

static int behind_item(Array *a, int i, int k) {
    int *memo = &a->behind[i * (a->n_counts + 1) + k];
    Schema *s = a->c->s;
    if (*memo >= 0) return *memo;
    int end = i >= a->min && k >= a->wanted ? a->end : states_fail(s);
    if (i < a->counted) {
        int next = before_item(a, i, k);
        return *memo = put_either(s, end, next == states_fail(s) ? next : put_range(s, ',', ',', spaced(a->c, next)));
    }
    int loop = *memo = put_loop(s, end), item = before_item(a, i, k);       /* others come round and round */
    if (item != states_fail(s)) set_loop(s, loop, put_range(s, ',', ',', spaced(a->c, item)));
    return loop;
}

static int min_items(const cJSON *schema) {
    const cJSON *v = json_field(schema, "minItems");
    return cJSON_IsNumber(v) ? (int)v->valuedouble : 0;
}

/* What a schema says of item i, NULL: nothing. */
static const cJSON *schema_of_item(const cJSON *schema, int i) {
    const cJSON *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems");
    const cJSON *rest = cJSON_IsArray(items) ? json_field(schema, "additionalItems") : items;
    if (cJSON_IsArray(items)) prefix = items;
    return i < cJSON_GetArraySize(prefix) ? cJSON_GetArrayItem(prefix, i) : rest;
}

/* Whether unevaluatedItems: false of one schema allows an item: that schema, or one that it leads
 * to, speaks of it. */
static int is_evaluated(const Compiler *c, const Place *p, const cJSON *closed, int i) {
    for (int k = 0; k < p->n; k++)
        if (evaluates(c, closed, &p->part[k]) && schema_of_item(p->part[k].schema, i)) return 1;
    return 0;
}

/* Whether a schema of the place counts items, which asks for some. */
static int has_contains(const Place *p) {
    for (int i = 0; i < p->n; i++)
        if (!(p->part[i].marks & (NEGATED | TESTS)) && json_field(p->part[i].schema, "contains"))
            return 1;
    return 0;
}

/* What holds of item i in all schemas of the place; *allowed: 0 when one of them forbids it. */
static Place item_place(const Compiler *c, const Place *p, int i, int *allowed) {
    Place item = {0};
    *allowed = 1;
    for (int k = 0; k < p->n; k++) {
        const cJSON *schema = p->part[k].schema, *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems");
        const cJSON *own = schema_of_item(schema, i);
        if (p->part[k].marks & NEGATED) continue;
        if (cJSON_IsArray(items)) prefix = items;
        int nobody_asks = !own && prefix && i >= cJSON_GetArraySize(prefix) && i >= min_items(schema);
        if (p->part[k].marks & TESTS || has_contains(p)) nobody_asks = 0;
        if (own) add_part(&item, own, 0);
        if (cJSON_IsFalse(own) || nobody_asks) *allowed = 0;
        if (cJSON_IsFalse(json_field(schema, "unevaluatedItems")) && !is_evaluated(c, p, schema, i))
            *allowed = 0;
    }
    return item;
}

static int may_have_item(const Compiler *c, const Place *p, int i) {
    int allowed;
    free(item_place(c, p, i, &allowed).part);
    return allowed;
}

/* The values of a place that has at most MAX_UNIQUE, as a new list, or NULL: it has more, or they cannot be told. */
static cJSON *values_of(Compiler *c, const Place *place) {
    Place p = copy_place(place);
    cJSON *all = cJSON_CreateArray(), *kept = cJSON_CreateArray();
    const cJSON *v;
    int known = 0, mask = T_ALL;
    if (spread(c, &p) == 0)
        for (int i = 0; i < p.n; i++) {
            const cJSON *schema = p.part[i].schema, *list = json_field(schema, "enum"), *one = json_field(schema, "const"), *type = json_field(schema, "type");
            if (type) mask &= mask_of(type);
            for (v = known ? NULL : list ? list->child : one; v; v = list ? v->next : NULL) cJSON_AddItemToArray(all, cJSON_Duplicate(v, 1));
            known |= list || one;
        }
    if (!known && !(mask & ~(T_BOOLEAN | T_NULL))) {
        known = 1;
        cJSON_AddItemToArray(all, cJSON_CreateTrue());
        cJSON_AddItemToArray(all, cJSON_CreateFalse());
    }
    cJSON_AddItemToArray(all, cJSON_CreateNull());      /* `nullable` may stand beside an enum */
    cJSON_ArrayForEach(v, all) {
        const cJSON *other;
        int twice = 0;
        cJSON_ArrayForEach(other, kept) twice |= same_value(other, v);
        if (!twice && place_holds(c, &p, v)) cJSON_AddItemToArray(kept, cJSON_Duplicate(v, 1));
    }
    free(p.part);
    cJSON_Delete(all);
    if (known && cJSON_GetArraySize(kept) <= MAX_UNIQUE) return kept;
    cJSON_Delete(kept);
    return NULL;
}

typedef struct {
    const Array *a;
    int n;
    unsigned *fits;                     /* [n_prefix + 1] the values that an item may be, the last: all
                                         * others */
    unsigned contained;                 /* those that `contains` asks for */
} Unique;

static int bits_of(unsigned set) {
    int n = 0;
    for (; set; set &= set - 1) n++;
    return n;
}

/* The values that may follow those of a set. */
static unsigned next_unique(const Unique *u, unsigned used) {
    int at = bits_of(used), full = bits_of(used & u->contained) >= u->a->most;
    if (at >= u->a->max) return 0;
    unsigned fits = u->fits[at < u->a->n_prefix ? at : u->a->n_prefix] & ~used;
    return full ? fits & ~u->contained : fits;
}

static int may_end(const Unique *u, unsigned used) {
    return bits_of(used) >= u->a->min && bits_of(used & u->contained) >= u->a->wanted;
}

/* Adds the values that item `at` may have.  0, or -1 where they are too many or cannot be told. */
static int add_values(Unique *u, const Place *p, int at, cJSON *all) {
    int allowed;
    Place item = item_place(u->a->c, p, at, &allowed);
    cJSON *values = allowed ? values_of(u->a->c, &item) : cJSON_CreateArray();
    const cJSON *v, *other;
    free(item.part);
    cJSON_ArrayForEach(v, values) {
        int i = 0;
        for (other = all->child; other && !same_value(other, v); other = other->next) i++;
        if (!other && i < MAX_UNIQUE) cJSON_AddItemToArray(all, cJSON_Duplicate(v, 1));
        if (i < MAX_UNIQUE) u->fits[at] |= 1u << i;
        else allowed = -1;
    }
    int bad = !values || allowed < 0;
    cJSON_Delete(values);
    return bad ? -1 : 0;
}

/* An array of values that are all different. */
static int unique_array(const Array *a, const Place *p, const cJSON *schema,
                        const cJSON *contains) {
    Compiler *c = a->c;
    Schema *s = c->s;
    Unique u = {.a = a, .fits = xcalloc(a->n_prefix + 1, sizeof(unsigned))};
    cJSON *all = cJSON_CreateArray(), *v;
    int bad = 0;
    for (int i = 0; i <= a->n_prefix && i < a->max && !bad; i++) bad = add_values(&u, p, i, all);
    if (bad)
        wrong(c, schema, "uniqueItems",
              "supported for enums, constants and booleans of at most 16 values");
    Choice choice = {.value = xcalloc(MAX_UNIQUE, sizeof(int)), .comma = new_routine(s)};
    set_entry(s, choice.comma, put_range(s, ',', ',', spaced(c, states_ret(s))));
    cJSON_ArrayForEach(v, all) {
        Buf text = {0};
        if (contains && holds(c, v, contains, 0)) u.contained |= 1u << u.n;
        put_constant(c, schema, v, &text);
        choice.value[u.n] = new_routine(s);
        set_entry(s, choice.value[u.n++], put_literal(s, text.data, text.len, states_ret(s)));
        buf_free(&text);
    }
    choice.n = u.n;
    choice.next = xcalloc(1 << u.n, sizeof(unsigned));
    choice.may_end = xcalloc(1 << u.n, 1);
    for (unsigned used = 0; used < 1u << u.n; used++) {
        choice.next[used] = next_unique(&u, used);
        choice.may_end[used] = (uint8_t)may_end(&u, used);
    }
    int first = put_picks(s, choice, a->end), pc = may_end(&u, 0) ? a->end : states_fail(s);
    pc = put_either(s, u.n ? spaced(c, first) : states_fail(s), pc);
    free(u.fits);
    cJSON_Delete(all);
    return put_range(s, '[', '[', pc);
}

/* What minContains and maxContains say of the items that the schema counts. */
static void read_counts(Array *a, const cJSON *schema) {
    a->wanted = count_of(a->c, schema, "minContains", 1);
    a->most = count_of(a->c, schema, "maxContains", NO_LIMIT);
    a->n_counts = a->most == NO_LIMIT ? a->wanted : a->most;
    if (a->wanted > 1000) wrong(a->c, schema, "minContains", "above 1000 is not supported");
    if (a->n_counts > 1000) wrong(a->c, schema, "maxContains", "above 1000 is not supported");
}

int compile_array(Compiler *c, const Place *p) {
    Array a = {.c = c, .max = NO_LIMIT, .most = NO_LIMIT};
    const cJSON *unique = NULL, *contains = NULL, *closed = NULL, *counts = NULL;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems");
        if (p->part[i].marks & NEGATED) continue;
        if (prefix && !cJSON_IsArray(prefix)) return wrong(c, schema, "prefixItems", "must be a list");
        if (prefix && cJSON_IsArray(items))
            return wrong(c, schema, "items", "must be no list beside prefixItems");
        int lo = count_of(c, schema, "minItems", 0), hi = count_of(c, schema, "maxItems", NO_LIMIT);
        int n = cJSON_GetArraySize(cJSON_IsArray(items) ? items : prefix);
        if (lo > a.min) a.min = lo;
        if (hi < a.max) a.max = hi;
        if (n > a.n_prefix) a.n_prefix = n;
        if (cJSON_IsTrue(json_field(schema, "uniqueItems"))) unique = schema;
        if (cJSON_IsFalse(json_field(schema, "unevaluatedItems"))) closed = schema;
        if (!json_field(schema, "contains")) continue;
        counts = schema;
        if (!count_of(c, schema, "minContains", 1) && !json_field(schema, "maxContains")) continue;
        if (contains) return wrong(c, schema, "contains", "twice is not supported");
        contains = schema;
        read_counts(&a, schema);
    }
    /* Items that contains matches count as evaluated, and no automaton here knows them by then. */
    if (closed && counts)
        return wrong(c, closed, "unevaluatedItems", "false beside contains is not supported");
    const cJSON *counted_ones = json_field(contains, "contains");
    if (c->bad || a.min > a.max || a.wanted > a.most) return states_fail(c->s);
    a.end = spaced(c, put_range(c->s, ']', ']', states_ret(c->s)));
    if (unique && a.max > 1 && may_have_item(c, p, 1))
        return unique_array(&a, p, unique, counted_ones);
    a.routine = xcalloc(a.n_prefix + 1, sizeof(int));
    a.containing = xcalloc(a.n_prefix + 1, sizeof(int));
    for (int i = 0; i <= a.n_prefix && !c->bad; i++) {
        int allowed;
        Place item = item_place(c, p, i, &allowed), counted = copy_place(&item);
        if (contains) add_part(&counted, counted_ones, 0);
        if (contains && a.most != NO_LIMIT) add_part(&item, counted_ones, NEGATED | TESTS);
        a.routine[i] = a.containing[i] = -1;
        if (allowed) a.routine[i] = routine_for(c, item);
        else free(item.part);
        if (allowed && contains) a.containing[i] = routine_for(c, counted);
        else free(counted.part);
    }
    a.counted = a.max != NO_LIMIT ? a.max : a.min > a.n_prefix ? a.min : a.n_prefix;
    if (a.max != NO_LIMIT && a.routine[a.n_prefix] < 0 && a.max > a.n_prefix) a.counted = a.min > a.n_prefix ? a.min : a.n_prefix;
    int64_t places = (int64_t)(a.counted + 1) * (a.n_counts + 1);
    int pc = states_fail(c->s);
    if (4 * places > MAX_CODE) {        /* an item, a comma and white space take so many instructions */
        const char *what = a.max != NO_LIMIT ? "maxItems" : "minItems";
        wrong(c, holder_of(p, what), what, "the schema is too large");
    }
    if (!c->bad) {
        a.before = memset(xmalloc((size_t)places * sizeof(int)), 0xff, (size_t)places * sizeof(int));
        a.behind = memset(xmalloc((size_t)places * sizeof(int)), 0xff, (size_t)places * sizeof(int));
        for (int i = a.counted; i >= 0; i--)        /* from the end, so that no call waits for another */
            for (int k = a.n_counts < i ? a.n_counts : i; k >= 0; k--) behind_item(&a, i, k);
        int first = before_item(&a, 0, 0), empty = a.min || a.wanted ? pc : a.end;
        pc = put_range(c->s, '[', '[', put_either(c->s, first == pc ? first : spaced(c, first), empty));
    }
    free(a.before);
    free(a.behind);
    free(a.routine);
    free(a.containing);
    return pc;
}
