#!/usr/bin/env python3
"""usage: run.py SECONDS build/fuzz_X…

Runs each fuzzer for so many seconds, on what it has kept in build/corpus/X, the files of tests/fuzz/X, and the seeds that are
made here. Exit status 1 when one has found something: build/corpus/X-crash-… and its like.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / 'fixtures'
CORPUS = HERE.parent.parent / 'build' / 'corpus'

MODELS = [FIXTURES / name for name in ('odd-experts', 'odd-bf16', 'dense', 'images/seeing')]


def header():
    data = (FIXTURES / 'images' / 'seeing' / 'model.safetensors').read_bytes()
    return [data[:8 + int.from_bytes(data[:8], 'little')]]


def index():
    return [json.dumps(seed).encode() for seed in [
        {'weight_map': {'one': 'a.safetensors', 'two': 'b.safetensors'}},
        {'metadata': {'total_size': 8, 'x': [None, True, -1.5e3]}, 'weight_map': {'o\u006ee': 'a.safetensors'}},
        {'weight_map': {'two': 'b.safetensors', 'three': 'c.safetensors'}}, {'weight_map': {'one': '../a.safetensors'}}]]


def configs():
    names = 'config.json', 'generation_config.json', 'hf_quant_config.json'
    small = [json.dumps(json.loads((m / f).read_text())).encode() if (m / f).exists() else b'{}' for m in MODELS for f in names]
    return [b'\0'.join(small[i:i + 3]) for i in range(0, len(small), 3)]


def tokenizer_json():
    """Also one of as little as there can be: the bytes, the space, a merge."""
    vocabulary = {'<0x%02X>' % i: i for i in range(256)}
    vocabulary.update({'\u2581': 256, 't': 257, 'h': 258, 'th': 259})
    least = {'added_tokens': [{'id': 260, 'content': '<|turn>', 'special': True, 'normalized': False}],
             'normalizer': {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'},
             'model': {'type': 'BPE', 'byte_fallback': True, 'vocab': vocabulary, 'merges': [['t', 'h']]}}
    return [json.dumps(least, separators=(',', ':')).encode(), (FIXTURES / 'odd-bf16' / 'tokenizer.json').read_bytes()]


def tokenizer_model():
    """The demo's, and one of its bytes and 40 more pieces."""
    whole, pieces, at = (HERE.parent.parent / 'demo' / 'tokenizer.model').read_bytes(), [], 0
    while whole[at] == 0x0a:            # a piece, of less than 128 bytes
        pieces.append(whole[at:at + 2 + whole[at + 1]])
        at += len(pieces[-1])
    kept = [p for i, p in enumerate(pieces) if b'<0x' in p or i < 20 or b'\xe2\x96\x81' in p[:8]]
    return [whole, b''.join(kept[:320]) + whole[at:]]


# By fuzzer: seeds made on the fly, a function that returns a list of bytes.
SEEDS = {'safetensors': header, 'index': index, 'config': configs, 'tokenizer_json': tokenizer_json,
         'tokenizer_model': tokenizer_model}


def main(seconds, *fuzzers):
    failed = 0
    for fuzzer in fuzzers:
        name = Path(fuzzer).name.replace('fuzz_', '', 1)
        corpus, seeds = CORPUS / name, CORPUS / (name + '-seeds')
        for path in (corpus, seeds):
            path.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(SEEDS.get(name, list)()):
            (seeds / str(i)).write_bytes(seed)
        print('==', name, flush=True)
        own = [HERE / name] if (HERE / name).is_dir() else []
        done = subprocess.run([os.path.abspath(fuzzer), '-max_total_time=' + seconds, '-timeout=10', '-rss_limit_mb=1024',
                               '-artifact_prefix=%s/%s-' % (CORPUS, name), '-print_final_stats=1', corpus, seeds,
                               *own])
        failed += done.returncode != 0
    print('%d of %d found something' % (failed, len(fuzzers)))
    return failed > 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
