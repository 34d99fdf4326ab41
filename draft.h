/* draft.h - speculative decoding: a small drafter guesses the next tokens; one pass of the target
 * over all of them tells which were right.  The answer is the same as without a drafter. */
#ifndef DRAFT_H
#define DRAFT_H

#include <stdio.h>

#include "session.h"

/* Most drafts of a round when their number is adapted.  A draft counts only if all before it were
 * accepted: at 70 % each, the seventh is accepted in one round of twelve.  To tune it, compare the
 * rates with fixed numbers (--draft-tokens) on texts that draft well. */
#define MAX_ADAPTED 6

/* The statistics of one answer. */
typedef struct {
    int passes;                         /* of the target, without those over the prompt */
    int tokens;                         /* of the answer: one for each pass, and accepted drafts */
    int drafted[MAX_DRAFTS];            /* [i] rounds that had a draft number i */
    int accepted[MAX_DRAFTS];           /* [i] rounds in which it was accepted */
} DraftStats;

/* What the rounds so far have cost and yielded: the next number of drafts is chosen by it.  Costs
 * are relative times, seconds at the beginning; see adaption_cost in draft.c. */
typedef struct {
    double cost[MAX_ADAPTED + 1];       /* [k] a round of k drafts to its first token; 0: unknown */
    double further;                     /* each further token that a round yields */
    double pace;                        /* the last round's time, divided by its cost */
    double rate[MAX_ADAPTED];           /* [i] how often draft number i is accepted when those
                                         * before it were, 0 to 1 */
    long rounds, next_trial, trials;    /* rounds so far; when another k is tried next; how often */
    int trial_gap;                      /* rounds between two trials */
    int last;                           /* k of the last round */
} Adaption;

typedef struct Drafter Drafter;

/* Bytes on disk of the drafter in `dir`, which is about what it takes of a device's memory.  The
 * result is 0 where the drafter cannot be opened; drafter_open says why. */
int64_t drafter_size(const char *dir, const Model *target);

/* Opens the drafter in directory `dir` for the model `target` of session s, on the session's
 * device.  n_drafts: drafts of a round; -1: adapted, 0 to MAX_ADAPTED, whatever has paid so far.
 * log (may be NULL; stays the caller's) gets a JSON line for each round.  The caller closes the
 * drafter, before the session and its model.  NULL with err, which names the field at fault. */
Drafter *drafter_open(const char *dir, const Model *target, Session *s, int n_drafts, FILE *log,
                      Error *err);
void drafter_close(Drafter *d);

/* An answer begins: the session holds its prompt. */
void drafter_begin(Drafter *d);

/* Adds the token id to the session, like session_eval(session, &id, 1, …): session_logits then
 * predicts what follows it.  If id is the draft of this place, it has been evaluated already.
 * Otherwise a round begins: drafts are made, and one pass evaluates id and all of them.  left: how
 * many tokens may still be wanted after id; no more are drafted.  Returns as session_eval. */
int drafter_eval(Drafter *d, int id, int left, Error *err);

/* The answer is over: the last round goes to the log. */
void drafter_end(Drafter *d);

const DraftStats *drafter_stats(const Drafter *d);
int64_t drafter_bytes(const Drafter *d);                /* of weights, read for one draft */

/* Makes the k (1 .. MAX_DRAFTS) drafts of a round that begins with id, the token after those that
 * the session holds.  For tests, too. */
void drafter_round(Drafter *d, int id, int k, int *drafts);

/* Makes one draft, for tests: returns the token that may follow `id` at position pos.  h [backbone]
 * is the hidden state that the target, or the draft before, has left; it is replaced by the one
 * that this draft leaves.  logits (may be NULL) [vocab]; layers (may be NULL) [1 + layers][hidden]:
 * the state after pre_projection and after each layer. */
int drafter_step(Drafter *d, int id, int64_t pos, float *h, float *logits, float *layers);

/* How many drafts pay; for tests, too.  adaption_choose returns k for the next round.  Then report
 * of that round: to adaption_cost the seconds up to its first token, to adaption_further those of
 * each further token, to adaption_rate how many of its drafts were accepted. */
Adaption adaption_new(void);
int adaption_choose(Adaption *a);
void adaption_cost(Adaption *a, int k, double seconds);
void adaption_further(Adaption *a, double seconds);
void adaption_rate(Adaption *a, int k, int accepted);

#endif
