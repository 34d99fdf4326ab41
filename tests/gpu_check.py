#!/usr/bin/env python3
"""Is the program right on this machine's GPU?  Prints one line per check and "N passed, N failed" (`make gpu-check`).

usage: gpu_check.py [--bin DIR] [--full DIR] [--timeout S] [STEP...]
  kernels    every operation against plain.c's, at awkward sizes (test_kernels, and test_fp4 where
             there are FP4 activations); on an H100 or H200 once more with wgmma
  model      the tiny checkpoints and drafters against the reference, token for token (test_model, test_draft), and pictures
             (test_image)
  switches   the tiny checkpoints' logits, bit for bit, with what GEMMA4_CUDA leaves out: graphs,
             kernels that overlap; their tokens with both values of GEMMA4_HEAD
  wgmma      on an H100 or H200: the tiny checkpoints' logits with wgmma and without
  full       a random checkpoint of full size, logits against the CPU's
  sanitizer  compute-sanitizer's memcheck, racecheck and synccheck on the tiny checkpoints, where the tool is found; with the
             256 largest logits, so that the list that collect_kernel sorts is for several warps
  --bin DIR  the programs, built by `make gpu` (build/gpu)
  --full DIR the checkpoint of full size; made there, 18.8 GB, if there is none (build/full)
  --timeout S  a program that takes longer has failed (500)
  --sanitized LIST  the tiny checkpoints for the sanitizer (all: odd-bf16,odd-experts,odd-all,dense)

Needs numpy, for `full` alone; no compiler, no package, no network.
"""
import argparse
import array
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURES = os.path.join(ROOT, 'tests', 'fixtures')
STEPS = ['kernels', 'switches', 'wgmma', 'model', 'full', 'sanitizer']
TINY = ['odd-bf16', 'odd-experts', 'odd-all', 'dense']


def run(args, *call, **environment):
    """Runs a program in the repository; (whether its exit status is 0, what it wrote, seconds)."""
    started = time.time()
    try:
        done = subprocess.run(list(map(str, call)), cwd=ROOT, env=dict(os.environ, **environment), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=args.timeout)
        return done.returncode == 0, done.stdout.decode(errors='replace'), time.time() - started
    except subprocess.TimeoutExpired as e:
        return False, (e.stdout or b'').decode(errors='replace') + '\nlonger than %g s' % args.timeout, time.time() - started
    except OSError as e:
        return False, str(e), 0


def last_lines(text, n=30):
    return ''.join('    ' + line + '\n' for line in text.splitlines()[-n:])


def program(args, name, **environment):
    """A cmocka program: one check for each of its tests, so that one that fails is named."""
    good, text, seconds = run(args, os.path.join(args.bin, name), **environment)
    passed = len(re.findall(r'^\[ +OK \]', text, re.M))
    failed = sorted(set(re.findall(r'^\[  FAILED  \] ([^\n]+[^:\n])$', text, re.M)))
    yield good and passed > 0, '%s: %d tests passed, %d failed, %.0f s' % (name, passed, len(failed), seconds), '' if good else text


def has_wgmma(args):
    """Whether the GPU takes the switch that asks for it."""
    good, text, seconds = run(args, os.path.join(args.bin, 'gemma4'), 'info', '--device', 'cuda',
                              '-m', os.path.join(FIXTURES, TINY[0]), GEMMA4_CUDA='wgmma')
    if not good:
        print('        wgmma: %s' % (text.splitlines() or ['no answer'])[-1])
    return good


def check_kernels(args):
    yield from program(args, 'test_kernels')
    demo = os.path.join(ROOT, 'demo')
    if run(args, os.path.join(args.bin, 'gemma4'), 'info', '-m', demo, '--device', 'cuda', '--fp4-activations')[0]:
        yield from program(args, 'test_fp4')
    if has_wgmma(args):
        yield from program(args, 'test_kernels', GEMMA4_CUDA='wgmma')


