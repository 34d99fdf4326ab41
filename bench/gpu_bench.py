#!/usr/bin/env python3
"""How fast is the program on this machine's GPU?  Writes bench/DATE-GPU.md (`make gpu-bench`).

usage: gpu_bench.py [--bin DIR] [--model DIR] [--out DIR] [options] [STEP...]
  load       time to load, from disk and from the page cache; time to the first token of a short prompt
  decode     tokens a second behind contexts of several lengths, and the share of the memory's bandwidth
  prefill    prompts of several lengths, and the share of the dense BF16 peak
  split      as on smaller GPUs (--gpu-memory): experts that do not fit are computed by the CPU
  kernels    bytes and time of each kernel over a token, where Nsight Compute (ncu) is found
  --bin DIR        the programs, built by `make gpu` (build/gpu)
  --model DIR      the checkpoint; made there with random weights, 18.8 GB, if there is none (build/full)
  --out DIR        where the file goes; each call adds its sections to it (bench)
  --contexts LIST --prompts LIST   tokens (0,4096,25000,131072 and 512,2048,8192,25000)
  --limits LIST    GB of the GPU's memory for split (8,12)
  --tokens N       to decode (128)     --repeat N  the median of so many runs (3)
  --peak TFLOPS    dense BF16 peak, where the table below does not have the GPU
  --timeout S      for one run of the program (500)

Every figure is the program's own (--stats), from a run with random token ids; nothing but Python is needed, and numpy to make
the checkpoint.
"""
import argparse
import csv
import datetime
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEPS = ['load', 'decode', 'prefill', 'split', 'kernels']
# Dense BF16 with float32 sums, 10^12 operations a second, by NVIDIA's data sheets; the first name that fits counts; 0: unknown.
PEAK = [('Laptop', 0), ('H100 PCIe', 756), ('H100 NVL', 835), ('H100', 989), ('H200', 989), ('GH200', 989), ('A100', 312), ('B200', 2250),
        ('RTX 5090', 209.5), ('RTX 4090', 165), ('RTX 3090', 71)]
STATS = re.compile(r'prompt: (?P<prompt>\d+) tokens.*?, (?P<prefill>[\d.]+) tokens/s; first token after (?P<first>[\d.]+) s; '
                   r'answer: (?P<answer>\d+) tokens(, (?P<decode>[\d.]+) tokens/s)?; peak memory (?P<host>\d+) MB, '
                   r'GPU memory (?P<gpu>[\d.]+) GB')


class Failed(Exception):
    pass


def call(args, *command, timeout=None):
    """Runs a program to its end, in at most args.timeout seconds or the given ones; its stdout and stderr."""
    limit = timeout or args.timeout
    try:
        done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failed('longer than %g s' % limit)
    except OSError as e:
        raise Failed(str(e))
    if done.returncode:
        raise Failed((done.stderr.strip() or 'exit status %d' % done.returncode).splitlines()[-1])
    return done.stdout, done.stderr


def generate_call(args, scratch, n_prompt, n_tokens, *options):
    """The command line of a run behind n_prompt random ids."""
    path = os.path.join(scratch, 'ids')
    rng = random.Random(n_prompt)
    with open(path, 'w') as f:
        f.write(' '.join(['2'] + [str(rng.randrange(10, args.vocabulary)) for _ in range(n_prompt - 1)]))
    return [os.path.join(args.bin, 'gemma4'), '-m', args.model, '--device', 'cuda', '--ids', path, '-n', n_tokens, '-c',
            n_prompt + n_tokens, '--ignore-eos', '--temp', 0, '--print-ids', '--stats', *options]


