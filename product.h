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

/* Bytes of a row that stream.cu takes together.  The scales of formats other than NVFP4 are stored
 * for units of so many bytes. */
#define UNIT_BYTES 128

/* ---- weights in the GPU's memory ----
 *
 * A matrix lies there nearly as in the file (Weight in ops.h); load.cu brings it into this form.
 * Rows are padded.  Scales are brought to a type and an order that the kernels read without knowing
 * the file's groups.  The scales of a row follow each other, those of each unit of UNIT_BYTES bytes
 * of the row together:
 *
 *     NVFP4  16 bytes: 16 E4M3, as in the file
 *     FP8    4 bytes: a float32, of 128 columns; a row or matrix with one scale has it once for
 *            all units of a row
 *     INT8   16 bytes: a float32 for each 32 columns
 *     INT4   16 bytes: a BF16 for each 32 columns; with zero points 4 bytes more, which are a
 *            nibble for each 32 columns, the lowest nibble first
 *
 * Larger groups have their scale and their zero point several times.  INT4 whose scales are not
 * BF16 becomes INT8, whose float32 scales hold every scale exactly; a zero point is subtracted. */

/* Whether w is INT4 in the GPU's memory. */
__host__ __device__ static inline bool is_int4(const Weight &w) {
    return w.dtype == DT_I32 && w.bits == 4 && w.scale_dtype == DT_BF16;
}
/* Whether two numbers of w share a byte there. */
__host__ __device__ static inline bool is_nibbles(const Weight &w) {
    return w.dtype == DT_U8 || is_int4(w);
}

/* Bytes of a padded row of w. */
__host__ __device__ static inline int row_bytes(const Weight &w) {
    const int cols = padded(w.cols);
    if (is_nibbles(w)) return cols / 2;
    if (w.dtype == DT_I32 || w.dtype == DT_F8_E4M3) return cols;
    return cols * (w.dtype == DT_F32 ? 4 : 2);
}

/* The units of a row, the last of which may be shorter than the others. */
__host__ __device__ static inline int units_of(const Weight &w) {
    return (row_bytes(w) + UNIT_BYTES - 1) / UNIT_BYTES;
}

/* Bytes from a unit's scales to those of the row's next unit. */
__host__ __device__ static inline int scale_step(const Weight &w) {
    if (w.dtype == DT_F8_E4M3) return w.scale_cols < w.cols ? 4 : 0;
    return is_int4(w) && w.zero ? 20 : 16;
}

/* Bytes from a row's scales to those of the next row. */
__host__ __device__ static inline int scale_pitch(const Weight &w) {
    if (w.dtype == DT_U8) return row_bytes(w) / 8;
    if (w.dtype == DT_F8_E4M3 && !scale_step(w)) return 4;
    return units_of(w) * scale_step(w);
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

/* Two E4M3 block scales (their sign is ignored), in bits 4 to 11 of both halves of `bits`, as two
 * BF16, times 2^119.  Exponent and mantissa are at their places in a BF16, which then is 2^-120 of
 * the scale, perhaps a subnormal.  Two multiplications scale it up, by 2^127 and by 2^112: 2^239
 * alone is larger than any BF16. */
__device__ static inline uint32_t scales_of(uint32_t bits) {
    const uint32_t up = ptx_mul_bf16x2(bits & 0x07f007f0, 0x7f007f00);  /* 2^127 */
    return ptx_mul_bf16x2(up, 0x77807780);                              /* 2^112 */
}
/* The same of the two lower bytes of `two`. */
__device__ static inline uint32_t block_scales(uint32_t two) {
    return scales_of(__byte_perm(two, 0, 0x4140) << 4);
}

/* The eight E2M1 of a word as b [4] pairs of BF16, in the order of their columns: each number
 * times its block's scale, times 2^-7.  scale: the block's scale from block_scales, in both
 * halves.  The sign and the three other bits of an E2M1 go to their places in a BF16, which then
 * is 2^-126 of the number; 2^-126 * 2^119 = 2^-7.  Exact: the product has six bits of mantissa. */
__device__ static inline void scaled_e2m1(uint32_t word, uint32_t scale, uint32_t b[4]) {
    uint32_t up = word << 4;            /* even columns' nibbles into the upper half of the byte */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t pair = __byte_perm(up, word, (4 + j) << 8 | j) & 0x00f000f0;
        b[j] = ptx_mul_bf16x2(pair * 0x0104 & 0x81c081c0, scale);   /* shifted by 8 and by 2 */
    }
}

