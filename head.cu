/* head.cu - from the last x to logits on the GPU: the whole head, of one token or a few, or the
 * screened one.
 *
 * The head is the largest matrix of all: its 262144 rows are 1.5 GB of BF16, a quarter of what a
 * token of the 26B-A4B reads.  Sampling wants few of its results.  So the logits stay in the GPU's
 * memory, and only the k largest go to the host (top.cu).
 *
 * A screened head reads half as many bytes; the comment above screen_kernel says why it never
 * changes a token.  An int8 copy of the head gives a lower and an upper bound of every logit
 * (screen_kernel).  Tiles of eight rows in which no row can be among the k largest are left out
 * (count_kernel in top.cu, pick_kernel), and head_kernel computes the others, or few_head_kernel
 * for a few tokens.  The host launches the same kernels whatever an earlier one found.  Where the
 * copy does not pay, the kernels themselves turn to the whole head (Habit).  head.c does the same
 * on the CPU, in fewer lines.
 *
 * A drafter's head has a copy in four bits, from which alone the drafts come (draft_kernel). */
#ifndef HEAD_CU
#define HEAD_CU

#include "gpu.h"
#include "product.h"
#include "step.cu"
#include "residual.cu"
#include "stream.cu"
#include "top.cu"

/* Tiles of eight rows, out of those that are left, that a block multiplies in one turn: a strip of
 * shared memory for each.  A guess: nobody has timed other values.  Compare bench/gpusim --step
 * screened. */
#define TILES_AT_ONCE 48
/* Columns of the int8 copy that a warp loads of each of sixteen rows at once: 4 KB and the scales,
 * 40 registers of a thread.  load_piece and multiply_piece are written for 256. */
#define SCREEN_COLS 256

/* The smallest head, in bytes, whose copy pays.  The three additional launches take 30 microseconds
 * (simulated: bench/gpu-predicted.md), in which an H200 reads 140 MB, and the copy saves half of
 * the head's bytes at most. */
#ifndef SCREEN_LEAST
#define SCREEN_LEAST ((size_t)256 << 20)
#endif
/* The copy pays while no more than one tile in WORTH is left.  Simulated, the two heads take
 * the same time where 0.37 of the tiles are left (H100), 0.43 (5090) or 0.45 (4090, GB10); see
 * bench/gpu-predicted.md.  To tune it again, compare `gpusim --step screened` with the head of
 * `--step decode`, for several numbers of tiles. */
#define WORTH 3
/* At most 2^LONGEST_SKIP steps take the whole head before the copy is tried again: see learn, which
 * counts what the attempts cost.  Chosen by judgement: a smaller number notices sooner that the
 * copy pays again.  To tune it, compare bench/gpusim --step screened with --step decode. */
#define LONGEST_SKIP 6

/* Whether the copy has paid in the last steps, in the GPU's memory; zero at first. */
typedef struct {
    int skip;                           /* so many steps to come take the whole head */
    int failed;                         /* so many attempts in a row left too many tiles */
} Habit;

/* The int8 copy W' of the head W: W'[r][c] = scale[r][c / 32] * q[r][c].  The scales are BF16:
 * their range is that of the weights.  They are coarse, and rounded up, which makes the steps of q
 * slightly larger and costs nothing else. */
typedef struct {
    int cols;                           /* of q: a multiple of SCREEN_COLS, the rest is zeros */
    int8_t *q;                          /* [rows][cols], in the order of place_of */
    uint16_t *scale;                    /* [rows][cols / 32] */
    float *error;                       /* [rows] no less than |W[r] - W'[r]| (2-norms) */
    float *norm;                        /* [rows] no less than |W[r]| and no less than |W'[r]| */
    float *upper;                       /* [HEAD_TOKENS][rows] upper bounds of the logits */
    /* [1 + tiles_of(rows)] how many tiles of eight rows are left, and which; few[0] -1: all. */
    int *few;
    Habit *habit;
    int worth;                          /* the copy pays while no more tiles are left */
} Screen;

/* Where column c of a row of the copy, and of the vector, lies: of 64 columns, 8 t … 8 t + 7 of the
 * first 32 and of the others are neighbours, so that lane t of four reads what it needs for two mma
 * at once. */
