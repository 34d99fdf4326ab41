/* test_plan.cpp - do the launches of the real models fit on the real chips?
 *
 * The shapes of the 26B-A4B and of the 31B, with the weights in the formats that are published, go through every operation, with
 * one token, with a few and with a chunk, on each chip.  The emulation checks each launch as CUDA would, but nothing runs (emu::plan):
 * there are no weights, only addresses. */
#include "../../cuda.cu"

#include <setjmp.h>
#include <stdarg.h>

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

extern "C" {
#include <cmocka.h>
}

/* A chip: multiprocessors of the largest one with this number, KB of shared memory in each of them and for a block. */
typedef struct {
    const char *cc;
    int n_sm, sm_kb, block_kb;
} Chip;
static const Chip chips[] = {
    {"8.0", 108, 164, 163}, {"8.6", 84, 100, 99}, {"8.7", 16, 164, 163}, {"8.9", 142, 100, 99}, {"9.0", 132, 228, 227},
    {"10.0", 148, 228, 227}, {"10.3", 160, 228, 227}, {"11.0", 20, 228, 227}, {"12.0", 188, 100, 99}, {"12.1", 48, 100, 99},
};

/* Formats: of attention, of the dense MLP, of the experts. */
typedef struct {
    const char *name;
    int n_layers, hidden, n_heads, kv_heads[2], intermediate, n_experts, expert_size;
    DType format[3];
    int rank;                           /* of a LoRA adapter of every matrix; 0: there are none */
} Shape;
static const Shape shapes[] = {
    {"26B, NVFP4 experts", 30, 2816, 16, {8, 2}, 2112, 128, 704, {DT_BF16, DT_BF16, DT_U8}, 0},
    {"26B, NVFP4", 30, 2816, 16, {8, 2}, 2112, 128, 704, {DT_U8, DT_U8, DT_U8}, 0},
    {"26B, BF16", 30, 2816, 16, {8, 2}, 2112, 128, 704, {DT_BF16, DT_BF16, DT_BF16}, 0},
    {"31B, NVFP4 MLP", 60, 5376, 32, {16, 4}, 21504, 0, 0, {DT_BF16, DT_U8, DT_U8}, 0},
    {"31B, NVFP4", 60, 5376, 32, {16, 4}, 21504, 0, 0, {DT_U8, DT_U8, DT_U8}, 0},
    {"31B, BF16", 60, 5376, 32, {16, 4}, 21504, 0, 0, {DT_BF16, DT_BF16, DT_BF16}, 0},
    {"26B, FP8", 30, 2816, 16, {8, 2}, 2112, 128, 704, {DT_F8_E4M3, DT_F8_E4M3, DT_F8_E4M3}, 0},
    {"31B, INT4", 60, 5376, 32, {16, 4}, 21504, 0, 0, {DT_I32, DT_I32, DT_I32}, 0},
    {"26B, NVFP4 experts, adapters", 30, 2816, 16, {8, 2}, 2112, 128, 704, {DT_BF16, DT_BF16, DT_U8}, 16},
    {"31B, INT4, adapters", 60, 5376, 32, {16, 4}, 21504, 0, 0, {DT_I32, DT_I32, DT_I32}, 256},
};

static float somewhere[1];              /* in the place of weights, which nobody reads */

static Weight matrix(DType dtype, int rows, int cols) {
    const uint8_t *at = (const uint8_t *)somewhere;
    if (dtype == DT_F8_E4M3)
        return {dtype, rows, cols, 0, at, at, 1, DT_F32, 1, cols, NULL, NULL};
    if (dtype == DT_I32) return {dtype, rows, cols, 4, at, at, 1, DT_BF16, 1, 32, at, NULL};
    return {dtype, rows, cols, 0, at, dtype == DT_U8 ? at : NULL, 1, DT_OTHER, 1, 16, NULL, NULL};
}

/* A model of that shape; the last layer of each six is global. */
struct Model {
    Config c = {};
    Weights w = {};
    std::vector<Layer> layer;
    std::vector<Weight> gate_up, down;
    std::deque<Adapter> adapters;

    /* Hangs an adapter on w, if it is a matrix. */
    void adapt(Weight &w, int rank, int at) {
        if (!rank || !w.data) return;
        adapters.push_back({matrix(DT_BF16, rank, w.cols), matrix(DT_BF16, w.rows, rank), 1, at, NULL});
        w.adapter = &adapters.back();
        this->w.adapter_width = 3 * rank;
    }

