"""Requests as other clients and servers write them, and `parse`, which shows what becomes of an answer."""
import json
import re

import pexpect
import pytest

from conftest import DEMO, GEMMA4, PATIENCE, answer, complaint, environment, make_puppet, run
from test_jsonl import ask, content, jsonl, one

SAID = 'The command is'
HI = {'role': 'user', 'content': 'Hi'}


@pytest.fixture(scope='module')
def counter(tmp_path_factory):
    """A model that says three words and ends."""
    words = ['The', '\u2581command', '\u2581is', '<turn|>']
    return make_puppet(tmp_path_factory.mktemp('puppet') / 'counts', [['<channel|>', *words]])


def id_of(model, piece):
    return json.loads((model / 'tokenizer.json').read_text())['model']['vocab'][piece]


def render(request, *options, model=DEMO):
    return answer('render', '-m', model, *options, stdin=json.dumps(request))


def parse(text, *options, model=DEMO):
    line = answer('parse', '-m', model, *options, stdin=text)
    assert line.count('\n') == 1
    return json.loads(line)


def called(message):
    return [(c['function']['name'], json.loads(c['function']['arguments'])) for c in message['tool_calls']]


# ---------------------------------------------------------------------------------------------- text of other kinds

def test_nul(odd):
    """In messages it becomes U+FFFD, and a warning says so; elsewhere it is an error."""
    request = {'messages': [dict(HI, content='a\0b\\\\u0000')], 'max_tokens': 1}
    assert 'a\ufffdb\\\\u0000' in render(request)
    for given in (request, {'custom_id': '1', 'body': request}):
        got = one(odd, given)
        got = got.get('response', {}).get('body', got)
        assert got['choices'][0]['warnings'][0] == 'a NUL character (\\u0000) became U+FFFD'
    got, = jsonl(odd, dict(request, stop='\0'), status=1)
    assert got['error']['message'] == 'a NUL character outside of messages'


def test_half_a_surrogate_pair(odd):
    """As JSON.stringify writes a cut emoji."""
    for text, want in [(r'"a\ud83d"', 'a\ufffd'), (r'"\udc4d b"', '\ufffd b'), (r'"\ud83d\ud83d\ude00"', '\ufffd\U0001f600'),
                       (r'"\ud83dx"', '\ufffdx'), (r'"\\ud83d"', '\\ud83d'), (r'"\ud83d\\udc4d"', '\ufffd\\udc4d')]:
        assert render_text('{"messages": [{"role": "user", "content": %s}]}' % text) == want
        tool = '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", ' \
               '"arguments": {"a": %s}}}]}]}' % text
        assert 'call:f{a:<|"|>%s<|"|>}' % want in answer('render', '-m', odd, stdin=tool)


def test_a_request_of_two_readings(odd):
    """Readers of JSON differ in which of two values counts, and in what a byte that is not UTF-8 means."""
    for text, says in [(b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "max_tokens": 2}', 'max_tokens stands twice'),
                       (b'{"messages": [{"role": "user", "content": "x", "content": "y"}]}', 'content stands twice'),
                       (b'{"messages": [{"role": "user", "content": "caf\xe9"}]}', 'not UTF-8 at byte 46'),
                       (b'{"messages": [{"role": "user", "content": "\xc3', 'not UTF-8 at byte 43')]:
        done = run('--jsonl', '-m', odd, stdin=text + b'\n')
        assert done.returncode == 1 and json.loads(done.stdout)['error']['message'] == says


def test_a_result_of_no_call(odd):
    """It is the result of an unknown tool for the model: as in the template, but not in silence."""
    def warned(**result):
        call = {'id': '1', 'type': 'function', 'function': {'name': 'f', 'arguments': '{}'}}
        messages = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'tool_calls': [call]}, {'role': 'tool', 'content': 'y', **result}]
        done = run('--jsonl', '-m', odd, stdin=json.dumps({'messages': messages, 'max_tokens': 1}))
        return [w for w in json.loads(done.stdout)['choices'][0].get('warnings', []) if 'tool_call_id' in w]
    assert warned(tool_call_id='1') == warned(tool_call_id='9', name='f') == warned(tool_name='f') == []
    assert warned(tool_call_id='9') == warned() == ['messages[2].tool_call_id: no call has this id']


