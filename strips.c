/* strips.c - many tokens at once with AVX2 and NEON (`float_strips` in kernels.h).  With AVX2 they
 * serve the matrices that do not meet panels.  Attention has strips with AVX-512, too (flash.c).
 *
 * A prompt is bound by arithmetic, so a weight must meet as many tokens as possible once it is in a
 * register.  A strip has 16 tokens as float32, column after column, and the kernel `tile`
 * multiplies a column of a few rows of W with a column of a strip: each number of W is broadcast
 * to 16 tokens, each vector of the strip meets all of the rows, and the sums stay in registers.
 * The rows of W become float32 once for all tokens.  So nothing is rounded but the sums.
 *
 * The order of a sum is column after column from the first to the last, whatever the number of
 * tokens, rows and threads.  It is not the order of the kernels for few tokens (kernels.h). */
#include "cpu.h"

/* Columns that are multiplied at a time: 256 of a strip are 16 KB and stay in the nearest cache
 * while all rows meet them; 256 of 64 rows are 64 KB in the second-level cache.  Chosen by these
 * counts; nobody has timed other values.  To tune it, compare prompts of 512 tokens of an FP8
 * checkpoint with GEMMA4_CPU=avx2. */
#define COLS_AT_ONCE 256

/* Strips whose sums are kept at a time: with 64 rows 16 KB.  Chosen by this count; tuned as
 * COLS_AT_ONCE. */
#define STRIPS_AT_ONCE 4

typedef float StripSums[STRIPS_AT_ONCE][MANY_ROWS / 2][STRIP_TOKENS];

void to_strip(const Kernels *kn, const float *const x[STRIP_TOKENS], int n, int cols,
              uint8_t *strip) {
    float *to_floats = (float *)strip;
    if (kn->to_strip) {
        kn->to_strip(x, n, cols, strip);
        return;
    }
    for (int from = 0; from < cols; from += 16) {
        int to = from + 16 < cols ? from + 16 : cols;
        for (int t = 0; t < n; t++)
            for (int c = from; c < to; c++) to_floats[STRIP_TOKENS * c + t] = x[t][c];
    }
}

/* sum[r] = rows[r] . the strip over `cols` columns, or with add 1 sum[r] += it: the columns from
 * those on that rows and strip point to.  rows: float32, `stride` apart. */
static void multiply_columns(const Kernels *kn, const float *rows, int stride, int n_rows, int cols,
                             const float *strip, int add, float (*sum)[STRIP_TOKENS]) {
    for (int r = 0; r < n_rows; r += TILE_ROWS) {
        int count = n_rows - r < TILE_ROWS ? n_rows - r : TILE_ROWS;
        kn->tile(rows + (int64_t)r * stride, stride, count, strip, STRIP_TOKENS, cols, sum[r],
                 STRIP_TOKENS, add);
    }
}

/* y[t][r] = scale * sum for n tokens. */
static void put_sums(StripSums sum, int n, int n_rows, float scale, float *y, int ldy) {
    for (int t = 0; t < n; t++)
        for (int r = 0; r < n_rows; r++)
            y[(int64_t)t * ldy + r] = scale * sum[t / STRIP_TOKENS][r][t % STRIP_TOKENS];
}

void multiply_float_strips(const Kernels *kn, const float *rows, int stride, int cols,
                           const float *strips, int strip_cols, int n, int n_rows, float scale,
                           float *y, int ldy) {
    enum { MOST = STRIPS_AT_ONCE * STRIP_TOKENS };
    _Alignas(64) StripSums sum;
    int64_t each = strip_size(strip_cols) / 4;
    for (int t = 0; t < n; t += MOST) {
        int count = n - t < MOST ? n - t : MOST;
        const float *strip = strips + t / STRIP_TOKENS * each;
        for (int c = 0; c < cols; c += COLS_AT_ONCE) {
            int few = cols - c < COLS_AT_ONCE ? cols - c : COLS_AT_ONCE;
            for (int s = 0; STRIP_TOKENS * s < count; s++)
                multiply_columns(kn, rows + c, stride, n_rows, few,
                                 strip + s * each + STRIP_TOKENS * c, c > 0, sum[s]);
        }
        put_sums(sum, count, n_rows, scale, y + (int64_t)t * ldy, ldy);
    }
}
