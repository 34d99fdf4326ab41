/* ops.h - the contract between the forward pass (model.c) and a device that computes it: plain.c,
 * which is the formulas; the CPU (cpu.h lists its files); the GPU (the .cu files).
 *
 * The forward pass is written once, in model.c; what a device must be able to do is on this page.
 * All shapes are row major.  n is the number of tokens that travel through the layers together: 1
 * when decoding, up to MAX_DRAFTS + 1 where a drafter helps; in prefill up to a chunk, or one whole
 * picture where that is longer.  The residual stream x [n][hidden] and everything between two
 * operations stay with the device; numbers are float32 wherever they are not weights or cache. */
#ifndef OPS_H
#define OPS_H

#include <string.h>

#include "safetensors.h"

/* ---- the model, as the operations see it ---- */

/* A matrix [rows][cols] as it lies in the file, y = W x.  No alignment is promised.  Its dtype says
 * how the number W[r][c] is stored:
 *
 *     DT_F32, DT_BF16, DT_F16   itself
 *     DT_U8       NVFP4         e2m1(nibble) * (e4m3(block_scale[r][c / 16]) * scale)
 *     DT_F8_E4M3  FP8           e4m3(data[r][c]) * S
 *     DT_I32      INT4, INT8    (data[r][c] - zero(r, c)) * S
 *
 * S is block_scale[r / scale_rows][c / scale_cols].  Nibbles lie two to a byte, the even column in
 * the low half, in NVFP4 and INT4 alike; INT8 has a byte for each number.  Both kinds of integers
 * are stored without a sign.  Their zero(r, c) is the middle of their range, 8 or 128, or, where
 * INT4 has zero points, nibble r % 8 of the little-endian word zero[r / 8][c / scale_cols]. */
typedef struct {
    DType dtype;
    int rows, cols;
    int bits;                           /* DT_I32: of a number, 4 or 8 */
    const uint8_t *data;
    const uint8_t *block_scale;         /* [⌈rows / scale_rows⌉][⌈cols / scale_cols⌉], or NULL */
    float scale;                        /* NVFP4: weight_scale_2, or 1 / weight_global_scale */
    DType scale_dtype;                  /* of block_scale; not used in NVFP4, where it is E4M3 */
    int scale_rows, scale_cols;         /* so many rows and columns share a scale */
    const uint8_t *zero;                /* DT_I32: the zero points, or NULL */
    const struct Adapter *adapter;      /* the first of the LoRA adapters of W, or NULL */
} Weight;

/* A LoRA adapter of a matrix W: y = W x + scale * B (A x).  The adapters of W are a list, and each
 * adds its part to y.  A and B are F32, BF16 or F16, and have no adapters themselves. */
typedef struct Adapter {
    Weight a;                           /* [rank][columns of W] */
    Weight b;                           /* [rows of W][rank] */
    float scale;
    int at;                             /* see adapter_width in Weights */
    const struct Adapter *next;
} Adapter;

typedef struct {
    int n_layers, hidden, vocab;
    int n_heads;                        /* query heads, the same in all layers */
    int intermediate;                   /* rows of the dense MLP's gate and up */
    int n_experts, top_k;               /* 0, 0: a dense model */
    int expert_size;                    /* rows of one expert's gate and up */
    int window;                         /* a sliding layer sees positions p - window + 1 .. p */
    int max_context;
    int backbone;                       /* a drafter: hidden of its target; 0: a model of its own */
    float eps;                          /* of every RMSNorm */
    float softcap;                      /* logits = softcap * tanh(logits / softcap); 0: none */
} Config;

typedef struct {
    int global;                         /* 1: sees everything before it; 0: sliding window */
    int head_dim, n_kv_heads;
    /* RoPE [head_dim / 2]: dim i turns with dim i + head_dim / 2 by the angle pos * inv_freq[i]. */
    const float *inv_freq;
    /* RMSNorm weights: [hidden], q_norm and k_norm [head_dim] */
    float *input_norm, *post_attention_norm, *q_norm, *k_norm;
    /* In the file: pre_feedforward_layernorm, post_feedforward_layernorm_1,
     * pre_feedforward_layernorm_2, post_feedforward_layernorm_2, post_feedforward_layernorm.  A
     * dense model has only the first and the last of these; the others are NULL. */
    float *pre_mlp_norm, *post_mlp_norm, *pre_experts_norm, *post_experts_norm, *post_ffn_norm;
    /* v.data NULL: V comes from k (attention_k_eq_v).  k.data NULL: see `attend`. */
    Weight q, k, v, o;
    Weight gate, up, down;              /* dense MLP */
    Weight router;                      /* [n_experts][hidden]; data NULL when dense */
    float *router_scale;                /* [hidden] */
    float *per_expert_scale;            /* [n_experts] */
    Weight *expert_gate, *expert_up, *expert_down;          /* [n_experts] */
    float layer_scalar;
    float k_scale, v_scale;             /* of an FP8 cache */
} Layer;

