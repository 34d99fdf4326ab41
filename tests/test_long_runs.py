"""Days of work: one process that answers many requests, and conversations that outgrow the context.

GEMMA4_LONG=10000 runs that many requests, and compares a hundred of them, instead of 300 and ten."""
import json
import os
import random
import re

import pytest

from conftest import ANSWER, environment, ids_of, read_line, run
from test_jsonl import LONG, ask, content, jsonl, one
from test_repl import assistant, chat, user  # noqa: F401 (fixture)

N = int(os.environ.get('GEMMA4_LONG', 300))
SLACK = 512  # KB: what malloc may still arrange


# ---------------------------------------------------------------------------------------------- many requests

def requests(n):
    """Of mixed length and kind; some are bad."""
    rng = random.Random(5)
    tool = {'type': 'function', 'function': {'name': 'add', 'parameters': {'type': 'object', 'properties': {'x': {'type': 'integer'}}, 'required': ['x']}}}
    history = []
    for i in range(n):
        text = ' '.join(rng.choice(['the', 'old', 'man', 'counts', 'a', 'blue', 'rock', 'é…']) for _ in range(rng.choice([1, 5, 20, 100, 200])))
        fields = {'seed': i, 'max_tokens': rng.choice([1, 5, 20, 60])}
        kind = i % 10
        if kind < 4:
            yield ask(text, **fields)
        elif kind < 6:                          # a conversation that grows and is begun again
            history = (history if len(history) < 12 else []) + [user(text[:200])]
            yield ask(history, **fields)
            history = history + [assistant(text[:50])]
        elif kind == 6:
            yield ask(text, stop=['e', 'xyz'], logprobs=True, top_logprobs=3, **fields)
        elif kind == 7:
            yield ask(text, response_format={'type': 'json_schema', 'json_schema': {'schema': {
                'type': 'object', 'properties': {'n%d' % (i % 3): {'type': 'integer'}}, 'required': ['n%d' % (i % 3)]}}}, **dict(fields, max_tokens=60))
        elif kind == 8:
            yield ask(text, tools=[tool], tool_choice='required', n=2, **dict(fields, max_tokens=60))
        else:
            yield rng.choice([ask(text, temperature='hot'), ask([], **fields), {'messages': text}, ask('x y ' * 5000), [], ask([{'role': 'nobody', 'content': text}])])


def memory(p):
    """What the process holds of its own, in KB: the weights are the page cache's."""
    with open('/proc/%d/status' % p.pid) as f:
        return int(re.search(r'RssAnon:\s+(\d+) kB', f.read()).group(1))


def without_what_may_differ(line):
    return {k: v for k, v in line.items() if k not in ('id', 'created', 'usage')}