__device__ static inline int place_of(int c) {
    return c / 64 * 64 + c % 32 / 8 * 16 + c % 64 / 32 * 8 + c % 8;
}

__device__ static inline float bf16_at(const uint8_t *p, size_t i) {
    return __uint_as_float((uint32_t)((const uint16_t *)p)[i] << 16);
}

/* ---- all logits, or those that are not ruled out ---- */

/* What a block computes of the head: its share of all rows, which is one strip; or, with a list of
 * tiles that are left (few, see Screen), its share from … to - 1 of these, of which each is a
 * strip, TILES_AT_ONCE in a turn. */
typedef struct {
    const int *few;
    int from, to;
} HeadShare;

/* few[0] < 0: all rows. */
__device__ static inline HeadShare head_share(const int *few) {
    if (!few || few[0] < 0) return {NULL, 0, 1};
    return {few, share_begin(few[0]), share_end(few[0])};
}

/* The first row of strip i. */
__device__ static inline int first_row(const HeadShare &s, int i, const Weight &head) {
    return s.few ? 8 * s.few[1 + i] : share_begin(head.rows);
}

/* Describes the strips from number `base` on, of one turn; returns how many they are. */
__device__ static inline int head_strips(const HeadShare &s, const Weight &head, int base,
                                         Strip *strip) {
    const int n = min(s.to - base, TILES_AT_ONCE);
    for (int i = threadIdx.x; i < n; i += STREAM_THREADS) {
        const int row = first_row(s, base + i, head);
        const int end = s.few ? min(row + 8, head.rows) : share_end(head.rows);
        strip[i] = strip_of(head, row, end, 0, is_nibbles(head));
    }
    return n;
}

/* logits [head.rows] = softcap(head . RMSNorm(x, norm)), one token; r gives x as the last layer
 * leaves it.  few: NULL, or Screen.few: only the tiles that are left are computed, to the same bits
 * as in the whole head.  Both are read after ptx_grid_wait.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring, a
 * Vector of hidden columns, floats [spare_floats(hidden)]. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, 1)
    head_kernel(const __grid_constant__ Weight head, const __grid_constant__ Residual r,
                const float *norm, float softcap, const int *few, float *logits) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(float, red, [32]);
    SHARED(Strip, strip, [TILES_AT_ONCE]);
    if (few) ptx_grid_wait();           /* the kernel ahead wrote `few` */
    const HeadShare share = head_share(few);
    const int packed = is_nibbles(head);
    const Normed normed = {norm, NULL, 0, packed};
    prefetch_norms(r, head.cols, normed);
    Vector y = vector_at(shared + ring_bytes(DEPTH), head.cols);
    for (int base = share.from; base < share.to || base == share.from; base += TILES_AT_ONCE) {
        const int n = head_strips(share, head, base, strip);
        __syncthreads();
        Feed feed = begin_stream<DEPTH>(shared, strip, n, false, true);
        if (base == share.from)
            settle_and_norm(r, head.cols, y, normed, red, (float *)behind(y), [] {});
        __syncthreads();
        auto done = [&](int i, int row, float sum) {
            logits[first_row(share, base + i, head) + row] = soft_cap(sum, softcap);
        };
        stream<DEPTH>(feed, strip, y, y, done, [] {});
        __syncthreads();
    }
}

/* Tokens whose logits few_head_kernel computes at once: an mma has 16 rows of A, and in each half
 * of them two tokens have their ROW_PARTS rows. */
#define HEAD_TOKENS 4
#define ROWS_OF_HALF (HEAD_TOKENS / 2 * ROW_PARTS)

