/* open.cu - opens a device: how much memory everything takes, who gets which part of it, which
 * kernels it uses, and loading the weights.
 *
 * The weights are copied once to the GPU's memory, nearly as they lie in the file: product.h says
 * how a matrix lies there, and load.cu which ones need no copy. */
#ifndef OPEN_CU
#define OPEN_CU

#include "launch.cu"
#include "vision.cu"

/* Puts the list copy [n_experts], whose pointers point to the host's memory, into the GPU's with
 * pointers that point there, too; returns it.  copy must stay until load_store has loaded
 * everything.  slots: NULL, or the list of the experts that have a slot: these are on the GPU
 * already. */
static Weight *upload_experts(Store *to, int n, Weight *copy, const Weight *slots) {
    for (int e = 0; e < n; e++) {
        if (slots && slots[e].data) copy[e] = slots[e];
        else upload_weight(to, &copy[e]);
    }
    return (Weight *)upload(to, copy, n * sizeof *copy);
}

/* upload_experts for all lists of layer i. */
static void upload_lists(Device *d, Store *to, int i, const Weight *slots) {
    const Layer *host = &d->w->layer[i];
    const int n = d->c->n_experts;
    const Weight *const from[3] = {host->expert_gate, host->expert_up, host->expert_down};
    Weight **const lists[3] = {&d->layer[i].expert_gate, &d->layer[i].expert_up,
                               &d->layer[i].expert_down};
    Weight *copy = d->experts + (size_t)3 * i * n;
    for (int m = 0; m < 3; m++, copy += n) {
        memcpy(copy, from[m], n * sizeof *copy);
        *lists[m] = upload_experts(to, n, copy, slots ? slots + m * n : NULL);
    }
}

/* Notes what is fetched of layer i: all experts but those that have a slot.  Without memory yet,
 * the room that they are fetched to has place for the largest of its layers. */
static void upload_fetched(Device *d, int i) {
    Store *to = &d->fetch.layer[i];
    Arena *room = &d->fetch.room[i % 2];
    const size_t before = (size_t)3 * i * d->c->n_experts;
    const bool slots = d->cached.slots.n_slots && room->base;
    to->memory = {room->base, 0};
    to->n = 0;
    upload_lists(d, to, i, slots ? d->cached.list + before : NULL);
    to->from_file = to->memory.used;
    if (!room->base) room->used = larger(room->used, to->memory.used);
}

/* A step begins that fetches. */
static void begin_fetching(Device *d) {
    if (d->cached.slots.n_slots) {
        fetch_halt(&d->fetch);
        for (int i = 0; i < d->fetch.n_layers; i++) upload_fetched(d, i);
    }
    fetch_begin(&d->fetch);
}

/* Takes place for the slots of layer i in the weights' memory, and for its lists of experts.  At
 * first slot e holds expert e. */
static void upload_slots(Device *d, int i) {
    Cached *k = &d->cached;
    const int n = d->c->n_experts;
    Store *to = &d->weights;
    Layer *l = &k->layer[i];
    Weight *list = k->list + (size_t)3 * i * n, w[3];
    *l = d->layer[i];
    k->bytes[i] = slot_bytes(k->host + i, n);
    k->first[i] = to->memory.base ? to->memory.base + to->memory.used : NULL;
    for (int e = 0; e < n; e++) {
        const size_t begin = to->memory.used;
        expert_of(k->host + i, e, w);
        for (int m = 0; m < 3; m++) {
            if (e < k->slots.n_slots) upload_weight(to, &w[m]);
            else w[m] = without_slot(w[m]);
            list[m * n + e] = w[m];
        }
        if (e < k->slots.n_slots) to->memory.used = begin + k->bytes[i];
    }
    Weight **const lists[3] = {&l->expert_gate, &l->expert_up, &l->expert_down};
    for (int m = 0; m < 3; m++)
        *lists[m] = (Weight *)upload(to, list + m * n, n * sizeof *list);
}

/* Where the experts of layer i go to: the weights' memory, or slots and the room that they are
 * fetched to. */
static void upload_layers_experts(Device *d, int i) {
    if (i >= d->cpu_experts) return upload_lists(d, &d->weights, i, NULL);
    if (d->cached.slots.n_slots) upload_slots(d, i);
    upload_fetched(d, i);
}

