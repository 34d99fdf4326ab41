/* score.h - `gemma4 score`: how likely the model finds given tokens; how far two runs differ. */
#ifndef SCORE_H
#define SCORE_H

#include "generate.h"

typedef struct {
    int top;                            /* number of likely tokens a line shows, at most 1000 */
    int summary;                        /* 1: one line at the end, not one for each token */
    const char *logits_file;            /* gets all logits, float32 [positions][vocabulary], in the
                                         * machine's byte order (little endian); NULL: none */
    const char *reference_file;         /* such a file of another run over the same tokens, to
                                         * compare with; NULL: none */
} ScoreOptions;

/* Evaluates ids[0..n) in e's session, which must be empty, and prints JSON lines on stdout.  0, or
 * -1 with err. */
int score(const Engine *e, const int *ids, int n, const ScoreOptions *o, Error *err);

#endif
