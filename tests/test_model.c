/* test_model.c - the engine against the reference: every layout, every kind of layer, logits,
 * router choices, greedy continuations, whatever the chunk, the number of threads and the kernels,
 * and as plain.c computes them.  Compiled with -DGPU and linked with the emulated kernels, it is
 * the test of the GPU's operations.
 *
 * A case is a checkpoint directory NAME and what transformers computes with it, NAME.ref.safetensors (made by
 * tests/make_fixtures.py).  tests/fixtures holds the project's own; where the reference folder of the project
 * ($GEMMA4_REFERENCE) is at hand, its checkpoints are cases too. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../json.h"
#include "../kernels.h"
#include "../session.h"
#include "../sampler.h"
#include "device.h"

#include <cmocka.h>                     /* after ours: it makes `fail` a macro */

typedef struct {
    const char *dir;                    /* where NAME and NAME.ref.safetensors are */
    const char *name;
    const char *prefix;                 /* of the reference's keys: "", "bf16kv_" or "fp8_" */
    KvType kv;
    int chunk, n_threads;
    const char *cpu;                    /* one of KERNEL_NAMES; NULL: the machine's best */
    int rounded;                        /* activations may be */
    const Ops *ops;                     /* NULL: DEVICE */
    /* The continuation: 64 tokens, each in a step; the first 8 so, the others together; 8 alone. */
    enum { EACH, TOGETHER, EIGHT } tokens;
    int cpu_experts;                    /* a GPU leaves the experts of the first so many layers to the CPU, */
    int slots;                          /* and has slots for so many experts of each */
} Case;

static const char *path_of(const Case *k, const char *suffix, char path[1024]) {
    snprintf(path, 1024, "%s/%s%s", k->dir, k->name, suffix);
    return path;
}

/* What is fair, as a share of the reference's max - min: the largest difference of a logit and the mean.  With a rounded
 * cache one rounding that flips moves a few logits by much, so that the mean is the sharper of the two; the reference says
 * how much. */
typedef struct {
    double largest, mean;
} Tolerance;
static const Tolerance float32 = {1e-5, 1e-6};          /* float32 activations and cache: ten times what is measured */
static const Tolerance rounded16 = {4e-4, 3e-5};        /* activations of 16 bits: five times what is measured */

static Tolerance tolerance(const Case *k) {
    char name[64], mean[64];
    char path[1024];
    Buf text = {0};
    if (k->kv == KV_F32) return k->rounded ? rounded16 : float32;
    /* With its prompt float32 noise rounds no K or V the other way; rounded activations do. */
    int fp8kv = !strcmp(k->prefix, "fp8kv_");
    if (fp8kv) return k->rounded ? (Tolerance){0.1, 3e-3} : (Tolerance){2e-3, 1e-4};
    snprintf(name, sizeof name, "%slogits_f32", k->prefix);
    snprintf(mean, sizeof mean, "%slogits_f32_mean", k->prefix);
    assert_int_equal(read_file(path_of(k, ".ref.json", path), &text, NULL), 0);
    cJSON *o = json_object(text.data, text.len, NULL);
    const cJSON *said = json_field(o, "tolerance");
    assert_non_null(said);
    /* Rounded activations round more of K and V the other way: up to 1.75 times as far with the BF16
     * weights of 13 bits that AVX-512 has. */
    double more = k->rounded ? 2 : 1;
    Tolerance t = {more * json_field(said, name)->valuedouble,
                   more * json_field(said, mean)->valuedouble};
    cJSON_Delete(o);
    buf_free(&text);
    return t;
}

static SafeTensors *open_ref(const Case *k) {
    char path[1024];
    Error err;
    SafeTensors *st = safetensors_open(path_of(k, ".ref.safetensors", path), &err);
    if (!st) fail_msg("%s", err.text);
    return st;
}

/* The reference's tensor: with the prefix in front, or, as some references spell it, before the
 * last word: logits_fp8kv_f32. */
static const Tensor *key(const SafeTensors *ref, const Case *k, const char *name) {
    char full[64];
    const char *last = strrchr(name, '_');
    snprintf(full, sizeof full, "%s%s", k->prefix, name);
    const Tensor *t = safetensors_find(ref, full);
    if (t || !*k->prefix || !last) return t;
    snprintf(full, sizeof full, "%.*s_%s%s", (int)(last - name), name, k->prefix, last + 1);
    return safetensors_find(ref, full);
}

/* A tensor of whole numbers, I32 or I64 as its size tells, for the reader's count of them. */
static int int_at(const Tensor *t, size_t i) {
    size_t count = 1;
    for (int k = 0; k < t->n_dims; k++) count *= t->shape[k];
    int v;                              /* little endian: the low half of an I64 */
    memcpy(&v, t->data + i * (t->n_bytes / count), sizeof v);
    return v;
}

static Ids ids_of(const Tensor *t) {
    Ids ids = {0};
    assert_non_null(t);
    for (int i = 0; i < t->shape[t->n_dims - 1]; i++) ids_add(&ids, int_at(t, i));
    return ids;
}

static Model *open_model(const Case *k) {
    char path[1024];
    Error err;
    Model *m = model_open(path_of(k, "", path), &err);
    if (!m) fail_msg("%s", err.text);
    return m;
}

static Session *open_session(const Model *m, const Case *k) {
    ModelInfo info;
    Error err;
    model_info(m, &info);
    SessionOptions o = {.ops = k->ops ? k->ops : &DEVICE, .context = 512, .chunk = k->chunk,
                        .picture = 16, .kv = k->kv, .n_threads = k->n_threads,
                        .exact = !k->rounded, .cpu_experts = k->cpu_experts,
                        .expert_slots = k->slots};
    if (k->cpu) setenv("GEMMA4_CPU", k->cpu, 1);
    else unsetenv("GEMMA4_CPU");
    Session *s = session_new(m, &o, &err);
    if (!s) fail_msg("%s", err.text);
    return s;
}

