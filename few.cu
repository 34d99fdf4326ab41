/* few.cu - steps of 2 to 8 tokens on the GPU: drafts that are verified, and the ends of prompts.
 *
 * As for one token the time is that of reading the weights, so they stream as in stream.cu.  Of the
 * eight rows that an mma has for a vector, one token takes three (its exact parts); here up to
 * eight tokens take one each, rounded to BF16, or two tokens take three each.  So all tokens are
 * multiplied with the instructions that one would take.
 *
 * A layer takes seven launches: a norm; q, k, v; attention; o; two norms and the router; gate and
 * up of the dense MLP and of the experts; their downs.  Where attention is not fused (AttendPlan: a
 * global layer from 3 tokens on, or a float32 cache), norm_rope_kernel is an eighth.  A kernel of
 * norms writes the vectors for all blocks of the next one, as each block would take n times as long
 * as for one token.  Each expert that at least one of the tokens chose is read once.  Its sums are
 * added up for all tokens, as that costs nothing, and those of tokens that did not choose it are
 * thrown away. */
#ifndef FEW_CU
#define FEW_CU

#include "gpu.h"
#include "moe.cu"
#include "product.h"
#include "residual.cu"
#include "stream.cu"

/* ---- norms and the router ---- */

/* Where a norm of each token goes: a vector in the GPU's memory, in the order of Vector; to NULL:
 * nowhere. */
typedef struct {
    const float *norm;
    uint16_t *to;
    int packed;
} VectorTo;

/* The router: score[t][e] = w[e] . (RMSNorm(x[t], scale) * factor), in float32.  w.data NULL: no
 * router. */
typedef struct {
    Weight w;
    const float *scale;
    float factor, *score;
} Router;

/* Rows of the router that a block takes: they are 16 registers of each thread.  A guess: nobody has
 * timed other values.  Compare bench/gpusim --step verify. */
#define ROUTER_ROWS 4

__device__ static inline float4 four_bf16(uint2 v) {
    return make_float4(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y));
}

