/* cuda.cu - the operations of ops.h on an NVIDIA GPU: memory, launches, and the table of operations.
 *
 * The weights are copied once to the GPU's memory, each matrix as it lies in the file.  A layer is ten launches
 * (a dense one eight), for one token as for many: several tokens are several rows of blocks. */
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nvfp4.cu"
#include "attention.cu"
#include "moe.cu"

#define MAX_SPLITS 32                   /* parts of the keys that are attended to at once … */
#define SPLIT_TOKENS 16                 /* … when so few tokens come together that their heads alone do not fill the GPU */

/* One piece of the GPU's memory, handed out front to back.  With base NULL it only counts. */
typedef struct {
    uint8_t *base;
    size_t used;
} Arena;

struct Device {
    const Config *c;
    const Weights *w;                   /* on the host: tells which layer is meant */
    Layer *layer;                       /* [n_layers] the same with pointers to the GPU's memory */
    Weight embed, head;
    float *final_norm;
    Arena weights, acts;
    cudaStream_t stream;
    int n;
    int64_t pos;
    /* Activations, float32 [max_n][…]; see the kernels. */
    int *ids;
    float *x, *qkv, *att, *o, *act, *score, *expert_weight, *expert_act, *h1, *h2, *part, *logits;
    int *expert;
    unsigned *ticket;
    int n_logits;                       /* rows that `logits` has room for */
};

/* ---- errors and memory ---- */

/* An operation that fails on the GPU cannot be undone: the program says which, and ends. */
static void check(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "gemma4: GPU: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

static void *take(Arena *a, size_t bytes) {
    void *p = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 255) / 256 * 256;
    return p;
}

static void *upload(Device *d, const void *host, size_t bytes) {
    void *p = take(&d->weights, bytes);
    if (p) check(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), "copying the weights");
    return p;
}

static void upload_vector(Device *d, float **v, int n) {
    if (*v) *v = (float *)upload(d, *v, n * sizeof(float));
}

static void upload_weight(Device *d, Weight *w) {
    size_t n = (size_t)w->rows * w->cols;
    if (!w->data) return;
    w->data = (const uint8_t *)upload(d, w->data, w->dtype == DT_U8 ? n / 2 : n * dtype_size[w->dtype]);
    if (w->block_scale) w->block_scale = (const uint8_t *)upload(d, w->block_scale, n / 16);
}

static void upload_experts(Device *d, Weight **experts) {
    int n = d->c->n_experts;
    Weight *copy = (Weight *)xmalloc(n * sizeof *copy);
    memcpy(copy, *experts, n * sizeof *copy);
    for (int e = 0; e < n; e++) upload_weight(d, &copy[e]);
    *experts = (Weight *)upload(d, copy, n * sizeof *copy);
    free(copy);
}

/* Copies all weights to d->weights and points d->layer there; without memory yet (base NULL) it only counts the bytes. */
static void upload_all(Device *d) {
    const Config *c = d->c;
    d->weights.used = 0;
    d->embed = d->w->embed;
    upload_weight(d, &d->embed);
    d->head = d->w->head;
    if (d->w->head.data == d->w->embed.data) d->head = d->embed;
    else upload_weight(d, &d->head);
    d->final_norm = d->w->final_norm;
    upload_vector(d, &d->final_norm, c->hidden);
    float *turns[2] = {NULL, NULL};                 /* RoPE frequencies, shared by all layers of one kind */
    for (int i = 0; i < c->n_layers; i++) {
        Layer *l = &d->layer[i];
        *l = d->w->layer[i];
        Weight *matrix[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down, &l->router};
        for (size_t k = 0; k < sizeof matrix / sizeof *matrix; k++) upload_weight(d, matrix[k]);
        float **hidden[] = {&l->input_norm, &l->post_attention_norm, &l->pre_mlp_norm, &l->post_mlp_norm, &l->pre_experts_norm,
                            &l->post_experts_norm, &l->post_ffn_norm, &l->router_scale};
        for (size_t k = 0; k < sizeof hidden / sizeof *hidden; k++) upload_vector(d, hidden[k], c->hidden);
        upload_vector(d, &l->q_norm, l->head_dim);
        upload_vector(d, &l->k_norm, l->head_dim);
        upload_vector(d, &l->per_expert_scale, c->n_experts);
        if (!turns[l->global]) turns[l->global] = (float *)upload(d, l->inv_freq, l->head_dim / 2 * sizeof(float));
        l->inv_freq = turns[l->global];
        if (!c->n_experts) continue;
        upload_experts(d, &l->expert_gate);
        upload_experts(d, &l->expert_up);
        upload_experts(d, &l->expert_down);
    }
}