#define PATCH 16                        /* pixels a side of what the vision tower calls a patch */
#define POOL 3                          /* patches a side of what becomes one soft token */
#define PATCH_SIZE (3 * PATCH * PATCH)  /* numbers of one patch: y, x, channel */

typedef struct {
    float *input_norm, *post_attention_norm, *pre_mlp_norm, *post_mlp_norm;     /* [hidden] */
    float *q_norm, *k_norm;             /* [head_dim] */
    Weight q, k, v, o, gate, up, down;
} VisionLayer;

/* The vision tower (Gemma4VisionModel): patches of a picture in, soft tokens out.  Its eps is
 * Config's. */
typedef struct {
    int n_layers, hidden, n_heads, head_dim, intermediate;      /* n_layers 0: there is no tower */
    int n_positions;                    /* so many patches wide or high can a picture be */
    float *inv_freq;                    /* RoPE [head_dim / 4] */
    VisionLayer *layer;                 /* [n_layers] */
    Weight patch;                       /* [hidden][PATCH_SIZE] */
    Weight position;                    /* [2 * n_positions][hidden]: of columns, then of rows */
    float *std_bias, *std_scale;        /* [hidden], or NULL */
    Weight project;                     /* [Config.hidden][hidden] */
} Tower;

/* All of the model that the forward pass needs.  It stays where it is for as long as devices are
 * open. */
typedef struct {
    Layer *layer;                       /* [n_layers] */
    /* [vocab][hidden]; the same matrix where they are tied.  A drafter's embed is its target's. */
    Weight embed, head;
    float *final_norm;                  /* [hidden] */
    Tower tower;
    /* A drafter's: [hidden][2 * backbone], [backbone][hidden]; else data is NULL. */
    Weight pre, post;
    /* Matrices with the same input x (q, k and v; gate and up) share a row of adapter_width numbers
     * for each token.  An adapter of theirs has its A x there from Adapter.at on.  0: the model has
     * no adapters. */
    int adapter_width;
} Weights;

/* Keys [slots][n_kv_heads][k_dim] and values [slots][n_kv_heads][head_dim] of one layer.  Position
 * p lives in slot p % slots; a global layer has a slot for every position of the context.  DT_F32,
 * DT_BF16, or DT_F8_E4M3: stored = e4m3(saturate(k / k_scale)).
 * K is stored after its norm and RoPE: a key's angle depends on its own position alone, so it is
 * turned once, not at every later token.
 * k_dim is head_dim, or 2r in a layer without v_proj of which r pairs of dimensions turn,
 * 0 < r < head_dim / 2.  There K = rope(k_norm * V).  So only the dimensions that turn are stored,
 * 0 .. r - 1 and head_dim / 2 .. head_dim / 2 + r - 1; the others are k_norm * V (k_column in
 * plain.c).  Not with FP8: K from a rounded V is not K rounded.  `kv_shape` in cache.c sets slots
 * and k_dim. */
typedef struct {
    DType dtype;
    int64_t slots;
    int k_dim;
    uint8_t *k, *v;
} KvCache;

/* ---- what a device can do ---- */

/* What a session takes of a device's own memory, and what there is of it; in bytes. */
typedef struct {
    char name[64];                      /* of the device: "NVIDIA H100 80GB HBM3" */
    int64_t weights, activations;
    int64_t cache;                      /* the session knows it (session.c) */
    /* The int8 copy of the head that makes decoding faster (head.cu); 0: none.  Ops.memory fills in
     * what a copy would take beside `weights`; session_memory sets it to 0 where the copy finds no
     * room. */
    int64_t head_copy;
    /* Room for the experts of DeviceOptions.cpu_experts, in which a device with memory of its own
     * computes them where many tokens come together (fetch.cu); beside `weights`, as the copy. */
    int64_t expert_room;
    int64_t pictures;                   /* what the first picture will take, if it finds room */
    int64_t free, total;                /* free: for all of these together */
    int cpu_experts;                    /* as in DeviceOptions; session_memory fills it in */
    int expert_slots;                   /* likewise; they are part of `weights` */
    int chunk;                          /* SessionOptions.chunk; session_memory fills it in */
} Memory;

