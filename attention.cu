/* attention.cu - attention on the GPU; qkv.cu has norms, RoPE and the kv cache.
 *
 * Three kernels compute softmax(q . K) V (and join_attend_kernel adds up what blocks have shared):
 *   plain_attend_kernel  plain CUDA C++ without tensor cores, one page.  Read this one first, and
 *                        compare the others with it.  It serves float32 caches and the sizes that
 *                        the other two cannot take.
 *   attend_kernel        tensor cores, 16 bits of mantissa, any number of tokens and keys.
 *   prompt_kernel        tensor cores, for more than 16 tokens whose queries and exponentials may
 *                        each be rounded to one number of 16 bits (8 bits of mantissa in BF16,
 *                        11 in FP16).
 *
 * attend_plan, at the end of this file, chooses among them.
 *
 * The order of the launches of a layer, and who writes the cache when:
 *   1. qkv_kernel (one token) or a product (several) writes q, k, v to Attend.qkv.
 *   2. Not fused (AttendPlan.fused is 0): norm_rope_kernel norms and turns q in place and writes K
 *      and V of the new tokens into the cache.  The attention kernel reads both after its
 *      ptx_grid_wait.
 *      Fused (attend_kernel with at most 16 rows): there is no norm_rope_kernel.  For each
 *      key/value head, the one block of attend_kernel that attends to the new keys writes them into
 *      the cache and then reads them there; all other blocks of that launch read only older keys.
 *   3. The attention kernel writes Attend.out, or Attend.vector for one token or a few (few.cu), or
 *      it leaves partial results, which join_attend_kernel joins and writes there.
 *
 * Kernels of later steps may read these keys without ptx_grid_wait: more than two launches lie
 * between, so the kernel that wrote the keys has ended (gpu_launch in gpu.h).
 *
 * K is stored after its norm and RoPE, because a key's angle depends on its own position alone: it
 * is turned once, when it is written, and not again by every later token that reads it. */
#ifndef ATTENTION_CU
#define ATTENTION_CU

#include <stdint.h>
#include <string.h>

#include "gpu.h"
#include "product.h"
#include "qkv.cu"
#include "step.cu"
#include "stream.cu"

/* ---- attention: the parameters of all three kernels ---- */

typedef struct {
    Layer l;
    KvCache kv;
    float eps;
    int n_heads, window, n;             /* query heads; positions that a token sees; tokens */
    const int64_t *pos;                 /* the position of the first of the n tokens */
    const float2 *turn;                 /* [n][head_dim / 2]: see Turns in step.cu */
    /* [n] Token t sees the tokens up to last[t] of the n in a sliding layer (a picture's tokens
     * see the whole picture).  NULL: each token sees up to itself. */
    const int *last;
    /* [n][n_heads + 2 * n_kv_heads][head_dim].  q is normed and turned, unless attend_kernel
     * does that itself (AttendPlan.fused). */
    const float *qkv;
    int splits;                         /* so many blocks share the keys of a tile of rows */
    int unsplit;                        /* prompt_kernel: so many tiles are not split */
    float *partial;                     /* the blocks' partial results: see attend_kernel */
    unsigned *ticket;                   /* counters of finished blocks: see attend_kernel */
    int joined_apart;                   /* 1: join_attend_kernel joins the partial results */
    float *out;                         /* [n][n_heads][head_dim], unless `vector` is given */
    /* Up to 8 tokens: the result as BF16 parts in the order of a Vector (stream.cu), as o_proj
     * wants it.  packed: that order is the one for nibbles (see Vector; the CPU's `packed` is
     * another thing).  NULL: the result goes to `out`. */
    uint16_t *vector;
    int packed, vector_parts;           /* vector_parts: BF16 numbers that make one of a token's */
    int ahead;                          /* bytes of l.o that each block brings: see bring_ahead */
} Attend;

/* Writes columns c .. c + 3 of a token's row [n_heads * head_dim]; c is a multiple of 4. */
__device__ static inline void store_out(const Attend &a, int token, int c, float4 v) {
    const int cols = a.n_heads * a.l.head_dim, stride = vector_stride(cols);
    if (!a.vector) *(float4 *)(a.out + (size_t)token * cols + c) = v;
    else
        put4_global(a.vector + token * a.vector_parts * stride, stride, c, v, a.packed,
                    a.vector_parts);
}

/* The first position that a token at position `query` sees: first_visible in plain.c. */
__device__ static inline int first_visible(const Layer &l, int window, int query) {
    return l.global || query < window ? 0 : query - window + 1;
}

/* The last of the n tokens that token t sees (last_visible in plain.c, as an index of the step): t
 * itself or, in a sliding layer, the end of its picture.  A drafter has no keys of its own (k.data
 * NULL) and reads its target's cache, which ends one token earlier: the result is then one less, -1
 * for token 0. */
__device__ static inline int last_visible(const Attend &a, int t) {
    int last = a.l.global || !a.last ? t : a.last[t];
    return last - (a.l.k.data == NULL);
}

/* ---- plain ---- */

/* Keys of a tile of plain_attend_kernel.  A guess: nobody has timed other values, as the kernel
 * serves tests, --exact and sizes that no published model has.  More keys take more shared memory,
 * fewer need more barriers.  To tune it, time a prompt with --kv f32 on a GPU. */
#define PLAIN_KEYS 64

/* The largest of v, for all lanes of the warp. */
__device__ static inline float warp_max(float v) {
    for (int w = 16; w; w /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, w));
    return v;
}

/* A block takes one token and one key/value head with its group of query heads, and goes through
 * the keys tile by tile with an online softmax.
 * grid (n_kv_heads, tokens).  Dynamic shared memory (plain_attend_shared), all floats:
 *   q [group][dim], score [group][PLAIN_KEYS], acc [group][dim] (the sums over V so far),
 *   max, sum (the running maximum and sum), factor (by which older sums shrink): each [group].
 * Reads q and the cache after ptx_grid_wait; the next kernel reads `out` after its own. */
__global__ static void plain_attend_kernel(const __grid_constant__ Attend a) {
    DYNAMIC_SHARED(float, shared);
    const Layer &l = a.l;
    const KvCache &kv = a.kv;
    const int dim = l.head_dim, group = a.n_heads / l.n_kv_heads, h = blockIdx.x, t = blockIdx.y;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    float *q = shared, *score = q + group * dim, *acc = score + group * PLAIN_KEYS;
    float *max = acc + group * dim, *sum = max + group, *factor = sum + group;
    ptx_grid_wait();
    const int first_head = t * (a.n_heads + 2 * l.n_kv_heads) + h * group;
    const float *from_q = a.qkv + (size_t)first_head * dim;
    for (int i = threadIdx.x; i < group * dim; i += blockDim.x) {
        q[i] = from_q[i];
        acc[i] = 0;
    }
    for (int g = threadIdx.x; g < group; g += blockDim.x) {
        max[g] = -INFINITY;
        sum[g] = 0;
    }

    const int query = (int)*a.pos + t, last = (int)*a.pos + last_visible(a, t);
    for (int tile = first_visible(l, a.window, query); tile <= last; tile += PLAIN_KEYS) {
        const int keys = min(PLAIN_KEYS, last + 1 - tile);
        auto cache_row = [&](int k) -> size_t {
            return ((tile + k) % kv.slots) * l.n_kv_heads + h;
        };
        /* 1. Scores: a warp takes a key and all heads of the group. */
        __syncthreads();
        for (int k = warp; k < keys; k += n_warps) {
            size_t row = cache_row(k);
            for (int g = 0; g < group; g++) {
                float s = 0;
                for (int i = lane; i < dim; i += 32) s += key_load(l, kv, row, i) * q[g * dim + i];
                s = warp_sum(s);
                if (lane == 0) score[g * PLAIN_KEYS + k] = s;
            }
        }
        /* 2. Online softmax: a warp takes a head; new maximum, exponentials, sum. */
        __syncthreads();
        for (int g = warp; g < group; g += n_warps) {
            float *of_head = score + g * PLAIN_KEYS, m = max[g], total = 0;
            for (int k = lane; k < keys; k += 32) m = fmaxf(m, of_head[k]);
            m = warp_max(m);
            for (int k = lane; k < keys; k += 32) {
                of_head[k] = expf(of_head[k] - m);
                total += of_head[k];
            }
            total = warp_sum(total);
            if (lane == 0) {
                factor[g] = expf(max[g] - m);
                sum[g] = sum[g] * factor[g] + total;
                max[g] = m;
            }
        }
        /* 3. Values: a thread takes a dimension, so that each number of V is read once. */
        __syncthreads();
        for (int i = threadIdx.x; i < dim; i += blockDim.x) {
            for (int g = 0; g < group; g++) acc[g * dim + i] *= factor[g];
            for (int k = 0; k < keys; k++) {
                float v = cache_load(kv.v, cache_row(k) * dim + i, kv.dtype, l.v_scale);
                for (int g = 0; g < group; g++) acc[g * dim + i] += score[g * PLAIN_KEYS + k] * v;
            }
        }
    }
    __syncthreads();
    const int first = h * group * dim, stride = vector_stride(a.n_heads * dim);
    for (int i = threadIdx.x; i < group * dim; i += blockDim.x) {
        const float v = acc[i] / sum[i / dim];
        if (a.vector)
            put_global(a.vector + t * a.vector_parts * stride, stride, first + i, v, a.packed,
                       a.vector_parts);
        else a.out[(size_t)t * a.n_heads * dim + first + i] = v;
    }
}

