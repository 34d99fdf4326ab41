/* model.h - a Model is one checkpoint, opened once and only read (checkpoint.c opens it); the
 * forward pass takes tokens through it (model.c).  session.h remembers the tokens between two
 * passes. */
#ifndef MODEL_H
#define MODEL_H

#include <signal.h>

#include "ops.h"

#define VERSION "0.1.0"                 /* of the program, which reads no caches of another one */

typedef struct Model Model;

#define MAX_EOS 16
#define MAX_SUPPRESSED 64

/* What generation_config.json asks for.  Where that file is missing or silent, eos comes from
 * config.json, and the rest is Gemma's: temperature 1, top-k 64, top-p 0.95, nothing else. */
typedef struct {
    int eos[MAX_EOS], n_eos;            /* the ids that end an answer */
    int suppress[MAX_SUPPRESSED], n_suppress;   /* the ids that no answer may have */
    float temperature;                  /* 0 when do_sample is false */
    int top_k;
    float top_p, min_p;
    float repeat_penalty;
} GenerationConfig;

/* What `info` prints. */
typedef struct {
    const Config *config;
    int kv_heads, global_kv_heads;      /* of the sliding layers, of the global layers */
    int n_global;                       /* how many layers are global */
    const char *layout[4];              /* attention, mlp, experts (NULL when dense), embedding */
    int64_t parameters;                 /* numbers in all weights, the vision tower included */
    int64_t bytes_on_disk;
    int64_t bytes_per_token;            /* of weights, read for one decoded token */
    int n_adapters;                     /* LoRA adapters, see model_adapter */
    int fp8_kv;                         /* 1: the checkpoint announces an FP8 cache */
    int has_vision;                     /* 1: the model has a vision tower and takes pictures */
    int text_alone;                     /* 1: its front ends for pictures and sound are not used */
} ModelInfo;

/* Opens the checkpoint directory `dir`: config.json, generation_config.json, safetensors.  All
 * weights stay in the mapping of the files; only the norms are copied.  The caller closes the
 * model, after its sessions.  Returns NULL with err, which names the file and the field. */
Model *model_open(const char *dir, Error *err);
void model_close(Model *m);

/* A LoRA adapter of the whole model, as peft saves it in a directory. */
typedef struct {
    char *name;                         /* as the user gave it */
    char *base;                         /* the model that it was trained on, or NULL: not said */
    float scale;                        /* what the user has it multiplied with */
    int rank;                           /* the largest of its matrices */
    int n;                              /* matrices of the model that it changes */
} AdapterInfo;

/* Adds the LoRA adapter in the directory `dir` to the model, before any session is opened: from
 * then on a matrix W that the adapter changes gives W x + s * B (A x), where s is `scale` times
 * lora_alpha / r.  The weights of the checkpoint stay as they are; A and B stay in the mapping of
 * their file.  `name` is what messages and saved caches call the adapter.  Returns 0, or -1 with
 * err, which names the file and the field or tensor.  What would change the result and is not
 * supported is refused.  After a failure the model can only be closed. */
int model_adapt(Model *m, const char *name, const char *dir, float scale, Error *err);

/* The i-th adapter that was added; it belongs to the model. */
const AdapterInfo *model_adapter(const Model *m, int i);

/* The names of all adapters, "poet:0.5, pirate", or NULL where there are none; the model's. */
const char *model_adapters(const Model *m);

/* Opens a drafter (Gemma4AssistantForCausalLM) of `target`, which the caller closes after the
 * drafter.  Only draft.c works with it.  Returns NULL with err. */
Model *model_open_drafter(const char *dir, const Model *target, Error *err);

/* Reads the scales of all quantised matrices, a ninth of the bytes of matrices in NVFP4 or INT4.
 * Returns 0, or -1 with err where a scale is NaN, infinite or negative: some kernels would take it
 * for another number. */
int model_check(const Model *m, Error *err);

/* The model owns what these three return. */
const Config *model_config(const Model *m);
const Weights *model_weights(const Model *m);
const GenerationConfig *model_generation(const Model *m);

void model_info(const Model *m, ModelInfo *info);

/* What the user should know of the model's files, in one line that is the model's, or NULL. */
const char *model_warning(const Model *m);

/* How many soft tokens an image can have at most, as words: 70 … 1120, then NULL. */
extern const char *const image_token_words[];

/* The most soft tokens that the checkpoint in `dir` wants for an image:
 * vision_soft_tokens_per_image of config.json, else 280.  Returns -1 with err where that field is
 * not one of the numbers that --image-tokens takes. */
int model_image_tokens(const char *dir, Error *err);

/* ---- pictures ---- */

/* A picture, or one frame of a video, on its way into the model.  Its owner keeps it for as long as
 * a session may want it, and frees pixels and soft. */
typedef struct {
    uint64_t hash;                      /* of its content: the same hash is the same picture */
    int columns, rows;                  /* patches, multiples of POOL */
    int n;                              /* soft tokens: columns * rows / POOL^2 */
    float *pixels;                      /* [rows * columns][PATCH_SIZE], 0 to 1; NULL: encoded */
    float *soft;                        /* [n][hidden]; NULL until the tower has encoded it */
} Picture;

/* The ids from position pos on are placeholders of a picture, one for each of its soft tokens,
 * which the model takes instead. */
typedef struct {
    int pos;
    Picture *picture;
} PictureSpan;

/* ---- the forward pass ---- */

/* A model on a device, with the caches of its layers.  The one who fills it in owns all of it. */
typedef struct {
    const Model *m;
    const Ops *ops;
    Device *device;
    KvCache *kv;                        /* [n_layers] */
    /* [tokens of the largest step] the row of the embedding that each token of the step takes: see
     * choose_rows in model.c. */
    int *row;
    /* Called before the first layer and after each layer with the number of layers that are done,
     * or once with n_layers where the device takes a step as a whole.  A result other than 0 ends
     * the pass before the next layer.  NULL: nobody watches. */
    int (*watch)(void *arg, int n_done);
    void *arg;
    int reads_x;                        /* 1: watch reads the residual stream: no step is a whole */
} Pass;

/* Tokens that travel through the layers together. */
typedef struct {
    const int *ids;                     /* [n] */
    int n;
    int64_t pos;                        /* of the first of them */
    const PictureSpan *span;            /* pictures of the prompt; those in this step are encoded */
    int n_spans;
} TokenStep;

/* Whether a picture begins in this step. */
int in_step(const TokenStep *s, const PictureSpan *span);

/* Takes the tokens of a step through the model.  The residual stream stays with the device, keys
 * and values go into the caches.  Returns 0, or 1 where watch ended the pass. */
int forward(const Pass *p, const TokenStep *s);

/* Takes the residual stream through all layers.  Returns 0, or 1 where watch ended the pass. */
int forward_layers(const Pass *p);

/* Logits [count][vocab] of tokens first .. first + count - 1 of the last step, to host memory. */
void forward_head(const Pass *p, int first, int count, float *logits);

/* Has a device that can record a step record the step of one token, so that no token of an answer
 * waits for that.  Nothing is computed. */
void forward_rehearse(const Pass *p);

/* Takes a picture through the vision tower: fills in its soft tokens and frees its pixels.  Returns
 * 0; 1 when *cancel (NULL: never) became nonzero; -1 when the device has no memory for the
 * picture. */
int forward_picture(const Pass *p, Picture *picture, const volatile sig_atomic_t *cancel);

#endif
