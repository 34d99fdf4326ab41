/* test_head.cpp - the head on the GPU, emulated: all logits are those of plain.c; the largest are
 * those of all logits, screened or not; the bounds of the int8 copy hold, and rule out what
 * they can; where they rule out too little, the whole head takes over.  A drafter's copy in four
 * bits, and the drafts from it.
 *
 * The model is a head and an embedding without layers. */
#define SCREEN_LEAST 1
#include "../../cuda.cu"

#include <setjmp.h>
#include <stdarg.h>

#include <vector>

extern "C" {
#include "../../sampler.h"
#include <cmocka.h>
}

enum Kind { RANDOM, TIES, EQUAL, SATURATED, BROKEN, WORST_W, WORST_Y, KINDS };

static uint16_t bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static uint64_t state = 1;
static float uniform() {                        /* -1 … 1 */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(state >> 32) * 0x1p-31f;
}
static float bell() { return uniform() + uniform() + uniform(); }

/* A device with this head, and its tokens' x: x[0], x[1] = the embedding's rows.  More tokens than those whose logits are computed
 * together. */
enum { TOKENS = 17 };
static DeviceOptions options(int copy_head) {
    DeviceOptions o = {};
    o.max_n = o.context = TOKENS;
    o.n_threads = o.exact = 1;
    o.copy_head = copy_head;
    return o;
}

struct Model {
    Config c = {};
    Weights w = {};
    std::vector<uint16_t> head, embed;
    std::vector<float> norm, full;
    Device *d = NULL, *target = NULL;           /* target: of a drafter */

    Model(Kind kind, int vocab, int hidden, float softcap) : head((size_t)vocab * hidden), embed(2 * hidden), norm(hidden), full(vocab) {
        c.hidden = hidden, c.vocab = vocab, c.eps = 1e-6f, c.softcap = softcap;
        for (auto &v : norm) v = kind >= WORST_W ? 1 : 1 + 0.5f * uniform();
        for (auto &v : embed) v = bf16(kind == WORST_W ? (uniform() > 0 ? 1.f : -1.f) : kind == WORST_Y ? (float)(int)bell() + 31 / 64.f : bell());
        if (kind == WORST_Y) embed[hidden] = bf16(32512);
        for (int r = 0; r < vocab; r++)
            for (int i = 0; i < hidden; i++) {
                float v = 0.3f * bell(), side = (bf16_to_float(embed[hidden + i]) > 0) == (r % 2 == 0) ? 1.f : -1.f;
                /* What makes the exact logit as much larger (even rows) or smaller than the copy's as Cauchy-Schwarz allows.
                 * Every step of the int8 copy is 2^-10 here, and every weight lies 31/64 of it off, on y's side or the other; or
                 * every y lies 31/64 of its step above, and all weights are equal. */
                if (kind == WORST_W) v = i % 32 == r % 32 ? 127 * 0x1p-10f : ((float)(int)(v * 4) + side * 31 / 64) * 0x1p-10f;
                if (kind == WORST_Y) v = i == 0 ? 0 : r % 2 ? -127 * 0x1p-10f : 127 * 0x1p-10f;
                if (kind == SATURATED) v *= 300;
                if (kind == BROKEN && i == 7 && r % 9 == 0) v = r % 2 ? NAN : r % 4 ? INFINITY : -INFINITY;
                int same = kind == TIES ? r % 23 : 0;
                head[(size_t)r * hidden + i] = r > same && (kind == TIES || kind == EQUAL) ? head[(size_t)same * hidden + i] : bf16(v);
            }
        w.embed = (Weight){DT_BF16, 2, hidden, 0, (const uint8_t *)embed.data(), NULL, 0, DT_OTHER, 0, 0, NULL, NULL};
        w.head = (Weight){DT_BF16, vocab, hidden, 0, (const uint8_t *)head.data(), NULL, 0, DT_OTHER, 0, 0, NULL, NULL};
        w.final_norm = norm.data();
    }
    ~Model() { cuda_close(d); }

    /* how: what GEMMA4_HEAD says. */
    void open_as(const char *how, int copy_head) {
        Error err;
        DeviceOptions o = options(copy_head);
        o.target = target;
        cuda_close(d);
        setenv("GEMMA4_HEAD", how, 1);
        d = cuda_ops.open(&c, &w, &o, &err);
        if (!d) fail_msg("%s", err.text);
        const int ids[TOKENS] = {0, 1};
        cuda_ops.embed(d, ids, TOKENS, 0);
    }
    void open(int screened) { open_as(screened ? "screened" : "whole", 0); }
};

