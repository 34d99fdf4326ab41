/* test_attention.cpp - attention on the GPU, and on the CPU, against plain.c where it can go wrong:
 * the first positions, the edges of the window, a ring that wraps, tiles that are not full, every
 * format of the cache, head_dim and group, one token and many.
 *
 * It includes cuda.cu, to see which kernel a case runs and to ask for rounded numbers, and compiles it for the emulation.  Each
 * step starts from a random cache, which holds NaN wherever no token of the step may look, and runs with two orders of threads
 * and blocks, which must give the same bits. */
#include <string>
#include <vector>

#include "../cuda.cu"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

extern "C" {
#include <cmocka.h>                     /* after ours: it makes `fail` a macro */
}

enum Kernel { PLAIN, TENSOR, PROMPT };  /* PROMPT: for more than 16 tokens, else TENSOR */

typedef struct {
    const char *name;
    Kernel kernel;                      /* that is expected */
    DType kv;
    int global, head_dim, turning;      /* turning: pairs of dimensions that turn */
    int v_from_k, kv_heads, group, window;
    int rounded;                        /* not exact */
    int few;                            /* only some of the steps: it takes long */
    /* So many positions of a context, on a GPU so large that its blocks leave more partial results than are loaded at once; 0: 400
     * positions. */
    int context;
} Case;

static const Case cases[] = {
    {"BF16, head_dim 48", TENSOR, DT_BF16, 0, 48, 24, 0, 2, 2, 40, 0, 0, 0},
    {"FP8, head_dim 48", TENSOR, DT_F8_E4M3, 0, 48, 24, 0, 2, 2, 40, 0, 0, 0},
    {"F32, head_dim 48", PLAIN, DT_F32, 0, 48, 24, 0, 2, 2, 40, 0, 1, 0},
    {"BF16, head_dim 80, groups of 1, window of 32", TENSOR, DT_BF16, 0, 80, 40, 0, 3, 1, 32, 0, 1, 0},
    {"FP8, head_dim 80, groups of 8, window of 1", TENSOR, DT_F8_E4M3, 0, 80, 40, 0, 1, 8, 1, 0, 0, 0},
    {"BF16, head_dim 16, groups of 3", TENSOR, DT_BF16, 0, 16, 8, 0, 2, 3, 70, 0, 1, 0},
    {"BF16, head_dim 48, rounded", TENSOR, DT_BF16, 0, 48, 24, 0, 2, 2, 40, 1, 1, 0},
    {"FP8, head_dim 48, rounded", TENSOR, DT_F8_E4M3, 0, 48, 24, 0, 2, 2, 40, 1, 1, 0},
    {"BF16, head_dim 256", TENSOR, DT_BF16, 0, 256, 128, 0, 2, 2, 70, 0, 1, 0},
    {"FP8, head_dim 256", TENSOR, DT_F8_E4M3, 0, 256, 128, 0, 2, 2, 70, 0, 1, 0},
    {"BF16, head_dim 256, rounded", PROMPT, DT_BF16, 0, 256, 128, 0, 2, 2, 70, 1, 1, 0},
    {"FP8, head_dim 256, rounded", PROMPT, DT_F8_E4M3, 0, 256, 128, 0, 2, 2, 70, 1, 1, 0},
    {"BF16, head_dim 80, groups of 1, rounded", PROMPT, DT_BF16, 0, 80, 40, 0, 3, 1, 32, 1, 1, 0},
    {"BF16, global, head_dim 512, K from V", TENSOR, DT_BF16, 1, 512, 64, 1, 1, 8, 70, 0, 1, 0},
    {"FP8, global, head_dim 512, K from V", TENSOR, DT_F8_E4M3, 1, 512, 64, 1, 1, 8, 70, 0, 1, 0},
    {"BF16, global, head_dim 512, rounded", PROMPT, DT_BF16, 1, 512, 64, 1, 1, 8, 70, 1, 1, 0},
    {"FP8, global, head_dim 512, rounded", PROMPT, DT_F8_E4M3, 1, 512, 64, 1, 1, 8, 70, 1, 1, 0},
    {"F32, global, head_dim 512, K from V", PLAIN, DT_F32, 1, 512, 64, 1, 1, 8, 70, 0, 1, 0},
    {"BF16, global, head_dim 512, v_proj", PLAIN, DT_BF16, 1, 512, 64, 0, 1, 8, 70, 0, 1, 0},      /* too much shared memory */
    {"BF16, global, head_dim 96, K from V", TENSOR, DT_BF16, 1, 96, 16, 1, 2, 2, 40, 0, 0, 0},
    {"BF16, global, head_dim 320, K from V, groups of 16", TENSOR, DT_BF16, 1, 320, 80, 1, 1, 16, 40, 0, 1, 0},
    {"BF16, global, head_dim 80, K from V", PLAIN, DT_BF16, 1, 80, 10, 1, 2, 2, 40, 0, 1, 0},      /* blocks that turn in part */
    {"FP8, global, head_dim 80, groups of 17", TENSOR, DT_F8_E4M3, 1, 80, 10, 1, 1, 17, 40, 0, 1, 0},
    {"BF16, head_dim 40", PLAIN, DT_BF16, 0, 40, 20, 0, 2, 2, 40, 0, 1, 0},
    {"FP8, global, head_dim 256, 2200 keys", TENSOR, DT_F8_E4M3, 1, 256, 32, 1, 1, 8, 70, 0, 0, 2200},
    {"BF16, global, head_dim 48, 2200 keys", TENSOR, DT_BF16, 1, 48, 24, 0, 2, 2, 70, 0, 0, 2200},
};

