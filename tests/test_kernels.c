/* test_kernels.c - every operation of cuda_ops and of cpu_ops against plain_ops, on random models.
 *
 * A case is a small model in memory: random matrices in the formats and at the alignments that
 * files have, random norms, negative ones too.  The devices go through the same steps, as forward
 * (model.c) would; then what ops.h lets one read is compared: the residual stream, the routes, the
 * logits and the caches.  A GPU may put work off until a later operation needs it, so there every
 * case runs three times: once reading after every layer, twice reading only at the end of a step.
 * These two must agree to the bit: the emulation runs threads and blocks in another order each
 * time, and a GPU never runs them in the same, so a race shows.
 *
 * Linked with the emulated kernels, or on a machine with a GPU with the real ones.  An argument selects cases by name
 * ("*ring*"); EMU_SEED=n gives the emulation other orders. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ops.h"

#include <cmocka.h>                     /* after ours: it makes `fail` a macro */

/* What is fair, as a share of the range of what is compared.  In a rounded cache a number on the edge may fall to either
 * side, one step apart; what is computed from it then differs by much more, until the end of the step, when both devices
 * are given the same cache again. */
typedef struct {
    double exact, bf16_flip, fp8_flip;
} Tolerance;
static const Tolerance float32 = {2e-5, 2e-3, 3e-2};    /* float32 activations */
static const Tolerance rounded = {2e-2, 2e-2, 3e-2};    /* BF16 activations, where several tokens come together */
static const Tolerance fp4 = {0.35, 0.35, 0.35};        /* FP4, where many do: whether all is in its place; see test_fp4.cpp */

enum { BALANCED, ATTENTION, MLP, EXPERTS };

#ifdef ONE_RUN                          /* which is enough where every access is looked at (`make race`) */
enum { FIRST_RUN = 1, RUNS = 2 };
#else
enum { FIRST_RUN = 0, RUNS = 3 };
#endif

typedef struct {
    const char *name;
    int steps[10];                      /* tokens of each step; default {3, 1} */
    const char *layers;                 /* s: sliding, g: global, V from k, G: global with v_proj; default "sg" */
    int hidden, n_heads, intermediate, vocab, window;           /* defaults: 48, 4, 48, 83, 16 */
    int dim[2], kv_heads[2];            /* of sliding and global layers: {16, 32}, {2, 1} */
    int n_experts, top_k, expert_size;  /* default 4, 2, 32; n_experts -1: dense */
    /* Formats of q k v o, gate up down, router, the experts' gate up down, embed, head (-: embed again).  f: F32, b: BF16,
     * n: NVFP4, x: NVFP4 with the extremes of both formats, z: NVFP4 all of whose scales are 0, m: n and b by turns.
     * h: F16, and those of `quantised`; M: by turns i, r, e, h. */
    const char *weights;                /* default "bbbb bbb b bbb b -" */
    DType kv;                           /* default F32 */
    int start;                          /* position of the first step; the cache before it is random */
    int dominant;                       /* whose output is the largest part of x by far */
    int one_expert;                     /* 1: the router gives every token to expert 2, and none to expert 1 */
    int by_id;                          /* 1: a token's id says which experts it gets, whatever is rounded */
    int rounded;                        /* 1: activations need not be exact; 2: FP4 where many come together */
    int abandon;                        /* 1: every step is begun, given up after a layer, and begun again */
    int lora;                           /* up to two LoRA adapters on each matrix, of ranks up to this one */
    float k_scale, softcap;             /* of an FP8 cache: 0.37; 2, negative: none */
    int cpu_experts;                    /* a GPU leaves the experts of the first so many layers to the CPU, */
    int fetch;                          /* 1: and fetches them where many tokens come together */
    int slots;                          /* but for so many of each, which change */
} Case;

static const char nvfp4_experts[] = "bbbb bbb b nnn b -", nvfp4_all[] = "nnnn nnn b nnn b -";

