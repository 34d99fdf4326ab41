/* cpu.c - the operations of ops.h on the CPU, for machines without a GPU.  plain.c is their oracle.
 *
 * One matrix product serves everything: `multiply`, a block of rows with every token, by the kernels of cpu.h.  The sum over a
 * row is taken in one fixed order whatever the number of tokens or threads, so a token's result never depends on its
 * neighbours; only AMX takes many tokens in another order than few, and its rounding in the 17th bit is not used with --exact.
 * Memory bounds a single token: W is read once, row after row, fetched ahead.  The arithmetic bounds a prompt:
 * W stays in registers for six tokens and in the second-level cache for all of them. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu.h"

#define ROWS_PER_TASK 32                /* a multiple of BLOCK: what a task computes it can pack, too */
#define MANY_ROWS 128                   /* the same, with strips of more tokens than the second-level cache holds */
#define FEW 16                          /* tokens that a drafter's guesses make at most: any number of them gives the same bits */
#define FETCH_AHEAD 1408                /* bytes, at each of four places: in flight while memory answers */
#define COLS_NEAR 1408                  /* columns of TOKENS tokens whose activations stay in the nearest cache; a multiple of 128 */

#define SEEN 512                        /* patches of a picture that are in strips at once */

#define VALUES 16                       /* rows of V that are added at once: their columns of a register or two stay near */
#define SCORES (1 << 17)                /* attention scores that stay in the second-level cache */

/* Activations [n][cols] as a product takes them. */
typedef struct {
    float *x;
    uint8_t *packed;                    /* [n][packed_size(cols)] (cpu.h), for matrices of NVFP4; NULL with --exact */
    const uint8_t *strips;              /* what to_strip (cpu.h) made of the tokens of one product, in its order; NULL: use the above */
} Input;

/* ------------------------------------------------------------------------------------------------------------
 * The device: threads and scratch */

typedef struct Pool Pool;
typedef void TaskFn(void *arg, int task, int thread);

/* Of a job's tasks, neighbours that one thread begins with: what it fetches ahead of a task is its next one.  Whoever has done his
 * takes from the others'. */
typedef struct {
    _Alignas(64) atomic_int next;
    int end;
} Share;

struct Pool {
    pthread_t *thread;
    Share *share;                       /* [n_threads] */
    int n_threads;                      /* the caller's included */
    pthread_mutex_t lock;               /* for those who sleep */
    pthread_cond_t start, finish;
    atomic_uint round;                  /* counts the jobs; a thread waits for it to change */
    atomic_int busy, sleeping, waiting;
    int quit;
    TaskFn *fn;
    void *arg;
};

typedef struct {
    Pool *pool;
    int index;
} Worker;

typedef struct Sight Sight;             /* see "The vision tower" below */

struct Device {
    const Config *c;
    const Weights *w;
    const Kernels *kernel;
    int packed;                         /* activations are rounded for matrices of NVFP4 */
    Pool pool;
    Worker *worker;
    int n, max_n;
    int64_t pos;
    /* Activations, all float32 [max_n][…]. */
    float *x;                           /* residual stream [hidden] */
    Input y;                            /* a norm of it [hidden] */
    float *q;                           /* [n_heads * head_dim] */
    Input att;                          /* likewise */
    float *q_turned;                    /* [n_heads * k_dim] where the cache keeps only the dimensions of K that turn */
    float *k, *v;                       /* [n_kv_heads * head_dim] */
    Input gate;                         /* [intermediate], or [top_k * expert_size] */
    float *up;                          /* likewise */
    float *h1, *h2;                     /* [hidden] */
    float *pair;                        /* a drafter's input [2 * backbone]: embedding, h */
    Device *target;
    int draft[MAX_DRAFTS], n_drafts, newest;
    float *logits;                      /* its own [vocab] */
    float *part;                        /* each chosen expert's output [top_k][hidden] */
    float *score;                       /* [n_experts] */
    int *expert;                        /* [top_k], and their weights */
    float *expert_weight;
    int *slot_token, *slot_of, *first_slot;     /* tokens grouped by expert: see group_by_expert */
    int *chosen, n_chosen;              /* experts that have any [n_experts] */
    int dense_rows;                     /* of a task: ROWS_PER_TASK or MANY_ROWS */
    uint8_t *strips;                    /* activations of the product at hand, see Input; NULL: never */
    int *strip_expert, *first_strip, n_strips;  /* with many tokens for an expert: the expert of a strip, the expert's first one */
    float *cos, *sin;                   /* RoPE of this step's positions [max_head_dim / 2] */
    const float *turned_by;             /* the frequencies that cos and sin were computed from */
    struct Screen *screen;              /* an int8 copy of the head, once it is made; how often it was wanted */
    int n_tops;
    /* For each thread: expanded rows; attention scores [n_scores]; see flash_task. */
    float **rows, **att_score;
    struct Flash **flash;
    int *last;                          /* of each token of the step, the last token that it sees in sliding layers */
    Sight *sight;                       /* the picture in the tower, or NULL */
};

static void work(Pool *p, int index) {
    for (int i = 0; i < p->n_threads; i++) {
        Share *s = &p->share[(index + i) % p->n_threads];
        for (int task; (task = atomic_fetch_add(&s->next, 1)) < s->end;) p->fn(p->arg, task, index);
    }
}

/* Between two operations of one token the next job comes within microseconds: spin a little, then sleep. */
static int spin(int i) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");            /* some 50 cycles, as Rust's spin_loop; YIELD is nothing on most cores */
#endif
    return i < 2000;
}

static void *worker_main(void *arg) {
    Worker *w = arg;
    Pool *p = w->pool;
    for (unsigned seen = 0;; seen++) {
        for (int i = 0; spin(i) && atomic_load(&p->round) == seen; i++)
            ;
        if (atomic_load(&p->round) == seen) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->sleeping, 1);          /* before round is looked at: see post */
            while (atomic_load(&p->round) == seen) pthread_cond_wait(&p->start, &p->lock);
            atomic_fetch_sub(&p->sleeping, 1);
            pthread_mutex_unlock(&p->lock);
        }
        if (p->quit) return NULL;
        work(p, w->index);
        if (atomic_fetch_sub(&p->busy, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->finish);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

/* A new round: who spins sees it, who sleeps is woken. */
static void post(Pool *p) {
    atomic_fetch_add(&p->round, 1);
    if (!atomic_load(&p->sleeping)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
}

/* Runs fn(arg, task, thread) for task = 0 .. n_tasks - 1 on all threads, each task once, and waits. */
static void parallel(Device *d, int n_tasks, TaskFn *fn, void *arg) {
    Pool *p = &d->pool;
    if (n_tasks <= 1 || p->n_threads == 1) {
        for (int i = 0; i < n_tasks; i++) fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    for (int i = 0; i < p->n_threads; i++) {
        atomic_store(&p->share[i].next, (int)((int64_t)n_tasks * i / p->n_threads));
        p->share[i].end = (int)((int64_t)n_tasks * (i + 1) / p->n_threads);
    }
    atomic_store(&p->busy, p->n_threads - 1);
    post(p);
    work(p, 0);
    for (int i = 0; spin(i) && atomic_load(&p->busy); i++)
        ;
    if (!atomic_load(&p->busy)) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, 1);
    while (atomic_load(&p->busy)) pthread_cond_wait(&p->finish, &p->lock);
    atomic_store(&p->waiting, 0);
    pthread_mutex_unlock(&p->lock);
}

static void screen_free(Device *d);
static void sight_free(Device *d);
static struct Flash *flash_new(int64_t dim);
static void flash_free(struct Flash *f);

static void cpu_close(Device *d) {
    if (!d) return;
    screen_free(d);
    sight_free(d);
    Pool *p = &d->pool;
    p->quit = 1;
    post(p);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->thread[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->finish);
    void *all[] = {d->x, d->y.x, d->y.packed, d->q, d->q_turned, d->att.x, d->att.packed, d->k, d->v, d->gate.x, d->gate.packed, d->up,
                   d->h1, d->h2, d->pair, d->part, d->score, d->expert_weight, d->cos, d->sin, d->expert, d->slot_token, d->slot_of,
                   d->first_slot, d->chosen, d->strips, d->strip_expert, d->first_strip};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(d->logits);
    for (int i = 0; i < p->n_threads; i++) {
        free(d->rows[i]);
        free(d->att_score[i]);
        flash_free(d->flash[i]);
    }
    free(d->last);
    free(d->rows);
    free(d->att_score);
    free(d->flash);
    free(d->worker);
    free(p->thread);
    free(p->share);
    free(d);
}

static int n_blocks(int n, int size) { return (n + size - 1) / size; }
static int round_up(int n, int to) { return n_blocks(n, to) * to; }

/* Room for the scores of a task of attend: at least one group of heads. */
static int64_t n_scores(int64_t group, int64_t context) { return group * context > SCORES ? group * context : SCORES; }

static float *floats(int64_t n, int64_t each) { return xaligned((n * each + 16) * 4); }

static void copy(float *to, const float *from, int64_t n) { memcpy(to, from, (size_t)n * sizeof *to); }
static void clear(float *x, int64_t n) { memset(x, 0, (size_t)n * sizeof *x); }

static Input input(int packed, int64_t n, int64_t cols) {
    return (Input){floats(n, cols), packed ? xaligned(n * packed_size(cols)) : NULL, NULL};
}

/* The most columns that a matrix of the tower has. */
static int tower_width(const Tower *v) {
    int width[] = {v->hidden, v->intermediate, v->n_heads * v->head_dim, PATCH_SIZE}, most = 0;
    for (int i = 0; i < 4; i++)
        if (width[i] > most) most = width[i];
    return most;
}

/* Columns of a head in the tower's attention with AMX. */
static int see_wide(const Tower *v) { return round_up(v->head_dim, 32); }

static Device *cpu_open(const Config *c, const Weights *w, const DeviceOptions *o, Error *err) {
    if (o->fp4_activations) {
        fail(err, "FP4 activations need a GPU of compute capability 12.0 or 12.1");
        return NULL;
    }
    Device *d = xcalloc(1, sizeof *d);
    int max_n = o->max_n, n_threads = o->n_threads;
    int dim = 0, q = 0, kv = 0, group = 0, cols = c->hidden > c->intermediate ? c->hidden : c->intermediate;
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &w->layer[i];
        if (l->head_dim > dim) dim = l->head_dim;
        if (l->n_kv_heads * l->head_dim > kv) kv = l->n_kv_heads * l->head_dim;
        if (c->n_heads / l->n_kv_heads > group) group = c->n_heads / l->n_kv_heads;
    }
    q = c->n_heads * dim;
    if (q > cols) cols = q;
    if (c->expert_size > cols) cols = c->expert_size;
    if (2 * c->backbone > cols) cols = 2 * c->backbone;
    if (2 * round_up(dim, 32) > cols) cols = 2 * round_up(dim, 32);
    const Tower *v = &w->tower;
    int seeing = v->n_layers ? SEEN : 0, wide = round_up(dim, 32);
    if (seeing && tower_width(v) > cols) cols = tower_width(v);
    if (seeing && 2 * see_wide(v) > wide) wide = 2 * see_wide(v);
    int64_t chosen = (int64_t)c->top_k * c->expert_size, inner = c->intermediate > chosen ? c->intermediate : chosen;
    d->c = c;
    d->w = w;
    d->kernel = choose_kernels();
    int packed = d->packed = d->kernel->nvfp4 && !o->exact;
    d->max_n = max_n;
    int64_t slots = (int64_t)max_n * c->top_k, experts = slots * packed_size(c->expert_size);
    d->x = floats(max_n, c->hidden), d->y = input(packed, max_n, c->hidden);
    d->q = floats(max_n, q), d->q_turned = floats(max_n, q), d->att = input(packed, max_n, q);
    d->k = floats(max_n, kv), d->v = floats(max_n, kv);
    d->gate = input(0, max_n, inner), d->up = floats(max_n, inner);
    if (packed) d->gate.packed = xaligned(max_n * packed_size(c->intermediate) > experts ? max_n * packed_size(c->intermediate) : experts);
    d->h1 = floats(max_n, c->hidden), d->h2 = floats(max_n, c->hidden);
    d->pair = floats(2, c->backbone);
    d->target = o->target;
    if (c->backbone) d->logits = floats(1, c->vocab);
    d->part = floats(max_n, (int64_t)c->top_k * c->hidden);
    d->score = floats(max_n, c->n_experts);
    d->expert_weight = floats(max_n, c->top_k);
    d->cos = floats(max_n, dim / 2), d->sin = floats(max_n, dim / 2);
    d->last = xcalloc(max_n, sizeof(int));
    d->expert = xcalloc(slots, sizeof(int));
    d->slot_token = xcalloc(slots, sizeof(int));
    d->slot_of = xcalloc(slots, sizeof(int));
    d->first_slot = xcalloc(c->n_experts + 1, sizeof(int));
    d->chosen = xcalloc(c->n_experts + 1, sizeof(int));
    if (packed && d->kernel->gemm && (max_n > FEW || seeing)) {
        int64_t dense = n_blocks(max_n > seeing ? max_n : seeing, 16) * strip_size(cols), most = slots / 16 + c->n_experts;
        int64_t grouped = most * strip_size(c->hidden > c->expert_size ? c->hidden : c->expert_size);
        d->strips = xaligned(dense > grouped ? dense : grouped);
        d->strip_expert = xcalloc(most, sizeof(int));
        d->first_strip = xcalloc(c->n_experts, sizeof(int));
    }
    d->rows = xcalloc(n_threads, sizeof *d->rows);
    d->att_score = xcalloc(n_threads, sizeof *d->att_score);
    d->flash = xcalloc(n_threads, sizeof *d->flash);
    for (int i = 0; i < n_threads; i++) {
        d->rows[i] = floats(MANY_ROWS / 2, cols + 64);
        d->att_score[i] = floats(1, n_scores(group, o->context));
        if (d->strips) d->flash[i] = flash_new(wide);
    }
    Pool *p = &d->pool;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->finish, NULL);
    p->thread = xcalloc(n_threads, sizeof *p->thread);
    p->share = xaligned(n_threads * (int64_t)sizeof *p->share);
    d->worker = xcalloc(n_threads, sizeof *d->worker);
    p->n_threads = 1;
    for (int i = 1; i < n_threads; i++) {
        d->worker[i] = (Worker){p, i};
        int why = pthread_create(&p->thread[i], NULL, worker_main, &d->worker[i]);
        if (why) {
            fail(err, "cannot start thread %d: %s", i, strerror(why));
            cpu_close(d);
            return NULL;
        }
        p->n_threads++;
    }
    return d;
}