/* Hands out the head's copy; without memory yet it only counts the bytes. */
static void take_copy(Device *d, Arena *a) {
    const size_t each = d->c->backbone ? DRAFT_COLS : SCREEN_COLS, rows = d->head.rows;
    const size_t cols = (d->head.cols + each - 1) / each * each;
    Screen *s = &d->screen;
    if (d->c->backbone) {
        d->draft_head.cols = (int)cols;
        d->draft_head.q = (uint8_t *)take(a, rows * cols / 2);
        d->draft_head.scale = (uint16_t *)take(a, rows * cols / 32 * 2);
        return;
    }
    s->cols = (int)cols;
    s->worth = d->forced ? INT_MAX : tiles_of((int)rows) / WORTH;
    s->q = (int8_t *)take(a, rows * cols);
    s->scale = (uint16_t *)take(a, rows * cols / 32 * 2);
    s->error = (float *)take(a, 4 * rows);
    s->norm = (float *)take(a, 4 * rows);
    s->upper = (float *)take(a, 4 * HEAD_TOKENS * rows);
    s->few = (int *)take(a, 4 * (1 + (size_t)tiles_of((int)rows)));
    s->habit = (Habit *)take(a, sizeof *s->habit);
}

/* upload_all for layer i.  turns: NULL, or the frequencies of a kind of layer that have a place. */
static void upload_layer(Device *d, int i, float *turns[2]) {
    const Config *c = d->c;
    const Layer *host = &d->w->layer[i];
    Store *to = &d->weights;
    Layer *l = &d->layer[i];
    *l = *host;
    for (Weight *w : {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down, &l->router})
        upload_weight(to, w);
    for (float **v : {&l->input_norm, &l->post_attention_norm, &l->pre_mlp_norm, &l->post_mlp_norm,
                      &l->pre_experts_norm, &l->post_experts_norm, &l->post_ffn_norm,
                      &l->router_scale})
        upload_vector(to, v, c->hidden);
    upload_vector(to, &l->q_norm, l->head_dim);
    upload_vector(to, &l->k_norm, l->head_dim);
    upload_vector(to, &l->per_expert_scale, c->n_experts);
    float **turn = &turns[l->global];
    if (!*turn) *turn = (float *)upload(to, l->inv_freq, l->head_dim / 2 * sizeof(float));
    l->inv_freq = d->turns.inv_freq[l->global] = *turn;
    d->turns.half[l->global] = l->head_dim / 2;
    if (d->adapters.layer)
        d->adapters.layer[i] = upload_adapters(to, &d->adapters, host, c->n_experts);
    if (!c->n_experts) return;
    const Weight *gate = host->expert_gate, *up = host->expert_up, *down = host->expert_down;
    ExpertFormats f = {tile_format(gate[0]), tile_format(down[0]), 1, 1};
    for (int e = 0; e < c->n_experts; e++) {
        f.up = shared_format(shared_format(f.up, gate[0], gate[e]), gate[0], up[e]);
        f.down = shared_format(f.down, down[0], down[e]);
        f.packed_up &= is_nibbles(gate[e]) && is_nibbles(up[e]);
        f.packed_down &= is_nibbles(down[e]);
    }
    d->expert_formats[i] = f;
    upload_layers_experts(d, i);
}

/* Finds a place for all weights in d->weights and points d->layer there.  Without memory yet (base
 * NULL) it only counts the bytes: see Arena. */
static void upload_all(Device *d) {
    const Config *c = d->c;
    d->weights.memory.used = d->weights.left = 0;
    d->adapters.n = d->adapters.n_first = 0;
    d->embed = d->w->embed;
    if (c->backbone) d->embed = d->target->embed;
    else upload_weight(&d->weights, &d->embed);
    d->pre = d->w->pre;
    d->post = d->w->post;
    upload_weight(&d->weights, &d->pre);
    upload_weight(&d->weights, &d->post);
    d->head = d->w->head;
    if (d->w->head.data == d->w->embed.data) d->head = d->embed;
    else upload_weight(&d->weights, &d->head);
    d->final_norm = d->w->final_norm;
    upload_vector(&d->weights, &d->final_norm, c->hidden);
    float *turns[2] = {NULL, NULL};     /* RoPE's frequencies: all layers of a kind share them */
    for (int i = 0; i < c->n_layers; i++) upload_layer(d, i, turns);
    d->weights.from_file = d->weights.memory.used;
    if (d->screened) take_copy(d, &d->weights.memory);
}

/* The largest arrays that attention may need, over all layers, kernels and steps of up to max_n
 * tokens. */
typedef struct {
    size_t qkv, att;                    /* numbers of q, k, v and of att, for one token */
    size_t partials;                    /* partial results, and tickets, of a launch */
    size_t partial_floats;              /* floats of all partial results of a launch */
} MostAttention;

