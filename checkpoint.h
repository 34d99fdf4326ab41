/* checkpoint.h - the inside of a Model, for the forward pass, sessions and caches only; all others
 * see model.h. */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "model.h"
#include "stringset.h"

/* A LoRA adapter that was added to a model (lora.c). */
typedef struct {
    AdapterInfo info;
    SafeTensors *st;                    /* its mapped file, into which `part` points */
    Adapter *part;                      /* [info.n] */
    uint64_t hash;                      /* of what it adds: names, sizes, some numbers, scales */
} Lora;

/* A target of a group of quantization_config.config_groups. */
typedef struct {
    char *text;                         /* a module's name, "re:PATTERN" or "Linear" */
    Strings *set;                       /* the names that begin with PATTERN; else NULL */
    int has_zeros;                      /* 1: the group's integers have zero points */
} GroupTarget;

struct Model {
    Config config;
    GenerationConfig generation;
    const Model *target;                /* of a drafter, which must be closed first; else NULL */
    SafeTensors *st;                    /* the mapped files, into which w points */
    Weights w;
    float *inv_freq[2];                 /* RoPE frequencies [head_dim / 2], sliding and global */
    const char *prefix;                 /* of the names of tensors: "model.language_model." … */
    int moe_said;                       /* 1: config.json has enable_moe_block */
    int tied;                           /* 1: config.json ties the head to the embedding */
    int k_eq_v;                         /* 1: the values of global layers are their keys */
    int fp8_kv;                         /* 1: the checkpoint announces an FP8 cache */
    int unified;                        /* 1: gemma4_unified, of which only the text is run */
    int has_cache_scheme;               /* 1: compressed-tensors announces that cache, and scales of
                                         * it in every layer */
    int has_zeros;                      /* 1: some matrix has zero points */
    /* What the config_groups of config.json are: some of integers, of FP8 or FP4; and the layouts
     * of their weights, bits of enum Kind. */
    int has_integer_groups, has_float_groups;
    unsigned listed_kinds;
    char *quant_algo[2];                /* modelopt's word for the weights' format, in config.json
                                         * and in hf_quant_config.json; NULL: none */
    GroupTarget *group_target;          /* [n_group_targets]; none where listed_kinds tells whether
                                         * a matrix has zero points */
    int n_group_targets;
    Buf warning;                        /* see model_warning */
    int standardize;                    /* 1: the tower's output is standardized */
    int media[3];                       /* ids of <|image|>, <|video|>, <|audio|>; -1: none */
    int pad;                            /* id of <pad> */
    unsigned kinds[6];                  /* by enum Section: its weights' layouts, bits of Kind */
    char layout[4][160];                /* by enum Section: the same in words, for `info` */
    int64_t parameters;                 /* numbers of all weights */
    Lora *lora;                         /* [n_loras] */
    int n_loras;
    Buf lora_names;                     /* see model_adapters */
};

/* The last sliding (global = 0) or global (1) layer, whose cache a drafter reads; NULL: none. */
const Layer *last_layer(const Model *m, int global);

/* ---- config.c ---- */

/* For `info`: the layouts of weights (Kind) are noted by their section of the model.  From K_INT on
 * the bits are groups of 32, 64 and 128 columns of INT4, of INT4 with zero points, of INT8. */
enum Section { ATTENTION, MLP, EXPERTS, EMBEDDING, VISION, ROUTER };
enum Kind { K_F32, K_BF16, K_F16, K_MODELOPT, K_COMPRESSED, K_CHANNEL, K_BLOCK, K_TENSOR, K_INT };
#define N_KINDS (K_INT + 9)
extern const char *const kind_name[N_KINDS];

/* The Kind of a matrix of integers of so many bits in groups of so many columns, or -1. */
int integer_kind(int bits, int group, int has_zeros);

/* Behind a line that refuses the weights' format: what to take instead. */
#define INSTEAD "; hf download nvidia/Gemma-4-26B-A4B-NVFP4 gets one that is"

/* Reads config.json, generation_config.json and hf_quant_config.json into *m, whose target is set
 * for a drafter.  Where generation_config.json names no eos_token_id, that of config.json counts.
 * Returns 0, or -1 with err. */
int load_configs(Model *m, const char *dir, Error *err);

/* Adds to model_warning. */
void model_warn(Model *m, const char *text);

/* Whether the group of config_groups that counts for a module has zero points; -1: no group names
 * it.  The rules are compressed-tensors' (match_targets, match.py): a name goes before a pattern,
 * and a pattern before a class; of several patterns the first in the order of texts counts, and
 * where a target stands in several groups, the last of these. */
int targeted_zeros(const Model *m, const char *module);

/* Checks that the configuration, where it says which formats the weights have (config_groups,
 * quant_algo), has this Kind.  Otherwise the files may belong to two checkpoints.  Returns 0, or -1
 * with err. */
int check_kind(const Model *m, const Tensor *t, int kind, Error *err);

/* ---- lora.c ---- */

/* Closes all adapters of the model. */
void adapters_close(Model *m);

#endif
