/* model.c - the forward pass (`forward`, the place to begin reading), and the sessions around it, which know which tokens the
 * cache holds.  The reference for every number is transformers 5.23.0, models/gemma4/modeling_gemma4.py. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoint.h"

/* ------------------------------------------------------------------------------------------------------------
 * Sessions */

/* A place the session may want to return to, though the rings of its sliding layers have gone on: the window before
 * pos is copied out just before the first of its slots is overwritten. */
typedef struct {
    int64_t pos;                        /* 0: no mark */
    uint8_t *saved;                     /* K then V of each sliding layer, window positions each; NULL: not needed yet */
} Mark;

/* A picture that the cache holds. */
typedef struct {
    int pos, n;
    uint64_t hash;
} Seen;

struct Session {
    const Model *m;
    SessionOptions o;
    Device *d, *eye;                    /* eye: the CPU, for pictures for which d has no room; NULL: not needed yet */
    KvCache *kv;                        /* [n_layers] */
    Ids ids;                            /* the tokens whose keys and values the cache holds */
    Seen *seen;                         /* the pictures among them */
    int n_seen, cap_seen;
    const Span *span;                   /* the pictures among the ids of this call */
    int n_spans;
    int max_step;                       /* tokens that a step can have */
    int64_t low;                        /* the rings hold positions low .. ids.n - 1 */
    Mark mark[2];                       /* [0] where the next turn will probably go on, [1] a prefix that came twice */
    int *row;                           /* [max_step] the embedding's row of each token of a step */
    int64_t step;                       /* position of the last step's first token; the step has n_step */
    int n_step;
    float *logits;                      /* [n_logits][vocab] */
    int n_logits;                       /* room for so many */
    int first, n_known;                 /* those of the last step's tokens from `first` on are there */
    int64_t device_bytes;
    int head_copied;
    int sum_to_do, sum_done;            /* for progress: tokens of this call */
    TraceFn *trace;
    void *trace_arg;
    float *trace_x, *trace_weight;
    int *trace_expert;
};

/* What one position takes of a layer's keys, and of its values; in a sliding layer the same. */
static int64_t k_bytes(const Layer *l, const KvCache *kv) { return (int64_t)l->n_kv_heads * kv->k_dim * dtype_size[kv->dtype]; }
static int64_t v_bytes(const Layer *l, const KvCache *kv) { return (int64_t)l->n_kv_heads * l->head_dim * dtype_size[kv->dtype]; }

static DType kv_dtype(const Model *m, KvType t) {
    if (t == KV_AUTO) t = m->fp8_kv ? KV_FP8 : KV_BF16;
    return t == KV_F32 ? DT_F32 : t == KV_BF16 ? DT_BF16 : DT_F8_E4M3;
}

static int chunk_of(const SessionOptions *o) {
    int n = o->chunk ? o->chunk : o->ops->chunk;
    return n < o->context ? n : (int)o->context;
}

/* The most tokens of a step: a chunk, or a picture, which is never cut. */
static int max_step(const Model *m, const SessionOptions *o) {
    int n = m->w.tower.n_layers && o->picture > chunk_of(o) ? o->picture : chunk_of(o);
    return n < o->context ? n : (int)o->context;
}

/* A sliding layer's ring holds the window and one step: a step's own keys must not overwrite what its first token
 * still sees. */
static KvCache kv_shape(const Model *m, const SessionOptions *o, const Layer *l) {
    int64_t ring = (int64_t)m->config.window + max_step(m, o);
    KvCache kv = {.dtype = kv_dtype(m, o->kv), .slots = l->global || ring > o->context ? o->context : ring, .k_dim = l->head_dim};
    int turning = 0;
    for (int i = 0; i < l->head_dim / 2; i++) turning += l->inv_freq[i] != 0;
    if (!l->v.data && turning && kv.dtype != DT_F8_E4M3) kv.k_dim = 2 * turning;
    return kv;
}

int64_t kv_bytes(const Model *m, const SessionOptions *o, int64_t *per_token) {
    int64_t all = 0;
    *per_token = 0;
    for (int i = 0; i < m->config.n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        KvCache kv = kv_shape(m, o, l);
        int64_t row = k_bytes(l, &kv) + v_bytes(l, &kv);
        *per_token += row;
        all += row * kv.slots;
    }
    return all;
}

