"""What the screen shows at the chat prompt: a pseudo-terminal whose other end is an emulator of a terminal (pyte)."""
import random
import re
import time

import pexpect
import pyte
import pytest
from wcwidth import wcwidth

from conftest import ANSWER, GEMMA4, PATIENCE, TALK, THOUGHT, answer, environment, make_puppet

TERMS = ['xterm-256color', 'screen', 'linux', 'vt100', 'tmux-256color']
HOME, END, LEFT, DELETE = '\x01', '\x05', '\x02', '\x1b[3~'
WORDS = ' '.join('word%d' % i for i in range(40))


class Terminal:
    """The program on a screen.  Nothing waits for a time: each step is over once the screen shows what it should."""

    def __init__(self, home, model, *options, question=None, term='xterm-256color', width=80, height=24, **env):
        self.screen = pyte.Screen(width, height)
        self.stream = pyte.Stream(self.screen)
        self.bytes = ''
        self.env = environment(HOME=home, TERM=term, **env)
        if term is None:
            del self.env['TERM']
        arguments = ['-m', str(model), *map(str, options), *([question] if question else [])]
        self.child = pexpect.spawn(GEMMA4, arguments, env=self.env, encoding='utf-8', codec_errors='replace', dimensions=(height, width))
        if not question:
            self.wait(lambda: self.row() == '>' and self.screen.cursor.x == 2)

    def row(self, y=None):
        return self.screen.display[self.screen.cursor.y if y is None else y].rstrip()

    def rows(self):
        """All rows down to the last that is not empty."""
        return '\n'.join(line.rstrip() for line in self.screen.display).rstrip().split('\n')

    def wait(self, is_there):
        end = time.monotonic() + PATIENCE
        while not is_there():
            assert time.monotonic() < end, self.rows()
            try:
                text = self.child.read_nonblocking(1 << 16, timeout=.1)
            except (pexpect.TIMEOUT, pexpect.EOF):
                continue
            self.bytes += text
            self.stream.feed(text)

    def expect(self, text):
        """Waits until the text stands somewhere on the screen, its rows joined."""
        self.wait(lambda: text in ''.join(self.screen.display))

    def say(self, text):
        """Enters a line and waits for the next prompt."""
        self.child.send(text + '\r')
        self.expect_prompt()

    def expect_prompt(self):
        before = self.bytes.count('\n')
        self.wait(lambda: self.bytes.count('\n') > before and self.row() == '>' and self.screen.cursor.x == 2)

    def shows(self, text, cursor, prompt='> '):
        """Whether the last rows show exactly the prompt and this line, wrapped, with the cursor in front of its character `cursor`."""
        width, rows, where = self.screen.columns, [''], None
        room = width
        for i, c in enumerate(prompt + text + ' '):
            w = wcwidth(c)
            if w > room:
                rows.append('')
                room = width
            if i - len(prompt) == cursor:
                where = len(rows) - 1, width - room
            rows[-1] += c
            room -= w
        top = self.screen.cursor.y - where[0]
        shown = [self.row(y) for y in range(max(top, 0), self.screen.lines)]
        want = [row.rstrip() for row in rows] + [''] * (len(shown) - len(rows))
        return top >= 0 and shown == want[:len(shown)] and self.screen.cursor.x == where[1]


@pytest.fixture
def terminal(tmp_path):
    running = []

    def start(*args, **kwargs):
        running.append(Terminal(tmp_path, *args, **kwargs))
        return running[-1]
    yield start
    for t in running:
        t.child.close(force=True)


# ---------------------------------------------------------------------------------------------- the line

@pytest.mark.parametrize('term', TERMS)
@pytest.mark.parametrize('width', [80, 41])
def test_inserting_in_front_of_wrapped_lines(terminal, puppet, term, width):
    t = terminal(puppet, term=term, width=width)
    t.child.send(WORDS)
    t.wait(lambda: t.shows(WORDS, len(WORDS)))
    t.child.send(HOME + 'START ')
    t.wait(lambda: t.shows('START ' + WORDS, 6))
    t.child.send(DELETE * 3)
    t.wait(lambda: t.shows('START ' + WORDS[3:], 6))
    t.child.send(END + '\x7f' * 12)
    text = 'START ' + WORDS[3:-12]
    t.wait(lambda: t.shows(text, len(text)))


