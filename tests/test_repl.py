"""The chat prompt under a pseudo-terminal."""
import json
import re
import shlex
import stat

import pexpect
import pytest

from test_tools import DONE, caller, folder, tools  # noqa: F401 (fixtures)
from conftest import ANSWER, ENDLESS, FIXTURES, GEMMA4, PATIENCE, THOUGHT, environment, ids_of, read_json, run, write_ids, write_json

PROMPT = '\r\n> '
COMMANDS = ['/image', '/video', '/help', '/new', '/system', '/think', '/save', '/load', '/stats', '/quit', '/read', '/retry', '/undo', '/clear',
            '/regenerate', '/edit', '/set', '/tools', '/history', '/exit', '/bye', '/?']
CTRL_A, CTRL_R, UP = '\x01', '\x12', '\x1b[A'


class Chat:
    """One run of the program on a terminal of its own; HOME is tmp_path."""

    def __init__(self, home, model, *options, env=None, width=200, program=GEMMA4, **kwargs):
        self.home = home
        self.child = pexpect.spawn(program, ['-m', str(model), *map(str, options)], env=environment(**{'HOME': home, **(env or {})}),
                                   encoding='utf-8', codec_errors='replace', timeout=PATIENCE, dimensions=(24, width), **kwargs)
        self.child.expect(PROMPT)
        self.banner = self.child.before

    def say(self, text):
        """What the program writes between the end of the line that is typed and the next prompt."""
        self.child.sendline(text)
        self.child.expect('\r\n')           # the line as it is echoed
        self.child.expect(r'(?:^|\n)(?:\[\d+ %\] )?> $')
        return self.child.before.replace('\r\n', '\n').strip('\r\n')

    def messages(self):
        """The conversation, as /save writes it."""
        file = self.home / 'conversation.json'
        self.say('/save %s' % file)
        return read_json(file)['messages']

    def end(self):
        """Reads to the end and returns the exit status."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus if self.child.signalstatus is None else -self.child.signalstatus


@pytest.fixture
def chat(tmp_path):
    running = []

    def start(model, *options, **kwargs):
        running.append(Chat(tmp_path, model, *options, **kwargs))
        return running[-1]
    yield start
    for c in running:
        c.child.close(force=True)


def user(text):
    return {'role': 'user', 'content': text}


def assistant(text):
    return {'role': 'assistant', 'content': text}


# ---------------------------------------------------------------------------------------------- talking

def test_banner_question_answer(chat, puppet):
    c = chat(puppet)
    assert '/help' in c.banner and str(puppet) in c.banner
    assert c.say('hello') == ANSWER
    assert c.say('') == ''
    assert c.say('   ') == ''
    assert c.messages() == [user('hello'), assistant(ANSWER)]


def test_answer_streams(chat, chatterbox):
    """The beginning of an answer without end is there while the rest is still being made."""
    c = chat(chatterbox, *ENDLESS)
    c.child.sendline('hello')
    c.child.expect_exact('The command is one,The command is one,')
    c.child.sendintr()
    c.child.expect(PROMPT)


@pytest.mark.parametrize('leave', ['ctrl-d', '/quit', ' /quit', '/exit', '/bye', '/q'])
def test_leaving(chat, puppet, leave):
    c = chat(puppet)
    c.say('hello')
    if leave == 'ctrl-d':
        c.child.sendeof()
    else:
        c.child.sendline(leave.strip())
    assert c.end() == 0


def test_second_turn_reuses_the_cache(chat, odd):
    """The whole first question is reused, and what the second turn answers is what the same conversation in one request gives."""
    options = ('--temp', 0, '-n', 20, '--exact', '--chunk', 5)     # steps so small that the rings have gone on
    c = chat(odd, *options)
    c.say('The old man who counts them writes the number in a book with a blue cover.')
    assert 'reused' not in c.say('/stats')
    c.say('and?')
    line = c.say('/stats')
    prompt, reused = map(int, re.search(r'prompt: (\d+) tokens \((\d+) reused\)', line).groups())
    messages = c.messages()
    first, second = [ids_of('render', '--ids', '-m', odd, stdin=json.dumps({'messages': messages[:n]})) for n in (1, 3)]
    assert prompt == len(second)
    same = next(i for i, (a, b) in enumerate(zip(first, second)) if a != b)
    assert same <= reused < prompt and same > len(first) - 12   # all but the empty thought
    file = write_ids(c.home / 'ids', second)
    want = ids_of('-m', odd, '--ids', file, *options, '--print-ids')
    assert 'answer: %d tokens' % len(want) in line
    assert re.search(r'context: \d+ of 4096', line)


def test_stats_before_anything_was_said(chat, puppet):
    assert 'context: 0 of' in chat(puppet).say('/stats')


def test_stats_after_each_answer_when_asked_for(chat, puppet):
    text = chat(puppet, '--stats').say('hello')
    assert text.startswith(ANSWER) and 'answer: 10 tokens' in text


def test_options(chat, puppet, odd):
    c = chat(puppet, '-n', 2, '-s', 'Be brief.', '--think')
    assert c.say('hello').startswith('(the answer was cut')      # two tokens of a thought, not even its name
    assert c.messages()[0] == {'role': 'system', 'content': 'Be brief.'}
    c = chat(puppet, '-n', 3)
    text = c.say('hello')
    assert text.startswith('The command is') and 'cut' in text


def test_same_seed_same_conversation(chat, odd):
    def talk(*options):
        c = chat(odd, '-n', 30, *options)
        c.say('hello')
        c.say('hello')
        return [m['content'] for m in c.messages()]
    assert talk('--seed', 1) == talk('--seed', 1) != talk('--seed', 2)


def test_context_that_is_full(chat, puppet):
    """An error; the question is not kept, and the prompt stays."""
    c = chat(puppet, '-c', 60)
    assert c.say('hello') == ANSWER
    text = c.say('much too long ' * 12)
    assert 'gemma4: ' in text and '60' in text and '/new' in text
    assert c.messages() == [user('hello'), assistant(ANSWER)]
    c.say('/new')
    assert c.say('hello') == ANSWER


def test_demo_chats(chat, demo):
    c = chat(demo, '--temp', 0)
    assert c.say('Hello!').strip()
    assert c.say('What is 3 + 4?').strip()
    assert [m['role'] for m in c.messages()] == ['user', 'assistant'] * 2
    c.child.sendeof()
    assert c.end() == 0


# ---------------------------------------------------------------------------------------------- commands

def test_help_lists_all_commands(chat, puppet):
    text = chat(puppet).say('/help')
    assert [word for word in COMMANDS if word not in text] == []
    assert '\\' in text and 'Ctrl-C' in text and 'Ctrl-D' in text
    assert max(map(len, text.split('\n'))) < 80
    assert chat(puppet).say('/?') == text


def test_files_of_the_command_line(chat, puppet, tmp_path):
    """-f goes with the first question, and /new forgets it."""
    file = tmp_path / 'one.txt'
    file.write_text('one')
    for before, text in ((), 'hello\n\n%s\n```\none\n```' % file), (('/new',), 'hello'):
        c = chat(puppet, '-f', file)
        for line in (*before, 'hello'):
            c.say(line)
        assert c.messages()[0]['content'] == text


def test_read(chat, puppet, tmp_path):
    c = chat(puppet)
    (tmp_path / 'one.txt').write_text('one\n')
    (tmp_path / 'two.txt').write_text('two')
    c.say('/read %s' % (tmp_path / 'one.txt'))
    assert 'bytes go with the next message' in c.say('/read %s' % (tmp_path / 'two.txt'))
    (tmp_path / 'binary').write_bytes(b'one\0two')
    assert c.say('/read %s' % (tmp_path / 'binary')) == 'gemma4: %s: a NUL byte: a message is text' % (tmp_path / 'binary')
    c.say('hello')
    c.say('again')
    form = '%s/one.txt\n```\none\n```\n\n%s/two.txt\n```\ntwo\n```' % (tmp_path, tmp_path)
    assert c.messages() == [user('hello\n\n' + form), assistant(ANSWER), user('again'), assistant(ANSWER)]


def test_files_at_the_start(chat, puppet, tmp_path):
    """-f: they go with the first question, and with no other."""
    (tmp_path / 'a.txt').write_bytes(b'\xff\xfea\0')
    c = chat(puppet, '-f', tmp_path / 'a.txt')
    assert '(%d bytes go with the next message)' % len('%s/a.txt\n```\na\n```' % tmp_path) in c.banner
    c.say('hello')
    c.say('again')
    assert [m['content'] for m in c.messages()[::2]] == ['hello\n\n%s/a.txt\n```\na\n```' % tmp_path, 'again']


def test_undo_and_retry(chat, odd):
    c = chat(odd, '-n', 20, '--temp', 3, '--seed', 1)
    c.say('first')
    c.say('second')
    before = c.messages()
    c.say('/retry')
    after = c.messages()
    assert after[:3] == before[:3] and after[3] != before[3] and len(after) == 4
    c.say('/undo')
    assert c.messages() == before[:2]
    c.say('/undo')
    assert c.messages() == []
    assert 'nothing to undo' in c.say('/undo') and 'nothing to retry' in c.say('/retry')


def test_pasted_lines_stay_together(chat, puppet):
    c = chat(puppet)
    c.child.send('see \033[200~one\r  two\r\rthree\033[201~ end')
    c.child.send('\r')
    c.child.expect_exact(ANSWER)
    c.child.expect(PROMPT)
    assert c.messages() == [user('see one\n  two\n\nthree end'), assistant(ANSWER)]


def test_completion(chat, puppet, tmp_path):
    c = chat(puppet)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'a file.txt').write_text('text')
    (tmp_path / 'folder' / 'another').write_text('text')
    c.child.send('/un\t')                    # /un -> /undo
    c.child.send('\r')
    c.child.expect_exact('nothing to undo')
    c.child.send('/re\t\t')
    c.child.expect_exact('/read   /regenerate   /retry')
    c.child.send('a\t%s/fold\ta \t\r' % tmp_path)
    c.child.expect_exact(' bytes go with the next message)')


def test_completion_between_the_bytes_of_a_character(chat, puppet, tmp_path):
    """é and è begin with the same byte."""
    for name in ('lamé', 'lamè'):
        (tmp_path / name).write_text('text')
    c = chat(puppet, cwd=str(tmp_path))
    c.child.send('/read l\té\r')
    c.child.expect_exact(' bytes go with the next message)')


def test_paths_as_they_are_typed(chat, puppet, tmp_path):
    """By every command that takes one; completion knows ~/, too. - would be the terminal."""
    (tmp_path / 'a b.txt').write_text('text')
    c = chat(puppet)
    for path in r'~/a\ b.txt', "'%s/a b.txt'" % tmp_path, 'file://%s/a%%20b.txt' % tmp_path:
        assert 'bytes go with the next message' in c.say('/read ' + path)
    assert c.say('/save ~/talk') == '(0 messages in %s/talk)' % tmp_path
    c.child.send('/load ~/ta\t\r')
    c.child.expect_exact('(0 messages from %s/talk)' % tmp_path)
    c.child.expect(PROMPT)
    for name in 'read', 'load', 'save', 'image':
        assert c.say('/%s -' % name) == 'gemma4: /%s -: stdin is the chat' % name


@pytest.mark.parametrize('line', ['/new 1', '/retry 2', '/undo 3', '/bye all', '/help me'])
def test_commands_that_take_nothing(chat, puppet, line):
    name, rest = line.split()
    assert chat(puppet).say(line) == 'gemma4: %s takes nothing behind it: %s' % (name, rest)


def test_completion_of_settings(chat, puppet):
    c = chat(puppet)
    c.child.send('/set te\t0\r')
    c.child.expect_exact('(temperature 0)')
    c.child.send('/set think\t5\r')
    c.child.expect_exact('(think-tokens 5)')


def test_completion_in_the_working_directory(chat, puppet, tmp_path):
    for name in ('note.txt', '.note.hidden', 'other'):
        (tmp_path / name).write_text('text')
    c = chat(puppet, cwd=str(tmp_path))
    c.child.send('/read n\t\r')
    c.child.expect_exact(' bytes go with the next message)')
    c.child.send('/read .n\t\r')
    c.child.expect_exact(' bytes go with the next message)')


def test_tools(chat, caller, tools, folder, tmp_path):
    c = chat(caller, '--tools', tools, '--run-tools', folder, '--yes', env={'NO_COLOR': '1'})
    assert c.say('hello') == '[add {"x":1}]\n' + DONE
    question, call, result, last = c.messages()
    assert call['tool_calls'][0]['function'] == {'name': 'add', 'arguments': '{"x":1}'}
    assert (result['role'], result['content'], result['tool_call_id']) == ('tool', 'two', call['tool_calls'][0]['id'])
    assert (question, last) == (user('hello'), assistant(DONE))
    c.say('/undo')
    assert c.messages() == []


def test_tools_are_asked_for(chat, caller, tools, folder, tmp_path):
    c = chat(caller, '--tools', tools, '--run-tools', folder)
    c.child.sendline('hello')
    c.child.expect_exact('run add {"x":1}? [y/N] ')
    c.child.sendline('y')
    c.child.expect_exact(DONE)
    c.child.expect(PROMPT)
    assert (tmp_path / 'given').read_text() == '{"x":1}'


def test_no_color(chat, puppet):
    c = chat(puppet, '--think', env={'NO_COLOR': '1'})
    assert c.say('hello') == THOUGHT + '\n\n' + ANSWER
    assert '\033[2m' in chat(puppet, '--think').say('hello')
    c = chat(puppet, '--think', env={'TERM': 'dumb'})
    c.child.sendline('hello')
    c.child.expect_exact(THOUGHT + '\r\n\r\n' + ANSWER + '\r\n')


def test_context_meter(chat, puppet):
    c = chat(puppet, '-c', 60)
    c.say('hello')
    assert '[#' in c.say('/stats')
    assert '% of the context are used' in c.say('again')
    c.child.sendline('/undo')
    c.child.expect(r'\n\[\d+ %\] > $')
    c.child.sendline('/new')                # nothing is used any more, and the prompt says so
    c.child.expect(r'\(a new conversation\)\r\n> $')
    assert 'context: 0 of 60' in c.say('/stats')


@pytest.mark.parametrize('line, words', [
    ('/nonsense', ['/nonsense', '/help']), ('/', ['/help']), ('/helpme', ['/helpme']), ('/save', ['/save', 'file']),
    ('/load', ['/load', 'file']),
    ('/read', ['/read', 'file']), ('/read /no/such/file', ['/no/such/file', 'No such file']), ('/think maybe', ['/think on', '/think off']),
    ('/load /no/such/file', ['/no/such/file', 'No such file']), ('/save /no/such/file', ['/no/such/file', 'No such file']),
])
def test_wrong_command(chat, puppet, line, words):
    c = chat(puppet)
    c.say('hello')
    text = c.say(line)
    assert text.startswith('gemma4: ') and '\n' not in text
    assert all(word in text for word in words)
    assert c.messages() == [user('hello'), assistant(ANSWER)]


def test_system(chat, puppet):
    c = chat(puppet)
    assert 'Be brief.' in c.say('/system  Be brief. ')
    c.say('hello')
    brief = {'role': 'system', 'content': 'Be brief.'}
    assert c.messages() == [brief, user('hello'), assistant(ANSWER)]
    assert 'Be brief.' in c.say('/system')              # shows it, changes nothing
    c.say('/new')
    assert c.messages() == [brief]                      # a new conversation keeps it
    c.say('/system Be long.')
    c.say('hello')
    assert c.messages() == [dict(brief, content='Be long.'), user('hello'), assistant(ANSWER)]
    c.say('/system off')
    assert c.messages() == [user('hello'), assistant(ANSWER)]


def test_system_prompt_reaches_the_model(chat, odd):
    def reply(*lines):
        c = chat(odd, '--seed', 1, '--temp', 5, '--top-k', 0, '--top-p', 1, '-n', 30)
        for line in lines:
            c.say(line)
        return c.messages()[-1]
    assert reply('/system Be brief.', 'hello') == reply('/system Be long.', '/system Be brief.', 'hello') != reply('hello')


@pytest.mark.parametrize('new', ['/new', '/clear', '/reset'])
def test_new(chat, puppet, tmp_path, new):
    """What was attached goes, too."""
    (tmp_path / 'a.txt').write_text('one')
    c = chat(puppet)
    c.say('hello')
    c.say('/read %s' % (tmp_path / 'a.txt'))
    assert c.say(new) == '(a new conversation)'
    assert c.messages() == []
    c.say('again')
    assert c.messages() == [user('again'), assistant(ANSWER)]


def test_think(chat, puppet):
    """The thought is dimmed, folded where `/set thoughts` does not say otherwise, and is not part of the conversation."""
    c = chat(puppet)
    assert 'on' in c.say('/think on')
    text = c.say('hello')
    assert re.fullmatch(r'\x1b\[2m%s\r\x1b\[J\x1b\[2mthought for \d+ s\x1b\[0m\n\n%s' % (re.escape(THOUGHT), re.escape(ANSWER)), text)
    c.say('/undo')
    c.say('/set thoughts on')
    assert c.say('hello') == '\x1b[2m%s\x1b[0m\n\n%s' % (THOUGHT, ANSWER)
    c.say('/undo')
    c.say('/set thoughts off')
    assert c.say('hello') == ANSWER
    c.say('/set thoughts folded')
    assert c.messages() == [user('hello'), assistant(ANSWER)]
    assert 'off' in c.say('/think off')
    assert c.say('hello') == ANSWER
    assert 'on' in c.say('/think')                      # without a word: the other way


def test_set_shows(chat, puppet):
    c = chat(puppet, '--temp', 0.7, '--top-p', 0.5, '--top-k', 20, '--seed', 3, '-n', 100)
    shown = dict(line.split() for line in c.say('/set').split('\n'))
    assert shown == {'temperature': '0.7', 'top-p': '0.5', 'top-k': '20', 'min-p': '0', 'repeat-penalty': '1', 'seed': '3', 'max-tokens': '100',
                     'think-tokens': 'none', 'thoughts': 'folded'}
    assert c.say('/set seed') == '(seed 3)'


@pytest.mark.parametrize('line, name, value', [
    ('temperature 0', 'temperature', '0'), ('temp 1.5', 'temperature', '1.5'), ('parameter temperature 0.25', 'temperature', '0.25'),
    ('top_p 0.125', 'top-p', '0.125'), ('top-k 0', 'top-k', '0'), ('min-p  0.5 ', 'min-p', '0.5'), ('repeat_penalty 2', 'repeat-penalty', '2'),
    ('seed 18446744073709551615', 'seed', '18446744073709551615'), ('max-tokens 5', 'max-tokens', '5'), ('num_predict -1', 'max-tokens', 'none'),
    ('think-tokens 7', 'think-tokens', '7'), ('thinking_budget none', 'think-tokens', 'none'), ('thoughts on', 'thoughts', 'on'),
    ('thoughts off', 'thoughts', 'off'),
])
def test_set_changes(chat, puppet, line, name, value):
    c = chat(puppet)
    before = c.say('/set').split('\n')
    assert c.say('/set ' + line) == '(%s %s)' % (name, value)
    after = c.say('/set').split('\n')
    assert [a.split() for a, b in zip(after, before) if a != b] in ([[name, value]], []) and [name, value] in [a.split() for a in after]


@pytest.mark.parametrize('line, message', [
    ('temperature -1', 'temperature -1: not a number from 0 to 100'), ('temperature 101', 'temperature 101: not a number from 0 to 100'),
    ('temperature nan', 'temperature nan: not a number from 0 to 100'), ('temperature x', 'temperature x: not a number from 0 to 100'),
    ('temperature 0x1', 'temperature 0x1: not a number from 0 to 100'),
    ('temperature 1 2', 'temperature 1 2: not a number from 0 to 100'), ('top-p 1.1', 'top-p 1.1: not a number from 0 to 1'),
    ('top-k 1.5', 'top-k 1.5: not a whole number from 0 to 16777216'), ('min_p 2', 'min-p 2: not a number from 0 to 1'),
    ('repeat-penalty 0', 'repeat-penalty 0: not a number from 0.01 to 100'), ('seed x', 'seed x: not a whole number'),
    ('max-tokens -2', 'max-tokens -2: not a whole number from -1 to 1073741824'), ('thoughts maybe', 'thoughts maybe: not on, off or folded'),
    ('think-tokens 1x', 'think-tokens 1x: not a whole number from 0 to 1073741824'), ('wizard 1', '/set wizard: no such setting; /set lists them'),
])
def test_set_of_what_cannot_be(chat, puppet, line, message):
    c = chat(puppet, '--seed', 1)
    before = c.say('/set')
    assert c.say('/set ' + line) == 'gemma4: ' + message
    assert c.say('/set') == before


def test_set_reaches_the_model(chat, puppet, odd):
    c = chat(puppet)
    c.say('/set max-tokens 3')
    assert 'cut' in c.say('hello') and c.messages()[1] == assistant('The command is')
    def answers(*lines):
        c = chat(odd, '-n', 20)
        for line in (*lines, 'hello', '/new', 'hello'):
            c.say(line)
        return c.messages()[-1]
    assert answers('/set temperature 0') == answers('/set temperature 0', '/set seed 5')
    assert answers('/set temperature 5', '/set top-k 0', '/set top-p 1', '/set seed 1') == answers(
        '/set temperature 5', '/set top-k 0', '/set top-p 1', '/set seed 1') != answers('/set temperature 0')


@pytest.mark.parametrize('how', ['/edit', 'keys'])
def test_outside_editor(chat, puppet, tmp_path, how):
    """The file is the owner's alone, holds what was typed, and is gone afterwards.  The editor finds a terminal that brackets no pastes,
    and may switch that off itself: the chat has it again afterwards."""
    editor = tmp_path / 'my editor'
    editor.write_text('#!/bin/sh\necho here\nstat -c %a "$2" > {0}/mode\ncp "$2" {0}/before\nprintf "one\\n\\ntwo\\n\\n" > "$2"\n'.format(tmp_path))
    editor.chmod(0o755)
    (tmp_path / 'tmp').mkdir()
    c = chat(puppet, env={'VISUAL': '"%s" -x' % editor, 'EDITOR': 'false', 'TMPDIR': tmp_path / 'tmp'})
    if how == '/edit':
        c.child.sendline('/edit a draft')
    else:
        c.child.send('a draft\x18\x05')
    for words in ('\033[?2004l', 'here', '\033[?2004h', ANSWER):
        c.child.expect_exact(words)
    c.child.expect(r'\n> $')
    assert c.messages() == [user('one\n\ntwo'), assistant(ANSWER)]
    assert (tmp_path / 'mode').read_text() == '600\n' and (tmp_path / 'before').read_text() == 'a draft'
    assert list((tmp_path / 'tmp').iterdir()) == []


@pytest.mark.parametrize('editor, words', [('true', 'nothing to send'), ('false', 'false failed: nothing is sent'), ('no_such_editor', 'failed')])
def test_outside_editor_that_gives_nothing(chat, puppet, tmp_path, editor, words):
    c = chat(puppet, env={'EDITOR': editor, 'VISUAL': '', 'TMPDIR': tmp_path})
    c.child.sendline('/edit')
    c.child.expect_exact(words)
    c.child.expect(r'\n> $')
    assert c.messages() == [] and list(tmp_path.glob('gemma4.*')) == []


def test_a_draft_outlives_an_editor_that_fails(chat, puppet, tmp_path):
    """Ctrl-P brings the line back that Ctrl-X Ctrl-E could not open."""
    c = chat(puppet, env={'EDITOR': 'false', 'VISUAL': '', 'TMPDIR': tmp_path})
    c.child.send('a draft\x18\x05')
    c.child.expect_exact('nothing is sent')
    c.child.expect(r'\n> $')
    c.say('\x10')
    assert c.messages() == [user('a draft'), assistant(ANSWER)]


def test_outside_editor_that_writes_no_text(chat, puppet, tmp_path):
    """What is no UTF-8 would make a conversation that /load refuses.  The file stays, for the user wrote it."""
    editor = tmp_path / 'editor'
    editor.write_text('#!/bin/sh\nprintf "caf\\351 au lait" > "$1"\n')
    editor.chmod(0o755)
    c = chat(puppet, env={'EDITOR': editor, 'VISUAL': '', 'TMPDIR': tmp_path})
    assert re.search(r'gemma4\.\w+\.md: not UTF-8 .*iconv', c.say('/edit'))
    assert c.messages() == [] and [f.read_bytes() for f in tmp_path.glob('gemma4.*')] == [b'caf\xe9 au lait']


def test_list_of_tools(chat, puppet, caller, tools, folder):
    assert '--tools' in chat(puppet).say('/tools')
    assert re.search(r'(?m)^  add\b', chat(caller, '--tools', tools).say('/tools'))
    text = chat(caller, '--tools', tools, '--run-tools', folder).say('/tools')
    assert 'add' in text and str(folder) in text and 'once you say yes' in text
    assert 'yes' not in chat(caller, '--tools', tools, '--run-tools', folder, '--yes').say('/tools')


def test_list_of_lines(chat, puppet):
    c = chat(puppet)
    for line in ('first', 'second', 'third'):
        c.say(line)
    lines = [line.split(None, 1)[1] for line in c.say('/history 3').split('\n')]
    assert lines == ['second', 'third', '/history 3']
    assert len(c.say('/history').split('\n')) == 5
    assert c.say('/history x').startswith('gemma4: /history x: not a whole number')


def test_load_at_the_start(chat, puppet, tmp_path):
    """--load without a question: the chat goes on with the file."""
    c = chat(puppet)
    c.say('hello')
    c.say('/save %s' % (tmp_path / 'talk'))
    c = chat(puppet, '--load', tmp_path / 'talk')
    c.say('and?')
    assert [m['content'] for m in c.messages()] == ['hello', ANSWER, 'and?', ANSWER]


def test_save_and_load(chat, puppet, odd, tmp_path):
    """In a fresh process; what was loaded is what the model sees."""
    file = tmp_path / 'saved conversation.json'
    c = chat(puppet)
    c.say('/system Be brief.')
    c.say('/think on')
    c.say('hello')
    assert '3' in c.say('/save %s' % file) and stat.S_IMODE(file.stat().st_mode) == 0o600
    saved = read_json(file)
    assert saved['messages'] == [{'role': 'system', 'content': 'Be brief.'}, user('hello'), assistant(ANSWER)]
    assert ids_of('render', '--ids', '-m', odd, stdin=file.read_text())

    c = chat(puppet)
    assert '3' in c.say('/load %s' % file)
    assert c.messages() == saved['messages']
    assert 'Be brief.' in c.say('/system')
    assert THOUGHT.split()[0] in c.say('again')                    # thinking was on
    assert c.messages() == saved['messages'] + [user('again'), assistant(ANSWER)]
    c.say('/save %s' % file)                            # over the old one
    assert read_json(file)['messages'] == c.messages()
    assert list(tmp_path.glob('*.tmp')) == []


def test_loading_goes_on_as_if_it_had_been_said(chat, odd, tmp_path):
    options = ('--temp', 0, '-n', 20, '--exact')
    c = chat(odd, *options)
    c.say('hello')
    c.say('/save %s' % (tmp_path / 'a'))
    c.say('and?')
    want = c.messages()
    c = chat(odd, *options)
    c.say('something else')
    c.say('/load %s' % (tmp_path / 'a'))
    c.say('and?')
    assert c.messages() == want


@pytest.mark.parametrize('content, word', [
    ('', 'JSON'), ('{', 'JSON'), ('[]', 'JSON'), ('{}', 'messages'), ('{"messages": "x"}', 'messages'),
    ('{"messages": [1]}', 'messages[0]'), ('{"messages": [{"role": "wizard", "content": "x"}]}', 'messages[0].role'),
    ('{"messages": []} x', 'JSON'), ('{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}', 'audio'),
    ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', 'image'),
])
def test_load_of_something_else(chat, puppet, tmp_path, content, word):
    file = tmp_path / 'bad'
    file.write_text(content)
    c = chat(puppet)
    c.say('hello')
    text = c.say('/load %s' % file)
    assert text.startswith('gemma4: ') and str(file) in text and word in text
    assert c.messages() == [user('hello'), assistant(ANSWER)]


def test_full_disk_keeps_the_old_file(chat, puppet, tmp_path):
    """/save writes beside the file and renames: a directory that refuses new files must not cost the old one."""
    c = chat(puppet)
    c.say('hello')
    assert c.say('/save /dev/full/x').startswith('gemma4: ')
    assert c.say('/save %s' % tmp_path).startswith('gemma4: ')      # a directory
    assert list(tmp_path.glob('*.tmp')) == [] and list(tmp_path.parent.glob(tmp_path.name + '*.tmp')) == []


# ---------------------------------------------------------------------------------------------- lines

def test_trailing_backslash_goes_on(chat, puppet):
    c = chat(puppet)
    c.child.sendline('first \\')
    c.child.expect_exact('\r\n. ')
    c.child.sendline('\\')
    c.child.expect_exact('\r\n. ')
    assert c.say('third\\ line') == ANSWER
    assert c.messages()[0] == user('first \n\nthird\\ line')


@pytest.mark.parametrize('text', ['Grüße – 日本語 🙂 é', '<turn|> is text', '"\\" and \'', 'a\x16\tb', '  spaces   inside  '], ids=repr)
def test_what_is_typed_is_what_is_asked(chat, puppet, text):
    c = chat(puppet)
    assert c.say(text) == ANSWER
    assert c.messages()[0] == user(text.replace('\x16', ''))


@pytest.mark.parametrize('locale', ['C', 'POSIX', 'C.UTF-8', 'no_such'])
def test_utf8_in_every_locale(chat, puppet, locale):
    c = chat(puppet, env={'LC_ALL': locale})
    assert c.say('Grüße') == ANSWER
    assert c.messages()[0] == user('Grüße')


def test_editing_over_characters_of_several_bytes(chat, puppet):
    c = chat(puppet)
    c.say('aé\x7f\x7fb日\x7fü' + CTRL_A + 'x')
    assert c.messages()[0] == user('xbü')


@pytest.mark.parametrize('width', [80, 40])
def test_long_line(chat, puppet, width):
    """Longer than the terminal is wide, and than a canonical line of the kernel's (4096)."""
    text = ' '.join('word%d' % i for i in range(700))
    c = chat(puppet, width=width)
    c.child.sendline(text)
    c.child.expect_exact(ANSWER)
    c.child.expect(PROMPT)
    assert len(text) > 5000 and c.messages()[0] == user(text)


