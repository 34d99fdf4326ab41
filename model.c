/* model.c - the checkpoint and the forward pass.
 *
 * From top to bottom: config.json to Config; tensors by name to Layer; the forward pass (`forward`, the place to
 * begin reading); sessions, which know which tokens the cache holds.  The reference for every number is
 * transformers 5.23.0, models/gemma4/modeling_gemma4.py. */
#include "model.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"

struct Model {
    Config config;
    GenerationConfig generation;
    const Model *target;                /* a drafter's; else NULL */
    SafeTensors *st;
    Weights w;
    float *inv_freq[2];                 /* RoPE frequencies of sliding and global layers */
    const char *prefix;                 /* "model.language_model." or "model." */
    int k_eq_v, fp8_kv, standardize;
    int media[3], pad;                  /* ids of <|image|>, <|video|>, <|audio|>, or -1; of <pad> */
    unsigned kinds[5];                  /* for info: bits of enum Kind, by group */
    char layout[4][64];
};

/* ------------------------------------------------------------------------------------------------------------
 * config.json */

typedef struct {
    const char *file;
    const cJSON *json;
    const char *where;                  /* "text_config." or "" : for messages */
    Error *err;
} Fields;

#define MAX_CONFIG (4 << 20)            /* bytes, of which cJSON makes many times as many: more than any model says of itself */

static cJSON *load_json(const char *dir, const char *name, Buf *path, int optional, Error *err) {
    path->len = 0;
    buf_printf(path, "%s/%s", dir, name);
    if (optional && access(path->data, F_OK)) return cJSON_CreateObject();
    Error why;
    cJSON *json = NULL;
    size_t n;
    const uint8_t *map = map_file(path->data, &n, err);
    if (!map) return NULL;
    if (n > MAX_CONFIG) fail(err, "%s: %zu bytes are too many for a configuration", path->data, n);
    else {
        Buf text = {0};                 /* a copy with a 0 at its end, behind which cJSON may look */
        buf_add(&text, map, n);
        if (!(json = json_object(text.data, n, &why))) fail(err, "%s: %s", path->data, why.text);
        buf_free(&text);
    }
    unmap_file(map, n);
    return json;
}

/* The field, of a type (cJSON_String, cJSON_Object, cJSON_Array, cJSON_True for both of its kind); NULL where it is missing. */
static int typed(const Fields *f, const char *name, int type, const cJSON **out) {
    const cJSON *v = json_field(f->json, name);
    int is = v && cJSON_IsFalse(v) ? cJSON_True : v ? v->type & 0xff : type;
    *out = v;
    if (is == type) return 0;
    return fail(f->err, "%s: %s%s is not %s", f->file, f->where, name,
                type == cJSON_String ? "a string" : type == cJSON_Object ? "an object" : type == cJSON_Array ? "a list" : "true or false");
}

/* A string; *out stays as it is where it is missing. */
static int string(const Fields *f, const char *name, const char **out) {
    const cJSON *v;
    if (typed(f, name, cJSON_String, &v)) return -1;
    if (v) *out = v->valuestring;
    return 0;
}

static int boolean(const Fields *f, const char *name, int *out) {
    const cJSON *v;
    if (typed(f, name, cJSON_True, &v)) return -1;
    *out = cJSON_IsTrue(v);
    return 0;
}

/* The object `name` in f, whose fields messages call `where`; without any where it is missing. */
static int object(const Fields *f, const char *name, const char *where, Fields *out) {
    const cJSON *v;
    if (typed(f, name, cJSON_Object, &v)) return -1;
    *out = (Fields){f->file, v, where, f->err};
    return 0;
}

/* A string that, where it is there, must be a or b (which may be NULL). */
static int one_of(const Fields *f, const char *name, const char *a, const char *b) {
    const char *is = NULL;
    if (string(f, name, &is)) return -1;
    if (!is || !strcmp(is, a) || (b && !strcmp(is, b))) return 0;
    return fail(f->err, "%s: %s%s \"%s\" is not supported", f->file, f->where, name, is);
}

/* A number in [min, max]; where it is missing `otherwise`, or an error when that is NAN. */
static int number(const Fields *f, const char *name, double min, double max, double otherwise, double *out) {
    const cJSON *v = json_field(f->json, name);
    *out = otherwise;
    if (!v) return isnan(otherwise) ? fail(f->err, "%s: %s%s is missing", f->file, f->where, name) : 0;
    if (!cJSON_IsNumber(v)) return fail(f->err, "%s: %s%s is not a number", f->file, f->where, name);
    if (!(v->valuedouble >= min && v->valuedouble <= max))
        return fail(f->err, "%s: %s%s is %g, must be %g to %g", f->file, f->where, name, v->valuedouble, min, max);
    *out = v->valuedouble;
    return 0;
}

static int integer(const Fields *f, const char *name, int min, int max, double otherwise, int *out) {
    double v;
    if (number(f, name, min, max, otherwise, &v)) return -1;
    *out = (int)v;
    return v == *out ? 0 : fail(f->err, "%s: %s%s is not a whole number", f->file, f->where, name);
}

/* A feature of relatives (E2B, E4B, …) that this program has not: refused by the name of its field. */
static int refuse(const Fields *f, const char *name, const char *why) {
    const cJSON *v = json_field(f->json, name);
    if (!v || cJSON_IsFalse(v) || (cJSON_IsNumber(v) && v->valuedouble == 0)) return 0;
    return fail(f->err, "%s: %s%s: %s", f->file, f->where, name, why);
}

/* The frequencies by which pairs of dimensions turn (modeling_rope_utils.py): theta^(-2i / head_dim), for
 * "proportional" only the first share of them, and 0 (no rotation) for the rest. */
static int rope(const Fields *text, const char *type, int head_dim, double theta, float **out) {
    char where[2][80];
    Fields all, f;
    const char *kind = !strcmp(type, "full_attention") ? "proportional" : "default";
    double share = 1, factor = 1;
    snprintf(where[0], sizeof where[0], "%srope_parameters.", text->where);
    snprintf(where[1], sizeof where[1], "%srope_parameters.%s.", text->where, type);
    if (object(text, "rope_parameters", where[0], &all) || object(&all, type, where[1], &f) ||
        one_of(&f, "rope_type", "default", "proportional") || string(&f, "rope_type", &kind) ||
        number(&f, "rope_theta", 1, 1e12, theta, &theta))
        return -1;
    if (!strcmp(kind, "proportional") && (number(&f, "partial_rotary_factor", 0, 1, f.json ? 1 : 0.25, &share) ||
                                          number(&f, "factor", 1e-6, 1e6, 1, &factor)))
        return -1;
    *out = xcalloc(head_dim / 2, sizeof **out);
    int n = (int)(share * head_dim / 2);
    for (int i = 0; i < n; i++) (*out)[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)head_dim) / (float)factor;
    return 0;
}

