/* cache.c - rings, marks and prefixes: what a session remembers.  See cache.h. */
#include "cache.h"

#include <stdlib.h>

#include "checkpoint.h"

/* ---- sizes ---- */

int64_t key_bytes(const Layer *l, const KvCache *kv) {
    return (int64_t)l->n_kv_heads * kv->k_dim * dtype_size[kv->dtype];
}

int64_t value_bytes(const Layer *l, const KvCache *kv) {
    return (int64_t)l->n_kv_heads * l->head_dim * dtype_size[kv->dtype];
}

static int64_t row_bytes(const Layer *l, const KvCache *kv) {
    return key_bytes(l, kv) + value_bytes(l, kv);
}

/* The form of one layer's cache, without its memory.
 * slots: a ring holds the window and one step, because the keys of a step must not overwrite what
 * the first token of that step still sees.
 * k_dim: head_dim.  But only the dimensions that turn are stored (KvCache in ops.h) where three
 * things hold: V is the same projection as K (no v_proj), some pairs of dimensions turn, and the
 * cache is not FP8. */
static KvCache kv_shape(const Model *m, const CacheShape *shape, const Layer *l) {
    int64_t ring = (int64_t)m->config.window + shape->max_step;
    KvCache kv = {.dtype = shape->dtype, .slots = shape->context, .k_dim = l->head_dim};
    if (!l->global && ring < shape->context) kv.slots = ring;
    int turning = 0;
    for (int i = 0; i < l->head_dim / 2; i++) turning += l->inv_freq[i] != 0;
    if (!l->v.data && turning && kv.dtype != DT_F8_E4M3) kv.k_dim = 2 * turning;
    return kv;
}

int64_t cache_bytes(const Model *m, const CacheShape *shape, int64_t *per_token) {
    int64_t all = 0;
    *per_token = 0;
    for (int i = 0; i < m->config.n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        KvCache kv = kv_shape(m, shape, l);
        *per_token += row_bytes(l, &kv);
        all += row_bytes(l, &kv) * kv.slots;
    }
    return all;
}

int64_t cache_mark_bytes(const Model *m, const CacheShape *shape) {
    int64_t all = 0;
    for (int i = 0; i < m->config.n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        KvCache kv = kv_shape(m, shape, l);
        int goes_on = kv.slots < shape->context;        /* else the layer holds all positions */
        if (goes_on) all += N_MARKS * m->config.window * row_bytes(l, &kv);
    }
    return all;
}

/* Bytes of the copy that a mark holds. */
static size_t window_bytes(const Cache *c) {
    int64_t n = 0;
    for (int i = 0; i < c->m->config.n_layers; i++) {
        const Layer *l = &c->m->w.layer[i];
        if (!l->global) n += 2 * c->m->config.window * value_bytes(l, &c->kv[i]);
    }
    return (size_t)n;
}

/* ---- opening and closing ---- */

int cache_open(Cache *c, const Model *m, const Ops *ops, const CacheShape *shape) {
    *c = (Cache){.m = m, .ops = ops, .shape = *shape};
    c->kv = xcalloc(m->config.n_layers, sizeof *c->kv);
    for (int i = 0; i < m->config.n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        KvCache *kv = &c->kv[i];
        *kv = kv_shape(m, shape, l);
        kv->k = ops->alloc((size_t)(kv->slots * key_bytes(l, kv)));
        kv->v = ops->alloc((size_t)(kv->slots * value_bytes(l, kv)));
        if (!kv->k || !kv->v) return -1;
    }
    return 0;
}

static void forget_mark(Cache *c, Mark *mark) {
    if (mark->window) c->ops->release(mark->window, window_bytes(c));
    *mark = (Mark){0};
}

void cache_clear(Cache *c) {
    for (int i = 0; i < N_MARKS; i++) forget_mark(c, &c->mark[i]);
    c->ids.n = c->n_pictures = 0;
    c->low = 0;
}

void cache_close(Cache *c) {
    if (!c->kv) return;
    cache_clear(c);
    for (int i = 0; i < c->m->config.n_layers; i++) {
        const Layer *l = &c->m->w.layer[i];
        KvCache *kv = &c->kv[i];
        if (kv->k) c->ops->release(kv->k, (size_t)(kv->slots * key_bytes(l, kv)));
        if (kv->v) c->ops->release(kv->v, (size_t)(kv->slots * value_bytes(l, kv)));
    }
    free(c->kv);
    free(c->picture);
    ids_free(&c->ids);
    *c = (Cache){0};
}

/* ---- rings and marks ---- */

int64_t first_visible(const Cache *c, int64_t pos) {
    int64_t from = pos - c->m->config.window + 1;
    return from < 0 ? 0 : from;
}

int64_t first_held(const Cache *c, int64_t end) {
    int64_t slots = c->shape.context;   /* of the shortest ring, which decides */
    for (int i = 0; i < c->m->config.n_layers; i++)
        if (c->kv[i].slots < slots) slots = c->kv[i].slots;
    return end > slots ? end - slots : 0;
}

/* One side of a copy: position p is row p % slots. */
typedef struct {
    uint8_t *rows;
    int64_t slots;
} RingRows;