/* Bytes of dynamic shared memory of plain_attend_kernel. */
static size_t plain_attend_shared(const Layer *l, int n_heads) {
    size_t group = n_heads / l->n_kv_heads, q_and_acc = 2 * l->head_dim, max_sum_factor = 3;
    return sizeof(float) * group * (q_and_acc + PLAIN_KEYS + max_sum_factor);
}

/* ---- on tensor cores ----
 *
 * Rows.  A row is a pair of a token and a query head of one key/value head's group: row r is token
 * r / group, head r % group.  A tile has 16 * ROW_WARPS rows of one key/value head, so that all of
 * them use each number of K and V that is loaded.
 *
 * Keys.  The keys come in tiles, too.  While one tile is in use in shared memory, cp.async brings
 * the next one.  A row of such a tile is a key's row of the cache: its k_dim numbers of K, then
 * its head_dim numbers of V, then 16 bytes that nobody reads, which spread the rows over the banks.
 *
 * Warps.  COL_WARPS warps share 16 rows.  Each of them takes every COL_WARPS-th block of 16
 * dimensions, in both products:
 *   1. The queries stay in registers, as fragments (ptx.h) of a warp's own dimensions.
 *   2. Scores: each warp multiplies its dimensions of q and K.  The warps add up their scores
 *      through shared memory, and all of them get the same bits.
 *   3. Values: the accumulators of the first product lie in the lanes as the second product wants
 *      its matrix A, and each warp multiplies the exponentials with its dimensions of V.
 *
 * Numbers.  BF16 caches are multiplied as BF16.  FP8 caches become FP16, exactly, on the way from
 * shared memory to the tensor cores.  The order of an mma's 16 dimensions is free as long as A and
 * B agree, so for FP8 a lane takes four neighbouring dimensions at once.  q and the exponentials
 * are float32.  PARTS 1 rounds each to that format of 16 bits; PARTS 2 makes each the sum of two
 * such numbers, which leaves an error of 2^-17 (BF16) or 2^-22 (FP16).  Why two, not three as the
 * products with weights take (ROW_PARTS in stream.cu): K and V have themselves been rounded to BF16
 * (2^-9) or FP8, so a third part of q would change nothing that shows beside that rounding, and
 * would take half as many mma again.  The CPU with AMX keeps 2^-17 too (bench/quality.md).  Why not
 * one: short steps wait for memory, so there the second part costs no time.
 *
 * attend_kernel takes head_dims that are multiples of 16, up to 512, and PARTS 2; prompt_kernel
 * takes PARTS 1 and the head_dims that the models have.
 *
 * Flash decoding.  `splits` blocks share the keys of a tile of rows; each of them takes a run of
 * tiles of keys.  The grid is always the same, and each block finds its run from the position,
 * which is in the GPU's memory, so that one captured graph serves every position.  Each block
 * writes a partial result, and join_attend_kernel joins these on all multiprocessors.  One block
 * alone would read them for longer than all blocks took to make them (1 MB for four tokens of a
 * global layer).  Only short ones are joined by the last block to finish, on a GPU whose launches
 * do not overlap (JOINED_BY_BLOCK).  Either way they are added up in the same order in every run,
 * so the sum has the same bits. */

/* Keys of a tile in attend_kernel.  Two tiles of 64 keys do not fit into a block's 99 KB on sm_86,
 * 89 and 12x at head_dim 512 (BF16); two of 32 do.  Another value changes mask_scores and, for
 * eight warps, finish_scores; to tune it, compare bench/gpusim --kernel attend. */
#define KEYS 32
/* The fewest tiles of keys of a block, where the last block joins the partial results: with fewer
 * tiles in each, it would have to read more of them.  join_attend_kernel reads more of them in the
 * same time, so with it a block may have a single tile.  A guess: nobody has timed other values.
 * Compare with bench/gpusim --kernel attend. */
#define LEAST_TILES 2
/* The most partial results that a block of attend_kernel joins: those of a window of 1024 keys,
 * 1024 / (LEAST_TILES * KEYS), and one more for the new keys. */
#define JOIN 17
/* The most numbers of a partial result, rows * head_dim, that a block of attend_kernel joins, where
 * a launch has to wait for the one before (no gpu_can_overlap).  There the launch of
 * join_attend_kernel takes longer than so short a join.  Longer ones, and all of them where
 * launches can overlap, are joined by join_attend_kernel.  To tune it, compare bench/gpusim --step
 * decode,verify --kernel 'attend|join'. */
#define JOINED_BY_BLOCK 1024
/* Partial results that a thread of join_attend_kernel loads at once: their numbers are 48
 * registers.  A block of attend_kernel loads one more, so that JOIN of them take two turns. */
#define JOINED_AT_ONCE 8

/* What a block does: a tile of rows of one key/value head, and a run of tiles of keys. */
typedef struct {
    int h, group;                       /* the key/value head, and its number of query heads */
    int first, rows;                    /* the tile's rows: first … first + rows - 1 */
    int pos;                            /* the position of the first of the n tokens */
    int begin, end;                     /* some row sees the keys begin … end - 1 of the cache */
    int slot;                           /* the cache's slot of key `begin` */
    int all_from, all_to;               /* every row sees the keys all_from … all_to */
    int from, to;                       /* this block's tiles of keys: from … to - 1 */
    int key_tiles;                      /* the tiles of keys of all blocks */
    int split, splits;                  /* this block's run of tiles, of how many that have any */
    size_t first_partial;               /* index of these rows' first one in Attend.partial */
} Work;

/* The work of run `split` of `splits` for tile of rows row_tile of key/value head h.  The tiles
 * have n_rows rows and n_keys keys.  fused: the n new keys are not in the cache yet and are a tile
 * of their own, the last one.  first_partial is left to the caller.
 *   1. The tile's rows, and their first and last token.
 *   2. The keys of the cache: from what the first token sees to what the last one sees.  Between
 *      all_from and all_to no score is masked.
 *   3. The tiles of these keys are shared equally, but a block has at least LEAST_TILES of them, or
 *      one, so some of the `splits` blocks may have none. */
__device__ static inline Work work_of(const Attend &a, int h, int row_tile, int n_rows,
                                      int n_keys, int split, int splits, bool fused) {
    const Layer &l = a.l;
    Work w;
    w.h = h;
    w.group = a.n_heads / l.n_kv_heads;
    w.first = row_tile * n_rows;
    w.rows = min(n_rows, a.n * w.group - w.first);
    int first_token = w.first / w.group, last_token = (w.first + w.rows - 1) / w.group;
    w.pos = (int)*a.pos;
    w.begin = first_visible(l, a.window, w.pos + first_token);
    w.end = fused ? w.pos : w.pos + last_visible(a, last_token) + 1;
    w.slot = w.begin % (int)a.kv.slots;
    w.all_from = l.global ? 0 : w.pos + last_token - a.window + 1;
    w.all_to = w.pos + last_visible(a, first_token);
    w.key_tiles = (w.end - w.begin + n_keys - 1) / n_keys + (fused && l.k.data);
    int each = max((w.key_tiles + splits - 1) / splits, a.joined_apart ? 1 : LEAST_TILES);
    w.split = split;
    w.splits = max((w.key_tiles + each - 1) / each, 1);
    w.from = min(split * each, w.key_tiles);
    w.to = min(w.from + each, w.key_tiles);
    return w;
}

/* work_of for unit u, one of the pairs of a tile of rows and a key/value head.  The last tokens
 * have the most keys, so their units come first.  The first a.unsplit units have no partial
 * results. */
__device__ static inline Work unit_work(const Attend &a, int u, int n_rows, int n_keys, int split,
                                        int splits, bool fused) {
    const int kv_heads = a.l.n_kv_heads;
    const int tiles = (a.n * (a.n_heads / kv_heads) + n_rows - 1) / n_rows;
    Work w = work_of(a, u % kv_heads, tiles - 1 - u / kv_heads, n_rows, n_keys, split, splits,
                     fused);
    w.first_partial = (size_t)max(u - a.unsplit, 0) * splits;
    return w;
}

/* Two float32 numbers as a pair of FP16 (an FP8 cache) or BF16, a in the lower half. */
template <bool FP8> __device__ static inline unsigned pair_of(float a, float b) {
    if (!FP8) return ptx_cvt_bf16x2_f32(a, b);
    __half2 x = __floats2half2_rn(a, b);
    unsigned r;
    memcpy(&r, &x, sizeof r);
    return r;
}

