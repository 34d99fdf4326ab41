/* head.c - from the last x to logits on the CPU, and which of them are the largest.
 *
 * The head is the largest matrix of all: 1.5 GB of BF16, of the 5.6 GB that a token of the 26B-A4B
 * reads.  Sampling wants few of its results.  So after SCREEN_AFTER tokens an int8 copy of half the
 * size is made; each row's product with the copy, and a bound of its error, tell which rows can be
 * among the k largest, and only these are computed, from the BF16 head.
 *
 * Why this never changes a token.  Let w be a row of the head and w' = scale * q its copy, y the
 * input and y' = step * Y its rounding to 14 bits, so that q . Y is exact in integers.  By
 * Cauchy-Schwarz, twice,
 *     |w . y - w' . y'| = |(w - w') . y + w' . (y - y')| <= |w - w'| |y| + |w'| |y - y'|.
 * The BF16 kernel's product p of w and y differs from w . y by at most m 2^-23 |w| |y|, m the
 * roundings that a term goes through (Higham, Accuracy and Stability of Numerical Algorithms, 3.1):
 * cols / 16 + 4.  So with |w'| <= |w| + |w - w'| and off >= |y - y'| + m 2^-23 |y|
 *     |p - w' . y'| <= |w - w'| |y| + (|w| + |w - w'|) off =: bound.
 * The code takes cols / 4 + 64 for m, and multiplies the bound by 1.001, because the norms are
 * known within 10^-4.  Hence w' . y' - bound <= p <= w' . y' + bound.  Let L be the k-th largest of
 * all lower bounds: k rows have p >= L, so none of the k largest p is below L, and a row whose
 * upper bound is below L is not among them.  The soft cap is monotonic but for rounding;
 * `least_product` lowers L to allow for that.  The rows that are left get the very bits that `head`
 * would give them, so the k largest, and which token comes first among equals, are the same.  A row
 * whose bounds are not finite is never ruled out. */
#include <math.h>

#include "cpu.h"

/* The copy is made after SCREEN_AFTER tokens.  Making it costs about the time that the copy saves
 * on SCREEN_AFTER later tokens.  So an answer that ends just after the copy was made has lost no
 * more than it could have won.  16 was right while screen_task read one row of the copy at a time;
 * 8 is right since it reads four.  To tune it again, divide the time of the token that makes the
 * copy by what a later one saves, with -n 20 on a full-width checkpoint. */
#define SCREEN_AFTER 8

/* Rows of a task that computes what was not ruled out: four passes of a kernel.  A guess, as there
 * are few such rows.  To tune it, compare decode of a full-width checkpoint. */
#define EXACT_ROWS (4 * ROWS)

/* One token's k largest logits.  The arrays serve one token after the other. */
typedef struct {
    Device *d;
    int k;
    float step;                         /* of y' = step * Y */
    float length;                       /* |y| */
    float off;                          /* what |w| and |w - w'| are multiplied with in the bound */
    int16_t *y;                         /* Y [HeadCopy.cols] */
    float *upper;                       /* [vocab] upper bound of each row's product */
    float **lower;                      /* [n_threads][MAX_TOP] each thread's k largest lower
                                         * bounds, falling */
    uint8_t *has_lower;                 /* [n_threads] 1: the thread's list has begun */
    int *row, n_rows;                   /* [vocab] the rows that are not ruled out */
    float *logit;                       /* [vocab] their logits */
} TopSearch;

/* The int8 copy W' of the head: W'[r][c] = scale[r] * q[r][c]. */
typedef struct HeadCopy {
    int cols;                           /* of q: the head's, and zeros up to a multiple of 64 */
    int8_t *q;                          /* [vocab][cols]; NULL: not made */
    size_t bytes;                       /* of q */
    float (*rounded)[3];                /* [vocab] scale, |w - w'|, |w|: see round_row */
    TopSearch search;
} HeadCopy;

static float soft_cap(const Device *d, float l) {
    return d->c->softcap > 0 ? d->c->softcap * tanhf(l / d->c->softcap) : l;
}

/* ---- all logits ---- */

typedef struct {
    Device *d;
    float *logits;
    int count;                          /* tokens */
    Input in;
} Head;

/* All tokens' logits of a block of rows. */
static void head_task(void *arg, int task, int thread) {
    Head *h = arg;
    Device *d = h->d;
    int vocab = d->c->vocab;
    int first = task * d->dense_rows, last = block_end(task, vocab, d->dense_rows);
    multiply(d, thread, &d->w->head, first, last, h->in, NULL, h->count, h->logits, vocab);
    for (int t = 0; t < h->count; t++) {
        float *logits = h->logits + (int64_t)t * vocab;
        for (int r = first; r < last; r++) logits[r] = soft_cap(d, logits[r]);
    }
}

