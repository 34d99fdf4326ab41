/* cuda.cu - the operations of ops.h on an NVIDIA GPU: memory, launches, and the table of
 * operations.
 *
 * The weights are copied once to the GPU's memory, each matrix as it lies in the file, but for
 * rows that are no multiple of 64 columns.  One token takes six launches a layer (a dense layer
 * five): sums over a whole vector, which the RMSNorms need, end a launch, and the next one's
 * blocks all do the norm for themselves.  So attn_out and join only note what is still to be
 * added to the residual stream (`rest`), and the next operation adds it.  Several tokens are
 * normed once, by kernels of their own, and multiplied in tiles. */
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int gpu_overlap;

#include "fp4.h"
#include "hopper.h"
#include "load.cu"
#include "residual.cu"
#include "nvfp4.cu"
#include "stream.cu"
#include "attention.cu"
#include "moe.cu"
#include "head.cu"

/* GEMMA4_CUDA says what is left out to find a fault, and what is tried.  With gpu_sync the host
 * waits after every launch; with gpu_wgmma hopper.cu multiplies many tokens. */
static int gpu_no_graph, gpu_no_overlap, gpu_sync, gpu_wgmma;

#define STATIC_SHARED 1024              /* bytes; more than a kernel with dynamic shared memory declares besides, … */
#define STREAM_STATIC 5120              /* … and than one that streams weights */

/* A step as a graph, and what it leaves behind in the fields of the same names. */
typedef struct {
    cudaGraphExec_t graph;
    int used, at, all_logits;           /* used: how often it was done without */
    Residual rest;
} Recorded;

/* Of a layer's experts: gates and ups, and downs. */
typedef struct {
    TileFormat up, down;
} ExpertFormats;

struct Device {
    const Config *c;
    const Weights *w;                   /* on the host: tells which layer is meant */
    Layer *layer;                       /* [n_layers] the same with pointers to the GPU's memory */
    Weight *experts;                    /* [n_layers][gate, up, down][n_experts] likewise */
    ExpertFormats *expert_formats;      /* [n_layers] */
    Weight embed, head;                 /* embed on a drafter's device: its target's */
    Weight pre, post;
    Screen screen;
    int screened;                       /* there is such a copy */
    int copy_pays;                      /* there may be one: the head is BF16 and large */
    int forced;                         /* by GEMMA4_HEAD: there is one, which is always used */
    float *final_norm;
    Store weights;
    Arena acts;
    cudaStream_t stream;
    int n;
    Step *step;                         /* in the GPU's memory, */
    int64_t *where;                     /* … and its pos */
    Turns turns;
    /* Activations, float32 [max_n][…]; see the kernels. */
    float *x[2];                        /* the residual stream, and where it goes when many blocks still read it */
    int at;                             /* which of them it is in */
    Residual rest;                      /* what is to be added to it; rest.a NULL: nothing */
    int y_parts, attend_parts;          /* several tokens: BF16 numbers that make one of theirs, in products and in attention */
    int stream_blocks, deep;            /* one token: the blocks of a launch; their ring is DEEP, not SHALLOW */
    int row_blocks;                     /* blocks of other kernels in which rows stream by */
    Recorded recorded[MAX_RECORDED + 1];        /* by the number of tokens */
    int recording;
    /* Page-locked memory of the host, from and to which copies do not hold up the stream: the next
     * step, which the stream fetches, with the ids; what it brings back.  under_way: it may not
     * have done so yet. */
    Step *next;
    int *next_ids, under_way, wanted;   /* wanted: the k that was asked for last */
    Top *back;                          /* [n_logits] */
    int wgmma, wgmma_experts;           /* hopper.cu multiplies, and the experts, too */
    int shared_limit;                   /* bytes of dynamic shared memory that a block can have */
    int pictures, *last, *host_last;    /* there are some in this step; of each token, the last that it sees in sliding layers */
    int *ids;
    float *qkv, *att, *o, *score, *expert_weight, *expert_out, *h1, *h2, *part, *logits;
    float *h, *pair;                    /* [hidden] for the host; a drafter's [2 * backbone] */
    uint16_t *y, *y_experts, *y_router, *y_att, *act, *expert_act;              /* BF16 [parts][max_n][…], for products */
    int fp4_activations;
    Fp4Rows fp4;                        /* one of those, as NVFP4, for the next product */
    /* One token: vectors that are split for the next product (see stream.cu); attend_vector: the
     * one of these two that holds what attention left, or NULL: att does. */
    uint16_t *att_vector[2], *attend_vector, *act_vector, *expert_vector;
    int *expert, *list, *place, *first, *count, *n_tiles;
    Tile *tile;
    float4 *column_part;                /* for blocks that share columns: see WarpTile::join */
    unsigned *ticket, *sort_ticket, *column_ticket;
    int n_logits;                       /* rows that `logits` has room for */
    int all_logits;                     /* those of this step's tokens are there */
    int ranked;                         /* of each, so many of the largest go to `back`; 0: none */
    Selection *selection;               /* [n_logits], likewise */
    Top *top;
    struct Sight *sight;                /* the vision tower, once there was a picture; NULL: not yet, or there is no room */
    int n_threads;                      /* of the host */
    Device *target;                     /* of a drafter, whose stream it uses and whose embedding */
};

static void *upload(Store *s, const void *host, size_t bytes) { return put_rows(s, host, 1, bytes, bytes); }

static void upload_vector(Store *s, float **v, int n) {
    if (*v) *v = (float *)upload(s, *v, n * sizeof(float));
}

static void upload_weight(Store *s, Weight *w) {
    if (!w->data) return;
    size_t pitch = row_bytes(*w), bytes = w->dtype == DT_U8 ? w->cols / 2 : w->cols * dtype_size[w->dtype];
    w->data = (const uint8_t *)put_rows(s, w->data, w->rows, bytes, pitch);
    if (w->block_scale) w->block_scale = (const uint8_t *)put_rows(s, w->block_scale, w->rows, w->cols / 16, pitch / 8);
}

/* *experts becomes a copy of the list with pointers to the GPU's memory, on the GPU; its host's
 * copy, which is kept until everything is loaded, is `copy`. */
static void upload_experts(Device *d, Weight **experts, Weight *copy) {
    int n = d->c->n_experts;
    memcpy(copy, *experts, n * sizeof *copy);
    for (int e = 0; e < n; e++) upload_weight(&d->weights, &copy[e]);
    *experts = (Weight *)upload(&d->weights, copy, n * sizeof *copy);
}

/* Hands out the head's int8 copy; without memory yet it only counts the bytes. */
static void take_screen(Device *d, Arena *a) {
    size_t rows = d->head.rows, cols = (d->head.cols + PART - 1) / PART * PART;
    Screen *s = &d->screen;
    s->cols = (int)cols;
    s->worth = d->forced ? INT_MAX : tiles_of((int)rows) / WORTH;
    s->q = (int8_t *)take(a, rows * cols);
    s->scale = (uint16_t *)take(a, rows * cols / 32 * 2);
    s->error = (float *)take(a, 4 * rows);
    s->norm = (float *)take(a, 4 * rows);
    s->upper = (float *)take(a, 4 * rows);
    s->few = (int *)take(a, 4 * (1 + (size_t)tiles_of((int)rows)));
    s->habit = (Habit *)take(a, sizeof *s->habit);
}

/* Finds a place for all weights in d->weights and points d->layer there; without memory yet
 * (base NULL) it only counts the bytes. */