@pytest.mark.parametrize('term', TERMS)
@pytest.mark.parametrize('letters', ['abc def', 'ab 日本é🙂'])
def test_edits_at_random(terminal, puppet, term, letters):
    """The screen is what the line is, after any edit of a line of one to five rows."""
    luck = random.Random(term + letters)
    t = terminal(puppet, term=term, width=41)
    text, at = '', 0
    for _ in range(25):
        kind = luck.choice(['insert', 'insert', 'home', 'end', 'left', 'delete', 'erase'])
        if kind == 'insert' and len(text) < 120:
            new = ''.join(luck.choice(letters) for _ in range(luck.choice([1, 5, 40])))
            text, at = text[:at] + new + text[at:], at + len(new)
            t.child.send(new)
        elif kind == 'home':
            at = 0
            t.child.send(luck.choice(['\x01', '\x1b[H', '\x1bOH', '\x1b[1~', '\x1b[7~']))
        elif kind == 'end':
            at = len(text)
            t.child.send(luck.choice(['\x05', '\x1b[F', '\x1bOF', '\x1b[4~', '\x1b[8~']))
        elif kind == 'left':
            n = min(at, luck.randrange(50))
            at -= n
            t.child.send(luck.choice(['\x02', '\x1b[D', '\x1bOD', '\x1b[1;2D']) * n)
        elif kind == 'delete':
            text = text[:at] + text[at + 1:]
            t.child.send('\x1b[3~')
        elif kind == 'erase' and at:
            text, at = text[:at - 1] + text[at:], at - 1
            t.child.send('\x7f')
        t.wait(lambda: t.shows(text, at))


def test_quiet(terminal, puppet):
    t = terminal(puppet, '--quiet', '-n', 3)
    assert t.rows() == ['>']
    t.child.send('hello\r')
    t.expect_prompt()
    assert t.rows() == ['> hello', ANSWER.split(' ')[0] + ' ' + ANSWER.split(' ')[1] + ' ' + ANSWER.split(' ')[2], '', '>']


def test_history_of_long_lines(terminal, puppet):
    t = terminal(puppet)
    t.say('short')
    t.say(WORDS)
    t.child.send('\x1b[A')
    t.wait(lambda: t.shows(WORDS, len(WORDS)))
    t.child.send('\x1b[A')
    t.wait(lambda: t.shows('short', 5))
    t.child.send('\x1bOB')
    t.wait(lambda: t.shows(WORDS, len(WORDS)))


def test_resize(terminal, puppet):
    """The line is drawn anew, and goes on as it was."""
    t = terminal(puppet)
    t.child.send('abc def ghi')
    t.wait(lambda: t.shows('abc def ghi', 11))
    t.screen.resize(24, 60)
    t.child.setwinsize(24, 60)
    t.child.send(' ' + WORDS)
    whole = 'abc def ghi ' + WORDS
    t.wait(lambda: t.shows(whole, len(whole)))


@pytest.mark.parametrize('term', TERMS)
def test_resize_of_a_wrapped_line(terminal, puppet, term):
    """No row of the old drawing stays behind, nor does one above it go."""
    t = terminal(puppet, term=term, width=41)
    t.child.send(WORDS)
    t.wait(lambda: t.shows(WORDS, len(WORDS)))
    above = t.screen.cursor.y - len('> ' + WORDS) // 41
    banner = t.rows()[:above]
    for width in (100, 60):
        t.screen.resize(24, width)
        t.child.setwinsize(24, width)
        t.wait(lambda: t.shows(WORDS, len(WORDS)))
        assert t.rows()[:above] == banner
        assert ''.join(t.rows()[above:]) == '> ' + WORDS


