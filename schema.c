/* schema.c - compiles a JSON schema into a program.  See schema.h and program.h; compile.h
 * names the other files.
 *
 * A value must often satisfy several schemas at once: one and those that its allOf and $ref
 * name, one of each anyOf, and what all of them say of the same property.  So what is compiled
 * is a *place*: a list of schemas, some of them negated, each with marks for the keywords that
 * have been replaced.
 * 1. spread adds the schemas of allOf and $ref.
 * 2. split replaces the first keyword that offers alternatives (anyOf, oneOf, if, not, nullable)
 *    by one new place for each alternative, and these begin again with 1.
 * 3. When only keywords about the value itself are left, types_of_place writes all types that all
 *    schemas of the place admit.
 * Equal places are compiled once, as a routine, which also ends the recursion. */
#include "compile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

/* Limit, chosen by judgement to bound the time of compiling a schema. */
#define MAX_PLACES 100000

/* ---- schemas made of others ---- */

/* The schema that this file makes from the nodes `from` and `beside` with those bits.  The same
 * arguments give the same schema again, so that equal places are recognised by their addresses.
 * *is_new: the schema is new and empty, and the caller fills it.  It lives until
 * close_compiler.  The inherited marks among the bits apply wherever the schema stands: put_part
 * finds them in its valueint, which cJSON does not use for objects. */
static cJSON *make_schema(Compiler *c, const void *from, const void *beside, int bits,
                          int *is_new) {
    for (int i = 0; i < c->n_made; i++) {
        Made *m = &c->made[i];
        *is_new = 0;
        if (m->from == from && m->beside == beside && m->bits == bits) return m->schema;
    }
    cJSON *o = cJSON_CreateObject();
    o->valueint = bits & INHERITED;
    c->made = xrealloc(c->made, c->n_made + 1, sizeof *c->made);
    c->made[c->n_made++] = (Made){from, beside, bits, o};
    *is_new = 1;
    return o;
}

/* Makes the schema {"type": type, name: value}, without a type where `type` is NULL. */
static cJSON *make_with(Compiler *c, const char *type, const char *name, const cJSON *value,
                        int bits) {
    int is_new;
    cJSON *o = make_schema(c, value, NULL, bits, &is_new);
    if (is_new && type) cJSON_AddStringToObject(o, "type", type);
    if (is_new) cJSON_AddItemReferenceToObject(o, name, (cJSON *)value);
    return o;
}

/* A new schema {"not": value}, to be added to another one. */
static cJSON *opposite_of(const cJSON *value, int bits) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddItemReferenceToObject(o, "not", (cJSON *)value);
    o->valueint = bits & INHERITED;
    return o;
}

/* Makes the schema of objects with a property that does not satisfy `value`; value NULL: of objects
 * without that property. */
static cJSON *make_member(Compiler *c, const void *from, const char *name, const cJSON *value,
                          int bits) {
    int is_new;
    cJSON *o = make_schema(c, from, value, bits, &is_new);
    if (!is_new) return o;
    cJSON_AddStringToObject(o, "type", "object");
    cJSON *properties = cJSON_AddObjectToObject(o, "properties");
    if (value) cJSON_AddItemToObject(properties, name, opposite_of(value, bits));
    else cJSON_AddFalseToObject(properties, name);
    if (value)
        cJSON_AddItemToArray(cJSON_AddArrayToObject(o, "required"), cJSON_CreateString(name));
    return o;
}

/* ---- alternatives ---- */

/* The routine that writes a value of the place, compiled once for equal places.  Takes p.part
 * over.  Files below call it by Compiler.routine_for. */
static int routine_for(Compiler *c, Place p);

/* Compiles one alternative of a place: the place with n more schemas, inserted at index `at`,
 * where the keyword stood, because properties are written in the order of the schemas. */
static int alternative(Compiler *c, const Place *p, int at, const Part *more, int n) {
    Place q = copy_place(p);
    for (int i = 0; i < n; i++) at = put_part(&q, at, more[i].schema, more[i].marks);
    return put_call(c->s, routine_for(c, q), program_ret(c->s));
}

/* Compiles the alternatives of anyOf or oneOf (keyword) of schema `which` of the place, inserted
 * at index `at`.  exactly: only one alternative may hold, and where two might, all others are
 * added negated. */
static int one_of(Compiler *c, const Place *p, int which, int at, const char *keyword,
                  int exactly) {
    const cJSON *schema = p->part[which].schema;
    int bits = p->part[which].marks & INHERITED;
    const cJSON *list = json_field(schema, keyword), *item, *other;
    int pc = program_fail(c->s), n = cJSON_GetArraySize(list);
    if (!cJSON_IsArray(list) || !n)
        return wrong(c, schema, keyword, "must be a list that is not empty");
    if (exactly && all_apart(c, list)) exactly = 0;
    Part *more = xcalloc(n, sizeof *more);
    cJSON_ArrayForEach(item, list) {
        int k = 1;
        more[0] = (Part){item, bits};
        cJSON_ArrayForEach(other, list)
            if (exactly && other != item) more[k++] = (Part){other, NEGATED | TESTS | ASIDE};
        pc = put_either(c->s, pc, alternative(c, p, at, more, k));
    }
    free(more);
    return pc;
}

