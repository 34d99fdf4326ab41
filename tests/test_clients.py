"""What the official openai package and langchain-openai make of our lines, and we of what they send.

Debian has neither of them. `make test` puts them into build/venv, and this file has two parts: pytest starts it as a program
under the Python there, which runs all the checks and says on stdout, a JSON line each, what became of them.
"""
import base64
import json
import os
import subprocess
import sys
import traceback
from functools import lru_cache, partial

if __name__ == '__main__':  # with the Python of build/venv, which has no pytest
    from typing import Annotated, Literal, Optional

    import httpx2
    import openai
    from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
    from langchain_openai import ChatOpenAI
    from openai.lib.streaming.chat import ChatCompletionStreamState
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from pydantic import BaseModel, Field

    PROGRAM, MODELS = sys.argv[1], json.loads(sys.argv[2])

    class Thing(BaseModel):
        """Something with a colour."""
        name: Annotated[str, Field(max_length=8, description='What it is called.')]
        colour: Literal['red', 'blue']
        size: Optional[Annotated[int, Field(ge=0, le=99)]] = None
        parts: Annotated[list['Part'], Field(max_length=2)]

    class Part(BaseModel):
        weight: Annotated[int, Field(ge=1, le=9)]
        is_loose: bool

    class get_weather(BaseModel):  # LangChain takes the tool's name from it
        """Get the current weather in a city."""
        city: str = Field(description='City name')


# ---------------------------------------------------------------------------------------------- requests

def user(text):
    return [{'role': 'user', 'content': text}]


def function(name, description='', **properties):
    parameters = {'type': 'object', 'properties': properties, 'required': list(properties)}
    return {'type': 'function', 'function': {'name': name, 'description': description, 'parameters': parameters}}


WEATHER = function('get_weather', 'Get the current weather in a city.', city={'type': 'string', 'description': 'City name'})
ADD = function('add', 'Adds one.', x={'type': 'integer'})
CHOICES = [function('paint', colour={'enum': ['red', 'blue']}, coats={'type': 'integer', 'minimum': 1, 'maximum': 99}),
           function('wait', note={'type': 'string', 'maxLength': 12}, again={'type': 'boolean'})]
SCHEMA = {'type': 'object', 'properties': {'fine': {'type': 'boolean'}, 'word': {'type': 'string', 'maxLength': 12}}, 'required': ['fine', 'word']}
THINKING = {'chat_template_kwargs': {'enable_thinking': True}}
RANDOM = {'seed': 3, 'temperature': 2}

# What is asked with and without a stream: of which model, with which fields beside messages.
CASES = {
    'plain': ('demo', {'temperature': 0}),
    'logprobs': ('odd', dict(RANDOM, logprobs=True, top_logprobs=3, max_tokens=20)),
    'choices': ('odd', dict(RANDOM, n=2, max_tokens=20)),
    'thinking': ('puppet', THINKING),
    'call': ('caller', {'tools': [ADD]}),
    'thinking-and-call': ('caller', dict(THINKING, tools=[ADD])),
    'demanded-call': ('demo', dict(RANDOM, tools=CHOICES, tool_choice='required', max_tokens=300)),
    'named-call': ('odd', dict(RANDOM, tools=CHOICES, tool_choice={'type': 'function', 'function': {'name': 'wait'}}, max_tokens=300)),
    'many-calls': ('eager', {'tools': CHOICES, 'tool_choice': 'required', 'max_tokens': 100}),
    'calls-in-choices': ('demo', dict(RANDOM, n=2, tools=CHOICES, tool_choice='required', max_tokens=300)),
    'schema': ('demo', dict(RANDOM, response_format={'type': 'json_schema', 'json_schema': {'name': 'word', 'schema': SCHEMA}})),
    'object': ('odd', dict(RANDOM, response_format={'type': 'json_object'}, max_tokens=40)),
}


def request(case, **fields):
    model, more = CASES[case]
    return dict(messages=user('Hello'), model=model, **more, **fields)


