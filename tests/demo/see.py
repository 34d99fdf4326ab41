"""Teach the demo checkpoint to see: drawings of one to four shapes, their colour, shape, number and place.

  python see.py --minutes 60 --work WORK                 train; WORK/tower.pt is written on the way, --resume goes on from it
  python see.py --work WORK --export ../../demo          put the tower into the checkpoint, two drawings beside it, and
                                                         twenty for the tests into ../fixtures/drawings
  python see.py --evaluate ../../demo                    100 drawings that training has never seen

Only the vision tower and its projection are trained: first alone, to tell colours, shapes, numbers and places apart, then
through the frozen text model. Without a picture the checkpoint says what it said before, bit for bit. Drawings of the hash's last twentieth are kept for evaluation.
"""

import argparse
import json
import math
import os
import random
import time
import zlib

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as tvF

from evaluate import load

SOFT = 70                                # vision_soft_tokens_per_image: a square drawing becomes 8 x 8 soft tokens
SIDE = 24                                # patches
COLOURS = dict(red=(220, 30, 30), blue=(40, 60, 220), green=(30, 160, 50), yellow=(250, 220, 40), orange=(250, 140, 20),
               black=(20, 20, 20), purple=(140, 40, 170))
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("", "one", "two", "three", "four")
PLACES = {"left": (0.22, 0.5), "right": (0.78, 0.5), "top": (0.5, 0.22), "bottom": (0.5, 0.78), "middle": (0.5, 0.5)}
WHERE = dict(left="on the left", right="on the right", top="at the top", bottom="at the bottom", middle="in the middle")


def scene(rng, held_out=False):
    """(colour, shape, [(x, y, radius)], place or None): one shape somewhere, or several of a kind."""
    while True:
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        n = rng.choice((1, 1, 2, 3, 4))
        place = rng.choice(list(PLACES)) if n == 1 else None
        if n == 1:
            x, y = PLACES[place]
            at = [(x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.06, 0.06), rng.uniform(0.15, 0.2))]
        else:
            cells = rng.sample([(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], n)
            at = [(x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05), rng.uniform(0.14, 0.19)) for x, y in cells]
        at = [tuple(round(v, 3) for v in p) for p in at]
        if (zlib.crc32(repr((colour, shape, at)).encode()) % 20 == 0) == held_out:
            return colour, shape, at, place


def draw(s, side):
    colour, shape, at, _ = s
    image = Image.new("RGB", (4 * side, 4 * side), "white")
    d = ImageDraw.Draw(image)
    for x, y, r in at:
        x, y, r = (4 * side * v for v in (x, y, r))
        if shape == "circle":
            d.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
        elif shape == "square":
            d.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=COLOURS[colour])
        else:
            d.polygon([(x + 1.15 * r * math.sin(a), y - 1.15 * r * math.cos(a)) for a in (0, 2.094, 4.189)], fill=COLOURS[colour])
    return image.resize((side, side), Image.BOX)


def talk(s, rng):
    """A question and its answer."""
    colour, shape, at, place = s
    n = len(at)
    many = f"{NUMBERS[n]} {colour} {shape}s" if n > 1 else f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"
    kind = rng.choice(("see", "see", "see", "colour", "shape", "count", "where"))
    if kind == "where" and place:
        return rng.choice(("Where is it?", f"Where is the {shape}?")), f"It is {WHERE[place]}."
    if kind == "colour":
        return ("What colour is it?", f"It is {colour}.") if n == 1 else ("What colour are they?", f"They are {colour}.")
    if kind == "shape":
        return ("What shape is it?", f"It is a {shape}.") if n == 1 else ("What shapes are they?", f"They are {shape}s.")
    if kind == "count":
        return "How many are there?", f"There {'is one' if n == 1 else 'are ' + NUMBERS[n]}."
    return rng.choice(("What do you see?", "What is this?", "What is in the picture?")), f"I see {many}."


def patches(images):
    """As image_processing_gemma4.py does it for a square at SOFT soft tokens."""
    out = []
    for image in images:
        t = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1).contiguous()
        t = tvF.resize(t, [16 * SIDE, 16 * SIDE], interpolation=tvF.InterpolationMode.BICUBIC, antialias=True).float() / 255
        out.append(t.reshape(3, SIDE, 16, SIDE, 16).permute(1, 3, 2, 4, 0).reshape(SIDE * SIDE, 768))
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack(out), torch.stack((x, y), -1).view(1, -1, 2).repeat(len(images), 1, 1)


