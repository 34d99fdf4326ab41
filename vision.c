/* vision.c - the vision tower on the CPU: `see`, `see_layer` and `see_pool` of ops.h.
 *
 * A picture is thousands of patches, so the matrix product is another one than that of a few
 * tokens.  Sixteen rows of W are expanded and transposed (a slab [cols][16]), and TILE_ROWS
 * patches at a time are multiplied with it in registers.  All activations have a multiple of
 * TILE_ROWS rows; the padding rows hold numbers that are computed and that nobody reads.
 *
 * With `gemm` or panels (kernels.h) the products are those of a prompt, of PATCH_CHUNK patches at a
 * time: with --exact there are no panels, and float32 weights never meet either.  With `gemm` so is
 * attention (flash_keys in flash.c), but K and V are float32 here, and are kept as two BF16 numbers
 * each: the first is rounded from it, the second from what the first leaves. */
#include <math.h>

#include "cpu.h"

/* Patches whose attention is one task of one head, without gemm; a multiple of TILE_ROWS.  Their
 * scores against the 2394 patches of a picture are 230 KB, which stay in the second-level cache.
 * How 24 was found is not recorded.  To tune it again, time a picture with GEMMA4_CPU=avx512. */
#define PATCHES_PER_TASK (4 * TILE_ROWS)

/* The picture in the tower. */
typedef struct Sight {
    int n, columns, rows;               /* n = rows * columns patches */
    float *x, *y;                       /* the residual stream, a norm of it [n][hidden] */
    float *q, *k, *v;                   /* [n][n_heads * head_dim]; q becomes attention's output */
    /* Without gemm: k transposed, [n_heads][slabs of 16 patches][head_dim][16], and v of 16
     * dimensions at a time, [n_heads][slabs of 16 dimensions][n][16]. */
    float *keys, *values;
    float *h;                           /* [n][intermediate], and the pixels [n][PATCH_SIZE] */
    float *cos, *sin;                   /* [rows or columns, the larger][head_dim / 4] */
    /* For each thread: four slabs and a row of W, or the scores of one task. */
    float **slab;
    float *up;                          /* [PATCH_CHUNK][intermediate], with gemm or panels */
    uint8_t *records;                   /* of PATCH_CHUNK patches; NULL: there are no panels */
    uint16_t *kv;                       /* [n_heads][n][kv_stride], with gemm: see split_bf16 */
} Sight;

int tower_width(const Tower *v) {
    int width[] = {v->hidden, v->intermediate, v->n_heads * v->head_dim, PATCH_SIZE}, most = 0;
    for (int i = 0; i < 4; i++)
        if (width[i] > most) most = width[i];
    return most;
}

/* Whether attention, and the products without panels, are those of a prompt with gemm. */
static int uses_gemm(const Device *d) { return d->strips && d->kernel->gemm; }

/* Columns of a head with gemm: its dimensions and zeros. */
static int head_wide(const Tower *v) { return round_up(v->head_dim, 32); }

/* K or V is both of its BF16 numbers. */
int tower_flash_width(const Tower *v) { return 2 * head_wide(v); }

/* Numbers of a row of K and V; 64 bytes more, as in multiply_strips. */
static int kv_stride(const Tower *v) { return 4 * head_wide(v) + 32; }

/* ---- the picture's memory ---- */

void sight_free(Device *d) {
    Sight *s = d->sight;
    if (!s) return;
    float *all[] = {s->x, s->y, s->q, s->k, s->v, s->keys, s->values, s->h, s->cos, s->sin, s->up};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(s->records);
    free(s->kv);
    for (int i = 0; s->slab && i < d->pool.n_threads; i++) free(s->slab[i]);
    free(s->slab);
    free(s);
    d->sight = NULL;
}

/* Room for n float32, all zero, so that padding rows hold numbers; 16 more, as the last head's
 * values are read as whole vectors.  NULL: there is none. */
static float *zeros(int64_t n) { return calloc((size_t)n + 16, sizeof(float)); }

