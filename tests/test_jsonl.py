"""--jsonl: one OpenAI chat request a line, one answer a line."""
import json
import math
import re
import signal

import pytest

from conftest import ANSWER, ENDLESS, FIXTURES, PATIENCE, THOUGHT, answer, complaint, ids_of, read_json, read_line, run, write_ids

# 40 draws from nearly even odds: two prompts that differ give different answers, the same prompt the same one.
FUSSY = {'seed': 1, 'temperature': 5, 'top_k': 0, 'top_p': 1, 'max_tokens': 40}


def ask(content='hello', **fields):
    """A request of one question, or of these messages."""
    messages = content if isinstance(content, list) else [{'role': 'user', 'content': content}]
    return dict(messages=messages, **fields)


def jsonl(model, *requests, options=(), status=0):
    """The answers; a request may be text that is no request."""
    lines = ''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in requests)
    done = run('-m', model, '--jsonl', *options, stdin=lines)
    assert done.returncode == status or (status is None and done.returncode in (0, 1))
    assert done.stderr == b''
    assert done.stdout.endswith(b'\n') or not done.stdout
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def one(model, request, *options):
    result, = jsonl(model, request, options=options)
    return result


def content(completion):
    return completion['choices'][0]['message']['content']


def tokens_of(model, request):
    return ids_of('render', '--ids', '-m', model, stdin=json.dumps(request))


# ---------------------------------------------------------------------------------------------- completions

def test_completion(puppet):
    got = one(puppet, ask())
    assert set(got) == {'id', 'object', 'created', 'model', 'choices', 'usage'}
    assert got['object'] == 'chat.completion' and got['model'] == str(puppet)
    assert isinstance(got['id'], str) and isinstance(got['created'], int)
    choice, = got['choices']
    assert choice == {'index': 0, 'message': {'role': 'assistant', 'content': ANSWER}, 'logprobs': None, 'finish_reason': 'stop'}
    n = len(tokens_of(puppet, ask()))
    assert got['usage'] == {'prompt_tokens': n, 'completion_tokens': 10, 'total_tokens': n + 10,
                            'prompt_tokens_details': {'cached_tokens': 0}, 'completion_tokens_details': {'reasoning_tokens': 0}}


def test_ids_differ(puppet):
    first, second = jsonl(puppet, ask(), ask())
    assert first['id'] != second['id']


def test_answers_as_one_shot(odd):
    want = answer('-m', odd, 'hello <turn|>', '--seed', 4, '-n', 50)
    assert content(one(odd, ask('hello <turn|>', seed=4, max_tokens=50))).rstrip('\n') == want.rstrip('\n')


@pytest.mark.parametrize('field', ['max_tokens', 'max_completion_tokens'])
def test_max_tokens(puppet, field):
    got = one(puppet, ask(**{field: 4}))
    assert content(got) == 'The command is one'
    assert got['choices'][0]['finish_reason'] == 'length' and got['usage']['completion_tokens'] == 4
    got = one(puppet, ask(**{field: 10}))
    assert got['choices'][0]['finish_reason'] == 'stop'
    assert content(one(puppet, ask(**{field: 7}))) == 'The command is one: \ufffd'


def test_end_of_the_context_is_length(chatterbox):
    got = one(chatterbox, ask(), '-c', 60)
    assert got['choices'][0]['finish_reason'] == 'length'
    assert got['usage']['total_tokens'] == 61


def test_options_are_the_defaults_of_requests(puppet, odd):
    short, long = jsonl(puppet, ask(), ask(max_tokens=2), options=['-n', 1])
    assert (content(short), content(long)) == ('The', 'The command')
    first, second = jsonl(odd, ask(max_tokens=40), ask(max_tokens=40, seed=5), options=['--seed', 5, '--temp', 5])
    assert content(first) == content(second) == content(one(odd, ask(max_tokens=40, seed=5, temperature=5)))
    greedy = content(one(odd, ask(max_tokens=40), '--temp', 0))
    assert content(one(odd, ask(max_tokens=40, temperature=0))) == greedy
    for field in ({'top_k': 1}, {'top_p': 0}, {'min_p': 1}):
        assert content(one(odd, ask(max_tokens=40, **field))) == greedy
    assert content(one(odd, ask(max_tokens=40, temperature=0, repetition_penalty=100))) != greedy
    assert content(one(odd, ask(max_tokens=40, temperature=None, top_p=None, stop=None, seed=None), '--temp', 0)) == greedy