def check_switches(args):
    """Token by token, each step a launch of its own, and several at once: kernels that overlap must not change a bit."""
    with tempfile.TemporaryDirectory() as scratch:
        ids = write_ids(scratch, 40, 500)
        for name in TINY:
            for chunk in (1, 5, 13):
                first = None
                for switches in ('', 'no-graph', 'no-overlap', 'sync,no-overlap'):
                    path = os.path.join(scratch, 'logits')
                    good, text, seconds = run(args, os.path.join(args.bin, 'gemma4'), 'score', '-m', os.path.join(FIXTURES, name), '--ids', ids,
                                              '--top', 0, '--logits', path, '--chunk', chunk, '--device', 'cuda', GEMMA4_CUDA=switches)
                    with open(path if good else os.devnull, 'rb') as f:
                        bits = f.read()
                    first = first or bits
                    same = good and len(bits) > 0 and bits == first
                    yield same, 'switches: %s, chunks of %d, %s, %.0f s' % (name, chunk, switches or 'nothing left out', seconds), text
    for name in TINY:
        call = ('-m', os.path.join(FIXTURES, name), '--device', 'cuda', '-p', 'hello', '-n', 12,
                '--ignore-eos', '--print-ids', '--temp', 1, '--top-k', 64, '--seed', 3)
        answers = [run(args, os.path.join(args.bin, 'gemma4'), *call, GEMMA4_HEAD=head)
                   for head in ('whole', 'screened')]
        same = all(good for good, _, _ in answers) and answers[0][1] == answers[1][1]
        text = ''.join(text for _, text, _ in answers)
        yield same, 'switches: %s, tokens from a screened head' % name, text


