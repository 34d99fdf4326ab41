/* lora.c - LoRA adapters: reads the directories that peft writes (adapter_config.json,
 * adapter_model.safetensors), and adds their matrices to the weights of a model.  model.h declares
 * the functions.
 *
 * A tensor that no part of the model can use, and a configuration that asks for a computation that
 * this program does not have, are refused.  With a part of an adapter left out, the model would
 * answer wrongly, and nothing would say so.  The reference is peft 0.20, tuners/lora (config.py,
 * layer.py, model.py). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "checkpoint.h"
#include "directory.h"
#include "fields.h"
#include "json.h"

#define MAX_RANK 4096                   /* a limit of memory; published adapters have up to 512 */

/* The fields of adapter_config.json that are used. */
typedef struct {
    Fields f;
    int rank;                           /* r */
    double alpha;                       /* lora_alpha */
    int rslora;                         /* 1: the scale is alpha / sqrt(r), else alpha / r */
    const cJSON *ranks, *alphas;        /* rank_pattern and alpha_pattern: the values of modules
                                         * that have others, or NULL */
    const cJSON *layers;                /* layers_to_transform, or NULL: all */
    const cJSON *targets;               /* target_modules, a list of names, or NULL */
    const cJSON *excluded;              /* exclude_modules, a list of names, or NULL */
    Strings *target_set, *excluded_set; /* the names that the two have as a regular expression;
                                         * owned, or NULL */
    const char *base;                   /* base_model_name_or_path, or NULL */
} LoraConfig;

/* ---- adapter_config.json ---- */

/* Fields that are read below, or that do not change what a trained adapter computes.  megatron_core
 * and qalora_group_size have values even in adapters that do not use them. */
static const char *const known_fields[] = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "target_parameters", "task_type", "use_rslora", NULL,
};

/* Whether the value says that a feature is not used. */
static int is_off(const cJSON *v) {
    if (cJSON_IsNumber(v)) return v->valuedouble == 0;
    if (cJSON_IsString(v)) return !*v->valuestring;
    if (cJSON_IsArray(v) || cJSON_IsObject(v)) return !v->child;
    return !cJSON_IsTrue(v);
}

/* Refuses every field that is not among known_fields, unless it is off. */
static int check_fields(const Fields *f) {
    for (const cJSON *v = f->json->child; v; v = v->next)
        if (!is_in(v->string, known_fields) && !is_off(v))
            return fail(f->err, "%s: %s is not supported", f->file, v->string);
    return 0;
}

/* Refuses initialisations (pissa, olora, corda, loftq …) that also change the weights of the model
 * before the training: such an adapter does not belong to the weights of the checkpoint. */
static int check_init(const Fields *f) {
    const cJSON *v = json_field(f->json, "init_lora_weights");
    if (!cJSON_IsString(v)) return 0;
    const char *is = v->valuestring;
    if (!strcasecmp(is, "gaussian") || !strcmp(is, "eva") || !strcmp(is, "orthogonal")) return 0;
    return fail(f->err, "%s: init_lora_weights \"%s\" is not supported: the adapter is of other "
                "weights than the checkpoint's", f->file, is);
}

/* layers_to_transform: a number, or a list of numbers. */
static int read_layers(LoraConfig *c) {
    const cJSON *v = c->layers = json_field(c->f.json, "layers_to_transform");
    int good = !v || cJSON_IsNumber(v) || cJSON_IsArray(v);
    for (const cJSON *i = cJSON_IsArray(v) ? v->child : NULL; i; i = i->next)
        good &= cJSON_IsNumber(i);
    if (good) return 0;
    return fail(c->f.err, "%s: layers_to_transform is no list of numbers", c->f.file);
}

/* The names that a regular expression matches as a whole; NULL where it is one that pattern.h does
 * not have. */
