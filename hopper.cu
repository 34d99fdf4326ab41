/* hopper.cu - BF16 and NVFP4 matrices times many tokens, with the tensor cores of an H100 or H200.
 *
 * This file is compiled for sm_90a alone: wgmma exists nowhere else, and code for an `a` target
 * runs on no other chip.  On such a GPU, with GEMMA4_CUDA=wgmma, launch.cu (dense matrices) and
 * cuda.cu (experts) ask hopper_product first.  nvfp4.cu computes the products that hopper_product
 * declines, with mma.sync.  No GPU has run or timed this file yet.
 *
 * The product.  A wgmma multiplies 64 rows of A, from the registers of a warpgroup's 128 threads,
 * with up to 256 columns of B, from shared memory.  The rows of A are rows of the weights, and the
 * columns of B are tokens.  So NVFP4 weights become BF16 in the registers of the threads that
 * multiply, exactly as in nvfp4.cu, and these BF16 numbers never go back to shared memory.  A row
 * of NVFP4 takes little more than a quarter of a token's bytes in shared memory, so a tile can have
 * many of them.
 *
 * The block.  One warpgroup, the producer, brings 64 columns at a time into a ring in shared
 * memory.  Two others, the consumers, multiply, each with one half of the rows.  A stage of the
 * ring holds 64 columns and has two mbarriers: `full` ends its phase when all copies into the stage
 * have ended, `empty` when all consumer warps are done with it.  A block computes one unit (a tile
 * of the product) after the other.  The next unit's columns arrive while this unit's sums are
 * written, and one consumer can write while the other multiplies.
 *
 * The copies of dense matrices are bulk copies (TMA): one thread begins the copy of a box of up to
 * 128 rows, which a tensor map describes, and `full` counts the bytes that have come.  Two blocks
 * form a cluster.  Both have the same tokens and neighbouring rows, and each brings one half of the
 * tokens to both, so the L2 cache is read for 61 to 75 % of the bytes that come.
 *
 * The copies of experts are cp.async, 16 bytes each, of all threads of the producer.  Tensor maps
 * of sm_90 cannot gather rows, which the tokens of an expert need: the list that is sorted by
 * expert names them.  Nor could one map describe the experts' weights, which lie at addresses of
 * their own.  With cp.async each thread chooses the place of its 16 bytes, which gives the 128-byte
 * swizzle that wgmma wants.  Block scales always come like this: a row's may be no multiple of 16
 * bytes, and then no map describes them.
 *
 * The order of the sum is that of the columns: lane t's fragment of A has columns 2t, 2t + 1,
 * 2t + 8, 2t + 9 of 16.  In NVFP4 these are bytes t and t + 4 of eight.  The four lanes of a row
 * read the same 16 bytes of shared memory, and __byte_perm takes each lane's own bytes out of
 * them.
 *
 * In this file a line is a row of a tile, as it lies in shared memory.  Where gate and up are
 * joined by gelu, the first half of the lines are rows of gate, and the second half are the same
 * rows of up.  A warp multiplies 8 lines of the first half together with the same 8 of the
 * second, so that gate and up of a row meet in one thread. */
#include "hopper.h"

#include <stdint.h>

#include "gpu.h"
#ifndef GEMMA4_EMU
#include <cuda.h>                       /* for its types; libcuda is not linked */
#endif
#include "product.h"

#define GROUP 128                       /* threads of a warpgroup */
#define GROUPS 2                        /* consumers */
#define BLOCK ((GROUPS + 1) * GROUP)    /* threads of a block: the consumers and the producer */
/* Registers of a producer's and of a consumer's thread.  A block of 384 threads begins with 168
 * registers for each thread, the most that 64 K registers allow, and 80 + 2 * 208 is within
 * 3 * 168.  Chosen as multiples of 8 with which ptxas -v reports no spills; after a change of the
 * kernel look at its report again. */
#define BRING_REGISTERS 80
#define MULTIPLY_REGISTERS 208
#define COLUMNS 64                      /* of a stage: 128 bytes of BF16, as wide as the swizzle */
/* Tokens whose sums go through shared memory at a time: 32 lanes' worth.  A guess: more would take
 * memory from the ring, fewer would need more barriers; nobody has timed it. */
#define WRITTEN 32
#define CLUSTER 2                       /* blocks of a cluster, where there are clusters */
/* Floats from one token's 64 lines to the next in that memory: 64 and 4 more, so that the 32 lanes
 * of a warp write to 32 different banks. */
#define LINE_PITCH 68
#define SHARED_BYTES (227 * 1024)       /* shared memory that a block can have on sm_90 */

