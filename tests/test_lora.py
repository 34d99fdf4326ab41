"""LoRA adapters beside a model's weights: the logits of the merged checkpoint, and every refusal by name."""
import json
import math
import shutil

import pytest

import make_lora
import test_formats
from conftest import (EMULATED, FIXTURES, KERNELS, ROOT, answer, complaint, environment, ids_of, read_floats,
                      run, write_ids)
from dialect import read_checkpoint
from test_repl import IMAGES, chat  # noqa: F401 (a fixture)

IDS = list(range(100, 140))                     # more than FEW_TOKENS, so that AMX takes strips
DENSE = [name for name in make_lora.DENSE]
EXPERTS = ['experts.%d.%s_proj' % (e, part) for e in (0, 3, 4) for part in ('gate', 'up', 'down')]
BF16 = ['layers.%d.%s' % (i, name) for i in range(3) for name in DENSE + EXPERTS + ['router.proj']]
BF16.remove('layers.2.self_attn.v_proj')        # a global layer: its values are its keys
BF16.remove('layers.1.mlp.up_proj')             # not every matrix has an adapter
NVFP4 = ['layers.%d.%s' % (i, name) for i in range(4) for name in DENSE]
NVFP4.remove('layers.3.self_attn.v_proj')


def logits(tmp_path, model, *options, ids=IDS, **kwargs):
    out = tmp_path / 'logits'
    answer('score', '-m', model, '--ids', write_ids(tmp_path / 'ids', ids), '--top', 0, '--kv', 'f32', '--logits', out, *options, **kwargs)
    return read_floats(out)


def distance(a, b):
    """The largest difference as a share of the range of b."""
    assert len(a) == len(b) and all(map(math.isfinite, a))
    return max(abs(x - y) for x, y in zip(a, b)) / (max(b) - min(b))


def adapter(path, model, modules=NVFP4, rank=4, alpha=8, seed=1, dtype='BF16', **kwargs):
    """Writes a random adapter and returns its matrices."""
    made = make_lora.make(read_checkpoint(model), modules, rank, seed, dtype)
    make_lora.write(path, made, kwargs.pop('r', rank), alpha, **kwargs)
    return made


@pytest.fixture(scope='module')
def odd_merged(tmp_path_factory):
    """A checkpoint of BF16 with fused experts, its adapter, and both merged."""
    path = tmp_path_factory.mktemp('lora')
    made = adapter(path / 'adapter', FIXTURES / 'odd-bf16', BF16)
    return FIXTURES / 'odd-bf16', path / 'adapter', make_lora.merge(FIXTURES / 'odd-bf16', path / 'merged', [(made, 2)])


@pytest.fixture(scope='module')
def dense_merged(tmp_path_factory):
    """A dense checkpoint of NVFP4 with two adapters of other ranks and types, and all merged with their scales."""
    path = tmp_path_factory.mktemp('lora')
    model = FIXTURES / 'dense'
    one = adapter(path / 'one', model, alpha=16, rank=20, dtype='F32', use_rslora=True)
    two = adapter(path / 'two', model, NVFP4[3:], seed=2, rank=3, alpha=6, dtype='F16')
    scales = 0.5 * 16 / math.sqrt(20), -0.25 * 2
    options = ['--lora', '%s:0.5' % (path / 'one'), '--lora', '%s:-0.25' % (path / 'two')]
    return model, options, make_lora.merge(model, path / 'merged', [(one, scales[0]), (two, scales[1])])


# ---------------------------------------------------------------------------------------------- what is computed

@pytest.mark.parametrize('options', [('--device', 'plain'), ('--exact',), ('--exact', '--chunk', 3, '--threads', 3)], ids=str)
def test_equals_the_merged_checkpoint(odd_merged, tmp_path, options):
    model, path, merged = odd_merged
    got, want = logits(tmp_path, model, '--lora', path, *options), logits(tmp_path, merged, *options)
    assert distance(got, want) < 1e-5
    assert distance(logits(tmp_path, model, *options), want) > 0.05


@pytest.mark.parametrize('options', [('--device', 'plain'), ('--exact',)], ids=str)
def test_two_adapters(dense_merged, tmp_path, options):
    model, adapters, merged = dense_merged
    want = logits(tmp_path, merged, *options)
    assert distance(logits(tmp_path, model, *adapters, *options), want) < 1e-5
    assert distance(logits(tmp_path, model, *adapters[:2], *options), want) > 0.01


