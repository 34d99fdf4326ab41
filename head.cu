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
 * (count_kernel in top.cu, pick_kernel), and head_kernel computes the others.  The host launches
 * the same kernels whatever an earlier one found.  Where the copy does not pay, the kernels
 * themselves turn to the whole head (Habit).  head.c does the same on the CPU, in fewer lines. */
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
/* Columns of the int8 copy that a warp loads of each of eight rows at once: 2 KB and the scales, 20
 * registers of a thread.  load_piece and multiply_piece are written for 256. */
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
    int8_t *q;                          /* [rows][cols] */
    uint16_t *scale;                    /* [rows][cols / 32] */
    float *error;                       /* [rows] no less than |W[r] - W'[r]| (2-norms) */
    float *norm;                        /* [rows] no less than |W[r]| and no less than |W'[r]| */
    float *upper;                       /* [rows] upper bounds of the last token's logits */
    /* [1 + tiles_of(rows)] how many tiles of eight rows are left, and which; few[0] -1: all. */
    int *few;
    Habit *habit;
    int worth;                          /* the copy pays while no more tiles are left */
} Screen;

__device__ static inline float bf16_at(const uint8_t *p, size_t i) {
    return __uint_as_float((uint32_t)((const uint16_t *)p)[i] << 16);
}

/* ---- all logits, or those that are not ruled out ---- */

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
    if (few && few[0] < 0) few = NULL;
    /* The whole head is one strip, this block's share of the rows.  Otherwise the strips are this
     * block's share of the tiles that are left, TILES_AT_ONCE of them in a turn. */
    const int whole_from = share_begin(head.rows), whole_to = share_end(head.rows);
    auto first_row = [&](int tile) { return few ? 8 * few[1 + tile] : whole_from; };
    const int packed = is_nibbles(head), tiles = few ? few[0] : 1;
    const Normed normed = {norm, NULL, 0, packed};
    prefetch_norms(r, head.cols, normed);
    const int from = few ? share_begin(tiles) : 0;
    const int to = few ? share_end(tiles) : 1;
    Vector y = vector_at(shared + ring_bytes(DEPTH), head.cols);
    for (int base = from; base < to || base == from; base += TILES_AT_ONCE) {
        const int n = to - base < TILES_AT_ONCE ? to - base : TILES_AT_ONCE;
        for (int i = threadIdx.x; i < n; i += STREAM_THREADS) {
            int row = first_row(base + i);
            int end = few ? row + 8 : whole_to;
            strip[i] = strip_of(head, row, end < head.rows ? end : head.rows, 0, packed);
        }
        __syncthreads();
        Feed feed = begin_stream<DEPTH>(shared, strip, n, false, true);
        if (base == from)
            settle_and_norm(r, head.cols, y, normed, red, (float *)behind(y), [] {});
        __syncthreads();
        auto done = [&](int i, int row, float sum) {
            logits[first_row(base + i) + row] = soft_cap(sum, softcap);
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
 * ptx_grid_wait.
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
                    float *logits) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(Strip, strip, [1]);
    const int lane = threadIdx.x % 32, part = lane / 4, first_row = share_begin(head.rows);
    const Vector y = vector_at(shared + ring_bytes(DEPTH), head.cols);

    /* 1. What streams, and the vectors. */
    if (threadIdx.x == 0) strip[0] = share_of(head, 0, 0);
    __syncthreads();
    Feed feed = begin_stream<DEPTH>(shared, strip, 1, false, true);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    copy_rows(y, from, n * ROW_PARTS);
    ptx_cp_async_wait<0>();
    __syncthreads();

    /* 2. The products. */
    const uint16_t *x = y.at + (part < ROWS_OF_HALF ? part : 0) * y.stride;
    const uint16_t *x2 = x + ROWS_OF_HALF * y.stride;
    const bool adds = part < ROWS_OF_HALF && part % ROW_PARTS == 0;
    const int units = strip[0].units, rows = strip[0].rows;
    int slot = 0, free = last_slot(DEPTH);
    for (Span now = feed.all[0]; now.left; now.left -= units, now.tile++) {
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
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = i / 2 * (HEAD_TOKENS / 2) + part / ROW_PARTS;
            const int row = 8 * (int)now.tile + 2 * (lane % 4) + i % 2;
            float v = (acc[0][i] + acc[2][i]) + (acc[1][i] + acc[3][i]);
            const float second = __shfl_down_sync(0xffffffffu, v, 4);
            const float third = __shfl_down_sync(0xffffffffu, v, 8);
            v = v + second + third;
            if (adds && token < n && row < rows)
                logits[(size_t)token * head.rows + first_row + row] = soft_cap(v, softcap);
        }
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
                to.q[(size_t)r * to.cols + 32 * b + i] = (int8_t)q;
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

/* What a lane has of SCREEN_COLS columns of eight rows, a piece: of row lane / 4 every fourth 16
 * columns, and all eight scales. */
typedef struct {
    uint4 w[4], scales;
} ScreenPiece;

__device__ static inline ScreenPiece load_piece(const Screen &s, int row, int piece) {
    ScreenPiece p;
    const int8_t *from = s.q + (size_t)row * s.cols + piece * SCREEN_COLS + threadIdx.x % 4 * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) p.w[i] = ptx_load_once16(from + 64 * i);
    p.scales = ptx_load_once16(s.scale + ((size_t)row * s.cols + piece * SCREEN_COLS) / 32);
    return p;
}

