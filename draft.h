/* draft.h - speculative decoding: a small drafter guesses the next tokens, one pass of the target over all of them tells
 * which were right.  The answer is the same as without. */
#ifndef DRAFT_H
#define DRAFT_H

#include <stdio.h>

#include "model.h"

#define MAX_ADAPTED 6                   /* a round's, where the drafter decides */

/* Of one answer. */
typedef struct {
    int passes;                         /* of the target, the prompt aside */
    int tokens;                         /* taken in by these: the passes and all accepted drafts */
    int drafted[MAX_DRAFTS], accepted[MAX_DRAFTS];      /* by place in the round */
} DraftStats;

/* Where rounds with k drafts have led so far, to choose the next k by. */
typedef struct {
    double cost[MAX_ADAPTED + 1];       /* of a round with k drafts, to its first token, in seconds at the beginning; 0: not known */
    double further;                     /* of each further token it yields, likewise */
    double pace;                        /* what the last round took, in its cost */
    double rate[MAX_ADAPTED];           /* how often the draft in this place is accepted where those before it were */
    long rounds, next_trial, trials;
    int trial_gap;                      /* rounds between two trials of another k */
    int last;                           /* k of the last round */
} Adaption;

typedef struct Drafter Drafter;

/* Bytes on disk of the drafter in `dir`, which is about what it takes of a device's memory; 0 where
 * it cannot be opened, of which drafter_open says why. */
int64_t drafter_size(const char *dir, const Model *target);

/* Opens the drafter in `dir` for the session's model, on the session's device.  n_drafts: a round's, or -1: as many, 0 to
 * MAX_ADAPTED, as have paid so far.  log (may be NULL, stays the caller's): gets a JSON line a round.  Close it before the
 * session and its model.  NULL with err: what does not fit, by its field. */
Drafter *drafter_open(const char *dir, const Model *target, Session *s, int n_drafts, FILE *log, Error *err);
void drafter_close(Drafter *d);

/* An answer begins: the session holds its prompt. */
void drafter_begin(Drafter *d);

/* As session_eval(session, &id, 1, …): the session holds one token more, and session_logits tells what follows it.  An id that
 * was drafted is there already; for another one a round begins: drafts, then one pass over id and all of them.  `left`: how many
 * tokens may still be wanted after id; no more are drafted. */
int drafter_eval(Drafter *d, int id, int left, Error *err);

/* The answer is over: the last round goes to the log. */
void drafter_end(Drafter *d);

const DraftStats *drafter_stats(const Drafter *d);
int64_t drafter_bytes(const Drafter *d);                /* of weights, read for one draft */

/* The k (1 .. MAX_DRAFTS) drafts of a round that begins with id, which follows what the session
 * holds; for tests too. */
void drafter_round(Drafter *d, int id, int k, int *drafts);

/* One draft, for tests: the token that may follow `id` at position pos, of which h [backbone] is what the target, or the draft
 * before it, leaves behind; h is replaced by what this one leaves.  logits (may be NULL) [vocab]; layers (may be NULL)
 * [1 + layers][hidden]: after pre_projection, after each layer. */
int drafter_step(Drafter *d, int id, int64_t pos, float *h, float *logits, float *layers);

/* How many drafts pay, for tests too: choose k, then tell what the round with k drafts took to its first token, what each further
 * token took, and how many drafts were accepted. */
Adaption adaption_new(void);
int adaption_choose(Adaption *a);
void adaption_cost(Adaption *a, int k, double seconds);
void adaption_further(Adaption *a, double seconds);
void adaption_rate(Adaption *a, int k, int accepted);

#endif
