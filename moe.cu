/* moe.cu - the dense MLP, the router and the experts on the GPU.
 *
 * One token takes three launches: gate and up of the dense MLP beside the router's scores; the
 * choice of experts, their gate and up beside the dense down; the experts' down.  Several tokens
 * are sorted by expert, so that an expert's weights are read once for all of its tokens. */
#ifndef MOE_CU
#define MOE_CU

#include "gpu.h"
#include "product.h"
#include "residual.cu"
#include "stream.cu"

/* One token, what needs nothing but x: gelu(gate) * up of the dense MLP -> act, a vector that is
 * split for `down` (see stream.cu), and the router's scores -> score [n_experts].  Both see the
 * same norm of x with different weights.  n_experts 0: no router.  r is read after ptx_grid_wait.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring, a
 * Vector of wide(hidden) columns or, with experts, twice as many, and the larger of floats [2][rows
 * of the block] and floats [spare_floats(hidden)]. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, RESIDENT(DEPTH))
    mlp_rows_kernel(const __grid_constant__ Layer l, const __grid_constant__ Residual r,
                    int n_experts, uint16_t *act, float *score) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(Strip, strip, [3]);
    SHARED(float, red, [32]);
    const int hidden = l.gate.cols, n_strips = n_experts ? 3 : 2;
    const int packed = is_nibbles(l.gate) && is_nibbles(l.up);
    const int from = share_begin(l.gate.rows), rows = share_end(l.gate.rows) - from;
    auto matrix = [&](int i) -> const Weight & {
        const Weight &up_or_router = i == 1 ? l.up : l.router;
        return i == 0 ? l.gate : up_or_router;
    };
    const Normed normed = {l.pre_mlp_norm, n_experts ? l.router_scale : NULL, 1 / sqrtf(hidden),
                           packed};
    if (DEPTH < EVERY_KIND) prefetch_norms(r, hidden, normed);
    if ((int)threadIdx.x < n_strips) {
        int router = threadIdx.x == 2;
        const int column = router ? wide(hidden) : 0;
        strip[threadIdx.x] = share_of(matrix(threadIdx.x), column, router ? 0 : packed);
    }
    __syncthreads();
    Feed feed = begin_stream<DEPTH>(shared, strip, n_strips);
    if (DEPTH > EVERY_KIND) prefetch_norms(r, hidden, normed);
    Vector y = vector_at(shared + ring_bytes(DEPTH), (n_experts ? 2 : 1) * wide(hidden));
    float *sums = (float *)behind(y);
    settle_and_norm(r, hidden, y, normed, red, sums, [] {});
    __syncthreads();
    const int first_score = share_begin(n_experts);
    auto done = [&](int i, int row, float sum) {
        if (i == 2) score[first_score + row] = sum;
        else sums[i * rows + row] = sum;
    };
    stream<DEPTH>(feed, strip, y, y, done, [&] { bring_ahead(l.down, AHEAD_OF_DOWN); });
    __syncthreads();
    for (int i = threadIdx.x; i < rows; i += STREAM_THREADS)
        put_global(act, vector_stride(l.down.cols), from + i, gelu_times(sums[i], sums[rows + i]),
                   is_nibbles(l.down));
}

/* ---- the choice of experts ---- */

/* Experts of a lane of the warp that chooses: 32 lanes have the 128 of the 26B-A4B.  open.cu
 * refuses a model with more. */
#define EACH_LANE 4

/* A token's scores and per_expert_scale [n_experts], or zeros for NULL, as one lane has them: index
 * j is expert lane + 32 j.  Where there is no such expert the score is -inf. */
typedef struct {
    float score[EACH_LANE], scale[EACH_LANE];
} Scores;

__device__ static inline Scores load_scores(const float *score, const float *per_expert_scale,
                                            int n_experts) {
    Scores s;
#pragma unroll
    for (int j = 0; j < EACH_LANE; j++) {
        int e = threadIdx.x % 32 + 32 * j;
        s.score[j] = e < n_experts ? __ldcg(score + e) : -INFINITY;
        s.scale[j] = per_expert_scale && e < n_experts ? per_expert_scale[e] : 0;
    }
    return s;
}

/* Probability p as a number whose order is that of the probabilities: the bits of floats >= 0 are
 * in their order.  1 is NaN, which comes last; 0 is left for experts that are not there, or
 * chosen. */
