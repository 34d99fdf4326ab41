/* nvfp4.cu - BF16, NVFP4 and F32 matrices times several tokens or many, on the GPU, and the numbers of those formats.
 *
 * All products are mma.m16n8k16 on tensor cores, BF16 in and float32 out.  The rows of A are tokens, the columns of B are eight
 * rows of the weights.  A sum does not care about its order, so neither do the k of an mma: lane t of a row's four takes a
 * piece of neighbouring columns, the same of the weights and of the token, instead of those that the manual names.  All
 * reads are then 16 neighbouring bytes, and nothing has to be shuffled or stored in another order than the file's.
 *
 * Numbers.  BF16 weights go in as they are.  NVFP4 becomes BF16 in registers, exactly: E2M1 times E4M3 has six bits of
 * mantissa; the matrix's own scale comes last, in float32.  F32 weights are three BF16 that add up to them.  So are the tokens'
 * float32 numbers, where they are to be exact; one token alone has 16 rows of A for itself, and three of them make it exact
 * at no cost.  Many tokens are rounded to BF16 once, unless exact numbers are asked for.
 *
 * One token is the subject of stream.cu.  Up to 16 (drafts, short prompts): a warp takes 64 bytes of each of eight rows at a time, the
 * warps of a block share the columns of the same eight rows, and a lane has PIECES more pieces under way while it multiplies.
 * Many tokens (prefill): tiles of tokens and rows in shared memory, filled by cp.async while the last ones are multiplied. */
#include "product.h"

/* What differs from step to step: the GPU fetches it with the tokens' ids behind it, and the
 * kernels read it there. */
typedef struct {
    int64_t pos;                        /* of the first token */
    int k;                              /* of the largest logits, that a recorded step finds */
    int n_drafts, draft[MAX_DRAFTS];    /* that a drafter has made since */
} Step;

/* RoPE's cosines and sines for the positions of a step, [tokens][half] of each kind of layer: sliding, global. */
typedef struct {
    const float *inv_freq[2];
    float2 *turn[2];
    int half[2];                        /* head_dim / 2 */
    const int64_t *pos;                 /* of the first token */
} Turns;

/* x[t] = a row of the embedding * scale, and the turns of token t's position.  grid tokens. */
__global__ static void embed_kernel(Weight table, const int *ids, float *x, float scale, const __grid_constant__ Turns turns) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    const int t = blockIdx.x;
    for (int i = threadIdx.x; i < table.cols; i += blockDim.x) x[(size_t)t * table.cols + i] = number_at(table, ids[t], i) * scale;
    const float at = (float)(*turns.pos + t);
    for (int kind = 0; kind < 2; kind++)
        for (int i = threadIdx.x; i < turns.half[kind]; i += blockDim.x) {
            float angle = at * turns.inv_freq[kind][i];
            turns.turn[kind][(size_t)t * turns.half[kind] + i] = make_float2(cosf(angle), sinf(angle));
        }
}

/* ---- the residual stream between two products ---- */

/* x' = (x + RMSNorm(h, norm)) * scalar.  h = a, or with norm_a h = RMSNorm(a, norm_a) + RMSNorm(b, norm_b): the end of attention
 * (a = o_proj's output) and of a layer (a = the dense MLP's, b = the experts').  With `place` b is still apart, a row for each
 * chosen expert: b = sum over k of weight[t][k] * b[place[t][k]].  All [tokens][hidden]; a NULL: x' = x. */
typedef struct {
    const float *x, *a, *b, *norm_a, *norm_b, *norm;
    const float *weight;
    const int *place;
    int top_k;
    float scalar, eps;
    float *to;                          /* x' goes here; x itself only where one block alone works on a token */
} Residual;

