/* jsonl.h - answers requests that come as JSON lines. */
#ifndef JSONL_H
#define JSONL_H

#include <stdio.h>

#include "generate.h"

/* Answers the requests of `in`, one to a line, on stdout, in their order.  Skips empty lines.  If
 * stderr is a terminal, a line there shows how many are done.  Returns the exit status: 0, or 1
 * when a request was answered by an error object. */
int run_jsonl(Engine *e, FILE *in);

#endif
