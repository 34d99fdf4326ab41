/* moe.c - the dense MLP, the router and the experts on the CPU.
 *
 * The tokens of a step are sorted by expert, so that each expert's weights are read once for all
 * of its tokens. */
#include <math.h>

#include "cpu.h"

typedef struct {
    Device *d;
    const Layer *l;
    Input in;                           /* of the dense MLP's gate and up */
} Feed;

void gelu_times(const Device *d, float *gate, const float *up, int n) {
    if (d->rounds_activations) {
        d->kernel->gelu_times(gate, up, n);
        return;
    }
    for (int i = 0; i < n; i++) {
        float g = gate[i];
        gate[i] = 0.5f * g * (1 + tanhf(0.7978845608f * (g + 0.044715f * g * g * g))) * up[i];
    }
}

/* ---- the dense MLP ---- */

/* The task is a block of rows of gate and up, and what becomes of them: the input of down, which is
 * packed here unless down takes strips alone. */
static void gate_up_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->intermediate, packs = needs_packing(d, &f->l->down, d->gate, d->n);
    int size = task_rows(d, &f->l->gate, f->in, d->n);
    int first = task * size, last = block_end(task, rows, size);
    multiply(d, thread, &f->l->gate, first, last, f->in, NULL, d->n, d->gate.x, rows);
    multiply(d, thread, &f->l->up, first, last, f->in, NULL, d->n, d->up, rows);
    for (int t = 0; t < d->n; t++) {
        int64_t at = (int64_t)t * rows + first;
        gelu_times(d, d->gate.x + at, d->up + at, last - first);
        if (packs) pack(d, d->gate, t, rows, first, last);
    }
}

void cpu_mlp(Device *d, const Layer *l) {
    normed_input(d, d->x, l->pre_mlp_norm, d->n);
    Feed f = {d, l, prepare_input(d, d->y, (const Weight *[3]){&l->gate, &l->up}, d->n)};
    int size = task_rows(d, &l->gate, f.in, d->n);
    parallel(d, n_blocks(d->c->intermediate, size), gate_up_task, &f);
    project((Projection){d, {&l->down}, d->gate, {d->h1}, d->n});
    if (l->post_mlp_norm) norm_rows(d, d->h1, d->h1, l->post_mlp_norm, d->n, d->c->hidden);
}

/* ---- the router ---- */

/* The k largest of p[0 .. n - 1], by falling value, the lower index first on a tie. */
static void top_k(const float *p, int n, int k, int *index) {
    for (int i = 0; i < k; i++) {
        int best = -1;
        for (int e = 0; e < n; e++) {
            int taken = 0;
            for (int j = 0; j < i; j++) taken |= index[j] == e;
            if (!taken && (best < 0 || p[e] > p[best])) best = e;
        }
        index[i] = best;
    }
}

static void route_input_task(void *arg, int t, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int hidden = d->c->hidden;
    float *y = d->y.x + (int64_t)t * hidden, root = 1 / sqrtf((float)hidden);
    (void)thread;
    rms_norm(d, y, d->x + (int64_t)t * hidden, NULL, hidden);
    for (int i = 0; i < hidden; i++) y[i] = y[i] * f->l->router_scale[i] * root;
    pack(d, d->y, t, hidden, 0, hidden);
}

/* The task is a token, whose experts are chosen.  The softmax is that of plain C whatever the
 * kernels are, so that all of them choose the same experts from the same scores. */
static void choose_task(void *arg, int t, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    const Config *c = d->c;
    float *p = d->score + (int64_t)t * c->n_experts, sum = 0;
    float *w = d->expert_weight + (int64_t)t * c->top_k;
    int *e = d->expert + (int64_t)t * c->top_k;
    (void)thread;
    kernels_c.softmax(p, c->n_experts);
    top_k(p, c->n_experts, c->top_k, e);
    for (int k = 0; k < c->top_k; k++) sum += w[k] = p[e[k]];
    for (int k = 0; k < c->top_k; k++) w[k] = w[k] / sum * f->l->per_expert_scale[e[k]];
}

