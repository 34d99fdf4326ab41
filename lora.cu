/* lora.cu - LoRA adapters on the GPU: y += scale * B (A x) beside a product y = W x (Adapter in
 * ops.h).
 *
 * The kernels that multiply the weights know nothing of adapters.  Two launches follow a product
 * whose matrices have adapters: low_kernel computes A x into `low`, and adapt_kernel adds
 * scale * B (A x) to the product in the GPU's memory.  After gate and up a third launch,
 * gelu_kernel, computes gelu(gate) * up from the adapted sums; the product's own kernel would use
 * the sums without adapters.  So a model with adapters takes only kernels that leave every product
 * in the GPU's memory: for one token, too, those of few.cu, and for tiles with an adapter of gate
 * or up those that do not compute gelu.
 *
 * For the speed see bench/gpusim --step adapters; no GPU has timed the three kernels. */
#ifndef LORA_CU
#define LORA_CU

#include <stdint.h>
#include <stdlib.h>

#include "gpu.h"
#include "product.h"
#include "load.cu"
#include "stream.cu"

/* ---- adapters in the GPU's memory ---- */

/* An adapter of a matrix, in the GPU's memory.  A and B are float32: that holds each number of any
 * file exactly.  B is transposed, because neighbouring threads compute neighbouring rows of B: so
 * they read neighbouring numbers. */
typedef struct {
    const float *a;                     /* A [rank][columns of the matrix] */
    const float *b;                     /* B transposed: [rank][rows] */
    int rank, rows;                     /* rows: of the matrix */
    float scale;
    int at;                             /* where A x begins in a row of `low`: Adapter.at */
    int to;                             /* where the matrix's result begins in a row of the
                                         * product */
    int again;                          /* unless 0, a second copy of it begins so much further:
                                         * a global layer's keys are its values, too */
} GpuAdapter;

/* The adapters of all matrices that have the same input: q, k and v; gate and up; or one matrix
 * alone.  The adapters of expert e are adapter[first[e]] … adapter[first[e + 1] - 1].  Matrices
 * outside of the experts count as those of expert 0. */
typedef struct {
    const GpuAdapter *adapter;          /* in the GPU's memory, like `first` */
    const int *first;
    int n;                              /* how many; 0: the group has no adapters */
    int width;                          /* numbers of A x for one input, of the widest expert */
    int cols;                           /* of the matrices */
    int rows;                           /* columns of the product that the adapters can change */
} AdapterGroup;

/* The groups of a layer. */
typedef struct {
    AdapterGroup qkv, o, gate_up, down, router, expert_gate_up, expert_down;
} LayerAdapters;

/* The adapters of a model, and the GPU's memory that their kernels write. */
typedef struct {
    LayerAdapters *layer;               /* host [n_layers]; NULL: the model has no adapters */
    /* On the host, the lists of all groups, one after the other, until load_store has copied them
     * to the GPU. */
    GpuAdapter *list;                   /* [n] */
    int *first;                         /* [n_first] */
    int n, n_first;                     /* so far */
    int width;                          /* columns of `low`: adapter_width in ops.h */
    float *low;                         /* [max_n * top_k, at least max_n][width] */
    float *sums;                        /* many tokens: gate and up before gelu, see gelu_kernel */
} Adapters;

/* A matrix of a group.  to, again: where its result lies in a row of the product, see
 * GpuAdapter. */
typedef struct {
    const Weight *w;
    int to, again;
} AdapterPlace;

/* Writes a row of A to `to` as float32. */
static void make_a(const Weight &a, size_t row, uint8_t *to) {
    for (int i = 0; i < a.cols; i++) {
        const float v = float_at(a.dtype, a.data, (int64_t)row * a.cols + i);
        memcpy(to + 4 * i, &v, sizeof v);
    }
}

/* Writes column `col` of B, which is a row of the transposed B, to `to` as float32. */
static void make_b(const Weight &b, size_t col, uint8_t *to) {
    for (int i = 0; i < b.rows; i++) {
        const float v = float_at(b.dtype, b.data, (int64_t)i * b.cols + col);
        memcpy(to + 4 * i, &v, sizeof v);
    }
}

