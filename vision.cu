/* vision.cu - the vision tower on the GPU: `see`, `see_layer` and `see_pool` of ops.h.
 *
 * The tower's weights come to the GPU with the first picture, if there is still room, and stay.
 * The memory of a picture is taken for it and given back after it.  Where there is no room the CPU
 * runs the tower (cuda_see returns -1).
 *
 * The tower uses the text model's kernels for many tokens.  A patch is a token.  For attention, K
 * and V of a picture are a cache of n slots of which every patch sees all, and the dimensions of a
 * head (72) are filled up with zeros to a multiple of 16 (`wide`), as tensor cores want. */
#ifndef VISION_CU
#define VISION_CU

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "launch.cu"

typedef struct Sight {
    Tower v;                            /* with pointers to the GPU's memory */
    Store weights;
    /* The picture; all pointers are to the GPU's memory, in acts. */
    Arena acts;
    int n, columns;                     /* patches, and patches of a row of the picture */
    Layer heads;                        /* n_kv_heads and head_dim (wide), for attention */
    KvCache kv;                         /* of one layer at a time, BF16; float32 with --exact */
    int64_t *first;                     /* the position of the first patch: 0 */
    int *last;                          /* [n] n - 1: each patch sees all patches */
    float *x;                           /* [n][hidden]: the residual stream */
    float *o;                           /* [n][hidden], or the soft tokens */
    Residual rest;                      /* what is to be added to x */
    float *qkv;                         /* [n][3 * n_heads][head_dim]; before: the pixels */
    float *q;                           /* [n][3 * n_heads][wide], of which q alone is filled */
    float *att;                         /* [n][n_heads][wide] */
    uint16_t *y, *act;                  /* BF16 [parts][n][…], for products */
} Sight;

/* x[t] += position[column] + position[n_positions + row], of patch t's column and row.
 * grid (patches). */
__global__ static void see_place_kernel(Weight position, int n_positions, int columns, float *x) {
    ptx_grid_wait();
    int t = blockIdx.x;
    const int column = t % columns, row = t / columns;
    for (int i = threadIdx.x; i < position.cols; i += blockDim.x)
        x[(size_t)t * position.cols + i] += number_at(position, column, i)
                                          + number_at(position, n_positions + row, i);
}

/* Norms and RoPE of the patches.  A warp takes a head's vector of q, k or v, of qkv
 * [n][3 * n_heads][dim]: its norm and, for q and k, RoPE.  The first half of the dimensions turns
 * by the patch's column, the second half by its row; within a half, dimension i turns with
 * i + dim / 4.
 * q goes to q [n][3 * n_heads][wide], k and v to the cache, with zeros from dim up to wide.
 * grid (3 * n_heads / WARPS rounded up, n).  The next kernel reads q and the cache. */
__global__ static void __launch_bounds__(THREADS)
    see_rope_kernel(const __grid_constant__ VisionLayer l, int n_heads, int dim, int wide,
                    const float *inv_freq, float eps, int columns, const float *qkv, float *q,
                    const __grid_constant__ KvCache kv) {
    ptx_grid_wait();
    const int h = blockIdx.x * WARPS + threadIdx.x / 32, t = blockIdx.y;
    const int kind = h / n_heads, quarter = dim / 4;        /* 0: q, 1: k, 2: v */
    if (h >= 3 * n_heads) return;
    const float *v = qkv + ((size_t)t * 3 * n_heads + h) * dim;
    const float *norm = kind == 0 ? l.q_norm : l.k_norm;
    float s = warp_rms_scale(v, dim, eps);
    size_t row = ((size_t)t * n_heads + h % n_heads) * wide;
    for (int i = threadIdx.x % 32; i < wide; i += 32) {
        float x = i < dim ? v[i] * s : 0;
        if (i < dim && kind < 2) {
            int j = i % (2 * quarter), other = j < quarter ? i + quarter : i - quarter;
            int position = i < 2 * quarter ? t % columns : t / columns;
            float angle = (float)position * inv_freq[j % quarter], y = v[other] * s * norm[other];
            x = x * norm[i] * cosf(angle) + (j < quarter ? -y : y) * sinf(angle);
        }
        if (kind == 0) q[((size_t)t * 3 * n_heads + h) * wide + i] = x;
        else cache_store(kind == 1 ? kv.k : kv.v, row + i, kv.dtype, 1, x);
    }
}

