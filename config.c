/* config.c - reads config.json, generation_config.json and hf_quant_config.json into a Model:
 * sizes, layers, RoPE, and what is said of quantised weights and of the cache.  checkpoint.c then
 * binds the weights.  The reference is transformers 5.23.0, models/gemma4/configuration_gemma4.py;
 * the groups of quantised weights are compressed-tensors'. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "fields.h"
#include "json.h"

/* ---- the layers, the vision tower ---- */

/* The frequencies of RoPE, [head_dim / 2], for layers of `type` (modeling_rope_utils.py):
 * theta^(-2i / head_dim).  With "proportional" only the first share of the dimensions turns; the
 * other frequencies are 0.  The caller frees *out. */
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
    if (!strcmp(kind, "proportional") &&
        (number(&f, "partial_rotary_factor", 0, 1, f.json ? 1 : 0.25, &share) ||
         number(&f, "factor", 1e-6, 1e6, 1, &factor)))
        return -1;
    *out = xcalloc(head_dim / 2, sizeof **out);
    int n = (int)(share * head_dim / 2);
    for (int i = 0; i < n; i++)
        (*out)[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)head_dim) / (float)factor;
    return 0;
}

/* Reads what per_layer_config says of layer i, if anything, into l. */
static int own_shape(const Fields *f, const cJSON *per_layer, int i, Layer *l) {
    char key[16], where[2][80];
    snprintf(key, sizeof key, "%d", i);
    snprintf(where[0], sizeof where[0], "%sper_layer_config.", f->where);
    snprintf(where[1], sizeof where[1], "%sper_layer_config.%d.", f->where, i);
    Fields all = {f->file, per_layer, where[0], f->err}, own;
    if (object(&all, key, where[1], &own)) return -1;
    if (!own.json) return 0;
    return integer(&own, "head_dim", 2, 4096, l->head_dim, &l->head_dim) ||
           integer(&own, "num_key_value_heads", 1, 4096, l->n_kv_heads, &l->n_kv_heads) ? -1 : 0;
}

/* Checks the heads of layer i.  *head_dim: that of earlier layers of its kind; 0: none yet. */
static int check_layer(const Fields *f, const Config *c, int i, const Layer *l, int *head_dim) {
    if (l->head_dim % 2)
        return fail(f->err, "%s: %shead_dim of layer %d is odd", f->file, f->where, i);
    if (c->n_heads % l->n_kv_heads)
        return fail(f->err, "%s: %snum_attention_heads %d is no multiple of layer %d's %d "
                    "key/value heads", f->file, f->where, c->n_heads, i, l->n_kv_heads);
    if (*head_dim && *head_dim != l->head_dim)
        return fail(f->err, "%s: %sper_layer_config: %s layers with head_dim %d and %d", f->file,
                    f->where, l->global ? "global" : "sliding", *head_dim, l->head_dim);
    *head_dim = l->head_dim;
    return 0;
}

/* Reads which layers are global, and the heads of each layer.  There are two spellings:
 * global_head_dim and num_global_key_value_heads (the published checkpoints), or per_layer_config
 * {"5": {"head_dim", "num_key_value_heads"}, …} (transformers 5.23).  head_dims[0] and [1] become
 * the head_dim of all sliding and of all global layers, 0: there are none. */
static int layer_shapes(Model *m, const Fields *f, int *head_dims) {
    Config *c = &m->config;
    const cJSON *types, *per_layer;
    int head_dim, kv_heads, global_dim, global_kv;
    if (typed(f, "layer_types", cJSON_Array, &types) ||
        typed(f, "per_layer_config", cJSON_Object, &per_layer) ||
        boolean(f, "attention_k_eq_v", &m->k_eq_v) ||
        integer(f, "head_dim", 2, 4096, 256, &head_dim) ||
        integer(f, "num_key_value_heads", 1, 4096, NAN, &kv_heads) ||
        integer(f, "global_head_dim", 2, 4096, 512, &global_dim) ||
        integer(f, "num_global_key_value_heads", 1, 4096, kv_heads, &global_kv))
        return -1;
    if (!m->k_eq_v) global_kv = kv_heads;
    if (types && cJSON_GetArraySize(types) != c->n_layers)
        return fail(f->err, "%s: %slayer_types has %d entries for %d layers", f->file, f->where,
                    cJSON_GetArraySize(types), c->n_layers);
    const cJSON *type = types ? types->child : NULL;
    for (int i = 0; i < c->n_layers; i++, type = type ? type->next : NULL) {
        Layer *l = &m->w.layer[i];
        /* Without layer_types every sixth layer is global.  The last always is
         * (configuration_gemma4.py). */
        const char *name = i % 6 == 5 ? "full_attention" : "sliding_attention";
        if (type) name = cJSON_GetStringValue(type);
        if (!name || (strcmp(name, "full_attention") && strcmp(name, "sliding_attention")))
            return fail(f->err, "%s: %slayer_types[%d] \"%s\" is not supported", f->file, f->where,
                        i, name ? name : "?");
        l->global = name[0] == 'f' || i == c->n_layers - 1;
        l->head_dim = l->global && !per_layer ? global_dim : head_dim;
        l->n_kv_heads = l->global && !per_layer ? global_kv : kv_heads;
        if (own_shape(f, per_layer, i, l)) return -1;
        if (check_layer(f, c, i, l, &head_dims[l->global])) return -1;
    }
    return 0;
}

