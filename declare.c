/* declare.c - the tools that a request declares.  See declare.h. */
#include "declare.h"

#include <stdio.h>
#include <string.h>

#include "json.h"

#define MAX_REFS 64                     /* followed one inside the other: more is taken for a circle */
#define MAX_SCHEMA 100000               /* values that a schema may grow to when its $refs are written out */

/* ---- one shape for all ---- */

static const cJSON *list_of(const cJSON *tools) {
    if (cJSON_IsObject(tools) && json_field(tools, "result")) tools = json_field(tools, "result");
    return cJSON_IsObject(tools) ? json_field(tools, "tools") : tools;
}

static void copy_field(cJSON *to, const char *name, const cJSON *value) {
    if (value) cJSON_AddItemToObject(to, name, cJSON_Duplicate(value, 1));
}

/* The parameters under any of their names. */
static const cJSON *parameters_of(const cJSON *tool) {
    static const char *const names[] = {"parameters", "inputSchema", "input_schema"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (json_field(tool, names[i])) return json_field(tool, names[i]);
    return NULL;
}

/* A tool whose fields stand at its top, as in the Responses API and in MCP, with a "function" around them. */
static cJSON *wrapped(const cJSON *tool) {
    cJSON *whole = cJSON_CreateObject(), *function = cJSON_AddObjectToObject(whole, "function");
    cJSON_AddStringToObject(whole, "type", "function");
    copy_field(function, "name", json_field(tool, "name"));
    copy_field(function, "description", json_field(tool, "description"));
    copy_field(function, "parameters", parameters_of(tool));
    return whole;
}

static int check_tool(const cJSON *tool, int i, Error *err) {
    const cJSON *function = json_field(tool, "function"), *type = json_field(tool, "type");
    const cJSON *parameters = json_field(function, "parameters");
    const char *name = cJSON_GetStringValue(json_field(function, "name"));
    if (type && (!cJSON_IsString(type) || strcmp(type->valuestring, "function")))
        return fail(err, "tools[%d].type: must be function", i);
    if (!cJSON_IsObject(function)) return fail(err, "tools[%d].function: must be an object", i);
    if (!name || !*name || strpbrk(name, "{}()[]\"'`, \t\r\n"))
        return fail(err, "tools[%d].function.name: must be a name", i);
    if (parameters && !cJSON_IsObject(parameters))
        return fail(err, "tools[%d].function.parameters: must be an object", i);
    return 0;
}

cJSON *tools_read(const cJSON *tools, Error *err) {
    const cJSON *tool;
    int i = 0;
    tools = list_of(tools);
    if (!cJSON_IsArray(tools)) {
        fail(err, "tools: must be a list");
        return NULL;
    }
    cJSON *list = cJSON_CreateArray();
    cJSON_ArrayForEach(tool, tools) {
        int is_flat = !json_field(tool, "function") && json_field(tool, "name");
        const cJSON *type = json_field(tool, "type");
        if (is_flat && type && strcmp(cJSON_IsString(type) ? type->valuestring : "", "function")) is_flat = 0;
        cJSON *whole = is_flat ? wrapped(tool) : cJSON_Duplicate(tool, 1);
        cJSON *function = cJSON_GetObjectItemCaseSensitive(whole, "function");
        if (cJSON_IsObject(function) && !json_field(function, "parameters")) {
            cJSON_DeleteItemFromObjectCaseSensitive(function, "parameters");    /* null */
            copy_field(function, "parameters", parameters_of(function));
        }
        const char *name = cJSON_GetStringValue(json_field(function, "name"));
        int is_twice = name && tool_named(list, name);
        cJSON_AddItemToArray(list, whole);
        if (check_tool(whole, i, err) ||
            (is_twice && fail(err, "tools[%d].function.name: %s is there twice", i, name))) {
            cJSON_Delete(list);
            return NULL;
        }
        i++;
    }
    return list;
}

/* What other programs and services have beside a tool, and what says nothing to the model here. */
static int is_known_field(const char *name, int in_function) {
    static const char *const both[] = {
        "name", "description", "parameters", "inputSchema", "input_schema", "strict", "title",
        "response", "returns", "annotations", "outputSchema", "output_schema", "examples",
        "input_examples", NULL,
    };
    static const char *const outside[] = {
        "type", "function", "_meta", "icons", "execution", "cache_control", "defer_loading",
        "allowed_callers", "eager_input_streaming", NULL,
    };
    const char *const *list = both;
    if (!strncmp(name, "x-", 2)) return 1;
    for (; *list; list++)
        if (!strcmp(name, *list)) return 1;
    for (list = in_function ? list : outside; *list; list++)
        if (!strcmp(name, *list)) return 1;
    return 0;
}

static void add_unknown(Buf *names, const cJSON *o, int i, const char *inside) {
    const cJSON *field;
    if (!cJSON_IsObject(o)) return;
    cJSON_ArrayForEach(field, o) {
        if (is_known_field(field->string, *inside != 0)) continue;
        buf_printf(names, "%stools[%d].%s", names->len ? ", " : "", i, inside);
        if (*field->string && !strpbrk(field->string, " ,\"\t\r\n")) buf_puts(names, field->string);
        else json_quote(names, field->string, strlen(field->string));
    }
}

void tools_unknown(const cJSON *tools, Buf *names) {
    const cJSON *tool;
    int i = 0;
    tools = list_of(tools);
    cJSON_ArrayForEach(tool, tools) {
        add_unknown(names, tool, i, "");
        add_unknown(names, json_field(tool, "function"), i++, "function.");
    }
}

const cJSON *tool_named(const cJSON *tools, const char *name) {
    const cJSON *tool;
    cJSON_ArrayForEach(tool, tools) {
        const cJSON *function = json_field(tool, "function");
        const char *known = cJSON_GetStringValue(json_field(function, "name"));
        if (known && !strcmp(known, name)) return function;
    }
    return NULL;
}

/* ---- schemas as the template can print them ---- */

const cJSON *schema_behind_refs(const cJSON *root, const cJSON *schema) {
    const char *ref;
    for (int i = 0; i < MAX_REFS && (ref = cJSON_GetStringValue(json_field(schema, "$ref"))); i++)
        schema = json_pointer(root, ref);
    return schema;
}

typedef struct {
    const cJSON *root;
    const cJSON *open[MAX_REFS];        /* what the $refs around this place name: a $ref to one of them is a circle */
    int n_open, n_values;
} Expander;

static cJSON *expanded(Expander *x, const cJSON *schema);

/* Adds the fields of `more` that `to` does not have: what stands beside a $ref says it more closely. */
static void add_missing(cJSON *to, const cJSON *more) {
    const cJSON *field;
    cJSON_ArrayForEach(field, more)
        if (!cJSON_GetObjectItemCaseSensitive(to, field->string))
            cJSON_AddItemToObject(to, field->string, cJSON_Duplicate(field, 1));
}

/* Whether null alone meets the schema, in any of the ways to say so. */
static int is_null_schema(const cJSON *schema) {
    const cJSON *type = json_field(schema, "type"), *list = json_field(schema, "enum");
    const char *name = cJSON_GetStringValue(cJSON_IsArray(type) && cJSON_GetArraySize(type) == 1 ? type->child : type);
    if (name) return !strcmp(name, "null");
    if (cJSON_IsArray(list)) return cJSON_GetArraySize(list) == 1 && cJSON_IsNull(list->child);
    return cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(schema, "const"));
}