/* Bytes of a row of weights in a stage: 64 columns of NVFP4 (packed) or BF16. */
__host__ __device__ constexpr int row_pitch(bool packed) { return COLUMNS * (packed ? 1 : 4) / 2; }
/* Bytes of a row's block scales.  They come for 256 columns, four stages, at a time. */
__host__ __device__ constexpr int scales_pitch(bool packed) { return packed ? 16 : 0; }

/* The shared memory of a block, whose tile is N tokens and GROUPS * 64 * MR lines.
 *   stages * stage    the ring: N tokens' 128 bytes, then the lines' row_pitch bytes
 *   stages * scales   a ring of block scales, one slot for four stages
 *   stages * 16       the mbarriers full [stages] and empty [stages], 8 bytes each
 *   the rest          the consumers' [GROUPS][WRITTEN][LINE_PITCH] floats (write_unit)
 * and up to 1023 bytes ahead of it all, as a stage must begin at a multiple of 1024.
 *
 * The ring of scales has as many slots as there are stages, more than needed: a slot serves one
 * stage at least.  So when the producer gets an empty stage, with whose columns new scales come,
 * all stages that used the slot's old scales are empty, too. */
template <int MR, int N, bool PACKED, bool DENSE> struct Shape {
    static constexpr bool dense = DENSE;
    static constexpr int cluster = DENSE ? CLUSTER : 1;     /* blocks */
    static constexpr int rows = GROUPS * 64 * MR, tokens = N * COLUMNS * 2;
    static constexpr int stage = tokens + rows * row_pitch(PACKED);
    static constexpr int scales = rows * scales_pitch(PACKED);
    static constexpr int each = stage + scales + 16;
    static constexpr int fixed = 1024 + GROUPS * WRITTEN * LINE_PITCH * 4;
    static constexpr int room = (SHARED_BYTES - fixed) / each, stages = room < 8 ? room : 8;
    static constexpr int bytes = fixed + stages * each;
};

/* The tensor maps of a dense product: of y's rows, in boxes of 64 columns of half a tile's tokens,
 * and of the rows of gate and up, or of w and up to two more matrices, in boxes of 64 columns of
 * half a tile's lines.  Experts have none. */
typedef struct {
    CUtensorMap tokens, rows[3];
} Maps;

/* Where the ring is in shared memory, and how far a thread is in it. */
typedef struct {
    uint8_t *stage, *scales;            /* [stages][S::stage], [stages][S::scales] */
    uint64_t *full, *empty;             /* [stages] mbarriers */
    int at, parity;                     /* the next stage, and the parity of its next phase */
    int scales_at;                      /* the next slot of scales */
    int rank;                           /* this block's in its cluster */
} Ring;

/* The ring of a block whose dynamic shared memory is `shared`; all barriers are initialised by
 * some threads, so a ptx_cluster_sync must follow. */
template <class S> __device__ static inline Ring ring_in(uint8_t *shared) {
    Ring ring = {};
    ring.stage = shared + (1024 - ptx_shared(shared) % 1024) % 1024;
    ring.scales = ring.stage + S::stages * S::stage;
    ring.full = (uint64_t *)(ring.scales + S::stages * S::scales);
    ring.empty = ring.full + S::stages;
    ring.rank = ptx_cluster_rank();
    if (threadIdx.x < S::stages) {
        ptx_mbarrier_init(ring.full + threadIdx.x, GROUP);
        ptx_mbarrier_init(ring.empty + threadIdx.x, S::cluster * GROUPS * GROUP / 32);
        ptx_fence_mbarrier_init();
    }
    return ring;
}

template <int STAGES> __device__ static inline void next_stage(Ring &r) {
    if (++r.at < STAGES) return;
    r.at = 0;
    r.parity ^= 1;
}

template <int STAGES> __device__ static inline void next_scales(Ring &r) {
    if (++r.scales_at == STAGES) r.scales_at = 0;
}

/* A unit: a tile of the product, which a block computes at a time. */
typedef struct {
    Tile tile;                          /* its tokens */
    Weight w, up;                       /* up.data: gate and up, joined by gelu; else NULL */
    int row;                            /* the first row of w, and of up */
    int matrix, column;                 /* see find_matrix in product.h */
    bool shared;                        /* the cluster's other block has the same tokens */
} Unit;

/* The tokens and the row tile of unit i of a dense product.  Units 2 j and 2 j + 1, which a cluster
 * computes, are two row tiles of the same tokens.  Only the last row tile of an odd number has none
 * beside it: its units are the last.  Units that follow each other have the same rows, so these
 * come from memory once, and from the L2 cache afterwards. */
