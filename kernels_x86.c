/* kernels_x86.c - the kernels of kernels.h for AVX2 (with FMA and F16C), without and with AVX-VNNI,
 * for AVX-512 (with VNNI and VBMI, which look up and add up 64 bytes at once), and for AMX, which
 * multiplies matrices.
 *
 * An NVFP4 nibble's value, doubled, is a whole number, and a byte shuffle looks up a register full
 * of them.  The integer dot products want one side unsigned, so 16 is added to the values; -16
 * times the sum of the activations stands ready in the packed form.  INT4 less its zero point, at
 * least -15, takes the same road.  A block's E4M3 scale, shifted, is the half-precision number 2^-8
 * times as large, subnormals included. */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX2_VNNI __attribute__((target("avx2,fma,f16c,avxvnni")))
#define AVX512                                                                                     \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,"           \
                          "avx512vnni")))
/* A function whose int arguments are constants where it is called: each call is code of its own. */
#define INLINE __attribute__((always_inline)) static inline
#define UNROLL _Pragma("GCC unroll 8")      /* at -O2 too: sums in arrays must be registers */

/* 32 bytes, wherever they lie. */
AVX2 INLINE __m256i load32(const void *p) { return _mm256_loadu_si256(p); }

/* 8 BF16 numbers as float32, of which they are the upper halves. */
AVX2 INLINE __m256 widen8(const uint8_t *bf16) {
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)bf16));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}

/* Adds lanes 8 apart, 4, 2, 1, as dot4_c; those of four sums at once. */
AVX2 static void fold(const float sum[ROWS][16], float out[ROWS]) {
    __m128 s[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) {
        __m256 v = _mm256_add_ps(_mm256_loadu_ps(sum[r]), _mm256_loadu_ps(sum[r] + 8));
        s[r] = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    }
    _MM_TRANSPOSE4_PS(s[0], s[1], s[2], s[3]);
    _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(s[0], s[2]), _mm_add_ps(s[1], s[3])));
}

/* ---- AVX2 ---- */

AVX2 static void expand_bf16(const uint8_t *data, int n, float *out) {
    int i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, widen8(data + 2 * i));
    kernels_c.expand_bf16(data + 2 * i, n - i, out + i);
}

AVX2 static void expand_nvfp4(const uint8_t *data, const uint8_t *block_scale, float scale, int n,
                              float *out) {
    const __m128i doubled = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    for (int i = 0; i < n; i += 16) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(data + i / 2));
        __m128i nibbles = _mm_and_si128(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)),
                                        _mm_set1_epi8(15));
        __m128i v = _mm_shuffle_epi8(doubled, nibbles);
        /* Halving is exact. */
        __m256 s = _mm256_set1_ps(0.5f * (e4m3[block_scale[i / 16]] * scale));
        __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
        __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(low, s));
        _mm256_storeu_ps(out + i + 8, _mm256_mul_ps(high, s));
    }
}

/* Eight E4M3 as half-precision numbers, divided by 2^8; NaN stays NaN. */
AVX2 INLINE __m128i e4m3_halves(const uint8_t *data) {
    const __m128i rest = _mm_set1_epi16(0x7f);
    __m128i u = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)data));
    __m128i number = _mm_and_si128(u, rest);
    __m128i half = _mm_or_si128(_mm_slli_epi16(number, 7),
                                _mm_slli_epi16(_mm_andnot_si128(rest, u), 8));
    __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(number, rest), _mm_set1_epi16(0x7fff));
    return _mm_or_si128(half, nan);
}

AVX2 static void expand_e4m3(const uint8_t *data, float scale, int n, float *out) {
    const __m256 s = _mm256_set1_ps(scale * 256);
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_cvtph_ps(e4m3_halves(data + i)), s));
    kernels_c.expand_e4m3(data + i, scale, n - i, out + i);
}

AVX2 static void expand_f16(const uint8_t *data, int n, float *out) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(data + 2 * i))));
    kernels_c.expand_f16(data + 2 * i, n - i, out + i);
}

/* out [16] = (bytes - zero) * scale */
AVX2 INLINE void put_integers(__m128i bytes, __m256i zero, __m256 scale, float *out) {
    UNROLL for (int k = 0; k < 2; k++) {
        __m256i wide = _mm256_cvtepu8_epi32(k ? _mm_srli_si128(bytes, 8) : bytes);
        __m256 v = _mm256_cvtepi32_ps(_mm256_sub_epi32(wide, zero));
        _mm256_storeu_ps(out + 8 * k, _mm256_mul_ps(v, scale));
    }
}

AVX2 static void expand_int8(const uint8_t *data, int zero, float scale, int n, float *out) {
    for (int i = 0; i < n; i += 16)
        put_integers(_mm_loadu_si128((const void *)(data + i)), _mm256_set1_epi32(zero),
                     _mm256_set1_ps(scale), out + i);
}

AVX2 static void expand_int4(const uint8_t *data, int zero, float scale, int n, float *out) {
    const __m256i z = _mm256_set1_epi32(zero);
    const __m256 s = _mm256_set1_ps(scale);
    const __m128i low = _mm_set1_epi8(15);
    for (int i = 0; i < n; i += 32) {
        __m128i bytes = _mm_loadu_si128((const void *)(data + i / 2));
        __m128i even = _mm_and_si128(bytes, low);
        __m128i odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
        put_integers(_mm_unpacklo_epi8(even, odd), z, s, out + i);
        put_integers(_mm_unpackhi_epi8(even, odd), z, s, out + i + 16);
    }
}

AVX2 static void e4m3_to_bf16_avx2(const uint8_t *data, int n, uint16_t *out) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        float v[16];
        expand_e4m3(data + i, 1, 16, v);
        __m256i low = _mm256_srli_epi32(_mm256_castps_si256(_mm256_loadu_ps(v)), 16);
        __m256i high = _mm256_srli_epi32(_mm256_castps_si256(_mm256_loadu_ps(v + 8)), 16);
        _mm256_storeu_si256((__m256i *)(out + i),
                            _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8));
    }
    for (; i < n; i++) out[i] = e4m3_bf16(data[i]);
}

AVX2 static void dot4(const float *a, const float *const b[4], int n, float out[4]) {
    __m256 s[4][2];
    UNROLL for (int r = 0; r < 4; r++) s[r][0] = s[r][1] = _mm256_setzero_ps();
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 a0 = _mm256_loadu_ps(a + i), a1 = _mm256_loadu_ps(a + i + 8);
        UNROLL for (int r = 0; r < 4; r++) {
            s[r][0] = _mm256_fmadd_ps(a0, _mm256_loadu_ps(b[r] + i), s[r][0]);
            s[r][1] = _mm256_fmadd_ps(a1, _mm256_loadu_ps(b[r] + i + 8), s[r][1]);
        }
    }
    float sum[4][16];
    UNROLL for (int k = 0; k < 8; k++) _mm256_storeu_ps(sum[k / 2] + k % 2 * 8, s[k / 2][k % 2]);
    fold(sum, out);
    for (int r = 0; r < 4 && i < n; r++) out[r] = dot_rest(out[r], a, b[r], i, n);
}

AVX2 static void axpy4(float *y, const float *const x[4], const float s[4], int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_loadu_ps(y + i);
        UNROLL for (int k = 0; k < 4; k++)
            v = _mm256_fmadd_ps(_mm256_set1_ps(s[k]), _mm256_loadu_ps(x[k] + i), v);
        _mm256_storeu_ps(y + i, v);
    }
    kernels_c.axpy4(y + i, (const float *[]){x[0] + i, x[1] + i, x[2] + i, x[3] + i}, s, n - i);
}

AVX2 INLINE void add_rows8(int T, float *y, int ldy, const float *p, int64_t ldp,
                           const uint8_t *const *v, int n_rows, int dim, int ahead) {
    for (int i = 0; i < dim; i += 16) {
        __m256 s[4][2];
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int half = 0; half < 2; half++)
                s[t][half] = _mm256_loadu_ps(y + (int64_t)t * ldy + i + 8 * half);
        for (int k = 0; k < n_rows; k++) {
            __m256 w[2];
            if (ahead && i % 32 == 0) _mm_prefetch((const char *)v[k] + 2 * i + ahead, _MM_HINT_T0);
            UNROLL for (int half = 0; half < 2; half++) w[half] = widen8(v[k] + 2 * i + 16 * half);
            UNROLL for (int t = 0; t < T; t++) {
                __m256 a = _mm256_broadcast_ss(p + t * ldp + k);
                UNROLL for (int half = 0; half < 2; half++)
                    s[t][half] = _mm256_fmadd_ps(a, w[half], s[t][half]);
            }
        }
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int half = 0; half < 2; half++)
                _mm256_storeu_ps(y + (int64_t)t * ldy + i + 8 * half, s[t][half]);
    }
}

AVX2 static void add_rows_avx2(float *y, int ldy, const float *p, int64_t ldp, int n,
                               const uint8_t *const *v, int n_rows, int dim, int ahead) {
    int q = 0;
    for (; q + 4 <= n; q += 4)
        add_rows8(4, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
    for (; q + 2 <= n; q += 2)
        add_rows8(2, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
    for (; q < n; q++)
        add_rows8(1, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
}

AVX2 INLINE void bf16_tile8(int R, int T, const uint8_t *const *row, int from, int to,
                            const float *const *x, float (*sum)[ROWS][16], int first, int ahead) {
    /* 8 BF16 numbers are in both halves of a register: the first four and the last four become the
     * upper halves of float32. */
    const __m256i upper = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,
                                           -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13,
                                           -1, -1, 14, 15);
    __m256 s[ROWS][TOKENS][2];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int half = 0; half < 2; half++)
                s[r][t][half] = _mm256_loadu_ps(sum[t][first + r] + 8 * half);
    for (int i = from; i + 16 <= to; i += 16) {
        if (ahead)
            UNROLL for (int r = 0; r < R; r++)
                _mm_prefetch((const char *)row[r] + 2 * i + ahead, _MM_HINT_T0);
        UNROLL for (int half = 0; half < 2; half++) {
            __m256 w[ROWS];
            UNROLL for (int r = 0; r < R; r++) {
                const __m128i *from8 = (const __m128i *)(row[r] + 2 * i + 16 * half);
                __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(from8));
                w[r] = _mm256_castsi256_ps(_mm256_shuffle_epi8(both, upper));
            }
            UNROLL for (int t = 0; t < T; t++) {
                __m256 a = _mm256_loadu_ps(x[t] + i + 8 * half);
                UNROLL for (int r = 0; r < R; r++)
                    s[r][t][half] = _mm256_fmadd_ps(a, w[r], s[r][t][half]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int half = 0; half < 2; half++)
                _mm256_storeu_ps(sum[t][first + r] + 8 * half, s[r][t][half]);
}

AVX2 static void bf16_avx2(const uint8_t *const row[ROWS], int from, int to,
                           const float *const x[TOKENS], int n, float sum[TOKENS][ROWS][16],
                           int ahead) {
    int t = 0;
    for (; t + 3 <= n; t += 3)
        for (int r = 0; r < ROWS; r += 2)
            bf16_tile8(2, 3, row + r, from, to, x + t, sum + t, r, t ? 0 : ahead);
    for (; t < n; t++) bf16_tile8(ROWS, 1, row, from, to, x + t, sum + t, 0, t ? 0 : ahead);
}

/* Columns i .. i + 7 of a row of FP8 or integers, without zero point and scale. */
AVX2 INLINE __m256 stored8(int bits, const uint8_t *row, int i) {
    const __m128i low = _mm_set1_epi8(15);
    if (bits == 8) return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadu_si64(row + i)));
    if (bits == 4) {
        __m128i bytes = _mm_loadu_si32(row + i / 2), odd = _mm_srli_epi16(bytes, 4);
        __m128i both = _mm_and_si128(_mm_unpacklo_epi8(bytes, odd), low);
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(both));
    }
    return _mm256_cvtph_ps(e4m3_halves(row + i));
}

/* 32 columns of FP8, i and the next ones, into the sums s.  NaN of E4M3 are taken for numbers.
 *
 * The half-precision numbers go through memory, because a conversion that reads its operand there
 * does not need the port for shuffles, which is the bottleneck.  The empty asm keeps the compiler
 * from taking them out of the registers instead. */