def test_system_prompt_option(odd):
    system = {'role': 'system', 'content': 'Be brief.'}
    user = {'role': 'user', 'content': 'hello'}
    want, without = [content(r) for r in jsonl(odd, ask([system, user], **FUSSY), ask([user], **FUSSY))]
    got = [content(r) for r in jsonl(odd, ask([user], **FUSSY), ask([system, user], **FUSSY), options=['-s', 'Be brief.'])]
    assert got == [want, want] and want != without
    assert content(one(odd, ask([system, user], **FUSSY), '-s', 'Be long.')) == want


def test_seed_decides(odd):
    a, b, c = [content(r) for r in jsonl(odd, *(ask(seed=s, max_tokens=40) for s in (1, 1, 2)))]
    assert a == b != c
    assert content(one(odd, ask(seed=2, max_tokens=40))) == c
    assert content(one(odd, ask(max_tokens=40), '--seed', 2)) == c
    largest, minus, none = jsonl(odd, *(ask(seed=s, max_tokens=40) for s in (2 ** 64 - 1, -1, 2 ** 64)), status=1)
    assert content(largest) == content(minus) == content(one(odd, ask(max_tokens=40), '--seed', 2 ** 64 - 1))
    assert none['error']['message'].startswith('seed: ')


def test_two_equal_requests_two_equal_answers(odd):
    """Also without a seed, within one process: a request does not depend on what came before it."""
    first, other, second = jsonl(odd, ask('a', max_tokens=40), ask('b', max_tokens=40), ask('a', max_tokens=40))
    assert content(first) == content(second) != content(other)


def test_content_in_parts(odd):
    parts = [{'type': 'text', 'text': 'one '}, {'type': 'text', 'text': 'two'}]
    request = ask([{'role': 'user', 'content': parts}], **FUSSY)
    assert content(one(odd, request)) == content(one(odd, ask('onetwo', **FUSSY)))


def test_unicode_and_escapes(odd):
    text = 'é…日本🙂 "\\ \t\n/'
    raw = '{"messages": [{"role": "user", "content": %s}], "seed": 1, "max_tokens": 40, "temperature": 5}'
    first, second = jsonl(odd, raw % json.dumps(text), raw % json.dumps(text, ensure_ascii=False))
    assert content(first) == content(second)
    assert first['usage']['prompt_tokens'] == len(tokens_of(odd, ask(text)))


def test_answer_of_broken_bytes_is_valid_utf8(odd):
    """Random tokens, bytes without sense among them: every line is JSON, every string UTF-8 (json.loads and decode say so)."""
    wild = dict(max_tokens=200, temperature=3, top_k=0, top_p=1, logprobs=True, top_logprobs=3)
    for r in jsonl(odd, *(ask(seed=seed, **wild) for seed in range(5))):
        assert r['choices'][0]['message']['content']


@pytest.mark.parametrize('stop, want, finish', [
    (' one', 'The command is', 'stop'), (['zzz', 'is one'], 'The command ', 'stop'), (['T'], '', 'stop'),
    ('…', 'The command is one: é', 'stop'), (['one: é', ' is'], 'The command', 'stop'), ('nothing of this', ANSWER, 'stop'),
    ([], ANSWER, 'stop'), ('é…x', ANSWER, 'stop'), (['e', 'command'], 'Th', 'stop'),
], ids=str)
def test_stop(puppet, stop, want, finish):
    got = one(puppet, ask(stop=stop))
    assert content(got) == want and got['choices'][0]['finish_reason'] == finish
    chunks = jsonl(puppet, ask(stop=stop, stream=True))
    assert joined(chunks, 'content') == want and chunks[-1]['choices'][0]['finish_reason'] == finish