/* Pages come from the machine when they are first written, so a long context costs nothing until it is used. */
static void *cpu_alloc(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void cpu_release(void *p, size_t bytes) { munmap(p, bytes); }

static void cpu_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

/* ------------------------------------------------------------------------------------------------------------
 * The matrix product */

static int block_end(int block, int rows, int size) { return (block + 1) * size < rows ? (block + 1) * size : rows; }

static void expand_row(const Kernels *kn, const Weight *w, int64_t row, float *out) {
    if (w->dtype == DT_U8)
        kn->expand_nvfp4(w->data + row * (w->cols / 2), w->block_scale + row * (w->cols / 16), w->scale, w->cols, out);
    else if (w->dtype == DT_BF16) kn->expand_bf16(w->data + 2 * row * w->cols, w->cols, out);
    else memcpy(out, w->data + 4 * row * w->cols, 4 * (size_t)w->cols);
}

/* y[t][r] = W[r] . x[token[t]] for rows first .. last - 1 and t = 0 .. n - 1; token NULL: x[t].  ldy: length of a row of y.
 * Every y[t][r] is computed by itself, in an order that depends on W's columns alone.
 *
 * Four rows are expanded to float32 in the nearest cache, then multiplied with every token. */
static void multiply_expanded(Device *d, int thread, const Weight *w, int first, int last, const float *x, const int *token, int n, float *y,
                              int ldy) {
    const float *row[ROWS];
    float *buffer = d->rows[thread], out[ROWS];
    int cols = w->cols;
    for (int r = first; r < last; r += ROWS) {
        int rows = last - r < ROWS ? last - r : ROWS;
        for (int k = 0; k < ROWS; k++) row[k] = buffer + (int64_t)(k < rows ? k : 0) * cols;
        for (int k = 0; k < rows; k++) expand_row(d->kernel, w, r + k, buffer + (int64_t)k * cols);
        for (int t = 0; t < n; t++) {
            d->kernel->dot4(x + (int64_t)(token ? token[t] : t) * cols, row, cols, out);
            copy(y + (int64_t)t * ldy + r, out, rows);
        }
    }
}

/* The same for the tokens of strips: the rows are expanded to BF16 in the second-level cache. */
static void multiply_strips(Device *d, int thread, const Weight *w, int first, int last, const uint8_t *strips, int n, float *y, int ldy) {
    int cols = round_up(w->cols, 32), stride = cols + 32;           /* 64 bytes more: rows are not a power of two apart in the cache */
    uint16_t *rows = (uint16_t *)d->rows[thread];
    for (int r = first; r < last; r++) {
        uint16_t *to = rows + (int64_t)(r - first) * stride;
        if (w->dtype == DT_BF16) memcpy(to, w->data + 2 * (int64_t)r * w->cols, 2 * (size_t)w->cols);
        else d->kernel->nvfp4_to_bf16(w->data + (int64_t)r * (w->cols / 2), w->block_scale + (int64_t)r * (w->cols / 16), w->cols, to);
        memset(to + w->cols, 0, 2 * (size_t)(cols - w->cols));
    }
    d->kernel->gemm(rows, stride, cols, strips, n, last - first, w->dtype == DT_BF16 ? 1 : w->scale, y + first, ldy);
}

/* The same with the kernels that expand in registers.  For a few tokens and a chunk of columns, which stay in the nearest cache,
 * all rows of the task: these stay in the second one.  The first tokens fetch them, row after row, from memory. */
static void multiply(Device *d, int thread, const Weight *w, int first, int last, Input in, const int *token, int n, float *y, int ldy) {
    const Kernels *kn = d->kernel;
    int nvfp4 = d->packed && w->dtype == DT_U8, cols = w->cols, row_bytes = w->dtype == DT_U8 ? cols / 2 : 2 * cols;
    _Alignas(64) float sum[MANY_ROWS / ROWS][TOKENS][ROWS][16];
    if (in.strips && w->dtype != DT_F32) {
        multiply_strips(d, thread, w, first, last, in.strips, n, y, ldy);
        return;
    }
    if (!nvfp4 && (w->dtype != DT_BF16 || !kn->bf16)) {
        multiply_expanded(d, thread, w, first, last, in.x, token, n, y, ldy);
        return;
    }
    /* The four rows of a pass lie a quarter of the task apart: memory is read fastest at several places at once. */
    int quarter = n_blocks(last - first, ROWS), near = (FETCH_AHEAD + row_bytes - 1) / row_bytes;
    for (int t = 0; t < n; t += TOKENS) {
        int count = n - t < TOKENS ? n - t : TOKENS, chunk = t == 0 ? cols : COLS_NEAR;
        const float *x[TOKENS];
        const uint8_t *packed[TOKENS];
        for (int i = 0; i < count; i++) {
            int64_t at = token ? token[t + i] : t + i;
            if (nvfp4) packed[i] = in.packed + at * packed_size(cols);
            else x[i] = in.x + at * cols;
        }
        for (int i = 0; i < quarter; i++) memset(sum[i], 0, (size_t)count * sizeof sum[i][0]);
        for (int from = 0; from < cols; from += chunk)
            for (int r = first; r < first + quarter; r++) {
                const uint8_t *row[ROWS], *scale[ROWS];
                int to = cols - from < chunk ? cols : from + chunk;
                int ahead = near + (r + near < first + quarter ? 0 : last - first - quarter);      /* in the next task's quarter */
                for (int k = 0; k < ROWS; k++) {
                    int64_t at = r + k * quarter < last ? r + k * quarter : r;
                    row[k] = w->data + at * row_bytes;
                    if (nvfp4) scale[k] = w->block_scale + at * (cols / 16);
                }
                if (nvfp4) kn->nvfp4(row, scale, from, to, packed, count, sum[r - first], t ? 0 : ahead * row_bytes);
                else kn->bf16(row, from, to, x, count, sum[r - first], t ? 0 : ahead * row_bytes);
            }
        for (int i = 0; i < count; i++)
            for (int r = first; r < first + quarter; r++) {
                float out[ROWS], rest[16];
                kn->fold(sum[r - first][i], out);
                for (int k = 0; k < ROWS && r + k * quarter < last; k++) {
                    int at = r + k * quarter;
                    if (nvfp4) out[k] *= NVFP4_FACTOR * w->scale;
                    else if (cols % 16) {
                        kn->expand_bf16(w->data + (int64_t)at * row_bytes + 2 * (cols / 16 * 16), cols % 16, rest);
                        out[k] = dot_rest(out[k], x[i] + cols / 16 * 16, rest, 0, cols % 16);
                    }
                    y[(int64_t)(t + i) * ldy + at] = out[k];
                }
            }
    }
}

typedef struct {
    Device *d;
    const Weight *w[3];
    Input in;
    float *y[3];
    int n;
} Product;

/* Columns from .. to - 1 of token t's activations; `from` is a multiple of BLOCK, `to` one or the end. */
static void pack(const Device *d, Input in, int64_t t, int cols, int from, int to) {
    int group = d->kernel->group;
    if (!d->packed) return;
    if (to == cols) to = (to + group - 1) / group * group;
    d->kernel->pack(in.x + t * cols, from, to, cols, in.packed + t * packed_size(cols));
}

/* Whether a product with n of the step's tokens is worth strips. */
static int is_many(const Device *d, int n) { return d->strips && d->n > FEW && n > TOKENS; }

typedef struct {
    Device *d;
    const float *x;
    int cols, n;                        /* n 0: the slots of experts that have many tokens */
    const int *token;                   /* of a slot; NULL: x is [slots][cols] */
} Strips;

static void strip_task(void *arg, int task, int thread) {
    Strips *s = arg;
    Device *d = s->d;
    const float *x[16];
    int first = 16 * task, end = s->n;
    (void)thread;
    if (!s->n) {
        int e = d->strip_expert[task];
        first = d->first_slot[e] + 16 * (task - d->first_strip[e]);
        end = d->first_slot[e + 1];
    }
    int n = end - first < 16 ? end - first : 16;
    for (int i = 0; i < n; i++) x[i] = s->x + (int64_t)(s->token ? s->token[first + i] : first + i) * s->cols;
    d->kernel->to_strip(x, n, s->cols, d->strips + task * strip_size(s->cols));
}

/* A product's input with its strips, where its n tokens are worth them. */
static Input with_strips(Device *d, Input in, int cols, int n) {
    if (!is_many(d, n)) return in;
    parallel(d, n_blocks(n, 16), strip_task, &(Strips){d, in.x, cols, n, NULL});
    in.strips = d->strips;
    return in;
}

static void product_task(void *arg, int task, int thread) {
    Product *p = arg;
    int i = 0;
    int size = p->d->dense_rows;
    for (; task >= n_blocks(p->w[i]->rows, size); i++) task -= n_blocks(p->w[i]->rows, size);
    multiply(p->d, thread, p->w[i], task * size, block_end(task, p->w[i]->rows, size), p->in, NULL, p->n, p->y[i], p->w[i]->rows);
}

/* y[i] [n][rows] = x [n][cols] W[i]^T, of up to three W with the same x, packed already; those without data are left out. */
static void products(Product p) {
    int tasks = 0, count = 0;
    for (int i = 0; i < 3; i++) {
        if (!p.w[i] || !p.w[i]->data) continue;
        p.w[count] = p.w[i];
        p.y[count++] = p.y[i];
        tasks += n_blocks(p.w[i]->rows, p.d->dense_rows);
    }
    if (count) p.in = with_strips(p.d, p.in, p.w[0]->cols, p.n);
    parallel(p.d, tasks, product_task, &p);
}

static float soft_cap(const Device *d, float l) { return d->c->softcap > 0 ? d->c->softcap * tanhf(l / d->c->softcap) : l; }

/* ------------------------------------------------------------------------------------------------------------
 * Norms, RoPE, embedding */

/* y = x / sqrt(mean(x^2) + eps) * weight (Gemma4RMSNorm; weight NULL: none).  x and y may be the same. */
static void rms_norm(const Device *d, float *y, const float *x, const float *weight, int n) {
    float sum[4];
    const float *const xs[4] = {x, x, x, x};
    d->kernel->dot4(x, xs, n, sum);
    float s = 1 / sqrtf(sum[0] / (float)n + d->c->eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * s * (weight ? weight[i] : 1);
}

typedef struct {
    Device *d;
    const float *weight;
} Norm;

static void input_task(void *arg, int t, int thread) {
    Norm *a = arg;
    Device *d = a->d;
    int hidden = d->c->hidden;
    (void)thread;
    rms_norm(d, d->y.x + (int64_t)t * hidden, d->x + (int64_t)t * hidden, a->weight, hidden);
    pack(d, d->y, t, hidden, 0, hidden);
}

/* y = RMSNorm(x, weight), the input of products. */
static void normed_input(Device *d, const float *weight) { parallel(d, d->n, input_task, &(Norm){d, weight}); }

/* One row of the embedding, times the square root of its width. */
static void embed_row(const Device *d, int id, float *out) {
    int n = d->w->embed.cols;
    float scale = sqrtf((float)n);
    expand_row(d->kernel, &d->w->embed, id, out);
    for (int i = 0; i < n; i++) out[i] *= scale;
}

static void begin_step(Device *d, int n, int64_t pos) {
    d->n = n;
    d->pos = pos;
    d->turned_by = NULL;
    d->dense_rows = d->strips && n > 64 ? MANY_ROWS : ROWS_PER_TASK;
}

static void cpu_embed(Device *d, const int *ids, int n, int64_t pos) {
    begin_step(d, n, pos);
    for (int t = 0; t < n; t++) {
        embed_row(d, ids[t], d->x + (int64_t)t * d->c->hidden);
        d->last[t] = t;
    }
}

static void cpu_embed_soft(Device *d, int first, int count, const float *soft) {
    copy(d->x + (int64_t)first * d->c->hidden, soft, (int64_t)count * d->c->hidden);
    for (int t = first; t < first + count; t++) d->last[t] = first + count - 1;
}

/* cos and sin of pos * inv_freq, in float32 as the reference; shared by all layers of one kind in a step. */
static void fill_rope(Device *d, const Layer *l) {
    if (d->turned_by == l->inv_freq) return;
    int half = l->head_dim / 2;
    for (int t = 0; t < d->n; t++)
        for (int i = 0; i < half; i++) {
            float angle = (float)(d->pos + t) * l->inv_freq[i];
            d->cos[(int64_t)t * half + i] = cosf(angle);
            d->sin[(int64_t)t * half + i] = sinf(angle);
        }
    d->turned_by = l->inv_freq;
}

/* Dimension i turns with dimension i + half. */
static void rotate(float *v, const float *cos, const float *sin, int half) {
    for (int i = 0; i < half; i++) {
        float a = v[i], b = v[i + half];
        v[i] = a * cos[i] - b * sin[i];
        v[i + half] = b * cos[i] + a * sin[i];
    }
}

/* ------------------------------------------------------------------------------------------------------------
 * Attention */

static void store(uint8_t *out, DType dtype, float scale, const float *v, int n) {
    if (dtype == DT_F32) memcpy(out, v, (size_t)n * sizeof *v);
    else if (dtype == DT_BF16)
        for (int i = 0; i < n; i++) ((uint16_t *)out)[i] = float_to_bf16(v[i]);
    else
        for (int i = 0; i < n; i++) out[i] = float_to_e4m3(v[i] / scale);
}

typedef struct {
    Device *d;
    const Layer *l;
    const KvCache *kv;
    int heads, tokens;                  /* of a task of attend */
} Attention;

/* The dimensions of v that turn, r pairs of them, as the cache of K alone: [2r]. */
static void take_turned(float *out, const float *v, int half, int r) {
    copy(out, v, r);
    copy(out + r, v + half, r);
}

/* One token: norms, RoPE, and its keys and values into the cache.  Where that keeps only the dimensions of K that turn, q is
 * split in two: q . K = q_turned . K_turned + (q * k_norm, 0 where K is stored) . V. */
static void qkv_task(void *arg, int t, int thread) {
    Attention *a = arg;
    Device *d = a->d;
    const Layer *l = a->l;
    int dim = l->head_dim, half = dim / 2, k_dim = a->kv->k_dim, r = k_dim / 2;
    const float *cos = d->cos + (int64_t)t * half, *sin = d->sin + (int64_t)t * half;
    (void)thread;
    for (int h = 0; h < d->c->n_heads; h++) {
        float *q = d->q + ((int64_t)t * d->c->n_heads + h) * dim;
        rms_norm(d, q, q, l->q_norm, dim);
        rotate(q, cos, sin, half);
        if (k_dim == dim) continue;
        take_turned(d->q_turned + ((int64_t)t * d->c->n_heads + h) * k_dim, q, half, r);
        for (int i = 0; i < dim; i++) q[i] *= i % half < r ? 0 : l->k_norm[i];
    }
    int64_t slot = (d->pos + t) % a->kv->slots, size = dtype_size[a->kv->dtype];
    for (int h = 0; h < l->n_kv_heads && l->k.data; h++) {
        int64_t row = (int64_t)t * l->n_kv_heads + h, to = slot * l->n_kv_heads + h;
        float *k = d->k + row * dim, *v = d->v + row * dim;
        rms_norm(d, v, l->v.data ? v : k, NULL, dim);       /* before k is normed: V may come from the same projection */
        rms_norm(d, k, k, l->k_norm, dim);
        rotate(k, cos, sin, half);
        if (k_dim < dim) take_turned(k, k, half, r);
        store(a->kv->k + to * k_dim * size, a->kv->dtype, l->k_scale, k, k_dim);
        store(a->kv->v + to * dim * size, a->kv->dtype, l->v_scale, v, dim);
    }
}

static void cpu_qkv(Device *d, const Layer *l, KvCache *kv) {
    normed_input(d, l->input_norm);
    products((Product){d, {&l->q, &l->k, &l->v}, d->y, {d->q, d->k, d->v}, d->n});
    fill_rope(d, l);
    parallel(d, d->n, qkv_task, &(Attention){.d = d, .l = l, .kv = kv});
}

/* The cache's row of K, or of V, of position p for key/value head h. */
static const uint8_t *cached(const Attention *a, int is_v, int64_t p, int h) {
    int dim = is_v ? a->l->head_dim : a->kv->k_dim;
    return (is_v ? a->kv->v : a->kv->k) + ((p % a->kv->slots) * a->l->n_kv_heads + h) * dim * dtype_size[a->kv->dtype];
}

/* What the numbers of the cache are to be multiplied with. */
static float cache_scale(const Attention *a, int is_v) { return a->kv->dtype != DT_F8_E4M3 ? 1 : is_v ? a->l->v_scale : a->l->k_scale; }

/* n numbers of the cache as float32, scaled: in buffer or, where they are that already, in place. */
static const float *expand_cached(const Attention *a, int is_v, const uint8_t *row, int n, float *buffer) {
    if (a->kv->dtype == DT_F32) return (const float *)row;
    if (a->kv->dtype == DT_BF16) a->d->kernel->expand_bf16(row, n, buffer);
    else a->d->kernel->expand_e4m3(row, cache_scale(a, is_v), n, buffer);
    return buffer;
}

/* Whether the kernels take rows of the cache as BF16, which holds E4M3 exactly: without its scale. */
static int as_bf16(const Attention *a, int n) { return a->kv->dtype != DT_F32 && a->d->kernel->bf16 && n % 16 == 0; }

/* Such a row, in place or in buffer; from here on the one so many positions behind it is on its way. */
static const uint8_t *bf16_row(const Attention *a, const uint8_t *row, int n, int ahead, uint16_t *buffer) {
    if (a->kv->dtype == DT_BF16) return row;
    for (int i = 0; i < n; i += 64) __builtin_prefetch(row + (int64_t)ahead * a->l->n_kv_heads * n + i);
    a->d->kernel->e4m3_to_bf16(row, n, buffer);
    return (const uint8_t *)buffer;
}

/* What a kernel may fetch ahead itself, in bytes. */
static int fetch(const Attention *a, int n, int ahead) { return a->kv->dtype == DT_BF16 ? ahead * a->l->n_kv_heads * n * 2 : 0; }

/* The first position that position p sees. */
static int64_t first_seen(const Attention *a, int64_t p) {
    int window = a->d->c->window;
    return a->l->global || p < window ? 0 : p - window + 1;
}

/* The last position that token t of the step sees: itself, or in sliding layers the end of its picture.  A drafter's layers have no
 * keys of their own: what is before it. */
static int64_t last_seen(const Attention *a, int t) { return a->d->pos + (a->l->global ? t : a->d->last[t]) - (a->l->k.data == NULL); }

/* Scores of positions p .. p + count - 1, count <= 4, for queries of one key/value head, also those that do not see them.  score:
 * that of the first query of token t0 at position p; a query's scores are `stride` apart from the next one's. */
static void score_keys(const Attention *a, int t0, int t1, int h0, int64_t p, int count, float *buffer, float *score, int64_t stride) {
    Device *d = a->d;
    int dim = a->l->head_dim, n_heads = d->c->n_heads, n_kv = a->l->n_kv_heads, h = h0 / (n_heads / n_kv);
    int n_queries = (t1 - t0) * a->heads;
    for (int part = 0; part < (a->kv->k_dim < dim ? 2 : 1); part++) {   /* with K's row, and with V's */
        int width = part ? dim : a->kv->k_dim, bf16 = as_bf16(a, width);
        float scale = bf16 ? cache_scale(a, part) : 1;
        const float *q = part || a->kv->k_dim == dim ? d->q : d->q_turned, *key[ROWS];
        const uint8_t *row[ROWS];
        for (int k = 0; k < ROWS; k++) {
            row[k] = cached(a, part, k < count ? p + k : p, h);
            if (bf16) row[k] = bf16_row(a, row[k], width, ROWS, (uint16_t *)buffer + k * width);
            else key[k] = k < count ? expand_cached(a, part, row[k], width, buffer + k * width) : key[0];
        }
        for (int i = 0; i < n_queries; i += TOKENS) {
            int n = n_queries - i < TOKENS ? n_queries - i : TOKENS;
            _Alignas(64) float sum[TOKENS][ROWS][16], dots[ROWS];
            const float *x[TOKENS];
            for (int j = 0; j < n; j++) x[j] = q + ((int64_t)(t0 + (i + j) / a->heads) * n_heads + h0 + (i + j) % a->heads) * width;
            if (bf16) {
                memset(sum, 0, (size_t)n * sizeof *sum);
                d->kernel->bf16(row, 0, width, x, n, sum, i ? 0 : fetch(a, width, ROWS));
            }
            for (int j = 0; j < n; j++) {
                float *s = score + (int64_t)(i + j) * stride;
                if (bf16) d->kernel->fold(sum[j], dots);
                else d->kernel->dot4(x[j], key, width, dots);
                for (int k = 0; k < count; k++) s[k] = scale * dots[k] + (part ? s[k] : 0);
            }
        }
    }
}

/* att += weights * V, positions from .. end - 1, for queries of one key/value head; score is weights[from] of the first one. */
static void add_values(const Attention *a, int t0, int t1, int h0, int64_t from, int64_t end, float *buffer, const float *score) {
    Device *d = a->d;
    int dim = a->l->head_dim, n_heads = d->c->n_heads, h = h0 / (n_heads / a->l->n_kv_heads);
    int bf16 = as_bf16(a, dim), most = bf16 ? VALUES : 4;
    int64_t stride = end - from;
    for (int64_t p = from; p < end; p += most) {
        const uint8_t *row[VALUES];
        const float *v[4];
        int count = end - p < most ? (int)(end - p) : most;
        for (int k = 0; k < count; k++) {
            row[k] = cached(a, 1, p + k, h);
            if (bf16) row[k] = bf16_row(a, row[k], dim, VALUES, (uint16_t *)buffer + k * dim);
        }
        for (int k = 0; k < 4 && !bf16; k++) v[k] = k < count ? expand_cached(a, 1, row[k], dim, buffer + k * dim) : v[0];
        for (int t = t0; t < t1; t++) {
            const float *s = score + (int64_t)(t - t0) * a->heads * stride + (p - from);
            float *y = d->att.x + ((int64_t)t * n_heads + h0) * dim;
            if (last_seen(a, t) < p || first_seen(a, d->pos + t) >= p + count) continue;
            if (bf16) d->kernel->add_rows(y, dim, s, stride, a->heads, row, count, dim, t == t0 ? fetch(a, dim, VALUES) : 0);
            for (int g = 0; g < a->heads && !bf16; g++) {
                float weight[4] = {0};
                copy(weight, s + g * stride, count);
                d->kernel->axpy4(y + (int64_t)g * dim, v, weight, dim);
            }
        }
    }
    float scale = bf16 ? cache_scale(a, 1) : 1;
    for (int t = t0; t < t1 && scale != 1; t++)
        for (int i = 0; i < a->heads * dim; i++) d->att.x[((int64_t)t * n_heads + h0) * dim + i] *= scale;
}

/* A few tokens and some query heads of one key/value head: each row of the cache is expanded once for all of them. */
static void attend_task(void *arg, int task, int thread) {
    Attention *a = arg;
    Device *d = a->d;
    int dim = a->l->head_dim, n_heads = d->c->n_heads, parts = n_heads / a->heads, heads = a->heads;
    int h0 = task % parts * heads, t0 = task / parts * a->tokens, t1 = t0 + a->tokens < d->n ? t0 + a->tokens : d->n;
    int64_t from = first_seen(a, d->pos + t0), end = last_seen(a, t1 - 1) + 1;
    int64_t stride = end - from;
    float *score = d->att_score[thread], *buffer = d->rows[thread];
    for (int64_t p = from; p < end; p += 4)
        score_keys(a, t0, t1, h0, p, end - p < 4 ? (int)(end - p) : 4, buffer, score + (p - from), stride);
    for (int t = t0; t < t1; t++)
        for (int g = 0; g < heads; g++) {
            float *s = score + ((int64_t)(t - t0) * heads + g) * stride;
            int64_t before = first_seen(a, d->pos + t) - from, n = last_seen(a, t) + 1 - from - before;
            clear(s, before);
            (d->packed ? d->kernel : &kernels_c)->softmax(s + before, (int)n);
            clear(s + before + n, stride - before - n);
            clear(d->att.x + ((int64_t)t * n_heads + h0 + g) * dim, dim);
        }
    add_values(a, t0, t1, h0, from, end, buffer, score);
}

/* The same with AMX, for many tokens: KEYS keys at a time, their softmax as they come (Dao et al., FlashAttention, 2022, algorithm 1).
 * A query is a token and one of the heads that share the keys. */
typedef struct Flash {
    _Alignas(64) float score[QUERIES][KEYS];
    uint16_t weight[2][QUERIES][KEYS];  /* e^(score - most), see soften */
    int first[QUERIES], last[QUERIES];  /* of these keys, a query sees first .. last - 1 */
    float most[QUERIES], sum[QUERIES];
    float *query;                       /* [16][wide], see flash_task */
    float *out;                         /* [QUERIES][v_wide]; when all keys were there, to be divided by sum */
    uint8_t *strips;                    /* queries [QUERIES / 16][strip_size(wide)] */
} Flash;

static Flash *flash_new(int64_t dim) {
    Flash *f = xaligned(sizeof *f);
    f->query = floats(16, 2 * dim);
    f->out = floats(QUERIES, dim);
    f->strips = xaligned(QUERIES / 16 * strip_size(2 * dim));
    return f;
}

static void flash_free(Flash *f) {
    if (!f) return;
    free(f->query);
    free(f->out);
    free(f->strips);
    free(f);
}

static void flash_begin(Flash *f, int n, int v_wide) {
    clear(f->out, QUERIES * v_wide);
    for (int i = 0; i < n; i++) f->most[i] = -INFINITY, f->sum[i] = 0;
}

/* For n queries in strips, up to KEYS keys, rows of K [wide] and, from v_at on, V [v_wide]; up to a multiple of 32 are read. */
static void flash_keys(const Kernels *kn, Flash *f, int n, const uint16_t *rows, int stride, int count, int wide, int v_at, int v_wide,
                       float scale) {
    kn->gemm(rows, stride, wide, f->strips, n, count, scale, f->score[0], KEYS);
    for (int i = 0; i < n; i++) {
        float before = f->most[i], *out = f->out + i * v_wide;
        float sum = kn->soften(f->score[i], f->first[i], f->last[i], &f->most[i], f->weight[0][i], f->weight[1][i]);
        if (f->most[i] > before && f->sum[i] > 0) {
            float less = expf(before - f->most[i]);
            f->sum[i] *= less;
            for (int k = 0; k < v_wide; k++) out[k] *= less;
        }
        f->sum[i] += sum;
    }
    kn->add_values(rows + v_at, stride, round_up(count, 32), v_wide, f->weight, n, f->out, v_wide);
}

/* A row of the cache as BF16, with zeros up to column `wide`. */
static void cached_as_bf16(const Attention *a, const uint8_t *row, int n, int wide, uint16_t *out) {
    if (a->kv->dtype == DT_BF16) memcpy(out, row, 2 * (size_t)n);
    else a->d->kernel->e4m3_to_bf16(row, n, out);
    memset(out + n, 0, 2 * (size_t)(wide - n));
}

static void flash_task(void *arg, int task, int thread) {
    Attention *a = arg;
    Device *d = a->d;
    Flash *f = d->flash[thread];
    int dim = a->l->head_dim, k_dim = a->kv->k_dim, n_heads = d->c->n_heads, parts = a->l->n_kv_heads, heads = a->heads, h = task % parts;
    int t0 = task / parts * a->tokens, t1 = t0 + a->tokens < d->n ? t0 + a->tokens : d->n, n = (t1 - t0) * heads;
    int k_wide = round_up(k_dim, 32), v_wide = round_up(dim, 32), stride = k_wide + v_wide + 32;   /* a row is K's and V's */
    int wide = k_dim < dim ? k_wide + v_wide : k_wide;          /* where K's is not all of K, the scores take V's, too: see qkv_task */
    uint16_t *rows = (uint16_t *)d->rows[thread];
    float scale = cache_scale(a, 0);
    for (int i = 0; i < n; i += 16) {
        const float *x[16];
        int count = n - i < 16 ? n - i : 16;
        clear(f->query, 16 * wide);
        for (int k = 0; k < count; k++) {
            int64_t at = (int64_t)(t0 + (i + k) / heads) * n_heads + h * heads + (i + k) % heads;
            float *q = f->query + k * wide;
            copy(q, k_dim < dim ? d->q_turned + at * k_dim : d->q + at * dim, k_dim);
            if (k_dim < dim) copy(q + k_wide, d->q + at * dim, dim);
            x[k] = q;
        }
        d->kernel->to_strip(x, count, wide, f->strips + i / 16 * strip_size(wide));
    }
    flash_begin(f, n, v_wide);
    int64_t from = first_seen(a, d->pos + t0), end = last_seen(a, t1 - 1) + 1;
    for (int64_t p = from; p < end; p += KEYS) {
        int count = end - p < KEYS ? (int)(end - p) : KEYS;
        for (int k = 0; k < count; k++) {
            cached_as_bf16(a, cached(a, 0, p + k, h), k_dim, k_wide, rows + k * stride);
            cached_as_bf16(a, cached(a, 1, p + k, h), dim, v_wide, rows + k * stride + k_wide);
        }
        memset(rows + count * stride, 0, 2 * (size_t)(round_up(count, 32) - count) * (size_t)stride);
        for (int i = 0; i < n; i++) {
            int t = t0 + i / heads;
            int64_t first = first_seen(a, d->pos + t) - p, last = last_seen(a, t) + 1 - p;
            f->first[i] = first < 0 ? 0 : (int)first;
            f->last[i] = last < count ? (int)last : count;
        }
        flash_keys(d->kernel, f, n, rows, stride, count, wide, k_wide, v_wide, scale);
    }
    for (int i = 0; i < n; i++) {
        float *out = d->att.x + ((int64_t)(t0 + i / heads) * n_heads + h * heads + i % heads) * dim;
        float share = cache_scale(a, 1) / f->sum[i];
        for (int k = 0; k < dim; k++) out[k] = share * f->out[i * v_wide + k];
    }
}

/* Heads and tokens of a task: a group shares its keys, and so do neighbouring tokens, as long as their scores stay near; but every
 * thread should have something. */
static void cpu_attend(Device *d, const Layer *l, const KvCache *kv) {
    Attention a = {d, l, kv, d->c->n_heads / l->n_kv_heads, 16};
    if (is_many(d, d->n) && kv->dtype != DT_F32 && a.heads <= QUERIES) {
        a.tokens = QUERIES / a.heads;       /* whatever the number of threads: the bits of a sum depend on who shares its tiles */
        parallel(d, n_blocks(d->n, a.tokens) * l->n_kv_heads, flash_task, &a);
        return;
    }
    int64_t seen = d->pos + d->n - first_seen(&a, d->pos);
    while (a.tokens > 1 && a.tokens * a.heads * seen > SCORES) a.tokens /= 2;
    while (a.heads % 2 == 0 && n_blocks(d->n, a.tokens) * (d->c->n_heads / a.heads) < d->pool.n_threads) a.heads /= 2;
    parallel(d, n_blocks(d->n, a.tokens) * (d->c->n_heads / a.heads), attend_task, &a);
}

static void pack_attention_task(void *arg, int t, int thread) {
    Attention *a = arg;
    int cols = a->l->o.cols;
    (void)thread;
    pack(a->d, a->d->att, t, cols, 0, cols);
}

/* x += RMSNorm(y) for one token. */
static void add_task(void *arg, int t, int thread) {
    Norm *a = arg;
    int hidden = a->d->c->hidden;
    float *x = a->d->x + (int64_t)t * hidden, *y = a->d->y.x + (int64_t)t * hidden;
    (void)thread;
    rms_norm(a->d, y, y, a->weight, hidden);
    for (int i = 0; i < hidden; i++) x[i] += y[i];
}

static void cpu_attn_out(Device *d, const Layer *l) {
    if (!is_many(d, d->n)) parallel(d, d->n, pack_attention_task, &(Attention){.d = d, .l = l});
    products((Product){d, {&l->o}, d->att, {d->y.x}, d->n});
    parallel(d, d->n, add_task, &(Norm){d, l->post_attention_norm});
}

/* ------------------------------------------------------------------------------------------------------------
 * The dense MLP, the router and the experts */

/* gelu_pytorch_tanh, times up: the activation of every MLP here. */
static void gelu_times(const Device *d, float *gate, const float *up, int n) {
    if (d->packed) {
        d->kernel->gelu_times(gate, up, n);
        return;
    }
    for (int i = 0; i < n; i++) {
        float g = gate[i];
        gate[i] = 0.5f * g * (1 + tanhf(0.7978845608f * (g + 0.044715f * g * g * g))) * up[i];
    }
}

typedef struct {
    Device *d;
    const Layer *l;
    Input in;                           /* of gate and up */
} Feed;

/* A block of rows of gate and up, and what becomes of them: the input of down. */
static void gate_up_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->intermediate, first = task * d->dense_rows, last = block_end(task, rows, d->dense_rows);
    multiply(d, thread, &f->l->gate, first, last, f->in, NULL, d->n, d->gate.x, rows);
    multiply(d, thread, &f->l->up, first, last, f->in, NULL, d->n, d->up, rows);
    for (int t = 0; t < d->n; t++) {
        gelu_times(d, d->gate.x + (int64_t)t * rows + first, d->up + (int64_t)t * rows + first, last - first);
        if (!f->in.strips) pack(d, d->gate, t, rows, first, last);      /* where gate has strips, so has down */
    }
}

static void mlp_norm_task(void *arg, int t, int thread) {
    Norm *a = arg;
    int hidden = a->d->c->hidden;
    float *h = a->d->h1 + (int64_t)t * hidden;
    (void)thread;
    rms_norm(a->d, h, h, a->weight, hidden);
}

static void cpu_mlp(Device *d, const Layer *l) {
    normed_input(d, l->pre_mlp_norm);
    parallel(d, n_blocks(d->c->intermediate, d->dense_rows), gate_up_task, &(Feed){d, l, with_strips(d, d->y, d->c->hidden, d->n)});
    products((Product){d, {&l->down}, d->gate, {d->h1}, d->n});
    if (l->post_mlp_norm) parallel(d, d->n, mlp_norm_task, &(Norm){d, l->post_mlp_norm});
}

/* The top_k largest of p[0..n), by falling value, the lower index first on a tie. */
static void top_k(const float *p, int n, int k, int *index) {
    for (int i = 0; i < k; i++) {
        int best = -1;
        for (int e = 0; e < n; e++) {
            int taken = 0;
            for (int j = 0; j < i; j++) taken |= index[j] == e;
            if (!taken && (best < 0 || p[e] > p[best])) best = e;
        }
        index[i] = best;
    }
}

static void route_input_task(void *arg, int t, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int hidden = d->c->hidden;
    float *y = d->y.x + (int64_t)t * hidden, root = 1 / sqrtf((float)hidden);
    (void)thread;
    rms_norm(d, y, d->x + (int64_t)t * hidden, NULL, hidden);
    for (int i = 0; i < hidden; i++) y[i] = y[i] * f->l->router_scale[i] * root;
    pack(d, d->y, t, hidden, 0, hidden);
}

static void choose_task(void *arg, int t, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    const Config *c = d->c;
    float *p = d->score + (int64_t)t * c->n_experts, *w = d->expert_weight + (int64_t)t * c->top_k, sum = 0;
    int *e = d->expert + (int64_t)t * c->top_k;
    (void)thread;
    kernels_c.softmax(p, c->n_experts);
    top_k(p, c->n_experts, c->top_k, e);
    for (int k = 0; k < c->top_k; k++) sum += w[k] = p[e[k]];
    for (int k = 0; k < c->top_k; k++) w[k] = w[k] / sum * f->l->per_expert_scale[e[k]];
}

static void cpu_route(Device *d, const Layer *l) {
    Feed f = {.d = d, .l = l};
    parallel(d, d->n, route_input_task, &f);
    products((Product){d, {&l->router}, d->y, {d->score}, d->n});
    parallel(d, d->n, choose_task, &f);
}

/* Tokens grouped by expert: expert e has slots first_slot[e] .. first_slot[e + 1] - 1; slot s is token slot_token[s];
 * the k-th choice of token t is slot slot_of[t * top_k + k]. */
static void group_by_expert(Device *d) {
    const Config *c = d->c;
    int n = d->n * c->top_k, *first = d->first_slot;
    memset(first, 0, (size_t)(c->n_experts + 1) * sizeof *first);
    for (int i = 0; i < n; i++) first[d->expert[i] + 1]++;
    for (int e = 0; e < c->n_experts; e++) first[e + 1] += first[e];
    for (int i = 0; i < n; i++) {
        int slot = first[d->expert[i]]++;
        d->slot_of[i] = slot;
        d->slot_token[slot] = i / c->top_k;
    }
    memmove(first + 1, first, (size_t)c->n_experts * sizeof *first);        /* each first has moved on to the next one's */
    first[0] = 0;
    d->n_chosen = d->n_strips = 0;
    for (int e = 0; e < c->n_experts; e++) {
        int count = first[e + 1] - first[e];
        if (count) d->chosen[d->n_chosen++] = e;
        if (!is_many(d, count)) continue;
        d->first_strip[e] = d->n_strips;
        for (int i = 0; i < count; i += 16) d->strip_expert[d->n_strips++] = e;
    }
}

/* What expert e makes of n tokens: the strips, or `in`. */
static Input expert_input(const Device *d, Input in, int e, int cols, int n) {
    if (is_many(d, n)) in.strips = d->strips + d->first_strip[e] * strip_size(cols);
    return in;
}

/* task = expert and block of rows. */
static void expert_up_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->expert_size, blocks = n_blocks(rows, ROWS_PER_TASK), e = d->chosen[task / blocks], block = task % blocks;
    int first = block * ROWS_PER_TASK, last = block_end(block, rows, ROWS_PER_TASK);
    int from = d->first_slot[e], n = d->first_slot[e + 1] - from;
    float *gate = d->gate.x + (int64_t)from * rows, *up = d->up + (int64_t)from * rows;
    Input in = expert_input(d, d->y, e, d->c->hidden, n);
    multiply(d, thread, &f->l->expert_gate[e], first, last, in, d->slot_token + from, n, gate, rows);
    multiply(d, thread, &f->l->expert_up[e], first, last, in, d->slot_token + from, n, up, rows);
    for (int t = 0; t < n; t++) {
        gelu_times(d, gate + (int64_t)t * rows + first, up + (int64_t)t * rows + first, last - first);
        pack(d, d->gate, from + t, rows, first, last);
    }
}