/* Without the head's copy. */
static DeviceOptions device_options(const Model *m, const SessionOptions *o) {
    return (DeviceOptions){.max_n = max_step(m, o), .context = o->context, .n_threads = o->n_threads, .exact = o->exact,
                           .fp4_activations = o->fp4_activations, .loading = o->loading};
}

static int64_t session_bytes(const Memory *m) {
    return m->weights + m->activations + m->cache + m->head_copy;
}

int session_memory(const Model *m, const SessionOptions *o, Memory *memory, Error *err) {
    int64_t per_token;
    *memory = (Memory){0};
    if (!o->ops->memory) return 0;
    DeviceOptions d = device_options(m, o);
    if (o->ops->memory(&m->config, &m->w, &d, memory, err)) return -1;
    memory->cache = kv_bytes(m, o, &per_token);
    for (int i = 0; i < m->config.n_layers; i++) {      /* the two marks, where a ring can go on */
        const Layer *l = &m->w.layer[i];
        KvCache kv = kv_shape(m, o, l);
        if (kv.slots < o->context) memory->cache += 2 * m->config.window * (k_bytes(l, &kv) + v_bytes(l, &kv));
    }
    int64_t wanted = session_bytes(memory) + memory->pictures + o->beside;
    if (wanted > memory->free) memory->head_copy = 0;
    return 0;
}

/* The head's copy gives way to everything else. */
static int fits(const Memory *m) { return session_bytes(m) - m->head_copy <= m->free; }

/* The longest context that fits, below that of the options; 0: none does. */
static int64_t context_that_fits(const Model *m, SessionOptions o) {
    int64_t low = 0, high = o.context;
    while (low < high) {
        Memory memory;
        o.context = (low + high + 1) / 2;
        if (!session_memory(m, &o, &memory, NULL) && fits(&memory)) low = o.context;
        else high = o.context - 1;
    }
    return low < 4096 ? low : low / 1024 * 1024;
}

/* Whether the device has room for the session: 0, or -1 with the numbers and what would fit. */
static int check_memory(const Model *m, const SessionOptions *o, Memory *memory, Error *err) {
    if (session_memory(m, o, memory, err)) return -1;
    if (fits(memory)) return 0;
    if (memory->weights > memory->free)
        return fail(err, "the GPU has %.2f GB free: the weights, %.2f GB, do not fit", (double)memory->free * 1e-9,
                    (double)memory->weights * 1e-9);
    SessionOptions fp8 = *o;
    fp8.kv = KV_FP8;
    int64_t n = context_that_fits(m, *o), n_fp8 = kv_dtype(m, o->kv) == DT_BF16 ? context_that_fits(m, fp8) : 0;
    char would[128] = "a smaller --chunk may help";
    if (n_fp8 > n) snprintf(would, sizeof would, "-c %lld would fit, or --kv fp8 with -c %lld", (long long)n, (long long)n_fp8);
    else if (n) snprintf(would, sizeof would, "-c %lld would fit", (long long)n);
    return fail(err, "the GPU has %.2f GB free: weights %.2f GB + activations %.2f GB + cache %.2f GB (context %lld) do not fit; %s",
                (double)memory->free * 1e-9, (double)memory->weights * 1e-9, (double)memory->activations * 1e-9,
                (double)memory->cache * 1e-9, (long long)o->context, would);
}

static void rehearse(Session *s);

Session *session_new(const Model *m, const SessionOptions *o, Error *err) {
    const Config *c = &m->config;
    DeviceOptions device = device_options(m, o);
    Memory memory;
    if (check_memory(m, o, &memory, err)) return NULL;
    Session *s = xcalloc(1, sizeof *s);
    s->device_bytes = session_bytes(&memory);
    s->head_copied = device.copy_head = memory.head_copy > 0;
    s->m = m;
    s->o = *o;
    s->o.chunk = chunk_of(o);
    s->max_step = device.max_n;
    s->kv = xcalloc(c->n_layers, sizeof *s->kv);
    s->row = xcalloc(s->max_step, sizeof *s->row);
    s->d = o->ops->open(c, &m->w, &device, err);
    for (int i = 0; s->d && i < c->n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        KvCache *kv = &s->kv[i];
        *kv = kv_shape(m, o, l);
        kv->k = o->ops->alloc((size_t)(kv->slots * k_bytes(l, kv)));
        kv->v = o->ops->alloc((size_t)(kv->slots * v_bytes(l, kv)));
        if (!kv->k || !kv->v) {
            int64_t per_token, all = kv_bytes(m, o, &per_token);
            fail(err, "no memory for a context of %lld positions (%.1f GB): try a smaller -c", (long long)o->context, (double)all * 1e-9);
            session_free(s);
            return NULL;
        }
    }
    if (s->d) {
        rehearse(s);
        return s;
    }
    session_free(s);
    return NULL;
}

