/* test_draft.c - drafters against the reference, and tokens that are guessed, verified and forgotten.
 *
 * A case is a drafter's directory NAME, its target's, and NAME.ref.safetensors (made by tests/make_drafter.py; where the
 * reference folder of the project, $GEMMA4_REFERENCE, is at hand, its drafter is a case too).  test_draft_gpu is the same for the
 * emulated GPU. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../draft.h"
#include "../sampler.h"
#include "device.h"

#include <cmocka.h>                     /* after ours: it makes `fail` a macro */

typedef struct {
    const char *dir, *target, *name;
    KvType kv;
    int exact, chunk;
    const Ops *ops;                     /* NULL: DEVICE */
} Case;

static const char *path_of(const Case *k, const char *name, const char *suffix) {
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s%s", k->dir, name, suffix);
    return path;
}

static Model *open_target(const Case *k) {
    Error err;
    Model *m = model_open(path_of(k, k->target, ""), &err);
    if (!m) fail_msg("%s", err.text);
    return m;
}

static Session *open_session_on(const Ops *ops, const Model *m, const Case *k, int context) {
    Error err;
    SessionOptions o = {.ops = ops, .context = context, .chunk = k->chunk, .kv = k->kv, .n_threads = 2, .exact = k->exact};
    Session *s = session_new(m, &o, &err);
    if (!s) fail_msg("%s", err.text);
    return s;
}

static Session *open_session(const Model *m, const Case *k, int context) {
    return open_session_on(k->ops ? k->ops : &DEVICE, m, k, context);
}

static Drafter *open_drafter(const Case *k, const Model *m, Session *s, int n_drafts) {
    Error err;
    Drafter *d = drafter_open(path_of(k, k->name, ""), m, s, n_drafts, NULL, &err);
    if (!d) fail_msg("%s", err.text);
    assert_true(drafter_size(path_of(k, k->name, ""), m) >= drafter_bytes(d));
    assert_int_equal(drafter_size("not there", m), 0);
    return d;
}

static const Tensor *key(const SafeTensors *ref, const char *prompt, const char *name) {
    char full[64];
    snprintf(full, sizeof full, "%s.%s", prompt, name);
    const Tensor *t = safetensors_find(ref, full);
    if (!t) fail_msg("no %s", full);
    return t;
}

static int int_at(const Tensor *t, int i) {
    int v;                              /* little endian: the low half of an I64 */
    memcpy(&v, t->data + 8 * i, sizeof v);
    return v;
}

/* Row `row` of a float32 tensor differs by no more than this share of the tensor's range. */
static void assert_near(const Tensor *t, int row, const float *x, int n, const char *what) {
    const double fair = 2e-5;
    const float *r = (const float *)t->data;
    float low = r[0], high = r[0];
    size_t all = t->n_bytes / 4;
    for (size_t i = 0; i < all; i++) low = fminf(low, r[i]), high = fmaxf(high, r[i]);
    assert_true((size_t)(row + 1) * n <= all);
    for (int i = 0; i < n; i++)
        if (!(fabs((double)x[i] - r[(size_t)row * n + i]) <= fair * (high - low)))
            fail_msg("%s, row %d: [%d] is %g, reference %g", what, row, i, x[i], r[(size_t)row * n + i]);
}

