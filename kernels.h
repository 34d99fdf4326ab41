/* kernels.h - the kernels under the CPU's files: number formats, dot products.
 *
 * There is one set in plain C (kernels_c.c), four for x86 (kernels_x86.c): AVX2, AVX2 with
 * AVX-VNNI, AVX-512, AMX, and two for ARM (kernels_neon.c): NEON, and NEON with products of BF16.
 * kernels.c decides which set a device gets when it is opened.
 *
 * Which bits the kernels promise.  All sum a row in 16 lanes, column c in lane c % 16, and fold
 * these in the same order; so a sum never depends on how many rows or tokens are computed beside
 * it.  MODEL.md, "Which bits are promised", says what follows for an answer.  On numbers whose
 * products are exact, all sets give the bits of plain C (tests/kernel_sets.c); otherwise a fused
 * multiply-add rounds once where plain C rounds twice.  Five kernels add in an order of their own:
 * `nvfp4` and `integers`, whose lanes differ from set to set, `gemm`, panels (PanelKernels), and
 * `tile`, which goes from the first column to the last. */
#ifndef KERNELS_H
#define KERNELS_H

#include <math.h>

#include "minifloat.h"
#include "ops.h"

/* A pass of a kernel multiplies ROWS rows of W with up to TOKENS tokens.  Each row that is loaded
 * serves all tokens, each token all rows, and the 4 x 6 sums of 16 lanes stay in registers: 24 of
 * AVX-512's 32.  AVX2 and NEON have fewer registers and split a pass.  The kernels are written for
 * these two numbers, so neither can be changed alone. */
#define ROWS 4
#define TOKENS 6
#define BLOCK 32                        /* activations of a token are packed in multiples of it */

/* What a sum of `nvfp4` is to be multiplied with: values are doubled there, and scales divided by
 * 2^8.  Exact. */
#define NVFP4_FACTOR (0.5f * 256)

/* Rows of a tile of float32: with two vectors of 8 columns each, 12 of AVX2's 16 registers hold
 * sums; with two of 4 columns, 16 of NEON's 32, beside 8 that hold rows. */
#if defined(__aarch64__)
#define TILE_ROWS 8
#else
#define TILE_ROWS 6
#endif

/* Rows of a panel: two vectors of AVX-512, four of AVX2 (see PanelKernels). */
#define PANEL_ROWS 32

/* Flash attention (flash.c): queries (pairs of a token and a head) of a task, and the keys that
 * they take together before the softmax goes on.  Multiples of 16 and of 32.  Their scores and
 * weights are 128 KB, which stay in the second-level cache beside the rows of K and V.  How 128 was
 * found is not recorded.  To tune them, compare prompts after 4096 tokens with GEMMA4_CPU=amx and
 * avx2; other FLASH_KEYS change the last bits. */
#define FLASH_QUERIES 128
#define FLASH_KEYS 128

#define MAX_X (127 * 256 + 127)         /* the largest number whose upper byte, rounded, is int8 */
#define MAX_Y 8191                      /* of 14 bits with the sign: see dot_int8 */

/* The exponential functions of softmax and gelu take numbers up to this size; larger ones count as
 * this.  e^-64 = 1.6e-28 is nothing beside a weight of 1.  It is far above the smallest normal
 * number (1.2e-38), so that its products with weights and scales are normal numbers, too:
 * subnormal ones cost a processor a hundred cycles each.  With 87 in its place a token of 30 layers
 * of random INT4, whose gates often lie below -10, took 1.4 times as long. */
#define MOST_EXP 64

/* e^x for x <= 0, with the limit; NaN stays. */
static inline float limited_exp(float x) { return expf(x < -MOST_EXP ? -MOST_EXP : x); }

/* Up to ROWS rows of FP8 or integers, as ops.h describes them, with the scales and the zero points
 * of their groups of columns, as they lie in the file. */
typedef struct {
    const uint8_t *row[ROWS];
    const uint8_t *scale[ROWS];         /* [n_groups] of scale_dtype */
    /* Words [n_groups] that have a nibble for the row, so many bits above the lowest one; NULL:
     * all zero points are the middle of the range. */
    const uint8_t *zero[ROWS];
    int zero_shift[ROWS];
    DType scale_dtype;
    int bits;                           /* 4 or 8: of an integer; 0: E4M3 */
    int group;                          /* columns; a multiple of 16, or at least all of them */
    int n_groups;                       /* of a row */
} GroupedRows;