void cpu_head(Device *d, int first, int count, float *logits) {
    Head h = {.d = d, .logits = logits, .count = count};
    normed_input(d, d->x + (int64_t)first * d->c->hidden, d->w->final_norm, count);
    h.in = with_strips(d, d->y, d->c->hidden, count);
    h.in.records = NULL;                /* logits are not rounded */
    parallel(d, n_blocks(d->c->vocab, d->dense_rows), head_task, &h);
}

/* ---- the int8 copy ---- */

static void round_task(void *arg, int task, int thread) {
    Device *d = arg;
    HeadCopy *s = d->head_copy;
    const Weight *w = &d->w->head;
    (void)thread;
    for (int r = task * ROWS_PER_TASK; r < block_end(task, w->rows, ROWS_PER_TASK); r++) {
        const uint8_t *row = w->data + 2 * (int64_t)r * w->cols;
        d->kernel->round_row(row, w->cols, s->q + (int64_t)r * s->cols, s->rounded[r]);
    }
}

/* Makes d->head_copy.  Where the copy cannot be made, its q stays NULL. */
static HeadCopy *head_copy_new(Device *d) {
    HeadCopy *s = d->head_copy = own(d, xcalloc(1, sizeof *s));
    TopSearch *a = &s->search;
    int vocab = d->c->vocab;
    s->cols = round_up(d->c->hidden, 64);
    s->bytes = (size_t)vocab * (size_t)s->cols;
    if (!d->kernel->round_row || d->w->head.dtype != DT_BF16) return s;
    if (d->c->hidden % 16 || s->cols > 32768) return s;
    if (!(s->q = map_pages(s->bytes))) return s;
    madvise(s->q, s->bytes, MADV_HUGEPAGE);
    s->rounded = own(d, xcalloc(vocab, sizeof *s->rounded));
    a->d = d;
    a->upper = floats(d, 1, vocab);
    a->y = own(d, xaligned(s->cols * 2));
    a->row = own(d, xcalloc(vocab, sizeof *a->row));
    a->logit = floats(d, 1, vocab);
    a->lower = own(d, xcalloc(d->pool.n_threads, sizeof *a->lower));
    a->has_lower = own(d, xcalloc(d->pool.n_threads, 1));
    for (int i = 0; i < d->pool.n_threads; i++) a->lower[i] = floats(d, 1, MAX_TOP);
    parallel(d, n_blocks(vocab, ROWS_PER_TASK), round_task, d);
    return s;
}

void head_copy_free(Device *d) {
    if (d->head_copy && d->head_copy->q) munmap(d->head_copy->q, d->head_copy->bytes);
}

/* ---- the largest logits ---- */

/* Y, the 14-bit integers of y = d->y.x, and the lengths. */
static void round_input(TopSearch *a) {
    const float *y = a->d->y.x;
    int n = a->d->c->hidden;
    float most = 0;
    double length = 0, off = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(y[i]) > most) most = fabsf(y[i]);
    a->step = most / MAX_Y;
    memset(a->y, 0, (size_t)a->d->head_copy->cols * sizeof *a->y);
    for (int i = 0; i < n; i++) {
        float rounded = rintf(y[i] / a->step);
        a->y[i] = fabsf(rounded) <= MAX_Y ? (int16_t)rounded : 0;       /* 0 / 0 is NaN */
        double left = y[i] - (double)a->step * a->y[i];
        length += (double)y[i] * y[i];
        off += left * left;
    }
    a->length = (float)sqrt(length);
    /* m is n / 16 + 4; n / 4 + 64 is allowed. */
    a->off = (float)(sqrt(off) + sqrt(length) * (n * 0.25 + 64) * 0x1p-23);
}

/* v into a falling list of k. */
static void insert_falling(float *list, int k, float v) {
    if (!(v > list[k - 1])) return;
    int i = k - 1;
    for (; i > 0 && list[i - 1] < v; i--) list[i] = list[i - 1];
    list[i] = v;
}

/* The bounds of row r, whose integers have the product q . Y; both are rounded outwards. */
static void bound_row(TopSearch *a, int thread, int r, int64_t product) {
    const float *of = a->d->head_copy->rounded[r];
    double approx = (double)a->step * of[0] * (double)product;
    double bound = of[1] * (double)a->length + (of[2] + of[1]) * (double)a->off;
    bound = bound * 1.001 + 1e-30;
    double upper = approx + bound, lower = approx - bound;
    if (fabs(approx) + bound < 1e37) {
        a->upper[r] = (float)(upper + fabs(upper) * 0x1p-22);
        insert_falling(a->lower[thread], a->k, (float)(lower - fabs(lower) * 0x1p-22));
    } else a->upper[r] = INFINITY;
}

/* Begins the thread's list, unless it has begun: so only threads that take part cost anything. */
static void begin_lower(TopSearch *a, int thread) {
    if (a->has_lower[thread]) return;
    a->has_lower[thread] = 1;
    for (int j = 0; j < a->k; j++) a->lower[thread][j] = -INFINITY;
}

