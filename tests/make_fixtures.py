#!/usr/bin/env python3
"""Make everything in tests/fixtures/ again: tiny random checkpoints, reference values and sampler cases.

usage: make_fixtures.py TINY_CHECKPOINT [NAME ...]      NAME: odd-bf16 odd-experts odd-all dense sampler (default: all)

TINY_CHECKPOINT is a directory whose tokenizer.json and tokenizer_config.json (512 pieces) are copied; any
directory under tests/fixtures/ will do. Needs torch, transformers 5.23, safetensors, tokenizers and
nvidia-modelopt. The reference is transformers itself (models/gemma4/modeling_gemma4.py) in float32 with
dequantised weights; only what the KV cache stores is replaced, by RoundedCache below.

NAME/                a checkpoint directory
NAME.ref.safetensors
    ids              [1, n]            prompt
    logits_f32       [1, n, vocab]     after the soft cap
    hidden_f32       [layers+1, p, hidden]  embeddings, after each layer; the last one after the final norm
    hidden_positions [p]               the positions of the prompt that hidden_f32 has
    router_logits_f32 [layers, n, experts] before softmax;  router_topk_f32 [layers, n, k] the chosen experts
    greedy_ids       [1, n+64]         prompt and continuation;  greedy_margins_f32 [64] best minus second logit
    stop_prompt_ids, stop_ids          a continuation that ends in an end token
    fp8_*, bf16kv_*                    the same with K and V rounded as they are stored
    image_*          odd-bf16 only     pixels (bytes; p/255 is the input), positions (x, y), soft tokens, logits
NAME.ref.json        the same ids with texts, what was measured, and the tolerances that are fair
sampler_cases.json   logits and settings -> probabilities, by transformers' own processors
"""
import copy
import json
import os
import shutil
import sys
from types import SimpleNamespace

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import DynamicCache, Gemma4Config, Gemma4ForConditionalGeneration, GenerationConfig, GenerationMixin
from modelopt.torch.quantization.qtensor import nvfp4_tensor

torch.set_num_threads(1)
torch.set_grad_enabled(False)
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'fixtures')
VOCAB = 519          # odd, and more than the tokenizer's 512 pieces
EOS = [1, 507, 494]  # <eos> <turn|> <|tool_response>, like 1, 106 and 50 of the real model
IMAGE, BOI, EOI = 502, 500, 501
PLACEHOLDERS = (502, 503, 506)  # <|image|> <|video|> <|audio|>
N_GREEDY = 64
MIN_GUARD = 1.2e-7  # see Fp8

# No dimension that matters is a power of two, and the shapes differ from one another: heads per KV head 2, 3, 4
# and 6, one or more global layers, in different places. Where NVFP4 is used the inner dimensions are multiples of
# 16. found: see search().
SHAPES = {
    'odd-bf16': dict(
        seed=103, found=(20, 4), layers='ssf', hidden=176, heads=4, kv=2, global_kv=2, head_dim=48,
        global_head_dim=80, window=24, mlp=88, experts=5, expert_dim=24, top_k=2, quantised=(), kv_cache=None),
    'odd-experts': dict(
        seed=101, found=(3351, 6), layers='fsf', hidden=112, heads=4, kv=2, global_kv=1, head_dim=48,
        global_head_dim=80, window=24, mlp=80, experts=8, expert_dim=48, top_k=2, quantised=('experts',),
        kv_cache='scales', input_scale=True),
    'odd-all': dict(
        seed=107, found=(62, 24), layers='sssssf', hidden=144, heads=6, kv=2, global_kv=2, head_dim=40,
        global_head_dim=72, window=16, mlp=112, experts=10, expert_dim=32, top_k=3,
        quantised=('experts', 'mlp', 'self_attn'), kv_cache=None, input_scale=False),
    'dense': dict(
        seed=110, found=(693, 16), layers='sssf', hidden=176, heads=6, kv=3, global_kv=1, head_dim=48,
        global_head_dim=80, window=24, mlp=144, experts=0, expert_dim=0, top_k=0,
        quantised=('mlp', 'self_attn'), kv_cache='announced', input_scale=True),
}
VISION = dict(hidden=24, heads=2, head_dim=12, mlp=40, layers=2, positions=24)

# What prompts are cut from. Written for this purpose.
TEXT = """The tide comes in twice a day and takes nothing for granted. A harbour that was dry at noon holds nine boats
by evening, and the old man who counts them writes the number in a book with a blue cover. Some days he forgets one;
on others, when the fog is thick, he counts a rock. "It evens out," he says, and nobody has ever shown that it does
not. In winter the book grows slowly. Ice forms along the wall, the ropes go stiff, and the gulls stand on one leg as
if the other were being saved for spring. Then the ferry brings letters, 14 sacks of flour, two mirrors, a piano with
no lid (the lid came a year later, by mistake, to another island), and a girl of ten who asks what every single thing
is for. What is a bollard for? To be leaned on. What is a lighthouse for? To be asked about. She keeps a list, and the
list gets longer than the book. By the time the herring arrive she has given each boat a second name, drawn a map of
the currents at 1:5000, and proved, with string and chalk, that the counting wall is 3.7 metres shorter than anyone
had believed. The old man measures it again: 3.7. He draws a line through thirty years of numbers, very straight, and
begins again on the next page with her string beside him. Nobody remarks on it. The baker, who sees everything from
his window because bread is mostly waiting, sets out an extra cup. At night the wind turns north-east, force 6, and
the boats pull at their chains all together like one animal that dreams of running; in the morning each of them
points the same way, and there are nine. Count them yourself if you like: the red one, the two greens, the one that
used to be a pilot cutter, `Margaret`, `No. 8`, the raft with a stove, the grey hull nobody owns, and last of all the
dinghy which the girl has rigged with a bed sheet and calls, for reasons of her own, the Fleet. Questions are like
water, she says: they find the lowest place and wait there until somebody falls in."""
TEXT = ' '.join(TEXT.split())