/* The scale and the zero point of group k of row r. */
static inline float scale_of(const GroupedRows *g, int r, int k) {
    return float_at(g->scale_dtype, g->scale[r], k);
}

static inline int zero_of(const GroupedRows *g, int r, int k) {
    if (!g->zero[r]) return g->bits == 8 ? 128 : 8;
    return g->zero[r][4 * k + g->zero_shift[r] / 8] >> g->zero_shift[r] % 8 & 15;
}

/* Rows of W for `gemm`.  A number is scale[r] * upper[r][c], or scale[r] * (upper[r][c] +
 * lower[r][c]) where lower is not NULL.  The rows up to a multiple of 32 may be read, too. */
typedef struct {
    const uint16_t *upper, *lower;      /* BF16, rows `stride` numbers apart */
    int stride, cols, n;                /* cols is a multiple of 32 */
    const float *scale;                 /* [n] */
    int upper_alone;                    /* 1: the second part of each activation is left out */
} StripRows;

/* PANEL_ROWS rows of NVFP4 (DT_U8), of INT4 or INT8 (DT_I32) or of BF16. */
typedef struct {
    DType dtype;
    int cols;                           /* of NVFP4 a multiple of 16, of integers of their group */
    float scale;                        /* of an NVFP4 matrix */
    /* Of NVFP4 `scale` are the block scales.  BF16 needs `row` alone. */
    GroupedRows four[PANEL_ROWS / ROWS];
} PanelRows;

/* Tokens that meet panels, as `pack` of PanelKernels made them: token t begins `size` bytes behind
 * token t - 1.  token [n]: the numbers of those that are meant; NULL: 0 .. n - 1. */
typedef struct {
    const uint8_t *x;
    int64_t size;
    const int *token;
    int n;
} PanelTokens;

/* Many tokens at once with rounded activations.  Rows of W become a panel of integers, column after
 * column, whose lanes are the rows; a token's activation is broadcast to them.  The panel is made
 * once for all tokens.  A record is 32 columns of a token as integers with one scale: with 16 bits
 * the largest / 32767, which rounds as `pack` does, but for more columns; with 8 bits the largest /
 * 127, and a product takes half of the instructions.  A record has 32 columns, because a task of 32
 * rows makes 32 columns of the next product (ROWS_PER_TASK in cpu.h) and so can pack them.
 *
 * NVFP4 and integers are exact.  BF16 is rounded: 16 columns of a row share a power of 2, of which
 * they are multiples of up to 4080.  So a number of at least 1/16 of the largest one's power of 2
 * stays exact, and another loses at most 2^-12 of that power.  That takes half of the time of
 * float32 and moves the toy's distribution of the next token by 5 * 10^-9 (bench/quality.md).
 *
 * The order of a sum: the products of 16 columns, or of 32 of integers, are added up as
 * integers, exactly, and converted.  The two of 32 columns, times their scales, are added in
 * float32, and this sum, times the token's scale, is added to those of the columns before it.  That
 * is the same for a token whatever stands beside it, but it is not the order of `nvfp4`, `integers`
 * and `bf16`. */
typedef struct {
    int bits;                           /* of an activation */
    int record;                         /* bytes of one */
    /* Columns from .. to - 1 of a token's `cols` into its records; `from` is a multiple of BLOCK,
     * `to` one or cols.  What lies beyond the last is 0.  A NaN makes its whole record NaN. */
    void (*pack)(const float *x, int from, int to, int cols, uint8_t *packed);
    /* sum[t][r] = W[r] . x[t] for all rows and tokens. */
    void (*multiply)(const PanelRows *w, PanelTokens x, float (*sum)[PANEL_ROWS]);
    int no_int8;                        /* 1: for INT8 `multiply` takes 16 bits all the same */
} PanelKernels;

