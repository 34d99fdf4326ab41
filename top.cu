/* top.cu - the k largest of many numbers on the GPU, for the logits of a step's tokens.
 *
 * A number becomes a key, an integer of the same order (key_of).  count_kernel counts the keys in
 * bins and finds the bin of the k-th largest; collect_kernel lists the keys from that bin on and
 * sorts this short list.  best_kernel finds the largest one alone, for a drafter (draft_kernel in
 * head.cu does so without a list of all logits). */
#ifndef TOP_CU
#define TOP_CU

#include "gpu.h"
#include "step.cu"

/* The 13 highest bits of a key say in which bin it lies: sign, exponent, four bits of mantissa.
 * With so many bins the bin of the k-th largest logit holds few others, and the counters of all
 * bins, 32 KB, fit into a block's shared memory. */
#define KEY_SHIFT 19
#define BINS (1 << (32 - KEY_SHIFT))
/* The most logits in the bin of the k-th largest and above; where there are more, `top` says -1 and
 * the host takes all logits.  The list is 32 KB, which one block sorts in shared memory.  Chosen by
 * that size, not by comparison.  To tune it, count how often `top` says -1. */
#define LISTED 4096
/* Threads of a block of count_kernel, collect_kernel and best_kernel, and the most blocks.
 * Guesses: nobody has timed other values.  Compare bench/gpusim --step decode. */
#define TOP_THREADS 1024
#define TOP_BLOCKS 64

/* The answer of collect_kernel, as it is copied to the host. */
typedef struct {
    int n;                              /* how many, or -1: too many are as large as the k-th */
    int id[MAX_TOP];
    float logit[MAX_TOP];
} Top;

/* What the blocks of a kernel share, in the GPU's memory, one for each token.  bin, best, listed
 * and ticket are zero before and after each kernel. */
typedef struct {
    unsigned bin[BINS], listed, ticket; /* keys in each bin; in `list`; blocks that have arrived */
    uint32_t edge;                      /* the least key of the bin that has the k-th largest */
    unsigned long long best;            /* of best_kernel */
    uint64_t list[LISTED];              /* [listed] a key, then the index with all bits turned */
} Selection;

/* ---- keys ---- */

/* A float as a number whose order is that of the logits for the sampler (`clean` in sampler.c):
 * NaN is -inf. */