@pytest.mark.parametrize('kernels', KERNELS)
def test_kernels(odd_merged, dense_merged, tmp_path, kernels):
    """Every set of kernels that this machine has, where activations are rounded and where prompts are in strips."""
    for model, adapters in ((odd_merged[0], ('--lora', odd_merged[1])), dense_merged[:2]):
        want = logits(tmp_path, model, *adapters, '--device', 'plain')
        assert distance(logits(tmp_path, model, *adapters, env=environment(GEMMA4_CPU=kernels)), want) < 2e-3


def test_chunks_and_threads_change_no_bit(dense_merged, tmp_path):
    model, adapters, _ = dense_merged
    want = logits(tmp_path, model, *adapters, '--exact')
    for options in (('--chunk', 7), ('--chunk', 1, '--threads', 3), ('--threads', 2)):
        assert logits(tmp_path, model, *adapters, '--exact', *options) == want


def test_scale_0_is_the_model(odd_merged, tmp_path):
    model, path, _ = odd_merged
    assert logits(tmp_path, model, '--lora', '%s:0' % path) == logits(tmp_path, model)


@pytest.mark.parametrize('prefix', ['base_model.model.model.', 'base_model.model.', 'base_model.model.language_model.',
                                    'base_model.model.language_model.model.', 'model.language_model.'])
def test_prefixes(odd_merged, tmp_path, prefix):
    """The text model alone, and what other programs write."""
    model, path, _ = odd_merged
    made = make_lora.make(read_checkpoint(model), BF16)
    if prefix.endswith('language_model.'):
        made = {module.replace('experts', 'moe.experts'): pair for module, pair in made.items()}
    other = make_lora.write(tmp_path / 'a', made, prefix=prefix, ending='.default.weight')
    assert logits(tmp_path, model, '--lora', other) == logits(tmp_path, model, '--lora', path)


def test_patterns(odd, tmp_path):
    """Modules with a rank and an alpha of their own; the first pattern that fits counts."""
    modules = ['layers.%d.self_attn.%s_proj' % (i, part) for i in range(2) for part in 'qko']
    ranks = {'layers.0.self_attn.q_proj': 5, 'layers.1.self_attn.q_proj': 6, 'layers.0.self_attn.k_proj': 2}
    made = adapter(tmp_path / 'a', odd, modules, rank=lambda m: ranks.get(m, 4), r=4,
                   rank_pattern={r'layers.0.self_attn\.q_proj': 5, 'q_proj': 6, '^model.language_model.layers.0.self_attn.k_proj': 2},
                   alpha_pattern={'^layers.0.self_attn.q_proj': 100, 'tn.q_proj': 100, 'layers.1.self_attn.o_proj': 40, 'o_proj': 4})
    alphas = {'layers.1.self_attn.o_proj': 40, 'layers.0.self_attn.o_proj': 4}
    merged = make_lora.merge(odd, tmp_path / 'merged', [(made, lambda m: alphas.get(m, 8) / ranks.get(m, 4))])
    assert distance(logits(tmp_path, odd, '--lora', tmp_path / 'a', '--exact'), logits(tmp_path, merged, '--exact')) < 1e-5


def different_ranks(path, to):
    """Writes an adapter of experts that have different ranks, and returns the merged checkpoint."""
    model = FIXTURES / 'odd-bf16'
    modules = ['layers.0.experts.%d.%s_proj' % (e, part) for e in range(5) for part in ('gate', 'up', 'down')]

    def rank(module):
        return 1 + 3 * int(module.split('.')[3]) + module.endswith('up_proj')
    made = adapter(path, model, modules, rank=rank, r=4, rank_pattern={m: rank(m) for m in modules})
    return make_lora.merge(model, to, [(made, lambda m: 8 / rank(m))])


def test_experts_of_different_ranks(tmp_path):
    """The tokens of all experts lie side by side, whatever rank their adapters have."""
    path = tmp_path / 'a'
    model, merged = FIXTURES / 'odd-bf16', different_ranks(path, tmp_path / 'merged')
    want = logits(tmp_path, merged, '--device', 'plain')
    for options in (('--device', 'plain'), ('--exact',)):
        assert distance(logits(tmp_path, model, '--lora', path, *options), want) < 1e-5


