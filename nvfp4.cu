/* nvfp4.cu - matrices times several tokens or many, on the GPU, whatever the weights' format.
 *
 * All products are mma.m16n8k16 on tensor cores, BF16 in and float32 out.  The rows of A are rows
 * of the weights, the columns of B are tokens.  The order of a sum is free, so the order of an
 * mma's 16 k is free as well, as long as A and B have the same: of NVFP4, lane t of a row's four
 * takes the 16 columns of one block scale, and the same columns of the token, instead of those that
 * the manual names.  So every read is of neighbouring bytes, as they lie in the file.
 *
 * Numbers.  BF16 weights go in as they are.  NVFP4 becomes BF16 in registers, exactly: E2M1 times
 * E4M3 has six bits of mantissa, and a BF16 has eight.  The matrix's own scale is multiplied in at
 * the end, in float32.  FP8, INT8 and INT4 become BF16 in registers exactly, too, but without
 * their scales, which have 8 bits of mantissa or more.  So 32 columns, which share a scale, are
 * multiplied into accumulators of their own, which are then scaled.  A float32 weight is three BF16
 * that add up to it, exactly: three times 8 bits of mantissa hold its 24.  A token's float32 number
 * is rounded to BF16 once or, where exact numbers are asked for, is three BF16 as well.
 *
 * stream.cu multiplies one token, and with few.cu 2 to 8 of them.  What these do not take is
 * multiplied here, in tiles of tokens and rows in shared memory; cp.async fills the next tiles
 * while the tiles before them are multiplied. */
#ifndef NVFP4_CU
#define NVFP4_CU

#include "gpu.h"
#include "product.h"

/* The float32 numbers of n tokens become BF16: to [parts][n][padded(cols)], zeros from column cols
 * on.  A token's cols numbers in x lie in runs of `run` numbers, which begin `pitch` numbers apart;
 * the tokens follow each other.  grid (n, padded(cols) / (4 * THREADS), rounded up), THREADS
 * threads, each for four columns.  Reads x after ptx_grid_wait. */
__global__ static void parts_kernel(const float *x, int cols, int run, int pitch, int parts,
                                    uint16_t *to) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    const int t = blockIdx.x, width = padded(cols), i = 4 * (blockIdx.y * THREADS + threadIdx.x);
    if (i >= width) return;
    const float *token = x + (size_t)t * (cols / run) * pitch;
    auto column = [&](int c) { return c < cols ? token[c / run * pitch + c % run] : 0; };
    float4 v = make_float4(0, 0, 0, 0);
    if (cols % 4 || run % 4 || pitch % 4)
        v = make_float4(column(i), column(i + 1), column(i + 2), column(i + 3));
    else if (i < cols) v = *(const float4 *)(token + i / run * pitch + i % run);
    for (int p = 0; p < parts; p++)
        *(uint2 *)(to + ((size_t)p * gridDim.x + t) * width + i) = take4(v);
}

/* ---- products ----
 *
 * A block multiplies a tile of 128 rows with a tile of 32 * MT tokens, 64 columns in a step.  A
 * stage in shared memory holds a step's numbers: lines of 128 bytes, first those of the tokens
 * (PARTS sets of lines: the first part of each number, then the second part …), then those of the
 * rows.  A line of NVFP4 or INT4 has 32 bytes, one of FP8 or INT8 64, and behind the lines stand
 * their scales.
 *
 * Two matrices that are joined by gelu (gate and up) share a tile: lines 16 i … 16 i + 7 are rows
 * of the first matrix, lines 16 i + 8 … 16 i + 15 the same rows of the second, because the two
 * accumulators of a thread in an mma are lines 8 apart. */

/* Lines of weights in a tile: 16 for each of eight warps.  A guess: nobody has timed other values;
 * bench/gpusim --step prefill shows what a change does. */
#define GEMM_ROWS 128
/* Bytes of shared memory for a block's stages: every GPU since sm_80 has 99 KB for a block. */
#define GEMM_SHARED (96 * 1024)