static Strings *names_of(const char *expression) {
    Buf pattern = {0};
    Error why;
    buf_printf(&pattern, "^(?:%s)$", expression);
    Strings *set = strings_of_pattern(pattern.data, &why);
    buf_free(&pattern);
    return set;
}

/* exclude_modules: a list of names, or a regular expression of whole names. */
static int read_excluded(LoraConfig *c) {
    const cJSON *v = json_field(c->f.json, "exclude_modules");
    if (!cJSON_IsString(v)) return typed(&c->f, "exclude_modules", cJSON_Array, &c->excluded);
    if (!*v->valuestring || (c->excluded_set = names_of(v->valuestring))) return 0;
    return fail(c->f.err, "%s: exclude_modules \"%s\": this expression is not supported",
                c->f.file, v->valuestring);
}

/* target_modules: likewise, or "all-linear".  Where the expression is not supported, the tensors
 * alone tell which modules the adapter changes, as where the field is missing. */
static int read_targets(LoraConfig *c) {
    const cJSON *v = json_field(c->f.json, "target_modules");
    if (!cJSON_IsString(v)) return typed(&c->f, "target_modules", cJSON_Array, &c->targets);
    if (strcasecmp(v->valuestring, "all-linear")) c->target_set = names_of(v->valuestring);
    return 0;
}

static int read_config(LoraConfig *c) {
    const Fields *f = &c->f;
    const char *type = NULL;
    if (string(f, "peft_type", &type)) return -1;
    if (!type) return fail(f->err, "%s: peft_type is missing", f->file);
    if (one_of(f, "peft_type", "LORA", NULL) || one_of(f, "bias", "none", NULL) ||
        integer(f, "r", 1, MAX_RANK, NAN, &c->rank) ||
        number(f, "lora_alpha", -1e6, 1e6, NAN, &c->alpha) ||
        boolean(f, "use_rslora", &c->rslora) ||
        typed(f, "rank_pattern", cJSON_Object, &c->ranks) ||
        typed(f, "alpha_pattern", cJSON_Object, &c->alphas) ||
        string(f, "base_model_name_or_path", &c->base) ||
        read_layers(c) || read_targets(c) || read_excluded(c) || check_init(f))
        return -1;
    return check_fields(f);
}

/* Whether a pattern of rank_pattern or alpha_pattern matches the module's whole name, or what
 * stands behind one of its dots.  peft takes a regular expression, (.*\.)?(PATTERN)$.  Here it may
 * have letters, digits, _ and -, a dot for any character, \. for a dot, and ^ in front.  Returns 1,
 * 0, or -1 with err for other expressions. */
static int matches(const Fields *f, const char *field, const char *pattern, const char *module) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    int is_whole = *pattern == '^';
    const char *first = pattern + is_whole, *p = first, *at = module + strlen(module);
    while (*p && (strchr(plain, *p) || (p[0] == '\\' && p[1] == '.'))) p++;
    if (*p || p == first)
        return fail(f->err, "%s: %s.%s: this expression is not supported", f->file, field, pattern);
    /* From the end: each character of the pattern takes one of the module's name. */
    while (p > first) {
        if (at == module) return 0;
        char c = *--p;
        int is_escaped = p > first && p[-1] == '\\';
        p -= is_escaped;
        --at;
        if (*at != c && (c != '.' || is_escaped)) return 0;
    }
    return at == module || (!is_whole && at[-1] == '.');
}

/* *out becomes the value of the first pattern that matches the module, and stays as it is where
 * none does.  Returns 0, or -1 with err. */
static int by_pattern(const Fields *f, const char *field, const cJSON *patterns, const char *module,
                      double *out) {
    for (const cJSON *v = patterns ? patterns->child : NULL; v; v = v->next) {
        int found = matches(f, field, v->string, module);
        if (found < 0) return -1;
        if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble))
            return fail(f->err, "%s: %s.%s is not a number", f->file, field, v->string);
        if (!found) continue;
        *out = v->valuedouble;
        return 0;
    }
    return 0;
}

