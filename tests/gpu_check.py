#!/usr/bin/env python3
"""Is the program right on this machine's GPU?  Prints one line per check and "N passed, N failed" (`make gpu-check`).
What cannot be checked here is named: "left out".

usage: gpu_check.py [--bin DIR] [--full DIR] [--timeout S] [STEP...]
  kernels    every operation against plain.c's, at awkward sizes (test_kernels, and test_fp4 where
             there are FP4 activations); on an H100 or H200 once more with wgmma
  model      the tiny checkpoints and drafters against the reference, token for token (test_model, test_draft), and pictures
             (test_image)
  switches   the tiny checkpoints' logits, bit for bit, with what GEMMA4_CUDA leaves out: graphs,
             kernels that overlap; their tokens with both values of GEMMA4_HEAD
  wgmma      on an H100 or H200: the tiny checkpoints' logits with wgmma and without
  full       a random checkpoint of full size, logits against the CPU's
  sanitizer  compute-sanitizer's racecheck, synccheck and memcheck on the tiny checkpoints, where the tool is found; with
             the 256 largest logits, so that the list that collect_kernel sorts is for several warps
  --bin DIR  the programs, built by `make gpu` (build/gpu)
  --full DIR the checkpoint of full size; made there, 18.8 GB, if there is none (build/full)
  --timeout S  a program that takes longer has failed (500)
  --sanitized LIST  the tiny checkpoints for the sanitizer (all: odd-bf16,odd-experts,odd-all,dense)

Needs numpy, for `full` alone; no compiler, no package, no network.
"""
import argparse
import array
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURES = os.path.join(ROOT, 'tests', 'fixtures')
STEPS = ['kernels', 'switches', 'wgmma', 'model', 'full', 'sanitizer']
TINY = ['odd-bf16', 'odd-experts', 'odd-all', 'dense']
# What GEMMA4_CUDA leaves out, by the tokens of a step: one of more than 8 is no graph.
SWITCHES = {1: ('', 'no-graph', 'no-overlap', 'sync,no-overlap'), 5: ('', 'no-graph', 'no-overlap', 'sync,no-overlap'), 13: ('', 'no-overlap')}
FULL_BYTES = 18.9e9                     # of the checkpoint of full size
# What compute-sanitizer says where it cannot work, which is nothing about the program.
UNFIT = re.compile(r'^=* *(.*(?:not supported|No supported|Internal Sanitizer Error|before first instrumented).*)$', re.M)


class OutOfTime(Exception):
    """There is not enough time for a program (said: None), or it was stopped (said: what it wrote until then)."""

    def __init__(self, why, said=None):
        super().__init__(why)
        self.said = said


class Budget:
    """The seconds that all programs have together.  share(): up to which part of them the programs of now may run."""

    def __init__(self, seconds=math.inf, clock=time.monotonic):
        self.seconds, self.clock, self.start, self.share = seconds, clock, clock(), lambda: 1

    def left(self, least=1):
        """Seconds; OutOfTime where they are fewer than the least that the next program needs."""
        end = self.share() * self.seconds
        seconds = self.start + end - self.clock()
        if seconds < least:
            raise OutOfTime('%.0f of %.0f s were left' % (max(0, seconds), end))
        return seconds


