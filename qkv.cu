/* qkv.cu - what comes before attention on the GPU: q, k and v of one token, their norms and RoPE,
 * and the kv cache.  The first comment of attention.cu says who writes the cache when, and who may
 * read it. */
#ifndef QKV_CU
#define QKV_CU

#include <stdint.h>

#include "gpu.h"
#include "product.h"
#include "residual.cu"
#include "step.cu"
#include "stream.cu"

/* ---- one token's q, k and v ---- */

/* qkv [n_heads + 2 * n_kv_heads][head_dim] = the projections q, k, v of one token's normed
 * residual stream, one after the other.  A layer without v_proj uses k as v, so k is written
 * twice.  The weights are read from the beginning on; the residual stream, which the kernel before
 * writes, is read behind the ptx_grid_wait in settle_and_norm.
 * Dynamic shared memory: the ring of begin_stream, a Vector of `hidden` columns, and
 * spare_floats(hidden) floats. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, RESIDENT(DEPTH))
    qkv_kernel(const __grid_constant__ Layer l, const __grid_constant__ Residual r, float *qkv) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(Strip, strip, [3]);          /* this block's rows of q, k, v, */
    SHARED(int, to, [3]);               /* and where they begin in qkv */
    SHARED(float, red, [32]);           /* scratch of the block's sums */
    const int hidden = l.q.cols, n_strips = l.v.data ? 3 : 2;
    const int v_packs = !l.v.data || is_nibbles(l.v);
    const int packed = is_nibbles(l.q) && is_nibbles(l.k) && v_packs;
    auto matrix = [&](int i) -> const Weight & {
        const Weight &k_or_v = i == 1 ? l.k : l.v;
        return i == 0 ? l.q : k_or_v;
    };
    const Normed normed = {l.input_norm, NULL, 0, packed};
    if (DEPTH < EVERY_KIND) prefetch_norms(r, hidden, normed);
    if ((int)threadIdx.x < n_strips) {
        const int i = threadIdx.x;
        int of = 0;                                 /* where the matrix begins */
        if (i > 0) of += l.q.rows;
        if (i > 1) of += l.k.rows;
        strip[i] = share_of(matrix(i), 0, packed);
        to[i] = of + share_begin(matrix(i).rows);
    }
    __syncthreads();
    Feed feed = begin_stream<DEPTH>(shared, strip, n_strips);
    if (DEPTH > EVERY_KIND) prefetch_norms(r, hidden, normed);
    Vector y = vector_at(shared + ring_bytes(DEPTH), hidden);
    settle_and_norm(r, hidden, y, normed, red, (float *)behind(y), [] {});
    __syncthreads();
    auto done = [&](int i, int row, float sum) {
        qkv[to[i] + row] = sum;
        if (i && !l.v.data) qkv[to[i] + row + l.k.rows] = sum;
    };
    stream<DEPTH>(feed, strip, y, y, done, [] {});
}

/* ---- the cache ---- */

/* Element i of a cache of format `dtype` becomes v.  FP8: v / scale, saturated. */
__device__ static void cache_store(uint8_t *cache, size_t i, DType dtype, float scale, float v) {
    if (dtype == DT_F32) ((float *)cache)[i] = v;
    else if (dtype == DT_BF16) {
        uint32_t u = __float_as_uint(v);
        ((uint16_t *)cache)[i] = (u + 0x7fff + (u >> 16 & 1)) >> 16;    /* nearest, ties to even */
    } else cache[i] = float_to_e4m3(v / scale);
}

/* Element i of a cache of format `dtype`. */
__device__ static float cache_load(const uint8_t *cache, size_t i, DType dtype, float scale) {
    if (dtype == DT_F32) return ((const float *)cache)[i];
    if (dtype == DT_BF16) return __uint_as_float((uint32_t)((const uint16_t *)cache)[i] << 16);
    return e4m3_to_float(cache[i]) * scale;
}

