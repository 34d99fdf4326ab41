/* test_slots.c - which experts get slots: who is used, who is loaded, and when a step sees it. */
#include "../slots.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

enum { LAYERS = 9, EXPERTS = 13, TOP_K = 3 };

static uint64_t state;

static int below(int n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int)((state >> 33) % (uint64_t)n);
}

static int slot_of(const Slots *s, int layer, int e) { return s->slot[layer * s->n_experts + e]; }

/* A token's choice in a layer of experts from .. EXPERTS - 1, without repetition. */
static void choose(int from, int expert[TOP_K]) {
    for (int k = 0; k < TOP_K; k++) {
        expert[k] = from + below(EXPERTS - from);
        for (int j = 0; j < k; j++)
            if (expert[j] == expert[k]) k = -1, j = TOP_K;
    }
}

/* A slot belongs to the expert that it holds, unless the expert is still under way. */
static void check_tables(const Slots *s) {
    for (int layer = 0; layer < s->n_layers; layer++) {
        int visible = 0, under_way = 0;
        for (int e = 0; e < s->n_experts; e++) {
            const int slot = slot_of(s, layer, e);
            if (slot < 0) continue;
            visible++;
            assert_in_range(slot, 0, s->n_slots - 1);
            assert_int_equal(s->held[layer * s->n_slots + slot], e);
        }
        for (int i = 0; i < s->n_loads; i++) {
            const SlotLoad *l = &s->load[i];
            if (l->layer != layer) continue;
            under_way++;
            assert_int_equal(s->held[layer * s->n_slots + l->slot], l->in);
            assert_int_equal(slot_of(s, layer, l->in), -1);
            assert_int_equal(slot_of(s, layer, l->out), -1);
        }
        assert_int_equal(visible + under_way, s->n_slots);
        assert_true(under_way <= 1);
    }
}

/* The tables hold together through random steps, some of them given up after a few layers; the same steps lead to the same loads. */
static void random_steps(void **unused) {
    (void)unused;
    for (int n_slots = 1; n_slots <= EXPERTS; n_slots++) {
        Slots s[2];
        int loads = 0;
        for (int run = 0; run < 2; run++) slots_open(&s[run], LAYERS, EXPERTS, n_slots);
        state = 7;
        for (int step = 0; step < 300; step++) {
            const int n = 1 + below(4), end = step % 5 ? LAYERS : below(LAYERS);
            for (int layer = 0; layer < end; layer++) {
                int expert[2][4 * TOP_K], hits = 0;
                const int64_t before = s[0].hits;
                for (int t = 0; t < n; t++) choose(below(EXPERTS - TOP_K), expert[0] + t * TOP_K);
                memcpy(expert[1], expert[0], sizeof expert[1]);
                for (int run = 0; run < 2; run++) slots_use(&s[run], layer, expert[run], n, TOP_K);
                for (int i = 0; i < n * TOP_K; i++) {
                    assert_int_equal(expert[0][i], expert[1][i]);
                    if (expert[0][i] < 0) hits++;
                    else assert_int_equal(slot_of(&s[0], layer, expert[0][i]), -1);
                }
                assert_int_equal(s[0].hits - before, hits);
            }
            for (int run = 0; run < 2; run++) {
                slots_arrive(&s[run]);
                check_tables(&s[run]);
                slots_turn(&s[run]);
                check_tables(&s[run]);
            }
            assert_in_range(s[0].n_loads, 0, SLOT_LOADS);
            assert_int_equal(s[0].n_loads, s[1].n_loads);
            for (int i = 0; i < s[0].n_loads; i++) {
                assert_int_equal(s[0].load[i].layer, s[1].load[i].layer);
                assert_int_equal(s[0].load[i].slot, s[1].load[i].slot);
                assert_int_equal(s[0].load[i].in, s[1].load[i].in);
                assert_int_equal(s[0].load[i].out, s[1].load[i].out);
            }
            loads += s[0].n_loads;
        }
        assert_int_equal(loads > 0, n_slots < EXPERTS);
        for (int run = 0; run < 2; run++) slots_close(&s[run]);
    }
}