/* Returns 0, or -1: no memory. */
static int sight_open(Device *d, const Tower *v, int columns, int rows) {
    Sight *s = d->sight = xcalloc(1, sizeof *s);
    *s = (Sight){.n = rows * columns, .columns = columns, .rows = rows};
    int gemm = uses_gemm(d), inner = v->n_heads * v->head_dim;
    int side = rows > columns ? rows : columns;
    int wide = v->intermediate > PATCH_SIZE ? v->intermediate : PATCH_SIZE;
    int64_t n = round_up(s->n, TILE_ROWS), keys = round_up(s->n, 16);
    struct { float **to; int64_t n; } room[] = {
        {&s->x, n * v->hidden}, {&s->y, n * v->hidden},
        {&s->q, n * inner}, {&s->k, n * inner}, {&s->v, n * inner},
        {&s->keys, gemm ? 0 : keys * inner}, {&s->h, n * wide},
        {&s->values, gemm ? 0 : n * v->n_heads * round_up(v->head_dim, 16)},
        {&s->cos, (int64_t)side * v->head_dim}, {&s->sin, (int64_t)side * v->head_dim},
        {&s->up, gemm || d->panels ? PATCH_CHUNK * (int64_t)v->intermediate : 0},
    };
    for (size_t i = 0; i < sizeof room / sizeof *room; i++)
        if (!(*room[i].to = zeros(room[i].n))) return -1;
    /* 32 rows more, as gemm reads up to a multiple of 32 of them. */
    size_t kv = ((size_t)v->n_heads * (size_t)s->n + 32) * (size_t)kv_stride(v);
    if (gemm && !(s->kv = calloc(kv, sizeof *s->kv))) return -1;
    if (d->panels) s->records = xaligned(PATCH_CHUNK * record_bytes(d, tower_width(v)));
    int64_t scores = PATCHES_PER_TASK * keys, slabs = 65 * (int64_t)tower_width(v);
    s->slab = xcalloc(d->pool.n_threads, sizeof *s->slab);
    for (int i = 0; i < d->pool.n_threads; i++)
        if (!(s->slab[i] = zeros(scores > slabs ? scores : slabs))) return -1;
    return 0;
}

/* ---- products ---- */

typedef struct {
    Device *d;
    const Weight *w, *up;               /* up: the product is gelu(W x) * (up x); NULL: W x */
    const float *x;                     /* [n][cols] */
    float *y;                           /* [n][rows] */
    int n;
} Product;

/* Rows first .. first + 15 of W as columns, zeros beyond its last row.  row: scratch [cols]. */
static void fill_slab(const Kernels *kn, const Weight *w, int first, float *row, float *slab) {
    for (int r = 0; r < 16; r++) {
        if (first + r < w->rows) expand_row(kn, w, first + r, row);
        else clear(row, w->cols);
        for (int i = 0; i < w->cols; i++) slab[(int64_t)i * 16 + r] = row[i];
    }
}

/* A block of ROWS_PER_TASK rows, which are two slabs, for all patches. */
static void tiles_task(void *arg, int task, int thread) {
    Product *p = arg;
    const Kernels *kn = p->d->kernel;
    const Weight *w = p->w;
    int cols = w->cols;
    int first = task * ROWS_PER_TASK, last = block_end(task, w->rows, ROWS_PER_TASK);
    int64_t size = (int64_t)cols * 16;
    float *slab = p->d->sight->slab[thread];
    float *up_slab = slab + 2 * size, *row = slab + 4 * size;
    float c[TILE_ROWS * 16], up[TILE_ROWS * 16];
    for (int i = 0; i < 2; i++) {
        fill_slab(kn, w, first + 16 * i, row, slab + i * size);
        if (p->up) fill_slab(kn, p->up, first + 16 * i, row, up_slab + i * size);
    }
    for (int t = 0; t < p->n; t += TILE_ROWS)
        for (int i = 0; first + 16 * i < last; i++) {
            const float *x = p->x + (int64_t)t * cols;
            int at = first + 16 * i, count = last - at < 16 ? last - at : 16;
            kn->tile(x, cols, TILE_ROWS, slab + i * size, 16, cols, c, 16, 0);
            if (p->up) {
                kn->tile(x, cols, TILE_ROWS, up_slab + i * size, 16, cols, up, 16, 0);
                gelu_times(p->d, c, up, TILE_ROWS * 16);
            }
            for (int r = 0; r < TILE_ROWS && t + r < p->n; r++)
                copy(p->y + (int64_t)(t + r) * w->rows + at, c + 16 * r, count);
        }
}

