"""`check`: does a schema compile, and would it have allowed a text?  And JSON in place of its file."""
import json
import os
import pty
import subprocess

import pytest

from conftest import DEMO, GEMMA4, PATIENCE, answer, complaint, environment, run, write_json
from test_requests import HI, render

PERSON = {'type': 'object', 'properties': {'name': {'type': 'string', 'maxLength': 4},
                                           'age': {'type': 'integer', 'minimum': 0}}, 'required': ['name']}
NO_B = {'properties': {'a': {'type': 'integer'}, 'b': {'minimum': 2, 'maximum': 1}}}     # nothing can be b
UNSUPPORTED = {'properties': {'a': {'foo': 2}}}


def check(schema, text, *options):
    """What is said of a text; whatever it is, it is one line that is no longer than it should be."""
    done = run('check', '-m', DEMO, '--json-schema', json.dumps(schema), *options, stdin=text)
    said = done.stdout.decode()
    assert done.stderr == b'' and said.count('\n') == 1 and said.endswith('\n') and len(said) <= 121
    assert done.returncode == (0 if said in ('yes\n', 'compiles\n') else 1)
    return said.rstrip('\n')


# ---------------------------------------------------------------------------------------------- texts

@pytest.mark.parametrize('schema, text', [
    ({'type': 'string', 'maxLength': 2147483647}, '"a"'), ({'type': 'array', 'maxItems': 9007199254740991}, '[1]'),
    ({'type': 'object', 'maxProperties': 4294967295}, '{"a": 1}'),
    ({'type': 'string', 'not': {'anyOf': [{'maxLength': 1}, {'minLength': 4}]}, 'maxLength': 2147483648}, '"abc"'),
    (PERSON, '{"name": "Ann", "age": 12}'), (PERSON, '{"name": "Ann", "age": 12}\n'), (PERSON, '{"name":"né😀"}'),
    (PERSON, '{\n  "name": "",\n  "age": 0\n}'), ({}, '[1, {"a": null}]'), ({'enum': ['é', 'è']}, '"è"'),
    ({'type': 'integer'}, '-10'), ({'type': 'string'}, '"\\u00e9"')])
def test_allowed(schema, text):
    assert check(schema, text) == 'yes'


@pytest.mark.parametrize('schema, text, want', [
    (PERSON, '{"name": "Annab"}', 'byte 14: expected `"`, not `b`'),
    (PERSON, '{"name": "Ann", "age": x}', 'byte 23: expected `0-9`, not `x`'),
    (PERSON, '{"name": é}', 'byte 9: expected `"`, not `é`'),
    (PERSON, '{"name": "A\tb"}', 'byte 11: expected any printable ASCII character or other characters, not `\\t`'),
    (PERSON, '{"name": "Ann"}\r\n', 'byte 15: expected the end, not `\\r`'),
    (PERSON, '{"name": "Ann"}\n\n', 'byte 15: expected the end, not `\\n`'),
    (PERSON, '{"name": "Ann"} ', 'byte 15: expected the end, not a space'),
    ({'type': 'boolean'}, 'True', 'byte 0: expected `f` or `t`, not `T`'),
    ({'type': 'integer'}, '12,', 'byte 2: expected `0-9` or the end, not `,`'),
    ({'type': 'array', 'items': {'type': 'integer'}}, '[1,  2]', 'byte 4: expected `-` or `0-9`, not a space'),
    ({'type': 'string', 'pattern': '^[^x]*$'}, '"axb"',
     'byte 2: expected any printable ASCII character (not `x`) or other characters, not `x`'),
    ({'type': 'string', 'format': 'date'}, '"2024-13-01"', 'byte 7: expected `0-2` or `\\`, not `3`'),
    (NO_B, '{"a": 1, "b": 1}', 'byte 7: expected `0-9`, `}` or white space, not `,`'),
    (NO_B, '{"b": 1}', 'byte 2: expected `a`, not `b`'),
    ({'enum': ['a b', 'a,b']}, '"a-', 'byte 2: expected `,` or a space, not `-`')])
def test_forbidden(schema, text, want):
    assert check(schema, text) == 'no: ' + want


def properties(required=(), **named):
    return {'type': 'object', 'properties': named, 'required': list(required)}


LONG = ['value number %d of the list' % i for i in range(20000)]
CLOSED = dict(properties('a', a={'type': 'boolean'}), additionalProperties=False)
CAT, DOG = properties(['kind', 'lives'], kind={'const': 'cat'}, lives={'type': 'integer'}), properties(['kind', 'barks'], kind={'const': 'dog'},
                                                                                                         barks={'type': 'boolean'})