/* Puts the adapter l of the matrix p into the weights' memory. */
static GpuAdapter upload_adapter(Store *s, const Adapter *l, const AdapterPlace &p) {
    const size_t rank = l->a.rows, a = 4 * (size_t)l->a.cols, b = 4 * (size_t)l->b.rows;
    const size_t row = stored_row_bytes(&l->a);
    return {(const float *)put_extent(s, {0, l->a.data, rank, a, a, row, make_a, l->a, 0}),
            (const float *)put_extent(s, {0, l->b.data, rank, b, b, 0, make_b, l->b, 0}),
            l->a.rows, l->b.rows, l->scale, l->at, p.to, p.again};
}

/* Puts the adapters of the matrices place [n_experts][each] into the weights' memory, and returns
 * them as a group.  As long as the memory is not allocated (base NULL), this only counts the bytes,
 * and the group has no pointers. */
static AdapterGroup upload_group(Store *s, Adapters *all, const AdapterPlace *place, int n_experts,
                                 int each) {
    AdapterGroup g = {};
    GpuAdapter *list = all->list + all->n;
    int *first = all->first + all->n_first;
    for (int e = 0; e < n_experts; e++) {
        int width = 0;
        first[e] = g.n;
        for (const AdapterPlace *p = place + e * each; p < place + (e + 1) * each; p++) {
            for (const Adapter *l = p->w->adapter; l; l = l->next) {
                list[g.n++] = upload_adapter(s, l, *p);
                width += l->a.rows;
            }
            const int end = p->to + p->again + p->w->rows;
            if (end > g.rows) g.rows = end;
        }
        if (width > g.width) g.width = width;
    }
    first[n_experts] = g.n;
    g.cols = place->w->cols;
    if (!g.n) return g;
    g.adapter = (const GpuAdapter *)upload(s, list, g.n * sizeof *list);
    g.first = (const int *)upload(s, first, (n_experts + 1) * sizeof *first);
    all->n += g.n;
    all->n_first += n_experts + 1;
    return g;
}

/* Calls upload_group for every group of a layer with n_experts experts.  l: its weights on the
 * host. */
static LayerAdapters upload_adapters(Store *s, Adapters *all, const Layer *l, int n_experts) {
    const int of_k = l->q.rows, of_v = of_k + l->k.rows;
    const AdapterPlace qkv[] = {{&l->q, 0, 0}, {&l->k, of_k, l->v.data ? 0 : l->k.rows},
                                {&l->v, of_v, 0}};
    const AdapterPlace gate_up[] = {{&l->gate, 0, 0}, {&l->up, l->gate.rows, 0}};
    const AdapterPlace o = {&l->o, 0, 0}, down = {&l->down, 0, 0}, router = {&l->router, 0, 0};
    LayerAdapters out = {};
    out.qkv = upload_group(s, all, qkv, 1, 3);
    out.o = upload_group(s, all, &o, 1, 1);
    out.gate_up = upload_group(s, all, gate_up, 1, 2);
    out.down = upload_group(s, all, &down, 1, 1);
    if (!n_experts) return out;
    out.router = upload_group(s, all, &router, 1, 1);
    AdapterPlace *place = (AdapterPlace *)xcalloc(2 * n_experts, sizeof *place);
    for (int e = 0; e < n_experts; e++) {
        place[2 * e] = {&l->expert_gate[e], 0, 0};
        place[2 * e + 1] = {&l->expert_up[e], l->expert_gate[e].rows, 0};
    }
    out.expert_gate_up = upload_group(s, all, place, n_experts, 2);
    for (int e = 0; e < n_experts; e++) place[e] = {&l->expert_down[e], 0, 0};
    out.expert_down = upload_group(s, all, place, n_experts, 1);
    free(place);
    return out;
}

/* How many adapters the matrices w [n] have. */
static int count_adapters(const Weight *w, int n) {
    int count = 0;
    for (int i = 0; i < n; i++)
        for (const Adapter *l = w[i].adapter; l; l = l->next) count++;
    return count;
}

/* Allocates the lists of a model's adapters on the host, which adapters_free frees.  A model
 * without adapters gets none. */