/* The format of the rows in a tile.  TILE_BYTES: FP8 or INT8.  TILE_ANY: each number is converted
 * on its way to shared memory to three BF16 that add up to it, in three sets of lines.  TILE_ANY
 * serves formats that are seldom met (float32, F16), and matrices of different formats that share
 * a tile. */
typedef enum { TILE_BF16, TILE_NVFP4, TILE_INT4, TILE_BYTES, TILE_ANY } TileFormat;

static TileFormat tile_format(const Weight &w) {
    if (w.dtype == DT_BF16) return TILE_BF16;
    if (w.dtype == DT_U8) return TILE_NVFP4;
    if (is_int4(w)) return TILE_INT4;
    return w.dtype == DT_F8_E4M3 || w.dtype == DT_I32 ? TILE_BYTES : TILE_ANY;
}

/* The format of a tile that has rows of both a, of format `format`, and b. */
static TileFormat shared_format(TileFormat format, const Weight &a, const Weight &b) {
    return a.dtype == b.dtype && tile_format(b) == format ? format : TILE_ANY;
}

/* Whether a warp converts the numbers that it multiplies to BF16 in registers. */
__host__ __device__ static constexpr bool in_registers(int format) {
    return format != TILE_BF16 && format != TILE_ANY;
}
/* Whether a scale of 32 columns is multiplied into their sum, not into the weights: they are BF16
 * exactly without it, not with it. */
__host__ __device__ static constexpr bool scales_sums(int format) {
    return format == TILE_INT4 || format == TILE_BYTES;
}

/* Bytes of a line of a stage's rows, and of its scales behind the lines.  INT4: two BF16, and the
 * word with the zero points of the whole unit.  TILE_BYTES: two float32, of which FP8 has the first
 * alone. */
__host__ __device__ static constexpr int line_bytes(int format) {
    if (format == TILE_BF16 || format == TILE_ANY) return 128;
    return format == TILE_BYTES ? 64 : 32;
}
__host__ __device__ static constexpr int line_scales(int format) {
    if (scales_sums(format)) return 8;
    return format == TILE_NVFP4 ? 4 : 0;
}

/* Bytes of a stage's rows, and of a whole stage. */
__host__ __device__ static constexpr int row_tile_bytes(int format) {
    if (format == TILE_ANY) return GEMM_ROWS * 3 * 128;
    return GEMM_ROWS * (line_bytes(format) + line_scales(format));
}
__host__ __device__ static constexpr int stage_bytes(int format, int mt, int parts) {
    return parts * 32 * mt * 128 + row_tile_bytes(format);
}

/* Stages of a block: as many as fit, at most 4.  More than 4 gain nothing in the simulator; no GPU
 * has tried (bench/gpusim --step prefill).  One stage is multiplied while the others are on their
 * way.  TILE_ANY has one stage alone, which is filled and then multiplied. */
__host__ __device__ static constexpr int stages_of(int format, int mt, int parts) {
    int fit = GEMM_SHARED / stage_bytes(format, mt, parts);
    if (format == TILE_ANY) return 1;
    return fit < 4 ? fit : 4;
}

/* Where chunk `chunk` of a line lies in bytes: 16 bytes, numbers 8 * chunk … 8 * chunk + 7.  Eight
 * lanes that read the same chunk of eight lines so read from different banks of shared memory, and
 * so do eight lanes that read, of two neighbouring lines, all even chunks, all odd ones, the first
 * four or the last four. */
__device__ static inline int chunk_at(int line, int chunk) {
    return line * 128 + (chunk ^ line % 8 ^ line % 2 * 4) * 16;
}

/* Where piece `piece` (16 bytes) of a line of format INT4 or TILE_BYTES lies: 8 lines' words of one
 * piece of INT4, and 4 lines' halves of TILE_BYTES, lie in different banks. */
__device__ static inline int piece_of_line(int format, int line, int piece) {
    if (format == TILE_INT4) return line * 32 + (piece ^ line / 4 % 2) * 16;
    return line * 64 + (piece ^ line / 2 % 2 * 2) * 16;
}

