/* declare.c - the tools that a request declares.  See declare.h. */
#include "declare.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"

/* Limits, chosen by judgement.  A prompt has no room for a schema that comes near MAX_SCHEMA. */
#define MAX_REFS 64                     /* $refs inside of each other: more are taken for a cycle */
#define MAX_SCHEMA 100000               /* values of a schema whose $refs have been replaced */
#define MAX_JOINED 1000                 /* objects that become one: each pair is compared */

/* ---- one shape for all tools ---- */

/* The list of functions in an object of Gemini's API, or NULL. */
static const cJSON *gemini_functions(const cJSON *o) {
    const cJSON *list = json_field(o, "functionDeclarations");
    return list ? list : json_field(o, "function_declarations");
}

/* The tools in {"result": {"tools": […]}}, {"tools": […]} or […], where an item may also be
 * Gemini's {"functionDeclarations": […]}.  A list of references, which the caller frees; NULL:
 * there is no list. */
static cJSON *list_of(const cJSON *tools) {
    const cJSON *item, *inner;
    if (cJSON_IsObject(tools) && json_field(tools, "result")) tools = json_field(tools, "result");
    if (cJSON_IsObject(tools)) tools = json_field(tools, "tools");
    if (!cJSON_IsArray(tools)) return NULL;
    cJSON *list = cJSON_CreateArray();
    cJSON_ArrayForEach(item, tools) {
        const cJSON *functions = gemini_functions(item);
        if (!cJSON_IsArray(functions)) cJSON_AddItemReferenceToArray(list, (cJSON *)item);
        else cJSON_ArrayForEach(inner, functions)
            cJSON_AddItemReferenceToArray(list, (cJSON *)inner);
    }
    return list;
}

static void copy_field(cJSON *to, const char *name, const cJSON *value) {
    if (value) cJSON_AddItemToObject(to, name, cJSON_Duplicate(value, 1));
}

