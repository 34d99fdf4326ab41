/* plain.c - the model as its formulas: the operations of ops.h in one thread and in plain loops.
 *
 * This file says what Gemma 4 computes.  Read it from top to bottom, beside `one_layer` in model.c:
 * the functions stand in the order in which a token meets them, and each computes one formula of
 * MODEL.md.  The classes that the comments name are those of transformers 5.23.0,
 * models/gemma4/modeling_gemma4.py.  The CPU's files (cpu.h lists them) and the .cu files compute
 * the same operations fast; the tests compare both with this file.
 *
 * n tokens travel together, and x [n][hidden] is their residual stream.  All arrays are row major.
 * Every number is a float32, but a dot product and the sum of a softmax are summed in double.
 * Their errors are then far below a float32's last bit, so the order of their terms practically
 * never changes the float32 that they become. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "minifloat.h"
#include "ops.h"

/* The vision tower's state while it looks at one picture of n = columns * rows patches. */
typedef struct {
    int columns, rows, n;
    float *x;                           /* residual stream [n][hidden]; its block holds the rest */
    float *y;                           /* a norm of x, or what is to be added to x [n][hidden] */
    float *q, *k, *v, *att;             /* [n][n_heads][head_dim] */
} Sight;

struct Device {
    const Config *c;
    const Weights *w;
    int n;                              /* tokens of this step */
    int64_t pos;                        /* position of the first of them */
    int *last;                          /* [n] the last token of the step that each token sees in
                                         * sliding layers */
    float *x;                           /* the residual stream [n][hidden] */
    float *y;                           /* a norm of x, or what is to be added to x [n][hidden] */
    float *q, *att;                     /* queries, attention's results [n][n_heads][head_dim] */
    float *k, *v;                       /* keys and values of this step [n][n_kv_heads][head_dim] */
    float *row;                         /* one key or value out of the cache [head_dim] */
    float *score;                       /* of one query with all keys [context] */
    float *h1, *h2;                     /* what the dense MLP and the experts return [n][hidden] */
    float *p;                           /* the router's probabilities [n][n_experts] */
    int *expert;                        /* the chosen experts [n][top_k] */
    float *expert_weight;               /* likewise, their weights */
    /* A drafter's device. */
    Device *target;                     /* the device of the model for which it drafts */
    float *pair;                        /* its input: an embedding and h, [backbone] each */
    float *logits;                      /* [vocab] */
    int newest, draft[MAX_DRAFTS], n_drafts;
    Sight sight;
    void *owned[32];                    /* all of the above that plain_close frees */
    int n_owned;
};

/* ---- the device: its memory ---- */

static float *floats(int64_t rows, int64_t cols) { return xcalloc(rows * cols + 1, sizeof(float)); }

/* p, which is the device's from now on. */
static void *own(Device *d, void *p) { return d->owned[d->n_owned++] = p; }

static void plain_close(Device *d) {
    if (!d) return;
    for (int i = 0; i < d->n_owned; i++) free(d->owned[i]);
    free(d->sight.x);
    free(d);
}

static Device *plain_open(const Config *c, const Weights *w, const DeviceOptions *o, Error *err) {
    if (o->fp4_activations) {
        fail(err, "FP4 activations need a GPU of compute capability 12.0 or 12.1");
        return NULL;
    }
    int n = o->max_n, dim = 0, kv = 0;
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &w->layer[i];
        if (l->head_dim > dim) dim = l->head_dim;
        if (l->n_kv_heads * l->head_dim > kv) kv = l->n_kv_heads * l->head_dim;
    }
    Device *d = xcalloc(1, sizeof *d);
    d->c = c, d->w = w, d->target = o->target;
    d->last = own(d, xcalloc(n, sizeof *d->last));
    d->x = own(d, floats(n, c->hidden));
    d->y = own(d, floats(n, c->hidden));
    d->q = own(d, floats(n, c->n_heads * dim));
    d->att = own(d, floats(n, c->n_heads * dim));
    d->k = own(d, floats(n, kv));
    d->v = own(d, floats(n, kv));
    d->row = own(d, floats(1, dim));
    d->score = own(d, floats(1, o->context));
    d->h1 = own(d, floats(n, c->hidden));
    d->h2 = own(d, floats(n, c->hidden));
    d->p = own(d, floats(n, c->n_experts));
    d->expert = own(d, xcalloc((int64_t)n * c->top_k + 1, sizeof *d->expert));
    d->expert_weight = own(d, floats(n, c->top_k));
    d->pair = own(d, floats(2, c->backbone));
    d->logits = own(d, floats(1, c->backbone ? c->vocab : 0));
    return d;
}