AVX2 INLINE void add_e4m3_32(int T, const uint8_t *data, __m256 scale, const float *const *x, int i,
                             __m256 (*s)[2]) {
    const __m256i none = _mm256_setzero_si256(), bits = _mm256_set1_epi16((short)0xbf80);
    /* Unpacking takes bytes of each 128 bits: columns 0-7 and 16-23, then 8-15 and 24-31. */
    _Alignas(32) uint16_t half[2][2][8];
    __m256i v = load32(data);
    __m256i first = _mm256_srai_epi16(_mm256_unpacklo_epi8(none, v), 1);
    __m256i last = _mm256_srai_epi16(_mm256_unpackhi_epi8(none, v), 1);
    _mm256_store_si256((__m256i *)half[0], _mm256_and_si256(first, bits));
    _mm256_store_si256((__m256i *)half[1], _mm256_and_si256(last, bits));
    __asm__("" : "+m"(half));
    UNROLL for (int k = 0; k < 4; k++) {
        __m256 w = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)half[k % 2][k / 2]));
        w = _mm256_mul_ps(w, scale);
        UNROLL for (int t = 0; t < T; t++)
            s[t][k % 2] = _mm256_fmadd_ps(_mm256_loadu_ps(x[t] + i + 8 * k), w, s[t][k % 2]);
    }
}

AVX2 INLINE void grouped_tile8(int BITS, int T, const GroupedRows *g, int from, int to,
                               const float *const *x, float (*sum)[ROWS][16], int r, int ahead) {
    const __m256i no_sign = _mm256_set1_epi8(0x7f);
    __m256i largest = _mm256_setzero_si256();
    __m256 s[TOKENS][2];
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int half = 0; half < 2; half++)
            s[t][half] = _mm256_loadu_ps(sum[t][r] + 8 * half);
    for (int begin = from, k = from / g->group; begin < to; begin += g->group, k++) {
        int end = to - begin < g->group ? to : begin + g->group;
        __m256 scale = _mm256_set1_ps(scale_of(g, r, k) * (BITS ? 1 : 256));
        __m256 zero = _mm256_set1_ps(BITS ? (float)zero_of(g, r, k) : 0);
        int i = begin;
        for (; BITS == 0 && i + 32 <= end; i += 32) {
            const uint8_t *data = g->row[r] + i;
            if (ahead) _mm_prefetch((const char *)data + ahead, _MM_HINT_T0);
            largest = _mm256_max_epu8(largest, _mm256_and_si256(load32(data), no_sign));
            add_e4m3_32(T, data, scale, x, i, s);
        }
        for (; i + 16 <= end; i += 16) {
            if (ahead)
                _mm_prefetch((const char *)g->row[r] + i * (BITS == 4 ? 4 : 8) / 8 + ahead,
                             _MM_HINT_T0);
            UNROLL for (int half = 0; half < 2; half++) {
                __m256 w = stored8(BITS, g->row[r], i + 8 * half);
                if (BITS) w = _mm256_sub_ps(w, zero);
                w = _mm256_mul_ps(w, scale);
                UNROLL for (int t = 0; t < T; t++)
                    s[t][half] =
                        _mm256_fmadd_ps(_mm256_loadu_ps(x[t] + i + 8 * half), w, s[t][half]);
            }
        }
    }
    /* One NaN of E4M3 makes the whole sum NaN, whichever lane it is in. */
    int is_nan = _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, no_sign));
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int half = 0; half < 2; half++)
            _mm256_storeu_ps(sum[t][r] + 8 * half, is_nan ? _mm256_set1_ps(NAN) : s[t][half]);
}

/* T tokens with numbers of each kind: 16 * T + bits. */
#define GROUPED_CASES(tile, T, ...)                                                                \
    case 16 * T: tile(0, T, g, from, to, x, sum, __VA_ARGS__); break;                              \
    case 16 * T + 4: tile(4, T, g, from, to, x, sum, __VA_ARGS__); break;                          \
    case 16 * T + 8: tile(8, T, g, from, to, x, sum, __VA_ARGS__); break;

AVX2 static void grouped_avx2(const GroupedRows *g, int from, int to, const float *const x[TOKENS],
                              int n, float sum[TOKENS][ROWS][16], int ahead) {
    for (int r = 0; r < ROWS; r++) {
        switch (16 * n + g->bits) {
            GROUPED_CASES(grouped_tile8, 1, r, ahead)
            GROUPED_CASES(grouped_tile8, 2, r, ahead)
            GROUPED_CASES(grouped_tile8, 3, r, ahead)
            GROUPED_CASES(grouped_tile8, 4, r, ahead)
            GROUPED_CASES(grouped_tile8, 5, r, ahead)
            GROUPED_CASES(grouped_tile8, 6, r, ahead)
        }
    }
}

/* 32 bytes of nibbles and 4 block scales of a row: the values of the even and of the odd columns,
 * doubled, plus 16; the scales, a lane for 8 columns. */
AVX2 INLINE void unpack8(const uint8_t *data, const uint8_t *block_scale, __m256i w[2],
                         __m256 *scale) {
    const __m256i value =
        _mm256_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4,
                         16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4);
    const __m128i twice = _mm_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3);
    const __m256i low = _mm256_set1_epi8(15);
    __m256i bytes = _mm256_loadu_si256((const __m256i *)data);
    w[0] = _mm256_shuffle_epi8(value, _mm256_and_si256(bytes, low));
    w[1] = _mm256_shuffle_epi8(value, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low));
    int four;
    memcpy(&four, block_scale, 4);
    __m128i s = _mm_srai_epi16(_mm_shuffle_epi8(_mm_cvtsi32_si128(four), twice), 1);
    *scale = _mm256_cvtph_ps(_mm_and_si128(s, _mm_set1_epi16((short)0xbf80)));
}

/* 64 columns of a row, of which w has the numbers plus 16, those of even columns first, into sums:
 * `at` is where their packed activations are. */
AVX2 INLINE void add_group8(int T, const __m256i w[2], __m256 scale, const uint8_t *const *x,
                            size_t at, __m256 *sum) {
    UNROLL for (int t = 0; t < T; t++) {
        const uint8_t *a = x[t] + at;
        __m256i p = _mm256_loadu_si256((const __m256i *)(a + 128));
        /* Four products of at most 31 * 128 stay below 2^15. */
        UNROLL for (int half = 0; half < 2; half++) {
            __m256i even = _mm256_maddubs_epi16(w[0], load32(a + 64 * half));
            __m256i odd = _mm256_maddubs_epi16(w[1], load32(a + 64 * half + 32));
            __m256i four = _mm256_add_epi16(even, odd);
            p = _mm256_add_epi32(_mm256_madd_epi16(four, _mm256_set1_epi16(half ? 1 : 256)), p);
        }
        __m256 both = _mm256_mul_ps(scale, _mm256_loadu_ps((const float *)(a + 160)));
        sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(p), both, sum[t]);
    }
}

AVX2 INLINE void nvfp4_group8(int T, const uint8_t *data, const uint8_t *block_scale,
                              const uint8_t *const *x, size_t at, __m256 *sum) {
    __m256i w[2];
    __m256 scale;
    unpack8(data, block_scale, w, &scale);
    add_group8(T, w, scale, x, at, sum);
}

AVX2 INLINE void nvfp4_tile8(int T, const uint8_t *row, const uint8_t *block_scale, int from,
                             int to, const uint8_t *const *x, float (*sum)[ROWS][16], int r,
                             int ahead) {
    __m256 s[TOKENS];
    int c = from;
    UNROLL for (int t = 0; t < T; t++) s[t] = _mm256_loadu_ps(sum[t][r]);
    for (; c + 64 <= to; c += 64) {
        if (ahead) {
            _mm_prefetch((const char *)row + c / 2 + ahead, _MM_HINT_T0);
            if (c % 1024 == 0)
                _mm_prefetch((const char *)block_scale + c / 16 + ahead / 8, _MM_HINT_T0);
        }
        nvfp4_group8(T, row + c / 2, block_scale + c / 16, x, 3 * (size_t)c, s);
    }
    if (c < to) {
        uint8_t data[32] = {0}, scale[4] = {0};
        memcpy(data, row + c / 2, (size_t)(to - c) / 2);
        memcpy(scale, block_scale + c / 16, (size_t)(to - c) / 16);
        nvfp4_group8(T, data, scale, x, 3 * (size_t)c, s);
    }
    UNROLL for (int t = 0; t < T; t++) _mm256_storeu_ps(sum[t][r], s[t]);
}

AVX2 static void nvfp4_avx2(const uint8_t *const row[ROWS], const uint8_t *const block_scale[ROWS],
                            int from, int to, const uint8_t *const x[TOKENS], int n,
                            float sum[TOKENS][ROWS][16], int ahead) {
    for (int r = 0; r < ROWS; r++) {
        int t = 0;
        for (; t + 3 <= n; t += 3)
            nvfp4_tile8(3, row[r], block_scale[r], from, to, x + t, sum + t, r, t ? 0 : ahead);
        for (; t < n; t++)
            nvfp4_tile8(1, row[r], block_scale[r], from, to, x + t, sum + t, r, t ? 0 : ahead);
    }
}

/* log2(columns of a group), 5 to 7. */
static inline int group_log2(const GroupedRows *g) { return __builtin_ctz((unsigned)g->group); }

/* The scales of group k of row r and of the three behind it; 0 beyond the last group. */
AVX2 INLINE __m128 four_scales(const GroupedRows *g, int r, int k) {
    float four[4] = {0};
    if (k + 4 <= g->n_groups) {
        const uint8_t *at = g->scale[r] + k * (g->scale_dtype == DT_F32 ? 4 : 2);
        if (g->scale_dtype == DT_F32) return _mm_loadu_ps((const float *)at);
        __m128i halves = _mm_loadl_epi64((const __m128i *)at);
        if (g->scale_dtype == DT_F16) return _mm_cvtph_ps(halves);
        return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16));
    }
    for (int i = 0; i < g->n_groups - k; i++) four[i] = scale_of(g, r, k + i);
    return _mm_loadu_ps(four);
}

/* The zero points of the same groups of INT4 as int32. */
AVX2 INLINE __m128i four_zeros(const GroupedRows *g, int r, int k) {
    int four[4] = {0};
    if (k + 4 <= g->n_groups) {
        __m128i words = _mm_loadu_si128((const __m128i *)(g->zero[r] + 4 * k));
        words = _mm_srlv_epi32(words, _mm_set1_epi32(g->zero_shift[r]));
        return _mm_and_si128(words, _mm_set1_epi32(15));
    }
    for (int i = 0; i < g->n_groups - k; i++) four[i] = zero_of(g, r, k + i);
    return _mm_loadu_si128((const __m128i *)four);
}

/* Fetches the scales of columns c .. c + 1023 of a row `ahead` bytes behind row r. */
AVX2 INLINE void fetch_scales(const GroupedRows *g, int r, int c, int ahead) {
    int k = (c + ahead * 8 / g->bits) >> group_log2(g);
    _mm_prefetch((const char *)g->scale[r] + k * (g->scale_dtype == DT_F32 ? 4 : 2), _MM_HINT_T0);
}

/* 32 bytes of nibbles, or 16 where there are only 32 columns: the even and the odd columns, less
 * the zero points, plus 16. */
AVX2 INLINE void unpack_int4(const uint8_t *data, int columns, __m256i zero, __m256i w[2]) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i more = _mm256_sub_epi8(_mm256_set1_epi8(16), zero);
    __m256i bytes = columns < 64 ? _mm256_zextsi128_si256(_mm_loadu_si128((const void *)data))
                                 : load32(data);
    w[0] = _mm256_add_epi8(_mm256_and_si256(bytes, low), more);
    w[1] = _mm256_add_epi8(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), more);
}

/* Row r of INT4 with T tokens, 128 columns after the other, whose scales and zero points are four
 * at most.  A lane has 8 columns, so `group` tells its place among these four. */