__device__ static inline float dot4(float4 a, float4 b) {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

/* Settles the residual stream of token blockIdx.x (see Residual).  Each of the token's gridDim.y
 * blocks does that for itself, and takes a share of at most ROUTER_ROWS of the router's rows.  The
 * first of them also writes x' to r.to, which is not r.x, and up to two norms of x' to vectors.
 * What the kernels ahead wrote is read after ptx_grid_wait.
 * grid (tokens, blocks for a token); STREAM_THREADS threads; dynamic shared memory: floats
 * [hidden].
 *
 * There are two ways.  `narrow`: x' is in the threads' registers, and so are the router's rows.
 * Otherwise (x' is too long, or the router is not BF16) x' is wide_x in shared memory.
 *   1. Before ptx_grid_wait: the weights of the norms go to the L2 cache; narrow: the router's rows
 *      go to registers.
 *   2. x', and the scale of its RMSNorm.
 *   3. The token's first block writes x' and its norms.
 *   4. Wide: the router's scores, a warp for a row; then the kernel ends.
 *   5. Narrow: each warp has a part of each row's sum; after a barrier one thread adds up a row's
 *      parts. */
__global__ static void __launch_bounds__(STREAM_THREADS, 2)
    few_norm_kernel(const __grid_constant__ Residual r, int hidden, int parts,
                    const __grid_constant__ VectorTo a, const __grid_constant__ VectorTo b,
                    const __grid_constant__ Router router) {
    DYNAMIC_SHARED(float, wide_x);
    SHARED(float, red, [32]);
    SHARED(float, sums, [ROUTER_ROWS][STREAM_WARPS]);
    auto column = [](int k) { return 4 * (int)(threadIdx.x + k * STREAM_THREADS); };
    const int t = blockIdx.x, shares = gridDim.y, share = blockIdx.y;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_row = router.w.data ? router.w.rows * share / shares : 0;
    const int end_row = router.w.data ? router.w.rows * (share + 1) / shares : 0;
    const bool narrow = !spare_floats(hidden) && (!router.w.data || router.w.dtype == DT_BF16);
    /* 1. What the kernel ahead does not write. */
    prefetch(r.norm_a, hidden);
    prefetch(r.norm_b, hidden);
    prefetch(r.norm, hidden);
    prefetch(a.norm, hidden);
    prefetch(b.norm, hidden);
    uint2 numbers[ROUTER_ROWS][FOURS] = {};
    Fours router_scale = {};
    if (narrow && first_row < end_row) {
        router_scale = load_fours(router.scale, hidden);
#pragma unroll
        for (int i = 0; i < ROUTER_ROWS * FOURS; i++) {
            const int row = min(first_row + i / FOURS, end_row - 1), c = column(i % FOURS);
            const uint8_t *data = router.w.data + (size_t)row * row_bytes(router.w);
            if (c < hidden) numbers[i / FOURS][i % FOURS] = *(const uint2 *)(data + 2 * c);
        }
    }
    ptx_grid_wait();
    ptx_grid_launch_dependents();

    /* 2. x' and the scale of its norm. */
    Fours x = {};
    if (narrow) x = settle_fours(r, t, hidden, red);
    else settle(r, t, hidden, wide_x, red);
    const float scale = narrow ? rms_of(block_sum2(squares(x), 0, red).x, hidden, r.eps)
                               : rms_scale(wide_x, hidden, r.eps, red);

    /* 3. x' and its norms go to memory. */
    if (share == 0) {
        float *to = r.to + (size_t)t * hidden;
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            if (narrow && column(k) < hidden) *(float4 *)(to + column(k)) = x.v[k];
        }
        for (int i = threadIdx.x; !narrow && i < hidden; i += STREAM_THREADS) to[i] = wide_x[i];
        auto write = [&](const VectorTo &norm) {
            if (!norm.to) return;
            const int stride = vector_stride(hidden);
            const Vector y = {norm.to + (size_t)t * parts * stride, stride};
            if (narrow)
                put_fours(y, 0, x, scale, load_fours(norm.norm, hidden), hidden, norm.packed,
                          parts);
            uint32_t *at = place4(y);
#pragma unroll 1
            for (int i = 4 * threadIdx.x; !narrow && i < wide(hidden); i += 4 * STREAM_THREADS) {
                const float4 v = load4<false>(wide_x, i, hidden);
                const float4 by = load4<false>(norm.norm, i, hidden);
                put4(at, stride / 2, times(v, scale, by), norm.packed, parts);
                at += 2 * STREAM_THREADS;
            }
        };
        write(a);
        write(b);
    }

    /* 4. The router's scores, wide: a warp takes a row. */
    float *score = router.score + (size_t)t * router.w.rows;
    if (!narrow) {
        for (int row = first_row + warp; row < end_row; row += STREAM_WARPS) {
            float sum = 0;
            for (int c = lane; c < hidden; c += 32)
                sum += wide_x[c] * scale * router.factor * router.scale[c] *
                       number_at(router.w, row, c);
            sum = warp_sum(sum);
            if (lane == 0) score[row] = sum;
        }
        return;
    }

    /* 5. The router's scores, narrow. */
    if (first_row == end_row) return;
    Fours v;
#pragma unroll
    for (int k = 0; k < FOURS; k++)
        v.v[k] = times(x.v[k], scale * router.factor, router_scale.v[k]);
#pragma unroll
    for (int i = 0; i < ROUTER_ROWS; i++) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < FOURS; k++) sum += dot4(v.v[k], four_bf16(numbers[i][k]));
        sum = warp_sum(sum);
        if (lane == 0) sums[i][warp] = sum;
    }
    __syncthreads();
    const int row = first_row + (int)threadIdx.x;
    if (threadIdx.x >= ROUTER_ROWS || row >= end_row) return;
    float sum = 0;
    for (int w = 0; w < STREAM_WARPS; w++) sum += sums[threadIdx.x][w];
    score[row] = sum;
}

/* ---- products with vectors that the kernel ahead made ---- */

__host__ __device__ static inline size_t rows_bytes(int rows, int cols) {
    return (size_t)2 * rows * vector_stride(cols);
}