def test_a_message_without_content(odd, tmp_path):
    """It is empty, as in the template; only those of the assistant may lack it in silence. A loaded conversation is read likewise."""
    call = {'role': 'assistant', 'tool_calls': [{'id': '1', 'type': 'function', 'function': {'name': 'f', 'arguments': '{}'}}]}
    messages = [{'role': 'system'}, {'role': 'user', 'content': None}, call, {'role': 'tool', 'tool_call_id': '1', 'content': None},
                {'role': 'assistant'}, {'role': 'user', 'content': ''}, {'role': 'user'}]
    lines = ['messages[%d].content is missing: the message is empty' % i for i in (0, 1, 6)]
    done = run('--jsonl', '-m', odd, stdin=json.dumps({'messages': messages, 'max_tokens': 1}))
    assert [w for w in json.loads(done.stdout)['choices'][0]['warnings'] if 'content' in w] == lines
    (tmp_path / 'talk').write_text(json.dumps({'messages': messages}))
    said = run('-m', odd, '--load', tmp_path / 'talk', '-n', 1, 'x').stderr.decode()
    assert [said.count(line) for line in lines] == [1, 1, 1]


@pytest.mark.parametrize('arguments, flawed', [
    ('{city:', True), ('[1]', True), ([1], True), ('{"a": 1}', False), ({'a': 1}, False), ('', False), (None, False)])
def test_arguments_that_are_no_object(odd, arguments, flawed):
    """The model reads them as they are, and a warning says so."""
    call = {'id': '1', 'type': 'function', 'function': {'name': 'f', 'arguments': arguments}}
    messages = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'tool_calls': [call]}, {'role': 'tool', 'content': 'y', 'tool_call_id': '1'}]
    choice = one(odd, ask(messages, max_tokens=1))['choices'][0]
    says = 'messages[1].tool_calls[0].function.arguments: no JSON object: the model reads them as they are'
    assert (says in choice.get('warnings', [])) == flawed


def test_half_a_character(odd):
    """A lone surrogate becomes U+FFFD, and a warning says so; a pair is a character."""
    for text, flawed in (r'"Done \ud83d"', True), (r'"Done \ud83d\ude00"', False), (r'"\\ud83d"', False):
        choice = one(odd, '{"max_tokens": 1, "messages": [{"role": "user", "content": %s}]}' % text)['choices'][0]
        assert ('half of a surrogate pair (as \\ud800) became U+FFFD' in choice.get('warnings', [])) == flawed


@pytest.mark.parametrize('field, value, says', [
    ('max_tokens', -5, '-5 is not between -1 and 1073741824'), ('n', 0, '0 is not between 1 and 128'), ('n', 129, '129 is not between 1 and 128'),
    ('top_logprobs', 101, '101 is not between 0 and 100'), ('temperature', -0.5, '-0.5 is not between 0 and 100'),
    ('temperature', '1e400', '1e400 is not between 0 and 100'), ('n', '1.00000001', '1.00000001 is not a whole number')])
def test_ranges(odd, field, value, says):
    """The number stands in the message as it was written."""
    done = run('--jsonl', '-m', odd, stdin='{"messages": [{"role": "user", "content": "x"}], "%s": %s}' % (field, value))
    assert json.loads(done.stdout)['error']['message'] == '%s: %s' % (field, says)


def render_text(request):
    text = answer('render', '-m', DEMO, stdin=request)
    return re.fullmatch('<bos><[|]turn>user\n(.*)<turn[|]>\n<[|]turn>model\n.*', text, re.S).group(1)


def test_tools_in_other_shapes(tmp_path):
    plain = [{'type': 'function', 'function': {'name': 'look', 'description': 'Looks.', 'parameters': {'type': 'object', 'properties': {
        'at': {'type': 'string'}}}}}]
    flat = [{'type': 'function', **plain[0]['function'], 'strict': True}]
    inner = [{'type': 'function', 'function': {'name': 'look', 'description': 'Looks.', 'parameters': None,
                                               'input_schema': plain[0]['function']['parameters']}}]
    mcp = [{'name': 'look', 'description': 'Looks.', 'inputSchema': plain[0]['function']['parameters'], 'annotations': {'title': 'x'}}]
    want = render({'messages': [HI], 'tools': plain})
    assert 'declaration:look{' in want
    anthropic = [{'type': 'custom', 'name': 'look', 'description': 'Looks.', 'input_schema': plain[0]['function']['parameters']}]
    gemini = [{'functionDeclarations': [plain[0]['function']]}]
    for tools in (flat, inner, anthropic, gemini, mcp, {'tools': mcp}, {'jsonrpc': '2.0', 'id': 1, 'result': {'tools': mcp}}):
        assert render({'messages': [HI], 'tools': tools}) == want
        path = tmp_path / 'tools.json'
        path.write_text(json.dumps(tools))
        assert render({'messages': [HI]}, '--tools', path) == want


