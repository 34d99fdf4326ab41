/* gpu.h - what the .cu files share: CUDA itself (or, in the tests, its emulation on the CPU),
 * launches, and the few device functions that many kernels need.
 *
 * Three .cu files are compiled, by nvcc or, with -DGEMMA4_EMU, by the host's C++ compiler: fp4.cu,
 * hopper.cu, and cuda.cu, which includes all others.  Each file includes what it uses.  Their
 * order, the lowest first:
 *   load.cu  fetch.cu  cached.cu     memory; experts that come to the GPU, for a step or to stay
 *   handover.cu                      experts that the CPU computes in the middle of a step
 *   step.cu  residual.cu             the step's tokens and position; the residual stream
 *   nvfp4.cu  stream.cu  lora.cu     products of many tokens; of one token or a few; adapters
 *   qkv.cu  attention.cu             q, k, v and the kv cache; attention
 *   moe.cu  few.cu                   MLP and experts; steps of 2 to 8 tokens
 *   top.cu  head.cu                  the k largest of many numbers; the head
 *   launch.cu                        struct Device, and launches that several operations use
 *   vision.cu  open.cu  cuda.cu      pictures; opening a device; the operations and their table */
#ifndef GPU_H
#define GPU_H

/* 1: a kernel may begin before the one before it has ended (gpu_launch).  gpu_can_overlap: the GPU
 * and the machine code are of sm_90 or later.  gpu_overlap: so it shall be; GEMMA4_CUDA can forbid
 * it, which changes no bit of a result.  open.cu sets both.  All files that are compiled share
 * them. */
inline int gpu_can_overlap, gpu_overlap;

#ifdef GEMMA4_EMU
#include "tests/emu/emu.h"
#else
#include <cuda_runtime.h>

#include "ptx.h"

/* Launches a kernel on `stream`: a grid of blocks, each with dimensions `block` and `shared` bytes
 * of dynamic shared memory, in clusters of `cluster` blocks (1: none; more need sm_90 and a grid
 * that is a multiple).  Errors are left for cudaGetLastError.
 *
 * Programmatic dependent launch (CUDA C++ Programming Guide; sm_90).  With gpu_overlap a kernel
 * may begin before the kernel ahead of it on the stream has ended.  Every kernel keeps two rules:
 *   1. It calls ptx_grid_wait before it reads what the kernel ahead wrote, and before it writes
 *      what the kernel ahead reads or writes.  ptx_grid_wait returns when the kernel ahead has
 *      ended and its writes are visible.
 *   2. It calls ptx_grid_launch_dependents, which lets the next kernel begin, only after
 *      ptx_grid_wait (or never: then the next kernel begins when this one ends).
 * What follows from the two: let kernels A, B, C be launched in this order.  B lets C begin only
 * after B has waited for A.  So C may read what A and earlier kernels wrote without waiting:
 * weights, the step's position, and what earlier steps put into the cache.  Only what B writes does
 * C read after its ptx_grid_wait. */
template <class T> struct Same { typedef T type; };
template <class... P>
static void gpu_launch(int cluster, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                       cudaStream_t stream, typename Same<P>::type... args) {
    cudaLaunchAttribute attribute[2] = {};
    cudaLaunchConfig_t config = {};
    if (gpu_overlap) {
        cudaLaunchAttribute *overlap = &attribute[config.numAttrs++];
        overlap->id = cudaLaunchAttributeProgrammaticStreamSerialization;
        overlap->val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        cudaLaunchAttribute *clusters = &attribute[config.numAttrs++];
        clusters->id = cudaLaunchAttributeClusterDimension;
        clusters->val.clusterDim = {(unsigned)cluster, 1, 1};
    }
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attribute;
    cudaLaunchKernelEx(&config, kernel, args...);
}
#define GPU_LAUNCH_CLUSTERS(cluster, kernel, grid, block, shared, stream, ...) \
    gpu_launch(cluster, kernel, grid, block, shared, stream, __VA_ARGS__)
#define GPU_LAUNCH(...) GPU_LAUNCH_CLUSTERS(1, __VA_ARGS__)
/* Shared memory whose size the compiler knows: SHARED(float, tile, [16][17]).  It is not
 * initialised. */
#define SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
/* A pointer `name` to the shared memory whose size is given with the launch. */
#define DYNAMIC_SHARED(type, name) \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    type *const name = (type *)dynamic_shared
#endif

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>

extern "C" {
#include "ops.h"
}

/* What the driver has said of a kernel's blocks: see gpu_fits. */
typedef struct {
    const void *kernel;
    size_t shared;
    int blocks;
} GpuFit;
inline GpuFit gpu_fit[128];             /* as many as the kernels of a few models need */
inline int gpu_n_fits;                  /* open.cu sets it to 0 for each device that it opens */