/* What a block multiplies. */
typedef struct {
    Tile tokens;
    Weight w, up;                       /* up.data: w and up are joined by gelu; NULL: w alone */
    int row0;                           /* the tile's first row of w, and of up */
    int out_column;                     /* where w's rows begin in a row of `out` */
} GemmTile;

/* The row of w or of up that a line of the tile holds.  Lines beyond the last row hold the last row
 * again; WarpTile::store leaves their sums out. */
__device__ static inline int row_of(const GemmTile &tile, int line) {
    int row = tile.row0 + (tile.up.data ? line / 16 * 8 + line % 8 : line);
    return min(row, tile.w.rows - 1);
}

/* The tile of this block; blockIdx.x counts the tiles of rows of all matrices.  tokens: the block's
 * tile of tokens. */
__device__ static inline GemmTile gemm_tile(const Product &p, const Tile &tokens) {
    GemmTile tile = {tokens, p.expert_w ? p.expert_w[tokens.expert] : p.w,
                     p.expert_up ? p.expert_up[tokens.expert] : p.up, 0, 0};
    tile.row0 = blockIdx.x * (tile.up.data ? GEMM_ROWS / 2 : GEMM_ROWS);
    find_matrix(p, GEMM_ROWS, &tile.w, &tile.row0, &tile.out_column);
    return tile;
}

/* What a thread copies of the rows.  A line has PIECES pieces of 16 bytes (of TILE_ANY two halves).
 * A thread has the same piece of every LINES-th line, and one of a line's threads also copies the
 * line's scales. */
template <int FORMAT> struct RowCopy {
    static constexpr int PIECES = FORMAT == TILE_ANY ? 2 : line_bytes(FORMAT) / 16;
    static constexpr int LINES = THREADS / PIECES, COPIES = GEMM_ROWS / LINES;
    const uint8_t *from[COPIES], *from_scale[COPIES];
    int line, piece, of_up;
    int scale_step;                     /* scale_step of the line's matrix */

    __device__ RowCopy(const GemmTile &tile) {
        line = threadIdx.x / PIECES;
        piece = threadIdx.x % PIECES;
        of_up = tile.up.data && line / 8 % 2;
        const size_t bytes = padded(tile.w.cols) / 64 * line_bytes(FORMAT);
        const uint8_t *data = of_up ? tile.up.data : tile.w.data;
        const uint8_t *scales = of_up ? tile.up.block_scale : tile.w.block_scale;
        size_t pitch = bytes / 8;       /* of NVFP4's scales */
        if (scales_sums(FORMAT)) pitch = of_up ? scale_pitch(tile.up) : scale_pitch(tile.w);
        scale_step = of_up ? ::scale_step(tile.up) : ::scale_step(tile.w);
#pragma unroll
        for (int k = 0; k < COPIES; k++) {
            const int row = row_of(tile, line + LINES * k);
            from[k] = data + row * bytes + 16 * piece;
            if (line_scales(FORMAT)) from_scale[k] = scales + row * pitch;
        }
    }

    /* Begins to copy the 64 columns of step `step` to `rows`, where a stage has its rows. */
    __device__ void fill(const GemmTile &tile, int step, uint8_t *rows) const {
        if (scales_sums(FORMAT)) {
#pragma unroll
            for (int k = 0; k < COPIES; k++)
                fill_scaled(tile, step, rows, k);
        } else if (FORMAT == TILE_BF16) {
            const int to = chunk_at(line, threadIdx.x % 8);
#pragma unroll
            for (int k = 0; k < COPIES; k++)
                ptx_cp_async16(rows + to + k * 32 * 128, from[k] + (size_t)step * 128);
        } else if (FORMAT == TILE_NVFP4) {
            ptx_cp_async16(rows + threadIdx.x * 16, from[0] + (size_t)step * 32);
            if (threadIdx.x % 2)
                ptx_cp_async4(rows + GEMM_ROWS * 32 + line * 4, from_scale[0] + (size_t)step * 4);
        } else convert(tile, step, rows);
    }

    /* INT4, FP8, INT8: copies the thread's piece of its k-th line.  The thread that has the line's
     * first piece copies the line's scales, too. */
    __device__ void fill_scaled(const GemmTile &tile, int step, uint8_t *rows, int k) const {
        constexpr int BYTES = line_bytes(FORMAT), STEPS = UNIT_BYTES / BYTES;   /* of a unit */
        const int its_line = line + LINES * k;
        const uint8_t *scales = from_scale[k] + (size_t)(step / STEPS) * scale_step;
        uint8_t *to = rows + GEMM_ROWS * BYTES + its_line * 8;
        ptx_cp_async16(rows + piece_of_line(FORMAT, its_line, piece),
                       from[k] + (size_t)step * BYTES);
        if (piece) return;
        if (FORMAT == TILE_INT4) {
            ptx_cp_async4(to, scales + step % STEPS * 4);
            if (scale_step > 16) ptx_cp_async4(to + 4, scales + 16);
            else *(uint32_t *)(to + 4) = INT4_MIDDLE;
        } else if (tile.w.dtype == DT_F8_E4M3) ptx_cp_async4(to, scales);
        else ptx_cp_async8(to, scales + step % STEPS * 8);
    }

    /* TILE_ANY: the same, with three BF16 for each number, and finished on return. */
    __device__ void convert(const GemmTile &tile, int step, uint8_t *rows) const {
        const int row = row_of(tile, line);
        for (int i = 0, c = threadIdx.x % 2 * 32; i < 16; i++, c += 2) {
            float v[2];
            for (int k = 0; k < 2; k++) {
                const int column = step * 64 + c + k;
                v[k] = of_up ? number_at(tile.up, row, column) : number_at(tile.w, row, column);
            }
            for (int part = 0; part < 3; part++) {
                uint8_t *to = rows + part * GEMM_ROWS * 128 + chunk_at(line, c / 8) + c % 8 * 2;
                *(uint32_t *)to = take_bf16(v[0], v[1]);
            }
        }
    }
};

