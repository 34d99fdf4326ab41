"""Random JSON schemas of the kinds that the program supports, each of which something satisfies."""
import random

WORDS = ['a', 'b', 'name', 'city', 'Ort', 'größe', 'two words', 'x1', 'nämlich', 'type', 'id', '']
# A call has no quotes around names, so that some of the others cannot stand there.
CALL_WORDS = ['a', 'B', 'b', 'name', 'City', 'Ort', 'größe', 'two-words', 'x1', 'x_1', 'X-2']
PATTERNS = ['^[a-z]{2,5}$', '^\\d+$', 'x', '^(ab|c)*$', '[^a]$', '^\\w+@\\w+\\.(de|com)$', '^"\\\\$', '.', '^[äöü€-₿]+$', '^a.b$', '(a|b){2}', '^\\s?$',
            '^[^"\\\\]{1,3}$', '^-?\\d{1,3}(,\\d{3})*$', '^(?:x|y|)z??$', '[\\d_-]+', '\\u00e9|\\x41',
            '^(?:[A-Z]{2}-)?\\d{2,4}$', '^.{3,40}$', '^\\S+$', '\\.$', '^\\S{1,8}( \\S{1,8}){0,3}$', '^(a{2,4}|b{0,3}c){1,5}$',
            '^[\\n\\t"\\\\/]{2,}$', '^x{20}$',
            '^$|^[^-~]$', '\\S\\s', '^[ -~]*\\ba[ -~]*$', '^[^\\s-]{2,}$']
FORMATS = ['date', 'time', 'date-time', 'uuid', 'ipv4', 'email']
VALUES = [0, 1, -7, 2.5, 1e-7, 123456789, 'x', '', 'é"\\\n', 'true', True, False, None, [], {}, [1, 'a', None], {'k': [1.5], 'l': {}}]


def random_schema(rng):
    """A schema; the same one for the same state of rng."""
    definitions = {}
    schema = _value(rng, 0, definitions, WORDS)
    if definitions and isinstance(schema, dict):
        schema['$defs'] = definitions
    elif definitions:
        schema = {'anyOf': [schema], '$defs': definitions}
    return schema


def random_parameters(rng):
    """A schema for the arguments of a tool, with a property at least: others are not free then."""
    definitions = {}
    schema = _object(rng, lambda: _value(rng, 1, definitions, CALL_WORDS), CALL_WORDS)
    schema['properties']['tool'] = {'type': 'boolean'}
    return {**schema, '$defs': definitions} if definitions else schema


NAMES = ['a', 'b', 'ab', 'c']
MIXED = [None, True, False, 0, 1, 2, -1, 0.5, '', 'a', 'ab', 'b', 'é', [], [0], [1, 'a'], {}, {'a': 0}, {'a': {'b': 1}}, {'b': 1, 'a': 2}]


def random_mixture(rng, depth=0):
    """Keywords of all kinds together: often nothing satisfies them, or they are not supported together."""
    inner = lambda: random_mixture(rng, depth + 1)
    if depth == 3 or rng.random() < 0.08:
        return rng.choice([True, False, {'type': 'integer', 'minimum': 0, 'maximum': 2}, {'type': 'string', 'maxLength': 1},
                           {'type': ['boolean', 'null']}, {'const': rng.choice(MIXED)}])
    few = lambda make: [make() for _ in range(rng.randint(1, 3))]
    some = lambda names, make: {name: make() for name in rng.sample(names, rng.randint(1, 2))}
    number = lambda: rng.choice([0, 1, 2, 3, -1, 10, 1.5, 0.5, -0.5, 0.1, 100])
    count = lambda: rng.randint(0, 3)
    groups = {
        'object': {'properties': lambda: some(NAMES, inner), 'required': lambda: rng.sample(NAMES, rng.randint(0, 2)),
                   'additionalProperties': inner, 'patternProperties': lambda: some(['^a', 'b', '^c$'], inner),
                   'propertyNames': lambda: rng.choice([{'maxLength': 1}, {'enum': ['a', 'b']}, {'not': {'const': 'a'}}]),
                   'minProperties': count, 'maxProperties': count, 'dependentSchemas': lambda: some(NAMES, inner),
                   'dependentRequired': lambda: some(NAMES, lambda: rng.sample(NAMES, 1))},
        'array': {'items': inner, 'prefixItems': lambda: few(inner), 'minItems': count, 'maxItems': count, 'contains': inner,
                  'minContains': count, 'maxContains': count},
        'string': {'minLength': count, 'maxLength': count,
                   'pattern': lambda: rng.choice(['^a', 'b$', '^a?b?$', 'a|b', '^$', '[ab]{2}', '^(?!a)', '^(a|ab)(c|bc)?$'])},
        'number': {'minimum': number, 'maximum': number, 'exclusiveMinimum': number, 'exclusiveMaximum': number,
                   'multipleOf': lambda: rng.choice([1, 2, 3, 0.5, 0.25])},
        '': {'anyOf': lambda: few(inner), 'allOf': lambda: few(inner), 'oneOf': lambda: few(inner), 'not': inner, 'if': inner,
             'then': inner, 'else': inner, 'enum': lambda: rng.sample(MIXED, 3)}}
    schema = {}
    for kind in rng.sample(list(groups), rng.choice([1, 1, 2])):
        if kind:
            schema.setdefault('type', kind)
        for keyword in rng.sample(list(groups[kind]), rng.randint(1, 3)):
            schema[keyword] = groups[kind][keyword]()
    return schema


