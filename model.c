/* model.c - the forward pass: token ids become the residual stream, the residual stream travels
 * through all layers, and the head makes logits of it.  Read ops.h before it, plain.c beside it.
 *
 * This file says in which order the operations of a device run.  ops.h says what each operation
 * computes; plain.c, the CPU's files (cpu.h lists them) and the .cu files compute it.  The
 * reference for every number is transformers 5.23.0, models/gemma4/modeling_gemma4.py. */
#include <stdlib.h>

#include "checkpoint.h"

/* ---- a step: embeddings, layers, head ---- */

int in_step(const TokenStep *s, const PictureSpan *span) {
    return span->pos >= s->pos && span->pos < s->pos + s->n;
}

static int is_placeholder(const Model *m, int id) {
    int n_media = (int)(sizeof m->media / sizeof *m->media);
    for (int i = 0; i < n_media; i++)
        if (id == m->media[i]) return 1;
    return 0;
}

/* Fills in row [s->n]: which row of the embedding each token takes.  A placeholder of a picture, a
 * video or a sound takes the row of <pad>, as in Gemma4Model.forward; where there is a picture,
 * embed_soft then replaces its x. */
static void choose_rows(const Model *m, const TokenStep *s, int *row) {
    for (int i = 0; i < s->n; i++) row[i] = is_placeholder(m, s->ids[i]) ? m->pad : s->ids[i];
}

/* The residual stream's beginning: embeddings of tokens, soft tokens of pictures. */
static void embed(const Pass *p, const TokenStep *s) {
    p->ops->embed(p->device, p->row, s->n, s->pos);
    for (int i = 0; i < s->n_spans; i++) {
        const Picture *picture = s->span[i].picture;
        int first = (int)(s->span[i].pos - s->pos);
        if (!in_step(s, &s->span[i])) continue;
        p->ops->embed_soft(p->device, first, picture->n, picture->soft);
    }
}

/* Takes the residual stream through layer i.  This function is the architecture: plain.c has the
 * formula of each call. */
static void one_layer(const Pass *p, int i) {
    const Ops *op = p->ops;
    Device *d = p->device;
    const Layer *l = &p->m->w.layer[i];
    KvCache *kv = &p->kv[i];
    op->qkv(d, l, kv);                  /* queries; keys and values, into the cache */
    op->attend(d, l, kv);
    op->attn_out(d, l);                 /* x += norm(output projection) */
    op->mlp(d, l);                      /* the dense MLP, which all tokens share */
    if (p->m->config.n_experts) {
        op->route(d, l);                /* chooses the top_k experts of each token */
        op->experts(d, l);
    }
    op->join(d, l);                     /* x += norm(MLP + experts), then the layer's scalar */
}

int forward_layers(const Pass *p) {
    int n_layers = p->m->config.n_layers;
    for (int i = 0; i < n_layers; i++) {
        if (p->watch && p->watch(p->arg, i)) return 1;
        one_layer(p, i);
    }
    if (p->watch) p->watch(p->arg, n_layers);
    return 0;
}

void forward_head(const Pass *p, int first, int count, float *logits) {
    p->ops->head(p->device, first, count, logits);
}

/* ---- steps that a device takes as a whole ---- */

/* Whether a device may take this step as a whole: one that it recorded before.  The host cannot
 * look into such a step, and a recorded step has no pictures. */
static int is_whole(const Pass *p, const TokenStep *s) {
    if (!p->ops->replay || p->reads_x || s->n > MAX_RECORDED) return 0;
    for (int i = 0; i < s->n_spans; i++)
        if (in_step(s, &s->span[i])) return 0;
    return 1;
}

/* Has the device record the step.  The device computes nothing while it records, so there is
 * nothing to watch: watch is NULL. */
static void record(const Pass *p, const TokenStep *s) {
    Pass unwatched = *p;
    unwatched.watch = NULL;
    embed(p, s);
    forward_layers(&unwatched);
    p->ops->recorded(p->device);
}

int forward(const Pass *p, const TokenStep *s) {
    const Ops *op = p->ops;
    choose_rows(p->m, s, p->row);
    int replayed = 0;
    if (is_whole(p, s)) {
        replayed = op->replay(p->device, p->row, s->n, s->pos);
        if (!replayed && op->record(p->device, s->n)) {
            record(p, s);
            replayed = op->replay(p->device, p->row, s->n, s->pos);
        }
    }
    if (!replayed) {
        embed(p, s);
        return forward_layers(p);
    }
    if (p->watch) p->watch(p->arg, p->m->config.n_layers);
    return 0;
}

void forward_rehearse(const Pass *p) {
    TokenStep one = {.ids = (int[]){0}, .n = 1};
    if (!p->ops->record || !p->ops->record(p->device, 1)) return;
    choose_rows(p->m, &one, p->row);
    record(p, &one);
}

/* ---- a picture through the vision tower ---- */

int forward_picture(const Pass *p, Picture *picture, const volatile sig_atomic_t *cancel) {
    const Tower *v = &p->m->w.tower;
    const Ops *op = p->ops;
    Device *d = p->device;
    if (op->see(d, v, picture->pixels, picture->columns, picture->rows)) return -1;
    for (int i = 0; i < v->n_layers; i++) {
        if (cancel && *cancel) return 1;
        op->see_layer(d, v, &v->layer[i]);
    }
    picture->soft = xcalloc((int64_t)picture->n * p->m->config.hidden, sizeof *picture->soft);
    op->see_pool(d, v, picture->soft);
    free(picture->pixels);
    picture->pixels = NULL;
    return 0;
}