/* ---- from a tensor's name to a weight ---- */

/* A matrix of a layer that can have adapters. */
typedef struct {
    const char *name;                   /* of its module, behind that of the layer or the expert */
    Weight *w;
    int input;                          /* matrices with the same number have the same input */
} Place;
enum { N_DENSE = 8, N_EXPERT = 3 };

static void dense_places(Layer *l, Place out[N_DENSE]) {
    const Place all[N_DENSE] = {
        {"self_attn.q_proj", &l->q, 0}, {"self_attn.k_proj", &l->k, 0},
        {"self_attn.v_proj", &l->v, 0}, {"self_attn.o_proj", &l->o, 1},
        {"mlp.gate_proj", &l->gate, 2}, {"mlp.up_proj", &l->up, 2},
        {"mlp.down_proj", &l->down, 3}, {"router.proj", &l->router, 4},
    };
    memcpy(out, all, sizeof all);
}

static void expert_places(Layer *l, int e, Place out[N_EXPERT]) {
    const Place all[N_EXPERT] = {
        {"gate_proj", &l->expert_gate[e], 0}, {"up_proj", &l->expert_up[e], 0},
        {"down_proj", &l->expert_down[e], 1},
    };
    memcpy(out, all, sizeof all);
}

/* The adapter whose tensors are being bound to the model. */
typedef struct {
    Model *m;
    const LoraConfig *c;
    Lora *lora;
    double scale;                       /* that of --lora DIR:SCALE */
    Error *err;
    uint8_t *used;                      /* [tensors] 1: something is bound to it */
} LoraBinder;

/* Skips `start` at the beginning of *s.  Returns 1 when it stands there. */
static int skip(const char **s, const char *start) {
    if (!begins(*s, start)) return 0;
    *s += strlen(start);
    return 1;
}

/* Skips a number below `limit` and a dot at the beginning of *s; *out becomes the number.  Returns
 * 1 when they stand there. */
static int skip_number(const char **s, int limit, int *out) {
    const char *p = *s;
    int n = 0;
    while (*p >= '0' && *p <= '9' && n < limit) n = 10 * n + (*p++ - '0');
    if (p == *s || *p != '.' || n >= limit) return 0;
    *out = n;
    *s = p + 1;
    return 1;
}

/* Skips what may stand before "layers.N." in the name of a module: the prefixes of find_prefix in
 * checkpoint.c. */
static void skip_prefix(const char **s) {
    static const char *const known[] = {"model.language_model.", "language_model.model.",
                                        "language_model.", "model."};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (skip(s, known[i])) return;
}

/* Finds the matrix of the module among the places of its layer, or of its expert.  *layer becomes
 * the number of the layer, and *found the index of the matrix in place.  Returns the number of
 * places, or 0 where the module is none of them. */
static int find_place(const Model *m, const char *module, Place place[N_DENSE], int *found,
                      int *layer) {
    const char *s = module;
    int e, n = N_DENSE;
    skip_prefix(&s);
    if (!skip(&s, "layers.") || !skip_number(&s, m->config.n_layers, layer)) return 0;
    Layer *l = &m->w.layer[*layer];
    if (skip(&s, "experts.") || skip(&s, "moe.experts.")) {
        if (!skip_number(&s, m->config.n_experts, &e)) return 0;
        expert_places(l, e, place);
        n = N_EXPERT;
    } else dense_places(l, place);
    for (int i = 0; i < n; i++) {
        if (strcmp(s, place[i].name)) continue;
        *found = i;
        return n;
    }
    return 0;
}