/* Up to three matrices with the same columns (data NULL: none) times the tokens of one vector. */
typedef struct {
    Weight w[3];
    int at[3];                          /* where each one's rows begin in a row of `out` */
    int again;                          /* unless 0, w[1]'s are there again, so much further */
    Tokens tokens;
    int packed;                         /* the vector's order */
    int columns;                        /* that there is room for at once, a multiple of 256 */
    const uint16_t *from;               /* the vector */
    float *out;                         /* [n][pitch] */
    int pitch;
} Rows;

/* The products that p describes; p.from is read after ptx_grid_wait.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring,
 * the vector's rows of min(p.columns, cols) columns, n_edges Edges. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, RESIDENT(DEPTH))
    few_rows_kernel(const __grid_constant__ Rows p) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(Strip, strip, [3]);
    const int cols = p.w[0].cols, rows = p.tokens.n * p.tokens.parts;
    const int n_strips = 1 + (p.w[1].data != NULL) + (p.w[2].data != NULL);
    for (int c = 0; c < cols; c += p.columns) {
        const int i = threadIdx.x;
        if (i < n_strips)
            strip[i] = columns_of(share_of(p.w[i], 0, p.packed), p.w[i], c, p.columns);
        __syncthreads();
        Feed feed = begin_stream<DEPTH>(shared, strip, n_strips);
        if (c == 0) {
            ptx_grid_wait();
            ptx_grid_launch_dependents();
        }
        const int n = min(cols - c, p.columns);
        const Vector y = vector_at(shared + ring_bytes(DEPTH), n);
        copy_columns(y, p.from, vector_stride(cols), c, wide(n), rows);
        ptx_cp_async_wait<0>();
        __syncthreads();
        auto done = [&](int i, int row, int token, float sum) {
            float *to = p.out + (size_t)token * p.pitch + p.at[i] + share_begin(p.w[i].rows) + row;
            if (c) sum += *to;
            *to = sum;
            if (i == 1 && p.again) to[p.again] = sum;
        };
        stream<DEPTH>(feed, strip, y, y, p.tokens, (Edge *)(y.at + rows * y.stride), done);
        __syncthreads();
    }
}

/* ---- the dense MLP and the experts ---- */

/* These two kernels have the registers of a multiprocessor for themselves, though the next one then
 * cannot begin to copy: with 80 the compiler leaves too few of NVFP4's instructions independent of
 * each other, and the two take 58 us of an H200 together instead of 55 (simulated). */

/* What few_up_kernel and few_down_kernel know besides the layer.  Without n_experts they have no
 * experts to do; without `dense` they leave out the dense MLP.  With `slots` they leave out experts
 * without data, and do not write the choice. */
typedef struct {
    Tokens tokens;
    int n_experts, top_k, size, dense, slots;
    int packed, packed_down;            /* the vectors' orders for the dense MLP's matrices, */
    int packed_experts, packed_experts_down;            /* … and for the experts' */
    const float *score;                 /* [n][n_experts] */
    const uint16_t *y, *y_experts;      /* vectors of hidden numbers */
    float *sums, *expert_sums;          /* gate and up: [n][2][intermediate], [n][top_k][2][size] */
    uint16_t *act;                      /* a vector of intermediate numbers */
    uint16_t *expert_act;               /* [n][top_k]: a vector of `size` numbers */
    int *expert;                        /* [n][top_k]: what was chosen, and its weight */
    float *weight;
    float *h1, *expert_out;             /* downs: [n][hidden], [n][top_k][hidden] */
} FewMlp;

/* The experts that the tokens of a step chose, in each block's shared memory. */
typedef struct {
    int8_t *choice;                     /* [n_experts][STREAMED_TOKENS] which choice of it, or -1 */
    int *distinct;                      /* the chosen ones; [padded(n_experts)]: how many */
} Routes;

/* A block's share of the rows of all chosen experts, which are `rows` each: rows from .. from + n -
 * 1 of experts first .. first + experts - 1 of the list. */
typedef struct {
    int rows, from, n, first, experts;
} ExpertShare;

__device__ static inline ExpertShare expert_share(int n_distinct, int rows) {
    ExpertShare s = {rows, share_begin(n_distinct * rows), 0, 0, 0};
    s.n = share_end(n_distinct * rows) - s.from;
    s.first = s.from / rows;
    s.experts = s.n ? (s.from + s.n - 1) / rows - s.first + 1 : 0;
    return s;
}

