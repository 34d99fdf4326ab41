/* request.h - reads a request: the body of an OpenAI chat-completions request, checked and rendered
 * as a prompt. */
#ifndef REQUEST_H
#define REQUEST_H

#include "generate.h"

/* Owns all that it points to, except what belongs to the Engine (see g.tools, schema). */
typedef struct {
    cJSON *json;                        /* the whole text; many pointers below point into it */
    char *custom_id;                    /* of a batch's line, as JSON; NULL: this is no batch */
    Prompt prompt;
    Generation g;                       /* prompt, sampling, limits, stop, tools and chat are set */
    Buf warnings;                       /* a line for each thing asked for that had no effect */
    int logprobs, top_logprobs;
    int stream, include_usage;
    int n;                              /* number of choices asked for */
    cJSON *own_tools;                   /* the request's; NULL: none.  g.tools: these or the
                                         * Engine's */
    int must_call;                      /* tool_choice: 1: the answer must call a tool */
    int several;                        /* parallel_tool_calls: 1: the answer may call several */
    const char *tool;                   /* the tool that it must call; NULL: any */
    const cJSON *schema;                /* of the content: in json, own_schema or the Engine's;
                                         * NULL: any content */
    const char *schema_field;           /* the field, or the option, that the schema came from */
    cJSON *own_schema;                  /* a schema that was parsed or made here; else NULL */
    LogitBias *bias;                    /* g.sampling.bias */
} Request;

/* Parses text[0..n), a request or a line of a batch file ({"custom_id": …, "body": request}).  What
 * the request does not say is taken from e, whose model and session may be NULL.  A field that
 * other servers know and this program does not support is an error, unless its value asks for what
 * is done anyway.  An unknown field is named in r->warnings.  Returns 0, or -1 with err, which
 * names the field.  The caller calls request_free in either case. */
int request_parse(const Engine *e, const char *text, size_t n, Request *r, Error *err);
void request_free(Request *r);

#endif
