/* sampler.c - logits to the next id, and the stop strings that end an answer.  See sampler.h.
 *
 * The filters compute what those of transformers 5.23 do (generation/logits_process.py); the
 * frequency and presence penalties, what vLLM does (model_executor/layers/utils.py,
 * apply_penalties).
 *
 * Compile with -ffp-contract=off and without -ffast-math: a fused multiply-add rounds once
 * instead of twice, and the same seed would no longer give the same ids on every machine. */
#include "sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    double weight;                      /* exp(value - largest value): 1 for the largest */
    float value;                        /* logit after bias, penalties and temperature */
    int id;
} Item;

struct Sampler {
    SamplerParams params;
    int n;                              /* size of the vocabulary */
    uint64_t state[4];                  /* of xoshiro256** */
    const uint64_t *mask;               /* the ids that may be drawn, borrowed; NULL: all */
    /* The logits that the mask allows, by rising id.  The index of a logit in them is its slot;
     * without a mask the slot is the id. */
    int count;
    int *map;                           /* [count] the id of each slot, only with a mask */
    float *value;                       /* [count] logits after bias, penalties and temperature */
    int *uses;                          /* [n] uses of each slot's id; all 0 between calls */
    int *ids;                           /* [n] scratch */
    Item *item;                         /* [n] what the filters have left, by rising id */
    Item *scratch;                      /* [n] */
    double sum;                         /* of the weights of the items that are left */
};

/* ---- numbers ---- */

/* A logit as the filters want it: finite, or -inf for "never".  NaN counts as "never" too. */
static float clean(float l) {
    if (!(l > -FLT_MAX)) return -INFINITY;
    return l < FLT_MAX ? l : FLT_MAX;
}

int are_numbers(const float *logits, int n) {
    float most = -INFINITY;
    int n_nan = 0;
    for (int i = 0; i < n; i++) {
        n_nan += isnan(logits[i]);
        if (logits[i] > most) most = logits[i];
    }
    return !n_nan && most > -INFINITY;
}

/* exp(x) for x <= 0, with a relative error of about 1e-15; 0 below -708, where doubles would become
 * subnormal.  libm's exp is not used because its last bit differs from one version to the next.
 * exp(x) = 2^k exp(r) with k the integer next to x / ln(2), so that |r| <= ln(2) / 2, where the
 * terms of exp's power series up to r^13 / 13! are enough for a double. */
static double exp_of(double x) {
    if (!(x > -708)) return 0;
    /* Adding 1.5 * 2^52 pushes the fraction out of the 53 bits: the sum is rounded to an
     * integer. */
    double shifted = x * 1.4426950408889634 + 0x1.8p52;
    double k = shifted - 0x1.8p52;
    /* ln(2) in two parts, of which the first ends in zeros: k times the first part is exact. */
    double r = x - k * 0x1.62e42fee00000p-1 - k * 0x1.a39ef35793c76p-33;
    static const double term[] = {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800,
                                  1. / 362880, 1. / 40320, 1. / 5040, 1. / 720, 1. / 120,
                                  1. / 24, 1. / 6, 1. / 2, 1, 1};
    double y = term[0];
    for (int i = 1; i < 14; i++) y = y * r + term[i];
    uint64_t bits = (uint64_t)(1023 + (int)k) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}

/* splitmix64, which turns the seed into the state of xoshiro256** (Blackman and Vigna,
 * prng.di.unimi.it). */
static uint64_t splitmix64(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t rotate(uint64_t x, int k) { return x << k | x >> (64 - k); }

/* A random number of xoshiro256** in [0, 1), a multiple of 2^-53. */
static double draw(uint64_t s[4]) {
    uint64_t x = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return (double)(x >> 11) * 0x1p-53;
}

/* ---- the largest logits ---- */

/* Does id a come after id b in the order of falling logits, ties by rising id? */
static int comes_after(const float *logits, int a, int b) {
    float x = clean(logits[a]), y = clean(logits[b]);
    return x < y || (x == y && a > b);
}

/* Restores the heap ids[0..n) below index i.  The root of the heap is the id that comes last. */
static void sift_ids(const float *logits, int *ids, int n, int i) {
    int id = ids[i];
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && comes_after(logits, ids[child + 1], ids[child])) child++;
        if (!comes_after(logits, ids[child], id)) break;
        ids[i] = ids[child];
    }
    ids[i] = id;
}

