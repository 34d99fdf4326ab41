/* bench.h - `gemma4 bench`: measures how fast this machine is, in fixed scenarios. */
#ifndef BENCH_H
#define BENCH_H

#include "generate.h"

#define BENCH_CONTEXT 50000             /* tokens of the longest prompt of a scenario */
#define BENCH_ROOM (BENCH_CONTEXT + 2048)       /* context that all scenarios need */

typedef struct {
    const char *scenario;               /* one of bench_scenarios */
    int json;                           /* 1: JSON instead of a table */
    const char *plot_file;              /* gets a plot of the rates, as SVG; NULL: none */
    int max_tokens;                     /* limits the length of answers; -1: as the scenario says */
} BenchOptions;

extern const char *const bench_scenarios[];     /* names, "all" behind them, then NULL */

/* Runs the scenarios, each without and, if the engine has one, with the drafter.  Prints each
 * result on stdout when it has it.  0, or -1 with err. */
int run_bench(const Engine *e, const BenchOptions *o, Error *err);

#endif