static MostAttention most_attention(const Device *d, int max_n) {
    const Config *c = d->c;
    const Layer *before = NULL;
    MostAttention most = {};
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &d->w->layer[i];
        if (before && before->head_dim == l->head_dim && before->n_kv_heads == l->n_kv_heads)
            continue;                   /* it needs the same */
        before = l;
        most.qkv = larger(most.qkv, (size_t)(c->n_heads + 2 * l->n_kv_heads) * l->head_dim);
        most.att = larger(most.att, (size_t)c->n_heads * l->head_dim);
        KvCache kv = {};                /* whatever the cache will be: this one needs most */
        kv.dtype = DT_F8_E4M3;
        kv.k_dim = l->head_dim;
        kv.slots = INT32_MAX;
        for (int n = 1; n <= max_n; n++)
            for (int parts = 1; parts <= 2; parts++) {
                AttendPlan p = attend_plan(l, &kv, c->n_heads, n, INT64_MAX, parts,
                                           d->stream_blocks, SIZE_MAX);
                most.partials = larger(most.partials, p.partials);
                most.partial_floats = larger(most.partial_floats, p.partials * p.partial_floats);
            }
    }
    return most;
}

/* Hands out what the adapters compute with, for steps of up to max_n tokens. */
static void take_adapted(Device *d, int max_n) {
    const Config *c = d->c;
    const size_t pairs = (size_t)max_n * c->top_k;
    size_t sums = 0;
    if (!d->adapters.layer) return;
    for (int i = 0; i < c->n_layers; i++) {
        const LayerAdapters *l = &d->adapters.layer[i];
        if (l->gate_up.n) sums = larger(sums, (size_t)max_n * 2 * c->intermediate);
        if (l->expert_gate_up.n) sums = larger(sums, pairs * 2 * c->expert_size);
    }
    d->adapters.low = (float *)take(&d->acts, 4 * larger(max_n, pairs) * d->adapters.width);
    d->adapters.sums = (float *)take(&d->acts, 4 * sums);
}

/* Hands out the activations, of which struct Device has the shapes.  Without memory yet (base NULL)
 * it only counts the bytes: see Arena. */
static void take_activations(Device *d, int max_n) {
    const Config *c = d->c;
    const MostAttention most = most_attention(d, max_n);
    const size_t n = max_n, qkv = most.qkv, att = most.att;
    Arena *a = &d->acts;
    a->used = 0;
    size_t y = 2 * n * d->y_parts, width = padded(c->hidden), k = c->top_k;
    d->step = (Step *)take(a, step_bytes(n));
    d->turns.pos = d->where = (int64_t *)d->step;       /* its first field */
    d->ids = step_ids(d->step);
    for (int kind = 0; kind < 2; kind++)
        d->turns.turn[kind] = (float2 *)take(a, n * d->turns.half[kind] * sizeof(float2));
    d->last = (int *)take(a, n * sizeof(int));
    d->x[0] = (float *)take(a, 4 * n * c->hidden);
    d->x[1] = (float *)take(a, 4 * STREAMED_TOKENS * (size_t)c->hidden);
    d->qkv = (float *)take(a, 4 * n * qkv);
    d->att = (float *)take(a, 4 * n * att);
    d->o = (float *)take(a, 4 * n * c->hidden);
    d->score = (float *)take(a, 4 * n * c->n_experts);
    d->expert = (int *)take(a, 4 * n * k);
    d->expert_weight = (float *)take(a, 4 * n * k);
    for (int g = 0; g < 2; g++)
        d->att_vector[g] = (uint16_t *)take(a, rows_bytes(STREAMED_TOKENS, (int)att));
    d->act_vector = (uint16_t *)take(a, rows_bytes(STREAMED_TOKENS, c->intermediate));
    d->few_y = (uint16_t *)take(a, rows_bytes(STREAMED_TOKENS, c->hidden));
    d->few_y_experts = (uint16_t *)take(a, rows_bytes(STREAMED_TOKENS, c->hidden));
    d->few_expert_act = (uint16_t *)take(a, rows_bytes(STREAMED_TOKENS * c->top_k, c->expert_size));
    d->few_sums = (float *)take(a, (size_t)4 * STREAMED_TOKENS * 2 * c->intermediate);
    size_t expert_sums = (size_t)STREAMED_TOKENS * 2 * c->top_k * c->expert_size;
    d->few_expert_sums = (float *)take(a, 4 * expert_sums);
    d->few_routes = (uint8_t *)take(a, routes_bytes(c->n_experts));
    d->few_head_y = (uint16_t *)take(a, rows_bytes(HEAD_TOKENS * ROW_PARTS, c->hidden));
    d->expert_vector = (uint16_t *)take(a, vector_bytes(c->top_k * wide(c->expert_size)));
    d->expert_out = (float *)take(a, 4 * n * k * c->hidden);
    if (d->cpu_experts) d->given = (unsigned *)take(a, sizeof *d->given);
    d->h1 = (float *)take(a, 4 * n * c->hidden);
    d->h2 = (float *)take(a, 4 * c->hidden);
    d->h = (float *)take(a, 4 * c->hidden);
    d->pair = (float *)take(a, 4 * 2 * c->backbone);
    d->y = (uint16_t *)take(a, y * width);
    d->y_experts = (uint16_t *)take(a, y * width);
    d->y_router = (uint16_t *)take(a, 2 * n * 3 * width);
    d->y_att = (uint16_t *)take(a, y * padded(att));
    d->act = (uint16_t *)take(a, y * padded(c->intermediate));
    d->expert_act = (uint16_t *)take(a, y * k * padded(c->expert_size));
    if (d->fp4_activations) {
        size_t dense = larger(larger(width, padded(att)), padded(c->intermediate));
        size_t numbers = n * larger(dense, k * padded(c->expert_size));
        d->fp4.data = (uint8_t *)take(a, numbers / 2);
        d->fp4.scale = (uint8_t *)take(a, numbers / 16);
        d->fp4.factor = (float *)take(a, 4 * n * larger(1, k));
    }
    d->list = (int *)take(a, 4 * n * k);
    d->place = (int *)take(a, 4 * n * k);
    d->first = (int *)take(a, 4 * c->n_experts);
    d->count = (int *)take(a, 4 * c->n_experts);
    d->n_tiles = (int *)take(a, 4);
    d->tile = (Tile *)take(a, sizeof(Tile) * (n * k / 32 + c->n_experts));
    d->column_partial = (float4 *)take(a, (size_t)d->stream_blocks * 16 * THREADS * sizeof(float4));
    d->column_ticket = (unsigned *)take(a, 2 * d->stream_blocks * sizeof(unsigned));
    d->sort_ticket = (unsigned *)take(a, 4);
    d->partial = (float *)take(a, 4 * most.partial_floats);
    d->ticket = (unsigned *)take(a, 4 * most.partials);
    d->logits = (float *)take(a, 4 * (size_t)d->n_logits * c->vocab);
    d->selection = (Selection *)take(a, d->n_logits * sizeof *d->selection);
    d->top = (Top *)take(a, d->n_logits * sizeof *d->top);
    take_adapted(d, max_n);
}

