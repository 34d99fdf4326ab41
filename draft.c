/* draft.c - speculative decoding with a multi-token-prediction drafter.  See draft.h.
 *
 * The drafter (transformers 5.23.0, models/gemma4_assistant) is four small layers that have queries only: they attend to the
 * target's own cache, the sliding ones to its last sliding layer, the global one to its last global layer.  Its input is the
 * target's embedding of the newest token beside the target's hidden state before it; its output, projected back to the
 * target's width, is the hidden state for the next draft.  So it needs no prompt and keeps nothing: a round begins from what
 * the target holds at that moment, and there is nothing to take back afterwards.
 *
 * The target's own sample decides (generate.c draws it as ever): a draft is accepted while it equals that sample.  Therefore
 * penalties, masks, stop strings and the random numbers know nothing of all this. */
#include "draft.h"

#include <stdlib.h>
#include <string.h>

#include "sampler.h"

/* Where rounds with k drafts have led so far, to choose the next k by. */
typedef struct {
    double cost[MAX_ADAPTED + 1];       /* seconds of a round with k drafts; 0: not known */
    int seen[MAX_ADAPTED + 1];
    double rate[MAX_ADAPTED];           /* how often the draft in this place is accepted where those before it were */
    long rounds, next_trial;
    int trial_gap;                      /* rounds between two trials of another k */
} Adaption;

struct Drafter {
    Model *m;
    const Config *c;
    const Weights *w;
    Session *s;
    const Ops *op;
    Device *d;
    float *h, *logits;                  /* [backbone], [vocab] */
    int n_drafts, most;                 /* asked for (-1: adapted); what the session's chunk and the device allow */
    FILE *log;
    Adaption a;
    DraftStats stats;
    /* The round: its k drafts follow the token at `pos`; `accepted` of them have been taken in. */
    int64_t pos;
    int k, accepted, draft[MAX_DRAFTS];
    double began;
    int timed;
};

Drafter *drafter_open(const char *dir, const Model *target, Session *s, int n_drafts, FILE *log, Error *err) {
    const SessionOptions *o = session_given(s);
    ModelInfo info;
    if (!o->ops->combine) {
        fail(err, "a drafter needs --device cpu");
        return NULL;
    }
    Model *m = model_open_drafter(dir, target, err);
    if (!m || model_check(m, err)) {
        model_close(m);
        return NULL;
    }
    model_info(m, &info);
    Drafter *d = xcalloc(1, sizeof *d);
    *d = (Drafter){.m = m, .c = info.config, .w = model_weights(m), .s = s, .op = o->ops, .log = log, .n_drafts = n_drafts};
    d->most = o->chunk - 1 < MAX_DRAFTS ? o->chunk - 1 : MAX_DRAFTS;
    d->a.next_trial = d->a.trial_gap = 16;
    for (int i = 0; i < MAX_ADAPTED; i++) d->a.rate[i] = 0.7;
    d->h = xcalloc(d->c->backbone, sizeof *d->h);
    d->logits = xcalloc(d->c->vocab, sizeof *d->logits);
    DeviceOptions device = {.max_n = 1, .context = o->context, .n_threads = o->n_threads, .exact = o->exact};
    if ((d->d = o->ops->open(d->c, d->w, &device, err))) return d;
    drafter_close(d);
    return NULL;
}

void drafter_close(Drafter *d) {
    if (!d) return;
    if (d->d) d->op->close(d->d);
    model_close(d->m);
    free(d->h);
    free(d->logits);
    free(d);
}

const DraftStats *drafter_stats(const Drafter *d) { return &d->stats; }

int64_t drafter_bytes(const Drafter *d) {
    ModelInfo info;
    model_info(d->m, &info);
    return info.bytes_per_token;
}

int drafter_step(Drafter *d, int id, int64_t pos, float *h, float *logits, float *layers) {
    const Ops *op = d->op;
    float *all = logits ? logits : d->logits, best;
    op->combine(d->d, id, pos, h);
    for (int i = 0; i < d->c->n_layers; i++) {
        const Layer *l = &d->w->layer[i];
        KvCache kv = *session_cache(d->s, l->global);
        if (layers) op->read_x(d->d, layers + (int64_t)i * d->c->hidden);
        op->qkv(d->d, l, &kv);
        op->attend(d->d, l, &kv);
        op->attn_out(d->d, l);
        op->mlp(d->d, l);
        op->join(d->d, l);
    }
    if (layers) op->read_x(d->d, layers + (int64_t)d->c->n_layers * d->c->hidden);
    op->hidden(d->d, 0, h);
    int draft;
    if (!logits && op->top && op->top(d->d, 0, 1, &draft, &best) == 1) return draft;
    op->head(d->d, 0, 1, all);
    top_logits(all, d->c->vocab, 1, &draft);
    return draft;
}

