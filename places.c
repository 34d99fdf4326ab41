/* places.c - places: the schemas that hold together, and which types and names these admit.  See
 * compile.h. */
#include "compile.h"

#include <string.h>

#include "json.h"

/* ---- the schemas of a place ---- */

Place copy_place(const Place *p) {
    Place copy = {xcalloc(p->n + 1, sizeof *copy.part), p->n};
    if (p->n) memcpy(copy.part, p->part, (size_t)p->n * sizeof *copy.part);
    return copy;
}

/* A schema that is there loses the inherited marks that the new one lacks: TESTS, for instance,
 * must hold for all ways that lead to the schema. */
int put_part(Place *p, int at, const cJSON *schema, int marks) {
    if (cJSON_IsObject(schema)) marks |= schema->valueint & INHERITED;
    for (int i = 0; i < p->n; i++)
        if (p->part[i].schema == schema && (p->part[i].marks & NEGATED) == (marks & NEGATED)) {
            p->part[i].marks &= marks | ~INHERITED;
            return at;
        }
    p->part = xrealloc(p->part, p->n + 1, sizeof *p->part);
    for (int i = p->n++; i > at; i--) p->part[i] = p->part[i - 1];
    p->part[at] = (Part){schema, marks};
    return at + 1;
}

void add_part(Place *p, const cJSON *schema, int marks) { put_part(p, p->n, schema, marks); }

const cJSON *holder_of(const Place *p, const char *keyword) {
    for (int i = 0; i < p->n; i++)
        if (json_field(p->part[i].schema, keyword)) return p->part[i].schema;
    return p->n ? p->part[0].schema : NULL;
}

int evaluates(const Compiler *c, const cJSON *closed, const Part *part) {
    if (part->marks & NEGATED) return 0;
    return part->schema == closed || (!(part->marks & DENIED) && leads_to(c, closed, part->schema));
}

int spread(Compiler *c, Place *p) {
    const cJSON *item;
    int kept = 0;
    for (int i = 0; i < p->n && !c->bad; i++) {
        const cJSON *schema = p->part[i].schema;
        const cJSON *ref = json_field(schema, "$ref"), *all = json_field(schema, "allOf");
        if (cJSON_IsBool(schema)) {
            if (cJSON_IsTrue(schema) == !!(p->part[i].marks & NEGATED)) return 1;
            continue;
        }
        if (!cJSON_IsObject(schema))
            return wrong(c, schema, NULL, "must be an object, true or false"), -1;
        if (check_keywords(c, schema)) return -1;
        if (p->part[i].marks & NEGATED) continue;
        /* null satisfies a nullable schema whatever else it says: split must come first. */
        if (is_nullable(schema) && !(p->part[i].marks & NULLABLE)) continue;
        int bits = p->part[i].marks & INHERITED, at = i + 1;
        if (ref && !(p->part[i].marks & REF)) {
            const cJSON *there = cJSON_IsString(ref) ? resolve(c, ref->valuestring) : NULL;
            if (!there) return wrong(c, schema, "$ref", BAD_REF), -1;
            if (leads_to(c, there, schema)) return wrong(c, schema, "$ref", "leads to itself"), -1;
            p->part[i].marks |= REF;
            at = put_part(p, at, there, bits);
        }
        if (all && !(p->part[i].marks & ALL_OF)) {
            if (!cJSON_IsArray(all)) return wrong(c, schema, "allOf", "must be a list"), -1;
            p->part[i].marks |= ALL_OF;
            cJSON_ArrayForEach(item, all) at = put_part(p, at, item, bits);
        }
    }
    for (int i = 0; i < p->n; i++)      /* true and a negated false, which are left, say nothing */
        if (!cJSON_IsBool(p->part[i].schema)) p->part[kept++] = p->part[i];
    p->n = kept;
    return c->bad ? -1 : 0;
}

/* ---- which types it admits ---- */

/* Whether a schema of the place, not negated, has one of the keywords, a list that ends with
 * NULL. */
static int has_any(const Place *p, const char *const *names) {
    for (int i = 0; i < p->n; i++)
        for (const char *const *n = names; *n; n++)
            if (json_field(p->part[i].schema, *n) && !(p->part[i].marks & NEGATED)) return 1;
    return 0;
}

/* A schema that names no type, but has keywords of one type, admits all other types; schema.h
 * decides that only the one type is written. */