static void step_of(Slots *s, int layer, const int *expert, int n) {
    int copy[TOP_K];
    memcpy(copy, expert, n * sizeof *copy);
    slots_use(s, layer, copy, 1, n);
    slots_arrive(s);
    slots_turn(s);
}

/* Two uses more than another expert are not enough; three are.  A load is seen by the step after the next one. */
static void what_pays(void **unused) {
    (void)unused;
    Slots s;
    slots_open(&s, 1, EXPERTS, 2);
    for (int i = 1; i <= 3; i++) {
        step_of(&s, 0, (int[]){5}, 1);
        assert_int_equal(s.n_loads, i == 3);
    }
    assert_memory_equal(&s.load[0], (&(SlotLoad){0, 0, 5, 0}), sizeof(SlotLoad));
    assert_int_equal(s.hits, 0);
    step_of(&s, 0, (int[]){5}, 1);      /* still under way */
    assert_int_equal(s.hits, 0);
    assert_int_equal(slot_of(&s, 0, 5), 0);
    step_of(&s, 0, (int[]){5, 1}, 2);
    assert_int_equal(s.hits, 2);
    assert_int_equal(s.chosen, 6);
    assert_int_equal(slot_of(&s, 0, 0), -1);
    slots_close(&s);
}

/* The experts that are used get the slots in all layers, the most promising layers first; and others do when the use changes. */
static void follows_use(void **unused) {
    (void)unused;
    Slots s;
    slots_open(&s, LAYERS, EXPERTS, TOP_K);
    for (int first = 3; first >= 0; first -= 3) {
        for (int step = 0; step < 200; step++) {
            for (int layer = 0; layer < LAYERS; layer++) {
                int expert[TOP_K] = {first, first + 1, first + 2};
                slots_use(&s, layer, expert, 1, TOP_K);
            }
            slots_arrive(&s);
            slots_turn(&s);
            check_tables(&s);
        }
        assert_int_equal(s.n_loads, 0);
        for (int layer = 0; layer < LAYERS; layer++)
            for (int e = 0; e < EXPERTS; e++) assert_int_equal(slot_of(&s, layer, e) >= 0, e >= first && e < first + 3);
    }
    slots_close(&s);
}

/* What a step that fetches has seen fills all slots at once, in its layer alone; what it has not seen loses all. */
static void learns(void **unused) {
    (void)unused;
    Slots s;
    SlotLoad load[4];
    int seen[EXPERTS] = {[12] = 500, [3] = 400, [5] = 90, [7] = 10};
    slots_open(&s, 2, EXPERTS, 4);
    for (int i = 0; i < 100; i++) step_of(&s, 1, (int[]){0}, 1);
    assert_int_equal(slots_learn(&s, 1, seen, 1000, load), 2);          /* 7 is not worth a load, 3 has a slot */
    check_tables(&s);
    for (int i = 0; i < 2; i++) assert_int_equal(load[i].in, i ? 5 : 12);
    for (int e = 0; e < EXPERTS; e++) {
        assert_int_equal(slot_of(&s, 0, e) >= 0, e < 4);
        if (seen[e] > 50) assert_true(slot_of(&s, 1, e) >= 0);
    }
    assert_int_equal(slots_learn(&s, 1, seen, 1000, load), 0);
    memset(seen, 0, sizeof seen);
    for (int e = 6; e < 10; e++) seen[e] = 250;
    assert_int_equal(slots_learn(&s, 1, seen, 1000, load), 4);
    check_tables(&s);
    for (int e = 0; e < EXPERTS; e++) assert_int_equal(slot_of(&s, 1, e) >= 0, e >= 6 && e < 10);
    slots_close(&s);
}

/* Without slots there is nothing to do, and nothing is taken. */
static void no_slots(void **unused) {
    (void)unused;
    Slots s;
    slots_open(&s, LAYERS, EXPERTS, 0);
    assert_null(s.slot);
    slots_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_steps), cmocka_unit_test(what_pays), cmocka_unit_test(follows_use),
                                       cmocka_unit_test(learns), cmocka_unit_test(no_slots)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
