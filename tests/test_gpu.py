"""The GPU's side of the program: what nvcc says of the kernels; the command line where there is a GPU (the emulated one)."""
import re

import pytest

from conftest import EMULATED, ROOT, answer, complaint, environment, run


def test_no_kernel_spills():
    """No kernel keeps registers in memory on any chip (build/cuda.ptxas, written beside cuda.o)."""
    report = ROOT / 'build' / 'cuda.ptxas'
    if not report.exists():
        pytest.skip('not compiled by nvcc')
    text = report.read_text()
    assert set(re.findall(r"Compiling entry function '\w+' for 'sm_(\w+)'", text)) == {'80', '90a', '100a', '120a', '121a'}
    functions = re.findall(r'Function properties for (\w+)\n +\d+ bytes stack frame, (.*)', text)
    assert {what for what in functions if what[1] != '0 bytes spill stores, 0 bytes spill loads'} == set()


# ---------------------------------------------------------------------------------------------- which device

CALL = ('--temp', 0, '-n', 3, '--print-ids', 'hello')


def emulated(*args, device='auto', **settings):
    """A run of the program with the emulated GPU: its stdout and stderr, when all went well."""
    done = run(*args, program=EMULATED, env=environment(GEMMA4_DEVICE=device, **settings))
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(), done.stderr.decode()


def test_auto_is_the_gpu(odd):
    """Silently, and with the same tokens as the CPU's."""
    assert emulated('-m', odd, *CALL) == (answer('-m', odd, *CALL), '')


@pytest.mark.parametrize('settings, why', [({'EMU_DEVICES': 0}, 'no GPU ('), ({'EMU_CC': '7.5'}, 'compute capability 7.5')])
def test_no_gpu(odd, settings, why):
    out, err = emulated('-m', odd, *CALL, **settings)
    assert out == answer('-m', odd, *CALL)
    assert why in err and re.fullmatch(r'gemma4: no GPU \(.+\): using the CPU\n', err)
    assert emulated('-m', odd, *CALL, device='cpu', **settings) == (out, '')
    line = complaint(1, '-m', odd, *CALL, program=EMULATED, env=environment(GEMMA4_DEVICE='cuda', **settings))
    assert why in line and '--device cuda: no GPU' in line
