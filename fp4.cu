/* fp4.cu - NVFP4 matrices times many tokens whose activations are rounded to NVFP4 as well
 * (--fp4-activations), on tensor cores that multiply FP4 with FP4.
 *
 * The weights are multiplied as they lie in the file.  One mma takes 64 columns of 16 tokens and of
 * eight rows, with a block scale for each 16 columns of a token and of a row, and adds up in
 * float32.  The finished sum is multiplied by the matrix's scale and by the token's factor.
 *
 * quantise_kernel rounds the activations as vLLM (scaled_fp4_quant) and TensorRT Model Optimizer
 * (NVFP4QTensor) do:
 *   global = largest of all / (6 * 448), so that the largest block scale becomes 448, the largest
 *   E4M3; a block's scale is e4m3(largest of the block / 6 / global), so that the block's largest
 *   number becomes 6, the largest E2M1.
 * There, "all" are the activations of a calibration run, and global is one number for a matrix.
 * Here, "all" are the columns of one token, and global is Fp4Rows.factor of that token.  So nothing
 * must be calibrated, no scale saturates, and a token's numbers do not depend on the tokens beside
 * it. */
#include "fp4.h"

#include <math.h>
#include <stdint.h>

#include "gpu.h"
#include "product.h"

/* ---- activations become NVFP4 ---- */

/* The larger of the absolute values of two BF16, as bits.  Bits of positive floats are in the order
 * of the floats, and NaN is the largest. */
__device__ static inline uint32_t larger_bf16(uint32_t pair) {
    return max(pair & 0x7fff, pair >> 16 & 0x7fff);
}
/* The same of eight BF16. */
__device__ static inline uint32_t largest_bf16(const uint4 &v) {
    return max(max(larger_bf16(v.x), larger_bf16(v.y)), max(larger_bf16(v.z), larger_bf16(v.w)));
}

/* Eight BF16 columns, each times `by`, as eight E2M1, the first in the lowest bits. */
__device__ static inline uint32_t to_e2m1(const uint4 &v, float by) {
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
    uint32_t word = 0;
    for (int i = 0; i < 4; i++)
        word |= ptx_cvt_e2m1x2_f32(bf16_low(pair[i]) * by, bf16_high(pair[i]) * by) << 8 * i;
    return word;
}

/* Rounds y, BF16 [rows][width], to NVFP4.  A warp takes a row, and a lane takes 16 columns (a
 * block of NVFP4) at a time.  grid: rows / WARPS, rounded up.
 * A row whose largest number is below 2^-100 becomes zero, as 2688 divided by that number and by a
 * scale of 2^-9 could be infinite.  A row with a number that is not finite gets a factor of NaN.
 * The kernel before writes y; fp4_kernel, the next one, reads `to` after its ptx_grid_wait. */
__global__ static void __launch_bounds__(THREADS)
    quantise_kernel(const uint16_t *y, int rows, int width, Fp4Rows to) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (row >= rows) return;
    const uint4 *from = (const uint4 *)(y + (size_t)row * width);
    uint32_t bits = 0;                  /* the largest absolute value, a BF16 */
    for (int i = lane; i < width / 8; i += 32) bits = max(bits, largest_bf16(from[i]));
    bits = __reduce_max_sync(0xffffffffu, bits);
    const float most = bf16_low(bits), inverse = most >= 0x1p-100f ? 6 * 448 / most : 0;
    if (lane == 0) to.factor[row] = bits < 0x7f80 ? most / (6 * 448) : NAN;
    for (int i = lane; i < width / 16; i += 32) {
        const uint4 low = from[2 * i], high = from[2 * i + 1];
        const float block = bf16_low(max(largest_bf16(low), largest_bf16(high)));
        const uint8_t scale = inverse > 0 ? float_to_e4m3(block * inverse / 6) : 0;
        const float by = scale ? inverse / e4m3_to_float(scale) : 0;
        to.scale[(size_t)row * (width / 16) + i] = scale;
        uint2 *data = (uint2 *)(to.data + (size_t)row * (width / 2));
        data[i] = make_uint2(to_e2m1(low, by), to_e2m1(high, by));
    }
}

