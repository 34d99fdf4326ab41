#!/usr/bin/env python3
"""Draws the pictures of MODEL.md: run it, and it writes the .svg files beside this script.

Every picture is one function.  A Sheet collects shapes in pixels; the classes in STYLE give them
colours for a light and for a dark background.
"""
import pathlib
from html import escape

STYLE = """
  .back { fill: #ffffff } .text { fill: #1f2328 } .faint { fill: #59636e }
  .box { fill: #f6f8fa; stroke: #d1d9e0 } .strong { fill: #ddf4ff; stroke: #54aeff }
  .warm { fill: #fff1e5; stroke: #fb8f44 } .line { stroke: #59636e; fill: none }
  .way { stroke: #bc4c00; fill: none; stroke-width: 2 } .waytext { fill: #bc4c00 }
  .tip { fill: #59636e } .waytip { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } .text { fill: #f0f6fc } .faint { fill: #9198a1 }
    .box { fill: #151b23; stroke: #3d444d } .strong { fill: #121d2f; stroke: #1f6feb }
    .warm { fill: #221a19; stroke: #bd561d } .line { stroke: #9198a1; fill: none }
    .way { stroke: #f0883e; fill: none; stroke-width: 2 } .waytext { fill: #f0883e }
    .tip { fill: #9198a1 } .waytip { fill: #f0883e }
  }
"""


class Sheet:
    def __init__(self, width, height, title):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def text(self, x, y, words, kind='text', anchor='middle', size=12, weight=400):
        self.parts.append(f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}" '
                          f'font-size="{size}" font-weight="{weight}">{escape(words)}</text>')

    def box(self, x, y, w, h, name='', notes=(), kind='box'):
        """A rectangle with a name in bold and a line of text for each note, centred."""
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="{h}" rx="5"/>')
        lines = ([(name, 'text', 600)] if name else []) + [(n, 'faint', 400) for n in notes]
        top = y + h / 2 - 15 * len(lines) / 2 + 11
        for i, (words, colour, weight) in enumerate(lines):
            self.text(x + w / 2, top + 15 * i, words, colour, size=12 if weight > 400 else 11,
                      weight=weight)

    def line(self, *points, kind='line', tip=True):
        """A line through the points; its end is an arrow's unless tip is False."""
        where = ' '.join(f'{x},{y}' for x, y in points)
        mark = f' marker-end="url(#{"waytip" if kind == "way" else "tip"})"' if tip else ''
        self.parts.append(f'<polyline class="{kind}" points="{where}"{mark}/>')

    def step(self, x, y, number):
        """A numbered stop on the way of a token."""
        self.parts.append(f'<circle class="waytip" cx="{x}" cy="{y}" r="9"/>')
        self.parts.append(f'<text class="back" x="{x}" y="{y + 4}" text-anchor="middle" '
                          f'font-size="11" font-weight="700">{number}</text>')

    def write(self, name):
        def tip(kind):
            return (f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                    f'markerHeight="7" orient="auto-start-reverse">'
                    f'<path class="{kind}" d="M0,0 L8,4 L0,8 z"/></marker>')
        text = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'font-family="system-ui, sans-serif">\n<title>{escape(self.title)}</title>\n'
                f'<style>{STYLE}</style>\n<defs>{tip("tip")}{tip("waytip")}</defs>\n'
                f'<rect class="back" width="{self.width}" height="{self.height}"/>\n')
        text += '\n'.join(self.parts) + '\n</svg>\n'
        (pathlib.Path(__file__).parent / name).write_text(text, encoding='utf-8')