/* Reads vision_config.  eps: the text model's, which the tower must share. */
static int parse_vision(Model *m, const Fields *f, double eps) {
    Tower *v = &m->w.tower;
    Fields r;
    int is, kv_heads;
    double theta;
    if (one_of(f, "hidden_activation", "gelu_pytorch_tanh", NULL) ||
        boolean(f, "standardize", &m->standardize) ||
        object(f, "rope_parameters", "vision_config.rope_parameters.", &r) ||
        one_of(&r, "rope_type", "default", "axial") ||
        refuse(f, "use_clipped_linears", "clipped linear layers are not supported") ||
        refuse(f, "attention_bias", "biases are not supported") ||
        integer(f, "patch_size", PATCH, PATCH, PATCH, &is) ||
        integer(f, "pooling_kernel_size", POOL, POOL, POOL, &is) ||
        number(f, "rms_norm_eps", eps, eps, 1e-6, &theta) ||
        number(&r, "rope_theta", 1, 1e12, 100, &theta) ||
        integer(f, "num_hidden_layers", 1, 1000, NAN, &v->n_layers) ||
        integer(f, "hidden_size", 1, 65536, NAN, &v->hidden) ||
        integer(f, "num_attention_heads", 1, 4096, NAN, &v->n_heads) ||
        integer(f, "num_key_value_heads", v->n_heads, v->n_heads, v->n_heads, &kv_heads) ||
        integer(f, "head_dim", 4, 4096, 64, &v->head_dim) ||
        integer(f, "intermediate_size", 1, 1 << 20, NAN, &v->intermediate) ||
        integer(f, "position_embedding_size", 1, 1 << 20, 10240, &v->n_positions))
        return -1;
    if (v->head_dim % 4)
        return fail(f->err, "%s: %shead_dim %d is no multiple of 4", f->file, f->where,
                    v->head_dim);
    /* RoPE in two dimensions: one half of a head rotates by the column of the patch, the other by
     * its row.  So the exponent is a fraction of half the head (Gemma4VisionRotaryEmbedding). */
    v->inv_freq = xcalloc(v->head_dim / 4, sizeof *v->inv_freq);
    int half = v->head_dim / 2;
    for (int i = 0; i < half / 2; i++)
        v->inv_freq[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)half);
    return 0;
}

/* ---- a drafter and its target ---- */

const Layer *last_layer(const Model *m, int global) {
    for (int i = m->config.n_layers; i-- > 0;)
        if (m->w.layer[i].global == global) return &m->w.layer[i];
    return NULL;
}

/* A field of a drafter that must have its target's value. */
static int as_target(const Fields *f, const char *name, int is, int must) {
    if (is == must) return 0;
    return fail(f->err, "%s: %s%s is %d, the target's is %d: this drafter is another model's",
                f->file, f->where, name, is, must);
}

/* Checks that a drafter fits its target.  Each of its layers reads the cache of the target's last
 * layer of the same kind, so it gets that layer's norm of keys and scales.  The target still owns
 * the norm. */
static int fit_target(Model *m, const Fields *top, const Fields *text) {
    const Config *c = &m->config, *t = &m->target->config;
    if (as_target(top, "backbone_hidden_size", c->backbone, t->hidden) ||
        as_target(text, "vocab_size", c->vocab, t->vocab) ||
        as_target(text, "sliding_window", c->window, t->window))
        return -1;
    for (int i = 0; i < c->n_layers; i++) {
        Layer *l = &m->w.layer[i];
        const Layer *from = last_layer(m->target, l->global);
        if (!from)
            return fail(text->err, "%s: %slayer_types[%d]: the target has no sliding layer",
                        text->file, text->where, i);
        const char *dim = l->global ? "global_head_dim" : "head_dim";
        const char *heads = l->global ? "num_global_key_value_heads" : "num_key_value_heads";
        if (as_target(text, dim, l->head_dim, from->head_dim) ||
            as_target(text, heads, l->n_kv_heads, from->n_kv_heads))
            return -1;
        l->k_norm = from->k_norm;
        l->k_scale = from->k_scale;
        l->v_scale = from->v_scale;
    }
    return 0;
}