/* Largest |difference| of x[0..n) from the tensor's numbers from index `from` on, as a share of the range of all of it;
 * the sum of them is added to *sum, if not NULL. */
static double difference(const Tensor *t, size_t from, const float *x, size_t n, double *sum) {
    size_t all = t->n_bytes / 4;
    const float *r = (const float *)t->data;
    float low = r[0], high = r[0];
    double worst = 0;
    for (size_t i = 0; i < all; i++) {
        if (r[i] < low) low = r[i];
        if (r[i] > high) high = r[i];
    }
    assert_true(from + n <= all);
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - r[from + i]);
        if (!(d <= worst)) worst = d;
        if (sum) *sum += d / (high - low);
    }
    return worst / (high - low);
}

typedef struct {
    const Case *k;
    const SafeTensors *ref;
    const Config *c;
    double logits, sum, hidden;         /* worst differences so far, and the sum of all of the logits' */
    int routes_compared, hidden_compared;
} Checks;

static void check_logits(void *arg, int64_t pos, const float *logits) {
    Checks *ch = arg;
    double d = difference(key(ch->ref, ch->k, "logits_f32"), pos * ch->c->vocab, logits, ch->c->vocab, &ch->sum);
    if (!(d <= ch->logits)) ch->logits = d;
}

/* hidden_f32 [1 + n_layers][positions][hidden]: embeddings, then each layer; the last is after the final norm, which
 * the logits cover.  hidden_positions: which positions these are, if not all.  router_topk [n_layers][positions][top_k]. */
static void check_layer(void *arg, int layer, int64_t pos, int n, const float *x, const int *expert, const float *weight) {
    Checks *ch = arg;
    const Tensor *hidden = key(ch->ref, ch->k, "hidden_f32"), *topk = key(ch->ref, ch->k, "router_topk_f32");
    (void)weight;
    if (hidden && layer + 2 <= ch->c->n_layers) {
        const Tensor *which = key(ch->ref, ch->k, "hidden_positions");
        for (int i = 0; i < hidden->shape[1]; i++) {
            int64_t p = which ? int_at(which, i) : i;
            if (p < pos || p >= pos + n) continue;
            double d = difference(hidden, ((layer + 1) * hidden->shape[1] + i) * ch->c->hidden, x + (p - pos) * ch->c->hidden,
                                  ch->c->hidden, NULL);
            if (!(d <= ch->hidden)) ch->hidden = d;
            ch->hidden_compared++;
        }
    }
    if (!topk || !expert || pos + n > topk->shape[1]) return;
    for (int t = 0; t < n; t++)
        for (int k = 0; k < ch->c->top_k; k++) {
            int want = int_at(topk, (layer * topk->shape[1] + pos + t) * ch->c->top_k + k);
            if (want != expert[t * ch->c->top_k + k])
                fail_msg("layer %d position %d choice %d: expert %d, reference %d", layer, (int)pos + t, k, expert[t * ch->c->top_k + k],
                         want);
            ch->routes_compared++;
        }
}

/* Which of the five largest logits is the first whose token the checkpoint does not suppress. */
static int first_allowed(const Model *m, const int *ids) {
    const GenerationConfig *g = model_generation(m);
    int at = 0;
    for (int i = 0; i < g->n_suppress; i++)
        if (ids[at] == g->suppress[i]) at++, i = -1;
    return at;
}

/* The 64 tokens of a greedy continuation, the first of which stands at position `begin`. */
typedef struct {
    const Model *m;
    const int *id;
    int64_t begin;
} Greedy;

/* The logits of each of these positions must choose the token that the reference has next. */
static void check_next(void *arg, int64_t pos, const float *logits) {
    const Greedy *g = arg;
    ModelInfo info;
    int top[5], at = (int)(pos - g->begin) + 1;
    model_info(g->m, &info);
    top_logits(logits, info.config->vocab, 5, top);
    int next = top[first_allowed(g->m, top)];
    if (next != g->id[at]) fail_msg("greedy token %d: %d, reference %d", at, next, g->id[at]);
}

static void against_reference(void **state) {
    const Case *k = *state;
    Error err;
    SafeTensors *ref = open_ref(k);
    Model *m = open_model(k);
    Session *s = open_session(m, k);
    ModelInfo info;
    model_info(m, &info);
    Checks ch = {.k = k, .ref = ref, .c = info.config};
    Ids ids = ids_of(safetensors_find(ref, "ids"));
    session_trace(s, check_layer, &ch);
    assert_int_equal(session_eval(s, ids.id, ids.n, check_logits, &ch, &err), 0);
    Tolerance fair = tolerance(k);
    double mean = ch.sum / ids.n / info.config->vocab;
    if (!(ch.logits <= fair.largest && mean <= fair.mean && ch.hidden <= fair.largest))
        fail_msg("off by %.2e at most (%.2e), %.2e on average (%.2e), hidden states by %.2e of the range", ch.logits, fair.largest, mean,
                 fair.mean, ch.hidden);
    if (key(ref, k, "hidden_f32")) assert_true(ch.hidden_compared > 0);
    if (info.config->n_experts && key(ref, k, "router_topk_f32")) assert_true(ch.routes_compared > 0);

    Ids greedy = ids_of(key(ref, k, "greedy_ids"));
    int from = greedy.n == 64 ? 0 : ids.n, n_top = 0;   /* the prompt and 64 more, or the 64 alone */
    int singly = k->tokens == EACH ? 64 : 8;
    session_trace(s, NULL, NULL);
    assert_int_equal(greedy.n - from, 64);
    for (int i = from; i < from + singly; i++) {
        float value[5];
        int top[5], want[5], n = session_top(s, 5, top, value);
        const float *logits = session_logits(s);
        top_logits(logits, info.config->vocab, 5, want);
        if (ON_GPU) assert_int_equal(n, 5);
        if (n == 5) n_top++;            /* on the CPU after a few */
        for (int j = 0; j < n; j++) assert_true(top[j] == want[j] && value[j] == logits[want[j]]);
        int next = want[first_allowed(m, want)];
        if (next != greedy.id[i]) fail_msg("greedy token %d: %d, reference %d", i - from, next, greedy.id[i]);
        assert_int_equal(session_eval(s, &next, 1, NULL, NULL, &err), 0);
    }
    Greedy rest = {m, greedy.id + from, ids.n};
    if (k->tokens == TOGETHER) {
        check_next(&rest, ids.n + singly - 1, session_logits(s));
        assert_int_equal(session_eval(s, greedy.id + from + singly, 63 - singly, check_next, &rest, &err), 0);
    }
    int screened = model_weights(m)->head.dtype == DT_BF16 && info.config->hidden % 16 == 0;
    if (k->cpu && strcmp(k->cpu, "c") && screened) assert_true(n_top > 32);
    ids_free(&ids);
    ids_free(&greedy);
    session_free(s);
    model_close(m);
    safetensors_close(ref);
}