/* ---- experts on the CPU ---- */

static void close_offload(Device *d) {
    offload_close(d->offload);
    hand_over_give(&d->hand_over);
}

/* Sets d->serves_first: where the GPU ends kernels that take some seconds, as one that draws a
 * desktop does, and where CUDA_LAUNCH_BLOCKING makes each launch wait until its kernel has ended.
 * 0, or -1 with err. */
static int choose_serving(Device *d, Error *err) {
    const char *blocking = getenv("CUDA_LAUNCH_BLOCKING");
    const cudaError_t e = cudaDeviceGetAttribute(&d->serves_first, cudaDevAttrKernelExecTimeout, 0);
    if (e != cudaSuccess) return fail(err, "GPU: %s", cudaGetErrorString(e));
    d->serves_first |= blocking && atoi(blocking);
    return 0;
}

/* Opens what a device with cpu_experts > 0 needs to hand tokens over to the CPU.  0, or -1 with
 * err; close_offload frees all of it in either case. */
static int open_offload(Device *d, const DeviceOptions *o, Error *err) {
    if (choose_serving(d, err) || hand_over_take(&d->hand_over, o->max_n, d->c, err)) return -1;
    d->offload = offload_open(d->c, d->w, o, &d->hand_over, err);
    return d->offload ? 0 : -1;
}

/* ---- the device ---- */

static void cuda_close(Device *d) {
    if (!d) return;
    cached_close(&d->cached);           /* first: its thread may be loading an expert */
    sight_close(d->sight);
    give(&d->weights.memory);
    give(&d->acts);
    if (d->stream && !d->target) cudaStreamDestroy(d->stream);
    fetch_close(&d->fetch, d->cpu_experts);
    close_offload(d);
    if (d->back) cudaFreeHost(d->back);
    if (d->next) cudaFreeHost(d->next);
    for (int n = 1; n <= MAX_RECORDED; n++)
        if (d->recorded[n].graph) cudaGraphExecDestroy(d->recorded[n].graph);
    free(d->host_last);
    free(d->layer);
    free(d->experts);
    free(d->expert_formats);
    adapters_free(&d->adapters);
    free(d->weights.extent);
    free(d);
}