/* y = RMSNorm((mean of POOL x POOL patches * sqrt(hidden) - bias) * by), BF16 [parts][soft
 * tokens][padded(hidden)].  x [patches][hidden]; bias and by [hidden], or both NULL.
 * grid (soft tokens).  Dynamic shared memory: floats [hidden]. */
__global__ static void see_pool_kernel(const float *x, int hidden, int columns, const float *bias,
                                       const float *by, float eps, int parts, uint16_t *y) {
    DYNAMIC_SHARED(float, mean);
    SHARED(float, red, [32]);
    ptx_grid_wait();
    const int in_row = columns / POOL, width = padded(hidden);          /* soft tokens of a row */
    const int first = blockIdx.x / in_row * POOL * columns + blockIdx.x % in_row * POOL;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        float sum = 0;
        for (int k = 0; k < POOL * POOL; k++) {
            int patch = first + k / POOL * columns + k % POOL;
            sum += x[(size_t)patch * hidden + i] / (POOL * POOL);
        }
        sum *= sqrtf(hidden);
        mean[i] = bias ? (sum - bias[i]) * by[i] : sum;
    }
    __syncthreads();
    float s = rms_scale(mean, hidden, eps, red);
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        put_parts(y + (size_t)blockIdx.x * width + i, (size_t)gridDim.x * width, parts,
                  i < hidden ? mean[i] * s : 0);
}

/* Takes memory for what the arena has counted, if so much is free.  0, or -1: the CPU takes over,
 * so the error is told to nobody. */
static int take_free(Arena *a) {
    size_t room, total;
    Error err;
    if (free_memory(&room, &total) != cudaSuccess || a->used > room) return -1;
    return take_memory(a, "a picture", &err);
}

static void sight_close(Sight *s) {
    if (!s) return;
    give(&s->weights.memory);
    give(&s->acts);
    free(s->weights.extent);
    free(s->v.layer);
    free(s);
}

/* Finds a place for each of the tower's weights in s->weights and points s->v there.  While
 * s->weights has no memory yet it only counts the bytes. */
