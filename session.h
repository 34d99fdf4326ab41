/* session.h - a Session is one sequence of tokens on one device.  It takes tokens through the model
 * and keeps their keys and values.  One thread at a time may use a session. */
#ifndef SESSION_H
#define SESSION_H

#include <signal.h>
#include <stdio.h>

#include "model.h"

typedef struct Session Session;

typedef enum { KV_AUTO, KV_F32, KV_BF16, KV_FP8 } KvType;

/* The experts of so many layers stay on the CPU as the device's memory has no room for. */
#define CPU_EXPERTS_AUTO (-1)
#define EXPERT_SLOTS_AUTO (-1)

typedef struct {
    const Ops *ops;                     /* the device */
    int64_t context;                    /* positions; at most config->max_context */
    int chunk;                          /* tokens of a prefill step; 0: what suits the device */
    int picture;                        /* soft tokens of the largest picture, which one step must
                                         * be able to take */
    KvType kv;                          /* KV_AUTO: FP8 where the checkpoint says so, else BF16 */
    int n_threads;                      /* of the host */
    int exact;                          /* 1: float32 activations throughout, whatever that costs */
    int fp4_activations;                /* as in DeviceOptions; not with exact */
    int activations;                    /* as in DeviceOptions */
    int64_t drafter_room;               /* bytes of the device's memory that a drafter will want */
    int64_t memory_limit;               /* as in DeviceOptions; 0: none */
    int cpu_experts;                    /* as in DeviceOptions; or CPU_EXPERTS_AUTO */
    /* As in DeviceOptions, at most: as many as there is room for.  EXPERT_SLOTS_AUTO: with
     * CPU_EXPERTS_AUTO as many as there is room for, where they pay; else none. */
    int expert_slots;
    void (*loading)(double done);       /* as in DeviceOptions; may be NULL */
    /* Unless NULL, called after every layer of every step (also a step of one token), or once after
     * the step where the device takes a step as a whole.  done (0 .. 1): the share of the n tokens
     * to evaluate that is done. */
    void (*progress)(void *arg, int n, double done);
    void *arg;
    volatile sig_atomic_t *cancel;      /* nonzero: stop after a layer or a step; may be NULL */
} SessionOptions;

/* Returns an empty session, which the caller frees before the model; or NULL with err.  If the
 * device's memory is too small, err says what would fit, and nothing was allocated. */
Session *session_new(const Model *m, const SessionOptions *o, Error *err);
void session_free(Session *s);

/* Tells the session of the pictures among the ids of the next calls of session_sync, session_eval
 * and session_save: span[0..n), by position, not overlapping.  The spans stay the caller's, and
 * must stay as they are until the next call of this function.  The tower encodes a picture when the
 * session evaluates it. */
void session_pictures(Session *s, const PictureSpan *span, int n);

/* Makes the session hold exactly ids[0..n), n >= 1.  It evaluates only what it does not hold
 * already.  session_logits and session_top then return the logits of the last position.
 * n_stable (0 .. n): how many of these ids the next call will probably begin with.  The session can
 * return there without evaluating them again (see Mark in cache.h).
 * *reused (may be NULL): how many positions were not evaluated.
 * Returns 0; 1 when cancelled (the next call goes on from what was done); -1 with err (context too
 * small). */
int session_sync(Session *s, const int *ids, int n, int n_stable, int *reused, Error *err);

/* Returns how many of ids[0..n) session_sync would not evaluate again, provided that the session
 * can go back there; at most n - 1. */
int session_common(const Session *s, const int *ids, int n);

/* Appends ids[0..n).  Returns as session_sync does.  `each` (may be NULL) gets the logits [vocab]
 * of every position, in order. */
typedef void LogitsFn(void *arg, int64_t pos, const float *logits);
int session_eval(Session *s, const int *ids, int n, LogitsFn *each, void *arg, Error *err);

/* Writes to f what the session holds of ids[0..n), so that another session can go on there.
 * `conversation`: a hash of the conversation that the ids belong to.  Returns 0, or -1 with
 * errno. */
int session_save(const Session *s, const int *ids, int n, uint64_t conversation, FILE *f);

