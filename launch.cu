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
extern "C" {
#include "offload.h"
}
#include "fp4.h"
#include "hopper.h"
#include "product.h"
#include "load.cu"
#include "fetch.cu"
#include "cached.cu"
#include "handover.cu"
#include "step.cu"
#include "residual.cu"
#include "nvfp4.cu"
#include "stream.cu"
#include "lora.cu"
#include "attention.cu"
#include "moe.cu"
#include "few.cu"
#include "head.cu"

/* GEMMA4_CUDA says what is left out to find a fault, and what is tried.  With gpu_sync the host
 * waits after every launch; with gpu_wgmma hopper.cu multiplies many tokens; with gpu_copy all
 * weights are copied. */
static int gpu_no_graph, gpu_no_overlap, gpu_sync, gpu_wgmma, gpu_copy;

/* Bytes of static shared memory that are kept free beside the dynamic one: no kernel with dynamic
 * shared memory declares more than STATIC_SHARED, except that kernels that stream weights may
 * declare up to STREAM_STATIC.  tests/test_gpu.py compares them with what the compiler reports. */
#define STATIC_SHARED 1024
#define STREAM_STATIC 4736

/* A recorded step: a CUDA graph, and the values that the fields of the same names in Device have
 * behind it. */
typedef struct {
    cudaGraphExec_t graph;              /* NULL: not recorded yet */
    int used;                           /* how many steps of this length were computed without it */
    int at, all_logits;
    Residual rest;
} Recorded;

/* The formats of a layer's experts, TILE_ANY where they differ. */
typedef struct {
    TileFormat up, down;                /* gates and ups; downs */
    int packed_up, packed_down;         /* 1: all of them are nibbles, see Vector in stream.cu */
} ExpertFormats;

/* An open device.  hidden, intermediate … are fields of Config, max_n is the most tokens of a step,
 * qkv the rows of q, k and v of the layer that has most of them.  All arrays are in the GPU's
 * memory unless it says "host". */
struct Device {
    const Config *c;
    const Weights *w;                   /* host: tells which layer is meant */
    int n_threads;                      /* of the host, for loading */
    Device *target;                     /* of a drafter, which uses its stream and its embedding */

    /* ---- weights ---- */
    /* host [2][n_layers]: w's, pointing to the GPU's memory.  Experts that are with the CPU point
     * to where they are fetched to, or are NULL.  The second half is the same layers with their
     * slots: cached.layer. */
    Layer *layer;
    Weight *experts;                    /* host [n_layers][gate, up, down][n_experts], likewise */
    ExpertFormats *expert_formats;      /* host [n_layers] */
    Weight embed, head;                 /* embed of a drafter: its target's */
    Weight pre, post;                   /* of a drafter: its projections */
    float *final_norm;                  /* [hidden] */
    Adapters adapters;                  /* LoRA */
    Store weights;
    Screen screen;                      /* the int8 copy of a head that is no drafter's */
    DraftHead draft_head;               /* the copy of a drafter's head in four bits */
    int screened;                       /* there is such a copy */
    int copy_pays;                      /* there may be one: the head is BF16 and large */
    int forced;                         /* by GEMMA4_HEAD: there is one, which is always used */
    struct Sight *sight;                /* the vision tower; NULL: no picture yet, or no room */

    /* ---- experts on the CPU ---- */
    int cpu_experts;                    /* those of the first so many layers */
    Cached cached;                      /* these layers' slots for single experts on the GPU */
    Fetch fetch;                        /* brings these layers' to the GPU for many tokens */
    Offload *offload;                   /* the CPU; NULL where cpu_experts is 0 */
    HandOver hand_over;                 /* host, page-locked, for max_n tokens */
    unsigned *given;                    /* hand-overs so far, as the signal GIVEN */
    int serves_first;                   /* no kernel may wait for the CPU: see experts_on_cpu */

    /* ---- how it computes ---- */
    int stream_blocks;                  /* multiprocessors: a block that streams weights on each */
    int deep;                           /* their rings are DEEP, not SHALLOW */
    int every_kind;                     /* they are those with EVERY_KIND (stream.cu) */
    int shared_limit;                   /* bytes of dynamic shared memory that a block can have */
    int ahead;                          /* bytes that a launch that reads little brings ahead */
    int cache;                          /* bytes of the L2 cache */
    /* Several tokens: BF16 numbers that make one of theirs, in products and in attention. */
    int y_parts, attend_parts;
    int fp4_activations;                /* fp4.cu multiplies many tokens */
    int wgmma, wgmma_experts;           /* hopper.cu multiplies many tokens; the experts, too */

