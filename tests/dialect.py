#!/usr/bin/env python3
"""Rewrite a tiny checkpoint directory in another published spelling (Python's standard library only).

usage: dialect.py KIND SRC DST
  ct      NVFP4 as compressed-tensors writes it: weight_packed, weight_global_scale and input_global_scale
          of shape [1] holding the reciprocals of modelopt's weight_scale_2 and input_scale
  moe     experts named layers.L.moe.experts.E.* instead of layers.L.experts.E.*
  shards  three model-0000i-of-00003.safetensors and model.safetensors.index.json
  523     config.json as transformers 5.23 writes it (per_layer_config, vision rope "axial")
  text    the text model alone, as transformers 5.23 saves a Gemma4ForCausalLM

Kinds compose: run one after the other.
"""
import json
import os
import shutil
import struct
import sys

TEXT_PREFIX = 'model.language_model.'


def read_checkpoint(path):
    """All tensors of a directory, in file order: {name: (dtype, shape, bytes)}."""
    tensors = {}
    for name in sorted(os.listdir(path)):
        if not name.endswith('.safetensors'):
            continue
        with open(os.path.join(path, name), 'rb') as f:
            header = json.loads(f.read(struct.unpack('<Q', f.read(8))[0]))
            body = f.read()
        header.pop('__metadata__', None)
        for key, t in sorted(header.items(), key=lambda kv: kv[1]['data_offsets']):
            begin, end = t['data_offsets']
            tensors[key] = (t['dtype'], t['shape'], body[begin:end])
    return tensors


def write_safetensors(path, tensors):
    """One file. Tensors stay packed without gaps in the order given: like the real files, nothing but the
    start of the data (a multiple of 8) is aligned to more than the element size."""
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {'dtype': dtype, 'shape': shape, 'data_offsets': [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(text)) + text)
        for dtype, shape, data in tensors.values():
            f.write(data)


def read_json(path, name):
    full = os.path.join(path, name)
    if not os.path.exists(full):
        return None
    with open(full) as f:
        return json.load(f)


def write_json(path, name, value):
    with open(os.path.join(path, name), 'w') as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write('\n')


def reciprocal(data):
    # Rounded to float32 once, as compressed-tensors stores it; dividing by it differs from multiplying by the
    # original in the last bit.
    return struct.pack('<f', 1.0 / struct.unpack('<f', data)[0])


def compressed_tensors(tensors, config):
    suffix = '.weight_scale_2'
    quantised = {name[:-len(suffix)] for name in tensors if name.endswith(suffix)}
    has_input_scale = False
    out = {}
    for name, (dtype, shape, data) in tensors.items():
        base, leaf = name.rsplit('.', 1)
        if base in quantised and leaf == 'weight':
            name = base + '.weight_packed'
        elif base in quantised and leaf == 'weight_scale_2':
            name, shape, data = base + '.weight_global_scale', [1], reciprocal(data)
        elif base in quantised and leaf == 'input_scale':
            name, shape, data = base + '.input_global_scale', [1], reciprocal(data)
            has_input_scale = True
        out[name] = (dtype, shape, data)

    weights = {'num_bits': 4, 'type': 'float', 'strategy': 'tensor_group', 'group_size': 16, 'symmetric': True,
               'dynamic': False}
    group = {'weights': weights, 'targets': ['Linear'], 'format': 'nvfp4-pack-quantized',
             'input_activations': dict(weights, dynamic='local') if has_input_scale else None}
    quantization = {'quant_method': 'compressed-tensors', 'format': 'nvfp4-pack-quantized',
                    'config_groups': {'group_0': group},
                    'ignore': ['lm_head', 're:.*vision_tower.*', 're:.*embed_vision.*', 're:.*router.*']}
    if config.get('quantization_config', {}).get('kv_cache_scheme'):
        # compressed-tensors always stores the scales.
        for layer in [name[:-len('q_norm.weight')] for name in tensors if name.endswith('self_attn.q_norm.weight') and 'vision' not in name]:
            if layer + 'k_proj.k_scale' not in tensors:
                out.update({layer + scale: ('F32', [1], struct.pack('<f', 1)) for scale in ('k_scale', 'v_scale')})
        quantization['kv_cache_scheme'] = {'num_bits': 8, 'type': 'float', 'strategy': 'tensor', 'symmetric': True,
                                           'dynamic': False}
    config['quantization_config'] = quantization
    return out