AVX2 INLINE void int4_tile8(int T, const GroupedRows *g, int r, int from, int to,
                            const uint8_t *const *x, float (*sum)[ROWS][16], int ahead) {
    /* Copies the first byte of each lane, the zero point, over the other three. */
    const __m256i lowest = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    int log2 = group_log2(g);
    __m256i group[2], zero = _mm256_set1_epi8(8), zeros = zero;
    group[0] = _mm256_srl_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                _mm_cvtsi32_si128(log2 - 3));
    group[1] = _mm256_add_epi32(group[0], _mm256_set1_epi32(64 >> log2));
    __m256 s[TOKENS];
    UNROLL for (int t = 0; t < T; t++) s[t] = _mm256_loadu_ps(sum[t][r]);
    for (int c = from; c < to; c += 128) {
        __m256 scales = _mm256_castps128_ps256(four_scales(g, r, c >> log2));
        if (g->zero[r]) zeros = _mm256_castsi128_si256(four_zeros(g, r, c >> log2));
        if (ahead && c % 1024 == 0) fetch_scales(g, r, c, ahead);
        UNROLL for (int half = 0; half < 2; half++) {
            int at = c + 64 * half;
            __m256i w[2];
            if (at >= to) break;
            if (ahead) _mm_prefetch((const char *)g->row[r] + at / 2 + ahead, _MM_HINT_T0);
            if (g->zero[r])
                zero = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(zeros, group[half]),
                                           lowest);
            unpack_int4(g->row[r] + at / 2, to - at, zero, w);
            add_group8(T, w, _mm256_permutevar8x32_ps(scales, group[half]), x, 3 * (size_t)at, s);
        }
    }
    UNROLL for (int t = 0; t < T; t++) _mm256_storeu_ps(sum[t][r], s[t]);
}

/* The activations of 16 even or odd columns as int16, from their upper bytes at `a` and their lower
 * ones 64 bytes behind these. */
AVX2 INLINE __m256i whole16(const uint8_t *a) {
    __m256i upper = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)a));
    __m256i lower = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(a + 64)));
    return _mm256_add_epi16(_mm256_slli_epi16(upper, 8), lower);
}

/* R rows of INT8 with T tokens.  A product of two bytes does not fit where a pair of them is added,
 * so both sides become int16; then a lane has 4 columns. */
AVX2 INLINE void int8_tile8(int R, int T, const GroupedRows *g, int first, int from, int to,
                            const uint8_t *const *x, float (*sum)[ROWS][16], int ahead) {
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    int log2 = group_log2(g);
    __m256 s[ROWS][TOKENS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) s[r][t] = _mm256_loadu_ps(sum[t][first + r]);
    for (int c = from; c < to; c += 32) {
        __m256i even[ROWS], odd[ROWS];
        if (ahead && c % 1024 == 0)
            UNROLL for (int r = 0; r < R; r++) fetch_scales(g, first + r, c, ahead);
        __m256 scale[ROWS];
        UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *at = g->row[first + r] + c;
            __m256i v = _mm256_xor_si256(load32(at), _mm256_set1_epi8((char)0x80));
            even[r] = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8);
            odd[r] = _mm256_srai_epi16(v, 8);
            scale[r] = _mm256_set1_ps(scale_of(g, first + r, c >> log2));
            if (ahead && c % 64 == 0) _mm_prefetch((const char *)at + ahead, _MM_HINT_T0);
        }
        UNROLL for (int t = 0; t < T; t++) {
            const uint8_t *a = x[t] + 3 * (size_t)(c / 64 * 64) + c % 64 / 2;
            const float *own = (const float *)(a - c % 64 / 2 + 160) + c % 64 / 8;
            __m256i x0 = whole16(a), x1 = whole16(a + 32);
            __m256 four = _mm256_castps128_ps256(_mm_loadu_ps(own));
            four = _mm256_permutevar8x32_ps(four, twice);
            UNROLL for (int r = 0; r < R; r++) {
                __m256i p = _mm256_add_epi32(_mm256_madd_epi16(even[r], x0),
                                             _mm256_madd_epi16(odd[r], x1));
                s[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(p), _mm256_mul_ps(scale[r], four),
                                          s[r][t]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) _mm256_storeu_ps(sum[t][first + r], s[r][t]);
}

AVX2 static void integers_avx2(const GroupedRows *g, int from, int to,
                               const uint8_t *const x[TOKENS], int n, float sum[TOKENS][ROWS][16],
                               int ahead) {
    int t = 0;
    for (; t + 3 <= n; t += 3, ahead = 0) {
        if (g->bits == 8)
            for (int r = 0; r < ROWS; r += 2)
                int8_tile8(2, 3, g, r, from, to, x + t, sum + t, ahead);
        else
            for (int r = 0; r < ROWS; r++) int4_tile8(3, g, r, from, to, x + t, sum + t, ahead);
    }
    for (; t < n; t++, ahead = 0) {
        if (g->bits == 8) int8_tile8(ROWS, 1, g, 0, from, to, x + t, sum + t, ahead);
        else
            for (int r = 0; r < ROWS; r++) int4_tile8(1, g, r, from, to, x + t, sum + t, ahead);
    }
}

AVX2 INLINE void pack_group(const float *x, int from, int to, int cols, uint8_t *packed,
                            int group) {
    const __m256i even_odd = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
                                              0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    for (int c = from; c < to; c += BLOCK) {
        uint8_t *out = packed + 3 * (size_t)(c / group * group);
        int at = c % group;
        float last[BLOCK] = {0};
        const float *in = x + c;
        if (cols - c < BLOCK)
            in = c < cols ? memcpy(last, in, (size_t)(cols - c) * sizeof *in) : last;
        float *scale = (float *)(out + 2 * group + group / 2 + at / 2);
        __m256i n[4], part[2][4];
        for (int i = 0; i < 4; i++) {
            __m256 v = _mm256_loadu_ps(in + 8 * i);
            __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.f), v);
            __m128 m = _mm_max_ps(_mm256_castps256_ps128(size), _mm256_extractf128_ps(size, 1));
            m = _mm_max_ps(m, _mm_movehl_ps(m, m));
            float most = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
            scale[i] = most / MAX_X;
            __m256 inverse = _mm256_set1_ps(most > 0 ? MAX_X / most : 0);
            n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse));
            part[0][i] = _mm256_srai_epi32(_mm256_add_epi32(n[i], _mm256_set1_epi32(128)), 8);
            part[1][i] = _mm256_sub_epi32(n[i], _mm256_slli_epi32(part[0][i], 8));
        }
        UNROLL for (int lower = 0; lower < 2; lower++) {
            const __m256i *p = part[lower];
            __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(p[0], p[1]),
                                           _mm256_packs_epi32(p[2], p[3]));
            /* Now the 32 bytes are in order. */
            q = _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            q = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(q, even_odd), 0xd8);
            _mm_storeu_si128((__m128i *)(out + lower * group + at / 2), _mm256_castsi256_si128(q));
            _mm_storeu_si128((__m128i *)(out + lower * group + group / 2 + at / 2),
                             _mm256_extracti128_si256(q, 1));
        }
        __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(n[0], n[1]),
                                          _mm256_hadd_epi32(n[2], n[3]));
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(pairs),
                                    _mm256_extracti128_si256(pairs, 1));
        _mm_storeu_si128((__m128i *)(out + 2 * group + at / 2),
                         _mm_slli_epi32(_mm_sub_epi32(_mm_setzero_si128(), sum), 4));
    }
}

AVX2 static void pack_avx2(const float *x, int from, int to, int cols, uint8_t *packed) {
    pack_group(x, from, to, cols, packed, 64);
}

/* e^x within 2 ulp for |x| <= MOST_EXP: 2^n e^r, |r| <= ln 2 / 2.  Beyond that, x counts as
 * -MOST_EXP or MOST_EXP. */
AVX2 INLINE __m256 exp8(__m256 x) {
    const __m256 most = _mm256_set1_ps(MOST_EXP);
    /* Of two numbers of which one is NaN, these instructions give the second: so NaN stays. */
    x = _mm256_min_ps(most, _mm256_max_ps(_mm256_set1_ps(-MOST_EXP), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1 / 720.f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1 / 120.f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1 / 24.f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1 / 6.f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
    __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
}

/* g / 2 (1 + tanh(z)) = g / (1 + e^-2z) */
AVX2 static void gelu_times(float *g, const float *u, int n) {
    for (int i = 0; i < n; i += 8) {
        float last[8] = {0};
        int rest = n - i < 8;
        __m256 v = _mm256_loadu_ps(rest ? memcpy(last, g + i, (size_t)(n - i) * sizeof *g) : g + i);
        __m256 one = _mm256_set1_ps(1);
        __m256 z = _mm256_fmadd_ps(_mm256_mul_ps(v, v), _mm256_set1_ps(0.044715f), one);
        z = _mm256_mul_ps(_mm256_mul_ps(z, v), _mm256_set1_ps(-2 * 0.7978845608f));
        v = _mm256_div_ps(v, _mm256_add_ps(one, exp8(z)));
        if (!rest) {
            _mm256_storeu_ps(g + i, _mm256_mul_ps(v, _mm256_loadu_ps(u + i)));
            continue;
        }
        _mm256_storeu_ps(last, v);
        for (int k = 0; k < n - i; k++) g[i + k] = last[k] * u[i + k];
    }
}

AVX2 INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

AVX2 static void round_row(const uint8_t *row, int cols, int8_t *q, float rounded[3]) {
    const __m256i no_sign = _mm256_set1_epi16(0x7fff);
    __m256i most = _mm256_setzero_si256();
    /* Of BF16 numbers without their signs the largest is that of the largest integer. */
    for (int i = 0; i < cols; i += 16)
        most = _mm256_max_epu16(most, _mm256_and_si256(load32(row + 2 * i), no_sign));
    uint16_t lane[16];
    uint16_t largest = 0;
    _mm256_storeu_si256((__m256i *)lane, most);
    for (int i = 0; i < 16; i++) largest = lane[i] > largest ? lane[i] : largest;
    float scale = bf16_to_float(largest) / 127;
    __m256 s = _mm256_set1_ps(scale), inverse = _mm256_set1_ps(scale > 0 ? 1 / scale : 0);
    __m256 error = _mm256_setzero_ps(), norm = error;
    for (int i = 0; i < cols; i += 16) {
        __m256i n[2];
        for (int half = 0; half < 2; half++) {
            __m256 w = widen8(row + 2 * i + 16 * half);
            n[half] = _mm256_cvtps_epi32(_mm256_mul_ps(w, inverse));
            __m256 off = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(n[half]), s, w);
            error = _mm256_fmadd_ps(off, off, error);
            norm = _mm256_fmadd_ps(w, w, norm);
        }
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(n[0], n[1]), 0xd8);
        _mm_storeu_si128((__m128i *)(q + i),
                         _mm_packs_epi16(_mm256_castsi256_si128(words),
                                         _mm256_extracti128_si256(words, 1)));
    }
    rounded[0] = scale;
    rounded[1] = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(sum8(error))));
    rounded[2] = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(sum8(norm))));
}