def test_stop_ends_the_work(chatterbox):
    """It is not only cut from the text: the answer is without end."""
    got = one(chatterbox, ask(stop=',The command is o'), *ENDLESS)
    assert content(got) == 'The command is one'
    assert got['usage']['completion_tokens'] < 12


def test_what_was_held_for_a_stop_string_comes_at_the_end(puppet):
    assert content(one(puppet, ask(stop=' is one piece', max_tokens=4))) == 'The command is one'


def test_stop_does_not_act_on_the_thought(puppet):
    message = one(puppet, ask(stop='add', chat_template_kwargs={'enable_thinking': True}))['choices'][0]['message']
    assert message == {'role': 'assistant', 'content': ANSWER, 'reasoning_content': THOUGHT}


def test_thinking(puppet):
    on, off = {'chat_template_kwargs': {'enable_thinking': True}}, {'chat_template_kwargs': {'enable_thinking': False}}
    for options, request, thinks in [((), on, 1), ((), {}, 0), (['--think'], {}, 1), (['--think'], off, 0)]:
        message = one(puppet, ask(**request), *options)['choices'][0]['message']
        assert message['content'] == ANSWER
        assert message.get('reasoning_content') == (THOUGHT if thinks else None)
    chunks = jsonl(puppet, ask(stream=True, **on))
    assert (joined(chunks, 'reasoning_content'), joined(chunks, 'content')) == (THOUGHT, ANSWER)


# ---------------------------------------------------------------------------------------------- logprobs

def test_logprobs_are_those_of_score(odd, tmp_path):
    """Of each token of the answer, the end token left out: as `score` has them for prompt and answer."""
    request = ask('hello', seed=3, max_tokens=12, temperature=1, logprobs=True, top_logprobs=3)
    got = one(odd, request, '--exact')
    entries = got['choices'][0]['logprobs']['content']
    prompt = tokens_of(odd, request)
    answer_ids = ids_of('-m', odd, '--ids', write_ids(tmp_path / 'ids', prompt), '--seed', 3, '-n', 12, '--print-ids', '--exact')
    ended = got['choices'][0]['finish_reason'] == 'stop'
    assert len(entries) == len(answer_ids) - ended
    both = write_ids(tmp_path / 'ids', prompt + answer_ids)
    lines = [json.loads(line) for line in answer('score', '-m', odd, '--exact', '--top', 3, '--ids', both).splitlines()]
    lines = lines[len(prompt) - 1:]
    for entry, before, line in zip(entries, lines, lines[1:]):
        assert set(entry) == {'token', 'logprob', 'bytes', 'top_logprobs'}
        assert entry['token'] == line['token'] and entry['logprob'] == pytest.approx(line['logprob'], abs=1e-3)
        assert bytes(entry['bytes']).decode(errors='replace') == entry['token']
        tops = entry['top_logprobs']
        assert [t['logprob'] for t in tops] == pytest.approx([p for _, p in before['top']], abs=1e-3)
        assert all(set(t) == {'token', 'logprob', 'bytes'} for t in tops)


def test_logprobs_without_top(puppet):
    entries = one(puppet, ask(logprobs=True))['choices'][0]['logprobs']['content']
    assert b''.join(bytes(e['bytes']) for e in entries).decode() == ANSWER
    assert all(e['top_logprobs'] == [] and math.exp(e['logprob']) > 0.9 for e in entries)
    assert one(puppet, ask(logprobs=False))['choices'][0]['logprobs'] is None


def test_logprobs_in_a_stream(odd):
    request = ask(seed=3, max_tokens=30, temperature=3, logprobs=True, top_logprobs=2)
    want = one(odd, request)['choices'][0]['logprobs']['content']
    chunks = jsonl(odd, dict(request, stream=True))
    got = [e for c in chunks if c['choices'] and c['choices'][0]['logprobs'] for e in c['choices'][0]['logprobs']['content']]
    assert got == want


# ---------------------------------------------------------------------------------------------- streams

def joined(chunks, field):
    return ''.join(c['choices'][0]['delta'].get(field, '') for c in chunks if c['choices'])