def test_a_directory_with_a_colon(odd_merged, tmp_path):
    """What is there under the whole text is the directory."""
    model, path, _ = odd_merged
    want = logits(tmp_path, model, '--lora', path)
    half = logits(tmp_path, model, '--lora', '%s:.5' % path)
    assert half != want
    shutil.copytree(path, tmp_path / 'a:0.5')
    shutil.copytree(path, tmp_path / 'b:c')
    assert logits(tmp_path, model, '--lora', 'a:0.5', cwd=tmp_path) == want
    assert logits(tmp_path, model, '--lora', 'a:0.5:.5', cwd=tmp_path) == half
    assert logits(tmp_path, model, '--lora', 'b:c', cwd=tmp_path) == want
    for scale in ('0.5x', '0x1', 'nan', '1e9', ''):
        assert "--lora's SCALE" in complaint(2, '-m', model, '--lora', 'b:c:' + scale, 'x', cwd=tmp_path)
    for text in ('a', 'a:', 'a:x', 'a:1e9', ':1'):
        assert '--lora %s: %s: no such directory' % (text, text if ':1' not in text[:2] else '') in \
            complaint(1, '-m', model, '--lora', text, 'x', cwd=tmp_path)


def test_a_drafter_changes_nothing(demo, tmp_path):
    tensors = read_checkpoint(demo)
    n = 1 + max(int(name.split('.layers.')[1].split('.')[0]) for name in tensors if 'language_model.layers.' in name)
    modules = ['layers.%d.%s' % (i, name) for i in range(n) for name in DENSE]
    made = make_lora.make(tensors, [m for m in modules if make_lora.shape_of(tensors, m)], exponent=0x3e)
    make_lora.write(tmp_path / 'a', made)
    options = ('-m', demo, '--temp', 0, '-n', 24, '--print-ids', 'What is 12 plus 30?')
    lora = ('--lora', '%s:0.5' % (tmp_path / 'a'))      # the toy then says another thing
    plain, adapted = answer(*options), answer(*lora, *options)
    assert adapted != plain
    assert answer(*lora, '--draft', demo / 'assistant', '--draft-tokens', 3, *options) == adapted


def test_pictures_and_requests(tmp_path):
    """A text adapter beside a vision tower; requests one after the other, with a prefix in the cache."""
    model = IMAGES / 'seeing'
    tensors = read_checkpoint(model)
    made = make_lora.make(tensors, ['layers.%d.%s' % (i, name) for i in (0, 1) for name in DENSE if make_lora.shape_of(
        tensors, 'layers.%d.%s' % (i, name))], exponent=0x3e)
    path, merged = make_lora.write(tmp_path / 'a', made), make_lora.merge(model, tmp_path / 'merged', [(made, 2)])
    adapted = ('-m', model, '--lora', path)
    look = ('--exact', '--temp', 0, '-n', 8, '--image-tokens', 70, '-i', IMAGES / 'rgb.png', '--print-ids', 'What?')
    assert ids_of(*adapted, *look) == ids_of('-m', merged, *look) != ids_of('-m', model, *look)
    requests = ''.join(json.dumps({'messages': [{'role': 'user', 'content': text}], 'max_tokens': 8}) + '\n' for text in ('a b', 'a b c', 'd'))
    options = ('--jsonl', '--exact', '--temp', 0)

    def contents(*which):
        lines = answer(*which, *options, stdin=requests).splitlines()
        return [json.loads(line)['choices'][0]['message']['content'] for line in lines]
    assert contents(*adapted) == contents('-m', merged) != contents('-m', model)


# ---------------------------------------------------------------------------------------------- on a GPU

@pytest.fixture(scope='module')
def gpu():
    """How a run gets the emulated GPU; gpu(NAME=value): with these variables."""
    if not EMULATED.exists():
        pytest.skip('the emulated GPU is not built')
    return lambda **more: {'program': str(EMULATED), 'env': environment(GEMMA4_DEVICE='cuda', **more)}


