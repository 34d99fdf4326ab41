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
  --only LIST      kernels to measure (all), without the _kernel of their names
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
import signal
import statistics
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, 'tests'))
import gpu_check

STEPS = ['load', 'decode', 'prefill', 'split', 'kernels']
BUSY_GB = 3                             # of the GPU's memory, more than a desktop takes
# Dense BF16 with float32 sums, 10^12 operations a second, by NVIDIA's data sheets; the first name that fits counts; 0: unknown
# (MIG: a part of the GPU).
PEAK = [('MIG', 0), ('Laptop', 0), ('H100 PCIe', 756), ('H100 NVL', 835), ('H100', 989), ('H200', 989), ('GH200', 989), ('A100', 312), ('B200', 2250),
        ('RTX 5090', 209.5), ('RTX 4090', 165), ('RTX 3090', 71)]
STATS = re.compile(r'prompt: (?P<prompt>\d+) tokens.*?, (?P<prefill>[\d.]+) tokens/s; first token after (?P<first>[\d.]+) s; '
                   r'answer: (?P<answer>\d+) tokens(, (?P<decode>[\d.]+) tokens/s)?; peak memory (?P<host>\d+) MB, '
                   r'GPU memory (?P<gpu>[\d.]+) GB')


class Failed(Exception):
    pass


def call(args, *command, least=1):
    """Runs a program to its end, in at most args.timeout seconds; its stdout and stderr."""
    try:
        status, out, err = gpu_check.call(args, *command, least=least)
    except OSError as e:
        raise Failed(str(e))
    if status is None:
        raise Failed('longer than %g s' % args.timeout)
    if status:
        raise Failed(reason(out, err) or 'exit status %d' % status)
    return out, err


def reason(out, err):
    """What a program that failed said last, or ncu first."""
    errors = [line for line in (out + err).splitlines() if line.startswith('==ERROR==')]
    return (errors or (err.strip() or out.strip()).splitlines()[-1:] or [''])[0]


def generate_call(args, scratch, n_prompt, n_tokens, *options):
    """The command line of a run behind n_prompt random ids."""
    path = os.path.join(scratch, 'ids')
    rng = random.Random(n_prompt)
    with open(path, 'w') as f:
        f.write(' '.join(['2'] + [str(rng.randrange(10, args.vocabulary)) for _ in range(n_prompt - 1)]))
    return [os.path.join(args.bin, 'gemma4'), '-m', args.model, '--device', 'cuda', '--ids', path, '-n', n_tokens, '-c',
            n_prompt + n_tokens, '--ignore-eos', '--temp', 0, '--print-ids', '--stats', *options]


def measure(args, scratch, n_prompt, n_tokens, repeat=None, options=()):
    """The medians of the program's own figures over several runs, and of the seconds a run takes besides.  None is begun where less time
    is left than the one before took, most of which is the loading."""
    runs = []
    for _ in range(repeat or args.repeat):
        started = args.budget.clock()
        _, err = call(args, *generate_call(args, scratch, n_prompt, n_tokens, *options), least=max(1, args.took))
        wall = args.took = args.budget.clock() - started
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
        yield '| %s |' % ' | '.join(row + [''] * (len(head) - len(row)))
    yield ''


def measured(args, step, rows):
    """The rows of a table, as they are measured.  rows: of each its first cell and a function that measures the others.  What fails or
    has no time is said in the row, and in args.missing."""
    for name, cells in rows:
        try:
            yield [name, *cells()]
        except (Failed, gpu_check.OutOfTime) as e:
            args.missing.append('%s %s: %s' % (step, name, e))
            yield [name, str(e)]


def info(args, context, *options):
    return json.loads(call(args, os.path.join(args.bin, 'gemma4'), 'info', '--json', '-m', args.model, '-c', context, *options)[0])