    /* ---- the step that is under way ---- */
    cudaStream_t stream;
    int n;                              /* tokens */
    Step *step;                         /* with the ids of up to max_n tokens */
    int64_t *where;                     /* step->pos */
    int *ids;                           /* the ids behind step */
    Turns turns;                        /* for up to max_n tokens */
    int pictures;                       /* 1: the step has pictures, and `last` counts */
    int *last, *host_last;              /* [max_n] see Attend.last; host_last: host */
    /* The residual stream is in x[at]; x[!at] is where it goes when many blocks still read it.
     * x[0] [max_n][hidden], x[1] [STREAMED_TOKENS][hidden]. */
    float *x[2];
    int at;
    Residual rest;                      /* what is still to be added to it; rest.a NULL: nothing */
    int all_logits;                     /* `logits` has those of all of this step's tokens */
    int ranked;                         /* of each, so many of the largest go to `back`; 0: none */
    Recorded recorded[MAX_RECORDED + 1];        /* by the number of tokens */
    int recording;                      /* the launches are being recorded, not executed */

    /* Page-locked memory of the host, so that copies do not hold up the stream. */
    Step *next;                         /* the next step, with its ids: the stream fetches it */
    Top *back;                          /* [n_logits] what the stream brings back */
    int under_way;                      /* the stream may not have fetched and brought that yet */
    int wanted;                         /* the k that was asked for last */

    /* ---- activations, float32 ---- */
    Arena acts;                         /* everything below and the step's arrays above */
    float *qkv;                         /* [max_n][n_heads + 2 * n_kv_heads][head_dim] */
    float *att;                         /* [max_n][n_heads][head_dim] */
    float *o;                           /* [max_n][hidden] o_proj's output */
    float *score;                       /* [max_n][n_experts] of the router */
    int *expert;                        /* [max_n][top_k] the choice, */
    float *expert_weight;               /* [max_n][top_k] and its weights */
    float *expert_out;                  /* [max_n * top_k][hidden] several tokens: downs; or
                                         * [max_n][hidden] the sum from the CPU */
    float *h1;                          /* [max_n][hidden] the dense MLP's output */
    float *h2;                          /* [hidden] one token: the experts' output */
    float *h;                           /* [hidden] final_norm of x, for the host or `post` */
    float *pair;                        /* [2][backbone] a drafter: the embedding, and its h */
    float *logits;                      /* [n_logits][vocab] */
    int n_logits;                       /* the most tokens whose logits are there at once */
    Selection *selection;               /* [n_logits] */
    Top *top;                           /* [n_logits] */
    float *partial;                     /* attention's partial results: see attend_kernel */
    unsigned *ticket;                   /* and its counters */

    /* ---- many tokens: BF16 [parts][max_n][columns, padded] ---- */
    uint16_t *y, *y_experts, *y_router; /* norms of x [hidden]; y_router: three parts */
    uint16_t *y_att;                    /* att, for o_proj */
    uint16_t *act;                      /* [intermediate] gelu(gate) * up of the dense MLP */
    uint16_t *expert_act;               /* [size] the same of the experts, max_n * top_k of them */
    Fp4Rows fp4;                        /* one of those as NVFP4, for the next product */
    int *list, *place;                  /* [max_n * top_k] see sort_kernel */
    int *first, *count;                 /* [n_experts] likewise */
    Tile *tile;                         /* [*n_tiles] likewise */
    int *n_tiles;
    unsigned *sort_ticket;
    float4 *column_partial;             /* blocks that share columns: see WarpTile::join */
    unsigned *column_ticket;