static void expert_down_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->hidden, cols = d->c->expert_size, blocks = n_blocks(rows, ROWS_PER_TASK);
    int e = d->chosen[task / blocks], first = task % blocks * ROWS_PER_TASK, last = block_end(task % blocks, rows, ROWS_PER_TASK);
    int from = d->first_slot[e], n = d->first_slot[e + 1] - from;
    float *part = d->part + (int64_t)from * rows;
    Input in = {d->gate.x + (int64_t)from * cols, d->packed ? d->gate.packed + from * packed_size(cols) : NULL, NULL};
    multiply(d, thread, &f->l->expert_down[e], first, last, expert_input(d, in, e, cols, n), NULL, n, part, rows);
}

/* h2 of one token from the outputs of its experts. */
static void sum_task(void *arg, int t, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int hidden = d->c->hidden, k = d->c->top_k, *slot = d->slot_of + (int64_t)t * k;
    float *h = d->h2 + (int64_t)t * hidden;
    (void)thread;
    clear(h, hidden);
    for (int i = 0; i < k; i += 4) {
        const float *part[4];
        float weight[4];
        for (int j = 0; j < 4; j++) {
            part[j] = d->part + (int64_t)slot[i + j < k ? i + j : i] * hidden;
            weight[j] = i + j < k ? d->expert_weight[t * k + i + j] : 0;
        }
        d->kernel->axpy4(h, part, weight, hidden);
    }
    rms_norm(d, h, h, f->l->post_experts_norm, hidden);
}

