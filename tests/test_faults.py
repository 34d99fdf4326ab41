"""What goes wrong around the program: signals at every stage, terminals that vanish, inputs without end, a home that cannot be
written. (Streams that are closed early, full disks and closed standard files are in test_cli.py.)"""
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import termios

import pexpect
import pytest

from conftest import ANSWER, ENDLESS, GEMMA4, PATIENCE, complaint, environment, make_puppet, read_line, run, write_ids, write_json
from test_jsonl import ask, content
from test_repl import PROMPT, Chat, assistant, chat, user  # noqa: F401 (fixture)
from test_tools import ADD, DONE, caller, folder, tools  # noqa: F401 (fixtures)

SIGNALS = [pytest.param(s, 128 + s, id=s.name) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def patience():
    """What waits for ever fails; and SIGHUP counts even where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGALRM, lambda *_: pytest.fail('nothing happens'))
    signal.alarm(2 * PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGHUP, before[0])
    signal.signal(signal.SIGALRM, before[1])


# ---------------------------------------------------------------------------------------------- signals

def ended(p):
    """The status and stderr of a program that was started with pipes; what it still writes is read."""
    out, err = p.communicate(timeout=PATIENCE)
    return p.returncode, err


@pytest.mark.parametrize('number, status', SIGNALS)
@pytest.mark.parametrize('options', [(), ('--jsonl',)], ids=str)
def test_while_loading(start, puppet, tmp_path, number, status, options):
    """The model is open, the schema does not come."""
    os.mkfifo(tmp_path / 'schema')
    p = start('-m', puppet, '--json-schema', tmp_path / 'schema', *(options or ['hello']), stdin=subprocess.DEVNULL)
    with open(tmp_path / 'schema', 'wb'):       # returns when the program has opened it
        p.send_signal(number)
        assert ended(p) == (status, b'')


@pytest.mark.parametrize('milliseconds', range(1, 60, 6))
def test_at_any_moment(chatterbox, milliseconds):
    """From before main to the answer: nothing on stderr, and of the answer only its beginning."""
    done = subprocess.run(['timeout', '--preserve-status', '%.3f' % (milliseconds / 1000), GEMMA4, '-m', chatterbox, 'hello', *map(str, ENDLESS)],
                          stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b'')
    assert done.stdout.decode() == ('The command is one,' * len(done.stdout))[:len(done.stdout)]


@pytest.mark.parametrize('number, status', SIGNALS)
def test_in_the_prefill(chatterbox, tmp_path, number, status):
    file = write_ids(tmp_path / 'ids', [5] * 300000)
    child = pexpect.spawn(GEMMA4, ['-m', str(chatterbox), '--ids', str(file), '-c', '1000000'], env=environment(), encoding='utf-8', timeout=PATIENCE)
    child.expect('reading the prompt')
    child.kill(number)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == status


@pytest.mark.parametrize('number, status', SIGNALS)
def test_in_the_answer(start, chatterbox, number, status):
    p = start('-m', chatterbox, 'hello', *ENDLESS, stdin=subprocess.DEVNULL)
    assert p.stdout.read(1) == b'T'
    p.send_signal(number)
    assert ended(p) == (status, b'')


@pytest.mark.parametrize('number, status', SIGNALS)
@pytest.mark.parametrize('inside', [False, True])
def test_among_requests(start, chatterbox, number, status, inside):
    p = start('-m', chatterbox, '--jsonl', *ENDLESS)
    p.stdin.write(json.dumps(ask(max_tokens=3)).encode() + b'\n')
    assert content(json.loads(read_line(p.stdout))) == 'The command is'
    if inside:
        p.stdin.write(json.dumps(ask(stream=True)).encode() + b'\n')
        read_line(p.stdout)
    p.send_signal(number)
    assert ended(p) == (status, b'')


@pytest.fixture(scope='module')
def thinker(tmp_path_factory):
    """A model whose thought does not end."""
    return make_puppet(tmp_path_factory.mktemp('puppet') / 'thinks', [['\n', '<|channel>', 't', 'ho', 'u', 'g', 'h', '<0x74>', '<0x0A>', 'you', '▁a', 'you']])


def test_thought_leaves_no_dimmed_terminal(thinker):
    child = pexpect.spawn(GEMMA4, ['-m', str(thinker), '--think', 'hello', *map(str, ENDLESS)], env=environment(), encoding='utf-8', timeout=PATIENCE)
    child.expect_exact('\x1b[2myou a')
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    child.close()
    assert child.before.rstrip().endswith('\x1b[0m') and child.exitstatus == 128 + signal.SIGTERM


def read_until(fd, text):
    """Reads from a terminal until the text has come."""
    shown = b''
    while text not in shown:
        shown += os.read(fd, 1000)
    return shown


def ends_plain(p, main, side):
    """SIGTERM ends the program p, which leaves the terminal with plain text."""
    p.send_signal(signal.SIGTERM)
    assert p.wait(PATIENCE) == 128 + signal.SIGTERM
    read_until(main, b'\x1b[0m')
    os.close(main)
    os.close(side)


def test_thought_in_the_chat_leaves_no_dimmed_terminal(start, thinker, tmp_path):
    """There it is dimmed on stdout; stderr may be somewhere else."""
    main, side = pty.openpty()
    p = start('-m', thinker, '--think', *ENDLESS, stdin=side, stdout=side, env=environment(HOME=tmp_path))
    read_until(main, b'> ')
    os.write(main, b'hello\r')
    read_until(main, b'\x1b[2myou a')
    ends_plain(p, main, side)


# ---------------------------------------------------------------------------------------------- signals while a tool runs

@pytest.fixture
def sleeper(folder, tmp_path):
    """Makes the tool one that waits with a child of its own, and opens a pipe that both hold: its end is theirs."""
    os.mkfifo(tmp_path / 'alive')
    (folder / 'add').write_text('#!/bin/sh\ntrap "" TERM INT HUP\nexec 9> "%s/alive"\nsleep 1000 &\necho ready >&9\nsleep 1000\n' % tmp_path)
    fd = os.open(tmp_path / 'alive', os.O_RDONLY | os.O_NONBLOCK)
    yield fd
    os.close(fd)


def wait_until_ready(fd):
    assert select.select([fd], [], [], PATIENCE)[0] and os.read(fd, 100) == b'ready\n'


def all_are_gone(fd):
    """The pipe ends when nobody holds it."""
    return bool(select.select([fd], [], [], PATIENCE)[0]) and os.read(fd, 100) == b''


@pytest.mark.parametrize('number, status', SIGNALS + [pytest.param(signal.SIGKILL, -signal.SIGKILL, id='SIGKILL')])
def test_tool_goes_with_the_program(start, caller, tools, folder, sleeper, number, status):
    if number == signal.SIGKILL:                # leaves no time to end the tool's own children
        (folder / 'add').write_text((folder / 'add').read_text().replace('sleep 1000 &\n', '').replace('\nsleep', '\nexec sleep'))
    p = start('-m', caller, '--tools', tools, '--run-tools', folder, '--yes', 'hello', stdin=subprocess.DEVNULL)
    wait_until_ready(sleeper)
    p.send_signal(number)
    assert ended(p) == (status, b'[add {"x":1}]\n')
    assert all_are_gone(sleeper)


@pytest.mark.parametrize('number, status', SIGNALS[1:])
def test_tool_goes_with_the_chat(chat, caller, tools, folder, sleeper, number, status):
    c = chat(caller, '--tools', tools, '--run-tools', folder, '--yes')
    c.child.sendline('hello')
    wait_until_ready(sleeper)
    c.child.kill(number)
    assert c.end() == status
    assert all_are_gone(sleeper)


def test_control_c_ends_the_tool_and_not_the_chat(chat, caller, tools, folder, sleeper):
    c = chat(caller, '--tools', tools, '--run-tools', folder, '--yes')
    c.child.sendline('hello')
    wait_until_ready(sleeper)
    c.child.sendintr()
    c.child.expect_exact('(stopped)')
    c.child.expect(PROMPT)
    assert all_are_gone(sleeper)
    assert c.messages()[-1]['content'].startswith('error: interrupted')


def test_control_c_at_the_question_whether_to_run(chat, caller, tools, folder, tmp_path):
    c = chat(caller, '--tools', tools, '--run-tools', folder)
    c.child.sendline('hello')
    c.child.expect_exact('[y/N] ')
    c.child.sendintr()
    c.child.expect_exact('(stopped)')
    c.child.expect(PROMPT)
    assert not (tmp_path / 'given').exists()


# ---------------------------------------------------------------------------------------------- the terminal

@pytest.mark.parametrize('number, status', SIGNALS[1:])
def test_terminal_is_left_as_it_was(start, tmp_path, puppet, number, status):
    main, side = pty.openpty()
    before = termios.tcgetattr(side)
    p = start('-m', puppet, stdin=side, stdout=side, stderr=side, env=environment(HOME=tmp_path))
    read_until(main, b'\n> ')
    while termios.tcgetattr(side) == before:    # libedit changes it right behind the prompt
        pass
    p.send_signal(number)
    assert p.wait(PATIENCE) == status
    assert termios.tcgetattr(side) == before
    assert b'\x1b[?2004l' in os.read(main, 1000)
    os.close(main)
    os.close(side)


def without_terminal(child):
    """Closes the child's terminal, and returns how the child ended."""
    os.close(child.child_fd)
    child.ptyproc.closed = child.closed = True
    child.child_fd = child.ptyproc.fd = -1
    _, status = os.waitpid(child.pid, 0)
    child.terminated = True
    return status


def test_answer_is_saved_when_the_terminal_vanishes(chatterbox, tmp_path):
    args = ['-m', str(chatterbox), '--save', str(tmp_path / 'talk.json'), *map(str, ENDLESS), 'hello']
    child = pexpect.spawn(GEMMA4, args, env=environment(HOME=tmp_path), encoding='utf-8', timeout=PATIENCE)
    child.expect_exact('The command is one,The')
    status = without_terminal(child)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + signal.SIGHUP
    assert json.loads((tmp_path / 'talk.json').read_text())['messages'][-1]['content'].startswith('The command is one,The')


@pytest.mark.parametrize('stage', ['prompt', 'answer', 'tool'])
@pytest.mark.parametrize('ignored', [False, True], ids=['', 'nohup'])
def test_terminal_that_vanishes(chatterbox, caller, tools, folder, sleeper, tmp_path, stage, ignored):
    """The program ends, with SIGHUP or, where that is ignored, because nothing can be read or written any more."""
    if ignored and stage == 'tool':
        pytest.skip('then the tool has its 60 seconds')
    args = ['-m', str(chatterbox), *map(str, ENDLESS)] if stage != 'tool' else ['-m', str(caller), '--tools', str(tools), '--run-tools', str(folder), '--yes']
    child = pexpect.spawn(GEMMA4, args, env=environment(HOME=tmp_path), encoding='utf-8', timeout=PATIENCE, ignore_sighup=ignored)
    child.expect(PROMPT)
    child.sendline('hello' if stage != 'prompt' else '/think off')
    if stage == 'answer':
        child.expect_exact('The command is one,The')
    elif stage == 'tool':
        wait_until_ready(sleeper)
    else:
        child.expect(PROMPT)
    status = without_terminal(child)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) in ((0, 1) if ignored else (128 + signal.SIGHUP,))
    assert stage != 'tool' or all_are_gone(sleeper)


