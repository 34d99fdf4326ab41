#!/usr/bin/env python3
"""How many rows and tiles of the head does the bound of head.cu leave to be computed?  Needs numpy.

    bench/screen.py [rows (262144)]

Simulated: the weights are random, of the 26B-A4B's shape, and so is the vector that the rows are
multiplied with.  `bits` is the width of the copy's numbers: head.cu has 8.  A row's logit is
k times the logits' standard deviation above their mean with the probability of a normal number."""
import sys

import numpy as np

HIDDEN, GROUP, TILE, SOFTCAP = 2816, 32, 8, 30
SPREAD = 3                              # of the logits: their standard deviation
RNG = np.random.default_rng(1)


def bf16(x, add):
    """add: 0x8000 rounds to nearest (but for ties), 0xffff rounds up."""
    return ((x.astype(np.float32).view(np.uint32) + add) & 0xffff0000).view(np.float32)


def normal(n): return RNG.standard_normal((n, HIDDEN), np.float32)


def student(n): return (RNG.standard_t(4, (n, HIDDEN)) / 2 ** .5).astype(np.float32)


def norms(n): return normal(n) * np.exp(0.3 * RNG.standard_normal((n, 1))).astype(np.float32)


def edge(lower, k):
    """The k-th largest lower bound, rounded down to a bin of count_kernel."""
    kth = np.sort(lower)[-k:][:1].astype(np.float32)
    return float((kth.view(np.uint32) >> 19 << 19).view(np.float32)[0]) if kth[0] > 0 else kth[0]


def screen(weights, rows, all_bits):
    """{bits: (the copy's logits, their bounds)}."""
    y = RNG.standard_normal(HIDDEN).astype(np.float32)
    length, found = np.linalg.norm(y), {bits: ([], []) for bits in all_bits}
    for first in range(0, rows, 8192):
        w = bf16(weights(min(8192, rows - first)) * np.float32(SPREAD / HIDDEN ** .5), 0x8000)
        group = w.reshape(len(w), -1, GROUP)
        for bits, (logits, bounds) in found.items():
            scale = bf16(np.abs(group).max(2, keepdims=True) / (2 ** (bits - 1) - 1), 0xffff)
            copy = (np.rint(group / scale) * scale).reshape(w.shape)
            error = np.linalg.norm(w - copy, axis=1)
            rounding = (3072 * 3 / 4 + 64) * 2. ** -23
            logits.append(copy @ y)
            bounds.append(length * (error + (np.linalg.norm(w, axis=1) + error) * rounding))
    return {bits: [np.concatenate(part) for part in parts] for bits, parts in found.items()}


def cap(x): return SOFTCAP * np.tanh(x / SOFTCAP)


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 262144
    print('| weights | largest logit | bits | bound | rows, k = 1 | tiles | rows, k = 64 | tiles |')
    print('| --- ' * 8 + '|')
    for weights in normal, student, norms:
        found = screen(weights, rows, (8, 7, 6, 4))
        for sure in 0, 8:               # one row's logit lies so many deviations above the mean
            for bits, (logits, bounds) in found.items():
                if sure: logits[rows // 3] = sure * SPREAD
                shown = []
                for k in 1, 64:
                    left = cap(logits + bounds) >= edge(cap(logits - bounds), k)
                    tiles = left.reshape(-1, TILE).any(1).sum()
                    shown += ['%d' % left.sum(), '%d (%.1f %%)' % (tiles, 100 * tiles * TILE / rows)]
                print('| %s | %s | %d | %.2f | %s |' % (
                    weights.__name__, '%d deviations' % sure if sure else 'any', bits,
                    np.median(bounds) / logits.std(), ' | '.join(shown)), flush=True)


main()
