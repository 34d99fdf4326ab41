/* test_sampler.c - the filters against transformers, the draws against their probabilities, stop strings.
 *
 * Cases: tests/fixtures/sampler_cases.json (tests/make_fixtures.py). */
#include "../sampler.h"                 /* before cmocka.h, whose macro fail() would hide util.h's function */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEN(a) ((int)(sizeof(a) / sizeof *(a)))

static const SamplerParams plain = {.repeat_penalty = 1, .temperature = 1, .top_p = 1, .seed = 42};

/* Logits that every machine computes alike: multiples of 1/64 in about -8 … 8, with ties. */
static float made_logit(int i) { return (i * 7919 % 1009 - 504) / 64.f; }

static int next_of(SamplerParams params, const float *logits, int n, const int *seen, int n_seen) {
    Sampler *s = sampler_new(n, params);
    int id = sampler_next(s, logits, seen, n_seen, 0);
    sampler_free(s);
    return id;
}

typedef struct {
    int id;
    float prob;
} Left;

static int by_falling_prob(const void *a, const void *b) {
    const Left *x = a, *y = b;
    return x->prob != y->prob ? (x->prob < y->prob) - (x->prob > y->prob) : x->id - y->id;
}

/* sampler_distribution by falling probability, ties by rising id. */
static int ordered(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer, int *ids, float *probs) {
    int n = sampler_distribution(s, logits, seen, n_seen, n_answer, ids, probs);
    Left *left = xmalloc(n * sizeof *left);
    for (int i = 0; i < n; i++) left[i] = (Left){ids[i], probs[i]};
    qsort(left, n, sizeof *left, by_falling_prob);
    for (int i = 0; i < n; i++) ids[i] = left[i].id, probs[i] = left[i].prob;
    free(left);
    return n;
}

/* ---- the filters ---- */

static double number(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsNumber(item)) fail_msg("a case has no number %s", key);
    return item->valuedouble;
}

/* A list of numbers as floats and as ints; returns its length. */
static int numbers(const cJSON *object, const char *key, float **floats, int **ints) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(object, key), *item;
    if (!cJSON_IsArray(list)) fail_msg("a case has no list %s", key);
    int n = cJSON_GetArraySize(list), i = 0;
    *floats = xmalloc(n * sizeof **floats);
    *ints = xmalloc(n * sizeof **ints);
    cJSON_ArrayForEach(item, list) {
        (*floats)[i] = item->valuedouble;
        (*ints)[i++] = item->valueint;
    }
    return n;
}

/* What is left and with which probability is what transformers says; every id drawn is one of those. */
static void check_case(const cJSON *c) {
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(c, "name"));
    float *logits, *probs, *expected, *unused;
    int *seen, *ids, *unused_ints[2];
    int n = numbers(c, "logits", &logits, &unused_ints[0]);
    int n_seen = numbers(c, "previous", &unused, &seen);
    assert_int_equal(numbers(c, "probs", &expected, &unused_ints[1]), n);
    SamplerParams params = {.repeat_penalty = number(c, "repetition_penalty"), .temperature = number(c, "temperature"),
                            .top_k = number(c, "top_k"), .top_p = number(c, "top_p"), .min_p = number(c, "min_p"), .seed = 1};
    ids = xmalloc(n * sizeof *ids);
    probs = xmalloc(n * sizeof *probs);
    Sampler *s = sampler_new(n, params);
    int left = sampler_distribution(s, logits, seen, n_seen, 0, ids, probs), n_expected = 0;
    for (int i = 0; i < n; i++) n_expected += expected[i] > 0;
    for (int i = 0; i < left; i++) {
        if (i > 0 && ids[i] < ids[i - 1]) fail_msg("%s: place %d out of order", name, i);
        /* The float32 of the reference makes 0 of what is very improbable, too. */
        if (expected[ids[i]] == 0 && probs[i] > 1e-30) fail_msg("%s: %d is left", name, ids[i]);
        if (fabs(probs[i] - expected[ids[i]]) > 1e-6 + 1e-4 * expected[ids[i]])
            fail_msg("%s: probability of %d is %g, not %g", name, ids[i], probs[i], expected[ids[i]]);
        n_expected -= expected[ids[i]] > 0;
    }
    if (n_expected) fail_msg("%s: %d ids are missing", name, n_expected);
    for (int i = 0; i < 50; i++) {
        int id = sampler_next(s, logits, seen, n_seen, 0);
        if (!(expected[id] > 0)) fail_msg("%s: %d was drawn", name, id);
    }
    sampler_free(s);
    free(logits), free(probs), free(expected), free(unused);
    free(seen), free(ids), free(unused_ints[0]), free(unused_ints[1]);
}

static void test_transformers(void **state) {
    (void)state;
    Buf file = {0};
    Error err;
    if (read_file("tests/fixtures/sampler_cases.json", &file, &err)) fail_msg("%s", err.text);
    cJSON *cases = cJSON_Parse(file.data), *c;
    assert_true(cJSON_GetArraySize(cases) > 0);
    cJSON_ArrayForEach(c, cases) check_case(c);
    cJSON_Delete(cases);
    buf_free(&file);
}