static void cpu_experts(Device *d, const Layer *l) {
    Feed f = {.d = d, .l = l};
    normed_input(d, l->pre_experts_norm);
    group_by_expert(d);
    parallel(d, d->n_strips, strip_task, &(Strips){d, d->y.x, d->c->hidden, 0, d->slot_token});
    parallel(d, d->n_chosen * n_blocks(d->c->expert_size, ROWS_PER_TASK), expert_up_task, &f);
    parallel(d, d->n_strips, strip_task, &(Strips){d, d->gate.x, d->c->expert_size, 0, NULL});
    parallel(d, d->n_chosen * n_blocks(d->c->hidden, ROWS_PER_TASK), expert_down_task, &f);
    parallel(d, d->n, sum_task, &f);
}

static void join_task(void *arg, int t, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int hidden = d->c->hidden;
    float *x = d->x + (int64_t)t * hidden, *h1 = d->h1 + (int64_t)t * hidden, *h2 = d->h2 + (int64_t)t * hidden;
    (void)thread;
    for (int i = 0; i < hidden && d->c->n_experts; i++) h1[i] += h2[i];
    rms_norm(d, h1, h1, f->l->post_ffn_norm, hidden);
    for (int i = 0; i < hidden; i++) x[i] = (x[i] + h1[i]) * f->l->layer_scalar;
}

