"""Tools: calls in JSON answers, run from the command line, and thoughts with a budget."""
import json
import signal
import stat

import pexpect
import pytest

from conftest import ANSWER, GEMMA4, PATIENCE, answer, complaint, environment, make_puppet, read_json, run, write_json, FIXTURES
from test_jsonl import ask, jsonl, one

ADD = {'type': 'function', 'function': {'name': 'add', 'description': 'Adds one.', 'parameters': {
    'type': 'object', 'properties': {'x': {'type': 'integer'}}, 'required': ['x']}}}
DONE = 'The command is one'
CALL = {'type': 'function', 'function': {'name': 'add', 'arguments': '{"x":1}'}}


def spelled(text):
    """Pieces for the characters of text, none twice: the second time a byte stands for it."""
    vocabulary = read_json(FIXTURES / 'odd-bf16' / 'tokenizer.json')['model']['vocab']
    pieces = []
    for c in text:
        ways = [c, '<0x%02X>' % ord(c)]
        pieces.append(next(p for p in ways if p in vocabulary and p not in pieces))
    return pieces


@pytest.fixture(scope='session')
def caller(tmp_path_factory):
    """Calls add{x:1}, and says DONE to every result. With thinking on it thinks first."""
    call = ['<|tool_call>', *spelled('call:add{x:1}'), '<tool_call|>', '<|tool_response>']
    return make_puppet(tmp_path_factory.mktemp('puppet') / 'calls', [
        ['<channel|>', *call], ['<tool_response|>', 'The', '▁command', '▁is', '▁one', '<turn|>'],
        ['\n', '<|channel>', 't', 'ho', 'u', 'g', 'h', '<0x74>', '<0x0A>', 'you', '▁a', '▁it', '<channel|>']])


@pytest.fixture(scope='module')
def mumbler(tmp_path_factory):
    """A model that leaves the opening token of its call out, so that nothing holds the call and it has to be mended."""
    return make_puppet(tmp_path_factory.mktemp('puppet') / 'mumbles', [
        ['<channel|>', *spelled('call:add{x:1}'), '<tool_call|>', '<|tool_response>'],
        ['<tool_response|>', 'The', '▁command', '▁is', '▁one', '<turn|>']])


@pytest.fixture
def tools(tmp_path):
    return write_json(tmp_path / 'tools.json', [ADD])


@pytest.fixture
def folder(tmp_path):
    """A folder with the tool, which says what it was given and keeps a record."""
    path = tmp_path / 'bin'
    path.mkdir()
    tool = path / 'add'
    tool.write_text('#!/bin/sh\ncat > "%s/given"\necho two\n' % tmp_path)
    tool.chmod(0o755)
    return path


# ---------------------------------------------------------------------------------------------- JSON

def test_call(caller):
    choice, = one(caller, ask(tools=[ADD]))['choices']
    message = choice['message']
    assert choice['finish_reason'] == 'tool_calls' and 'warnings' not in choice
    assert message['content'] is None and 'reasoning_content' not in message
    call, = message['tool_calls']
    assert call.pop('id').startswith('call_') and call == CALL


def test_result(caller):
    """The answer to a call goes back with its result; ids differ along a conversation."""
    first = one(caller, ask(tools=[ADD]))['choices'][0]['message']
    id, = [c['id'] for c in first['tool_calls']]
    history = [{'role': 'user', 'content': 'hello'}, first, {'role': 'tool', 'tool_call_id': id, 'content': 'two'}]
    choice, = one(caller, ask(history, tools=[ADD]))['choices']
    assert choice['message']['content'] == DONE and choice['finish_reason'] == 'stop'
    later = one(caller, ask(history + [choice['message'], {'role': 'user', 'content': 'again'}], tools=[ADD]))
    assert later['choices'][0]['message']['tool_calls'][0]['id'] != id


NUMBERS = ['0', '-0', '1', '1.0', '-2.50', '1e2', '1E+400', '9007199254740993', '-12345678901234567890', '0.1000000000000000055511151231257827']