/* One patch of a chunk as records. */
static void see_pack_task(void *arg, int t, int thread) {
    const Product *p = arg;
    Device *d = p->d;
    int cols = p->w->cols;
    (void)thread;
    d->panels->pack(p->x + (int64_t)t * cols, 0, cols, cols,
                    d->sight->records + t * record_bytes(d, cols));
}

/* Rows first .. last - 1 of w for the patches of a chunk, which are records or strips. */
static void multiply_chunk(const Product *p, int thread, const Weight *w, int first, int last,
                           float *y) {
    Device *d = p->d;
    Input in = {.records = d->sight->records};
    if (in.records) multiply_panels(d, w, first, last, in, NULL, p->n, y, w->rows);
    else multiply_strips(d, thread, w, first, last, d->strips, p->n, y, w->rows);
}

/* Rows of a task of a chunk, as in task_rows. */
static int chunk_rows(const Device *d) { return d->panels ? ROWS_PER_TASK : MANY_ROWS; }

/* A block of rows for the patches of a chunk. */
static void chunk_task(void *arg, int task, int thread) {
    const Product *p = arg;
    int rows = p->w->rows, size = chunk_rows(p->d);
    int first = task * size, last = block_end(task, rows, size);
    float *up = p->d->sight->up;
    multiply_chunk(p, thread, p->w, first, last, p->y);
    if (!p->up) return;
    multiply_chunk(p, thread, p->up, first, last, up);
    for (int t = 0; t < p->n; t++) {
        int64_t at = (int64_t)t * rows + first;
        gelu_times(p->d, p->y + at, up + at, last - first);
    }
}

/* y [n][rows] = x [n][cols] W^T, or with `up` gelu(x W^T) * (x up^T); x has a multiple of
 * TILE_ROWS rows. */
static void product(Device *d, const Weight *w, const Weight *up, const float *x, int n, float *y) {
    int as_prompt = d->panels ? w->dtype == DT_BF16 && (!up || up->dtype == DT_BF16)
                              : uses_gemm(d) && takes_strips(w) && (!up || takes_strips(up));
    if (!as_prompt) {
        Product p = {d, w, up, x, y, n};
        parallel(d, n_blocks(w->rows, ROWS_PER_TASK), tiles_task, &p);
        return;
    }
    for (int t = 0; t < n; t += PATCH_CHUNK) {
        int count = n - t < PATCH_CHUNK ? n - t : PATCH_CHUNK;
        Product p = {d, w, up, x + (int64_t)t * w->cols, y + (int64_t)t * w->rows, count};
        if (d->panels) parallel(d, count, see_pack_task, &p);
        else make_strips(d, p.x, w->cols, count);
        parallel(d, n_blocks(w->rows, chunk_rows(d)), chunk_task, &p);
    }
}

/* ---- patches in ---- */

int cpu_see(Device *d, const Tower *v, const float *pixels, int columns, int rows) {
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
    product(d, &v->patch, NULL, s->h, s->n, s->x);
    for (int t = 0; t < s->n; t++) {
        float *x = s->x + (int64_t)t * v->hidden;
        int position[2] = {t % columns, v->n_positions + t / columns};
        for (int k = 0; k < 2; k++) {
            expand_row(d->kernel, &v->position, position[k], s->y);
            for (int i = 0; i < v->hidden; i++) x[i] += s->y[i];
        }
    }
    return 0;
}

/* ---- a layer ---- */

typedef struct {
    Device *d;
    const Tower *v;
    const VisionLayer *l;
} Look;

/* n numbers as BF16, and, `wide` numbers on, what these leave of them as BF16. */
static void split_bf16(const float *x, int n, int wide, uint16_t *out) {
    for (int i = 0; i < n; i++) {
        out[i] = float_to_bf16(x[i]);
        out[wide + i] = float_to_bf16(x[i] - bf16_to_float(out[i]));
    }
}

