"""Make the demo's drafter, demo/assistant: four small layers that guess what the demo says next.

  python draft.py --out ../../demo/assistant --minutes 20        the packages of train.py; one core

The shape is that of google/gemma-4-26B-A4B-it-assistant (transformers 5.23, models/gemma4_assistant), which transformers cannot
build when all layers share their cache: the forward pass stands here. At every position of the dialogues of corpus.py it makes
three drafts one after another, as draft.c does, and learns the target's own distributions.
"""

import argparse
import json
import os
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import model as M
from evaluate import dequantised
from tokenizer import Tokenizer
from train import descend, Packer

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "../../demo")
D, MLP, HEADS, KINDS, DRAFTS = 64, 128, 4, "sssf", 3
TURNING = {"s": 1.0, "f": 0.25}


def new_drafter(target):
    """Weights by their names in the file."""
    g = torch.Generator().manual_seed(1)
    H, w = target["hidden_size"], {}

    def matrix(name, rows, cols, scale=1.0):
        w[name] = torch.randn(rows, cols, generator=g) * scale * cols ** -0.5

    matrix("pre_projection.weight", D, 2 * H)
    matrix("post_projection.weight", H, D)
    matrix("model.embed_tokens.weight", target["vocab_size"], D)
    w["model.norm.weight"] = torch.ones(D)
    for i, kind in enumerate(KINDS):
        p, dim = f"model.layers.{i}.", target["global_head_dim" if kind == "f" else "head_dim"]
        for norm in ("input_layernorm", "pre_feedforward_layernorm"):
            w[p + norm + ".weight"] = torch.ones(D)
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm"):
            w[p + norm + ".weight"] = torch.full((D,), 0.5)
        w[p + "layer_scalar"] = torch.ones(1)
        matrix(p + "self_attn.q_proj.weight", HEADS * dim, D)
        w[p + "self_attn.q_norm.weight"] = torch.full((dim,), dim ** -0.25)
        matrix(p + "self_attn.o_proj.weight", D, HEADS * dim)
        for part in ("gate", "up"):
            matrix(p + f"mlp.{part}_proj.weight", MLP, D)
        matrix(p + "mlp.down_proj.weight", D, MLP)
    return {k: v.requires_grad_("layer_scalar" not in k) for k, v in w.items()}