def test_control_c_drops_the_line(chat, puppet):
    c = chat(puppet)
    c.child.send('half a quest')
    c.child.expect_exact('half a quest')
    c.child.sendintr()
    c.child.expect(PROMPT)
    assert c.say('hello') == ANSWER
    assert c.messages() == [user('hello'), assistant(ANSWER)]
    c.child.sendline('first \\')            # and the lines before it
    c.child.expect_exact('\r\n. ')
    c.child.sendintr()
    c.child.expect(PROMPT)
    assert c.say('third') == ANSWER
    assert c.messages()[2:] == [user('third'), assistant(ANSWER)]


def test_control_c_stops_the_answer_and_keeps_the_conversation(chat, chatterbox):
    c = chat(chatterbox, *ENDLESS)
    for turn in (1, 2):
        c.child.sendline('question %d' % turn)
        c.child.expect_exact('The command is one,The')
        c.child.sendintr()
        c.child.expect('stopped')
        c.child.expect(PROMPT)
    messages = c.messages()
    assert [m['role'] for m in messages] == ['user', 'assistant'] * 2
    assert messages[2] == user('question 2')
    assert all(m['content'].startswith('The command is one,The') for m in messages[1::2])
    assert 'reused' in c.say('/stats')
    c.child.sendeof()
    assert c.end() == 0


