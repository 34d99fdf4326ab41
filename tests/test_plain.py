"""--device plain, the formulas of plain.c, through the command line: the reference's tokens and
logits, and the CPU's words where something is wrong. test_model.c, test_draft.c and test_image.c
look at every layer."""
import json
import resource
import shutil

import pytest

from conftest import (DEMO, FIXTURES, GEMMA4, answer, complaint, environment, ids_of, read_floats,
                      read_json, write_ids)

NAMES = ['odd-bf16', 'odd-experts', 'odd-all', 'dense']
FP8 = ['odd-experts', 'dense']          # of which the reference has logits with an FP8 cache
BOTH = ['plain', 'cpu']
PLAIN = ('--device', 'plain')
BY_VARIABLE = environment(GEMMA4_DEVICE='plain')


def spread(got, want):
    """The largest difference, as a share of the range of what is expected."""
    assert len(got) == len(want)
    return max(abs(a - b) for a, b in zip(got, want)) / (max(want) - min(want))


@pytest.mark.parametrize('name', NAMES)
def test_logits(tmp_path, name):
    ids = write_ids(tmp_path / 'ids', read_json(FIXTURES / (name + '.ref.json'))['prompt_ids'])
    reference = FIXTURES / (name + '.ref.safetensors')
    for kv, tensor, most in ('f32', 'logits_f32', 1e-4), ('fp8', 'fp8_logits_f32', 2e-3):
        if kv == 'fp8' and name not in FP8:
            continue
        answer('score', '-m', FIXTURES / name, '--ids', ids, '--logits', tmp_path / kv, '--kv', kv,
               *PLAIN)
        assert spread(read_floats(tmp_path / kv), read_floats(reference, tensor)) < most


@pytest.mark.parametrize('options, env', [
    (PLAIN, environment()), ((), BY_VARIABLE), (('--chunk', 5), BY_VARIABLE),
], ids=['option', 'variable', 'chunks'])
def test_tokens(tmp_path, options, env):
    ref = read_json(FIXTURES / 'odd-all.ref.json')
    ids = write_ids(tmp_path / 'ids', ref['prompt_ids'])
    got = ids_of('-m', FIXTURES / 'odd-all', '--ids', ids, '-n', 64, '--ignore-eos', '--print-ids',
                 '--temp', 0, '--exact', *options, env=env)
    assert got == ref['greedy_ids']


def test_option_before_variable(puppet):
    """The option is stronger than the variable, which is seen in what bench says of the device."""
    for named, other in ('plain', 'cpu'), ('cpu', 'plain'):
        told = json.loads(answer('bench', '-m', puppet, '--scenario', 'chat', '--json', '-t', 2,
                                 '--device', named, env=environment(GEMMA4_DEVICE=other)))
        assert (told['device'], told['threads']) == (named, 1 if named == 'plain' else 2)
        assert (told['bandwidth'] is None) == (named == 'plain')


@pytest.mark.parametrize('options', [
    ('What is 12 plus 30?',), ('-i', DEMO / 'two-shapes.png', 'What do you see?'),
    ('--draft', DEMO / 'assistant', '--draft-tokens', 3, 'What is 12 plus 30?'),
], ids=['text', 'picture', 'drafter'])
def test_answers_as_the_cpu(options):
    plain, cpu = (answer('-m', DEMO, '--temp', 0, '--device', device, *options) for device in BOTH)
    assert plain == cpu != ''


def test_info_as_the_cpu():
    plain, cpu = (answer('info', '-m', DEMO, '--device', device, '--json') for device in BOTH)
    assert plain == cpu


def test_faults_as_on_the_cpu(tmp_path, checkpoint):
    odd, blind = FIXTURES / 'odd-bf16', checkpoint('odd-bf16 text')
    many = write_ids(tmp_path / 'many', [2] + [300] * 50)
    wrong = write_ids(tmp_path / 'wrong', [2, 519])
    calls = [
        ('-m', odd, '--ids', many, '-c', 20),
        ('-m', odd, '--ids', wrong),
        ('-m', odd, '-c', 1 << 30, 'hello'),
        ('-m', odd, '--fp4-activations', 'hello'),
        ('info', '-m', odd, '--fp4-activations'),
        ('-m', blind, '-i', DEMO / 'star.png', 'hello'),
        ('-m', odd, '--draft', odd, 'hello'),
        ('-m', tmp_path, 'hello'),
    ]
    for call in calls:
        plain, cpu = (complaint(1, *call, '--device', device) for device in BOTH)
        assert plain == cpu


@pytest.mark.skipif(b'__asan_init' in open(GEMMA4, 'rb').read(), reason='sanitizers want terabytes')
def test_no_memory_as_on_the_cpu(puppet, tmp_path):
    """V alone takes 1 GB of 640 MB, however much the tokenizer, which opens meanwhile, has taken before."""
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (640 << 20, 640 << 20))
    long = shutil.copytree(puppet, tmp_path / 'long')
    config = json.loads((long / 'config.json').read_text())
    config['text_config']['max_position_embeddings'] = 1 << 24
    (long / 'config.json').write_text(json.dumps(config))
    call = ('-m', long, '-c', 1 << 24, '--kv', 'f32', '-t', 1, 'hello')
    plain, cpu = (complaint(1, *call, '--device', device, preexec_fn=limit) for device in BOTH)
    assert plain == cpu and 'no memory for a context of 16777216 positions' in plain
