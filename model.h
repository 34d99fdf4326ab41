/* model.h - the engine's face: a Model (one checkpoint, opened once, read only) and a Session (one timeline of
 * tokens and its KV cache).  One thread at a time may use a session. */
#ifndef MODEL_H
#define MODEL_H

#include <signal.h>
#include <stdio.h>

#include "ops.h"

#define VERSION "0.1.0"                 /* of the program; saved sessions of other versions are not read */

typedef struct Model Model;
typedef struct Session Session;

/* What generation_config.json asks for; where the file is missing, eos from config.json and greedy decoding. */
typedef struct {
    int eos[16], n_eos;
    float temperature;                  /* 0 when do_sample is false */
    int top_k;
    float top_p;
} GenerationConfig;

typedef enum { KV_AUTO, KV_F32, KV_BF16, KV_FP8 } KvType;

/* What `info` prints. */
typedef struct {
    const Config *config;
    int kv_heads, global_kv_heads;      /* of the sliding and of the global layers */
    int n_global;                       /* how many layers are global */
    const char *layout[4];              /* of attention, mlp, experts (NULL when dense), embedding */
    int64_t parameters;                 /* numbers in all weights, the vision tower included */
    int64_t bytes_on_disk;
    int64_t bytes_per_token;            /* read for one decoded token, without the cache */
    int fp8_kv;                         /* the checkpoint announces an FP8 cache */
    int has_vision;                     /* there is a tower: it takes pictures */
} ModelInfo;

/* Opens the checkpoint directory `dir`: config.json, generation_config.json, safetensors.  All weights stay in the
 * mapping; only the norms are copied.  The caller closes the model, after its sessions.  NULL with err (file, field). */
Model *model_open(const char *dir, Error *err);
void model_close(Model *m);

/* Reads the block scales of all NVFP4 matrices, a ninth of their bytes.  -1 with err where one is NaN: the kernels would take it
 * for a number. */
int model_check(const Model *m, Error *err);

/* The same for a drafter (Gemma4AssistantForCausalLM) of `target`, which must be closed after it.  Only draft.c works with it. */
Model *model_open_drafter(const char *dir, const Model *target, Error *err);
const Weights *model_weights(const Model *m);

void model_info(const Model *m, ModelInfo *info);
const GenerationConfig *model_generation(const Model *m);

/* The soft tokens that the checkpoint in dir wants for an image, at most: vision_soft_tokens_per_image of config.json, else 280. */
int model_image_tokens(const char *dir);

typedef struct {
    const Ops *ops;                     /* the device */
    int64_t context;                    /* positions; at most config->max_context */
    int chunk;                          /* tokens a prefill step takes at once; 0: as many as suit the device */
    int picture;                        /* soft tokens of the largest picture to come; they go into one step, whatever the chunk */
    KvType kv;                          /* KV_AUTO: FP8 where announced, else BF16 */
    int n_threads;
    int exact;                          /* float32 activations throughout, whatever that costs */
    int fp4_activations;                /* see DeviceOptions; not with exact */
    int64_t beside;                     /* bytes of the device's memory that a drafter will want */
    void (*loading)(double done);       /* see open in ops.h; may be NULL */
    /* Called after every layer of a prefill step, or after the step where the device takes it as a
     * whole: this share (0 .. 1) of the n tokens to evaluate is done. */
    void (*progress)(void *arg, int n, double done);
    void *arg;
    volatile sig_atomic_t *cancel;      /* nonzero: session_eval stops after a layer or step */
} SessionOptions;

/* Memory for the cache of a session with these options; *per_token: what one position writes in all layers together. */
int64_t kv_bytes(const Model *m, const SessionOptions *o, int64_t *per_token);

/* What a session with these options takes of the device's own memory; all 0 where it has none (the
 * CPU).  The head's copy is only made where it leaves room for pictures and a drafter.  0, or -1
 * with err. */
int session_memory(const Model *m, const SessionOptions *o, Memory *memory, Error *err);

/* An empty session.  NULL with err: so when the device's memory is too small, before anything is taken, with what would fit. */
Session *session_new(const Model *m, const SessionOptions *o, Error *err);
void session_free(Session *s);

