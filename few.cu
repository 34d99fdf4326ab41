/* few.cu - steps of 2 to 8 tokens on the GPU: drafts that are verified, and the ends of prompts.
 *
 * As for one token the time is that of reading the weights, so they stream as in stream.cu.  Of the
 * eight columns that an mma has for tokens, one token takes three (its exact parts); here up to
 * eight tokens take one each, rounded to BF16, or two tokens take three each.  So all tokens are
 * multiplied with the instructions that one would take.
 *
 * A layer takes eight launches: a norm; q, k, v; attention, and what joins its partial results; o;
 * two norms and the router; gate and up of the dense MLP and of the experts; their downs.  Where
 * attention is not fused (AttendPlan: a global layer from 3 tokens on, or a float32 cache),
 * norm_rope_kernel is a ninth.  A kernel of
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
 * first of them also writes x' to r.to, which is not r.x but may be NULL, and up to two norms of x'
 * to vectors.  Blocks without a share of the router only bring what is read next, as one
 * multiprocessor cannot begin so many loads at once.
 * What the kernels ahead wrote is read after ptx_grid_wait.
 * grid (tokens, blocks for a token); STREAM_THREADS threads; dynamic shared memory: floats
 * [hidden].
 *
 * There are two ways.  `narrow`: x' is in the threads' registers, and so are the router's rows.
 * Otherwise (x' is too long, or the router is not BF16) x' is wide_x in shared memory.
 *   1. Before ptx_grid_wait: the weights of the norms go to the L2 cache; narrow: the router's rows
 *      go to registers, and `ahead` bytes of `next` to the L2 cache (bring_ahead).
 *   2. x', and the scale of its RMSNorm.
 *   3. The token's first block writes x' and its norms.
 *   4. Wide: the router's scores, a warp for a row; then the kernel ends.
 *   5. Narrow: each warp has a part of each row's sum; after a barrier one thread adds up a row's
 *      parts. */
__global__ static void __launch_bounds__(STREAM_THREADS, 2)
    few_norm_kernel(const __grid_constant__ Residual r, int hidden, int parts,
                    const __grid_constant__ VectorTo a, const __grid_constant__ VectorTo b,
                    const __grid_constant__ Router router, const __grid_constant__ Weight next,
                    int ahead) {
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
    bring_ahead(next, ahead);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (share && first_row == end_row) return;

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
            if (narrow && r.to && column(k) < hidden) *(float4 *)(to + column(k)) = x.v[k];
        }
        for (int i = threadIdx.x; !narrow && r.to && i < hidden; i += STREAM_THREADS)
            to[i] = wide_x[i];
        auto write = [&](const VectorTo &norm) {
            if (!norm.to) return;
            const int stride = vector_stride(hidden);
            const Vector y = {norm.to + (size_t)t * parts * stride, stride};
            if (narrow)
                put_fours(y, 0, x, scale, load_fours(norm.norm, hidden), hidden, norm.packed,
                          parts);
            uint32_t *at = place4(y, norm.packed);
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
    SHARED(int, at, [3]);               /* where their rows begin in a row of `out` */
    const int cols = p.w[0].cols, rows = p.tokens.n * p.tokens.parts;
    const int n_strips = 1 + (p.w[1].data != NULL) + (p.w[2].data != NULL);
    for (int c = 0; c < cols; c += p.columns) {
        const int i = threadIdx.x;
        if (i < n_strips) {
            strip[i] = columns_of(share_of(p.w[i], 0, p.packed), p.w[i], c, p.columns);
            at[i] = p.at[i] + share_begin(p.w[i].rows);
        }
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
            float *to = p.out + (size_t)token * p.pitch + at[i] + row;
            if (c) sum += *to;
            *to = sum;
            if (i == 1 && p.again) to[p.again] = sum;
        };
        stream<DEPTH>(feed, strip, y, y, p.tokens, (Edge *)(y.at + rows * y.stride), done,
                      [] {});
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
    uint8_t *routes;                    /* routes_bytes: what few_up_kernel chose, for the other */
    float *h1, *expert_out;             /* downs: [n][hidden], [n][top_k][hidden] */
} FewMlp;