    explicit Model(const Shape &s) : layer(s.n_layers), gate_up(s.n_experts), down(s.n_experts) {
        c.n_layers = s.n_layers, c.hidden = s.hidden, c.vocab = 262144, c.n_heads = s.n_heads, c.intermediate = s.intermediate;
        c.n_experts = s.n_experts, c.top_k = s.n_experts ? 8 : 0, c.expert_size = s.expert_size, c.window = 1024;
        c.eps = 1e-6f, c.softcap = 30;
        for (auto &e : gate_up) adapt(e = matrix(s.format[2], s.expert_size, s.hidden), s.rank, 0);
        for (auto &e : down) adapt(e = matrix(s.format[2], s.hidden, s.expert_size), s.rank, 0);
        for (int i = 0; i < s.n_layers; i++) {
            Layer &l = layer[i];
            l.global = i % 6 == 5;
            l.head_dim = l.global ? 512 : 256;
            l.n_kv_heads = s.kv_heads[l.global];
            l.inv_freq = l.input_norm = l.post_attention_norm = l.q_norm = l.k_norm = l.pre_mlp_norm = l.post_ffn_norm = somewhere;
            l.q = matrix(s.format[0], s.n_heads * l.head_dim, s.hidden);
            l.k = l.v = matrix(s.format[0], l.n_kv_heads * l.head_dim, s.hidden);
            if (l.global) l.v = {};
            l.o = matrix(s.format[0], s.hidden, s.n_heads * l.head_dim);
            l.gate = l.up = matrix(s.format[1], s.intermediate, s.hidden);
            l.down = matrix(s.format[1], s.hidden, s.intermediate);
            l.layer_scalar = l.k_scale = l.v_scale = 1;
            for (Weight *w : {&l.q, &l.o, &l.gate, &l.down}) adapt(*w, s.rank, 0);
            for (Weight *w : {&l.k, &l.up}) adapt(*w, s.rank, s.rank);
            adapt(l.v, s.rank, 2 * s.rank);
            if (!s.n_experts) continue;
            l.post_mlp_norm = l.pre_experts_norm = l.post_experts_norm = l.router_scale = l.per_expert_scale = somewhere;
            adapt(l.router = matrix(DT_BF16, s.n_experts, s.hidden), s.rank, 0);
            l.expert_gate = l.expert_up = gate_up.data();
            l.expert_down = down.data();
        }
        w.layer = layer.data();
        w.embed = w.head = matrix(DT_BF16, c.vocab, s.hidden);
        w.final_norm = somewhere;
    }
};

enum { CHUNK = 2048, CONTEXT = 262144 };

/* cuda_open, but for the loading. */
static Device *open_without_weights(const Model &m, int exact) {
    DeviceOptions o = {};
    o.max_n = CHUNK;
    o.context = CONTEXT;
    o.n_threads = 1;
    o.exact = exact;
    o.copy_head = 1;
    Error err;
    Device *d = planned(&m.c, &m.w, &o, &err);
    if (!d || prepare(d, &o, &err)) fail_msg("%s", err.text);
    return d;
}

/* As much of the cache as a layer needs: only addresses. */
static KvCache cache_of(const Layer &l, DType dtype) {
    KvCache kv = {};
    kv.dtype = dtype;
    kv.slots = l.global ? CONTEXT : 1024 + CHUNK;
    kv.k_dim = l.global && dtype != DT_F8_E4M3 ? 128 : l.head_dim;      /* 64 pairs turn, and V comes from k */
    kv.k = kv.v = (uint8_t *)somewhere;
    return kv;
}

/* The launches of a step of n tokens, the logits included, at a position where the context is full of tokens. */
static std::vector<emu::Launch> step(Device *d, const Model &m, DType cache, int n) {
    std::vector<int> ids(n);
    emu::plan->clear();
    cuda_ops.embed(d, ids.data(), n, CONTEXT - CHUNK);
    for (const Layer &l : m.layer) {
        KvCache kv = cache_of(l, cache);
        cuda_ops.qkv(d, &l, &kv);
        cuda_ops.attend(d, &l, &kv);
        cuda_ops.attn_out(d, &l);
        cuda_ops.mlp(d, &l);
        if (m.c.n_experts) cuda_ops.route(d, &l), cuda_ops.experts(d, &l);
        cuda_ops.join(d, &l);
    }
    int id;
    float logit;
    cuda_ops.top(d, n - 1, 1, &id, &logit);
    return *emu::plan;
}

static bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

/* Shared memory that a kernel declares, at most: test_gpu.py holds nvcc's word for it against these two. */
static size_t declared(const std::string &name) {
    for (const char *streams : {"row_kernel", "head_kernel", "qkv_kernel", "mlp_rows_kernel", "experts_up_kernel", "experts_down_kernel",
                                "few_rows_kernel", "few_up_kernel", "few_down_kernel", "few_head_kernel"})
        if (has(name, streams)) return STREAM_STATIC;
    return STATIC_SHARED;
}

static void check_launch(const emu::Launch &l, const Chip &chip, const Device *d, DType cache, const char *what) {
    const std::string name = l.name;
    const int threads = l.block.x * l.block.y * l.block.z, blocks = l.grid.x * l.grid.y * l.grid.z;
    const size_t shared = l.shared + (l.shared ? declared(name) : 0), each = shared + 1024;     /* CUDA takes 1 KB of each block */
    if (shared > (size_t)chip.block_kb * 1024) fail_msg("%s: %s: %zu bytes of shared memory", what, l.name, shared);
    if (threads > 1024 || threads % 32 || blocks < 1) fail_msg("%s: %s: %d threads, %d blocks", what, l.name, threads, blocks);
    /* Two kernels of one token fit at once on the data centre's chips that overlap them, so that one can copy ahead (RESIDENT): but for
     * row_kernel, and for those of a dense model, whose vectors are long; and so are a few tokens'. */
    const bool overlap = emu::can_overlap() && d->deep && chip.n_sm > 100 && !has(name, "few_");
    if (overlap && has(name, "<DEEP>") && d->c->n_experts && !has(name, "row_kernel") && 2 * each > (size_t)chip.sm_kb * 1024)
        fail_msg("%s: %s: two blocks of %zu bytes of shared memory do not fit", what, l.name, shared);
    if (has(name, "plain_attend") && cache != DT_F32) fail_msg("%s: attention is not on tensor cores", what);
}

static void plan_all(const Chip &chip) {
    std::vector<emu::Launch> plan;
    setenv("EMU_CC", chip.cc, 1);
    setenv("EMU_SMS", std::to_string(chip.n_sm).c_str(), 1);
    size_t most = 0;
    const char *which = "";
    for (const Shape &s : shapes)
        for (int exact : {0, 1}) {
            emu::plan = &plan;
            Model m(s);
            Device *d = open_without_weights(m, exact);
            assert_int_equal(d->shared_limit, chip.block_kb * 1024 - STATIC_SHARED);
            assert_int_equal(d->deep, chip.block_kb > 161);
            for (DType cache : {DT_BF16, DT_F8_E4M3, DT_F32})
                for (int n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 64, 65, 256, 257, 1000, (int)CHUNK}) {
                    if (cache == DT_F32 && n > 16 && n < CHUNK) continue;
                    char what[128];
                    snprintf(what, sizeof what, "sm %s, %s, cache %s, %d tokens%s", chip.cc, s.name, dtype_name[cache], n, exact ? ", exact" : "");
                    for (const emu::Launch &l : step(d, m, cache, n)) {
                        check_launch(l, chip, d, cache, what);
                        if (l.shared > most) most = l.shared, which = l.name;
                    }
                    assert_true(plan.size() > 5 * (size_t)s.n_layers);
                    /* Up to 8 tokens of the 26B stream its weights (few.cu), 6 where a block has 99 KB, 2 exactly; with adapters one does, too. */
                    const int least = s.rank ? 1 : 2, most = exact ? 2 : d->deep ? 8 : 6;
                    const bool few = std::any_of(plan.begin(), plan.end(), [](const emu::Launch &l) { return has(l.name, "few_up"); });
                    const bool known = n <= 6 || chip.n_sm != 16;           /* sm_87 with 163 KB: 7, maybe */
                    if (s.n_experts && known && few != (n >= least && n <= most)) fail_msg("%s: the tokens %s", what, few ? "stream the weights" : "come in tiles");
                }
            cuda_close(d);
        }
    emu::plan = NULL;
    print_message("sm %s: at most %zu KB of dynamic shared memory, %s\n", chip.cc, most / 1024, which);
}

