/* residual.cu - the residual stream between two products on the GPU, and its norms.
 *
 * The output of attention and of the MLPs is normed (RMSNorm) before it is added to the residual
 * stream.  The norm needs a sum over the whole vector, for which all blocks of the kernel that
 * computes the vector would have to wait for each other.  So that kernel only stores the vector,
 * and the next kernel settles the residual stream: it adds the normed vector and takes the norms
 * that it needs itself.  The next kernel finds in Residual what is to be added. */
#ifndef RESIDUAL_CU
#define RESIDUAL_CU

#include "product.h"

/* The settled residual stream x' of each token:
 *   x' = x                                     a NULL
 *   x' = (x + RMSNorm(h, norm)) * scalar       otherwise, where
 *   h  = a                                     norm_a NULL: the end of attention, a is o_proj's
 *                                              output; or of a dense layer, a is the MLP's output
 *   h  = RMSNorm(a, norm_a) + RMSNorm(b, norm_b)   the end of a layer with experts: a is the dense
 *                                                  MLP's output, b the experts'
 *
 * With `weight` the experts' outputs are not added up yet.  Then b of token t is the sum of
 * weight[t][k] * row place[t][k] of the array b over all k < top_k.  place [tokens][top_k] names
 * places in the list that is sorted by expert (moe.cu); place NULL: the row is t * top_k + k. */
typedef struct {
    const float *x, *a, *b;             /* [tokens][hidden]; b with `place`: [places][hidden] */
    const float *norm_a, *norm_b, *norm;            /* [hidden] */
    const float *weight;                /* [tokens][top_k] */
    const int *place;                   /* [tokens][top_k], or NULL */
    int top_k;
    float scalar, eps;
    /* [tokens][hidden], or NULL: x' goes here.  It may be x itself only in kernels in which one
     * block alone works on a token, as other blocks still read x. */
    float *to;
} Residual;

/* Writes token t's x' to x [hidden] in shared memory and ends with a barrier.  For any hidden size;
 * the whole block.  red: 32 floats of shared memory. */
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
            x[i] = v;                   /* the same thread reads x[i] below: no barrier is needed */
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

/* Columns i … i + 3 of v [n]; columns from n on are zero.  i is a multiple of 4.  ALIGNED: n is,
 * too, and v is aligned to 16 bytes. */
template <bool ALIGNED> __device__ static inline float4 load4(const float *v, int i, int n) {
    if (ALIGNED) return i < n ? *(const float4 *)(v + i) : make_float4(0, 0, 0, 0);
    auto at = [&](int k) { return i + k < n ? v[i + k] : 0; };
    return make_float4(at(0), at(1), at(2), at(3));
}

/* A thread of STREAM_THREADS holds FOURS times four numbers of a vector in registers, every
 * STREAM_THREADS-th four.  2 is the least that fits the 26B-A4B's hidden size, 2816; the 31B's,
 * 5376, does not fit, and its vectors go through shared memory.  Nobody has timed 4, which would
 * fit both; bench/gpusim --step decode shows what more registers cost.  NARROW: the largest hidden
 * size that fits. */
#define FOURS 2
#define NARROW (4 * STREAM_THREADS * FOURS)

/* Floats of shared memory that a vector of `hidden` numbers takes when it does not fit into the
 * threads' registers; 0 when it does. */
__host__ __device__ static inline int spare_floats(int hidden) {
    return hidden % 4 || hidden > NARROW ? hidden : 0;
}

/* A thread's numbers of a vector: v[k] is columns c … c + 3, c = 4 (threadIdx.x + k *
 * STREAM_THREADS). */
typedef struct {
    float4 v[FOURS];
} Fours;

/* The thread's numbers of from [n], n a multiple of 4; zeros from column n on.  All of the thread's
 * loads are under way at once. */
__device__ static inline Fours load_fours(const float *from, int n) {
    Fours s;
#pragma unroll
    for (int k = 0; k < FOURS; k++)
        s.v[k] = load4<true>(from, 4 * (threadIdx.x + k * STREAM_THREADS), n);
    return s;
}

/* a * by * b and a + b, number by number. */
__device__ static inline float4 times(float4 a, float by, float4 b) {
    return make_float4(a.x * by * b.x, a.y * by * b.y, a.z * by * b.z, a.w * by * b.w);
}
__device__ static inline float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* The sum of the squares of the thread's numbers. */
__device__ static inline float squares(const Fours &s) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < FOURS; k++) {
        const float4 v = s.v[k];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    return sum;
}

/* The sums of a and of b over the block's STREAM_THREADS threads, for all of them.  red: 2 *
 * STREAM_WARPS floats of shared memory. */
__device__ static inline float2 block_sum2(float a, float b, float *red) {
    a = warp_sum(a);
    b = warp_sum(b);
    __syncthreads();                    /* a warp may still read red from an earlier call */
    if (threadIdx.x % 32 == 0) *(float2 *)(red + threadIdx.x / 32 * 2) = make_float2(a, b);
    __syncthreads();
    float2 sum[2] = {};
#pragma unroll
    for (int w = 0; w < STREAM_WARPS; w += 2) {
        float4 two = *(const float4 *)(red + 2 * w);
        sum[0].x += two.x;
        sum[0].y += two.y;
        sum[1].x += two.z;
        sum[1].y += two.w;
    }
    return make_float2(sum[0].x + sum[1].x, sum[0].y + sum[1].y);
}