static void test_ties(void **state) {
    (void)state;
    const float logits[] = {1, 2, 2, 0, 2, 1};
    static const struct {
        int top_k;
        float top_p, min_p;
        int left;
        int ids[6];
    } cases[] = {
        {1, 1, 0, 3, {1, 2, 4}},                    /* ties with the k-th stay */
        {3, 1, 0, 3, {1, 2, 4}},
        {4, 1, 0, 5, {1, 2, 4, 0, 5}},
        {0, 0.25f, 0, 1, {1}},                      /* of equals, top-p takes the lowest ids */
        {0, 0.5f, 0, 2, {1, 2}},
        {0, 0.f, 0, 1, {1}},
        {0, 1, 1, 3, {1, 2, 4}},
        {0, 1, 0, 6, {1, 2, 4, 0, 5, 3}},
        {99, 1, 0, 6, {1, 2, 4, 0, 5, 3}},
    };
    for (int i = 0; i < LEN(cases); i++) {
        SamplerParams params = plain;
        params.top_k = cases[i].top_k, params.top_p = cases[i].top_p, params.min_p = cases[i].min_p;
        Sampler *s = sampler_new(6, params);
        int ids[6];
        float probs[6];
        assert_int_equal(ordered(s, logits, NULL, 0, 0, ids, probs), cases[i].left);
        for (int k = 0; k < cases[i].left; k++) assert_int_equal(ids[k], cases[i].ids[k]);
        sampler_free(s);
    }
}

/* On a vocabulary's worth of logits, where not all are sorted: the sums of a sorted list decide. */
static void test_top_p_large(void **state) {
    (void)state;
    enum { N = 5000 };
    float *logits = xmalloc(N * sizeof *logits), *probs = xmalloc(N * sizeof *probs), *all = xmalloc(N * sizeof *all);
    int *ids = xmalloc(N * sizeof *ids), *order = xmalloc(N * sizeof *order);
    for (int i = 0; i < N; i++) logits[i] = made_logit(i);
    Sampler *s = sampler_new(N, plain);
    assert_int_equal(ordered(s, logits, NULL, 0, 0, order, all), N);
    sampler_free(s);
    for (int percent = 0; percent < 100; percent++) {
        SamplerParams params = plain;
        params.top_p = percent / 100.f;
        s = sampler_new(N, params);
        int left = ordered(s, logits, NULL, 0, 0, ids, probs);
        double sum = 0, before = 0;
        for (int i = 0; i < left; i++) {
            assert_int_equal(ids[i], order[i]);
            before = sum;
            sum += all[i];
        }
        assert_true(left == 1 || before < params.top_p + 1e-5);
        assert_true(sum > params.top_p - 1e-5);
        sampler_free(s);
    }
    free(logits), free(probs), free(all), free(ids), free(order);
}

/* ---- the draws ---- */

static void test_greedy(void **state) {
    (void)state;
    SamplerParams greedy = {.repeat_penalty = 1, .temperature = 0, .top_k = 2, .top_p = 0.5f, .min_p = 0.5f};
    const float ties[] = {-1, 3, 0, 3, 3}, low[] = {-5, -3, -4};
    assert_int_equal(next_of(greedy, ties, 5, NULL, 0), 1);
    assert_int_equal(next_of(greedy, low, 3, NULL, 0), 1);
    greedy.repeat_penalty = 2;
    const int seen[] = {1, 1, 4, 1, -7, 5, 1 << 30};        /* ids that are none are passed over */
    assert_int_equal(next_of(greedy, ties, 5, seen, 7), 3);
    assert_int_equal(next_of(greedy, low, 3, (int[]){1}, 1), 2);
    Sampler *s = sampler_new(5, greedy);
    int id;
    float prob;
    assert_int_equal(sampler_distribution(s, ties, seen, 7, 0, &id, &prob), 1);
    assert_int_equal(id, 3);
    assert_true(prob == 1);
    sampler_free(s);
}

static void test_not_numbers(void **state) {
    (void)state;
    SamplerParams all = {.repeat_penalty = 1.5f, .temperature = 0.7f, .top_k = 3, .top_p = 0.9f, .min_p = 0.1f, .seed = 3};
    SamplerParams greedy = plain;
    greedy.temperature = 0;
    const float some[] = {NAN, 1, -INFINITY, 2, NAN}, none[] = {NAN, -INFINITY, NAN}, huge[] = {1, FLT_MAX, INFINITY, -FLT_MAX};
    const int seen[] = {0, 2, 3};
    for (int i = 0; i < 200; i++) {
        all.seed = i;
        int id = next_of(all, some, 5, seen, 3);
        assert_true(id == 1 || id == 3);
        id = next_of(plain, huge, 4, NULL, 0);
        assert_true(id == 1 || id == 2);
    }
    assert_int_equal(next_of(greedy, some, 5, NULL, 0), 3);
    assert_int_equal(next_of(greedy, none, 3, NULL, 0), 0);
    assert_int_equal(next_of(all, none, 3, seen, 3), 0);
    assert_int_equal(next_of(plain, none, 3, NULL, 0), 0);
    SamplerParams cold = plain;
    cold.temperature = 1e-38f;                      /* logits / temperature overflows */
    assert_int_equal(next_of(cold, some, 5, NULL, 0), 3);
}

