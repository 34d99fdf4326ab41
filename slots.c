/* slots.c - which experts have a slot in a GPU's memory.  See slots.h. */
#include "slots.h"

#include <math.h>
#include <stdlib.h>

#include "util.h"

/* The share of its count that an expert loses with each token, so that a count tells of the last
 * hundred tokens or so.  Not measured.  Where popularity does not change, bench/expert_cache.py
 * finds the same hits from 1/16 to 1/256, and more loads with a larger share.  To tune it, compare
 * the hits in --stats over answers whose subject changes. */
#define AGEING (1.0f / 128)

/* How much higher the count of an expert must be to take another one's slot.  A load reads the
 * memory of the host, writes it, and reads it again for the bus; the CPU would have read it once.
 * So a load must bring some uses.  bench/expert_cache.py finds the same hits from 0 to 3, and the
 * fewer loads the higher.  To tune it, compare decoding with --expert-slots 32. */
#define LEAST_GAIN 2.0f

void slots_open(Slots *s, int n_layers, int n_experts, int n_slots) {
    const int64_t experts = (int64_t)n_layers * n_experts, slots = (int64_t)n_layers * n_slots;
    *s = (Slots){.n_layers = n_layers, .n_experts = n_experts, .n_slots = n_slots};
    if (!n_slots) return;
    s->slot = xcalloc(experts, sizeof *s->slot);
    s->held = xcalloc(slots, sizeof *s->held);
    s->count = xcalloc(experts, sizeof *s->count);
    for (int64_t i = 0; i < experts; i++) {
        const int e = (int)(i % n_experts);
        s->slot[i] = e < n_slots ? e : -1;
    }
    for (int64_t i = 0; i < slots; i++) s->held[i] = (int)(i % n_slots);
}

void slots_close(Slots *s) {
    free(s->slot);
    free(s->held);
    free(s->count);
    *s = (Slots){0};
}

void slots_use(Slots *s, int layer, int *expert, int n, int top_k) {
    const int *slot = s->slot + (int64_t)layer * s->n_experts;
    float *count = s->count + (int64_t)layer * s->n_experts;
    for (int t = 0; t < n; t++) {
        for (int e = 0; e < s->n_experts; e++) count[e] -= count[e] * AGEING;
        for (int k = 0; k < top_k; k++, expert++) {
            count[*expert]++;
            s->chosen++;
            if (slot[*expert] < 0) continue;
            s->hits++;
            *expert = -1;
        }
    }
}

void slots_arrive(Slots *s) {
    for (int i = 0; i < s->n_loads; i++) {
        const SlotLoad *l = &s->load[i];
        s->slot[(int64_t)l->layer * s->n_experts + l->in] = l->slot;
    }
    s->n_loads = 0;
}

/* The load that gains most in a layer: the expert with the highest count of those without a slot
 * takes the slot of the one with the lowest.  Returns the difference of their counts. */
static float best_load(const Slots *s, int layer, SlotLoad *load) {
    const int *slot = s->slot + (int64_t)layer * s->n_experts;
    const int *held = s->held + (int64_t)layer * s->n_slots;
    const float *count = s->count + (int64_t)layer * s->n_experts;
    int last = 0, in = -1;
    for (int i = 1; i < s->n_slots; i++)
        if (count[held[i]] < count[held[last]]) last = i;
    for (int e = 0; e < s->n_experts; e++)
        if (slot[e] < 0 && (in < 0 || count[e] > count[in])) in = e;
    if (in < 0) return 0;
    *load = (SlotLoad){layer, last, in, held[last]};
    return count[in] - count[held[last]];
}

int slots_learn(Slots *s, int layer, const int *seen, int n, SlotLoad *load) {
    int *slot = s->slot + (int64_t)layer * s->n_experts;
    int *held = s->held + (int64_t)layer * s->n_slots;
    float *count = s->count + (int64_t)layer * s->n_experts;
    /* What is left of a count behind n tokens, and the sum of what is left of n uses in a row. */
    const float left = powf(1 - AGEING, (float)n), sum = (1 - left) / AGEING;
    int loads = 0;
    for (int e = 0; e < s->n_experts; e++)
        count[e] = count[e] * left + sum * (float)seen[e] / (float)n;
    while (loads < s->n_slots && best_load(s, layer, &load[loads]) > LEAST_GAIN) {
        const SlotLoad l = load[loads++];
        slot[l.out] = -1;
        slot[l.in] = l.slot;
        held[l.slot] = l.in;
    }
    return loads;
}

void slots_turn(Slots *s) {
    float gain[SLOT_LOADS];             /* of s->load, falling */
    s->n_loads = 0;
    for (int layer = 0; layer < s->n_layers; layer++) {
        SlotLoad load;
        const float its = best_load(s, layer, &load);
        if (its <= LEAST_GAIN) continue;
        int at = s->n_loads;
        if (at < SLOT_LOADS) s->n_loads++;
        else if (gain[--at] >= its) continue;
        for (; at > 0 && gain[at - 1] < its; at--) {
            gain[at] = gain[at - 1];
            s->load[at] = s->load[at - 1];
        }
        gain[at] = its;
        s->load[at] = load;
    }
    for (int i = 0; i < s->n_loads; i++) {
        const SlotLoad *l = &s->load[i];
        s->slot[(int64_t)l->layer * s->n_experts + l->out] = -1;
        s->held[(int64_t)l->layer * s->n_slots + l->slot] = l->in;
    }
}
