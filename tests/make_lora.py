#!/usr/bin/env python3
"""Write a random LoRA adapter as peft does, and the checkpoint that it becomes when it is merged (Python's standard library only).

usage: make_lora.py CHECKPOINT ADAPTER [RANK]      an adapter of all attention and dense MLP matrices (rank 16)

merge() is the formula that the tests hold the program to: W' = W + s B A in float32, with W dequantised.
"""
import json
import math
import os
import random
import shutil
import struct
import sys
from array import array

import dialect

ROOT = 'model.language_model.'
DENSE = ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj', 'mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj')
E2M1 = [0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6]


# ---------------------------------------------------------------------------------------------- numbers

def e4m3(byte):
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
    return -size if byte & 128 else size


def floats(tensor):
    """The numbers of a tensor (dtype, shape, bytes) of F32, F16 or BF16."""
    dtype, _, data = tensor
    if dtype == 'BF16':
        return array('f', array('I', [u << 16 for u in array('H', data)]).tobytes())
    return array('f', struct.unpack('<%d%s' % (len(data) // {'F16': 2, 'F32': 4}[dtype], {'F16': 'e', 'F32': 'f'}[dtype]), data))


def numbers(tensors, name):
    """The numbers of a weight of a checkpoint, and its shape: ordinary ones, or modelopt's NVFP4."""
    dtype, shape, data = tensors[name]
    if dtype != 'U8':
        return floats(tensors[name]), shape
    rows, cols = shape[0], 2 * shape[1]
    scale, = struct.unpack('<f', tensors[name + '_scale_2'][2])
    block = [e4m3(byte) * scale for byte in tensors[name + '_scale'][2]]
    return array('f', [E2M1[data[i // 2] >> 4 * (i % 2) & 15] * block[i // 16] for i in range(rows * cols)]), [rows, cols]


def matrix(rng, rows, cols, dtype='BF16', exponent=0x3d):
    """A random tensor: numbers of either sign around 1/12."""
    data = bytearray(rng.randbytes(2 * rows * cols))
    data[1::2] = bytes(exponent | byte & 128 for byte in data[1::2])
    tensor = ('BF16', [rows, cols], bytes(data))
    if dtype == 'BF16':
        return tensor
    values = floats(tensor)
    return dtype, [rows, cols], struct.pack('<%d%s' % (len(values), {'F16': 'e', 'F32': 'f'}[dtype]), *values)


# ---------------------------------------------------------------------------------------------- adapters

def shape_of(tensors, module):
    """Rows and columns of a module's matrix, layers.0.self_attn.q_proj or layers.0.experts.3.up_proj; None: it is not there."""
    name = ROOT + module + '.weight'
    if name in tensors:
        dtype, (rows, cols), _ = tensors[name]
        return rows, 2 * cols if dtype == 'U8' else cols
    before, _, last = module.rpartition('.')
    fused, _, expert = before.rpartition('.')
    if not expert.isdigit() or ROOT + fused + '.gate_up_proj' not in tensors:
        return None
    _, (_, rows, cols), _ = tensors[ROOT + fused + ('.down_proj' if last == 'down_proj' else '.gate_up_proj')]
    return (rows, cols) if last == 'down_proj' else (rows // 2, cols)


def make(tensors, modules, rank=4, seed=1, dtype='BF16', exponent=0x3d):
    """{module: (A, B)} with random tensors; rank may be a function of the module."""
    rng = random.Random(seed)
    out = {}
    for module in modules:
        rows, cols = shape_of(tensors, module)
        r = rank(module) if callable(rank) else rank
        out[module] = matrix(rng, r, cols, dtype, exponent), matrix(rng, rows, r, dtype, exponent)
    return out


def write(path, adapter, rank=4, alpha=8, prefix='base_model.model.' + ROOT, ending='.weight', more=None, **config):
    """The directory that peft saves.  more: tensors beside the adapter's, or in their place (None takes one away)."""
    os.makedirs(path, exist_ok=True)
    tensors = {}
    for module, pair in adapter.items():
        for letter, tensor in zip('AB', pair):
            tensors['%s%s.lora_%s%s' % (prefix, module, letter, ending)] = tensor
    tensors.update(more or {})
    dialect.write_safetensors(os.path.join(path, 'adapter_model.safetensors'), {k: v for k, v in tensors.items() if v})
    whole = {
        'alpha_pattern': {}, 'auto_mapping': None, 'base_model_name_or_path': 'google/gemma-4-26B-A4B-it', 'bias': 'none',
        'corda_config': None, 'eva_config': None, 'exclude_modules': None, 'fan_in_fan_out': False, 'inference_mode': True,
        'init_lora_weights': True, 'layer_replication': None, 'layers_pattern': None, 'layers_to_transform': None, 'loftq_config': {},
        'lora_alpha': alpha, 'lora_bias': False, 'lora_dropout': 0.05, 'megatron_config': None, 'megatron_core': 'megatron.core',
        'modules_to_save': None, 'peft_type': 'LORA', 'qalora_group_size': 16, 'r': rank, 'rank_pattern': {}, 'revision': None,
        'target_modules': sorted({module.split('.')[-1] for module in adapter}), 'target_parameters': None, 'task_type': 'CAUSAL_LM', 'trainable_token_indices': None,
        'use_dora': False, 'use_qalora': False, 'use_rslora': False}
    whole.update(config)
    dialect.write_json(path, 'adapter_config.json', {k: v for k, v in whole.items() if v != 'absent'})
    return path


def add(w, at, rows, cols, pair, scale):
    """w[at:] += scale * B A."""
    a, b = floats(pair[0]), floats(pair[1])
    r = pair[0][1][0]
    for i in range(rows):
        row = [0.0] * cols
        for k in range(r):
            x = scale * b[i * r + k]
            row = [y + x * z for y, z in zip(row, a[k * cols:(k + 1) * cols])]
        for j in range(cols):
            w[at + i * cols + j] += row[j]


def merge(source, path, adapters):
    """The checkpoint with adapters, [({module: (A, B)}, scale or a function of the module)], merged into its weights, which become
    float32."""
    tensors = dialect.read_checkpoint(source)
    out = dict(tensors)
    merged = {}
    for adapter, scale in adapters:
        for module, pair in adapter.items():
            rows, cols = shape_of(tensors, module)
            name, at = ROOT + module + '.weight', 0
            if name not in tensors:
                before, _, last = module.rpartition('.')
                fused, _, expert = before.rpartition('.')
                name = ROOT + fused + ('.down_proj' if last == 'down_proj' else '.gate_up_proj')
                at = rows * cols * (int(expert) if last == 'down_proj' else 2 * int(expert) + (last == 'up_proj'))
            if name not in merged:
                merged[name] = numbers(tensors, name)
            add(merged[name][0], at, rows, cols, pair, scale(module) if callable(scale) else scale)
    for name in list(merged):           # fused experts have one dtype
        for a, b in (('gate_up_proj', 'down_proj'), ('down_proj', 'gate_up_proj')):
            other = name.replace('experts.' + a, 'experts.' + b)
            if other not in merged:
                merged[other] = numbers(tensors, other)
    for name, (values, shape) in merged.items():
        out[name] = ('F32', shape, values.tobytes())
        for suffix in ('_scale', '_scale_2'):
            out.pop(name + suffix, None)
        out.pop(name[:-len('.weight')] + '.input_scale', None)
    shutil.copytree(source, path, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns('*.safetensors*'))
    dialect.write_safetensors(os.path.join(path, 'model.safetensors'), out)
    return path


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    rank = int(sys.argv[3]) if len(sys.argv) == 4 else 16
    tensors = {}
    for name in sorted(os.listdir(sys.argv[1])):        # the headers alone, as a real checkpoint is large
        if name.endswith('.safetensors'):
            with open(os.path.join(sys.argv[1], name), 'rb') as f:
                header = json.loads(f.read(struct.unpack('<Q', f.read(8))[0]))
            header.pop('__metadata__', None)
            tensors.update({k: (t['dtype'], t['shape'], None) for k, t in header.items()})
    n = max(int(name.split('.layers.')[1].split('.')[0]) for name in tensors if name.startswith(ROOT + 'layers.')) + 1
    modules = ['layers.%d.%s' % (i, name) for i in range(n) for name in DENSE]
    modules = [module for module in modules if shape_of(tensors, module)]
    write(sys.argv[2], make(tensors, modules, rank, exponent=0x3b), rank, 2 * rank)


if __name__ == '__main__':
    main()
