"""Make the demo checkpoint: tokenizer, training on the dialogues of corpus.py and calls.py and the drawings of drawings.py, export.

  python train.py --out WORK --minutes 110 --sight-share 0       from nothing, text alone
  python train.py --out WORK --minutes 60 --sight-minutes 15 --resume WORK/last.pt    then sight
  python train.py --out WORK --minutes 60 --resume ../../demo    go on from an earlier checkpoint (WORK/last.pt) or the exported one
  python export.py --ckpt WORK/last.pt --out ../../demo        NVFP4, into the form of the published checkpoint

Needs Python 3.10 or later, a C++ compiler (for torch.compile; --eager does without) and
  pip install torch transformers==5.23.0 nvidia-modelopt==0.43.0 sentencepiece safetensors tokenizers numpy \
      accelerate requests pillow
One core is enough; a core with bf16 dot products (AVX512_BF16, AMX) is four times as fast in the matrix products.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time

# large blocks are reused instead of being mapped and unmapped at every step: a quarter of the time otherwise
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "268435456"}
if __name__ == "__main__" and "MALLOC_MMAP_MAX_" not in os.environ:
    os.environ.update(MALLOC)
    os.execv(sys.executable, [sys.executable] + sys.argv)

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import model as M
from calls import call
from corpus import Writer, render
from drawings import COLOURS, Scene, SHAPES, size
from evaluate import dequantised
from tokenizer import make_tokenizer, Tokenizer


class Packer:
    """Batches of 2048 tokens. Documents go to rows just long enough for them: attention over long rows is dear."""

    def __init__(self, tok, seed, held_out=False, rows=(512, 1024, 2048), calls=0.15):
        self.tok, self.writer, self.rows, self.calls = tok, Writer(seed, held_out), rows, calls
        self.open = {t: [[] for _ in range(2048 // t)] for t in rows}

    def weigh(self, text, piece, w):
        """The digits of a result count more: they are few among many easy tokens, and hard."""
        if w < 0.4 or "=" not in text:
            return [w] * len(piece)
        out, result = [], False
        for i in piece:
            p = self.tok.sp.id_to_piece(i)
            result = p.endswith("=") or result and (p == "▁" or p.isdigit())
            out.append(w * 4 if result and p.isdigit() else w)
        return out

    def document(self):
        ids, weights = [], []
        if self.writer.rng.random() < self.calls:
            for text, w in call(self.writer):
                piece = self.tok.encode(text)
                ids += piece
                weights += [w] * len(piece)
            return ids, weights
        for text, w in render(self.writer.dialogue()):
            piece = self.tok.encode_piece(text)
            ids += piece
            weights += self.weigh(text, piece, w)
            if 0.1 < w < 1 and text != "<turn|>":        # answer in history: its first token is not trained
                weights[-len(piece)] = 0
        return ids, weights

    def batch(self):
        while True:
            ids, w = self.document()
            t = next((t for t in self.rows if len(ids) <= t), None)
            if t is None:
                continue
            bins = self.open[t]
            fit = [b for b in bins if sum(len(d[0]) for d in b) + len(ids) <= t]
            if fit:
                max(fit, key=lambda b: sum(len(d[0]) for d in b)).append((ids, w))
                continue
            self.open[t] = [[] for _ in bins]
            self.open[t][0].append((ids, w))
            return self.collate(bins, t)

    @staticmethod
    def collate(bins, t):
        B = len(bins)
        ids, pos, tgt = (torch.zeros(B, t, dtype=torch.long) for _ in range(3))
        doc = torch.full((B, t), -1)
        wt = torch.zeros(B, t)
        for r, b in enumerate(bins):
            a = 0
            for d, (x, w) in enumerate(b):
                n = len(x)
                ids[r, a:a + n] = torch.tensor(x)
                pos[r, a:a + n] = torch.arange(n)
                doc[r, a:a + n] = d
                tgt[r, a:a + n - 1] = torch.tensor(x[1:])
                wt[r, a:a + n - 1] = torch.tensor(w[1:])
                a += n
        return ids, pos, doc, tgt, wt


class Pictures:
    """Batches of 8 rows of 256 tokens, two or three conversations about drawings in each; all drawings of a batch have one size."""

    ROWS, LENGTH = 8, 256

    def __init__(self, tok, seed, held_out=False):
        self.tok, self.writer, self.small_talk = tok, Writer(seed, held_out), not held_out

    def conversation(self, scene, n):
        rng = self.writer.rng
        turns = scene.talk(rng)
        turns[0] = ("<|image><|image|><image|>" + turns[0][0], *turns[0][1:])
        if self.small_talk and rng.random() < 0.1:
            turns.insert(0, self.writer.topic("hello")[:3])
        if self.small_talk and rng.random() < 0.05:
            turns.append(self.writer.topic("thanks")[:3])
        ids, weights = [], []
        for text, w in render(dict(system=None, thinking=rng.random() < 0.15, turns=turns, style="")):
            piece = [j for i in self.tok.encode(text) for j in [i] * (n if i == self.tok.control["<|image|>"] else 1)]
            ids += piece
            weights += [0 if w < 0.1 else w] * len(piece)
        return ids, weights

    def batch(self):
        """(ids, pos, doc, targets, weights), patches [pictures, P, 768] of 0..1, columns, classes of the soft tokens"""
        w, h = size(self.writer.rng)
        columns, rows = soft_grid(w, h)
        bins, patches, classes = [[] for _ in range(self.ROWS)], [], []
        for b in bins:
            while True:
                scene = Scene(self.writer.rng, w, h)
                doc = self.conversation(scene, columns * rows)
                if sum(len(d[0]) for d in b) + len(doc[0]) > self.LENGTH:
                    break
                b.append(doc)
                patches.append(patches_of(scene, columns, rows))
                classes.append(classes_of(scene, columns, rows))
        return Packer.collate(bins, self.LENGTH), torch.stack(patches), columns * 3, torch.stack(classes)


def patches_of(scene, columns, rows):
    """[patches, 768] of 0..1"""
    im = np.array(scene.draw().resize((columns * 48, rows * 48), Image.BICUBIC))
    return torch.from_numpy(im.reshape(rows * 3, 16, columns * 3, 16, 3).swapaxes(1, 2).reshape(-1, 768)).float() / 255


def classes_of(scene, columns, rows):
    """[soft tokens, 2]: colour and shape of what each shows, the number after the last one where it is empty"""
    kinds = [(len(COLOURS), len(SHAPES))] + [(list(COLOURS).index(c), SHAPES.index(s)) for c, s, *_ in scene.shapes]
    return torch.tensor(kinds)[torch.from_numpy(scene.cells(columns, rows).ravel())]


def soft_grid(w, h, tokens=70):
    """Columns and rows of soft tokens of a picture (image_processing_gemma4.py; no picture here is long enough for its special cases)."""
    f = (tokens * 9 * 256 / (w * h)) ** 0.5
    return int(f * w // 48), int(f * h // 48)


class Namer:
    """What each soft token shows, read off its likeness to the embeddings of the words: it teaches the tower to say things in the
    text model's terms, long before the text model asks."""

    def __init__(self, tok):
        first = lambda words: torch.tensor([tok.sp.encode(" " + w)[0] for w in words])
        self.words = first([*COLOURS, "white"]), first([*SHAPES, "picture"])

    def loss(self, model, soft, classes):
        e = F.normalize(model.model.language_model.embed_tokens.weight.detach(), dim=-1)
        z = M.rms(soft)
        out = 0
        for k, words in enumerate(self.words):
            weight = torch.ones(len(words))
            weight[-1] = 0.1                                # most of a picture is empty
            out = out + F.cross_entropy(F.linear(z, e[words]).flatten(0, 1), classes[..., k].flatten(), weight)
        return out