@pytest.mark.parametrize('line, inside, behind', [('cafe\u0301 noir', 4, 5), ('a \U0001f469\u200d\U0001f467 b', 3, 5), ('\u2764\ufe0f c', 1, 2)])
def test_characters_that_share_a_place(terminal, puppet, line, inside, behind):
    """An accent on its own, an emoji of several characters: none vanishes, and the cursor stands behind all of it."""
    t = terminal(puppet)
    t.child.send(line + HOME)
    t.wait(lambda: t.screen.cursor.x == 2 and line in t.bytes)
    t.child.send('\x1b[C' * inside)
    t.wait(lambda: t.bytes.endswith('\r> ' + line[:behind]))
    t.child.send(END + '!\r')
    t.expect_prompt()
    assert '\x1b[J> %s!\r\n' % line in t.bytes


def test_line_longer_than_the_screen(terminal, puppet):
    t = terminal(puppet, width=41, height=6)
    t.child.send(WORDS)
    t.wait(lambda: t.row().endswith('word39') and t.screen.cursor.y == 5)
    t.child.send(HOME + 'START ')
    t.wait(lambda: t.row(0).startswith('> START word0') and (t.screen.cursor.x, t.screen.cursor.y) == (8, 0))
    t.child.send(END + '!')
    t.wait(lambda: t.row().endswith('word39!') and t.screen.cursor.y == 5)


def test_clear_screen(terminal, puppet):
    t = terminal(puppet)
    t.child.send(WORDS + HOME + '\x0c')
    t.wait(lambda: t.row(0).startswith('> word0') and t.shows(WORDS, 0))
    assert len(t.rows()) == 4


@pytest.mark.parametrize('keys, at', [
    ('\x1b[1;5D', 8), ('\x1b[1;3D', 8), ('\x1bOd', 8), ('\x1b[5D', 8), ('\x1bb', 8), ('\x1b\x1b[D', 8), ('\x1b[1;2D', 10),
    ('\x1b[D', 10), ('\x1bOD', 10), ('\x1b[1;5D' * 2, 4), ('\x1b[H', 0), ('\x1bOH', 0), ('\x1b[1~', 0), ('\x1b[7~', 0),
    ('\x01\x1b[1;5C', 3), ('\x01\x1bOc', 3), ('\x01\x1b[5C', 3), ('\x01\x1bf', 3), ('\x01\x1b[1;3C', 3), ('\x01\x1b[C', 1),
    ('\x01\x1b[F', 11), ('\x01\x1bOF', 11), ('\x01\x1b[4~', 11), ('\x01\x1b[8~', 11),
    # keys that do nothing: page up and down, insert, F1 to F12 in several spellings, focus, a mouse, reports, Alt with a letter
    *((keys, 11) for keys in ['\x1b[5~', '\x1b[6~', '\x1b[2~', '\x1bOP', '\x1b[11~', '\x1b[[A', '\x1b[24~', '\x1b[1;2P', '\x1b[I', '\x1b[O',
                              '\x1b[<0;3;4M', '\x1b[?1;2c', '\x1b]11;rgb:0/0/0\x07', '\x1b]0;x\x1b\\', '\x1b[27;5;9~', '\x1b[97;5u',
                              '\x1bz', '\x1bx', '\x1b£', '\x1b[5;5~', '\x1b[E', '\x1bO5P', '\x1b[Z']),
], ids=repr)
def test_keys_that_move(terminal, puppet, keys, at):
    t = terminal(puppet)
    t.child.send('abc def ghi')
    t.child.send(keys)
    t.child.send('*')
    t.wait(lambda: t.shows('abc def ghi'[:at] + '*' + 'abc def ghi'[at:], at + 1))