def test_stream(puppet):
    chunks = jsonl(puppet, ask(stream=True))
    assert {c['object'] for c in chunks} == {'chat.completion.chunk'}
    assert len({(c['id'], c['created'], c['model']) for c in chunks}) == 1
    assert all(len(c['choices']) == 1 and c['choices'][0]['index'] == 0 and 'usage' not in c for c in chunks)
    assert chunks[0]['choices'][0]['delta'] == {'role': 'assistant', 'content': ''}
    assert [c['choices'][0]['finish_reason'] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]['choices'][0] == {'index': 0, 'delta': {}, 'logprobs': None, 'finish_reason': 'stop'}
    assert joined(chunks, 'content') == ANSWER
    texts = [c['choices'][0]['delta']['content'] for c in chunks[1:-1]]
    assert 'The' in texts and 'é' in texts      # token by token, but never half a character


@pytest.mark.parametrize('seed', range(3))
def test_stream_says_the_same(odd, seed):
    request = ask(seed=seed, max_tokens=100, temperature=2)
    whole = one(odd, request)
    chunks = jsonl(odd, dict(request, stream=True))
    assert joined(chunks, 'content') == content(whole)
    assert chunks[-1]['choices'][0]['finish_reason'] == whole['choices'][0]['finish_reason']


def test_include_usage(puppet):
    want = one(puppet, ask())['usage']
    chunks = jsonl(puppet, ask(stream=True, stream_options={'include_usage': True}))
    assert chunks[-1]['choices'] == [] and chunks[-1]['usage'] == want
    assert all(c['usage'] is None for c in chunks[:-1])
    assert chunks[-2]['choices'][0]['finish_reason'] == 'stop'
    assert 'usage' not in jsonl(puppet, ask(stream=True, stream_options={'include_usage': False}))[-1]


# ---------------------------------------------------------------------------------------------- bad lines

def message(**fields):
    return dict(messages=[fields])


def user(part):
    return message(role='user', content=[part])