def observe(model, batch):
    """What the target knows: its hidden states after the final norm, its distributions, the keys and values of two layers."""
    ids, pos, doc, _, _ = batch
    lm = model.model.language_model
    kv = {}

    def pre(x, layer, cos, sin, mask, window, kvh):
        a = layer.self_attn
        if layer is lm.layers[-1] or layer is lm.layers[-2]:
            B, T, dim = x.shape[0], x.shape[1], a.head_dim
            h = M.rms(x, layer.input_layernorm.weight)
            k0 = F.linear(h, a.k_proj.weight).view(B, T, kvh, dim)
            v = M.rms(F.linear(h, a.v_proj.weight).view(B, T, kvh, dim) if a.v_proj is not None else k0)
            k = M.rotate(M.rms(k0, a.k_norm.weight), cos.unsqueeze(2), sin.unsqueeze(2))
            kv["s" if a.is_sliding else "f"] = [t.repeat_interleave(HEADS // kvh, 2).transpose(1, 2) for t in (k, v)]
        return M.pre_moe(x, layer, cos, sin, mask, window, kvh)

    with torch.no_grad():
        x, _ = M.trunk(model, ids, pos, doc, pre=pre)
        hidden = M.rms(x, lm.norm.weight)
        logits = 30 * torch.tanh(F.linear(hidden, lm.embed_tokens.weight) / 30)
    return hidden, torch.softmax(logits, -1), kv


def draft(w, embed, h, kv, masks, ropes):
    """One draft at every position: logits, and the hidden state for the next."""
    x = F.linear(torch.cat((embed, h), -1), w["pre_projection.weight"])
    B, T, _ = x.shape
    for i, kind in enumerate(KINDS):
        p = f"model.layers.{i}."
        k, v = kv[kind]
        q = F.linear(M.rms(x, w[p + "input_layernorm.weight"]), w[p + "self_attn.q_proj.weight"]).view(B, T, HEADS, -1)
        cos, sin = ropes[kind]
        q = M.rotate(M.rms(q, w[p + "self_attn.q_norm.weight"]), cos.unsqueeze(2), sin.unsqueeze(2)).transpose(1, 2)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[kind], scale=1.0).transpose(1, 2).reshape(B, T, -1)
        x = x + M.rms(F.linear(o, w[p + "self_attn.o_proj.weight"]), w[p + "post_attention_layernorm.weight"])
        y = M.rms(x, w[p + "pre_feedforward_layernorm.weight"])
        y = F.gelu(F.linear(y, w[p + "mlp.gate_proj.weight"]), approximate="tanh") * F.linear(y, w[p + "mlp.up_proj.weight"])
        x = x + M.rms(F.linear(y, w[p + "mlp.down_proj.weight"]), w[p + "post_feedforward_layernorm.weight"])
    z = M.rms(x, w["model.norm.weight"])
    return F.linear(z, w["model.embed_tokens.weight"]), F.linear(z, w["post_projection.weight"])


def losses(w, model, batch):
    """Cross entropy with the target's distribution, and how often both prefer the same token, for each draft of a round."""
    ids, pos, doc, _, wt = batch
    lm = model.model.language_model
    hidden, teacher, kv = observe(model, batch)
    T = ids.shape[1]
    i = torch.arange(T)
    before = (doc[:, :, None] == doc[:, None]) & (i[:, None] > i)
    before |= (pos == 0)[:, :, None] & (i[:, None] == i)            # the first token of a document drafts nothing; no NaN either
    masks = {"f": before.unsqueeze(1), "s": (before & (i[:, None] - i < M.WINDOW)).unsqueeze(1)}
    ropes = {"s": M.rope(lm, pos, "sliding_attention"), "f": M.rope(lm, pos, "full_attention")}
    embeds = lm.embed_tokens.weight[ids] * lm.config.hidden_size ** 0.5
    h = torch.roll(hidden, 1, 1)
    loss, same = 0, []
    for k in range(DRAFTS):
        logits, h = draft(w, torch.roll(embeds, -k, 1), h, kv, masks, ropes)
        use = (pos > 0) & (torch.roll(wt, -k, 1) > 0) & (torch.roll(doc, -k, 1) == doc) & (i < T - k)
        p, l = torch.roll(teacher, -k, 1)[use], logits[use]
        loss = loss - (p * torch.log_softmax(l, -1)).sum(-1).mean()
        same.append((p.argmax(-1) == l.argmax(-1)).float().mean().item())
    return loss / DRAFTS, same


def export(w, out):
    target = json.load(open(f"{DEMO}/config.json"))
    text = dict(target["text_config"], hidden_size=D, intermediate_size=MLP, num_attention_heads=HEADS, num_hidden_layers=len(KINDS),
                layer_types=[{"s": "sliding_attention", "f": "full_attention"}[k] for k in KINDS], num_kv_shared_layers=len(KINDS),
                enable_moe_block=False, num_experts=None, top_k_experts=None, moe_intermediate_size=None,
                final_logit_softcapping=None, use_bidirectional_attention=None)
    config = dict(architectures=["Gemma4AssistantForCausalLM"], backbone_hidden_size=target["text_config"]["hidden_size"],
                  dtype="bfloat16", eos_token_id=target["eos_token_id"], model_type="gemma4_assistant", text_config=text,
                  tie_word_embeddings=True, use_ordered_embeddings=False)
    os.makedirs(out, exist_ok=True)
    with open(f"{out}/config.json", "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write("\n")
    save_file({k: v.detach().bfloat16().contiguous() for k, v in w.items()}, f"{out}/model.safetensors", metadata={"format": "pt"})
    os.chmod(f"{out}/model.safetensors", 0o644)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    ap.add_argument("--minutes", type=float, default=20)
    ap.add_argument("--lr", type=float, default=4e-3)
    ap.add_argument("--resume", help="go on from this exported folder")
    ap.add_argument("--seed", type=int, default=5, help="of the dialogues")
    args = ap.parse_args()
    torch.set_num_threads(1)
    tok = Tokenizer(DEMO)
    model = M.new_model(M.config_dict(tok.control))
    model.load_state_dict(dequantised(DEMO), strict=False)
    model.eval().requires_grad_(False)
    w = new_drafter(M.config_dict(tok.control)["text_config"])
    if args.resume:
        with torch.no_grad():
            for k, v in load_file(f"{args.resume}/model.safetensors").items():
                w[k].copy_(v)
    learned = [p for p in w.values() if p.requires_grad]
    opt = torch.optim.AdamW(learned, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    data, held = Packer(tok, args.seed, rows=(512,)), Packer(tok, 6, held_out=True, rows=(512,)).batch()
    start, step = time.time(), 0
    while (done := (time.time() - start) / 60 / args.minutes) < 1:
        for g in opt.param_groups:
            g["lr"] = args.lr * min(1, (step + 1) / 50) * min(1, (1 - done) / 0.6)
        loss, same = losses(w, model, data.batch())
        descend(loss, opt)
        step += 1
        if step % 50 == 0:
            print(f"step {step}, {(time.time() - start) / 60:.1f} min: loss {loss.item():.3f}, same {' '.join('%.2f' % s for s in same)}", flush=True)
    with torch.no_grad():
        loss, same = losses(w, model, held)
    print(f"{step} steps; held out: loss {loss.item():.3f}, same {' '.join('%.3f' % s for s in same)}")
    export(w, args.out)


if __name__ == "__main__":
    main()