/* Dimensions i .. i + 15 of all values of head h. */
static float *values_of(const Look *a, int h, int i) {
    int slab = h * n_blocks(a->v->head_dim, 16) + i / 16;
    return a->d->sight->values + (int64_t)slab * a->d->sight->n * 16;
}

/* Norms and RoPE of one patch's heads.  Its keys and values become a column and a row of
 * slabs, or with gemm a row of s->kv: K, the rest of K, V, the rest of V, head_wide numbers
 * each. */
static void see_qkv_task(void *arg, int t, int thread) {
    Look *a = arg;
    Sight *s = a->d->sight;
    int dim = a->v->head_dim, quarter = dim / 4, wide = head_wide(a->v);
    int place[2] = {t % s->columns, t / s->columns}, slabs = n_blocks(s->n, 16);
    (void)thread;
    for (int h = 0; h < a->v->n_heads; h++) {
        int64_t at = ((int64_t)t * a->v->n_heads + h) * dim;
        rms_norm(a->d, s->q + at, s->q + at, a->l->q_norm, dim);
        rms_norm(a->d, s->k + at, s->k + at, a->l->k_norm, dim);
        rms_norm(a->d, s->v + at, s->v + at, NULL, dim);
        for (int half = 0; half < 2; half++) {
            int angles = place[half] * quarter;
            const float *cos = s->cos + angles, *sin = s->sin + angles;
            apply_rope(s->q + at + half * 2 * quarter, cos, sin, quarter);
            apply_rope(s->k + at + half * 2 * quarter, cos, sin, quarter);
        }
        if (uses_gemm(a->d)) {
            uint16_t *row = s->kv + ((int64_t)h * s->n + t) * kv_stride(a->v);
            split_bf16(s->k + at, dim, wide, row);
            split_bf16(s->v + at, dim, wide, row + 2 * wide);
            continue;
        }
        float *keys = s->keys + ((int64_t)h * slabs + t / 16) * dim * 16 + t % 16;
        for (int i = 0; i < dim; i++) keys[i * 16] = s->k[at + i];
        for (int i = 0; i < dim; i += 16)
            copy(values_of(a, h, i) + (int64_t)t * 16, s->v + at + i, dim - i < 16 ? dim - i : 16);
    }
}

/* One head and PATCHES_PER_TASK patches: scores against all keys, softmax, and the sum of the
 * values in the place of the queries. */
static void see_attend_task(void *arg, int task, int thread) {
    Look *a = arg;
    Sight *s = a->d->sight;
    const Kernels *kn = a->d->kernel;
    int dim = a->v->head_dim, n_heads = a->v->n_heads, inner = n_heads * dim, h = task % n_heads;
    int from = task / n_heads * PATCHES_PER_TASK;
    int to = from + PATCHES_PER_TASK < s->n ? from + PATCHES_PER_TASK : s->n;
    int slabs = n_blocks(s->n, 16), keys = slabs * 16;
    float *score = s->slab[thread], c[TILE_ROWS * 16];
    for (int p = 0; p < slabs; p++)
        for (int t = from; t < to; t += TILE_ROWS) {
            const float *q = s->q + (int64_t)t * inner + h * dim;
            const float *slab = s->keys + ((int64_t)h * slabs + p) * dim * 16;
            kn->tile(q, inner, TILE_ROWS, slab, 16, dim,
                     score + (int64_t)(t - from) * keys + p * 16, keys, 0);
        }
    for (int t = from; t < to; t++) kn->softmax(score + (int64_t)(t - from) * keys, s->n);
    for (int t = from; t < to; t += TILE_ROWS)
        for (int i = 0; i < dim; i += 16) {
            const float *weights = score + (int64_t)(t - from) * keys;
            int count = dim - i < 16 ? dim - i : 16;
            kn->tile(weights, keys, TILE_ROWS, values_of(a, h, i), 16, s->n, c, 16, 0);
            for (int r = 0; r < TILE_ROWS && t + r < to; r++)
                copy(s->q + (int64_t)(t + r) * inner + h * dim + i, c + 16 * r, count);
        }
}

