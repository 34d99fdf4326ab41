/* cpu.c - the operations of ops.h on the CPU: the product for machines without a GPU, and the oracle for the GPU.
 *
 * Clear first.  One matrix product serves everything: four rows of W are expanded to float32 in the nearest cache,
 * then multiplied with every token.  The sum over a row is taken in one fixed order whatever the number of tokens or
 * threads, so a token's result never depends on its neighbours. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define HAVE_AVX2 1
#define AVX2 __attribute__((target("avx2,fma")))
#define UNROLL4 _Pragma("GCC unroll 4")     /* at -O2 too: the sums of four rows must be registers */
#else
#define HAVE_AVX2 0
#endif

#define ROWS_PER_TASK 32
#define TOKEN_TILE 64                   /* tokens whose activations stay in the second-level cache */

/* ------------------------------------------------------------------------------------------------------------
 * Number formats */

static const float e2m1[16] = {0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6};
static float e4m3[256];                 /* E4M3FN: bias 7, subnormals in steps of 2^-9, 0x7f and 0xff NaN */
static float e2m1_pair[256][2];         /* both numbers of a byte: low nibble, high nibble */

static void fill_tables(void) {
    for (int i = 0; i < 256; i++) {
        int exponent = i >> 3 & 15, mantissa = i & 7;
        float v = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
        if ((i & 127) == 127) v = NAN;
        e4m3[i] = i & 128 ? -v : v;
        e2m1_pair[i][0] = e2m1[i & 15];
        e2m1_pair[i][1] = e2m1[i >> 4];
    }
}

static uint16_t float_to_bf16(float f) {
    union { float f; uint32_t u; } x = {f};
    if (isnan(f)) return 0x7fc0;
    return (x.u + 0x7fff + (x.u >> 16 & 1)) >> 16;      /* round to nearest, ties to even */
}

/* Saturates at 448, rounds to nearest, ties to even: torch's float8_e4m3fn after a clamp. */
static uint8_t float_to_e4m3(float f) {
    uint8_t sign = signbit(f) ? 128 : 0;
    float a = fabsf(f);
    if (isnan(f)) return sign | 127;
    if (a >= 448) return sign | 126;
    int e;
    frexpf(a, &e);                                      /* a = m * 2^e, m in [0.5, 1) */
    if (e < -5) return sign | (uint8_t)nearbyintf(ldexpf(a, 9));            /* subnormal, or the first normal */
    int m = (int)nearbyintf(ldexpf(a, 4 - e));          /* 8 .. 16 */
    return sign | (uint8_t)(((e + 6) << 3) + m - 8);
}

/* ------------------------------------------------------------------------------------------------------------
 * Kernels, in C and for AVX2.  Both sum in 16 lanes and fold these in the same order. */

typedef struct {
    /* One row of W, or n numbers of it, as float32. */
    void (*expand_bf16)(const uint8_t *data, int n, float *out);
    void (*expand_nvfp4)(const uint8_t *data, const uint8_t *block_scale, float scale, int n, float *out);
    void (*expand_e4m3)(const uint8_t *data, float scale, int n, float *out);
    /* out[i] = a . b[i], four at a time. */
    void (*dot4)(const float *a, const float *const b[4], int n, float out[4]);
    /* The same with rows of W expanded in registers, to the same bits: for a single token, which would not use an expanded
     * row twice.  NULL: not here. */
    void (*dot4_bf16)(const float *a, const uint8_t *const row[4], int n, float out[4]);
    void (*dot4_nvfp4)(const float *a, const uint8_t *const row[4], const uint8_t *const block_scale[4], float scale, int n, float out[4]);
    /* y += s * x */
    void (*axpy)(float *y, const float *x, float s, int n);
} Kernels;

static void expand_bf16_c(const uint8_t *data, int n, float *out) {
    for (int i = 0; i < n; i++) {
        uint16_t u;
        memcpy(&u, data + 2 * i, 2);
        out[i] = bf16_to_float(u);
    }
}

static void expand_nvfp4_c(const uint8_t *data, const uint8_t *block_scale, float scale, int n, float *out) {
    for (int i = 0; i < n; i += 16) {
        float s = e4m3[block_scale[i / 16]] * scale;
        for (int k = 0; k < 8; k++) {
            const float *pair = e2m1_pair[data[i / 2 + k]];
            out[i + 2 * k] = pair[0] * s;
            out[i + 2 * k + 1] = pair[1] * s;
        }
    }
}

static void expand_e4m3_c(const uint8_t *data, float scale, int n, float *out) {
    for (int i = 0; i < n; i++) out[i] = e4m3[data[i]] * scale;
}