/* Copies the rows of positions from .. to - 1 from one ring to another, in runs that neither ring
 * breaks. */
static void copy_rows(const Ops *ops, RingRows source, RingRows target, int64_t row, int64_t from,
                      int64_t to) {
    while (from < to) {
        int64_t a = from % source.slots, b = from % target.slots, n = to - from;
        if (n > source.slots - a) n = source.slots - a;
        if (n > target.slots - b) n = target.slots - b;
        ops->copy(target.rows + b * row, source.rows + a * row, (size_t)(n * row));
        from += n;
    }
}

enum { TO_MARK, FROM_MARK };

/* Copies the window before a mark out of the rings of all sliding layers, or back. */
static void copy_window(const Cache *c, const Mark *mark, int direction) {
    int64_t window = c->m->config.window, from = first_visible(c, mark->pos);
    uint8_t *next = mark->window;
    for (int i = 0; i < c->m->config.n_layers; i++) {
        if (c->m->w.layer[i].global) continue;
        uint8_t *side[] = {c->kv[i].k, c->kv[i].v};
        int64_t row = value_bytes(&c->m->w.layer[i], &c->kv[i]);
        for (int k = 0; k < 2; k++) {
            RingRows ring = {side[k], c->kv[i].slots}, copy = {next, window};
            if (direction == TO_MARK) copy_rows(c->ops, ring, copy, row, from, mark->pos);
            else copy_rows(c->ops, copy, ring, row, from, mark->pos);
            next += window * row;
        }
    }
}

void cache_set_mark(Cache *c, int which, int64_t pos) {
    Mark *mark = &c->mark[which];
    if (mark->pos == pos) return;
    forget_mark(c, mark);
    mark->pos = pos;
}

const Mark *mark_below(const Cache *c, int64_t pos) {
    const Mark *best = NULL;
    for (int i = 0; i < N_MARKS; i++) {
        const Mark *mark = &c->mark[i];
        if (mark->window && mark->pos <= pos && (!best || mark->pos > best->pos)) best = mark;
    }
    return best;
}

int64_t cache_rewind(Cache *c, int64_t pos) {
    if (pos == c->ids.n) return pos;
    if (first_visible(c, pos) < c->low) {        /* the ring has gone on */
        const Mark *mark = mark_below(c, pos);
        pos = mark ? mark->pos : 0;
        if (mark) copy_window(c, mark, FROM_MARK);
        c->low = first_visible(c, pos);
    }
    for (int i = 0; i < N_MARKS; i++)
        if (c->mark[i].pos > pos) forget_mark(c, &c->mark[i]);
    c->ids.n = (int)pos;
    while (c->n_pictures && c->picture[c->n_pictures - 1].pos >= pos) c->n_pictures--;
    return pos;
}

int cache_make_room(Cache *c, int64_t end, Error *err) {
    int64_t low = first_held(c, end);
    if (low < c->low) low = c->low;
    for (int i = 0; i < N_MARKS; i++) {
        Mark *mark = &c->mark[i];
        int64_t from = first_visible(c, mark->pos);
        if (!mark->pos || mark->window || mark->pos > c->ids.n || from >= low) continue;
        if (from < c->low) {            /* the rings have lost this window already */
            forget_mark(c, mark);
            continue;
        }
        mark->window = c->ops->alloc(window_bytes(c));
        if (!mark->window) return fail(err, "out of memory");
        copy_window(c, mark, TO_MARK);
    }
    c->low = low;
    return 0;
}

/* ---- pictures and prefixes ---- */

void cache_add_picture(Cache *c, int pos, int n, uint64_t hash) {
    c->picture = xgrow(c->picture, c->n_pictures, &c->cap_pictures, sizeof *c->picture);
    c->picture[c->n_pictures++] = (CachedPicture){pos, n, hash};
}

const PictureSpan *picture_at(const PictureSpan *span, int n_spans, int64_t pos) {
    for (int i = 0; i < n_spans; i++)
        if (span[i].pos < pos && pos < span[i].pos + span[i].picture->n) return &span[i];
    return NULL;
}

static int is_same(const CachedPicture *held, const PictureSpan *span) {
    const Picture *p = span->picture;
    return held->pos == span->pos && held->n == p->n && held->hash == p->hash;
}

/* The position of the first picture that stands only in the cache or only in the prompt; `end`
 * where there is none before it. */
static int first_other_picture(const Cache *c, const PictureSpan *span, int n_spans, int end) {
    for (int i = 0; i < c->n_pictures || i < n_spans; i++) {
        int held = i < c->n_pictures ? c->picture[i].pos : end;
        int wanted = i < n_spans ? span[i].pos : end;
        int pos = held < wanted ? held : wanted;
        if (pos >= end) break;
        if (i >= c->n_pictures || i >= n_spans || !is_same(&c->picture[i], &span[i])) return pos;
    }
    return end;
}

int cache_common(const Cache *c, const int *ids, int n, const PictureSpan *span, int n_spans) {
    int common = 0;
    while (common < n && common < c->ids.n && ids[common] == c->ids.id[common]) common++;
    common = first_other_picture(c, span, n_spans, common);
    if (common == n) common = n - 1;
    const PictureSpan *in = picture_at(span, n_spans, common);
    return in ? in->pos : common;
}
