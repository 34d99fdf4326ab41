/* schema.c - what the keywords of a JSON schema mean, as a program of states.  See schema.h and states.h.
 *
 * At each place of a value several schemas may hold at once: one and those that its allOf and $ref name, one of each
 * anyOf, and what stands under the same name in all of them.  So what is compiled is a *place*: a list of schemas,
 * some of them negated, each with a note of the keywords that have been taken care of.  First the place is spread
 * (allOf, $ref), then split into alternatives (anyOf, oneOf, if, not, nullable), until every schema in it says
 * something about the value itself; then the types that all of them admit are written.  Places that are alike are
 * compiled once, which also makes recursion end. */
#include "schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "numbers.h"
#include "states.h"

#define MAX_DEPTH 200                   /* of places inside of places */
#define MAX_STEPS 100000                /* schemas that are looked at for a $ref that leads to itself */
#define MAX_PROPERTIES 4000             /* of an object: as many calls stand one in the other */
#define MAX_PATTERNS 4                  /* patternProperties at a place: each doubles the kinds of names */
#define MAX_UNIQUE 16                   /* values of uniqueItems */
#define MAX_FLAGS 10                    /* names in dependentRequired */
#define MAX_TABLE 4000000               /* states of a set of strings times its lengths */

/* Keywords of a schema that have been taken care of, and whether it is negated. */
enum { REF = 1, ALL_OF = 2, ANY_OF = 4, ONE_OF = 8, IF = 16, NOT = 32, NULLABLE = 64, NEGATED = 128, LEAF = 256 };

typedef struct {
    const cJSON *schema;
    int done;
} Part;

typedef struct {
    Part *part;
    int n;
} Place;

typedef struct {
    char *key;
    int routine;
} Known;

typedef struct {
    Schema *s;
    const cJSON *root;
    cJSON *made;                        /* schemas that this file makes, a list */
    Place *place;                       /* [n_places] those that have a routine, */
    int *routine;                       /* [n_places] and which */
    int n_places, depth, bad;
    Known *known;                       /* routines by what they write: strings with the same bounds are one */
    int n_known;
    int space;                          /* the routine of white space */
    Buf prefix;                         /* in front of errors: whose schema it is */
    Error *err;
} Compiler;

/* ---- errors ---- */

/* Adds the JSON pointer of a node to *path, if it is in the tree. */
static int find_node(const cJSON *tree, const cJSON *node, Buf *path) {
    const cJSON *child;
    int i = 0;
    if (tree == node) return 1;
    cJSON_ArrayForEach(child, tree) {
        size_t was = path->len;
        buf_puts(path, "/");
        for (const char *c = child->string; c && *c; c++) {
            if (*c == '~' || *c == '/') buf_puts(path, *c == '~' ? "~0" : "~1");
            else buf_add(path, c, 1);
        }
        if (!child->string) buf_printf(path, "%d", i);
        if (find_node(child, node, path)) return 1;
        path->len = was;
        path->data[was] = 0;
        i++;
    }
    return 0;
}

/* Notes the error about a keyword of a schema (NULL: about the schema) and returns the place that leads nowhere. */
static int wrong(Compiler *c, const cJSON *schema, const char *keyword, const char *what) {
    Buf path = {0};
    buf_puts(&path, "#");
    find_node(c->root, schema, &path);
    if (!c->bad) fail(c->err, "%s%s%s%s: %s", c->prefix.len ? c->prefix.data : "", path.data, keyword ? "/" : "", keyword ? keyword : "", what);
    c->bad = 1;
    buf_free(&path);
    return states_fail(c->s);
}

/* ---- keywords ---- */

static int is_in(const char *word, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(word, *list)) return 1;
    return 0;
}

/* What says something to people, or to other programs, and nothing about the value. */
static int is_note(const char *keyword) {
    static const char *const notes[] = {
        "title", "description", "default", "example", "examples", "$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor",
        "$vocabulary", "deprecated", "readOnly", "writeOnly", "discriminator", "contentMediaType", "contentEncoding", "contentSchema",
        "externalDocs", "xml", "strict", "components", "markdownDescription", "enumDescriptions", "markdownEnumDescriptions",
        "defaultSnippets", "errorMessage", "deprecationMessage", NULL,
    };
    return !strncmp(keyword, "x-", 2) || is_in(keyword, notes);
}

static const char *const of_objects[] = {
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties", "maxProperties",
    "dependentRequired", "dependencies", "unevaluatedProperties", NULL,
};
static const char *const of_arrays[] = {
    "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains",
    "unevaluatedItems", NULL,
};
static const char *const of_strings[] = {"pattern", "format", "minLength", "maxLength", NULL};
static const char *const of_numbers[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", NULL};
static const char *const of_any[] = {"type", "nullable", "enum", "const", "anyOf", "allOf", "oneOf", "not", "if", "then", "else", "$ref", NULL};

#define BAD_TYPE "must name string, number, integer, boolean, null, array or object"

static int mask_of(const cJSON *type);

/* Every keyword must be one that is acted upon. */
static int check_keywords(Compiler *c, const cJSON *schema) {
    const cJSON *k;
    cJSON_ArrayForEach(k, schema) {
        const char *name = k->string;
        int is_empty = cJSON_IsArray(k) && !k->child;   /* which nothing satisfies; a negation leaves it so */
        if (!strcmp(name, "type") && !mask_of(k) && !is_empty) return wrong(c, schema, name, BAD_TYPE), -1;
        if (is_note(name) || is_in(name, of_any) || is_in(name, of_objects) || is_in(name, of_arrays) || is_in(name, of_strings) ||
            is_in(name, of_numbers)) continue;
        wrong(c, schema, name, "not supported");
        return -1;
    }
    return 0;
}

/* A keyword's whole number >= 0, or `otherwise` where it is missing. */
static int count_of(Compiler *c, const cJSON *schema, const char *name, int otherwise) {
    const cJSON *v = json_field(schema, name);
    if (!v) return otherwise;
    if (cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble <= 1e9 && v->valuedouble == (int)v->valuedouble)
        return (int)v->valuedouble;
    wrong(c, schema, name, "must be a whole number from 0");
    return otherwise;
}

/* ---- types ---- */

enum { T_STRING = 1, T_FRACTION = 2 /* a number that is not whole */, T_INTEGER = 4, T_BOOLEAN = 8, T_NULL = 16, T_ARRAY = 32, T_OBJECT = 64,
       T_ALL = 127 };
static const struct { const char *name; int mask; } types[] = {
    {"string", T_STRING}, {"number", T_FRACTION | T_INTEGER}, {"integer", T_INTEGER}, {"boolean", T_BOOLEAN}, {"null", T_NULL},
    {"array", T_ARRAY}, {"object", T_OBJECT}, {" fraction", T_FRACTION},       /* the last: what a negated integer leaves */
};

static int mask_of_name(const cJSON *name) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (cJSON_IsString(name) && !strcmp(name->valuestring, types[i].name)) return types[i].mask;
    return 0;
}

/* The types that a `type` names, 0: it is no such keyword. */
static int mask_of(const cJSON *type) {
    const cJSON *t;
    int mask = 0;
    if (!cJSON_IsArray(type)) return mask_of_name(type);
    cJSON_ArrayForEach(t, type) {
        if (!mask_of_name(t)) return 0;
        mask |= mask_of_name(t);
    }
    return mask;
}

/* A number with all of its digits: 0, or -1 when it has too many. */
static int decimal_of(const cJSON *v, Decimal *out) {
    char *text = json_text(v);
    int bad = decimal_read(text, out);
    free(text);
    return bad;
}

static int is_whole_number(const cJSON *v) {
    Decimal d;
    return cJSON_IsNumber(v) && !decimal_of(v, &d) && decimal_is_whole(&d);
}

static int type_of_value(const cJSON *v) {
    if (cJSON_IsString(v)) return T_STRING;
    if (cJSON_IsNumber(v)) return is_whole_number(v) ? T_INTEGER : T_FRACTION;
    if (cJSON_IsBool(v)) return T_BOOLEAN;
    if (cJSON_IsArray(v)) return T_ARRAY;
    return cJSON_IsObject(v) ? T_OBJECT : T_NULL;
}

