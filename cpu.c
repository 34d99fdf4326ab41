/* cpu.c - the CPU as a device of ops.h: what it opens and frees, its drafter, the table of its
 * operations.  cpu.h says which file holds what. */
#include <math.h>

#include "cpu.h"

/* The largest sizes that any layer has, in numbers. */
typedef struct {
    int dim;                            /* head_dim */
    int q, kv;                          /* all query heads of a token, all key/value heads */
    int group;                          /* query heads that share their keys */
    int cols;                           /* columns of any matrix, or K and V of a position */
    int wide;                           /* K or V of a position in flash attention */
    int patches;                        /* PATCH_CHUNK, or 0 without a tower */
} Sizes;

static void at_least(int *size, int n) {
    if (*size < n) *size = n;
}

static Sizes sizes_of(const Config *c, const Weights *w) {
    Sizes s = {0};
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &w->layer[i];
        at_least(&s.dim, l->head_dim);
        at_least(&s.kv, l->n_kv_heads * l->head_dim);
        at_least(&s.group, c->n_heads / l->n_kv_heads);
    }
    s.q = c->n_heads * s.dim;
    s.wide = round_up(s.dim, 32);
    at_least(&s.cols, c->hidden);
    at_least(&s.cols, c->intermediate);
    at_least(&s.cols, s.q);
    at_least(&s.cols, c->expert_size);
    at_least(&s.cols, 2 * c->backbone);
    at_least(&s.cols, 2 * s.wide);
    at_least(&s.cols, w->adapter_width);        /* at least any adapter's rank */
    if (!w->tower.n_layers) return s;
    s.patches = PATCH_CHUNK;
    at_least(&s.cols, tower_width(&w->tower));
    at_least(&s.wide, tower_flash_width(&w->tower));
    return s;
}

static int *ints(Device *d, int64_t n) { return own(d, xcalloc(n, sizeof(int))); }

/* d->strips, where the device uses any: for the tokens of a step, for the slots of its experts, or
 * for a picture's patches. */
static void reserve_strips(Device *d, Sizes s) {
    const Config *c = d->c;
    if (!d->rounds_activations || !(d->kernel->gemm || d->kernel->float_strips)) return;
    if (d->max_n <= FEW_TOKENS && !s.patches) return;
    int64_t dense = n_blocks(d->max_n, STRIP_TOKENS) * strip_size(s.cols);
    int64_t patches = n_blocks(s.patches, STRIP_TOKENS) * strip_size(s.cols);
    /* Each expert may have one strip that is not full. */
    int64_t strips = (int64_t)d->max_n * c->top_k / STRIP_TOKENS + c->n_experts;
    int64_t up = strips * strip_size(c->hidden), down = strips * strip_size(c->expert_size);
    int64_t most = dense;
    if (patches > most) most = patches;
    if (up > most) most = up;
    if (down > most) most = down;
    d->strips = own(d, xaligned(most));
    d->strip_expert = ints(d, strips);
    d->first_strip = ints(d, c->n_experts);
}

/* Everything of Device that grows with max_n. */
static void reserve_activations(Device *d, Sizes s) {
    const Config *c = d->c;
    int max_n = d->max_n;
    int64_t slots = (int64_t)max_n * c->top_k, chosen = (int64_t)c->top_k * c->expert_size;
    d->x = floats(d, max_n, c->hidden);
    d->y.x = floats(d, max_n, c->hidden);
    d->q = floats(d, max_n, s.q);
    d->q_turning = floats(d, max_n, s.q);
    d->att.x = floats(d, max_n, s.q);
    d->k = floats(d, max_n, s.kv);
    d->v = floats(d, max_n, s.kv);
    d->gate.x = floats(d, max_n, c->intermediate > chosen ? c->intermediate : chosen);
    d->up = floats(d, max_n, c->intermediate > chosen ? c->intermediate : chosen);
    if (d->rounds_activations) {
        int64_t dense = max_n * packed_size(c->intermediate);
        int64_t experts = slots * packed_size(c->expert_size);
        d->y.packed = own(d, xaligned(max_n * packed_size(c->hidden)));
        d->att.packed = own(d, xaligned(max_n * packed_size(s.q)));
        d->gate.packed = own(d, xaligned(dense > experts ? dense : experts));
    }
    if (d->panels) {
        int64_t dense = max_n * record_bytes(d, c->intermediate);
        int64_t experts = slots * record_bytes(d, c->expert_size);
        d->y.records = own(d, xaligned(max_n * record_bytes(d, c->hidden)));
        d->att.records = own(d, xaligned(max_n * record_bytes(d, s.q)));
        d->gate.records = own(d, xaligned(dense > experts ? dense : experts));
    }
    d->h1 = floats(d, max_n, c->hidden);
    d->h2 = floats(d, max_n, c->hidden);
    d->expert_out = floats(d, max_n, (int64_t)c->top_k * c->hidden);
    d->score = floats(d, max_n, c->n_experts);
    d->expert_weight = floats(d, max_n, c->top_k);
    d->cos = floats(d, max_n, s.dim / 2);
    d->sin = floats(d, max_n, s.dim / 2);
    d->last = ints(d, max_n);
    d->expert = ints(d, slots);
    d->slot_token = ints(d, slots);
    d->slot_of = ints(d, slots);
    d->first_slot = ints(d, c->n_experts + 1);
    d->chosen = ints(d, c->n_experts + 1);
}