def kill(process):
    """With all that it has started: ncu and compute-sanitizer start the program themselves."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def call(args, *command, least=1, **environment):
    """Runs a program in the repository; its exit status (None: longer than args.timeout), stdout, stderr.  OutOfTime where there is no
    time left for it, or not enough."""
    left = args.budget.left(least)
    # files, not pipes: nobody waits for a pipe that some grandchild holds
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=dict(os.environ, **environment), stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=err, preexec_fn=os.setpgrp)
        try:
            status = process.wait(min(args.timeout, left))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            kill(process)
        texts = []
        for file in out, err:
            file.seek(0)
            texts.append(file.read().decode(errors='replace'))
    if status is None and left < args.timeout:
        raise OutOfTime('stopped after %.0f s' % left, ''.join(texts))
    return status, *texts


def run(args, *command, **environment):
    """Runs a program in the repository; (whether its exit status is 0, what it wrote, seconds)."""
    started = args.budget.clock()
    try:
        status, out, err = call(args, *command, **environment)
    except OSError as e:
        return False, str(e), 0
    if status is None:
        err += '\nlonger than %g s' % args.timeout
    return status == 0, out + err, args.budget.clock() - started


def program(args, name, **environment):
    """A cmocka program: one check for each of its tests, so that one that fails is named."""
    stopped = None
    try:
        good, text, seconds = run(args, os.path.join(args.bin, name), **environment)
    except OutOfTime as e:
        good, text, seconds, stopped = False, e.said or '', 0, e
    passed = len(re.findall(r'^\[ +OK \]', text, re.M))
    failed = sorted(set(re.findall(r'^\[  FAILED  \] ([^\n]+[^:\n])$', text, re.M)))
    if failed or not stopped:
        yield good and passed > 0, '%s: %d tests passed, %d failed, %.0f s' % (name, passed, len(failed), seconds), text
    if stopped:
        raise stopped


def no_gpu(args, **environment):
    """Why the program finds no GPU, or none that takes what the environment asks for; '' where it finds one."""
    if not os.path.exists(os.path.join(args.bin, 'gemma4')):
        return '%s/gemma4: not there; `make gpu` builds it' % args.bin
    good, text, seconds = run(args, os.path.join(args.bin, 'gemma4'), 'info', '--device', 'cuda',
                              '-m', os.path.join(FIXTURES, TINY[0]), **environment)
    return '' if good else (text.splitlines() or ['no answer'])[-1]


def check_kernels(args):
    yield from program(args, 'test_kernels')
    demo = os.path.join(ROOT, 'demo')
    if run(args, os.path.join(args.bin, 'gemma4'), 'info', '-m', demo, '--device', 'cuda', '--fp4-activations')[0]:
        yield from program(args, 'test_fp4')
    if not no_gpu(args, GEMMA4_CUDA='wgmma'):
        yield from program(args, 'test_kernels', GEMMA4_CUDA='wgmma')


def check_switches(args):
    """Token by token, each step a launch of its own, and several at once: kernels that overlap must not change a bit."""
    with tempfile.TemporaryDirectory() as scratch:
        ids = write_ids(scratch, 40, 500)
        for name in TINY:
            for chunk, cases in SWITCHES.items():
                first = None
                for switches in cases:
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
    why = no_gpu(args, GEMMA4_CUDA='wgmma')
    if why:
        yield None, 'wgmma: %s' % why, ''
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


class Checkpoint:
    """The checkpoint of full size with random weights.  If there is none, and no reason why not, it is made in DIRECTORY.part, beside
    all else that is done."""

    def __init__(self, directory, why=''):
        self.directory, self.part, self.process, self.why = directory, directory + '.part', None, why
        if why or os.path.exists(os.path.join(directory, 'config.json')):
            return
        try:
            if os.path.isdir(directory) and os.listdir(directory):
                raise OSError('%s: has files, but no config.json: name another place' % directory)
            shutil.rmtree(self.part, ignore_errors=True)
            os.makedirs(self.part)
            room = shutil.disk_usage(self.part).free
            if room < FULL_BYTES:
                raise OSError('%s: room for %.1f GB, the checkpoint takes %.1f: name another place'
                              % (directory, room * 1e-9, FULL_BYTES * 1e-9))
        except OSError as e:
            self.why = str(e)
            return
        # Its tokenizer is that of the tests: only ids are used.
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, 'tests', 'make_checkpoint.py'), '--full', '--layout', 'nvidia', '--shard-bytes', '2e9',
             '--tokenizer', os.path.join(FIXTURES, 'odd-bf16', 'tokenizer.json'), self.part],
            stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, preexec_fn=os.setpgrp)

    def missing(self, seconds=0):
        """Waits so long for it.  Why there is none: '' when it is there, None when it is still being made."""
        if self.process:
            try:
                status = self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            self.process = None
            self.said.seek(0)
            if status:
                self.why = (self.said.read().decode(errors='replace').splitlines() or ['exit status %d' % status])[-1]
            else:
                os.rename(self.part, self.directory)
        return self.why

    def stop(self):
        """What is there of a checkpoint that is not whole goes."""
        if self.process:
            kill(self.process)
        shutil.rmtree(self.part, ignore_errors=True)


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
    checkpoint = Checkpoint(args.full)
    try:
        why = checkpoint.missing(args.budget.left())
    finally:
        checkpoint.stop()
    try:
        import numpy
    except ImportError as e:
        why = why or str(e)
    if why:
        yield None, 'full: %s' % why, ''
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
        yield None, 'sanitizer: there is no compute-sanitizer', ''
        return
    with tempfile.TemporaryDirectory() as scratch:
        ids = write_ids(scratch, 40, 500)
        for check, name in [(check, name) for check in ('racecheck', 'synccheck', 'memcheck') for name in args.sanitized]:
            good, text, seconds = run(args, tool, '--tool', check, '--error-exitcode', 9, os.path.join(args.bin, 'gemma4'), '-m',
                                      os.path.join(FIXTURES, name), '--ids', ids, '--ignore-eos', '-n', 4, '--temp', 1,
                                      '--top-k', 256, '--print-ids', '--device', 'cuda')
            refusal = None if good else UNFIT.search(text)
            yield None if refusal else good, 'sanitizer: %s, %s, %s' % (check, name, refusal[1] if refusal else '%.0f s' % seconds), text


def check(args, steps, write):
    """Runs the steps; write(line) for each check.  What is left out stands in args.missing, too.  Whether some passed and none failed."""
    passed = failed = 0
    for step in steps:
        try:
            for good, what, text in globals()['check_' + step](args):
                if good is None:
                    args.missing.append(what)
                write('%s  %s' % ('left out' if good is None else 'passed' if good else 'FAILED', what))
                for line in [] if good or good is None else text.splitlines()[-30:]:
                    write('    ' + line)
                passed, failed = passed + (good is True), failed + (good is False)
        except OutOfTime as e:
            args.missing.append('%s: %s' % (step, e))
            write('left out  ' + args.missing[-1])
    write('%d passed, %d failed' % (passed, failed))
    return passed > 0 and not failed


def end(number, frame):
    raise SystemExit(128 + number)


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('step', nargs='*', metavar='STEP')
    parser.add_argument('--bin', default=os.path.join(ROOT, 'build', 'gpu'))
    parser.add_argument('--full', default=os.path.join(ROOT, 'build', 'full'))
    parser.add_argument('--timeout', type=float, default=500)
    parser.add_argument('--sanitized', type=lambda text: text.split(','), default=TINY)
    parser.set_defaults(budget=Budget(), missing=[])
    args = parser.parse_args(arguments)
    for step in args.step:
        if step not in STEPS:
            parser.error('%s: not one of %s' % (step, ', '.join(STEPS)))
    args.bin, args.full = os.path.abspath(args.bin), os.path.abspath(args.full)
    return args


def main():
    args = parse()
    signal.signal(signal.SIGTERM, end)
    sys.exit(not check(args, args.step or STEPS, lambda line: print(line, flush=True)))


if __name__ == '__main__':
    main()
