/* kernels_neon.c - the kernels of kernels.h for 64-bit ARM: NEON with the dot products of int8
 * (FEAT_DotProd, in most cores since Armv8.2), and with the products of BF16 (FEAT_BF16, since
 * Armv8.6), which serve many tokens.
 *
 * An NVFP4 nibble's value, doubled, is a whole number, and TBL looks up sixteen of them.  SDOT
 * takes both sides signed: nothing is added, and the packed activations need no sums beside them.
 * SMMLA (FEAT_I8MM) would not serve 2 to 6 tokens better: it takes 8 columns, after which the
 * activations' scale changes, so the loop gets longer (bench/README.md, "ARM").
 * Every multiply-add is written as a fused one, so that the bits do not depend on what the compiler
 * fuses.  Instructions: Arm Architecture Reference Manual (DDI 0487), C7.2; their names in C: Arm C
 * Language Extensions, Neon Intrinsics Reference (IHI 0073). */
#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

/* What the compiler's flags ask for must not be taken away: then nothing can be inlined. */
#if defined(__ARM_FEATURE_DOTPROD)
#define DOTPROD
#define BF16 __attribute__((target("+bf16")))
#else                                                                   /* clang: 16 or later */
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define BF16 __attribute__((target("arch=armv8.2-a+dotprod+bf16")))
#endif
/* A function whose int arguments are constants where it is called: each call is code of its own. */
#define INLINE __attribute__((always_inline)) static inline
#define UNROLL _Pragma("GCC unroll 8")      /* at -O2 too: sums in arrays must be registers */

/* ---- number formats ---- */

/* Numbers i .. i + 3 of a row of float32, or of BF16: the upper halves of float32. */
INLINE float32x4_t load4(int is_bf16, const void *row, int i) {
    if (!is_bf16) return vld1q_f32((const float *)row + i);
    uint16x4_t upper = vreinterpret_u16_u8(vld1_u8((const uint8_t *)row + 2 * i));
    return vreinterpretq_f32_u32(vshll_n_u16(upper, 16));
}

static void expand_bf16(const uint8_t *data, int n, float *out) {
    int i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(out + i, load4(1, data, i));
    kernels_c.expand_bf16(data + 2 * i, n - i, out + i);
}

static void expand_nvfp4(const uint8_t *data, const uint8_t *block_scale, float scale, int n,
                         float *out) {
    const int8x16_t doubled = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (int i = 0; i < n; i += 16) {
        uint8x8_t bytes = vld1_u8(data + i / 2), low = vand_u8(bytes, vdup_n_u8(15));
        uint8x8_t high = vshr_n_u8(bytes, 4);
        int8x16_t v = vqtbl1q_s8(doubled, vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high)));
        int16x8_t half[2] = {vmovl_s8(vget_low_s8(v)), vmovl_high_s8(v)};
        float s = e4m3[block_scale[i / 16]] * scale;
        UNROLL for (int k = 0; k < 4; k++) {
            int16x8_t from = half[k / 2];
            int32x4_t w = k % 2 ? vmovl_high_s16(from) : vmovl_s16(vget_low_s16(from));
            /* SCVTF takes w as a number of fixed point, and so halves it. */
            vst1q_f32(out + i + 4 * k, vmulq_n_f32(vcvtq_n_f32_s32(w, 1), s));
        }
    }
}

/* E4M3 shifted is the half-precision number 2^-8 times as large, subnormals included; but its NaN
 * is not NaN. */
INLINE int16x8_t to_half(uint8x8_t v) {
    int16x8_t shifted = vshrq_n_s16(vreinterpretq_s16_u16(vshll_n_u8(v, 8)), 1);
    return vandq_s16(shifted, vdupq_n_s16((int16_t)0xbf80));
}

static void expand_e4m3(const uint8_t *data, float scale, int n, float *out) {
    const int16x8_t rest = vdupq_n_s16(0x3f80);
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        int16x8_t half = to_half(vld1_u8(data + i));
        half = vorrq_s16(half, vreinterpretq_s16_u16(vceqq_s16(vandq_s16(half, rest), rest)));
        float32x4_t low = vcvt_f32_f16(vreinterpret_f16_s16(vget_low_s16(half)));
        float32x4_t high = vcvt_high_f32_f16(vreinterpretq_f16_s16(half));
        vst1q_f32(out + i, vmulq_n_f32(low, scale * 256));
        vst1q_f32(out + i + 4, vmulq_n_f32(high, scale * 256));
    }
    kernels_c.expand_e4m3(data + i, scale, n - i, out + i);
}

static void expand_f16(const uint8_t *data, int n, float *out) {
    int i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(data + 2 * i))));
    kernels_c.expand_f16(data + 2 * i, n - i, out + i);
}

/* out [8] = (bytes - zero) * scale */
INLINE void put_integers(uint8x8_t bytes, int zero, float scale, float *out) {
    int16x8_t v = vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(bytes)), vdupq_n_s16((int16_t)zero));
    vst1q_f32(out, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), scale));
    vst1q_f32(out + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(v)), scale));
}

static void expand_int8(const uint8_t *data, int zero, float scale, int n, float *out) {
    for (int i = 0; i < n; i += 8) put_integers(vld1_u8(data + i), zero, scale, out + i);
}

static void expand_int4(const uint8_t *data, int zero, float scale, int n, float *out) {
    for (int i = 0; i < n; i += 16) {
        uint8x8_t bytes = vld1_u8(data + i / 2), low = vand_u8(bytes, vdup_n_u8(15));
        uint8x8_t high = vshr_n_u8(bytes, 4);
        put_integers(vzip1_u8(low, high), zero, scale, out + i);
        put_integers(vzip2_u8(low, high), zero, scale, out + i + 8);
    }
}