def test_a_picture_in_a_result_is_seen(odd):
    """In the place that the template gives it, and in MCP's and Anthropic's spelling too."""
    pixel = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
    call = {'role': 'assistant', 'tool_calls': [{'id': '1', 'function': {'name': 'shot', 'arguments': '{}'}}]}
    parts = [{'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,' + pixel}}, {'type': 'image', 'data': pixel, 'mimeType': 'image/png'},
             {'type': 'image', 'source': {'type': 'base64', 'media_type': 'image/png', 'data': pixel}},
             {'type': 'image', 'source': {'type': 'url', 'url': 'data:image/png;base64,' + pixel}}]
    for part in parts:
        text = render({'messages': [HI, call, {'role': 'tool', 'tool_call_id': '1', 'content': [{'type': 'text', 'text': 'done'}, part]}]}, model=odd)
        assert re.search(r'value:<[|]"[|]>done<[|]"[|]>}<tool_response[|]><[|]image>(<[|]image[|]>)+<image[|]>$', text)
    bad = {'type': 'image', 'data': 'x', 'mimeType': 'image/png'}
    error, = jsonl(odd, ask([HI, call, {'role': 'tool', 'tool_call_id': '1', 'content': [bad]}]), status=1)
    assert error['error']['message'].startswith('messages[2].content[0]: ')
    stored = {'type': 'image', 'source': {'type': 'file', 'file_id': 'x'}}
    assert 'must have the type base64 or url' in complaint(1, 'render', '-m', odd, stdin=json.dumps({'messages': [{'role': 'user', 'content': [stored]}]}))


@pytest.mark.parametrize('message, want', [
    ({'content': None, 'refusal': 'No.'}, 'No.'), ({'content': 'Yes.', 'refusal': None}, 'Yes.'),
    ({'content': 'Yes.', 'thinking': 'Hm.'}, '<|channel>thought\nHm.\n<channel|>Yes.'),
    ({'content': [{'type': 'reasoning', 'summary': [{'type': 'summary_text', 'text': 'Hm.'}]}, {'type': 'text', 'text': 'Yes.'}]},
     '<|channel>thought\nHm.\n<channel|>Yes.'),
    ({'reasoning': 'A', 'content': [{'type': 'reasoning', 'summary': [{'text': 'short'}], 'content': [{'text': 'B'}, {'text': 'C'}]}]},
     '<|channel>thought\nABC\n<channel|>'),
    ({'content': 'Yes.', 'reasoning_details': [{'type': 'reasoning.text', 'text': 'Hm.'}]}, '<|channel>thought\nHm.\n<channel|>Yes.'),
    ({'content': 'Yes.', 'thinking_blocks': [{'type': 'thinking', 'thinking': 'Hm.'}]}, '<|channel>thought\nHm.\n<channel|>Yes.'),
    ({'reasoning': 'A', 'content': [{'type': 'thinking', 'thinking': 'A', 'signature': 'x'}]}, '<|channel>thought\nA\n<channel|>')])
def test_other_places_of_texts_and_thoughts(message, want):
    request = {'messages': [HI, dict(message, role='assistant')], 'continue_final_message': True}
    assert render(request).endswith('<|turn>model\n' + want)


def test_result_as_ollama_names_it():
    call = {'role': 'assistant', 'tool_calls': [{'function': {'name': 'f', 'arguments': {}}}, {'function': {'name': 'g', 'arguments': {}}}]}
    text = render({'messages': [HI, call, {'role': 'tool', 'tool_name': 'g', 'tool_call_id': 'x', 'content': 'done'}]})
    assert 'response:g{value:' in text


