/* product.h - what every GPU file that multiplies knows: rows of weights in the GPU's memory, the numbers of
 * their formats, and the description of a product of many tokens, which nvfp4.cu computes with mma.sync. */
#ifndef PRODUCT_H
#define PRODUCT_H
#include "gpu.h"

/* Columns of a row in the GPU's memory: filled up with zeros to a multiple of 64 (which they are in the real model). */
__host__ __device__ static inline int padded(int cols) { return (cols + 63) / 64 * 64; }

/* Bytes of such a row.  The block scales of an NVFP4 row take an eighth of that. */
__host__ __device__ static inline int row_bytes(const Weight &w) {
    return w.dtype == DT_U8 ? padded(w.cols) / 2 : padded(w.cols) * (w.dtype == DT_F32 ? 4 : 2);
}

/* What the sum over a row still has to be multiplied with; see scaled_e2m1. */
__host__ __device__ static inline float factor(const Weight &w) { return w.dtype == DT_U8 ? w.scale * 128 : 1; }

/* ---- numbers of the formats ---- */

__device__ static inline float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ static inline float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

/* The next BF16 of two float32 numbers: rounded to nearest, and what is left stays in them. */
__device__ static inline uint32_t take_bf16(float &low, float &high) {
    uint32_t pair = ptx_cvt_bf16x2_f32(low, high);
    low -= bf16_low(pair);
    high -= bf16_high(pair);
    return pair;
}

/* v as `parts` BF16, the largest first, `stride` numbers apart. */
__device__ static inline void put_parts(uint16_t *to, size_t stride, int parts, float v) {
    float none = 0;
    for (int p = 0; p < parts; p++) to[p * stride] = (uint16_t)take_bf16(v, none);
}

/* Two E4M3 block scales (>= 0) as two BF16, times 2^119.  Exponent and mantissa in BF16's place are 2^-120 of the number, a
 * subnormal; two multiplications move them up, as no BF16 is large enough for one. */
__device__ static inline uint32_t block_scales(uint32_t two) {
    uint32_t bits = (two & 0x7f) << 4 | (two & 0x7f00) << 12;
    return ptx_mul_bf16x2(ptx_mul_bf16x2(bits, 0x7f007f00), 0x77807780);        /* 2^127, 2^112 */
}

/* Eight E2M1 of a word, in the order of their columns, times their block's scale from block_scales (twice): BF16, 2^-7 of
 * the number.  Sign and the three bits are moved to BF16's place, where they are 2^-126 of the number. */
__device__ static inline void scaled_e2m1(uint32_t word, uint32_t scale, uint32_t b[4]) {
    uint32_t up = word << 4;                    /* even columns: their nibbles into the upper half of the byte */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t pair = __byte_perm(up, word, (4 + j) << 12 | j << 4);
        b[j] = ptx_mul_bf16x2((pair & 0x80008000) | (pair >> 6 & 0x01c001c0), scale);
    }
}

/* One E2M1, one E4M3 as float: the same moves in float32. */
__device__ static inline float e2m1_to_float(uint32_t nibble) {
    return __uint_as_float((nibble & 8) << 28 | (nibble & 7) << 22) * 0x1p126f;
}

/* Column i of a row. */
__device__ static inline float number_at(const Weight &w, size_t row, int i) {
    size_t bytes = row_bytes(w);
    const uint8_t *data = w.data + row * bytes;
    if (w.dtype == DT_F32) return ((const float *)data)[i];
    if (w.dtype == DT_BF16) return bf16_low(((const uint16_t *)data)[i]);
    return e2m1_to_float(data[i / 2] >> 4 * (i % 2) & 15) * (e4m3_to_float(w.block_scale[row * (bytes / 8) + i / 16]) * w.scale);
}

/* Tiles of eight rows. */
__host__ __device__ static inline int tiles_of(int rows) { return (rows + 7) / 8; }

/* ---- a product of many tokens ---- */

/* Tokens of one expert that are multiplied together: places first .. first + count - 1 of the list that is sorted by expert. */
typedef struct {
    int expert, first, count;
} Tile;

/* out[i] = w . y[i] for n rows of y, or, for experts, for each place i in the list: see moe.cu. */
typedef struct {
    Weight w, up;                       /* up.data: gelu(w . y) * (up . y) goes out */
    const Weight *expert_w, *expert_up; /* experts: these instead */
    const Tile *tile;                   /* experts: the tiles, and how many there are */
    const int *n_tiles;
    const int *list;                    /* which row of y, times top_k, a place is; NULL: its own */
    int top_k;
    int n;                              /* rows of y */
    const uint16_t *y;                  /* BF16 [PARTS][n][padded(cols)] */
    float *out;                         /* float32 [n][rows], rows `pitch` apart, … */
    int pitch;
    uint16_t *act;                      /* … or BF16 [PARTS][n_act][padded(rows)] */
    int n_act;
    float softcap;                      /* of the head, else 0 */
} Product;

/* ---- the same with wgmma, where the GPU's compute capability is 9.0 (hopper.cu) ---- */

#define HOPPER_TOKENS 128               /* of a tile of one expert, at most */

/* Comes first.  overlap is gpu_overlap; with any_size no product is declined for being small. */
int hopper_open(int overlap, int any_size, Error *err);
/* Whether hopper.cu multiplies matrices of these formats. */
int hopper_knows(const Weight &w, const Weight &up);
/* Launches the product, or declines with 0.  w and up are p's matrices or, of experts, matrices like
 * them, in at most `tiles` tiles. */
int hopper_product(const Product &p, const Weight &w, const Weight &up, int parts, int tiles,
                   cudaStream_t stream);

#endif