/* Four drafts after a short prompt and after one longer than the window: every layer, the logits, what goes on to the next. */
static void against_reference(void **state) {
    const Case *k = *state;
    static const char *const prompts[] = {"short", "long"};
    Error err;
    SafeTensors *ref = safetensors_open(path_of(k, k->name, ".ref.safetensors"), &err);
    if (!ref) fail_msg("%s", err.text);
    Model *m = open_target(k);
    Session *s = open_session(m, k, 512);
    Drafter *d = open_drafter(k, m, s, 4);
    ModelInfo info;
    model_info(m, &info);
    int hidden = info.config->hidden, vocab = info.config->vocab;
    float *h = xmalloc(hidden * sizeof *h), *logits = xmalloc(vocab * sizeof *logits);
    for (int p = 0; p < 2; p++) {
        const Tensor *prompt = key(ref, prompts[p], "prompt_ids"), *layers = key(ref, prompts[p], "layers_f32");
        Ids ids = {0};
        for (int i = 0; i < prompt->shape[0]; i++) ids_add(&ids, int_at(prompt, i));
        assert_int_equal(session_sync(s, ids.id, ids.n, 0, NULL, &err), 0);
        session_hidden(s, h);
        assert_near(key(ref, prompts[p], "hidden_f32"), 0, h, hidden, "hidden state");
        int token = int_at(key(ref, prompts[p], "token"), 0), rows = layers->shape[1], width = layers->shape[2];
        float *x = xmalloc((size_t)rows * width * sizeof *x);
        for (int i = 0; i < 4; i++) {
            token = drafter_step(d, token, ids.n, h, logits, x);
            /* The reference's last row is after the final norm, which the logits show. */
            for (int l = 0; l < rows - 1; l++) assert_near(layers, i * rows + l, x + l * width, width, "layer");
            assert_near(key(ref, prompts[p], "logits_f32"), i, logits, vocab, "logits");
            assert_near(key(ref, prompts[p], "projected_f32"), i, h, hidden, "projected");
            assert_int_equal(token, int_at(key(ref, prompts[p], "draft_ids"), i));
        }
        free(x);
        ids_free(&ids);
    }
    free(h);
    free(logits);
    drafter_close(d);
    session_free(s);
    model_close(m);
    safetensors_close(ref);
}

/* The same as plain.c computes, after the same tokens, with caches that the reference lacks. */
static void against_plain(void **state) {
    const Case *k = *state;
    Error err;
    Model *m = open_target(k);
    Session *s[2] = {open_session_on(&plain_ops, m, k, 512), open_session_on(&DEVICE, m, k, 512)};
    Drafter *d[2];
    ModelInfo info;
    model_info(m, &info);
    int hidden = info.config->hidden, vocab = info.config->vocab, ids[100] = {2};
    float *h[2], *logits[2];
    for (int i = 1; i < 100; i++) ids[i] = 10 + i * 37 % 400;
    for (int i = 0; i < 2; i++) {
        d[i] = open_drafter(k, m, s[i], 4);
        h[i] = xmalloc(hidden * sizeof(float));
        logits[i] = xmalloc(vocab * sizeof(float));
    }
    for (int n = 3; n <= 100; n += 48) {
        for (int i = 0; i < 2; i++) {
            assert_int_equal(session_sync(s[i], ids, n, 0, NULL, &err), 0);
            session_hidden(s[i], h[i]);
        }
        for (int draft = 0, token = 300; draft < 3; draft++, token = 11 * draft) {
            float low = INFINITY, high = -INFINITY, off = 0;
            memcpy(h[1], h[0], hidden * sizeof *h[1]);
            for (int i = 0; i < 2; i++) drafter_step(d[i], token, n, h[i], logits[i], NULL);
            for (int i = 0; i < vocab; i++) {
                low = fminf(low, logits[0][i]), high = fmaxf(high, logits[0][i]);
                off = fmaxf(off, fabsf(logits[1][i] - logits[0][i]));
            }
            /* A number of the cache may be rounded the other way. */
            if (!(off <= (k->kv == KV_FP8 ? 1e-2 : 1e-3) * (high - low)))
                fail_msg("draft %d after %d tokens is off by %.2e of the range", draft, n, off / (high - low));
        }
    }
    for (int i = 0; i < 2; i++) {
        drafter_close(d[i]);
        session_free(s[i]);
        free(h[i]);
        free(logits[i]);
    }
    model_close(m);
}