/* What the head's int8 copy takes: of each row a byte a column, BF16 scales, two floats, and a bound
 * for each of four tokens; 4 bytes of each tile. */
static int64_t copy_bytes(const Config &c) {
    const int64_t cols = (c.hidden + 255) / 256 * 256;
    return c.vocab * (cols + cols / 16 + 24) + 4 * (c.vocab / 8);
}

/* The plan names the copy apart, so that it can be left out; where it is forced it is one of the
 * weights. */
static void test_copy_of_the_head(void **) {
    Error err;
    for (const Shape &s : shapes) {
        Model m(s);
        DeviceOptions o = {};
        o.max_n = CHUNK, o.context = CONTEXT, o.n_threads = 1;
        auto plan_with = [&](const char *how) {
            Memory memory = {};
            setenv("GEMMA4_HEAD", how, 1);
            assert_int_equal(cuda_ops.memory(&m.c, &m.w, &o, &memory, &err), 0);
            return memory;
        };
        const Memory by_default = plan_with(""), whole = plan_with("whole");
        const Memory forced = plan_with("screened");
        const int64_t rest = by_default.head_copy - copy_bytes(m.c);
        assert_true(rest >= 0 && rest < 8 * 256);
        assert_int_equal(whole.head_copy, 0);
        assert_int_equal(whole.weights, by_default.weights);
        assert_int_equal(forced.head_copy, 0);
        assert_int_equal(forced.weights, by_default.weights + by_default.head_copy);
        print_message("%s: %.2f GB\n", s.name, (double)by_default.head_copy * 1e-9);
        m.c.vocab = m.w.head.rows = 1000;       /* too small a head to gain */
        assert_int_equal(plan_with("").head_copy, 0);
        setenv("GEMMA4_HEAD", "", 1);
    }
}

/* Blocks of the launches of a step of n tokens whose names have `part`. */
static unsigned blocks_of(Device *d, const Model &m, DType cache, int n, const char *part) {
    unsigned blocks = 0;
    for (const emu::Launch &l : step(d, m, cache, n))
        if (!blocks && has(l.name, part)) blocks = l.grid.x * l.grid.y * l.grid.z;
    return blocks;
}

/* Grids follow what fits on a multiprocessor: two blocks where there is room for two, else one.  Where there is not even room for one,
 * the kernel and the GPU are named. */
static void test_what_fits(void **) {
    std::vector<emu::Launch> plan;
    emu::plan = &plan;
    setenv("EMU_CC", "9.0", 1);
    setenv("EMU_SMS", "100", 1);
    const Model m(shapes[0]);
    const struct { const char *kb; DType cache; unsigned attend, gemm; } cases[] = {
        {"228", DT_BF16, 200, 192}, {"100", DT_BF16, 96, 64}, {"100", DT_F8_E4M3, 200, 64}};
    for (auto &c : cases) {
        setenv("EMU_SHARED", c.kb, 1);
        Device *d = open_without_weights(m, 0);
        assert_int_equal(blocks_of(d, m, c.cache, 1, "v->kernel"), c.attend);
        assert_int_equal(blocks_of(d, m, c.cache, 16, "g->kernel"), c.gemm);
        cuda_close(d);
    }
    setenv("EMU_SHARED", "90", 1);
    Memory memory;
    DeviceOptions o = {};
    o.max_n = CHUNK, o.context = CONTEXT, o.n_threads = 1;
    Error err;
    assert_int_equal(cuda_ops.memory(&m.c, &m.w, &o, &memory, &err), -1);
    assert_string_equal(err.text, "GPU: a block of gemm_kernel (256 threads, 96 KB of shared memory) does not fit on a multiprocessor of "
                                  "emulated GPU");
    unsetenv("EMU_SHARED");
    emu::plan = NULL;
}

static void test_plan(void **state) { plan_all(*(const Chip *)*state); }

int main() {
    enum { N = sizeof chips / sizeof *chips };
    static CMUnitTest tests[N + 2] = {cmocka_unit_test(test_copy_of_the_head), cmocka_unit_test(test_what_fits)};
    setenv("EMU_MEMORY", "400000000000", 1);
    for (int i = 0; i < N; i++)
        tests[i + 2] = (CMUnitTest){chips[i].cc, test_plan, NULL, NULL, (void *)&chips[i]};
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
