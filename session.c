/* session.c - cuts prompts into steps, takes each step through the forward pass (model.c), and
 * tells the kv cache (cache.c) which tokens it holds; at the end, what finds room in a GPU's
 * memory.  See session.h. */
#include "session.h"

#include <stdlib.h>

#include "cache.h"
#include "checkpoint.h"
#include "saved.h"

typedef struct {
    TraceFn *fn;                        /* NULL: steps are not traced */
    void *arg;
    float *x, *weight;                  /* [max_step][hidden], [max_step][top_k + 1] */
    int *expert;                        /* [max_step][top_k + 1] */
} Trace;

struct Session {
    const Model *m;
    SessionOptions o;                   /* chunk filled in */
    Cache cache;
    Pass pass;                          /* the model on the session's device, with the cache */
    Device *cpu;                        /* for pictures for which pass.device has no memory; NULL:
                                         * none yet */
    const PictureSpan *span;            /* the pictures among the ids of this call */
    int n_spans;
    int64_t step_pos;                   /* position of the last step's first token */
    int n_step;                         /* tokens of the last step */
    float *logits;                      /* [n_logits][vocab] */
    int n_logits;                       /* rows that logits has room for */
    int first_known, n_known;           /* which tokens of the last step have their logits there */
    Memory memory;                      /* what it takes of the device's own memory */
    int n_to_do, n_done;                /* tokens of this call, for progress */
    Trace trace;
};

/* ---- opening and closing ---- */

static DType kv_dtype(const Model *m, KvType t) {
    if (t == KV_AUTO && m->fp8_kv) return DT_F8_E4M3;
    switch (t) {
    case KV_F32: return DT_F32;
    case KV_FP8: return DT_F8_E4M3;
    default: return DT_BF16;
    }
}

static int chunk_of(const SessionOptions *o) {
    int n = o->chunk ? o->chunk : o->ops->chunk;
    return n < o->context ? n : (int)o->context;
}

/* The most tokens of a step: a chunk, or a picture, which is never cut. */
static int max_step(const Model *m, const SessionOptions *o) {
    int n = chunk_of(o);
    if (m->w.tower.n_layers && o->picture > n) n = o->picture;
    return n < o->context ? n : (int)o->context;
}

static CacheShape cache_shape(const Model *m, const SessionOptions *o) {
    int n = max_step(m, o);
    return (CacheShape){.dtype = kv_dtype(m, o->kv), .context = o->context, .max_step = n};
}

/* The options for opening the device, but for those that session_memory decides: open_parts adds
 * them. */
static DeviceOptions device_options(const Model *m, const SessionOptions *o) {
    return (DeviceOptions){.max_n = max_step(m, o), .context = o->context,
                           .n_threads = o->n_threads, .exact = o->exact,
                           .fp4_activations = o->fp4_activations,
                           .activations = o->activations, .loading = o->loading,
                           .memory_limit = o->memory_limit};
}

static int watch(void *arg, int n_done);

static int open_parts(Session *s, Error *err) {
    const Model *m = s->m;
    DeviceOptions device = device_options(m, &s->o);
    device.copy_head = s->memory.head_copy > 0;
    device.cpu_experts = s->memory.cpu_experts;
    device.expert_slots = s->memory.expert_slots;
    device.fetch_experts = s->memory.expert_room > 0;
    CacheShape shape = cache_shape(m, &s->o);
    s->pass = (Pass){.m = m, .ops = s->o.ops, .watch = watch, .arg = s};
    s->pass.row = xcalloc(shape.max_step, sizeof *s->pass.row);
    if (!(s->pass.device = s->o.ops->open(&m->config, &m->w, &device, err))) return -1;
    if (cache_open(&s->cache, m, s->o.ops, &shape)) {
        int64_t per_token;
        double gb = (double)cache_bytes(m, &shape, &per_token) * 1e-9;
        return fail(err, "no memory for a context of %lld positions (%.1f GB): try a smaller -c",
                    (long long)shape.context, gb);
    }
    s->pass.kv = s->cache.kv;
    return 0;
}

Session *session_new(const Model *m, const SessionOptions *o, Error *err) {
    Memory memory;
    if (session_memory(m, o, &memory, err) || session_fits(m, o, &memory, err)) return NULL;
    Session *s = xcalloc(1, sizeof *s);
    s->m = m;
    s->o = *o;
    s->memory = memory;
    s->o.chunk = memory.chunk ? memory.chunk : chunk_of(o);
    if (open_parts(s, err)) {
        session_free(s);
        return NULL;
    }
    forward_rehearse(&s->pass);
    return s;
}

