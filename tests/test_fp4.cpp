/* test_fp4.cpp - fp4.cu by itself, emulated or on a GPU that has the instruction: what activations
 * become, and the product, at the edges of tiles and of the formats.
 *
 * A reference says which numbers NVFP4 may hold, by looking through all of them, and multiplies in
 * double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#include "../fp4.h"

extern "C" {
#include <cmocka.h>                     /* after ours: it makes `fail` a macro */
}

using std::vector;

static uint64_t state = 1;
static uint32_t next() {                /* Knuth's MMIX */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
static float uniform() { return (float)(int32_t)next() * 0x1p-31f; }                    /* -1 … 1 */
static float bell() { return uniform() + uniform() + uniform(); }

static uint16_t bf16(float f) {         /* towards zero */
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)(u >> 16);
}

static double e2m1(int nibble) {
    static const double value[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return nibble & 8 ? -value[nibble & 7] : value[nibble];
}
static double e4m3(int b) {             /* without its sign */
    const int exponent = b >> 3 & 15, mantissa = b & 7;
    return exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
}

/* Memory of the GPU, which begins as `fill` and is given back. */
template <class T> struct Buffer {
    T *p = NULL;
    size_t n;
    explicit Buffer(size_t n, int fill = 0xff) : n(n) {
        assert_int_equal(cudaMalloc((void **)&p, n * sizeof(T)), cudaSuccess);
        assert_int_equal(cudaMemset(p, fill, n * sizeof(T)), cudaSuccess);
    }
    explicit Buffer(const vector<T> &v) : Buffer(v.size()) {
        const cudaError_t e = cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice);
        assert_int_equal(e, cudaSuccess);
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() { cudaFree(p); }
    vector<T> get() const {
        vector<T> v(n);
        const cudaError_t e = cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost);
        assert_int_equal(e, cudaSuccess);
        return v;
    }
};

/* ---- activations ---- */

struct Rows {
    int n, width;
    Buffer<uint8_t> data, scale;
    Buffer<float> factor;
    Rows(const vector<uint16_t> &y, int n, int width)
        : n(n), width(width), data((size_t)n * width / 2), scale((size_t)n * width / 16),
          factor(n) {
        Buffer<uint16_t> from(y);
        fp4_quantise(from.p, n, width, fp4(), 0);
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    }
    Fp4Rows fp4() const { return {data.p, scale.p, factor.p}; }
    vector<double> numbers() const {
        vector<uint8_t> d = data.get(), s = scale.get();
        vector<float> f = factor.get();
        vector<double> v((size_t)n * width);
        for (size_t i = 0; i < v.size(); i++)
            v[i] = e2m1(d[i / 2] >> i % 2 * 4 & 15) * e4m3(s[i / 16]) * f[i / width];
        return v;
    }
};

enum { BELL, ZERO, ZERO_BLOCKS, OUTLIER, STEEP, EQUAL, HUGE_ONES, TINY_ONES, TOO_TINY, INFINITE,
       NO_NUMBER, KINDS };

/* Row `row` of its kind, row % KINDS. */
static float activation(int row, int i) {
    switch (row % KINDS) {
    case ZERO: return i % 3 ? 0 : -0.f;
    case ZERO_BLOCKS: return i / 16 % 2 ? 0 : bell();
    case OUTLIER: return i == 21 ? -3e5f : bell();     /* the others' scales are subnormal */
    case STEEP: return ldexpf(bell(), -(i / 16) % 24); /* scales of every size, down to zero */
    case EQUAL: return -0.3f;           /* all scales are the largest */
    case HUGE_ONES: return i % 2 ? 3.3e38f : -1e38f;
    case TINY_ONES: return ldexpf(bell(), -98);
    case TOO_TINY: return ldexpf(bell(), -120);
    case INFINITE: return i == 5 ? INFINITY : bell();
    case NO_NUMBER: return i == 10 ? NAN : bell();
    default: return bell();
    }
}

static vector<uint16_t> activations(int n, int width) {
    vector<uint16_t> y((size_t)n * width);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < width; i++) y[(size_t)r * width + i] = bf16(activation(r, i));
    return y;
}

