#!/usr/bin/env python3
"""The first ten minutes on a GPU: is the program right there, then how fast is it?  All of it goes into bench/DATE-GPU.md.

usage: gpu_first_day.py [--minutes N] [--bin DIR] [--model DIR] [--out DIR] [OPTION... STEP...]     (`make gpu-first-day`)
  --minutes N  for all of it (10)
  --bin DIR    the programs, built by `make gpu` (build/gpu); they and this repository are all that is needed, and numpy
  --model DIR  the checkpoint of full size; made there with random weights, 18.8 GB, if there is none (build/full)
  --out DIR    where the file goes (bench)
  OPTION, STEP what gpu_bench.py shall measure instead, and how

Right first (tests/gpu_check.py): every operation, the tiny checkpoints, what GEMMA4_CUDA leaves out, compute-sanitizer.  Meanwhile the
checkpoint is made.  Then, whatever came out, decode and prefill, and the kernels on which the prediction rests, one by one
(gpu_bench.py).  What has no time, or cannot be done on this machine, is named at the end of the file.  Each line is in the file as soon
as it is known.
"""
import argparse
import os
import signal
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, 'tests'), os.path.join(ROOT, 'bench')]
import gpu_bench
import gpu_check

# In order of importance.
CHECKS = ['--sanitized', 'odd-experts', 'kernels', 'model', 'switches', 'sanitizer', 'wgmma']
FIGURES = ['--contexts', '0,25000', '--prompts', '16,2048,512,8192', '--repeat', '1', '--only', 'qkv,experts_up,head,screen']
STEPS = ['decode', 'prefill', 'kernels']
# The share of the time that is over when the checks, and when decode and prefill must have ended; what is not used is there for the next.
# Of an H200, on 2026-11-28, it is known that each run at full size ended within 60 s and ncu, with all kernels, within 90 (their limits
# then).  So of ten minutes two are for ncu; and for five runs, and what is left to do of the checkpoint, three and a half at least.
CHECKS_END, FIGURES_END = 0.45, 0.8
LONGEST = 0.2                           # of the time; a program that takes longer hangs


def measure(args, checkpoint, write):
    """The figures, as soon as there is a checkpoint.  Whether there was one."""
    args.budget.share = lambda: FIGURES_END
    try:
        why = checkpoint.missing(args.budget.left())
        if why is None:
            why = 'the checkpoint was not whole when the time for it was over: is the disk slow?'
        if why:
            raise gpu_bench.Failed(why)
        for line in gpu_bench.describe_model(args):
            write(line)
    except (gpu_bench.Failed, gpu_check.OutOfTime) as e:
        args.missing.append('%s: %s' % (', '.join(args.step), e))
        return False
    for step in args.step:
        if step == args.step[-1]:
            args.budget.share = lambda: 1
        gpu_bench.bench(args, [step], write)
    return True


def first_day(args, check_args, checkpoint, write):
    """Whether all checks passed, and there was something to measure."""
    for line in ['## Checks', '', '    tests/gpu_check.py ' + ' '.join(CHECKS), '']:
        write(line)
    args.budget.share = lambda: 1 if checkpoint.missing() else CHECKS_END      # none will be measured, so nothing is kept for it
    good = gpu_check.check(check_args, check_args.step, lambda line: write('    ' + line))
    write('')
    return measure(args, checkpoint, write) and good


def main(arguments, clock=time.monotonic):
    """The exit status.  clock: gives seconds; the tests have their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=10)
    own, figures = parser.parse_known_args(arguments)
    args = gpu_bench.parse(FIGURES + figures)
    args.step = args.step or STEPS
    check_args = gpu_check.parse(['--bin', args.bin, *CHECKS])
    check_args.missing = args.missing
    args.budget = check_args.budget = gpu_check.Budget(60 * own.minutes, clock)
    args.timeout = check_args.timeout = LONGEST * args.budget.seconds
    report = checkpoint = None
    try:
        why = gpu_check.no_gpu(check_args)
        if why:
            hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
            return 'gpu_first_day.py: %s%s' % (why, '' if hidden is None else '; CUDA_VISIBLE_DEVICES is "%s"' % hidden)
        why = gpu_bench.bandwidth(args)
        report = gpu_bench.Report(args.out, 'checks' if why else args.gpu['name'])
        for line in gpu_bench.header(args) if report.is_new and not why else []:
            report.write(line)
        checkpoint = gpu_check.Checkpoint(args.model, why)
        good = first_day(args, check_args, checkpoint, report.write)
        for line in ['## Left out', '', *('- ' + what for what in args.missing or ['nothing']), '']:
            report.write(line)
        print(report.path)
        return not good
    except (OSError, gpu_check.OutOfTime) as e:
        return 'gpu_first_day.py: %s' % e
    except SystemExit:
        if report:
            report.write('Ended by a signal.')
        raise
    finally:
        if checkpoint:
            checkpoint.stop()


if __name__ == '__main__':
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, gpu_check.end)
    sys.stdout.reconfigure(errors='replace')
    sys.exit(main(sys.argv[1:]))
