"""Static analysis of every C file: the compilers' warnings as errors, gcc -fanalyzer, clang-tidy (.clang-tidy), cppcheck (cppcheck.txt);
and that the files form an order.

What is not installed is skipped by name.
"""
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import GEMMA4, ROOT

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
IN_VAIN = {('analyzer', 'kernels_x86.c')}
CASES = [(tool, file) for tool in TOOLS for file in FILES if (tool, file) not in IN_VAIN]


@pytest.fixture(scope='module')
def linted(request):
    """All that are asked for at once, on all cores."""
    def run(tool, file):
        return subprocess.run(TOOLS[tool](file), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        asked = [tuple(i.callspec.params[name] for name in ('tool', 'file')) for i in request.session.items if 'linted' in i.fixturenames]
        yield {case: pool.submit(run, *case) for case in asked if shutil.which(TOOLS[case[0]]('')[0])}


@pytest.mark.parametrize('tool, file', CASES)
def test_clean(linted, tool, file):
    if (tool, file) not in linted:
        pytest.skip(f'{TOOLS[tool]("")[0]} is not installed')
    done = linted[tool, file].result()
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def test_lines():
    """No line of the program has more than 100 columns."""
    sources = [path for ending in ('c', 'h', 'cu') for path in ROOT.glob('*.' + ending)]
    assert sources
    for path in sources:
        for at, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            assert len(line) <= 100, f'{path.name}:{at}'


def test_conditional_expressions():
    """No line of the program has two conditional expressions."""
    quoted = re.compile(r'//.*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')
    for path in (path for ending in ('c', 'h', 'cu') for path in ROOT.glob('*.' + ending)):
        in_comment = False
        for at, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            line = quoted.sub('""', line)
            code = '' if in_comment else line.split('/*')[0]
            in_comment = in_comment or '/*' in line
            if '*/' in line:
                code, in_comment = line.split('*/')[-1], False
            assert code.count('?') < 2, f'{path.name}:{at}'


def test_hardened():
    """Position independent, nothing writable that the linker fills in, no stack that can be executed, canaries, checked copies."""
    def elf(*what):
        return subprocess.run(['readelf', '-W', *what, GEMMA4], capture_output=True, text=True, check=True).stdout
    headers, dynamic, symbols = elf('-l'), elf('-d'), elf('--dyn-syms')
    assert 'GNU_RELRO' in headers and 'GNU_STACK' in headers and 'RWE' not in headers
    assert 'BIND_NOW' in dynamic and 'PIE' in dynamic
    assert '__stack_chk_fail' in symbols and '_chk@' in symbols


def circles(needs):
    """The groups of files that need each other, directly or by others.  needs: of each file the files that it needs, each with its
    symbols.  One line for each need inside of a group."""
    reached = {file: set(needs[file]) for file in needs}
    while True:                         # what a file needs, what these need, and so on until nothing is added
        more = {file: there.union(*(reached[other] for other in there)) for file, there in reached.items()}
        if more == reached:
            break
        reached = more
    return [f'{a} needs {", ".join(sorted(needs[a][b]))} of {b}, which needs {a}, itself or by others'
            for a in sorted(needs) for b in sorted(needs[a]) if a in reached[b]]


def test_no_circles():
    """The C files form an order: none needs a function or a variable of a file that needs it back, directly or by others.  A call through a
    pointer does not count: the file that sets the pointer stands above."""
    home, wanted = {}, {}
    for file in FILES:
        lines = subprocess.run(['nm', ROOT / 'build' / file.replace('.c', '.o')], capture_output=True, text=True, check=True).stdout
        kinds = [line.split()[-2:] for line in lines.splitlines()]
        home |= {symbol: file for kind, symbol in kinds if kind in 'TDBRVW'}
        wanted[file] = [symbol for kind, symbol in kinds if kind == 'U']
    needs = {file: {} for file in FILES}
    for file, symbols in wanted.items():
        for symbol in symbols:
            if symbol in home:
                needs[file].setdefault(home[symbol], []).append(symbol)
    assert needs['main.c'] and 'kernels.c' in needs['cpu.c']
    assert circles({'a.c': {'b.c': ['f', 'e']}, 'b.c': {'c.c': ['g']}, 'c.c': {'b.c': ['h']}}) == [
        'b.c needs g of c.c, which needs b.c, itself or by others', 'c.c needs h of b.c, which needs c.c, itself or by others']
    found = circles(needs)
    if found:
        pytest.fail('\n'.join(found), pytrace=False)


def test_every_file_is_shown():
    """README's table and the drawing of MODEL.md name every source file, and no other."""
    files = {path.name for path in ROOT.iterdir() if path.suffix in ('.c', '.cu')}
    table = (ROOT / 'README.md').read_text(encoding='utf-8').split('## What is where')[1]
    drawing = (ROOT / 'drawings/program.svg').read_text(encoding='utf-8')
    assert set(re.findall(r'[a-z0-9_]+\.cu?\b', drawing)) == files
    assert files - set(re.findall(r'`([a-z0-9_]+\.cu?)`', table)) == set()


def test_constants_to_tune():
    """CONTRIBUTING's list names constants that exist where it says."""
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8').split('## Constants to tune')[1].split('\n## ')[0]
    rows = [re.findall(r'`([^`]+)`', '|'.join(line.split('|')[1:3])) for line in text.splitlines() if line.startswith('| `')]
    assert len(rows) > 20
    for row in rows:
        sources = ''.join((ROOT / name).read_text(encoding='utf-8') for name in row if '.' in name)
        for name in (name for name in row if '.' not in name):
            assert re.search(rf'(#define |\.){name}\b', sources), row