/* Whether two values are the same, numbers by their worth. */
static int same_value(const cJSON *a, const cJSON *b) {
    if (cJSON_IsNumber(a) && cJSON_IsNumber(b)) {
        Decimal x, y;
        int bad = decimal_of(a, &x) | decimal_of(b, &y);
        return bad ? a->valuestring && b->valuestring && !strcmp(a->valuestring, b->valuestring) : !decimal_compare(&x, &y);
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

/* ---- where $ref leads ---- */

/* The schema with that $anchor (or an $id of `#name`) in the tree. */
static const cJSON *find_anchor(const cJSON *tree, const char *name) {
    static const char *const fields[] = {"$anchor", "$id", "id"};
    const cJSON *child, *found;
    for (int i = 0; i < 3 && cJSON_IsObject(tree); i++) {
        const char *is = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(tree, fields[i]));
        if (is && !strcmp(i && *is == '#' ? is + 1 : i ? "" : is, name)) return tree;
    }
    cJSON_ArrayForEach(child, tree)
        if ((found = find_anchor(child, name))) return found;
    return NULL;
}

static const cJSON *resolve(const Compiler *c, const char *ref) {
    const char *id = cJSON_GetStringValue(json_field(c->root, "$id")), *hash = strchr(ref, '#');
    if (!id) id = cJSON_GetStringValue(json_field(c->root, "id"));
    if (id && *ref != '#') {            /* by the document's own name */
        size_t n = strcspn(id, "#");
        if (strncmp(ref, id, n) || (ref[n] && ref[n] != '#')) return NULL;
        ref = hash ? hash : "#";
    }
    if (*ref == '#' && ref[1] && ref[1] != '/') return find_anchor(c->root, ref + 1);
    return json_pointer(c->root, ref);
}

/* Whether `from` asks the same value to satisfy `to`, by $ref, allOf and their like.  *left: so many schemas more are
 * looked at. */
static int leads_to(const Compiler *c, const cJSON *from, const cJSON *to, int depth, int *left) {
    static const char *const lists[] = {"allOf", "anyOf", "oneOf"}, *const ones[] = {"not", "if", "then", "else"};
    const char *ref = cJSON_GetStringValue(json_field(from, "$ref"));
    const cJSON *item;
    if (from == to) return 1;
    if (depth > MAX_DEPTH || --*left < 0 || !cJSON_IsObject(from)) return 0;
    if (ref && leads_to(c, resolve(c, ref), to, depth + 1, left)) return 1;
    for (int i = 0; i < 3; i++)
        cJSON_ArrayForEach(item, json_field(from, lists[i]))
            if (leads_to(c, item, to, depth + 1, left)) return 1;
    for (int i = 0; i < 4; i++)
        if (leads_to(c, json_field(from, ones[i]), to, depth + 1, left)) return 1;
    return 0;
}

/* ---- places ---- */

static void add_part(Place *p, const cJSON *schema, int done) {
    for (int i = 0; i < p->n; i++)
        if (p->part[i].schema == schema && (p->part[i].done & NEGATED) == (done & NEGATED)) return;
    p->part = xrealloc(p->part, p->n + 1, sizeof *p->part);
    p->part[p->n++] = (Part){schema, done};
}

static Place copy_place(const Place *p) {
    Place copy = {xcalloc(p->n + 1, sizeof *copy.part), p->n};
    if (p->n) memcpy(copy.part, p->part, (size_t)p->n * sizeof *copy.part);
    return copy;
}

static int routine_for(Compiler *c, Place p);

/* A schema that this file makes, which lives until everything is compiled. */
static cJSON *make_schema(Compiler *c) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddItemToArray(c->made, o);
    return o;
}

/* A value under a name: {name: value}, or with outer {outer: {name: value}}.  The value is borrowed. */
static cJSON *make_with(Compiler *c, const char *name, const cJSON *value) {
    cJSON *o = make_schema(c);
    cJSON_AddItemReferenceToObject(o, name, (cJSON *)value);
    return o;
}

/* The schemas that hold in one alternative, beside those of the place. */
static int alternative(Compiler *c, const Place *p, const Part *more, int n) {
    Place q = copy_place(p);
    for (int i = 0; i < n; i++) add_part(&q, more[i].schema, more[i].done);
    return put_call(c->s, routine_for(c, q), states_ret(c->s));
}

/* Takes what allOf and $ref name into the place.  Returns 0; 1 when nothing satisfies it; -1 with the error. */
static int spread(Compiler *c, Place *p) {
    const cJSON *item;
    int kept = 0;
    for (int i = 0; i < p->n && !c->bad; i++) {
        const cJSON *schema = p->part[i].schema, *ref = json_field(schema, "$ref"), *all = json_field(schema, "allOf");
        if (cJSON_IsBool(schema)) {
            if (cJSON_IsTrue(schema) == !!(p->part[i].done & NEGATED)) return 1;
            continue;
        }
        if (!cJSON_IsObject(schema)) return wrong(c, schema, NULL, "must be an object, true or false"), -1;
        if (check_keywords(c, schema)) return -1;
        if (p->part[i].done & NEGATED) continue;
        if (cJSON_IsTrue(json_field(schema, "nullable")) && !(p->part[i].done & NULLABLE)) continue;    /* null beside all of it */
        if (ref && !(p->part[i].done & REF)) {
            const cJSON *there = cJSON_IsString(ref) ? resolve(c, ref->valuestring) : NULL;
            if (!there) return wrong(c, schema, "$ref", "must lead to a place in this document"), -1;
            int left = MAX_STEPS;
            if (leads_to(c, there, schema, 0, &left)) return wrong(c, schema, "$ref", "leads to itself"), -1;
            p->part[i].done |= REF;
            add_part(p, there, 0);
        }
        if (all && !(p->part[i].done & ALL_OF)) {
            if (!cJSON_IsArray(all)) return wrong(c, schema, "allOf", "must be a list"), -1;
            p->part[i].done |= ALL_OF;
            cJSON_ArrayForEach(item, all) add_part(p, item, 0);
        }
    }
    for (int i = 0; i < p->n; i++)      /* true says nothing, and a schema of notes neither */
        if (!cJSON_IsBool(p->part[i].schema)) p->part[kept++] = p->part[i];
    p->n = kept;
    return c->bad ? -1 : 0;
}

/* ---- alternatives ---- */

/* Can nothing satisfy both?  By their types, their constants, what one requires and the other has not, or the same of a
 * property that both require. */
static int exclusive(const Compiler *c, const cJSON *a, const cJSON *b, int depth);

static const cJSON *behind_refs(const Compiler *c, const cJSON *schema) {
    const char *ref;
    for (int i = 0; i < 100 && (ref = cJSON_GetStringValue(json_field(schema, "$ref"))); i++) schema = resolve(c, ref);
    return schema;
}

/* Whether a requires a property that b does not have. */
static int lacks(const cJSON *a, const cJSON *b) {
    const cJSON *name;
    if (!cJSON_IsFalse(json_field(b, "additionalProperties")) || json_field(b, "patternProperties")) return 0;
    cJSON_ArrayForEach(name, json_field(a, "required"))
        if (cJSON_IsString(name) && !cJSON_GetObjectItemCaseSensitive(json_field(b, "properties"), name->valuestring)) return 1;
    return 0;
}

static int exclusive(const Compiler *c, const cJSON *a, const cJSON *b, int depth) {
    a = behind_refs(c, a);
    b = behind_refs(c, b);
    const cJSON *ta = json_field(a, "type"), *tb = json_field(b, "type"), *x, *y;
    int nullable = cJSON_IsTrue(json_field(a, "nullable")) && cJSON_IsTrue(json_field(b, "nullable"));
    if (ta && tb && !(mask_of(ta) & mask_of(tb)) && !nullable) return 1;
    const cJSON *ea = json_field(a, "enum"), *eb = json_field(b, "enum"), *ca = json_field(a, "const"), *cb = json_field(b, "const");
    if ((ea || ca) && (eb || cb)) {
        for (x = ea ? ea->child : ca; x; x = ea ? x->next : NULL)
            for (y = eb ? eb->child : cb; y; y = eb ? y->next : NULL)
                if (same_value(x, y)) return 0;
        return 1;
    }
    int objects = ta && tb && mask_of(ta) == T_OBJECT && mask_of(tb) == T_OBJECT && !nullable;
    if (!objects) return 0;
    if (lacks(a, b) || lacks(b, a)) return 1;
    cJSON_ArrayForEach(x, json_field(a, "required")) cJSON_ArrayForEach(y, json_field(b, "required")) {
        if (!cJSON_IsString(x) || !cJSON_IsString(y) || strcmp(x->valuestring, y->valuestring) || depth > 3) continue;
        const cJSON *pa = json_field(json_field(a, "properties"), x->valuestring);
        const cJSON *pb = json_field(json_field(b, "properties"), x->valuestring);
        if (pa && pb && exclusive(c, pa, pb, depth + 1)) return 1;
    }
    return 0;
}

static int all_exclusive(const Compiler *c, const cJSON *list) {
    for (const cJSON *a = list->child; a; a = a->next)
        for (const cJSON *b = a->next; b; b = b->next)
            if (!exclusive(c, a, b, 0)) return 0;
    return 1;
}

/* One of the schemas of a list; exactly: and none of the others. */
static int one_of(Compiler *c, const Place *p, const cJSON *schema, const char *keyword, int exactly) {
    const cJSON *list = json_field(schema, keyword), *item, *other;
    int pc = states_fail(c->s), n = cJSON_GetArraySize(list);
    if (!cJSON_IsArray(list) || !n) return wrong(c, schema, keyword, "must be a list that is not empty");
    if (exactly && all_exclusive(c, list)) exactly = 0;
    Part *more = xcalloc(n, sizeof *more);
    cJSON_ArrayForEach(item, list) {
        int k = 1;
        more[0] = (Part){item, 0};
        cJSON_ArrayForEach(other, list)
            if (exactly && other != item) more[k++] = (Part){other, NEGATED};
        pc = put_either(c->s, pc, alternative(c, p, more, k));
    }
    free(more);
    return pc;
}