void session_free(Session *s) {
    if (!s) return;
    cache_close(&s->cache);
    if (s->cpu) cpu_ops.close(s->cpu);
    if (s->pass.device) s->o.ops->close(s->pass.device);
    free(s->pass.row);
    free(s->logits);
    free(s->trace.x);
    free(s->trace.weight);
    free(s->trace.expert);
    free(s);
}

/* ---- pictures ---- */

void session_pictures(Session *s, const PictureSpan *span, int n) {
    s->span = span;
    s->n_spans = n;
}

static int is_cancelled(const Session *s) { return s->o.cancel && *s->o.cancel; }

/* Encodes a picture on the CPU.  Returns as forward_picture does. */
static int encode_on_cpu(Session *s, Picture *p, Error *err) {
    DeviceOptions small = {.max_n = 1, .context = 1, .n_threads = s->o.n_threads,
                           .exact = s->o.exact, .activations = s->o.activations};
    if (!s->cpu && !(s->cpu = cpu_ops.open(&s->m->config, &s->m->w, &small, err))) return -1;
    Pass pass = {.m = s->m, .ops = &cpu_ops, .device = s->cpu};
    return forward_picture(&pass, p, s->o.cancel);
}

/* Runs the tower on a picture.  Returns 0, 1 when cancelled, -1 with err. */
static int encode_picture(Session *s, Picture *p, Error *err) {
    int most = s->m->w.tower.n_positions;
    if (!s->m->w.tower.n_layers)
        return fail(err, "this checkpoint has no vision tower: it takes no pictures");
    if (p->columns > most || p->rows > most)
        return fail(err, "a picture of %d x %d patches: this tower has positions for %d a side",
                    p->columns, p->rows, most);
    int status = forward_picture(&s->pass, p, s->o.cancel);
    if (status >= 0) return status;
    fail(err, "no memory for a picture of %d x %d patches", p->columns, p->rows);
    return s->o.ops->memory ? encode_on_cpu(s, p, err) : -1;
}

/* Encodes the pictures of a step that are not encoded yet.  Returns 0, 1 when cancelled, -1 with
 * err. */
static int encode_pictures(Session *s, const TokenStep *step, Error *err) {
    for (int i = 0; i < s->n_spans; i++) {
        Picture *p = s->span[i].picture;
        if (!in_step(step, &s->span[i]) || p->soft) continue;
        int stopped = encode_picture(s, p, err);
        if (stopped) return stopped;
    }
    return 0;
}

/* ---- steps ---- */

/* Shows a test the residual stream after n_done layers. */
static void show_trace(const Session *s, int n_done) {
    const Trace *t = &s->trace;
    const Ops *op = s->o.ops;
    int routed = s->m->config.n_experts && n_done > 0;
    op->read_x(s->pass.device, t->x);
    if (routed) op->read_route(s->pass.device, t->expert, t->weight);
    const int *expert = routed ? t->expert : NULL;
    const float *weight = routed ? t->weight : NULL;
    t->fn(t->arg, n_done - 1, s->step_pos, s->n_step, t->x, expert, weight);
}

/* Pass.watch: traces the forward pass, reports its progress, and returns 1 to end it when it is
 * cancelled.  A step of one token is not cut short, because it is done in a moment. */
static int watch(void *arg, int n_done) {
    const Session *s = arg;
    double layers = s->m->config.n_layers, n = s->n_done + s->n_step * n_done / layers;
    if (s->trace.fn) show_trace(s, n_done);
    if (s->o.progress && n_done) s->o.progress(s->o.arg, s->n_to_do, n / s->n_to_do);
    return s->n_step > 1 && is_cancelled(s);
}

/* Makes room for n rows of logits. */
static void room_for_logits(Session *s, int n) {
    if (n <= s->n_logits) return;
    s->n_logits = n;
    s->logits = xrealloc(s->logits, (int64_t)n * s->m->config.vocab, sizeof(float));
}

/* Returns the picture that a step would cut if it ended in front of position pos, or NULL. */
static const PictureSpan *cut_at(const Session *s, int64_t pos) {
    return picture_at(s->span, s->n_spans, pos);
}