/* Which layers are global, and their heads.  Two spellings: global_head_dim and num_global_key_value_heads
 * (published), or per_layer_config {"5": {"head_dim", "num_key_value_heads"}, …} (transformers 5.23). */
static int layer_shapes(Model *m, const Fields *f, int *head_dims) {
    Config *c = &m->config;
    const cJSON *types, *per_layer;
    int head_dim, kv_heads, global_dim, global_kv;
    if (typed(f, "layer_types", cJSON_Array, &types) || typed(f, "per_layer_config", cJSON_Object, &per_layer) ||
        boolean(f, "attention_k_eq_v", &m->k_eq_v) || integer(f, "head_dim", 2, 4096, 256, &head_dim) ||
        integer(f, "num_key_value_heads", 1, 4096, NAN, &kv_heads) || integer(f, "global_head_dim", 2, 4096, 512, &global_dim) ||
        integer(f, "num_global_key_value_heads", 1, 4096, kv_heads, &global_kv))
        return -1;
    if (!m->k_eq_v) global_kv = kv_heads;
    if (types && cJSON_GetArraySize(types) != c->n_layers)
        return fail(f->err, "%s: %slayer_types has %d entries for %d layers", f->file, f->where, cJSON_GetArraySize(types), c->n_layers);
    const cJSON *type = types ? types->child : NULL;
    for (int i = 0; i < c->n_layers; i++, type = type ? type->next : NULL) {
        Layer *l = &m->w.layer[i];
        const char *name = type ? cJSON_GetStringValue(type) : i % 6 == 5 ? "full_attention" : "sliding_attention";
        if (!name || (strcmp(name, "full_attention") && strcmp(name, "sliding_attention")))
            return fail(f->err, "%s: %slayer_types[%d] \"%s\" is not supported", f->file, f->where, i, name ? name : "?");
        l->global = name[0] == 'f' || i == c->n_layers - 1;     /* the last is always global (configuration_gemma4.py) */
        l->head_dim = l->global && !per_layer ? global_dim : head_dim;
        l->n_kv_heads = l->global && !per_layer ? global_kv : kv_heads;
        char key[16], where[2][80];
        snprintf(key, sizeof key, "%d", i);
        snprintf(where[0], sizeof where[0], "%sper_layer_config.", f->where);
        snprintf(where[1], sizeof where[1], "%sper_layer_config.%d.", f->where, i);
        Fields all = {f->file, per_layer, where[0], f->err}, own;
        if (object(&all, key, where[1], &own)) return -1;
        if (own.json && (integer(&own, "head_dim", 2, 4096, l->head_dim, &l->head_dim) ||
                         integer(&own, "num_key_value_heads", 1, 4096, l->n_kv_heads, &l->n_kv_heads)))
            return -1;
        if (l->head_dim % 2) return fail(f->err, "%s: %shead_dim of layer %d is odd", f->file, f->where, i);
        if (c->n_heads % l->n_kv_heads)
            return fail(f->err, "%s: %snum_attention_heads %d is no multiple of layer %d's %d key/value heads", f->file, f->where,
                        c->n_heads, i, l->n_kv_heads);
        int *dim = &head_dims[l->global];
        if (*dim && *dim != l->head_dim)
            return fail(f->err, "%s: %sper_layer_config: %s layers with head_dim %d and %d", f->file, f->where,
                        l->global ? "global" : "sliding", *dim, l->head_dim);
        *dim = l->head_dim;
    }
    return 0;
}

static int parse_vision(Model *m, const Fields *f, double eps) {
    Tower *v = &m->w.tower;
    Fields r;
    int is, kv_heads;
    double theta;
    if (one_of(f, "hidden_activation", "gelu_pytorch_tanh", NULL) || boolean(f, "standardize", &m->standardize) ||
        object(f, "rope_parameters", "vision_config.rope_parameters.", &r) || one_of(&r, "rope_type", "default", "axial") ||
        refuse(f, "use_clipped_linears", "clipped linear layers are not supported") || refuse(f, "attention_bias", "biases are not supported") ||
        integer(f, "patch_size", PATCH, PATCH, PATCH, &is) || integer(f, "pooling_kernel_size", POOL, POOL, POOL, &is) ||
        number(f, "rms_norm_eps", eps, eps, 1e-6, &theta) || number(&r, "rope_theta", 1, 1e12, 100, &theta) ||
        integer(f, "num_hidden_layers", 1, 1000, NAN, &v->n_layers) || integer(f, "hidden_size", 1, 65536, NAN, &v->hidden) ||
        integer(f, "num_attention_heads", 1, 4096, NAN, &v->n_heads) ||
        integer(f, "num_key_value_heads", v->n_heads, v->n_heads, v->n_heads, &kv_heads) ||
        integer(f, "head_dim", 4, 4096, 64, &v->head_dim) || integer(f, "intermediate_size", 1, 1 << 20, NAN, &v->intermediate) ||
        integer(f, "position_embedding_size", 1, 1 << 20, 10240, &v->n_positions))
        return -1;
    if (v->head_dim % 4) return fail(f->err, "%s: %shead_dim %d is no multiple of 4", f->file, f->where, v->head_dim);
    /* Each half of a head turns by itself: the exponent divides by half the head (Gemma4VisionRotaryEmbedding). */
    v->inv_freq = xcalloc(v->head_dim / 4, sizeof *v->inv_freq);
    int half = v->head_dim / 2;
    for (int i = 0; i < half / 2; i++) v->inv_freq[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)half);
    return 0;
}

/* The last layer of a kind, whose cache a drafter reads; NULL: there is none. */
static const Layer *last_layer(const Model *m, int global) {
    for (int i = m->config.n_layers; i-- > 0;)
        if (m->w.layer[i].global == global) return &m->w.layer[i];
    return NULL;
}