static void e4m3_to_bf16(const uint8_t *data, int n, uint16_t *out) {
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        float v[8];
        expand_e4m3(data + i, 1, 8, v);
        uint32x4_t low = vreinterpretq_u32_f32(vld1q_f32(v));
        uint32x4_t high = vreinterpretq_u32_f32(vld1q_f32(v + 4));
        vst1q_u16(out + i, vcombine_u16(vshrn_n_u32(low, 16), vshrn_n_u32(high, 16)));
    }
    for (; i < n; i++) out[i] = e4m3_bf16(data[i]);
}

/* ---- products with float32 ---- */

/* Adds lanes 8 apart, 4, 2, 1, as dot4_c. */
static void fold(const float sum[ROWS][16], float out[ROWS]) {
    float32x2_t s[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) {
        float32x4_t low = vaddq_f32(vld1q_f32(sum[r]), vld1q_f32(sum[r] + 8));
        float32x4_t v = vaddq_f32(low, vaddq_f32(vld1q_f32(sum[r] + 4), vld1q_f32(sum[r] + 12)));
        s[r] = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    }
    vst1q_f32(out, vcombine_f32(vpadd_f32(s[0], s[1]), vpadd_f32(s[2], s[3])));
}

/* sum[t][first + r] += row[r] . x[t] for R rows and T tokens, whole 16s of the columns from .. to -
 * 1. */
INLINE void dots(int is_bf16, int R, int T, const void *const *row, int from, int to,
                 const float *const *x, float (*sum)[ROWS][16], int first, int ahead) {
    float32x4_t s[ROWS][TOKENS][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int k = 0; k < 4; k++) s[r][t][k] = vld1q_f32(sum[t][first + r] + 4 * k);
    for (int i = from; i + 16 <= to; i += 16) {
        if (ahead && i % 32 == 0)
            UNROLL for (int r = 0; r < R; r++)
                __builtin_prefetch((const char *)row[r] + 2 * i + ahead);
        UNROLL for (int k = 0; k < 4; k++) {
            float32x4_t w[ROWS];
            UNROLL for (int r = 0; r < R; r++) w[r] = load4(is_bf16, row[r], i + 4 * k);
            UNROLL for (int t = 0; t < T; t++) {
                float32x4_t a = vld1q_f32(x[t] + i + 4 * k);
                UNROLL for (int r = 0; r < R; r++) s[r][t][k] = vfmaq_f32(s[r][t][k], a, w[r]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int k = 0; k < 4; k++) vst1q_f32(sum[t][first + r] + 4 * k, s[r][t][k]);
}

static void dot4(const float *a, const float *const b[4], int n, float out[4]) {
    float sum[1][ROWS][16] = {{{0}}};
    dots(0, ROWS, 1, (const void *[]){b[0], b[1], b[2], b[3]}, 0, n, &a, sum, 0, 0);
    fold(sum[0], out);
    for (int r = 0; r < 4 && n % 16; r++) out[r] = dot_rest(out[r], a, b[r], n / 16 * 16, n);
}

static void bf16(const uint8_t *const row[ROWS], int from, int to, const float *const x[TOKENS],
                 int n, float sum[TOKENS][ROWS][16], int ahead) {
    const void *w[ROWS] = {row[0], row[1], row[2], row[3]};
    int t = 0;
    for (; t + 2 <= n; t += 2)
        for (int r = 0; r < ROWS; r += 2)
            dots(1, 2, 2, w + r, from, to, x + t, sum + t, r, t ? 0 : ahead);
    for (; t < n; t++) dots(1, ROWS, 1, w, from, to, x + t, sum + t, 0, t ? 0 : ahead);
}

/* Columns i .. i + 15 of a row of FP8 or integers, less the zero point and scaled: as expand_e4m3,
 * expand_int8 and expand_int4 make them. */
INLINE void weights16(int bits, const uint8_t *row, int i, int zero, float scale, float w[16]) {
    if (bits == 8) expand_int8(row + i, zero, scale, 16, w);
    else if (bits == 4) expand_int4(row + i / 2, zero, scale, 16, w);
    else expand_e4m3(row + i, scale, 16, w);
}

INLINE void grouped_tile(int BITS, int T, const GroupedRows *g, int r, int from, int to,
                         const float *const *x, float (*sum)[ROWS][16], int ahead) {
    float32x4_t s[TOKENS][4];
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int k = 0; k < 4; k++) s[t][k] = vld1q_f32(sum[t][r] + 4 * k);
    for (int begin = from, k = from / g->group; begin < to; begin += g->group, k++) {
        int end = to - begin < g->group ? to : begin + g->group, zero = zero_of(g, r, k);
        float scale = scale_of(g, r, k);
        for (int i = begin; i + 16 <= end; i += 16) {
            const uint8_t *at = g->row[r] + (BITS == 4 ? i / 2 : i);
            float w[16];
            if (ahead && i % 64 == 0) __builtin_prefetch(at + ahead);
            weights16(BITS, g->row[r], i, zero, scale, w);
            UNROLL for (int j = 0; j < 4; j++) {
                float32x4_t v = vld1q_f32(w + 4 * j);
                UNROLL for (int t = 0; t < T; t++)
                    s[t][j] = vfmaq_f32(s[t][j], vld1q_f32(x[t] + i + 4 * j), v);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int k = 0; k < 4; k++) vst1q_f32(sum[t][r] + 4 * k, s[t][k]);
}

INLINE void grouped_of(int BITS, const GroupedRows *g, int from, int to, const float *const *x,
                       int n, float (*sum)[ROWS][16], int ahead) {
    for (int r = 0; r < ROWS; r++) {
        int t = 0;
        for (; t + 3 <= n; t += 3)
            grouped_tile(BITS, 3, g, r, from, to, x + t, sum + t, t ? 0 : ahead);
        for (; t < n; t++) grouped_tile(BITS, 1, g, r, from, to, x + t, sum + t, t ? 0 : ahead);
    }
}

static void grouped(const GroupedRows *g, int from, int to, const float *const x[TOKENS], int n,
                    float sum[TOKENS][ROWS][16], int ahead) {
    if (g->bits == 8) grouped_of(8, g, from, to, x, n, sum, ahead);
    else if (g->bits == 4) grouped_of(4, g, from, to, x, n, sum, ahead);
    else grouped_of(0, g, from, to, x, n, sum, ahead);
}

static void axpy4(float *y, const float *const x[4], const float s[4], int n) {
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(y + i);
        UNROLL for (int k = 0; k < 4; k++) v = vfmaq_n_f32(v, vld1q_f32(x[k] + i), s[k]);
        vst1q_f32(y + i, v);
    }
    kernels_c.axpy4(y + i, (const float *[]){x[0] + i, x[1] + i, x[2] + i, x[3] + i}, s, n - i);
}

INLINE void add_rows4(int T, float *y, int ldy, const float *p, int64_t ldp,
                      const uint8_t *const *v, int n_rows, int dim, int ahead) {
    for (int i = 0; i < dim; i += 16) {
        float32x4_t s[4][4];
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int k = 0; k < 4; k++)
                s[t][k] = vld1q_f32(y + (int64_t)t * ldy + i + 4 * k);
        for (int r = 0; r < n_rows; r++) {
            float32x4_t w[4];
            if (ahead && i % 32 == 0) __builtin_prefetch((const char *)v[r] + 2 * i + ahead);
            UNROLL for (int k = 0; k < 4; k++) w[k] = load4(1, v[r], i + 4 * k);
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int k = 0; k < 4; k++)
                    s[t][k] = vfmaq_n_f32(s[t][k], w[k], p[t * ldp + r]);
        }
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int k = 0; k < 4; k++) vst1q_f32(y + (int64_t)t * ldy + i + 4 * k, s[t][k]);
    }
}

