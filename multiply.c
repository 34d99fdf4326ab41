/* multiply.c - a matrix times tokens on the CPU, whatever the weights' format.
 *
 * One product serves everything: `multiply`, a block of rows times every token, by the kernels of
 * kernels.h.  A single token is bound by memory: W is read once, row after row, fetched ahead.  A
 * prompt is bound by arithmetic: W stays in registers for six tokens, and in the second-level
 * cache for all of them.
 *
 * Which bits a product promises (MODEL.md, "Which bits are promised", has the whole promise).
 * y[t][r] is one sum in an order that W's columns and the kernels determine, so a token's result is
 * the same whatever stands beside it: tokens, rows, threads, chunks of the prompt.  Steps of more
 * than FEW_TOKENS tokens are the exception, unless --exact is given: in strips and panels many
 * tokens are added up in another order, and rounded otherwise (MODEL.md, "Products on the CPU").
 * Which of these is done depends on the step, the matrix and the kernels alone (`uses_strips`,
 * `meets_panels` in cpu.h), so the same command gives the same bytes with any number of threads.
 *
 * Activations.  For matrices of NVFP4, INT4 and INT8 they are rounded to 16 bits (`pack`), and for
 * all that meets panels, unless --exact. */
#include "cpu.h"

/* How far ahead of its reads a kernel fetches, in bytes, at each of the four places that it reads
 * at: what is in flight while memory answers.  1408 bytes are one row of NVFP4 of 2816 columns.
 * How it was found is not recorded.  To tune it again, compare decode of a full-width checkpoint
 * with the bandwidth that `gemma4 bench` prints. */
#define FETCH_AHEAD 1408

/* Columns of TOKENS tokens whose activations stay in the nearest cache, a multiple of the largest
 * `group`, 128.  Half of 2816 columns: six tokens take 25 KB packed, 34 KB in float32, of 32 or
 * 48 KB.  How it was found is not recorded.  To tune it again, compare prompts of 512 tokens with
 * GEMMA4_CPU=avx512. */
#define COLS_NEAR 1408

/* Tokens that meet a panel before the next one is made.  With 128 columns of 32 rows their sums,
 * 32 KB, and their records, 70 KB, stay in the second-level cache.  Chosen by this count.  To tune
 * it, compare prompts of 512 tokens with GEMMA4_CPU=avx512. */
#define PANEL_TOKENS 256

static int is_grouped(const Weight *w) { return w->dtype == DT_F8_E4M3 || w->dtype == DT_I32; }

/* An FP8 or integer matrix as the kernels know it, without rows. */
static GroupedRows grouped_rows(const Weight *w) {
    return (GroupedRows){.scale_dtype = w->scale_dtype, .bits = w->bits, .group = w->scale_cols,
                         .n_groups = n_blocks(w->cols, w->scale_cols)};
}

/* Row `row` of the matrix becomes row r of g. */
static inline void set_row(GroupedRows *g, int r, const Weight *w, int64_t row) {
    int64_t first = row / w->scale_rows * g->n_groups;      /* of the row's scales */
    g->row[r] = w->data + row * stored_row_bytes(w);
    g->scale[r] = w->block_scale + first * dtype_size[w->scale_dtype];
    g->zero[r] = w->zero ? w->zero + 4 * (row / 8 * g->n_groups) : NULL;
    g->zero_shift[r] = (int)(row % 8) * 4;
}

/* Row `row` of an FP8 or integer matrix, one group of columns after the other. */
static void expand_groups(const Kernels *kn, const Weight *w, int64_t row, float *out) {
    GroupedRows g = grouped_rows(w);
    set_row(&g, 0, w, row);
    for (int k = 0, from = 0; k < g.n_groups; k++, from += g.group) {
        int n = w->cols - from < g.group ? w->cols - from : g.group, zero = zero_of(&g, 0, k);
        float scale = scale_of(&g, 0, k);
        if (w->dtype == DT_F8_E4M3) kn->expand_e4m3(g.row[0] + from, scale, n, out + from);
        else if (w->bits == 8) kn->expand_int8(g.row[0] + from, zero, scale, n, out + from);
        else kn->expand_int4(g.row[0] + from / 2, zero, scale, n, out + from);
    }
}