/* A lane of the 16 adds up at most 32768 / 16 products: below 2^31. */
AVX2 static void dot_int8(const int8_t *const q[ROWS], const int16_t *y, int cols,
                          int64_t out[ROWS], int ahead) {
    __m256i sum[ROWS][2];
    UNROLL for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (int i = 0; i < cols; i += 64) {
        UNROLL for (int r = 0; r < ROWS; r++)
            _mm_prefetch((const char *)q[r] + i + ahead, _MM_HINT_T0);
        UNROLL for (int k = 0; k < 4; k++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(y + i + 16 * k));
            UNROLL for (int r = 0; r < ROWS; r++) {
                __m128i bytes = _mm_loadu_si128((const __m128i *)(q[r] + i + 16 * k));
                __m256i w = _mm256_cvtepi8_epi16(bytes);
                sum[r][k % 2] = _mm256_add_epi32(sum[r][k % 2], _mm256_madd_epi16(w, v));
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        int32_t lane[8];
        out[r] = 0;
        for (int k = 0; k < 2; k++) {
            _mm256_storeu_si256((__m256i *)lane, sum[r][k]);
            for (int i = 0; i < 8; i++) out[r] += lane[i];
        }
    }
}

AVX2 INLINE void tile8(int R, const float *a, int lda, const float *b, int ldb, int n, float *c,
                       int ldc, int add) {
    __m256 s[TILE_ROWS][2];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int half = 0; half < 2; half++)
            s[r][half] = add ? _mm256_loadu_ps(c + (int64_t)r * ldc + 8 * half)
                             : _mm256_setzero_ps();
    for (int i = 0; i < n; i++) {
        __m256 b0 = _mm256_loadu_ps(b + (int64_t)i * ldb);
        __m256 b1 = _mm256_loadu_ps(b + (int64_t)i * ldb + 8);
        UNROLL for (int r = 0; r < R; r++) {
            __m256 v = _mm256_broadcast_ss(a + (int64_t)r * lda + i);
            s[r][0] = _mm256_fmadd_ps(v, b0, s[r][0]);
            s[r][1] = _mm256_fmadd_ps(v, b1, s[r][1]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        _mm256_storeu_ps(c + (int64_t)r * ldc, s[r][0]);
        _mm256_storeu_ps(c + (int64_t)r * ldc + 8, s[r][1]);
    }
}

#define TILE_CASES(tile)                                                                           \
    switch (n_rows) {                                                                              \
    case 1: tile(1, a, lda, b, ldb, n, c, ldc, add); break;                                        \
    case 2: tile(2, a, lda, b, ldb, n, c, ldc, add); break;                                        \
    case 3: tile(3, a, lda, b, ldb, n, c, ldc, add); break;                                        \
    case 4: tile(4, a, lda, b, ldb, n, c, ldc, add); break;                                        \
    case 5: tile(5, a, lda, b, ldb, n, c, ldc, add); break;                                        \
    default: tile(TILE_ROWS, a, lda, b, ldb, n, c, ldc, add);                                      \
    }

AVX2 static void tile_avx2(const float *a, int lda, int n_rows, const float *b, int ldb, int n,
                           float *c, int ldc, int add) {
    TILE_CASES(tile8)
}

/* out[i] = e^(s[i] - most) for i < n; returns their sum. */
AVX2 static float exp_less_avx2(const float *s, int n, float most, float *out) {
    float lane[8], rest = 0;
    int i = 0;
    __m256 sum = _mm256_setzero_ps();
    for (; i + 8 <= n; i += 8) {
        __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(s + i), _mm256_set1_ps(most)));
        _mm256_storeu_ps(out + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    for (; i < n; i++) rest += out[i] = limited_exp(s[i] - most);
    _mm256_storeu_ps(lane, sum);
    for (int k = 0; k < 8; k++) rest += lane[k];
    return rest;
}

AVX2 static void softmax_avx2(float *s, int n) {
    float max = s[0], lane[8];
    int i = 0;
    __m256 high = _mm256_set1_ps(s[0]);
    for (; i + 8 <= n; i += 8) high = _mm256_max_ps(high, _mm256_loadu_ps(s + i));
    _mm256_storeu_ps(lane, high);
    for (int k = 0; k < 8; k++) max = lane[k] > max ? lane[k] : max;
    for (; i < n; i++) max = s[i] > max ? s[i] : max;
    float sum = exp_less_avx2(s, n, max, s);
    for (i = 0; i < n; i++) s[i] *= 1 / sum;
}

/* What all sets have, what AVX2 has without AVX-512, and what AVX-512 has. */
#define COMMON_KERNELS                                                                             \
    .expand_e4m3 = expand_e4m3, .expand_f16 = expand_f16, .expand_int8 = expand_int8,              \
    .expand_int4 = expand_int4, .dot4 = dot4, .axpy4 = axpy4, .softmax = softmax_avx2,             \
    .fold = fold, .exp_less = exp_less_avx2, .gelu_times = gelu_times, .round_row = round_row,     \
    .dot_int8 = dot_int8, .flash = 1
#define AVX2_KERNELS                                                                               \
    COMMON_KERNELS, .expand_bf16 = expand_bf16, .expand_nvfp4 = expand_nvfp4, .bf16 = bf16_avx2,   \
    .e4m3_to_bf16 = e4m3_to_bf16_avx2, .add_rows = add_rows_avx2, .nvfp4 = nvfp4_avx2,             \
    .pack = pack_avx2, .group = 64, .grouped = grouped_avx2, .few = 3, .integers = integers_avx2,  \
    .tile = tile_avx2, .float_strips = 1
#define AVX512_KERNELS                                                                             \
    COMMON_KERNELS, .expand_bf16 = expand_bf16_avx512, .expand_nvfp4 = expand_nvfp4_avx512,        \
    .tile = tile_avx512, .bf16 = bf16_avx512, .e4m3_to_bf16 = e4m3_to_bf16_avx512,                 \
    .add_rows = add_rows_avx512, .nvfp4 = nvfp4_avx512, .pack = pack_avx512, .group = 128,         \
    .grouped = grouped_avx512, .few = INT_MAX, .integers = integers_avx512

/* ---- AVX-512 ---- */

/* Bytes are looked up by seven of their bits, the eighth is the sign. */
AVX512 static void e4m3_to_bf16_avx512(const uint8_t *data, int n, uint16_t *out) {
    __m512i table[2][2];
    for (int k = 0; k < 4; k++)
        table[k / 2][k % 2] = _mm512_loadu_si512(e4m3_bytes[k / 2] + 64 * (k % 2));
    int i = 0;
    for (; i + 64 <= n; i += 64) {
        /* The halves of 128 bits are widened each by itself, so 8 bytes of the first half stand
         * before 8 of the second one. */
        __m512i v = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7),
                                             _mm512_loadu_si512(data + i));
        __m512i lower = _mm512_permutex2var_epi8(table[0][0], v, table[0][1]);
        __m512i upper = _mm512_permutex2var_epi8(table[1][0], v, table[1][1]);
        upper = _mm512_or_si512(upper, _mm512_and_si512(v, _mm512_set1_epi8((char)0x80)));
        _mm512_storeu_si512(out + i, _mm512_unpacklo_epi8(lower, upper));
        _mm512_storeu_si512(out + i + 32, _mm512_unpackhi_epi8(lower, upper));
    }
    for (; i < n; i++) out[i] = e4m3_bf16(data[i]);
}

/* 16 BF16 numbers as float32. */
AVX512 INLINE __m512 widen16(const uint8_t *bf16) {
    __m512i u = _mm512_cvtepu16_epi32(load32(bf16));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}

AVX512 INLINE void bf16_tile16(int T, const uint8_t *const *row, int from, int to,
                               const float *const *x, float (*sum)[ROWS][16], int ahead) {
    __m512 s[ROWS][TOKENS];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int t = 0; t < T; t++) s[r][t] = _mm512_loadu_ps(sum[t][r]);
    for (int i = from; i + 16 <= to; i += 16) {
        __m512 w[ROWS];
        if (ahead && i % 32 == 0)
            UNROLL for (int r = 0; r < ROWS; r++)
                _mm_prefetch((const char *)row[r] + 2 * i + ahead, _MM_HINT_T0);
        UNROLL for (int r = 0; r < ROWS; r++) w[r] = widen16(row[r] + 2 * i);
        UNROLL for (int t = 0; t < T; t++) {
            __m512 a = _mm512_loadu_ps(x[t] + i);
            UNROLL for (int r = 0; r < ROWS; r++) s[r][t] = _mm512_fmadd_ps(a, w[r], s[r][t]);
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(sum[t][r], s[r][t]);
}

AVX512 static void bf16_avx512(const uint8_t *const row[ROWS], int from, int to,
                               const float *const x[TOKENS], int n, float sum[TOKENS][ROWS][16],
                               int ahead) {
    switch (n) {
    case 1: bf16_tile16(1, row, from, to, x, sum, ahead); break;
    case 2: bf16_tile16(2, row, from, to, x, sum, ahead); break;
    case 3: bf16_tile16(3, row, from, to, x, sum, ahead); break;
    case 4: bf16_tile16(4, row, from, to, x, sum, ahead); break;
    case 5: bf16_tile16(5, row, from, to, x, sum, ahead); break;
    case 6: bf16_tile16(6, row, from, to, x, sum, ahead); break;
    }
}

/* What turns stored integers or E4M3 of one group of a row into weights. */
typedef struct {
    __m512 scale, zero;
    __m512 table;                       /* of INT4: the weight of each nibble */
} Group16;

AVX512 INLINE Group16 group16(int bits, float scale, float zero) {
    Group16 g = {_mm512_set1_ps(bits ? scale : scale * 256), _mm512_set1_ps(zero), {0}};
    const __m512 nibble = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (bits == 4) g.table = _mm512_mul_ps(_mm512_sub_ps(nibble, g.zero), g.scale);
    return g;
}

/* Columns i .. i + 15 of a row of FP8 or integers. */
AVX512 INLINE __m512 weights16(int bits, const uint8_t *row, int i, const Group16 *g) {
    if (bits == 4) {
        /* Each lane gets the word that its nibble is in, shifted right until the nibble is the
         * index into the table, which ignores the bits above it. */
        const __m512i word = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        const __m512i shift =
            _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
        __m512i words = _mm512_castsi128_si512(_mm_loadu_si64(row + i / 2));
        __m512i nibbles = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, words), shift);
        return _mm512_permutexvar_ps(nibbles, g->table);
    }
    __m128i bytes = _mm_loadu_si128((const __m128i *)(row + i));
    if (bits == 8) {
        __m512 q = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
        return _mm512_mul_ps(_mm512_sub_ps(q, g->zero), g->scale);
    }
    /* As e4m3_halves: the sign stays at the top, the other bits move down by one. */
    const __m256i rest = _mm256_set1_epi16(0x3f80);
    __m256i half = _mm256_srai_epi16(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8), 1);
    __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(half, rest), rest);
    half = _mm256_and_si256(half, _mm256_set1_epi16((short)0xbf80));
    half = _mm256_mask_set1_epi16(half, nan, 0x7fff);
    return _mm512_mul_ps(_mm512_cvtph_ps(half), g->scale);
}

/* 64 E4M3 as four vectors of float32 in the order of the columns, not scaled: the bytes of their
 * BF16 come out of tables.  Column 32 j + i goes beside column 32 j + 16 + i first, so that their
 * BF16 are the halves of a lane, and a shift and a mask widen them. */
AVX512 INLINE void e4m3_64(const uint8_t *data, __m512 w[4]) {
    /* Unpacking takes eight bytes of each 128 bits at a time. */
    static const _Alignas(64) uint8_t pairs[64] = {
        0, 16, 1, 17, 2, 18, 3, 19, 32, 48, 33, 49, 34, 50, 35, 51,
        4, 20, 5, 21, 6, 22, 7, 23, 36, 52, 37, 53, 38, 54, 39, 55,
        8, 24, 9, 25, 10, 26, 11, 27, 40, 56, 41, 57, 42, 58, 43, 59,
        12, 28, 13, 29, 14, 30, 15, 31, 44, 60, 45, 61, 46, 62, 47, 63,
    };
    __m512i v = _mm512_permutexvar_epi8(_mm512_load_si512(pairs), _mm512_loadu_si512(data));
    __m512i byte[2];
    UNROLL for (int k = 0; k < 2; k++)
        byte[k] = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_bytes[k]), v,
                                           _mm512_loadu_si512(e4m3_bytes[k] + 64));
    __m512i upper = _mm512_or_si512(byte[1], _mm512_and_si512(v, _mm512_set1_epi8((char)0x80)));
    UNROLL for (int k = 0; k < 2; k++) {
        __m512i both = k ? _mm512_unpackhi_epi8(byte[0], upper)
                         : _mm512_unpacklo_epi8(byte[0], upper);
        w[2 * k] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        w[2 * k + 1] = _mm512_castsi512_ps(
            _mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
    }
}

/* Columns i .. i + 63 of rows of FP8 into the sums s. */
AVX512 INLINE void add_e4m3_64(int T, const GroupedRows *g, int k, int i, const float *const *x,
                               __m512 (*s)[TOKENS], int ahead) {
    UNROLL for (int r = 0; r < ROWS; r++) {
        __m512 w[4], scale = _mm512_set1_ps(scale_of(g, r, k));
        if (ahead) _mm_prefetch((const char *)g->row[r] + i + ahead, _MM_HINT_T0);
        e4m3_64(g->row[r] + i, w);
        UNROLL for (int j = 0; j < 4; j++) {
            w[j] = _mm512_mul_ps(w[j], scale);
            UNROLL for (int t = 0; t < T; t++)
                s[r][t] = _mm512_fmadd_ps(_mm512_loadu_ps(x[t] + i + 16 * j), w[j], s[r][t]);
        }
    }
}