def answer(body):
    """The program's lines, as they are, for one line, which is the bytes of a body as a client sends it."""
    assert b'\n' not in body
    done = subprocess.run([PROGRAM, '-m', MODELS[json.loads(body)['model']], '--jsonl'], input=body, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = done.stdout.rstrip(b'\n').split(b'\n')
    assert (done.returncode, done.stderr) == (int('error' in json.loads(said[-1])), b'')
    assert b'"warnings": ' not in done.stdout  # no field that a client sends, or call, is strange to us
    return said


def lines(request):
    return [json.loads(line) for line in answer(json.dumps(request).encode())]


def serve(request):
    """What a server does that has this program behind it."""
    said = answer(request.content)
    if json.loads(request.content).get('stream'):
        events = b''.join(b'data: %s\n\n' % line for line in said + [b'[DONE]'])
        return httpx2.Response(200, content=events, headers={'content-type': 'text/event-stream'})
    only, = said
    return httpx2.Response(400 if 'error' in json.loads(only) else 200, content=only, headers={'content-type': 'application/json'})


def connection():
    """What makes a client take `serve` for its server: nothing goes to the network."""
    http = httpx2.Client(transport=httpx2.MockTransport(serve))
    return {'http_client': http, 'base_url': 'http://localhost:1/v1', 'api_key': 'none', 'max_retries': 0}


def completions():
    return openai.OpenAI(**connection()).chat.completions


def chat(model, **fields):
    return ChatOpenAI(model=model, **connection(), **fields)


# ---------------------------------------------------------------------------------------------- openai's types

def unknown(value):
    """The names of the fields that OpenAI's types do not have."""
    if isinstance(value, list):
        return set().union(*map(unknown, value))
    return set(value.model_extra or ()).union(*(unknown(v) for _, v in value)) if isinstance(value, BaseModel) else set()


def calls_of(message):
    return [(call.id, call.type, call.function.name, call.function.arguments) for call in message.tool_calls or []]


def seen(completion):
    """What a reader gets of each choice. A stream has begun with empty text before a call is known, so '' counts as none there."""
    return [(choice.index, choice.finish_reason, choice.message.role, choice.message.content or None,
             getattr(choice.message, 'reasoning_content', None), calls_of(choice.message),
             choice.logprobs and choice.logprobs.model_dump(include={'content'})) for choice in completion.choices]


@lru_cache(maxsize=None)
def whole(case):
    """The completion without a stream."""
    only, = lines(request(case))
    return ChatCompletion.model_validate(only, strict=True)


def check_completion(case):
    model, fields = CASES[case]
    got = whole(case)
    assert got.id and got.object == 'chat.completion' and got.created > 1e9 and got.model == MODELS[model]
    assert [choice.index for choice in got.choices] == list(range(fields.get('n', 1)))
    assert unknown(got) == ({'reasoning_content'} if 'chat_template_kwargs' in fields else set())
    usage = got.usage
    assert usage.prompt_tokens > 0 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 0
    for choice in got.choices:
        message = choice.message
        assert message.role == 'assistant'
        assert choice.finish_reason in ('length', 'tool_calls' if message.tool_calls else 'stop')
        assert bool(message.tool_calls) == ('tools' in fields) and bool(message.content) != ('tools' in fields)
        if 'chat_template_kwargs' in fields:
            assert message.reasoning_content
        for call in message.tool_calls or []:
            names = {'add': {'x'}, 'paint': {'colour', 'coats'}, 'wait': {'note', 'again'}}
            assert set(json.loads(call.function.arguments)) == names[call.function.name]
        if 'logprobs' in fields:
            entries = choice.logprobs.content
            assert bytes(b for e in entries for b in e.bytes).decode(errors='replace') and all(len(e.top_logprobs) == 3 for e in entries)
        else:
            assert choice.logprobs is None
        if 'response_format' in fields:
            value = json.loads(message.content)
            assert isinstance(value, dict) and (case == 'object' or set(value) == set(SCHEMA['properties']))
    if case == 'many-calls':
        assert len(got.choices[0].message.tool_calls) > 2
        assert len({call.id for call in got.choices[0].message.tool_calls}) == len(got.choices[0].message.tool_calls)


def check_reasoning_tokens(case):
    """They are counted among those of the answer."""
    usage = whole(case).usage
    thought = usage.completion_tokens_details.reasoning_tokens
    assert (thought > 0) == ('chat_template_kwargs' in CASES[case][1]) and thought < usage.completion_tokens


def check_stream(case):
    """OpenAI's own sum of the chunks, however they cut text and arguments, is what there is without a stream."""
    want = whole(case)
    said = lines(request(case, stream=True, stream_options={'include_usage': True}))
    chunks = [ChatCompletionChunk.model_validate(line, strict=True) for line in said]
    state = ChatCompletionStreamState()
    for chunk in chunks:
        assert unknown(chunk) <= {'reasoning_content'} and (chunk.id, chunk.model, chunk.created) == (chunks[0].id, want.model, chunks[0].created)
        state.handle_chunk(chunk)
    got = state.current_completion_snapshot
    assert seen(got) == seen(want)
    assert got.usage == want.usage and got.object == want.object
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1) and not chunks[-1].choices
    ends = [c.choices[0].index for c in chunks[:-1] if c.choices[0].finish_reason]
    assert ends == list(range(len(want.choices)))
    begun = set()
    for choice, call in [(choice, call) for c in chunks for choice in c.choices for call in choice.delta.tool_calls or []]:
        first = (choice.index, call.index) not in begun
        assert (call.id is not None, call.function.name is not None) == (first, first) and (call.type or not first)
        begun.add((choice.index, call.index))


