/* attention.c - norms, RoPE, the kv cache and attention on the CPU.
 *
 * There are two ways to compute softmax(q . K) V.  Steps of many tokens (`uses_flash`), unless the
 * cache is float32, take FLASH_KEYS keys at a time with a running softmax (`flash_task`).  In all
 * other steps the keys come in parts of PART_KEYS positions: all scores of some queries in a part
 * are computed, then e^score, then the weighted sum of V (`attend_part`), and the parts of a query
 * are joined one after the other (`join_part`).  Both are bound by reading the cache from memory.
 * So the query heads that share keys go through the cache together, and neighbouring tokens do,
 * too.
 *
 * Who writes the cache.  A task of cpu_qkv writes K and V of one token.  cpu_attend begins when all
 * tasks of cpu_qkv are done (`parallel` in cpu.h), so its tasks read the keys of the whole step.
 * A ring has room for the window and a whole step (kv_shape in cache.c), so no new key overwrites a
 * key that a token of the step still sees.
 *
 * Which bits are promised.  In attend_part each query's scores and sums are computed by
 * themselves, in the order of the positions; those that a query does not see have weight 0 and
 * change no bit.  A part begins at a multiple of PART_KEYS, whoever asks, and the parts of a query
 * are joined in their order.  So the result does not depend on which queries share a task, nor on
 * whether one task takes all parts or many tasks share them.  In flash_task the bits depend on
 * which FLASH_KEYS keys a query takes together.  So there the tokens of a task never depend on the
 * number of threads.  MODEL.md, "Which bits are promised", has the whole promise. */
#include <math.h>

#include "cpu.h"

/* Rows of V that are added to the queries' sums at once: their columns of a register or two stay
 * in the nearest cache for all heads.  How 16 was found is not recorded.  To tune it again, compare
 * decode after 4096 tokens. */
#define VALUES 16

/* Tokens of a task of attention, where every thread has something to do.  How 16 was found is not
 * recorded.  To tune it again, compare prompts after 4096 tokens with GEMMA4_CPU=avx512. */
#define TOKENS_PER_TASK 16

/* Positions whose keys are taken together, and the least that a task of its own is made of where
 * threads share the keys of a query.  The rows of K and V of one key/value head, 640 KB in a global
 * layer of the 26B-A4B with a BF16 cache, stay in the second-level cache between the scores and the
 * sums.  A shared part costs a write and a read of head_dim numbers for each query: 3 % of the
 * bytes of its keys there.  Chosen by these counts; other values change the last bits.  To tune it,
 * compare decode after 8192 tokens with all threads. */
#define PART_KEYS 512

/* Results of shared parts that there is room for, of one query and part each: with 16 query heads
 * 128 parts of one token.  A context with more goes through this memory several times. */
#define MAX_SHARED 2048

/* What a query has found in some of its keys: the largest score, and the sum of e^(score - most).
 * sum 0: it has seen none. */
typedef struct Softmax {
    float most, sum;
} Softmax;

typedef struct {
    Device *d;
    const Layer *l;
    const KvCache *kv;
    int heads, tokens;                  /* of a task; the query heads share their keys */
    int64_t part, end;                  /* the parts that the tasks take: part .. end - 1 */
    int last;                           /* 1: no parts follow behind these */
} Attention;

void attention_reserve(Device *d, int group, int dim) {
    int64_t queries = (int64_t)TOKENS_PER_TASK * group, most = MAX_SHARED;
    if (most < FEW_TOKENS * d->c->n_heads) most = FEW_TOKENS * d->c->n_heads;
    d->n_shared = (int)most;
    d->shared_out = floats(d, most, dim);
    d->shared = own(d, xcalloc(most, sizeof *d->shared));
    d->found = own(d, xcalloc(most, sizeof *d->found));
    for (int i = 0; i < d->pool.n_threads; i++) {
        d->att_score[i] = floats(d, queries, PART_KEYS);
        d->att_out[i] = floats(d, queries, dim);
        d->att_found[i] = own(d, xcalloc(2 * queries, sizeof **d->att_found));
    }
}

/* ---- q, k, v ---- */

/* cos and sin of pos * inv_freq, in float32 as the reference; shared by all layers of one kind in
 * a step. */
