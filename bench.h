/* bench.h - `gemma4 bench`: how fast this machine is, in the scenarios that are quoted. */
#ifndef BENCH_H
#define BENCH_H

#include "generate.h"

#define BENCH_CONTEXT 50000             /* the longest prompt of a scenario */
#define BENCH_ROOM (BENCH_CONTEXT + 2048)       /* the context with which a session has room for all of them */

typedef struct {
    const char *scenario;               /* "all", or one of bench_scenarios */
    int json;                           /* JSON instead of a table */
    const char *plot_file;              /* NULL, or an SVG of the rates against the context */
    int max_tokens;                     /* answers are no longer than this; -1: as the scenario says */
} BenchOptions;

extern const char *const bench_scenarios[];     /* names, NULL at the end */

/* Runs the scenarios, each without and, where the engine has one, with the drafter, and prints as it goes.  0, or -1 with err. */
int run_bench(const Engine *e, const BenchOptions *o, Error *err);

#endif