TOOL = {'type': 'function', 'function': {'name': 'f'}}
BAD_LINES = [
    ('not JSON', 'hello', 'JSON'),
    ('half an object', '{"messages": [', 'JSON'),
    ('list', '[]', 'JSON'),
    ('number', '1', 'JSON'),
    ('null', 'null', 'JSON'),
    ('two objects', json.dumps(ask()) + json.dumps(ask()), 'JSON'),
    ('text behind', json.dumps(ask()) + ' x', 'JSON'),
    ('NUL', '{"messages": [{"role": "user", "content": "a"}], "stop": "\\u0000"}', 'a NUL character outside of messages'),
    ('raw NUL', '{"messages": [{"role": "user", "content": "a\0b"}]}', ''),
    ('no messages', '{}', 'messages'),
    ('messages are text', '{"messages": "hi"}', 'messages'),
    ('empty list', '{"messages": []}', 'messages'),
    ('message is text', '{"messages": ["hi"]}', 'messages[0]'),
    ('no role', message(content='hi'), 'messages[0].role'),
    ('unknown role', message(role='wizard', content='hi'), 'messages[0].role'),
    ('role is a number', message(role=1), 'messages[0].role'),
    ('tool message', message(role='tool', content='hi'), 'messages[0]'),
    ('tool call', message(role='assistant', content='', tool_calls=[{'id': 'x'}]), 'messages[0].tool_calls[0].function.name'),
    ('content is a number', message(role='user', content=5), 'messages[0].content'),
    ('second message', ask([{'role': 'user', 'content': 'hi'}, {'role': 'user', 'content': {}}]), 'messages[1].content'),
    ('audio', user({'type': 'input_audio', 'input_audio': {'data': '', 'format': 'wav'}}), 'audio'),
    ('video', user({'type': 'video'}), 'video_url'),
    ('image', user({'type': 'image_url', 'image_url': {'url': 'x.png'}}), 'x.png: No such file'),
    ('unknown part', user({'type': 'smell'}), 'messages[0].content[0].type'),
    ('part without type', user({'text': 'x'}), 'messages[0].content[0].type'),
    ('part is text', user('x'), 'messages[0].content[0]'),
    ('text is missing', user({'type': 'text'}), 'messages[0].content[0].text'),
    ('tools', ask(tools={}), 'tools'),
    ('tool without a function', ask(tools=[{'type': 'function'}]), 'tools[0].function'),
    ('tool without a name', ask(tools=[TOOL, {'type': 'function', 'function': {}}]), 'tools[1].function.name'),
    ('other tool', ask(tools=[{'type': 'retrieval'}]), 'tools[0].type'),
    ('choice', ask(tools=[TOOL], tool_choice='always'), 'tool_choice'),
    ('choice of no tool', ask(tools=[TOOL], tool_choice={'type': 'function', 'function': {'name': 'g'}}), 'tool_choice'),
    ('choice without tools', ask(tool_choice='required'), 'tool_choice'),
    ('choice and format', ask(tools=[TOOL], tool_choice='required', response_format={'type': 'json_object'}), 'response_format'),
    ('parameters', ask(tools=[{'function': {'name': 'f', 'parameters': {'type': 'object', 'properties': {'x': {'odd': {}}}}}}],
                       tool_choice='required'), 'tools: parameters of f: #/properties/x/odd: not supported'),
    ('parallel', ask(tools=[TOOL], parallel_tool_calls=1), 'parallel_tool_calls'),
    ('budget', ask(thinking_token_budget='x'), 'thinking_token_budget'),
    ('batch without a body', {'custom_id': 'a', 'body': 5}, 'body'),
    ('batch of something else', {'custom_id': 'a', 'url': '/v1/embeddings', 'body': ask()}, 'url: must be /v1/chat/completions'),
    ('stream in a batch', {'custom_id': 'a', 'body': ask(stream=True)}, 'stream'),
    ('functions', ask(functions=[{'name': 'f'}]), 'functions'),
    ('logit_bias list', ask(logit_bias=[[5, 1]]), 'logit_bias: not an object'),
    ('logit_bias name', ask(logit_bias={'x': 1}), 'logit_bias.x: not a token id'),
    ('logit_bias beyond', ask(logit_bias={'99999': 1}), 'logit_bias.99999: not a token id'),
    ('logit_bias value', ask(logit_bias={'5': 101}), 'logit_bias.5: not a number'),
    ('penalty', ask(presence_penalty='x'), 'presence_penalty'),
    ('frequency', ask(frequency_penalty=1000), 'frequency_penalty'),
    ('two penalties', ask(repeat_penalty=1.1, repetition_penalty=1.2), 'repeat_penalty'),
    ('stop ids', ask(stop_token_ids=[-1]), 'stop_token_ids'),
    ('stop ids beyond', ask(stop_token_ids=[10 ** 6]), 'stop_token_ids'),
    ('stop id', ask(stop_token_ids=5), 'stop_token_ids'),
    ('min_tokens', ask(min_tokens=5, max_tokens=4), 'min_tokens'),
    ('min_tokens below 0', ask(min_tokens=-1), 'min_tokens'),
    ('effort', ask(reasoning_effort='huge'), 'reasoning_effort'),
    ('effort against thinking', ask(reasoning_effort='high', chat_template_kwargs={'enable_thinking': False}), 'reasoning_effort: contradicts'),
    ('think against effort', ask(reasoning_effort='none', think=True), 'think: contradicts'),
    ('think', ask(think=5), 'think: must be'),
    ('kwargs', ask(chat_template_kwargs=5), 'chat_template_kwargs'),
    ('prefix of a user', ask(continue_final_message=True), 'continue_final_message: messages[0]'),
    ('prefix against the schema', ask([{'role': 'assistant', 'content': 'a'}], continue_final_message=True, format='json'),
     'continue_final_message: no answer that the schema allows begins'),
    ('prefix and a prompt', ask([{'role': 'assistant', 'content': 'a'}], continue_final_message=True, add_generation_prompt=True), 'add_generation_prompt'),
    ('no prompt', ask(add_generation_prompt=False), 'add_generation_prompt'),
    ('two schemas', ask(guided_json={'type': 'object'}, format={'type': 'string'}), 'format: another schema'),
    ('guided text', ask(guided_json='{'), 'guided_json: not valid JSON'),
    ('guided number', ask(guided_json=5), 'guided_json: not a schema'),
    ('structured', ask(structured_outputs={'regex': 'a*'}), 'structured_outputs.regex: not supported'),
    ('structured text', ask(structured_outputs='x'), 'structured_outputs: not an object'),
    ('ollama', ask(format='xml'), 'format: must be json'),
    ('grammar', ask(grammar='root ::= "yes"'), 'grammar: not supported'),
    ('regex', ask(guided_regex='a*'), 'guided_regex: not supported'),
    ('choice of words', ask(guided_choice=['a', 'b']), 'guided_choice: not supported'),
    ('dry', ask(dry_multiplier=0.8), 'dry_multiplier: not supported'),
    ('xtc', ask(xtc_probability=0.5), 'xtc_probability: not supported'),
    ('mirostat', ask(mirostat=2), 'mirostat: not supported'),
    ('options', ask(options={'temperature': 0}), 'options: not supported'),
    ('special tokens', ask(skip_special_tokens=False), 'skip_special_tokens: not supported'),
    ('batch id', {'custom_id': [], 'body': ask()}, 'custom_id: not a string or a number'),
    ('tool without a name', ask(tools=[{'inputSchema': {}}]), 'tools[0].function'),
    ('thought of a user', ask([{'role': 'user', 'content': [{'type': 'thinking', 'thinking': 'x'}]}]), 'messages[0].content[0].type'),
    ('n', ask(n=0), 'n:'),
    ('format', ask(response_format={'type': 'xml'}), 'response_format'),
    ('format without a schema', ask(response_format={'type': 'json_schema'}), 'response_format.json_schema.schema'),
    ('keyword', ask(response_format={'type': 'json_schema', 'json_schema': {'schema': {'properties': {'a': {'odd': 2}}}}}),
     'response_format: #/properties/a/odd: not supported'),
    ('sound', ask(modalities=['text', 'audio']), 'modalities'),
    ('temperature text', ask(temperature='hot'), 'temperature'),
    ('temperature', ask(temperature=-1), 'temperature'),
    ('top_p', ask(top_p=2), 'top_p'),
    ('min_p', ask(min_p=-1), 'min_p'),
    ('top_k', ask(top_k=1.5), 'top_k'),
    ('seed', ask(seed='x'), 'seed'),
    ('half a seed', ask(seed=1.5), 'seed'),
    ('max_tokens', ask(max_tokens=-2), 'max_tokens'),
    ('max_tokens text', ask(max_tokens='9'), 'max_tokens'),
    ('max_completion_tokens', ask(max_completion_tokens=1.5), 'max_completion_tokens'),
    ('stop', ask(stop=5), 'stop'),
    ('stop list', ask(stop=['a', 1]), 'stop'),
    ('empty stop', ask(stop=''), 'stop'),
    ('stream', ask(stream='yes'), 'stream'),
    ('logprobs', ask(logprobs=1), 'logprobs'),
    ('top_logprobs', ask(logprobs=True, top_logprobs=1000), 'top_logprobs'),
    ('top_logprobs alone', ask(top_logprobs=2), 'top_logprobs'),
    ('thinking', ask(chat_template_kwargs={'enable_thinking': 'on'}), 'enable_thinking'),
    ('include_usage', ask(stream=True, stream_options={'include_usage': 1}), 'include_usage'),
    ('too long', ask('hello ' * 5000), '4096'),
    ('too long stream', ask('hello ' * 5000, stream=True), '4096'),
]