static int layers_of(const Case *k) {
    Model *m = open_model(k);
    ModelInfo info;
    model_info(m, &info);
    int n_layers = info.config->n_layers;
    model_close(m);
    return n_layers;
}

/* The experts of the first layer on the CPU, of the first two, … of all. */
static void every_split(void **state) {
    Case k = *(const Case *)*state;
    for (k.cpu_experts = layers_of(&k); k.cpu_experts > 0; k.cpu_experts--) against_reference((void *[]){&k});
}

/* Those of all layers, with slots for one expert, for half of them, for all. */
static void every_slots(void **state) {
    Case k = *(const Case *)*state;
    Model *m = open_model(&k);
    ModelInfo info;
    model_info(m, &info);
    const int experts = info.config->n_experts;
    k.cpu_experts = info.config->n_layers;
    model_close(m);
    for (int i = 0; i < 3; i++) {
        k.slots = (int[]){1, (experts + 1) / 2, experts}[i];
        against_reference((void *[]){&k});
    }
}

/* Those of half the layers. */
static void half_split(void **state) {
    Case k = *(const Case *)*state;
    k.cpu_experts = (layers_of(&k) + 1) / 2;
    against_reference((void *[]){&k});
}

/* The emulated GPU counts how often the host waits for it, and the graphs that it gets; there are
 * no such numbers elsewhere. */
extern unsigned long long emu_waits __attribute__((weak)), emu_graphs __attribute__((weak));

/* n tokens, and the largest logit of the last: as so many graphs, and with one wait of the host. */
static void step_of_graphs(Session *s, int n, unsigned graphs) {
    static const int ids[] = {2, 300, 17, 5, 9, 11, 3, 4};
    const unsigned long long waits = emu_waits, graphs_before = emu_graphs;
    int top;
    float value;
    Error err;
    assert_int_equal(session_eval(s, ids, n, NULL, NULL, &err), 0);
    assert_int_equal(session_top(s, 1, &top, &value), 1);
    assert_int_equal(emu_waits - waits, 1);
    assert_int_equal(emu_graphs - graphs_before, graphs);
}

/* A step with experts on the CPU is a graph when its length comes for the second time, and the host
 * does not wait in the middle of any step.  On a GPU that ends kernels that run long no step is a
 * graph, nor where launches wait for their kernels. */
static void no_wait_within_a_step(void **state) {
    static const char *const name[] = {"EMU_TIMEOUT", "CUDA_LAUNCH_BLOCKING"};
    const Case *k = *state;
    if (!&emu_waits) skip();
    for (int i = 0; i < 3; i++) {
        if (i < 2) setenv(name[i], "1", 1);
        Model *m = open_model(k);
        Session *s = open_session(m, k);
        for (int n = 1; n <= 8; n += n < 2 ? 1 : 3) {
            if (n > 1) step_of_graphs(s, n, 0);
            for (int again = 0; again < 2; again++) step_of_graphs(s, n, i == 2);
        }
        session_free(s);
        model_close(m);
        if (i < 2) unsetenv(name[i]);
    }
}

/* The same bits, whatever the chunk (at most the case's) and the number of threads, token by token, and through a
 * reused prefix: rewound within the ring, from a mark, and from nothing. */