static const Case cases[] = {
    /* how many tokens come together */
    {"one token at a time", {1, 1, 1, 1, 1}, .vocab = 519},
    {"few tokens", {2, 3, 5, 8, 9}, .weights = nvfp4_experts},
    {"16 tokens, 17", {16, 17, 1}, .n_experts = 7, .intermediate = 48},
    {"prefill, then decode", {17, 1, 1, 1, 5, 1}, .weights = nvfp4_all},
    {"prefill, then decode, dense", {17, 1, 1, 1, 5, 1}, .n_experts = -1},
    {"33 tokens", {33, 2}, .layers = "s", .weights = nvfp4_experts},
    {"64 tokens, 65", {64, 65}, .layers = "s", .weights = nvfp4_all, .n_heads = 2, .intermediate = 48, .top_k = 1},
    {"130 tokens", {130, 1}, .layers = "g", .hidden = 16, .intermediate = 16, .expert_size = 16},
    {"130 tokens, NVFP4", {130, 1}, .layers = "s", .weights = nvfp4_all, .intermediate = 48, .n_experts = 7, .top_k = 1, .window = 100,
     .start = 77},
    {"given up and begun again", {5, 1, 1}, .layers = "sgs", .abandon = 1},
    {"given up and begun again, dense", {5, 1, 1}, .n_experts = -1, .abandon = 1},
    /* one part of the layer shows above all others */
    {"attention dominates", {9, 1}, .layers = "s", .dominant = ATTENTION},
    {"global attention dominates", {9, 1}, .layers = "g", .dominant = ATTENTION},
    {"MLP dominates", {9, 1}, .layers = "s", .dominant = MLP},
    {"experts dominate", {9, 1}, .layers = "s", .dominant = EXPERTS},
    {"experts dominate, NVFP4", {9, 1}, .layers = "s", .dominant = EXPERTS, .weights = nvfp4_all},
    /* attention */
    {"edges of the window", {15, 1, 1, 1}, .layers = "ss", .dominant = ATTENTION},
    {"a chunk beyond the window", {33, 1}, .layers = "s", .dominant = ATTENTION},
    {"ring wraps", {20, 20, 1, 7}, .layers = "s", .dominant = ATTENTION},
    {"ring wraps within a step", {5, 5, 5, 5, 5, 5, 5, 1}, .layers = "sg", .n_experts = -1},
    {"far position", {3, 1}, .layers = "ss", .start = 200003},
    {"long ring", {1, 1, 5}, .layers = "s", .window = 1024, .start = 5000, .dominant = ATTENTION, .n_experts = -1},
    {"many keys", {1, 5}, .layers = "g", .start = 3000, .dominant = ATTENTION, .n_experts = -1},
    {"very many keys", {1}, .layers = "g", .start = 9000, .dominant = ATTENTION, .n_experts = -1},
    {"many keys and tokens", {33}, .layers = "G", .start = 300, .dominant = ATTENTION, .n_experts = -1},
    {"global with v_proj", {9, 1}, .layers = "sG"},
    {"all kinds of layers", {9, 1}, .layers = "sgGs", .weights = nvfp4_all},
    {"groups of 1", {9, 1}, .dim = {48, 80}, .kv_heads = {4, 4}},
    {"groups of 2 and 4", {9, 1}, .n_heads = 8, .dim = {80, 48}, .kv_heads = {4, 2}},
    {"groups of 8", {9, 1}, .n_heads = 16, .dim = {16, 48}, .kv_heads = {2, 2}},
    {"head_dim 256 and 512", {5, 1}, .hidden = 16, .n_heads = 4, .dim = {256, 512}, .kv_heads = {2, 1}, .weights = nvfp4_experts},
    {"head_dim 256 and 512, groups as published", {1, 2}, .hidden = 16, .n_heads = 16, .dim = {256, 512}, .kv_heads = {8, 2}, .kv = DT_F8_E4M3},
    /* more columns than a vector has room for at once */
    {"rows of 16384 and 9504 columns", {1, 2}, .layers = "g", .hidden = 16, .n_heads = 32, .dim = {256, 512}, .kv_heads = {8, 4}, .intermediate = 9504,
     .n_experts = -1, .kv = DT_BF16},
    {"rows of 16384 and 9504 columns, NVFP4", {1}, .layers = "g", .hidden = 16, .n_heads = 32, .dim = {256, 512}, .kv_heads = {8, 4},
     .intermediate = 9504, .n_experts = -1, .weights = nvfp4_all},
    /* caches */
    {"BF16 cache", {17, 1, 1, 5}, .kv = DT_BF16},
    {"BF16 cache, many keys", {1, 3}, .layers = "sg", .start = 1500, .kv = DT_BF16, .dim = {256, 48}},
    {"BF16 cache, many tokens", {70}, .start = 50, .kv = DT_BF16, .window = 64, .dim = {48, 80}, .intermediate = 16,
     .n_experts = -1},
    {"FP8 cache", {17, 1, 1, 5}, .kv = DT_F8_E4M3, .weights = nvfp4_experts},
    {"FP8 cache, ring wraps", {9, 9, 9, 9, 1}, .layers = "s", .kv = DT_F8_E4M3, .dominant = ATTENTION},
    {"FP8 cache, many keys", {1, 3}, .layers = "sg", .start = 1500, .kv = DT_F8_E4M3, .dim = {48, 256}},
    {"FP8 cache, many tokens", {33}, .hidden = 16, .start = 50, .kv = DT_F8_E4M3, .window = 48, .dim = {256, 512}, .intermediate = 16,
     .n_experts = -1},
    {"FP8 cache, values of zero", {9, 1}, .kv = DT_F8_E4M3, .layers = "sgG",
     .weights = "nzzn nnn b nnn b -"},
    {"FP8 cache, saturated", {9, 1}, .kv = DT_F8_E4M3, .k_scale = 0.002f},
    /* sizes */
    {"hidden 16", {3, 1}, .hidden = 16, .intermediate = 16, .expert_size = 16, .weights = nvfp4_all},
    {"hidden 80", {9, 1}, .hidden = 80, .intermediate = 48, .expert_size = 48, .weights = nvfp4_all},
    {"hidden 176", {9, 1}, .hidden = 176, .intermediate = 176, .expert_size = 176, .weights = nvfp4_experts},
    {"hidden 320", {17, 1}, .layers = "s", .hidden = 320, .vocab = 519, .weights = nvfp4_all},
    {"hidden 704", {3, 1}, .layers = "s", .hidden = 704, .intermediate = 704, .expert_size = 704, .vocab = 519, .weights = nvfp4_experts},
    {"hidden 2816", {1, 2}, .layers = "s", .hidden = 2816, .expert_size = 176, .weights = nvfp4_experts},
    {"hidden 2816, NVFP4", {1, 2}, .layers = "g", .hidden = 2816, .intermediate = 176, .expert_size = 48, .weights = nvfp4_all},
    {"hidden 704, blocks that share columns", {40, 70}, .layers = "s", .hidden = 704, .intermediate = 704, .expert_size = 48, .top_k = 1},
    {"odd columns", {9, 1}, .hidden = 72, .intermediate = 20, .expert_size = 28, .n_heads = 3, .dim = {20, 36}, .kv_heads = {1, 3}},
    {"odd columns, F32", {9, 1}, .hidden = 36, .intermediate = 21, .expert_size = 13, .n_heads = 3, .dim = {6, 10}, .kv_heads = {3, 1},
     .weights = "ffff fff f fff f -"},
    {"odd columns, many tokens", {33}, .layers = "g", .hidden = 72, .intermediate = 20, .expert_size = 28},
    /* formats */
    {"all F32", {9, 1}, .weights = "ffff fff f fff f -"},
    {"mixed formats", {9, 1}, .layers = "sgG", .weights = "nbfn bnf f nbf b n"},
    {"mixed formats, another way", {9, 1}, .layers = "sG", .weights = "fnbb nfb n bfn n f"},
    {"mixed formats, dense", {9, 1}, .weights = "nnbf nbn b nnn f b", .n_experts = -1},
    {"every expert another format", {9, 1}, .weights = "bbbb bbb b mmm b -"},
    {"INT4", {1, 2, 17}, .layers = "sG", .hidden = 320, .intermediate = 288, .weights = "iiii iii i iii i i"},
    {"INT4 with zero points", {1, 2, 17}, .layers = "sg", .hidden = 320, .intermediate = 576, .n_experts = -1, .weights = "jijJ ijJ b iii j -"},
    {"INT4 whose scales are not BF16", {1, 2, 9}, .layers = "s", .hidden = 192, .intermediate = 160, .weights = "lLlL LLl L lll L l"},
    {"INT8", {1, 2, 9}, .layers = "sG", .hidden = 192, .intermediate = 96, .weights = "eEeE EEe e eee e E"},
    {"FP8", {1, 2, 9}, .layers = "sG", .hidden = 200, .intermediate = 76, .expert_size = 20, .weights = "rtrt rrt r rrr t r"},
    {"FP8, blocks", {1, 2, 17}, .layers = "sg", .hidden = 328, .intermediate = 300, .expert_size = 130, .weights = "kkkk kkk k kkk k k"},
    {"F16", {1, 2, 9}, .layers = "sG", .hidden = 72, .intermediate = 21, .expert_size = 13, .weights = "hhhh hhh h hhh h h"},
    {"other formats together", {1, 2, 9}, .layers = "sG", .hidden = 96, .intermediate = 96, .weights = "inrh jkb f iek n e"},
    {"other formats together, another way", {1, 2, 9}, .layers = "sg", .hidden = 96, .intermediate = 96, .weights = "jnie hni r nij k j"},
    {"experts of other formats", {1, 2, 9}, .layers = "s", .hidden = 96, .expert_size = 64, .n_experts = 5, .weights = "bbbb bbb b MMM b -"},
    {"tiles of INT4", {70, 300}, .layers = "s", .hidden = 320, .intermediate = 64, .n_experts = -1, .rounded = 1, .weights = "ijiJ iji b nnn b -"},
    {"tiles of FP8 and INT8", {70, 260}, .layers = "s", .hidden = 288, .intermediate = 64, .n_experts = -1, .rounded = 1, .weights = "rkee krk b nnn b -"},
    {"tiles of experts of INT4", {100}, .layers = "s", .hidden = 192, .expert_size = 64, .n_experts = 4, .top_k = 1, .one_expert = 1,
     .rounded = 1, .weights = "bbbb bbb f iji f -", .dominant = EXPERTS},
    {"tiles of experts of FP8", {100}, .layers = "s", .hidden = 192, .expert_size = 64, .n_experts = 4, .top_k = 1, .one_expert = 1,
     .rounded = 1, .weights = "bbbb bbb f rrk f -", .dominant = EXPERTS},
    {"rows of 16384 and 9504 columns, integers", {1, 2}, .layers = "g", .hidden = 32, .n_heads = 32, .dim = {256, 512}, .kv_heads = {8, 4},
     .intermediate = 9504, .n_experts = -1, .kv = DT_BF16, .weights = "eiij iie b nnn b -"},
    {"rows of 16384 and 9504 columns, FP8", {1}, .layers = "g", .hidden = 16, .n_heads = 32, .dim = {256, 512}, .kv_heads = {8, 4},
     .intermediate = 9504, .n_experts = -1, .weights = "rrrk rrr b nnn b -"},
    {"few tokens, other formats", {3, 8, 1}, .layers = "sG", .hidden = 320, .intermediate = 96, .n_experts = 5, .top_k = 2, .by_id = 1,
     .rounded = 1, .weights = "irej iJr f MMM f -"},
    {"extremes of NVFP4", {9, 1}, .layers = "sG", .weights = "xxxx xxx x xxx x -"},
    {"scales of zero", {9, 1}, .layers = "sg", .weights = "zzzz zzz z zzz b -"},
    {"attention and MLP of zero", {9, 1}, .layers = "sg", .weights = "nnnz nnz b nnn b -"},
    {"no soft cap", {3}, .softcap = -1},
    /* experts */
    {"7 experts, top 1", {9, 1}, .layers = "s", .n_experts = 7, .top_k = 1, .dominant = EXPERTS},
    {"7 experts, top 7", {9, 1}, .layers = "s", .n_experts = 7, .top_k = 7, .dominant = EXPERTS},
    {"128 experts, top 8", {1, 17, 1}, .layers = "s", .n_experts = 128, .top_k = 8, .expert_size = 16, .weights = nvfp4_experts,
     .dominant = EXPERTS},
    {"128 experts, top 8, expert_size 704", {1, 2}, .layers = "s", .n_experts = 128, .top_k = 8, .expert_size = 704, .hidden = 16,
     .weights = nvfp4_all},
    {"all tokens to one expert", {17, 1}, .n_experts = 4, .top_k = 1, .one_expert = 1, .weights = "bbbb bbb f nnn f -", .dominant = EXPERTS},
    /* experts on the CPU: of some layers, of all; one token, a few, many */
    {"experts on the CPU, first layer", {9, 1, 2, 17, 1}, .layers = "sgs", .weights = nvfp4_experts, .cpu_experts = 1},
    {"experts on the CPU, all but one layer", {9, 1, 2, 17, 1}, .layers = "sgs", .n_experts = 7, .weights = nvfp4_experts, .cpu_experts = 2},
    {"experts on the CPU, all layers", {9, 1, 2, 17, 1}, .layers = "sg", .weights = nvfp4_all, .cpu_experts = 2},
    {"experts on the CPU dominate", {17, 1}, .layers = "s", .dominant = EXPERTS, .weights = nvfp4_experts, .cpu_experts = 1},
    {"experts on the CPU, MLP dominates", {17, 1}, .layers = "s", .dominant = MLP, .weights = nvfp4_experts, .cpu_experts = 1},
    {"experts on the CPU, given up and begun again", {5, 1, 1}, .layers = "sgs", .abandon = 1, .cpu_experts = 2},
    {"experts on the CPU, few tokens", {2, 3, 4, 5, 6, 7, 8, 1}, .layers = "ss", .n_experts = 7, .top_k = 3, .by_id = 1,
     .rounded = 1, .weights = "bbbb bbb f nnn f -", .dominant = EXPERTS, .cpu_experts = 1},
    {"experts on the CPU, few tokens, MLP dominates", {3, 8, 2}, .layers = "ss", .n_experts = 7, .top_k = 3, .by_id = 1,
     .rounded = 1, .weights = "nnnn nnn f nnn f -", .dominant = MLP, .cpu_experts = 2},
    {"experts on the CPU, many tokens", {130, 1}, .layers = "ss", .n_experts = 5, .top_k = 2, .by_id = 1, .rounded = 1,
     .weights = "bbbb bbb f nnn f -", .cpu_experts = 1},
    {"experts fetched", {33, 1, 21, 40, 2}, .layers = "sgsgs", .hidden = 16, .intermediate = 16, .expert_size = 16,
     .weights = nvfp4_experts, .cpu_experts = 4, .fetch = 1},
    {"experts fetched, one layer of one", {33, 21, 1}, .layers = "s", .weights = nvfp4_all, .dominant = EXPERTS, .cpu_experts = 1, .fetch = 1},
    {"experts fetched, many tokens", {130, 1, 140}, .layers = "sss", .n_experts = 5, .top_k = 2, .by_id = 1, .rounded = 1,
     .weights = "bbbb bbb f nnn f -", .cpu_experts = 3, .fetch = 1},
    {"experts fetched, given up and begun again", {33, 33, 1, 25}, .layers = "sgsgs", .hidden = 16, .abandon = 1, .cpu_experts = 5, .fetch = 1},
    {"experts fetched, of other formats", {40, 1, 24}, .layers = "sss", .hidden = 96, .expert_size = 64, .n_experts = 5,
     .weights = "inrh jkb b MMM b -", .cpu_experts = 3, .fetch = 1},
    {"experts on the CPU of other formats", {1, 2, 9}, .layers = "s", .hidden = 96, .expert_size = 64, .n_experts = 5,
     .weights = "inrh jkb b MMM b -", .cpu_experts = 1},
    {"experts on the CPU, odd columns", {9, 1, 2}, .hidden = 72, .intermediate = 20, .expert_size = 28, .n_heads = 3, .dim = {20, 36},
     .kv_heads = {1, 3}, .cpu_experts = 1},
    {"experts on the CPU, hidden 2816", {1, 2}, .layers = "s", .hidden = 2816, .expert_size = 176, .weights = nvfp4_experts, .cpu_experts = 1},
    /* some of these experts in slots on the GPU, which change from step to step: one token, a few, many */
    {"experts in slots, one token at a time", {1, 1, 1, 1, 1, 1, 1, 1}, .layers = "sgs", .n_experts = 7, .top_k = 3, .by_id = 1,
     .weights = "bbbb bbb f nnn f -", .dominant = EXPERTS, .cpu_experts = 3, .slots = 3},
    {"experts in slots, one slot", {9, 1, 2, 1, 17, 1}, .layers = "sgs", .weights = nvfp4_experts, .cpu_experts = 2, .slots = 1},
    {"experts in slots, MLP dominates", {17, 1, 2, 1}, .layers = "s", .dominant = MLP, .weights = nvfp4_experts, .cpu_experts = 1, .slots = 2},
    {"experts in slots, all slots", {9, 1, 2, 17, 1}, .layers = "sg", .n_experts = 5, .weights = nvfp4_all, .cpu_experts = 2, .slots = 5},
    {"experts in slots, few tokens", {2, 3, 4, 5, 6, 7, 8, 1}, .layers = "ss", .n_experts = 7, .top_k = 3, .by_id = 1,
     .rounded = 1, .weights = "bbbb bbb f nnn f -", .dominant = EXPERTS, .cpu_experts = 1, .slots = 3},
    {"experts in slots, many tokens", {130, 1, 140, 9, 2}, .layers = "ss", .n_experts = 5, .top_k = 2, .by_id = 1, .rounded = 1,
     .weights = "bbbb bbb f nnn f -", .cpu_experts = 2, .slots = 2},
    {"experts in slots, fetched", {33, 1, 1, 1, 21, 1, 1, 40, 2}, .layers = "sgsgs", .hidden = 16, .intermediate = 16, .expert_size = 16,
     .n_experts = 6, .weights = nvfp4_experts, .cpu_experts = 4, .fetch = 1, .slots = 2},
    {"experts in slots, given up and begun again", {5, 1, 1, 33, 1, 25, 1}, .layers = "sgs", .hidden = 16, .abandon = 1, .cpu_experts = 3,
     .fetch = 1, .slots = 1},
    {"experts in slots, of other formats", {1, 2, 9, 1, 24, 1}, .layers = "ss", .hidden = 96, .expert_size = 64, .n_experts = 5,
     .weights = "inrh jkb b MMM b -", .cpu_experts = 2, .fetch = 1, .slots = 2},
    {"experts in slots, odd columns", {9, 1, 2, 1}, .hidden = 72, .intermediate = 20, .expert_size = 28, .n_heads = 3, .dim = {20, 36},
     .kv_heads = {1, 3}, .cpu_experts = 1, .slots = 2},
    {"experts in slots, hidden 2816", {1, 1, 2, 1}, .layers = "s", .hidden = 2816, .expert_size = 176, .weights = nvfp4_experts,
     .cpu_experts = 1, .slots = 2},
    {"experts in slots, 128 experts, top 8", {1, 1, 1, 9, 1}, .layers = "s", .n_experts = 128, .top_k = 8, .expert_size = 16,
     .weights = nvfp4_experts, .dominant = EXPERTS, .cpu_experts = 1, .slots = 40},
    {"rounded", {9, 65, 1, 17}, .n_experts = -1, .rounded = 1},
    /* steps of 2 to 8 tokens: see few.cu; exact ones are two tokens, or come together in tiles */
    {"few tokens, dense", {2, 3, 4, 5, 6, 7, 8, 1}, .layers = "sG", .n_experts = -1, .rounded = 1},
    {"few tokens, dense, NVFP4, odd columns", {8, 3}, .hidden = 80, .intermediate = 48, .n_experts = -1, .weights = nvfp4_all,
     .rounded = 1},
    {"few tokens, each its own experts", {2, 3, 4, 5, 6, 7, 8, 1}, .layers = "s", .n_experts = 7, .top_k = 3, .by_id = 1,
     .rounded = 1, .weights = "bbbb bbb f nnn f -", .dominant = EXPERTS},
    {"few tokens, each its own experts, exact", {2, 2, 3, 8}, .layers = "s", .n_experts = 7, .top_k = 3, .by_id = 1,
     .weights = "bbbb bbb f nnn f -", .dominant = EXPERTS},
    {"few tokens, every expert another format", {8, 4, 2}, .layers = "s", .n_experts = 11, .top_k = 4, .by_id = 1,
     .expert_size = 80, .rounded = 1, .weights = "bnbn nbn f mmm f -", .dominant = EXPERTS},
    {"few tokens, experts of F32, odd columns", {8, 5}, .layers = "s", .hidden = 37, .intermediate = 21, .n_experts = 5,
     .top_k = 2, .by_id = 1, .expert_size = 13, .rounded = 1, .weights = "ffff fff f fff f -", .dominant = EXPERTS},
    {"few tokens to one expert", {2, 5, 8}, .layers = "s", .n_experts = 4, .top_k = 1, .one_expert = 1, .rounded = 1,
     .weights = "bbbb bbb f nnn f -", .dominant = EXPERTS},
    {"few tokens, all experts, MLP dominates", {3, 8}, .layers = "s", .n_experts = 3, .top_k = 3, .by_id = 1, .rounded = 1,
     .weights = "bbbb nnn f bbb f -", .dominant = MLP},
    {"few tokens, groups as published", {3, 4, 8}, .hidden = 16, .n_heads = 16, .dim = {256, 512}, .kv_heads = {8, 2},
     .n_experts = -1, .kv = DT_F8_E4M3, .rounded = 1, .dominant = ATTENTION},
    {"few tokens, rows of 16384 and 9504 columns", {8}, .layers = "g", .hidden = 16, .n_heads = 32, .dim = {256, 512},
     .kv_heads = {8, 4}, .intermediate = 9504, .n_experts = -1, .kv = DT_BF16, .rounded = 1},
    {"few tokens, hidden 2816", {4}, .layers = "s", .hidden = 2816, .n_experts = 5, .top_k = 2, .by_id = 1, .expert_size = 48,
     .rounded = 1, .weights = "bbbb bbb f nnn f -"},
    {"rounded, many tokens", {130}, .layers = "s", .n_experts = -1, .weights = nvfp4_all, .rounded = 1},
    {"rounded, all tokens to one expert", {17, 100, 1}, .n_experts = 4, .top_k = 1, .one_expert = 1, .weights = "bbbb bbb f nnn f -", .rounded = 1,
     .dominant = EXPERTS},
    {"FP4, experts", {17, 200, 1, 33}, .layers = "s", .n_experts = 4, .top_k = 1, .one_expert = 1, .expert_size = 80,
     .weights = "bbbb bbb f nnn f -", .rounded = 2, .dominant = EXPERTS},
    {"FP4, MLP", {130, 1, 17}, .layers = "s", .intermediate = 144, .n_experts = -1, .weights = "bbbb nnn b nnn b -", .rounded = 2,
     .dominant = MLP},
    {"FP4, attention", {33, 1, 65}, .layers = "s", .n_experts = -1, .weights = "nnnn bbb b nnn b -", .rounded = 2, .dominant = ATTENTION},
    {"FP4, other formats beside it", {33}, .layers = "sG", .n_experts = 4, .top_k = 1, .one_expert = 1,
     .weights = "nbfn bnf f nnb f -", .rounded = 2},
    {"FP4, every expert another format", {33}, .layers = "s", .n_experts = 4, .top_k = 1, .one_expert = 1,
     .weights = "bbbb nnn f mmm f -", .rounded = 2},
    {"FP4, extremes", {33}, .layers = "s", .n_experts = -1, .weights = "xxxx xxx b xxx b -", .rounded = 2},
    {"FP4, scales of zero", {33}, .layers = "sg", .weights = "zzzz zzz z zzz b -", .rounded = 2},
    /* tiles of 128 and 256 tokens and rows, more of them than blocks, more columns than hopper.cu's ring has */
    {"many tiles", {300, 1}, .layers = "s", .hidden = 144, .n_heads = 8, .dim = {48, 32}, .n_experts = -1,
     .intermediate = 720, .rounded = 1},
    {"many tiles, NVFP4", {300, 70}, .layers = "s", .hidden = 592, .intermediate = 368, .n_experts = -1,
     .weights = nvfp4_all, .rounded = 1},
    {"many tiles, exact", {129, 1}, .layers = "s", .hidden = 592, .intermediate = 336, .expert_size = 80,
     .weights = "bbbb nnn b bbb b -"},
    {"many tiles, one expert", {150, 1}, .layers = "s", .hidden = 336, .top_k = 1, .expert_size = 592,
     .one_expert = 1, .rounded = 1, .weights = "bbbb bbb f nnn f -", .dominant = EXPERTS},
    {"many tiles, two experts", {260}, .layers = "s", .intermediate = 16, .n_experts = 3, .expert_size = 272,
     .weights = "bbbb bbb b nnn b -"},
    {"many tiles, every expert another format", {140}, .layers = "s", .intermediate = 16, .expert_size = 80,
     .weights = "bnbn nbb b mmm b -"},
    /* LoRA adapters: one token and a few as in few.cu, tiles, and tiles of FP4 */
    {"adapters", {1, 2, 5, 17, 1}, .layers = "sgG", .lora = 5},
    {"adapters, dense", {1, 2, 9, 1}, .layers = "sG", .n_experts = -1, .lora = 20},
    {"adapters, NVFP4, FP8 cache", {1, 2, 17}, .layers = "sg", .weights = nvfp4_all, .kv = DT_F8_E4M3, .lora = 3},
    {"adapters, INT4, dense", {1, 2, 17}, .layers = "sg", .hidden = 320, .intermediate = 576, .n_experts = -1, .weights = "jijJ ijJ b iii j -", .lora = 9},
    {"adapters, odd columns", {9, 1}, .hidden = 36, .intermediate = 21, .expert_size = 13, .n_experts = 7, .top_k = 3, .n_heads = 3, .dim = {6, 10},
     .kv_heads = {3, 1}, .weights = "ffff fff f fff f -", .lora = 2},
    {"adapters, mixed formats", {1, 2, 9}, .layers = "sG", .hidden = 96, .intermediate = 96, .weights = "inrh jkb f iek n e", .lora = 4},
    {"adapters, hidden 2816", {1, 2}, .layers = "s", .hidden = 2816, .expert_size = 176, .weights = nvfp4_experts, .lora = 16},
    {"adapters, experts dominate", {1, 2, 17}, .layers = "s", .n_experts = 7, .top_k = 3, .weights = nvfp4_experts, .dominant = EXPERTS, .lora = 4},
    {"adapters, few tokens, every expert another format", {8, 4, 1}, .layers = "s", .n_experts = 11, .top_k = 4, .by_id = 1,
     .expert_size = 80, .rounded = 1, .weights = "bnbn nbn f mmm f -", .dominant = EXPERTS, .lora = 4},
    {"adapters, few tokens, dense", {3, 8, 1}, .layers = "sG", .n_experts = -1, .rounded = 1, .lora = 6},
    {"adapters, many tokens", {130, 1}, .layers = "s", .n_experts = 5, .top_k = 2, .by_id = 1, .rounded = 1, .weights = "nbnb nbn f nnn f -", .lora = 8},
    {"FP4, adapters", {33, 1, 65}, .layers = "s", .n_experts = 4, .top_k = 1, .one_expert = 1, .expert_size = 80,
     .weights = "nnnn nnn f nnn f -", .rounded = 2, .lora = 4},
    {"all tokens to one expert of three", {33}, .layers = "s", .n_experts = 7, .top_k = 3, .one_expert = 1, .weights = "bbbb bbb f bbb f -"},
};