/* The parameters of a tool under any of their names, or NULL. */
static const cJSON *parameters_of(const cJSON *tool) {
    static const char *const names[] = {"parameters", "inputSchema", "input_schema",
                                        "parametersJsonSchema", "parameters_json_schema"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (json_field(tool, names[i])) return json_field(tool, names[i]);
    return NULL;
}

/* A flat tool, as in the Responses API and in MCP, with its fields moved into a "function".  A
 * new tree. */
static cJSON *wrapped(const cJSON *tool) {
    cJSON *whole = cJSON_CreateObject(), *function = cJSON_AddObjectToObject(whole, "function");
    cJSON_AddStringToObject(whole, "type", "function");
    copy_field(function, "name", json_field(tool, "name"));
    copy_field(function, "description", json_field(tool, "description"));
    copy_field(function, "parameters", parameters_of(tool));
    return whole;
}

/* Checks tool i, which has the one shape.  Returns 0, or -1 with err. */
static int check_tool(const cJSON *tool, int i, Error *err) {
    const cJSON *function = json_field(tool, "function"), *type = json_field(tool, "type");
    const cJSON *parameters = json_field(function, "parameters");
    const char *name = json_string(function, "name");
    if (type && (!cJSON_IsString(type) || strcmp(type->valuestring, "function")))
        return fail(err, "tools[%d].type: must be function", i);
    if (!cJSON_IsObject(function)) return fail(err, "tools[%d].function: must be an object", i);
    if (!name || !*name || strpbrk(name, "{}()[]\"'`, \t\r\n"))
        return fail(err, "tools[%d].function.name: must be a name", i);
    if (parameters && !cJSON_IsObject(parameters))
        return fail(err, "tools[%d].function.parameters: must be an object", i);
    return 0;
}

/* Whether a tool has its fields at its top; its type, where it has one, must be "function", or
 * Anthropic's "custom" beside an input_schema. */
static int is_flat(const cJSON *tool) {
    const cJSON *type = json_field(tool, "type");
    const char *word = cJSON_GetStringValue(type);
    if (json_field(tool, "function") || !json_field(tool, "name")) return 0;
    if (word && !strcmp(word, "custom")) return json_field(tool, "input_schema") != NULL;
    return !type || (word && !strcmp(word, "function"));
}

/* A new tree of a tool in the one shape. */
static cJSON *shaped(const cJSON *tool) {
    cJSON *whole = is_flat(tool) ? wrapped(tool) : cJSON_Duplicate(tool, 1);
    cJSON *function = cJSON_GetObjectItemCaseSensitive(whole, "function");
    if (cJSON_IsObject(function) && !json_field(function, "parameters")) {
        cJSON_DeleteItemFromObjectCaseSensitive(function, "parameters");        /* a null */
        copy_field(function, "parameters", parameters_of(function));
    }
    return whole;
}

cJSON *tools_read(const cJSON *tools, Error *err) {
    const cJSON *tool;
    int i = 0, bad = 0;
    cJSON *given = list_of(tools), *list = cJSON_CreateArray();
    if (!given) bad = fail(err, "tools: must be a list");
    cJSON_ArrayForEach(tool, given) {
        cJSON *whole = shaped(tool);
        const cJSON *function = json_field(whole, "function");
        const char *name = json_string(function, "name");
        int is_twice = name && tool_named(list, name);
        cJSON_AddItemToArray(list, whole);
        bad = check_tool(whole, i, err);
        if (!bad && is_twice)
            bad = fail(err, "tools[%d].function.name: %s is there twice", i, name);
        if (bad) break;
        i++;
    }
    cJSON_Delete(given);
    if (!bad) return list;
    cJSON_Delete(list);
    return NULL;
}

/* Whether a field is one that services and programs give to tools, at the top or in "function".
 * Most of them say nothing to the model. */
static int is_known_field(const char *name, int in_function) {
    static const char *const both[] = {
        "name", "description", "parameters", "inputSchema", "input_schema", "parametersJsonSchema",
        "parameters_json_schema", "strict", "title", "response", "returns", "annotations",
        "outputSchema", "output_schema", "examples", "input_examples", NULL,
    };
    static const char *const outside[] = {
        "type", "function", "_meta", "icons", "execution", "cache_control", "defer_loading",
        "allowed_callers", "eager_input_streaming", NULL,
    };
    return begins(name, "x-") || is_in(name, both) || (!in_function && is_in(name, outside));
}

/* Adds the unknown fields of o, a part of tool i.  inside: "function." or "". */
static void add_unknown(Buf *names, const cJSON *o, int i, const char *inside) {
    const cJSON *field;
    if (!cJSON_IsObject(o)) return;
    cJSON_ArrayForEach(field, o) {
        if (is_known_field(field->string, *inside != 0)) continue;
        buf_printf(names, "%stools[%d].%s", names->len ? ", " : "", i, inside);
        if (*field->string && !strpbrk(field->string, " ,\"\t\r\n")) buf_puts(names, field->string);
        else json_quote_text(names, field->string);
    }
}

void tools_unknown(const cJSON *tools, Buf *names) {
    const cJSON *tool;
    cJSON *list = list_of(tools);
    int i = 0;
    cJSON_ArrayForEach(tool, list) {
        add_unknown(names, tool, i, "");
        add_unknown(names, json_field(tool, "function"), i++, "function.");
    }
    cJSON_Delete(list);
}

const cJSON *tool_named(const cJSON *tools, const char *name) {
    const cJSON *tool;
    cJSON_ArrayForEach(tool, tools) {
        const cJSON *function = json_field(tool, "function");
        const char *known = json_string(function, "name");
        if (known && !strcmp(known, name)) return function;
    }
    return NULL;
}

/* ---- schemas as the template can print them ---- */

const cJSON *schema_behind_refs(const cJSON *root, const cJSON *schema) {
    const char *ref;
    for (int i = 0; i < MAX_REFS && (ref = json_string(schema, "$ref")); i++)
        schema = json_pointer(root, ref);
    return schema;
}

typedef struct {
    const cJSON *root;                  /* the document */
    const cJSON *open[MAX_REFS];        /* [n_open] the schemas that are being expanded around
                                         * this place: a $ref to one of them is a cycle */
    int n_open;
    int n_values;                       /* of the copy so far */
} Expander;

static cJSON *expanded(Expander *x, const cJSON *schema, int is_map);

/* Copies the fields of `more` that `to` lacks.  A field that `to` has, beside its $ref, is the more
 * specific one and stays. */
static void add_missing(cJSON *to, const cJSON *more) {
    const cJSON *field;
    cJSON_ArrayForEach(field, more)
        if (!cJSON_GetObjectItemCaseSensitive(to, field->string))
            cJSON_AddItemToObject(to, field->string, cJSON_Duplicate(field, 1));
}

/* Whether the list of names has this one. */
static int has_name(const cJSON *list, const cJSON *name) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
        if (cJSON_IsString(item) && cJSON_IsString(name) &&
            !strcmp(item->valuestring, name->valuestring))
            return 1;
    return 0;
}