/* The column of dimension i of K in a row that holds K's k_dim stored numbers and then V's head_dim
 * numbers, as k_column in plain.c.  Dimensions that do not turn are not stored where k_dim <
 * head_dim (KvCache in ops.h): such a dimension is k_norm[i] * V[i], so its column is V's, k_dim +
 * i. */
__device__ static inline int k_column(int head_dim, int k_dim, int i) {
    int half = head_dim / 2, turning = k_dim / 2;
    int pair = i < half ? i : i - half;
    if (pair >= turning) return k_dim + i;
    return i < half ? pair : turning + pair;
}

/* Dimension i of the key in row `row` of the cache, whose rows are [slots * n_kv_heads]. */
__device__ static float key_load(const Layer &l, const KvCache &kv, size_t row, int i) {
    int column = k_column(l.head_dim, kv.k_dim, i);
    if (column >= kv.k_dim)
        return l.k_norm[i] * cache_load(kv.v, row * l.head_dim + i, kv.dtype, l.v_scale);
    return cache_load(kv.k, row * kv.k_dim + column, kv.dtype, l.k_scale);
}

/* ---- norms and RoPE, a warp for a head's vector ---- */

/* 1 / sqrt(mean(v^2) + eps) of v [n], for all lanes of the warp. */
__device__ static inline float warp_rms_scale(const float *v, int n, float eps) {
    float sum = 0;
#pragma unroll 8
    for (int i = threadIdx.x % 32; i < n; i += 32) sum += v[i] * v[i];
    return 1 / sqrtf(warp_sum(sum) / n + eps);
}

/* Pairs of dimensions that a lane loads before it waits for the first of them, where head_dim is
 * not known.  32 * 8 pairs are the 512 dimensions of a global layer's head, the largest, so every
 * head is loaded at once.  More would gain nothing there; fewer would wait for memory twice.
 * Nobody has timed other values; bench/gpusim --kernel norm_rope shows what a change does. */
#define MOST_AT_ONCE 8

/* One head's vector v [head_dim] is normed (weights `norm` [head_dim]) and turned: put(i, number)
 * gets each of the head_dim results once.  turn [head_dim / 2]: cosine and sine of each pair of
 * dimensions i, i + head_dim / 2 at the token's position, see Turns in step.cu.  All 32 lanes
 * call this; put may overwrite v, as a lane stores only what it alone has loaded.  AT_ONCE: see
 * MOST_AT_ONCE; head_dim / 64 is enough. */
template <int AT_ONCE, class Put>
__device__ static inline void norm_rope(const Layer &l, const float *v, const float *norm,
                                        float eps, const float2 *turn, Put put) {
    const int half = l.head_dim / 2, lane = threadIdx.x % 32;
    /* Pair from + lane + 32 k: its two numbers, their norm weights, cosine and sine. */
    float a[AT_ONCE], b[AT_ONCE], norm_a[AT_ONCE], norm_b[AT_ONCE], sum = 0;
    float2 by[AT_ONCE];
    auto load = [&](int from) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int i = from + lane + 32 * k;
            bool inside = i < half;
            a[k] = inside ? v[i] : 0;
            b[k] = inside ? v[i + half] : 0;
            norm_a[k] = inside ? norm[i] : 0;
            norm_b[k] = inside ? norm[i + half] : 0;
            by[k] = inside ? turn[i] : make_float2(0, 0);
        }
    };
    for (int from = 0; from < half; from += 32 * AT_ONCE) {
        load(from);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) sum += a[k] * a[k] + b[k] * b[k];
    }
    const float s = 1 / sqrtf(warp_sum(sum) / l.head_dim + eps);
    for (int from = 0; from < half; from += 32 * AT_ONCE) {
        if (half > 32 * AT_ONCE) load(from);        /* else the numbers are still in registers */
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int i = from + lane + 32 * k;
            if (i >= half) break;
            const float x = a[k] * s * norm_a[k], y = b[k] * s * norm_b[k];
            put(i, x * by[k].x - y * by[k].y);
            put(i + half, y * by[k].x + x * by[k].y);
        }
    }
}