/* What a negated schema leaves: for each of its keywords an alternative in which that one does not hold. */
static int negation(Compiler *c, const Place *p, const cJSON *schema) {
    const cJSON *k, *item;
    int pc = states_fail(c->s);
    cJSON_ArrayForEach(k, schema) {
        const char *name = k->string;
        cJSON *o = NULL;
        if (is_note(name)) continue;
        if (!strcmp(name, "type")) {
            int left = T_ALL & ~mask_of(k);
            cJSON *list = cJSON_AddArrayToObject(o = make_schema(c), "type");
            for (size_t i = 0; i < sizeof types / sizeof *types; i++)
                if ((types[i].mask & left) == types[i].mask) cJSON_AddItemToArray(list, cJSON_CreateString(types[i].name));
            if (!left) continue;
            pc = put_either(c->s, pc, alternative(c, p, &(Part){o, 0}, 1));
        } else if (!strcmp(name, "const") || !strcmp(name, "enum") || !strcmp(name, "pattern") || !strcmp(name, "format")) {
            int is_string = !strcmp(name, "pattern") || !strcmp(name, "format");
            if (is_string) cJSON_AddStringToObject(o = make_schema(c), "type", "string");
            Part parts[] = {{make_with(c, name, k), NEGATED | LEAF}, {o, 0}};
            pc = put_either(c->s, pc, alternative(c, p, parts, 1 + is_string));
        } else if (!strcmp(name, "required")) {
            cJSON_ArrayForEach(item, k) {
                if (!cJSON_IsString(item)) continue;
                cJSON_AddStringToObject(o = make_schema(c), "type", "object");
                cJSON_AddFalseToObject(cJSON_AddObjectToObject(o, "properties"), item->valuestring);
                pc = put_either(c->s, pc, alternative(c, p, &(Part){o, 0}, 1));
            }
        } else if (!strcmp(name, "properties")) {
            cJSON_ArrayForEach(item, k) {
                cJSON_AddStringToObject(o = make_schema(c), "type", "object");
                cJSON *inner = cJSON_AddObjectToObject(cJSON_AddObjectToObject(o, "properties"), item->string);
                cJSON_AddItemReferenceToObject(inner, "not", (cJSON *)item);
                cJSON_AddItemToArray(cJSON_AddArrayToObject(o, "required"), cJSON_CreateString(item->string));
                pc = put_either(c->s, pc, alternative(c, p, &(Part){o, 0}, 1));
            }
        } else if (!strcmp(name, "minLength") || !strcmp(name, "maxLength")) {
            int is_min = name[1] == 'i', bound = count_of(c, schema, name, 0);
            if (is_min && !bound) continue;
            cJSON_AddStringToObject(o = make_schema(c), "type", "string");
            cJSON_AddNumberToObject(o, is_min ? "maxLength" : "minLength", is_min ? bound - 1 : bound + 1);
            pc = put_either(c->s, pc, alternative(c, p, &(Part){o, 0}, 1));
        } else if (is_in(name, of_numbers) && strcmp(name, "multipleOf") && cJSON_IsNumber(k)) {
            static const char *const opposite[][2] = {{"minimum", "exclusiveMaximum"}, {"maximum", "exclusiveMinimum"},
                                                      {"exclusiveMinimum", "maximum"}, {"exclusiveMaximum", "minimum"}};
            for (int i = 0; i < 4; i++)
                if (!strcmp(name, opposite[i][0])) o = make_with(c, opposite[i][1], k);
            cJSON_AddStringToObject(o, "type", "number");
            pc = put_either(c->s, pc, alternative(c, p, &(Part){o, 0}, 1));
        } else if (!strcmp(name, "not")) pc = put_either(c->s, pc, alternative(c, p, &(Part){k, 0}, 1));
        else if (!strcmp(name, "$ref")) {
            const cJSON *there = cJSON_IsString(k) ? resolve(c, k->valuestring) : NULL;
            if (!there) return wrong(c, schema, "$ref", "must lead to a place in this document");
            pc = put_either(c->s, pc, alternative(c, p, &(Part){there, NEGATED}, 1));
        } else if (!strcmp(name, "allOf")) {
            cJSON_ArrayForEach(item, k) pc = put_either(c->s, pc, alternative(c, p, &(Part){item, NEGATED}, 1));
        } else if (!strcmp(name, "anyOf")) {
            int n = 0;
            Part *parts = xcalloc(cJSON_GetArraySize(k) + 1, sizeof *parts);
            cJSON_ArrayForEach(item, k) parts[n++] = (Part){item, NEGATED};
            pc = put_either(c->s, pc, alternative(c, p, parts, n));
            free(parts);
        } else return wrong(c, schema, name, "not supported inside of not, if or a oneOf whose alternatives may hold at once");
    }
    return pc;
}

/* The first schema of the place that stands for alternatives, split; -1: there is none. */
static int split(Compiler *c, Place *p) {
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        int *done = &p->part[i].done;
        if (*done & LEAF) continue;
        if (*done & NEGATED) {
            p->part[i] = p->part[--p->n];
            return negation(c, p, schema);
        }
        if (cJSON_IsTrue(json_field(schema, "nullable")) && !(*done & NULLABLE)) {
            cJSON *null = make_schema(c);
            Place without = copy_place(p);
            cJSON_AddStringToObject(null, "type", "null");
            without.part[i] = (Part){null, 0};
            *done |= NULLABLE;
            int pc = alternative(c, p, NULL, 0);
            return put_either(c->s, pc, put_call(c->s, routine_for(c, without), states_ret(c->s)));
        }
        if (json_field(schema, "anyOf") && !(*done & ANY_OF)) {
            *done |= ANY_OF;
            return one_of(c, p, schema, "anyOf", 0);
        }
        if (json_field(schema, "oneOf") && !(*done & ONE_OF)) {
            *done |= ONE_OF;
            return one_of(c, p, schema, "oneOf", 1);
        }
        if (json_field(schema, "not") && !(*done & NOT)) {
            *done |= NOT;
            return alternative(c, p, &(Part){json_field(schema, "not"), NEGATED}, 1);
        }
        if (json_field(schema, "if") && !(*done & IF)) {
            const cJSON *condition = json_field(schema, "if"), *then = json_field(schema, "then"), *otherwise = json_field(schema, "else");
            *done |= IF;
            if (!then && !otherwise) continue;
            Part yes[] = {{condition, 0}, {then, 0}}, no[] = {{condition, NEGATED}, {otherwise, 0}};
            int pc = alternative(c, p, yes, then ? 2 : 1);
            return put_either(c->s, pc, alternative(c, p, no, otherwise ? 2 : 1));
        }
    }
    return -1;
}

/* ---- strings ---- */

#define DATE "(?!0000)(?:\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))" \
             "|(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
#define CLOCK "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d+)?"
#define OFFSET "(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"
#define LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define BYTE "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define IPV4 "(?:" BYTE "\\.){3}" BYTE
#define H16 "[0-9A-Fa-f]{1,4}"
#define LS32 "(?:" H16 ":" H16 "|" IPV4 ")"
#define PCHAR "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
#define AUTHORITY "(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?(?:\\[[0-9A-Fa-f:.]+\\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::\\d*)?"
#define TAIL "(?:\\?(?:" PCHAR "|[/?])*)?(?:#(?:" PCHAR "|[/?])*)?"

/* A regular expression, groups one in another twice. */
#define REGEX_ITEM "(?:[A-Za-z0-9 _,:;<=>@!\"#%&'/~`-]|\\\\[dDwWsSnrtfv.*+?()\\[\\]{}|^$\\\\/-]|\\[\\^?[A-Za-z0-9_ .,:;@-]+\\]|\\.)"
#define REGEX_COUNT "(?:[*+?]|\\{\\d{1,3}(?:,\\d{0,3})?\\})?"
#define REGEX_GROUP(inner) "\\((?:\\?:)?(?:(?:" REGEX_ITEM "|" inner ")" REGEX_COUNT "|[|])*\\)"

/* Formats as regular expressions: what RFC 3339, 5321, 1123, 2673, 4291, 3986, 6901 and ISO 8601's duration (as RFC 3339 has
 * it) allow.  beside: what holds instead where a pattern stands beside the format and excludes all of it, as zod writes a
 * time without an offset.  most: characters at most, 0: any number. */