static void add_rows(float *y, int ldy, const float *p, int64_t ldp, int n, const uint8_t *const *v,
                     int n_rows, int dim, int ahead) {
    int q = 0;
    for (; q + 4 <= n; q += 4)
        add_rows4(4, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
    for (; q + 2 <= n; q += 2)
        add_rows4(2, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
    for (; q < n; q++)
        add_rows4(1, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
}

/* 8 of the 16 columns of `tile`.  Four columns of a row of `a` are one load, and a lane of it is a
 * factor of FMLA: 16 registers hold sums, 8 hold rows, and b takes what is left. */
INLINE void tile8(int R, const float *a, int lda, const float *b, int ldb, int n, float *c, int ldc,
                  int add) {
    float32x4_t s[TILE_ROWS][2], w[TILE_ROWS];
    int i = 0;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int k = 0; k < 2; k++)
            s[r][k] = add ? vld1q_f32(c + (int64_t)r * ldc + 4 * k) : vdupq_n_f32(0);
    for (; i + 4 <= n; i += 4) {
        UNROLL for (int r = 0; r < R; r++) w[r] = vld1q_f32(a + (int64_t)r * lda + i);
        UNROLL for (int j = 0; j < 4; j++) {
            const float *at = b + (int64_t)(i + j) * ldb;
            float32x4_t v[2] = {vld1q_f32(at), vld1q_f32(at + 4)};
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int k = 0; k < 2; k++) s[r][k] = vfmaq_n_f32(s[r][k], v[k], w[r][j]);
        }
    }
    for (; i < n; i++)
        UNROLL for (int k = 0; k < 2; k++) {
            float32x4_t v = vld1q_f32(b + (int64_t)i * ldb + 4 * k);
            UNROLL for (int r = 0; r < R; r++)
                s[r][k] = vfmaq_n_f32(s[r][k], v, a[(int64_t)r * lda + i]);
        }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int k = 0; k < 2; k++) vst1q_f32(c + (int64_t)r * ldc + 4 * k, s[r][k]);
}

static void tile(const float *a, int lda, int n_rows, const float *b, int ldb, int n, float *c,
                 int ldc, int add) {
    for (int half = 0; half < 16; half += 8) switch (n_rows) {
        case 1: tile8(1, a, lda, b + half, ldb, n, c + half, ldc, add); break;
        case 2: tile8(2, a, lda, b + half, ldb, n, c + half, ldc, add); break;
        case 3: tile8(3, a, lda, b + half, ldb, n, c + half, ldc, add); break;
        case 4: tile8(4, a, lda, b + half, ldb, n, c + half, ldc, add); break;
        case 5: tile8(5, a, lda, b + half, ldb, n, c + half, ldc, add); break;
        case 6: tile8(6, a, lda, b + half, ldb, n, c + half, ldc, add); break;
        case 7: tile8(7, a, lda, b + half, ldb, n, c + half, ldc, add); break;
        default: tile8(TILE_ROWS, a, lda, b + half, ldb, n, c + half, ldc, add);
        }
}

/* ---- products with integers ---- */

/* 16 whole numbers as 256 * upper + lower: lower is the low byte with its sign, upper the rest,
 * which RSHRN rounds. */
INLINE void split(int16x8_t a, int16x8_t b, int8x16_t *upper, int8x16_t *lower) {
    *upper = vcombine_s8(vrshrn_n_s16(a, 8), vrshrn_n_s16(b, 8));
    *lower = vuzp1q_s8(vreinterpretq_s8_s16(a), vreinterpretq_s8_s16(b));
}

/* Packed, 32 columns are 80 bytes: int8 [16] upper of the even ones, of the odd ones, likewise
 * lower, float [4] scales. */
static size_t packed_at(int column) { return (size_t)column / 32 * 80; }

