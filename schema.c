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

#define MAX_PLACES 100000
#define PLACE "must lead to a place in this document, by JSON pointer or $anchor"
#define MAX_STEPS 100000                /* schemas that are looked at for a $ref that leads to itself */

/* ---- errors ---- */

/* Adds the JSON pointer of a node to *path, if it is in the tree.  node: the node, a copy that has
 * its members, or its name or text. */
static int find_node(const cJSON *tree, const void *node, const cJSON *members, Buf *path) {
    const cJSON *child;
    int i = 0;
    if (!tree) return 0;                /* a tool without parameters */
    if (tree == node || (members && tree->child == members)) return 1;
    if (node && (tree->string == node || tree->valuestring == node)) return 1;
    cJSON_ArrayForEach(child, tree) {
        size_t was = path->len;
        buf_puts(path, "/");
        for (const char *c = child->string; c && *c; c++) {
            if (*c == '~' || *c == '/') buf_puts(path, *c == '~' ? "~0" : "~1");
            else buf_add(path, c, 1);
        }
        if (!child->string) buf_printf(path, "%d", i);
        if (find_node(child, node, members, path)) return 1;
        path->len = was;
        path->data[was] = 0;
        i++;
    }
    return 0;
}

int is_inside(const cJSON *tree, const cJSON *node) {
    const cJSON *child;
    if (tree == node) return 1;
    cJSON_ArrayForEach(child, tree)
        if (is_inside(child, node)) return 1;
    return 0;
}

/* Adds the pointer of a schema of the document: 1; of one that was made, that of what it was made
 * from: 0. */
static int add_pointer(const Compiler *c, const cJSON *schema, Buf *path) {
    buf_puts(path, "#");
    if (!schema || find_node(c->root, schema, schema->child, path)) return 1;
    for (int i = 0; i < c->n_made; i++)
        if (is_inside(c->made[i].schema, schema))
            return find_node(c->root, c->made[i].from, NULL, path), 0;
    return 0;
}

/* Notes the error about a keyword of a schema (NULL: about the schema) and returns the place that leads nowhere. */
int wrong(Compiler *c, const cJSON *schema, const char *keyword, const char *what) {
    Buf path = {0};
    if (!add_pointer(c, schema, &path)) keyword = NULL;
    if (!c->bad) fail(c->err, "%s%s%s%s: %s", c->prefix.len ? c->prefix.data : "", path.data, keyword ? "/" : "", keyword ? keyword : "", what);
    c->bad = 1;
    buf_free(&path);
    return states_fail(c->s);
}

const cJSON *holder_of(const Place *p, const char *keyword) {
    for (int i = 0; i < p->n; i++)
        if (json_field(p->part[i].schema, keyword)) return p->part[i].schema;
    return p->n ? p->part[0].schema : NULL;
}

/* ---- where $ref leads ---- */

/* Whether what stands under the name is no schema, and holds none. */
static int is_data(const char *name) {
    static const char *const data[] = {"enum", "const", "default", "example", "examples", NULL};
    return name && is_in(name, data);
}

/* The name that a schema gives to itself, in the words of its draft; NULL: it has none, or `#…`,
 * which is an anchor. */
static const char *own_name(const Compiler *c, const cJSON *schema) {
    const char *draft = cJSON_GetStringValue(json_field(c->root, "$schema"));
    const char *id = cJSON_GetStringValue(json_field(schema, "$id"));
    if (!id && (schema == c->root || (draft && strstr(draft, "draft-04"))))
        id = cJSON_GetStringValue(json_field(schema, "id"));
    return cJSON_IsObject(schema) && id && *id != '#' ? id : NULL;
}

/* The schema with that $anchor (or an $id of `#name`) in the tree, but not in one inside that has a
 * name of its own. */
static const cJSON *find_anchor(const Compiler *c, const cJSON *tree, const char *name, int depth) {
    static const char *const fields[] = {"$anchor", "$id", "id"};
    const cJSON *child, *found;
    if (depth && own_name(c, tree)) return NULL;
    for (int i = 0; i < 3 && cJSON_IsObject(tree); i++) {
        const char *is = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(tree, fields[i]));
        if (is && !strcmp(i && *is == '#' ? is + 1 : i ? "" : is, name)) return tree;
    }
    cJSON_ArrayForEach(child, tree)
        if (!is_data(child->string) && (found = find_anchor(c, child, name, depth + 1)))
            return found;
    return NULL;
}

