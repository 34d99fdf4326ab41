/* arrays.c - what a schema says of arrays: each item, how many items, whether they are unique, and
 * how many of them `contains` matches.  See compile.h.
 *
 * What may follow depends on the position of the next item (i) and on how many items so far are
 * counted for `contains` (k).  So the program has an address for each such pair before an item
 * and behind one. */
#include "compile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "json.h"

/* Limits, chosen by judgement. */
#define MAX_UNIQUE 16                   /* values of uniqueItems: a Choice has 1 << n entries */
#define MAX_CONTAINS 1000               /* minContains and maxContains */

typedef struct {
    Compiler *c;
    int n_prefix;                       /* items with schemas of their own */
    int *routine;                       /* [n_prefix + 1] writes an item, the last one any other
                                         * item; -1: there is none.  Under maxContains the item
                                         * must not match `contains` */
    int *containing;                    /* [n_prefix + 1] the same, but must match `contains` */
    int min, max;                       /* items */
    int wanted, most;                   /* items that must and may match `contains` */
    int n_counts;                       /* k stops here: more make no difference */
    int counted;                        /* i stops here: later items are all alike */
    int *before, *behind;               /* [counted + 1][n_counts + 1] addresses, -1: not yet */
    int end;                            /* the address of the closing bracket */
} Array;

/* A comma and then `next`, which may be program_fail. */
static int comma(const Array *a, int next) {
    if (next == program_fail(a->c->s)) return next;
    return put_range(a->c->s, ',', ',', spaced(a->c, next));
}

static int behind_item(Array *a, int i, int k);

/* The address before item i. */
static int before_item(Array *a, int i, int k) {
    int *memo = &a->before[i * (a->n_counts + 1) + k];
    int which = i < a->n_prefix ? i : a->n_prefix;
    int next = i < a->counted ? i + 1 : i;
    Schema *s = a->c->s;
    if (*memo >= 0) return *memo;
    if (i >= a->max || a->routine[which] < 0) return *memo = program_fail(s);
    int pc = put_call(s, a->routine[which], behind_item(a, next, k));
    if (k < a->most && a->containing[which] >= 0) {
        int more = behind_item(a, next, k < a->n_counts ? k + 1 : k);
        pc = put_either(s, pc, put_call(s, a->containing[which], more));
    }
    return *memo = pc;
}

/* The address behind i items: the array ends, or a comma and the next item follow. */
static int behind_item(Array *a, int i, int k) {
    int *memo = &a->behind[i * (a->n_counts + 1) + k];
    Schema *s = a->c->s;
    if (*memo >= 0) return *memo;
    int end = i >= a->min && k >= a->wanted ? a->end : program_fail(s);
    if (i < a->counted) return *memo = put_either(s, end, comma(a, before_item(a, i, k)));
    int loop = *memo = put_loop(s, end);        /* known before before_item comes back to it */
    int item = before_item(a, i, k);
    if (item != program_fail(s)) set_loop(s, loop, comma(a, item));
    return loop;
}

/* ---- what the schemas of a place say of an item ---- */

static int min_items(const cJSON *schema) {
    const cJSON *v = json_field(schema, "minItems");
    return cJSON_IsNumber(v) ? (int)v->valuedouble : 0;
}

/* The schema that a schema has for item i; NULL: none. */
static const cJSON *schema_of_item(const cJSON *schema, int i) {
    const cJSON *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems");
    const cJSON *rest = cJSON_IsArray(items) ? json_field(schema, "additionalItems") : items;
    if (cJSON_IsArray(items)) prefix = items;
    return i < cJSON_GetArraySize(prefix) ? cJSON_GetArrayItem(prefix, i) : rest;
}

/* Whether unevaluatedItems: false of the schema `closed` allows item i, because that schema or
 * one that it leads to evaluates it. */
static int is_evaluated(const Compiler *c, const Place *p, const cJSON *closed, int i) {
    for (int k = 0; k < p->n; k++)
        if (evaluates(c, closed, &p->part[k]) && schema_of_item(p->part[k].schema, i)) return 1;
    return 0;
}

/* Whether a schema of the place has `contains`, which asks for items. */
static int has_contains(const Place *p) {
    for (int i = 0; i < p->n; i++)
        if (!(p->part[i].marks & (NEGATED | TESTS)) && json_field(p->part[i].schema, "contains"))
            return 1;
    return 0;
}

/* Makes the place of item i, whose `part` the caller frees: what each schema has for the item.
 * Returns 0 where a schema forbids the item, or one has a prefix and none of the place asks for an
 * item behind it (schema.h); else 1. */