static void upload_all(Device *d) {
    const Config *c = d->c;
    d->weights.memory.used = 0;
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
    float *turns[2] = {NULL, NULL};                 /* RoPE frequencies, shared by all layers of one kind */
    for (int i = 0; i < c->n_layers; i++) {
        Layer *l = &d->layer[i];
        *l = d->w->layer[i];
        Weight *matrix[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down, &l->router};
        for (size_t k = 0; k < sizeof matrix / sizeof *matrix; k++) upload_weight(&d->weights, matrix[k]);
        float **hidden[] = {&l->input_norm, &l->post_attention_norm, &l->pre_mlp_norm, &l->post_mlp_norm, &l->pre_experts_norm,
                            &l->post_experts_norm, &l->post_ffn_norm, &l->router_scale};
        for (size_t k = 0; k < sizeof hidden / sizeof *hidden; k++) upload_vector(&d->weights, hidden[k], c->hidden);
        upload_vector(&d->weights, &l->q_norm, l->head_dim);
        upload_vector(&d->weights, &l->k_norm, l->head_dim);
        upload_vector(&d->weights, &l->per_expert_scale, c->n_experts);
        if (!turns[l->global]) turns[l->global] = (float *)upload(&d->weights, l->inv_freq, l->head_dim / 2 * sizeof(float));
        l->inv_freq = d->turns.inv_freq[l->global] = turns[l->global];
        d->turns.half[l->global] = l->head_dim / 2;
        if (!c->n_experts) continue;
        const Weight *gate = d->w->layer[i].expert_gate, *up = d->w->layer[i].expert_up, *down = d->w->layer[i].expert_down;
        ExpertFormats f = {tile_format(gate[0].dtype), tile_format(down[0].dtype)};
        for (int e = 0; e < c->n_experts; e++) {
            if (gate[e].dtype != gate[0].dtype || up[e].dtype != gate[0].dtype) f.up = TILE_ANY;
            if (down[e].dtype != down[0].dtype) f.down = TILE_ANY;
        }
        d->expert_formats[i] = f;
        Weight *copy = d->experts + (size_t)3 * i * c->n_experts;
        upload_experts(d, &l->expert_gate, copy);
        upload_experts(d, &l->expert_up, copy + c->n_experts);
        upload_experts(d, &l->expert_down, copy + 2 * c->n_experts);
    }
    d->weights.from_file = d->weights.memory.used;
    if (d->screened) take_screen(d, &d->weights.memory);
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Hands out the activations; without memory yet it only counts the bytes. */
static void take_activations(Device *d, int max_n) {
    const Config *c = d->c;
    size_t n = max_n, qkv = 0, att = 0, part = 0, tickets = 0;
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &d->w->layer[i];
        size_t rows = (size_t)(c->n_heads + 2 * l->n_kv_heads) * l->head_dim;
        if (rows > qkv) qkv = rows;
        if ((size_t)c->n_heads * l->head_dim > att) att = (size_t)c->n_heads * l->head_dim;
        for (int k = 2; k < 2 * max_n + 2; k++) {   /* whatever the cache and so the kernel will be: k / 2 tokens, rounded or not */
            KvCache kv = {};
            kv.dtype = DT_F8_E4M3;
            kv.k_dim = l->head_dim;
            kv.slots = INT32_MAX;
            AttendPlan p = attend_plan(l, &kv, c->n_heads, k / 2, 1 + k % 2, d->row_blocks, SIZE_MAX);
            if (p.parts > tickets) tickets = p.parts;
            if (p.parts * p.part_floats > part) part = p.parts * p.part_floats;
        }
    }
    Arena *a = &d->acts;
    a->used = 0;
    size_t y = 2 * n * d->y_parts, width = padded(c->hidden), k = c->top_k;
    d->step = (Step *)take(a, sizeof(Step) + n * sizeof(int));
    d->turns.pos = d->where = (int64_t *)d->step;       /* its first field */
    d->ids = (int *)(d->step + 1);
    for (int kind = 0; kind < 2; kind++) d->turns.turn[kind] = (float2 *)take(a, n * d->turns.half[kind] * sizeof(float2));
    d->last = (int *)take(a, n * sizeof(int));
    d->x[0] = (float *)take(a, 4 * n * c->hidden);
    d->x[1] = (float *)take(a, 4 * c->hidden);
    d->qkv = (float *)take(a, 4 * n * qkv);
    d->att = (float *)take(a, 4 * n * att);
    d->o = (float *)take(a, 4 * n * c->hidden);
    d->score = (float *)take(a, 4 * n * c->n_experts);
    d->expert = (int *)take(a, 4 * n * k);
    d->expert_weight = (float *)take(a, 4 * n * k);
    for (int g = 0; g < 2; g++) d->att_vector[g] = (uint16_t *)take(a, vector_bytes((int)att));
    d->act_vector = (uint16_t *)take(a, vector_bytes(c->intermediate));
    d->expert_vector = (uint16_t *)take(a, vector_bytes(c->top_k * wide(c->expert_size)));
    d->expert_out = (float *)take(a, 4 * n * k * c->hidden);
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
    d->column_part = (float4 *)take(a, (size_t)d->stream_blocks * 16 * THREADS * sizeof(float4));
    d->column_ticket = (unsigned *)take(a, 2 * d->stream_blocks * sizeof(unsigned));
    d->sort_ticket = (unsigned *)take(a, 4);
    d->part = (float *)take(a, 4 * part);
    d->ticket = (unsigned *)take(a, 4 * tickets);
    d->logits = (float *)take(a, 4 * (size_t)d->n_logits * c->vocab);
    d->selection = (Selection *)take(a, d->n_logits * sizeof *d->selection);
    d->top = (Top *)take(a, d->n_logits * sizeof *d->top);
}

static int take_memory(Arena *a, const char *what, Error *err) {
    size_t bytes = a->used, free_bytes = 0, total = 0;
    if (cudaMalloc((void **)&a->base, bytes) == cudaSuccess) return 0;
    a->base = NULL;
    cudaGetLastError();                 /* it is dealt with */
    cudaMemGetInfo(&free_bytes, &total);
    return fail(err, "GPU: no room for %s: %.2f GB wanted, %.2f of %.2f GB free", what, bytes * 1e-9, free_bytes * 1e-9, total * 1e-9);
}

/* ---- the device ---- */

static void sight_close(struct Sight *s);

static void cuda_close(Device *d) {
    if (!d) return;
    sight_close(d->sight);
    if (d->weights.memory.base) cudaFree(d->weights.memory.base);
    if (d->acts.base) cudaFree(d->acts.base);
    if (d->stream && !d->target) cudaStreamDestroy(d->stream);
    if (d->back) cudaFreeHost(d->back);
    if (d->next) cudaFreeHost(d->next);
    for (int n = 1; n <= MAX_RECORDED; n++)
        if (d->recorded[n].graph) cudaGraphExecDestroy(d->recorded[n].graph);
    free(d->host_last);
    free(d->layer);
    free(d->experts);
    free(d->expert_formats);
    free(d->weights.extent);
    free(d);
}

/* Shared memory of the kernels for one token. */
static size_t stream_shared(const Device *d, int cols) { return ring_bytes(d->deep ? DEEP : SHALLOW) + vector_bytes(cols); }
static size_t normed_shared(const Device *d) { return stream_shared(d, d->c->hidden) + 4 * (size_t)spare_floats(d->c->hidden); }
static size_t share_bytes(const Device *d, int n, int rows) { return 4 * (size_t)n * (rows / d->stream_blocks + 1); }
static size_t mlp_shared(const Device *d) {
    const Config *c = d->c;
    size_t sums = larger(share_bytes(d, 2, c->intermediate), 4 * spare_floats(c->hidden));
    return stream_shared(d, (c->n_experts ? 2 : 1) * wide(c->hidden)) + sums;
}
static size_t up_shared(const Device *d) {
    const Config *c = d->c;
    return stream_shared(d, c->hidden) + vector_bytes(c->intermediate) + choice_bytes(c->top_k) +
           larger(share_bytes(d, 2, c->top_k * c->expert_size), 4 * spare_floats(c->hidden));
}
static size_t down_shared(const Device *d) {
    const Config *c = d->c;
    return stream_shared(d, c->top_k * wide(c->expert_size)) + choice_bytes(c->top_k) + share_bytes(d, c->top_k, c->hidden);
}

