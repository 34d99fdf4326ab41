/* keywords.c - the keywords that a schema may have, and what their values must be. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

int is_in(const char *word, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(word, *list)) return 1;
    return 0;
}

int is_note(const char *keyword) {
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
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", NULL,
};
static const char *const of_arrays[] = {
    "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains",
    "unevaluatedItems", NULL,
};
static const char *const of_strings[] = {"pattern", "format", "minLength", "maxLength", NULL};
static const char *const of_numbers[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", NULL};
static const char *const of_any[] = {"type", "nullable", "enum", "const", "anyOf", "allOf", "oneOf", "not", "if", "then", "else", "$ref", NULL};

const char *const *keywords_of(int type) {
    switch (type) {
    case T_OBJECT: return of_objects;
    case T_ARRAY: return of_arrays;
    case T_STRING: return of_strings;
    default: return of_numbers;
    }
}

int is_keyword(const char *name) {
    return is_in(name, of_any) || is_in(name, of_objects) || is_in(name, of_arrays) ||
        is_in(name, of_strings) || is_in(name, of_numbers);
}

#define BAD_TYPE "must name string, number, integer, boolean, null, array or object"

/* Whether a $ref in the tree leads into the place: then its name is no keyword, but one that the
 * author gave to a place for schemas, as $defs is. */
static int leads_into(const Compiler *c, const cJSON *tree, const cJSON *place) {
    const cJSON *child;
    cJSON_ArrayForEach(child, tree) {
        int is_ref = child->string && cJSON_IsString(child) && !strcmp(child->string, "$ref");
        const cJSON *there = is_ref ? resolve(c, child->valuestring) : NULL;
        if ((there && is_inside(place, there)) || leads_into(c, child, place)) return 1;
    }
    return 0;
}

#define BAD_COUNT "must be a whole number from 0"
#define MOST 1000000000                 /* no value comes near: no answer has so many tokens */

/* Whether a keyword's value is a count. */
static int is_count(const cJSON *v) {
    return cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble <= 0x1p63 &&
        v->valuedouble == (double)(uint64_t)v->valuedouble;
}

static int is_schema(const cJSON *v) { return cJSON_IsObject(v) || cJSON_IsBool(v); }

static int are_strings(const cJSON *list) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
        if (!cJSON_IsString(item)) return 0;
    return cJSON_IsArray(list);
}

/* What the value of a keyword must be. */
typedef struct {
    const char *name;
    enum { COUNT, NUMBER, SCHEMA, OBJECT, LIST, TEXT, YES_OR_NO, ITEMS, NAMES } shape;
} Shape;

static int compare_shapes(const void *name, const void *shape) {
    return strcmp(name, ((const Shape *)shape)->name);
}

/* What a keyword's value must be and is not, NULL: it is so.  null is a keyword that is missing. */
static const char *misshapen(const cJSON *k) {
    static const Shape shapes[] = {     /* sorted by strcmp */
        {"$ref", TEXT}, {"additionalItems", SCHEMA}, {"additionalProperties", SCHEMA},
        {"allOf", LIST}, {"anyOf", LIST}, {"contains", SCHEMA}, {"dependencies", OBJECT},
        {"dependentRequired", OBJECT}, {"dependentSchemas", OBJECT}, {"else", SCHEMA},
        {"enum", LIST}, {"format", TEXT}, {"if", SCHEMA}, {"items", ITEMS}, {"maxContains", COUNT},
        {"maxItems", COUNT}, {"maxLength", COUNT}, {"maxProperties", COUNT}, {"maximum", NUMBER},
        {"minContains", COUNT}, {"minItems", COUNT}, {"minLength", COUNT},
        {"minProperties", COUNT}, {"minimum", NUMBER}, {"multipleOf", NUMBER}, {"not", SCHEMA},
        {"nullable", YES_OR_NO}, {"oneOf", LIST}, {"pattern", TEXT}, {"patternProperties", OBJECT},
        {"prefixItems", LIST}, {"properties", OBJECT}, {"propertyNames", SCHEMA},
        {"required", NAMES}, {"then", SCHEMA}, {"uniqueItems", YES_OR_NO},
    };
    const Shape *s = bsearch(k->string, shapes, sizeof shapes / sizeof *shapes, sizeof *shapes,
        compare_shapes);
    if (!s || cJSON_IsNull(k)) return NULL;
    switch (s->shape) {
    case COUNT: return is_count(k) ? NULL : BAD_COUNT;
    case NUMBER: return cJSON_IsNumber(k) ? NULL : "must be a number";
    case SCHEMA: return is_schema(k) ? NULL : "must be an object, true or false";
    case OBJECT: return cJSON_IsObject(k) ? NULL : "must be an object";
    case LIST: return cJSON_IsArray(k) ? NULL : "must be a list";
    case TEXT: return cJSON_IsString(k) ? NULL : "must be a string";
    case YES_OR_NO: return cJSON_IsBool(k) ? NULL : "must be true or false";
    case ITEMS: return is_schema(k) || cJSON_IsArray(k) ? NULL
        : "must be an object, true, false or a list";
    default: break;
    }
    if (are_strings(k)) return NULL;
    return cJSON_IsBool(k) ? "must be a list of names (true and false are of draft 3)"
        : "must be a list of names";
}

int check_keywords(Compiler *c, const cJSON *schema) {
    const cJSON *k, **checked = &c->checked[((uintptr_t)schema >> 4) % N_BUCKETS];
    const char *what;
    if (*checked == schema) return 0;
    cJSON_ArrayForEach(k, schema) {
        const char *name = k->string;
        if ((what = misshapen(k))) return wrong(c, schema, name, what), -1;
        int is_empty = cJSON_IsArray(k) && !k->child;   /* which nothing satisfies; a negation leaves it so */
        if (!strncmp(name, "unevaluated", 11) && !cJSON_IsBool(k)) return wrong(c, schema, name, "supported as true and false only"), -1;
        if (!strcmp(name, "type") && !mask_of(k) && !is_empty) return wrong(c, schema, name, BAD_TYPE), -1;
        if (is_note(name) || is_keyword(name) || leads_into(c, c->root, k)) continue;
        wrong(c, schema, name, "not supported");
        return -1;
    }
    *checked = schema;
    return 0;
}

int count_of(Compiler *c, const cJSON *schema, const char *name, int otherwise) {
    const cJSON *v = json_field(schema, name);
    if (!v) return otherwise;
    if (!is_count(v)) wrong(c, schema, name, BAD_COUNT);
    else if (v->valuedouble <= MOST) return (int)v->valuedouble;
    else if (!strncmp(name, "max", 3)) return NO_LIMIT;
    else wrong(c, schema, name, "supported up to 1000000000");
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

void add_type_names(int mask, cJSON *list) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if ((types[i].mask & mask) == types[i].mask)
            cJSON_AddItemToArray(list, cJSON_CreateString(types[i].name));
}