static void pack(const float *x, int from, int to, int cols, uint8_t *packed) {
    for (int c = from; c < to; c += BLOCK) {
        uint8_t *out = packed + packed_at(c);
        float last[BLOCK] = {0}, *scale = (float *)(out + 64);
        const float *in = x + c;
        if (cols - c < BLOCK) in = memcpy(last, in, (size_t)(cols - c) * sizeof *x);
        int16x4_t n[2][4];
        for (int i = 0; i < 4; i++) {
            float32x4x2_t v = vld2q_f32(in + 8 * i);        /* even ones, odd ones */
            float most = vmaxvq_f32(vmaxq_f32(vabsq_f32(v.val[0]), vabsq_f32(v.val[1])));
            float inverse = most > 0 ? MAX_X / most : 0;
            scale[i] = most / MAX_X;
            for (int k = 0; k < 2; k++)
                n[k][i] = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v.val[k], inverse)));
        }
        for (int k = 0; k < 2; k++) {
            int8x16_t upper, lower;
            split(vcombine_s16(n[k][0], n[k][1]), vcombine_s16(n[k][2], n[k][3]), &upper, &lower);
            vst1q_s8((int8_t *)out + 16 * k, upper);
            vst1q_s8((int8_t *)out + 32 + 16 * k, lower);
        }
    }
}

/* Columns c .. c + 31 of R rows with T tokens. */
DOTPROD INLINE void add_group(int R, int T, const int8x16_t *even, const int8x16_t *odd,
                              const float32x4_t *scale, const uint8_t *const *x, int c,
                              float32x4_t (*sum)[TOKENS]) {
    UNROLL for (int t = 0; t < T; t++) {
        const int8_t *a = (const int8_t *)x[t] + packed_at(c);
        int8x16_t upper[2] = {vld1q_s8(a), vld1q_s8(a + 16)};
        int8x16_t lower[2] = {vld1q_s8(a + 32), vld1q_s8(a + 48)};
        float32x4_t own = vld1q_f32((const float *)(a + 64));
        UNROLL for (int r = 0; r < R; r++) {
            int32x4_t p = vdotq_s32(vdotq_s32(vdupq_n_s32(0), even[r], upper[0]), odd[r], upper[1]);
            p = vdotq_s32(vdotq_s32(vshlq_n_s32(p, 8), even[r], lower[0]), odd[r], lower[1]);
            sum[r][t] = vfmaq_f32(sum[r][t], vcvtq_f32_s32(p), vmulq_f32(scale[r], own));
        }
    }
}

/* 32 columns, or the last 16.  SDOT adds four products to a lane, so with the even and the odd
 * columns a lane has 8 neighbours. */
DOTPROD INLINE void nvfp4_group(int R, int T, const uint8_t *const *row,
                                const uint8_t *const *block_scale, int c, int columns,
                                const uint8_t *const *x, float32x4_t (*sum)[TOKENS]) {
    const int8x16_t value = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    int8x16_t even[ROWS], odd[ROWS];
    float32x4_t scale[ROWS];
    UNROLL for (int r = 0; r < R; r++) {
        const uint8_t *at = row[r] + c / 2;
        uint8x16_t bytes = columns == 32 ? vld1q_u8(at) : vcombine_u8(vld1_u8(at), vdup_n_u8(0));
        even[r] = vqtbl1q_s8(value, vandq_u8(bytes, vdupq_n_u8(15)));
        odd[r] = vqtbl1q_s8(value, vshrq_n_u8(bytes, 4));
        uint16_t two = 0;               /* scales, each for two lanes */
        memcpy(&two, block_scale[r] + c / 16, (size_t)columns / 16);
        uint8x8_t s = vreinterpret_u8_u16(vdup_n_u16(two));
        scale[r] = vcvt_f32_f16(vreinterpret_f16_s16(vget_low_s16(to_half(vzip1_u8(s, s)))));
    }
    add_group(R, T, even, odd, scale, x, c, sum);
}

DOTPROD INLINE void nvfp4_tile(int R, int T, const uint8_t *const *row,
                               const uint8_t *const *block_scale, int from, int to,
                               const uint8_t *const *x, float (*sum)[ROWS][16], int first,
                               int ahead) {
    float32x4_t s[ROWS][TOKENS];
    int c = from;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) s[r][t] = vld1q_f32(sum[t][first + r]);
    for (; c + 32 <= to; c += 32) {
        if (ahead && c % 128 == 0)
            UNROLL for (int r = 0; r < R; r++) {
                __builtin_prefetch(row[r] + c / 2 + ahead);
                if (c % 1024 == 0) __builtin_prefetch(block_scale[r] + c / 16 + ahead / 8);
            }
        nvfp4_group(R, T, row, block_scale, c, 32, x, s);
    }
    if (c < to) nvfp4_group(R, T, row, block_scale, c, 16, x, s);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) vst1q_f32(sum[t][first + r], s[r][t]);
}