static uint64_t state;
static uint32_t next_random() {         /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull >> 32;
}
static float normal() {
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += (int)(next_random() >> 8) * 0x1p-24f - 0.5f;
    return 1.4f * sum;
}
static float *vector(int n, float mean, float size) {
    float *v = (float *)xmalloc(n * sizeof *v);
    for (int i = 0; i < n; i++) v[i] = mean + size * normal();
    return v;
}
static Weight matrix(int rows, int cols) {
    Weight w = {};
    w.dtype = DT_F32;
    w.rows = rows;
    w.cols = cols;
    w.data = (uint8_t *)vector(rows * cols, 0, 1 / sqrtf(cols));
    return w;
}

enum { HIDDEN = 32, VOCAB = 97, MAX_N = 65 };

typedef struct {
    Config c;
    Weights w;
    Layer l;
} Net;

static void build(Net *m, const Case *k) {
    int heads = k->kv_heads * k->group;
    float sharp = sqrtf(1.5f / sqrtf(k->head_dim)), *inv_freq = (float *)xcalloc(k->head_dim, sizeof(float));
    Layer *l = &m->l;
    *m = {};
    m->c.n_layers = 1;
    m->c.hidden = HIDDEN;
    m->c.vocab = VOCAB;
    m->c.n_heads = heads;
    m->c.intermediate = 16;
    m->c.window = k->window;
    m->c.max_context = 1 << 20;
    m->c.eps = 1e-6f;
    for (int i = 0; i < k->turning; i++) inv_freq[i] = powf(1e4f, -2.0f * i / k->head_dim);
    l->global = k->global;
    l->head_dim = k->head_dim;
    l->n_kv_heads = k->kv_heads;
    l->inv_freq = inv_freq;
    l->input_norm = vector(HIDDEN, 1, 0.2f);
    l->post_attention_norm = vector(HIDDEN, 1, 0.2f);
    l->q_norm = vector(k->head_dim, 0, sharp);
    l->k_norm = vector(k->head_dim, 0, sharp);
    l->q = matrix(heads * k->head_dim, HIDDEN);
    l->k = matrix(k->kv_heads * k->head_dim, HIDDEN);
    if (!k->v_from_k) l->v = matrix(k->kv_heads * k->head_dim, HIDDEN);
    l->o = matrix(HIDDEN, heads * k->head_dim);
    l->k_scale = 0.02f;
    l->v_scale = 1.7f;
    m->w.layer = l;
    m->w.embed = m->w.head = matrix(VOCAB, HIDDEN);
    for (int i = 0; i < VOCAB * HIDDEN; i++) ((float *)m->w.embed.data)[i] *= 0.01f;
    m->w.final_norm = vector(HIDDEN, 1, 0);
}

static void release(Net *m) {
    const void *all[] = {m->l.inv_freq, m->l.input_norm, m->l.post_attention_norm, m->l.q_norm, m->l.k_norm, m->l.q.data, m->l.k.data,
                         m->l.v.data, m->l.o.data, m->w.embed.data, m->w.final_norm};
    for (const void *p : all) free((void *)p);
}

/* rows of [kv_heads][width] numbers: random for positions from .. to - 1, NaN elsewhere. */
static void fill(uint8_t *rows, const KvCache *kv, int width, float size, int64_t from, int64_t to) {
    memset(rows, 0xff, kv->slots * width * dtype_size[kv->dtype]);
    for (int64_t p = from; p < to; p++)
        for (int64_t i = (p % kv->slots) * width, end = i + width; i < end; i++) {
            float v = size * normal();
            if (kv->dtype == DT_F32) ((float *)rows)[i] = v;
            else if (kv->dtype == DT_BF16) ((uint16_t *)rows)[i] = __float_as_uint(v) >> 16;
            else rows[i] = (next_random() & 0x80) | (0x28 + next_random() % 24);
        }
}