static void same_bits(void **state) {
    const Case *k = *state;
    Error err;
    SafeTensors *ref = open_ref(k);
    Model *m = open_model(k);
    ModelInfo info;
    model_info(m, &info);
    Ids ids = ids_of(safetensors_find(ref, "ids")), longer = {0};
    size_t bytes = info.config->vocab * sizeof(float);
    for (int i = 0; i < 400; i++) ids_add(&longer, ids.id[i % ids.n]);
    float *want = xmalloc(bytes), *want_longer = xmalloc(bytes);
    int chunks[] = {512, 1, 7, 64, 7}, reused, n_threads[] = {1, 1, 2, 3, 1};
    for (int i = 0; i < 5; i++) {
        Case c = *k;
        c.chunk = chunks[i] < k->chunk ? chunks[i] : k->chunk;
        c.n_threads = n_threads[i];
        Session *s = open_session(m, &c);
        assert_int_equal(session_sync(s, ids.id, ids.n, 60, NULL, &err), 0);
        if (i == 0) memcpy(want, session_logits(s), bytes);
        assert_memory_equal(want, session_logits(s), bytes);

        /* The answer that began at 60 goes on past the ring; then the conversation returns to 60 and goes another way. */
        assert_int_equal(session_sync(s, longer.id, longer.n, 60, &reused, &err), 0);
        assert_int_equal(reused, ids.n);
        if (i == 0) memcpy(want_longer, session_logits(s), bytes);
        assert_memory_equal(want_longer, session_logits(s), bytes);
        int other = longer.id[60];
        longer.id[60] = (other + 1) % info.config->vocab;
        assert_int_equal(session_sync(s, longer.id, 70, 60, &reused, &err), 0);
        assert_int_equal(reused, 60);   /* with chunks of 1 the ring of 25 had gone on: the mark served */
        longer.id[60] = other;
        assert_int_equal(session_sync(s, longer.id, longer.n, 60, &reused, &err), 0);
        assert_int_equal(reused, 60);
        assert_memory_equal(want_longer, session_logits(s), bytes);
        /* A place that nobody marked: evaluated again, then remembered. */
        assert_int_equal(session_sync(s, longer.id, 30, 0, &reused, &err), 0);
        assert_int_equal(session_sync(s, longer.id, longer.n, 0, NULL, &err), 0);
        assert_memory_equal(want_longer, session_logits(s), bytes);
        assert_int_equal(session_sync(s, longer.id, longer.n, 0, &reused, &err), 0);
        assert_int_equal(reused, longer.n - 1);
        assert_memory_equal(want_longer, session_logits(s), bytes);
        session_free(s);
    }
    free(want);
    free(want_longer);
    ids_free(&ids);
    ids_free(&longer);
    model_close(m);
    safetensors_close(ref);
}

/* <|image|> without its picture is embedded as <pad> (Gemma4Model.forward), where the checkpoint is a multimodal one. */
static void placeholder(void **state) {
    const Case *k = *state;
    Error err;
    Model *m = open_model(k);
    Session *s = open_session(m, k);
    ModelInfo info;
    model_info(m, &info);
    size_t bytes = info.config->vocab * sizeof(float);
    float *want = xmalloc(bytes);
    /* The first token alone: then each of the others comes in a step of two, with the same bits on a GPU, too. */
    assert_int_equal(session_sync(s, (int[]){2}, 1, 0, NULL, &err), 0);
    assert_int_equal(session_sync(s, (int[]){2, 0, 300}, 3, 0, NULL, &err), 0);
    memcpy(want, session_logits(s), bytes);
    assert_int_equal(session_sync(s, (int[]){2, 502, 300}, 3, 0, NULL, &err), 0);
    assert_memory_equal(want, session_logits(s), bytes);
    assert_int_equal(session_sync(s, (int[]){2, 501, 300}, 3, 0, NULL, &err), 0);
    assert_memory_not_equal(want, session_logits(s), bytes);
    free(want);
    session_free(s);
    model_close(m);
}

/* The same logits: to the bit, or nearly on a GPU, whose bits depend on how many tokens come together. */
static void assert_same(const float *got, const float *want, int n) {
    if (!ON_GPU) assert_memory_equal(want, got, n * sizeof *got);
    float low = want[0], high = want[0];
    for (int i = 0; i < n; i++) low = fminf(low, want[i]), high = fmaxf(high, want[i]);
    for (int i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= float32.largest * (high - low))) fail_msg("logit %d is %g, not %g", i, got[i], want[i]);
}

/* A session that returns to a mark behind its ring, and goes on from there as one that was never elsewhere. */
static void returned(void **state) {
    const Case *k = *state;
    Error err;
    SafeTensors *ref = open_ref(k);
    Model *m = open_model(k);
    Session *a = open_session(m, k), *b = open_session(m, k);
    ModelInfo info;
    model_info(m, &info);
    Ids ids = ids_of(safetensors_find(ref, "ids"));
    int reused, vocab = info.config->vocab;
    assert_int_equal(session_sync(a, ids.id, 70, 20, NULL, &err), 0);
    ids.id[20] = (ids.id[20] + 1) % vocab;
    assert_int_equal(session_sync(a, ids.id, 25, 20, &reused, &err), 0);
    assert_int_equal(reused, 20);
    assert_int_equal(session_sync(b, ids.id, 25, 0, NULL, &err), 0);
    assert_same(session_logits(a), session_logits(b), vocab);
    session_free(a);
    session_free(b);
    ids_free(&ids);
    model_close(m);
    safetensors_close(ref);
}

/* The picture of a case, and where its placeholders are in image_ids.  Patches whose place is (-1, -1) are padding. */
static Picture read_picture(const SafeTensors *ref, const Ids *ids, int *pos) {
    const Tensor *place = safetensors_find(ref, "image_position_ids"), *pixels = safetensors_find(ref, "pixel_values"),
                 *bytes = safetensors_find(ref, "image_pixels_u8");
    Picture p = {.hash = 1};
    for (int i = 0; i < place->shape[1]; i++) {
        if (int_at(place, 2 * i) >= p.columns) p.columns = int_at(place, 2 * i) + 1;
        if (int_at(place, 2 * i + 1) >= p.rows) p.rows = int_at(place, 2 * i + 1) + 1;
    }
    p.n = p.columns * p.rows / (POOL * POOL);
    p.pixels = xmalloc((size_t)p.columns * p.rows * PATCH_SIZE * sizeof(float));
    for (int i = 0; i < p.columns * p.rows; i++) {
        assert_int_equal(int_at(place, 2 * i), i % p.columns);
        assert_int_equal(int_at(place, 2 * i + 1), i / p.columns);
    }
    for (int i = 0; i < p.columns * p.rows * PATCH_SIZE; i++) {
        if (pixels) memcpy(&p.pixels[i], pixels->data + 4 * i, 4);
        else p.pixels[i] = bytes->data[i] / 255.0f;
    }
    for (*pos = 0; ids->id[*pos] != 502; ++*pos)
        ;
    for (int i = 0; i < p.n; i++) assert_int_equal(ids->id[*pos + i], 502);
    return p;
}