/* Adds what `more` says, a schema that holds beside `to`: its properties, the names that it
 * requires, and the fields that `to` lacks. */
static void add_beside(cJSON *to, const cJSON *more) {
    cJSON *properties = cJSON_GetObjectItemCaseSensitive(to, "properties"), *own;
    cJSON *required = cJSON_GetObjectItemCaseSensitive(to, "required");
    const cJSON *others = json_field(more, "properties"), *field;
    if (cJSON_IsObject(properties) && cJSON_IsObject(others))
        cJSON_ArrayForEach(field, others) {
            own = cJSON_GetObjectItemCaseSensitive(properties, field->string);
            if (!own) cJSON_AddItemToObject(properties, field->string, cJSON_Duplicate(field, 1));
            else if (cJSON_IsObject(own)) add_beside(own, field);
        }
    if (cJSON_IsArray(required))
        cJSON_ArrayForEach(field, json_field(more, "required"))
            if (!has_name(required, field))
                cJSON_AddItemToArray(required, cJSON_Duplicate(field, 1));
    add_missing(to, more);
}

/* Whether only null satisfies the schema: by type "null" or ["null"], enum [null] or const null. */
static int is_null_schema(const cJSON *schema) {
    const cJSON *type = json_field(schema, "type"), *list = json_field(schema, "enum");
    if (cJSON_IsArray(type) && cJSON_GetArraySize(type) == 1) type = type->child;
    const char *name = cJSON_GetStringValue(type);
    if (name) return !strcasecmp(name, "null");
    if (cJSON_IsArray(list)) return cJSON_GetArraySize(list) == 1 && cJSON_IsNull(list->child);
    return cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(schema, "const"));
}

/* The X where a keyword (anyOf, oneOf or allOf) lists only X, or X and null (*nullable); else
 * NULL. */
static const cJSON *only_choice(const cJSON *schema, const char *keyword, int *nullable) {
    const cJSON *list = json_field(schema, keyword), *item, *found = NULL;
    int n = 0, n_null = 0;
    cJSON_ArrayForEach(item, list) {
        if (is_null_schema(item)) {
            n_null++;
            continue;
        }
        found = item;
        n++;
    }
    *nullable = n_null > 0;
    int most = !strcmp(keyword, "allOf") ? 0 : 1;       /* allOf of X and null allows nothing */
    return cJSON_IsArray(list) && n == 1 && n_null <= most ? found : NULL;
}

/* Whether a schema is being expanded around this place. */
static int is_being_expanded(const Expander *x, const cJSON *schema) {
    for (int i = 0; i < x->n_open; i++)
        if (x->open[i] == schema) return 1;
    return 0;
}

/* Replaces the $ref of `copy`, the copy of a schema, by a copy of what it names; in a cycle by
 * the type and the description alone. */