/* The logits of token 1, which the GPU has just computed, and those of the CPU are plain.c's. */
static void check_logits(const Model &m) {
    static const Ops *const host[] = {&plain_ops, &cpu_ops};
    const int ids[2] = {0, 1};
    std::vector<float> logits[2];
    float most = 0;
    for (int i = 0; i < 2; i++) {
        Error err;
        const DeviceOptions room = options(0);
        Device *d = host[i]->open(&m.c, &m.w, &room, &err);
        if (!d) fail_msg("%s", err.text);
        logits[i].resize(m.c.vocab);
        host[i]->embed(d, ids, 2, 0);
        host[i]->head(d, 1, 1, logits[i].data());
        host[i]->close(d);
    }
    for (float l : logits[0]) most = fmaxf(most, fabsf(l));
    for (int r = 0; r < m.c.vocab; r++)
        for (float got : {m.full[r], logits[1][r]})
            if (!(fabsf(got - logits[0][r]) <= 2e-5f * most))
                fail_msg("logit %d is %g, not %g", r, got, logits[0][r]);
}

/* The k largest of token 1 against the sort of all its logits; 0 where the device says that it cannot tell. */
static int check_top(Model &m, int k) {
    std::vector<int> want(m.c.vocab), ids(k, -1);
    std::vector<float> logits(k, NAN);
    int expected = k < m.c.vocab ? k : m.c.vocab, listed = 0;
    top_logits(m.full.data(), m.c.vocab, expected, want.data());
    uint32_t edge = key_of(m.full[want[expected - 1]]) >> KEY_SHIFT << KEY_SHIFT;
    for (float l : m.full) listed += key_of(l) >= edge;
    int n = cuda_ops.top(m.d, 1, k, ids.data(), logits.data());
    if (listed > LISTED) {
        assert_int_equal(n, -1);
        return 0;
    }
    assert_int_equal(n, expected);
    for (int i = 0; i < n; i++) {
        assert_int_equal(ids[i], want[i]);
        assert_true(logits[i] == of_key(key_of(m.full[want[i]])));
    }
    return 1;
}

static std::vector<float> get(const float *device, int n) {
    std::vector<float> v(n);
    check(cudaMemcpy(v.data(), device, 4 * n, cudaMemcpyDeviceToHost), "reading");
    return v;
}

/* Every row's bounds; where the worst case was made, that they are no wider than it is. */
static void check_bounds(Model &m, Kind kind) {
    Device *d = m.d;
    GPU_LAUNCH(screen_kernel, dim3(3), dim3(THREADS), 2 * plane_bytes(d->screen.cols), d->stream, d->head, d->screen, d->x[0] + m.c.hidden, 1, d->final_norm, m.c.eps,
               m.c.softcap, d->logits);
    check(cudaStreamSynchronize(d->stream), "screen");
    std::vector<float> lower = get(d->logits, m.c.vocab), upper = get(d->screen.upper, m.c.vocab), error = get(d->screen.error, m.c.vocab);
    for (int r = 0; r < m.c.vocab; r++) {
        float l = m.full[r];
        if (isfinite(error[r]) && isfinite(l)) assert_true(lower[r] <= l && l <= upper[r] && upper[r] - lower[r] < 1e30f);
        else assert_true(lower[r] == -INFINITY && upper[r] == INFINITY);
        if (kind < WORST_W || m.c.softcap > 0 || m.c.hidden % 32) continue;
        assert_true((r % 2 ? l - lower[r] : upper[r] - l) < 0.08f * (upper[r] - lower[r]));
    }
}