/* What a device must have room for. */
typedef struct {
    int max_n;                          /* tokens that come together */
    int64_t context;                    /* positions */
    int n_threads;                      /* of the host */
    /* Activations keep float32's precision in every product.  Otherwise a device may round them (to
     * BF16) where that is much faster. */
    int exact;
    /* Many tokens, where a matrix is NVFP4: activations become NVFP4 too, for tensor cores that
     * multiply the two.  A device without them does not open.  Not with `exact`. */
    int fp4_activations;
    /* The CPU alone.  8: many tokens round their activations to 8 bits, where the kernels can
     * (cpu_rounds_to_8).  32: they are not rounded, as with `exact`.  0 or 16: neither. */
    int activations;
    int copy_head;                      /* there is room for Memory's head_copy */
    /* A device with memory of its own takes at most so many bytes of it, together with its drafter
     * and with pictures; 0: no limit. */
    int64_t memory_limit;
    /* A device with memory of its own leaves the experts of the first so many layers to the CPU. */
    int cpu_experts;
    /* In each of these layers it has slots for so many single experts, which it computes itself:
     * those that are used most (cached.cu).  A device may have none, as Memory's expert_slots
     * tells. */
    int expert_slots;
    int fetch_experts;                  /* there is room for Memory's expert_room */
    /* A device that copies the weights calls this again and again with the share (0 .. 1) that is
     * copied.  May be NULL. */
    void (*loading)(double done);
    struct Device *target;              /* a drafter's: its target's device, which is closed after
                                         * the drafter's; else NULL */
} DeviceOptions;

/* Scratch for the activations, threads or streams; each device has its own. */
typedef struct Device Device;

/* The most logits that `top` is asked for.  A sampler with the top_k of 64 that
 * generation_config.json asks for wants 80 (TIE_MARGIN in sampler.c), and one more for each token
 * that is ruled out (top_for in generate.c).  A schema rules nearly all tokens out: there all 256
 * are asked for, and often enough of them are allowed ones.  Chosen by judgement.  To tune it,
 * count how often next_of_top (generate.c) returns -1, which costs a pass over all logits. */
#define MAX_TOP 256

/* The most tokens of a step that is recorded: each length takes a recording of its own.  The
 * rounds of an adapted drafter are shorter (MAX_ADAPTED drafts and the newest token: 7).  Chosen by
 * judgement: as many as few.cu streams.  To tune it, compare --draft-tokens 7 and 8 on a GPU. */
#define MAX_RECORDED 8

/* The most drafts of a round.  With the newest token they make a step of 16, the longest below
 * three thresholds: no strips on the CPU (FEW_TOKENS in cpu.h), no prompt_kernel (attention.cu) and
 * no FP4 activations (fp4.cu) on the GPU. */
#define MAX_DRAFTS 15