/* Makes the session hold what session_save has written to f.  f is checked: it may have any
 * content, and need not be a regular file.  Returns 0; or -1 with err, which does not name the
 * file, and the session empty or unchanged. */
int session_load(Session *s, uint64_t conversation, FILE *f, Error *err);

/* The most tokens that session_view chooses from, and the most rows of logits that the session
 * computes at once: so many follow a round of MAX_DRAFTS drafts. */
#define MAX_VIEW (MAX_DRAFTS + 1)

/* Shows only the first tokens of the last session_eval, up to position n - 1: session_logits,
 * session_top and session_ids tell of these.  The caller sees to it that this session_eval had at
 * most MAX_VIEW tokens (as many rows of logits are kept) and at most a chunk (one step: the device
 * keeps the residual stream of the last step alone).  A later call with a larger n shows more of
 * them again.  The next session_eval or session_sync forgets the others. */
void session_view(Session *s, int64_t n);

/* Makes the session empty, because its kv cache may be damaged. */
void session_forget(Session *s);

/* Logits [vocab] of the last position, after the soft cap.  The session owns them until the next
 * session_sync or session_eval, and computes them at the first call. */
const float *session_logits(Session *s);

/* Finds the k (1 .. MAX_TOP) largest of these logits, by falling value, ties by rising id.  Writes
 * them to logits [k] and their ids to ids [k].  Returns how many there are (less than k only where
 * the vocabulary is smaller).  Returns -1 when the caller must take session_logits instead: the
 * device has no `top`, the CPU has not made its copy of the head yet (SCREEN_AFTER in head.c), or
 * too many logits are as large as the k-th (LISTED in top.cu). */
int session_top(Session *s, int k, int *ids, float *logits);

/* ---- what a drafter reads ---- */

/* The device; *token: which token of the device's last step is the last position. */
Device *session_device(const Session *s, int *token);

/* The cache of the last global layer, or of the last sliding layer. */
const KvCache *session_cache(const Session *s, int global);

/* The options that the session was made with, chunk filled in. */
const SessionOptions *session_given(const Session *s);

/* ---- what the session holds ---- */

/* The ids, which stay the session's, and how many. */
const int *session_ids(const Session *s, int *n);

/* Positions that it has room for. */
int64_t session_context(const Session *s);

/* As Ops.slot_hits; 0 and 0 without slots. */
void session_slot_hits(const Session *s, int64_t *chosen, int64_t *hits);

/* ---- what a session takes of the device's memory ---- */

/* Returns the bytes of the kv cache of a session with these options.  *per_token becomes the bytes
 * that one position takes in all layers together. */
int64_t kv_bytes(const Model *m, const SessionOptions *o, int64_t *per_token);

/* *memory becomes what a session with these options takes of the device's own memory; all 0 for a
 * device that has none (the CPU).  The copy of the head is only made if it leaves room for pictures
 * and a drafter.  Returns 0, or -1 with err. */
int session_memory(const Model *m, const SessionOptions *o, Memory *memory, Error *err);

/* Whether the device has room for the session, by what session_memory said of it: 0, or -1 with the
 * numbers and what would fit. */
int session_fits(const Model *m, const SessionOptions *o, const Memory *memory, Error *err);

/* What the session takes of the device's own memory, as session_memory told; its bytes in all. */
const Memory *session_takes(const Session *s);
int64_t session_device_bytes(const Session *s);

/* Writes to text where the experts are: "experts of 9 layers on the GPU, of 21 on the CPU" and,
 * with slots, "; slots for 32 of 128 on the GPU"; "" where all are on the device. */
#define PLACEMENT 120
void placement(const Model *m, const Memory *memory, char text[PLACEMENT]);

/* ---- for tests ---- */

/* The last position's hidden state after the final norm, to h [hidden]. */
void session_hidden(Session *s, float *h);

/* Has `trace` called in every step before layer 0 (layer = -1, x the embeddings) and after each
 * layer with the residual stream [n][hidden] of positions pos .. pos + n - 1 and the router's
 * choices [n][top_k] (NULL when dense). */
typedef void TraceFn(void *arg, int layer, int64_t pos, int n, const float *x, const int *expert,
                     const float *weight);
void session_trace(Session *s, TraceFn *trace, void *arg);

#endif
