/* jsonl.h - requests as JSON lines, and their answers. */
#ifndef JSONL_H
#define JSONL_H

#include <stdio.h>

#include "generate.h"

/* Answers the requests of `in`, a line each, on stdout, in order.  Empty lines are skipped.  Where
 * stderr is a terminal, a line there says how far they are.  Returns the exit status: 0, or 1 when
 * a line gave an error object. */
int run_jsonl(Engine *e, FILE *in);

#endif
