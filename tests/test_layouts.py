"""Every published layout, through the command line, against transformers; where models are looked for."""
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from array import array

import pexpect
import pytest

import dialect
from conftest import (ANSWER, FIXTURES, GEMMA4, PATIENCE, REFERENCE, TALK, TESTS, answer, complaint, data, edit, environment, ids_of,
                      make_puppet, read_floats, read_json, run, write_ids, write_json)

DIALECTS = {
    'odd-bf16': ['moe', 'shards', '523', 'text'],
    'odd-experts': ['ct', 'moe', 'shards', '523', 'text', 'ct moe 523 shards'],
    'odd-all': ['ct', 'moe', 'shards', '523', 'text', 'ct moe text shards'],
    'dense': ['ct', 'shards', '523', 'text', 'ct text'],
}
PLAIN = list(DIALECTS)
LAYOUTS = [name + rest for name, kinds in DIALECTS.items() for rest in [''] + [' ' + kind for kind in kinds]]
FP8 = ['odd-experts', 'dense']          # announce an FP8 cache, the first with scales
EXACT = ('--temp', 0, '--exact')


def reference(layout):
    return read_json(FIXTURES / (layout.split()[0] + '.ref.json'))


def expected_floats(layout, tensor):
    return read_floats(FIXTURES / (layout.split()[0] + '.ref.safetensors'), tensor)


def go_on(tmp_path, model, ids, *options, **kwargs):
    """The ids with which the model continues these."""
    return ids_of('-m', model, '--ids', write_ids(tmp_path / 'ids', ids), '--print-ids', *EXACT, *options, **kwargs)


def score_logits(tmp_path, model, ids, *options):
    answer('score', '-m', model, '--ids', write_ids(tmp_path / 'ids', ids), '--logits', tmp_path / 'logits', *options)
    return read_floats(tmp_path / 'logits')


def spread(got, want):
    """Largest and mean difference, as shares of the range of what is expected."""
    assert len(got) == len(want)
    span = max(want) - min(want)
    off = [abs(a - b) for a, b in zip(got, want)]
    return max(off) / span, sum(off) / len(off) / span


# ---------------------------------------------------------------------------------------------- equal to the reference

@pytest.mark.parametrize('layout', LAYOUTS)
def test_greedy_continuation(checkpoint, tmp_path, layout):
    ref = reference(layout)
    got = go_on(tmp_path, checkpoint(layout), ref['prompt_ids'], '-n', 64, '--ignore-eos')
    assert got == ref['greedy_ids']


@pytest.mark.parametrize('case', read_json(FIXTURES / 'demo_greedy.json')['cases'], ids=lambda case: case['name'])
def test_demo_answers_as_the_reference(demo, tmp_path, case):
    """The demo's answers, up to and with the end of the turn, as transformers computes them from its dequantised weights."""
    assert go_on(tmp_path, demo, case['prompt_ids'], '-n', len(case['greedy_ids'])) == case['greedy_ids']


# A chunk of 5: the prompt takes 15 steps and more, and the ring of a sliding layer is overwritten several times.
@pytest.mark.parametrize('options, env', [
    (['--chunk', 5], {}), (['--chunk', 1], {}), (['--threads', 1], {}), (['-t', 2, '--chunk', 33], {}), (['-t', 3], {}),
    ([], {'GEMMA4_CPU': 'c'}), (['--chunk', 5, '--device', 'cpu'], {'GEMMA4_CPU': 'c'}),
    ([], {'GEMMA4_CPU': 'avx2'}), ([], {'GEMMA4_CPU': 'avx2-vnni'}), ([], {'GEMMA4_CPU': 'avx512'}),
], ids=str)
@pytest.mark.parametrize('name', PLAIN)
def test_same_tokens_however_computed(checkpoint, tmp_path, name, options, env):
    ref = reference(name)
    got = go_on(tmp_path, checkpoint(name), ref['prompt_ids'], '-n', 64, '--ignore-eos', *options, env=environment(**env))
    assert got == ref['greedy_ids']


@pytest.mark.parametrize('layout', LAYOUTS)
def test_logits(checkpoint, tmp_path, layout):
    got = score_logits(tmp_path, checkpoint(layout), reference(layout)['prompt_ids'], '--exact')
    assert spread(got, expected_floats(layout, 'logits_f32'))[0] < 1e-3


INDEX = 'model.safetensors.index.json'
SHARD = 'model-0000%d-of-00003.safetensors'


def stale(change):
    """change(weight_map) spoils the index."""
    def spoil(model):
        whole = read_json(model / INDEX)
        change(whole['weight_map'])
        write_json(model / INDEX, whole)
    return spoil


@pytest.mark.parametrize('spoil, why', [
    (data(INDEX, None), 'neither model.safetensors nor an index'),
    (stale(lambda m: m.update(dict.fromkeys(list(m)[:3], 'gone.safetensors'))), 'gone.safetensors is not there'),
    (stale(lambda m: m.update({'no.such': SHARD % 1})), 'tensor no.such is not in ' + SHARD % 1),
    (stale(lambda m: m.update(dict.fromkeys(m, SHARD % 2))), 'is not in ' + SHARD % 2),
    (stale(lambda m: [m.pop(k) for k in list(m) if m[k] == SHARD % 3]), 'lacks ' + SHARD % 3),
], ids=['none', 'file', 'tensor', 'place', 'shard'])
def test_shards_without_a_sound_index(checkpoint, copy, tmp_path, spoil, why):
    """All *.safetensors are taken, and a line says so."""
    model, ref = copy(checkpoint('odd-all shards')), reference('odd-all')
    assert answer('info', '-m', model)
    spoil(model)
    done = run('-m', model, '--ids', write_ids(tmp_path / 'ids', ref['prompt_ids']), '--print-ids', *EXACT, '-n', 9, '--ignore-eos')
    line, = done.stderr.decode().splitlines()
    assert line.startswith('gemma4: warning: %s: ' % model) and why in line and line.endswith('all 3 *.safetensors there')
    assert [int(id) for id in done.stdout.split()] == ref['greedy_ids'][:9]