typedef struct {
    const Tensor *want;
    int n_vocab;
    double worst;
} ImageLogits;

static void check_image_logits(void *arg, int64_t pos, const float *logits) {
    ImageLogits *l = arg;
    double d = difference(l->want, pos * l->n_vocab, logits, l->n_vocab, NULL);
    if (!(d <= l->worst)) l->worst = d;
}

/* How much was reused: with short chunks the ring may have gone on, and then it is less. */
static void kept(const Case *k, int reused, int want) {
    if (k->chunk == 512) assert_int_equal(reused, want);
    else assert_true(reused == want || reused == 0);
}

/* A picture's soft tokens, and the logits of a prompt with it, also where a chunk would cut it in two. */
static void picture(void **state) {
    const Case *k = *state;
    Error err;
    SafeTensors *ref = open_ref(k);
    Model *m = open_model(k);
    Case copy = *k;
    ModelInfo info;
    model_info(m, &info);
    Ids ids = ids_of(safetensors_find(ref, "image_ids"));
    const Tensor *features = safetensors_find(ref, "image_features_f32");
    ImageLogits check = {safetensors_find(ref, "image_logits_f32"), info.config->vocab, 0};
    Session *s = open_session(m, &copy);
    PictureSpan span;
    Picture p = read_picture(ref, &ids, &span.pos), other = p;
    span.picture = &p;
    session_pictures(s, &span, 1);
    if (session_eval(s, ids.id, ids.n, check_image_logits, &check, &err)) fail_msg("%s", err.text);
    assert_null(p.pixels);
    double d = difference(features, 0, p.soft, features->n_bytes / 4, NULL);
    assert_int_equal(features->n_bytes / 4, p.n * info.config->hidden);
    if (!(d <= 1e-3 && check.worst <= 1e-3)) fail_msg("soft tokens off by %.2e, logits by %.2e of the range", d, check.worst);

    /* The same picture is not evaluated again, nor cut; another one is not taken for it. */
    size_t bytes = info.config->vocab * sizeof(float);
    float *want = xmalloc(bytes);
    int reused;
    memcpy(want, session_logits(s), bytes);
    assert_int_equal(session_sync(s, ids.id, ids.n, 0, &reused, &err), 0);
    assert_int_equal(reused, ids.n - 1);
    assert_same(session_logits(s), want, info.config->vocab);
    assert_int_equal(session_sync(s, ids.id, span.pos + p.n, span.pos + 1, &reused, &err), 0);
    kept(k, reused, span.pos);
    assert_int_equal(session_sync(s, ids.id, ids.n, 0, &reused, &err), 0);
    kept(k, reused, span.pos + p.n);
    assert_same(session_logits(s), want, info.config->vocab);
    assert_int_equal(session_eval(s, ids.id, 1, NULL, NULL, &err), 0);
    other.hash = 2;
    other.pixels = NULL;
    other.soft = xcalloc(p.n * info.config->hidden, sizeof(float));
    session_pictures(s, &(PictureSpan){span.pos, &other}, 1);
    assert_int_equal(session_sync(s, ids.id, ids.n, 0, &reused, &err), 0);
    kept(k, reused, span.pos);
    assert_memory_not_equal(want, session_logits(s), bytes);
    session_pictures(s, NULL, 0);
    assert_int_equal(session_sync(s, ids.id, ids.n, 0, &reused, &err), 0);
    kept(k, reused, span.pos);
    /* Ids that end within a picture, and a picture that no step can hold. */
    session_pictures(s, &span, 1);
    assert_int_equal(session_sync(s, ids.id, span.pos + 1, 0, &reused, &err), -1);
    assert_non_null(strstr(err.text, "inside a picture"));
    p.n = 1000;
    assert_int_equal(session_sync(s, ids.id, ids.n, 0, &reused, &err), -1);
    free(want);
    free(p.soft);
    free(other.soft);
    ids_free(&ids);
    session_free(s);
    model_close(m);
    safetensors_close(ref);
}

/* The logits of a conversation that the demo knows, positions [n][vocab]. */
static float *demo_logits(const Case *k, const Ids *ids, int *vocab) {
    Error err;
    Model *m = open_model(k);
    Session *s = open_session(m, k);
    ModelInfo info;
    model_info(m, &info);
    *vocab = info.config->vocab;
    size_t bytes = *vocab * sizeof(float);
    float *out = xmalloc(ids->n * bytes);
    for (int i = 0; i < ids->n; i++) {
        assert_int_equal(session_sync(s, ids->id, i + 1, 0, NULL, &err), 0);
        memcpy((char *)out + i * bytes, session_logits(s), bytes);
    }
    session_free(s);
    model_close(m);
    return out;
}

/* log(sum of exp(logits)) */
static double log_sum(const float *logits, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += exp(logits[i]);
    return log(sum);
}