/* Two sessions, one of which takes wrong guesses in with every token: the same bits, in every number that follows. */
static void without_a_trace(void **state) {
    const Case *k = *state;
    Error err;
    Model *m = open_target(k);
    Session *plain = open_session(m, k, 512), *guessing = open_session(m, k, 512);
    ModelInfo info;
    model_info(m, &info);
    int vocab = info.config->vocab, hidden = info.config->hidden, n, held;
    size_t bytes = vocab * sizeof(float);
    float *h[2] = {xmalloc(hidden * sizeof(float)), xmalloc(hidden * sizeof(float))};
    assert_int_equal(session_eval(plain, (int[]){2, 300, 17}, 3, NULL, NULL, &err), 0);
    assert_int_equal(session_sync(guessing, (int[]){2, 300, 17}, 3, 3, NULL, &err), 0);
    for (int round = 0; round < 90; round++) {
        /* 1 to 6 tokens, of which the first 1 to all are what will come. */
        int ids[6], count = 1 + round % 6, good = 1 + round * 7 % count;
        for (int i = 0; i < count; i++) ids[i] = (round * 31 + i * 57) % vocab;
        session_ids(guessing, &held);
        assert_int_equal(session_eval(guessing, ids, count, NULL, NULL, &err), 0);
        for (int i = 0; i < good; i++) {
            session_view(guessing, held + i + 1);
            assert_int_equal(session_eval(plain, &ids[i], 1, NULL, NULL, &err), 0);
            assert_int_equal(session_ids(guessing, &n)[held + i], ids[i]);
            assert_int_equal(n, held + i + 1);
            assert_memory_equal(session_logits(guessing), session_logits(plain), bytes);
        }
        session_hidden(plain, h[0]);
        session_hidden(guessing, h[1]);
        assert_memory_equal(h[0], h[1], hidden * sizeof(float));
    }
    /* Back to the mark, which the rings have left far behind, and along another way: that too as if nothing had been guessed. */
    int other[9] = {2, 300, 17, 5, 6, 7, 8, 9, 10}, reused;
    assert_int_equal(session_sync(guessing, other, 9, 3, &reused, &err), 0);
    assert_int_equal(reused, 3);
    assert_int_equal(session_sync(plain, other, 9, 0, NULL, &err), 0);
    assert_memory_equal(session_logits(guessing), session_logits(plain), bytes);
    free(h[0]);
    free(h[1]);
    session_free(plain);
    session_free(guessing);
    model_close(m);
}

/* The same tokens with any number of drafts as with none, to the very end of the context. */
static void same_tokens(void **state) {
    const Case *k = *state;
    Error err;
    Model *m = open_target(k);
    ModelInfo info;
    model_info(m, &info);
    static const int n_drafts[] = {0, 4, MAX_DRAFTS, -1};
    Ids want = {0};
    for (int i = 0; i < (ON_GPU ? 2 : 4); i++) {
        Session *s = open_session(m, k, ON_GPU ? 40 : 100);
        Drafter *d = open_drafter(k, m, s, n_drafts[i]);
        int n, top, room = session_context(s), passes = drafter_stats(d)->passes;
        assert_int_equal(session_sync(s, (int[]){2, 300, 17}, 3, 0, NULL, &err), 0);
        drafter_begin(d);
        for (n = 3; n < room; n++) {
            top_logits(session_logits(s), info.config->vocab, 1, &top);
            if (i == 0) ids_add(&want, top);
            assert_int_equal(top, want.id[n - 3]);
            assert_int_equal(drafter_eval(d, top, 1 << 20, &err), 0);
        }
        drafter_end(d);
        const DraftStats *stats = drafter_stats(d);
        assert_int_equal(stats->tokens, room - 3);
        passes = stats->tokens;
        for (int j = 0; j < MAX_DRAFTS; j++) passes -= stats->accepted[j];
        assert_int_equal(stats->passes, passes);
        if (n_drafts[i] > 0) assert_true(stats->drafted[n_drafts[i] < k->chunk ? n_drafts[i] - 1 : k->chunk - 2] > 0);
        assert_int_equal(drafter_eval(d, 1, 1 << 20, &err), -1);      /* full */
        drafter_close(d);
        session_free(s);
    }
    ids_free(&want);
    model_close(m);
}

/* The next token, and the logits that say so: those of `top`, where the device can tell them, are
 * those of `head`. */
static int next_token(Session *s, int vocab, int k) {
    int best[8], ids[8];
    float logits[8];
    int n = session_top(s, k, ids, logits);
    if (n == 1 && k == 1) return ids[0];
    const float *all = session_logits(s);
    top_logits(all, vocab, k, best);
    for (int i = 0; i < n; i++) {
        assert_int_equal(ids[i], best[i]);
        assert_true(logits[i] == all[best[i]]);
    }
    assert_true(n == k || n == -1);
    return best[0];
}

/* The emulated GPU counts how often the host waits for it; there is no such number elsewhere. */
extern unsigned long long emu_waits __attribute__((weak));

/* A round's drafts, made one after the other by the device, are those that are made one at a time.
 * For a whole round the host waits for the GPU twice: for the drafts, and for the largest logits
 * of all tokens. */
