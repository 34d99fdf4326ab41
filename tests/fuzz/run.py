#!/usr/bin/env python3
"""usage: run.py SECONDS build/fuzz_X…

Runs each fuzzer for so many seconds, on what it has kept in build/corpus/X, the files of tests/fuzz/X, and the seeds that are
made here; GEMMA4_FUZZ_SEED, where set, makes it the same each time. Exit status 1 when one has found something:
build/corpus/X-crash-… and its like.
"""
import json
import os
import random
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / 'fixtures'
CORPUS = HERE.parent.parent / 'build' / 'corpus'

MODELS = [FIXTURES / name for name in ('odd-experts', 'odd-bf16', 'dense', 'images/seeing')]


def header():
    data = (FIXTURES / 'images' / 'seeing' / 'model.safetensors').read_bytes()
    return [data[:8 + int.from_bytes(data[:8], 'little')]]


def index():
    return [json.dumps(seed).encode() for seed in [
        {'weight_map': {'one': 'a.safetensors', 'two': 'b.safetensors'}},
        {'metadata': {'total_size': 8, 'x': [None, True, -1.5e3]}, 'weight_map': {'o\u006ee': 'a.safetensors'}},
        {'weight_map': {'two': 'b.safetensors', 'three': 'c.safetensors'}}, {'weight_map': {'one': '../a.safetensors'}}]]


def configs():
    names = 'config.json', 'generation_config.json', 'hf_quant_config.json'
    small = [json.dumps(json.loads((m / f).read_text())).encode() if (m / f).exists() else b'{}' for m in MODELS for f in names]
    return [b'\0'.join(small[i:i + 3]) for i in range(0, len(small), 3)]