static void fill_rope(Device *d, const Layer *l) {
    if (d->rope_freq == l->inv_freq) return;
    int half = l->head_dim / 2;
    for (int t = 0; t < d->n; t++)
        for (int i = 0; i < half; i++) {
            float angle = (float)(d->pos + t) * l->inv_freq[i];
            d->cos[(int64_t)t * half + i] = cosf(angle);
            d->sin[(int64_t)t * half + i] = sinf(angle);
        }
    d->rope_freq = l->inv_freq;
}

void apply_rope(float *v, const float *cos, const float *sin, int half) {
    for (int i = 0; i < half; i++) {
        float a = v[i], b = v[i + half];
        v[i] = a * cos[i] - b * sin[i];
        v[i + half] = b * cos[i] + a * sin[i];
    }
}

/* Writes v [n] to `out`, a row of the cache.  FP8 divides by `scale`, rounds and saturates. */
static void to_cache(uint8_t *out, DType dtype, float scale, const float *v, int n) {
    if (dtype == DT_F32) memcpy(out, v, (size_t)n * sizeof *v);
    else if (dtype == DT_BF16)
        for (int i = 0; i < n; i++) ((uint16_t *)out)[i] = float_to_bf16(v[i]);
    else
        for (int i = 0; i < n; i++) out[i] = float_to_e4m3(v[i] / scale);
}

/* The dimensions of v [2 * half] that turn, r pairs of them, in the order in which the cache has
 * those of K: [2r] (k_column in plain.c).  out may be v. */
static void take_turning(float *out, const float *v, int half, int r) {
    copy(out, v, r);
    copy(out + r, v + half, r);
}

/* Norm and RoPE of one token's queries.  Where the cache keeps only the dimensions of K that turn
 * (see KvCache in ops.h), the others are k_norm * V, and a query is split in two:
 *     q . K = q_turning . K_turning + (q * k_norm, 0 in the dimensions that turn) . V */
static void finish_queries(const Attention *a, int t, const float *cos, const float *sin) {
    Device *d = a->d;
    const Layer *l = a->l;
    int dim = l->head_dim, half = dim / 2, k_dim = a->kv->k_dim, r = k_dim / 2;
    for (int h = 0; h < d->c->n_heads; h++) {
        int64_t row = (int64_t)t * d->c->n_heads + h;
        float *q = d->q + row * dim;
        rms_norm(d, q, q, l->q_norm, dim);
        apply_rope(q, cos, sin, half);
        if (k_dim == dim) continue;
        take_turning(d->q_turning + row * k_dim, q, half, r);
        for (int i = 0; i < dim; i++) q[i] *= i % half < r ? 0 : l->k_norm[i];
    }
}

/* Norm and RoPE of one token's keys, norm of its values, both into the cache.  V is normed before
 * K, as it may come from the same projection. */
static void store_kv(const Attention *a, int t, const float *cos, const float *sin) {
    Device *d = a->d;
    const Layer *l = a->l;
    const KvCache *kv = a->kv;
    int dim = l->head_dim, half = dim / 2, k_dim = kv->k_dim;
    int64_t slot = (d->pos + t) % kv->slots, size = dtype_size[kv->dtype];
    for (int h = 0; h < l->n_kv_heads; h++) {
        int64_t row = (int64_t)t * l->n_kv_heads + h, to = slot * l->n_kv_heads + h;
        float *k = d->k + row * dim, *v = d->v + row * dim;
        rms_norm(d, v, l->v.data ? v : k, NULL, dim);
        rms_norm(d, k, k, l->k_norm, dim);
        apply_rope(k, cos, sin, half);
        if (k_dim < dim) take_turning(k, k, half, k_dim / 2);
        to_cache(kv->k + to * k_dim * size, kv->dtype, l->k_scale, k, k_dim);
        to_cache(kv->v + to * dim * size, kv->dtype, l->v_scale, v, dim);
    }
}

static void qkv_task(void *arg, int t, int thread) {
    Attention *a = arg;
    int64_t at = (int64_t)t * (a->l->head_dim / 2);
    const float *cos = a->d->cos + at, *sin = a->d->sin + at;
    (void)thread;
    finish_queries(a, t, cos, sin);
    if (a->l->k.data) store_kv(a, t, cos, sin);         /* not a drafter's */
}