def descend(loss, opt):
    """One step downhill; returns the norm of the gradient, before it was clipped."""
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for g in opt.param_groups for p in g["params"]], 1.0)
    opt.step()
    opt.zero_grad()
    return norm


def open_eyes(model, namer, minutes, lr, seed, say):
    """The vision tower alone, on small pictures: in the same time it sees ten times as many as beside the text model."""
    learned = [p for n, p in model.named_parameters() if "vision" in n]
    opt = torch.optim.AdamW(learned, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    rng, start, step = random.Random(seed), time.time(), 0
    while (done := (time.time() - start) / 60 / minutes) < 1:
        for g in opt.param_groups:
            g["lr"] = lr * min(1, (step + 1) / 100) * min(1, (1 - done) / 0.3)
        n = 5 if done < 0.2 else rng.choice([5, 5, 6, 8])
        scenes = [Scene(rng, n * 48, n * 48) for _ in range(2000 // n ** 2)]
        soft = M.see(model, torch.stack([patches_of(s, n, n) for s in scenes]), n * 3)
        loss = namer.loss(model, soft, torch.stack([classes_of(s, n, n) for s in scenes]))
        descend(loss, opt)
        step += 1
        if step % 100 == 0:
            say(f"seeing alone: step {step} {time.time() - start:.0f}s loss {loss.item():.4f}")


def groups(model, decay):
    """Weight decay for matrices only; another learning rate for the vision tower."""
    mats, rest, sight = [], [], []
    for n, p in model.named_parameters():
        if "vision" in n:
            sight.append(p)
        elif p.dim() >= 2 and "embed" not in n and "router" not in n:
            mats.append(p)
        else:
            rest.append(p)
    return [dict(params=mats, weight_decay=decay), dict(params=rest, weight_decay=0.0), dict(params=sight, weight_decay=0.0)]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    ap.add_argument("--resume", help="WORK/last.pt, or an exported folder")
    ap.add_argument("--minutes", type=float, default=110)
    ap.add_argument("--lr", type=float, default=2.5e-3)
    ap.add_argument("--decay-share", type=float, default=0.3, help="share of the time in which lr falls to zero")
    ap.add_argument("--qat-share", type=float, default=0.08, help="share of the time, at the end, with experts as NVFP4")
    ap.add_argument("--sight-lr", type=float, default=3e-3)
    ap.add_argument("--sight-share", type=float, default=0.55, help="share of the steps with drawings")
    ap.add_argument("--call-share", type=float, default=0.15, help="share of the other conversations that have tools")
    ap.add_argument("--sight-minutes", type=float, default=0, help="first a new vision tower is trained alone for so long")
    ap.add_argument("--warmup", type=int, default=300)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--eager", action="store_true")
    args = ap.parse_args()
    torch.set_num_threads(1)
    os.makedirs(args.out, exist_ok=True)
    earlier = args.resume and (args.resume if os.path.isdir(args.resume) else os.path.dirname(args.resume) or ".")
    if earlier and not os.path.exists(f"{args.out}/tokenizer.model"):
        for name in ("tokenizer.model", "tokenizer.json"):
            shutil.copy(f"{earlier}/{name}", args.out)
    elif not earlier and not os.path.exists(f"{args.out}/tokenizer.model"):
        make_tokenizer(args.out, M.VOCAB)
    tok = Tokenizer(args.out)
    model = M.new_model(M.config_dict(tok.control))
    opt = torch.optim.AdamW(groups(model, 0.05), lr=args.lr, betas=(0.9, 0.98), eps=1e-9, fused=True)
    step = 0
    if args.resume and os.path.isdir(args.resume):          # an exported folder: a fresh optimiser
        known = dequantised(args.resume)
        model.load_state_dict({k: v for k, v in known.items() if not (args.sight_minutes and "vision" in k)}, strict=False)
    elif args.resume:
        ck = torch.load(args.resume)
        model.load_state_dict(ck["model"])
        opt.load_state_dict(ck["opt"])
        step = ck["step"]
    first = step
    pre, post, head = M.pre_moe, M.post_moe, M.head_loss
    if not args.eager:
        pre, post = (torch.compile(f, dynamic=False) for f in (pre, post))
        head = torch.compile(head, dynamic=True)
        torch._dynamo.config.cache_size_limit = 64
    data, pictures, namer = Packer(tok, args.seed * 1000003 + step, calls=args.call_share), Pictures(tok, args.seed * 1000003 + step), Namer(tok)
    turn = random.Random(args.seed + step)
    held = [Packer(tok, 77, held_out=True).batch() for _ in range(1)]
    log = open(f"{args.out}/log.txt", "a")

    def say(s):
        print(s, flush=True)
        log.write(s + "\n")
        log.flush()

    def save(name):
        path = f"{args.out}/{name}.pt"
        torch.save(dict(model=model.state_dict(), opt=opt.state_dict(), step=step), path + ".tmp")
        os.replace(path + ".tmp", path)

    say(json.dumps(vars(args)))
    if args.sight_minutes:
        open_eyes(model, namer, args.sight_minutes, args.sight_lr, args.seed, say)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))      # save and end
    t0 = saved = time.time()
    total = args.minutes * 60
    mean, bmean, sight = None, None, (0, 0)
    while (done := (time.time() - t0) / total) < 1 and not stop:
        rise = min(1, (step - first + 1) / args.warmup) * min(1, (1 - done) / args.decay_share)
        for g, lr in zip(opt.param_groups, (args.lr, args.lr, args.sight_lr)):
            g["lr"] = lr * rise
        seeing = turn.random() < args.sight_share
        how = dict(qat=done > 1 - args.qat_share, pre=pre, post=post, head=head)
        if seeing:
            text, patches, columns, classes = pictures.batch()
            soft = M.see(model, patches, columns)
            loss, balance = M.fast_loss(model, *text, soft=soft.flatten(0, 1), **how)
            named = namer.loss(model, soft, classes)
            norm = descend(loss + 0.01 * balance + 0.3 * named, opt)
            sight = [x if o == 0 else 0.98 * o + 0.02 * x for x, o in zip((loss.item(), named.item()), sight)]
        else:
            loss, balance = M.fast_loss(model, *data.batch(), **how)
            norm = descend(loss + 0.01 * balance, opt)
            mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        step += 1
        bmean = balance.item() if bmean is None else 0.98 * bmean + 0.02 * balance.item()
        if step % 50 == 0:
            say(f"step {step} {time.time() - t0:.0f}s loss {mean or 0:.4f} seeing {sight[0]:.4f} naming {sight[1]:.4f} balance {bmean:.3f} norm {norm:.2f} lr {lr:.2e}")
        if step % 500 == 0:
            with torch.no_grad():
                h = sum(M.fast_loss(model, *b)[0].item() for b in held) / len(held)
            say(f"step {step} held-out loss {h:.4f}")
        if time.time() - saved > 240:
            save("last")
            saved = time.time()
    save("last")
    if not stop:
        save(f"step{step}")
    say("done")


if __name__ == "__main__":
    main()
