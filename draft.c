/* draft.c - speculative decoding with a multi-token-prediction drafter.  See draft.h.
 *
 * The drafter (transformers 5.23.0, models/gemma4_assistant) is four small layers that have queries
 * only: they attend to the target's own cache, the sliding ones to its last sliding layer, the
 * global one to its last global layer.  Its input is the target's embedding of the newest token
 * beside the target's hidden state before it; its output, projected back to the target's width, is
 * the hidden state for the next draft.  So it needs no prompt and keeps nothing: a round begins
 * from what the target holds at that moment, and there is nothing to take back afterwards.
 *
 * The target's own sample decides (generate.c draws it as ever): a draft is accepted while it
 * equals that sample.  Therefore penalties, masks, stop strings and the random numbers know nothing
 * of all this. */
#include "draft.h"

#include <stdlib.h>
#include <string.h>

struct Drafter {
    Model *m;
    const Config *c;
    const Weights *w;
    Session *s;
    const Ops *op;
    Pass pass;                          /* on a device of its own, with the target's caches */
    int n_drafts;                       /* as in drafter_open */
    int most;                           /* drafts that the session's chunk and the device allow */
    FILE *log;
    Adaption a;
    DraftStats stats;
    /* The round: its k drafts follow the token at `pos`; `accepted` of them have been taken in. */
    int64_t pos;
    int k, accepted, draft[MAX_DRAFTS];
    double began;                       /* the round, or the token accepted last */
};

/* Copies the residual stream after n_done layers to its place in `layers`. */
typedef struct {
    const Drafter *d;
    float *layers;                      /* [1 + n_layers][hidden] */
} LayerCopy;

static int copy_layer(void *arg, int n_done) {
    const LayerCopy *copy = arg;
    const Drafter *d = copy->d;
    d->op->read_x(d->pass.device, copy->layers + (int64_t)n_done * d->c->hidden);
    return 0;
}

/* Takes the newest token and h through the layers, for one draft.  layers (may be NULL): as in
 * drafter_step. */
static void run_layers(const Drafter *d, float *layers) {
    LayerCopy copy = {d, layers};
    Pass pass = d->pass;
    if (layers) pass.watch = copy_layer, pass.arg = &copy;
    d->op->combine(pass.device);
    forward_layers(&pass);
    d->op->guess(pass.device);
}

/* Each layer of the drafter reads the cache of the target's last layer of the same kind. */
static KvCache *borrow_caches(const Session *target, const Weights *w, int n_layers) {
    KvCache *kv = xcalloc(n_layers, sizeof *kv);
    for (int i = 0; i < n_layers; i++) kv[i] = *session_cache(target, w->layer[i].global);
    return kv;
}

int64_t drafter_size(const char *dir, const Model *target) {
    ModelInfo info;
    Model *m = model_open_drafter(dir, target, NULL);
    if (!m) return 0;
    model_info(m, &info);
    model_close(m);
    return info.bytes_on_disk;
}

Drafter *drafter_open(const char *dir, const Model *target, Session *s, int n_drafts, FILE *log,
                      Error *err) {
    const SessionOptions *o = session_given(s);
    Model *m = model_open_drafter(dir, target, err);
    if (m && model_warning(m)) remark("gemma4: warning: %s\n", model_warning(m));
    if (!m || model_check(m, err)) {
        model_close(m);
        return NULL;
    }
    Drafter *d = xcalloc(1, sizeof *d);
    *d = (Drafter){.m = m, .c = model_config(m), .w = model_weights(m), .s = s, .op = o->ops,
                   .log = log, .n_drafts = n_drafts};
    d->most = o->chunk - 1 < MAX_DRAFTS ? o->chunk - 1 : MAX_DRAFTS;
    d->a = adaption_new();
    int none;
    DeviceOptions device = {.max_n = 1, .context = o->context, .n_threads = o->n_threads,
                            .exact = o->exact, .activations = o->activations,
                            .memory_limit = o->memory_limit, .target = session_device(s, &none)};
    d->pass = (Pass){.m = m, .ops = o->ops, .kv = borrow_caches(s, d->w, d->c->n_layers)};
    Memory memory = {0};
    int bad = o->ops->memory && o->ops->memory(d->c, d->w, &device, &memory, err);
    int64_t wanted = memory.weights + memory.activations + memory.head_copy + memory.pictures;
    device.copy_head = memory.head_copy && wanted <= memory.free;
    if (!bad) d->pass.device = o->ops->open(d->c, d->w, &device, err);
    if (!d->pass.device) {
        drafter_close(d);
        return NULL;
    }
    if (d->op->record && d->op->record(d->pass.device, 1)) {
        run_layers(d, NULL);
        d->op->recorded(d->pass.device);
    }
    return d;
}

