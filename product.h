/* product.h - what every GPU file that multiplies knows: rows of weights in the GPU's memory, the
 * number formats, and the description of a product of several tokens or many, which nvfp4.cu,
 * fp4.cu or hopper.cu computes. */
#ifndef PRODUCT_H
#define PRODUCT_H

#include <stdint.h>

#include "gpu.h"

/* Columns of a row in the GPU's memory: `cols`, filled up with zeros to a multiple of 64.  The
 * published models' rows are multiples of 64 already. */
__host__ __device__ static inline int padded(int cols) { return (cols + 63) / 64 * 64; }

/* Bytes of a padded row of w.  The block scales of an NVFP4 row take an eighth of that. */
__host__ __device__ static inline int row_bytes(const Weight &w) {
    if (w.dtype == DT_U8) return padded(w.cols) / 2;
    return padded(w.cols) * (w.dtype == DT_F32 ? 4 : 2);
}

/* What the finished sum over a row must be multiplied by.  NVFP4: the matrix's scale, times 2^7, as
 * scaled_e2m1 makes 2^-7 of each number. */
__host__ __device__ static inline float factor(const Weight &w) {
    return w.dtype == DT_U8 ? w.scale * 128 : 1;
}

/* ---- number formats ---- */

/* The lower and the upper of two BF16 in a word. */
__device__ static inline float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ static inline float bf16_high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

/* Returns low and high rounded to BF16, as a pair, and leaves the rounding errors in them.  Called
 * again it returns the next BF16 of each number.  After three calls the errors are 0: a float32 has
 * 24 bits of mantissa, and each BF16 takes 8 of them. */
__device__ static inline uint32_t take_bf16(float &low, float &high) {
    uint32_t pair = ptx_cvt_bf16x2_f32(low, high);
    low -= bf16_low(pair);
    high -= bf16_high(pair);
    return pair;
}

/* take_bf16 of four numbers. */
__device__ static inline uint2 take4(float4 &v) {
    return make_uint2(take_bf16(v.x, v.y), take_bf16(v.z, v.w));
}

/* Writes v as `parts` BF16 numbers that add up to it: the largest to to[0], the next ones `stride`
 * numbers further each.  1 part is v rounded; 3 parts are v exactly, as 3 times 8 bits of mantissa
 * hold the 24 of a float32.
 *
 * In all .cu files a `part` is one of the 16-bit numbers that together make one float, and `parts`
 * is how many there are.  A sum that is still to be added to others is a `partial` sum. */
__device__ static inline void put_parts(uint16_t *to, size_t stride, int parts, float v) {
    float none = 0;
    for (int p = 0; p < parts; p++) to[p * stride] = (uint16_t)take_bf16(v, none);
}

/* Two E4M3 block scales (their sign is ignored) as two BF16, times 2^119.  Exponent and mantissa go
 * to their places in a BF16, which then is 2^-120 of the scale, perhaps a subnormal.  Two
 * multiplications scale it up, by 2^127 and by 2^112: 2^239 alone is larger than any BF16. */
__device__ static inline uint32_t block_scales(uint32_t two) {
    uint32_t bits = (two & 0x7f) << 4 | (two & 0x7f00) << 12;
    return ptx_mul_bf16x2(ptx_mul_bf16x2(bits, 0x7f007f00), 0x77807780);        /* 2^127, 2^112 */
}

/* The eight E2M1 of a word as b [4] pairs of BF16, in the order of their columns: each number
 * times its block's scale, times 2^-7.  scale: the block's scale from block_scales, in both
 * halves.  The sign and the three other bits of an E2M1 go to their places in a BF16, which then
 * is 2^-126 of the number; 2^-126 * 2^119 = 2^-7.  Exact: the product has six bits of mantissa. */
__device__ static inline void scaled_e2m1(uint32_t word, uint32_t scale, uint32_t b[4]) {
    uint32_t up = word << 4;            /* even columns' nibbles into the upper half of the byte */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t pair = __byte_perm(up, word, (4 + j) << 12 | j << 4);
        b[j] = ptx_mul_bf16x2((pair & 0x80008000) | (pair >> 6 & 0x01c001c0), scale);
    }
}

/* One E2M1 as float: as in scaled_e2m1, its bits go to their places in a float32. */
__device__ static inline float e2m1_to_float(uint32_t nibble) {
    return __uint_as_float((nibble & 8) << 28 | (nibble & 7) << 22) * 0x1p126f;
}

/* Column i of row `row` of w, as a float32. */
__device__ static inline float number_at(const Weight &w, size_t row, int i) {
    size_t bytes = row_bytes(w);
    const uint8_t *data = w.data + row * bytes;
    if (w.dtype == DT_F32) return ((const float *)data)[i];
    if (w.dtype == DT_BF16) return bf16_low(((const uint16_t *)data)[i]);
    const float scale = e4m3_to_float(w.block_scale[row * (bytes / 8) + i / 16]);
    return e2m1_to_float(data[i / 2] >> 4 * (i % 2) & 15) * (scale * w.scale);
}

/* The number of tiles of eight rows. */
__host__ __device__ static inline int tiles_of(int rows) { return (rows + 7) / 8; }

/* ---- a product of many tokens ---- */

/* Tokens of one expert that are multiplied together.  They are at places first .. first + count - 1
 * of the list that is sorted by expert (moe.cu). */
typedef struct {
    int expert, first, count;
} Tile;

/* out[i] = w . y[i] for the n rows of y, or act[i] = gelu(w . y[i]) * (up . y[i]).  For experts, i
 * is a place in the list that is sorted by expert (moe.cu), and w and up are that expert's. */
typedef struct {
    Weight w, up;                       /* up.data: the result is act; NULL: it is out */
    Weight more[2];                     /* further matrices: their rows follow w's in `out` */
    const Weight *expert_w, *expert_up; /* experts: [n_experts] instead of w and up; else NULL */
    const Tile *tile;                   /* experts: [*n_tiles], in the GPU's memory; else NULL */
    const int *n_tiles;
    const int *list;                    /* result i is of row list[i] / top_k of y; NULL: row i */
    int top_k;
    int n;                              /* the number of rows of y */
    const uint16_t *y;                  /* BF16 [parts][n][padded(cols)] */
    float *out;                         /* float32 [n] rows, `pitch` floats apart */
    int pitch;
    uint16_t *act;                      /* BF16 [parts][n_act][padded(rows)] */
    int n_act;
    float softcap;                      /* see soft_cap; 0: none */
    /* nvfp4.cu alone: a block multiplies `steps` times 64 columns.  If these are not all columns,
     * the blocks that share a tile put their partial sums into `partial` and count themselves in
     * `ticket`: see WarpTile::join. */
    int steps;
    float4 *partial;
    unsigned *ticket;
} Product;

#endif
