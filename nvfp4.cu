/* nvfp4.cu - BF16, NVFP4 and F32 matrices times several tokens or many, on the GPU, and the numbers of those formats.
 *
 * All products are mma.m16n8k16 on tensor cores, BF16 in and float32 out.  The rows of A are rows of the weights, the columns of B are
 * tokens.  A sum does not care about its order, so neither do the k of an mma: of NVFP4, lane t of a row's four takes the numbers of a
 * whole block scale, and the same columns of the token, instead of those that the manual names.  All reads are then 16
 * neighbouring bytes, and nothing has to be shuffled or stored in another order than the file's.
 *
 * Numbers.  BF16 weights go in as they are.  NVFP4 becomes BF16 in registers, exactly: E2M1 times E4M3 has six bits of
 * mantissa; the matrix's own scale comes last, in float32.  F32 weights are three BF16 that add up to them.  So are the tokens'
 * float32 numbers, where they are to be exact; one token alone has 16 rows of A for itself, and three of them make it exact
 * at no cost.  Many tokens are rounded to BF16 once, unless exact numbers are asked for.
 *
 * One token is the subject of stream.cu.  Several tokens are multiplied in tiles of tokens and rows in shared memory, which cp.async
 * fills while the ones before are multiplied. */
#include "product.h"

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

/* float32 [n][cols], runs of `run` numbers `pitch` apart, as BF16 [parts][n][padded(cols)]; a thread takes four columns.  grid (tokens,
 * padded(cols) by 4 * THREADS). */
__global__ static void parts_kernel(const float *x, int cols, int run, int pitch, int parts, uint16_t *to) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    const int t = blockIdx.x, width = padded(cols), i = 4 * (blockIdx.y * THREADS + threadIdx.x);
    if (i >= width) return;
    const float *token = x + (size_t)t * (cols / run) * pitch;
    auto column = [&](int c) { return c < cols ? token[c / run * pitch + c % run] : 0; };
    float4 v;
    if (cols % 4 || run % 4 || pitch % 4) v = make_float4(column(i), column(i + 1), column(i + 2), column(i + 3));
    else v = i < cols ? *(const float4 *)(token + i / run * pitch + i % run) : make_float4(0, 0, 0, 0);
    for (int p = 0; p < parts; p++) *(uint2 *)(to + ((size_t)p * gridDim.x + t) * width + i) = take4(v);
}

#define GEMM_ROWS 128                   /* of the weights, in a tile */
#define GEMM_SHARED (96 * 1024)         /* as much as every GPU since sm_80 has for a block */

/* What the rows of a tile are in shared memory.  ANY: the numbers are converted on their way there, each to three BF16 that add up to
 * it: for formats that are seldom met (float32), and for matrices of different formats that are joined. */
typedef enum { TILE_BF16, TILE_NVFP4, TILE_ANY } TileFormat;

static TileFormat tile_format(DType t) { return t == DT_BF16 ? TILE_BF16 : t == DT_U8 ? TILE_NVFP4 : TILE_ANY; }

/* Bytes of a stage: 64 columns of each of 32 * mt tokens, `parts` times, and of the weights' rows; NVFP4's block scales last. */
__host__ __device__ static constexpr int stage_bytes(int format, int mt, int parts) {
    return parts * 32 * mt * 128 + GEMM_ROWS * (format == TILE_BF16 ? 128 : format == TILE_NVFP4 ? 32 + 4 : 3 * 128);
}

/* Stages of a block: as many as fit, at most 4 (more gain nothing in the simulator).  All but one are on their way while that one is
 * multiplied.  One alone (ANY) is filled and multiplied in turns. */
__host__ __device__ static constexpr int stages_of(int format, int mt, int parts) {
    return format == TILE_ANY ? 1 : GEMM_SHARED / stage_bytes(format, mt, parts) < 4 ? GEMM_SHARED / stage_bytes(format, mt, parts) : 4;
}

/* 16-byte chunk `chunk` of a line of 128 bytes in shared memory: those of eight lines that lie in the same place of their lines, which
 * eight lanes read at once, are in different banks. */
__device__ static inline int chunk_at(int line, int chunk) { return line * 128 + (chunk ^ line % 8) * 16; }

/* acc becomes the sum of those of the gridDim.z blocks that share the columns of this block's tile, in their order, in the block that
 * comes last; returns whether this one does.  part [gridDim.z][N][THREADS] and ticket are the tile's own; the ticket is zero before and
 * after. */
