/* kernel_sets.c - a set of kernels (kernels.h) against plain C and against what their contracts say.
 *
 *     kernel_sets NAME        exit status 0; 1 with a line for what is wrong; 77 where the machine lacks the set
 *
 * Whoever reads or writes beyond an array's end gets a SIGSEGV: see `edge`.
 * A program of its own, without libraries, so that it is quickly built for another machine (test_kernel_sets.py).  Most numbers
 * are such that products are exact, so that a fused multiply-add gives what two instructions give and only the order of a sum
 * tells: then the bits are those of plain C. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../kernels.h"

static const Kernels *kn;
static uint64_t state = 1;

static uint32_t random_bits(void) {     /* Knuth's MMIX */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static int below(int n) { return (int)(random_bits() % (uint32_t)n); }

/* Within -2 .. 2, of twelve bits: times a BF16 number it is exact. */
static float twelve_bits(void) { return (float)(below(4095) - 2047) / 1024; }

static float any_float(void) { return ldexpf((float)below(1 << 24) - (1 << 23), -22) * ldexpf(1, below(8)); }

static float *fill(float *out, int n, float (*number)(void)) {
    for (int i = 0; i < n; i++) out[i] = number();
    return out;
}

#define CHECK(true, ...) \
    ((true) ? (void)0 : (printf("%s, line %d: %s: ", kn->name, __LINE__, #true), printf(__VA_ARGS__), puts(""), exit(1)))

/* Equal as numbers, or both NaN. */
static void same(const float *got, const float *want, int n, const char *what) {
    for (int i = 0; i < n; i++)
        CHECK(got[i] == want[i] || (isnan(got[i]) && isnan(want[i])), "%s: [%d] of %d is %.9g, not %.9g", what, i, n, got[i], want[i]);
}

/* Room for n bytes, and behind them a page that nobody may touch; whatever was in it.  Taken back by n_edges = 0. */
enum { MOST = 5000, EDGES = 160, SIZE = 1 << 19, PAGE = 1 << 16 };
static int n_edges;
static void *edge(int n) {
    static uint8_t *all;
    if (!all) {
        all = mmap(NULL, EDGES * (SIZE + PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int i = 1; i <= EDGES; i++) mprotect(all + i * (SIZE + PAGE) - PAGE, PAGE, PROT_NONE);
    }
    return all + ++n_edges * (SIZE + PAGE) - PAGE - n;
}

static float *floats(int n) { return edge(4 * n); }

/* n BF16 numbers of either sign, 2^-7 .. 2; now and then zero. */
static uint8_t *bf16_row(int n) {
    uint8_t *row = edge(2 * n);
    for (int i = 0; i < n; i++) {
        uint16_t v = (uint16_t)(below(20) ? 0x3c00 + below(0x400) + 0x8000 * below(2) : 0x8000 * below(2));
        memcpy(row + 2 * i, &v, 2);
    }
    return row;
}

/* Every number of E4M3 and BF16 is itself again, 0 too; what lies between two goes to the nearer,
 * in the middle to the even one; what is too large to the largest. */
static void formats(void) {
    for (int i = 0; i < 256; i++) {
        float v = e4m3_to_float((uint8_t)i), sign = i & 128 ? -1.f : 1.f;
        CHECK(isnan(v) == ((i & 127) == 127), "E4M3 %d is %g", i, v);
        CHECK(isnan(v) || float_to_e4m3(v) == i, "%g is %d, not %d", v, float_to_e4m3(v), i);
        CHECK(v == e4m3[i] || isnan(e4m3[i]), "the table has %g for %d", e4m3[i], i);
        if ((i & 127) >= 126) continue;
        float next = e4m3_to_float((uint8_t)(i + 1)), middle = (v + next) / 2;
        int even = i % 2 ? i + 1 : i;
        CHECK(float_to_e4m3(middle) == even, "%g is %d", middle, float_to_e4m3(middle));
        CHECK(float_to_e4m3(nextafterf(middle, v)) == i, "beside %g, towards %g", middle, v);
        CHECK(float_to_e4m3(nextafterf(middle, next)) == i + 1, "%g, towards %g", middle, next);
        CHECK(float_to_e4m3(sign * 1e9f) == (i & 128) + 126, "a large number does not saturate");
    }
    CHECK((float_to_e4m3(NAN) & 127) == 127, "NaN");
    for (int i = 0; i < 65536; i++) {
        float v = bf16_to_float((uint16_t)i);
        CHECK(isnan(v) || float_to_bf16(v) == i, "BF16 %d", i);
    }
    CHECK(float_to_bf16(1 + 0x1p-8f) == 0x3f80, "not to the even one");
    CHECK(float_to_bf16(1 + 0x3p-8f) == 0x3f82, "not to the even one");
    CHECK(float_to_bf16(1 + 0x1.01p-8f) == 0x3f81, "not to the nearest");
}

static void expand(int n) {
    uint8_t *data = edge(2 * n), *block_scale = edge(n / 16);
    float *got = floats(n), *want = floats(n);
    for (int i = 0; i < 2 * n; i++) data[i] = (uint8_t)below(256);           /* NaN among them */
    for (int i = 0; i < n / 16; i++) block_scale[i] = (uint8_t)(below(127) + 128 * below(2));
    kn->expand_bf16(data, n, got);
    kernels_c.expand_bf16(data, n, want);
    same(got, want, n, "expand_bf16");
    data += n;
    kn->expand_e4m3(data, 0.37f, n, got);
    kernels_c.expand_e4m3(data, 0.37f, n, want);
    same(got, want, n, "expand_e4m3");
    uint16_t *half = edge(2 * n);
    kn->e4m3_to_bf16(data, n, half);
    kernels_c.expand_e4m3(data, 1, n, want);
    for (int i = 0; i < n; i++) got[i] = bf16_to_float(half[i]);
    same(got, want, n, "e4m3_to_bf16");
    if (n % 16) return;
    data += n / 2;
    kn->expand_nvfp4(data, block_scale, 0.37f, n, got);
    kernels_c.expand_nvfp4(data, block_scale, 0.37f, n, want);
    same(got, want, n, "expand_nvfp4");
    if (n % 32) return;
    kn->expand_int4(data, 11, 0.37f, n, got);
    kernels_c.expand_int4(data, 11, 0.37f, n, want);
    same(got, want, n, "expand_int4");
    data -= n / 2;
    kn->expand_int8(data, 128, 0.37f, n, got);
    kernels_c.expand_int8(data, 128, 0.37f, n, want);
    same(got, want, n, "expand_int8");
}

/* Every half-precision number that is finite, subnormals among them. */
static void expand_half(int n) {
    uint8_t *data = edge(2 * n);
    float *got = floats(n), *want = floats(n);
    for (int i = 0; i < n; i++) {
        uint16_t h = (uint16_t)(below(0x7c00) + 0x8000 * below(2));
        memcpy(data + 2 * i, &h, 2);
    }
    kn->expand_f16(data, n, got);
    kernels_c.expand_f16(data, n, want);
    same(got, want, n, "expand_f16");
}

/* Rows of FP8 or integers with their scales and zero points at the ends of arrays; w: what they are.  number(i): byte i of a
 * row.  typical: scales are of this size, in eight bits.  with_zeros: INT4 has zero points. */
static GroupedRows rows_of(int n, int bits, int group, int with_zeros, uint8_t (*number)(int r, int i), float typical, float *w[ROWS]) {
    static const DType dtypes[] = {DT_BF16, DT_F16, DT_F32};
    int n_groups = (n + group - 1) / group, bytes = bits == 4 ? n / 2 : n, first = below(5);
    GroupedRows g = {.scale_dtype = dtypes[below(3)], .bits = bits, .group = group, .n_groups = n_groups};
    uint8_t *words = with_zeros ? edge(4 * n_groups) : NULL;
    for (int i = 0; words && i < 4 * n_groups; i++) words[i] = (uint8_t)below(256);
    for (int r = 0; r < ROWS; r++) {
        uint8_t *data = edge(bytes), *scale = edge(n_groups * (g.scale_dtype == DT_F32 ? 4 : 2));
        for (int i = 0; i < bytes; i++) data[i] = number(r, i);
        g.row[r] = data, g.scale[r] = scale, g.zero[r] = words, g.zero_shift[r] = 4 * (first + r);
        w[r] = floats(n);
        for (int k = 0; k < n_groups; k++) {
            int from = k * group, count = n - from < group ? n - from : group, m = 128 + below(128), z = bits == 8 ? 128 : 8;
            float s = (float)m / 128 * typical;
            uint16_t half = (uint16_t)((ilogbf(typical) + 15) << 10 | (m - 128) << 3), upper = float_to_bf16(s);
            if (g.scale_dtype == DT_F32) memcpy(scale + 4 * k, &s, 4);
            else memcpy(scale + 2 * k, g.scale_dtype == DT_F16 ? &half : &upper, 2);
            if (words) z = words[4 * k + (first + r) / 2] >> 4 * ((first + r) % 2) & 15;
            if (bits == 4) kernels_c.expand_int4(data + from / 2, z, s, count, w[r] + from);
            else if (bits == 8) kernels_c.expand_int8(data + from, z, s, count, w[r] + from);
            else kernels_c.expand_e4m3(data + from, s, count, w[r] + from);
        }
    }
    return g;
}

static uint8_t any_byte(int r, int i) { return (void)r, (void)i, (uint8_t)below(256); }
static uint8_t no_nan(int r, int i) { return (void)r, (void)i, (uint8_t)below(120); }

/* The bits of the expanded rows and dot4, for up to TOKENS tokens. */
static void grouped_of(int n, int bits, int group) {
    const float *x[TOKENS];
    float *w[ROWS], got[ROWS], want[ROWS], sum[TOKENS][ROWS][16];
    if (!kn->grouped || n < 16) return;
    GroupedRows g = rows_of(n, bits, group, bits == 4 && below(2), bits ? any_byte : no_nan, 1 / 8.f, w);
    for (int t = 0; t < TOKENS; t++) {
        float *to = floats(n);
        for (int i = 0; i < n; i++) to[i] = (float)(below(2001) - 1000) / 512;
        x[t] = to;
    }
    for (int count = 1; count <= TOKENS; count++) {
        memset(sum, 0, sizeof sum);
        kn->grouped(&g, 0, n, x, count, sum, 0);
        for (int t = 0; t < count; t++) {
            kn->fold(sum[t], got);
            for (int r = 0; r < ROWS; r++) got[r] = dot_rest(got[r], x[t], w[r], n / 16 * 16, n);
            kn->dot4(x[t], (const float *const *)w, n, want);
            same(got, want, ROWS, "grouped");
        }
    }
    if (!bits) {                        /* a NaN is not lost, wherever it stands */
        ((uint8_t *)g.row[1])[below(n / 16 * 16)] = (uint8_t)(0x7f + 128 * below(2));
        memset(sum, 0, sizeof sum);
        kn->grouped(&g, 0, n, x, 1, sum, 0);
        kn->fold(sum[0], got);
        CHECK(isfinite(got[0]) && isnan(got[1]), "grouped of %d: %g and %g", n, got[0], got[1]);
    }
    n_edges = 0;
}

static void grouped(int n) {
    grouped_of(n, 0, n);
    if (n % 16 == 0) grouped_of(n, 0, 128);
    for (int group = 32; group <= 128; group *= 2)
        if (n % group == 0) grouped_of(n, 4, group), grouped_of(n, 8, group);
}

/* dot4, and with bf16, fold, dot_rest the same bits; of any number of tokens, all at once or in two parts. */
static void dots(int n) {
    const uint8_t *row[ROWS];
    const float *w[ROWS], *x[TOKENS];
    float got[ROWS], want[TOKENS][ROWS], sum[TOKENS][ROWS][16];
    for (int r = 0; r < ROWS; r++) {
        float *to = floats(n);
        kernels_c.expand_bf16(row[r] = bf16_row(n), n, to);
        w[r] = to;
    }
    for (int exact = 1; exact >= 0; exact--) {
        for (int t = 0; t < TOKENS; t++) {
            x[t] = fill(floats(n), n, exact ? twelve_bits : any_float);
            kn->dot4(x[t], w, n, want[t]);
            kernels_c.dot4(x[t], w, n, got);
            if (exact) same(want[t], got, ROWS, "dot4");
            for (int r = 0; r < ROWS; r++) {
                double dot = 0, size = 0;
                for (int i = 0; i < n; i++) dot += (double)w[r][i] * x[t][i], size += fabs((double)w[r][i] * x[t][i]);
                CHECK(fabs(want[t][r] - dot) <= (n / 16 + 20) * 0x1p-24 * size, "dot4 of %d is %.9g, not %.9g", n, want[t][r], dot);
            }
        }
        for (int count = 1; count <= TOKENS; count++)
            for (int cut = 0; cut <= n; cut += n / 48 * 16 + 16) {
                memset(sum, 0, sizeof sum);
                kn->bf16(row, 0, cut, x, count, sum, 64);
                kn->bf16(row, cut, n, x, count, sum, 0);
                for (int t = 0; t < count; t++) {
                    kn->fold((const float (*)[16])sum[t], got);
                    for (int r = 0; r < ROWS; r++) got[r] = dot_rest(got[r], x[t], w[r], n / 16 * 16, n);
                    same(got, want[t], ROWS, "bf16");
                }
            }
    }
}

/* For 1 to 15 queries, 1 to 13 rows: each query's sum is axpy4's, four rows at a time. */
static void add_rows(int dim) {
    enum { N = 15, ROWS_OF_V = 13 };
    int ldy = dim + 3, ldp = ROWS_OF_V + 2;
    const uint8_t *row[ROWS_OF_V];
    if (dim % 16) return;
    float *x[ROWS_OF_V + 3], *p = fill(floats(N * ldp), N * ldp, twelve_bits), *start = fill(floats(N * ldy), N * ldy, any_float);
    float *got = floats(N * ldy), *want = floats(N * ldy);
    for (int k = 0; k < ROWS_OF_V + 3; k++) {
        x[k] = floats(dim);
        if (k < ROWS_OF_V) kernels_c.expand_bf16(row[k] = bf16_row(dim), dim, x[k]);
        else memset(x[k], 0, 4 * (size_t)dim);
    }
    for (int n = 1; n <= N; n++) {
        int n_rows = n % ROWS_OF_V + 1;
        memcpy(want, start, 4 * (size_t)(N * ldy));
        for (int q = 0; q < n; q++)
            for (int k = 0; k < n_rows; k += 4) {
                float weight[4] = {0};
                memcpy(weight, p + q * ldp + k, 4 * (size_t)(n_rows - k < 4 ? n_rows - k : 4));
                kernels_c.axpy4(want + q * ldy, (const float *[]){x[k], x[k + 1], x[k + 2], x[k + 3]}, weight, dim);
            }
        kn->add_rows(memcpy(got, start, 4 * (size_t)(N * ldy)), ldy, p, ldp, n, row, n_rows, dim, n % 2 * 64);
        same(got, want, N * ldy, "add_rows");
    }
}

static void axpy(int n) {
    const float *x[4];
    float s[4], *start = fill(floats(n), n, any_float), *got = floats(n), *want = floats(n);
    fill(s, 4, twelve_bits);
    for (int k = 0; k < 4; k++) {
        float *to = floats(n);
        kernels_c.expand_bf16(bf16_row(n), n, to);
        x[k] = to;
    }
    kernels_c.axpy4(memcpy(want, start, 4 * (size_t)n), x, s, n);
    kn->axpy4(memcpy(got, start, 4 * (size_t)n), x, s, n);
    same(got, want, n, "axpy4");
}

static void tile(int n) {
    enum { LDC = 19, ALL = (TILE_ROWS - 1) * LDC + 16 };
    int n_rows = 1 + n % TILE_ROWS, c = (n_rows - 1) * LDC + 16;
    int lda = n + 3, ldb = 20, all_a = (n_rows - 1) * lda + n, all_b = (n - 1) * ldb + 16;
    float *a = fill(floats(all_a), all_a, twelve_bits), *b = fill(floats(all_b), all_b, twelve_bits), *got = floats(c), want[ALL];
    memset(want, 0, sizeof want);
    memset(got, 0, 4 * (size_t)c);
    for (int add = 0; add < 2; add++) {
        kernels_c.tile(a, lda, n_rows, b, ldb, n, want, LDC, add);
        kn->tile(a, lda, n_rows, b, ldb, n, got, LDC, add);
        same(got, want, c, "tile");
    }
}

/* Whether a product with v costs a processor a hundred cycles. */
static int is_subnormal(float v) { return fpclassify(v) == FP_SUBNORMAL; }

static void exp_less(int n) {
    float *s = fill(floats(n), n, any_float), *got = floats(n), sum = 0;
    if (!kn->exp_less) return;
    for (int i = 0; i < n; i++) s[i] = 3 - fabsf(s[i]);
    float all = kn->exp_less(s, n, 3, got);
    for (int i = 0; i < n; i++) {
        float want = expf(s[i] - 3);
        sum += want;
        CHECK(fabsf(got[i] - want) <= 1e-6f * want + 2e-28f, "[%d] of %d: %g, %g", i, n, got[i], want);
    }
    CHECK(fabsf(all - sum) <= 1e-4f * sum, "%g, %g", all, sum);
}

static void softmax(int n) {
    float *got = floats(n), *want = floats(n);
    for (int kind = 0; kind < 4; kind++) {
        for (int i = 0; i < n; i++) want[i] = kind == 0 ? 7 : kind == 1 ? twelve_bits() : kind == 2 ? any_float() : i < n - 1 ? -1000 : 0;
        kn->softmax(memcpy(got, want, 4 * (size_t)n), n);
        kernels_c.softmax(want, n);
        for (int i = 0; i < n; i++) {
            CHECK(fabsf(got[i] - want[i]) <= 4e-6f * want[i] + 2e-28f, "[%d] of %d: %g, %g", i, n, got[i], want[i]);
            CHECK(kn == &kernels_c || !is_subnormal(got[i]), "[%d] of %d: %g is slow", i, n, got[i]);
        }
    }
}

static void gelu(int n) {
    const float edges[] = {0, -0.f, 1e-30f, -5, 5, -40, 40, 1e4f, -1e4f};
    float *g = fill(floats(n), n, any_float), *u = fill(floats(n), n, twelve_bits), *got = floats(n);
    for (int i = 0; i < n && i < 9; i++) g[i] = edges[(i + n) % 9];
    kn->gelu_times(memcpy(got, g, 4 * (size_t)n), u, n);
    for (int i = 0; i < n; i++) {
        double v = g[i], want = v / 2 * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))) * u[i];
        CHECK(!is_subnormal(got[i] * 1e-3f) || fabsf(g[i] * u[i]) < 1e-6f, "gelu(%g) * %g is %g, which is slow", g[i], u[i], got[i]);
        CHECK(fabs(got[i] - want) <= 1e-6 * (1 + fabs(want)), "gelu(%g) * %g is %.9g, not %.9g", g[i], u[i], got[i], want);
    }
}

/* Activations of a token of three kinds.  EXACT: whole multiples of a power of 2, the largest of eight MAX_X times it, which are
 * packed without rounding.  ROUNDED: others, each rounded by half a step[i / 8] at most.  EXTREME: the largest numbers that there
 * are. */
enum { EXACT, ROUNDED, EXTREME };
static _Alignas(64) uint8_t packed[TOKENS][(MOST + 127) / 128 * 384];
static float *x_of[TOKENS], step[TOKENS][MOST / 8];

static void pack_tokens(int cols, int kind) {
    _Alignas(64) static uint8_t part[sizeof packed[0]];
    int whole = (cols + kn->group - 1) / kn->group * kn->group;
    for (int t = 0; t < TOKENS; t++) {
        float *x = x_of[t] = floats(cols);
        for (int i = 0; i < cols; i += 8) {
            float power = kind == EXTREME ? 1 : t == TOKENS - 1 && i % 16 ? 0 : ldexpf(1, below(20) - 18), most = 0;
            for (int k = 0; k < 8; k++) {
                int n = kind == EXTREME ? (t % 2 ? -MAX_X : MAX_X) : k == i / 8 % 8 ? MAX_X : below(2 * MAX_X + 1) - MAX_X;
                x[i + k] = kind == ROUNDED ? any_float() : power * (float)n;
                most = fmaxf(most, fabsf(x[i + k]));
            }
            step[t][i / 8] = kind == ROUNDED ? most / MAX_X : 0;
        }
        memset(packed[t], 0xff, sizeof packed[t]);
        memset(part, 0xff, sizeof part);
        kn->pack(x, 0, whole, cols, packed[t]);
        for (int i = 0; i < whole; i += BLOCK) kn->pack(x, i, i + BLOCK, cols, part);
        CHECK(!memcmp(packed[t], part, sizeof part), "pack of %d in parts", cols);
        CHECK(part[packed_size(cols)] == 0xff, "pack of %d", cols);
    }
}

/* Whether got[r] is w . x of token t, but for half a step for each number and for float32's rounding. */
static void near(const char *what, double got, const float *w, int t, int cols) {
    double want = 0, size = 0, off = 0;
    for (int i = 0; i < cols; i++) {
        want += (double)w[i] * x_of[t][i];
        size += fabs((double)w[i] * x_of[t][i]);
        off += fabs((double)w[i] * step[t][i / 8]) * 0.51;
    }
    CHECK(fabs(got - want) <= off + (cols / 32 + 20) * 0x1p-24 * size, "%s of %d: %.9g, not %.9g", what, cols, got, want);
}

/* Only two columns of a row are not 0 where activations are rounded, so that this shows. */
static void nvfp4(int cols, int kind) {
    float *w = floats(cols), sum[TOKENS][ROWS][16], alone[TOKENS][ROWS][16];
    const uint8_t *row[ROWS], *block_scale[ROWS], *xs[TOKENS];
    int half = cols / 2 / kn->group * kn->group;
    for (int r = 0; r < ROWS; r++) {
        uint8_t *data = edge(cols / 2), *scale = edge(cols / 16);
        int only = below(cols / 2);
        for (int i = 0; i < cols / 2; i++)
            data[i] = (uint8_t)(kind == EXTREME ? (r % 2 ? 0xff : 0x77) : kind == ROUNDED && i != only ? 0 : below(256));
        for (int i = 0; i < cols / 16; i++) scale[i] = (uint8_t)(kind == EXTREME ? 126 : below(127) + 128 * below(2));
        row[r] = data;
        block_scale[r] = scale;
    }
    pack_tokens(cols, kind);
    for (int t = 0; t < TOKENS; t++) xs[t] = packed[t];
    for (int n = 1; n <= TOKENS; n++) {
        memset(sum, 0, sizeof sum);
        kn->nvfp4(row, block_scale, 0, half, xs, n, sum, n);
        kn->nvfp4(row, block_scale, half, cols, xs, n, sum, 0);
        for (int t = 0; t < n; t++) {
            float got[ROWS];
            memset(alone, 0, sizeof alone);
            kn->nvfp4(row, block_scale, 0, cols, xs + t, 1, alone, 0);
            CHECK(!memcmp(alone[0], sum[t], sizeof sum[t]), "nvfp4 of %d, token %d of %d", cols, t, n);
            kn->fold((const float (*)[16])sum[t], got);
            for (int r = 0; r < ROWS; r++) {
                kernels_c.expand_nvfp4(row[r], block_scale[r], 1, cols, w);
                near("nvfp4", got[r] * (double)NVFP4_FACTOR, w, t, cols);
            }
        }
    }
}

/* Rows of integers in two parts, each token also alone.  Only one or two columns of a row are not 0 where activations are rounded. */
static int only[ROWS], nothing;
static uint8_t one_byte(int r, int i) { return (uint8_t)(i == only[r] ? below(256) : nothing); }
static uint8_t extreme_byte(int r, int i) { return (void)i, r % 2 ? 255 : 0; }

static void integers_of(int cols, int bits, int group, int kind) {
    static uint8_t (*const number[])(int, int) = {any_byte, one_byte, extreme_byte};
    float *w[ROWS], sum[TOKENS][ROWS][16], alone[TOKENS][ROWS][16];
    const uint8_t *xs[TOKENS];
    int half = cols / 2 / 128 * 128, with_zeros = bits == 4 && kind != ROUNDED && below(3);
    for (int r = 0; r < ROWS; r++) only[r] = below(cols * bits / 8);
    nothing = bits == 8 ? 128 : 0x88;
    GroupedRows g = rows_of(cols, bits, group, with_zeros, number[kind], 1 / 16.f, w);
    pack_tokens(cols, kind);
    for (int t = 0; t < TOKENS; t++) xs[t] = packed[t];
    for (int n = 1; n <= TOKENS; n++) {
        memset(sum, 0, sizeof sum);
        kn->integers(&g, 0, half, xs, n, sum, n);
        kn->integers(&g, half, cols, xs, n, sum, 0);
        for (int t = 0; t < n; t++) {
            float got[ROWS];
            memset(alone, 0, sizeof alone);
            kn->integers(&g, 0, cols, xs + t, 1, alone, 0);
            CHECK(!memcmp(alone[0], sum[t], sizeof sum[t]), "integers of %d, token %d of %d", cols, t, n);
            kn->fold((const float (*)[16])sum[t], got);
            for (int r = 0; r < ROWS; r++) near("integers", got[r], w[r], t, cols);
        }
    }
    n_edges = 0;
}

static void integers(int cols, int kind) {
    for (int group = 32; group <= 128; group *= 2)
        if (cols % group == 0) integers_of(cols, 4, group, kind), integers_of(cols, 8, group, kind);
}

/* Records of TOKENS tokens, as pack_tokens has them: EXACT have one power of 2 for 32 columns. */
static uint8_t *pack_records(const PanelKernels *pk, int cols, int limit, int kind) {
    int whole = (cols + BLOCK - 1) / BLOCK * BLOCK, size = whole / BLOCK * pk->record;
    uint8_t *all = edge(TOKENS * size), *part = edge(size);
    for (int t = 0; t < TOKENS; t++) {
        float *x = x_of[t] = floats(cols);
        for (int i = 0; i < cols; i += BLOCK) {
            float power = kind == EXTREME ? 1 : t == TOKENS - 1 && i % 64 ? 0 : ldexpf(1, below(20) - 18), most = 0;
            for (int k = i; k < i + BLOCK && k < cols; k++) {
                int n = kind == EXTREME ? (t % 2 ? -limit : limit) : k == i ? limit : below(2 * limit + 1) - limit;
                x[k] = kind == ROUNDED ? any_float() : power * (float)n;
                most = fmaxf(most, fabsf(x[k]));
            }
            for (int k = i; k < i + BLOCK; k += 8) step[t][k / 8] = kind == ROUNDED ? most / (float)limit : 0;
        }
        pk->pack(x, 0, whole, cols, all + t * size);
        for (int i = 0; i < whole; i += BLOCK) pk->pack(x, i, i + BLOCK < cols ? i + BLOCK : cols, cols, part);
        CHECK(!memcmp(all + t * size, part, (size_t)size), "records of %d in parts", cols);
    }
    return all;
}

/* Rows of NVFP4 (bits 0), of integers of so many bits, or of BF16 (16), with what they are.  BF16 is 2^-1 .. 2, which panels have
 * exactly, but where activations are rounded, 2^-7 .. 2. */
static PanelRows panel_of(int cols, int bits, int group, int kind, float *w[PANEL_ROWS]) {
    static uint8_t (*const number[])(int, int) = {any_byte, one_byte, extreme_byte};
    PanelRows p = {.dtype = bits == 16 ? DT_BF16 : bits ? DT_I32 : DT_U8, .cols = cols, .scale = 0.37f};
    int with_zeros = bits == 4 && kind != ROUNDED && below(3);
    nothing = bits == 4 ? 0x88 : bits ? 128 : 0;
    for (int i = 0; i < PANEL_ROWS; i++) {
        GroupedRows *g = &p.four[i / ROWS];
        int r = i % ROWS;
        only[r] = below(cols * (bits ? bits : 4) / 8);
        if (bits == 4 || bits == 8) {
            if (r == ROWS - 1) *g = rows_of(cols, bits, group, with_zeros, number[kind], 1 / 8.f, w + i - r);
            continue;
        }
        w[i] = floats(cols);
        if (bits) {
            uint8_t *row = bf16_row(cols);
            for (int k = 0; k < cols && kind != ROUNDED; k++) {
                uint16_t v = (uint16_t)(kind == EXTREME ? 0x3fff + 0x8000 * (r % 2) : 0x3f00 + below(0x100) + 0x8000 * below(2));
                memcpy(row + 2 * k, &v, 2);
            }
            kernels_c.expand_bf16(g->row[r] = row, cols, w[i]);
            continue;
        }
        uint8_t *data = edge(cols / 2), *scales = edge(cols / 16);
        for (int k = 0; k < cols / 2; k++) data[k] = kind == EXTREME ? (r % 2 ? 0xff : 0x77) : number[kind](r, k);
        for (int k = 0; k < cols / 16; k++) scales[k] = (uint8_t)(kind == EXTREME ? 126 : below(127) + 128 * below(2));
        kernels_c.expand_nvfp4(g->row[r] = data, g->scale[r] = scales, p.scale, cols, w[i]);
    }
    return p;
}

/* What BF16 of less than 2 loses: half a step of 2^-11. */
static void near_rounded(double got, const float *w, int t, int cols) {
    double want = 0, size = 0, off = 0;
    for (int i = 0; i < cols; i++) {
        want += (double)w[i] * x_of[t][i];
        size += fabs((double)w[i] * x_of[t][i]);
        off += fabs((double)w[i] * step[t][i / 8]) * 0.51 + fabs(x_of[t][i]) * 0x1.01p-12;
    }
    CHECK(fabs(got - want) <= off + (cols / 32 + 20) * 0x1p-24 * size, "panels of BF16, %d: %.9g, not %.9g", cols, got, want);
}

/* One to six tokens, which come in any order. */
static void panels_of(const PanelKernels *pk, int cols, int bits, int group, int kind) {
    static const int order[TOKENS] = {3, 0, 5, 1, 4, 2};
    float *w[PANEL_ROWS], sum[TOKENS][PANEL_ROWS], alone[1][PANEL_ROWS];
    PanelRows p = panel_of(cols, bits, group, kind, w);
    int limit = bits == 16 || pk->bits == 16 ? 32767 : 127;     /* BF16 meets 16 bits */
#if defined(__x86_64__)
    if (bits == 8 && pk == kernels_avx2.panels8) limit = 32767; /* and so does INT8 there */
#endif
    PanelTokens x = {.x = pack_records(pk, cols, limit, kind), .size = (cols + BLOCK - 1) / BLOCK * pk->record, .token = order};
    for (x.n = 1; x.n <= TOKENS; x.n++) {
        pk->multiply(&p, x, sum);
        for (int t = 0; t < x.n; t++) {
            pk->multiply(&p, (PanelTokens){x.x + order[t] * x.size, x.size, NULL, 1}, alone);
            CHECK(!memcmp(alone[0], sum[t], sizeof sum[t]), "panels of %d, token %d of %d", cols, t, x.n);
            for (int r = 0; r < PANEL_ROWS; r++) {
                if (bits == 16 && kind == ROUNDED) near_rounded(sum[t][r], w[r], order[t], cols);
                else near("panels", sum[t][r], w[r], order[t], cols);
            }
        }
    }
#if defined(__x86_64__)
    if (pk->bits == 16 || bits != 8) {  /* the bits do not depend on the set, and AVX2 is always there */
        float narrow[TOKENS][PANEL_ROWS];
        x.n = TOKENS;
        (pk->bits == 16 ? kernels_avx2.panels : kernels_avx2.panels8)->multiply(&p, x, narrow);
        CHECK(!memcmp(narrow, sum, sizeof sum), "panels of %d are other ones with AVX2", cols);
    }
#endif
    /* A NaN is not lost: of token 2, or of row 5. */
    x_of[2][below(cols)] = NAN;
    pk->pack(x_of[2], 0, cols, cols, (uint8_t *)x.x + 2 * x.size);
    if (bits == 16) memcpy((uint8_t *)p.four[1].row[1] + 2 * below(cols), (uint8_t[]){0xc0, 0xff}, 2);
    x.n = TOKENS;
    pk->multiply(&p, x, sum);
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < PANEL_ROWS; r++)
            CHECK(isnan(sum[t][r]) == (order[t] == 2 || (bits == 16 && r == 5)), "NaN in panels of %d, token %d, row %d", cols, t, r);
    n_edges = 0;
}