__device__ static inline void place_unit(Unit *u, int i, int row_tiles, int token_tiles, int *token,
                                         int *row) {
    const int in_pairs = row_tiles / 2 * 2 * token_tiles;
    u->shared = i < in_pairs;
    *token = u->shared ? i / 2 % token_tiles : i - in_pairs;
    *row = u->shared ? i / 2 / token_tiles * 2 + i % 2 : row_tiles - 1;
}

/* Unit i of row_tiles times token_tiles (experts: times *p.n_tiles).  Experts: units with the same
 * tokens have neighbouring numbers, so they are computed at the same time, and these are read from
 * the L2 cache.  Dense: where the number of units is odd, one more has no tokens. */
template <int MR, int N, bool DENSE, bool MORE>
__device__ static inline Unit unit_at(const Product &p, int i, int row_tiles, int token_tiles) {
    const int rows = GROUPS * 64 * MR;
    Unit u;
    int row;
    if (!DENSE) {
        u.tile = p.tile[i / row_tiles];
        u.shared = false;
        row = i % row_tiles;
    } else {
        int token;
        place_unit(&u, i, row_tiles, token_tiles, &token, &row);
        u.tile = {0, token * N, min(p.n - token * N, N)};
    }
    u.w = DENSE ? p.w : p.expert_w[u.tile.expert];
    u.up = DENSE || !p.expert_up ? p.up : p.expert_up[u.tile.expert];
    u.row = row * (u.up.data ? rows / 2 : rows);
    u.matrix = u.column = 0;
    if (MORE) u.matrix = find_matrix(p, rows, &u.w, &u.row, &u.column);
    return u;
}

/* The first row of the second half of the unit's lines, of which there are `lines` in all. */
__device__ static inline int second_row(const Unit &u, int lines) {
    return u.row + (u.up.data ? 0 : lines / 2);
}

/* So many rows behind u.row is the row of line `line` of `lines`, or the matrix's last row if it
 * has no such. */
__device__ static inline uint32_t rows_ahead(const Unit &u, int line, int lines) {
    const int row = line < lines / 2 ? u.row + line : second_row(u, lines) + line - lines / 2;
    return min(row, u.w.rows - 1) - u.row;
}

/* ---- the producer ----
 *
 * All of its 128 threads wait until the next stage is empty, begin their copies of it, and arrive
 * at `full` when these have ended.  cp.async have no conditions: behind a tile's last token that
 * one is repeated, and behind a matrix's last row that row.  Nobody reads the sums of either.
 * (With a condition for each copy ptxas computes an address only when the copy before has read its
 * own.) */

/* Brings the block scales of 256 columns, from step `step` on (a step is 64 columns), to the slot
 * `to` [lines][16]: four threads bring a line's 16 bytes. */
template <class S>
__device__ static inline void bring_scales(const Unit &u, int step, int n_steps, uint8_t *to) {
    const int thread = threadIdx.x % GROUP, word = thread % 4, line = thread / 4;
    const uint32_t bytes = row_bytes(u.w) / 8;
    const size_t first = u.row * (size_t)bytes + (step + word) * 4;
    const uint8_t *from[2] = {u.w.block_scale + first,
                              (u.up.data ? u.up.block_scale : u.w.block_scale) + first};
    to += line * 16 + word * 4;
    if (step + word >= n_steps) return;
#pragma unroll
    for (int k = 0; k < S::rows / 32; k++)
        ptx_cp_async4(to + 512 * k,
                      from[k / (S::rows / 64)] + rows_ahead(u, line + 32 * k, S::rows) * bytes);
}

/* Ends the copies of step `step` into the next stage: begins those of the block scales where it is
 * their turn, lets `full` know, and goes on to the stage behind. */
template <bool PACKED, class S>
__device__ static inline void end_stage(const Unit &u, int step, int n_steps, Ring &ring) {
    if (PACKED && step % 4 == 0) {
        bring_scales<S>(u, step, n_steps, ring.scales + ring.scales_at * S::scales);
        next_scales<S::stages>(ring);
    }
    ptx_mbarrier_arrive_copies(ring.full + ring.at);
    next_stage<S::stages>(ring);
}

/* Begins the copies of dense matrices into the next stage: columns 64 * step … of y's rows from
 * row `token` on, one or two halves of a tile, and of the unit's lines.  For one thread.  Where the
 * cluster's blocks share the tokens, each block brings the half of its rank to both.  Behind a
 * matrix's last row come zeros. */