/* The least distance from x to a number that NVFP4 has for it: times E2M1's numbers, or, scales,
 * E4M3's that are no NaN. */
static double to_nearest(double x, double scale, int codes, double (*value)(int)) {
    double least = INFINITY;
    for (int c = 0; c < codes; c++) least = fmin(least, fabs(value(c) * scale - x));
    return least;
}

static void test_quantise(void **) {
    const int widths[] = {64, 192, 704}, n = 5 * KINDS + 3;
    int seen[0x80] = {};                /* scales */
    for (int width : widths) {
        const vector<uint16_t> y = activations(n, width);
        const Rows rows(y, n, width);
        const vector<uint8_t> data = rows.data.get(), scale = rows.scale.get();
        const vector<float> factor = rows.factor.get();
        const vector<double> got = rows.numbers();
        for (int r = 0; r < n; r++) {
            double most = 0;
            for (int i = 0; i < width; i++)
                most = fmax(most, fabs(bf16_to_float(y[(size_t)r * width + i])));
            if (r % KINDS == INFINITE || r % KINDS == NO_NUMBER) {
                assert_true(isnan(factor[r]));
                for (int i = 0; i < width; i += 16)
                    assert_int_equal(scale[((size_t)r * width + i) / 16], 0);
                continue;
            }
            assert_true(fabs(factor[r] - most / 2688) <= 1e-6 * factor[r]);
            for (int i = 0; i < width; i++) {
                const size_t at = (size_t)r * width + i;
                const double x = bf16_to_float(y[at]);
                if (r % KINDS == TOO_TINY || r % KINDS == ZERO) {
                    assert_true(got[at] == 0 && scale[at / 16] == 0);
                    continue;
                }
                double block = 0;
                for (int k = 0; k < 16; k++)
                    block = fmax(block, fabs(bf16_to_float(y[at / 16 * 16 + k])));
                const double ideal = 448 * block / most, has = e4m3(scale[at / 16]);
                assert_true(scale[at / 16] <= 0x7e);
                seen[scale[at / 16]] = 1;
                assert_true(fabs(has - ideal) <= to_nearest(ideal, 1, 0x7f, e4m3) + 1e-5 * ideal);
                if (r % KINDS == EQUAL) assert_int_equal(scale[at / 16], 0x7e);
                const double step = has * factor[r];
                assert_true(fabs(got[at] - x) <= to_nearest(x, step, 16, e2m1) + 1e-5 * fabs(x));
                /* Nothing saturates. */
                if (fabs(x) == most) assert_true(fabs(got[at] - x) <= 1e-5 * most);
            }
        }
    }
    for (int i = 0; i < 8; i++) assert_true(seen[i]);           /* zero, and all subnormal ones */
    assert_true(seen[0x7e]);
}

/* ---- the product ---- */

/* A random matrix in NVFP4, with scales of every size, and what it is. */
struct Matrix {
    int rows, cols;
    vector<uint8_t> data, scale;
    Buffer<uint8_t> on_gpu, scale_on_gpu;
    Weight w;
    Matrix(int rows, int cols)
        : rows(rows), cols(cols), data((size_t)rows * padded(cols) / 2),
          scale((size_t)rows * padded(cols) / 16), on_gpu(fill(data, rows, cols, 2)),
          scale_on_gpu(fill(scale, rows, cols, 16)), w() {
        w.dtype = DT_U8;
        w.rows = rows, w.cols = cols;
        w.data = on_gpu.p, w.block_scale = scale_on_gpu.p;
        w.scale = 0.01f * (1.5f + uniform());
    }
    /* Zero beyond cols, as load.cu leaves it. */
    static const vector<uint8_t> &fill(vector<uint8_t> &v, int rows, int cols, int columns) {
        static const uint8_t scales[] = {0, 0x80, 1, 6, 8, 0x38, 0x48, 0x7e};       /* 0x80: -0 */
        const int width = padded(cols) / columns;
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < cols / columns; i++)
                v[(size_t)r * width + i] = columns == 2 ? next() : scales[next() % 8];
        return v;
    }
    double at(size_t r, int i) const {
        const size_t n = r * padded(cols) + i;
        return e2m1(data[n / 2] >> i % 2 * 4 & 15) * e4m3(scale[n / 16]) * w.scale;
    }
};