int types_at(const Place *p) {
    int mask = T_ALL, named = 0;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *v = constants_of(schema);
        const cJSON *type = json_field(schema, "type");
        int of_values = v ? 0 : T_ALL;  /* the types of enum and const */
        if (p->part[i].marks & NEGATED) continue;
        for (; v; v = next_constant(schema, v)) of_values |= type_of_value(v);
        named |= type || of_values != T_ALL;
        mask &= of_values & (type ? mask_of(type) : T_ALL);
    }
    if (named) return mask;
    if (has_any(p, keywords_of(T_OBJECT))) return T_OBJECT;
    if (has_any(p, keywords_of(T_ARRAY))) return T_ARRAY;
    if (has_any(p, keywords_of(T_STRING))) return T_STRING;
    return has_any(p, keywords_of(T_INTEGER | T_FRACTION)) ? T_FRACTION | T_INTEGER : mask;
}

/* ---- which names it admits ---- */

/* Whether unevaluatedProperties: false of the schema `closed` allows names that no `properties`
 * declare, because patternProperties or additionalProperties evaluate them. */
static int is_half_open(const Compiler *c, const Place *p, const cJSON *closed) {
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        const cJSON *additional = json_field(schema, "additionalProperties");
        int names = cJSON_GetArraySize(json_field(schema, "patternProperties"));
        if (!(names || additional) || cJSON_IsFalse(additional)) continue;
        if (evaluates(c, closed, &p->part[i])) return 1;
    }
    return 0;
}

/* A place is open where a schema asks for other names, or where none declares any, and no schema
 * forbids other names. */
int place_is_open(const Compiler *c, const Place *p) {
    int asked = 0, declared = 0;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        const cJSON *additional = json_field(schema, "additionalProperties");
        int n_patterns = cJSON_GetArraySize(json_field(schema, "patternProperties"));
        if (p->part[i].marks & NEGATED) continue;
        if (cJSON_IsFalse(additional) && !n_patterns) return 0;
        if (cJSON_IsFalse(json_field(schema, "unevaluatedProperties")) &&
            !is_half_open(c, p, schema)) return 0;
        if (p->part[i].marks & TESTS) continue;
        asked |= (additional && !cJSON_IsFalse(additional)) || n_patterns;
        declared |= cJSON_GetArraySize(json_field(schema, "properties")) > 0;
    }
    return asked || !declared;
}

/* Adds a name to a list of n unless it is there.  Returns the new n. */
static int add_name(const char ***names, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (!strcmp((*names)[i], name)) return n;
    *names = xrealloc(*names, n + 1, sizeof **names);
    (*names)[n] = name;
    return n + 1;
}

int names_at(const Place *p, const char ***names) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    const cJSON *item, *k;
    int n = 0;
    *names = NULL;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        if (p->part[i].marks & (NEGATED | ASIDE)) continue;
        cJSON_ArrayForEach(item, json_field(schema, "properties"))
            n = add_name(names, n, item->string);
        cJSON_ArrayForEach(item, json_field(schema, "required"))
            if (cJSON_IsString(item)) n = add_name(names, n, item->valuestring);
        for (int j = 0; j < 2; j++)
            cJSON_ArrayForEach(k, json_field(schema, kinds[j])) {
                n = add_name(names, n, k->string);
                for (item = cJSON_IsArray(k) ? k->child : NULL; item; item = item->next)
                    if (cJSON_IsString(item)) n = add_name(names, n, item->valuestring);
            }
    }
    return n;
}

static int is_listed(const cJSON *list, const char *name) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
        if (cJSON_IsString(item) && !strcmp(item->valuestring, name)) return 1;
    return 0;
}

/* Whether a schema mentions the name: it declares it, requires it, or has it in
 * dependentRequired. */
static int mentions(const cJSON *schema, const char *name) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    const cJSON *k;
    if (cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), name)) return 1;
    if (is_listed(json_field(schema, "required"), name)) return 1;
    for (int i = 0; i < 2; i++)
        cJSON_ArrayForEach(k, json_field(schema, kinds[i]))
            if (!strcmp(k->string, name) || is_listed(k, name)) return 1;
    return 0;
}

int may_have(const Compiler *c, const Place *p, const char *name) {
    int found = place_is_open(c, p);
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        const cJSON *own = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), name);
        int is_closed = cJSON_IsFalse(json_field(schema, "additionalProperties"));
        if (p->part[i].marks & NEGATED) continue;
        if (cJSON_IsFalse(own)) return 0;
        if (is_closed && !own && !json_field(schema, "patternProperties")) return 0;
        found |= !(p->part[i].marks & ASIDE) && mentions(schema, name);
    }
    return found;
}