typedef struct {
    const char *name;                   /* "cpu" */
    int chunk;                          /* tokens a step best takes at once in prefill */

    /* Fills in *m with what `open` would take (all but `cache`), and allocates nothing.  Returns 0,
     * or -1 with err.  NULL: the device has no memory of its own. */
    int (*memory)(const Config *c, const Weights *w, const DeviceOptions *o, Memory *m, Error *err);

    /* Returns the device, which the caller closes, or NULL with err.  The layers that are handed to
     * the operations below are those of w. */
    Device *(*open)(const Config *c, const Weights *w, const DeviceOptions *o, Error *err);
    void (*close)(Device *d);

    /* Memory for a cache, zero or undefined; taken from the machine only as it is written.  NULL
     * when there is none.
     * copy: between such memory, or from and to the host's. */
    void *(*alloc)(size_t bytes);
    void (*release)(void *p, size_t bytes);
    void (*copy)(void *to, const void *from, size_t bytes);

    /* Either all three are NULL or none is.  They let a device keep a step of n <= MAX_RECORDED
     * tokens without pictures as one unit (a CUDA graph).  A step is embed … the last join; on a
     * drafter's device, combine … guess.  The caches of a device's steps must always be the same.
     * `forward` (model.c) asks replay first.  Where that returns 0, it asks record; where record
     * returns 1, it calls the operations of the step, then recorded, then replay again.
     * record: returns 1 when the operations of a step of n tokens, which follow up to `recorded`,
     * are only recorded and nothing is computed; 0 when they are computed as ever.
     * replay: returns 1 when a step of n tokens was recorded; the step has then been begun, with
     * these ids at pos (NULL and 0 on a drafter's device).  Returns 0 when none was. */
    int (*record)(Device *d, int n);
    void (*recorded)(Device *d);
    int (*replay)(Device *d, const int *ids, int n, int64_t pos);

    /* x[i] = embed[ids[i]] * sqrt(hidden) for the n tokens at positions pos .. pos + n - 1. */
    void (*embed)(Device *d, const int *ids, int n, int64_t pos);
    /* RMSNorm(x, input_norm) -> q, k, v -> norms of q, k, v per head -> RoPE of q, k -> k, v into
     * the cache. */
    void (*qkv)(Device *d, const Layer *l, KvCache *kv);
    /* softmax(q . K) V over what each token may see; the attention scale is 1.  A drafter's layers
     * have queries only (k.data NULL, k_norm, k_scale and v_scale its target's): kv is its
     * target's, qkv stores nothing, and a token sees what lies before it. */
    void (*attend)(Device *d, const Layer *l, const KvCache *kv);
    /* x += RMSNorm(o . attention, post_attention_norm). */
    void (*attn_out)(Device *d, const Layer *l);
    /* h1 = down . (gelu(gate . y) * (up . y)), y = RMSNorm(x, pre_mlp_norm); with experts h1 =
     * RMSNorm(h1, post_mlp_norm). */
    void (*mlp)(Device *d, const Layer *l);
    /* p = softmax(router . (RMSNorm(x) * router_scale / sqrt(hidden))); the top_k of each token,
     * their p divided by their sum, times per_expert_scale. */
    void (*route)(Device *d, const Layer *l);
    /* h2 = RMSNorm(sum of weight * expert(RMSNorm(x, pre_experts_norm)), post_experts_norm). */
    void (*experts)(Device *d, const Layer *l);
    /* x = (x + RMSNorm(h1 [+ h2], post_ffn_norm)) * layer_scalar. */
    void (*join)(Device *d, const Layer *l);
    /* logits [count][vocab], in host memory, of tokens first .. first + count - 1: softcap(head .
     * RMSNorm(x, final_norm)). */
    void (*head)(Device *d, int first, int count, float *logits);
    /* The k (1 .. MAX_TOP) largest of one token's logits by falling value, ties by rising id; NaN
     * counts as -inf.  ids [k] and logits [k] are in host memory.  Returns how many: k, or the
     * vocabulary where that is smaller; or -1 when the device cannot tell cheaply, and `head` must
     * be asked (the CPU's first SCREEN_AFTER calls return -1: head.c).  NULL: it never can. */
    int (*top)(Device *d, int token, int k, int *ids, float *logits);

    /* A drafter's device (draft.c) keeps the newest token, its position and a hidden state h
     * [backbone] from draft to draft, so that nobody waits for it before `drafts`.
     * draft_from: a round begins with the token id at pos.  h = RMSNorm(x[token], final_norm) of
     * the target's last step, or, where given is not NULL, given [backbone] (host memory; for
     * tests).
     * combine: instead of embed: x = pre . [embed[newest] * sqrt(backbone), h].
     * guess: behind the layers: h = post . RMSNorm(x, final_norm); the next draft, and the newest
     * token now, is the one with the largest logit, of equal ones the first.
     * drafts: those of this round, n <= MAX_DRAFTS, into ids [n] (host memory). */
    void (*draft_from)(Device *d, int token, int id, int64_t pos, const float *given);
    void (*combine)(Device *d);
    void (*guess)(Device *d);
    void (*drafts)(Device *d, int n, int *ids);

    /* For tests: the residual stream [n][hidden], the last route's choices [n][top_k], and one
     * token's h as above, [hidden] or [backbone], copied to the host. */
    void (*read_x)(Device *d, float *x);
    void (*read_route)(Device *d, int *expert, float *weight);
    void (*hidden)(Device *d, int token, float *h);

    /* Of the choices of experts that found layers with slots so far: how many there were, and how
     * many had their expert in a slot.  NULL: the device never has slots. */
    void (*slot_hits)(const Device *d, int64_t *chosen, int64_t *hits);

    /* ---- pictures ---- */

    /* After embed: x of the tokens first .. first + count - 1 of this step is soft [count][hidden]
     * (host memory), and in sliding layers each of them sees all of them, the later ones too. */
    void (*embed_soft)(Device *d, int first, int count, const float *soft);

    /* The tower, for one picture at a time, which keeps its own state between these three.  pixels
     * [rows * columns][PATCH_SIZE] (host memory), 0 to 1, the patches row by row; rows and columns
     * are multiples of POOL.
     *     x = patch . (2 pixels - 1) + position of the column + position of the row
     * Returns 0, or -1: no memory, for the picture or, on a device with memory of its own, for the
     * tower. */
    int (*see)(Device *d, const Tower *v, const float *pixels, int columns, int rows);
    /* x += RMSNorm(o . attention(RMSNorm(x))), then, with y = RMSNorm(x),
     * x += RMSNorm(down . (gelu(gate . y) * (up . y))).
     * Each patch sees all patches; q, k, v have norms per head.  The first half of a head's
     * dimensions turns by the column, the other half by the row; dimension i of a half turns with
     * dimension i + head_dim / 4. */
    void (*see_layer)(Device *d, const Tower *v, const VisionLayer *l);
    /* soft [rows * columns / POOL^2][Config.hidden], in host memory: project . RMSNorm((mean of
     * POOL x POOL patches * sqrt(hidden) - std_bias) * std_scale).  Ends the picture. */
    void (*see_pool)(Device *d, const Tower *v, float *soft);
} Ops;