typedef struct {
    const char *name;                   /* what GEMMA4_CPU calls the set */

    /* ---- number formats: one row of W, or n numbers of it, as float32 ---- */

    void (*expand_bf16)(const uint8_t *data, int n, float *out);
    void (*expand_nvfp4)(const uint8_t *data, const uint8_t *block_scale, float scale, int n,
                         float *out);
    void (*expand_e4m3)(const uint8_t *data, float scale, int n, float *out);
    void (*expand_f16)(const uint8_t *data, int n, float *out);
    /* out[i] = (data[i] - zero) * scale: bytes, or nibbles, two to a byte, the first in the low
     * half; n is a multiple of 32. */
    void (*expand_int8)(const uint8_t *data, int zero, float scale, int n, float *out);
    void (*expand_int4)(const uint8_t *data, int zero, float scale, int n, float *out);

    /* ---- products with float32 ---- */

    /* out[i] = a . b[i], four at a time. */
    void (*dot4)(const float *a, const float *const b[4], int n, float out[4]);
    /* y = (((y + s[0] * x[0]) + s[1] * x[1]) + s[2] * x[2]) + s[3] * x[3] */
    void (*axpy4)(float *y, const float *const x[4], const float s[4], int n);
    /* c[r][0 .. 15] = a[r][0 .. n - 1] . b [n][16] for r < n_rows <= TILE_ROWS, or with add 1 c is
     * added to; rows lda, ldb and ldc apart.  Each sum goes from the first column to the last, by
     * fused multiply-adds but in plain C. */
    void (*tile)(const float *a, int lda, int n_rows, const float *b, int ldb, int n, float *c,
                 int ldc, int add);
    /* out[i] = e^(s[i] - most) for i < n, in all sets but plain C's e^-MOST_EXP where that is more;
     * returns their sum.  s and out may be the same. */
    float (*exp_less)(const float *s, int n, float most, float *out);
    /* s [n] becomes its softmax. */
    void (*softmax)(float *s, int n);

    /* All that follows is NULL or 0 in plain C. */

    /* 1: many tokens come in strips of float32 (strips.c), but for matrices that meet panels.  For
     * AVX2 and NEON.  The products of `nvfp4` and `bf16` of AVX2 took 7.3 s of user time for a
     * prompt of 512 tokens and 30.4 s for 2048, strips 5.5 s and 22.4 s (four layers of full width,
     * one thread of a Xeon).  With AVX-512 strips are slower than `bf16` for any number of tokens,
     * and than `grouped` for 12 tokens of FP8; for 32 of these they are a fifth faster.  Nobody has
     * timed NEON; with strips a prompt takes fewer instructions and loads (bench/README.md,
     * "ARM"). */
    int float_strips;
    /* 1: attention of many tokens is flash attention (flash.c), with `tile` where there is no
     * `gemm`.  With AVX-512 a prompt of 2048 tokens took 15.2 to 16.6 s of user time without it and
     * 14.7 to 14.9 s with it, one of 512 tokens 3.5 and 3.4 to 3.5 s (as above). */
    int flash;

    /* The sums of 16 lanes each. */
    void (*fold)(const float sum[ROWS][16], float out[ROWS]);
    /* sum[t][r] += W[r] . x[t] over the columns from .. to - 1, for t < n: rows of BF16, expanded
     * in registers.  Whole 16s alone; with fold and dot_rest the same bits as expand_bf16 and dot4.
     * ahead: rows so many bytes behind these will be wanted soon; 0: nothing is known. */
    void (*bf16)(const uint8_t *const row[ROWS], int from, int to, const float *const x[TOKENS],
                 int n, float sum[TOKENS][ROWS][16], int ahead);
    /* `bf16` with rows of FP8 or integers, to the bits of expand_e4m3, expand_int8 or expand_int4
     * and dot4.  from is a multiple of the group.  NULL: there is none. */
    void (*grouped)(const GroupedRows *w, int from, int to, const float *const x[TOKENS], int n,
                    float sum[TOKENS][ROWS][16], int ahead);
    /* To so many tokens `grouped` is used; with more, rows are expanded once for all of them.  3
     * for AVX2: a prompt of 256 tokens of INT4 took 3.8 s with `grouped` and 2.8 s without (one
     * thread, two layers of full width).  AVX-512 took 2.1 s and 3.0 s.  To tune it, time both
     * again with --exact.  3 for NEON is AVX2's number, as nothing is known of NEON's speed. */
    int few;
    /* n numbers of E4M3 as BF16, exactly. */
    void (*e4m3_to_bf16)(const uint8_t *data, int n, uint16_t *out);
    /* y[q][i] += p[q][0] v[0][i], then p[q][1] v[1][i] and so on, for q < n and i < dim, a multiple
     * of 16: rows of BF16 that n queries share, those of y and p ldy and ldp apart.  The same bits
     * as axpy4. */
    void (*add_rows)(float *y, int ldy, const float *p, int64_t ldp, int n, const uint8_t *const *v,
                     int n_rows, int dim, int ahead);

    /* ---- NVFP4 and integers times activations of 16 bits ---- */

    /* sum[t][r] += W[r] . x[t] over the columns from .. to - 1, for t < n.  W is NVFP4 with its
     * block scales but without the matrix's scale; x are packed activations (see `pack`).  The
     * caller multiplies the sums by NVFP4_FACTOR * the matrix's scale; `ahead` is as in bf16.  Sums
     * are integers over 8 columns, then float32 in 4, 8 or 16 lanes: bits of their own in each set,
     * but the same for a token whatever stands beside it.  from is a multiple of `group`, to one or
     * the end. */
    void (*nvfp4)(const uint8_t *const row[ROWS], const uint8_t *const block_scale[ROWS], int from,
                  int to, const uint8_t *const x[TOKENS], int n, float sum[TOKENS][ROWS][16],
                  int ahead);
    /* `nvfp4` with rows of INT4 or INT8 and their scales; no factor is left for the caller.  Lanes
     * of AVX2 have 4 columns of INT8.  from is a multiple of 128.  Not NULL where nvfp4 is not. */
    void (*integers)(const GroupedRows *w, int from, int to, const uint8_t *const x[TOKENS], int n,
                     float sum[TOKENS][ROWS][16], int ahead);
    /* Columns from .. to - 1, multiples of BLOCK, of the `cols` activations of a token into its
     * packed form; what lies beyond the last is 0.  Eight numbers have a scale, the largest /
     * MAX_X; they are whole multiples of it, 256 * upper + lower.  The form is packed_size(cols)
     * bytes: for each `group` of columns int8 [group / 2] upper of the even ones, [group / 2] of
     * the odd ones, likewise lower, [group / 8] int32 each -16 times the sum of 8 columns (not for
     * ARM), [group / 8] float their scales. */
    void (*pack)(const float *x, int from, int to, int cols, uint8_t *packed);
    int group;                          /* 32, 64 or 128 */
    /* g = gelu(g) * u, within 10^-6 of the formula in gelu_times (moe.c). */
    void (*gelu_times)(float *g, const float *u, int n);

    /* Products of NVFP4, integers and BF16 with many tokens, whose activations have 16 bits; or of
     * NVFP4 and integers (AVX2 alone: not of INT8) with activations of 8 bits.  NULL: there are
     * none. */
    const PanelKernels *panels, *panels8;

    /* ---- the head's int8 copy: see head.c ---- */

    /* A row of BF16 as q * scale, cols a multiple of 16: rounded = {scale, |row - q * scale|,
     * |row|}, 2-norms within 10^-4. */
    void (*round_row)(const uint8_t *row, int cols, int8_t *q, float rounded[3]);
    /* out[r] = q[r] . y, exactly, for |y| <= MAX_Y and cols <= 32768, a multiple of 64; ahead: as
     * in bf16. */
    void (*dot_int8)(const int8_t *const q[ROWS], const int16_t *y, int cols, int64_t out[ROWS],
                     int ahead);

    /* ---- many tokens in strips of BF16, with AMX and neon-bf16, else NULL: see multiply.c ----
     *
     * Both factors are BF16.  W is exact where it is BF16; where it is NVFP4, which without the
     * matrix's scale is a value of two bits times a block's scale of four; and where it is FP8
     * with a scale for a row.  A number of another format, and an activation, is the sum of two
     * BF16, the second what the first leaves, which is 16 bits of it: enough, as the toy's
     * distribution of the next token moves by 10^-10 (bench/quality.md).  A third one would be
     * exact, and cost half as much again.  With `upper_alone` an activation is one BF16.
     *
     * The order of a sum: a step of AMX (TDPBF16PS) takes 32 columns.  It sums the 16 even ones and
     * the 16 odd ones, each from 0 with fused multiply-adds, adds the two, and adds that to the
     * float32 of the tile; it rounds to nearest, and subnormals are 0.  The upper and the lower
     * halves of the activations follow each other in one sum, or have sums of their own that are
     * added at the end.  Which of the two depends on how many tokens share the tiles, so a token's
     * bits depend on its place among the step's tokens, never on the number of threads.
     *
     * A step of neon-bf16 (BFMMLA) takes 4 columns.  Twice it adds the exact products of two
     * columns to each other, and the result to the sum.  Both additions round to odd, so each is
     * off by less than a unit in the last place, twice as much as one that rounds to the nearest;
     * subnormals are 0.  (FPCR.EBF is 0 in a Linux process; 1 would fuse the additions.)  A sum
     * goes from the first column to the last, 4 columns of the activations' upper halves before the
     * 4 of the lower halves; the lower halves of W follow after each 8 columns.  So a token's bits
     * do not depend on the tokens beside it. */

    /* A row of n numbers, a multiple of 16, as BF16. */
    void (*nvfp4_to_bf16)(const uint8_t *data, const uint8_t *block_scale, int n, uint16_t *out);
    /* x [n], n a multiple of 32, as the sum of two BF16, the second what the first leaves. */
    void (*split)(const float *x, int n, uint16_t *upper, uint16_t *lower);
    /* n <= 16 tokens as a strip of strip_size(cols) bytes, zeros beyond the last column: for AMX
     * [2][cols / 2][16 tokens][2], for neon-bf16 [2 halves of 8 tokens][cols / 4][2][8 tokens][4].
     */
    void (*to_strip)(const float *const x[16], int n, int cols, uint8_t *strip);
    /* Row 0 of w, n columns of INT4, as the sum of two BF16. */
    void (*int4_to_bf16)(const GroupedRows *w, int n, uint16_t *upper, uint16_t *lower);
    /* y[t][r] = W[r] . x[t] for t < n and r < w->n, the tokens in strips of 16 one after the
     * other.  The product of the lower parts of a weight and of an activation is left out: it is
     * 2^-16 of the whole or less, as much as the two BF16 of an activation leave out. */
    void (*gemm)(const StripRows *w, const uint8_t *strips, int n, float *y, int ldy);
    /* Attention's part of FLASH_KEYS keys.  p[i] = e^(s[i] - most) for from <= i < to, 0 for the
     * others, as two of BF16; *most is first raised to the largest of s.  Returns the sum. */
    float (*soften)(const float s[FLASH_KEYS], int from, int to, float *most,
                    uint16_t upper[FLASH_KEYS], uint16_t lower[FLASH_KEYS]);
    /* y[q][i] += sum over k < n_keys of p[q][k] v[k][i], for q < n <= FLASH_QUERIES and i < dim;
     * rows of v and y are ldv and ldy apart.  n_keys and dim are multiples of 32; y has room for a
     * multiple of 16 queries. */
    void (*add_values)(const uint16_t *v, int ldv, int n_keys, int dim,
                       const uint16_t (*p)[FLASH_QUERIES][FLASH_KEYS], int n, float *y, int ldy);
} Kernels;