template <int N> __device__ static bool join_columns(float acc[N][4], float4 *part, unsigned *ticket) {
    SHARED(unsigned, arrived);
    const size_t own = (size_t)blockIdx.z * N * THREADS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < N; i++) part[own + i * THREADS] = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(ticket, 1u);
    __syncthreads();
    if (arrived != gridDim.z - 1) return false;
    __threadfence();
    if (threadIdx.x == 0) *ticket = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float *v = acc[i];
        v[0] = v[1] = v[2] = v[3] = 0;
        for (unsigned z = 0; z < gridDim.z; z++) {
            float4 x = __ldcg(&part[((size_t)z * N + i) * THREADS + threadIdx.x]);
            v[0] += x.x, v[1] += x.y, v[2] += x.z, v[3] += x.w;
        }
    }
    return true;
}

/* The product of a tile of 32 * MT tokens and 128 rows (64 of each of two matrices that are joined by gelu: eight of one, eight of the
 * other in turns, which meet in a thread's accumulators).  A warp takes 16 rows of NVFP4 and all tokens, so that a number is
 * converted once; else 32 rows and every second eight of the tokens, which takes fewer reads of shared memory.  PARTS: BF16
 * numbers that make one of y.  Where there are few tiles, gridDim.z blocks share the columns of each.  grid (tiles of rows, tiles of
 * tokens, shares of the columns); shared: stages_of times stage_bytes. */
template <int FORMAT, int MT, int PARTS>
__global__ static void __launch_bounds__(THREADS, MT == 1 && FORMAT != TILE_ANY ? 2 : 1) gemm_kernel(const __grid_constant__ Product p) {
    constexpr int TOKENS = 32 * MT, STAGES = stages_of(FORMAT, MT, PARTS), STAGE = stage_bytes(FORMAT, MT, PARTS);
    constexpr int Y_BYTES = PARTS * TOKENS * 128, W_COPIES = FORMAT == TILE_BF16 ? 4 : 1, W_PARTS = FORMAT == TILE_ANY ? 3 : 1;
    constexpr int ROW_TILES = FORMAT == TILE_NVFP4 ? 1 : 2, GROUPS = ROW_TILES, EIGHTS = 4 * MT / GROUPS;        /* of a warp; 8 tokens each */
    DYNAMIC_SHARED(uint8_t, shared);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    const int warp_line = warp % (WARPS / GROUPS) * 16 * ROW_TILES, group = warp / (WARPS / GROUPS);

    /* Which tokens and which rows.  The tiles of experts are there when the kernel before has ended. */
    if (p.tile) {
        ptx_grid_wait();
        if ((int)blockIdx.y >= *p.n_tiles) return;
    }
    const int y_begin = blockIdx.y * TOKENS;
    const Tile tile = p.tile ? p.tile[blockIdx.y] : Tile{0, y_begin, min(p.n - y_begin, TOKENS)};
    const Weight up = p.expert_up ? p.expert_up[tile.expert] : p.up;
    Weight w = p.expert_w ? p.expert_w[tile.expert] : p.w;
    const bool gated = up.data != NULL;
    int row0 = blockIdx.x * (gated ? GEMM_ROWS / 2 : GEMM_ROWS), out_column = 0;    /* in w; in a row of `out` */
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int tiled = (w.rows + GEMM_ROWS - 1) / GEMM_ROWS * GEMM_ROWS;
        if (!p.more[i].data || row0 < tiled) break;
        row0 -= tiled;
        out_column += w.rows;
        w = p.more[i];
    }
    const int width = padded(w.cols), begin = blockIdx.z * p.steps, end = min(begin + p.steps, width / 64);

    /* What a thread copies of a step's rows: of BF16 chunk threadIdx.x % 8 of four lines, of NVFP4 half a line or its scales, too. */
    const int line = FORMAT == TILE_BF16 ? threadIdx.x / 8 : threadIdx.x / 2, of_up = gated && line / 8 % 2;
    const uint8_t *data = of_up ? up.data : w.data, *block_scale = of_up ? up.block_scale : w.block_scale;
    auto row_of = [&](int at) { return min(row0 + (gated ? at / 16 * 8 + at % 8 : at), w.rows - 1); };
    const uint8_t *from_w[W_COPIES], *from_scale = NULL;
    const int to = chunk_at(threadIdx.x / 8, threadIdx.x % 8), bytes = width / 64 * (FORMAT == TILE_BF16 ? 128 : 32);
