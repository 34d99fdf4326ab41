"""Schemas that packages and programs write (`collect_schemas.py`): most compile, the others are refused by name, and of those that
compile valid texts are allowed and invalid ones are not.  `schema_instances.py` makes the texts, and jsonschema judges them."""
import json
import random
import re

import pytest

import schema_instances
from conftest import DEMO, FIXTURES, run

SCHEMAS = [json.loads(line) for line in (FIXTURES / 'real_schemas.jsonl').read_text().splitlines()]


def check(schema, text=''):
    return run('check', '-m', DEMO, '--json-schema', json.dumps(schema), stdin=text)


def test_most_compile_and_the_others_are_refused_by_name():
    refused = []
    for case in SCHEMAS:
        done = check(case['schema'])
        if done.returncode:
            assert re.match(rb'gemma4: --json-schema: #(/[^ ]*)*: \w', done.stderr), case['name']
            refused.append(case['name'])
    assert len(refused) <= len(SCHEMAS) * 0.05, refused


@pytest.mark.parametrize('part', range(8))
def test_texts(part):
    for case in SCHEMAS[part::8]:
        if check(case['schema']).returncode:
            continue
        valid, invalid = schema_instances.both(case['schema'], 3, random.Random(case['name']))
        for text in valid:
            assert check(case['schema'], text).stdout == b'yes\n', (case['name'], text)
        for text in invalid:
            assert check(case['schema'], text).stdout.startswith(b'no: '), (case['name'], text)
