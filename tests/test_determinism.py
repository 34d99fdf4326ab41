"""The same command, the same bytes: whatever the number of threads, and, with --exact, however the prompt came in."""
import json

import pytest

from conftest import DEMO, FIXTURES, KERNELS, answer, environment, run, write_ids
from test_jsonl import LONG, ask, jsonl, one
from test_long_runs import without_what_may_differ

MODELS = [FIXTURES / name for name in ('odd-bf16', 'odd-experts', 'odd-all', 'dense')] + [DEMO]
THREADS = (1, 2, 3, 5, 64)
IDS = [2] + [5 + (i * i + i // 7) % 480 for i in range(150)]    # several windows of the tiny checkpoints, and no whole number of chunks


def logits(model, tmp_path, *options, ids=IDS):
    """Of every position, as bytes."""
    file = tmp_path / 'logits'
    run('score', '-m', model, '--ids', write_ids(tmp_path / 'ids', ids), '--logits', file, *options).check_returncode()
    assert file.stat().st_size > 4 * len(ids) * 100
    return file.read_bytes()


def only_one(values):
    first, *rest = values
    assert all(v == first for v in rest)
    return first


# ---------------------------------------------------------------------------------------------- threads

@pytest.mark.parametrize('model', MODELS, ids=lambda p: p.name)
@pytest.mark.parametrize('options', [(), ('--exact',)], ids=' '.join)
def test_threads(model, tmp_path, options):
    only_one(logits(model, tmp_path, *options, '-t', n) for n in THREADS)
    only_one(answer('-m', model, LONG, '--seed', 3, '--temp', 2, '-n', 40, *options, '-t', n) for n in THREADS)


def test_most_threads():
    """1024 threads, nearly all without a core, which a job neither wakes nor waits for (test_threads.c counts it)."""
    only_one(answer('-m', DEMO, LONG, '--seed', 3, '--temp', 2, '-n', 40, '-t', n) for n in (1, 1024))


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('bits', [16, 8])
def test_threads_with_all_kernels(tmp_path, kernels, bits):
    """And with an FP8 cache."""
    call = ('score', '-m', DEMO, '--ids', write_ids(tmp_path / 'ids', IDS), '--kv', 'fp8', '--activations', bits, '-q')
    only_one(answer(*call, '-t', n, env=environment(GEMMA4_CPU=kernels)) for n in THREADS)


@pytest.mark.parametrize('options', [(), ('--exact',)], ids=' '.join)
def test_threads_with_pictures(options):
    images = FIXTURES / 'images'
    call = ('-m', images / 'seeing', '-i', images / 'photo.jpg', '--video', images / 'moving.gif', '--image-tokens', 70, *options)
    only_one(answer(*call, '--seed', 3, '--temp', 2, '-n', 20, '--print-ids', '-t', n, 'What?') for n in THREADS)


def test_threads_with_a_drafter():
    call = ('-m', DEMO, '--draft', DEMO / 'assistant', '--seed', 3, '-n', 40, 'Tell me about the weather.')
    only_one([answer('-m', DEMO, '--seed', 3, '-n', 40, 'Tell me about the weather.', '--exact'),
              *(answer(*call, '--exact', '-t', n) for n in THREADS)])
    only_one(answer(*call, '-t', n) for n in THREADS)


MANY_IDS = [2] + [5 + (i * i + i // 7) % 480 for i in range(1300)]      # three parts of 512 keys (PART_KEYS, attention.c)


@pytest.mark.parametrize('model', MODELS[:4], ids=lambda p: p.name)
def test_threads_share_keys(model, tmp_path):
    """One thread takes all parts of a query's keys, many share them; with 250 tokens and 64 threads two parts at a time.  And the
    numbers are those of plain.c."""
    def scores(*options):
        return logits(model, tmp_path, '--exact', '-c', 2048, *options, ids=MANY_IDS)
    plain = tmp_path / 'plain'
    plain.write_bytes(scores('--device', 'plain'))
    only_one(scores('--chunk', chunk, '-t', n) for chunk, n in ((250, 1), (250, 64), (1, 2), (1, 64), (512, 3)))
    got = json.loads(answer('score', '-m', model, '--ids', tmp_path / 'ids', '--exact', '-t', 5, '--reference', plain, '--summary'))
    assert got['kl_max'] < 1e-9 and got['same_top'] == 1


@pytest.mark.parametrize('kernels', ['c', 'avx2', 'avx2-vnni', 'avx512', 'amx'])
@pytest.mark.parametrize('kv', ['bf16', 'fp8'])
def test_kernels_share_keys(tmp_path, kernels, kv):
    """In steps of 16 tokens, which no kernels take in strips, and of one."""
    call = ('score', '-m', FIXTURES / 'odd-all', '--ids', write_ids(tmp_path / 'ids', MANY_IDS), '--kv', kv, '-c', 2048)
    only_one(answer(*call, '--chunk', chunk, '-t', n, env=environment(GEMMA4_CPU=kernels)) for chunk, n in ((16, 1), (16, 64), (1, 2)))


# ---------------------------------------------------------------------------------------------- the way in

@pytest.mark.parametrize('model', MODELS, ids=lambda p: p.name)
def test_chunks(model, tmp_path):
    """In one step, in many, and token by token."""
    only_one(logits(model, tmp_path, '--exact', '--chunk', n) for n in (8192, 64, 7, 2, 1))


@pytest.mark.parametrize('kernels', KERNELS)
def test_chunks_with_all_kernels(tmp_path, kernels):
    """Without --exact: all but plain C add in another order, but only in steps of more than 16 tokens."""
    chunks = (512, 40, 7, 1) if kernels == 'c' else (16, 7, 1)
    call = ('score', '-m', DEMO, '--ids', write_ids(tmp_path / 'ids', IDS), '--top', 5)
    only_one(answer(*call, '--chunk', n, env=environment(GEMMA4_CPU=kernels)) for n in chunks)


@pytest.mark.parametrize('model', MODELS, ids=lambda p: p.name)
@pytest.mark.parametrize('chunk', [512, 5])
def test_reused_prefix(model, chunk):
    """Requests that begin alike, among others, in one process: the numbers are those of a process for each."""
    fields = dict(seed=3, max_tokens=10, logprobs=True, top_logprobs=5)
    system = {'role': 'system', 'content': LONG * 2}
    requests = [ask([system, {'role': 'user', 'content': text}], **fields) for text in ('a b', 'the', LONG, 'a b')]
    requests[2:2] = [ask(LONG, **fields), ask(LONG + 'and?', **fields)]
    options = ['--exact', '--chunk', chunk]
    together = jsonl(model, *requests, options=options)
    assert sum(r['usage']['prompt_tokens_details']['cached_tokens'] > 30 for r in together) >= 3
    for request, got in zip(requests, together):
        assert without_what_may_differ(got) == without_what_may_differ(one(model, request, *options)), request
