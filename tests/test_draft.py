"""Speculative decoding from the command line: the reference's rounds, the same answers as without, refusals."""
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dialect
from conftest import DEMO, FIXTURES, REFERENCE, ROOT, answer, bf16, complaint, environment, ids_of, read_json, run, write_ids, write_json

ODD = FIXTURES / 'odd-bf16'
DRAFTER = FIXTURES / 'odd-assistant'
OPEN = REFERENCE / 'checkpoints'


@pytest.fixture(scope='session')
def echo(tmp_path_factory):
    """echo(TARGET): a drafter for any checkpoint that guesses: the same token again. Its layers add nothing."""
    def make(target):
        path = tmp_path_factory.mktemp('echo')
        text = read_json(target / 'config.json')['text_config']
        hidden, vocab = text['hidden_size'], text['vocab_size']
        config = {'model_type': 'gemma4_assistant', 'backbone_hidden_size': hidden,
                  'text_config': dict(text, num_hidden_layers=2, layer_types=['sliding_attention', 'full_attention'],
                                      num_kv_shared_layers=2, enable_moe_block=False, final_logit_softcapping=None, intermediate_size=8)}
        write_json(path / 'config.json', config)
        tensors = {'model.embed_tokens.weight': dialect.read_checkpoint(target)['model.language_model.embed_tokens.weight']}
        assert tensors['model.embed_tokens.weight'][:2] == ('BF16', [vocab, hidden])

        def put(name, rows, cols, data=None):
            shape = [rows, cols] if cols else [rows]
            tensors[name] = ('BF16', shape, data or bf16(0) * rows * (cols or 1))

        first_half = b''.join(bf16(0) * i + bf16(1) + bf16(0) * (2 * hidden - i - 1) for i in range(hidden))
        put('pre_projection.weight', hidden, 2 * hidden, first_half)
        put('post_projection.weight', hidden, hidden)
        put('model.norm.weight', hidden, 0, bf16(1) * hidden)
        for i, dim in enumerate((text['head_dim'], text['global_head_dim'])):
            p = 'model.layers.%d.' % i
            for norm in ('input', 'post_attention', 'pre_feedforward', 'post_feedforward'):
                put(p + norm + '_layernorm.weight', hidden, 0)
            put(p + 'layer_scalar', 1, 0, bf16(1))
            put(p + 'self_attn.q_norm.weight', dim, 0)
            put(p + 'self_attn.q_proj.weight', text['num_attention_heads'] * dim, hidden)
            put(p + 'self_attn.o_proj.weight', hidden, text['num_attention_heads'] * dim)
            put(p + 'mlp.gate_proj.weight', 8, hidden)
            put(p + 'mlp.up_proj.weight', 8, hidden)
            put(p + 'mlp.down_proj.weight', hidden, 8)
        dialect.write_safetensors(path / 'model.safetensors', tensors)
        return path
    return make


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('target, drafter', [(ODD, DRAFTER), (OPEN / 'bf16', OPEN / 'open-assistant')], ids=['odd', 'open'])
def test_rounds_of_the_reference(target, drafter, tmp_path):
    if not target.exists():
        pytest.skip('%s is not here' % target)
    ref = read_json(drafter.parent / (drafter.name + '.ref.json'))
    log = tmp_path / 'log'
    options = ('-m', target, '--ids', write_ids(tmp_path / 'ids', ref['prompt_ids']), '-n', ref['ngen'], '--exact', '--temp', 0,
               '--ignore-eos', '--print-ids', '--draft', drafter)
    assert ids_of(*options, '--draft-tokens', ref['K'], '--draft-log', log) == ref['greedy_ids']
    for mine, round_ in zip(read_log(log), ref['transcript']):
        assert (mine['position'], mine['accepted']) == (round_['position'], round_['accepted'])
        seen = round_['accepted'] + 1       # after the first mismatch near ties may go another way
        assert mine['drafted'][:seen] == round_['drafted'][:seen]
    assert len(read_log(log)) >= len(ref['transcript'])
    assert ids_of(*options) == ref['greedy_ids']


def answers(requests, *options):
    text = answer('--jsonl', *options, stdin='\n'.join(map(json.dumps, requests)))
    return [{k: v for k, v in json.loads(line).items() if k != 'created'} for line in text.splitlines()]