#pragma unroll
    for (int k = 0; k < W_COPIES; k++)
        from_w[k] = data + (size_t)row_of(line + 32 * k) * bytes + (FORMAT == TILE_BF16 ? threadIdx.x % 8 : threadIdx.x % 2) * 16;
    if (FORMAT == TILE_NVFP4) from_scale = block_scale + (size_t)row_of(line) * (bytes / 8);
    auto fill_w = [&](int step, uint8_t *into) {
        uint8_t *b = into + Y_BYTES;
        if constexpr (FORMAT == TILE_BF16) {
#pragma unroll
            for (int k = 0; k < W_COPIES; k++) ptx_cp_async16(b + to + k * 32 * 128, from_w[k] + (size_t)step * 128);
        } else if constexpr (FORMAT == TILE_NVFP4) {
            ptx_cp_async16(b + threadIdx.x * 16, from_w[0] + (size_t)step * 32);
            if (threadIdx.x % 2) ptx_cp_async4(b + GEMM_ROWS * 32 + line * 4, from_scale + (size_t)step * 4);
        } else {
            const int row = row_of(line), column = step * 64;
            for (int i = 0, c = threadIdx.x % 2 * 32; i < 16; i++, c += 2) {
                float low = of_up ? number_at(up, row, column + c) : number_at(w, row, column + c);
                float high = of_up ? number_at(up, row, column + c + 1) : number_at(w, row, column + c + 1);
                for (int part = 0; part < W_PARTS; part++)
                    *(uint32_t *)(b + part * GEMM_ROWS * 128 + chunk_at(line, c / 8) + c % 8 * 2) = take_bf16(low, high);
            }
        }
    };
    uint8_t *stage = shared, *next = shared + (STAGES - 1) * STAGE;
    auto stage_after = [&](uint8_t *at) { return at == shared + (STAGES - 1) * STAGE ? shared : at + STAGE; };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
        if (begin + s < end) fill_w(begin + s, shared + s * STAGE);
    if (!p.tile) ptx_grid_wait();
    ptx_grid_launch_dependents();

    /* And of y: chunk threadIdx.x % 8 of every 32nd token.  What is missing to a multiple of the tokens that are multiplied at once are
     * copies of the last one, whose results are thrown away. */
    const uint16_t *from_y[MT];
    const int multiplied = (tile.count + 16 * GROUPS - 1) / (16 * GROUPS) * 16 * GROUPS;