/* w . y of 16 int8 columns, added to sum. */
__device__ static inline int dot16(const uint4 &w, const uint4 &y, int sum) {
    sum = __dp4a((int)w.w, (int)y.w, sum);
    sum = __dp4a((int)w.z, (int)y.z, sum);
    sum = __dp4a((int)w.y, (int)y.y, sum);
    return __dp4a((int)w.x, (int)y.x, sum);
}

/* The lane's sum of products of a piece with Y.  high and low: Y's planes (see screen_kernel), at
 * the piece's first column. */
__device__ static inline float multiply_piece(const ScreenPiece &p, const uint4 *high,
                                             const uint4 *low) {
    const int t = threadIdx.x % 4;
    const uint32_t scales[4] = {p.scales.x, p.scales.y, p.scales.z, p.scales.w};
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int a = dot16(p.w[i], low[4 * i + t], 256 * dot16(p.w[i], high[4 * i + t], 0));
        sum += (t < 2 ? bf16_low(scales[i]) : bf16_high(scales[i])) * (float)a;
    }
    return sum;
}

/* Bounds of the logits of one token, from the int8 copy: lower[r] <= logit[r] <= screen.upper[r],
 * where logit is what head_kernel computes.
 *
 * Why the screened head never changes a token.  Let w be a row of the head and w' its int8 copy.
 * Let y = RMSNorm(x) as computed here, and y' = step * Y its copy of 16-bit integers
 * Y = 256 high + low.  __dp4a sums the products of w' and Y exactly, 16 columns at a time.  |v| is
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
 * 4. This kernel: m = 0.004 cols + 10.  A product goes through 4 sums in a piece, cols / 256 sums
 *    of pieces, and 6 more roundings.
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
 * x and norm are [head.cols]; x is read after ptx_grid_wait.  Does nothing while habit->skip > 0.
 * grid (any number of blocks), THREADS threads; dynamic shared memory: 2 * screen.cols bytes. */