static void test_top(void **) {
    static const struct { int vocab, hidden; float softcap; } shape[] = {{519, 80, 30}, {519, 192, 0}, {4099, 176, 30}, {4099, 80, 0}, {519, 2816, 30}, {37, 77, 30}};
    static const int k[] = {1, 5, 64, 256};
    int told = 0, not_told = 0;
    for (auto &s : shape)
        for (int kind = 0; kind < KINDS; kind++) {
            Model m((Kind)kind, s.vocab, s.hidden, s.softcap);
            for (int screened = 0; screened < 2; screened++) {
                m.open(screened);
                std::vector<float> before = m.full;
                cuda_ops.head(m.d, 1, 1, m.full.data());
                if (screened) assert_memory_equal(before.data(), m.full.data(), 4 * s.vocab);
                else if (kind < SATURATED) check_logits(m);     /* the others cancel */
                for (int n : k) *(check_top(m, n) ? &told : &not_told) += 1;
                if (screened) check_bounds(m, (Kind)kind);
            }
        }
    assert_true(told > 200 && not_told > 0);    /* 4099 equal ones are more than are listed */
}

/* The largest of given numbers, the odd ones among them: the same order as top_logits'. */
static void test_select(void **) {
    static const float odd[] = {-0.f, 0, NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_MIN, -FLT_MIN, 0x1p-149f, 1, -1, 30};
    Model m(RANDOM, 3000, 16, 30);
    m.open(0);
    for (int round = 0; round < 8; round++) {
        int n = round < 4 ? 20 + 100 * round : 3000;
        for (auto &v : m.full) v = round % 2 || uniform() > 0 ? odd[(unsigned)(100 * uniform() + 100) % 13] : bell();
        for (int k : {1, 2, 20, 200}) {
            Top top;
            std::vector<int> want(n);
            if (k > n) continue;
            check(cudaMemcpy(m.d->logits, m.full.data(), 4 * n, cudaMemcpyHostToDevice), "writing");
            Device *d = m.d;
            GPU_LAUNCH(count_kernel, dim3(2), dim3(TOP_THREADS), 0, d->stream, d->logits, n, k,
                       d->step, (const int *)NULL, d->selection);
            GPU_LAUNCH(collect_kernel, dim3(3), dim3(TOP_THREADS), 0, d->stream, d->logits, n, k,
                       d->step, d->selection, d->top);
            check(cudaMemcpyAsync(&top, d->top, sizeof top, cudaMemcpyDeviceToHost, d->stream),
                  "reading");
            check(cudaStreamSynchronize(m.d->stream), "waiting");
            top_logits(m.full.data(), n, k, want.data());
            assert_int_equal(top.n, k);
            assert_memory_equal(top.id, want.data(), 4 * k);
            if (k > 1) continue;        /* a draft, the second of its round */
            Step step = {0, 0, 1, {7}};
            int token = 0;
            check(cudaMemcpy(m.d->step, &step, sizeof step, cudaMemcpyHostToDevice), "writing");
            GPU_LAUNCH(best_kernel, dim3(2), dim3(TOP_THREADS), 0, d->stream, d->logits, n,
                       d->selection, d->step, d->ids);
            check(cudaStreamSynchronize(m.d->stream), "waiting");
            check(cudaMemcpy(&step, m.d->step, sizeof step, cudaMemcpyDeviceToHost), "reading");
            check(cudaMemcpy(&token, m.d->ids, sizeof token, cudaMemcpyDeviceToHost), "reading");
            assert_true(step.n_drafts == 2 && step.draft[0] == 7);
            assert_true(step.draft[1] == want[0] && token == want[0]);
        }
    }
}

/* Of rows that differ as those of a real head do, few are left to be computed. */
static void test_screen_rules_out(void **) {
    Model m(RANDOM, 4099, 2816, 30);
    for (auto &v : m.head) v = bf16(bf16_to_float(v) * 0.1f);      /* logits of about -8 … 8 */
    m.open(1);
    cuda_ops.head(m.d, 1, 1, m.full.data());
    for (int k : {1, 16}) {
        assert_true(check_top(m, k));
        int computed = 0;
        for (float l : get(m.d->logits, 4099)) computed += l > -INFINITY;
        print_message("k = %d: %d of 4099 rows computed\n", k, computed);
        assert_true(computed >= k && computed < 4099 / 4);
    }
}

static int tiles_left(const Model &m) {
    int n;
    check(cudaMemcpy(&n, m.d->screen.few, sizeof n, cudaMemcpyDeviceToHost), "reading");
    return n;
}

/* Of rows that are all equal none can be ruled out: the whole head takes over, with attempts after
 * 1, 2, 4 … 64 steps.  The logits are always the same.  When attempts pay again, every step is
 * screened. */