/* The innermost schema with a name of its own around the text of a $ref: what `#` means there.
 * NULL: the text is not in the tree. */
static const cJSON *document_of(const Compiler *c, const cJSON *tree, const char *ref,
                                const cJSON *around) {
    const cJSON *child, *found = tree->valuestring == ref ? around : NULL;
    if (own_name(c, tree)) around = tree;
    for (child = tree->child; child && !found; child = child->next)
        found = document_of(c, child, ref, around);
    return found;
}

/* A schema inside of the document that has a name of its own, NULL: none. */
static const cJSON *named_inside(const Compiler *c, const cJSON *tree) {
    const cJSON *child, *found = tree != c->root && own_name(c, tree) ? tree : NULL;
    for (child = tree->child; child && !found; child = child->next) found = named_inside(c, child);
    return found;
}

static const cJSON *find_ref(const Compiler *c, const char *ref) {
    const char *id = own_name(c, c->root), *hash = strchr(ref, '#'), *here = (const char *)c->root;
    const cJSON *document = c->root;
    Resolved *inside = &c->resolved[N_BUCKETS];
    if (inside->ref != here) *inside = (Resolved){here, named_inside(c, c->root)};
    if (*ref == '#') document = inside->there ? document_of(c, c->root, ref, c->root) : c->root;
    else if (id) {                      /* by the document's own name */
        size_t n = strcspn(id, "#");
        if (strncmp(ref, id, n) || (ref[n] && ref[n] != '#')) return NULL;
        ref = hash ? hash : "#";
    }
    if (!document) document = c->root;
    if (*ref == '#' && ref[1] && ref[1] != '/') return find_anchor(c, document, ref + 1, 0);
    return json_pointer(document, ref);
}

const cJSON *resolve(const Compiler *c, const char *ref) {
    Resolved *r = &c->resolved[((uintptr_t)ref >> 4) % N_BUCKETS];
    if (r->ref != ref) *r = (Resolved){ref, find_ref(c, ref)};
    return r->there;
}

/* leads_to, below `depth` others.  *left: so many schemas more are looked at. */
static int leads(const Compiler *c, const cJSON *from, const cJSON *to, int depth, int *left) {
    static const char *const lists[] = {"allOf", "anyOf", "oneOf"}, *const ones[] = {"not", "if", "then", "else"};
    static const char *const dependent[] = {"dependentSchemas", "dependencies"};
    const char *ref = cJSON_GetStringValue(json_field(from, "$ref"));
    const cJSON *item;
    if (from == to || (from && to && to->child && from->child == to->child)) return 1;
    if (depth > MAX_DEPTH || --*left < 0 || !cJSON_IsObject(from)) return 0;
    if (ref && leads(c, resolve(c, ref), to, depth + 1, left)) return 1;
    for (int i = 0; i < 3; i++)
        cJSON_ArrayForEach(item, json_field(from, lists[i]))
            if (leads(c, item, to, depth + 1, left)) return 1;
    for (int i = 0; i < 4; i++)
        if (leads(c, json_field(from, ones[i]), to, depth + 1, left)) return 1;
    for (int i = 0; i < 2; i++)
        cJSON_ArrayForEach(item, json_field(from, dependent[i]))
            if (leads(c, item, to, depth + 1, left)) return 1;
    return 0;
}

int leads_to(const Compiler *c, const cJSON *from, const cJSON *to) {
    int left = MAX_STEPS;
    return leads(c, from, to, 0, &left);
}

int evaluates(const Compiler *c, const cJSON *closed, const Part *part) {
    if (part->marks & NEGATED) return 0;
    return part->schema == closed || (!(part->marks & DENIED) && leads_to(c, closed, part->schema));
}

/* ---- places ---- */