/* The same ids on every machine and with every compiler: these were written down once. */
static void test_same_everywhere(void **state) {
    (void)state;
    enum { N = 2000, DRAWS = 12 };
    static const LogitBias everywhere[] = {{1201, 4.3f}, {17, 16.7f}, {640, -0.9f}, {1999, 2.1f}};
    static const struct {
        SamplerParams params;
        int ids[DRAWS];
    } cases[] = {
        {{.repeat_penalty = 1, .temperature = 1, .top_p = 1, .seed = 0},
         {1201, 1504, 198, 825, 1471, 1999, 831, 1070, 1709, 1827, 231, 132}},
        {{.repeat_penalty = 1, .temperature = 1, .top_k = 64, .top_p = 0.95f, .seed = 1},
         {1418, 1042, 1141, 765, 1418, 310, 132, 765, 1728, 1108, 1840, 1906}},
        {{.repeat_penalty = 1.3f, .temperature = 0.8f, .top_p = 0.9f, .seed = 12345678901234567890u},
         {198, 1794, 1438, 1029, 1893, 1966, 264, 746, 798, 1695, 620, 40}},
        {{.repeat_penalty = 1, .temperature = 2, .min_p = 0.02f, .top_p = 1, .seed = 7},
         {1399, 554, 1676, 1959, 1979, 1748, 119, 205, 800, 304, 1077, 1465}},
        /* Computed apart from this program, from the definitions in float32 and a sorted list. */
        {{.repeat_penalty = 1.1f, .temperature = 0.7f, .top_p = 0.9f, .seed = 5,
          .frequency_penalty = 0.7f, .presence_penalty = 0.3f, .bias = everywhere,
          .n_bias = LEN(everywhere)},
         {17, 17, 17, 1201, 17, 1141, 17, 1504, 251, 297, 1999, 17}},
    };
    float logits[N];
    int seen[DRAWS];
    for (int i = 0; i < N; i++) logits[i] = made_logit(i);
    for (int i = 0; i < LEN(cases); i++) {
        Sampler *s = sampler_new(N, cases[i].params);
        for (int k = 0; k < DRAWS; k++) {
            seen[k] = sampler_next(s, logits, seen, k, k);
            assert_int_equal(seen[k], cases[i].ids[k]);
        }
        sampler_free(s);
    }
}

/* 100,000 draws from 10 ids: chi-square with 9 degrees of freedom is below 27.9 in 999 of 1000 cases. */
static void test_frequencies(void **state) {
    (void)state;
    enum { N = 10, DRAWS = 100000 };
    float logits[N], probs[N];
    int ids[N], count[N] = {0};
    double chi2 = 0, sum = 0;
    for (int i = 0; i < N; i++) logits[i] = (i * 7 % N) * 0.3f, sum += exp(logits[i]);
    Sampler *s = sampler_new(N, plain);
    for (int i = 0; i < DRAWS; i++) count[sampler_next(s, logits, NULL, 0, 0)]++;
    for (int i = 0; i < N; i++) {
        double expected = DRAWS * exp(logits[i]) / sum;
        chi2 += (count[i] - expected) * (count[i] - expected) / expected;
    }
    assert_true(chi2 < 27.9);
    assert_int_equal(ordered(s, logits, NULL, 0, 0, ids, probs), N);
    for (int i = 0; i < N; i++) assert_true(fabs(probs[i] - exp(logits[ids[i]]) / sum) < 1e-6);
    sampler_free(s);
}

/* From the largest logits alone the same ids as from all, draw after draw, and -1 exactly when a tie with the k-th may not be
 * listed.  Logits: with many ties, without, very far apart, some NaN and infinite, none possible. */