/* The experts that the tokens of a step chose, in each block's shared memory, or in the GPU's: both
 * arrays follow each other in routes_bytes of it. */
typedef struct {
    int8_t *choice;     /* [padded(n_experts)][STREAMED_TOKENS] which choice of it, or -1 */
    int *distinct;      /* the chosen ones; [padded(n_experts)]: how many; 3 that nobody reads */
} Routes;

__host__ __device__ static inline int routes_bytes(int n_experts) {
    const int each = STREAMED_TOKENS + (int)sizeof(int);
    return padded(n_experts) * each + 4 * (int)sizeof(int);     /* a multiple of 16 */
}
__device__ static inline Routes routes_at(uint8_t *at, int n_experts) {
    return {(int8_t *)at, (int *)(at + padded(n_experts) * STREAMED_TOKENS)};
}

/* A block's share of the rows of all chosen experts, which are `rows` each: rows from .. from + n -
 * 1 of experts first .. first + experts - 1 of the list. */
typedef struct {
    int rows, from, n, first, experts;
} ExpertShare;

__device__ static inline ExpertShare expert_share(int n_distinct, int rows) {
    ExpertShare s = {rows, share_begin(n_distinct * rows), 0, 0, 0};
    s.n = share_end(n_distinct * rows) - s.from;
    s.first = s.from / rows;
    while (s.n && (s.first + s.experts) * rows < s.from + s.n) s.experts++;
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
           most * STREAMED_TOKENS * sizeof(int) + routes_bytes(m.n_experts);
}
__device__ static inline FewShared few_at(void *shared, const FewMlp &m) {
    const int most = most_experts(m, gridDim.x);
    FewShared f;
    f.edges = (Edge *)shared;
    f.strip = (Strip *)(f.edges + n_edges(m.tokens.n));
    f.pair = (int *)(f.strip + 2 + 2 * most);
    f.routes = routes_at((uint8_t *)(f.pair + most * STREAMED_TOKENS), m.n_experts);
    return f;
}

/* The warp that finds the block's share of the experts' rows, while the others begin to stream. */
#define LISTER (STREAM_WARPS - 1)
/* The barrier of warps that the lister waits for, or that do not wait for the lister. */
#define LISTER_BARRIER 1

/* Warp `token` makes that token's choice, in each block: f.routes.choice.  Block 0 writes the
 * choice down as well.  With m.slots, experts without data are left out, and nothing is written
 * down. */
__device__ static inline void choose_for_token(const FewMlp &m, const Layer &l, int token,
                                               const FewShared &f) {
    const int lane = threadIdx.x % 32, pair = token * m.top_k + lane;
    const float *scores = m.score + (size_t)token * m.n_experts;
    int expert = 0;
    float weight = 0;
    choose(load_scores(scores, l.per_expert_scale, m.n_experts), m.n_experts, m.top_k, &expert,
           &weight);
    if (lane >= m.top_k) return;
    if (!m.slots || l.expert_gate[expert].data)
        f.routes.choice[expert * STREAMED_TOKENS + token] = (int8_t)lane;
    if (blockIdx.x || m.slots) return;
    m.expert[pair] = expert;
    m.weight[pair] = weight;
}

/* Nobody has chosen an expert.  The whole block; a barrier follows. */
__device__ static inline void clear_routes(const FewMlp &m, const FewShared &f) {
    for (int i = threadIdx.x; i < padded(m.n_experts) * STREAMED_TOKENS / 4; i += STREAM_THREADS)
        ((int *)f.routes.choice)[i] = -1;
}

/* The lister lists the experts that have been chosen: f.routes.distinct.  In block 0 it writes the
 * routes down as well. */
__device__ static inline void list_routes(const FewMlp &m, const FewShared &f) {
    const int lane = threadIdx.x % 32;
    int *distinct = f.routes.distinct, n = 0;
    for (int e = lane; e < padded(m.n_experts); e += 32) {
        const uint2 of = *(const uint2 *)(f.routes.choice + e * STREAMED_TOKENS);
        const bool chosen = (of.x & of.y) != ~0u;
        const unsigned all = __ballot_sync(0xffffffffu, chosen);
        if (chosen) distinct[n + __popc(all & ((1u << lane) - 1))] = e;
        n += __popc(all);
    }
    if (lane == 0) distinct[padded(m.n_experts)] = n;
    __syncwarp();
    if (blockIdx.x) return;
    for (int i = 16 * lane; i < routes_bytes(m.n_experts); i += 16 * 32)
        *(uint4 *)(m.routes + i) = *(const uint4 *)((const uint8_t *)f.routes.choice + i);
}