/* Hands out the activations; without memory yet it only counts the bytes. */
static void take_activations(Device *d, int max_n) {
    const Config *c = d->c;
    size_t n = max_n, qkv = 0, att = 0, part = 0, heads = 0;
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &d->w->layer[i];
        size_t rows = (size_t)(c->n_heads + 2 * l->n_kv_heads) * l->head_dim, all = (size_t)c->n_heads * (l->head_dim + 2);
        if (rows > qkv) qkv = rows;
        if (all > part) part = all;
        if ((size_t)c->n_heads * l->head_dim > att) att = (size_t)c->n_heads * l->head_dim;
        if ((size_t)l->n_kv_heads > heads) heads = l->n_kv_heads;
    }
    Arena *a = &d->acts;
    a->used = 0;
    d->ids = (int *)take(a, n * sizeof(int));
    d->x = (float *)take(a, 4 * n * c->hidden);
    d->qkv = (float *)take(a, 4 * n * qkv);
    d->att = (float *)take(a, 4 * n * att);
    d->o = (float *)take(a, 4 * n * c->hidden);
    d->act = (float *)take(a, 4 * n * c->intermediate);
    d->score = (float *)take(a, 4 * n * c->n_experts);
    d->expert = (int *)take(a, 4 * n * c->top_k);
    d->expert_weight = (float *)take(a, 4 * n * c->top_k);
    d->expert_act = (float *)take(a, 4 * n * c->top_k * c->expert_size);
    d->h1 = (float *)take(a, 4 * n * c->hidden);
    d->h2 = (float *)take(a, 4 * n * c->hidden);
    d->part = (float *)take(a, 4 * (n > SPLIT_TOKENS * MAX_SPLITS ? n : SPLIT_TOKENS * MAX_SPLITS) * part);
    d->ticket = (unsigned *)take(a, 4 * n * heads);
    d->logits = (float *)take(a, 4 * (size_t)d->n_logits * c->vocab);
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

static void cuda_close(Device *d) {
    if (!d) return;
    if (d->weights.base) cudaFree(d->weights.base);
    if (d->acts.base) cudaFree(d->acts.base);
    if (d->stream) cudaStreamDestroy(d->stream);
    free(d->layer);
    free(d);
}

static size_t shared_bytes(const Device *d, const Layer *l) {
    size_t group = d->c->n_heads / l->n_kv_heads;
    return 4 * group * (2 * (size_t)l->head_dim + KEYS + 3);
}

/* Kernels that may want more shared memory than the 48 KB that are always there. */
static int allow_shared(const Device *d, Error *err) {
    const Config *c = d->c;
    size_t most = 0;
    for (int i = 0; i < c->n_layers; i++) {
        size_t att = 4 * (size_t)c->n_heads * d->w->layer[i].head_dim, flash = shared_bytes(d, &d->w->layer[i]);
        if (att > most) most = att;
        if (flash > most) most = flash;
    }
    size_t sizes[] = {8 * (size_t)c->hidden, 4 * (size_t)c->intermediate, 4 * (size_t)c->top_k * c->expert_size};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] > most) most = sizes[i];
    const void *kernel[] = {(const void *)multiply_kernel,    (const void *)head_kernel,         (const void *)qkv_kernel,
                            (const void *)attend_kernel,      (const void *)mlp_up_kernel,       (const void *)experts_up_kernel,
                            (const void *)experts_down_kernel, (const void *)join_kernel};
    for (size_t i = 0; i < sizeof kernel / sizeof *kernel; i++)
        if (cudaFuncSetAttribute(kernel[i], cudaFuncAttributeMaxDynamicSharedMemorySize, (int)most) != cudaSuccess) {
            cudaGetLastError();
            return fail(err, "GPU: the model needs %zu KB of shared memory for a block, more than this GPU has", most / 1024);
        }
    return 0;
}

