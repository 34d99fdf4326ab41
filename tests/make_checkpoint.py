#!/usr/bin/env python3
"""Write a random Gemma 4 checkpoint of any size, streaming (numpy and the standard library only).

usage: make_checkpoint.py [--full | --tiny] [--layout LAYOUT] [options] OUT
  --full            the dimensions of 26B-A4B (default: --tiny)
  --layout nvidia   experts NVFP4, the rest BF16: 18.8 GB;  all: all text linears NVFP4: 16.4 GB;  bf16: 51.6 GB
                    mixed: attention FP8, the other text linears NVFP4: 16.9 GB
                    fp8, int4, int8: all text linears in that format, FP8 with a scale for a row, integers in
                    groups of 32; zeros: int4 with zero points
  --kv none|fp8|scales   FP8 KV cache: not announced, announced, announced with k_scale and v_scale stored
                    (default: fp8 for nvidia, none otherwise)
  --tokenizer FILE  tokenizer.json or tokenizer.json.xz to copy
  --shard-bytes N   largest shard (default: 10 GB for nvidia, else 5 GB; one file model.safetensors if all fits)
  --seed N
  --hidden N, --layers N, --experts N, ...   any dimension of DIMS below; --experts 0 is the dense shape of 31B

The weights mean nothing, but behave: activations stay of size about 1, all routers choose various experts, every
matrix differs from every other. They are cut at random places from pools of a few million random values.
"""
import argparse
import functools
import json
import lzma
import os
import shutil
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor

try:
    import numpy as np
except ImportError:
    sys.exit('make_checkpoint.py needs numpy: pip install numpy, or apt-get install python3-numpy')

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURE = os.path.join(HERE, 'fixtures', 'odd-bf16')  # has a small tokenizer
REAL_TOKENIZER = os.path.join(HERE, '..', '..', 'shared', 'reference', 'tokenizer.json.xz')

DIMS = {  # name: (full, tiny)
    'hidden': (2816, 160), 'layers': (30, 6), 'heads': (16, 4), 'kv-heads': (8, 2), 'global-kv-heads': (2, 1),
    'head-dim': (256, 32), 'global-head-dim': (512, 48), 'mlp': (2112, 96), 'experts': (128, 8),
    'expert-dim': (704, 64), 'top-k': (8, 2), 'window': (1024, 24), 'vocab': (262144, 519),
    'max-position': (262144, 4096),
    'vision-hidden': (1152, 24), 'vision-layers': (27, 2), 'vision-heads': (16, 2), 'vision-head-dim': (72, 12),
    'vision-mlp': (4304, 40), 'vision-positions': (10240, 64),
}
TOKENS = {  # ids of control tokens: those of the real vocabulary and of the fixtures' 512 pieces
    'full': dict(eos=[1, 106, 50], boi=255999, eoi=258882, image=258880, video=258884, boa=256000, eoa=258883,
                 audio=258881),
    'tiny': dict(eos=[1, 507, 494], boi=500, eoi=501, image=502, video=503, boa=504, eoa=505, audio=506),
}
SIZE = {'I64': 8, 'F32': 4, 'I32': 4, 'BF16': 2, 'F8_E4M3': 1, 'U8': 1}
LAYOUTS = {  # the format of the experts, the dense MLP and attention
    'nvidia': dict(experts='nvfp4'), 'bf16': {}, 'all': dict(experts='nvfp4', mlp='nvfp4', self_attn='nvfp4'),
    'mixed': dict(experts='nvfp4', mlp='nvfp4', self_attn='fp8'),
    **{kind: dict(experts=kind, mlp=kind, self_attn=kind) for kind in ('fp8', 'int4', 'int8', 'zeros')},
}
GROUP = {'nvfp4': 16, 'int4': 32, 'int8': 32, 'zeros': 32}  # columns that share a scale