static void test_next_top(void **state) {
    (void)state;
    enum { N = 400, DRAWS = 40 };
    static const int top_k[] = {1, 2, 5, 20, 64, 399, 400, 1000};
    static const float temperature[] = {0, 0.3f, 1, 1.7f, 1e-37f}, top_p[] = {1, 0.9f, 0.3f, 0}, min_p[] = {0, 0.05f, 1};
    float logits[N], top[N];
    int ids[N], decided = 0, open = 0;
    for (int kind = 0; kind < 5; kind++)
        for (int c = 0; c < LEN(top_k) * LEN(temperature) * LEN(top_p) * LEN(min_p); c++) {
            SamplerParams p = {.repeat_penalty = 1, .top_k = top_k[c % 8], .temperature = temperature[c / 8 % 5], .top_p = top_p[c / 40 % 4],
                               .min_p = min_p[c / 160], .seed = kind * 1000 + c};
            Sampler *all = sampler_new(N, p), *some = sampler_new(N, p);
            int n = sampler_wants(some);
            assert_true(n >= 1 && n <= N);
            for (int draw = 0; draw < DRAWS; draw++) {
                for (int i = 0; i < N; i++) {
                    int j = (i * 31 + draw * 17 + c) % N;
                    logits[i] = kind == 4 ? -INFINITY : kind == 0 ? j % 10 / 8.f : made_logit(j) * (kind == 2 ? 1e4f : 1);
                    if (kind == 3 && j % 7 == 0) logits[i] = j % 2 ? NAN : j % 5 ? -INFINITY : INFINITY;
                }
                top_logits(logits, N, n, ids);
                for (int i = 0; i < n; i++) top[i] = logits[ids[i]];
                int id = sampler_next_top(some, ids, top, n);
                int want = sampler_next(all, logits, NULL, 0, 0);
                if (id < 0) {
                    float a = top[p.top_k - 1] / p.temperature, b = top[n - 1] / p.temperature;
                    assert_true(n < N && (a == b || (fabsf(a) > FLT_MAX && fabsf(b) > FLT_MAX)));
                    id = sampler_next(some, logits, NULL, 0, 0);    /* nothing was drawn */
                    open++;
                } else decided++;
                assert_int_equal(id, want);
            }
            sampler_free(all);
            sampler_free(some);
        }
    assert_true(decided > 50000 && open > 5000);
    /* Too few are none at all, and a penalty needs all logits. */
    SamplerParams p = plain;
    Sampler *s = sampler_new(N, p);
    assert_int_equal(sampler_wants(s), 0);
    assert_int_equal(sampler_next_top(s, (int[]){3, 1}, (float[]){2, 1}, 2), -1);
    sampler_free(s);
    p.top_k = 3;
    s = sampler_new(N, p);
    assert_int_equal(sampler_next_top(s, (int[]){3, 1}, (float[]){2, 1}, 2), -1);
    assert_int_equal(sampler_next_top(s, (int[]){3, 1, 7}, (float[]){2, 1, 0}, 3), -1);
    assert_true(sampler_next_top(s, (int[]){3, 1, 7, 5}, (float[]){2, 1, 0, -1}, 4) > 0);
    sampler_free(s);
    p.repeat_penalty = 1.1f;
    s = sampler_new(N, p);
    assert_int_equal(sampler_wants(s), 0);
    sampler_free(s);
}

/* ---- bias and penalties ---- */

enum { N_HAND = 6 };
typedef struct {
    SamplerParams params;
    int seen[8], n_seen, n_answer;
    float by_hand[N_HAND];              /* what params make of hand_logits before the temperature */
} HandCase;

static const float hand_logits[N_HAND] = {2, -1, 1, 3, -0.5f, 0};

/* What is left and what is drawn is bit by bit the same as with the logits made by hand and with
 * bias and penalties off.  The second time shows that the first has left no counts behind. */
static void check_hand_case(const HandCase *c, float temperature, const uint64_t *mask) {
    SamplerParams p = c->params, off = c->params;
    p.temperature = off.temperature = temperature;
    off.repeat_penalty = 1, off.frequency_penalty = off.presence_penalty = 0, off.n_bias = 0;
    Sampler *a = sampler_new(N_HAND, p), *b = sampler_new(N_HAND, off);
    float logits[N_HAND], probs[2][N_HAND] = {0};
    int ids[2][N_HAND] = {0};
    memcpy(logits, hand_logits, sizeof logits);
    sampler_mask(a, mask);
    sampler_mask(b, mask);
    for (int time = 0; time < 2; time++) {
        int left = sampler_distribution(a, logits, c->seen, c->n_seen, c->n_answer, ids[0], probs[0]);
        int want = sampler_distribution(b, c->by_hand, NULL, 0, 0, ids[1], probs[1]);
        assert_int_equal(left, want);
        assert_memory_equal(ids[0], ids[1], sizeof ids[0]);
        assert_memory_equal(probs[0], probs[1], sizeof probs[0]);
        for (int i = 0; i < 20; i++)
            assert_int_equal(sampler_next(a, logits, c->seen, c->n_seen, c->n_answer),
                             sampler_next(b, c->by_hand, NULL, 0, 0));
    }
    assert_memory_equal(logits, hand_logits, sizeof logits);
    sampler_free(a);
    sampler_free(b);
}

#define BIAS(...) .bias = (const LogitBias[]){__VA_ARGS__}, \
                  .n_bias = LEN(((const LogitBias[]){__VA_ARGS__}))
#define FILTERS .temperature = 1, .top_p = 1, .seed = 9
#define ON .repeat_penalty = 1, FILTERS
#define SEEN {3, 3, 0, 1, 2, 2, 3}, 7