DOTPROD static void nvfp4(const uint8_t *const row[ROWS], const uint8_t *const block_scale[ROWS],
                          int from, int to, const uint8_t *const x[TOKENS], int n,
                          float sum[TOKENS][ROWS][16], int ahead) {
    if (n == 1) {
        nvfp4_tile(4, 1, row, block_scale, from, to, x, sum, 0, ahead);
        return;
    }
    for (int r = 0; r < ROWS; r += 2) switch (n) {
        case 2: nvfp4_tile(2, 2, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        case 3: nvfp4_tile(2, 3, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        case 4: nvfp4_tile(2, 4, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        case 5: nvfp4_tile(2, 5, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        case 6: nvfp4_tile(2, 6, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        }
}

/* Columns c .. c + 31 of a row of integers, less the zero point: the even and the odd ones. */
INLINE void unpack_integers(int bits, const uint8_t *row, int c, uint8_t zero, int8x16_t *even,
                            int8x16_t *odd) {
    const uint8x16_t z = vdupq_n_u8(zero);
    if (bits == 8) {
        uint8x16x2_t v = vld2q_u8(row + c);
        *even = vreinterpretq_s8_u8(vsubq_u8(v.val[0], z));
        *odd = vreinterpretq_s8_u8(vsubq_u8(v.val[1], z));
        return;
    }
    uint8x16_t bytes = vld1q_u8(row + c / 2);
    *even = vreinterpretq_s8_u8(vsubq_u8(vandq_u8(bytes, vdupq_n_u8(15)), z));
    *odd = vreinterpretq_s8_u8(vsubq_u8(vshrq_n_u8(bytes, 4), z));
}

DOTPROD INLINE void integers_tile(int BITS, int R, int T, const GroupedRows *g, int first, int from,
                                  int to, const uint8_t *const *x, float (*sum)[ROWS][16],
                                  int ahead) {
    float32x4_t s[ROWS][TOKENS];
    int log2 = __builtin_ctz((unsigned)g->group);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) s[r][t] = vld1q_f32(sum[t][first + r]);
    for (int c = from; c < to; c += 32) {
        int8x16_t even[ROWS], odd[ROWS];
        float32x4_t scale[ROWS];
        UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *row = g->row[first + r];
            if (ahead && c % (512 / BITS) == 0) __builtin_prefetch(row + c * BITS / 8 + ahead);
            uint8_t zero = (uint8_t)zero_of(g, first + r, c >> log2);
            unpack_integers(BITS, row, c, zero, &even[r], &odd[r]);
            scale[r] = vdupq_n_f32(scale_of(g, first + r, c >> log2));
        }
        add_group(R, T, even, odd, scale, x, c, s);
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) vst1q_f32(sum[t][first + r], s[r][t]);
}

DOTPROD INLINE void integers_of(int BITS, const GroupedRows *g, int from, int to,
                                const uint8_t *const *x, int n, float (*sum)[ROWS][16], int ahead) {
    if (n == 1) {
        integers_tile(BITS, 4, 1, g, 0, from, to, x, sum, ahead);
        return;
    }
    for (int r = 0; r < ROWS; r += 2) switch (n) {
        case 2: integers_tile(BITS, 2, 2, g, r, from, to, x, sum, ahead); break;
        case 3: integers_tile(BITS, 2, 3, g, r, from, to, x, sum, ahead); break;
        case 4: integers_tile(BITS, 2, 4, g, r, from, to, x, sum, ahead); break;
        case 5: integers_tile(BITS, 2, 5, g, r, from, to, x, sum, ahead); break;
        case 6: integers_tile(BITS, 2, 6, g, r, from, to, x, sum, ahead); break;
        }
}

DOTPROD static void integers(const GroupedRows *g, int from, int to,
                             const uint8_t *const x[TOKENS], int n, float sum[TOKENS][ROWS][16],
                             int ahead) {
    if (g->bits == 8) integers_of(8, g, from, to, x, n, sum, ahead);
    else integers_of(4, g, from, to, x, n, sum, ahead);
}

static void round_row(const uint8_t *row, int cols, int8_t *q, float rounded[3]) {
    const uint16x8_t no_sign = vdupq_n_u16(0x7fff);
    uint16x8_t most = vdupq_n_u16(0);
    /* Of BF16 numbers without their signs the largest is that of the largest integer. */
    for (int i = 0; i < cols; i += 8)
        most = vmaxq_u16(most, vandq_u16(vreinterpretq_u16_u8(vld1q_u8(row + 2 * i)), no_sign));
    float scale = bf16_to_float(vmaxvq_u16(most)) / 127, inverse = scale > 0 ? 1 / scale : 0;
    float32x4_t error = vdupq_n_f32(0), norm = error;
    for (int i = 0; i < cols; i += 16) {
        int16x4_t n[4];
        for (int k = 0; k < 4; k++) {
            float32x4_t w = load4(1, row, i + 4 * k);
            int32x4_t whole = vcvtnq_s32_f32(vmulq_n_f32(w, inverse));
            float32x4_t off = vfmsq_n_f32(w, vcvtq_f32_s32(whole), scale);
            error = vfmaq_f32(error, off, off);
            norm = vfmaq_f32(norm, w, w);
            n[k] = vqmovn_s32(whole);
        }
        int8x8_t low = vqmovn_s16(vcombine_s16(n[0], n[1]));
        int8x8_t high = vqmovn_s16(vcombine_s16(n[2], n[3]));
        vst1q_s8(q + i, vcombine_s8(low, high));
    }
    rounded[0] = scale;
    rounded[1] = sqrtf(vaddvq_f32(error));
    rounded[2] = sqrtf(vaddvq_f32(norm));
}

/* Y as two of int8: a lane adds up at most 32768 / 4 products below 2^14. */
DOTPROD static void dot_int8(const int8_t *const q[ROWS], const int16_t *y, int cols,
                             int64_t out[ROWS], int ahead) {
    int32x4_t sum[ROWS][2];
    UNROLL for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = vdupq_n_s32(0);
    for (int i = 0; i < cols; i += 64) {
        UNROLL for (int r = 0; r < ROWS; r++) __builtin_prefetch(q[r] + i + ahead);
        UNROLL for (int k = 0; k < 4; k++) {
            const int16_t *at = y + i + 16 * k;
            int8x16_t upper, lower;
            split(vld1q_s16(at), vld1q_s16(at + 8), &upper, &lower);
            UNROLL for (int r = 0; r < ROWS; r++) {
                int8x16_t w = vld1q_s8(q[r] + i + 16 * k);
                sum[r][0] = vdotq_s32(sum[r][0], w, upper);
                sum[r][1] = vdotq_s32(sum[r][1], w, lower);
            }
        }
    }
    for (int r = 0; r < ROWS; r++) out[r] = 256 * vaddlvq_s32(sum[r][0]) + vaddlvq_s32(sum[r][1]);
}

/* ---- functions ---- */

/* e^x within 2 ulp for |x| <= MOST_EXP: 2^n e^r, |r| <= ln 2 / 2.  Beyond that, x counts as
 * -MOST_EXP or MOST_EXP. */
INLINE float32x4_t exp4(float32x4_t x) {
    x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-MOST_EXP)), vdupq_n_f32(MOST_EXP));
    float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504f));
    float32x4_t r = vfmsq_n_f32(vfmsq_n_f32(x, n, 0.693359375f), n, -2.12194440e-4f);
    const float factor[] = {1 / 120.f, 1 / 24.f, 1 / 6.f, .5f, 1, 1};
    float32x4_t p = vdupq_n_f32(1 / 720.f);
    UNROLL for (int i = 0; i < 6; i++) p = vfmaq_f32(vdupq_n_f32(factor[i]), p, r);
    int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(power));
}