static int as_target(const Fields *f, const char *name, int is, int must) {
    if (is == must) return 0;
    return fail(f->err, "%s: %s%s is %d, the target's is %d: this drafter is another model's", f->file, f->where, name, is, must);
}

/* A drafter must have its target's widths, and reads its target's cache with its target's norms and scales. */
static int fit_target(Model *m, const Fields *top, const Fields *text) {
    const Config *c = &m->config, *t = &m->target->config;
    if (as_target(top, "backbone_hidden_size", c->backbone, t->hidden) || as_target(text, "vocab_size", c->vocab, t->vocab) ||
        as_target(text, "sliding_window", c->window, t->window))
        return -1;
    for (int i = 0; i < c->n_layers; i++) {
        Layer *l = &m->w.layer[i];
        const Layer *from = last_layer(m->target, l->global);
        if (!from) return fail(text->err, "%s: %slayer_types[%d]: the target has no sliding layer", text->file, text->where, i);
        if (as_target(text, l->global ? "global_head_dim" : "head_dim", l->head_dim, from->head_dim) ||
            as_target(text, l->global ? "num_global_key_value_heads" : "num_key_value_heads", l->n_kv_heads, from->n_kv_heads))
            return -1;
        l->k_norm = from->k_norm;
        l->k_scale = from->k_scale;
        l->v_scale = from->v_scale;
    }
    return 0;
}

static int parse_config(Model *m, const char *file, const cJSON *json, Error *err) {
    Config *c = &m->config;
    Fields top = {file, json, "", err}, f = top;
    const char *type = NULL;
    for (int i = 0; i < 3; i++) m->media[i] = -1;
    int shared, moe, composite;         /* layers that read the cache of others; with experts; the text model is in text_config */
    if (string(&top, "model_type", &type)) return -1;
    if (!type) return fail(err, "%s: model_type is missing", file);
    if (m->target && strcmp(type, "gemma4_assistant"))
        return fail(err, "%s: model_type \"%s\" is no drafter (gemma4_assistant is)", file, type);
    if (!m->target && strcmp(type, "gemma4") && strcmp(type, "gemma4_text"))
        return fail(err, "%s: model_type \"%s\" is not supported (gemma4 is%s)", file, type,
                    strcmp(type, "gemma4_assistant") ? "" : "; a drafter is given with --draft");
    if ((composite = strcmp(type, "gemma4_text"))) {
        if (object(&top, "text_config", "text_config.", &f)) return -1;
        if (!f.json) return fail(err, "%s: text_config is missing", file);
    }
    if (m->target) {
        if (integer(&top, "backbone_hidden_size", 1, 65536, NAN, &m->config.backbone) ||
            refuse(&top, "use_ordered_embeddings", "a head of centroids (E2B, E4B) is not supported") ||
            refuse(&f, "enable_moe_block", "a drafter with experts is not supported"))
            return -1;
    } else if (refuse(&top, "audio_config", "audio towers are not supported")) return -1;
    if (one_of(&f, "hidden_activation", "gelu_pytorch_tanh", NULL) || one_of(&f, "use_bidirectional_attention", "vision", NULL) ||
        boolean(&f, "enable_moe_block", &moe))
        return -1;
    if (refuse(&f, "hidden_size_per_layer_input", "per-layer embeddings (E2B, E4B) are not supported") ||
        (!m->target && refuse(&f, "num_kv_shared_layers", "layers that share keys and values (E2B, E4B) are not supported")) ||
        refuse(&f, "attention_bias", "biases are not supported"))
        return -1;

    double eps, softcap;
    if (integer(&f, "num_hidden_layers", 1, 1000, NAN, &c->n_layers) || integer(&f, "hidden_size", 1, 65536, NAN, &c->hidden) ||
        integer(&f, "vocab_size", 1, 1 << 24, NAN, &c->vocab) || integer(&f, "pad_token_id", 0, c->vocab - 1, 0, &m->pad) ||
        integer(&f, "num_attention_heads", 1, 4096, NAN, &c->n_heads) ||
        integer(&f, "intermediate_size", 1, 1 << 20, NAN, &c->intermediate) ||
        integer(&f, "sliding_window", 1, 1 << 20, NAN, &c->window) ||
        integer(&f, "max_position_embeddings", 1, 1 << 24, 131072, &c->max_context) ||
        number(&f, "rms_norm_eps", 0, 1, 1e-6, &eps) || number(&f, "final_logit_softcapping", 0, 1e6, 0, &softcap))
        return -1;
    c->eps = (float)eps;
    c->softcap = (float)softcap;
    static const char *const media[] = {"image_token_id", "video_token_id", "audio_token_id"};
    for (int i = 0; i < 3 && composite; i++)
        if (integer(&top, media[i], 0, c->vocab - 1, -1, &m->media[i])) return -1;
    if (moe && (integer(&f, "num_experts", 1, 4096, NAN, &c->n_experts) ||
                integer(&f, "top_k_experts", 1, c->n_experts, NAN, &c->top_k) ||
                integer(&f, "moe_intermediate_size", 1, 1 << 20, NAN, &c->expert_size)))
        return -1;
    if (m->target && integer(&f, "num_kv_shared_layers", c->n_layers, c->n_layers, NAN, &shared)) return -1;
    m->w.layer = xcalloc(c->n_layers, sizeof *m->w.layer);
    int head_dims[2] = {0};
    if (layer_shapes(m, &f, head_dims) || (head_dims[0] && rope(&f, "sliding_attention", head_dims[0], 1e4, &m->inv_freq[0])) ||
        (head_dims[1] && rope(&f, "full_attention", head_dims[1], 1e6, &m->inv_freq[1])))
        return -1;
    for (int i = 0; i < c->n_layers; i++) m->w.layer[i].inv_freq = m->inv_freq[m->w.layer[i].global];
    Fields vision, quant, kv;
    int kv_bits;
    if (object(&top, "vision_config", "vision_config.", &vision) || (vision.json && parse_vision(m, &vision, eps)) ||
        (m->target && fit_target(m, &top, &f)) || object(&top, "quantization_config", "quantization_config.", &quant) ||
        one_of(&quant, "quant_method", "modelopt", "compressed-tensors") ||
        object(&quant, "kv_cache_scheme", "quantization_config.kv_cache_scheme.", &kv) || integer(&kv, "num_bits", 1, 64, 16, &kv_bits))
        return -1;
    m->fp8_kv = kv_bits == 8;
    return 0;
}