__device__ static inline unsigned order_of(float p) { return p >= 0 ? __float_as_uint(p) + 2 : 1; }

/* Chooses the top_k (at most 32) experts of one token.  All lanes of a warp call it; lane k gets
 * the k-th expert and its weight, k < top_k.
 *   1. The probabilities: softmax of the scores.
 *   2. top_k times: the largest key of all lanes, and the first expert that has it (so on a tie the
 *      lower index comes first).  Its lane takes the expert out.
 *   3. The weights: the chosen probabilities, divided by their sum, times per_expert_scale.  weight
 *      NULL: they are not wanted. */
__device__ static inline void choose(const Scores &s, int n_experts, int top_k, int *expert,
                                     float *weight) {
    const int lane = threadIdx.x % 32;
    float p[EACH_LANE], max = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < EACH_LANE; j++) max = fmaxf(max, s.score[j]);
    for (int w = 16; w; w /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, w));
#pragma unroll
    for (int j = 0; j < EACH_LANE; j++) {
        p[j] = lane + 32 * j < n_experts ? expf(s.score[j] - max) : 0;
        sum += p[j];
    }
    sum = warp_sum(sum);
    unsigned key[EACH_LANE];
#pragma unroll
    for (int j = 0; j < EACH_LANE; j++)
        key[j] = lane + 32 * j < n_experts ? order_of(p[j] / sum) : 0;
    unsigned choice = 0, its_key = 0;   /* this lane's */
    for (int k = 0; k < top_k; k++) {
        unsigned most = key[0], first = ~0u;
#pragma unroll
        for (int j = 1; j < EACH_LANE; j++) most = most > key[j] ? most : key[j];
        most = __reduce_max_sync(0xffffffffu, most);
#pragma unroll
        for (int j = EACH_LANE - 1; j >= 0; j--)
            if (key[j] == most) first = lane + 32 * j;
        const unsigned e = __reduce_min_sync(0xffffffffu, first);
#pragma unroll
        for (int j = 0; j < EACH_LANE; j++)
            if (e == (unsigned)lane + 32 * j) key[j] = 0;
        choice = lane == k ? e : choice;
        its_key = lane == k ? most : its_key;
    }
    if (lane < top_k) *expert = (int)choice;
    if (!weight) return;
    float scale = 0;
#pragma unroll
    for (unsigned j = 0; j < EACH_LANE; j++) {
        const float of_lane = __shfl_sync(0xffffffffu, s.scale[j], choice % 32);
        if (choice / 32 == j) scale = of_lane;
    }
    const float own = its_key > 1 ? __uint_as_float(its_key - 2) : NAN;
    *weight = own / warp_sum(lane < top_k ? own : 0) * scale;
}

/* What experts_up_kernel and experts_down_kernel have in shared memory between the ring and the
 * vectors: choice_bytes. */
__host__ __device__ static inline int choice_bytes(int top_k) {
    return padded((2 * top_k + 1) * (int)sizeof(Strip) + 8 * padded(top_k));
}

typedef struct {
    Strip *strip;                       /* [2 * top_k + 1] */
    float *weight;                      /* [top_k] of the chosen experts */
    int *expert;                        /* [top_k] the chosen experts */
} Choice;

__device__ static inline Choice choice_at(uint8_t *shared, int top_k) {
    Strip *strip = (Strip *)shared;
    float *weight = (float *)(strip + 2 * top_k + 1);
    return {strip, weight, (int *)(weight + padded(top_k))};
}

/* The block's first warp chooses for the block, into c.  After a barrier all warps may read c.
 * slots: NULL, or a list of experts; an expert e that has no data there becomes ~e, which is
 * negative.  per_expert_scale NULL: c.weight is not written. */
__device__ static inline void choose_for_block(const float *score, const float *per_expert_scale,
                                               int n_experts, int top_k, const Weight *slots,
                                               const Choice &c) {
    if (threadIdx.x >= 32) return;
    int expert = 0;
    float weight = 0;
    choose(load_scores(score, per_expert_scale, n_experts), n_experts, top_k, &expert,
           per_expert_scale ? &weight : NULL);
    if ((int)threadIdx.x >= top_k) return;
    if (slots && !slots[expert].data) expert = ~expert;
    c.expert[threadIdx.x] = expert;
    if (per_expert_scale) c.weight[threadIdx.x] = weight;
}