def test_control_c_while_the_prompt_is_read(chat, chatterbox, tmp_path):
    """A loaded conversation that takes minutes to read: stopped, and the prompt is back."""
    write_json(tmp_path / 'long', {'messages': [user('x y ' * 150000), assistant('z')]})
    c = chat(chatterbox, *ENDLESS)
    c.say('/load %s' % (tmp_path / 'long'))
    c.child.sendline('go')
    c.child.expect('reading the prompt')    # on a terminal, after a second
    c.child.sendintr()
    c.child.expect(PROMPT)
    c.say('/new')
    c.child.sendline('hello ' * 20)
    c.child.expect_exact('The command is one,')
    assert 'reading the prompt' not in c.child.before           # this one did not take a second
    c.child.sendintr()
    c.child.expect(PROMPT)


def test_stopped_by_ctrl_z(puppet, tmp_path):
    """The shell goes on, and fg brings the line back."""
    shell = pexpect.spawn('bash', ['--norc', '--noprofile', '-i'], env=environment(HOME=tmp_path, PS1='shell> '), encoding='utf-8',
                          timeout=PATIENCE, dimensions=(24, 200))
    shell.expect_exact('shell> ')
    shell.sendline('%s -m %s' % (GEMMA4, puppet))
    shell.expect(PROMPT)
    shell.send('herring\x1a')
    shell.expect_exact('Stopped')
    shell.expect_exact('shell> ')
    shell.sendline('echo $((6 * 7))')
    shell.expect('42.*shell> ')
    shell.sendline('fg')
    shell.expect_exact('> herring')
    shell.sendline('?')
    shell.expect_exact(ANSWER.split()[0])
    shell.expect(PROMPT)
    shell.sendeof()
    shell.expect_exact('shell> ')
    shell.sendline('exit')
    shell.expect(pexpect.EOF)
    shell.close()
    assert 'herring?' in (tmp_path / '.gemma4_history').read_text().split()