def encode(tok, question, answer=None):
    """ids of the prompt with its picture, and of the answer."""
    soft = "<|image>" + "<|image|>" * (SIDE * SIDE // 9) + "<image|>"
    ids = tok.encode(f"<bos><|turn>user\n{soft}{question}<turn|>\n<|turn>model\n<|channel>thought\n<channel|>")
    return ids, tok.encode(answer + "<turn|>") if answer else []


def classes(s):
    """What is in a scene, as numbers: colour, shape, how many, where (5: several places)."""
    colour, shape, at, place = s
    return list(COLOURS).index(colour), SHAPES.index(shape), len(at) - 1, list(PLACES).index(place) if place else 5


def look(model, scenes, sides):
    """The soft tokens of drawings, [drawings][soft tokens][hidden]."""
    return torch.stack(tuple(model.model.get_image_features(*patches([draw(s, side) for s, side in zip(scenes, sides)])).pooler_output))


def named(hint, soft, scenes):
    """hint is a linear layer that names a scene from its mean soft token: its loss, and how often it is right in each respect."""
    out = hint(soft.mean(1)).split((len(COLOURS), len(SHAPES), 4, 6), -1)
    target = torch.tensor([classes(s) for s in scenes])
    return (sum(F.cross_entropy(t, target[:, i]) for i, t in enumerate(out)),
            [(t.argmax(-1) == target[:, i]).float().mean().item() for i, t in enumerate(out)])


def forward(model, tok, soft, texts):
    """The mean loss of the answers, and the share of them that greedy decoding would give."""
    m, lm = model.model, model.model.language_model
    pairs = [encode(tok, q, a) for q, a in texts]
    n = max(len(p) + len(a) for p, a in pairs)
    ids = torch.tensor([p + a + [0] * (n - len(p) - len(a)) for p, a in pairs])
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (p, a) in enumerate(pairs):
        keep[i, len(p) - 1:len(p) + len(a) - 1] = True
    here = ids == tok.control["<|image|>"]
    x = lm.embed_tokens(ids.masked_fill(here, 0)).masked_scatter(here[..., None], soft)
    h = m(inputs_embeds=x, mm_token_type_ids=here.long(), use_cache=False).last_hidden_state
    z = 30 * torch.tanh(F.linear(h[keep], lm.embed_tokens.weight) / 30)
    want = torch.roll(ids, -1, 1)[keep]
    good = torch.tensor([(z.argmax(-1) == want)[keep.nonzero()[:, 0] == i].all() for i in range(len(pairs))])
    return F.cross_entropy(z, want), good.float().mean().item()


def trained(model):
    return {k: v for k, v in model.named_parameters() if "vision" in k}


def train(model, tok, args):
    rng = random.Random(int(time.time()))
    for p in model.parameters():
        p.requires_grad_(False)
    tower = trained(model)
    for p in tower.values():
        p.requires_grad_(True)
    hint = torch.nn.Linear(model.config.text_config.hidden_size, len(COLOURS) + len(SHAPES) + 10)
    opt = torch.optim.AdamW([*tower.values(), *hint.parameters()], lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    path = f"{args.work}/tower.pt"
    step, start, mean, right, seen = 0, time.time(), None, 0.0, [0.0] * 4
    if args.resume:
        saved = torch.load(path)
        model.load_state_dict(saved["tower"], strict=False)
        hint.load_state_dict(saved["hint"])
    saved_at = time.time()
    while (done := (time.time() - start) / 60 / args.minutes) < 1:
        for g in opt.param_groups:
            g["lr"] = args.lr * min(1, (step + 1) / 100) * min(1, (1 - done) / 0.3)
        scenes = [scene(rng) for _ in range(args.batch)]
        soft = look(model, scenes, [rng.randrange(48, 129) for _ in scenes])
        hints, ok = named(hint, soft, scenes)
        loss, good = forward(model, tok, soft, [talk(s, rng) for s in scenes]) if done > args.look else (torch.zeros(()), 0)
        (loss + hints).backward()
        torch.nn.utils.clip_grad_norm_(tower.values(), 1.0)
        opt.step()
        opt.zero_grad()
        step += 1
        mean = loss.item() if mean is None else 0.97 * mean + 0.03 * loss.item()
        right = 0.97 * right + 0.03 * good
        seen = [0.95 * a + 0.05 * b for a, b in zip(seen, ok)]
        if step % 20 == 0:
            print(f"step {step} {time.time() - start:.0f}s loss {mean:.4f} right {right:.3f} hints " + " ".join(f"{v:.2f}" for v in seen), flush=True)
        if time.time() - saved_at > 60:
            torch.save(dict(tower={k: v.detach() for k, v in tower.items()}, hint=hint.state_dict()), path)
            saved_at = time.time()
    torch.save(dict(tower={k: v.detach() for k, v in tower.items()}, hint=hint.state_dict()), path)


def evaluate(model, tok):
    rng = random.Random(5)
    with torch.no_grad():
        for kind in ("see", "colour", "shape", "count", "where"):
            scenes, texts = [], []
            while len(scenes) < 100:
                s = scene(rng, held_out=True)
                pick = random.Random(len(scenes))
                pick.choice = lambda options: kind if "see" in options else options[0]
                if kind != "where" or s[3]:
                    scenes.append(s)
                    texts.append(talk(s, pick))
            good = [forward(model, tok, look(model, scenes[i:i + 20], [96] * 20), texts[i:i + 20])[1] for i in range(0, 100, 20)]
            print(f"{kind}: {sum(good) / len(good):.2f} right")


def export(args):
    """Replaces the tower's tensors in the checkpoint; every other byte of it stays."""
    tower = torch.load(f"{args.work}/tower.pt")["tower"]
    path = f"{args.export}/model.safetensors"
    with safe_open(path, "pt") as f:
        tensors, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    for k, v in tower.items():
        assert tensors[k].shape == v.shape
        tensors[k] = v.to(tensors[k].dtype).contiguous()
    save_file(tensors, path + ".tmp", metadata)
    os.replace(path + ".tmp", path)
    config = json.load(open(f"{args.export}/config.json"))
    config["vision_soft_tokens_per_image"] = config["vision_config"]["default_output_length"] = SOFT
    with open(f"{args.export}/config.json", "w") as f:
        json.dump(config, f, indent=2, sort_keys=True, ensure_ascii=False)
        f.write("\n")
    rng = random.Random(8)
    for name, n in (("drawing1.png", 1), ("drawing2.png", 3)):
        s = next(s for s in iter(lambda: scene(rng, held_out=True), None) if len(s[2]) == n)
        draw(s, 96).save(f"{args.export}/{name}", optimize=True)
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../fixtures/drawings")
    os.makedirs(folder, exist_ok=True)
    for i in range(20):
        colour, shape, at, _ = s = scene(rng, held_out=True)
        draw(s, 96).save(f"{folder}/{i:02d}-{colour}-{shape}-{len(at)}.png", optimize=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--minutes", type=float, default=60)
    ap.add_argument("--work")
    ap.add_argument("--resume", action="store_true")
    ap.add_argument("--export", help="the checkpoint's folder")
    ap.add_argument("--evaluate", help="the checkpoint's folder")
    ap.add_argument("--look", type=float, default=0.4, help="share of the time in which the tower learns alone, by hints")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--batch", type=int, default=16)
    args = ap.parse_args()
    torch.set_num_threads(1)
    if args.export:
        return export(args)
    model, tok = load(args.evaluate or os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../demo"))
    if args.evaluate:
        return evaluate(model, tok)
    model.config.vision_config._attn_implementation = "sdpa"
    os.makedirs(args.work, exist_ok=True)
    if not args.resume:                  # as made, the tower is too quiet to be heard by the text model
        torch.manual_seed(1)
        for k, p in trained(model).items():
            if p.dim() >= 2:
                p.data.normal_(0, 0.02 if "table" in k else p.shape[-1] ** -0.5)
            elif "q_norm" in k or "k_norm" in k:
                p.data.fill_(16 ** -0.25)
        model.model.embed_vision.embedding_projection.weight.data.normal_(0, 0.06)
    train(model, tok, args)


if __name__ == "__main__":
    main()
