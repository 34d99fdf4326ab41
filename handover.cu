/* handover.cu - in the middle of a step a layer's tokens go to the CPU, and the sum of their
 * experts comes back (handover.h).
 *
 *     GPU                                            CPU
 *     hand_over_kernel: writes x and the router's
 *     choice to the host's memory, signal GIVEN  ->  sees the signal, computes the experts,
 *     the dense MLP                                  writes their sum, signal SUMMED
 *     take_sum_kernel: waits for the signal,     <-
 *     copies the sum to the GPU's memory
 *
 * A signal is the number of the hand-over, counted since the device was opened.  The GPU's count
 * lies in its memory, not among the arguments of a launch, so both kernels can be part of a
 * recorded step (cuda.cu).
 *
 * One set of arrays serves all layers.  The next layer is handed over after take_sum_kernel has
 * ended, so nobody writes what another one still reads.
 *
 * A kernel polls, where an operation of the stream (cuStreamWaitValue32) could wait: a kernel can
 * be recorded, needs no library beside the runtime, and runs on every system. */
#ifndef HANDOVER_CU
#define HANDOVER_CU

#include "gpu.h"
extern "C" {
#include "handover.h"
}

/* Threads of both kernels, which have one block: it copies 11 KB for a token of the 26B-A4B, and
 * the bus is slower than one multiprocessor.  A guess.  To tune it, compare decode and
 * --draft-tokens 7 with --cpu-experts 30. */
#define HAND_OVER_THREADS 512

/* Nanoseconds between two reads of a signal over the bus; each read takes about a thousand.  A
 * guess, to be tuned as HAND_OVER_THREADS. */
#define POLL_PAUSE 200

/* Loads of 16 bytes that a thread has under way at once: a read over the bus takes a microsecond,
 * and with four of them the 11 KB of a token take one round.  To be tuned as
 * HAND_OVER_THREADS. */
#define LOADS_AT_ONCE 4

/* to[i] = from[i] for i < n, by all threads of the block.  Both begin at multiples of 16 bytes.
 * They are not __restrict__: then the compiler could read the host's memory through a cache that no
 * signal clears. */
__device__ static inline void copy_numbers(float *to, const float *from, int n) {
    const int fours = n / 4;
    for (int first = threadIdx.x; first < fours; first += LOADS_AT_ONCE * blockDim.x) {
        float4 v[LOADS_AT_ONCE];
#pragma unroll
        for (int k = 0; k < LOADS_AT_ONCE; k++) {
            const int i = first + k * blockDim.x;
            if (i < fours) v[k] = ((const float4 *)from)[i];
        }
#pragma unroll
        for (int k = 0; k < LOADS_AT_ONCE; k++) {
            const int i = first + k * blockDim.x;
            if (i < fours) ((float4 *)to)[i] = v[k];
        }
    }
    for (int i = 4 * fours + threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
}

/* Hands over: to.x [n_numbers] = x, to.expert and to.weight [n_choices] = the router's choice; then
 * ++*given is the signal.  All are read and written after ptx_grid_wait.  grid (1), any number of
 * threads. */
__global__ static void hand_over_kernel(const float *x, int n_numbers, const int *expert,
                                        const float *weight, int n_choices,
                                        const __grid_constant__ HandOver to, unsigned *given) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    copy_numbers(to.x, x, n_numbers);
    for (int i = threadIdx.x; i < n_choices; i += blockDim.x) {
        to.expert[i] = expert[i];
        to.weight[i] = weight[i];
    }
    __syncthreads();
    /* The release makes what the whole block has written visible: the barrier orders it before. */
    if (threadIdx.x == 0) ptx_store_release_sys(&to.signal[GIVEN].count, ++*given);
}

/* Whether hand-over number `count` is answered, or will not be because the program ends. */
__device__ static inline bool is_answered(const Signal *signal, unsigned count) {
    return ptx_load_acquire_sys(&signal[SUMMED].count) == count ||
           ptx_load_acquire_sys(&signal[QUIT].count);
}

/* sum [n_numbers] = from.sum, once the CPU has answered hand-over number *given.  When the program
 * ends instead, sum holds garbage that nobody uses.  *given is read, and sum written, after
 * ptx_grid_wait; the next kernel may begin while this one waits.  grid (1), any number of
 * threads. */
__global__ static void take_sum_kernel(const __grid_constant__ HandOver from,
                                       const unsigned *given, float *sum, int n_numbers) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (threadIdx.x == 0) {
        const unsigned count = *given;
        while (!is_answered(from.signal, count)) __nanosleep(POLL_PAUSE);
    }
    __syncthreads();
    copy_numbers(sum, from.sum, n_numbers);
}

/* ---- the memory of a hand-over ---- */

/* Takes memory for hand-overs of up to n tokens.  Returns 0, or -1 with err; hand_over_give frees
 * all of it in either case. */
static int hand_over_take(HandOver *h, size_t n, const Config *c, Error *err) {
    const size_t numbers = 4 * n * c->hidden, choices = 4 * n * c->top_k;
    const size_t signals = SIGNALS * sizeof *h->signal;
    cudaError_t e = cudaHostAlloc((void **)&h->x, numbers, cudaHostAllocMapped);
    auto more = [&](void **array, size_t bytes) {
        if (e == cudaSuccess) e = cudaHostAlloc(array, bytes, cudaHostAllocMapped);
    };
    more((void **)&h->expert, choices);
    more((void **)&h->weight, choices);
    more((void **)&h->sum, numbers);
    more((void **)&h->signal, signals);
    if (e == cudaSuccess) {
        hand_over_open(h);
        return 0;
    }
    cudaGetLastError();                 /* it is dealt with */
    return fail(err, "GPU: no %zu MB of pinned memory for experts on the CPU (--chunk): %s",
                2 * (numbers + choices) >> 20, cudaGetErrorString(e));
}

static void hand_over_give(HandOver *h) {
    hand_over_close(h);
    void *of_host[] = {h->x, h->expert, h->weight, h->sum, h->signal};
    for (void *p : of_host)
        if (p) cudaFreeHost(p);
    *h = {};
}

#endif