/* Attention of FLASH_QUERIES patches with gemm: see flash_keys.  A query stands twice, as K does:
 * (q, q) . (K, rest of K).  V and the rest of V are columns of their own, which are added at the
 * end. */
static void see_flash_task(void *arg, int task, int thread) {
    Look *a = arg;
    Sight *s = a->d->sight;
    Flash *f = a->d->flash[thread];
    int dim = a->v->head_dim, n_heads = a->v->n_heads, inner = n_heads * dim, h = task % n_heads;
    int half = head_wide(a->v), wide = 2 * half, stride = kv_stride(a->v);
    int from = task / n_heads * FLASH_QUERIES, left = s->n - from;
    int n = left < FLASH_QUERIES ? left : FLASH_QUERIES;
    float *q = s->q + (int64_t)from * inner + h * dim;
    clear(f->query, STRIP_TOKENS * wide);
    for (int i = 0; i < n; i += STRIP_TOKENS) {
        const float *x[STRIP_TOKENS];
        int count = n - i < STRIP_TOKENS ? n - i : STRIP_TOKENS;
        for (int k = 0; k < count; k++) {
            float *both = f->query + k * wide;
            copy(both, q + (int64_t)(i + k) * inner, dim);
            copy(both + half, both, dim);
            x[k] = both;
        }
        uint8_t *strip = f->strips + i / STRIP_TOKENS * strip_size(wide);
        to_strip(a->d->kernel, x, count, wide, strip);
    }
    flash_begin(f, n, wide);
    for (int p = 0; p < s->n; p += FLASH_KEYS) {
        const uint16_t *rows = s->kv + ((int64_t)h * s->n + p) * stride;
        int count = s->n - p < FLASH_KEYS ? s->n - p : FLASH_KEYS;
        for (int i = 0; i < n; i++) f->first[i] = 0, f->last[i] = count;
        flash_keys(a->d->kernel, f, n, rows, stride, count, wide, wide, wide, 1);
    }
    for (int i = 0; i < n; i++) {
        const float *out = f->out + i * wide;
        float *to = q + (int64_t)i * inner;
        for (int k = 0; k < dim; k++) to[k] = (out[k] + out[half + k]) / f->sum[i];
    }
}

void cpu_see_layer(Device *d, const Tower *v, const VisionLayer *l) {
    Sight *s = d->sight;
    Look look = {d, v, l};
    norm_rows(d, s->y, s->x, l->input_norm, s->n, v->hidden);
    product(d, &l->q, NULL, s->y, s->n, s->q);
    product(d, &l->k, NULL, s->y, s->n, s->k);
    product(d, &l->v, NULL, s->y, s->n, s->v);
    parallel(d, s->n, see_qkv_task, &look);
    int gemm = uses_gemm(d), size = gemm ? FLASH_QUERIES : PATCHES_PER_TASK;
    parallel(d, n_blocks(s->n, size) * v->n_heads, gemm ? see_flash_task : see_attend_task, &look);
    product(d, &l->o, NULL, s->q, s->n, s->y);
    add_normed(d, s->x, s->y, l->post_attention_norm, s->n, v->hidden);
    norm_rows(d, s->y, s->x, l->pre_mlp_norm, s->n, v->hidden);
    product(d, &l->gate, &l->up, s->y, s->n, s->h);
    product(d, &l->down, NULL, s->h, s->n, s->y);
    add_normed(d, s->x, s->y, l->post_mlp_norm, s->n, v->hidden);
}

/* ---- soft tokens out ---- */

void cpu_see_pool(Device *d, const Tower *v, float *soft) {
    Sight *s = d->sight;
    int wide = s->columns / POOL, n = s->n / (POOL * POOL);
    float scale = sqrtf((float)v->hidden);
    clear(s->y, (int64_t)n * v->hidden);
    for (int t = 0; t < s->n; t++) {
        const float *x = s->x + (int64_t)t * v->hidden;
        int pooled = t / s->columns / POOL * wide + t % s->columns / POOL;
        float *y = s->y + (int64_t)pooled * v->hidden;
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
    product(d, &v->project, NULL, s->y, n, soft);
    sight_free(d);
}