/* ---- the text model ---- */

/* Checks model_type.  *text becomes the object that describes the text model: text_config, or for
 * "gemma4_text" the top level.  The text model of "gemma4_unified" (12B) is that of "gemma4".
 * Returns 1 for text_config, 0 for the top level, -1 with err. */
static int find_text(Model *m, const Fields *top, Fields *text) {
    const char *type = NULL, *hint = "";
    if (string(top, "model_type", &type)) return -1;
    if (!type) return fail(top->err, "%s: model_type is missing", top->file);
    if (m->target && strcmp(type, "gemma4_assistant"))
        return fail(top->err, "%s: model_type \"%s\" is no drafter (gemma4_assistant is)",
                    top->file, type);
    if (!strcmp(type, "gemma4_assistant")) hint = "; a drafter is given with --draft";
    m->unified = !strcmp(type, "gemma4_unified");
    int alone = !strcmp(type, "gemma4_text") || !strcmp(type, "gemma4_unified_text");
    if (!m->target && !alone && !m->unified && strcmp(type, "gemma4"))
        return fail(top->err, "%s: model_type \"%s\" is not supported (gemma4 is%s)", top->file,
                    type, hint);
    *text = *top;
    if (alone) return 0;
    if (object(top, "text_config", "text_config.", text)) return -1;
    return text->json ? 1 : fail(top->err, "%s: text_config is missing", top->file);
}

/* Refuses what this program does not have.  *moe becomes 1 for a model with experts. */
static int parse_features(Model *m, const Fields *top, const Fields *text, int *moe) {
    static const char head[] = "a head of centroids (E2B, E4B) is not supported";
    static const char embeddings[] = "per-layer embeddings (E2B, E4B) are not supported";
    static const char shared[] = "layers that share keys and values (E2B, E4B) are not supported";
    if (m->target) {
        if (integer(top, "backbone_hidden_size", 1, 65536, NAN, &m->config.backbone) ||
            refuse(top, "use_ordered_embeddings", head) ||
            refuse(text, "enable_moe_block", "a drafter with experts is not supported"))
            return -1;
    } else if (!m->unified && refuse(top, "audio_config", "audio towers are not supported"))
        return -1;
    if (one_of(text, "hidden_activation", "gelu_pytorch_tanh", NULL) ||
        one_of(text, "use_bidirectional_attention", "vision", NULL) ||
        boolean(text, "enable_moe_block", moe) ||
        refuse(text, "hidden_size_per_layer_input", embeddings) ||
        (!m->target && refuse(text, "num_kv_shared_layers", shared)) ||
        refuse(text, "rope_scaling", "only rope_parameters scale positions here"))
        return -1;
    return refuse(text, "attention_bias", "biases are not supported");
}

/* Reads the sizes and constants of the text model.  *eps: before rounding to float. */
static int parse_sizes(Model *m, const Fields *text, double *eps) {
    Config *c = &m->config;
    double softcap;
    if (integer(text, "num_hidden_layers", 1, 1000, NAN, &c->n_layers) ||
        integer(text, "hidden_size", 1, 65536, NAN, &c->hidden) ||
        integer(text, "vocab_size", 1, 1 << 24, NAN, &c->vocab) ||
        integer(text, "pad_token_id", 0, c->vocab - 1, 0, &m->pad) ||
        integer(text, "num_attention_heads", 1, 4096, NAN, &c->n_heads) ||
        integer(text, "intermediate_size", 1, 1 << 20, NAN, &c->intermediate) ||
        integer(text, "sliding_window", 1, 1 << 20, NAN, &c->window) ||
        integer(text, "max_position_embeddings", 1, 1 << 24, 131072, &c->max_context) ||
        number(text, "rms_norm_eps", 1e-12, 1, 1e-6, eps) ||
        number(text, "final_logit_softcapping", 0, 1e6, 0, &softcap))
        return -1;
    c->eps = (float)*eps;
    c->softcap = (float)softcap;
    return 0;
}