@pytest.mark.parametrize('keys, left', [
    ('\x1b\x7f', 'abc def '), ('\x1b\b', 'abc def '), ('\x17', 'abc def '), ('\x01\x1bd', ' def ghi'), ('\x01\x1b[3~', 'bc def ghi'),
    ('\x01\x1b[3;5~', ' def ghi'), ('\x01\x0b', ''), ('\x1b[3~', 'abc def ghi'), ('\x15', ''),
], ids=repr)
def test_keys_that_delete(terminal, puppet, keys, left):
    t = terminal(puppet)
    t.child.send('abc def ghi' + keys)
    t.wait(lambda: t.shows(left, 0 if keys[0] == '\x01' else len(left)))


def test_keys_of_vi(terminal, puppet, tmp_path):
    """Whatever ~/.editrc says, an arrow is an arrow, and Ctrl-C drops the line."""
    (tmp_path / '.editrc').write_text('bind -v\n')
    t = terminal(puppet)
    t.child.send('abc def ghi\x1b[1;5D\x1b[H*\x1b[C\x1b[3~\x1b[5~\x1b[F!')
    t.wait(lambda: t.shows('*ac def ghi!', 12))
    t.child.send('\x03')
    t.expect_prompt()


@pytest.mark.parametrize('line', ['', 'abc', WORDS])
def test_a_dropped_line_stands_there_once(terminal, puppet, line):
    t = terminal(puppet)
    t.child.send(line + HOME)
    t.wait(lambda: t.shows(line, 0))
    t.child.send('\x03')
    t.expect_prompt()
    assert ''.join(t.rows()).replace(' ', '').endswith('leaves.>%s^C>' % line.replace(' ', ''))


def test_delete_on_an_empty_line_does_not_leave(terminal, puppet):
    t = terminal(puppet)
    t.child.send(DELETE + 'x')
    t.wait(lambda: t.shows('x', 1))


def test_quoted_keys(terminal, puppet):
    """Behind Ctrl-V a key is text: an Escape, and Ctrl-V itself."""
    t = terminal(puppet)
    t.child.send('a\x16\x1b[D\x16\x16b')
    t.wait(lambda: t.row() == '> a^[[D^Vb')


def test_search(terminal, puppet):
    t = terminal(puppet)
    for line in ('alpha beta', 'gamma'):
        t.say(line)
    t.child.send('\x12bet')
    t.expect('bck:bet')
    t.child.send('\x1b[D!')                 # a key that moves ends the search, and is no text
    t.wait(lambda: t.row().startswith('> alpha') and '!' in t.row())
    assert '[D' not in t.row()
    t.child.send('\x15\x12nowhere')         # what is not found, and is given up
    t.expect('bck?nowhere')
    t.child.send('\x07')
    t.wait(lambda: t.row() == '>' and 'bck' not in ''.join(t.screen.display))


# ---------------------------------------------------------------------------------------------- terminals that know nothing

@pytest.mark.parametrize('term', ['dumb', '', None])
def test_dumb(terminal, puppet, term):
    """No escape sequence at all; a long line scrolls on its row, and stands there whole once it is given."""
    t = terminal(puppet, '--think', term=term)
    t.child.send(WORDS)
    t.wait(lambda: t.row().endswith('word38 word39'))
    t.child.send(HOME + 'START ')
    t.wait(lambda: t.row().startswith('> START word0 word1') and t.screen.cursor.x == 8)
    t.child.send(END + '\x7f' * 12)
    t.wait(lambda: t.row().endswith('word36 word37 w') and t.screen.cursor.x == len(t.row()))
    t.say('')
    assert ('> START ' + WORDS[:-12]).replace(' ', '') in ''.join(t.screen.display).replace(' ', '')
    t.say('Grüße 日本')
    t.child.send('abcdef')
    t.wait(lambda: t.row() == '> abcdef')
    t.say('\x15é日')
    assert '> é日' in t.rows()
    t.say('/help')
    t.child.send('half\x03')
    t.expect_prompt()
    t.child.send('/quit\r')
    t.wait(lambda: not t.child.isalive())
    assert THOUGHT in t.bytes and ANSWER in t.bytes and '\x1b' not in t.bytes


# ---------------------------------------------------------------------------------------------- answers

