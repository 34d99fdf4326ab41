/* residual.c - the residual stream on the CPU: where it begins, its norms, what is added to it. */
#include <math.h>

#include "cpu.h"

void rms_norm(const Device *d, float *y, const float *x, const float *weight, int n) {
    float sum[4];
    const float *const xs[4] = {x, x, x, x};
    d->kernel->dot4(x, xs, n, sum);
    float s = 1 / sqrtf(sum[0] / (float)n + d->c->eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * s * (weight ? weight[i] : 1);
}

/* Rows of x and y, `size` numbers each. */
typedef struct {
    Device *d;
    float *x, *y;
    const float *weight;
    int size;
} Norm;

static void input_task(void *arg, int t, int thread) {
    Norm *a = arg;
    int64_t at = (int64_t)t * a->size;
    (void)thread;
    rms_norm(a->d, a->y + at, a->x + at, a->weight, a->size);
    pack(a->d, a->d->y, t, a->size, 0, a->size);
}

void normed_input(Device *d, float *x, const float *weight, int n) {
    parallel(d, n, input_task, &(Norm){d, x, d->y.x, weight, d->c->hidden});
}

static void add_task(void *arg, int t, int thread) {
    Norm *a = arg;
    float *x = a->x + (int64_t)t * a->size, *y = a->y + (int64_t)t * a->size;
    (void)thread;
    rms_norm(a->d, y, y, a->weight, a->size);
    for (int i = 0; i < a->size; i++) x[i] += y[i];
}

void add_normed(Device *d, float *x, float *y, const float *weight, int n, int size) {
    parallel(d, n, add_task, &(Norm){d, x, y, weight, size});
}

static void norm_task(void *arg, int t, int thread) {
    Norm *a = arg;
    int64_t at = (int64_t)t * a->size;
    (void)thread;
    rms_norm(a->d, a->y + at, a->x + at, a->weight, a->size);
}

void norm_rows(Device *d, float *y, float *x, const float *weight, int n, int size) {
    parallel(d, n, norm_task, &(Norm){d, x, y, weight, size});
}

/* ---- where a step begins ---- */

/* Above 64 tokens a task takes MANY_ROWS rows, on devices with strips.  How 64 was chosen is not
 * recorded.  To tune it again, compare prompts of 32 to 256 tokens with GEMMA4_CPU=amx. */
void begin_step(Device *d, int n, int64_t pos) {
    d->n = n;
    d->pos = pos;
    d->rope_freq = NULL;
    d->dense_rows = d->strips && n > 64 ? MANY_ROWS : ROWS_PER_TASK;
}

void embed_row(const Device *d, int id, float *out) {
    int n = d->w->embed.cols;
    float scale = sqrtf((float)n);
    expand_row(d->kernel, &d->w->embed, id, out);
    for (int i = 0; i < n; i++) out[i] *= scale;
}

void cpu_embed(Device *d, const int *ids, int n, int64_t pos) {
    begin_step(d, n, pos);
    for (int t = 0; t < n; t++) {
        embed_row(d, ids[t], d->x + (int64_t)t * d->c->hidden);
        d->last[t] = t;
    }
}

void cpu_embed_soft(Device *d, int first, int count, const float *soft) {
    copy(d->x + (int64_t)first * d->c->hidden, soft, (int64_t)count * d->c->hidden);
    for (int t = first; t < first + count; t++) d->last[t] = first + count - 1;
}

/* ---- where a layer ends ---- */

typedef struct {
    Device *d;
    const Layer *l;
} Join;

static void join_task(void *arg, int t, int thread) {
    Join *a = arg;
    Device *d = a->d;
    int hidden = d->c->hidden;
    int64_t at = (int64_t)t * hidden;
    float *x = d->x + at, *h1 = d->h1 + at, *h2 = d->h2 + at;
    (void)thread;
    for (int i = 0; i < hidden && d->c->n_experts; i++) h1[i] += h2[i];
    rms_norm(d, h1, h1, a->l->post_ffn_norm, hidden);
    for (int i = 0; i < hidden; i++) x[i] = (x[i] + h1[i]) * a->l->layer_scalar;
}

void cpu_join(Device *d, const Layer *l) { parallel(d, d->n, join_task, &(Join){d, l}); }