void expand_row(const Kernels *kn, const Weight *w, int64_t row, float *out) {
    int64_t cols = w->cols;
    switch (w->dtype) {
    case DT_U8:
        kn->expand_nvfp4(w->data + row * (cols / 2), w->block_scale + row * (cols / 16), w->scale,
                         w->cols, out);
        break;
    case DT_BF16: kn->expand_bf16(w->data + 2 * row * cols, w->cols, out); break;
    case DT_F16: kn->expand_f16(w->data + 2 * row * cols, w->cols, out); break;
    case DT_F32: memcpy(out, w->data + 4 * row * cols, 4 * (size_t)cols); break;
    default: expand_groups(kn, w, row, out);
    }
}

/* ---- one block of rows ---- */

typedef float RowSums[TOKENS][ROWS][16];        /* 16 lanes for each token and row of a pass */

/* `multiply` where no kernel expands in registers: four rows are expanded to float32 in the nearest
 * cache, then multiplied with every token. */
static void multiply_expanded(Device *d, int thread, const Weight *w, int first, int last,
                              const float *x, const int *token, int n, float *y, int ldy) {
    const float *row[ROWS];
    float *buffer = d->rows[thread], out[ROWS];
    int cols = w->cols;
    for (int r = first; r < last; r += ROWS) {
        int rows = last - r < ROWS ? last - r : ROWS;
        for (int k = 0; k < ROWS; k++) row[k] = buffer + (int64_t)(k < rows ? k : 0) * cols;
        for (int k = 0; k < rows; k++) expand_row(d->kernel, w, r + k, buffer + (int64_t)k * cols);
        for (int t = 0; t < n; t++) {
            d->kernel->dot4(x + (int64_t)(token ? token[t] : t) * cols, row, cols, out);
            copy(y + (int64_t)t * ldy + r, out, rows);
        }
    }
}

/* Whether a row without its scale is exact in BF16. */
static int is_exact_in_bf16(const Weight *w) {
    if (w->dtype == DT_F8_E4M3) return w->scale_cols >= w->cols;
    return w->dtype == DT_BF16 || w->dtype == DT_U8;
}

/* Row `row` as BF16 [cols], or, where lower is not NULL, as the sum of two BF16.  Returns the scale
 * that is left out.  scratch: a row of float32, up to a multiple of 32 columns. */
static float row_as_bf16(const Kernels *kn, const Weight *w, int64_t row, float *scratch,
                         uint16_t *upper, uint16_t *lower) {
    int64_t cols = w->cols;
    if (w->dtype == DT_BF16) {
        memcpy(upper, w->data + 2 * row * cols, 2 * (size_t)cols);
        return 1;
    }
    if (w->dtype == DT_U8) {
        kn->nvfp4_to_bf16(w->data + row * (cols / 2), w->block_scale + row * (cols / 16), w->cols,
                          upper);
        return w->scale;
    }
    if (!lower) {
        kn->e4m3_to_bf16(w->data + row * cols, w->cols, upper);
        return float_at(w->scale_dtype, w->block_scale, row / w->scale_rows);
    }
    if (w->dtype == DT_I32 && w->bits == 4) {
        GroupedRows g = grouped_rows(w);
        set_row(&g, 0, w, row);
        kn->int4_to_bf16(&g, w->cols, upper, lower);
        return 1;
    }
    int wide = round_up(w->cols, 32);
    expand_row(kn, w, row, scratch);
    clear(scratch + cols, wide - cols);
    kn->split(scratch, wide, upper, lower);
    return 1;
}

/* The rows become BF16 in the second-level cache; zeros fill them up to 32 columns.  Where a row is
 * two of BF16, half of the rows are taken at a time. */