/* One E2M1 as float: as in scaled_e2m1, its bits go to their places in a float32. */
__device__ static inline float e2m1_to_float(uint32_t nibble) {
    return __uint_as_float((nibble & 8) << 28 | (nibble & 7) << 22) * 0x1p126f;
}

/* Tables of ptx_lop3: (a & b) | c and (a & b) ^ c.  The compiler makes two instructions of them
 * where b and c are constants. */
enum { AND_OR = 0xea, AND_XOR = 0x6a };

/* Two E4M3, in the lower bytes of both halves of `two`, as two BF16, exactly.  The upper bytes are
 * copies of their signs.  Sign, exponent and mantissa go to their places in a BF16, which then is
 * 2^-120 of the number, perhaps a subnormal. */
__device__ static inline uint32_t e4m3_to_bf16(uint32_t two) {
    return ptx_mul_bf16x2(two << 4 & 0x87f087f0, 0x7b807b80);                   /* 2^120 */
}

/* Two integers of 8 bits, 128 + q in the lower bytes of both halves of `two`, as two BF16 q,
 * exactly.  The lower seven bits make a BF16 from 128 to 255, of which 128 or 256 is subtracted. */
__device__ static inline uint32_t int8_to_bf16(uint32_t two) {
    const uint32_t low = ptx_lop3<AND_OR>(two, 0x007f007f, 0x43004300);
    const uint32_t middle = ptx_lop3<AND_XOR>(two, 0x00800080, 0xc380c380);
    return ptx_add_bf16x2(low, middle);
}

/* Two nibbles, in the lowest bits of both halves of `two`, less a zero point, as two BF16, exactly.
 * less: from int4_zero.  The other bits of `two` are ignored. */
__device__ static inline uint32_t int4_to_bf16(uint32_t two, uint32_t less) {
    return ptx_add_bf16x2(ptx_lop3<AND_OR>(two, 0x000f000f, 0x43004300), less);
}
/* -(128 + zero) as two equal BF16, of byte i of `zeros`, which is a nibble. */
__device__ static inline uint32_t int4_zero(uint32_t zeros, int i) {
    return __byte_perm(zeros, 0xc3c3c3c3, 0x4040 + i * 0x0101);
}
/* The eight INT4 of a word less their zero point as pairs of BF16, in the columns' order. */
__device__ static inline void int4_in_order(uint32_t word, uint32_t less, uint32_t b[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++)         /* byte j has columns 2j and 2j + 1 */
        b[j] = int4_to_bf16(__byte_perm(word, word >> 4, (4 + j) << 8 | j), less);
}

/* The four bytes of a word, FP8 or else INT8, as two pairs of BF16. */
__device__ static inline void bytes_to_bf16(uint32_t word, bool fp8, uint32_t b[2]) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        if (fp8) b[j] = e4m3_to_bf16(ptx_prmt(word, 0, j ? 0xb3a2 : 0x9180));
        else b[j] = int8_to_bf16(__byte_perm(word, 0, j ? 0x4342 : 0x4140));
    }
}

/* The zero points of INT4 that has none, as a word of nibbles. */
#define INT4_MIDDLE 0x88888888u

/* An F16 as float. */
__device__ static inline float f16_at(const uint8_t *data, int i) {
    const uint32_t h = ((const uint16_t *)data)[i], sign = (h & 0x8000) << 16;
    const float f = __uint_as_float((h & 0x7fff) << 13) * 0x1p112f;
    const uint32_t bits = (h & 0x7c00) == 0x7c00 ? (h & 0x7fff) << 13 | 0x7f800000
                                                 : __float_as_uint(f);
    return __uint_as_float(bits | sign);
}

/* Column i of a row of INT4 whose numbers and scales begin at data and scales. */
__device__ static inline float int4_at(const Weight &w, const uint8_t *data, const uint8_t *scales,
                                       int i) {
    const uint8_t *unit = scales + i / 256 * scale_step(w);
    const int group = i % 256 / 32, stored = data[i / 2] >> 4 * (i % 2) & 15;
    const uint32_t zeros = w.zero ? *(const uint32_t *)(unit + 16) : INT4_MIDDLE;
    const int number = stored - (int)(zeros >> 4 * group & 15);
    return (float)number * bf16_low(((const uint16_t *)unit)[group]);
}