static void rounds(void **state) {
    const Case *k = *state;
    Error err;
    Model *m = open_target(k);
    Session *s = open_session(m, k, 100);
    Drafter *d = open_drafter(k, m, s, 4);
    ModelInfo info;
    model_info(m, &info);
    int vocab = info.config->vocab, n, drafts[4], token;
    float *h = xmalloc(info.config->hidden * sizeof *h);
    assert_int_equal(session_sync(s, (int[]){2, 300, 17}, 3, 0, NULL, &err), 0);
    drafter_begin(d);
    for (int i = 0; i < 5; i++) {
        token = next_token(s, vocab, 1 + i * 3 % 8);
        session_ids(s, &n);
        drafter_round(d, token, 4, drafts);
        session_hidden(s, h);
        for (int j = 0, id = token; j < 4; id = drafts[j++])
            assert_int_equal(drafter_step(d, id, n, h, NULL, NULL), drafts[j]);
        assert_int_equal(drafter_eval(d, token, 1 << 20, &err), 0);
    }
    unsigned long long waits = &emu_waits ? emu_waits : 0;
    int passes = drafter_stats(d)->passes;
    for (int i = 0; i < 16; i++)
        assert_int_equal(drafter_eval(d, next_token(s, vocab, 1), 1 << 20, &err), 0);
    next_token(s, vocab, 1);
    passes = drafter_stats(d)->passes - passes;
    if (&emu_waits) assert_in_range(emu_waits - waits, 1, 2 * passes + 2);
    free(h);
    drafter_close(d);
    session_free(s);
    model_close(m);
}

/* Two sessions with a drafter each, a token in turns: each has the tokens that it has alone,
 * whatever its device has learned. */
static void in_turns(void **state) {
    const Case *k = *state;
    enum { TOKENS = 12 };
    Error err;
    Model *m = open_target(k);
    ModelInfo info;
    model_info(m, &info);
    int told[2][2][TOKENS], begin[2][3] = {{2, 300, 17}, {2, 5, 400}};
    for (int alone = 0; alone < 2; alone++) {
        Session *s[2];
        Drafter *d[2];
        for (int i = 0; i < 2; i++) {
            s[i] = open_session(m, k, 64);
            d[i] = open_drafter(k, m, s[i], 3);
            assert_int_equal(session_sync(s[i], begin[i], 3, 0, NULL, &err), 0);
            drafter_begin(d[i]);
        }
        for (int i = 0; i < 2 * TOKENS; i++) {
            int which = alone ? i / TOKENS : i % 2;
            int *to = &told[alone][which][alone ? i % TOKENS : i / 2];
            *to = next_token(s[which], info.config->vocab, 1);
            assert_int_equal(drafter_eval(d[which], *to, 1 << 20, &err), 0);
        }
        for (int i = 0; i < 2; i++) {
            drafter_close(d[i]);
            session_free(s[i]);
        }
    }
    assert_memory_equal(told[0], told[1], sizeof told[0]);
    model_close(m);
}

/* ---- how many drafts pay: a machine that is disturbed now and then, in numbers ---- */

static double random01(uint64_t *seed) { return (double)((*seed = *seed * 6364136223846793005u + 1442695040888963407u) >> 40) / 16777216; }

/* A measurement: one time in twenty something else ran meanwhile. */
static double disturbed(uint64_t *seed, double t) {
    return t * (1 + 0.1 * random01(seed)) * (random01(seed) < 0.05 ? 3 + 10 * random01(seed) : 1);
}

/* The time of 4000 tokens, disturbances aside, in passes for one token; in the last hundred of every two a pass takes four times as
 * long.  `each`: what a draft adds to a pass; `further`: the head for each token behind the first; right: how often a draft is, in
 * the first and in the second half. */
static double simulated(int adapted, double each, double further, const double right[2]) {
    Adaption a = adaption_new();
    uint64_t seed = 7;
    double sum = 0;
    for (int n = 0; n < 4000; n++) {
        int k = adapted ? adaption_choose(&a) : 0, accepted = 0;
        double pass = n % 200 < 100 ? 1 : 4, t = pass * (1 + k * each);
        adaption_cost(&a, k, disturbed(&seed, t));
        for (; accepted < k && random01(&seed) < right[n >= 2000]; accepted++, n++) {
            adaption_further(&a, disturbed(&seed, pass * further));
            t += pass * further;
        }
        adaption_rate(&a, k, accepted);
        sum += t;
    }
    return sum;
}