def program():
    """Every .c and .cu file stands in the box of its subject; tests/test_lint.py counts them."""
    s = Sheet(960, 740, 'The files of the program, and the way of one token')
    floors = [(20, 'commands'), (122, 'a turn'), (244, 'text and ids'), (404, 'the model'),
              (506, 'devices'), (689, 'all of them')]
    for y, name in floors:
        s.text(16, y + 24, name, 'faint', 'start', 11)
    commands = [(100, 138, 'main.c', ['options.c find.c', 'info.c textfile.c']),
                (250, 174, 'repl.c', ['edit.c settings.c dropped.c', 'markdown.c transcript.c']),
                (436, 150, 'jsonl.c', ['request.c', 'requests in JSON']),
                (604, 150, 'score.c bench.c', ['log probabilities;', 'how fast is it here?']),
                (772, 172, 'check.c', ['does a schema compile,', 'does it allow a text?'])]
    for x, w, name, notes in commands:
        s.box(x, 20, w, 66, name, notes)
    s.box(100, 122, 318, 66, 'conversation.c', ['tools.c', 'a turn; what the model calls is run'])
    s.box(442, 122, 312, 66, 'generate.c',
          ['guide.c', 'the loop from prompt to answer'], 'strong')
    s.box(784, 122, 160, 66, 'draft.c', ['adapt.c', "a drafter's guesses"])
    s.box(100, 234, 144, 96, 'chat.c', ['declare.c', 'messages to prompt,', 'July 2026 template'])
    s.box(268, 234, 138, 96, 'tokenizer.c', ['text to ids,', 'byte-pair encoding'])
    s.box(442, 234, 116, 96, 'sampler.c', ['logits to an id'])
    s.box(574, 220, 222, 124, 'schema.c',
          ['which tokens a schema allows', 'objects.c arrays.c constants.c ranges.c',
           'strings.c apart.c holds.c places.c', 'keywords.c values.c document.c',
           'numbers.c pattern.c stringset.c', 'program.c states.c vocabulary.c'])
    s.box(808, 234, 136, 96, 'answer.c', ['call.c', 'ids to text,', 'thought and calls'])
    s.box(100, 394, 144, 66, 'media.c', ['image.c orient.c', 'ffmpeg.c sniff.c', 'pictures to patches'])
    s.box(268, 394, 150, 66, 'session.c', ['cache.c saved.c', 'ids held, kv cache'])
    s.box(442, 394, 138, 66, 'model.c', ['forward: the layers'], 'strong')
    s.box(650, 394, 294, 66, 'checkpoint.c',
          ['config.c fields.c lora.c safetensors.c directory.c', 'weights by name, in the mapped file'])
    s.box(268, 496, 486, 30, kind='warm')
    s.text(511, 516, 'ops.h: what a device must compute', 'text', weight=600)
    s.box(100, 558, 144, 118, 'plain.c',
          ['the formulas,', 'one thread:', 'the oracle of the tests'], 'strong')
    s.box(268, 558, 330, 118, 'cpu.c',
          ['vision.c offload.c handover.c slots.c', 'attention.c flash.c moe.c head.c',
           'residual.c, over multiply.c, strips.c',
           'threads.c (tasks for all threads)',
           'kernels.c kernels_c.c kernels_x86.c kernels_neon.c'])
    s.box(614, 558, 330, 118, 'cuda.cu',
          ['open.cu load.cu fetch.cu cached.cu handover.cu launch.cu',
           'step.cu qkv.cu attention.cu moe.cu few.cu head.cu', 'top.cu vision.cu',
           'residual.cu, stream.cu and nvfp4.cu (products), lora.cu',
           'fp4.cu and hopper.cu for the chips that have it'])
    s.box(100, 694, 844, 30, '', ['json.c util.c newfile.c: JSON, errors, buffers, files, UTF-8'])
    for x in (172, 433, 779):
        s.line((511, 526), (x, 557))
    # The way of a token, in the order of the numbers.
    for *points, number, x, y in [
            ((172, 87), (172, 121), 1, 172, 102),                               # a question
            ((172, 189), (172, 233), 2, 172, 208),                              # a conversation
            ((245, 282), (267, 282), 3, 256, 264),                              # a prompt
            ((419, 155), (441, 155), 4, 430, 137),                              # its ids
            ((462, 189), (462, 208), (424, 208), (424, 362), (343, 362), (343, 393), 5, 424, 346),
            ((419, 427), (441, 427), 6, 430, 409),                              # those not yet held
            ((511, 461), (511, 495), 7, 511, 476),                              # one operation
            ((615, 495), (615, 366), (500, 366), (500, 331), 8, 615, 380),      # logits
            ((573, 282), (559, 282), 9, 566, 264),                              # a mask
            ((500, 233), (500, 189), 10, 500, 210),                             # the next id
            ((700, 189), (700, 206), (876, 206), (876, 233), 11, 796, 206)]:    # the text
        s.line(*points, kind='way')
        s.step(x, y, number)
    s.write('program.svg')


