/* cached.cu - single experts of layers whose experts lie with the CPU have slots in the GPU's
 * memory.
 *
 * In each such layer the GPU computes the chosen experts that have a slot, while the CPU computes
 * the others (offload.c).  slots.c decides which experts have one.  The kernels see a layer's slots
 * in its lists of experts: an expert whose matrices have no data has no slot.
 *
 * The lists are the same throughout a step.  Loads that are decided behind a step go on during the
 * next step, by a thread and a stream of their own, through pinned memory.  They are awaited before
 * the step after that one, which is the first that sees these experts.  So what a step computes on
 * the GPU never depends on how long a copy takes.
 *
 * A step of many tokens fetches all experts to the GPU (fetch.cu), where the popular ones are
 * copied to the slots: a prompt prepares the slots for its answer. */
#ifndef CACHED_CU
#define CACHED_CU

#include "gpu.h"
extern "C" {
#include "slots.h"
}
#include "load.cu"

/* The layers that have slots are the first slots.n_layers of the model.  The lists and the slots
 * are part of the weights' memory. */
typedef struct {
    Slots slots;                        /* n_slots 0: nothing of this is used */
    const Layer *host;                  /* host: the model's layers, in the mapped file */
    Layer *layer;                       /* host [n_layers], the device's: with the lists on the
                                         * GPU */
    Weight *list;                       /* host [n_layers][gate, up, down][n_experts]: likewise */
    uint8_t **first;                    /* host [n_layers]: a layer's first slot */
    size_t *bytes;                      /* host [n_layers]: of each of its slots */
    uint8_t *buffer;                    /* host, pinned: a slot */
    cudaStream_t stream;                /* which copies from there */
    Weight loaded[SLOT_LOADS][3];       /* the experts of slots.load as they lie in their slots */
    Bringer thread;
    int *seen;                          /* host, pinned [n_experts]: how often a step that fetches
                                         * chose each expert of a layer, behind `counted` */
    cudaEvent_t counted;
    SlotLoad *learnt;                   /* host [n_slots] */
    int loading;                        /* the thread shall do slots.load, or does it; guarded by
                                         * thread.lock */
} Cached;

/* An expert's three matrices in the mapped file. */
static void expert_of(const Layer *l, int e, Weight w[3]) {
    w[0] = l->expert_gate[e];
    w[1] = l->expert_up[e];
    w[2] = l->expert_down[e];
}

/* Bytes of a slot that has room for each of n experts of l. */
static size_t slot_bytes(const Layer *l, int n) {
    size_t most = 0;
    for (int e = 0; e < n; e++) {
        Store counted = {};
        Weight w[3];
        expert_of(l, e, w);
        for (Weight &m : w) upload_weight(&counted, &m);
        if (counted.memory.used > most) most = counted.memory.used;
    }
    return most;
}

/* Brings the expert l.in to its slot; w: its matrices there. */
static void load_slot(Cached *k, const SlotLoad &l, Weight w[3]) {
    Store slot = {};
    slot.memory.base = k->first[l.layer] + l.slot * k->bytes[l.layer];
    expert_of(&k->host[l.layer], l.in, w);
    for (int m = 0; m < 3; m++) upload_weight(&slot, &w[m]);
    const size_t bytes = slot.memory.used;
    Error err;
    if (gather(&slot, 0, bytes, k->buffer)) {
        fail_of_nan(&err);
        bringing_failed(&err);
    }
    free(slot.extent);
    check(cudaMemcpyAsync(slot.memory.base, k->buffer, bytes, cudaMemcpyHostToDevice, k->stream),
          "loading an expert");
    check(cudaStreamSynchronize(k->stream), "loading an expert");
}

/* The thread: does the loads that it is told to. */
static void *load_slots(void *arg) {
    Cached *k = (Cached *)arg;
    pthread_mutex_lock(&k->thread.lock);
    while (!k->thread.quit) {
        if (!k->loading) {
            pthread_cond_wait(&k->thread.changed, &k->thread.lock);
            continue;
        }
        pthread_mutex_unlock(&k->thread.lock);
        for (int i = 0; i < k->slots.n_loads; i++) load_slot(k, k->slots.load[i], k->loaded[i]);
        pthread_mutex_lock(&k->thread.lock);
        k->loading = 0;
        pthread_cond_broadcast(&k->thread.changed);
    }
    pthread_mutex_unlock(&k->thread.lock);
    return NULL;
}