void drafter_close(Drafter *d) {
    if (!d) return;
    if (d->pass.device) d->op->close(d->pass.device);
    free(d->pass.kv);
    model_close(d->m);
    free(d);
}

const DraftStats *drafter_stats(const Drafter *d) { return &d->stats; }

int64_t drafter_bytes(const Drafter *d) {
    ModelInfo info;
    model_info(d->m, &info);
    return info.bytes_per_token;
}

static void make_draft(Drafter *d) {
    if (!d->op->replay || !d->op->replay(d->pass.device, NULL, 1, 0)) run_layers(d, NULL);
}

void drafter_round(Drafter *d, int id, int k, int *drafts) {
    int n, token;
    session_ids(d->s, &n);
    session_device(d->s, &token);
    d->op->draft_from(d->pass.device, token, id, n, NULL);
    for (int i = 0; i < k; i++) make_draft(d);
    d->op->drafts(d->pass.device, k, drafts);
}

int drafter_step(Drafter *d, int id, int64_t pos, float *h, float *logits, float *layers) {
    int draft;
    d->op->draft_from(d->pass.device, 0, id, pos, h);
    if (layers) run_layers(d, layers);
    else make_draft(d);
    if (logits) forward_head(&d->pass, 0, 1, logits);
    d->op->hidden(d->pass.device, 0, h);
    d->op->drafts(d->pass.device, 1, &draft);
    return draft;
}

/* ---- rounds ---- */

/* A token of the round has been drawn from its logits, so the time that it took is complete: the
 * round's first token tells what the round has cost, the others what a further token costs. */
static void take_time(Drafter *d) {
    if (d->pos < 0 || d->k > MAX_ADAPTED) return;
    double t = seconds() - d->began;
    if (d->accepted) adaption_further(&d->a, t);
    else adaption_cost(&d->a, d->k, t);
}

void drafter_end(Drafter *d) {
    for (int i = 0; i < d->k; i++) {
        d->stats.drafted[i]++;
        d->stats.accepted[i] += i < d->accepted;
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
}

int drafter_eval(Drafter *d, int id, int left, Error *err) {
    int n, k, round[1 + MAX_DRAFTS] = {id};
    session_ids(d->s, &n);
    take_time(d);
    if (d->accepted < d->k && d->draft[d->accepted] == id) {
        d->accepted++;
        d->stats.tokens++;
        session_view(d->s, n + 1);
        d->began = seconds();
        return 0;
    }
    if (d->pos >= 0) adaption_rate(&d->a, d->k, d->accepted);
    drafter_end(d);
    int64_t room = session_context(d->s) - n - 1;
    k = d->n_drafts < 0 ? adaption_choose(&d->a) : d->n_drafts;
    if (k > d->most) k = d->most;
    if (k > left - 1) k = left > 0 ? left - 1 : 0;
    if (k > room) k = room > 0 ? (int)room : 0;
    d->began = seconds();
    if (k) drafter_round(d, id, k, round + 1);
    int bad = session_eval(d->s, round, 1 + k, NULL, NULL, err);
    if (bad) return bad;
    session_view(d->s, n + 1);
    memcpy(d->draft, round + 1, (size_t)k * sizeof *round);
    d->k = k;
    d->pos = n;
    d->stats.passes++;
    d->stats.tokens++;
    return 0;
}