def test_many_requests(start, odd):
    """The memory of the first hundred is enough for all, and each answer is that of a process of its own."""
    p = start('-m', odd, '--jsonl', '--exact', '--context-overflow', 'slide', '-c', 1024)
    sample, most, first = random.Random(6).sample(range(N), max(N // 100, 10)), 0, 0
    got = {}
    for i, request in enumerate(requests(N)):
        p.stdin.write(json.dumps(request).encode() + b'\n')
        line = json.loads(read_line(p.stdout))
        assert ('error' in line) <= (i % 10 == 9), line
        if i in sample:
            got[i] = request, line
        if i < 100:
            first = max(first, memory(p))
        else:
            most = max(most, memory(p))
    p.stdin.close()
    p.stdin = None
    assert p.wait() == 1 and most <= first + SLACK, (first, most)
    for request, line in got.values():
        alone = json.loads(run('-m', odd, '--jsonl', '--exact', '--context-overflow', 'slide', '-c', 1024, stdin=json.dumps(request)).stdout)
        if 'error' in line:
            line['error']['line'] = 1
        assert without_what_may_differ(line) == without_what_may_differ(alone)


# ---------------------------------------------------------------------------------------------- the context is full

SYSTEM = {'role': 'system', 'content': 'Be brief.'}
FULL = 'the context of %d tokens (-c) is full'


def talk(n):
    """A conversation of n turns, the last without an answer."""
    messages = [SYSTEM]
    for i in range(n):
        messages += [user('question %d about the old man' % i), assistant('answer %d' % i)]
    return messages[:-1]


def tokens(model, messages):
    return ids_of('render', '--ids', '-m', model, stdin=json.dumps({'messages': messages}))


def test_stop(odd):
    """An error that names the limit and what may be done."""
    n = len(tokens(odd, talk(8)))
    said = jsonl(odd, ask(talk(8)), status=1, options=['-c', n - 1])[0]['error']['message']
    assert str(n) in said and 'context of %d (-c)' % (n - 1) in said and '--context-overflow slide' in said
    assert said == jsonl(odd, ask(talk(8)), status=1, options=['-c', n - 1, '--context-overflow', 'stop'])[0]['error']['message']
    assert 'slide' not in jsonl(odd, ask(talk(1)), status=1, options=['-c', 10])[0]['error']['message']      # which would not help


@pytest.mark.parametrize('stream', [False, True])
def test_slide(odd, stream):
    """The oldest turns go, the system prompt stays, and the answer is that of the shorter conversation; it is said how much went."""
    context = len(tokens(odd, talk(8))) - 1
    fields = dict(seed=3, max_tokens=8, stream=stream)
    got = jsonl(odd, ask(talk(8), **fields), options=['-c', context, '--context-overflow', 'slide', '--exact'])
    warning = got[-1]['choices'][0]['warnings'].pop(0)
    dropped = int(re.search(r'the oldest (\d+) messages were dropped', warning).group(1))
    assert FULL % context in warning and dropped == 8           # 4 of the 7 turns before the last
    rest = [SYSTEM] + talk(8)[1 + dropped:]
    want = jsonl(odd, ask(rest, **fields), options=['-c', context, '--exact'])
    for x in got, want:
        x[-1]['choices'][0].pop('warnings', None)
    assert [x['choices'] for x in got] == [x['choices'] for x in want]


def test_slide_leaves_what_fits(odd):
    options = ['--context-overflow', 'slide', '--exact']
    request = ask(talk(8), seed=3, max_tokens=8)
    room = len(tokens(odd, talk(8))) + 8
    assert jsonl(odd, request, options=['-c', room, *options])[0]['choices'] == jsonl(odd, request, options=['--exact'])[0]['choices']
    assert 'warnings' in jsonl(odd, request, options=['-c', room - 1, *options])[0]['choices'][0]


def test_slide_keeps_the_last_turn(odd):
    """Of which the calls of tools and their results are a part; where it alone is too long, that is an error."""
    call = {'id': 'x', 'type': 'function', 'function': {'name': 'add', 'arguments': '{"x": 1}'}}
    last = [user('last'), {'role': 'assistant', 'content': '', 'tool_calls': [call]}, {'role': 'tool', 'tool_call_id': 'x', 'content': 'two ' * 20}]
    context = len(tokens(odd, [SYSTEM] + last)) + 4
    options = ['--context-overflow', 'slide', '--exact', '-c', context]
    got = one(odd, ask(talk(2) + [assistant('x')] + last, max_tokens=4, seed=1), *options)
    assert got['usage']['prompt_tokens'] == context - 4 and 'oldest 4 messages' in got['choices'][0]['warnings'][0]
    said = jsonl(odd, ask(talk(2) + [assistant('x'), user('too long ' * 40)]), status=1, options=options)[0]['error']['message']
    assert 'context of %d (-c)' % context in said


def test_answer_that_the_context_cuts(odd, chatterbox):
    context = len(tokens(chatterbox, [user('hello')])) + 5
    choice = one(chatterbox, ask('hello'), '-c', context)['choices'][0]
    assert choice['finish_reason'] == 'length' and choice['warnings'] == ['the answer was cut: ' + FULL % context]
    assert 'warnings' not in one(chatterbox, ask('hello', max_tokens=6), '-c', context)['choices'][0]
    done = run('-m', chatterbox, 'hello', '-c', context)
    assert done.returncode == 0 and done.stderr.decode() == 'gemma4: warning: the answer was cut: %s\n' % (FULL % context)


def test_chat_that_stops(chat, puppet):
    c = chat(puppet, '-c', 100)
    for _ in range(20):
        said = c.say('hello')
        if said.startswith('gemma4: '):
            break
    assert 'context of 100 (-c)' in said and '/new' in said and '--context-overflow slide' in said
    assert c.messages()[-1] == assistant(ANSWER)    # the conversation is as it was


def test_chat_that_is_cut(chat, chatterbox):
    said = chat(chatterbox, '-c', 60).say('hello')
    assert '(the answer was cut: ' + FULL % 60 in said and '--context-overflow slide' in said and '/new' in said


def test_chat_that_slides(chat, puppet):
    """It goes on and on, says each time how much went, and keeps the system prompt."""
    c = chat(puppet, '-c', 200, '--context-overflow', 'slide', '-s', 'Be brief.')
    warned = 0
    for i in range(16):
        said = c.say('question %d' % i)
        warned += 'gemma4: warning: %s: the oldest' % (FULL % 200) in said
        assert said.endswith(ANSWER) or '% of the context are used' in said
    before = c.messages()
    said = c.say('much too long ' * 60)         # alone: nothing of the conversation goes for it
    assert 'context of 200 (-c)' in said and c.messages() == before
    messages = before
    assert 2 <= warned <= 8 and messages[0] == SYSTEM and messages[1]['role'] == 'user'
    assert messages[-2:] == [user('question 15'), assistant(ANSWER)] and len(messages) < 16