/* ---- the experts of one token ---- */

/* One token: the dense MLP's down of act -> h1 [hidden], and of the chosen experts weight *
 * gelu(gate) * up -> expert_act, a vector that is split for experts_down_kernel, wide(size) columns
 * for each expert.  The dense down's weights are read first, as they need not wait for the choice.
 * Every block makes the choice for itself; block 0 writes it to expert and weight [top_k].  `size`
 * is an expert's number of inner rows.  packed, down_packed: all experts' gates and ups, and all
 * downs, are NVFP4.  slots: experts without data are left out, their part of expert_act is zero,
 * and the choice is not written.  x, score and act are read after ptx_grid_wait.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring,
 * choice_bytes, a Vector of intermediate and one of hidden columns, and the larger of floats
 * [2][rows of the block] and floats [spare_floats(hidden)]. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, RESIDENT(DEPTH))
    experts_up_kernel(const __grid_constant__ Layer l, float eps, int n_experts, int top_k,
                      int size, int packed, int down_packed, int slots, const float *x,
                      const float *score, const uint16_t *act, int *expert, float *weight,
                      uint16_t *expert_act, float *h1) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(float, red, [32]);
    const int hidden = l.down.rows, inner = l.down.cols;
    const Choice c = choice_at(shared + ring_bytes(DEPTH), top_k);
    prefetch(l.pre_experts_norm, hidden);
    prefetch(l.per_expert_scale, n_experts);
    prefetch((const float *)l.expert_gate, n_experts * (int)sizeof(Weight) / 4);
    prefetch((const float *)l.expert_up, n_experts * (int)sizeof(Weight) / 4);
    prefetch((const float *)l.expert_down, n_experts * (int)sizeof(Weight) / 4);
    if (threadIdx.x == 0) c.strip[0] = share_of(l.down, 0, is_nibbles(l.down));
    __syncthreads();
    /* The inner rows of the chosen experts, one expert after the other, are top_k * size rows.
     * This block's share are `rows` of them from row `from` on.  They begin in the chosen expert
     * number `before`.  Each expert of the share has two strips: its gate, then its up. */
    const int from = share_begin(top_k * size), rows = share_end(top_k * size) - from;
    const int before = from / size;
    const int n_strips = rows ? 2 * ((from + rows - 1) / size - before + 1) : 0;
    Residual none = {};
    none.x = x;
    none.eps = eps;
    /* The first warp chooses the experts, and describes this block's share of their rows. */
    auto choose_strips = [&] {
        choose_for_block(score, l.per_expert_scale, n_experts, top_k,
                         slots ? l.expert_gate : NULL, c);
        __syncwarp();
        for (int i = threadIdx.x; threadIdx.x < 32 && i < n_strips; i += 32) {
            const int k = before + i / 2, first = k * size, end = min(from + rows - first, size);
            c.strip[1 + i] = {};
            if (c.expert[k] < 0) continue;
            const Weight w = (i % 2 ? l.expert_up : l.expert_gate)[c.expert[k]];
            c.strip[1 + i] = strip_of(w, max(from - first, 0), end, 0, packed);
        }
    };
    Feed feed = begin_stream<DEPTH>(shared, c.strip, 1, true);
    Vector down_y = vector_at(shared + ring_bytes(DEPTH) + choice_bytes(top_k), inner);
    Vector y = vector_at(behind(down_y), hidden);
    float *sums = (float *)behind(y);
    settle_and_norm(none, hidden, y, {l.pre_experts_norm, NULL, 0, packed}, red, sums,
                    [&] { copy_vector(down_y, act); });
    choose_strips();
    ptx_cp_async_wait<0>();
    __syncthreads();
    also_stream<DEPTH>(feed, c.strip, 1, 1 + n_strips);
    const int k = threadIdx.x;
    if (k < top_k) {
        if (blockIdx.x == 0 && !slots) {
            expert[k] = c.expert[k];
            weight[k] = c.weight[k];
        }
        if (c.expert[k] >= 0) c.weight[k] *= factor(l.expert_down[c.expert[k]]);
    }
    const int first_h1 = share_begin(hidden);
    auto done = [&](int i, int row, float sum) {
        if (i == 0) h1[first_h1 + row] = sum;
        else {
            const int first = max((before + (i - 1) / 2) * size - from, 0);     /* of the strip */
            sums[(i - 1) % 2 * rows + first + row] = sum;
        }
    };
    /* Each warp brings the first bytes of an expert's downs, which the next kernel reads. */
    auto ahead = [&] {
        const int k = threadIdx.x / 32, i = threadIdx.x % 32;
        if (k >= top_k || c.expert[k] < 0) return;
        const Weight &w = l.expert_down[c.expert[k]];
        const int lines = (share_end(hidden) - first_h1) * row_bytes(w) / 128;
        const uint8_t *from = w.data + (size_t)first_h1 * row_bytes(w);
        if (i < lines) ptx_prefetch_l2(from + 128 * i);
    };
    stream<DEPTH>(feed, c.strip, down_y, y, done, ahead);
    __syncthreads();
    for (int i = threadIdx.x; i < rows; i += STREAM_THREADS) {
        const int k = (from + i) / size, column = k * wide(size) + from + i - k * size;
        float v = 0;
        if (c.expert[k] >= 0) v = gelu_times(sums[i], sums[rows + i]) * c.weight[k];
        put_global(expert_act, vector_stride(top_k * wide(size)), column, v, down_packed);
    }
}