/* One id or a list of them. */
static int parse_eos(Model *m, const Fields *f) {
    GenerationConfig *g = &m->generation;
    const cJSON *eos = json_field(f->json, "eos_token_id"), *v = cJSON_IsArray(eos) ? eos->child : eos;
    for (; v; v = cJSON_IsArray(eos) ? v->next : NULL) {
        if (g->n_eos == 16) return fail(f->err, "%s: eos_token_id has more than 16 entries", f->file);
        if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble < m->config.vocab) || v->valuedouble != v->valueint)
            return fail(f->err, "%s: eos_token_id is no token id below %d, nor a list of such", f->file, m->config.vocab);
        g->eos[g->n_eos++] = v->valueint;
    }
    return 0;
}

/* config.json, generation_config.json, hf_quant_config.json. */
static int load_configs(Model *m, const char *dir, Error *err) {
    Buf path = {0};
    GenerationConfig *g = &m->generation;
    double temperature = 0, top_p = 1;
    const char *algo = NULL;
    int bad = -1, sample;
    cJSON *generation = NULL, *quant = NULL, *config = load_json(dir, "config.json", &path, 0, err);
    if (!config || parse_config(m, path.data, config, err)) goto done;
    generation = load_json(dir, "generation_config.json", &path, 1, err);
    if (!generation) goto done;
    Fields f = {path.data, generation, "", err};
    if (parse_eos(m, &f) || boolean(&f, "do_sample", &sample) || number(&f, "temperature", 0, 1000, 1, &temperature) ||
        integer(&f, "top_k", 0, 1 << 24, 0, &g->top_k) || number(&f, "top_p", 0, 1, 1, &top_p))
        goto done;
    g->temperature = sample ? (float)temperature : 0;
    g->top_p = (float)top_p;
    path.len = 0;
    buf_printf(&path, "%s/config.json", dir);
    f = (Fields){path.data, config, "", err};
    if (!g->n_eos && parse_eos(m, &f)) goto done;
    quant = load_json(dir, "hf_quant_config.json", &path, 1, err);
    if (!quant) goto done;
    f = (Fields){path.data, quant, "", err};
    if (object(&f, "quantization", "quantization.", &f) || string(&f, "kv_cache_quant_algo", &algo)) goto done;
    if (algo && !strcmp(algo, "FP8")) m->fp8_kv = 1;
    bad = 0;
done:
    cJSON_Delete(config);
    cJSON_Delete(generation);
    cJSON_Delete(quant);
    buf_free(&path);
    return bad;
}

/* ------------------------------------------------------------------------------------------------------------
 * Tensors by name */

enum Group { ATTENTION, MLP, EXPERTS, EMBEDDING, VISION };
enum Kind { K_F32, K_BF16, K_MODELOPT, K_COMPRESSED };

typedef struct {
    Model *m;
    Error *err;
    char name[256];                     /* the module, with its prefix, without ".weight" */
} Binder;

static void set_name(Binder *b, const char *format, ...) {
    va_list ap;
    int n = snprintf(b->name, sizeof b->name, "%s", b->m->prefix);
    va_start(ap, format);
    vsnprintf(b->name + n, sizeof b->name - (size_t)n, format, ap);
    va_end(ap);
}

static const Tensor *leaf(const Binder *b, const char *suffix) {
    char name[300];
    snprintf(name, sizeof name, "%s%s", b->name, suffix);
    return safetensors_find(b->m->st, name);
}

static int missing(const Binder *b, const char *suffix) {
    return fail(b->err, "%s: tensor %s%s is missing", safetensors_file(b->m->st), b->name, suffix);
}

