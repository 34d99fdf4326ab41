#!/usr/bin/env python3
"""What to expect of a GPU that has no room for all experts: tokens a second, from bytes and bandwidths alone.  Nothing here is measured.

usage: split_model.py [--layout nvidia|nvfp4]     prints the tables of bench/gpu-predicted.md, "Experts on the CPU"

A token's time is what the GPU reads, at its bandwidth, and for each layer whose experts are on the CPU what the CPU reads, at its own,
plus the hand-over; the dense MLP of such a layer costs nothing where the CPU takes longer.  A prompt's time for 2048 tokens is the GPU's
own, in proportion to a predicted one; where there is room to fetch the experts of a layer, it takes at least the bus's time for them,
else the CPU multiplies.
"""
import argparse

# The 26B-A4B: bytes, from its shapes.  A sliding layer's cache holds the window and a chunk, a global one 32768 positions.
HIDDEN, LAYERS, GLOBAL, EXPERTS, TOP_K, SIZE, VOCAB = 2816, 30, 5, 128, 8, 704, 262144
ATTENTION = 25 * (3 * 4096 * HIDDEN) + GLOBAL * (2 * 8192 * HIDDEN + 1024 * HIDDEN)         # numbers of q, k, v, o
MLP = LAYERS * 3 * 2112 * HIDDEN
HEAD = 2 * VOCAB * HIDDEN
COPY = VOCAB * HIDDEN * 17 / 16                 # of the head, int8
EXPERT = 3 * SIZE * HIDDEN * 9 / 16             # NVFP4
LAYER = EXPERTS * EXPERT
CACHE = {'nvidia': 0.65e9, 'nvfp4': 1.05e9}     # FP8, BF16
ACTIVATIONS, TOWER = 0.5e9, 1.38e9
DENSE = {'nvidia': 2 * (ATTENTION + MLP), 'nvfp4': (ATTENTION + MLP) * 9 / 16}

OTHERS = 0.4e9      # what the driver and a desktop take of the GPU's memory: assumed
SHARE_GPU = 0.85    # of a GPU's bandwidth: gpusim predicts 82 to 98 % where launches do not overlap
SHARE_CPU = 0.75    # of what gemma4 bench says that memory reads: 79 % were measured on two cores (bench/README.md)
# Seconds a layer, assumed: two kernels of 3 us, a signal each way of 2 us, 11 KB read over the bus,
# and 25 us for threads that wake.
HAND_OVER = 35e-6
# Seconds a token that kernels wait for each other, assumed: 240 launches in a graph, 1 us each.
LAUNCHES = 0.25e-3

# name, GB (2^30), GB/s of the GPU, GB/s of the bus from pinned memory, GB/s of the host's memory, 10^12 operations/s of its CPU in prompts
# (0.08 a core with AVX2: bench/README.md, "Panels"), seconds for 2048 tokens with all on the GPU (gpusim's RTX 3090 or
# 4090 or 5090, in proportion to multiprocessors and clock)
MACHINES = [
    ('RTX 4050 Laptop, 6 GB; DDR5, 8 cores', 6, 192, 12, 60, 0.64, 0.95),
    ('RTX 4060 Laptop, 8 GB; DDR5, 8 cores', 8, 256, 12, 60, 0.64, 0.72),
    ('RTX 4060, 8 GB; DDR5, 8 cores', 8, 272, 12, 70, 0.64, 0.68),
    ('RTX 3060, 12 GB; DDR4, 6 cores', 12, 360, 22, 40, 0.48, 0.80),
    ('RTX 5060 Ti, 16 GB; DDR5, 8 cores', 16, 448, 22, 70, 0.64, 0.40),
    ('RTX 5070 Ti, 16 GB; DDR5, 8 cores', 16, 896, 45, 80, 0.64, 0.22),
]


def room_of(layout, gib):
    """Bytes of the GPU's memory that are left for experts, the head's copy, pictures and fetched experts."""
    return gib * 2**30 * 0.98 - OTHERS - DENSE[layout] - HEAD - ACTIVATIONS - CACHE[layout]


def split(layout, gib):
    """Layers whose experts stay on the CPU, whether the head has its copy, and whether experts are fetched: as fit_experts (session.c)."""
    room = room_of(layout, gib)
    if room < 0:
        return None, False, False
    if room >= LAYERS * LAYER:
        return 0, room >= LAYERS * LAYER + COPY + TOWER, False
    fetch = 2 * LAYER
    on_cpu = next((n for n in range(2, LAYERS + 1) if room >= (LAYERS - n) * LAYER + fetch + COPY + TOWER), LAYERS)
    left = room - (LAYERS - on_cpu) * LAYER
    return on_cpu, left >= fetch + COPY + TOWER, left >= fetch


def decode(layout, machine, on_cpu, copied):
    _, _, gpu, _, memory, _, _ = machine
    experts = TOP_K * EXPERT
    read = DENSE[layout] + (COPY if copied else HEAD) + (LAYERS - on_cpu) * experts
    return read / (gpu * 1e9 * SHARE_GPU) + on_cpu * (experts / (memory * 1e9 * SHARE_CPU) + HAND_OVER) + LAUNCHES


def prefill(machine, on_cpu, fetches):
    _, _, _, bus, memory, operations, seconds = machine
    if fetches:                         # the host reads a layer from the page cache, writes it to pinned memory, and the bus reads it there
        of_layer = max(LAYER / (bus * 1e9), 3 * LAYER / (memory * 1e9))
        return seconds + on_cpu * max(0, of_layer - seconds / LAYERS)
    of_layer = max(2 * 2048 * TOP_K * 3 * SIZE * HIDDEN / (operations * 1e12), LAYER / (memory * 1e9 * SHARE_CPU))
    return seconds + on_cpu * of_layer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--layout', choices=['nvidia', 'nvfp4'], action='append')
    for layout in parser.parse_args().layout or ['nvidia', 'nvfp4']:
        print('| %s | layers with experts on the CPU | copy of the head | experts fetched | decode, tokens/s | prompt of 2048, tokens/s |' % layout)
        print('| --- | --- | --- | --- | --- | --- |')
        for machine in MACHINES:
            on_cpu, copied, fetches = split(layout, machine[1])
            if on_cpu is None:
                print('| %s | all on the CPU | | | | |' % machine[0])
                continue
            yes = ['no', 'yes']
            print('| %s | %d of %d | %s | %s | %.0f | %.0f |' % (
                machine[0], on_cpu, LAYERS, yes[copied], yes[fetches], 1 / decode(layout, machine, on_cpu, copied),
                2048 / prefill(machine, on_cpu, fetches)))
        print()


if __name__ == '__main__':
    main()