@pytest.mark.parametrize('as_text', [False, True])
def test_numbers_as_written(odd, as_text):
    """Arguments of calls, results and declarations: a double would not hold them."""
    arguments = '{"l":[%s],"s":"1e5 \\\\\\" 2"}' % ','.join(NUMBERS)
    tools = '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string", "enum": [%s]}}}}}]'
    request = '{"tools": %s, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"id": "a", "function": ' \
              '{"name": "f", "arguments": %s}}]}, {"role": "tool", "tool_call_id": "a", "content": {"n": %s}}]}' % (
                  tools % NUMBERS[-1], json.dumps(arguments) if as_text else arguments, NUMBERS[-2])
    text = answer('render', '-m', odd, stdin=request)
    assert 'call:f{l:[%s],s:<|"|>1e5 \\" 2<|"|>}<tool_call|>' % ','.join(NUMBERS) in text
    assert 'enum:[%s]' % NUMBERS[-1] in text and 'response:f{n:%s}' % NUMBERS[-2] in text


def test_numbers_that_a_model_writes(odd):
    """Under a schema: the digits of a constant."""
    for number in NUMBERS:
        request = '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 99, "response_format": {"type": "json_schema", "json_schema": ' \
                  '{"schema": {"enum": [%s]}}}}' % number
        done = run('-m', odd, '--jsonl', stdin=request)
        assert json.loads(done.stdout)['choices'][0]['message']['content'] == number


def test_thought_before_a_call(caller):
    message = one(caller, ask(tools=[ADD], chat_template_kwargs={'enable_thinking': True}))['choices'][0]['message']
    assert message['reasoning_content'] == 'you a it' and message['tool_calls'][0]['function'] == CALL['function']


def test_stream(caller):
    chunks = [c['choices'][0] for c in jsonl(caller, ask(tools=[ADD], stream=True))]
    deltas = [c['delta']['tool_calls'][0] for c in chunks if 'tool_calls' in c['delta']]
    assert deltas[0].pop('id') and deltas[0] == {'index': 0, 'type': 'function', 'function': {'name': 'add', 'arguments': '{'}}
    assert [d['function'] for d in deltas[1:]] == [{'arguments': '"x":'}, {'arguments': '1'}, {'arguments': '}'}]
    assert chunks[-1]['finish_reason'] == 'tool_calls' and not any(c['delta'].get('content') for c in chunks)


def test_stream_of_a_call_that_nothing_holds(caller):
    """Without tools a call may need mending: it comes whole."""
    chunks = [c['choices'][0] for c in jsonl(caller, ask(stream=True))]
    deltas = [c['delta']['tool_calls'][0] for c in chunks if 'tool_calls' in c['delta']]
    assert len(deltas) == 1 and deltas[0].pop('id') and deltas[0] == dict(CALL, index=0)


def test_unknown_tool_is_said(caller):
    """Where nothing holds the calls, as there are no tools."""
    choice, = one(caller, ask())['choices']
    assert choice['message']['tool_calls'][0]['function'] == CALL['function']
    assert choice['warnings'] == ['a call of add, which is none of the tools']


def test_a_call_is_held_to_the_tools(caller):
    """What the model would write is no tool of the request: under auto it cannot be written, once a call has begun."""
    for name in ('other', 'ad', 'addx'):
        choice, = one(caller, ask(tools=[{'type': 'function', 'function': {'name': name, 'parameters': {
            'type': 'object', 'properties': {'y': {'enum': ['a', 'b']}}, 'required': ['y']}}}]))['choices']
        call, = choice['message']['tool_calls']
        assert call['function']['name'] == name and json.loads(call['function']['arguments'])['y'] in ('a', 'b')
        assert 'warnings' not in choice and choice['finish_reason'] == 'tool_calls'


def test_a_tool_whose_schema_does_not_compile(caller):
    """Under auto its name is held and its arguments are free, with a warning; where a call is demanded it is an error."""
    odd_one = {'type': 'function', 'function': {'name': 'add', 'parameters': {'type': 'object', 'properties': {'x': {'odd': 5}}}}}
    choice, = one(caller, ask(tools=[odd_one]))['choices']
    assert choice['message']['tool_calls'][0]['function'] == CALL['function']
    warning, = choice['warnings']
    assert warning.startswith('the arguments of add are not held to its schema: ') and '#/properties/x/odd: not supported' in warning
    error, = jsonl(caller, ask(tools=[odd_one], tool_choice='required'), status=1)
    assert '#/properties/x/odd: not supported' in error['error']['message']