# ---------------------------------------------------------------------------------------------- openai's client

def check_openai_answer():
    got = completions().create(**request('plain'))
    assert got.choices[0].message.content and seen(got) == seen(whole('plain'))


def check_openai_stream():
    """By its own helper, which tells of text as it comes, and of its end."""
    with completions().stream(**request('plain')) as stream:
        events = list(stream)
        got = stream.get_final_completion()
    assert seen(got) == seen(whole('plain'))
    assert ''.join(e.delta for e in events if e.type == 'content.delta') == got.choices[0].message.content
    assert [e.content for e in events if e.type == 'content.done'] == [got.choices[0].message.content]


def check_openai_separators():
    """What Unicode takes for the end of a line ends no event."""
    text = 'a\u2028b\u2029c\x85d\x0be\x1cf'
    form = {'type': 'json_schema', 'json_schema': {'name': 'text', 'schema': {'enum': [text]}}}
    fields = dict(request('object'), response_format=form, max_tokens=200)
    assert json.loads(completions().create(**fields).choices[0].message.content) == text
    chunks = list(completions().create(**fields, stream=True))
    assert json.loads(''.join(chunk.choices[0].delta.content or '' for chunk in chunks)) == text


def check_openai_stream_of_calls():
    for case in ('call', 'demanded-call', 'named-call'):
        want, = whole(case).choices[0].message.tool_calls
        with completions().stream(**request(case)) as stream:
            events = list(stream)
            assert seen(stream.get_final_completion()) == seen(whole(case))
        pieces = [e.arguments_delta for e in events if e.type == 'tool_calls.function.arguments.delta']
        assert ''.join(pieces) == want.function.arguments
        done, = [e for e in events if e.type == 'tool_calls.function.arguments.done']
        assert (done.name, done.arguments) == (want.function.name, want.function.arguments)


def check_openai_thinking():
    fields = dict(request('thinking'), extra_body=THINKING)
    del fields['chat_template_kwargs']
    want = completions().create(**fields).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in completions().create(**fields, stream=True)]
    thought = [getattr(delta, 'reasoning_content', '') for delta in deltas]
    assert want.reasoning_content and ''.join(thought) == want.reasoning_content
    assert want.content and ''.join(delta.content or '' for delta in deltas) == want.content


def check_openai_tools():
    """Its own object goes back as the message with the call, and as the dictionary that it dumps."""
    messages = user('Weather in Oslo?')
    message = completions().create(model='demo', messages=messages, temperature=0, tools=[WEATHER]).choices[0].message
    call, = message.tool_calls
    assert call.function.name == 'get_weather' and json.loads(call.function.arguments) == {'city': 'Oslo'}
    result = {'role': 'tool', 'tool_call_id': call.id, 'content': 'sunny, 21 degrees'}
    for sent_back in (message, message.model_dump()):
        got = completions().create(model='demo', messages=messages + [sent_back, result], temperature=0, tools=[WEATHER])
        assert 'sunny' in got.choices[0].message.content and got.choices[0].finish_reason == 'stop'