/* Sets the entry of expert e in the lists of a layer to w, on the GPU from the next kernel of
 * `stream` on. */
static void set_entry(Cached *k, int layer, int e, const Weight w[3], cudaStream_t stream) {
    const Layer *l = &k->layer[layer];
    Weight *const to[3] = {l->expert_gate + e, l->expert_up + e, l->expert_down + e};
    for (int m = 0; m < 3; m++) {
        Weight *entry = &k->list[((size_t)3 * layer + m) * k->slots.n_experts + e];
        *entry = w[m];
        check(cudaMemcpyAsync(to[m], entry, sizeof *entry, cudaMemcpyHostToDevice, stream),
              "the experts' slots");
    }
}

/* What the lists hold of an expert without a slot. */
static Weight without_slot(Weight w) {
    w.data = w.block_scale = w.zero = NULL;
    return w;
}

/* The expert l.out has no slot from the next kernel of `stream` on. */
static void clear_entry(Cached *k, const SlotLoad &l, cudaStream_t stream) {
    Weight w[3];
    expert_of(&k->host[l.layer], l.out, w);
    for (Weight &m : w) m = without_slot(m);
    set_entry(k, l.layer, l.out, w, stream);
}

/* Copies the expert l.in to its slot.  fetched: its gate, up and down in the GPU's memory. */
static void keep_expert(Cached *k, const SlotLoad &l, const Weight *fetched[3],
                        cudaStream_t stream) {
    Store slot = {};
    Weight w[3];
    auto copy = [&](const uint8_t *to, const uint8_t *from, size_t bytes) {
        const cudaMemcpyKind kind = cudaMemcpyDeviceToDevice;
        if (to) check(cudaMemcpyAsync((void *)to, from, bytes, kind, stream), "an expert's slot");
    };
    slot.memory.base = k->first[l.layer] + l.slot * k->bytes[l.layer];
    expert_of(&k->host[l.layer], l.in, w);
    for (int m = 0; m < 3; m++) {
        upload_weight(&slot, &w[m]);
        copy(w[m].data, fetched[m]->data, w[m].rows * (size_t)row_bytes(w[m]));
        copy(w[m].block_scale, fetched[m]->block_scale, w[m].rows * (size_t)scale_pitch(w[m]));
    }
    free(slot.extent);
    set_entry(k, l.layer, l.in, w, stream);
}

/* A step that fetches has sorted a layer's choices: count [n_experts] goes to the host. */
static void cached_count(Cached *k, const int *count, cudaStream_t stream) {
    const size_t bytes = k->slots.n_experts * sizeof *count;
    check(cudaMemcpyAsync(k->seen, count, bytes, cudaMemcpyDeviceToHost, stream), "counts");
    check(cudaEventRecord(k->counted, stream), "counts");
}

/* Behind cached_count, when all that multiplies with the experts of `layer` has been launched, for
 * n tokens: the experts that are most popular get the slots.  list [gate, up, down][n_experts]: the
 * layer's experts in the GPU's memory, fetched or in slots. */
static void cached_learn(Cached *k, int layer, int n, const Weight *list, cudaStream_t stream) {
    const int experts = k->slots.n_experts;
    check(cudaEventSynchronize(k->counted), "counts");
    const int loads = slots_learn(&k->slots, layer, k->seen, n, k->learnt);
    for (int i = 0; i < loads; i++) {
        const SlotLoad &l = k->learnt[i];
        const Weight *fetched[] = {list + l.in, list + experts + l.in, list + 2 * experts + l.in};
        keep_expert(k, l, fetched, stream);
        clear_entry(k, l, stream);
    }
}

/* A step begins on `stream`.  The experts that were loaded during the step before get their
 * entries, and new loads begin, unless the step fetches. */