/* logits [n][head.rows] = softcap(head . y), n <= HEAD_TOKENS tokens: drafts that are verified, or
 * the end of a prompt.  The head is BF16.  from: the tokens' vectors, ROW_PARTS rows for each
 * token, so the logits have the bits that head_kernel gives them.  They are read after
 * ptx_grid_wait.  few: as of head_kernel.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring,
 * HEAD_TOKENS * ROW_PARTS rows of the vector.  Rows of tokens that are not there hold garbage, and
 * their sums are thrown away.
 *   1. The block's rows begin to stream; then the vectors come.
 *   2. A warp multiplies eight rows with rows 0 … 5 of the vector (tokens 0 and 1) in the first
 *      half of A, and with rows 6 … 11 in the second half.
 *   3. The three parts of a token are added up, in its first part's lanes. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, 1)
    few_head_kernel(const __grid_constant__ Weight head, const uint16_t *from, int n, float softcap,
                    const int *few, float *logits) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(Strip, strip, [TILES_AT_ONCE]);
    const int lane = threadIdx.x % 32, part = lane / 4;
    const Vector y = vector_at(shared + ring_bytes(DEPTH), head.cols);
    if (few) ptx_grid_wait();           /* an earlier kernel wrote `few` */
    const HeadShare share = head_share(few);
    const uint16_t *x = y.at + (part < ROWS_OF_HALF ? part : 0) * y.stride;
    const uint16_t *x2 = x + ROWS_OF_HALF * y.stride;
    const bool adds = part < ROWS_OF_HALF && part % ROW_PARTS == 0;
    for (int base = share.from; base < share.to || base == share.from; base += TILES_AT_ONCE) {
        /* 1. What streams, and the vectors. */
        const int n_strips = head_strips(share, head, base, strip);
        __syncthreads();
        Feed feed = begin_stream<DEPTH>(shared, strip, n_strips, false, true);
        if (base == share.from) {
            ptx_grid_wait();
            ptx_grid_launch_dependents();
            copy_rows(y, from, n * ROW_PARTS);
        }
        ptx_cp_async_wait<0>();
        __syncthreads();

        /* 2. The products. */
        int slot = 0, free = last_slot(DEPTH);
        for (Span now = feed.all[0]; now.left;) {
            const int units = strip[now.strip].units;
            float acc[4][4] = {};
            for (int at = 0, m; at < units; at += m) {
                m = feed.run ? min(feed.run, units - at) : units - at;
                multiply_run<DEPTH>(feed, slot, free, at, m,
                                    [&](const uint8_t *where, int unit, auto next) {
                    multiply_bf16_twice(acc, where, x, x2, unit, next);
                });
                if (feed.run && !(feed.run -= m)) aim<DEPTH>(feed, strip);
            }

            /* 3. Lane 4 * part + t has the sums of rows 2t and 2t + 1. */
            const int first = first_row(share, base + now.strip, head);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int token = i / 2 * (HEAD_TOKENS / 2) + part / ROW_PARTS;
                const int row = 8 * (int)now.tile + 2 * (lane % 4) + i % 2;
                float v = (acc[0][i] + acc[2][i]) + (acc[1][i] + acc[3][i]);
                const float second = __shfl_down_sync(0xffffffffu, v, 4);
                const float third = __shfl_down_sync(0xffffffffu, v, 8);
                v = v + second + third;
                if (adds && token < n && row < strip[now.strip].rows)
                    logits[(size_t)token * head.rows + first + row] = soft_cap(v, softcap);
            }
            now.left -= units;
            next_rows(now, strip);
        }
        ptx_cp_async_wait<0>();         /* as at the end of `stream` */
        __syncthreads();
    }
}

/* ---- which rows matter ---- */

/* Makes the int8 copy of a BF16 head, once.  A warp takes a row, a lane takes a block of 32
 * columns.  error and norm are measured, so they are right whatever q comes out.  They are summed
 * in double; the factor 1 + 2^-20 covers the roundings of the sums and of the conversion to float,
 * and FLT_MIN covers a square that vanishes in float.  A row with a NaN or an infinity has a NaN as
 * error.  grid (any number of blocks), THREADS threads. */
