/* checkpoint.c - opens a checkpoint: once config.c has read its configuration, finds tensors by
 * name and binds them to Layers and the Tower.  Defines the functions of a Model that model.h
 * declares, but for those of adapters (lora.c) and the forward pass (model.c).  The layouts of
 * quantised weights are modelopt's and compressed-tensors'. */
#include "checkpoint.h"

#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "directory.h"

/* ---- tensors by name ---- */

typedef struct {
    Model *m;
    Error *err;
    uint8_t *used;                      /* [tensors] 1: something is bound to it */
    char name[256];                     /* of the module, with its prefix, without ".weight" */
    int has_cache_scales;               /* 1: layer 0 has scales of the FP8 cache */
} Binder;

/* Sets the name of the module, from which leaf finds tensors. */
static void set_name(Binder *b, const char *format, ...) {
    va_list ap;
    int n = snprintf(b->name, sizeof b->name, "%s", b->m->prefix);
    va_start(ap, format);
    vsnprintf(b->name + n, sizeof b->name - (size_t)n, format, ap);
    va_end(ap);
}

/* The module's tensor of that suffix, which counts as used from now on, or NULL. */
static const Tensor *leaf(const Binder *b, const char *suffix) {
    char name[300];
    snprintf(name, sizeof name, "%s%s", b->name, suffix);
    const Tensor *t = safetensors_find(b->m->st, name);
    int n;
    if (t) b->used[t - safetensors_all(b->m->st, &n)] = 1;
    return t;
}

/* The tensor of a matrix, whatever its layout; NULL: there is none. */
static const Tensor *matrix_of(const Binder *b) {
    const Tensor *t = leaf(b, ".weight");
    return t ? t : leaf(b, ".weight_packed");
}

static int missing(const Binder *b, const char *suffix) {
    return fail(b->err, "%s: tensor %s%s is missing", safetensors_file(b->m->st), b->name, suffix);
}

static int check_dtype(const Tensor *t, DType want, Error *err) {
    if (t->dtype == want) return 0;
    return fail(err, "%s: tensor %s: dtype is %s, must be %s", t->file, t->name, t->called,
                dtype_name[want]);
}

/* The Kind of a tensor of ordinary numbers. */
static int plain_kind(DType t) {
    if (t == DT_F32) return K_F32;
    return t == DT_F16 ? K_F16 : K_BF16;
}

/* Binds a vector [n], such as the weights of a norm.  It is copied to float32, in *out, which the
 * model owns: vectors are small, and in the file perhaps not aligned. */
static int bind_vector(const Binder *b, const char *suffix, int n, float **out) {
    const Tensor *t = leaf(b, suffix);
    if (!t) return missing(b, suffix);
    if (check_shape(t, 1, n, 0, 0, b->err) || check_float(t, b->err)) return -1;
    *out = xcalloc(n, sizeof **out);
    b->m->parameters += n;
    for (int i = 0; i < n; i++) {
        (*out)[i] = float_at(t->dtype, t->data, i);
        if (!isfinite((*out)[i]))
            return fail(b->err, "%s: tensor %s: not finite", t->file, t->name);
    }
    return 0;
}

/* Reads a scale, whose shape is [] or [1]. */
static int scalar(const Binder *b, const Tensor *t, float *out) {
    if (check_float(t, b->err) || (t->n_dims && check_shape(t, 1, 1, 0, 0, b->err))) return -1;
    *out = float_at(t->dtype, t->data, 0);
    if (isfinite(*out) && *out > 0) return 0;
    return fail(b->err, "%s: tensor %s: %g is no scale", t->file, t->name, *out);
}

/* Notes the layout of a weight of so many numbers. */
static void note_weight(const Binder *b, enum Section section, int kind, int64_t numbers) {
    Model *m = b->m;
    m->kinds[section] |= 1u << kind;
    m->parameters += numbers;
}

/* Binds an NVFP4 matrix t, U8 [rows][cols / 2], with its block scales, E4M3 [rows][cols / 16], and
 * the scale of the whole matrix.  modelopt stores this scale (.weight_scale_2), compressed-tensors
 * its reciprocal (.weight_global_scale); w->scale is the former.  Returns the Kind, or -1. */
static int bind_nvfp4(const Binder *b, const Tensor *t, Weight *w) {
    const Tensor *block = leaf(b, ".weight_scale"), *scale = leaf(b, ".weight_scale_2");
    int compressed = !scale;
    if (!block) return missing(b, ".weight_scale");
    if (block->dtype == DT_U8)
        return fail(b->err, "%s: tensor %s: MXFP4 is not supported" INSTEAD, t->file, t->name);
    if (compressed) scale = leaf(b, ".weight_global_scale");
    if (!scale) return missing(b, ".weight_scale_2");
    if (w->cols % 16)
        return fail(b->err, "%s: tensor %s: NVFP4 with %d columns, no multiple of 16", t->file,
                    t->name, w->cols);
    if (check_shape(t, 2, w->rows, w->cols / 2, 0, b->err) ||
        check_dtype(block, DT_F8_E4M3, b->err) ||
        check_shape(block, 2, w->rows, w->cols / 16, 0, b->err) || scalar(b, scale, &w->scale))
        return -1;
    if (compressed) w->scale = 1 / w->scale;
    if (!isfinite(w->scale))
        return fail(b->err, "%s: tensor %s: its reciprocal is not finite", scale->file,
                    scale->name);
    w->block_scale = block->data;
    w->scale_rows = 1;
    w->scale_cols = 16;
    return compressed ? K_COMPRESSED : K_MODELOPT;
}