/* The share's rows of its i-th expert: from the first one on, up to the end. */
__device__ static inline int first_row(const ExpertShare &s, int i) {
    return max(s.from - (s.first + i) * s.rows, 0);
}
__device__ static inline int end_row(const ExpertShare &s, int i) {
    return min(s.from + s.n - (s.first + i) * s.rows, s.rows);
}

/* The most experts in a share of any of `blocks` blocks. */
__host__ __device__ static inline int most_experts(const FewMlp &m, int blocks) {
    const int distinct = m.tokens.n * m.top_k < m.n_experts ? m.tokens.n * m.top_k : m.n_experts;
    return m.n_experts ? distinct / blocks + 2 : 0;
}

/* The shared memory besides ring and vectors. */
typedef struct {
    Edge *edges;
    Strip *strip;                       /* two of the dense MLP, two for each expert of the share */
    int *pair;                          /* [experts][STREAMED_TOKENS] token * top_k + choice; -1 */
    Routes routes;
} FewShared;

__host__ __device__ static inline size_t few_bytes(const FewMlp &m, int blocks) {
    const int most = most_experts(m, blocks);
    return n_edges(m.tokens.n) * sizeof(Edge) + (2 + 2 * most) * sizeof(Strip) +
           most * STREAMED_TOKENS * sizeof(int) +
           padded(m.n_experts) * (STREAMED_TOKENS + sizeof(int)) + sizeof(int);
}
__device__ static inline FewShared few_at(void *shared, const FewMlp &m) {
    const int most = most_experts(m, gridDim.x);
    FewShared f;
    f.edges = (Edge *)shared;
    f.strip = (Strip *)(f.edges + n_edges(m.tokens.n));
    f.pair = (int *)(f.strip + 2 + 2 * most);
    f.routes.choice = (int8_t *)(f.pair + most * STREAMED_TOKENS);
    f.routes.distinct = (int *)(f.routes.choice + padded(m.n_experts) * STREAMED_TOKENS);
    return f;
}

/* What a warp needs for the choice of a token. */
__device__ static inline Scores token_scores(const FewMlp &m, const Layer &l) {
    const int token = min((int)threadIdx.x / 32, m.tokens.n - 1);
    return load_scores(m.score + (size_t)token * m.n_experts, l.per_expert_scale, m.n_experts);
}

/* Each block makes the choices for itself, a warp for a token, and lists the experts of which
 * `experts`, a list of them, has data; `write`: it writes the choices down as well.  Returns the
 * share of experts with so many rows.  Ends with a barrier, behind which f.pair is there, too. */
__device__ static inline ExpertShare find_routes(const FewMlp &m, const Scores &scores, int rows,
                                                 const FewShared &f, const Weight *experts,
                                                 bool write) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int *distinct = f.routes.distinct, expert = 0;
    float weight = 0;
    for (int i = threadIdx.x; i < m.n_experts * STREAMED_TOKENS / 4; i += STREAM_THREADS)
        ((int *)f.routes.choice)[i] = -1;
    if (warp < m.tokens.n) choose(scores, m.n_experts, m.top_k, &expert, &weight);
    __syncthreads();
    if (warp < m.tokens.n && lane < m.top_k) {
        const int pair = warp * m.top_k + lane;
        if (!m.slots || experts[expert].data)
            f.routes.choice[expert * STREAMED_TOKENS + warp] = (int8_t)lane;
        if (write) {
            m.expert[pair] = expert;
            m.weight[pair] = weight;
        }
    }
    __syncthreads();
    if (warp == 0) {
        int n = 0;
        for (int e = lane; e < padded(m.n_experts); e += 32) {
            uint2 of = make_uint2(~0u, ~0u);
            if (e < m.n_experts) of = *(const uint2 *)(f.routes.choice + e * STREAMED_TOKENS);
            const bool chosen = (of.x & of.y) != ~0u;
            const unsigned all = __ballot_sync(0xffffffffu, chosen);
            if (chosen) distinct[n + __popc(all & ((1u << lane) - 1))] = e;
            n += __popc(all);
        }
        if (lane == 0) distinct[padded(m.n_experts)] = n;
    }
    __syncthreads();
    const ExpertShare s = expert_share(distinct[padded(m.n_experts)], rows);
    for (int i = threadIdx.x; i < s.experts * STREAMED_TOKENS; i += STREAM_THREADS) {
        const int token = i % STREAMED_TOKENS, e = distinct[s.first + i / STREAMED_TOKENS];
        const int k = f.routes.choice[e * STREAMED_TOKENS + token];
        f.pair[i] = k < 0 ? -1 : token * m.top_k + k;
    }
    __syncthreads();
    return s;
}

