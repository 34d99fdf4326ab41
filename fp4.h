/* fp4.h - products of many tokens on tensor cores that multiply FP4 with FP4 (fp4.cu), for cuda.cu.
 *
 * fp4.cu is compiled by itself, for compute capability 12.0 and 12.1 alone: its instruction exists
 * nowhere else, and only in code for just these chips (sm_120a, sm_121a), which no other one can
 * translate. */
#ifndef FP4_H
#define FP4_H

#include "product.h"

/* Activations as NVFP4 [n][width], width a multiple of 64, two numbers to a byte, the even column
 * in the low nibble: e2m1(nibble) * e4m3(scale[row][column / 16]) * factor[row]. */
typedef struct {
    uint8_t *data;                      /* [n][width / 2] */
    uint8_t *scale;                     /* [n][width / 16], never NaN */
    float *factor;                      /* [n] */
} Fp4Rows;

/* 1 when the GPU can; 0 with err. */
int fp4_found(Error *err);

/* y, BF16 [rows][width], becomes NVFP4. */
void fp4_quantise(const uint16_t *y, int rows, int width, const Fp4Rows &to, cudaStream_t stream);

/* p's product, all of whose matrices are NVFP4 and have `rows` rows, of y instead of p.y, in at
 * most `tiles` tiles of `tokens` (32, 64 or 128) tokens.  p.act has one part; softcap is not
 * applied. */
void fp4_product(const Product &p, const Fp4Rows &y, int rows, int tokens, int tiles,
                 cudaStream_t stream);

#endif