/* Binds an FP8 matrix t, E4M3 [rows][cols].  The shape of its scales says what shares one: a row,
 * [rows][1]; a block of 128 x 128, where the last row and column of blocks may be cut off; the
 * matrix, [] or [1].  Returns the Kind, or -1. */
static int bind_fp8(const Binder *b, const Tensor *t, Weight *w) {
    enum { BLOCK = 128 };
    const Tensor *scale = leaf(b, ".weight_scale");
    if (!scale) return missing(b, ".weight_scale");
    if (check_shape(t, 2, w->rows, w->cols, 0, b->err) || check_float(scale, b->err)) return -1;
    const int64_t *is = scale->shape;
    w->block_scale = scale->data;
    w->scale_dtype = scale->dtype;
    w->scale_rows = w->rows;
    w->scale_cols = w->cols;
    if (!scale->n_dims || (scale->n_dims == 1 && is[0] == 1)) return K_TENSOR;
    w->scale_rows = 1;
    if (scale->n_dims == 2 && is[0] == w->rows && is[1] == 1) return K_CHANNEL;
    w->scale_rows = w->scale_cols = BLOCK;
    int down = n_blocks(w->rows, BLOCK), across = n_blocks(w->cols, BLOCK);
    if (scale->n_dims == 2 && is[0] == down && is[1] == across) return K_BLOCK;
    Buf shape = {0};
    put_shape(&shape, is, scale->n_dims);
    fail(b->err, "%s: tensor %s: shape is %s, must be [%d, 1], [%d, %d] or [1]", scale->file,
         scale->name, shape.data, w->rows, down, across);
    buf_free(&shape);
    return -1;
}

/* Checks weight_shape, two whole numbers: the rows and the columns of an integer matrix. */
static int check_weight_shape(const Binder *b, const Weight *w) {
    const Tensor *t = leaf(b, ".weight_shape");
    if (!t) return missing(b, ".weight_shape");
    if (t->dtype != DT_I64 && check_dtype(t, DT_I32, b->err)) return -1;
    if (check_shape(t, 1, 2, 0, 0, b->err)) return -1;
    long long is[2];
    for (int i = 0; i < 2; i++) {
        int32_t low;
        int64_t whole;
        memcpy(&low, t->data + 4 * i, 4);
        if (t->dtype == DT_I64) memcpy(&whole, t->data + 8 * i, 8);
        else whole = low;
        is[i] = whole;
    }
    if (is[0] == w->rows && is[1] == w->cols) return 0;
    return fail(b->err, "%s: tensor %s: it says %lld rows and %lld columns, must say %d and %d",
                t->file, t->name, is[0], is[1], w->rows, w->cols);
}

/* Refuses a matrix of INT4 in groups of that size, without zero points, that should have some: what
 * config.json says of its group counts, or, where that lists no integers, whether other matrices
 * have some. */
static int check_symmetric(const Binder *b, int group) {
    const Model *m = b->m;
    int with = m->listed_kinds >> integer_kind(4, group, 1) & 1;
    int without = m->listed_kinds >> integer_kind(4, group, 0) & 1, lost = with;
    if (with && without) lost = targeted_zeros(m, b->name);
    else if (!m->has_integer_groups && m->has_zeros) lost = -1;
    if (lost >= 0) return lost ? missing(b, ".weight_zero_point") : 0;
    return fail(b->err, "%s: tensor %s.weight_zero_point is missing; others have one, and no "
                "target in config.json's quantization_config.config_groups says whether this one "
                "must", safetensors_file(m->st), b->name);
}

/* Binds a matrix t of integers, I32 [rows][cols * bits / 32], with its scales [rows][cols / group]
 * and, where there are any, the zero points of INT4, I32 [⌈rows / 8⌉][cols / group].  Returns the
 * Kind, or -1. */