@pytest.mark.parametrize('line, word', [case[1:] for case in BAD_LINES], ids=[case[0] for case in BAD_LINES])
def test_bad_line(odd, line, word):
    """An error object in its place, with the line's number (line 2 is empty); the others are answered as if it were not there."""
    good = ask(**FUSSY)
    answers = jsonl(odd, good, '', line, good, status=1)
    first, error, second = answers[0], answers[-2], answers[-1]
    assert len(answers) == 3
    if 'custom_id' in line:
        assert error.pop('custom_id') == line['custom_id'] and error.pop('id') and error.pop('response') is None
    assert set(error) == {'error'} and set(error['error']) == {'message', 'type', 'line'}
    assert error['error']['line'] == 3 and isinstance(error['error']['type'], str)
    assert word in error['error']['message'] and error['error']['message']
    assert content(first) == content(second)


def test_all_bad_and_none(puppet):
    answers = jsonl(puppet, 'x', 'y', status=1)
    assert [a['error']['line'] for a in answers] == [1, 2]
    assert jsonl(puppet) == []
    assert jsonl(puppet, '', ' \t') == []


def test_fields_that_mean_nothing_here_are_fine(puppet):
    request = ask(model='gpt', user='me', n=1, tools=[], logit_bias={}, presence_penalty=0, frequency_penalty=0, metadata={'a': 1},
                  response_format={'type': 'text'}, modalities=['text'], store=False)
    assert content(one(puppet, request)) == ANSWER