static double gelu(double x) {
    return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* w . y, and how much was added up. */
static double sum_of(const Matrix &m, int row, const double *y, double *size) {
    double sum = 0;
    *size = 0;
    for (int i = 0; i < m.cols; i++) sum += m.at(row, i) * y[i], *size += fabs(m.at(row, i) * y[i]);
    return sum;
}

/* One row of what came out.  Adds float32's error, of a sum that big, to BF16's. */
static void check_row(const Matrix &w, const Matrix *up, const double *y, const float *out,
                      const uint16_t *act, bool finite) {
    for (int row = 0; row < w.rows; row++) {
        const float got = act ? bf16_to_float(act[row]) : out[row];
        if (!finite) {
            assert_true(isnan(got));
            continue;
        }
        double size, other, want = sum_of(w, row, y, &size);
        if (up) {
            const double by = sum_of(*up, row, y, &other);
            size = fabs(by) * 1.2 * size + fabs(gelu(want)) * other;
            want = gelu(want) * by;
        }
        const double fair = 1e-5 * size + (act ? 0x1p-8 * fabs(want) : 0) + 1e-37;
        if (!(fabs(got - want) <= fair))
            fail_msg("row %d is %.9g, not %.9g: %.1e is fair", row, got, want, fair);
    }
    if (act)
        for (int row = w.rows; row < padded(w.rows); row++) assert_int_equal(act[row], 0xffff);
}

/* Tokens whose numbers are no more than some 1e30, so that no sum is infinite. */
static vector<uint16_t> tame(int n, int width, int cols) {
    vector<uint16_t> y = activations(n, width);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < width; i++)
            if (i >= cols) y[(size_t)r * width + i] = 0;
            else if (r % KINDS == HUGE_ONES) y[(size_t)r * width + i] = bf16(ldexpf(bell(), 100));
    return y;
}
static bool finite(int row) { return row % KINDS != INFINITE && row % KINDS != NO_NUMBER; }