static int bind_integers(const Binder *b, const Tensor *t, Weight *w) {
    const Tensor *scale = leaf(b, ".weight_scale"), *zero = leaf(b, ".weight_zero_point");
    if (!scale) return missing(b, ".weight_scale");
    if (check_weight_shape(b, w)) return -1;
    w->bits = t->n_dims == 2 && t->shape[1] == w->cols / 4 ? 8 : 4;
    if (w->cols % 32)
        return fail(b->err, "%s: tensor %s: integers in %d columns, no multiple of 32", t->file,
                    t->name, w->cols);
    if (check_shape(t, 2, w->rows, w->cols * w->bits / 32, 0, b->err) || check_float(scale, b->err))
        return -1;
    int64_t across = scale->n_dims == 2 ? scale->shape[1] : 0;
    int group = across > 0 && w->cols % across == 0 ? (int)(w->cols / across) : 0;
    if (scale->n_dims != 2) return check_shape(scale, 2, w->rows, w->cols / 32, 0, b->err);
    if (group != 32 && group != 64 && group != 128)
        return fail(b->err, "%s: tensor %s: %lld groups in %d columns, must be groups of 32, 64 or "
                    "128 columns", scale->file, scale->name, (long long)across, w->cols);
    if (check_shape(scale, 2, w->rows, across, 0, b->err)) return -1;
    if (!zero && w->bits == 4 && check_symmetric(b, group)) return -1;
    if (zero && w->bits == 8)
        return fail(b->err, "%s: tensor %s: zero points of 8 bits are not supported", zero->file,
                    zero->name);
    if (zero && (check_dtype(zero, DT_I32, b->err) ||
                 check_shape(zero, 2, n_blocks(w->rows, 8), across, 0, b->err)))
        return -1;
    w->block_scale = scale->data;
    w->scale_dtype = scale->dtype;
    w->scale_rows = 1;
    w->scale_cols = group;
    if (zero) w->zero = zero->data;
    return integer_kind(w->bits, group, zero != NULL);
}

/* Binds a matrix [rows][cols].  Its layout follows from the tensors of its name alone; the lists of
 * quantised modules in the configuration are not read. */
static int bind_weight(const Binder *b, enum Section section, int rows, int cols, Weight *w) {
    const Tensor *t = leaf(b, ".weight");
    int kind, packed = !t;
    if (packed) t = leaf(b, ".weight_packed");
    if (!t) return missing(b, ".weight");
    *w = (Weight){.dtype = t->dtype, .rows = rows, .cols = cols, .data = t->data, .scale = 1};
    if (t->dtype == DT_U8) kind = bind_nvfp4(b, t, w);
    else if (t->dtype == DT_I32 && packed) kind = bind_integers(b, t, w);
    else if (t->dtype == DT_F8_E4M3 && !packed) kind = bind_fp8(b, t, w);
    else if (check_float(t, b->err) || check_shape(t, 2, rows, cols, 0, b->err)) kind = -1;
    else kind = plain_kind(t->dtype);
    if (kind < 0 || check_kind(b->m, t, kind, b->err)) return -1;
    note_weight(b, section, kind, (int64_t)rows * cols);
    return 0;
}

/* Binds all experts of a layer that has them in two tensors, which are not quantised: gate_up_proj
 * [n_experts][2 * expert_size][hidden] (gate, then up) and down_proj
 * [n_experts][hidden][expert_size]. */
static int bind_fused_experts(const Binder *b, const Tensor *gate_up, Layer *l) {
    const Config *c = &b->m->config;
    const Tensor *down = leaf(b, ".down_proj");
    int64_t n = c->n_experts, size = c->expert_size, hidden = c->hidden;
    if (!down) return missing(b, ".down_proj");
    if (check_float(gate_up, b->err) || check_shape(gate_up, 3, n, 2 * size, hidden, b->err) ||
        check_dtype(down, gate_up->dtype, b->err) || check_shape(down, 3, n, hidden, size, b->err))
        return -1;
    DType t = gate_up->dtype;
    int64_t bytes = dtype_size[t] * size * hidden;      /* of one expert's gate, up or down */
    for (int e = 0; e < c->n_experts; e++) {
        const uint8_t *gate = gate_up->data + 2 * e * bytes;
        Weight w = {.dtype = t, .rows = c->expert_size, .cols = c->hidden, .scale = 1};
        l->expert_gate[e] = l->expert_up[e] = w;
        l->expert_gate[e].data = gate;
        l->expert_up[e].data = gate + bytes;
        l->expert_down[e] = (Weight){.dtype = t, .rows = c->hidden, .cols = c->expert_size,
                                     .data = down->data + e * bytes, .scale = 1};
    }
    note_weight(b, EXPERTS, plain_kind(t), 3 * n * size * hidden);
    return 0;
}

/* Binds the experts of layer i: fused, or each one by itself.  Some exports call them moe.experts
 * instead of experts. */
static int bind_experts(Binder *b, int i, Layer *l) {
    const Config *c = &b->m->config;
    l->expert_gate = xcalloc(c->n_experts, sizeof(Weight));
    l->expert_up = xcalloc(c->n_experts, sizeof(Weight));
    l->expert_down = xcalloc(c->n_experts, sizeof(Weight));
    for (int moe = 0; moe < 2; moe++) {
        set_name(b, "layers.%d.%sexperts", i, moe ? "moe." : "");
        const Tensor *fused = leaf(b, ".gate_up_proj");
        if (fused) return bind_fused_experts(b, fused, l);
    }
    set_name(b, "layers.%d.moe.experts.0.gate_proj", i);
    const char *moe = matrix_of(b) ? "moe." : "";
    for (int e = 0; e < c->n_experts; e++) {
        struct { const char *name; int rows, cols; Weight *w; } matrix[] = {
            {"gate", c->expert_size, c->hidden, &l->expert_gate[e]},
            {"up", c->expert_size, c->hidden, &l->expert_up[e]},
            {"down", c->hidden, c->expert_size, &l->expert_down[e]},
        };
        for (int k = 0; k < 3; k++) {
            set_name(b, "layers.%d.%sexperts.%d.%s_proj", i, moe, e, matrix[k].name);
            if (bind_weight(b, EXPERTS, matrix[k].rows, matrix[k].cols, matrix[k].w)) return -1;
        }
    }
    return 0;
}