def test_last_line_needs_no_newline(puppet):
    done = run('-m', puppet, '--jsonl', stdin=json.dumps(ask()))
    assert (done.returncode, content(json.loads(done.stdout))) == (0, ANSWER)


def test_windows_line_ends(puppet):
    done = run('-m', puppet, '--jsonl', stdin=json.dumps(ask()) + '\r\n\r\n' + json.dumps(ask()) + '\r\n')
    assert done.returncode == 0 and done.stdout.count(b'\n') == 2


def test_stats_for_each_answer(puppet):
    done = run('-m', puppet, '--jsonl', '--stats', stdin=(json.dumps(ask()) + '\n') * 2)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 2 and all('answer: 10 tokens' in line for line in lines)
    assert re.search(r'\(\d+ reused\)', lines[1]) and 'reused' not in lines[0]


# ---------------------------------------------------------------------------------------------- one process, many requests

def test_answers_come_line_by_line(start, puppet):
    """Each is there before the next question is asked."""
    p = start('-m', puppet, '--jsonl')
    for line in (ask(), 'no JSON', ask(max_tokens=1), ask()):
        p.stdin.write((line if isinstance(line, str) else json.dumps(line)).encode() + b'\n')
        got = json.loads(read_line(p.stdout))
        assert ('error' in got) == (line == 'no JSON')
    p.stdin.close()
    assert (p.stdout.read(), p.wait(PATIENCE)) == (b'', 1)


def test_chunks_come_as_they_are_made(start, chatterbox):
    p = start('-m', chatterbox, '--jsonl', *ENDLESS)
    p.stdin.write(json.dumps(ask(stream=True)).encode() + b'\n')
    texts = [json.loads(read_line(p.stdout))['choices'][0]['delta'].get('content') for _ in range(20)]
    assert ''.join(texts).startswith('The command is one,The')


@pytest.mark.parametrize('stream', [False, True])
def test_interrupt(start, chatterbox, stream):
    """What was whole stays; the request that is being answered ends without an answer, and no further one is begun."""
    p = start('-m', chatterbox, '--jsonl', *ENDLESS)
    p.stdin.write(json.dumps(ask(max_tokens=3)).encode() + b'\n')
    assert content(json.loads(read_line(p.stdout))) == 'The command is'
    p.stdin.write((json.dumps(ask(stream=stream)) + '\n').encode() * 2)
    if stream:
        read_line(p.stdout)
    p.send_signal(signal.SIGINT)
    rest = p.stdout.read().splitlines()
    assert (p.wait(PATIENCE), p.stderr.read()) == (130, b'')
    assert all(json.loads(line)['object'] == 'chat.completion.chunk' for line in rest)
    assert stream or not rest


def conversation(model, texts, **fields):
    """The requests of a conversation, each with the answers before it, as one process gives them; and these answers."""
    messages, requests, answers = [], [], []
    for text in texts:
        messages = messages + [{'role': 'user', 'content': text}]
        requests.append(ask(messages, **fields))
        answers.append(jsonl(model, *requests, options=['--exact'])[-1])
        messages = messages + [{'role': 'assistant', 'content': content(answers[-1])}]
    return requests, answers


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