/* Token t's x' into shared memory: x[0..hidden).  Ends with a barrier.  red: 32 floats of shared memory. */
__device__ static void settle(const Residual &r, int t, int hidden, float *x, float *red) {
    const float *from = r.x + (size_t)t * hidden, *a = r.a + (size_t)t * hidden, *b = r.b + (size_t)t * hidden;
    if (r.a) {
        float sum_a = 0, sum_b = 0;
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
            float v = 0;
            if (r.norm_a && r.place)
                for (int k = 0; k < r.top_k; k++) v += r.weight[t * r.top_k + k] * r.b[(size_t)r.place[t * r.top_k + k] * hidden + i];
            else if (r.norm_a) v = b[i];
            sum_a += a[i] * a[i];
            sum_b += v * v;
            x[i] = v;                   /* a thread keeps to its own i: no barrier needed between the passes */
        }
        if (r.norm_a) {
            float scale_a = 1 / sqrtf(block_sum(sum_a, red) / hidden + r.eps), scale_b = 1 / sqrtf(block_sum(sum_b, red) / hidden + r.eps);
            sum_a = 0;
            for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
                x[i] = a[i] * scale_a * r.norm_a[i] + x[i] * scale_b * r.norm_b[i];
                sum_a += x[i] * x[i];
            }
        } else
            for (int i = threadIdx.x; i < hidden; i += blockDim.x) x[i] = a[i];
        float scale = 1 / sqrtf(block_sum(sum_a, red) / hidden + r.eps);
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) x[i] = (from[i] + x[i] * scale * r.norm[i]) * r.scalar;
    } else
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) x[i] = from[i];
    __syncthreads();
}

/* ---- up to 16 tokens: rows of weights stream by ---- */

#define PIECES 4

/* 64 bytes of each of eight rows: rows row .. row + 7 of w, bytes 64 * group and on; their columns' numbers begin at y. */
typedef struct {
    const Weight *w;                    /* NULL: nothing */
    int row, group, y;
} Source;

/* A lane's share of it: 16 bytes of row lane / 4, and the two block scales of NVFP4. */
typedef struct {
    uint4 w;
    uint32_t scale;
} Piece;

__device__ static inline Piece load_piece(const Source &s) {
    Piece p = {};
    if (!s.w) return p;
    const Weight &w = *s.w;
    int lane = threadIdx.x % 32, row = s.row + lane / 4, bytes = row_bytes(w), at = 64 * s.group + 16 * (lane % 4);
    if (row >= w.rows) row = w.rows - 1;        /* its sum is thrown away */
    if (at >= bytes) return p;
    p.w = ptx_load_once16(w.data + (size_t)row * bytes + at);
    if (w.dtype == DT_U8) p.scale = *(const uint16_t *)(w.block_scale + ((size_t)row * bytes + at) / 8);
    return p;
}

/* Eight columns of A, for rows lane / 4 and eight more. */
typedef struct {
    uint4 low, high;
} Rows;

/* acc += piece * y: two accumulators, as a tensor core needs a while.  load(c): columns c .. c + 7 of y. */
template <class Load> __device__ static inline void multiply_piece(float acc[2][4], const Source &s, const Piece &p, Load load) {
    int t = threadIdx.x % 4;
    if (!s.w || 64 * s.group >= row_bytes(*s.w)) return;
    bool inside = 64 * s.group + 16 * t < row_bytes(*s.w);
    const uint32_t word[4] = {p.w.x, p.w.y, p.w.z, p.w.w};
    if (s.w->dtype == DT_BF16) {
        Rows n = load(s.y + 32 * s.group + 8 * t);
        const uint32_t a[2][4] = {{n.low.x, n.high.x, n.low.y, n.high.y}, {n.low.z, n.high.z, n.low.w, n.high.w}};
        ptx_mma_bf16_16816(acc[0], a[0], word);
        ptx_mma_bf16_16816(acc[1], a[1], word + 2);
    } else if (s.w->dtype == DT_U8) {
        uint32_t scales = block_scales(p.scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            Rows n = inside ? load(s.y + 128 * s.group + 32 * t + 8 * i) : Rows{};
            const uint32_t a[2][4] = {{n.low.x, n.high.x, n.low.y, n.high.y}, {n.low.z, n.high.z, n.low.w, n.high.w}};
            uint32_t b[4];
            scaled_e2m1(word[i], __byte_perm(scales, 0, i < 2 ? 0x1010 : 0x3232), b);
            ptx_mma_bf16_16816(acc[0], a[0], b);
            ptx_mma_bf16_16816(acc[1], a[1], b + 2);
        }
    } else {
        Rows n = load((s.y + 16 * s.group + 4 * t) / 8 * 8);
        const uint32_t a[4] = {t % 2 ? n.low.z : n.low.x, t % 2 ? n.high.z : n.high.x, t % 2 ? n.low.w : n.low.y, t % 2 ? n.high.w : n.high.y};
        float f[4];
        for (int i = 0; i < 4; i++) f[i] = __uint_as_float(word[i]);
        for (int i = 0; i < 3; i++) {
            uint32_t b[2];
            b[0] = take_bf16(f[0], f[1]);
            b[1] = take_bf16(f[2], f[3]);
            ptx_mma_bf16_16816(acc[i % 2], a, b);
        }
    }
}