void multiply_strips(Device *d, int thread, const Weight *w, int first, int last,
                     const uint8_t *strips, int n, float *y, int ldy) {
    int cols = round_up(w->cols, 32), exact = is_exact_in_bf16(w);
    int most = exact ? MANY_ROWS : MANY_ROWS / 2;
    int64_t stride = cols + 32;         /* 64 bytes more: no power of two in the cache */
    size_t filler = 2 * (size_t)(cols - w->cols);
    uint16_t *upper = (uint16_t *)d->rows[thread], *lower = upper + most * stride;
    float scale[MANY_ROWS], *scratch = (float *)(upper + MANY_ROWS * stride);
    for (int r = first; r < last; r += most) {
        int rows = last - r < most ? last - r : most;
        for (int i = 0; i < rows; i++) {
            uint16_t *to = upper + i * stride, *rest = exact ? NULL : lower + i * stride;
            scale[i] = row_as_bf16(d->kernel, w, r + i, scratch, to, rest);
            memset(to + w->cols, 0, filler);
            if (rest) memset(rest + w->cols, 0, filler);
        }
        StripRows part = {upper, exact ? NULL : lower, (int)stride, cols, rows, scale,
                          d->rounds_to_8};
        d->kernel->gemm(&part, strips, n, y + r, ldy);
    }
}

/* `multiply` where the tokens are in strips of float32: the rows become float32 in the second-level
 * cache, half of a task's at a time. */
static void multiply_as_floats(Device *d, int thread, const Weight *w, int first, int last,
                               const uint8_t *strips, int n, float *y, int ldy) {
    enum { HALF = MANY_ROWS / 2 };
    int cols = w->cols, stride = cols + 16;     /* 64 bytes more: no power of two in the cache */
    float *rows = d->rows[thread];
    for (int r = first; r < last; r += HALF) {
        int n_rows = last - r < HALF ? last - r : HALF;
        for (int i = 0; i < n_rows; i++)
            expand_row(d->kernel, w, r + i, rows + (int64_t)i * stride);
        multiply_float_strips(d->kernel, rows, stride, cols, (const float *)strips, cols, n, n_rows,
                              1, y + r, ldy);
    }
}

/* What `multiply` works on with the kernels that expand in registers. */
typedef struct {
    const Kernels *kn;
    const Weight *w;
    int takes_packed;                   /* 1: W meets packed activations; 0: float32 */
    int row_bytes;
    int first, last;                    /* rows */
    int quarter;                        /* rows of a quarter of them, see sum_rows */
    int count;                          /* tokens, at most TOKENS */
    const float *x[TOKENS];
    const uint8_t *packed[TOKENS];
} Block;

/* A pass over four rows, the numbers row[0 .. 3] of the matrix. */
static inline void sum_four(const Block *b, const int64_t row[ROWS], int from, int to, int ahead,
                            float sum[TOKENS][ROWS][16]) {
    const Weight *w = b->w;
    const uint8_t *data[ROWS], *scale[ROWS];
    if (is_grouped(w)) {
        GroupedRows g = grouped_rows(w);
        for (int k = 0; k < ROWS; k++) set_row(&g, k, w, row[k]);
        if (b->takes_packed) b->kn->integers(&g, from, to, b->packed, b->count, sum, ahead);
        else b->kn->grouped(&g, from, to, b->x, b->count, sum, ahead);
        return;
    }
    for (int k = 0; k < ROWS; k++) data[k] = w->data + row[k] * b->row_bytes;
    if (w->dtype == DT_BF16) {
        b->kn->bf16(data, from, to, b->x, b->count, sum, ahead);
        return;
    }
    for (int k = 0; k < ROWS; k++) scale[k] = w->block_scale + row[k] * (w->cols / 16);
    b->kn->nvfp4(data, scale, from, to, b->packed, b->count, sum, ahead);
}

/* sum[i] += the columns from .. to - 1 of pass i, which takes four rows that lie a quarter of the
 * task apart, as memory is read fastest at several places at once.  fetch: 1 where the rows come
 * from memory; then every pass fetches the rows ahead of it. */
static void sum_rows(const Block *b, int from, int to, int fetch, RowSums *sum) {
    int near = (FETCH_AHEAD + b->row_bytes - 1) / b->row_bytes;     /* so many rows ahead */
    for (int i = 0; i < b->quarter; i++) {
        int64_t row[ROWS];
        /* Behind the last row of a quarter comes the first one in the next task's quarter. */
        int ahead = near + (i + near < b->quarter ? 0 : b->last - b->first - b->quarter);
        for (int k = 0; k < ROWS; k++) {
            row[k] = b->first + i + k * b->quarter;
            if (row[k] >= b->last) row[k] = b->first + i;
        }
        sum_four(b, row, from, to, fetch ? ahead * b->row_bytes : 0, sum[i]);
    }
}