static void panels(const PanelKernels *pk, int cols, int kind) {
    if (!pk) return;
    panels_of(pk, cols, 0, 16, kind);
    panels_of(pk, cols - below(16), 16, 0, kind);
    for (int group = 32; group <= 128; group *= 2)
        if (cols % group == 0) panels_of(pk, cols, 4, group, kind), panels_of(pk, cols, 8, group, kind);
}

static void round_row(int cols, int kind) {
    uint8_t *row = bf16_row(cols);
    float *w = floats(cols), rounded[3], most = 0;
    int8_t *q = edge(cols);
    double error = 0, norm = 0;
    if (kind == 1) memset(row, 0, 2 * (size_t)cols);
    if (kind == 2) memcpy(row + 2 * (cols - 1), (uint8_t[]){0x7f, 0xc5}, 2);         /* the last stands out, negative */
    kernels_c.expand_bf16(row, cols, w);
    for (int i = 0; i < cols; i++) most = fmaxf(most, fabsf(w[i]));
    kn->round_row(row, cols, q, rounded);
    CHECK(rounded[0] == most / 127, "%g", most);
    for (int i = 0; i < cols; i++) {
        double off = w[i] - (double)q[i] * rounded[0];
        CHECK(fabs(off) <= 0.5001 * rounded[0], "round_row: %g is %d", w[i], q[i]);
        error += off * off;
        norm += (double)w[i] * w[i];
    }
    CHECK(fabs(rounded[1] - sqrt(error)) <= 1e-4 * sqrt(error), "%g, not %g", rounded[1], sqrt(error));
    CHECK(fabs(rounded[2] - sqrt(norm)) <= 1e-4 * sqrt(norm), "%g, not %g", rounded[2], sqrt(norm));
}