# ---------------------------------------------------------------------------------------------- history

def test_history(chat, puppet, tmp_path):
    file = tmp_path / '.gemma4_history'
    c = chat(puppet)
    c.say('herring?')
    c.say('Grüße')
    c.child.sendeof()
    assert c.end() == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert 'herring?' in file.read_text()

    c = chat(puppet)                        # a fresh process knows the lines
    c.say(UP + UP)
    c.say(UP)
    assert [m['content'] for m in c.messages()[::2]] == ['herring?', 'herring?']
    c.say(CTRL_R + 'Grü\x1b')
    assert c.messages()[-2] == user('Grüße')
    c.child.sendline('/quit')
    assert c.end() == 0
    assert file.read_text().count('herring?') >= 1


def test_history_that_others_could_read_is_closed_to_them(chat, puppet, tmp_path):
    file = tmp_path / '.gemma4_history'
    file.write_text('_HiStOrY_V2_\nold\\040line\n')
    file.chmod(0o644)
    c = chat(puppet)
    c.say(UP)
    assert c.messages()[0] == user('old line')
    c.child.sendeof()
    assert c.end() == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_history_of_two_chats(chat, puppet, tmp_path):
    first, second = chat(puppet), chat(puppet)
    for c, line in (first, 'herring?'), (second, 'eels?'), (first, 'salmon?'):
        c.say(line)
    for c in first, second:
        c.child.sendeof()
        assert c.end() == 0
    assert (tmp_path / '.gemma4_history').read_text().split() == ['_HiStOrY_V2_', 'herring?', 'eels?', 'salmon?']


