#!/usr/bin/env python3
"""What every shortcut costs: writes the device's section of bench/quality.md (python's standard library only).

usage: bench/quality.py [PROGRAM [DEVICE [MACHINE]]]
        default: ./gemma4 cpu, and this machine; build/tests/gemma4_emu cuda emulates a GPU;
        a script that starts the program under qemu-aarch64, with cpu aarch64, emulates ARM

Each checkpoint reads tokens of its reference: prompts and what transformers goes on with. `--exact` (float32 throughout) is the
yardstick: its logits are stored, and every other way of running is compared with them by `gemma4 score --reference`.
"""
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from array import array
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tests'))
import dialect  # noqa: E402
FIXTURES = ROOT / 'tests' / 'fixtures'
DEFAULTS = ['./gemma4', 'cpu', platform.machine()]
PROGRAM, DEVICE, MACHINE = (sys.argv[1:] + DEFAULTS[len(sys.argv) - 1:])[:3]
ARM = DEVICE == 'cpu' and MACHINE == 'aarch64'
QEMU = MACHINE != platform.machine()  # which takes seconds for a token of the demo
F32 = '--kv', 'f32'
KERNELS = [('activations of 16 bits, NEON (float32 where tokens are many)', F32, 'neon'),
           ('likewise, BF16 products where tokens are many', F32, 'neon-bf16')] if ARM else \
    [('activations of 16 bits, AVX2 (BF16 weights of 13 bits where tokens are many)', F32, 'avx2'),
     ('likewise, AVX2 with AVX-VNNI', F32, 'avx2-vnni'), ('likewise, AVX-512', F32, 'avx512'),
     ('likewise, AMX', F32, 'amx'), ('`--activations 8`, AVX2 (INT8 with 16)', (*F32, '--activations', '8'), 'avx2'),
     ('`--activations 8`, AVX2 with AVX-VNNI', (*F32, '--activations', '8'), 'avx2-vnni'),
     ('`--activations 8`, AVX-512', (*F32, '--activations', '8'), 'avx512'),
     ('`--activations 8`, AMX (one BF16)', (*F32, '--activations', '8'), 'amx')]
WAYS = KERNELS if DEVICE == 'cpu' else [('float32 cache', F32, '')]
if not ARM:  # what a rounded cache costs stands in x86's section
    WAYS += [('BF16 cache', ('--kv', 'bf16'), ''), ('FP8 cache', ('--kv', 'fp8'), '')]
FP4 = 'float32 cache, FP4 activations', (*F32, '--fp4-activations'), ''      # where the GPU has them