def test_prefix(odd):
    """continue_final_message: the answer goes on where the message ends, and holds only what is new."""
    request = ask([HI, {'role': 'assistant', 'content': ' The'}], continue_final_message=True, add_generation_prompt=False)
    assert render(request, model=odd).endswith('<|turn>model\nThe')
    for mark in ('prefix', 'partial'):
        assert render(ask([HI, {'role': 'assistant', 'content': ' The', mark: True}]), model=odd).endswith('<|turn>model\nThe')
    got = one(odd, dict(request, temperature=0, max_tokens=8))
    ids = answer('render', '-m', odd, '--ids', stdin=json.dumps(request)).split()
    assert got['usage']['prompt_tokens'] == len(ids) and got['usage']['completion_tokens'] == 8


@pytest.mark.parametrize('begun', ['{', ' {"na', '{"name":\n', '{"name": "x\\u00', '{"name": "\u00e9", "age": 1', '{"name": "x", "age": 10}'])
def test_prefix_of_a_schema(odd, begun):
    """The message and the answer are a value together, also at the least limit; without one that is said."""
    schema = {'type': 'object', 'properties': {'name': {'type': 'string', 'maxLength': 5}, 'age': {'type': 'integer', 'maximum': 99}},
              'required': ['name', 'age']}
    request = ask([HI, {'role': 'assistant', 'content': begun, 'prefix': True}], temperature=3, top_k=0, top_p=1, format=schema)
    for limit in (8, 60):
        for seed in range(3):
            got, = jsonl(odd, dict(request, max_tokens=limit, seed=seed), status=None)
            if 'error' in got:
                assert limit == 8 and 'needs at least' in got['error']['message']
                continue
            value = json.loads(begun.strip() + content(got))
            assert list(value) == ['name', 'age'] and len(value['name']) <= 5 and value['age'] <= 99


# ---------------------------------------------------------------------------------------------- limits, ends, penalties

def test_no_limit(counter):
    for field in ('max_tokens', 'max_completion_tokens', 'n_predict'):
        assert content(one(counter, ask(**{field: -1}), '-n', 1)) == SAID


def test_stop_token_ids(counter):
    got = one(counter, ask(stop_token_ids=[id_of(counter, '\u2581command')]))
    assert content(got) == 'The' and got['choices'][0]['finish_reason'] == 'stop' and got['usage']['completion_tokens'] == 2


def test_min_tokens(counter):
    """Before so many tokens nothing ends the turn, be it the checkpoint's token or one of the request's."""
    assert one(counter, ask())['usage']['completion_tokens'] == 4
    assert one(counter, ask(min_tokens=3))['usage']['completion_tokens'] == 4
    assert one(counter, ask(min_tokens=4))['usage']['completion_tokens'] > 4
    got = one(counter, ask(min_tokens=9, max_tokens=9))
    assert got['usage']['completion_tokens'] == 9 and content(got).startswith(SAID)
    two = id_of(counter, '\u2581command')
    assert content(one(counter, ask(stop_token_ids=[two], min_tokens=3))).startswith('The')
    assert one(counter, ask(stop_token_ids=[two], min_tokens=3))['usage']['completion_tokens'] >= 3


def test_ignore_eos(counter):
    got = one(counter, ask(ignore_eos=True, max_tokens=12))
    assert got['usage']['completion_tokens'] == 12 and got['choices'][0]['finish_reason'] == 'length'


def test_logit_bias(counter):
    the, command = id_of(counter, 'The'), id_of(counter, '\u2581command')
    assert content(one(counter, ask(logit_bias={str(the): -100}, temperature=0, max_tokens=4))) != SAID
    assert content(one(counter, ask(logit_bias={str(command): 100}, temperature=0, max_tokens=3))) == ' command command command'


def test_penalties(odd):
    """A greedy answer that repeats itself does not under a large penalty; the prompt's tokens are free, as they are no answer."""
    def tokens(**fields):
        got = one(odd, ask(temperature=0, max_tokens=20, logprobs=True, **fields))
        return [tuple(t['bytes']) for t in got['choices'][0]['logprobs']['content']]
    plain = tokens()
    assert len(set(plain)) < len(plain)
    for fields in ({'presence_penalty': 100}, {'frequency_penalty': 100}):
        other = tokens(**fields)
        assert len(set(other)) == len(other) and other[0] == plain[0]
    assert tokens(repeat_penalty=1.5) == tokens(repetition_penalty=1.5) != plain