/* g / 2 (1 + tanh(z)) = g / (1 + e^-2z) */
static void gelu_times(float *g, const float *u, int n) {
    const float32x4_t one = vdupq_n_f32(1);
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(g + i);
        float32x4_t z = vmulq_f32(vfmaq_n_f32(one, vmulq_f32(v, v), 0.044715f), v);
        v = vdivq_f32(v, vaddq_f32(one, exp4(vmulq_n_f32(z, -2 * 0.7978845608f))));
        vst1q_f32(g + i, vmulq_f32(v, vld1q_f32(u + i)));
    }
    if (i == n) return;
    float last[2][4] = {{0}};
    size_t rest = (size_t)(n - i) * sizeof *g;
    memcpy(last[0], g + i, rest);
    memcpy(last[1], u + i, rest);
    gelu_times(last[0], last[1], 4);
    memcpy(g + i, last[0], rest);
}

static float exp_less(const float *s, int n, float most, float *out) {
    float32x4_t sum = vdupq_n_f32(0);
    float rest = 0;
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t e = exp4(vsubq_f32(vld1q_f32(s + i), vdupq_n_f32(most)));
        vst1q_f32(out + i, e);
        sum = vaddq_f32(sum, e);
    }
    for (; i < n; i++) rest += out[i] = limited_exp(s[i] - most);
    return rest + vaddvq_f32(sum);
}

static void softmax(float *s, int n) {
    int i = 0;
    float32x4_t high = vdupq_n_f32(s[0]);
    for (; i + 4 <= n; i += 4) high = vmaxq_f32(high, vld1q_f32(s + i));
    float max = vmaxvq_f32(high);
    for (; i < n; i++) max = s[i] > max ? s[i] : max;
    float sum = exp_less(s, n, max, s);
    for (i = 0; i < n; i++) s[i] *= 1 / sum;
}

/* ---- many tokens, by BFMMLA ----
 *
 * It multiplies 2 rows of 4 BF16 with 2 rows of 4 BF16 and adds the 2 x 2 sums to float32.
 * kernels.h says in which order. */

/* v as the sum of two BF16. */
BF16 INLINE void split4(float32x4_t v, uint16_t *upper, uint16_t *lower) {
    bfloat16x4_t half = vcvt_bf16_f32(v);
    vst1_u16(upper, vreinterpret_u16_bf16(half));
    half = vcvt_bf16_f32(vsubq_f32(v, vcvt_f32_bf16(half)));
    vst1_u16(lower, vreinterpret_u16_bf16(half));
}

BF16 static void split_bf16(const float *x, int n, uint16_t *upper, uint16_t *lower) {
    for (int i = 0; i < n; i += 4) split4(vld1q_f32(x + i), upper + i, lower + i);
}

/* The nibbles of 8 bytes in the order of the columns. */
INLINE uint8x16_t nibbles_of(uint8x8_t bytes) {
    uint8x8_t low = vand_u8(bytes, vdup_n_u8(15)), high = vshr_n_u8(bytes, 4);
    return vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
}

/* 16 BF16 of a table of 16, whose lower bytes are in one register and upper bytes in another. */
INLINE void look_up(uint8x16x2_t table, uint8x16_t index, uint16_t *out) {
    table.val[0] = vqtbl1q_u8(table.val[0], index);
    table.val[1] = vqtbl1q_u8(table.val[1], index);
    vst2q_u8((uint8_t *)out, table);
}

static void nvfp4_to_bf16(const uint8_t *data, const uint8_t *block_scale, int n, uint16_t *out) {
    for (int i = 0; i < n; i += 16) {
        const void *table = nvfp4_bf16[block_scale[i / 16]];
        look_up(vld2q_u8(table), nibbles_of(vld1_u8(data + i / 2)), out + i);
    }
}

/* The 16 weights that the nibbles of a group stand for are computed once. */
BF16 static void int4_to_bf16(const GroupedRows *w, int n, uint16_t *upper, uint16_t *lower) {
    const int32x4_t first = {0, 1, 2, 3};
    uint8x16x2_t table[2] = {{{vdupq_n_u8(0)}}};
    for (int i = 0; i < n; i += 16) {
        if (i % w->group == 0) {
            int k = i / w->group, zero = zero_of(w, 0, k);
            float scale = scale_of(w, 0, k);
            uint16_t part[2][16];
            for (int q = 0; q < 16; q += 4) {
                float32x4_t v = vcvtq_f32_s32(vaddq_s32(first, vdupq_n_s32(q - zero)));
                split4(vmulq_n_f32(v, scale), part[0] + q, part[1] + q);
            }
            for (int p = 0; p < 2; p++) table[p] = vld2q_u8((const uint8_t *)part[p]);
        }
        uint8x16_t index = nibbles_of(vld1_u8(w->row[0] + i / 2));
        look_up(table[0], index, upper + i);
        look_up(table[1], index, lower + i);
    }
}

/* A strip is [2 halves of 8 tokens][cols / 4][upper, lower][8 tokens][4]: two tokens are a register
 * for BFMMLA. */