AVX512 INLINE void grouped_tile16(int BITS, int T, const GroupedRows *g, int from, int to,
                                  const float *const *x, float (*sum)[ROWS][16], int ahead) {
    __m512 s[ROWS][TOKENS];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int t = 0; t < T; t++) s[r][t] = _mm512_loadu_ps(sum[t][r]);
    for (int begin = from, k = from / g->group; begin < to; begin += g->group, k++) {
        int end = to - begin < g->group ? to : begin + g->group;
        Group16 of[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++)
            of[r] = group16(BITS, scale_of(g, r, k), BITS ? (float)zero_of(g, r, k) : 0);
        int i = begin;
        for (; BITS == 0 && i + 64 <= end; i += 64) add_e4m3_64(T, g, k, i, x, s, ahead);
        for (; i + 16 <= end; i += 16) {
            if (ahead && i % 64 == 0)
                UNROLL for (int r = 0; r < ROWS; r++)
                    _mm_prefetch((const char *)g->row[r] + i / (BITS == 4 ? 2 : 1) + ahead,
                                 _MM_HINT_T0);
            UNROLL for (int r = 0; r < ROWS; r++) {
                __m512 w = weights16(BITS, g->row[r], i, &of[r]);
                UNROLL for (int t = 0; t < T; t++)
                    s[r][t] = _mm512_fmadd_ps(_mm512_loadu_ps(x[t] + i), w, s[r][t]);
            }
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(sum[t][r], s[r][t]);
}

AVX512 static void grouped_avx512(const GroupedRows *g, int from, int to,
                                  const float *const x[TOKENS], int n,
                                  float sum[TOKENS][ROWS][16], int ahead) {
    switch (16 * n + g->bits) {
        GROUPED_CASES(grouped_tile16, 1, ahead)
        GROUPED_CASES(grouped_tile16, 2, ahead)
        GROUPED_CASES(grouped_tile16, 3, ahead)
        GROUPED_CASES(grouped_tile16, 4, ahead)
        GROUPED_CASES(grouped_tile16, 5, ahead)
        GROUPED_CASES(grouped_tile16, 6, ahead)
    }
}

/* Six sums are too few to hide the latency of a fused multiply-add, but have the bits of tile8. */
AVX512 INLINE void tile16(int R, const float *a, int lda, const float *b, int ldb, int n, float *c,
                          int ldc, int add) {
    __m512 s[TILE_ROWS];
    UNROLL for (int r = 0; r < R; r++)
        s[r] = add ? _mm512_loadu_ps(c + (int64_t)r * ldc) : _mm512_setzero_ps();
    for (int i = 0; i < n; i++) {
        __m512 v = _mm512_loadu_ps(b + (int64_t)i * ldb);
        UNROLL for (int r = 0; r < R; r++)
            s[r] = _mm512_fmadd_ps(_mm512_set1_ps(a[(int64_t)r * lda + i]), v, s[r]);
    }
    UNROLL for (int r = 0; r < R; r++) _mm512_storeu_ps(c + (int64_t)r * ldc, s[r]);
}

AVX512 static void tile_avx512(const float *a, int lda, int n_rows, const float *b, int ldb, int n,
                               float *c, int ldc, int add) {
    TILE_CASES(tile16)
}

/* Columns i .. i + 16 * W - 1. */
AVX512 INLINE void add_columns16(int T, int W, int i, float *y, int ldy, const float *p,
                                 int64_t ldp, const uint8_t *const *v, int n_rows, int ahead) {
    __m512 s[8][2];
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int k = 0; k < W; k++)
            s[t][k] = _mm512_loadu_ps(y + (int64_t)t * ldy + i + 16 * k);
    for (int r = 0; r < n_rows; r++) {
        __m512 w[2];
        if (ahead) _mm_prefetch((const char *)v[r] + 2 * i + ahead, _MM_HINT_T0);
        UNROLL for (int k = 0; k < W; k++) w[k] = widen16(v[r] + 2 * i + 32 * k);
        UNROLL for (int t = 0; t < T; t++) {
            __m512 a = _mm512_set1_ps(p[t * ldp + r]);
            UNROLL for (int k = 0; k < W; k++) s[t][k] = _mm512_fmadd_ps(a, w[k], s[t][k]);
        }
    }
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int k = 0; k < W; k++)
            _mm512_storeu_ps(y + (int64_t)t * ldy + i + 16 * k, s[t][k]);
}

AVX512 INLINE void add_rows16(int T, float *y, int ldy, const float *p, int64_t ldp,
                              const uint8_t *const *v, int n_rows, int dim, int ahead) {
    int i = 0;
    for (; i + 32 <= dim; i += 32) add_columns16(T, 2, i, y, ldy, p, ldp, v, n_rows, ahead);
    if (i < dim) add_columns16(T, 1, i, y, ldy, p, ldp, v, n_rows, ahead);
}

AVX512 static void add_rows_avx512(float *y, int ldy, const float *p, int64_t ldp, int n,
                                   const uint8_t *const *v, int n_rows, int dim, int ahead) {
    int q = 0;
    for (; q + 8 <= n; q += 8)
        add_rows16(8, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
    for (; q + 4 <= n; q += 4)
        add_rows16(4, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
    for (; q + 2 <= n; q += 2)
        add_rows16(2, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
    for (; q < n; q++)
        add_rows16(1, y + (int64_t)q * ldy, ldy, p + q * ldp, ldp, v, n_rows, dim, q ? 0 : ahead);
}

/* Columns c .. c + 127 of R rows, whose numbers plus 16 << more are in `even` and `odd`, into the
 * sums of T tokens. */
AVX512 INLINE void add_group16(int R, int T, const __m512i *even, const __m512i *odd,
                               const __m512 *scale, int more, const uint8_t *const *x, int c,
                               __m512 (*sum)[TOKENS]) {
    UNROLL for (int t = 0; t < T; t++) {
        const uint8_t *a = x[t] + 3 * (size_t)c;
        __m512i upper0 = _mm512_loadu_si512(a), upper1 = _mm512_loadu_si512(a + 64);
        __m512i lower0 = _mm512_loadu_si512(a + 128);
        __m512i lower1 = _mm512_loadu_si512(a + 192), from = _mm512_loadu_si512(a + 256);
        __m512 own = _mm512_loadu_ps(a + 320);
        if (more) from = _mm512_slli_epi32(from, (unsigned)more);
        UNROLL for (int r = 0; r < R; r++) {
            __m512i upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even[r], upper0);
            upper = _mm512_dpbusd_epi32(upper, odd[r], upper1);
            __m512i lower = _mm512_dpbusd_epi32(from, even[r], lower0);
            lower = _mm512_dpbusd_epi32(lower, odd[r], lower1);
            __m512i p = _mm512_add_epi32(_mm512_slli_epi32(upper, 8), lower);
            sum[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p), _mm512_mul_ps(scale[r], own),
                                        sum[r][t]);
        }
    }
}

/* 128 columns, or as many as `bytes` and `scales` say. */
AVX512 INLINE void nvfp4_group16(int R, int T, const uint8_t *const *row,
                                 const uint8_t *const *block_scale, int c, __mmask64 bytes,
                                 __mmask8 scales, const uint8_t *const *x, __m512 (*sum)[TOKENS]) {
    /* vpermb looks at six bits of an index: so the table stands there four times. */
    const __m128i values =
        _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4);
    const __m512i value = _mm512_broadcast_i32x4(values);
    const __m256i twice = _mm256_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3,
                                           -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7);
    __m512i even[ROWS], odd[ROWS];
    __m512 scale[ROWS];
    UNROLL for (int r = 0; r < R; r++) {
        __m512i data = _mm512_maskz_loadu_epi8(bytes, row[r] + c / 2);
        even[r] = _mm512_permutexvar_epi8(data, value);
        odd[r] = _mm512_permutexvar_epi8(_mm512_srli_epi16(data, 4), value);
        __m128i eight = scales == 0xff ? _mm_loadl_epi64((const __m128i *)(block_scale[r] + c / 16))
                                       : _mm_maskz_loadu_epi8(scales, block_scale[r] + c / 16);
        __m256i s = _mm256_shuffle_epi8(_mm256_broadcastq_epi64(eight), twice);
        s = _mm256_srai_epi16(s, 1);
        scale[r] = _mm512_cvtph_ps(_mm256_and_si256(s, _mm256_set1_epi16((short)0xbf80)));
    }
    add_group16(R, T, even, odd, scale, 0, x, c, sum);
}

AVX512 INLINE void nvfp4_tile16(int R, int T, const uint8_t *const *row,
                                const uint8_t *const *block_scale, int from, int to,
                                const uint8_t *const *x, float (*sum)[ROWS][16], int first,
                                int ahead) {
    __m512 s[ROWS][TOKENS];
    int c = from;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) s[r][t] = _mm512_loadu_ps(sum[t][first + r]);
    for (; c + 128 <= to; c += 128) {
        if (ahead)
            UNROLL for (int r = 0; r < R; r++) {
                _mm_prefetch((const char *)row[r] + c / 2 + ahead, _MM_HINT_T0);
                if (c % 1024 == 0)
                    _mm_prefetch((const char *)block_scale[r] + c / 16 + ahead / 8, _MM_HINT_T0);
            }
        nvfp4_group16(R, T, row, block_scale, c, ~(__mmask64)0, 0xff, x, s);
    }
    if (c < to) {
        /* Half a line: without this, a line that only a row's last bytes lie in would be missed. */
        if (ahead)
            UNROLL for (int r = 0; r < R; r++)
                _mm_prefetch((const char *)row[r] + c / 2 + ahead, _MM_HINT_T0);
        nvfp4_group16(R, T, row, block_scale, c, ((__mmask64)1 << (to - c) / 2) - 1,
                      (__mmask8)((1 << (to - c) / 16) - 1), x, s);
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(sum[t][first + r], s[r][t]);
}