__device__ static inline uint32_t key_of(float f) {
    f = f > -FLT_MAX ? fminf(f, FLT_MAX) : -INFINITY;
    uint32_t u = __float_as_uint(f == 0 ? 0.f : f);               /* -0 is 0 */
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ static inline float of_key(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* ---- kernels ---- */

/* Whether this block is the last one of the grid's row that comes here.  The last block sees what
 * the others wrote before they came.  ticket is zero before and after. */
__device__ static inline int last_block(unsigned *ticket) {
    SHARED(unsigned, before);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before = atomicInc(ticket, gridDim.x - 1);    /* zero again at the end */
    __syncthreads();
    __threadfence();
    return before == gridDim.x - 1;
}

/* Sets s->edge, for each token.  Every block counts how many keys of value [n] lie in which bin;
 * the last block finds the bin of the k-th largest, 1 <= k <= n.  Counts are the same in whatever
 * order the blocks come.  k 0: k is step->k.  skip: NULL; otherwise the kernel does nothing while
 * *skip > 0.  The rows of the grid are tokens: value [tokens][n], s [tokens].  value is read after
 * ptx_grid_wait.  grid (blocks, tokens), TOP_THREADS threads. */
__global__ static void __launch_bounds__(TOP_THREADS)
    count_kernel(const float *value, int n, int k, const Step *step, const int *skip,
                 Selection *s) {
    enum { EACH = BINS / TOP_THREADS };
    SHARED(unsigned, count, [BINS]);
    SHARED(unsigned, sum, [TOP_THREADS / 32]);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (skip && *skip) return;
    value += (size_t)blockIdx.y * n;
    s += blockIdx.y;
    if (!k) k = step->k;
    for (int i = threadIdx.x; i < BINS; i += TOP_THREADS) count[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * TOP_THREADS + threadIdx.x; i < n; i += gridDim.x * TOP_THREADS)
        atomicAdd(&count[key_of(value[i]) >> KEY_SHIFT], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += TOP_THREADS)
        if (count[i]) atomicAdd(&s->bin[i], count[i]);
    if (!last_block(&s->ticket)) return;
    /* A thread has EACH neighbouring bins.  `above` becomes the number of keys that lie above these
     * bins: in the bins of higher lanes and of higher warps. */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned own = 0, above, bin[EACH];
    for (int i = threadIdx.x; i < BINS; i += TOP_THREADS) {
        count[i] = __ldcg(&s->bin[i]);
        s->bin[i] = 0;
    }
    __syncthreads();
    for (int i = 0; i < EACH; i++) own += bin[i] = count[threadIdx.x * EACH + i];
    above = own;
    for (int step = 1; step < 32; step *= 2) {
        unsigned other = __shfl_down_sync(0xffffffffu, above, step);
        if (lane + step < 32) above += other;
    }
    if (lane == 0) sum[warp] = above;
    __syncthreads();
    for (int w = warp + 1; w < TOP_THREADS / 32; w++) above += sum[w];
    above -= own;
    for (int i = EACH - 1; i >= 0; above += bin[i--])
        if (above < (unsigned)k && above + bin[i] >= (unsigned)k)
            s->edge = (uint32_t)(threadIdx.x * EACH + i) << KEY_SHIFT;
}

/* top [tokens] = the k largest of value [tokens][n], 1 <= k <= MAX_TOP, by falling value, ties by
 * rising index.  All blocks list the logits that are not below s->edge, from count_kernel; the last
 * block sorts the list.  Grid and k as for count_kernel. */
__global__ static void __launch_bounds__(TOP_THREADS)
    collect_kernel(const float *value, int n, int k, const Step *step, Selection *s, Top *top) {
    SHARED(uint64_t, item, [LISTED]);   /* the key, then the index with all bits turned: falling */
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    value += (size_t)blockIdx.y * n;
    s += blockIdx.y;
    top += blockIdx.y;
    if (!k) k = step->k;
    uint32_t edge = s->edge;
    for (int i = blockIdx.x * TOP_THREADS + threadIdx.x; i < n; i += gridDim.x * TOP_THREADS) {
        uint32_t key = key_of(value[i]);
        if (key < edge) continue;
        unsigned at = atomicAdd(&s->listed, 1u);
        if (at < LISTED) s->list[at] = (uint64_t)key << 32 | ~(uint32_t)i;
    }
    if (!last_block(&s->ticket)) return;
    unsigned listed = __ldcg(&s->listed), all = 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        s->listed = 0;
        top->n = listed > LISTED ? -1 : k;
    }
    if (listed > LISTED) return;
    while (all < listed) all *= 2;
    for (unsigned i = threadIdx.x; i < all; i += TOP_THREADS)
        item[i] = i < listed ? __ldcg(&s->list[i]) : 0;
    __syncthreads();
    /* Batcher's bitonic sort: runs of `size` that fall and rise in turn become runs of twice the
     * size. */
    for (unsigned size = 2; size <= all; size *= 2)
        for (unsigned step = size / 2; step; step /= 2) {
            for (unsigned i = threadIdx.x; i < all; i += TOP_THREADS) {
                if (i & step) continue;             /* The partner's thread orders these two. */
                uint64_t a = item[i], b = item[i ^ step];
                if ((a < b) != !(i & size)) continue;
                item[i] = b;
                item[i ^ step] = a;
            }
            __syncthreads();
        }
    for (unsigned i = threadIdx.x; i < (unsigned)k; i += TOP_THREADS) {
        top->id[i] = (int)~(uint32_t)item[i];
        top->logit[i] = of_key((uint32_t)(item[i] >> 32));
    }
}

/* A logit and its index, as a number: the largest one is that of the largest logit, of equal ones
 * of the first. */
__device__ static inline unsigned long long candidate(float logit, int i) {
    return (unsigned long long)key_of(logit) << 32 | ~(uint32_t)i;
}

/* The index in the largest of all threads' candidates, in the whole grid, becomes *token, the next
 * step's token, and the Step's next draft. */
__device__ static inline void give_draft(unsigned long long best, Selection *s, Step *step,
                                         int *token) {
    SHARED(unsigned long long, of_warp, [TOP_THREADS / 32]);
    for (int other = 16; other; other /= 2)
        best = max(best, __shfl_xor_sync(0xffffffffu, best, other));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    for (unsigned w = 0; threadIdx.x == 0 && w < blockDim.x / 32; w++)
        best = max(best, of_warp[w]);
    if (threadIdx.x == 0) atomicMax(&s->best, best);
    if (!last_block(&s->ticket) || threadIdx.x) return;
    *token = step->draft[step->n_drafts++] = (int)~(uint32_t)__ldcg(&s->best);
    s->best = 0;
}

/* The draft is the largest of value [n].  grid (blocks), TOP_THREADS threads. */
__global__ static void __launch_bounds__(TOP_THREADS)
    best_kernel(const float *value, int n, Selection *s, Step *step, int *token) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    unsigned long long best = 0;
    for (int i = blockIdx.x * TOP_THREADS + threadIdx.x; i < n; i += gridDim.x * TOP_THREADS)
        best = max(best, candidate(value[i], i));
    give_draft(best, s, step, token);
}

#endif