/* ------------------------------------------------------------------------------------------------------------
 * A random model */

typedef struct {
    Case k;                             /* with its defaults filled in */
    Config c;
    Weights w;
    int chunk, context;
    uint64_t random;
    void **owned;                       /* everything allocated below */
    int n_owned;
} Net;

static uint32_t next(Net *m) {          /* xorshift64* */
    m->random ^= m->random >> 12, m->random ^= m->random << 25, m->random ^= m->random >> 27;
    return m->random * 0x2545f4914f6cdd1dull >> 32;
}

static float uniform(Net *m, float low, float high) { return low + (high - low) * (next(m) >> 8) * 0x1p-24f; }
static float normal(Net *m) { return 2 * (uniform(m, -.5f, .5f) + uniform(m, -.5f, .5f) + uniform(m, -.5f, .5f)); }

static uint16_t upper_half(float f) {
    union { float f; uint32_t u; } x = {f};
    return x.u >> 16;
}

static void *take(Net *m, size_t bytes) {
    m->owned = xrealloc(m->owned, m->n_owned + 1, sizeof *m->owned);
    return m->owned[m->n_owned++] = xcalloc(bytes + !bytes, 1);
}

/* FP8 and integers.  group: columns that share a scale; 0: FP8 of which a row, 1: all numbers share one. */
static const struct {
    char kind;
    DType dtype, scale_dtype;
    int bits, group, zeros;
} quantised[] = {
    {'r', DT_F8_E4M3, DT_BF16, 0, 0, 0}, {'t', DT_F8_E4M3, DT_F32, 0, 1, 0}, {'k', DT_F8_E4M3, DT_F16, 0, 128, 0},
    {'i', DT_I32, DT_BF16, 4, 32, 0}, {'j', DT_I32, DT_BF16, 4, 32, 1}, {'J', DT_I32, DT_BF16, 4, 64, 1},
    {'l', DT_I32, DT_F32, 4, 32, 1}, {'L', DT_I32, DT_F16, 4, 64, 0},
    {'e', DT_I32, DT_BF16, 8, 32, 0}, {'E', DT_I32, DT_F16, 8, 64, 0},
};