/* The alternatives that a negated schema leaves: a value does not satisfy it where one of its
 * keywords does not hold. */
typedef struct {
    Compiler *c;
    const Place *p;                     /* the place without the negated schema */
    int at;                             /* the index at which the negated schema stood */
    int bits;                           /* inherited marks of the alternatives */
    int mask;                           /* types of the values at the place */
    int pc;                             /* the address of the alternatives so far */
} Opposite;

/* Adds the alternative that all n schemas hold. */
static void also(Opposite *o, const Part *parts, int n) {
    o->pc = put_either(o->c->s, o->pc, alternative(o->c, o->p, o->at, parts, n));
}

/* Adds the alternative that one schema holds (or, with NEGATED among the marks, does not hold). */
static void also_one(Opposite *o, const cJSON *schema, int marks) {
    also(o, &(Part){schema, marks | o->bits}, 1);
}

/* Makes the schema {"type": the types in the mask}.  The bits above ASIDE key the mask. */
static cJSON *make_types(Compiler *c, const cJSON *from, int mask, int bits) {
    int is_new;
    cJSON *made = make_schema(c, from, NULL, bits | mask * 2 * ASIDE, &is_new);
    if (is_new) add_type_names(mask, cJSON_AddArrayToObject(made, "type"));
    return made;
}

/* Each negate_ function adds the alternatives in which keyword k of the negated schema does not
 * hold.  Returns 0 where these cannot be written. */

/* A bound: minLength 3 leaves maxLength 2 (3 and a step of -1), and minimum 3 leaves
 * exclusiveMaximum 3.  Returns 0 where k is no bound. */
static int negate_bound(Opposite *o, const cJSON *schema, const cJSON *k) {
    static const struct {
        const char *name, *other;       /* the bound, and the one that its opposite is */
        const char *type;
        int step;                       /* of a count; 0: the bound of a number */
    } bounds[] = {
        {"minLength", "maxLength", "string", -1}, {"maxLength", "minLength", "string", 1},
        {"minItems", "maxItems", "array", -1}, {"maxItems", "minItems", "array", 1},
        {"minProperties", "maxProperties", "object", -1},
        {"maxProperties", "minProperties", "object", 1},
        {"minimum", "exclusiveMaximum", "number", 0}, {"maximum", "exclusiveMinimum", "number", 0},
        {"exclusiveMinimum", "maximum", "number", 0}, {"exclusiveMaximum", "minimum", "number", 0},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        int is_new, n;
        if (strcmp(k->string, bounds[i].name) || !cJSON_IsNumber(k)) continue;
        if (!bounds[i].step)
            return also_one(o, make_with(o->c, bounds[i].type, bounds[i].other, k, o->bits), 0), 1;
        n = count_of(o->c, schema, k->string, 0);
        if (n == NO_LIMIT || (n += bounds[i].step) < 0) return 1;       /* the bound always holds */
        cJSON *made = make_schema(o->c, k, NULL, o->bits, &is_new);
        if (is_new) cJSON_AddStringToObject(made, "type", bounds[i].type);
        if (is_new) cJSON_AddNumberToObject(made, bounds[i].other, n);
        return also_one(o, made, 0), 1;
    }
    return 0;
}

/* additionalProperties (k) or patternProperties (by_pattern): one of the properties that they
 * are about is not as they say.  Only where the place knows the names of all properties. */
static int negate_others(Opposite *o, const cJSON *schema, const cJSON *k, int by_pattern) {
    const cJSON *pattern;
    const char **name;
    if (place_is_open(o->c, o->p)) return 0;
    int n = names_at(o->p, &name);
    for (int i = 0; i < n; i++) {
        int known = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"),
                                                     name[i]) != NULL;
        cJSON_ArrayForEach(pattern, json_field(schema, "patternProperties")) {
            if (!name_matches(o->c, pattern, name[i])) continue;
            known = 1;
            if (by_pattern) also_one(o, make_member(o->c, name[i], name[i], pattern, o->bits), 0);
        }
        if (!known && !by_pattern) also_one(o, make_member(o->c, name[i], name[i], k, o->bits), 0);
    }
    free(name);
    return 1;
}

/* contains (k) beside minContains or maxContains: fewer items than the one, or more than the
 * other. */
