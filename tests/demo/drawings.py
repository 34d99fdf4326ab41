"""Drawings of a few plain shapes, and conversations about them: how the demo learned to see.

`Scene(rng, w, h)` is a drawing: circles, squares, triangles, stars or rings in eight colours on a light ground, one shape, several
alike, or two different ones. `scene.draw()` paints it; `scene.talk(rng)` asks and answers about it.
`python drawings.py FOLDER` writes the twenty drawings that ../test_demo.py shows to the demo, and the two in ../../demo.
"""

import math
import os
import random
import sys

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "yellow": (245, 215, 40), "orange": (245, 140, 20),
           "purple": (130, 40, 170), "pink": (250, 130, 190), "black": (15, 15, 15)}
SHAPES = ["circle", "square", "triangle", "star", "ring"]
NUMBERS = ["zero", "one", "two", "three", "four"]
COLUMNS, ROWS = ["left", "", "right"], ["top", "", "bottom"]


def place(x, y):
    """Where a point of the unit square is, in words."""
    col, row = COLUMNS[min(2, int(x * 3))], ROWS[min(2, int(y * 3))]
    return f"at the {row} {col}".rstrip() if row else f"on the {col}" if col else "in the middle"


def an(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def outline(shape, x, y, r, turn):
    """Corners of a square, triangle or star around (x, y)."""
    n, first = {"square": (4, 45), "triangle": (3, -90), "star": (10, -90)}[shape]
    radius = [r * 1.15, r * (0.48 if shape == "star" else 1.15)]
    return [(x + radius[i % 2] * math.cos(a), y + radius[i % 2] * math.sin(a))
            for i in range(n) for a in [math.radians(first + turn + 360 * i / n)]]


class Scene:
    def __init__(self, rng, w, h):
        self.w, self.h, short = w, h, min(w, h)
        r = rng.random()
        self.n = 1 if r < 0.5 else 2 if r < 0.85 else rng.choice([3, 4])
        self.alike = self.n > 2 or self.n == 2 and rng.random() < 0.35
        kinds = [self.kind(rng)] * self.n if self.alike else [self.kind(rng) for _ in range(self.n)]
        if self.n == 2 and not self.alike:
            while kinds[0] == kinds[1]:
                kinds[1] = self.kind(rng)
        self.ground = rng.choice([(255, 255, 255)] * 4 + [tuple(rng.randrange(225, 256) for _ in range(3)), (235, 235, 235)])
        self.upright = rng.random() < 0.3                       # two shapes one above the other
        if self.n == 1:
            at = [(0.34, 0)]
            # near the border between two places nobody can say which it is
            while any(abs(c * 3 - k) < 0.3 for c in at[0] for k in (1, 2)):
                r = rng.uniform(0.14, 0.42)                     # of the shorter side
                edge = [min(0.5, r * 1.25 * short / side) for side in (w, h)]
                at = [tuple(rng.uniform(e, 1 - e) for e in edge)]
        elif self.n == 2:
            r = rng.uniform(0.12, 0.22)
            at = [(rng.uniform(0.2, 0.3), rng.uniform(0.3, 0.7)), (rng.uniform(0.7, 0.8), rng.uniform(0.3, 0.7))]
            if self.upright:
                at = [p[::-1] for p in at]
        else:
            r = rng.uniform(0.1, 0.17)
            at = rng.sample([(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)], self.n)
            at = [(x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04)) for x, y in at]
        jitter = lambda c: tuple(max(0, min(255, v + rng.randrange(-14, 15))) for v in c)
        self.shapes = [(c, s, x, y, r * rng.uniform(0.85, 1.1), rng.uniform(-12, 12), jitter(COLOURS[c])) for (c, s), (x, y) in zip(kinds, at)]

    @staticmethod
    def kind(rng):
        return rng.choice(list(COLOURS)), rng.choice(SHAPES)

    def paint(self, im, fills, ground):
        """The shapes on an image of any size."""
        pen, (w, h) = ImageDraw.Draw(im), im.size
        for fill, (_, s, x, y, r, turn, _) in zip(fills, self.shapes):
            x, y, r = x * w, y * h, r * min(w, h)
            if s in ("circle", "ring"):
                pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
                if s == "ring":
                    q = r * 0.58
                    pen.ellipse((x - q, y - q, x + q, y + q), fill=ground)
            else:
                pen.polygon(outline(s, x, y, r, turn), fill=fill)
        return im

    def draw(self):
        """The picture, its edges smooth."""
        im = Image.new("RGB", (self.w * 2, self.h * 2), self.ground)
        return self.paint(im, [s[6] for s in self.shapes], self.ground).resize((self.w, self.h), Image.BOX)

    def cells(self, columns, rows):
        """For each cell of a grid the number of the shape that covers a quarter of it, from 1, or 0."""
        grid = np.asarray(self.paint(Image.new("L", (columns * 8, rows * 8)), range(1, self.n + 1), 0)).reshape(rows, 8, columns, 8)
        cover = np.stack([(grid == k).mean((1, 3)) for k in range(1, self.n + 1)])
        return np.where(cover.max(0) >= 0.25, cover.argmax(0) + 1, 0)

    def names(self):
        return [f"{c} {s}" for c, s, *_ in self.shapes]

    def answer(self):
        """What is this?"""
        names = self.names()
        if self.n == 1:
            return f"{an(names[0]).capitalize()}."
        if self.alike:
            return f"{NUMBERS[self.n].capitalize()} {names[0]}s."
        return f"{an(names[0]).capitalize()} and {an(names[1])}."

    def talk(self, rng):
        """[(question, thought, answer)] about the drawing."""
        pick = lambda *a: rng.choice(a)
        names, (c, s, x, y, *_) = self.names(), self.shapes[0]
        whole = (pick("What is this?", "What do you see?", "What is in this picture?", "What is in the picture?", "What's this?", "What can you see?",
                      "What do you see in this picture?", "Describe this picture.", "Describe the picture.", "What is it?", "what is this", "what do you see",
                      "Name the shape and its colour.", "What is on this drawing?", "Tell me what you see.", "What does the picture show?"),
                 "I look at the picture.", self.answer())
        count = (pick("How many shapes are there?", "How many are there?", "How many shapes do you see?", "Count the shapes.", "how many?", "How many?"), "I count them.",
                 "There is one shape." if self.n == 1 else f"There are {NUMBERS[self.n]} shapes.")
        out = [whole, count]
        if self.n == 1:
            out += [(pick("What colour is it?", "Which colour is it?", f"What colour is the {s}?", "What color is it?", "what colour?", "What is the colour?"),
                     "I look at the colour.", f"It is {c}."),
                    (pick("What shape is it?", "Which shape is it?", "What shape is this?", "What is the shape?", f"What is the {c} thing?"), "I look at the shape.", f"It is {an(s)}."),
                    (pick("Where is it?", f"Where is the {s}?", f"Where is the {c} {s}?", "Where in the picture is it?"), "I look where it is.", f"It is {place(x, y)}.")]
            r = rng.random()
            if r < 0.15:
                t = rng.choice([k for k in SHAPES if k != s])
                out.append((f"Is it {an(t)}?", "I look at the shape.", f"No, it is {an(s)}."))
            elif r < 0.3:
                out.append((f"Is it {an(s)}?", "I look at the shape.", f"Yes, it is {an(s)}."))
            elif r < 0.45:
                t = rng.choice([k for k in COLOURS if k != c])
                out.append((f"Is it {t}?", "I look at the colour.", f"No, it is {c}."))
            elif r < 0.6:
                out.append((f"Is it {c}?", "I look at the colour.", f"Yes, it is {c}."))
        elif self.alike:
            out += [(pick("What colour are they?", f"What colour are the {s}s?", "What color are they?"), "I look at the colour.", f"They are {c}."),
                    (pick(f"How many {s}s are there?", f"How many {s}s do you see?"), "I count them.", f"There are {NUMBERS[self.n]} {s}s."),
                    (pick("What shapes are they?", "Which shape do they have?", "What are they?"), "I look at the shape.", f"They are {s}s.")]
        else:
            sides = ("at the top", "at the bottom") if self.upright else ("on the left", "on the right")
            i = rng.randrange(2)
            out.append((pick(f"What is {sides[i]}?", f"What do you see {sides[i]}?", f"Which shape is {sides[i]}?"), f"I look {sides[i]}.", f"{an(names[i]).capitalize()}."))
            out.append((pick(f"Where is the {names[i]}?",), "I look where it is.", f"It is {sides[i]}."))
            if self.shapes[0][1] != self.shapes[1][1]:
                out.append((f"What colour is the {self.shapes[i][1]}?", "I look at the colour.", f"It is {self.shapes[i][0]}."))
            if self.shapes[0][0] != self.shapes[1][0]:
                out.append((pick(f"What is {self.shapes[i][0]}?", f"Which shape is {self.shapes[i][0]}?"), "I look at the shape.", f"The {self.shapes[i][1]} is {self.shapes[i][0]}."))
        rng.shuffle(out)
        if whole in out[1:] and rng.random() < 0.4:
            out.remove(whole)
            out.insert(0, whole)
        return out[:rng.choices([1, 2, 3], [60, 25, 15])[0]]


def size(rng):
    """Width and height of a drawing."""
    if rng.random() < 0.55:
        return (rng.randrange(96, 513),) * 2
    w, h = rng.randrange(160, 641), rng.randrange(160, 641)
    return (w, h) if 0.5 <= w / h <= 2 else size(rng)


def write(scene, path):
    scene.draw().quantize(32).save(path, optimize=True)


if __name__ == "__main__":
    rng = random.Random(20)
    os.makedirs(sys.argv[1], exist_ok=True)
    for i in range(20):
        scene = Scene(rng, *size(rng))
        write(scene, f"{sys.argv[1]}/{i:02}-{scene.answer().rstrip('.').lower().replace(' ', '-')}.png")
    wanted = {"A red circle and a blue square.": "two-shapes.png", "An orange star.": "star.png"}         # those beside the demo
    while wanted:
        scene = Scene(rng, 320, 240)
        if not scene.upright and (name := wanted.pop(scene.answer(), None)):
            write(scene, f"{sys.argv[1]}/{name}")