static void test_by_hand(void **state) {
    (void)state;
    const HandCase cases[] = {
        /* Only the answer counts: 1 and 3 once, 2 twice. */
        {{ON, .frequency_penalty = 0.5f}, SEEN, 4, {2, -1.5f, 0, 2.5f, -0.5f, 0}},
        {{ON, .presence_penalty = 0.75f}, SEEN, 4, {2, -1.75f, 0.25f, 2.25f, -0.5f, 0}},
        {{ON, .frequency_penalty = 0.5f, .presence_penalty = 0.75f}, SEEN, 4,
         {2, -2.25f, -0.75f, 1.75f, -0.5f, 0}},
        {{ON, .frequency_penalty = -0.5f, .presence_penalty = -0.25f}, SEEN, 4,
         {2, -0.25f, 2.25f, 3.75f, -0.5f, 0}},
        {{ON, .frequency_penalty = 0.5f, .presence_penalty = 0.75f}, SEEN, 0,
         {2, -1, 1, 3, -0.5f, 0}},
        {{ON, .frequency_penalty = 0.5f}, SEEN, 7, {1.5f, -1.5f, 0, 1.5f, -0.5f, 0}},
        {{ON, .frequency_penalty = 1, .presence_penalty = 1}, {-1, 6, 2, INT_MAX, INT_MIN}, 5, 5,
         {2, -1, -1, 3, -0.5f, 0}},
        {{ON, BIAS({0, -100}, {1, 2.5f}, {1, 0.25f}, {5, -3})}, SEEN, 4,
         {-98, 1.75f, 1, 3, -0.5f, -3}},
        {{ON, BIAS({-1, 100}, {6, 100}, {INT_MAX, 100}, {INT_MIN, 100}, {4, 1})}, SEEN, 4,
         {2, -1, 1, 3, 0.5f, 0}},
        /* The bias comes before the repetition penalty: 1 - 3 = -2, times 2; -1 + 5 = 4, by 2. */
        {{.repeat_penalty = 2, FILTERS, BIAS({2, -3}, {1, 5})}, {2, 1, 2, 0}, 4, 1,
         {1, 2, -4, 3, -0.5f, 0}},
        /* That comes before the others: 2 / 2 - 2 * 0.5 - 0.25; 3 is the prompt's. */
        {{.repeat_penalty = 2, FILTERS, .frequency_penalty = 0.5f, .presence_penalty = 0.25f},
         {3, 0, 0}, 3, 2, {-0.25f, -1, 1, 1.5f, -0.5f, 0}},
        /* All of it: (2 + 2) / 2 - 2 * 0.5 - 0.25; (-0.5 - 0.5) * 2 - 0.5 - 0.25. */
        {{.repeat_penalty = 2, FILTERS, .frequency_penalty = 0.5f, .presence_penalty = 0.25f,
          BIAS({4, -0.5f}, {0, 2})}, {3, 0, 4, 0}, 4, 3, {0.75f, -1, 1, 1.5f, -2.75f, 0}},
        /* The other filters see what has become of the logits. */
        {{.repeat_penalty = 1, .top_k = 1, .top_p = 1, BIAS({5, 4})}, SEEN, 4,
         {2, -1, 1, 3, -0.5f, 4}},
        {{.repeat_penalty = 1, .top_k = 2, .top_p = 1, .presence_penalty = 2.5f}, SEEN, 4,
         {2, -3.5f, -1.5f, 0.5f, -0.5f, 0}},
        {{.repeat_penalty = 1, .top_p = 0.5f, .frequency_penalty = 3}, SEEN, 4,
         {2, -4, -5, 0, -0.5f, 0}},
        {{.repeat_penalty = 1, .top_p = 1, .min_p = 0.3f, BIAS({1, 3})}, SEEN, 4,
         {2, 2, 1, 3, -0.5f, 0}},
    };
    static const float temperature[] = {0, 0.5f, 1, 3};
    static const uint64_t masks[] = {0x37, 0x16, 0x08};     /* without 3; 1, 2 and 4; 3 alone */
    for (int i = 0; i < LEN(cases) * LEN(temperature) * (1 + LEN(masks)); i++) {
        int t = i / LEN(cases) % LEN(temperature), m = i / LEN(cases) / LEN(temperature);
        check_hand_case(&cases[i % LEN(cases)], temperature[t], m ? &masks[m - 1] : NULL);
    }
}

/* A bias of ln 2 doubles a probability and a penalty of ln 2 halves it, but for the scale that
 * makes their sum 1. */