BF16 static void to_strip(const float *const x[16], int n, int cols, uint8_t *strip) {
    int wide = (cols + 31) / 32 * 32;
    for (int t = 0; t < n; t++) {
        uint16_t *out = (uint16_t *)strip + t / 8 * 16 * (int64_t)wide + t % 8 * 4;
        for (int c = 0; c < wide; c += 4, out += 64) {
            float last[4] = {0};
            const float *from = x[t] + c;
            if (cols - c < 4) {
                if (cols > c) memcpy(last, from, (size_t)(cols - c) * sizeof *last);
                from = last;
            }
            split4(vld1q_f32(from), out, out + 32);
        }
    }
}

/* The product of 8 rows that lie `stride` apart with 8 packed ones: tile[i][j] is 2 x 2 sums, of
 * rows 2 i and 2 i + 1 with the packed ones 2 j and 2 j + 1. */
typedef float32x4_t Tile[4][4];

/* 8 columns of two rows as two registers, each with 4 columns of both. */
BF16 INLINE void load_pair(const uint16_t *row, int64_t stride, bfloat16x8_t pair[2]) {
    uint64x2_t a = vreinterpretq_u64_u16(vld1q_u16(row));
    uint64x2_t b = vreinterpretq_u64_u16(vld1q_u16(row + stride));
    pair[0] = vreinterpretq_bf16_u64(vzip1q_u64(a, b));
    pair[1] = vreinterpretq_bf16_u64(vzip2q_u64(a, b));
}

/* Adds 8 columns: a part of 8 rows, upper or lower, times the first `parts` parts of the packed
 * ones [2][stored][8][4].  packed_first: 1: the two lower lanes of 2 x 2 sums belong to the first
 * of the packed ones; 0: to the first of the rows. */
BF16 INLINE void multiply_part(int packed_first, int stored, int parts, const uint16_t *rows,
                               int64_t stride, const uint16_t *packed, Tile tile) {
    bfloat16x8_t row[4][2];
    UNROLL for (int i = 0; i < 4; i++) load_pair(rows + 2 * i * stride, stride, row[i]);
    UNROLL for (int half = 0; half < 2; half++)
        UNROLL for (int part = 0; part < parts; part++) {
            const uint16_t *at = packed + 32 * (half * stored + part);
            bfloat16x8_t v[4];
            UNROLL for (int j = 0; j < 4; j++) v[j] = vreinterpretq_bf16_u16(vld1q_u16(at + 8 * j));
            UNROLL for (int j = 0; j < 4; j++)
                UNROLL for (int i = 0; i < 4; i++)
                    tile[i][j] = packed_first ? vbfmmlaq_f32(tile[i][j], v[j], row[i][half])
                                              : vbfmmlaq_f32(tile[i][j], row[i][half], v[j]);
        }
}

/* Columns k .. to - 1 of 8 rows of W, `first` and the next ones, times 8 tokens of a strip.  sum
 * [row / 2][token / 2][2 tokens x 2 rows] begins with k 0 and grows with the following columns. */
BF16 INLINE void add_columns(int W_PARTS, const StripRows *w, int first, int k, int to,
                             const uint16_t *tokens, float sum[4][4][4]) {
    int64_t at = first * (int64_t)w->stride;
    Tile tile;
    UNROLL for (int i = 0; i < 16; i++)
        tile[i / 4][i % 4] = k ? vld1q_f32(sum[i / 4][i % 4]) : vdupq_n_f32(0);
    for (; k < to; k += 8) {
        const uint16_t *packed = tokens + 16 * (int64_t)k;
        multiply_part(1, 2, 2, w->upper + at + k, w->stride, packed, tile);
        if (W_PARTS == 2) multiply_part(1, 2, 1, w->lower + at + k, w->stride, packed, tile);
    }
    UNROLL for (int i = 0; i < 16; i++) vst1q_f32(sum[i / 4][i % 4], tile[i / 4][i % 4]);
}

/* y[t][r] = scale[r] * sum (see add_columns) for n <= 8 tokens and n_rows <= 8 rows. */
static void put_sums(float sum[4][4][4], const float *scale, int n, int n_rows, float *y, int ldy) {
    float out[8][8];
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 4; i++) {
            vst1_f32(out[2 * j] + 2 * i, vld1_f32(sum[i][j]));
            vst1_f32(out[2 * j + 1] + 2 * i, vld1_f32(sum[i][j] + 2));
        }
    for (int t = 0; t < n; t++, y += ldy) {
        for (int r = 0; n_rows < 8 && r < n_rows; r++) y[r] = scale[r] * out[t][r];
        for (int r = 0; n_rows == 8 && r < 8; r += 4)
            vst1q_f32(y + r, vmulq_f32(vld1q_f32(scale + r), vld1q_f32(out[t] + r)));
    }
}

/* `gemm` for one strip of n <= 16 tokens and n_rows <= GEMM_ROWS rows, `first` and the next ones.
 *
 * GEMM_COLS columns of a strip are 16 KB, which stay in the nearest cache while all rows meet them;
 * so do those of 8 rows, 4 KB, while they meet both halves of a strip.  The sums are 8 KB.  Chosen
 * by these counts, as COLS_AT_ONCE in strips.c.  To tune them, compare prompts of 512 tokens with
 * GEMMA4_CPU=neon-bf16. */
#define GEMM_ROWS 128
#define GEMM_COLS 256
BF16 static void multiply_strip(const StripRows *w, int first, int n_rows, const uint16_t *strip,
                                int n, float *y, int ldy) {
    float sum[GEMM_ROWS / 8][2][4][4][4];
    int halves = n > 8 ? 2 : 1;
    for (int k = 0; k < w->cols; k += GEMM_COLS) {
        int to = w->cols - k < GEMM_COLS ? w->cols : k + GEMM_COLS;
        for (int r = 0; r < n_rows; r += 8)
            for (int half = 0; half < halves; half++) {
                const uint16_t *tokens = strip + half * 16 * (int64_t)w->cols;
                if (w->lower) add_columns(2, w, first + r, k, to, tokens, sum[r / 8][half]);
                else add_columns(1, w, first + r, k, to, tokens, sum[r / 8][half]);
            }
    }
    for (int r = 0; r < n_rows; r += 8)
        for (int half = 0; half < halves; half++) {
            int rows = n_rows - r < 8 ? n_rows - r : 8;
            int left = n - 8 * half < 8 ? n - 8 * half : 8;
            put_sums(sum[r / 8][half], w->scale + first + r, left, rows,
                     y + 8 * half * (int64_t)ldy + first + r, ldy);
        }
}

