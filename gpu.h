/* gpu.h - what the .cu files share: CUDA itself (or, in the tests, its emulation on the CPU),
 * launches, checks, and the few device functions that every kernel needs.
 *
 * cuda.cu includes product.h, load.cu, residual.cu, nvfp4.cu, stream.cu, attention.cu, moe.cu,
 * few.cu, head.cu and vision.cu and is compiled as one file, by nvcc or, with -DGEMMA4_EMU, by
 * the host's C++ compiler.  fp4.cu and hopper.cu are compiled by themselves. */
#ifndef GPU_H
#define GPU_H

extern int gpu_overlap;                 /* 1: a kernel may begin before the one before it has ended; where it was compiled for sm_90 and later */

#ifdef GEMMA4_EMU
#include "tests/emu/emu.h"
#else
#include <cuda_runtime.h>

#include "ptx.h"

/* All kernels are launched so that they may begin before the kernel before them has ended (CUDA
 * C++ Programming Guide, "Programmatic Dependent Launch"; sm_90).  Each therefore calls
 * ptx_grid_wait before it reads what the kernel before it wrote, and lets the next one begin
 * only after that, so that whatever the kernels ahead of the one before wrote is there from the
 * beginning. */
template <class T> struct Same { typedef T type; };
template <class... P>
static void gpu_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream, typename Same<P>::type... args) {
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = gpu_overlap;
    cudaLaunchKernelEx(&config, kernel, args...);
}
#define GPU_LAUNCH(kernel, grid, block, shared, stream, ...) gpu_launch(kernel, grid, block, shared, stream, __VA_ARGS__)
/* Shared memory, of a size known here (SHARED(float, tile, [16][17])) and given with the launch. */
#define SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) unsigned char dynamic_shared[]; type *const name = (type *)dynamic_shared
#endif

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>

extern "C" {
#include "ops.h"
}

/* All pointers of a Weight or a Layer that a kernel gets point to the device's memory; every
 * matrix begins at a multiple of 256 bytes there, whatever its place in the file. */

#define WARPS 8                         /* of a block, in the kernels that multiply: a warp takes a row at a time */
#define THREADS (32 * WARPS)
/* Of a block of stream.cu, and where the residual stream is normed: enough to hide what NVFP4's
 * arithmetic waits for, and 80 registers for a thread. */
#define STREAM_WARPS 12
#define STREAM_THREADS (32 * STREAM_WARPS)

__device__ static inline float warp_sum(float v) {
    for (int w = 16; w; w /= 2) v += __shfl_xor_sync(0xffffffffu, v, w);
    return v;
}

/* The sum of v over the block's threads, for all of them.  red: 32 floats of shared memory. */
__device__ static inline float block_sum(float v, float *red) {
    v = warp_sum(v);
    __syncthreads();                    /* red may still be read from the last time */
    if (threadIdx.x % 32 == 0) red[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) sum += red[w];
    return sum;
}

/* 1 / sqrt(mean(x^2) + eps) of x[0..n), which any of the block's threads may have written before
 * a barrier. */
__device__ static inline float rms_scale(const float *x, int n, float eps, float *red) {
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i] * x[i];
    return 1 / sqrtf(block_sum(sum, red) / n + eps);
}

/* gelu_pytorch_tanh, times up: (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (g +
 * 0.044715 g^3). */
__device__ static inline float gelu_times(float g, float up) {
    return __fdividef(g, 1 + ptx_exp2(-2.302208198f * (g + 0.044715f * g * g * g))) * up;
}

/* Logits are soft-capped: Gemma4ForCausalLM.forward. */
__device__ static inline float soft_cap(float l, float softcap) { return softcap > 0 ? softcap * tanhf(l / softcap) : l; }

/* E4M3FN to float: exponent and mantissa moved to float's place, then the bias corrected by a
 * multiplication, which makes subnormals right too. */
__device__ static inline float e4m3_to_float(uint8_t b) {
    return __uint_as_float((uint32_t)(b & 0x80) << 24 | (uint32_t)(b & 0x7f) << 20) * 0x1p120f;
}

/* The other way: saturates at 448, rounds to nearest, ties to even, as cpu.c does. */
__device__ static inline uint8_t float_to_e4m3(float f) {
    uint32_t bits = __float_as_uint(f), u = bits & 0x7fffffff;
    uint8_t sign = bits >> 24 & 0x80;
    float a = __uint_as_float(u);
    if (u > 0x7f800000) return sign | 0x7f;
    if (a >= 448) return sign | 0x7e;
    if (a < 0x1p-6f) return sign | (uint8_t)rintf(a * 512);     /* subnormals, in steps of 2^-9 */
    u += 0x7ffff + (u >> 20 & 1);                               /* three bits of mantissa stay */
    return sign | (uint8_t)((u >> 20) - (120 << 3));            /* the bias goes from 127 to 7 */
}

#endif