/* A large block's pages come from the machine when they are first written. */
static void *plain_alloc(size_t bytes) { return calloc(1, bytes); }

static void plain_release(void *p, size_t bytes) {
    (void)bytes;
    free(p);
}

static void plain_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

/* ---- what all layers are made of ---- */

/* W[row][col] of an NVFP4 matrix: a byte holds two numbers, the even column in its low half, and 16
 * columns share a scale. */
static float nvfp4_at(const Weight *w, int64_t row, int64_t col) {
    int64_t i = row * w->cols + col;
    int nibble = w->data[i / 2] >> (col % 2 ? 4 : 0) & 15;
    return e2m1[nibble] * (e4m3_to_float(w->block_scale[i / 16]) * w->scale);
}

/* The scale of W[row][col] in the grid of scales of an FP8 or integer matrix. */
static float scale_at(const Weight *w, int64_t row, int64_t col) {
    int64_t across = (w->cols + w->scale_cols - 1) / w->scale_cols;     /* scales in a row */
    int64_t i = row / w->scale_rows * across + col / w->scale_cols;
    return float_at(w->scale_dtype, w->block_scale, i);
}

/* What is subtracted from W[row][col], an integer as it is stored.  Zero points are nibbles that
 * are packed along the rows: eight rows of one group of columns share a word of four bytes. */
static int zero_at(const Weight *w, int64_t row, int64_t col) {
    if (!w->zero) return w->bits == 4 ? 8 : 128;
    int64_t word = row / 8 * (w->cols / w->scale_cols) + col / w->scale_cols;
    return w->zero[4 * word + row % 8 / 2] >> (row % 2 ? 4 : 0) & 15;
}

/* W[row][col], in every format that a weight has. */
static float weight_at(const Weight *w, int64_t row, int64_t col) {
    int64_t i = row * w->cols + col;
    int stored;
    switch (w->dtype) {
    case DT_U8: return nvfp4_at(w, row, col);
    case DT_F8_E4M3: return e4m3_to_float(w->data[i]) * scale_at(w, row, col);
    case DT_I32:
        if (w->bits == 8) stored = w->data[i];
        else stored = w->data[i / 2] >> (col % 2 ? 4 : 0) & 15;
        return (float)(stored - zero_at(w, row, col)) * scale_at(w, row, col);
    default: return float_at(w->dtype, w->data, i);
    }
}