ZOD_TIME = (r'^(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29|\d{4}-(?:(?:0[13578]|1[02])-'
            r'(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|(?:02)-(?:0[1-9]|1\d|2[0-8])))T(?:(?:[01]\d|2[0-3]):[0-5]\d'
            r'(?::[0-5]\d(?:\.\d+)?)?(?:Z))$')


@pytest.mark.parametrize('schema, good, bad', [
    ({'type': 'string', 'format': 'date'}, ['"2026-11-30"', '"2026-12-31"', '"2024-02-29"'], ['"2026-11-31"', '"2026-02-29"', '"2026-02-30"']),
    ({'type': 'integer'}, ['1234567890123456789', '18446744073709551615', '-9223372036854775808'], ['1.5']),
    ({'type': 'integer', 'minimum': -9223372036854775808, 'maximum': 9223372036854775807}, ['9223372036854775807'], ['9223372036854775808']),
    ({'allOf': [properties(['id'], id={'type': 'integer'}), properties(['title'], title={'type': 'boolean'}, description={'type': 'string'})]},
     ['{"id": 1, "title": true, "description": "d"}', '{"id": 1, "title": false}'], ['{"id": 1, "title": 6}', '{"id": 1}']),
    ({'type': 'string', 'format': 'email'}, ['"ann@mail.b2b.com"', '"a.b.c.d.e@x1.y2.example.co.uk"'], ['"a..b@c.de"', '"a@-b.de"']),
    ({'type': 'array', 'items': [{'type': 'string'}, {'type': 'number'}], 'minItems': 2, 'maxItems': 2}, ['["a", 1]'], ['[1, "a"]', '["a"]']),
    (properties(['x'], x={'exclusiveMinimum': 0, 'type': 'integer', 'x-unit': 'mm', 'title': 'X'}), ['{"x": 1}'], ['{"x": 0}']),
    ({'type': 'integer', 'minimum': -1, 'exclusiveMaximum': 0.0}, ['-1'], ['0']),
    ({'type': 'number', 'minimum': 0.0}, ['0', '0.0', '1e-3'], ['-1']),
    ({'type': 'integer', 'enum': [0.0, 1.0]}, ['0.0', '1.0'], ['2']),
    ({'type': 'number', 'enum': [0.0, 0.5], 'exclusiveMinimum': 0}, ['0.5'], ['0.0']),
    ({'type': 'array', 'uniqueItems': True, 'items': {'enum': [0, 0.0, 1]}}, ['[0, 1]'], ['[0, 0.0]']),
    ({'enum': [0, 1], 'not': {'const': 0.0}}, ['1'], ['0']),
    ({'type': 'number', 'minimum': 2, 'exclusiveMinimum': True, 'nullable': True}, ['2.5', 'null'], ['2', '2.0']),
    (properties('b', b={'type': 'string', 'contentEncoding': 'base64', 'format': 'binary'}), ['{"b": "x"}'], ['{"b": 1}']),
    ({'type': 'string', 'format': 'uri', 'minLength': 1, 'maxLength': 2083}, ['"https://example.com/a?b#c"'], ['"no scheme"']),
    ({'type': 'string', 'format': 'duration'}, ['"P3DT4H5M"', '"PT0S"'], ['"3 days"']),
    ({'type': 'string', 'format': 'hostname'}, ['"a-1.example.com"'], ['"-a.com"']),
    ({'type': 'string', 'format': 'ipv6'}, ['"::1"', '"2001:db8::8a2e:370:7334"'], ['"2001:::1"', '"1.2.3.4"']),
    ({'type': 'string', 'pattern': '^[A-Z]{3}\\d+$', 'minLength': 4, 'maxLength': 8}, ['"ABC1"', '"ABC12345"'], ['"ABC"', '"ABC123456"']),
    ({'enum': ['a', 'abc', 'abcd'], 'minLength': 3}, ['"abc"'], ['"a"']),
    ({'type': 'object', 'patternProperties': {'^[a-z]+$': {'type': 'integer'}}}, ['{"ab": 1}', '{"A": "x"}'], ['{"ab": "x"}']),
    ({'type': 'object', 'propertyNames': {'type': 'string'}, 'additionalProperties': {'type': 'number'}}, ['{"k": 1.5}', '{}'], ['{"k": "v"}']),
    ({'type': 'object', 'propertyNames': {'anyOf': [{'const': 'a'}, {'pattern': '^x'}], 'not': {'const': 'xx'}}, 'additionalProperties': {}},
     ['{"a": 1, "xy": 2}', '{}'], ['{"b": 1}', '{"xx": 1}']),
    ({'type': 'OBJECT', 'properties': {'b': {'type': 'INTEGER'}, 'a': {'type': 'STRING', 'format': 'enum', 'enum': ['x']}}, 'required': ['a', 'b'],
      'propertyOrdering': ['a', 'b']}, ['{"a": "x", "b": 1}'], ['{"b": 1, "a": "x"}', '{"a": "y", "b": 1}']),
    ({'type': 'string', 'pattern': '^(?<year>\\d{4})-(?P<m>\\d\\d)$', 'enumNames': [], 'ui:widget': 'text'}, ['"2026-11"'], ['"2026"']),
    ({'type': 'string', 'format': 'uri', 'maxLength': 65536}, ['"https://e.com/%s"' % ('a' * 4000)], ['"e.com"']),
    ({'type': 'any', 'maximum': 5}, ['"x"', '5', 'null'], ['6']),
    ({'type': 'number'}, ['1.7976931348623157e308'], ['1e309', '1e-309']),
    ({'type': 'string', 'format': 'ipvanyaddress'}, ['"10.0.0.1"', '"::1"'], ['"10.0.0"']),
    ({'type': 'string', 'format': 'iri'}, ['"https://exämple.de/ü?q=é#ö"'], ['"/ü"', '"a b:c"']),
    ({'type': 'string', 'format': 'iri-reference'}, ['"/ü"', '"#é"'], ['"a b"']),
    ({'type': 'string', 'format': 'idn-hostname'}, ['"www.exämple.de"', '"실례.테스트"', '"a-1.com"'], ['"a..b"', '"-ä.de"', '"ä b"', '""']),
    ({'type': 'string', 'format': 'idn-email'}, ['"müller@exämple.de"', '"실례@실례.테스트"'], ['"ä..b@c.de"', '"ä@-b.de"']),
    ({'type': 'string', 'format': 'url'}, ['"https://a.b:80/c?d#e"'], ['"mailto:a@b"', '"http:///a"']),
    ({'type': 'string', 'format': 'iso-date-time'}, ['"2024-02-29T00:00:00"', '"2024-02-29T00:00:00+01:00"'], ['"2023-02-29T00:00:00"']),
    (properties(['pet'], pet={'oneOf': [{'$ref': '#/$defs/Cat'}, {'$ref': '#/$defs/Dog'}], 'discriminator': {'propertyName': 'kind'}}) |
     {'$defs': {'Cat': CAT, 'Dog': DOG}}, ['{"pet": {"kind": "dog", "barks": true}}'], ['{"pet": {"kind": "dog", "lives": 9}}']),
    ({'pattern': '^[\\u{1F600}-\\u{1f64F}]\\u{41}$'}, ['"😀A"'], ['"AA"', '"🙐A"']),
    (properties(['n'], n=properties(['c'], c={'items': {'$ref': 'T0'}}) | {'$id': 'T0'}), ['{"n": {"c": [{"c": []}]}}'], ['{"n": {"c": [1]}}']),
    (properties(['a', 'b'], a={'$ref': 'b#/$defs/C'}, b={'$ref': '/x/b#n'}) | {'$id': 'https://e.com/x/a', '$defs': {
        'B': {'$id': 'b', 'type': 'integer', '$defs': {'C': {'type': 'null'}, 'D': {'$anchor': 'n', 'type': 'boolean'}}}}},
     ['{"a": null, "b": true}'], ['{"a": 1, "b": true}', '{"a": null, "b": 1}']),
    ({'items': {'type': 'integer', 'minimum': 0, 'exclusiveMaximum': 7}, 'uniqueItems': True}, ['[0, 6]', '[]', '[6, 5, 4, 3, 2, 1, 0]'], ['[1, 1]', '[7]']),
    ({'$ref': '#/$defs/t', 'prefixItems': [{'type': 'string'}], '$defs': {'t': {'prefixItems': [{}, {'type': 'integer'}]}}}, ['["a", 1]'], ['[1, 1]', '["a", "b"]', '["a", 1, 1]']),
    ({'allOf': [{'prefixItems': [{'minimum': 3}]}, {'maxItems': 2}], 'items': {'type': 'integer'}}, ['[3, 1]'], ['[1, 3]', '[3, 1, 1]']),
    ({'prefixItems': [{'type': 'string'}], 'allOf': [{'prefixItems': [True, {'type': 'null'}]}], 'unevaluatedItems': False}, ['["a", null]'], ['["a", null, 1]']),
    ({'type': 'string', 'format': 'date-time', 'pattern': ZOD_TIME}, ['"2024-02-29T23:59:59.5Z"'], ['"2023-02-29T00:00:00Z"', '"2024-02-29T00:00:00+01:00"']),
])
def test_what_once_failed(schema, good, bad):
    for text in good:
        assert check(schema, text) == 'yes', text
    for text in bad:
        assert check(schema, text).startswith('no: '), text


