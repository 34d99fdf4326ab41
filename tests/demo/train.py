"""Make the demo checkpoint: tokenizer, training on the dialogues of corpus.py, export.

  python train.py --out WORK --minutes 110                     from nothing
  python train.py --out WORK --minutes 60 --resume WORK/last.pt  go on from an earlier checkpoint (or ../../demo)
  python export.py --ckpt WORK/last.pt --out ../../demo        NVFP4, into the form of the published checkpoint

Needs Python 3.10 or later, a C++ compiler (for torch.compile; --eager does without) and
  pip install torch transformers==5.23.0 nvidia-modelopt==0.43.0 sentencepiece safetensors tokenizers numpy \
      accelerate requests
One core is enough; a core with bf16 dot products (AVX512_BF16, AMX) is four times as fast in the matrix products.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time

# large blocks are reused instead of being mapped and unmapped at every step: a quarter of the time otherwise
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "268435456"}
if __name__ == "__main__" and "MALLOC_MMAP_MAX_" not in os.environ:
    os.environ.update(MALLOC)
    os.execv(sys.executable, [sys.executable] + sys.argv)

import torch

import model as M
from corpus import Writer, render
from evaluate import dequantised
from tokenizer import make_tokenizer, Tokenizer


class Packer:
    """Batches of 2048 tokens. Documents go to rows just long enough for them: attention over long rows is dear."""

    def __init__(self, tok, seed, held_out=False, rows=(512, 1024, 2048)):
        self.tok, self.writer, self.rows = tok, Writer(seed, held_out), rows
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


def groups(model, decay):
    """Weight decay for matrices only; the vision tower is left out."""
    mats, rest = [], []
    for n, p in model.named_parameters():
        if "vision" in n:
            p.requires_grad_(False)
        elif p.dim() >= 2 and "embed" not in n and "router" not in n:
            mats.append(p)
        else:
            rest.append(p)
    return [dict(params=mats, weight_decay=decay), dict(params=rest, weight_decay=0.0)]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    ap.add_argument("--resume", help="WORK/last.pt, or an exported folder")
    ap.add_argument("--minutes", type=float, default=110)
    ap.add_argument("--lr", type=float, default=2.5e-3)
    ap.add_argument("--decay-share", type=float, default=0.3, help="share of the time in which lr falls to zero")
    ap.add_argument("--qat-share", type=float, default=0.08, help="share of the time, at the end, with experts as NVFP4")
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
        model.load_state_dict(dequantised(args.resume), strict=False)
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
    data = Packer(tok, args.seed * 1000003 + step)
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
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))      # save and end
    t0 = saved = time.time()
    total = args.minutes * 60
    mean, bmean = None, None
    while (done := (time.time() - t0) / total) < 1 and not stop:
        lr = args.lr * min(1, (step - first + 1) / args.warmup) * min(1, (1 - done) / args.decay_share)
        for g in opt.param_groups:
            g["lr"] = lr
        loss, balance = M.fast_loss(model, *data.batch(), qat=done > 1 - args.qat_share, pre=pre, post=post, head=head)
        (loss + 0.01 * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_([p for g in opt.param_groups for p in g["params"]], 1.0)
        opt.step()
        opt.zero_grad()
        step += 1
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        bmean = balance.item() if bmean is None else 0.98 * bmean + 0.02 * balance.item()
        if step % 50 == 0:
            say(f"step {step} {time.time() - t0:.0f}s loss {mean:.4f} balance {bmean:.3f} norm {norm:.2f} lr {lr:.2e}")
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