extern const Ops cpu_ops;

/* Whether this machine's kernels can round the activations of many tokens to 8 bits for one of
 * these matrices, or, with AMX, to BF16 for all. */
int cpu_rounds_to_8(const Config *c, const Weights *w);

/* The name of the kernels that cpu_ops computes with: "avx512" and the like (GEMMA4_CPU). */
const char *cpu_kernel_name(void);

extern const Ops plain_ops;             /* the formulas: the tests compare the others with it */

extern const Ops cuda_ops;              /* only in programs that are linked with cuda.cu */
int cuda_found(Error *err);             /* 1 when there is a GPU; 0 with err, which says why not */

/* Number formats, shared by all devices' host code. */
static inline float bf16_to_float(uint16_t b) {
    union { uint32_t u; float f; } x = {(uint32_t)b << 16};
    return x.f;
}

/* F16 (IEEE binary16): a sign, an exponent of 5 bits with bias 15, a mantissa of 10 bits.  The bits
 * become those of a float32 of 2^-112 times the value, which a product scales up; exponent 31
 * (infinities and NaN) stays the largest exponent. */
static inline float f16_to_float(uint16_t h) {
    union { uint32_t u; float f; } x = {(uint32_t)(h & 0x7fff) << 13};
    if ((h & 0x7c00) == 0x7c00) x.u |= 0x7f800000;
    else x.f *= 0x1p112f;
    x.u |= (uint32_t)(h & 0x8000) << 16;
    return x.f;
}

/* How many blocks of `size` cover n; the last one may be cut off. */
static inline int n_blocks(int n, int size) { return (n + size - 1) / size; }

/* Bytes of a row of w as it lies in the file, without its scales. */
static inline int stored_row_bytes(const Weight *w) {
    if (w->dtype == DT_U8) return w->cols / 2;
    if (w->dtype == DT_I32) return w->cols * w->bits / 8;
    return w->cols * dtype_size[w->dtype];
}

/* Number i of an array of DT_F32, DT_BF16 or DT_F16, aligned or not. */
static inline float float_at(DType dtype, const uint8_t *data, int64_t i) {
    float f;
    uint16_t u;
    if (dtype == DT_F32) {
        memcpy(&f, data + 4 * i, 4);
        return f;
    }
    memcpy(&u, data + 2 * i, 2);
    return dtype == DT_F16 ? f16_to_float(u) : bf16_to_float(u);
}

#endif