/* a . b */
static float dot(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

/* y = W x for each of n tokens: x [n][cols], y [n][rows].  A row of W is expanded once for all of
 * them.  This is torch's nn.Linear.  Each LoRA adapter of W adds scale * B (A x), which is
 * lora.Linear of peft. */
static void matmul(float *y, const Weight *w, const float *x, int n) {
    float *row = floats(1, w->cols);
    for (int r = 0; r < w->rows; r++) {
        for (int c = 0; c < w->cols; c++) row[c] = weight_at(w, r, c);
        for (int64_t t = 0; t < n; t++) y[t * w->rows + r] = dot(row, x + t * w->cols, w->cols);
    }
    free(row);
    for (const Adapter *l = w->adapter; l; l = l->next) {
        float *ax = floats(n, l->a.rows), *bax = floats(n, w->rows);
        matmul(ax, &l->a, x, n);
        matmul(bax, &l->b, ax, n);
        for (int64_t i = 0; i < (int64_t)n * w->rows; i++) y[i] += l->scale * bax[i];
        free(ax);
        free(bax);
    }
}

/* y = x / sqrt(mean(x^2) + eps) * weight, each of n rows [size] by itself; a weight of NULL is 1.
 * x and y may be the same.  This is Gemma4RMSNorm. */
static void rms_norm(float *y, const float *x, const float *weight, int n, int size, float eps) {
    for (int64_t t = 0; t < n; t++, x += size, y += size) {
        float scale = 1 / sqrtf(dot(x, x, size) / (float)size + eps);
        for (int i = 0; i < size; i++) y[i] = x[i] * scale * (weight ? weight[i] : 1);
    }
}

/* x += RMSNorm(y, weight), both [n][size]; y is overwritten.  This is the way back into the
 * residual stream in Gemma4TextDecoderLayer and Gemma4VisionEncoderLayer. */
static void add_normed(float *x, float *y, const float *weight, int n, int size, float eps) {
    rms_norm(y, y, weight, n, size, eps);
    for (int64_t i = 0; i < (int64_t)n * size; i++) x[i] += y[i];
}

/* Rotary position embedding: in each head of v, dimension i < width / 2 turns with dimension
 * i + width / 2 by the angle pos * inv_freq[i].  Heads lie `stride` numbers apart.  This is
 * apply_rotary_pos_emb with Gemma4TextRotaryEmbedding. */
static void rope(float *v, int n_heads, int stride, int width, const float *inv_freq, int64_t pos) {
    int half = width / 2;
    for (int i = 0; i < half; i++) {
        float angle = (float)pos * inv_freq[i], c = cosf(angle), s = sinf(angle);
        for (int h = 0; h < n_heads; h++) {
            float *a = v + (int64_t)h * stride + i, *b = a + half, before = *a;
            *a = before * c - *b * s;
            *b = *b * c + before * s;
        }
    }
}

/* s[i] = e^s[i] / sum of e^s[j] */
static void softmax(float *s, int64_t n) {
    float most = -INFINITY;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) most = s[i] > most ? s[i] : most;
    for (int64_t i = 0; i < n; i++) sum += s[i] = expf(s[i] - most);
    for (int64_t i = 0; i < n; i++) s[i] = (float)(s[i] / sum);
}

/* This is torch's gelu_pytorch_tanh. */
static float gelu(float g) {
    return 0.5f * g * (1 + tanhf(0.7978845608f /* sqrt(2 / pi) */ * (g + 0.044715f * g * g * g)));
}

/* out = down (gelu(gate y) * (up y)); y and out [n][hidden] may be the same.  This is
 * Gemma4TextMLP, Gemma4VisionMLP, and one expert of Gemma4TextExperts. */
static void gated_mlp(float *out, const Weight *gate, const Weight *up, const Weight *down,
                      const float *y, int n) {
    float *g = floats(n, gate->rows), *u = floats(n, up->rows);
    matmul(g, gate, y, n);
    matmul(u, up, y, n);
    for (int64_t i = 0; i < (int64_t)n * gate->rows; i++) g[i] = gelu(g[i]) * u[i];
    matmul(out, down, g, n);
    free(g);
    free(u);
}

/* ---- from ids to x ---- */

/* out [hidden] = embed[id] * sqrt(hidden).  This is Gemma4TextScaledWordEmbedding. */
static void embed_row(const Weight *embed, int id, float *out) {
    float scale = sqrtf((float)embed->cols);
    for (int i = 0; i < embed->cols; i++) out[i] = weight_at(embed, id, i) * scale;
}

static void plain_embed(Device *d, const int *ids, int n, int64_t pos) {
    d->n = n;
    d->pos = pos;
    for (int t = 0; t < n; t++) {
        embed_row(&d->w->embed, ids[t], d->x + (int64_t)t * d->c->hidden);
        d->last[t] = t;
    }
}

/* A picture's soft tokens [count][hidden] replace x of its placeholders, as they are.  Gemma4Model
 * does it with masked_scatter. */
static void plain_embed_soft(Device *d, int first, int count, const float *soft) {
    int hidden = d->c->hidden;
    memcpy(d->x + (int64_t)first * hidden, soft, (size_t)count * (size_t)hidden * sizeof *soft);
    for (int t = first; t < first + count; t++) d->last[t] = first + count - 1;
}

/* ---- attention: Gemma4TextAttention ---- */

/* Number i of a layer's cached keys or values.  The scale is used in an FP8 cache alone. */
static float cache_get(DType dtype, const uint8_t *cache, int64_t i, float scale) {
    if (dtype == DT_F32) return ((const float *)cache)[i];
    if (dtype == DT_BF16) return bf16_to_float(((const uint16_t *)cache)[i]);
    return e4m3_to_float(cache[i]) * scale;
}