template <bool PACKED, class S>
__device__ static inline void begin_boxes(const Maps &maps, const Unit &u, int token, int halves,
                                          int step, const Ring &ring) {
    const int half = S::tokens / 2, lines = S::rows / 2, pitch = row_pitch(PACKED);
    uint64_t *full = ring.full + ring.at;
    uint8_t *to = ring.stage + ring.at * S::stage;
    ptx_mbarrier_expect(full, halves * half + S::rows * pitch);
    for (int h = 0; h < halves; h++, to += half, token += half / 128) {
        if (!u.shared) ptx_copy_box(to, &maps.tokens, step * 128, token, full);
        else if (h == ring.rank)
            ptx_copy_box_to(to, &maps.tokens, step * 128, token, full, (1 << CLUSTER) - 1);
    }
    const CUtensorMap *first = &maps.rows[u.matrix], *second = u.up.data ? first + 1 : first;
    to = ring.stage + ring.at * S::stage + S::tokens;
    ptx_copy_box(to, first, step * pitch, u.row, full);
    ptx_copy_box(to + lines * pitch, second, step * pitch, second_row(u, S::rows), full);
}

/* Brings a unit of dense matrices, one stage for each 64 columns of each part.
 * parts: the BF16 numbers that make one of y's; the smallest come first. */
template <bool PACKED, class S>
__device__ static inline void bring_dense(const Product &p, const Maps &maps, const Unit &u,
                                          int halves, int parts, Ring &ring) {
    const int n_steps = padded(u.w.cols) / COLUMNS;
    for (int part = parts - 1; part >= 0; part--)
        for (int step = 0; step < n_steps; step++) {
            ptx_mbarrier_wait(ring.empty + ring.at, ring.parity ^ 1);
            if (threadIdx.x % GROUP == 0)
                begin_boxes<PACKED, S>(maps, u, part * p.n + u.tile.first, halves, step, ring);
            end_stage<PACKED, S>(u, step, n_steps, ring);
        }
}

/* Brings a unit of experts: N tokens and the weights, as bring_dense does.
 * Eight threads bring a token's 128 bytes: piece c of 16 bytes of row r goes to piece c ^ (r % 8),
 * the swizzle of wgmma.  Eight threads bring a line's 128 bytes of BF16 in the same way, and two
 * bring its 32 bytes of NVFP4. */
template <int N, bool PACKED, class S>
__device__ static inline void bring_experts(const Product &p, const Unit &u, int parts,
                                            Ring &ring) {
    const int thread = threadIdx.x % GROUP, token = thread / 8, c = thread % 8;
    const int per_line = row_pitch(PACKED) / 16, line = thread / per_line, d = thread % per_line;
    const int lines = GROUP / per_line, n_steps = padded(u.w.cols) / COLUMNS;
    const uint32_t bytes = padded(u.w.cols) * 2, w_bytes = row_bytes(u.w);
    /* Where this thread's copies begin, in bytes behind the first token and behind row u.row:
     * hopper_product declines where 32 bits are few. */
    uint32_t from[N / 16], w_from[S::rows / lines];
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        int place = u.tile.first + min(16 * k + token, u.tile.count - 1);
        from[k] = (uint32_t)(p.list ? p.list[place] / p.top_k : place) * bytes + c * 16;
    }
#pragma unroll
    for (int k = 0; k < S::rows / lines; k++)
        w_from[k] = rows_ahead(u, lines * k + line, S::rows) * w_bytes + d * 16;
    const size_t first = u.row * (size_t)w_bytes;
    const uint8_t *second = u.up.data ? u.up.data : u.w.data;
    for (int part = parts - 1; part >= 0; part--) {
        const uint8_t *column = (const uint8_t *)p.y + (size_t)part * p.n * bytes;
        const uint8_t *w[2] = {u.w.data + first, second + first};
        for (int step = 0; step < n_steps; step++) {
            ptx_mbarrier_wait(ring.empty + ring.at, ring.parity ^ 1);
            uint8_t *to = ring.stage + ring.at * S::stage, *w_to = to + S::tokens;
            to += token * 128 + (c ^ token % 8) * 16;
            w_to += line * row_pitch(PACKED) + (PACKED ? d : d ^ line % 8) * 16;
#pragma unroll
            for (int k = 0; k < N / 16; k++) ptx_cp_async16(to + 2048 * k, column + from[k]);
#pragma unroll
            for (int k = 0; k < S::rows / lines; k++)
                ptx_cp_async16(w_to + lines * k * row_pitch(PACKED),
                               w[lines * k / (S::rows / 2)] + w_from[k]);
            end_stage<PACKED, S>(u, step, n_steps, ring);
            column += 128;
            w[0] += row_pitch(PACKED);
            w[1] += row_pitch(PACKED);
        }
    }
}

/* ---- the consumers ---- */

/* Columns 2t and 2t + 1 of a word of eight E2M1 as two BF16, times their block's scale, as
 * scaled_e2m1 makes them.  choice: the argument of __byte_perm that takes byte t. */
