#!/usr/bin/env python3
"""Make tests/fixtures/odd-assistant/ and its reference values again: a tiny random drafter for odd-bf16.

usage: make_drafter.py          needs torch, transformers 5.23 and safetensors

The target's part (hidden state after the final norm, keys, values) is computed by transformers in float32. Of the drafter
(models/gemma4_assistant) transformers 5.23 cannot build one whose layers all share their cache, so its forward pass stands
here once more, in numpy, written from modeling_gemma4_assistant.py and from nothing in this program.

odd-assistant.ref.safetensors, under `short.` and `long.` (two lengths of prompt): prompt_ids; token, the newest one; hidden_f32
before it; for four drafts layers_f32 [4, 1 + layers, d] (after pre_projection, after each layer but the last, after the final
norm), logits_f32, projected_f32, draft_ids.
odd-assistant.ref.json: prompt_ids, and the rounds (`transcript`) of 64 greedy tokens with four drafts each.
"""
import json
import os

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, Gemma4ForConditionalGeneration

torch.set_num_threads(1)
torch.set_grad_enabled(False)
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'fixtures')
TARGET, NAME, K, N_GREEDY = 'odd-bf16', 'odd-assistant', 4, 64
D, MLP, HEADS, LAYERS = 40, 56, 6, 'sfsf'


def make_drafter(target):
    """config.json, and random weights in BF16."""
    t = target['text_config']
    text = dict(t, hidden_size=D, intermediate_size=MLP, num_attention_heads=HEADS, num_hidden_layers=len(LAYERS),
                layer_types=[{'s': 'sliding_attention', 'f': 'full_attention'}[c] for c in LAYERS], enable_moe_block=False,
                num_experts=None, top_k_experts=None, moe_intermediate_size=None, num_kv_shared_layers=len(LAYERS),
                final_logit_softcapping=None, use_bidirectional_attention=None)
    config = {'architectures': ['Gemma4AssistantForCausalLM'], 'backbone_hidden_size': t['hidden_size'], 'dtype': 'bfloat16',
              'eos_token_id': target['eos_token_id'], 'model_type': 'gemma4_assistant', 'text_config': text,
              'tie_word_embeddings': True, 'use_ordered_embeddings': False}
    rng = torch.Generator().manual_seed(5)
    w, hidden = {}, t['hidden_size']

    def put(name, *shape, mean=0.0, std=None):
        w[name] = (mean + torch.randn(*shape, generator=rng) * (std or shape[-1] ** -0.5)).bfloat16()

    put('pre_projection.weight', D, 2 * hidden)
    put('model.embed_tokens.weight', t['vocab_size'], D, std=0.3)
    put('post_projection.weight', hidden, D)
    put('model.norm.weight', D, mean=1, std=0.1)
    for i, kind in enumerate(LAYERS):
        p, dim = 'model.layers.%d.' % i, t['head_dim'] if kind == 's' else t['global_head_dim']
        for norm in ('input_layernorm', 'post_attention_layernorm', 'pre_feedforward_layernorm', 'post_feedforward_layernorm'):
            put(p + norm + '.weight', D, mean=1, std=0.1)
        put(p + 'layer_scalar', 1, mean=0.9, std=0.05)
        put(p + 'self_attn.q_proj.weight', HEADS * dim, D)
        put(p + 'self_attn.q_norm.weight', dim, mean=1, std=0.1)
        put(p + 'self_attn.o_proj.weight', D, HEADS * dim)
        put(p + 'mlp.gate_proj.weight', MLP, D)
        put(p + 'mlp.up_proj.weight', MLP, D)
        put(p + 'mlp.down_proj.weight', D, MLP)
    return config, w


def save(config, w):
    path = os.path.join(OUT, NAME)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, 'config.json'), 'w') as f:
        json.dump(config, f, indent=1, sort_keys=True)
        f.write('\n')
    save_file({k: v.contiguous() for k, v in w.items()}, os.path.join(path, 'model.safetensors'), metadata={'format': 'pt'})


def rmsnorm(x, weight=None, eps=1e-6):
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x if weight is None else x * weight


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