@pytest.mark.parametrize('schema, pointer', [
    ('{"type": "string", "type": "integer"}', '#/type'),
    ('{"properties": {"a": {"minimum": 1}, "b": {}, "a": {"minimum": 2}}}', '#/properties/a')])
def test_a_name_twice(schema, pointer):
    assert '%s: is there twice' % pointer in complaint(1, 'check', '-m', DEMO, '--json-schema', schema)


def test_a_name_twice_in_tools():
    assert 'name stands twice' in complaint(1, 'check', '-m', DEMO, '--tools', '[{"name": "f", "name": "g"}]')


@pytest.mark.parametrize('option', ['--json-schema', '--tools'])
def test_no_utf8(tmp_path, option):
    path = tmp_path / 'a.json'
    path.write_bytes(b'[{"a\xff": 1}]')
    assert complaint(1, 'check', '-m', DEMO, option, path) == 'gemma4: %s: not UTF-8 at byte 4\n' % path


@pytest.mark.parametrize('text, byte', [
    ('{', 1), ('{"a"', 4), ('{"a": }', 6), ('{"a": 1,}', 8), ('{"a" 1}', 5), ('{1: 2}', 1), ('[1, 01]', 5), ('[-]', 2), ('[1.]', 3),
    ('[1e+x]', 4), ('["ab', 4), ('[nul]', 4), ('["\\x"]', 3), ('["\\u12', 6), ('["\\u12g4"]', 6), ('[1 2]', 3), ('[', 1), ('[ ', 2)])
