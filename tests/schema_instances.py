"""Random instances of any JSON schema: texts that are valid under it, and texts that are not.

    python3 tests/schema_instances.py [NAME...] > instances.jsonl

writes {"name", "schema", "valid": [...], "invalid": [...]} for the schemas of fixtures/real_schemas.jsonl
(those whose names begin with a NAME, if any is given), fifty of each, always the same ones.  It says on
stderr where there are fewer.

The texts have the form that schema.h states: members in the order of the schema, first the declared ones,
then those that are only required, then others, where `properties` are missing or empty or others are asked
for; no member twice; nothing, a space, or a newline and up to 16 spaces between two elements; no superfluous
zeros; constants without spaces.  A text that is not valid has that form too, but for one change.

What is valid is said by jsonschema, under the draft that the schema names, or else 2020-12, with `nullable`
as in OpenAPI.  Where readers may differ (what a format or \\w lets pass) a text is in neither list: it is
valid if a strict reading allows it as well as a generous one, and invalid if neither does.
"""
import datetime
import decimal
import ipaddress
import json
import math
import os
import random
import re
import sys
import urllib.parse
import warnings
from decimal import Decimal

import jsonschema
from jsonschema.exceptions import ValidationError

try:
    from re import _constants as codes, _parser as parser
except ImportError:                                 # before Python 3.11
    import sre_constants as codes
    import sre_parse as parser

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
DIGITS = '0123456789'
WORDS = ['a', 'b', 'name', 'x1', 'two words', 'größe', 'Ort', 'id', 'value', 'key-1', '漢字', '😀', 'null', '0',
         'A.b/c~d', '']
# What a class or a dot of a pattern may stand for: ASCII mostly, nothing that only some call a space.
POOL = LETTERS * 2 + LETTERS.upper() + DIGITS * 2 + ' _-.,:;/@#+*!?$%&()[]{}<>=~^|\'"\\`' + 'äßéλЖ中€😀𝔘'
# And what stands in a string that is free.
FREE = LETTERS * 4 + ' ' * 12 + DIGITS + '.,"\\/\n\t\r\b\x01\x1f\x7f'
FREE += 'äßéλЖ中€\u00a0\ufffd\uffff😀𝔘\U0010ffff'
LINES = '\n\r\u0085\u2028\u2029'
KINDS = ['null', 'boolean', 'string', 'array', 'object', 'integer', 'fraction']


class Retry(Exception):
    """This choice leads nowhere."""


# ---- formats ----