static void negate_counts(Opposite *o, const cJSON *schema, const cJSON *k) {
    static const char *const bounds[] = {"minContains", "maxContains"};
    for (int i = 0; i < 2; i++) {
        if (i && !json_field(schema, bounds[i])) continue;
        int n = count_of(o->c, schema, bounds[i], 1), is_new;
        if (n == NO_LIMIT || (n += i ? 1 : -1) < 0) continue;           /* the bound always holds */
        cJSON *made = make_schema(o->c, k, bounds[i], o->bits, &is_new);
        if (is_new) cJSON_AddStringToObject(made, "type", "array");
        if (is_new) cJSON_AddItemReferenceToObject(made, "contains", (cJSON *)k);
        if (is_new) cJSON_AddNumberToObject(made, bounds[!i], n);
        if (is_new && !i) cJSON_AddNumberToObject(made, "minContains", 0);
        also_one(o, made, 0);
    }
}

/* prefixItems, or items as a list (k): one of the items that the list is about is not as it
 * says. */
static void negate_prefix(Opposite *o, const cJSON *k) {
    const cJSON *item;
    int at = 0, is_new;
    cJSON_ArrayForEach(item, k) {
        cJSON *made = make_schema(o->c, item, k, o->bits, &is_new);
        if (is_new) {                   /* true, …, true, and not the item */
            cJSON *list = cJSON_AddArrayToObject(made, "prefixItems");
            for (int i = 0; i < at; i++) cJSON_AddItemToArray(list, cJSON_CreateTrue());
            cJSON_AddItemToArray(list, opposite_of(item, o->bits));
            cJSON_AddNumberToObject(made, "minItems", at + 1);
            cJSON_AddStringToObject(made, "type", "array");
        }
        also_one(o, made, 0);
        at++;
    }
}

/* items, prefixItems, additionalItems or contains (k). */
static int negate_items(Opposite *o, const cJSON *schema, const cJSON *k) {
    int is_new;
    if (!strcmp(k->string, "additionalItems"))
        return !cJSON_IsArray(json_field(schema, "items")) || cJSON_IsTrue(k);
    /* true always holds, but contains: true fails where there are no items. */
    if (cJSON_IsTrue(k) && strcmp(k->string, "contains")) return 1;
    if (cJSON_IsArray(k)) return negate_prefix(o, k), 1;
    int is_items = !strcmp(k->string, "items");
    if (is_items && json_field(schema, "prefixItems")) return 0;
    if (!is_items && (json_field(schema, "minContains") || json_field(schema, "maxContains")))
        return negate_counts(o, schema, k), 1;
    cJSON *made = make_schema(o->c, k, schema, o->bits, &is_new);
    if (is_new) cJSON_AddStringToObject(made, "type", "array");
    if (is_new)
        cJSON_AddItemToObject(made, is_items ? "contains" : "items", opposite_of(k, o->bits));
    also_one(o, made, 0);
    return 1;
}

/* anyOf or oneOf (exactly): no alternative holds; or, of oneOf, two hold, where two may at all. */
static int negate_alternatives(Opposite *o, const cJSON *k, int exactly) {
    const int most = 8;                 /* n alternatives make n (n - 1) / 2 pairs; by judgement */
    const cJSON *a, *b;
    int n = 0;
    if (exactly && all_apart(o->c, k)) exactly = 0;
    if (exactly && cJSON_GetArraySize(k) > most) return 0;
    Part *parts = xcalloc(cJSON_GetArraySize(k) + 1, sizeof *parts);
    cJSON_ArrayForEach(a, k) parts[n++] = (Part){a, NEGATED | o->bits};
    also(o, parts, n);
    for (a = exactly ? k->child : NULL; a; a = a->next)
        for (b = a->next; b; b = b->next) also(o, (Part[]){{a, o->bits}, {b, o->bits}}, 2);
    free(parts);
    return 1;
}

/* if (k): it holds and `then` does not, or it does not hold and neither does `else`. */
static void negate_if(Opposite *o, const cJSON *schema, const cJSON *k) {
    const cJSON *then = json_field(schema, "then"), *otherwise = json_field(schema, "else");
    if (then) also(o, (Part[]){{k, o->bits}, {then, NEGATED | o->bits}}, 2);
    if (otherwise) also(o, (Part[]){{k, NEGATED | o->bits}, {otherwise, NEGATED | o->bits}}, 2);
}

/* dependentRequired, dependentSchemas or dependencies (list): one of their properties (k) is
 * there, and a name that k lists is not, or k as a schema does not hold. */
static void negate_dependent(Opposite *o, const cJSON *list) {
    const cJSON *k, *name;
    int is_new;
    cJSON_ArrayForEach(k, list) {
        cJSON *there = make_schema(o->c, k, list, o->bits, &is_new);
        if (is_new) {
            cJSON *required = cJSON_AddArrayToObject(there, "required");
            cJSON_AddItemToArray(required, cJSON_CreateString(k->string));
            cJSON_AddStringToObject(there, "type", "object");
        }
        if (!cJSON_IsArray(k)) {
            also(o, (Part[]){{there, o->bits}, {k, NEGATED | o->bits}}, 2);
            continue;
        }
        cJSON_ArrayForEach(name, k) {
            if (!cJSON_IsString(name)) continue;
            cJSON *without = make_member(o->c, name, name->valuestring, NULL, o->bits);
            also(o, (Part[]){{there, o->bits}, {without, o->bits}}, 2);
        }
    }
}