/* Binds the dense matrices of layer i.  A drafter (c->backbone) has no keys and values of its own;
 * with k_eq_v a global layer has no v_proj, since its values are its keys. */
static int bind_matrices(Binder *b, int i, Layer *l) {
    const Config *c = &b->m->config;
    int q_rows = c->n_heads * l->head_dim, kv_rows = l->n_kv_heads * l->head_dim;
    struct { const char *name; int rows, cols; Weight *w; enum Section section; } matrix[] = {
        {"self_attn.q_proj", q_rows, c->hidden, &l->q, ATTENTION},
        {"self_attn.k_proj", kv_rows, c->hidden, &l->k, ATTENTION},
        {"self_attn.v_proj", kv_rows, c->hidden, &l->v, ATTENTION},
        {"self_attn.o_proj", c->hidden, q_rows, &l->o, ATTENTION},
        {"mlp.gate_proj", c->intermediate, c->hidden, &l->gate, MLP},
        {"mlp.up_proj", c->intermediate, c->hidden, &l->up, MLP},
        {"mlp.down_proj", c->hidden, c->intermediate, &l->down, MLP},
    };
    for (size_t k = 0; k < sizeof matrix / sizeof *matrix; k++) {
        if (matrix[k].w == &l->v && l->global && b->m->k_eq_v) continue;
        if (c->backbone && (matrix[k].w == &l->k || matrix[k].w == &l->v)) continue;
        set_name(b, "layers.%d.%s", i, matrix[k].name);
        if (bind_weight(b, matrix[k].section, matrix[k].rows, matrix[k].cols, matrix[k].w))
            return -1;
    }
    return 0;
}

/* Binds the vectors of layer i, and its layer_scalar. */
static int bind_vectors(Binder *b, int i, Layer *l) {
    const Config *c = &b->m->config;
    struct { const char *name; int n; float **v; int with_experts; } vector[] = {
        {"input_layernorm.weight", c->hidden, &l->input_norm, 0},
        {"post_attention_layernorm.weight", c->hidden, &l->post_attention_norm, 0},
        {"self_attn.q_norm.weight", l->head_dim, &l->q_norm, 0},
        {"self_attn.k_norm.weight", l->head_dim, &l->k_norm, 0},
        {"pre_feedforward_layernorm.weight", c->hidden, &l->pre_mlp_norm, 0},
        {"post_feedforward_layernorm.weight", c->hidden, &l->post_ffn_norm, 0},
        {"post_feedforward_layernorm_1.weight", c->hidden, &l->post_mlp_norm, 1},
        {"pre_feedforward_layernorm_2.weight", c->hidden, &l->pre_experts_norm, 1},
        {"post_feedforward_layernorm_2.weight", c->hidden, &l->post_experts_norm, 1},
        {"router.scale", c->hidden, &l->router_scale, 1},
        {"router.per_expert_scale", c->n_experts, &l->per_expert_scale, 1},
    };
    set_name(b, "layers.%d.", i);
    for (size_t k = 0; k < sizeof vector / sizeof *vector; k++) {
        if (vector[k].with_experts && !c->n_experts) continue;
        if (c->backbone && vector[k].v == &l->k_norm) continue;         /* fit_target has set it */
        if (bind_vector(b, vector[k].name, vector[k].n, vector[k].v)) return -1;
    }
    float *s = NULL;
    int bad = bind_vector(b, "layer_scalar", 1, &s);
    if (!bad) l->layer_scalar = *s;
    free(s);
    return bad;
}

static int bind_layer(Binder *b, int i) {
    const Config *c = &b->m->config;
    Layer *l = &b->m->w.layer[i];
    if (bind_matrices(b, i, l) || bind_vectors(b, i, l)) return -1;
    if (c->backbone) return 0;
    l->k_scale = l->v_scale = 1;
    const Tensor *ks = leaf(b, "self_attn.k_proj.k_scale");     /* modelopt */
    const Tensor *vs = leaf(b, "self_attn.v_proj.v_scale");
    if (!ks) ks = leaf(b, "self_attn.k_scale");                 /* compressed-tensors */
    if (!vs) vs = leaf(b, "self_attn.v_scale");
    if ((ks && scalar(b, ks, &l->k_scale)) || (vs && scalar(b, vs, &l->v_scale))) return -1;
    /* All layers have both, or none has any: a scale that is lost would count as 1 in silence. */
    if (!i) b->has_cache_scales = ks || vs;
    if (b->has_cache_scales && !ks) return missing(b, "self_attn.k_scale");
    if (b->has_cache_scales && !vs) return missing(b, "self_attn.v_scale");
    if (!b->has_cache_scales && (ks || vs)) {
        set_name(b, "layers.0.");
        return missing(b, "self_attn.k_scale");
    }
    if (!c->n_experts) return 0;
    set_name(b, "layers.%d.router.proj", i);
    if (bind_weight(b, ROUTER, c->n_experts, c->hidden, &l->router)) return -1;
    return bind_experts(b, i, l);
}