static void expand_ref(Expander *x, cJSON *copy, const cJSON *schema) {
    const char *ref = json_string(schema, "$ref");
    const cJSON *there = ref ? json_pointer(x->root, ref) : NULL;
    if (!cJSON_IsObject(there)) return;
    cJSON_DeleteItemFromObjectCaseSensitive(copy, "$ref");
    if (is_being_expanded(x, there) || x->n_open == MAX_REFS) {
        static const char *const told[] = {"type", "description"};
        for (int i = 0; i < 2; i++)
            if (!json_field(copy, told[i])) copy_field(copy, told[i], json_field(there, told[i]));
        return;
    }
    x->open[x->n_open++] = there;
    cJSON *inner = expanded(x, there, 0);
    x->n_open--;
    add_beside(copy, inner);
    cJSON_Delete(inner);
}

/* Replaces anyOf, oneOf or allOf (keyword) by the only schema in it, if there is just one beside
 * null. */
static void expand_choice(cJSON *copy, const char *keyword) {
    int nullable;
    const cJSON *only = only_choice(copy, keyword, &nullable);
    if (!only) return;
    cJSON *inner = cJSON_DetachItemFromObjectCaseSensitive(copy, keyword);
    add_beside(copy, only);
    cJSON_Delete(inner);
    if (nullable && !json_field(copy, "nullable")) cJSON_AddTrueToObject(copy, "nullable");
}

/* Adds what the schemas of allOf say to `copy`; of a field that is no property the first counts. */
static void join_all(cJSON *copy) {
    const cJSON *item;
    if (!cJSON_IsArray(json_field(copy, "allOf"))) return;
    cJSON *list = cJSON_DetachItemFromObjectCaseSensitive(copy, "allOf");
    cJSON_ArrayForEach(item, list) add_beside(copy, item);
    cJSON_Delete(list);
}

/* Adds the strings that a schema's const or enum lists.  Returns 0 where it has neither, or another
 * value. */
static int add_strings(cJSON *list, const cJSON *schema) {
    const cJSON *one = json_field(schema, "const"), *many = json_field(schema, "enum"), *item;
    if (cJSON_IsString(one)) cJSON_AddItemToArray(list, cJSON_CreateString(one->valuestring));
    if (one || !cJSON_IsArray(many)) return cJSON_IsString(one);
    cJSON_ArrayForEach(item, many) {
        if (!cJSON_IsString(item)) return 0;
        cJSON_AddItemToArray(list, cJSON_CreateString(item->valuestring));
    }
    return 1;
}

/* Removes anyOf or oneOf (keyword), whose alternatives `copy` says in another way now.  Before, it
 * copies what they say of null, and their descriptions where it has none, with ` / ` between. */
static void replace_choice(cJSON *copy, const char *keyword) {
    const cJSON *item, *told;
    cJSON *choices = cJSON_DetachItemFromObjectCaseSensitive(copy, keyword);
    cJSON *list = cJSON_CreateArray();
    Buf text = {0};
    int nullable = 0;
    cJSON_ArrayForEach(item, choices) {
        nullable |= is_null_schema(item) || cJSON_IsTrue(json_field(item, "nullable"));
        told = json_field(item, "description");
        if (!cJSON_IsString(told) || has_name(list, told)) continue;
        buf_printf(&text, "%s%s", list->child ? " / " : "", told->valuestring);
        cJSON_AddItemToArray(list, cJSON_Duplicate(told, 1));
    }
    if (text.len && !json_field(copy, "description"))
        cJSON_AddStringToObject(copy, "description", text.data);
    if (nullable && !json_field(copy, "nullable")) cJSON_AddTrueToObject(copy, "nullable");
    buf_free(&text);
    cJSON_Delete(list);
    cJSON_Delete(choices);
}

/* Makes an enum of anyOf or oneOf (keyword), all of whose alternatives list strings, or are
 * null. */
static void join_strings(cJSON *copy, const char *keyword) {
    const cJSON *choices = json_field(copy, keyword), *choice;
    if (!cJSON_IsArray(choices) || json_field(copy, "enum")) return;
    cJSON *all = cJSON_CreateArray(), *list = cJSON_CreateArray(), *item;
    int are_strings = 1;
    cJSON_ArrayForEach(choice, choices)
        are_strings = are_strings && (is_null_schema(choice) || add_strings(all, choice));
    while (are_strings && (item = cJSON_DetachItemFromArray(all, 0)))
        if (has_name(list, item)) cJSON_Delete(item);
        else cJSON_AddItemToArray(list, item);
    cJSON_Delete(all);
    if (!list->child) {
        cJSON_Delete(list);
        return;
    }
    replace_choice(copy, keyword);
    cJSON_AddItemToObject(copy, "enum", list);
}