void cpu_qkv(Device *d, const Layer *l, KvCache *kv) {
    normed_input(d, d->x, l->input_norm, d->n);
    project((Projection){d, {&l->q, &l->k, &l->v}, d->y, {d->q, d->k, d->v}, d->n});
    fill_rope(d, l);
    parallel(d, d->n, qkv_task, &(Attention){.d = d, .l = l, .kv = kv});
}

/* ---- the cache, what a token sees of it ---- */

/* The cache's row of K, or of V, of position p for key/value head h. */
static const uint8_t *cached(const Attention *a, int is_v, int64_t p, int h) {
    int dim = is_v ? a->l->head_dim : a->kv->k_dim;
    const uint8_t *rows = is_v ? a->kv->v : a->kv->k;
    int64_t row = (p % a->kv->slots) * a->l->n_kv_heads + h;
    return rows + row * dim * dtype_size[a->kv->dtype];
}

/* The factor of the cache's numbers. */
static float cache_scale(const Attention *a, int is_v) {
    if (a->kv->dtype != DT_F8_E4M3) return 1;
    return is_v ? a->l->v_scale : a->l->k_scale;
}

/* n numbers of the cache as float32, scaled: in buffer or, where they are float32, in place. */
static const float *expand_cached(const Attention *a, int is_v, const uint8_t *row, int n,
                                  float *buffer) {
    if (a->kv->dtype == DT_F32) return (const float *)row;
    if (a->kv->dtype == DT_BF16) a->d->kernel->expand_bf16(row, n, buffer);
    else a->d->kernel->expand_e4m3(row, cache_scale(a, is_v), n, buffer);
    return buffer;
}

/* Whether the kernels take rows of n numbers of the cache as BF16, which holds E4M3 exactly, but
 * without its scale. */
static int as_bf16(const Attention *a, int n) {
    return a->kv->dtype != DT_F32 && a->d->kernel->bf16 && n % 16 == 0;
}

/* A row of n numbers of the cache as BF16 (as_bf16), in place or in buffer.  An FP8 row is read
 * here, so the one that is `ahead` positions behind it is fetched here, too. */
static const uint8_t *bf16_row(const Attention *a, const uint8_t *row, int n, int ahead,
                               uint16_t *buffer) {
    if (a->kv->dtype == DT_BF16) return row;
    const uint8_t *later = row + (int64_t)ahead * a->l->n_kv_heads * n;
    for (int i = 0; i < n; i += 64) __builtin_prefetch(later + i);
    a->d->kernel->e4m3_to_bf16(row, n, buffer);
    return (const uint8_t *)buffer;
}

/* The bytes from a row of n numbers to the one that is `ahead` positions behind it, which a kernel
 * may fetch while it reads the first.  0 in an FP8 cache: there bf16_row fetches it. */
static int fetch_ahead(const Attention *a, int n, int ahead) {
    return a->kv->dtype == DT_BF16 ? ahead * a->l->n_kv_heads * n * 2 : 0;
}

/* The first position that a token at position p sees. */
static int64_t first_visible(const Attention *a, int64_t p) {
    int window = a->d->c->window;
    return a->l->global || p < window ? 0 : p - window + 1;
}

/* The last position that token t of the step sees: itself, or in sliding layers the end of its
 * picture.  A drafter's layers have no keys of their own: they see what is before the token. */
static int64_t last_visible(const Attention *a, int t) {
    int64_t last = a->d->pos + (a->l->global ? t : a->d->last[t]);
    return last - (a->l->k.data == NULL);
}

/* ---- the scores of a part, their exponentials, the values ---- */

/* Some queries that go through the cache together, and where their results in one part go. */
typedef struct {
    const Attention *a;
    int t0, t1;                         /* the tokens t0 .. t1 - 1 */
    int h0, h;                          /* query heads h0 .. h0 + a->heads - 1; their K and V's */
    int64_t from, end;                  /* the positions of the part that any of them sees */
    float *buffer;                      /* rows of the cache, expanded */
    float *score;                       /* [tokens][heads][end - from] */
    int stride;                         /* results from one token's first to the next one's */
    float *out;                         /* [tokens][stride][head_dim], a->heads of each stride */
    Softmax *found;                     /* [tokens][stride] */
} Queries;

/* dots[j][k] = row[k] . x[j] for n <= TOKENS queries x and ROWS rows of BF16, all of them of
 * `width` numbers.  ahead: as in `bf16` of kernels.h. */