static void test_whole_head_takes_over(void **) {
    Model m(EQUAL, 519, 192, 30);
    m.open_as("", 1);
    cuda_ops.head(m.d, 1, 1, m.full.data());
    int next_attempt = 0, skipped = 1, attempts = 0;
    for (int step = 0; step < 200; step++) {
        assert_true(check_top(m, step % 2 ? 64 : 1));
        assert_int_equal(tiles_left(m), step == next_attempt ? tiles_of(519) : -1);
        if (step < next_attempt) continue;
        attempts++;
        next_attempt += 1 + skipped;
        if (skipped < 64) skipped *= 2;
    }
    assert_int_equal(attempts, 9);              /* 0, 2, 5, 10, 19, 36, 69, 134, 199 */
    m.d->screen.worth = tiles_of(519);
    for (int step = 0; step < 80; step++) {
        assert_true(check_top(m, 5));
        assert_int_equal(tiles_left(m), step < 64 ? -1 : tiles_of(519));
    }
    m.open(1);                                  /* forced: it never does */
    for (int step = 0; step < 5; step++) {
        assert_true(check_top(m, 5));
        assert_int_equal(tiles_left(m), tiles_of(519));
    }
}

/* The same in a graph, as a drafter's; and with a head that is worth it: nothing takes over. */
static void test_recorded(void **) {
    for (Kind kind : {EQUAL, RANDOM}) {
        Model m(kind, 519, 2816, 30);
        for (auto &v : m.head) v = bf16(bf16_to_float(v) * 0.1f);
        m.open_as("", 1);
        Device *d = m.d;
        cuda_ops.head(d, 1, 1, m.full.data());
        int best, id, whole = 0;
        top_logits(m.full.data(), m.c.vocab, 1, &best);
        cudaGraph_t graph;
        cudaGraphExec_t recorded;
        check(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeRelaxed), "recording");
        launch_screened(d, 1, 1, 1);
        GPU_LAUNCH(best_kernel, dim3(top_blocks(d)), dim3(TOP_THREADS), 0, d->stream, d->logits,
                   m.c.vocab, d->selection, d->step, d->ids);
        check(cudaStreamEndCapture(d->stream, &graph), "recording");
        check(cudaGraphInstantiate(&recorded, graph, 0), "recording");
        for (int step = 0; step < MAX_DRAFTS; step++) {
            check(cudaGraphLaunch(recorded, d->stream), "a step");
            check(cudaStreamSynchronize(d->stream), "a step");
            check(cudaMemcpy(&id, d->ids, sizeof id, cudaMemcpyDeviceToHost), "reading");
            assert_int_equal(id, best);
            whole += tiles_left(m) < 0;
        }
        assert_int_equal(whole, kind == EQUAL ? 11 : 0);        /* but the steps 0, 2, 5, 10 */
        check(cudaGraphExecDestroy(recorded), "recording");
        check(cudaGraphDestroy(graph), "recording");
    }
}

/* The logits of token 1 by the drafter's copy, which is checked too: no weight is off by more than half a step, or a whole one next to
 * the eighth on the other side. */
static std::vector<double> draft_logits(const Model &m) {
    const Device *d = m.d;
    const int hidden = m.c.hidden, cols = d->draft_head.cols, blocks = cols / 32;
    std::vector<uint8_t> q((size_t)m.c.vocab * cols / 2);
    std::vector<uint16_t> scales((size_t)m.c.vocab * blocks);
    check(cudaMemcpy(q.data(), d->draft_head.q, q.size(), cudaMemcpyDeviceToHost), "reading");
    check(cudaMemcpy(scales.data(), d->draft_head.scale, 2 * scales.size(), cudaMemcpyDeviceToHost), "reading");
    std::vector<float> y = get(d->x[0] + hidden, hidden);
    float most = 0;
    for (int i = 0; i < hidden; i++) y[i] *= m.norm[i], most = fmaxf(most, fabsf(y[i]));
    std::vector<double> logits(m.c.vocab);
    for (int r = 0; r < m.c.vocab; r++)
        for (int i = 0; i < hidden; i++) {
            const size_t block = (size_t)r * blocks + i / 32;
            const int b = block % 32, byte = q[16 * block + i % 16], nibble = i % 32 < 16 ? byte & 15 : byte >> 4;
            const float scale = bf16_to_float(scales[block / 32 * 32 + b % 4 * 8 + b / 4]), w = bf16_to_float(m.head[(size_t)r * hidden + i]);
            const int is = nibble < 8 ? nibble : nibble - 16;
            assert_true(fabsf(w - scale * is) <= (is == 7 ? 1.01f : 0.51f) * fabsf(scale));
            logits[r] += scale * is * rintf(y[i] * (127 / most));
        }
    return logits;
}