static void test_halves_and_doubles(void **state) {
    (void)state;
    const float logits[4] = {1, 1, 1, 1}, ln2 = 0.693147181f;
    const int seen[] = {0, 1, 2, 3, 3};
    static const struct {
        float temperature, frequency, presence, bias;
        float weight[4];
    } cases[] = {
        {1, 0, 0, 1, {1, 2, 1, 1}},
        {1, 1, 0, 0, {1, 1, 0.5f, 0.25f}},
        {1, 0, 1, 0, {1, 1, 0.5f, 0.5f}},
        {1, 1, 1, 1, {1, 2, 0.25f, 0.125f}},
        {0.5f, 1, 0, 1, {1, 4, 0.25f, 0.0625f}},            /* the temperature acts on all of it */
        {1, -1, -1, -1, {1, 0.5f, 4, 8}},
    };
    for (int i = 0; i < LEN(cases); i++) {
        SamplerParams p = plain;
        LogitBias bias = {1, cases[i].bias * ln2};
        p.temperature = cases[i].temperature;
        p.frequency_penalty = cases[i].frequency * ln2;
        p.presence_penalty = cases[i].presence * ln2;
        p.bias = &bias, p.n_bias = 1;
        Sampler *s = sampler_new(4, p);
        float probs[4], sum = 0;
        int ids[4];
        assert_int_equal(sampler_distribution(s, logits, seen, 5, 3, ids, probs), 4);
        for (int k = 0; k < 4; k++) sum += cases[i].weight[k];
        for (int k = 0; k < 4; k++)
            assert_true(fabsf(probs[k] - cases[i].weight[ids[k]] / sum) < 1e-6f);
        sampler_free(s);
    }
}

/* A bias of 100 leaves the others no chance and one of -100 leaves the id none, but neither makes
 * anything possible or impossible: the mask decides that. */
static void test_bias_100(void **state) {
    (void)state;
    enum { N = 10 };
    const LogitBias up = {7, 100}, down = {7, -100};
    const LogitBias impossible[] = {{0, 100}, {2, 100}, {1, -INFINITY}};
    const uint64_t only = 1 << 7, others = 0x3ff & ~(1 << 7);
    float logits[N] = {0}, probs[N];
    int ids[N];
    SamplerParams p = plain;
    p.bias = &up, p.n_bias = 1;
    Sampler *s = sampler_new(N, p);
    assert_int_equal(ordered(s, logits, NULL, 0, 0, ids, probs), N);
    assert_true(ids[0] == 7 && probs[0] == 1);
    for (int i = 0; i < 200; i++) assert_int_equal(sampler_next(s, logits, NULL, 0, 0), 7);
    sampler_mask(s, &others);
    assert_int_equal(ordered(s, logits, NULL, 0, 0, ids, probs), N - 1);
    for (int i = 0; i < N - 1; i++) assert_true(fabsf(probs[i] - 1.f / (N - 1)) < 1e-6f);
    for (int i = 0; i < 200; i++) assert_int_not_equal(sampler_next(s, logits, NULL, 0, 0), 7);
    sampler_free(s);

    p.bias = &down;
    s = sampler_new(N, p);
    assert_int_equal(ordered(s, logits, NULL, 0, 0, ids, probs), N);
    assert_int_equal(ids[N - 1], 7);
    assert_true(probs[N - 1] > 0 && probs[N - 1] < 1e-40f);     /* e^-100 / 9 is 4e-45 */
    for (int i = 0; i < 200; i++) assert_int_not_equal(sampler_next(s, logits, NULL, 0, 0), 7);
    sampler_mask(s, &only);
    assert_int_equal(sampler_next(s, logits, NULL, 0, 0), 7);
    sampler_mask(s, NULL);
    for (int i = 0; i < N; i++) logits[i] = i == 7 ? 0 : -300;
    for (int i = 0; i < 50; i++) assert_int_equal(sampler_next(s, logits, NULL, 0, 0), 7);
    sampler_free(s);

    p.bias = impossible, p.n_bias = 3;
    for (p.temperature = 0; p.temperature <= 1; p.temperature++)
        assert_int_equal(next_of(p, (float[]){NAN, 50, -INFINITY, 1}, 4, NULL, 0), 3);
}

/* Penalties and a bias may lift what is not among the largest: all logits are needed. */
static void test_wants_all(void **state) {
    (void)state;
    const LogitBias bias = {3, 1};
    SamplerParams off = {.repeat_penalty = 1, .temperature = 1, .top_k = 64, .top_p = 0.95f};
    for (off.temperature = 0; off.temperature <= 1; off.temperature++)
        for (int i = 0; i < 6; i++) {
            SamplerParams p = off;
            if (i == 1) p.frequency_penalty = 0.1f;
            if (i == 2) p.frequency_penalty = -0.1f;
            if (i == 3) p.presence_penalty = 0.1f;
            if (i == 4) p.presence_penalty = -0.1f;
            if (i == 5) p.bias = &bias, p.n_bias = 1;
            Sampler *s = sampler_new(1000, p);
            assert_int_equal(sampler_wants(s), i ? 0 : p.temperature > 0 ? 80 : 1);
            sampler_free(s);
        }
}

/* Neither the order of the answer's ids nor that of the biases matters, and nothing remains of a
 * call for the next. */