void top_logits(const float *logits, int n, int k, int *ids) {
    if (k <= 0) return;
    /* 1. A heap of the first k, with the least of them as its root. */
    for (int i = 0; i < k; i++) ids[i] = i;
    for (int i = k / 2; i-- > 0;) sift_ids(logits, ids, k, i);
    float least = clean(logits[ids[0]]);
    /* 2. Every larger logit replaces the root. */
    for (int i = k; i < n; i++) {
        if (!(clean(logits[i]) > least)) continue;
        ids[0] = i;
        sift_ids(logits, ids, k, 0);
        least = clean(logits[ids[0]]);
    }
    /* 3. Heapsort: the root, which comes last, goes to the end. */
    for (int i = k - 1; i > 0; i--) {
        int last = ids[0];
        ids[0] = ids[i];
        ids[i] = last;
        sift_ids(logits, ids, i, 0);
    }
}

double log_prob(const float *logits, int n, int id) {
    double sum = 0;
    float max = -INFINITY;
    for (int i = 0; i < n; i++)
        if (clean(logits[i]) > max) max = clean(logits[i]);
    if (max == -INFINITY) return -log(n);
    for (int i = 0; i < n; i++) sum += exp_of((double)clean(logits[i]) - max);
    return (double)clean(logits[id]) - max - log(sum);
}

/* ---- the filters ---- */

/* The slot of id in s->map, or -1. */
static int index_of(const Sampler *s, int id) {
    int from = 0, to = s->count;
    while (from < to) {
        int middle = from + (to - from) / 2;
        if (s->map[middle] < id) from = middle + 1;
        else to = middle;
    }
    return from < s->count && s->map[from] == id ? from : -1;
}

/* The slot of id in s->value, or -1 where there is no such id or the mask excludes it. */
static int slot_of(const Sampler *s, int id) {
    if (id < 0 || id >= s->n) return -1;
    return s->mask ? index_of(s, id) : id;
}

static void add_bias(Sampler *s) {
    for (int i = 0; i < s->params.n_bias; i++) {
        int at = slot_of(s, s->params.bias[i].id);
        if (at >= 0) s->value[at] = clean(s->value[at] + s->params.bias[i].bias);
    }
}

/* Counts in s->uses how often the id of each slot is among ids[0..n), and writes the slots with
 * a count above 0 to s->ids, each once.  Returns how many slots that are.  The caller sets the
 * counts back to 0, since clearing them for the whole vocabulary would cost more than the
 * penalties do. */
static int count_uses(Sampler *s, const int *ids, int n) {
    int found = 0;
    for (int i = 0; i < n; i++) {
        int at = slot_of(s, ids[i]);
        if (at >= 0 && !s->uses[at]++) s->ids[found++] = at;
    }
    return found;
}

/* The repetition penalty.  An id that was seen twice is penalized once. */
static void penalize_repetition(Sampler *s, const int *seen, int n_seen) {
    float penalty = s->params.repeat_penalty;
    for (int i = count_uses(s, seen, n_seen); i-- > 0;) {
        int at = s->ids[i];
        float l = s->value[at];
        s->value[at] = clean(l > 0 ? l / penalty : l * penalty);
        s->uses[at] = 0;
    }
}

/* The frequency and presence penalties.  The order of the ids does not matter, because uses are
 * counted before anything is subtracted. */
static void penalize_answer(Sampler *s, const int *answer, int n_answer) {
    float frequency = s->params.frequency_penalty, presence = s->params.presence_penalty;
    for (int i = count_uses(s, answer, n_answer); i-- > 0;) {
        int at = s->ids[i];
        float l = s->value[at] - frequency * (float)s->uses[at];
        s->value[at] = clean(l - presence);
        s->uses[at] = 0;
    }
}

/* Copies the logits that the mask allows to s->value[0..s->count), and their ids to s->map. */
static void take_allowed(Sampler *s, const float *logits) {
    s->count = 0;
    for (int w = 0; s->mask && w < (s->n + 63) / 64; w++)
        for (uint64_t bits = s->mask[w]; bits; bits &= bits - 1) {
            int id = 64 * w + __builtin_ctzll(bits);
            if (id >= s->n) break;
            s->map[s->count] = id;
            s->value[s->count++] = clean(logits[id]);
        }
    for (; !s->mask && s->count < s->n; s->count++) s->value[s->count] = clean(logits[s->count]);
}