static void dot_int8(int cols, int edges) {
    const int8_t *q[ROWS];
    int16_t *y = edge(2 * cols);
    int64_t got[ROWS];
    for (int r = 0; r < ROWS; r++) {
        int8_t *to = edge(cols);
        for (int i = 0; i < cols; i++) to[i] = (int8_t)(edges ? (r % 2 ? -127 : 127) : below(255) - 127);
        q[r] = to;
    }
    for (int i = 0; i < cols; i++) y[i] = (int16_t)(edges ? edges * MAX_Y : below(2 * MAX_Y + 1) - MAX_Y);
    kn->dot_int8(q, y, cols, got, 64);
    for (int r = 0; r < ROWS; r++) {
        int64_t want = 0;
        for (int i = 0; i < cols; i++) want += q[r][i] * y[i];
        CHECK(got[r] == want, "dot_int8 of %d is %lld, not %lld", cols, (long long)got[r], (long long)want);
    }
}

/* INT4 as two BF16, which is exact here, as a scale of 8 bits times 5 bits are 13. */
static void int4_to_bf16(int cols, int group) {
    float *w[ROWS];
    uint16_t *upper = edge(2 * cols), *lower = edge(2 * cols);
    GroupedRows g = rows_of(cols, 4, group, below(2), any_byte, 1 / 16.f, w);
    kn->int4_to_bf16(&g, cols, upper, lower);
    for (int i = 0; i < cols; i++) {
        float got = bf16_to_float(upper[i]) + bf16_to_float(lower[i]);
        CHECK(got == w[0][i], "[%d] of %d is %g, not %g", i, cols, got, w[0][i]);
    }
    n_edges = 0;
}