/* ---- the product ---- */

#define ROWS 128                        /* lines of weights in a tile (not ROWS of kernels.h) */
/* Bytes from a line of 32 bytes (64 columns) to the next in shared memory: with 48, the eight lines
 * that ldmatrix reads at once are in different banks. */
#define PITCH 48
/* Stages in shared memory: one is multiplied while the others are on their way.  As many as fit
 * when two blocks with 128 tokens share a multiprocessor (100 KB).  Nobody has timed fewer or more;
 * time fp4_kernel on an RTX 5090 with 2 and 4 to tune it. */
#define STAGES 3

/* acc [4][16 tokens][8 lines] += a [16 tokens][64 columns] times b, four groups of eight lines.  Of
 * four lanes of a group (t = lane % 4), lane t has the block scales of line group t in scale_b.
 * PAIR: which two of four lanes have the 16 tokens' block scales in scale_a, see ptx.h. */
template <int PAIR>
__device__ static inline void multiply_rows(float acc[4][4], const uint32_t a[4],
                                            const uint32_t b[8], uint32_t scale_a,
                                            uint32_t scale_b) {
    ptx_mma_nvf4_16864<PAIR, 0>(acc[0], a, b, scale_a, scale_b);
    ptx_mma_nvf4_16864<PAIR, 1>(acc[1], a, b + 2, scale_a, scale_b);
    ptx_mma_nvf4_16864<PAIR, 2>(acc[2], a, b + 4, scale_a, scale_b);
    ptx_mma_nvf4_16864<PAIR, 3>(acc[3], a, b + 6, scale_a, scale_b);
}

/* Writes a warp's sums acc, times the matrices' scales and the tokens' factors (by_token), to p.out
 * or, where w and up are joined, gelu(w) * up to p.act.  acc[mt][nt][2 i + k] is token
 * token0 + 16 mt + 8 i + g of the tile and line line0 + 8 nt + 2 t + k, where g = lane / 4,
 * t = lane % 4.  Where joined, an even nt has sums of w, and the next nt those of the same rows of
 * up.  column: where w's rows begin in a row of p.out. */
template <int MT>
__device__ static inline void write_tile(const Product &p, const Weight &w, const Weight &up,
                                         const Tile &tile, const float *by_token, int token0,
                                         int row0, int line0, int column,
                                         const float (&acc)[MT][4][4]) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, gated = up.data != NULL;
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int token = token0 + 16 * mt + 8 * i + g;
            if (token >= tile.count) continue;
            const size_t place = tile.first + token;
            const float by = by_token[token];
#pragma unroll
            for (int nt = 0; nt < 4; nt++)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const float v = acc[mt][nt][2 * i + k] * w.scale * by;
                    if (gated) {
                        const int row = row0 + line0 / 2 + nt / 2 * 8 + 2 * t + k;
                        if (nt % 2 || row >= w.rows) continue;
                        const float other = acc[mt][nt | 1][2 * i + k] * up.scale * by;
                        uint16_t *to = p.act + place * padded(w.rows) + row;
                        put_parts(to, 0, 1, gelu_times(v, other));
                    } else {
                        const int row = row0 + line0 + 8 * nt + 2 * t + k;
                        if (row < w.rows) p.out[place * p.pitch + column + row] = v;
                    }
                }
        }
}

