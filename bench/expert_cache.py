#!/usr/bin/env python3
"""What a cache of single experts on the GPU is worth, where the GPU has no room for all layers' experts.  Nothing here is measured.

usage: bench/expert_cache.py [--routes FILE]        prints the tables of bench/gpu-predicted.md, "A cache of single experts"

Every layer has the same number of slots.  A slot holds one expert, and the CPU computes those that have none (split_model.py has the
machines and their time without a cache).  Routing is drawn: an expert's popularity is its rank to the power of -skew, and a token keeps
each expert of the token before with the probability `kept`; every layer has ranks of its own.  --routes reads real routing instead, a
line for each token and layer: the layer, then the chosen experts (bench/routes.c prints them).

The policies.  lru: a missed expert takes the slot of the least recently used one.  count: each expert has a count, which loses a share
for each token and gains 1 for each use; an expert takes the slot of the lowest count if its own is higher by MARGIN.  Both may load so
many experts a step; what is loaded after a step serves the step after the next one, as the copy takes the next one's time.
"""
import argparse
import random
from collections import defaultdict

from split_model import COPY, DENSE, EXPERT, EXPERTS, HAND_OVER, HEAD, LAUNCHES, LAYER, LAYERS, MACHINES, SHARE_CPU, SHARE_GPU, \
    TOP_K, TOWER, decode, prefill, room_of, split

SIMULATED = 6       # layers, for all LAYERS; they share as much of the loads
TOKENS = 512        # an answer; the cache begins with arbitrary experts
AGEING = 1 / 128    # of its count an expert loses for each token
MARGIN = 2          # a load must promise more: it reads memory three times, the CPU would once
LOADS = 4           # as SLOT_LOADS in slots.h
# (skew, kept): no locality at all, …, and what comes closest to the hits that others have measured of the 26B-A4B
CASES = (0, 0), (0.5, 0), (0.75, 0), (0.75, 0.2), (1, 0), (1, 0.4)


def drawn(skew, kept, layers=SIMULATED, tokens=TOKENS):
    """routes[token][layer]: a list of experts."""
    draw = random.Random(1)
    ranks = [draw.sample(range(EXPERTS), EXPERTS) for _ in range(layers)]
    total, edges = 0, []
    for rank in range(EXPERTS):
        total += (rank + 1) ** -skew
        edges.append(total)
    routes, before = [], [[] for _ in range(layers)]
    for _ in range(tokens):
        for layer in range(layers):
            chosen = [e for e in before[layer] if draw.random() < kept]
            while len(chosen) < TOP_K:
                chosen += [e for e in (ranks[layer][draw.choices(range(EXPERTS), cum_weights=edges)[0]],) if e not in chosen]
            before[layer] = chosen
        routes.append(list(before))
    return routes


class Cache:
    """Slots for one layer's experts.  key[e]: the higher, the sooner e is to have a slot."""
    def __init__(self, policy, slots, experts):
        self.count = policy == 'count'
        self.held, self.key = set(range(slots)), [0.0] * experts

    def use(self, chosen, now):
        """Returns the hits."""
        if self.count:
            self.key = [k * (1 - AGEING) for k in self.key]
        for e in chosen:
            self.key[e] = self.key[e] + 1 if self.count else now + 1
        return sum(e in self.held for e in chosen)

    def best(self):
        """The load that promises most: (gain, the expert that is loaded, the one that it replaces)."""
        if not self.held or len(self.held) == len(self.key):
            return None
        out = min(self.held, key=lambda e: (self.key[e], e))
        into = max((e for e in range(len(self.key)) if e not in self.held), key=lambda e: (self.key[e], -e))
        gain = self.key[into] - self.key[out]
        return (gain, into, out) if gain > (MARGIN if self.count else 0) else None


def after_prompt(routes, prompt, slots, how):
    """Caches behind a prompt of so many tokens, in which the GPU has all experts.  how: 'none', they know nothing of it; 'counted', they
    have its counts; 'filled', the most popular experts are in the slots, too."""
    caches = [Cache('count', slots, EXPERTS) for _ in routes[0]]
    for step in routes[:prompt] if how != 'none' else ():
        for cache, chosen in zip(caches, step):
            cache.use(chosen, 0)
    if how == 'filled':
        for cache in caches:
            cache.held = set(sorted(range(EXPERTS), key=lambda e: -cache.key[e])[:slots])
    return caches