/* The reverse of pair_of. */
template <bool FP8> __device__ static inline float2 floats_of(unsigned pair) {
    if (!FP8) return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000));
    __half2 x;
    memcpy((void *)&x, &pair, sizeof x);
    return __half22float2(x);
}

/* a and b as sums of PARTS numbers of 16 bits, in pairs; part[0] has the large ones. */
template <bool FP8, int PARTS>
__device__ static inline void split_pair(float a, float b, unsigned part[PARTS]) {
    part[0] = pair_of<FP8>(a, b);
    if (PARTS == 1) return;
    float2 rounded = floats_of<FP8>(part[0]);
    part[PARTS - 1] = pair_of<FP8>(a - rounded.x, b - rounded.y);
}

/* d [16][8] += a [16][16] b [16][8], as fragments. */
template <bool FP8>
__device__ static inline void multiply_add(float d[4], const unsigned a[4], unsigned b0,
                                           unsigned b1) {
    unsigned b[2] = {b0, b1};
    if (FP8) ptx_mma_f16_16816(d, a, b);
    else ptx_mma_bf16_16816(d, a, b);
}

/* Of a block of 16 dimensions a lane has two pairs of neighbours, as columns of A and of the
 * result: the first dimension of pair 0 or 1. */
template <bool FP8> __device__ static inline int lane_column(int pair) {
    int t = threadIdx.x % 4;
    return FP8 ? 4 * t + 2 * pair : 2 * t + 8 * pair;
}

/* Of its warp's 16 rows a lane has two, lane / 4 (i = 0) and lane / 4 + 8 (i = 1): their indices
 * in the tile of rows. */
__device__ static inline int lane_row(int row_warp, int i) {
    return 16 * row_warp + threadIdx.x % 32 / 4 + 8 * i;
}

/* Fills the registers of row i (0 or 1) of the lane's fragment q: the 16 dimensions from `block`
 * on of the query `from` [head_dim]; zeros where from is NULL.  k_norm [head_dim], unless NULL:
 * the cache stores V instead of K = k_norm * V for these dimensions, so q is multiplied by
 * k_norm. */
template <bool FP8, int PARTS>
__device__ static inline void load_query(unsigned q[PARTS][4], int i, const float *from, int block,
                                         const float *k_norm) {
    for (int pair = 0; pair < 2; pair++) {
        unsigned part[PARTS] = {};
        if (from) {
            int at = block + lane_column<FP8>(pair);
            float2 x = *(const float2 *)(from + at), w = make_float2(1, 1);
            if (k_norm) w = *(const float2 *)(k_norm + at);
            split_pair<FP8, PARTS>(x.x * w.x, x.y * w.y, part);
        }
        for (int p = 0; p < PARTS; p++) q[p][2 * pair + i] = part[p];
    }
}

/* Scores s [16][N] (accumulators of N / 8 mma) += q . K over 16 dimensions, which begin at byte
 * `k` of the tile's first row; pitch: bytes from one key's row to the next. */
template <bool FP8, int PARTS, int N>
__device__ static inline void add_scores(float s[N / 8][4], const unsigned q[PARTS][4],
                                         const uint8_t *k, int pitch) {
    int lane = threadIdx.x % 32;
    unsigned r[4];
    if constexpr (FP8)
        /* ldmatrix: four matrices of 8 keys by 16 bytes.  A lane gets four dimensions of a key of
         * each matrix. */
#pragma unroll
        for (int i = 0; i < N / 8; i++) {
            if (i % 4 == 0) ptx_ldmatrix_x4(r, k + (8 * i + lane) * pitch);
            unsigned b0 = ptx_cvt_f16x2_e4m3x2(r[i % 4] & 0xffff);
            unsigned b1 = ptx_cvt_f16x2_e4m3x2(r[i % 4] >> 16);
            for (int p = 0; p < PARTS; p++) multiply_add<FP8>(s[i], q[p], b0, b1);
        }
    else
        /* ldmatrix: four matrices of 8 keys by 8 dimensions, for 16 keys by 16 dimensions. */
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
            int key = 16 * i + lane / 16 * 8 + lane % 8, byte = lane / 8 % 2 * 16;
            ptx_ldmatrix_x4(r, k + key * pitch + byte);
            for (int p = 0; p < PARTS; p++) {
                multiply_add<FP8>(s[2 * i], q[p], r[0], r[1]);
                multiply_add<FP8>(s[2 * i + 1], q[p], r[2], r[3]);
            }
        }
}

/* o [16][16] (accumulators of two mma) += e . V over N keys and 16 dimensions, which begin at byte
 * `v` of the tile's first row.  e [16][N]: the exponentials, as fragments of A. */
template <bool FP8, int PARTS, int N>
__device__ static inline void add_values(float o[2][4], const unsigned e[N / 16][PARTS][4],
                                         const uint8_t *v, int pitch) {
    int lane = threadIdx.x % 32;
    unsigned r[4];
    if constexpr (FP8)
        /* ldmatrix: four matrices of 8 keys by 16 bytes, transposed.  One of its elements of 16
         * bits is two dimensions of a key, which __byte_perm takes apart: of two keys, the bytes
         * of the first dimension to the lower half, those of the second to the upper half. */
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
            if (i % 2 == 0) ptx_ldmatrix_x4_trans(r, v + (16 * i + lane) * pitch);
            unsigned low = __byte_perm(r[i % 2 * 2], 0, 0x3120);
            unsigned high = __byte_perm(r[i % 2 * 2 + 1], 0, 0x3120);
            for (int u = 0; u < 2; u++) {
                unsigned b0 = ptx_cvt_f16x2_e4m3x2(low >> 16 * u & 0xffff);
                unsigned b1 = ptx_cvt_f16x2_e4m3x2(high >> 16 * u & 0xffff);
                for (int p = 0; p < PARTS; p++) multiply_add<FP8>(o[u], e[i][p], b0, b1);
            }
        }
    else
        /* ldmatrix: two matrices of 8 keys, by two of 8 dimensions, transposed. */
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
            ptx_ldmatrix_x4_trans(r, v + (16 * i + lane % 16) * pitch + lane / 16 * 16);
            for (int p = 0; p < PARTS; p++) {
                multiply_add<FP8>(o[0], e[i][p], r[0], r[1]);
                multiply_add<FP8>(o[1], e[i][p], r[2], r[3]);
            }
        }
}

/* e^x = 2^(x * LOG2_E): ptx_exp2 is one instruction. */
#define LOG2_E 1.44269504f

/* Each of the COL_WARPS warps that share 16 rows has the scores of its own dimensions.  Afterwards
 * all of them have the sums, times `scale`: exponents of 2.  rows: 2, or 1 if only the first of
 * each lane's two rows is wanted (lane_row).
 * exchange [rows][COL_WARPS][N / 8][32]: shared memory of these warps alone.  barrier: the number
 * of a barrier of theirs.
 *   2 warps: each adds the other's scores.  Two numbers have the same sum in either order.
 *   4 warps: each adds up all of them, from warp 0 on.
 *   8 warps: each adds up an eighth of them, from warp 0 on, and leaves that for all: adding up all
 *            of them, the warps would read three times as much shared memory. */
template <int COL_WARPS, int N>
__device__ static inline void finish_scores(float s[N / 8][4], float2 *exchange, int barrier,
                                            int col, float scale, int rows = 2) {
    const int lane = threadIdx.x % 32;
    constexpr int OF_WARP = N / 8 * 32, OF_ROWS = COL_WARPS * OF_WARP;
    if (COL_WARPS > 1) {
#pragma unroll
        for (int r = 0; r < 2 && r < rows; r++)
            for (int i = 0; i < N / 8; i++)
                exchange[r * OF_ROWS + col * OF_WARP + i * 32 + lane] =
                    make_float2(s[i][2 * r], s[i][2 * r + 1]);
        ptx_bar_sync(barrier, 32 * COL_WARPS);
    }
    if constexpr (COL_WARPS == 8) {     /* a warp's share: number `lane` of its 32 of each row */
        static_assert(N / 8 == 4, "eight warps share eight numbers of each lane's rows");
#pragma unroll
        for (int r = 0; r < 2 && r < rows; r++) {
            float *from = (float *)(exchange + r * OF_ROWS) + col * 32 + lane, sum = *from;
#pragma unroll
            for (int c = 1; c < COL_WARPS; c++) sum += from[2 * c * OF_WARP];
            *from = sum;                /* nobody else reads that place before the barrier */
        }
        ptx_bar_sync(barrier, 32 * COL_WARPS);
    }
#pragma unroll
    for (int r = 0; r < 2 && r < rows; r++)
        for (int i = 0; i < N / 8; i++) {
            const float2 *from = exchange + r * OF_ROWS + i * 32 + lane;
            float2 all = make_float2(s[i][2 * r], s[i][2 * r + 1]);
            if (COL_WARPS > 2) all = *from;
            for (int c = 1; c < 4 && (COL_WARPS == 4 || c < COL_WARPS % 8); c++) {
                const float2 x = from[(COL_WARPS == 2 ? 1 - col : c) * OF_WARP];
                all = make_float2(all.x + x.x, all.y + x.y);
            }
            s[i][2 * r] = all.x * scale;
            s[i][2 * r + 1] = all.y * scale;
        }
}