static void check_dense(int n, int rows, int cols, int tokens, bool gated) {
    const Matrix w(rows, cols), up(rows, cols);
    const int width = padded(cols), pitch = rows + 3;
    const Rows y(tame(n, width, cols), n, width);
    const vector<double> numbers = y.numbers();
    Buffer<float> out((size_t)n * pitch);
    Buffer<uint16_t> act((size_t)n * padded(rows));
    Product p = {};
    p.w = w.w;
    if (gated) p.up = up.w;
    p.n = p.n_act = n;
    p.out = out.p;
    p.pitch = pitch;
    p.act = act.p;
    fp4_product(p, y.fp4(), rows, tokens, (n + tokens - 1) / tokens, 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const vector<float> o = out.get();
    const vector<uint16_t> a = act.get();
    for (int r = 0; r < n; r++) {
        if (gated && r % KINDS == HUGE_ONES) continue;          /* two of them: infinite */
        check_row(w, gated ? &up : NULL, &numbers[(size_t)r * width], &o[(size_t)r * pitch],
                  gated ? &a[(size_t)r * padded(rows)] : NULL, finite(r));
        for (int i = gated ? 0 : rows; i < pitch; i++)          /* as it was */
            assert_true(isnan(o[(size_t)r * pitch + i]));
    }
}

static void test_dense(void **) {
    static const int shapes[][4] = {        /* tokens, rows, columns, tokens of a tile */
        {17, 8, 64, 32}, {32, 128, 128, 32}, {33, 130, 192, 32}, {70, 300, 64, 32},
        {64, 64, 16, 64}, {65, 129, 80, 64}, {128, 100, 704, 128},
        {130, 20, 2112, 128}, {257, 136, 192, 128}, {31, 63, 320, 128}};
    for (auto &s : shapes)
        for (int gated = 0; gated < 2; gated++) check_dense(s[0], s[1], s[2], s[3], gated);
}

/* Three matrices in one launch, whose results follow each other. */
static void test_several(void **) {
    const int n = 70, cols = 192, pitch = 130 + 64 + 300;
    const Matrix first(130, cols), second(64, cols), third(300, cols);
    const Rows y(tame(n, cols, cols), n, cols);
    const vector<double> numbers = y.numbers();
    Buffer<float> out((size_t)n * pitch);
    Product p = {};
    p.w = first.w, p.more[0] = second.w, p.more[1] = third.w;
    p.n = p.n_act = n;
    p.out = out.p;
    p.pitch = pitch;
    fp4_product(p, y.fp4(), first.rows, 64, 2, 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const vector<float> o = out.get();
    for (int r = 0; r < n; r++) {
        const float *at = &o[(size_t)r * pitch];
        for (const Matrix *m : {&first, &second, &third}) {
            check_row(*m, NULL, &numbers[(size_t)r * cols], at, NULL, finite(r));
            at += m->rows;
        }
    }
}

/* Pairs of token and expert, sorted by expert; expert 1 has none. */
static void check_experts(int tokens, bool gated) {
    const int n_experts = 4, counts[n_experts] = {tokens + 5, 0, 1, 2 * tokens};
    const int top_k = 3, rows = 72, cols = 192;
    int pairs = 0;
    for (int count : counts) pairs += count;
    const int n = gated ? 50 : pairs;   /* gated: each place names its token; else it is its row */
    vector<int> list(pairs);
    vector<Tile> tile;
    vector<Weight> w, up;
    vector<Matrix *> matrix;
    for (int e = 0, place = 0; e < n_experts; e++) {
        for (int i = 0; i < 2; i++) matrix.push_back(new Matrix(rows, cols));
        w.push_back(matrix[2 * e]->w);
        up.push_back(matrix[2 * e + 1]->w);
        for (int at = 0; at < counts[e]; at += tokens)
            tile.push_back({e, place + at, counts[e] - at < tokens ? counts[e] - at : tokens});
        place += counts[e];
    }
    for (int &pair : list) pair = (int)(next() % (n * top_k));
    const Rows y(tame(n, cols, cols), n, cols);
    const vector<double> numbers = y.numbers();
    const Buffer<int> on_gpu(list), n_tiles(vector<int>{(int)tile.size()});
    const Buffer<Tile> tiles(tile);
    const Buffer<Weight> w_on_gpu(w), up_on_gpu(up);
    Buffer<float> out((size_t)pairs * rows);
    Buffer<uint16_t> act((size_t)pairs * padded(rows));
    Product p = {};
    p.expert_w = w_on_gpu.p;
    p.expert_up = gated ? up_on_gpu.p : NULL;
    p.tile = tiles.p;
    p.n_tiles = n_tiles.p;
    p.list = gated ? on_gpu.p : NULL;
    p.top_k = top_k;
    p.n = n;
    p.n_act = pairs;
    p.out = out.p;
    p.pitch = rows;
    p.act = act.p;
    fp4_product(p, y.fp4(), rows, tokens, (int)tile.size() + 2, 0);     /* two too many */
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const vector<float> o = out.get();
    const vector<uint16_t> a = act.get();
    for (const Tile &t : tile)
        for (int place = t.first; place < t.first + t.count; place++) {
            const int row = gated ? list[place] / top_k : place;
            if (gated && row % KINDS == HUGE_ONES) continue;
            check_row(*matrix[2 * t.expert], gated ? matrix[2 * t.expert + 1] : NULL,
                      &numbers[(size_t)row * cols], &o[(size_t)place * rows],
                      gated ? &a[(size_t)place * padded(rows)] : NULL, finite(row));
        }
    for (Matrix *m : matrix) delete m;
}

static void test_experts(void **) {
    for (int tokens = 32; tokens <= 128; tokens *= 2)
        for (int gated = 0; gated < 2; gated++) check_experts(tokens, gated);
}

int main() {
    Error err;
    if (!fp4_found(&err)) {
        printf("%s\n", err.text);
        return 1;
    }
    const CMUnitTest tests[] = {cmocka_unit_test(test_quantise), cmocka_unit_test(test_dense), cmocka_unit_test(test_several),
                                cmocka_unit_test(test_experts)};
    return cmocka_run_group_tests_name("fp4", tests, NULL, NULL);
}