static int parse_experts(Config *c, const Fields *text) {
    return integer(text, "num_experts", 1, 4096, NAN, &c->n_experts) ||
           integer(text, "top_k_experts", 1, c->n_experts, NAN, &c->top_k) ||
           integer(text, "moe_intermediate_size", 1, 1 << 20, NAN, &c->expert_size) ? -1 : 0;
}

/* Reads the shapes and the RoPE frequencies of the layers. */
static int parse_layers(Model *m, const Fields *text) {
    int head_dims[2] = {0};
    m->w.layer = xcalloc(m->config.n_layers, sizeof *m->w.layer);
    if (layer_shapes(m, text, head_dims)) return -1;
    if (head_dims[0] && rope(text, "sliding_attention", head_dims[0], 1e4, &m->inv_freq[0]))
        return -1;
    if (head_dims[1] && rope(text, "full_attention", head_dims[1], 1e6, &m->inv_freq[1]))
        return -1;
    for (int i = 0; i < m->config.n_layers; i++)
        m->w.layer[i].inv_freq = m->inv_freq[m->w.layer[i].global];
    return 0;
}

/* ---- how weights and cache are quantised ---- */

const char *const kind_name[N_KINDS] = {
    "F32", "BF16", "F16", "NVFP4 (modelopt)", "NVFP4 (compressed-tensors)", "FP8 (rows)",
    "FP8 (blocks of 128)", "FP8 (one scale)", "INT4 (groups of 32)", "INT4 (groups of 64)",
    "INT4 (groups of 128)", "INT4 (groups of 32, zero points)", "INT4 (groups of 64, zero points)",
    "INT4 (groups of 128, zero points)", "INT8 (groups of 32)", "INT8 (groups of 64)",
    "INT8 (groups of 128)",
};

int integer_kind(int bits, int group, int has_zeros) {
    if ((bits != 4 && bits != 8) || (bits == 8 && has_zeros)) return -1;
    if (group != 32 && group != 64 && group != 128) return -1;
    int first = bits == 8 ? K_INT + 6 : K_INT;
    return first + group / 64 + (has_zeros ? 3 : 0);
}

#define ANY_FP8 (1u << K_CHANNEL | 1u << K_BLOCK | 1u << K_TENSOR)

/* Whether a field is that word, in small letters or capitals, as compressed-tensors takes it. */
static int is_word(const cJSON *o, const char *name, const char *word) {
    const char *is = json_string(o, name);
    return is && !strcasecmp(is, word);
}

/* Whether v is [128, 128]. */
static int is_128_twice(const cJSON *v) {
    const cJSON *a = cJSON_GetArrayItem(v, 0), *b = cJSON_GetArrayItem(v, 1);
    return cJSON_GetArraySize(v) == 2 && cJSON_GetNumberValue(a) == 128 &&
           cJSON_GetNumberValue(b) == 128;
}

/* Whether a group of integers says that these have zero points. */
static int has_zeros(const cJSON *group) {
    return cJSON_IsFalse(json_field(json_field(group, "weights"), "symmetric"));
}

/* A group of integers.  `symmetric` must be true or false, since it decides what a matrix without
 * zero points is.  Returns 0, or -1 with the error, which begins with `where`. */
static int note_integers(Model *m, const cJSON *group, int bits, const char *where, Error *err) {
    const cJSON *weights = json_field(group, "weights");
    const cJSON *says = json_field(weights, "symmetric"), *size = json_field(weights, "group_size");
    if (says && !cJSON_IsBool(says))
        return fail(err, "%s.weights.symmetric must be true or false", where);
    if (has_zeros(group) && bits == 8)
        return fail(err, "%s.weights.symmetric: zero points of 8 bits are not supported", where);
    int kind = cJSON_IsNumber(size) ? integer_kind(bits, size->valueint, has_zeros(group)) : -1;
    if (kind >= 0) m->listed_kinds |= 1u << kind;
    m->has_integer_groups = 1;
    return 0;
}

/* A group of FP8 or NVFP4.  Scales [2, 2] may be of blocks of 96 or of 128, so the configuration
 * must say 128.  Returns 0, or -1 with the error, which begins with `where`. */