/* The tile's keys are at positions start … start + count - 1.  count may be more than N; if it is
 * less, the last N - count scores are those of padding.  The scores of padding and of keys that a
 * row does not see become -infinity.  rows: as in finish_scores. */
template <int N>
__device__ static inline void mask_scores(float s[N / 8][4], const Attend &a, const Work &w,
                                          int row_warp, int start, int count, int rows = 2) {
    if (count >= N && start >= w.all_from && start + N - 1 <= w.all_to) return;
#pragma unroll
    for (int i = 0; i < 2 && i < rows; i++) {
        int t = min((w.first + lane_row(row_warp, i)) / w.group, a.n - 1);
        int low = a.l.global ? 0 : w.pos + t - a.window + 1;
        int high = min(w.pos + last_visible(a, t), start + count - 1);
        for (int k = 0; k < N / 4; k++) {
            int key = start + k / 2 * 8 + threadIdx.x % 4 * 2 + k % 2;
            if (key < low || key > high) s[k / 2][2 * i + k % 2] = -INFINITY;
        }
    }
}

/* One step of the online softmax, for the lane's two rows: s [N / 8][4] in, exponents of 2; out,
 * the exponentials 2^(s - base), where base is the row's running maximum or a number at most
 * `slack` below it.  max [2]: the base, which is brought up to date.  sum [2]: the sum of the
 * exponentials of this lane's keys, likewise.  factor [2]: what all earlier sums over V must be
 * multiplied by.  rows: as in finish_scores. */
template <int N>
__device__ static inline void exponentials(float s[N / 8][4], float max[2], float sum[2],
                                           float factor[2], float slack, int rows = 2) {
#pragma unroll
    for (int i = 0; i < 2 && i < rows; i++) {
        float m = -INFINITY;
        for (int n = 0; n < N / 8; n++) m = fmaxf(m, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        if (!(m > max[i] + slack)) m = max[i];
        float base = m == -INFINITY ? 0 : m;    /* the row has seen no key so far */
        factor[i] = ptx_exp2(max[i] - base);
        max[i] = m;
        sum[i] *= factor[i];
        for (int n = 0; n < N / 8; n++)
            for (int c = 2 * i; c < 2 * i + 2; c++) {
                s[n][c] = ptx_exp2(s[n][c] - base);
                sum[i] += s[n][c];
            }
    }
}

/* The exponentials s, accumulators of the first product, as fragments e of A of the second.
 * rows: as in finish_scores; the other rows become zero. */
template <bool FP8, int PARTS, int N>
__device__ static inline void split_exponentials(unsigned e[N / 16][PARTS][4],
                                                 const float s[N / 8][4], int rows = 2) {
#pragma unroll
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < N / 8; i++) {
            unsigned part[PARTS] = {};
            if (r < rows) split_pair<FP8, PARTS>(s[i][2 * r], s[i][2 * r + 1], part);
            for (int p = 0; p < PARTS; p++) e[i / 2][p][2 * (i % 2) + r] = part[p];
        }
}

/* The sum of v over the four lanes that have the same rows, for all of them. */
__device__ static inline float row_total(float v) {
    float all = v + __shfl_xor_sync(0xffffffffu, v, 1);
    return all + __shfl_xor_sync(0xffffffffu, all, 2);
}

/* Writes a warp's dimensions of its 16 rows.  direct: the finished result, to a.out.  Otherwise the
 * block's partial result, number w.first_partial + w.split in a.partial, where partial results
 * begin `apart` floats apart (AttendPlan.partial_floats): the sums over V [rows][dim], not yet
 * divided, then the maximum and the sum [rows][2].  A row that has seen no key has the maximum
 * -infinity, and no sums over V are written for it. */
template <bool FP8, int BLOCKS, int COL_WARPS>
__device__ static inline void store_rows(const Attend &a, const Work &w, int row_warp, int col,
                                         const float o[BLOCKS][2][4], const float max[2],
                                         const float sum[2], int dim, size_t apart, bool direct) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = lane_row(row_warp, i);
        const float all = row_total(sum[i]);
        float scale = 1, *to_row;
        if (r >= w.rows) continue;
        if (direct) {
            int row = w.first + r;
            size_t vector = (size_t)(row / w.group) * a.n_heads + w.h * w.group + row % w.group;
            to_row = a.out + vector * dim;
            scale = (FP8 ? a.l.v_scale : 1) / all;
        } else {
            float *partial = a.partial + (w.first_partial + w.split) * apart;
            to_row = partial + r * dim;
            float2 *ends = (float2 *)(partial + w.rows * dim);
            if (col == 0 && threadIdx.x % 4 == 0) ends[r] = make_float2(max[i], all);
        }
        if (max[i] == -INFINITY) continue;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++)
            for (int pair = 0; pair < 2; pair++) {
                int block = 16 * (col + b * COL_WARPS);
                float x = FP8 ? o[b][0][2 * i + pair] : o[b][pair][2 * i];
                float y = FP8 ? o[b][1][2 * i + pair] : o[b][pair][2 * i + 1];
                if (block < dim)
                    *(float2 *)(to_row + block + lane_column<FP8>(pair)) =
                        make_float2(x * scale, y * scale);
            }
    }
}

/* Four of the sums over V of one row, not yet divided, with the row's maximum and its sum of
 * exponentials.  max -infinity: the row has seen no key, and o was not written. */
typedef struct {
    float max, sum;
    float4 o;
} Partial;

/* Elements i … i + 3 of the partial result [rows][dim] at `from` (store_rows), which are in row
 * `row`.  __ldcg reads past the L1 cache, which may hold old bytes, as other blocks have written
 * these. */
__device__ static inline Partial load_partial(const float *from, int rows, int dim, int row,
                                              int i) {
    const float2 end = __ldcg((const float2 *)(from + rows * dim) + row);
    return {end.x, end.y, __ldcg((const float4 *)(from + i))};
}

/* N partial results as one, added up in their order. */
template <int N> __device__ static inline Partial joined(const Partial p[N]) {
    Partial all = {-INFINITY, 0, make_float4(0, 0, 0, 0)};
#pragma unroll
    for (int k = 0; k < N; k++) all.max = fmaxf(all.max, p[k].max);
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (p[k].max == -INFINITY) continue;
        const float f = ptx_exp2(p[k].max - all.max);
        all.sum += f * p[k].sum;
        all.o.x += f * p[k].o.x;
        all.o.y += f * p[k].o.y;
        all.o.z += f * p[k].o.z;
        all.o.w += f * p[k].o.w;
    }
    return all;
}

/* Joins partial results first, first + step, first + 2 step … below `end`, AT_ONCE of them at once.
 * They begin `apart` floats apart from `partial` on; the others as in load_partial. */
template <int AT_ONCE>
__device__ static inline Partial join_every(const float *partial, size_t apart, int first, int step,
                                            int end, int rows, int dim, int row, int i) {
    Partial all = {-INFINITY, 0, make_float4(0, 0, 0, 0)};
    for (int k = first; k < end; k += step * AT_ONCE) {
        Partial p[1 + AT_ONCE];
        p[0] = all;
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int at = k + j * step;
            p[1 + j].max = -INFINITY;
            if (at < end) p[1 + j] = load_partial(partial + at * apart, rows, dim, row, i);
        }
        all = joined<1 + AT_ONCE>(p);
    }
    return all;
}

/* Writes elements i … i + 3 of the tile's result [rows][dim], which are in row `row`, with
 * store_out.  v_scale: of an FP8 cache, else 1. */
__device__ static inline void store_joined(const Attend &a, const Work &w, int row, int i,
                                           const Partial &p, float v_scale) {
    const int dim = a.l.head_dim, of = w.first + row;
    const int column = (w.h * w.group + of % w.group) * dim + i - row * dim;
    const float scale = v_scale / p.sum;
    store_out(a, of / w.group, column,
              make_float4(p.o.x * scale, p.o.y * scale, p.o.z * scale, p.o.w * scale));
}

/* Whether a block writes its result at once, as nobody shares the keys with it.  Only store_out,
 * of those who join, can write a.vector. */
__device__ static inline bool is_direct(const Attend &a, const Work &w, bool fused) {
    return !fused && !a.vector && w.splits == 1;
}

/* Returns whether this block is the last one of `members` to come here with this ticket, which is
 * then zero again.  What the others wrote before they came, this block sees.  arrived: shared
 * memory. */
__device__ static inline bool comes_last(unsigned *ticket, int members, unsigned *arrived) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *arrived = atomicAdd(ticket, 1u);
    __syncthreads();
    if (*arrived != (unsigned)members - 1) return false;
    if (threadIdx.x == 0) *ticket = 0;
    __threadfence();
    return true;
}

/* The blocks of a tile of rows, at most JOIN, have written their partial results, which begin
 * `apart` floats apart.  The last block to come here joins them and writes the result; all others
 * end.  All threads of the block. */