/* The prefix of the vision tower's tensors, "model." or, as older programs write it, "".  NULL: the
 * checkpoint has no tower. */
static const char *tower_prefix(const Model *m) {
    int n;
    const Tensor *t = safetensors_all(m->st, &n);
    for (int i = 0; i < n; i++) {
        if (begins(t[i].name, "model.vision_tower.")) return "model.";
        if (begins(t[i].name, "vision_tower.")) return "";
    }
    return NULL;
}

static int bind_vision_layer(Binder *b, int i) {
    const Tower *v = &b->m->w.tower;
    int inner = v->n_heads * v->head_dim;
    VisionLayer *l = &v->layer[i];
    struct { const char *name; int rows, cols; Weight *w; } matrix[] = {
        {"self_attn.q_proj", inner, v->hidden, &l->q},
        {"self_attn.k_proj", inner, v->hidden, &l->k},
        {"self_attn.v_proj", inner, v->hidden, &l->v},
        {"self_attn.o_proj", v->hidden, inner, &l->o},
        {"mlp.gate_proj", v->intermediate, v->hidden, &l->gate},
        {"mlp.up_proj", v->intermediate, v->hidden, &l->up},
        {"mlp.down_proj", v->hidden, v->intermediate, &l->down},
    };
    struct { const char *name; int n; float **v; } vector[] = {
        {"input_layernorm.weight", v->hidden, &l->input_norm},
        {"post_attention_layernorm.weight", v->hidden, &l->post_attention_norm},
        {"pre_feedforward_layernorm.weight", v->hidden, &l->pre_mlp_norm},
        {"post_feedforward_layernorm.weight", v->hidden, &l->post_mlp_norm},
        {"self_attn.q_norm.weight", v->head_dim, &l->q_norm},
        {"self_attn.k_norm.weight", v->head_dim, &l->k_norm},
    };
    for (size_t k = 0; k < sizeof matrix / sizeof *matrix; k++) {
        set_name(b, "vision_tower.encoder.layers.%d.%s.linear", i, matrix[k].name);
        if (bind_weight(b, VISION, matrix[k].rows, matrix[k].cols, matrix[k].w)) return -1;
    }
    set_name(b, "vision_tower.encoder.layers.%d.", i);
    for (size_t k = 0; k < sizeof vector / sizeof *vector; k++)
        if (bind_vector(b, vector[k].name, vector[k].n, vector[k].v)) return -1;
    return 0;
}

/* Binds the vision tower and the projection of its output to the text model's width.  A checkpoint
 * may describe a tower in config.json and leave out its tensors: then the model has none. */
static int bind_tower(Binder *b) {
    const int hidden = b->m->config.hidden;
    Tower *v = &b->m->w.tower;
    const char *prefix = tower_prefix(b->m);
    if (prefix) b->m->prefix = prefix;
    else {
        v->n_layers = 0;
        return 0;
    }
    v->layer = xcalloc(v->n_layers, sizeof *v->layer);
    set_name(b, "vision_tower.patch_embedder.input_proj");
    if (bind_weight(b, VISION, v->hidden, PATCH_SIZE, &v->patch)) return -1;
    set_name(b, "vision_tower.patch_embedder.position_embedding_table");
    const Tensor *table = leaf(b, "");
    if (!table) return missing(b, "");
    if (check_float(table, b->err) ||
        check_shape(table, 3, 2, v->n_positions, v->hidden, b->err))
        return -1;
    v->position = (Weight){.dtype = table->dtype, .rows = 2 * v->n_positions, .cols = v->hidden,
                           .data = table->data, .scale = 1};
    note_weight(b, VISION, plain_kind(table->dtype), (int64_t)2 * v->n_positions * v->hidden);
    set_name(b, "vision_tower.");
    if (b->m->standardize && (bind_vector(b, "std_bias", v->hidden, &v->std_bias) ||
                              bind_vector(b, "std_scale", v->hidden, &v->std_scale)))
        return -1;
    set_name(b, "embed_vision.embedding_projection");
    if (bind_weight(b, VISION, hidden, v->hidden, &v->project)) return -1;
    for (int i = 0; i < v->n_layers; i++)
        if (bind_vision_layer(b, i)) return -1;
    return 0;
}

/* Finds the prefix of the text model's tensors, of which transformers accepts the first four: it
 * adds or drops the "model." of the whole model (core_model_loading.py, rename_source_key).  The
 * last is how fine-tuning programs spelt Gemma 3. */
static int find_prefix(Binder *b) {
    static const char *const known[] = {"model.language_model.", "model.", "language_model.", "",
                                        "language_model.model."};
    const char *found = NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        b->m->prefix = known[i];
        set_name(b, "embed_tokens");
        const Tensor *t = matrix_of(b);
        set_name(b, "norm");
        if (!t) t = leaf(b, ".weight");
        if (t && found)
            return fail(b->err, "%s: tensor %s: the text model is there under two names", t->file,
                        t->name);
        if (t) found = known[i];
    }
    b->m->prefix = found ? found : known[0];
    return 0;
}

