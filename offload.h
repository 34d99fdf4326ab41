/* offload.h - the CPU computes a layer's experts for a GPU that has no room for their weights
 * (launch.cu).  The weights stay in the mapped file.  What the GPU hands over, and what it gets
 * back, travels as handover.h says. */
#ifndef OFFLOAD_H
#define OFFLOAD_H

#include "handover.h"
#include "ops.h"

typedef struct Offload Offload;

/* Starts o->n_threads threads for steps of up to o->max_n tokens; `exact` counts too.  The caller
 * closes the result before the model and before *h, which is open.  Returns NULL with err. */
Offload *offload_open(const Config *c, const Weights *w, const DeviceOptions *o, const HandOver *h,
                      Error *err);
void offload_close(Offload *o);

/* Waits for the GPU's next hand-over; look, arg and the result: see hand_over_await. */
int offload_await(Offload *o, LookFn *look, void *arg);

/* Answers the hand-over, of n tokens, that was waited for: sum = sum of weight *
 * expert(RMSNorm(x, pre_experts_norm)), with all threads.  l: a layer of the model whose experts'
 * weights lie in the host's memory.  A choice of -1 is left out, and the norm post_experts_norm is
 * left to the GPU. */
void offload_experts(Offload *o, const Layer *l, int n);

#endif
