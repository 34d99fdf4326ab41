/* step.cu - what differs from step to step on the GPU: the tokens, their position, and what follows
 * from these alone (the rows of the embedding, RoPE's cosines and sines).
 *
 * The launches of a step of n tokens are always the same, so a step can be recorded once and
 * replayed (cuda.cu).  Kernels therefore do not get the tokens and the position as arguments, but
 * read them from a Step in the GPU's memory.  The host writes the next Step into page-locked memory
 * of its own, and the first operation of a step copies it to the GPU. */
#ifndef STEP_CU
#define STEP_CU

#include <stdint.h>

#include "gpu.h"
#include "product.h"
#include "load.cu"

/* In both memories the ids of the step's tokens lie behind it: see step_ids. */
typedef struct {
    int64_t pos;                        /* the position of the step's first token */
    int k;                              /* a recorded step finds the k largest logits */
    /* A drafter's step: the drafts that best_kernel has made since this Step was fetched. */
    int n_drafts, draft[MAX_DRAFTS];
} Step;

/* Bytes of a Step with the ids of n tokens. */
static size_t step_bytes(size_t n) { return sizeof(Step) + n * sizeof(int); }

/* The ids behind a Step. */
static int *step_ids(Step *step) { return (int *)(step + 1); }

/* The stream copies a Step of n tokens from the host's page-locked memory to the GPU's, without
 * waiting: `from` must stay as it is until the stream has come so far. */
static void fetch_step(Step *to, const Step *from, int n, cudaStream_t stream) {
    check(cudaMemcpyAsync(to, from, step_bytes(n), cudaMemcpyHostToDevice, stream),
          "copying token ids");
}

/* RoPE's cosines and sines for the positions of a step.  Index 0 of each array is for sliding
 * layers, index 1 for global ones. */
typedef struct {
    const float *inv_freq[2];           /* [half] */
    float2 *turn[2];                    /* [tokens][half]: cosine and sine of each pair */
    int half[2];                        /* head_dim / 2 */
    const int64_t *pos;                 /* the position of the first token, in the GPU's memory */
} Turns;

/* x[t] [cols] = row ids[t] of the embedding * scale, and turns.turn of token t.  grid (tokens, any
 * number of blocks that share a token's columns), any number of threads.  Reads ids and turns.pos
 * after ptx_grid_wait; the next kernel may read x and the turns after its own. */
__global__ static void embed_kernel(const __grid_constant__ Weight table, const int *ids, float *x,
                                    float scale, const __grid_constant__ Turns turns) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    const int t = blockIdx.x;
    const int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    for (int i = first; i < table.cols; i += stride)
        x[(size_t)t * table.cols + i] = number_at(table, ids[t], i) * scale;
    const float at = (float)(*turns.pos + t);
    for (int kind = 0; kind < 2; kind++) {
        float2 *turn = turns.turn[kind] + (size_t)t * turns.half[kind];
        for (int i = first; i < turns.half[kind]; i += stride) {
            float angle = at * turns.inv_freq[kind][i];
            turn[i] = make_float2(cosf(angle), sinf(angle));
        }
    }
}

#endif