/* Whether two tensors hold the same bytes in the same shape. */
static int same_content(const Tensor *a, const Tensor *b) {
    return a->dtype == b->dtype && a->n_dims == b->n_dims && a->n_bytes == b->n_bytes &&
           !memcmp(a->shape, b->shape, sizeof a->shape) && !memcmp(a->data, b->data, a->n_bytes);
}

/* Binds the embedding and the head as transformers ties them (modeling_utils.py, tie_weights).
 * tie_word_embeddings makes them one matrix, which may have either name.  But where both names are
 * there and the matrices differ, transformers warns and does not tie them: lm_head counts. */
static int bind_embedding(Binder *b) {
    Model *m = b->m;
    const Config *c = &m->config;
    set_name(b, "embed_tokens");
    const Tensor *embed = matrix_of(b);
    Binder head = {.m = m, .err = b->err, .used = b->used, .name = "lm_head"};
    if (!matrix_of(&head) && !strcmp(m->prefix, "language_model.model."))
        snprintf(head.name, sizeof head.name, "language_model.lm_head");
    const Tensor *own = matrix_of(&head);
    if (!own && !m->tied)
        return fail(b->err, "%s: tensor lm_head.weight is missing: tie_word_embeddings is false",
                    safetensors_file(m->st));
    int head_is_all = own && !embed && m->tied;
    if (bind_weight(head_is_all ? &head : b, EMBEDDING, c->vocab, c->hidden, &m->w.embed))
        return -1;
    m->w.head = m->w.embed;
    int is_tied = !own || head_is_all || (m->tied && same_content(embed, own));
    return is_tied ? 0 : bind_weight(&head, EMBEDDING, c->vocab, c->hidden, &m->w.head);
}

/* Checks that experts are there where config.json says so.  Without enable_moe_block the tensors
 * decide.  transformers would then leave the experts out, and the model would talk nonsense. */
static int check_experts(Model *m, const char *dir, Error *err) {
    int n, at = 0;
    const Tensor *t = safetensors_all(m->st, &n);
    while (at < n && !strstr(t[at].name, ".experts.")) at++;
    if (m->target || (at < n) == (m->config.n_experts > 0)) return 0;
    if (at < n) {
        const char *why = m->moe_said ? "enable_moe_block is false" : "num_experts is missing";
        return fail(err, "%s/config.json: %s, but tensor %s is there", dir, why, t[at].name);
    }
    if (!m->moe_said) m->config.n_experts = 0;
    return 0;
}

/* Binds everything; used [tensors] becomes 1 where something is bound. */
static int bind_parts(Model *m, uint8_t *used, Error *err) {
    const Config *c = &m->config;
    Binder b = {.m = m, .err = err, .used = used};
    if (find_prefix(&b) || bind_embedding(&b)) return -1;
    /* A drafter embeds tokens as its target does; its own embedding is only its head. */
    if (c->backbone) {
        m->w.embed = m->target->w.embed;
        snprintf(b.name, sizeof b.name, "pre_projection");
        if (bind_weight(&b, EMBEDDING, c->hidden, 2 * c->backbone, &m->w.pre)) return -1;
        snprintf(b.name, sizeof b.name, "post_projection");
        if (bind_weight(&b, EMBEDDING, c->backbone, c->hidden, &m->w.post)) return -1;
    }
    set_name(&b, "norm");
    if (bind_vector(&b, ".weight", c->hidden, &m->w.final_norm)) return -1;
    for (int i = 0; i < c->n_layers; i++)
        if (bind_layer(&b, i)) return -1;
    if (m->has_cache_scheme && !c->backbone && !b.has_cache_scales)
        model_warn(m, "config.json announces scales of the FP8 cache, but no layer has "
                   "self_attn.k_scale: they count as 1, as in vLLM (--kv bf16 needs none)");
    return m->w.tower.n_layers ? bind_tower(&b) : 0;
}

/* Refuses tensors of quantisations that this program does not have, by their names, and notes
 * whether any matrix has zero points. */
static int refuse_formats(Model *m, Error *err) {
    static const struct { const char *end, *what; } known[] = {
        {".weight_g_idx", "integers in activation order (g_idx)"},
        {".g_idx", "integers in activation order (g_idx)"},
        {".weight_scale_inv", "FP8 in DeepSeek's layout (weight_scale_inv)"},
        {".pre_quant_scale", "modelopt's AWQ (pre_quant_scale)"},
        {".qweight", "GPTQ's and AutoRound's layout (qweight)"},
        {".qzeros", "GPTQ's and AutoRound's layout (qzeros)"},
        {"absmax", "bitsandbytes' layout (absmax)"},
        {".bitsandbytes__nf4", "bitsandbytes' layout (quant_state)"},
        {".bitsandbytes__fp4", "bitsandbytes' layout (quant_state)"},
        {"_proj_blocks", "MXFP4 (blocks)"},
        {".quant_map", "bitsandbytes' layout (quant_map)"},
        {".SCB", "bitsandbytes' layout (SCB)"},
    };
    int n;
    const Tensor *t = safetensors_all(m->st, &n);
    for (int i = 0; i < n; i++) {
        m->has_zeros |= has_ending(t[i].name, ".weight_zero_point");
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            if (has_ending(t[i].name, known[k].end))
                return fail(err, "%s: tensor %s: %s is not supported" INSTEAD, t[i].file,
                            t[i].name, known[k].what);
    }
    return 0;
}