static Device *cuda_open(const Config *c, const Weights *w, int max_n, int64_t context, int n_threads, Error *err) {
    Device *d = (Device *)xcalloc(1, sizeof *d);
    (void)context, (void)n_threads;
    d->c = c;
    d->w = w;
    d->n_logits = 16;
    d->layer = (Layer *)xcalloc(c->n_layers, sizeof *d->layer);
    cudaError_t e = cudaStreamCreate(&d->stream);
    int bad = e == cudaSuccess ? 0 : fail(err, "GPU: %s", cudaGetErrorString(e));
    if (!bad) upload_all(d);
    if (!bad) bad = take_memory(&d->weights, "the weights", err);
    if (!bad) take_activations(d, max_n);
    if (!bad) bad = take_memory(&d->acts, "the activations (--chunk)", err);
    if (!bad) bad = allow_shared(d, err);
    if (bad) {
        cuda_close(d);
        return NULL;
    }
    upload_all(d);
    take_activations(d, max_n);
    check(cudaMemset(d->acts.base, 0, d->acts.used), "clearing memory");       /* tickets begin at zero */
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
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice), "copying the cache");
}

/* ---- the operations ---- */

static dim3 rows_of(int rows, int n) { return dim3((rows + WARPS - 1) / WARPS, n); }
static void launched(const char *what) { check(cudaGetLastError(), what); }

static void cuda_embed(Device *d, const int *ids, int n, int64_t pos) {
    d->n = n;
    d->pos = pos;
    check(cudaMemcpyAsync(d->ids, ids, n * sizeof(int), cudaMemcpyHostToDevice, d->stream), "copying token ids");
    GPU_LAUNCH(embed_kernel, dim3(n), dim3(THREADS), 0, d->stream, d->embed, d->ids, d->x, sqrtf(d->c->hidden));
    launched("embed");
}

static void cuda_qkv(Device *d, const Layer *host, KvCache *kv) {
    const Layer *l = on_gpu(d, host);
    int rows = l->q.rows + l->k.rows + (l->v.data ? l->v.rows : 0);
    GPU_LAUNCH(qkv_kernel, rows_of(rows, d->n), dim3(THREADS), 4 * (size_t)d->c->hidden, d->stream, *l, d->c->eps, d->x, d->qkv);
    launched("qkv");
    GPU_LAUNCH(norm_rope_kernel, dim3(d->c->n_heads + l->n_kv_heads, d->n), dim3(128), 4 * (size_t)l->head_dim, d->stream, *l, *kv, d->c->eps,
               d->c->n_heads, d->pos, d->qkv);
    launched("norm and rope");
}

static void cuda_attend(Device *d, const Layer *host, const KvCache *kv) {
    const Layer *l = on_gpu(d, host);
    int64_t keys = d->pos + d->n;
    if (!l->global && keys > d->c->window) keys = d->c->window;
    int64_t splits = (keys + 4 * KEYS - 1) / (4 * KEYS);
    if (splits > MAX_SPLITS) splits = MAX_SPLITS;
    if (d->n > SPLIT_TOKENS) splits = 1;
    GPU_LAUNCH(attend_kernel, dim3(l->n_kv_heads * (int)splits, d->n), dim3(128), shared_bytes(d, l), d->stream, *l, *kv, d->c->n_heads, d->c->window,
               d->pos, (int)splits, d->qkv, d->part, d->ticket, d->att);
    launched("attend");
}

static void cuda_attn_out(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    GPU_LAUNCH(multiply_kernel, rows_of(l->o.rows, d->n), dim3(THREADS), 4 * (size_t)l->o.cols, d->stream, l->o, d->att, d->o);
    launched("o_proj");
    GPU_LAUNCH(add_attention_kernel, dim3(d->n), dim3(THREADS), 0, d->stream, d->o, l->post_attention_norm, d->c->eps, d->c->hidden, d->x);
    launched("residual");
}

