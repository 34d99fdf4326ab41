"""Each set of the CPU's kernels against plain C and its contracts (kernel_sets.c): those of this machine; those for ARM elsewhere under
qemu-user, built by a cross compiler.  What is not there is skipped."""
import functools
import os
import platform
import shutil
import subprocess

import pytest

from conftest import ROOT

FOREIGN = platform.machine() != 'aarch64'
SOURCES = ['tests/kernel_sets.c', 'kernels.c', 'kernels_c.c', 'kernels_x86.c', 'kernels_neon.c']
FLAGS = ['-std=gnu11', '-O2', '-Wall', '-Wextra', '-Wconversion', '-Werror', '-static']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    @functools.cache
    def built(compiler):
        program = tmp_path_factory.mktemp('kernels') / 'kernel_sets'
        subprocess.run([compiler, *FLAGS, '-o', program, *SOURCES, '-lm'], cwd=ROOT, check=True)
        return program

    def run(name, *options):
        compiler, emulator = os.environ.get('CC', 'cc'), []
        if name.startswith('neon') and FOREIGN:
            compiler, emulator = 'aarch64-linux-gnu-gcc', ['qemu-aarch64', *options]
        elif options:
            emulator = ['qemu-x86_64', *options]
        for tool in (compiler, *emulator[:1]):
            if not shutil.which(tool):
                pytest.skip(tool + ' is not installed')
        return subprocess.run([*emulator, built(compiler), name], capture_output=True, text=True)
    return run


@pytest.mark.parametrize('name', ['avx2', 'avx2-vnni', 'avx512', 'amx', 'neon', 'neon-bf16'])
def test_set(run, name):
    done = run(name)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert not done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(not FOREIGN, reason='this machine cannot do less than it can')
@pytest.mark.parametrize('cpu', ['neoverse-n1', 'neoverse-v1'])
def test_arm_built_for_its_own_cpu(tmp_path, cpu):
    """What the compiler may use beside the kernels' instructions must not keep it from inlining."""
    compiler = 'aarch64-linux-gnu-gcc' if FOREIGN else os.environ.get('CC', 'cc')
    if not shutil.which(compiler):
        pytest.skip(compiler + ' is not installed')
    call = [compiler, *FLAGS, '-mcpu=' + cpu, '-c', '-o', tmp_path / 'o', 'kernels_neon.c']
    subprocess.run(call, cwd=ROOT, check=True)


@pytest.mark.parametrize('name, cpu, instead', [
    ('neon', 'cortex-a72', 'c'), ('neon-bf16', 'cortex-a72', 'c'), ('neon-bf16', 'neoverse-n1', 'neon')])
def test_arm_that_lacks_a_set(run, name, cpu, instead):
    """The A72 has no dot products, the N1 no BF16."""
    done = run(name, '-cpu', cpu)
    said = 'this machine has no %s, but %s\n' % (name, instead)
    assert (done.returncode, done.stdout) == (77, said)


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='another kind of machine')
@pytest.mark.parametrize('name, cpu, instead', [
    ('avx2', 'Nehalem', 'c'), ('avx2-vnni', 'Nehalem', 'c'), ('avx2-vnni', 'Haswell', 'avx2'), ('amx', 'Haswell', 'avx2')])
def test_x86_that_lacks_a_set(run, name, cpu, instead):
    """Nehalem has no AVX, Haswell no AVX-VNNI and no AVX-512."""
    done = run(name, '-cpu', cpu)
    said = 'this machine has no %s, but %s\n' % (name, instead)
    assert (done.returncode, done.stdout) == (77, said)