/* Whether a keyword says nothing about any value at the place, so that its negation leaves no
 * value. */
static int is_beside_the_point(const Opposite *o, const char *name) {
    static const int kinds[] = {T_OBJECT, T_ARRAY, T_STRING, T_INTEGER | T_FRACTION};
    for (int i = 0; i < 4; i++)
        if (is_in(name, keywords_of(kinds[i])) && !(o->mask & kinds[i])) return 1;
    return is_note(name) || !is_keyword(name);
}

/* pattern or format (k): strings that it does not match. */
static void negate_text(Opposite *o, const cJSON *k) {
    int is_new;
    if (*k->string == 'f' && cJSON_IsString(k) && is_annotation(k->valuestring)) return;
    cJSON *string = make_schema(o->c, k, k, o->bits, &is_new);
    if (is_new) cJSON_AddStringToObject(string, "type", "string");
    cJSON *text = make_with(o->c, NULL, k->string, k, o->bits);
    also(o, (Part[]){{text, NEGATED | LEAF | o->bits}, {string, o->bits}}, 2);
}

/* Adds the alternatives in which keyword k, any keyword, does not hold. */
static int negate(Opposite *o, const cJSON *schema, const cJSON *k) {
    /* These act through the keyword beside which they stand. */
    static const char *const with_others[] = {"then", "else", "nullable", "minContains",
                                              "maxContains", NULL};
    static const char *const where_true[] = {"unevaluatedProperties", "unevaluatedItems", NULL};
    static const char *const of_items[] = {"items", "prefixItems", "additionalItems", "contains",
                                           NULL};
    const char *name = k->string;
    const cJSON *item;
    if (is_in(name, with_others) || is_beside_the_point(o, name)) return 1;
    if (is_in(name, where_true)) return cJSON_IsTrue(k);        /* true always holds */
    if (!strcmp(name, "uniqueItems")) return cJSON_IsFalse(k);
    if (is_in(name, of_items)) return negate_items(o, schema, k);
    if (!strcmp(name, "additionalProperties"))
        return cJSON_IsTrue(k) || negate_others(o, schema, k, 0);
    if (!strcmp(name, "patternProperties")) return !k->child || negate_others(o, schema, k, 1);
    if (begins(name, "depend")) return negate_dependent(o, k), 1;
    if (!strcmp(name, "if")) return negate_if(o, schema, k), 1;
    if (!strcmp(name, "anyOf") || !strcmp(name, "oneOf"))
        return negate_alternatives(o, k, *name == 'o');
    if (!strcmp(name, "not")) return also_one(o, k, 0), 1;
    if (!strcmp(name, "type")) {
        int left = o->mask & ~mask_of(k);
        if (left) also_one(o, make_types(o->c, k, left, o->bits), 0);
    } else if (!strcmp(name, "const") || !strcmp(name, "enum")) {
        also_one(o, make_with(o->c, NULL, name, k, o->bits), NEGATED | LEAF);
    } else if (!strcmp(name, "pattern") || !strcmp(name, "format")) {
        negate_text(o, k);
    } else if (!strcmp(name, "required")) {
        cJSON_ArrayForEach(item, k)
            if (cJSON_IsString(item))
                also_one(o, make_member(o->c, item, item->valuestring, NULL, o->bits), 0);
    } else if (!strcmp(name, "properties")) {
        cJSON_ArrayForEach(item, k)
            if (!(o->bits & ASIDE) || may_have(o->c, o->p, item->string))
                also_one(o, make_member(o->c, item->string, item->string, item, o->bits), 0);
    } else if (!strcmp(name, "$ref")) {
        const cJSON *there = cJSON_IsString(k) ? resolve(o->c, k->valuestring) : NULL;
        if (!there) return wrong(o->c, schema, "$ref", BAD_REF), 1;
        also_one(o, there, NEGATED);
    } else if (!strcmp(name, "allOf")) {
        cJSON_ArrayForEach(item, k) also_one(o, item, NEGATED);
    } else return negate_bound(o, schema, k);
    return 1;
}

/* Compiles the place with one more schema, negated, which stood at index `at` and had those
 * marks. */
static int negation(Compiler *c, const Place *p, int at, const cJSON *schema, int bits) {
    const cJSON *k;
    Place q = copy_place(p);
    Opposite o = {c, &q, at, (bits & INHERITED) | TESTS | DENIED, types_at(p), program_fail(c->s)};
    if (is_nullable(schema)) o.mask &= ~T_NULL;
    /* The alternatives below assume that no value is of another type than o.mask: say so. */
    if (o.mask != T_ALL) add_part(&q, make_types(c, c->root, o.mask, o.bits), o.bits);
    if (never_holds(c, p, schema, o.mask)) o.pc = alternative(c, &q, 0, NULL, 0);
    else
        cJSON_ArrayForEach(k, schema)
            if (!c->bad && !negate(&o, schema, k))
                o.pc = wrong(c, schema, k->string,
                             "not supported inside of not, if or a oneOf whose alternatives may "
                             "hold at once");
    free(q.part);
    return o.pc;
}