/* Rounded activations: the mean over positions of sum p log(p / q), p with float32 activations, q with rounded ones. */
static void divergence(void **state) {
    const Case *k = *state;
    Case exact = *k;
    Buf text = {0};
    Ids ids = {0};
    exact.rounded = 0;
    exact.cpu = "c";
    assert_int_equal(read_file("tests/fixtures/demo_greedy.json", &text, NULL), 0);
    cJSON *o = json_object(text.data, text.len, NULL);
    const cJSON *one, *id;
    cJSON_ArrayForEach(one, json_field(o, "cases")) {
        const char *const parts[] = {"prompt_ids", "greedy_ids"};
        for (int i = 0; i < 2 && ids.n < 200; i++)
            cJSON_ArrayForEach(id, json_field(one, parts[i])) ids_add(&ids, id->valueint);
    }
    assert_true(ids.n >= 200);
    int vocab;
    float *p = demo_logits(&exact, &ids, &vocab), *q = demo_logits(k, &ids, &vocab);
    double all = 0;
    for (int i = 0; i < ids.n; i++) {
        const float *a = p + (size_t)i * vocab, *b = q + (size_t)i * vocab;
        double pa = log_sum(a, vocab), pb = log_sum(b, vocab);
        for (int v = 0; v < vocab; v++) all += exp(a[v] - pa) * ((a[v] - pa) - (b[v] - pb));
    }
    if (!(all / ids.n < 1e-8)) fail_msg("mean divergence %.2e over %d positions", all / ids.n, ids.n);
    free(p);
    free(q);
    ids_free(&ids);
    cJSON_Delete(o);
    buf_free(&text);
}

static volatile sig_atomic_t cancel;
static double cancel_at = 0.5;
static void cancel_halfway(void *arg, int n, double done) {
    (void)arg, (void)n;
    if (done > cancel_at) cancel = 1;
}

/* A prefill that is stopped keeps what it did, and goes on to the same bits; wherever it is
 * stopped, on a GPU also where a step is recorded for the first time (the second of eight tokens).
 * */
static void cancelled(void **state) {
    const Case *k = *state;
    Error err;
    SafeTensors *ref = open_ref(k);
    Model *m = open_model(k);
    ModelInfo info;
    model_info(m, &info);
    Ids ids = ids_of(safetensors_find(ref, "ids"));
    size_t bytes = info.config->vocab * sizeof(float);
    SessionOptions o = {.ops = &DEVICE, .context = 512, .chunk = 8, .kv = k->kv, .n_threads = 2,
                        .exact = 1, .progress = cancel_halfway, .cancel = &cancel,
                        .cpu_experts = k->cpu_experts};
    Session *a = open_session(m, k);
    assert_int_equal(session_sync(a, ids.id, ids.n, 0, NULL, &err), 0);
    for (int i = 1; i < 5; i++) {
        Session *b = session_new(m, &o, &err);
        int held, reused;
        cancel_at = i / 6.0;
        cancel = 0;
        assert_int_equal(session_sync(b, ids.id, ids.n, 0, NULL, &err), 1);
        session_ids(b, &held);
        assert_true(held > cancel_at * ids.n - o.chunk && held < ids.n);
        cancel_at = 2;                  /* never */
        cancel = 0;
        assert_int_equal(session_sync(b, ids.id, ids.n, 0, &reused, &err), 0);
        assert_int_equal(reused, held);
        assert_memory_equal(session_logits(a), session_logits(b), bytes);
        session_free(b);
    }
    session_free(a);
    ids_free(&ids);
    model_close(m);
    safetensors_close(ref);
}

/* A device that has just so much memory; a session on it takes 110 bytes and the cache. */
static int64_t free_bytes;
static int little_memory(const Config *c, const Weights *w, const DeviceOptions *o, Memory *memory,
                         Error *err) {
    (void)c, (void)w, (void)o, (void)err;
    memory->weights = 100;
    memory->activations = 10;
    memory->head_copy = 7;
    memory->pictures = 5;
    memory->free = free_bytes;
    return 0;
}

/* The head's copy is only planned where it leaves room for the context, pictures and a drafter. */
static void copy_of_the_head(void **state) {
    const Case *k = *state;
    const Ops device = {.memory = little_memory};
    SessionOptions o = {.ops = &device, .context = 512, .chunk = 8, .drafter_room = 3};
    Model *m = open_model(k);
    Memory memory;
    Error err;
    assert_int_equal(session_memory(m, &o, &memory, &err), 0);
    const int64_t all = 100 + 10 + memory.cache + 7 + 5 + 3;
    for (int less = 0; less < 10; less++) {
        free_bytes = all - less;
        assert_int_equal(session_memory(m, &o, &memory, &err), 0);
        assert_int_equal(memory.head_copy, less ? 0 : 7);
        assert_int_equal(memory.weights + memory.activations, 110);
    }
    model_close(m);
}

/* Weights whose experts take 10 in each layer. */
static int memory_of_layers(const Config *c, const Weights *w, const DeviceOptions *o, Memory *memory, Error *err) {
    little_memory(c, w, o, memory, err);
    memory->expert_room = o->cpu_experts ? 9 : 0;
    memory->weights += 10 * (c->n_layers - o->cpu_experts);
    return 0;
}

/* Slots that take 1 each. */
static int memory_of_slots(const Config *c, const Weights *w, const DeviceOptions *o, Memory *memory, Error *err) {
    memory_of_layers(c, w, o, memory, err);
    memory->expert_slots = o->cpu_experts ? o->expert_slots : 0;
    memory->weights += memory->expert_slots * o->cpu_experts;
    return 0;
}