def test_one_call_at_a_time(tmp_path):
    """parallel_tool_calls false ends the answer behind a call, whatever the model would write there."""
    model = make_puppet(tmp_path / 'calls', [['<channel|>', '<|tool_call>', *spelled('call:add{x:1}'), '<tool_call|>', '<|tool_call>']])
    for several in (True, False):
        choice, = one(model, ask(tools=[ADD], parallel_tool_calls=several, max_tokens=60))['choices']
        assert len(choice['message']['tool_calls']) == (4 if several else 1)
    assert choice['finish_reason'] == 'tool_calls'


@pytest.mark.parametrize('limit', [13, 4, 1])
def test_call_at_the_limit(caller, limit):
    """A call that is held is completed in time; where there is no room for one, none begins, and a warning says so."""
    choice, = one(caller, ask(tools=[ADD], max_tokens=limit))['choices']
    assert choice['finish_reason'] == 'length' and ('warnings' in choice) == (limit < 13)
    if limit == 13:
        assert choice['message'] == {'role': 'assistant', 'content': None, 'tool_calls': choice['message']['tool_calls']}
        assert choice['message']['tool_calls'][0]['function'] == CALL['function']
    else:
        assert 'tool_calls' not in choice['message']
        assert choice['warnings'] == ['the model would have called a tool here: the limit of the answer has no room for a call']


def test_no_call_is_missed(puppet):
    """A model that would not have called anything."""
    assert 'warnings' not in one(puppet, ask(tools=[ADD], max_tokens=4))['choices'][0]


def test_tools_beside_a_schema(caller, tools):
    """They have no effect, and a line says so."""
    done = run('-m', caller, '--tools', tools, '--json-schema', '{"type": "boolean"}', 'hello')
    assert done.stderr == b'gemma4: warning: the tools had no effect: beside a schema nothing is called\n' and done.returncode == 0


@pytest.mark.parametrize('limit, text', [(4, 'cal'), (13, 'call:add{x:1'), (1, '')])
def test_unfinished_call(caller, limit, text):
    choice, = one(caller, ask(max_tokens=limit))['choices']
    assert choice['message'] == {'role': 'assistant', 'content': text} and choice['finish_reason'] == 'length'
    assert len(choice['warnings']) == 1


def test_no_choice_no_tools(caller, puppet):
    """tool_choice none leaves the tools out of the prompt."""
    with_tools, without, none = [r['usage']['prompt_tokens'] for r in jsonl(puppet, ask(tools=[ADD]), ask(), ask(tools=[ADD], tool_choice='none'))]
    assert with_tools > without == none


@pytest.mark.parametrize('choice', ['required', {'type': 'any'}, {'type': 'function', 'function': {'name': 'add'}}])
def test_demanded_call(odd, puppet, choice):
    """Whatever the model would say, the arguments validate."""
    other = {'type': 'function', 'function': {'name': 'note', 'parameters': {'type': 'object', 'properties': {
        'text': {'type': 'string', 'maxLength': 30}, 'tags': {'type': 'array', 'items': {'enum': ['a', 'b']}, 'maxItems': 3}}, 'required': ['text', 'tags']}}}
    requests = [ask(tools=[ADD, other], tool_choice=choice, seed=i, temperature=2, max_tokens=150, parallel_tool_calls=i % 2 == 0) for i in range(10)]
    for i, got in enumerate(jsonl(odd, *requests) + jsonl(puppet, *requests)):
        message = got['choices'][0]['message']
        calls = message['tool_calls']
        assert not message['content'] and 'warnings' not in got['choices'][0]
        assert len(calls) == 1 or i % 2 == 0
        for call in calls:
            arguments = json.loads(call['function']['arguments'])
            if call['function']['name'] == 'add':
                assert isinstance(arguments.pop('x'), int) and not arguments
            else:
                assert 'function' not in choice and len(arguments.pop('text')) <= 30
                assert set(arguments.pop('tags')) <= {'a', 'b'} and not arguments