AVX512 static void nvfp4_avx512(const uint8_t *const row[ROWS],
                                const uint8_t *const block_scale[ROWS], int from, int to,
                                const uint8_t *const x[TOKENS], int n, float sum[TOKENS][ROWS][16],
                                int ahead) {
    if (n == 1) {
        nvfp4_tile16(4, 1, row, block_scale, from, to, x, sum, 0, ahead);
        return;
    }
    for (int r = 0; r < ROWS; r += 2) switch (n) {
        case 2: nvfp4_tile16(2, 2, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        case 3: nvfp4_tile16(2, 3, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        case 4: nvfp4_tile16(2, 4, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        case 5: nvfp4_tile16(2, 5, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        case 6: nvfp4_tile16(2, 6, row + r, block_scale + r, from, to, x, sum, r, ahead); break;
        }
}

/* The first n of 64 bytes. */
AVX512 INLINE __mmask64 first64(int n) {
    if (n >= 64) return ~(__mmask64)0;
    return n > 0 ? ((__mmask64)1 << n) - 1 : 0;
}

/* Columns c .. c + 127, or as many as there are, of a row of integers: the even and the odd ones,
 * INT4 less its zero point plus 16, INT8 as it is stored, which is 128 more than the number. */
AVX512 INLINE void unpack_integers(int bits, const uint8_t *row, int c, int columns, __m512i zero,
                                   __m512i *even, __m512i *odd) {
    if (bits == 4) {
        const __m512i low = _mm512_set1_epi8(15), sixteen = _mm512_set1_epi8(16);
        enum { AND_OR = 0xea };         /* of three operands: (a & b) | c */
        __m512i data = _mm512_maskz_loadu_epi8(first64(columns / 2), row + c / 2);
        __m512i high = _mm512_srli_epi16(data, 4);
        *even = _mm512_sub_epi8(_mm512_ternarylogic_epi32(data, low, sixteen, AND_OR), zero);
        *odd = _mm512_sub_epi8(_mm512_ternarylogic_epi32(high, low, sixteen, AND_OR), zero);
        return;
    }
    const __m512i even_odd = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    __m512i half[2];
    UNROLL for (int k = 0; k < 2; k++) {
        __mmask64 mask = first64(columns - 64 * k);
        half[k] = _mm512_shuffle_epi8(_mm512_maskz_loadu_epi8(mask, row + c + 64 * k), even_odd);
    }
    const __m512i from = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    *even = _mm512_permutex2var_epi64(half[0], from, half[1]);
    *odd = _mm512_permutex2var_epi64(half[0], _mm512_add_epi64(from, _mm512_set1_epi64(1)),
                                     half[1]);
}

/* Rows first .. first + R - 1.  A lane has 8 columns; `group` tells its place among the four scales
 * and zero points. */
AVX512 INLINE void integers_tile16(int BITS, int R, int T, const GroupedRows *g, int first,
                                   int from, int to, const uint8_t *const *x,
                                   float (*sum)[ROWS][16], int ahead) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int log2 = group_log2(g);
    __m512i group = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(log2 - 3));
    /* Where the zero point of each byte is among four int32. */
    const __m512i byte = _mm512_mullo_epi32(group, _mm512_set1_epi32(0x04040404));
    __m512i zero = _mm512_set1_epi8(8);
    __m512 s[ROWS][TOKENS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) s[r][t] = _mm512_loadu_ps(sum[t][first + r]);
    for (int c = from; c < to; c += 128) {
        __m512i even[ROWS], odd[ROWS];
        __m512 scale[ROWS];
        int k = c >> log2, columns = to - c;
        if (ahead && c % 1024 == 0)
            UNROLL for (int r = 0; r < R; r++) fetch_scales(g, first + r, c, ahead);
        UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *row = g->row[first + r];
            const char *at = (const char *)row + c * BITS / 8 + ahead;
            if (ahead) {
                _mm_prefetch(at, _MM_HINT_T0);
                if (BITS == 8) _mm_prefetch(at + 64, _MM_HINT_T0);
            }
            if (BITS == 4 && g->zero[first + r]) {
                zero = _mm512_castsi128_si512(four_zeros(g, first + r, k));
                zero = _mm512_permutexvar_epi8(byte, zero);
            }
            scale[r] = _mm512_castps128_ps512(four_scales(g, first + r, k));
            scale[r] = _mm512_permutexvar_ps(group, scale[r]);
            if (columns >= 128) unpack_integers(BITS, row, c, 128, zero, &even[r], &odd[r]);
            else unpack_integers(BITS, row, c, columns, zero, &even[r], &odd[r]);
        }
        add_group16(R, T, even, odd, scale, BITS == 8 ? 3 : 0, x, c, s);
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(sum[t][first + r], s[r][t]);
}

AVX512 INLINE void integers_of(int BITS, const GroupedRows *g, int from, int to,
                               const uint8_t *const *x, int n, float (*sum)[ROWS][16], int ahead) {
    if (n == 1) {
        integers_tile16(BITS, 4, 1, g, 0, from, to, x, sum, ahead);
        return;
    }
    for (int r = 0; r < ROWS; r += 2) switch (n) {
        case 2: integers_tile16(BITS, 2, 2, g, r, from, to, x, sum, ahead); break;
        case 3: integers_tile16(BITS, 2, 3, g, r, from, to, x, sum, ahead); break;
        case 4: integers_tile16(BITS, 2, 4, g, r, from, to, x, sum, ahead); break;
        case 5: integers_tile16(BITS, 2, 5, g, r, from, to, x, sum, ahead); break;
        case 6: integers_tile16(BITS, 2, 6, g, r, from, to, x, sum, ahead); break;
        }
}

AVX512 static void integers_avx512(const GroupedRows *g, int from, int to,
                                   const uint8_t *const x[TOKENS], int n,
                                   float sum[TOKENS][ROWS][16], int ahead) {
    if (g->bits == 8) integers_of(8, g, from, to, x, n, sum, ahead);
    else integers_of(4, g, from, to, x, n, sum, ahead);
}

AVX2 static void pack_avx512(const float *x, int from, int to, int cols, uint8_t *packed) {
    pack_group(x, from, to, cols, packed, 128);
}

/* A register of 16 values is looked up by the low four bits of 32. */
AVX512 static void expand_nvfp4_avx512(const uint8_t *data, const uint8_t *block_scale, float scale,
                                       int n, float *out) {
    const __m512 value = _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3,
                                        -4, -6);
    for (int i = 0; i < n; i += 16) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(data + i / 2));
        __m512i nibbles = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)));
        __m512 s = _mm512_set1_ps(e4m3[block_scale[i / 16]] * scale);
        _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_permutexvar_ps(nibbles, value), s));
    }
}

AVX512 static void expand_bf16_avx512(const uint8_t *data, int n, float *out) {
    int i = 0;
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(out + i, widen16(data + 2 * i));
    kernels_c.expand_bf16(data + 2 * i, n - i, out + i);
}

/* ---- panels: see PanelKernels in kernels.h ----
 *
 * A lane is a row of W.  A word of its 32 bits is two columns of 16 bits or four of 8 bits; one
 * instruction multiplies it with the same columns of a token and adds the products to the lane's
 * int32: VPDPWSSD and VPDPBUSD, or with AVX2 alone two instructions, VPMADDWD and VPADDD, or
 * VPMADDUBSW and VPADDW.  The functions take
 *
 *     BITS    of an activation: 16 or 8
 *     KIND    of weights: 0 for NVFP4, 4 or 8 for integers of as many bits, 16 for BF16
 *
 * No int32 overflows.  NVFP4, doubled, is at most 12, so 16 columns with 16 bits stay below 2^23.
 * INT4 less its zero point is at most 15, so 32 columns stay below 2^24: float32 holds both
 * exactly.  INT8 is at most 128, so 32 columns stay within 2^27.  BF16 becomes integers of at most
 * 4080, and 16 * 4080 * 32768 is less than 2^31.  With 8 bits weights are unsigned, at most 31 or
 * 255, and 32 columns stay below 2^20; what makes them so is subtracted again. */

#define PANEL_COLS 128                  /* that become a panel at a time: 64 bytes of nibbles */

typedef struct {
    _Alignas(64) uint32_t word[PANEL_COLS / 2][PANEL_ROWS];
    _Alignas(64) float scale[PANEL_COLS / 16][PANEL_ROWS];      /* of 16 columns, or 32 */
} Panel;

/* 32 columns of a token.  -16 times the sum of each 16 columns stands there for 8 bits only. */
#define RECORD(BITS) (BLOCK * (BITS) / 8 + 4 + ((BITS) == 8 ? 8 : 0))

/* A token's records of 8 bits are followed by as many of 16 bits, which BF16 meets.  With the two
 * in turns NVFP4 reads twice the cache lines: AVX-512 took a tenth longer with 256 tokens. */
enum { BOTH = RECORD(8) + RECORD(16) };

/* The bytes of a token's records of 8 bits. */
static inline int records8(int cols) { return (cols + BLOCK - 1) / BLOCK * RECORD(8); }

/* Columns c .. c + 31.  NaN without its sign is the largest integer, so one activation of NaN makes
 * the scale NaN. */
AVX2 INLINE void pack_record(int BITS, const float *x, int c, int cols, uint8_t *out) {
    const float limit = BITS == 16 ? 32767 : 127;
    float last[BLOCK] = {0}, most, scale;
    const float *in = x + c;
    __m256 v[4];
    __m256i size = _mm256_setzero_si256(), n[4];
    if (cols - c < BLOCK) in = memcpy(last, in, (size_t)(cols - c) * sizeof *in);
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(in + 8 * i);
        __m256i no_sign = _mm256_and_si256((__m256i)v[i], _mm256_set1_epi32(INT_MAX));
        size = _mm256_max_epu32(size, no_sign);
    }
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(size), _mm256_extracti128_si256(size, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    int bits = _mm_cvtsi128_si32(m);
    memcpy(&most, &bits, 4);
    scale = most / limit;
    memcpy(out + BLOCK * BITS / 8, &scale, 4);
    __m256 inverse = _mm256_set1_ps(most > 0 ? limit / most : 0);
    UNROLL for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i low = _mm256_packs_epi32(n[0], n[1]), high = _mm256_packs_epi32(n[2], n[3]);
    if (BITS == 16) {
        _mm256_storeu_si256((__m256i *)out, _mm256_permute4x64_epi64(low, 0xd8));
        _mm256_storeu_si256((__m256i *)(out + 32), _mm256_permute4x64_epi64(high, 0xd8));
        return;
    }
    __m256i q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                            _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)out, q);
    __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(n[0], n[1]),
                                      _mm256_hadd_epi32(n[2], n[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sum = _mm_slli_epi32(_mm_sub_epi32(_mm_setzero_si128(), _mm_hadd_epi32(sum, sum)), 4);
    _mm_storel_epi64((__m128i *)(out + BLOCK + 4), sum);
}

AVX2 static void pack_panels(const float *x, int from, int to, int cols, uint8_t *packed) {
    for (int c = from; c < to; c += BLOCK)
        pack_record(16, x, c, cols, packed + c / BLOCK * RECORD(16));
}

AVX2 static void pack_panels8(const float *x, int from, int to, int cols, uint8_t *packed) {
    for (int c = from; c < to; c += BLOCK)
        pack_record(8, x, c, cols, packed + c / BLOCK * RECORD(8));
    pack_panels(x, from, to, cols, packed + records8(cols));
}

/* KIND of these rows: see above. */
static inline int kind_of(const PanelRows *w) {
    if (w->dtype == DT_I32) return w->four->bits;
    return w->dtype == DT_BF16 ? 16 : 0;
}

static inline const uint8_t *row_of(const PanelRows *w, int r) {
    return w->four[r / ROWS].row[r % ROWS];
}

static inline const uint8_t *scales_of(const PanelRows *w, int r) {
    return w->four[r / ROWS].scale[r % ROWS];
}

/* Scales and INT4's zero points of up to 16 rows, of up to four groups of columns. */
typedef struct {
    float scale[16][4];
    int32_t zero[16][4];
} Groups;

/* Loads group k and the next ones of n rows, `first` and those behind it. */
AVX2 INLINE void load_groups(int n, int KIND, const PanelRows *w, int first, int k, Groups *out) {
    for (int i = 0; i < n; i++) {
        const GroupedRows *g = &w->four[(first + i) / ROWS];
        int r = i % ROWS;
        __m128i zero = _mm_set1_epi32(8);
        if (KIND == 4 && g->zero[r]) zero = four_zeros(g, r, k);
        _mm_storeu_ps(out->scale[i], four_scales(g, r, k));
        _mm_storeu_si128((__m128i *)out->zero[i], zero);
    }
}

/* Fetches what the panel after this one reads: of the same rows, or in the place of their end of
 * those that lie behind them in the matrix. */
AVX2 INLINE void fetch_panel(int KIND, const PanelRows *w, int c) {
    int cols = w->cols;
    int bits = KIND ? KIND : 4, bytes = PANEL_COLS * bits / 8;
    int64_t at = (int64_t)c * bits / 8 + bytes, scale_at = c / 16 + PANEL_COLS / 16;
    if (c + PANEL_COLS >= cols) {
        at = (int64_t)PANEL_ROWS * cols * bits / 8;
        scale_at = (int64_t)PANEL_ROWS * cols / 16;
    }
    for (int r = 0; r < PANEL_ROWS; r++) {
        for (int i = 0; i < bytes; i += 64)
            _mm_prefetch((const char *)row_of(w, r) + at + i, _MM_HINT_T0);
        if (!KIND) _mm_prefetch((const char *)scales_of(w, r) + scale_at, _MM_HINT_T0);
    }
}

/* ---- panels with AVX2, and with AVX2 and AVX-VNNI ---- */

/* The first `bytes` of 32 bytes, then zeros. */
AVX2 INLINE __m256i load_some8(const uint8_t *from, int bytes) {
    uint8_t some[32] = {0};
    if (bytes >= 32) return load32(from);
    if (bytes > 0) memcpy(some, from, (size_t)bytes);
    return load32(some);
}

/* Word j of vector i becomes word i of vector j. */
AVX2 INLINE void transpose8(__m256i v[8]) {
    __m256i a[8];
    UNROLL for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
        UNROLL for (int k = 0; k < 2; k++) {
            v[i + 2 * k] = _mm256_unpacklo_epi64(a[i + k], a[i + k + 2]);
            v[i + 2 * k + 1] = _mm256_unpackhi_epi64(a[i + k], a[i + k + 2]);
        }
    /* Now 128 bits have a word of four rows. */
    UNROLL for (int k = 0; k < 4; k++) {
        a[k] = _mm256_permute2x128_si256(v[k], v[4 + k], 0x20);
        a[4 + k] = _mm256_permute2x128_si256(v[k], v[4 + k], 0x31);
    }
    UNROLL for (int k = 0; k < 8; k++) v[k] = a[k];
}

/* The lower 16 bits of each lane of `lower`, the upper ones of `upper`. */
AVX2 INLINE __m256i join_halves8(__m256i lower, __m256i upper) {
    return _mm256_blend_epi16(lower, upper, 0xaa);
}

/* A lane of a and of b has two columns each, 16 bits wide: the first of both become a word, and the
 * second of both another one. */
AVX2 INLINE void put_two_words(__m256i a, __m256i b, uint32_t *first, uint32_t *second) {
    *(__m256i *)first = join_halves8(a, _mm256_slli_epi32(b, 16));
    *(__m256i *)second = join_halves8(_mm256_srli_epi32(a, 16), b);
}

/* The even and the odd bytes of each lane as int16. */
AVX2 INLINE __m256i even_bytes8(__m256i v) {
    return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8);
}
AVX2 INLINE __m256i odd_bytes8(__m256i v) { return _mm256_srai_epi16(v, 8); }