/* Makes, for a member k of dependentSchemas or dependencies, the schema {"anyOf":
 * [{"properties": {name: false}}, {"required": [name], "allOf": [k]}]}: the property is not
 * there, or k holds. */
static cJSON *make_dependent(Compiler *c, const cJSON *k, int bits) {
    int is_new;
    cJSON *made = make_schema(c, k, k, bits, &is_new);
    if (!is_new) return made;
    cJSON *list = cJSON_AddArrayToObject(made, "anyOf");
    cJSON *without = cJSON_CreateObject(), *with = cJSON_CreateObject();
    cJSON_AddFalseToObject(cJSON_AddObjectToObject(without, "properties"), k->string);
    without->valueint = (bits & INHERITED) | TESTS;
    cJSON_AddItemToArray(cJSON_AddArrayToObject(with, "required"), cJSON_CreateString(k->string));
    cJSON_AddItemReferenceToArray(cJSON_AddArrayToObject(with, "allOf"), (cJSON *)k);
    cJSON_AddItemToArray(list, without);
    cJSON_AddItemToArray(list, with);
    return made;
}

/* Adds what dependentSchemas, and dependencies that are schemas, say to the place at index `at`. */
static void add_dependent(Compiler *c, Place *p, int at, const cJSON *schema, int bits) {
    static const char *const kinds[] = {"dependentSchemas", "dependencies"};
    const cJSON *k;
    for (int i = 0; i < 2; i++)
        cJSON_ArrayForEach(k, json_field(schema, kinds[i]))
            if (!cJSON_IsArray(k)) at = put_part(p, at, make_dependent(c, k, bits), bits);
}

/* The index behind schema i of the place and the schemas that it has brought there. */
static int behind(const Compiler *c, const Place *p, int i) {
    int at = i + 1;
    while (at < p->n && leads_to(c, p->part[i].schema, p->part[at].schema)) at++;
    return at;
}

/* Splits nullable of schema i: the place as it is, or with null in place of the schema. */
static int split_nullable(Compiler *c, Place *p, int i) {
    int is_new;
    cJSON *null = make_schema(c, json_field(p->part[i].schema, "nullable"), NULL, 0, &is_new);
    Place with_null = copy_place(p);
    if (is_new) cJSON_AddStringToObject(null, "type", "null");
    with_null.part[i] = (Part){null, 0};
    p->part[i].marks |= NULLABLE;
    int pc = alternative(c, p, 0, NULL, 0);
    return put_either(c->s, pc, put_call(c->s, routine_for(c, with_null), program_ret(c->s)));
}

/* Splits `if` of schema i, which has then or otherwise: it holds and then, or it does not hold and
 * otherwise.  Either may be NULL. */
static int split_if(Compiler *c, Place *p, int i, const cJSON *then, const cJSON *otherwise) {
    const cJSON *condition = json_field(p->part[i].schema, "if");
    int at = behind(c, p, i), bits = p->part[i].marks & INHERITED;
    Part yes[] = {{condition, TESTS | bits}, {then, bits}};
    Part no[] = {{condition, NEGATED | TESTS | bits}, {otherwise, bits}};
    int pc = alternative(c, p, at, yes, then ? 2 : 1);
    return put_either(c->s, pc, alternative(c, p, at, no, otherwise ? 2 : 1));
}

/* Compiles the alternatives of the first schema of the place that has any, and returns their
 * address; -1 where none has.  Negated schemas come last, when the place says what else is
 * written. */
static int split(Compiler *c, Place *p) {
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        int *marks = &p->part[i].marks, bits = *marks & INHERITED;
        if (*marks & (LEAF | NEGATED)) continue;
        if (is_nullable(schema) && !(*marks & NULLABLE)) return split_nullable(c, p, i);
        if (json_field(schema, "anyOf") && !(*marks & ANY_OF)) {
            *marks |= ANY_OF;
            return one_of(c, p, i, behind(c, p, i), "anyOf", 0);
        }
        if (json_field(schema, "oneOf") && !(*marks & ONE_OF)) {
            *marks |= ONE_OF;
            return one_of(c, p, i, behind(c, p, i), "oneOf", 1);
        }
        if (json_field(schema, "not") && !(*marks & NOT)) {
            *marks |= NOT;
            return alternative(c, p, behind(c, p, i),
                               &(Part){json_field(schema, "not"), NEGATED | TESTS | bits}, 1);
        }
        if (json_field(schema, "if") && !(*marks & IF)) {
            const cJSON *then = json_field(schema, "then"), *otherwise = json_field(schema, "else");
            *marks |= IF;
            if (then || otherwise) return split_if(c, p, i, then, otherwise);
        }
        if ((json_field(schema, "dependentSchemas") || json_field(schema, "dependencies")) &&
            !(*marks & DEPENDENT)) {
            *marks |= DEPENDENT;
            add_dependent(c, p, behind(c, p, i), schema, bits);
        }
    }
    for (int i = 0; i < p->n; i++) {
        Part part = p->part[i];
        if (part.marks & LEAF || !(part.marks & NEGATED)) continue;
        p->n--;
        for (int k = i; k < p->n; k++) p->part[k] = p->part[k + 1];
        return negation(c, p, i, part.schema, part.marks);
    }
    return -1;
}