# ---------------------------------------------------------------------------------------------- configuration

def make_config(s):
    """config.json in the published spelling (transformers 5.5): global_head_dim, vision rope "default"."""
    moe = s['experts'] > 0
    text = {
        'attention_bias': False, 'attention_dropout': 0.0, 'attention_k_eq_v': True, 'bos_token_id': 2,
        'dtype': 'bfloat16', 'enable_moe_block': moe, 'eos_token_id': 1, 'final_logit_softcapping': 30.0,
        'global_head_dim': s['global_head_dim'], 'head_dim': s['head_dim'],
        'hidden_activation': 'gelu_pytorch_tanh', 'hidden_size': s['hidden'], 'hidden_size_per_layer_input': 0,
        'initializer_range': 0.02, 'intermediate_size': s['mlp'],
        'layer_types': [{'s': 'sliding_attention', 'f': 'full_attention'}[c] for c in s['layers']],
        'max_position_embeddings': 4096, 'model_type': 'gemma4_text',
        'moe_intermediate_size': s['expert_dim'] if moe else None, 'num_attention_heads': s['heads'],
        'num_experts': s['experts'] if moe else None, 'num_global_key_value_heads': s['global_kv'],
        'num_hidden_layers': len(s['layers']), 'num_key_value_heads': s['kv'], 'num_kv_shared_layers': 0,
        'pad_token_id': 0, 'rms_norm_eps': 1e-06,
        'rope_parameters': {
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'}},
        'sliding_window': s['window'], 'tie_word_embeddings': True, 'top_k_experts': s['top_k'] if moe else None,
        'use_bidirectional_attention': 'vision', 'use_cache': True, 'use_double_wide_mlp': False,
        'vocab_size': VOCAB, 'vocab_size_per_layer_input': VOCAB}
    vision = {
        'attention_bias': False, 'attention_dropout': 0.0, 'default_output_length': 280, 'dtype': 'bfloat16',
        'global_head_dim': VISION['head_dim'], 'head_dim': VISION['head_dim'],
        'hidden_activation': 'gelu_pytorch_tanh', 'hidden_size': VISION['hidden'], 'initializer_range': 0.02,
        'intermediate_size': VISION['mlp'], 'max_position_embeddings': 4096, 'model_type': 'gemma4_vision',
        'num_attention_heads': VISION['heads'], 'num_hidden_layers': VISION['layers'],
        'num_key_value_heads': VISION['heads'], 'patch_size': 16, 'pooling_kernel_size': 3,
        'position_embedding_size': VISION['positions'], 'rms_norm_eps': 1e-06,
        'rope_parameters': {'rope_theta': 100.0, 'rope_type': 'default'}, 'standardize': True,
        'use_clipped_linears': False}
    config = {
        'architectures': ['Gemma4ForConditionalGeneration'], 'audio_config': None, 'audio_token_id': 506,
        'boa_token_id': 504, 'boi_token_id': BOI, 'dtype': 'bfloat16', 'eoa_token_id': 505, 'eoa_token_index': 505,
        'eoi_token_id': EOI, 'eos_token_id': EOS, 'image_token_id': IMAGE, 'initializer_range': 0.02,
        'model_type': 'gemma4', 'text_config': text, 'tie_word_embeddings': True,
        'transformers_version': '5.5.0.dev0', 'video_token_id': 503, 'vision_config': vision,
        'vision_soft_tokens_per_image': 280}
    if not s['quantised']:
        return config, None

    # modelopt's own file, and its rendering in config.json (modelopt/torch/export/convert_hf_config.py).
    ignore = ['lm_head', 'model.embed_vision*', 'model.vision_tower*']
    for i in range(len(s['layers'])):
        parts = (['router'] if moe else []) + [p for p in ('mlp', 'self_attn') if p not in s['quantised']]
        ignore += ['model.language_model.layers.%d.%s*' % (i, p) for p in parts]
    ignore.sort()
    producer = {'name': 'modelopt', 'version': '0.43.0'}
    fp4 = {'dynamic': False, 'group_size': 16, 'num_bits': 4, 'type': 'float'}
    group = {'targets': ['Linear'], 'weights': fp4}
    if s['input_scale']:
        group['input_activations'] = fp4
    quantization = {'config_groups': {'group_0': group}, 'ignore': ignore, 'producer': producer,
                    'quant_algo': 'NVFP4', 'quant_method': 'modelopt'}
    if s['kv_cache']:
        quantization['kv_cache_scheme'] = {'dynamic': False, 'num_bits': 8, 'type': 'float'}
    config['quantization_config'] = quantization
    return config, {'producer': producer, 'quantization': {
        'quant_algo': 'NVFP4', 'kv_cache_quant_algo': 'FP8' if s['kv_cache'] else None, 'group_size': 16,
        'exclude_modules': ignore}}


# ---------------------------------------------------------------------------------------------- weights

def make_weights(s):
    """{name: float32 array of bf16 values}. The distributions keep every part of the model lively: hidden states
    of size about 1, router logits of deviation 5, logits that the soft cap bends a little. Norm weights, router
    scales and layer scalars are far from 1, so that a forgotten one shows."""
    rng = np.random.default_rng(s['seed'])
    w = {}

    def put(name, x):
        w[name] = torch.tensor(x, dtype=torch.float32).bfloat16().float().numpy()

    def linear(name, out, inner, gain=1.3):
        # A deviation that differs per matrix: otherwise all weight_scale_2 would be nearly the same.
        put(name, rng.standard_normal((out, inner)) * gain * rng.uniform(0.75, 1.3) / inner ** 0.5)

    def norm(name, size, low=0.6, high=1.4):
        put(name + '.weight', rng.uniform(low, high, size))

    h = s['hidden']
    embedding = rng.standard_normal((VOCAB, h)) / h ** 0.5
    embedding[512:] *= 0.4  # ids without a piece are never generated
    put('model.language_model.embed_tokens.weight', embedding)
    put('model.language_model.norm.weight', rng.uniform(3, 7, h) * rng.choice([-1, 1], h))
    for i, kind in enumerate(s['layers']):
        p = 'model.language_model.layers.%d.' % i
        head = s['head_dim'] if kind == 's' else s['global_head_dim']
        kv = s['kv'] if kind == 's' else s['global_kv']
        linear(p + 'self_attn.q_proj.weight', s['heads'] * head, h)
        linear(p + 'self_attn.k_proj.weight', kv * head, h)
        if kind == 's':  # global layers take their values from k_proj (attention_k_eq_v)
            linear(p + 'self_attn.v_proj.weight', kv * head, h)
        linear(p + 'self_attn.o_proj.weight', h, s['heads'] * head)
        norm(p + 'self_attn.q_norm', head)
        # The attention scale is 1: k_norm must carry the 1/sqrt(head_dim).
        norm(p + 'self_attn.k_norm', head, 1.2 / head ** 0.5, 2.8 / head ** 0.5)
        linear(p + 'mlp.gate_proj.weight', s['mlp'], h)
        linear(p + 'mlp.up_proj.weight', s['mlp'], h)
        linear(p + 'mlp.down_proj.weight', h, s['mlp'])
        norm(p + 'input_layernorm', h)
        norm(p + 'post_attention_layernorm', h, 0.15, 0.35)
        norm(p + 'pre_feedforward_layernorm', h)
        norm(p + 'post_feedforward_layernorm', h, 0.15, 0.35)
        put(p + 'layer_scalar', rng.uniform(0.8, 1.05, 1))
        if not s['experts']:
            continue
        norm(p + 'pre_feedforward_layernorm_2', h)
        norm(p + 'post_feedforward_layernorm_1', h)
        norm(p + 'post_feedforward_layernorm_2', h)
        put(p + 'router.proj.weight', rng.standard_normal((s['experts'], h)) * 5)
        put(p + 'router.scale', rng.uniform(0.5, 1.5, h))
        put(p + 'router.per_expert_scale', rng.uniform(0.5, 1.4, s['experts']))
        for e in range(s['experts']):
            for part, out, inner in (('gate', s['expert_dim'], h), ('up', s['expert_dim'], h),
                                     ('down', h, s['expert_dim'])):
                linear(p + 'experts.%d.%s_proj.weight' % (e, part), out, inner)

    v = VISION
    put('model.embed_vision.embedding_projection.weight', rng.standard_normal((h, v['hidden'])) * 1.3 / v['hidden'] ** 0.5)
    p = 'model.vision_tower.'
    linear(p + 'patch_embedder.input_proj.weight', v['hidden'], 768, 1.0)
    put(p + 'patch_embedder.position_embedding_table', rng.standard_normal((2, v['positions'], v['hidden'])) * 0.3)
    put(p + 'std_bias', rng.standard_normal(v['hidden']) * 0.5)
    put(p + 'std_scale', rng.uniform(0.5, 1.5, v['hidden']))
    for i in range(v['layers']):
        p = 'model.vision_tower.encoder.layers.%d.' % i
        inner = v['heads'] * v['head_dim']
        for part in 'qkv':
            linear(p + 'self_attn.%s_proj.linear.weight' % part, inner, v['hidden'])
        linear(p + 'self_attn.o_proj.linear.weight', v['hidden'], inner)
        norm(p + 'self_attn.q_norm', v['head_dim'])
        norm(p + 'self_attn.k_norm', v['head_dim'], 0.3, 0.8)
        linear(p + 'mlp.gate_proj.linear.weight', v['mlp'], v['hidden'])
        linear(p + 'mlp.up_proj.linear.weight', v['mlp'], v['hidden'])
        linear(p + 'mlp.down_proj.linear.weight', v['hidden'], v['mlp'])
        for part in ('input_layernorm', 'post_attention_layernorm', 'pre_feedforward_layernorm',
                     'post_feedforward_layernorm'):
            norm(p + part, v['hidden'])
    return w


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
E2M1_BOUNDS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)