def test_signal_from_elsewhere_at_the_prompt(chat, puppet):
    """SIGINT that no key made: the program stays, and so does what is asked afterwards."""
    c = chat(puppet)
    c.child.kill(signal.SIGINT)
    c.child.expect(PROMPT)
    assert c.say('hello') == ANSWER


def test_answer_leaves_no_styled_terminal(start, chatterbox):
    """Markdown may have begun a style when the signal comes."""
    main, side = pty.openpty()
    p = start('-m', chatterbox, 'hello', *ENDLESS, stdin=subprocess.DEVNULL, stdout=side)
    read_until(main, b'The command is one,The')
    ends_plain(p, main, side)


def test_pastes_are_bracketed_again_after_a_stop(chat, puppet):
    """A shell that was in between has switched that off."""
    c = chat(puppet)
    assert c.say('hello') == ANSWER
    c.child.kill(signal.SIGSTOP)
    c.child.kill(signal.SIGCONT)
    c.child.expect_exact('\x1b[?2004h')


# ---------------------------------------------------------------------------------------------- the history

@pytest.mark.parametrize('what', ['directory', 'pipe', '/dev/full', '/dev/null', 'read-only'])
def test_history_that_cannot_be_written(chat, puppet, tmp_path, what):
    """No failure; and what is no plain file, or what a link to it names, is neither read nor changed."""
    home = tmp_path / 'home'
    home.mkdir()
    file = home / '.gemma4_history'
    if what == 'directory':
        file.mkdir()
    elif what == 'pipe':
        os.mkfifo(file, 0o644)
    elif what == 'read-only':                   # root writes there all the same
        home.chmod(0o500)
    else:
        file.symlink_to(what)
    mode = os.stat(home if what == 'read-only' else file).st_mode
    c = chat(puppet, env={'HOME': str(home)})
    assert c.say('hello') == ANSWER
    c.child.sendeof()
    assert c.end() == 0
    assert os.stat(home if what == 'read-only' else file).st_mode == mode
    home.chmod(0o700)


