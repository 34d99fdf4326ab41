/* declare.h - the tools that a request declares: brought into one shape, and their schemas as
 * the chat template can print them. */
#ifndef DECLARE_H
#define DECLARE_H

#include <cjson/cJSON.h>

#include "util.h"

/* Brings tools into the shape of chat-completions requests, [{"type": "function", "function":
 * {"name", "description", "parameters"}}].  They may have that shape, be a flat list as in the
 * Responses API, or a list with `inputSchema` as MCP servers give it, alone, as {"tools": […]}
 * or as the whole answer {"result": {"tools": […]}}.  Returns a new list that the caller frees
 * with cJSON_Delete; NULL with err, which names the tool and the field ("tools[2].function.name:
 * …").  Two tools of one name are an error. */
cJSON *tools_read(const cJSON *tools, Error *err);

/* Adds the unknown fields of tools, which have no effect, to a list as "tools[0].function.foo,
 * tools[1].bar".  `tools` may have any shape that tools_read takes.  The fields that OpenAI's,
 * Anthropic's and MCP's tools have (strict, cache_control, …) are known, and so are x-…. */
void tools_unknown(const cJSON *tools, Buf *names);

/* The function of that name in a list from tools_read, or NULL. */
const cJSON *tool_named(const cJSON *tools, const char *name);

/* A copy of a tool's parameters as the chat template can print them, which the caller frees with
 * cJSON_Delete.  The template ignores `$ref`, `anyOf`, `oneOf`, `allOf` and `const`.  So a `$ref`
 * into the document becomes a copy of what it names, a choice between X and null becomes X with
 * `nullable`, a list of one schema becomes that schema, allOf becomes one schema, a choice between
 * strings an enum, one between objects an object with the properties of all of them, and any other
 * choice the types that it names, with the descriptions of all.  A const that is a string becomes
 * an enum.  A type that is missing, or a list of one type and null, becomes that type where the
 * template prints more for it.  Of a $ref inside of what it names only the type and the description
 * are copied.  A schema that would grow too large is copied unchanged. */
cJSON *declared_parameters(const cJSON *parameters);

/* Follows the $ref of `schema`, and that of what it names, through the document `root` to a
 * schema without a $ref.  NULL where a $ref leads nowhere. */
const cJSON *schema_behind_refs(const cJSON *root, const cJSON *schema);

#endif
