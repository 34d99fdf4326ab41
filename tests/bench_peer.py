#!/usr/bin/env python3
"""Compare gemma4 on the CPU with llama.cpp, as the package llama-cpp-python carries it, on the same random weights.

usage: bench_peer.py [--sets SET[/BITS],...] [--peers FORMAT[=LIBRARIES],...] [--layout LAYOUT] [--layers N] [--repeat N]
                     [--threads N] [--prefix COMMAND] [--log FILE] WORK
  --sets     gemma4's kernels (GEMMA4_CPU), each perhaps with --activations BITS: avx512,avx512/8,avx2 (default: auto, its own choice)
  --peers    llama.cpp's formats, nvfp4, q4_0 (which it repacks and runs fastest) or q8_0, each perhaps with a folder of libraries
             (libllama.so and its kin) that were built for other instructions: q4_0=/x/avx2 (default: q4_0,nvfp4)
  --prefix   stands before every turn that is measured, such as "taskset -c 0,1" or "numactl --interleave=all"
  --log      a line of JSON for each turn; turns that are there already count, so that a run can be continued

In the folder WORK: a virtual environment with the package (built for this machine: half an hour), a checkpoint of full width
and N layers (15: two of full depth do not fit in 24 GB) with all text matrices NVFP4, and the same as GGUF, in NVFP4 bit by bit
or rounded once more to Q4_0 or Q8_0; the embedding, which is the head, is Q8_0 in all of them, as gemma4 screens its own with a
copy of 8 bits. What is there is not made again. With --layout gemma4 gets a checkpoint of another layout
(tests/make_checkpoint.py) with as many layers: as many bytes, other numbers.

Everybody takes turns. A turn reads the weights once, so that they are in the page cache, and then measures a prompt of 512 and one
of 2048 random tokens, and 128 tokens after a prompt of 4 and of 4096. gemma4 measures each in a program of its own, and 32
tokens before those 128, while it maps its file and copies its head, are left out. The peer measures all in one process, the short prompt
first, because it takes long to open. What a prompt of 4096 leaves is computed once for each of the two programs, and read from a
file in the turns. Medians, and what every turn gave, as Markdown on stdout.
"""
import argparse
import json
import os
import platform
import random
import re
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
PEER = 'llama-cpp-python==0.3.36'
PROMPTS, DEEP, DECODED, WARM = (512, 2048), 4096, 128, 32     # tokens


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
    todo, pool = [], ThreadPoolExecutor()

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
            part = config['vocab_size'] // 64
            rows = raw.reshape(shape[0], -1)
            add(name, shape, kinds.Q8_0, lambda: np.concatenate(list(pool.map(
                lambda i: gguf.quants.quantize(f32(rows[i:i + part]), kinds.Q8_0).reshape(-1), range(0, shape[0], part)))))
        else:
            add(name, shape, kinds.F32, lambda: f32(np.array(raw)))

    def nvfp4_bytes(key):
        (rows, half), raw = tensors[key + '.weight']
        q = np.array(raw).reshape(rows, half // 8, 8)                   # 16 numbers, even ones in the low nibbles
        low, high = q & 15, q >> 4
        order = np.stack([low, high], -1).reshape(rows, half // 8, 16)
        q = order[..., :8] | order[..., 8:] << 4                        # GGUF: the first eight in the low nibbles
        scale = np.array(tensors[key + '.weight_scale'][1]).reshape(rows, half // 32, 4)
        return np.concatenate([scale, q.reshape(rows, half // 32, 32)], -1).reshape(-1)

    e2m1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    e4m3 = np.array([(8 + b % 8) * 2.0 ** (b // 8 - 10) if b >= 8 else b * 2.0 ** -9 for b in range(128)], np.float32)

    def rounded_bytes(key):
        (rows, half), raw = tensors[key + '.weight']
        q = np.array(raw).reshape(rows, half)
        scale = e4m3[tensors[key + '.weight_scale'][1]] * np.array(tensors[key + '.weight_scale_2'][1]).view(np.float32)
        x = e2m1[np.stack([q & 15, q >> 4], -1)].reshape(-1, 16) * scale[:, None]
        return gguf.quants.quantize(x.reshape(rows, 2 * half), kinds[form.upper()]).reshape(-1)

    def nvfp4(name, keys):
        rows, half = tensors[keys[0] + '.weight'][0]
        shape = [rows, 2 * half] if len(keys) == 1 else [len(keys), rows, 2 * half]
        make = nvfp4_bytes if form == 'nvfp4' else rounded_bytes
        add(name + '.weight', shape, kinds[form.upper()], lambda: np.concatenate(list(pool.map(make, keys))))
        if form == 'nvfp4':
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


def prompt_ids(n):
    return random.Random(1).choices(range(1000, 200000), k=n)


def peer_turn(path, state, threads):
    """A turn of the peer.  state: a file with what the long prompt left; where there is none it is made, and nothing measured."""
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
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = DEEP + DECODED + 8, 2048, threads, threads
    context = ll.llama_init_from_model(model, params)
    memory = ll.llama_get_memory(context)
    start = time.time() - begin

    def evaluate(ids):
        begin = time.time()
        for i in range(0, len(ids), 2048):
            part = ids[i:i + 2048]
            tokens = (ctypes.c_int32 * len(part))(*part)
            if ll.llama_decode(context, ll.llama_batch_get_one(tokens, len(part))):
                sys.exit('llama.cpp cannot evaluate %d tokens' % len(part))
            assert ll.llama_get_logits_ith(context, -1)[7] < 1e9        # waits for them; not a NaN
        return time.time() - begin

    def decode():
        return sum(evaluate([i]) for i in random.Random(2).choices(range(1000, 200000), k=DECODED))

    if not os.path.exists(state):
        evaluate(prompt_ids(DEEP))
        ll.llama_state_save_file(context, state.encode(), (ctypes.c_int32 * DEEP)(*prompt_ids(DEEP)), DEEP)
        return None
    r = {'first': start + evaluate(prompt_ids(4))}
    r['decode 4'] = DECODED / decode()
    for n in PROMPTS:
        ll.llama_memory_clear(memory, True)
        r['prefill %d' % n] = n / evaluate(prompt_ids(n))
    ll.llama_memory_clear(memory, True)
    tokens, n = (ctypes.c_int32 * DEEP)(), ctypes.c_size_t(0)
    if not ll.llama_state_load_file(context, state.encode(), tokens, DEEP, ctypes.byref(n)):
        sys.exit('llama.cpp cannot read ' + state)
    r['decode %d' % DEEP] = DECODED / decode()
    r['peak'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024e-9
    return r


# ---------------------------------------------------------------- outside

def own_turn(program, model, state, threads, bits):
    """A turn of gemma4.  state: as for the peer."""
    def run(n_decoded, *args, **more):
        # Greedy, random weights repeat one token, whose experts then lie in the third-level cache.
        command = [program, '-m', model, '--device', 'cpu', '-n', str(n_decoded + 1), '--ignore-eos', '--temp', '5', '--top-k', '64',
                   '--top-p', '1', '--seed', '1', '-t', str(threads), '--activations', bits, '--stats', '--print-ids',
                   '-c', str(DEEP + DECODED + 100)]
        said = subprocess.run(command + list(args), check=True, capture_output=True, text=True, **more).stderr
        rate = re.search(r'prompt: .*?([0-9.]+) tokens/s; first token after ([0-9.]+) s; answer: \d+ tokens(?:, ([0-9.]+))?.*'
                         r'peak memory (\d+) MB', said)
        return float(rate[1]), float(rate[2]), float(rate[3] or 'nan'), int(rate[4]) * 1e-3

    def prompt(n, n_decoded):
        ids = ' '.join(map(str, prompt_ids(n)))
        return run(n_decoded, '--ids', '-', input=ids)

    # A prompt that is kept must be text: so many words, each of one token.
    words = ' '.join(random.Random(1).choices('harbour lighthouse bread winter music river engine garden paper stone'.split(), k=DEEP))

    def deep(n_decoded):
        return run(n_decoded, '--cache', state, 'Go on', input=words)

    def decode(runs):
        """Two runs, of which the longer one has DECODED tokens more; what both do at their beginning cancels."""
        short, long = (n / runs(n)[2] for n in (WARM, WARM + DECODED))
        return DECODED / (long - short)
    if not os.path.exists(state):
        deep(1)
        return None
    r = {'first': prompt(4, 1)[1]}
    for n in PROMPTS:
        r['prefill %d' % n], _, _, r['peak'] = prompt(n, 0)
    if bits != '8':                                 # decoded tokens are rounded to 16 bits at least
        r['decode 4'] = decode(lambda n: prompt(4, n))
        r['decode %d' % DEEP] = decode(deep)
    return r


def turn(what):
    """One turn of one program, in a process of its own; prints what it measured."""
    path = what['model']
    for file in [os.path.join(path, f) for f in os.listdir(path)] if os.path.isdir(path) else [path]:
        with open(file, 'rb', buffering=0) as f:
            while f.read(1 << 24):
                pass
    if what['program']:
        r = own_turn(what['program'], path, what['state'], what['threads'], what['bits'])
    else:
        r = peer_turn(path, what['state'], what['threads'])
    print(json.dumps(r))


def bandwidth(program, threads):
    """What `gemma4 bench` reads from memory at once, GB a second."""
    demo = os.path.join(HERE, '..', 'demo')
    said = subprocess.run([program, 'bench', '-m', demo, '-t', str(threads), '--device', 'cpu', '--scenario', 'chat', '--json'],
                          check=True, capture_output=True, text=True).stdout
    return json.loads(said)['bandwidth'] * 1e-9


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('work')
    args.add_argument('--sets', default='auto')
    args.add_argument('--peers', default='q4_0,nvfp4')
    args.add_argument('--layout', default='all', help='of the weights gemma4 gets')
    args.add_argument('--layers', type=int, default=15)
    args.add_argument('--repeat', type=int, default=5)
    args.add_argument('--threads', type=int, default=os.cpu_count())
    args.add_argument('--prefix', default='')
    args.add_argument('--log')
    args.add_argument('--program', default=os.path.join(HERE, '..', 'gemma4'))
    args = args.parse_args()
    python = os.path.join(args.work, 'venv', 'bin', 'python')
    source = os.path.join(args.work, 'layers-%d' % args.layers)
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
    runners = []                                    # name, environment, what `turn` takes
    for spec in args.sets.split(','):
        kernels, _, bits = spec.partition('/')
        env = {} if kernels == 'auto' else {'GEMMA4_CPU': kernels}
        runners.append(('gemma4 ' + spec, env, {'program': args.program, 'model': ours, 'state': ours + '.after', 'bits': bits or '16'}))
    for spec in args.peers.split(',') if args.peers else []:
        form, _, libraries = spec.partition('=')
        env = {'LLAMA_CPP_LIB_PATH': libraries, 'LD_LIBRARY_PATH': libraries} if libraries else {}
        theirs = '%s-%s.gguf' % (source, form)
        if not os.path.exists(theirs):
            subprocess.run([python, __file__, 'gguf', source, theirs + '.part', form], check=True)
            os.rename(theirs + '.part', theirs)
        name = 'llama.cpp %s %s' % (form, os.path.basename(libraries))
        # What a prompt leaves has the same bytes in every format.
        runners.append((name.strip(), env, {'program': None, 'model': theirs, 'state': source + '.peer-after'}))

    def take_turn(env, what, prefix):
        command = shlex.split(prefix) + [python, __file__, 'turn', json.dumps(dict(what, threads=args.threads))]
        return json.loads(subprocess.run(command, env=dict(os.environ, **env), check=True, stdout=subprocess.PIPE, text=True).stdout)

    log = open(args.log, 'a+') if args.log else None
    got = {name: [] for name, _, _ in runners}
    if log:
        log.seek(0)
        for line in map(json.loads, log):
            got.setdefault(line['name'], []).append(line)
    for _, env, what in runners:
        if not os.path.exists(what['state']):
            take_turn(env, what, '')
    for i in range(args.repeat):
        for name, env, what in runners:
            if len(got[name]) <= i:
                got[name].append(dict(take_turn(env, what, args.prefix), name=name))
                if log:
                    print(json.dumps(got[name][-1]), file=log, flush=True)
    print('%s, %s, %d threads, load %.1f after; memory reads %.1f GB/s\n' % (
        time.strftime('%Y-%m-%d'), platform.machine(), args.threads, os.getloadavg()[0], bandwidth(args.program, args.threads)))
    report(got)


def report(got):
    """Medians, and what every turn gave."""
    rows = [('prefill %d' % n, 'prefill of %d, tokens/s' % n) for n in PROMPTS]
    rows += [('decode %d' % n, 'decode of %d after %d, tokens/s' % (DECODED, n)) for n in (4, DEEP)]
    rows += [('first', 'from the start to the first token, prompt of 4, s'), ('peak', 'peak memory, GB')]
    print('| | ' + ' | '.join(got) + ' |\n| --- |' + ' --- |' * len(got))
    for key, text in rows:
        each = ([r[key] for r in turns if key in r] for turns in got.values())
        print('| %s | %s |' % (text, ' | '.join('%.1f' % statistics.median(rates) if rates else '' for rates in each)))
    print('\nEvery turn:\n')
    for name, each in got.items():
        print('- %s: %s' % (name, '; '.join(key + ' ' + ' '.join('%.1f' % r[key] for r in each if key in r) for key, _ in rows[:-2])))


if __name__ == '__main__':
    if sys.argv[1:2] == ['gguf']:
        write_gguf(*sys.argv[2:])
    elif sys.argv[1:2] == ['turn']:
        turn(json.loads(sys.argv[2]))
    else:
        main()