static const struct { const char *name, *pattern, *beside; int most; } formats[] = {
    {"date", "^" DATE "$", NULL, 0},
    {"time", "^" CLOCK OFFSET "$", "", 0},
    {"date-time", "^" DATE "T" CLOCK OFFSET "$", "", 0},
    {"duration", "^P(?=[\\dT])(?:\\d+W|(?:\\d+D|\\d+M(?:\\d+D)?|\\d+Y(?:\\d+M(?:\\d+D)?)?)?(?:T(?:\\d+S|\\d+M(?:\\d+S)?|\\d+H(?:\\d+M(?:\\d+S)?)?))?)$", "", 0},
    {"uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$", NULL, 0},
    {"email", "^(?=.{1,64}@)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@" LABEL "(?:\\." LABEL ")*$", "", 0},
    {"hostname", "^" LABEL "(?:\\." LABEL ")*$", "", 253},
    {"ipv4", "^" IPV4 "$", NULL, 0},
    {"ipv6", "^(?:(?:" H16 ":){6}" LS32 "|::(?:" H16 ":){5}" LS32 "|(?:" H16 ")?::(?:" H16 ":){4}" LS32 "|(?:(?:" H16 ":){0,1}" H16 ")?::(?:" H16 ":){3}" LS32
             "|(?:(?:" H16 ":){0,2}" H16 ")?::(?:" H16 ":){2}" LS32 "|(?:(?:" H16 ":){0,3}" H16 ")?::" H16 ":" LS32 "|(?:(?:" H16 ":){0,4}" H16 ")?::" LS32
             "|(?:(?:" H16 ":){0,5}" H16 ")?::" H16 "|(?:(?:" H16 ":){0,6}" H16 ")?::)$", "", 0},
    {"uri", "^[A-Za-z][A-Za-z0-9+.-]*:(?://" AUTHORITY "(?:/" PCHAR "*)*|/(?:" PCHAR "+(?:/" PCHAR "*)*)?|" PCHAR "+(?:/" PCHAR "*)*)?" TAIL "$", "", 0},
    {"uri-reference", "^(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://" AUTHORITY "(?:/" PCHAR "*)*|/(?:" PCHAR "+(?:/" PCHAR "*)*)?"
                      "|(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})+(?:/" PCHAR "*)*)?" TAIL "$", "", 0},
    {"json-pointer", "^(?:/(?:[^~/]|~[01])*)*$", NULL, 0},
    {"regex", "^(?:(?:" REGEX_ITEM "|" REGEX_GROUP(REGEX_GROUP(REGEX_ITEM)) ")" REGEX_COUNT "|[|^$])*$", NULL, 0},
};

/* Formats that say what a value is for, and nothing about how it is written. */
static int is_annotation(const char *format) {
    static const char *const names[] = {
        "binary", "byte", "password", "path", "file-path", "directory-path", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
        "uint64", "float", "double", "decimal", "base64", "base64url", "ipvanyaddress", "ipvanynetwork", "ipvanyinterface", "ipv4network",
        "ipv6network", "ipv4interface", "ipv6interface", "name-email", "time-delta", "unix-time", "date-time-local", "json-string", "html", "markdown", "textarea", "color", "multi-host-uri", NULL,
    };
    return is_in(format, names);
}

/* Adds what a regular expression asks for to *set (NULL: all strings); `not` its opposite.  0, or -1 with the error. */
static int cut_pattern(Compiler *c, const cJSON *schema, const char *keyword, const char *source, int not, Strings **set) {
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
        if (was && !(*set)->n) {        /* the pattern has nothing of the format: it alone holds */
            strings_free(*set);
            *set = was;
        } else strings_free(was);
        return 0;
    }
    if (is_annotation(format) || has_pattern) return 0;
    wrong(c, schema, "format", "this format is not supported");
    return -1;
}

/* How many characters a format has at most. */
static int most_of(const char *format) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(format, formats[i].name) && formats[i].most) return formats[i].most;
    return NO_LIMIT;
}

/* The strings of the place as a set, NULL: all; their lengths in *min, *max.  0, or -1 with the error. */
static int strings_at(Compiler *c, const Place *p, Strings **set, int *min, int *max, Buf *key) {
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
            if (keyword && set) {
                int bad = round ? cut_format(c, schema, keyword->valuestring, not, has_pattern, set)
                                : cut_pattern(c, schema, "pattern", keyword->valuestring, not, set);
                if (bad) return -1;
            }
            if (round || not) continue;
            int lo = count_of(c, schema, "minLength", 0), hi = count_of(c, schema, "maxLength", NO_LIMIT);
            if (lo > *min) *min = lo;
            if (hi < *max) *max = hi;
        }
    buf_printf(key, "%d %d", *min, *max);
    return c->bad ? -1 : 0;
}

/* Words that no negated const or enum of the place allows, as a set of strings taken out of *set. */
static int cut_words(Compiler *c, const Place *p, Strings **set, Buf *key) {
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *list = json_field(schema, "enum"), *one = json_field(schema, "const"), *v;
        if (!(p->part[i].done & NEGATED)) continue;
        for (v = list ? list->child : one; v; v = list ? v->next : NULL) {
            if (!cJSON_IsString(v)) continue;
            buf_printf(key, "\n-%s", v->valuestring);
            if (!set) continue;
            Strings *words = strings_of_words((const char *const[]){v->valuestring}, 1), *others = strings_not(words), *was = *set;
            Error why;
            strings_free(words);
            *set = was ? strings_both(was, others, &why) : others;
            if (was) strings_free(others), strings_free(was);
            if (!*set) return wrong(c, schema, "not", why.text), -1;
        }
    }
    return 0;
}

static TextStyle text_style(const Compiler *c) { return states_in_calls(c->s) ? CALL_TEXT : JSON_TEXT; }

static int string(Compiler *c, const Place *p) {
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
            return put_call(s, c->known[i].routine, ret);
        }
    Strings *set = NULL;
    Buf again = {0};
    int bad = strings_at(c, p, &set, &min, &max, &again) || cut_words(c, p, &set, &again), pc = states_fail(s);
    int64_t columns = max == NO_LIMIT ? (int64_t)min + 1 : (int64_t)max + 1;
    if (!bad && set && columns * set->n > MAX_TABLE) bad = (wrong(c, p->part[0].schema, "maxLength", "too large beside a pattern or a format"), 1);
    if (!bad && set && min <= max) pc = put_quote(s, put_strings(s, set, min, max, text_style(c), ret));
    else if (!bad && !set) pc = put_quote(s, put_text(s, min, max, text_style(c), ret));
    if (bad || !set || min > max) strings_free(set);
    buf_free(&again);
    int routine = new_routine(s);
    set_entry(s, routine, pc);
    c->known = xrealloc(c->known, c->n_known + 1, sizeof *c->known);
    c->known[c->n_known++] = (Known){key.data, routine};
    return pc == states_fail(s) ? pc : put_call(s, routine, ret);
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

