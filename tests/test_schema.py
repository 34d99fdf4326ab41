"""Structured output: whatever the model would like to say, what it writes under a schema validates."""
import json
import os
import random
import re

import jsonschema
import pytest

from conftest import answer, complaint, ids_of, run, write_json
from random_schema import random_mixture, random_parameters, random_schema
from test_jsonl import ask, content, one

PERSON = {'type': 'object', 'properties': {'name': {'type': 'string', 'maxLength': 20}, 'age': {'type': 'integer', 'minimum': 0, 'maximum': 150}},
          'required': ['name', 'age'], 'additionalProperties': False}


def format_of(schema):
    return {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': schema}}


def check(schema, text):
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(['date', 'uuid', 'ipv4'])).validate(json.loads(text))


# GEMMA4_SCHEMAS=5000 asks for as many, instead of 1000 in all.
TIMES = int(os.environ.get('GEMMA4_SCHEMAS', 1000)) // 1000


@pytest.mark.parametrize('model, count, sampling', [
    ('odd', 600, {'temperature': 3, 'top_k': 0, 'top_p': 1}), ('odd', 200, {}), ('demo', 200, {'temperature': 1.5})])
def test_random_schemas_and_seeds(request, model, count, sampling):
    """Every answer validates.  The limits are those that the program names as the least, a little more, or ample."""
    rng = random.Random(count)
    count *= TIMES

    def ask_all(limits):
        lines = ''.join(json.dumps(ask(seed=i, max_tokens=limit, response_format=format_of(s), **sampling)) + '\n'
                        for i, (s, limit) in enumerate(zip(schemas, limits)))
        done = run('-m', request.getfixturevalue(model), '--jsonl', stdin=lines, timeout=1200 * TIMES)
        assert done.stderr == b''
        answers = [json.loads(line) for line in done.stdout.decode().split('\n')[:-1]]
        assert len(answers) == count
        return answers

    schemas = [random_schema(rng) for _ in range(count)]
    least = []
    for schema, got in zip(schemas, ask_all([1] * count)):
        if 'error' in got:
            least.append(int(re.fullmatch('max_tokens is 1: this schema needs at least ([0-9]+)', got['error']['message'])[1]))
        else:
            least.append(1)
            check(schema, content(got))
    assert sum(n > 1 for n in least) > count / 2 and max(least) > 100
    limits = [n + rng.choice([0, 0, 1, 2, 5, 20, 200]) for n in least]
    for schema, limit, got in zip(schemas, limits, ask_all(limits)):
        check(schema, content(got))
        assert got['usage']['completion_tokens'] <= limit and 'warnings' not in got['choices'][0]


def test_mixtures(odd):
    """Whatever keywords stand together: the schema is refused, by its JSON pointer, or the answer validates."""
    rng = random.Random(3)
    schemas = [random_mixture(rng) for _ in range(1000 * TIMES)]
    lines = ''.join(json.dumps(ask(seed=i, max_tokens=60, temperature=3, top_k=0, top_p=1, response_format=format_of(s))) + '\n'
                    for i, s in enumerate(schemas))
    answers = [json.loads(line) for line in run('-m', odd, '--jsonl', stdin=lines, timeout=600 * TIMES).stdout.decode().split('\n')[:-1]]
    n_answers = 0
    for schema, got in zip(schemas, answers, strict=True):
        if 'error' in got:
            assert re.search('#|needs at least|: must be an object', got['error']['message']), got
        else:
            check(schema, content(got))
            n_answers += 1
    assert n_answers > len(schemas) / 3