def layer():
    s = Sheet(880, 330, 'One layer: what is read from the residual stream and added to it')
    s.line((20, 60), (862, 60), kind='way')
    s.text(24, 44, 'residual stream x [n][2816]', 'waytext', 'start', weight=600)
    def branch(x, names, back):
        s.line((x, 60), (x, 99))
        for i, (name, note) in enumerate(names):
            s.box(x - 62, 100 + 52 * i, 124, 40, name, [note])
            if i:
                s.line((x, 88 + 52 * i), (x, 99 + 52 * i))
        bottom = 100 + 52 * len(names) - 12
        if back:
            s.line((x, bottom), (x, bottom + 16), (back, bottom + 16), (back, 74))
    def plus(x):
        s.parts.append(f'<circle class="warm" cx="{x}" cy="60" r="11"/>')
        s.text(x, 65, '+', size=15, weight=600)
    branch(110, [('qkv', 'norm, q k v, rope'), ('attend', 'softmax(q·K) V'),
                 ('attn_out', 'o, norm')], 220)
    plus(220)
    s.box(244, 126, 130, 66, 'kv cache', ['K and V of the', 'positions before'], 'strong')
    s.line((243, 172), (173, 172))
    branch(450, [('mlp', 'norm, gate up down'), ('norm', 'post_…_1')], None)
    branch(590, [('route', '8 of 128 experts'), ('experts', 'gate up down each'),
                 ('norm', 'post_…_2')], None)
    s.line((450, 192), (450, 276), (712, 276))
    s.line((590, 244), (590, 276), tip=False)
    s.box(712, 256, 100, 40, 'join', ['sum, norm'])
    s.line((762, 256), (762, 74))
    plus(762)
    s.box(800, 44, 50, 32)
    s.text(825, 64, '· scalar', 'faint', size=10)
    s.text(520, 44, 'all three read the same x', 'faint', size=11)
    s.text(165, 292, 'attention', 'faint', size=11)
    s.text(600, 316, 'dense MLP and experts side by side', 'faint', size=11)
    s.write('layer.svg')


def ring():
    s = Sheet(880, 250, 'The ring of a sliding layer')
    x0, w, slots = 30, 40, 20
    s.text(x0, 30, 'A sliding layer keeps the last window + longest-step positions: position p lies in '
           'slot p % slots.', 'text', 'start', 13, 600)
    s.text(x0, 50, 'Here window 12, longest step 8, and a step evaluates positions 32 to 39.', 'faint',
           'start')
    for i in range(slots):
        p = 20 + i
        slot = p % slots
        x = x0 + w * slot
        kind = 'warm' if p >= 32 else 'strong' if p >= 21 else 'box'
        s.box(x, 90, w, 40, str(p), [], kind)
        s.text(x + w / 2, 82, str(slot), 'faint', size=10)
    s.text(x0 + w * slots / 2, 68, 'slot', 'faint', size=10)
    s.line((x0 + 12.5 * w, 150), (x0 + 12.5 * w, 134), kind='way')
    s.text(x0 + 12.5 * w, 166, 'position 32 sees 21 … 32', 'waytext', size=12)
    s.line((x0 + 19.5 * w, 190), (x0 + 19.5 * w, 134), kind='way')
    s.text(x0 + 20 * w, 206, 'position 39 sees 28 … 39', 'waytext', 'end', 12)
    s.text(x0, 166, 'The step overwrites positions 12 … 19, which none of', 'faint', 'start')
    s.text(x0, 182, 'its tokens sees: that is what the slots beyond the window are for.', 'faint', 'start')
    s.text(x0, 232, 'orange: written by this step; blue: still seen by it; grey: the next to be '
           'overwritten', 'faint', 'start', 11)
    s.write('ring.svg')