def check_wgmma(args):
    """hopper.cu adds in another order than nvfp4.cu.  Exact logits agree to float32.  Where tokens are
    rounded to BF16, a few experts may be chosen otherwise, so it is the median position that agrees."""
    if not has_wgmma(args):
        return
    with tempfile.TemporaryDirectory() as scratch:
        ids = write_ids(scratch, 150, 500)

        def score(name, switches, options):
            path = os.path.join(scratch, 'logits')
            good, text, seconds = run(args, os.path.join(args.bin, 'gemma4'), 'score', '--device', 'cuda',
                                      '-m', os.path.join(FIXTURES, name), '--ids', ids, '--top', 0,
                                      '--logits', path, '--chunk', 150, *options, GEMMA4_CUDA=switches)
            numbers = array.array('f')
            if good:
                with open(path, 'rb') as f:
                    numbers.frombytes(f.read())
            return numbers, text

        for name in TINY:
            for options, most_off in (('--exact',), 1e-4), ((), 2e-2):
                got, text = score(name, 'wgmma', options)
                want, other = score(name, '', options)
                off, width = float('nan'), len(want) // 150
                if got and len(got) == len(want):
                    apart = [abs(a - b) for a, b in zip(got, want)]
                    rows = sorted(max(apart[i:i + width]) for i in range(0, len(want), width))
                    off = rows[len(rows) // 2] / (max(want) - min(want))
                what = 'wgmma: %s, %s: off by %.1e' % (name, ' '.join(options) or 'rounded', off)
                yield off <= most_off, what, text + other


def check_model(args):
    yield from program(args, 'test_model')
    yield from program(args, 'test_draft')
    yield from program(args, 'test_image')


def write_ids(directory, n, vocabulary):
    """n ids, <bos> and random ones."""
    path = os.path.join(directory, 'ids-%d.txt' % n)
    rng = random.Random(1)
    with open(path, 'w') as f:
        f.write(' '.join(['2'] + [str(rng.randrange(10, vocabulary)) for _ in range(n - 1)]))
    return path


def make_full(args, directory):
    """The checkpoint, unless it is there.  Its tokenizer is that of the tests: only ids are used."""
    if os.path.exists(os.path.join(directory, 'config.json')):
        return True, '', 0
    return run(args, sys.executable, os.path.join(ROOT, 'tests', 'make_checkpoint.py'), '--full', '--layout', 'nvidia',
               '--shard-bytes', '2e9', '--tokenizer', os.path.join(FIXTURES, 'odd-bf16', 'tokenizer.json'), directory)


def logits(args, device, ids, scratch, *options):
    """The logits [positions][vocabulary], or None and what went wrong."""
    import numpy
    path = os.path.join(scratch, 'logits')
    good, text, seconds = run(args, os.path.join(args.bin, 'gemma4'), 'score', '-m', args.full, '--ids', ids, '--top', 0,
                              '--logits', path, '-c', 1024, '--device', device, *options)
    if not good:
        return None, text, seconds
    n = len(open(ids).read().split())
    return numpy.fromfile(path, numpy.float32).reshape(n, -1), '', seconds


def check_full(args):
    """A random model is chaotic: one expert that is chosen otherwise, of two with all but the same score, changes all that comes
    after.  So it is the median position that must agree, and how closely depends on what is rounded: on the CPU, a BF16 cache in
    place of a float32 one moves it by 1.7 % of the range and leaves 78 % of the choices; unrelated logits are off by 12 %."""
    import numpy
    good, text, seconds = make_full(args, args.full)
    yield good, 'full: the checkpoint, %.0f s' % seconds, text
    if not good:
        return
    with tempfile.TemporaryDirectory() as scratch:
        with open(os.path.join(args.full, 'config.json')) as f:
            ids = write_ids(scratch, 64, json.load(f)['text_config']['vocab_size'])
        cases = (('--exact',), 1e-3, 0.95), (('--exact', '--kv', 'fp8'), 1e-2, 0.9), (('--kv', 'bf16'), 3.5e-2, 0.5)
        for options, most_off, least_same in cases:
            want, text, seconds = logits(args, 'cpu', ids, scratch, *options)
            if want is None:
                yield False, 'full: the CPU, %s' % ' '.join(options), text
                continue
            for chunk in (512, 1):
                got, text, on_gpu = logits(args, 'cuda', ids, scratch, '--chunk', chunk, *options)
                what = 'full: %s, chunks of %d' % (' '.join(options), chunk)
                if got is None:
                    yield False, what, text
                    continue
                off = numpy.abs(got - want).mean(1) / (want.max(1) - want.min(1))
                same = (got.argmax(1) == want.argmax(1)).mean()
                yield (bool(numpy.isfinite(got).all() and numpy.median(off) <= most_off and same >= least_same),
                       '%s: off by %.1e of the range at the median position, %.1e at the worst; %.0f %% same token; CPU %.0f s, GPU %.0f s'
                       % (what, numpy.median(off), off.max(), 100 * same, seconds, on_gpu), '')


def check_sanitizer(args):
    tool = shutil.which('compute-sanitizer') or '/usr/local/cuda/bin/compute-sanitizer'
    if not os.path.exists(tool):
        print('        sanitizer: there is no compute-sanitizer')
        return
    with tempfile.TemporaryDirectory() as scratch:
        ids = write_ids(scratch, 40, 500)
        for check in ('memcheck', 'racecheck', 'synccheck'):
            for name in args.sanitized:
                good, text, seconds = run(args, tool, '--tool', check, '--error-exitcode', 9, os.path.join(args.bin, 'gemma4'), '-m',
                                          os.path.join(FIXTURES, name), '--ids', ids, '--ignore-eos', '-n', 4, '--temp', 1,
                                          '--top-k', 256, '--print-ids', '--device', 'cuda')
                yield good, 'sanitizer: %s, %s, %.0f s' % (check, name, seconds), text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('step', nargs='*', metavar='STEP')
    parser.add_argument('--bin', default=os.path.join(ROOT, 'build', 'gpu'))
    parser.add_argument('--full', default=os.path.join(ROOT, 'build', 'full'))
    parser.add_argument('--timeout', type=float, default=500)
    parser.add_argument('--sanitized', type=lambda text: text.split(','), default=TINY)
    args = parser.parse_args()
    for step in args.step:
        if step not in STEPS:
            parser.error('%s: not one of %s' % (step, ', '.join(STEPS)))
    args.bin, args.full = os.path.abspath(args.bin), os.path.abspath(args.full)
    passed = failed = 0
    for step in args.step or STEPS:
        for good, what, text in globals()['check_' + step](args):
            print('%s  %s' % ('passed' if good else 'FAILED', what))
            if not good:
                print(last_lines(text), end='')
            sys.stdout.flush()
            passed, failed = passed + good, failed + (not good)
    print('%d passed, %d failed' % (passed, failed))
    sys.exit(failed > 0 or not passed)


if __name__ == '__main__':
    main()
