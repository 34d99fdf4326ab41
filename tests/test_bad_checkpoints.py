"""Checkpoints that must be refused: each ends with exit status 1 and one line that names the file and the field, at once and
with little memory, whatever the file says of itself. And what happens when a file fails later."""
import json
import mmap
import os
import re
import resource
import shutil
import struct

import pytest

import dialect
from conftest import DEMO, FIXTURES, GEMMA4, complaint, data, edit, read_line, run, write_json

SANITIZED = b'__asan_init' in open(GEMMA4, 'rb').read()        # reserves terabytes, and is slow
ROOM = (128 << 20) + os.path.getsize(GEMMA4)            # address space: of libraries and checkpoint about a fourth of it


def limits():
    if not SANITIZED:
        resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
        resource.setrlimit(resource.RLIMIT_CPU, (1, 1))


def refused(*args, **kwargs):
    """The line that is said. A program that waits for a pipe uses no time, but does not end either."""
    return complaint(1, *args, preexec_fn=limits, **dict({'timeout': 20}, **kwargs))


def refused_for(words, start, *args):
    """The line begins with a path, and has all the words."""
    line = refused(*args)
    assert [word for word in words if word not in line] == [], line
    assert line.startswith('gemma4: %s' % start)


# ---------------------------------------------------------------------------------------------- ways to spoil a checkpoint

def config(field, value):
    return edit('config.json', field, value)


def tensor(name, change):
    """change(dtype, shape, data) returns the new ones; None as change removes the tensor."""
    def spoil(model):
        tensors = dialect.read_checkpoint(model)
        assert name in tensors
        if change:
            tensors[name] = change(*tensors[name])
        else:
            del tensors[name]
        dialect.write_safetensors(model / 'model.safetensors', tensors)
    return spoil


def header_text(change):
    """change(text) returns the header of model.safetensors; the data stay."""
    def new(b):
        size, = struct.unpack_from('<Q', b)
        text = change(b[8:8 + size])
        return struct.pack('<Q', len(text)) + text + b[8 + size:]
    return data('model.safetensors', new)


def json_field(change):
    """change(tree) spoils it in place."""
    def new(b):
        fields = json.loads(b)
        change(fields)
        return json.dumps(fields).encode()
    return new


def header(change):
    return header_text(json_field(change))


def length(n):
    return data('model.safetensors', lambda b: struct.pack('<Q', n) + b[8:])


SHARDS = ['model-0000%d-of-00002.safetensors' % i for i in (1, 2)]
INDEX = 'model.safetensors.index.json'


def sharded(change):
    """The checkpoint in shards; change(model, index) spoils them."""
    def spoil(model):
        tensors = dialect.read_checkpoint(model)
        (model / 'model.safetensors').unlink()
        names = sorted(tensors)
        weight_map = {n: SHARDS[i % 2] for i, n in enumerate(names)}
        for shard in SHARDS:
            dialect.write_safetensors(model / shard, {n: tensors[n] for n in names if weight_map[n] == shard})
        index = {'weight_map': weight_map}
        change(model, index)
        write_json(model / INDEX, index)
    return spoil


def unindexed(change):
    """Shards without an index; change(model) spoils them."""
    def spoil(model):
        sharded(lambda m, i: None)(model)
        (model / INDEX).unlink()
        change(model)
    return spoil


def lora(model):
    """What peft saves."""
    for name in ('model.safetensors', 'config.json', 'generation_config.json'):
        (model / name).unlink()
    write_json(model / 'adapter_config.json', {'base_model_name_or_path': 'google/gemma-4-26B-A4B-it'})
    dialect.write_safetensors(model / 'adapter_model.safetensors', {'a': ('BF16', [1], bytes(2))})


def dangling(file):
    """A link of the hub's cache whose blob is not there."""
    def spoil(model):
        (model / file).unlink()
        (model / file).symlink_to('../../blobs/0123')
    return spoil


def begun(model):
    """What hf download --local-dir leaves when it is interrupted."""
    (model / '.cache/huggingface/download').mkdir(parents=True)
    (model / '.cache/huggingface/download/0123.incomplete').touch()


def mapped(name, shard):
    return sharded(lambda m, i: i['weight_map'].update({name: shard}))


def both(*spoils):
    def spoil(model):
        for each in spoils:
            each(model)
    return spoil


def index(content):
    """This for an index, beside shards."""
    return both(sharded(lambda m, i: None), data(INDEX, lambda b: content))


def instead(kind, file):
    """A file that is none."""
    def spoil(model):
        path = model / file
        if path.exists():
            path.unlink()
        {'directory': os.mkdir, 'pipe': os.mkfifo, 'loop': lambda p: os.symlink(p, p)}[kind](path)
    return spoil


DEEP = 10000
NESTED = b'[' * DEEP + b']' * DEEP
T = 'text_config.'
R = T + 'rope_parameters.'
V = 'vision_config.'
Q_C = 'quantization_config.'
LAYER = 'model.language_model.layers.1.'
Q = LAYER + 'self_attn.q_proj.weight'
GATE = LAYER + 'experts.3.gate_proj.weight'
SCALE, SCALE_2 = GATE + '_scale', GATE + '_scale_2'
K_SCALE = LAYER + 'self_attn.k_proj.k_scale'
NORM = LAYER + 'input_layernorm.weight'
EMBED = 'model.language_model.embed_tokens.weight'
TOWER = 'model.vision_tower.encoder.layers.1.'
Q_SIZE = 2 * 192 * 112                  # its bytes
nan = lambda dtype, shape, data: (dtype, shape, b'\xff' * len(data))


def without(prefix):
    """All tensors whose names begin so."""
    def spoil(model):
        tensors = dialect.read_checkpoint(model)
        dialect.write_safetensors(model / 'model.safetensors', {n: t for n, t in tensors.items() if not n.startswith(prefix)})
    return spoil


def extra(name):
    """One tensor more."""
    def spoil(model):
        tensors = dialect.read_checkpoint(model)
        tensors[name] = ('F32', [1], struct.pack('<f', 1))
        dialect.write_safetensors(model / 'model.safetensors', tensors)
    return spoil


def both(*spoilers):
    return lambda model: [spoil(model) for spoil in spoilers]