def nvfp4():
    s = Sheet(880, 300, 'Sixteen columns of an NVFP4 matrix')
    x0, w = 40, 100
    s.text(x0, 30, 'Sixteen columns of a row: eight bytes of weights, one byte of scale', 'text',
           'start', 13, 600)
    for j in range(8):
        s.box(x0 + w * j, 60, w / 2, 40, f'{2 * j + 1}', [], 'box')
        s.box(x0 + w * j + w / 2, 60, w / 2, 40, f'{2 * j}', [], 'strong')
        s.text(x0 + w * (j + 0.5), 52, f'byte {j}', 'faint', size=11)
    s.text(x0 + 110, 120, 'low nibble: the even column; high nibble: the odd one', 'faint', 'start',
           11)
    for i, name in enumerate('seem'):
        s.box(x0 + 34 * i, 150, 32, 32, name, [], 'strong')
    s.text(x0, 200, 'E2M1: 0 ½ 1 1½ 2 3 4 6,', 'text', 'start')
    s.text(x0, 216, 'and the same negative', 'faint', 'start', 11)
    s.line((x0 + 80, 104), (x0 + 62, 148))
    for i, name in enumerate('seeeemmm'):
        s.box(330 + 30 * i, 150, 28, 32, name, [], 'warm')
    s.text(330, 200, 'E4M3: the scale of these sixteen columns', 'text', 'start')
    s.text(330, 216, 'weight_scale [rows][cols / 16]', 'faint', 'start', 11)
    s.box(660, 150, 150, 32, 'float32', [], 'box')
    s.text(660, 200, 'the scale of the whole matrix', 'text', 'start')
    s.text(660, 216, 'weight_scale_2', 'faint', 'start', 11)
    s.text(440, 262, 'W[r][c] = e2m1(nibble) · (e4m3(weight_scale[r][c / 16]) · weight_scale_2)',
           size=14, weight=600)
    s.text(440, 284, '4.5 bits a weight', 'faint', size=11)
    s.write('nvfp4.svg')


def drafter():
    s = Sheet(940, 300, 'Two rounds of speculative decoding with three drafts')
    s.text(30, 30, 'Two rounds of three drafts: blue is accepted, orange is drawn by the target',
           'text', 'start', 13, 600)
    for y, name in [(84, 'drafter guesses'), (164, 'target evaluates'), (244, 'answer gets')]:
        s.text(30, y, name, 'text', 'start', 12, 600)
    rounds = [(164, 'near', ['the', 'old', 'tower'], 2, 'mill'),
              (540, 'mill', ['stood', 'by', 'the'], 3, 'sea')]
    for x, newest, drafts, right, drawn in rounds:
        s.box(x, 140, 70, 36, newest)
        for i, word in enumerate(drafts):
            at, kind = x + 76 * (i + 1), 'strong' if i < right else 'box'
            s.box(at, 60, 70, 36, word, [], kind)
            s.box(at, 140, 70, 36, word, [], kind)
            s.line((at + 35, 97), (at + 35, 138))
        for i, word in enumerate(drafts[:right] + [drawn]):
            at = x + 76 * (i + 1)
            s.box(at, 220, 70, 36, word, [], 'strong' if i < right else 'warm')
            s.line((at - 41, 177), (at + 35, 218))
    s.line((463, 238), (500, 238), (500, 158), (538, 158), kind='way')
    s.text(30, 284, 'One pass of the target over the newest token and the drafts tells what it '
           'would have drawn behind each of them.', 'faint', 'start', 11)
    s.write('drafter.svg')


for picture in (program, layer, ring, nvfp4, drafter):
    picture()