def tokenizer_json():
    """Also one of as little as there can be: the bytes, the space, a merge."""
    vocabulary = {'<0x%02X>' % i: i for i in range(256)}
    vocabulary.update({'\u2581': 256, 't': 257, 'h': 258, 'th': 259})
    least = {'added_tokens': [{'id': 260, 'content': '<|turn>', 'special': True, 'normalized': False}],
             'normalizer': {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'},
             'model': {'type': 'BPE', 'byte_fallback': True, 'vocab': vocabulary, 'merges': [['t', 'h']]}}
    return [json.dumps(least, separators=(',', ':')).encode(), (FIXTURES / 'odd-bf16' / 'tokenizer.json').read_bytes()]


def tokenizer_model():
    """The demo's, and one of its bytes and 40 more pieces."""
    whole, pieces, at = (HERE.parent.parent / 'demo' / 'tokenizer.model').read_bytes(), [], 0
    while whole[at] == 0x0a:            # a piece, of less than 128 bytes
        pieces.append(whole[at:at + 2 + whole[at + 1]])
        at += len(pieces[-1])
    kept = [p for i, p in enumerate(pieces) if b'<0x' in p or i < 20 or b'\xe2\x96\x81' in p[:8]]
    return [whole, b''.join(kept[:320]) + whole[at:]]


def requests():
    options = [
        {'max_tokens': 5, 'temperature': 0.5, 'top_p': 1, 'top_k': 3, 'min_p': 0, 'seed': 1, 'stop': ['x', 'y'], 'logprobs': True,
         'top_logprobs': 2},
        {'n': 2, 'stream': True, 'stream_options': {'include_usage': True}, 'tool_choice': 'required', 'parallel_tool_calls': False},
        {'chat_template_kwargs': {'enable_thinking': True}, 'thinking_token_budget': 9, 'repetition_penalty': 1.1,
         'max_completion_tokens': 3},
        {'response_format': {'type': 'json_schema', 'json_schema': {'schema': {'type': 'integer'}}}, 'tools': []},
        {'response_format': {'type': 'json_object'}, 'tool_choice': {'type': 'function', 'function': {'name': 'f'}}},
        {'reasoning_effort': 'low', 'think': True, 'min_tokens': 1, 'stop_token_ids': [3], 'logit_bias': {'5': -100}, 'ignore_eos': True},
        {'frequency_penalty': 1, 'presence_penalty': -1, 'repeat_penalty': 1.1, 'foo': 1, 'max_tokens': -1, 'grammar': 'x'},
        {'guided_json': '{"type": "object"}', 'structured_outputs': {'json': {}}, 'json_schema': {}, 'format': 'json'},
        {'continue_final_message': True, 'add_generation_prompt': False, 'chat_template_kwargs': {'preserve_thinking': True}},
        {'tools': {'tools': [{'name': 'f', 'inputSchema': {'properties': {'a': {'$ref': '#/$defs/X'}}, '$defs': {
            'X': {'anyOf': [{'type': 'null'}, {'$ref': '#'}]}}}}]}}]
    look = [{'type': 'image_url', 'image_url': {'url': 'grey.pgm'}}, {'type': 'video_url', 'video_url': 'moving.gif'},
            {'type': 'image_url', 'image_url': {'url': 'data:image/x;base64,UDUKMSAxCjI1NQp4'}}, {'type': 'text', 'text': 'What?'}]
    seeds = [{key: case[key] for key in ('messages', 'tools') if case.get(key)} for case in chat_cases()]
    seeds += [dict(seeds[i], **o) for i, o in enumerate(options)] + [{'messages': [{'role': 'user', 'content': look}]}]
    return [json.dumps(s).encode() for s in seeds + [{'custom_id': 'a', 'body': seeds[0]}]]


def chat_cases():
    return [json.loads(line) for line in (FIXTURES / 'chat_cases.jsonl').read_text().splitlines()]


def answers():
    """What stands in the cases' prompts from a model's turn on; and calls with values of all kinds."""
    texts = [case['rendered'].split('<|turn>model\n', 1)[-1] for case in chat_cases()]
    texts += ['<|channel>thought\nLet me.\n<channel|>'
              '<|tool_call>call:f{a:[1,-2.5e3,true,None],o:{k:<|"|>é"\\<|"|>}}<tool_call|><|tool_response>',
              '<|channel><|channel>thought\n<channel|>x<channel|>', 'thought\n<channel|>Hi', '<|tool_call>call:f{a:"x\\u00e9",b:{}',
              '<|tool_call>g{}<|tool_call>', '<|tool_call>call:f(a=\'x\', n:1, l:[True, b c,],)<tool_call|>',
              '<|tool_call>:f{o:{a:see, n:5},"l":["x" n:2}]<tool_call|>', '<channel|>call:f{a:5}', '<|turn>model\ncall:g{}<tool_call|>',
              '<|tool_call>call:f{<|channel>thought\nx<channel|>a:“y”}<tool_call|>', 'thought\nHm\n<channel|>4']
    return [bytes([i]) + text.encode() for i in (0, 1, 7, 244) for text in texts]


def schemas():
    sys.path.insert(0, str(HERE.parent))
    from random_schema import random_schema
    rng = random.Random(1)
    return [bytes([i % 4]) + json.dumps(random_schema(rng)).encode() for i in range(200)]


def adapters():
    """Two whole ones, of a matrix or two of layer 0."""
    sys.path.insert(0, str(HERE.parent))
    import make_lora
    tensors, out, path = make_lora.dialect.read_checkpoint(FIXTURES / 'odd-experts'), [], CORPUS / 'adapter'
    for more in ({}, {'rank_pattern': {r'^layers.0.x\.q_proj': 2}, 'alpha_pattern': {'q_proj': 3}, 'layers_to_transform': [0],
                      'exclude_modules': ['v_proj'], 'use_rslora': True, 'init_lora_weights': 'eva'}):
        modules = ['layers.0.self_attn.q_proj', 'layers.0.experts.1.up_proj'][:1 + bool(more)]
        make_lora.write(path, make_lora.make(tensors, modules, 1), 1, **more)
        out.append(b'\0'.join((path / name).read_bytes() for name in ('adapter_config.json', 'adapter_model.safetensors')))
    return out


def documents():
    root = HERE.parent.parent
    return [b'\3' + part for name in ('README.md', 'tests/README.md') for part in (root / name).read_bytes().split(b'\n\n')]


# By fuzzer: seeds made on the fly, a function that returns a list of bytes.
SEEDS = {'safetensors': header, 'index': index, 'config': configs, 'lora': adapters, 'tokenizer_json': tokenizer_json,
         'tokenizer_model': tokenizer_model, 'request': requests, 'tool_stream': answers, 'schema': schemas, 'markdown': documents}


def main(seconds, *fuzzers):
    failed = 0
    for fuzzer in fuzzers:
        name = Path(fuzzer).name.replace('fuzz_', '', 1)
        corpus, seeds = CORPUS / name, CORPUS / (name + '-seeds')
        for path in (corpus, seeds):
            path.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(SEEDS.get(name, list)()):
            (seeds / str(i)).write_bytes(seed)
        print('==', name, flush=True)
        own = [HERE / name] if (HERE / name).is_dir() else []
        done = subprocess.run([os.path.abspath(fuzzer), '-max_total_time=' + seconds, '-timeout=25',
                               '-seed=' + os.environ.get('GEMMA4_FUZZ_SEED', '0'), '-rss_limit_mb=1024',
                               '-artifact_prefix=%s/%s-' % (CORPUS, name), '-print_final_stats=1', corpus, seeds,
                               *own])
        failed += done.returncode != 0
    print('%d of %d found something' % (failed, len(fuzzers)))
    return failed > 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