/* gelu(gate) * up of the dense MLP -> act, and of each token's experts -> expert_act.  The dense
 * MLP's weights come first, as they need not wait for the choice.  Vectors and scores, which the
 * kernel ahead wrote, are read after ptx_grid_wait.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring,
 * for the dense MLP and for the experts a vector of hidden numbers of all tokens, few_bytes.
 *   1. Before ptx_grid_wait the block's rows of the dense MLP begin to stream.
 *   2. The vectors come, and the block makes the choice of experts and lists its share of their
 *      rows.
 *   3. These rows stream after the dense MLP's: gate and up of each row -> sums, expert_sums.
 *   4. gelu(gate) * up of the block's own rows, as the vectors of the downs. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, 1)
    few_up_kernel(const __grid_constant__ Layer l, const __grid_constant__ FewMlp m) {
    DYNAMIC_SHARED(uint8_t, shared);
    const int hidden = l.gate.cols, inner = l.gate.rows, n = m.tokens.n;
    const int rows = n * m.tokens.parts, dense = m.dense ? 2 : 0;
    const Vector y = vector_at(shared + ring_bytes(DEPTH), hidden);
    const Vector y_experts = {y.at + (m.dense ? rows * y.stride : 0), y.stride};
    const FewShared f = few_at(y_experts.at + (m.n_experts ? rows * y.stride : 0), m);
    const int i = threadIdx.x;

    /* 1. The dense MLP's weights. */
    if (i < dense) f.strip[i] = share_of(i ? l.up : l.gate, 0, m.packed);
    __syncthreads();
    Feed feed = begin_stream<DEPTH>(shared, f.strip, dense, m.n_experts > 0);
    prefetch(l.per_expert_scale, m.n_experts);
    prefetch((const float *)l.expert_gate, m.n_experts * (int)sizeof(Weight) / 4);
    prefetch((const float *)l.expert_up, m.n_experts * (int)sizeof(Weight) / 4);
    ptx_grid_wait();
    ptx_grid_launch_dependents();

    /* 2. The vectors, and the choice. */
    Scores scores = {};
    if (m.n_experts) scores = token_scores(m, l);       /* first, as much is to be done with them */
    if (m.dense) copy_rows(y, m.y, rows);
    ExpertShare s = {};
    if (m.n_experts) {
        copy_rows(y_experts, m.y_experts, rows);
        s = find_routes(m, scores, m.size, f, l.expert_gate, blockIdx.x == 0 && !m.slots);
        if (i < 2 * s.experts) {
            const int e = f.routes.distinct[s.first + i / 2];
            const Weight &w = (i % 2 ? l.expert_up : l.expert_gate)[e];
            f.strip[dense + i] = strip_of(w, first_row(s, i / 2), end_row(s, i / 2), 0,
                                          m.packed_experts);
        }
    }
    ptx_cp_async_wait<0>();
    __syncthreads();

    /* 3. The products. */
    if (m.n_experts) also_stream<DEPTH>(feed, f.strip, dense, dense + 2 * s.experts);
    const int from = share_begin(inner), n_rows = share_end(inner) - from;
    auto done = [&](int i, int row, int token, float sum) {
        if (i < dense) {
            m.sums[(size_t)(2 * token + i) * inner + from + row] = sum;
            return;
        }
        i -= dense;
        const int pair = f.pair[i / 2 * STREAMED_TOKENS + token];
        if (pair < 0) return;
        m.expert_sums[(size_t)(2 * pair + i % 2) * m.size + first_row(s, i / 2) + row] = sum;
    };
    stream<DEPTH>(feed, f.strip, y, y_experts, m.tokens, f.edges, done);
    __syncthreads();

    /* 4. gelu(gate) * up. */
    auto join = [&](const float *sums, int size, int column, uint16_t *to, int packed) {
        const int stride = vector_stride(size);
        const float v = gelu_times(sums[column], sums[size + column]);
        put_global(to, stride, column, v, packed, m.tokens.parts);
    };
    for (int at = threadIdx.x; dense && at < n * n_rows; at += STREAM_THREADS) {
        const int token = at / n_rows;
        join(m.sums + (size_t)2 * token * inner, inner, from + at % n_rows,
             m.act + (size_t)token * m.tokens.parts * vector_stride(inner), m.packed_down);
    }
    for (int e = 0; e < s.experts; e++) {
        const int first = first_row(s, e), count = end_row(s, e) - first;
        for (int at = threadIdx.x; at < n * count; at += STREAM_THREADS) {
            const int pair = f.pair[e * STREAMED_TOKENS + at / count];
            if (pair >= 0)
                join(m.expert_sums + (size_t)2 * pair * m.size, m.size, first + at % count,
                     m.expert_act + (size_t)pair * m.tokens.parts * vector_stride(m.size),
                     m.packed_experts_down);
        }
    }
}