/* Slots take what is left where all layers' experts are on the CPU, if that are enough layers; they never drive out the rest. */
static void most_slots(void **state) {
    const Case *k = *state;
    const Ops device = {.memory = memory_of_slots}, without = {.memory = memory_of_layers};
    SessionOptions o = {.ops = &device, .context = 512, .chunk = 8, .drafter_room = 3, .cpu_experts = CPU_EXPERTS_AUTO,
                        .expert_slots = EXPERT_SLOTS_AUTO};
    Model *m = open_model(k);
    ModelInfo info;
    Memory memory, plain;
    Error err;
    model_info(m, &info);
    const int layers = info.config->n_layers, experts = info.config->n_experts;
    free_bytes = 1000000000;
    assert_int_equal(session_memory(m, &o, &memory, &err), 0);
    const int64_t least = 100 + 10 + memory.cache, others = 7 + 5 + 3 + 9;
    int most = 0;
    for (int more = -20; more < 10 * layers + others + 20; more++) {
        free_bytes = least + more;
        o.ops = &without;
        assert_int_equal(session_memory(m, &o, &plain, &err), 0);
        o.ops = &device;
        assert_int_equal(session_memory(m, &o, &memory, &err), 0);
        int left = more >= others ? more - others : more - 9 - 3, want = left / layers;
        if (more < 9 + 3) want = (more - 3) / layers;
        if (want > experts) want = experts;
        if (want < 1 || 5 * plain.cpu_experts < layers) want = 0;
        assert_int_equal(memory.expert_slots, want);
        assert_int_equal(memory.cpu_experts, want ? layers : plain.cpu_experts);
        assert_int_equal(memory.head_copy, more >= others || !want ? plain.head_copy : 0);
        if (want) assert_int_equal(memory.expert_room, more >= 9 + 3 ? 9 : 0);
        if (want > most) most = want;
        o.expert_slots = 2;             /* at most, however few the layers */
        assert_int_equal(session_memory(m, &o, &memory, &err), 0);
        assert_true(memory.expert_slots <= 2 && (memory.expert_slots || !want));
        o.expert_slots = 0;
        assert_int_equal(session_memory(m, &o, &memory, &err), 0);
        assert_memory_equal(&memory, &plain, sizeof memory);
        o.expert_slots = EXPERT_SLOTS_AUTO;
    }
    assert_true(most > 1);
    free_bytes = 1000000000;
    o.cpu_experts = 2;                  /* where the layers are named, so are the slots */
    assert_int_equal(session_memory(m, &o, &memory, &err), 0);
    assert_int_equal(memory.expert_slots, 0);
    o.expert_slots = 3;
    assert_int_equal(session_memory(m, &o, &memory, &err), 0);
    assert_int_equal(memory.expert_slots, 3);
    assert_int_equal(memory.cpu_experts, 2);
    model_close(m);
}