/* How many blocks of a kernel a multiprocessor has room for at once, with so many threads and bytes
 * of dynamic shared memory each, but at most `most`, for which its grid was tuned.  0: not even
 * one.  The driver is asked once for each kernel and size. */
static inline int gpu_fits(const void *kernel, int threads, size_t shared, int most) {
    int blocks = 0, i = 0;
    while (i < gpu_n_fits && (gpu_fit[i].kernel != kernel || gpu_fit[i].shared != shared)) i++;
    if (i < gpu_n_fits) blocks = gpu_fit[i].blocks;
    else {
        if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared))
            cudaGetLastError();         /* it is dealt with: blocks is 0 */
        const int room = sizeof gpu_fit / sizeof *gpu_fit;
        if (i < room) gpu_fit[gpu_n_fits++] = {kernel, shared, blocks};
    }
    return blocks < most ? blocks : most;
}

/* All pointers of a Weight or a Layer that a kernel gets point to the device's memory; every
 * matrix begins at a multiple of 16 bytes there, whatever its place in the file. */

/* Warps of a block in most kernels.  A guess: nobody has timed other values.  The products of
 * nvfp4.cu and fp4.cu divide their tiles among exactly eight warps, so their tile sizes change with
 * WARPS. */
#define WARPS 8
#define THREADS (32 * WARPS)
/* Warps of a block of stream.cu, and of the kernels that norm the residual stream.  Twelve warps
 * hide the latency of NVFP4's arithmetic, and two blocks of twelve leave 80 registers for each
 * thread.  To tune it again, compare bench/gpusim --step decode. */
#define STREAM_WARPS 12
#define STREAM_THREADS (32 * STREAM_WARPS)

/* The sum of v over the warp's lanes, for all of them. */
__device__ static inline float warp_sum(float v) {
    for (int w = 16; w; w /= 2) v += __shfl_xor_sync(0xffffffffu, v, w);
    return v;
}

/* The sum of v over the block's threads, for all of them.  red: 32 floats of shared memory. */
__device__ static inline float block_sum(float v, float *red) {
    v = warp_sum(v);
    __syncthreads();                    /* a warp may still read red from an earlier call */
    if (threadIdx.x % 32 == 0) red[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) sum += red[w];
    return sum;
}

/* 1 / sqrt(mean(x^2) + eps) of x [n], for all of the block's threads.  Between the writing of x by
 * other threads and this call there must be a barrier.  red: as for block_sum. */
__device__ static inline float rms_scale(const float *x, int n, float eps, float *red) {
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i] * x[i];
    return 1 / sqrtf(block_sum(sum, red) / n + eps);
}

/* gelu_pytorch_tanh(g) * up.  gelu(g) = g (1 + tanh u) / 2 with u = sqrt(2 / pi) (g + 0.044715
 * g^3); (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), and exp(-2u) = 2^(-2.3022… (g + 0.044715 g^3)). */
__device__ static inline float gelu_times(float g, float up) {
    return __fdividef(g, 1 + ptx_exp2(-2.302208198f * (g + 0.044715f * g * g * g))) * up;
}

/* A logit as Gemma4ForCausalLM.forward caps it: within -softcap … softcap; softcap 0: as it is. */
__device__ static inline float soft_cap(float l, float softcap) {
    return softcap > 0 ? softcap * tanhf(l / softcap) : l;
}

/* E4M3FN to float, exactly.  Exponent and mantissa go to their places in a float32; the
 * multiplication corrects the exponent's bias (127 to 7), for subnormals as well. */
__device__ static inline float e4m3_to_float(uint8_t b) {
    return __uint_as_float((uint32_t)(b & 0x80) << 24 | (uint32_t)(b & 0x7f) << 20) * 0x1p120f;
}

/* Float to E4M3FN: saturates at 448, rounds to nearest, ties to even, as minifloat.h does. */
__device__ static inline uint8_t float_to_e4m3(float f) {
    const uint32_t bits = __float_as_uint(f), u = bits & 0x7fffffff;
    const float a = __uint_as_float(u);
    /* Three bits of mantissa stay, and the bias goes from 127 to 7. */
    uint32_t e4m3 = ((u + 0x7ffff + (u >> 20 & 1)) >> 20) - (120 << 3);
    /* Subnormals go in steps of 2^-9, as do float32 numbers from 2^14 on. */
    if (a < 0x1p-6f) e4m3 = __float_as_uint(a + 0x1p14f) - __float_as_uint(0x1p14f);
    if (a >= 448) e4m3 = 0x7e;
    if (u > 0x7f800000) e4m3 = 0x7f;
    return (uint8_t)((bits >> 24 & 0x80) | e4m3);
}

#endif