# ---------------------------------------------------------------------------------------------- thinking

CONTRADICTIONS = [
    (dict(thinking={'type': 'disabled'}, reasoning_effort='low'), 'thinking.type: contradicts another field'),
    (dict(thinking_budget=5, reasoning={'max_tokens': 6}), 'reasoning.max_tokens: contradicts another budget'),
    (dict(response_format={'type': 'json_schema', 'json_schema': {'schema': {}}, 'schema': {'type': 'null'}}), 'response_format.schema: beside'),
    (dict(max_tokens=3, n_predict=4), 'n_predict: contradicts max_tokens'),
    (dict(max_completion_tokens=3, max_tokens=-1), 'max_tokens: contradicts max_completion_tokens'),
    (dict(reasoning_effort='low', think='high'), 'think: contradicts reasoning_effort'),
    (dict(reasoning_effort='none', think=True), 'think: contradicts'), (dict(enable_thinking=True, think=False), 'think: contradicts'),
    (dict(repeat_penalty=1.1, repetition_penalty=1.2), 'repeat_penalty: contradicts'),
    (dict(response_format={'type': 'text', 'schema': {}}), 'response_format.type: text beside'),
    (dict(guided_json={}, format={'type': 'null'}), 'format: another schema'),
]
REFUSED = [
    (dict(response_format={'type': 'json_object', 'json_schema': {'type': 'null'}}), 'response_format.json_schema.schema: missing'),
    (dict(thinking='on'), 'thinking.type: must be'), (dict(reasoning={'effort': 'x'}), 'reasoning.effort: must be none'),
    (dict(reasoning={'exclude': True}), 'reasoning.exclude: not supported'), (dict(reasoning_format='none'), 'reasoning_format: must be auto'),
    (dict(think=7), 'think: must be true, false, none'), (dict(reasoning_effort=True), 'reasoning_effort: must be none'),
    (dict(chat_template_kwargs={'enable_thinking': 'yes'}), 'chat_template_kwargs.enable_thinking: not true or false'),
    (dict(tool_choice='required'), 'tool_choice: there are no tools'),
    (dict(tools=[{'name': 'f'}], tool_choice={'type': 'function', 'name': 'g'}), 'tool_choice: no tool g'),
    (dict(guided_json={'odd': {}}), 'guided_json: #/odd: not supported'), (dict(format={'odd': {}}), 'format: #/odd: not supported'),
    (dict(structured_outputs={'json': {}, 'disable_any_whitespace': True}), 'structured_outputs.disable_any_whitespace: not supported'),
    (dict(tools=[{'name': 'f', 'parameters': {'properties': {'a:b': {}}}}], tool_choice='required'),
     'tools: parameters of f: #/properties: the name "a:b" cannot be written in a call'),
    *[({name: value}, name + ': not supported') for name, value in [
        ('text', {'format': {'type': 'json_object'}}), ('instructions', 'Be brief.'), ('system', 'Be brief.'), ('num_ctx', 4096),
        ('raw', True), ('previous_response_id', 'x'), ('max_new_tokens', 5), ('stop_sequences', ['x']), ('responseSchema', {'type': 'null'}),
        ('extra_body', {'top_k': 1}), ('web_search_options', {})]],
    *[(dict(messages=[dict(HI, **{name: value})]), 'messages[0].%s: not supported' % name) for name, value in [
        ('images', ['x']), ('function_call', {'name': 'f', 'arguments': '{}'}), ('audio', {'id': 'x'})]],
]


@pytest.mark.parametrize('fields, why', CONTRADICTIONS + REFUSED)
def test_what_is_refused(counter, fields, why):
    error, = jsonl(counter, dict(ask(), **fields), status=1)
    assert error['error']['message'].startswith(why)