static size_t saved_bytes(const Session *s) {
    int64_t n = 0;
    for (int i = 0; i < s->m->config.n_layers; i++)
        if (!s->m->w.layer[i].global) n += 2 * s->m->config.window * v_bytes(&s->m->w.layer[i], &s->kv[i]);
    return (size_t)n;
}

static void forget(Session *s, Mark *mark) {
    if (mark->saved) s->o.ops->release(mark->saved, saved_bytes(s));
    *mark = (Mark){0};
}

/* Makes it empty. */
static void session_forget(Session *s) {
    forget(s, &s->mark[0]);
    forget(s, &s->mark[1]);
    s->ids.n = s->n_seen = 0;
    s->low = 0;
}

void session_free(Session *s) {
    if (!s) return;
    session_forget(s);
    for (int i = 0; i < s->m->config.n_layers; i++) {
        const Layer *l = &s->m->w.layer[i];
        KvCache *kv = &s->kv[i];
        if (kv->k) s->o.ops->release(kv->k, (size_t)(kv->slots * k_bytes(l, kv)));
        if (kv->v) s->o.ops->release(kv->v, (size_t)(kv->slots * v_bytes(l, kv)));
    }
    if (s->eye) cpu_ops.close(s->eye);
    if (s->d) s->o.ops->close(s->d);
    free(s->kv);
    free(s->row);
    free(s->seen);
    free(s->logits);
    free(s->trace_x);
    free(s->trace_weight);
    free(s->trace_expert);
    ids_free(&s->ids);
    free(s);
}

/* Copies the rows of positions from .. to - 1 between a ring and a flat copy in which position p is row p % window. */
static void copy_rows(const Session *s, uint8_t *ring, int64_t slots, uint8_t *flat, int64_t row, int64_t from, int64_t to, int save) {
    int64_t window = s->m->config.window;
    while (from < to) {
        int64_t a = from % slots, b = from % window, n = to - from;
        if (n > slots - a) n = slots - a;
        if (n > window - b) n = window - b;
        if (save) s->o.ops->copy(flat + b * row, ring + a * row, (size_t)(n * row));
        else s->o.ops->copy(ring + a * row, flat + b * row, (size_t)(n * row));
        from += n;
    }
}

/* The first position that a token at pos - 1 or later can still want from a ring. */
static int64_t window_begin(const Session *s, int64_t pos) {
    int64_t from = pos - s->m->config.window + 1;
    return from < 0 ? 0 : from;
}

static void copy_mark(const Session *s, const Mark *mark, int save) {
    uint8_t *flat = mark->saved;
    for (int i = 0; i < s->m->config.n_layers; i++) {
        if (s->m->w.layer[i].global) continue;
        uint8_t *part[2] = {s->kv[i].k, s->kv[i].v};
        int64_t row = v_bytes(&s->m->w.layer[i], &s->kv[i]);
        for (int k = 0; k < 2; k++) {
            copy_rows(s, part[k], s->kv[i].slots, flat, row, window_begin(s, mark->pos), mark->pos, save);
            flat += s->m->config.window * row;
        }
    }
}

static void set_mark(Session *s, Mark *mark, int64_t pos) {
    if (mark->pos == pos) return;
    forget(s, mark);
    mark->pos = pos;
}

/* The last saved mark at or below pos, or NULL. */
static const Mark *mark_below(const Session *s, int64_t pos) {
    const Mark *best = NULL;
    for (int i = 0; i < 2; i++)
        if (s->mark[i].saved && s->mark[i].pos <= pos && (!best || s->mark[i].pos > best->pos)) best = &s->mark[i];
    return best;
}

/* Goes back to pos, or as near below it as the rings and the marks allow; returns where that is. */
static int64_t rewind_to(Session *s, int64_t pos) {
    if (pos == s->ids.n) return pos;
    if (window_begin(s, pos) < s->low) {        /* the ring has gone on */
        const Mark *mark = mark_below(s, pos);
        pos = mark ? mark->pos : 0;
        if (mark) copy_mark(s, mark, 0);
        s->low = mark ? window_begin(s, pos) : 0;
    }
    for (int i = 0; i < 2; i++)
        if (s->mark[i].pos > pos) forget(s, &s->mark[i]);
    s->ids.n = (int)pos;
    while (s->n_seen && s->seen[s->n_seen - 1].pos >= pos) s->n_seen--;
    return pos;
}