/* Columns that row_kernel takes at once: all of them, where there is room. */
static int row_columns(const Device *d, int cols) {
    size_t room = d->shared_limit + STATIC_SHARED - STREAM_STATIC - ring_bytes(d->deep ? DEEP : SHALLOW);
    int columns = wide(cols);
    while (columns > 256 && vector_bytes(columns) > room) columns -= 256;
    return columns;
}
static size_t row_shared(const Device *d, int cols) {
    int columns = row_columns(d, cols);
    return stream_shared(d, columns < cols ? columns : cols);
}

/* The most of it that any layer or the head needs, but for row_kernel, which makes do with what
 * there is. */
static size_t most_shared(const Device *d) {
    size_t most = larger(mlp_shared(d), normed_shared(d));
    return d->c->n_experts ? larger(most, larger(up_shared(d), down_shared(d))) : most;
}

/* Lets a kernel have as much as there is, as other devices may need more of it than this one's
 * `bytes`; it declares less than `fixed` besides. */
static int allow(const Device *d, const void *kernel, int fixed, size_t bytes, Error *err) {
    int limit = d->shared_limit + STATIC_SHARED - fixed;
    if (bytes <= (size_t)limit && cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit) == cudaSuccess) return 0;
    cudaGetLastError();
    return fail(err, "GPU: the model needs %zu KB of shared memory for a block, more than this GPU has", bytes / 1024);
}

/* The kernels for products of several tokens. */
typedef struct {
    TileFormat format;
    int mt, parts;
    void (*kernel)(Product);
} Gemm;
static const Gemm gemms[] = {
    {TILE_BF16, 1, 1, gemm_kernel<TILE_BF16, 1, 1>}, {TILE_BF16, 2, 1, gemm_kernel<TILE_BF16, 2, 1>},
    {TILE_BF16, 3, 1, gemm_kernel<TILE_BF16, 3, 1>}, {TILE_BF16, 4, 1, gemm_kernel<TILE_BF16, 4, 1>},
    {TILE_BF16, 1, 3, gemm_kernel<TILE_BF16, 1, 3>},
    {TILE_BF16, 2, 3, gemm_kernel<TILE_BF16, 2, 3>}, {TILE_NVFP4, 1, 1, gemm_kernel<TILE_NVFP4, 1, 1>},
    {TILE_NVFP4, 2, 1, gemm_kernel<TILE_NVFP4, 2, 1>}, {TILE_NVFP4, 3, 1, gemm_kernel<TILE_NVFP4, 3, 1>},
    {TILE_NVFP4, 4, 1, gemm_kernel<TILE_NVFP4, 4, 1>},
    {TILE_NVFP4, 1, 3, gemm_kernel<TILE_NVFP4, 1, 3>}, {TILE_NVFP4, 2, 3, gemm_kernel<TILE_NVFP4, 2, 3>},
    {TILE_ANY, 1, 1, gemm_kernel<TILE_ANY, 1, 1>}, {TILE_ANY, 1, 3, gemm_kernel<TILE_ANY, 1, 3>},
};

/* Kernels that may want more shared memory than the 48 KB that are always there. */
static int allow_shared(Device *d, Error *err) {
    size_t plain = 0;
    for (int i = 0; i < d->c->n_layers; i++)
        if (plain_attend_shared(&d->w->layer[i], d->c->n_heads) > plain) plain = plain_attend_shared(&d->w->layer[i], d->c->n_heads);
    const void *row[] = {(const void *)row_kernel<DEEP>, (const void *)head_kernel<DEEP>, (const void *)qkv_kernel<DEEP>,
                         (const void *)mlp_rows_kernel<DEEP>, (const void *)experts_up_kernel<DEEP>, (const void *)experts_down_kernel<DEEP>,
                         (const void *)row_kernel<SHALLOW>, (const void *)head_kernel<SHALLOW>, (const void *)qkv_kernel<SHALLOW>,
                         (const void *)mlp_rows_kernel<SHALLOW>, (const void *)experts_up_kernel<SHALLOW>,
                         (const void *)experts_down_kernel<SHALLOW>};
    const void *less[] = {(const void *)norm_kernel, (const void *)hidden_kernel, (const void *)screen_kernel};
    int bad = allow(d, (const void *)plain_attend_kernel, STATIC_SHARED, plain, err);
    for (int i = 0; i < ATTEND_VARIANTS && !bad; i++) bad = allow(d, (const void *)attend_variant[i].kernel, STATIC_SHARED, 0, err);
    for (size_t i = 0; i < sizeof row / sizeof *row && !bad; i++) bad = allow(d, row[i], STREAM_STATIC, most_shared(d), err);
    for (size_t i = 0; i < sizeof less / sizeof *less && !bad; i++) bad = allow(d, less[i], STATIC_SHARED, 4 * d->c->hidden, err);
    for (size_t i = 0; i < sizeof gemms / sizeof *gemms && !bad; i++) bad = allow(d, (const void *)gemms[i].kernel, STATIC_SHARED, GEMM_SHARED, err);
    return bad;
}

/* A kernel is loaded when it is first asked for: those that allow_shared has, then, and here all
 * others of a step. */
static void load_kernels(void) {
    const void *kernel[] = {
        (const void *)embed_kernel, (const void *)norm_rope_kernel, (const void *)parts_kernel,
        (const void *)route_kernel, (const void *)sort_kernel, (const void *)count_kernel,
        (const void *)collect_kernel, (const void *)best_kernel, (const void *)pick_kernel};
    cudaFuncAttributes loaded = {};
    for (size_t i = 0; i < sizeof kernel / sizeof *kernel; i++)
        check(cudaFuncGetAttributes(&loaded, kernel[i]), "loading a kernel");
}

/* Decides d->screened: what the environment says, else the copy is made where it may be.
 * d->copy_pays: it may, as far as the head itself is concerned. */
static int choose_head(Device *d, int copy_head, Error *err) {
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
    d->copy_pays = !whole && head->dtype == DT_BF16 && bytes >= SCREEN_LEAST;
    d->screened = d->forced || (copy_head && d->copy_pays);
    return 0;
}