static int check_shape(const Binder *b, const Tensor *t, int n_dims, int64_t d0, int64_t d1, int64_t d2) {
    int64_t want[3] = {d0, d1, d2};
    int same = t->n_dims == n_dims;
    Buf is = {0}, must = {0};
    for (int i = 0; i < n_dims && same; i++) same = t->shape[i] == want[i];
    if (same) return 0;
    for (int i = 0; i < t->n_dims; i++) buf_printf(&is, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    for (int i = 0; i < n_dims; i++) buf_printf(&must, "%s%lld", i ? ", " : "", (long long)want[i]);
    fail(b->err, "%s: tensor %s: shape is [%s], must be [%s]", t->file, t->name, is.data ? is.data : "", must.data ? must.data : "");
    buf_free(&is);
    buf_free(&must);
    return -1;
}

static int check_dtype(const Binder *b, const Tensor *t, DType want) {
    if (t->dtype == want) return 0;
    return fail(b->err, "%s: tensor %s: dtype is %s, must be %s", t->file, t->name, dtype_name[t->dtype], dtype_name[want]);
}

/* A vector (norm weights and the like), copied to float32: they are small, and 2-byte aligned at best. */
static int bind_vector(const Binder *b, const char *suffix, int n, float **out) {
    const Tensor *t = leaf(b, suffix);
    if (!t) return missing(b, suffix);
    if (check_shape(b, t, 1, n, 0, 0)) return -1;
    if (t->dtype != DT_BF16 && check_dtype(b, t, DT_F32)) return -1;
    *out = xcalloc(n, sizeof **out);
    for (int i = 0; i < n; i++) {
        if (t->dtype == DT_F32) memcpy(*out + i, t->data + 4 * i, 4);
        else {
            uint16_t u;
            memcpy(&u, t->data + 2 * i, 2);
            (*out)[i] = bf16_to_float(u);
        }
        if (!isfinite((*out)[i])) return fail(b->err, "%s: tensor %s: not finite", t->file, t->name);
    }
    return 0;
}

/* A float32 scale, [] or [1]. */
static int scalar(const Binder *b, const Tensor *t, float *out) {
    if (check_dtype(b, t, DT_F32) || (t->n_dims && check_shape(b, t, 1, 1, 0, 0))) return -1;
    memcpy(out, t->data, 4);
    return isfinite(*out) && *out > 0 ? 0 : fail(b->err, "%s: tensor %s: %g is no scale", t->file, t->name, *out);
}

static int bind_nvfp4(const Binder *b, enum Group group, const Tensor *t, Weight *w) {
    const Tensor *block = leaf(b, ".weight_scale"), *scale = leaf(b, ".weight_scale_2");
    int compressed = !scale;
    if (compressed) scale = leaf(b, ".weight_global_scale");
    if (!block) return missing(b, ".weight_scale");
    if (!scale) return missing(b, ".weight_scale_2");
    if (w->cols % 16) return fail(b->err, "%s: tensor %s: NVFP4 with %d columns, no multiple of 16", t->file, t->name, w->cols);
    if (check_shape(b, t, 2, w->rows, w->cols / 2, 0) || check_dtype(b, block, DT_F8_E4M3) ||
        check_shape(b, block, 2, w->rows, w->cols / 16, 0) || scalar(b, scale, &w->scale))
        return -1;
    if (compressed) w->scale = 1 / w->scale;
    if (!isfinite(w->scale)) return fail(b->err, "%s: tensor %s: its reciprocal is not finite", scale->file, scale->name);
    w->block_scale = block->data;
    b->m->kinds[group] |= 1u << (compressed ? K_COMPRESSED : K_MODELOPT);
    return 0;
}

/* A matrix in whatever layout it is in: decided by its own dtype, never by the lists in the configuration. */
static int bind_weight(const Binder *b, enum Group group, int rows, int cols, Weight *w) {
    const Tensor *t = leaf(b, ".weight");
    if (!t) t = leaf(b, ".weight_packed");
    if (!t) return missing(b, ".weight");
    *w = (Weight){.dtype = t->dtype, .rows = rows, .cols = cols, .data = t->data, .scale = 1};
    if (t->dtype == DT_U8) return bind_nvfp4(b, group, t, w);
    if (t->dtype != DT_F32 && check_dtype(b, t, DT_BF16)) return -1;
    b->m->kinds[group] |= 1u << (t->dtype == DT_F32 ? K_F32 : K_BF16);
    return check_shape(b, t, 2, rows, cols, 0);
}

/* experts.gate_up_proj [E][2 * size][hidden] (gate, then up) and experts.down_proj [E][hidden][size], BF16. */
static int bind_fused_experts(const Binder *b, const Tensor *gate_up, Layer *l) {
    const Config *c = &b->m->config;
    const Tensor *down = leaf(b, ".down_proj");
    if (!down) return missing(b, ".down_proj");
    if (check_dtype(b, gate_up, DT_BF16) || check_shape(b, gate_up, 3, c->n_experts, 2 * (int64_t)c->expert_size, c->hidden) ||
        check_dtype(b, down, DT_BF16) || check_shape(b, down, 3, c->n_experts, c->hidden, c->expert_size))
        return -1;
    int64_t half = 2 * (int64_t)c->expert_size * c->hidden;        /* bytes of one expert's gate, up or down */
    for (int e = 0; e < c->n_experts; e++) {
        Weight w = {.dtype = DT_BF16, .rows = c->expert_size, .cols = c->hidden, .data = gate_up->data + 2 * e * half, .scale = 1};
        l->expert_gate[e] = w;
        w.data += half;
        l->expert_up[e] = w;
        l->expert_down[e] = (Weight){DT_BF16, c->hidden, c->expert_size, down->data + e * half, NULL, 1};
    }
    b->m->kinds[EXPERTS] |= 1u << K_BF16;
    return 0;
}

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
    /* "layers.L.experts.E." or, in some exports, "layers.L.moe.experts.E." */
    set_name(b, "layers.%d.moe.experts.0.gate_proj", i);
    const char *moe = leaf(b, ".weight") || leaf(b, ".weight_packed") ? "moe." : "";
    for (int e = 0; e < c->n_experts; e++) {
        const char *part[] = {"gate", "up", "down"};
        Weight *w[] = {&l->expert_gate[e], &l->expert_up[e], &l->expert_down[e]};
        for (int k = 0; k < 3; k++) {
            set_name(b, "layers.%d.%sexperts.%d.%s_proj", i, moe, e, part[k]);
            if (bind_weight(b, EXPERTS, k < 2 ? c->expert_size : c->hidden, k < 2 ? c->hidden : c->expert_size, w[k])) return -1;
        }
    }
    return 0;
}

static int bind_layer(Binder *b, int i) {
    const Config *c = &b->m->config;
    Layer *l = &b->m->w.layer[i];
    int q_rows = c->n_heads * l->head_dim, kv_rows = l->n_kv_heads * l->head_dim;
    struct { const char *name; int rows, cols; Weight *w; enum Group group; } matrix[] = {
        {"self_attn.q_proj", q_rows, c->hidden, &l->q, ATTENTION}, {"self_attn.k_proj", kv_rows, c->hidden, &l->k, ATTENTION},
        {"self_attn.v_proj", kv_rows, c->hidden, &l->v, ATTENTION}, {"self_attn.o_proj", c->hidden, q_rows, &l->o, ATTENTION},
        {"mlp.gate_proj", c->intermediate, c->hidden, &l->gate, MLP}, {"mlp.up_proj", c->intermediate, c->hidden, &l->up, MLP},
        {"mlp.down_proj", c->hidden, c->intermediate, &l->down, MLP},
    };
    struct { const char *name; int n; float **v; int with_experts; } vector[] = {
        {"input_layernorm.weight", c->hidden, &l->input_norm, 0},
        {"post_attention_layernorm.weight", c->hidden, &l->post_attention_norm, 0},
        {"self_attn.q_norm.weight", l->head_dim, &l->q_norm, 0}, {"self_attn.k_norm.weight", l->head_dim, &l->k_norm, 0},
        {"pre_feedforward_layernorm.weight", c->hidden, &l->pre_mlp_norm, 0},
        {"post_feedforward_layernorm.weight", c->hidden, &l->post_ffn_norm, 0},
        {"post_feedforward_layernorm_1.weight", c->hidden, &l->post_mlp_norm, 1},
        {"pre_feedforward_layernorm_2.weight", c->hidden, &l->pre_experts_norm, 1},
        {"post_feedforward_layernorm_2.weight", c->hidden, &l->post_experts_norm, 1},
        {"router.scale", c->hidden, &l->router_scale, 1}, {"router.per_expert_scale", c->n_experts, &l->per_expert_scale, 1},
    };
    for (size_t k = 0; k < sizeof matrix / sizeof *matrix; k++) {
        if (matrix[k].w == &l->v && l->global && b->m->k_eq_v) continue;
        if (c->backbone && (matrix[k].w == &l->k || matrix[k].w == &l->v)) continue;
        set_name(b, "layers.%d.%s", i, matrix[k].name);
        if (bind_weight(b, matrix[k].group, matrix[k].rows, matrix[k].cols, matrix[k].w)) return -1;
    }
    set_name(b, "layers.%d.", i);
    for (size_t k = 0; k < sizeof vector / sizeof *vector; k++)
        if ((c->n_experts || !vector[k].with_experts) && !(c->backbone && vector[k].v == &l->k_norm) &&
            bind_vector(b, vector[k].name, vector[k].n, vector[k].v))
            return -1;
    float *s = NULL;
    int bad = bind_vector(b, "layer_scalar", 1, &s);
    if (!bad) l->layer_scalar = *s;
    free(s);
    if (bad || c->backbone) return bad;
    l->k_scale = l->v_scale = 1;
    const Tensor *ks = leaf(b, "self_attn.k_proj.k_scale"), *vs = leaf(b, "self_attn.v_proj.v_scale");
    if ((ks && scalar(b, ks, &l->k_scale)) || (vs && scalar(b, vs, &l->v_scale))) return -1;
    if (!c->n_experts) return 0;
    set_name(b, "layers.%d.router.proj", i);
    if (bind_weight(b, MLP, c->n_experts, c->hidden, &l->router)) return -1;
    return bind_experts(b, i, l);
}