/* The 16 partial sums of a dot product, then what is left over after the last whole 16. */
static float fold(float lane[16], const float *a, const float *b, int from, int n) {
    for (int w = 8; w > 0; w /= 2)
        for (int k = 0; k < w; k++) lane[k] += lane[k + w];
    for (int i = from; i < n; i++) lane[0] += a[i] * b[i];
    return lane[0];
}

static void dot4_c(const float *a, const float *const b[4], int n, float out[4]) {
    for (int r = 0; r < 4; r++) {
        float lane[16] = {0};
        int i = 0;
        for (; i + 16 <= n; i += 16)
            for (int k = 0; k < 16; k++) lane[k] += a[i + k] * b[r][i + k];
        out[r] = fold(lane, a, b[r], i, n);
    }
}

static void axpy_c(float *y, const float *x, float s, int n) {
    for (int i = 0; i < n; i++) y[i] += s * x[i];
}

static const Kernels kernels_c = {expand_bf16_c, expand_nvfp4_c, expand_e4m3_c, dot4_c, NULL, NULL, axpy_c};

#if HAVE_AVX2
AVX2 static void expand_bf16_avx2(const uint8_t *data, int n, float *out) {
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(data + 2 * i)));
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(_mm256_slli_epi32(u, 16)));
    }
    expand_bf16_c(data + 2 * i, n - i, out + i);
}

/* One block of 16: a nibble's value, doubled, is an integer, and one byte shuffle looks all of them up. */
AVX2 static inline void expand_block(const uint8_t *data, float scale, __m256 out[2]) {
    const __m128i doubled = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    __m128i bytes = _mm_loadl_epi64((const __m128i *)data);
    __m128i nibbles = _mm_and_si128(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi8(15));
    __m128i v = _mm_shuffle_epi8(doubled, nibbles);
    __m256 s = _mm256_set1_ps(0.5f * scale);            /* halving is exact */
    out[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), s);
    out[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))), s);
}

AVX2 static void expand_nvfp4_avx2(const uint8_t *data, const uint8_t *block_scale, float scale, int n, float *out) {
    __m256 w[2];
    for (int i = 0; i < n; i += 16) {
        expand_block(data + i / 2, e4m3[block_scale[i / 16]] * scale, w);
        _mm256_storeu_ps(out + i, w[0]);
        _mm256_storeu_ps(out + i + 8, w[1]);
    }
}

AVX2 static float fold_avx2(__m256 s0, __m256 s1, const float *a, const float *b, int from, int n) {
    float lane[16];
    _mm256_storeu_ps(lane, s0);
    _mm256_storeu_ps(lane + 8, s1);
    return fold(lane, a, b, from, n);
}

AVX2 static void dot4_avx2(const float *a, const float *const b[4], int n, float out[4]) {
    __m256 s[4][2];
    UNROLL4 for (int r = 0; r < 4; r++) s[r][0] = s[r][1] = _mm256_setzero_ps();
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 a0 = _mm256_loadu_ps(a + i), a1 = _mm256_loadu_ps(a + i + 8);
        UNROLL4 for (int r = 0; r < 4; r++) {
            s[r][0] = _mm256_fmadd_ps(a0, _mm256_loadu_ps(b[r] + i), s[r][0]);
            s[r][1] = _mm256_fmadd_ps(a1, _mm256_loadu_ps(b[r] + i + 8), s[r][1]);
        }
    }
    UNROLL4 for (int r = 0; r < 4; r++) out[r] = fold_avx2(s[r][0], s[r][1], a, b[r], i, n);
}

AVX2 static void dot4_bf16_avx2(const float *a, const uint8_t *const row[4], int n, float out[4]) {
    __m256 s[4][2];
    UNROLL4 for (int r = 0; r < 4; r++) s[r][0] = s[r][1] = _mm256_setzero_ps();
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 a0 = _mm256_loadu_ps(a + i), a1 = _mm256_loadu_ps(a + i + 8);
        UNROLL4 for (int r = 0; r < 4; r++) {
            const __m128i *w = (const __m128i *)(row[r] + 2 * i);
            __m256i w0 = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(w)), 16);
            __m256i w1 = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(w + 1)), 16);
            s[r][0] = _mm256_fmadd_ps(a0, _mm256_castsi256_ps(w0), s[r][0]);
            s[r][1] = _mm256_fmadd_ps(a1, _mm256_castsi256_ps(w1), s[r][1]);
        }
    }
    UNROLL4 for (int r = 0; r < 4; r++) {
        float rest[16] = {0};
        expand_bf16_c(row[r] + 2 * i, n - i, rest);
        out[r] = fold_avx2(s[r][0], s[r][1], a + i, rest, 0, n - i);
    }
}

