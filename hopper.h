/* hopper.h - products of many tokens with wgmma (hopper.cu), for cuda.cu.
 *
 * hopper.cu is compiled by itself, for compute capability 9.0 alone (sm_90a): its instructions exist
 * nowhere else. */
#ifndef HOPPER_H
#define HOPPER_H

#include "product.h"

#define HOPPER_TOKENS 128               /* of a tile of one expert, at most */

/* Comes first. */
int hopper_open(Error *err);

/* Whether hopper.cu multiplies matrices of these formats. */
int hopper_knows(const Weight &w, const Weight &up);

/* Launches the product, or declines with 0.  w and up are p's matrices or, of experts, matrices like
 * them, whose tokens come in at most `tiles` tiles. */
int hopper_product(const Product &p, const Weight &w, const Weight &up, int parts, int tiles,
                   cudaStream_t stream);

#endif