static void cache_put(DType dtype, uint8_t *cache, int64_t i, float scale, float value) {
    if (dtype == DT_F32) ((float *)cache)[i] = value;
    else if (dtype == DT_BF16) ((uint16_t *)cache)[i] = float_to_bf16(value);
    else cache[i] = float_to_e4m3(value / scale);
}

/* The column of dimension i of a key in a row of the cache that holds K's k_dim stored numbers and
 * then V's head_dim numbers.  With k_dim = head_dim every dimension of K is stored.  Otherwise only
 * those that turn are (KvCache in ops.h): any other is k_norm[i] * V[i], so its column is V's,
 * k_dim + i. */
static int k_column(int head_dim, int k_dim, int i) {
    int pair = i % (head_dim / 2), turning = k_dim / 2;
    if (pair >= turning) return k_dim + i;
    return i < head_dim / 2 ? pair : turning + pair;
}

/* K and V [head_dim] of key/value head h go into the slot of position p. */
static void store(const Layer *l, const KvCache *kv, int64_t p, int h, const float *k,
                  const float *v) {
    int64_t row = p % kv->slots * l->n_kv_heads + h;
    for (int i = 0; i < l->head_dim; i++) {
        int column = k_column(l->head_dim, kv->k_dim, i);
        if (column < kv->k_dim)
            cache_put(kv->dtype, kv->k, row * kv->k_dim + column, l->k_scale, k[i]);
        cache_put(kv->dtype, kv->v, row * l->head_dim + i, l->v_scale, v[i]);
    }
}

static void read_value(float *v, const Layer *l, const KvCache *kv, int64_t p, int h) {
    int64_t row = p % kv->slots * l->n_kv_heads + h;
    for (int i = 0; i < l->head_dim; i++)
        v[i] = cache_get(kv->dtype, kv->v, row * l->head_dim + i, l->v_scale);
}

static void read_key(float *k, const Layer *l, const KvCache *kv, int64_t p, int h) {
    int64_t row = p % kv->slots * l->n_kv_heads + h;
    for (int i = 0; i < l->head_dim; i++) {
        int column = k_column(l->head_dim, kv->k_dim, i);
        if (column < kv->k_dim)
            k[i] = cache_get(kv->dtype, kv->k, row * kv->k_dim + column, l->k_scale);
        else k[i] = l->k_norm[i] * cache_get(kv->dtype, kv->v, row * l->head_dim + i, l->v_scale);
    }
}

/* y = RMSNorm(x, input_norm)
 * q = rope(RMSNorm(q_proj y, q_norm))          [n][n_heads][head_dim]
 * k = rope(RMSNorm(k_proj y, k_norm))          [n][n_kv_heads][head_dim], into the cache
 * v = RMSNorm(v_proj y)                        likewise; a layer without v_proj takes k_proj
 * Each head of q, k and v is normed by itself. */
static void plain_qkv(Device *d, const Layer *l, KvCache *kv) {
    int n = d->n, n_heads = d->c->n_heads, n_kv_heads = l->n_kv_heads, dim = l->head_dim;
    float eps = d->c->eps;
    rms_norm(d->y, d->x, l->input_norm, n, d->c->hidden, eps);
    matmul(d->q, &l->q, d->y, n);
    rms_norm(d->q, d->q, l->q_norm, n * n_heads, dim, eps);
    for (int t = 0; t < n; t++)
        rope(d->q + (int64_t)t * n_heads * dim, n_heads, dim, dim, l->inv_freq, d->pos + t);
    if (!l->k.data) return;             /* a drafter's layer: keys and values are its target's */
    matmul(d->k, &l->k, d->y, n);
    matmul(d->v, l->v.data ? &l->v : &l->k, d->y, n);
    rms_norm(d->k, d->k, l->k_norm, n * n_kv_heads, dim, eps);
    rms_norm(d->v, d->v, NULL, n * n_kv_heads, dim, eps);
    for (int t = 0; t < n; t++) {
        float *k = d->k + (int64_t)t * n_kv_heads * dim, *v = d->v + (int64_t)t * n_kv_heads * dim;
        rope(k, n_kv_heads, dim, dim, l->inv_freq, d->pos + t);
        for (int h = 0; h < n_kv_heads; h++) store(l, kv, d->pos + t, h, k + h * dim, v + h * dim);
    }
}