static void dots_of_bf16(const Kernels *kn, const uint8_t *const row[ROWS], int width,
                         const float *const x[TOKENS], int n, int ahead, float (*dots)[ROWS]) {
    _Alignas(64) float sum[TOKENS][ROWS][16];
    memset(sum, 0, (size_t)n * sizeof *sum);
    kn->bf16(row, 0, width, x, n, sum, ahead);
    for (int j = 0; j < n; j++) kn->fold(sum[j], dots[j]);
}

/* The scores of positions p .. p + count - 1, count <= ROWS, for all queries, also for those that
 * do not see them.  Multiplies with K's rows, or is_v with V's, whose part is added. */
static void score_rows(const Queries *s, int is_v, int64_t p, int count) {
    const Attention *a = s->a;
    Device *d = a->d;
    int n_heads = d->c->n_heads, n_queries = (s->t1 - s->t0) * a->heads;
    int split = a->kv->k_dim < a->l->head_dim, width = is_v ? a->l->head_dim : a->kv->k_dim;
    int bf16 = as_bf16(a, width);
    float scale = bf16 ? cache_scale(a, is_v) : 1;
    const float *q = split && !is_v ? d->q_turning : d->q, *key[ROWS];
    const uint8_t *row[ROWS];
    /* 1. ROWS rows of the cache, as BF16 or as float32.  After the last row the first is
     * repeated. */
    for (int k = 0; k < ROWS; k++) {
        float *buffer = s->buffer + k * width;
        row[k] = cached(a, is_v, k < count ? p + k : p, s->h);
        if (bf16) row[k] = bf16_row(a, row[k], width, ROWS, (uint16_t *)s->buffer + k * width);
        else key[k] = k < count ? expand_cached(a, is_v, row[k], width, buffer) : key[0];
    }
    for (int i = 0; i < n_queries; i += TOKENS) {
        int n = n_queries - i < TOKENS ? n_queries - i : TOKENS;
        float dots[TOKENS][ROWS];
        const float *x[TOKENS];
        /* 2. Up to TOKENS queries. */
        for (int j = 0; j < n; j++) {
            int t = s->t0 + (i + j) / a->heads, head = s->h0 + (i + j) % a->heads;
            x[j] = q + ((int64_t)t * n_heads + head) * width;
        }
        /* 3. Their products with the rows.  The first queries fetch the rows of the next call. */
        int ahead = i ? 0 : fetch_ahead(a, width, ROWS);
        if (bf16) dots_of_bf16(d->kernel, row, width, x, n, ahead, dots);
        else for (int j = 0; j < n; j++) d->kernel->dot4(x[j], key, width, dots[j]);
        /* 4. The scores. */
        for (int j = 0; j < n; j++) {
            float *to = s->score + (int64_t)(i + j) * (s->end - s->from) + (p - s->from);
            for (int k = 0; k < count; k++) to[k] = scale * dots[j][k] + (is_v ? to[k] : 0);
        }
    }
}

/* The largest of s [n], n >= 1; of 16 at a time, which the compiler puts into vectors. */
static float largest(const float *s, int n) {
    float lane[16], most = s[0];
    int i = 0;
    for (int k = 0; k < 16; k++) lane[k] = s[0];
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++) lane[k] = s[i + k] > lane[k] ? s[i + k] : lane[k];
    for (int k = 0; k < 16; k++) most = lane[k] > most ? lane[k] : most;
    for (; i < n; i++) most = s[i] > most ? s[i] : most;
    return most;
}

/* The scores become e^(score - most), most the largest that the query sees of the part; 0 for what
 * it does not see.  With --exact the exponential is libm's. */
static void soften_scores(const Queries *s) {
    const Attention *a = s->a;
    Device *d = a->d;
    const Kernels *kn = d->rounds_activations ? d->kernel : &kernels_c;
    int64_t stride = s->end - s->from;
    float *score = s->score;
    for (int t = s->t0; t < s->t1; t++)
        for (int g = 0; g < a->heads; g++, score += stride) {
            Softmax *f = &s->found[(t - s->t0) * s->stride + g];
            int64_t first = first_visible(a, d->pos + t) - s->from;
            int64_t last = last_visible(a, t) + 1 - s->from;    /* it sees first .. last - 1 */
            if (first < 0) first = 0;
            if (last > stride) last = stride;
            if (first >= last) {
                clear(score, stride);
                continue;
            }
            clear(score, first);
            f->most = largest(score + first, (int)(last - first));
            f->sum = kn->exp_less(score + first, (int)(last - first), f->most, score + first);
            clear(score + last, stride - last);
        }
}