/* Numbers of 8 rows as words of two columns, or with 8 bits of four: v has eight nibbles or four
 * bytes of each.  less: INT4's zero points, in each of BITS bits. */
AVX2 INLINE void put_words8(int BITS, int KIND, __m256i v, __m256i less,
                            uint32_t (*word)[PANEL_ROWS]) {
    const __m256i low = _mm256_set1_epi8(15), doubled = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const __m256i sixteen = _mm256_set1_epi8(16);
    int words8 = BITS == 8 && KIND != 8 ? 2 : 0;
    UNROLL for (int p = 0; p < words8; p++) {
        /* Two bytes of a lane, twice each: the first time for the low nibble. */
        const __m256i bytes = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13));
        __m256i n = _mm256_shuffle_epi8(v, _mm256_add_epi8(bytes, _mm256_set1_epi8((char)(2 * p))));
        n = _mm256_blendv_epi8(n, _mm256_srli_epi16(n, 4), _mm256_set1_epi16((short)0xff00));
        n = _mm256_and_si256(n, low);
        if (KIND == 0) n = _mm256_shuffle_epi8(_mm256_add_epi8(doubled, sixteen), n);
        else n = _mm256_sub_epi8(_mm256_add_epi8(n, sixteen), less);
        *(__m256i *)word[p] = n;
    }
    if (BITS == 8) {
        if (KIND == 8) *(__m256i *)word[0] = v;
        return;
    }
    if (KIND == 8) {
        v = _mm256_xor_si256(v, _mm256_set1_epi8((char)0x80));      /* 128 less */
        put_two_words(even_bytes8(v), odd_bytes8(v), word[0], word[1]);
        return;
    }
    /* Byte i is column 2 i, or 2 i + 1. */
    __m256i even = _mm256_and_si256(v, low), odd = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    if (KIND == 0) {
        even = _mm256_shuffle_epi8(doubled, even);
        odd = _mm256_shuffle_epi8(doubled, odd);
    } else {
        less = _mm256_or_si256(less, _mm256_slli_epi16(less, 8));
        even = _mm256_sub_epi8(even, less);
        odd = _mm256_sub_epi8(odd, less);
    }
    put_two_words(even_bytes8(even), even_bytes8(odd), word[0], word[2]);
    put_two_words(odd_bytes8(even), odd_bytes8(odd), word[1], word[3]);
}

/* The scales that the 8 rows of NVFP4 from row `first` on have for `blocks` times 16 columns from
 * column c on, also for what a doubled number is. */
AVX2 INLINE void put_block_scales8(const PanelRows *w, int first, int c, int blocks,
                                   float (*out)[PANEL_ROWS]) {
    __m256 scale = _mm256_set1_ps(NVFP4_FACTOR * w->scale);
    __m256i v[8];
    UNROLL for (int r = 0; r < 8; r++) {
        uint8_t some[8] = {0};
        const uint8_t *from = scales_of(w, first + r) + c / 16;
        if (blocks < 8) from = memcpy(some, from, (size_t)blocks);
        v[r] = (__m256i)_mm256_mul_ps(_mm256_cvtph_ps(e4m3_halves(from)), scale);
    }
    transpose8(v);
    for (int k = 0; k < blocks; k++) *(__m256i *)out[k] = v[k];
}

/* n + the products of two columns; with 8 bits those of four columns, added to two numbers of 16
 * bits.  Eight products of at most 31 * 127 stay below 2^15, so 16 columns do. */
AVX2 INLINE __m256i dot_avx2(int BITS, __m256i n, __m256i w, __m256i x) {
    if (BITS == 16) n = _mm256_add_epi32(n, _mm256_madd_epi16(w, x));
    else n = _mm256_add_epi16(n, _mm256_maddubs_epi16(w, x));
    /* The empty asm keeps gcc from adding products to each other first, for which there are not
     * enough registers. */
    __asm__("" : "+x"(n));
    return n;
}

AVX2_VNNI INLINE __m256i dot_avx2_vnni(int BITS, __m256i n, __m256i w, __m256i x) {
    return BITS == 16 ? _mm256_dpwssd_avx_epi32(n, w, x) : _mm256_dpbusd_avx_epi32(n, w, x);
}

#define SET AVX2
#define NAME(f) f##_avx2
#define LANES 8
#define SHORT_SUMS 1
#include "panels.h"

#define SET AVX2_VNNI
#define NAME(f) f##_avx2_vnni
#define LANES 8
#define SHORT_SUMS 0
#include "panels.h"

/* ---- panels with AVX-512 ---- */

/* The first `bytes` of 64 bytes, then zeros. */
AVX512 INLINE __m512i load_some16(const uint8_t *from, int bytes) {
    return _mm512_maskz_loadu_epi8(first64(bytes), from);
}

/* Word j of vector i becomes word i of vector j. */
AVX512 INLINE void transpose16(__m512i v[16]) {
    __m512i a[16];
    UNROLL for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4)
        UNROLL for (int k = 0; k < 2; k++) {
            v[i + 2 * k] = _mm512_unpacklo_epi64(a[i + k], a[i + k + 2]);
            v[i + 2 * k + 1] = _mm512_unpackhi_epi64(a[i + k], a[i + k + 2]);
        }
    /* Now 128 bits have a word of four rows. */
    UNROLL for (int k = 0; k < 4; k++) {
        a[k] = _mm512_shuffle_i32x4(v[k], v[4 + k], 0x88);
        a[4 + k] = _mm512_shuffle_i32x4(v[k], v[4 + k], 0xdd);
        a[8 + k] = _mm512_shuffle_i32x4(v[8 + k], v[12 + k], 0x88);
        a[12 + k] = _mm512_shuffle_i32x4(v[8 + k], v[12 + k], 0xdd);
    }
    UNROLL for (int k = 0; k < 8; k++) {
        v[k] = _mm512_shuffle_i32x4(a[k], a[8 + k], 0x88);
        v[8 + k] = _mm512_shuffle_i32x4(a[k], a[8 + k], 0xdd);
    }
}

/* The control of VPMULTISHIFTQB that moves the numbers of a lane to the lowest bits of as many
 * results of BITS bits: the first from bit `of` on, the next ones `step` bits further each. */
AVX512 INLINE __m512i shifts(int BITS, int of, int step) {
    uint64_t all = 0;
    UNROLL for (int i = 0; i < 8; i++)
        all |= (uint64_t)(of + i % 4 * 8 / BITS * step + i / 4 * 32) << 8 * i;
    return _mm512_set1_epi64((long long)all);
}

/* Numbers of 16 rows as words: v has eight nibbles or four bytes of each.  less: INT4's zero
 * points, in each of BITS bits. */
AVX512 INLINE void put_words16(int BITS, int KIND, __m512i v, __m512i less,
                               uint32_t (*word)[PANEL_ROWS]) {
    const __m128i doubled = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    int size = KIND == 8 ? 8 : 4;       /* bits of a number, of which a word has 32 / BITS */
    UNROLL for (int p = 0; p < BITS / size; p++) {
        __m512i n = _mm512_multishift_epi64_epi8(shifts(BITS, 32 / BITS * size * p, size), v);
        if (KIND == 0 && BITS == 16) {
            __m512i table = _mm512_broadcast_i64x4(_mm256_cvtepi8_epi16(doubled));
            n = _mm512_permutexvar_epi16(n, table);
        } else if (KIND == 0) {
            __m512i table = _mm512_broadcast_i32x4(_mm_add_epi8(doubled, _mm_set1_epi8(16)));
            n = _mm512_permutexvar_epi8(n, table);
        } else if (KIND == 4) {
            n = _mm512_and_si512(n, BITS == 16 ? _mm512_set1_epi16(15) : _mm512_set1_epi8(15));
            if (BITS == 16) n = _mm512_sub_epi16(n, less);
            else n = _mm512_sub_epi8(_mm512_add_epi8(n, _mm512_set1_epi8(16)), less);
        } else if (BITS == 16) {
            n = _mm512_and_si512(n, _mm512_set1_epi16(255));
            n = _mm512_sub_epi16(n, _mm512_set1_epi16(128));
        }
        _mm512_store_si512(word[p], n);
    }
}

/* The scales that the 16 rows of NVFP4 from row `first` on have for `blocks` times 16 columns from
 * column c on, also for what a doubled number is. */
AVX512 INLINE void put_block_scales16(const PanelRows *w, int first, int c, int blocks,
                                      float (*out)[PANEL_ROWS]) {
    uint64_t row[16] = {0};             /* eight scales of each */
    __m512 scale = _mm512_set1_ps(NVFP4_FACTOR * w->scale);
    const __m128i first_bytes =
        _mm_setr_epi8(0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120);
    for (int r = 0; r < 16; r++) {
        const uint8_t *from = scales_of(w, first + r) + c / 16;
        if (blocks == 8) memcpy(&row[r], from, 8);
        else memcpy(&row[r], from, (size_t)blocks);
    }
    __m512i half[2] = {_mm512_loadu_si512(row), _mm512_loadu_si512(row + 8)};
    for (int k = 0; k < blocks; k++) {
        __m512i from = _mm512_castsi128_si512(_mm_add_epi8(first_bytes, _mm_set1_epi8((char)k)));
        from = _mm512_permutex2var_epi8(half[0], from, half[1]);
        /* As e4m3_halves, but for NaN. */
        __m256i wide = _mm256_cvtepu8_epi16(_mm512_castsi512_si128(from));
        wide = _mm256_srai_epi16(_mm256_slli_epi16(wide, 8), 1);
        wide = _mm256_and_si256(wide, _mm256_set1_epi16((short)0xbf80));
        _mm512_store_ps(out[k], _mm512_mul_ps(_mm512_cvtph_ps(wide), scale));
    }
}

/* The lower 16 bits of each lane of `lower`, the upper ones of `upper`. */
AVX512 INLINE __m512i join_halves16(__m512i lower, __m512i upper) {
    return _mm512_mask_mov_epi16(upper, 0x55555555, lower);
}

/* n + the products of two columns, or of 8 bits of four. */
AVX512 INLINE __m512i dot_avx512(int BITS, __m512i n, __m512i w, __m512i x) {
    return BITS == 16 ? _mm512_dpwssd_epi32(n, w, x) : _mm512_dpbusd_epi32(n, w, x);
}

#define SET AVX512
#define NAME(f) f##_avx512
#define LANES 16
#define SHORT_SUMS 0
#include "panels.h"

/* ---- the sets without AMX ---- */

static const PanelKernels of_avx2 = {16, RECORD(16), pack_panels, panels_avx2, 0};
static const PanelKernels of_avx2_with_8 = {8, BOTH, pack_panels8, panels8_avx2, 1};
static const PanelKernels of_avx2_vnni = {16, RECORD(16), pack_panels, panels_avx2_vnni, 0};
static const PanelKernels of_avx2_vnni_with_8 = {8, BOTH, pack_panels8, panels8_avx2_vnni, 0};
static const PanelKernels of_avx512 = {16, RECORD(16), pack_panels, panels_avx512, 0};
static const PanelKernels of_avx512_with_8 = {8, BOTH, pack_panels8, panels8_avx512, 0};

const Kernels kernels_avx2 = {AVX2_KERNELS, .name = "avx2", .panels = &of_avx2,
                              .panels8 = &of_avx2_with_8};
const Kernels kernels_avx2_vnni = {AVX2_KERNELS, .name = "avx2-vnni", .panels = &of_avx2_vnni,
                                   .panels8 = &of_avx2_vnni_with_8};
const Kernels kernels_avx512 = {AVX512_KERNELS, .name = "avx512", .panels = &of_avx512,
                                .panels8 = &of_avx512_with_8};

/* ---- AMX ----
 *
 * A tile is 16 rows of 64 bytes; one instruction multiplies 16 rows of 32 BF16 numbers with 16
 * columns of as many.  kernels.h says in which order it adds. */

#define FIRST_16 _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define AMX                                                                                        \
    __attribute__((target("amx-tile,amx-bf16,avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,"    \
                          "avx512bf16")))

/* The two nibbles of a byte go into the halves of 32 bits and are looked up in the tables of their
 * blocks' scales, the second one 16 numbers behind the first. */
