/* document.c - the document of a schema: where a node stands in it, which errors name, and where a
 * $ref leads.  See compile.h. */
#include "compile.h"

#include <string.h>

#include "json.h"

/* Limit of the schemas that leads_to looks at, chosen by judgement to bound the time. */
#define MAX_STEPS 100000

/* ---- errors ---- */

/* Adds the JSON pointer of a node to *path and returns 1, or returns 0 where the node is not in
 * the tree.  The node is given by its address, that of its name or of its text (node), or by its
 * first child (members, NULL: none), which a cJSON reference to the node shares. */
static int find_node(const cJSON *tree, const void *node, const cJSON *members, Buf *path) {
    const cJSON *child;
    int i = 0;
    if (!tree) return 0;                /* the document of a tool without parameters */
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

int add_pointer(const Compiler *c, const cJSON *schema, Buf *path) {
    buf_puts(path, "#");
    if (!schema || find_node(c->root, schema, schema->child, path)) return 1;
    for (int i = 0; i < c->n_made; i++)
        if (is_inside(c->made[i].schema, schema))
            return find_node(c->root, c->made[i].from, NULL, path), 0;
    return 0;
}

int wrong(Compiler *c, const cJSON *schema, const char *keyword, const char *what) {
    Buf path = {0};
    const char *prefix = c->prefix.len ? c->prefix.data : "";
    if (add_pointer(c, schema, &path) && keyword) {
        buf_puts(&path, "/");
        buf_puts(&path, keyword);
    }
    if (!c->bad) fail(c->err, "%s%s: %s", prefix, path.data, what);
    c->bad = 1;
    buf_free(&path);
    return program_fail(c->s);
}

/* ---- where $ref leads ---- */

/* Whether a keyword's value is data: it is no schema and holds none. */
static int is_data(const char *name) {
    static const char *const data[] = {"enum", "const", "default", "example", "examples", NULL};
    return name && is_in(name, data);
}

/* The $id of a schema (in draft 4, and in the document as a whole, also `id`).  A schema with an
 * own name is a document of its own: a `#` in it means that schema.  NULL: it has no $id, or one
 * that begins with `#`, which is an anchor. */
static const char *own_name(const Compiler *c, const cJSON *schema) {
    const char *draft = json_string(c->root, "$schema");
    const char *id = json_string(schema, "$id");
    if (!id && (schema == c->root || (draft && strstr(draft, "draft-04"))))
        id = json_string(schema, "id");
    return cJSON_IsObject(schema) && id && *id != '#' ? id : NULL;
}

/* Whether a schema has that $anchor, or an $id or id of `#name`. */
static int has_anchor(const cJSON *schema, const char *name) {
    const char *anchor = cJSON_GetStringValue(
        cJSON_GetObjectItemCaseSensitive(schema, "$anchor"));
    if (anchor && !strcmp(anchor, name)) return 1;
    static const char *const fields[] = {"$id", "id"};
    for (int i = 0; i < 2; i++) {
        const char *id = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(schema, fields[i]));
        if (id && *id == '#' && !strcmp(id + 1, name)) return 1;
    }
    return 0;
}

/* The schema with that anchor in the tree, but not in a document of its own inside of the tree. */
static const cJSON *find_anchor(const Compiler *c, const cJSON *tree, const char *name, int depth) {
    const cJSON *child, *found;
    if (depth && own_name(c, tree)) return NULL;
    if (cJSON_IsObject(tree) && has_anchor(tree, name)) return tree;
    cJSON_ArrayForEach(child, tree)
        if (!is_data(child->string) && (found = find_anchor(c, child, name, depth + 1)))
            return found;
    return NULL;
}

/* What `#` means in a $ref: the innermost schema with an own name around the $ref.  ref: its
 * text in the tree; around: that schema for the tree itself.  NULL: the text is not in the tree. */
static const cJSON *document_of(const Compiler *c, const cJSON *tree, const char *ref,
                                const cJSON *around) {
    const cJSON *child, *found = tree->valuestring == ref ? around : NULL;
    if (own_name(c, tree)) around = tree;
    for (child = tree->child; child && !found; child = child->next)
        found = document_of(c, child, ref, around);
    return found;
}

/* The first schema inside of the document with an own name, or NULL. */
static const cJSON *named_inside(const Compiler *c, const cJSON *tree) {
    const cJSON *child, *found = tree != c->root && own_name(c, tree) ? tree : NULL;
    for (child = tree->child; child && !found; child = child->next) found = named_inside(c, child);
    return found;
}