/* ------------------------------------------------------------------------------------------------------------
 * Pictures */

void session_pictures(Session *s, const Span *span, int n) {
    s->span = span;
    s->n_spans = n;
}

/* The picture that [0, pos) cuts in two, or NULL. */
static const Span *cut(const Session *s, int64_t pos) {
    for (int i = 0; i < s->n_spans; i++)
        if (s->span[i].pos < pos && pos < s->span[i].pos + s->span[i].picture->n) return &s->span[i];
    return NULL;
}

/* How much of ids[0..n) the cache holds, whole pictures only: a picture's tokens have seen the later ones of it. */
static int common_prefix(const Session *s, const int *ids, int n) {
    int common = 0, a = 0;
    while (common < n && common < s->ids.n && ids[common] == s->ids.id[common]) common++;
    for (int b = 0; a < s->n_seen || b < s->n_spans; a++, b++) {
        int pos_a = a < s->n_seen ? s->seen[a].pos : n, pos_b = b < s->n_spans ? s->span[b].pos : n;
        int same = pos_a == pos_b && pos_a < n && s->seen[a].hash == s->span[b].picture->hash && s->seen[a].n == s->span[b].picture->n;
        int pos = pos_a < pos_b ? pos_a : pos_b;
        if (pos >= common) break;
        if (!same) return pos;
    }
    if (common == n) common = n - 1;            /* the last token's logits are wanted: it is evaluated again */
    const Span *in = cut(s, common);
    return in ? in->pos : common;
}

/* Whether picture i begins in the next n tokens. */
static int in_step(const Session *s, int i, int n) { return s->span[i].pos >= s->ids.n && s->span[i].pos < s->ids.n + n; }