/* The type whose fields the template prints and that `copy` has fields of; NULL: none. */
static const char *type_with_fields(const cJSON *copy) {
    if (cJSON_IsObject(json_field(copy, "properties"))) return "object";
    if (cJSON_IsObject(json_field(copy, "items"))) return "array";
    cJSON *list = cJSON_CreateArray();
    int are_strings = add_strings(list, copy) && json_field(copy, "enum");
    cJSON_Delete(list);
    return are_strings ? "string" : NULL;
}

/* Writes a const as the template reads it: as an enum.  Null in an enum beside other values becomes
 * `nullable`, unless a type forbids it. */
static void tell_enum(cJSON *copy) {
    const cJSON *one = json_field(copy, "const");
    cJSON *list = cJSON_GetObjectItemCaseSensitive(copy, "enum"), *item, *next;
    if (cJSON_IsString(one) && !list) {
        list = cJSON_AddArrayToObject(copy, "enum");
        cJSON_AddItemToArray(list, cJSON_Duplicate(one, 1));
    }
    if (cJSON_IsString(json_field(copy, "type")) || cJSON_GetArraySize(list) < 2) return;
    for (item = list->child; item; item = next) {
        next = item->next;
        if (!cJSON_IsNull(item)) continue;
        cJSON_Delete(cJSON_DetachItemViaPointer(list, item));
        if (!json_field(copy, "nullable")) cJSON_AddTrueToObject(copy, "nullable");
    }
}

/* Writes the type as the template reads it, where it would not print the fields of the schema
 * otherwise: because the type is missing, or is a list of one type, perhaps with null. */
static void tell_type(cJSON *copy) {
    const cJSON *type = json_field(copy, "type"), *item;
    const char *want = type_with_fields(copy);
    int is_known = !type, nullable = 0;
    if (!want || (type && !cJSON_IsArray(type))) return;
    cJSON_ArrayForEach(item, type) {
        const char *name = cJSON_IsString(item) ? item->valuestring : "";
        int is_null = !strcasecmp(name, "null");
        if (!is_null && strcasecmp(name, want)) return;
        nullable |= is_null;
        is_known |= !is_null;
    }
    if (!is_known) return;
    cJSON_DeleteItemFromObjectCaseSensitive(copy, "type");
    cJSON_AddStringToObject(copy, "type", want);
    if (nullable && !json_field(copy, "nullable")) cJSON_AddTrueToObject(copy, "nullable");
}

static void join_choices(cJSON *copy);

/* Adds a schema to `choice`, an anyOf and nothing else, unless it is there. */
static void add_choice(cJSON *choice, const cJSON *schema) {
    cJSON *list = cJSON_GetObjectItemCaseSensitive(choice, "anyOf"), *item;
    if (!list) list = cJSON_AddArrayToObject(choice, "anyOf");
    cJSON_ArrayForEach(item, list)
        if (cJSON_Compare(item, schema, 1)) return;
    cJSON_AddItemToArray(list, cJSON_Duplicate(schema, 1));
}

/* What such a choice becomes, as far as it can be said without anyOf.  Frees the choice. */
static cJSON *joined(cJSON *choice) {
    cJSON *list = cJSON_GetObjectItemCaseSensitive(choice, "anyOf"), *only;
    if (list->child->next) {
        join_choices(choice);
        tell_type(choice);
        return choice;
    }
    only = cJSON_DetachItemFromArray(list, 0);
    cJSON_Delete(choice);
    return only;
}