/* What a thread copies of the tokens: chunk threadIdx.x % 8 of every 32nd token, from token
 * threadIdx.x / 8 on.  `at_once` tokens are multiplied at once.  If the tile's tokens are no
 * multiple of at_once, the last one is copied again to fill up, and WarpTile::store leaves its sums
 * out. */
template <int MT, int PARTS> struct TokenCopy {
    const uint16_t *from[MT];
    size_t part_stride;                 /* numbers from a part of y to the next part */
    int multiplied;                     /* the tile's tokens, filled up to a multiple of at_once */

    __device__ TokenCopy(const Product &p, const Tile &tokens, int width, int at_once) {
        part_stride = (size_t)p.n * width;
        multiplied = (tokens.count + at_once - 1) / at_once * at_once;
#pragma unroll
        for (int k = 0; k < MT; k++) {
            int place = tokens.first + min((int)threadIdx.x / 8 + 32 * k, tokens.count - 1);
            size_t row = p.list ? p.list[place] / p.top_k : place;
            from[k] = p.y + row * width + threadIdx.x % 8 * 8;
        }
    }

    __device__ void fill(int step, uint8_t *stage) const {
        const int line = threadIdx.x / 8, to = chunk_at(line, threadIdx.x % 8);
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int k = 0; k < MT; k++)
                if (line + 32 * k < multiplied)
                    ptx_cp_async16(stage + (part * MT + k) * 32 * 128 + to,
                                   from[k] + part * part_stride + step * 64);
    }
};

/* What a warp multiplies of the tile.  NVFP4, INT4, FP8, INT8: 16 lines and all tokens, so that
 * each number is converted by one warp alone.  Other formats: 32 lines and every second eight of
 * the tokens, which takes fewer reads of shared memory.  acc[r][j][2 i + k]: line line0 + 16 r +
 * 8 i + g, token 8 (j GROUPS + group) + 2 t + k, where g = lane / 4, t = lane % 4. */