__global__ static void screen_kernel(Weight head, Screen screen, const float *x, const float *norm,
                                     float eps, float softcap, float *lower) {
    DYNAMIC_SHARED(int8_t, plane);              /* [2][cols]: high, low */
    SHARED(float, red, [32]);
    SHARED(unsigned, most);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (screen.habit->skip) return;
    int cols = screen.cols, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) most = 0;
    if (threadIdx.x == 0 && blockIdx.x == 0) screen.few[0] = 0;
    float s = rms_scale(x, head.cols, eps, red), v = 0, square = 0, off = 0;
    for (int i = threadIdx.x; i < head.cols; i += blockDim.x) {
        float y = x[i] * s * norm[i];
        square += y * y;
        v = fmaxf(v, fabsf(y));
    }
    float step = block_max(v, &most) / 32512;   /* 127 * 256: so high stays below 128 */
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        float y = i < head.cols ? x[i] * s * norm[i] : 0, rounded = rintf(y / step);
        int n = fabsf(rounded) <= 32512 ? (int)rounded : 0, high = (n + 128) >> 8;
        plane[i] = (int8_t)high;
        plane[cols + i] = (int8_t)(n - 256 * high);
        off += (y - step * n) * (y - step * n);
    }
    float length = sqrtf(block_sum(square, red)) * 1.0001f + 1e-20f;
    float rounding = length * (cols * 3 / 4 + 64) * 0x1p-23f;
    float beside = sqrtf(block_sum(off, red)) * 1.0001f + 1e-20f + rounding;
    const uint4 *high = (const uint4 *)plane, *low = (const uint4 *)(plane + cols);
    /* A warp goes through tiles of eight rows.  While it multiplies a piece, the next one is on its
     * way, be it of this tile or of the warp's next tile. */
    const int pieces = cols / SCREEN_COLS, n_tiles = tiles_of(head.rows);
    const int stride = gridDim.x * WARPS;
    int tile = blockIdx.x * WARPS + threadIdx.x / 32;
    auto row_of = [&](int tile) { return min(8 * tile + lane / 4, head.rows - 1); };
    ScreenPiece now, next = {};
    if (tile < n_tiles) next = load_piece(screen, row_of(tile), 0);
    for (; tile < n_tiles; tile += stride) {
        const int r = row_of(tile);
        float approx = 0;
        for (int piece = 0; piece < pieces; piece++) {
            now = next;
            if (piece + 1 < pieces) next = load_piece(screen, r, piece + 1);
            else if (tile + stride < n_tiles) next = load_piece(screen, row_of(tile + stride), 0);
            const int at = piece * (SCREEN_COLS / 16);
            approx += multiply_piece(now, high + at, low + at);
        }
        approx += __shfl_xor_sync(0xffffffffu, approx, 1);
        approx += __shfl_xor_sync(0xffffffffu, approx, 2);
        if (lane % 4 || 8 * tile + lane / 4 >= head.rows) continue;
        approx *= step;
        float bound = (screen.error[r] * length + screen.norm[r] * beside) * 1.0001f;
        float least = soft_cap(approx - bound, softcap);
        float greatest = soft_cap(approx + bound, softcap);
        int finite = fabsf(approx) + bound < FLT_MAX / 4;
        lower[r] = finite ? least - fabsf(least) * 0x1p-20f - FLT_MIN : -INFINITY;
        screen.upper[r] = finite ? greatest + fabsf(greatest) * 0x1p-20f + FLT_MIN : INFINITY;
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

/* screen.few = the tiles that have a row whose upper bound reaches s->edge; all logits become -inf,
 * and head_kernel then writes those of the tiles that are left.  In a step that is skipped
 * screen.few becomes -1, which is all tiles.  s->edge is read after ptx_grid_wait.  grid
 * (tiles_of(rows) / THREADS, rounded up), a thread for a tile. */
__global__ static void pick_kernel(Screen screen, int rows, Selection *s, float *logits) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    int tile = blockIdx.x * THREADS + threadIdx.x, wanted = 0;
    int end = screen.habit->skip ? 0 : min(8 * tile + 8, rows);
    for (int r = 8 * tile; r < end; r++) {
        if (key_of(screen.upper[r]) >= s->edge) wanted = 1;
        logits[r] = -INFINITY;
    }
    if (wanted) screen.few[1 + atomicAdd(&screen.few[0], 1)] = tile;
    if (last_block(&s->ticket) && threadIdx.x == 0) learn(screen);
}

#endif
