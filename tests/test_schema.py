"""Structured output: whatever the model would like to say, what it writes under a schema validates."""
import json
import random

import jsonschema
import pytest

from conftest import answer, complaint, run, write_json
from random_schema import random_schema
from test_jsonl import ask, content, one

PERSON = {'type': 'object', 'properties': {'name': {'type': 'string', 'maxLength': 20}, 'age': {'type': 'integer', 'minimum': 0, 'maximum': 150}},
          'required': ['name', 'age'], 'additionalProperties': False}


def format_of(schema):
    return {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': schema}}


def check(schema, text):
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(['date', 'uuid', 'ipv4'])).validate(json.loads(text))


@pytest.mark.parametrize('model, count, sampling', [
    ('odd', 700, {'temperature': 3, 'top_k': 0, 'top_p': 1}), ('odd', 200, {}), ('demo', 100, {'temperature': 1.5})])
def test_random_schemas_and_seeds(request, model, count, sampling):
    rng = random.Random(count)
    schemas = [random_schema(rng) for _ in range(count)]
    lines = ''.join(json.dumps(ask(seed=i, max_tokens=200, response_format=format_of(s), **sampling)) + '\n' for i, s in enumerate(schemas))
    done = run('-m', request.getfixturevalue(model), '--jsonl', stdin=lines, timeout=1200)
    assert (done.returncode, done.stderr) == (0, b'')
    answers = done.stdout.decode().split('\n')[:-1]
    assert len(answers) == count
    for schema, line in zip(schemas, answers):
        choice, = json.loads(line)['choices']
        if 'warnings' not in choice:        # 200 tokens are too few for some of them: that is said
            check(schema, choice['message']['content'])
    assert sum('warnings' in line for line in answers) < count / 20


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


def test_too_small_a_limit_is_said(odd):
    choice, = one(odd, ask(max_tokens=4, response_format=format_of(PERSON)))['choices']
    assert choice['finish_reason'] == 'length' and 'max_tokens' in choice['warnings'][0]


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
    ('{"type": "object", "properties": {"a": {"not": {}}}}', ['$.a: not is not supported']), ('{', ['not valid JSON at byte']),
    ('{} x', ['not valid JSON at byte 3']), ('{"type": "integer", "minimum": 2, "maximum": 1}', ['nothing satisfies']),
])
def test_bad_file(odd, tmp_path, text, words):
    """Said at the start, with the file's name."""
    path = tmp_path / 'schema.json'
    path.write_text(text)
    said = complaint(1, '-m', odd, '--json-schema', path, 'Who?')
    assert all(word in said for word in words) and str(path) in said
    assert 'No such file' in complaint(1, '-m', odd, '--json-schema', tmp_path / 'none', 'Who?')