/* A draft is the largest logit by the copy, of equal ones the first. */
static void test_draft(void **) {
    static const struct { int vocab, hidden; } shape[] = {{519, 80}, {37, 77}, {519, 1024}, {2051, 1100}};
    int as_exact = 0;
    for (auto &s : shape)
        for (Kind kind : {RANDOM, TIES, SATURATED, BROKEN}) {
            Model target(RANDOM, 37, s.hidden, 0), m(kind, s.vocab, s.hidden, 0);
            target.open(0);
            m.c.backbone = s.hidden;
            m.target = target.d;
            m.open(1);
            Device *d = m.d;
            cuda_ops.head(d, 1, 1, m.full.data());
            Step step = {0, 0, 1, {7}};
            check(cudaMemcpy(d->step, &step, sizeof step, cudaMemcpyHostToDevice), "writing");
            GPU_LAUNCH(draft_kernel, dim3(3), dim3(THREADS), d->draft_head.cols, d->stream, d->draft_head, m.c.vocab, d->x[0] + s.hidden,
                       d->final_norm, s.hidden, d->selection, d->step, d->ids);
            check(cudaStreamSynchronize(d->stream), "waiting");
            check(cudaMemcpy(&step, d->step, sizeof step, cudaMemcpyDeviceToHost), "reading");
            const int draft = step.draft[1];
            int id, best;
            check(cudaMemcpy(&id, d->ids, sizeof id, cudaMemcpyDeviceToHost), "reading");
            assert_true(step.n_drafts == 2 && step.draft[0] == 7 && id == draft && draft >= 0 && draft < s.vocab);
            if (kind == BROKEN) continue;
            const std::vector<double> logits = draft_logits(m);
            double largest = 0;
            for (double l : logits) largest = fmax(largest, l);
            assert_true(logits[draft] >= largest * (1 - 1e-5) && (kind != TIES || draft < 23));
            top_logits(m.full.data(), s.vocab, 1, &best);
            as_exact += draft == best;
        }
    print_message("%d of 12 drafts are those of the head itself\n", as_exact);
    assert_true(as_exact >= 9);
}

/* A NaN in x reaches every logit: nothing is ruled out, nothing hangs, and the lowest ids are the answer. */
static void test_nan(void **) {
    Model m(RANDOM, 519, 176, 30);
    m.norm[5] = NAN;
    for (int screened = 0; screened < 2; screened++) {
        m.open(screened);
        cuda_ops.head(m.d, 1, 1, m.full.data());
        assert_true(isnan(m.full[0]));
        assert_true(check_top(m, 64));
    }
}

/* 48 KB of shared memory are not enough for a norm; several tokens at once and one agree. */
static void test_wide(void **) {
    setenv("EMU_CC", "9.0", 1);
    Model m(RANDOM, 37, 12544, 30);
    std::vector<float> h(m.c.hidden), two(2 * m.c.vocab);
    m.open(0);
    cuda_ops.hidden(m.d, 1, h.data());
    cuda_ops.head(m.d, 0, 2, two.data());
    cuda_ops.head(m.d, 1, 1, m.full.data());
    for (int i = 0; i < m.c.vocab; i++) assert_true(fabsf(two[m.c.vocab + i] - m.full[i]) < 1e-4f);
    assert_true(isfinite(h[0]) && h[0] != 0);
    unsetenv("EMU_CC");
}

/* Logits of a few tokens at once (few_head_kernel) have the bits that each token's have alone. */
static void test_few(void **) {
    setenv("EMU_CC", "9.0", 1);
    for (int hidden : {77, 80, 192, 2816})
        for (int n = 2; n <= HEAD_TOKENS; n++) {
            Model m(RANDOM, 519, hidden, n % 2 ? 30 : 0);
            std::vector<float> x(TOKENS * hidden);
            for (auto &v : x) v = bell();
            m.open(0);
            assert_true(has_few_head(m.d, n) && !has_few_head(m.d, HEAD_TOKENS + 1));
            check(cudaMemcpy(m.d->x[m.d->at], x.data(), 4 * x.size(), cudaMemcpyHostToDevice), "writing");
            launch_head(m.d, 3, n, NULL);
            check(cudaStreamSynchronize(m.d->stream), "waiting");
            const std::vector<float> few = get(m.d->logits, n * 519);
            for (int i = 0; i < n; i++) {
                launch_head(m.d, 3 + i, 1, NULL);
                check(cudaStreamSynchronize(m.d->stream), "waiting");
                const std::vector<float> alone = get(m.d->logits, 519);
                assert_memory_equal(alone.data(), few.data() + i * 519, 4 * 519);
            }
        }
    unsetenv("EMU_CC");
}

