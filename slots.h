/* slots.h - which experts have a slot in a GPU's memory, in layers whose experts lie with the CPU
 * (cached.cu).
 *
 * Every layer has the same number of slots.  An expert's count grows by 1 with each use and loses a
 * share with each token.  Between two steps slots_turn gives slots of experts with low counts to
 * experts with higher ones.  What it decides depends on nothing but the experts that were used.  So
 * the same tokens find the same experts in slots in every run. */
#ifndef SLOTS_H
#define SLOTS_H

#include <stdint.h>

/* Experts that are loaded in a step at most.  Computed, not measured: bench/expert_cache.py has
 * what 1 to 16 loads a step would bring.  More loads find the right experts sooner, and take the
 * host's memory from the CPU's products.  To tune it, compare decoding with --expert-slots 32. */
#define SLOT_LOADS 4

/* The expert `in` takes the slot from the expert `out`. */
typedef struct {
    int layer, slot, in, out;
} SlotLoad;

typedef struct {
    int n_layers, n_experts;
    int n_slots;                        /* of each layer; 0: there are none */
    int *slot;                          /* [n_layers][n_experts] the expert's slot, or -1 */
    int *held;                          /* [n_layers][n_slots] the expert that is there or comes */
    float *count;                       /* [n_layers][n_experts] */
    SlotLoad load[SLOT_LOADS];          /* [n_loads] that are under way: no step sees `in` yet */
    int n_loads;
    int64_t chosen, hits;               /* choices so far; those whose expert had a slot */
} Slots;

/* Slot i of each layer holds expert i, i < n_slots <= n_experts.  slots_close frees the arrays. */
void slots_open(Slots *s, int n_layers, int n_experts, int n_slots);
void slots_close(Slots *s);

/* Counts the experts [n][top_k] that n tokens chose in `layer`.  Those that have a slot become -1
 * in the array: they are left to the GPU. */
void slots_use(Slots *s, int layer, int *expert, int n, int top_k);

/* n tokens chose expert e of `layer` seen[e] times, in a step in which all experts are on the GPU:
 * counts them as if they had been spread evenly over the tokens.  Then slots change hands as in
 * slots_turn, as many as it pays to: the loads go to load [n_slots], and their number is returned.
 * They count as done.  No other load is under way. */
int slots_learn(Slots *s, int layer, const int *seen, int n, SlotLoad *load);

/* The loads that are under way have ended: from now on the experts have their slots. */
void slots_arrive(Slots *s);

/* Decides which loads shall be under way, after slots_arrive.  The experts whose slots they take
 * have none any more. */
void slots_turn(Slots *s);

#endif