/* Whether a tensor may be left alone, because the model computes the same without it. */
static int is_spare(const Model *m, const char *name) {
    /* Scales of activations: for programs that quantise these, too. */
    if (has_ending(name, ".input_scale") || has_ending(name, ".input_global_scale")) return 1;
    /* Tables of RoPE, which follow from the configuration: sliding_attention_inv_freq and
     * others. */
    if (has_ending(name, "inv_freq")) return 1;
    /* Some fine-tunes leave out the prefix. */
    if (begins(name, "model.")) name += strlen("model.");
    /* A vision tower that config.json does not describe, the projection behind one that is not
     * there: such a model takes no pictures. */
    int blind = !m->w.tower.n_layers;
    if (blind && (begins(name, "vision_tower.") || begins(name, "embed_vision."))) return 1;
    /* The front ends for pictures and sound of a gemma4_unified model: its text alone is run. */
    return m->unified && (begins(name, "vision_embedder.") || begins(name, "embed_audio."));
}

static int bind_model(Model *m, Error *err) {
    int n;
    const Tensor *t = safetensors_all(m->st, &n);
    if (refuse_formats(m, err)) return -1;
    if (safetensors_warning(m->st)) model_warn(m, safetensors_warning(m->st));
    uint8_t *used = xcalloc(n, 1);
    int bad = bind_parts(m, used, err);
    for (int i = 0; i < n && !bad; i++)
        if (!used[i] && !is_spare(m, t[i].name))
            bad = fail(err, "%s: tensor %s: no part of this model uses it", t[i].file, t[i].name);
    free(used);
    return bad;
}

/* ---- the model ---- */

/* The bytes of a weight with its scales and zero points; 0 for one that is not there. */
static int64_t own_bytes(const Weight *w) {
    int64_t bytes = (int64_t)w->rows * stored_row_bytes(w), scales = 0, zeros = 0;
    if (!w->data) return 0;
    if (w->block_scale)
        scales = (int64_t)n_blocks(w->rows, w->scale_rows) * n_blocks(w->cols, w->scale_cols);
    if (w->dtype == DT_U8) return bytes + scales + 4;   /* and the scale of the matrix */
    if (w->zero) zeros = (int64_t)4 * n_blocks(w->rows, 8) * (w->cols / w->scale_cols);
    return bytes + scales * dtype_size[w->scale_dtype] + zeros;
}

/* own_bytes of a weight and of its adapters. */
static int64_t weight_bytes(const Weight *w) {
    int64_t bytes = own_bytes(w);
    for (const Adapter *l = w->adapter; l; l = l->next)
        bytes += own_bytes(&l->a) + own_bytes(&l->b);
    return bytes;
}

static void free_layers(Model *m) {
    for (int i = 0; m->w.layer && i < m->config.n_layers; i++) {
        Layer *l = &m->w.layer[i];
        if (m->target) l->k_norm = NULL;        /* the target's, see fit_target */
        float *own[] = {
            l->input_norm, l->post_attention_norm, l->q_norm, l->k_norm, l->pre_mlp_norm,
            l->post_mlp_norm, l->pre_experts_norm, l->post_experts_norm, l->post_ffn_norm,
            l->router_scale, l->per_expert_scale,
        };
        for (size_t k = 0; k < sizeof own / sizeof *own; k++) free(own[k]);
        free(l->expert_gate);
        free(l->expert_up);
        free(l->expert_down);
    }
    free(m->w.layer);
    Tower *v = &m->w.tower;
    for (int i = 0; v->layer && i < v->n_layers; i++) {
        VisionLayer *l = &v->layer[i];
        float *own[] = {l->input_norm, l->post_attention_norm, l->pre_mlp_norm, l->post_mlp_norm,
                        l->q_norm, l->k_norm};
        for (size_t k = 0; k < sizeof own / sizeof *own; k++) free(own[k]);
    }
    free(v->layer);
    free(v->inv_freq);
    free(v->std_bias);
    free(v->std_scale);
}

void model_close(Model *m) {
    if (!m) return;
    free_layers(m);
    free(m->inv_freq[0]);
    free(m->inv_freq[1]);
    free(m->w.final_norm);
    for (int i = 0; i < m->n_group_targets; i++) {
        free(m->group_target[i].text);
        strings_free(m->group_target[i].set);
    }
    free(m->group_target);
    for (int i = 0; i < 2; i++) free(m->quant_algo[i]);
    buf_free(&m->warning);
    adapters_close(m);
    safetensors_close(m->st);
    free(m);
}

/* peft may write its adapter into the directory of the whole weights. */
static void warn_of_adapter(Model *m, const char *dir) {
    Buf path = {0};
    buf_printf(&path, "%s/adapter_config.json", dir);
    if (!access(path.data, F_OK))
        model_warn(m, "the LoRA adapter beside the weights counts only where --lora names its "
                   "directory");
    buf_free(&path);
}