/* n tokens in strips with n_rows rows that are one BF16 or two; alone: activations are one. */
static void gemm(int cols, int n, int n_rows, int parts, int alone) {
    enum { MOST_ROWS = 64, MOST_COLS = 160, MOST_TOKENS = 48 };
    _Alignas(64) static uint16_t rows[2][MOST_ROWS][MOST_COLS + 32];
    _Alignas(64) static uint8_t strips[MOST_TOKENS / 16 * MOST_COLS * 64];
    float scale[MOST_ROWS], y[MOST_TOKENS][MOST_ROWS + 1], *x[MOST_TOKENS];
    StripRows w = {rows[0][0], parts == 2 ? rows[1][0] : NULL, MOST_COLS + 32, cols, n_rows, scale, alone};
    for (int r = 0; r < n_rows; r++) {
        scale[r] = fabsf(any_float());
        for (int i = 0; i < cols; i++) {
            float v = any_float(), rest = ldexpf(any_float(), -17);
            rows[0][r][i] = float_to_bf16(v);
            rows[1][r][i] = float_to_bf16(rest);
        }
    }
    for (int t = 0; t < n; t++) x[t] = fill(floats(cols), cols, any_float);
    for (int t = 0; t < n; t += 16)
        kn->to_strip((const float *const *)x + t, n - t < 16 ? n - t : 16, cols, strips + t / 16 * strip_size(cols));
    for (int t = 0; t < n; t++) y[t][n_rows] = 7;
    kn->gemm(&w, strips, n, y[0], MOST_ROWS + 1);
    for (int t = 0; t < n; t++) {
        CHECK(y[t][n_rows] == 7, "gemm of %d rows writes beyond them", n_rows);
        for (int r = 0; r < n_rows; r++) {
            double want = 0, size = 0;
            for (int i = 0; i < cols; i++) {
                double v = bf16_to_float(rows[0][r][i]) + (parts == 2 ? (double)bf16_to_float(rows[1][r][i]) : 0);
                want += v * x[t][i] * scale[r];
                size += fabs(v * x[t][i] * scale[r]);
            }
            CHECK(fabs(y[t][r] - want) <= (alone ? 0x1p-8 : 0x1p-16) * size, "gemm of %d, %d, %d: %g, not %g, of %g", cols, n, n_rows, y[t][r], want, size);
        }
    }
    n_edges = 0;
}