/* ---- places as a whole ---- */

/* The address of true, false or null (text), unless a negated constant of the place excludes it. */
static int word(Compiler *c, const Place *p, const char *text) {
    cJSON *v = cJSON_Parse(text);
    int ok = place_holds(c, p, v);
    cJSON_Delete(v);
    return ok ? put_literal(c->s, text, strlen(text), program_ret(c->s)) : program_fail(c->s);
}

/* Refuses negated constants that are objects or arrays, because objects.c and arrays.c cannot
 * exclude a single value.  mask: the types of the place.  Returns 0, or -1 with the error. */
static int check_negated(Compiler *c, const Place *p, int mask) {
    const int refused = mask & (T_OBJECT | T_ARRAY);
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *v;
        if (!(p->part[i].marks & NEGATED)) continue;
        for (v = constants_of(schema); v; v = next_constant(schema, v))
            if (type_of_value(v) & refused)
                return wrong(c, schema, "not", "objects and arrays are not supported here"), -1;
    }
    return 0;
}

/* Compiles a place without alternatives: its constants, or all types that its schemas admit. */
static int types_of_place(Compiler *c, const Place *p) {
    Schema *s = c->s;
    int pc = program_fail(s), mask = types_at(p);
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        if (p->part[i].marks & NEGATED) continue;
        if (json_field(schema, "enum") || cJSON_GetObjectItemCaseSensitive(schema, "const"))
            return compile_constants(c, p, schema);
    }
    if (c->bad || check_negated(c, p, mask)) return pc;
    if (mask & T_OBJECT) pc = put_either(s, pc, compile_object(c, p));
    if (mask & T_ARRAY && !c->bad) pc = put_either(s, pc, compile_array(c, p));
    if (mask & T_STRING && !c->bad) pc = put_either(s, pc, compile_string(c, p));
    if (mask & (T_INTEGER | T_FRACTION) && !c->bad) {
        Range r = {.whole = !(mask & T_FRACTION), .is_fraction = !(mask & T_INTEGER)};
        for (int i = 0; i < p->n; i++)
            if (!(p->part[i].marks & NEGATED)) add_range(c, p->part[i].schema, &r);
        if (!c->bad) pc = put_either(s, pc, compile_number(c, p, r));
    }
    if (mask & T_BOOLEAN && !c->bad) {
        int yes = word(c, p, "true");
        pc = put_either(s, pc, put_either(s, yes, word(c, p, "false")));
    }
    if (mask & T_NULL && !c->bad) pc = put_either(s, pc, word(c, p, "null"));
    return pc;
}

/* Compiles a place and returns its address. */
static int compile(Compiler *c, Place *p) {
    if (spread(c, p)) return program_fail(c->s);
    int pc = split(c, p);
    if (pc >= 0) return pc;
    return c->bad ? program_fail(c->s) : types_of_place(c, p);
}

static unsigned place_hash(const Place *p) {
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < p->n; i++)
        h = (h ^ ((uintptr_t)p->part[i].schema + (unsigned)p->part[i].marks)) * 1099511628211u;
    return (unsigned)(h >> 20) % N_BUCKETS;
}

static int same_place(const Place *a, const Place *b) {
    if (a->n != b->n) return 0;
    for (int i = 0; i < a->n; i++)
        if (a->part[i].schema != b->part[i].schema || a->part[i].marks != b->part[i].marks)
            return 0;
    return 1;
}

static int routine_for(Compiler *c, Place p) {
    const cJSON *schema = p.n ? p.part[0].schema : NULL;
    int *bucket = &c->bucket[place_hash(&p)];
    for (int i = *bucket - 1; i >= 0; i = c->place[i].next - 1)
        if (same_place(&c->place[i].place, &p)) {
            free(p.part);
            return c->place[i].routine;
        }
    int routine = new_routine(c->s);
    c->place = xrealloc(c->place, c->n_places + 1, sizeof *c->place);
    c->place[c->n_places] = (KnownPlace){copy_place(&p), routine, *bucket};
    *bucket = ++c->n_places;            /* known before it is compiled: a recursive $ref finds it */
    if (c->depth >= MAX_DEPTH) wrong(c, schema, NULL, "nested too deep");
    if (c->n_places > MAX_PLACES) wrong(c, schema, NULL, "the schema is too large");
    if (!c->bad) {
        c->depth++;
        set_entry(c->s, routine, compile(c, &p));
        c->depth--;
        if (program_is_full(c->s) && !c->bad) wrong(c, schema, NULL, "the schema is too large");
    }
    free(p.part);
    return routine;
}