__global__ static void screen_copy_kernel(Weight head, Screen to) {
    ptx_grid_wait();
    int lane = threadIdx.x % 32;
    for (int r = blockIdx.x * WARPS + threadIdx.x / 32; r < head.rows; r += gridDim.x * WARPS) {
        double error = 0, norm = 0;
        const uint8_t *row = head.data + (size_t)r * row_bytes(head);
        for (int b = lane; b < to.cols / 32; b += 32) {
            float w[32], most = 0;
            for (int i = 0; i < 32; i++) {
                int c = 32 * b + i;
                w[i] = c < head.cols ? bf16_at(row, c) : 0;
                most = fmaxf(most, fabsf(w[i]));
            }
            uint32_t up = (__float_as_uint(most / 127) + 0xffff) & 0xffff0000u;
            float scale = __uint_as_float(up);
            to.scale[(size_t)r * (to.cols / 32) + b] = up >> 16;
            for (int i = 0; i < 32; i++) {
                float q = rintf(w[i] / scale);
                if (!(fabsf(q) <= 127)) q = 0;                      /* 0 / 0, NaN */
                to.q[(size_t)r * to.cols + place_of(32 * b + i)] = (int8_t)q;
                double is = (double)w[i], off = is - (double)scale * q;
                error += off * off;
                norm += is * is;
            }
        }
        for (int step = 16; step; step /= 2) {
            error += __shfl_xor_sync(0xffffffffu, error, step);
            norm += __shfl_xor_sync(0xffffffffu, norm, step);
        }
        if (lane) continue;
        to.error[r] = (float)sqrt(error) * (1 + 0x1p-20f) + FLT_MIN;
        to.norm[r] = (float)(sqrt(norm) + sqrt(error)) * (1 + 0x1p-20f) + FLT_MIN;
    }
}

/* The largest of the block's v >= 0, for all threads.  most: shared, zero since before the last
 * barrier. */
__device__ static inline float block_max(float v, unsigned *most) {
    unsigned of_warp = __reduce_max_sync(0xffffffffu, __float_as_uint(v));
    if (threadIdx.x % 32 == 0) atomicMax(most, of_warp);
    __syncthreads();
    return __uint_as_float(*most);
}

/* What a lane has of SCREEN_COLS columns of two rows, lane / 4 and eight further of a tile of
 * sixteen, a piece: every fourth 16 bytes, and all eight scales. */
typedef struct {
    uint4 w[2][4], scales[2];
} ScreenPiece;

__device__ static inline ScreenPiece load_piece(const Screen &s, int rows, int tile, int piece) {
    ScreenPiece p;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = min(16 * tile + 8 * h + (int)threadIdx.x % 32 / 4, rows - 1);
        const size_t at = (size_t)row * s.cols + piece * SCREEN_COLS;
#pragma unroll
        for (int i = 0; i < 4; i++)
            p.w[h][i] = ptx_load_once16(s.q + at + 64 * i + threadIdx.x % 4 * 16);
        p.scales[h] = ptx_load_once16(s.scale + at / 32);
    }
    return p;
}

/* sum[h] += the products of row h of a piece with token lane % 4's Y.  y: the lane's plane, at its
 * 16 bytes of the piece.  An mma multiplies 32 columns of sixteen rows with eight planes, the high
 * and the low one of each token; they share a scale in each row. */
__device__ static inline void multiply_piece(float sum[2], const ScreenPiece &p, const uint4 *y) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 u = p.w[0][i], v = p.w[1][i], by = y[4 * i];
        const unsigned a[2][4] = {{u.x, v.x, u.y, v.y}, {u.z, v.z, u.w, v.w}};
        const unsigned b[2][2] = {{by.x, by.y}, {by.z, by.w}};
        int d[2][4] = {};
#pragma unroll
        for (int k = 0; k < 2; k++) ptx_mma_s8_16832(d[k], a[k], b[k]);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t scales[4] = {p.scales[h].x, p.scales[h].y, p.scales[h].z,
                                        p.scales[h].w};
            sum[h] += bf16_low(scales[i]) * (float)(256 * d[0][2 * h] + d[0][2 * h + 1]);
            sum[h] += bf16_high(scales[i]) * (float)(256 * d[1][2 * h] + d[1][2 * h + 1]);
        }
    }
}

/* Bytes of a plane of screen_kernel.  With the 64 behind its columns, neighbouring planes lie in
 * different banks of the shared memory. */
__host__ __device__ static inline int plane_bytes(int cols) { return cols + 64; }

/* What a token's bounds depend on, see screen_kernel. */
typedef struct {
    float step, length, beside;
} Screened;

