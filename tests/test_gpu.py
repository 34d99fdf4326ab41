"""The GPU's side of the program: what nvcc says of the kernels."""
import re

import pytest

from conftest import ROOT


def test_no_kernel_spills():
    """No kernel keeps registers in memory on any chip (build/cuda.ptxas, written beside cuda.o)."""
    report = ROOT / 'build' / 'cuda.ptxas'
    if not report.exists():
        pytest.skip('not compiled by nvcc')
    text = report.read_text()
    assert set(re.findall(r"Compiling entry function '\w+' for 'sm_(\w+)'", text)) == {'80', '90a', '100a', '120a', '121a'}
    functions = re.findall(r'Function properties for (\w+)\n +\d+ bytes stack frame, (.*)', text)
    assert {what for what in functions if what[1] != '0 bytes spill stores, 0 bytes spill loads'} == set()
