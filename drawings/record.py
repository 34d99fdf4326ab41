#!/usr/bin/env python3
"""Records two minutes at the chat prompt with the demo: session.cast (asciinema's format, version 2) and
session.svg, which plays the same in a browser.

The script types what SCENES say and keeps what the program writes, with times of its own: so many
seconds for a key and for a piece of an answer, whatever the machine.  It needs pexpect and pyte.
"""
import json
import os
import pathlib
import re
import tempfile
from html import escape

import pexpect
import pyte

HERE = pathlib.Path(__file__).resolve().parent
COLUMNS, ROWS = 80, 24
KEY, PIECE, READING = .08, .045, .045           # seconds: a key, a piece of an answer, a character read
SCENES = ['Hello!', 'What is 17 plus 8?', 'What is a triangle?', 'What is in the picture demo/two-shapes.png?', '/set',
          '/set temperature 0', '/think on', 'What is 12 plus 30?', '/think off', '/retry', '/undo', '/new', '/help',
          'Tell me a story.', '/bye']
PROMPT = re.compile(r'(?:^|\n|\r)(?:\[\d+ %\] )?> (?:\x1b\[[0-9;]*[A-Za-z])*$')


def pieces(text):
    """The text in pieces: an escape sequence, or a word with the blank behind it."""
    return re.findall(r'\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.|[^\x1b\s]+ ?|\s', text)


class Recording:
    def __init__(self):
        self.now, self.events = 1.0, []

    def put(self, text, pause):
        """The folder of the program is nobody's business."""
        self.events.append([round(self.now, 3), 'o', text.replace(str(HERE.parent), '/home/ada/gemma4')])
        self.now += pause


def record():
    tape = Recording()
    with tempfile.TemporaryDirectory() as home:
        env = dict(os.environ, HOME=home, TERM='xterm-256color', LANG='C.UTF-8', GEMMA4_DEVICE='cpu')
        for name in ('GEMMA4_MODEL', 'NO_COLOR'):
            env.pop(name, None)
        child = pexpect.spawn(str(HERE.parent / 'gemma4'), ['--seed', '1', '--temp', '0', '-n', '120', '-t', '1'], env=env,
                              cwd=str(HERE.parent), encoding='utf-8', dimensions=(ROWS, COLUMNS), timeout=120)

        def until_prompt():
            child.expect(PROMPT)
            return child.before + child.after
        for piece in pieces(until_prompt()):
            tape.put(piece, PIECE)
        for line in SCENES:
            tape.now += 1.5
            for key in line:
                child.send(key)
                echo = ''
                while not echo:
                    echo = child.read_nonblocking(4096, 10)
                tape.put(echo, KEY)
            tape.now += .6
            child.send('\r')
            if line == '/bye':
                child.expect(pexpect.EOF)
                tape.put(child.before, 1)
                break
            line_end, _, answer = until_prompt().partition('\n')
            tape.put(line_end + '\n', PIECE)
            for piece in pieces(answer):
                tape.put(piece, PIECE)
            tape.now += min(4, READING * len(re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', answer)))
    return tape


STYLE = """
  .back { fill: #ffffff; stroke: #d1d9e0 } text { fill: #1f2328; font: 14px ui-monospace, Menlo, Consolas, monospace; white-space: pre }
  .dim { fill: #818b98 } .bold { font-weight: 700 } .under { text-decoration: underline }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117; stroke: #3d444d } text { fill: #f0f6fc } .dim { fill: #7d8590 }
  }
"""
WIDE, HIGH = 8.4, 18                            # pixels of a cell


class DimScreen(pyte.Screen):
    """pyte has no faint text (SGR 2): it is kept as strikethrough, which the program does not use."""
    def select_graphic_rendition(self, *attributes, **kwargs):
        super().select_graphic_rendition(*(9 if a == 2 else a for a in attributes), **kwargs)


def look(cell):
    return ' '.join(name for name, on in (('dim', cell.strikethrough), ('bold', cell.bold), ('under', cell.underscore)) if on)


def frame(screen):
    """The screen as lines of SVG."""
    out = []
    for y in range(ROWS):
        cells = [screen.buffer[y][x] for x in range(COLUMNS)]
        x = 0
        while x < COLUMNS:
            end = x
            while end < COLUMNS and look(cells[end]) == look(cells[x]):
                end += 1
            text = ''.join(c.data for c in cells[x:end])
            kept = text.rstrip()
            if kept:
                kind = ' class="%s"' % look(cells[x]) if look(cells[x]) else ''
                out.append('<text x="%.1f" y="%d" textLength="%.1f"%s>%s</text>' % (
                    12 + WIDE * x, 24 + HIGH * y, WIDE * len(kept), kind, escape(kept)))
            x = end
    return ''.join(out)


def draw(tape):
    """An SVG with a group for each screen that is shown, at least 0.6 seconds apart."""
    screen = DimScreen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    shown, last = [], -1.0
    events = tape.events + [[tape.now, 'o', '']]
    for (when, _, text), (after, _, _) in zip(events, events[1:]):
        stream.feed(text)
        if when - last >= .6 or after - when >= .6:
            shown.append((when, frame(screen)))
            last = when
    width, height = WIDE * COLUMNS + 24, HIGH * ROWS + 24
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" xml:space="preserve">' % (width, height, width, height),
           '<title>Two minutes at the chat prompt of gemma4</title><style>%s</style>' % STYLE,
           '<rect class="back" x="1" y="1" width="%d" height="%d" rx="8">' % (width - 2, height - 2),
           '<animate id="all" attributeName="rx" values="8;8" begin="0s;all.end" dur="%.2fs"/></rect>' % tape.now]
    ends = [when for when, _ in shown[1:]] + [tape.now]
    for (when, lines), end in zip(shown, ends):
        out.append('<g visibility="hidden">%s<set attributeName="visibility" to="visible" begin="all.begin+%.2fs" dur="%.2fs"/></g>' % (
            lines, when, end - when))
    return '\n'.join(out) + '\n</svg>\n'


def main():
    tape = record()
    header = {'version': 2, 'width': COLUMNS, 'height': ROWS, 'title': 'gemma4 with its demo'}
    lines = [json.dumps(header)] + [json.dumps(e, ensure_ascii=False) for e in tape.events]
    (HERE / 'session.cast').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    (HERE / 'session.svg').write_text(draw(tape), encoding='utf-8')
    print('%.0f seconds' % tape.now)


if __name__ == '__main__':
    main()