/* The first position that a token at position p sees: the first of all, or in a sliding layer the
 * one that is window - 1 before p.  This and last_visible are the masks of
 * create_masks_for_vision_model. */
static int64_t first_visible(const Device *d, const Layer *l, int64_t p) {
    int window = d->c->window;
    return l->global || p < window ? 0 : p - window + 1;
}

/* The last position that token t of the step sees: its own, or in a sliding layer that of the last
 * token of its picture.  A drafter's token has no key of its own: it sees what is before it. */
static int64_t last_visible(const Device *d, const Layer *l, int t) {
    int64_t last = d->pos + (l->global ? t : d->last[t]);
    return last - (l->k.data == NULL);
}

/* att = sum over the visible positions p of softmax(q . K[p]) V[p]          [n][n_heads][head_dim]
 * The scale of q . K is 1, because q_norm and k_norm carry it.  Query head h reads key/value head
 * h / (n_heads / n_kv_heads).  This is eager_attention_forward. */
static void plain_attend(Device *d, const Layer *l, const KvCache *kv) {
    int dim = l->head_dim, n_heads = d->c->n_heads, group = n_heads / l->n_kv_heads;
    for (int i = 0; i < d->n * n_heads; i++) {
        int t = i / n_heads, h = i % n_heads / group;
        const float *q = d->q + (int64_t)i * dim;
        float *att = d->att + (int64_t)i * dim;
        int64_t from = first_visible(d, l, d->pos + t), to = last_visible(d, l, t);
        for (int64_t p = from; p <= to; p++) {
            read_key(d->row, l, kv, p, h);
            d->score[p - from] = dot(q, d->row, dim);
        }
        softmax(d->score, to - from + 1);
        memset(att, 0, (size_t)dim * sizeof *att);
        for (int64_t p = from; p <= to; p++) {
            read_value(d->row, l, kv, p, h);
            for (int k = 0; k < dim; k++) att[k] += d->score[p - from] * d->row[k];
        }
    }
}

/* x += RMSNorm(o_proj att, post_attention_norm) */
static void plain_attn_out(Device *d, const Layer *l) {
    matmul(d->y, &l->o, d->att, d->n);
    add_normed(d->x, d->y, l->post_attention_norm, d->n, d->c->hidden, d->c->eps);
}

/* ---- the dense MLP, and beside it the experts: Gemma4TextDecoderLayer ---- */

/* h1 = RMSNorm(MLP(RMSNorm(x, pre_mlp_norm)), post_mlp_norm)       [n][hidden]
 * A dense model has no post_mlp_norm. */
static void plain_mlp(Device *d, const Layer *l) {
    int n = d->n, hidden = d->c->hidden;
    rms_norm(d->y, d->x, l->pre_mlp_norm, n, hidden, d->c->eps);
    gated_mlp(d->h1, &l->gate, &l->up, &l->down, d->y, n);
    if (l->post_mlp_norm) rms_norm(d->h1, d->h1, l->post_mlp_norm, n, hidden, d->c->eps);
}