/* The columns of row `row` after the last whole 16, which BF16 and FP8 can have, as float32. */
static void expand_rest(const Block *b, int64_t row, float rest[16]) {
    const Weight *w = b->w;
    int whole = w->cols / 16 * 16, left = w->cols % 16;
    if (w->dtype == DT_BF16) {
        b->kn->expand_bf16(w->data + row * b->row_bytes + 2 * whole, left, rest);
        return;
    }
    GroupedRows g = grouped_rows(w);
    set_row(&g, 0, w, row);
    b->kn->expand_e4m3(g.row[0] + whole, scale_of(&g, 0, g.n_groups - 1), left, rest);
}

/* y[i][r] from the lanes: their sum, the columns after the last whole 16, the matrix's scale. */
static void finish_rows(const Block *b, RowSums *sum, float *y, int ldy) {
    const Weight *w = b->w;
    int whole = w->cols / 16 * 16, left = w->cols % 16;
    for (int i = 0; i < b->count; i++)
        for (int pass = 0; pass < b->quarter; pass++) {
            float out[ROWS], rest[16];
            b->kn->fold(sum[pass][i], out);
            for (int k = 0; k < ROWS; k++) {
                int r = b->first + pass + k * b->quarter;
                if (r >= b->last) break;
                if (w->dtype == DT_U8) out[k] *= NVFP4_FACTOR * w->scale;
                else if (left) {
                    expand_rest(b, r, rest);
                    out[k] = dot_rest(out[k], b->x[i] + whole, rest, 0, left);
                }
                y[(int64_t)i * ldy + r] = out[k];
            }
        }
}

/* Whether w meets packed activations.  A drafter's own two matrices have none. */
static int takes_packed(const Device *d, const Weight *w, Input in) {
    return d->rounds_activations && in.packed && (w->dtype == DT_U8 || w->dtype == DT_I32);
}

/* Whether a kernel expands w in registers for n tokens. */
static int is_expanded_in_registers(const Device *d, const Weight *w, Input in, int n) {
    const Kernels *kn = d->kernel;
    if (w->dtype == DT_BF16) return kn->bf16 != NULL;
    if (takes_packed(d, w, in)) return 1;
    return is_grouped(w) && kn->grouped && n <= kn->few;
}

/* Up to TOKENS tokens go through all rows of the task at a time.  The first of them fetch the rows
 * from memory, whole.  The next ones find them in the second-level cache, and go through a chunk
 * of columns after the other, so that their activations stay in the nearest one. */
static void multiply_rows(const Device *d, const Weight *w, int first, int last, Input in,
                          const int *token, int n, float *y, int ldy) {
    int cols = w->cols;
    _Alignas(64) RowSums sum[MANY_ROWS / ROWS];
    Block b = {.kn = d->kernel, .w = w, .takes_packed = takes_packed(d, w, in), .first = first,
               .last = last, .row_bytes = stored_row_bytes(w),
               .quarter = n_blocks(last - first, ROWS)};
    for (int t = 0; t < n; t += TOKENS) {
        int chunk = t == 0 ? cols : COLS_NEAR;
        b.count = n - t < TOKENS ? n - t : TOKENS;
        for (int i = 0; i < b.count; i++) {
            int64_t at = token ? token[t + i] : t + i;
            if (b.takes_packed) b.packed[i] = in.packed + at * packed_size(cols);
            else b.x[i] = in.x + at * cols;
        }
        for (int i = 0; i < b.quarter; i++) memset(sum[i], 0, (size_t)b.count * sizeof sum[i][0]);
        for (int from = 0; from < cols; from += chunk)
            sum_rows(&b, from, cols - from < chunk ? cols : from + chunk, t == 0, sum);
        finish_rows(&b, sum, y + (int64_t)t * ldy, ldy);
    }
}

/* Row `row` of a matrix that can meet panels becomes row r of them. */
static inline void set_panel_row(PanelRows *to, int r, const Weight *w, int64_t row) {
    GroupedRows *g = &to->four[r / ROWS];
    if (w->dtype == DT_I32) {
        if (r % ROWS == 0) *g = grouped_rows(w);
        set_row(g, r % ROWS, w, row);
        return;
    }
    g->row[r % ROWS] = w->data + row * stored_row_bytes(w);
    if (w->dtype == DT_U8) g->scale[r % ROWS] = w->block_scale + row * (w->cols / 16);
}