/* gpu_no_graph and its neighbours, from the environment: names with commas between. */
static int choose_switches(Error *err) {
    static const struct { const char *name; int *on; } known[] = {
        {"no-graph", &gpu_no_graph}, {"no-overlap", &gpu_no_overlap}, {"sync", &gpu_sync},
        {"wgmma", &gpu_wgmma}};
    const char *at = getenv("GEMMA4_CUDA");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) *known[i].on = 0;
    for (; at && *at; at += *at == ',') {
        size_t n = strcspn(at, ","), i = 0, all = sizeof known / sizeof *known;
        while (i < all && (strlen(known[i].name) != n || strncmp(known[i].name, at, n))) i++;
        if (i == all)
            return fail(err, "GEMMA4_CUDA: \"%.*s\" is not one of no-graph, no-overlap, sync, wgmma", (int)n, at);
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

/* A device without memory yet: how much it needs is counted. */
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
    d->layer = (Layer *)xcalloc(c->n_layers, sizeof *d->layer);
    d->host_last = (int *)xcalloc(o->max_n, sizeof *d->host_last);
    d->expert_formats = (ExpertFormats *)xcalloc(c->n_layers, sizeof *d->expert_formats);
    d->experts = (Weight *)xcalloc((size_t)3 * c->n_layers * c->n_experts, sizeof *d->experts);
    int n_sm = 0;
    cudaFuncAttributes loaded = {};
    cudaError_t e = cudaDeviceGetAttribute(&d->shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0);
    if (e == cudaSuccess) e = cudaFuncGetAttributes(&loaded, row_kernel<DEEP>);
    d->shared_limit -= STATIC_SHARED;
    gpu_overlap = loaded.ptxVersion >= 90;              /* whatever the chip is: PTX for sm_80 has no ptx_grid_wait */
    if (e != cudaSuccess) fail(err, "GPU: %s", cudaGetErrorString(e));
    d->row_blocks = 2 * n_sm;
    d->stream_blocks = n_sm;
    d->deep = d->shared_limit > 160 * 1024;
    int bad = e != cudaSuccess || choose_head(d, o->copy_head, err) || choose_switches(err) ||
              choose_wgmma(d, err) || (o->fp4_activations && !fp4_found(err));
    if (!bad && o->fp4_activations && o->exact)
        bad = fail(err, "GPU: FP4 activations are not exact");
    gpu_overlap &= !gpu_no_overlap;
    if (!bad && (c->n_experts > 32 * EACH_LANE || c->top_k > 32))
        bad = fail(err, "GPU: %d experts, of which a token takes %d: at most %d and 32 are known here", c->n_experts, c->top_k,
                   32 * EACH_LANE);
    if (bad) {
        cuda_close(d);
        return NULL;
    }
    upload_all(d);
    take_activations(d, o->max_n);
    return d;
}

/* Bytes of the machine's memory that are there for who wants them, files that it keeps included;
 * 0: not known. */
static size_t machine_available(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    size_t kb = 0;
    char line[256];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %zu kB", &kb) == 1) break;
    if (f) fclose(f);
    return kb * 1024;
}

/* What may be taken of the GPU's memory: a fiftieth stays free, as the kernels and graphs take
 * some, and every cudaMalloc is rounded up to 2 MB. */
static cudaError_t free_memory(size_t *room, size_t *total) {
    int shares = 0;
    size_t free_bytes = 0;
    cudaError_t e = cudaMemGetInfo(&free_bytes, total);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&shares, cudaDevAttrIntegrated, 0);
    /* A GPU that shares the machine's memory (GB10) calls "free" only what holds no file's pages
     * either, the checkpoint's for one. */
    size_t available = shares ? machine_available() : 0;
    if (available > free_bytes) free_bytes = available < *total ? available : *total;
    *room = free_bytes > *total / 50 ? free_bytes - *total / 50 : 0;
    return e;
}

static size_t sight_bytes(const Tower *v);

static int cuda_memory(const Config *c, const Weights *w, const DeviceOptions *o, Memory *m, Error *err) {
    cudaDeviceProp gpu;
    size_t room = 0, total = 0;
    cudaError_t e = cudaGetDeviceProperties(&gpu, 0);
    if (e == cudaSuccess) e = free_memory(&room, &total);
    if (e != cudaSuccess) return fail(err, "GPU: %s", cudaGetErrorString(e));
    Device *d = planned(c, w, o, err);
    if (!d) return -1;
    snprintf(m->name, sizeof m->name, "%.63s", gpu.name);
    m->weights = d->weights.memory.used;
    m->activations = d->acts.used;
    /* A drafter leaves room for its target's pictures. */
    const Tower *tower = o->target ? &o->target->w->tower : &w->tower;
    const int tower_to_come = tower->n_layers && !(o->target && o->target->sight);
    m->pictures = tower_to_come ? sight_bytes(tower) : 0;
    Arena copy = {};
    if (d->copy_pays && !d->screened) take_screen(d, &copy);
    m->head_copy = copy.used;
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
    size_t step = sizeof *d->next + o->max_n * sizeof(int);
    if (e == cudaSuccess) e = cudaMallocHost((void **)&d->next, step);
    d->next_ids = (int *)(d->next + 1);
    int bad = e == cudaSuccess ? 0 : fail(err, "GPU: %s", cudaGetErrorString(e));
    cudaGetLastError();                 /* it is dealt with */
    if (!bad) bad = take_memory(&d->weights.memory, "the weights", err);
    if (!bad) bad = take_memory(&d->acts, "the activations (--chunk)", err);
    if (!bad) bad = allow_shared(d, err) || (d->wgmma && hopper_open(err));
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
    if (!bad) bad = load_store(&d->weights, d->stream, o->n_threads, o->loading, err);
    if (bad) {
        cuda_close(d);
        return NULL;
    }
    check(cudaMemset(d->acts.base, 0, d->acts.used), "clearing memory");       /* tickets begin at zero */
    if (d->screened) {
        check(cudaMemset(d->screen.habit, 0, sizeof *d->screen.habit), "clearing memory");
        GPU_LAUNCH(screen_copy_kernel, dim3(1024), dim3(THREADS), 0, d->stream, d->head, d->screen);
        check(cudaGetLastError(), "head's int8 copy");
    }
    return d;
}

/* The same layer with pointers that the GPU understands. */
static const Layer *on_gpu(const Device *d, const Layer *l) { return &d->layer[l - d->w->layer]; }

static void *cuda_alloc(size_t bytes) {
    void *p;
    if (cudaMalloc(&p, bytes) == cudaSuccess) return p;
    cudaGetLastError();
    return NULL;
}

static void cuda_release(void *p, size_t bytes) {
    (void)bytes;
    cudaFree(p);
}

static void cuda_copy(void *to, const void *from, size_t bytes) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copying the cache");
}

/* ---- launches ---- */

static void launched(const char *what) {
    check(cudaGetLastError(), what);
    if (gpu_sync) check(cudaDeviceSynchronize(), what);
}

/* A kernel of one token. */
#define STREAM(d, kernel, shared, ...)                                                                                            \
    do {                                                                                                                          \
        if (d->deep) GPU_LAUNCH(kernel<DEEP>, dim3(d->stream_blocks), dim3(STREAM_THREADS), shared, d->stream, __VA_ARGS__);             \
        else GPU_LAUNCH(kernel<SHALLOW>, dim3(d->stream_blocks), dim3(STREAM_THREADS), shared, d->stream, __VA_ARGS__);                  \
    } while (0)

/* The residual stream as the next kernel finds it, what is to be added included.  in_place: one
 * block alone works on a token. */
static Residual residual(Device *d, int in_place) {
    Residual r = d->rest;
    r.x = d->x[d->at];
    r.to = d->x[in_place ? d->at : !d->at];
    r.eps = d->c->eps;
    return r;
}

/* That kernel has written it down. */
static void settled(Device *d, int in_place) {
    d->rest = {};
    if (!in_place) d->at = !d->at;
}

/* Up to three norms of r, n vectors of `hidden` numbers. */
static void norms_of(Device *d, const Residual &r, int n, int hidden, NormTo a, NormTo b,
                     NormTo c) {
    size_t shared = 4 * (size_t)spare_floats(hidden);
    GPU_LAUNCH(norm_kernel, dim3(n), dim3(STREAM_THREADS), shared, d->stream, r, hidden, a, b, c);
    launched("norms");
}

/* Several tokens: up to three norms of the settled residual stream. */
static void norms(Device *d, NormTo a, NormTo b, NormTo c) {
    norms_of(d, residual(d, 1), d->n, d->c->hidden, a, b, c);
    settled(d, 1);
}

/* y = BF16 [parts][n][padded(cols)] of x; see parts_kernel. */
static void split(Device *d, const float *x, int n, int cols, int run, int pitch, int parts,
                  uint16_t *y) {
    dim3 grid(n, (padded(cols) + 4 * THREADS - 1) / (4 * THREADS));
    GPU_LAUNCH(parts_kernel, grid, dim3(THREADS), 0, d->stream, x, cols, run, pitch, parts, y);
    launched("splitting");
}