/* Runs the tower on the pictures of the next n tokens.  Returns 0, 1 when cancelled, -1 with err. */
static int encode_pictures(Session *s, int n, Error *err) {
    const Tower *v = &s->m->w.tower;
    for (int i = 0; i < s->n_spans; i++) {
        Picture *p = s->span[i].picture;
        if (!in_step(s, i, n) || p->soft) continue;
        if (!v->n_layers) return fail(err, "this checkpoint has no vision tower: it takes no pictures");
        if (p->columns > v->n_positions || p->rows > v->n_positions)
            return fail(err, "a picture of %d x %d patches: this tower has positions for %d a side", p->columns, p->rows, v->n_positions);
        const Ops *op = s->o.ops;
        Device *d = s->d;
        int bad = op->see(d, v, p->pixels, p->columns, p->rows);
        if (bad && op != &cpu_ops) {
            DeviceOptions small = {.max_n = 1, .context = 1, .n_threads = s->o.n_threads, .exact = s->o.exact};
            if (!s->eye && !(s->eye = cpu_ops.open(&s->m->config, &s->m->w, &small, err))) return -1;
            op = &cpu_ops;
            d = s->eye;
            bad = op->see(d, v, p->pixels, p->columns, p->rows);
        }
        if (bad) return fail(err, "no memory for a picture of %d x %d patches", p->columns, p->rows);
        for (int l = 0; l < v->n_layers; l++) {
            if (s->o.cancel && *s->o.cancel) return 1;
            op->see_layer(d, v, &v->layer[l]);
        }
        p->soft = xcalloc((int64_t)p->n * s->m->config.hidden, sizeof *p->soft);
        op->see_pool(d, v, p->soft);
        free(p->pixels);
        p->pixels = NULL;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------
 * The forward pass: n tokens through all layers. */

static void pass_layer(const Session *s, int i) {
    const Ops *op = s->o.ops;
    const Layer *l = &s->m->w.layer[i];
    Device *d = s->d;
    op->qkv(d, l, &s->kv[i]);
    op->attend(d, l, &s->kv[i]);
    op->attn_out(d, l);
    op->mlp(d, l);
    if (s->m->config.n_experts) {
        op->route(d, l);
        op->experts(d, l);
    }
    op->join(d, l);
}

/* So many tokens of this step are done, or begun. */
static void tell(const Session *s, double n) {
    if (s->o.progress) s->o.progress(s->o.arg, s->sum_to_do, (s->sum_done + n) / s->sum_to_do);
}

/* Returns 1 when cancelled. */
static int forward(Session *s, const int *ids, int n) {
    const Ops *op = s->o.ops;
    const Config *c = &s->m->config;
    Device *d = s->d;
    /* A placeholder whose picture is not there is embedded as <pad>, as Gemma4Model.forward does it. */
    const int *media = s->m->media;
    if (s->o.cancel && *s->o.cancel) return 1;
    for (int i = 0; i < n; i++)
        s->row[i] = ids[i] == media[0] || ids[i] == media[1] || ids[i] == media[2] ? s->m->pad : ids[i];
    int whole = op->replay && !s->trace && n <= MAX_RECORDED;   /* no look into the step */
    for (int i = 0; i < s->n_spans; i++) whole = whole && !in_step(s, i, n);
    if (whole && op->replay(d, s->row, n, s->ids.n)) {
        tell(s, n);
        return 0;
    }
    int recording = whole && op->record(d, n);
    op->embed(d, s->row, n, s->ids.n);
    for (int i = 0; i < s->n_spans; i++)
        if (in_step(s, i, n)) op->embed_soft(d, s->span[i].pos - s->ids.n, s->span[i].picture->n, s->span[i].picture->soft);
    for (int i = 0; i < c->n_layers; i++) {
        if (n > 1 && !recording && s->o.cancel && *s->o.cancel) return 1;
        if (s->trace && i == 0) {
            op->read_x(d, s->trace_x);
            s->trace(s->trace_arg, -1, s->ids.n, n, s->trace_x, NULL, NULL);
        }
        pass_layer(s, i);
        if (s->trace) {
            op->read_x(d, s->trace_x);
            if (c->n_experts) op->read_route(d, s->trace_expert, s->trace_weight);
            s->trace(s->trace_arg, i, s->ids.n, n, s->trace_x, c->n_experts ? s->trace_expert : NULL, s->trace_weight);
        }
        tell(s, n * (i + 1.0) / c->n_layers);
    }
    if (recording) {
        op->recorded(d);
        op->replay(d, s->row, n, s->ids.n);
    }
    return 0;
}

/* A device that can learns the step of one token, so that no token of an answer waits for that. */
static void rehearse(Session *s) {
    const Ops *op = s->o.ops;
    if (!op->record || !op->record(s->d, 1)) return;
    op->embed(s->d, s->row, 1, 0);
    for (int i = 0; i < s->m->config.n_layers; i++) pass_layer(s, i);
    op->recorded(s->d);
}

/* The first position that the rings have room for when they are written up to `end`. */
static int64_t first_held(const Session *s, int64_t end) {
    int64_t slots = s->o.context;
    for (int i = 0; i < s->m->config.n_layers; i++)
        if (s->kv[i].slots < slots) slots = s->kv[i].slots;
    return end > slots ? end - slots : 0;
}

/* The rings are about to be written up to `end`: saves the marks that this would spoil, and moves low. */
static int make_room(Session *s, int64_t end, Error *err) {
    int64_t low = first_held(s, end) > s->low ? first_held(s, end) : s->low;
    for (int i = 0; i < 2; i++) {
        Mark *mark = &s->mark[i];
        int64_t from = window_begin(s, mark->pos);
        if (!mark->pos || mark->saved || mark->pos > s->ids.n || from >= low) continue;
        if (from < s->low) {                /* it is gone already */
            forget(s, mark);
            continue;
        }
        mark->saved = s->o.ops->alloc(saved_bytes(s));
        if (!mark->saved) return fail(err, "out of memory");
        copy_mark(s, mark, 1);
    }
    s->low = low;
    return 0;
}

static void remember(Session *s, int pos, int n, uint64_t hash) {
    if (s->n_seen == s->cap_seen) s->seen = xrealloc(s->seen, s->cap_seen = 2 * s->cap_seen + 8, sizeof *s->seen);
    s->seen[s->n_seen++] = (Seen){pos, n, hash};
}

static void room_for_logits(Session *s, int n) {
    if (n <= s->n_logits) return;
    s->n_logits = n;
    s->logits = xrealloc(s->logits, (int64_t)n * s->m->config.vocab, sizeof(float));
}

int session_eval(Session *s, const int *ids, int n, void (*each)(void *, int64_t, const float *), void *arg, Error *err) {
    const Config *c = &s->m->config;
    if ((int64_t)s->ids.n + n > s->o.context)
        return fail(err, "%lld tokens are more than the context of %lld (-c)", (long long)s->ids.n + n, (long long)s->o.context);
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= c->vocab) return fail(err, "token id %d is outside the vocabulary of %d", ids[i], c->vocab);
    if (each) room_for_logits(s, MAX_VIEW);
    const Span *in = cut(s, s->ids.n + n);
    if (in) return fail(err, "the ids end inside a picture of %d soft tokens", in->picture->n);
    for (int i = 0; i < s->n_spans; i++)
        if (s->span[i].picture->n > s->max_step)
            return fail(err, "a picture of %d soft tokens is more than --image-tokens", s->span[i].picture->n);
    s->sum_to_do = n;
    s->sum_done = 0;
    while (n > 0) {
        int step = n < s->o.chunk ? n : s->o.chunk;
        /* A step ends at a mark, so that the mark can be saved before the rings go on. */
        for (int i = 0; i < 2; i++)
            if (s->mark[i].pos > s->ids.n && s->mark[i].pos < s->ids.n + step) step = (int)s->mark[i].pos - s->ids.n;
        /* It ends before a picture that it would cut; one at its beginning it takes whole. */
        if ((in = cut(s, s->ids.n + step))) step = in->pos > s->ids.n ? in->pos - s->ids.n : in->picture->n;
        int stopped = encode_pictures(s, step, err);
        if (stopped) return stopped;
        if (make_room(s, s->ids.n + step, err)) return -1;
        s->n_known = 0;
        s->step = s->ids.n;
        if (forward(s, ids, step)) return 1;
        s->n_step = step;
        for (int i = 0; each && i < step; i += MAX_VIEW) {
            int count = step - i < MAX_VIEW ? step - i : MAX_VIEW;
            s->o.ops->head(s->d, i, count, s->logits);
            for (int k = 0; k < count; k++) each(arg, s->ids.n + i + k, s->logits + (int64_t)k * c->vocab);
        }
        for (int i = 0; i < s->n_spans; i++)
            if (in_step(s, i, step)) remember(s, s->span[i].pos, s->span[i].picture->n, s->span[i].picture->hash);
        for (int i = 0; i < step; i++) ids_add(&s->ids, ids[i]);
        ids += step;
        n -= step;
        s->sum_done += step;
    }
    return 0;
}

int session_sync(Session *s, const int *ids, int n, int n_stable, int *reused, Error *err) {
    if (n < 1) return fail(err, "the prompt is empty");
    if (n > s->o.context)
        return fail(err, "the prompt has %d tokens, more than the context of %lld (-c)", n, (long long)s->o.context);
    int common = common_prefix(s, ids, n), keep = (int)rewind_to(s, common);
    if (keep < common) set_mark(s, &s->mark[1], common);
    const Span *in = cut(s, n_stable);
    set_mark(s, &s->mark[0], in ? in->pos : n_stable);
    if (reused) *reused = keep;
    return session_eval(s, ids + keep, n - keep, NULL, NULL, err);
}

/* ------------------------------------------------------------------------------------------------------------
 * Saved sessions: a header, the ids, the pictures among them, and for each layer the rows of K, then those of V: in global layers
 * of all positions, in sliding layers of low .. n - 1.  Numbers as they are in memory (little endian). */

typedef struct {
    char magic[8], version[16];
    uint64_t model, of;
    int32_t dtype, numbers;             /* of the cache; SessionOptions.exact + 2 * fp4_activations */
    int64_t n, n_seen, low;
} Saved;

#define ROWS_AT_ONCE (1 << 20)          /* bytes on their way between the cache and the file */

/* What the cache depends on: shapes, names and sizes of all tensors, the scales, and 64 bytes of each of some 250 tensors. */
static uint64_t fingerprint(const Model *m) {
    int n, step;
    const Tensor *t = safetensors_all(m->st, &n);
    uint64_t hash = hash_bytes(&m->config, sizeof m->config, 0);
    for (int i = 0; i < m->config.n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        hash = hash_bytes(&l->global, sizeof l->global, hash);
        hash = hash_bytes(l->inv_freq, sizeof(float) * (size_t)l->head_dim / 2, hash);
        hash = hash_bytes((float[]){l->k_scale, l->v_scale}, 2 * sizeof(float), hash);
    }
    step = n / 250 + 1;
    for (int i = 0; i < n; i++) {
        hash = hash_bytes(t[i].name, strlen(t[i].name), hash);
        hash = hash_bytes(&t[i].n_bytes, sizeof t[i].n_bytes, hash);
        if (i % step) continue;
        size_t some = t[i].n_bytes < 64 ? t[i].n_bytes : 64;
        hash = hash_bytes(t[i].data + (t[i].n_bytes - some) / 2, some, hash);
    }
    return hash;
}

static Saved saved_header(const Session *s, uint64_t of) {
    return (Saved){.magic = "gemma4kv", .version = VERSION, .model = fingerprint(s->m), .of = of, .dtype = (int32_t)s->kv->dtype,
                   .numbers = s->o.exact + 2 * s->o.fp4_activations};
}

/* Bytes of the file that begins with this header: n is at most the context. */
static int64_t saved_size(const Session *s, const Saved *h) {
    int64_t size = (int64_t)sizeof *h + h->n * (int64_t)sizeof(int) + h->n_seen * (int64_t)sizeof(Seen);
    for (int i = 0; i < s->m->config.n_layers; i++) {
        const Layer *l = &s->m->w.layer[i];
        size += (h->n - (l->global ? 0 : h->low)) * (k_bytes(l, &s->kv[i]) + v_bytes(l, &s->kv[i]));
    }
    return size;
}

/* The rows of positions from .. to - 1, of which p has `slots`, to f (save) or from it, by way of buffer.  0, or -1. */
static int pass_rows(const Session *s, uint8_t *p, int64_t slots, int64_t row, int64_t from, int64_t to, uint8_t *buffer, FILE *f,
                     int save) {
    while (from < to) {
        int64_t at = from % slots, n = ROWS_AT_ONCE / row + 1;
        if (n > slots - at) n = slots - at;
        if (n > to - from) n = to - from;
        size_t bytes = (size_t)(n * row);
        if (save) s->o.ops->copy(buffer, p + at * row, bytes);
        if ((save ? fwrite(buffer, 1, bytes, f) : fread(buffer, 1, bytes, f)) != bytes) return -1;
        if (!save) s->o.ops->copy(p + at * row, buffer, bytes);
        from += n;
    }
    return 0;
}

/* All rows; those of sliding layers are the mark's, if there is one, else the rings'. */
static int pass_cache(const Session *s, const Saved *h, const Mark *mark, FILE *f, int save) {
    const Config *c = &s->m->config;
    int64_t widest = 0;
    int bad = 0;
    uint8_t *flat = mark ? mark->saved : NULL;
    for (int i = 0; i < c->n_layers; i++)
        if (v_bytes(&s->m->w.layer[i], &s->kv[i]) > widest) widest = v_bytes(&s->m->w.layer[i], &s->kv[i]);
    uint8_t *buffer = xmalloc((size_t)(ROWS_AT_ONCE + widest));
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &s->m->w.layer[i];
        const KvCache *kv = &s->kv[i];
        for (int k = 0; k < 2; k++) {
            int64_t row = k ? v_bytes(l, kv) : k_bytes(l, kv);
            int from_mark = mark && !l->global;
            bad = bad || pass_rows(s, from_mark ? flat : k ? kv->v : kv->k, from_mark ? c->window : kv->slots, row, l->global ? 0 : h->low,
                                   h->n, buffer, f, save);
            if (from_mark) flat += c->window * row;
        }
    }
    free(buffer);
    return bad;
}