/* A panel has PANEL_ROWS rows, of which the last may stand there several times. */
void multiply_panels(const Device *d, const Weight *w, int first, int last, Input in,
                     const int *token, int n, float *y, int ldy) {
    _Alignas(64) float sum[PANEL_TOKENS][PANEL_ROWS];
    PanelRows panel = {.dtype = w->dtype, .cols = w->cols, .scale = w->scale};
    int64_t size = record_bytes(d, w->cols);
    for (int r = first; r < last; r += PANEL_ROWS) {
        int rows = last - r < PANEL_ROWS ? last - r : PANEL_ROWS;
        for (int i = 0; i < PANEL_ROWS; i++)
            set_panel_row(&panel, i, w, r + (i < rows ? i : rows - 1));
        for (int t = 0; t < n; t += PANEL_TOKENS) {
            PanelTokens x = {in.records, size, token ? token + t : NULL, n - t};
            if (x.n > PANEL_TOKENS) x.n = PANEL_TOKENS;
            if (!token) x.x += t * size;
            d->panels->multiply(&panel, x, sum);
            for (int i = 0; i < x.n; i++) copy(y + (int64_t)(t + i) * ldy + r, sum[i], rows);
        }
    }
}

/* A panel of BF16 takes longest to make: with 16 tokens, 32 rows and 2816 columns it took as long
 * as `bf16`, with 32 tokens three quarters of that (a Xeon with AMX, GEMMA4_CPU=avx512).  To tune
 * it, time both again. */
int meets_panels(const Device *d, const Weight *w, Input in, int n) {
    if (!in.records || d->n <= FEW_TOKENS || n <= TOKENS) return 0;
    if (w->dtype == DT_BF16) return n > FEW_TOKENS;
    return w->dtype == DT_U8 || w->dtype == DT_I32;
}

int needs_strips(const Device *d, const Weight *w, Input in, int n) {
    return uses_strips(d, n) && (w->adapter || !meets_panels(d, w, in, n));
}

int needs_packing(const Device *d, const Weight *w, Input in, int n) {
    return !uses_strips(d, n) || meets_panels(d, w, in, n);
}

/* `multiply` without adapters. */
static void multiply_weight(Device *d, int thread, const Weight *w, int first, int last, Input in,
                            const int *token, int n, float *y, int ldy) {
    if (meets_panels(d, w, in, n))
        multiply_panels(d, w, first, last, in, token, n, y, ldy);
    else if (in.strips && !d->kernel->gemm)
        multiply_as_floats(d, thread, w, first, last, in.strips, n, y, ldy);
    else if (in.strips && takes_strips(w))
        multiply_strips(d, thread, w, first, last, in.strips, n, y, ldy);
    else if (is_expanded_in_registers(d, w, in, n))
        multiply_rows(d, w, first, last, in, token, n, y, ldy);
    else multiply_expanded(d, thread, w, first, last, in.x, token, n, y, ldy);
}

/* ---- adapters ---- */

/* A x of an adapter, from this slot on: rows of adapter_width numbers.  The experts' slots lie in
 * one array, and their adapters may have different ranks, so a row's place must not depend on the
 * rank. */
static float *low_of(const Device *d, const Adapter *l, int slot) {
    return d->low + (int64_t)slot * d->w->adapter_width + l->at;
}

/* Has the rows fetched from memory while the base product is computed. */
static void fetch_rows(const Weight *b, int first, int last) {
    int64_t bytes = (int64_t)b->cols * dtype_size[b->dtype];
    for (int64_t i = first * bytes; i < last * bytes; i += 64) __builtin_prefetch(b->data + i);
}

/* Rows first .. last - 1 of B, transposed and in float32: [rank][last - first].  They lie behind
 * each other in the file, so that they are expanded as one row; `out` has room for both forms. */
static const float *transpose_rows(const Kernels *kn, const Weight *b, int first, int last,
                                   float *out) {
    int rows = last - first, rank = b->cols;
    float *row = out + (int64_t)rank * rows;
    Weight all = *b;
    all.cols = rows * rank;
    all.data += (int64_t)first * rank * dtype_size[b->dtype];
    expand_row(kn, &all, 0, row);
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < rank; k++) out[k * rows + r] = row[r * rank + k];
    return out;
}