/* The dense MLP's down of act -> h1, and the experts' downs of expert_act -> expert_out, which the
 * next kernel adds up (Residual).  The choice is made once more, while the dense MLP's vector is on
 * its way.  Vectors and scores are read after ptx_grid_wait.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring, a
 * vector of intermediate numbers for the dense MLP, a vector of `size` numbers for each expert of
 * the share, of all tokens each, few_bytes. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, 1)
    few_down_kernel(const __grid_constant__ Layer l, const __grid_constant__ FewMlp m) {
    DYNAMIC_SHARED(uint8_t, shared);
    const int hidden = l.down.rows, inner = l.down.cols;
    const int rows = m.tokens.n * m.tokens.parts, dense = m.dense ? 1 : 0;
    const Vector y = vector_at(shared + ring_bytes(DEPTH), inner);
    const Vector y_experts = vector_at(y.at + (m.dense ? rows * y.stride : 0), m.size);
    const int of_expert = rows * y_experts.stride;
    const FewShared f = few_at(y_experts.at + most_experts(m, gridDim.x) * of_expert, m);
    const int i = threadIdx.x;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    const Scores scores = token_scores(m, l);
    if (m.dense) copy_rows(y, m.act, rows);
    const ExpertShare s = find_routes(m, scores, hidden, f, l.expert_down, false);
    if (i < dense) f.strip[i] = share_of(l.down, 0, m.packed_down);
    if (i < s.experts)
        f.strip[dense + i] = strip_of(l.expert_down[f.routes.distinct[s.first + i]],
                                      first_row(s, i), end_row(s, i), i * of_expert,
                                      m.packed_experts_down);
    __syncthreads();
    Feed feed = begin_stream<DEPTH>(shared, f.strip, dense, true);
    also_stream<DEPTH>(feed, f.strip, dense, dense + s.experts);
    for (int e = 0; e < s.experts * m.tokens.n; e++) {          /* an expert and a token */
        const int pair = f.pair[e / m.tokens.n * STREAMED_TOKENS + e % m.tokens.n];
        const int parts = m.tokens.parts;
        const Vector to = {y_experts.at + e * parts * y_experts.stride, y_experts.stride};
        if (pair >= 0) copy_rows(to, m.expert_act + (size_t)pair * parts * to.stride, parts);
    }
    ptx_cp_async_wait<0>();
    __syncthreads();
    auto done = [&](int i, int row, int token, float sum) {
        if (i < dense) {
            m.h1[(size_t)token * hidden + share_begin(hidden) + row] = sum;
            return;
        }
        const int pair = f.pair[(i - dense) * STREAMED_TOKENS + token];
        if (pair >= 0) m.expert_out[(size_t)pair * hidden + first_row(s, i - dense) + row] = sum;
    };
    stream<DEPTH>(feed, f.strip, y, y_experts, m.tokens, f.edges, done);
}

#endif
