/* declare.h - the tools that a request declares: one shape for all, and how their schemas are told to the model. */
#ifndef DECLARE_H
#define DECLARE_H

#include <cjson/cJSON.h>

#include "util.h"

/* The tools as chat-completions requests have them, [{"type": "function", "function": {"name",
 * "description", "parameters"}}], from any of these: that list; a flat list as in the Responses API;
 * a list with `inputSchema` as MCP servers give it, alone, as {"tools": […]} or as the whole answer
 * {"result": {"tools": […]}}.  Returns a new list that the caller frees with cJSON_Delete, or NULL
 * with err, which names the tool and the field ("tools[2].function.name: …"); so it is for two
 * tools of one name. */
cJSON *tools_read(const cJSON *tools, Error *err);

/* Adds the fields of the tools, in any of these shapes, that nobody knows and that have no effect,
 * to a list as "tools[0].function.foo, tools[1].bar".  Not among them is what OpenAI's, Anthropic's
 * and MCP's tools have beside a name, a description and parameters (strict, cache_control …), and
 * x-…. */
void tools_unknown(const cJSON *tools, Buf *names);

/* The function of that name in a list from tools_read, or NULL. */
const cJSON *tool_named(const cJSON *tools, const char *name);

/* A copy of a tool's parameters as the chat template can print them, which the caller frees.  The
 * template prints nothing of `$ref` and `anyOf`, so a `$ref` into the document becomes a copy of what
 * it names, a choice between X and null becomes X with `nullable`, and an `allOf` of one schema that
 * schema.  A $ref inside of what it names is left as it is. */
cJSON *declared_parameters(const cJSON *parameters);

/* The schema that stands behind the $refs of `schema`, in the document `root`; NULL where one of
 * them leads nowhere. */
const cJSON *schema_behind_refs(const cJSON *root, const cJSON *schema);

#endif