static void cpu_join(Device *d, const Layer *l) { parallel(d, d->n, join_task, &(Feed){.d = d, .l = l}); }

/* ------------------------------------------------------------------------------------------------------------
 * The head */

typedef struct {
    Device *d;
    float *logits;
    int first, count;                   /* tokens */
    Input in;
} Head;

/* All tokens' logits of a block of rows. */
static void head_task(void *arg, int task, int thread) {
    Head *h = arg;
    Device *d = h->d;
    int vocab = d->c->vocab, first = task * d->dense_rows, last = block_end(task, vocab, d->dense_rows);
    multiply(d, thread, &d->w->head, first, last, h->in, NULL, h->count, h->logits, vocab);
    for (int t = 0; t < h->count; t++)
        for (int r = first; r < last; r++) h->logits[(int64_t)t * vocab + r] = soft_cap(d, h->logits[(int64_t)t * vocab + r]);
}

static void head_input_task(void *arg, int t, int thread) {
    Head *h = arg;
    Device *d = h->d;
    int hidden = d->c->hidden;
    (void)thread;
    rms_norm(d, d->y.x + (int64_t)t * hidden, d->x + (int64_t)(h->first + t) * hidden, d->w->final_norm, hidden);
    pack(d, d->y, t, hidden, 0, hidden);
}