#pragma unroll
    for (int k = 0; k < MT; k++) {
        int place = tile.first + min((int)threadIdx.x / 8 + 32 * k, tile.count - 1);
        from_y[k] = p.y + (size_t)(p.list ? p.list[place] / p.top_k : place) * width + threadIdx.x % 8 * 8;
    }
    auto fill_y = [&](int step, uint8_t *into) {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int k = 0; k < MT; k++)
                if ((int)threadIdx.x / 8 + 32 * k < multiplied)
                    ptx_cp_async16(into + (part * TOKENS + 32 * k) * 128 + to, from_y[k] + (size_t)part * p.n * width + step * 64);
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (begin + s < end) fill_y(begin + s, shared + s * STAGE);
        ptx_cp_async_commit();
    }

    float acc[ROW_TILES][EIGHTS][4] = {};
    for (int step = begin; step < end; step++) {
        if (STAGES > 1) {
            ptx_cp_async_wait<STAGES - 2>();
            __syncthreads();            /* this step's tiles are there, and nobody reads the last one's any more */
            if (step + STAGES - 1 < end) {
                fill_w(step + STAGES - 1, next);
                fill_y(step + STAGES - 1, next);
            }
            ptx_cp_async_commit();
            next = stage_after(next);
        } else {
            __syncthreads();
            fill_y(step, stage);
            fill_w(step, stage);
            ptx_cp_async_commit();
            ptx_cp_async_wait<0>();
            __syncthreads();
        }
        const uint8_t *y = stage + group * 8 * 128, *rows = stage + Y_BYTES;
        stage = stage_after(stage);
        uint32_t word[2][2], scale[2];  /* NVFP4: 16 columns of rows g and g + 8 */
        if (FORMAT == TILE_NVFP4) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int line = warp_line + 8 * i + g;
                const uint2 v = *(const uint2 *)(rows + line * 32 + 8 * t);
                word[i][0] = v.x, word[i][1] = v.y;
                scale[i] = __byte_perm(block_scales(rows[GEMM_ROWS * 32 + line * 4 + t]), 0, 0x1010);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int w_part = 0; w_part < W_PARTS; w_part++) {
                uint32_t a[ROW_TILES][2][4];        /* of two mma, with 16 columns each */
                if (FORMAT == TILE_NVFP4) {
                    uint32_t low[4], high[4];
                    scaled_e2m1(word[0][half], scale[0], low);
                    scaled_e2m1(word[1][half], scale[1], high);
#pragma unroll
                    for (int k = 0; k < 8; k++) a[0][k / 4][k % 4] = (k % 2 ? high : low)[k / 2];
                } else {
#pragma unroll
                    for (int k = 0; k < 2 * ROW_TILES; k++)
                        ptx_ldmatrix_x4(a[k / 2][k % 2], rows + (w_part * GEMM_ROWS + warp_line + k / 2 * 16) * 128 +
                                                             chunk_at(lane % 16, 4 * half + 2 * (k % 2) + lane / 16));
                }
                auto load = [&](uint32_t b[2][4], int part, int j) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const uint8_t *at = y + (part * TOKENS + (j + i) * 8 * GROUPS) * 128;
                        if (FORMAT == TILE_NVFP4) {
                            uint4 v = *(const uint4 *)(at + chunk_at(g, 2 * t + half));
                            b[i][0] = v.x, b[i][1] = v.y, b[i][2] = v.z, b[i][3] = v.w;
                        } else ptx_ldmatrix_x4(b[i], at + chunk_at(lane % 8, 4 * half + lane / 8));
                    }
                };
#pragma unroll
                for (int part = PARTS - 1; part >= 0; part--) {
                    uint32_t b[2][2][4];            /* of two times eight tokens, and of the next two */
                    load(b[0], part, 0);
#pragma unroll
                    for (int j = 0; j < EIGHTS; j += 2) {
                        if (8 * (j * GROUPS + group) >= tile.count) break;
                        if (j + 2 < EIGHTS) load(b[j / 2 % 2 ^ 1], part, j + 2);
#pragma unroll
                        for (int k = 0; k < 4 * ROW_TILES; k++) {       /* the same accumulator as late as possible */
                            const int row_tile = k % ROW_TILES, one = k / ROW_TILES % 2, half_of_it = k / ROW_TILES / 2;
                            ptx_mma_bf16_16816(acc[row_tile][j + one], a[row_tile][half_of_it], b[j / 2 % 2][one] + 2 * half_of_it);
                        }
                    }
                }
            }
    }
    const int tile_index = blockIdx.y * gridDim.x + blockIdx.x;
    constexpr int N = ROW_TILES * EIGHTS;
    if (gridDim.z > 1 && !join_columns<N>((float (*)[4])acc, p.part + (size_t)tile_index * gridDim.z * N * THREADS, p.ticket + tile_index))
        return;

    /* acc[row_tile][j][2 i + k]: row g + 8 i of the tile of 16, token 8 (j GROUPS + group) + 2 t + k. */
    const float by = FORMAT == TILE_ANY ? 1 : factor(w), by_up = FORMAT == TILE_ANY ? 1 : factor(up);
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
        for (int j = 0; j < EIGHTS; j++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const float *v = acc[row_tile][j];
                const int token = (j * GROUPS + group) * 8 + 2 * t + k, row_line = warp_line + row_tile * 16;
                if (token >= tile.count) continue;
                const size_t place = tile.first + token;
                if (gated) {
                    const int row = row0 + row_line / 2 + g;
                    if (row < w.rows)
                        put_parts(p.act + place * padded(w.rows) + row, (size_t)p.n_act * padded(w.rows), PARTS,
                                  gelu_times(v[k] * by, v[2 + k] * by_up));
                    continue;
                }
                const int row = row0 + row_line + g;
                float *out = p.out + place * p.pitch + out_column + row;
                if (row < w.rows) out[0] = soft_cap(v[k] * by, p.softcap);
                if (row + 8 < w.rows) out[8] = soft_cap(v[2 + k] * by, p.softcap);
            }
}
