"""Static analysis of every C file: the compilers' warnings as errors, gcc -fanalyzer, clang-tidy (.clang-tidy), cppcheck (cppcheck.txt).

What is not installed is skipped by name.
"""
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT

FILES = sorted(path.name for path in ROOT.glob('*.c'))
C = ['-std=gnu11', '-pthread', '-c', '-o', '/dev/null']
STRICT = ['-O2', '-Wall', '-Wextra', '-Wconversion', '-Werror']
TOOLS = {
    'gcc': lambda file: ['gcc', *C, *STRICT, file],
    'clang': lambda file: ['clang', *C, *STRICT, file],
    'analyzer': lambda file: ['gcc', *C, '-O1', '-fanalyzer', '-Werror', file],
    'clang-tidy': lambda file: ['clang-tidy', '--quiet', file, '--', *C[:2]],
    'cppcheck': lambda file: ['cppcheck', '-q', '--std=c11', '--enable=warning,portability,performance', '--error-exitcode=1',
                              '--include=/usr/include/cjson/cJSON.h', '--suppressions-list=tests/cppcheck.txt', file],
}
# Registers of vectors look to gcc's analyzer like arrays that nobody filled.
IN_VAIN = {('analyzer', 'cpu_x86.c')}
CASES = [(tool, file) for tool in TOOLS for file in FILES if (tool, file) not in IN_VAIN]


@pytest.fixture(scope='module')
def runs():
    """All of them at once, on all cores."""
    def run(tool, file):
        return subprocess.run(TOOLS[tool](file), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {case: pool.submit(run, *case) for case in CASES if shutil.which(TOOLS[case[0]]('')[0])}


@pytest.mark.parametrize('tool, file', CASES)
def test_clean(runs, tool, file):
    if (tool, file) not in runs:
        pytest.skip(f'{TOOLS[tool]("")[0]} is not installed')
    done = runs[tool, file].result()
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