__device__ static inline uint32_t scaled_pair(uint32_t word, uint32_t choice, uint32_t scale) {
    uint32_t pair = __byte_perm(word << 4, word, choice);
    return ptx_mul_bf16x2((pair & 0x80008000) | (pair >> 6 & 0x01c001c0), scale);
}

/* What a warp makes its fragments of A from: MR times 8 lines of the first half of the tile's, 32
 * lines apart, and the same ones of the second half.  g = lane / 4. */
template <int MR, bool PACKED> struct Rows {
    const uint8_t *row, *scale_row;     /* in the stage: the lane's first line, and its scales */
    uint32_t scale[MR][2][2];           /* of line g of both halves: columns 0 and 16, 32 and 48 */
    uint4 word[MR][2];                  /* of line g of both halves: 32 columns of NVFP4 */
};

/* Columns 16 k … 16 k + 15 of the stage as fragments a of A.  k rises from 0 to 3 from call to
 * call, as calls with an even k load what the next call uses as well. */
template <int MR, bool PACKED>
__device__ static inline void make_fragments(uint32_t (&a)[MR][4], Rows<MR, PACKED> &r, int k) {
    const int lane = threadIdx.x % 32, t = lane % 4, pitch = row_pitch(PACKED);
    const uint32_t choice = (4 + t) << 12 | t << 4;
#pragma unroll
    for (int m = 0; m < MR; m++)
        if (PACKED)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int line = 32 * m + GROUPS * 32 * MR * h;
                if (k == 0) {
                    uint32_t four = *(const uint32_t *)(r.scale_row + line * scales_pitch(PACKED));
                    r.scale[m][h][0] = block_scales(four);
                    r.scale[m][h][1] = block_scales(four >> 16);
                }
                if (k % 2 == 0) r.word[m][h] = *(const uint4 *)(r.row + line * pitch + k / 2 * 16);
                const uint4 w = r.word[m][h];
                const uint32_t s = __byte_perm(r.scale[m][h][k / 2], 0, k % 2 ? 0x3232 : 0x1010);
                a[m][h] = scaled_pair(k % 2 ? w.z : w.x, choice, s);
                a[m][2 + h] = scaled_pair(k % 2 ? w.w : w.y, choice, s);
            }
        else
            ptx_ldmatrix_x4(a[m], r.row + 32 * m * pitch + ((2 * k + lane / 16) ^ lane % 8) * 16);
}

/* The first line of this thread's warp in the first half of the tile's. */
template <int MR> __device__ static inline int warp_line() {
    return threadIdx.x / GROUP * 32 * MR + threadIdx.x % GROUP / 32 * 8;
}

/* acc += the unit's lines times N tokens (a stage may have room for more), over n_steps stages for
 * each of the parts.
 *
 * While wgmma multiplies the fragments a[k % 2], the warp makes those of the next 16 columns in
 * a[(k + 1) % 2].  Then it waits until no wgmma is under way: ptxas would wait anyway where a
 * register is written that a wgmma under way could read.  The tensor cores have the other
 * consumer's wgmma meanwhile. */
template <int MR, int N, bool PACKED, class S>
__device__ static inline void multiply_unit(float (&acc)[MR][N / 2], int n_steps, int parts,
                                            Ring &ring) {
    const int lane = threadIdx.x % 32, line = warp_line<MR>();
    uint32_t a[2][MR][4];
    Rows<MR, PACKED> rows;
    uint64_t b = 0, *stage = NULL;      /* the stage: its descriptor for wgmma, its `empty` */
    int step = 0;
    /* Waits for the next stage and makes its first fragments. */
    auto begin_stage = [&] {
        ptx_mbarrier_wait(ring.full + ring.at, ring.parity);
        if (!S::dense) ptx_fence_async();
        const uint8_t *tokens = ring.stage + ring.at * S::stage;
        const int first = line + (PACKED ? lane / 4 : lane % 8 + lane / 8 % 2 * (S::rows / 2));
        rows.row = tokens + S::tokens + first * row_pitch(PACKED);
        rows.scale_row = ring.scales + ring.scales_at * S::scales + first * scales_pitch(PACKED);
        rows.scale_row += step % 4 * 4;
        b = ptx_wgmma_matrix(tokens);
        stage = ring.empty + ring.at;
        if (PACKED && (step % 4 == 3 || step == n_steps - 1)) next_scales<S::stages>(ring);
        if (++step == n_steps) step = 0;
        next_stage<S::stages>(ring);
        make_fragments<MR, PACKED>(a[0], rows, 0);
    };
    begin_stage();
    for (int i = 0; i < parts * n_steps; i++) {
        uint64_t *done = stage;
#pragma unroll
        for (int k = 0; k < COLUMNS / 16; k++) {
            ptx_wgmma_fence();
#pragma unroll
            for (int m = 0; m < MR; m++) ptx_wgmma_bf16(acc[m], a[k % 2][m], b + 2 * k);
            ptx_wgmma_commit();
            if (k < COLUMNS / 16 - 1) make_fragments<MR, PACKED>(a[(k + 1) % 2], rows, k + 1);
            else if (i < parts * n_steps - 1) begin_stage();
            ptx_wgmma_wait<0>();
        }
        __syncwarp();
        if (lane < S::cluster) ptx_mbarrier_arrive_at(done, lane);
    }
#pragma unroll
    for (int m = 0; m < MR; m++) ptx_wgmma_keep(acc[m]);
}