/* Writes K of the token at position pos and key/value head h into the cache: k [head_dim], as
 * the projection made it, normed and turned.  One warp. */
template <int AT_ONCE>
__device__ static inline void store_key(const Layer &l, const KvCache &kv, float eps, int pos,
                                        const float2 *turn, int h, const float *k) {
    size_t row = (size_t)(pos % kv.slots) * l.n_kv_heads + h;
    norm_rope<AT_ONCE>(l, k, l.k_norm, eps, turn, [&](int i, float x) {
        int column = k_column(l.head_dim, kv.k_dim, i);
        if (column < kv.k_dim)
            cache_store(kv.k, row * kv.k_dim + column, kv.dtype, l.k_scale, x);
    });
}

/* Writes V of the token at position pos and key/value head h into the cache: v [head_dim], as the
 * projection made it, divided by its root mean square (V's norm has no weights).  One warp.
 * AT_ONCE: as for norm_rope. */
template <int AT_ONCE>
__device__ static inline void store_value(const Layer &l, const KvCache &kv, float eps, int pos,
                                          int h, const float *v) {
    const int dim = l.head_dim, lane = threadIdx.x % 32;
    const size_t row = (size_t)(pos % kv.slots) * l.n_kv_heads + h;
    float own[2 * AT_ONCE], sum = 0;    /* numbers from + lane + 32 k */
    auto load = [&](int from) {
#pragma unroll
        for (int k = 0; k < 2 * AT_ONCE; k++) {
            const int i = from + lane + 32 * k;
            own[k] = i < dim ? v[i] : 0;
        }
    };
    for (int from = 0; from < dim; from += 64 * AT_ONCE) {
        load(from);
#pragma unroll
        for (int k = 0; k < 2 * AT_ONCE; k++) sum += own[k] * own[k];
    }
    const float s = 1 / sqrtf(warp_sum(sum) / dim + eps);
    for (int from = 0; from < dim; from += 64 * AT_ONCE) {
        if (dim > 64 * AT_ONCE) load(from);         /* else the numbers are still in registers */
#pragma unroll
        for (int k = 0; k < 2 * AT_ONCE; k++) {
            const int i = from + lane + 32 * k;
            if (i < dim) cache_store(kv.v, row * dim + i, kv.dtype, l.v_scale, own[k] * s);
        }
    }
}

/* Norms and RoPE of n tokens: q is replaced in place, K and V go into the cache, each by one warp
 * for each head.
 * grid ((n_heads + 2 * n_kv_heads) / WARPS rounded up, n); a drafter's layers have no k and v.
 * pos: the position of the first token.  turn [n][head_dim / 2]: see norm_rope.
 * qkv [n][n_heads + 2 * n_kv_heads][head_dim], which the kernel before this one writes.
 * The next kernel reads q and the cache after its ptx_grid_wait. */
__global__ static void __launch_bounds__(THREADS)
    norm_rope_kernel(const __grid_constant__ Layer l, const __grid_constant__ KvCache kv, float eps,
                     int n_heads, const int64_t *pos, const float2 *turn, float *qkv) {
    const int h = blockIdx.x * WARPS + threadIdx.x / 32;
    const int all = n_heads + (l.k.data ? 2 * l.n_kv_heads : 0);
    float *v = qkv + ((size_t)blockIdx.y * all + h) * l.head_dim;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    int at = (int)*pos + blockIdx.y;
    turn += (size_t)blockIdx.y * (l.head_dim / 2);
    auto in_place = [&](int i, float x) { v[i] = x; };
    if (h < n_heads) norm_rope<MOST_AT_ONCE>(l, v, l.q_norm, eps, turn, in_place);
    else if (h < n_heads + l.n_kv_heads)
        store_key<MOST_AT_ONCE>(l, kv, eps, at, turn, h - n_heads, v);
    else if (h < all) store_value<MOST_AT_ONCE>(l, kv, eps, at, h - n_heads - l.n_kv_heads, v);
}

#endif