def to_e4m3(x):
    return torch.from_numpy(x).to(torch.float8_e4m3fn)


def nvfp4_pack(w):
    """modelopt's formula (NVFP4QTensor in modelopt/torch/quantization/qtensor/nvfp4_tensor.py). A block of zeros
    gets scale 1; a tiny block's scale may round to 0, its elements then become 6 * 0 = 0."""
    out, inner = w.shape
    scale_2 = np.float32(np.abs(w).max()) / np.float32(6 * 448)
    blocks = w.reshape(out, inner // 16, 16)
    scale = np.abs(blocks).max(2) / (np.float32(6) * scale_2)
    scale[scale == 0] = 1
    scale = to_e4m3(scale)
    with np.errstate(divide='ignore', invalid='ignore'):
        x = blocks / (scale.float().numpy() * scale_2)[:, :, None]
    magnitude = np.where(np.isnan(x), np.float32(np.inf), np.abs(x))
    code = np.searchsorted(E2M1_BOUNDS, magnitude).astype(np.uint8)          # ties go down ...
    code += np.isin(magnitude, E2M1_BOUNDS[1::2]).astype(np.uint8)           # ... or to the even neighbour
    code += (x < 0).astype(np.uint8) << 3
    code = code.reshape(out, inner)
    return {'weight': torch.from_numpy(code[:, 1::2] << 4 | code[:, 0::2]), 'weight_scale': scale,
            'weight_scale_2': torch.tensor(scale_2)}


def nvfp4_unpack(t):
    packed = t['weight'].numpy()
    code = np.stack([packed & 15, packed >> 4], 2).reshape(packed.shape[0], -1)
    scale = t['weight_scale'].float().numpy() * t['weight_scale_2'].numpy()
    return E2M1[code] * np.repeat(scale, 16, 1)


def check_against_modelopt():
    rng = np.random.default_rng(7)
    w = rng.standard_normal((48, 176)).astype(np.float32)
    w[3, 16:32] = 0
    w[5, 48:64] *= 1e-6
    w[7, :16] = np.tile(np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6]), 2) * 0.25  # ties, were the scale exact
    mine = nvfp4_pack(w)
    nvfp4_tensor.fp4_compatible = lambda: False  # it asks the CUDA driver, which need not be there
    q, scale, scale_2 = nvfp4_tensor.NVFP4QTensor.quantize(torch.from_numpy(w.copy()), 16)
    assert torch.equal(q._quantized_data, mine['weight'])
    assert torch.equal(scale.view(torch.uint8), mine['weight_scale'].view(torch.uint8))
    assert torch.equal(scale_2, mine['weight_scale_2'])
    assert (mine['weight_scale'].float() == 0).sum() == 1
    theirs = q.dequantize(torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
    assert np.array_equal(nvfp4_unpack(mine), theirs.numpy())


def quantise(s, w):
    """(tensors for the file, weights for the reference). The weights come back as an engine sees them."""
    rng = np.random.default_rng(s['seed'] + 1)
    tensors, seen = {}, {}
    for name, x in w.items():
        part = name.split('.')[4] if '.layers.' in name and 'vision' not in name else ''
        if part not in s['quantised'] or not name.endswith('_proj.weight'):
            tensors[name], seen[name] = torch.from_numpy(x).bfloat16(), x
            continue
        blocks = x.reshape(x.shape[0], -1, 16)
        kind = rng.random(blocks.shape[:2])
        blocks[kind < 0.02] *= 1e-6   # weight_scale rounds to 0
        blocks[kind > 0.99] = 0       # weight_scale is 1
        base = name[:-len('weight')]
        packed = nvfp4_pack(x)
        for leaf, t in packed.items():
            tensors[base + leaf] = t
        if s['input_scale']:
            tensors[base + 'input_scale'] = torch.tensor(rng.uniform(0.001, 0.01), dtype=torch.float32)
        seen[name] = nvfp4_unpack(packed)
    return tensors, seen


def fuse_experts(s, w):
    """experts.E.{gate,up,down}_proj.weight -> the stacked tensors of transformers: rows of gate, then of up."""
    out = {k: v for k, v in w.items() if '.experts.' not in k}
    for i in range(len(s['layers']) if s['experts'] else 0):
        p = 'model.language_model.layers.%d.experts.' % i
        of = lambda part: np.stack([w['%s%d.%s_proj.weight' % (p, e, part)] for e in range(s['experts'])])
        out[p + 'gate_up_proj'] = np.concatenate([of('gate'), of('up')], 1)
        out[p + 'down_proj'] = of('down')
    return out


# ---------------------------------------------------------------------------------------------- the reference

class RoundedCache(DynamicCache):
    """Stores keys (after k_norm and RoPE) and values (after v_norm) as store(x, layer, 'k' or 'v') returns them;
    attention then reads only stored values, the current token's own included (Gemma4TextAttention.forward uses
    what update() returns, in prefill and in decoding alike). store.k_from_v {layer: (which dimensions turn, k_norm.weight)}:
    the others of K are made from the stored V."""

    def __init__(self, config, store):
        super().__init__(config=config)
        self.store = store

    def update(self, keys, values, layer, *args, **kwargs):
        keys, values = self.store(keys, layer, 'k'), self.store(values, layer, 'v')
        if layer in getattr(self.store, 'k_from_v', {}):
            turns, k_norm = self.store.k_from_v[layer]
            keys = torch.where(turns, keys, k_norm.to(values.dtype) * values)
        return super().update(keys, values, layer, *args, **kwargs)


class Exact:
    """Stores K and V as they are."""
    guard = float('inf')

    def __call__(self, x, layer, which):
        return x


class Bf16(Exact):
    def __init__(self, k_from_v):
        self.k_from_v = k_from_v

    def __call__(self, x, layer, which):
        return x.bfloat16().to(x.dtype)


class Fp8(Exact):
    """e4m3(saturate(x / scale)) * scale. guard: how close a value has come to the boundary between two e4m3
    neighbours, in units of its head's rms. Two correct engines differ by some 1e-7 of that; a value closer to the
    boundary than this may be rounded either way, which moves logits by as much as 1e-2."""

    def __init__(self, scales):
        self.scales, self.guard = scales, float('inf')

    def __call__(self, x, layer, which):
        scale = self.scales.get((layer, which), 1.0)
        scaled = (x / scale).clamp(-448, 448)
        stored = scaled.float().to(torch.float8_e4m3fn).to(x.dtype)
        spacing = 2 ** (torch.floor(torch.log2(scaled.abs().clamp(min=2 ** -6))) - 3)
        distance = (spacing / 2 - (scaled - stored).abs()).abs() * scale / x.pow(2).mean(-1, keepdim=True).sqrt()
        self.guard = min(self.guard, distance.min().item())
        return stored * scale


class Reference:
    """One model with hooks. run() keeps what it saw of the routers: logits and chosen experts per layer."""

    def __init__(self, config, weights, dtype=torch.float32):
        config = Gemma4Config.from_dict(copy.deepcopy({k: v for k, v in config.items() if k != 'quantization_config'}))
        config._attn_implementation = 'eager'
        config._experts_implementation = 'eager'
        # Set in all three places: a part built in the bfloat16 of the file would keep sqrt(hidden) rounded to it.
        config.dtype = config.text_config.dtype = config.vision_config.dtype = dtype
        model = Gemma4ForConditionalGeneration(config).to(dtype).eval()
        state = {k: torch.from_numpy(np.ascontiguousarray(v)).to(dtype) for k, v in weights.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) == {'lm_head.weight'}, (missing, unexpected)
        model.tie_weights()
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
        scale = model.model.language_model.embed_tokens.embed_scale.item()
        assert abs(scale / config.text_config.hidden_size ** 0.5 - 1) < 1e-7
        self.model, self.config = model, config.text_config
        self.router_logits, self.router_topk = [], []
        for layer in model.model.language_model.layers:
            if self.config.enable_moe_block:
                layer.router.proj.register_forward_hook(lambda m, i, o: self.router_logits.append(o))
                layer.router.register_forward_hook(lambda m, i, o: self.router_topk.append(o[2]))

    def cache(self, store):
        return RoundedCache(self.config, store)

    def run(self, ids, cache, **kwargs):
        self.router_logits.clear()
        self.router_topk.clear()
        return self.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, **kwargs)

    def router_gap(self):
        """The smallest distance between the last chosen and the first rejected expert, in logits."""
        k = self.config.top_k_experts
        gap = float('inf')
        for logits in self.router_logits:
            top = logits.topk(k + 1).values
            gap = min(gap, (top[:, k - 1] - top[:, k]).min().item())
        return gap

    def greedy(self, ids, store, n, min_margin=0.0, min_gap=0.0, stop=False):
        """(continuation, margins, router gap, logits of the prompt); None as soon as a margin, a gap or, in the
        prompt, the store's guard is too small. With stop it ends at an end token, without it must not meet one."""
        cache, out, margins, worst, first = self.cache(store), [], [], float('inf'), None
        store.guard = float('inf')
        step = ids
        while len(out) < n:
            logits = self.run(step, cache).logits[0]
            first = logits if first is None else first
            worst = min(worst, self.router_gap())
            top = logits[-1].topk(2)
            margins.append((top.values[0] - top.values[1]).item())
            if margins[-1] < min_margin or worst < min_gap or (step is ids and store.guard < MIN_GUARD):
                return None
            out.append(top.indices[0].item())
            if out[-1] in EOS:
                return (out, margins, worst, first) if stop else None
            # Without a picture Gemma4Model.forward embeds a placeholder as <pad>, Gemma4ForCausalLM as itself: let
            # no reference depend on it. From 512 on there is no piece to print.
            if out[-1] in PLACEHOLDERS or out[-1] >= 512:
                return None
            step = out[-1:]
        return None if stop else (out, margins, worst, first)