static void cpu_head(Device *d, int first, int count, float *logits) {
    Head h = {d, logits, first, count, {0}};
    parallel(d, count, head_input_task, &h);
    h.in = with_strips(d, d->y, d->c->hidden, count);
    parallel(d, n_blocks(d->c->vocab, d->dense_rows), head_task, &h);
}

/* The head is the largest matrix of all: 1.5 GB of a token's 5.6.  Sampling wants few of its results, so an int8 copy of half the
 * size, scale * q, tells which rows can be among them, and only these are computed.
 *
 * y becomes y' = step * Y with Y of 14 bits, so that integers multiply exactly.  With w a row of the head and w' its copy
 * (Cauchy-Schwarz twice)
 *     |w y - w' y'| = |(w - w') y + w' (y - y')| <= |w - w'| |y| + |w'| |y - y'|.
 * The product in float32 is off by at most m 2^-23 |w| |y|, m the roundings that a term goes through (Higham, Accuracy and
 * Stability of Numerical Algorithms, 3.1): cols / 16 + 4; twice that and more is allowed here.  Norms are within 10^-4. */
typedef struct Screen {
    int cols;                           /* of q: the head's, filled up with zeros to a multiple of 64 */
    int8_t *q;                          /* [vocab][cols]; NULL: not made */
    size_t bytes;                       /* of q */
    float (*rounded)[3];                /* [vocab] scale, |w - w'|, |w| */
    float *upper;                       /* [vocab] what the last token's product is at most */
    float **least;                      /* for each thread: the k largest of what the products are at least, falling */
    int16_t *y;                         /* Y [cols] */
    int *row;                           /* those that are not ruled out */
    float *logit;                       /* theirs */
} Screen;

typedef struct {
    Device *d;
    int k, n_rows;
    float step, length, off;            /* of y: step, |y|, and what norm is to be multiplied with */
} Screening;

static void round_task(void *arg, int task, int thread) {
    Device *d = arg;
    Screen *s = d->screen;
    const Weight *w = &d->w->head;
    (void)thread;
    for (int r = task * ROWS_PER_TASK; r < block_end(task, w->rows, ROWS_PER_TASK); r++)
        d->kernel->round_row(w->data + 2 * (int64_t)r * w->cols, w->cols, s->q + (int64_t)r * s->cols, s->rounded[r]);
}

/* Where the copy cannot be made, q stays NULL. */
static Screen *screen_new(Device *d) {
    Screen *s = xcalloc(1, sizeof *s);
    int vocab = d->c->vocab;
    s->cols = (d->c->hidden + 63) / 64 * 64;
    s->bytes = (size_t)vocab * (size_t)s->cols;
    d->screen = s;
    if (!d->kernel->round_row || d->w->head.dtype != DT_BF16 || d->c->hidden % 16 || s->cols > 32768) return s;
    if (!(s->q = cpu_alloc(s->bytes))) return s;
    madvise(s->q, s->bytes, MADV_HUGEPAGE);
    s->rounded = xcalloc(vocab, sizeof *s->rounded);
    s->upper = floats(1, vocab);
    s->y = xaligned(s->cols * 2);
    s->row = xcalloc(vocab, sizeof *s->row);
    s->logit = floats(1, vocab);
    s->least = xcalloc(d->pool.n_threads, sizeof *s->least);
    for (int i = 0; i < d->pool.n_threads; i++) s->least[i] = floats(1, MAX_TOP);
    parallel(d, n_blocks(vocab, ROWS_PER_TASK), round_task, d);
    return s;
}

static void screen_free(Device *d) {
    Screen *s = d->screen;
    if (s && s->q) {
        cpu_release(s->q, s->bytes);
        for (int i = 0; i < d->pool.n_threads; i++) free(s->least[i]);
        free(s->rounded);
        free(s->upper);
        free(s->y);
        free(s->row);
        free(s->logit);
        free(s->least);
    }
    free(s);
}

/* v into a falling list of k. */
static void insert_falling(float *list, int k, float v) {
    if (!(v > list[k - 1])) return;
    int i = k - 1;
    for (; i > 0 && list[i - 1] < v; i--) list[i] = list[i - 1];
    list[i] = v;
}

static void screen_task(void *arg, int task, int thread) {
    Screening *a = arg;
    Screen *s = a->d->screen;
    int first = task * ROWS_PER_TASK, last = block_end(task, a->d->c->vocab, ROWS_PER_TASK), quarter = n_blocks(last - first, ROWS);
    for (int i = 0; i < quarter; i++) {                 /* rows as in multiply */
        const int8_t *row[ROWS];
        int64_t product[ROWS];
        for (int k = 0; k < ROWS; k++) row[k] = s->q + (int64_t)(first + i + k * quarter < last ? first + i + k * quarter : first) * s->cols;
        a->d->kernel->dot_int8(row, s->y, s->cols, product, (i + 1 < quarter ? 1 : ROWS_PER_TASK - quarter + 1) * s->cols);
        for (int k = 0; k < ROWS && first + i + k * quarter < last; k++) {
            int r = first + i + k * quarter;
            const float *of = s->rounded[r];
            double approx = (double)a->step * of[0] * (double)product[k];
            double bound = (of[1] * (double)a->length + (of[2] + of[1]) * (double)a->off) * 1.001 + 1e-30;
            int finite = fabs(approx) + bound < 1e37;
            s->upper[r] = finite ? (float)((approx + bound) + fabs(approx + bound) * 0x1p-22) : INFINITY;
            insert_falling(s->least[thread], a->k, finite ? (float)((approx - bound) - fabs(approx - bound) * 0x1p-22) : -INFINITY);
        }
    }
}

/* The logits of 4 ROWS rows that are not ruled out. */
static void exact_task(void *arg, int task, int thread) {
    Screening *a = arg;
    Device *d = a->d;
    Screen *s = d->screen;
    int cols = d->c->hidden;
    (void)thread;
    for (int i = task * 4 * ROWS; i < a->n_rows && i < (task + 1) * 4 * ROWS; i += ROWS) {
        _Alignas(64) float sum[TOKENS][ROWS][16];
        const uint8_t *row[ROWS];
        const float *x[TOKENS] = {d->y.x};
        memset(sum[0], 0, sizeof sum[0]);
        for (int k = 0; k < ROWS; k++) row[k] = d->w->head.data + 2 * (int64_t)s->row[i + k < a->n_rows ? i + k : i] * cols;
        d->kernel->bf16(row, 0, cols, x, 1, sum, 0);
        d->kernel->fold(sum[0], s->logit + i);
        for (int k = 0; k < ROWS; k++) s->logit[i + k] = soft_cap(d, s->logit[i + k]);
    }
}

/* Below this no product can be when a logit is at least as large as that of `product`; tanhf is off by a few ulp. */
static double least_product(const Device *d, float product) {
    double cap = d->c->softcap, logit = cap > 0 ? cap * tanh(product / cap) : product;
    logit -= fabs(logit) * 0x1p-19 + 1e-30;
    double least = cap > 0 ? cap * atanh(logit / cap) : logit;
    return least - fabs(least) * 1e-6;
}

/* y as 14-bit integers; the lengths. */
static void round_input(Screening *a) {
    Device *d = a->d;
    Screen *s = d->screen;
    int n = d->c->hidden;
    float most = 0;
    double length = 0, off = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(d->y.x[i]) > most) most = fabsf(d->y.x[i]);
    a->step = most / MAX_Y;
    memset(s->y, 0, (size_t)s->cols * sizeof *s->y);
    for (int i = 0; i < n; i++) {
        float rounded = rintf(d->y.x[i] / a->step);
        s->y[i] = fabsf(rounded) <= MAX_Y ? (int16_t)rounded : 0;            /* 0 / 0, NaN */
        double left = d->y.x[i] - (double)a->step * s->y[i];
        length += (double)d->y.x[i] * d->y.x[i];
        off += left * left;
    }
    a->length = (float)sqrt(length);
    a->off = (float)(sqrt(off) + sqrt(length) * (n * 0.25 + 64) * 0x1p-23);
}