/* The most dynamic shared memory that a kernel that streams weights needs for one token, in any
 * layer or the head.  row_kernel makes do with what there is. */
static size_t most_shared(const Device *d) {
    size_t most = larger(mlp_shared(d), normed_shared(d));
    return d->c->n_experts ? larger(most, larger(up_shared(d), down_shared(d))) : most;
}

/* A kernel, with the threads and the bytes of dynamic shared memory of a block. */
typedef struct {
    const char *name;
    const void *kernel;
    int threads, fixed;                 /* fixed: it declares no more static shared memory */
    size_t bytes;
} Needed;

/* Lets a kernel have all the dynamic shared memory that there is, because another open model may
 * need more than this one's k.bytes.  Returns 0, or -1 with err: not even one block of it fits on a
 * multiprocessor. */
static int allow(const Device *d, const Needed &k, Error *err) {
    int limit = d->shared_limit + STATIC_SHARED - k.fixed;
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (k.bytes <= (size_t)limit && cudaFuncSetAttribute(k.kernel, most, limit) == cudaSuccess &&
        gpu_fits(k.kernel, k.threads, k.bytes, 1))
        return 0;
    cudaDeviceProp gpu = {};
    cudaGetDeviceProperties(&gpu, 0);
    cudaGetLastError();                 /* it is dealt with */
    return fail(err, "GPU: a block of %s (%d threads, %zu KB of shared memory) does not fit on a "
                     "multiprocessor of %.63s", k.name, k.threads, k.bytes / 1024, gpu.name);
}

/* Allows shared memory to all kernels that may want more than the 48 KB that are always there.  0,
 * or -1 with err. */