/* What most kernels stream: rows of a matrix, whose columns the warps of the block share. */
__device__ static inline int steps_of(const Weight &w) { return (row_bytes(w) + 64 * WARPS - 1) / (64 * WARPS); }
__device__ static inline Source source_of(const Weight &w, int row, int step, int y) {
    int group = step * WARPS + threadIdx.x / 32;
    return {64 * group < row_bytes(w) ? &w : NULL, row, group, y};
}

/* h = RMSNorm(x, norm) of one token.  One block; shared: floats [hidden]. */
__global__ static void hidden_kernel(const __grid_constant__ Residual r, int hidden, const float *norm, float *h) {
    DYNAMIC_SHARED(float, x);
    SHARED(float, red, [32]);
    ptx_grid_wait();
    settle(r, 0, hidden, x, red);
    float scale = rms_scale(x, hidden, r.eps, red);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) h[i] = x[i] * scale * norm[i];
}

/* ---- many tokens: tiles in shared memory ---- */

/* Where a norm of the residual stream goes: BF16 [parts][n][padded(hidden)]; to NULL: nowhere. */
typedef struct {
    const float *norm;
    float factor;
    int parts;
    uint16_t *to;
} NormTo;

/* One block a token: the residual stream is settled, and up to three norms of it are written.  grid tokens; shared: floats [hidden]. */
__global__ static void norm_kernel(const __grid_constant__ Residual r, int hidden, NormTo a, NormTo b, NormTo c) {
    DYNAMIC_SHARED(float, x);
    SHARED(float, red, [32]);
    ptx_grid_wait();
    int t = blockIdx.x;
    settle(r, t, hidden, x, red);
    if (r.to)
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) r.to[(size_t)t * hidden + i] = x[i];
    float scale = rms_scale(x, hidden, r.eps, red);
    int width = padded(hidden);
    auto write = [&](const NormTo &to) {
        for (int i = threadIdx.x; to.to && i < width; i += blockDim.x)
            put_parts(to.to + (size_t)t * width + i, (size_t)gridDim.x * width, to.parts, i < hidden ? x[i] * scale * to.norm[i] * to.factor : 0);
    };
    write(a);
    write(b);
    write(c);
}

/* float32 [n][cols], runs of `run` numbers `pitch` apart -> BF16 [parts][n][padded(cols)].  grid tokens. */
__global__ static void parts_kernel(const float *x, int cols, int run, int pitch, int parts, uint16_t *to) {
    ptx_grid_wait();
    size_t t = blockIdx.x, width = padded(cols);
    for (int i = threadIdx.x; i < (int)width; i += blockDim.x)
        put_parts(to + t * width + i, gridDim.x * width, parts, i < cols ? x[(t * (cols / run) + i / run) * pitch + i % run] : 0);
}

/* The product of up to 16 tokens at a time: rows stream by as for one token, and a warp's mma multiplies its eight rows with all
 * tokens, whose numbers come from the caches.  A block takes eight rows (of both matrices that are joined by gelu) and a tile of 16
 * tokens after the other.  PARTS: BF16 numbers that make one of y. */
