"""Every format of a weight, beside the same model with the numbers written out as float32: the logits must be the same to the
bit. The checkpoints are made here, by a reading of the formats that knows nothing of the program. And what is wrong with such a
checkpoint is said in one line."""
import json
import math
import random
import re
import shutil
import struct
from array import array

import pytest

import dialect
from conftest import (EMULATED, FIXTURES, KERNELS, REFERENCE, answer, complaint, environment, ids_of,
                      read_floats, read_json, run, write_ids, write_json)

HIDDEN, MLP, EXPERT, VOCAB = 256, 160, 64, 519     # 160: no multiple of 128; 64: too small for a group of 128
PREFIX = 'model.language_model.'
IDS = [2, *range(40, 70), 300, 511]


# ------------------------------------------------------------------------------------------- one matrix in one format

def single(x):
    """The float32 next to x."""
    return struct.unpack('<f', struct.pack('<f', x))[0]


def e4m3(code):
    exponent, mantissa = code >> 3 & 15, code & 7
    value = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0 ** -9
    return -value if code & 128 else value


def floats(values, dtype):
    """Stored numbers, and what they are when they are read again."""
    if dtype == 'BF16':
        data = b''.join(struct.pack('<f', x)[2:] for x in values)
        return data, [struct.unpack('<f', b'\0\0' + data[i:i + 2])[0] for i in range(0, len(data), 2)]
    code = '<%d%s' % (len(values), {'F16': 'e', 'F32': 'f'}[dtype])
    data = struct.pack(code, *values)
    return data, list(struct.unpack(code, data))


def scales(rng, n, typical, dtype):
    return floats([typical * rng.uniform(0.5, 2) for _ in range(n)], dtype)


def ordinary(dtype):
    def make(rng, rows, cols):
        data, w = floats([rng.gauss(0, cols ** -0.5) for _ in range(rows * cols)], dtype)
        return {'weight': (dtype, [rows, cols], data)}, w
    return make