def test_history_survives_a_kill(chat, puppet, tmp_path):
    c = chat(puppet)
    c.say('herring?')
    c.child.kill(signal.SIGKILL)
    c.end()
    file = tmp_path / '.gemma4_history'
    assert 'herring?' in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600


# ---------------------------------------------------------------------------------------------- stdin

def test_binary_stdin(puppet):
    """A question of any characters but NUL is a question, bytes that are no text are refused; a line that is no JSON is an error in its
    place."""
    noise = bytes(range(1, 256)) * 20
    assert run('-m', puppet, stdin=bytes(range(1, 128)) * 20).stdout.decode() == ANSWER + '\n'
    assert 'stdin' in complaint(1, '-m', puppet, stdin=noise)
    assert run('-m', puppet, '--raw', '-n', 1, stdin=noise).returncode == 0
    done = run('-m', puppet, '--jsonl', stdin=noise.replace(b'\n', b'') + b'\0\n' + json.dumps(ask()).encode() + b'\n\0\n')
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, done.stderr) == (1, b'') and content(second) == ANSWER
    assert [x['error']['line'] for x in (first, third)] == [1, 3]
    for call in (['render'], ['tokenize', '--decode'], ['--ids', '/dev/stdin']):
        complaint(1, *call, '-m', puppet, stdin=noise)


