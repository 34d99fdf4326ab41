#!/usr/bin/env python3
"""Compare gemma4 on the CPU with llama.cpp, as the package llama-cpp-python carries it, on the same random weights.

usage: bench_peer.py [--format nvfp4|q4_0|q8_0] [--layout LAYOUT] [--layers N] [--repeat N] [--prefill N,...] [--decode N]
                     [--depth N,...] [--threads N] WORK
In the folder WORK: a virtual environment with the package (built for this machine: half an hour), a checkpoint of full width
and N layers (15: two of full depth do not fit in 24 GB) with all text matrices NVFP4, and the same as GGUF, in NVFP4 bit by bit
or rounded once more to Q4_0, which llama.cpp repacks and runs fastest, or to Q8_0. What is there is not made again. With --layout
gemma4 gets a checkpoint of another layout (tests/make_checkpoint.py) with as many layers: as many bytes, other numbers. The two
programs take turns; medians, and what every run gave, as Markdown on stdout. GEMMA4_CPU chooses gemma4's set of kernels,
LLAMA_CPP_LIB_PATH a folder with llama.cpp's libraries that were built for fewer instructions.
"""
import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PEER = 'llama-cpp-python==0.3.36'


# ---------------------------------------------------------------- in the virtual environment

def write_gguf(source, out, form):
    """The text model of a checkpoint as GGUF, tensor after tensor; form: nvfp4, q4_0 or q8_0."""
    import gguf
    import gguf.quants
    import numpy as np
    files, tensors = {}, {}
    for name in sorted(os.listdir(source)):
        if not name.endswith('.safetensors'):
            continue
        data = np.memmap(os.path.join(source, name), np.uint8, 'r')
        n = int(data[:8].view('<u8')[0])
        for key, t in json.loads(bytes(data[8:8 + n])).items():
            if key != '__metadata__':
                a, b = t['data_offsets']
                tensors[key] = (t['shape'], data[8 + n + a:8 + n + b])
    config = json.load(open(os.path.join(source, 'config.json')))['text_config']
    kinds = gguf.GGMLQuantizationType
    w = gguf.GGUFWriter(out, 'gemma4')
    layers, swa = config['num_hidden_layers'], [t != 'full_attention' for t in config['layer_types']]
    w.add_block_count(layers)
    w.add_context_length(32768)
    w.add_embedding_length(config['hidden_size'])
    w.add_embedding_length_per_layer_input(0)
    w.add_feed_forward_length(config['intermediate_size'])
    w.add_expert_feed_forward_length(config['moe_intermediate_size'])
    w.add_expert_count(config['num_experts'])
    w.add_expert_used_count(config['top_k_experts'])
    w.add_head_count(config['num_attention_heads'])
    w.add_head_count_kv([config['num_key_value_heads' if s else 'num_global_key_value_heads'] for s in swa])
    w.add_key_length(config['global_head_dim'])
    w.add_value_length(config['global_head_dim'])
    w.add_key_length_swa(config['head_dim'])
    w.add_value_length_swa(config['head_dim'])
    w.add_rope_dimension_count(config['global_head_dim'])
    w.add_rope_dimension_count_swa(config['head_dim'])
    w.add_rope_freq_base(1e6)
    w.add_rope_freq_base_swa(1e4)
    w.add_sliding_window(config['sliding_window'])
    w.add_sliding_window_pattern(swa)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_final_logit_softcapping(config['final_logit_softcapping'])
    w.add_tokenizer_model('none')
    w.add_vocab_size(config['vocab_size'])
    todo = []

    def f32(raw):
        return (raw.view('<u2').astype(np.uint32) << 16).view(np.float32)

    def add(name, shape, kind, make):
        n = int(np.prod(shape))
        block, size = gguf.GGML_QUANT_SIZES[kind]
        w.add_tensor_info(name, shape, np.dtype(np.float32), n // block * size, raw_dtype=kind) if kind != kinds.NVFP4 else \
            w.add_tensor_info(name, shape[:-1] + [shape[-1] // block * size], np.dtype(np.uint8), n // block * size, raw_dtype=kind)
        todo.append(make)

    def vector(name, key):
        shape, raw = tensors[key]
        add(name, shape, kinds.F32, lambda: f32(np.array(raw)))

    def bf16(name, key):
        shape, raw = tensors[key]
        if shape[0] == config['vocab_size']:
            add(name, shape, kinds.BF16, lambda: raw)
        else:
            add(name, shape, kinds.F32, lambda: f32(np.array(raw)))

    def nvfp4_bytes(keys):
        for key in keys:
            (rows, half), raw = tensors[key + '.weight']
            q = np.array(raw).reshape(rows, half // 8, 8)               # 16 numbers, even ones in the low nibbles
            low, high = q & 15, q >> 4
            order = np.stack([low, high], -1).reshape(rows, half // 8, 16)
            q = order[..., :8] | order[..., 8:] << 4                    # GGUF: the first eight in the low nibbles
            scale = np.array(tensors[key + '.weight_scale'][1]).reshape(rows, half // 32, 4)
            yield np.concatenate([scale, q.reshape(rows, half // 32, 32)], -1).tobytes()

    def rounded_bytes(keys, kind):
        e2m1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6], np.float32)
        e4m3 = np.array([(8 + b % 8) * 2.0 ** (b // 8 - 10) if b >= 8 else b * 2.0 ** -9 for b in range(128)], np.float32)
        for key in keys:
            (rows, half), raw = tensors[key + '.weight']
            q = np.array(raw).reshape(rows, half)
            scale = e4m3[tensors[key + '.weight_scale'][1]] * np.array(tensors[key + '.weight_scale_2'][1]).view(np.float32)
            x = e2m1[np.stack([q & 15, q >> 4], -1)].reshape(-1, 16) * scale[:, None]
            yield gguf.quants.quantize(x.reshape(rows, 2 * half), kind).tobytes()

    def nvfp4(name, keys):
        rows, half = tensors[keys[0] + '.weight'][0]
        shape = [rows, 2 * half] if len(keys) == 1 else [len(keys), rows, 2 * half]
        if form != 'nvfp4':
            kind = kinds[form.upper()]
            return add(name + '.weight', shape, kind, lambda: np.frombuffer(b''.join(rounded_bytes(keys, kind)), np.uint8))
        add(name + '.weight', shape, kinds.NVFP4, lambda: np.frombuffer(b''.join(nvfp4_bytes(keys)), np.uint8))
        scales = np.concatenate([np.array(tensors[k + '.weight_scale_2'][1]).view(np.float32) for k in keys])
        add(name + '.scale', [len(keys)], kinds.F32, lambda: scales)

    p = 'model.language_model.'
    bf16('token_embd.weight', p + 'embed_tokens.weight')
    vector('output_norm.weight', p + 'norm.weight')
    first_global = True
    for i in range(layers):
        l, b = p + 'layers.%d.' % i, 'blk.%d.' % i
        for name, key in (('attn_norm', 'input_layernorm'), ('attn_q_norm', 'self_attn.q_norm'), ('attn_k_norm', 'self_attn.k_norm'),
                          ('post_attention_norm', 'post_attention_layernorm'), ('ffn_norm', 'pre_feedforward_layernorm'),
                          ('post_ffw_norm', 'post_feedforward_layernorm'), ('pre_ffw_norm_2', 'pre_feedforward_layernorm_2'),
                          ('post_ffw_norm_1', 'post_feedforward_layernorm_1'), ('post_ffw_norm_2', 'post_feedforward_layernorm_2')):
            vector(b + name + '.weight', l + key + '.weight')
        vector(b + 'layer_output_scale.weight', l + 'layer_scalar')
        for name, key in (('attn_q', 'self_attn.q_proj'), ('attn_k', 'self_attn.k_proj'), ('attn_v', 'self_attn.v_proj'),
                          ('attn_output', 'self_attn.o_proj'), ('ffn_gate', 'mlp.gate_proj'), ('ffn_up', 'mlp.up_proj'),
                          ('ffn_down', 'mlp.down_proj')):
            if l + key + '.weight' in tensors:
                nvfp4(b + name, [l + key])
        bf16(b + 'ffn_gate_inp.weight', l + 'router.proj.weight')
        vector(b + 'ffn_gate_inp.scale', l + 'router.scale')
        for name in ('gate', 'up', 'down'):
            nvfp4(b + 'ffn_%s_exps' % name, [l + 'experts.%d.%s_proj' % (e, name) for e in range(config['num_experts'])])
        if not swa[i] and first_global:
            half = config['global_head_dim'] // 2
            turning = np.where(np.arange(half) < half // 4, 1, 1e30).astype(np.float32)
            add('rope_freqs.weight', [half], kinds.F32, lambda: turning)
            first_global = False
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for make in todo:
        w.write_tensor_data(make())
    w.close()


def peer_run(path, n_prompt, n_decode, threads):
    """One run of the peer; prints seconds of the prompt and of n_decode tokens after it.  What a long prompt left is kept beside
    the weights, and read by later runs that only decode."""
    import ctypes
    import resource
    import llama_cpp as ll
    ll.llama_backend_init()
    quiet = ll.llama_log_callback(lambda *a: None)
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    begin = time.time()
    model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
    if not model:
        sys.exit('llama.cpp cannot load ' + path)
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = n_prompt + n_decode + 8, 2048, threads, threads
    context = ll.llama_init_from_model(model, params)
    ids, after = (random.Random(seed).choices(range(1000, 200000), k=n) for seed, n in ((1, n_prompt), (2, n_decode)))

    def evaluate(part):
        tokens = (ctypes.c_int32 * len(part))(*part)
        if ll.llama_decode(context, ll.llama_batch_get_one(tokens, len(part))):
            sys.exit('llama.cpp cannot evaluate %d tokens' % len(part))

    state, tokens = '%s.after-%d' % (path, n_prompt), (ctypes.c_int32 * n_prompt)()
    known = n_decode and os.path.exists(state)
    t0 = time.time()
    if not known:
        for i in range(0, n_prompt, 2048):
            evaluate(ids[i:i + 2048])
    elif not ll.llama_state_load_file(context, state.encode(), tokens, n_prompt, ctypes.c_size_t(0)):
        sys.exit('llama.cpp cannot read ' + state)
    t1 = time.time()
    if n_decode and n_prompt >= 1024 and not known:
        ll.llama_state_save_file(context, state.encode(), tokens, n_prompt)
    t2 = time.time()
    for i in range(n_decode):
        evaluate([after[i]])
        assert ll.llama_get_logits_ith(context, -1)[7] < 1e9        # not a NaN
    t3 = time.time()
    print(json.dumps({'start': None if known else t0 - begin, 'prompt': t1 - t0, 'decode': t3 - t2,
                      'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


# ---------------------------------------------------------------- outside

def own_run(program, model, ids_file, n_prompt, n_decode, threads):
    # Greedy, random weights repeat one token, whose experts then lie in the third-level cache.
    command = [program, '-m', model, '--device', 'cpu', '--ids', ids_file, '-n', str(n_decode + 1), '--ignore-eos', '--temp', '5',
               '--top-k', '64', '--top-p', '1', '--seed', '1', '-t', str(threads), '--stats', '--print-ids',
               '-c', str(n_prompt + n_decode + 8)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    rate = re.search(r'prompt: \d+ tokens, ([0-9.]+) tokens/s; first token after ([0-9.]+) s; answer: \d+ tokens(?:, ([0-9.]+))?.*'
                     r'peak memory (\d+) MB', said)
    return {'prompt': n_prompt / float(rate[1]), 'start': float(rate[2]), 'decode': n_decode / float(rate[3] or 'nan'),
            'peak': int(rate[4]) * 1e6}


def warm(path):
    """Both programs find their weights in the page cache, whatever the other one has pushed out of it."""
    for file in [os.path.join(path, f) for f in os.listdir(path)] if os.path.isdir(path) else [path]:
        with open(file, 'rb', buffering=0) as f:
            while f.read(1 << 24):
                pass


def bandwidth(program, threads):
    """What `gemma4 bench` reads from memory at once, bytes a second."""
    demo = os.path.join(HERE, '..', 'demo')
    said = subprocess.run([program, 'bench', '-m', demo, '-t', str(threads), '--device', 'cpu', '--scenario', 'chat', '--json'],
                          check=True, capture_output=True, text=True).stdout
    return json.loads(said)['bandwidth']


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('work')
    args.add_argument('--format', default='nvfp4', choices=['nvfp4', 'q4_0', 'q8_0'], help='of the weights llama.cpp gets')
    args.add_argument('--layout', default='all', help='of the weights gemma4 gets')
    args.add_argument('--layers', type=int, default=15)
    args.add_argument('--repeat', type=int, default=5)
    args.add_argument('--prefill', default='512,2048')
    args.add_argument('--decode', type=int, default=64)
    args.add_argument('--depth', default='4,4096', help='tokens before those that are decoded')
    args.add_argument('--threads', type=int, default=os.cpu_count())
    args.add_argument('--program', default=os.path.join(HERE, '..', 'gemma4'))
    args = args.parse_args()
    python = os.path.join(args.work, 'venv', 'bin', 'python')
    source, theirs = os.path.join(args.work, 'layers-%d' % args.layers), os.path.join(args.work, 'layers-%d-%s.gguf' % (args.layers, args.format))
    ours = source if args.layout == 'all' else '%s-%s' % (source, args.layout)
    if not os.path.exists(python):
        subprocess.run([sys.executable, '-m', 'venv', os.path.join(args.work, 'venv')], check=True)
        # gcc drops the stores that its AMX code needs, and it crashes: https://github.com/ggml-org/llama.cpp/pull/26954
        subprocess.run([python, '-m', 'pip', 'install', '-q', '--no-cache-dir', PEER, 'gguf', 'numpy'], check=True,
                       env=dict(os.environ, CXXFLAGS='-fno-dse -fno-tree-dse'))
    for path, layout in (source, 'all'), (ours, args.layout):
        if not os.path.exists(os.path.join(path, 'config.json')):
            subprocess.run([python, os.path.join(HERE, 'make_checkpoint.py'), '--full', '--layers', str(args.layers), '--layout', layout, path],
                           check=True)
    if not os.path.exists(theirs):
        subprocess.run([python, __file__, 'gguf', source, theirs + '.part', args.format], check=True)
        os.rename(theirs + '.part', theirs)
    runs = [(int(n), 0) for n in args.prefill.split(',')] + [(int(n), args.decode) for n in args.depth.split(',')]
    print('%s, %s, %d threads, load %.1f before; memory reads %.1f GB/s\n' % (
        time.strftime('%Y-%m-%d'), platform.machine(), args.threads, os.getloadavg()[0], bandwidth(args.program, args.threads) * 1e-9))
    print('| | gemma4 | %s | every run |\n| --- | --- | --- | --- |' % PEER)
    for n_prompt, n_decode in runs:
        with tempfile.NamedTemporaryFile('w') as f:
            print(*random.Random(1).choices(range(1000, 200000), k=n_prompt), file=f, flush=True)
            got = ([], [])
            for _ in range(args.repeat):
                warm(ours)
                got[0].append(own_run(args.program, ours, f.name, n_prompt, n_decode, args.threads))
                warm(theirs)
                got[1].append(json.loads(subprocess.run([python, __file__, 'peer', theirs, str(n_prompt), str(n_decode), str(args.threads)],
                                                        check=True, capture_output=True, text=True).stdout))
        n, what = (n_decode, 'decode') if n_decode else (n_prompt, 'prompt')
        rates = [[n / r[what] for r in each] for each in got]
        print('| %s | %.1f tokens/s | %.1f tokens/s | %s; %s |' % (
            'decode of %d after %d' % (n_decode, n_prompt) if n_decode else 'prefill of %d' % n_prompt,
            *map(statistics.median, rates), *(' '.join('%.1f' % r for r in each) for each in rates)), flush=True)
        if None not in (r['start'] for r in got[1]):
            print('| start to first token | %.1f s | %.1f s | |' % (
                statistics.median(r['start'] for r in got[0]), statistics.median(r['start'] + r['prompt'] for r in got[1])))
        print('| peak memory | %.2f GB | %.2f GB | |' % tuple(max(r['peak'] for r in each) * 1e-9 for each in got), flush=True)


if __name__ == '__main__':
    if sys.argv[1:2] == ['gguf']:
        write_gguf(*sys.argv[2:])
    elif sys.argv[1:2] == ['peer']:
        peer_run(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