/* Whether the session can take these ids: 0, or -1 with err. */
static int check_ids(const Session *s, const int *ids, int n, Error *err) {
    long long all = (long long)s->cache.ids.n + n, context = s->o.context;
    int vocab = s->m->config.vocab;
    if (all > context)
        return fail(err, "%lld tokens are more than the context of %lld (-c)", all, context);
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return fail(err, "token id %d is outside the vocabulary of %d", ids[i], vocab);
    const PictureSpan *in = cut_at(s, all);
    if (in) return fail(err, "the ids end inside a picture of %d soft tokens", in->picture->n);
    for (int i = 0; i < s->n_spans; i++) {
        int soft = s->span[i].picture->n;
        if (soft > s->cache.shape.max_step)
            return fail(err, "a picture of %d soft tokens is more than --image-tokens", soft);
    }
    return 0;
}

/* Returns how many of the next n tokens the next step takes. */
static int step_length(const Session *s, int n) {
    int64_t begin = s->cache.ids.n, end = begin + n;
    if (n > s->o.chunk) end = begin + s->o.chunk;
    /* A step ends at a mark, so that the window there can be copied before the rings go on. */
    for (int i = 0; i < N_MARKS; i++) {
        int64_t mark = s->cache.mark[i].pos;
        if (mark > begin && mark < end) end = mark;
    }
    /* A step ends before a picture that it would cut, and takes a picture at its beginning
     * whole. */
    const PictureSpan *in = cut_at(s, end);
    if (in) end = in->pos > begin ? in->pos : begin + in->picture->n;
    return (int)(end - begin);
}

/* Calls `each` with the logits of all tokens of the step.  It computes MAX_VIEW rows at a time, so
 * that the session needs no room for more. */
static void hand_out_logits(Session *s, const TokenStep *step, LogitsFn *each, void *arg) {
    room_for_logits(s, MAX_VIEW);
    for (int i = 0; i < step->n; i += MAX_VIEW) {
        int count = step->n - i < MAX_VIEW ? step->n - i : MAX_VIEW;
        forward_head(&s->pass, i, count, s->logits);
        for (int k = 0; k < count; k++)
            each(arg, step->pos + i + k, s->logits + (int64_t)k * s->m->config.vocab);
    }
}

/* Takes a step through the model.  Returns 0, 1 when cancelled, -1 with err. */
static int take_step(Session *s, const TokenStep *step, Error *err) {
    int stopped = encode_pictures(s, step, err);
    if (stopped) return stopped;
    if (cache_make_room(&s->cache, step->pos + step->n, err)) return -1;
    s->n_known = 0;
    s->step_pos = step->pos;
    s->n_step = step->n;
    return is_cancelled(s) || forward(&s->pass, step);
}

/* Notes that the cache now holds the tokens of the step. */
static void remember(Session *s, const TokenStep *step) {
    for (int i = 0; i < s->n_spans; i++) {
        const Picture *p = s->span[i].picture;
        if (in_step(step, &s->span[i])) cache_add_picture(&s->cache, s->span[i].pos, p->n, p->hash);
    }
    for (int i = 0; i < step->n; i++) ids_add(&s->cache.ids, step->ids[i]);
}

int session_eval(Session *s, const int *ids, int n, LogitsFn *each, void *arg, Error *err) {
    if (check_ids(s, ids, n, err)) return -1;
    s->n_to_do = n;
    s->n_done = 0;
    while (s->n_done < n) {
        TokenStep step = {.ids = ids + s->n_done, .n = step_length(s, n - s->n_done),
                          .pos = s->cache.ids.n, .span = s->span, .n_spans = s->n_spans};
        int stopped = take_step(s, &step, err);
        if (stopped) return stopped;
        if (each) hand_out_logits(s, &step, each, arg);
        remember(s, &step);
        s->n_done += step.n;
    }
    return 0;
}

int session_common(const Session *s, const int *ids, int n) {
    return cache_common(&s->cache, ids, n, s->span, s->n_spans);
}

int session_sync(Session *s, const int *ids, int n, int n_stable, int *reused, Error *err) {
    long long context = s->o.context;
    if (n < 1) return fail(err, "the prompt is empty");
    if (n > context)
        return fail(err, "the prompt has %d tokens, more than the context of %lld (-c)", n,
                    context);
    int common = session_common(s, ids, n);
    int kept = (int)cache_rewind(&s->cache, common);
    /* The prompt differs from what the cache holds from `common` on.  A mark is set there, for the
     * next prompt that begins alike, only if the cache could not go back there.  Otherwise the mark
     * stays where it is: moving it would free a copy that other prompts may need. */
    if (kept < common) cache_set_mark(&s->cache, SHARED_PREFIX, common);
    const PictureSpan *in = cut_at(s, n_stable);
    cache_set_mark(&s->cache, NEXT_TURN, in ? in->pos : n_stable);
    if (reused) *reused = kept;
    return session_eval(s, ids + kept, n - kept, NULL, NULL, err);
}

