/* cpu.h - what the files of the CPU's device share: its state, its threads, its matrix product.
 *
 * The files call each other downwards only:
 *
 *     offload.c                       experts alone, for a GPU
 *     handover.c                      signals between that GPU and the CPU
 *     cpu.c                           opens and closes the device; the table of its operations
 *     vision.c                        the vision tower
 *     attention.c  moe.c  head.c      the operations of a layer, the logits
 *     flash.c                         flash attention
 *     residual.c                      the residual stream and its norms
 *     multiply.c                      a matrix times tokens
 *     strips.c                        a matrix times many tokens, with AVX2 or NEON
 *     threads.c                       tasks for all threads
 *     kernels.h                       dot products and number formats, for each kind of CPU
 *
 * All matrices are row major; activations are float32 [tokens][columns] unless a comment says
 * otherwise.  A function whose name begins with cpu_ is an operation: ops.h has its contract. */
#ifndef CPU_H
#define CPU_H

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <sys/mman.h>

#include "kernels.h"

/* ---- constants that several files use ---- */

/* Rows of a matrix that one task multiplies; a multiple of BLOCK, so that a task can pack what it
 * computes.  Small enough that the threads end together: a matrix of 704 rows makes 22 tasks.
 * How 32 was chosen is not recorded.  To tune it again, compare decode and a prompt of 20 tokens
 * of a full-width checkpoint (bench/README.md, "CPU kernels"). */
#define ROWS_PER_TASK 32

/* ROWS_PER_TASK where many tokens are in strips.  The strips no longer fit the second-level cache,
 * and every task reads them all, so a task does more with them: 128 rows of 2816 columns are 720 KB
 * of BF16 in a cache of 2 MB.  How 128 was chosen is not recorded.  To tune it again, compare
 * prompts of 512 tokens with GEMMA4_CPU=amx. */
#define MANY_ROWS 128

/* A strip is the activations of up to 16 tokens, column after column (`to_strip` in strips.c): as
 * many tokens as a tile of AMX has rows. */
#define STRIP_TOKENS 16

/* A step of so many tokens or fewer never uses strips or panels, whose sums have other bits: so a
 * token's logits do not depend on how many drafts are verified beside it.  The newest token and
 * MAX_DRAFTS drafts are 16. */
#define FEW_TOKENS (MAX_DRAFTS + 1)

/* Patches of a picture that are in strips at once: as many as a prompt's tokens in a step
 * (`chunk` of cpu_ops), so that both share the memory for strips.  Not tuned by itself.  To tune
 * it, time a picture of 2394 patches (bench/README.md, "Pictures"). */
#define PATCH_CHUNK 512

/* ---- threads.c ---- */

/* One task of a job: `task` counts from 0, `thread` is the index of the thread that runs it, 0
 * for the caller of `parallel`.  No two tasks run on one thread at a time, so scratch memory
 * [n_threads] needs no lock.  arg is the job's and shared by all tasks. */
typedef void TaskFn(void *arg, int task, int thread);

/* Some tasks of a job, next .. end - 1: next in the lower half of the word, end in the upper one.
 * A cache line each, as threads that steal write to it, too. */
typedef struct {
    _Alignas(64) _Atomic uint64_t word;
} Queue;

typedef struct Worker Worker;

/* The threads of a device.  threads.c alone reads and writes the fields, but for n_threads. */
typedef struct {
    int n_threads;                      /* the caller's included */
    int n_running;                      /* how many of them may be awake at once */
    Worker *worker;                     /* [n_threads] */
    Queue *queue;                       /* [n_threads] */
    atomic_int n_queues;                /* those that the job uses */
    atomic_int left;                    /* tasks of the job that are not done */
    TaskFn *fn;                         /* the job; read only by who has a task of it */
    void *arg;
    atomic_uint round;                  /* counts the jobs; a worker waits until it changes */
    atomic_int sleeping;                /* workers that wait for `start` and have no permit */
    atomic_int waiting;                 /* 1: the caller waits for `finish` */
    atomic_int quit;                    /* 1: no job comes any more */
    pthread_mutex_t lock;               /* for those who sleep */
    pthread_cond_t start, finish;
    int permits;                        /* wake-ups that no worker has taken yet; under the lock */
} Pool;

/* Starts n_threads - 1 threads, of which with the caller no more than n_running are ever awake at
 * once: the number of cores.  Returns 0, or -1 with err; then, too, pool_close must be called.
 * p is zero before and must not move. */
int pool_open(Pool *p, int n_threads, int n_running, Error *err);