def test_closed_stdin(puppet):
    for call, out in (['--jsonl'], b''), (['tokenize'], b'\n'):
        done = subprocess.run(['sh', '-c', '"$0" "$@" <&-', GEMMA4, *call, '-m', puppet], capture_output=True, env=environment(), timeout=PATIENCE)
        assert (done.returncode, done.stdout, done.stderr) == (0, out, b'')
    done = subprocess.run(['sh', '-c', '"$0" --jsonl -m "$1" </', GEMMA4, puppet], capture_output=True, env=environment(), timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (1, b'', b'gemma4: stdin: Is a directory\n')


MEASURE = """import os, sys
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[2], sys.argv[2:]), 0)
open(sys.argv[1], 'w').write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))"""


@pytest.fixture
def measured(start, tmp_path):
    """As `start`; peak() of the Popen waits for the end, and returns the program's peak memory in MB. A child's peak begins with that of its
    parent, which is large where pytest has read a real vocabulary: so a small process stands between the two."""
    def begin(*args, **kwargs):
        p = start(*args, before=(sys.executable, '-c', MEASURE, tmp_path / 'peak'), **kwargs)
        p.peak = lambda: p.wait(PATIENCE) is not None and int((tmp_path / 'peak').read_text()) / 1024
        return p
    return begin


@pytest.mark.parametrize('call', [[], ['--raw'], ['tokenize'], ['render']], ids=' '.join)
@pytest.mark.parametrize('source', [['yes'], ['cat', '/dev/zero']], ids=' '.join)
def test_endless_stdin(measured, puppet, call, source):
    endless = subprocess.Popen(source, stdout=subprocess.PIPE)
    p = measured(*call, '-m', puppet, stdin=endless.stdout)
    endless.stdout.close()
    out, err = p.stdout.read(), p.stderr.read()
    assert p.peak() < 250
    endless.wait(PATIENCE)                      # it ends as well, for nobody reads
    assert (p.returncode, out, err) == (1, b'', b'gemma4: stdin: more than 64 MB\n')


@pytest.mark.parametrize('option', ['--tools', '--json-schema', '--ids', '-i'])
def test_endless_file(puppet, option):
    said = complaint(1, '-m', puppet, option, '/dev/zero', *(['hello'] if option != '--ids' else []))
    assert said.startswith('gemma4: ') and '/dev/zero' in said


def test_endless_file_in_the_chat(chat, puppet):
    c = chat(puppet)
    assert c.say('/read /dev/zero') == 'gemma4: /dev/zero: more than 64 MB'
    assert c.say('hello') == ANSWER


def test_endless_line_of_json(measured, puppet):
    """An error in its place at once; the rest of the line is passed over, and the next request is answered."""
    p = measured('-m', puppet, '--jsonl')
    for _ in range(66):
        p.stdin.write(b'[' * MEGABYTE)
    error = json.loads(read_line(p.stdout))['error']
    assert '64 MB' in error['message'] and error['line'] == 1
    for _ in range(100):
        p.stdin.write(b'[' * MEGABYTE)
    p.stdin.write(b'\n' + json.dumps(ask()).encode() + b'\n')
    assert content(json.loads(read_line(p.stdout))) == ANSWER
    p.stdin.close()
    p.stdin = None
    assert p.peak() < 250 and p.returncode == 1


def test_too_many_values_of_json(measured, puppet):
    """A tree of them would take forty times as much memory as the line."""
    p = measured('-m', puppet, '--jsonl')
    p.stdin.write(b'{"x": [%s]}\n' % (b'0,' * (20 * MEGABYTE) + b'0'))
    assert read_line(p.stdout) == b'{"error": {"message": "JSON of more than 1000000 values", "type": "invalid_request_error", "line": 1}}\n'
    p.stdin.write(json.dumps(ask(metadata=[0, '[' * 1200000])).encode() + b'\n')
    assert content(json.loads(read_line(p.stdout))) == ANSWER
    p.stdin.close()
    p.stdin = None
    assert p.peak() < 250 and p.returncode == 1


def test_endless_lines_that_are_no_json(measured, puppet):
    """An error for each as long as somebody reads them."""
    endless = subprocess.Popen(['yes'], stdout=subprocess.PIPE)
    p = measured('-m', puppet, '--jsonl', stdin=endless.stdout)
    endless.stdout.close()
    for line in range(1, 2000):
        assert json.loads(read_line(p.stdout))['error']['line'] == line
    p.stdout.close()
    assert p.peak() < 250 and p.returncode == 128 + signal.SIGPIPE
    endless.wait(PATIENCE)