/* ---- a schema as a whole ---- */

/* A compiler with the routine of white space: nothing, one space, or a newline and up to 16
 * spaces. */
static Compiler open_compiler(const Pieces *p, int in_calls, Error *err) {
    Compiler c = {.s = program_new(p, in_calls), .err = err,
                  .routine_for = routine_for,
                  .resolved = xcalloc(N_BUCKETS + 1, sizeof(Resolved))};
    int ret = program_ret(c.s), spaces = ret;
    for (int i = 0; i < 16; i++) spaces = put_either(c.s, ret, put_range(c.s, ' ', ' ', spaces));
    int space = put_range(c.s, ' ', ' ', ret), line = put_range(c.s, '\n', '\n', spaces);
    c.space = new_routine(c.s);
    set_entry(c.s, c.space, put_either(c.s, ret, put_either(c.s, space, line)));
    return c;
}

/* Adds the keywords of a schema that say something about the value, in parentheses. */
static void add_keywords(Buf *out, const cJSON *schema) {
    const cJSON *k;
    int n = 0;
    cJSON_ArrayForEach(k, schema)
        if (k->string && is_keyword(k->string))
            buf_printf(out, "%s%s", n++ ? ", " : " (", k->string);
    if (n) buf_puts(out, ")");
}

/* Adds a clause about the first name that the place requires and does not allow, if there is
 * one. */
static void add_missing_name(Compiler *c, const Place *p, Buf *out) {
    Place all = copy_place(p);
    const cJSON *name;
    int nothing = spread(c, &all), found = 0;
    for (int i = 0; i < all.n && !nothing && types_at(&all) == T_OBJECT; i++)
        cJSON_ArrayForEach(name, json_field(all.part[i].schema, "required")) {
            if (found || all.part[i].marks & NEGATED || may_have(c, &all, name->valuestring))
                continue;
            buf_puts(out, ": ");
            json_quote_text(out, name->valuestring);
            buf_puts(out, " is required and not allowed");
            found = 1;
        }
    free(all.part);
}

/* Notes the error that nothing satisfies the place (why), with its schemas and their keywords. */
static void blame(Compiler *c, const Place *p, const char *why) {
    Buf what = {0};
    const cJSON *first = NULL;
    buf_puts(&what, why);
    for (int i = 0; i < p->n; i++) {
        Buf path = {0};
        if (add_pointer(c, p->part[i].schema, &path)) {
            const char *not = p->part[i].marks & NEGATED ? "not " : "";
            if (first) buf_printf(&what, " together with %s%s", not, path.data);
            else first = p->part[i].schema;
            add_keywords(&what, p->part[i].schema);
        }
        buf_free(&path);
    }
    add_missing_name(c, p, &what);
    wrong(c, first, NULL, what.data);
    buf_free(&what);
}

/* The place that was compiled as a routine, or NULL. */
static const Place *place_of(const Compiler *c, int routine) {
    for (int i = 0; i < c->n_places; i++)
        if (c->place[i].routine == routine) return &c->place[i].place;
    return NULL;
}

/* Notes why the program cannot be run (why), at the innermost place that is to blame: from the
 * routine down as long as one routine blocks the one that calls it. */
static void note_failure(Compiler *c, int routine, const char *why) {
    const Place *at = place_of(c, routine), *inner;
    for (int depth = 0; routine >= 0 && depth < MAX_DEPTH; depth++) {
        routine = program_dead_end(c->s, routine);
        if (!(inner = place_of(c, routine))) break;
        at = inner;
    }
    if (at) blame(c, at, why);
    else wrong(c, c->root, NULL, why);
}