/* The sums of token t over V: [heads][head_dim]. */
static float *sums_of(const Queries *s, int t) {
    return s->out + (int64_t)(t - s->t0) * s->stride * s->a->l->head_dim;
}

/* The weights of token t from position p on: [heads], s->end - s->from apart. */
static const float *weights_of(const Queries *s, int t, int64_t p) {
    int64_t stride = s->end - s->from;
    return s->score + (t - s->t0) * s->a->heads * stride + (p - s->from);
}

/* Whether token t sees any of the positions p .. p + count - 1. */
static int sees_any(const Attention *a, int t, int64_t p, int count) {
    return last_visible(a, t) >= p && first_visible(a, a->d->pos + t) < p + count;
}

/* Adds weight * V of positions p .. p + count - 1, count <= VALUES, to the sums of all queries that
 * see any of them: rows of V as BF16, without the cache's scale. */
static void add_bf16_values(const Queries *s, int64_t p, int count) {
    const Attention *a = s->a;
    int dim = a->l->head_dim, ahead = fetch_ahead(a, dim, VALUES);
    int64_t stride = s->end - s->from;
    const uint8_t *row[VALUES];
    for (int k = 0; k < count; k++)
        row[k] = bf16_row(a, cached(a, 1, p + k, s->h), dim, VALUES,
                          (uint16_t *)s->buffer + k * dim);
    for (int t = s->t0; t < s->t1; t++) {
        if (!sees_any(a, t, p, count)) continue;
        a->d->kernel->add_rows(sums_of(s, t), dim, weights_of(s, t, p), stride, a->heads, row,
                               count, dim, t == s->t0 ? ahead : 0);
    }
}

/* add_bf16_values for count <= 4 rows of V as float32, with the cache's scale.  Behind the last row
 * the first is repeated, with weight 0. */
static void add_float_values(const Queries *s, int64_t p, int count) {
    const Attention *a = s->a;
    int dim = a->l->head_dim;
    int64_t stride = s->end - s->from;
    const float *first = expand_cached(a, 1, cached(a, 1, p, s->h), dim, s->buffer);
    const float *v[4] = {first, first, first, first};
    for (int k = 1; k < count; k++)
        v[k] = expand_cached(a, 1, cached(a, 1, p + k, s->h), dim, s->buffer + k * dim);
    for (int t = s->t0; t < s->t1; t++) {
        if (!sees_any(a, t, p, count)) continue;
        for (int g = 0; g < a->heads; g++) {
            float weight[4] = {0};
            copy(weight, weights_of(s, t, p) + g * stride, count);
            a->d->kernel->axpy4(sums_of(s, t) + (int64_t)g * dim, v, weight, dim);
        }
    }
}

/* The sums of weights * V for all queries; value_scale is left out. */
static void add_values(const Queries *s) {
    const Attention *a = s->a;
    int n = a->heads * a->l->head_dim, bf16 = as_bf16(a, a->l->head_dim), most = bf16 ? VALUES : 4;
    for (int t = s->t0; t < s->t1; t++) clear(sums_of(s, t), n);
    for (int64_t p = s->from; p < s->end; p += most) {
        int count = s->end - p < most ? (int)(s->end - p) : most;
        if (bf16) add_bf16_values(s, p, count);
        else add_float_values(s, p, count);
    }
}

/* The factor that add_values leaves out of the sums: the scale of an FP8 cache, where its rows were
 * taken as BF16. */
static float value_scale(const Attention *a) {
    return as_bf16(a, a->l->head_dim) ? cache_scale(a, 1) : 1;
}

/* What all queries find in a part: s->out and s->found. */
static void attend_part(Queries *s, int64_t part) {
    const Attention *a = s->a;
    int64_t from = first_visible(a, a->d->pos + s->t0), end = last_visible(a, s->t1 - 1) + 1;
    s->from = from > part * PART_KEYS ? from : part * PART_KEYS;
    s->end = end < (part + 1) * PART_KEYS ? end : (part + 1) * PART_KEYS;
    for (int t = s->t0; t < s->t1; t++)
        for (int g = 0; g < a->heads; g++) s->found[(t - s->t0) * s->stride + g].sum = 0;
    if (s->from >= s->end) return;
    for (int64_t p = s->from; p < s->end; p += ROWS) {
        int count = s->end - p < ROWS ? (int)(s->end - p) : ROWS;
        score_rows(s, 0, p, count);
        if (a->kv->k_dim < a->l->head_dim) score_rows(s, 1, p, count);
    }
    soften_scores(s);
    add_values(s);
}