def test_no_home(chat, puppet, tmp_path):
    """Nowhere to write the history: chatting works all the same."""
    c = chat(puppet, env={'HOME': '/nonexistent'})
    assert c.say('hello') == ANSWER
    c.child.sendeof()
    assert c.end() == 0


# ---------------------------------------------------------------------------------------------- one shot on a terminal

def terminal(*args):
    """Everything the program writes on a terminal, and its exit status."""
    call = shlex.join(map(str, (GEMMA4, *args)))
    return pexpect.run(call, env=environment(), encoding='utf-8', timeout=PATIENCE, withexitstatus=True)


def test_one_shot_on_a_terminal(puppet):
    assert terminal('-m', puppet, 'hello') == (ANSWER + '\r\n', 0)


def test_thought_is_dimmed_on_a_terminal(puppet):
    assert terminal('-m', puppet, '--think', 'hello') == ('\x1b[2m%s\x1b[0m\r\n%s\r\n' % (THOUGHT, ANSWER), 0)


def test_progress_on_a_terminal(chatterbox, tmp_path):
    """A prompt that takes minutes: how far it is gets shown, and Ctrl-C ends it."""
    file = write_ids(tmp_path / 'ids', [5] * 300000)
    args = ['-m', str(chatterbox), '--ids', str(file), '-c', '1000000']
    child = pexpect.spawn(GEMMA4, args, env=environment(), encoding='utf-8', timeout=PATIENCE)
    child.expect(r'reading the prompt: +\d+ % of 300000 tokens')
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