def test_where_a_schema_is_no_json(text, byte):
    """The first byte with which no JSON goes on, counted from 0 as in texts, or the end."""
    assert complaint(1, 'check', '-m', DEMO, '--json-schema', text) == 'gemma4: --json-schema: not valid JSON at byte %d\n' % byte
    assert complaint(1, 'check', '-m', DEMO, '--tools', text).endswith('not valid JSON at byte %d\n' % byte)


def test_json_too_deep(tmp_path):
    path = tmp_path / 'deep.json'
    path.write_text('[' * 1500 + ']' * 1500)
    assert complaint(1, 'check', '-m', DEMO, '--json-schema', path) == 'gemma4: %s: JSON nested too deep\n' % path


@pytest.mark.parametrize('more', [{}, {'type': 'string', 'pattern': '^v.*t$', 'maxLength': 60}, {'allOf': [{'enum': LONG}]}])
def test_long_enum(tmp_path, more):
    """20,000 values in far less than a second; comparing each with each took nine."""
    path = write_json(tmp_path / 'schema.json', {'enum': LONG, **more})
    start = os.times()
    assert answer('check', '-m', DEMO, '--json-schema', path, stdin='"%s"' % LONG[-1]) == 'yes\n'
    end = os.times()
    assert end.children_user - start.children_user < 2


@pytest.mark.parametrize('schema', [
    {'allOf': [CLOSED, dict(properties('b', b={'type': 'boolean'}), additionalProperties=False)]},
    dict(CLOSED, anyOf=[properties('b', b={'type': 'boolean'}), properties('c', c={'type': 'boolean'})])])
def test_closed_objects_that_exclude_each_other(schema):
    assert 'nothing satisfies this schema' in complaint(1, 'check', '-m', DEMO, '--json-schema', json.dumps(schema))


def test_forbidden_inside_of_a_character():
    """The byte is the one that is forbidden; the character is shown whole."""
    assert check({'enum': ['é', 'è']}, '"ê"') == 'no: byte 2: expected other characters, not `ê`'
    assert check({'const': '€'}, '"₿"') == 'no: byte 3: expected other characters, not `₿`'