def measure(args, scratch, n_prompt, n_tokens, repeat=None, options=()):
    """The medians of the program's own figures over several runs, and of the seconds a run takes besides."""
    runs = []
    for _ in range(repeat or args.repeat):
        started = time.time()
        _, err = call(args, *generate_call(args, scratch, n_prompt, n_tokens, *options))
        wall = time.time() - started
        stats = STATS.search(err)
        if not stats:
            raise Failed('no figures in: ' + err.strip())
        run = {k: float(v) for k, v in stats.groupdict().items() if v}
        if (run['prompt'], run['answer']) != (n_prompt, n_tokens):
            raise Failed('not %d and %d tokens: %s' % (n_prompt, n_tokens, err.strip()))
        run['besides'] = wall - run['first'] - ((n_tokens - 1) / run['decode'] if 'decode' in run else 0)
        runs.append(run)
    return {k: statistics.median(run[k] for run in runs) for k in runs[0]}


def table(head, rows):
    yield '| %s |' % ' | '.join(head)
    yield '|%s' % (' --- |' * len(head))
    for row in rows:
        yield '| %s |' % ' | '.join(row)
    yield ''


def info(args, context, *options):
    return json.loads(call(args, os.path.join(args.bin, 'gemma4'), 'info', '--json', '-m', args.model, '-c', context, *options)[0])


