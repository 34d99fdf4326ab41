"""Measure a training checkpoint (.pt) or an exported folder: sums, held-out questions, drawings, sample conversations.

  python evaluate.py WORK/last.pt            python evaluate.py ../../demo --temperature 0.3
  python evaluate.py ../../demo --chat       talk to it (lines from stdin; /think, /system TEXT, /new)
"""

import argparse
import json
import os
import random
import sys

import torch
import torch.nn.functional as F
from safetensors import safe_open

import model as M
from corpus import Writer, is_held_out, render
from tokenizer import Tokenizer

E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def dequantised(folder):
    """State dict of an exported folder in float32, experts fused again."""
    raw = {}
    with safe_open(f"{folder}/model.safetensors", "pt") as f:
        for k in f.keys():
            raw[k] = f.get_tensor(k)
    out, experts = {}, {}
    for k, v in raw.items():
        if ".experts." in k and not k.endswith(".weight") or k.endswith((".k_scale", ".v_scale")):
            continue                                   # scales: read with their weight; the KV scales are not needed
        if v.dtype == torch.uint8:
            base = k[:-len("weight")]
            q = torch.stack((v & 15, v >> 4), -1).flatten(-2).long()
            s = raw[base + "weight_scale"].float() * raw[base + "weight_scale_2"]
            v = (E2M1[q].view(*q.shape[:-1], -1, 16) * s[..., None]).view(q.shape)
            layer, rest = k.split(".experts.")
            e, name = rest.split(".")[:2]
            experts.setdefault(layer, {}).setdefault(name, {})[int(e)] = v
        else:
            out[k] = v.float()
    for layer, d in experts.items():
        st = {n: torch.stack([d[n][e] for e in range(len(d[n]))]) for n in d}
        out[layer + ".experts.gate_up_proj"] = torch.cat((st["gate_proj"], st["up_proj"]), 1)
        out[layer + ".experts.down_proj"] = st["down_proj"]
    return out