/* Writes the unit's sums acc to p.out, or gelu(gate) * up to p.act.
 * acc[m][4 j + 2 h + e] is line 32 m + 8 warp + g of the warpgroup's in half h of the tile's and
 * token 8 j + 2 t + e, where g = lane / 4, t = lane % 4.  through [WRITTEN][LINE_PITCH]: shared
 * memory of this warpgroup, through which WRITTEN tokens of 32 lines of each half go at a time, so
 * that neighbouring lanes write neighbouring rows.  Barrier 1 + group is this warpgroup's. */
template <int MR, int N>
__device__ static inline void write_unit(const Product &p, const Unit &u, int parts,
                                         const float (&acc)[MR][N / 2], float *through) {
    const int thread = threadIdx.x % GROUP, group = threadIdx.x / GROUP;
    const int g = thread % 32 / 4, t = thread % 4;
    const float by = factor(u.w), by_up = factor(u.up);
    float *own = through + 2 * t * LINE_PITCH + thread / 32 * 8 + g;
#pragma unroll
    for (int m = 0; m < MR; m++)
#pragma unroll
        for (int q = 0; q < N; q += WRITTEN) {
            if (q >= u.tile.count) break;
            ptx_bar_sync(1 + group, GROUP);     /* all have read the sums before these */
#pragma unroll
            for (int j = 0; j < WRITTEN / 8; j++)
#pragma unroll
                for (int k = 0; k < 4; k++)
                    own[(8 * j + k % 2) * LINE_PITCH + k / 2 * 32] = acc[m][q / 2 + 4 * j + k];
            ptx_bar_sync(1 + group, GROUP);
            const int first = (group * MR + m) * 32;
            const int n = min(u.tile.count - q, WRITTEN);
            const size_t place = u.tile.first + q;
            if (u.up.data) {
                const int r = thread % 32, row = u.row + first + r;
                const size_t width = padded(u.w.rows);
                uint16_t *to = p.act + (place + thread / 32) * width + row;
                const float *from = through + thread / 32 * LINE_PITCH + r;
                const int mine = row < u.w.rows ? n - thread / 32 : 0;
                float v[WRITTEN * 32 / GROUP];          /* of tokens thread / 32 + 4 i */
#pragma unroll
                for (int i = 0; i < WRITTEN / 4; i++, from += 4 * LINE_PITCH)
                    v[i] = gelu_times(from[0] * by, from[32] * by_up);
#pragma unroll 1
                for (int part = 0; part < parts; part++, to += p.n_act * width)
#pragma unroll
                    for (int i = 0; i < WRITTEN / 4; i += 2) {
                        const uint32_t two = take_bf16(v[i], v[i + 1]);
                        if (4 * i < mine) to[4 * i * width] = (uint16_t)two;
                        if (4 * i + 4 < mine) to[(4 * i + 4) * width] = (uint16_t)(two >> 16);
                    }
            } else {
                const int r = thread % 64;
                const int row = u.row + first + r % 32 + r / 32 * (GROUPS * 32 * MR);
                float *to = p.out + (place + thread / 64) * p.pitch + u.column + row;
                const float *from = through + thread / 64 * LINE_PITCH + r;
                const int mine = row < u.w.rows ? n - thread / 64 : 0;
#pragma unroll
                for (int i = 0; i < WRITTEN; i += GROUP / 64)
                    if (i < mine) to[i * (size_t)p.pitch] = from[i * LINE_PITCH] * by;
            }
        }
}

template <int MR, int N, bool PACKED, class S>
__device__ static inline void compute_unit(const Product &p, const Unit &u, int parts, Ring &ring,
                                           float *through) {
    float acc[MR][N / 2] = {};
    multiply_unit<MR, N, PACKED, S>(acc, padded(u.w.cols) / COLUMNS, parts, ring);
    write_unit<MR, N>(p, u, parts, acc, through);
}