class Drafter:
    def __init__(self, config, w, embed):
        self.text, self.w, self.embed = config['text_config'], w, embed

    def rope(self, kind, dim, position):
        theta, share = (1e4, 1) if kind == 's' else (1e6, 0.25)
        i = np.arange(dim // 2)
        return np.where(i < int(share * dim / 2), position * theta ** (-2.0 * i / dim), 0)

    def step(self, token, position, hidden, cache):
        """One draft: logits, z and the hidden state for the next. cache: {kind: (k, v)}, [heads, positions, dim]."""
        w, window = self.w, self.text['sliding_window']
        x = w['pre_projection.weight'] @ np.concatenate((self.embed[token] * len(self.embed[token]) ** 0.5, hidden))
        trace = [x]
        for i, kind in enumerate(LAYERS):
            p = 'model.layers.%d.' % i
            k, v = cache[kind]
            heads, _, dim = k.shape
            visible = slice(max(0, position - window + 1) if kind == 's' else 0, position)
            q = (w[p + 'self_attn.q_proj.weight'] @ rmsnorm(x, w[p + 'input_layernorm.weight'])).reshape(HEADS, dim)
            q = rmsnorm(q, w[p + 'self_attn.q_norm.weight'])
            angle = self.rope(kind, dim, position)
            a, b = q[:, :dim // 2], q[:, dim // 2:]
            q = np.concatenate((a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)), 1)
            out = []
            for h in range(HEADS):
                s = k[h * heads // HEADS, visible] @ q[h]
                s = np.exp(s - s.max())
                out.append(s / s.sum() @ v[h * heads // HEADS, visible])
            out = w[p + 'self_attn.o_proj.weight'] @ np.concatenate(out)
            x = x + rmsnorm(out, w[p + 'post_attention_layernorm.weight'])
            y = rmsnorm(x, w[p + 'pre_feedforward_layernorm.weight'])
            y = w[p + 'mlp.down_proj.weight'] @ (gelu(w[p + 'mlp.gate_proj.weight'] @ y) * (w[p + 'mlp.up_proj.weight'] @ y))
            x = (x + rmsnorm(y, w[p + 'post_feedforward_layernorm.weight'])) * w[p + 'layer_scalar']
            trace.append(x)
        z = rmsnorm(x, w['model.norm.weight'])
        trace[-1] = z
        return w['model.embed_tokens.weight'] @ z, np.stack(trace), w['post_projection.weight'] @ z

    def drafts(self, token, position, hidden, cache, n):
        """n drafts after `token` at `position`: (id, logits, trace, projected) of each."""
        out = []
        for _ in range(n):
            logits, trace, hidden = self.step(token, position, hidden, cache)
            token = int(logits.argmax())
            out.append((token, logits, trace, hidden))
        return out


class Target:
    """The target in float32, everything evaluated again each time: nothing to roll back."""

    def __init__(self):
        self.model = Gemma4ForConditionalGeneration.from_pretrained(os.path.join(OUT, TARGET), dtype=torch.float32).eval()
        types = self.model.config.text_config.layer_types
        self.last = {'s': len(types) - 1 - types[::-1].index('sliding_attention'), 'f': len(types) - 1}

    def run(self, ids):
        """Logits of the last position, hidden state of every one, cache by kind."""
        cache = DynamicCache()                  # without a configuration: no layer forgets
        out = self.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, output_hidden_states=True)
        kv = {}
        for kind, i in self.last.items():
            layer = cache.layers[i]
            assert layer.keys.shape[2] == len(ids)
            kv[kind] = layer.keys[0].double().numpy(), layer.values[0].double().numpy()
        return out.logits[0, -1].double().numpy(), out.hidden_states[-1][0].double().numpy(), kv


def teach(config, w, target, embed, ids):
    """A random drafter guesses nothing. The rows of this one's embedding learn some of the target's continuation, as a perceptron
    does, so that rounds accept none, some and all."""
    drafter = Drafter(config, {k: v.double().numpy() for k, v in w.items()}, embed)
    held, seen = list(ids), []
    for i in range(N_GREEDY):
        logits, hidden, cache = target.run(held)
        seen.append((hidden[-1], cache))
        held.append(int(logits.argmax()))
    rows, lessons = drafter.w['model.embed_tokens.weight'], []
    for i in range(N_GREEDY - 1):
        h, cache = seen[i]
        for k in range(min(K, N_GREEDY - 1 - i)):
            logits, trace, h = drafter.step(held[len(ids) + i + k], len(ids) + i, h, cache)
            if (i + k) % 7 not in (0, 3):
                lessons.append((trace[-1], held[len(ids) + i + k + 1]))
    for _ in range(60):
        for z, token in lessons:
            wrong = int((rows @ z - 0.2 * (np.arange(len(rows)) == token)).argmax())
            if wrong != token:
                rows[token] += 0.02 * z
                rows[wrong] -= 0.02 * z
    w['model.embed_tokens.weight'] = torch.tensor(rows).bfloat16()


def main():
    with open(os.path.join(OUT, TARGET, 'config.json')) as f:
        config, w = make_drafter(json.load(f))
    target = Target()
    embed = target.model.model.language_model.embed_tokens.weight.double().numpy()
    ids = load_file(os.path.join(OUT, TARGET + '.ref.safetensors'))['ids'][0].tolist()
    teach(config, w, target, embed, ids)
    save(config, w)
    drafter = Drafter(config, {k: v.double().numpy() for k, v in w.items()}, embed)
    tensors = {}
    for name, n in (('short', 7), ('long', len(ids))):
        logits, hidden, cache = target.run(ids[:n])
        token = int(logits.argmax())
        d = drafter.drafts(token, n, hidden[-1], cache, K)
        put = {'prompt_ids': torch.tensor(ids[:n]), 'token': torch.tensor([token]), 'hidden_f32': hidden[-1],
               'draft_ids': torch.tensor([x[0] for x in d]), 'logits_f32': np.stack([x[1] for x in d]),
               'layers_f32': np.stack([x[2] for x in d]), 'projected_f32': np.stack([x[3] for x in d])}
        for key, v in put.items():
            tensors[name + '.' + key] = v if torch.is_tensor(v) else torch.tensor(v, dtype=torch.float32)
    save_file(tensors, os.path.join(OUT, NAME + '.ref.safetensors'))

    rounds, held, left = [], list(ids), N_GREEDY - 1
    logits, hidden, cache = target.run(held)
    token, answer = int(logits.argmax()), [int(logits.argmax())]
    while left > 0:
        drafted = [x[0] for x in drafter.drafts(token, len(held), hidden[-1], cache, min(K, left - 1))]
        position, accepted, last = len(held), 0, token
        while True:
            held.append(token)
            logits, hidden, cache = target.run(held)
            token = int(logits.argmax())
            answer.append(token)
            left -= 1
            if accepted == len(drafted) or drafted[accepted] != token:
                break
            accepted += 1
        rounds.append({'position': position, 'last_token': last, 'drafted': drafted, 'accepted': accepted, 'bonus': token})
    with open(os.path.join(OUT, NAME + '.ref.json'), 'w') as f:
        json.dump({'K': K, 'ngen': N_GREEDY, 'prompt_ids': ids, 'greedy_ids': answer, 'transcript': rounds}, f)
        f.write('\n')
    print('accepted', [r['accepted'] for r in rounds])


if __name__ == '__main__':
    main()