@pytest.fixture(scope='module')
def all_formats(tmp_path_factory):
    """all_formats('INT4 (groups of 32)'), or 'mixed', each matrix in another format: a checkpoint, the options of two adapters of
    all of its matrices, and their merged checkpoint."""
    made = {}

    def get(kind):
        if kind in made:
            return made[kind]
        path = tmp_path_factory.mktemp('formats')

        def choose(n, cols):
            able = [k for k in test_formats.ROUND if test_formats.fits(k, cols)]
            if kind == 'mixed':
                return able[n % len(able)]
            return kind if kind in able else 'BF16'
        written = test_formats.make(path, choose) / 'written'
        test_formats.name_integers(path, choose)
        modules = [name[len(test_formats.PREFIX):] for name, _, _ in test_formats.matrices() if name != 'lm_head']
        modules += ['layers.%d.router.proj' % i for i in (0, 1)]
        one = adapter(path / 'one', written, modules, rank=5)
        two = adapter(path / 'two', written, modules[2:], seed=2, dtype='F16')
        options = '--lora', path / 'one', '--lora', '%s:-0.5' % (path / 'two')
        made[kind] = path / 'stored', options, make_lora.merge(written, path / 'merged', [(one, 8 / 5), (two, -1)])
        return made[kind]
    return get


@pytest.mark.parametrize('layout', ['BF16', 'NVFP4', 'INT4 (groups of 32)', 'mixed'])
@pytest.mark.parametrize('options, n', [
    (('--exact',), 40), (('--exact', '--chunk', 2), 9), (('--exact', '--chunk', 1), 9), ((), 40), (('--chunk', 7), 16)], ids=str)
def test_gpu_equals_the_merged_checkpoint(request, gpu, tmp_path, layout, options, n):
    """Prompts in tiles, a few tokens, and one token at a time in a graph."""
    if layout == 'BF16':
        model, path, merged = request.getfixturevalue('odd_merged')
        adapters = '--lora', path
    elif layout == 'NVFP4':
        model, adapters, merged = request.getfixturevalue('dense_merged')
    else:
        model, adapters, merged = request.getfixturevalue('all_formats')(layout)
    got, want = logits(tmp_path, model, *adapters, *options, ids=IDS[:n], **gpu()), logits(tmp_path, merged, '--device', 'plain', ids=IDS[:n])
    assert distance(got, want) < (1e-5 if '--exact' in options else 1e-2)
    assert distance(logits(tmp_path, model, '--device', 'plain', ids=IDS[:n]), want) > 0.05


def test_gpu_experts_of_different_ranks(gpu, tmp_path):
    path = tmp_path / 'a'
    model, merged = FIXTURES / 'odd-bf16', different_ranks(path, tmp_path / 'merged')
    want = logits(tmp_path, merged, '--device', 'plain')
    for options in (('--exact',), ('--exact', '--chunk', 2)):
        assert distance(logits(tmp_path, model, '--lora', path, *options, **gpu()), want) < 1e-5


def test_gpu_answers(gpu, odd_merged):
    """The CPU's tokens: from graphs and without them, with a drafter, with every cache and every head."""
    model, path, _ = odd_merged
    call = ('-m', model, '-p', 'hello', '--exact', '--temp', 0, '-n', 12, '--ignore-eos', '--print-ids')
    want = ids_of(*call, '--lora', path)
    assert want != ids_of(*call)
    call += '--lora', path
    assert ids_of(*call, **gpu()) == want
    for name, value in (('GEMMA4_CUDA', 'no-graph'), ('GEMMA4_CUDA', 'sync'), ('GEMMA4_HEAD', 'screened')):
        assert ids_of(*call, **gpu(**{name: value})) == want
    assert ids_of(*call, '--draft', ROOT / 'tests/fixtures/odd-assistant', '--draft-tokens', 3, **gpu()) == want
    for cache in ('bf16', 'fp8'):
        assert ids_of(*call, '--kv', cache, **gpu()) == ids_of(*call, '--kv', cache)


def test_gpu_chunks_are_close(gpu, dense_merged, tmp_path):
    """One token is computed with exact activations, also in a model with adapters."""
    model, adapters, merged = dense_merged
    want = logits(tmp_path, merged, '--device', 'plain', ids=IDS[:6])
    assert distance(logits(tmp_path, model, *adapters, '--chunk', 1, ids=IDS[:6], **gpu()), want) < 1e-5


