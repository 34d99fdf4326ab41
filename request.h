/* request.h - a request as JSON: the body of an OpenAI chat-completions request, checked and rendered. */
#ifndef REQUEST_H
#define REQUEST_H

#include "generate.h"

typedef struct {
    cJSON *json;                        /* the line; */
    char *custom_id;                    /* of a batch, as JSON text, NULL: none */
    Prompt prompt;
    Generation g;                       /* prompt, sampling, limits, stop, tools and chat filled in */
    Buf warnings;                       /* a line for what was asked for and had no effect; empty: none */
    int logprobs, top_logprobs;
    int stream, include_usage;
    int n;                              /* choices asked for */
    cJSON *own_tools;                   /* those of the request, NULL: none; g.tools may be the program's */
    int must_call, several;             /* tool_choice required or named; parallel_tool_calls */
    const char *tool;                   /* the named one, NULL: any */
    const cJSON *schema;                /* of the content, NULL: anything */
    const char *schema_field;           /* the request's field that holds it, or the option */
    cJSON *own_schema;                  /* where the request holds no tree of it */
    LogitBias *bias;                    /* of g.sampling */
} Request;

/* Parses text, also a line of a batch file ({"custom_id": …, "body": request}); what it does not say is
 * taken from e (whose model and session may be missing).  A field that is known from other servers and
 * not supported here is an error, unless its value asks for nothing; one that nobody knows is named in
 * r->warnings.  Returns 0, or -1 with err, which names the field.  request_free either way. */
int request_parse(const Engine *e, const char *text, size_t n, Request *r, Error *err);
void request_free(Request *r);

#endif