/* Column i of row `row` of w, as a float32. */
__device__ static inline float number_at(const Weight &w, size_t row, int i) {
    const uint8_t *data = w.data + row * row_bytes(w);
    if (w.dtype == DT_F32) return ((const float *)data)[i];
    if (w.dtype == DT_BF16) return bf16_low(((const uint16_t *)data)[i]);
    if (w.dtype == DT_F16) return f16_at(data, i);
    const uint8_t *scales = w.block_scale + row * scale_pitch(w);
    if (is_int4(w)) return int4_at(w, data, scales, i);
    if (w.dtype == DT_I32) return (float)(data[i] - 128) * ((const float *)scales)[i / 32];
    if (w.dtype == DT_F8_E4M3) {
        const uint8_t *scale = scales + i / UNIT_BYTES * scale_step(w);
        return e4m3_to_float(data[i]) * *(const float *)scale;
    }
    const float scale = e4m3_to_float(scales[i / 16]);
    return e2m1_to_float(data[i / 2] >> 4 * (i % 2) & 15) * (scale * w.scale);
}

/* Begins to bring `lines` lines of UNIT_BYTES bytes into the L2 cache.  The threads of the block
 * that call it share the lines. */
__device__ static inline void bring(const uint8_t *from, int lines) {
    for (int i = threadIdx.x; i < lines; i += blockDim.x) ptx_prefetch_l2(from + UNIT_BYTES * i);
}

/* Begins to bring the first n bytes of this block's share of w, which a later kernel reads, into
 * the L2 cache.  A kernel calls it when its own loads have been begun.  The threads that call it
 * share the lines.  w.data NULL: nothing. */
__device__ static inline void bring_ahead(const Weight &w, int n) {
    if (!w.data) return;
    const unsigned blocks = gridDim.x * gridDim.y, block = blockIdx.x + gridDim.x * blockIdx.y;
    const unsigned lines = (unsigned)((size_t)w.rows * row_bytes(w) / UNIT_BYTES);
    const int share = (int)(lines / blocks);
    bring(w.data + (size_t)UNIT_BYTES * share * block, min(share, n / UNIT_BYTES));
}

/* What a launch brings into the L2 cache because launches behind it read it: block b brings the
 * first rows[i] of its share of w[i], which is rows share[i] * b … share[i] * (b + 1) - 1.  Scales
 * are brought as well: a kernel that finds all but them would wait until everything has come that
 * was asked for meanwhile. */
typedef struct {
    Weight w[4];
    int share[4], rows[4];
} Next;
__device__ static inline void bring_next(const Next &next) {
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
        const Weight &w = next.w[i];
        const size_t first = (size_t)next.share[i] * blockIdx.x;
        const int rows = min(next.rows[i], w.rows - (int)first);
        auto bring_rows = [&](const uint8_t *from, int pitch) {
            bring(from + first * pitch, (rows * pitch + UNIT_BYTES - 1) / UNIT_BYTES);
        };
        if (rows <= 0) continue;
        bring_rows(w.data, row_bytes(w));
        if (w.block_scale) bring_rows(w.block_scale, scale_pitch(w));
    }
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

/* Finds the matrix of row *row of p, which counts the rows of p.w and of p.more, each filled up to
 * tiles of so many rows.  *w is p.w, and becomes that matrix; the rows ahead of it are taken from
 * *row and added to *column, where its results begin in a row of `out`.  Returns 0 if it is p.w,
 * else its number in p.more and 1. */
__device__ static inline int find_matrix(const Product &p, int tile_rows, Weight *w, int *row,
                                         int *column) {
    int matrix = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {       /* p.more's matrices have the next tiles */
        const int tiled = (w->rows + tile_rows - 1) / tile_rows * tile_rows;
        if (!p.more[i].data || *row < tiled) break;
        *row -= tiled;
        *column += w->rows;
        *w = p.more[i];
        matrix++;
    }
    return matrix;
}

#endif