/* Four rows a quarter of the task apart at a time, as in `multiply`. */
static void screen_task(void *arg, int task, int thread) {
    TopSearch *a = arg;
    const HeadCopy *s = a->d->head_copy;
    int first = task * ROWS_PER_TASK, last = block_end(task, a->d->c->vocab, ROWS_PER_TASK);
    int quarter = n_blocks(last - first, ROWS);
    begin_lower(a, thread);
    for (int i = 0; i < quarter; i++) {
        const int8_t *row[ROWS];
        int64_t product[ROWS];
        for (int k = 0; k < ROWS; k++) {
            int r = first + i + k * quarter;
            row[k] = s->q + (int64_t)(r < last ? r : first) * s->cols;
        }
        /* Behind the last row of a quarter comes the first one in the next task's quarter. */
        int ahead = i + 1 < quarter ? 1 : ROWS_PER_TASK - quarter + 1;
        a->d->kernel->dot_int8(row, a->y, s->cols, product, ahead * s->cols);
        for (int k = 0; k < ROWS && first + i + k * quarter < last; k++)
            bound_row(a, thread, first + i + k * quarter, product[k]);
    }
}

/* The logits of up to EXACT_ROWS rows that are not ruled out: with the same kernel, and so the same
 * bits, as `multiply`. */
static void exact_task(void *arg, int task, int thread) {
    TopSearch *a = arg;
    Device *d = a->d;
    int cols = d->c->hidden, end = (task + 1) * EXACT_ROWS;
    (void)thread;
    for (int i = task * EXACT_ROWS; i < a->n_rows && i < end; i += ROWS) {
        _Alignas(64) float sum[TOKENS][ROWS][16];
        const uint8_t *row[ROWS];
        const float *x[TOKENS] = {d->y.x};
        memset(sum[0], 0, sizeof sum[0]);
        for (int k = 0; k < ROWS; k++) {
            int64_t r = a->row[i + k < a->n_rows ? i + k : i];
            row[k] = d->w->head.data + 2 * r * cols;
        }
        d->kernel->bf16(row, 0, cols, x, 1, sum, 0);
        d->kernel->fold(sum[0], a->logit + i);
        for (int k = 0; k < ROWS; k++) a->logit[i + k] = soft_cap(d, a->logit[i + k]);
    }
}

/* Lower bound: a row whose capped logit reaches soft_cap(product) has a raw product of at least
 * this.  tanhf is off by a few ulp, which the factors cover many times. */
static double least_product(const Device *d, float product) {
    double cap = d->c->softcap, logit = cap > 0 ? cap * tanh(product / cap) : product;
    logit -= fabs(logit) * 0x1p-19 + 1e-30;
    double least = cap > 0 ? cap * atanh(logit / cap) : logit;
    return least - fabs(least) * 1e-6;
}

/* The k largest of the computed logits by falling value, ties by rising id, NaN as -inf; returns
 * how many. */
static int pick(const TopSearch *a, int *ids, float *logits) {
    int n = 0;
    for (int i = 0; i < a->n_rows; i++) {
        float v = isnan(a->logit[i]) ? -INFINITY : a->logit[i];
        if (n == a->k && !(v > logits[n - 1])) continue;
        int at = n < a->k ? n++ : n - 1;
        for (; at > 0 && logits[at - 1] < v; at--) {
            logits[at] = logits[at - 1];
            ids[at] = ids[at - 1];
        }
        logits[at] = v;
        ids[at] = a->row[i];
    }
    return n;
}

int cpu_top(Device *d, int token, int k, int *ids, float *logits) {
    int vocab = d->c->vocab;
    if (d->n_tops < SCREEN_AFTER) {
        d->n_tops++;
        return -1;
    }
    HeadCopy *s = d->head_copy ? d->head_copy : head_copy_new(d);
    if (!s->q) return -1;
    TopSearch *a = &s->search;
    a->k = k < vocab ? k : vocab;
    a->n_rows = 0;
    normed_input(d, d->x + (int64_t)token * d->c->hidden, d->w->final_norm, 1);
    round_input(a);
    memset(a->has_lower, 0, (size_t)d->pool.n_threads);
    begin_lower(a, 0);
    parallel(d, n_blocks(vocab, ROWS_PER_TASK), screen_task, a);
    for (int i = 1; i < d->pool.n_threads; i++)
        for (int j = 0; a->has_lower[i] && j < a->k; j++)
            insert_falling(a->lower[0], a->k, a->lower[i][j]);
    double least = least_product(d, a->lower[0][a->k - 1]);
    for (int r = 0; r < vocab; r++)
        if (!(a->upper[r] < least)) a->row[a->n_rows++] = r;
    parallel(d, n_blocks(a->n_rows, EXACT_ROWS), exact_task, a);
    return pick(a, ids, logits);
}