Model *model_open(const char *dir, Error *err) { return model_open_drafter(dir, NULL, err); }

Model *model_open_drafter(const char *dir, const Model *target, Error *err) {
    Model *m = xcalloc(1, sizeof *m);
    m->target = target;
    if (directory_check(dir, err) || load_configs(m, dir, err) ||
        !(m->st = safetensors_open(dir, err)) || check_experts(m, dir, err) ||
        bind_model(m, err)) {
        model_close(m);
        return NULL;
    }
    warn_of_adapter(m, dir);
    for (int s = 0; s < 4; s++)
        for (int k = 0; k < N_KINDS; k++) {
            if (!(m->kinds[s] & 1u << k)) continue;
            char *layout = m->layout[s];
            size_t n = strlen(layout);
            snprintf(layout + n, sizeof m->layout[s] - n, "%s%s", n ? " + " : "", kind_name[k]);
        }
    return m;
}

/* What the threads of model_check share. */
typedef struct {
    const Tensor *t;                    /* [n] */
    int n;
    atomic_int next;                    /* the tensor that the next thread looks at */
    atomic_int bad;                     /* the first tensor with a bad scale; n: there is none */
} Check;

/* Whether one of the E4M3 of t, scales of NVFP4, is a NaN, 0x7f or 0xff (there are no infinities),
 * or negative, which the kernels do not look at: they take -0 for 0.  Adding 1 to the low 7 bits of
 * a byte carries into its top bit for a NaN only, and adding 127 for all but 0. */
static int has_no_e4m3_scale(const Tensor *t) {
    const uint64_t low = 0x7f7f7f7f7f7f7f7f, one = 0x0101010101010101;
    uint64_t any = 0, eight;
    for (size_t at = 0; at < t->n_bytes; at += 8) {
        const size_t left = t->n_bytes - at;
        eight = 0;
        memcpy(&eight, t->data + at, left < 8 ? left : 8);
        any |= (eight & low) + one;
        any |= ((eight & low) + low) & eight;
    }
    return (any & ~low) != 0;
}

/* Whether one of the numbers of t, which are floats, is negative or not finite. */
static int has_bad_float(const Tensor *t) {
    size_t n = t->n_bytes / (size_t)dtype_size[t->dtype];
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        float f = float_at(t->dtype, t->data, (int64_t)i);
        bad |= !(f >= 0 && f <= 3.4e38f);
    }
    return bad;
}

static int has_bad_scale(const Tensor *t) {
    if (!has_ending(t->name, ".weight_scale")) return 0;
    return t->dtype == DT_F8_E4M3 ? has_no_e4m3_scale(t) : has_bad_float(t);
}

/* Looks through the scales of quantised matrices. */
static void *check_scales(void *arg) {
    Check *c = arg;
    for (int i; (i = atomic_fetch_add(&c->next, 1)) < c->n;) {
        int bad = atomic_load(&c->bad);
        if (i < bad && has_bad_scale(&c->t[i]))
            while (i < bad && !atomic_compare_exchange_weak(&c->bad, &bad, i))
                ;
    }
    return NULL;
}

int model_check(const Model *m, Error *err) {
    /* So many threads read as fast as most memories can.  To tune it, time the start of the program
     * with the files in the page cache. */
    enum { MOST = 4 };
    Check c = {0};
    c.t = safetensors_all(m->st, &c.n);
    c.bad = c.n;
    in_threads(MOST, check_scales, &c);
    if (c.bad == c.n) return 0;
    const Tensor *bad = &c.t[c.bad];
    const char *infinite = bad->dtype == DT_F8_E4M3 ? "" : ", infinite";
    return fail(err, "%s: tensor %s: a scale is NaN%s or negative", bad->file, bad->name, infinite);
}

const char *model_warning(const Model *m) { return m->warning.data; }

const Config *model_config(const Model *m) { return &m->config; }

const Weights *model_weights(const Model *m) { return &m->w; }

const GenerationConfig *model_generation(const Model *m) { return &m->generation; }

void model_info(const Model *m, ModelInfo *info) {
    const Config *c = &m->config;
    *info = (ModelInfo){.config = c, .fp8_kv = m->fp8_kv, .has_vision = m->w.tower.n_layers > 0,
                        .text_alone = m->unified, .n_adapters = m->n_loras};
    for (int g = 0; g < 4; g++) info->layout[g] = m->layout[g][0] ? m->layout[g] : NULL;
    info->parameters = m->parameters;
    info->bytes_on_disk = (int64_t)safetensors_bytes(m->st);
    int64_t bytes = weight_bytes(&m->w.head) + weight_bytes(&m->w.pre) + weight_bytes(&m->w.post);
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        const Weight *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down, &l->router};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            if (all[k]->data) bytes += weight_bytes(all[k]);
        const Weight *expert[] = {l->expert_gate, l->expert_up, l->expert_down};
        for (int k = 0; k < 3 && c->n_experts; k++) bytes += c->top_k * weight_bytes(expert[k]);
        info->n_global += l->global;
        *(l->global ? &info->global_kv_heads : &info->kv_heads) = l->n_kv_heads;
    }
    info->bytes_per_token = bytes;
}