/* One step on a device: x, and the cache as it is then. */
static void run(const Ops *op, Device *d, const Net *m, KvCache *kv, const uint8_t *const cache[2], const size_t bytes[2], int64_t pos, int n,
                uint8_t *after[2], float *x) {
    int ids[MAX_N];
    for (int i = 0; i < n; i++) ids[i] = (7 * i + 13 * (int)pos) % VOCAB;
    op->copy(kv->k, cache[0], bytes[0]);
    op->copy(kv->v, cache[1], bytes[1]);
    op->embed(d, ids, n, pos);
    if (n > 1 && pos % 2) {             /* a picture in the step */
        std::vector<float> soft((size_t)n * HIDDEN);
        for (size_t i = 0; i < soft.size(); i++) soft[i] = sinf(i * 0.37f + pos);
        op->embed_soft(d, n / 3, n - n / 3 - n / 5, soft.data());
    }
    op->qkv(d, &m->l, kv);
    op->attend(d, &m->l, kv);
    op->attn_out(d, &m->l);
    op->read_x(d, x);
    op->copy(after[0], kv->k, bytes[0]);
    op->copy(after[1], kv->v, bytes[1]);
}

static float element(const uint8_t *rows, DType dtype, size_t i) {
    if (dtype == DT_F32) return ((const float *)rows)[i];
    return dtype == DT_BF16 ? bf16_to_float(((const uint16_t *)rows)[i]) : (rows[i] & 127) == 127 ? NAN : e4m3_to_float(rows[i]);
}

/* How many numbers of two caches differ: neighbours in the format, where the devices rounded another way; else it fails. */
static int flips(const Case *k, int64_t pos, int n, const uint8_t *got, const uint8_t *want, size_t count) {
    int found = 0;
    for (size_t i = 0; i < count; i++) {
        float a = element(got, k->kv, i), b = element(want, k->kv, i);
        if (a == b || (isnan(a) && isnan(b))) continue;
        float near = k->kv == DT_F32 ? 2e-6f : k->kv == DT_BF16 ? 0.008f * fabsf(b) + 1e-6f : 0.13f * fabsf(b) + 0.002f;
        if (!(fabsf(a - b) <= near)) fail_msg("position %d, %d tokens: number %zu of the cache is %g, not %g", (int)pos, n, i, a, b);
        found += k->kv != DT_F32;
    }
    return found;
}

enum { REFERENCE, GPU, CPU, DEVICES };
static const Ops *const ops[DEVICES] = {&plain_ops, &cuda_ops, &cpu_ops};

static void step(const Case *k, const Net *m, Device *const device[DEVICES], KvCache kv[DEVICES],
                 int64_t pos, int n) {
    int width[2] = {k->kv_heads * kv[0].k_dim, k->kv_heads * k->head_dim};
    size_t bytes[2];
    uint8_t *cache[2], *want[2], *got[2];
    float x[4][MAX_N * HIDDEN];
    int64_t first = k->global || pos < k->window ? 0 : pos - k->window + 1;
    for (int i = 0; i < 2; i++) {
        bytes[i] = kv[0].slots * width[i] * dtype_size[k->kv];
        cache[i] = (uint8_t *)xmalloc(bytes[i]);
        want[i] = (uint8_t *)xmalloc(bytes[i]);
        got[i] = (uint8_t *)xmalloc(bytes[i]);
        fill(cache[i], &kv[0], width[i], i ? 1 : 1 / sqrtf(sqrtf(k->head_dim)), first, pos);
    }
    device[GPU]->n = n;
    const AttendVariant *v = plan_attention(device[GPU], &m->l, &kv[GPU]).variant;
    assert_int_equal(!v ? PLAIN : v->head_dim ? PROMPT : TENSOR, k->kernel == PROMPT && n <= 16 ? TENSOR : k->kernel);
    run(&plain_ops, device[REFERENCE], m, &kv[REFERENCE], cache, bytes, pos, n, want, x[0]);
    for (int r = 1; r < 4; r++) {       /* the GPU with two orders of threads, then the CPU */
        int which = r < 3 ? GPU : CPU, flipped = 0;
        emu::seed(r);
        run(ops[which], device[which], m, &kv[which], cache, bytes, pos, n, got, x[r]);
        for (int i = 0; i < 2; i++) flipped += flips(k, pos, n, got[i], want[i], bytes[i] / dtype_size[k->kv]);
        if (flipped > 2 + n * (width[0] + width[1]) / 50)
            fail_msg("%s, position %d, %d tokens: %d numbers are rounded another way",
                     ops[which]->name, (int)pos, n, flipped);
        double worst = 0, high = 0;
        for (int i = 0; i < n * HIDDEN; i++) {
            double off = fabs((double)x[r][i] - x[0][i]);
            if (!(off <= worst)) worst = off;
            if (fabs(x[0][i]) > high) high = fabs(x[0][i]);
        }
        double fair = 3e-5;
        if (flipped) fair = k->kv == DT_BF16 ? 2e-3 : 3e-2;
        if (which == GPU && k->rounded && n > 16) fair = 1e-2;
        if (!(worst <= fair * 2 * high))
            fail_msg("%s, position %d, %d tokens: off by %.1e of the range (%.0e is fair)",
                     ops[which]->name, (int)pos, n, worst / (2 * high), fair);
    }
    if (memcmp(x[1], x[2], n * HIDDEN * sizeof(float))) fail_msg("position %d, %d tokens: another order of threads, other bits", (int)pos, n);
    for (int i = 0; i < 2; i++) {
        free(cache[i]);
        free(want[i]);
        free(got[i]);
    }
}