template <int PARTS> __global__ static void __launch_bounds__(THREADS, 1) thin_kernel(const __grid_constant__ Product p) {
    SHARED(float, red, [2][WARPS][16][9]);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    const int lane = threadIdx.x % 32, g = lane / 4, warp = threadIdx.x / 32;
    const int rows = p.expert_w ? p.expert_w->rows : p.w.rows, row_tiles = tiles_of(rows), n_tiles = p.tile ? *p.n_tiles : (p.n + 15) / 16;
    const int matrices = p.expert_up || p.up.data ? 2 : 1;
    for (int unit = blockIdx.x; unit < n_tiles * row_tiles; unit += gridDim.x) {
        const int row = unit % row_tiles * 8, first = unit / row_tiles * 16;
        const Tile tile = p.tile ? p.tile[unit / row_tiles] : Tile{0, first, p.n - first < 16 ? p.n - first : 16};
        const Weight &w = p.expert_w ? p.expert_w[tile.expert] : p.w, &up = p.expert_up ? p.expert_up[tile.expert] : p.up;
        const size_t width = padded(w.cols);
        const uint16_t *from[2];        /* y of tokens g and g + 8, NULL: none */
        for (int i = 0; i < 2; i++) {
            int place = tile.first + g + 8 * i;
            from[i] = g + 8 * i < tile.count ? p.y + (p.list ? p.list[place] / p.top_k : place) * width : NULL;
        }
        auto find = [&](int step) {
            const Weight &m = step % matrices ? up : w;
            return source_of(m, row, step / matrices, 0);
        };
        const int n = steps_of(w) > (matrices > 1 ? steps_of(up) : 0) ? steps_of(w) * matrices : steps_of(up) * matrices;
        float acc[2][2][4] = {};
        Piece piece[PIECES];
#pragma unroll
        for (int k = 0; k < PIECES; k++) piece[k] = load_piece(k < n ? find(k) : Source{});
        for (int i = 0; i < n; i += PIECES) {
            Piece next[PIECES];
#pragma unroll
            for (int k = 0; k < PIECES; k++) next[k] = load_piece(i + PIECES + k < n ? find(i + PIECES + k) : Source{});
#pragma unroll
            for (int k = 0; k < PIECES; k++)
#pragma unroll 1
                for (int part = PARTS - 1; part >= 0; part--) {
                    auto load = [&](int c) {
                        size_t at = (size_t)part * p.n * width + c;
                        return Rows{from[0] ? *(const uint4 *)(from[0] + at) : make_uint4(0, 0, 0, 0),
                                    from[1] ? *(const uint4 *)(from[1] + at) : make_uint4(0, 0, 0, 0)};
                    };
                    if (i + k >= n) continue;
                    if (k % matrices) multiply_piece(acc[1], find(i + k), piece[k], load);
                    else multiply_piece(acc[0], find(i + k), piece[k], load);
                }
#pragma unroll
            for (int k = 0; k < PIECES; k++) piece[k] = next[k];
        }
        for (int m = 0; m < 2; m++)
            for (int k = 0; k < 4; k++) red[m][warp][g + k / 2 * 8][lane % 4 * 2 + k % 2] = acc[m][0][k] + acc[m][1][k];
        __syncthreads();
        const int i = threadIdx.x / 8, r = threadIdx.x % 8;
        if (i < tile.count && row + r < rows) {
            float sum[2] = {0, 0};
            for (int v = 0; v < WARPS; v++) sum[0] += red[0][v][i][r], sum[1] += red[1][v][i][r];
            sum[0] *= factor(w);
            size_t place = tile.first + i;
            if (matrices > 1)
                put_parts(p.act + place * padded(rows) + row + r, (size_t)p.n_act * padded(rows), PARTS, gelu_times(sum[0], sum[1] * factor(up)));
            else p.out[place * p.pitch + row + r] = soft_cap(sum[0], p.softcap);
        }
        __syncthreads();                /* before red is written again */
    }
}

#define GEMM_ROWS 128                   /* of the weights, in a tile */
#define GEMM_SHARED (96 * 1024)         /* as much as every GPU since sm_80 has for a block */

/* Bytes of 64 columns of a row in shared memory: BF16 and F32 rows 16 apart from a multiple of 128, so that eight lanes
 * read from different banks. */
