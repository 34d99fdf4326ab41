#!/usr/bin/env python3
"""A long prompt with a needle at 1 %, 50 % and 99 %: the reference's logits there, tests/fixtures/long.ref.safetensors.

usage: make_long.py [N]                 N tokens (default 1500): writes the fixture; needs torch, transformers 5.23, safetensors
       make_long.py N --check PROGRAM [OPTION...]
                                        compares the program, run with these options (--exact), with the reference at any
                                        length, and writes nothing

The checkpoint is odd-bf16, its max_position_embeddings raised to 262144. Between the needles, which are the same sixteen tokens,
stands a sequence that never repeats. The reference is transformers in float32, fed 512 tokens at a time. At 200000 tokens the
reference takes 7 minutes of a core and 2 GB, the program with --exact more than 20 for the first 94000 of them.

long.ref.safetensors: ids [N], positions [p], logits_f32 [p, vocab].
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, 'fixtures', 'odd-bf16')
NEEDLE = [411, 87, 302, 298, 130, 77, 450, 203, 96, 340, 12, 488, 267, 154, 391, 35]
CONTEXT = 262144


def prompt(n):
    """ids, and the positions to look at: the end of each needle, and of the prompt."""
    ids, x = [2], 1
    while len(ids) < n:
        x = (x * 1103515245 + 12345) % 2 ** 31
        ids.append(10 + (x >> 16) % 480)
    at = [n // 100, n // 2, n - n // 100 - len(NEEDLE)]
    for a in at:
        ids[a:a + len(NEEDLE)] = NEEDLE
    return ids, [a + len(NEEDLE) - 1 for a in at] + [n - 1]


def far_checkpoint(path):
    """odd-bf16 with room for 262144 positions."""
    shutil.copytree(SOURCE, path, copy_function=shutil.copyfile)
    with open(os.path.join(path, 'config.json')) as f:
        config = json.load(f)
    config['text_config']['max_position_embeddings'] = CONTEXT
    with open(os.path.join(path, 'config.json'), 'w') as f:
        json.dump(config, f)
    return path


def reference(path, ids, positions):
    import torch
    from transformers import DynamicCache, Gemma4ForConditionalGeneration
    torch.set_grad_enabled(False)
    model = Gemma4ForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    cache, rows = DynamicCache(config=model.config.text_config), {}     # sliding layers keep their window, and see nothing else
    for begin in range(0, len(ids), 512):
        chunk = ids[begin:begin + 512]
        want = [p - begin for p in positions if begin <= p < begin + len(chunk)]
        out = model(input_ids=torch.tensor([chunk]), past_key_values=cache, use_cache=True,
                    logits_to_keep=torch.tensor(want or [0]))
        for k, p in enumerate(want):
            rows[begin + p] = out.logits[0, k].clone()
    return torch.stack([rows[p] for p in positions])


def ours(program, options, path, ids, positions, n_vocab, scratch):
    given, logits = os.path.join(scratch, 'ids'), os.path.join(scratch, 'logits')
    with open(given, 'w') as f:
        f.write(' '.join(map(str, ids)))
    subprocess.run([program, 'score', '-m', path, '--ids', given, '--logits', logits, *options, '-c', str(len(ids)), '--summary'],
                   check=True, stdout=subprocess.DEVNULL)
    with open(logits, 'rb') as f:
        for p in positions:
            f.seek(4 * n_vocab * p)
            yield f.read(4 * n_vocab)


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    program = sys.argv[3] if sys.argv[2:3] == ['--check'] else None
    import torch
    from safetensors.torch import save_file
    ids, positions = prompt(n)
    with tempfile.TemporaryDirectory() as scratch:
        path = far_checkpoint(os.path.join(scratch, 'far'))
        start = time.time()
        want = reference(path, ids, positions)
        print('reference: %d tokens, %.0f s' % (n, time.time() - start), flush=True)
        if not program:
            save_file({'ids': torch.tensor(ids), 'positions': torch.tensor(positions), 'logits_f32': want},
                      os.path.join(HERE, 'fixtures', 'long.ref.safetensors'))
            return
        start = time.time()
        spread = (want.max() - want.min()).item()
        for p, w, row in zip(positions, want, ours(program, sys.argv[4:] or ['--exact'], path, ids, positions, want.shape[1], scratch)):
            got = torch.frombuffer(bytearray(row), dtype=torch.float32)
            print('position %d: off by %.1e of the range, %s token first' % (
                p, (got - w).abs().max().item() / spread, 'the same' if got.argmax() == w.argmax() else 'ANOTHER'))
        print('ours: %.0f s' % (time.time() - start))


if __name__ == '__main__':
    main()