static int allow_shared(Device *d, Error *err) {
    size_t plain = 0, most = most_shared(d), row = 4 * (size_t)d->c->hidden;
    for (int i = 0; i < d->c->n_layers; i++)
        plain = larger(plain, plain_attend_shared(&d->w->layer[i], d->c->n_heads));
#define NEEDED(kernel, threads, fixed, bytes) \
    {#kernel, (const void *)kernel, threads, fixed, bytes}
#define STREAMS(kernel)                                                                          \
    NEEDED(kernel<DEEP>, STREAM_THREADS, STREAM_STATIC, most),                                   \
    NEEDED(kernel<SHALLOW>, STREAM_THREADS, STREAM_STATIC, most),                                \
    NEEDED(kernel<DEEP + EVERY_KIND>, STREAM_THREADS, STREAM_STATIC, most),                      \
    NEEDED(kernel<SHALLOW + EVERY_KIND>, STREAM_THREADS, STREAM_STATIC, most)
    const Needed needed[] = {
        NEEDED(plain_attend_kernel, 128, STATIC_SHARED, plain),
        STREAMS(row_kernel), STREAMS(head_kernel), STREAMS(qkv_kernel), STREAMS(mlp_rows_kernel),
        STREAMS(experts_up_kernel), STREAMS(experts_down_kernel), STREAMS(few_rows_kernel),
        STREAMS(few_up_kernel), STREAMS(few_down_kernel), STREAMS(few_head_kernel),
        NEEDED(norm_kernel, STREAM_THREADS, STATIC_SHARED, row),
        NEEDED(few_norm_kernel, STREAM_THREADS, STATIC_SHARED, row),
        NEEDED(hidden_kernel, THREADS, STATIC_SHARED, row),
        NEEDED(screen_kernel, THREADS, STATIC_SHARED, row),
        NEEDED(draft_kernel, THREADS, STATIC_SHARED, row)};
#undef STREAMS
#undef NEEDED
    for (const Needed &k : needed)
        if (allow(d, k, err)) return -1;
    for (const AttendVariant &v : attend_variant) {
        const int threads = 32 * v.row_warps * v.col_warps;
        if (allow(d, {"attention", (const void *)v.kernel, threads, STATIC_SHARED, 0}, err))
            return -1;
    }
    for (const Gemm &g : gemms)
        if (allow(d, {"gemm_kernel", (const void *)g.kernel, THREADS, STATIC_SHARED, GEMM_SHARED},
                  err))
            return -1;
    return 0;
}

/* Bytes that a launch that reads little brings into an L2 cache of so many bytes (Device.ahead).
 * Most of the cache is for what is in use meanwhile, so a quarter of it, and at most 12 MB, which
 * is what an RTX 5090 reads while attention computes.  Of a small cache (an RTX 3090 has 6 MB) a
 * quarter is soon there, so up to 3 MB, but half of it: a window's keys and values, 4 MB, go
 * through the cache meanwhile, and nobody reads them again.  To tune it, compare bench/gpusim
 * --gpu 3090,H200,5090 --step decode,verify. */
static int ahead_of(int cache) {
    const int little = cache / 2 < (3 << 20) ? cache / 2 : 3 << 20;
    const int much = cache / 4 < (12 << 20) ? cache / 4 : 12 << 20;
    return much > little ? much : little;
}

/* Loads the kernels of a step ahead.  CUDA loads a kernel when it is first used, which would delay
 * the first step.  allow_shared has loaded its kernels already; these are the others. */
static void load_kernels(void) {
    const void *kernel[] = {
        (const void *)embed_kernel, (const void *)norm_rope_kernel, (const void *)parts_kernel,
        (const void *)route_kernel, (const void *)sort_kernel, (const void *)count_kernel,
        (const void *)collect_kernel, (const void *)best_kernel, (const void *)pick_kernel,
        (const void *)join_attend_kernel,
        (const void *)low_kernel<1>, (const void *)low_kernel<ADAPTED_CASES>,
        (const void *)adapt_kernel<1>, (const void *)adapt_kernel<ADAPTED_CASES>,
        (const void *)gelu_kernel, (const void *)hand_over_kernel,
        (const void *)take_sum_kernel, (const void *)slots_only_kernel,
        (const void *)add_slots_kernel};
    cudaFuncAttributes loaded = {};
    for (size_t i = 0; i < sizeof kernel / sizeof *kernel; i++)
        check(cudaFuncGetAttributes(&loaded, kernel[i]), "loading a kernel");
}

/* Decides whether the head gets a copy (d->screened): as GEMMA4_HEAD says; otherwise if the session
 * wants one (copy_head) and the head is such that a copy pays (d->copy_pays).  A drafter's makes
 * other drafts than the head, so an exact drafter has none.  0, or -1 with err. */
static int choose_head(Device *d, const DeviceOptions *o, Error *err) {
    const char *how = getenv("GEMMA4_HEAD");
    const Weight *head = &d->w->head;
    const int whole = how && !strcmp(how, "whole");
    d->forced = how && !strcmp(how, "screened");
    if (how && *how && !whole && !d->forced)
        return fail(err, "GEMMA4_HEAD is \"%s\", must be \"screened\" or \"whole\"", how);
    if (d->forced && head->dtype != DT_BF16)
        return fail(err, "GEMMA4_HEAD=screened: the head is %s, must be BF16",
                    dtype_name[head->dtype]);
    const size_t bytes = (size_t)head->rows * row_bytes(*head);
    d->copy_pays = !whole && head->dtype == DT_BF16 && bytes >= SCREEN_LEAST &&
                   !(d->c->backbone && o->exact);
    d->screened = d->forced || (o->copy_head && d->copy_pays);
    return 0;
}

/* Sets gpu_no_graph and its neighbours from GEMMA4_CUDA, a list of names with commas between.  0,
 * or -1 with err. */
static int choose_switches(Error *err) {
    static const struct { const char *name; int *on; } known[] = {
        {"no-graph", &gpu_no_graph}, {"no-overlap", &gpu_no_overlap}, {"sync", &gpu_sync},
        {"wgmma", &gpu_wgmma}, {"copy", &gpu_copy}};
    const char *at = getenv("GEMMA4_CUDA");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) *known[i].on = 0;
    for (; at && *at; at += *at == ',') {
        size_t n = strcspn(at, ","), i = 0, all = sizeof known / sizeof *known;
        while (i < all && (strlen(known[i].name) != n || strncmp(known[i].name, at, n))) i++;
        if (i == all)
            return fail(err, "GEMMA4_CUDA: \"%.*s\" is not one of no-graph, no-overlap, sync, "
                             "wgmma, copy", (int)n, at);
        *known[i].on = 1;
        at += n;
    }
    return 0;
}

/* Decides d->wgmma and d->wgmma_experts.  hopper.cu's machine code is for compute capability 9.0
 * and no other. */
static int choose_wgmma(Device *d, Error *err) {
    int major = 0, minor = 0;
    if (!gpu_wgmma) return 0;
    cudaError_t e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    if (e != cudaSuccess) return fail(err, "GPU: %s", cudaGetErrorString(e));
    if (major != 9 || minor)
        return fail(err, "GEMMA4_CUDA: wgmma needs compute capability 9.0, this GPU has %d.%d",
                    major, minor);
    d->wgmma = d->wgmma_experts = 1;
    for (int i = 0; i < d->c->n_layers; i++)
        for (int e = 0; e < d->c->n_experts; e++) {
            const Layer *l = &d->w->layer[i];
            const Weight *gate = l->expert_gate, *down = l->expert_down;
            d->wgmma_experts &= hopper_knows(gate[e], l->expert_up[e]) &&
                                hopper_knows(down[e], {}) && gate[e].dtype == gate[0].dtype &&
                                down[e].dtype == down[0].dtype;
        }
    return 0;
}