def f32(x):
    return lambda dtype, shape, data: (dtype, shape, struct.pack('<f', x))


def compressed(model):
    """SCALE_2 as compressed-tensors spells it: the reciprocal, which is infinite."""
    tensors = dialect.read_checkpoint(model)
    del tensors[SCALE_2]
    tensors[GATE + '_global_scale'] = ('F32', [1], struct.pack('<I', 1))
    dialect.write_safetensors(model / 'model.safetensors', tensors)


def swap_offsets(h, change):
    h[Q].update(data_offsets=change(*h[Q]['data_offsets']))


def fewer_rows(model):
    """An embedding, and config.json, of fewer tokens than the tokenizer has."""
    config(T + 'vocab_size', 508)(model)
    tensor(EMBED, lambda t, s, d: (t, [508, s[1]], d[:508 * s[1] * 2]))(model)


# By the file that the message must name: what is spoilt and how, and what else must be named: the field or the tensor.
# The checkpoint is the fixture odd-experts.
BROKEN = {
    'config.json': [
        ('another model', config('model_type', 'llama'), ['model_type', 'llama']),
        ('no model_type', config('model_type', None), ['model_type']),
        ('a number for a model_type', config('model_type', 4), ['model_type', 'string']),
        ('per-layer embeddings', config(T + 'hidden_size_per_layer_input', 256), ['hidden_size_per_layer_input']),
        ('shared KV', config(T + 'num_kv_shared_layers', 2), ['num_kv_shared_layers']),
        ('scaled positions', config(T + 'rope_scaling', {'rope_type': 'yarn', 'factor': 4}), [T + 'rope_scaling']),
        ('audio tower', config('audio_config', {'model_type': 'gemma4_audio'}), ['audio_config']),
        ('no text_config', config('text_config', None), ['text_config']),
        ('a list for a text_config', config('text_config', []), ['text_config', 'object']),
        ('biases', config(T + 'attention_bias', True), ['attention_bias']),
        ('activation', config(T + 'hidden_activation', 'silu'), ['hidden_activation', 'silu']),
        ('a list of activations', config(T + 'hidden_activation', ['silu']), ['hidden_activation', 'string']),
        ('attention both ways', config(T + 'use_bidirectional_attention', 'all'), ['use_bidirectional_attention']),
        ('layer type', data('config.json', lambda b: b.replace(b'sliding_attention', b'linear', 1)), ['layer_types', 'linear']),
        ('too few layer types', config(T + 'layer_types', ['full_attention']), ['layer_types']),
        ('text for layer types', config(T + 'layer_types', 'full_attention'), ['layer_types', 'list']),
        ('numbers for layer types', config(T + 'layer_types', [1, 2, 3]), ['layer_types[0]']),
        ('per_layer_config', config(T + 'per_layer_config', [3]), ['per_layer_config', 'object']),
        ('per_layer_config of a layer', config(T + 'per_layer_config', {'1': 3}), ['per_layer_config.1 is not an object']),
        ('rope type', config(R + 'sliding_attention.rope_type', 'yarn'), ['sliding_attention.rope_type', 'yarn']),
        ('global rope type', config(R + 'full_attention.rope_type', 'llama3'), ['full_attention.rope_type', 'llama3']),
        ('a number for a rope type', config(R + 'full_attention.rope_type', 1), ['full_attention.rope_type', 'string']),
        ('a list for rope', config(T + 'rope_parameters', []), ['rope_parameters', 'object']),
        ('rope theta', config(R + 'sliding_attention.rope_theta', 0), ['sliding_attention.rope_theta']),
        ('rope share', config(R + 'full_attention.partial_rotary_factor', 2), ['full_attention.partial_rotary_factor']),
        ('no layers', config(T + 'num_hidden_layers', None), ['num_hidden_layers']),
        ('layers: 0', config(T + 'num_hidden_layers', 0), ['num_hidden_layers']),
        ('layers: -3', config(T + 'num_hidden_layers', -3), ['num_hidden_layers']),
        ('layers: 1e9', config(T + 'num_hidden_layers', 10**9), ['num_hidden_layers']),
        ('layers: 1e400', data('config.json', lambda b: b.replace(b'"num_hidden_layers": 3', b'"num_hidden_layers": 1e400')),
         ['num_hidden_layers']),
        ('text for a number', config(T + 'hidden_size', '112'), ['hidden_size']),
        ('hidden size: 0', config(T + 'hidden_size', 0), ['hidden_size']),
        ('hidden size: 2^31', config(T + 'hidden_size', 1 << 31), ['hidden_size']),
        ('hidden size: 2^64', config(T + 'hidden_size', 1 << 64), ['hidden_size']),
        ('no vocabulary', config(T + 'vocab_size', 0), ['vocab_size']),
        ('vocabulary: -1', config(T + 'vocab_size', -1), ['vocab_size']),
        ('padding outside', config(T + 'pad_token_id', 519), ['pad_token_id']),
        ('image token outside', config('image_token_id', 519), ['image_token_id']),
        ('half a head', config(T + 'num_attention_heads', 2.5), ['num_attention_heads']),
        ('no heads', config(T + 'num_attention_heads', 0), ['num_attention_heads']),
        ('no KV heads', config(T + 'num_key_value_heads', 0), ['num_key_value_heads']),
        ('no window', config(T + 'sliding_window', 0), ['sliding_window']),
        ('window: 2^40', config(T + 'sliding_window', 1 << 40), ['sliding_window']),
        ('no context', config(T + 'max_position_embeddings', 0), ['max_position_embeddings']),
        ('eps', config(T + 'rms_norm_eps', -1), ['rms_norm_eps']),
        ('no eps', config(T + 'rms_norm_eps', 0), [T + 'rms_norm_eps']),
        ('soft cap', config(T + 'final_logit_softcapping', -30), ['final_logit_softcapping']),
        ('heads that do not divide', config(T + 'num_key_value_heads', 3), ['num_attention_heads']),
        ('odd head', config(T + 'head_dim', 47), ['head_dim']),
        ('head of nothing', config(T + 'head_dim', 0), ['head_dim']),
        ('head: -48', config(T + 'head_dim', -48), ['head_dim']),
        ('text for true', config(T + 'enable_moe_block', 'true'), ['enable_moe_block', 'true or false']),
        ('a number for true', config(T + 'attention_k_eq_v', 1), ['attention_k_eq_v', 'true or false']),
        ('more experts chosen than there are', config(T + 'top_k_experts', 9), ['top_k_experts']),
        ('no expert chosen', config(T + 'top_k_experts', 0), ['top_k_experts']),
        ('no experts', config(T + 'num_experts', 0), ['num_experts']),
        ('experts: 2^20', config(T + 'num_experts', 1 << 20), ['num_experts']),
        ('experts of nothing', config(T + 'moe_intermediate_size', 0), ['moe_intermediate_size']),
        ('quantisation by GPTQ', config(Q_C + 'quant_method', 'gptq'), ['quant_method', 'gptq', '; hf download ']),
        ('a list for a quantisation', config('quantization_config', [1]), ['quantization_config', 'object']),
        ('another algorithm', config(Q_C + 'quant_algo', 'FP8'), ['it is NVFP4', 'quant_algo in config.json is "FP8"']),
        ('weights of 8 bits', config(Q_C + 'config_groups', {'group_0': {'weights': {'num_bits': 8, 'type': 'float'}}}), ['it is NVFP4', 'config_groups']),
        ('weights of integers', config(Q_C + 'config_groups', {'group_0': {'weights': {'num_bits': 8}}}), ['it is NVFP4', 'config_groups']),
        ('KV cache of 999 bits', config(Q_C + 'kv_cache_scheme.num_bits', 999), ['kv_cache_scheme.num_bits']),
        ('KV cache of 4 bits', config(Q_C + 'kv_cache_scheme.num_bits', 4), ['kv_cache_scheme.num_bits']),
        ('KV cache with scales of its own', config(Q_C + 'kv_cache_scheme', {'num_bits': 8, 'dynamic': True}), ['kv_cache_scheme.dynamic']),
        ('KV cache by channel', config(Q_C + 'kv_cache_scheme', {'num_bits': 8, 'strategy': 'channel'}), ['kv_cache_scheme.strategy']),
        ('a key twice', data('config.json', lambda b: b.replace(b'"hidden_size"', b'"hidden_size": 1, "hidden_size"', 1)), ['hidden_size', 'twice']),
        ('sparse weights', config(Q_C + 'sparsity_config', {'format': 'sparse-24-bitmask'}), ['sparsity_config.format', 'sparse-24-bitmask']),
        ('activation order', config(Q_C + 'config_groups', {'group_0': {'weights': {'type': 'int', 'actorder': 'group'}}}),
         ['config_groups', 'actorder']),
        ('KV cache of integers', config(Q_C + 'kv_cache_scheme', {'num_bits': 8, 'type': 'int'}), ['kv_cache_scheme.type']),
        ('vision of no layers', config(V + 'num_hidden_layers', 0), [V + 'num_hidden_layers']),
        ('vision activation', config(V + 'hidden_activation', 'relu'), [V + 'hidden_activation', 'relu']),
        ('vision heads', config(V + 'head_dim', 6), [V + 'head_dim']),
        ('vision standardises by text', config(V + 'standardize', 'no'), [V + 'standardize']),
        ('vision patches', config(V + 'patch_size', 14), [V + 'patch_size']),
        ('vision rope', config(V + 'rope_parameters.rope_type', 'ntk'), [V + 'rope_parameters.rope_type']),
        ('empty config', data('config.json', lambda b: b''), ['empty']),
        ('broken config', data('config.json', lambda b: b[:-20]), ['byte']),
        ('text behind the config', data('config.json', lambda b: b + b'}'), ['byte']),
        ('list for a config', data('config.json', lambda b: b'[]'), ['object']),
        ('nested config', data('config.json', lambda b: b'{"model_type": %s}' % NESTED), ['deep']),
        ('NUL in the config', data('config.json', lambda b: b.replace(b'"gemma4"', b'"gemma4\0"')), ['NUL']),
        ('escaped NUL in the config', data('config.json', lambda b: b.replace(b'"gemma4"', b'"gemma4\\u0000"')), ['NUL']),
        ('NULs for a config', data('config.json', lambda b: bytes(4096)), ['byte']),
        ('UTF-16 config', data('config.json', lambda b: b.decode().encode('utf-16')), ['byte 0']),
        ('config of a page exactly', data('config.json', lambda b: b.ljust(mmap.PAGESIZE - 1) + b'{'), ['byte']),
        ('large config', data('config.json', lambda b: b'{"a": [%s0]}' % (b'0,' * (2 << 20))), ['too many']),
        ('directory for a config', instead('directory', 'config.json'), ['regular']),
        ('pipe for a config', instead('pipe', 'config.json'), ['regular']),
        ('a link to itself', instead('loop', 'config.json'), ['symbolic']),
    ],
    'generation_config.json': [
        ('end token', edit('generation_config.json', 'eos_token_id', 'x'), ['eos_token_id']),
        ('end token outside', edit('generation_config.json', 'eos_token_id', [1, 519]), ['eos_token_id', '519']),
        ('end token: -1', edit('generation_config.json', 'eos_token_id', -1), ['eos_token_id']),
        ('end token: 1.5', edit('generation_config.json', 'eos_token_id', [1.5]), ['eos_token_id']),
        ('17 end tokens', edit('generation_config.json', 'eos_token_id', list(range(17))), ['eos_token_id', '16']),
        ('temperature', edit('generation_config.json', 'temperature', 'hot'), ['temperature']),
        ('top_k', edit('generation_config.json', 'top_k', -1), ['top_k']),
        ('top_p', edit('generation_config.json', 'top_p', 1.5), ['top_p']),
        ('min_p', edit('generation_config.json', 'min_p', 'x'), ['min_p']),
        ('repetition_penalty', edit('generation_config.json', 'repetition_penalty', 0), ['repetition_penalty']),
        ('text for do_sample', edit('generation_config.json', 'do_sample', 'yes'), ['do_sample']),
        ('broken generation config', data('generation_config.json', lambda b: b'{'), ['byte']),
        ('nested generation config', data('generation_config.json', lambda b: NESTED), ['deep']),
        ('directory for a generation config', instead('directory', 'generation_config.json'), ['regular']),
        ('pipe for a generation config', instead('pipe', 'generation_config.json'), ['regular']),
    ],
    'hf_quant_config.json': [
        ('broken quantisation config', data('hf_quant_config.json', lambda b: b'{'), ['byte']),
        ('text for a quantisation', edit('hf_quant_config.json', 'quantization', 'NVFP4'), ['quantization', 'object']),
        ('another algorithm', edit('hf_quant_config.json', 'quantization.quant_algo', 'FP8_PB_WO'), ['it is NVFP4', 'quant_algo in hf_quant_config.json is "FP8_PB_WO"']),
        ('NVFP4 in groups of 32', edit('hf_quant_config.json', 'quantization.group_size', 32), ['quantization.group_size', 'must be 16']),
        ('a number for an algorithm', edit('hf_quant_config.json', 'quantization.kv_cache_quant_algo', 8), ['kv_cache_quant_algo']),
        ('pipe for a quantisation config', instead('pipe', 'hf_quant_config.json'), ['regular']),
    ],
    'model.safetensors': [
        ('empty weights', data('model.safetensors', lambda b: b''), ['empty']),
        ('seven bytes', data('model.safetensors', lambda b: b[:7]), ['header']),
        ('truncated', data('model.safetensors', lambda b: b[:-3]), ['tensor']),
        ('truncated in the header', data('model.safetensors', lambda b: b[:5000]), ['header']),
        ('header beyond the file', data('model.safetensors', lambda b: struct.pack('<Q', len(b)) + b[8:]), ['header']),
        ('header of 2^63', length(1 << 63), ['header']),
        ('header of 2^64 - 1', length((1 << 64) - 1), ['header']),
        ('header of 2^64 - 8', length((1 << 64) - 8), ['header']),
        ('header of nothing', length(0), ['byte 0']),
        ('header of half its length', length(20000), ['byte']),
        ('no tensors', header_text(lambda t: b'{}'), ['data_offsets']),
        ('header is no JSON', data('model.safetensors', lambda b: b[:8] + b'?' + b[9:]), ['byte']),
        ('nested header', header_text(lambda t: b'{"__metadata__": {"x": %s},' % NESTED + t[1:]), ['deep']),
        ('weights are a page of HTML', data('model.safetensors', lambda b: b'<!doctype html>' * 100), ['header']),
        ('git LFS pointer', data('model.safetensors', lambda b: b'version https://git-lfs.github.com/spec/v1\n'), ['git-lfs pointer: run git lfs pull']),
        ('GGUF', data('model.safetensors', lambda b: b'GGUF' + b[4:]), ['is a GGUF', 'hf download']),
        ('directory for weights', instead('directory', 'model.safetensors'), ['regular']),
        ('pipe for weights', instead('pipe', 'model.safetensors'), ['regular']),
        ('missing matrix', tensor(Q, None), [Q]),
        ('missing norm', tensor(NORM, None), [NORM]),
        ('missing embedding', tensor(EMBED, None), ['embed_tokens.weight']),
        ('missing expert', tensor(GATE, None), [GATE]),
        ('missing layer', without(LAYER), [LAYER]),
        ('missing block scale', tensor(SCALE, None), [SCALE]),
        ('missing scale', tensor(SCALE_2, None), [SCALE_2]),
        ('missing layer_scalar', tensor(LAYER + 'layer_scalar', None), [LAYER + 'layer_scalar']),
        ('missing router', tensor(LAYER + 'router.proj.weight', None), [LAYER + 'router.proj.weight']),
        ('missing vision layer', tensor(TOWER + 'mlp.up_proj.linear.weight', None), [TOWER + 'mlp.up_proj.linear.weight']),
        ('missing vision norm', tensor(TOWER + 'self_attn.k_norm.weight', None), [TOWER + 'self_attn.k_norm.weight']),
        ('missing patches', tensor('model.vision_tower.patch_embedder.input_proj.weight', None), ['input_proj.weight']),
        ('missing positions', tensor('model.vision_tower.patch_embedder.position_embedding_table', None), ['embedding_table']),
        ('missing projection', tensor('model.embed_vision.embedding_projection.weight', None), ['embedding_projection.weight']),
        ('more vision layers', config(V + 'num_hidden_layers', 3), ['vision_tower', 'layers.2.']),
        ('transposed', tensor(Q, lambda t, s, d: (t, s[::-1], d)), [Q, 'shape']),
        ('flat', tensor(Q, lambda t, s, d: (t, [s[0] * s[1]], d)), [Q, 'shape']),
        ('five dimensions', tensor(Q, lambda t, s, d: (t, [1, 1, 1] + s, d)), [Q, 'dtype']),
        ('wide norm', tensor(NORM, lambda t, s, d: (t, [s[0] + 1], d + d[:2])), [NORM, 'shape']),
        ('block scales of another width', tensor(SCALE, lambda t, s, d: (t, [s[0] // 2, s[1] * 2], d)), [SCALE, 'shape']),
        ('blocks of 32', tensor(SCALE, lambda t, s, d: (t, [s[0], 3], d[:s[0] * 3])), [SCALE, 'shape', '7']),
        ('another dtype', tensor(Q, lambda t, s, d: ('I32', s, d * 2)), [Q, 'dtype']),
        ('FP8 without scales', tensor(Q, lambda t, s, d: ('F8_E4M3', s, d[::2])), [Q + '_scale', 'missing']),
        ('unknown dtype', tensor(Q, lambda t, s, d: ('Q4_K', s, d)), [Q, 'dtype']),
        ('dtype is a number', header(lambda h: h[Q].update(dtype=16)), ['byte']),
        ('MXFP4', tensor(SCALE, lambda t, s, d: ('U8', s, d)), [GATE, 'MXFP4', '; hf download ']),
        ('block scales in another dtype', tensor(SCALE, lambda t, s, d: ('BF16', s, d * 2)), [SCALE, 'dtype']),
        ('scale in another dtype', tensor(SCALE_2, lambda t, s, d: ('I32', s, d)), [SCALE_2, 'dtype']),
        *[(what, extra(Q.replace('weight', name)), [Q.replace('weight', name), word]) for what, name, word in [
            ('activation order', 'weight_g_idx', 'g_idx'), ("DeepSeek's FP8", 'weight_scale_inv', 'DeepSeek'),
            ("modelopt's AWQ", 'pre_quant_scale', 'AWQ'), ('GPTQ', 'qweight', 'GPTQ'), ('zeros of GPTQ', 'qzeros', 'GPTQ'),
            ('bitsandbytes', 'weight.absmax', 'bitsandbytes'), ('nested bitsandbytes', 'weight.nested_absmax', 'bitsandbytes'),
            ('state of bitsandbytes', 'weight.quant_state.bitsandbytes__nf4', 'bitsandbytes'), ('fused MXFP4', 'up_proj_blocks', 'MXFP4'),
            ('map of bitsandbytes', 'weight.quant_map', 'bitsandbytes'),
            ('scales of an ordinary matrix', 'weight_scale', 'no part'), ('a bias', 'bias', 'no part'),
        ]],
        ('a tensor of nobody', extra(LAYER + 'self_attn.sinks'), [LAYER + 'self_attn.sinks', 'no part']),
        ('two KV scales', extra(LAYER + 'self_attn.k_scale'), [LAYER + 'self_attn.k_scale', 'no part']),
        ('a vision layer too many', extra(TOWER.replace('1', '2') + 'input_layernorm.weight'), [TOWER.replace('1', '2'), 'no part']),
        ('two scales', tensor(SCALE_2, lambda t, s, d: (t, [2], d * 2)), [SCALE_2, 'shape']),
        ('scale of nothing', tensor(SCALE_2, lambda t, s, d: (t, s, bytes(4))), [SCALE_2]),
        ('scale is NaN', tensor(SCALE_2, nan), [SCALE_2]),
        ('scale is infinite', tensor(SCALE_2, f32(float('inf'))), [SCALE_2, 'inf']),
        ('scale is negative', tensor(SCALE_2, f32(-1)), [SCALE_2, '-1']),
        ('reciprocal scale is infinite', compressed, [GATE + '_global_scale', 'finite']),
        ('block scale is NaN', tensor(SCALE, lambda t, s, d: (t, s, d[:-1] + b'\x7f')), [SCALE, 'NaN']),
        ('first block scale is -NaN', tensor(SCALE, lambda t, s, d: (t, s, b'\xff' + d[1:])), [SCALE, 'NaN']),
        ('block scale is negative', tensor(SCALE, lambda t, s, d: (t, s, d[:-1] + b'\x81')), [SCALE, 'negative']),
        ('fourth block scale is negative', tensor(SCALE, lambda t, s, d: (t, s, d[:3] + b'\xb8' + d[4:])), [SCALE, 'negative']),
        ('two scales are NaN', both(tensor(SCALE.replace('gate', 'up'), nan), tensor(SCALE, nan)), [SCALE, 'NaN']),
        ('norm is NaN', tensor(NORM, nan), [NORM]),
        ('norm is infinite', tensor(NORM, lambda t, s, d: (t, s, b'\x80\x7f' + d[2:])), [NORM]),
        ('expert scale is NaN', tensor(LAYER + 'router.per_expert_scale', nan), [LAYER + 'router.per_expert_scale']),
        ('KV scale of nothing', tensor(K_SCALE, lambda t, s, d: (t, s, bytes(4))), [K_SCALE]),
        ('KV scale is infinite', tensor(K_SCALE, f32(float('inf'))), [K_SCALE]),
        ('data beyond the file', header(lambda h: swap_offsets(h, lambda a, b: [a, 1 << 40])), [Q, 'data_offsets']),
        ('data backwards', header(lambda h: swap_offsets(h, lambda a, b: [b, a])), [Q, 'data_offsets']),
        ('data too short', header(lambda h: swap_offsets(h, lambda a, b: [a, b - 2])), [Q, 'data_offsets']),
        ('data from 2^63 - 1', header(lambda h: swap_offsets(h, lambda a, b: [(1 << 63) - 1, (1 << 63) - 1 + b - a])), ['byte']),
        ('data from 2^64', header(lambda h: swap_offsets(h, lambda a, b: [(1 << 64) + a, (1 << 64) + b])), ['byte']),
        ('data from -2', header(lambda h: swap_offsets(h, lambda a, b: [-2, b])), ['negative']),
        ('one offset', header(lambda h: swap_offsets(h, lambda a, b: [a])), [Q, 'data_offsets']),
        ('three offsets', header(lambda h: swap_offsets(h, lambda a, b: [a, b, b])), [Q, 'data_offsets']),
        ('no offsets', header(lambda h: h[Q].pop('data_offsets')), [Q, 'data_offsets']),
        ('offsets twice', header_text(lambda t: t.replace(b'"data_offsets"', b'"data_offsets":[0,0],"data_offsets"', 1)), ['twice']),
        ('no shape', header(lambda h: h[Q].pop('shape')), [Q, 'shape']),
        ('no dtype', header(lambda h: h[Q].pop('dtype')), [Q, 'dtype']),
        ('shape that overflows', header(lambda h: h[Q].update(shape=[1 << 62, 1 << 62])), [Q]),
        ('shape that overflows to the right size', header(lambda h: h[Q].update(shape=[(1 << 63) + Q_SIZE // 2, 1])), ['byte']),
        ('negative shape', header(lambda h: h[Q].update(shape=[-1, 1])), ['negative']),
        ('overlap', header(lambda h: swap_offsets(h, lambda a, b: [a - 2, b - 2])), [Q, 'overlap']),
        ('twice the same data', header(lambda h: h.update(copy=h[Q])), ['copy', 'overlap']),
        ('hole', header(lambda h: h.pop(Q)), ['data_offsets', 'cover']),
        ('bytes behind the data', data('model.safetensors', lambda b: b + bytes(1000)), ['data_offsets']),
        ('name twice', header_text(lambda t: t.replace(b'experts.2.gate_proj.weight"', b'experts.3.gate_proj.weight"', 1)),
         ['experts.3.gate_proj.weight', 'twice']),
        ('NUL in a name', header_text(lambda t: t.replace(b'layer_scalar"', b'layer_scalar\\u0000"', 1)), ['NUL']),
        ('vocabulary larger than the embedding', config(T + 'vocab_size', 520), [EMBED, 'shape']),
        ('vocabulary smaller than the embedding', config(T + 'vocab_size', 518), [EMBED, 'shape']),
        ('sizes whose product is large', both(config(T + 'hidden_size', 65536), config(T + 'vocab_size', 1 << 24)), [EMBED, 'shape']),
        ('heads whose product is large', both(config(T + 'num_attention_heads', 4096), config(T + 'head_dim', 4096)), ['q_proj', 'shape']),
        ('more experts than there are', config(T + 'num_experts', 9), ['per_expert_scale', 'shape']),
    ],
    SHARDS[1]: [
        ('missing shard', sharded(lambda m, i: (m / SHARDS[1]).unlink()), ['missing', 'incomplete', 'download it again']),
        ('truncated shard', sharded(lambda m, i: data(SHARDS[1], lambda b: b[:-1])(m)),
         ['tensor', 'incomplete: download it again: hf download ORG/NAME %s --force-download --local-dir DIR' % SHARDS[1]]),
        ('empty shard', sharded(lambda m, i: data(SHARDS[1], lambda b: b'')(m)), ['empty', '--force-download']),
        ('shard of a header', sharded(lambda m, i: data(SHARDS[1], lambda b: b[:99])(m)), ['header length', '--force-download']),
        ('shard of 7 bytes', sharded(lambda m, i: data(SHARDS[1], lambda b: b[:7])(m)), ['too short', '--force-download']),
        ('page for a shard', sharded(lambda m, i: data(SHARDS[1], lambda b: b'<!DOCTYPE html>')(m)), ['no safetensors file']),
        ('directory for a shard', sharded(lambda m, i: instead('directory', SHARDS[1])(m)), ['regular']),
        ('pipe for a shard', sharded(lambda m, i: instead('pipe', SHARDS[1])(m)), ['regular']),
        ('two shards with the same tensors', sharded(lambda m, i: shutil.copy(m / SHARDS[0], m / SHARDS[1])), ['twice', SHARDS[0]]),
    ],
    INDEX: [
        ('shard above', mapped(Q, '../model.safetensors'), [Q]),
        ('shard at the root', mapped(Q, '/dev/zero'), [Q]),
        ('shard without a name', mapped(Q, ''), [Q]),
        ('shard with a number', mapped(Q, 3), [Q]),
        ('shard with a NUL', mapped(Q, SHARDS[0] + '\0'), [Q]),
        ('index without map', sharded(lambda m, i: i.clear()), ['weight_map']),
        ('empty map', sharded(lambda m, i: i.update(weight_map={})), ['weight_map']),
        ('list for a map', sharded(lambda m, i: i.update(weight_map=[])), ['byte']),
        ('empty index', index(b''), ['empty']),
        ('broken index', index(b'{"weight_map"'), ['byte']),
        ('nested index', index(b'{"metadata": %s}' % NESTED), ['deep']),
        ('list for an index', index(b'[]'), ['byte']),
        ('directory for an index', both(sharded(lambda m, i: None), instead('directory', INDEX)), ['regular']),
        ('pipe for an index', both(sharded(lambda m, i: None), instead('pipe', INDEX)), ['regular']),
    ],
    '': [
        ('missing shard without an index', unindexed(lambda m: (m / SHARDS[1]).unlink()), [SHARDS[1], 'missing', 'incomplete']),
        ('shards with the same tensors', unindexed(lambda m: shutil.copy(m / SHARDS[0], m / SHARDS[1])), ['twice', *SHARDS]),
        ('one file too many', unindexed(lambda m: (m / 'other.safetensors').write_bytes(b'no')), ['other.safetensors', 'header']),
        ('LoRA adapter', lora, ['is a LoRA adapter, not a checkpoint', '-m BASE --lora ']),
        ('no shard', sharded(lambda m, i: [(m / shard).unlink() for shard in SHARDS]),
         ['model-0000', 'not there, but in the index', 'incomplete: download it again']),
        ('weights of torch', both(data('model.safetensors', None), data('pytorch_model.bin', lambda b: b'PK')), ['pytorch_model.bin', 'save_pretrained']),
        ('no weights at all', data('model.safetensors', None), ['neither model.safetensors nor an index', 'incomplete']),
        ('no config', data('config.json', None), ['config.json is missing', 'incomplete: download it again: hf download ORG/NAME --local-dir']),
        ('nothing', both(data('model.safetensors', None), data('config.json', None)), ['is no checkpoint']),
        ('GGUF of another name', both(data('model.safetensors', None), data('gemma', lambda b: b'GGUF and more')), ['is a GGUF', 'hf download']),
        ('GGUF alone', both(data('model.safetensors', None), data('gemma.gguf', lambda b: b'GGUF')),
         ['is a GGUF', 'safetensors', 'hf download']),
        ('link to nothing', dangling('model.safetensors'), ['model.safetensors', 'incomplete', 'download it again']),
        ('link to nothing for a config', dangling('config.json'), ['config.json', 'incomplete', 'download it again']),
        ('download by aria2', lambda model: (model / 'model.safetensors.aria2').touch(), ['model.safetensors.aria2', 'incomplete']),
        ('download that has begun', both(data('model.safetensors', None), begun), ['weights are missing', 'incomplete']),
        ('the directory itself for a shard', mapped(Q, '.'), ['regular']),
        ('the directory above for a shard', mapped(Q, '..'), ['regular']),
        ('the index for a shard', mapped(Q, INDEX), ['header']),
        ('no tokenizer', data('tokenizer.json', None), ['neither', 'tokenizer.json', 'tokenizer.model', 'hf download']),
    ],
    'tokenizer.json': [
        ('fewer embeddings than tokens', fewer_rows, ['512', '508', 'vocab_size']),
        ('empty tokenizer', data('tokenizer.json', lambda b: b''), ['empty']),
        ('truncated tokenizer', data('tokenizer.json', lambda b: b[:-200]), ['byte']),
        ('truncated tokenizer and a bad scale', both(data('tokenizer.json', lambda b: b[:-200]), tensor(SCALE, nan)), ['byte']),
        ('text behind the tokenizer', data('tokenizer.json', lambda b: b + b'x'), ['byte']),
        ('no JSON', data('tokenizer.json', lambda b: b'hello'), ['byte 0']),
        ('nested tokenizer', data('tokenizer.json', lambda b: b'{"x": %s,' % NESTED + b[1:]), ['deep']),
        ('directory for a tokenizer', instead('directory', 'tokenizer.json'), ['regular']),
        ('pipe for a tokenizer', instead('pipe', 'tokenizer.json'), ['regular']),
        *[(name, data('tokenizer.json', json_field(change)), words) for name, change, words in [
            ('not BPE', lambda t: t['model'].update(type='Unigram'), ['model.type', 'BPE']),
            ('no model', lambda t: t.pop('model'), ['model']),
            ('no vocabulary of the tokenizer', lambda t: t['model'].pop('vocab'), ['vocab']),
            ('empty vocabulary', lambda t: t['model'].update(vocab={}, merges=[]), ['vocab']),
            ('no byte fallback', lambda t: t['model'].update(byte_fallback=False), ['byte_fallback']),
            ('a byte missing', lambda t: t['model']['vocab'].pop('<0x41>'), ['<0x41>']),
            ('id twice', lambda t: t['model']['vocab'].update(he=362), ['362']),
            ('id of text', lambda t: t['model']['vocab'].update(he='x'), ['model.vocab']),
            ('id: -1', lambda t: t['model']['vocab'].update(he=-1), ['model.vocab', '-1']),
            ('id far away', lambda t: t['model']['vocab'].update(he=1 << 40), ['model.vocab']),
            ('id that would take much memory', lambda t: t['model']['vocab'].update(he=(1 << 24) - 1), ['model.vocab', '16777215']),
            ('added id that would take much memory', lambda t: t['added_tokens'][-1].update(id=(1 << 24) - 1), ['added_tokens']),
            ('added token of another piece', lambda t: t['added_tokens'][0].update(content='odd'), ['added_tokens', 'odd']),
            ('merge of unknown pieces', lambda t: t['model']['merges'].append('qq zz'), ['model.merges', 'qq']),
            ('merge of numbers', lambda t: t['model']['merges'].append([1, 2]), ['model.merges']),
            ('another normaliser', lambda t: t.update(normalizer={'type': 'NFC'}), ['normalizer']),
        ]],
        ('no <|turn>', data('tokenizer.json', lambda b: b.replace(b'<|turn>', b'<|torn>')), ['<|turn>']),
        ('no <bos>', data('tokenizer.json', lambda b: b.replace(b'<bos>', b'<sob>')), ['<bos>']),
    ],
}


# The same for demo/, of which there is only tokenizer.model to tokenize with.
def message(*fields):
    """A message of SentencePiece's: (number, bytes or whole number)."""
    out = b''
    for number, value in fields:
        part = varint(len(value)) + value if isinstance(value, bytes) else varint(value)
        out += varint(number << 3 | (2 if isinstance(value, bytes) else 0)) + part
    return out


def varint(n):
    out = b''
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def behind(*fields):
    """The model with these fields behind it: a single one that stands twice counts as the last time."""
    return data('tokenizer.model', lambda b: b + message(*fields))


BROKEN_SENTENCEPIECE = [
    ('empty', data('tokenizer.model', lambda b: b''), ['empty']),
    ('truncated', data('tokenizer.model', lambda b: b[:len(b) // 2 + 1]), ['pieces[']),
    ('text', data('tokenizer.model', lambda b: b'version https://git-lfs.github.com/spec/v1\n'), ['git-lfs pointer: run git lfs pull']),
    ('length of 2^63', data('tokenizer.model', lambda b: b + b'\x0a' + b'\xff' * 8 + b'\x7f'), ['SentencePiece']),
    ('number without an end', data('tokenizer.model', lambda b: b + b'\xff' * 20), ['SentencePiece']),
    ('no pieces', data('tokenizer.model', lambda b: message((2, b''))), ['no pieces']),
    ('no specs', data('tokenizer.model', lambda b: message((1, message((1, b'a'))))), ['trainer_spec']),
    ('broken trainer_spec', behind((2, b'\x0a\x7f')), ['trainer_spec']),
    ('not BPE', behind((2, message((3, 1), (35, 1)))), ['trainer_spec.model_type']),
    ('no byte fallback', behind((2, message((3, 2), (35, 0)))), ['trainer_spec.byte_fallback']),
    ('broken normalizer_spec', behind((3, b'\x0a\x7f')), ['normalizer_spec']),
    ('a space in front', behind((3, message((3, 1), (4, 0)))), ['normalizer_spec.add_dummy_prefix']),
    ('characters are changed', behind((3, message((2, b'map'), (3, 0), (4, 0)))), ['normalizer_spec.precompiled_charsmap']),
    ('spaces are removed', behind((3, message((3, 0), (4, 1)))), ['normalizer_spec.remove_extra_whitespaces']),
    ('spaces stay', behind((3, message((3, 0), (4, 0), (5, 0)))), ['normalizer_spec.escape_whitespaces']),
    ('piece of an unknown type', behind((1, message((1, b'zzz'), (3, 9)))), ['pieces', '2048', '9']),
    ('piece of nothing', behind((1, message((3, 1)))), ['pieces', '2048']),
    ('piece twice', behind((1, message((1, b'a')))), ['pieces', "'a'", 'twice']),
    ('byte of no number', behind((1, message((1, b'<0xGG>'), (3, 6)))), ['pieces', '<0xGG>']),
    ('score is NaN', behind((1, message((1, b'zzz')) + b'\x15\xff\xff\xff\xff')), ['pieces', '2048', 'score']),
    ('a byte missing', data('tokenizer.model', lambda b: b.replace(b'<0x41>', b'<0x42>')), ['pieces', '<0x42>']),
    ('one token more than embeddings', behind((1, message((1, b'zzzzz')))), ['2049', 'vocab_size']),
    ('no <|turn>', data('tokenizer.model', lambda b: b.replace(b'<|turn>', b'<|torn>')), ['<|turn>']),
    ('directory', instead('directory', 'tokenizer.model'), ['regular']),
    ('pipe', instead('pipe', 'tokenizer.model'), ['regular']),
]

# The same for the fixture odd-assistant, given with --draft; see also test_draft.py.
A = 'model.layers.2.'
BROKEN_ASSISTANTS = [
    ('truncated', data('model.safetensors', lambda b: b[:-1]), ['model.safetensors', 'tensor']),
    ('pipe for a config', instead('pipe', 'config.json'), ['config.json', 'regular']),
    ('pipe for weights', instead('pipe', 'model.safetensors'), ['model.safetensors', 'regular']),
    ('no heads', config(T + 'num_attention_heads', 0), ['config.json', 'num_attention_heads']),
    ('quantisation by AWQ', config('quantization_config', {'quant_method': 'awq'}), ['config.json', 'quant_method', 'awq']),
    ('missing layer', without(A), ['model.safetensors', A]),
    ('missing embedding', tensor('model.embed_tokens.weight', None), ['model.safetensors', 'embed_tokens.weight']),
    ('projection of another width', tensor('pre_projection.weight', lambda t, s, d: (t, s[::-1], d)), ['pre_projection.weight', 'shape']),
    ('norm is NaN', tensor(A + 'self_attn.q_norm.weight', nan), ['model.safetensors', A + 'self_attn.q_norm.weight']),
    ('quantised in odd widths', tensor(A + 'mlp.up_proj.weight', lambda t, s, d: ('U8', [s[0], 2 * s[1]], d)), [A + 'mlp.up_proj.weight']),
]


def params(table):
    return [pytest.param(spoil, words, id=name) for name, spoil, words in table]


@pytest.mark.parametrize('spoil, words', [p for file, table in BROKEN.items() for p in params((n, s, [file, *w]) for n, s, w in table)])
def test_checkpoint(copy, spoil, words):
    model = copy(FIXTURES / 'odd-experts')
    spoil(model)
    refused_for(words, model, '-m', model, '-n', 1, 'hello')


@pytest.mark.parametrize('spoil, words', params(BROKEN_SENTENCEPIECE))
def test_sentencepiece_model(tmp_path, spoil, words):
    for file in ('config.json', 'generation_config.json', 'model.safetensors'):
        (tmp_path / file).symlink_to(DEMO / file)
    shutil.copyfile(DEMO / 'tokenizer.model', tmp_path / 'tokenizer.model')
    spoil(tmp_path)
    refused_for(words, '%s/tokenizer.model: ' % tmp_path, '-m', tmp_path, '-n', 1, 'hello')


@pytest.mark.parametrize('spoil, words', params(BROKEN_ASSISTANTS))
def test_assistant(copy, spoil, words):
    drafter = copy(FIXTURES / 'odd-assistant')
    spoil(drafter)
    refused_for(words, drafter, '-m', FIXTURES / 'odd-bf16', '--draft', drafter, '-t', 1, '-c', 64, '-n', 1, 'hello')


def test_the_limits_of_these_tests_are_no_reason():
    for model in (('odd-experts',), ('odd-bf16', '--draft', FIXTURES / 'odd-assistant')):
        done = run('-m', FIXTURES / model[0], *model[1:], '-t', 1, '-c', 64, '-n', 1, '--ignore-eos', 'hello', preexec_fn=limits)
        assert (done.returncode, done.stderr) == (0, b'')


@pytest.mark.parametrize('file', ['tokenizer.json', 'tokenizer.model'])
def test_vocabulary_beyond_32_bits(copy, file):
    model = copy(FIXTURES / 'odd-bf16')
    (model / 'tokenizer.json').unlink()
    (model / file).touch()
    os.truncate(model / file, 1 << 31)          # a hole: it takes no room
    assert complaint(1, 'tokenize', '-m', model) == 'gemma4: %s: too large\n' % (model / file)


@pytest.mark.parametrize('spoil, words', [
    (config('model_type', 'llama'), ['model_type']), (tensor(Q, None), [Q]), (data('tokenizer.json', None), ['tokenizer.json']),
], ids=['config', 'tensor', 'tokenizer'])
@pytest.mark.parametrize('call', [['hello'], ['--jsonl'], ['--raw', '-p', 'x'], ['score', '--raw', '-p', 'x']], ids=' '.join)
def test_refused_in_every_call(copy, spoil, words, call):
    model = copy(FIXTURES / 'odd-experts')
    spoil(model)
    line = refused(*call, '-m', model)
    assert all(word in line for word in words), line
    assert refused('tokenize' if 'tokenizer' in words[0] else 'info', '-m', model) == line


@pytest.mark.skipif(SANITIZED, reason='a sanitizer reserves terabytes')
def test_less_and_less_memory():
    """Whatever cannot be had is said."""
    ended = []
    for megabytes in range(8, 83, 3):
        room = (megabytes << 20) + os.path.getsize(GEMMA4)
        done = run('-m', DEMO, '-t', 4, '-n', 2, '--ignore-eos', 'hi', preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (room, room)))
        said = done.stderr.decode()
        if done.returncode == 127 and 'shared libraries' in said:          # the program has not begun
            continue
        ended.append(done.returncode)
        if done.returncode == 0:
            assert done.stdout and not said
        else:
            assert done.returncode == 1 and not done.stdout, (room, said)
            assert re.fullmatch('gemma4: .*([Mm]emory|thread).*\\n', said)
    assert len(ended) > 20 and ended[0] == 1 and ended[-1] == 0


# ---------------------------------------------------------------------------------------------- what fails later

REQUEST = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}\n'


@pytest.mark.parametrize('left', [0, 1 << 20])
def test_a_file_that_is_cut_short_while_it_is_mapped(copy, start, left):
    model = copy(DEMO)
    p = start('-m', model, '--jsonl')
    p.stdin.write(REQUEST)
    assert b'"choices"' in read_line(p.stdout)
    os.truncate(model / 'model.safetensors', left)
    p.stdin.write(REQUEST)
    assert (p.stdout.read(), p.wait()) == (b'', 1)
    assert p.stderr.read().decode() == 'gemma4: %s/model.safetensors: cannot be read any more: cut short, or its disk fails\n' % model