extern const Kernels kernels_c, kernels_avx2, kernels_avx2_vnni, kernels_avx512, kernels_amx;
extern const Kernels kernels_neon, kernels_neon_bf16;

/* What GEMMA4_CPU calls the sets for this kind of machine, from the simplest to the best. */
#if defined(__x86_64__)
#define KERNEL_NAMES "c", "avx2", "avx2-vnni", "avx512", "amx"
#elif defined(__aarch64__)
#define KERNEL_NAMES "c", "neon", "neon-bf16"
#else
#define KERNEL_NAMES "c"
#endif

/* The machine's best set, at most the one that the variable GEMMA4_CPU names.  A name that is not
 * among KERNEL_NAMES changes nothing here: options.c refuses it. */
const Kernels *choose_kernels(void);

static inline int64_t strip_size(int64_t cols) { return (cols + 31) / 32 * 32 * 64; }

static inline int64_t packed_size(int64_t cols) { return (cols + 127) / 128 * 384; }

/* ---- tables (kernels_c.c) ---- */

/* Fills the tables, for all sets.  choose_kernels calls it. */
void fill_tables(void);

/* What e4m3_to_float (minifloat.h) gives. */
extern float e4m3[256];
/* Of a block of NVFP4 with this scale: the values of a nibble as BF16. */
extern uint16_t nvfp4_bf16[256][16];
/* E4M3 without its sign as BF16: the lower bytes, the upper bytes. */
extern uint8_t e4m3_bytes[2][128];

/* v as BF16: nibble 2 is the value 1. */
static inline uint16_t e4m3_bf16(uint8_t v) { return nvfp4_bf16[v][2]; }

/* Returns sum + a . b over columns from .. n - 1: those after the last whole 16.  One function
 * serves all sets, so that none of them contracts it to fused multiply-adds. */
float dot_rest(float sum, const float *a, const float *b, int from, int n);

#endif
