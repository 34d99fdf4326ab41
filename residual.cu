/* residual.cu - the residual stream between two products on the GPU, and its norms.
 *
 * What attention or a layer adds to the residual stream needs an RMSNorm first, whose sum over a
 * whole vector ends a kernel.  So the kernel that makes it leaves it as it is, and the next one
 * settles it: adds it, and takes the norm that it needs itself. */
#include "product.h"

/* x' = (x + RMSNorm(h, norm)) * scalar.  h = a, or with norm_a h = RMSNorm(a, norm_a) +
 * RMSNorm(b, norm_b): the end of attention (a = o_proj's output) and of a layer (a = the dense
 * MLP's, b = the experts').  With `weight` b is still apart, a row for each chosen expert: b =
 * sum over k of weight[t][k] * b[place[t][k]], where place[t][k] is t * top_k + k if place is
 * NULL.  All [tokens][hidden]; a NULL: x' = x. */
typedef struct {
    const float *x, *a, *b, *norm_a, *norm_b, *norm;
    const float *weight;
    const int *place;
    int top_k;
    float scalar, eps;
    /* x' goes here; to x itself only where one block alone works on a token. */
    float *to;
} Residual;

/* Token t's x' into shared memory: x[0..hidden).  Ends with a barrier.  red: 32 floats of shared
 * memory. */
__device__ static void settle(const Residual &r, int t, int hidden, float *x, float *red) {
    const size_t token = (size_t)t * hidden;
    const float *from = r.x + token, *a = r.a + token, *b = r.b + token;
    if (r.a) {
        float sum_a = 0, sum_b = 0;
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
            float v = 0;
            if (r.norm_a && r.weight)
                for (int k = t * r.top_k; k < (t + 1) * r.top_k; k++)
                    v += r.weight[k] * r.b[(size_t)(r.place ? r.place[k] : k) * hidden + i];
            else if (r.norm_a) v = b[i];
            sum_a += a[i] * a[i];
            sum_b += v * v;
            x[i] = v;                   /* a thread keeps to its own i: no barrier is needed */
        }
        if (r.norm_a) {
            float scale_a = 1 / sqrtf(block_sum(sum_a, red) / hidden + r.eps);
            float scale_b = 1 / sqrtf(block_sum(sum_b, red) / hidden + r.eps);
            sum_a = 0;
            for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
                x[i] = a[i] * scale_a * r.norm_a[i] + x[i] * scale_b * r.norm_b[i];
                sum_a += x[i] * x[i];
            }
        } else
            for (int i = threadIdx.x; i < hidden; i += blockDim.x) x[i] = a[i];
        float scale = 1 / sqrtf(block_sum(sum_a, red) / hidden + r.eps);
        for (int i = threadIdx.x; i < hidden; i += blockDim.x)
            x[i] = (from[i] + x[i] * scale * r.norm[i]) * r.scalar;
    } else
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) x[i] = from[i];
    __syncthreads();
}

/* ---- a vector in the registers of a block ---- */

/* Four of a vector's numbers, from column i on, zero from column n on.  ALIGNED: n is a multiple
 * of 4. */
template <bool ALIGNED> __device__ static inline float4 load4(const float *v, int i, int n) {
    if (ALIGNED) return i < n ? *(const float4 *)(v + i) : make_float4(0, 0, 0, 0);
    auto at = [&](int k) { return i + k < n ? v[i + k] : 0; };
    return make_float4(at(0), at(1), at(2), at(3));
}

/* Times four numbers of a vector are a thread's: every STREAM_THREADS-th four. */
#define SHARE 2
#define NARROW (4 * STREAM_THREADS * SHARE)             /* the largest hidden size that fits */

/* Floats of shared memory that a vector of another size takes instead. */
__host__ __device__ static inline int spare_floats(int hidden) {
    return hidden % 4 || hidden > NARROW ? hidden : 0;
}

/* A thread's share of a vector of n numbers, in registers: all of its loads are under way at
 * once. */
typedef struct {
    float4 v[SHARE];
} Share;

__device__ static inline Share load_share(const float *from, int n) {
    Share s;
#pragma unroll
    for (int k = 0; k < SHARE; k++)
        s.v[k] = load4<true>(from, 4 * (threadIdx.x + k * STREAM_THREADS), n);
    return s;
}

__device__ static inline float4 times(float4 a, float by, float4 b) {
    return make_float4(a.x * by * b.x, a.y * by * b.y, a.z * by * b.z, a.w * by * b.w);
}
__device__ static inline float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ static inline float squares(const Share &s) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < SHARE; k++) {
        const float4 v = s.v[k];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    return sum;
}

/* Two sums over the block's threads at once.  red: 2 * STREAM_WARPS floats of shared memory. */
__device__ static inline float2 block_sum2(float a, float b, float *red) {
    a = warp_sum(a);
    b = warp_sum(b);
    __syncthreads();                    /* red may still be read from the last time */
    if (threadIdx.x % 32 == 0) *(float2 *)(red + threadIdx.x / 32 * 2) = make_float2(a, b);
    __syncthreads();
    float2 sum[2] = {};
#pragma unroll
    for (int w = 0; w < STREAM_WARPS; w += 2) {
        float4 two = *(const float4 *)(red + 2 * w);
        sum[0].x += two.x, sum[0].y += two.y;
        sum[1].x += two.z, sum[1].y += two.w;
    }
    return make_float2(sum[0].x + sum[1].x, sum[0].y + sum[1].y);
}

__device__ static inline float rms_of(float squares, int n, float eps) {
    return rsqrtf(__fdividef(squares, (float)n) + eps);
}