def check_openai_parse():
    """Pydantic's classes as a format and as a tool: the schema that is sent is understood, and the answer is such an object."""
    fields = dict(RANDOM, model='odd', messages=user('Hello'))
    tool = openai.pydantic_function_tool(Thing)
    parsed = completions().parse(**fields, response_format=Thing).choices[0].message.parsed
    assert isinstance(parsed, Thing)
    with completions().stream(**fields, response_format=Thing) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    call, = completions().parse(**fields, tools=[tool], tool_choice='required', parallel_tool_calls=False).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Thing)
    with completions().stream(**fields, tools=[tool], tool_choice='required', parallel_tool_calls=False) as stream:
        assert stream.get_final_completion().choices[0].message.tool_calls[0].function.parsed_arguments == call.function.parsed_arguments


def check_openai_fields():
    """What a client may well say besides, and what it says with its defaults, is no error."""
    plain = request('plain')
    more = dict(seed=1, n=1, stop=['zzz'], max_completion_tokens=200, top_p=1, frequency_penalty=0, presence_penalty=0, logit_bias={}, logprobs=False,
                user='me', metadata={'a': 'b'}, store=False, service_tier='auto', modalities=['text'], response_format={'type': 'text'},
                parallel_tool_calls=True, tools=[WEATHER], tool_choice='none', reasoning_effort='none', prompt_cache_key='a', safety_identifier='b')
    assert seen(completions().create(**plain, **more)) == seen(whole('plain'))
    messages = [{'role': 'developer', 'content': [{'type': 'text', 'text': 'Be brief.'}]}, {'role': 'user', 'name': 'me', 'content': 'Hello'}]
    assert completions().create(**dict(plain, messages=messages)).choices[0].message.content


def caught(kind, act):
    """The exception of this kind that act() must end with."""
    try:
        act()
    except kind as error:
        return error
    raise AssertionError('no %s' % kind.__name__)


def check_openai_error():
    fields = request('plain', top_p=2)
    error = caught(openai.BadRequestError, partial(completions().create, **fields))
    assert 'top_p' in error.message and error.type == 'invalid_request_error' and error.code is error.param is None
    assert error.body['line'] == 1
    error = caught(openai.APIError, lambda: list(completions().create(**fields, stream=True)))
    assert 'top_p' in error.message and error.type == 'invalid_request_error'


# ---------------------------------------------------------------------------------------------- LangChain

def total(chunks):
    chunks = list(chunks)
    assert len(chunks) > 1
    return sum(chunks[1:], chunks[0])


def check_langchain_answer():
    want = whole('plain')
    model = chat('demo', temperature=0, logprobs=True, top_logprobs=2, stream_usage=True)
    messages = [HumanMessage('Hello')]
    got, streamed = model.invoke(messages), total(model.stream(messages))
    for message in (got, streamed):
        assert message.content == want.choices[0].message.content and message.response_metadata['finish_reason'] == 'stop'
        assert [message.usage_metadata[k] for k in ('input_tokens', 'output_tokens', 'total_tokens')] == [
            want.usage.prompt_tokens, want.usage.completion_tokens, want.usage.total_tokens]
        assert ''.join(e['token'] for e in message.response_metadata['logprobs']['content']) == message.content
    assert total(chat('demo', temperature=0).stream(messages)).content == got.content
    several, = chat('demo', temperature=0, n=2).generate([messages]).generations
    assert [generation.text for generation in several] == [got.content] * 2


def check_langchain_tools():
    """A conversation with a call and its result, the model's message sent back as it came, whole and in chunks."""
    model = chat('demo', temperature=0).bind_tools([get_weather])
    messages = [SystemMessage('Be brief.'), HumanMessage('Weather in Oslo?')]
    asked = model.invoke(messages)
    call, = asked.tool_calls
    assert (call['name'], call['args']) == ('get_weather', {'city': 'Oslo'}) and not asked.invalid_tool_calls
    streamed = total(model.stream(messages))
    assert streamed.tool_calls == asked.tool_calls and not streamed.invalid_tool_calls
    for message in (asked, streamed):
        history = messages + [message, ToolMessage('sunny, 21 degrees', tool_call_id=call['id'], name='get_weather')]
        answer = model.invoke(history)
        assert 'sunny' in answer.content and not answer.tool_calls
        assert model.invoke(history + [answer, HumanMessage('Thank you!')]).content