/* Returns why no part of the model can use a tensor. */
static const char *why_not(const char *name) {
    static const struct { const char *part, *why; } known[] = {
        {"vision_tower.", "adapters of the vision tower are not supported"},
        {"vision_embedder.", "adapters of the vision tower are not supported"},
        {"embed_vision.", "adapters of the vision tower are not supported"},
        {"audio", "adapters of an audio tower are not supported"},
        {"lora_embedding_", "adapters of the embedding are not supported"},
        {"embed_tokens.", "adapters of the embedding are not supported"},
        {"lm_head.", "adapters of the head are not supported"},
        {"lora_magnitude_vector", "DoRA is not supported"},
        {".modules_to_save.", "whole weights in an adapter are not supported"},
        {"experts.base_layer.", "adapters of fused experts are not supported: peft and unsloth "
                                "order the columns of lora_B differently, and no field says how"},
        {"experts.lora_", "adapters of fused experts are not supported: peft and unsloth order "
                          "the columns of lora_B differently, and no field says how"},
        {"experts.gate_up_proj.", "adapters of fused experts are not supported"},
        {"experts.down_proj.", "adapters of fused experts are not supported"},
        {".bias", "biases are not supported"},
        {".lora_B.", "its lora_A is missing"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(name, known[i].part)) return known[i].why;
    return "no part of this model uses it";
}

static int refuse_tensor(const LoraBinder *b, const Tensor *t, const char *why) {
    return fail(b->err, "%s: tensor %s: %s", t->file, t->name, why);
}

/* ---- A and B ---- */

/* *w becomes the matrix [rows][cols] of an adapter, A or B, which is in the tensor t.  Returns 0,
 * or -1 with err. */
static int bind_factor(const LoraBinder *b, const Tensor *t, int rows, int cols, Weight *w) {
    if (check_float(t, b->err) || check_shape(t, 2, rows, cols, 0, b->err)) return -1;
    for (int64_t i = 0; i < (int64_t)rows * cols; i++)
        if (!isfinite(float_at(t->dtype, t->data, i)))
            return fail(b->err, "%s: tensor %s: a number of it is NaN or infinite", t->file,
                        t->name);
    *w = (Weight){.dtype = t->dtype, .rows = rows, .cols = cols, .data = t->data, .scale = 1};
    return 0;
}

/* Returns the tensor lora_B that belongs to the lora_A `a`, whose name has this ending; NULL with
 * err. */
static const Tensor *partner(const LoraBinder *b, const Tensor *a, const char *ending) {
    Buf name = {0};
    buf_add(&name, a->name, strlen(a->name) - strlen(ending));
    buf_printf(&name, ".lora_B%s", ending + strlen(".lora_A"));
    const Tensor *t = safetensors_find(b->lora->st, name.data);
    if (!t) fail(b->err, "%s: tensor %s is missing", a->file, name.data);
    buf_free(&name);
    return t;
}

/* Whether a module is in a list of names: as a whole, or what stands behind one of its dots. */
static int is_listed(const cJSON *list, const char *module) {
    const cJSON *v;
    cJSON_ArrayForEach(v, list) {
        const char *name = cJSON_IsString(v) ? v->valuestring : "";
        skip_prefix(&name);
        const char *end = has_ending(module, name) ? module + strlen(module) - strlen(name) : NULL;
        if (*name && end && (end == module || end[-1] == '.')) return 1;
    }
    return 0;
}

/* Refuses a module that the configuration leaves out although the file has tensors of it: peft
 * passes over them. */
static int check_chosen(const LoraBinder *b, const Tensor *t, const char *module, int layer) {
    const LoraConfig *c = b->c;
    const cJSON *layers = c->layers, *i = cJSON_IsArray(layers) ? layers->child : layers;
    int chosen = !i;
    for (; i; i = cJSON_IsArray(layers) ? i->next : NULL) chosen |= i->valuedouble == layer;
    if (!chosen)
        return refuse_tensor(b, t, "its layer is not in layers_to_transform of "
                             "adapter_config.json");
    size_t n = strlen(module);
    if ((c->targets && !is_listed(c->targets, module)) ||
        (c->target_set && !strings_hold(c->target_set, module, n)))
        return refuse_tensor(b, t, "its module is not in target_modules of adapter_config.json");
    if (is_listed(c->excluded, module) ||
        (c->excluded_set && strings_hold(c->excluded_set, module, n)))
        return refuse_tensor(b, t, "its module is in exclude_modules of adapter_config.json");
    return 0;
}

/* How many numbers of A x the adapters bound so far make of this input, for one token. */
static int width_of(const Place *place, int n, int input) {
    int width = 0;
    for (int i = 0; i < n; i++)
        for (const Adapter *l = place[i].w->adapter; l && place[i].input == input; l = l->next)
            width += l->a.rows;
    return width;
}

/* Reads the rank of a module's adapter, and the scale that B (A x) is multiplied with.  Returns 0,
 * or -1 with err. */
static int read_scale(const LoraBinder *b, const char *module, int *rank, float *scale) {
    const LoraConfig *c = b->c;
    double r = c->rank, alpha = c->alpha;
    if (by_pattern(&c->f, "rank_pattern", c->ranks, module, &r) ||
        by_pattern(&c->f, "alpha_pattern", c->alphas, module, &alpha))
        return -1;
    *rank = r >= 1 && r <= MAX_RANK ? (int)r : 0;
    if (!*rank || *rank != r)
        return fail(c->f.err, "%s: rank_pattern: %g is no rank", c->f.file, r);
    *scale = (float)(b->scale * alpha / (c->rslora ? sqrt(r) : r));
    return 0;
}

/* Binds the adapter of a module whose A and B are in the tensors `first` and `second`.  Returns 0,
 * or -1 with err. */
static int bind_module(const LoraBinder *b, const char *module, const Tensor *first,
                       const Tensor *second) {
    Lora *lora = b->lora;
    Adapter *l = &lora->part[lora->info.n];
    Place place[N_DENSE];
    int found = 0, layer = 0, rank, n = find_place(b->m, module, place, &found, &layer);
    if (!n) return refuse_tensor(b, first, why_not(first->name));
    Weight *w = place[found].w;
    if (!w->data) return refuse_tensor(b, first, "this layer has no such matrix");
    if (check_chosen(b, first, module, layer) || read_scale(b, module, &rank, &l->scale) ||
        bind_factor(b, first, rank, w->cols, &l->a) || bind_factor(b, second, w->rows, rank, &l->b))
        return -1;
    for (int i = 0; i < lora->info.n; i++)
        if (w->adapter == &lora->part[i])
            return refuse_tensor(b, first, "the adapter of this matrix is there under two names");
    l->at = width_of(place, n, place[found].input);
    l->next = w->adapter;
    w->adapter = l;
    lora->info.n++;
    if (rank > lora->info.rank) lora->info.rank = rank;
    if (l->at + rank > b->m->w.adapter_width) b->m->w.adapter_width = l->at + rank;
    return 0;
}

/* Binds t and its lora_B if t is a lora_A, and marks both as used.  Returns 0, or -1 with err. */
static int bind_tensor(const LoraBinder *b, const Tensor *t) {
    static const char *const endings[] = {".lora_A.weight", ".lora_A.default.weight"};
    const char *ending = NULL, *name = t->name;
    int n;
    (void)skip(&name, "base_model.model.");
    for (int i = 0; i < 2; i++)
        if (has_ending(name, endings[i])) ending = endings[i];
    if (!ending) return 0;
    const Tensor *all = safetensors_all(b->lora->st, &n), *second = partner(b, t, ending);
    if (!second) return -1;
    Buf module = {0};
    buf_add(&module, name, strlen(name) - strlen(ending));
    int bad = bind_module(b, module.data, t, second);
    buf_free(&module);
    b->used[t - all] = b->used[second - all] = 1;
    return bad;
}

/* Binds all tensors of the adapter.  Returns 0, or -1 with err where one cannot be bound. */
static int bind_tensors(LoraBinder *b) {
    int n, bad = 0;
    const Tensor *t = safetensors_all(b->lora->st, &n);
    b->used = xcalloc(n, 1);
    b->lora->part = xcalloc(n + 1, sizeof *b->lora->part);
    for (int i = 0; i < n && !bad; i++) bad = bind_tensor(b, &t[i]);
    for (int i = 0; i < n && !bad; i++)
        if (!b->used[i]) bad = refuse_tensor(b, &t[i], why_not(t[i].name));
    free(b->used);
    if (!bad && !b->lora->info.n)
        bad = fail(b->err, "%s: no tensors", safetensors_file(b->lora->st));
    return bad;
}

/* Returns a hash that tells this adapter from others, for saved caches: of the names and sizes of
 * its tensors, of 64 bytes in the middle of each, and of the scales. */
static uint64_t hash_of(const Lora *lora) {
    int n;
    const Tensor *t = safetensors_all(lora->st, &n);
    uint64_t hash = 0;
    for (int i = 0; i < n; i++) {
        size_t some = t[i].n_bytes < 64 ? t[i].n_bytes : 64;
        hash = hash_bytes(t[i].name, strlen(t[i].name), hash);
        hash = hash_bytes(&t[i].n_bytes, sizeof t[i].n_bytes, hash);
        hash = hash_bytes(t[i].data + (t[i].n_bytes - some) / 2, some, hash);
    }
    for (int i = 0; i < lora->info.n; i++)
        hash = hash_bytes(&lora->part[i].scale, sizeof(float), hash);
    return hash;
}

/* ---- the directory ---- */

/* Maps adapter_model.safetensors.  NULL with err, which says what to do where the directory has
 * peft's older format instead. */
static SafeTensors *open_file(const char *dir, Error *err) {
    Buf path = {0}, other = {0};
    SafeTensors *st = NULL;
    buf_printf(&path, "%s/adapter_model.safetensors", dir);
    buf_printf(&other, "%s/adapter_model.bin", dir);
    if (access(path.data, F_OK) && !access(other.data, F_OK))
        fail(err, "%s: is no safetensors: save the adapter with safe_serialization=True",
             other.data);
    else st = safetensors_open(path.data, err);
    buf_free(&path);
    buf_free(&other);
    return st;
}

int model_adapt(Model *m, const char *name, const char *dir, float scale, Error *err) {
    Buf path = {0};
    m->lora = xrealloc(m->lora, m->n_loras + 1, sizeof *m->lora);
    Lora *lora = &m->lora[m->n_loras++];
    *lora = (Lora){.info = {.name = xstrdup(name), .scale = scale}};
    cJSON *json = load_json(dir, "adapter_config.json", &path, 0, err);
    LoraConfig c = {.f = {path.data, json, "", err}};
    LoraBinder b = {.m = m, .c = &c, .lora = lora, .scale = scale, .err = err};
    int bad = !json || read_config(&c) || !(lora->st = open_file(dir, err)) || bind_tensors(&b);
    if (!bad) {
        if (c.base) lora->info.base = xstrdup(c.base);
        lora->hash = hash_of(lora);
        buf_printf(&m->lora_names, "%s%s", m->n_loras > 1 ? ", " : "", name);
    }
    strings_free(c.target_set);
    strings_free(c.excluded_set);
    cJSON_Delete(json);
    buf_free(&path);
    return bad ? -1 : 0;
}

const AdapterInfo *model_adapter(const Model *m, int i) { return &m->lora[i].info; }

const char *model_adapters(const Model *m) { return m->lora_names.data; }

void adapters_close(Model *m) {
    for (int i = 0; i < m->n_loras; i++) {
        free(m->lora[i].info.name);
        free(m->lora[i].info.base);
        free(m->lora[i].part);
        safetensors_close(m->lora[i].st);
    }
    free(m->lora);
    buf_free(&m->lora_names);
}