/* y += scale * B (A x) for the adapters of w, in the rows first .. last - 1.  Rows are the lanes of
 * the sums, as B has few columns; so a number of y has its terms in the order of these columns,
 * whatever stands beside it. */
static void add_adapters(Device *d, int thread, const Weight *w, int first, int last, int slot,
                         int n, float *y, int ldy) {
    int rows = last - first;
    for (const Adapter *l = w->adapter; l; l = l->next) {
        int rank = l->b.cols;
        const float *b = transpose_rows(d->kernel, &l->b, first, last, d->columns[thread]);
        for (int t = 0; t < n; t++) {
            const float *low = low_of(d, l, slot + t);
            const float *later = y + (int64_t)(t + 2) * ldy + first;
            for (int i = 0; t + 2 < n && i < rows; i += 16) __builtin_prefetch(later + i);
            for (int k = 0; k < rank; k += 4) {
                const float *column[4];
                float s[4];
                for (int j = 0; j < 4; j++) {
                    int there = k + j < rank;
                    column[j] = b + (int64_t)(there ? k + j : k) * rows;
                    s[j] = there ? l->scale * low[k + j] : 0;
                }
                d->kernel->axpy4(y + (int64_t)t * ldy + first, column, s, rows);
            }
        }
    }
}

void multiply(Device *d, int thread, const Weight *w, int first, int last, Input in,
              const int *token, int n, float *y, int ldy) {
    for (const Adapter *l = w->adapter; l; l = l->next) fetch_rows(&l->b, first, last);
    multiply_weight(d, thread, w, first, last, in, token, n, y, ldy);
    if (w->adapter) add_adapters(d, thread, w, first, last, in.slot, n, y, ldy);
}

void multiply_low(Device *d, int thread, const Weight *w, Input in, const int *token, int n) {
    in.records = NULL;                  /* adapters are not rounded */
    for (const Adapter *l = w->adapter; l; l = l->next)
        for (int r = 0; r < l->a.rows; r += MANY_ROWS)
            multiply_weight(d, thread, &l->a, r, block_end(r / MANY_ROWS, l->a.rows, MANY_ROWS), in,
                            token, n, low_of(d, l, in.slot), d->w->adapter_width);
}

/* ---- forms of the activations ---- */

void pack(const Device *d, Input in, int64_t t, int cols, int from, int to) {
    int group = d->kernel->group;
    if (!d->rounds_activations) return;
    if (d->panels && d->n > FEW_TOKENS)
        d->panels->pack(in.x + t * cols, from, to, cols, in.records + t * record_bytes(d, cols));
    if (to == cols) to = round_up(to, group);
    d->kernel->pack(in.x + t * cols, from, to, cols, in.packed + t * packed_size(cols));
}

typedef struct {
    Device *d;
    const float *x;
    int cols;
    int n;                              /* tokens; 0: the slots of experts that have many */
    const int *token;                   /* of a slot; NULL: x is [slots][cols] */
} Strips;

/* One strip: 16 tokens, or those that are left. */
static void strip_task(void *arg, int task, int thread) {
    Strips *s = arg;
    Device *d = s->d;
    const float *x[STRIP_TOKENS];
    int first = STRIP_TOKENS * task, end = s->n;
    (void)thread;
    if (!s->n) {
        int e = d->strip_expert[task];
        first = d->first_slot[e] + STRIP_TOKENS * (task - d->first_strip[e]);
        end = d->first_slot[e + 1];
    }
    int n = end - first < STRIP_TOKENS ? end - first : STRIP_TOKENS;
    for (int i = 0; i < n; i++) {
        int64_t at = s->token ? s->token[first + i] : first + i;
        x[i] = s->x + at * s->cols;
    }
    to_strip(d->kernel, x, n, s->cols, d->strips + task * strip_size(s->cols));
}

void make_strips(Device *d, const float *x, int cols, int n) {
    Strips s = {.d = d, .x = x, .cols = cols, .n = n};
    parallel(d, n_blocks(n, STRIP_TOKENS), strip_task, &s);
}