/* Takes the numbers of a schema into the range.  0, or -1 with the error. */
static int add_range(Compiler *c, const cJSON *schema, Range *r) {
    static const char *const names[][2] = {{"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}};
    Decimal d;
    for (int i = 0; i < 2; i++) {
        int old_style = cJSON_IsTrue(json_field(schema, names[i][1]));          /* draft 4: the bound itself is out */
        if (number_of(c, schema, names[i][0], &d) > 0) bound(r, &d, old_style, i ? -1 : 1);
        if (number_of(c, schema, names[i][1], &d) > 0) bound(r, &d, 1, i ? -1 : 1);
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

/* Numbers without those that a negated const or enum of the place names: the range is cut at each of them. */
static int number(Compiler *c, const Place *p, Range r, int from) {
    const char *why = NULL;
    for (int i = from; i < p->n && !c->bad; i++) {
        const cJSON *schema = p->part[i].schema, *list = json_field(schema, "enum"), *one = json_field(schema, "const"), *v;
        if (!(p->part[i].done & NEGATED)) continue;
        for (v = list ? list->child : one; v; v = list ? v->next : NULL) {
            if (!cJSON_IsNumber(v) || !(is_whole_number(v) || !r.whole)) continue;
            if (list && list->child->next) return wrong(c, schema, "not", "more than one number is not supported");
            Decimal d;
            if (!r.whole || decimal_of(v, &d)) return wrong(c, schema, "not", "a number is supported beside type integer only");
            Range below = r, above = r;
            bound(&below, &d, 1, -1);
            bound(&above, &d, 1, 1);
            int pc = number(c, p, below, i + 1);
            return put_either(c->s, pc, number(c, p, above, i + 1));
        }
    }
    int pc = put_numbers(c->s, &r, states_ret(c->s), &why);
    return why ? wrong(c, p->n ? p->part[0].schema : NULL, NULL, why) : pc;
}

/* ---- constants ---- */

/* Does the value satisfy the schema? */
static int holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth);

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
    if (!r.has_lo && !r.has_hi && !r.has_step) return 1;
    if (decimal_of(v, &d)) return wrong(c, schema, "enum", "a number of more than 100 digits beside bounds"), 0;
    int lo = r.has_lo ? decimal_compare(&d, &r.lo) : 1, hi = r.has_hi ? decimal_compare(&d, &r.hi) : -1;
    return (lo > 0 || (lo == 0 && !r.lo_open)) && (hi < 0 || (hi == 0 && !r.hi_open)) && (!r.has_step || decimal_is_multiple(&d, &r.step) == 1);
}

static int name_matches(Compiler *c, const cJSON *patterns, const char *name) {
    Error why;
    Strings *set = strings_of_pattern(patterns->string, &why);
    if (!set) wrong(c, patterns, NULL, why.text);
    int yes = set && strings_hold(set, name, strlen(name));
    strings_free(set);
    return yes;
}

static int object_holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
    const cJSON *item, *k, *additional = json_field(schema, "additionalProperties");
    int n = cJSON_GetArraySize(v);
    if (n < count_of(c, schema, "minProperties", 0) || n > count_of(c, schema, "maxProperties", NO_LIMIT)) return 0;
    cJSON_ArrayForEach(item, json_field(schema, "required"))
        if (!cJSON_IsString(item) || !cJSON_GetObjectItemCaseSensitive(v, item->valuestring)) return 0;
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

static int holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth) {
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

static int place_holds(Compiler *c, const Place *p, const cJSON *v) {
    for (int i = 0; i < p->n; i++)
        if (holds(c, v, p->part[i].schema, 0) == !!(p->part[i].done & NEGATED)) return 0;
    return 1;
}

/* A name and its colon.  In a call nothing quotes it; keyword: where it stands. */
static void put_name(Compiler *c, const cJSON *schema, const char *keyword, const char *name, Buf *out) {
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

/* A member of an object: one that a schema declares, or one of a constant. */
typedef struct {
    const char *name;
    int at;                             /* its place in the schema */
    int required, routine;              /* of a declared one; -1: it must not be written */
    int flag;                           /* dependentRequired names it: its number there, -1 */
    const cJSON *value;                 /* of a constant's */
} Property;

static int compare_properties(const void *x, const void *y) {
    const Property *a = x, *b = y;
    int order = strcasecmp(a->name, b->name);
    return order ? order : a->at - b->at;
}

/* A call has its members in the order of jinja2's dictsort, as the declaration in the prompt does: the model has read
 * them in that order and writes them so.  JSON keeps the schema's order. */
static void put_in_order(const Compiler *c, Property *p, int n) {
    for (int i = 0; i < n; i++) p[i].at = i;
    if (states_in_calls(c->s) && n) qsort(p, (size_t)n, sizeof *p, compare_properties);
}

static void put_constant(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out);

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
static void put_constant(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out) {
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
static int constants(Compiler *c, const Place *p, const cJSON *schema) {
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

/* ---- objects ---- */

/* Names that no schema declares: of one kind, with the routine of their values. */
typedef struct {
    Strings *names;                     /* NULL: all */
    int routine;
} Others;

/* name `flag` must not be written without those of the mask `needs`. */
typedef struct {
    int flag, needs;
} Dependency;

typedef struct {
    Compiler *c;
    const Place *place;
    Property *p;
    int n, min, max;                    /* declared ones; properties to be written */
    int counted;                        /* up to so many are counted */
    Others *others;
    int n_others;
    Dependency *dependency;
    int n_dependencies, n_flags;
    int *key, *more;                    /* places that have been made, by property, count and flags; -1: not yet */
    int end;
} Object;

static int spaced(Compiler *c, int next) { return states_in_calls(c->s) ? next : put_call(c->s, c->space, next); }

static int memo_at(const Object *o, int i, int count, int flags) {
    return ((i * (o->counted + 1) + count) << o->n_flags) + flags;
}

/* Whether some name that has been written needs the property. */
static int is_needed(const Object *o, int i, int flags) {
    for (int k = 0; k < o->n_dependencies; k++) {
        const Dependency *d = &o->dependency[k];
        if (flags >> d->flag & 1 && o->p[i].flag >= 0 && d->needs >> o->p[i].flag & 1) return 1;
    }
    return 0;
}

static int may_skip(const Object *o, int i, int flags) { return !o->p[i].required && !is_needed(o, i, flags); }

/* Whether the property may be written now: what it needs has been written, or comes later. */
static int may_write(const Object *o, int i, int count, int flags) {
    if (o->p[i].routine < 0 || count >= o->max) return 0;
    for (int k = 0; k < o->n_dependencies; k++) {
        if (o->p[i].flag < 0 || o->dependency[k].flag != o->p[i].flag) continue;
        for (int j = 0; j < i; j++)
            if (o->p[j].flag >= 0 && o->dependency[k].needs >> o->p[j].flag & 1 && !(flags >> o->p[j].flag & 1)) return 0;
    }
    return 1;
}

static int may_end(const Object *o, int i, int count, int flags) {
    for (; i < o->n; i++)
        if (!may_skip(o, i, flags)) return 0;
    return count >= o->min;
}

static int more_from(Object *o, int i, int count, int flags);

static int one_more(const Object *o, int count) { return count < o->counted ? count + 1 : count; }

/* A name that is not declared, its colon and its value. */
static int other_member(Object *o, const Others *x, int next) {
    Schema *s = o->c->s;
    int colon = put_range(s, ':', ':', spaced(o->c, put_call(s, x->routine, next)));
    Error why;
    if (!states_in_calls(s)) {
        if (!x->names) return put_range(s, '"', '"', put_text(s, 0, NO_LIMIT, KEY_TEXT, colon));
        return put_range(s, '"', '"', put_strings(s, strings_both(x->names, x->names, &why), 0, NO_LIMIT, KEY_TEXT, colon));
    }
    Strings *word = strings_of_pattern("^[$./0-9@A-Z_a-z-]+$", &why), *names = x->names ? strings_both(x->names, word, &why) : word;
    int pc = names ? put_bare(s, names, colon) : states_fail(s);
    if (names != word) strings_free(names);
    strings_free(word);
    return pc;
}

/* In front of a name: that of property i or a later one. */
static int key_from(Object *o, int i, int count, int flags) {
    int *memo = &o->key[memo_at(o, i, count, flags)], pc = states_fail(o->c->s);
    if (*memo >= 0) return *memo;
    if (i == o->n) {
        int next = count < o->max && o->n_others ? more_from(o, i, one_more(o, count), flags) : pc;
        for (int k = 0; k < o->n_others && count < o->max; k++) pc = put_either(o->c->s, pc, other_member(o, &o->others[k], next));
        return *memo = pc;
    }
    const Property *p = &o->p[i];
    if (may_write(o, i, count, flags)) {
        int with = p->flag >= 0 ? flags | 1 << p->flag : flags;
        Buf name = {0};
        put_name(o->c, o->place->part[0].schema, "properties", p->name, &name);
        int value = spaced(o->c, put_call(o->c->s, p->routine, more_from(o, i + 1, one_more(o, count), with)));
        pc = put_literal(o->c->s, name.data, name.len, value);
        buf_free(&name);
    }
    if (may_skip(o, i, flags)) pc = put_either(o->c->s, pc, key_from(o, i + 1, count, flags));
    return *memo = pc;
}

/* Behind a value, where property i or a later one comes next. */
static int more_from(Object *o, int i, int count, int flags) {
    int *memo = &o->more[memo_at(o, i, count, flags)];
    Schema *s = o->c->s;
    if (*memo >= 0) return *memo;
    int end = may_end(o, i, count, flags) ? o->end : states_fail(s);
    if (i < o->n) return *memo = put_either(s, end, put_range(s, ',', ',', spaced(o->c, key_from(o, i, count, flags))));
    if (!o->n_others) return *memo = end;
    int loop = *memo = put_loop(s, end);            /* others come round and round */
    set_loop(s, loop, put_range(s, ',', ',', spaced(o->c, key_from(o, i, count, flags))));
    return loop;
}

/* What holds of a property in all schemas of the place: those under its name, under patterns that match it, and where there
 * are neither additionalProperties.  *allowed: 0 when one of them forbids it. */
static Place member_place(Compiler *c, const Place *p, const char *name, int *allowed) {
    Place member = {0};
    const cJSON *k;
    *allowed = 1;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *own = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), name);
        const cJSON *names = json_field(schema, "propertyNames"), *additional = json_field(schema, "additionalProperties");
        int found = own != NULL;
        if (p->part[i].done & NEGATED) continue;
        if (own) add_part(&member, own, 0);
        cJSON_ArrayForEach(k, json_field(schema, "patternProperties")) {
            if (!name_matches(c, k, name)) continue;
            add_part(&member, k, 0);
            found = 1;
        }
        if (!found && additional) add_part(&member, additional, 0);
        if (names) {
            cJSON *text = cJSON_CreateString(name);
            *allowed &= holds(c, text, names, 0);
            cJSON_Delete(text);
        }
    }
    for (int i = 0; i < member.n; i++) *allowed &= !cJSON_IsFalse(member.part[i].schema);
    return member;
}

static int find_property(const Object *o, const char *name) {
    for (int i = 0; i < o->n; i++)
        if (!strcmp(o->p[i].name, name)) return i;
    return -1;
}

static int add_property(Object *o, const char *name) {
    int i = find_property(o, name);
    if (i >= 0) return i;
    o->p = xrealloc(o->p, o->n + 1, sizeof *o->p);
    o->p[o->n] = (Property){.name = name, .flag = -1};
    return o->n++;
}

/* The names that the schemas of the place declare or require. */
static int read_properties(Object *o) {
    Compiler *c = o->c;
    const cJSON *item, *k;
    for (int i = 0; i < o->place->n; i++) {
        const cJSON *schema = o->place->part[i].schema, *properties = json_field(schema, "properties");
        if (properties && !cJSON_IsObject(properties)) return wrong(c, schema, "properties", "must be an object"), -1;
        if (o->place->part[i].done & NEGATED) continue;
        cJSON_ArrayForEach(item, properties) add_property(o, item->string);
    }
    for (int i = 0; i < o->place->n; i++) {
        const cJSON *schema = o->place->part[i].schema, *required = json_field(schema, "required");
        static const char *const kinds[] = {"dependentRequired", "dependencies"};
        if (o->place->part[i].done & NEGATED) continue;
        if (required && !cJSON_IsArray(required)) return wrong(c, schema, "required", "must be a list"), -1;
        cJSON_ArrayForEach(item, required) {
            if (!cJSON_IsString(item)) return wrong(c, schema, "required", "must be a list of names"), -1;
            int at = add_property(o, item->valuestring);
            o->p[at].required = 1;
        }
        for (int j = 0; j < 2; j++)
            cJSON_ArrayForEach(k, json_field(schema, kinds[j])) {
                if (!cJSON_IsArray(k)) return wrong(c, schema, kinds[j], "supported for lists of names only"), -1;
                add_property(o, k->string);
                cJSON_ArrayForEach(item, k)
                    if (cJSON_IsString(item)) add_property(o, item->valuestring);
            }
        int lo = count_of(c, schema, "minProperties", 0), hi = count_of(c, schema, "maxProperties", NO_LIMIT);
        if (lo > o->min) o->min = lo;
        if (hi < o->max) o->max = hi;
    }
    return c->bad ? -1 : 0;
}

static int flag_of(Object *o, const char *name) {
    Property *p = &o->p[find_property(o, name)];
    if (p->flag < 0) p->flag = o->n_flags++;
    return p->flag;
}

static int read_dependencies(Object *o) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    const cJSON *k, *item;
    for (int i = 0; i < o->place->n; i++)
        for (int j = 0; j < 2; j++)
            cJSON_ArrayForEach(k, json_field(o->place->part[i].schema, kinds[j])) {
                if (o->n_flags + cJSON_GetArraySize(k) >= MAX_FLAGS)
                    return wrong(o->c, o->place->part[i].schema, kinds[j], "more than 10 names are not supported"), -1;
                Dependency d = {flag_of(o, k->string), 0};
                cJSON_ArrayForEach(item, k)
                    if (cJSON_IsString(item)) d.needs |= 1 << flag_of(o, item->valuestring);
                o->dependency = xrealloc(o->dependency, o->n_dependencies + 1, sizeof d);
                o->dependency[o->n_dependencies++] = d;
            }
    return 0;
}

/* Whether undeclared names may be written: where a schema asks for them, or none declares any, and none forbids them. */
static int is_open(const Object *o) {
    int asked = 0, declared = 0;
    for (int i = 0; i < o->place->n; i++) {
        const cJSON *schema = o->place->part[i].schema, *additional = json_field(schema, "additionalProperties");
        if (o->place->part[i].done & NEGATED) continue;
        if (cJSON_IsFalse(json_field(schema, "unevaluatedProperties")) && !additional) return 0;
        asked |= (additional && !cJSON_IsFalse(additional)) || cJSON_GetArraySize(json_field(schema, "patternProperties"));
        declared |= cJSON_GetArraySize(json_field(schema, "properties")) > 0;
        if (cJSON_IsFalse(additional) && !cJSON_GetArraySize(json_field(schema, "patternProperties"))) return 0;
    }
    return asked || !declared;
}

/* Takes from *set (NULL: all) what is not in one; takes one over.  0, or -1 with the error. */
static int cut(Compiler *c, Strings **set, Strings *one) {
    Error why;
    Strings *was = *set;
    *set = was && one ? strings_both(was, one, &why) : one;
    if (was) strings_free(was);
    if (was && one) strings_free(one);
    return *set ? 0 : (wrong(c, NULL, NULL, "the names of properties are too many kinds"), -1);
}

/* The undeclared names that match those patterns of `which` and no others, and their values. */
static int add_others(Object *o, const cJSON **pattern, const Part **of, int n_patterns, int which) {
    Compiler *c = o->c;
    Place value = {0};
    Strings *names = NULL;
    const char **declared = xcalloc(o->n + 1, sizeof *declared);
    int bad = 0;
    for (int i = 0; i < o->n; i++) declared[i] = o->p[i].name;
    if (o->n) {
        Strings *words = strings_of_words(declared, o->n);
        names = words ? strings_not(words) : NULL;
        if (!words) bad = (wrong(c, o->place->part[0].schema, "properties", "too many names"), -1);
        strings_free(words);
    }
    free(declared);
    for (int i = 0; i < n_patterns && !bad; i++) {
        bad = cut_pattern(c, pattern[i], NULL, pattern[i]->string, !(which >> i & 1), &names);
        if (which >> i & 1) add_part(&value, pattern[i], 0);
    }
    for (int i = 0; i < o->place->n && !bad; i++) {
        const Part *part = &o->place->part[i];
        const cJSON *additional = json_field(part->schema, "additionalProperties"), *asked = json_field(part->schema, "propertyNames");
        int matched = 0;
        if (part->done & NEGATED) continue;
        for (int k = 0; k < n_patterns; k++) matched |= of[k] == part && which >> k & 1;
        if (additional && !matched) add_part(&value, additional, 0);
        if (asked) {                    /* a schema of strings */
            Place name = {0};
            Buf key = {0};
            int min = 0, max = NO_LIMIT;
            add_part(&name, asked, 0);
            int nothing = spread(c, &name);
            for (int k = 0; k < name.n && !nothing; k++) {
                const cJSON *list = json_field(name.part[k].schema, "enum"), *v = list ? list->child : json_field(name.part[k].schema, "const");
                static const char *const alternatives[] = {"anyOf", "oneOf", "not", "if", NULL};
                for (const char *const *a = alternatives; *a; a++)
                    if (json_field(name.part[k].schema, *a)) bad = (wrong(c, part->schema, "propertyNames", "alternatives are not supported"), -1);
                if (!v) continue;
                const char **words = xcalloc(cJSON_GetArraySize(list) + 2, sizeof *words);
                int n = 0;
                for (; v; v = list ? v->next : NULL)
                    if (cJSON_IsString(v)) words[n++] = v->valuestring;
                bad |= cut(c, &names, strings_of_words(words, n));
                free(words);
            }
            if (nothing > 0) bad |= cut(c, &names, strings_of_words(NULL, 0));
            else bad |= strings_at(c, &name, &names, &min, &max, &key);
            if (!bad && (min || max != NO_LIMIT)) {
                Buf length = {0};
                Error why;
                if (max == NO_LIMIT) buf_printf(&length, "^(?:.|[\\n\\r\\u2028\\u2029]){%d,}$", min);
                else buf_printf(&length, "^(?:.|[\\n\\r\\u2028\\u2029]){%d,%d}$", min, max);
                Strings *fit = strings_of_pattern(length.data, &why);
                bad = fit ? cut(c, &names, fit) : (wrong(c, part->schema, "propertyNames", why.text), -1);
                buf_free(&length);
            }
            buf_free(&key);
            free(name.part);
        }
    }
    int forbidden = names && !names->n;
    for (int i = 0; i < value.n; i++) forbidden |= cJSON_IsFalse(value.part[i].schema);
    if (bad || forbidden) {
        strings_free(names);
        free(value.part);
        return bad;
    }
    o->others = xrealloc(o->others, o->n_others + 1, sizeof *o->others);
    o->others[o->n_others] = (Others){names, -1};
    int routine = routine_for(c, value);
    o->others[o->n_others++].routine = routine;
    return 0;
}

static int read_others(Object *o) {
    const cJSON *pattern[MAX_PATTERNS + 1], *k;
    const Part *of[MAX_PATTERNS + 1];
    int n = 0, bad = 0;
    if (!is_open(o)) return 0;
    for (int i = 0; i < o->place->n; i++)
        cJSON_ArrayForEach(k, json_field(o->place->part[i].schema, "patternProperties")) {
            if (o->place->part[i].done & NEGATED) continue;
            if (n == MAX_PATTERNS) return wrong(o->c, o->place->part[i].schema, "patternProperties", "more than 4 patterns are not supported"), -1;
            pattern[n] = k;
            of[n++] = &o->place->part[i];
        }
    for (int which = 0; which < 1 << n && !bad; which++) bad = add_others(o, pattern, of, n, which);
    return bad;
}

static int object(Compiler *c, const Place *p) {
    Object o = {.c = c, .place = p, .max = NO_LIMIT};
    int pc = states_fail(c->s), bad = read_properties(&o) || read_dependencies(&o);
    for (int i = 0; i < o.n && !bad; i++) {
        int allowed;
        Place member = member_place(c, p, o.p[i].name, &allowed);
        if (strlen(o.p[i].name) > 1000) wrong(c, p->part[0].schema, "properties", "names of more than 1000 bytes are not supported");
        o.p[i].routine = -1;
        if (allowed && !c->bad) o.p[i].routine = routine_for(c, member);
        else free(member.part);
    }
    bad = bad || c->bad || read_others(&o);
    if (o.n > MAX_PROPERTIES) bad = (wrong(c, p->part[0].schema, "properties", "more than 4000 are not supported"), -1);
    put_in_order(c, o.p, o.n);
    o.counted = o.max != NO_LIMIT ? o.max : o.min;
    if (o.counted > o.n && !o.n_others) o.counted = o.max != NO_LIMIT && o.min <= o.n ? o.n : o.counted;
    int64_t places = (int64_t)(o.n + 1) * (o.counted + 1) << o.n_flags;
    if (!bad && places > MAX_CODE) bad = (wrong(c, p->part[0].schema, NULL, "the schema is too large"), -1);
    if (!bad) {
        o.key = memset(xmalloc((size_t)places * sizeof(int)), 0xff, (size_t)places * sizeof(int));
        o.more = memset(xmalloc((size_t)places * sizeof(int)), 0xff, (size_t)places * sizeof(int));
        o.end = spaced(c, put_range(c->s, '}', '}', states_ret(c->s)));
        int first = may_end(&o, 0, 0, 0) ? o.end : pc, key = key_from(&o, 0, 0, 0);
        pc = put_range(c->s, '{', '{', put_either(c->s, key == pc ? key : spaced(c, key), first));
    }
    for (int i = 0; i < o.n_others; i++) strings_free(o.others[i].names);
    free(o.others);
    free(o.dependency);
    free(o.key);
    free(o.more);
    free(o.p);
    return pc;
}

/* ---- arrays ---- */

typedef struct {
    Compiler *c;
    int *routine, *containing;          /* [n_prefix + 1] of the items, the last for all others; those that are counted */
    int n_prefix, min, max, wanted;     /* wanted: so many must be in `contains` */
    int counted;                        /* positions that are told apart */
    int *before, *behind;               /* places made, by position and how many are in `contains` */
    int end;
} Array;

static int behind_item(Array *a, int i, int k);

/* In front of item i, when k so far are in `contains`. */
static int before_item(Array *a, int i, int k) {
    int *memo = &a->before[i * (a->wanted + 1) + k], which = i < a->n_prefix ? i : a->n_prefix, next = i < a->counted ? i + 1 : i;
    Schema *s = a->c->s;
    if (*memo >= 0) return *memo;
    if (i >= a->max || a->routine[which] < 0) return *memo = states_fail(s);
    int pc = put_call(s, a->routine[which], behind_item(a, next, k));
    if (a->wanted && a->containing[which] >= 0)
        pc = put_either(s, pc, put_call(s, a->containing[which], behind_item(a, next, k < a->wanted ? k + 1 : k)));
    return *memo = pc;
}

static int behind_item(Array *a, int i, int k) {
    int *memo = &a->behind[i * (a->wanted + 1) + k];
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

/* What holds of item i in all schemas of the place; *allowed: 0 when one of them forbids it. */
static Place item_place(const Place *p, int i, int *allowed) {
    Place item = {0};
    *allowed = 1;
    for (int k = 0; k < p->n; k++) {
        const cJSON *schema = p->part[k].schema, *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems");
        const cJSON *rest = cJSON_IsArray(items) ? json_field(schema, "additionalItems") : items;
        if (p->part[k].done & NEGATED) continue;
        if (cJSON_IsArray(items)) prefix = items;
        const cJSON *own = i < cJSON_GetArraySize(prefix) ? cJSON_GetArrayItem(prefix, i) : rest;
        int nobody_asks = !own && prefix && i >= cJSON_GetArraySize(prefix) && i >= min_items(schema);
        if (own) add_part(&item, own, 0);
        if (cJSON_IsFalse(own) || nobody_asks || (!own && cJSON_IsFalse(json_field(schema, "unevaluatedItems")))) *allowed = 0;
    }
    return item;
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
        cJSON_AddItemToArray(all, cJSON_CreateNull());
    }
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
    Compiler *c;
    Buf text[MAX_UNIQUE];
    int n, min, max, end;
    int *behind;                        /* [1 << n] places made, by the values that have been written */
} Unique;

static int behind_unique(Unique *u, unsigned used, int count);

static int next_unique(Unique *u, unsigned used, int count) {
    int pc = states_fail(u->c->s);
    for (int i = 0; i < u->n && count < u->max; i++)
        if (!(used >> i & 1))
            pc = put_either(u->c->s, pc, put_literal(u->c->s, u->text[i].data, u->text[i].len, behind_unique(u, used | 1u << i, count + 1)));
    return pc;
}

static int behind_unique(Unique *u, unsigned used, int count) {
    Schema *s = u->c->s;
    if (u->behind[used] >= 0) return u->behind[used];
    int item = next_unique(u, used, count), more = item == states_fail(s) ? item : put_range(s, ',', ',', spaced(u->c, item));
    return u->behind[used] = put_either(s, count >= u->min ? u->end : states_fail(s), more);
}

/* An array of values that are all different. */
static int unique_array(Compiler *c, const Place *p, const cJSON *schema, int min, int max, int end) {
    int allowed;
    Place item = item_place(p, 0, &allowed);
    cJSON *values = values_of(c, &item), *v;
    Unique u = {.c = c, .min = min, .max = max, .end = end};
    free(item.part);
    if (!values) return wrong(c, schema, "uniqueItems", "supported for enums, constants and booleans of at most 16 values");
    cJSON_ArrayForEach(v, values) put_constant(c, schema, v, &u.text[u.n++]);
    u.behind = memset(xmalloc(sizeof(int) << u.n), 0xff, sizeof(int) << u.n);
    int first = next_unique(&u, 0, 0), pc = put_either(c->s, first == states_fail(c->s) ? first : spaced(c, first), min ? states_fail(c->s) : end);
    for (int i = 0; i < u.n; i++) buf_free(&u.text[i]);
    free(u.behind);
    cJSON_Delete(values);
    return put_range(c->s, '[', '[', pc);
}

static int array(Compiler *c, const Place *p) {
    Array a = {.c = c, .max = NO_LIMIT};
    const cJSON *unique = NULL, *contains = NULL;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems");
        if (p->part[i].done & NEGATED) continue;
        if (prefix && !cJSON_IsArray(prefix)) return wrong(c, schema, "prefixItems", "must be a list");
        int lo = count_of(c, schema, "minItems", 0), hi = count_of(c, schema, "maxItems", NO_LIMIT);
        int n = cJSON_GetArraySize(cJSON_IsArray(items) ? items : prefix);
        if (lo > a.min) a.min = lo;
        if (hi < a.max) a.max = hi;
        if (n > a.n_prefix) a.n_prefix = n;
        if (cJSON_IsTrue(json_field(schema, "uniqueItems"))) unique = schema;
        if (!json_field(schema, "contains") || !count_of(c, schema, "minContains", 1)) continue;
        if (contains) return wrong(c, schema, "contains", "twice is not supported");
        contains = schema;
        a.wanted = count_of(c, schema, "minContains", 1);
        if (a.wanted > 1000) return wrong(c, schema, "minContains", "above 1000 is not supported");
    }
    for (int i = 0; i < p->n; i++)
        if (json_field(p->part[i].schema, "maxContains")) return wrong(c, p->part[i].schema, "maxContains", "not supported");
    if (c->bad || a.min > a.max) return states_fail(c->s);
    a.end = spaced(c, put_range(c->s, ']', ']', states_ret(c->s)));
    if (unique && contains) return wrong(c, unique, "uniqueItems", "beside contains is not supported");
    if (unique && a.max > 1) return unique_array(c, p, unique, a.min, a.max, a.end);
    a.routine = xcalloc(a.n_prefix + 1, sizeof(int));
    a.containing = xcalloc(a.n_prefix + 1, sizeof(int));
    for (int i = 0; i <= a.n_prefix && !c->bad; i++) {
        int allowed;
        Place item = item_place(p, i, &allowed), counted = copy_place(&item);
        if (contains) add_part(&counted, json_field(contains, "contains"), 0);
        a.routine[i] = a.containing[i] = -1;
        if (allowed) a.routine[i] = routine_for(c, item);
        else free(item.part);
        if (allowed && contains) a.containing[i] = routine_for(c, counted);
        else free(counted.part);
    }
    a.counted = a.max != NO_LIMIT ? a.max : a.min > a.n_prefix ? a.min : a.n_prefix;
    if (a.max != NO_LIMIT && a.routine[a.n_prefix] < 0 && a.max > a.n_prefix) a.counted = a.min > a.n_prefix ? a.min : a.n_prefix;
    int64_t places = (int64_t)(a.counted + 1) * (a.wanted + 1);
    int pc = states_fail(c->s);
    if (places > MAX_CODE) wrong(c, p->n ? p->part[0].schema : NULL, NULL, "the schema is too large");
    if (!c->bad) {
        a.before = memset(xmalloc((size_t)places * sizeof(int)), 0xff, (size_t)places * sizeof(int));
        a.behind = memset(xmalloc((size_t)places * sizeof(int)), 0xff, (size_t)places * sizeof(int));
        for (int i = a.counted; i >= 0; i--)        /* from the end, so that no call waits for another */
            for (int k = a.wanted < i ? a.wanted : i; k >= 0; k--) behind_item(&a, i, k);
        int first = before_item(&a, 0, 0), empty = a.min || a.wanted ? pc : a.end;
        pc = put_range(c->s, '[', '[', put_either(c->s, first == pc ? first : spaced(c, first), empty));
    }
    free(a.before);
    free(a.behind);
    free(a.routine);
    free(a.containing);
    return pc;
}