static int has_tower(const Model *m) {
    static const char name[] = "model.vision_tower.";
    int n;
    const Tensor *t = safetensors_all(m->st, &n);
    for (int i = 0; i < n; i++)
        if (!strncmp(t[i].name, name, sizeof name - 1)) return 1;
    return 0;
}

/* The vision tower and the projection of what it sees.  A checkpoint that has left it out is one without a tower. */
static int bind_tower(Binder *b) {
    const int hidden = b->m->config.hidden;
    Tower *v = &b->m->w.tower;
    int inner = v->n_heads * v->head_dim;
    b->m->prefix = "model.";
    if (!has_tower(b->m)) {
        v->n_layers = 0;
        return 0;
    }
    v->layer = xcalloc(v->n_layers, sizeof *v->layer);
    set_name(b, "vision_tower.patch_embedder.input_proj");
    if (bind_weight(b, VISION, v->hidden, PATCH_SIZE, &v->patch)) return -1;
    set_name(b, "vision_tower.patch_embedder.position_embedding_table");
    const Tensor *table = leaf(b, "");
    if (!table) return missing(b, "");
    if (table->dtype != DT_F32 && check_dtype(b, table, DT_BF16)) return -1;
    if (check_shape(b, table, 3, 2, v->n_positions, v->hidden)) return -1;
    v->position = (Weight){table->dtype, 2 * v->n_positions, v->hidden, table->data, NULL, 1};
    set_name(b, "vision_tower.");
    if (b->m->standardize && (bind_vector(b, "std_bias", v->hidden, &v->std_bias) || bind_vector(b, "std_scale", v->hidden, &v->std_scale)))
        return -1;
    set_name(b, "embed_vision.embedding_projection");
    if (bind_weight(b, VISION, hidden, v->hidden, &v->project)) return -1;
    for (int i = 0; i < v->n_layers; i++) {
        VisionLayer *l = &v->layer[i];
        struct { const char *name; int rows, cols; Weight *w; } matrix[] = {
            {"self_attn.q_proj", inner, v->hidden, &l->q},        {"self_attn.k_proj", inner, v->hidden, &l->k},
            {"self_attn.v_proj", inner, v->hidden, &l->v},        {"self_attn.o_proj", v->hidden, inner, &l->o},
            {"mlp.gate_proj", v->intermediate, v->hidden, &l->gate}, {"mlp.up_proj", v->intermediate, v->hidden, &l->up},
            {"mlp.down_proj", v->hidden, v->intermediate, &l->down},
        };
        struct { const char *name; int n; float **v; } vector[] = {
            {"input_layernorm.weight", v->hidden, &l->input_norm},
            {"post_attention_layernorm.weight", v->hidden, &l->post_attention_norm},
            {"pre_feedforward_layernorm.weight", v->hidden, &l->pre_mlp_norm},
            {"post_feedforward_layernorm.weight", v->hidden, &l->post_mlp_norm},
            {"self_attn.q_norm.weight", v->head_dim, &l->q_norm}, {"self_attn.k_norm.weight", v->head_dim, &l->k_norm},
        };
        for (size_t k = 0; k < sizeof matrix / sizeof *matrix; k++) {
            set_name(b, "vision_tower.encoder.layers.%d.%s.linear", i, matrix[k].name);
            if (bind_weight(b, VISION, matrix[k].rows, matrix[k].cols, matrix[k].w)) return -1;
        }
        set_name(b, "vision_tower.encoder.layers.%d.", i);
        for (size_t k = 0; k < sizeof vector / sizeof *vector; k++)
            if (bind_vector(b, vector[k].name, vector[k].n, vector[k].v)) return -1;
    }
    return 0;
}

static int bind_model(Model *m, Error *err) {
    const Config *c = &m->config;
    Binder b = {.m = m, .err = err};
    const char *prefix[] = {"model.", "model.language_model."};
    for (int i = 0; i < 2; i++) {
        m->prefix = prefix[i];
        set_name(&b, "embed_tokens");
        if (leaf(&b, ".weight")) break;
    }
    if (bind_weight(&b, EMBEDDING, c->vocab, c->hidden, &m->w.embed)) return -1;
    m->w.head = m->w.embed;
    snprintf(b.name, sizeof b.name, "lm_head");         /* absent where the head is tied to the embedding */
    if (leaf(&b, ".weight") && bind_weight(&b, EMBEDDING, c->vocab, c->hidden, &m->w.head)) return -1;
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
    return m->w.tower.n_layers ? bind_tower(&b) : 0;
}

/* ------------------------------------------------------------------------------------------------------------
 * The model */