__device__ static inline void join(const Attend &a, const Work &w, size_t apart, float v_scale,
                                   unsigned *arrived) {
    const int dim = a.l.head_dim;
    if (!comes_last(a.ticket + w.first_partial, w.splits, arrived)) return;
    const float *partial = a.partial + w.first_partial * apart;
    for (int i = 4 * threadIdx.x; i < w.rows * dim; i += 4 * blockDim.x) {
        const int row = i / dim;
        const Partial all =
            join_every<JOINED_AT_ONCE + 1>(partial, apart, 0, 1, w.splits, w.rows, dim, row, i);
        store_joined(a, w, row, i, all, v_scale);
    }
}

/* Warps of join_attend_kernel, and numbers that a block joins, four for each lane.  The 33 partial
 * results of 1000 keys are then one round of loads, the 66 of an H200 behind a long context too.
 * From these counts, not from a comparison; to tune them, compare bench/gpusim --step verify
 * --kernel join --context 1000, and 30000. */
#define JOIN_WARPS 8
#define JOINED_NUMBERS 128

/* Joins the partial results that attend_kernel or prompt_kernel has left, for one tile of rows and
 * key/value head in each row of the grid.  n_rows, n_keys: of a tile of that kernel's; fused: as
 * AttendPlan.fused.
 *   1. Before ptx_grid_wait: how many blocks have shared the keys of these rows.
 *   2. Warp i joins partial results i, i + JOIN_WARPS, …: four numbers of each in a lane.
 *   3. After a barrier the first warp joins what the warps have made, and writes the result.
 * grid (blocks for the numbers of a tile, tiles of rows and heads that are split); 32 * JOIN_WARPS
 * threads.  The next kernel reads the result after its ptx_grid_wait. */
__global__ static void __launch_bounds__(32 * JOIN_WARPS)
    join_attend_kernel(const __grid_constant__ Attend a, int n_rows, int n_keys, int fused) {
    SHARED(Partial, of_warp, [JOIN_WARPS][32]);
    const int dim = a.l.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Work w = unit_work(a, a.unsplit + blockIdx.y, n_rows, n_keys, 0, a.splits, fused);
    const size_t apart = (size_t)n_rows * (dim + 2);
    const int i = blockIdx.x * JOINED_NUMBERS + 4 * lane, row = min(i / dim, w.rows - 1);
    const float *partial = a.partial + w.first_partial * apart;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (is_direct(a, w, fused)) return;
    const int end = i < w.rows * dim ? w.splits : 0;
    const Partial all = join_every<JOINED_AT_ONCE>(partial, apart, warp, JOIN_WARPS, end, w.rows,
                                                   dim, row, i);
    of_warp[warp][lane] = all;
    __syncthreads();
    if (warp || !end) return;
    Partial p[JOIN_WARPS];
#pragma unroll
    for (int k = 0; k < JOIN_WARPS; k++) p[k] = of_warp[k][lane];
    const bool fp8 = a.kv.dtype == DT_F8_E4M3;
    store_joined(a, w, row, i, joined<JOIN_WARPS>(p), fp8 ? a.l.v_scale : 1);
}

/* Begins to copy the keys at positions start … start + count - 1 of key/value head h into a tile
 * of KEYS rows, and commits the copies; the tile's rows behind them become zero.
 * size: bytes of a number in the cache.  N_WARPS: of the block.  A lane copies the same 16 bytes of
 * each of its warp's keys, whose addresses are computed together. */
template <int N_WARPS>
__device__ static inline void load_tile(uint8_t *tile, const Attend &a, int size, int h, int start,
                                        int count) {
    const int k_bytes = a.kv.k_dim * size, v_bytes = a.l.head_dim * size;
    const int pitch = k_bytes + v_bytes + 16, slots = (int)a.kv.slots;
    const int first = start % slots, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = 16 * lane; i < k_bytes + v_bytes; i += 16 * 32) {
        const bool of_k = i < k_bytes;
        const int bytes = of_k ? k_bytes : v_bytes;
        const uint8_t *from = (of_k ? a.kv.k : a.kv.v - k_bytes) + h * bytes + i;
        uint8_t *to = tile + warp * pitch + i;
#pragma unroll
        for (int k = 0; k < KEYS; k += N_WARPS) {
            const int key = warp + k;
            int slot = first + (key < count ? key : 0);
            if (slot >= slots) slot -= slots;
            ptx_cp_async16_zfill(to + k * pitch, from + (size_t)slot * (a.l.n_kv_heads * bytes),
                                 key < count ? 16 : 0);
        }
    }
    ptx_cp_async_commit();
}

/* Fused: norms and turns the block's queries, a warp for each row, into `to` [rows][head_dim] in
 * shared memory; head_dim is at most MAX_DIM.  owns_new: this block also writes K and V of the n
 * new tokens into the cache, where it then reads them itself.  Ends with a barrier. */
template <bool FP8, int MAX_DIM>
__device__ static inline void prepare_rows(const Attend &a, const Work &w, bool owns_new,
                                           float *to) {
    const Layer &l = a.l;
    KvCache kv = a.kv;
    kv.dtype = FP8 ? DT_F8_E4M3 : DT_BF16;      /* known here: fewer branches */
    const int dim = l.head_dim, heads = a.n_heads + 2 * l.n_kv_heads;
    const int all = w.rows + (owns_new ? 2 * a.n : 0);  /* queries, then keys, then values */
    for (int r = threadIdx.x / 32; r < all; r += blockDim.x / 32) {
        int t = r < w.rows ? r / w.group : (r - w.rows) % a.n, is_v = r >= w.rows + a.n;
        const float *token = a.qkv + (size_t)t * heads * dim;
        const float *q = token + (w.h * w.group + r % w.group) * dim;
        const float *k = token + (a.n_heads + w.h) * dim;
        const float2 *turn = a.turn + t * (dim / 2);
        auto keep = [&](int i, float x) { to[r * dim + i] = x; };
        if (r < w.rows) norm_rope<MAX_DIM / 64>(l, q, l.q_norm, a.eps, turn, keep);
        else if (is_v)
            store_value<MAX_DIM / 64>(l, kv, a.eps, w.pos + t, w.h, k + l.n_kv_heads * dim);
        else store_key<MAX_DIM / 64>(l, kv, a.eps, w.pos + t, turn, w.h, k);
    }
    __syncthreads();
}

/* Exact attention on tensor cores, of any number of tokens.
 *
 * grid (n_kv_heads * splits, tiles of rows); 32 * ROW_WARPS * COL_WARPS threads.
 * Dynamic shared memory (AttendPlan.shared): two tiles of keys [KEYS][pitch], then, with more than
 * one COL_WARPS, the exchange of finish_scores for each 16 rows.
 * a.partial: for each tile of rows and key/value head `splits` partial results of ROWS *
 * (head_dim + 2) floats; see store_rows.  a.ticket: as many counters, zero before and after.
 * ROW_WARPS 1 is FUSED: 16 rows at most, and q, k and v come as the projections gave them; see the
 * top of this file.  JOINS: the blocks join short partial results themselves.  With at most eight
 * rows the second of each lane's two rows (lane_row) is padding, and left out.
 *
 *   1. Find the block's rows and keys, and begin to copy its first tile of keys.
 *   2. FUSED: norm and turn q; write the new K and V into the cache.
 *   3. Load the queries as fragments.
 *   4. For each tile of keys: scores, mask, exponentials, sums over V.
 *   5. Write the result, or a partial result.  JOINS: the last block joins them; otherwise
 *      join_attend_kernel does (a.joined_apart). */