/* ---- the parts of a query, one after the other ---- */

/* Adds what a query has found in a part to what it has found in those before: out [dim], f.  The
 * part with the smaller scores shrinks by e^(its most - the larger one). */
static void join_part(float *out, Softmax *f, const float *part_out, const Softmax *part, int dim) {
    if (part->sum == 0) return;
    if (f->sum == 0) {
        copy(out, part_out, dim);
        *f = *part;
        return;
    }
    float most = part->most > f->most ? part->most : f->most;
    float before = expf(f->most - most), now = expf(part->most - most);
    for (int i = 0; i < dim; i++) out[i] = before * out[i] + now * part_out[i];
    f->sum = before * f->sum + now * part->sum;
    f->most = most;
}

/* The softmax divides by the sum of all weights.  A query that sees no key gets 0. */
static void finish_query(const Attention *a, float *out, const Softmax *f) {
    int dim = a->l->head_dim;
    float scale = value_scale(a) / f->sum;
    if (f->sum == 0) clear(out, dim);
    else for (int i = 0; i < dim; i++) out[i] *= scale;
}

/* ---- the tasks ---- */

/* The queries of group `group` of a->tokens tokens and a->heads heads, which share a key/value
 * head: each row of the cache is expanded once for all of them. */
static Queries queries_of(const Attention *a, int group, int thread) {
    Device *d = a->d;
    int n_heads = d->c->n_heads, groups = n_heads / a->heads;
    Queries s = {.a = a, .buffer = d->rows[thread], .score = d->att_score[thread]};
    s.h0 = group % groups * a->heads;
    s.h = s.h0 / (n_heads / a->l->n_kv_heads);
    s.t0 = group / groups * a->tokens;
    s.t1 = s.t0 + a->tokens < d->n ? s.t0 + a->tokens : d->n;
    return s;
}

/* Query i of a task: its place in d->att. */
static float *att_row(const Queries *s, int i) {
    const Device *d = s->a->d;
    int heads = s->a->heads;
    int64_t row = (int64_t)(s->t0 + i / heads) * d->c->n_heads + s->h0 + i % heads;
    return d->att.x + row * s->a->l->head_dim;
}

/* The task is a group of queries, with all parts. */
static void attend_task(void *arg, int task, int thread) {
    const Attention *a = arg;
    Device *d = a->d;
    int dim = a->l->head_dim;
    Queries s = queries_of(a, task, thread);
    int n = (s.t1 - s.t0) * a->heads;
    Softmax *found = d->att_found[thread];
    s.stride = a->heads;
    s.out = d->att_out[thread];
    s.found = found + n;
    for (int i = 0; i < n; i++) found[i].sum = 0;
    for (int64_t part = a->part; part < a->end; part++) {
        attend_part(&s, part);
        for (int i = 0; i < n; i++)
            join_part(att_row(&s, i), &found[i], s.out + (int64_t)i * dim, &s.found[i], dim);
    }
    for (int i = 0; i < n; i++) finish_query(a, att_row(&s, i), &found[i]);
}

/* The task is a group of queries, with one part.  Tasks of neighbouring numbers share a part. */
static void share_task(void *arg, int task, int thread) {
    const Attention *a = arg;
    Device *d = a->d;
    int n_heads = d->c->n_heads, groups = n_blocks(d->n, a->tokens) * (n_heads / a->heads);
    Queries s = queries_of(a, task % groups, thread);
    int64_t part = task / groups, at = (part * d->n + s.t0) * n_heads + s.h0;
    s.stride = n_heads;
    s.out = d->shared_out + at * a->l->head_dim;
    s.found = d->shared + at;
    attend_part(&s, a->part + part);
}

