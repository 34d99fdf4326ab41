"""The GPU's side of the program: what nvcc says of the kernels; the command line where there is a GPU (the emulated one)."""
import json
import re
import subprocess
import sys

import pytest

from conftest import EMULATED, FIXTURES, ROOT, answer, complaint, environment, read_floats, run, write_json


def may_spill(function):
    """The kernels that stream weights have 80 registers, so that two of them fit on a multiprocessor at once. What does not fit is written
    down before the kernel waits for the one ahead, and read after the last product: at most thirty words."""
    return re.search(r'(qkv|row|mlp_rows|experts_up|experts_down)_kernelILi', function) is not None


def test_no_kernel_spills():
    """No kernel keeps registers in memory on any chip, or few that nothing waits for (build/*.ptxas, written
    beside cuda.o and hopper.o).  ptxas lets no wgmma wait for the one before, as it does where it cannot
    follow their registers."""
    reports = [ROOT / 'build' / 'cuda.ptxas', ROOT / 'build' / 'hopper.ptxas']
    if not all(report.exists() for report in reports):
        pytest.skip('not compiled by nvcc')
    chips, spills, text = [], [], ''.join(report.read_text() for report in reports)
    for what, name in re.findall(r"(for 'sm_|Function properties for |stack frame, )([^'\n]+)", text):
        if what == "for 'sm_":
            chips.append(name)
        elif what == 'stack frame, ' and int(name.split()[0]) > (128 if may_spill(function) else 0):
            spills.append((function, chips[-1], name))
        else:
            function = name
    assert set(chips) == {'80', '90', '90a', '100', '110', '120'}
    assert spills == []
    assert 'Potential Performance Loss' not in text


# ---------------------------------------------------------------------------------------------- which device

CALL = ('--temp', 0, '-n', 3, '--print-ids', 'hello')


def emulated(*args, device='auto', **settings):
    """A run of the program with the emulated GPU: its stdout and stderr, when all went well."""
    done = run(*args, program=EMULATED, env=environment(GEMMA4_DEVICE=device, **settings))
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(), done.stderr.decode()


def test_auto_is_the_gpu(odd):
    """Silently, and with the same tokens as the CPU's, also where steps of one token are repeated."""
    call = ('-m', odd, '-p', 'hello', '--exact', '--temp', 0, '-n', 12, '--ignore-eos', '--print-ids')
    assert emulated(*call) == (answer(*call), '')


def test_drafter(odd):
    """On the GPU too, with the tokens of the CPU without one."""
    call = ('-m', odd, '-p', 'hello', '--exact', '--temp', 0, '-n', 8, '--ignore-eos', '--print-ids')
    assert emulated(*call, '--draft', ROOT / 'tests/fixtures/odd-assistant') == (answer(*call), '')


@pytest.mark.parametrize('settings, why', [({'EMU_DEVICES': 0}, 'no GPU ('), ({'EMU_CC': '7.5'}, 'compute capability 7.5')])
def test_no_gpu(odd, settings, why):
    out, err = emulated('-m', odd, *CALL, **settings)
    assert out == answer('-m', odd, *CALL)
    assert why in err and re.fullmatch(r'gemma4: no GPU \(.+\): using the CPU\n', err)
    assert emulated('-m', odd, *CALL, device='cpu', **settings) == (out, '')
    line = complaint(1, '-m', odd, *CALL, program=EMULATED, env=environment(GEMMA4_DEVICE='cuda', **settings))
    assert why in line and '--device cuda: no GPU' in line


# ---------------------------------------------------------------------------------------------- memory

def gpu_info(*args, **settings):
    return json.loads(emulated('info', '--json', *args, **settings)[0])['gpu']