static Weight quantised_matrix(Net *m, char kind, int rows, int cols) {
    int i = 0;
    while (quantised[i].kind != kind) i++;
    int fp8 = quantised[i].dtype == DT_F8_E4M3, bits = fp8 ? 8 : quantised[i].bits, group = quantised[i].group;
    Weight w = {.dtype = quantised[i].dtype, .rows = rows, .cols = cols, .scale = 1, .scale_dtype = quantised[i].scale_dtype,
                .scale_rows = 1, .scale_cols = group, .bits = quantised[i].bits};
    if (fp8 && group == 0) w.scale_cols = cols;
    if (fp8 && group == 1) w.scale_rows = rows, w.scale_cols = cols;
    if (fp8 && group > 1) w.scale_rows = group;
    if (!fp8) assert_int_equal(cols % group, 0);
    size_t bytes = (size_t)rows * cols * bits / 8, down = n_blocks(rows, w.scale_rows), across = n_blocks(cols, w.scale_cols);
    uint8_t *v = (uint8_t *)take(m, bytes + 1) + 1, *scale = take(m, 4 * down * across + 2);
    for (size_t k = 0; k < bytes; k++) v[k] = fp8 ? next(m) % 4 ? next(m) & 0xbf : next(m) & 0xf7 : next(m);     /* no NaN */
    scale += 2;                         /* not aligned to 4 bytes */
    for (size_t k = 0; k < down * across; k++) {
        float s = uniform(m, 0.5f, 2) / sqrtf(cols) / (fp8 ? 128 : 1 << (bits - 1));
        uint16_t half = upper_half(s);
        if (w.scale_dtype == DT_F16) for (half = 0x0400; f16_to_float(half) < s; half += 3) {}
        if (w.scale_dtype == DT_F32) memcpy(scale + 4 * k, &s, 4);
        else memcpy(scale + 2 * k, &half, 2);
    }
    w.data = v;
    w.block_scale = scale;
    if (!quantised[i].zeros) return w;
    size_t words = n_blocks(rows, 8) * across;
    uint8_t *zero = (uint8_t *)take(m, 4 * words + 1) + 1;
    for (size_t k = 0; k < 4 * words; k++) zero[k] = next(m);
    w.zero = zero;
    return w;
}

