"""score's summary and its comparison with another run."""
import json
import math

import pytest

from conftest import answer, complaint, read_floats, write_ids

IDS = list(range(100, 140))


@pytest.fixture
def runs(odd, tmp_path):
    """Options for one prompt, logits of an exact and of a rounded run."""
    options = ('score', '-m', odd, '--ids', write_ids(tmp_path / 'ids', IDS))
    exact, rounded = tmp_path / 'exact.f32', tmp_path / 'rounded.f32'
    lines = answer(*options, '--exact', '--top', 1, '--logits', exact)
    answer(*options, '--kv', 'fp8', '--logits', rounded)
    return options, exact, rounded, [json.loads(line) for line in lines.splitlines()]


def softmax(x):
    e = [math.exp(v - max(x)) for v in x]
    return [v / sum(e) for v in e]


def test_perplexity(runs):
    options, _, _, lines = runs
    got = json.loads(answer(*options, '--exact', '--summary'))
    mean = sum(line['logprob'] for line in lines[1:]) / (len(IDS) - 1)
    assert got == {'tokens': len(IDS), 'perplexity': pytest.approx(math.exp(-mean), rel=1e-5)}


def test_distance(runs):
    options, exact, rounded, _ = runs
    p, q = read_floats(exact), read_floats(rounded)
    n = len(p) // len(IDS)
    kl, same = [], []
    for i in range(0, len(p), n):
        a, b = p[i:i + n], q[i:i + n]
        kl.append(sum(x * math.log(x / y) for x, y in zip(softmax(a), softmax(b))))
        same.append(a.index(max(a)) == b.index(max(b)))
    lines = [json.loads(line) for line in answer(*options, '--kv', 'fp8', '--reference', exact).splitlines()]
    assert [line['kl'] for line in lines] == pytest.approx(kl, rel=1e-2, abs=1e-7)
    assert [line['same_top'] for line in lines] == same
    got = json.loads(answer(*options, '--kv', 'fp8', '--reference', exact, '--summary'))
    assert got['kl_mean'] == pytest.approx(sum(kl) / len(kl), rel=1e-2)
    assert (got['kl_max'], got['kl_max_pos']) == (pytest.approx(max(kl), rel=1e-2), kl.index(max(kl)))
    assert got['same_top'] == pytest.approx(sum(same) / len(same))
    assert 0 < max(kl) < 1


def test_the_same_run_is_at_no_distance(runs):
    options, exact, _, _ = runs
    got = json.loads(answer(*options, '--exact', '--reference', exact, '--summary'))
    assert (got['kl_mean'], got['kl_max'], got['same_top']) == (0, 0, 1)


def test_text(odd, tmp_path):
    (tmp_path / 'text').write_text('The tide comes in twice.')
    assert answer('score', '-m', odd, '--text', tmp_path / 'text') == answer('score', '-m', odd, '--raw', '-p', 'The tide comes in twice.')


def test_a_reference_that_does_not_fit(runs, tmp_path):
    options, exact, _, _ = runs
    short, long = tmp_path / 'short', tmp_path / 'long'
    short.write_bytes(exact.read_bytes()[:-4])
    long.write_bytes(exact.read_bytes() + b'....')
    for more in (), ('--summary',):                     # nothing is computed, and no line written, before it is said
        assert 'short: less than 40 positions of 519 logits' in complaint(1, *options, *more, '--reference', short)
        assert 'long: more than 40 positions of 519 logits' in complaint(1, *options, *more, '--reference', long)
    for file, says in (short, 'less'), (long, 'more'):  # a pipe has no length
        said = complaint(1, *options, '--summary', '--reference', '/dev/stdin', stdin=file.read_bytes())
        assert '/dev/stdin: %s than 40 positions' % says in said
    assert 'No such file' in complaint(1, *options, '--summary', '--reference', tmp_path / 'none')
    assert 'belong to score' in complaint(2, '--summary', '--raw', '-p', 'Hi')
    other = tmp_path / 'other'
    other.symlink_to(exact)
    assert '--logits %s: --reference names this file, too' % other in complaint(2, *options, '--reference', exact, '--logits', other)
    assert exact.stat().st_size == 40 * 519 * 4
