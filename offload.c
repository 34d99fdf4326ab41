/* offload.c - experts on the CPU for a GPU.  See offload.h.
 *
 * An Offload is a device of the CPU (cpu.h) of which only `experts` is called (moe.c), so that both
 * devices share one implementation.  The device's other arrays are never written, and memory that
 * is never written costs no pages. */
#include "offload.h"

#include "cpu.h"

struct Offload {
    Device *cpu;
};

/* The arrays that belong to a HandOver. */
static void lend(Device *d, const HandOver *h) {
    d->x = h->x;
    d->expert = h->expert;
    d->expert_weight = h->weight;
    d->h2 = h->sum;
}

Offload *offload_open(const Config *c, const Weights *w, const DeviceOptions *o, Error *err) {
    const DeviceOptions small = {.max_n = o->max_n, .context = 1, .n_threads = o->n_threads,
                                 .exact = o->exact, .activations = o->activations};
    Device *d = cpu_ops.open(c, w, &small, err);
    if (!d) return NULL;
    void *of_hand_over[] = {d->x, d->expert, d->expert_weight, d->h2};
    for (int i = 0; i < 4; i++) free(of_hand_over[i]);
    lend(d, &(HandOver){0});
    Offload *offload = xcalloc(1, sizeof *offload);
    offload->cpu = d;
    return offload;
}

void offload_close(Offload *o) {
    if (!o) return;
    cpu_ops.close(o->cpu);
    free(o);
}

void offload_experts(Offload *o, const Layer *l, int n, const HandOver *h) {
    Layer unnormed = *l;
    unnormed.post_experts_norm = NULL;
    lend(o->cpu, h);
    begin_step(o->cpu, n, 0);
    cpu_experts(o->cpu, &unnormed);
    lend(o->cpu, &(HandOver){0});
}
