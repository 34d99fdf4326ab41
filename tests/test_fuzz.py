"""Each fuzzer of tests/fuzz for 20 seconds (GEMMA4_FUZZ: as many as it says), all cores at once; skipped without clang's libFuzzer."""
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT

SECONDS = os.environ.get('GEMMA4_FUZZ', '20')
NAMES = sorted(path.stem for path in (ROOT / 'tests' / 'fuzz').glob('fuzz_*.c'))


def has_fuzzer():
    try:
        return not subprocess.run(['clang', '-fsanitize=fuzzer,address', '-x', 'c', '-', '-o', '/dev/null'], capture_output=True,
                                  input=b'int LLVMFuzzerTestOneInput(const char *p, long n) { return p && n < 0; }').returncode
    except FileNotFoundError:
        return False


@pytest.fixture(scope='module')
def fuzzed():
    if not has_fuzzer():
        pytest.skip('clang with libFuzzer is not installed')
    subprocess.run(['make', '-s', '-j%d' % os.cpu_count(), 'fuzz'], cwd=ROOT, check=True, capture_output=True)

    def run(name):
        return subprocess.run([sys.executable, 'tests/fuzz/run.py', SECONDS, 'build/' + name], cwd=ROOT, capture_output=True,
                              env=dict(os.environ, GEMMA4_FUZZ_SEED='1'))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(run, name) for name in NAMES}


@pytest.mark.parametrize('name', NAMES)
def test_finds_nothing(fuzzed, name):
    done = fuzzed[name].result()
    assert not done.returncode, (done.stdout + done.stderr).decode(errors='replace')[-3000:]
