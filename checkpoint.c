/* checkpoint.c - opens a checkpoint: reads config.json and generation_config.json, finds tensors by
 * name and binds them to Layers and the Tower.  Defines the functions of a Model that model.h and
 * checkpoint.h declare, but for those of adapters (lora.c) and the forward pass (model.c).  The
 * reference is transformers 5.23.0, models/gemma4/configuration_gemma4.py; the layouts of quantised
 * weights are modelopt's and compressed-tensors'. */
#include "checkpoint.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "directory.h"
#include "fields.h"
#include "json.h"

static int begins(const char *s, const char *start) { return !strncmp(s, start, strlen(start)); }

/* ---- config.json ---- */

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
        (!m->target && refuse(text, "num_kv_shared_layers", shared)))
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

/* For `info`: the layouts of weights (Kind) are noted by their part of the model (Group).  From
 * K_INT on the bits are groups of 32, 64 and 128 of INT4, of INT4 with zero points, of INT8. */
enum Group { ATTENTION, MLP, EXPERTS, EMBEDDING, VISION, ROUTER };
enum Kind { K_F32, K_BF16, K_F16, K_MODELOPT, K_COMPRESSED, K_CHANNEL, K_BLOCK, K_TENSOR, K_INT };
#define N_KINDS (K_INT + 9)
static const char *const kind_name[N_KINDS] = {
    "F32", "BF16", "F16", "NVFP4 (modelopt)", "NVFP4 (compressed-tensors)", "FP8 (rows)",
    "FP8 (blocks of 128)", "FP8 (one scale)", "INT4 (groups of 32)", "INT4 (groups of 64)",
    "INT4 (groups of 128)", "INT4 (groups of 32, zero points)", "INT4 (groups of 64, zero points)",
    "INT4 (groups of 128, zero points)", "INT8 (groups of 32)", "INT8 (groups of 64)",
    "INT8 (groups of 128)",
};

/* The Kind of a matrix of integers of so many bits in groups of so many columns, or -1. */
static int integer_kind(int bits, int group, int has_zeros) {
    if ((bits != 4 && bits != 8) || (bits == 8 && has_zeros)) return -1;
    if (group != 32 && group != 64 && group != 128) return -1;
    int first = bits == 8 ? K_INT + 6 : K_INT;
    return first + group / 64 + (has_zeros ? 3 : 0);
}

/* Whether a field is that word, in small letters or capitals, as compressed-tensors takes it. */
static int is_word(const cJSON *o, const char *name, const char *word) {
    const char *is = cJSON_GetStringValue(json_field(o, name));
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
    if (bits == 4 && cJSON_IsNumber(size) && size->valueint != 16)
        return fail(err, "%s.weights.group_size is %g, must be 16", where, size->valuedouble);
    m->has_float_groups = 1;
    if (bits != 8) return 0;
    m->has_fp8_groups = 1;
    int blocks = is_word(weights, "strategy", "block");
    if (blocks && !is_128_twice(json_field(weights, "block_structure")))
        return fail(err, "%s.weights.block_structure must be [128, 128]", where);
    if (blocks) m->listed_kinds |= 1u << K_BLOCK;
    else if (is_word(weights, "strategy", "channel")) m->listed_kinds |= 1u << K_CHANNEL;
    else if (is_word(weights, "strategy", "tensor")) m->listed_kinds |= 1u << K_TENSOR;
    else m->listed_kinds |= 1u << K_BLOCK | 1u << K_CHANNEL | 1u << K_TENSOR;
    return 0;
}

/* Notes in m->listed_kinds which Kinds of weights a group of config_groups has.  What the group
 * leaves open is 8 bits, integers, symmetric (compressed-tensors, quant_args.py).  Returns 0, or
 * -1 with the error. */
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

/* Whether the group that counts for a module has zero points; -1: no group names it.  The rules are
 * compressed-tensors' (match_targets, match.py): a name goes before a pattern, and a pattern before
 * a class; of several patterns the first in the order of texts counts, and where a target stands in
 * several groups, the last of these. */
