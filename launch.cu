/* launch.cu - what an open device is (struct Device), and the launches that several operations use:
 * norms of the residual stream and products of several tokens.
 *
 * open.cu opens a device, cuda.cu and vision.cu compute with it. */
#ifndef LAUNCH_CU
#define LAUNCH_CU

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"
#include "fp4.h"
#include "hopper.h"
#include "product.h"
#include "load.cu"
#include "step.cu"
#include "residual.cu"
#include "nvfp4.cu"
#include "stream.cu"
#include "attention.cu"
#include "moe.cu"
#include "few.cu"
#include "head.cu"

/* GEMMA4_CUDA says what is left out to find a fault, and what is tried.  With gpu_sync the host
 * waits after every launch; with gpu_wgmma hopper.cu multiplies many tokens. */
static int gpu_no_graph, gpu_no_overlap, gpu_sync, gpu_wgmma;

/* Bytes of static shared memory: more than any kernel with dynamic shared memory declares; and more
 * than any kernel that streams weights declares. */
#define STATIC_SHARED 1024
#define STREAM_STATIC 5120

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
    int under_way, wanted;   /* wanted: the k that was asked for last */
    Top *back;                          /* [n_logits] */
    int wgmma, wgmma_experts;           /* hopper.cu multiplies, and the experts, too */
    int shared_limit;                   /* bytes of dynamic shared memory that a block can have */
    int pictures, *last, *host_last;    /* there are some in this step; of each token, the last that it sees in sliding layers */
    int *ids;
    float *qkv, *att, *o, *score, *expert_weight, *expert_out, *h1, *h2, *partial, *logits;
    float *h, *pair;                    /* [hidden] for the host; a drafter's [2 * backbone] */
    uint16_t *y, *y_experts, *y_router, *y_att, *act, *expert_act;              /* BF16 [parts][max_n][…], for products */
    int fp4_activations;
    Fp4Rows fp4;                        /* one of those, as NVFP4, for the next product */
    /* One token or a few: vectors that are split for the next product (see stream.cu).
     * att_vector: of sliding and global layers. */
    uint16_t *att_vector[2], *act_vector, *expert_vector;
    uint16_t *few_y, *few_y_experts, *few_expert_act;           /* a few tokens: see few.cu */
    float *few_sums, *few_expert_sums;
    int *expert, *list, *place, *first, *count, *n_tiles;
    Tile *tile;
    float4 *column_partial;                /* for blocks that share columns: see WarpTile::join */
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

/* The same layer with pointers that the GPU understands. */
static const Layer *on_gpu(const Device *d, const Layer *l) { return &d->layer[l - d->w->layer]; }

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

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

/* What a kernel that streams weights has room for behind its ring. */
static size_t stream_room(const Device *d) {
    return d->shared_limit + STATIC_SHARED - STREAM_STATIC - ring_bytes(d->deep ? DEEP : SHALLOW);
}

/* Columns that row_kernel takes at once: all of them, where there is room. */
static int row_columns(const Device *d, int cols) {
    int columns = wide(cols);
    while (columns > 256 && vector_bytes(columns) > stream_room(d)) columns -= 256;
    return columns;
}
static size_t row_shared(const Device *d, int cols) {
    int columns = row_columns(d, cols);
    return stream_shared(d, columns < cols ? columns : cols);
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

static void wait(Device *d, const char *what) {
    check(cudaStreamSynchronize(d->stream), what);
    d->under_way = 0;
}

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
    p.partial = d->column_partial;
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

/* ---- attention ---- */

static AttendPlan plan_attention(const Device *d, const Layer *l, const KvCache *kv) {
    return attend_plan(l, kv, d->c->n_heads, d->n, d->attend_parts, d->row_blocks, d->shared_limit);
}

static void launch_attend(Device *d, const Attend &a, const AttendPlan &p) {
    const AttendVariant *v = p.variant;
    const int heads = a.l.n_kv_heads, units = heads * p.tiles;
    dim3 grid = dim3(heads * p.splits, p.tiles);
    if (v && v->head_dim) grid = dim3(p.unsplit + (units - p.unsplit) * p.splits);
    if (v) {
        const dim3 threads(32 * v->row_warps * v->col_warps);
        GPU_LAUNCH(v->kernel, grid, threads, p.shared, d->stream, a);
    } else {
        grid = dim3(heads, a.n);
        GPU_LAUNCH(plain_attend_kernel, grid, dim3(128), p.shared, d->stream, a);
    }
    launched("attend");
}

static void read_back(Device *d, void *to, const void *from, size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream), "reading back");
    wait(d, "reading back");
}

#endif