/* The task is a query, whose shared parts are joined. */
static void join_task(void *arg, int query, int thread) {
    const Attention *a = arg;
    Device *d = a->d;
    int dim = a->l->head_dim, queries = d->n * d->c->n_heads;
    float *out = d->att.x + (int64_t)query * dim;
    (void)thread;
    for (int64_t i = 0; i < a->end - a->part; i++) {
        int64_t at = i * queries + query;
        join_part(out, &d->found[query], d->shared_out + at * dim, &d->shared[at], dim);
    }
    if (a->last) finish_query(a, out, &d->found[query]);
}

/* ---- flash attention: see flash.c ---- */

/* The queries of a task of flash_task, and its rows.  Query i is token t0 + i / heads and the head
 * h * heads + i % heads: one of those that share key/value head h. */
typedef struct {
    const Attention *a;
    Flash *f;
    int t0, n, h;                       /* first token; queries; key/value head */
    int k_wide, v_wide;                 /* columns of K and of V, multiples of 32 */
    int wide;                           /* those that a query is multiplied with */
    int stride;                         /* numbers from one row of K and V to the next */
} FlashTask;

static int64_t query_row(const FlashTask *s, int i) {
    int heads = s->a->heads;
    return (int64_t)(s->t0 + i / heads) * s->a->d->c->n_heads + s->h * heads + i % heads;
}

/* The queries as strips of 16.  Where the cache keeps only the dimensions of K that turn, a query
 * is its part that turns and then what V is multiplied with: see finish_queries. */
static void flash_queries(const FlashTask *s) {
    Device *d = s->a->d;
    int dim = s->a->l->head_dim, k_dim = s->a->kv->k_dim;
    for (int i = 0; i < s->n; i += STRIP_TOKENS) {
        const float *x[STRIP_TOKENS];
        int count = s->n - i < STRIP_TOKENS ? s->n - i : STRIP_TOKENS;
        clear(s->f->query, STRIP_TOKENS * s->wide);
        for (int k = 0; k < count; k++) {
            int64_t row = query_row(s, i + k);
            float *q = s->f->query + k * s->wide;
            copy(q, k_dim < dim ? d->q_turning + row * k_dim : d->q + row * dim, k_dim);
            if (k_dim < dim) copy(q + s->k_wide, d->q + row * dim, dim);
            x[k] = q;
        }
        uint8_t *strip = s->f->strips + i / STRIP_TOKENS * strip_size(s->wide);
        to_strip(d->kernel, x, count, s->wide, strip);
    }
}

/* A row of the cache as BF16, with zeros up to column `wide`. */
static void cached_as_bf16(const Attention *a, const uint8_t *row, int n, int wide, uint16_t *out) {
    if (a->kv->dtype == DT_BF16) memcpy(out, row, 2 * (size_t)n);
    else a->d->kernel->e4m3_to_bf16(row, n, out);
    memset(out + n, 0, 2 * (size_t)(wide - n));
}

/* Positions p .. p + count - 1: their rows of K and V, and which of them each query sees. */
static void flash_rows(const FlashTask *s, int64_t p, int count, uint16_t *rows) {
    const Attention *a = s->a;
    Flash *f = s->f;
    for (int k = 0; k < count; k++) {
        uint16_t *row = rows + k * s->stride;
        cached_as_bf16(a, cached(a, 0, p + k, s->h), a->kv->k_dim, s->k_wide, row);
        cached_as_bf16(a, cached(a, 1, p + k, s->h), a->l->head_dim, s->v_wide, row + s->k_wide);
    }
    size_t filler = (size_t)(round_up(count, 32) - count) * (size_t)s->stride;
    memset(rows + count * s->stride, 0, 2 * filler);
    for (int i = 0; i < s->n; i++) {
        int t = s->t0 + i / a->heads;
        int64_t first = first_visible(a, a->d->pos + t) - p, last = last_visible(a, t) + 1 - p;
        f->first[i] = first < 0 ? 0 : (int)first;
        f->last[i] = last < count ? (int)last : count;
    }
}