/* Whether one of the n matrices at w, which stream.cu multiplies, needs EVERY_KIND. */
static int are_other_kinds(const Weight *w, int n) {
    for (int i = 0; i < n; i++)
        if (w[i].data && w[i].dtype != DT_BF16 && w[i].dtype != DT_F32 && w[i].dtype != DT_U8)
            return 1;
    return 0;
}
static int has_other_kinds(const Device *d) {
    const int n = d->c->n_experts;
    const Weight ends[] = {d->w->head, d->w->pre, d->w->post};
    int other = are_other_kinds(ends, 3);
    for (int i = 0; i < d->c->n_layers; i++) {
        const Layer *l = &d->w->layer[i];
        const Weight one[] = {l->q, l->k, l->v, l->o, l->gate, l->up, l->down, l->router};
        other |= are_other_kinds(one, 8) || are_other_kinds(l->expert_gate, n) ||
                 are_other_kinds(l->expert_up, n) || are_other_kinds(l->expert_down, n);
    }
    return other;
}

/* Sets s->in_place, for a GPU that shares the machine's memory.  One with memory of its own may be
 * able to read the mapped file, too, but over the bus.  0, or -1 with err. */
static int choose_place(Store *s, Error *err) {
    int shares = 0, reads = 0;
    cudaError_t e = cudaDeviceGetAttribute(&shares, cudaDevAttrIntegrated, 0);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&reads, cudaDevAttrPageableMemoryAccess, 0);
    s->in_place = shares && reads && !gpu_copy;
    return e == cudaSuccess ? 0 : fail(err, "GPU: %s", cudaGetErrorString(e));
}

/* A device without memory yet, whose arenas have counted how much it needs.  NULL with err. */
static Device *planned(const Config *c, const Weights *w, const DeviceOptions *o, Error *err) {
    Device *d = (Device *)xcalloc(1, sizeof *d);
    d->c = c;
    d->w = w;
    d->n_logits = o->max_n < 16 ? o->max_n : 16;
    d->n_threads = o->n_threads;
    d->target = o->target;
    d->wanted = 1;
    d->y_parts = o->exact ? 3 : 1;
    d->attend_parts = o->exact ? 2 : 1;
    d->fp4_activations = o->fp4_activations;
    d->cpu_experts = c->n_experts ? o->cpu_experts : 0;
    d->fetch.n_layers = o->fetch_experts ? d->cpu_experts : 0;
    d->fetch.layer = (Store *)xcalloc(d->cpu_experts, sizeof *d->fetch.layer);
    gpu_limit = o->memory_limit;
    d->layer = (Layer *)xcalloc(2 * c->n_layers, sizeof *d->layer);
    d->host_last = (int *)xcalloc(o->max_n, sizeof *d->host_last);
    d->expert_formats = (ExpertFormats *)xcalloc(c->n_layers, sizeof *d->expert_formats);
    d->experts = (Weight *)xcalloc((size_t)3 * c->n_layers * c->n_experts, sizeof *d->experts);
    d->adapters = adapters_for(c, w);
    cached_plan(&d->cached, w->layer, d->layer + c->n_layers, d->cpu_experts, c->n_experts,
                d->cpu_experts ? o->expert_slots : 0);
    int n_sm = 0;
    cudaFuncAttributes loaded = {};
    const cudaDeviceAttr most_shared_memory = cudaDevAttrMaxSharedMemoryPerBlockOptin;
    cudaError_t e = cudaDeviceGetAttribute(&d->shared_limit, most_shared_memory, 0);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&d->cache, cudaDevAttrL2CacheSize, 0);
    if (e == cudaSuccess) e = cudaFuncGetAttributes(&loaded, row_kernel<DEEP>);
    d->shared_limit -= STATIC_SHARED;
    d->ahead = ahead_of(d->cache);
    /* Machine code from PTX for sm_80 has no ptx_grid_wait, whatever the chip is. */
    gpu_can_overlap = loaded.ptxVersion >= 90;
    if (e != cudaSuccess) fail(err, "GPU: %s", cudaGetErrorString(e));
    d->stream_blocks = n_sm;
    d->deep = d->shared_limit > 160 * 1024;
    d->every_kind = has_other_kinds(d);
    int bad = e != cudaSuccess || choose_head(d, o, err) || choose_switches(err) ||
              choose_place(&d->weights, err) || choose_wgmma(d, err) ||
              (o->fp4_activations && !fp4_found(err));
    if (!bad && o->fp4_activations && o->exact)
        bad = fail(err, "GPU: FP4 activations are not exact");
    gpu_overlap = gpu_can_overlap && !gpu_no_overlap;
    if (!bad && (c->n_experts > 32 * EACH_LANE || c->top_k > 32))
        bad = fail(err, "GPU: %d experts, of which a token takes %d: at most %d and 32 are known "
                        "here", c->n_experts, c->top_k, 32 * EACH_LANE);
    gpu_n_fits = 0;
    if (bad || allow_shared(d, err)) {
        cuda_close(d);
        return NULL;
    }
    upload_all(d);
    take_activations(d, o->max_n);
    return d;
}