void make_expert_strips(Device *d, const float *x, int cols, const int *token) {
    Strips s = {.d = d, .x = x, .cols = cols, .token = token};
    parallel(d, d->n_strips, strip_task, &s);
}

Input with_strips(Device *d, Input in, int cols, int n) {
    if (!uses_strips(d, n)) return in;
    make_strips(d, in.x, cols, n);
    in.strips = d->strips;
    return in;
}

/* ---- several matrices, one input ---- */

/* Rows of A that a task of low_task takes where a prompt is read, STRIP_TOKENS tokens at a time: as
 * many rows as gemm reads at once.  In a short step it takes ROWS, a pass of a kernel, so that all
 * threads share the few rows.  Chosen by judgement.  To tune it, compare prompts of 512 tokens with
 * --lora. */
#define LOW_ROWS 32

/* A x of the adapters of up to three matrices. */
typedef struct {
    Device *d;
    const Weight *const *w;             /* [3] */
    Input in;
    int n;                              /* tokens */
    int rows, tokens;                   /* of a task */
} Low;

/* Tasks of low_task for one adapter. */
static int low_tasks(const Low *p, const Adapter *l) {
    return n_blocks(l->a.rows, p->rows) * n_blocks(p->n, p->tokens);
}

/* The blocks of rows and tokens of all adapters of all matrices, one after the other. */
static void low_task(void *arg, int task, int thread) {
    const Low *p = arg;
    Device *d = p->d;
    int i = 0;
    const Adapter *l = NULL;
    for (;; l = l->next) {
        for (; !l; i++) l = p->w[i] ? p->w[i]->adapter : NULL;
        if (task < low_tasks(p, l)) break;
        task -= low_tasks(p, l);
    }
    int rank = l->a.rows, cols = l->a.cols, blocks = n_blocks(rank, p->rows);
    int row = task % blocks, t = task / blocks * p->tokens;
    int n = p->n - t < p->tokens ? p->n - t : p->tokens;
    Input in = {.x = p->in.x + (int64_t)t * cols};
    if (p->in.strips) in.strips = p->in.strips + t / STRIP_TOKENS * strip_size(cols);
    multiply_weight(d, thread, &l->a, row * p->rows, block_end(row, rank, p->rows), in, NULL, n,
                    low_of(d, l, t), d->w->adapter_width);
}

Input prepare_input(Device *d, Input in, const Weight *const w[3], int n) {
    Low p = {.d = d, .w = w, .n = n, .rows = ROWS, .tokens = FEW_TOKENS};
    int tasks = 0, cols = 0, strips = 0;
    if (d->n > FEW_TOKENS) p.rows = LOW_ROWS, p.tokens = STRIP_TOKENS;
    for (int i = 0; i < 3; i++) {
        if (!w[i] || !w[i]->data) continue;
        cols = w[i]->cols;
        strips |= needs_strips(d, w[i], in, n);
        for (const Adapter *l = w[i]->adapter; l; l = l->next) tasks += low_tasks(&p, l);
    }
    if (strips) in = with_strips(d, in, cols, n);
    p.in = in;
    if (tasks) parallel(d, tasks, low_task, &p);
    return in;
}

/* Tasks of matrix i. */
static int projection_tasks(const Projection *p, int i) {
    return n_blocks(p->w[i]->rows, task_rows(p->d, p->w[i], p->in, p->n));
}

/* The blocks of rows of all matrices, one matrix after the other. */
static void project_task(void *arg, int task, int thread) {
    Projection *p = arg;
    int i = 0;
    for (; task >= projection_tasks(p, i); i++) task -= projection_tasks(p, i);
    int rows = p->w[i]->rows, size = task_rows(p->d, p->w[i], p->in, p->n);
    int first = task * size, last = block_end(task, rows, size);
    multiply(p->d, thread, p->w[i], first, last, p->in, NULL, p->n, p->y[i], rows);
}

void project(Projection p) {
    int tasks = 0, count = 0;
    p.in = prepare_input(p.d, p.in, p.w, p.n);
    for (int i = 0; i < 3; i++) {
        if (!p.w[i] || !p.w[i]->data) continue;
        p.w[count] = p.w[i];
        p.y[count] = p.y[i];
        tasks += projection_tasks(&p, count++);
    }
    parallel(p.d, tasks, project_task, &p);
}