/* Brings n floats nearer while the kernel still waits. */
__device__ static inline void prefetch(const float *p, int n) {
    for (int i = 32 * threadIdx.x; p && i < n; i += 32 * STREAM_THREADS) ptx_prefetch_l2(p + i);
}

/* ---- several tokens: norms for products ---- */

/* Where a norm of the residual stream goes: BF16 [parts][n][padded(hidden)]; to NULL: nowhere. */
typedef struct {
    const float *norm;
    float factor;
    int parts;
    uint16_t *to;
} NormTo;

/* b of token t (see Residual). */
__device__ static inline Share load_b(const Residual &r, int t, int hidden) {
    if (!r.weight) return load_share(r.b + (size_t)t * hidden, hidden);
    Share sum = {};
    auto add = [&](int k, int place) {
        const float weight = r.weight[k];
        const Share row = load_share(r.b + (size_t)place * hidden, hidden);
#pragma unroll
        for (int i = 0; i < SHARE; i++)
            sum.v[i] = plus(sum.v[i], times(row.v[i], weight, make_float4(1, 1, 1, 1)));
    };
    const int first = t * r.top_k, end = first + r.top_k;
    if (r.place) {
#pragma unroll 4
        for (int k = first; k < end; k++) add(k, r.place[k]);
    } else {
#pragma unroll 4
        for (int k = first; k < end; k++) add(k, k);
    }
    return sum;
}

/* Token t's x' in the registers of the block, for a hidden size that fits (NARROW).  red: 32
 * floats of shared memory. */
__device__ static inline Share settle_share(const Residual &r, int t, int hidden, float *red) {
    Share x = load_share(r.x + (size_t)t * hidden, hidden), h, norm;
    if (!r.a) return x;
    h = load_share(r.a + (size_t)t * hidden, hidden);
    norm = load_share(r.norm, hidden);
    if (r.norm_a) {
        const Share norm_a = load_share(r.norm_a, hidden), norm_b = load_share(r.norm_b, hidden);
        const Share b = load_b(r, t, hidden);
        const float2 sum = block_sum2(squares(h), squares(b), red);
        const float scale_a = rms_of(sum.x, hidden, r.eps), scale_b = rms_of(sum.y, hidden, r.eps);
#pragma unroll
        for (int k = 0; k < SHARE; k++)
            h.v[k] = plus(times(h.v[k], scale_a, norm_a.v[k]), times(b.v[k], scale_b, norm_b.v[k]));
    }
    const float scale = rms_of(block_sum2(squares(h), 0, red).x, hidden, r.eps);
#pragma unroll
    for (int k = 0; k < SHARE; k++) {
        const float4 v = plus(x.v[k], times(h.v[k], scale, norm.v[k]));
        x.v[k] = make_float4(v.x * r.scalar, v.y * r.scalar, v.z * r.scalar, v.w * r.scalar);
    }
    return x;
}

/* One block a token: the residual stream is settled, and up to three norms of it are
 * written.  grid tokens; STREAM_THREADS threads; shared: floats [spare_floats(hidden)]. */
__global__ static void __launch_bounds__(STREAM_THREADS)
    norm_kernel(const __grid_constant__ Residual r, int hidden, NormTo a, NormTo b, NormTo c) {
    DYNAMIC_SHARED(float, x);
    SHARED(float, red, [32]);
    const int t = blockIdx.x, width = padded(hidden);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (spare_floats(hidden)) {
        settle(r, t, hidden, x, red);
        if (r.to)
            for (int i = threadIdx.x; i < hidden; i += STREAM_THREADS)
                r.to[(size_t)t * hidden + i] = x[i];
        const float scale = rms_scale(x, hidden, r.eps, red);
        for (const NormTo &to : {a, b, c})
            for (int i = threadIdx.x; to.to && i < width; i += STREAM_THREADS)
                put_parts(to.to + (size_t)t * width + i, (size_t)gridDim.x * width, to.parts,
                          i < hidden ? x[i] * scale * to.norm[i] * to.factor : 0);
        return;
    }
    const Share s = settle_share(r, t, hidden, red);
    const float scale = rms_of(block_sum2(squares(s), 0, red).x, hidden, r.eps);
    auto column = [](int k) { return 4 * (int)(threadIdx.x + k * STREAM_THREADS); };
#pragma unroll
    for (int k = 0; k < SHARE; k++)
        if (r.to && column(k) < hidden) *(float4 *)(r.to + (size_t)t * hidden + column(k)) = s.v[k];
    auto write = [&](const NormTo &to) {
        if (!to.to) return;
        const Share norm = load_share(to.norm, hidden);
#pragma unroll
        for (int k = 0; k < SHARE; k++) {
            float4 v = times(s.v[k], scale * to.factor, norm.v[k]);
            for (int p = 0; p < to.parts && column(k) < width; p++)
                *(uint2 *)(to.to + ((size_t)p * gridDim.x + t) * width + column(k)) = take4(v);
        }
    };
    write(a);
    write(b);
    write(c);
}

/* h = RMSNorm(x, norm) of one token.  One block; shared: floats [hidden]. */
__global__ static void hidden_kernel(const __grid_constant__ Residual r, int hidden,
                                     const float *norm, float *h) {
    DYNAMIC_SHARED(float, x);
    SHARED(float, red, [32]);
    ptx_grid_wait();
    settle(r, 0, hidden, x, red);
    float scale = rms_scale(x, hidden, r.eps, red);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) h[i] = x[i] * scale * norm[i];
}
