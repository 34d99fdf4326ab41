/* checkpoint.h - a Model from inside, for the forward pass, sessions and caches.  All others see
 * model.h. */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "model.h"

struct Model {
    Config config;
    GenerationConfig generation;
    const Model *target;                /* a drafter's; else NULL */
    SafeTensors *st;
    Weights w;
    float *inv_freq[2];                 /* RoPE frequencies of sliding and global layers */
    const char *prefix;                 /* "model.language_model." or "model." */
    int k_eq_v, fp8_kv, standardize;
    int media[3], pad;                  /* ids of <|image|>, <|video|>, <|audio|> (or -1), <pad> */
    unsigned kinds[5];                  /* for info: bits of enum Kind, by group */
    char layout[4][64];
};

/* The last layer of a kind (sliding, global), whose cache a drafter reads; NULL: there is none. */
const Layer *last_layer(const Model *m, int global);

#endif