static void test_order_of_ids(void **state) {
    (void)state;
    enum { N = 500, PROMPT = 15, ANSWER = 45, BOTH = PROMPT + ANSWER };
    const LogitBias bias[] = {{3, 0.1f}, {77, -1.7f}, {400, 2.3f}};
    const LogitBias turned[] = {{400, 2.3f}, {3, 0.1f}, {77, -1.7f}};
    SamplerParams p = {.repeat_penalty = 1.3f, .temperature = 0.7f, .top_k = 300, .top_p = 0.97f,
                       .min_p = 0.001f, .seed = 8, .frequency_penalty = 0.3f,
                       .presence_penalty = 0.7f, .bias = bias, .n_bias = LEN(bias)}, q = p;
    float logits[N], probs[2][N] = {0};
    int seen[BOTH], reversed[BOTH], ids[2][N] = {0};
    q.bias = turned;
    for (int i = 0; i < N; i++) logits[i] = made_logit(i);
    for (int i = 0; i < BOTH; i++) seen[i] = i < PROMPT ? 77 * i % N : 70 + i * i % 23;
    for (int i = 0; i < BOTH; i++) reversed[i] = i < PROMPT ? seen[i] : seen[BOTH - 1 - i + PROMPT];
    Sampler *a = sampler_new(N, p), *b = sampler_new(N, q);
    sampler_next(b, logits, seen, BOTH, BOTH);
    sampler_next(a, logits, NULL, 0, 0);
    int left = sampler_distribution(a, logits, seen, BOTH, ANSWER, ids[0], probs[0]);
    int want = sampler_distribution(b, logits, reversed, BOTH, ANSWER, ids[1], probs[1]);
    assert_int_equal(left, want);
    assert_memory_equal(ids[0], ids[1], sizeof ids[0]);
    assert_memory_equal(probs[0], probs[1], sizeof probs[0]);
    for (int i = 0; i < 50; i++)
        assert_int_equal(sampler_next(a, logits, seen, BOTH, ANSWER),
                         sampler_next(b, logits, reversed, BOTH, ANSWER));
    sampler_free(a);
    sampler_free(b);
}

/* ---- lists ---- */

static void test_top_logits(void **state) {
    (void)state;
    enum { N = 300 };
    float logits[N];
    int ids[N];
    for (int i = 0; i < N; i++) logits[i] = i % 50 == 17 ? NAN : made_logit(i % 200);
    for (int k = 0; k <= N; k++) {
        top_logits(logits, N, k, ids);
        for (int i = 0; i < k; i++) {               /* as many come before each as its place says */
            int before = 0;
            float l = isnan(logits[ids[i]]) ? -INFINITY : logits[ids[i]];
            for (int j = 0; j < N; j++) {
                float other = isnan(logits[j]) ? -INFINITY : logits[j];
                before += other > l || (other == l && j < ids[i]);
            }
            assert_int_equal(before, i);
        }
    }
}

static void test_log_prob(void **state) {
    (void)state;
    enum { N = 1000 };
    float logits[N];
    double sum = 0;
    for (int i = 0; i < N; i++) sum += exp(logits[i] = made_logit(i));
    for (int i = 0; i < N; i++) assert_true(fabs(log_prob(logits, N, i) - (logits[i] - log(sum))) < 1e-12);
    logits[3] = NAN, logits[4] = 1e30f;
    assert_true(log_prob(logits, N, 4) == 0);
    assert_true(log_prob(logits, N, 3) == -INFINITY);
    assert_true(log_prob(logits, N, 0) < -1e29);
}

/* ---- stop strings ---- */

/* Feeds text in pieces that end at the bytes given; what came out and whether a stop string was met. */
static int feed(char **stops, int n, const char *text, size_t first, size_t second, Buf *out) {
    StopFilter f = {.strings = stops, .n = n};
    size_t len = strlen(text), end[] = {first < len ? first : len, second < len ? second : len, len}, from = 0;
    int stopped = 0;
    for (int i = 0; i < 3 && !stopped; i++) {
        if (end[i] < from) continue;
        stopped = stop_feed(&f, text + from, end[i] - from, out);
        from = end[i];
    }
    if (!stopped) stop_flush(&f, out);
    stop_free(&f);
    return stopped;
}

static void test_stop(void **state) {
    (void)state;
    static struct {
        char *stops[4];
        const char *text, *out;
        int stopped;
    } cases[] = {
        {{0}, "anything", "anything", 0},
        {{""}, "empty stop strings stop nothing", "empty stop strings stop nothing", 0},
        {{"END"}, "", "", 0},
        {{"END"}, "one END two", "one ", 1},
        {{"END"}, "END", "", 1},
        {{"END"}, "EEND", "E", 1},
        {{"END"}, "EN", "EN", 0},
        {{"END"}, "ENENEEN", "ENENEEN", 0},
        {{"aab"}, "aaab", "a", 1},
        {{"abac"}, "ababac!", "ab", 1},
        {{"\n\n"}, "a\nb\n\nc", "a\nb", 1},
        {{"abcd", "bc"}, "xabcd", "xa", 1},         /* the one that is complete first */
        {{"abcd", "bx"}, "abcx abx", "abcx a", 1},
        {{"cd", "abcd"}, "xabcd", "x", 1},          /* complete at once: the longer one */
        {{"stop", "st"}, "a stop", "a ", 1},
        {{"one", "two", "three"}, "thre two one", "thre ", 1},
        {{"日本"}, "an 日 and 日本語", "an 日 and ", 1},
        {{"\xe6\x9c\xac"}, "日本語", "日", 1},
        {{"é"}, "è è é è", "è è ", 1},
        {{"🙂"}, "🙁🙂", "🙁", 1},
    };
    for (int i = 0; i < LEN(cases); i++) {
        int n = 0;
        while (n < 4 && cases[i].stops[n]) n++;
        size_t len = strlen(cases[i].text);
        for (size_t a = 0; a <= len; a++)
            for (size_t b = a; b <= len; b++) {
                Buf out = {0};
                int stopped = feed(cases[i].stops, n, cases[i].text, a, b, &out);
                if (stopped != cases[i].stopped || strcmp(out.data ? out.data : "", cases[i].out))
                    fail_msg("'%s' cut at %zu and %zu: '%s', %d", cases[i].text, a, b, out.data, stopped);
                buf_free(&out);
            }
    }
}