/* Fills s->value with the allowed logits after bias, penalties and temperature.  Under a mask
 * -inf becomes -1e38, a weight of 0 beside any other id: the grammar must be able to go on even
 * where the model rules out all that the mask allows.  generate.c drops logits of -1e38 or less
 * from the list that it gives to sampler_next_top, which does not know this rule. */
static void adjust(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer) {
    const SamplerParams *p = &s->params;
    float temperature = p->temperature;
    take_allowed(s, logits);
    add_bias(s);
    if (p->repeat_penalty != 1) penalize_repetition(s, seen, n_seen);
    if (n_answer > 0 && (p->frequency_penalty != 0 || p->presence_penalty != 0))
        penalize_answer(s, seen + (n_seen - n_answer), n_answer);
    if (temperature > 0 && temperature != 1)
        for (int i = 0; i < s->count; i++) s->value[i] = clean(s->value[i] / temperature);
    for (int i = 0; s->mask && i < s->count; i++)
        if (s->value[i] == -INFINITY) s->value[i] = -1e38f;
}

/* One logit after the temperature, where there are no bias and no penalties. */
static float cooled(const Sampler *s, float l) {
    float temperature = s->params.temperature;
    return temperature != 1 ? clean(clean(l) / temperature) : clean(l);
}

/* Every logit is -inf: keeps the lowest id, since sampler_next must return one. */
static int keep_something(Sampler *s, float *max) {
    *max = 0;
    s->item[0] = (Item){0};
    return 1;
}

/* The index of the largest of l[0..n), the lowest on a tie. */
static int largest(const float *l, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (clean(l[i]) > clean(l[best])) best = i;
    return best;
}

/* Fills s->item with the ids that top-k leaves of s->value, by rising id, and *max with the largest
 * value.  Returns how many ids that are. */
static int keep_top_k(Sampler *s, float *max) {
    int k = s->params.top_k, n = 0;
    float least = -FLT_MAX;
    *max = s->value[largest(s->value, s->count)];
    if (*max == -INFINITY) return keep_something(s, max);
    if (k > 0 && k < s->count) {
        top_logits(s->value, s->count, k, s->ids);
        if (s->value[s->ids[k - 1]] > least) least = s->value[s->ids[k - 1]];
    }
    for (int i = 0; i < s->count; i++)
        if (s->value[i] >= least) s->item[n++] = (Item){0, s->value[i], s->mask ? s->map[i] : i};
    return n;
}

static int by_id(const void *a, const void *b) {
    return ((const Item *)a)->id - ((const Item *)b)->id;
}

/* keep_top_k from the n largest logits alone, which ids[n] and logits[n] list by falling value.
 * Returns 0 when top-k may leave an id that is not listed. */
static int keep_listed(Sampler *s, const int *ids, const float *logits, int n, float *max) {
    int k = s->params.top_k, kept = 0;
    float least = -FLT_MAX;
    *max = cooled(s, logits[0]);
    if (*max == -INFINITY) return keep_something(s, max);
    if (k > n && n < s->n) return 0;
    if (k > 0 && k < s->n && cooled(s, logits[k - 1]) > least) least = cooled(s, logits[k - 1]);
    /* A logit that is not listed is at most the last listed one.  The temperature keeps this order
     * but may round the two to equal values; so the last listed one must be below `least`. */
    if (n < s->n && cooled(s, logits[n - 1]) >= least) return 0;
    for (int i = 0; i < n; i++) {
        float value = cooled(s, logits[i]);
        if (value >= least) s->item[kept++] = (Item){0, value, ids[i]};
    }
    qsort(s->item, (size_t)kept, sizeof *s->item, by_id);
    return kept;
}

static int item_before(const Item *a, const Item *b) {
    return a->value > b->value || (a->value == b->value && a->id < b->id);
}

static void swap_items(Item *a, Item *b) {
    Item was = *a;
    *a = *b;
    *b = was;
}