static void upload_tower(Sight *s, const Tower *v) {
    VisionLayer *layer = s->v.layer;
    Store *to = &s->weights;
    to->memory.used = 0;
    s->v = *v;
    s->v.layer = layer;
    upload_weight(to, &s->v.patch);
    upload_weight(to, &s->v.position);
    upload_weight(to, &s->v.project);
    upload_vector(to, &s->v.std_bias, v->hidden);
    upload_vector(to, &s->v.std_scale, v->hidden);
    upload_vector(to, &s->v.inv_freq, v->head_dim / 4);
    for (int i = 0; i < v->n_layers; i++) {
        VisionLayer *l = &layer[i];
        *l = v->layer[i];
        Weight *matrix[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (Weight *each : matrix) upload_weight(to, each);
        float **norm[] = {&l->input_norm, &l->post_attention_norm, &l->pre_mlp_norm,
                          &l->post_mlp_norm};
        for (float **each : norm) upload_vector(to, each, v->hidden);
        upload_vector(to, &l->q_norm, v->head_dim);
        upload_vector(to, &l->k_norm, v->head_dim);
    }
    to->from_file = to->memory.used;
}

/* About what pictures will take of the GPU's memory: the tower's weights, and a quarter as much for
 * one picture (2520 patches of the 26B-A4B's, at most: 0.15 GB beside 1.1 GB). */
static size_t sight_bytes(const Tower *v) {
    Sight s = {};
    s.v.layer = (VisionLayer *)xcalloc(v->n_layers, sizeof *s.v.layer);
    upload_tower(&s, v);
    free(s.v.layer);
    return s.weights.memory.used * 5 / 4;
}

/* Opens d->sight and loads the tower's weights into the GPU's memory.  0, or -1: no room. */
static int sight_open(Device *d, const Tower *v) {
    Error err;
    Sight *s = (Sight *)xcalloc(1, sizeof *s);
    s->v.layer = (VisionLayer *)xcalloc(v->n_layers, sizeof *s->v.layer);
    s->weights.in_place = d->weights.in_place;
    upload_tower(s, v);
    int bad = take_free(&s->weights.memory);
    if (!bad) {
        upload_tower(s, v);
        bad = load_store(&s->weights, d->stream, d->n_threads, NULL, &err);
    }
    if (bad) sight_close(s);
    else d->sight = s;
    return bad;
}

/* Hands out the memory of a picture.  While s->acts has no memory yet it only counts the bytes. */
static void take_sight(const Device *d, Sight *s) {
    const Tower *v = &s->v;
    Arena *a = &s->acts;
    size_t n = s->n, inner = (size_t)v->n_heads * v->head_dim;
    size_t heads = (size_t)v->n_heads * s->heads.head_dim;
    size_t o = larger(n * v->hidden, n / (POOL * POOL) * d->c->hidden);
    size_t widest = larger(larger(v->hidden, PATCH_SIZE), inner);
    a->used = 0;
    s->first = (int64_t *)take(a, sizeof *s->first);
    s->last = (int *)take(a, 4 * n);
    s->x = (float *)take(a, 4 * n * v->hidden);
    s->o = (float *)take(a, 4 * o);
    s->qkv = (float *)take(a, 4 * n * larger(3 * inner, PATCH_SIZE));
    s->q = (float *)take(a, 4 * n * 3 * heads);
    s->kv.k = (uint8_t *)take(a, n * heads * dtype_size[s->kv.dtype]);
    s->kv.v = (uint8_t *)take(a, n * heads * dtype_size[s->kv.dtype]);
    s->att = (float *)take(a, 4 * n * heads);
    s->y = (uint16_t *)take(a, 2 * n * d->y_parts * padded(widest));
    s->act = (uint16_t *)take(a, 2 * n * d->y_parts * padded(v->intermediate));
}

/* Describes a picture of rows * columns patches to s, for attention too. */
static void begin_picture(const Device *d, Sight *s, int columns, int rows) {
    s->n = rows * columns;
    s->columns = columns;
    s->heads = {};
    s->heads.n_kv_heads = s->v.n_heads;
    s->heads.head_dim = (s->v.head_dim + 15) / 16 * 16;
    s->heads.k = s->v.layer[0].k;       /* data that is not NULL: the layer has keys */
    s->kv = {};
    s->kv.dtype = d->y_parts > 1 ? DT_F32 : DT_BF16;
    s->kv.k_dim = s->heads.head_dim;
    s->kv.slots = s->n;
    s->rest = {};
}

/* Copies the pixels, as 2 pixels - 1, to s->qkv [n][PATCH_SIZE], and fills s->last. */
static void copy_picture(Device *d, Sight *s, const float *pixels) {
    const char *what = "copying a picture";
    const size_t n = s->n;
    float *centred = (float *)xcalloc(n * PATCH_SIZE, sizeof *centred);
    int *last = (int *)xcalloc(n, sizeof *last);
    for (size_t i = 0; i < n * PATCH_SIZE; i++) centred[i] = 2 * (pixels[i] - 0.5f);
    for (size_t i = 0; i < n; i++) last[i] = s->n - 1;
    check(cudaMemcpyAsync(s->qkv, centred, 4 * n * PATCH_SIZE, cudaMemcpyHostToDevice, d->stream),
          what);
    check(cudaMemcpyAsync(s->last, last, 4 * n, cudaMemcpyHostToDevice, d->stream), what);
    wait(d, what);
    free(centred);
    free(last);
}

/* `see` of ops.h. */
static int cuda_see(Device *d, const Tower *v, const float *pixels, int columns, int rows) {
    if (!d->sight && sight_open(d, v)) return -1;
    Sight *s = d->sight;
    give(&s->acts);                     /* an earlier picture may have been abandoned */
    begin_picture(d, s, columns, rows);
    take_sight(d, s);
    if (take_free(&s->acts)) return -1;
    take_sight(d, s);
    check(cudaMemsetAsync(s->acts.base, 0, s->acts.used, d->stream), "clearing memory");
    copy_picture(d, s, pixels);
    split(d, s->qkv, s->n, PATCH_SIZE, PATCH_SIZE, PATCH_SIZE, d->y_parts, s->y);
    dense(d, product_of(s->v.patch, s->x, v->hidden), s->n, s->y, d->y_parts, "patches");
    GPU_LAUNCH(see_place_kernel, dim3(s->n), dim3(THREADS), 0, d->stream, s->v.position,
               v->n_positions, columns, s->x);
    launched("places of patches");
    return 0;
}

/* Adds s->rest to x, and y = RMSNorm(x, norm), unless norm is NULL. */
static void see_norm(Device *d, const float *norm) {
    Sight *s = d->sight;
    s->rest.x = s->rest.to = s->x;
    s->rest.eps = d->c->eps;
    norms_of(d, s->rest, s->n, s->v.hidden, {norm, 1, d->y_parts, norm ? s->y : NULL}, {}, {});
}

/* Attention of the picture's patches: s->att from s->q and s->kv. */
static void see_attend(Device *d) {
    Sight *s = d->sight;
    const int n = s->n, n_heads = s->v.n_heads;
    Attend a = {};
    a.l = s->heads;
    a.kv = s->kv;
    a.n_heads = n_heads;
    a.window = n;
    a.n = n;
    a.pos = s->first;
    a.last = s->last;
    a.qkv = s->q;
    a.splits = 1;
    a.out = s->att;
    /* The plan is one for at least 17 tokens: for fewer, attend_kernel would norm and turn q, k and
     * v itself, which see_rope_kernel has done. */
    const int planned = n > 16 ? n : 17;
    launch_attend(d, a, attend_plan(&a.l, &a.kv, n_heads, planned, n, d->attend_parts, 0,
                                    d->shared_limit));
}

/* `see_layer` of ops.h. */
static void cuda_see_layer(Device *d, const Tower *v, const VisionLayer *host) {
    Sight *s = d->sight;
    const VisionLayer *l = &s->v.layer[host - v->layer];
    const int n = s->n, inner = v->n_heads * v->head_dim, wide = s->heads.head_dim;
    const int parts = d->y_parts;
    see_norm(d, l->input_norm);
    dense(d, qkv_product(l->q, l->k, l->v, s->qkv), n, s->y, parts, "q, k, v");
    GPU_LAUNCH(see_rope_kernel, dim3((3 * v->n_heads + WARPS - 1) / WARPS, n), dim3(THREADS), 0,
               d->stream, *l, v->n_heads, v->head_dim, wide, s->v.inv_freq, d->c->eps, s->columns,
               s->qkv, s->q, s->kv);
    launched("norm and rope of patches");
    see_attend(d);
    split(d, s->att, n, inner, v->head_dim, wide, parts, s->y);
    dense(d, product_of(l->o, s->o, v->hidden), n, s->y, parts, "o_proj");
    s->rest.a = s->o;
    s->rest.norm = l->post_attention_norm;
    s->rest.scalar = 1;
    see_norm(d, l->pre_mlp_norm);
    dense(d, gated_product(l->gate, l->up, s->act), n, s->y, parts, "mlp");
    dense(d, product_of(l->down, s->o, v->hidden), n, s->act, parts, "mlp down");
    s->rest.norm = l->post_mlp_norm;
}

/* `see_pool` of ops.h. */
static void cuda_see_pool(Device *d, const Tower *v, float *soft) {
    Sight *s = d->sight;
    const int n = s->n / (POOL * POOL), hidden = d->c->hidden;
    see_norm(d, NULL);
    GPU_LAUNCH(see_pool_kernel, dim3(n), dim3(THREADS), 4 * (size_t)v->hidden, d->stream, s->x,
               v->hidden, s->columns, s->v.std_bias, s->v.std_scale, d->c->eps, d->y_parts, s->y);
    launched("pooling");
    dense(d, product_of(s->v.project, s->o, hidden), n, s->y, d->y_parts, "soft tokens");
    read_back(d, soft, s->o, 4 * (size_t)n * hidden);
    give(&s->acts);
}

#endif
