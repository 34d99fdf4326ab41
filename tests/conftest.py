"""What the tests of the command line share: running the program, the checkpoints, and a puppet that says what it is told."""
import functools
import json
import math
import os
import platform
import random
import re
import select
import shutil
import struct
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

import dialect

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FIXTURES = TESTS / 'fixtures'
DEMO = ROOT / 'demo'
REFERENCE = Path(os.environ.get('GEMMA4_REFERENCE', ROOT.parent / 'shared' / 'reference'))
GEMMA4 = os.path.abspath(os.environ.get('GEMMA4', ROOT / 'gemma4'))
EMULATED = ROOT / 'build' / 'tests' / 'gemma4_emu'  # the same program, its GPU that of tests/emu
# The CPU's sets of kernels for this kind of machine, from the simplest on.
ON_ARM = platform.machine() == 'aarch64'
KERNELS = ['c', 'neon', 'neon-bf16'] if ON_ARM else ['c', 'avx2', 'avx2-vnni', 'avx512', 'amx']
PATIENCE = 180  # seconds until something counts as hanging; sanitizers and valgrind are slow


# ---------------------------------------------------------------------------------------------- running the program

def environment(**changes):
    """This process's environment without what would steer the program, and with changes; on the CPU, unless they say otherwise."""
    steering = ('GEMMA4_', 'HF_', 'HUGGINGFACE_', 'XDG_', 'LC_', 'LANG')
    env = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
    env.update(GEMMA4_DEVICE='cpu', HOME='/nonexistent', LC_ALL='C.UTF-8', TERM='xterm')
    env.update({k: str(v) for k, v in changes.items()})
    return env


def run(*args, stdin='', env=None, program=GEMMA4, **kwargs):
    """Runs the program to its end; bytes come back."""
    stdin = stdin.encode() if isinstance(stdin, str) else stdin
    kwargs.setdefault('stdout', subprocess.PIPE)
    kwargs.setdefault('timeout', PATIENCE)
    return subprocess.run([program, *map(str, args)], input=stdin, env=env or environment(), stderr=subprocess.PIPE,
                          **kwargs)


def answer(*args, **kwargs):
    """stdout as text of a run that must succeed and say nothing on stderr, but that -n cut the answer."""
    done = run(*args, **kwargs)
    said = re.sub(rb'gemma4: warning: the answer was cut: -n \d+\n', b'', done.stderr)
    assert (done.returncode, said) == (0, b'')
    return done.stdout.decode()


def ids_of(*args, **kwargs):
    """The same for output that is token ids on one line."""
    text = answer(*args, **kwargs)
    assert re.fullmatch(r'(\d+( \d+)*)?\n', text)
    return [int(word) for word in text.split()]


def complaint(status, *args, **kwargs):
    """The one line on stderr of a run that must fail with this status and print nothing else."""
    done = run(*args, **kwargs)
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b''), text
    assert re.fullmatch(r'gemma4: [^\n]+\n', text)
    return text


@pytest.fixture
def start():
    """start(*args) begins a run and returns its Popen, with unbuffered pipes; ended with the test at the latest. before: a command that
    runs the program."""
    running = []

    def begin(*args, env=None, before=(), **kwargs):
        for name in ('stdin', 'stdout', 'stderr'):
            kwargs.setdefault(name, subprocess.PIPE)
        running.append(subprocess.Popen([*before, GEMMA4, *map(str, args)], env=env or environment(), bufsize=0, **kwargs))
        return running[-1]
    yield begin
    for p in running:
        p.kill()
        p.wait()
        for pipe in (p.stdin, p.stdout, p.stderr):
            if pipe:
                pipe.close()


def read_line(pipe):
    """The next line, but a program that writes none must not stop the tests."""
    assert select.select([pipe], [], [], PATIENCE)[0], 'no line came'
    return pipe.readline()


# ---------------------------------------------------------------------------------------------- checkpoints

@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """checkpoint('odd-all ct shards'): the directory of that fixture, rewritten by tests/dialect.py as ct, then shards."""
    @functools.lru_cache(maxsize=None)
    def make(layout):
        source, _, kind = layout.rpartition(' ')
        if not source:
            return FIXTURES / kind
        path = tmp_path_factory.mktemp('layouts') / layout.replace(' ', '-')
        subprocess.run([sys.executable, TESTS / 'dialect.py', kind, make(source), path], check=True)
        return path
    return make


@pytest.fixture
def copy(tmp_path):
    """copy(DIR): a copy of a checkpoint to be spoilt."""
    def make(source):
        path = tmp_path / 'spoilt'
        shutil.copytree(source, path, copy_function=shutil.copyfile)
        return path
    return make


def read_json(path):
    return json.loads(Path(path).read_text())


def write_json(path, value):
    Path(path).write_text(json.dumps(value))
    return path


def edit(file, field, value):
    """Sets a field (a.b.c) of a JSON file; None removes it."""
    def change(model):
        whole = part = read_json(model / file)
        *path, last = field.split('.')
        for key in path:
            part = part[key]
        part[last] = value
        if value is None:
            del part[last]
        write_json(model / file, whole)
    return change


def data(file, change):
    """change(bytes) returns the file's new content; None as change removes it."""
    def spoil(model):
        if change:
            (model / file).write_bytes(change((model / file).read_bytes() if (model / file).exists() else b''))
        else:
            (model / file).unlink()
    return spoil


def write_ids(path, ids):
    path.write_text(' '.join(map(str, ids)))
    return path