def test_gpu_memory(gpu, odd_merged):
    """info counts the adapters among the weights: float32, whatever the file has."""
    model, path, _ = odd_merged

    def weights(*options):
        return json.loads(answer('info', '--json', '-m', model, *options, **gpu()))['gpu']['weights']
    numbers = (path / 'adapter_model.safetensors').stat().st_size // 2
    more = weights('--lora', path) - weights()
    assert 3.5 * numbers < more < 6 * numbers
    assert weights('--lora', path, '--lora', path) - weights('--lora', path) > 3.5 * numbers


@pytest.mark.parametrize('chunk', [40, 17, 3, 1])
def test_gpu_experts_in_slots(gpu, odd_merged, tmp_path, chunk):
    """Of a layer's five experts the GPU has two, the CPU the others, each with its adapters. 40 tokens fetch those without a slot."""
    model, path, merged = odd_merged
    split = ('--cpu-experts', 3, '--expert-slots', 2, '--exact', '--chunk', chunk, '--quiet')
    ids = IDS if chunk > 3 else IDS[:12]
    want = logits(tmp_path, merged, '--device', 'plain', ids=ids)
    assert json.loads(answer('info', '--json', '-m', model, '--lora', path, *split, **gpu()))['gpu']['expert_slots'] == 2
    assert distance(logits(tmp_path, model, '--lora', path, *split, ids=ids, **gpu()), want) < 1e-5


def test_gpu_saved_caches(gpu, chat, odd_merged, tmp_path):
    model, path, _ = odd_merged
    options = ('--temp', 0, '-n', 5)
    how = {'program': str(EMULATED), 'env': {'GEMMA4_DEVICE': 'cuda'}}
    c = chat(model, *options, '--lora', path, **how)
    c.say('What?')
    c.say('/save %s' % (tmp_path / 'a'))
    assert chat(model, *options, '--lora', path, **how).say('/load %s' % (tmp_path / 'a')) == '(2 messages from %s)' % (tmp_path / 'a')
    said = chat(model, *options, **how).say('/load %s' % (tmp_path / 'a'))
    assert 'of a run with other adapters (--lora): %s; this run\'s: none' % path in ' '.join(said.split())


# ---------------------------------------------------------------------------------------------- what names it

def test_info_and_stats(odd_merged):
    model, path, _ = odd_merged
    name = '%s:0.5' % path
    text = answer('info', '-m', model, '--lora', name, '--lora', path)
    line = 'adapter      %%s: rank 4, %d matrices, scale %%s, trained on google/gemma-4-26B-A4B-it\n' % len(BF16)
    assert line % (name, 0.5) + line % (path, 1) in text
    got = json.loads(answer('info', '--json', '-m', model, '--lora', name))
    assert got['adapters'] == [{'name': name, 'scale': 0.5, 'rank': 4, 'matrices': len(BF16), 'base': 'google/gemma-4-26B-A4B-it'}]
    less = json.loads(answer('info', '--json', '-m', model))
    assert 'adapters' not in less and less['bytes_per_token'] < got['bytes_per_token']
    said = run('-m', model, '--lora', name, '--lora', path, '--stats', '-n', 1, 'x').stderr.decode()
    assert '; adapters: %s, %s\n' % (name, path) in said
    assert 'adapters' not in run('-m', model, '--stats', '-n', 1, 'x').stderr.decode()


def test_saved_caches(chat, odd_merged, tmp_path):
    """A cache is read again by a run with the same adapters alone: the same matrices, the same scale."""
    model, path, _ = odd_merged
    options = ('--temp', 0, '-n', 5)
    half = ('--lora', '%s:0.5' % path)
    c = chat(model, *options, *half)
    c.say('What?')
    c.say('/save %s' % (tmp_path / 'a'))

    def load(*adapters):
        return chat(model, *options, *adapters).say('/load %s' % (tmp_path / 'a'))
    assert load(*half) == '(2 messages from %s)' % (tmp_path / 'a')
    said = 'of a run with other adapters (--lora): %s; this run\'s: %%s' % half[1]
    for adapters, mine in (((), 'none'), (('--lora', path), path), (half * 2, '%s, %s' % (half[1], half[1]))):
        assert said % mine in ' '.join(load(*adapters).split())
    shutil.copytree(path, tmp_path / 'moved')
    assert load('--lora', '%s:0.5' % (tmp_path / 'moved')) == '(2 messages from %s)' % (tmp_path / 'a')
    adapter(tmp_path / 'moved', model, BF16, seed=3)
    assert 'other adapters' in load('--lora', '%s:0.5' % (tmp_path / 'moved'))