/* Frees the sets and texts that values and names were held against. */
static void free_known_values(Compiler *c) {
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

/* Ends a compilation: frees all but the program, which it returns.  NULL where an error was or is
 * noted. */
static Schema *close_compiler(Compiler *c) {
    Error why;
    int routine;
    if (!c->bad && states_finish(c->s, &routine, &why)) note_failure(c, routine, why.text);
    for (int i = 0; i < c->n_places; i++) free(c->place[i].place.part);
    for (int i = 0; i < c->n_known; i++) free(c->known[i].key);
    free(c->known);
    free(c->resolved);
    free_known_values(c);
    buf_free(&c->prefix);
    free(c->place);
    for (int i = 0; i < c->n_made; i++) cJSON_Delete(c->made[i].schema);
    free(c->made);
    if (!c->bad) return c->s;
    schema_free(c->s);
    return NULL;
}

static int compare_names(const void *x, const void *y) {
    const cJSON *const *a = x, *const *b = y;
    return strcmp((*a)->string, (*b)->string);
}

/* Refuses two members of one name in an object, anywhere in the tree.  cJSON takes the first and
 * other readers the last, so that a schema with both would mean different things to different
 * programs. */
static void refuse_twice(Compiler *c, const cJSON *node) {
    const cJSON *child, **member = NULL;
    int n = 0;
    cJSON_ArrayForEach(child, node) {
        if (child->string && !(n & (n - 1)))
            member = xrealloc(member, n ? 2 * n : 1, sizeof *member);
        if (child->string) member[n++] = child;
        refuse_twice(c, child);
    }
    if (n) qsort(member, (size_t)n, sizeof *member, compare_names);
    for (int i = 1; i < n; i++)
        if (!compare_names(&member[i - 1], &member[i]))
            wrong(c, node, member[i]->string, "is there twice");
    free(member);
}

Schema *schema_new(const Pieces *p, const cJSON *schema, Error *err) {
    Compiler c = open_compiler(p, 0, err);
    Place whole = {0};
    c.root = schema;
    refuse_twice(&c, schema);
    add_part(&whole, schema, 0);
    set_entry(c.s, 0, put_call(c.s, routine_for(&c, whole), program_ret(c.s)));
    return close_compiler(&c);
}

/* The routine of a tool's arguments: an object that satisfies the parameters; NULL: an empty
 * object. */
static int arguments_of(Compiler *c, const char *tool, const cJSON *parameters) {
    Place whole = {0};
    int is_new;
    cJSON *object = make_schema(c, parameters, parameters, 0, &is_new);
    if (is_new) cJSON_AddStringToObject(object, "type", "object");
    c->prefix.len = 0;
    buf_printf(&c->prefix, "parameters of %s: ", tool);
    c->root = parameters;
    refuse_twice(c, parameters);
    const cJSON *type = json_field(parameters, "type");
    if (is_new && !parameters) cJSON_AddFalseToObject(object, "additionalProperties");
    if (parameters && type && !(mask_of(type) & T_OBJECT))
        wrong(c, parameters, "type", "must be object");
    if (parameters) add_part(&whole, parameters, 0);
    add_part(&whole, object, 0);
    return routine_for(c, whole);
}

/* Whether a tool's parameters compile, and fit into what c has left of MAX_CODE.  They are tried
 * in a program of their own, so that a failure leaves nothing behind. */
static int compiles(const Compiler *c, const Pieces *p, const char *tool, const cJSON *parameters,
                    Error *why) {
    const int reserve = MAX_CODE / 20;  /* for the names of the tools: far more than they take */
    Compiler alone = open_compiler(p, 1, why);
    int arguments = arguments_of(&alone, tool, parameters);
    set_entry(alone.s, 0, put_call(alone.s, arguments, program_ret(alone.s)));
    if (program_size(alone.s) > MAX_CODE - reserve - program_size(c->s))
        wrong(&alone, parameters, NULL, "the schema is too large");
    Schema *s = close_compiler(&alone);
    schema_free(s);
    return s != NULL;
}

/* "call:NAME" and the arguments of a tool, then `next`. */
static int put_tool(Compiler *c, const char *tool, const cJSON *parameters, int next) {
    int arguments = put_call(c->s, arguments_of(c, tool, parameters), next);
    Buf begin = {0};
    buf_printf(&begin, "call:%s", tool);
    int pc = put_literal(c->s, begin.data, begin.len, arguments);
    buf_free(&begin);
    return pc;
}

/* A call is CALL_MARK, one of the tools, CALL_END_MARK; behind it a loop may begin the next
 * call. */
Schema *schema_calls(const Pieces *p, const cJSON *tools, const char *name, int several,
                     Buf *uncompiled, Error *err) {
    Compiler c = open_compiler(p, 1, err);
    Schema *s = c.s;
    const cJSON *tool;
    int n = 0, end = put_loop(s, program_ret(s)), which = program_fail(s);
    int close = put_literal(s, (char[]){(char)MARK, CALL_END_MARK}, 2, end);
    cJSON_ArrayForEach(tool, tools) {
        const cJSON *function = json_field(tool, "function");
        const cJSON *parameters = json_field(function, "parameters");
        const char *this = json_string(function, "name");
        Error why;
        if (!this || (name && strcmp(this, name))) continue;
        if (uncompiled && !compiles(&c, p, this, parameters, &why)) {
            if (uncompiled->len) buf_puts(uncompiled, "; ");
            buf_printf(uncompiled, "the arguments of %s are not held to its schema: %s", this,
                       why.text);
            int is_new;
            parameters = make_schema(&c, tool, NULL, 0, &is_new);       /* {}: any object */
        }
        which = put_either(s, which, put_tool(&c, this, parameters, close));
        n++;
    }
    int all = put_literal(s, (char[]){(char)MARK, CALL_MARK}, 2, which);
    if (several) set_loop(s, end, all);
    set_entry(s, 0, all);
    if (!n && !c.bad) {
        c.bad = 1;
        fail(err, "no such tool");
    }
    return close_compiler(&c);
}