    /* ---- one token or a few: vectors that are split for the next product (stream.cu) ---- */
    uint16_t *att_vector[2];            /* att, of sliding and of global layers */
    uint16_t *act_vector;               /* act */
    uint16_t *expert_vector;            /* one token: expert_act */
    uint16_t *few_y, *few_y_experts;    /* a few tokens: norms of x */
    uint16_t *few_expert_act;           /* a few tokens: expert_act */
    float *few_sums, *few_expert_sums;  /* a few tokens: gate . y and up . y, see FewMlp */
    uint8_t *few_routes;                /* a few tokens: FewMlp.routes */
    uint16_t *few_head_y;               /* a few tokens: final norms, for few_head_kernel */
};

/* Whether the experts of l, a layer of d->w, are with the CPU; whether this step fetches such
 * layers; whether the CPU computes l's experts in this step. */
static bool is_offloaded(const Device *d, const Layer *l) {
    return l - d->w->layer < d->cpu_experts;
}
static bool fetches(const Device *d) { return d->fetch.n_layers && d->n >= FETCH_TOKENS; }
static bool on_cpu(const Device *d, const Layer *l) { return is_offloaded(d, l) && !fetches(d); }

/* Whether the GPU computes those of l's experts that have a slot, and the CPU the others. */
static bool has_slots(const Device *d, const Layer *l) {
    return on_cpu(d, l) && d->cached.slots.n_slots;
}

/* Whether l has slots for which this step says which experts are popular. */
static bool learns(const Device *d, const Layer *l) {
    return is_offloaded(d, l) && fetches(d) && d->cached.slots.n_slots;
}

/* The same layer with pointers that the GPU understands.  If it has slots, its lists of experts are
 * those of the slots. */