/* Memory for the adapters' part of a product. */
static void reserve_adapters(Device *d) {
    int top_k = d->c->top_k > 1 ? d->c->top_k : 1;
    if (!d->w->adapter_width) return;
    d->low = floats(d, (int64_t)d->max_n * top_k, d->w->adapter_width);
    for (int i = 0; i < d->pool.n_threads; i++)
        d->columns[i] = floats(d, d->w->adapter_width, 2 * MANY_ROWS);
}

static void reserve_scratch(Device *d, Sizes s) {
    int n = d->pool.n_threads;
    d->rows = own(d, xcalloc(n, sizeof *d->rows));
    d->columns = own(d, xcalloc(n, sizeof *d->columns));
    d->att_score = own(d, xcalloc(n, sizeof *d->att_score));
    d->att_out = own(d, xcalloc(n, sizeof *d->att_out));
    d->att_found = own(d, xcalloc(n, sizeof *d->att_found));
    d->flash = own(d, xcalloc(n, sizeof *d->flash));
    for (int i = 0; i < n; i++) {
        d->rows[i] = floats(d, MANY_ROWS / 2 + 1, s.cols + 64);
        if (d->rounds_activations && d->kernel->flash) d->flash[i] = flash_new(d, s.wide);
    }
    attention_reserve(d, s.group, s.dim);
}

const char *cpu_kernel_name(void) { return choose_kernels()->name; }

/* Whether one of the n matrices is of a format that panels8 gives activations of 8 bits. */
static int meets_8(const PanelKernels *panels8, const Weight *w, int n) {
    int any = 0;
    for (int i = 0; i < n; i++) {
        int is_int8 = w[i].dtype == DT_I32 && w[i].bits == 8;
        any |= w[i].dtype == DT_U8 || (w[i].dtype == DT_I32 && !(is_int8 && panels8->no_int8));
    }
    return any;
}

int cpu_rounds_to_8(const Config *c, const Weights *w) {
    const Kernels *kn = choose_kernels();
    int any = kn->gemm != NULL;
    for (int i = 0; i < c->n_layers && kn->panels8; i++) {
        const Layer *l = &w->layer[i];
        const Weight dense[] = {l->q, l->k, l->v, l->o, l->gate, l->up, l->down};
        any |= meets_8(kn->panels8, dense, 7) ||
               meets_8(kn->panels8, l->expert_gate, c->n_experts) ||
               meets_8(kn->panels8, l->expert_up, c->n_experts) ||
               meets_8(kn->panels8, l->expert_down, c->n_experts);
    }
    return any;
}

static Device *cpu_open(const Config *c, const Weights *w, const DeviceOptions *o, Error *err) {
    if (o->fp4_activations) {
        fail(err, "FP4 activations need a GPU of compute capability 12.0 or 12.1");
        return NULL;
    }
    Device *d = xcalloc(1, sizeof *d);
    if (pool_open(&d->pool, o->n_threads, n_cores(), err)) {
        pool_close(&d->pool);
        free(d);
        return NULL;
    }
    Sizes s = sizes_of(c, w);
    d->c = c;
    d->w = w;
    d->kernel = choose_kernels();
    int exact = o->exact || o->activations == 32;
    d->rounds_activations = d->kernel->nvfp4 && !exact;
    d->rounds_to_8 = o->activations == 8 && !exact && cpu_rounds_to_8(c, w);
    if (!exact) d->panels = d->rounds_to_8 ? d->kernel->panels8 : d->kernel->panels;
    d->max_n = o->max_n;
    d->target = o->target;
    d->pair = floats(d, 2, c->backbone);
    if (c->backbone) d->logits = floats(d, 1, c->vocab);
    reserve_activations(d, s);
    reserve_strips(d, s);
    reserve_scratch(d, s);
    reserve_adapters(d);
    return d;
}

