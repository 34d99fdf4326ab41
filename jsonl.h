/* jsonl.h - requests as JSON: the body of an OpenAI chat-completions request, a line each. */
#ifndef JSONL_H
#define JSONL_H

#include <stdio.h>

#include "generate.h"

/* A request, checked and rendered. */
typedef struct {
    cJSON *json;                        /* the line; */
    const char *custom_id;              /* of a batch, NULL: none */
    Prompt prompt;
    Generation g;                       /* prompt, sampling, max_tokens, stop and thinking filled in */
    int logprobs, top_logprobs;
    int stream, include_usage;
    int n;                              /* choices asked for */
    const cJSON *tools;                 /* NULL: none */
    int must_call, several;             /* tool_choice required or named; parallel_tool_calls */
    const char *tool;                   /* the named one, NULL: any */
    const cJSON *schema;                /* of the content, NULL: anything */
} Request;

/* Parses text, also a line of a batch file ({"custom_id": …, "body": request}); what it does not say is taken from e (whose model and
 * session may be missing).  Returns 0, or -1 with err, which names the field.  request_free either way. */
int request_parse(const Engine *e, const char *text, size_t n, Request *r, Error *err);
void request_free(Request *r);

/* Adds calls as a JSON list of OpenAI's tool_calls.  n_prompt: tokens of the prompt, which make the ids differ along a
 * conversation.  `numbered`: with the index that a chunk has; first: the number of calls[0]. */
void put_tool_calls(Buf *out, const ToolCall *calls, int n, int n_prompt, int numbered, int first);

int is_tool(const cJSON *tools, const char *name);

/* NULL, or the name of the first call that is none of these tools. */
const char *unknown_call(const Generation *g, const cJSON *tools);

/* Answers the requests of `in`, a line each, on stdout, in order.  Empty lines are skipped.  Returns the exit status: 0, or
 * 1 when a line gave an error object. */
int run_jsonl(Engine *e, FILE *in);

#endif
