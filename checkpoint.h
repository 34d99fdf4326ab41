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
    /* What the config_groups of config.json are: some of integers, of FP8, of FP8 or FP4; and the
     * layouts of their weights, bits of enum Kind (checkpoint.c). */
    int has_integer_groups, has_fp8_groups, has_float_groups;
    unsigned listed_kinds;
    GroupTarget *group_target;          /* [n_group_targets]; none where listed_kinds tells whether
                                         * a matrix has zero points */
    int n_group_targets;
    Buf warning;                        /* see model_warning */
    int standardize;                    /* 1: the tower's output is standardized */
    int media[3];                       /* ids of <|image|>, <|video|>, <|audio|>; -1: none */
    int pad;                            /* id of <pad> */
    unsigned kinds[6];                  /* by enum Part: its weights' layouts, bits of enum Kind */
    char layout[4][160];                /* by enum Part: the same in words, for `info` */
    int64_t parameters;                 /* numbers of all weights */
    Lora *lora;                         /* [n_loras] */
    int n_loras;
    Buf lora_names;                     /* see model_adapters */
};

/* The last sliding (global = 0) or global (1) layer, whose cache a drafter reads; NULL: none. */
const Layer *last_layer(const Model *m, int global);

/* Closes all adapters of the model (lora.c). */
void adapters_close(Model *m);

#endif
