/* offload.h - the CPU computes a layer's experts for a GPU that has no room for their weights
 * (launch.cu).  The weights stay in the mapped file. */
#ifndef OFFLOAD_H
#define OFFLOAD_H

#include "ops.h"

typedef struct Offload Offload;

/* Starts o->n_threads threads for steps of up to o->max_n tokens; `exact` counts too.  The caller
 * closes the result before the model.  Returns NULL with err. */
Offload *offload_open(const Config *c, const Weights *w, const DeviceOptions *o, Error *err);
void offload_close(Offload *o);

/* What travels between the GPU and the CPU for one layer, for a step of n tokens; float32. */
typedef struct {
    float *x;                           /* [n][hidden] the residual stream behind attention */
    int *expert;                        /* [n][top_k] the router's choice; -1: not the CPU's, and */
    float *weight;                      /* [n][top_k] its weights */
    float *sum;                         /* [n][hidden] what the CPU computes */
} HandOver;

/* h->sum = sum of weight * expert(RMSNorm(x, pre_experts_norm)), for n tokens.  l: a layer of the
 * model whose experts' weights lie in the host's memory.  The norm post_experts_norm is left to the
 * GPU.  The arrays of *h are the caller's; this function returns when the sum is there. */
void offload_experts(Offload *o, const Layer *l, int n, const HandOver *h);

#endif