int session_save(const Session *s, const int *ids, int n, uint64_t of, FILE *f) {
    Saved h = saved_header(s, of);
    const Mark *mark = NULL;
    h.n = n ? common_prefix(s, ids, n) : 0;
    h.low = s->low;
    if (window_begin(s, h.n) < s->low) {
        mark = mark_below(s, h.n);
        h.n = mark ? mark->pos : 0;
        h.low = window_begin(s, h.n);
    }
    while (h.n_seen < s->n_seen && s->seen[h.n_seen].pos < h.n) h.n_seen++;
    if (fwrite(&h, sizeof h, 1, f) != 1 || fwrite(ids, sizeof *ids, (size_t)h.n, f) != (size_t)h.n ||
        fwrite(s->seen, sizeof *s->seen, (size_t)h.n_seen, f) != (size_t)h.n_seen)
        return -1;
    return pass_cache(s, &h, mark, f, 1);
}

/* The ids and the pictures of a file whose size is right: 0, or -1 when they are none. */
static int load_ids(Session *s, const Saved *h, FILE *f) {
    int64_t end = 0;
    for (int64_t i = 0; i < h->n; i++) {
        int32_t id;
        if (fread(&id, sizeof id, 1, f) != 1 || id < 0 || id >= s->m->config.vocab) return -1;
        ids_add(&s->ids, id);
    }
    for (int64_t i = 0; i < h->n_seen; i++) {
        Seen seen;
        if (fread(&seen, sizeof seen, 1, f) != 1 || seen.pos < end || seen.n < 1 || seen.n > h->n - seen.pos) return -1;
        end = seen.pos + seen.n;
        remember(s, seen.pos, seen.n, seen.hash);
    }
    return 0;
}