/* Bounds of the logits of n <= HEAD_TOKENS tokens, from the int8 copy: lower[t][r] <= logit[t][r]
 * <= screen.upper[t][r], where logit is what head_kernel and few_head_kernel compute.
 *
 * Why the screened head never changes a token.  Let w be a row of the head and w' its int8 copy.
 * Let y = RMSNorm(x) as computed here, and y' = step * Y its copy of 16-bit integers
 * Y = 256 high + low.  An mma sums the products of w' and Y exactly, 32 columns at a time.  |v| is
 * the 2-norm of v.  The constants below are counts of roundings, each larger than what is counted;
 * none of them is tuned.
 *
 * 1. By Cauchy and Schwarz, twice (as in head.c):
 *        |w y - w' y'| = |(w - w') y + w' (y - y')| <= |w - w'| |y| + |w'| |y - y'|.
 *
 * 2. Both kernels compute their sum in float.  Let no term of a sum of products go through more
 *    than m roundings of 2^-23.  Then the sum is off by at most
 *        m 2^-23 / (1 - m 2^-23) * the sum of the |products|
 *    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), and that sum of the |products|
 *    is at most |w| |y|.  So what steps 3 to 6 count is added up.
 *
 * 3. head_kernel: m = 0.54 cols + 4.  A product goes through at most cols / 32 mma of an
 *    accumulator, each of which may cut off the last bit of its 17 terms (Fasi, Higham, Mikaitis,
 *    Pranesh, Numerical behavior of NVIDIA tensor cores): 17 / 32 cols.  The other two BF16 parts
 *    of y, which together with the first are y exactly, add 2^-8 of that: 0.54 cols.  4 additions
 *    follow.
 *
 * 4. This kernel: m = 0.032 cols + 10.  A product goes through cols / 32 sums, and 6 more
 *    roundings.
 *
 * 5. head_kernel's y differs from this one: its sum of squares is added up in another order (here
 *    cols / 256 + 16 roundings, fewer there), and each number has two more roundings.  That moves
 *    w y by less than
 *        (0.004 cols + 20) 2^-23 |w| |y|.
 *
 * 6. The rounding of step * Y moves |y - y'| by 2^-24 |y|.  Steps 3 to 6 and the denominator
 *    1 - m 2^-23 together are less than (0.75 cols + 64) 2^-23 |w| |y|.  So the two sums differ by
 *    no more than
 *        bound = error |y| + norm (|y - y'| + (0.75 cols + 64) 2^-23 |y|),
 *    where error >= |w - w'|, norm >= |w|, norm >= |w'| (see Screen).
 *
 * 7. |y| and |y - y'| are roots of sums of squares in float: the factor 1.0001 covers their
 *    roundings, and 10^-20 covers squares that vanish.  Another 1.0001 covers the roundings of
 *    `bound` itself.
 *
 * 8. soft_cap rises with its argument.  tanhf is off by 2 ulp at most (CUDA C++ Programming Guide,
 *    "Mathematical Functions"); quotient, product and approx +- bound are off by half an ulp each.
 *    2^-20, which is 8 ulp, covers them.  Where something is not finite nothing is ruled out.
 *
 * 9. k rows have a `lower` in the bin at s->edge or above, so the k-th largest logit is no less
 *    than s->edge.  A row whose `upper` is less than s->edge is therefore less than the k-th
 *    largest logit, and not even a tie with it.  All other rows are computed to the bits of the
 *    whole head.
 *
 * x is [n][head.cols], norm [head.cols]; x is read after ptx_grid_wait.  Does nothing while
 * habit->skip > 0.
 * grid (any number of blocks), THREADS threads; dynamic shared memory: 2 n planes.
 *   1. The first piece of weights is on its way while Y of each token is made.
 *   2. A warp goes through tiles of sixteen rows.  While it multiplies a piece, the next one is on
 *      its way, be it of this tile or of the warp's next tile. */