# ---------------------------------------------------------------------------------------------- what is refused

CONFIG = {
    'peft_type': ({'peft_type': 'IA3'}, 'peft_type "IA3" is not supported'),
    'no peft_type': ({'peft_type': 'absent'}, 'peft_type is missing'),
    'bias': ({'bias': 'all'}, 'bias "all" is not supported'),
    'no r': ({'r': 'absent'}, 'r is missing'),
    'r': ({'r': 0}, 'r is 0, must be 1 to 4096'),
    'r of another adapter': ({'r': 5}, 'shape is [4, 176], must be [5, 176]'),
    'no lora_alpha': ({'lora_alpha': 'absent'}, 'lora_alpha is missing'),
    'lora_alpha': ({'lora_alpha': '8'}, 'lora_alpha is not a number'),
    'use_rslora': ({'use_rslora': 1}, 'use_rslora is not true or false'),
    'pissa': ({'init_lora_weights': 'pissa_niter_4'}, 'init_lora_weights "pissa_niter_4" is not supported'),
    'layers': ({'layers_to_transform': [0, 2]}, 'layers.1.self_attn.q_proj.lora_A.weight: its layer is not in layers_to_transform'),
    'one layer': ({'layers_to_transform': 1}, 'layers.0.self_attn.q_proj.lora_A.weight: its layer is not in layers_to_transform'),
    'no layers': ({'layers_to_transform': ['x']}, 'layers_to_transform is no list of numbers'),
    'excluded': ({'exclude_modules': ['x', 'attn.q_proj', 'q_proj']}, 'q_proj.lora_A.weight: its module is in exclude_modules'),
    'excluded by expression': ({'exclude_modules': r'.*\.1\..*q_proj'}, 'layers.1.self_attn.q_proj.lora_A.weight: its module is in exclude_modules'),
    'exclusion not supported': ({'exclude_modules': '(?<!x)y'}, 'exclude_modules "(?<!x)y": this expression is not supported'),
    'no target': ({'target_modules': ['k_proj', 'proj', 'layers.0.self_attn.q_proj']},
                  'layers.1.self_attn.q_proj.lora_A.weight: its module is not in target_modules of adapter_config.json'),
    'no target of an expression': ({'target_modules': r'.*\.[kv]_proj'}, 'q_proj.lora_A.weight: its module is not in target_modules'),
    'targets of no list': ({'target_modules': 1}, 'target_modules is not a list'),
    'rank expression': ({'rank_pattern': {'.*q_proj': 4}}, 'rank_pattern..*q_proj: this expression is not supported'),
    'alpha expression': ({'alpha_pattern': {r'\d': 4}}, r'alpha_pattern.\d: this expression is not supported'),
    'rank': ({'rank_pattern': {'q_proj': 2.5}}, 'rank_pattern: 2.5 is no rank'),
    'rank 0': ({'rank_pattern': {'q_proj': 0}}, 'rank_pattern: 0 is no rank'),
    'alpha': ({'alpha_pattern': {'q_proj': 'x'}}, 'alpha_pattern.q_proj is not a number'),
}
for name, value in {'use_dora': True, 'fan_in_fan_out': True, 'modules_to_save': ['lm_head'], 'megatron_config': {'a': 1},
                    'layer_replication': [[0, 2]], 'trainable_token_indices': [1], 'lora_bias': True, 'use_qalora': True,
                    'loftq_config': {'loftq_bits': 4}, 'alora_invocation_tokens': [5], 'corda_config': {'a': 1}, 'arrow_config': {'a': 1},
                    'use_bdlora': {'a': 1}, 'kasa_config': {'a': 1}, 'what_comes_next': 2}.items():
    CONFIG[name] = ({name: value}, name + ' is not supported')
Q = 'base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_'
LAYER = Q[:Q.index('self_attn')]


def moved(name, to=None, shape=(4, 176)):
    """Another name for what the adapter has as Q, and for its lora_B."""
    pair = {Q + 'A.weight': None, Q + 'B.weight': None}
    for letter in 'AB':
        pair[name.replace('lora_A', 'lora_' + letter)] = ('BF16', list(shape), bytes(2 * shape[0] * shape[1]))
    return pair