static void gemm(const StripRows *w, const uint8_t *strips, int n, float *y, int ldy) {
    for (int t = 0; t < n; t += 16, strips += 64 * (int64_t)w->cols)
        for (int first = 0; first < w->n; first += GEMM_ROWS) {
            int rows = w->n - first < GEMM_ROWS ? w->n - first : GEMM_ROWS;
            multiply_strip(w, first, rows, (const uint16_t *)strips, n - t < 16 ? n - t : 16,
                           y + t * (int64_t)ldy, ldy);
        }
}

/* All ones in the lanes i, i + 1, i + 2, i + 3 that lie in from .. to - 1. */
INLINE uint32x4_t lanes_within(int i, int from, int to) {
    int32x4_t lane = vaddq_s32((int32x4_t){0, 1, 2, 3}, vdupq_n_s32(i));
    return vandq_u32(vcgeq_s32(lane, vdupq_n_s32(from)), vcltq_s32(lane, vdupq_n_s32(to)));
}

BF16 static float soften(const float s[FLASH_KEYS], int from, int to, float *most,
                         uint16_t upper[FLASH_KEYS], uint16_t lower[FLASH_KEYS]) {
    float32x4_t high = vdupq_n_f32(*most), sum = vdupq_n_f32(0);
    for (int i = 0; i < FLASH_KEYS; i += 4)
        high = vmaxq_f32(high, vbslq_f32(lanes_within(i, from, to), vld1q_f32(s + i), high));
    *most = vmaxvq_f32(high);
    for (int i = 0; i < FLASH_KEYS; i += 4) {
        float32x4_t p = exp4(vsubq_f32(vld1q_f32(s + i), vdupq_n_f32(*most)));
        uint32x4_t within = lanes_within(i, from, to);
        p = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(p), within));
        sum = vaddq_f32(sum, p);
        split4(p, upper + i, lower + i);
    }
    return vaddvq_f32(sum);
}

/* 8 dimensions of 8 queries.  columns: V [n_keys / 4][8 dimensions][4 keys]. */
BF16 INLINE void add_values8(const uint16_t *upper, const uint16_t *lower, int n_keys,
                             const uint16_t *columns, float *y, int ldy) {
    Tile tile;
    UNROLL for (int i = 0; i < 4; i++)
        UNROLL for (int j = 0; j < 4; j++) {
            const float *at = y + 2 * i * (int64_t)ldy + 2 * j;
            tile[i][j] = vcombine_f32(vld1_f32(at), vld1_f32(at + ldy));
        }
    for (int k = 0; k < n_keys; k += 8) {
        multiply_part(0, 1, 1, upper + k, FLASH_KEYS, columns + 8 * k, tile);
        multiply_part(0, 1, 1, lower + k, FLASH_KEYS, columns + 8 * k, tile);
    }
    UNROLL for (int i = 0; i < 4; i++)
        UNROLL for (int j = 0; j < 4; j++) {
            float *at = y + 2 * i * (int64_t)ldy + 2 * j;
            vst1_f32(at, vget_low_f32(tile[i][j]));
            vst1_f32(at + ldy, vget_high_f32(tile[i][j]));
        }
}

BF16 static void add_values(const uint16_t *v, int ldv, int n_keys, int dim,
                            const uint16_t (*p)[FLASH_QUERIES][FLASH_KEYS], int n, float *y,
                            int ldy) {
    uint16_t columns[FLASH_KEYS / 4][8][4];
    for (int i = 0; i < dim; i += 8) {
        for (int k = 0; k < n_keys; k += 4) {
            uint16x8x4_t keys;
            UNROLL for (int j = 0; j < 4; j++)
                keys.val[j] = vld1q_u16(v + (k + j) * (int64_t)ldv + i);
            vst4q_u16(columns[k / 4][0], keys);
        }
        for (int q = 0; q < n; q += 8)
            add_values8(p[0][q], p[1][q], n_keys, columns[0][0], y + q * (int64_t)ldy + i, ldy);
    }
}

#define NEON_KERNELS                                                                               \
    .expand_bf16 = expand_bf16, .expand_nvfp4 = expand_nvfp4, .expand_e4m3 = expand_e4m3,          \
    .expand_f16 = expand_f16, .expand_int8 = expand_int8, .expand_int4 = expand_int4,              \
    .dot4 = dot4, .axpy4 = axpy4, .tile = tile, .softmax = softmax, .exp_less = exp_less,          \
    .fold = fold, .bf16 = bf16, .grouped = grouped, .few = 3, .e4m3_to_bf16 = e4m3_to_bf16,        \
    .add_rows = add_rows, .nvfp4 = nvfp4, .integers = integers, .pack = pack, .group = 32,         \
    .gelu_times = gelu_times, .round_row = round_row, .dot_int8 = dot_int8

const Kernels kernels_neon = {NEON_KERNELS, .name = "neon", .float_strips = 1, .flash = 1};

const Kernels kernels_neon_bf16 = {
    NEON_KERNELS, .name = "neon-bf16", .nvfp4_to_bf16 = nvfp4_to_bf16, .split = split_bf16,
    .to_strip = to_strip, .int4_to_bf16 = int4_to_bf16, .gemm = gemm, .soften = soften,
    .add_values = add_values, .flash = 1,
};
#endif