/* ---- how many drafts pay ---- */

/* A round with k drafts: measured, or on the line through what is known of none and of the nearest that was tried. */
static double cost(const Adaption *a, int k) {
    int j = 0;
    for (int i = 1; i <= MAX_ADAPTED; i++)
        if (a->cost[i] > 0 && (!j || abs(i - k) < abs(j - k))) j = i;
    return a->cost[k] > 0 || !j ? a->cost[k] : a->cost[0] + k * (a->cost[j] - a->cost[0]) / j;
}

/* The k with the most tokens a second; now and then its neighbour, so that what is known stays true.  Trials that change
 * nothing become rare: they are what drafting can cost where it does not pay. */
static int choose(Adaption *a) {
    static const int first[] = {2, 2, 0, 0};        /* each twice: the first time much is read for the first time */
    long round = a->rounds++;
    if (round < 4) return first[round];
    int best = 0;
    double most = 0, tokens = 1, product = 1;
    for (int k = 0; k <= MAX_ADAPTED; k++) {
        if (k) tokens += product *= a->rate[k - 1];
        if (tokens / cost(a, k) > most) most = tokens / cost(a, k), best = k;
    }
    if (round < a->next_trial) return best;
    a->trial_gap = a->trial_gap < 256 ? a->trial_gap + a->trial_gap / 2 : 256;
    a->next_trial = round + a->trial_gap;
    return best == 0 || (best < MAX_ADAPTED && round % 2) ? best + 1 : best - 1;
}

static void blend(double *mean, double x, double share) { *mean += (x - *mean) * share; }

/* The first token of a round was drawn from its logits: now it has cost what it costs. */
static void take_time(Drafter *d) {
    if (d->timed || d->k > MAX_ADAPTED) return;
    double t = seconds() - d->began;
    d->timed = 1;
    blend(&d->a.cost[d->k], t, d->a.seen[d->k]++ < 2 ? 1 : 0.2);
}

/* ---- rounds ---- */

void drafter_end(Drafter *d) {
    for (int i = 0; i < d->k; i++) {
        d->stats.drafted[i]++;
        d->stats.accepted[i] += i < d->accepted;
        if (i <= d->accepted && i < MAX_ADAPTED) blend(&d->a.rate[i], i < d->accepted, 0.1);
    }
    if (d->log && d->pos >= 0) {
        fprintf(d->log, "{\"position\": %lld, \"drafted\": [", (long long)d->pos);
        for (int i = 0; i < d->k; i++) fprintf(d->log, "%s%d", i ? ", " : "", d->draft[i]);
        fprintf(d->log, "], \"accepted\": %d}\n", d->accepted);
    }
    d->k = d->accepted = 0;
    d->pos = -1;
}

void drafter_begin(Drafter *d) {
    d->stats = (DraftStats){0};
    d->k = d->accepted = 0;
    d->pos = -1;
    d->timed = 1;
}

int drafter_eval(Drafter *d, int id, int left, Error *err) {
    int n, k, round[1 + MAX_DRAFTS] = {id};
    session_ids(d->s, &n);
    take_time(d);
    if (d->accepted < d->k && d->draft[d->accepted] == id) {
        d->accepted++;
        d->stats.tokens++;
        session_view(d->s, n + 1);
        return 0;
    }
    drafter_end(d);
    int64_t room = session_context(d->s) - n - 1;
    k = d->n_drafts < 0 ? choose(&d->a) : d->n_drafts;
    if (k > d->most) k = d->most;
    if (k > left - 1) k = left > 0 ? left - 1 : 0;
    if (k > room) k = room > 0 ? (int)room : 0;
    d->began = seconds();
    if (k) session_hidden(d->s, d->h);
    for (int i = 0; i < k; i++) round[i + 1] = drafter_step(d, round[i], n, d->h, NULL, NULL);
    int bad = session_eval(d->s, round, 1 + k, NULL, NULL, err);
    if (bad) return bad;
    session_view(d->s, n + 1);
    memcpy(d->draft, round + 1, (size_t)k * sizeof *round);
    d->k = k;
    d->pos = n;
    d->timed = 0;
    d->stats.passes++;
    d->stats.tokens++;
    return 0;
}