AMX static void nvfp4_to_bf16(const uint8_t *data, const uint8_t *block_scale, int n,
                              uint16_t *out) {
    const __m512i low = _mm512_set1_epi32(0x000f000f);
    const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
    for (int i = 0; i < n; i += 32) {
        int one = n - i == 16;          /* block, the last */
        const __m128i *from = (const __m128i *)(data + i / 2);
        __m128i bytes = one ? _mm_loadl_epi64(from) : _mm_loadu_si128(from);
        __m512i wide = _mm512_cvtepu8_epi32(bytes);
        __m512i index = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 12));
        index = _mm512_or_si512(_mm512_and_si512(index, low), second);
        const void *first_table = nvfp4_bf16[block_scale[i / 16]];
        __m512i table = _mm512_castsi256_si512(_mm256_load_si256(first_table));
        if (!one) {
            const void *second_table = nvfp4_bf16[block_scale[i / 16 + 1]];
            table = _mm512_inserti64x4(table, _mm256_load_si256(second_table), 1);
        }
        table = _mm512_permutexvar_epi16(index, table);
        if (one) _mm256_storeu_si256((__m256i *)(out + i), _mm512_castsi512_si256(table));
        else _mm512_storeu_si512(out + i, table);
    }
}

/* 16 BF16 numbers of a register as float32. */
AMX INLINE __m512 widen_half(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

AMX static void split(const float *x, int n, uint16_t *upper, uint16_t *lower) {
    for (int i = 0; i < n; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        __m256i half = (__m256i)_mm512_cvtneps_pbh(v);
        _mm256_storeu_si256((__m256i *)(upper + i), half);
        __m256i left = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(v, widen_half(half)));
        _mm256_storeu_si256((__m256i *)(lower + i), left);
    }
}

/* The 16 weights that the nibbles of a group stand for are computed once, and their upper and lower
 * halves are the two halves of a table. */
AMX static void int4_to_bf16(const GroupedRows *w, int n, uint16_t *upper, uint16_t *lower) {
    const __m512i low = _mm512_set1_epi32(0x000f000f), second = _mm512_set1_epi16(16);
    const uint8_t *data = w->row[0];
    __m512i table = low;
    for (int i = 0; i < n; i += 32) {
        if (i % w->group == 0) {
            int k = i / w->group;
            __m512i q = _mm512_sub_epi32(FIRST_16, _mm512_set1_epi32(zero_of(w, 0, k)));
            __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(q), _mm512_set1_ps(scale_of(w, 0, k)));
            __m256i half = (__m256i)_mm512_cvtneps_pbh(v);
            v = _mm512_sub_ps(v, widen_half(half));
            table = _mm512_inserti64x4(_mm512_castsi256_si512(half),
                                       (__m256i)_mm512_cvtneps_pbh(v), 1);
        }
        __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(data + i / 2)));
        __m512i index = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 12));
        index = _mm512_and_si512(index, low);
        _mm512_storeu_si512(upper + i, _mm512_permutexvar_epi16(index, table));
        index = _mm512_or_si512(index, second);
        _mm512_storeu_si512(lower + i, _mm512_permutexvar_epi16(index, table));
    }
}

/* Each number as the sum of two of BF16: 16 bits of it. */
AMX static void to_strip(const float *const x[16], int n, int cols, uint8_t *strip) {
    const __m512i column = _mm512_slli_epi32(FIRST_16, 6);
    for (int c = 0; c < cols; c += 32)
        for (int t = 0; t < n; t++) {
            __mmask32 mask = cols - c >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (cols - c)) - 1;
            __m512 v[2];
            for (int i = 0; i < 2; i++)
                v[i] = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16 * i), x[t] + c + 16 * i);
            __m512i upper = (__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]);
            for (int i = 0; i < 2; i++) {
                __m256i half = _mm512_castsi512_si256(upper);
                if (i) half = _mm512_extracti64x4_epi64(upper, 1);
                v[i] = _mm512_sub_ps(v[i], widen_half(half));
            }
            uint8_t *to = strip + 32 * (size_t)c + 4 * t;
            _mm512_i32scatter_epi32(to, column, upper, 1);
            _mm512_i32scatter_epi32(to + 32 * (size_t)((cols + 31) / 32 * 32), column,
                                    (__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]), 1);
        }
}

static const _Alignas(64) struct {
    uint8_t palette, start, zero[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* Tiles 4 and 5 are 16 rows each, 6 and 7 are 16 tokens each. */
AMX INLINE void multiply_tiles(void) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

AMX INLINE void load_rows(const uint16_t *row, int stride) {
    _tile_loadd(4, row, 2 * (size_t)stride);
    _tile_loadd(5, row + 16 * (int64_t)stride, 2 * (size_t)stride);
}

/* Sums of 32 rows, `first` and the next ones, with two strips: tile 2 i + j is 16 rows, 16 tokens.
 * plane: the bytes of a part of a strip. */
AMX INLINE void sum_two_strips(const StripRows *w, int64_t first, const uint8_t *strips,
                               size_t plane) {
    for (int k = 0; k < w->cols; k += 32) {
        const uint8_t *upper = strips + 32 * (size_t)k, *lower = upper + plane;
        if (w->lower) load_rows(w->lower + first + k, w->stride);
        else load_rows(w->upper + first + k, w->stride);
        _tile_loadd(6, upper, 64);
        _tile_loadd(7, upper + 2 * plane, 64);
        multiply_tiles();
        if (w->lower) {
            load_rows(w->upper + first + k, w->stride);
            multiply_tiles();
        }
        if (w->upper_alone) continue;
        _tile_loadd(6, lower, 64);
        _tile_loadd(7, lower + 2 * plane, 64);
        multiply_tiles();
    }
}

/* The same with one strip: tile 2 i + 1 is what its lower part gives, and the rows' lower part. */
AMX INLINE void sum_one_strip(const StripRows *w, int64_t first, const uint8_t *strip,
                              size_t plane) {
    for (int k = 0; k < w->cols; k += 32) {
        _tile_loadd(6, strip + 32 * (size_t)k, 64);
        _tile_loadd(7, strip + 32 * (size_t)k + plane, 64);
        if (w->lower) {
            load_rows(w->lower + first + k, w->stride);
            _tile_dpbf16ps(1, 4, 6);
            _tile_dpbf16ps(3, 5, 6);
        }
        load_rows(w->upper + first + k, w->stride);
        if (w->upper_alone) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(2, 5, 6);
        } else multiply_tiles();
    }
}

AMX static void gemm(const StripRows *w, const uint8_t *strips, int n, float *y, int ldy) {
    /* [rows / 16][tokens / 16]; where there is one strip, [rows / 16][upper, lower]. */
    _Alignas(64) float c[2][2][16][16];
    const __m512i column = _mm512_slli_epi32(FIRST_16, 4);
    size_t plane = 32 * (size_t)w->cols;
    _tile_loadconfig(&tiles);
    for (int t = 0; t < n; t += 32, strips += 4 * plane)
        for (int first = 0; first < w->n; first += 32) {
            int two = n - t > 16;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            if (two) sum_two_strips(w, first * (int64_t)w->stride, strips, plane);
            else sum_one_strip(w, first * (int64_t)w->stride, strips, plane);
            _tile_stored(0, c[0][0], 64);
            _tile_stored(1, c[0][1], 64);
            _tile_stored(2, c[1][0], 64);
            _tile_stored(3, c[1][1], 64);
            for (int half = 0; half < 2 && first + 16 * half < w->n; half++) {
                int r = first + 16 * half;
                __mmask16 mask = 0xffff;
                if (w->n - r < 16) mask = (__mmask16)((1 << (w->n - r)) - 1);
                __m512 scale = _mm512_maskz_loadu_ps(mask, w->scale + r);
                for (int i = 0; i < n - t && i < 32; i++) {
                    __m512 v = _mm512_i32gather_ps(column, &c[half][i / 16][0][i % 16], 4);
                    if (!two)
                        v = _mm512_add_ps(v, _mm512_i32gather_ps(column, &c[half][1][0][i], 4));
                    _mm512_mask_storeu_ps(y + (int64_t)(t + i) * ldy + r, mask,
                                          _mm512_mul_ps(v, scale));
                }
            }
        }
    _tile_release();
}

AMX INLINE __mmask16 lanes_within(int from, int to) {
    __m512i lane = FIRST_16;
    __mmask16 below = _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(to));
    return _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(from)) & below;
}

AMX static float soften(const float s[FLASH_KEYS], int from, int to, float *most,
                        uint16_t upper[FLASH_KEYS], uint16_t lower[FLASH_KEYS]) {
    __m512 high = _mm512_set1_ps(*most), sum = _mm512_setzero_ps();
    for (int i = 0; i < FLASH_KEYS; i += 16)
        high = _mm512_mask_max_ps(high, lanes_within(from - i, to - i), high,
                                  _mm512_loadu_ps(s + i));
    *most = _mm512_reduce_max_ps(high);
    for (int i = 0; i < FLASH_KEYS; i += 16) {
        __m256 below[2];
        for (int k = 0; k < 2; k++)
            below[k] = exp8(_mm256_sub_ps(_mm256_loadu_ps(s + i + 8 * k), _mm256_set1_ps(*most)));
        __m512 p = _mm512_insertf32x8(_mm512_castps256_ps512(below[0]), below[1], 1);
        p = _mm512_maskz_mov_ps(lanes_within(from - i, to - i), p);
        sum = _mm512_add_ps(sum, p);
        __m256i half = (__m256i)_mm512_cvtneps_pbh(p);
        _mm256_storeu_si256((__m256i *)(upper + i), half);
        p = _mm512_sub_ps(p, widen_half(half));
        _mm256_storeu_si256((__m256i *)(lower + i), (__m256i)_mm512_cvtneps_pbh(p));
    }
    return _mm512_reduce_add_ps(sum);
}

AMX static void add_values(const uint16_t *v, int ldv, int n_keys, int dim,
                           const uint16_t (*p)[FLASH_QUERIES][FLASH_KEYS], int n, float *y,
                           int ldy) {
    const __m512i from_b = _mm512_add_epi32(FIRST_16, _mm512_set1_epi32(32));
    const __m512i low = _mm512_add_epi32(FIRST_16, _mm512_slli_epi32(from_b, 16));
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(16 << 16 | 16));
    /* Pairs of keys, for 16 of the 32 dimensions each. */
    _Alignas(64) uint16_t pairs[2][FLASH_KEYS / 32][16][32];
    size_t row = 4 * (size_t)ldy;
    _tile_loadconfig(&tiles);
    for (int i = 0; i < dim; i += 32) {
        for (int k = 0; k < n_keys; k += 2) {
            __m512i a = _mm512_loadu_si512(v + (int64_t)k * ldv + i);
            __m512i b = _mm512_loadu_si512(v + (int64_t)(k + 1) * ldv + i);
            _mm512_store_si512(pairs[0][k / 32][k % 32 / 2], _mm512_permutex2var_epi16(a, low, b));
            _mm512_store_si512(pairs[1][k / 32][k % 32 / 2], _mm512_permutex2var_epi16(a, high, b));
        }
        for (int q = 0; q < n; q += 32) {
            float *first = y + (int64_t)q * ldy + i;
            float *second = n - q > 16 ? first + 16 * (int64_t)ldy : first;
            _tile_loadd(0, first, row);
            _tile_loadd(1, first + 16, row);
            _tile_loadd(2, second, row);
            _tile_loadd(3, second + 16, row);
            for (int k = 0; k < n_keys / 32; k++) {
                _tile_loadd(6, pairs[0][k], 64);
                _tile_loadd(7, pairs[1][k], 64);
                for (int lower = 0; lower < 2; lower++) {
                    _tile_loadd(4, &p[lower][q][32 * k], sizeof p[0][0]);
                    _tile_loadd(5, &p[lower][second == first ? q : q + 16][32 * k], sizeof p[0][0]);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(2, second, row);
            _tile_stored(3, second + 16, row);
            _tile_stored(0, first, row);
            _tile_stored(1, first + 16, row);
        }
    }
    _tile_release();
}

const Kernels kernels_amx = {
    AVX512_KERNELS, .name = "amx", .nvfp4_to_bf16 = nvfp4_to_bf16, .to_strip = to_strip,
    .split = split, .int4_to_bf16 = int4_to_bf16, .gemm = gemm, .soften = soften,
    .add_values = add_values,
};
#endif