def _is_date(text):
    try:
        return bool(re.fullmatch('[0-9]{4}-[0-9]{2}-[0-9]{2}', text) and datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _is_address(cls):
    def check(text):
        try:
            return bool(cls(text)) or True
        except ValueError:
            return False
    return check


def _is_regex(text):
    try:
        return bool(re.compile(text)) or True
    except re.error:
        return False


_OFFSET = '(?:[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)'
_OCTET = '(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])'
_LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?'
_STRICT_TIME = (r'(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?'
                r'(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])')
_TIME = r'(?:[01][0-9]|2[0-4]):[0-5][0-9](?::(?:[0-5][0-9]|60)(?:[.,][0-9]+)?)?' + _OFFSET + '?'
_STRICT_DURATION = ('P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)(?:{0})?|{0})'
                    .format('T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)'))
_DURATION = r'[+-]?P(?=[0-9T])(?:[0-9]+(?:[.,][0-9]+)?[YMWD])*(?:T(?:[0-9]+(?:[.,][0-9]+)?[HMS])+)?'
_EMAIL = (r'[A-Za-z0-9_+-]{1,32}(?:\.[A-Za-z0-9_+-]{1,32}){0,2}'
          r'@[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?(?:\.[A-Za-z]{2,16}){1,3}')
_URI_PART = r"(?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
_URI_CHARACTERS = _URI_PART + '(?:#' + _URI_PART + ')?'
_UUID = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'


def _full(pattern, and_then=lambda text: True):
    return lambda text: bool(re.fullmatch(pattern, text)) and and_then(text)


# For each format what it is in a strict reading, and in a generous one.  No other format is checked.
FORMATS = {
    'date': (_is_date, _is_date),
    'time': (_full(_STRICT_TIME), _full(_TIME)),
    'date-time': (lambda text: _is_date(text[:10]) and bool(re.fullmatch('T' + _STRICT_TIME, text[10:])),
                  lambda text: _is_date(text[:10]) and bool(re.fullmatch('[Tt ]' + _TIME, text[10:]))),
    'duration': (_full(_STRICT_DURATION), _full(_DURATION)),
    'email': (_full(_EMAIL), lambda text: '@' in text),
    'hostname': (_full(r'(?=.{1,253}$)%s(?:\.%s)*' % (_LABEL, _LABEL)),
                 _full(r'[\w-]{1,63}(?:\.[\w-]{1,63})*\.?')),
    'ipv4': (_full(r'(?:%s\.){3}%s' % (_OCTET, _OCTET)),
             _full(r'(?:0*%s\.){3}0*%s' % (_OCTET, _OCTET))),
    'ipv6': (_full('[0-9A-Fa-f:.]+', _is_address(ipaddress.IPv6Address)), _is_address(ipaddress.IPv6Address)),
    'uri': (_full('[A-Za-z][A-Za-z0-9+.-]*:' + _URI_CHARACTERS),
            _full(r'[A-Za-z][A-Za-z0-9+.-]*:[^\s"<>\\^`{|}]*')),
    'uri-reference': (_full(_URI_CHARACTERS), _full(r'[^\s"<>\\^`{|}]*')),
    'uuid': (_full(_UUID), lambda text: bool(re.fullmatch(_UUID, text.lower()))),
    'json-pointer': (_full('(?:/(?:[^~/]|~[01])*)*'),) * 2,
    'jwt': (_full(r'(?a)eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+'), _full(r'[\w-]+\.[\w-]+\.[\w-]*')),
    'regex': (_is_regex, _is_regex),
}
# What is none, in neither reading.
WRONG = {
    'date': ['2023-02-29', '1900-02-29', '2024-04-31', '2024-00-10', '2024-13-01', '2024-1-01', '24-01-01',
             '2024/01/01', '2024-01-32'],
    'time': ['24:01:00Z', '12:60:00Z', '12:00:61Z', '12:00:00+25', '1:00:00Z', '12.00.00Z', '12:00:00.Z'],
    'date-time': ['2023-02-29T00:00:00Z', '2024-06-31T10:00:00Z', '2024-01-01', '2024-01-01T25:00:00Z',
                  '2024-01-01T10:61:00Z', '2024-01-01X10:00:00Z'],
    'duration': ['P', 'PT', '1D', 'P1', 'P1H', 'PT1D', 'P-1D', 'T1H', 'P1DT'],
    'email': ['a', '', 'a.de', 'a at b.de', 'a(at)b.de'],
    'hostname': ['', 'a..b', '.a', 'a b', 'a/b', 'x' * 64],
    'ipv4': ['256.1.1.1', '1.2.3', '1.2.3.4.5', '1.2.3.', 'a.b.c.d', '1..2.3', '1.2.3.4 '],
    'ipv6': ['::g', '1:2:3', '1::2::3', '12345::', ':', '1:2:3:4:5:6:7:8:9', '127.0.0.1'],
    'uri': ['a', '/a/b', 'http//x', '://x', 'http://a b', '1a:b', ''],
    'uri-reference': ['a b', '<>', '\\'],
    'uuid': ['00000000-0000-0000-0000-00000000000', '00000000-0000-0000-0000-0000000000000',
             '0000000g-0000-0000-0000-000000000000', '00000000000000000000000000000000'],
    'json-pointer': ['a', '/~', '/~2', '/a~'],
    'jwt': ['', 'eyJ', 'eyJh.eyJz', 'eyJh.eyJz.a.b', 'eyJh..a', 'eyJ=.eyJz.a', 'eyJh.eyJz.a b'],
    'regex': ['(', '[a', 'a)', '*'],
}


def _random_date(rng):
    year = rng.choice([1, 999, 1000, 1900, 1970, 2000, 2023, 2024, 2038, 2100, 9999, rng.randint(1, 9999)])
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    month = rng.randint(1, 12)
    last = [31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1]
    return '%04d-%02d-%02d' % (year, month, rng.choice([last, rng.randint(1, last)]))


def _random_time(rng):
    some = '%02d:%02d:%02d' % (rng.randint(0, 23), rng.randint(0, 59), rng.randint(0, 59))
    text = rng.choice(['00:00:00', '23:59:59', some, some])
    if rng.random() < 0.4:
        text += '.' + ''.join(rng.choice(DIGITS) for _ in range(rng.randint(1, 6)))
    return text + rng.choice(['Z', 'Z', '+00:00', '-08:00', '+05:30', '-23:59', '+14:00'])


def _random_duration(rng):
    number = lambda: str(rng.choice([0, 1, 5, 30, 100, rng.randint(0, 9999)]))
    if rng.random() < 0.1:
        return 'P%sW' % number()

    def run(letters):
        first = rng.randrange(len(letters))
        return ''.join(number() + c for c in letters[first:rng.randint(first + 1, len(letters))])

    kind = rng.random()
    return 'P' + (run('YMD') if kind < 0.7 else '') + ('T' + run('HMS') if kind > 0.3 else '')


def _random_email(rng):
    word = lambda letters, most: ''.join(rng.choice(letters) for _ in range(rng.randint(1, most)))
    local = '.'.join(word(LETTERS + DIGITS + '_+-', 8) for _ in range(rng.randint(1, 3)))
    tops = ['de', 'com', 'org', 'co', 'uk', 'museum']
    top = ''.join('.' + rng.choice(tops) for _ in range(rng.randint(1, 2)))
    return local + '@' + word(LETTERS + LETTERS.upper() + DIGITS, 9) + top


def _random_hostname(rng):
    label = lambda: rng.choice(['a', 'www', 'example', 'x-y', 'host1', 'A0', 'xn--bcher-kva', '127'])
    return '.'.join(label() for _ in range(rng.randint(1, 4)))


def _random_ipv6(rng):
    parts = ['%x' % rng.choice([0, 1, 0xffff, rng.randrange(65536)]) for _ in range(8)]
    if rng.random() < 0.4:
        return ':'.join(parts)
    begin = rng.randint(0, 6)
    end = rng.randint(begin + 1, 8)
    return ':'.join(parts[:begin]) + '::' + ':'.join(parts[end:])


def _random_uri(rng):
    if rng.random() < 0.1:
        return rng.choice(['mailto:a@b.de', 'urn:isbn:0451450523', 'tel:+1-816-555-1212', 'file:///a/b'])
    text = rng.choice(['https', 'http', 'ftp', 'HTTPS', 's3']) + '://' + _random_hostname(rng)
    text += rng.choice(['', '', ':8080']) + _random_path(rng)
    return text + rng.choice(['', '?q=1', '?a=b&c=%20', '#top', '?x#y'])


def _random_path(rng):
    steps = ['a', 'index.html', '~user', 'x%20y', '1', '']
    return ''.join('/' + rng.choice(steps) for _ in range(rng.randint(0, 3)))


def _random_uuid(rng):
    text = '%032x' % rng.choice([0, 2**128 - 1] + [rng.getrandbits(128)] * 8)
    return '-'.join([text[:8], text[8:12], text[12:16], text[16:20], text[20:]])


def _random_ipv4(rng):
    return '.'.join(str(rng.choice([0, 1, 9, 10, 99, 100, 199, 200, 249, 250, 255])) for _ in range(4))


def _random_reference(rng):
    return _random_uri(rng) if rng.random() < 0.5 else _random_path(rng) + rng.choice(['', '#x', '?y'])


def _random_pointer(rng):
    return ''.join('/' + rng.choice(['', 'a', '0', 'a~1b', 'm~0n', 'ä']) for _ in range(rng.randint(0, 3)))


def _random_regex(rng):
    return rng.choice(['a', '^a+$', '[0-9]{2,}', '(x|y)*z?', '\\d\\.', '', '^[^"]$'])


def _random_jwt(rng):
    part = lambda: ''.join(rng.choice(LETTERS + LETTERS.upper() + DIGITS + '-_') for _ in range(rng.randint(1, 40)))
    return 'eyJ%s.eyJ%s.%s' % (part(), part(), part())


MAKERS = {
    'date': _random_date,
    'time': _random_time,
    'date-time': lambda rng: _random_date(rng) + 'T' + _random_time(rng),
    'duration': _random_duration,
    'email': _random_email,
    'hostname': _random_hostname,
    'ipv4': _random_ipv4,
    'ipv6': _random_ipv6,
    'uri': _random_uri,
    'uri-reference': _random_reference,
    'uuid': _random_uuid,
    'json-pointer': _random_pointer,
    'jwt': _random_jwt,
    'regex': _random_regex,
}


# ---- patterns ----

BEGIN, END = '\ue000', '\ue001'
_trees = {}


def matches_strictly(pattern, text):
    """Whether it does as in ECMA-262, where \\w and \\d are ASCII, and as in Python."""
    return bool(re.search(pattern, text) and re.search(pattern, text, re.ASCII))


def matches_generously(pattern, text):
    return bool(re.search(pattern, text) or re.search(pattern, text, re.ASCII))


def _in_class(items, character):
    """Whether a class has the character, by the whole of Unicode and by ASCII alike; None: they differ."""
    answers = set()
    for is_ascii in (False, True):
        found = False
        for op, value in items:
            if op is codes.LITERAL:
                found |= ord(character) == value
            elif op is codes.RANGE:
                found |= value[0] <= ord(character) <= value[1]
            elif op is codes.CATEGORY:
                name = str(value).lower()
                letter = {'digit': 'd', 'space': 's', 'word': 'w'}[name.split('_')[-1]]
                hit = bool(re.match('\\' + letter, character, re.ASCII if is_ascii else 0))
                found |= hit != ('not' in name)
        answers.add(found)
    return answers.pop() if len(answers) == 1 else None


class Sampler:
    """Strings that a pattern matches, mostly.

    A repetition is gone through up to `most` times more than it must."""

    def __init__(self, rng, most):
        self.rng, self.most, self.groups = rng, most, {}

    def sample(self, pattern):
        if pattern not in _trees:
            try:
                _trees[pattern] = parser.parse(pattern)
            except re.error:
                _trees[pattern] = None
        if _trees[pattern] is None:
            raise Retry()
        text = self.run(_trees[pattern])
        if not text.startswith(BEGIN) and self.rng.random() < 0.5:
            text = self.filler() + text
        if not text.endswith(END) and self.rng.random() < 0.5:
            text += self.filler()
        return text.replace(BEGIN, '').replace(END, '')

    def filler(self):
        return ''.join(self.rng.choice(POOL) for _ in range(self.rng.randint(1, 4)))

    def run(self, tree):
        return ''.join(self.one(op, value) for op, value in tree)

    def one(self, op, value):
        if op is codes.LITERAL:
            return chr(value)
        if op is codes.NOT_LITERAL:
            return self.of_class([(codes.NEGATE, None), (codes.LITERAL, value)])
        if op is codes.ANY:
            return self.rng.choice(POOL)
        if op is codes.IN:
            return self.of_class(value)
        if op is codes.BRANCH:
            return self.run(self.rng.choice(value[1]))
        if op is codes.SUBPATTERN:
            text = self.run(value[3])
            self.groups[value[0]] = text.replace(BEGIN, '').replace(END, '')
            return text
        if op is codes.GROUPREF:
            return self.groups.get(value, '')
        if op is codes.AT:
            return {codes.AT_BEGINNING: BEGIN, codes.AT_END: END}.get(value, '')
        if op in (codes.ASSERT, codes.ASSERT_NOT):
            return ''
        if str(op) == 'ATOMIC_GROUP':
            return self.run(value)
        low, high, inner = value                    # a repetition
        high = min(high, low + self.most)
        count = self.rng.choice([low, high, self.rng.randint(low, high), self.rng.randint(low, high)])
        return ''.join(self.run(inner) for _ in range(count))

    def of_class(self, items):
        rng = self.rng
        if items[0][0] is codes.NEGATE:
            fitting = [c for c in POOL if _in_class(items[1:], c) is False]
            if not fitting:
                raise Retry()
            return rng.choice(fitting)
        op, value = rng.choice(items)
        if op is codes.LITERAL:
            return chr(value)
        if op is codes.RANGE:
            for _ in range(20):
                c = chr(rng.choice(list(value) + [rng.randint(*value) for _ in range(3)]))
                if not '\ud800' <= c <= '\udfff' and c not in LINES + '\0\x7f\ufeff':
                    return c
            raise Retry()
        name = str(value).lower()
        pool = {'category_digit': DIGITS, 'category_word': LETTERS + LETTERS.upper() + DIGITS + '_',
                'category_space': '     \t'}.get(name)
        return rng.choice(pool or [c for c in POOL if _in_class([(op, value)], c)])


# ---- judges ----

def _with_null(check):
    """A keyword's check that lets null pass beside `nullable`."""
    def wrapped(validator, value, instance, schema):
        if instance is None and isinstance(schema, dict) and schema.get('nullable') is True:
            return
        yield from check(validator, value, instance, schema) or ()
    return wrapped


def _make_judge(base, which, matches, target):
    def check_format(validator, name, instance, schema):
        check = FORMATS.get(name) if isinstance(name, str) else None
        if isinstance(instance, str) and check and not check[which](instance):
            yield ValidationError('format')

    def check_pattern(validator, pattern, instance, schema):
        if isinstance(instance, str) and not matches(pattern, instance):
            yield ValidationError('pattern')

    def check_names(validator, patterns, instance, schema):
        if isinstance(instance, dict):
            for pattern, inner in patterns.items():
                for name, value in instance.items():
                    if matches(pattern, name):
                        yield from validator.descend(value, inner, path=name, schema_path=pattern)

    def check_reference(validator, ref, instance, schema):
        there = target(ref)
        if there is None:
            yield from base.VALIDATORS['$ref'](validator, ref, instance, schema) or ()
        else:
            yield from validator.descend(instance, there)

    # References are followed here: jsonschema 4.10 takes a property with the name $id for an identifier.
    checks = {**base.VALIDATORS, 'format': check_format, 'pattern': check_pattern, '$ref': check_reference}
    if 'patternProperties' in checks:
        checks['patternProperties'] = check_names
    return jsonschema.validators.extend(base, {name: _with_null(check) for name, check in checks.items()})


_OF_SCHEMAS = ('properties', 'patternProperties', '$defs', 'definitions', 'dependentSchemas', 'dependencies')
_OF_ONE = ('items', 'additionalItems', 'additionalProperties', 'contains', 'not', 'if', 'then', 'else',
           'propertyNames', 'unevaluatedItems', 'unevaluatedProperties', 'contentSchema')
_OF_LIST = ('allOf', 'anyOf', 'oneOf', 'prefixItems', 'items')


def inner_schemas(schema):
    """Yields the schema and all that are in it, wherever a keyword has one."""
    todo = [schema]
    while todo:
        schema = todo.pop()
        if not isinstance(schema, dict):
            continue
        yield schema
        for name in _OF_SCHEMAS:
            if isinstance(schema.get(name), dict):
                todo += schema[name].values()
        todo += [schema[name] for name in _OF_ONE if isinstance(schema.get(name), dict)]
        for name in _OF_LIST:
            if isinstance(schema.get(name), list):
                todo += schema[name]
        components = schema.get('components')       # of OpenAPI
        if isinstance(components, dict) and isinstance(components.get('schemas'), dict):
            todo += components['schemas'].values()


def base_of(schema):
    """jsonschema's class for the draft that the schema names."""
    name = schema.get('$schema') if isinstance(schema, dict) else None
    if not isinstance(name, str):
        return jsonschema.Draft202012Validator
    for draft, cls in (('draft-03', 'Draft3Validator'), ('draft-04', 'Draft4Validator'),
                       ('draft-06', 'Draft6Validator'), ('draft-07', 'Draft7Validator'),
                       ('2019-09', 'Draft201909Validator')):
        if draft in name:
            return getattr(jsonschema, cls)
    return jsonschema.Draft202012Validator


class Judge:
    """Says whether a text is valid: True, False, or None where readers may differ."""

    def __init__(self, schema):
        base = base_of(schema)
        self.legacy = base.__name__ in ('Draft3Validator', 'Draft4Validator', 'Draft6Validator',
                                        'Draft7Validator')
        self.known = set(base.VALIDATORS)
        # Numbers are exact, as they are written.
        self.schema = json.loads(json.dumps(schema), parse_float=Decimal)
        self.targets = {}
        self.schemas = self.reachable_schemas()
        for inner in self.schemas:
            inner.pop('$schema', None)              # else jsonschema goes back to its own class there
            if self.legacy and isinstance(inner.get('$ref'), str):
                for name in self.known - {'$ref'}:
                    inner.pop(name, None)
        self.judges = [_make_judge(base, which, matches, self.target)(self.schema)
                       for which, matches in enumerate((matches_strictly, matches_generously))]
        names = ('pattern', 'patternProperties', 'format')
        if not any(name in inner for inner in self.schemas for name in names):
            del self.judges[1]                      # there is but one reading

    def reachable_schemas(self):
        """All schemas in the document, also those that stand where only a reference finds them."""
        found, todo = {}, [self.schema]
        while todo:
            for inner in inner_schemas(todo.pop()):
                if id(inner) not in found:
                    found[id(inner)] = inner
                    if isinstance(inner.get('$ref'), str):
                        todo.append(self.target(inner['$ref']))
        return list(found.values())

    def __call__(self, text):
        instance = json.loads(text, parse_float=Decimal)
        with decimal.localcontext() as context:
            context.prec = 2000
            answers = {judge.is_valid(instance) for judge in self.judges}
        return answers.pop() if len(answers) == 1 else None

    def holds(self, schema, value, generous):
        """Whether a value is valid under a schema inside."""
        judge = self.judges[-1 if generous else 0]
        with decimal.localcontext() as context:
            context.prec = 2000
            return judge.evolve(schema=schema).is_valid(value)

    def target(self, ref):
        """The schema to which a reference leads, None where it is not in the document."""
        if ref not in self.targets:
            self.targets[ref] = self.find_target(ref)
        return self.targets[ref]

    def find_target(self, ref):
        own = self.schema.get('$id', self.schema.get('id')) if isinstance(self.schema, dict) else None
        if isinstance(own, str) and ref.startswith(own.split('#')[0]):
            ref = '#' + ref[len(own.split('#')[0]):].lstrip('#')
        if ref[:1] != '#':
            return None
        if ref[1:2] not in ('', '/'):
            for inner in inner_schemas(self.schema):
                if inner.get('$anchor') == ref[1:] or ref in (inner.get('$id'), inner.get('id')):
                    return inner
            return None
        at = self.schema
        for name in ref.split('/')[1:]:
            name = urllib.parse.unquote(name).replace('~1', '/').replace('~0', '~')
            try:
                at = at[int(name) if isinstance(at, list) else name]
            except (KeyError, ValueError, IndexError, TypeError):
                return None
        return at


# ---- values, and how they are written ----

class Node:
    """A value: a scalar, a list of nodes, or a list of pairs of a name and a node; None for null.

    `exact` says that it is a constant or follows a pattern, so that there is one way to write it; `facts` is
    what was known of the schema when it was made, or None."""
    __slots__ = ('kind', 'value', 'exact', 'facts')

    def __init__(self, kind, value, exact=False, facts=None):
        self.kind, self.value, self.exact, self.facts = kind, value, exact, facts

    def plain(self):
        if self.kind == 'array':
            return [item.plain() for item in self.value]
        if self.kind == 'object':
            return {name: item.plain() for name, item in self.value}
        if self.kind == 'fraction':
            return Decimal(self.value)
        return self.value

    def copy(self):
        value = self.value
        if self.kind == 'array':
            value = [item.copy() for item in value]
        elif self.kind == 'object':
            value = [(name, item.copy()) for name, item in value]
        return Node(self.kind, value, self.exact, self.facts)

    def all(self):
        yield self
        for item in self.value if self.kind in ('array', 'object') else ():
            yield from (item if self.kind == 'array' else item[1]).all()


def node_of(value, exact=True):
    """The node of a plain value."""
    if isinstance(value, list):
        return Node('array', [node_of(item, exact) for item in value], exact)
    if isinstance(value, dict):
        return Node('object', [(name, node_of(item, exact)) for name, item in value.items()], exact)
    if isinstance(value, (Decimal, float)):
        return Node('fraction', str(value), exact)
    return Node(_kind_of(value), value, exact)


def _kind_of(value):
    if value is None:
        return 'null'
    names = {bool: 'boolean', int: 'integer', str: 'string', list: 'array', dict: 'object'}
    return names.get(type(value), 'fraction')


NAMED = {'"': '\\"', '\\': '\\\\', '\b': '\\b', '\f': '\\f', '\n': '\\n', '\r': '\\r', '\t': '\\t'}


def _quote(text):
    """The shortest way."""
    hidden = lambda c: c < ' ' or c in '\x7f\u0085\u2028\u2029'
    return '"%s"' % ''.join(NAMED.get(c) or ('\\u%04x' % ord(c) if hidden(c) else c) for c in text)


def _quote_freely(text, rng):
    """Another way: some characters are escaped that need not be."""
    share = rng.choice([0, 0, 0.1, 0.5])
    parts = []
    for c in text:
        if c in '"\\' or c < ' ' or rng.random() < share:
            ways = [NAMED[c]] if c in NAMED else ['\\/'] if c == '/' else []
            if ord(c) < 0x10000:
                ways.append('\\u' + rng.choice(['%04x', '%04X']) % ord(c))
            parts.append(rng.choice(ways or [c]))
        else:
            parts.append(c)
    return '"%s"' % ''.join(parts)


class Writer:
    """Writes nodes, with spaces in one of several styles."""

    def __init__(self, rng):
        self.rng = rng
        self.style = rng.choice(['close', 'close', 'spaced', 'indented', 'wild'])
        self.indent = rng.choice([1, 2, 4])

    def gap(self, depth, inside):
        """Between two elements; inside: after or before a bracket."""
        if self.style == 'close':
            return ''
        if self.style == 'spaced':
            return '' if inside else ' '
        if self.style == 'indented':
            return '\n' + ' ' * min(16, depth * self.indent)
        return self.rng.choice(['', ' ', '\n', '\n' + ' ' * self.rng.randint(1, 16)])

    def write(self, node, depth=0):
        if node.kind == 'string':
            return _quote(node.value) if node.exact else _quote_freely(node.value, self.rng)
        if node.kind == 'fraction':
            return node.value
        if node.kind not in ('array', 'object'):
            return json.dumps(node.value)
        gap = (lambda depth, inside: '') if node.exact else self.gap
        ends = '[]' if node.kind == 'array' else '{}'
        if not node.value:
            return ends[0] + (gap(depth, True) if self.style == 'wild' else '') + ends[1]
        parts = []
        for item in node.value:
            if node.kind == 'object':
                after = gap(0, False) if self.style in ('spaced', 'wild') else ''
                if self.style == 'indented' and not node.exact:
                    after = ' '
                parts.append(_quote(item[0]) + ':' + after + self.write(item[1], depth + 1))
            else:
                parts.append(self.write(item, depth + 1))
            parts.append(',' + gap(depth + 1, False))
        return ends[0] + gap(depth + 1, True) + ''.join(parts[:-1]) + gap(depth, True) + ends[1]


# ---- valid ones ----

class Facts:
    """What a schema says, with one alternative chosen wherever it has several."""

    def __init__(self):
        self.kinds = set(KINDS)
        self.values = None                          # the constants that it may be
        self.low = self.high = None                 # a bound and whether that itself is out
        self.multiples, self.patterns, self.formats, self.ignored_formats = [], [], [], []
        self.min_length, self.max_length = 0, None
        self.objects, self.required, self.names, self.dependent = [], [], [], []
        self.min_members, self.max_members = 0, None
        self.arrays, self.contains = [], []
        self.min_items, self.max_items, self.unique = 0, None, False
        self.tests = []                             # schemas that say more than can be said here
        self.is_open = True                         # unevaluatedProperties do not forbid others


def _same(a, b):
    return json.dumps(a, sort_keys=True, default=str) == json.dumps(b, sort_keys=True, default=str)


def _all_of(schemas):
    return schemas[0] if len(schemas) == 1 else {'allOf': schemas} if schemas else True


def _smaller(a, b):
    return b if a is None else min(a, b)


class Maker:
    """Makes instances of one schema."""

    def __init__(self, judge, rng):
        self.judge, self.rng = judge, rng
        self.generous = False                       # where no strict reading allows anything
        self.heights = {}
        for _ in range(60):
            changed = False
            for schema in judge.schemas:
                height = self.height_of(schema)
                if height < self.height(schema):
                    self.heights[id(schema)] = height
                    changed = True
            if not changed:
                break

    # How deep the least instance is: choices that lead back to themselves are left in the end.

    def height(self, schema):
        if not isinstance(schema, dict):
            return 0 if schema is not False else 1000
        return self.heights.get(id(schema), 1000)

    def height_of(self, schema):
        if 'const' in schema or 'enum' in schema:
            return 0
        height = 0
        if isinstance(schema.get('$ref'), str):
            height = self.height(self.judge.target(schema['$ref']))
        for inner in schema.get('allOf', []):
            height = max(height, self.height(inner))
        for name in ('anyOf', 'oneOf'):
            if schema.get(name):
                height = max(height, min(self.height(inner) for inner in schema[name]))
        types = schema.get('type', [])
        types = [types] if isinstance(types, str) else types
        if schema.get('nullable') is True or any(name not in ('object', 'array') for name in types):
            return height
        if isinstance(schema.get('required'), list):
            properties, additional = schema.get('properties', {}), schema.get('additionalProperties', True)
            for name in schema['required']:
                height = max(height, 1 + self.height(properties.get(name, additional)))
        if schema.get('minItems', 0) > 0 or schema.get('contains') is not None:
            items, prefix = schema.get('items', True), schema.get('prefixItems', [])
            if isinstance(items, list):
                items, prefix = schema.get('additionalItems', True), items
            for inner in prefix[:schema.get('minItems', 0)] or [items]:
                height = max(height, 1 + self.height(inner))
        return height

    def make(self):
        """A node; Retry where it did not succeed."""
        self.limit = self.rng.choice([1, 2, 3, 4, 6])
        self.share = self.rng.choice([0, 0.2, 0.5, 0.5, 0.8, 1])
        self.nodes = 0
        return self.value(self.judge.schema, 0)

    def is_deep(self, depth):
        return depth > self.limit or self.nodes > 150

    def value(self, schema, depth):
        self.nodes += 1
        if depth > 60 or self.nodes > 3000:
            raise Retry()
        for attempt in range(12):
            facts = Facts()
            try:
                self.gather(schema, facts, depth, 0)
                node = self.build(facts, depth)
            except Retry:
                continue
            node.facts = facts
            if not facts.tests:
                return node
            plain = node.plain()
            if all(self.judge.holds(test, plain, self.generous) for test in facts.tests):
                return node
        raise Retry()

    # From a schema to facts.

    def gather(self, schema, facts, depth, level):
        if schema is True or schema is None:        # a reference to elsewhere
            return
        if not isinstance(schema, dict) or level > 40:
            raise Retry()
        if schema.get('nullable') is True and self.rng.random() < 0.25:
            facts.kinds &= {'null'}
            return
        known = self.judge.known
        say = lambda name: schema[name] if name in schema and name in known else None
        if say('$ref') is not None and self.judge.legacy:
            return self.gather(self.judge.target(schema['$ref']), facts, depth, level + 1)
        types = say('type')
        if types is not None:
            kinds = set()
            for name in [types] if isinstance(types, str) else types:
                kinds |= {'integer', 'fraction'} if name == 'number' else {name} & set(KINDS)
            facts.kinds &= kinds
            if not facts.kinds:
                raise Retry()
        for name in ('enum', 'const'):
            if name in schema and name in known:
                values = schema[name] if name == 'enum' else [schema[name]]
                if facts.values is not None:
                    values = [v for v in facts.values if any(_same(v, w) for w in values)]
                facts.values = values
        if facts.values is not None and len(facts.tests) < 20:
            facts.tests.append(schema)
        self.gather_scalars(schema, facts, say)
        self.gather_containers(schema, facts, say)
        if any(name in schema and name in known for name in (
                'not', 'oneOf', 'if', 'contains', 'dependentSchemas', 'dependencies', 'unevaluatedProperties',
                'unevaluatedItems', 'propertyNames', 'patternProperties')):
            facts.tests.append(schema)
        if say('$ref') is not None:
            self.gather(self.judge.target(schema['$ref']), facts, depth, level + 1)
        for inner in say('allOf') or []:
            self.gather(inner, facts, depth, level + 1)
        for name in ('anyOf', 'oneOf'):
            if say(name):
                self.gather(self.choose(schema[name], depth), facts, depth, level + 1)
        if say('if') is not None:
            if self.rng.random() < 0.5:
                self.gather(schema['if'], facts, depth, level + 1)
                self.gather(schema.get('then', True), facts, depth, level + 1)
            else:
                self.gather(schema.get('else', True), facts, depth, level + 1)

    def choose(self, schemas, depth):
        if not self.is_deep(depth):
            possible = [schema for schema in schemas if self.height(schema) < 1000]
        else:
            least = min(self.height(schema) for schema in schemas)
            possible = [schema for schema in schemas if self.height(schema) == least]
        if not possible:
            raise Retry()
        return self.rng.choice(possible)

    def gather_scalars(self, schema, facts, say):
        facts.min_length = max(facts.min_length, int(say('minLength') or 0))
        if say('maxLength') is not None:
            facts.max_length = _smaller(facts.max_length, int(schema['maxLength']))
        if say('pattern') is not None:
            facts.patterns.append(schema['pattern'])
        if isinstance(schema.get('format'), str):
            (facts.formats if schema['format'] in FORMATS else facts.ignored_formats).append(schema['format'])
        if say('multipleOf') is not None:
            facts.multiples.append(schema['multipleOf'])
        for name, sign in (('minimum', 1), ('maximum', -1)):
            exclusive = schema.get('exclusive' + name.capitalize())
            bounds = [] if say(name) is None else [(schema[name], exclusive is True)]
            if exclusive is not None and not isinstance(exclusive, bool):
                bounds.append((exclusive, True))
            for bound in bounds:
                if sign == 1 and (facts.low is None or bound > facts.low):
                    facts.low = bound
                if sign == -1 and (facts.high is None or bound[0] < facts.high[0] or (
                        bound[0] == facts.high[0] and bound[1])):
                    facts.high = bound

    def gather_containers(self, schema, facts, say):
        part = {name: schema[name] for name in ('properties', 'patternProperties', 'additionalProperties')
                if say(name) is not None}
        if part:
            facts.objects.append(part)
        if isinstance(say('required'), list):
            facts.required += [name for name in schema['required'] if name not in facts.required]
        facts.min_members = max(facts.min_members, int(say('minProperties') or 0))
        if say('maxProperties') is not None:
            facts.max_members = _smaller(facts.max_members, int(schema['maxProperties']))
        if say('propertyNames') is not None:
            facts.names.append(schema['propertyNames'])
        if say('unevaluatedProperties') is not None:
            facts.is_open = False
        for name in ('dependentRequired', 'dependentSchemas', 'dependencies'):
            facts.dependent += (say(name) or {}).items()
        items, prefix = say('items'), say('prefixItems')
        if isinstance(items, list):
            items, prefix = say('additionalItems'), items
        if items is not None or prefix is not None:
            facts.arrays.append((prefix or [], items))
        if say('contains') is not None:
            facts.contains.append((schema['contains'], schema.get('minContains', 1)))
        facts.min_items = max(facts.min_items, int(say('minItems') or 0))
        if say('maxItems') is not None:
            facts.max_items = _smaller(facts.max_items, int(schema['maxItems']))
        facts.unique |= say('uniqueItems') is True

    # From facts to a node.

    def build(self, facts, depth):
        rng = self.rng
        if facts.values is not None:
            values = [value for value in facts.values if _kind_of(value) in facts.kinds]
            if not values:
                raise Retry()
            return node_of(rng.choice(values))
        kinds = facts.kinds
        if kinds == set(KINDS):                     # keywords of one type alone stand for that type
            if facts.objects or facts.required or facts.names or facts.min_members or facts.dependent:
                kinds = {'object'}
            elif (facts.arrays or facts.min_items or facts.max_items is not None or facts.unique
                  or facts.contains):
                kinds = {'array'}
            elif facts.patterns or facts.formats or facts.min_length or facts.max_length is not None:
                kinds = {'string'}
            elif facts.low or facts.high or facts.multiples:
                kinds = {'integer', 'fraction'}
            elif facts.ignored_formats:
                kinds = {'string'}
            else:
                return self.anything(0 if depth < 4 else 3)
        kind = rng.choice([kind for kind in KINDS if kind in kinds])
        if self.is_deep(depth) and kind in ('array', 'object'):
            kind = rng.choice([kind for kind in KINDS if kind in kinds and kind not in ('array', 'object')]
                              or [kind])
        if kind == 'object':
            return self.object(facts, depth)
        if kind == 'array':
            return self.array(facts, depth)
        if kind == 'string':
            return self.string(facts)
        if kind == 'null':
            return Node('null', None)
        if kind == 'boolean':
            return Node('boolean', rng.random() < 0.5)
        return self.number(facts, kind)

    def anything(self, depth):
        rng = self.rng
        kind = rng.choice(KINDS[:3] + KINDS[5:] + (KINDS[3:5] if depth < 2 else []))
        if kind == 'array':
            return Node('array', [self.anything(depth + 1) for _ in range(rng.randint(0, 3))])
        if kind == 'object':
            names = rng.sample(WORDS, rng.randint(0, 3))
            return Node('object', [(name, self.anything(depth + 1)) for name in names])
        if kind == 'string':
            return Node('string', self.words())
        if kind in ('integer', 'fraction'):
            return self.number(Facts(), kind)
        return Node(kind, None if kind == 'null' else rng.random() < 0.5)

    def words(self, low=0, high=None):
        """A string without a pattern."""
        rng = self.rng
        most = low + 60 if high is None else high
        length = rng.choice([low, min(most, low + 1), rng.randint(low, min(most, low + 12)),
                             rng.randint(low, min(most, low + 60))])
        if high is not None and high <= 200 and rng.random() < 0.25:
            length = high
        pool = rng.choice([FREE, FREE, LETTERS, DIGITS, 'ä€😀'])
        return ''.join(rng.choice(pool) for _ in range(length))

    def string(self, facts):
        rng = self.rng
        low, high = facts.min_length, facts.max_length
        if high is not None and low > high:
            raise Retry()
        if not facts.patterns and not facts.formats:
            if low > 5000:
                raise Retry()
            return Node('string', self.words(low, high), exact=bool(facts.tests))
        for attempt in range(60):
            sampler = Sampler(rng, rng.choice([0, 1, 3, 8]) + max(0, low if attempt % 2 else 0))
            sources = facts.patterns + facts.formats
            try:
                if len(facts.patterns) > 1 and rng.random() < 0.5:
                    samples = [sampler.sample(pattern) for pattern in facts.patterns]
                    text = rng.choice(['', ' ', '-']).join(samples)
                else:
                    source = rng.choice(sources)
                    is_format = source in facts.formats
                    text = MAKERS[source](rng) if is_format else sampler.sample(source)
            except Retry:
                continue
            if len(text) < low or (high is not None and len(text) > high):
                continue
            if not all(matches_strictly(pattern, text) for pattern in facts.patterns):
                continue
            if all(FORMATS[name][1 if self.generous else 0](text) for name in facts.formats):
                return Node('string', text, exact=True)
        raise Retry()

    def number(self, facts, kind):
        rng = self.rng
        low, high = facts.low, facts.high
        for name, size in (('int32', 31), ('int64', 63)):
            if name in facts.ignored_formats:
                low = max(low or (-2**size, False), (-2**size, False))
                high = min(high or (2**size - 1, False), (2**size - 1, False))
        if facts.multiples:
            return self.multiple(facts.multiples, low, high, kind)
        if kind == 'integer':
            return Node('integer', self.integer(low, high))
        if low is None and high is None:
            return Node('fraction', self.free_number())
        # Up to six digits behind the point, or as many as a bound has, and 15 in all.
        bounds = [Decimal(bound[0]) for bound in (low, high) if bound is not None]
        places = min(15, max([6] + [-bound.as_tuple().exponent for bound in bounds]))
        for _ in range(30):
            part = rng.randint(1, places)
            scale = 10 ** rng.randint(0, 9)
            start = Decimal(low[0] if low is not None else high[0] if high is not None else 0)
            span = Decimal(high[0]) - start if low is not None and high is not None else Decimal(scale)
            if span > 10**12:
                start, span = max(start, Decimal(-scale)), Decimal(2 * scale)
            offset = span * Decimal(rng.randint(0, 10 ** 9)) / 10 ** 9
            with decimal.localcontext() as context:
                context.prec = 60
                number = start - offset if low is None else start + offset
                number = number.quantize(Decimal(1).scaleb(-part))
            digits = number.as_tuple().digits
            text = '{:f}'.format(number).rstrip('0').rstrip('.')
            if '.' not in text or len(digits) > 15 or text in ('-0', ''):
                continue
            if self.is_between(Decimal(text), low, high):
                return Node('fraction', text)
        return Node('integer', self.integer(low, high))

    @staticmethod
    def is_between(number, low, high):
        if low is not None and (number < low[0] or (low[1] and number == low[0])):
            return False
        return high is None or not (number > high[0] or (high[1] and number == high[0]))

    def integer(self, low, high):
        rng = self.rng
        # Whole numbers have at most 20 digits.
        largest = 10**20 - 1
        first = None if low is None else math.floor(low[0]) + 1 if low[1] else math.ceil(low[0])
        last = None if high is None else math.ceil(high[0]) - 1 if high[1] else math.floor(high[0])
        first, last = (bound if bound is None else max(-largest, min(largest, bound))
                       for bound in (first, last))
        if first is not None and last is not None:
            if first > last:
                raise Retry()
            near = [first, last, min(first + 1, last), max(last - 1, first), rng.randint(first, last)]
            return rng.choice(near + [rng.randint(first, min(last, first + 100))]
                              + [0] * (first <= 0 <= last))
        size = rng.choice([10, 1000, 10**6, 2**31, 2**53, 2**63])
        if first is not None:
            return rng.choice([first, first + 1, first + rng.randint(0, size),
                               max(first, min(2**63 - 1, first + 2**63))])
        if last is not None:
            return rng.choice([last, last - 1, last - rng.randint(0, size)])
        digits = rng.randint(1, 20)
        return rng.choice([0, 1, -1, rng.randint(-size, size), 2**53, 2**63 - 1, -2**63, 2**64 - 1,
                           rng.choice([-1, 1]) * rng.randint(10 ** (digits - 1), 10**digits - 1)])

    def free_number(self):
        """A number that is not whole as it stands: with a fraction, an exponent, or both."""
        rng = self.rng
        whole = str(rng.choice([0, 0, rng.randint(1, 9), rng.randint(10, 99999), rng.randint(10**9, 10**10)]))
        length = rng.choice([0, 1, 2, 5, 16 - len(whole)])
        part = ''.join(rng.choice(DIGITS) for _ in range(length)) + rng.choice('123456789')
        text = rng.choice(['', '', '-']) + whole
        if rng.random() < 0.75:
            text += '.' + part
            if rng.random() < 0.75:
                return text
        if whole == '0' and '.' not in text:
            text = text[:-1] + '7'
        return text + rng.choice('eE') + rng.choice(['', '-']) + str(rng.choice([1, 2, 5, 20, 99, 100, 250]))

    def multiple(self, multiples, low, high, kind):
        rng = self.rng
        step = max(Decimal(number) for number in multiples)
        with decimal.localcontext() as context:
            context.prec = 60
            for _ in range(40):
                first = None if low is None else math.ceil(Decimal(low[0]) / step)
                last = None if high is None else math.floor(Decimal(high[0]) / step)
                size = rng.choice([3, 100, 10**6])
                if first is None:
                    first = -size if last is None else last - size
                if last is None:
                    last = first + size
                if first > last:
                    raise Retry()
                number = step * rng.choice([first, last, rng.randint(first, last), rng.randint(first, last)])
                text = '{:f}'.format(number)
                text = text.rstrip('0').rstrip('.') if '.' in text else text
                text = '0' if text == '-0' else text
                number = Decimal(text)
                is_multiple = not any(number % Decimal(other) for other in multiples)
                if not is_multiple or not self.is_between(number, low, high):
                    continue
                if '.' not in text:
                    return Node('integer', int(text))
                if kind == 'fraction':
                    return Node('fraction', text)
        raise Retry()

    # Objects and arrays.

    @staticmethod
    def member_schemas(facts, name):
        """What an object's member must satisfy, and whether any part of the schema knows or wants it."""
        schemas, wanted, forbidden = [], False, False
        for part in facts.objects:
            own = [part['properties'][name]] if name in part.get('properties', {}) else []
            own += [inner for pattern, inner in part.get('patternProperties', {}).items()
                    if re.search(pattern, name)]
            if not own and 'additionalProperties' in part:
                own = [part['additionalProperties']]
            schemas += own
            wanted |= bool(own)
            forbidden |= any(inner is False for inner in own)
        return schemas, wanted and not forbidden, forbidden

    def object(self, facts, depth):
        rng = self.rng
        declared, seen = [], set()
        for part in facts.objects:
            for name in part.get('properties', {}):
                if name not in seen:
                    declared.append(name)
                    seen.add(name)
        share = 0 if self.is_deep(depth) else self.share
        wanted = set(facts.required)
        for name in declared:
            if rng.random() < share:
                schemas, is_wanted, _ = self.member_schemas(facts, name)
                if is_wanted and max(map(self.height, schemas)) < 1000:
                    wanted.add(name)
        done = set()
        for _ in range(5):                          # what depends on a member may ask for others
            due = [(i, value) for i, (name, value) in enumerate(facts.dependent)
                   if name in wanted and i not in done]
            if not due:
                break
            for i, value in due:
                done.add(i)
                if isinstance(value, list):
                    facts.required += [name for name in value if name not in facts.required]
                else:
                    self.gather(value, facts, depth, 1)
                wanted |= set(facts.required)
        for part in facts.objects:                  # there may be more by now
            for name in part.get('properties', {}):
                if name not in seen:
                    declared.append(name)
                    seen.add(name)
        optional = [name for name in declared if name in wanted and name not in facts.required]
        while facts.max_members is not None and len(wanted) > facts.max_members and optional:
            wanted.remove(optional.pop(rng.randrange(len(optional))))
        missing = [name for name in declared
                   if name not in wanted and not self.member_schemas(facts, name)[2]]
        undeclared = [name for name in facts.required if name not in seen]
        names = [name for name in declared if name in wanted] + undeclared
        more = self.other_names(facts, set(declared) | set(names), depth)
        # Others are taken where no declared ones are left to reach the least number.
        lacking = facts.min_members - len(names) - len(more)
        if lacking > 0:
            added = set(rng.sample(missing, min(lacking, len(missing))))
            names = [name for name in declared if name in wanted or name in added] + undeclared
        if facts.max_members is not None:
            more = more[:max(0, facts.max_members - len(names))]
        if len(names) + len(more) < facts.min_members:
            raise Retry()
        members = []
        for name in names + more:
            schemas, _, forbidden = self.member_schemas(facts, name)
            if forbidden:
                raise Retry()
            try:
                members.append((name, self.value(_all_of(schemas), depth + 1)))
            except Retry:
                if name in facts.required or len(members) + 1 < facts.min_members:
                    raise
        return Node('object', members)

    def other_names(self, facts, taken, depth):
        """Names that are not declared, where the schema asks for some."""
        rng = self.rng
        if not facts.is_open:
            return []
        parts = facts.objects
        asked = any(part.get('additionalProperties', False) is not False or part.get('patternProperties')
                    for part in parts)
        closed = any(part.get('additionalProperties') is False and not part.get('patternProperties')
                     for part in parts)
        free = not any(part.get('properties') for part in parts)
        if closed or not (asked or free):
            return []
        patterns = [pattern for part in parts for pattern in part.get('patternProperties', {})]
        count = rng.choice([0, 1, 1, 2, 3])
        if self.is_deep(depth):
            count = 0
        count = max(count, min(facts.min_members - len(taken), 20))
        names = []
        for _ in range(count * 8):
            if len(names) >= count:
                break
            try:
                if facts.names:
                    node = self.value(facts.names[0], depth + 1)
                    if node.kind != 'string':       # a schema without a type
                        continue
                    name = node.value
                    if patterns and rng.random() < 0.5:
                        name = Sampler(rng, 3).sample(rng.choice(patterns))
                elif patterns and rng.random() < 0.8:
                    name = Sampler(rng, rng.choice([0, 1, 5])).sample(rng.choice(patterns))
                else:
                    name = rng.choice(WORDS) if rng.random() < 0.7 else self.words(1, 8)
            except Retry:
                continue
            schemas, wanted, forbidden = self.member_schemas(facts, name)
            if name in taken or name in names or forbidden or (parts and not wanted and not free):
                continue
            if any(c < ' ' or c in '"\\\x7f' + LINES for c in name):
                continue                            # such a name is written without escapes
            if all(self.judge.holds(inner, name, self.generous) for inner in facts.names):
                names.append(name)
        return names

    def array(self, facts, depth):
        rng = self.rng
        prefix = max([len(first) for first, _ in facts.arrays], default=0)
        rest = [items for _, items in facts.arrays if items is not None]
        least, most = facts.min_items, facts.max_items
        if prefix and (not rest or any(items is False for items in rest)) and least <= prefix:
            most = _smaller(most, prefix)           # nobody asks for more
        elif any(items is False for items in rest):
            most = _smaller(most, prefix)
        if any(items is not False and items is not None and self.height(items) >= 1000 for items in rest):
            most = _smaller(most, prefix)
        if most is not None and least > most:
            raise Retry()
        more = 0 if self.is_deep(depth) else rng.choice([0, 1, 2, 3, 5])
        length = least + more if not prefix or rng.random() < 0.2 else max(least, prefix + more // 2)
        if most is not None:
            length = min(length, most)
            if most <= 20 and not self.is_deep(depth) and rng.random() < 0.2:
                length = most
        items, seen = [], set()
        for at in range(length):
            schemas = [first[at] if at < len(first) else other for first, other in facts.arrays]
            schemas = [schema for schema in schemas if schema is not None and schema is not True]
            for _ in range(10):
                try:
                    item = self.value(_all_of(schemas), depth + 1)
                except Retry:
                    if at >= least:
                        break
                    raise
                key = json.dumps(item.plain(), sort_keys=True, default=str)
                if not facts.unique or key not in seen:
                    seen.add(key)
                    items.append(item)
                    break
            else:
                break
        if len(items) < least:
            raise Retry()
        for schema, count in facts.contains:
            for _ in range(max(1, count) if count else 0):
                inner = {'allOf': [schema] + rest} if rest else schema
                at = rng.randint(prefix, max(prefix, len(items)))
                if at < len(items) and (most is not None and len(items) >= most or rng.random() < 0.5):
                    items[at] = self.value(inner, depth + 1)
                else:
                    items.insert(at, self.value(inner, depth + 1))
        return Node('array', items)


def _makers(schema, rng):
    judge = Judge(schema)
    return judge, Maker(judge, rng)


def _valid_nodes(judge, maker, rng, n, tries):
    """Pairs of a text and its node."""
    found = {}
    for generous in (False, True):
        maker.generous = generous
        misses = 0
        for _ in range(tries):
            if len(found) >= n or misses > 200:
                break
            try:
                node = maker.make()
            except (Retry, RecursionError):
                misses += 1
                continue
            text = Writer(rng).write(node)
            if text in found or len(text) > 20000:
                misses += 1
                continue
            verdict = judge(text)
            if verdict or (generous and verdict is None):
                found[text] = node
                misses = 0
            else:
                misses += 1
        if found:
            break
    return list(found.items())[:n]


def valid(schema, n, rng):
    """Up to n different texts that are valid."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        judge, maker = _makers(schema, rng)
        return [text for text, _ in _valid_nodes(judge, maker, rng, n, 20 * n)]


# ---- invalid ones ----

class Breaker:
    """Changes one thing in a node, such that it is probably no longer valid."""

    def __init__(self, rng):
        self.rng = rng
        self.share = 0.03                           # how often the whole becomes one of another kind

    def change(self, root):
        rng = self.rng
        root = root.copy()
        nodes = list(root.all())
        bound = [node for node in nodes if node.facts is not None and self.is_bound(node)]
        node = rng.choice(nodes + bound * 3)
        if rng.random() < (self.share if node is root else 0.15):
            self.other_kind(node)
        elif node.facts is not None and node.facts.values is not None:
            self.other_value(node)
        else:
            getattr(self, 'change_' + node.kind)(node, node.facts or Facts())
        return root

    @staticmethod
    def is_bound(node):
        """Whether more is asked of it than a type."""
        facts = node.facts
        if node.kind == 'object':
            return facts.required or facts.objects
        if node.kind == 'array':
            return facts.min_items or facts.max_items is not None or facts.unique
        if node.kind == 'string':
            length = facts.min_length or facts.max_length is not None
            return facts.patterns or facts.formats or facts.values or length
        return facts.values or facts.low or facts.high or facts.multiples

    def other_kind(self, node):
        rng = self.rng
        new = rng.choice([Node('null', None), Node('boolean', True), Node('boolean', False),
                          Node('integer', rng.randint(-9, 99)),
                          Node('fraction', rng.choice(['0.5', '-1.25', '1e-3'])),
                          Node('string', rng.choice(WORDS)), Node('array', []), Node('object', []),
                          Node('array', [Node('null', None)]),
                          Node('string', json.dumps(node.plain(), default=str)[:40]),
                          Node('array', [node.copy()]), Node('object', [('value', node.copy())])])
        node.kind, node.value, node.exact = new.kind, new.value, False

    def other_value(self, node):
        """Of a constant."""
        rng = self.rng
        if node.kind == 'string':
            text = node.value
            node.value = rng.choice([text + rng.choice(LETTERS), text[:-1], text.swapcase(), ' ' + text,
                                     text + ' ', '', text.replace('e', 'a', 1), text[::-1]])
        elif node.kind == 'integer':
            node.value += rng.choice([1, -1, 10, 100])
        elif node.kind == 'boolean':
            node.value = not node.value
        else:
            self.other_kind(node)

    change_null = change_boolean = lambda self, node, facts: self.other_kind(node)

    def change_integer(self, node, facts):
        rng = self.rng
        if rng.random() < 0.2 and abs(node.value) < 10**9:
            node.kind, node.value = 'fraction', str(node.value) + '.' + rng.choice(['5', '25', '000001'])
        elif facts.multiples and rng.random() < 0.5:
            node.value += rng.choice([1, -1])
        else:
            self.beyond(node, facts)

    def change_fraction(self, node, facts):
        if facts.multiples and self.rng.random() < 0.5:
            whole = '{:f}'.format(Decimal(node.value)).split('.')[0]
            node.value = whole + '.' + self.rng.choice(['001', '333', '0000001'])
        else:
            self.beyond(node, facts)

    def beyond(self, node, facts):
        """A number just outside a bound, or far."""
        rng = self.rng
        sides = [(bound, sign) for bound, sign in ((facts.low, -1), (facts.high, 1)) if bound is not None]
        if not sides:
            return self.other_kind(node)
        (bound, is_open), sign = rng.choice(sides)
        if 'e' in str(bound).lower() and abs(bound) > 10**18:
            return self.other_kind(node)
        away = rng.choice([1, 1, 10, 10**6, Decimal('0.5'), Decimal('0.000001')])
        if is_open and rng.random() < 0.5:
            away = 0
        if abs(bound) > 10**9:
            away = int(away) or 1
        number = Decimal(bound) + sign * away
        if number == number.to_integral_value():
            node.kind, node.value = 'integer', int(number)
        else:
            node.kind, node.value = 'fraction', '{:f}'.format(number).rstrip('0')
        return None

    def change_string(self, node, facts):
        rng = self.rng
        text, ways = node.value, []
        if facts.max_length is not None and facts.max_length < 5000:
            more = [rng.choice(LETTERS + 'ä😀') for _ in range(facts.max_length + 1 - len(text))]
            ways += [lambda: text + ''.join(more)] * 2
        if facts.min_length:
            ways += [lambda: text[:facts.min_length - 1], lambda: '']
        if facts.formats:
            ways += [lambda: rng.choice(WRONG[rng.choice(facts.formats)])]
        if facts.patterns or facts.formats:
            ways += [lambda: self.edit(text)] * 3
        if not ways:
            return self.other_kind(node)
        node.value = rng.choice(ways)()
        return None

    def edit(self, text):
        """One character more, fewer or other."""
        rng = self.rng
        at, new = rng.randint(0, len(text)), rng.choice(POOL + ' 0aZ-')
        old = text[at:at + 1]
        return rng.choice([text[:at] + some + text[at + 1:] for some in (new + old, '', new, old.swapcase())]
                          + [text[:at], text + new])

    def change_array(self, node, facts):
        rng = self.rng
        extra = rng.choice([Node('null', None), Node('object', []), Node('string', 'x'), Node('integer', 7)])
        ways = [lambda: node.value.append(extra)]
        if node.value:
            again = rng.choice(node.value).copy()
            ways += [lambda: node.value.append(again), lambda: self.other_kind(rng.choice(node.value)),
                     lambda: node.value.pop(rng.randrange(len(node.value))), node.value.reverse]
            if facts.unique:
                ways += [ways[1]] * 4
        if facts.min_items:
            ways += [lambda: node.value.__delitem__(slice(max(0, facts.min_items - 1), None))] * 3
        if facts.max_items is not None and facts.max_items < 500 and node.value:
            ways += [lambda: node.value.extend(rng.choice(node.value).copy()
                                               for _ in range(facts.max_items + 1 - len(node.value)))] * 3
        rng.choice(ways)()

    def change_object(self, node, facts):
        rng = self.rng
        taken = {name for name, _ in node.value}
        extra = rng.choice([name for name in WORDS + ['extra', 'zzz', '_'] if name not in taken])
        value = rng.choice([Node('null', None), Node('integer', 1), Node('string', 'x'), Node('object', [])])
        ways = [lambda: node.value.append((extra, value))] * 2
        if node.value:
            at = rng.randrange(len(node.value))
            due = [i for i, (name, _) in enumerate(node.value) if name in facts.required]
            ways += [lambda: node.value.pop(rng.choice(due or [at]))] * 4
            ways += [lambda: node.value.clear(), lambda: self.other_kind(node.value[at][1]),
                     lambda: node.value.__setitem__(at, (node.value[at][0] + '_', node.value[at][1]))]
        rng.choice(ways)()


def _invalid(judge, maker, rng, nodes, n, tries):
    breaker = Breaker(rng)
    found, misses = {}, 0
    if not nodes:
        nodes = [maker.anything(0) for _ in range(20)]
    for _ in range(tries):
        if len(found) >= n:
            break
        node = breaker.change(rng.choice(nodes))
        text = Writer(rng).write(node)
        if text not in found and len(text) <= 20000 and judge(text) is False:
            found[text] = True
            misses = 0
        else:
            misses += 1
            if misses > 40:
                breaker.share = 0.5                 # nothing else is left to break
    return list(found)


def invalid(schema, n, rng):
    """Up to n different texts that are not valid."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        judge, maker = _makers(schema, rng)
        nodes = [node for _, node in _valid_nodes(judge, maker, rng, max(10, n), 20 * n)]
        return _invalid(judge, maker, rng, nodes, n, 40 * n)


def both(schema, n, rng):
    """The two lists, with less work than one after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        judge, maker = _makers(schema, rng)
        pairs = _valid_nodes(judge, maker, rng, n, 20 * n)
        nodes = [node for _, node in pairs]
        return [text for text, _ in pairs], _invalid(judge, maker, rng, nodes, n, 40 * n)


def main(prefixes, count=50):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'fixtures', 'real_schemas.jsonl')
    with open(path, encoding='utf-8') as file:
        for line in file:
            entry = json.loads(line)
            if prefixes and not entry['name'].startswith(tuple(prefixes)):
                continue
            good, bad = both(entry['schema'], count, random.Random(entry['name']))
            made = {'name': entry['name'], 'schema': entry['schema'], 'valid': good, 'invalid': bad}
            print(json.dumps(made, ensure_ascii=False))
            if len(good) < count or len(bad) < count:
                print('%s: %d valid, %d invalid' % (entry['name'], len(good), len(bad)), file=sys.stderr)


if __name__ == '__main__':
    main(sys.argv[1:])