template <int FORMAT, int MT, int PARTS> struct WarpTile {
    static constexpr int ROW_TILES = in_registers(FORMAT) ? 1 : 2, GROUPS = ROW_TILES;
    static constexpr int EIGHTS = 4 * MT / GROUPS, N = ROW_TILES * EIGHTS;
    float acc[ROW_TILES][EIGHTS][4];
    int line0, group;

    __device__ WarpTile() : acc() {
        const int warp = threadIdx.x / 32;
        line0 = warp % (WARPS / GROUPS) * 16 * ROW_TILES;
        group = warp / (WARPS / GROUPS);
    }

    /* NVFP4: 16 columns of lines line0 + g and line0 + g + 8, and their scales. */
    struct Packed {
        uint2 word[2];
        uint32_t scale[2];
    };
    __device__ Packed load_packed(const uint8_t *rows) const {
        const int line = line0 + threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const uint8_t *words = rows + line * 32 + 8 * t;
        const uint8_t *two = rows + GEMM_ROWS * 32 + line * 4 + t;
        const uint32_t scales = block_scales(two[0] | two[8 * 4] << 8);
        return {{*(const uint2 *)words, *(const uint2 *)(words + 8 * 32)},
                {__byte_perm(scales, 0, 0x1010), __byte_perm(scales, 0, 0x3232)}};
    }

    /* INT4, FP8, INT8: A of two mma, which take 32 columns (`half` of the step's 64) together, of
     * which each of a row's four lanes has eight neighbours.  Returns the columns' scales in lines
     * line0 + g and line0 + g + 8. */
    __device__ float2 load_scaled(uint32_t a[2][4], const uint8_t *rows, int half, int step,
                                  bool fp8) const {
        float scale[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int line = line0 + 8 * i + threadIdx.x % 32 / 4, t = threadIdx.x % 4;
            const uint8_t *scales = rows + GEMM_ROWS * line_bytes(FORMAT) + line * 8;
            uint32_t b[4];
            if (FORMAT == TILE_INT4) {
                const uint2 two = *(const uint2 *)scales;       /* scales, zero points */
                const uint32_t less = int4_zero(two.y >> (8 * (step % 4) + 4 * half) & 15, 0);
                int4_in_order(*(const uint32_t *)(rows + piece_of_line(FORMAT, line, half) + 4 * t),
                              less, b);
                scale[i] = half ? bf16_high(two.x) : bf16_low(two.x);
            } else {
                const uint8_t *piece = rows + piece_of_line(FORMAT, line, 2 * half + t / 2);
                const uint2 own = *(const uint2 *)(piece + 8 * (t % 2));
                bytes_to_bf16(own.x, fp8, b);
                bytes_to_bf16(own.y, fp8, b + 2);
                scale[i] = ((const float *)scales)[fp8 ? 0 : half];
            }
#pragma unroll
            for (int k = 0; k < 4; k++) a[k / 2][k % 2 * 2 + i] = b[k];
        }
        return make_float2(scale[0], scale[1]);
    }

    /* A of two mma, which take 32 columns (`half` of the step's 64) together. */
    __device__ void load_rows(uint32_t a[ROW_TILES][2][4], const uint8_t *rows, int half,
                              const Packed &packed) const {
        if (FORMAT == TILE_NVFP4) {
            uint32_t low[4], high[4];
            scaled_e2m1(half ? packed.word[0].y : packed.word[0].x, packed.scale[0], low);
            scaled_e2m1(half ? packed.word[1].y : packed.word[1].x, packed.scale[1], high);
#pragma unroll
            for (int k = 0; k < 8; k++) a[0][k / 4][k % 4] = (k % 2 ? high : low)[k / 2];
        } else {
            const int lane = threadIdx.x % 32;
#pragma unroll
            for (int k = 0; k < 2 * ROW_TILES; k++) {
                const uint8_t *lines = rows + (line0 + k / 2 * 16) * 128;
                const int chunk = 4 * half + 2 * (k % 2) + lane / 16;
                ptx_ldmatrix_x4(a[k / 2][k % 2], lines + chunk_at(lane % 16, chunk));
            }
        }
    }

    /* Whether eight tokens are multiplied alone, not sixteen at once: after short prompts most
     * experts, which are NVFP4, have no more. */
    __device__ static bool eight_alone(int count) { return FORMAT == TILE_NVFP4 && count <= 8; }

    /* B of the same two mma, for the j-th eight of the warp's tokens and, if there is one, the next
     * eight. */
    __device__ void load_tokens(uint32_t b[2][4], const uint8_t *tokens, int half, int j,
                                bool two = true) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (i && !two) break;
            const uint8_t *lines = tokens + ((j + i) * GROUPS + group) * 8 * 128;
            if (in_registers(FORMAT)) {
                const int t = lane % 4, chunk = scales_sums(FORMAT) ? 4 * half + t : 2 * t + half;
                uint4 v = *(const uint4 *)(lines + chunk_at(lane / 4, chunk));
                b[i][0] = v.x;
                b[i][1] = v.y;
                b[i][2] = v.z;
                b[i][3] = v.w;
            } else ptx_ldmatrix_x4(b[i], lines + chunk_at(lane % 8, 4 * half + lane / 8));
        }
    }

    /* acc += a . b of 32 columns of the tile's `count` tokens.  The next tokens' b is read while
     * these are multiplied. */
    __device__ void multiply(const uint32_t a[ROW_TILES][2][4], const uint8_t *tokens, int half,
                             int count) {
        uint32_t b[2][2][4];
        if (eight_alone(count)) {
            load_tokens(b[0], tokens, half, 0, false);
            ptx_mma_bf16_16816(acc[0][0], a[0][0], b[0][0]);
            ptx_mma_bf16_16816(acc[0][0], a[0][1], b[0][0] + 2);
            return;
        }
        load_tokens(b[0], tokens, half, 0);
#pragma unroll
        for (int j = 0; j < EIGHTS; j += 2) {
            if (8 * (j * GROUPS + group) >= count) break;
            if (j + 2 < EIGHTS) load_tokens(b[j / 2 % 2 ^ 1], tokens, half, j + 2);
#pragma unroll
            for (int k = 0; k < 4 * ROW_TILES; k++) {   /* no accumulator twice in a row */
                const int r = k % ROW_TILES, one = k / ROW_TILES % 2, mma = k / ROW_TILES / 2;
                ptx_mma_bf16_16816(acc[r][j + one], a[r][mma], b[j / 2 % 2][one] + 2 * mma);
            }
        }
    }

    /* INT4, FP8, INT8: acc += scale * (a . b) of 32 columns of the stage's `count` tokens, all
     * parts of them. */
    __device__ void multiply_scaled(const uint32_t a[2][4], const uint8_t *stage, int half,
                                    int count, float2 scale) {
#pragma unroll
        for (int j = 0; j < EIGHTS; j += 2) {
            if (8 * j >= count) break;
            float sum[2][4] = {};
#pragma unroll
            for (int part = PARTS - 1; part >= 0; part--) {
                uint32_t b[2][4];
                load_tokens(b, stage + part * MT * 32 * 128, half, j);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    ptx_mma_bf16_16816(sum[k % 2], a[k / 2], b[k % 2] + k / 2 * 2);
            }
#pragma unroll
            for (int k = 0; k < 8; k++)
                acc[0][j + k / 4][k % 4] += (k % 4 < 2 ? scale.x : scale.y) * sum[k / 4][k % 4];
        }
    }

    /* acc += a stage's product.  The tokens' small parts are added first.  step: which 64 columns
     * of the rows it has; fp8: the rows are FP8. */
    __device__ void multiply_stage(const uint8_t *stage, int count, int step, bool fp8) {
        const uint8_t *rows = stage + PARTS * MT * 32 * 128;
        if constexpr (scales_sums(FORMAT)) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t a[2][4];
                const float2 scale = load_scaled(a, rows, half, step, fp8);
                multiply_scaled(a, stage, half, count, scale);
            }
            return;
        }
        Packed packed = {};
        if (FORMAT == TILE_NVFP4) packed = load_packed(rows);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int w_part = 0; w_part < (FORMAT == TILE_ANY ? 3 : 1); w_part++) {
                uint32_t a[ROW_TILES][2][4];
                load_rows(a, rows + w_part * GEMM_ROWS * 128, half, packed);
#pragma unroll
                for (int part = PARTS - 1; part >= 0; part--)
                    multiply(a, stage + part * MT * 32 * 128, half, count);
            }
    }

    /* gridDim.z blocks share the columns of this tile.  Each one leaves its partial sums in
     * `partial` [gridDim.z][N][THREADS].  The last block to arrive adds them up, in the order of
     * the blocks, so that the bits are the same in every run: there join returns true, and acc is
     * the sum.  In the others it returns false.  ticket counts the blocks that have arrived; it is
     * zero before and after.  Both are the tile's own.  All numbers of another block are asked for
     * before the first is added: one after the other, the waits for them took as long as the
     * product.  The block's own numbers are still in its registers. */
    __device__ bool join(float4 *partial, unsigned *ticket) {
        SHARED(unsigned, arrived);
        float (*flat)[4] = (float (*)[4])acc, sum[N][4] = {};
        float4 *own = partial + (size_t)blockIdx.z * N * THREADS + threadIdx.x;
#pragma unroll
        for (int i = 0; i < N; i++)
            own[i * THREADS] = make_float4(flat[i][0], flat[i][1], flat[i][2], flat[i][3]);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) arrived = atomicAdd(ticket, 1u);
        __syncthreads();
        if (arrived != gridDim.z - 1) return false;
        __threadfence();
        if (threadIdx.x == 0) *ticket = 0;
        for (unsigned z = 0; z < gridDim.z; z++) {
            float4 x[N];
#pragma unroll
            for (int i = 0; i < N; i++) {
                x[i] = make_float4(flat[i][0], flat[i][1], flat[i][2], flat[i][3]);
                if (z != blockIdx.z)
                    x[i] = __ldcg(&partial[((size_t)z * N + i) * THREADS + threadIdx.x]);
            }
#pragma unroll
            for (int i = 0; i < N; i++) {
                sum[i][0] += x[i].x;
                sum[i][1] += x[i].y;
                sum[i][2] += x[i].z;
                sum[i][3] += x[i].w;
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * N; i++) flat[i / 4][i % 4] = sum[i / 4][i % 4];
        return true;
    }

    /* put(place, line, first, second) gets the tile's results, of lines `line` and line + 8.  A
     * thread has 4 * N of them. */
    template <class Put> __device__ void each(const GemmTile &tile, Put put) const {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const float by = FORMAT == TILE_ANY ? 1 : factor(tile.w);
        const float by_up = FORMAT == TILE_ANY ? 1 : factor(tile.up);
        const float by_second = tile.up.data ? by_up : by;
#pragma unroll
        for (int i = 0; i < 2 * N; i++) {
            const int r = i / (2 * EIGHTS), j = i / 2 % EIGHTS, k = i % 2;
            const int token = 8 * (j * GROUPS + group) + 2 * t + k;
            if (token < tile.tokens.count)
                put(tile.tokens.first + token, line0 + 16 * r + g, acc[r][j][k] * by,
                    acc[r][j][2 + k] * by_second);
        }
    }

    /* Writes the tile's results to p.out or, joined by gelu, to p.act.  Which of the two is decided
     * once: a block that many wait for would take 2 us for deciding it for each number. */
    __device__ void store(const Product &p, const GemmTile &tile) const {
        const int rows = tile.w.rows;
        const size_t act_width = padded(rows);
        if (tile.up.data)
            return each(tile, [&](int place, int line, float first, float second) {
                const int row = tile.row0 + line / 16 * 8 + line % 8;
                if (row < rows)
                    put_parts(p.act + place * act_width + row, p.n_act * act_width, PARTS,
                              gelu_times(first, second));
            });
        auto put = [&](int place, int line, float first, float second) {
            const int row = tile.row0 + line;
            float *out = p.out + (size_t)place * p.pitch + tile.out_column + row;
            if (row < rows) out[0] = first;
            if (row + 8 < rows) out[8] = second;
        };
        if (p.softcap > 0)
            each(tile, [&](int place, int line, float first, float second) {
                put(place, line, soft_cap(first, p.softcap), soft_cap(second, p.softcap));
            });
        else each(tile, put);
    }
};