/* Ends the threads and waits for them; no job may be running. */
void pool_close(Pool *p);

/* Runs fn(arg, task, thread) once for each task = 0 .. n_tasks - 1 on all threads, in no
 * particular order, and returns when all are done: what they wrote is visible then, to the
 * caller and to the tasks of the next job.  For example cpu_attend reads the K and V that the tasks
 * of cpu_qkv wrote into the cache.  Not to be called from a task. */
void parallel(Device *d, int n_tasks, TaskFn *fn, void *arg);

/* ---- the device ---- */

/* Activations [n][cols] in the forms that a product can take. */
typedef struct {
    float *x;                           /* [n][cols] */
    /* The same numbers packed: rounded to 16 bits, in the form that `pack` of kernels.h describes.
     * [n][packed_size(cols)], for matrices of NVFP4 and integers; NULL with --exact. */
    uint8_t *packed;
    /* The same numbers as records of panels, [n][record_bytes(d, cols)]: in steps of more than
     * FEW_TOKENS, of a device with panels; otherwise not written, or NULL. */
    uint8_t *records;
    /* What to_strip (strips.c) made of the tokens of one product, in the order of that product;
     * then it is used instead of the other two.  NULL: there is none. */
    const uint8_t *strips;
    int slot;                           /* the first token's place among those of d->low */
} Input;

struct Device {
    const Config *c;                    /* the model's, not the device's */
    const Weights *w;
    const Kernels *kernel;
    int rounds_activations;             /* 1: packed activations; 0 with --exact */
    int rounds_to_8;                    /* 1: --activations 8, where the kernels can */
    const PanelKernels *panels;         /* NULL: there are none, or nothing is rounded */
    Pool pool;
    int max_n;                          /* the most tokens of a step */
    int n;                              /* tokens of the step */
    int64_t pos;                        /* position of its first token */
    int dense_rows;                     /* ROWS_PER_TASK or MANY_ROWS: see task_rows */

    /* Activations [max_n][…]; the device owns them. */
    float *x;                           /* residual stream [hidden] */
    Input y;                            /* a norm of it [hidden] */
    float *q;                           /* [n_heads * head_dim] */
    float *q_turning;                   /* [n_heads * k_dim]: see finish_queries in attention.c */
    float *k, *v;                       /* [n_kv_heads * head_dim] */
    Input att;                          /* what attention gives [n_heads * head_dim] */
    Input gate;                         /* [intermediate], or [top_k * expert_size] */
    float *up;                          /* the same shape */
    float *h1, *h2;                     /* output of the dense MLP, of the experts [hidden] */
    int *last;                          /* the last token of the step that each token sees in
                                         * sliding layers: its own index, or its picture's end */
    float *cos, *sin;                   /* RoPE of the step's positions [head_dim / 2] */
    const float *rope_freq;             /* inv_freq of these cos and sin; NULL: there are none */

    /* Experts.  [max_n][…] but for first_slot, chosen, strip_expert and first_strip, of which there
     * is one for the whole step. */
    float *score;                       /* of the router [n_experts] */
    int *expert;                        /* the chosen ones [top_k] */
    float *expert_weight;               /* their weights [top_k] */
    float *expert_out;                  /* the output of a slot's expert [top_k][hidden] */
    /* A slot is one choice of one token; slots are sorted by expert: see group_by_expert. */
    int *slot_token, *slot_of;          /* [top_k] */
    int *first_slot;                    /* [n_experts + 1] */
    int *chosen, n_chosen;              /* experts that some token chose [n_experts] */
    int *strip_expert, n_strips;        /* experts with many tokens: the expert of each strip
                                         * [n_strips] */
    int *first_strip;                   /* the first strip of an expert [n_experts] */

    /* A drafter. */
    float *pair;                        /* its input [2 * backbone]: embedding, h */
    Device *target;                     /* the device of its target, which closes later */
    int draft[MAX_DRAFTS], n_drafts, newest;
    float *logits;                      /* [vocab] */

    struct HeadCopy *head_copy;         /* int8 copy of the head, once it is made: see head.c */
    int n_tops;                         /* how often it was wanted, up to SCREEN_AFTER */
    struct Sight *sight;                /* the picture in the tower, or NULL: see vision.c */

    /* What tasks that share the keys of a query have found in one part each: [parts][n][n_heads],
     * up to n_shared of these; and in all parts so far, [n][n_heads]. */
    int n_shared;
    float *shared_out;                  /* [n_shared][head_dim] */
    struct Softmax *shared, *found;     /* [n_shared] */