/* ---- saved caches ---- */

static SavedFor saved_for(const Session *s, uint64_t conversation) {
    int numbers = s->o.exact + 2 * s->o.fp4_activations;
    /* --activations 16 means the same as none. */
    if (s->o.activations != 16) numbers += 4 * s->o.activations;
    return (SavedFor){conversation, numbers};
}

int session_save(const Session *s, const int *ids, int n, uint64_t conversation, FILE *f) {
    int held = n ? session_common(s, ids, n) : 0;
    return cache_save(&s->cache, held, saved_for(s, conversation), f);
}

void session_forget(Session *s) { cache_clear(&s->cache); }

int session_load(Session *s, uint64_t conversation, FILE *f, Error *err) {
    return cache_load(&s->cache, saved_for(s, conversation), f, err);
}

/* ---- what the session tells ---- */

void session_view(Session *s, int64_t n) { s->cache.ids.n = (int)n; }

/* Which token of the last step the last position is. */
static int last_token(const Session *s) { return (int)(s->cache.ids.n - 1 - s->step_pos); }

/* Computes the logits of the tokens behind the last position too, since session_view may show these
 * next: together they read the head's matrix once. */
const float *session_logits(Session *s) {
    int token = last_token(s);
    if (token < s->first_known || token >= s->first_known + s->n_known) {
        s->first_known = token;
        s->n_known = s->n_step - token < MAX_VIEW ? s->n_step - token : MAX_VIEW;
        room_for_logits(s, s->n_known);
        forward_head(&s->pass, token, s->n_known, s->logits);
    }
    return s->logits + (int64_t)(token - s->first_known) * s->m->config.vocab;
}

int session_top(Session *s, int k, int *ids, float *logits) {
    const Ops *op = s->o.ops;
    return op->top ? op->top(s->pass.device, last_token(s), k, ids, logits) : -1;
}

Device *session_device(const Session *s, int *token) {
    *token = last_token(s);
    return s->pass.device;
}

const KvCache *session_cache(const Session *s, int global) {
    return &s->cache.kv[last_layer(s->m, global) - s->m->w.layer];
}

const SessionOptions *session_given(const Session *s) { return &s->o; }

const int *session_ids(const Session *s, int *n) {
    *n = s->cache.ids.n;
    return s->cache.ids.id;
}

int64_t session_context(const Session *s) { return s->o.context; }

void session_slot_hits(const Session *s, int64_t *chosen, int64_t *hits) {
    *chosen = *hits = 0;
    if (s->memory.expert_slots) s->o.ops->slot_hits(s->pass.device, chosen, hits);
}

void session_hidden(Session *s, float *h) { s->o.ops->hidden(s->pass.device, last_token(s), h); }

void session_trace(Session *s, TraceFn *trace, void *arg) {
    const Config *c = &s->m->config;
    int64_t n = s->cache.shape.max_step;
    Trace *t = &s->trace;
    t->fn = trace;
    t->arg = arg;
    t->x = xrealloc(t->x, n * c->hidden, sizeof(float));
    t->expert = xrealloc(t->expert, n * (c->top_k + 1), sizeof(int));
    t->weight = xrealloc(t->weight, n * (c->top_k + 1), sizeof(float));
    s->pass.reads_x = trace != NULL;
}

/* ---- what a session takes of a GPU's memory, and what finds room there ---- */

int64_t kv_bytes(const Model *m, const SessionOptions *o, int64_t *per_token) {
    CacheShape shape = cache_shape(m, o);
    return cache_bytes(m, &shape, per_token);
}

static int64_t session_bytes(const Memory *m) {
    return m->weights + m->activations + m->cache + m->head_copy + m->expert_room;
}

/* Whether there is room for the weights, the activations and the context.  The copy of the head and
 * the room for experts can be left out, so they do not count. */
static int fits(const Memory *m) {
    return session_bytes(m) - m->head_copy - m->expert_room <= m->free;
}

/* Whether there is room for all that the session may take, pictures and the drafter included. */
static int fits_all(const SessionOptions *o, const Memory *m) {
    return session_bytes(m) + m->pictures + o->drafter_room <= m->free;
}