/* The product that p describes, a tile for each block.  Where there are few tiles, gridDim.z blocks
 * share the columns of each tile.  MT: a tile has 32 * MT tokens; with 32 tokens two blocks fit on
 * a multiprocessor.  PARTS: the BF16 numbers that make one number of y.  grid (tiles of rows, tiles
 * of tokens, blocks that share a tile's columns), THREADS threads; dynamic shared memory: stages_of
 * times stage_bytes.  Weights are read from the beginning on; p.tile, p.list and p.y, which earlier
 * kernels of the step write, after ptx_grid_wait. */
template <int FORMAT, int MT, int PARTS>
__global__ static void __launch_bounds__(THREADS, MT == 1 && FORMAT != TILE_ANY ? 2 : 1)
    gemm_kernel(const __grid_constant__ Product p) {
    constexpr int STAGES = stages_of(FORMAT, MT, PARTS), STAGE = stage_bytes(FORMAT, MT, PARTS);
    constexpr int ROWS_AT = PARTS * MT * 32 * 128;      /* in a stage */
    DYNAMIC_SHARED(uint8_t, shared);
    Tile tokens = {0, (int)blockIdx.y * 32 * MT, min(p.n - (int)blockIdx.y * 32 * MT, 32 * MT)};
    if (p.tile) {                       /* the kernel ahead makes the list of tiles */
        ptx_grid_wait();
        if ((int)blockIdx.y >= *p.n_tiles) return;
        tokens = p.tile[blockIdx.y];
    }
    const GemmTile tile = gemm_tile(p, tokens);
    const int width = padded(tile.w.cols);
    const int begin = blockIdx.z * p.steps, end = min(begin + p.steps, width / 64);

    /* The weights are always there, so their copies begin before the kernel ahead has ended. */
    const RowCopy<FORMAT> row_copy(tile);
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
        if (begin + s < end) row_copy.fill(tile, begin + s, shared + s * STAGE + ROWS_AT);
    if (!p.tile) ptx_grid_wait();
    ptx_grid_launch_dependents();
    WarpTile<FORMAT, MT, PARTS> warp_tile;
    const int at_once = warp_tile.eight_alone(tokens.count) ? 8 : 16 * warp_tile.GROUPS;
    const TokenCopy<MT, PARTS> token_copy(p, tokens, width, at_once);
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (begin + s < end) token_copy.fill(begin + s, shared + s * STAGE);
        ptx_cp_async_commit();
    }

    uint8_t *stage = shared, *next = shared + (STAGES - 1) * STAGE;
    uint8_t *const last = next;
    auto after = [&](uint8_t *at) { return at == last ? shared : at + STAGE; };
    for (int step = begin; step < end; step++) {
        if (STAGES > 1) ptx_cp_async_wait<STAGES - 2>();
        __syncthreads();                /* the stage is filled, and nobody reads the one before */
        const int coming = step + STAGES - 1;
        if (coming < end) {
            row_copy.fill(tile, coming, next + ROWS_AT);
            token_copy.fill(coming, next);
        }
        ptx_cp_async_commit();
        if (STAGES == 1) {
            ptx_cp_async_wait<0>();
            __syncthreads();
        }
        warp_tile.multiply_stage(stage, tokens.count, step, tile.w.dtype == DT_F8_E4M3);
        stage = after(stage);
        next = after(next);
    }
    if (gridDim.z > 1) {
        const size_t index = blockIdx.y * gridDim.x + blockIdx.x;
        float4 *partial = p.partial + index * gridDim.z * warp_tile.N * THREADS;
        if (!warp_tile.join(partial, p.ticket + index)) return;
    }
    warp_tile.store(p, tile);
}

#endif
