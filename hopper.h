/* hopper.h - products of many tokens with wgmma (hopper.cu), for launch.cu and cuda.cu.
 *
 * hopper.cu is compiled by itself, for compute capability 9.0 alone (sm_90a): its instructions
 * exist nowhere else. */
#ifndef HOPPER_H
#define HOPPER_H

#include "product.h"

#define HOPPER_TOKENS 128               /* the most tokens of one expert in a tile (Product.tile) */

/* Asks the current GPU for the shared memory that the kernels need.  To be called once, before
 * hopper_product.  0, or -1 with err: the GPU is no H100 or H200, or the code was not loaded. */
int hopper_open(Error *err);

/* Whether hopper.cu multiplies matrices of w's and up's formats (up.data NULL: w alone). */
int hopper_knows(const Weight &w, const Weight &up);

/* Launches product p on `stream` and returns 1, or returns 0 and launches nothing: then nvfp4.cu
 * computes it.  A product of experts (p.tile) whose formats hopper_knows is never declined.
 * w and up: p's matrices or, for experts, matrices of the same shapes and formats.
 * parts: the BF16 numbers that make one of p.y's.  tiles: experts: the most tiles that
 * *p.n_tiles can be; else unused.  p's memory is the caller's and must stay until the stream has
 * run the product. */
int hopper_product(const Product &p, const Weight &w, const Weight &up, int parts, int tiles,
                   cudaStream_t stream);

#endif