def is_sorted(schema, value, root):
    """Whether every object has the properties first that the schema names, in jinja2's dictsort."""
    if not isinstance(schema, dict) or not isinstance(value, (dict, list)):
        return True
    if '$ref' in schema:
        return is_sorted(root['$defs'][schema['$ref'].split('/')[-1]], value, root)
    for kind in ('anyOf', 'oneOf'):
        if kind in schema:
            fits = [s for s in schema[kind] if jsonschema.Draft202012Validator(
                {'allOf': [s], '$defs': root.get('$defs', {})}).is_valid(value)]
            return any(is_sorted(s, value, root) for s in fits)
    if 'allOf' in schema:
        properties = {k: v for s in schema['allOf'] for k, v in s.get('properties', {}).items()}
        return is_sorted({'properties': properties}, value, root)
    for constant in schema.get('enum', [schema['const']] if 'const' in schema else []):
        if constant == value:
            return list(value) == sorted(value, key=str.lower) if isinstance(value, dict) else True
    if isinstance(value, list):
        inner = schema.get('prefixItems', [])
        inner = inner + [schema.get('items', True)] * (len(value) - len(inner))
        return all(is_sorted(s, v, root) for s, v in zip(inner, value))
    named = schema.get('properties', {})
    inside = [k for k in sorted(named, key=str.lower) if k in value]
    if list(value)[:len(inside)] != inside:
        return False
    return all(is_sorted(named[k], value[k], root) for k in inside)


def test_random_calls(odd):
    """The arguments of a demanded call validate and are sorted, whatever the tool declares."""
    rng = random.Random(7)
    schemas = [random_parameters(rng) for _ in range(100 * TIMES)]

    def ask_all(limits):
        lines = ''
        for i, (schema, limit) in enumerate(zip(schemas, limits)):
            function = {'name': 'f', 'description': '', 'parameters': schema}
            request = ask(seed=i, max_tokens=limit, temperature=3, top_k=0, top_p=1,
                          tools=[{'type': 'function', 'function': function}],
                          tool_choice='required', parallel_tool_calls=False)
            lines += json.dumps(request) + '\n'
        done = run('-m', odd, '-c', 4096, '--jsonl', stdin=lines, timeout=600 * TIMES)
        answers = [json.loads(line) for line in done.stdout.decode().split('\n')[:-1]]
        assert (len(answers), done.stderr) == (len(schemas), b'')
        return answers

    least = []
    for got in ask_all([1] * len(schemas)):
        message = got['error']['message']
        least.append(int(re.fullmatch('max_tokens is 1: .* at least ([0-9]+)', message)[1]))
    limits = [n + rng.choice([0, 0, 1, 2, 20, 200]) for n in least]
    longest = 0
    for schema, limit, got in zip(schemas, limits, ask_all(limits)):
        call, = got['choices'][0]['message']['tool_calls']
        arguments = json.loads(call['function']['arguments'])
        check(schema, call['function']['arguments'])
        assert is_sorted(schema, arguments, schema), (schema, arguments)
        assert got['usage']['completion_tokens'] <= limit and 'warnings' not in got['choices'][0]
        longest = max(longest, len(arguments))
    assert longest > 3


@pytest.mark.parametrize('limit', range(13, 40, 3))
def test_ends_in_time(odd, limit):
    """A long string is closed where the limit would cut it."""
    schema = {'type': 'object', 'properties': {'text': {'type': 'string', 'minLength': 3}}, 'required': ['text']}
    got = one(odd, ask(max_tokens=limit, seed=1, temperature=1, response_format=format_of(schema)))
    check(schema, content(got))
    assert got['choices'][0]['finish_reason'] == 'length' and got['usage']['completion_tokens'] <= limit


def test_end_of_the_context(odd):
    schema = {'type': 'array', 'items': {'type': 'string'}, 'minItems': 2}
    check(schema, content(one(odd, ask(seed=1, temperature=2, response_format=format_of(schema)), '-c', 90)))