/* The router's scores come with the MLP's up; the MLP's down with the experts' up, or, without experts, here. */
static void cuda_mlp(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const Config *c = d->c;
    GPU_LAUNCH(mlp_up_kernel, rows_of(c->intermediate + c->n_experts, d->n), dim3(THREADS), 8 * (size_t)c->hidden, d->stream, *l, c->eps,
               c->n_experts, d->x, d->act, d->score);
    launched("mlp");
    if (c->n_experts) return;
    GPU_LAUNCH(multiply_kernel, rows_of(c->hidden, d->n), dim3(THREADS), 4 * (size_t)c->intermediate, d->stream, l->down, d->act, d->h1);
    launched("mlp down");
}

static void cuda_route(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    GPU_LAUNCH(route_kernel, dim3(d->n), dim3(32), 0, d->stream, *l, d->c->n_experts, d->c->top_k, d->score, d->expert, d->expert_weight);
    launched("route");
}

static void cuda_experts(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const Config *c = d->c;
    int blocks = c->top_k * ((c->expert_size + WARPS - 1) / WARPS) + (c->hidden + WARPS - 1) / WARPS;
    size_t shared = 4 * (size_t)(c->hidden > c->intermediate ? c->hidden : c->intermediate);
    GPU_LAUNCH(experts_up_kernel, dim3(blocks, d->n), dim3(THREADS), shared, d->stream, *l, c->eps, c->top_k, c->expert_size, d->x, d->expert, d->act,
               d->expert_act, d->h1);
    launched("experts' gate and up");
    GPU_LAUNCH(experts_down_kernel, rows_of(c->hidden, d->n), dim3(THREADS), 4 * (size_t)c->top_k * c->expert_size, d->stream, *l, c->top_k,
               c->expert_size, d->expert, d->expert_weight, d->expert_act, d->h2);
    launched("experts' down");
}

static void cuda_join(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    GPU_LAUNCH(join_kernel, dim3(d->n), dim3(THREADS), 4 * (size_t)d->c->hidden, d->stream, *l, d->c->eps, d->c->hidden, d->h1, d->h2, d->x);
    launched("join");
}

static void cuda_head(Device *d, int first, int count, float *logits) {
    const Config *c = d->c;
    int blocks = (c->vocab + WARPS - 1) / WARPS;
    if (blocks > 1024) blocks = 1024;
    for (int i = 0; i < count; i += d->n_logits) {
        int n = count - i < d->n_logits ? count - i : d->n_logits;
        GPU_LAUNCH(head_kernel, dim3(blocks, n), dim3(THREADS), 4 * (size_t)c->hidden, d->stream, d->head, d->x + (size_t)(first + i) * c->hidden,
                   d->final_norm, c->eps, c->softcap, d->logits);
        launched("head");
        check(cudaMemcpyAsync(logits + (size_t)i * c->vocab, d->logits, 4 * (size_t)n * c->vocab, cudaMemcpyDeviceToHost, d->stream),
              "copying logits");
    }
    check(cudaStreamSynchronize(d->stream), "waiting for the logits");
}

static void read_back(Device *d, void *to, const void *from, size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream), "reading back");
    check(cudaStreamSynchronize(d->stream), "reading back");
}

static void cuda_read_x(Device *d, float *x) { read_back(d, x, d->x, 4 * (size_t)d->n * d->c->hidden); }

static void cuda_read_route(Device *d, int *expert, float *weight) {
    read_back(d, expert, d->expert, 4 * (size_t)d->n * d->c->top_k);
    read_back(d, weight, d->expert_weight, 4 * (size_t)d->n * d->c->top_k);
}

extern "C" int cuda_found(Error *err) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) return 1;
    fail(err, "no GPU: %s", e == cudaSuccess ? "none is there" : cudaGetErrorString(e));
    return 0;
}

extern "C" const Ops cuda_ops = {
    "cuda",        cuda_open, cuda_close, cuda_alloc,   cuda_release, cuda_copy, cuda_embed,  cuda_qkv,       cuda_attend,
    cuda_attn_out, cuda_mlp,  cuda_route, cuda_experts, cuda_join,    cuda_head, cuda_read_x, cuda_read_route,
    nullptr,       nullptr,   nullptr,    nullptr,      /* no pictures yet */
};