static const Layer *on_gpu(const Device *d, const Layer *l) {
    const ptrdiff_t i = l - d->w->layer;
    return has_slots(d, l) ? &d->cached.layer[i] : &d->layer[i];
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Bytes of dynamic shared memory of the kernels that stream weights, as their comments have them.
 * stream_shared: the ring and a Vector of `cols` columns.  share_bytes: n floats for each row of a
 * block's share of `rows` rows. */
static size_t ring_shared(const Device *d) {
    int depth = d->deep ? DEEP : SHALLOW;
    return ring_bytes(d->every_kind ? depth + EVERY_KIND : depth);
}
static size_t stream_shared(const Device *d, int cols) {
    return ring_shared(d) + vector_bytes(cols);
}
static size_t share_bytes(const Device *d, int n, int rows) {
    return 4 * (size_t)n * (rows / d->stream_blocks + 1);
}
/* qkv_kernel, head_kernel. */
static size_t normed_shared(const Device *d) {
    return stream_shared(d, d->c->hidden) + 4 * (size_t)spare_floats(d->c->hidden);
}
/* mlp_rows_kernel. */
static size_t mlp_shared(const Device *d) {
    const Config *c = d->c;
    size_t sums = larger(share_bytes(d, 2, c->intermediate), 4 * spare_floats(c->hidden));
    return stream_shared(d, (c->n_experts ? 2 : 1) * wide(c->hidden)) + sums;
}
/* experts_up_kernel. */
static size_t up_shared(const Device *d) {
    const Config *c = d->c;
    return stream_shared(d, c->hidden) + vector_bytes(c->intermediate) + choice_bytes(c->top_k) +
           larger(share_bytes(d, 2, c->top_k * c->expert_size), 4 * spare_floats(c->hidden));
}
/* experts_down_kernel. */
static size_t down_shared(const Device *d) {
    const Config *c = d->c;
    return stream_shared(d, c->top_k * wide(c->expert_size)) + choice_bytes(c->top_k) +
           share_bytes(d, c->top_k, c->hidden);
}

/* The bytes of dynamic shared memory that a kernel that streams weights can have behind its
 * ring. */
static size_t stream_room(const Device *d) {
    return d->shared_limit + STATIC_SHARED - STREAM_STATIC - ring_shared(d);
}

/* few_head_kernel; and whether it can compute the logits of n tokens. */
static size_t few_head_shared(const Device *d) {
    return ring_shared(d) + rows_bytes(HEAD_TOKENS * ROW_PARTS, d->c->hidden);
}
static bool has_few_head(const Device *d, int n) {
    const size_t vectors = few_head_shared(d) - ring_shared(d);
    return n <= HEAD_TOKENS && d->w->head.dtype == DT_BF16 && vectors <= stream_room(d);
}

/* Columns of a vector of `rows` rows that are taken at once: all of them if there is room for them
 * beside `more` bytes, else a multiple of 256. */
static int columns_at_once(const Device *d, int cols, int rows, size_t more) {
    int columns = wide(cols);
    while (columns > 256 && rows_bytes(rows, columns) + more > stream_room(d)) columns -= 256;
    return columns;
}
static int row_columns(const Device *d, int cols) { return columns_at_once(d, cols, ROW_PARTS, 0); }
/* row_kernel. */
static size_t row_shared(const Device *d, int cols) {
    int columns = row_columns(d, cols);
    return stream_shared(d, columns < cols ? columns : cols);
}

/* ---- launches ---- */

/* Ends the program if the last launch failed.  what: of the kernel, for the message. */
static void launched(const char *what) {
    check(cudaGetLastError(), what);
    if (gpu_sync) check(cudaDeviceSynchronize(), what);
}

/* Launches a kernel that streams weights, with the depth of ring that the GPU has room for, and for
 * the Kinds that the model has. */
#define STREAM(d, kernel, shared, ...)                                                           \
    do {                                                                                         \
        const dim3 blocks((d)->stream_blocks), threads(STREAM_THREADS);                          \
        const cudaStream_t on = (d)->stream;                                                     \
        if ((d)->deep && (d)->every_kind)                                                        \
            GPU_LAUNCH(kernel<DEEP + EVERY_KIND>, blocks, threads, shared, on, __VA_ARGS__);     \
        else if ((d)->deep)                                                                      \
            GPU_LAUNCH(kernel<DEEP>, blocks, threads, shared, on, __VA_ARGS__);                  \
        else if ((d)->every_kind)                                                                \
            GPU_LAUNCH(kernel<SHALLOW + EVERY_KIND>, blocks, threads, shared, on, __VA_ARGS__);  \
        else GPU_LAUNCH(kernel<SHALLOW>, blocks, threads, shared, on, __VA_ARGS__);              \
    } while (0)

/* Waits until the GPU has done all that was launched. */
static void wait(Device *d, const char *what) {
    check(cudaStreamSynchronize(d->stream), what);
    d->under_way = 0;
}

/* The residual stream as the next kernel finds it, with what is to be added.  in_place: the kernel
 * has one block for each token, which may write x' over x. */
static Residual residual(Device *d, int in_place) {
    Residual r = d->rest;
    r.x = d->x[d->at];
    r.to = d->x[in_place ? d->at : !d->at];
    r.eps = d->c->eps;
    return r;
}

/* Notes that the kernel that got residual(d, in_place) writes x'. */
static void settled(Device *d, int in_place) {
    d->rest = {};
    if (!in_place) d->at = !d->at;
}

/* What a launch of so many blocks brings of matrices that are read one after the other: *bytes
 * bytes behind the first `from`, which an earlier launch has brought.  *bytes becomes what is left
 * of them. */
static Next next_of(std::initializer_list<Weight> matrices, size_t from, size_t *bytes,
                    int blocks) {
    Next next = {};
    int i = 0;
    for (const Weight &w : matrices) {
        const size_t row = row_bytes(w) + (w.block_scale ? scale_pitch(w) : 0), all = w.rows * row;
        const size_t there = smaller(all, from), now = smaller(all - there, *bytes);
        next.w[i] = w;
        next.share[i] = (w.rows + blocks - 1) / blocks;
        /* Of a matrix that is there in part it is not known here which rows are: all are named. */
        if (now) next.rows[i] = (int)((there + now) / row + blocks - 1) / blocks;
        from -= there;
        *bytes -= now;
        i++;
    }
    return next;
}

/* Many tokens: bytes of the router and the dense MLP that the norms before them bring.  sort_kernel
 * brings what follows of the dense MLP, and then of the experts: three eighths of the L2 cache.  So
 * there is room for what is in use meanwhile, and an RTX 4090 or 5090 computes the dense MLP
 * without waiting for its weights.  To tune both, compare bench/gpusim --gpu 3090,4090,5090 --step
 * prompt16,prompt64. */
static size_t ahead_of_mlp(const Device *d) { return larger(d->cache / 4, d->ahead); }

/* Launches norm_kernel: up to three norms of r, n vectors of `hidden` numbers. */
static void norms_of(Device *d, const Residual &r, int n, int hidden, NormTo a, NormTo b, NormTo c,
                     const Next &next = Next()) {
    size_t shared = 4 * (size_t)spare_floats(hidden);
    GPU_LAUNCH(norm_kernel, dim3(n), dim3(STREAM_THREADS), shared, d->stream, r, hidden, a, b, c,
               next);
    launched("norms");
}

/* Several tokens: up to three norms of the settled residual stream. */
static void norms(Device *d, NormTo a, NormTo b, NormTo c, const Next &next = Next()) {
    norms_of(d, residual(d, 1), d->n, d->c->hidden, a, b, c, next);
    settled(d, 1);
}

/* Launches parts_kernel: y = BF16 [parts][n][padded(cols)] of x, n tokens. */
static void split(Device *d, const float *x, int n, int cols, int run, int pitch, int parts,
                  uint16_t *y) {
    dim3 grid(n, (padded(cols) + 4 * THREADS - 1) / (4 * THREADS));
    GPU_LAUNCH(parts_kernel, grid, dim3(THREADS), 0, d->stream, x, cols, run, pitch, parts, y);
    launched("splitting");
}

/* The variants of gemm_kernel. */
typedef struct {
    TileFormat format;
    int mt, parts;
    void (*kernel)(Product);
} Gemm;
#define GEMM(format, mt, parts) {format, mt, parts, gemm_kernel<format, mt, parts>}
static const Gemm gemms[] = {
    GEMM(TILE_BF16, 1, 1),
    GEMM(TILE_BF16, 2, 1),
    GEMM(TILE_BF16, 3, 1),
    GEMM(TILE_BF16, 4, 1),
    GEMM(TILE_BF16, 1, 3),
    GEMM(TILE_BF16, 2, 3),
    GEMM(TILE_NVFP4, 1, 1),
    GEMM(TILE_NVFP4, 2, 1),
    GEMM(TILE_NVFP4, 3, 1),
    GEMM(TILE_NVFP4, 4, 1),
    GEMM(TILE_NVFP4, 1, 3),
    GEMM(TILE_NVFP4, 2, 3),
    GEMM(TILE_INT4, 1, 1),
    GEMM(TILE_INT4, 2, 1),
    GEMM(TILE_INT4, 4, 1),
    GEMM(TILE_INT4, 1, 3),
    GEMM(TILE_BYTES, 1, 1),
    GEMM(TILE_BYTES, 2, 1),
    GEMM(TILE_BYTES, 4, 1),
    GEMM(TILE_BYTES, 1, 3),
    GEMM(TILE_ANY, 1, 1),
    GEMM(TILE_ANY, 1, 3),
};
#undef GEMM

/* The tile format of p, whose matrices are no experts'. */
static TileFormat format_of(const Product &p) {
    TileFormat format = tile_format(p.w);
    for (const Weight &other : {p.up, p.more[0], p.more[1]})
        if (other.data) format = shared_format(format, p.w, other);
    return format;
}

/* The largest mt up to `mt` that a kernel was made for. */
static int fit(int mt, TileFormat format, int parts) {
    if (format == TILE_ANY || (scales_sums(format) && parts > 1)) return 1;
    if (scales_sums(format) && mt == 3) return 2;
    return parts > 1 && mt > 2 ? 2 : mt;
}

/* mt for n tokens and row_tiles tiles of rows; a tile has 32 * mt tokens.
 *
 * Few tokens take small tiles.  For many, mt is what makes the grid end soonest: blocks run in
 * turns of one on each multiprocessor, and a block takes 2 mt units of time for the tokens and one
 * unit for bringing the rows.  The proportion is from bench/gpusim --step prefill; to tune it
 * again, compare there the time of one product for mt 1 to 4. */
static int token_tiles(const Device *d, int n, int row_tiles) {
    if (n <= 32) return 1;
    /* A matrix of so few tiles leaves multiprocessors idle: it had better be read twice. */
    if (n <= 64) return 8 * row_tiles < d->stream_blocks ? 1 : 2;
    auto cost = [&](int mt) {
        int tiles = row_tiles * ((n + 32 * mt - 1) / (32 * mt));
        return (tiles + d->stream_blocks - 1) / d->stream_blocks * (2 * mt + 1);
    };
    int best = 4;
    for (int mt = 3; mt >= 2; mt--)
        if (cost(mt) < cost(best)) best = mt;
    return best;
}

/* Whether hopper.cu multiplies the experts.  It counts the bytes of y in 32 bits, so it cannot
 * where they are more. */
static int hopper_experts(const Device *d) {
    const Config *c = d->c;
    size_t pairs = (size_t)d->n * c->top_k, width = padded((int)larger(c->hidden, c->expert_size));
    return d->wgmma_experts && d->n > 16 && 2 * pairs * width <= UINT32_MAX;
}

/* mt for a layer's experts, each of which has n * top_k / n_experts tokens on average.  The bounds
 * 48 and 12 are guesses: most experts then fit into one tile.  Compare bench/gpusim --step
 * prefill. */
static int expert_tiles(const Device *d, const Layer *host) {
    if (hopper_experts(d)) return HOPPER_TOKENS / 32;
    int each = d->n * d->c->top_k / d->c->n_experts, mt = 1;
    if (each > 12) mt = 2;
    if (each > 48) mt = 4;
    const ExpertFormats *f = &d->expert_formats[host - d->w->layer];
    const int of_up = fit(mt, f->up, d->y_parts), of_down = fit(mt, f->down, d->y_parts);
    return of_up < of_down ? of_up : of_down;
}

/* Launches gemm_kernel for p, whose matrices have `cols` columns: row_tiles tiles of rows, and at
 * most `tiles` tiles of 32 * mt tokens. */
static void gemm(Device *d, Product &p, TileFormat format, int parts, int mt, int cols,
                 int row_tiles, int tiles, const char *what) {
    const Gemm *g = gemms;
    while (g->format != format || g->mt != mt || g->parts != parts) g++;
    size_t shared = (size_t)stages_of(format, mt, parts) * stage_bytes(format, mt, parts);
    /* Where there are few tiles, several blocks share the columns of each, so that all blocks fit
     * on the GPU at once.  A block has 4 steps at least: 4 steps take the time that a block needs
     * to begin and to join (bench/gpusim --step prefill; compare there to tune it again). */
    const int per_sm = gpu_fits((const void *)g->kernel, THREADS, shared, mt == 1 ? 2 : 1);
    int fit = per_sm * d->stream_blocks / (row_tiles * tiles);
    int steps = padded(cols) / 64, shares = 1;
    p.steps = steps;
    if (!p.tile && fit > 1) {
        p.steps = (steps + fit - 1) / fit > 4 ? (steps + fit - 1) / fit : 4;
        shares = (steps + p.steps - 1) / p.steps;
    }
    p.partial = d->column_partial;
    p.ticket = d->column_ticket;
    dim3 grid(row_tiles, tiles, shares), block(THREADS);
    GPU_LAUNCH(g->kernel, grid, block, shared, d->stream, p);
    launched(what);
}

/* p's product for n rows of y, with matrices that are no experts': by hopper.cu or gemm_kernel. */
static void dense(Device *d, Product p, int n, const uint16_t *y, int parts, const char *what) {
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

/* The product out[n][pitch] = w . y. */
static Product product_of(const Weight &w, float *out, int pitch) {
    Product p = {};
    p.w = w;
    p.out = out;
    p.pitch = pitch;
    return p;
}

/* The product out [n][rows of q, k, v] = q . y, k . y, v . y, one after the other; a layer without
 * v has k . y twice. */
static Product qkv_product(const Weight &q, const Weight &k, const Weight &v, float *out) {
    Product p = product_of(q, out, q.rows + 2 * k.rows);
    p.more[0] = k;
    p.more[1] = v.data ? v : k;
    return p;
}

/* The product act[n][rows] = gelu(gate . y) * (up . y). */
static Product gated_product(const Weight &gate, const Weight &up, uint16_t *act) {
    Product p = {};
    p.w = gate;
    p.up = up;
    p.act = act;
    return p;
}

/* ---- many tokens of a layer, perhaps as NVFP4 ---- */

/* Steps of more tokens than this are multiplied by fp4.cu.  For fewer, rounding the activations
 * takes longer than the faster tensor cores gain.  To tune it, compare bench/gpusim --gpu 5090,GB10
 * --layout fp4 --step prompt32,prompt64 with and without --fp4-activations. */
#define FP4_TOKENS 32

/* Whether fp4.cu multiplies w. */
static int takes_fp4(const Device *d, const Weight &w) {
    return d->fp4_activations && d->n > FP4_TOKENS && w.dtype == DT_U8;
}

/* fp4.cu computes p: the rows of p.y become NVFP4, and are multiplied in at most `tiles` tiles of
 * `tokens` tokens.  w: p's matrix or, if p is of experts, one of theirs. */
static void fp4_gemm(Device *d, const Product &p, const Weight &w, int tokens, int tiles,
                     const char *what) {
    fp4_quantise(p.y, p.n, padded(w.cols), d->fp4, d->stream);
    launched("FP4 activations");
    fp4_product(p, d->fp4, w.rows, tokens, tiles, d->stream);
    launched(what);
}

/* Tokens of a tile of fp4.cu.  Products of few tokens have small tiles, so that there are tiles for
 * more multiprocessors.  The bounds are guesses: no GPU has tried others. */
static int fp4_tokens(int n) {
    if (n <= 64) return 32;
    return n <= 256 ? 64 : 128;
}

/* p's product for this step's tokens, with matrices that are no experts': by fp4.cu if it
 * multiplies all of them. */
static void layer_dense(Device *d, Product p, const uint16_t *y, const char *what) {
    for (const Weight &w : {p.w, p.up, p.more[0], p.more[1]})
        if (w.data && !takes_fp4(d, w)) return dense(d, p, d->n, y, d->y_parts, what);
    int tokens = fp4_tokens(d->n);
    p.n = p.n_act = d->n;
    p.y = y;
    fp4_gemm(d, p, p.w, tokens, (d->n + tokens - 1) / tokens, what);
}

/* p, a product of a layer's experts, in tiles of the places that are sorted by expert.  w and up
 * are matrices of the same shapes and formats as the experts' (up.data NULL: p has no expert_up);
 * format is the format of all of them. */
static void expert_product(Device *d, const Layer *host, Product &p, const Weight &w,
                           const Weight &up, TileFormat format, const char *what) {
    const int mt = expert_tiles(d, host), pairs = d->n * d->c->top_k;
    const int rows = up.data ? GEMM_ROWS / 2 : GEMM_ROWS;
    /* Each expert may have one tile that is not full. */
    int tiles = pairs / (32 * mt) + d->c->n_experts;
    tiles = tiles < pairs ? tiles : pairs;
    p.tile = d->tile;
    p.n_tiles = d->n_tiles;
    if (hopper_experts(d)) hopper_product(p, w, up, d->y_parts, tiles, d->stream);
    else if (format == TILE_NVFP4 && takes_fp4(d, w)) fp4_gemm(d, p, w, 32 * mt, tiles, what);
    else gemm(d, p, format, d->y_parts, mt, w.cols, (w.rows + rows - 1) / rows, tiles, what);
}

/* ---- LoRA adapters ---- */

/* The adapters of a layer, which is one of d->layer; a model without adapters has empty groups. */
static LayerAdapters adapters_of(const Device *d, const Layer *l) {
    const ptrdiff_t i = (l - d->layer) % d->c->n_layers;
    return d->adapters.layer ? d->adapters.layer[i] : LayerAdapters();
}

/* Rows of a product of many tokens, of `cols` numbers: BF16 [parts][n][padded(cols)]. */
static SplitRows tile_rows(uint16_t *at, int n, int cols, int parts) {
    return {at, (size_t)padded(cols), (size_t)n * padded(cols), parts, IN_ORDER};
}

/* Rows of vectors of stream.cu, of `cols` numbers. */
static SplitRows vector_rows(uint16_t *at, int cols, int parts, int packed) {
    const size_t stride = vector_stride(cols);
    return {at, parts * stride, stride, parts, packed};
}

/* Adds the adapters of the group g to the products of its matrices: p has the cases, their inputs
 * and their products.  A group without adapters launches nothing. */
static void adapt(Device *d, const AdapterGroup &g, Adapted p) {
    if (!g.n) return;
    p.group = g;
    p.low = d->adapters.low;
    p.width = d->adapters.width;
    const bool several = !p.expert && p.n > 1;
    const int blocks = several ? (p.n + ADAPTED_CASES - 1) / ADAPTED_CASES : p.n;
    const dim3 low(blocks * g.width), out(blocks, (g.rows + THREADS - 1) / THREADS);
    if (several) GPU_LAUNCH(low_kernel<ADAPTED_CASES>, low, dim3(THREADS), 0, d->stream, p);
    else GPU_LAUNCH(low_kernel<1>, low, dim3(THREADS), 0, d->stream, p);
    launched("A of an adapter");
    if (several) GPU_LAUNCH(adapt_kernel<ADAPTED_CASES>, out, dim3(THREADS), 0, d->stream, p);
    else GPU_LAUNCH(adapt_kernel<1>, out, dim3(THREADS), 0, d->stream, p);
    launched("B of an adapter");
}

/* adapt for matrices that are no experts': the step's tokens, their inputs and products. */
static void adapt_tokens(Device *d, const AdapterGroup &g, const SplitRows &in, float *out,
                         int pitch) {
    Adapted p = {};
    p.n = d->n;
    p.in = in;
    p.out = out;
    p.pitch = pitch;
    adapt(d, g, p);
}

/* adapt for the experts of l: the pairs of the step's tokens and their experts.  place: as in
 * Adapted.  input_of: top_k where a pair's input is its token's, 0 where each pair has an input of
 * its own. */
static void adapt_experts(Device *d, const Layer *l, const AdapterGroup &g, const int *place,
                          int input_of, const SplitRows &in, float *out, int pitch) {
    Adapted p = {};
    p.n = d->n * d->c->top_k;
    p.expert = d->expert;
    p.held = l->expert_gate;
    p.place = place;
    p.input_of = input_of;
    p.in = in;
    p.out = out;
    p.pitch = pitch;
    adapt(d, g, p);
}

/* act = gelu(gate) * up of sums [rows][2][size]. */
static void gelu_of(Device *d, const float *sums, int rows, int size, const SplitRows &act) {
    const int width = act.order == IN_ORDER ? padded(size) : size;
    const dim3 grid(rows, (width + THREADS - 1) / THREADS);
    GPU_LAUNCH(gelu_kernel, grid, dim3(THREADS), 0, d->stream, sums, size, width, act);
    launched("gelu");
}

/* ---- attention ---- */

/* How this step's tokens are attended to.  A step that may be recorded serves every position. */
static AttendPlan plan_attention(const Device *d, const Layer *l, const KvCache *kv) {
    const int64_t seen = d->n > MAX_RECORDED ? d->next->pos + d->n : INT64_MAX;
    return attend_plan(l, kv, d->c->n_heads, d->n, seen, d->attend_parts, d->stream_blocks,
                       d->shared_limit);
}

/* Launches the kernel that p names, with a, and the kernel that joins its partial results. */
static void launch_attend(Device *d, Attend a, const AttendPlan &p) {
    const AttendVariant *v = p.variant;
    const int heads = a.l.n_kv_heads, units = heads * p.tiles;
    dim3 grid = dim3(heads * p.splits, p.tiles);
    if (v && v->head_dim) grid = dim3(p.unsplit + (units - p.unsplit) * p.splits);
    if (v) {
        const dim3 threads(32 * v->row_warps * v->col_warps);
        a.ahead = d->ahead / (int)(grid.x * grid.y);
        GPU_LAUNCH(v->kernel, grid, threads, p.shared, d->stream, a);
    } else {
        grid = dim3(heads, a.n);
        GPU_LAUNCH(plain_attend_kernel, grid, dim3(128), p.shared, d->stream, a);
    }
    launched("attend");
    if (!p.joined_apart) return;
    grid = dim3(p.join_blocks, units - p.unsplit);
    GPU_LAUNCH(join_attend_kernel, grid, dim3(32 * JOIN_WARPS), 0, d->stream, a,
               16 * v->row_warps, v->keys, p.fused);
    launched("joining attention's partial results");
}

/* Copies from the GPU to the host, and waits for it. */
static void read_back(Device *d, void *to, const void *from, size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream), "reading back");
    wait(d, "reading back");
}

#endif