static void cached_begin(Cached *k, cudaStream_t stream, bool fetches) {
    Slots *s = &k->slots;
    if (!s->n_slots) return;
    pthread_mutex_lock(&k->thread.lock);
    while (k->loading) pthread_cond_wait(&k->thread.changed, &k->thread.lock);
    pthread_mutex_unlock(&k->thread.lock);
    for (int i = 0; i < s->n_loads; i++)
        set_entry(k, s->load[i].layer, s->load[i].in, k->loaded[i], stream);
    slots_arrive(s);
    if (fetches) return;
    slots_turn(s);
    if (!s->n_loads) return;
    for (int i = 0; i < s->n_loads; i++) clear_entry(k, s->load[i], stream);
    /* The step before has multiplied with what the slots hold until now. */
    check(cudaStreamSynchronize(stream), "the experts' slots");
    pthread_mutex_lock(&k->thread.lock);
    k->loading = 1;
    pthread_cond_broadcast(&k->thread.changed);
    pthread_mutex_unlock(&k->thread.lock);
}

/* Begins to count what the slots of n_layers take, of the layers at `host`.  layer: see Cached. */
static void cached_plan(Cached *k, const Layer *host, Layer *layer, int n_layers, int n_experts,
                        int n_slots) {
    slots_open(&k->slots, n_layers, n_experts, n_slots);
    if (!n_slots) return;
    k->host = host;
    k->layer = layer;
    k->list = (Weight *)xcalloc((size_t)3 * n_layers * n_experts, sizeof *k->list);
    k->first = (uint8_t **)xcalloc(n_layers, sizeof *k->first);
    k->bytes = (size_t *)xcalloc(n_layers, sizeof *k->bytes);
    k->learnt = (SlotLoad *)xcalloc(n_slots, sizeof *k->learnt);
}

/* Takes the buffer and starts the thread; k must not move.  Returns 0, or -1 with err. */
static int cached_start(Cached *k, Error *err) {
    size_t most = 0;
    for (int i = 0; i < k->slots.n_layers; i++) most = k->bytes[i] > most ? k->bytes[i] : most;
    cudaError_t e = cudaStreamCreate(&k->stream);
    if (e == cudaSuccess) e = cudaMallocHost((void **)&k->buffer, most);
    if (e == cudaSuccess) e = cudaMallocHost((void **)&k->seen, k->slots.n_experts * sizeof(int));
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&k->counted, cudaEventDisableTiming);
    if (e != cudaSuccess) return fail(err, "GPU: %s", cudaGetErrorString(e));
    return bringer_start(&k->thread, load_slots, k, err);
}

static void cached_close(Cached *k) {
    bringer_close(&k->thread);
    if (k->stream) cudaStreamDestroy(k->stream);
    if (k->buffer) cudaFreeHost(k->buffer);
    if (k->seen) cudaFreeHost(k->seen);
    if (k->counted) cudaEventDestroy(k->counted);
    slots_close(&k->slots);
    free(k->list);
    free(k->first);
    free(k->bytes);
    free(k->learnt);
}

/* ---- kernels ---- */

/* to [n] = the choices expert [n], -1 for those without a slot, which sort_kernel leaves out.
 * list: a layer's list of experts.  grid (n / THREADS, rounded up), THREADS threads. */
__global__ static void slots_only_kernel(int n, const Weight *list, const int *expert, int *to) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    ptx_grid_wait();
    if (i < n) to[i] = list[expert[i]].data ? expert[i] : -1;
}

/* sum [n][hidden], of the experts without a slot, += weight * out of the others, of n tokens.
 * expert, weight [n][top_k]: the choices; list: a layer's list of experts.  out [places][hidden]
 * and place [n][top_k]: as Residual has b and place.  weight NULL: out [hidden] is the sum of the
 * experts of one token.  grid (n, hidden / THREADS, rounded up), THREADS threads. */
__global__ static void add_slots_kernel(int hidden, int top_k, const Weight *list,
                                        const int *expert, const float *weight, const int *place,
                                        const float *out, float *sum) {
    const int t = blockIdx.x, column = blockIdx.y * THREADS + threadIdx.x;
    ptx_grid_wait();
    if (column >= hidden) return;
    float v = sum[(size_t)t * hidden + column];
    if (!weight) v += out[column];
    for (int k = t * top_k; weight && k < (t + 1) * top_k; k++) {
        if (!list[expert[k]].data) continue;
        v += weight[k] * out[(size_t)(place ? place[k] : k) * hidden + column];
    }
    sum[(size_t)t * hidden + column] = v;
}

#endif
