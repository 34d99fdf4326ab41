/* fp4.h - products of many tokens on tensor cores that multiply FP4 with FP4 (fp4.cu).
 * launch.cu calls them.
 *
 * fp4.cu is compiled by itself, for compute capability 12.0 and 12.1 alone (sm_120a, sm_121a): its
 * mma exists only in code for exactly these chips, which runs on no other. */
#ifndef FP4_H
#define FP4_H

#include "product.h"

/* Activations as NVFP4 [n][width], width a multiple of 64.  A byte holds two columns, the even one
 * in the low nibble; a number is e2m1(nibble) * e4m3(scale[row][column / 16]) * factor[row].  The
 * memory is the GPU's and the caller's. */
typedef struct {
    uint8_t *data;                      /* [n][width / 2] */
    uint8_t *scale;                     /* [n][width / 16], never NaN */
    float *factor;                      /* [n] */
} Fp4Rows;

/* 1 when the first GPU has these tensor cores and the kernels are loaded; else 0 with err. */
int fp4_found(Error *err);

/* Launches on `stream`: y, BF16 [rows][width], becomes NVFP4 in `to`, which has room for it. */
void fp4_quantise(const uint16_t *y, int rows, int width, const Fp4Rows &to, cudaStream_t stream);

/* Launches product p on `stream`, with y instead of p.y.  All of p's matrices are NVFP4 and, but
 * for p.more, have `rows` rows.  tokens: of a tile: 32, 64 or 128.  tiles: the number of tiles or,
 * of experts, the most that *p.n_tiles can be.  p.act has one part.  p.softcap is not looked at. */
void fp4_product(const Product &p, const Fp4Rows &y, int rows, int tokens, int tiles,
                 cudaStream_t stream);

#endif