/* The product of a tile of 32 * MT tokens and 128 lines: 128 rows of w or, where w and up are
 * joined by gelu, 64 rows of each (lines 16 i … 16 i + 7 of w, 16 i + 8 … 16 i + 15 of up).
 * MORE: p has `more`.  (With this decided at run time the loop of all products is slower.)
 * grid (tiles of rows, tiles of tokens).  Eight warps: two halves of the tokens by four quarters
 * of the lines.
 *   1. Find the tile and its matrices.
 *   2. Each thread finds what it copies in every step of 64 columns.
 *   3. For each step: wait for its stage, begin to fill the stage STAGES - 1 steps ahead, multiply.
 *   4. Multiply by the scales and write the result.
 * The kernel before writes y; the next one reads the result after its ptx_grid_wait. */
template <int MT, bool MORE>
__global__ static void __launch_bounds__(THREADS, 2)
    fp4_kernel(const __grid_constant__ Product p, Fp4Rows y) {
    struct Stage {                      /* 64 columns: 32 bytes of E2M1 and 4 of scales each */
        uint8_t a[32 * MT][PITCH], b[ROWS][PITCH];          /* tokens, lines */
        uint32_t scale_a[32 * MT], scale_b[ROWS];
    };
    SHARED(Stage, stage, [STAGES]);
    SHARED(float, by_token, [32 * MT]); /* the tokens' factors */

    /* 1. The tile. */
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    Tile tile = {0, (int)blockIdx.y * 32 * MT, p.n - (int)blockIdx.y * 32 * MT};
    if (p.tile) {
        if ((int)blockIdx.y >= *p.n_tiles) return;
        tile = p.tile[blockIdx.y];
    } else if (tile.count > 32 * MT) tile.count = 32 * MT;
    Weight w = p.expert_w ? p.expert_w[tile.expert] : p.w;
    const Weight up = p.expert_up ? p.expert_up[tile.expert] : p.up;
    const int gated = up.data != NULL, width = padded(w.cols), n_steps = width / 64;
    int row0 = blockIdx.x * (gated ? ROWS / 2 : ROWS), column = 0;
    if (MORE) find_matrix(p, ROWS, &w, &row0, &column);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    /* The warp's first token and first line in the tile. */
    const int token0 = threadIdx.x / 32 % 2 * 16 * MT, line0 = threadIdx.x / 64 * 32;
    /* The row of y that is token `token` of the tile.  Tokens behind the last one repeat it; nobody
     * writes their sums. */
    auto row_of = [&](int token) {
        int place = tile.first + min(token, tile.count - 1);
        return (size_t)(p.list ? p.list[place] / p.top_k : place);
    };

    /* 2. The copies: this thread brings half of the 64 columns of token number `line`, if the tile
     * has that, and of line `line`.  Lines behind the matrix's last row repeat that row; nobody
     * writes their sums. */
    const int line = threadIdx.x / 2, half = threadIdx.x % 2, of_up = gated && line / 8 % 2;
    const int wanted = row0 + (gated ? line / 16 * 8 + line % 8 : line);
    const size_t from_w = wanted < w.rows ? wanted : w.rows - 1;
    const size_t from_y = line < 32 * MT ? row_of(line) : 0;
    const uint8_t *data_w = (of_up ? up.data : w.data) + from_w * (width / 2) + 16 * half;
    const uint8_t *scale_w = (of_up ? up.block_scale : w.block_scale) + from_w * (width / 16);
    const uint8_t *data_y = y.data + from_y * (width / 2) + 16 * half;
    const uint8_t *scale_y = y.scale + from_y * (width / 16);
    auto fill = [&](int step) {
        Stage &s = stage[step % STAGES];
        ptx_cp_async16(s.b[line] + 16 * half, data_w + 32 * step);
        if (half) ptx_cp_async4(&s.scale_b[line], scale_w + 4 * step);
        if (line >= 32 * MT) return;
        ptx_cp_async16(s.a[line] + 16 * half, data_y + 32 * step);
        if (!half) ptx_cp_async4(&s.scale_a[line], scale_y + 4 * step);
    };
    if (half && line < 32 * MT) by_token[line] = y.factor[from_y];

    /* 3. The steps; write_tile tells what acc holds. */
    float acc[MT][4][4] = {};
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < n_steps) fill(s);
        ptx_cp_async_commit();
    }
    for (int step = 0; step < n_steps; step++) {
        ptx_cp_async_wait<STAGES - 2>();
        __syncthreads();                /* this stage is there; all warps are done with the last */
        if (step + STAGES - 1 < n_steps) fill(step + STAGES - 1);
        ptx_cp_async_commit();
        const Stage &s = stage[step % STAGES];
        uint32_t b[8];
        const int b_line = line0 + lane / 16 * 8 + lane % 8, b_byte = lane / 8 % 2 * 16;
        ptx_ldmatrix_x4(b, s.b[b_line] + b_byte);
        ptx_ldmatrix_x4(b + 4, s.b[b_line + 16] + b_byte);
        /* The file may have -0 as a scale; the mma takes only scales whose sign bit is 0. */
        const uint32_t scale_b = s.scale_b[line0 + 8 * t + g] & 0x7f7f7f7f;
        uint32_t scale_a = 0;
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            uint32_t a[4];
            ptx_ldmatrix_x4(a, s.a[token0 + 16 * mt + lane % 16] + lane / 16 * 16);
            /* Of four lanes, the lower two load the scales of these 16 tokens, and the upper two
             * those of the next 16. */
            if (mt % 2 == 0) scale_a = s.scale_a[token0 + 16 * mt + 8 * (MT > 1 ? t : t % 2) + g];
            if (mt % 2 == 0) multiply_rows<0>(acc[mt], a, b, scale_a, scale_b);
            else multiply_rows<1>(acc[mt], a, b, scale_a, scale_b);
        }
    }

    write_tile<MT>(p, w, up, tile, by_token, token0, row0, line0, column, acc);
}