/* The task is some tokens and all query heads of one key/value head, FLASH_KEYS keys at a time. */
static void flash_task(void *arg, int task, int thread) {
    Attention *a = arg;
    Device *d = a->d;
    int dim = a->l->head_dim, k_dim = a->kv->k_dim, n_kv_heads = a->l->n_kv_heads;
    FlashTask s = {.a = a, .f = d->flash[thread], .h = task % n_kv_heads};
    s.t0 = task / n_kv_heads * a->tokens;
    int t1 = s.t0 + a->tokens < d->n ? s.t0 + a->tokens : d->n;
    s.n = (t1 - s.t0) * a->heads;
    s.k_wide = round_up(k_dim, 32);
    s.v_wide = round_up(dim, 32);
    s.wide = k_dim < dim ? s.k_wide + s.v_wide : s.k_wide;
    s.stride = s.k_wide + s.v_wide + 32;                /* 64 bytes more, as in multiply_strips */
    uint16_t *rows = (uint16_t *)d->rows[thread];
    flash_queries(&s);
    flash_begin(s.f, s.n, s.v_wide);
    int64_t from = first_visible(a, d->pos + s.t0), end = last_visible(a, t1 - 1) + 1;
    for (int64_t p = from; p < end; p += FLASH_KEYS) {
        int count = end - p < FLASH_KEYS ? (int)(end - p) : FLASH_KEYS;
        flash_rows(&s, p, count, rows);
        flash_keys(d->kernel, s.f, s.n, rows, s.stride, count, s.wide, s.k_wide, s.v_wide,
                   cache_scale(a, 0));
    }
    for (int i = 0; i < s.n; i++) {
        float *out = d->att.x + query_row(&s, i) * dim;
        float scale = cache_scale(a, 1) / s.f->sum[i];
        for (int k = 0; k < dim; k++) out[k] = scale * s.f->out[i * s.v_wide + k];
    }
}

/* ---- both ---- */

/* Tasks share the keys: as many parts at a time as there is room for. */
static void attend_shared(Attention *a, int groups) {
    Device *d = a->d;
    int64_t end = a->end, room = d->n_shared / (d->n * d->c->n_heads);
    for (int i = 0; i < d->n * d->c->n_heads; i++) d->found[i].sum = 0;
    for (; a->part < end; a->part = a->end) {
        a->end = a->part + room < end ? a->part + room : end;
        a->last = a->end == end;
        parallel(d, (int)(a->end - a->part) * groups, share_task, a);
        parallel(d, d->n * d->c->n_heads, join_task, a);
    }
}

/* Chooses the heads and tokens of a task.  A group of heads shares its keys, and so do neighbouring
 * tokens; but every thread should have something to do, and twice as much as that lets a fast one
 * help a slow one.  First the keys are shared, then, as fewer heads read the same keys again, the
 * heads.  None of this changes a bit, so the number of threads may decide on it. */
void cpu_attend(Device *d, const Layer *l, const KvCache *kv) {
    int n_heads = d->c->n_heads, wanted = d->pool.n_threads;
    Attention a = {d, l, kv, .heads = n_heads / l->n_kv_heads, .tokens = TOKENS_PER_TASK};
    if (uses_flash(d) && kv->dtype != DT_F32 && a.heads <= FLASH_QUERIES) {
        a.tokens = FLASH_QUERIES / a.heads;
        parallel(d, n_blocks(d->n, a.tokens) * l->n_kv_heads, flash_task, &a);
        return;
    }
    int64_t first = first_visible(&a, d->pos), last = last_visible(&a, d->n - 1);
    a.part = first / PART_KEYS;
    a.end = last < first ? a.part : last / PART_KEYS + 1;
    int blocks = n_blocks(d->n, a.tokens);
    int shares = wanted > 1 && blocks * l->n_kv_heads < 2 * wanted && a.end - a.part > 1 &&
                 d->n * n_heads <= d->n_shared / 2;
    int64_t parts = shares ? a.end - a.part : 1;
    while (a.heads % 2 == 0 && blocks * (n_heads / a.heads) * parts < wanted) a.heads /= 2;
    int groups = blocks * (n_heads / a.heads);
    if (shares) attend_shared(&a, groups);
    else parallel(d, groups, attend_task, &a);
}

static void pack_attention_task(void *arg, int t, int thread) {
    Attention *a = arg;
    int cols = a->l->o.cols;
    (void)thread;
    pack(a->d, a->d->att, t, cols, 0, cols);
}

void cpu_attn_out(Device *d, const Layer *l) {
    Attention a = {.d = d, .l = l};
    if (needs_packing(d, &l->o, d->att, d->n)) parallel(d, d->n, pack_attention_task, &a);
    project((Projection){d, {&l->o}, d->att, {d->y.x}, d->n});
    add_normed(d, d->x, d->y.x, l->post_attention_norm, d->n, d->c->hidden);
}