@pytest.mark.parametrize('text, want', [
    (b'"\xff"', 'byte 1: expected any printable ASCII character or other characters, not the byte 0xff'),
    (b'"\xc3"', 'byte 2: expected the rest of a character, not `"`'),
    (b'"\xc3', 'byte 2: expected the rest of a character, not the end of the text'),
    (b'"\x00"', 'byte 1: expected any printable ASCII character or other characters, not `\\u0000`')])
def test_bytes_that_are_no_text(text, want):
    assert check({'type': 'string'}, text) == 'no: ' + want


@pytest.mark.parametrize('text, want', [
    ('\n', 'byte 0: expected `{`'), ('{"nam', 'byte 5: expected `e`'),
    ('{"name": "Ann", "age": 1', 'byte 24: expected `0-9`, `}` or white space')])
def test_end_too_early(text, want):
    assert check(PERSON, text) == 'no: %s, not the end of the text' % want


def test_long_lists_are_cut():
    said = check({'type': 'string', 'pattern': '^[acegikmoqsuwyACEGIKMOQSUWY02468é]*$'}, '"b"')
    assert said.startswith('no: byte 1: expected `"`, `0`, `2`, ') and said.endswith(', … or other characters, not `b`')


def test_what_the_model_writes_is_allowed(odd):
    text = answer('-m', odd, '--json-schema', json.dumps(PERSON), '--seed', 1, '-n', 60, 'Who?')
    assert check(PERSON, text) == 'yes'


# ---------------------------------------------------------------------------------------------- schemas

def test_compiles(tmp_path):
    path = write_json(tmp_path / 'schema.json', PERSON)
    assert answer('check', '-m', DEMO, '--json-schema', path) == 'compiles\n'
    assert check(PERSON, '') == 'compiles'


def test_terminal(tmp_path):
    """Nobody is asked to type a text."""
    ours, theirs = pty.openpty()
    call = [GEMMA4, 'check', '-m', DEMO, '--json-schema', write_json(tmp_path / 'schema.json', PERSON)]
    done = subprocess.run(call, stdin=theirs, capture_output=True, env=environment(), timeout=PATIENCE)
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'compiles\n', b'')


@pytest.mark.parametrize('text, words', [
    (json.dumps(UNSUPPORTED), ['#/properties/a/foo: not supported']), ('{', ['not valid JSON at byte 1']),
    ('{"type": "integer", "minimum": 2, "maximum": 1}', ['#: nothing satisfies']), ('[]', ['#: must be an object'])])
@pytest.mark.parametrize('stdin', ['', '{}'])
def test_refused_schema(tmp_path, text, words, stdin):
    """In a file, and as the value of the option."""
    path = tmp_path / 'schema.json'
    path.write_text(text)
    for value, name in [(path, str(path)), (text, '--json-schema')]:
        said = complaint(1, 'check', '-m', DEMO, '--json-schema', value, stdin=stdin)
        assert said.startswith('gemma4: %s: ' % name) and all(word in said for word in words)


def test_missing_file(tmp_path):
    path = tmp_path / 'none.json'
    for option in ('--json-schema', '--tools'):
        said = complaint(1, 'check', '-m', DEMO, option, path)
        assert said == 'gemma4: %s: No such file or directory\n' % path


def test_needs_the_tokenizer_alone(tmp_path):
    (tmp_path / 'tokenizer.json').write_bytes((DEMO / 'tokenizer.json').read_bytes())
    assert answer('check', '-m', tmp_path, '--json-schema', '{}', stdin='1') == 'yes\n'
    (tmp_path / 'tokenizer.json').unlink()
    assert str(tmp_path) in complaint(1, 'check', '-m', tmp_path, '--json-schema', '{}', stdin='1')


def test_model_of_the_environment():
    assert answer('check', '--json-schema', '{}', env=environment(GEMMA4_MODEL=DEMO)) == 'compiles\n'
    assert 'no such directory' in complaint(1, 'check', '--json-schema', '{}', env=environment(GEMMA4_MODEL='/none'))


@pytest.mark.parametrize('options', [
    (), ('--json-schema', '{}', '--tools', '[]'), ('--json-schema', '{}', 'text'), ('--json-schema', '{}', '-p', 'x'),
    *[('--json-schema', '{}', *more) for more in [
        ('--raw',), ('--ids', 'f'), ('--jsonl',), ('-i', 'x.png'), ('--plain',), ('--request', 'f'), ('--json',),
        ('--open-thought',), ('--run-tools', 'd', '--yes'), ('--stream',), ('--text', 'f'), ('--scenario', 'chat'),
        ('--draft', 'd'), ('--context-overflow', 'slide')]]], ids=' '.join)