@pytest.mark.parametrize('width', [80, 20])
def test_thought_is_folded(terminal, puppet, width):
    """One line takes the place of the thought, however many rows that had."""
    t = terminal(puppet, '--think', width=width)
    t.say('hello')
    rows = t.rows()
    at = rows.index('> hello')
    assert re.fullmatch(r'thought for \d+ s', rows[at + 1]) and rows[at + 2] == ''
    assert ''.join(t.screen.display[at + 3:]).startswith(ANSWER) and THOUGHT[:10] not in ''.join(t.screen.display)
    t.say('/set thoughts on')
    t.say('again')
    assert THOUGHT[:10] in ''.join(t.screen.display)


def test_thought_with_a_tab_is_folded(terminal, tmp_path):
    """A tab goes to the last column at most, never to the next row: what stands above the thought stays."""
    tabber = make_puppet(tmp_path / 'tabs', [TALK[0], [*TALK[1][:-1], '<0x09>', '<channel|>']])
    t = terminal(tabber, '--think', width=12, height=40)
    t.say('hello')
    assert 'you' not in ''.join(t.rows()) and '> hello' in t.rows()


def test_meter(terminal, puppet):
    """The share of the context stands in the prompt once more than half of it is used."""
    t = terminal(puppet, '-c', 60)
    t.child.send('hello\r')
    t.wait(lambda: re.fullmatch(r'\[\d+ %\] >', t.row()) and t.screen.cursor.x == len(t.row()) + 1)
    assert 50 <= int(t.row().split()[0][1:]) <= 100
    before = t.row() + ' '
    t.child.send(WORDS + HOME + 'x')
    t.wait(lambda: t.shows('x' + WORDS, 1, before))


# Pieces of which none stands twice, as make_puppet wants them.
PIECES = ['#', '▁', 'H', 'i', '<0x0A>', '-', '<0x20>', '*', 'x', '<0x2A>', '\n', '<0x60>', 'c', '`', '<0x2C>', '▁one']
MARKDOWN = '# Hi\n- *x*\n`c`, one'


@pytest.fixture(scope='session')
def writer(tmp_path_factory):
    return make_puppet(tmp_path_factory.mktemp('puppet') / 'writes', [['<channel|>', *PIECES, '<turn|>']])


def style(t, text):
    """The row of the text on the screen, and of its first character: is it bold, underlined, of which colour?"""
    for y, row in enumerate(t.screen.display):
        if text in row:
            cell = t.screen.buffer[y][row.index(text)]
            return row.rstrip(), cell.bold, cell.underscore, cell.fg
    raise AssertionError(t.rows())


@pytest.mark.parametrize('in_chat', [True, False])
def test_markdown(terminal, writer, in_chat):
    t = terminal(writer, question=None if in_chat else 'hello')
    if in_chat:
        t.say('hello')
    else:
        t.expect('c, one')
    assert style(t, 'Hi') == ('Hi', True, True, 'default')
    assert style(t, '• x') == ('  • x', False, False, 'default')
    assert t.screen.buffer[t.rows().index('  • x')][4].underscore
    assert style(t, 'c, one') == ('c, one', False, False, 'cyan')
    assert style(t, ', one')[1:] == (False, False, 'default')


@pytest.mark.parametrize('options, env', [(['--no-markdown'], {}), ([], {'NO_COLOR': '1'}), ([], {'term': 'dumb'})], ids=str)
def test_markdown_as_it_is(terminal, writer, options, env):
    t = terminal(writer, *options, **env)
    t.say('hello')
    assert MARKDOWN in '\n'.join(t.rows())


@pytest.mark.parametrize('options, env', [(['--no-markdown'], {}), ([], {'NO_COLOR': '1'})], ids=str)
def test_markdown_of_one_answer_as_it_is(terminal, writer, options, env):
    t = terminal(writer, *options, question='hello', **env)
    t.wait(lambda: MARKDOWN in '\n'.join(t.rows()))


def test_markdown_in_a_pipe(writer):
    assert answer('-m', writer, 'hello') == MARKDOWN + '\n'