__host__ __device__ static inline int tile_row(DType t) { return t == DT_U8 ? 32 : t == DT_BF16 ? 144 : 272; }
__host__ __device__ static inline int tile_row(const Weight &w, const Weight &up) {
    return up.data && tile_row(up.dtype) > tile_row(w.dtype) ? tile_row(up.dtype) : tile_row(w.dtype);
}
__host__ __device__ static inline int stage_bytes(int mt, int parts, int row) { return parts * 32 * mt * 144 + GEMM_ROWS * (row + 4); }

/* Part `part` (0; 1, 2 of F32) of columns 16 t + 8 half … + 7 of a row in the tile, as BF16. */
__device__ static inline void load_b(uint32_t b[4], const uint8_t *row, const uint8_t *scales, DType dtype, int half, int part) {
    int t = threadIdx.x % 4;
    if (dtype == DT_F32) {
        const float4 *f = (const float4 *)(row + 64 * t + 32 * half);
        for (int i = 0; i < 2; i++) {
            float4 v = f[i];
            for (int p = 0; p <= part; p++) b[2 * i] = take_bf16(v.x, v.y), b[2 * i + 1] = take_bf16(v.z, v.w);
        }
    } else if (part > 0) b[0] = b[1] = b[2] = b[3] = 0;
    else if (dtype == DT_BF16) {
        uint4 v = *(const uint4 *)(row + 32 * t + 16 * half);
        b[0] = v.x, b[1] = v.y, b[2] = v.z, b[3] = v.w;
    } else {
        uint32_t scale = block_scales(scales[t]);
        scaled_e2m1(*(const uint32_t *)(row + 8 * t + 4 * half), __byte_perm(scale, 0, 0x1010), b);
    }
}

/* The product of a tile of 32 * MT tokens and 128 rows (64 of each of two matrices that are joined by gelu).  Eight warps: two
 * halves of the tokens by four quarters of the rows.  PARTS: BF16 numbers that make one of y.  stages: tiles of 64 columns in
 * shared memory, all but one of them on their way.  grid (tiles of rows, tiles of tokens). */