/* No more is held back than must be. */
static void test_stop_holds_little(void **state) {
    (void)state;
    static const struct {
        const char *text, *out;
    } steps[] = {{"x", "x"}, {"S", ""}, {"T", ""}, {"x", "STx"}, {"ST", ""}, {"S", "ST"}, {"TO", ""}, {"y", "STOy"}, {"zzS", "zz"}};
    char *stops[] = {"STOP", "Q"};
    StopFilter f = {.strings = stops, .n = 2};
    Buf out = {0};
    for (int i = 0; i < LEN(steps); i++) {
        assert_int_equal(stop_feed(&f, steps[i].text, strlen(steps[i].text), &out), 0);
        assert_string_equal(out.data, steps[i].out);
        buf_drop(&out, out.len);
    }
    assert_int_equal(stop_feed(&f, "TOP", 3, &out), 1);
    assert_int_equal(out.len, 0);
    stop_flush(&f, &out);
    assert_int_equal(out.len, 0);
    stop_free(&f);
    buf_free(&out);
}

/* Under a mask the same is drawn as when everything else were impossible; what is allowed is drawn however improbable. */
static void test_mask(void **state) {
    (void)state;
    enum { N = 300 };
    static const LogitBias bias[] = {{3, 2.5f}, {100, -6}, {5, 100}, {299, 4}, {N, 100}, {-1, 100}};
    static const SamplerParams params[] = {
        {1, 1, 0, 1, 0, 7, 0, 0, NULL, 0},
        {1, 0, 0, 1, 0, 7, 0, 0, NULL, 0},
        {1, 0.7f, 20, 0.9f, 0.01f, 7, 0, 0, NULL, 0},
        {1.3f, 2, 5, 1, 0, 7, 0, 0, NULL, 0},
        {1, 0.01f, 0, 1, 0, 7, 0, 0, NULL, 0},
        {1, 1, 64, 0.95f, 0, 7, 0, 0, NULL, 0},
        {1, 1, 0, 1, 0, 7, 1.5f, 0.5f, NULL, 0},
        {1, 1, 20, 1, 0, 7, 0, 0, bias, LEN(bias)},
        {1.3f, 2, 0, 0.9f, 0.01f, 7, -0.7f, 2, bias, LEN(bias)},
    };
    float logits[N], masked[N];
    int seen[] = {3, 100, 299};
    for (int round = 0; round < 200; round++) {
        uint64_t mask[(N + 63) / 64] = {0};
        SamplerParams p = params[round % LEN(params)];
        p.seed = round;
        for (int i = 0; i < N; i++) {
            logits[i] = 8 * sinf(round + i * 1.7f);
            int allowed = (i * 7919 + round * 31) % (2 + round % 40) == 0;
            if (allowed) mask[i / 64] |= 1ull << i % 64;
            masked[i] = allowed ? logits[i] : -INFINITY;
        }
        Sampler *a = sampler_new(N, p), *b = sampler_new(N, p);
        sampler_mask(a, mask);
        for (int i = 0; i < 5; i++)
            assert_int_equal(sampler_next(a, logits, seen, 3, 2),
                             sampler_next(b, masked, seen, 3, 2));
        for (int i = 0; i < N; i++) logits[i] = i % 2 ? -INFINITY : 30;
        memset(mask, 0, sizeof mask);
        mask[1] = 1ull << 5;                        /* 69, which is impossible */
        for (int i = 0; i < 3; i++) assert_int_equal(sampler_next(a, logits, NULL, 0, 0), 69);
        sampler_mask(a, NULL);
        assert_int_equal(sampler_next(a, logits, NULL, 0, 0) % 2, 0);
        sampler_free(a);
        sampler_free(b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mask),
        cmocka_unit_test(test_transformers),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_top_p_large),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_not_numbers),
        cmocka_unit_test(test_same_everywhere),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_next_top),
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_halves_and_doubles),
        cmocka_unit_test(test_bias_100),
        cmocka_unit_test(test_wants_all),
        cmocka_unit_test(test_order_of_ids),
        cmocka_unit_test(test_top_logits),
        cmocka_unit_test(test_log_prob),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stop_holds_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