static Adapters adapters_for(const Config *c, const Weights *w) {
    Adapters all = {};
    size_t n = 0;
    if (!w->adapter_width) return all;
    for (int i = 0; i < c->n_layers; i++) {
        const Layer &l = w->layer[i];
        const Weight one[] = {l.q, l.k, l.v, l.o, l.gate, l.up, l.down, l.router};
        n += count_adapters(one, 8);
        for (const Weight *experts : {l.expert_gate, l.expert_up, l.expert_down})
            n += count_adapters(experts, c->n_experts);
    }
    all.width = w->adapter_width;
    all.layer = (LayerAdapters *)xcalloc(c->n_layers, sizeof *all.layer);
    all.list = (GpuAdapter *)xcalloc(n + 1, sizeof *all.list);
    /* A layer has five groups outside of the experts and two groups of experts' matrices. */
    all.first = (int *)xcalloc((size_t)c->n_layers * (5 * 2 + 2 * (c->n_experts + 1)), sizeof(int));
    return all;
}

static void adapters_free(Adapters *all) {
    free(all->layer);
    free(all->list);
    free(all->first);
}

/* ---- the kernels ---- */

/* Rows of numbers that are split for a product: a number is the sum of `parts` BF16, 1 or 3.  Part
 * p of column c of row i is at[i * row + p * part + place].  The place is c or, in the vectors of
 * stream.cu, place_of(c, order). */
typedef struct {
    uint16_t *at;
    size_t row, part;                   /* distances: of two rows, of two parts of a number */
    int parts, order;                   /* order: IN_ORDER, or `packed` of a vector */
} SplitRows;
#define IN_ORDER (-1)

__device__ static inline uint16_t *split_at(const SplitRows &y, int row, int c) {
    return y.at + row * y.row + (y.order == IN_ORDER ? c : place_of(c, y.order));
}

/* The products of a group's matrices that its adapters are added to.  A `case` is a token or, for
 * experts, a pair of a token and an expert, number token * top_k + choice. */
typedef struct {
    AdapterGroup group;
    int n;                              /* cases */
    const int *expert;                  /* [n] the expert of each case; NULL: no experts */
    const Weight *held;                 /* a layer's list of experts: cases of those without data
                                         * are left out, as the CPU computes them */
    /* [n] the row of case i in the product, and in the input unless input_of says otherwise; NULL:
     * row i. */
    const int *place;
    int input_of;                       /* unless 0, the input of case i is row i / input_of */
    SplitRows in;                       /* of group.cols columns */
    float *out;                         /* rows of `pitch` floats */
    int pitch;
    float *low;                         /* [n][width] A x */
    int width;
} Adapted;

/* The row of case i in the product. */
__device__ static inline int row_of(const Adapted &p, int i) { return p.place ? p.place[i] : i; }

/* The expert of case i; 0 where there are no experts.  A kernel ahead chooses the experts, so their
 * choice is read after ptx_grid_wait.  Without experts nothing waits here: the lists and A do not
 * change, and a block can look them up while the kernel ahead finishes. */
__device__ static inline int expert_of(const Adapted &p, int i) {
    if (!p.expert) return 0;
    ptx_grid_wait();
    return p.expert[i];
}

/* Whether the CPU computes the expert e. */
__device__ static inline bool is_elsewhere(const Adapted &p, int e) {
    return p.expert && !p.held[e].data;
}

/* Cases of a block, for matrices outside of the experts and more than one case: as many as a step
 * of few tokens has.  A higher number would read A and B fewer times and take more registers.  The
 * value was chosen, not measured; to tune it, compare prompts with an adapter on a GPU. */
#define ADAPTED_CASES 8

/* low[i] = A x of each case i.  A block computes one row of one A for CASES cases; its threads
 * share the row's columns.  The inputs are read after ptx_grid_wait; before it, the block
 * prefetches the row of A to the L2 cache.
 * The launch bounds ask for two blocks on a multiprocessor, here and below.  Without that number
 * ptxas takes so few registers that loads wait for each other, and on some chips it spills
 * registers to memory.  To tune the number, compare bench/gpusim --step adapters.
 * grid (n / CASES rounded up * group.width); THREADS threads. */
