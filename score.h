/* score.h - what a model thinks of given tokens, and how far two runs of it are apart. */
#ifndef SCORE_H
#define SCORE_H

#include "generate.h"

typedef struct {
    int top;                            /* candidates a line */
    int summary;                        /* one line in the end instead of a line a token */
    const char *logits_file;            /* NULL, or where all logits go: float32 [positions][vocabulary], little endian */
    const char *reference_file;         /* NULL, or such a file of another run over the same tokens, to compare with */
} ScoreOptions;

/* Evaluates ids[0..n) in the session, from its beginning, and prints JSON lines.  0, or -1 with err. */
int score(const Engine *e, const int *ids, int n, const ScoreOptions *o, Error *err);

#endif