/* The tile format of a product with matrices that are no experts'. */
static TileFormat format_of(const Product &p) {
    TileFormat format = tile_format(p.w.dtype);
    for (const Weight &other : {p.up, p.more[0], p.more[1]})
        if (other.data && other.dtype != p.w.dtype) format = TILE_ANY;
    return format;
}

/* The largest mt up to `mt` that a kernel was made for. */
static int fit(int mt, TileFormat format, int parts) {
    if (format == TILE_ANY) return 1;
    return parts > 1 && mt > 2 ? 2 : mt;
}

/* Tiles of 32 * mt tokens: the fewer there are, the smaller.  Of many, the size that leaves the
 * fewest multiprocessors without work at the end: a block of 32 tokens more takes two units
 * longer, one unit each brings the rows (simulated). */
static int token_tiles(const Device *d, int n, int row_tiles) {
    /* A small matrix may be read twice. */
    if (n <= 64) return n <= 32 || 8 * row_tiles < d->stream_blocks ? 1 : 2;
    auto cost = [&](int mt) {
        int tiles = row_tiles * ((n + 32 * mt - 1) / (32 * mt));
        return (tiles + d->stream_blocks - 1) / d->stream_blocks * (2 * mt + 1);
    };
    int best = 4;
    for (int mt = 3; mt >= 2; mt--)
        if (cost(mt) < cost(best)) best = mt;
    return best;
}

/* Whether hopper.cu multiplies the experts.  It cannot where it could not count the bytes. */
static int hopper_experts(const Device *d) {
    const Config *c = d->c;
    size_t pairs = (size_t)d->n * c->top_k, width = padded((int)larger(c->hidden, c->expert_size));
    return d->wgmma_experts && d->n > 16 && 2 * pairs * width <= UINT32_MAX;
}

/* mt for a layer's experts, which share n * top_k rows of y. */
static int expert_tiles(const Device *d, const Layer *host) {
    if (hopper_experts(d)) return HOPPER_TOKENS / 32;
    int each = d->n * d->c->top_k / d->c->n_experts, mt = each > 48 ? 4 : each > 12 ? 2 : 1;
    const ExpertFormats *f = &d->expert_formats[host - d->w->layer];
    return fit(mt, f->up == TILE_ANY ? f->up : f->down, d->y_parts);
}

/* p's product with matrices of `cols` columns in row_tiles times, at most, `tiles` tiles of 32 *
 * mt tokens. */
static void gemm(Device *d, Product &p, TileFormat format, int parts, int mt, int cols,
                 int row_tiles, int tiles, const char *what) {
    /* Where there are few tiles, blocks share their columns, as many as fit at once.  None has
     * fewer than 4 steps: as many are multiplied in the time that it takes to begin and to join
     * (simulated). */
    int fit = (mt == 1 ? 2 : 1) * d->stream_blocks / (row_tiles * tiles);
    int steps = padded(cols) / 64, shares = 1;
    p.steps = steps;
    if (!p.tile && fit > 1) {
        p.steps = (steps + fit - 1) / fit > 4 ? (steps + fit - 1) / fit : 4;
        shares = (steps + p.steps - 1) / p.steps;
    }
    p.part = d->column_part;
    p.ticket = d->column_ticket;
    dim3 grid(row_tiles, tiles, shares), block(THREADS);
    size_t shared = (size_t)stages_of(format, mt, parts) * stage_bytes(format, mt, parts);
    for (const Gemm &g : gemms)
        if (g.format == format && g.mt == mt && g.parts == parts)
            GPU_LAUNCH(g.kernel, grid, block, shared, d->stream, p);
    launched(what);
}

/* gemm for n rows of y and matrices that are no experts'. */
static void dense(Device *d, Product &p, int n, const uint16_t *y, int parts, const char *what) {
    p.n = p.n_act = n;
    p.y = y;
    if (d->wgmma && n > 16 && hopper_product(p, p.w, p.up, parts, 0, d->stream))
        return launched(what);
    int rows = p.up.data ? GEMM_ROWS / 2 : GEMM_ROWS, row_tiles = (p.w.rows + rows - 1) / rows;
    for (const Weight &m : p.more) row_tiles += m.data ? (m.rows + rows - 1) / rows : 0;
    TileFormat format = format_of(p);
    int mt = fit(token_tiles(d, n, row_tiles), format, parts);
    gemm(d, p, format, parts, mt, p.w.cols, row_tiles, (n + 32 * mt - 1) / (32 * mt), what);
}

/* out[n][pitch] = w . y. */
static void product(Device *d, const Weight &w, const uint16_t *y, int n, int parts, float *out,
                    int pitch, float softcap, const char *what) {
    Product p = {};
    p.w = w;
    p.out = out;
    p.pitch = pitch;
    p.softcap = softcap;
    dense(d, p, n, y, parts, what);
}

/* out[n] = q . y, k . y, v . y, one after the other; without v k's is there twice. */
static void qkv_product(Device *d, const Weight &q, const Weight &k, const Weight &v,
                        const uint16_t *y, int n, int parts, float *out) {
    Product p = {};
    p.w = q;
    p.more[0] = k;
    p.more[1] = v.data ? v : k;
    p.out = out;
    p.pitch = q.rows + 2 * k.rows;
    dense(d, p, n, y, parts, "q, k, v");
}

/* act[n][rows] = gelu(gate . y) * (up . y). */
static void gated_product(Device *d, const Weight &gate, const Weight &up, const uint16_t *y, int n, uint16_t *act) {
    Product p = {};
    p.w = gate;
    p.up = up;
    p.act = act;
    dense(d, p, n, y, d->y_parts, "mlp");
}

/* ---- many tokens of a layer, perhaps as NVFP4 ---- */

static int takes_fp4(const Device *d, const Weight &w) {
    return d->fp4_activations && d->n > 16 && w.dtype == DT_U8;
}

/* p's product of p.y, whose rows become NVFP4, in at most `tiles` tiles of `tokens` tokens.
 * w: p's matrix or, of experts, one like them. */
static void fp4_gemm(Device *d, const Product &p, const Weight &w, int tokens, int tiles,
                     const char *what) {
    fp4_quantise(p.y, p.n, padded(w.cols), d->fp4, d->stream);
    launched("FP4 activations");
    fp4_product(p, d->fp4, w.rows, tokens, tiles, d->stream);
    launched(what);
}

/* Tokens of a tile, so that products of few tokens have tiles for more multiprocessors: the
 * numbers of token_tiles; no GPU has tried others. */
static int fp4_tokens(int n) { return n <= 64 ? 32 : n <= 256 ? 64 : 128; }

/* out[n][pitch] = w . y. */
static void layer_product(Device *d, const Weight &w, const uint16_t *y, float *out, int pitch,
                          const char *what) {
    if (!takes_fp4(d, w)) return product(d, w, y, d->n, d->y_parts, out, pitch, 0, what);
    Product p = {};
    p.w = w;
    p.n = d->n;
    p.y = y;
    p.out = out;
    p.pitch = pitch;
    int tokens = fp4_tokens(d->n);
    fp4_gemm(d, p, w, tokens, (d->n + tokens - 1) / tokens, what);
}

/* act[n][rows] = gelu(gate . y) * (up . y). */
static void layer_gated_product(Device *d, const Weight &gate, const Weight &up, const uint16_t *y,
                                uint16_t *act) {
    if (!takes_fp4(d, gate) || !takes_fp4(d, up)) return gated_product(d, gate, up, y, d->n, act);
    Product p = {};
    p.w = gate;
    p.up = up;
    p.n = p.n_act = d->n;
    p.y = y;
    p.act = act;
    int tokens = fp4_tokens(d->n);
    fp4_gemm(d, p, gate, tokens, (d->n + tokens - 1) / tokens, "mlp");
}