static void never_slower(void **state) {
    (void)state;
    static const struct {
        double each, further, right[2], most;       /* of the time without drafts */
    } cases[] = {
        {0.1, 0.1, {0, 0}, 1.03},           /* nothing is right */
        {0.8, 0.1, {0.6, 0.6}, 1.03},       /* too dear for what is right */
        {0.3, 0.6, {0.6, 0.6}, 1.03},       /* what is right is dear too */
        {0.1, 0.1, {0.9, 0.9}, 0.5},        /* it pays all the time, */
        {0.3, 0.1, {0, 0.9}, 0.9},          /* late, */
        {0.3, 0.1, {0.9, 0}, 0.95},         /* for a while */
    };
    for (int i = 0; i < 6; i++) {
        double ratio = simulated(1, cases[i].each, cases[i].further, cases[i].right) / simulated(0, 0, 0, cases[i].right);
        if (ratio > cases[i].most) fail_msg("case %d: %.3f of the time without drafts", i, ratio);
    }
}

int main(void) {
    static Case cases[64];
    static struct CMUnitTest tests[64];
    static char names[64][128];
    const char *shared = getenv("GEMMA4_REFERENCE");
    char shared_dir[1024];
    int n = 0;
    snprintf(shared_dir, sizeof shared_dir, "%s/checkpoints", shared ? shared : "../shared/reference");
    Case drafters[] = {{"tests/fixtures", "odd-bf16", "odd-assistant", KV_F32, 1, 512, NULL},
                       {shared_dir, "bf16", "open-assistant", KV_F32, 1, 512, NULL}};
#define ADD(function, label)                                                                \
    do {                                                                                    \
        snprintf(names[n], sizeof names[n], "%s %s", label, c.name ? c.name : c.target);    \
        cases[n] = c;                                                                       \
        tests[n] = (struct CMUnitTest){names[n], function, NULL, NULL, &cases[n]};          \
        n++;                                                                                \
    } while (0)
    for (int i = 0; i < 2; i++) {
        Case c = drafters[i];
        if (access(path_of(&c, c.name, ""), F_OK)) {
            printf("%s is not here: %s is not tested\n", c.dir, c.name);
            continue;
        }
        ADD(against_reference, "reference:");
        c.kv = KV_BF16;
        ADD(against_plain, "as plain.c, BF16 cache:");
        c.kv = KV_FP8;
        ADD(against_plain, "as plain.c, FP8 cache:");
        c.kv = KV_F32;
        if (ON_GPU) {
            c.chunk = 7, c.kv = KV_BF16;
            ADD(same_tokens, "same tokens, BF16 cache:");
            ADD(rounds, "rounds:");
            ADD(in_turns, "in turns:");
            continue;
        }
        c.ops = &plain_ops;
        ADD(against_reference, "reference, plain:");
        c.chunk = 7, c.kv = KV_FP8;
        ADD(same_tokens, "same tokens, plain:");
        ADD(rounds, "rounds, plain:");
        c.ops = NULL, c.kv = KV_F32;
        ADD(same_tokens, "same tokens, F32 cache:");
        ADD(rounds, "rounds:");
        ADD(in_turns, "in turns:");
        c.exact = 0, c.kv = KV_FP8;
        ADD(same_tokens, "same tokens, FP8 cache:");
        c.chunk = 2, c.kv = KV_BF16;
        ADD(same_tokens, "same tokens, BF16 cache, chunks of 2:");
    }
    /* The rest is about bits, which on a GPU depend on how many tokens come together. */
    if (ON_GPU) return _cmocka_run_group_tests("drafts on the GPU", tests, n, NULL, NULL);
    Case c = {"tests/fixtures", "odd-bf16", NULL, KV_F32, 1, 6, NULL};
    ADD(without_a_trace, "without a trace, F32 cache:");
    c.kv = KV_BF16;
    ADD(without_a_trace, "without a trace, BF16 cache:");
    c.target = "dense", c.kv = KV_FP8, c.exact = 0;
    ADD(without_a_trace, "without a trace, FP8 cache:");
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(never_slower);
    return _cmocka_run_group_tests("draft", tests, n, NULL, NULL);
}