    uint8_t *strips;                    /* of the product at hand; NULL: there are never any */
    /* A x of all adapters of the product at hand, where the model has adapters: rows of
     * adapter_width numbers, for max_n tokens, or for the slots of their experts. */
    float *low;

    /* Scratch of each thread [n_threads]. */
    float **rows;                       /* expanded rows [MANY_ROWS / 2 + 1][most columns + 64] */
    float **columns;                    /* of B: see transpose_rows; NULL: there are no adapters */
    /* Of attention, for the queries of a task: see attention_reserve. */
    float **att_score;                  /* scores of a part [queries][PART_KEYS] */
    float **att_out;                    /* sums over V of a part [queries][head_dim] */
    struct Softmax **att_found;         /* of all parts so far, then of one [2 * queries] */
    struct Flash **flash;               /* its entries are NULL where it is never used */

    void **owned;                       /* [n_owned] all memory that cpu_close frees: see own */
    int n_owned, cap_owned;
};

/* Lets the processor rest for some 50 cycles, in a loop that waits for another one. */
static inline void cpu_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    /* ISB, as in Rust's spin_loop; YIELD does nothing on most cores. */
    __asm__ volatile("isb");
#endif
}

/* n rounded up to a multiple of `to`. */
static inline int round_up(int n, int to) { return n_blocks(n, to) * to; }

/* Where block number `block` of `size` rows ends, of a matrix of `rows` rows. */
static inline int block_end(int block, int rows, int size) {
    return (block + 1) * size < rows ? (block + 1) * size : rows;
}

/* Returns p, which is the device's from now on: cpu_close frees it. */
static inline void *own(Device *d, void *p) {
    d->owned = xgrow(d->owned, d->n_owned, &d->cap_owned, sizeof *d->owned);
    return d->owned[d->n_owned++] = p;
}

/* Room of the device for [n][each] float32 at a multiple of 64 bytes, not initialised, and 16 more,
 * as some kernels read whole vectors. */
static inline float *floats(Device *d, int64_t n, int64_t each) {
    return own(d, xaligned((n * each + 16) * 4));
}

static inline void copy(float *to, const float *from, int64_t n) {
    memcpy(to, from, (size_t)n * sizeof *to);
}

static inline void clear(float *x, int64_t n) { memset(x, 0, (size_t)n * sizeof *x); }

/* Pages come from the machine when they are first written, so a long context costs nothing until
 * it is used.  NULL: there are none.  munmap(p, bytes) gives them back. */