/* ---- places as a whole ---- */

static int has_any(const Place *p, const char *const *names) {
    for (int i = 0; i < p->n; i++)
        for (const char *const *n = names; *n; n++)
            if (json_field(p->part[i].schema, *n) && !(p->part[i].done & NEGATED)) return 1;
    return 0;
}

/* The types that all schemas of the place admit.  Keywords of one type without its name leave all other types open: it is
 * enough to write that one. */
static int types_at(const Place *p) {
    int mask = T_ALL, named = 0;
    for (int i = 0; i < p->n; i++) {
        const cJSON *type = json_field(p->part[i].schema, "type");
        if (!type || p->part[i].done & NEGATED) continue;
        named = 1;
        mask &= mask_of(type);
    }
    if (named) return mask;
    if (has_any(p, of_objects)) return T_OBJECT;
    if (has_any(p, of_arrays)) return T_ARRAY;
    if (has_any(p, of_strings)) return T_STRING;
    return has_any(p, of_numbers) ? T_FRACTION | T_INTEGER : mask;
}

/* true, false and null, where no negated constant takes them out. */
static int word(Compiler *c, const Place *p, const char *text) {
    cJSON *v = cJSON_Parse(text);
    int ok = place_holds(c, p, v);
    cJSON_Delete(v);
    return ok ? put_literal(c->s, text, strlen(text), states_ret(c->s)) : states_fail(c->s);
}