/* One token: h2 [hidden] = the sum over the chosen experts of down . expert_act.  chosen: NULL, or,
 * where no kernel begins before the one ahead has ended, the choice that experts_up_kernel has
 * written.  With NULL every block makes the choice once more, before the kernel ahead has ended:
 * the scores are from the kernel ahead of that one.  slots: as in experts_up_kernel; chosen is NULL
 * then.  expert_act is read after ptx_grid_wait.  next: see bring_ahead.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring,
 * choice_bytes, a Vector of top_k * wide(size) columns, floats [top_k][rows of the block]. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, RESIDENT(DEPTH))
    experts_down_kernel(const __grid_constant__ Layer l, int n_experts, int top_k, int size,
                        int packed, int slots, const float *score, const int *chosen,
                        const uint16_t *expert_act, float *h2,
                        const __grid_constant__ Weight next) {
    DYNAMIC_SHARED(uint8_t, shared);
    const Choice c = choice_at(shared + ring_bytes(DEPTH), top_k);
    const int hidden = l.down.rows, from = share_begin(hidden), rows = share_end(hidden) - from;
    if (chosen) {
        for (int k = threadIdx.x; k < top_k; k += STREAM_THREADS) c.expert[k] = chosen[k];
    } else
        choose_for_block(score, NULL, n_experts, top_k, slots ? l.expert_down : NULL, c);
    __syncthreads();
    for (int k = threadIdx.x; k < top_k; k += STREAM_THREADS) {
        if (c.expert[k] < 0) {
            c.strip[k] = {};
            continue;
        }
        const Weight &w = l.expert_down[c.expert[k]];
        c.strip[k] = strip_of(w, from, from + rows, k * wide(size), packed);
        c.strip[k].factor = 1;          /* expert_act is multiplied by it already */
    }
    __syncthreads();
    Feed feed = begin_stream<DEPTH>(shared, c.strip, top_k);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    Vector y = vector_at(shared + ring_bytes(DEPTH) + choice_bytes(top_k), top_k * wide(size));
    float *sums = (float *)behind(y);
    copy_vector(y, expert_act);
    ptx_cp_async_wait<0>();
    __syncthreads();
    auto done = [&](int k, int row, float sum) { sums[k * rows + row] = sum; };
    stream<DEPTH>(feed, c.strip, y, y, done, [&] { bring_ahead(next, AHEAD); });
    __syncthreads();
    for (int row = threadIdx.x; row < rows; row += STREAM_THREADS) {
        float sum = 0;
        for (int k = 0; k < top_k; k++)
            if (c.expert[k] >= 0) sum += sums[k * rows + row];
        h2[from + row] = sum;
    }
}

/* ---- several tokens ---- */

/* The choice for each of n tokens, a warp for a token: expert and weight [n][top_k] from score
 * [n][n_experts], which is read after ptx_grid_wait.  grid (n / WARPS, rounded up), THREADS
 * threads. */