def test_200_prompts_on_the_demo(tmp_path):
    rng = random.Random(3)
    requests = [{'messages': [{'role': 'user', 'content': rng.choice((
        'What is %d plus %d?', 'Count from %d to %d.', 'Take %d from %d.', 'I have %d apples and %d pears.')) % (
            rng.randrange(100), rng.randrange(100))}], 'max_tokens': 12} for _ in range(200)]
    log, accepted = tmp_path / 'log', []
    options = ('-m', DEMO, '--temp', 0)
    drafting = (*options, '--draft', DEMO / 'assistant', '--draft-tokens', 2, '--draft-log', log)
    for i in range(0, 200, 20):
        assert answers(requests[i:i + 20], *drafting) == answers(requests[i:i + 20], *options)
        accepted += [r['accepted'] for r in read_log(log) if r['drafted']]
    assert set(accepted) == {0, 1, 2}
    assert sum(accepted) > 0.7 * len(accepted)      # it has learned something


def test_whatever_a_request_asks_for(echo):
    say = [{'role': 'user', 'content': 'The tide comes in twice a day and takes nothing for granted.'}]
    requests = [dict({'messages': say, 'max_tokens': 20, 'seed': i}, **more) for i, more in enumerate([
        {'temperature': 1.0, 'top_k': 5}, {'temperature': 0.3}, {'temperature': 0.7, 'top_p': 0.8, 'min_p': 0.01},
        {'temperature': 0, 'repetition_penalty': 1.3}, {'temperature': 0.6, 'repetition_penalty': 0.7},
        {'temperature': 0, 'logprobs': True, 'top_logprobs': 3}, {'temperature': 0.5, 'stop': ['e', 'o']},
        {'temperature': 0.2, 'stream': True}, {'temperature': 0.2, 'chat_template_kwargs': {'enable_thinking': True}},
        {'temperature': 0, 'max_tokens': 1}, {'temperature': 0, 'max_tokens': 0}])]
    for target, drafter in ((ODD, DRAFTER), (DEMO, echo(DEMO))):
        plain = answers(requests, '-m', target, '--exact')
        for n in ((), ('--draft-tokens', 1), ('--draft-tokens', 5)):
            assert answers(requests, '-m', target, '--exact', '--draft', drafter, *n) == plain


@pytest.mark.parametrize('options', [('--chunk', 1), ('--chunk', 3), ('-c', 40), ('--kv', 'fp8'), ('--kv', 'bf16'), ('-t', 1), ('-n', 3)])
def test_small_chunks_full_contexts_rounded_caches(options, tmp_path):
    prompt = ('-m', ODD, '--ids', write_ids(tmp_path / 'ids', range(100, 130)), '-n', 60, '--ignore-eos', '--temp', 0, '--print-ids')
    drafted, plain = (run(*prompt, *options, *draft) for draft in (('--draft', DRAFTER, '--draft-tokens', 6), ()))
    assert (drafted.stdout, drafted.stderr) == (plain.stdout, plain.stderr) and len(plain.stdout.split()) > 2


def test_stats(echo, tmp_path):
    ref = read_json(FIXTURES / 'odd-assistant.ref.json')
    done = run('-m', ODD, '--ids', write_ids(tmp_path / 'ids', ref['prompt_ids']), '-n', 64, '--exact', '--temp', 0, '--ignore-eos',
               '--print-ids', '--stats', '--draft', DRAFTER, '--draft-tokens', 4)
    accepted = [r['accepted'] for r in ref['transcript']]
    passes = len(accepted) + 1          # the last token is taken in too
    tokens = '; drafts: %.2f tokens a pass, accepted' % ((passes + sum(accepted)) / passes)
    assert tokens in done.stderr.decode()
    rates = re.search(r'accepted((?: \d\.\d\d)+)\n', done.stderr.decode())[1].split()
    assert rates[0] == '%.2f' % (sum(a > 0 for a in accepted) / len(accepted))
    assert len(rates) == 4