/* ---- what launch.cu calls (fp4.h) ---- */

int fp4_found(Error *err) {
    cudaDeviceProp gpu;
    cudaFuncAttributes loaded;
    cudaError_t e = cudaGetDeviceProperties(&gpu, 0);
    if (e == cudaSuccess && (gpu.major != 12 || gpu.minor > 1)) {
        fail(err, "FP4 activations need a GPU of compute capability 12.0 or 12.1, %s is of %d.%d",
             gpu.name, gpu.major, gpu.minor);
        return 0;
    }
    if (e == cudaSuccess) e = cudaFuncGetAttributes(&loaded, fp4_kernel<1, false>);
    if (e != cudaSuccess) fail(err, "GPU: %s", cudaGetErrorString(e));
    return e == cudaSuccess;
}

void fp4_quantise(const uint16_t *y, int rows, int width, const Fp4Rows &to, cudaStream_t stream) {
    const dim3 grid((rows + WARPS - 1) / WARPS), block(THREADS);
    GPU_LAUNCH(quantise_kernel, grid, block, 0, stream, y, rows, width, to);
}

void fp4_product(const Product &p, const Fp4Rows &y, int rows, int tokens, int tiles,
                 cudaStream_t stream) {
    const int each = p.expert_up || p.up.data ? ROWS / 2 : ROWS;
    int row_tiles = (rows + each - 1) / each;
    for (const Weight &m : p.more) row_tiles += m.data ? (m.rows + ROWS - 1) / ROWS : 0;
    const dim3 grid(row_tiles, tiles), block(THREADS);
    static void (*const one[])(Product, Fp4Rows) = {
        fp4_kernel<1, false>, fp4_kernel<2, false>, fp4_kernel<4, false>};
    static void (*const several[])(Product, Fp4Rows) = {
        fp4_kernel<1, true>, fp4_kernel<2, true>, fp4_kernel<4, true>};
    const auto kernel = (p.more[0].data ? several : one)[tokens / 64];      /* 32: 0; 64, 128 */
    GPU_LAUNCH(kernel, grid, block, 0, stream, p, y);
}