def test_too_small_a_limit_is_said(odd, tmp_path):
    """Before anything is generated, with the least that will do; and that is enough, also beside a thought."""
    got = json.loads(run('-m', odd, '--jsonl', stdin=json.dumps(ask(max_tokens=4, response_format=format_of(PERSON)))).stdout)
    least = int(re.fullmatch('max_tokens is 4: this schema needs at least ([0-9]+)', got['error']['message'])[1])
    schema = write_json(tmp_path / 'person.json', PERSON)
    said = complaint(1, '-m', odd, '--json-schema', schema, 'Who?', '-n', least - 1)
    assert 'needs at least %d' % least in said
    for thinks in (False, True):
        for limit in range(least, least + 6):
            request = ask(max_tokens=limit, seed=limit, temperature=1, response_format=format_of(PERSON),
                          chat_template_kwargs={'enable_thinking': thinks})
            check(PERSON, content(one(odd, request)))
    options = ('-m', odd, '--json-schema', schema, '--seed', 1, 'Hi')
    n = len(ids_of('render', '--ids', '-m', odd, stdin=json.dumps(ask('Hi'))))
    check(PERSON, answer(*options, '-c', n + least - 1))
    said = complaint(1, *options, '-c', n + least - 2)
    assert 'leaves room for %d tokens (-c): this schema needs at least %d' % (least - 1, least) in said


def test_any_object(odd, puppet):
    for model in (odd, puppet):
        got = json.loads(content(one(model, ask(max_tokens=200, response_format={'type': 'json_object'}))))
        assert isinstance(got, dict)


def test_thought_first(puppet, odd):
    """The thought is free, and not part of the content; one without end leaves room for the answer."""
    request = ask(max_tokens=200, response_format=format_of(PERSON), chat_template_kwargs={'enable_thinking': True})
    message = one(puppet, request)['choices'][0]['message']
    assert message['reasoning_content'] == 'you add it'
    check(PERSON, message['content'])
    for seed in range(5):
        check(PERSON, content(one(odd, dict(request, seed=seed, temperature=2))))


def test_streams(odd):
    request = ask(max_tokens=100, seed=3, response_format=format_of(PERSON))
    whole = content(one(odd, request))
    done = run('-m', odd, '--jsonl', '--stream', stdin=json.dumps(request))
    chunks = [json.loads(line)['choices'][0] for line in done.stdout.decode().split('\n')[:-1]]
    assert ''.join(c['delta'].get('content', '') for c in chunks) == whole
    check(PERSON, whole)


def test_same_seed_same_answer(odd):
    request = ask(max_tokens=200, seed=3, temperature=2, response_format=format_of(PERSON))
    assert content(one(odd, request)) == content(one(odd, request))


def test_file(odd, tmp_path):
    schema = write_json(tmp_path / 'person.json', PERSON)
    check(PERSON, answer('-m', odd, '--json-schema', schema, 'Who?', '-n', 200, '--seed', 1))
    check(PERSON, answer('-m', odd, '--json-schema', schema, '--raw', '-p', 'Who?', '-n', 200, '--seed', 1))
    check(PERSON, content(one(odd, ask(max_tokens=200), '--json-schema', schema)))
    got = one(odd, ask(max_tokens=200, response_format=format_of({'const': 5})), '--json-schema', schema)
    assert content(got) == '5'
    with pytest.raises(ValueError):
        json.loads(content(one(odd, ask(max_tokens=50, seed=1, response_format={'type': 'text'}), '--json-schema', schema)))


@pytest.mark.parametrize('text, words', [
    ('{"type": "object", "properties": {"a": {"odd": {}}}}', ['#/properties/a/odd: not supported']), ('{', ['not valid JSON at byte']),
    ('{} x', ['text after the JSON value, at byte 3']), ('{"type": "integer", "minimum": 2, "maximum": 1}', ['nothing satisfies']),
])
def test_bad_file(odd, tmp_path, text, words):
    """Said at the start, with the file's name."""
    path = tmp_path / 'schema.json'
    path.write_text(text)
    said = complaint(1, '-m', odd, '--json-schema', path, 'Who?')
    assert all(word in said for word in words) and str(path) in said
    assert 'No such file' in complaint(1, '-m', odd, '--json-schema', tmp_path / 'none', 'Who?')