static int cuda_memory(const Config *c, const Weights *w, const DeviceOptions *o, Memory *m,
                       Error *err) {
    cudaDeviceProp gpu;
    size_t room = 0, total = 0;
    Device *d = planned(c, w, o, err);
    if (!d) return -1;
    cudaError_t e = cudaGetDeviceProperties(&gpu, 0);
    if (e == cudaSuccess) e = free_memory(&room, &total);
    if (e != cudaSuccess) {
        cuda_close(d);
        return fail(err, "GPU: %s", cudaGetErrorString(e));
    }
    snprintf(m->name, sizeof m->name, "%.63s", gpu.name);
    m->weights = d->weights.memory.used + d->weights.left;
    m->activations = d->acts.used;
    /* A drafter leaves room for its target's pictures. */
    const Tower *tower = o->target ? &o->target->w->tower : &w->tower;
    const int tower_to_come = tower->n_layers && !(o->target && o->target->sight);
    m->pictures = tower_to_come ? sight_bytes(tower) : 0;
    Arena copy = {};
    if (d->copy_pays && !d->screened) take_copy(d, &copy);
    m->head_copy = copy.used;
    m->expert_room = d->fetch.room[0].used + d->fetch.room[1].used;
    m->expert_slots = d->cached.slots.n_slots;
    m->free = room;
    m->total = total;
    cuda_close(d);
    return 0;
}

/* Takes the memory that planned() has counted and gives everything its place in it. */
static int prepare(Device *d, const DeviceOptions *o, Error *err) {
    if (d->target) d->stream = d->target->stream;
    cudaError_t e = d->target ? cudaSuccess : cudaStreamCreate(&d->stream);
    if (e == cudaSuccess) e = cudaMallocHost((void **)&d->back, d->n_logits * sizeof *d->back);
    if (e == cudaSuccess) e = cudaMallocHost((void **)&d->next, step_bytes(o->max_n));
    int bad = e == cudaSuccess ? 0 : fail(err, "GPU: %s", cudaGetErrorString(e));
    cudaGetLastError();                 /* it is dealt with */
    if (!bad) bad = take_memory(&d->weights.memory, "the weights", err);
    if (!bad) bad = take_memory(&d->acts, "the activations (--chunk)", err);
    if (!bad && d->cpu_experts) bad = open_offload(d, o, err);
    if (!bad && d->fetch.n_layers) bad = fetch_take(&d->fetch, o->n_threads, err);
    if (!bad && d->wgmma) bad = hopper_open(err);
    if (bad) return bad;
    upload_all(d);
    take_activations(d, o->max_n);
    return 0;
}

static Device *cuda_open(const Config *c, const Weights *w, const DeviceOptions *o, Error *err) {
    Device *d = planned(c, w, o, err);
    if (!d) return NULL;
    int bad = prepare(d, o, err);
    if (!bad) load_kernels();
    if (!bad && d->fetch.n_layers) bad = fetch_start(&d->fetch, err);
    if (!bad) bad = load_store(&d->weights, d->stream, o->n_threads, o->loading, err);
    if (!bad && d->cached.slots.n_slots) bad = cached_start(&d->cached, err);
    if (bad) {
        cuda_close(d);
        return NULL;
    }
    /* Tickets and counts begin at zero. */
    check(cudaMemset(d->acts.base, 0, d->acts.used), "clearing memory");
    if (d->screened && c->backbone) {
        GPU_LAUNCH(draft_copy_kernel, dim3(1024), dim3(THREADS), 0, d->stream, d->head,
                   d->draft_head);
        check(cudaGetLastError(), "head's copy");
    } else if (d->screened) {
        check(cudaMemset(d->screen.habit, 0, sizeof *d->screen.habit), "clearing memory");
        GPU_LAUNCH(screen_copy_kernel, dim3(1024), dim3(THREADS), 0, d->stream, d->head, d->screen);
        check(cudaGetLastError(), "head's int8 copy");
    }
    return d;
}

#endif