static int item_place(const Compiler *c, const Place *p, int i, Place *item) {
    int allowed = 1, has_prefix = 0, is_asked_for = has_contains(p);
    *item = (Place){0};
    for (int k = 0; k < p->n; k++) {
        const cJSON *schema = p->part[k].schema, *own = schema_of_item(schema, i);
        if (p->part[k].marks & NEGATED) continue;
        if (own) add_part(item, own, 0);
        if (cJSON_IsFalse(own)) allowed = 0;
        if (cJSON_IsFalse(json_field(schema, "unevaluatedItems")) && !is_evaluated(c, p, schema, i))
            allowed = 0;
        if (p->part[k].marks & TESTS) continue;
        if (json_field(schema, "prefixItems") || cJSON_IsArray(json_field(schema, "items")))
            has_prefix = 1;
        if (own || i < min_items(schema)) is_asked_for = 1;
    }
    return allowed && (is_asked_for || !has_prefix);
}

static int may_have_item(const Compiler *c, const Place *p, int i) {
    Place item;
    int allowed = item_place(c, p, i, &item);
    free(item.part);
    return allowed;
}

/* ---- items that are all different ---- */

/* Adds the whole numbers between the bounds of the place's schemas to `all`, the bounds too,
 * unless these are far apart.  Returns 1; 0: they are, or one is missing. */
static int add_integers(const Place *p, cJSON *all) {
    static const char *const least[] = {"minimum", "exclusiveMinimum"};
    static const char *const most[] = {"maximum", "exclusiveMaximum"};
    double lo = -HUGE_VAL, hi = HUGE_VAL;
    for (int i = 0; i < 2 * p->n; i++) {
        const Part *part = &p->part[i / 2];
        const cJSON *from = json_field(part->schema, least[i % 2]);
        const cJSON *to = json_field(part->schema, most[i % 2]);
        if (part->marks & (NEGATED | TESTS)) continue;
        if (cJSON_IsNumber(from)) lo = fmax(lo, ceil(from->valuedouble));
        if (cJSON_IsNumber(to)) hi = fmin(hi, floor(to->valuedouble));
    }
    if (fabs(lo) > 1e9 || hi - lo >= 2 * MAX_UNIQUE) return 0;
    for (int v = (int)lo; v <= (int)hi; v++) {
        char text[16];
        int n = snprintf(text, sizeof text, "%d", v);
        cJSON_AddItemToArray(all, json_value(text, (size_t)n, NULL));
    }
    return 1;
}

/* The values of a place as a new list that the caller frees.  NULL where there are more than
 * MAX_UNIQUE, or where they cannot be told. */