def check_langchain_demanded_calls():
    model = chat('eager', max_tokens=100).bind_tools(CHOICES, tool_choice='any')
    got, streamed = model.invoke('Hello'), total(model.stream('Hello'))
    assert len(got.tool_calls) > 2 and streamed.tool_calls == got.tool_calls
    assert not got.invalid_tool_calls and not streamed.invalid_tool_calls
    named = chat('odd', **RANDOM).bind_tools([Thing], tool_choice='Thing', strict=True, parallel_tool_calls=False).invoke('Hello')
    call, = named.tool_calls
    assert call['name'] == 'Thing' and Thing(**call['args'])


def check_langchain_structure():
    """By each of its three methods, whole and in a stream, from a class and from a schema."""
    model = chat('odd', **RANDOM)
    for method in ('json_schema', 'function_calling'):
        structured = model.with_structured_output(Thing, method=method)
        got = structured.invoke('Hello')
        assert isinstance(got, Thing) and list(structured.stream('Hello'))[-1] == got
        both = model.with_structured_output(Thing, method=method, include_raw=True).invoke('Hello')
        assert both['parsed'] == got and both['parsing_error'] is None and both['raw'].response_metadata['finish_reason'] in ('stop', 'tool_calls')
        assert Thing(**model.with_structured_output(Thing.model_json_schema(), method=method).invoke('Hello'))
    assert isinstance(chat('odd', max_tokens=40, **RANDOM).with_structured_output(None, method='json_mode').invoke('Hello'), dict)


def check_langchain_picture():
    """It comes as a data URL, and is seen as the file is."""
    path = os.path.join(MODELS['demo'], 'two-shapes.png')
    question = {'type': 'text', 'text': 'What do you see?'}
    body = dict(model='demo', temperature=0, messages=user([{'type': 'image_url', 'image_url': {'url': path}}, question]))
    with open(path, 'rb') as file:
        picture = {'type': 'image', 'base64': base64.b64encode(file.read()).decode(), 'mime_type': 'image/png'}
    want = ChatCompletion.model_validate(lines(body)[0]).choices[0].message.content
    assert chat('demo', temperature=0).invoke([HumanMessage([picture, question])]).content == want


def check_langchain_error():
    error = caught(openai.BadRequestError, lambda: chat('demo', top_p=2).invoke('Hello'))
    assert 'top_p' in error.message


# ---------------------------------------------------------------------------------------------- the two parts

PER_CASE = [check_completion, check_reasoning_tokens, check_stream]
CHECKS = {check.__name__[6:] + '-' + case: partial(check, case) for check in PER_CASE for case in CASES}
CHECKS.update({name[6:]: check for name, check in globals().items() if name.startswith('check_') and check not in PER_CASE})

if __name__ == '__main__':
    for name, check in CHECKS.items():
        failure = None
        try:
            check()
        except Exception:
            failure = traceback.format_exc()
        print(json.dumps([name, failure]), flush=True)
else:
    import pytest

    from conftest import GEMMA4, PATIENCE, ROOT, environment, make_puppet
    from test_tools import caller  # noqa: F401 (a fixture)

    VENV = ROOT / 'build' / 'venv'

    @pytest.fixture(scope='module')
    def eager(tmp_path_factory):
        """Where it must call it calls again and again."""
        return make_puppet(tmp_path_factory.mktemp('puppet') / 'eager', [['<tool_call|>', '<|tool_call>']])

    @pytest.fixture(scope='module')
    def failures(demo, odd, puppet, caller, eager):  # noqa: F811
        """Of each check its traceback, or None; what steers the clients is kept from them."""
        if not (VENV / 'clients').exists():
            pytest.skip('openai and langchain-openai are not in build/venv (make test puts them there, where it can get them)')
        models = {'demo': demo, 'odd': odd, 'puppet': puppet, 'caller': caller, 'eager': eager}
        env = {k: v for k, v in environment().items() if not k.startswith(('OPENAI_', 'LANGCHAIN_', 'LANGSMITH_', 'PYTHON'))}
        done = subprocess.run([VENV / 'bin' / 'python', __file__, GEMMA4, json.dumps(models, default=str)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, env=env, timeout=10 * PATIENCE)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(line) for line in done.stdout.splitlines())

    @pytest.mark.parametrize('check', CHECKS)
    def test_client(failures, check):
        if failures[check]:
            pytest.fail(failures[check], pytrace=False)