# ---------------------------------------------------------------------------------------------- images

IMAGES = FIXTURES / 'images'
LOOK = ('--exact', '--temp', 0, '-n', 5, '--image-tokens', 70)


def part(path, kind='image_url'):
    return {'type': kind, kind: {'url': str(path)}}


def test_image(chat, tmp_path):
    """It goes with the next question, by its whole path, and is evaluated once."""
    c = chat(IMAGES / 'seeing', *LOOK)
    assert str(IMAGES / 'rgb.png') in c.say('/image %s' % (IMAGES / 'seeing' / '..' / 'rgb.png'))
    c.say('/video %s' % (IMAGES / 'moving.gif'))
    c.say('What?')
    c.say('Really?')
    first, answer, second, _ = c.messages()
    assert first['content'] == [part(IMAGES / 'rgb.png'), part(IMAGES / 'moving.gif', 'video_url'), {'type': 'text', 'text': 'What?'}]
    assert second == user('Really?')
    prompt, reused = map(int, re.search(r'prompt: (\d+) tokens \((\d+) reused\)', c.say('/stats')).groups())
    assert prompt - reused < 60 < reused
    once = run('-m', IMAGES / 'seeing', *LOOK, '-i', IMAGES / 'rgb.png', '--video', IMAGES / 'moving.gif', 'What?')
    assert once.stdout.decode().rstrip('\n') == answer['content'].rstrip('\n')