/* Adds the URI that `ref`, a reference relative to `base`, stands for, without its fragment: its
 * own, or (RFC 3986, 5.2, without the parts `.` and `..`) with the beginning of base. */
static void put_uri(Buf *out, const char *base, const char *ref) {
    size_t n_ref = strcspn(ref, "#"), scheme = strcspn(ref, ":/#"), n = 0;
    const char *host = strstr(base, "://");
    for (size_t i = 0; base[i] && base[i] != '#'; i++)
        if (base[i] == '/') n = i + 1;
    if (*ref == '/') n = host ? (size_t)(host - base) + 3 + strcspn(host + 3, "/#") : 0;
    if (ref[scheme] != ':') buf_add(out, base, n_ref ? n : strcspn(base, "#"));
    buf_add(out, ref, n_ref);
}

/* The schema in the tree whose $id stands for that URI, or NULL.  base: the URI around the tree. */
static const cJSON *find_named(const Compiler *c, const cJSON *tree, const char *base,
                               const char *uri) {
    const cJSON *child, *found = NULL;
    const char *name = own_name(c, tree);
    Buf own = {0};
    if (name) put_uri(&own, base, name);
    if (name && !strcmp(own.data, uri)) found = tree;
    for (child = tree->child; child && !found; child = child->next)
        if (!is_data(child->string)) found = find_named(c, child, name ? own.data : base, uri);
    buf_free(&own);
    return found;
}

/* Adds the URI around a $ref, whose text in the tree is `ref`, to *out, and returns 1; 0: it is
 * not in the tree.  base: the URI around the tree. */
static int put_base(const Compiler *c, const cJSON *tree, const char *ref, const char *base,
                    Buf *out) {
    const cJSON *child;
    const char *name = own_name(c, tree);
    Buf own = {0};
    int found = tree->valuestring == ref;
    if (found) buf_puts(out, base);
    if (name) put_uri(&own, base, name);
    for (child = tree->child; child && !found; child = child->next)
        found = put_base(c, child, ref, name ? own.data : base, out);
    buf_free(&own);
    return found;
}

/* The schema whose $id the part of a $ref before its # names, or NULL. */
static const cJSON *find_document(const Compiler *c, const char *ref) {
    const char *id = own_name(c, c->root);
    Buf base = {0}, uri = {0};
    if (!put_base(c, c->root, ref, "", &base)) put_uri(&base, "", id ? id : "");
    put_uri(&uri, base.data, ref);
    const cJSON *found = find_named(c, c->root, "", uri.data);
    buf_free(&base);
    buf_free(&uri);
    return found;
}

/* What a $ref names, found anew; see resolve. */
static const cJSON *find_ref(const Compiler *c, const char *ref) {
    const char *hash = strchr(ref, '#'), *here = (const char *)c->root;
    const cJSON *document = c->root;
    /* 1. The document that the part before the # names.  Most documents have no other documents
     * inside of them: the last entry of c->resolved remembers that for c->root. */
    Resolved *inside = &c->resolved[N_BUCKETS];
    if (inside->ref != here) *inside = (Resolved){here, named_inside(c, c->root)};
    if (*ref != '#') {
        if (!(document = find_document(c, ref))) return NULL;
        ref = hash ? hash : "#";
    } else if (inside->there) document = document_of(c, c->root, ref, c->root);
    if (!document) document = c->root;
    /* 2. What the part from the # on names in it. */
    if (*ref == '#' && ref[1] && ref[1] != '/') return find_anchor(c, document, ref + 1, 0);
    return json_pointer(document, ref);
}

const cJSON *resolve(const Compiler *c, const char *ref) {
    Resolved *r = &c->resolved[((uintptr_t)ref >> 4) % N_BUCKETS];
    if (r->ref != ref) *r = (Resolved){ref, find_ref(c, ref)};
    return r->there;
}

/* leads_to, `depth` schemas deep.  *left: so many schemas more may be looked at. */
static int leads(const Compiler *c, const cJSON *from, const cJSON *to, int depth, int *left) {
    static const char *const lists[] = {"allOf", "anyOf", "oneOf"};
    static const char *const ones[] = {"not", "if", "then", "else"};
    static const char *const dependent[] = {"dependentSchemas", "dependencies"};
    const char *ref = json_string(from, "$ref");
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