int session_load(Session *s, uint64_t of, FILE *f, Error *err) {
    Saved h, own = saved_header(s, of);
    struct stat info;
    if (fstat(fileno(f), &info) || !S_ISREG(info.st_mode)) return fail(err, "no regular file");
    if (fread(&h, sizeof h, 1, f) != 1 || memcmp(h.magic, own.magic, sizeof h.magic)) return fail(err, "no saved cache");
    if (memcmp(h.version, own.version, sizeof h.version)) return fail(err, "of another version of this program");
    if (h.model != own.model) return fail(err, "of another model");
    if (h.dtype != own.dtype || h.numbers != own.numbers)
        return fail(err, "of a run with another --kv, --exact or --fp4-activations");
    if (h.of != of) return fail(err, "of another state of the conversation");
    if (h.n > s->o.context) return fail(err, "%lld tokens are more than the context of %lld (-c)", (long long)h.n, (long long)s->o.context);
    if (h.n < 0 || h.n_seen < 0 || h.n_seen > h.n || h.low < 0 || h.low > window_begin(s, h.n) || info.st_size != saved_size(s, &h))
        return fail(err, "damaged");
    session_forget(s);
    if (load_ids(s, &h, f) || pass_cache(s, &h, NULL, f, 0)) {
        session_forget(s);
        return fail(err, "damaged");
    }
    s->low = first_held(s, h.n);
    if (s->low < h.low) s->low = h.low;
    return 0;
}