/* session_memory with the experts of the first n layers on the CPU, which have so many slots, and
 * with the copy of the head and the room for experts in any case. */
static int memory_with(const Model *m, const SessionOptions *o, int n, int slots, Memory *memory,
                       Error *err) {
    int64_t per_token;
    DeviceOptions d = device_options(m, o);
    d.cpu_experts = n;
    d.expert_slots = slots;
    CacheShape shape = cache_shape(m, o);
    if (o->ops->memory(&m->config, &m->w, &d, memory, err)) return -1;
    memory->cache = cache_bytes(m, &shape, &per_token) + cache_mark_bytes(m, &shape);
    memory->cpu_experts = n;
    return 0;
}

/* memory_with for CPU_EXPERTS_AUTO.  With room for all weights, no experts stay on the CPU, even if
 * the head's copy must be left out.  Otherwise binary search finds the fewest layers of experts on
 * the CPU that leave room for the copy, for experts of long prompts, for pictures and for the
 * drafter.  The copy is worth it: a token reads all of the head, but only the chosen ones of a
 * layer's experts, so the copy saves more time than the two layers of experts that would find room
 * in its place.  That is computed, not measured: 2.3 ms against 0.7 ms for the 26B-A4B on a GPU
 * that reads 272 GB/s beside a CPU that reads 60 GB/s. */
static int fit_experts(const Model *m, const SessionOptions *o, Memory *memory, Error *err) {
    int low = 1, high = m->config.n_experts ? m->config.n_layers : 0;
    if (memory_with(m, o, 0, 0, memory, err)) return -1;
    if (fits(memory) || !high) return 0;
    while (low < high) {
        int middle = (low + high) / 2;
        if (memory_with(m, o, middle, 0, memory, err)) return -1;
        if (fits_all(o, memory)) high = middle;
        else low = middle + 1;
    }
    return memory_with(m, o, high, 0, memory, err);
}

/* Leaves out what has no room: the copy of the head, and then the room for experts.  Prompts gain
 * more from that room than pictures from the tower. */
static void leave_out(const SessionOptions *o, Memory *memory) {
    if (fits_all(o, memory)) return;
    memory->head_copy = 0;
    if (session_bytes(memory) + o->drafter_room > memory->free) memory->expert_room = 0;
}

/* Whether a session with slots takes no more than there is, and leaves out no more than `without`,
 * the memory of one without slots. */
static int slots_fit(const SessionOptions *o, Memory with, const Memory *without) {
    leave_out(o, &with);
    return session_bytes(&with) + o->drafter_room <= with.free &&
           (with.head_copy || !without->head_copy) && (with.expert_room || !without->expert_room);
}

/* Slots pay where at least 1 / SLOTS_LAYERS of the layers have their experts on the CPU, and for at
 * least 1 / SLOTS_EXPERTS of the experts of a layer.  They take room from whole layers, of which
 * the CPU then gets a part.  Computed by bench/expert_cache.py, not measured.  To tune it,
 * compare decoding with --expert-slots 0 and without it, with several --gpu-memory. */
#define SLOTS_LAYERS 5
#define SLOTS_EXPERTS 32

/* *memory, with the experts of some layers on the CPU, becomes what it is with as many slots as
 * there is room for, found by binary search.  Where the program chooses the layers, all layers have
 * slots, and none has its experts on the GPU as a whole.  Returns 0, or -1 with err. */
static int fit_slots(const Model *m, const SessionOptions *o, Memory *memory, Error *err) {
    const int automatic = o->expert_slots == EXPERT_SLOTS_AUTO, layers = m->config.n_layers;
    const int moves = o->cpu_experts == CPU_EXPERTS_AUTO;
    const int n = moves ? layers : memory->cpu_experts, experts = m->config.n_experts;
    int low = 0, high = automatic ? experts : o->expert_slots, least = 1;
    Memory without = {0}, with = {0};
    if (!memory->cpu_experts || (automatic && !moves)) return 0;
    if (automatic && SLOTS_LAYERS * memory->cpu_experts < layers) return 0;
    if (automatic) least = experts / SLOTS_EXPERTS > 1 ? experts / SLOTS_EXPERTS : 1;
    if (high > experts) high = experts;
    if (memory_with(m, o, n, 0, &without, err)) return -1;
    leave_out(o, &without);
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (memory_with(m, o, n, middle, &with, err)) return -1;
        if (with.expert_slots && slots_fit(o, with, &without)) low = middle;
        else high = middle - 1;
    }
    if (low < least) return 0;
    if (memory_with(m, o, n, low, memory, err)) return -1;
    leave_out(o, memory);
    return 0;
}