/* ---- steps of few tokens, recorded ----
 *
 * The launches of a step of so many tokens are always the same: what changes is the tokens and
 * their position, which the kernels read from the GPU's memory.  So a step is recorded as a CUDA
 * graph, that of one token when the session begins, others when they come for the second time, and
 * replayed afterwards: one launch instead of hundreds.  The caches' addresses are part of the
 * graph; they are those of the device's one session, and stay as long as it. */

static void wait(Device *d, const char *what) {
    check(cudaStreamSynchronize(d->stream), what);
    d->under_way = 0;
}

/* What the step fetches. */
static void set_step(Device *d, const int *ids, int n, int64_t pos) {
    if (d->under_way) wait(d, "the step before");
    *d->next = {};
    d->next->pos = pos;
    d->next->k = d->wanted;
    memcpy(d->next_ids, ids, n * sizeof *ids);
}

static int cuda_record(Device *d, int n) {
    if (gpu_no_graph || gpu_sync) return 0;
    if (n > 1 && !d->recorded[n].used++) return 0;      /* perhaps it never comes again */
    check(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeRelaxed), "recording");
    return d->recording = 1;
}

static int head_of_all(Device *d);
static void rank(Device *d, int token, int k);

/* A step of several tokens ends with the largest logits of each: they are drafts, or the end of a
 * prompt. */
static void cuda_recorded(Device *d) {
    cudaGraph_t graph;
    Recorded *r = &d->recorded[d->n];
    if (head_of_all(d)) rank(d, 0, 0);
    d->recording = 0;
    check(cudaStreamEndCapture(d->stream, &graph), "recording");
    check(cudaGraphInstantiate(&r->graph, graph, 0), "recording");
    check(cudaGraphDestroy(graph), "recording");
    check(cudaGraphUpload(r->graph, d->stream), "recording");
    r->at = d->at;
    r->rest = d->rest;
    r->all_logits = d->all_logits;
}

static int cuda_replay(Device *d, const int *ids, int n, int64_t pos) {
    const Recorded *r = &d->recorded[n];
    if (!r->graph) return 0;
    if (ids) set_step(d, ids, n, pos);
    d->n = n;
    d->at = r->at;
    d->rest = r->rest;
    d->pictures = 0;
    d->all_logits = r->all_logits;
    d->ranked = r->all_logits ? d->next->k : 0;
    check(cudaGraphLaunch(r->graph, d->stream), "a step");
    d->under_way = 1;
    return 1;
}

/* ---- the operations ---- */

/* x[0] is about to be written. */
static void begin_step(Device *d, int n) {
    d->n = n;
    d->at = 0;
    d->rest = {};
    d->pictures = d->all_logits = d->ranked = 0;
}

static void fetch_step(Device *d, const int *ids, int n, int64_t pos) {
    if (!d->recording) set_step(d, ids, n, pos);
    size_t bytes = sizeof *d->step + n * sizeof *ids;
    check(cudaMemcpyAsync(d->step, d->next, bytes, cudaMemcpyHostToDevice, d->stream),
          "copying token ids");
    if (!d->recording) d->under_way = 1;
}

static void cuda_embed(Device *d, const int *ids, int n, int64_t pos) {
    begin_step(d, n);
    fetch_step(d, ids, n, pos);
    GPU_LAUNCH(embed_kernel, dim3(n), dim3(THREADS), 0, d->stream, d->embed, d->ids, d->x[0], sqrtf(d->c->hidden), d->turns);
    launched("embed");
}

static void cuda_embed_soft(Device *d, int first, int count, const float *soft) {
    size_t hidden = d->c->hidden;
    for (int t = 0; !d->pictures && t < d->n; t++) d->host_last[t] = t;
    for (int t = first; t < first + count; t++) d->host_last[t] = first + count - 1;
    d->pictures = 1;
    check(cudaMemcpyAsync(d->x[0] + first * hidden, soft, 4 * count * hidden, cudaMemcpyHostToDevice, d->stream), "copying a picture");
    check(cudaMemcpyAsync(d->last, d->host_last, 4 * (size_t)d->n, cudaMemcpyHostToDevice, d->stream), "copying a picture");
    wait(d, "copying a picture");       /* which may go away then */
}

static AttendPlan plan_attention(const Device *d, const Layer *l, const KvCache *kv) {
    return attend_plan(l, kv, d->c->n_heads, d->n, d->attend_parts, d->row_blocks, d->shared_limit);
}

static void cuda_qkv(Device *d, const Layer *host, KvCache *kv) {
    const Layer *l = on_gpu(d, host);
    if (d->n == 1) {
        STREAM(d, qkv_kernel, normed_shared(d), *l, residual(d, 0), d->qkv);
        launched("qkv");
        settled(d, 0);
    } else {
        norms(d, {l->input_norm, 1, d->y_parts, d->y}, {}, {});
        if (takes_fp4(d, l->q) || d->wgmma) {
            const int pitch = l->q.rows + 2 * l->k.rows;
            layer_product(d, l->q, d->y, d->qkv, pitch, "q");
            layer_product(d, l->k, d->y, d->qkv + l->q.rows, pitch, "k");
            layer_product(d, l->v.data ? l->v : l->k, d->y, d->qkv + l->q.rows + l->k.rows, pitch, "v");
        } else qkv_product(d, l->q, l->k, l->v, d->y, d->n, d->y_parts, d->qkv);
    }
    if (plan_attention(d, l, kv).fused) return;
    int heads = d->c->n_heads + (l->k.data ? 2 * l->n_kv_heads : 0);
    GPU_LAUNCH(norm_rope_kernel, dim3((heads + WARPS - 1) / WARPS, d->n), dim3(THREADS), 0, d->stream, *l, *kv, d->c->eps,
               d->c->n_heads, d->where, d->turns.turn[l->global], d->qkv);
    launched("norm and rope");
}

static void launch_attend(Device *d, const Attend &a, const AttendPlan &p) {
    const AttendVariant *v = p.variant;
    const int heads = a.l.n_kv_heads, units = heads * p.tiles;
    dim3 grid = dim3(heads * p.splits, p.tiles);
    if (v && v->head_dim) grid = dim3(p.whole + (units - p.whole) * p.splits);
    if (v) GPU_LAUNCH(v->kernel, grid, dim3(32 * v->row_warps * v->col_warps), p.shared, d->stream, a);
    else GPU_LAUNCH(plain_attend_kernel, dim3(a.l.n_kv_heads, a.n), dim3(128), p.shared, d->stream, a);
    launched("attend");
}

static void cuda_attend(Device *d, const Layer *host, const KvCache *kv) {
    const Layer *l = on_gpu(d, host);
    AttendPlan p = plan_attention(d, l, kv);
    Attend a = {};
    a.l = *l;
    a.kv = *kv;
    a.eps = d->c->eps;
    a.n_heads = d->c->n_heads;
    a.window = d->c->window;
    a.n = d->n;
    a.pos = d->where;
    a.turn = d->turns.turn[l->global];
    a.last = d->pictures ? d->last : NULL;
    a.qkv = d->qkv;
    a.splits = p.splits;
    a.whole = p.whole;
    a.part = d->part;
    a.ticket = d->ticket;
    a.out = d->att;
    if (d->n == 1 && p.fused) {
        a.vector = d->att_vector[l->global];
        a.packed = l->o.dtype == DT_U8;
    }
    d->attend_vector = a.vector;
    launch_attend(d, a, p);
}