static cJSON *values_of(Compiler *c, const Place *place) {
    Place p = copy_place(place);
    cJSON *all = cJSON_CreateArray(), *kept = cJSON_CreateArray();
    const cJSON *v;
    int known = 0, mask = T_ALL;        /* known: `all` has every value that the place may have */
    /* 1. The constants of one schema, or true and false. */
    if (spread(c, &p) == 0)
        for (int i = 0; i < p.n; i++) {
            const cJSON *schema = p.part[i].schema, *type = json_field(schema, "type");
            if (type) mask &= mask_of(type);
            int has_any = json_field(schema, "enum") || json_field(schema, "const");
            if (known || !has_any) continue;
            for (v = constants_of(schema); v; v = next_constant(schema, v))
                cJSON_AddItemToArray(all, cJSON_Duplicate(v, 1));
            known = 1;
        }
    if (!known && !(mask & ~(T_BOOLEAN | T_NULL))) {
        known = 1;
        cJSON_AddItemToArray(all, cJSON_CreateTrue());
        cJSON_AddItemToArray(all, cJSON_CreateFalse());
    }
    if (!known && !(mask & ~(T_INTEGER | T_NULL))) known = add_integers(&p, all);
    cJSON_AddItemToArray(all, cJSON_CreateNull());      /* `nullable` may stand beside an enum */
    /* 2. Those that satisfy the place, each once. */
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

/* The values of an array with uniqueItems.  A set of values has bit i for value i. */
typedef struct {
    const Array *a;
    int n;                              /* values */
    unsigned *fits;                     /* [n_prefix + 1] the set for each item, the last one for
                                         * any other item */
    unsigned contained;                 /* the set that `contains` matches */
} Unique;

static int bits_of(unsigned set) {
    int n = 0;
    for (; set; set &= set - 1) n++;
    return n;
}

/* The set of values that may follow when the set `used` has been written. */
static unsigned next_unique(const Unique *u, unsigned used) {
    int at = bits_of(used), full = bits_of(used & u->contained) >= u->a->most;
    if (at >= u->a->max) return 0;
    unsigned fits = u->fits[at < u->a->n_prefix ? at : u->a->n_prefix] & ~used;
    return full ? fits & ~u->contained : fits;
}

/* Whether the array may end when the set `used` has been written. */
static int may_end(const Unique *u, unsigned used) {
    return bits_of(used) >= u->a->min && bits_of(used & u->contained) >= u->a->wanted;
}

/* Fills u->fits[at] with the values of item `at`, which are added to `all` unless they are
 * there.  Returns 0, or -1 where they are too many or cannot be told. */
static int add_values(Unique *u, const Place *p, int at, cJSON *all) {
    Place item;
    int allowed = item_place(u->a->c, p, at, &item);
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

/* Compiles an array of unique items.  schema: the one with uniqueItems; contains: NULL, or what
 * some items must match. */
static int unique_array(const Array *a, const Place *p, const cJSON *schema,
                        const cJSON *contains) {
    Compiler *c = a->c;
    Schema *s = c->s;
    Unique u = {.a = a, .fits = xcalloc(a->n_prefix + 1, sizeof(unsigned))};
    cJSON *all = cJSON_CreateArray(), *v;       /* the values: value i has bit i */
    int bad = 0;
    /* 1. The values of each item. */
    for (int i = 0; i <= a->n_prefix && i < a->max && !bad; i++) bad = add_values(&u, p, i, all);
    if (bad)
        wrong(c, schema, "uniqueItems",
              "supported for enums, constants, booleans and bounded integers of at most 16 "
              "values");
    /* 2. A routine for each value, and one for the comma. */
    Choice choice = {.value = xcalloc(MAX_UNIQUE, sizeof(int)), .comma = new_routine(s)};
    set_entry(s, choice.comma, put_range(s, ',', ',', spaced(c, program_ret(s))));
    cJSON_ArrayForEach(v, all) {
        Buf text = {0};
        if (contains && holds(c, v, contains, 0)) u.contained |= 1u << u.n;
        put_constant(c, schema, v, &text);
        choice.value[u.n] = new_routine(s);
        set_entry(s, choice.value[u.n++], put_literal(s, text.data, text.len, program_ret(s)));
        buf_free(&text);
    }
    /* 3. What may follow each set of values. */
    choice.n = u.n;
    choice.next = xcalloc(1 << u.n, sizeof(unsigned));
    choice.may_end = xcalloc(1 << u.n, 1);
    for (unsigned used = 0; used < 1u << u.n; used++) {
        choice.next[used] = next_unique(&u, used);
        choice.may_end[used] = (uint8_t)may_end(&u, used);
    }
    int first = put_picks(s, choice, a->end), pc = may_end(&u, 0) ? a->end : program_fail(s);
    pc = put_either(s, u.n ? spaced(c, first) : program_fail(s), pc);
    free(u.fits);
    cJSON_Delete(all);
    return put_range(s, '[', '[', pc);
}

/* ---- arrays as a whole ---- */

/* Fills a->wanted, a->most and a->n_counts from the schema with `contains`. */
static void read_counts(Array *a, const cJSON *schema) {
    a->wanted = count_of(a->c, schema, "minContains", 1);
    a->most = count_of(a->c, schema, "maxContains", NO_LIMIT);
    a->n_counts = a->most == NO_LIMIT ? a->wanted : a->most;
    if (a->wanted > MAX_CONTAINS)
        wrong(a->c, schema, "minContains", "above 1000 is not supported");
    if (a->n_counts > MAX_CONTAINS)
        wrong(a->c, schema, "maxContains", "above 1000 is not supported");
}

/* Fills a->n_prefix, min, max and the counts from all schemas of the place.  *unique: a schema
 * with uniqueItems; *contains: what `contains` must match; NULL: there is none.  Returns 0, or
 * -1 with the error. */
static int read_array(Array *a, const Place *p, const cJSON **unique, const cJSON **contains) {
    Compiler *c = a->c;
    const cJSON *closed = NULL, *counts = NULL;
    *unique = *contains = NULL;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *items = json_field(schema, "items");
        const cJSON *prefix = json_field(schema, "prefixItems");
        if (p->part[i].marks & NEGATED) continue;
        if (prefix && !cJSON_IsArray(prefix))
            return wrong(c, schema, "prefixItems", "must be a list"), -1;
        if (prefix && cJSON_IsArray(items))
            return wrong(c, schema, "items", "must be no list beside prefixItems"), -1;
        int lo = count_of(c, schema, "minItems", 0);
        int hi = count_of(c, schema, "maxItems", NO_LIMIT);
        int n = cJSON_GetArraySize(cJSON_IsArray(items) ? items : prefix);
        if (lo > a->min) a->min = lo;
        if (hi < a->max) a->max = hi;
        if (n > a->n_prefix) a->n_prefix = n;
        if (cJSON_IsTrue(json_field(schema, "uniqueItems"))) *unique = schema;
        if (cJSON_IsFalse(json_field(schema, "unevaluatedItems"))) closed = schema;
        if (!json_field(schema, "contains")) continue;
        counts = schema;
        /* contains that neither asks for an item nor limits them says nothing. */
        if (!count_of(c, schema, "minContains", 1) && !json_field(schema, "maxContains")) continue;
        if (*contains) return wrong(c, schema, "contains", "twice is not supported"), -1;
        *contains = json_field(schema, "contains");
        read_counts(a, schema);
    }
    /* Items that contains matches count as evaluated, but when an item is written,
     * unevaluatedItems has to be decided before the item is known. */
    if (closed && counts)
        return wrong(c, closed, "unevaluatedItems", "false beside contains is not supported"), -1;
    return c->bad ? -1 : 0;
}

/* Fills a->routine and a->containing. */
static void compile_items(Array *a, const Place *p, const cJSON *contains) {
    Compiler *c = a->c;
    a->routine = xcalloc(a->n_prefix + 1, sizeof(int));
    a->containing = xcalloc(a->n_prefix + 1, sizeof(int));
    for (int i = 0; i <= a->n_prefix && !c->bad; i++) {
        Place item;
        int allowed = item_place(c, p, i, &item);
        Place counted = copy_place(&item);
        if (contains) add_part(&counted, contains, 0);
        if (contains && a->most != NO_LIMIT) add_part(&item, contains, NEGATED | TESTS);
        a->routine[i] = a->containing[i] = -1;
        if (allowed) a->routine[i] = c->routine_for(c, item);
        else free(item.part);
        if (allowed && contains) a->containing[i] = c->routine_for(c, counted);
        else free(counted.part);
    }
}


/* Writes the program of an array whose items have been compiled. */
static int put_array(Array *a, const Place *p) {
    Schema *s = a->c->s;
    int fail = program_fail(s);
    int told_apart = a->min > a->n_prefix ? a->min : a->n_prefix;       /* without a maximum */
    a->counted = a->max != NO_LIMIT ? a->max : told_apart;
    /* The maximum says nothing where no item may come behind the prefix. */
    if (a->routine[a->n_prefix] < 0 && a->max > a->n_prefix) a->counted = told_apart;
    int64_t addresses = (int64_t)(a->counted + 1) * (a->n_counts + 1);
    if (4 * addresses > MAX_CODE) {     /* an item, a comma and white space: 4 instructions */
        const char *what = a->max != NO_LIMIT ? "maxItems" : "minItems";
        return wrong(a->c, holder_of(p, what), what, "the schema is too large");
    }
    a->before = new_memo(addresses);
    a->behind = new_memo(addresses);
    /* From the end to the front: each call then finds what follows, and the recursion stays
     * flat. */
    for (int i = a->counted; i >= 0; i--)
        for (int k = a->n_counts < i ? a->n_counts : i; k >= 0; k--) behind_item(a, i, k);
    int first = before_item(a, 0, 0), empty = a->min || a->wanted ? fail : a->end;
    if (first != fail) first = spaced(a->c, first);
    return put_range(s, '[', '[', put_either(s, first, empty));
}

int compile_array(Compiler *c, const Place *p) {
    Array a = {.c = c, .max = NO_LIMIT, .most = NO_LIMIT};
    const cJSON *unique, *contains;
    int pc = program_fail(c->s);
    if (read_array(&a, p, &unique, &contains) || a.min > a.max || a.wanted > a.most) return pc;
    a.end = spaced(c, put_range(c->s, ']', ']', program_ret(c->s)));
    if (unique && a.max > 1 && may_have_item(c, p, 1))
        return unique_array(&a, p, unique, contains);
    compile_items(&a, p, contains);
    if (!c->bad) pc = put_array(&a, p);
    free(a.before);
    free(a.behind);
    free(a.routine);
    free(a.containing);
    return pc;
}