/* Numbers of 1 / sqrt(cols), so that products are about 1; no better aligned than a file promises. */
static Weight matrix(Net *m, char kind, int rows, int cols) {
    static const uint8_t extreme_scales[] = {0, 1, 7, 8, 0x38, 0x7d, 0x7e, 0x7e}, extreme_bytes[] = {0x77, 0xff, 0x7f, 0x88, 0x08, 0x80, 0x00, 0x19};
    size_t n = (size_t)rows * cols;
    float size = 1 / sqrtf(cols);
    Weight w = {.rows = rows, .cols = cols};
    for (size_t i = 0; i < sizeof quantised / sizeof *quantised; i++)
        if (quantised[i].kind == kind) return quantised_matrix(m, kind, rows, cols);
    if (kind == 'h') {                  /* of any size, subnormal too, and half of them negative */
        uint16_t *v = (uint16_t *)take(m, 2 * n + 2) + 1;
        for (size_t i = 0; i < n; i++) v[i] = next(m) % (uint32_t)(0x3800 - 400 * log2f(cols)) | (next(m) & 0x8000);
        w.dtype = DT_F16;
        w.data = (uint8_t *)v;
    } else if (kind == 'f') {
        float *v = (float *)take(m, 4 * n + 4) + 1;
        for (size_t i = 0; i < n; i++) v[i] = size * normal(m);
        w.dtype = DT_F32;
        w.data = (uint8_t *)v;
    } else if (kind == 'b') {
        uint16_t *v = (uint16_t *)take(m, 2 * n + 2) + 1;
        for (size_t i = 0; i < n; i++) v[i] = upper_half(size * normal(m));
        w.dtype = DT_BF16;
        w.data = (uint8_t *)v;
    } else {
        uint8_t *v = (uint8_t *)take(m, n / 2 + 1) + 1, *scale = (uint8_t *)take(m, n / 16 + 1) + 1;
        for (size_t i = 0; i < n / 2; i++) v[i] = kind == 'x' && next(m) % 4 == 0 ? extreme_bytes[next(m) % 8] : next(m);
        for (size_t i = 0; i < n / 16; i++)
            scale[i] = kind == 'z' || next(m) % 16 == 0 ? 0 : kind == 'x' ? extreme_scales[next(m) % 8] : 0x30 + next(m) % 16;
        w.dtype = DT_U8;
        w.data = v;
        w.block_scale = scale;
        w.scale = size * uniform(m, 0.2f, 0.5f) / (kind == 'x' ? 224 : 1);
    }
    return w;
}

/* The format of the i-th matrix of the case; 'm' goes by e. */
static char format(const Net *m, int i, int e) {
    const char *p = m->k.weights;
    for (;; p++)
        if (*p != ' ' && i-- == 0) {
            if (*p == 'M') return "ireh"[e % 4];
            return *p == 'm' ? "nb"[e % 2] : *p;
        }
}

/* Hangs none, one or two adapters on w, of various ranks and formats; at: where A x of the next one lies (Adapter.at). */
static void hang_adapters(Net *m, Weight *w, int *at) {
    if (!w->data) return;
    for (int n = next(m) % 3; n > 0; n--) {
        Adapter *l = take(m, sizeof *l);
        int rank = 1 + next(m) % m->k.lora;
        char kind = "bhf"[next(m) % 3];
        *l = (Adapter){matrix(m, kind, rank, w->cols), matrix(m, kind, w->rows, rank), uniform(m, -1, 1), *at, w->adapter};
        w->adapter = l;
        *at += rank;
        if (*at > m->w.adapter_width) m->w.adapter_width = *at;
    }
}