/* Puts a schema into the place at that number, unless it is there; returns the number behind it. */
static int put_part(Place *p, int at, const cJSON *schema, int marks) {
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

Place copy_place(const Place *p) {
    Place copy = {xcalloc(p->n + 1, sizeof *copy.part), p->n};
    if (p->n) memcpy(copy.part, p->part, (size_t)p->n * sizeof *copy.part);
    return copy;
}

/* A schema that this file makes from a node of another one, and the same again for the same node,
 * so that places that are alike are known for it.  It lives until everything is compiled.  `bits`
 * of it are inherited by every part that it is; cJSON leaves an object's valueint to us.  *is_new
 * says whether it is to be filled. */
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

/* {name: value}, or {outer: {name: value}} where there is an outer one, and a type, where one is
 * named.  Values are borrowed. */
static cJSON *make_with(Compiler *c, const char *type, const char *name, const cJSON *value,
                        int bits) {
    int is_new;
    cJSON *o = make_schema(c, value, NULL, bits, &is_new);
    if (is_new && type) cJSON_AddStringToObject(o, "type", type);
    if (is_new) cJSON_AddItemReferenceToObject(o, name, (cJSON *)value);
    return o;
}

/* {"not": value} as a new item. */
static cJSON *opposite_of(const cJSON *value, int bits) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddItemReferenceToObject(o, "not", (cJSON *)value);
    o->valueint = bits & INHERITED;
    return o;
}

/* The schema of an object in which a property stands, and is not as `value` says; NULL: in which it
 * does not stand. */
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

/* One alternative: schemas that hold beside those of the place, from number `at` on, as properties
 * come in the order of the schemas. */
static int alternative(Compiler *c, const Place *p, int at, const Part *more, int n) {
    Place q = copy_place(p);
    for (int i = 0; i < n; i++) at = put_part(&q, at, more[i].schema, more[i].marks);
    return put_call(c->s, routine_for(c, q), states_ret(c->s));
}