void session_view(Session *s, int64_t n) { s->ids.n = (int)n; }

/* The last position's place among the tokens of the last step. */
static int last_token(const Session *s) { return (int)(s->ids.n - 1 - s->step); }

/* With those of the tokens behind it, of which session_view may ask next: together they read the head's matrix once. */
const float *session_logits(Session *s) {
    int token = last_token(s);
    if (token < s->first || token >= s->first + s->n_known) {
        s->first = token;
        s->n_known = s->n_step - token < MAX_VIEW ? s->n_step - token : MAX_VIEW;
        room_for_logits(s, s->n_known);
        s->o.ops->head(s->d, token, s->n_known, s->logits);
    }
    return s->logits + (int64_t)(token - s->first) * s->m->config.vocab;
}

int session_top(Session *s, int k, int *ids, float *logits) {
    return s->o.ops->top ? s->o.ops->top(s->d, last_token(s), k, ids, logits) : -1;
}

Device *session_device(const Session *s, int *token) {
    *token = last_token(s);
    return s->d;
}

void session_hidden(Session *s, float *h) { s->o.ops->hidden(s->d, last_token(s), h); }

const KvCache *session_cache(const Session *s, int global) { return &s->kv[last_layer(s->m, global) - s->m->w.layer]; }

const SessionOptions *session_given(const Session *s) { return &s->o; }

const int *session_ids(const Session *s, int *n) {
    *n = s->ids.n;
    return s->ids.id;
}

int64_t session_context(const Session *s) { return s->o.context; }

int session_head_copied(const Session *s) { return s->head_copied; }
int64_t session_device_bytes(const Session *s) { return s->device_bytes; }

void session_trace(Session *s, TraceFn *trace, void *arg) {
    const Config *c = &s->m->config;
    s->trace = trace;
    s->trace_arg = arg;
    s->trace_x = xrealloc(s->trace_x, (int64_t)s->max_step * c->hidden, sizeof(float));
    s->trace_expert = xrealloc(s->trace_expert, (int64_t)s->max_step * (c->top_k + 1), sizeof(int));
    s->trace_weight = xrealloc(s->trace_weight, (int64_t)s->max_step * (c->top_k + 1), sizeof(float));
}