def test_saved_conversation_with_an_image(chat, tmp_path):
    c = chat(IMAGES / 'seeing', *LOOK)
    c.say('/image %s' % (IMAGES / 'rgb.png'))
    c.say('What?')
    want = c.messages()
    c.say('/new')
    c.say('/load %s' % (tmp_path / 'conversation.json'))
    assert c.messages() == want
    assert not c.say('And?').startswith('gemma4: ')


@pytest.mark.parametrize('typed', ['%s/a\\ b.png', "'%s/a b.png'", '"%s/a b.png" ', '~/a\\ b.png', '%s/a b.png'])
def test_pasted_path(chat, tmp_path, typed):
    (tmp_path / 'a b.png').write_bytes((IMAGES / 'rgb.png').read_bytes())
    c = chat(IMAGES / 'seeing', *LOOK)
    assert str(tmp_path / 'a b.png') in c.say(typed.replace('%s', str(tmp_path)))
    c.say('What?')
    assert c.messages()[0]['content'][0] == part(tmp_path / 'a b.png')


@pytest.mark.parametrize('typed', ['What is %s/a\\ b.png?', "Is '%s/a b.png' red?", 'Look at "%s/a b.png", please', 'file://%s/a%20b.png is what?',
                                   r"Is '%s/it'\''s.png' red?", '''Is '%s/it'"'"'s.png' red?''', 'Is "%s/it\'s.png" red?', "Is '%s/it's.png' red?",
                                   'see (~/c.png)', '%s/c.png and what?', 'What is in %s/c.png', 'twice %s/c.png, %s/c.png!', "it's in '%s/c.png'."])