/* The product p.  maps: of dense matrices.  parts: BF16 numbers that make one of y's.
 * grid: at most as many blocks as multiprocessors; block i computes units i, i + gridDim.x, ….
 * Dense: an even number of blocks, in clusters of two.  Dynamic shared memory: Shape::bytes.
 *   1. Lay out the ring, and wait for the kernel before, which writes p.y.  The kernel does not
 *      call ptx_grid_launch_dependents, so the next one begins when all blocks have ended.
 *   2. The producer brings the columns of one unit after the other.
 *   3. Each consumer multiplies and writes one unit after the other.  A unit whose tile of tokens
 *      is at most half full is multiplied with half as many columns of B.
 *   4. A block ends when the cluster's other one does: until then that one arrives at its
 *      barriers. */
template <int MR, int N, bool PACKED, bool DENSE, bool MORE>
__global__ static void __launch_bounds__(BLOCK, 1)
    hopper_kernel(const __grid_constant__ Product p, const __grid_constant__ Maps maps, int parts,
                  int row_tiles, int token_tiles) {
    typedef Shape<MR, N, PACKED, DENSE> S;
    DYNAMIC_SHARED(uint8_t, shared);
    Ring ring = ring_in<S>(shared);
    ptx_grid_wait();
    ptx_cluster_sync();
    const int group = threadIdx.x / GROUP;
    auto units = [&] {
        if (!DENSE) return row_tiles * *p.n_tiles;
        return (row_tiles * token_tiles + CLUSTER - 1) / CLUSTER * CLUSTER;
    };
    if (group == GROUPS) {
        ptx_fewer_registers<BRING_REGISTERS>();
        for (int i = blockIdx.x, n = units(); i < n; i += gridDim.x) {
            const Unit u = unit_at<MR, N, DENSE, MORE>(p, i, row_tiles, token_tiles);
            const bool large = u.tile.count > N / 2;
            if (DENSE) bring_dense<PACKED, S>(p, maps, u, large ? 2 : 1, parts, ring);
            else if (large) bring_experts<N, PACKED, S>(p, u, parts, ring);
            else bring_experts<N / 2, PACKED, S>(p, u, parts, ring);
        }
        ptx_cp_async_commit();
        ptx_cp_async_wait<0>();         /* a thread must not end before its copies have */
    } else {
        float *through = (float *)(ring.empty + S::stages) + group * WRITTEN * LINE_PITCH;
        ptx_more_registers<MULTIPLY_REGISTERS>();
        for (int i = blockIdx.x, n = units(); i < n; i += gridDim.x) {
            const Unit u = unit_at<MR, N, DENSE, MORE>(p, i, row_tiles, token_tiles);
            if (u.tile.count > N / 2) compute_unit<MR, N, PACKED, S>(p, u, parts, ring, through);
            else compute_unit<MR, N / 2, PACKED, S>(p, u, parts, ring, through);
        }
    }
    ptx_cluster_sync();
}

/* ---- the host's side ---- */

typedef void Kernel(const Product, const Maps, int, int, int);
typedef struct {
    int rows, tokens;                   /* of a tile */
    int packed;                         /* for NVFP4; else for BF16 */
    int dense;                          /* else for experts */
    int more;                           /* dense: for several matrices; else for one */
    int bytes;                          /* of dynamic shared memory */
    float cost;                         /* time of a tile; 1: that of the small tile */
    Kernel *kernel;
} Variant;

/* A large tile has twice the products of a small one.  Its cost is about what bench/gpusim predicts
 * for an H200: 1.69 times the time of a small tile of NVFP4, 1.62 times that of BF16.  To tune it,
 * time both tiles with bench/gpu_bench.py kernels on an H100. */
#define VARIANT(mr, n, packed, dense, more, cost) \
    {GROUPS * 64 * mr, n, packed, dense, more, Shape<mr, n, packed, dense>::bytes, cost, \
     hopper_kernel<mr, n, packed, dense, more>}
#define DENSE_VARIANTS(mr, n, packed, cost) \
    VARIANT(mr, n, packed, true, false, cost), VARIANT(mr, n, packed, true, true, cost)
static const Variant variant[] = {
    DENSE_VARIANTS(1, 128, true, 1), DENSE_VARIANTS(2, 128, true, 1.6f),
    DENSE_VARIANTS(1, 128, false, 1), DENSE_VARIANTS(1, 256, false, 1.75f),
    VARIANT(1, 128, true, false, false, 1), VARIANT(2, 128, true, false, false, 1.6f),
    VARIANT(1, 128, false, false, false, 1)};
enum { VARIANTS = sizeof variant / sizeof *variant };

static int multiprocessors;
static decltype(&cuTensorMapEncodeTiled) encode_map;    /* libcuda's */