/* The item at which the running sum of weights, in order, first reaches `mass`.  Reorders
 * item[0..n).  Works like Hoare's quickselect in [from, to): after parting the items around a
 * pivot it goes on with only the side in which the sum reaches `mass`, less the weights before
 * that side. */
static Item reaching(Item *item, int n, double mass) {
    int from = 0, to = n;
    while (to - from > 1) {
        /* 1. The pivot is the median of the first, middle and last item; it moves to the end, c. */
        Item *a = &item[from], *b = &item[from + (to - from) / 2], *c = &item[to - 1];
        if (item_before(b, a)) swap_items(a, b);
        if (item_before(c, b)) swap_items(b, c);
        if (item_before(b, a)) swap_items(a, b);
        swap_items(b, c);
        /* 2. The items before the pivot move to [from, middle), the pivot to `middle`. */
        double sum = 0;
        int middle = from;
        for (int i = from; i < to - 1; i++) {
            if (!item_before(&item[i], c)) continue;
            sum += item[i].weight;
            swap_items(&item[i], &item[middle++]);
        }
        swap_items(&item[middle], c);
        /* 3. The side, or the pivot itself, in which the sum reaches `mass`. */
        if (sum >= mass) to = middle;
        else if (sum + item[middle].weight >= mass) return item[middle];
        else {
            mass -= sum + item[middle].weight;
            from = middle + 1;
        }
    }
    return item[from < n ? from : n - 1];
}

/* Top-p: in the order of falling probability, keeps each id of s->item[0..n) before which less than
 * top_p has accumulated.  Returns how many are kept. */
static int keep_top_p(Sampler *s, int n) {
    double top_p = s->params.top_p, rest = (1 - top_p) * s->sum;
    int candidates = 0, kept = 0;
    /* An id and all less probable ids together weigh at most n times the id's own weight.  Where
     * that is no more than the rest beyond top_p, the id is out.  This leaves few candidates to
     * order. */
    for (int i = 0; i < n; i++)
        if (s->item[i].weight * n > rest || s->item[i].weight == 1)
            s->scratch[candidates++] = s->item[i];
    Item last = reaching(s->scratch, candidates, top_p * s->sum);
    for (int i = 0; i < n; i++)
        if (!item_before(&last, &s->item[i])) s->item[kept++] = s->item[i];
    return kept;
}

/* Min-p: keeps each id of s->item[0..n) that is at least min_p times as probable as the most
 * probable one, whose weight is 1.  Returns how many are kept. */
static int keep_min_p(Sampler *s, int n) {
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (s->item[i].weight >= s->params.min_p || s->item[i].weight == 1)
            s->item[kept++] = s->item[i];
    return kept;
}

/* Weighs s->item[0..n), which top-k has left, and applies top-p and min-p.  s->sum becomes the sum
 * of the weights that are left.  Returns how many items are left, at least 1. */
static int narrow(Sampler *s, int n, float max) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += s->item[i].weight = exp_of((double)s->item[i].value - max);
    s->sum = sum;
    if (s->params.top_p < 1) n = keep_top_p(s, n);
    if (s->params.min_p > 0) n = keep_min_p(s, n);
    s->sum = 0;
    for (int i = 0; i < n; i++) s->sum += s->item[i].weight;
    return n;
}

/* Takes all logits through all filters into s->item and s->sum.  Returns how many ids are left, at
 * least 1. */
static int filter(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer) {
    adjust(s, logits, seen, n_seen, n_answer);
    if (!(s->params.temperature > 0)) {
        int best = largest(s->value, s->count);
        s->item[0] = (Item){1, 0, s->mask ? s->map[best] : best};
        s->sum = 1;
        return 1;
    }
    float max;
    int n = keep_top_k(s, &max);
    return narrow(s, n, max);
}

/* Draws one of s->item[0..n) by its weight. */
static int pick(Sampler *s, int n) {
    double left = draw(s->state) * s->sum, sum = 0;
    for (int i = 0; i < n; i++)
        if ((sum += s->item[i].weight) > left) return s->item[i].id;
    return s->item[0].id;               /* never reached: the last `sum` is s->sum, above `left` */
}

/* ---- the sampler ---- */