static int64_t weight_bytes(const Weight *w) {
    int64_t n = (int64_t)w->rows * w->cols;
    return w->dtype == DT_F32 ? 4 * n : w->dtype == DT_BF16 ? 2 * n : w->dtype == DT_U8 ? n / 2 + n / 16 + 4 : 0;
}

static void free_layers(Model *m) {
    for (int i = 0; m->w.layer && i < m->config.n_layers; i++) {
        Layer *l = &m->w.layer[i];
        if (m->target) l->k_norm = NULL;
        float *own[] = {l->input_norm, l->post_attention_norm, l->q_norm, l->k_norm, l->pre_mlp_norm, l->post_mlp_norm,
                        l->pre_experts_norm, l->post_experts_norm, l->post_ffn_norm, l->router_scale, l->per_expert_scale};
        for (size_t k = 0; k < sizeof own / sizeof *own; k++) free(own[k]);
        free(l->expert_gate);
        free(l->expert_up);
        free(l->expert_down);
    }
    free(m->w.layer);
    Tower *v = &m->w.tower;
    for (int i = 0; v->layer && i < v->n_layers; i++) {
        VisionLayer *l = &v->layer[i];
        float *own[] = {l->input_norm, l->post_attention_norm, l->pre_mlp_norm, l->post_mlp_norm, l->q_norm, l->k_norm};
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
    safetensors_close(m->st);
    free(m);
}

Model *model_open(const char *dir, Error *err) { return model_open_drafter(dir, NULL, err); }

Model *model_open_drafter(const char *dir, const Model *target, Error *err) {
    static const char *const kind[] = {"F32", "BF16", "NVFP4 (modelopt)", "NVFP4 (compressed-tensors)"};
    Model *m = xcalloc(1, sizeof *m);
    m->target = target;
    if (load_configs(m, dir, err) || !(m->st = safetensors_open(dir, err)) || bind_model(m, err)) {
        model_close(m);
        return NULL;
    }
    for (int g = 0; g < 4; g++)
        for (int k = 0; k < 4; k++)
            if (m->kinds[g] & 1u << k) {
                size_t n = strlen(m->layout[g]);
                snprintf(m->layout[g] + n, sizeof m->layout[g] - n, "%s%s", n ? " + " : "", kind[k]);
            }
    return m;
}

/* One thread's share of the block scales: every n_threads-th tensor.  E4M3's NaN are 0x7f and 0xff; it has no infinity. */
typedef struct {
    const Tensor *t, *bad;
    int begin, n, n_threads;
} Check;

static void *check_scales(void *arg) {
    Check *c = arg;
    for (int i = c->begin; i < c->n && !c->bad; i += c->n_threads) {
        const Tensor *t = c->t + i;
        if (t->dtype != DT_F8_E4M3) continue;           /* nothing else is: see bind_weight */
        uint64_t any = 0, eight;
        size_t at = 0;
        for (; at + 8 <= t->n_bytes; at += 8) {
            memcpy(&eight, t->data + at, 8);
            any |= (eight & 0x7f7f7f7f7f7f7f7f) + 0x0101010101010101;
        }
        for (; at < t->n_bytes; at++) any |= (t->data[at] & 0x7fu) + 1;
        if (any & 0x8080808080808080) c->bad = t;
    }
    return NULL;
}

int model_check(const Model *m, Error *err) {
    enum { MOST = 4 };                                  /* memory has no more to give */
    Check c[MOST] = {0};
    pthread_t thread[MOST];
    int n, n_threads = n_cpus() < MOST ? n_cpus() : MOST, started = 1;
    const Tensor *t = safetensors_all(m->st, &n), *bad = NULL;
    for (int i = 0; i < n_threads; i++) c[i] = (Check){t, NULL, i, n, n_threads};
    while (started < n_threads && !pthread_create(&thread[started], NULL, check_scales, &c[started])) started++;
    check_scales(&c[0]);
    for (int i = started; i < n_threads; i++) check_scales(&c[i]);     /* what no thread could be had for */
    for (int i = 1; i < started; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < n_threads; i++)
        if (c[i].bad && (!bad || c[i].bad < bad)) bad = c[i].bad;
    return bad ? fail(err, "%s: tensor %s: a scale is NaN", bad->file, bad->name) : 0;
}

int model_image_tokens(const char *dir) {
    Buf path = {0};
    cJSON *config = load_json(dir, "config.json", &path, 1, NULL);
    Fields f = {path.data, config, "", NULL};
    int n;
    if (integer(&f, "vision_soft_tokens_per_image", 1, 1120, 280, &n)) n = 280;
    cJSON_Delete(config);
    buf_free(&path);
    return n;
}

const Weights *model_weights(const Model *m) { return &m->w; }

const GenerationConfig *model_generation(const Model *m) { return &m->generation; }

static int ends_with(const char *s, const char *end) {
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

/* How many of the model's numbers a tensor holds: quantised ones two to a byte, scales of the quantisation none. */
static int64_t parameters(const Tensor *t) {
    static const char *const scales[] = {"weight_scale_2", "input_scale", "_global_scale", ".k_scale", ".v_scale"};
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->shape[i];
    if (t->dtype == DT_F8_E4M3 || t->dtype == DT_OTHER) return 0;
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        if (ends_with(t->name, scales[i])) return 0;
    return t->dtype == DT_U8 ? 2 * n : n;
}

void model_info(const Model *m, ModelInfo *info) {
    const Config *c = &m->config;
    *info = (ModelInfo){.config = c, .fp8_kv = m->fp8_kv, .has_vision = m->w.tower.n_layers > 0};
    for (int g = 0; g < 4; g++) info->layout[g] = m->layout[g][0] ? m->layout[g] : NULL;
    int n;
    const Tensor *t = safetensors_all(m->st, &n);
    for (int i = 0; i < n; i++) info->parameters += parameters(&t[i]);
    info->bytes_on_disk = (int64_t)safetensors_bytes(m->st);
    info->bytes_per_token = weight_bytes(&m->w.head) + weight_bytes(&m->w.pre) + weight_bytes(&m->w.post);
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        const Weight *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down, &l->router};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) info->bytes_per_token += all[k]->data ? weight_bytes(all[k]) : 0;
        if (c->n_experts)
            info->bytes_per_token +=
                c->top_k * (weight_bytes(&l->expert_gate[0]) + weight_bytes(&l->expert_up[0]) + weight_bytes(&l->expert_down[0]));
        info->n_global += l->global;
        *(l->global ? &info->global_kv_heads : &info->kv_heads) = l->n_kv_heads;
    }
}

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
    Device *d, *eye;                    /* eye: runs the vision tower, the CPU's where d cannot; NULL: not needed yet */
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