@pytest.mark.parametrize('fields, why', [
    (dict(min_tokens=3, max_tokens=30, format={'type': 'boolean'}), 'min_tokens had no effect: a schema ends the answer'),
    (dict(tools=[{'name': 'f'}], format={'type': 'boolean'}), 'the tools had no effect: beside a schema nothing is called'),
    (dict(messages=[dict(HI, foo=1)]), 'unknown fields had no effect: messages[0].foo'),
    (dict(custom_id='a'), 'unknown fields had no effect: custom_id'), (dict(thinking={'type': 'disabled', 'x': 1}), 'unknown fields had no effect: thinking.x'),
    (dict(tools=[{'name': 'f', 'params': {}, 'strict': True}]), 'unknown fields had no effect: tools[0].params'),
    ({'a\nb': 1, 'c': 1}, 'unknown fields had no effect: "a\\nb", c'),
    (dict(response_format={'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'type': 'null'}, 'foo': 1}, 'bar': 2}),
     'unknown fields had no effect: response_format.bar, response_format.json_schema.foo')])
def test_what_had_no_effect(counter, fields, why):
    choice, = one(counter, dict(ask(), **fields))['choices']
    assert choice['warnings'] == [why]


@pytest.mark.parametrize('fields, thinks', [
    ({'reasoning_effort': 'none'}, False), ({'reasoning_effort': 'minimal'}, False), ({'reasoning_effort': 'low'}, True),
    ({'reasoning_effort': 'medium'}, True), ({'reasoning_effort': 'high'}, True), ({'think': True}, True), ({'think': False}, False),
    ({'think': 'high'}, True), ({'enable_thinking': True}, True),
    ({'reasoning': {'effort': 'low'}}, True), ({'reasoning': {'enabled': False}}, False), ({'reasoning': {'max_tokens': 9}}, True),
    ({'thinking': {'type': 'enabled', 'budget_tokens': 9}}, True), ({'thinking': {'type': 'disabled'}}, False), ({'thinking': True}, True), ({'reasoning_effort': 'low', 'think': True}, True), ({}, False)])
def test_effort(fields, thinks):
    request = dict(messages=[HI], **fields)
    assert ('<|think|>' in render(request)) == thinks
    assert ('<|think|>' in render(request, '--think')) == (thinks or not fields)


def test_budget_of_an_effort(puppet):
    """thinking_token_budget says it more closely than the effort."""
    for fields, thought in [({}, 'you add it'), ({'thinking_token_budget': 2}, 'you a'), ({'thinking': {'type': 'enabled', 'budget_tokens': 2}}, 'you a')]:
        message = one(puppet, ask(reasoning_effort='low', **fields))['choices'][0]['message']
        assert message['reasoning_content'] == thought


def test_reasoning_tokens(puppet):
    got = one(puppet, ask(reasoning_effort='high'))
    details = got['usage']['completion_tokens_details']['reasoning_tokens']
    assert 3 <= details < got['usage']['completion_tokens']
    assert one(puppet, ask())['usage']['completion_tokens_details'] == {'reasoning_tokens': 0}


# ---------------------------------------------------------------------------------------------- schemas under other names

@pytest.mark.parametrize('name', ['response_format', 'json_object', 'guided_json', 'guided text', 'structured_outputs', 'structured text',
                                  'json_schema', 'named json_schema', 'format'])
def test_schema_under_other_names(odd, name):
    schema = {'type': 'object', 'properties': {'name': {'type': 'string', 'maxLength': 5}}, 'required': ['name'], 'additionalProperties': False}
    fields = {'response_format': {'response_format': {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': schema}}},
              'json_object': {'response_format': {'type': 'json_object', 'schema': schema}},
              'guided_json': {'guided_json': schema}, 'guided text': {'guided_json': json.dumps(schema)},
              'structured_outputs': {'structured_outputs': {'json': schema}},
              'structured text': {'structured_outputs': {'json': json.dumps(schema)}},
              'json_schema': {'json_schema': schema}, 'named json_schema': {'json_schema': {'name': 'x', 'schema': schema}}, 'format': {'format': schema}}[name]
    got = one(odd, ask(seed=3, temperature=2, max_tokens=60, **fields))
    value = json.loads(content(got))
    assert list(value) == ['name'] and len(value['name']) <= 5 and 'warnings' not in got['choices'][0]


@pytest.mark.parametrize('fields', [{'format': 'json'}, {'structured_outputs': {'json_object': True}}, {'response_format': {'type': 'json_object'}}])
def test_any_object(odd, fields):
    assert isinstance(json.loads(content(one(odd, ask(seed=1, temperature=2, max_tokens=30, **fields)))), dict)


def test_the_same_schema_twice(odd):
    schema = {'type': 'boolean'}
    assert json.loads(content(one(odd, ask(guided_json=schema, json_schema=schema, format='')))) in (True, False)


# ---------------------------------------------------------------------------------------------- fields

def test_unknown_fields_are_named(counter):
    choice, = one(counter, ask(colour='red', shape=1, stream_options={'include_usage': False, 'x': 1},
                               chat_template_kwargs={'y': 2}))['choices']
    assert choice['warnings'] == ['unknown fields had no effect: colour, shape, chat_template_kwargs.y, stream_options.x']
    chunks = jsonl(counter, ask(colour='red', stream=True))
    assert chunks[-1]['choices'][0]['warnings'] == ['unknown fields had no effect: colour']


def test_fields_that_ask_for_nothing(counter):
    """Known from other servers, not supported, and here with the value that is off."""
    choice, = one(counter, ask(
        grammar='', guided_regex=None, dry_multiplier=0, dry_base=1.75, xtc_probability=0.0, xtc_threshold=0.1, mirostat=0, mirostat_tau=5.0,
        typical_p=1.0, tfs_z=1, best_of=1, use_beam_search=False, length_penalty=1.0, skip_special_tokens=True, echo=False, options={},
        functions=[], function_call='auto', verbosity='medium', cache_prompt=True, id_slot=-1, keep_alive='5m', user='me', store=False,
        repeat_last_n=-1, top_n_sigma=-1, include_reasoning=True, structured_outputs={}, prediction=None))['choices']
    assert 'warnings' not in choice and choice['message']['content'] == SAID


@pytest.mark.parametrize('id', [5, 5.5, -1, 12345678901234567890, 'a', ''])
def test_batch_ids(counter, id):
    done = run('-m', counter, '--jsonl', stdin='{"custom_id": %s, "body": %s}\n{"custom_id": %s, "body": {}}\n' % (
        json.dumps(id), json.dumps(ask()), json.dumps(id)))
    good, bad = [json.loads(line) for line in done.stdout.splitlines()]
    assert good['custom_id'] == bad['custom_id'] == id and type(good['custom_id']) is type(id)
    assert good['response']['status_code'] == 200 and bad['response'] is None


@pytest.mark.parametrize('line, id', [({'custom_id': None, 'body': ask()}, None), ({'body': ask()}, None), ({'custom_id': 5}, 5)])
def test_batch_without_id_or_body(counter, line, id):
    got = json.loads(run('-m', counter, '--jsonl', stdin=json.dumps(line)).stdout)
    assert got['custom_id'] is None if id is None else got['custom_id'] == id and got['error']['message'] == 'body: missing'


def test_field_of_a_batch_that_nobody_knows(counter):
    got = json.loads(run('-m', counter, '--jsonl', stdin=json.dumps({'customId': 'a', 'url': '/v1/chat/completions', 'body': ask()})).stdout)
    assert got['response']['body']['choices'][0]['warnings'] == ['unknown fields had no effect: customId']


# ---------------------------------------------------------------------------------------------- progress

def progress(model, tmp_path, requests):
    """What a terminal gets when the answers go to a file."""
    path = tmp_path / 'requests.jsonl'
    path.write_text(''.join(json.dumps(r) + '\n\n' for r in requests))
    command = '"%s" -m "%s" --jsonl < "%s" > "%s"; echo status $?' % (GEMMA4, model, path, tmp_path / 'answers')
    child = pexpect.spawn('sh', ['-c', command], env=environment(), encoding='utf-8', timeout=PATIENCE)
    child.expect(pexpect.EOF)
    return child.before


def test_progress(counter, tmp_path):
    said = progress(counter, tmp_path, [ask(), ask(seed='x'), ask()])
    lines = re.findall(r'(\d of 3) done, [0-9.]+ tokens/s', said)           # more of them where a request takes long
    assert sorted(set(lines) - {'0 of 3'}) == ['1 of 3', '2 of 3', '3 of 3'] and lines == sorted(lines)
    assert re.search(r'1 of 3 done, [0-9.]+ tokens/s, \d+:\d\d left', said) and 'status 1' in said and '\x1b' not in said
    assert len((tmp_path / 'answers').read_text().splitlines()) == 3


def test_no_progress_in_a_pipe(counter):
    done = run('-m', counter, '--jsonl', stdin=json.dumps(ask()))
    assert done.stderr == b''


# ---------------------------------------------------------------------------------------------- parse

def test_parse():
    assert parse('Hello') == parse('Hello\n') == {'role': 'assistant', 'content': 'Hello'}
    assert parse('Hello\n\n')['content'] == 'Hello\n'
    assert parse('') == {'role': 'assistant', 'content': ''}
    assert parse('<|channel>thought\nHm.\n<channel|>Hi<turn|>') == {'role': 'assistant', 'content': 'Hi', 'reasoning_content': 'Hm.'}
    message = parse('<|tool_call>call:f{a:<|"|>x"y<|"|>,n:1.50}<tool_call|><|tool_call>call:g{}<tool_call|><|tool_response>')
    assert message['content'] is None and called(message) == [('f', {'a': 'x"y', 'n': 1.5}), ('g', {})] and 'warnings' not in message
    assert message['tool_calls'][0]['function']['arguments'] == '{"a":"x\\"y","n":1.50}'
    assert len({c['id'] for c in message['tool_calls']}) == 2


def test_parse_options(tmp_path):
    assert parse('Hm.\n<channel|>Hi', '--open-thought')['reasoning_content'] == 'Hm.'
    assert parse('thought\nHm.', '--think') == {'role': 'assistant', 'content': '', 'reasoning_content': 'Hm.',
                                              'warnings': ['the thought did not end: there is no answer']}
    assert parse('thought\nHm.') == {'role': 'assistant', 'content': 'thought\nHm.',
                                     'warnings': ['the answer may be a thought: it begins with the header of one']}
    tools = tmp_path / 'tools.json'
    tools.write_text('[{"name": "sh", "inputSchema": {"properties": {"c": {"type": "string"}}}}]')
    assert called(parse('<channel|>call:sh{c:5}', '--tools', tools)) == [('sh', {'c': '5'})]
    assert parse('<channel|>call:sh{c:5}')['content'] == 'call:sh{c:5}'
    assert parse('<|tool_call>call:g{}<tool_call|>', '--tools', tools)['warnings'] == ['a call of g, which is none of the tools']


def test_parse_says_what_it_did():
    message = parse('<|tool_call>call:f(a=True<tool_call|>')
    assert called(message) == [('f', {'a': True})]
    assert message['warnings'] == ['the call of f was mended: ' + what for what in (
        '`=` was read as `:`', 'True, False or None was read as true, false or null', 'missing closing brackets were added')]
    left = parse('<|tool_call>call:f{a:<|"|>b}<tool_call|>')
    assert left['content'] == 'call:f{a:"b}' and left['warnings'] == ['a tool call could not be read and was left as text: a string without an end']
    behind = parse('Hi<turn|>\n<|turn>user\nWho?')
    assert behind['content'] == 'Hi' and behind['warnings'] == ['text behind the end of the answer was left out']


def test_parse_is_the_way_back():
    """What `render` writes for the last message, `parse` reads."""
    call = {'name': 'f', 'arguments': {'b': [1, 'x', None], 'A': {'k': False}}}
    message = {'role': 'assistant', 'reasoning_content': 'Let me.', 'tool_calls': [{'id': '1', 'function': call}]}
    text = render({'messages': [HI, message]})
    got = parse(text.split('<|turn>model\n')[1])
    assert called(got) == [('f', call['arguments'])] and got['reasoning_content'] == 'Let me.' and 'warnings' not in got


def test_parse_needs_the_tokenizer_alone(tmp_path):
    (tmp_path / 'tokenizer.json').write_bytes((DEMO / 'tokenizer.json').read_bytes())
    (tmp_path / 'config.json').write_bytes((DEMO / 'config.json').read_bytes())
    assert parse('Hi', model=tmp_path)['content'] == 'Hi'


@pytest.mark.parametrize('options', [('--json-schema', 'x'), ('-p', 'x'), ('--jsonl',), ('-i', 'x.png')])
def test_parse_takes_no_more(options):
    complaint(2, 'parse', '-m', DEMO, *options)


def test_open_thought_belongs_to_parse():
    complaint(2, 'render', '-m', DEMO, '--open-thought')