def test_several_choices(odd):
    got = one(odd, ask(n=3, seed=1, temperature=3, max_tokens=20))
    assert [c['index'] for c in got['choices']] == [0, 1, 2] and got['usage']['completion_tokens'] >= 3
    texts = [c['message']['content'] for c in got['choices']]
    assert len(set(texts)) == 3
    assert texts[1] == one(odd, ask(seed=2, temperature=3, max_tokens=20))['choices'][0]['message']['content']


def test_batch(puppet):
    lines = [{'custom_id': 'a "1"', 'method': 'POST', 'url': '/v1/chat/completions', 'body': ask()}, {'custom_id': 'b', 'body': {}}]
    good, bad = jsonl(puppet, *lines, status=1)
    assert good['custom_id'] == 'a "1"' and good['error'] is None and good['response']['status_code'] == 200
    assert good['response']['body']['choices'][0]['message']['content'] == ANSWER
    assert bad['custom_id'] == 'b' and bad['response'] is None and 'messages' in bad['error']['message']


# ---------------------------------------------------------------------------------------------- the command line

def test_calls_are_the_answer(caller, tools):
    line = answer('-m', caller, '--tools', tools, 'hello')
    assert json.loads(line) == {'name': 'add', 'arguments': {'x': 1}}


def test_run_tools(caller, tools, folder, tmp_path):
    done = run('-m', caller, '--tools', tools, '--run-tools', folder, '--yes', 'hello')
    assert (done.returncode, done.stdout.decode()) == (0, DONE + '\n')
    assert done.stderr.decode() == '[add {"x":1}]\n'
    assert (tmp_path / 'given').read_text() == '{"x":1}'


def test_run_tools_where_children_are_ignored(caller, tools, folder, tmp_path):
    """Whoever starts the program may ignore SIGCHLD: the tool's end is noticed all the same."""
    done = run('-m', caller, '--tools', tools, '--run-tools', folder, '--yes', '--save', tmp_path / 'talk', 'hello',
               preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert done.returncode == 0 and [m['content'] for m in read_json(tmp_path / 'talk')['messages'][2:]] == ['two', DONE]


def run_when_asked(question, typed, *args):
    """On a terminal: the program asks, hears what is typed, and goes on to the end."""
    child = pexpect.spawn(GEMMA4, [str(a) for a in args], env=environment(), encoding='utf-8', timeout=PATIENCE)
    child.expect_exact(question)
    child.sendline(typed)
    child.expect_exact(DONE)
    child.expect(pexpect.EOF)


@pytest.mark.parametrize('typed, ran', [('y', True), ('n', False), ('', False)])
def test_asked_for(caller, tools, folder, tmp_path, typed, ran):
    run_when_asked('run add {"x":1}? [y/N] ', typed, '-m', caller, '--tools', tools, '--run-tools', folder, 'hello')
    assert (tmp_path / 'given').exists() == ran


def test_mended_call_is_said(mumbler):
    choice, = one(mumbler, ask(tools=[ADD]))['choices']
    assert choice['message']['tool_calls'][0]['function'] == CALL['function'] and choice['finish_reason'] == 'tool_calls'
    assert choice['warnings'] == ['the call of add was mended: its opening token was missing']


def test_mended_call_is_not_run_unasked(mumbler, tools, folder, tmp_path):
    """Not with --yes either, where nobody can be asked: the model hears why, and goes on."""
    done = run('-m', mumbler, '--tools', tools, '--run-tools', folder, '--yes', 'hello', start_new_session=True)
    assert done.returncode == 0 and not (tmp_path / 'given').exists()
    assert 'the call of add was mended: its opening token was missing' in done.stderr.decode() and done.stdout.decode() == DONE + '\n'


@pytest.mark.parametrize('typed, ran', [('y', True), ('n', False)])
def test_mended_call_is_asked_for(mumbler, tools, folder, tmp_path, typed, ran):
    run_when_asked('run add {"x":1}, which had to be mended? [y/N] ', typed, '-m', mumbler, '--tools', tools, '--run-tools', folder,
                   '--yes', 'hello')
    assert (tmp_path / 'given').exists() == ran


def test_nobody_to_ask(caller, tools, folder):
    said = complaint(2, '-m', caller, '--tools', tools, '--run-tools', folder, 'hello', start_new_session=True)
    assert '--yes' in said


def test_tools_without_an_executable(caller, tools, tmp_path):
    call = ('-m', caller, '--tools', tools, '--yes', 'hello', '--run-tools')
    assert '--run-tools %s: no directory' % (tmp_path / 'none') in complaint(1, *call, tmp_path / 'none')
    assert '--run-tools %s: no directory' % tools in complaint(1, *call, tools)
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'add').write_text('#!/bin/sh\n')           # not executable
    done = run(*call, tmp_path / 'bin')
    assert 'warning: --run-tools %s: no executable for the tool add\n' % (tmp_path / 'bin') in done.stderr.decode()