def test_wrong_usage(options):
    assert '--help' in complaint(2, 'check', '-m', DEMO, *options)


# ---------------------------------------------------------------------------------------------- tools

def test_tools_that_compile(tmp_path):
    tools = [{'name': 'f', 'parameters': {'type': 'object', 'properties': {'a': {'type': 'string'}}}}, {'name': 'g'}]
    for value in (json.dumps(tools), json.dumps({'tools': tools}), '[]', write_json(tmp_path / 'tools.json', tools)):
        assert answer('check', '-m', DEMO, '--tools', value) == 'compiles\n'
    assert answer('check', '-m', DEMO, '--tools', json.dumps(tools), stdin='no text is read') == 'compiles\n'


def test_tools_that_do_not(tmp_path):
    """A line for each."""
    tools = [{'name': 'f', 'parameters': UNSUPPORTED}, {'name': 'good'}, {'name': 'h', 'parameters': {'type': 'string'}},
             {'name': 'g', 'parameters': {'properties': {'b': {'enum': []}}, 'required': ['b']}}]
    path = write_json(tmp_path / 'tools.json', tools)
    for value, name in [(path, str(path)), (json.dumps(tools), '--tools')]:
        done = run('check', '-m', DEMO, '--tools', value)
        lines = done.stderr.decode().splitlines()
        assert (done.returncode, done.stdout, len(lines)) == (1, b'', 3)
        for line, tool in zip(lines, 'fhg'):
            assert line.startswith('gemma4: %s: parameters of %s: #' % (name, tool))
        assert '#/properties/a/foo: not supported' in lines[0] and '#/type: must be object' in lines[1]


def test_unknown_fields_of_tools():
    """They are named, but for those that other services have."""
    known = [{'name': 'f', 'strict': True, 'cache_control': {'type': 'ephemeral'}, 'inputSchema': {}, 'annotations': {}, 'x-mine': 1},
             {'type': 'function', 'function': {'name': 'g', 'strict': True, 'parameters': {'type': 'object'}}, 'defer_loading': True}]
    done = run('check', '-m', DEMO, '--tools', json.dumps(known))
    assert (done.returncode, done.stdout, done.stderr) == (0, b'compiles\n', b'')
    odd = [{'name': 'f', 'paramaters': {}}, {'type': 'function', 'function': {'name': 'g', 'type': 'x', 'a b': 1}}]
    for tools in (odd, {'tools': odd}):
        done = run('check', '-m', DEMO, '--tools', json.dumps(tools))
        assert (done.returncode, done.stdout) == (0, b'compiles\n')
        assert done.stderr.decode() == ('gemma4: warning: --tools: unknown fields have no effect: tools[0].paramaters, '
                                        'tools[1].function.type, tools[1].function."a b"\n')


@pytest.mark.parametrize('value, words', [
    ('[{"name": 5}]', 'tools[0].function'), ('{"a": 1}', 'tools: must be a list'), ('[', 'not valid JSON at byte 1'),
    ('[{"name": "f"}, {"name": "g"}, {"type": "function", "function": {"name": "f"}}]', 'tools[2].function.name: f is there twice')])
def test_no_list_of_tools(value, words):
    said = complaint(1, 'check', '-m', DEMO, '--tools', value)
    assert said.startswith('gemma4: --tools: ') and words in said


# ---------------------------------------------------------------------------------------------- JSON in place of a file

def test_json_in_place_of_a_file(odd, tmp_path):
    options = ('-m', odd, '--seed', 1, '-n', 60, 'Who?', '--json-schema')
    path = write_json(tmp_path / 'schema.json', PERSON)
    assert answer(*options, json.dumps(PERSON)) == answer(*options, path)
    tools = [{'name': 'look', 'description': 'Looks.'}]
    want = render({'messages': [HI], 'tools': tools})
    for value in (tools, {'tools': tools}):
        assert render({'messages': [HI]}, '--tools', json.dumps(value)) == want


def test_errors_name_the_option(odd):
    said = complaint(1, '-m', odd, '--json-schema', json.dumps(UNSUPPORTED), 'Who?')
    assert said == 'gemma4: --json-schema: #/properties/a/foo: not supported\n'
    assert complaint(1, '-m', odd, '--tools', '{"a": 1}', 'Who?') == 'gemma4: --tools: tools: must be a list\n'
