#!/usr/bin/env python3
"""The first ten minutes on a GPU: is the program right there, then how fast is it?  All of it goes into bench/DATE-GPU.md.

usage: gpu_first_day.py [--bin DIR] [--model DIR] [--out DIR] [OPTION... STEP...]         (`make gpu-first-day`)
  --bin DIR    the programs, built by `make gpu` (build/gpu); they and this repository are all that is needed, and numpy
  --model DIR  the checkpoint of full size; made there with random weights, 18.8 GB, if there is none (build/full)
  --out DIR    where the file goes (bench)
  OPTION, STEP what gpu_bench.py shall measure instead, and how

Right first (tests/gpu_check.py): every operation, what GEMMA4_CUDA leaves out, the tiny checkpoints, compute-sanitizer.  Then, whatever
came out, decode, prefill and the kernels one by one (gpu_bench.py; its step `split`, GPUs of 8 and 12 GB, would take longer than ten
minutes).  Where nothing can be measured, the checks go into bench/DATE-checks.md.
"""
import argparse
import datetime
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHECKS = ['--timeout', '60', '--sanitized', 'odd-experts', 'kernels', 'switches', 'wgmma', 'model', 'sanitizer']
FIGURES = ['--contexts', '0,25000', '--prompts', '16,512,2048,8192', '--repeat', '1', '--timeout', '120', 'decode', 'prefill', 'kernels']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bin', default=os.path.join(ROOT, 'build', 'gpu'))
    parser.add_argument('--model', default=os.path.join(ROOT, 'build', 'full'))
    parser.add_argument('--out', default=os.path.join(ROOT, 'bench'))
    args, figures = parser.parse_known_args()
    check = [sys.executable, os.path.join(ROOT, 'tests', 'gpu_check.py'), '--bin', args.bin, *CHECKS]
    checked = subprocess.run(check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(checked.stdout, flush=True)
    before = {n: os.path.getmtime(os.path.join(args.out, n)) for n in os.listdir(args.out)}
    started = time.time()
    bench = [sys.executable, os.path.join(ROOT, 'bench', 'gpu_bench.py'), '--bin', args.bin, '--model', args.model, '--out', args.out,
             *(figures or FIGURES)]
    measured = subprocess.run(bench)
    written = [n for n in os.listdir(args.out) if n.endswith('.md') and os.path.getmtime(os.path.join(args.out, n)) > before.get(n, 0)]
    for name in written or ['%s-checks.md' % datetime.date.today().isoformat()]:
        with open(os.path.join(args.out, name), 'a') as f:
            f.write('## Checks\n\n    tests/gpu_check.py %s\n\n%s\n' % (' '.join(CHECKS), ''.join('    %s\n' % l for l in checked.stdout.splitlines())))
        print('%s, %.0f s for the figures' % (name, time.time() - started))
    sys.exit(checked.returncode or measured.returncode)


if __name__ == '__main__':
    main()