/* 1 / sqrt(squares / n + eps), with fast division and square root. */
__device__ static inline float rms_of(float squares, int n, float eps) {
    return rsqrtf(__fdividef(squares, (float)n) + eps);
}

/* Begins to bring p [n] into the L2 cache, for a kernel that has to wait before it reads them.  p
 * NULL: nothing. */
__device__ static inline void prefetch(const float *p, int n) {
    for (int i = 32 * threadIdx.x; p && i < n; i += 32 * STREAM_THREADS) ptx_prefetch_l2(p + i);
}

/* ---- several tokens: norms for products ---- */

/* A norm of the residual stream, for products: to = RMSNorm(x', norm) * factor, in `parts` BF16. */
typedef struct {
    const float *norm;                  /* [hidden] */
    float factor;
    int parts;
    uint16_t *to;                       /* [parts][n][padded(hidden)]; NULL: no norm is wanted */
} NormTo;

/* The thread's numbers of b of token t, as Residual describes b. */
__device__ static inline Fours load_b(const Residual &r, int t, int hidden) {
    if (!r.weight) return load_fours(r.b + (size_t)t * hidden, hidden);
    Fours sum = {};
    auto add = [&](int k, int place) {
        const float weight = r.weight[k];
        const Fours row = load_fours(r.b + (size_t)place * hidden, hidden);
#pragma unroll
        for (int i = 0; i < FOURS; i++)
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

/* The thread's numbers of token t's x'.  For a hidden size that fits: spare_floats is 0.  The whole
 * block.  red: 32 floats of shared memory. */
__device__ static inline Fours settle_fours(const Residual &r, int t, int hidden, float *red) {
    Fours x = load_fours(r.x + (size_t)t * hidden, hidden), h, norm;
    if (!r.a) return x;
    h = load_fours(r.a + (size_t)t * hidden, hidden);
    norm = load_fours(r.norm, hidden);
    if (r.norm_a) {
        const Fours norm_a = load_fours(r.norm_a, hidden), norm_b = load_fours(r.norm_b, hidden);
        const Fours b = load_b(r, t, hidden);
        const float2 sum = block_sum2(squares(h), squares(b), red);
        const float scale_a = rms_of(sum.x, hidden, r.eps), scale_b = rms_of(sum.y, hidden, r.eps);
#pragma unroll
        for (int k = 0; k < FOURS; k++)
            h.v[k] = plus(times(h.v[k], scale_a, norm_a.v[k]), times(b.v[k], scale_b, norm_b.v[k]));
    }
    const float scale = rms_of(block_sum2(squares(h), 0, red).x, hidden, r.eps);
#pragma unroll
    for (int k = 0; k < FOURS; k++) {
        const float4 v = plus(x.v[k], times(h.v[k], scale, norm.v[k]));
        x.v[k] = make_float4(v.x * r.scalar, v.y * r.scalar, v.z * r.scalar, v.w * r.scalar);
    }
    return x;
}

/* Several tokens: settles the residual stream of each, in one block, and writes up to three norms
 * of it.  The blocks bring `next`, what is read next.  grid (tokens); STREAM_THREADS threads;
 * dynamic shared memory: floats [spare_floats(hidden)].  The kernel before writes r.a and r.b; the
 * next one may read the norms and r.to after its ptx_grid_wait. */
__global__ static void __launch_bounds__(STREAM_THREADS)
    norm_kernel(const __grid_constant__ Residual r, int hidden, NormTo a, NormTo b, NormTo c,
                const __grid_constant__ Next next) {
    DYNAMIC_SHARED(float, x);
    SHARED(float, red, [32]);
    const int t = blockIdx.x, width = padded(hidden);
    for (const float *norm : {r.norm_a, r.norm_b, r.norm, a.norm, b.norm, c.norm})
        prefetch(norm, hidden);
    bring_next(next);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (spare_floats(hidden)) {         /* a hidden size that does not fit into registers */
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
    const Fours s = settle_fours(r, t, hidden, red);
    const float scale = rms_of(block_sum2(squares(s), 0, red).x, hidden, r.eps);
    auto column = [](int k) { return 4 * (int)(threadIdx.x + k * STREAM_THREADS); };
#pragma unroll
    for (int k = 0; k < FOURS; k++)
        if (r.to && column(k) < hidden) *(float4 *)(r.to + (size_t)t * hidden + column(k)) = s.v[k];
    auto write = [&](const NormTo &to) {
        if (!to.to) return;
        const Fours norm = load_fours(to.norm, hidden);
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            float4 v = times(s.v[k], scale * to.factor, norm.v[k]);
            for (int p = 0; p < to.parts && column(k) < width; p++)
                *(uint2 *)(to.to + ((size_t)p * gridDim.x + t) * width + column(k)) = take4(v);
        }
    };
    write(a);
    write(b);
    write(c);
}

/* h [hidden] = RMSNorm(x', norm) of one token.  One block; dynamic shared memory: floats [hidden].
 * Reads r after ptx_grid_wait. */
__global__ static void hidden_kernel(const __grid_constant__ Residual r, int hidden,
                                     const float *norm, float *h) {
    DYNAMIC_SHARED(float, x);
    SHARED(float, red, [32]);
    ptx_grid_wait();
    settle(r, 0, hidden, x, red);
    float scale = rms_scale(x, hidden, r.eps, red);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) h[i] = x[i] * scale * norm[i];
}

#endif