static void cuda_attn_out(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    if (d->n == 1) {
        STREAM(d, row_kernel, row_shared(d, l->o.cols), l->o, d->attend_vector, d->att, row_columns(d, l->o.cols), d->o);
        launched("o_proj");
    } else {
        split(d, d->att, d->n, l->o.cols, l->o.cols, l->o.cols, d->y_parts, d->y_att);
        layer_product(d, l->o, d->y_att, d->o, l->o.rows, "o_proj");
    }
    d->rest = {};
    d->rest.a = d->o;
    d->rest.norm = l->post_attention_norm;
    d->rest.scalar = 1;
}

/* For one token the router's scores come with the MLP's gate and up; the MLP's down with the
 * experts', or, without experts, here. */
static void cuda_mlp(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const Config *c = d->c;
    if (d->n == 1) {
        STREAM(d, mlp_rows_kernel, mlp_shared(d), *l, residual(d, 0), c->n_experts, d->act_vector, d->score);
        launched("mlp");
        settled(d, 0);
        if (c->n_experts) return;
        STREAM(d, row_kernel, row_shared(d, c->intermediate), l->down, d->act_vector, (const float *)NULL, row_columns(d, c->intermediate),
               d->h1);
        launched("mlp down");
        return;
    }
    norms(d, {l->pre_mlp_norm, 1, d->y_parts, d->y}, {l->pre_experts_norm, 1, d->y_parts, c->n_experts ? d->y_experts : NULL},
          {l->router_scale, 1 / sqrtf(c->hidden), 3, c->n_experts ? d->y_router : NULL});
    layer_gated_product(d, l->gate, l->up, d->y, d->act);
    layer_product(d, l->down, d->act, d->h1, c->hidden, "mlp down");
}

static void cuda_route(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const Config *c = d->c;
    if (d->n == 1) return;              /* with the experts */
    product(d, l->router, d->y_router, d->n, 3, d->score, c->n_experts, 0, "router");
    GPU_LAUNCH(route_kernel, dim3((d->n + WARPS - 1) / WARPS), dim3(THREADS), 0, d->stream, d->n, c->n_experts, c->top_k, d->score,
               l->per_expert_scale, d->expert, d->expert_weight);
    launched("route");
    GPU_LAUNCH(sort_kernel, dim3(c->n_experts), dim3(THREADS), 0, d->stream, d->n * c->top_k, 32 * expert_tiles(d, host), d->expert, d->list, d->place,
               d->first, d->count, d->sort_ticket, d->tile, d->n_tiles);
    launched("sorting by expert");
}

static void cuda_experts(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const Config *c = d->c;
    const ExpertFormats *formats = &d->expert_formats[host - d->w->layer];
    if (d->n == 1) {
        int packed = formats->up == TILE_NVFP4, down_packed = formats->down == TILE_NVFP4;
        STREAM(d, experts_up_kernel, up_shared(d), *l, c->eps, c->n_experts, c->top_k, c->expert_size, packed, down_packed,
               d->x[d->at], d->score, d->act_vector, d->expert, d->expert_weight, d->expert_vector, d->h1);
        launched("experts' gate and up");
        STREAM(d, experts_down_kernel, down_shared(d), *l, c->n_experts, c->top_k, c->expert_size, down_packed, d->score,
               d->expert_vector, d->h2);
        launched("experts' down");
        return;
    }
    int mt = expert_tiles(d, host), pairs = d->n * c->top_k, tiles = pairs / (32 * mt) + c->n_experts;
    tiles = tiles < pairs ? tiles : pairs;
    Product p = {};
    p.expert_w = l->expert_gate;
    p.expert_up = l->expert_up;
    p.tile = d->tile;
    p.n_tiles = d->n_tiles;
    p.list = d->list;
    p.top_k = c->top_k;
    p.n = d->n;
    p.y = d->y_experts;
    p.act = d->expert_act;
    p.n_act = pairs;
    const bool hopper = hopper_experts(d);
    if (hopper) hopper_product(p, host->expert_gate[0], host->expert_up[0], d->y_parts, tiles, d->stream);
    else if (formats->up == TILE_NVFP4 && takes_fp4(d, host->expert_gate[0]))
        fp4_gemm(d, p, host->expert_gate[0], 32 * mt, tiles, "experts' gate and up");
    else gemm(d, p, formats->up, d->y_parts, mt, c->hidden, (c->expert_size + 63) / 64, tiles, "experts' gate and up");
    p.expert_w = l->expert_down;
    p.expert_up = NULL;
    p.list = NULL;
    p.n = pairs;
    p.y = d->expert_act;
    p.out = d->expert_out;
    p.pitch = c->hidden;
    if (hopper) hopper_product(p, host->expert_down[0], {}, d->y_parts, tiles, d->stream);
    else if (formats->down == TILE_NVFP4 && takes_fp4(d, host->expert_down[0]))
        fp4_gemm(d, p, host->expert_down[0], 32 * mt, tiles, "experts' down");
    else gemm(d, p, formats->down, d->y_parts, mt, c->expert_size, (c->hidden + 127) / 128, tiles, "experts' down");
}

static void cuda_join(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    Residual r = {};
    r.a = d->h1;
    r.norm = l->post_ffn_norm;
    r.scalar = l->layer_scalar;
    if (d->c->n_experts) {
        r.norm_a = l->post_mlp_norm;
        r.norm_b = l->post_experts_norm;
        r.b = d->n == 1 ? d->h2 : d->expert_out;
        r.weight = d->expert_weight;
        r.place = d->n == 1 ? NULL : d->place;
        r.top_k = d->c->top_k;
    }
    d->rest = r;
}

static int top_blocks(const Device *d) {
    int blocks = (d->c->vocab + TOP_THREADS - 1) / TOP_THREADS;
    return blocks < TOP_BLOCKS ? blocks : TOP_BLOCKS;
}

/* What the last layer left, before a norm: for several tokens written down, for one still to be
 * put together. */
static Residual last_x(Device *d, int token) {
    if (d->rest.a && (d->n > 1 || d->screened)) norms(d, {}, {}, {});
    Residual r = residual(d, 1);
    r.x += (size_t)token * d->c->hidden;
    r.to = NULL;
    return r;
}

/* Logits of tokens first .. first + n - 1; of one token, only a few if `few` says which. */
static void launch_head(Device *d, int first, int n, const int *few) {
    const Config *c = d->c;
    Residual r = last_x(d, first);
    if (n == 1)
        STREAM(d, head_kernel, normed_shared(d), d->head, r, d->final_norm, c->softcap, few, d->logits);
    else {
        norms_of(d, r, n, c->hidden, {d->final_norm, 1, 3, d->y_router}, {}, {});
        product(d, d->head, d->y_router, n, 3, d->logits, c->vocab, c->softcap, "head");
    }
    launched("head");
}

/* Whether d->logits has those of all of this step's tokens: a few (drafts), of which who asks
 * for one may ask for the next, so that the head is read once for all of them. */
static int head_of_all(Device *d) {
    if (d->n == 1 || d->n > d->n_logits) return 0;
    if (!d->all_logits) launch_head(d, 0, d->n, NULL);
    return d->all_logits = 1;
}

/* Of n tokens; k, habit and the kernel as in head.cu. */
static void launch_count(Device *d, int n, int k, const Habit *habit) {
    GPU_LAUNCH(count_kernel, dim3(top_blocks(d), n), dim3(TOP_THREADS), 0, d->stream, d->logits,
               d->c->vocab, k, d->step, habit, d->selection);
    launched("count");
}

/* One token's logits; where the head is screened, perhaps only those that can be among the k
 * largest, and the others -inf. */
