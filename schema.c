/* schema.c - what the keywords of a JSON schema mean, as a program of states.  See schema.h and states.h.
 *
 * At each place of a value several schemas may hold at once: one and those that its allOf and $ref name, one of each
 * anyOf, and what stands under the same name in all of them.  So what is compiled is a *place*: a list of schemas,
 * some of them negated, each with a note of the keywords that have been taken care of.  First the place is spread
 * (allOf, $ref), then split into alternatives (anyOf, oneOf, if, not, nullable), until every schema in it says
 * something about the value itself; then the types that all of them admit are written.  Places that are alike are
 * compiled once, which also makes recursion end.  compile.h names the other files. */
#include "compile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

#define MAX_STEPS 100000                /* schemas that are looked at for a $ref that leads to itself */

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
int wrong(Compiler *c, const cJSON *schema, const char *keyword, const char *what) {
    Buf path = {0};
    buf_puts(&path, "#");
    find_node(c->root, schema, &path);
    if (!c->bad) fail(c->err, "%s%s%s%s: %s", c->prefix.len ? c->prefix.data : "", path.data, keyword ? "/" : "", keyword ? keyword : "", what);
    c->bad = 1;
    buf_free(&path);
    return states_fail(c->s);
}

/* ---- keywords ---- */

int is_in(const char *word, const char *const *list) {
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

/* Every keyword must be one that is acted upon. */
int check_keywords(Compiler *c, const cJSON *schema) {
    const cJSON *k;
    cJSON_ArrayForEach(k, schema) {
        const char *name = k->string;
        int is_empty = cJSON_IsArray(k) && !k->child;   /* which nothing satisfies; a negation leaves it so */
        if (!strncmp(name, "unevaluated", 11) && !cJSON_IsBool(k)) return wrong(c, schema, name, "supported as true and false only"), -1;
        if (!strcmp(name, "type") && !mask_of(k) && !is_empty) return wrong(c, schema, name, BAD_TYPE), -1;
        if (is_note(name) || is_in(name, of_any) || is_in(name, of_objects) || is_in(name, of_arrays) || is_in(name, of_strings) ||
            is_in(name, of_numbers)) continue;
        wrong(c, schema, name, "not supported");
        return -1;
    }
    return 0;
}

/* A keyword's whole number >= 0, or `otherwise` where it is missing. */
int count_of(Compiler *c, const cJSON *schema, const char *name, int otherwise) {
    const cJSON *v = json_field(schema, name);
    if (!v) return otherwise;
    if (cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble <= 1e9 && v->valuedouble == (int)v->valuedouble)
        return (int)v->valuedouble;
    wrong(c, schema, name, "must be a whole number from 0");
    return otherwise;
}

/* ---- types ---- */

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
int mask_of(const cJSON *type) {
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

const cJSON *resolve(const Compiler *c, const char *ref) {
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

/* leads_to, below `depth` others.  *left: so many schemas more are looked at. */
static int leads(const Compiler *c, const cJSON *from, const cJSON *to, int depth, int *left) {
    static const char *const lists[] = {"allOf", "anyOf", "oneOf"}, *const ones[] = {"not", "if", "then", "else"};
    const char *ref = cJSON_GetStringValue(json_field(from, "$ref"));
    const cJSON *item;
    if (from == to) return 1;
    if (depth > MAX_DEPTH || --*left < 0 || !cJSON_IsObject(from)) return 0;
    if (ref && leads(c, resolve(c, ref), to, depth + 1, left)) return 1;
    for (int i = 0; i < 3; i++)
        cJSON_ArrayForEach(item, json_field(from, lists[i]))
            if (leads(c, item, to, depth + 1, left)) return 1;
    for (int i = 0; i < 4; i++)
        if (leads(c, json_field(from, ones[i]), to, depth + 1, left)) return 1;
    return 0;
}

int leads_to(const Compiler *c, const cJSON *from, const cJSON *to) {
    int left = MAX_STEPS;
    return leads(c, from, to, 0, &left);
}

/* ---- places ---- */

void add_part(Place *p, const cJSON *schema, int done) {
    for (int i = 0; i < p->n; i++)
        if (p->part[i].schema == schema && (p->part[i].done & NEGATED) == (done & NEGATED)) return;
    p->part = xrealloc(p->part, p->n + 1, sizeof *p->part);
    p->part[p->n++] = (Part){schema, done};
}

Place copy_place(const Place *p) {
    Place copy = {xcalloc(p->n + 1, sizeof *copy.part), p->n};
    if (p->n) memcpy(copy.part, p->part, (size_t)p->n * sizeof *copy.part);
    return copy;
}

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
int spread(Compiler *c, Place *p) {
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
            if (leads_to(c, there, schema)) return wrong(c, schema, "$ref", "leads to itself"), -1;
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
        if (json_field(schema, "enum") || cJSON_GetObjectItemCaseSensitive(schema, "const")) return compile_constants(c, p, schema);
    }
    if (c->bad || check_negated(c, p, mask)) return pc;
    if (mask & T_OBJECT) pc = put_either(s, pc, compile_object(c, p));
    if (mask & T_ARRAY && !c->bad) pc = put_either(s, pc, compile_array(c, p));
    if (mask & T_STRING && !c->bad) pc = put_either(s, pc, compile_string(c, p));
    if ((mask & (T_INTEGER | T_FRACTION)) == T_FRACTION) return wrong(c, p->part[0].schema, "type", "numbers without integers are not supported");
    if (mask & T_INTEGER && !c->bad) {
        Range r = {.whole = !(mask & T_FRACTION)};
        for (int i = 0; i < p->n; i++)
            if (!(p->part[i].done & NEGATED)) add_range(c, p->part[i].schema, &r);
        if (!c->bad) pc = put_either(s, pc, compile_number(c, p, r, 0));
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
int routine_for(Compiler *c, Place p) {
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
