#!/usr/bin/env python3
"""Are the answers with a drafter those without, on a checkpoint of any size?  (Python's standard library only.)

usage: check_draft.py DIR [PROGRAM [PROMPTS [TOKENS]]]        default: ./gemma4 12 32

The prompts are random ids. What the program answers greedily without a drafter makes one that is right often, not always: its layers
add nothing, and the row of a token in its head is the beginning of the embedding of the token that stood before it. Then
the same prompts with four drafts a round, and with as many as pay. Prints how many answers differ; the exit status is 1 where ids differ.
"""
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
from statistics import mean, median

from dialect import write_json, write_safetensors

WIDTH = 128


class Embedding:
    """Rows of a checkpoint's embedding, from the file that has it."""

    def __init__(self, path):
        for name in sorted(os.listdir(path)):
            if not name.endswith('.safetensors'):
                continue
            self.file = open(os.path.join(path, name), 'rb')
            size, = struct.unpack('<Q', self.file.read(8))
            t = json.loads(self.file.read(size)).get('model.language_model.embed_tokens.weight')
            if t and t['dtype'] == 'BF16':
                (self.vocab, self.hidden), self.begin = t['shape'], 8 + size + t['data_offsets'][0]
                return
        sys.exit('%s: no embed_tokens in BF16' % path)

    def row(self, token):
        self.file.seek(self.begin + 2 * self.hidden * token)
        return self.file.read(2 * self.hidden)


def make_drafter(path, target, answers):
    """A drafter that knows which token followed which in these answers."""
    embed = Embedding(target)
    with open(os.path.join(target, 'config.json')) as f:
        text = json.load(f)['text_config']
    width, one = min(WIDTH, embed.hidden), struct.pack('<f', 1)[2:]
    config = dict(text, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_kv_shared_layers=2, enable_moe_block=False,
                  layer_types=['sliding_attention', 'full_attention'], final_logit_softcapping=None)
    write_json(path, 'config.json', {'model_type': 'gemma4_assistant', 'backbone_hidden_size': embed.hidden, 'text_config': config})
    head = bytearray(2 * width * embed.vocab)
    for answer in answers:
        for before, token in zip(answer, answer[1:]):
            head[2 * width * token:2 * width * (token + 1)] = embed.row(before)[:2 * width]
    tensors = {'model.embed_tokens.weight': ('BF16', [embed.vocab, width], head)}

    def put(name, *shape, data=None):
        n = 2 * shape[0] * (shape[1] if shape[1:] else 1)
        tensors[name] = ('BF16', list(shape), data or bytes(n))

    put('pre_projection.weight', width, 2 * embed.hidden,
        data=b''.join(bytes(2 * i) + one + bytes(2 * (2 * embed.hidden - i - 1)) for i in range(width)))
    put('post_projection.weight', embed.hidden, width)
    put('model.norm.weight', width, data=one * width)
    for i, dim in enumerate((text['head_dim'], text['global_head_dim'])):
        p, q = 'model.layers.%d.' % i, text['num_attention_heads'] * dim
        for norm in ('input', 'post_attention', 'pre_feedforward', 'post_feedforward'):
            put(p + norm + '_layernorm.weight', width)
        put(p + 'layer_scalar', 1, data=one)
        put(p + 'self_attn.q_norm.weight', dim)
        put(p + 'self_attn.q_proj.weight', q, width)
        put(p + 'self_attn.o_proj.weight', width, q)
        put(p + 'mlp.gate_proj.weight', 16, width)
        put(p + 'mlp.up_proj.weight', 16, width)
        put(p + 'mlp.down_proj.weight', width, 16)
    write_safetensors(os.path.join(path, 'model.safetensors'), tensors)


def main():
    if not sys.argv[1:] or sys.argv[1].startswith('-'):
        sys.exit(__doc__)
    target = sys.argv[1]
    program, n_prompts, n_tokens = (sys.argv[2:] + ['./gemma4', 12, 32][len(sys.argv) - 2:])[:3]
    rng = random.Random(1)
    vocab = Embedding(target).vocab
    prompts = [[2] + [rng.randrange(vocab // 4, vocab // 2) for _ in range(rng.randrange(4, 40))] for _ in range(int(n_prompts))]

    def answers(label, *options):
        """The answers' ids; prints what --stats says."""
        out, rates, per_pass = [], [], []
        for prompt in prompts:
            with tempfile.NamedTemporaryFile('w', suffix='.ids') as f:
                f.write(' '.join(map(str, prompt)))
                f.flush()
                done = subprocess.run([program, '-m', target, '--ids', f.name, '-n', str(n_tokens), '--temp', '0', '--ignore-eos',
                                       '--print-ids', '--stats', *options], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            stats = done.stderr.decode()
            out.append([int(x) for x in done.stdout.split()])
            rates.append(float(re.search(r'tokens, ([0-9.]+) tokens/s; peak', stats).group(1)))
            per_pass += map(float, re.findall(r'([0-9.]+) tokens a pass', stats))
        print('%-18s %d answers, median %.1f tokens/s%s' % (label, len(out), median(rates),
              ', %.2f tokens a pass' % mean(per_pass) if per_pass else ''), flush=True)
        return out

    alone = answers('no drafter:')
    with tempfile.TemporaryDirectory() as scratch:
        make_drafter(scratch, target, alone)
        differ = 0
        for label, options in (('4 drafts a round:', ('--draft-tokens', '4')), ('as many as pay:', ())):
            got = answers(label, '--draft', scratch, *options)
            wrong = sum(a != b for a, b in zip(alone, got))
            print('%d answers differ' % wrong, flush=True)
            differ += wrong
    return differ > 0


if __name__ == '__main__':
    sys.exit(main())