/* The same for all matrices of a layer.  Where a case says which experts a token gets, the router has none. */
static void adapt_layer(Net *m, Layer *l) {
    enum { GROUPS = 5 };
    Weight *group[GROUPS][3] = {{&l->q, &l->k, &l->v}, {&l->o}, {&l->gate, &l->up}, {&l->down}, {&l->router}};
    for (int g = 0; g < GROUPS - (m->k.by_id || m->k.one_expert); g++)
        for (int i = 0, at = 0; i < 3 && group[g][i]; i++) hang_adapters(m, group[g][i], &at);
    for (int e = 0; e < m->c.n_experts; e++) {
        int at = 0, at_down = 0;
        hang_adapters(m, &l->expert_gate[e], &at);
        hang_adapters(m, &l->expert_up[e], &at);
        hang_adapters(m, &l->expert_down[e], &at_down);
    }
}

static float *norm(Net *m, int n, float size) {
    float *v = take(m, n * sizeof *v);
    for (int i = 0; i < n; i++) v[i] = size * uniform(m, 0.5f, 1.5f) * (next(m) % 4 ? 1 : -1);
    return v;
}

/* Columns that say which experts a token gets: by its id, and left alone by the layers. */
static void route_by_id(Net *m, Layer *l) {
    const Config *c = &m->c;
    float *router = (float *)l->router.data, *embed = (float *)m->w.embed.data;
    memset(router, 0, sizeof *router * c->n_experts * c->hidden);
    for (int e = 0; e < c->n_experts; e++) {
        router[e * c->hidden + e] = 1.5f;
        l->router_scale[e] = sqrtf(c->hidden);
        l->post_attention_norm[e] = l->post_ffn_norm[e] = 0.01f;
    }
    l->layer_scalar = 1;
    for (int id = 0; id < c->vocab; id++) {
        for (int e = 0; e < c->n_experts; e++) embed[id * c->hidden + e] = 0;
        for (int k = 0; k < c->top_k; k++)
            embed[id * c->hidden + (id * 5 + k * (1 + id % 3)) % c->n_experts] = (4 - 0.5f * k) / sqrtf(c->hidden);
    }
}

/* A column that says which expert: large in every token, and left alone by the layers. */
static void tilt(Net *m, Layer *l) {
    float *router = (float *)l->router.data, *embed = (float *)m->w.embed.data;
    for (int i = 0; i < m->c.vocab; i++) embed[i * m->c.hidden] = 4 / sqrtf(m->c.hidden);
    l->post_attention_norm[0] = l->post_ffn_norm[0] = 0.01f;
    l->layer_scalar = 1;
    l->router_scale[0] = sqrtf(m->c.hidden);
    router[m->c.hidden] = -14;
    router[2 * m->c.hidden] = 14;
}

static void build_layer(Net *m, Layer *l, char kind, float *const inv_freq[2]) {
    const Config *c = &m->c;
    int dominant = m->k.dominant, hidden = c->hidden;
    *l = (Layer){.global = kind != 's', .layer_scalar = uniform(m, 0.5f, 1.5f), .k_scale = m->k.k_scale, .v_scale = 1.7f};
    l->head_dim = m->k.dim[l->global];
    l->n_kv_heads = m->k.kv_heads[l->global];
    l->inv_freq = inv_freq[l->global];
    float sharp = sqrtf(1.5f / sqrtf(l->head_dim));     /* scores of about 1.5: no key is alone, each one counts */
    l->q_norm = norm(m, l->head_dim, sharp);
    l->k_norm = norm(m, l->head_dim, sharp);
    l->input_norm = norm(m, hidden, 1);
    l->post_attention_norm = norm(m, hidden, dominant == ATTENTION ? 5 : dominant ? 0.05f : 1);
    l->pre_mlp_norm = norm(m, hidden, 2);
    l->post_ffn_norm = norm(m, hidden, dominant == ATTENTION ? 0.05f : dominant ? 5 : 1);
    int q_rows = c->n_heads * l->head_dim, kv_rows = l->n_kv_heads * l->head_dim;
    l->q = matrix(m, format(m, 0, 0), q_rows, hidden);
    l->k = matrix(m, format(m, 1, 0), kv_rows, hidden);
    if (kind != 'g') l->v = matrix(m, format(m, 2, 0), kv_rows, hidden);
    l->o = matrix(m, format(m, 3, 0), hidden, q_rows);
    l->gate = matrix(m, format(m, 4, 0), c->intermediate, hidden);
    l->up = matrix(m, format(m, 5, 0), c->intermediate, hidden);
    l->down = matrix(m, format(m, 6, 0), hidden, c->intermediate);
    if (!c->n_experts) {
        if (m->k.lora) adapt_layer(m, l);
        return;
    }
    l->post_mlp_norm = norm(m, hidden, dominant == EXPERTS ? 0.05f : 1);
    l->pre_experts_norm = norm(m, hidden, 2);
    l->post_experts_norm = norm(m, hidden, dominant == MLP ? 0.05f : 1);
    l->router = matrix(m, format(m, 7, 0), c->n_experts, hidden);
    l->router_scale = norm(m, hidden, 2 * sqrtf(hidden));
    l->per_expert_scale = norm(m, c->n_experts, 1);
    Weight **experts[] = {&l->expert_gate, &l->expert_up, &l->expert_down};
    for (int i = 0; i < 3; i++) {
        *experts[i] = take(m, c->n_experts * sizeof(Weight));
        for (int e = 0; e < c->n_experts; e++)
            (*experts[i])[e] = matrix(m, format(m, 8 + i, e), i == 2 ? hidden : c->expert_size, i == 2 ? c->expert_size : hidden);
    }
    if (m->k.one_expert) tilt(m, l);
    if (m->k.by_id) route_by_id(m, l);
    if (m->k.lora) adapt_layer(m, l);
}

static void build(Net *m, const Case *from) {
    *m = (Net){.k = *from, .random = 0x9e3779b97f4a7c15ull};
    Case *k = &m->k;
    for (const char *p = k->name; *p; p++) m->random = m->random * 31 + *p;
#define DEFAULT(field, value) (k->field = k->field ? k->field : (value))
    if (!k->steps[0]) k->steps[0] = 3, k->steps[1] = 1;
    DEFAULT(layers, "sg"), DEFAULT(weights, "bbbb bbb b bbb b -"), DEFAULT(hidden, 48), DEFAULT(n_heads, 4), DEFAULT(intermediate, 48);
    DEFAULT(vocab, 83), DEFAULT(window, 16), DEFAULT(dim[0], 16), DEFAULT(dim[1], 32), DEFAULT(kv_heads[0], 2), DEFAULT(kv_heads[1], 1);
    DEFAULT(n_experts, 4), DEFAULT(top_k, 2), DEFAULT(expert_size, 32), DEFAULT(kv, DT_F32), DEFAULT(k_scale, 0.37f), DEFAULT(softcap, 2);
    if (k->n_experts < 0) k->n_experts = k->top_k = k->expert_size = 0;
    m->context = k->start + 3;          /* a few positions stay unused */
    for (int i = 0; k->steps[i]; i++) {
        m->context += k->steps[i];
        if (k->steps[i] > m->chunk) m->chunk = k->steps[i];
    }
    m->c = (Config){strlen(k->layers), k->hidden, k->vocab, k->n_heads, k->intermediate, k->n_experts, k->top_k, k->expert_size, k->window,
                    m->context, 0, 1e-3f, k->softcap > 0 ? k->softcap : 0};
    float *inv_freq[2];
    for (int global = 0; global < 2; global++) {
        int half = k->dim[global] / 2;
        inv_freq[global] = take(m, half * sizeof(float));
        for (int i = 0; i < (global ? (half + 3) / 4 : half); i++) inv_freq[global][i] = powf(global ? 1e6f : 1e4f, -(float)i / half);
    }
    m->w.embed = matrix(m, format(m, 11, 0), k->vocab, k->hidden);
    m->w.head = format(m, 12, 0) == '-' ? m->w.embed : matrix(m, format(m, 12, 0), k->vocab, k->hidden);
    m->w.final_norm = norm(m, k->hidden, 1);
    m->w.layer = take(m, m->c.n_layers * sizeof(Layer));
    for (int i = 0; i < m->c.n_layers; i++) build_layer(m, &m->w.layer[i], k->layers[i], inv_freq);
}