/* Takes what allOf and $ref name into the place.  Returns 0; 1 when nothing satisfies it; -1 with the error. */
int spread(Compiler *c, Place *p) {
    const cJSON *item;
    int kept = 0;
    for (int i = 0; i < p->n && !c->bad; i++) {
        const cJSON *schema = p->part[i].schema, *ref = json_field(schema, "$ref"), *all = json_field(schema, "allOf");
        if (cJSON_IsBool(schema)) {
            if (cJSON_IsTrue(schema) == !!(p->part[i].marks & NEGATED)) return 1;
            continue;
        }
        if (!cJSON_IsObject(schema)) return wrong(c, schema, NULL, "must be an object, true or false"), -1;
        if (check_keywords(c, schema)) return -1;
        if (p->part[i].marks & NEGATED) continue;
        if (cJSON_IsTrue(json_field(schema, "nullable")) && !(p->part[i].marks & NULLABLE)) continue;    /* null beside all of it */
        int bits = p->part[i].marks & INHERITED, at = i + 1;
        if (ref && !(p->part[i].marks & REF)) {
            const cJSON *there = cJSON_IsString(ref) ? resolve(c, ref->valuestring) : NULL;
            if (!there) return wrong(c, schema, "$ref", PLACE), -1;
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
    for (int i = 0; i < p->n; i++)      /* true says nothing, and a schema of notes neither */
        if (!cJSON_IsBool(p->part[i].schema)) p->part[kept++] = p->part[i];
    p->n = kept;
    return c->bad ? -1 : 0;
}

static int has_any(const Place *p, const char *const *names) {
    for (int i = 0; i < p->n; i++)
        for (const char *const *n = names; *n; n++)
            if (json_field(p->part[i].schema, *n) && !(p->part[i].marks & NEGATED)) return 1;
    return 0;
}

/* The types that all schemas of the place admit.  Keywords of one type without its name leave all
 * other types open: it is enough to write that one. */
static int types_at(const Place *p) {
    int mask = T_ALL, named = 0;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *type = json_field(schema, "type"),
            *v = constants_of(schema);
        int of_values = v ? 0 : T_ALL;
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

/* ---- alternatives ---- */

/* One of the schemas of a list; exactly: and none of the others. */
static int one_of(Compiler *c, const Place *p, int which, int at, const char *keyword,
                  int exactly) {
    const cJSON *schema = p->part[which].schema;
    int bits = p->part[which].marks & INHERITED;
    const cJSON *list = json_field(schema, keyword), *item, *other;
    int pc = states_fail(c->s), n = cJSON_GetArraySize(list);
    if (!cJSON_IsArray(list) || !n) return wrong(c, schema, keyword, "must be a list that is not empty");
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

/* What a negated schema leaves: for each of its keywords alternatives in which it does not hold. */
typedef struct {
    Compiler *c;
    const Place *p;
    int at;                             /* where it stood in the place */
    int bits, mask;                     /* inherited ones; types of values at the place */
    int pc;                             /* the alternatives so far */
} Opposite;

static void also(Opposite *o, const Part *parts, int n) {
    o->pc = put_either(o->c->s, o->pc, alternative(o->c, o->p, o->at, parts, n));
}

static void also_one(Opposite *o, const cJSON *schema, int marks) {
    also(o, &(Part){schema, marks | o->bits}, 1);
}

/* A schema of those types. */
static cJSON *make_types(Compiler *c, const cJSON *from, int mask, int bits) {
    int is_new;
    cJSON *made = make_schema(c, from, NULL, bits | mask * 2 * ASIDE, &is_new);
    if (is_new) add_type_names(mask, cJSON_AddArrayToObject(made, "type"));
    return made;
}

/* A bound on lengths or numbers by its opposite: 1, or 0 where it is none. */
static int negate_bound(Opposite *o, const cJSON *schema, const cJSON *k) {
    static const struct { const char *name, *other, *type; int step; } bounds[] = {
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
        if (n == NO_LIMIT || (n += bounds[i].step) < 0) return 1;       /* it always holds */
        cJSON *made = make_schema(o->c, k, NULL, o->bits, &is_new);
        if (is_new) cJSON_AddStringToObject(made, "type", bounds[i].type);
        if (is_new) cJSON_AddNumberToObject(made, bounds[i].other, n);
        return also_one(o, made, 0), 1;
    }
    return 0;
}

/* additionalProperties or patternProperties, of an object whose names are all known: one of these
 * is not as k says. */
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

/* contains beside minContains or maxContains: fewer, or more. */
static void negate_counts(Opposite *o, const cJSON *schema, const cJSON *k) {
    static const char *const bounds[] = {"minContains", "maxContains"};
    for (int i = 0; i < 2; i++) {
        if (i && !json_field(schema, bounds[i])) continue;
        int n = count_of(o->c, schema, bounds[i], 1), is_new;
        if (n == NO_LIMIT || (n += i ? 1 : -1) < 0) continue;           /* it always holds */
        cJSON *made = make_schema(o->c, k, bounds[i], o->bits, &is_new);
        if (is_new) cJSON_AddStringToObject(made, "type", "array");
        if (is_new) cJSON_AddItemReferenceToObject(made, "contains", (cJSON *)k);
        if (is_new) cJSON_AddNumberToObject(made, bounds[!i], n);
        if (is_new && !i) cJSON_AddNumberToObject(made, "minContains", 0);
        also_one(o, made, 0);
    }
}

/* items and its relatives: one item is not as they say. */
static int negate_items(Opposite *o, const cJSON *schema, const cJSON *k) {
    const cJSON *item;
    int at = 0, is_new;
    if (!strcmp(k->string, "additionalItems"))
        return !cJSON_IsArray(json_field(schema, "items")) || cJSON_IsTrue(k);
    /* No array without items meets contains: true. */
    if (cJSON_IsTrue(k) && strcmp(k->string, "contains")) return 1;
    if (cJSON_IsArray(k)) {
        cJSON_ArrayForEach(item, k) {
            cJSON *made = make_schema(o->c, item, k, o->bits, &is_new);
            cJSON *list = is_new ? cJSON_AddArrayToObject(made, "prefixItems") : NULL;
            for (int i = 0; i < at && is_new; i++) cJSON_AddItemToArray(list, cJSON_CreateTrue());
            if (is_new) cJSON_AddItemToArray(list, opposite_of(item, o->bits));
            if (is_new) cJSON_AddNumberToObject(made, "minItems", at + 1);
            if (is_new) cJSON_AddStringToObject(made, "type", "array");
            also_one(o, made, 0);
            at++;
        }
        return 1;
    }
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

/* Alternatives: none of them holds, or, of oneOf, more than one. */
static int negate_alternatives(Opposite *o, const cJSON *k, int exactly) {
    const cJSON *a, *b;
    int n = 0;
    if (exactly && all_apart(o->c, k)) exactly = 0;
    if (exactly && cJSON_GetArraySize(k) > 8) return 0;
    Part *parts = xcalloc(cJSON_GetArraySize(k) + 1, sizeof *parts);
    cJSON_ArrayForEach(a, k) parts[n++] = (Part){a, NEGATED | o->bits};
    also(o, parts, n);
    for (a = exactly ? k->child : NULL; a; a = a->next)
        for (b = a->next; b; b = b->next) also(o, (Part[]){{a, o->bits}, {b, o->bits}}, 2);
    free(parts);
    return 1;
}

static void negate_if(Opposite *o, const cJSON *schema, const cJSON *k) {
    const cJSON *then = json_field(schema, "then"), *otherwise = json_field(schema, "else");
    if (then) also(o, (Part[]){{k, o->bits}, {then, NEGATED | o->bits}}, 2);
    if (otherwise) also(o, (Part[]){{k, NEGATED | o->bits}, {otherwise, NEGATED | o->bits}}, 2);
}

/* dependentRequired, dependentSchemas and dependencies: the property is there, and what depends on
 * it is not so. */
static void negate_dependent(Opposite *o, const cJSON *list) {
    const cJSON *k, *name;
    int is_new;
    cJSON_ArrayForEach(k, list) {
        cJSON *there = make_schema(o->c, k, list, o->bits, &is_new);
        if (is_new) cJSON_AddStringToObject(there, "type", "object");
        if (is_new)
            cJSON_AddItemToArray(cJSON_AddArrayToObject(there, "required"),
                                 cJSON_CreateString(k->string));
        for (name = cJSON_IsArray(k) ? k->child : NULL; name; name = name->next)
            if (cJSON_IsString(name))
                also(o, (Part[]){{there, o->bits},
                                 {make_member(o->c, name, name->valuestring, NULL, o->bits),
                                  o->bits}}, 2);
        if (!cJSON_IsArray(k)) also(o, (Part[]){{there, o->bits}, {k, NEGATED | o->bits}}, 2);
    }
}

/* Whether a keyword says something of no value at the place. */
static int is_beside_the_point(const Opposite *o, const char *name) {
    static const int kinds[] = {T_OBJECT, T_ARRAY, T_STRING, T_INTEGER | T_FRACTION};
    for (int i = 0; i < 4; i++)
        if (is_in(name, keywords_of(kinds[i])) && !(o->mask & kinds[i])) return 1;
    return is_note(name) || !is_keyword(name);
}

/* Adds the alternatives in which keyword k does not hold.  Returns 0 where it cannot be said. */
static int negate(Opposite *o, const cJSON *schema, const cJSON *k) {
    static const char *const with_others[] = {"then", "else", "nullable", "minContains",
                                              "maxContains", NULL},
                                                  *const where_true[] = {"unevaluatedProperties",
                                                      "unevaluatedItems", NULL};
    static const char *const of_items[] = {"items", "prefixItems", "additionalItems", "contains",
                                           NULL};
    const char *name = k->string;
    const cJSON *item;
    int is_new;
    if (is_in(name, with_others) || is_beside_the_point(o, name)) return 1;
    if (is_in(name, where_true)) return cJSON_IsTrue(k);
    if (!strcmp(name, "uniqueItems")) return cJSON_IsFalse(k);
    if (is_in(name, of_items)) return negate_items(o, schema, k);
    if (!strcmp(name, "additionalProperties"))
        return cJSON_IsTrue(k) || negate_others(o, schema, k, 0);
    if (!strcmp(name, "patternProperties")) return !k->child || negate_others(o, schema, k, 1);
    if (!strncmp(name, "depend", 6)) return negate_dependent(o, k), 1;
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
        if (*name == 'f' && cJSON_IsString(k) && is_annotation(k->valuestring)) return 1;
        cJSON *string = make_schema(o->c, k, k, o->bits, &is_new);
        if (is_new) cJSON_AddStringToObject(string, "type", "string");
        also(o, (Part[]){{make_with(o->c, NULL, name, k, o->bits), NEGATED | LEAF | o->bits},
                         {string, o->bits}}, 2);
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
        if (!there) return wrong(o->c, schema, "$ref", PLACE), 1;
        also_one(o, there, NEGATED);
    } else if (!strcmp(name, "allOf")) {
        cJSON_ArrayForEach(item, k) also_one(o, item, NEGATED);
    } else return negate_bound(o, schema, k);
    return 1;
}

static int negation(Compiler *c, const Place *p, int at, const cJSON *schema, int bits) {
    const cJSON *k;
    Place q = copy_place(p);
    Opposite o = {c, &q, at, (bits & INHERITED) | TESTS | DENIED, types_at(p), states_fail(c->s)};
    if (is_nullable(schema)) o.mask &= ~T_NULL;
    /* Alternatives are left out below, as no value is of another type: that must stay so. */
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

/* dependentSchemas, and dependencies that are schemas: the property is not there, or the schema
 * holds, too. */
static void add_dependent(Compiler *c, Place *p, int at, const cJSON *schema, int bits) {
    static const char *const kinds[] = {"dependentSchemas", "dependencies"};
    const cJSON *k;
    int is_new;
    for (int i = 0; i < 2; i++)
        cJSON_ArrayForEach(k, json_field(schema, kinds[i])) {
            if (cJSON_IsArray(k)) continue;
            cJSON *made = make_schema(c, k, k, bits, &is_new);
            if (is_new) {
                cJSON *list = cJSON_AddArrayToObject(made, "anyOf"),
                    *without = cJSON_CreateObject(), *with = cJSON_CreateObject();
                cJSON_AddFalseToObject(cJSON_AddObjectToObject(without, "properties"), k->string);
                without->valueint = (bits & INHERITED) | TESTS;
                cJSON_AddItemToArray(cJSON_AddArrayToObject(with, "required"),
                                     cJSON_CreateString(k->string));
                cJSON_AddItemReferenceToArray(cJSON_AddArrayToObject(with, "allOf"), (cJSON *)k);
                cJSON_AddItemToArray(list, without);
                cJSON_AddItemToArray(list, with);
            }
            at = put_part(p, at, made, bits);
        }
}

/* The number behind schema i of the place and those that it has brought there. */
static int behind(const Compiler *c, const Place *p, int i) {
    int at = i + 1;
    while (at < p->n && leads_to(c, p->part[i].schema, p->part[at].schema)) at++;
    return at;
}

/* The first schema of the place that stands for alternatives, split; -1: there is none.  Those that
 * are negated come last: by then it is known what else is written. */
static int split(Compiler *c, Place *p) {
    int is_new;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        int *marks = &p->part[i].marks, bits = *marks & INHERITED;
        if (*marks & (LEAF | NEGATED)) continue;
        if (is_nullable(schema) && !(*marks & NULLABLE)) {
            cJSON *null = make_schema(c, json_field(schema, "nullable"), NULL, 0, &is_new);
            Place without = copy_place(p);
            if (is_new) cJSON_AddStringToObject(null, "type", "null");
            without.part[i] = (Part){null, 0};
            *marks |= NULLABLE;
            int pc = alternative(c, p, 0, NULL, 0);
            return put_either(c->s, pc, put_call(c->s, routine_for(c, without), states_ret(c->s)));
        }
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
            const cJSON *condition = json_field(schema, "if"), *then = json_field(schema, "then"), *otherwise = json_field(schema, "else");
            *marks |= IF;
            if (then || otherwise) {
                int at = behind(c, p, i);
                Part yes[] = {{condition, TESTS | bits}, {then, bits}},
                    no[] = {{condition, NEGATED | TESTS | bits}, {otherwise, bits}};
                int pc = alternative(c, p, at, yes, then ? 2 : 1);
                return put_either(c->s, pc, alternative(c, p, at, no, otherwise ? 2 : 1));
            }
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
        if (!(p->part[i].marks & NEGATED)) continue;
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
        if (p->part[i].marks & NEGATED) continue;
        if (json_field(schema, "enum") || cJSON_GetObjectItemCaseSensitive(schema, "const")) return compile_constants(c, p, schema);
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

static unsigned place_hash(const Place *p) {
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < p->n; i++)
        h = (h ^ ((uintptr_t)p->part[i].schema + (unsigned)p->part[i].marks)) * 1099511628211u;
    return (unsigned)(h >> 20) % N_BUCKETS;
}

static int same_place(const Place *a, const Place *b) {
    if (a->n != b->n) return 0;
    for (int i = 0; i < a->n; i++)
        if (a->part[i].schema != b->part[i].schema || a->part[i].marks != b->part[i].marks) return 0;
    return 1;
}

/* The routine of a place, which it takes over. */
int routine_for(Compiler *c, Place p) {
    int *bucket = &c->bucket[place_hash(&p)];
    for (int i = *bucket - 1; i >= 0; i = c->place[i].next - 1)
        if (same_place(&c->place[i].place, &p)) {
            free(p.part);
            return c->place[i].routine;
        }
    int routine = new_routine(c->s);
    c->place = xrealloc(c->place, c->n_places + 1, sizeof *c->place);
    c->place[c->n_places] = (KnownPlace){copy_place(&p), routine, *bucket};
    *bucket = ++c->n_places;
    if (c->depth >= MAX_DEPTH) wrong(c, p.n ? p.part[0].schema : NULL, NULL, "nested too deep");
    if (c->n_places > MAX_PLACES)
        wrong(c, p.n ? p.part[0].schema : NULL, NULL, "the schema is too large");
    if (!c->bad) {
        const cJSON *schema = p.n ? p.part[0].schema : NULL;
        c->depth++;
        set_entry(c->s, routine, compile(c, &p));
        c->depth--;
        if (states_is_full(c->s) && !c->bad) wrong(c, schema, NULL, "the schema is too large");
    }
    free(p.part);
    return routine;
}

/* ---- a schema as a whole ---- */

static Compiler open_compiler(const Pieces *p, int in_calls, Error *err) {
    Compiler c = {.s = states_new(p, in_calls), .err = err,
                  .resolved = xcalloc(N_BUCKETS + 1, sizeof(Resolved))};
    int ret = states_ret(c.s), spaces = ret;
    for (int i = 0; i < 16; i++) spaces = put_either(c.s, ret, put_range(c.s, ' ', ' ', spaces));
    c.space = new_routine(c.s);
    set_entry(c.s, c.space, put_either(c.s, ret, put_either(c.s, put_range(c.s, ' ', ' ', ret), put_range(c.s, '\n', '\n', spaces))));
    return c;
}

/* Adds the keywords of a schema that say something of the value. */
static void add_keywords(Buf *out, const cJSON *schema) {
    const cJSON *k;
    int n = 0;
    cJSON_ArrayForEach(k, schema)
        if (k->string && is_keyword(k->string))
            buf_printf(out, "%s%s", n++ ? ", " : " (", k->string);
    if (n) buf_puts(out, ")");
}

/* Adds the first name that the place requires and has no room for. */
static void add_missing_name(Compiler *c, const Place *p, Buf *out) {
    Place all = copy_place(p);
    const cJSON *name;
    int nothing = spread(c, &all), found = 0;
    for (int i = 0; i < all.n && !nothing && types_at(&all) == T_OBJECT; i++)
        cJSON_ArrayForEach(name, json_field(all.part[i].schema, "required")) {
            if (found || all.part[i].marks & NEGATED || may_have(c, &all, name->valuestring))
                continue;
            buf_puts(out, ": ");
            json_quote(out, name->valuestring, strlen(name->valuestring));
            buf_puts(out, " is required and not allowed");
            found = 1;
        }
    free(all.part);
}

/* Notes the error that nothing can be written at the place: its schemas, with their keywords. */
static void blame(Compiler *c, const Place *p, const char *why) {
    Buf what = {0};
    const cJSON *first = NULL;
    buf_puts(&what, why);
    for (int i = 0; i < p->n; i++) {
        Buf path = {0};
        if (add_pointer(c, p->part[i].schema, &path)) {
            if (first)
                buf_printf(&what, " together with %s%s", p->part[i].marks & NEGATED ? "not " : "",
                    path.data);
            else first = p->part[i].schema;
            add_keywords(&what, p->part[i].schema);
        }
        buf_free(&path);
    }
    add_missing_name(c, p, &what);
    wrong(c, first, NULL, what.data);
    buf_free(&what);
}

static const Place *place_of(const Compiler *c, int routine) {
    for (int i = 0; i < c->n_places; i++)
        if (c->place[i].routine == routine) return &c->place[i].place;
    return NULL;
}

/* Notes why the program cannot be run, at the innermost place that is to blame. */
static void note_failure(Compiler *c, int routine, const char *why) {
    const Place *at = place_of(c, routine), *inner;
    for (int depth = 0; routine >= 0 && depth < MAX_DEPTH; depth++) {
        routine = states_dead_end(c->s, routine);
        if (!(inner = place_of(c, routine))) break;
        at = inner;
    }
    if (at) blame(c, at, why);
    else wrong(c, c->root, NULL, why);
}

/* Frees all but the program, which is returned: NULL where it cannot be run. */
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

/* Of two members with one name other readers take the last, cJSON the first: what was meant nobody knows. */
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
    set_entry(c.s, 0, put_call(c.s, routine_for(&c, whole), states_ret(c.s)));
    return close_compiler(&c);
}

/* The routine of a tool's arguments: an object that satisfies its parameters. */
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
            int is_new;
            parameters = make_schema(&c, tool, NULL, 0, &is_new);       /* any object */
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