/* The copy is made when it begins to pay: it costs about as much as it then saves on so many tokens. */
#define SCREEN_AFTER 8

static int cpu_top(Device *d, int token, int k, int *ids, float *logits) {
    int vocab = d->c->vocab, n = 0;
    Screening a = {.d = d, .k = k < vocab ? k : vocab};
    if (d->n_tops < SCREEN_AFTER) {
        d->n_tops++;
        return -1;
    }
    Screen *s = d->screen ? d->screen : screen_new(d);
    if (!s->q) return -1;
    parallel(d, 1, head_input_task, &(Head){.d = d, .first = token, .count = 1});
    round_input(&a);
    for (int i = 0; i < d->pool.n_threads; i++)
        for (int j = 0; j < a.k; j++) s->least[i][j] = -INFINITY;
    parallel(d, n_blocks(vocab, ROWS_PER_TASK), screen_task, &a);
    for (int i = 1; i < d->pool.n_threads; i++)
        for (int j = 0; j < a.k; j++) insert_falling(s->least[0], a.k, s->least[i][j]);
    double least = least_product(d, s->least[0][a.k - 1]);
    for (int r = 0; r < vocab; r++)
        if (!(s->upper[r] < least)) s->row[a.n_rows++] = r;
    parallel(d, n_blocks(a.n_rows, 4 * ROWS), exact_task, &a);
    for (int i = 0; i < a.n_rows; i++) {
        float v = isnan(s->logit[i]) ? -INFINITY : s->logit[i];
        if (n == a.k && !(v > logits[n - 1])) continue;
        int at = n < a.k ? n++ : n - 1;
        for (; at > 0 && logits[at - 1] < v; at--) logits[at] = logits[at - 1], ids[at] = ids[at - 1];
        logits[at] = v;
        ids[at] = s->row[i];
    }
    return n;
}

/* ------------------------------------------------------------------------------------------------------------
 * The vision tower.  A picture is thousands of patches, so here the matrix product is another one: 16 rows of W are
 * expanded and transposed (a panel [cols][16]), and PATCHES patches at a time are multiplied with it in registers.  All
 * activations have a multiple of PATCHES rows; what the last ones hold is nobody's.  With AMX the products are those of a prompt:
 * SEEN patches in strips; and so is attention, but for K and V, of which both halves are kept. */

struct Sight {
    int n, columns, rows;               /* n = rows * columns patches */
    float *x, *y;                       /* [n][hidden] */
    float *q, *k, *v;                   /* [n][n_heads * head_dim]; q also takes what attention gives */
    float *keys;                        /* [n_heads][panels of 16 patches][head_dim][16]: k, transposed; not with AMX */
    float *h;                           /* [n][intermediate], and the pixels [n][PATCH_SIZE] */
    float *cos, *sin;                   /* [rows or columns][head_dim / 4] */
    float **panel;                      /* for each thread: four panels and a row of W, or the scores of one task */
    /* With AMX alone. */
    float *up;                          /* [SEEN][intermediate] */
    uint16_t *parts;                    /* [n_heads][n] rows: K, what its BF16 leave, V likewise, see see_flash_task */
};

/* A row of `parts`: 64 bytes more, as in multiply_strips. */
static int see_stride(const Tower *v) { return 4 * see_wide(v) + 32; }

#define LOOKING (4 * PATCHES)              /* patches whose attention is one task */

static void sight_free(Device *d) {
    Sight *s = d->sight;
    if (!s) return;
    float *all[] = {s->x, s->y, s->q, s->k, s->v, s->keys, s->h, s->cos, s->sin, s->up, (float *)s->parts};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    for (int i = 0; s->panel && i < d->pool.n_threads; i++) free(s->panel[i]);
    free(s->panel);
    free(s);
    d->sight = NULL;
}

static int sight_open(Device *d, const Tower *v, int columns, int rows) {
    Sight *s = d->sight = xcalloc(1, sizeof *s);
    *s = (Sight){.n = rows * columns, .columns = columns, .rows = rows};
    int inner = v->n_heads * v->head_dim, wide = v->intermediate > PATCH_SIZE ? v->intermediate : PATCH_SIZE;
    int side = rows > columns ? rows : columns;
    int64_t n = round_up(s->n, PATCHES), keys = round_up(s->n, 16);
    int64_t scores = LOOKING * keys, panels = 65 * (int64_t)tower_width(v);
    int64_t parts = ((int64_t)v->n_heads * s->n + 32) * see_stride(v) / 2;      /* 32 rows more: see gemm */
    struct { float **p; int64_t n; } part[] = {
        {&s->x, n * v->hidden}, {&s->y, n * v->hidden}, {&s->q, n * inner}, {&s->k, n * inner}, {&s->v, n * inner},
        {&s->keys, d->strips ? 0 : keys * inner}, {&s->h, n * wide},
        {&s->cos, (int64_t)side * v->head_dim}, {&s->sin, (int64_t)side * v->head_dim},
        {&s->up, d->strips ? SEEN * (int64_t)v->intermediate : 0}, {(float **)&s->parts, d->strips ? parts : 0},
    };
    /* 16 more: the last head's values are read as whole vectors.  Zeros, so that nobody's rows are numbers. */
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        if (!(*part[i].p = calloc((size_t)part[i].n + 16, sizeof(float)))) return -1;
    s->panel = xcalloc(d->pool.n_threads, sizeof *s->panel);
    for (int i = 0; i < d->pool.n_threads; i++)
        if (!(s->panel[i] = calloc((size_t)(scores > panels ? scores : panels), sizeof(float)))) return -1;
    return 0;
}

/* Rows first .. first + 15 of W as columns; zeros beyond its last row. */
static void pack_panel(const Kernels *kn, const Weight *w, int first, float *row, float *panel) {
    for (int r = 0; r < 16; r++) {
        if (first + r < w->rows) expand_row(kn, w, first + r, row);
        else clear(row, w->cols);
        for (int i = 0; i < w->cols; i++) panel[(int64_t)i * 16 + r] = row[i];
    }
}

typedef struct {
    Device *d;
    const Weight *w, *up;               /* up: the product is gelu(W x) * (up x); NULL: W x */
    const float *x;
    float *y;
    int n;
} Panels;

static void panels_task(void *arg, int task, int thread) {
    Panels *p = arg;
    const Weight *w = p->w;
    int cols = w->cols, first = task * ROWS_PER_TASK, last = block_end(task, w->rows, ROWS_PER_TASK);
    int64_t size = (int64_t)cols * 16;
    float *panel = p->d->sight->panel[thread], c[PATCHES * 16], up[PATCHES * 16];
    for (int i = 0; i < 2; i++) {
        pack_panel(p->d->kernel, w, first + 16 * i, panel + 4 * size, panel + i * size);
        if (p->up) pack_panel(p->d->kernel, p->up, first + 16 * i, panel + 4 * size, panel + (2 + i) * size);
    }
    for (int t = 0; t < p->n; t += PATCHES)
        for (int i = 0; first + 16 * i < last; i++) {
            int count = last - first - 16 * i < 16 ? last - first - 16 * i : 16;
            p->d->kernel->tile(p->x + (int64_t)t * cols, cols, panel + i * size, 16, cols, c, 16);
            if (p->up) {
                p->d->kernel->tile(p->x + (int64_t)t * cols, cols, panel + (2 + i) * size, 16, cols, up, 16);
                gelu_times(p->d, c, up, PATCHES * 16);
            }
            for (int r = 0; r < PATCHES && t + r < p->n; r++)
                copy(p->y + (int64_t)(t + r) * w->rows + first + 16 * i, c + 16 * r, count);
        }
}

/* The same for up to SEEN patches, which are in strips. */
static void see_strips_task(void *arg, int task, int thread) {
    Panels *p = arg;
    Device *d = p->d;
    int rows = p->w->rows, first = task * MANY_ROWS, last = block_end(task, rows, MANY_ROWS);
    multiply_strips(d, thread, p->w, first, last, d->strips, p->n, p->y, rows);
    if (!p->up) return;
    multiply_strips(d, thread, p->up, first, last, d->strips, p->n, d->sight->up, rows);
    for (int t = 0; t < p->n; t++)
        gelu_times(d, p->y + (int64_t)t * rows + first, d->sight->up + (int64_t)t * rows + first, last - first);
}

/* y [n][rows] = x [n][cols] W^T, x with a multiple of PATCHES rows. */
static void panels(Device *d, const Weight *w, const Weight *up, const float *x, int n, float *y) {
    if (!d->strips || w->dtype == DT_F32 || (up && up->dtype == DT_F32)) {
        parallel(d, n_blocks(w->rows, ROWS_PER_TASK), panels_task, &(Panels){d, w, up, x, y, n});
        return;
    }
    for (int t = 0; t < n; t += SEEN) {
        int count = n - t < SEEN ? n - t : SEEN;
        parallel(d, n_blocks(count, 16), strip_task, &(Strips){d, x + (int64_t)t * w->cols, w->cols, count, NULL});
        parallel(d, n_blocks(w->rows, MANY_ROWS), see_strips_task, &(Panels){d, w, up, NULL, y + (int64_t)t * w->rows, count});
    }
}

static int cpu_see(Device *d, const Tower *v, const float *pixels, int columns, int rows) {
    sight_free(d);
    if (sight_open(d, v, columns, rows)) {
        sight_free(d);
        return -1;
    }
    Sight *s = d->sight;
    int quarter = v->head_dim / 4;
    for (int p = 0; p < (rows > columns ? rows : columns); p++)
        for (int i = 0; i < quarter; i++) {
            s->cos[p * quarter + i] = cosf((float)p * v->inv_freq[i]);
            s->sin[p * quarter + i] = sinf((float)p * v->inv_freq[i]);
        }
    for (int64_t i = 0; i < (int64_t)s->n * PATCH_SIZE; i++) s->h[i] = 2 * (pixels[i] - 0.5f);
    panels(d, &v->patch, NULL, s->h, s->n, s->x);
    for (int t = 0; t < s->n; t++) {
        float *x = s->x + (int64_t)t * v->hidden;
        for (int k = 0; k < 2; k++) {
            expand_row(d->kernel, &v->position, k ? v->n_positions + t / columns : t % columns, s->y);
            for (int i = 0; i < v->hidden; i++) x[i] += s->y[i];
        }
    }
    return 0;
}

typedef struct {
    Device *d;
    const Tower *v;
    const VisionLayer *l;
    const float *weight;                /* of a norm */
} Look;