/* ------------------------------------------------------------------------------------------------------------
 * The same steps on a device */

typedef struct {
    const Ops *op;
    Device *d;
    KvCache *kv;                        /* [n_layers] */
    /* What the last step gave, in host memory. */
    float *x;                           /* [1 + n_layers][n][hidden]: after embed, after each layer; only the last without probing */
    int *expert;                        /* [n_layers][n][top_k], likewise, and their weights */
    float *weight;
    float *logits;                      /* [count][vocab], of the step's last tokens */
    int first, count;
} Run;

/* Of what a position takes of a layer's K or V. */
static size_t row_bytes(const Net *m, int layer, const KvCache *kv, int is_v) {
    const Layer *l = &m->w.layer[layer];
    return (size_t)l->n_kv_heads * (is_v ? l->head_dim : kv->k_dim) * dtype_size[m->k.kv];
}

static void open_run(const Net *m, Run *r, const Ops *op) {
    Error err;
    int layers = m->c.n_layers;
    r->op = op;
    DeviceOptions o = {.max_n = m->chunk, .context = m->context, .n_threads = 1,
                       .exact = !m->k.rounded,
                       .fp4_activations = op == &cuda_ops && m->k.rounded == 2,
                       .cpu_experts = op == &cuda_ops ? m->k.cpu_experts : 0, .expert_slots = m->k.slots,
                       .fetch_experts = m->k.fetch};
    r->d = op->open(&m->c, &m->w, &o, &err);
    if (!r->d && strstr(err.text, "FP4 activations need a GPU")) skip();        /* this one is another */
    if (!r->d) fail_msg("%s", err.text);
    r->kv = xcalloc(layers, sizeof *r->kv);
    for (int i = 0; i < layers; i++) {
        int64_t ring = m->c.window + m->chunk;          /* as kv_shape (cache.c) chooses it */
        const Layer *l = &m->w.layer[i];
        int turning = 0;
        while (turning < l->head_dim / 2 && l->inv_freq[turning]) turning++;
        r->kv[i] = (KvCache){.dtype = m->k.kv, .slots = l->global || ring > m->context ? m->context : ring, .k_dim = l->head_dim};
        if (!l->v.data && m->k.kv != DT_F8_E4M3) r->kv[i].k_dim = 2 * turning;
        r->kv[i].k = op->alloc(r->kv[i].slots * row_bytes(m, i, &r->kv[i], 0));
        r->kv[i].v = op->alloc(r->kv[i].slots * row_bytes(m, i, &r->kv[i], 1));
        assert_non_null(r->kv[i].k);
        assert_non_null(r->kv[i].v);
    }
    r->x = xcalloc((size_t)(layers + 1) * m->chunk * m->c.hidden, sizeof(float));
    r->expert = xcalloc((size_t)layers * m->chunk * m->c.top_k + 1, sizeof(int));
    r->weight = xcalloc((size_t)layers * m->chunk * m->c.top_k + 1, sizeof(float));
    r->logits = xcalloc((size_t)m->chunk * m->c.vocab, sizeof(float));
}

static void close_run(const Net *m, Run *r) {
    for (int i = 0; i < m->c.n_layers; i++) {
        r->op->release(r->kv[i].k, r->kv[i].slots * row_bytes(m, i, &r->kv[i], 0));
        r->op->release(r->kv[i].v, r->kv[i].slots * row_bytes(m, i, &r->kv[i], 1));
    }
    r->op->close(r->d);
    free(r->kv);
    free(r->x);
    free(r->expert);
    free(r->weight);
    free(r->logits);
}

/* Gives all devices the same cache: random where positions before the case's start would be, NaN
 * where nothing was written, which nobody may read, or count. */
static void fill_caches(Net *m, Run *run, int n_runs) {
    for (int i = 0; i < m->c.n_layers; i++)
        for (int is_v = 0; is_v < 2; is_v++) {
            const KvCache *kv = &run[0].kv[i];
            size_t row = row_bytes(m, i, kv, is_v), bytes = kv->slots * row, n = row / dtype_size[kv->dtype];
            uint8_t *host = memset(xmalloc(bytes), 0xff, bytes);
            for (int64_t p = m->k.start - 1; p >= 0 && p >= m->k.start - kv->slots; p--)
                for (size_t at = (p % kv->slots) * n, end = at + n; at < end; at++) {
                    float v = is_v ? normal(m) : normal(m) / sqrtf(sqrtf(m->w.layer[i].head_dim));
                    if (kv->dtype == DT_F32) ((float *)host)[at] = v;
                    else if (kv->dtype == DT_BF16) ((uint16_t *)host)[at] = upper_half(v);
                    else host[at] = (next(m) & 0x80) | (0x28 + next(m) % 24);
                }
            for (int r = 0; r < n_runs; r++)
                run[r].op->copy(is_v ? run[r].kv[i].v : run[r].kv[i].k, host, bytes);
            free(host);
        }
}

/* probe: reads after every layer. */
static void forward(const Net *m, Run *r, const int *ids, int n, int64_t pos, int probe) {
    const Config *c = &m->c;
    const Ops *op = r->op;
    size_t x = (size_t)n * c->hidden, routes = (size_t)n * c->top_k;
    for (int again = m->k.abandon; again >= 0; again--) {
        op->embed(r->d, ids, n, pos);
        if (probe) op->read_x(r->d, r->x);
        for (int i = 0; i < (again ? 1 : c->n_layers); i++) {
            const Layer *l = &m->w.layer[i];
            op->qkv(r->d, l, &r->kv[i]);
            op->attend(r->d, l, &r->kv[i]);
            op->attn_out(r->d, l);
            op->mlp(r->d, l);
            if (c->n_experts) {
                op->route(r->d, l);
                op->experts(r->d, l);
            }
            op->join(r->d, l);
            if (probe) op->read_x(r->d, r->x + (i + 1) * x);
            if (probe && c->n_experts) op->read_route(r->d, r->expert + i * routes, r->weight + i * routes);
        }
    }
    r->count = n == 2 ? 1 : n < 17 ? n : 17;            /* more than cuda.cu takes at once; or the last token alone */
    op->head(r->d, n - r->count, r->count, r->logits);
    if (probe) return;
    op->read_x(r->d, r->x + c->n_layers * x);
    if (c->n_experts) op->read_route(r->d, r->expert + (c->n_layers - 1) * routes, r->weight + (c->n_layers - 1) * routes);
}

/* ------------------------------------------------------------------------------------------------------------
 * The comparison */

typedef struct {
    const Net *m;
    const char *run;
    int step, layer;                    /* layer -1: the embeddings */
    double fair;
} Place;

static void say(const Place *p, const char *what, size_t row, size_t col, double got, double want, double off) {
    fail_msg("%s, step %d, layer %d: %s [%zu][%zu] is %.9g, not %.9g: off by %.2e of the range (%.0e is fair)", p->run, p->step, p->layer, what, row,
             col, got, want, off, p->fair);
}

static double range(const float *v, size_t n) {
    float low = v[0], high = v[0];
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(v[i])) return NAN;
        if (v[i] < low) low = v[i];
        if (v[i] > high) high = v[i];
    }
    return high - low;
}