/* As few layers' experts as possible stay on the CPU.  From the first on that does, they leave room for all else. */
static void fewest_layers(void **state) {
    const Case *k = *state;
    const Ops device = {.memory = memory_of_layers};
    SessionOptions o = {.ops = &device, .context = 512, .chunk = 8, .drafter_room = 3, .cpu_experts = CPU_EXPERTS_AUTO};
    Model *m = open_model(k);
    ModelInfo info;
    Memory memory;
    Error err;
    model_info(m, &info);
    const int layers = info.config->n_layers;
    free_bytes = 1000000000;
    assert_int_equal(session_memory(m, &o, &memory, &err), 0);
    assert_int_equal(memory.cpu_experts, 0);
    const int64_t least = 100 + 10 + memory.cache, others = 7 + 5 + 3 + 9;
    for (int more = -20; more < 10 * layers + others + 20; more++) {
        int want = layers;              /* they stay on the CPU */
        free_bytes = least + more;
        if (more >= 10 * layers) want = 0;
        else
            while (want > 1 && more >= 10 * (layers - want + 1) + others) want--;
        assert_int_equal(session_memory(m, &o, &memory, &err), 0);
        assert_int_equal(memory.cpu_experts, want);
        assert_int_equal(memory.weights, 100 + 10 * (layers - want));
        const int64_t left = more - 10 * (layers - want);
        assert_int_equal(memory.head_copy, left >= others - (want ? 0 : 9) ? 7 : 0);
        assert_int_equal(memory.expert_room, want && left >= 9 + 3 ? 9 : 0);
    }
    o.cpu_experts = 2;                  /* what is asked for is not changed */
    for (free_bytes = 1; free_bytes < 1000000000; free_bytes *= 10) {
        assert_int_equal(session_memory(m, &o, &memory, &err), 0);
        assert_int_equal(memory.cpu_experts, 2);
    }
    model_close(m);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    static const char *const kernels[] = {KERNEL_NAMES};
    enum { N_KERNELS = sizeof kernels / sizeof *kernels };
    static Case cases[512];
    static struct CMUnitTest tests[512];
    static char names[512][128];
    int n = 0;
    const char *shared = getenv("GEMMA4_REFERENCE");
    char shared_dir[1024];
    snprintf(shared_dir, sizeof shared_dir, "%s/checkpoints", shared ? shared : "../shared/reference");
    /* quick: the emulation takes fewer steps, because test_kernels.c has these formats, too. */
    struct { const char *dir, *name, *prefix; KvType kv; int quick; } checkpoints[] = {
        {"tests/fixtures", "odd-bf16", "bf16kv_", KV_BF16, 0}, {"tests/fixtures", "odd-experts", "fp8_", KV_FP8, 0},
        {"tests/fixtures", "odd-all", NULL, 0, 0},             {"tests/fixtures", "dense", "fp8_", KV_FP8, 0},
        {shared_dir, "bf16", NULL, 0, 0},                      {shared_dir, "nvfp4-experts", NULL, 0, 0},
        {shared_dir, "nvfp4-experts-nokv", NULL, 0, 0},        {shared_dir, "nvfp4-all", NULL, 0, 0},
        {shared_dir, "dense12b-text", NULL, 0, 0},
        {shared_dir, "mixed-fp8-nvfp4", "fp8kv_", KV_FP8, 1},
        {shared_dir, "fp8-channel", NULL, 0, 1},            {shared_dir, "fp8-block", NULL, 0, 1},
        {shared_dir, "int4-g32", NULL, 0, 1},               {shared_dir, "int4-g32-asym", NULL, 0, 1},
        {shared_dir, "int4-g128-asym", NULL, 0, 1},         {shared_dir, "int8-g32", NULL, 0, 1},
        {shared_dir, "f16", NULL, 0, 1},                    {shared_dir, "f32", NULL, 0, 1},
    };
#define ADD(function, label)                                                                      \
    do {                                                                                          \
        const char *how = c.ops ? c.ops->name : c.cpu;                                            \
        int at = snprintf(names[n], sizeof names[n], "%s %s%s", label, c.prefix, c.name);         \
        if (how) snprintf(names[n] + at, sizeof names[n] - at, ", %s", how);                      \
        cases[n] = c;                                                                             \
        tests[n] = (struct CMUnitTest){names[n], function, NULL, NULL, &cases[n]};                \
        n++;                                                                                      \
    } while (0)
    for (size_t i = 0; i < sizeof checkpoints / sizeof *checkpoints; i++) {
        Case c = {checkpoints[i].dir, checkpoints[i].name, "", KV_F32, 512, 2, NULL, 0, NULL, 0, 0, 0};
        if (c.dir == shared_dir && access(shared_dir, F_OK)) {
            printf("%s is not here: %s is not tested\n", shared_dir, c.name);
            continue;
        }
        if (!ON_GPU || i == 0) ADD(against_reference, "reference, one chunk:");       /* the emulation takes its time */
        if (ON_GPU && strncmp(c.name, "dense", 5)) {
            int every = c.dir != shared_dir || !strcmp(c.name, "nvfp4-experts");
            c.tokens = EIGHT;
            c.chunk = 33;
            ADD(every ? every_split : half_split, "experts on the CPU:");
            if (c.dir != shared_dir) ADD(every_slots, "experts in slots:");
        }
        c.tokens = ON_GPU && checkpoints[i].quick ? TOGETHER : EACH;
        c.chunk = c.tokens ? 33 : 7;
        ADD(against_reference, c.tokens ? "reference, chunks of 33:" : "reference, chunks of 7:");
        SafeTensors *ref = open_ref(&c);
        if (safetensors_find(ref, "image_ids")) {
            for (int k = 0; k < (ON_GPU ? 1 : 3); k++) {
                c.chunk = (int[]){512, 7, 1}[k];
                c.cpu = k == 1 ? "c" : NULL;
                ADD(picture, "picture:");
            }
            c.cpu_experts = ON_GPU ? 2 : 0;
            if (ON_GPU) ADD(picture, "experts on the CPU, picture:");
            c.cpu_experts = 0;
            c.cpu = NULL;
            c.chunk = 512;
            c.ops = &plain_ops;
            if (!ON_GPU) ADD(picture, "picture:");
            c.ops = NULL;
            c.chunk = c.tokens ? 33 : 7;
        }
        safetensors_close(ref);
        if (!ON_GPU) {
            c.ops = &plain_ops;
            ADD(against_reference, "reference:");
            c.ops = NULL;
            c.cpu = "c";
            c.n_threads = 1;
            ADD(against_reference, "reference:");
            c.cpu = kernels[1];
            ADD(against_reference, "reference:");
            for (int k = 1; k < N_KERNELS; k++) {
                c.cpu = kernels[k];
                c.chunk = 512;
                c.rounded = 1;
                ADD(against_reference, "reference, rounded activations:");
            }
            c.cpu = NULL;
            c.rounded = 0;
            c.chunk = 7;
        }
        if (checkpoints[i].prefix) {
            c.prefix = checkpoints[i].prefix;
            c.kv = checkpoints[i].kv;
            ADD(against_reference, "reference, rounded cache:");
            c.ops = &plain_ops;
            if (!ON_GPU) ADD(against_reference, "reference, rounded cache:");
            c.ops = NULL;
            c.rounded = 1;
            c.chunk = 512;
            if (!ON_GPU) ADD(against_reference, "reference, rounded cache and activations:");
        }
    }
    Case c = {"tests/fixtures", "odd-bf16", "", KV_F32, 7, 1, NULL, 0, NULL, 0, 0, 0};
    ADD(returned, "returned to a mark:");
    c.ops = &plain_ops;
    if (!ON_GPU) ADD(returned, "returned to a mark:");
    c.ops = NULL;
    c.chunk = ON_GPU ? 8 : 512;         /* a GPU's bits depend on how many tokens come together */
    ADD(cancelled, "cancelled:");
    c.cpu_experts = 2;
    if (ON_GPU) ADD(cancelled, "experts on the CPU, cancelled:");
    if (ON_GPU) ADD(no_wait_within_a_step, "experts on the CPU, no wait within a step:");
    c.cpu_experts = 0;
    c.chunk = 512;
    ADD(placeholder, "image without its picture:");
    ADD(copy_of_the_head, "room for the head's copy:");
    ADD(fewest_layers, "room for layers' experts:");
    ADD(most_slots, "room for slots:");
    if (ON_GPU) return _cmocka_run_group_tests("model on the GPU", tests, n, NULL, NULL);
    ADD(same_bits, "same bits, F32 cache:");
    c.kv = KV_BF16;
    ADD(same_bits, "same bits, BF16 cache:");
    c.name = "dense";
    c.kv = KV_FP8;
    ADD(same_bits, "same bits, FP8 cache:");
    for (int i = 0; i < N_KERNELS; i++) {
        c = (Case){"tests/fixtures", "odd-all", "", KV_F32, 512, 2, kernels[i], 1, NULL, 0, 0, 0};
        if (i) c.chunk = 16;            /* all but plain C take more of them (FEW_TOKENS, cpu.h) another way */
        ADD(same_bits, "same bits, rounded activations:");
        c.chunk = 512;
        c.dir = ".";
        c.name = "demo";
        ADD(divergence, "divergence of rounded activations:");
    }
    return _cmocka_run_group_tests("model", tests, n, NULL, NULL);
}