def cache_bytes(args, context):
    """Read for one token behind `context` others: all of them in global layers, the window in the others."""
    most = args.info['context_length']
    a, b = info(args, most // 2), info(args, most)
    in_global = (b['context_bytes'] - a['context_bytes']) / (most - most // 2)
    return in_global * context + (a['kv_bytes_per_token'] - in_global) * min(context, args.info['sliding_window'])


def weight_operations(args):
    """Multiplications and additions with weights for one token of a prompt, the head's left out."""
    with open(os.path.join(args.model, 'config.json')) as f:
        c = json.load(f)['text_config']
    h, total = c['hidden_size'], 0
    for kind in c['layer_types']:
        sliding = kind == 'sliding_attention'
        dim = c['head_dim'] if sliding else c['global_head_dim']
        kv = c['num_key_value_heads'] if sliding else c['num_global_key_value_heads']
        total += h * dim * (2 * c['num_attention_heads'] + (2 if sliding or not c['attention_k_eq_v'] else 1) * kv)
        total += 3 * h * c['intermediate_size']
        if c['enable_moe_block']:
            total += h * c['num_experts'] + 3 * c['top_k_experts'] * h * c['moe_intermediate_size']
    return 2 * total


def forget(directory):
    """Takes the files out of the page cache, as far as the system follows."""
    for name in os.listdir(directory):
        fd = os.open(os.path.join(directory, name), os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def bench_load(args, scratch):
    size = args.info['bytes_on_disk'] * 1e-9
    forget(args.model)
    runs = [('from disk', measure(args, scratch, 16, 1, 1)), ('from the page cache', measure(args, scratch, 16, 1))]
    yield from table(['files', 'start, load and end', 'GB/s', 'then first token of 16', 'host memory at most', 'GPU memory'],
                     [[name, '%.1f s' % r['besides'], '%.1f' % (size / r['besides']), '%.0f ms' % (1000 * r['first']),
                       '%.1f GB' % (r['host'] * 1e-3), '%.2f GB' % r['gpu']] for name, r in runs])


def bench_decode(args, scratch):
    rows = []
    for context in args.contexts:
        n = max(context, 16)
        row = [str(context)]
        try:
            r = measure(args, scratch, n, args.tokens)
            total = args.info['bytes_per_token'] + cache_bytes(args, n + args.tokens / 2)
            row += ['%.3f GB' % (total * 1e-9), '%.1f' % r['decode'], '%.0f GB/s' % (total * r['decode'] * 1e-9),
                    '%.0f %%' % (100 * total * r['decode'] * 1e-9 / args.gpu['read_gbs'])]
        except Failed as e:
            row += ['', str(e), '', '']
        rows.append(row)
    yield '%d tokens decoded behind so many; 0: behind 16. Bytes: weights and cache that a token needs, each read once.' % args.tokens
    yield ''
    yield from table(['context', 'bytes a token', 'tokens/s', 'that is', 'of the reading bandwidth'], rows)


def bench_prefill(args, scratch):
    peak = args.peak or next((tflops for name, tflops in PEAK if name in args.gpu['name']), 0)
    rows = []
    for n in args.prompts:
        row = [str(n)]
        try:
            r = measure(args, scratch, n, 1)
            tflops = weight_operations(args) * r['prefill'] * 1e-12
            row += ['%.3f s' % r['first'], '%.0f' % r['prefill'], '%.1f' % tflops, '%.1f %%' % (100 * tflops / peak) if peak else 'unknown']
        except Failed as e:
            row += [str(e), '', '', '']
        rows.append(row)
    yield 'The operations are those with weights, without the head and the attention itself.'
    yield ''
    share = 'of %g (dense BF16)' % peak if peak else 'of the dense BF16 peak'
    yield from table(['prompt', 'first token', 'tokens/s', '10^12 operations/s', share], rows)


def bench_split(args, scratch):
    rows = []
    for limit, slots in [(limit, slots) for limit in args.limits for slots in ((), ('--expert-slots', 0))]:
        options, n = ('--gpu-memory', limit, *slots), 2048
        row = ['%d GB' % limit]
        try:
            plan = info(args, n + args.tokens, *options)
            r = measure(args, scratch, n, args.tokens, 1, options)
            row += ['%d of %d' % (plan['gpu']['cpu_experts'], plan['layers']), '%d of %d' % (plan['gpu']['expert_slots'], plan['experts']),
                    '%.2f GB' % r['gpu'], '%.0f' % r['prefill'], '%.1f' % r['decode']]
        except Failed as e:
            row += ['', '', '', str(e), '']
        rows.append(row)
    yield 'A prompt of 2048 tokens and %d tokens behind it, with %d processors of the host.' % (args.tokens, len(os.sched_getaffinity(0)))
    yield ''
    yield from table(['limit', 'layers with experts on the CPU', 'slots of each', 'GPU memory', 'prefill, tokens/s', 'decode, tokens/s'], rows)


def bench_kernels(args, scratch):
    """A prompt of one token, then one more: steps of one token each, kernel by kernel, with cold caches."""
    ncu = shutil.which('ncu') or '/usr/local/cuda/bin/ncu'
    if not os.path.exists(ncu):
        yield from ['There is no ncu.', '']
        return
    out, _ = call(args, ncu, '--csv', '--page', 'raw', '--print-units', 'base', '--graph-profiling', 'node', '--clock-control', 'none', '--metrics',
                  'dram__bytes_read.sum,gpu__time_duration.sum', *generate_call(args, scratch, 1, 2))
    lines = [line for line in out.splitlines() if line.startswith('"')]
    kernels = {}
    for row in csv.DictReader(lines):
        if not row['ID']:                       # the line of units
            continue
        k = kernels.setdefault(re.sub(r'\(.*', '', row['Kernel Name']), [0, 0, 0])
        k[0] += 1
        k[1] += float(row['dram__bytes_read.sum'].replace(',', ''))
        k[2] += float(row['gpu__time_duration.sum'].replace(',', ''))
    if not kernels:
        raise Failed('ncu measured no kernel: ' + out.strip()[-300:])
    rows, all_time, steps = [], sum(k[2] for k in kernels.values()), kernels['embed_kernel'][0]
    for name, (n, read, ns) in sorted(kernels.items(), key=lambda item: -item[1][2]) + [('all', [sum(c) for c in zip(*kernels.values())])]:
        rows.append([name, '%g' % (n / steps), '%.1f us' % (ns / steps / 1000), '%.1f %%' % (100 * ns / all_time), '%.2f MB' % (read / steps / 1e6),
                     '%.0f GB/s' % (read / ns), '%.0f %%' % (100 * read / ns / args.gpu['read_gbs'])])
    yield from table(['kernel', 'launches', 'time', 'share', 'read', 'that is', 'of the reading bandwidth'], rows)


def lengths(text):
    return [int(n) for n in text.split(',')]


def header(args, date):
    smi = shutil.which('nvidia-smi')
    query = 'driver_version,clocks.max.sm,clocks.max.mem,power.limit'
    driver = call(args, smi, '--query-gpu=' + query, '--format=csv,noheader')[0].splitlines()[0] if smi else 'unknown'
    g, i = args.gpu, args.info
    yield '# %s, %s' % (g['name'], date)
    yield ''
    yield from table(['', ''], [
        ['GPU', '%s, compute capability %s, %d multiprocessors, %.1f GB' % (
            g['name'], g['compute_capability'], g['multiprocessors'], g['memory_gb'])],
        ['clocks', '%d MHz, memory %d MHz' % (g['clock_mhz'], g['memory_clock_mhz'])],
        ['nvidia-smi: ' + query.replace(',', ', '), driver],
        ['CUDA', '%s, the driver\'s %s' % (g['cuda'], g['driver_cuda'])],
        ['memory, measured', 'reading %d GB/s, copying %d GB/s (read and written)' % (g['read_gbs'], g['copy_gbs'])],
        ['bus, measured', '%.1f GB/s from pinned memory' % g['bus_gbs']],
        ['model', '%.3f B parameters, %.2f GB; weights read for a token: %.3f GB' % (
            i['parameters'] * 1e-9, i['bytes_on_disk'] * 1e-9, i['bytes_per_token'] * 1e-9)],
        ['layouts', ', '.join('%s %s' % pair for pair in i['layouts'].items())]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('step', nargs='*', metavar='STEP')
    parser.add_argument('--bin', default=os.path.join(ROOT, 'build', 'gpu'))
    parser.add_argument('--model', default=os.path.join(ROOT, 'build', 'full'))
    parser.add_argument('--out', default=os.path.join(ROOT, 'bench'))
    parser.add_argument('--contexts', type=lengths, default=[0, 4096, 25000, 131072])
    parser.add_argument('--prompts', type=lengths, default=[512, 2048, 8192, 25000])
    parser.add_argument('--limits', type=lengths, default=[8, 12])
    parser.add_argument('--tokens', type=int, default=128)
    parser.add_argument('--repeat', type=int, default=3)
    parser.add_argument('--peak', type=float)
    parser.add_argument('--timeout', type=float, default=500)
    args = parser.parse_args()
    for step in args.step:
        if step not in STEPS:
            parser.error('%s: not one of %s' % (step, ', '.join(STEPS)))
    try:
        args.gpu = json.loads(call(args, os.path.join(args.bin, 'bandwidth'))[0])
        if not os.path.exists(os.path.join(args.model, 'config.json')):
            call(args, sys.executable, os.path.join(ROOT, 'tests', 'make_checkpoint.py'), '--full', '--layout', 'nvidia',
                 '--shard-bytes', '2e9', '--tokenizer', os.path.join(ROOT, 'tests', 'fixtures', 'odd-bf16', 'tokenizer.json'), args.model, timeout=1000)
        args.info = info(args, 1024)
        args.vocabulary = args.info['vocab_size']
        date = datetime.date.today().isoformat()
        path = os.path.join(args.out, '%s-%s.md' % (date, re.sub(r'\W+', '-', args.gpu['name'].replace('NVIDIA ', ''))))
        new = not os.path.exists(path)
        with open(path, 'a') as f, tempfile.TemporaryDirectory() as scratch:
            def write(lines):
                for line in lines:
                    print(line, flush=True)
                    f.write(line + '\n')
                f.flush()
            if new:
                write(header(args, date))
            for step in args.step or STEPS:
                write(['## %s' % step.capitalize(), '', '    ' + ' '.join(['bench/gpu_bench.py'] + sys.argv[1:]), ''])
                try:
                    write(globals()['bench_' + step](args, scratch))
                except Failed as e:
                    write(['Failed: %s' % e, ''])
    except Failed as e:
        sys.exit('gpu_bench.py: %s' % e)


if __name__ == '__main__':
    main()