def test_drafter_without_a_sound_index(copy):
    """Its line is said once, too."""
    drafter = copy(FIXTURES / 'odd-assistant')
    (drafter / 'model.safetensors').rename(drafter / 'drafter.safetensors')
    done = run('-m', FIXTURES / 'odd-bf16', '--draft', drafter, '-n', 1, '--ignore-eos', 'hello')
    assert done.returncode == 0
    assert done.stderr.decode() == ('gemma4: warning: %s: neither model.safetensors nor an index: '
                                    'taking all 1 *.safetensors there\n' % drafter)


def test_index_may_leave_other_files_out(checkpoint, copy):
    """A consistent index counts, whatever lies beside its files."""
    model = copy(checkpoint('odd-all shards'))
    (model / 'consolidated.safetensors').write_bytes(b'no')
    (model / 'model-00001-of-00002.safetensors').write_bytes(b'no')
    assert answer('info', '-m', model)


@pytest.mark.parametrize('layout', PLAIN + ['odd-all ct moe text shards'])
def test_continuation_ends_with_its_end_token(checkpoint, tmp_path, layout):
    ref = reference(layout)
    model, ids = checkpoint(layout), ref['stop_prompt_ids']
    assert ref['stop_ids'][-1] in ref['eos_token_id']
    assert go_on(tmp_path, model, ids) == ref['stop_ids']
    beyond = go_on(tmp_path, model, ids, '--ignore-eos', '-n', len(ref['stop_ids']) + 3)
    assert beyond[:-3] == ref['stop_ids'] and len(beyond) == len(ref['stop_ids']) + 3


@pytest.mark.parametrize('name, kv', [(n, 'fp8') for n in FP8] + [('odd-bf16', 'bf16')])
def test_rounded_cache(checkpoint, tmp_path, name, kv):
    """With K and V rounded as the cache stores them: the reference's tokens; and logits much nearer to the reference that
    rounds as well than to the one that does not."""
    ref, model = reference(name), checkpoint(name)
    prefix = {'fp8': 'fp8_', 'bf16': 'bf16kv_'}[kv]
    got = go_on(tmp_path, model, ref['prompt_ids'], '-n', 64, '--ignore-eos', '--kv', kv)
    assert got == ref[prefix + 'greedy_ids']
    logits = score_logits(tmp_path, model, ref['prompt_ids'], '--exact', '--kv', kv)
    rounded, exact = [spread(logits, expected_floats(name, p + 'logits_f32'))[1] for p in (prefix, '')]
    assert rounded < 0.5 * exact


@pytest.mark.parametrize('name', PLAIN)
def test_exact_means_a_cache_in_float32(checkpoint, tmp_path, name):
    ids, model = reference(name)['prompt_ids'], checkpoint(name)
    assert score_logits(tmp_path, model, ids, '--exact') == score_logits(tmp_path, model, ids, '--exact', '--kv', 'f32')


@pytest.mark.parametrize('name', ['bf16', 'nvfp4-experts', 'nvfp4-experts-nokv', 'nvfp4-all'])
def test_other_reference_checkpoints(tmp_path, name):
    model = REFERENCE / 'checkpoints' / name
    if not model.exists():
        pytest.skip('%s is not there' % model)
    ref = read_json('%s.ref.json' % model)
    assert go_on(tmp_path, model, ref['prompt_ids'], '-n', 64, '--ignore-eos') == ref['greedy_ids']
    assert go_on(tmp_path, model, ref['stop_prompt_ids']) == ref['stop_ids']
    logits = score_logits(tmp_path, model, ref['prompt_ids'], '--exact')
    assert spread(logits, read_floats('%s.ref.safetensors' % model, 'logits_f32'))[0] < 1e-3


# ---------------------------------------------------------------------------------------------- info

def info(model, *options):
    return json.loads(answer('info', '-m', model, '--json', *options))


def text_config(name):
    """In the published spelling, whatever the dialect under test says."""
    return read_json(FIXTURES / name / 'config.json')['text_config']


def kv_rows(config, size):
    """(is global, bytes that one position takes) of each layer, in numbers of that size.  A global layer's K is its V, turned
    in part: beside V only what turns is kept, but for FP8."""
    for kind in config['layer_types']:
        is_global = kind == 'full_attention'
        heads = config['num_global_key_value_heads' if is_global else 'num_key_value_heads']
        k = v = config['global_head_dim' if is_global else 'head_dim']
        if is_global and size > 1:
            k = 2 * int(v / 2 * config['rope_parameters'][kind]['partial_rotary_factor'])
        yield is_global, heads * (k + v) * size


def kv_bytes(config, size, context, chunk):
    """A global layer keeps every position, a sliding one its window and the chunk that is being written."""
    ring = min(config['sliding_window'] + chunk, context)
    return sum(row * (context if is_global else ring) for is_global, row in kv_rows(config, size))


def weights_of(model):
    """(name, bytes) of the tensors that matrices are made of, scales included."""
    leaves = ('weight', 'weight_packed', 'weight_scale', 'weight_scale_2', 'weight_global_scale', 'gate_up_proj', 'down_proj')
    for name, (_, _, data) in dialect.read_checkpoint(model).items():
        if name.rsplit('.', 1)[1] in leaves and 'norm' not in name:
            yield name, len(data)