/* Every pair of a nibble and a scale of a block, and a last block alone. */
static void nvfp4_to_bf16(void) {
    for (int blocks = 1; blocks <= 3; blocks++)
        for (int scale = 0; scale < 127; scale++) {
            int n = 16 * blocks;
            uint8_t *data = edge(n / 2), *block_scale = edge(blocks);
            uint16_t *got = edge(2 * n);
            float *want = floats(n), *numbers = floats(n);
            for (int i = 0; i < n / 2; i++) data[i] = (uint8_t)(2 * i % 16 + (2 * i % 16 + 1) * 16);
            for (int i = 0; i < blocks; i++) block_scale[i] = (uint8_t)((scale + 31 * i) % 127);
            kn->nvfp4_to_bf16(data, block_scale, n, got);
            kernels_c.expand_nvfp4(data, block_scale, 1, n, want);
            for (int i = 0; i < n; i++) numbers[i] = bf16_to_float(got[i]);
            same(numbers, want, n, "nvfp4_to_bf16");
            n_edges = 0;
        }
}

/* Two BF16 are within 2^-17 of the number, and the first is the nearest one. */
static void split(int n) {
    float *x = fill(floats(n), n, any_float);
    uint16_t *upper = edge(2 * n), *lower = edge(2 * n);
    kn->split(x, n, upper, lower);
    for (int i = 0; i < n; i++) {
        float sum = bf16_to_float(upper[i]) + bf16_to_float(lower[i]);
        CHECK(upper[i] == float_to_bf16(x[i]), "%g is %d", x[i], upper[i]);
        CHECK(fabsf(sum - x[i]) <= 0x1p-17f * fabsf(x[i]), "%g becomes %g", x[i], sum);
    }
    n_edges = 0;
}