def zeros(*shape, dtype='BF16'):
    return dtype, list(shape), bytes({'BF16': 2, 'F16': 2, 'F32': 4, 'U8': 1, 'F8_E4M3': 1, 'I32': 4}[dtype] * math.prod(shape))


TENSORS = {
    'no lora_B': ({Q + 'B.weight': None}, 'tensor %sB.weight is missing' % Q),
    'no lora_A': ({Q + 'A.weight': None}, 'tensor %sB.weight: its lora_A is missing' % Q),
    'columns': ({Q + 'A.weight': zeros(4, 175)}, 'tensor %sA.weight: shape is [4, 175], must be [4, 176]' % Q),
    'rows': ({Q + 'B.weight': zeros(191, 4)}, 'tensor %sB.weight: shape is [191, 4], must be [192, 4]' % Q),
    'rank of B': ({Q + 'B.weight': zeros(192, 3)}, 'tensor %sB.weight: shape is [192, 3], must be [192, 4]' % Q),
    'transposed': ({Q + 'A.weight': zeros(176, 4)}, 'shape is [176, 4], must be [4, 176]'),
    'empty': ({Q + 'A.weight': zeros(0)}, 'shape is [0], must be [4, 176]'),
    'three dimensions': ({Q + 'A.weight': zeros(1, 4, 176)}, 'shape is [1, 4, 176], must be [4, 176]'),
    'dtype': ({Q + 'A.weight': zeros(4, 176, dtype='F8_E4M3')}, 'dtype is F8_E4M3, must be BF16, F16 or F32'),
    'NaN': ({Q + 'A.weight': ('BF16', [4, 176], bytes(8) + b'\xc0\x7f' + bytes(1398))}, 'tensor %sA.weight: a number of it is NaN' % Q),
    'infinite': ({Q + 'B.weight': ('F32', [192, 4], bytes(3068) + b'\0\0\x80\xff')}, 'tensor %sB.weight: a number of it is NaN or inf' % Q),
    'dtype of B': ({Q + 'B.weight': zeros(192, 4, dtype='I32')}, 'dtype is I32, must be BF16, F16 or F32'),
    'vision': (moved('base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.lora_A.weight'),
               'adapters of the vision tower are not supported'),
    'projection': (moved('base_model.model.model.embed_vision.embedding_projection.lora_A.weight'), 'vision tower are not supported'),
    'audio': (moved('base_model.model.model.audio_tower.layers.0.x.lora_A.weight'), 'audio tower are not supported'),
    'embedding': ({'base_model.model.model.language_model.embed_tokens.lora_embedding_A': zeros(4, 5)}, 'of the embedding are not'),
    'head': (moved('base_model.model.lm_head.lora_A.weight'), 'adapters of the head are not supported'),
    'dora': ({Q + 'magnitude_vector.weight': zeros(192)}, 'DoRA is not supported'),
    'bias': ({Q + 'B.bias': zeros(192)}, 'biases are not supported'),
    'saved module': ({'base_model.model.lm_head.modules_to_save.weight': zeros(2, 2)}, 'of the head are not supported'),
    'fused experts': (moved(LAYER + 'experts.lora_A.weight'), 'adapters of fused experts are not supported: peft and unsloth'),
    'fused experts, nested': (moved(LAYER + 'experts.base_layer.lora_A.weight'), 'adapters of fused experts are not supported'),
    'fused experts, by name': (moved(LAYER + 'experts.gate_up_proj.lora_A.weight'), 'adapters of fused experts are not supported'),
    'expert beyond the last': (moved(LAYER + 'experts.5.up_proj.lora_A.weight'), 'no part of this model uses it'),
    'layer beyond the last': (moved(LAYER.replace('.0.', '.3.') + 'mlp.up_proj.lora_A.weight'), 'no part of this model uses it'),
    'layer of no number': (moved(LAYER.replace('.0.', '.x.') + 'mlp.up_proj.lora_A.weight'), 'no part of this model uses it'),
    'layer of a long number': (moved(LAYER.replace('.0.', '.%s.' % ('0' * 20 + '9' * 30)) + 'mlp.up_proj.lora_A.weight'), 'no part of this'),
    'unknown module': (moved(LAYER + 'mlp.middle_proj.lora_A.weight'), 'no part of this model uses it'),
    'norm': ({LAYER + 'input_layernorm.weight': zeros(176)}, 'no part of this model uses it'),
    'no module': (moved('base_model.model.lora_A.weight'), 'no part of this model uses it'),
    'no v_proj': (moved(LAYER.replace('.0.', '.2.') + 'self_attn.v_proj.lora_A.weight'), 'this layer has no such matrix'),
    'another name of the adapter': (moved(Q + 'A.other.weight'), 'no part of this model uses it'),
    'twice': ({Q + 'A.default.weight': zeros(4, 176), Q + 'B.default.weight': zeros(192, 4)}, 'is there under two names'),
    'nothing': ({LAYER.replace('.0.', '.%d.' % i) + 'self_attn.q_proj.lora_%s.weight' % letter: None for i in (0, 1) for letter in 'AB'},
                'no tensors'),
}
MODULES = ['layers.%d.self_attn.q_proj' % i for i in (0, 1)]