static inline void *map_pages(size_t bytes) {
    int private = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, private, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* ---- multiply.c: a matrix times tokens ---- */

/* Row `row` of w as float32 [cols]. */
void expand_row(const Kernels *kn, const Weight *w, int64_t row, float *out);

/* y[t][r] = W[r] . x[token[t]] for the rows r = first .. last - 1, at most MANY_ROWS of them, and
 * t = 0 .. n - 1; token NULL: x[t].  With in.strips, which have the tokens in the order of t,
 * `token` is not used.  ldy: the length of a row of y.  `thread` is that of the task.
 *
 * Every y[t][r] is computed by itself, in an order of additions that depends on the kernels and
 * on W's columns alone: the number of threads, of rows and of tokens never changes a bit, but for
 * strips and panels, whose orders are others (see `gemm` and PanelKernels in kernels.h).
 *
 * The adapters of w add scale * B (A x), for which d->low must hold A x: see prepare_input. */
void multiply(Device *d, int thread, const Weight *w, int first, int last, Input in,
              const int *token, int n, float *y, int ldy);

/* Whether a matrix can meet strips of BF16: at least 16 bits of its numbers remain. */
static inline int takes_strips(const Weight *w) { return w->dtype != DT_F32; }

/* `multiply` where the tokens are in strips of BF16, which w must take. */
void multiply_strips(Device *d, int thread, const Weight *w, int first, int last,
                     const uint8_t *strips, int n, float *y, int ldy);

/* `multiply` where the tokens are in.records, which w must take (meets_panels). */
void multiply_panels(const Device *d, const Weight *w, int first, int last, Input in,
                     const int *token, int n, float *y, int ldy);

/* Bytes of a token's records. */
static inline int64_t record_bytes(const Device *d, int64_t cols) {
    return (cols + BLOCK - 1) / BLOCK * d->panels->record;
}

/* Whether n of the step's tokens `in` meet panels of w.  Depends on the step, on the matrix and on
 * the kernels, never on the number of threads. */
int meets_panels(const Device *d, const Weight *w, Input in, int n);

/* Packs columns from .. to - 1 of token t of `in` [][cols], also into records where the step can
 * need these; `from` is a multiple of BLOCK, `to` one or cols.  Does nothing with --exact. */
void pack(const Device *d, Input in, int64_t t, int cols, int from, int to);

/* Whether a product with n of the step's tokens is worth strips, where the matrix does not meet
 * panels.  Depends on the step and on the kernels, never on the number of threads. */
static inline int uses_strips(const Device *d, int n) {
    return d->strips && d->n > FEW_TOKENS && n > TOKENS;
}

/* Whether attention of the step is flash attention (flash.c).  Depends on the step and on the
 * kernels, never on the number of threads. */
static inline int uses_flash(const Device *d) {
    return d->rounds_activations && d->kernel->flash && d->n > FEW_TOKENS;
}

/* Whether n of the step's tokens `in` must be in strips for w or for its adapters. */
int needs_strips(const Device *d, const Weight *w, Input in, int n);

/* Rows of w that a task multiplies with n of the step's tokens `in`, outside of experts.  Panels
 * are as fast with few rows, and with few rows more threads share a matrix. */
static inline int task_rows(const Device *d, const Weight *w, Input in, int n) {
    return meets_panels(d, w, in, n) ? ROWS_PER_TASK : d->dense_rows;
}

/* Whether n of the step's tokens `in` must be packed for w.  Tokens that w meets in strips alone
 * need not be. */
int needs_packing(const Device *d, const Weight *w, Input in, int n);

/* d->strips from n tokens x [n][cols]. */
void make_strips(Device *d, const float *x, int cols, int n);

/* d->strips from the slots of all experts that have many tokens, as strip_expert and first_strip
 * say.  Slot s is x[token[s]], or with token NULL x[s]; x is [][cols]. */
void make_expert_strips(Device *d, const float *x, int cols, const int *token);

/* `in` [n][cols] as a product with n tokens takes it: where that is worth it, with strips, which
 * are made here.  They are good until the next strips are made. */
Input with_strips(Device *d, Input in, int cols, int n);

/* Fills d->low with A x of all adapters of w, for n tokens that multiply takes likewise. */
void multiply_low(Device *d, int thread, const Weight *w, Input in, const int *token, int n);

/* `in` [n][cols] as a product of these up to three matrices (NULL, or without data: there is none)
 * takes it: with strips where one needs them, and d->low filled in where they have adapters. */
Input prepare_input(Device *d, Input in, const Weight *const w[3], int n);

/* y[i] [n][rows of w[i]] = in [n][cols] . w[i]^T: up to three matrices with one input. */
typedef struct {
    Device *d;
    const Weight *w[3];                 /* NULL, or without data: there is none */
    Input in;                           /* packed already */
    float *y[3];
    int n;
} Projection;

void project(Projection p);

/* ---- strips.c: many tokens at once in strips of float32 ---- */

/* n <= 16 tokens of `cols` columns as a strip of strip_size(cols) bytes: float32 [cols][16 tokens],
 * or what the kernels' own to_strip makes.  The places of further tokens hold anything. */
void to_strip(const Kernels *kn, const float *const x[STRIP_TOKENS], int n, int cols,
              uint8_t *strip);

/* y[t][r] = scale * rows[r] . x[t] for t < n and r < n_rows <= MANY_ROWS / 2.  Rows have float32
 * numbers, `stride` apart, of which cols are multiplied.  The n tokens are in strips of float32
 * that follow each other, strip_size(strip_cols) bytes each. */
void multiply_float_strips(const Kernels *kn, const float *rows, int stride, int cols,
                           const float *strips, int strip_cols, int n, int n_rows, float scale,
                           float *y, int ldy);

/* ---- residual.c: the residual stream, its norms ---- */

/* y [n] = x / sqrt(mean(x^2) + eps) * weight (Gemma4RMSNorm); weight NULL: none.  x and y may be
 * the same. */
void rms_norm(const Device *d, float *y, const float *x, const float *weight, int n);

/* d->y = RMSNorm(x, weight) for n rows [hidden], packed: the input of products. */
void normed_input(Device *d, float *x, const float *weight, int n);

/* x += RMSNorm(y, weight) for n rows of `size` numbers; y is overwritten. */
void add_normed(Device *d, float *x, float *y, const float *weight, int n, int size);

/* y = RMSNorm(x, weight) for n rows of `size` numbers; x and y may be the same. */
void norm_rows(Device *d, float *y, float *x, const float *weight, int n, int size);

/* Begins a step of n tokens at position pos. */
void begin_step(Device *d, int n, int64_t pos);

/* out [cols of the embedding] = embed[id] * sqrt(cols). */
void embed_row(const Device *d, int id, float *out);

void cpu_embed(Device *d, const int *ids, int n, int64_t pos);
void cpu_embed_soft(Device *d, int first, int count, const float *soft);
void cpu_join(Device *d, const Layer *l);

/* ---- flash.c: flash attention ---- */

/* Flash attention: FLASH_KEYS keys at a time, whose softmax is taken as they come (online
 * softmax: Dao et al., FlashAttention, 2022, algorithm 1).  Scratch of one thread. */
typedef struct Flash {
    _Alignas(64) float score[FLASH_QUERIES][FLASH_KEYS];
    /* e^(score - most): where strips are BF16 the sum of two of them (see soften in kernels.h). */
    union {
        uint16_t half[2][FLASH_QUERIES][FLASH_KEYS];
        float whole[FLASH_QUERIES][FLASH_KEYS];
    } weight;
    int first[FLASH_QUERIES];           /* of these keys, a query sees first .. last - 1 */
    int last[FLASH_QUERIES];
    float most[FLASH_QUERIES];          /* the largest score so far */
    float sum[FLASH_QUERIES];           /* the sum of e^(score - most) */
    float *query;                       /* [16][wide]: queries before they become a strip */
    float *key;                         /* float32 [MANY_ROWS / 2][wide]; not with gemm */
    float *out;                         /* [FLASH_QUERIES][v_wide], divided by sum at the end */
    uint8_t *strips;                    /* queries [FLASH_QUERIES / 16][strip_size(wide)] */
} Flash;

/* For K and V of up to `dim` numbers each, a multiple of 32.  The device owns it. */
Flash *flash_new(Device *d, int64_t dim);

/* Before the first keys: n queries, values of v_wide numbers. */
void flash_begin(Flash *f, int n, int v_wide);

/* Adds what n queries in f->strips find in up to FLASH_KEYS keys.  Row k of `rows` begins at
 * k * stride and holds K [wide], multiplied with the query and `scale`, and from v_at on V
 * [v_wide]; wide and v_wide are multiples of 32, and `count` keys up to a multiple of 32 are
 * read. */
void flash_keys(const Kernels *kn, Flash *f, int n, const uint16_t *rows, int stride, int count,
                int wide, int v_at, int v_wide, float scale);

/* ---- attention.c ---- */

/* Memory of attention that does not grow with the context, for up to `group` query heads that share
 * their keys, of head_dim `dim`.  d->c and d->pool are there, and the arrays [n_threads]. */
void attention_reserve(Device *d, int group, int dim);

/* RoPE of v [2 * half]: dimension i turns with dimension i + half, by an angle whose cosine and
 * sine are cos[i] and sin[i]. */
void apply_rope(float *v, const float *cos, const float *sin, int half);

void cpu_qkv(Device *d, const Layer *l, KvCache *kv);
void cpu_attend(Device *d, const Layer *l, const KvCache *kv);
void cpu_attn_out(Device *d, const Layer *l);

/* ---- moe.c: the dense MLP, the router, the experts ---- */

/* gate [n] = gelu_pytorch_tanh(gate) * up: the activation of every MLP of the model. */
void gelu_times(const Device *d, float *gate, const float *up, int n);

void cpu_mlp(Device *d, const Layer *l);
void cpu_route(Device *d, const Layer *l);
void cpu_experts(Device *d, const Layer *l);

/* ---- head.c ---- */

void cpu_head(Device *d, int first, int count, float *logits);
int cpu_top(Device *d, int token, int k, int *ids, float *logits);

/* Gives the pages of the head's int8 copy back, where there is one. */
void head_copy_free(Device *d);

/* ---- vision.c ---- */

/* The most columns that a matrix of the tower has. */
int tower_width(const Tower *v);

/* Columns that flash attention in the tower needs for K, and as many for V. */
int tower_flash_width(const Tower *v);

/* Frees the picture's memory, where there is a picture. */
void sight_free(Device *d);

int cpu_see(Device *d, const Tower *v, const float *pixels, int columns, int rows);
void cpu_see_layer(Device *d, const Tower *v, const VisionLayer *l);
void cpu_see_pool(Device *d, const Tower *v, float *soft);

#endif