__global__ static void __launch_bounds__(THREADS, 2)
    screen_kernel(Weight head, Screen screen, const float *x, int n, const float *norm, float eps,
                  float softcap, float *lower) {
    DYNAMIC_SHARED(int8_t, plane);              /* [n][2][plane_bytes(cols)]: high, low */
    SHARED(float, red, [32]);
    SHARED(unsigned, most);
    SHARED(Screened, of, [HEAD_TOKENS]);
    const int cols = screen.cols, size = plane_bytes(cols), lane = threadIdx.x % 32;
    const int pieces = cols / SCREEN_COLS, n_tiles = (head.rows + 15) / 16;
    const int stride = gridDim.x * WARPS;
    int tile = blockIdx.x * WARPS + threadIdx.x / 32;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (screen.habit->skip) return;

    /* 1. */
    ScreenPiece now, next = {};
    if (tile < n_tiles) next = load_piece(screen, head.rows, tile, 0);
    if (threadIdx.x == 0 && blockIdx.x == 0) screen.few[0] = 0;
    for (int t = 0; t < n; t++, x += head.cols) {
        int8_t *high = plane + 2 * t * size, *low = high + size;
        if (threadIdx.x == 0) most = 0;
        float s = rms_scale(x, head.cols, eps, red), v = 0, square = 0, off = 0;
        for (int i = threadIdx.x; i < head.cols; i += THREADS) {
            float y = x[i] * s * norm[i];
            square += y * y;
            v = fmaxf(v, fabsf(y));
        }
        float step = block_max(v, &most) / 32512;   /* 127 * 256: so high stays below 128 */
        for (int i = threadIdx.x; i < cols; i += THREADS) {
            float y = i < head.cols ? x[i] * s * norm[i] : 0, rounded = rintf(y / step);
            int whole = fabsf(rounded) <= 32512 ? (int)rounded : 0, above = (whole + 128) >> 8;
            high[place_of(i)] = (int8_t)above;
            low[place_of(i)] = (int8_t)(whole - 256 * above);
            off += (y - step * whole) * (y - step * whole);
        }
        float length = sqrtf(block_sum(square, red)) * 1.0001f + 1e-20f;
        float rounding = length * (cols * 3 / 4 + 64) * 0x1p-23f;
        float beside = sqrtf(block_sum(off, red)) * 1.0001f + 1e-20f + rounding;
        if (threadIdx.x == 0) of[t] = {step, length, beside};
    }
    __syncthreads();

    /* 2.  A lane whose plane is not there reads another, and its sums are thrown away. */
    const int token = lane % 4;
    const Screened its = of[token < n ? token : 0];
    const int8_t *own = plane + lane / 4 % (2 * n) * size + 16 * token;
    for (; tile < n_tiles; tile += stride) {
        float approx[2] = {};
        for (int piece = 0; piece < pieces; piece++) {
            now = next;
            if (piece + 1 < pieces) next = load_piece(screen, head.rows, tile, piece + 1);
            else if (tile + stride < n_tiles)
                next = load_piece(screen, head.rows, tile + stride, 0);
            multiply_piece(approx, now, (const uint4 *)(own + piece * SCREEN_COLS));
        }
        for (int h = 0; h < 2; h++) {
            const int r = 16 * tile + 8 * h + lane / 4;
            if (token >= n || r >= head.rows) continue;
            const size_t at = (size_t)token * head.rows + r;
            float sum = approx[h] * its.step;
            float bound = (screen.error[r] * its.length + screen.norm[r] * its.beside) * 1.0001f;
            float least = soft_cap(sum - bound, softcap), greatest = soft_cap(sum + bound, softcap);
            int finite = fabsf(sum) + bound < FLT_MAX / 4;
            lower[at] = finite ? least - fabsf(least) * 0x1p-20f - FLT_MIN : -INFINITY;
            screen.upper[at] =
                finite ? greatest + fabsf(greatest) * 0x1p-20f + FLT_MIN : INFINITY;
        }
    }
}

/* Decides, after a step, whether the next steps use the copy.
 *
 * A step that left more than screen.worth tiles has cost more than the whole head.  Then the next
 * 1, 2, 4 … 2^LONGEST_SKIP steps take the whole head, twice as many after each attempt that leaves
 * too many tiles.  Both ways give the same logits.  Where the copy never pays, one attempt in 65
 * steps costs half a head more, which is less than 1 % of the time of the heads. */
__device__ static inline void learn(const Screen &screen) {
    Habit h = *screen.habit;
    if (h.skip) {
        screen.few[0] = -1;
        h.skip--;
    } else if (__ldcg(&screen.few[0]) > screen.worth) {
        h.skip = 1 << h.failed;
        h.failed = min(h.failed + 1, LONGEST_SKIP);
    } else h.failed = 0;
    *screen.habit = h;
}