def simulate(routes, policy, slots, loads, experts=EXPERTS, caches=None):
    """The share of choices that hit, and loads a step; loads: at most so many a step in these layers, perhaps a fraction."""
    caches = caches or [Cache(policy, slots, experts) for _ in routes[0]]
    hits = n_loads = chosen = 0
    allowed, under_way = 0.0, []
    for now, step in enumerate(routes):
        for layer, e in under_way:
            caches[layer].held.add(e)
        under_way = []
        for cache, experts_of in zip(caches, step):
            hits += cache.use(experts_of, now)
            chosen += len(experts_of)
        allowed = min(allowed, 1) + loads
        best = [cache.best() for cache in caches]
        while allowed >= 1 and any(best):
            layer = max((i for i in range(len(best)) if best[i]), key=lambda i: best[i][0])
            _, into, out = best[layer]
            caches[layer].held.discard(out)
            under_way.append((layer, into))
            n_loads += 1
            allowed -= 1
            best[layer] = None          # one load a layer and step
    return hits / chosen, n_loads / len(routes)


def decode_cached(layout, machine, copied, hit, loads):
    """Seconds a token with a cache in all layers.  A load reads the host's memory, writes pinned memory, and the bus reads it there."""
    _, _, gpu, bus, memory, _, _ = machine
    gpu, memory = gpu * 1e9 * SHARE_GPU, memory * 1e9 * SHARE_CPU
    experts = TOP_K * EXPERT
    # The GPU's blocks share the rows of all chosen experts, so that misses save it no time.
    layer = max(experts / gpu, (1 - hit) * experts / memory) + HAND_OVER
    step = (DENSE[layout] + (COPY if copied else HEAD)) / gpu + LAYERS * layer + LAUNCHES
    return max(step + loads * 3 * EXPERT / memory, loads * EXPERT / (bus * 1e9))


def slots_of(layout, machine):
    """Slots a layer where all layers' experts are with the CPU; the head's copy and fetched experts have the room that split gives them."""
    _, copied, fetches = split(layout, machine[1])
    left = room_of(layout, machine[1]) - (2 * LAYER if fetches else 0) - (COPY + TOWER if copied else 0)
    return max(0, min(EXPERTS, int(left / (LAYERS * EXPERT))))


def read_routes(path):
    tokens = defaultdict(dict)
    at = defaultdict(int)
    for line in open(path):
        layer, *chosen = map(int, line.split())
        tokens[at[layer]][layer] = chosen
        at[layer] += 1
    return [[step[layer] for layer in sorted(step)] for _, step in sorted(tokens.items())]


def print_table(titles, rows):
    print('| ' + ' | '.join(titles) + ' |')
    print('| ' + ' | '.join(['---'] * len(titles)) + ' |')
    for row in rows:
        print('| ' + ' | '.join(map(str, row)) + ' |')
    print()


def hit_tables():
    """Hits in per cent: of 24 slots by lru without a limit, which can be compared with what others measured; then by policy and limit."""
    kept = 0, 0.2, 0.4, 0.6
    rows = [['skew %.2f' % skew] + ['%.0f' % (100 * simulate(drawn(skew, k), 'lru', 24, 99)[0]) for k in kept]
            for skew in (0, 0.5, 0.75, 1, 1.25)]
    print_table(['24 of 128 slots, lru, every miss loaded'] + ['kept %.1f' % k for k in kept], rows)
    policies = ('lru', LOADS), ('count', 1), ('count', LOADS), ('count', 16)
    rows = []
    for skew, kept in CASES:
        routes = drawn(skew, kept)
        row = [case_name(skew, kept)]
        for slots in 10, 32, 74:
            for policy, loads in policies:
                hit, n = simulate(routes, policy, slots, loads * SIMULATED / LAYERS)
                row.append('%.0f (%.1f)' % (100 * hit, n * LAYERS / SIMULATED))
        rows.append(row)
    print_table(['hits in per cent (loads a step)'] + ['%d slots: %s, %d' % (slots, *p) for slots in (10, 32, 74) for p in policies], rows)


def case_name(skew, kept):
    return 'skew %.2f' % skew + (', kept %.1f' % kept if kept else '')