@pytest.mark.parametrize('name', CONFIG)
def test_bad_config(odd, tmp_path, name):
    changes, said = CONFIG[name]
    adapter(tmp_path, odd, MODULES, **({} if 'r' in changes else {'r': 4}), **changes)
    got = complaint(1, '-m', odd, '--lora', tmp_path, 'x')
    assert said in got and ('adapter_config.json: ' in got or 'adapter_model.safetensors: tensor ' in got)


@pytest.mark.parametrize('name', TENSORS)
def test_bad_tensors(odd, tmp_path, name):
    changes, said = TENSORS[name]
    adapter(tmp_path, odd, MODULES, more=changes)
    got = complaint(1, '-m', odd, '--lora', tmp_path, 'x')
    assert said in got and str(tmp_path / 'adapter_model.safetensors') in got


def test_harmless_fields(odd, tmp_path):
    """What says nothing of the trained adapter, and what the tensors agree with."""
    adapter(tmp_path / 'a', odd, MODULES)
    adapter(tmp_path / 'b', odd, MODULES, layers_to_transform=[1, 0], exclude_modules=['k_proj', 'vision_tower', 'j_proj', ''],
            init_lora_weights='gaussian', target_modules='all-linear', target_parameters=[], auto_mapping={'unsloth_fixed': True},
            peft_version='0.20.0', eva_config={'rho': 2}, runtime_config={'ephemeral_gpu_offload': False}, ensure_weight_tying=False)
    want = logits(tmp_path, odd, '--lora', tmp_path / 'a')
    assert logits(tmp_path, odd, '--lora', tmp_path / 'b') == want
    # As full names, by unsloth's expression, by one that is not supported, and without the field.
    unsloth = (r'(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|o_proj).*?)|'
               r'(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:k_proj|v_proj|q_proj|o_proj)))')
    for targets in ['model.language_model.' + m for m in MODULES], unsloth, r'.*(?<!x)k_proj', 'absent':
        adapter(tmp_path / 'b', odd, MODULES, target_modules=targets, exclude_modules='.*vision.*')
        assert logits(tmp_path, odd, '--lora', tmp_path / 'b') == want


def test_what_is_no_adapter(odd, tmp_path):
    adapter(tmp_path / 'a', odd, MODULES)
    assert 'is a LoRA adapter, not a checkpoint: give it beside its model, -m BASE --lora ' in complaint(1, '-m', tmp_path / 'a', 'x')
    assert 'adapter_config.json' in complaint(1, '-m', odd, '--lora', odd, 'x')
    (tmp_path / 'a/adapter_model.safetensors').rename(tmp_path / 'a/adapter_model.bin')
    assert 'adapter_model.bin: is no safetensors' in complaint(1, '-m', odd, '--lora', tmp_path / 'a', 'x')
    (tmp_path / 'a/adapter_model.bin').unlink()
    assert 'adapter_model.safetensors' in complaint(1, '-m', odd, '--lora', tmp_path / 'a', 'x')
    for command in ('tokenize', 'render', 'parse', 'check'):
        more = ('--tools', '[]') if command == 'check' else ()
        assert '--lora: %s runs no model' % command in complaint(2, command, *more, '-m', odd, '--lora', tmp_path / 'a')