template <bool FP8, int ROW_WARPS, int COL_WARPS, int MAX_DIM, bool JOINS = false>
__global__ static void __launch_bounds__(32 * ROW_WARPS * COL_WARPS,
                                         COL_WARPS == 8 && MAX_DIM <= 256 ? 2 : 1)
    attend_kernel(const __grid_constant__ Attend a) {
    /* Rows of a tile, queries; the ROWS of kernels.h and fp4.cu are others. */
    constexpr int ROWS = 16 * ROW_WARPS, BLOCKS = MAX_DIM / 16 / COL_WARPS;
    constexpr int PARTS = 2, SIZE = FP8 ? 1 : 2, FUSED = ROW_WARPS == 1;
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(unsigned, arrived);          /* of comes_last */
    SHARED(Work, w);                    /* in shared memory, as registers are few */
    const Layer &l = a.l;
    const KvCache &kv = a.kv;
    const int dim = l.head_dim, pitch = (kv.k_dim + dim) * SIZE + 16;
    const int heads = a.n_heads + 2 * l.n_kv_heads;
    const int warp = threadIdx.x / 32, col = warp % COL_WARPS, row_warp = warp / COL_WARPS;
    /* The last tokens have the most keys: their blocks come first. */
    const int row_tile = gridDim.y - 1 - blockIdx.y;
    float2 *exchange = (float2 *)(shared + 2 * KEYS * pitch);
    exchange += row_warp * 2 * COL_WARPS * (KEYS / 8) * 32;

    /* 1. The block's rows and keys.  FUSED reads the position and the old keys before
     * ptx_grid_wait: earlier steps wrote them (gpu_launch).  Otherwise norm_rope_kernel, the
     * kernel before, writes the keys. */
    if (!FUSED) ptx_grid_wait();
    if (threadIdx.x == 0) {
        w = work_of(a, blockIdx.x / a.splits, row_tile, ROWS, KEYS, blockIdx.x % a.splits,
                    a.splits, FUSED);
        w.first_partial = ((size_t)blockIdx.y * l.n_kv_heads + w.h) * a.splits;     /* unit_work */
    }
    __syncthreads();
    /* Tiles of keys: those in the cache and then, FUSED, one of the n new keys.  Only the block
     * that owns_new may read the new ones, after prepare_rows has written them. */
    const bool adds = FUSED && l.k.data;
    const int old_tiles = w.key_tiles - adds;
    auto start_of = [&](int tile) { return tile < old_tiles ? w.begin + tile * KEYS : w.pos; };
    auto count_of = [&](int tile) {
        return tile < old_tiles ? min(KEYS, w.end - start_of(tile)) : a.n;
    };
    auto tile_at = [&](int tile) { return shared + (tile - w.from) % 2 * KEYS * pitch; };
    auto load = [&](int tile) {
        load_tile<ROW_WARPS * COL_WARPS>(tile_at(tile), a, SIZE, w.h, start_of(tile),
                                         count_of(tile));
    };
    const bool owns_new = adds && w.from < w.to && w.to == w.key_tiles;
    if (w.from < w.to && !owns_new) load(w.from);
    if (FUSED && (int)threadIdx.x < dim / 32) {
        ptx_prefetch_l2(l.q_norm + 32 * threadIdx.x);
        if (owns_new) ptx_prefetch_l2(l.k_norm + 32 * threadIdx.x);
    }
    if (FUSED) ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (w.split >= w.splits) {          /* no keys are left for this block */
        bring_ahead(l.o, a.ahead);
        return;
    }

    /* 2. FUSED: q [16][dim] lies where the second tile of keys will be. */
    float *fresh_q = (float *)(shared + KEYS * pitch);
    if constexpr (FUSED) if (w.from < w.to) {
        prepare_rows<FP8, MAX_DIM>(a, w, owns_new, fresh_q);
        if (owns_new) load(w.from);
    }

    /* 3. q: fragments of the warp's 16 rows and BLOCKS blocks of 16 dimensions.  o: the sums over
     * V of the same, as accumulators.  max, sum: of the lane's two rows; sum of its keys alone. */
    unsigned q[BLOCKS][PARTS][4];
    float o[BLOCKS][2][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = lane_row(row_warp, i), row = w.first + r;
        const size_t token = min(row / w.group, a.n - 1);   /* rows behind the last are padding */
        const float *group = a.qkv + (token * heads + w.h * w.group) * dim;
        const float *from = FUSED ? fresh_q + r * dim : group + row % w.group * dim;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            const int block = 16 * (col + b * COL_WARPS);
            const bool none = block >= dim || r >= w.rows || w.from >= w.to;
            const bool from_v = k_column(dim, kv.k_dim, block) >= kv.k_dim;
            const float *k_norm = from_v ? l.k_norm : NULL;
            load_query<FP8, PARTS>(q[b], i, none ? NULL : from, block, k_norm);
        }
    }

    /* 4. The tiles of keys. */
    const float k_scale = LOG2_E * (FP8 ? l.k_scale : 1);
    const int lane_rows = FUSED && w.rows <= 8 ? 1 : 2;
    for (int tile = w.from; tile < w.to; tile++) {
        const uint8_t *k = tile_at(tile), *v = k + kv.k_dim * SIZE;
        ptx_cp_async_wait<0>();
        __syncthreads();                /* this tile is there; all warps are done with the last */
        if (tile + 1 < w.to) load(tile + 1);

        float s[KEYS / 8][4] = {}, factor[2] = {1, 1};
        unsigned e[KEYS / 16][PARTS][4];
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            const int block = 16 * (col + b * COL_WARPS);
            if (block >= dim) continue;
            const uint8_t *column = k + k_column(dim, kv.k_dim, block) * SIZE;
            add_scores<FP8, PARTS, KEYS>(s, q[b], column, pitch);
        }
        finish_scores<COL_WARPS, KEYS>(s, exchange, 1 + row_warp, col, k_scale, lane_rows);
        mask_scores<KEYS>(s, a, w, row_warp, start_of(tile), count_of(tile), lane_rows);
        exponentials<KEYS>(s, max, sum, factor, 0, lane_rows);
        if (tile + 1 == w.to) bring_ahead(l.o, a.ahead);
        split_exponentials<FP8, PARTS, KEYS>(e, s, lane_rows);
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            const int block = 16 * (col + b * COL_WARPS);
            if (block >= dim) continue;
            __syncwarp();               /* else the compiler loads all of V ahead: registers */
            for (int i = 0; i < 8; i++) o[b][i / 4][i % 4] *= factor[i % 4 / 2];
            add_values<FP8, PARTS, KEYS>(o[b], e, v + block * SIZE, pitch);
        }
    }

    /* 5. The result. */
    const bool direct = is_direct(a, w, FUSED);
    const size_t apart = ROWS * (dim + 2);
    store_rows<FP8, BLOCKS, COL_WARPS>(a, w, row_warp, col, o, max, sum, dim, apart, direct);
    if (JOINS) join(a, w, apart, FP8 ? l.v_scale : 1, &arrived);
}

/* ---- a prompt ----
 *
 * prompt_kernel has what attend_kernel has, for one head_dim DIM and tiles of N keys known to the
 * compiler, and PARTS 1.  Each warp has 16 rows and up to 256 dimensions in registers: with 64 keys
 * (FP8) it does 256 mma between two barriers, and reads each number of K and V once for 16 rows.
 *
 * SHARED_V (BF16, DIM 512): K is made of V (KvCache.k_dim), so K and V come together, in two
 * buffers as in attend_kernel.  Otherwise K and V have one buffer each, and one is filled while
 * the other is in use.  So 64 keys of DIM 512 and the scores' exchange fit into the 99 KB that a
 * block can have on sm_86, 89 and 12x.  bench/gpu-predicted.md has the figures. */

/* Rows of a tile: four warps, or four pairs of them, of 16 rows each.  The products of a warp need
 * most of the registers that a thread can have, so a warp cannot have more rows; more warps would
 * leave fewer registers. */
#define PROMPT_ROWS 64
/* A row's base stays until its maximum is more than 2^SLACK times as large, so that the sums over V
 * are seldom rescaled.  The exponentials are then at most 2^8 = 256, which FP16 and BF16 hold
 * with full precision.  A guess: nobody has timed other values; it costs nothing in precision.
 * To tune it, time prompts of 4096 tokens on a GPU. */
#define SLACK 8

/* Begins to copy rows of BYTES bytes of key/value head h from `cache` (K's or V's) to a tile of N
 * rows, `pitch` bytes apart: those of `count` keys, the first of which is in slot `slot`; the
 * tile's rows behind them become zero.  All N_THREADS threads; commits nothing. */
template <int BYTES, int N, int N_THREADS>
__device__ static inline void load_rows(uint8_t *to, int pitch, const uint8_t *cache,
                                        const Attend &a, int h, int slot, int count) {
    constexpr int IN_ROW = BYTES / 16;                      /* threads that copy a row, … */
    constexpr int AT_ONCE_ROWS = N_THREADS / IN_ROW;        /* … and rows copied at once */
    const int slots = (int)a.kv.slots, at = threadIdx.x % IN_ROW * 16;
    const size_t row = (size_t)a.l.n_kv_heads * BYTES;
    int key = threadIdx.x / IN_ROW;
    if (key >= AT_ONCE_ROWS) return;
    to += key * pitch + at;
    cache += h * BYTES + at;
    if (N % AT_ONCE_ROWS == 0 && count >= N && slot + N <= slots) {
        /* A full tile that does not wrap around the end of the cache. */
        cache += (slot + key) * row;
#pragma unroll
        for (int i = 0; i < N; i += AT_ONCE_ROWS, cache += AT_ONCE_ROWS * row)
            ptx_cp_async16(to + i * pitch, cache);
        return;
    }
#pragma unroll 1
    for (; key < N; key += AT_ONCE_ROWS, to += AT_ONCE_ROWS * pitch) {
        int of = slot + (key < count ? key : 0);
        const int bytes = key < count ? 16 : 0;
        if (of >= slots) of -= slots;
        ptx_cp_async16_zfill(to, cache + of * row, bytes);
    }
}

/* The work of this block of prompt_kernel.  A unit is a tile of rows of one key/value head.  The
 * first a.unsplit units have one block each, the others a.splits.  First come the blocks with split
 * 0, as some of the others may have no keys. */