template <int CASES>
__global__ static void __launch_bounds__(THREADS, 2)
    low_kernel(const __grid_constant__ Adapted p) {
    SHARED(float, red, [32]);
    const AdapterGroup &g = p.group;
    const int first = (int)(blockIdx.x / g.width) * CASES;
    int k = blockIdx.x % g.width;       /* the row of A; at first over all the expert's adapters */
    const int e = expert_of(p, first), end = g.first[e + 1];
    int i = g.first[e];
    while (i < end && k >= g.adapter[i].rank) k -= g.adapter[i++].rank;
    const float *a = i < end ? g.adapter[i].a + (size_t)k * g.cols : NULL;
    if (is_elsewhere(p, e)) a = NULL;
    for (int c = 32 * threadIdx.x; a && c < g.cols; c += 32 * THREADS) ptx_prefetch_l2(a + c);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (!a) return;                     /* or the adapters of this expert have fewer rows than
                                         * those of the widest one */
    float sum[CASES] = {};
    int row[CASES];
#pragma unroll
    for (int t = 0; t < CASES; t++) {
        const int of = min(first + t, p.n - 1);
        row[t] = p.input_of ? of / p.input_of : row_of(p, of);
    }
    [[maybe_unused]] constexpr int TURNS = CASES > 1 ? 1 : 4;
#pragma unroll TURNS
    for (int c = threadIdx.x; c < g.cols; c += THREADS) {
        const float by = a[c];
#pragma unroll
        for (int t = 0; t < CASES; t++) {
            const uint16_t *in = split_at(p.in, row[t], c);
            float x = bf16_low(in[0]);
            if (p.in.parts == 3) x = x + bf16_low(in[p.in.part]) + bf16_low(in[2 * p.in.part]);
            sum[t] += by * x;
        }
    }
#pragma unroll
    for (int t = 0; t < CASES; t++) {
        const float all = block_sum(sum[t], red);
        if (threadIdx.x == 0 && first + t < p.n)
            p.low[(size_t)(first + t) * p.width + g.adapter[i].at + k] = all;
    }
}

/* out += scale * B low, for each case and each adapter in turn.  A thread computes one column of
 * the product for CASES cases.  `low` and `out` are read after ptx_grid_wait.
 * grid (n / CASES rounded up, group.rows / THREADS rounded up); THREADS threads. */
template <int CASES>
__global__ static void __launch_bounds__(THREADS, 2)
    adapt_kernel(const __grid_constant__ Adapted p) {
    const AdapterGroup &g = p.group;
    const int first = blockIdx.x * CASES, at = blockIdx.y * THREADS + threadIdx.x;
    [[maybe_unused]] constexpr int TURNS = CASES > 1 ? 4 : 16;
    const int e = expert_of(p, first), begin = g.first[e], end = g.first[e + 1];
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (at >= g.rows || is_elsewhere(p, e)) return;
    for (int i = begin; i < end; i++) {
        const GpuAdapter l = g.adapter[i];
        int row = at - l.to;
        if (l.again && row >= l.again) row -= l.again;
        if (row < 0 || row >= l.rows) continue;
        float sum[CASES] = {};
#pragma unroll TURNS
        for (int k = 0; k < l.rank; k++) {
            const float by = l.b[(size_t)k * l.rows + row];
#pragma unroll
            for (int t = 0; t < CASES; t++)
                sum[t] += by * p.low[(size_t)min(first + t, p.n - 1) * p.width + l.at + k];
        }
#pragma unroll
        for (int t = 0; t < CASES; t++) {
            if (first + t >= p.n) break;
            p.out[(size_t)row_of(p, first + t) * p.pitch + at] += l.scale * sum[t];
        }
    }
}

/* act = gelu(gate) * up of each row of sums [rows][2][size], which are gate and up.  The columns of
 * act from `size` to width - 1 become zeros.  sums are read after ptx_grid_wait.
 * grid (rows, width / THREADS rounded up); THREADS threads. */
__global__ static void gelu_kernel(const float *sums, int size, int width, SplitRows act) {
    const int row = blockIdx.x, c = blockIdx.y * THREADS + threadIdx.x;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (c >= width) return;
    const float *gate = sums + (size_t)row * 2 * size;
    const float v = c < size ? gelu_times(gate[c], gate[size + c]) : 0;
    put_parts(split_at(act, row, c), act.part, act.parts, v);
}

#endif