/* The largest logits of a few tokens, screened, are those of all of their logits. */
static void test_few_screened(void **) {
    static const struct { int vocab, hidden; } shape[] = {{519, 2816}, {4099, 80}};
    setenv("EMU_CC", "9.0", 1);
    for (auto &s : shape)
        for (Kind kind : {RANDOM, TIES, EQUAL, BROKEN})
            for (int n = 2; n <= HEAD_TOKENS; n++) {
                const int k = n == 3 ? 1 : 64, ids[HEAD_TOKENS] = {};
                Model m(kind, s.vocab, s.hidden, n % 2 ? 30 : 0);
                std::vector<float> x(n * s.hidden), logits(n * k);
                std::vector<int> top(n * k), count(n), want(s.vocab);
                for (auto &v : x) v = bell();
                m.open(1);
                assert_true(is_screened(m.d, n) && !is_screened(m.d, HEAD_TOKENS + 1));
                cuda_ops.embed(m.d, ids, n, 0);
                check(cudaMemcpy(m.d->x[m.d->at], x.data(), 4 * x.size(), cudaMemcpyHostToDevice), "writing");
                for (int t = 0; t < n; t++) count[t] = cuda_ops.top(m.d, t, k, &top[t * k], &logits[t * k]);
                assert_false(m.d->all_logits);
                assert_true(kind != RANDOM || s.hidden < 2816 || k > 1 || tiles_left(m) < tiles_of(s.vocab));
                for (int t = 0; t < n; t++) {
                    cuda_ops.head(m.d, t, 1, m.full.data());
                    top_logits(m.full.data(), s.vocab, k, want.data());
                    if (count[t] < 0) assert_true(kind == EQUAL && s.vocab > LISTED);
                    for (int i = 0; i < count[t]; i++) {
                        assert_int_equal(top[t * k + i], want[i]);
                        assert_true(logits[t * k + i] == of_key(key_of(m.full[want[i]])));
                    }
                }
            }
    unsetenv("EMU_CC");
}

/* A head in float32 is not screened; what else the variable may say is refused. */
static void test_refused(void **) {
    Model m(RANDOM, 37, 16, 30);
    Error err;
    std::vector<float> wide(m.head.size());
    for (size_t i = 0; i < wide.size(); i++) wide[i] = bf16_to_float(m.head[i]);
    m.w.head.dtype = DT_F32, m.w.head.data = (const uint8_t *)wide.data();
    m.open(0);
    cuda_ops.head(m.d, 1, 1, m.full.data());
    assert_true(check_top(m, 5));
    m.open_as("", 1);                           /* there is no copy of such a head */
    assert_false(m.d->screened);
    const DeviceOptions room = options(0);
    setenv("GEMMA4_HEAD", "screened", 1);
    assert_null(cuda_ops.open(&m.c, &m.w, &room, &err));
    assert_string_equal(err.text, "GEMMA4_HEAD=screened: the head is F32, must be BF16");
    setenv("GEMMA4_HEAD", "fast", 1);
    assert_null(cuda_ops.open(&m.c, &m.w, &room, &err));
    assert_string_equal(err.text, "GEMMA4_HEAD is \"fast\", must be \"screened\" or \"whole\"");
    setenv("GEMMA4_HEAD", "", 1);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_top),
        cmocka_unit_test(test_select),
        cmocka_unit_test(test_screen_rules_out),
        cmocka_unit_test(test_whole_head_takes_over),
        cmocka_unit_test(test_recorded),
        cmocka_unit_test(test_draft),
        cmocka_unit_test(test_nan),
        cmocka_unit_test(test_wide),
        cmocka_unit_test(test_few),
        cmocka_unit_test(test_few_screened),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