int hopper_open(Error *err) {
    const int cuda_12 = 12000;          /* the first version that has it */
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cudaError_t e = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
    for (int i = 0; i < VARIANTS && e == cudaSuccess; i++)
        e = cudaFuncSetAttribute((const void *)variant[i].kernel,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, variant[i].bytes);
    if (e == cudaSuccess)
        e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode_map,
                                             cuda_12, cudaEnableDefault, &found);
    if (e != cudaSuccess) return fail(err, "GPU: %s", cudaGetErrorString(e));
    if (found == cudaDriverEntryPointSuccess) return 0;
    return fail(err, "GEMMA4_CUDA: wgmma needs an NVIDIA driver for CUDA 12 or later");
}

int hopper_knows(const Weight &w, const Weight &up) {
    return (w.dtype == DT_BF16 || w.dtype == DT_U8) && (!up.data || up.dtype == w.dtype);
}

/* Makes the map of `rows` rows of row_bytes bytes, one behind the other, in boxes of box_rows rows
 * of box_bytes.  Boxes as wide as wgmma's swizzle get it.  False: the driver refuses. */
static bool make_map(CUtensorMap *map, const void *data, int rows, int row_bytes, int box_rows,
                     int box_bytes) {
    const cuuint64_t size[] = {(cuuint64_t)row_bytes, (cuuint64_t)rows};
    const cuuint64_t pitch[] = {(cuuint64_t)row_bytes};
    const cuuint32_t box[] = {(cuuint32_t)box_bytes, (cuuint32_t)box_rows}, every[] = {1, 1};
    return !encode_map(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)data, size, pitch, box, every,
                       CU_TENSOR_MAP_INTERLEAVE_NONE,
                       box_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* The maps of the dense product p, for a variant.  False: the driver refuses. */
static bool make_maps(Maps *maps, const Product &p, int parts, const Variant &v) {
    const Weight *const matrix[] = {&p.w, p.up.data ? &p.up : &p.more[0], &p.more[1]};
    bool made = make_map(&maps->tokens, p.y, parts * p.n, padded(p.w.cols) * 2, v.tokens / 2, 128);
    for (int m = 0; m < 3 && matrix[m]->data; m++)
        made &= make_map(&maps->rows[m], matrix[m]->data, matrix[m]->rows, row_bytes(p.w),
                         v.rows / 2, row_pitch(v.packed));
    return made;
}

/* Declines a product whose units are for less than half of the multiprocessors: nvfp4.cu shares
 * such a product's columns between blocks.  (bench/gpusim predicts for the router of 2048 tokens,
 * which has 16 units, 58 us here and 13 there.)  A product of experts is never declined, as the
 * tiles have been cut for this file already: see hopper_experts in launch.cu. */
int hopper_product(const Product &p, const Weight &w, const Weight &up, int parts, int tiles,
                   cudaStream_t stream) {
    if (!hopper_knows(w, up) || p.softcap > 0) return 0;
    for (const Weight &m : p.more)
        if (m.data && m.dtype != w.dtype) return 0;
    if ((size_t)p.n * padded(w.cols) * 2 > UINT32_MAX) return 0;
    const Variant *best = NULL;
    float least = 0;
    int units = 0, row_tiles = 0, token_tiles = 0;
    for (const Variant *v = variant; v < variant + VARIANTS; v++) {
        if (v->packed != (w.dtype == DT_U8) || v->dense != !p.tile) continue;
        if (v->more != (p.more[0].data != NULL)) continue;
        int rows = up.data ? v->rows / 2 : v->rows, n_rows = (w.rows + rows - 1) / rows;
        for (const Weight &m : p.more) n_rows += m.data ? (m.rows + rows - 1) / rows : 0;
        int n_tokens = p.tile ? tiles : (p.n + v->tokens - 1) / v->tokens;
        int n = n_rows * n_tokens;
        float cost = v->cost * ((n + multiprocessors - 1) / multiprocessors);
        if (best && cost >= least) continue;
        best = v;
        least = cost;
        units = n;
        row_tiles = n_rows;
        token_tiles = n_tokens;
    }
    if (!p.tile && 2 * units < multiprocessors) return 0;
    Maps maps = {};
    if (!p.tile && !make_maps(&maps, p, parts, *best)) return 0;
    const int cluster = p.tile ? 1 : CLUSTER;
    const int blocks = units < multiprocessors ? units + cluster - 1 : multiprocessors;
    GPU_LAUNCH_CLUSTERS(cluster, best->kernel, dim3(blocks / cluster * cluster), dim3(BLOCK),
                        best->bytes, stream, p, maps, parts, row_tiles, token_tiles);
    return 1;
}