__device__ static inline Work prompt_work(const Attend &a, int n_keys) {
    const int x = blockIdx.x, rest = x - a.unsplit, splits = rest < 0 ? 1 : a.splits;
    const int shared_units = max(((int)gridDim.x - a.unsplit) / splits, 1);
    const int unit = rest < 0 ? x : a.unsplit + rest % shared_units;
    return unit_work(a, unit, PROMPT_ROWS, n_keys, max(rest, 0) / shared_units, splits, false);
}

/* Fills q with the fragments of the warp's 16 queries: BLOCKS blocks of 16 dimensions, every
 * COLS-th from `col` on.  Rows behind the tile's last one repeat it; nobody stores their
 * results. */
template <bool FP8, int DIM, int BLOCKS, int COLS>
__device__ static inline void load_queries(unsigned q[BLOCKS][1][4], const Attend &a,
                                           const Work &w, int row_warp, int col, int k_dim) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = w.first + min(lane_row(row_warp, i), w.rows - 1);
        const size_t token = (size_t)(row / w.group) * (a.n_heads + 2 * a.l.n_kv_heads);
        const float *from = a.qkv + (token + w.h * w.group + row % w.group) * DIM;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            const int block = 16 * (col + b * COLS);
            const bool from_v = k_column(DIM, k_dim, block) >= k_dim;
            load_query<FP8, 1>(q[b], i, from, block, from_v ? a.l.k_norm : NULL);
        }
    }
}

/* The online softmax of a tile of keys: exponentials, with each row's base and sum in shared memory
 * between the tiles.  row_max [PROMPT_ROWS]: the bases, of this warp's `col` alone.  row_sum
 * [PROMPT_ROWS]: the sums, which the warps with col 0 keep. */
template <int N>
__device__ static inline void softmax_tile(float s[N / 8][4], float factor[2], float *row_max,
                                           float *row_sum, int row_warp, int col) {
    float max[2], sum[2] = {0, 0};
    for (int i = 0; i < 2; i++) max[i] = row_max[lane_row(row_warp, i)];
    exponentials<N>(s, max, sum, factor, SLACK);
    for (int i = 0; i < 2; i++) {
        const int r = lane_row(row_warp, i);
        const float all = row_total(sum[i]);
        row_max[r] = max[i];
        if (threadIdx.x % 4 == 0 && col == 0) row_sum[r] = row_sum[r] * factor[i] + all;
    }
}

/* Attention of more than 16 tokens on tensor cores, rounded.
 *
 * grid: a.unsplit blocks, each of which has a tile of rows and a key/value head alone, then
 * a.splits blocks for each other tile and head.  128 threads, or 256 of DIM 512: two warps then
 * share 16 rows.  Dynamic shared memory (AttendPlan.shared): one tile of keys [N][pitch], or two
 * (SHARED_V), then with DIM 512 the exchange of finish_scores.  Partial results as for
 * attend_kernel.  norm_rope_kernel, the kernel before, writes q and the cache: both are read after
 * ptx_grid_wait.
 *
 *   1. The block brings its share of o for the next product (bring_ahead), also where it has no
 *      keys; thread 0 finds the block's rows and keys; the first K is on its way.
 *   2. Load the queries as fragments.
 *   3. For each tile of keys: scores, mask, exponentials, sums over V.
 *   4. Write the result, or a partial result, which join_attend_kernel joins with the others. */
template <bool FP8, int DIM, int N>
__global__ static void __launch_bounds__(DIM > 256 ? 256 : 128, 1)
    prompt_kernel(const __grid_constant__ Attend a) {
    constexpr int COLS = DIM > 256 ? 2 : 1, BLOCKS = DIM / 16 / COLS;
    constexpr int SIZE = FP8 ? 1 : 2, N_THREADS = 128 * COLS;
    constexpr bool SHARED_V = !FP8 && DIM > 256;
    DYNAMIC_SHARED(uint8_t, shared);
    /* These are in shared memory because registers are few.  row_max: each row's base, once for
     * each of the warps that share it; row_sum: each row's sum of exponentials so far. */
    SHARED(Work, w);
    SHARED(float, row_max, [COLS][PROMPT_ROWS]);
    SHARED(float, row_sum, [PROMPT_ROWS]);
    const Layer &l = a.l;
    const int k_dim = SHARED_V ? a.kv.k_dim : DIM;
    const int k_bytes = k_dim * SIZE, pitch = k_bytes + DIM * SIZE + 16;
    const int warp = threadIdx.x / 32, col = warp % COLS, row_warp = warp / COLS;
    const int slots = (int)a.kv.slots;

    /* 1. The block's rows and keys. */
    bring_ahead(l.o, a.ahead);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (threadIdx.x == 0) w = prompt_work(a, N);
    if (threadIdx.x < PROMPT_ROWS) {
        row_sum[threadIdx.x] = 0;
        for (int c = 0; c < COLS; c++) row_max[c][threadIdx.x] = -INFINITY;
    }
    __syncthreads();
    if (w.split >= w.splits) return;
    float2 *exchange = (float2 *)(shared + (SHARED_V ? 2 : 1) * N * pitch);
    exchange += row_warp * 2 * COLS * (N / 8) * 32;
    auto tile_at = [&](int tile) {
        return shared + (SHARED_V ? (tile - w.from) % 2 * N * pitch : 0);
    };
    auto slot_of = [&](int tile) {
        return w.slot + tile * N - (w.slot + tile * N < slots ? 0 : slots);
    };
    auto count_of = [&](int tile) { return w.end - w.begin - tile * N; };
    auto load_v = [&](int tile) {
        load_rows<DIM * SIZE, N, N_THREADS>(tile_at(tile) + k_bytes, pitch, a.kv.v, a, w.h,
                                            slot_of(tile), count_of(tile));
        ptx_cp_async_commit();
    };
    auto load_k = [&](int tile) {       /* SHARED_V: V as well, and N is KEYS */
        if (SHARED_V)
            return load_tile<4 * COLS>(tile_at(tile), a, SIZE, w.h, w.begin + tile * N,
                                       count_of(tile));
        load_rows<DIM * SIZE, N, N_THREADS>(tile_at(tile), pitch, a.kv.k, a, w.h, slot_of(tile),
                                            count_of(tile));
        ptx_cp_async_commit();
    };
    if (w.from < w.to) load_k(w.from);

    /* 2. q: fragments of the warp's 16 rows and BLOCKS blocks of 16 dimensions.  o: the sums over V
     * of the same, as accumulators. */
    unsigned q[BLOCKS][1][4];
    float o[BLOCKS][2][4] = {};
    load_queries<FP8, DIM, BLOCKS, COLS>(q, a, w, row_warp, col, k_dim);

    /* 3. The tiles of keys. */
    for (int tile = w.from; tile < w.to; tile++) {
        const uint8_t *k = tile_at(tile), *v = k + k_bytes;
        ptx_cp_async_wait<0>();
        __syncthreads();                /* K is there; all warps are done with the last tile's V */
        if (!SHARED_V) load_v(tile);
        else if (tile + 1 < w.to) load_k(tile + 1);

        float s[N / 8][4] = {}, factor[2];
        unsigned e[N / 16][1][4];
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            const int column = k_column(DIM, k_dim, 16 * (col + b * COLS));
            add_scores<FP8, 1, N>(s, q[b], k + column * SIZE, pitch);
        }
        finish_scores<COLS, N>(s, exchange, 1 + row_warp, col, LOG2_E * (FP8 ? l.k_scale : 1));
        mask_scores<N>(s, a, w, row_warp, w.begin + tile * N, count_of(tile));
        softmax_tile<N>(s, factor, row_max[col], row_sum, row_warp, col);
        split_exponentials<FP8, 1, N>(e, s);
        if (__any_sync(0xffffffffu, factor[0] != 1 || factor[1] != 1))
#pragma unroll
            for (int b = 0; b < BLOCKS; b++)
                for (int i = 0; i < 8; i++) o[b][i / 4][i % 4] *= factor[i % 4 / 2];

        if (!SHARED_V) {
            ptx_cp_async_wait<0>();
            __syncthreads();            /* V is there; all warps are done with K */
            if (tile + 1 < w.to) load_k(tile + 1);
        }
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            /* Without this, the compiler would load all of V ahead and run out of registers. */
            __syncwarp();
            add_values<FP8, 1, N>(o[b], e, v + 16 * (col + b * COLS) * SIZE, pitch);
        }
    }

    /* 4. The result.  row_sum is the sum over all four lanes of a row already, so one of the four
     * gives it to row_total. */
    float max[2], sum[2];
    __syncthreads();
    for (int i = 0; i < 2; i++) {
        const int r = lane_row(row_warp, i);
        max[i] = row_max[col][r];
        sum[i] = threadIdx.x % 4 ? 0 : row_sum[r];
    }
    const size_t apart = PROMPT_ROWS * (DIM + 2);
    const bool direct = is_direct(a, w, false);
    store_rows<FP8, BLOCKS, COLS>(a, w, row_warp, col, o, max, sum, DIM, apart, direct);
}

