"""What the demo has learned beyond talking: to see, and to call tools."""
import json
import re

import pexpect
import pytest

from conftest import FIXTURES, GEMMA4, PATIENCE, ROOT, environment, run, write_json
from test_jsonl import content, jsonl

DRAWINGS = sorted((FIXTURES / 'drawings').glob('*.png'))  # by tests/demo/drawings.py; the demo was not trained on them


def shown(text):
    """The colours and shapes that a text names."""
    return set(re.findall(r'(\w+)[ -](circle|square|triangle|star|ring)', text))


def test_names_colour_and_shape(demo):
    assert len(DRAWINGS) == 20
    requests = [{'messages': [{'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': str(path)}},
                                                           {'type': 'text', 'text': 'What is this?'}]}], 'temperature': 0} for path in DRAWINGS]
    answers = [content(a) for a in jsonl(demo, *requests)]
    wrong = [(p.stem, a) for p, a in zip(DRAWINGS, answers) if shown(a) != shown(p.stem)]
    assert len(wrong) <= 2, wrong
    miscounted = [(p.stem, a) for p, a in zip(DRAWINGS, answers) if a.lower().replace(' ', '-') != p.stem[3:] + '.']
    assert len(miscounted) <= 6, miscounted


WEATHER = [{'type': 'function', 'function': {'name': 'get_weather', 'description': 'Get the current weather in a city.', 'parameters': {
    'type': 'object', 'properties': {'city': {'type': 'string', 'description': 'City name'}}, 'required': ['city']}}}]


@pytest.fixture
def weather(tmp_path):
    """--tools and --run-tools, the tool an executable that knows one city."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    tool = folder / 'get_weather'
    tool.write_text('#!/bin/sh\ngrep -q \'"city":"Oslo"\' && echo "sunny, 21 degrees" || echo "unknown"\n')
    tool.chmod(0o755)
    return '--tools', write_json(tmp_path / 'tools.json', WEATHER), '--run-tools', folder


@pytest.mark.parametrize('thinking', [[], ['--think']])
def test_calls_a_tool(demo, weather, thinking):
    """At the prompt: asks for the tool, is allowed to, and answers with what it said. (It was trained before the template
    of July 2026, and has not learned to think behind a result.)"""
    child = pexpect.spawn(GEMMA4, ['-m', str(demo), '--temp', '0', *map(str, weather), *thinking], env=environment(NO_COLOR=1), encoding='utf-8',
                          timeout=PATIENCE)
    child.expect_exact('> ')
    child.sendline('What is the weather in Oslo?')
    child.expect_exact('run get_weather {"city":"Oslo"}? [y/N] ')
    if not thinking:
        child.sendline('y')
        child.expect('sunny, 21 degrees.*> ')
        child.sendeof()
        child.expect(pexpect.EOF)
    child.close()


@pytest.mark.parametrize('thinking', [[], ['--think']])
def test_needs_no_tool_to_greet(demo, weather, thinking):
    done = run('-m', demo, '--temp', 0, *weather, '--yes', *thinking, 'Thank you!')
    assert done.returncode == 0 and re.search('elcome|pleasure|Gladly', done.stdout.decode()) and '[get_weather' not in done.stderr.decode()


def test_answers_with_the_result(demo, weather):
    done = run('-m', demo, '--temp', 0, *weather, '--yes', 'Weather in Oslo?')
    assert (done.returncode, done.stdout.decode()) == (0, 'The weather in Oslo: sunny, 21 degrees.\n')
    assert done.stderr.decode() == '[get_weather {"city":"Oslo"}]\n'


def test_recording():
    """The session that the README shows: two minutes, in asciinema's format, without a folder of the machine that recorded it; the SVG
    plays as long, and has colours for light and dark."""
    cast = (ROOT / 'drawings/session.cast').read_text(encoding='utf-8')
    header, *events = map(json.loads, cast.splitlines())
    times = [when for when, _, _ in events]
    text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', ''.join(text for _, _, text in events))
    assert header['version'] == 2 and times == sorted(times) and 90 < times[-1] < 150
    assert 'Hello!' in text and '/bye' in text and str(ROOT) not in cast
    svg = (ROOT / 'drawings/session.svg').read_text(encoding='utf-8')
    last = max(float(t) for t in re.findall(r'begin="all.begin\+([0-9.]+)s"', svg))
    assert 'prefers-color-scheme: dark' in svg and abs(last - times[-1]) < 3
    assert 'drawings/session.svg' in (ROOT / 'README.md').read_text(encoding='utf-8')