__global__ static void route_kernel(int n, int n_experts, int top_k, const float *score,
                                    const float *per_expert_scale, int *expert, float *weight) {
    const int t = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    ptx_grid_wait();
    if (t >= n) return;
    int its_expert = 0;
    float its_weight;
    const Scores s = load_scores(score + (size_t)t * n_experts, per_expert_scale, n_experts);
    choose(s, n_experts, top_k, &its_expert, &its_weight);
    if (lane >= top_k) return;
    expert[t * top_k + lane] = its_expert;
    weight[t * top_k + lane] = its_weight;
}

/* The sum of v over the threads of the block with a lower index than this one (an exclusive prefix
 * sum).  found: [WARPS] in shared memory, for this call alone.  THREADS threads; a barrier
 * inside. */
__device__ static inline int sum_before(int v, int *found) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int upto = v;
    for (int w = 1; w < 32; w *= 2) {
        int other = __shfl_up_sync(0xffffffffu, upto, w);
        if (lane >= w) upto += other;
    }
    if (lane == 31) found[warp] = upto;
    __syncthreads();
    int before = upto - v;
    for (int w = 0; w < warp; w++) before += found[w];
    return before;
}

/* Sorts the n * top_k pairs of token and choice by expert, those of one expert by token:
 * list[place] = pair, and place[pair] = its place in the list, where pair = token * top_k + choice.
 *   1. Block e counts the pairs of lower experts, which says where its expert's pairs begin
 *      (first[e]), and its own pairs (count[e]).  Each thread looks at a run of pairs.
 *   2. Each thread writes the places of its expert's pairs in its run.
 *   3. The last block to finish step 1 cuts each expert's places into tiles of tile_size: tile
 *      [*n_tiles].
 * Pairs whose expert is -1 are left out; the list begins with as many places that nobody reads.
 * The blocks bring `next`, and each brings the first `ahead` bytes of its expert's gate and as many
 * of its up into the L2 cache if the expert has pairs.
 * expert [n_pairs] is read after ptx_grid_wait.  grid (n_experts), at most THREADS blocks; THREADS
 * threads.  first, count [n_experts].  ticket counts the blocks that have arrived; it is zero
 * before and after. */
__global__ static void sort_kernel(int n_pairs, int tile_size, const int *expert, int *list,
                                   int *place, int *first, int *count, unsigned *ticket,
                                   Tile *tile, int *n_tiles, const Weight *gate, const Weight *up,
                                   int ahead, const __grid_constant__ Next next) {
    SHARED(int, found, [3][WARPS]);
    SHARED(int, begin);
    SHARED(int, its_pairs);
    SHARED(unsigned, arrived);
    bring_next(next);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    const int e = blockIdx.x, run = (n_pairs + THREADS - 1) / THREADS;
    const int from = min((int)threadIdx.x * run, n_pairs), to = min(from + run, n_pairs);
    int lower = 0, own = 0;
#pragma unroll 8
    for (int i = from; i < to; i++) {
        const int other = expert[i];
        lower += other < e;
        own += other == e;
    }
    const int lower_before = sum_before(lower, found[0]);
    const int own_before = sum_before(own, found[1]);
    if (threadIdx.x == THREADS - 1) {
        begin = first[e] = lower_before + lower;
        its_pairs = count[e] = own_before + own;
        __threadfence();
        arrived = atomicAdd(ticket, 1u);
    }
    __syncthreads();
    if (its_pairs)
        for (const Weight &w : {gate[e], up[e]})
            bring(w.data, min(ahead, w.rows * row_bytes(w)) / UNIT_BYTES);
    for (int i = from, at = begin + own_before; own && i < to; i++) {
        if (expert[i] != e) continue;
        list[at] = i;
        place[i] = at++;
    }
    if (arrived != gridDim.x - 1) return;
    __threadfence();
    const int one = threadIdx.x;        /* a thread has an expert, its pairs and its tiles */
    const int all = one < (int)gridDim.x ? __ldcg(&count[one]) : 0;
    const int n = (all + tile_size - 1) / tile_size;
    const int first_tile = sum_before(n, found[2]);
    const int first_place = n ? __ldcg(&first[one]) : 0;
    for (int i = 0; i < n; i++) {
        const int begun = i * tile_size;
        tile[first_tile + i] = {one, first_place + begun, min(all - begun, tile_size)};
    }
    if (threadIdx.x == THREADS - 1) {
        *n_tiles = first_tile + n;
        *ticket = 0;
    }
}

#endif