/* ---- which kernel, and how ---- */

typedef struct {
    void (*kernel)(Attend);
    int row_warps, col_warps;           /* the warps of a block are row_warps * col_warps */
    int keys;                           /* of a tile */
    int head_dim;                       /* prompt_kernel: the only one that it takes; else 0 */
    int per_sm;                         /* prompt_kernel: its blocks that fit on a multiprocessor */
} AttendVariant;

/* attend_kernel: BF16, then FP8; of each, head_dim up to 256, then up to 512; of each, up to 16
 * rows, then more.  Then prompt_kernel: BF16 (head_dim 80: the vision tower), then FP8.  Then
 * attend_kernel for short partial results: BF16, then FP8. */
enum { ATTEND_VARIANTS = 15, PROMPT_VARIANTS = 8, PROMPT_VARIANTS_FP8 = 11, SHORT_VARIANTS = 13 };
static const AttendVariant attend_variant[ATTEND_VARIANTS] = {
    {attend_kernel<false, 1, 8, 256>, 1, 8, KEYS, 0, 0},
    {attend_kernel<false, 4, 2, 256>, 4, 2, KEYS, 0, 0},
    {attend_kernel<false, 1, 8, 512>, 1, 8, KEYS, 0, 0},
    {attend_kernel<false, 2, 4, 512>, 2, 4, KEYS, 0, 0},
    {attend_kernel<true, 1, 8, 256>, 1, 8, KEYS, 0, 0},
    {attend_kernel<true, 4, 2, 256>, 4, 2, KEYS, 0, 0},
    {attend_kernel<true, 1, 8, 512>, 1, 8, KEYS, 0, 0},
    {attend_kernel<true, 2, 4, 512>, 2, 4, KEYS, 0, 0},
    {prompt_kernel<false, 80, 64>, 4, 1, 64, 80, 2},
    {prompt_kernel<false, 256, 32>, 4, 1, 32, 256, 2},
    {prompt_kernel<false, 512, 32>, 4, 2, 32, 512, 1},
    {prompt_kernel<true, 256, 64>, 4, 1, 64, 256, 2},
    {prompt_kernel<true, 512, 64>, 4, 2, 64, 512, 1},
    {attend_kernel<false, 1, 8, 256, true>, 1, 8, KEYS, 0, 0},
    {attend_kernel<true, 1, 8, 256, true>, 1, 8, KEYS, 0, 0},
};

/* How n tokens are attended to.  It depends on n and the layer; only of steps that are never
 * recorded on the position, too. */
typedef struct {
    const AttendVariant *variant;       /* NULL: plain_attend_kernel */
    int fused;                          /* attend_kernel norms q and writes K and V itself */
    int tiles, splits;                  /* tiles of rows; blocks that share the keys of each */
    int unsplit;                        /* prompt_kernel: tiles of rows and heads not split */
    size_t shared;                      /* bytes of dynamic shared memory of a block */
    size_t partials, partial_floats;    /* partial results (and tickets); floats of each */
    int joined_apart;                   /* join_attend_kernel follows */
    int join_blocks;                    /* its blocks for each tile of rows and head */
} AttendPlan;

/* The variant of prompt_kernel for a layer, or NULL. */
static const AttendVariant *prompt_variant(const Layer *l, const KvCache *kv) {
    int fp8 = kv->dtype == DT_F8_E4M3, shares_v = !fp8 && l->head_dim > 256;
    if (shares_v != (kv->k_dim < l->head_dim)) return NULL;
    int end = fp8 ? SHORT_VARIANTS : PROMPT_VARIANTS_FP8;
    for (int i = fp8 ? PROMPT_VARIANTS_FP8 : PROMPT_VARIANTS; i < end; i++)
        if (attend_variant[i].head_dim == l->head_dim) return &attend_variant[i];
    return NULL;
}

/* Sets p->splits and p->unsplit of prompt_kernel, which has `units` tiles of rows and heads.  The
 * GPU's places (half of the blocks that fit) take the units in turns.  Units that are left over for
 * an incomplete last turn are split into as many blocks as end soonest, in at most two shorter
 * turns.  But where two blocks fit on a multiprocessor (per_sm 2), only fewer units than places
 * are split: there a block that is alone on a multiprocessor is faster.
 * blocks: two on each multiprocessor.  most: the largest number of splits.  one_tile: there is one
 * tile of keys, so all blocks but the first of each unit only bring what is read next: no second
 * turn of them. */
static void share_out(AttendPlan *p, int units, int blocks, int per_sm, int64_t most,
                      bool one_tile) {
    int places = blocks * per_sm / 2, rest = 0, turns = 1;
    const int most_blocks = one_tile ? places : 2 * places;
    if (units < places) rest = units;
    else if (per_sm == 1 && places) rest = units % places;
    p->splits = 1;
    for (int s = 2; rest && s <= most && rest * s <= most_blocks; s++) {
        int t = (rest * s + places - 1) / places;
        if (t * p->splits >= turns * s) continue;
        p->splits = s;
        turns = t;
    }
    p->unsplit = p->splits > 1 ? units - rest : units;
}

/* The plan for n tokens of layer l.
 * parts: PARTS of more than 16 tokens: 1 (prompt_kernel) or 2 (attend_kernel); see "Numbers" above.
 * 16 tokens or fewer always have 2, which costs nothing there: they wait for memory.
 * seen: no token sees more keys, the n new ones among them.  Where they are one tile, no query has
 * two partial results to be joined.
 * blocks: so many fill the GPU, two on each multiprocessor; 0: no keys are split.
 * limit: bytes of shared memory that a block can have. */
static AttendPlan attend_plan(const Layer *l, const KvCache *kv, int n_heads, int n, int64_t seen,
                              int parts, int blocks, size_t limit) {
    int dim = l->head_dim, group = n_heads / l->n_kv_heads, rows = n * group;
    int turning = kv->k_dim / 2, fp8 = kv->dtype == DT_F8_E4M3;
    AttendPlan p = {};
    p.shared = plain_attend_shared(l, n_heads);
    if (kv->dtype == DT_F32 || dim % 16 || dim > 512) return p;
    /* All of a block of 16 dimensions must turn, or none of it. */
    if (kv->k_dim < dim && (turning % 16 || dim % 32)) return p;
    const AttendVariant *prompt = n > 16 && parts == 1 ? prompt_variant(l, kv) : NULL;
    const AttendVariant *v = &attend_variant[fp8 * 4 + (dim > 256) * 2 + (rows > 16)];
    /* Short partial results, which a block joins; rows * dim is the number of theirs. */
    int is_short = rows <= 16 && dim <= 256 && rows * dim <= JOINED_BY_BLOCK;
    if (gpu_can_overlap) is_short = 0;
    if (is_short) v = &attend_variant[SHORT_VARIANTS + fp8];
    if (prompt) v = prompt;
    int buffers = prompt && kv->k_dim == dim ? 1 : 2, n_rows = 16 * v->row_warps;
    size_t number = fp8 ? 1 : 2, key = (kv->k_dim + dim) * number + 16;
    size_t shared = buffers * v->keys * key;
    int exchanged = rows <= 8 ? 8 : n_rows;     /* rows: see finish_scores */
    if (v->col_warps > 1) shared += exchanged * v->col_warps * v->keys * sizeof(float);
    if (shared > limit) return p;
    p.variant = v;
    p.shared = shared;
    p.fused = rows <= 16;
    p.tiles = (rows + n_rows - 1) / n_rows;
    p.partial_floats = n_rows * (dim + 2);
    int units = l->n_kv_heads * p.tiles;
    /* Tiles of the most keys that a row sees, and one more where they begin within a tile. */
    int64_t most_tiles = (kv->slots + v->keys - 1) / v->keys + 1;
    const bool one_tile = seen <= v->keys;
    int numbers = (rows < n_rows ? rows : n_rows) * dim;        /* of a partial result */
    p.join_blocks = (numbers + JOINED_NUMBERS - 1) / JOINED_NUMBERS;
    if (prompt) {
        share_out(&p, units, blocks, v->per_sm, most_tiles, one_tile);
        p.joined_apart = p.splits > 1 && !one_tile;
        p.partials = p.joined_apart ? (size_t)(units - p.unsplit) * p.splits : 0;
        return p;
    }
    /* attend_kernel with head_dim up to 256 and 16 rows: two blocks fit on a multiprocessor, of the
     * others one. */
    p.splits = (p.fused && dim <= 256 ? blocks : blocks / 2) / units;
    if (p.splits > most_tiles) p.splits = (int)most_tiles;
    if (p.splits > JOIN && is_short) p.splits = JOIN;
    if (p.splits < 1) p.splits = 1;
    const bool apart = p.fused || n <= STREAMED_TOKENS;         /* however few the keys are */
    const bool joined = apart || (p.splits > 1 && !one_tile);
    p.partials = joined ? (size_t)units * p.splits : 0;
    p.joined_apart = joined && !is_short;
    return p;
}

#endif