static int note_floats(Model *m, const cJSON *weights, int bits, const char *where, Error *err) {
    const cJSON *size = json_field(weights, "group_size");
    int is_16 = cJSON_IsNumber(size) && size->valuedouble == 16;
    if (bits == 4 && size && !cJSON_IsNull(size) && !is_16)
        return fail(err, "%s.weights.group_size must be 16", where);
    m->has_float_groups = 1;
    if (bits == 4) m->listed_kinds |= 1u << K_MODELOPT | 1u << K_COMPRESSED;
    if (bits != 8) return 0;
    int blocks = is_word(weights, "strategy", "block");
    if (blocks && !is_128_twice(json_field(weights, "block_structure")))
        return fail(err, "%s.weights.block_structure must be [128, 128]", where);
    if (blocks) m->listed_kinds |= 1u << K_BLOCK;
    else if (is_word(weights, "strategy", "channel")) m->listed_kinds |= 1u << K_CHANNEL;
    else if (is_word(weights, "strategy", "tensor")) m->listed_kinds |= 1u << K_TENSOR;
    else m->listed_kinds |= ANY_FP8;
    return 0;
}

/* Notes in m->listed_kinds which Kinds of weights a group of config_groups has.  What the group
 * leaves open is 8 bits, integers, symmetric (compressed-tensors, quant_args.py).  modelopt writes
 * a group without `weights` for an algorithm that its converter does not know
 * (convert_hf_config.py): it may be of any floats.  Returns 0, or -1 with the error. */
static int note_group(Model *m, const Fields *quant, const cJSON *group) {
    const cJSON *weights = json_field(group, "weights"), *bits = json_field(weights, "num_bits");
    const cJSON *order = json_field(weights, "actorder"), *type = json_field(weights, "type");
    int n_bits = cJSON_IsNumber(bits) ? bits->valueint : 8, bad = 0;
    Buf where = {0};
    buf_printf(&where, "%s: %sconfig_groups.%s", quant->file, quant->where, group->string);
    if (!cJSON_IsObject(group))
        bad = fail(quant->err, "%s is not an object", where.data);
    else if (cJSON_IsTrue(order) || is_word(weights, "actorder", "group") ||
             is_word(weights, "actorder", "dynamic"))
        bad = fail(quant->err, "%s.weights.actorder: integers in activation order are not "
                   "supported", where.data);
    else if (weights && (!type || is_word(weights, "type", "int")))
        bad = note_integers(m, group, n_bits, where.data, quant->err);
    else if (is_word(weights, "type", "float"))
        bad = note_floats(m, weights, n_bits, where.data, quant->err);
    else if (weights)
        bad = fail(quant->err, "%s.weights.type is \"%s\", must be \"int\" or \"float\"",
                   where.data, cJSON_IsString(type) ? type->valuestring : "?");
    else m->listed_kinds |= 1u << K_MODELOPT | 1u << K_COMPRESSED | ANY_FP8;
    buf_free(&where);
    return bad;
}

/* Notes the targets of a group.  Returns 0, or -1 with the error. */
static int note_targets(Model *m, const Fields *quant, const cJSON *group) {
    const cJSON *list = json_field(group, "targets"), *v;
    cJSON_ArrayForEach(v, list) {
        const char *text = cJSON_GetStringValue(v);
        if (!text) continue;
        GroupTarget *t = xrealloc(m->group_target, m->n_group_targets + 1, sizeof *t);
        m->group_target = t;
        t += m->n_group_targets++;
        *t = (GroupTarget){.text = xstrdup(text), .has_zeros = has_zeros(group)};
        if (!begins(text, "re:")) continue;
        Buf pattern = {0};
        Error why;
        buf_printf(&pattern, "^(?:%s)", text + 3);      /* Python's re.match begins at the start */
        t->set = strings_of_pattern(pattern.data, &why);
        buf_free(&pattern);
        if (!t->set)
            return fail(quant->err, "%s: %sconfig_groups.%s.targets: \"%s\": %s", quant->file,
                        quant->where, group->string, text, why.text);
    }
    return 0;
}

int targeted_zeros(const Model *m, const char *module) {
    const GroupTarget *best = NULL;
    int best_rank = 3;
    for (int i = 0; i < m->n_group_targets; i++) {
        const GroupTarget *t = &m->group_target[i];
        int rank = 3;
        if (!strcmp(t->text, module)) rank = 0;
        else if (t->set && strings_hold(t->set, module, strlen(module))) rank = 1;
        else if (!strcmp(t->text, "Linear")) rank = 2;
        int is_first = rank < best_rank || (best && strcmp(t->text, best->text) <= 0);
        if (rank == 3 || rank > best_rank || !is_first) continue;
        best = t;
        best_rank = rank;
    }
    return best ? best->has_zeros : -1;
}