def prompts(tokenizer, seed):
    """Endless prompts of 75 to 88 tokens: <bos> and a passage of TEXT that encodes and decodes to itself."""
    rng = np.random.default_rng(seed)
    while True:
        length = int(rng.integers(140, 190))
        start = int(rng.integers(0, len(TEXT) - length))
        text = TEXT[start:start + length].strip()
        ids = [2] + tokenizer.encode(text, add_special_tokens=False).ids
        if 75 <= len(ids) <= 88:
            yield text, ids


def search(tokenizer, seed, first, attempt, what):
    """The first prompt that attempt() likes. first is where an earlier search ended: it saves the time."""
    for number, (text, ids) in enumerate(prompts(tokenizer, seed)):
        found = attempt(ids) if number >= first else None
        if found:
            print('  %s: prompt %d' % (what, number), flush=True)
            return text, ids, found
        assert number < first + 8000, 'no prompt found'


def calibrate(ref, ids, rng):
    """Scales as a calibration stores them, amax/448, but up to 30 % too small or 20 % too large: some values
    saturate, and a swapped k_scale and v_scale, or another layer's, shows."""
    scales = {}

    def store(x, layer, which):
        scales[layer, which] = float(np.float32(x.abs().max().item() / 448 * rng.uniform(0.7, 1.2)))
        return x
    ref.run(ids, ref.cache(store))
    return scales