@pytest.mark.parametrize('where, field, value, says', [
    ('', 'model_type', 'gemma4', 'config.json: model_type "gemma4" is no drafter (gemma4_assistant is)'),
    ('', 'backbone_hidden_size', 192, 'config.json: backbone_hidden_size is 192, the target\'s is 176'),
    ('', 'backbone_hidden_size', None, 'config.json: backbone_hidden_size is missing'),
    ('', 'use_ordered_embeddings', True, 'config.json: use_ordered_embeddings: a head of centroids'),
    ('text', 'vocab_size', 512, 'config.json: text_config.vocab_size is 512, the target\'s is 519'),
    ('text', 'head_dim', 32, 'config.json: text_config.head_dim is 32, the target\'s is 48'),
    ('text', 'global_head_dim', 96, 'config.json: text_config.global_head_dim is 96, the target\'s is 80'),
    ('text', 'num_key_value_heads', 3, 'config.json: text_config.num_key_value_heads is 3, the target\'s is 2'),
    ('text', 'num_global_key_value_heads', 1, 'config.json: text_config.num_global_key_value_heads is 1, the target\'s is 2'),
    ('text', 'sliding_window', 48, 'config.json: text_config.sliding_window is 48, the target\'s is 24'),
    ('text', 'num_kv_shared_layers', 3, 'config.json: text_config.num_kv_shared_layers is 3, must be 4'),
    ('text', 'enable_moe_block', True, 'config.json: text_config.enable_moe_block: a drafter with experts'),
    ('text', 'hidden_size', 48, 'model.safetensors: tensor model.embed_tokens.weight: shape is [519, 40], must be [519, 48]'),
])
def test_a_drafter_that_does_not_fit(where, field, value, says, copy):
    path = copy(DRAFTER)
    config = read_json(path / 'config.json')
    (config['text_config'] if where else config)[field] = value
    write_json(path / 'config.json', config)
    assert complaint(1, '-m', ODD, '--draft', path, 'Hi').startswith('gemma4: %s/%s' % (path, says))


@pytest.mark.parametrize('missing', ['pre_projection.weight', 'post_projection.weight', 'model.norm.weight',
                                     'model.layers.2.self_attn.q_proj.weight', 'model.layers.0.layer_scalar'])
def test_a_tensor_is_missing(missing, copy):
    path = copy(DRAFTER)
    tensors = dialect.read_checkpoint(path)
    del tensors[missing]
    dialect.write_safetensors(path / 'model.safetensors', tensors)
    assert complaint(1, '-m', ODD, '--draft', path, 'Hi') == 'gemma4: %s/model.safetensors: tensor %s is missing\n' % (path, missing)


def test_wrong_usage(tmp_path):
    assert 'need --draft' in complaint(2, '-m', ODD, '--draft-tokens', 3, 'Hi')
    assert 'need --draft' in complaint(2, '-m', ODD, '--draft-log', tmp_path / 'log', 'Hi')
    assert 'not a whole number from 0 to 15' in complaint(2, '-m', ODD, '--draft', DRAFTER, '--draft-tokens', 16, 'Hi')
    assert 'score drafts nothing' in complaint(2, 'score', '-m', ODD, '--draft', DRAFTER, '--raw', '-p', 'Hi')
    assert complaint(1, '-m', ODD, '--draft', tmp_path / 'none', 'Hi') == 'gemma4: --draft: %s: no such directory\n' % (tmp_path / 'none')
    assert 'No such file or directory' in complaint(1, '-m', ODD, '--draft', DRAFTER, '--draft-log', tmp_path / 'no' / 'log', 'Hi')
    assert 'a drafter is given with --draft' in complaint(1, '-m', DRAFTER, 'Hi')
    hub = environment(HF_HUB_CACHE=tmp_path)
    assert 'hf download google/some-assistant' in complaint(1, '-m', ODD, '--draft', 'google/some-assistant', 'Hi', env=hub)
    snapshot = tmp_path / 'models--google--some-assistant' / 'snapshots' / 'abc'
    (tmp_path / 'models--google--some-assistant' / 'refs').mkdir(parents=True)
    (tmp_path / 'models--google--some-assistant' / 'refs' / 'main').write_text('abc')
    snapshot.parent.mkdir()
    os.symlink(DRAFTER, snapshot)
    assert answer('-m', ODD, '--draft', 'google/some-assistant', '--temp', 0, '-n', 5, 'Hi', env=hub)


def test_the_check_of_any_size():
    script = Path(__file__).parent / 'check_draft.py'
    done = subprocess.run([sys.executable, script, ODD, './gemma4', '3', '16'], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    said = done.stdout.decode()
    assert said.count('\n0 answers differ\n') == 2
    assert float(re.search(r'4 drafts.*, ([0-9.]+) tokens a pass', said).group(1)) > 1.5     # it accepts
