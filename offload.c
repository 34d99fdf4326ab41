/* offload.c - experts on the CPU for a GPU.  See offload.h.
 *
 * An Offload is a device of the CPU (cpu.h) of which only `experts` is called (moe.c), so that both
 * devices share one implementation.  The arrays of the hand-over take the place of its x, its
 * choice and its h2.  Memory that is never written, as these and most others, costs no pages. */
#include "offload.h"

#include "cpu.h"

struct Offload {
    Device *cpu;
    const HandOver *hand_over;
    unsigned n_awaited;                 /* hand-overs so far */
};

Offload *offload_open(const Config *c, const Weights *w, const DeviceOptions *o, const HandOver *h,
                      Error *err) {
    const DeviceOptions small = {.max_n = o->max_n, .context = 1, .n_threads = o->n_threads,
                                 .exact = o->exact, .activations = o->activations};
    Device *d = cpu_ops.open(c, w, &small, err);
    if (!d) return NULL;
    d->x = h->x;
    d->expert = h->expert;
    d->expert_weight = h->weight;
    d->h2 = h->sum;
    Offload *offload = xcalloc(1, sizeof *offload);
    offload->cpu = d;
    offload->hand_over = h;
    return offload;
}

void offload_close(Offload *o) {
    if (!o) return;
    cpu_ops.close(o->cpu);
    free(o);
}

int offload_await(Offload *o, LookFn *look, void *arg) {
    return hand_over_await(o->hand_over, ++o->n_awaited, look, arg);
}

void offload_experts(Offload *o, const Layer *l, int n) {
    Layer unnormed = *l;
    unnormed.post_experts_norm = NULL;
    begin_step(o->cpu, n, 0);
    cpu_experts(o->cpu, &unnormed);
    hand_over_answer(o->hand_over, o->n_awaited);
}