/* The properties of all alternatives, objects or null, that `choices` lists. */
static cJSON *joined_properties(const cJSON *choices) {
    cJSON *given = cJSON_CreateObject(), *properties = cJSON_CreateObject(), *choice;
    const cJSON *item, *field;
    cJSON_ArrayForEach(item, choices)
        cJSON_ArrayForEach(field, json_field(item, "properties")) {
            choice = cJSON_GetObjectItemCaseSensitive(given, field->string);
            if (!choice) choice = cJSON_AddObjectToObject(given, field->string);
            add_choice(choice, field);
        }
    while ((choice = cJSON_DetachItemFromArray(given, 0))) {
        char *name = strdup(choice->string);
        cJSON_AddItemToObject(properties, name, joined(choice));
        free(name);
    }
    cJSON_Delete(given);
    return properties;
}

/* Takes from `required` the names that the list `others` lacks. */
static void keep_common(cJSON *required, const cJSON *others) {
    for (cJSON *name = required->child, *next; name; name = next) {
        next = name->next;
        if (!has_name(others, name)) cJSON_Delete(cJSON_DetachItemViaPointer(required, name));
    }
}

/* The alternative of anyOf or oneOf (keyword) that is the first object; NULL where one is neither
 * an object nor null, or where they are too many. */
static const cJSON *first_object(const cJSON *copy, const char *keyword) {
    const cJSON *item, *choices = json_field(copy, keyword), *first = NULL;
    if (!cJSON_IsArray(choices) || cJSON_GetArraySize(choices) > MAX_JOINED) return NULL;
    cJSON_ArrayForEach(item, choices) {
        if (is_null_schema(item)) continue;
        if (!cJSON_IsObject(json_field(item, "properties"))) return NULL;
        if (!first) first = item;
    }
    return first;
}

/* Makes one object of anyOf or oneOf (keyword), all of whose alternatives are objects, or null: it
 * has its own properties and those of all of them, and requires what it or all of them require. */
static void join_objects(cJSON *copy, const char *keyword) {
    const cJSON *item, *field, *first = first_object(copy, keyword);
    if (!first) return;
    cJSON *properties = joined_properties(json_field(copy, keyword));
    cJSON *required = cJSON_CreateArray();
    cJSON_ArrayForEach(field, json_field(first, "required"))
        cJSON_AddItemToArray(required, cJSON_Duplicate(field, 1));
    cJSON_ArrayForEach(item, json_field(copy, keyword))
        if (!is_null_schema(item)) keep_common(required, json_field(item, "required"));
    cJSON_ArrayForEach(field, json_field(copy, "required"))
        if (!has_name(required, field))
            cJSON_AddItemToArray(required, cJSON_Duplicate(field, 1));
    cJSON_ArrayForEach(field, json_field(copy, "properties")) {
        cJSON *own = cJSON_GetObjectItemCaseSensitive(properties, field->string);
        if (own) add_missing(own, field);
        else cJSON_AddItemToObject(properties, field->string, cJSON_Duplicate(field, 1));
    }
    replace_choice(copy, keyword);
    cJSON_DeleteItemFromObjectCaseSensitive(copy, "properties");
    cJSON_DeleteItemFromObjectCaseSensitive(copy, "required");
    cJSON_AddItemToObject(copy, "properties", properties);
    if (required->child) cJSON_AddItemToObject(copy, "required", required);
    else cJSON_Delete(required);
}

/* Adds a type to a list of types that lacks it.  "null" becomes *nullable. */
static void add_type(cJSON *types, const cJSON *type, int *nullable) {
    if (!strcasecmp(type->valuestring, "null")) *nullable = 1;
    else if (!has_name(types, type)) cJSON_AddItemToArray(types, cJSON_Duplicate(type, 1));
}

/* The schema of the elements of lists, one of the alternatives `choices`; NULL: it is not known. */
static cJSON *joined_items(const cJSON *choices) {
    const cJSON *item, *items;
    cJSON *choice = cJSON_CreateObject();
    cJSON_ArrayForEach(item, choices) {
        if (is_null_schema(item)) continue;
        if (!cJSON_IsObject(items = json_field(item, "items"))) {
            cJSON_Delete(choice);
            return NULL;
        }
        add_choice(choice, items);
    }
    return joined(choice);
}

/* Makes a list of types, or one type, of anyOf or oneOf (keyword), each of whose alternatives has
 * one, or a list. */