static void cpu_close(Device *d) {
    if (!d) return;
    head_copy_free(d);
    sight_free(d);
    pool_close(&d->pool);
    for (int i = 0; i < d->n_owned; i++) free(d->owned[i]);
    free(d->owned);
    free(d);
}

static void *cpu_alloc(size_t bytes) { return map_pages(bytes); }
static void cpu_release(void *p, size_t bytes) { munmap(p, bytes); }
static void cpu_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

/* ---- a drafter ---- */

/* RMSNorm(x, final_norm) of a token, and what `post` makes of it where there is one. */
static void cpu_hidden(Device *d, int token, float *h) {
    int hidden = d->c->hidden;
    const float *x = d->x + (int64_t)token * hidden;
    rms_norm(d, d->w->post.data ? d->y.x : h, x, d->w->final_norm, hidden);
    if (d->w->post.data) project((Projection){d, {&d->w->post}, {.x = d->y.x}, {h}, 1});
}

static void cpu_draft_from(Device *d, int token, int id, int64_t pos, const float *given) {
    begin_step(d, 1, pos);
    d->last[0] = d->n_drafts = 0;
    d->newest = id;
    if (given) copy(d->pair + d->c->backbone, given, d->c->backbone);
    else cpu_hidden(d->target, token, d->pair + d->c->backbone);
}

static void cpu_combine(Device *d) {
    embed_row(d, d->newest, d->pair);
    project((Projection){d, {&d->w->pre}, {.x = d->pair}, {d->x}, 1});
}

static void cpu_guess(Device *d) {
    float most = -INFINITY;
    int best = 0;
    cpu_hidden(d, 0, d->pair + d->c->backbone);
    if (cpu_top(d, 0, 1, &best, &most) != 1) {
        cpu_head(d, 0, 1, d->logits);
        for (int i = 0; i < d->c->vocab; i++)
            if (d->logits[i] > most) most = d->logits[best = i];
    }
    d->draft[d->n_drafts++] = d->newest = best;
}

static void cpu_drafts(Device *d, int n, int *ids) {
    memcpy(ids, d->draft, (size_t)n * sizeof *ids);
}

/* ---- for tests ---- */

static void cpu_read_x(Device *d, float *x) { copy(x, d->x, (int64_t)d->n * d->c->hidden); }

static void cpu_read_route(Device *d, int *expert, float *weight) {
    int n = d->n * d->c->top_k;
    memcpy(expert, d->expert, (size_t)n * sizeof *expert);
    copy(weight, d->expert_weight, n);
}

/* The chunk: a prompt reads every expert's weights once for each step, so larger steps read less,
 * and take more memory for activations.  How 512 was chosen is not recorded.  To tune it again,
 * compare a prompt of 4096 tokens with --chunk 256, 512 and 1024 (the sums of AMX may then have
 * other bits). */
const Ops cpu_ops = {
    .name = "cpu", .chunk = 512,
    .open = cpu_open, .close = cpu_close,
    .alloc = cpu_alloc, .release = cpu_release, .copy = cpu_copy,
    .embed = cpu_embed, .qkv = cpu_qkv, .attend = cpu_attend, .attn_out = cpu_attn_out,
    .mlp = cpu_mlp, .route = cpu_route, .experts = cpu_experts, .join = cpu_join,
    .head = cpu_head, .top = cpu_top,
    .draft_from = cpu_draft_from, .combine = cpu_combine, .guess = cpu_guess, .drafts = cpu_drafts,
    .read_x = cpu_read_x, .read_route = cpu_read_route, .hidden = cpu_hidden,
    .embed_soft = cpu_embed_soft,
    .see = cpu_see, .see_layer = cpu_see_layer, .see_pool = cpu_see_pool,
};