def test_path_in_a_sentence(chat, tmp_path, typed):
    """The picture goes with the sentence, which stays as it is; a line says so."""
    for name in ('a b.png', 'c.png', "it's.png"):
        (tmp_path / name).write_bytes((IMAGES / 'rgb.png').read_bytes())
    c = chat(IMAGES / 'seeing', *LOOK)
    text = typed.replace('%s', str(tmp_path))
    name = tmp_path / ("it's.png" if '/it' in typed else 'c.png' if 'c.png' in typed else 'a b.png')
    assert c.say(text).startswith('(%s goes with the next question)\n' % name)
    assert c.messages()[0]['content'] == [part(name), {'type': 'text', 'text': text}]


def test_several_paths(chat, tmp_path):
    """A line of nothing but paths asks nothing yet."""
    c = chat(IMAGES / 'seeing', *LOOK)
    c.say("'%s' file://%s " % (IMAGES / 'rgb.png', IMAGES / 'moving.gif'))
    assert c.messages() == []
    c.say('What?')
    assert [p['type'] for p in c.messages()[0]['content']] == ['image_url', 'image_url', 'text']


@pytest.mark.parametrize('text', ['a missing.png', 'What is .png?', "don't 'quote", 'file:// and file://x', 'see notes.txt', '"', "'", '(', '\\'])
def test_words_that_are_no_files(chat, tmp_path, text):
    (tmp_path / 'notes.txt').write_text('text')
    c = chat(IMAGES / 'seeing', *LOOK, cwd=str(tmp_path))
    c.child.sendline(text + ' x')
    c.child.expect(r'\n> $')
    assert c.messages()[0] == user(text + ' x')


def test_paths_that_are_none(chat, tmp_path):
    (tmp_path / 'bad.png').write_bytes(b'no image')
    c = chat(IMAGES / 'seeing', *LOOK)
    assert 'missing.png: No such file' in c.say('/image %s' % (tmp_path / 'missing.png'))
    assert 'needs a file' in c.say('/image')
    assert 'bad.png: not an image' in c.say('/image %s' % (tmp_path / 'bad.png'))
    assert 'bad.png: not an image' in c.say(str(tmp_path / 'bad.png'))
    assert 'no such command' in c.say('%s is what?' % (IMAGES / 'missing.png'))
    c.say('What?')
    assert c.messages()[0] == user('What?')


def test_image_given_with_the_options(chat):
    c = chat(IMAGES / 'seeing', *LOOK, '-i', IMAGES / 'rgb.png')
    c.say('What?')
    c.say('And?')
    assert [type(m['content']) for m in c.messages()] == [list, str, str, str]