def spread(a, b):
    """Largest and mean difference relative to the range of a."""
    d, span = (a - b).abs(), (a.max() - a.min()).item()
    return d.max().item() / span, d.mean().item() / span


def noise(config, weights, ids, store, logits):
    """How far the logits move (largest, mean) for reasons that an engine cannot avoid: against float64, and with
    every embedding value changed by about 1e-7 and 1e-6 of itself (the largest of six draws)."""
    exact = Reference(config, weights, torch.float64)
    moved = {'against_float64': spread(logits, exact.run(ids, exact.cache(store)).logits[0].float())}
    name = 'model.language_model.embed_tokens.weight'
    for size in (1e-7, 1e-6):
        draws = []
        for seed in range(6):
            e = weights[name].astype(np.float64)
            e = e * (1 + size * np.random.default_rng(seed).standard_normal(e.shape))
            shaken = Reference(config, dict(weights, **{name: e.astype(np.float32)}))
            draws.append(spread(logits, shaken.run(ids, shaken.cache(store)).logits[0]))
        moved['perturbed_%g' % size] = tuple(max(d) for d in zip(*draws))
    return moved


def tolerance(measured, factor, floor):
    """For largest and mean difference: some times what was measured, two digits; not below a floor (a tenth of it
    for the mean), for an engine sums in another order and its RoPE angles differ by some 1e-6."""
    return [float('%.1e' % max(floor / 10 ** i, factor * max(m[i] for m in measured.values()))) for i in range(2)]