/* The lister of few_down_kernel: f.routes = what list_routes has written down. */
__device__ static inline void load_routes(const FewMlp &m, const FewShared &f) {
#pragma unroll 4
    for (int i = 16 * (threadIdx.x % 32); i < routes_bytes(m.n_experts); i += 16 * 32)
        *(uint4 *)((uint8_t *)f.routes.choice + i) = __ldcg((const uint4 *)(m.routes + i));
    __syncwarp();
}

/* The lister finds the block's share of the rows of all chosen experts, `rows` each, and which
 * tokens chose its experts: f.pair. */
__device__ static inline ExpertShare share_routes(const FewMlp &m, int rows, const FewShared &f) {
    const int *distinct = f.routes.distinct;
    const ExpertShare s = expert_share(distinct[padded(m.n_experts)], rows);
    for (int i = threadIdx.x % 32; i < s.experts * STREAMED_TOKENS; i += 32) {
        const int token = i % STREAMED_TOKENS, e = distinct[s.first + i / STREAMED_TOKENS];
        const int k = f.routes.choice[e * STREAMED_TOKENS + token];
        f.pair[i] = k < 0 ? -1 : token * m.top_k + k;
    }
    return s;
}

/* gelu(gate) * up of the dense MLP -> act, and of each token's experts -> expert_act.  The dense
 * MLP's weights come first, as they need not wait for the choice.  Vectors and scores, which the
 * kernel ahead wrote, are read after ptx_grid_wait.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring,
 * for the dense MLP and for the experts a vector of hidden numbers of all tokens, few_bytes.
 *   1. A warp for each token makes the choice of experts.  All begin to stream the block's rows of
 *      the dense MLP, and the vectors come.  ptx_grid_wait comes before that, as this kernel cannot
 *      begin before the one ahead has ended: see above.
 *   2. The lister finds the block's share of the experts' rows as soon as the choices are made.
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
    const int i = threadIdx.x, warp = i / 32;
    SHARED(ExpertShare, found);         /* by the lister */

    /* 1. The choice, the dense MLP's weights, and the vectors. */
    if (i < dense) f.strip[i] = share_of(i ? l.up : l.gate, 0, m.packed);
    if (m.n_experts) clear_routes(m, f);
    __syncthreads();
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (m.n_experts && warp < n) {
        choose_for_token(m, l, warp, f);
        __syncwarp();                   /* all lanes' choices are written */
        ptx_bar_arrive(LISTER_BARRIER, 32 * (n + 1));
    }
    Feed feed = begin_stream<DEPTH>(shared, f.strip, dense, m.n_experts > 0);
    prefetch((const float *)l.expert_gate, m.n_experts * (int)sizeof(Weight) / 4);
    prefetch((const float *)l.expert_up, m.n_experts * (int)sizeof(Weight) / 4);
    prefetch((const float *)l.expert_down, m.n_experts * (int)sizeof(Weight) / 4);
    if (m.dense) copy_rows(y, m.y, rows);
    if (m.n_experts) copy_rows(y_experts, m.y_experts, rows);

    /* 2. The share of the experts' rows. */
    if (m.n_experts && warp == LISTER) {
        ptx_bar_sync(LISTER_BARRIER, 32 * (n + 1));
        list_routes(m, f);
        const ExpertShare its = share_routes(m, m.size, f);
        for (int k = i % 32; k < 2 * its.experts; k += 32) {
            const int e = f.routes.distinct[its.first + k / 2];
            const Weight &w = (k % 2 ? l.expert_up : l.expert_gate)[e];
            f.strip[dense + k] = strip_of(w, first_row(its, k / 2), end_row(its, k / 2), 0,
                                          m.packed_experts);
        }
        if (i % 32 == 0) found = its;
    }
    const int from = share_begin(inner), n_rows = share_end(inner) - from;
    ptx_cp_async_wait<0>();
    __syncthreads();
    ExpertShare s = {};
    if (m.n_experts) s = found;

    /* 3. The products. */
    if (m.n_experts) also_stream<DEPTH>(feed, f.strip, dense, dense + 2 * s.experts);
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
    stream<DEPTH>(feed, f.strip, y, y_experts, m.tokens, f.edges, done, [&] {
        if (m.dense) bring_ahead(l.down, AHEAD_OF_DOWN);
    });
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
 * next kernel adds up (Residual).  The choice is few_up_kernel's.  Vectors and routes are read
 * after ptx_grid_wait.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring, a
 * vector of intermediate numbers for the dense MLP, a vector of `size` numbers for each expert of
 * the share, of all tokens each, few_bytes.
 *   1. The lister reads the routes and finds the block's share of the experts' rows, while the
 *      others begin to stream the block's rows of the dense MLP.
 *   2. The vectors that the share needs come.
 *   3. The experts' rows stream after the dense MLP's. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, 1)
    few_down_kernel(const __grid_constant__ Layer l, const __grid_constant__ FewMlp m) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(ExpertShare, found);         /* by the lister */
    const int hidden = l.down.rows, inner = l.down.cols, n = m.tokens.n;
    const int rows = n * m.tokens.parts, dense = m.dense ? 1 : 0;
    const Vector y = vector_at(shared + ring_bytes(DEPTH), inner);
    const Vector y_experts = vector_at(y.at + (m.dense ? rows * y.stride : 0), m.size);
    const int of_expert = rows * y_experts.stride;
    const FewShared f = few_at(y_experts.at + most_experts(m, gridDim.x) * of_expert, m);
    const int i = threadIdx.x, warp = i / 32;
    Feed feed;

    /* 1. The share of the experts' rows, and the dense MLP's weights. */
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (m.dense) copy_rows(y, m.act, rows);
    if (warp == LISTER) {
        load_routes(m, f);
        const ExpertShare its = share_routes(m, hidden, f);
        for (int k = i % 32; k < its.experts; k += 32)
            f.strip[dense + k] = strip_of(l.expert_down[f.routes.distinct[its.first + k]],
                                          first_row(its, k), end_row(its, k), k * of_expert,
                                          m.packed_experts_down);
        if (i % 32 == 0) found = its;
    } else {
        if (i < dense) f.strip[i] = share_of(l.down, 0, m.packed_down);
        ptx_bar_sync(LISTER_BARRIER, STREAM_THREADS - 32);
        feed = begin_stream<DEPTH>(shared, f.strip, dense, true);
    }
    __syncthreads();
    const ExpertShare s = found;

    /* 2. The experts' vectors, a warp for an expert and a token; a vector is `pieces` copies. */
    const int pieces = m.tokens.parts * y_experts.stride / 8;
    for (int k = warp; k < s.experts * STREAMED_TOKENS; k += STREAM_WARPS) {
        const int pair = f.pair[k], token = k % STREAMED_TOKENS;
        uint16_t *to = y_experts.at + (k / STREAMED_TOKENS * n + token) * pieces * 8;
        for (int piece = i % 32; pair >= 0 && piece < pieces; piece += 32)
            ptx_cp_async16(to + 8 * piece, m.expert_act + 8 * (pair * pieces + piece));
    }
    ptx_cp_async_commit();
    ptx_cp_async_wait<0>();
    __syncthreads();

    /* 3. The products.  The lister begins to stream, too. */
    if (warp == LISTER) feed = begin_stream<DEPTH>(shared, f.strip, dense, true);
    also_stream<DEPTH>(feed, f.strip, dense, dense + s.experts);
    const int first_h1 = share_begin(hidden);
    auto done = [&](int i, int row, int token, float sum) {
        if (i < dense) {
            m.h1[(size_t)token * hidden + first_h1 + row] = sum;
            return;
        }
        const int pair = f.pair[(i - dense) * STREAMED_TOKENS + token];
        if (pair >= 0) m.expert_out[(size_t)pair * hidden + first_row(s, i - dense) + row] = sum;
    };
    stream<DEPTH>(feed, f.strip, y, y_experts, m.tokens, f.edges, done, [] {});
}

#endif