template <int MT, int PARTS>
__global__ static void __launch_bounds__(THREADS, 1) gemm_kernel(const __grid_constant__ Product p, int stages) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(int, row_of, [32 * MT]);
    ptx_grid_wait();
    Tile tile = {0, (int)blockIdx.y * 32 * MT, p.n - (int)blockIdx.y * 32 * MT};
    if (p.tile) {
        if ((int)blockIdx.y >= *p.n_tiles) return;
        tile = p.tile[blockIdx.y];
    } else if (tile.count > 32 * MT) tile.count = 32 * MT;
    const Weight w = p.expert_w ? p.expert_w[tile.expert] : p.w, up = p.expert_up ? p.expert_up[tile.expert] : p.up;
    const int gated = up.data != NULL, pitch = tile_row(w, up), size = stage_bytes(MT, PARTS, pitch), width = padded(w.cols), n_steps = width / 64;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, token_half = threadIdx.x / 32 % 2, quarter = threadIdx.x / 64;
    for (int i = threadIdx.x; i < 32 * MT; i += THREADS) {
        int place = tile.first + (i < tile.count ? i : tile.count - 1);         /* the rest is computed and thrown away */
        row_of[i] = p.list ? p.list[place] / p.top_k : place;
    }
    __syncthreads();

    /* Row `line` of the tile of weights is one of w, or in turns eight of w and eight of up.  A thread brings half of its 64 columns. */
    const int line = threadIdx.x / 2, second = threadIdx.x % 2, of_up = gated && line / 8 % 2;
    const int row0 = blockIdx.x * (gated ? GEMM_ROWS / 2 : GEMM_ROWS), rows = of_up ? up.rows : w.rows;
    const int wanted = row0 + (gated ? line / 16 * 8 + line % 8 : line);
    const DType dtype = of_up ? up.dtype : w.dtype;
    const int bytes = of_up ? row_bytes(up) : row_bytes(w), half_bytes = dtype == DT_U8 ? 16 : dtype == DT_BF16 ? 64 : 128;
    const size_t from = (size_t)(wanted < rows ? wanted : rows - 1) * bytes;
    const uint8_t *data = (of_up ? up.data : w.data) + from + second * half_bytes, *block_scale = (of_up ? up.block_scale : w.block_scale) + from / 8;
    auto fill = [&](int step) {
        uint8_t *a = shared + step % stages * size, *b = a + PARTS * 32 * MT * 144 + line * pitch + second * half_bytes;
#pragma unroll
        for (int k = 0; k < PARTS * MT; k++) {
            int chunk = k * THREADS + threadIdx.x, row = chunk / 8 % (32 * MT), part = chunk / 8 / (32 * MT);
            ptx_cp_async16(a + chunk / 8 * 144 + chunk % 8 * 16, p.y + ((size_t)part * p.n + row_of[row]) * width + step * 64 + chunk % 8 * 8);
        }
        for (int k = 0; k < half_bytes; k += 16) ptx_cp_async16(b + k, data + (size_t)2 * step * half_bytes + k);
        if (dtype == DT_U8 && second) ptx_cp_async4(a + PARTS * 32 * MT * 144 + GEMM_ROWS * pitch + line * 4, block_scale + step * 4);
    };

    float acc[MT][4][4] = {};
    for (int s = 0; s < stages - 1; s++) {
        if (s < n_steps) fill(s);
        ptx_cp_async_commit();
    }
    for (int step = 0; step < n_steps; step++) {
        if (stages == 2) ptx_cp_async_wait<0>();
        else if (stages == 3) ptx_cp_async_wait<1>();
        else ptx_cp_async_wait<2>();
        __syncthreads();                /* this step's tiles are there, and nobody reads the last one's any more */
        if (step + stages - 1 < n_steps) fill(step + stages - 1);
        ptx_cp_async_commit();
        const uint8_t *a = shared + step % stages * size, *b = a + PARTS * 32 * MT * 144, *scales = b + GEMM_ROWS * pitch;
#pragma unroll
        for (int half = 0; half < 2; half++)
            for (int w_part = 0; w_part < (pitch > 144 ? 3 : 1); w_part++) {
                uint32_t fb[4][4];
#pragma unroll
                for (int nt = 0; nt < 4; nt++) {
                    int row = quarter * 32 + nt * 8 + g;
                    load_b(fb[nt], b + row * pitch, scales + row * 4, gated && nt % 2 ? up.dtype : w.dtype, half, w_part);
                }
#pragma unroll
                for (int part = PARTS - 1; part >= 0; part--)
#pragma unroll
                    for (int mt = 0; mt < MT; mt++) {
                        const uint8_t *row = a + (part * 32 * MT + token_half * 16 * MT + mt * 16 + g) * 144 + 32 * t + 16 * half;
                        uint4 low = *(const uint4 *)row, high = *(const uint4 *)(row + 8 * 144);
                        const uint32_t fa[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
                        for (int nt = 0; nt < 4; nt++) {
                            ptx_mma_bf16_16816(acc[mt][nt], fa[0], fb[nt]);
                            ptx_mma_bf16_16816(acc[mt][nt], fa[1], fb[nt] + 2);
                        }
                    }
            }
    }

    /* acc[mt][nt][2 i + k]: token 16 mt + 8 i + g, row 8 nt + 2 t + k. */
    const float by = factor(w), by_up = factor(up);
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int place = token_half * 16 * MT + mt * 16 + i * 8 + g;
            if (place >= tile.count) continue;
            place += tile.first;
#pragma unroll
            for (int nt = 0; nt < 4; nt++)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    float v = acc[mt][nt][2 * i + k] * by;
                    if (gated) {
                        int row = row0 + (quarter * 2 + nt / 2) * 8 + 2 * t + k;
                        if (nt % 2 || row >= w.rows) continue;
                        v = gelu_times(v, acc[mt][nt | 1][2 * i + k] * by_up);
                        put_parts(p.act + (size_t)place * padded(w.rows) + row, (size_t)p.n_act * padded(w.rows), PARTS, v);
                    } else {
                        int row = row0 + quarter * 32 + nt * 8 + 2 * t + k;
                        if (row < w.rows) p.out[(size_t)place * p.pitch + row] = soft_cap(v, p.softcap);
                    }
                }
        }
}