def image_case(ref, rng):
    """9 x 6 patches of smooth noise, six soft tokens in a prompt."""
    wide, high = 6, 9
    y, x, c = np.meshgrid(np.arange(16 * high), np.arange(16 * wide), np.arange(3), indexing='ij')
    a, b, d = rng.uniform(0.02, 0.12, (3, 3))
    picture = 127 + 90 * np.sin(a[c] * x + b[c] * y) + 30 * np.cos(d[c] * (x - y)) + rng.normal(0, 6, x.shape)
    picture = picture.clip(0, 255).astype(np.uint8)
    patches = picture.reshape(high, 16, wide, 16, 3).transpose(0, 2, 1, 3, 4).reshape(high * wide, 768)
    positions = np.stack(np.meshgrid(np.arange(wide), np.arange(high)), 2).reshape(-1, 2)
    soft = high * wide // 9
    before, after = rng.integers(326, 489, 13).tolist(), rng.integers(326, 489, 11).tolist()
    ids = [2] + before + [BOI] + [IMAGE] * soft + [EOI] + after
    pixel_values = torch.from_numpy(patches).float()[None] / 255
    image_position_ids = torch.from_numpy(positions)[None]
    features = ref.model.get_image_features(pixel_values, image_position_ids).pooler_output
    features = features[0] if isinstance(features, (tuple, list)) else features
    out = ref.model(input_ids=torch.tensor([ids]), pixel_values=pixel_values, image_position_ids=image_position_ids,
                    mm_token_type_ids=torch.tensor([[int(i == IMAGE) for i in ids]]))
    return {'image_ids': torch.tensor([ids], dtype=torch.int32), 'image_pixels_u8': torch.from_numpy(patches)[None],
            'image_position_ids': image_position_ids.int(), 'image_features_f32': features.reshape(soft, -1),
            'image_logits_f32': out.logits}