/* Tokens of a chunk that fetches experts, where nothing else has to give way to its activations.  A
 * chunk of twice the tokens fetches half as often.  Slots are worth more than that, as is computed
 * in bench/gpu-predicted.md ("Chunks of 4096").  To tune it, compare a prompt of 8192 tokens with
 * --expert-slots 4 and --chunk 2048 and 4096. */
#define LONG_CHUNK 4096

/* *memory becomes what it is with chunks of LONG_CHUNK tokens, if they cost nothing else.  Returns
 * 0, or -1 with err. */
static int fit_chunk(const Model *m, const SessionOptions *o, Memory *memory, Error *err) {
    SessionOptions longer = *o;
    Memory with;
    memory->chunk = chunk_of(o);
    longer.chunk = LONG_CHUNK;
    if (o->chunk || !memory->expert_room || chunk_of(&longer) <= memory->chunk) return 0;
    if (memory_with(m, &longer, memory->cpu_experts, memory->expert_slots, &with, err)) return -1;
    if (!slots_fit(&longer, with, memory)) return 0;
    if (fits_all(o, memory) && !fits_all(&longer, &with)) return 0;     /* pictures give way */
    leave_out(&longer, &with);
    with.chunk = chunk_of(&longer);
    *memory = with;
    return 0;
}

int session_memory(const Model *m, const SessionOptions *o, Memory *memory, Error *err) {
    *memory = (Memory){0};
    if (!o->ops->memory) return 0;
    int automatic = o->cpu_experts == CPU_EXPERTS_AUTO;
    int bad = automatic ? fit_experts(m, o, memory, err)
                        : memory_with(m, o, o->cpu_experts, 0, memory, err);
    if (bad) return bad;
    leave_out(o, memory);
    if (fit_slots(m, o, memory, err)) return -1;
    return fit_chunk(m, o, memory, err);
}

/* Returns the longest context, at most that of the options, that fits into the device's memory; 0:
 * none does.  From 4096 on it is rounded down to a multiple of 1024, which is easy to remember. */
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

/* Writes to advice what the user can ask for instead of a session that does not fit. */
static void advise(const Model *m, const SessionOptions *o, char *advice, size_t size) {
    SessionOptions fp8 = *o;
    fp8.kv = KV_FP8;
    long long n = context_that_fits(m, *o), n_fp8 = 0;
    if (kv_dtype(m, o->kv) == DT_BF16) n_fp8 = context_that_fits(m, fp8);
    if (n_fp8 > n) snprintf(advice, size, "-c %lld would fit, or --kv fp8 with -c %lld", n, n_fp8);
    else if (n) snprintf(advice, size, "-c %lld would fit", n);
    else snprintf(advice, size, "a smaller --chunk may help");
}

int session_fits(const Model *m, const SessionOptions *o, const Memory *memory, Error *err) {
    char advice[128];
    if (fits(memory)) return 0;
    double free = (double)memory->free * 1e-9, weights = (double)memory->weights * 1e-9;
    const char *without = "";
    if (memory->cpu_experts == m->config.n_layers) without = " without the experts";
    if (memory->weights > memory->free)
        return fail(err, "the GPU has %.2f GB free: the weights%s, %.2f GB, do not fit", free,
                    without, weights);
    advise(m, o, advice, sizeof advice);
    return fail(err, "the GPU has %.2f GB free: weights%s %.2f GB + activations %.2f GB + "
                "cache %.2f GB (context %lld) do not fit; %s", free, without, weights,
                (double)memory->activations * 1e-9, (double)memory->cache * 1e-9,
                (long long)o->context, advice);
}

const Memory *session_takes(const Session *s) { return &s->memory; }

int64_t session_device_bytes(const Session *s) { return session_bytes(&s->memory); }

void placement(const Model *m, const Memory *memory, char text[PLACEMENT]) {
    int on_cpu = memory->cpu_experts, on_gpu = m->config.n_layers - on_cpu;
    *text = 0;
    if (!on_cpu) return;
    int n = snprintf(text, PLACEMENT, "experts of %d layer%s on the GPU, of %d on the CPU", on_gpu,
                     on_gpu == 1 ? "" : "s", on_cpu);
    if (memory->expert_slots)
        snprintf(text + n, (size_t)(PLACEMENT - n), "; slots for %d of %d on the GPU",
                 memory->expert_slots, m->config.n_experts);
}