/* A picture, or one frame of a video, on its way into the model.  Its owner keeps it as long as a session may want it. */
typedef struct {
    uint64_t hash;                      /* of its content: the same hash is the same picture */
    int columns, rows;                  /* patches, multiples of POOL */
    int n;                              /* soft tokens: columns * rows / POOL^2 */
    float *pixels;                      /* [rows * columns][PATCH_SIZE], 0 to 1, as in ops.h; NULL once it is encoded */
    float *soft;                        /* [n][hidden] once a session has encoded it, before that NULL; both are freed by the owner */
} Picture;

/* The n ids from position pos on are placeholders of a picture: its soft tokens are evaluated instead. */
typedef struct {
    int pos;
    Picture *picture;
} Span;

/* Says where the pictures are in the ids that the following calls of session_sync and session_eval bring: span[0..n), by
 * position, not overlapping; they must stay until the next call of this.  Pictures are encoded when they are evaluated. */
void session_pictures(Session *s, const Span *span, int n);

/* Makes the session hold exactly ids[0..n), reusing as much of what it holds as it can; session_logits and session_top
 * then tell the last position's logits.  n >= 1.  n_stable (0 .. n): how many of these ids the next call will probably begin
 * with; the session can then return there without evaluating again (see Mark in model.c).
 * *reused (may be NULL): how many positions were not evaluated again.
 * Returns 0; 1 when cancelled (what was done is kept: calling again goes on there); -1 with err (context too small). */
int session_sync(Session *s, const int *ids, int n, int n_stable, int *reused, Error *err);

/* Appends ids[0..n) the same way.  each (may be NULL) gets the logits of every position, in order. */
int session_eval(Session *s, const int *ids, int n, void (*each)(void *arg, int64_t pos, const float *logits), void *arg,
                 Error *err);

/* Writes to f what the session holds of ids[0..n) (with the pictures that session_pictures names), so that another one can go on
 * there: keys, values, and what they depend on.  `of`: a hash of the conversation that they belong to.  0, or -1 with errno. */
int session_save(const Session *s, const int *ids, int n, uint64_t of, FILE *f);

/* Makes the session hold what was saved in f, a regular file that may hold anything; nothing beyond its own memory is taken.
 * Returns 0; or -1 with err, which says why not (without the file's name): it then holds nothing, or what it held. */
int session_load(Session *s, uint64_t of, FILE *f, Error *err);

#define MAX_VIEW 16

/* Of the tokens of the last session_eval, MAX_VIEW at most and no more than a chunk, the session holds only the first ones, up
 * to position n - 1: session_logits, session_top and session_ids tell of these.  The others are forgotten by the next
 * session_eval or session_sync, without a trace; until then they may be taken in again, with a larger n. */
void session_view(Session *s, int64_t n);

/* Logits of the last position, float32 [vocab], after the soft cap; computed when they are first asked for, valid until
 * the next session_sync or session_eval. */
const float *session_logits(Session *s);

/* The k (1 .. MAX_TOP) largest of them by falling value, ties by rising id, to ids [k] and logits [k].  Returns how many
 * (less than k only where the vocabulary is smaller), or -1 when the device has no cheaper way than session_logits. */
int session_top(Session *s, int k, int *ids, float *logits);

/* What a drafter reads: the device, and which of its last step's tokens is the last position; the
 * cache of the last global or the last sliding layer; the options that the session was made with,
 * its chunk filled in. */
Device *session_device(const Session *s, int *token);
const KvCache *session_cache(const Session *s, int global);
const SessionOptions *session_given(const Session *s);

/* Ids held, and how many; how many it has room for. */
const int *session_ids(const Session *s, int *n);
int64_t session_context(const Session *s);

/* Whether the device has an int8 copy of the head in its own memory. */
int session_head_copied(const Session *s);

/* Bytes of the device's own memory that the session takes. */
int64_t session_device_bytes(const Session *s);

/* For tests: the last position's hidden state after the final norm, to h [hidden]. */
void session_hidden(Session *s, float *h);

/* For tests: called in every step before layer 0 (layer = -1, x the embeddings) and after each layer with the residual
 * stream [n][hidden] of positions pos .. pos + n - 1 and the router's choices [n][top_k] (NULL when dense). */
typedef void TraceFn(void *arg, int layer, int64_t pos, int n, const float *x, const int *expert, const float *weight);
void session_trace(Session *s, TraceFn *trace, void *arg);

#endif