@pytest.mark.parametrize('script, why', [
    ('#!/no/such/interpreter\n', 'the interpreter that its first line names is missing'),
    ('echo hello\n', 'is neither a program nor a script that begins with #!'), ('#!/bin/sh\nexit 3\n', 'exit status 3')])
def test_a_tool_that_fails_is_said(caller, tools, tmp_path, script, why):
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'add').write_text(script)
    (tmp_path / 'bin' / 'add').chmod(0o755)
    done = run('-m', caller, '--tools', tools, '--run-tools', tmp_path / 'bin', '--yes', '--save', tmp_path / 'talk', 'hello')
    assert done.stderr.decode() == '[add {"x":1}]\ngemma4: warning: %s: %s\n' % (tmp_path / 'bin' / 'add', why)
    assert read_json(tmp_path / 'talk')['messages'][2]['content'] == 'error: ' + why


def test_tools_of_a_file_are_run(caller, tmp_path, folder):
    """--load may bring what --run-tools runs; lines say what cannot be run."""
    talk = write_json(tmp_path / 'talk', {'messages': [], 'tools': [ADD]})
    call = ('-m', caller, '--load', talk, '--yes', 'hello', '--run-tools')
    done = run(*call, folder)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, DONE + '\n', b'[add {"x":1}]\n')
    assert read_json(tmp_path / 'given') == {'x': 1}
    (folder / 'add').unlink()
    assert 'warning: --run-tools %s: no executable for the tool add\n' % folder in run(*call, folder).stderr.decode()
    write_json(talk, {'messages': []})
    assert b'warning: --run-tools has no effect: the conversation has no tools\n' in run(*call, folder).stderr


@pytest.mark.parametrize('options', [('--run-tools', '.'), ('--yes',), ('--tools', 'x', '--raw', '-p', 'x'), ('--stream', 'x'), ('--think-tokens', 'x')])
def test_wrong_usage(caller, options):
    complaint(2, '-m', caller, *options)


def test_bad_tools_file(caller, tmp_path):
    path = tmp_path / 'tools.json'
    for text, word in [('{}', 'list'), ('5', 'list'), ('[{}]', 'tools[0].function'), ('[', 'JSON')]:
        path.write_text(text)
        said = complaint(1, '-m', caller, '--tools', path, 'hello')
        assert word in said and str(path) in said


# ---------------------------------------------------------------------------------------------- thoughts

@pytest.mark.parametrize('budget, thought', [(0, None), (1, 'you'), (2, 'you a'), (3, 'you ad'), (100, 'you add it')])
def test_budget(puppet, budget, thought):
    request = ask(chat_template_kwargs={'enable_thinking': True}, thinking_token_budget=budget)
    message = one(puppet, request)['choices'][0]['message']
    assert message.get('reasoning_content') == thought and message['content'] == ANSWER
    done = run('-m', puppet, '--think-tokens', budget, 'hello')
    assert (done.returncode, done.stdout.decode()) == (0, ANSWER + '\n')
    assert done.stderr.decode().strip() == (thought or '')