static DeviceOptions device_options(const Model *m, const SessionOptions *o) {
    return (DeviceOptions){.max_n = max_step(m, o), .context = o->context, .n_threads = o->n_threads, .exact = o->exact, .loading = o->loading};
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
    return 0;
}

static int fits(const Memory *m) { return m->weights + m->activations + m->cache <= m->free; }

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

Session *session_new(const Model *m, const SessionOptions *o, Error *err) {
    const Config *c = &m->config;
    DeviceOptions device = device_options(m, o);
    Memory memory;
    if (check_memory(m, o, &memory, err)) return NULL;
    Session *s = xcalloc(1, sizeof *s);
    s->device_bytes = memory.weights + memory.activations + memory.cache;
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
    if (s->d) return s;
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
    if (s->eye && s->eye != s->d) cpu_ops.close(s->eye);
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
    const Ops *op = s->o.ops, *eyes = op->see ? op : &cpu_ops;
    const Tower *v = &s->m->w.tower;
    for (int i = 0; i < s->n_spans; i++) {
        Picture *p = s->span[i].picture;
        if (!in_step(s, i, n) || p->soft) continue;
        if (!v->n_layers) return fail(err, "this checkpoint has no vision tower: it takes no pictures");
        if (p->columns > v->n_positions || p->rows > v->n_positions)
            return fail(err, "a picture of %d x %d patches: this tower has positions for %d a side", p->columns, p->rows, v->n_positions);
        DeviceOptions small = {.max_n = 1, .context = 1, .n_threads = s->o.n_threads};
        if (!s->eye) s->eye = op->see ? s->d : cpu_ops.open(&s->m->config, &s->m->w, &small, err);
        if (!s->eye) return -1;
        if (eyes->see(s->eye, v, p->pixels, p->columns, p->rows)) return fail(err, "no memory for a picture of %d x %d patches", p->columns, p->rows);
        for (int l = 0; l < v->n_layers; l++) {
            if (s->o.cancel && *s->o.cancel) return 1;
            eyes->see_layer(s->eye, v, &v->layer[l]);
        }
        p->soft = xcalloc((int64_t)p->n * s->m->config.hidden, sizeof *p->soft);
        eyes->see_pool(s->eye, v, p->soft);
        free(p->pixels);
        p->pixels = NULL;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------
 * The forward pass: n tokens through all layers.  Returns 1 when cancelled. */

static int forward(Session *s, const int *ids, int n) {
    const Ops *op = s->o.ops;
    const Config *c = &s->m->config;
    Device *d = s->d;
    /* A placeholder whose picture is not there is embedded as <pad>, as Gemma4Model.forward does it. */
    const int *media = s->m->media;
    if (s->o.cancel && *s->o.cancel) return 1;
    for (int i = 0; i < n; i++)
        s->row[i] = ids[i] == media[0] || ids[i] == media[1] || ids[i] == media[2] ? s->m->pad : ids[i];
    int whole = op->replay && !s->trace;                /* no look into the step */
    for (int i = 0; i < s->n_spans; i++) whole = whole && !in_step(s, i, n);
    if (whole && op->replay(d, s->row, n, s->ids.n)) return 0;
    op->embed(d, s->row, n, s->ids.n);
    for (int i = 0; i < s->n_spans; i++)
        if (in_step(s, i, n)) op->embed_soft(d, s->span[i].pos - s->ids.n, s->span[i].picture->n, s->span[i].picture->soft);
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *l = &s->m->w.layer[i];
        if (n > 1 && s->o.cancel && *s->o.cancel) return 1;
        if (s->trace && i == 0) {
            op->read_x(d, s->trace_x);
            s->trace(s->trace_arg, -1, s->ids.n, n, s->trace_x, NULL, NULL);
        }
        op->qkv(d, l, &s->kv[i]);
        op->attend(d, l, &s->kv[i]);
        op->attn_out(d, l);
        op->mlp(d, l);
        if (c->n_experts) {
            op->route(d, l);
            op->experts(d, l);
        }
        op->join(d, l);
        if (s->trace) {
            op->read_x(d, s->trace_x);
            if (c->n_experts) op->read_route(d, s->trace_expert, s->trace_weight);
            s->trace(s->trace_arg, i, s->ids.n, n, s->trace_x, c->n_experts ? s->trace_expert : NULL, s->trace_weight);
        }
        if (s->o.progress)
            s->o.progress(s->o.arg, s->sum_to_do, (s->sum_done + n * (i + 1.0) / c->n_layers) / s->sum_to_do);
    }
    if (whole) op->recorded(d);
    return 0;
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
    int32_t dtype, exact;               /* of the cache; SessionOptions.exact */
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
                   .exact = s->o.exact};
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
    if (h.dtype != own.dtype || h.exact != own.exact) return fail(err, "of a run with another --kv or --exact");
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

void session_hidden(Session *s, float *h) { s->o.ops->hidden(s->d, last_token(s), h); }

const KvCache *session_cache(const Session *s, int global) { return &s->kv[last_layer(s->m, global) - s->m->w.layer]; }

const SessionOptions *session_given(const Session *s) { return &s->o; }

const int *session_ids(const Session *s, int *n) {
    *n = s->ids.n;
    return s->ids.id;
}

int64_t session_context(const Session *s) { return s->o.context; }

int64_t session_device_bytes(const Session *s) { return s->device_bytes; }

void session_trace(Session *s, TraceFn *trace, void *arg) {
    const Config *c = &s->m->config;
    s->trace = trace;
    s->trace_arg = arg;
    s->trace_x = xrealloc(s->trace_x, (int64_t)s->max_step * c->hidden, sizeof(float));
    s->trace_expert = xrealloc(s->trace_expert, (int64_t)s->max_step * (c->top_k + 1), sizeof(int));
    s->trace_weight = xrealloc(s->trace_weight, (int64_t)s->max_step * (c->top_k + 1), sizeof(float));
}