# Longer than the sliding window of the checkpoints (24 and less), so that its rings have gone on when a turn returns.
LONG = 'The old man who counts them writes the number in a book with a blue cover, and on others he counts a rock. '
TEXTS = ['hello', LONG, 'and?', LONG + LONG, 'so']


@pytest.mark.parametrize('name', ['odd-bf16', 'odd-experts', 'odd-all', 'dense'])
@pytest.mark.parametrize('options', [[], ['--chunk', 5]], ids=str)
def test_the_cache_is_reused_and_does_not_show(name, options):
    """A conversation in one process: every answer is that of a process of its own, though only what is new is evaluated: the
    template drops the last answer's tail, nothing before it."""
    model = FIXTURES / name
    requests, answers = conversation(model, TEXTS, seed=5, max_tokens=30)
    got = jsonl(model, *requests, options=['--exact', *options])
    alone = [one(model, r, '--exact', *options) for r in requests]
    assert [content(r) for r in got] == [content(r) for r in alone]
    prompts = [tokens_of(model, r) for r in requests]
    cached = [r['usage']['prompt_tokens_details']['cached_tokens'] for r in got]
    assert cached[0] == 0
    for before, prompt, n in zip(prompts, prompts[1:], cached[1:]):
        assert common(before, prompt) <= n < len(prompt)
    assert all(r['usage']['prompt_tokens_details']['cached_tokens'] == 0 for r in alone)


def test_common_prefix_of_unrelated_requests(odd):
    """A long system prompt that many requests begin with is evaluated twice at most; so is a history that is edited, and
    neither changes an answer. In steps of 5 the rings have left the prefix behind each time."""
    system = {'role': 'system', 'content': LONG * 3}
    users = [{'role': 'user', 'content': text} for text in ('a b', 'the', LONG, 'one', 'a b')]
    requests = [ask([system, user], seed=5, max_tokens=30) for user in users]
    prompts = [tokens_of(odd, r) for r in requests]
    shared = min(common(prompts[0], p) for p in prompts[1:])
    assert shared > 80
    got = jsonl(odd, *requests, options=['--exact', '--chunk', 5])
    assert [content(r) for r in got] == [content(one(odd, r, '--exact', '--chunk', 5)) for r in requests]
    cached = [r['usage']['prompt_tokens_details']['cached_tokens'] for r in got]
    assert min(cached[2:]) >= shared, cached


def test_same_request_again_is_cached(odd):
    n = len(tokens_of(odd, ask(LONG)))
    got = jsonl(odd, *[ask(LONG, max_tokens=40, temperature=0)] * 3)
    assert len({content(r) for r in got}) == 1
    assert all(r['usage']['prompt_tokens_details']['cached_tokens'] > n // 2 for r in got[1:])


def test_demo_holds_a_conversation(demo):
    requests, answers = conversation(demo, ['Hello!', 'What is this program?', 'What is 3 + 4?'], temperature=0, max_tokens=100)
    assert all(content(a).strip() and a['choices'][0]['finish_reason'] in ('stop', 'length') for a in answers)
    assert content(one(demo, requests[-1], '--exact')) == content(answers[-1])


def test_eos_ids_are_those_of_the_generation_config(odd, copy):
    """With other end tokens the same sampled answer ends elsewhere."""
    model = copy(odd)
    config = read_json(model / 'generation_config.json')
    prompt = ('--raw', '-p', 'go on', '--seed', 2, '--print-ids', '-n', 60)
    ids = ids_of('-m', odd, *prompt, '--ignore-eos')
    config['eos_token_id'] = ids[20]
    (model / 'generation_config.json').write_text(json.dumps(config))
    assert ids_of('-m', model, *prompt) == ids[:ids.index(ids[20]) + 1]


def test_error_of_the_directory_is_no_error_object(tmp_path):
    assert 'config.json' in complaint(1, '-m', tmp_path, '--jsonl', stdin=json.dumps(ask()))