int check_kind(const Model *m, const Tensor *t, int kind, Error *err) {
    static const char *const file[2] = {"config.json", "hf_quant_config.json"};
    if (kind < K_MODELOPT) return 0;
    int has_groups = m->has_integer_groups || m->has_float_groups;
    if (has_groups && !(m->listed_kinds >> kind & 1))
        return fail(err, "%s: tensor %s: it is %s, which no group of "
                    "quantization_config.config_groups in config.json is", t->file, t->name,
                    kind_name[kind]);
    const char *word = kind >= K_INT ? "INT" : "FP8";
    if (kind <= K_COMPRESSED) word = "NVFP4";
    for (int i = 0; i < 2; i++) {
        const char *algo = m->quant_algo[i];
        if (algo && !strcasestr(algo, word) && strcasecmp(algo, "MIXED_PRECISION"))
            return fail(err, "%s: tensor %s: it is %s, but quant_algo in %s is \"%s\"", t->file,
                        t->name, kind_name[kind], file[i], algo);
    }
    return 0;
}

/* Finds quantization_config where transformers (quantizers/auto.py) and, behind it, vLLM look for
 * it: at the top, in text_config, under its older name compression_config.  quant->json becomes
 * NULL where there is none. */
static int find_quantization(const Fields *top, const Fields *text, Fields *quant) {
    const struct { const Fields *in; const char *name, *where; } place[] = {
        {top, "quantization_config", "quantization_config."},
        {text, "quantization_config", "text_config.quantization_config."},
        {top, "compression_config", "compression_config."},
    };
    for (int i = 0; i < 3; i++) {
        if (object(place[i].in, place[i].name, place[i].where, quant)) return -1;
        if (quant->json && quant->json->child) break;
    }
    return 0;
}

/* Reads what quantization_config says of the cache. */
static int parse_cache_scheme(Model *m, const Fields *quant) {
    char where[80];
    Fields kv;
    int bits, dynamic;
    snprintf(where, sizeof where, "%skv_cache_scheme.", quant->where);
    if (object(quant, "kv_cache_scheme", where, &kv)) return -1;
    if (!kv.json) return 0;
    if (integer(&kv, "num_bits", 8, 8, 8, &bits) || one_of(&kv, "strategy", "tensor", NULL) ||
        boolean(&kv, "dynamic", &dynamic))
        return -1;
    if (dynamic)
        return fail(kv.err, "%s: %sdynamic: scales of the cache that are made while it runs are "
                    "not supported", kv.file, kv.where);
    if (!is_word(kv.json, "type", "float"))
        return fail(kv.err, "%s: %stype must be \"float\": a cache of integers is not supported",
                    kv.file, kv.where);
    m->fp8_kv = 1;
    m->has_cache_scheme = is_word(quant->json, "quant_method", "compressed-tensors");
    return 0;
}

/* Reads quant_algo, modelopt's word for the format of the weights, of config.json (i = 0) or
 * hf_quant_config.json (i = 1): NVFP4, W4A16_NVFP4, FP8, FP8_PB_WO, MIXED_PRECISION …  Groups of
 * NVFP4 have 16 columns. */
static int parse_algo(Model *m, const Fields *f, int i) {
    const char *algo = NULL;
    int size;
    if (string(f, "quant_algo", &algo)) return -1;
    if (!algo) return 0;
    m->quant_algo[i] = xstrdup(algo);
    return strcasestr(algo, "NVFP4") && integer(f, "group_size", 16, 16, 16, &size) ? -1 : 0;
}

/* Reads quantization_config: the type of the cache, and what would make the weights other numbers
 * than their tensors say.  Weights tell their layout themselves, see bind_weight. */
static int parse_quantization(Model *m, const Fields *top, const Fields *text) {
    Fields quant, transform, sparse;
    const cJSON *groups, *turns, *g;
    Error why;
    if (find_quantization(top, text, &quant)) return -1;
    quant.err = &why;
    if (one_of(&quant, "quant_method", "modelopt", "compressed-tensors"))
        return fail(top->err, "%s" INSTEAD, why.text);
    quant.err = top->err;
    if (parse_cache_scheme(m, &quant) || parse_algo(m, &quant, 0) ||
        object(&quant, "sparsity_config", "quantization_config.sparsity_config.", &sparse) ||
        one_of(&sparse, "format", "dense", NULL) ||
        object(&quant, "transform_config", "quantization_config.transform_config.", &transform) ||
        typed(&transform, "config_groups", cJSON_Object, &turns) ||
        typed(&quant, "config_groups", cJSON_Object, &groups))
        return -1;
    if (turns && turns->child)
        return fail(top->err, "%s: %sconfig_groups: rotated weights are not supported",
                    transform.file, transform.where);
    cJSON_ArrayForEach(g, groups)
        if (note_group(m, &quant, g)) return -1;
    /* INT4 with and without zero points, in groups of the same size: the targets tell which. */
    unsigned ambiguous = m->listed_kinds & m->listed_kinds >> 3 & 7u << K_INT;
    cJSON_ArrayForEach(g, groups)
        if (ambiguous && note_targets(m, &quant, g)) return -1;
    return 0;
}