/* The X of a choice between X and null, or of one X alone; NULL for anything else. */
static const cJSON *only_choice(const cJSON *schema, const char *keyword, int *nullable) {
    const cJSON *list = json_field(schema, keyword), *item, *found = NULL;
    int n = 0, n_null = 0;
    cJSON_ArrayForEach(item, list) {
        if (is_null_schema(item)) n_null++;
        else found = item, n++;
    }
    *nullable = n_null > 0;
    int is_all = !strcmp(keyword, "allOf");     /* which null would empty */
    return cJSON_IsArray(list) && n == 1 && n_null <= !is_all ? found : NULL;
}

static int is_open(const Expander *x, const cJSON *schema) {
    for (int i = 0; i < x->n_open; i++)
        if (x->open[i] == schema) return 1;
    return 0;
}

/* Puts what a $ref names in its place.  Of a circle only the type and the description are told. */
static void expand_ref(Expander *x, cJSON *copy, const cJSON *schema) {
    const char *ref = cJSON_GetStringValue(json_field(schema, "$ref"));
    const cJSON *there = ref ? json_pointer(x->root, ref) : NULL;
    if (!cJSON_IsObject(there)) return;
    cJSON_DeleteItemFromObjectCaseSensitive(copy, "$ref");
    if (is_open(x, there) || x->n_open == MAX_REFS) {
        if (!json_field(copy, "type")) copy_field(copy, "type", json_field(there, "type"));
        if (!json_field(copy, "description")) copy_field(copy, "description", json_field(there, "description"));
        return;
    }
    x->open[x->n_open++] = there;
    cJSON *inner = expanded(x, there);
    x->n_open--;
    add_missing(copy, inner);
    cJSON_Delete(inner);
}

static void expand_choice(cJSON *copy, const char *keyword) {
    int nullable;
    const cJSON *only = only_choice(copy, keyword, &nullable);
    if (!only) return;
    cJSON *inner = cJSON_DetachItemFromObjectCaseSensitive(copy, keyword);
    add_missing(copy, only);
    cJSON_Delete(inner);
    if (nullable && !json_field(copy, "nullable")) cJSON_AddTrueToObject(copy, "nullable");
}

/* What is not a schema although it stands inside of one, or is told where a $ref names it. */
static int is_data(const char *keyword) {
    static const char *const data[] = {"enum", "const", "default", "examples", "required", "$defs", "definitions"};
    for (size_t i = 0; i < sizeof data / sizeof *data; i++)
        if (keyword && !strcmp(keyword, data[i])) return 1;
    return 0;
}

/* A copy in which every $ref and every choice with null is written out, at every level. */
static cJSON *expanded(Expander *x, const cJSON *schema) {
    int is_list = cJSON_IsArray(schema);
    if (!cJSON_IsObject(schema) && !is_list) return cJSON_Duplicate(schema, 1);
    cJSON *copy = is_list ? cJSON_CreateArray() : cJSON_CreateObject();
    const cJSON *field;
    cJSON_ArrayForEach(field, schema) {
        if (++x->n_values > MAX_SCHEMA) return copy;
        int as_it_is = is_data(field->string) && !cJSON_IsObject(field);
        cJSON *value = as_it_is ? cJSON_Duplicate(field, 1) : expanded(x, field);
        if (is_list) cJSON_AddItemToArray(copy, value);
        else cJSON_AddItemToObject(copy, field->string, value);
    }
    if (is_list) return copy;
    expand_ref(x, copy, schema);
    expand_choice(copy, "anyOf");
    expand_choice(copy, "oneOf");
    expand_choice(copy, "allOf");
    return copy;
}

cJSON *declared_parameters(const cJSON *parameters) {
    Expander x = {.root = parameters};
    cJSON *copy = expanded(&x, parameters);
    if (x.n_values <= MAX_SCHEMA) return copy;
    cJSON_Delete(copy);                 /* its $refs multiply: the model is told the schema as it stands */
    return cJSON_Duplicate(parameters, 1);
}