def fp8(share, dtype, one=()):
    """share: what has a scale, 'row', 'block' or 'matrix'; `one` is the shape of the latter's."""
    def make(rng, rows, cols):
        size = {'row': (1, cols), 'block': (128, 128), 'matrix': (rows, cols)}[share]
        down, across = (math.ceil(n / s) for n, s in zip((rows, cols), size))
        codes = bytes(rng.randrange(256) & 0xf7 for _ in range(rows * cols))        # no NaN among them
        data, scale = scales(rng, down * across, cols ** -0.5 / 100, dtype)
        table = [e4m3(code) for code in range(256)]
        w = [single(table[codes[r * cols + c]] * scale[r // size[0] * across + c // size[1]])
             for r in range(rows) for c in range(cols)]
        shape = list(one) if share == 'matrix' else [down, across]
        return {'weight': ('F8_E4M3', [rows, cols], codes), 'weight_scale': (dtype, shape, data)}, w
    return make


def integers(bits, group, dtype='BF16', zeros=False, shape='I64'):
    def make(rng, rows, cols):
        across, middle = cols // group, 1 << bits - 1
        stored = [rng.randrange(1 << bits) for _ in range(rows * cols)]
        zero = [[rng.randrange(16) if zeros else middle for _ in range(across)] for _ in range(rows)]
        data, scale = scales(rng, rows * across, cols ** -0.5 / middle, dtype)
        w = [single((stored[r * cols + c] - zero[r][c // group]) * scale[r * across + c // group])
             for r in range(rows) for c in range(cols)]
        packed = bytes(stored)
        if bits == 4:
            packed = bytes(low | high << 4 for low, high in zip(stored[::2], stored[1::2]))
        tensors = {'weight_packed': ('I32', [rows, cols * bits // 32], packed),
                   'weight_scale': (dtype, [rows, across], data),
                   'weight_shape': (shape, [2], struct.pack('<2q' if shape == 'I64' else '<2i', rows, cols))}
        if zeros:
            words = [0] * (math.ceil(rows / 8) * across)
            for r in range(rows):
                for g in range(across):
                    words[r // 8 * across + g] |= zero[r][g] << 4 * (r % 8)
            tensors['weight_zero_point'] = ('I32', [math.ceil(rows / 8), across], struct.pack('<%dI' % len(words), *words))
        return tensors, w
    return make


FORMATS = {
    'BF16': ordinary('BF16'), 'F16': ordinary('F16'),
    'FP8 (rows)': fp8('row', 'BF16'), 'FP8 (rows) F32': fp8('row', 'F32'), 'FP8 (rows) F16': fp8('row', 'F16'),
    'FP8 (blocks of 128)': fp8('block', 'BF16'), 'FP8 (blocks of 128) F32': fp8('block', 'F32'),
    'FP8 (one scale)': fp8('matrix', 'F32'), 'FP8 (one scale) BF16': fp8('matrix', 'BF16', [1]),
    'INT4 (groups of 32)': integers(4, 32), 'INT4 (groups of 64)': integers(4, 64, 'F16', shape='I32'), 'INT4 (groups of 128)': integers(4, 128, 'F32'),
    'INT4 (groups of 32, zero points)': integers(4, 32, zeros=True), 'INT4 (groups of 64, zero points)': integers(4, 64, 'F32', True),
    'INT4 (groups of 128, zero points)': integers(4, 128, 'F16', True),
    'INT8 (groups of 32)': integers(8, 32), 'INT8 (groups of 64)': integers(8, 64, 'F32'), 'INT8 (groups of 128)': integers(8, 128, 'F16', shape='I32'),
}
ROUND = sorted(FORMATS)                 # each matrix in another one


def fits(kind, cols):
    group = int(re.findall(r'\d+', kind)[1]) if kind.startswith('INT') else 1
    return cols % group == 0


# ------------------------------------------------------------------------------------------------- a whole checkpoint

def matrices():
    """(name, rows, cols) of all that may be quantised."""
    yield 'lm_head', VOCAB, HIDDEN
    for i, head in enumerate((32, 64)):
        layer = PREFIX + 'layers.%d.' % i
        yield layer + 'self_attn.q_proj', 2 * head, HIDDEN
        yield layer + 'self_attn.k_proj', head, HIDDEN
        if i == 0:
            yield layer + 'self_attn.v_proj', head, HIDDEN
        yield layer + 'self_attn.o_proj', HIDDEN, 2 * head
        for part, expert, inner in ('mlp.', 0, MLP), ('experts.0.', 1, EXPERT), ('experts.1.', 1, EXPERT):
            yield layer + part + 'gate_proj', inner, HIDDEN
            yield layer + part + 'up_proj', inner, HIDDEN
            yield layer + part + 'down_proj', HIDDEN, inner


def vectors():
    yield PREFIX + 'norm.weight', [HIDDEN]
    for i, head in enumerate((32, 64)):
        layer = PREFIX + 'layers.%d.' % i
        for name in ('input_layernorm', 'post_attention_layernorm', 'pre_feedforward_layernorm', 'pre_feedforward_layernorm_2',
                     'post_feedforward_layernorm', 'post_feedforward_layernorm_1', 'post_feedforward_layernorm_2'):
            yield layer + name + '.weight', [HIDDEN]
        yield layer + 'self_attn.q_norm.weight', [head]
        yield layer + 'self_attn.k_norm.weight', [head]
        yield layer + 'router.scale', [HIDDEN]
        yield layer + 'router.per_expert_scale', [2]
        yield layer + 'router.proj.weight', [2, HIDDEN]
        yield layer + 'layer_scalar', [1]
    yield PREFIX + 'embed_tokens.weight', [VOCAB, HIDDEN]


def write_config(path):
    shutil.copytree(FIXTURES / 'odd-bf16', path, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns('*.safetensors'))
    config = read_json(path / 'config.json')
    del config['vision_config']
    config['text_config'].update(
        hidden_size=HIDDEN, num_hidden_layers=2, layer_types=['sliding_attention', 'full_attention'], head_dim=32,
        global_head_dim=64, num_attention_heads=2, num_key_value_heads=1, num_global_key_value_heads=1, intermediate_size=MLP,
        enable_moe_block=True, num_experts=2, top_k_experts=2, moe_intermediate_size=EXPERT, vocab_size=VOCAB,
        tie_word_embeddings=False)
    write_json(path / 'config.json', config)


def scheme(*groups):
    """A quantization_config of these (symmetric, group_size, targets) of INT4."""
    weights = {'num_bits': 4, 'type': 'int'}
    return {'quant_method': 'compressed-tensors', 'config_groups': {
        'group_%d' % i: {'targets': targets, 'weights': dict(weights, symmetric=symmetric, group_size=size)}
        for i, (symmetric, size, targets) in enumerate(groups)}}


def make(path, choose, dtype='BF16', written_out='F32'):
    """Two checkpoints, path/stored and path/written. choose(n, cols): the format of matrix number n; dtype: of the rest."""
    rng, stored, written = random.Random(7), {}, {}
    for name, shape in vectors():
        n = math.prod(shape)
        values = [rng.gauss(0, HIDDEN ** -0.5) if len(shape) > 1 else rng.uniform(0.5, 1.2) for _ in range(n)]
        data, values = floats(values, dtype)
        stored[name] = (dtype, shape, data)
        written[name] = (written_out, shape, floats(values, written_out)[0])
    for n, (name, rows, cols) in enumerate(matrices()):
        tensors, values = FORMATS[choose(n, cols)](rng, rows, cols)
        stored.update({name + '.' + leaf: t for leaf, t in tensors.items()})
        written[name + '.weight'] = (written_out, [rows, cols], floats(values, written_out)[0])
    for kind, tensors in ('stored', stored), ('written', written):
        write_config(path / kind)
        dialect.write_safetensors(path / kind / 'model.safetensors', tensors)
    return path


def name_integers(path, choose):
    """Writes into the configuration of path/stored which matrices are of integers, and how, and that others are FP8 and NVFP4."""
    groups = {}
    for n, (name, _, cols) in enumerate(matrices()):
        if choose(n, cols).startswith('INT'):
            groups.setdefault(choose(n, cols), []).append(name)
    config = read_json(path / 'stored' / 'config.json')
    config['quantization_config'] = scheme(*[('zero' not in kind, int(re.findall(r'\d+', kind)[1]), names) for kind, names in groups.items()])
    for kind, group in zip(groups, config['quantization_config']['config_groups'].values()):
        group['weights']['num_bits'] = int(kind[3])
    for bits in 4, 8:
        config['quantization_config']['config_groups']['floats_%d' % bits] = {'weights': {'num_bits': bits, 'type': 'float'}}
    write_json(path / 'stored' / 'config.json', config)


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    """A checkpoint in which each matrix has another format, and the vectors are F16. Its configuration names those of integers."""
    def choose(n, cols):
        able = [kind for kind in ROUND if fits(kind, cols)]
        return able[n % len(able)]
    path = make(tmp_path_factory.mktemp('formats') / 'mixed', choose, 'F16')
    name_integers(path, choose)
    return path


def logits(tmp_path, model, *options, cpu=None):
    ids = write_ids(tmp_path / 'ids', IDS)
    env = environment(**({'GEMMA4_CPU': cpu} if cpu else {}))
    answer('score', '-m', model, '--ids', ids, '--logits', tmp_path / 'logits', *options, env=env)
    return read_floats(tmp_path / 'logits')


def spread(got, want):
    assert len(got) == len(want)
    return max(abs(a - b) for a, b in zip(got, want)) / (max(want) - min(want))


def same(got, want):
    assert all(map(math.isfinite, want)) and max(want) - min(want) > 1
    return got == want


@pytest.mark.parametrize('kind', [kind for kind in ROUND if kind != 'BF16'])
def test_format(tmp_path, kind):
    """Of all matrices that it fits. BF16, what the others have, meets float32 activations with --exact."""
    make(tmp_path / 'm', lambda n, cols: kind if fits(kind, cols) else 'BF16')
    stored, written = tmp_path / 'm' / 'stored', tmp_path / 'm' / 'written'
    assert same(logits(tmp_path, stored, '--device', 'plain'), logits(tmp_path, written, '--device', 'plain'))
    assert same(logits(tmp_path, stored, '--exact'), logits(tmp_path, written, '--exact'))
    told = json.loads(answer('info', '-m', stored, '--json'))
    assert re.sub(r' F\d+$| BF16$', '', kind) in told['layouts']['attention'] + ' ' + told['layouts']['embedding']


@pytest.mark.parametrize('cpu', KERNELS)
def test_mixed(tmp_path, mixed, cpu):
    """By every set of kernels, exactly and, with rounded activations, nearly; whatever the chunk and the threads."""
    want = logits(tmp_path, mixed / 'written', '--device', 'plain', '--exact')
    exact = logits(tmp_path, mixed / 'stored', '--exact', cpu=cpu)
    assert same(exact, logits(tmp_path, mixed / 'written', '--exact', cpu=cpu))
    for chunk in 1, 2, 3, 5:
        assert same(exact, logits(tmp_path, mixed / 'stored', '--exact', '--chunk', chunk, '-t', 3, cpu=cpu))
    assert spread(exact, want) < 1e-5
    assert spread(logits(tmp_path, mixed / 'stored', '--kv', 'f32', cpu=cpu), want) < 4e-4


def test_head(tmp_path, mixed):
    """The answers, whose tokens the head's int8 copy helps to find where it is BF16, are those of plain.c."""
    ids = write_ids(tmp_path / 'ids', IDS)
    call = ('-m', mixed / 'stored', '--ids', ids, '-n', 40, '--temp', 0, '--ignore-eos', '--print-ids', '--exact')
    assert ids_of(*call) == ids_of(*call, '--device', 'plain')


# ------------------------------------------------------------------------------------------------------ what is wrong

Q = PREFIX + 'layers.0.self_attn.q_proj.'


@pytest.fixture(scope='module')
def quantised(tmp_path_factory):
    """quantised('INT4 (groups of 32)'): a checkpoint whose matrices have that format where it fits."""
    made = {}

    def get(kind):
        if kind not in made:
            path = tmp_path_factory.mktemp('quantised') / 'm'
            made[kind] = make(path, lambda n, cols: kind if fits(kind, cols) else 'BF16') / 'stored'
        return made[kind]
    return get


def shaped(leaf, shape):
    return lambda t: t.update({Q + leaf: (t[Q + leaf][0], shape, t[Q + leaf][2])})


def replaced(leaf, dtype, shape, data):
    return lambda t: t.update({Q + leaf: (dtype, shape, data)})


def removed(leaf):
    return lambda t: t.pop(Q + leaf)


def first(leaf, data):
    return lambda t: t.update({Q + leaf: (*t[Q + leaf][:2], data + t[Q + leaf][2][len(data):])})


WRONG = [
    ('INT4 (groups of 32)', 'groups of 16', replaced('weight_scale', 'BF16', [64, 16], bytes(2048)), ['weight_scale', 'groups of 32']),
    ('INT4 (groups of 32)', 'a scale for a row', replaced('weight_scale', 'BF16', [64, 1], bytes(128)), ['weight_scale', 'groups of 32']),
    ('INT4 (groups of 32)', 'groups that do not divide', replaced('weight_scale', 'BF16', [64, 7], bytes(896)), ['weight_scale']),
    ('INT4 (groups of 32)', 'flat scales', shaped('weight_scale', [512]), ['weight_scale', 'groups']),
    ('INT4 (groups of 32)', 'scales of too few rows', replaced('weight_scale', 'BF16', [32, 8], bytes(512)), ['weight_scale', 'shape']),
    ('INT4 (groups of 32)', 'no scales', removed('weight_scale'), ['weight_scale', 'missing']),
    ('INT4 (groups of 32)', 'no shape', removed('weight_shape'), ['weight_shape', 'missing']),
    ('INT4 (groups of 32)', 'another shape', first('weight_shape', struct.pack('<q', 63)), ['weight_shape', '63']),
    ('INT4 (groups of 32)', 'a shape that is large', first('weight_shape', struct.pack('<q', 64 + (1 << 32))), ['weight_shape']),
    ('INT4 (groups of 32)', 'a shape of floats', replaced('weight_shape', 'F32', [2], bytes(8)), ['weight_shape', 'dtype']),
    ('INT4 (groups of 32)', 'scales of integers', replaced('weight_scale', 'I32', [64, 8], bytes(2048)), ['weight_scale', 'dtype']),
    ('INT4 (groups of 32)', 'activation order', replaced('weight_g_idx', 'I32', [256], bytes(1024)), ['weight_g_idx']),
    ('INT4 (groups of 32)', '3 bits', replaced('weight_packed', 'I32', [64, 24], bytes(6144)), ['weight_packed', 'shape']),
    ('INT4 (groups of 32)', 'not packed', lambda t: t.update({Q + 'weight': t.pop(Q + 'weight_packed')}), ['q_proj.weight:', 'dtype']),
    ('INT4 (groups of 32)', 'a scale that is NaN', first('weight_scale', b'\xff\xff'), ['weight_scale', 'NaN']),
    ('INT4 (groups of 32)', 'a scale that is infinite', first('weight_scale', b'\x80\x7f'), ['weight_scale', 'infinite']),
    ('INT4 (groups of 32)', 'a scale that is negative', first('weight_scale', b'\x80\xbf'), ['weight_scale', 'negative']),
    ('INT4 (groups of 32)', 'two layouts', replaced('weight', 'BF16', [64, 256], bytes(32768)), ['q_proj.weight_']),
    ('INT4 (groups of 32, zero points)', 'zero points in columns', shaped('weight_zero_point', [64, 1]), ['weight_zero_point', 'shape']),
    ('INT4 (groups of 32, zero points)', 'zero points of floats', replaced('weight_zero_point', 'F32', [8, 8], bytes(256)),
     ['weight_zero_point', 'dtype']),
    ('INT8 (groups of 32)', 'zero points of 8 bits', replaced('weight_zero_point', 'I32', [16, 8], bytes(512)), ['weight_zero_point', '8 bits']),
    ('FP8 (rows)', 'flat scales', shaped('weight_scale', [64]), ['weight_scale', 'shape']),
    ('FP8 (rows)', 'scales across', shaped('weight_scale', [1, 64]), ['weight_scale', 'shape']),
    ('FP8 (rows)', 'E4M3 for a scale', replaced('weight_scale', 'F8_E4M3', [64, 1], bytes(64)), ['weight_scale', 'dtype']),
    ('FP8 (rows)', 'no scales', removed('weight_scale'), ['weight_scale', 'missing']),
    ('FP8 (rows)', "DeepSeek's scales", lambda t: t.update({Q + 'weight_scale_inv': t.pop(Q + 'weight_scale')}), ['weight_scale_inv']),
    ('FP8 (rows)', 'a scale that is NaN', first('weight_scale', b'\xff\x7f'), ['weight_scale', 'NaN']),
    ('FP8 (rows)', 'packed', lambda t: t.update({Q + 'weight_packed': t.pop(Q + 'weight')}), ['weight_packed', 'dtype']),
    ('FP8 (blocks of 128)', 'blocks of 64', replaced('weight_scale', 'BF16', [1, 4], bytes(8)), ['weight_scale', 'shape']),
    ('FP8 (blocks of 128)', 'blocks turned', shaped('weight_scale', [2, 1]), ['weight_scale', 'shape']),
    ('FP8 (one scale)', 'a scale of nothing', shaped('weight_scale', [1, 1]), ['weight_scale', 'shape']),
]


@pytest.mark.parametrize('kind, spoil, words', [(k, s, w) for k, what, s, w in WRONG], ids=['%s, %s' % (k, n) for k, n, s, w in WRONG])
def test_wrong(tmp_path, quantised, kind, spoil, words):
    model = tmp_path / 'spoilt'
    shutil.copytree(quantised(kind), model)
    tensors = dialect.read_checkpoint(model)
    spoil(tensors)
    dialect.write_safetensors(model / 'model.safetensors', tensors)
    line = complaint(1, '-m', model, '-n', 1, 'hello')
    assert [word for word in words if word not in line] == [], line
    assert 'q_proj' in line


def configured(model, quantization, place='quantization_config'):
    """The model with this configuration, which stands at a place like text_config.quantization_config."""
    config = read_json(model / 'config.json')
    at = config['text_config'] if place.startswith('text_config.') else config
    at[place.split('.')[-1]] = quantization
    write_json(model / 'config.json', config)


LINEAR, ATTENTION = ['Linear'], [r're:.*self_attn\.(q|k|v|o)_proj$']
NO_ZEROS = 'self_attn.q_proj.weight_zero_point is missing'


@pytest.mark.parametrize('groups, lost', [
    ([(True, 32, LINEAR)], 0), ([(False, 32, LINEAR)], 1),
    # Groups of one size: their targets decide, a name before a pattern before a class, of one target the last.
    ([(True, 32, LINEAR), (False, 32, ['lm_head'])], 1), ([(False, 32, LINEAR), (True, 32, [r're:.*(proj|lm_head)'])], 0),
    ([(False, 32, LINEAR), (True, 32, LINEAR)], 0), ([(True, 32, LINEAR), (False, 32, LINEAR)], 1),
    ([(True, 32, LINEAR), (False, 32, ATTENTION)], 1), ([(True, 32, LINEAR), (False, 32, ['re:proj', 're:nothing.*'])], 0),
    ([(False, 32, ['re:.*b']), (True, 32, ['re:.*'])], 0), ([(True, 32, ['re:.*_']), (False, 32, ['re:.*'])], 1),
    ([(True, 32, ['re:.*experts.*']), (False, 32, ATTENTION)], 1),
], ids=str)
def test_zero_points_that_are_not_there(tmp_path, quantised, groups, lost):
    """A matrix without them has lost them where the configuration says that it has some."""
    model = tmp_path / 'model'
    shutil.copytree(quantised('INT4 (groups of 32)'), model)
    configured(model, scheme(*groups))
    done = run('-m', model, '-n', 1, '--ignore-eos', '--temp', 0, 'hello')
    assert done.returncode == lost and (not lost or b'weight_zero_point is missing' in done.stderr), done.stderr


@pytest.mark.parametrize('place', ['quantization_config', 'text_config.quantization_config', 'compression_config'])
def test_places_of_the_configuration(tmp_path, quantised, place):
    """Groups say nothing of type: these are integers. The type of the cache stands beside them."""
    model = tmp_path / 'model'
    shutil.copytree(quantised('INT4 (groups of 32)'), model)
    quantization = dict(scheme((False, 32, LINEAR)), kv_cache_scheme={'num_bits': 8, 'type': 'float', 'dynamic': False})
    weights = quantization['config_groups']['group_0']['weights']
    del weights['type']
    configured(model, quantization, place)
    assert 'weight_zero_point is missing' in complaint(1, 'info', '-m', model)
    weights['symmetric'] = True
    configured(model, quantization, place)
    done = run('info', '-m', model)
    assert done.returncode == 0 and b'FP8' in done.stdout and b'no layer has self_attn.k_scale: they count as 1' in done.stderr
    for field, value in ('type', None), ('num_bits', 4), ('strategy', 'attn_head'), ('dynamic', True):
        scheme_ = dict(quantization['kv_cache_scheme'], **{field: value})
        configured(model, dict(quantization, kv_cache_scheme=scheme_), place)
        assert place + '.kv_cache_scheme.' + field in complaint(1, 'info', '-m', model)


def test_a_zero_point_that_nothing_tells_of(tmp_path, quantised):
    """Where the configuration says nothing of integers, or has no target that fits, some matrices with zero points and one without
    are refused."""
    model = tmp_path / 'model'
    shutil.copytree(quantised('INT4 (groups of 32, zero points)'), model)
    assert run('info', '-m', model).returncode == 0
    tensors = dialect.read_checkpoint(model)
    tensors.pop(Q + 'weight_zero_point')
    dialect.write_safetensors(model / 'model.safetensors', tensors)
    for groups in None, scheme((False, 32, ['re:.*mlp']), (True, 32, ['lm_head'])):
        configured(model, groups)
        line = complaint(1, 'info', '-m', model)
        assert NO_ZEROS in line and 'no target in config.json' in line
    configured(model, scheme((False, 32, [r're:(?<!x)q']), (True, 32, LINEAR)))
    assert 'config_groups.group_0.targets: "re:(?<!x)q"' in complaint(1, 'info', '-m', model)


@pytest.mark.parametrize('group, words', [
    (['Linear'], ['config_groups.group_0 is not an object']), ({'weights': {'num_bits': 8, 'symmetric': False, 'group_size': 32}}, ['8 bits']),
    ({'weights': {'num_bits': 4, 'group_size': 32, 'actorder': True}}, ['actorder']),
    ({'weights': {'group_size': 32}}, ['weight_packed: it is INT4']),          # 8 bits, where nothing is said
])
def test_groups_that_are_refused(tmp_path, quantised, group, words):
    model = tmp_path / 'model'
    shutil.copytree(quantised('INT4 (groups of 32)'), model)
    configured(model, {'quant_method': 'compressed-tensors', 'config_groups': {'group_0': group}})
    line = complaint(1, 'info', '-m', model)
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize('field, value', [('group_size', 128), ('group_size', 16), ('num_bits', 8), ('num_bits', 3), ('symmetric', True)])
def test_integers_of_another_kind(tmp_path, quantised, field, value):
    """The configuration and the tensors contradict each other."""
    model = tmp_path / 'model'
    shutil.copytree(quantised('INT4 (groups of 32, zero points)'), model)
    config = read_json(model / 'config.json')
    config['quantization_config'] = scheme((False, 32, LINEAR))
    write_json(model / 'config.json', config)
    assert run('-m', model, '-n', 1, '--temp', 0, 'hello').returncode == 0
    config['quantization_config']['config_groups']['group_0']['weights'][field] = value
    write_json(model / 'config.json', config)
    line = complaint(1, '-m', model, '-n', 1, 'hello')
    what = 'zero points of 8 bits' if value == 8 else 'weight_packed: it is INT4 (groups of 32, zero points)'
    assert what in line and 'config_groups' in line


@pytest.mark.parametrize('field, value, words', [
    ('symmetric', 'no', ['weights.symmetric', 'true or false']), ('type', 'uint', ['weights.type', 'uint']),
    ('type', 'float', ['weight_packed: it is INT4', 'config_groups'])])
def test_integers_that_are_called_otherwise(tmp_path, quantised, field, value, words):
    """Words that are packed alike can be FP4, and `symmetric` decides what a matrix without zero points is."""
    model = tmp_path / 'model'
    shutil.copytree(quantised('INT4 (groups of 32)'), model)
    config = read_json(model / 'config.json')
    config['quantization_config'] = scheme((True, 32, LINEAR))
    config['quantization_config']['config_groups']['group_0']['weights'][field] = value
    if value == 'float':
        del config['quantization_config']['config_groups']['group_0']['weights']['group_size']
    write_json(model / 'config.json', config)
    line = complaint(1, '-m', model, '-n', 1, 'hello')
    assert [word for word in words if word not in line] == []


def test_rotated_weights(tmp_path, quantised):
    model = tmp_path / 'model'
    shutil.copytree(quantised('INT4 (groups of 32)'), model)
    config = read_json(model / 'config.json')
    for groups, status in ({}, 0), ({'R1': {'type': 'hadamard'}}, 1):
        config['quantization_config'] = dict(scheme((True, 32, LINEAR)), transform_config={'config_groups': groups})
        write_json(model / 'config.json', config)
        assert run('-m', model, '-n', 1, '--temp', 0, 'hello').returncode == status


# ------------------------------------------------------------------------------------------------------ names, and 12B

@pytest.mark.parametrize('dtype, shape', [('F32', []), ('BF16', [1]), ('F16', [1])])
def test_scales_of_the_cache(tmp_path, dtype, shape):
    """compressed-tensors' names for what modelopt calls k_proj.k_scale and v_proj.v_scale."""
    want, got = tmp_path / 'modelopt', tmp_path / 'compressed'
    for path in want, got:
        shutil.copytree(FIXTURES / 'odd-experts', path)
    tensors = dialect.read_checkpoint(want)
    for i in range(3):
        for part, value in ('k', 0.0078125 * (i + 1)), ('v', 0.03125 * (i + 1)):
            name = PREFIX + 'layers.%d.self_attn.' % i
            tensors[name + '%s_proj.%s_scale' % (part, part)] = ('F32', [], struct.pack('<f', value))
    dialect.write_safetensors(want / 'model.safetensors', tensors)
    for name in list(tensors):
        if name.endswith(('k_proj.k_scale', 'v_proj.v_scale')):
            value, = struct.unpack('<f', tensors.pop(name)[2])
            short = name.replace('k_proj.', '').replace('v_proj.', '')
            tensors[short] = (dtype, shape, floats([value], dtype)[0])
    dialect.write_safetensors(got / 'model.safetensors', tensors)
    first, second = (logits(tmp_path, model, '--kv', 'fp8', '--exact') for model in (want, got))
    assert same(first, second)
    plain = FIXTURES / 'odd-experts'
    assert logits(tmp_path, plain, '--kv', 'fp8', '--exact') != first


@pytest.mark.parametrize('lost', [['1.self_attn.k'], ['0.self_attn.v'], ['0.self_attn.k', '0.self_attn.v'], ['%d.self_attn.k' % i for i in range(3)]])
def test_scales_of_the_cache_that_are_lost(tmp_path, lost):
    """They would count as 1."""
    shutil.copytree(FIXTURES / 'odd-experts', tmp_path / 'm')
    tensors = {n: t for n, t in dialect.read_checkpoint(tmp_path / 'm').items() if not n.endswith(('k_scale', 'v_scale'))}
    names = ['%d.self_attn.%s' % (i, part) for i in range(3) for part in 'kv']
    tensors.update({PREFIX + 'layers.%s_scale' % name: ('F32', [1], struct.pack('<f', 0.01)) for name in names if name not in lost})
    dialect.write_safetensors(tmp_path / 'm' / 'model.safetensors', tensors)
    assert '_scale is missing' in complaint(1, '-m', tmp_path / 'm', '-n', 1, 'hello')


@pytest.mark.parametrize('device', ['cpu', 'plain'])
def test_weights_that_are_no_numbers(tmp_path, device):
    """A NaN in a weight makes the logits NaN, which are no choice of a token; also where a prompt is long."""
    shutil.copytree(FIXTURES / 'odd-bf16', tmp_path / 'm')
    tensors = dialect.read_checkpoint(tmp_path / 'm')
    dtype, shape, data = tensors[Q + 'weight']
    tensors[Q + 'weight'] = (dtype, shape, b'\xff\x7f' + data[2:])
    dialect.write_safetensors(tmp_path / 'm' / 'model.safetensors', tensors)
    for call in ('-n', 3, 'hello'), ('-n', 3, '--temp', 0, 'hello ' * 60), ('--raw', '-p', 'hello', '--summary', 'score'):
        for kernels in KERNELS if device == 'cpu' else ['']:
            done = run('-m', tmp_path / 'm', '--device', device, *call, env=environment(GEMMA4_CPU=kernels))
            assert done.returncode == 1 and b'are no numbers (NaN)' in done.stderr, done.stderr


def test_fp8_on_the_gpu_that_is_no_number(tmp_path, quantised):
    """The GPU's kernels have no NaN in E4M3, so the weights are checked as they are loaded."""
    shutil.copytree(quantised('FP8 (rows)'), tmp_path / 'm')
    tensors = dialect.read_checkpoint(tmp_path / 'm')
    dtype, shape, data = tensors[Q + 'weight']
    tensors[Q + 'weight'] = (dtype, shape, data[:700] + b'\xff' + data[701:])
    dialect.write_safetensors(tmp_path / 'm' / 'model.safetensors', tensors)
    line = complaint(1, '--device', 'cuda', '-m', tmp_path / 'm', '-n', 1, 'hello', program=EMULATED)
    assert 'a weight of FP8 is NaN' in line


@pytest.mark.parametrize('weights, word', [({'strategy': 'block', 'block_structure': [96, 96]}, 'block_structure'), ({'strategy': 'block'}, 'block_structure'),
                                           ({'strategy': 'channel'}, 'weight: it is FP8 (blocks of 128)'), ({'num_bits': 4, 'group_size': 32}, 'group_size'), ({'num_bits': 4, 'group_size': 'x'}, 'group_size')])
def test_fp8_of_another_kind(tmp_path, quantised, weights, word):
    model = tmp_path / 'model'
    shutil.copytree(quantised('FP8 (blocks of 128)'), model)
    config = read_json(model / 'config.json')
    for has, status in ({'strategy': 'block', 'block_structure': [128, 128]}, 0), (weights, 1):
        config['quantization_config'] = {'quant_method': 'compressed-tensors',
                                         'config_groups': {'group_0': {'weights': {'num_bits': 8, 'type': 'float', **has}}}}
        write_json(model / 'config.json', config)
        done = run('-m', model, '-n', 1, '--ignore-eos', '--temp', 0, 'hello')
        assert done.returncode == status and (not status or word in done.stderr.decode()), done.stderr


@pytest.mark.parametrize('algo, groups, lost', [
    ('FP8', {'weights': {'num_bits': 8, 'type': 'float'}}, False), ('fp8_pb_wo', {}, False), ('MIXED_PRECISION', {'quant_algo': 'FP8_PB_WO'}, False),
    ('NVFP4', {}, 'quant_algo in config.json is "NVFP4"'), ('FP8', {'weights': {'num_bits': 4, 'type': 'float', 'group_size': 16}}, 'config_groups'),
    ('FP8', {'weights': {'type': 'int', 'num_bits': 8}}, 'config_groups')])
def test_what_modelopt_calls_fp8(tmp_path, quantised, algo, groups, lost):
    """Words in either case, also in groups that say nothing of the weights; a word for other weights is refused."""
    model = tmp_path / 'model'
    shutil.copytree(quantised('FP8 (rows)'), model)
    configured(model, {'quant_method': 'modelopt', 'quant_algo': algo, 'config_groups': {'group_0': groups}})
    done = run('info', '-m', model)
    assert done.returncode == bool(lost) and (not lost or lost in done.stderr.decode()), done.stderr


@pytest.fixture(scope='module')
def unified(tmp_path_factory):
    """The fixture `dense` as a gemma4_unified model (12B): its text, and tensors of front ends for pictures and sound."""
    path = tmp_path_factory.mktemp('unified') / 'm'
    shutil.copytree(FIXTURES / 'dense', path)
    config = read_json(path / 'config.json')
    config.update(model_type='gemma4_unified', audio_config={'model_type': 'gemma4_unified_audio'},
                  vision_config={'model_type': 'gemma4_unified_vision', 'patch_size': 16})
    config['text_config'].update(model_type='gemma4_unified_text')
    write_json(path / 'config.json', config)
    tensors = {n: t for n, t in dialect.read_checkpoint(path).items() if 'vision' not in n}
    one = ('F32', [1], bytes(4))
    for name in 'vision_embedder.patch_ln1.bias', 'embed_vision.embedding_projection.weight', 'embed_audio.embedding_projection.weight':
        tensors['model.' + name] = one
    dialect.write_safetensors(path / 'model.safetensors', tensors)
    return path


def said(*args, **kwargs):
    done = run(*args, **kwargs)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize('prefix', ['', 'language_model.'])
def test_unified_with_another_prefix(tmp_path, unified, prefix):
    """The front ends are known without `model.`, too."""
    other = tmp_path / 'm'
    shutil.copytree(unified, other)
    tensors = dialect.read_checkpoint(unified)
    text = 'model.language_model.'
    renamed = {prefix + 'model.' + n[len(text):] if n.startswith(text) else n.removeprefix('model.'): t for n, t in tensors.items()}
    dialect.write_safetensors(other / 'model.safetensors', renamed)
    call = ('hello', '-n', 5, '--temp', 0, '--ignore-eos', '--print-ids')
    assert said('-m', other, *call).stdout == said('-m', unified, *call).stdout


def test_unified(tmp_path, unified):
    ids = write_ids(tmp_path / 'ids', IDS)
    call = ('--ids', ids, '-n', 20, '--temp', 0, '--ignore-eos', '--print-ids')
    done = said('-m', unified, *call)
    assert done.stdout.decode() == answer('-m', FIXTURES / 'dense', *call)
    assert done.stderr.count(b'\n') == 1 and b'pictures and sound' in done.stderr
    done = run('-m', unified, '-i', FIXTURES.parent.parent / 'demo' / 'star.png', 'hello')
    assert done.returncode == 1 and b'takes no pictures' in done.stderr
    assert re.search('vision +none', answer('info', '-m', unified))


def test_suppressed_tokens(tmp_path):
    """They are never chosen, by whatever way; `score` still counts them."""
    model = tmp_path / 'm'
    shutil.copytree(FIXTURES / 'odd-bf16', model)
    ids = write_ids(tmp_path / 'ids', IDS)
    call = ('-m', model, '--ids', ids, '-n', 12, '--ignore-eos', '--print-ids')
    before = ids_of(*call, '--temp', 0)
    score = answer('score', '-m', model, '--ids', ids)
    generation = read_json(model / 'generation_config.json')
    banned = []
    for _ in range(3):                  # each time the token that would have been the first
        banned.append(ids_of(*call, '--temp', 0)[0])
        write_json(model / 'generation_config.json', dict(generation, suppress_tokens=banned))
    assert banned[0] == before[0] and len(set(banned)) == 3
    for options in ('--temp', 0), ('--temp', 2, '--seed', 1), ('--temp', 2, '--top-k', 0, '--seed', 2), ('--repeat-penalty', 1.1):
        for device in 'cpu', 'plain':
            assert not set(banned) & set(ids_of(*call, *options, '--device', device))
    drafted = ids_of(*call, '--temp', 0, '--draft', FIXTURES / 'odd-assistant')
    assert drafted == ids_of(*call, '--temp', 0)
    assert answer('score', '-m', model, '--ids', ids) == score
    write_json(model / 'generation_config.json', dict(generation, suppress_tokens=[519]))
    assert 'suppress_tokens' in complaint(1, *call)


# ------------------------------------------------------------------------------------------ the reference's checkpoints

def reference(name):
    path = REFERENCE / 'checkpoints' / name
    return pytest.param(path, marks=pytest.mark.skipif(not path.exists(), reason='no reference'), id=name)


@pytest.mark.parametrize('device', ['cpu', 'plain'])
@pytest.mark.parametrize('model', [reference('dense12b-text'), reference('int4-g32-asym'), reference('mixed-fp8-nvfp4')])
def test_reference(tmp_path, model, device):
    """64 tokens through the command line; test_model.c looks at every checkpoint's logits."""
    ref = read_json(model.parent / (model.name + '.ref.json'))
    ids = write_ids(tmp_path / 'ids', ref['prompt_ids'])
    done = said('-m', model, '--ids', ids, '-n', 64, '--ignore-eos', '--print-ids', '--temp', 0, '--exact', '--device', device)
    assert list(map(int, done.stdout.split())) == ref['greedy_ids']