def memory_for(gpu, *parts):
    """EMU_MEMORY with which just these parts fit: a fiftieth is not given away."""
    return -(-sum(gpu[part] for part in parts) * 50 // 49) + 50


def test_info_says_what_the_gpu_holds(odd):
    gpu = gpu_info('-m', odd)
    assert gpu['name'] == 'emulated GPU' and gpu['total'] == 8 << 30 and 0.97 < gpu['free'] / gpu['total'] < 0.99
    # All matrices but the picture tower's; the embedding is the most of it.
    size = (odd / 'model.safetensors').stat().st_size
    assert 0.7 * size < gpu['weights'] < 1.2 * size
    assert gpu['activations'] > gpu_info('-m', odd, '--chunk', 8)['activations'] > 0
    context = json.loads(emulated('info', '--json', '-m', odd)[0])['context_bytes']
    assert context < gpu['cache'] < 1.2 * context           # and two copies of the rings
    short = gpu_info('-m', odd, '-c', 10)
    assert short['cache'] == json.loads(answer('info', '--json', '-m', odd, '-c', 10))['context_bytes']
    assert gpu_info('-m', odd, EMU_MEMORY=1 << 30)['total'] == 1 << 30
    assert re.search(r'^GPU +emulated GPU: weights 0\.\d+ GB', emulated('info', '-m', odd)[0], re.M)
    assert 'gpu' not in json.loads(answer('info', '--json', '-m', odd)) and 'GPU' not in answer('info', '-m', odd)
    assert emulated('info', '-m', odd, EMU_DEVICES=0) == (answer('info', '-m', odd), '')
    assert '--device cuda' in complaint(1, 'info', '-m', odd, '--device', 'cuda', program=EMULATED, env=environment(EMU_DEVICES=0))


def test_free_memory_that_holds_files(odd):
    """Where the GPU shares the machine's memory, the page cache is free to take."""
    with open('/proc/meminfo') as f:
        available = 1024 * int(re.search(r'MemAvailable: +(\d+)', f.read())[1])
    free = gpu_info('-m', odd, EMU_FILES=1 << 30, EMU_MEMORY=(1 << 30) + (1 << 20))['free']
    assert free > min(available, 1 << 30) / 2


def test_stats_say_what_the_gpu_holds(odd):
    gpu = gpu_info('-m', odd)
    held = (gpu['weights'] + gpu['activations'] + gpu['cache']) * 1e-9
    err = emulated('-m', odd, *CALL, '--stats')[1]
    assert re.fullmatch(r'prompt: .* GPU memory %.2f GB\n' % held, err)


def test_weights_that_do_not_fit(odd):
    small = {'EMU_MEMORY': memory_for(gpu_info('-m', odd), 'weights') - 1000}
    out, err = emulated('-m', odd, *CALL, **small)
    assert out == answer('-m', odd, *CALL)
    assert re.fullmatch(r'gemma4: the GPU has \d\.\d\d GB free: the weights, \d\.\d\d GB, do not fit: using the CPU\n', err)
    line = complaint(1, '-m', odd, *CALL, '--device', 'cuda', program=EMULATED, env=environment(**small))
    assert line == err.replace('gemma4: ', 'gemma4: --device cuda: ').replace(': using the CPU', '')


def test_context_that_does_not_fit(odd):
    """The line names the longest context that does."""
    small = {'EMU_MEMORY': memory_for(gpu_info('-m', odd, '-c', 1000), 'weights', 'activations', 'cache')}
    err = emulated('-m', odd, *CALL, **small)[1]
    assert '(context 4096)' in err
    fits = re.search(r'-c (\d+) would fit, or --kv fp8 with -c (\d+)', err)
    n, n_fp8 = map(int, fits.groups())
    assert 1000 <= n < 1010 and n < n_fp8 <= 3 * n
    gpu = ('-m', odd, '--device', 'cuda', '-c')
    assert emulated(*gpu, n, *CALL, **small) == (answer('-m', odd, *CALL), '')
    assert emulated(*gpu, n_fp8, '--kv', 'fp8', *CALL, **small)[1] == ''
    assert '-c %d would fit' % n in complaint(1, *gpu, n + 1, *CALL, program=EMULATED, env=environment(**small))
    assert 'fp8' not in complaint(1, *gpu, n_fp8 + 1, '--kv', 'fp8', *CALL, program=EMULATED, env=environment(**small))


def test_activations_that_do_not_fit(odd):
    small = {'EMU_MEMORY': memory_for(gpu_info('-m', odd), 'weights') + 1000}
    assert '--chunk' in complaint(1, '-m', odd, *CALL, '--device', 'cuda', program=EMULATED, env=environment(**small))


def test_pictures_and_no_room_for_them(tmp_path):
    """The tower comes to the GPU with the first picture; without room for it, the CPU looks."""
    seeing, request = FIXTURES / 'images' / 'seeing', tmp_path / 'request'
    url = str(FIXTURES / 'images' / 'rgb.bmp')
    write_json(request, {'messages': [{'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': url}}]}]})
    tight = {'EMU_MEMORY': memory_for(gpu_info('-m', seeing), 'weights', 'activations', 'cache') + 1000}

    def logits(out, see=answer, **settings):
        see('score', '-m', seeing, '--image-tokens', 70, '--request', request, '--top', 0, '--logits', tmp_path / out, **settings)
        return read_floats(tmp_path / out)

    cpu, gpu, blind = logits('cpu'), logits('gpu', emulated), logits('blind', emulated, **tight)
    assert gpu != blind
    most = 2e-2 * (max(cpu) - min(cpu))
    assert all(abs(a - c) < most and abs(b - c) < most for a, b, c in zip(gpu, blind, cpu, strict=True))