/* Keys from .. to - 1 with weights; garbage in the others, NaN too, must not be seen. */
static void soften(int from, int to, float most) {
    float *s = fill(floats(FLASH_KEYS), FLASH_KEYS, any_float), high = most, want = 0;
    uint16_t *upper = edge(2 * FLASH_KEYS), *lower = edge(2 * FLASH_KEYS);
    for (int i = 0; i < FLASH_KEYS; i++) {
        if (i < from || i >= to) s[i] = i % 2 ? NAN : INFINITY;
        else high = fmaxf(high, s[i] /= 64);
    }
    float sum = kn->soften(s, from, to, &most, upper, lower);
    CHECK(most == high, "%d .. %d: %g, not %g", from, to, most, high);
    for (int i = 0; i < FLASH_KEYS; i++) {
        float p = from <= i && i < to ? expf(s[i] - high) : 0;
        float got = bf16_to_float(upper[i]) + bf16_to_float(lower[i]);
        want += p;
        CHECK(fabsf(got - p) <= 0x1p-15f * p, "[%d] of %d .. %d: %g, %g", i, from, to, got, p);
    }
    CHECK(fabsf(sum - want) <= 1e-5f * want, "%d .. %d: %g, %g", from, to, sum, want);
    n_edges = 0;
}

/* n queries, n_keys keys of dim numbers; sums behind those of the last query are the padding's. */
static void add_values(int n, int n_keys, int dim) {
    static uint16_t p[2][FLASH_QUERIES][FLASH_KEYS];
    int ldv = dim + 32, ldy = dim, rows = (n + 15) / 16 * 16;
    uint16_t *v = edge(2 * n_keys * ldv);
    float *y = fill(floats(rows * ldy), rows * ldy, any_float), *before = floats(rows * ldy);
    memcpy(before, y, 4 * (size_t)(rows * ldy));
    for (int i = 0; i < n_keys * ldv; i++) v[i] = float_to_bf16(any_float());
    for (int q = 0; q < FLASH_QUERIES; q++)
        for (int k = 0; k < FLASH_KEYS; k++) {
            float weight = fabsf(any_float());
            p[0][q][k] = float_to_bf16(weight);
            p[1][q][k] = float_to_bf16(weight - bf16_to_float(p[0][q][k]));
        }
    const uint16_t (*weights)[FLASH_QUERIES][FLASH_KEYS] = (const void *)p;
    kn->add_values(v, ldv, n_keys, dim, weights, n, y, ldy);
    for (int q = 0; q < n; q++)
        for (int i = 0; i < dim; i++) {
            double want = before[q * ldy + i], size = fabs(want);
            for (int k = 0; k < n_keys; k++) {
                double weight = (double)bf16_to_float(p[0][q][k]) + bf16_to_float(p[1][q][k]);
                double term = weight * bf16_to_float(v[k * ldv + i]);
                want += term;
                size += fabs(term);
            }
            CHECK(fabs(y[q * ldy + i] - want) <= 0x1p-19 * size, "add_values of %d, %d, %d: %g, %g",
                  n, n_keys, dim, y[q * ldy + i], want);
        }
    n_edges = 0;
}