/* ---- the files ---- */

/* Reads config.json.  m->target is set for a drafter. */
static int parse_config(Model *m, const char *file, const cJSON *json, Error *err) {
    static const char *const media[] = {"image_token_id", "video_token_id", "audio_token_id"};
    Fields top = {file, json, "", err}, text, vision;
    Config *c = &m->config;
    double eps;
    int moe, shared, in_text_config = find_text(m, &top, &text);
    if (in_text_config < 0 || parse_features(m, &top, &text, &moe)) return -1;
    if (parse_sizes(m, &text, &eps)) return -1;
    for (int i = 0; i < 3; i++) {
        m->media[i] = -1;
        if (in_text_config && integer(&top, media[i], 0, c->vocab - 1, -1, &m->media[i])) return -1;
    }
    /* Without enable_moe_block the tensors decide, see check_experts. */
    m->moe_said = json_field(text.json, "enable_moe_block") != NULL;
    int may_have_experts = moe || (!m->moe_said && json_field(text.json, "num_experts"));
    if (may_have_experts && parse_experts(c, &text)) return -1;
    /* The flag of the whole model counts, not that of text_config (modeling_utils.py,
     * get_expanded_tied_weights_keys).  Without a flag the embeddings are tied. */
    if (boolean(&top, "tie_word_embeddings", &m->tied)) return -1;
    if (!json_field(json, "tie_word_embeddings")) m->tied = 1;
    /* A drafter has no cache of its own: all its layers read the target's. */
    if (m->target && integer(&text, "num_kv_shared_layers", c->n_layers, c->n_layers, NAN, &shared))
        return -1;
    if (parse_layers(m, &text)) return -1;
    if (object(&top, "vision_config", "vision_config.", &vision)) return -1;
    if (vision.json && !m->unified && parse_vision(m, &vision, eps)) return -1;
    if (m->target && fit_target(m, &top, &text)) return -1;
    return parse_quantization(m, &top, &text);
}

/* Reads one token id or a list of them, at most `most`, behind the *n that are in ids. */
static int token_ids(const Fields *f, const char *name, int vocab, int most, int *ids, int *n) {
    const cJSON *all = json_field(f->json, name);
    const cJSON *v = cJSON_IsArray(all) ? all->child : all;
    for (; v; v = cJSON_IsArray(all) ? v->next : NULL) {
        double id = cJSON_IsNumber(v) ? v->valuedouble : -1;
        if (*n == most)
            return fail(f->err, "%s: %s has more than %d entries", f->file, name, most);
        if (!(id >= 0 && id < vocab) || id != v->valueint)
            return fail(f->err, "%s: %s is no token id below %d, nor a list of such", f->file, name,
                        vocab);
        ids[(*n)++] = v->valueint;
    }
    return 0;
}

static int parse_eos(Model *m, const Fields *f) {
    GenerationConfig *g = &m->generation;
    return token_ids(f, "eos_token_id", m->config.vocab, MAX_EOS, g->eos, &g->n_eos);
}

void model_warn(Model *m, const char *text) {
    buf_printf(&m->warning, "%s%s", m->warning.len ? "; " : "", text);
}

/* Warns of fields by which transformers' generate would answer otherwise (GenerationConfig there),
 * and which have no effect here.  null, false and an empty list change nothing there, nor does 1 in
 * one_is_none and 0 in the others. */
static void warn_of_generation(Model *m, const cJSON *json) {
    static const char *const one_is_none[] = {
        "num_beams", "typical_p", "guidance_scale", "encoder_repetition_penalty", NULL,
    };
    static const char *const others[] = {
        "penalty_alpha", "top_h", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size", "bad_words_ids", "force_words_ids", "sequence_bias",
        "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
        "begin_suppress_tokens", "min_length", "min_new_tokens", "max_length", "max_new_tokens",
        "max_time", "stop_strings", "watermarking_config", NULL,
    };
    Buf names = {0}, line = {0};
    const cJSON *v;
    cJSON_ArrayForEach(v, json) {
        int none = is_in(v->string, one_is_none);
        if (!none && !is_in(v->string, others)) continue;
        if (cJSON_IsNumber(v) ? v->valuedouble == none : !cJSON_IsString(v) && !v->child) continue;
        buf_printf(&names, "%s%s", names.len ? ", " : "", v->string);
    }
    if (names.len) {
        buf_printf(&line, "fields of generation_config.json have no effect: %s", names.data);
        model_warn(m, line.data);
    }
    buf_free(&line);
    buf_free(&names);
}

