/* keywords.c - the keywords that a schema may have, and what their values must be. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"

int is_note(const char *keyword) {
    static const char *const notes[] = {
        "title", "description", "default", "example", "examples", "$schema", "$id", "id",
        "$comment", "$defs", "definitions", "$anchor", "$vocabulary", "deprecated", "readOnly",
        "writeOnly", "discriminator", "contentMediaType", "contentEncoding", "contentSchema",
        "externalDocs", "xml", "strict", "components", "markdownDescription", "enumDescriptions",
        "markdownEnumDescriptions", "defaultSnippets", "errorMessage", "deprecationMessage",
        "patternErrorMessage", "doNotSuggest", "suggestSortText", "allowComments",
        "allowTrailingCommas", "enumNames", "enumItemLabels", "tsType", "tsEnumNames", "unit",
        "units", "propertyOrder", "propertyOrdering", "$dynamicAnchor", "$recursiveAnchor", NULL,
    };
    return begins(keyword, "x-") || begins(keyword, "ui:") || is_in(keyword, notes);
}

static const char *const of_objects[] = {
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
    "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedProperties", NULL,
};
static const char *const of_arrays[] = {
    "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains",
    "minContains", "maxContains", "unevaluatedItems", NULL,
};
static const char *const of_strings[] = {"pattern", "format", "minLength", "maxLength", NULL};
static const char *const of_numbers[] = {"minimum", "maximum", "exclusiveMinimum",
                                         "exclusiveMaximum", "multipleOf", NULL};
static const char *const of_any[] = {"type", "nullable", "enum", "const", "anyOf", "allOf",
                                     "oneOf", "not", "if", "then", "else", "$ref", NULL};

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

/* Whether a $ref in the tree leads to a node of `shelf`.  The name of such a member of a schema
 * is no unknown keyword: the author keeps schemas there to be referred to, as in $defs. */
static int leads_into(const Compiler *c, const cJSON *tree, const cJSON *shelf) {
    const cJSON *child;
    cJSON_ArrayForEach(child, tree) {
        int is_ref = child->string && cJSON_IsString(child) && !strcmp(child->string, "$ref");
        const cJSON *there = is_ref ? resolve(c, child->valuestring) : NULL;
        if ((there && is_inside(shelf, there)) || leads_into(c, child, shelf)) return 1;
    }
    return 0;
}

#define BAD_COUNT "must be a whole number from 0"
#define MOST 1000000000                 /* counts above: no answer is so long, and int has room */

/* Whether a keyword's value is a count, a whole number from 0.  Above 2^63 doubles are not
 * exact, and the cast would overflow. */
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

/* The kind of value that a keyword must have. */
typedef enum {
    COUNT, NUMBER, SCHEMA, OBJECT, LIST, TEXT, YES_OR_NO,
    ITEMS,                              /* a schema, or a list of schemas */
    NAMES                               /* a list of strings */
} ValueKind;

typedef struct {
    const char *name;
    ValueKind kind;
} Shape;

static int compare_shapes(const void *name, const void *shape) {
    return strcmp(name, ((const Shape *)shape)->name);
}

/* Why a value is not of a kind, or NULL where it is. */
static const char *mismatch(const cJSON *v, ValueKind kind) {
    switch (kind) {
    case COUNT: return is_count(v) ? NULL : BAD_COUNT;
    case NUMBER: return cJSON_IsNumber(v) ? NULL : "must be a number";
    case SCHEMA: return is_schema(v) ? NULL : "must be an object, true or false";
    case OBJECT: return cJSON_IsObject(v) ? NULL : "must be an object";
    case LIST: return cJSON_IsArray(v) ? NULL : "must be a list";
    case TEXT: return cJSON_IsString(v) ? NULL : "must be a string";
    case YES_OR_NO: return cJSON_IsBool(v) ? NULL : "must be true or false";
    case ITEMS:
        if (is_schema(v) || cJSON_IsArray(v)) return NULL;
        return "must be an object, true, false or a list";
    case NAMES: break;
    }
    if (are_strings(v)) return NULL;
    if (cJSON_IsBool(v)) return "must be a list of names (true and false are of draft 3)";
    return "must be a list of names";
}

/* Why the value of keyword k is of a wrong kind, or NULL.  A null is like a keyword that is
 * missing. */
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
        {"propertyOrdering", NAMES}, {"required", NAMES}, {"then", SCHEMA},
        {"uniqueItems", YES_OR_NO},
    };
    const Shape *s = bsearch(k->string, shapes, sizeof shapes / sizeof *shapes, sizeof *shapes,
        compare_shapes);
    return s && !cJSON_IsNull(k) ? mismatch(k, s->kind) : NULL;
}

int check_keywords(Compiler *c, const cJSON *schema) {
    const cJSON *k, **checked = &c->checked[((uintptr_t)schema >> 4) % N_BUCKETS];
    const char *what;
    if (*checked == schema) return 0;
    cJSON_ArrayForEach(k, schema) {
        const char *name = k->string;
        if ((what = misshapen(k))) return wrong(c, schema, name, what), -1;
        if (begins(name, "unevaluated") && !cJSON_IsBool(k))
            return wrong(c, schema, name, "supported as true and false only"), -1;
        /* Nothing satisfies a type of [], which make_types makes for a place without types. */
        int is_empty = cJSON_IsArray(k) && !k->child;
        if (!strcmp(name, "type") && !mask_of(k) && !is_empty && !cJSON_IsNull(k))
            return wrong(c, schema, name, BAD_TYPE), -1;
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
    else if (begins(name, "max")) return NO_LIMIT;
    else wrong(c, schema, name, "supported up to 1000000000");
    return otherwise;
}

/* ---- types ---- */

/* Gemini's API has these names in upper case.  " fraction" is this program's own name for what a
 * negated integer leaves. */
static const struct {
    const char *name;
    int mask;
} types[] = {
    {"string", T_STRING}, {"number", T_FRACTION | T_INTEGER}, {"integer", T_INTEGER},
    {"boolean", T_BOOLEAN}, {"null", T_NULL}, {"array", T_ARRAY}, {"object", T_OBJECT},
    {" fraction", T_FRACTION},
};

static int mask_of_name(const cJSON *name) {
    if (!cJSON_IsString(name)) return 0;
    if (!strcasecmp(name->valuestring, "any")) return T_ALL;            /* draft 3 */
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcasecmp(name->valuestring, types[i].name)) return types[i].mask;
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