static void same_as_plain(void **arg) {
    const Case *k = (const Case *)*arg;
    Device *device[DEVICES];
    KvCache kv[DEVICES];
    Net m;
    Error err;
    state = 0x9e3779b97f4a7c15ull;
    build(&m, k);
    int64_t context = k->context ? k->context : 400, ring = k->window + MAX_N;
    if (k->context) setenv("EMU_SMS", "132", 1);
    else unsetenv("EMU_SMS");
    DeviceOptions room = {};
    room.max_n = MAX_N;
    room.context = context;
    room.n_threads = room.exact = 1;
    for (int i = 0; i < DEVICES; i++) {
        device[i] = ops[i]->open(&m.c, &m.w, &room, &err);
        if (!device[i]) fail_msg("%s", err.text);
        kv[i] = {};
        kv[i].dtype = k->kv;
        kv[i].slots = k->global ? context : ring;
        kv[i].k_dim = k->v_from_k && k->kv != DT_F8_E4M3 ? 2 * k->turning : k->head_dim;
        kv[i].k = (uint8_t *)ops[i]->alloc(kv[i].slots * k->kv_heads * kv[i].k_dim * dtype_size[k->kv]);
        kv[i].v = (uint8_t *)ops[i]->alloc(kv[i].slots * k->kv_heads * k->head_dim * dtype_size[k->kv]);
    }
    if (k->rounded) device[GPU]->attend_parts = 1;        /* and nothing else */
    int ns[] = {1, 2, 3, 16, 17, 65}, w = k->window;
    int64_t positions[] = {0, 1, w - 1, w, w + 1, ring - 1, ring - 16, 2 * ring - 2, 300};
    for (int n = 1; k->context && n <= 3; n++) step(k, &m, device, kv, context - 4, n);
    for (size_t i = 0; !k->context && i < sizeof ns / sizeof *ns; i++)
        for (size_t j = 0; j < sizeof positions / sizeof *positions; j++)
            if ((!k->few || (i * 9 + j) % 7 == 0) && positions[j] + ns[i] <= context) step(k, &m, device, kv, positions[j], ns[i]);
    for (int i = 0; i < DEVICES; i++) {
        ops[i]->release(kv[i].k, kv[i].slots * k->kv_heads * kv[i].k_dim * dtype_size[k->kv]);
        ops[i]->release(kv[i].v, kv[i].slots * k->kv_heads * k->head_dim * dtype_size[k->kv]);
        ops[i]->close(device[i]);
    }
    release(&m);
}

/* The blocks of attend_kernel join short partial results where launches do not overlap. */
static void joined_by_block(void **arg) {
    const char *chip = getenv("EMU_CC");
    const std::string before = chip ? chip : "";
    setenv("EMU_CC", "8.0", 1);
    same_as_plain(arg);
    if (chip) setenv("EMU_CC", before.c_str(), 1);
    else unsetenv("EMU_CC");
}

int main(int argc, char **argv) {
    enum { N = sizeof cases / sizeof *cases };
    static struct CMUnitTest tests[N];
    for (int i = 0; i < N; i++) {
        tests[i].name = cases[i].name;
        tests[i].test_func = cases[i].head_dim == 48 ? joined_by_block : same_as_plain;
        tests[i].initial_state = (void *)&cases[i];
    }
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("attention", tests, N, NULL, NULL);
}