static void launch_logits(Device *d, int token, int k) {
    const Config *c = d->c;
    if (!d->screened) return launch_head(d, token, 1, NULL);
    GPU_LAUNCH(screen_kernel, dim3(d->row_blocks), dim3(THREADS), 2 * (size_t)d->screen.cols,
               d->stream, d->head, d->screen, last_x(d, token).x, d->final_norm, c->eps, c->softcap,
               d->logits);
    launched("screen");
    launch_count(d, 1, k, d->screen.habit);     /* of the lower bounds */
    int blocks = (tiles_of(c->vocab) + THREADS - 1) / THREADS;
    GPU_LAUNCH(pick_kernel, dim3(blocks), dim3(THREADS), 0, d->stream, d->screen, c->vocab,
               d->selection, d->logits);
    launched("picking rows");
    launch_head(d, token, 1, d->screen.few);
}

/* Everything between x and d->back, in the stream, nothing of which waits for the host: the k
 * largest logits of all of this step's tokens, where head_of_all; else of one, in back[0]. */
static void rank(Device *d, int token, int k) {
    int all = head_of_all(d), n = all ? d->n : 1;
    if (!all) launch_logits(d, token, k);
    launch_count(d, n, k, NULL);
    GPU_LAUNCH(collect_kernel, dim3(top_blocks(d), n), dim3(TOP_THREADS), 0, d->stream, d->logits,
               d->c->vocab, k, d->step, d->selection, d->top);
    launched("collect");
    check(cudaMemcpyAsync(d->back, d->top, n * sizeof *d->top, cudaMemcpyDeviceToHost, d->stream),
          "copying the largest logits");
    d->ranked = all ? k : 0;
    if (!d->recording) d->under_way = 1;
}

static int cuda_top(Device *d, int token, int k, int *ids, float *logits) {
    if (k > d->c->vocab) k = d->c->vocab;
    d->wanted = k;
    if (d->ranked < k) rank(d, token, k);
    if (d->under_way) wait(d, "waiting for the largest logits");
    const Top *top = &d->back[d->ranked ? token : 0];
    int n = top->n < k ? top->n : k;
    for (int i = 0; i < n; i++) ids[i] = top->id[i], logits[i] = top->logit[i];
    return n;
}

static void cuda_head(Device *d, int first, int count, float *logits) {
    size_t row = d->c->vocab;
    int all = head_of_all(d);           /* to the same bits as `top` */
    for (int i = 0; i < count; i += d->n_logits) {
        int n = count - i < d->n_logits ? count - i : d->n_logits;
        if (!all) launch_head(d, first + i, n, NULL);
        check(cudaMemcpyAsync(logits + i * row, d->logits + (all ? first * row : 0), 4 * n * row, cudaMemcpyDeviceToHost, d->stream), "copying logits");
    }
    wait(d, "waiting for the logits");
}

static void read_back(Device *d, void *to, const void *from, size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream), "reading back");
    wait(d, "reading back");
}

/* ---- drafts ----
 *
 * A drafter works in its target's stream and reads its target's memory: what it begins with is
 * there, or will be by then. */

/* RMSNorm(x[token], final_norm). */
static void launch_hidden(Device *d, int token, float *h) {
    int hidden = d->c->hidden;
    GPU_LAUNCH(hidden_kernel, dim3(1), dim3(THREADS), 4 * (size_t)hidden, d->stream,
               last_x(d, token), hidden, d->final_norm, h);
    launched("hidden state");
}

/* The drafter's h. */
static float *draft_h(const Device *d) { return d->pair + d->c->backbone; }

static void launch_post(Device *d) {
    launch_hidden(d, 0, d->h);
    int cols = d->post.cols;
    STREAM(d, row_kernel, row_shared(d, cols), d->post, (const uint16_t *)NULL, d->h,
           row_columns(d, cols), draft_h(d));
    launched("post_projection");
}

static void cuda_draft_from(Device *d, int token, int id, int64_t pos, const float *given) {
    fetch_step(d, &id, 1, pos);
    if (!given) return launch_hidden(d->target, token, draft_h(d));
    size_t bytes = 4 * (size_t)d->c->backbone;
    check(cudaMemcpyAsync(draft_h(d), given, bytes, cudaMemcpyHostToDevice, d->stream),
          "copying the hidden state");
    wait(d, "copying the hidden state");        /* which may go away then */
}

static void cuda_combine(Device *d) {
    begin_step(d, 1);
    int cols = d->pre.cols;
    GPU_LAUNCH(embed_kernel, dim3(1), dim3(THREADS), 0, d->stream, d->embed, d->ids, d->pair,
               sqrtf(d->c->backbone), d->turns);
    launched("embed");
    STREAM(d, row_kernel, row_shared(d, cols), d->pre, (const uint16_t *)NULL, d->pair,
           row_columns(d, cols), d->x[0]);
    launched("pre_projection");
}

static void cuda_guess(Device *d) {
    launch_post(d);
    launch_logits(d, 0, 1);
    GPU_LAUNCH(best_kernel, dim3(top_blocks(d)), dim3(TOP_THREADS), 0, d->stream, d->logits,
               d->c->vocab, d->selection, d->step, d->ids);
    launched("the draft");
}

static void cuda_drafts(Device *d, int n, int *ids) {
    check(cudaMemcpyAsync(d->next, d->step, sizeof *d->step, cudaMemcpyDeviceToHost, d->stream),
          "copying drafts");
    wait(d, "waiting for drafts");
    memcpy(ids, d->next->draft, n * sizeof *ids);
}

static void cuda_hidden(Device *d, int token, float *h) {
    if (d->c->backbone) launch_post(d);
    else launch_hidden(d, token, d->h);
    if (d->c->backbone) read_back(d, h, draft_h(d), 4 * (size_t)d->c->backbone);
    else read_back(d, h, d->h, 4 * (size_t)d->c->hidden);
}

static void cuda_read_x(Device *d, float *x) {
    if (d->rest.a) norms(d, {}, {}, {});
    read_back(d, x, d->x[d->at], 4 * (size_t)d->n * d->c->hidden);
}

static void cuda_read_route(Device *d, int *expert, float *weight) {
    read_back(d, expert, d->expert, 4 * (size_t)d->n * d->c->top_k);
    read_back(d, weight, d->expert_weight, 4 * (size_t)d->n * d->c->top_k);
}

#include "vision.cu"

extern "C" int cuda_found(Error *err) {
    int n = 0, driver = 0, runtime = 0;
    cudaDeviceProp gpu;
    cudaDriverGetVersion(&driver);      /* 0 where there is none; 13000 is CUDA 13.0 */
    cudaRuntimeGetVersion(&runtime);
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) e = cudaGetDeviceProperties(&gpu, 0);
    if (!driver) fail(err, "no GPU (no NVIDIA driver)");
    else if (e == cudaErrorInsufficientDriver)
        fail(err, "no GPU (the driver is for CUDA %d.%d, this program needs %d.%d)", driver / 1000, driver % 100 / 10, runtime / 1000,
             runtime % 100 / 10);
    else if (e != cudaSuccess || !n) fail(err, "no GPU (%s)", e == cudaSuccess ? "none is there" : cudaGetErrorString(e));
    else if (gpu.major < 8) fail(err, "no GPU (%s is of compute capability %d.%d, at least 8.0 is needed)", gpu.name, gpu.major, gpu.minor);
    else return 1;
    cudaGetLastError();                 /* it is dealt with */
    return 0;
}

extern "C" const Ops cuda_ops = {
    "cuda", 2048, 0, cuda_memory, cuda_open, cuda_close, cuda_alloc, cuda_release, cuda_copy,
    cuda_record, cuda_recorded, cuda_replay,
    cuda_embed, cuda_qkv, cuda_attend, cuda_attn_out, cuda_mlp, cuda_route, cuda_experts, cuda_join, cuda_head, cuda_top,
    cuda_draft_from, cuda_combine, cuda_guess, cuda_drafts,
    cuda_read_x, cuda_read_route, cuda_hidden,
    cuda_embed_soft, cuda_see, cuda_see_layer, cuda_see_pool,
};