def load(path, tokenizer=None):
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    tok = Tokenizer(tokenizer or folder)
    cfg = M.config_dict(tok.control)
    if os.path.exists(f"{path}/config.json"):
        cfg = json.load(open(f"{path}/config.json"))
        cfg.pop("quantization_config")
    model = M.new_model(cfg)
    sd = dequantised(path) if os.path.isdir(path) else torch.load(path)["model"]
    missing, unexpected = model.load_state_dict(sd, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model.eval(), tok


def prompt(turns, system=None, thinking=False):
    """The chat template's text for [(user, answer), ..., (user, None)]."""
    s = "<bos>"
    sys_text = ("<|think|>\n" if thinking else "") + (system or "")
    if sys_text:
        s += f"<|turn>system\n{sys_text}<turn|>\n"
    for u, a in turns:
        s += f"<|turn>user\n{u.strip()}<turn|>\n<|turn>model\n"
        if a is not None:
            s += f"{a.strip()}<turn|>\n"
    return s if thinking else s + "<|channel>thought\n<channel|>"


@torch.no_grad()
def generate(model, tok, prompts, n=200, temperature=0.0, seed=0):
    """Continuations (lists of ids, the end token included) of prompts given as ids."""
    torch.manual_seed(seed)
    ends = {tok.control["<eos>"], tok.control["<turn|>"], tok.control["<|tool_response>"]}
    T = max(map(len, prompts))
    ids = torch.tensor([[0] * (T - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=n, do_sample=temperature > 0, eos_token_id=list(ends),
                         pad_token_id=0, **(dict(temperature=temperature, top_k=64, top_p=0.95) if temperature else {}))
    res = []
    for row in out[:, T:].tolist():
        k = next((i for i, t in enumerate(row) if t in ends), len(row) - 1)
        res.append(row[:k + 1])
    return res


def answer(text):
    """What the user sees of a continuation: the part after the thought."""
    text = text.split("<channel|>")[-1]
    return text.replace("<turn|>", "").strip()


def sums(model, tok, n, thinking, limit, held_out=True, seed=3):
    rng = random.Random(seed)
    todo = []
    while len(todo) < n:
        a, b = rng.randrange(limit), rng.randrange(limit)
        op = rng.choice("+-")
        if op == "-" and a < b:
            a, b = b, a
        if limit > 10 and held_out and not is_held_out(f"{a}plus{b}" if op == "+" else f"{a}minus{b}", 20):
            continue
        todo.append((a, b, op))
    ok = 0
    wrong = []
    for i in range(0, n, 50):
        part = todo[i:i + 50]
        qs = [tok.encode(prompt([(rng.choice(["What is {} {} {}?", "{} {} {}", "How much is {} {} {}?"]).format(a, op, b), None)], thinking=thinking)) for a, b, op in part]
        for (a, b, op), c in zip(part, generate(model, tok, qs)):
            want = a + b if op == "+" else a - b
            got = answer(tok.decode(c))
            if got.rstrip(".").split(" ")[-1] == str(want):
                ok += 1
            else:
                wrong.append(f"{a}{op}{b}: {got}")
    return ok / n, wrong


def held_loss(model, tok, n=6):
    from train import Packer
    data = Packer(tok, 77, held_out=True)
    with torch.no_grad():
        return sum(M.fast_loss(model, *data.batch())[0].item() for _ in range(n)) / n


@torch.no_grad()
def sight(model, tok, n=20):
    """Of n batches of conversations about new drawings: how many the model would hold word for word, being told the turns before."""
    from train import Pictures
    data, right, total, lm = Pictures(tok, 77, held_out=True), 0, 0, model.model.language_model
    for _ in range(n):
        (ids, pos, doc, tgt, wt), patches, columns, _ = data.batch()
        x, _ = M.trunk(model, ids, pos, doc, soft=M.see(model, patches, columns).flatten(0, 1))
        wrong = (F.linear(M.rms(x, lm.norm.weight), lm.embed_tokens.weight).argmax(-1) != tgt) & (wt > 0)
        for row in range(len(ids)):
            for d in range(doc[row].max() + 1):
                total += 1
                right += not (wrong[row] & (doc[row] == d)).any()
    return right / total


TALKS = [
    (None, False, ["hi", "how are you?", "what is this program?", "how do i use it with the real model", "My name is Belinda.", "tell me a joke", "what is 27 + 15?", "what's my name?", "thanks, bye"]),
    (None, False, ["Good morning! Who are you?", "who made you", "what can you do?", "how big are you", "what is an expert?", "do you like cats?", "capital of france?", "and of Japan?", "what's the weather like", "you are stupid"]),
    (None, True, ["What is 348 + 275?", "who are you?", "I have 12 apples and eat 5, how many are left?", "83 - 47", "what commands are there?"]),
    ("Answer in French.", False, ["Hello", "How are you?", "Who are you?", "What is 3 + 4?", "Thank you, bye!"]),
    ("Antworte auf Deutsch.", True, ["Hallo, wer bist du?", "Was kannst du?", "what is gemma4?", "12 + 30"]),
    ("Talk like a pirate.", False, ["Hello", "Who are you?", "Tell me a fact", "What is your favourite colour?"]),
    ("Answer in capital letters.", False, ["Hello", "Who are you?", "thanks"]),
    ("Be brief.", False, ["Who are you?", "how do I run the real model?"]),
    (None, False, ["I'm Zork and I live in Lyon", "I have a dog called Rex", "What's the name of my dog?", "who am i", "where do I live?", "Can you explain the theory of relativity?", "what is 17*23?", "write me a poem", "how do I leave the chat?", "what does --think do"]),
]


def talk(model, tok, temperature=0.0):
    for system, thinking, lines in TALKS:
        print(f"--- system: {system}, thinking: {thinking}")
        turns = []
        for q in lines:
            ids = tok.encode(prompt(turns + [(q, None)], system, thinking))
            text = tok.decode(generate(model, tok, [ids], temperature=temperature)[0])
            print(f"> {q}\n{text}")
            turns.append((q, answer(text)))


def chat(model, tok, temperature):
    turns, system, thinking = [], None, False
    for line in sys.stdin:
        line = line.strip()
        if line == "/think":
            thinking = not thinking
        elif line == "/new":
            turns = []
        elif line.startswith("/system"):
            system = line[7:].strip() or None
        elif line:
            ids = tok.encode(prompt(turns + [(line, None)], system, thinking))
            text = tok.decode(generate(model, tok, [ids], temperature=temperature, seed=len(ids))[0])
            print(text, flush=True)
            turns.append((line, answer(text)))


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("path")
    ap.add_argument("--chat", action="store_true")
    ap.add_argument("--temperature", type=float, default=0.0)
    ap.add_argument("--sums", type=int, default=100)
    args = ap.parse_args()
    torch.set_num_threads(1)
    model, tok = load(args.path)
    if args.chat:
        chat(model, tok, args.temperature)
        sys.exit()
    print("held-out loss", round(held_loss(model, tok), 4), "conversations about drawings right", round(sight(model, tok), 3), flush=True)
    if args.sums:
        for limit in (10, 100, 1000):
            for thinking in (False, True):
                acc, wrong = sums(model, tok, args.sums, thinking, limit)
                print(f"sums below {limit}, thinking {thinking}: {acc:.3f}", wrong[:4], flush=True)
    talk(model, tok, args.temperature)