E2M1 = [0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6]
E4M3 = [(8 + b % 8) * 2.0 ** (b // 8 - 10) if b >= 8 else b * 2.0 ** -9 for b in range(128)]


def numbers(tensors, name):
    """The numbers of a matrix in BF16 or NVFP4 (modelopt), row after row."""
    dtype, shape, data = tensors[name]
    if dtype == 'BF16':
        return array('f', b''.join(b'\0\0' + data[i:i + 2] for i in range(0, len(data), 2)))
    scale = struct.unpack('<f', tensors[name + '_scale_2'][2])[0]
    blocks = [E4M3[b & 127] * scale for b in tensors[name + '_scale'][2]]
    return array('f', (E2M1[n] * blocks[i // 8] for i, byte in enumerate(data) for n in (byte & 15, byte >> 4)))


def as_integers(source, out, bits):
    """A checkpoint whose text matrices are rounded to INT4 or INT8, groups of 32 columns with a scale in BF16, no zero points."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns('*.safetensors*', 'hf_quant_config.json'))
    config = json.loads((out / 'config.json').read_text())
    config.pop('quantization_config', None)  # it announces NVFP4
    (out / 'config.json').write_text(json.dumps(config))
    tensors, middle = dialect.read_checkpoint(source), 1 << bits - 1
    for name in list(tensors):
        if not name.endswith('_proj.weight') or 'vision' in name:
            continue
        cols = len(w := numbers(tensors, name)) // (rows := tensors[name][1][0])
        scales, q = bytearray(), bytearray()
        for i in range(0, len(w), 32):
            group = w[i:i + 32]
            stored = struct.pack('<f', max(map(abs, group)) / (middle - .5))[2:]        # BF16, cut off
            scale = struct.unpack('<f', b'\0\0' + stored)[0] or 1
            scales += stored
            q += bytes(min(max(round(v / scale) + middle, 0), 2 * middle - 1) for v in group)
        for leaf in 'weight', 'weight_scale', 'weight_scale_2', 'input_scale':
            tensors.pop(name[:-len('weight')] + leaf, None)
        packed = bytes(q) if bits == 8 else bytes(low | high << 4 for low, high in zip(q[::2], q[1::2]))
        tensors[name + '_packed'] = 'I32', [rows, cols * bits // 32], packed
        tensors[name + '_scale'] = 'BF16', [rows, cols // 32], bytes(scales)
        tensors[name + '_shape'] = 'I64', [2], struct.pack('<2q', rows, cols)
    dialect.write_safetensors(out / 'model.safetensors', tensors)
    return out


def texts(scratch):
    """(name, directory, ids)"""
    cases = json.loads((FIXTURES / 'demo_greedy.json').read_text())['cases']
    ids = sum((c['prompt_ids'] + c['greedy_ids'] for c in cases), [])[:48 if QEMU else 1500]
    yield 'demo', ROOT / 'demo', ids
    for bits in (4, 8) if DEVICE == 'cpu' and not QEMU else ():
        yield 'demo in INT%d' % bits, as_integers(ROOT / 'demo', scratch / str(bits), bits), ids
    for name in ('odd-bf16', 'odd-experts', 'odd-all', 'dense'):
        yield name, FIXTURES / name, json.loads((FIXTURES / (name + '.ref.json')).read_text())['greedy_ids']


def has_fp4():
    command = [PROGRAM, 'info', '-m', 'demo', '--device', DEVICE, '--fp4-activations']
    return not subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT).returncode


def score(directory, *options, kernels=''):
    command = [PROGRAM, 'score', '-m', directory, '--device', DEVICE, '--summary', *options]
    return json.loads(subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, cwd=ROOT,
                                     env=dict(os.environ, GEMMA4_CPU=kernels)).stdout)


INTRODUCTION = """# What the shortcuts cost

Written by `bench/quality.py`, a section for each device. The yardstick is `--exact` on the same device, float32 throughout, itself
within 1e-5 of transformers (`tests/test_model.c`). KL: the divergence of the distribution of the next token from the yardstick's, in
nats, mean and maximum over all positions; "same": where both think the same token the most likely. The demo reads
conversations of its own kind; the `odd` and `dense` fixtures have random weights, on which rounding tells more than on
trained ones. An answer with a drafter, or from a screened head, is the same as without, so these have no row. Rows of a kind
of kernel are what it says only on a machine that has it. INT4 and INT8: the demo's text matrices rounded to the nearest, groups of 32.
ARM has been emulated: `under-qemu` is a script that starts the program under qemu-aarch64. So fewer
tokens of the demo are read there.
On a GPU several tokens are rounded to BF16 in every row; with FP4
activations they are rounded further where they meet NVFP4 (odd-bf16 has none; in the demo and in odd-experts the experts are NVFP4,
in odd-all and dense nearly all matrices)."""


def table():
    lines = ['| checkpoint | run | perplexity | KL mean | KL maximum | same |', '| --- | --- | --- | --- | --- | --- |']
    ways = WAYS + [FP4] if has_fp4() else WAYS
    with tempfile.TemporaryDirectory() as scratch:
        for name, directory, ids in texts(Path(scratch)):
            given, logits = Path(scratch) / 'ids', Path(scratch) / 'logits'
            given.write_text(' '.join(map(str, ids)))
            exact = score(directory, '--ids', given, '--exact', '--logits', logits)
            lines.append('| %s, %d tokens | exact | %.4g | | | |' % (name, len(ids), exact['perplexity']))
            for label, options, kernels in ways:
                s = score(directory, '--ids', given, *options, '--reference', logits, kernels=kernels)
                lines.append('| | %s | %.4g | %.1e | %.1e | %.1f %% |' % (
                    label, s['perplexity'], s['kl_mean'], s['kl_max'], 100 * s['same_top']))
    return '\n'.join(lines)


def main():
    result = ROOT / 'bench' / 'quality.md'
    sections = dict(section.split('\n', 1) for section in result.read_text().split('\n## ')[1:])
    call = [PROGRAM, DEVICE] + ([MACHINE] if QEMU else [])
    how = '`bench/quality.py %s`, %s, %s.' % (' '.join(call), date.today(), MACHINE)
    title = '`--device %s`%s' % (DEVICE, ', ARM' if ARM else '')
    sections[title] = '\n%s\n\n%s\n' % (how, table())
    result.write_text(INTRODUCTION + '\n' + ''.join('\n## %s\n%s' % section for section in sorted(sections.items())))


if __name__ == '__main__':
    main()