def bytes_read_per_token(model, config):
    """All matrices of the text model (the embedding as the head), and the chosen ones of the experts."""
    sizes = {name: size for name, size in weights_of(model) if 'vision' not in name}
    experts = sum(size for name, size in sizes.items() if 'experts' in name)
    return sum(sizes.values()) - experts + (experts * config['top_k_experts'] // config['num_experts'] if experts else 0)


FP4 = 'NVFP4 (modelopt)'
GROUPS = {
    'odd-bf16': {'attention': 'BF16', 'mlp': 'BF16', 'experts': 'BF16', 'embedding': 'BF16'},
    'odd-experts': {'attention': 'BF16', 'mlp': 'BF16', 'experts': FP4, 'embedding': 'BF16'},
    'odd-all': {'attention': FP4, 'mlp': FP4, 'experts': FP4, 'embedding': 'BF16'},
    'dense': {'attention': FP4, 'mlp': FP4, 'embedding': 'BF16'},
}


def has_layout(got, want):
    return all(word in got for word in want.replace('(', '').replace(')', '').split())


@pytest.mark.parametrize('layout', LAYOUTS)
def test_info(checkpoint, layout):
    name, model = layout.split()[0], checkpoint(layout)
    config, got = text_config(name), info(model)
    moe = config['enable_moe_block']
    same = dict(layers='num_hidden_layers', hidden_size='hidden_size', heads='num_attention_heads', kv_heads='num_key_value_heads',
                sliding_window='sliding_window', context_length='max_position_embeddings')
    assert {k: got[k] for k in same} == {k: config[v] for k, v in same.items()}
    assert got['experts'] == (config['num_experts'] if moe else 0)
    assert got['experts_per_token'] == (config['top_k_experts'] if moe else 0)

    assert set(got['layouts']) == set(GROUPS[name])
    for group, want in GROUPS[name].items():
        want = want.replace('modelopt', 'compressed-tensors') if 'ct' in layout.split() else want
        assert has_layout(got['layouts'][group], want), group

    assert got['bytes_on_disk'] == sum(p.stat().st_size for p in model.glob('*.safetensors'))
    assert got['bytes_per_token'] == bytes_read_per_token(model, config)
    # Two quantised numbers lie in a byte; the scales of the quantisation are no parameters.
    numbers = {dtype: 0 for dtype in ('BF16', 'U8')}
    for dtype, shape, _ in dialect.read_checkpoint(model).values():
        if dtype in numbers:
            numbers[dtype] += math.prod(shape)
    assert got['parameters'] == numbers['BF16'] + 2 * numbers['U8']

    size = 1 if name in FP8 else 2
    assert got['kv_bytes_per_token'] == sum(row for _, row in kv_rows(config, size))
    assert got['context_bytes'] == kv_bytes(config, size, config['max_position_embeddings'], 512)


@pytest.mark.parametrize('options, size, context, chunk', [
    (['--kv', 'f32', '-c', 700], 4, 700, 512), (['--kv', 'bf16', '-c', 1000], 2, 1000, 512),
    (['--kv', 'fp8', '-c', 4096, '--chunk', 7], 1, 4096, 280),     # a step can hold a picture
    (['--kv', 'fp8', '-c', 4096, '--chunk', 7, '--image-tokens', 560], 1, 4096, 560), (['-c', 1000], 1, 1000, 512),
    (['--exact', '-c', 1000], 4, 1000, 512), (['-c', 1], 1, 1, 1),
], ids=str)
def test_memory_for_the_context_asked_for(checkpoint, options, size, context, chunk):
    config, got = text_config('odd-experts'), info(checkpoint('odd-experts'), *options)
    assert got['kv_bytes_per_token'] == sum(row for _, row in kv_rows(config, size))
    assert got['context_bytes'] == kv_bytes(config, size, context, chunk)


# An FP8 cache is announced in config.json (compressed-tensors, modelopt) or in hf_quant_config.json (modelopt): either will do, but
# where both speak of quantisation a line says that they differ.
@pytest.mark.parametrize('in_config, in_hf_quant, size', [(1, 0, 1), (0, 1, 1), (0, 0, 2)])
def test_fp8_cache_is_announced_in_either_file(copy, in_config, in_hf_quant, size):
    model = copy(FIXTURES / 'dense')
    if not in_config:
        edit('config.json', 'quantization_config.kv_cache_scheme', None)(model)
    if not in_hf_quant:
        edit('hf_quant_config.json', 'quantization.kv_cache_quant_algo', None)(model)
    done = run('info', '-m', model, '--json')
    assert json.loads(done.stdout)['kv_bytes_per_token'] == sum(row for _, row in kv_rows(text_config('dense'), size))
    assert (b'one alone announces an FP8 cache' in done.stderr) == (in_config != in_hf_quant)
    edit('config.json', 'quantization_config.quant_algo', None)(model)
    assert run('info', '-m', model).stderr == b''


@pytest.mark.parametrize('name', PLAIN)
def test_info_for_people(checkpoint, name):
    text, config = answer('info', '-m', checkpoint(name)), text_config(name)
    assert str(checkpoint(name)) in text
    for number in (config['num_hidden_layers'], config['hidden_size'], config['sliding_window'], config['max_position_embeddings']):
        assert str(number) in text
    for layout in GROUPS[name].values():
        assert has_layout(text, layout)
    assert all(len(line) <= 80 or str(checkpoint(name)) in line for line in text.splitlines())


# ---------------------------------------------------------------------------------------------- what may be missing

def test_tokenizer_without_the_control_tokens_of_a_chat(copy):
    """It still continues raw text."""
    model = copy(FIXTURES / 'odd-bf16')
    data('tokenizer.json', lambda b: b.replace(b'<|turn>', b'<|torn>'))(model)
    assert '<|turn>' in complaint(1, '-m', model, 'hello')
    assert ids_of('-m', model, '--raw', '-p', 'hello', '--print-ids', '--ignore-eos', '-n', 2)


def test_broken_sentencepiece_model(copy, demo):
    """tokenizer.model counts only where tokenizer.json is missing."""
    model = copy(demo)
    want = ids_of('tokenize', '-m', model, stdin='hello there')
    data('tokenizer.model', lambda b: b[:len(b) // 2 + 1])(model)
    assert ids_of('tokenize', '-m', model, stdin='hello there') == want
    data('tokenizer.json', None)(model)
    assert 'tokenizer.model' in complaint(1, 'tokenize', '-m', model, stdin='hello')


def test_both_tokenizer_files_say_the_same(copy, demo):
    model = copy(demo)
    text = 'Hello there: 12 + 7 = 19, <turn|> façade  …\n\n日本'
    want = ids_of('tokenize', '-m', model, stdin=text)
    data('tokenizer.json', None)(model)
    assert ids_of('tokenize', '-m', model, stdin=text) == want


def test_last_layer_is_global_whatever_its_type(copy, tmp_path):
    """As configuration_gemma4.py has it."""
    model, ref = copy(FIXTURES / 'odd-bf16'), reference('odd-bf16')
    edit('config.json', 'text_config.layer_types', text_config('odd-bf16')['layer_types'][:-1] + ['sliding_attention'])(model)
    assert go_on(tmp_path, model, ref['prompt_ids'], '-n', 64, '--ignore-eos') == ref['greedy_ids']


def test_end_tokens_come_from_config_without_generation_config(copy, tmp_path):
    model, ref = copy(FIXTURES / 'odd-bf16'), reference('odd-bf16')
    data('generation_config.json', None)(model)
    assert go_on(tmp_path, model, ref['stop_prompt_ids']) == ref['stop_ids']


SAMPLED = ('--print-ids', '--ignore-eos', '-n', 40, '--seed', 7, 'go on')


@pytest.mark.parametrize('spoil', [
    data('generation_config.json', None), data('generation_config.json', lambda b: b'{}'),
    data('generation_config.json', lambda b: b'{"do_sample": true}'), data('generation_config.json', lambda b: b'{"top_k": 64}'),
], ids=['none', 'empty', 'do_sample', 'top_k'])
def test_sampling_is_gemmas_where_nothing_is_said(copy, spoil):
    model = copy(FIXTURES / 'odd-bf16')
    spoil(model)
    got = ids_of('-m', model, *SAMPLED)
    assert got == ids_of('-m', model, *SAMPLED, '--temp', 1, '--top-k', 64, '--top-p', 0.95)
    assert got != ids_of('-m', model, *SAMPLED, '--top-k', 8) and got != ids_of('-m', model, *SAMPLED, '--top-p', 1)


def test_do_sample_false_is_greedy(copy):
    model = copy(FIXTURES / 'odd-bf16')
    data('generation_config.json', lambda b: b'{"do_sample": false, "temperature": 1.0, "top_k": 64}')(model)
    assert ids_of('-m', model, *SAMPLED) == ids_of('-m', model, *SAMPLED, '--temp', 0)


def test_a_chat_ends_with_its_turn(tmp_path):
    """Whatever eos_token_id says. A text of one's own does not."""
    model = make_puppet(tmp_path / 'puppet', TALK, eos_token_id=[1])
    assert answer('-m', model, 'hello') == ANSWER + '\n'
    assert answer('-m', model, 'hello', '-n', 11) == ANSWER + '\n'
    assert '<turn|>' in answer('-m', model, '--raw', '-p', 'The', '-n', 12)


def test_the_end_of_a_turn_ends_a_number(tmp_path):
    """A schema leaves open where it ends."""
    model = make_puppet(tmp_path / 'puppet', [['<channel|>', '1', '<turn|>']], eos_token_id=[1])
    assert answer('-m', model, 'hello', '--json-schema', '{"type": "integer"}') == '1\n'


# ---------------------------------------------------------------------------------------------- what fine-tuning leaves

FULL, EMBED = 'model.language_model.', 'embed_tokens.weight'


def rewrite(change):
    """change(tensors) changes {name: (dtype, shape, data)} in place."""
    def spoil(model):
        tensors = dialect.read_checkpoint(model)
        change(tensors)
        dialect.write_safetensors(model / 'model.safetensors', tensors)
    return spoil


def renamed(*pairs):
    """Beginnings of names are exchanged, the first that fits."""
    def change(tensors):
        for name in list(tensors):
            old, new = next((pair for pair in pairs if name.startswith(pair[0])), ('', ''))
            tensors[new + name[len(old):]] = tensors.pop(name)
    return rewrite(change)


PREFIXES = {'base model': ('language_model.', ''), 'Gemma 3': ('language_model.model.', ''), 'text': ('model.', 'model.'),
            'base of the text': ('', 'model.')}


@pytest.mark.parametrize('text, outer', PREFIXES.values(), ids=list(PREFIXES))
@pytest.mark.parametrize('name', ['odd-bf16', 'odd-all'])
def test_prefixes(copy, tmp_path, name, text, outer):
    model, ref = copy(FIXTURES / name), reference(name)
    renamed((FULL, text), ('model.', outer))(model)
    assert go_on(tmp_path, model, ref['prompt_ids'], '-n', 9, '--ignore-eos') == ref['greedy_ids'][:9]
    assert 'it takes images' in answer('info', '-m', model)


def test_tables_of_rope(copy, tmp_path):
    """They follow from the configuration, under whatever name."""
    model, ref = copy(FIXTURES / 'odd-bf16'), reference('odd-bf16')
    for name in 'layers.0.self_attn.rotary_emb.inv_freq', 'rotary_emb.sliding_attention_inv_freq', 'rotary_emb.full_attention_original_inv_freq':
        rewrite(lambda tensors: tensors.update({FULL + name: ('F32', [1], bytes(4))}))(model)
    assert go_on(tmp_path, model, ref['prompt_ids'], '-n', 9, '--ignore-eos') == ref['greedy_ids'][:9]


def test_two_models_in_one(copy):
    model = copy(FIXTURES / 'odd-bf16')
    rewrite(lambda tensors: tensors.update({'model.' + EMBED: tensors[FULL + EMBED]}))(model)
    assert 'under two names' in complaint(1, 'info', '-m', model)


def test_experts_without_enable_moe_block(copy, tmp_path):
    """The tensors decide."""
    model, ref = copy(FIXTURES / 'odd-experts'), reference('odd-experts')
    edit('config.json', 'text_config.enable_moe_block', None)(model)
    assert go_on(tmp_path, model, ref['prompt_ids'], '-n', 9, '--ignore-eos') == ref['greedy_ids'][:9]
    edit('config.json', 'text_config.num_experts', None)(model)
    text = complaint(1, 'info', '-m', model)
    assert 'config.json: num_experts is missing, but tensor ' in text and '.experts.' in text
    edit('config.json', 'text_config.enable_moe_block', False)(model)
    text = complaint(1, 'info', '-m', model)
    assert 'config.json: enable_moe_block is false, but tensor ' in text and '.experts.' in text


def test_dense_without_enable_moe_block(copy, tmp_path):
    model, ref = copy(FIXTURES / 'dense'), reference('dense')
    edit('config.json', 'text_config.enable_moe_block', None)(model)
    for field, value in (('num_experts', 8), ('top_k_experts', 2), ('moe_intermediate_size', 16)):
        edit('config.json', 'text_config.' + field, value)(model)
    assert go_on(tmp_path, model, ref['prompt_ids'], '-n', 9, '--ignore-eos') == ref['greedy_ids'][:9]


def test_rows_beyond_the_tokenizer_are_never_drawn(copy):
    """odd has 519 embeddings and 512 tokens. Here the last seven are the likeliest by far."""
    model = copy(FIXTURES / 'odd-bf16')

    def change(tensors):
        dtype, shape, rows = tensors[FULL + EMBED]
        row = 2 * shape[1]
        # A row and its opposite: one of the two has a logit above 0, and 64 times as long it is above all others.
        big = array('H', rows[300 * row:301 * row])
        for i, x in enumerate(big):
            big[i] = x + (6 << 7) if x & 0x7f80 else x
        minus = array('H', (x ^ 0x8000 for x in big))
        tensors['lm_head.weight'] = (dtype, shape, rows[:512 * row] + (big.tobytes() + minus.tobytes()) * 3 + big.tobytes())
    rewrite(change)(model)
    top = json.loads(answer('score', '-m', model, '--raw', '-p', 'a').splitlines()[-1])['top']
    assert top[0][0] >= 512
    call = ('-m', model, 'go on', '--print-ids', '--ignore-eos', '-n', 30)
    for options in (['--temp', 0], ['--temp', 1, '--top-k', 0], ['--temp', 1, '--repeat-penalty', 1.1], ['--temp', 1]):
        assert max(ids_of(*call, *options)) < 512


def with_head(change):
    """lm_head beside the embedding, from whose rows change makes it."""
    def add(tensors):
        dtype, shape, rows = tensors[FULL + EMBED]
        tensors['lm_head.weight'] = (dtype, shape, change(rows))
    return rewrite(add)


def test_head_beside_a_tied_embedding(copy, tmp_path):
    """As transformers: the same is tied, another one counts, and one alone is both."""
    model, ref = copy(FIXTURES / 'odd-bf16'), reference('odd-bf16')
    go = lambda: go_on(tmp_path, model, ref['prompt_ids'], '-n', 9, '--ignore-eos')
    tied = info(model)['bytes_per_token']
    with_head(lambda rows: rows)(model)
    assert go() == ref['greedy_ids'][:9] and info(model)['bytes_per_token'] == tied
    with_head(lambda rows: rows[224:] + rows[:224])(model)
    other = go()
    assert other != ref['greedy_ids'][:9]
    edit('config.json', 'tie_word_embeddings', False)(model)
    assert go() == other
    edit('config.json', 'tie_word_embeddings', True)(model)
    with_head(lambda rows: rows)(model)
    rewrite(lambda tensors: tensors.pop(FULL + EMBED))(model)
    assert go() == ref['greedy_ids'][:9]
    edit('config.json', 'tie_word_embeddings', False)(model)
    assert EMBED + ' is missing' in complaint(1, 'info', '-m', model)


def test_no_head_and_nothing_tied(copy):
    model = copy(FIXTURES / 'odd-bf16')
    edit('config.json', 'tie_word_embeddings', False)(model)
    text = complaint(1, 'info', '-m', model)
    assert 'lm_head.weight is missing' in text and 'tie_word_embeddings' in text


# ---------------------------------------------------------------------------------------------- where models are found

def fake_hub(path, name='nvidia/Gemma-4-26B-A4B-NVFP4', commit='0123abcd', newline=''):
    """A hub cache as huggingface_hub lays it out."""
    repo = path / ('models--' + name.replace('/', '--'))
    (repo / 'refs').mkdir(parents=True)
    (repo / 'refs' / 'main').write_text(commit + newline)
    (repo / 'snapshots').mkdir()
    (repo / 'snapshots' / commit).symlink_to(FIXTURES / 'dense')
    return name


@pytest.mark.parametrize('newline', ['', '\n'])
@pytest.mark.parametrize('variable, below', [('HF_HOME', 'hub'), ('HF_HUB_CACHE', ''), ('HUGGINGFACE_HUB_CACHE', ''), ('XDG_CACHE_HOME', 'huggingface/hub'),
                                             ('HOME', '.cache/huggingface/hub')])
def test_hub_name(tmp_path, variable, below, newline):
    name = fake_hub(tmp_path / below, newline=newline)
    got = json.loads(answer('info', '-m', name, '--json', env=environment(**{variable: tmp_path})))
    assert got['layers'] == text_config('dense')['num_hidden_layers']
    assert got['model'] == name


def test_missing_hub_name_says_how_to_get_it(tmp_path):
    fake_hub(tmp_path / 'hub', 'google/gemma-4-31B-it')
    for name in ('nvidia/Gemma-4-26B-A4B-NVFP4', 'google/gemma-4-31B'):
        text = complaint(1, 'hello', '-m', name, env=environment(HF_HOME=tmp_path))
        assert text.endswith('hf download %s\n' % name)
        assert str(tmp_path) in text


def test_hub_name_whose_snapshot_is_gone(tmp_path):
    name = fake_hub(tmp_path / 'hub')
    next((tmp_path / 'hub').glob('*/snapshots/*')).unlink()
    assert 'hf download ' + name in complaint(1, 'info', '-m', name, env=environment(HF_HOME=tmp_path))


def layers(*args, **kwargs):
    return json.loads(answer('info', '--json', *args, **kwargs))['layers']


def add_snapshot(path, name, commit, model):
    (path / ('models--' + name.replace('/', '--')) / 'snapshots' / commit).symlink_to(FIXTURES / model)


def test_snapshots_without_main(tmp_path):
    """The only one is taken; of several the user says which."""
    name, env = fake_hub(tmp_path), environment(HF_HUB_CACHE=tmp_path)
    repo = tmp_path / 'models--nvidia--Gemma-4-26B-A4B-NVFP4'
    (repo / 'refs' / 'main').unlink()
    dense, odd = (text_config(model)['num_hidden_layers'] for model in ('dense', 'odd-bf16'))
    assert dense != odd
    assert layers('-m', name, env=env) == layers('-m', repo, env=env) == dense
    add_snapshot(tmp_path, name, '0199', 'odd-bf16')
    for called in (name, repo):
        text = complaint(1, 'info', '-m', called, env=env)
        assert text.startswith('gemma4: %s: several snapshots and no refs/main; write ' % called)
        assert '-m %s@0199' % called in text and '-m %s@0123abcd' % called in text
        assert layers('-m', '%s@0123abcd' % called, env=env) == layers('-m', '%s@012' % called, env=env) == dense
        assert layers('-m', '%s@019' % called, env=env) == odd
        assert 'several' in complaint(1, 'info', '-m', '%s@01' % called, env=env)
    (repo / 'refs' / 'refs' / 'pr').mkdir(parents=True)
    (repo / 'refs' / 'refs' / 'pr' / '7').write_text('0199')
    assert layers('-m', name + '@refs/pr/7', env=env) == odd
    text = complaint(1, 'info', '-m', name + '@77', env=env)
    assert text.endswith('hf download %s --revision 77\n' % name)
    assert 'no such snapshot' in complaint(1, 'info', '-m', '%s@77' % repo, env=env)


def test_main_wins_over_other_snapshots(tmp_path):
    name = fake_hub(tmp_path)
    add_snapshot(tmp_path, name, '9', 'odd-bf16')
    env = environment(HF_HUB_CACHE=tmp_path)
    assert layers('-m', name, env=env) == layers('-m', name + '@main', env=env) == text_config('dense')['num_hidden_layers']
    assert layers('-m', name + '@9', env=env) == text_config('odd-bf16')['num_hidden_layers']


def unlinked(tmp_path):
    """The name of a model in a cache at tmp_path, and its snapshot, a copy that may be spoilt."""
    name = fake_hub(tmp_path)
    snapshot = tmp_path / 'models--nvidia--Gemma-4-26B-A4B-NVFP4' / 'snapshots' / '0123abcd'
    snapshot.unlink()
    shutil.copytree(FIXTURES / 'dense', snapshot)
    return name, snapshot


@pytest.mark.parametrize('file, change, what', [
    ('config.json', None, 'config.json is missing'), ('tokenizer.json', None, 'neither tokenizer.json nor'),
    ('model.safetensors', lambda b: b[:-9], 'lie outside the file'), ('model.safetensors', lambda b: b'', 'empty')])
def test_snapshot_that_is_not_whole(tmp_path, file, change, what):
    """The line has the command that mends it: hf takes a file that is there for whole, unless it is forced."""
    name, snapshot = unlinked(tmp_path)
    data(file, change)(snapshot)
    text = complaint(1, 'hello', '-m', name, env=environment(HF_HUB_CACHE=tmp_path))
    assert what in text and text.endswith('incomplete: run hf download %s%s\n' % (name, ' model.safetensors --force-download' if change else ''))


@pytest.mark.parametrize('missing, what', [('model.safetensors', 'the weights are missing'), ('config.json', 'config.json is missing')])
def test_download_that_was_interrupted(tmp_path, missing, what):
    name, snapshot = unlinked(tmp_path)
    blobs = snapshot.parent.parent / 'blobs'
    blobs.mkdir()
    (blobs / '77.incomplete').touch()
    assert layers('-m', name, env=environment(HF_HUB_CACHE=tmp_path))
    (snapshot / missing).unlink()
    text = complaint(1, 'info', '-m', name, env=environment(HF_HUB_CACHE=tmp_path))
    assert what in text and text.endswith('the download is incomplete: run hf download %s\n' % name)


def test_one_file_beside_shards(copy):
    """It is taken alone, as transformers does."""
    model, call = copy(FIXTURES / 'dense'), ('-n', 8, '--temp', 0, 'hello')
    for i in 1, 2:
        (model / (SHARD % i)).write_bytes(b'no')
    done = run('-m', model, *call)
    assert (done.returncode, done.stdout.decode()) == (0, answer('-m', FIXTURES / 'dense', *call))
    assert b'model.safetensors is taken, as transformers does, and not the 2 shards beside it' in done.stderr


def test_one_file_of_a_checkpoint(checkpoint, copy, tmp_path):
    """It stands for its directory, where that is clear."""
    model = copy(FIXTURES / 'dense')
    assert layers('-m', model / 'model.safetensors') == layers('-m', model)
    assert layers('-m', 'model.safetensors', cwd=model) == layers('-m', model)
    shards = checkpoint('odd-all shards')
    assert layers('-m', shards / (SHARD % 2)) == layers('-m', shards)
    (model / 'other.safetensors').write_bytes(b'no')
    for name in ('model', 'other'):
        assert 'give the directory' in complaint(1, 'info', '-m', model / (name + '.safetensors'))
    pointer = b'version https://git-lfs.github.com/spec/v1\n'
    for file, content, what in [('gemma.gguf', b'GGUF', 'a GGUF: gemma4 reads safetensors; hf download '), ('gemma', b'GGUF and more', 'a GGUF: '),
                                ('gemma.gguf', pointer, 'a git-lfs pointer to a GGUF: '), ('gemma', pointer, 'a git-lfs pointer: run git lfs pull')]:
        (tmp_path / file).write_bytes(content)
        assert '%s: is %s' % (file, what) in complaint(1, 'info', '-m', tmp_path / file)


def test_adapter_beside_the_weights(copy):
    """It is not applied, and a line says so."""
    model, call = copy(FIXTURES / 'dense'), ('-n', 8, '--ignore-eos', '--temp', 0, 'hello')
    for file in 'adapter_config.json', 'adapter_model.safetensors':
        (model / file).write_text('{}')
    done = run('-m', model, *call)
    assert (done.returncode, done.stdout.decode()) == (0, answer('-m', FIXTURES / 'dense', *call))
    assert done.stderr == b'gemma4: warning: the LoRA adapter beside the weights counts only where --lora names its directory\n'


# ---------------------------------------------------------------------------------------------- what may be downloaded

NAME = 'google/gemma-4-26B-A4B-it'


def fake_hf(path, status=0):
    """A program hf that downloads the fixture `dense`, and writes down how it was called."""
    (path / 'bin').mkdir()
    script = path / 'bin' / 'hf'
    repo = shlex.quote(str(path / 'hub' / ('models--' + NAME.replace('/', '--'))))
    script.write_text(f'''#!/bin/sh
echo "$@" >> {shlex.quote(str(path / 'calls'))}
test {status} = 0 || exit {status}
mkdir -p {repo}/refs {repo}/snapshots
printf 0123 > {repo}/refs/main
ln -s {shlex.quote(str(FIXTURES / 'dense'))} {repo}/snapshots/0123
echo {repo}/snapshots/0123
''')
    script.chmod(0o755)
    return environment(HF_HUB_CACHE=path / 'hub', PATH='%s:%s' % (path / 'bin', os.environ['PATH']))


def offered(env, reply, *args):
    """What the terminal shows, and the exit status."""
    p = pexpect.spawn(GEMMA4, ['info', *args], env=env, timeout=PATIENCE, encoding='utf-8')
    p.expect(r'\[y/N\] ')
    shown = p.before
    p.sendline(reply)
    p.expect(pexpect.EOF)
    p.close()
    return shown, p.before, p.exitstatus


@pytest.mark.parametrize('reply', ['y', 'Y', 'yes'])
def test_download_is_offered(tmp_path, reply):
    asked, said, status = offered(fake_hf(tmp_path), reply, '-m', NAME)
    assert asked == 'gemma4: %s is not in the Hugging Face cache. Run hf download %s (about 52 GB)? ' % (NAME, NAME)
    assert status == 0 and 'layers ' in said
    assert (tmp_path / 'calls').read_text() == 'download %s\n' % NAME


@pytest.mark.parametrize('reply', ['', 'n', 'no', 'x', ' y'])
def test_download_is_declined(tmp_path, reply):
    asked, said, status = offered(fake_hf(tmp_path), reply, '-m', 'google/gemma-4')
    assert '(size unknown)' in asked
    assert status == 1 and said.rstrip().endswith('hf download google/gemma-4')
    assert not (tmp_path / 'calls').exists()


def test_download_of_a_revision_that_fails(tmp_path):
    asked, said, status = offered(fake_hf(tmp_path, 3), 'y', '-m', NAME + '@beta')
    assert status == 1 and 'gemma4: hf download %s has failed' % NAME in said
    assert (tmp_path / 'calls').read_text() == 'download %s --revision beta\n' % NAME


def test_nothing_else_starts_a_download(tmp_path):
    """No terminal, no hf, a directory's name, a drafter: the line alone."""
    env = fake_hf(tmp_path)
    assert 'hf download ' + NAME in complaint(1, 'info', '-m', NAME, env=env)
    for args in (['-m', NAME, '2>/dev/null'], ['-m', NAME, '</dev/null'], ['-m', './no/such'], ['-m', FIXTURES / 'odd-bf16', '--draft', NAME]):
        command = 'exec %s hello %s' % (GEMMA4, ' '.join(map(str, args)))
        shown, status = pexpect.run('sh -c ' + shlex.quote(command), env=env, timeout=PATIENCE, withexitstatus=True)
        assert status == 1 and b'[y/N]' not in shown
    env['PATH'] = str(tmp_path)
    shown, status = pexpect.run('%s hello -m %s' % (GEMMA4, NAME), env=env, timeout=PATIENCE, withexitstatus=True)
    assert status == 1 and shown.decode().rstrip().endswith('hf download ' + NAME)
    assert not (tmp_path / 'calls').exists()


# ---------------------------------------------------------------------------------------------- which model is at hand

def test_drafter_at_hand_is_named(tmp_path):
    """To who sits before a model that it fits, and has none."""
    model, drafter = fake_hub(tmp_path), fake_hub(tmp_path, 'google/gemma-4-26B-A4B-it-assistant')
    said = '--draft ' + drafter

    def shown(model):
        call = [GEMMA4, '-m', str(model), '--raw', '-p', 'a', '-n', '1']
        return pexpect.run(shlex.join(call), env=environment(HF_HUB_CACHE=tmp_path), timeout=PATIENCE).decode()
    assert said in shown(model) and said not in shown(FIXTURES / 'dense')
    next(tmp_path.glob('*assistant/snapshots/*')).unlink()
    assert said not in shown(model)
    assert answer('-m', model, '--raw', '-p', 'a', '-n', 1, env=environment(HF_HUB_CACHE=tmp_path))


def test_directory_wins_over_a_hub_name(tmp_path):
    name = fake_hub(tmp_path / 'hub', 'odd/bf16')
    (tmp_path / 'odd').mkdir()
    (tmp_path / 'odd' / 'bf16').symlink_to(FIXTURES / 'odd-bf16')
    got = json.loads(answer('info', '-m', name, '--json', env=environment(HF_HOME=tmp_path), cwd=tmp_path))
    assert got['layers'] == text_config('odd-bf16')['num_hidden_layers']


@pytest.mark.parametrize('name, why', [
    ('no-such-directory', 'no such directory'), ('./no/such', 'no such directory'), ('a/b@', 'no such directory'), ('@a', 'no such directory'), ('/no/such/directory', 'no such directory'),
    ('a/b/c', 'no such directory'), ('-x/y', 'no such directory'), ('a/b@-x', 'no such directory'), ('~/model', 'no such directory'), (__file__, 'not a checkpoint directory'),
])
def test_no_such_model(name, why):
    text = complaint(1, 'hello', '-m', name)
    assert name in text and why in text and 'hf download' not in text


def test_model_from_the_environment(tmp_path):
    env = environment(GEMMA4_MODEL=FIXTURES / 'dense')
    assert json.loads(answer('info', '--json', env=env))['layers'] == text_config('dense')['num_hidden_layers']
    got = json.loads(answer('info', '--json', '-m', FIXTURES / 'odd-bf16', env=env))
    assert got['layers'] == text_config('odd-bf16')['num_hidden_layers']
    for name in 'no-such', 'org/no-such', tmp_path:
        env = environment(GEMMA4_MODEL=name, HF_HUB_CACHE=tmp_path)
        assert complaint(1, 'info', env=env) == complaint(1, 'info', '-m', name, env=env).replace('gemma4: ', 'gemma4: GEMMA4_MODEL: ', 1)
    assert json.loads(answer('info', '--json', env=environment(GEMMA4_MODEL='')))['layers'] > 0


@pytest.mark.parametrize('where', ['bin/demo', 'share/gemma4/demo'])
def test_demo_is_the_default(tmp_path, where):
    """It lies beside the program, or where `make install` puts it."""
    (tmp_path / 'bin').mkdir()
    program = shutil.copy(GEMMA4, tmp_path / 'bin' / 'gemma4')
    assert '-m' in complaint(1, 'info', program=program)
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).symlink_to(FIXTURES / 'dense')
    link = tmp_path / 'link'
    link.symlink_to(program)
    for path in (program, link):        # a link to the program will do, from any directory
        got = json.loads(answer('info', '--json', program=str(path), cwd='/'))
        assert got['layers'] == text_config('dense')['num_hidden_layers']


def test_demo_of_the_repository(demo):
    got = json.loads(answer('info', '--json'))
    assert got == dict(json.loads(answer('info', '--json', '-m', demo)), model=got['model'])
    assert sum(f.stat().st_size for f in demo.iterdir()) < 12 << 20
    assert has_layout(got['layouts']['experts'], FP4)


def test_options_may_stand_anywhere():
    assert answer('info', '--json', '-m', FIXTURES / 'dense') == answer('info', '-m', FIXTURES / 'dense', '--json')


def test_what_lies_beside_the_weights_does_not_matter(copy):
    model = copy(FIXTURES / 'dense')
    (model / 'README.md').write_text('hello')
    (model / 'original.safetensors').write_bytes(b'no')
    os.mkdir(model / 'images')
    assert info(model)['layers'] == text_config('dense')['num_hidden_layers']


@pytest.mark.parametrize('layout', ['int8', 'zeros'])
def test_random_checkpoint(tmp_path, layout):
    """make_checkpoint.py's sizes fit the layouts with the largest groups; without numpy it says in a line what it lacks."""
    call = [sys.executable, TESTS / 'make_checkpoint.py', '--layout', layout, tmp_path]
    done = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if importlib.util.find_spec('numpy'):
        assert (done.returncode, done.stderr) == (0, b'') and info(tmp_path)['layers'] == 6
    else:
        assert (done.returncode, done.stdout) == (1, b'') and re.fullmatch(rb'make_checkpoint.py needs numpy: .*\n', done.stderr)


@pytest.mark.parametrize('size, says', [
    ('--hidden 0', '--hidden 0: too small'), ('--layers -1', '--layers -1: too small'), ('--heads 3', '--heads 3: no multiple of --kv-heads 2'),
    ('--head-dim 33', '--head-dim 33: no multiple of 2'), ('--top-k 9', '--top-k 9: more than --experts 8'), ('--experts -1', '--experts -1: too small'),
    ('--vocab 500', '--vocab 500: the tokenizer has ids up to 507'), ('--shard-bytes 0', '--shard-bytes 0: too small')])
def test_random_checkpoint_of_no_size(tmp_path, size, says):
    """make_checkpoint.py writes nothing that the program would refuse. It looks before it uses numpy."""
    (tmp_path / 'numpy.py').touch()
    done = subprocess.run([sys.executable, TESTS / 'make_checkpoint.py', *size.split(), tmp_path / 'm'], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=environment(PYTHONPATH=tmp_path))
    assert (done.returncode, done.stderr.decode(), (tmp_path / 'm').exists()) == (1, says + '\n', False)