static int targeted_zeros(const Model *m, const char *module) {
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

/* Checks that the configuration, where it lists groups of such matrices, has this kind.  Packed
 * words are no integers where all groups are floats: FP4 can be packed in the same way. */
static int check_kind(const Model *m, const Tensor *t, int kind, Error *err) {
    int is_fp8 = kind >= K_CHANNEL && kind <= K_TENSOR, is_integer = kind >= K_INT;
    int is_listed = m->listed_kinds >> kind & 1;
    int lists_integers = m->has_integer_groups || m->has_float_groups;
    if (is_listed || !((is_fp8 && m->has_fp8_groups) || (is_integer && lists_integers))) return 0;
    return fail(err, "%s: tensor %s: it is %s, which no group of quantization_config.config_groups "
                "in config.json is", t->file, t->name, kind_name[kind]);
}

/* Behind a line that refuses the weights' format: what to take instead. */
#define INSTEAD "; hf download nvidia/Gemma-4-26B-A4B-NVFP4 gets one that is"

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
    if (parse_cache_scheme(m, &quant) ||
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

static int parse_suppressed(Model *m, const Fields *f) {
    GenerationConfig *g = &m->generation;
    return token_ids(f, "suppress_tokens", m->config.vocab, MAX_SUPPRESSED, g->suppress,
                     &g->n_suppress);
}

/* Reads generation_config.json.  What the file leaves open is as in the file that Google publishes:
 * temperature 1, top-k 64, top-p 0.95.  A missing file leaves everything open. */
static int load_generation(Model *m, const char *dir, Error *err) {
    Buf path = {0};
    GenerationConfig *g = &m->generation;
    double temperature, top_p;
    int sample;
    cJSON *json = load_json(dir, "generation_config.json", &path, 1, err);
    Fields f = {path.data, json, "", err};
    int bad = !json || parse_eos(m, &f) || parse_suppressed(m, &f) ||
              boolean(&f, "do_sample", &sample) ||
              number(&f, "temperature", 0, 1000, 1, &temperature) ||
              integer(&f, "top_k", 0, 1 << 24, 64, &g->top_k) ||
              number(&f, "top_p", 0, 1, 0.95, &top_p) ? -1 : 0;
    if (!bad) {
        int greedy = json_field(json, "do_sample") && !sample;
        g->temperature = greedy ? 0 : (float)temperature;
        g->top_p = (float)top_p;
    }
    cJSON_Delete(json);
    buf_free(&path);
    return bad;
}

/* Reads hf_quant_config.json, which may be missing: modelopt says there that the cache is FP8. */
static int load_quant(Model *m, const char *dir, Error *err) {
    Buf path = {0};
    const char *algo = NULL;
    cJSON *json = load_json(dir, "hf_quant_config.json", &path, 1, err);
    Fields f = {path.data, json, "", err};
    int bad = !json || object(&f, "quantization", "quantization.", &f) ||
              one_of(&f, "kv_cache_quant_algo", "FP8", NULL) ||
              string(&f, "kv_cache_quant_algo", &algo) ? -1 : 0;
    if (algo) m->fp8_kv = 1;
    cJSON_Delete(json);
    buf_free(&path);
    return bad;
}

/* Reads config.json, generation_config.json and hf_quant_config.json.  Where generation_config.json
 * names no eos_token_id, that of config.json counts. */
static int load_configs(Model *m, const char *dir, Error *err) {
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

static void put_shape(Buf *out, const int64_t *shape, int n_dims) {
    buf_puts(out, "[");
    for (int i = 0; i < n_dims; i++)
        buf_printf(out, "%s%lld", i ? ", " : "", (long long)shape[i]);
    buf_puts(out, "]");
}

/* The shape of t must be the first n_dims of [d0, d1, d2]. */
static int check_shape(const Binder *b, const Tensor *t, int n_dims, int64_t d0, int64_t d1,
                       int64_t d2) {
    int64_t want[3] = {d0, d1, d2};
    int same = t->n_dims == n_dims;
    Buf is = {0}, must = {0};
    for (int i = 0; i < n_dims && same; i++) same = t->shape[i] == want[i];
    if (same) return 0;
    put_shape(&is, t->shape, t->n_dims);
    put_shape(&must, want, n_dims);
    fail(b->err, "%s: tensor %s: shape is %s, must be %s", t->file, t->name, is.data, must.data);
    buf_free(&is);
    buf_free(&must);
    return -1;
}

static int check_dtype(const Binder *b, const Tensor *t, DType want) {
    if (t->dtype == want) return 0;
    return fail(b->err, "%s: tensor %s: dtype is %s, must be %s", t->file, t->name, t->called,
                dtype_name[want]);
}

/* Adds to model_warning. */
static void warn(Model *m, const char *text) {
    buf_printf(&m->warning, "%s%s", m->warning.len ? "; " : "", text);
}

/* The Kind of a tensor of ordinary numbers. */
static int plain_kind(DType t) {
    if (t == DT_F32) return K_F32;
    return t == DT_F16 ? K_F16 : K_BF16;
}

static int is_float(DType t) { return t == DT_F32 || t == DT_BF16 || t == DT_F16; }

/* A tensor of ordinary numbers: F32, BF16 or F16. */
static int check_float(const Binder *b, const Tensor *t) {
    if (is_float(t->dtype)) return 0;
    return fail(b->err, "%s: tensor %s: dtype is %s, must be BF16, F16 or F32", t->file, t->name,
                t->called);
}

/* Binds a vector [n], such as the weights of a norm.  It is copied to float32, in *out, which the
 * model owns: vectors are small, and in the file perhaps not aligned. */
static int bind_vector(const Binder *b, const char *suffix, int n, float **out) {
    const Tensor *t = leaf(b, suffix);
    if (!t) return missing(b, suffix);
    if (check_shape(b, t, 1, n, 0, 0) || check_float(b, t)) return -1;
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
    if (check_float(b, t) || (t->n_dims && check_shape(b, t, 1, 1, 0, 0))) return -1;
    *out = float_at(t->dtype, t->data, 0);
    if (isfinite(*out) && *out > 0) return 0;
    return fail(b->err, "%s: tensor %s: %g is no scale", t->file, t->name, *out);
}

/* Notes the layout of a weight of so many numbers. */
static void note_weight(const Binder *b, enum Group group, int kind, int64_t numbers) {
    Model *m = b->m;
    m->kinds[group] |= 1u << kind;
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
    if (check_shape(b, t, 2, w->rows, w->cols / 2, 0) || check_dtype(b, block, DT_F8_E4M3) ||
        check_shape(b, block, 2, w->rows, w->cols / 16, 0) || scalar(b, scale, &w->scale))
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
    if (check_shape(b, t, 2, w->rows, w->cols, 0) || check_float(b, scale)) return -1;
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
    if (t->dtype != DT_I64 && check_dtype(b, t, DT_I32)) return -1;
    if (check_shape(b, t, 1, 2, 0, 0)) return -1;
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
    if (check_shape(b, t, 2, w->rows, w->cols * w->bits / 32, 0) || check_float(b, scale))
        return -1;
    int64_t across = scale->n_dims == 2 ? scale->shape[1] : 0;
    int group = across > 0 && w->cols % across == 0 ? (int)(w->cols / across) : 0;
    if (scale->n_dims != 2) return check_shape(b, scale, 2, w->rows, w->cols / 32, 0);
    if (group != 32 && group != 64 && group != 128)
        return fail(b->err, "%s: tensor %s: %lld groups in %d columns, must be groups of 32, 64 or "
                    "128 columns", scale->file, scale->name, (long long)across, w->cols);
    if (check_shape(b, scale, 2, w->rows, across, 0)) return -1;
    if (!zero && w->bits == 4 && check_symmetric(b, group)) return -1;
    if (zero && w->bits == 8)
        return fail(b->err, "%s: tensor %s: zero points of 8 bits are not supported", zero->file,
                    zero->name);
    if (zero && (check_dtype(b, zero, DT_I32) ||
                 check_shape(b, zero, 2, n_blocks(w->rows, 8), across, 0)))
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
static int bind_weight(const Binder *b, enum Group group, int rows, int cols, Weight *w) {
    const Tensor *t = leaf(b, ".weight");
    int kind, packed = !t;
    if (packed) t = leaf(b, ".weight_packed");
    if (!t) return missing(b, ".weight");
    *w = (Weight){.dtype = t->dtype, .rows = rows, .cols = cols, .data = t->data, .scale = 1};
    if (t->dtype == DT_U8) kind = bind_nvfp4(b, t, w);
    else if (t->dtype == DT_I32 && packed) kind = bind_integers(b, t, w);
    else if (t->dtype == DT_F8_E4M3 && !packed) kind = bind_fp8(b, t, w);
    else if (check_float(b, t) || check_shape(b, t, 2, rows, cols, 0)) kind = -1;
    else kind = plain_kind(t->dtype);
    if (kind < 0 || check_kind(b->m, t, kind, b->err)) return -1;
    note_weight(b, group, kind, (int64_t)rows * cols);
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
    if (check_float(b, gate_up) || check_shape(b, gate_up, 3, n, 2 * size, hidden) ||
        check_dtype(b, down, gate_up->dtype) || check_shape(b, down, 3, n, hidden, size))
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
    struct { const char *name; int rows, cols; Weight *w; enum Group group; } matrix[] = {
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
        if (bind_weight(b, matrix[k].group, matrix[k].rows, matrix[k].cols, matrix[k].w)) return -1;
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
    static const char name[] = "model.vision_tower.";
    int n;
    const Tensor *t = safetensors_all(m->st, &n);
    for (int i = 0; i < n; i++) {
        if (!strncmp(t[i].name, name, sizeof name - 1)) return "model.";
        if (!strncmp(t[i].name, name + 6, sizeof name - 7)) return "";
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
    if (check_float(b, table) || check_shape(b, table, 3, 2, v->n_positions, v->hidden)) return -1;
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
        warn(m, "config.json announces scales of the FP8 cache, but no layer has "
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
    if (safetensors_warning(m->st)) warn(m, safetensors_warning(m->st));
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

/* The same with its adapters. */
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
        warn(m, "the LoRA adapter beside the weights counts only where --lora names its directory");
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
    for (int g = 0; g < 4; g++)
        for (int k = 0; k < N_KINDS; k++) {
            if (!(m->kinds[g] & 1u << k)) continue;
            char *layout = m->layout[g];
            size_t n = strlen(layout);
            snprintf(layout + n, sizeof m->layout[g] - n, "%s%s", n ? " + " : "", kind_name[k]);
        }
    return m;
}

/* What the threads of model_check share. */
typedef struct {
    const Tensor *t;                    /* [n] */
    int n;
    atomic_int next;                    /* the tensor that the next thread looks at; -1: `beside` */
    atomic_int bad;                     /* the first tensor with a bad scale; n: there is none */
    void (*beside)(void *);
    void *arg;
} Check;

/* Whether one of the E4M3 of t is a NaN, 0x7f or 0xff (there are no infinities).  Adding 1 to the
 * low 7 bits of a byte carries into its top bit for these two only. */
static int has_nan(const Tensor *t) {
    uint64_t any = 0, eight;
    size_t at = 0;
    for (; at + 8 <= t->n_bytes; at += 8) {
        memcpy(&eight, t->data + at, 8);
        any |= (eight & 0x7f7f7f7f7f7f7f7f) + 0x0101010101010101;
    }
    for (; at < t->n_bytes; at++) any |= (t->data[at] & 0x7fu) + 1;
    return (any & 0x8080808080808080) != 0;
}

/* Whether one of the numbers of t, which are no E4M3, is negative or not finite. */
static int has_no_scale(const Tensor *t) {
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
    return t->dtype == DT_F8_E4M3 ? has_nan(t) : has_no_scale(t);
}

/* Calls `beside`, and looks through the scales of quantised matrices. */
static void *check_scales(void *arg) {
    Check *c = arg;
    for (int i; (i = atomic_fetch_add(&c->next, 1)) < c->n;) {
        int bad = atomic_load(&c->bad);
        if (i < 0) c->beside(c->arg);
        else if (i < bad && has_bad_scale(&c->t[i]))
            while (i < bad && !atomic_compare_exchange_weak(&c->bad, &bad, i))
                ;
    }
    return NULL;
}

int model_check(const Model *m, void (*beside)(void *), void *arg, Error *err) {
    enum { MOST = 4 };                  /* so many threads read as fast as most memories
                                         * can; to tune, time the start of the program with
                                         * the files in the cache */
    Check c = {.next = beside ? -1 : 0, .beside = beside, .arg = arg};
    c.t = safetensors_all(m->st, &c.n);
    c.bad = c.n;
    in_threads(n_cpus() < MOST ? n_cpus() : MOST, check_scales, &c);
    if (c.bad == c.n) return 0;
    const Tensor *bad = &c.t[c.bad];
    const char *what = bad->dtype == DT_F8_E4M3 ? "NaN" : "NaN, infinite or negative";
    return fail(err, "%s: tensor %s: a scale is %s", bad->file, bad->name, what);
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

const char *model_warning(const Model *m) { return m->warning.data; }

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