def describe_model(args):
    """What is read for one token, and what the model is: lines of the header."""
    i = args.info = info(args, 1024)
    args.vocabulary, most = i['vocab_size'], i['context_length']
    args.global_bytes = (info(args, most)['context_bytes'] - info(args, most // 2)['context_bytes']) / (most - most // 2)
    yield from table(['', ''], [
        ['model', '%.3f B parameters, %.2f GB; weights read for a token: %.3f GB' % (
            i['parameters'] * 1e-9, i['bytes_on_disk'] * 1e-9, i['bytes_per_token'] * 1e-9)],
        ['layouts', ', '.join('%s %s' % pair for pair in i['layouts'].items())],
        ['experts on the CPU', 'of %d of %d layers' % (i['gpu']['cpu_experts'], i['layers'])]])


def cache_bytes(args, context):
    """Read for one token behind `context` others: all of them in global layers, the window in the others."""
    return args.global_bytes * context + (args.info['kv_bytes_per_token'] - args.global_bytes) * min(context, args.info['sliding_window'])


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
    def row(n):
        r = args.runs[n] = measure(args, scratch, n, args.tokens)
        total = args.info['bytes_per_token'] + cache_bytes(args, n + args.tokens / 2)
        rate = total * r['decode'] * 1e-9
        return ['%.3f GB' % (total * 1e-9), '%.1f' % r['decode'], '%.0f GB/s' % rate, '%.0f %%' % (100 * rate / args.gpu['read_gbs'])]
    yield '%d tokens decoded behind so many; 0: behind 16. Bytes: weights and cache that a token needs, each read once.' % args.tokens
    yield ''
    rows = [(str(context), lambda n=max(context, 16): row(n)) for context in args.contexts]
    yield from table(['context', 'bytes a token', 'tokens/s', 'that is', 'of the reading bandwidth'], measured(args, 'decode', rows))


def bench_prefill(args, scratch):
    peak = args.peak or next((tflops for name, tflops in PEAK if name in args.gpu['name']), 0)

    def row(n):
        r = args.runs.get(n) or measure(args, scratch, n, 1)    # `decode` has prompts too
        tflops = weight_operations(args) * r['prefill'] * 1e-12
        return ['%.3f s' % r['first'], '%.0f' % r['prefill'], '%.1f' % tflops, '%.1f %%' % (100 * tflops / peak) if peak else 'unknown']
    yield 'The operations are those with weights, without the head and the attention itself.'
    yield ''
    share = 'of %g (dense BF16)' % peak if peak else 'of the dense BF16 peak'
    rows = [(str(n), lambda n=n: row(n)) for n in args.prompts]
    yield from table(['prompt', 'first token', 'tokens/s', '10^12 operations/s', share], measured(args, 'prefill', rows))


def bench_split(args, scratch):
    n = 2048

    def row(*options):
        plan = info(args, n + args.tokens, *options)
        r = measure(args, scratch, n, args.tokens, 1, options)
        return ['%d of %d' % (plan['gpu']['cpu_experts'], plan['layers']), '%d of %d' % (plan['gpu']['expert_slots'], plan['experts']),
                '%.2f GB' % r['gpu'], '%.0f' % r['prefill'], '%.1f' % r['decode']]
    yield 'A prompt of 2048 tokens and %d tokens behind it, with %d processors of the host.' % (args.tokens, len(os.sched_getaffinity(0)))
    yield ''
    rows = [('%d GB' % limit, lambda limit=limit, slots=slots: row('--gpu-memory', limit, *slots))
            for limit in args.limits for slots in ((), ('--expert-slots', 0))]
    yield from table(['limit', 'layers with experts on the CPU', 'slots of each', 'GPU memory', 'prefill, tokens/s', 'decode, tokens/s'],
                     measured(args, 'split', rows))


def number(text):
    """Of ncu; it has no number of a metric that a GPU does not count."""
    try:
        return float(text.replace(',', ''))
    except ValueError:
        return float('nan')


def bench_kernels(args, scratch):
    """A prompt of one token, then one more: steps of one token each, kernel by kernel, with cold caches."""
    ncu = shutil.which('ncu') or '/usr/local/cuda/bin/ncu'
    if not os.path.exists(ncu):
        raise Failed('There is no ncu.')
    only = ['--kernel-name', 'regex:^(embed|%s)_kernel$' % args.only.replace(',', '|')] if args.only else []
    out, err = call(args, ncu, '--csv', '--page', 'raw', '--print-units', 'base', '--graph-profiling', 'node', '--clock-control', 'none',
                    *only, '--metrics', 'dram__bytes_read.sum,gpu__time_duration.sum', *generate_call(args, scratch, 1, 2),
                    least=max(1, args.took))
    lines = [line for line in out.splitlines() if line.startswith('"')]
    kernels = {}
    for row in csv.DictReader(lines):
        if not row['ID']:                       # the line of units
            continue
        k = kernels.setdefault(re.sub(r'\(.*', '', row['Kernel Name']), [0, 0, 0])
        k[0] += 1
        k[1] += number(row['dram__bytes_read.sum'])
        k[2] += number(row['gpu__time_duration.sum'])
    if 'embed_kernel' not in kernels:           # there is one in each step
        raise Failed('ncu measured nothing: ' + reason(out, err))
    rows, all_time, steps = [], sum(k[2] for k in kernels.values()), kernels['embed_kernel'][0]
    for name, (n, read, ns) in sorted(kernels.items(), key=lambda item: -item[1][2]) + [('all', [sum(c) for c in zip(*kernels.values())])]:
        rows.append([name, '%g' % (n / steps), '%.1f us' % (ns / steps / 1000), '%.1f %%' % (100 * ns / all_time), '%.2f MB' % (read / steps / 1e6),
                     '%.0f GB/s' % (read / ns), '%.0f %%' % (100 * read / ns / args.gpu['read_gbs'])])
    yield from table(['kernel', 'launches', 'time', 'share', 'read', 'that is', 'of the reading bandwidth'], rows)


def lengths(text):
    return [int(n) for n in text.split(',')]


def nvidia_smi(args, *query):
    """What it says of our GPU, which among several has another number there than CUDA gives it."""
    try:
        return '; '.join(call(args, 'nvidia-smi', '-i', args.gpu['pci'], '--format=csv,noheader', *query)[0].splitlines())
    except Failed as e:
        return str(e)


def header(args):
    query = 'driver_version,clocks.max.sm,clocks.max.mem,power.limit,persistence_mode'
    g = args.gpu
    yield from table(['', ''], [
        ['GPU', '%s, compute capability %s, %d multiprocessors, %.1f GB' % (
            g['name'], g['compute_capability'], g['multiprocessors'], g['memory_gb'])],
        ['clocks', '%d MHz, memory %d MHz' % (g['clock_mhz'], g['memory_clock_mhz'])],
        ['nvidia-smi: ' + query.replace(',', ', '), nvidia_smi(args, '--query-gpu=' + query)],
        ['CUDA', '%s, the driver\'s %s' % (g['cuda'], g['driver_cuda'])],
        ['memory, measured', 'reading %d GB/s, copying %d GB/s (read and written)' % (g['read_gbs'], g['copy_gbs'])],
        ['bus, measured', '%.1f GB/s from pinned memory' % g['bus_gbs']]])
    if g['memory_gb'] - g['free_gb'] > BUSY_GB:
        yield ('**%.1f GB of the GPU\'s memory are taken** (nvidia-smi: %s): where others compute, what is measured is too slow.'
               % (g['memory_gb'] - g['free_gb'], nvidia_smi(args, '--query-compute-apps=pid,name,used_memory')))
        yield ''


class Report:
    """bench/DATE-NAME.md, to which each line goes at once, as to the terminal.  Where the file cannot be written the terminal has all."""

    def __init__(self, directory, name):
        os.makedirs(directory, exist_ok=True)
        date = datetime.date.today().isoformat()
        self.path = os.path.join(directory, '%s-%s.md' % (date, re.sub(r'\W+', '-', name.replace('NVIDIA ', ''))))
        self.file = open(self.path, 'a', encoding='utf-8')
        self.is_new = not self.file.tell()
        if self.is_new:
            self.write('# %s, %s' % (name, date))
            self.write()

    def write(self, line=''):
        print(line, flush=True)
        try:
            print(line, file=self.file, flush=True)
        except OSError as e:
            print('%s: %s' % (self.path, e), file=sys.stderr)


def bench(args, steps, write):
    """Measures what the steps say, and writes each line as it comes.  What fails or has no time stands in args.missing, too."""
    with tempfile.TemporaryDirectory() as scratch:
        for step in steps:
            for line in ['## %s' % step.capitalize(), '', '    ' + ' '.join(['bench/gpu_bench.py', *args.said]), '']:
                write(line)
            try:
                for line in globals()['bench_' + step](args, scratch):
                    write(line)
            except (Failed, gpu_check.OutOfTime) as e:
                args.missing.append('%s: %s' % (step, e))
                write(str(e))
                write()


def bandwidth(args):
    """Finds out what the GPU is, and how fast its memory; else says why not."""
    try:
        args.gpu = json.loads(call(args, os.path.join(args.bin, 'bandwidth'))[0])
        return ''
    except (Failed, ValueError) as e:
        return 'bandwidth: %s' % e


def parse(arguments):
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
    parser.add_argument('--only', default='')
    parser.add_argument('--timeout', type=float, default=500)
    parser.set_defaults(budget=gpu_check.Budget(), missing=[], runs={}, took=0, said=arguments)
    args = parser.parse_args(arguments)
    for step in args.step:
        if step not in STEPS:
            parser.error('%s: not one of %s' % (step, ', '.join(STEPS)))
    args.bin, args.model = os.path.abspath(args.bin), os.path.abspath(args.model)
    return args


def main():
    args = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, gpu_check.end)
    checkpoint = None
    try:
        checkpoint = gpu_check.Checkpoint(args.model, bandwidth(args))
        why = checkpoint.missing(args.budget.left())
        if why:
            raise Failed(why)
        report = Report(args.out, args.gpu['name'])
        about = [*header(args), *describe_model(args)]
        for line in about if report.is_new else []:
            report.write(line)
        bench(args, args.step or STEPS, report.write)
    except (Failed, OSError) as e:
        sys.exit('gpu_bench.py: %s' % e)
    finally:
        if checkpoint:
            checkpoint.stop()


if __name__ == '__main__':
    main()