/* screen.few = the tiles that have a row whose upper bound reaches s->edge, for one of n tokens;
 * all logits [n][rows] become -inf, and head_kernel or few_head_kernel then writes those of the
 * tiles that are left.  In a step that is skipped screen.few becomes -1, which is all tiles.  s [n]
 * is read after ptx_grid_wait.  grid (tiles_of(rows) / THREADS, rounded up), a thread for each
 * tile. */
__global__ static void pick_kernel(Screen screen, int rows, int n, Selection *s, float *logits) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    int tile = blockIdx.x * THREADS + threadIdx.x, wanted = 0;
    int end = screen.habit->skip ? 0 : min(8 * tile + 8, rows);
    for (int t = 0; t < n; t++)
        for (int r = 8 * tile; r < end; r++) {
            if (key_of(screen.upper[(size_t)t * rows + r]) >= s[t].edge) wanted = 1;
            logits[(size_t)t * rows + r] = -INFINITY;
        }
    if (wanted) screen.few[1 + atomicAdd(&screen.few[0], 1)] = tile;
    if (last_block(&s->ticket) && threadIdx.x == 0) learn(screen);
}

/* ---- a drafter's head ---- */

/* Columns of a drafter's head that four lanes load at once of each of eight rows: 512 bytes and the
 * scales, 36 registers of a thread.  load_draft and draft_logit are written for 1024. */
#define DRAFT_COLS 1024

/* A drafter's head in four bits: W[r][c] is about scale * q, c in a block of 32.  A draft may be
 * wrong, as the target verifies it, so nothing is computed exactly afterwards, as behind a Screen.
 * A logit is off by 0.08 standard deviations of the logits (normal weights, no other error), which
 * changes a draft only where the drafter itself hardly knows which of two is better; and a draft
 * reads a quarter of the head's bytes. */
typedef struct {
    int cols;                           /* of q: a multiple of DRAFT_COLS, the rest is zeros */
    /* [rows][cols / 32][16] -8 … 7: of a block of 32 columns, column i is the low nibble of byte i,
     * column 16 + i the high nibble. */
    uint8_t *q;
    /* [rows][cols / DRAFT_COLS][4][8] BF16: of block 4 i + k of DRAFT_COLS columns, scale [k][i],
     * so that a lane's eight scales are neighbours. */
    uint16_t *scale;
} DraftHead;

/* Makes the copy of a BF16 head, once.  A warp takes a row, a lane takes a block of 32 columns.
 * The weight that is farthest from zero is -8 steps: a negative scale is as good as another, and a
 * step is smaller by an eighth than with 7.  grid (any number of blocks), THREADS threads. */
__global__ static void draft_copy_kernel(Weight head, DraftHead to) {
    ptx_grid_wait();
    const int lane = threadIdx.x % 32, blocks = to.cols / 32;
    for (int r = blockIdx.x * WARPS + threadIdx.x / 32; r < head.rows; r += gridDim.x * WARPS) {
        const uint8_t *row = head.data + (size_t)r * row_bytes(head);
        for (int b = lane; b < blocks; b += 32) {
            float w[32], most = 0;
            for (int i = 0; i < 32; i++) {
                w[i] = 32 * b + i < head.cols ? bf16_at(row, 32 * b + i) : 0;
                if (fabsf(w[i]) > fabsf(most)) most = w[i];
            }
            const uint32_t scale = (__float_as_uint(most / -8) + 0x8000) >> 16;
            auto q = [&](int i) {
                const float by = rintf(w[i] / __uint_as_float(scale << 16));
                return fabsf(by) <= 8 ? min((int)by, 7) : 0;            /* 0 / 0, NaN */
            };
            const size_t block = (size_t)r * blocks + b;
            for (int i = 0; i < 16; i++) to.q[16 * block + i] = (q(i) & 15) | (q(16 + i) & 15) << 4;
            to.scale[block / 32 * 32 + b % 4 * 8 + b % 32 / 4] = scale;
        }
    }
}

/* What a lane has of DRAFT_COLS columns of a row: every fourth block, and these blocks' scales. */
typedef struct {
    uint4 q[8], scales;
} DraftPiece;