/* A negated constant that is an object or an array is told apart from others by nothing that is written here. */
static int check_negated(Compiler *c, const Place *p, int mask) {
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *list = json_field(schema, "enum"), *one = json_field(schema, "const"), *v;
        if (!(p->part[i].done & NEGATED)) continue;
        for (v = list ? list->child : one; v; v = list ? v->next : NULL)
            if (type_of_value(v) & mask & (T_OBJECT | T_ARRAY)) return wrong(c, schema, "not", "objects and arrays are not supported here"), -1;
    }
    return 0;
}

static int types_of_place(Compiler *c, const Place *p) {
    Schema *s = c->s;
    int pc = states_fail(s), mask = types_at(p);
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        if (p->part[i].done & NEGATED) continue;
        if (json_field(schema, "enum") || cJSON_GetObjectItemCaseSensitive(schema, "const")) return constants(c, p, schema);
    }
    if (c->bad || check_negated(c, p, mask)) return pc;
    if (mask & T_OBJECT) pc = put_either(s, pc, object(c, p));
    if (mask & T_ARRAY && !c->bad) pc = put_either(s, pc, array(c, p));
    if (mask & T_STRING && !c->bad) pc = put_either(s, pc, string(c, p));
    if ((mask & (T_INTEGER | T_FRACTION)) == T_FRACTION) return wrong(c, p->part[0].schema, "type", "numbers without integers are not supported");
    if (mask & T_INTEGER && !c->bad) {
        Range r = {.whole = !(mask & T_FRACTION)};
        for (int i = 0; i < p->n; i++)
            if (!(p->part[i].done & NEGATED)) add_range(c, p->part[i].schema, &r);
        if (!c->bad) pc = put_either(s, pc, number(c, p, r, 0));
    }
    if (mask & T_BOOLEAN && !c->bad) pc = put_either(s, pc, put_either(s, word(c, p, "true"), word(c, p, "false")));
    if (mask & T_NULL && !c->bad) pc = put_either(s, pc, word(c, p, "null"));
    return pc;
}