def layer_types(d):
    """Gemma4TextConfig.__post_init__ (configuration_gemma4.py): every sixth layer is global, the last one always."""
    n = d['layers']
    return ['full_attention' if (i + 1) % 6 == 0 or i == n - 1 else 'sliding_attention' for i in range(n)]


# ------------------------------------------------------------------------------------------ what is in the files

def plan(d, layout, kv):
    """All tensors in the order of the model: (name, dtype, shape, kind, argument). Kinds: see Filler."""
    out = []
    formats = LAYOUTS[layout]

    def normal(name, shape, deviation):
        out.append((name, 'BF16', shape, 'normal', deviation))

    def uniform(name, shape, low, high):
        out.append((name, 'BF16', shape, 'uniform', (low, high)))

    def matrix(name, rows, cols, group=''):
        deviation = 1.3 / cols ** 0.5
        kind = formats.get(group)
        if kind is None:
            normal(name + '.weight', [rows, cols], deviation)
            return
        if kind == 'fp8':
            out.append((name + '.weight', 'F8_E4M3', [rows, cols], 'fp8', None))
            out.append((name + '.weight_scale', 'BF16', [rows, 1], 'row scales', deviation))
            return
        if kind != 'nvfp4':
            bits = 8 if kind == 'int8' else 4
            out.append((name + '.weight_packed', 'I32', [rows, cols * bits // 32], 'int%d' % bits, None))
            out.append((name + '.weight_scale', 'BF16', [rows, cols // 32], 'group scales', (deviation, bits)))
            out.append((name + '.weight_shape', 'I64', [2], 'shape', (rows, cols)))
            if kind == 'zeros':
                out.append((name + '.weight_zero_point', 'I32', [-(-rows // 8), cols // 32], 'zeros', None))
            return
        out.append((name + '.input_scale', 'F32', [], 'scalar', (0.001, 0.01)))
        out.append((name + '.weight', 'U8', [rows, cols // 2], 'e2m1', None))
        out.append((name + '.weight_scale', 'F8_E4M3', [rows, cols // 16], 'e4m3', None))
        scale = deviation * POOL_AMAX / (6 * 448)
        out.append((name + '.weight_scale_2', 'F32', [], 'scalar', (0.8 * scale, 1.25 * scale)))

    h = d['hidden']
    normal('model.language_model.embed_tokens.weight', [d['vocab'], h], h ** -0.5)
    for i, kind in enumerate(layer_types(d)):
        p = 'model.language_model.layers.%d.' % i
        sliding = kind == 'sliding_attention'
        head = d['head-dim'] if sliding else d['global-head-dim']
        kv_heads = d['kv-heads'] if sliding else d['global-kv-heads']
        uniform(p + 'input_layernorm.weight', [h], 0.6, 1.4)
        matrix(p + 'self_attn.q_proj', d['heads'] * head, h, 'self_attn')
        matrix(p + 'self_attn.k_proj', kv_heads * head, h, 'self_attn')
        if sliding:  # the global layers' values come from k_proj
            matrix(p + 'self_attn.v_proj', kv_heads * head, h, 'self_attn')
        matrix(p + 'self_attn.o_proj', h, d['heads'] * head, 'self_attn')
        uniform(p + 'self_attn.q_norm.weight', [head], 0.6, 1.4)
        # The attention scale is 1: k_norm carries the 1/sqrt(head_dim).
        uniform(p + 'self_attn.k_norm.weight', [head], 1.2 * head ** -0.5, 2.8 * head ** -0.5)
        if kv == 'scales':  # about amax/448; K is smaller than V, which has no norm weight
            out.append((p + 'self_attn.k_proj.k_scale', 'F32', [], 'scalar', (10 * head ** -0.5 / 448, 14 * head ** -0.5 / 448)))
            out.append((p + 'self_attn.v_proj.v_scale', 'F32', [], 'scalar', (4 / 448, 6 / 448)))
        uniform(p + 'post_attention_layernorm.weight', [h], 0.15, 0.35)
        uniform(p + 'pre_feedforward_layernorm.weight', [h], 0.6, 1.4)
        matrix(p + 'mlp.gate_proj', d['mlp'], h, 'mlp')
        matrix(p + 'mlp.up_proj', d['mlp'], h, 'mlp')
        matrix(p + 'mlp.down_proj', h, d['mlp'], 'mlp')
        uniform(p + 'post_feedforward_layernorm.weight', [h], 0.15, 0.35)
        uniform(p + 'layer_scalar', [1], 0.9, 1.0)
        if not d['experts']:
            continue
        for name in ('pre_feedforward_layernorm_2', 'post_feedforward_layernorm_1', 'post_feedforward_layernorm_2'):
            uniform(p + name + '.weight', [h], 0.6, 1.4)
        normal(p + 'router.proj.weight', [d['experts'], h], 2.0)
        uniform(p + 'router.scale', [h], 0.5, 1.5)
        uniform(p + 'router.per_expert_scale', [d['experts']], 0.5, 1.4)
        if layout == 'bf16':  # fused: rows of gate, then rows of up
            normal(p + 'experts.gate_up_proj', [d['experts'], 2 * d['expert-dim'], h], 1.3 / h ** 0.5)
            normal(p + 'experts.down_proj', [d['experts'], h, d['expert-dim']], 1.3 / d['expert-dim'] ** 0.5)
            continue
        for e in range(d['experts']):
            matrix(p + 'experts.%d.gate_proj' % e, d['expert-dim'], h, 'experts')
            matrix(p + 'experts.%d.up_proj' % e, d['expert-dim'], h, 'experts')
            matrix(p + 'experts.%d.down_proj' % e, h, d['expert-dim'], 'experts')
    uniform('model.language_model.norm.weight', [h], 3, 7)

    v = d['vision-hidden']
    inner = d['vision-heads'] * d['vision-head-dim']
    p = 'model.vision_tower.'
    matrix(p + 'patch_embedder.input_proj', v, 768)
    normal(p + 'patch_embedder.position_embedding_table', [2, d['vision-positions'], v], 0.3)
    for i in range(d['vision-layers']):
        p = 'model.vision_tower.encoder.layers.%d.' % i
        for name in ('input_layernorm', 'post_attention_layernorm', 'pre_feedforward_layernorm',
                     'post_feedforward_layernorm'):
            uniform(p + name + '.weight', [v], 0.6, 1.4)
        for name in 'qkv':
            matrix(p + 'self_attn.%s_proj.linear' % name, inner, v)
        matrix(p + 'self_attn.o_proj.linear', v, inner)
        uniform(p + 'self_attn.q_norm.weight', [d['vision-head-dim']], 0.6, 1.4)
        uniform(p + 'self_attn.k_norm.weight', [d['vision-head-dim']], 0.2, 0.5)
        matrix(p + 'mlp.gate_proj.linear', d['vision-mlp'], v)
        matrix(p + 'mlp.up_proj.linear', d['vision-mlp'], v)
        matrix(p + 'mlp.down_proj.linear', v, d['vision-mlp'])
    normal('model.vision_tower.std_bias', [v], 0.5)
    uniform('model.vision_tower.std_scale', [v], 0.5, 1.5)
    matrix('model.embed_vision.embedding_projection', h, v)
    return out


def size_of(tensor):
    name, dtype, shape, kind, argument = tensor
    n = SIZE[dtype]
    for x in shape:
        n *= x
    return n


# ------------------------------------------------------------------------------------------ random data

POOL = 8000009   # values per pool: a prime, so that rows of no matrix repeat
POOL_AMAX = 5.2  # the largest of some millions of normal values: what a matrix's amax would be


def to_bf16(x):
    """Round to nearest even, as uint16."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)


class Filler:
    """Makes the data of one tensor, as a list of bytes-like pieces:
    normal   BF16 of the given deviation
    uniform  BF16 between two bounds; for the final norm a third of them negative, which readers must stand
    e2m1     nibbles, two a byte
    e4m3     the block scales belonging to them
    fp8      E4M3 numbers whose rows' scales are `row scales`, of the given deviation
    int4, int8   integers whose groups' scales are `group scales`, of the given deviation and bits
    zeros    zero points from 7 to 9
    shape    two I64
    scalar   one F32 between two bounds"""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.normal = self.rng.standard_normal(POOL, np.float32)
        self.scaled = {}
        # NVFP4 of normal values: in each block of 16 the largest becomes 6, and the block's scale is its share of
        # the whole matrix's amax. e4m3 codes 0x01 .. 0x7e are positive and rise with their values.
        blocks = self.normal[:POOL // 16 * 16].reshape(-1, 16)
        amax = np.abs(blocks).max(1)
        code = np.searchsorted(np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]), np.abs(blocks) * (6 / amax)[:, None])
        code = (code + 8 * (blocks < 0)).astype(np.uint8).reshape(-1)
        self.e2m1 = code[0::2] | code[1::2] << 4
        codes = np.arange(0x01, 0x7f)
        values = np.where(codes >> 3, 2.0 ** ((codes >> 3) - 7.0) * (1 + (codes & 7) / 8), (codes & 7) / 512)
        bounds = (values[1:] + values[:-1]) / 2
        self.e4m3 = codes[np.searchsorted(bounds, np.minimum(amax / POOL_AMAX, 1) * 448)].astype(np.uint8)

    @functools.cached_property
    def fp8(self):
        codes = np.arange(0x7f)
        values = np.where(codes >> 3, 2.0 ** ((codes >> 3) - 7.0) * (1 + (codes & 7) / 8), (codes & 7) / 512)
        size = np.minimum(np.abs(self.normal) / POOL_AMAX, 1) * 448
        return (np.searchsorted((values[1:] + values[:-1]) / 2, size) + 128 * (self.normal < 0)).astype(np.uint8)

    @functools.cached_property
    def groups(self):
        return self.normal[:POOL // 32 * 32].reshape(-1, 32)

    @functools.cached_property
    def group_amax(self):
        return np.abs(self.groups).max(1)

    @functools.cached_property
    def int4(self):
        q = np.round(self.groups / self.group_amax[:, None] * 7.5 + 7.5).astype(np.uint8).reshape(-1)
        return q[0::2] | q[1::2] << 4

    @functools.cached_property
    def int8(self):
        return np.round(self.groups / self.group_amax[:, None] * 127 + 128).astype(np.uint8).reshape(-1)

    @functools.cached_property
    def zeros(self):
        nibbles = self.int8[:POOL // 32 * 8].reshape(8, -1).astype(np.uint32) % 3 + 7
        return sum(n << np.uint32(4 * i) for i, n in enumerate(nibbles))

    def pieces(self, tensor):
        name, dtype, shape, kind, argument = tensor
        if kind == 'scalar':
            return [struct.pack('<f', self.rng.uniform(*argument))]
        if kind == 'uniform':
            x = self.rng.uniform(*argument, shape)
            if name == 'model.language_model.norm.weight':
                x *= self.rng.choice([-1, 1, 1], shape)
            return [to_bf16(x).tobytes()]
        if kind == 'normal':
            if argument not in self.scaled:
                self.scaled[argument] = to_bf16(self.normal * np.float32(argument))
            return self.cut(self.scaled[argument], size_of(tensor))
        if kind == 'shape':
            return [struct.pack('<2q', *argument)]
        if kind == 'row scales':
            return [to_bf16(self.rng.uniform(0.8, 1.25, shape) * argument * POOL_AMAX / 448).tobytes()]
        if kind == 'group scales':
            if (kind, argument) not in self.scaled:
                deviation, bits = argument
                self.scaled[kind, argument] = to_bf16(self.group_amax * (deviation / (127 if bits == 8 else 7.5)))
            return self.cut(self.scaled[kind, argument], size_of(tensor))
        return self.cut(getattr(self, kind), size_of(tensor))

    def cut(self, pool, size):
        """size bytes of the pool, from a random element on, round and round."""
        start = int(self.rng.integers(len(pool))) * pool.itemsize
        data, pieces = memoryview(pool).cast('B'), []
        while size:
            pieces.append(data[start:start + size])
            size -= len(pieces[-1])
            start = 0
        return pieces


# ------------------------------------------------------------------------------------------ files

def shard(tensors, fill):
    """The file, as a list of bytes-like pieces."""
    # As safetensors orders them: by size of element, then by name. With an odd number of BF16 values or of scalars in
    # front, data are aligned to their element and not more.
    tensors = sorted(tensors, key=lambda t: (list(SIZE).index(t[1]), t[0]))
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for t in tensors:
        end = offset + size_of(t)
        header[t[0]] = {'dtype': t[1], 'shape': t[2], 'data_offsets': [offset, end]}
        offset = end
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    return [struct.pack('<Q', len(text)) + text] + [piece for t in tensors for piece in fill.pieces(t)]


def write_pieces(path, pieces):
    with open(path, 'wb', buffering=1 << 20) as f:
        f.writelines(pieces)


def write_json(path, value):
    with open(path, 'w') as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write('\n')


def write_config(out, d, layout, kv, ids):
    """The published spelling (transformers 5.5)."""
    moe = d['experts'] > 0
    text = {
        'attention_bias': False, 'attention_dropout': 0.0, 'attention_k_eq_v': True, 'bos_token_id': 2,
        'dtype': 'bfloat16', 'enable_moe_block': moe, 'eos_token_id': 1, 'final_logit_softcapping': 30.0,
        'global_head_dim': d['global-head-dim'], 'head_dim': d['head-dim'],
        'hidden_activation': 'gelu_pytorch_tanh', 'hidden_size': d['hidden'], 'hidden_size_per_layer_input': 0,
        'initializer_range': 0.02, 'intermediate_size': d['mlp'], 'layer_types': layer_types(d),
        'max_position_embeddings': d['max-position'], 'model_type': 'gemma4_text',
        'moe_intermediate_size': d['expert-dim'] if moe else None, 'num_attention_heads': d['heads'],
        'num_experts': d['experts'] if moe else None, 'num_global_key_value_heads': d['global-kv-heads'],
        'num_hidden_layers': d['layers'], 'num_key_value_heads': d['kv-heads'], 'num_kv_shared_layers': 0,
        'pad_token_id': 0, 'rms_norm_eps': 1e-06,
        'rope_parameters': {
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'}},
        'sliding_window': d['window'], 'tie_word_embeddings': True, 'top_k_experts': d['top-k'] if moe else None,
        'use_bidirectional_attention': 'vision', 'use_cache': True, 'use_double_wide_mlp': False,
        'vocab_size': d['vocab'], 'vocab_size_per_layer_input': d['vocab']}
    vision = {
        'attention_bias': False, 'attention_dropout': 0.0, 'default_output_length': 280, 'dtype': 'bfloat16',
        'global_head_dim': d['vision-head-dim'], 'head_dim': d['vision-head-dim'],
        'hidden_activation': 'gelu_pytorch_tanh', 'hidden_size': d['vision-hidden'], 'initializer_range': 0.02,
        'intermediate_size': d['vision-mlp'], 'max_position_embeddings': 131072, 'model_type': 'gemma4_vision',
        'num_attention_heads': d['vision-heads'], 'num_hidden_layers': d['vision-layers'],
        'num_key_value_heads': d['vision-heads'], 'patch_size': 16, 'pooling_kernel_size': 3,
        'position_embedding_size': d['vision-positions'], 'rms_norm_eps': 1e-06,
        'rope_parameters': {'rope_theta': 100.0, 'rope_type': 'default'}, 'standardize': True,
        'use_clipped_linears': False}
    config = {
        'architectures': ['Gemma4ForConditionalGeneration'], 'audio_config': None, 'audio_token_id': ids['audio'],
        'boa_token_id': ids['boa'], 'boi_token_id': ids['boi'], 'dtype': 'bfloat16', 'eoa_token_id': ids['eoa'],
        'eoa_token_index': ids['eoa'], 'eoi_token_id': ids['eoi'], 'eos_token_id': ids['eos'],
        'image_token_id': ids['image'], 'initializer_range': 0.02, 'model_type': 'gemma4', 'text_config': text,
        'tie_word_embeddings': True, 'transformers_version': '5.5.0.dev0', 'video_token_id': ids['video'],
        'vision_config': vision, 'vision_soft_tokens_per_image': 280}
    if layout not in ('bf16', 'nvidia', 'all'):  # only that it is quantised: the tensors tell how
        config['quantization_config'] = {'quant_method': 'compressed-tensors', 'quantization_status': 'compressed'}
    elif layout != 'bf16':
        ignore = ['lm_head', 'model.embed_vision*', 'model.vision_tower*']
        for i in range(d['layers']):
            parts = (['router'] if moe else []) + (['mlp', 'self_attn'] if layout == 'nvidia' else [])
            ignore += ['model.language_model.layers.%d.%s*' % (i, part) for part in parts]
        ignore.sort()
        producer = {'name': 'modelopt', 'version': '0.43.0'}
        fp4 = {'dynamic': False, 'group_size': 16, 'num_bits': 4, 'type': 'float'}
        config['quantization_config'] = {
            'config_groups': {'group_0': {'input_activations': fp4, 'targets': ['Linear'], 'weights': fp4}},
            'ignore': ignore, 'producer': producer, 'quant_algo': 'NVFP4', 'quant_method': 'modelopt'}
        if kv != 'none':
            config['quantization_config']['kv_cache_scheme'] = {'dynamic': False, 'num_bits': 8, 'type': 'float'}
        write_json(os.path.join(out, 'hf_quant_config.json'), {'producer': producer, 'quantization': {
            'exclude_modules': ignore, 'group_size': 16, 'kv_cache_quant_algo': None if kv == 'none' else 'FP8',
            'quant_algo': 'NVFP4'}})
    write_json(os.path.join(out, 'config.json'), config)
    write_json(os.path.join(out, 'generation_config.json'), {
        'bos_token_id': 2, 'do_sample': True, 'eos_token_id': ids['eos'], 'pad_token_id': 0, 'temperature': 1.0,
        'top_k': 64, 'top_p': 0.95, 'transformers_version': '5.5.0.dev0'})


def copy_tokenizer(path, out):
    if not os.path.exists(path):
        print('no tokenizer at %s: none written' % path, file=sys.stderr)
        return
    opener = lzma.open if path.endswith('.xz') else open
    with opener(path, 'rb') as src, open(os.path.join(out, 'tokenizer.json'), 'wb') as dst:
        shutil.copyfileobj(src, dst)
    settings = os.path.join(FIXTURE, 'tokenizer_config.json')  # names of tokens only: the same for every size
    if os.path.exists(settings):
        shutil.copyfile(settings, os.path.join(out, 'tokenizer_config.json'))


def check_dims(d, args):
    """Ends with a line where no model can have these sizes, or the tokenizer's ids do not fit."""
    for name, n in d.items():
        if n < (name != 'experts'):
            sys.exit('--%s %d: too small' % (name, n))
    for name, of in (('heads', 'kv-heads'), ('heads', 'global-kv-heads')):
        if d[name] % d[of]:
            sys.exit('--%s %d: no multiple of --%s %d' % (name, d[name], of, d[of]))
    for name, n in (('head-dim', 2), ('global-head-dim', 2), ('vision-head-dim', 4)):
        if d[name] % n:
            sys.exit('--%s %d: no multiple of %d' % (name, d[name], n))
    if d['experts'] and d['top-k'] > d['experts']:
        sys.exit('--top-k %d: more than --experts %d' % (d['top-k'], d['experts']))
    ids = 1 + max(max(v) if isinstance(v, list) else v for v in TOKENS['full' if args.full else 'tiny'].values())
    if not args.tokenizer and d['vocab'] < ids:
        sys.exit('--vocab %d: the tokenizer has ids up to %d' % (d['vocab'], ids - 1))
    if args.shard_bytes is not None and args.shard_bytes < 1:
        sys.exit('--shard-bytes %g: too small' % args.shard_bytes)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('out')
    size = args.add_mutually_exclusive_group()
    size.add_argument('--full', action='store_true')
    size.add_argument('--tiny', action='store_true')
    args.add_argument('--layout', choices=list(LAYOUTS), default='nvidia')
    args.add_argument('--kv', choices=('none', 'fp8', 'scales'))
    args.add_argument('--tokenizer')
    args.add_argument('--shard-bytes', type=float)
    args.add_argument('--seed', type=int, default=1)
    for name in DIMS:
        args.add_argument('--' + name, type=int)
    args = args.parse_args()

    d = {}
    for name, (full, tiny) in DIMS.items():
        given = getattr(args, name.replace('-', '_'))
        d[name] = given if given is not None else full if args.full else tiny
    kv = args.kv or ('fp8' if args.layout == 'nvidia' else 'none')
    tokenizer = args.tokenizer or (REAL_TOKENIZER if args.full else os.path.join(FIXTURE, 'tokenizer.json'))
    limit = args.shard_bytes or (10e9 if args.layout == 'nvidia' else 5e9)
    widths = {'experts': (d['hidden'], d['expert-dim']), 'mlp': (d['hidden'], d['mlp']),
              'self_attn': (d['hidden'], d['heads'] * d['head-dim'], d['heads'] * d['global-head-dim'])}
    check_dims(d, args)
    for part, kind in LAYOUTS[args.layout].items():
        for n in widths[part]:
            if n % GROUP.get(kind, 1):
                sys.exit('%s needs a multiple of %d: %s has %d columns' % (kind, GROUP[kind], part, n))

    os.makedirs(args.out, exist_ok=True)
    for name in os.listdir(args.out):  # shards of an earlier run would be in the way
        if name.endswith('.safetensors') or name == 'model.safetensors.index.json':
            os.remove(os.path.join(args.out, name))
    started = time.time()
    tensors = plan(d, args.layout, kv)
    shards, room = [], 0
    for t in tensors:
        if size_of(t) > room:
            shards.append([])
            room = limit
        shards[-1].append(t)
        room -= size_of(t)
    fill, weight_map, written = Filler(args.seed), {}, []
    with ThreadPoolExecutor() as pool:  # Linux lets one thread at a time write to a file: several shards are faster than one
        for i, part in enumerate(shards):
            name = 'model-%05d-of-%05d.safetensors' % (i + 1, len(shards)) if len(shards) > 1 else 'model.safetensors'
            written.append(pool.submit(write_pieces, os.path.join(args.out, name), shard(part, fill)))
            weight_map.update((t[0], name) for t in part)
    for w in written:
        w.result()
    total = sum(map(size_of, tensors))
    if len(shards) > 1:
        write_json(os.path.join(args.out, 'model.safetensors.index.json'),
                   {'metadata': {'total_size': total}, 'weight_map': weight_map})
    # The control tokens must fit the vocabulary; a tokenizer of 512 pieces has its own.
    write_config(args.out, d, args.layout, kv, TOKENS['full' if d['vocab'] > 258884 else 'tiny'])
    copy_tokenizer(tokenizer, args.out)
    print('%s: %d tensors, %.2f GB in %d file(s), %.0f s' % (args.out, len(tensors), total / 1e9, len(shards),
                                                             time.time() - started))


if __name__ == '__main__':
    main()