def _value(rng, depth, definitions, words):
    kinds = ['string', 'string', 'number', 'integer', 'integer', 'boolean', 'null', 'enum', 'const', 'any']
    if depth < 4:
        kinds += ['tests'] if words is WORDS else []
        kinds += ['object'] * 6 + ['array'] * 4 + ['anyOf', 'anyOf', 'ref', 'tree', 'types', 'allOf', 'oneOf']
    kind = rng.choice(kinds)
    below = lambda: _value(rng, depth + 1, definitions, words)
    if kind == 'string':
        if rng.random() < 0.3:
            return {'type': 'string', 'pattern': rng.choice(PATTERNS)}
        if rng.random() < 0.2:
            return {'type': 'string', 'format': rng.choice(FORMATS)}
        return {'type': 'string', **_counts(rng, 'Length', rng.choice([3, 30, 150]))}
    if kind in ('number', 'integer'):
        return {'type': kind, **_bounds(rng)}
    if kind in ('boolean', 'null'):
        return {'type': kind}
    if kind == 'enum':
        return {'enum': rng.sample(VALUES, rng.randint(1, 5))}
    if kind == 'const':
        return {'const': rng.choice(VALUES)}
    if kind == 'any':
        return rng.choice([True, {}, {'title': 'anything'}])
    if kind == 'object':
        return _object(rng, below, words)
    if kind == 'array':
        schema = {'type': 'array', **_counts(rng, 'Items', 5)}
        if rng.random() < 0.8:
            schema['items'] = below()
        if rng.random() < 0.2:
            schema['prefixItems'] = [below() for _ in range(rng.randint(1, 3))]
        return schema
    if kind == 'anyOf':
        inner = {'anyOf': [below() for _ in range(rng.randint(1, 3))]}
        return {'anyOf': [inner, {'type': 'boolean'}]} if rng.random() < 0.3 else inner
    if kind == 'tree':              # a recursion with several ways back
        definitions['tree'] = {'anyOf': [{'type': 'array', 'items': {'$ref': '#/$defs/tree'}, 'maxItems': 3},
                                         {'type': 'integer', 'maximum': 9},
                                         {'type': 'object', 'properties': {'l': {'$ref': '#/$defs/tree'}, 'r': {'$ref': '#/$defs/tree'}},
                                          'required': ['r']}]}
        return {'$ref': '#/$defs/tree'}
    if kind == 'oneOf':
        return {'oneOf': [{'type': 'string', 'maxLength': 3}, {'type': 'integer'}, {'type': ['null', 'boolean']}]}
    if kind == 'tests':
        return rng.choice([
            {'type': 'object', 'properties': {'p': below(), 'q': {'type': 'boolean'}}, 'not': {'required': ['p', 'q']}},
            {'type': 'object', 'oneOf': [{'required': ['p']}, {'required': ['q']}]},
            {'type': 'object', 'properties': {'p': {'enum': [1, 2]}, 'q': {'type': 'string', 'maxLength': 3}},
             'if': {'properties': {'p': {'const': 1}}, 'required': ['p']}, 'then': {'required': ['q']},
             'dependentSchemas': {'q': {'required': ['p']}}},
            {'type': 'array', 'items': {'type': ['integer', 'null']}, 'contains': {'type': 'null'}, 'maxContains': 2},
            {'type': 'array', 'prefixItems': [{'enum': [1, 2]}], 'items': {'enum': [2, 3]}, 'uniqueItems': True},
            {'type': 'integer', 'not': {'enum': [0, 1, 12]}}, {'type': 'number', 'not': {'type': 'integer'}},
            {'type': 'integer', 'minimum': -1000, 'multipleOf': 7}])
    if kind == 'types':
        return {'type': rng.sample(['string', 'integer', 'null', 'boolean', 'array', 'object'], 2), 'maxLength': 9, 'minimum': -5}
    if kind == 'allOf':
        return {'allOf': [_object(rng, below, words, names) for names in (['p', 'q'], ['r'])]}
    name = 'd%d' % rng.randint(0, 2)
    if name not in definitions:
        definitions[name] = True        # while it is made; a reference to it is one to itself
        inner = below()
        definitions[name] = {'type': 'object', 'properties': {'v': inner, 'next': {'anyOf': [{'type': 'null'}, {'$ref': '#/$defs/' + name}]}},
                             'required': ['v']}
    if definitions[name] is True:
        return {'type': 'array', 'items': {'$ref': '#/$defs/' + name}}
    return {'$ref': '#/$defs/' + name}


def _object(rng, below, words, names=None):
    names = names or rng.sample(words, rng.randint(0, 5))
    schema = {'type': 'object', 'properties': {name: below() for name in names}}
    if names and rng.random() < 0.7:
        schema['required'] = rng.sample(names, rng.randint(1, len(names)))
    if 'p' in names or 'r' in names:
        return schema
    if rng.random() < 0.4:
        schema['additionalProperties'] = rng.choice([True, False, {'type': 'integer'}, {'type': 'string', 'maxLength': 4}])
    return schema


def _counts(rng, what, most):
    low = rng.randint(0, most) if rng.random() < 0.4 else 0
    counts = {'min' + what: low} if low else {}
    if rng.random() < 0.5:
        counts['max' + what] = low + rng.randint(0, most)
    return counts


def _bounds(rng):
    scale = 10 ** rng.randint(0, 6) if rng.random() < 0.9 else 10 ** rng.randint(12, 17)
    low = rng.choice([rng.randint(-scale, scale), round(rng.uniform(-scale, scale), rng.randint(0, 4))])
    low = int(low) if abs(low) > 2**52 else low         # where a float plus 2 may be itself
    high = low + rng.choice([2, rng.randint(2, 3 * scale + 2)])
    bounds = {}
    if rng.random() < 0.6:
        bounds[rng.choice(['minimum', 'exclusiveMinimum'])] = low
    if rng.random() < 0.6:
        bounds[rng.choice(['maximum', 'exclusiveMaximum'])] = high
    return bounds