def read_floats(path, tensor=None):
    """A float32 tensor of a safetensors file, or a whole plain file of float32, as one flat array."""
    data = Path(path).read_bytes()
    if tensor:
        size, = struct.unpack_from('<Q', data)
        header = json.loads(data[8:8 + size])[tensor]
        assert header['dtype'] == 'F32'
        begin, end = header['data_offsets']
        data = data[8 + size + begin:8 + size + end]
    floats = array('f', data)
    if sys.byteorder == 'big':
        floats.byteswap()
    return floats


# ---------------------------------------------------------------------------------------------- the puppet

HIDDEN = 64
ANSWER = 'The command is one: é…'
THOUGHT = 'you add it'
# One piece each, none twice: the puppet's next token hangs on the last one alone. The é comes in two tokens.
ANSWER_PIECES = ['The', '▁command', '▁is', '▁one', ':', '▁', '<0xC3>', '<0xA9>', '…']
# The prompt's last token is <channel|> (an empty thought) or, with thinking on, the line end after `model`.
TALK = [['<channel|>', *ANSWER_PIECES, '<turn|>'],
        ['\n', '<|channel>', 't', 'ho', 'u', 'g', 'h', '<0x74>', '<0x0A>', 'you', '▁a', 'd', '<0x64>', '▁it', '<channel|>']]
CHATTER = [['<channel|>', 'The', '▁command', '▁is', '▁one', ',', 'The'], ['\n', 'The']]


def bf16(x):
    return struct.pack('<f', x)[2:]


def make_puppet(path, scripts, **generation):
    """A checkpoint that follows scripts: lists of pieces, each of which is followed by the next. Its layers add nothing
    (their last norms are 0) and the rows of its head are the embeddings of the tokens that come before."""
    shutil.copytree(FIXTURES / 'odd-bf16', path, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns('*.safetensors'))
    vocabulary = read_json(path / 'tokenizer.json')['model']['vocab']
    size = len(vocabulary)
    config = read_json(path / 'config.json')
    config['text_config'].update(
        hidden_size=HIDDEN, num_hidden_layers=2, layer_types=['sliding_attention', 'full_attention'], head_dim=16,
        global_head_dim=16, num_attention_heads=1, num_key_value_heads=1, num_global_key_value_heads=1, intermediate_size=16,
        enable_moe_block=False, vocab_size=size, max_position_embeddings=1 << 20, tie_word_embeddings=False)
    write_json(path / 'config.json', config)
    settings = {'eos_token_id': [vocabulary['<turn|>'], vocabulary['<eos>']], 'do_sample': False}
    write_json(path / 'generation_config.json', dict(settings, **generation))

    rng = random.Random(1)
    embedding = [[rng.choice((-1, 1)) for _ in range(HIDDEN)] for _ in range(size)]
    head = [[0] * HIDDEN for _ in range(size)]
    for script in scripts:
        for before, after in zip(script, script[1:]):
            row = head[vocabulary[after]]
            for i, x in enumerate(embedding[vocabulary[before]]):
                row[i] += 0.4 * x

    tensors = {}

    def put(name, shape, value):
        data = b''.join(map(bf16, value)) if isinstance(value, list) else bf16(value) * math.prod(shape)
        tensors[name] = ('BF16', list(shape), data)

    put('lm_head.weight', (size, HIDDEN), sum(head, []))
    put('model.language_model.embed_tokens.weight', (size, HIDDEN), sum(embedding, []))
    put('model.language_model.norm.weight', (HIDDEN,), 1)
    for i in range(2):
        p = 'model.language_model.layers.%d.' % i
        for part in 'qkvo' if i == 0 else 'qko':
            put(p + 'self_attn.%s_proj.weight' % part, (HIDDEN, 16) if part == 'o' else (16, HIDDEN), 0.1)
        for part in ('gate', 'up', 'down'):
            put(p + 'mlp.%s_proj.weight' % part, (HIDDEN, 16) if part == 'down' else (16, HIDDEN), 0.1)
        put(p + 'self_attn.q_norm.weight', (16,), 1)
        put(p + 'self_attn.k_norm.weight', (16,), 1)
        put(p + 'input_layernorm.weight', (HIDDEN,), 1)
        put(p + 'pre_feedforward_layernorm.weight', (HIDDEN,), 1)
        put(p + 'post_attention_layernorm.weight', (HIDDEN,), 0)
        put(p + 'post_feedforward_layernorm.weight', (HIDDEN,), 0)
        put(p + 'layer_scalar', (1,), 1)
    dialect.write_safetensors(path / 'model.safetensors', tensors)
    return path


@pytest.fixture(scope='session')
def puppet(tmp_path_factory):
    """Answers ANSWER to everything; with thinking on it thinks THOUGHT first."""
    return make_puppet(tmp_path_factory.mktemp('puppet') / 'talks', TALK)


@pytest.fixture(scope='session')
def chatterbox(tmp_path_factory):
    """Answers `The command is one,The command is one,…` without end."""
    return make_puppet(tmp_path_factory.mktemp('puppet') / 'chatters', CHATTER)


ENDLESS = ('-c', 1000000)  # room for more than any test waits for


@pytest.fixture(scope='session')
def odd():
    """A checkpoint whose answers are random, long and different for every prompt."""
    return FIXTURES / 'odd-bf16'


@pytest.fixture(scope='session')
def demo():
    assert (DEMO / 'config.json').exists(), 'demo/ is part of the repository'
    return DEMO