# ---------------------------------------------------------------------------------------------- the first day with a GPU

def gpu_check(tmp_path, step, **settings):
    """What a step of gpu_check.py says on the emulated GPU."""
    (tmp_path / 'gemma4').symlink_to(EMULATED)
    done = subprocess.run([sys.executable, ROOT / 'tests' / 'gpu_check.py', '--bin', tmp_path, step],
                          env=environment(GEMMA4_DEVICE='cuda', **settings), capture_output=True, text=True, timeout=600)
    (tmp_path / 'gemma4').unlink()
    return done.stdout + done.stderr


def test_switches_change_no_bit(tmp_path):
    """What `make gpu-first-day` begins with, on the emulated GPU: graphs and overlapping kernels change no bit of the logits."""
    assert gpu_check(tmp_path, 'switches').endswith('\n32 passed, 0 failed\n')


def test_unknown_switch():
    odd = FIXTURES / 'odd-bf16'
    line = complaint(1, '-m', odd, *CALL, program=EMULATED, env=environment(GEMMA4_DEVICE='cuda', GEMMA4_CUDA='no-graph,fast'))
    assert 'GEMMA4_CUDA: "fast" is not one of no-graph, no-overlap, sync, no-wgmma, wgmma' in line


# ---------------------------------------------------------------------------------------------- H100, H200

def kernels(only, **settings):
    """Operations of the emulated GPU that fail against the CPU's; how many there were."""
    done = subprocess.run([ROOT / 'build' / 'tests' / 'test_kernels', only], env=environment(**settings),
                          capture_output=True, text=True, timeout=600)
    found = re.findall(r'^\[ +(OK|FAILED) +\] .*[^:]$', done.stdout + done.stderr, re.M)
    assert (done.returncode == 0) == ('FAILED' not in found), done.stdout + done.stderr
    return found.count('FAILED'), len(found)


@pytest.mark.parametrize('switches', ['wgmma', 'no-wgmma', ''])
def test_kernels_of_hopper(switches):
    """With wgmma (hopper.cu), without it, and as the number of tokens decides."""
    assert kernels('*many t*', EMU_CC='9.0', GEMMA4_CUDA=switches) == (0, 10)


def test_wgmma_is_for_hopper():
    odd = FIXTURES / 'odd-bf16'
    def refusal(switches, chip):
        settings = environment(GEMMA4_DEVICE='cuda', GEMMA4_CUDA=switches, EMU_CC=chip)
        return complaint(1, '-m', odd, *CALL, program=EMULATED, env=settings)
    for chip in '8.0', '10.0', '12.0':
        assert 'wgmma needs compute capability 9.0, this GPU has %s\n' % chip in refusal('wgmma', chip)
    assert 'GEMMA4_CUDA: wgmma and no-wgmma\n' in refusal('no-wgmma,wgmma', '9.0')


def test_wgmma_gives_the_same_logits(tmp_path):
    """What `make gpu-first-day` compares on a GPU that has it, on the emulated one."""
    assert gpu_check(tmp_path, 'wgmma', EMU_CC='9.0').endswith('\n8 passed, 0 failed\n')
    assert 'wgmma needs compute capability 9.0' in gpu_check(tmp_path, 'wgmma', EMU_CC='8.0')