__device__ static inline DraftPiece load_draft(const DraftHead &h, int row, int piece) {
    DraftPiece p;
    const int part = threadIdx.x % 4;
    const size_t block = ((size_t)row * h.cols + piece * DRAFT_COLS) / 32;
#pragma unroll
    for (int i = 0; i < 8; i++) p.q[i] = ptx_load_once16(h.q + 16 * (block + 4 * i + part));
    p.scales = ptx_load_once16(h.scale + block + 8 * part);
    return p;
}

/* w . y of 16 int8 columns, added to sum. */
__device__ static inline int dot16(const uint4 &w, const uint4 &y, int sum) {
    sum = __dp4a((int)w.w, (int)y.w, sum);
    sum = __dp4a((int)w.z, (int)y.z, sum);
    sum = __dp4a((int)w.y, (int)y.y, sum);
    return __dp4a((int)w.x, (int)y.x, sum);
}

/* The lane's sum of 16 times the products of a piece with y, from the piece's first column on: a
 * nibble is multiplied where it stands, as the upper half of a byte. */
__device__ static inline float draft_logit(const DraftPiece &p, const int8_t *y) {
    const uint32_t scales[4] = {p.scales.x, p.scales.y, p.scales.z, p.scales.w};
    const uint4 *by = (const uint4 *)y + 2 * (threadIdx.x % 4);
    const uint32_t high = 0xf0f0f0f0u;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint4 q = p.q[i];
        const uint4 low4 = make_uint4(q.x << 4 & high, q.y << 4 & high, q.z << 4 & high,
                                      q.w << 4 & high);
        const uint4 high4 = make_uint4(q.x & high, q.y & high, q.z & high, q.w & high);
        const int a = dot16(high4, by[8 * i + 1], dot16(low4, by[8 * i], 0));
        sum += (i % 2 ? bf16_high(scales[i / 2]) : bf16_low(scales[i / 2])) * (float)a;
    }
    return sum;
}

/* The draft is the row of `head` whose product with RMSNorm(x, norm) is the largest, as give_draft
 * has it; n_rows, and x and norm [n].  The vector becomes int8, whatever the factor: it does not
 * change which logit is the largest.  x is read after ptx_grid_wait.
 * grid (any number of blocks), THREADS threads; dynamic shared memory: head.cols bytes. */
__global__ static void draft_kernel(DraftHead head, int n_rows, const float *x, const float *norm,
                                    int n, Selection *s, Step *step, int *token) {
    DYNAMIC_SHARED(int8_t, y);
    SHARED(unsigned, most);
    const int pieces = head.cols / DRAFT_COLS, n_tiles = tiles_of(n_rows);
    const int stride = gridDim.x * WARPS;
    int tile = blockIdx.x * WARPS + threadIdx.x / 32;
    auto row_of = [&](int tile) { return min(8 * tile + (int)threadIdx.x % 32 / 4, n_rows - 1); };
    DraftPiece now, next = {};
    if (tile < n_tiles) next = load_draft(head, row_of(tile), 0);
    if (threadIdx.x == 0) most = 0;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    float v = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) v = fmaxf(v, fabsf(x[i] * norm[i]));
    __syncthreads();
    const float by = 127 / block_max(v, &most);
    for (int i = threadIdx.x; i < head.cols; i += THREADS) {
        const float rounded = i < n ? rintf(x[i] * norm[i] * by) : 0;
        y[i] = fabsf(rounded) <= 127 ? (int8_t)rounded : 0;
    }
    __syncthreads();
    unsigned long long best = 0;
    for (; tile < n_tiles; tile += stride) {
        float logit = 0;
        for (int piece = 0; piece < pieces; piece++) {
            now = next;
            if (piece + 1 < pieces) next = load_draft(head, row_of(tile), piece + 1);
            else if (tile + stride < n_tiles) next = load_draft(head, row_of(tile + stride), 0);
            logit += draft_logit(now, y + piece * DRAFT_COLS);
        }
        logit += __shfl_xor_sync(0xffffffffu, logit, 1);
        logit += __shfl_xor_sync(0xffffffffu, logit, 2);
        best = max(best, candidate(logit, row_of(tile)));
    }
    give_draft(best, s, step, token);
}

#endif