static void join_types(cJSON *copy, const char *keyword) {
    const cJSON *item, *one, *choices = json_field(copy, keyword);
    int nullable = 0;
    if (!cJSON_IsArray(choices) || json_field(copy, "type")) return;
    cJSON *types = cJSON_CreateArray();
    cJSON_ArrayForEach(item, choices) {
        const cJSON *type = json_field(item, "type");
        if (is_null_schema(item)) continue;
        if (cJSON_IsString(type)) add_type(types, type, &nullable);
        else if (!cJSON_IsArray(type)) break;
        else cJSON_ArrayForEach(one, type)
            if (cJSON_IsString(one)) add_type(types, one, &nullable);
    }
    int are_known = !item && types->child, is_one = are_known && !types->child->next;
    cJSON *type = is_one ? cJSON_DetachItemFromArray(types, 0) : types;
    if (is_one) cJSON_Delete(types);
    if (!are_known) {
        cJSON_Delete(type);
        return;
    }
    int are_lists = is_one && !strcasecmp(type->valuestring, "array") &&
                    cJSON_GetArraySize(choices) <= MAX_JOINED;
    cJSON *items = are_lists ? joined_items(choices) : NULL;
    replace_choice(copy, keyword);
    cJSON_AddItemToObject(copy, "type", type);
    if (items && !json_field(copy, "items")) cJSON_AddItemToObject(copy, "items", items);
    else cJSON_Delete(items);
    if (nullable && !json_field(copy, "nullable")) cJSON_AddTrueToObject(copy, "nullable");
}

/* Says anyOf and oneOf in another way, where that is possible. */
static void join_choices(cJSON *copy) {
    static void (*const join[])(cJSON *, const char *) = {join_strings, join_objects, join_types};
    for (int i = 0; i < 3; i++) {
        join[i](copy, "anyOf");
        join[i](copy, "oneOf");
    }
}

/* Whether a keyword's value is data, or holds schemas that only a $ref brings into the schema. */
static int is_data(const char *keyword) {
    static const char *const data[] = {"enum", "const", "default", "example", "examples",
                                       "required", "$defs", "definitions", NULL};
    return keyword && is_in(keyword, data);
}

/* A copy of a schema, of a list of schemas or of any value, in which each $ref and each choice
 * with null is replaced, at every level.  is_map: the value is an object of schemas, as that of
 * `properties`.  Incomplete where x->n_values exceeds MAX_SCHEMA. */
static cJSON *expanded(Expander *x, const cJSON *schema, int is_map) {
    int is_list = cJSON_IsArray(schema);
    if (!cJSON_IsObject(schema) && !is_list) return cJSON_Duplicate(schema, 1);
    cJSON *copy = is_list ? cJSON_CreateArray() : cJSON_CreateObject();
    const cJSON *field;
    cJSON_ArrayForEach(field, schema) {
        if (++x->n_values > MAX_SCHEMA) return copy;
        int is_map_here = !is_map && field->string && !strcmp(field->string, "properties");
        int as_it_is = !is_map && is_data(field->string);
        cJSON *value = as_it_is ? cJSON_Duplicate(field, 1) : expanded(x, field, is_map_here);
        if (is_list) cJSON_AddItemToArray(copy, value);
        else cJSON_AddItemToObject(copy, field->string, value);
    }
    if (is_list || is_map) return copy;
    expand_ref(x, copy, schema);
    expand_choice(copy, "anyOf");
    expand_choice(copy, "oneOf");
    expand_choice(copy, "allOf");
    join_all(copy);
    join_choices(copy);
    if (schema == x->root) return copy;        /* of the root, the template prints the fields */
    tell_enum(copy);
    tell_type(copy);
    return copy;
}

cJSON *declared_parameters(const cJSON *parameters) {
    Expander x = {.root = parameters};
    cJSON *copy = expanded(&x, parameters, 0);
    if (x.n_values <= MAX_SCHEMA) return copy;
    cJSON_Delete(copy);
    return cJSON_Duplicate(parameters, 1);
}