def make_checkpoint(name, tokenizer_from):
    s = SHAPES[name]
    print(name, flush=True)
    path = os.path.join(OUT, name)
    os.makedirs(path, exist_ok=True)
    for f in ('tokenizer.json', 'tokenizer_config.json'):
        if os.path.abspath(tokenizer_from) != path:
            shutil.copyfile(os.path.join(tokenizer_from, f), os.path.join(path, f))
    tokenizer = Tokenizer.from_file(os.path.join(path, 'tokenizer.json'))
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)

    config, hf_quant = make_config(s)
    tensors, seen = quantise(s, make_weights(s))
    weights = fuse_experts(s, seen)
    if not s['quantised']:
        tensors = {k: torch.from_numpy(v).bfloat16() for k, v in weights.items()}
    ref = Reference(config, weights)

    rng = np.random.default_rng(s['seed'] + 2)
    stores = {'': Exact()}
    if s['kv_cache'] == 'scales':
        scales = calibrate(ref, next(prompts(tokenizer, s['seed'] + 3))[1], rng)
        for (layer, which), scale in scales.items():
            # On global layers the v_scale stands under a v_proj that has no weight.
            tensors['model.language_model.layers.%d.self_attn.%s_proj.%s_scale' % (layer, which, which)] = torch.tensor(scale)
        stores['fp8_'] = Fp8(scales)
    elif s['kv_cache']:
        stores['fp8_'] = Fp8({})
    elif not s['quantised']:
        dim = torch.arange(s['global_head_dim'])
        turns = dim % (len(dim) // 2) < len(dim) // 8       # partial_rotary_factor 0.25
        k_norm = 'model.language_model.layers.%d.self_attn.k_norm.weight'
        stores['bf16kv_'] = Bf16({i: (turns, torch.from_numpy(weights[k_norm % i])) for i, kind in enumerate(s['layers']) if kind == 'f'})

    def all_stores(ids):
        """{prefix: what greedy() found, and the statistics and tolerances that go with it}"""
        found = {}
        for prefix, store in reversed(stores.items()):  # the hardest to please first
            found[prefix] = ref.greedy(ids, store, N_GREEDY, min_margin=0.06, min_gap=0.002)
            if found[prefix] is None or len(set(found[prefix][0])) < 16:
                return None
        for prefix, store in stores.items():
            greedy, margins, gap, logits = found[prefix]
            measured = noise(config, weights, ids, store, logits)
            largest, mean = tolerance(measured, *{'': (10, 1e-4), 'bf16kv_': (2, 5e-4), 'fp8_': (2, 5e-3)}[prefix])
            exact = logits if prefix == '' else exact  # the first of the stores
            differs = spread(exact, logits)
            # A tolerance that would also pass keys and values as they are would be none.
            if prefix and (largest > 0.7 * differs[0] or mean > 0.4 * differs[1]):
                return None
            store.guard = float('inf')
            ref.run(ids, ref.cache(store))
            found[prefix] = greedy, margins, logits, largest, mean, {
                'min_margin': round(min(margins), 4), 'median_margin': round(float(np.median(margins)), 4),
                'distinct_generated': len(set(greedy)), 'min_router_gap': round(gap, 5) if s['experts'] else None,
                'logit_range': round((logits.max() - logits.min()).item(), 3),
                'guard': store.guard if prefix == 'fp8_' else None,
                'moved_largest_mean': {k: [float('%.2e' % x) for x in v] for k, v in measured.items()},
                'differs_from_exact_kv_largest_mean': [float('%.2e' % x) for x in differs]}
        return found

    def stops(ids):
        found = ref.greedy(ids, Exact(), 48, min_margin=0.06, min_gap=0.001, stop=True)
        return found if found and len(found[0]) >= 4 else None

    text, ids, found = search(tokenizer, s['seed'] + 4, s['found'][0], all_stores, 'greedy')
    stop_text, stop_ids, stopped = search(tokenizer, s['seed'] + 5, s['found'][1], stops, 'stop')

    n, w = len(ids), s['window']
    positions = sorted({0, 1, w - 1, w, w + 1, n // 2, n - 2, n - 1})
    out = ref.run(ids, ref.cache(Exact()), output_hidden_states=True)
    values = {
        'ids': torch.tensor([ids], dtype=torch.int32), 'logits_f32': out.logits,
        'hidden_f32': torch.stack([h[0, positions] for h in out.hidden_states]),
        'hidden_positions': torch.tensor(positions, dtype=torch.int32),
        'stop_prompt_ids': torch.tensor([stop_ids], dtype=torch.int32),
        'stop_ids': torch.tensor([stopped[0]], dtype=torch.int32)}
    if s['experts']:
        values['router_logits_f32'] = torch.stack(ref.router_logits)
        values['router_topk_f32'] = torch.stack(ref.router_topk).int()
    record = {
        'eos_token_id': EOS, 'prompt_text': text, 'prompt_ids': ids, 'stop_prompt_text': stop_text,
        'stop_prompt_ids': stop_ids, 'stop_ids': stopped[0], 'stop_text': decode(stopped[0]),
        'tolerance': {}, 'stats': {}}
    for prefix in stores:
        greedy, margins, logits, largest, mean, stats = found[prefix]
        values[prefix + 'logits_f32'] = logits[None]
        values[prefix + 'greedy_ids'] = torch.tensor([ids + greedy], dtype=torch.int32)
        values[prefix + 'greedy_margins_f32'] = torch.tensor(margins)
        record[prefix + 'greedy_ids'] = greedy
        record[prefix + 'greedy_text'] = decode(greedy)
        record[prefix + 'margins'] = [round(m, 4) for m in margins]
        record['tolerance'][prefix + 'logits_f32'] = largest
        record['tolerance'][prefix + 'logits_f32_mean'] = mean
        record['stats'][prefix + 'logits_f32'] = stats
    if name == 'odd-bf16':
        values.update(image_case(ref, rng))

    save_tensors(os.path.join(path, 'model.safetensors'), tensors, {'format': 'pt'})
    write_json(os.path.join(path, 'config.json'), config)
    write_json(os.path.join(path, 'generation_config.json'),
               {'bos_token_id': 2, 'do_sample': True, 'eos_token_id': EOS, 'pad_token_id': 0, 'temperature': 1.0,
                'top_k': 64, 'top_p': 0.95, 'transformers_version': '5.5.0.dev0'})
    if hf_quant:
        write_json(os.path.join(path, 'hf_quant_config.json'), hf_quant)
    save_tensors(os.path.join(OUT, name + '.ref.safetensors'), values)
    write_json(os.path.join(OUT, name + '.ref.json'), record)
    print(json.dumps({'n': n, 'tolerance': record['tolerance'], 'stats': record['stats']}, indent=1), flush=True)


# ---------------------------------------------------------------------------------------------- sampler

class Generator(GenerationMixin):
    """Enough of a model to ask transformers which processors it would use, and in which order."""
    config = SimpleNamespace(is_encoder_decoder=False)


def process(case, dtype=torch.float32):
    """Logits as they enter the softmax: -inf where a token is excluded."""
    settings = GenerationConfig(do_sample=True, temperature=case['temperature'], top_k=case['top_k'],
                                top_p=case['top_p'], min_p=case['min_p'],
                                repetition_penalty=case['repetition_penalty'])
    # generation/utils.py: repetition penalty, temperature, top-k, top-p, min-p; neutral values add no processor.
    processors = Generator()._get_logits_processor(settings, input_ids_seq_length=len(case['previous']), device='cpu')
    scores = torch.tensor([case['logits']], dtype=dtype)
    return processors(torch.tensor([case['previous']], dtype=torch.long), scores)[0]


def is_robust(case):
    """Whether the set of tokens kept follows from the settings and not from rounding or from the order in which
    equal logits happen to be sorted."""
    kept = process(case).isfinite()
    n = len(case['logits'])
    backwards = dict(case, logits=case['logits'][::-1], previous=[n - 1 - i for i in case['previous']])
    others = [process(case, torch.float64), process(backwards).flip(0)]
    for factor in (1 - 1e-5, 1 + 1e-5):
        if 0 < case['top_p'] < 1:
            others.append(process(dict(case, top_p=case['top_p'] * factor)))
            others.append(process(dict(case, top_p=max(0.0, 1 - (1 - case['top_p']) * factor))))
        if 0 < case['min_p'] < 1:
            others.append(process(dict(case, min_p=case['min_p'] * factor)))
    return all(torch.equal(kept, x.isfinite()) for x in others)


def make_sampler_cases():
    rng = np.random.default_rng(11)
    neutral = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    cases = []

    def add(name, logits, previous=(), **settings):
        case = dict(name=name, logits=[float('%.6g' % x) for x in logits], previous=[int(i) for i in previous],
                    **dict(neutral, **settings))
        if not is_robust(case):
            return False
        case['probs'] = [float('%.7g' % p) for p in process(case).softmax(-1)]
        cases.append(case)
        return True

    def draw(n, deviation=3.0):
        return rng.standard_normal(n) * deviation

    def must(*args, **settings):
        assert add(*args, **settings), args[0]

    must('nothing set', draw(20))
    must('one token only', [1.5], top_k=64, top_p=0.95, min_p=0.1, temperature=0.7)
    must('all equal', [0.25] * 13)
    must('all equal, top_k keeps all ties', [0.25] * 13, top_k=4)
    must('all equal, min_p 1 keeps all', [-2.0] * 9, min_p=1.0)
    must('large logits', draw(30) * 40)
    must('large logits, cold', draw(30) * 10 + 25, temperature=0.05)
    for t in (0.01, 0.1, 0.7, 1.5, 5.0, 100.0):
        must('temperature %g' % t, draw(24), temperature=t)
    for k in (1, 2, 5, 23, 24, 25, 1000):
        must('top_k %d of 24' % k, draw(24), top_k=k)
    must('top_k 3, three tie for third place', [1, 4, 2, 3, 2, 0, 2, -1], top_k=3)
    must('top_k 1, two tie for first place', [1, 4, 2, 4, 2, 0], top_k=1)
    must('top_k 2, tie above the boundary', [5, 5, 4, 4, 3], top_k=2)
    for p in (1e-6, 0.1, 0.5, 0.9, 0.95, 0.999):
        must('top_p %g' % p, draw(32), top_p=p)
    must('top_p 0 keeps the best', draw(16), top_p=0.0)
    must('top_p, one token has nearly everything', [12.0] + list(draw(15)), top_p=0.95)
    must('top_p, a tie wholly inside', [3, 3, 1, 0.5, -1, -4], top_p=0.8)
    for p in (0.001, 0.05, 0.3, 0.9):
        must('min_p %g' % p, draw(28), min_p=p)
    must('min_p 1 keeps ties of the best', [2, 5, 5, 1], min_p=1.0)
    for r in (1.3, 2.0, 0.8):
        must('repetition penalty %g' % r, draw(20), previous=[3, 3, 7, 0, 19, 7, 3], repetition_penalty=r)
    must('repetition penalty on 0, positive and negative logits', [0, 2, -2, 1, -1, 3], previous=[0, 1, 2],
         repetition_penalty=1.5)
    must('repetition penalty, nothing before', draw(12), repetition_penalty=1.5)
    must('repetition penalty, all seen', draw(12), previous=range(12), repetition_penalty=1.2)
    must('penalty before top_k', [5.0, 4.9, 4.8, 1.0, 0.5], previous=[0], top_k=2, repetition_penalty=1.5)
    must('top_k before top_p: mass is renormalised', [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3], top_k=3, top_p=0.6)
    must('temperature before top_p', [4.0, 3.0, 2.0, 1.0, 0.0], temperature=2.0, top_p=0.7)
    must('temperature before min_p', [4.0, 3.0, 2.0, 1.0, 0.0], temperature=3.0, min_p=0.4)
    must('top_p before min_p', [4.0, 3.5, 2.0, 1.0, 0.0], top_p=0.8, min_p=0.3)
    must('generation_config of the model', draw(64), top_k=64, top_p=0.95)
    must('generation_config of the model, some logits equal', np.round(draw(64)), top_k=64, top_p=1.0)
    number = 0
    while number < 14:
        n = int(rng.integers(8, 65))
        number += add('all combined %d' % number, draw(n, rng.uniform(1, 4)), previous=rng.integers(0, n, 12),
                      temperature=round(float(rng.uniform(0.3, 2)), 2), top_k=int(rng.integers(2, n + 4)),
                      top_p=round(float(rng.uniform(0.5, 1)), 3), min_p=round(float(rng.uniform(0, 0.2)), 3),
                      repetition_penalty=round(float(rng.uniform(0.9, 1.6)), 2))
    with open(os.path.join(OUT, 'sampler_cases.json'), 'w') as f:
        f.write('[\n' + ',\n'.join(json.dumps(c) for c in cases) + '\n]\n')
    print('sampler: %d cases' % len(cases))


def save_tensors(path, tensors, metadata=None):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata)
    os.chmod(path, 0o644)  # safetensors makes it private


def write_json(path, value):
    """Indented, but a list of numbers on one line."""
    def lines(v, pad):
        if isinstance(v, dict) and v:
            inner = pad + '  '
            return '{\n' + ',\n'.join(inner + json.dumps(k) + ': ' + lines(x, inner) for k, x in v.items()) + '\n' + pad + '}'
        if isinstance(v, list) and v and any(isinstance(x, (dict, str)) for x in v):
            inner = pad + '  '
            return '[\n' + ',\n'.join(inner + lines(x, inner) for x in v) + '\n' + pad + ']'
        return json.dumps(v)
    with open(path, 'w') as f:
        f.write(lines(value, '') + '\n')


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    names = sys.argv[2:] or list(SHAPES) + ['sampler']
    os.makedirs(OUT, exist_ok=True)
    check_against_modelopt()
    for name in names:
        if name == 'sampler':
            make_sampler_cases()
        else:
            make_checkpoint(name, sys.argv[1])


if __name__ == '__main__':
    main()