void cpu_route(Device *d, const Layer *l) {
    Feed f = {.d = d, .l = l};
    parallel(d, d->n, route_input_task, &f);
    Input in = d->y;
    in.records = NULL;                  /* the scores that choose experts are not rounded */
    project((Projection){d, {&l->router}, in, {d->score}, d->n});
    parallel(d, d->n, choose_task, &f);
}

/* ---- the experts ---- */

/* Whether a matrix of expert e with its n tokens needs strips. */
static int expert_needs_strips(const Device *d, const Layer *l, int e, int n) {
    return needs_strips(d, &l->expert_gate[e], d->y, n) ||
           needs_strips(d, &l->expert_up[e], d->y, n) ||
           needs_strips(d, &l->expert_down[e], d->gate, n);
}

/* Sorts the choices of all tokens by expert (counting sort).  Expert e gets the slots first_slot[e]
 * .. first_slot[e + 1] - 1; slot s is token slot_token[s]; the k-th choice of token t is slot
 * slot_of[t * top_k + k].  A choice of -1 is left out (offload.h), and its slot is -1.  Also lists
 * the experts that have tokens, and the strips of those that need them. */
static void group_by_expert(Device *d, const Layer *l) {
    const Config *c = d->c;
    int n = d->n * c->top_k, *first = d->first_slot;
    memset(first, 0, (size_t)(c->n_experts + 1) * sizeof *first);
    for (int i = 0; i < n; i++)
        if (d->expert[i] >= 0) first[d->expert[i] + 1]++;
    for (int e = 0; e < c->n_experts; e++) first[e + 1] += first[e];
    for (int i = 0; i < n; i++) {
        d->slot_of[i] = -1;
        if (d->expert[i] < 0) continue;
        int slot = first[d->expert[i]]++;
        d->slot_of[i] = slot;
        d->slot_token[slot] = i / c->top_k;
    }
    /* Each expert's first slot has moved on to that of the next expert. */
    memmove(first + 1, first, (size_t)c->n_experts * sizeof *first);
    first[0] = 0;
    d->n_chosen = d->n_strips = 0;
    for (int e = 0; e < c->n_experts; e++) {
        int count = first[e + 1] - first[e];
        if (count) d->chosen[d->n_chosen++] = e;
        if (!expert_needs_strips(d, l, e, count)) continue;
        d->first_strip[e] = d->n_strips;
        for (int i = 0; i < count; i += STRIP_TOKENS) d->strip_expert[d->n_strips++] = e;
    }
}

/* The input of expert e for its n tokens: their strips where there are any, otherwise `in`. */
static Input expert_input(const Feed *f, Input in, int e, int cols, int n) {
    const Device *d = f->d;
    in.slot = d->first_slot[e];
    if (expert_needs_strips(d, f->l, e, n))
        in.strips = d->strips + d->first_strip[e] * strip_size(cols);
    return in;
}

/* The task is a chosen expert and a block of rows of its gate and up. */
static void expert_up_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->expert_size, blocks = n_blocks(rows, ROWS_PER_TASK);
    int e = d->chosen[task / blocks], block = task % blocks;
    int first = block * ROWS_PER_TASK, last = block_end(block, rows, ROWS_PER_TASK);
    int from = d->first_slot[e], n = d->first_slot[e + 1] - from;
    const int *token = d->slot_token + from;
    float *gate = d->gate.x + (int64_t)from * rows, *up = d->up + (int64_t)from * rows;
    Input in = expert_input(f, d->y, e, d->c->hidden, n);
    multiply(d, thread, &f->l->expert_gate[e], first, last, in, token, n, gate, rows);
    multiply(d, thread, &f->l->expert_up[e], first, last, in, token, n, up, rows);
    for (int t = 0; t < n; t++) {
        int64_t at = (int64_t)t * rows + first;
        gelu_times(d, gate + at, up + at, last - first);
        pack(d, d->gate, from + t, rows, first, last);
    }
}

