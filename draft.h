/* draft.h - speculative decoding: a small drafter guesses the next tokens; one pass of the target
 * over all of them tells which were right.  The answer is the same as without a drafter. */
#ifndef DRAFT_H
#define DRAFT_H

#include <stdio.h>

#include "adapt.h"
#include "session.h"

/* The statistics of one answer. */
typedef struct {
    int passes;                         /* of the target, without those over the prompt */
    int tokens;                         /* of the answer: one for each pass, and accepted drafts */
    int drafted[MAX_DRAFTS];            /* [i] rounds that had a draft number i */
    int accepted[MAX_DRAFTS];           /* [i] rounds in which it was accepted */
} DraftStats;

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

#endif