/* n numbers as BF16, and, `wide` numbers on, what these leave of them. */
static void split_bf16(const float *x, int n, int wide, uint16_t *out) {
    for (int i = 0; i < n; i++) {
        out[i] = float_to_bf16(x[i]);
        out[wide + i] = float_to_bf16(x[i] - bf16_to_float(out[i]));
    }
}

/* Norms and RoPE of one patch's heads; its keys become a column of the panels, or with AMX its keys and values rows. */
static void see_qkv_task(void *arg, int t, int thread) {
    Look *a = arg;
    Sight *s = a->d->sight;
    int dim = a->v->head_dim, quarter = dim / 4, place[2] = {t % s->columns, t / s->columns}, panels = round_up(s->n, 16) / 16;
    (void)thread;
    for (int h = 0; h < a->v->n_heads; h++) {
        int64_t at = ((int64_t)t * a->v->n_heads + h) * dim;
        rms_norm(a->d, s->q + at, s->q + at, a->l->q_norm, dim);
        rms_norm(a->d, s->k + at, s->k + at, a->l->k_norm, dim);
        rms_norm(a->d, s->v + at, s->v + at, NULL, dim);
        for (int half = 0; half < 2; half++) {
            const float *cos = s->cos + place[half] * quarter, *sin = s->sin + place[half] * quarter;
            rotate(s->q + at + half * 2 * quarter, cos, sin, quarter);
            rotate(s->k + at + half * 2 * quarter, cos, sin, quarter);
        }
        if (a->d->strips) {
            uint16_t *row = s->parts + ((int64_t)h * s->n + t) * see_stride(a->v);
            split_bf16(s->k + at, dim, see_wide(a->v), row);
            split_bf16(s->v + at, dim, see_wide(a->v), row + 2 * see_wide(a->v));
            continue;
        }
        float *keys = s->keys + ((int64_t)h * panels + t / 16) * dim * 16 + t % 16;
        for (int i = 0; i < dim; i++) keys[i * 16] = s->k[at + i];
    }
}

/* One head and LOOKING patches: scores against all keys, softmax, and the sum of the values in the place of the queries. */
static void see_attend_task(void *arg, int task, int thread) {
    Look *a = arg;
    Sight *s = a->d->sight;
    int dim = a->v->head_dim, inner = a->v->n_heads * dim, h = task % a->v->n_heads, from = task / a->v->n_heads * LOOKING;
    int to = from + LOOKING < s->n ? from + LOOKING : s->n, panels = round_up(s->n, 16) / 16;
    float *score = s->panel[thread], c[PATCHES * 16];
    for (int p = 0; p < panels; p++)
        for (int t = from; t < to; t += PATCHES)
            a->d->kernel->tile(s->q + (int64_t)t * inner + h * dim, inner, s->keys + ((int64_t)h * panels + p) * dim * 16, 16, dim,
                               score + (int64_t)(t - from) * panels * 16 + p * 16, panels * 16);
    for (int t = from; t < to; t++) a->d->kernel->softmax(score + (int64_t)(t - from) * panels * 16, s->n);
    for (int t = from; t < to; t += PATCHES)
        for (int i = 0; i < dim; i += 16) {
            a->d->kernel->tile(score + (int64_t)(t - from) * panels * 16, panels * 16, s->v + h * dim + i, inner, s->n, c, 16);
            for (int r = 0; r < PATCHES && t + r < to; r++)
                copy(s->q + (int64_t)(t + r) * inner + h * dim + i, c + 16 * r, dim - i < 16 ? dim - i : 16);
        }
}

/* The same with AMX, QUERIES patches: see flash_keys.  q meets both halves of K: (q, q) . (upper, lower); so do the weights those of V,
 * which are columns of their own until the end. */
static void see_flash_task(void *arg, int task, int thread) {
    Look *a = arg;
    Sight *s = a->d->sight;
    Flash *f = a->d->flash[thread];
    int dim = a->v->head_dim, inner = a->v->n_heads * dim, wide = see_wide(a->v), stride = see_stride(a->v);
    int h = task % a->v->n_heads, from = task / a->v->n_heads * QUERIES, n = s->n - from < QUERIES ? s->n - from : QUERIES;
    float *q = s->q + (int64_t)from * inner + h * dim;
    clear(f->query, 16 * 2 * wide);
    for (int i = 0; i < n; i += 16) {
        const float *x[16];
        int count = n - i < 16 ? n - i : 16;
        for (int k = 0; k < count; k++) {
            float *both = f->query + k * 2 * wide;
            copy(both, q + (int64_t)(i + k) * inner, dim);
            copy(both + wide, both, dim);
            x[k] = both;
        }
        a->d->kernel->to_strip(x, count, 2 * wide, f->strips + i / 16 * strip_size(2 * wide));
    }
    flash_begin(f, n, 2 * wide);
    for (int p = 0; p < s->n; p += KEYS) {
        int count = s->n - p < KEYS ? s->n - p : KEYS;
        for (int i = 0; i < n; i++) f->first[i] = 0, f->last[i] = count;
        flash_keys(a->d->kernel, f, n, s->parts + ((int64_t)h * s->n + p) * stride, stride, count, 2 * wide, 2 * wide, 2 * wide, 1);
    }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < dim; k++)
            q[(int64_t)i * inner + k] = (f->out[i * 2 * wide + k] + f->out[i * 2 * wide + wide + k]) / f->sum[i];
}

/* y = RMSNorm(x, weight) */
static void see_norm_task(void *arg, int t, int thread) {
    Look *a = arg;
    const Sight *s = a->d->sight;
    int hidden = a->v->hidden;
    (void)thread;
    rms_norm(a->d, s->y + (int64_t)t * hidden, s->x + (int64_t)t * hidden, a->weight, hidden);
}

/* x += RMSNorm(y, weight) */
static void see_add_task(void *arg, int t, int thread) {
    Look *a = arg;
    const Sight *s = a->d->sight;
    int hidden = a->v->hidden;
    float *x = s->x + (int64_t)t * hidden, *y = s->y + (int64_t)t * hidden;
    (void)thread;
    rms_norm(a->d, y, y, a->weight, hidden);
    for (int i = 0; i < hidden; i++) x[i] += y[i];
}

static void cpu_see_layer(Device *d, const Tower *v, const VisionLayer *l) {
    Sight *s = d->sight;
    Look look = {.d = d, .v = v, .l = l};
    parallel(d, s->n, see_norm_task, &(Look){d, v, l, l->input_norm});
    panels(d, &l->q, NULL, s->y, s->n, s->q);
    panels(d, &l->k, NULL, s->y, s->n, s->k);
    panels(d, &l->v, NULL, s->y, s->n, s->v);
    parallel(d, s->n, see_qkv_task, &look);
    if (d->strips) parallel(d, n_blocks(s->n, QUERIES) * v->n_heads, see_flash_task, &look);
    else parallel(d, n_blocks(s->n, LOOKING) * v->n_heads, see_attend_task, &look);
    panels(d, &l->o, NULL, s->q, s->n, s->y);
    parallel(d, s->n, see_add_task, &(Look){d, v, l, l->post_attention_norm});
    parallel(d, s->n, see_norm_task, &(Look){d, v, l, l->pre_mlp_norm});
    panels(d, &l->gate, &l->up, s->y, s->n, s->h);
    panels(d, &l->down, NULL, s->h, s->n, s->y);
    parallel(d, s->n, see_add_task, &(Look){d, v, l, l->post_mlp_norm});
}

static void cpu_see_pool(Device *d, const Tower *v, float *soft) {
    Sight *s = d->sight;
    int wide = s->columns / POOL, n = s->n / (POOL * POOL);
    float scale = sqrtf((float)v->hidden);
    clear(s->y, (int64_t)n * v->hidden);
    for (int t = 0; t < s->n; t++) {
        const float *x = s->x + (int64_t)t * v->hidden;
        float *y = s->y + (int64_t)(t / s->columns / POOL * wide + t % s->columns / POOL) * v->hidden;
        for (int i = 0; i < v->hidden; i++) y[i] += x[i] / (POOL * POOL);
    }
    for (int t = 0; t < n; t++) {
        float *y = s->y + (int64_t)t * v->hidden;
        for (int i = 0; i < v->hidden; i++) {
            y[i] *= scale;
            if (v->std_bias) y[i] = (y[i] - v->std_bias[i]) * v->std_scale[i];
        }
        rms_norm(d, y, y, NULL, v->hidden);
    }
    panels(d, &v->project, NULL, s->y, n, soft);
    sight_free(d);
}

static void cpu_hidden(Device *d, int token, float *h) {
    int hidden = d->c->hidden;
    const float *x = d->x + (int64_t)token * hidden;
    rms_norm(d, d->w->post.data ? d->y.x : h, x, d->w->final_norm, hidden);
    if (d->w->post.data) products((Product){d, {&d->w->post}, {.x = d->y.x}, {h}, 1});
}

static void cpu_draft_from(Device *d, int token, int id, int64_t pos, const float *given) {
    begin_step(d, 1, pos);
    d->last[0] = d->n_drafts = 0;
    d->newest = id;
    if (given) copy(d->pair + d->c->backbone, given, d->c->backbone);
    else cpu_hidden(d->target, token, d->pair + d->c->backbone);
}

static void cpu_combine(Device *d) {
    embed_row(d, d->newest, d->pair);
    products((Product){d, {&d->w->pre}, {.x = d->pair}, {d->x}, 1});
}

static void cpu_guess(Device *d) {
    float most = -INFINITY;
    int best = 0;
    cpu_hidden(d, 0, d->pair + d->c->backbone);
    if (cpu_top(d, 0, 1, &best, &most) != 1) {
        cpu_head(d, 0, 1, d->logits);
        for (int i = 0; i < d->c->vocab; i++)
            if (d->logits[i] > most) most = d->logits[best = i];
    }
    d->draft[d->n_drafts++] = d->newest = best;
}

static void cpu_drafts(Device *d, int n, int *ids) {
    memcpy(ids, d->draft, (size_t)n * sizeof *ids);
}

static void cpu_read_x(Device *d, float *x) { copy(x, d->x, (int64_t)d->n * d->c->hidden); }

static void cpu_read_route(Device *d, int *expert, float *weight) {
    int n = d->n * d->c->top_k;
    memcpy(expert, d->expert, (size_t)n * sizeof *expert);
    copy(weight, d->expert_weight, n);
}

const Ops cpu_ops = {
    "cpu", 512, NULL, cpu_open, cpu_close, cpu_alloc, cpu_release, cpu_copy, NULL, NULL, NULL,
    cpu_embed, cpu_qkv, cpu_attend, cpu_attn_out, cpu_mlp, cpu_route, cpu_experts, cpu_join,
    cpu_head, cpu_top,
    cpu_draft_from, cpu_combine, cpu_guess, cpu_drafts,
    cpu_read_x, cpu_read_route, cpu_hidden, cpu_embed_soft, cpu_see, cpu_see_layer, cpu_see_pool,
};