static void compare(const Place *p, const char *what, const float *got, const float *want, size_t rows, size_t cols) {
    double span = range(want, rows * cols), worst = -1;
    size_t at = 0;
    for (size_t i = 0; i < rows * cols; i++) {
        double d = fabs((double)got[i] - want[i]);
        if (!(d <= worst)) {
            worst = d;
            at = i;
            if (isnan(d)) break;
        }
    }
    if (!(worst <= p->fair * span)) say(p, what, at / cols, at % cols, got[at], want[at], worst / span);
}

/* Element i as a float, and as a whole number that grows with it, by one from a number to the next. */
static float element(const uint8_t *cache, size_t i, DType dtype, int *rank) {
    if (dtype == DT_F32) return *rank = 0, ((const float *)cache)[i];
    int bits = dtype == DT_BF16 ? ((const uint16_t *)cache)[i] : cache[i], sign = dtype == DT_BF16 ? 0x8000 : 0x80;
    *rank = bits & sign ? -(bits & ~sign) : bits;
    if (dtype == DT_BF16) return bf16_to_float(bits);
    int exponent = bits >> 3 & 15, mantissa = bits & 7;
    float v = (bits & 127) == 127 ? NAN : exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
    return bits & sign ? -v : v;
}

/* How many numbers were rounded another way, of n tokens' K or V. */
static int compare_cache(const Place *p, const char *what, const uint8_t *got, const uint8_t *want, size_t row, int64_t slots, int n) {
    size_t flips = 0;
    float high = 0;
    int a, b;
    for (size_t i = 0; i < slots * row; i++) {
        float v = fabsf(element(want, i, p->m->k.kv, &b));
        if (v > high) high = v;
    }
    for (size_t i = 0; i < slots * row; i++) {
        float g = element(got, i, p->m->k.kv, &a), w = element(want, i, p->m->k.kv, &b);
        if (a == b && (g == w || (isnan(g) && isnan(w)))) continue;
        double d = fabs((double)g - w);
        flips += a != b;
        if (!(d <= p->fair * 2 * high) && !(abs(a - b) == 1 && d < INFINITY)) say(p, what, i / row, i % row, g, w, d / (2 * high));
    }
    if (!p->m->k.rounded && flips > 2 + n * row / 20)      /* of rounded activations many are */
        fail_msg("%s, step %d, layer %d: %s: %zu numbers are rounded another way", p->run, p->step, p->layer, what, flips);
    return flips;
}

static void compare_routes(const Place *p, const Run *got, const Run *want, int n) {
    int top_k = p->m->c.top_k;
    size_t from = (size_t)p->layer * n * top_k;
    for (int i = 0; i < n * top_k; i++) {
        int e = want->expert[from + i];
        if (got->expert[from + i] != e)
            fail_msg("%s, step %d, layer %d: choice %d of token %d is expert %d, not %d", p->run, p->step, p->layer, i % top_k, i / top_k,
                     got->expert[from + i], e);
        if (p->m->k.one_expert && (e == 1 || (i % top_k == 0) != (e == 2))) fail_msg("the router does not do as the case wants");
        /* Each weight by itself: the smallest may belong to the largest output.  It is e to the power of a score, so its relative error is
         * the score's absolute one, which grows with the score. */
        Place each = *p;
        each.fair *= 1 + fabs(log(fabs(want->weight[from + i]) + 1e-30)) / 20;
        compare(&each, "weight of expert", (float[]){got->weight[from + i], 0}, (float[]){want->weight[from + i], 0}, 1, 2);
    }
}

/* Compares all that the step gave with plain_ops' results, then makes the cache the same as theirs.
 * Adds the results to *bits. */
static void compare_step(const Net *m, const char *name, int step, int n, int probe, Run *got,
                         const Run *want, Buf *bits) {
    const Config *c = &m->c;
    size_t x = (size_t)n * c->hidden;
    const Tolerance *fair = m->k.rounded == 2 ? &fp4 : m->k.rounded ? &rounded : &float32;
    Place p = {m, name, step, -1, fair->exact};
    int flips = 0;
    if (probe) compare(&p, "x", got->x, want->x, n, c->hidden);
    for (p.layer = 0; p.layer < c->n_layers; p.layer++) {
        int i = p.layer;
        for (int is_v = 0; is_v < 2; is_v++) {
            const KvCache *kv = &got->kv[i], *plain = &want->kv[i];
            size_t row = row_bytes(m, i, plain, is_v), bytes = plain->slots * row;
            uint8_t *theirs = is_v ? kv->v : kv->k, *right = is_v ? plain->v : plain->k;
            uint8_t *copy = xmalloc(bytes);
            got->op->copy(copy, theirs, bytes);
            flips += compare_cache(&p, is_v ? "V" : "K", copy, right, row / dtype_size[m->k.kv],
                                   plain->slots, n);
            buf_add(bits, copy, bytes);
            got->op->copy(theirs, right, bytes);
            free(copy);
        }
        if (flips) p.fair = m->k.kv == DT_BF16 ? fair->bf16_flip : fair->fp8_flip;
        if (!probe && i < c->n_layers - 1) continue;
        if (c->n_experts) compare_routes(&p, got, want, n);
        compare(&p, "x", got->x + (i + 1) * x, want->x + (i + 1) * x, n, c->hidden);
    }
    compare(&p, "logits", got->logits, want->logits, want->count, c->vocab);
    buf_add(bits, got->logits, (size_t)want->count * c->vocab * sizeof(float));
    buf_add(bits, got->x + c->n_layers * x, x * sizeof(float));
}

static void same_as_plain(void **state) {
    static const char *const names[] = {"reading after every layer", "reading after a step",
                                        "reading after a step, again"};
    Buf bits[3] = {{0}, {0}, {0}}, none = {0};
    Net m;
    build(&m, *state);
    uint64_t before = m.random;
    int *ids = xcalloc(m.chunk, sizeof *ids);
    for (int r = FIRST_RUN; r < RUNS; r++) {
        enum { ON_PLAIN, ON_GPU, ON_CPU };
        static const Ops *const ops[] = {&plain_ops, &cuda_ops, &cpu_ops};
        Run run[3];
        int n_runs = r == 0 ? 3 : 2;    /* nothing is put off on the CPU: one run is enough */
        int64_t pos = m.k.start;
        m.random = before;
        for (int i = 0; i < n_runs; i++) open_run(&m, &run[i], ops[i]);
        fill_caches(&m, run, n_runs);
        for (int step = 0; m.k.steps[step]; step++) {
            int n = m.k.steps[step];
            for (int i = 0; i < n; i++) ids[i] = i == 1 ? 0 : i == 2 ? m.c.vocab - 1 : (int)(next(&m) % m.c.vocab);
            for (int i = 0; i < n_runs; i++)
                forward(&m, &run[i], ids, n, pos, r == 0 || i == ON_PLAIN);
            compare_step(&m, names[r], step, n, r == 0, &run[ON_GPU], &run[ON_PLAIN], &bits[r]);
            if (r == 0) compare_step(&m, "the CPU", step, n, 1, &run[ON_CPU], &run[ON_PLAIN], &none);
            pos += n;
        }
        for (int i = 0; i < n_runs; i++) close_run(&m, &run[i]);
    }
    if (RUNS == 3 && (bits[1].len != bits[2].len || memcmp(bits[1].data, bits[2].data, bits[1].len)))
        fail_msg("two runs differ: what was computed depends on the order of threads or blocks");
    for (int r = 0; r < 3; r++) buf_free(&bits[r]);
    buf_free(&none);
    for (int i = 0; i < m.n_owned; i++) free(m.owned[i]);
    free(m.owned);
    free(ids);
}

int main(int argc, char **argv) {
    enum { N = sizeof cases / sizeof *cases };
    static struct CMUnitTest tests[N];
    Error err;
    if (!cuda_found(&err)) {
        printf("%s\n", err.text);
        return 1;
    }
    for (int i = 0; i < N; i++)
        tests[i] = (struct CMUnitTest){cases[i].name, same_as_plain, NULL, NULL, (void *)&cases[i]};
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("kernels", tests, N, NULL, NULL);
}
