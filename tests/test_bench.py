"""gemma4 bench: what it prints and draws; not how fast."""
import json
import os
import re
import xml.etree.ElementTree as tree

import pytest

from conftest import FIXTURES, answer, complaint, run

DRAFTER = FIXTURES / 'odd-assistant'
SCENARIOS = ['chat', 'rag', 'long', 'context', 'context', 'context', 'multiturn', 'reasoning']


def bench(odd, *options):
    return answer('bench', '-m', odd, '-c', 400, '-n', 3, *options)


def test_all_scenarios(odd):
    got = json.loads(bench(odd, '--json', '--draft', DRAFTER, '--draft-tokens', 2))
    assert (got['model'], got['device'], got['context']) == (str(odd), 'cpu', 400)
    assert got['bandwidth'] > 1e8
    rows = got['scenarios']
    plain, drafting = ([r for r in rows if r['drafting'] is d] for d in (False, True))
    assert [r['scenario'] for r in plain] == [r['scenario'] for r in drafting] == SCENARIOS
    for r in rows:
        assert r['answer_tokens'] == (30 if r['scenario'] == 'multiturn' else 3) or r['scenario'] == 'multiturn'
        assert min(r[k] for k in ('first_token_seconds', 'prefill_rate', 'decode_rate', 'bandwidth_share', 'memory')) > 0
        assert r['bytes_per_token'] > 1e5
    # The context has room for 397: the long prompts shrink to that, each exactly.
    assert [r['prompt_tokens'] for r in plain if r['scenario'] != 'multiturn'] == [64, 397, 64, 48, 198, 397, 128]
    assert all(r['tokens_per_pass'] == 1 for r in plain)
    assert all(r['tokens_per_pass'] >= 1 for r in drafting)


def test_table_and_plot(odd, tmp_path):
    svg = tmp_path / 'out.svg'
    lines = bench(odd, '--scenario', 'context', '--draft', DRAFTER, '--plot', svg).splitlines()
    assert re.fullmatch(r'\S+ on cpu \(\S+\), \d+ threads; \S+ GB of weights for a token; memory reads \S+ GB/s', lines[0])
    assert len(lines) == 4 + 6 and len({line.count('|') for line in lines[2:]}) == 1 and len({len(line) for line in lines[2:]}) == 1
    assert [line.split('|')[1].strip() for line in lines[4:]] == ['context'] * 3 + ['context, drafting'] * 3
    root = tree.parse(svg).getroot()
    tag = '{http://www.w3.org/2000/svg}'
    assert len(root.findall(tag + 'circle')) == 12 and len(root.findall(tag + 'polyline')) == 4
    assert 'prefers-color-scheme: dark' in root.find(tag + 'style').text
    width, height = map(float, root.get('viewBox').split()[2:])
    for circle in root.findall(tag + 'circle'):
        assert 0 < float(circle.get('cx')) < width and 0 < float(circle.get('cy')) < height
    for line in root.findall(tag + 'polyline'):
        xs = [float(point.split(',')[0]) for point in line.get('points').split()]
        assert xs == sorted(xs) and len(xs) == 3


def test_wrong_usage(odd, tmp_path):
    assert '--scenario quick: not chat, rag, long, context, multiturn, reasoning or all (' in complaint(2, 'bench', '-m', odd, '--scenario', 'quick')
    assert 'belong to bench' in complaint(2, '-m', odd, '--plot', 'x.svg', 'Hi')


def test_a_plot_that_cannot_be_written(odd, tmp_path):
    """It is said before the benchmark: nothing of that is on stdout."""
    svg = tmp_path / 'none' / 'plot.svg'
    assert '%s: No such file' % svg in complaint(1, 'bench', '-m', odd, '--scenario', 'chat', '--plot', svg)
    call = ('bench', '-m', odd, '--scenario', 'chat', '-n', 3, '-c', 400, '--plot')
    done = run(*call, '/dev/full')
    assert (done.returncode, done.stderr) == (1, b'gemma4: /dev/full: No space left on device\n')
    with open('/dev/full', 'wb') as full:
        assert run(*call, tmp_path / 'plot.svg', stdout=full).returncode == 1
    assert os.listdir(tmp_path) == []
    assert 'takes no prompt' in complaint(2, 'bench', '-m', odd, '-p', 'Hi')
    assert 'too small' in complaint(1, 'bench', '-m', odd, '-c', 60)


@pytest.mark.parametrize('scenario', ['chat', 'reasoning', 'multiturn'])
def test_one_scenario(odd, scenario):
    rows = json.loads(bench(odd, '--json', '--scenario', scenario))['scenarios']
    assert [(r['scenario'], r['drafting']) for r in rows] == [(scenario, False)]