Sampler *sampler_new(int n_vocab, SamplerParams params) {
    Sampler *s = xcalloc(1, sizeof *s);
    s->params = params;
    s->n = n_vocab;
    s->value = xcalloc(n_vocab, sizeof *s->value);
    s->ids = xcalloc(n_vocab, sizeof *s->ids);
    s->uses = xcalloc(n_vocab, sizeof *s->uses);
    s->map = xcalloc(n_vocab, sizeof *s->map);
    s->item = xcalloc(n_vocab, sizeof *s->item);
    s->scratch = xcalloc(n_vocab, sizeof *s->scratch);
    uint64_t seed = params.seed;
    for (int i = 0; i < 4; i++) s->state[i] = splitmix64(&seed);
    return s;
}

void sampler_free(Sampler *s) {
    if (!s) return;
    free(s->value);
    free(s->ids);
    free(s->uses);
    free(s->map);
    free(s->item);
    free(s->scratch);
    free(s);
}

void sampler_mask(Sampler *s, const uint64_t *mask) { s->mask = mask; }

int sampler_next(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer) {
    int n = filter(s, logits, seen, n_seen, n_answer);
    return s->params.temperature > 0 ? pick(s, n) : s->item[0].id;
}

/* sampler_next_top gets so many logits beyond the k largest.  Only if one of them is below the k-th
 * is it certain that the list holds all ties with the k-th.  The margin was chosen by judgement.
 * To tune it, count how often sampler_next_top returns -1, which costs a pass over all logits. */
#define TIE_MARGIN 16

int sampler_wants(const Sampler *s) {
    const SamplerParams *p = &s->params;
    if (p->n_bias > 0 || p->repeat_penalty != 1) return 0;
    if (p->frequency_penalty != 0 || p->presence_penalty != 0) return 0;
    if (!(p->temperature > 0)) return 1;
    if (p->top_k <= 0) return 0;
    return p->top_k + TIE_MARGIN < s->n ? p->top_k + TIE_MARGIN : s->n;
}

int sampler_next_top(Sampler *s, const int *ids, const float *logits, int n) {
    float max;
    if (!(s->params.temperature > 0)) return ids[0];
    int kept = keep_listed(s, ids, logits, n, &max);
    return kept ? pick(s, narrow(s, kept, max)) : -1;
}

int sampler_distribution(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer,
                         int *ids, float *probs) {
    int n = filter(s, logits, seen, n_seen, n_answer);
    for (int i = 0; i < n; i++) {
        ids[i] = s->item[i].id;
        probs[i] = (float)(s->item[i].weight / s->sum);
    }
    return n;
}

/* ---- stop strings ---- */

/* The length of the longest stop string that ends right before held[at], or 0. */
static size_t stop_ending(const StopFilter *f, size_t at) {
    size_t longest = 0;
    for (int i = 0; i < f->n; i++) {
        size_t n = strlen(f->strings[i]);
        if (n > longest && n <= at && !memcmp(f->held.data + at - n, f->strings[i], n)) longest = n;
    }
    return longest;
}

/* The length of the longest end of the held text that is the beginning of a stop string. */
static size_t stop_begun(const StopFilter *f) {
    size_t longest = 0;
    for (int i = 0; i < f->n; i++) {
        size_t n = strlen(f->strings[i]);
        for (size_t k = n < f->held.len ? n : f->held.len; k > longest; k--)
            if (!memcmp(f->held.data + f->held.len - k, f->strings[i], k)) longest = k;
    }
    return longest;
}

/* The earliest stop string is the one whose last byte comes first.  Looking at one byte after the
 * other finds it however the text was cut into pieces. */
int stop_feed(StopFilter *f, const char *text, size_t n, Buf *out) {
    size_t at = f->held.len, len;
    buf_add(&f->held, text, n);
    while (at++ < f->held.len) {
        if (!(len = stop_ending(f, at))) continue;
        buf_add(out, f->held.data, at - len);
        buf_drop(&f->held, f->held.len);
        return 1;
    }
    len = f->held.len - stop_begun(f);
    buf_add(out, f->held.data, len);
    buf_drop(&f->held, len);
    return 0;
}

void stop_flush(StopFilter *f, Buf *out) {
    buf_add(out, f->held.data, f->held.len);
    buf_drop(&f->held, f->held.len);
}

void stop_free(StopFilter *f) { buf_free(&f->held); }
