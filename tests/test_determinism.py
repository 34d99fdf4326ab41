"""The same command, the same bytes: whatever the number of threads, and, with --exact, however the prompt came in."""
import pytest

from conftest import DEMO, FIXTURES, answer, environment, run, write_ids
from test_jsonl import LONG, ask, jsonl, one
from test_long_runs import without_what_may_differ

MODELS = [FIXTURES / name for name in ('odd-bf16', 'odd-experts', 'odd-all', 'dense')] + [DEMO]
THREADS = (1, 2, 3, 5)
IDS = [2] + [5 + (i * i + i // 7) % 480 for i in range(150)]    # several windows of the tiny checkpoints, and no whole number of chunks


def logits(model, tmp_path, *options):
    """Of every position, as bytes."""
    file = tmp_path / 'logits'
    run('score', '-m', model, '--ids', write_ids(tmp_path / 'ids', IDS), '--logits', file, *options).check_returncode()
    assert file.stat().st_size > 4 * len(IDS) * 100
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


@pytest.mark.parametrize('kernels', ['c', 'avx2', 'avx512', 'amx'])
@pytest.mark.parametrize('bits', [16, 8])
def test_threads_with_all_kernels(tmp_path, kernels, bits):
    """And with an FP8 cache."""
    call = ('score', '-m', DEMO, '--ids', write_ids(tmp_path / 'ids', IDS), '--kv', 'fp8', '--activations', bits)
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


# ---------------------------------------------------------------------------------------------- the way in

@pytest.mark.parametrize('model', MODELS, ids=lambda p: p.name)
def test_chunks(model, tmp_path):
    """In one step, in many, and token by token."""
    only_one(logits(model, tmp_path, '--exact', '--chunk', n) for n in (8192, 64, 7, 2, 1))


@pytest.mark.parametrize('kernels, chunks', [('c', (512, 40, 7, 1)), ('avx2', (16, 7, 1)), ('avx512', (16, 7, 1)),
                                             ('amx', (16, 7, 1))])
def test_chunks_with_all_kernels(tmp_path, kernels, chunks):
    """Without --exact: AVX2, AVX-512 and AMX add in another order only in steps of more than 16 tokens."""
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