def prompt(machine, slots, fetches, chunks=1):
    """Seconds of a prompt of so many times 2048 tokens in one chunk.  What has a slot is not fetched."""
    seconds, of_layer = chunks * machine[-1], (prefill(machine, 1, fetches) - machine[-1]) + machine[-1] / LAYERS
    if not fetches:
        return prefill(machine, LAYERS, fetches)
    return seconds + LAYERS * max(0, of_layer * (1 - slots / EXPERTS) - seconds / LAYERS)


def gain_tables():
    for layout in 'nvidia', 'nvfp4':
        rows = []
        for machine in MACHINES:
            on_cpu, copied, fetches = split(layout, machine[1])
            if on_cpu is None:
                continue
            slots = slots_of(layout, machine)
            without = decode(layout, machine, on_cpu, copied)
            row = [machine[0], '%d of %d' % (on_cpu, LAYERS), slots,
                   '%.0f, %.0f' % (2048 / prefill(machine, on_cpu, fetches), 2048 / prompt(machine, slots, fetches)), '%.0f' % (1 / without)]
            for skew, kept in CASES:
                hit, n = simulate(drawn(skew, kept), 'count', slots, LOADS * SIMULATED / LAYERS)
                with_cache = decode_cached(layout, machine, copied, hit, n * LAYERS / SIMULATED)
                row.append('%.0f (%+.0f %%)' % (1 / with_cache, 100 * (without / with_cache - 1)))
            rows.append(row)
        print_table([layout, 'layers with experts on the CPU', 'or slots of each', 'prompt of 2048, without slots and with', 'decode without'] +
                    [case_name(*case) for case in CASES], rows)


def chunk_table():
    """Chunks of 2048 tokens and of 4096, whose activations and rings of sliding layers take the room of some slots."""
    rows = []
    for layout, more in ('nvidia', 0.74e9), ('nvfp4', 0.95e9):
        for machine in MACHINES:
            on_cpu, copied, fetches = split(layout, machine[1])
            if on_cpu is None:
                continue
            row = [layout, machine[0]]
            all_slots = slots_of(layout, machine)
            for chunks, slots in (1, all_slots), (2, max(0, int(all_slots - more / (LAYERS * EXPERT)))):
                hit, n = simulate(drawn(1, 0.4), 'count', slots, LOADS * SIMULATED / LAYERS)
                row += [slots, '%.0f' % (1 / decode_cached(layout, machine, copied, hit, n * LAYERS / SIMULATED)),
                        '%.0f' % (2048 * chunks / prompt(machine, slots, fetches, chunks))]
            rows.append(row)
    print_table(['', ''] + ['chunks of %d: %s' % (n, what) for n in (2048, 4096) for what in ('slots', 'decode', 'prompt')], rows)


def prompt_table():
    """Hits of an answer behind a prompt of 512 tokens with the same popular experts, by what the slots learn from the prompt."""
    rows = []
    for skew, kept in CASES:
        routes = drawn(skew, kept, tokens=1024)
        row = [case_name(skew, kept)]
        for slots in 10, 52, 94:
            for answer in 128, 512:
                row.append(', '.join('%.0f' % (100 * simulate(routes[512:512 + answer], 'count', slots, LOADS * SIMULATED / LAYERS,
                                                              caches=after_prompt(routes, 512, slots, how))[0])
                                     for how in ('none', 'counted', 'filled')))
        rows.append(row)
    print_table(['hits in per cent'] + ['%d slots, %d tokens' % (slots, answer) for slots in (10, 52, 94) for answer in (128, 512)], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--routes')
    given = parser.parse_args()
    if not given.routes:
        hit_tables()
        gain_tables()
        chunk_table()
        prompt_table()
        return
    routes = read_routes(given.routes)
    experts = 1 + max(e for step in routes for chosen in step for e in chosen)
    rows = []
    for slots in sorted({experts * i // 8 for i in range(1, 8)}):
        row = ['%d of %d' % (slots, experts), '%.0f' % (100 * slots / experts)]
        for policy, loads in ('lru', 99), ('lru', 1), ('count', 1), ('count', 99):
            hit, n = simulate(routes, policy, slots, loads, experts)
            row.append('%.0f (%.1f)' % (100 * hit, n))
        rows.append(row)
    print_table(['slots', 'whole layers', 'lru', 'lru, 1 load', 'count, 1 load', 'count'], rows)


if __name__ == '__main__':
    main()