static void flash(void) {
    for (int from = 0; from <= 128; from += from < 8 ? 1 : 24)
        for (int to = from; to <= 128; to += to < 8 ? 1 : 24) {
            soften(from, to, -INFINITY);
            soften(from, to, 0.5f);
        }
    static const int queries[] = {1, 8, 9, 31, 48, 128};
    for (int i = 0; i < 6; i++)
        for (int keys = 32; keys <= 128; keys += 32) add_values(queries[i], keys, 32 + keys);
}

static void with_strips(void) {
    static const int tokens[] = {1, 7, 16, 17, 32, 33, 48};
    nvfp4_to_bf16();
    for (int n = 32; n <= 160; n += 32) split(n);
    flash();
    for (int group = 32; group <= 128; group *= 2)
        for (int cols = group; cols <= 8 * group; cols += group) int4_to_bf16(cols, group);
    for (int cols = 32; cols <= 160; cols += 64)
        for (int i = 0; i < 7; i++)
            for (int n_rows = 1; n_rows <= 64; n_rows += n_rows == 1 ? 14 : 16)
                for (int parts = 1; parts <= 2; parts++)
                    for (int alone = 0; alone < 2; alone++) gemm(cols, tokens[i], n_rows, parts, alone);
}

int main(int argc, char **argv) {
    static void (*const of_any_size[])(int) = {expand, expand_half, grouped, dots, axpy,
                                               add_rows, tile, softmax, exp_less, gelu};
    static const int sizes[] = {256, 272, 703, 1152, 2112, 2816, 4209};
    if (argc != 2) return 2;
    setenv("GEMMA4_CPU", argv[1], 1);
    kn = choose_kernels();
    if (strcmp(kn->name, argv[1])) {
        printf("this machine has no %s, but %s\n", argv[1], kn->name);
        return 77;
    }
    if (kn->gemm) {                     /* else it is the set below it */
        with_strips();
        return 0;
    }
    formats();
    for (int i = 1; i <= 80 + 7; i++)
        for (int k = 0; k < 10; k++, n_edges = 0) of_any_size[k](i <= 80 ? i : sizes[i - 81]);
    for (int cols = 16; cols <= 4224; cols += cols < 336 ? 16 : 16 * 27)
        for (int kind = 0; kind < 3; kind++) {
            nvfp4(cols, kind);
            n_edges = 0;
            integers(cols, kind);
            if (cols <= 352 || cols % 32 == 0) panels(kn->panels, cols, kind), panels(kn->panels8, cols, kind);
            round_row(cols, kind);
        }
    for (int cols = 64; cols <= 32768; cols += cols / 256 * 64 + 64, n_edges = 0) dot_int8(cols, 0);
    dot_int8(32768, 1);
    dot_int8(32768, -1);
    return 0;
}