/* Reads generation_config.json.  What the file leaves open is as in the file that Google publishes:
 * temperature 1, top-k 64, top-p 0.95, no min-p, no penalty.  A missing file leaves all open. */
static int load_generation(Model *m, const char *dir, Error *err) {
    Buf path = {0};
    GenerationConfig *g = &m->generation;
    double temperature, top_p, min_p, penalty;
    int sample;
    cJSON *json = load_json(dir, "generation_config.json", &path, 1, err);
    Fields f = {path.data, json, "", err};
    int bad = !json || parse_eos(m, &f) ||
              token_ids(&f, "suppress_tokens", m->config.vocab, MAX_SUPPRESSED, g->suppress,
                        &g->n_suppress) ||
              boolean(&f, "do_sample", &sample) ||
              number(&f, "temperature", 0, 1000, 1, &temperature) ||
              integer(&f, "top_k", 0, 1 << 24, 64, &g->top_k) ||
              number(&f, "top_p", 0, 1, 0.95, &top_p) ||
              number(&f, "min_p", 0, 1, 0, &min_p) ||
              number(&f, "repetition_penalty", 0.01, 100, 1, &penalty) ? -1 : 0;
    if (!bad) {
        int greedy = json_field(json, "do_sample") && !sample;
        g->temperature = greedy ? 0 : (float)temperature;
        g->top_p = (float)top_p;
        g->min_p = (float)min_p;
        g->repeat_penalty = (float)penalty;
        warn_of_generation(m, json);
    }
    cJSON_Delete(json);
    buf_free(&path);
    return bad;
}

/* Reads hf_quant_config.json, which may be missing: modelopt says there how the weights are
 * quantised, and whether the cache is FP8. */
static int load_quant(Model *m, const char *dir, Error *err) {
    Buf path = {0};
    const char *algo = NULL;
    cJSON *json = load_json(dir, "hf_quant_config.json", &path, 1, err);
    Fields f = {path.data, json, "", err};
    int bad = !json || object(&f, "quantization", "quantization.", &f) ||
              one_of(&f, "kv_cache_quant_algo", "FP8", NULL) ||
              string(&f, "kv_cache_quant_algo", &algo) || parse_algo(m, &f, 1) ? -1 : 0;
    int both_say = m->quant_algo[0] && m->quant_algo[1];
    if (!bad && both_say && m->fp8_kv == !algo)
        model_warn(m, "of config.json and hf_quant_config.json one alone announces an FP8 cache: "
                   "it is FP8, unless --kv says otherwise");
    if (algo) m->fp8_kv = 1;
    cJSON_Delete(json);
    buf_free(&path);
    return bad;
}

int load_configs(Model *m, const char *dir, Error *err) {
    Buf path = {0};
    cJSON *json = load_json(dir, "config.json", &path, 0, err);
    Fields f = {path.data, json, "", err};
    int bad = !json || parse_config(m, path.data, json, err) || load_generation(m, dir, err);
    if (!bad && !m->generation.n_eos) bad = parse_eos(m, &f);
    if (!bad) bad = load_quant(m, dir, err);
    cJSON_Delete(json);
    buf_free(&path);
    return bad ? -1 : 0;
}

const char *const image_token_words[] = {"70", "140", "280", "560", "1120", NULL};

int model_image_tokens(const char *dir, Error *err) {
    Buf path = {0};
    char word[16];
    cJSON *config = load_json(dir, "config.json", &path, 1, NULL);
    Fields f = {path.data, config, "", err};
    int n = 0, bad = integer(&f, "vision_soft_tokens_per_image", 0, 1 << 20, 280, &n);
    snprintf(word, sizeof word, "%d", n);
    if (!bad && !is_in(word, image_token_words))
        bad = fail(err, "%s: vision_soft_tokens_per_image is %d, which --image-tokens would not "
                   "take", path.data, n);
    cJSON_Delete(config);
    buf_free(&path);
    return bad ? -1 : n;
}