static int compile(Compiler *c, Place *p) {
    int nothing = spread(c, p);
    if (nothing) return states_fail(c->s);
    int pc = split(c, p);
    return pc >= 0 || c->bad ? (pc >= 0 ? pc : states_fail(c->s)) : types_of_place(c, p);
}

/* The routine of a place, which it takes over. */
static int routine_for(Compiler *c, Place p) {
    for (int i = 0; i < c->n_places; i++)
        if (c->place[i].n == p.n && (!p.n || !memcmp(c->place[i].part, p.part, (size_t)p.n * sizeof *p.part))) {
            free(p.part);
            return c->routine[i];
        }
    int routine = new_routine(c->s);
    c->place = xrealloc(c->place, c->n_places + 1, sizeof *c->place);
    c->routine = xrealloc(c->routine, c->n_places + 1, sizeof *c->routine);
    c->place[c->n_places] = copy_place(&p);
    c->routine[c->n_places++] = routine;
    if (c->depth >= MAX_DEPTH) wrong(c, p.n ? p.part[0].schema : NULL, NULL, "nested too deep");
    if (!c->bad && !states_is_full(c->s)) {
        c->depth++;
        set_entry(c->s, routine, compile(c, &p));
        c->depth--;
    }
    free(p.part);
    return routine;
}

/* ---- a schema as a whole ---- */

static Compiler open_compiler(const Pieces *p, int in_calls, Error *err) {
    Compiler c = {.s = states_new(p, in_calls), .made = cJSON_CreateArray(), .err = err};
    int ret = states_ret(c.s), spaces = ret;
    for (int i = 0; i < 16; i++) spaces = put_either(c.s, ret, put_range(c.s, ' ', ' ', spaces));
    c.space = new_routine(c.s);
    set_entry(c.s, c.space, put_either(c.s, ret, put_either(c.s, put_range(c.s, ' ', ' ', ret), put_range(c.s, '\n', '\n', spaces))));
    return c;
}

/* Frees all but the program, which is returned: NULL where it cannot be run. */
static Schema *close_compiler(Compiler *c) {
    Error why;
    if (!c->bad && states_finish(c->s, &why)) wrong(c, c->root, NULL, why.text);
    for (int i = 0; i < c->n_places; i++) free(c->place[i].part);
    for (int i = 0; i < c->n_known; i++) free(c->known[i].key);
    free(c->known);
    buf_free(&c->prefix);
    free(c->place);
    free(c->routine);
    cJSON_Delete(c->made);
    if (!c->bad) return c->s;
    schema_free(c->s);
    return NULL;
}

Schema *schema_new(const Pieces *p, const cJSON *schema, Error *err) {
    Compiler c = open_compiler(p, 0, err);
    Place whole = {0};
    c.root = schema;
    add_part(&whole, schema, 0);
    set_entry(c.s, 0, put_call(c.s, routine_for(&c, whole), states_ret(c.s)));
    return close_compiler(&c);
}

/* The routine of a tool's arguments: an object that satisfies its parameters. */
static int arguments_of(Compiler *c, const char *tool, const cJSON *parameters) {
    Place whole = {0};
    cJSON *object = make_schema(c);
    cJSON_AddStringToObject(object, "type", "object");
    c->prefix.len = 0;
    buf_printf(&c->prefix, "parameters of %s: ", tool);
    c->root = parameters;
    const cJSON *type = json_field(parameters, "type");
    if (!parameters) cJSON_AddFalseToObject(object, "additionalProperties");
    if (parameters && type && !(mask_of(type) & T_OBJECT)) wrong(c, parameters, "type", "must be object");
    if (parameters) add_part(&whole, parameters, 0);
    add_part(&whole, object, 0);
    return routine_for(c, whole);
}

/* Does a tool's schema compile, and into what is left of the room?  It is tried in a program of its own, so that nothing of
 * a failure stays. */
static int compiles(const Compiler *c, const Pieces *p, const char *tool, const cJSON *parameters, Error *why) {
    const int reserve = MAX_CODE / 20;  /* for the names of tools */
    Compiler alone = open_compiler(p, 1, why);
    set_entry(alone.s, 0, put_call(alone.s, arguments_of(&alone, tool, parameters), states_ret(alone.s)));
    if (states_size(alone.s) > MAX_CODE - reserve - states_size(c->s)) wrong(&alone, parameters, NULL, "the schema is too large");
    Schema *s = close_compiler(&alone);
    schema_free(s);
    return s != NULL;
}

Schema *schema_calls(const Pieces *p, const cJSON *tools, const char *name, int several, Buf *uncompiled, Error *err) {
    Compiler c = open_compiler(p, 1, err);
    Schema *s = c.s;
    const cJSON *tool;
    int n = 0, end = put_loop(s, states_ret(s)), which = states_fail(s), close = put_literal(s, "\xff\x03", 2, end);
    cJSON_ArrayForEach(tool, tools) {
        const cJSON *function = json_field(tool, "function"), *parameters = json_field(function, "parameters");
        const char *this = cJSON_GetStringValue(json_field(function, "name"));
        Error why;
        if (!this || (name && strcmp(this, name))) continue;
        if (uncompiled && !compiles(&c, p, this, parameters, &why)) {
            buf_printf(uncompiled, "%sthe arguments of %s are not held to its schema: %s", uncompiled->len ? "; " : "", this, why.text);
            parameters = make_schema(&c);       /* any object */
        }
        Buf begin = {0};
        buf_printf(&begin, "call:%s", this);
        which = put_either(s, which, put_literal(s, begin.data, begin.len, put_call(s, arguments_of(&c, this, parameters), close)));
        buf_free(&begin);
        n++;
    }
    int all = put_literal(s, "\xff\x02", 2, which);
    if (several) set_loop(s, end, all);
    set_entry(s, 0, all);
    if (!n && !c.bad) c.bad = 1, fail(err, "no such tool");
    return close_compiler(&c);
}
