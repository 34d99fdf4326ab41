#!/usr/bin/env python3
"""usage: run.py SECONDS build/fuzz_X…

Runs each fuzzer for so many seconds, on what it has kept in build/corpus/X, the files of tests/fuzz/X, and the seeds that are
made here. Exit status 1 when one has found something: build/corpus/X-crash-… and its like.
"""
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / 'fixtures'
CORPUS = HERE.parent.parent / 'build' / 'corpus'

# By fuzzer: seeds made on the fly, a function that returns a list of bytes.
SEEDS = {}


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
        done = subprocess.run([os.path.abspath(fuzzer), '-max_total_time=' + seconds, '-timeout=10', '-rss_limit_mb=1024',
                               '-artifact_prefix=%s/%s-' % (CORPUS, name), '-verbosity=0', '-print_final_stats=1', corpus, seeds,
                               *own])
        failed += done.returncode != 0
    print('%d of %d found something' % (failed, len(fuzzers)))
    return failed > 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
