/* jsonl.h - requests as JSON: the body of an OpenAI chat-completions request, a line each. */
#ifndef JSONL_H
#define JSONL_H

#include <stdio.h>

#include "generate.h"

/* A request, checked and rendered. */
typedef struct {
    cJSON *json;
    Prompt prompt;
    Generation g;                       /* prompt, sampling, max_tokens, stop and thinking filled in */
    int logprobs, top_logprobs;
    int stream, include_usage;
} Request;

/* Parses text; what it does not say is taken from e (whose model and session may be missing).  Returns 0, or -1 with
 * err, which names the field.  request_free either way. */
int request_parse(const Engine *e, const char *text, size_t n, Request *r, Error *err);
void request_free(Request *r);

/* Answers the requests of `in`, a line each, on stdout, in order.  Empty lines are skipped.  Returns the exit status: 0, or
 * 1 when a line gave an error object. */
int run_jsonl(const Engine *e, FILE *in);

#endif