/* The indices [k] of the k largest of p [n], by falling value, equal ones by rising index. */
static void largest(const float *p, int n, int k, int *index) {
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

/* p = softmax(router (RMSNorm(x) * router_scale / sqrt(hidden)))   [n][n_experts]
 * A token's experts are the top_k with the largest p.  The weight of an expert is its p, divided by
 * the sum of the chosen p, times per_expert_scale.  This is Gemma4TextRouter. */
static void plain_route(Device *d, const Layer *l) {
    const Config *c = d->c;
    float root = 1 / sqrtf((float)c->hidden);
    rms_norm(d->y, d->x, l->router_scale, d->n, c->hidden, c->eps);
    for (int64_t i = 0; i < (int64_t)d->n * c->hidden; i++) d->y[i] *= root;
    matmul(d->p, &l->router, d->y, d->n);
    for (int t = 0; t < d->n; t++) {
        float *p = d->p + (int64_t)t * c->n_experts, sum = 0;
        float *weight = d->expert_weight + (int64_t)t * c->top_k;
        int *expert = d->expert + (int64_t)t * c->top_k;
        softmax(p, c->n_experts);
        largest(p, c->n_experts, c->top_k, expert);
        for (int k = 0; k < c->top_k; k++) sum += p[expert[k]];
        for (int k = 0; k < c->top_k; k++)
            weight[k] = p[expert[k]] / sum * l->per_expert_scale[expert[k]];
    }
}

/* z = RMSNorm(x, pre_experts_norm)
 * h2 = RMSNorm(sum of weight_e * MLP_e(z) over a token's experts e, post_experts_norm)
 * Both are [n][hidden].  One expert after the other works on all tokens that have chosen it.  This
 * is Gemma4TextExperts. */
static void plain_experts(Device *d, const Layer *l) {
    int n = d->n, hidden = d->c->hidden, top_k = d->c->top_k;
    size_t row = (size_t)hidden * sizeof(float);
    float *in = floats(n, hidden), *out = floats(n, hidden), *weight = floats(n, 1);
    int *token = xcalloc(n, sizeof *token);
    rms_norm(d->y, d->x, l->pre_experts_norm, n, hidden, d->c->eps);
    memset(d->h2, 0, (size_t)n * row);
    for (int e = 0; e < d->c->n_experts; e++) {
        int count = 0;
        for (int i = 0; i < n * top_k; i++) {
            if (d->expert[i] != e) continue;
            token[count] = i / top_k;
            weight[count] = d->expert_weight[i];
            memcpy(in + (int64_t)count * hidden, d->y + (int64_t)token[count] * hidden, row);
            count++;
        }
        if (!count) continue;
        gated_mlp(out, &l->expert_gate[e], &l->expert_up[e], &l->expert_down[e], in, count);
        for (int i = 0; i < count; i++) {
            float *h2 = d->h2 + (int64_t)token[i] * hidden;
            for (int k = 0; k < hidden; k++) h2[k] += weight[i] * out[(int64_t)i * hidden + k];
        }
    }
    rms_norm(d->h2, d->h2, l->post_experts_norm, n, hidden, d->c->eps);
    free(in);
    free(out);
    free(weight);
    free(token);
}

/* x = (x + RMSNorm(h1 + h2, post_ffn_norm)) * layer_scalar
 * A dense model has no h2. */
static void plain_join(Device *d, const Layer *l) {
    int64_t all = (int64_t)d->n * d->c->hidden;
    for (int64_t i = 0; i < all && d->c->n_experts; i++) d->h1[i] += d->h2[i];
    add_normed(d->x, d->h1, l->post_ffn_norm, d->n, d->c->hidden, d->c->eps);
    for (int64_t i = 0; i < all; i++) d->x[i] *= l->layer_scalar;
}

/* ---- from x to logits ---- */

/* logits = cap * tanh(head RMSNorm(x, final_norm) / cap)           [count][vocab]
 * A softcap of 0 is none.  This is Gemma4ForCausalLM. */
static void plain_head(Device *d, int first, int count, float *logits) {
    const Config *c = d->c;
    rms_norm(d->y, d->x + (int64_t)first * c->hidden, d->w->final_norm, count, c->hidden, c->eps);
    matmul(logits, &d->w->head, d->y, count);
    for (int64_t i = 0; i < (int64_t)count * c->vocab && c->softcap > 0; i++)
        logits[i] = c->softcap * tanhf(logits[i] / c->softcap);
}

/* ---- a drafter: Gemma4AssistantForCausalLM, modeling_gemma4_assistant.py ---- */

/* h = RMSNorm(x[token], final_norm)                                [hidden]
 * A drafter's h is post_projection of this                         [backbone] */
static void plain_hidden(Device *d, int token, float *h) {
    const float *x = d->x + (int64_t)token * d->c->hidden;
    int drafter = d->w->post.data != NULL;
    rms_norm(drafter ? d->y : h, x, d->w->final_norm, 1, d->c->hidden, d->c->eps);
    if (drafter) matmul(h, &d->w->post, d->y, 1);
}

/* A round begins with the token id at pos, and with the target's h of the token before. */
static void plain_draft_from(Device *d, int token, int id, int64_t pos, const float *given) {
    float *h = d->pair + d->c->backbone;
    d->n = 1;
    d->pos = pos;
    d->last[0] = d->n_drafts = 0;
    d->newest = id;
    if (given) memcpy(h, given, (size_t)d->c->backbone * sizeof *h);
    else plain_hidden(d->target, token, h);
}

/* x = pre_projection [embed[newest] * sqrt(backbone), h]           [hidden]
 * The embedding is the target's. */
static void plain_combine(Device *d) {
    embed_row(&d->w->embed, d->newest, d->pair);
    matmul(d->x, &d->w->pre, d->pair, 1);
}

/* Behind the layers: h for the next draft, and this draft, the id with the largest logit; of equal
 * ones it is the first. */
static void plain_guess(Device *d) {
    float most = -INFINITY;
    int best = 0;
    plain_hidden(d, 0, d->pair + d->c->backbone);
    plain_head(d, 0, 1, d->logits);
    for (int i = 0; i < d->c->vocab; i++)
        if (d->logits[i] > most) most = d->logits[best = i];
    d->draft[d->n_drafts++] = d->newest = best;
}

static void plain_drafts(Device *d, int n, int *ids) {
    memcpy(ids, d->draft, (size_t)n * sizeof *ids);
}

/* ---- what tests read ---- */

static void plain_read_x(Device *d, float *x) {
    memcpy(x, d->x, (size_t)d->n * (size_t)d->c->hidden * sizeof *x);
}

static void plain_read_route(Device *d, int *expert, float *weight) {
    size_t n = (size_t)d->n * (size_t)d->c->top_k;
    memcpy(expert, d->expert, n * sizeof *expert);
    memcpy(weight, d->expert_weight, n * sizeof *weight);
}

/* ---- pictures: Gemma4VisionModel ---- */

/* x = patch (2 p - 1) + position of the column + position of the row       [n][hidden]
 * p [n][PATCH_SIZE] are the pixels, from 0 to 1.  This is Gemma4VisionPatchEmbedder. */
static int plain_see(Device *d, const Tower *v, const float *pixels, int columns, int rows) {
    Sight *s = &d->sight;
    int64_t n = (int64_t)columns * rows;
    int64_t stream = n * v->hidden, heads = n * v->n_heads * v->head_dim;
    free(s->x);
    *s = (Sight){.columns = columns, .rows = rows, .n = (int)n};
    if (!(s->x = calloc((size_t)(2 * stream + 4 * heads), sizeof *s->x))) return -1;
    s->y = s->x + stream;
    s->q = s->y + stream;
    s->k = s->q + heads;
    s->v = s->k + heads;
    s->att = s->v + heads;
    float *p = floats(n, PATCH_SIZE);
    for (int64_t i = 0; i < n * PATCH_SIZE; i++) p[i] = 2 * pixels[i] - 1;
    matmul(s->x, &v->patch, p, s->n);
    for (int64_t i = 0; i < stream; i++) {
        int64_t t = i / v->hidden, col = i % v->hidden;
        s->x[i] += weight_at(&v->position, t % columns, col);
        s->x[i] += weight_at(&v->position, v->n_positions + t / columns, col);
    }
    free(p);
    return 0;
}

/* The first half of a head's dimensions turns by the column of the patch, the second half by its
 * row.  This is apply_multidimensional_rope. */
static void turn_patches(const Sight *s, const Tower *v, float *x) {
    int dim = v->head_dim;
    for (int t = 0; t < s->n; t++, x += (int64_t)v->n_heads * dim) {
        rope(x, v->n_heads, dim, dim / 2, v->inv_freq, t % s->columns);
        rope(x + dim / 2, v->n_heads, dim, dim / 2, v->inv_freq, t / s->columns);
    }
}

/* att = softmax(q . k) v, where each patch sees all patches        [n][n_heads][head_dim] */
static void see_all(const Sight *s, const Tower *v) {
    int dim = v->head_dim, inner = v->n_heads * dim;
    float *score = floats(1, s->n);
    for (int t = 0; t < s->n; t++)
        for (int at = 0; at < inner; at += dim) {       /* where the head begins in a row */
            float *att = s->att + (int64_t)t * inner + at;
            for (int64_t u = 0; u < s->n; u++)
                score[u] = dot(s->q + (int64_t)t * inner + at, s->k + u * inner + at, dim);
            softmax(score, s->n);
            memset(att, 0, (size_t)dim * sizeof *att);
            for (int64_t u = 0; u < s->n; u++)
                for (int i = 0; i < dim; i++) att[i] += score[u] * s->v[u * inner + at + i];
        }
    free(score);
}

/* y = RMSNorm(x, input_norm)
 * q = rope(RMSNorm(q_proj y, q_norm)), k = rope(RMSNorm(k_proj y, k_norm)), v = RMSNorm(v_proj y)
 * x += RMSNorm(o_proj softmax(q . k) v, post_attention_norm)
 * x += RMSNorm(MLP(RMSNorm(x, pre_mlp_norm)), post_mlp_norm)
 * Each head of q, k and v is normed by itself.  This is Gemma4VisionEncoderLayer with
 * Gemma4VisionAttention. */
static void plain_see_layer(Device *d, const Tower *v, const VisionLayer *l) {
    const Sight *s = &d->sight;
    int n = s->n, hidden = v->hidden;
    float eps = d->c->eps;
    rms_norm(s->y, s->x, l->input_norm, n, hidden, eps);
    matmul(s->q, &l->q, s->y, n);
    matmul(s->k, &l->k, s->y, n);
    matmul(s->v, &l->v, s->y, n);
    rms_norm(s->q, s->q, l->q_norm, n * v->n_heads, v->head_dim, eps);
    rms_norm(s->k, s->k, l->k_norm, n * v->n_heads, v->head_dim, eps);
    rms_norm(s->v, s->v, NULL, n * v->n_heads, v->head_dim, eps);
    turn_patches(s, v, s->q);
    turn_patches(s, v, s->k);
    see_all(s, v);
    matmul(s->y, &l->o, s->att, n);
    add_normed(s->x, s->y, l->post_attention_norm, n, hidden, eps);
    rms_norm(s->y, s->x, l->pre_mlp_norm, n, hidden, eps);
    gated_mlp(s->y, &l->gate, &l->up, &l->down, s->y, n);
    add_normed(s->x, s->y, l->post_mlp_norm, n, hidden, eps);
}

/* y = (mean of POOL x POOL patches * sqrt(hidden) - std_bias) * std_scale  [n / POOL^2][hidden]
 * soft = embedding_projection RMSNorm(y)                           [n / POOL^2][Config.hidden]
 * Some towers have no std_bias and std_scale.  These are Gemma4VisionPooler, the end of
 * Gemma4VisionModel, and Gemma4MultimodalEmbedder. */
static void plain_see_pool(Device *d, const Tower *v, float *soft) {
    const Sight *s = &d->sight;
    int hidden = v->hidden, wide = s->columns / POOL, n = s->n / (POOL * POOL);
    memset(s->y, 0, (size_t)n * (size_t)hidden * sizeof *s->y);
    for (int t = 0; t < s->n; t++) {
        int64_t to = t / s->columns / POOL * wide + t % s->columns / POOL;
        for (int i = 0; i < hidden; i++)
            s->y[to * hidden + i] += s->x[(int64_t)t * hidden + i] / (POOL * POOL);
    }
    for (int64_t i = 0; i < (int64_t)n * hidden; i++) {
        s->y[i] *= sqrtf((float)hidden);
        if (v->std_bias) s->y[i] = (s->y[i] - v->std_bias[i % hidden]) * v->std_scale[i % hidden];
    }
    rms_norm(s->y, s->y, NULL, n, hidden, d->c->eps);
    matmul(soft, &v->project, s->y, n);
    free(s->x);
    d->sight.x = NULL;
}

/* chunk: as on the CPU (cpu.c).  It changes no number here, and nobody has timed other values. */
const Ops plain_ops = {
    .name = "plain", .chunk = 512, .open = plain_open, .close = plain_close,
    .alloc = plain_alloc, .release = plain_release, .copy = plain_copy,
    .embed = plain_embed, .qkv = plain_qkv, .attend = plain_attend, .attn_out = plain_attn_out,
    .mlp = plain_mlp, .route = plain_route, .experts = plain_experts, .join = plain_join,
    .head = plain_head,
    .draft_from = plain_draft_from, .combine = plain_combine, .guess = plain_guess,
    .drafts = plain_drafts,
    .read_x = plain_read_x, .read_route = plain_read_route, .hidden = plain_hidden,
    .embed_soft = plain_embed_soft,
    .see = plain_see, .see_layer = plain_see_layer, .see_pool = plain_see_pool,
};