/* The task is a chosen expert and a block of rows of its down. */
static void expert_down_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int rows = d->c->hidden, cols = d->c->expert_size, blocks = n_blocks(rows, ROWS_PER_TASK);
    int e = d->chosen[task / blocks], block = task % blocks;
    int first = block * ROWS_PER_TASK, last = block_end(block, rows, ROWS_PER_TASK);
    int from = d->first_slot[e], n = d->first_slot[e + 1] - from;
    float *out = d->expert_out + (int64_t)from * rows;
    Input in = {.x = d->gate.x + (int64_t)from * cols};
    if (d->rounds_activations) in.packed = d->gate.packed + from * packed_size(cols);
    if (d->panels) in.records = d->gate.records + from * record_bytes(d, cols);
    in = expert_input(f, in, e, cols, n);
    multiply(d, thread, &f->l->expert_down[e], first, last, in, NULL, n, out, rows);
}

/* The task is a token, whose h2 is the weighted sum of the outputs of its experts that have a slot,
 * four at a time, and its norm unless post_experts_norm is NULL (offload.c). */
static void sum_task(void *arg, int t, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int hidden = d->c->hidden, k = d->c->top_k, *slot = d->slot_of + (int64_t)t * k;
    float *h = d->h2 + (int64_t)t * hidden;
    (void)thread;
    clear(h, hidden);
    for (int i = 0; i < k;) {
        const float *out[4] = {NULL};
        float weight[4] = {0};
        for (int n = 0; n < 4 && i < k; i++) {
            if (slot[i] < 0) continue;
            weight[n] = d->expert_weight[t * k + i];
            out[n++] = d->expert_out + (int64_t)slot[i] * hidden;
        }
        if (!out[0]) break;
        for (int n = 1; n < 4; n++)
            if (!out[n]) out[n] = out[0];
        d->kernel->axpy4(h, out, weight, hidden);
    }
    if (f->l->post_experts_norm) rms_norm(d, h, h, f->l->post_experts_norm, hidden);
}

/* The task is a chosen expert: A x of the adapters of its gate and up. */
static void expert_up_low_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int e = d->chosen[task], from = d->first_slot[e], n = d->first_slot[e + 1] - from;
    Input in = expert_input(f, d->y, e, d->c->hidden, n);
    multiply_low(d, thread, &f->l->expert_gate[e], in, d->slot_token + from, n);
    multiply_low(d, thread, &f->l->expert_up[e], in, d->slot_token + from, n);
}

/* The task is a chosen expert: A x of the adapters of its down. */
static void expert_down_low_task(void *arg, int task, int thread) {
    Feed *f = arg;
    Device *d = f->d;
    int e = d->chosen[task], from = d->first_slot[e], n = d->first_slot[e + 1] - from;
    Input in = {.x = d->gate.x + (int64_t)from * d->c->expert_size};
    in = expert_input(f, in, e, d->c->expert_size, n);
    multiply_low(d, thread, &f->l->expert_down[e], in, NULL, n);
}

void cpu_experts(Device *d, const Layer *l) {
    Feed f = {.d = d, .l = l};
    normed_input(d, d->x, l->pre_experts_norm, d->n);
    group_by_expert(d, l);
    make_expert_strips(d, d->y.x, d->c->hidden, d->slot_token);
    if (d->low) parallel(d, d->n_chosen, expert_up_low_task, &f);
    parallel(d, d->n_chosen * n_blocks(d->c->expert_size, ROWS_PER_TASK), expert_up_task, &f);
    make_expert_strips(d, d->gate.x, d->c->expert_size, NULL);
    if (d->low) parallel(d, d->n_chosen, expert_down_low_task, &f);
    parallel(d, d->n_chosen * n_blocks(d->c->hidden, ROWS_PER_TASK), expert_down_task, &f);
    parallel(d, d->n, sum_task, &f);
}