def to_523_text(text):
    """configuration_gemma4.py, Gemma4TextConfig.__post_init__: global_head_dim and num_global_key_value_heads
    become overrides of the global layers. An override equal to the common value is dropped, and a layer without
    overrides too (integrations/heterogeneity/configuration_utils.py), so a reader must fall back on the common
    head_dim and num_key_value_heads."""
    overrides = {'head_dim': text.pop('global_head_dim', 512)}
    kv_heads = text.pop('num_global_key_value_heads', None)
    if kv_heads is not None and text.get('attention_k_eq_v'):
        overrides['num_key_value_heads'] = kv_heads
    overrides = {k: v for k, v in overrides.items() if text.get(k) != v}
    if 'per_layer_config' not in text and overrides:
        text['per_layer_config'] = {str(i): dict(overrides) for i, kind in enumerate(text['layer_types'])
                                    if kind == 'full_attention'}


def to_523(config):
    if 'text_config' in config:
        to_523_text(config['text_config'])
    else:
        to_523_text(config)
    rope = (config.get('vision_config') or {}).get('rope_parameters')
    if rope:
        rope['rope_type'] = 'axial'
    config['transformers_version'] = '5.23.0'


def text_only(tensors, config, hf_quant):
    out = {'model.' + name[len(TEXT_PREFIX):]: t for name, t in tensors.items() if name.startswith(TEXT_PREFIX)}
    to_523(config)
    text = dict(config['text_config'], architectures=['Gemma4ForCausalLM'], transformers_version='5.23.0')
    rename = lambda names: [n.replace(TEXT_PREFIX, 'model.') for n in names if 'vision' not in n]
    if 'quantization_config' in config:
        text['quantization_config'] = config['quantization_config']
        if 'ignore' in text['quantization_config']:
            text['quantization_config']['ignore'] = rename(text['quantization_config']['ignore'])
    if hf_quant and 'exclude_modules' in hf_quant['quantization']:
        hf_quant['quantization']['exclude_modules'] = rename(hf_quant['quantization']['exclude_modules'])
    return out, text


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in ('ct', 'moe', 'shards', '523', 'text'):
        sys.exit(__doc__)
    kind, src, dst = sys.argv[1:]
    os.makedirs(dst, exist_ok=True)
    for name in os.listdir(dst):  # a stale file of an earlier run would become part of the checkpoint
        if name.endswith('.safetensors') or name.endswith('.json'):
            os.remove(os.path.join(dst, name))
    for name in os.listdir(src):
        if not name.endswith('.safetensors') and name != 'model.safetensors.index.json':
            shutil.copyfile(os.path.join(src, name), os.path.join(dst, name))

    tensors = read_checkpoint(src)
    config = read_json(src, 'config.json')
    hf_quant = read_json(src, 'hf_quant_config.json')
    if kind == 'ct':
        tensors = compressed_tensors(tensors, config)
        if hf_quant:
            os.remove(os.path.join(dst, 'hf_quant_config.json'))  # modelopt's own; compressed-tensors has none
            hf_quant = None
    elif kind == 'moe':
        tensors = {name.replace('.experts.', '.moe.experts.'): t for name, t in tensors.items()}
    elif kind == '523':
        to_523(config)
    elif kind == 'text':
        tensors, config = text_only(tensors, config, hf_quant)

    write_json(dst, 'config.json', config)
    if hf_quant:
        write_json(dst, 'hf_quant_config.json', hf_quant)
    if kind != 'shards':
        write_safetensors(os.path.join(dst, 'model.safetensors'), tensors)
        return
    # Neighbours in the sorted list go to different shards: a matrix and its scales, the parts of one layer.
    weight_map = {name: 'model-%05d-of-00003.safetensors' % (i % 3 + 1) for i, name in enumerate(sorted(tensors))}
    for shard in sorted(set(weight_map.values())):
        write_safetensors(os.path.join(dst, shard), {n: t for n, t in tensors.items() if weight_map[n] == shard})
    write_json(dst, 'model.safetensors.index.json',
               {'metadata': {'total_size': sum(len(t[2]) for t in tensors.values())}, 'weight_map': weight_map})


if __name__ == '__main__':
    main()