AVX2 static void dot4_nvfp4_avx2(const float *a, const uint8_t *const row[4], const uint8_t *const block_scale[4], float scale, int n,
                                 float out[4]) {
    __m256 s[4][2], w[2];
    UNROLL4 for (int r = 0; r < 4; r++) s[r][0] = s[r][1] = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __m256 a0 = _mm256_loadu_ps(a + i), a1 = _mm256_loadu_ps(a + i + 8);
        UNROLL4 for (int r = 0; r < 4; r++) {
            expand_block(row[r] + i / 2, e4m3[block_scale[r][i / 16]] * scale, w);
            s[r][0] = _mm256_fmadd_ps(a0, w[0], s[r][0]);
            s[r][1] = _mm256_fmadd_ps(a1, w[1], s[r][1]);
        }
    }
    UNROLL4 for (int r = 0; r < 4; r++) out[r] = fold_avx2(s[r][0], s[r][1], a, a, n, n);
}

AVX2 static void axpy_avx2(float *y, const float *x, float s, int n) {
    __m256 v = _mm256_set1_ps(s);
    int i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_fmadd_ps(v, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    axpy_c(y + i, x + i, s, n - i);
}

static const Kernels kernels_avx2 = {expand_bf16_avx2, expand_nvfp4_avx2, expand_e4m3_c,  dot4_avx2,
                                     dot4_bf16_avx2,   dot4_nvfp4_avx2,   axpy_avx2};
#endif

/* The machine's best; GEMMA4_CPU=c asks for plain C (the tests run both). */
static const Kernels *choose_kernels(void) {
    const char *want = getenv("GEMMA4_CPU");
#if HAVE_AVX2
    if ((!want || strcmp(want, "c")) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_avx2;
#endif
    (void)want;
    return &kernels_c;
}

/* ------------------------------------------------------------------------------------------------------------
 * The device: threads and scratch */

typedef struct Pool Pool;
typedef void TaskFn(void *arg, int task, int thread);

struct Pool {
    pthread_t *thread;
    int n_threads;                      /* the caller's included */
    pthread_mutex_t lock;
    pthread_cond_t start, finish;
    atomic_uint round;                  /* counts the jobs; a thread waits for it to change */
    atomic_int next, busy;
    int quit;
    TaskFn *fn;
    void *arg;
    int n_tasks;
};

typedef struct {
    Pool *pool;
    int index;
} Worker;

struct Device {
    const Config *c;
    const Weights *w;
    const Kernels *kernel;
    Pool pool;
    Worker *worker;
    int n, max_n;
    int64_t pos;
    /* Activations, all float32 [max_n][…]. */
    float *x, *y;                       /* residual stream; a norm of it [hidden] */
    float *q, *att;                     /* [n_heads * head_dim] */
    float *q_turned;                    /* [n_heads * k_dim] where the cache keeps only the dimensions of K that turn */
    float *k, *v;                       /* [n_kv_heads * head_dim] */
    float *gate, *up;                   /* [intermediate], or [top_k * expert_size] */
    float *h1, *h2;                     /* [hidden] */
    float *pair;                        /* a drafter's input [2 * backbone] */
    float *part;                        /* each chosen expert's output [top_k][hidden] */
    float *score;                       /* [n_experts] */
    int *expert;                        /* [top_k], and their weights */
    float *expert_weight;
    int *slot_token, *slot_of, *first_slot;     /* tokens grouped by expert: see experts() */
    float *cos, *sin;                   /* RoPE of this step's positions [max_head_dim / 2] */
    const float *turned_by;             /* the frequencies that cos and sin were computed from */
    /* For each thread: four expanded rows; attention scores of one group of heads [group][context]. */
    float **rows, **att_score;
};

static void work(Pool *p, int index) {
    for (int task; (task = atomic_fetch_add(&p->next, 1)) < p->n_tasks;) p->fn(p->arg, task, index);
}

static void *worker_main(void *arg) {
    Worker *w = arg;
    Pool *p = w->pool;
    unsigned seen = 0;
    for (;;) {
        /* Between two operations of one token the next job comes within microseconds: spin a little, then sleep. */
        for (int spin = 0; spin < 2000 && atomic_load(&p->round) == seen; spin++)
#if HAVE_AVX2
            _mm_pause();
#else
            ;
#endif
        pthread_mutex_lock(&p->lock);
        while (atomic_load(&p->round) == seen) pthread_cond_wait(&p->start, &p->lock);
        seen = atomic_load(&p->round);
        int quit = p->quit;
        pthread_mutex_unlock(&p->lock);
        if (quit) return NULL;
        work(p, w->index);
        if (atomic_fetch_sub(&p->busy, 1) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->finish);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

/* Runs fn(arg, task, thread) for task = 0 .. n_tasks - 1 on all threads, each task once, and waits. */
static void parallel(Device *d, int n_tasks, TaskFn *fn, void *arg) {
    Pool *p = &d->pool;
    if (n_tasks <= 1 || p->n_threads == 1) {
        for (int i = 0; i < n_tasks; i++) fn(arg, i, 0);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->arg = arg;
    p->n_tasks = n_tasks;
    atomic_store(&p->next, 0);
    atomic_store(&p->busy, p->n_threads - 1);
    atomic_fetch_add(&p->round, 1);
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    work(p, 0);
    for (int spin = 0; spin < 2000 && atomic_load(&p->busy); spin++)
        ;
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->busy)) pthread_cond_wait(&p->finish, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void cpu_close(Device *d) {
    if (!d) return;
    Pool *p = &d->pool;
    pthread_mutex_lock(&p->lock);
    p->quit = 1;
    atomic_fetch_add(&p->round, 1);
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->thread[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->finish);
    float *all[] = {d->x, d->y, d->q, d->q_turned, d->att, d->k, d->v, d->gate, d->up, d->h1, d->h2, d->pair, d->part, d->score, d->expert_weight,
                    d->cos, d->sin};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    for (int i = 0; i < p->n_threads; i++) {
        free(d->rows[i]);
        free(d->att_score[i]);
    }
    free(d->expert);
    free(d->slot_token);
    free(d->slot_of);
    free(d->first_slot);
    free(d->rows);
    free(d->att_score);
    free(d->worker);
    free(p->thread);
    free(d);
}

static float *floats(size_t n, size_t each) { return xmalloc((n * each + 16) * sizeof(float)); }

static Device *cpu_open(const Config *c, const Weights *w, const DeviceOptions *o, Error *err) {
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
    int inner = c->intermediate > c->top_k * c->expert_size ? c->intermediate : c->top_k * c->expert_size;
    fill_tables();
    d->c = c;
    d->w = w;
    d->kernel = choose_kernels();
    d->max_n = max_n;
    d->x = floats(max_n, c->hidden), d->y = floats(max_n, c->hidden);
    d->q = floats(max_n, q), d->q_turned = floats(max_n, q), d->att = floats(max_n, q);
    d->k = floats(max_n, kv), d->v = floats(max_n, kv);
    d->gate = floats(max_n, inner), d->up = floats(max_n, inner);
    d->h1 = floats(max_n, c->hidden), d->h2 = floats(max_n, c->hidden);
    d->pair = floats(2, c->backbone);
    d->part = floats(max_n, (size_t)c->top_k * c->hidden);
    d->score = floats(max_n, c->n_experts);
    d->expert_weight = floats(max_n, c->top_k);
    d->cos = floats(max_n, dim / 2), d->sin = floats(max_n, dim / 2);
    size_t slots = (size_t)max_n * c->top_k;
    d->expert = xcalloc(slots, sizeof(int));
    d->slot_token = xcalloc(slots, sizeof(int));
    d->slot_of = xcalloc(slots, sizeof(int));
    d->first_slot = xcalloc(c->n_experts + 1, sizeof(int));
    d->rows = xcalloc(n_threads, sizeof *d->rows);
    d->att_score = xcalloc(n_threads, sizeof *d->att_score);
    for (int i = 0; i < n_threads; i++) {
        d->rows[i] = floats(4, cols);
        d->att_score[i] = floats(group, o->context);
    }
    Pool *p = &d->pool;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->finish, NULL);
    p->thread = xcalloc(n_threads, sizeof *p->thread);
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

static void expand_row(const Kernels *kn, const Weight *w, int64_t row, float *out) {
    if (w->dtype == DT_U8)
        kn->expand_nvfp4(w->data + row * (w->cols / 2), w->block_scale + row * (w->cols / 16), w->scale, w->cols, out);
    else if (w->dtype == DT_BF16) kn->expand_bf16(w->data + 2 * row * w->cols, w->cols, out);
    else memcpy(out, w->data + 4 * row * w->cols, 4 * (size_t)w->cols);
}

/* out[k] = W[row[k]] . x for a single token, the rows as they lie in the file.  Returns 0 when the kernels cannot. */
static int dot_packed(const Kernels *kn, const Weight *w, const int row[4], const float *x, float out[4]) {
    const uint8_t *data[4], *scale[4];
    if (w->dtype == DT_BF16 && kn->dot4_bf16) {
        for (int k = 0; k < 4; k++) data[k] = w->data + 2 * (size_t)row[k] * w->cols;
        kn->dot4_bf16(x, data, w->cols, out);
        return 1;
    }
    if (w->dtype != DT_U8 || !kn->dot4_nvfp4) return 0;
    for (int k = 0; k < 4; k++) {
        data[k] = w->data + (size_t)row[k] * (w->cols / 2);
        scale[k] = w->block_scale + (size_t)row[k] * (w->cols / 16);
    }
    kn->dot4_nvfp4(x, data, scale, w->scale, w->cols, out);
    return 1;
}

/* y[t][r] = W[r] . x[token[t]] for rows first .. last - 1 and t = 0 .. n - 1; token NULL: x[t].  ldy: length of a row of y. */
static void multiply(Device *d, int thread, const Weight *w, int first, int last, const float *x, const int *token, int n,
                     float *y, int ldy) {
    const float *row[4];
    float *buffer = d->rows[thread], out[4];
    for (int tile = 0; tile < n; tile += TOKEN_TILE) {
        int end = n < tile + TOKEN_TILE ? n : tile + TOKEN_TILE;
        for (int r = first; r < last; r += 4) {
            int rows = last - r < 4 ? last - r : 4, at[4];
            for (int k = 0; k < 4; k++) at[k] = r + (k < rows ? k : 0);
            if (n == 1 && dot_packed(d->kernel, w, at, x + (size_t)(token ? token[0] : 0) * w->cols, out)) {
                memcpy(y + r, out, rows * sizeof(float));
                continue;
            }
            for (int k = 0; k < 4; k++) {
                row[k] = buffer + (size_t)(k < rows ? k : 0) * w->cols;
                if (k < rows) expand_row(d->kernel, w, r + k, buffer + (size_t)k * w->cols);
            }
            for (int t = tile; t < end; t++) {
                d->kernel->dot4(x + (size_t)(token ? token[t] : t) * w->cols, row, w->cols, out);
                memcpy(y + (size_t)t * ldy + r, out, rows * sizeof(float));
            }
        }
    }
}

typedef struct {
    Device *d;
    const Weight *w;
    const float *x;
    float *y;
    int n;
} Product;

static int n_blocks(int rows) { return (rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK; }
static int block_end(int block, int rows) { return (block + 1) * ROWS_PER_TASK < rows ? (block + 1) * ROWS_PER_TASK : rows; }

static void product_task(void *arg, int task, int thread) {
    Product *p = arg;
    multiply(p->d, thread, p->w, task * ROWS_PER_TASK, block_end(task, p->w->rows), p->x, NULL, p->n, p->y, p->w->rows);
}

/* y [n][rows] = x [n][cols] W^T */
static void product(Device *d, const Weight *w, const float *x, int n, float *y) {
    parallel(d, n_blocks(w->rows), product_task, &(Product){d, w, x, y, n});
}

/* ------------------------------------------------------------------------------------------------------------
 * Norms, RoPE, embedding */

/* y = x / sqrt(mean(x^2) + eps) * weight (Gemma4RMSNorm; weight NULL: none).  x and y may be the same. */
static void rms_norm(const Device *d, float *y, const float *x, const float *weight, int n) {
    float sum[4];
    const float *const xs[4] = {x, x, x, x};
    d->kernel->dot4(x, xs, n, sum);
    float s = 1 / sqrtf(sum[0] / n + d->c->eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * s * (weight ? weight[i] : 1);
}

/* One row of the embedding, times the square root of its width. */
static void embed_row(const Device *d, int id, float *out) {
    int n = d->w->embed.cols;
    float scale = sqrtf(n);
    expand_row(d->kernel, &d->w->embed, id, out);
    for (int i = 0; i < n; i++) out[i] *= scale;
}

static void cpu_embed(Device *d, const int *ids, int n, int64_t pos) {
    d->n = n;
    d->pos = pos;
    d->turned_by = NULL;
    for (int t = 0; t < n; t++) embed_row(d, ids[t], d->x + (size_t)t * d->c->hidden);
}

static void cpu_combine(Device *d, int id, int64_t pos, const float *h) {
    d->n = 1;
    d->pos = pos;
    d->turned_by = NULL;
    embed_row(d, id, d->pair);
    memcpy(d->pair + d->c->backbone, h, sizeof *h * d->c->backbone);
    product(d, &d->w->pre, d->pair, 1, d->x);
}

/* cos and sin of pos * inv_freq, in float32 as the reference; shared by all layers of one kind in a step. */
static void fill_rope(Device *d, const Layer *l) {
    if (d->turned_by == l->inv_freq) return;
    int half = l->head_dim / 2;
    for (int t = 0; t < d->n; t++)
        for (int i = 0; i < half; i++) {
            float angle = (float)(d->pos + t) * l->inv_freq[i];
            d->cos[t * half + i] = cosf(angle);
            d->sin[t * half + i] = sinf(angle);
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
    if (dtype == DT_F32) memcpy(out, v, n * sizeof *v);
    else if (dtype == DT_BF16)
        for (int i = 0; i < n; i++) ((uint16_t *)out)[i] = float_to_bf16(v[i]);
    else
        for (int i = 0; i < n; i++) out[i] = float_to_e4m3(v[i] / scale);
}

typedef struct {
    Device *d;
    const Layer *l;
    const KvCache *kv;
} Attention;

/* The dimensions of v that turn, r pairs of them, as the cache of K alone: [2r]. */
static void take_turned(float *out, const float *v, int half, int r) {
    memcpy(out, v, r * sizeof *v);
    memcpy(out + r, v + half, r * sizeof *v);
}

/* One token: norms, RoPE, and its keys and values into the cache.  Where that keeps only the dimensions of K that turn, q is
 * split in two: q . K = q_turned . K_turned + (q * k_norm, 0 where K is stored) . V. */
static void qkv_task(void *arg, int t, int thread) {
    Attention *a = arg;
    Device *d = a->d;
    const Layer *l = a->l;
    int dim = l->head_dim, half = dim / 2, k_dim = a->kv->k_dim, r = k_dim / 2;
    const float *cos = d->cos + t * half, *sin = d->sin + t * half;
    (void)thread;
    for (int h = 0; h < d->c->n_heads; h++) {
        float *q = d->q + ((size_t)t * d->c->n_heads + h) * dim;
        rms_norm(d, q, q, l->q_norm, dim);
        rotate(q, cos, sin, half);
        if (k_dim == dim) continue;
        take_turned(d->q_turned + ((size_t)t * d->c->n_heads + h) * k_dim, q, half, r);
        for (int i = 0; i < dim; i++) q[i] *= i % half < r ? 0 : l->k_norm[i];
    }
    size_t slot = (d->pos + t) % a->kv->slots, size = dtype_size[a->kv->dtype];
    for (int h = 0; h < l->n_kv_heads && l->k.data; h++) {
        size_t row = (size_t)t * l->n_kv_heads + h, to = slot * l->n_kv_heads + h;
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
    for (int t = 0; t < d->n; t++) rms_norm(d, d->y + (size_t)t * d->c->hidden, d->x + (size_t)t * d->c->hidden, l->input_norm, d->c->hidden);
    product(d, &l->q, d->y, d->n, d->q);
    if (l->k.data) product(d, &l->k, d->y, d->n, d->k);
    if (l->v.data) product(d, &l->v, d->y, d->n, d->v);
    fill_rope(d, l);
    parallel(d, d->n, qkv_task, &(Attention){d, l, kv});
}

/* The cache's row of K, or of V, of position p for key/value head h, as float32 in buffer or, where it is that already, in
 * place. */
static const float *cached(const Attention *a, int is_v, int64_t p, int h, float *buffer) {
    int dim = is_v ? a->l->head_dim : a->kv->k_dim;
    float scale = is_v ? a->l->v_scale : a->l->k_scale;
    const uint8_t *rows = is_v ? a->kv->v : a->kv->k;
    const uint8_t *row = rows + ((p % a->kv->slots) * a->l->n_kv_heads + h) * dim * dtype_size[a->kv->dtype];
    if (a->kv->dtype == DT_F32) return (const float *)row;
    if (a->kv->dtype == DT_BF16) a->d->kernel->expand_bf16(row, dim, buffer);
    else a->d->kernel->expand_e4m3(row, scale, dim, buffer);
    return buffer;
}

static void softmax(float *s, int n) {
    float max = s[0], sum = 0;
    for (int i = 1; i < n; i++)
        if (s[i] > max) max = s[i];
    for (int i = 0; i < n; i++) sum += s[i] = expf(s[i] - max);
    for (int i = 0; i < n; i++) s[i] /= sum;
}

/* One token and one key/value head with its group of query heads. */
static void attend_task(void *arg, int task, int thread) {
    Attention *a = arg;
    Device *d = a->d;
    const Layer *l = a->l;
    int dim = l->head_dim, n_heads = d->c->n_heads, group = n_heads / l->n_kv_heads;
    int t = task / l->n_kv_heads, h = task % l->n_kv_heads;
    int64_t pos = d->pos + t, from = l->global || pos < d->c->window ? 0 : pos - d->c->window + 1;
    int n = pos - from + (l->k.data != NULL);
    size_t head = (size_t)t * n_heads + h * group;
    int k_dim = a->kv->k_dim, parts = k_dim < dim ? 2 : 1;      /* of q . K: with K's row, and with V's */
    const float *q[2] = {parts == 2 ? d->q_turned + head * k_dim : d->q + head * dim, d->q + head * dim};
    float *out = d->att + head * dim, *score = d->att_score[thread], dots[4];
    for (int i = 0; i < n; i += 4)
        for (int part = 0; part < parts; part++) {
            const float *key[4];
            int width = part ? dim : k_dim;
            for (int k = 0; k < 4; k++) key[k] = i + k < n ? cached(a, part, from + i + k, h, d->rows[thread] + k * width) : key[0];
            for (int g = 0; g < group; g++) {
                d->kernel->dot4(q[part] + g * width, key, width, dots);
                for (int k = 0; k < 4 && i + k < n; k++) score[(size_t)g * n + i + k] = dots[k] + (part ? score[(size_t)g * n + i + k] : 0);
            }
        }
    for (int g = 0; g < group; g++) softmax(score + (size_t)g * n, n);
    memset(out, 0, sizeof(float) * group * dim);
    for (int i = 0; i < n; i++) {
        const float *v = cached(a, 1, from + i, h, d->rows[thread]);
        for (int g = 0; g < group; g++) d->kernel->axpy(out + g * dim, v, score[(size_t)g * n + i], dim);
    }
}

static void cpu_attend(Device *d, const Layer *l, const KvCache *kv) {
    parallel(d, d->n * l->n_kv_heads, attend_task, &(Attention){d, l, kv});
}

static void cpu_attn_out(Device *d, const Layer *l) {
    int hidden = d->c->hidden;
    product(d, &l->o, d->att, d->n, d->y);
    for (int t = 0; t < d->n; t++) {
        float *x = d->x + (size_t)t * hidden, *y = d->y + (size_t)t * hidden;
        rms_norm(d, y, y, l->post_attention_norm, hidden);
        for (int i = 0; i < hidden; i++) x[i] += y[i];
    }
}

/* ------------------------------------------------------------------------------------------------------------
 * The dense MLP, the router and the experts */

/* gelu_pytorch_tanh, times up: the activation of every MLP here. */
static void gelu_times(float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++) {
        float g = gate[i];
        gate[i] = 0.5f * g * (1 + tanhf(0.7978845608f * (g + 0.044715f * g * g * g))) * up[i];
    }
}

typedef struct {
    Device *d;
    const Layer *l;
} Feed;

/* A block of rows of gate and up, and what becomes of them. */
static void gate_up_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->intermediate, first = task * ROWS_PER_TASK, last = block_end(task, rows);
    multiply(d, thread, &f->l->gate, first, last, d->y, NULL, d->n, d->gate, rows);
    multiply(d, thread, &f->l->up, first, last, d->y, NULL, d->n, d->up, rows);
    for (int t = 0; t < d->n; t++) gelu_times(d->gate + (size_t)t * rows + first, d->up + (size_t)t * rows + first, last - first);
}

static void cpu_mlp(Device *d, const Layer *l) {
    int hidden = d->c->hidden;
    for (int t = 0; t < d->n; t++) rms_norm(d, d->y + (size_t)t * hidden, d->x + (size_t)t * hidden, l->pre_mlp_norm, hidden);
    parallel(d, n_blocks(d->c->intermediate), gate_up_task, &(Feed){d, l});
    product(d, &l->down, d->gate, d->n, d->h1);
    for (int t = 0; t < d->n && l->post_mlp_norm; t++)
        rms_norm(d, d->h1 + (size_t)t * hidden, d->h1 + (size_t)t * hidden, l->post_mlp_norm, hidden);
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

static void cpu_route(Device *d, const Layer *l) {
    const Config *c = d->c;
    float root = 1 / sqrtf(c->hidden);
    for (int t = 0; t < d->n; t++) {
        float *y = d->y + (size_t)t * c->hidden;
        rms_norm(d, y, d->x + (size_t)t * c->hidden, NULL, c->hidden);
        for (int i = 0; i < c->hidden; i++) y[i] = y[i] * l->router_scale[i] * root;
    }
    product(d, &l->router, d->y, d->n, d->score);
    for (int t = 0; t < d->n; t++) {
        float *p = d->score + (size_t)t * c->n_experts, *w = d->expert_weight + (size_t)t * c->top_k, sum = 0;
        int *e = d->expert + (size_t)t * c->top_k;
        softmax(p, c->n_experts);
        top_k(p, c->n_experts, c->top_k, e);
        for (int k = 0; k < c->top_k; k++) sum += w[k] = p[e[k]];
        for (int k = 0; k < c->top_k; k++) w[k] = w[k] / sum * l->per_expert_scale[e[k]];
    }
}

/* Tokens grouped by expert: expert e has slots first_slot[e] .. first_slot[e + 1] - 1; slot s is token slot_token[s];
 * the k-th choice of token t is slot slot_of[t * top_k + k]. */
static void group_by_expert(Device *d) {
    const Config *c = d->c;
    int n = d->n * c->top_k, *first = d->first_slot;
    memset(first, 0, (c->n_experts + 1) * sizeof *first);
    for (int i = 0; i < n; i++) first[d->expert[i] + 1]++;
    for (int e = 0; e < c->n_experts; e++) first[e + 1] += first[e];
    for (int i = 0; i < n; i++) {
        int slot = first[d->expert[i]]++;
        d->slot_of[i] = slot;
        d->slot_token[slot] = i / c->top_k;
    }
    memmove(first + 1, first, c->n_experts * sizeof *first);        /* each first has moved on to the next one's */
    first[0] = 0;
}

/* task = expert and block of rows; experts that nobody chose have nothing to do. */
static void expert_up_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->expert_size, e = task / n_blocks(rows), block = task % n_blocks(rows);
    int first = block * ROWS_PER_TASK, last = block_end(block, rows), from = d->first_slot[e], n = d->first_slot[e + 1] - from;
    if (!n) return;
    float *gate = d->gate + (size_t)from * rows, *up = d->up + (size_t)from * rows;
    multiply(d, thread, &f->l->expert_gate[e], first, last, d->y, d->slot_token + from, n, gate, rows);
    multiply(d, thread, &f->l->expert_up[e], first, last, d->y, d->slot_token + from, n, up, rows);
    for (int t = 0; t < n; t++) gelu_times(gate + (size_t)t * rows + first, up + (size_t)t * rows + first, last - first);
}

static void expert_down_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->hidden, e = task / n_blocks(rows), block = task % n_blocks(rows);
    int from = d->first_slot[e], n = d->first_slot[e + 1] - from;
    if (n)
        multiply(d, thread, &f->l->expert_down[e], block * ROWS_PER_TASK, block_end(block, rows),
                 d->gate + (size_t)from * d->c->expert_size, NULL, n, d->part + (size_t)from * rows, rows);
}

static void cpu_experts(Device *d, const Layer *l) {
    const Config *c = d->c;
    Feed f = {d, l};
    for (int t = 0; t < d->n; t++)
        rms_norm(d, d->y + (size_t)t * c->hidden, d->x + (size_t)t * c->hidden, l->pre_experts_norm, c->hidden);
    group_by_expert(d);
    parallel(d, c->n_experts * n_blocks(c->expert_size), expert_up_task, &f);
    parallel(d, c->n_experts * n_blocks(c->hidden), expert_down_task, &f);
    for (int t = 0; t < d->n; t++) {
        float *h = d->h2 + (size_t)t * c->hidden;
        memset(h, 0, c->hidden * sizeof *h);
        for (int k = 0; k < c->top_k; k++)
            d->kernel->axpy(h, d->part + (size_t)d->slot_of[t * c->top_k + k] * c->hidden, d->expert_weight[t * c->top_k + k], c->hidden);
        rms_norm(d, h, h, l->post_experts_norm, c->hidden);
    }
}

static void cpu_join(Device *d, const Layer *l) {
    int hidden = d->c->hidden;
    for (int t = 0; t < d->n; t++) {
        float *x = d->x + (size_t)t * hidden, *h1 = d->h1 + (size_t)t * hidden, *h2 = d->h2 + (size_t)t * hidden;
        for (int i = 0; i < hidden && d->c->n_experts; i++) h1[i] += h2[i];
        rms_norm(d, h1, h1, l->post_ffn_norm, hidden);
        for (int i = 0; i < hidden; i++) x[i] = (x[i] + h1[i]) * l->layer_scalar;
    }
}

static void cpu_head(Device *d, int first, int count, float *logits) {
    int hidden = d->c->hidden;
    float softcap = d->c->softcap;
    for (int t = 0; t < count; t++)
        rms_norm(d, d->y + (size_t)t * hidden, d->x + (size_t)(first + t) * hidden, d->w->final_norm, hidden);
    product(d, &d->w->head, d->y, count, logits);
    size_t n = (size_t)count * d->c->vocab;
    for (size_t i = 0; i < n && softcap > 0; i++) logits[i] = softcap * tanhf(logits[i] / softcap);
}

static void cpu_hidden(Device *d, int token, float *h) {
    int hidden = d->c->hidden;
    const float *x = d->x + (size_t)token * hidden;
    rms_norm(d, d->w->post.data ? d->y : h, x, d->w->final_norm, hidden);
    if (d->w->post.data) product(d, &d->w->post, d->y, 1, h);
}

static void cpu_read_x(Device *d, float *x) { memcpy(x, d->x, sizeof(float) * d->n * d->c->hidden); }

static void cpu_read_route(Device *d, int *expert, float *weight) {
    memcpy(expert, d->expert, sizeof(int) * d->n * d->c->top_k);
    memcpy(weight, d->expert_weight, sizeof(float) * d->n * d->c->top_k);
}

const Ops cpu_ops = {
    "cpu", 512, NULL, cpu_open, cpu_close, cpu_alloc, cpu_release, cpu_copy, NULL, NULL, cpu_embed, cpu_qkv, cpu_attend,
    cpu_attn_out, cpu_mlp, cpu_route, cpu_experts, cpu_join, cpu_head, NULL, cpu_hidden, cpu_combine,
    cpu_read_x, cpu_read_route,
};
