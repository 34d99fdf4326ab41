"""The shape of the demo checkpoint, and a forward pass that is fast to train on one CPU core.

The parameters live in a stock transformers model (Gemma4ForConditionalGeneration); `fast_loss` computes the
same function as its forward pass from the same parameters, on packed documents, with matrix products in bf16.
`python model.py` compares the two.
"""

import torch
import torch.nn.functional as F
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

VOCAB = 2048
WINDOW = 128
COMPUTE = torch.bfloat16


def config_dict(tok):
    """config.json in the published spelling; `tok` maps a control token to its id."""
    eos = [tok["<eos>"], tok["<turn|>"], tok["<|tool_response>"]]
    text = dict(
        model_type="gemma4_text", attention_bias=False, attention_dropout=0.0, attention_k_eq_v=True,
        bos_token_id=tok["<bos>"], eos_token_id=tok["<eos>"], pad_token_id=tok["<pad>"], dtype="bfloat16",
        enable_moe_block=True, final_logit_softcapping=30.0, hidden_activation="gelu_pytorch_tanh",
        hidden_size=224, intermediate_size=320, moe_intermediate_size=160, num_experts=12, top_k_experts=2,
        num_hidden_layers=6, layer_types=["sliding_attention"] * 5 + ["full_attention"],
        num_attention_heads=4, num_key_value_heads=2, head_dim=48,
        num_global_key_value_heads=1, global_head_dim=96,
        hidden_size_per_layer_input=0, initializer_range=0.02, max_position_embeddings=4096,
        num_kv_shared_layers=0, rms_norm_eps=1e-6, sliding_window=WINDOW, tie_word_embeddings=True,
        use_bidirectional_attention="vision", use_cache=True, use_double_wide_mlp=False,
        vocab_size=VOCAB, vocab_size_per_layer_input=VOCAB,
        rope_parameters=dict(
            full_attention=dict(partial_rotary_factor=0.25, rope_theta=1000000.0, rope_type="proportional"),
            sliding_attention=dict(rope_theta=10000.0, rope_type="default")))
    vision = dict(
        model_type="gemma4_vision", attention_bias=False, attention_dropout=0.0, default_output_length=70,
        dtype="bfloat16", global_head_dim=16, head_dim=16, hidden_activation="gelu_pytorch_tanh", hidden_size=64,
        initializer_range=0.02, intermediate_size=96, max_position_embeddings=4096, num_attention_heads=4,
        num_hidden_layers=2, num_key_value_heads=4, patch_size=16, pooling_kernel_size=3,
        position_embedding_size=128, rms_norm_eps=1e-6, rope_parameters=dict(rope_theta=100.0, rope_type="default"),
        standardize=True, use_clipped_linears=False)
    return dict(
        architectures=["Gemma4ForConditionalGeneration"], model_type="gemma4", dtype="bfloat16",
        audio_config=None, text_config=text, vision_config=vision, vision_soft_tokens_per_image=70,
        eos_token_id=eos, image_token_id=tok["<|image|>"], boi_token_id=tok["<|image>"],
        eoi_token_id=tok["<image|>"], audio_token_id=tok["<|audio|>"], boa_token_id=tok["<|audio>"],
        eoa_token_id=tok["<audio|>"], eoa_token_index=tok["<audio|>"], video_token_id=tok["<|video|>"],
        initializer_range=0.02, tie_word_embeddings=True, transformers_version="5.5.0.dev0")


def float32(cfg):
    return {k: float32(v) if isinstance(v, dict) else "float32" if k == "dtype" else v for k, v in cfg.items()}


def new_model(cfg, seed=0):
    torch.manual_seed(seed)
    # made in float32 from the start: buffers (embedding scale, rope frequencies) made in bf16 would stay rounded
    model = Gemma4ForConditionalGeneration(Gemma4Config.from_dict(float32(cfg)))
    lm = model.model.language_model
    with torch.no_grad():
        lm.embed_tokens.weight.normal_(0, 0.05)
        for i, layer in enumerate(lm.layers):
            for p in layer.parameters():
                if p.dim() >= 2:                        # fan-in scaling suits so small a model better than 0.02
                    p.normal_(0, p.shape[-1] ** -0.5)
            layer.router.proj.weight.mul_(2.0)
            # the attention scale is 1, so the two norms together must start as head_dim ** -0.5
            d = layer.self_attn.head_dim
            layer.self_attn.q_norm.weight.fill_(d ** -0.25)
            layer.self_attn.k_norm.weight.fill_(d ** -0.25)
            layer.post_attention_layernorm.weight.fill_(0.5)
            layer.post_feedforward_layernorm.weight.fill_(0.5)
            # not trained; values other than 1 so that a program which forgets to multiply is found out
            layer.layer_scalar.fill_((1.0, 0.875, 1.0, 0.75, 0.875, 1.125)[i])
        tower = model.model.vision_tower
        for p in [*tower.parameters(), *model.model.embed_vision.parameters()]:
            if p.dim() == 2:
                p.normal_(0, p.shape[-1] ** -0.5)
        tower.patch_embedder.position_embedding_table.normal_(0, 0.3)
        for layer in tower.encoder.layers:
            layer.self_attn.q_norm.weight.fill_(0.5)
            layer.self_attn.k_norm.weight.fill_(0.5)
        # not trained either
        tower.std_bias.copy_(torch.linspace(-0.5, 0.5, 64))
        tower.std_scale.copy_(torch.linspace(0.1, 0.15, 64))
    return model


def rms(x, w=None, eps=1e-6):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (y if w is None else y * w).to(x.dtype)


def lin(x, w):
    return F.linear(x, w.to(x.dtype))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class GroupedMLP(torch.autograd.Function):
    """Gated MLP of each expert on its own rows of `x` (sorted by expert), with the products in x's dtype."""

    @staticmethod
    def forward(ctx, x, w1, w2, counts):
        h = x.new_empty(x.shape[0], w1.shape[1])
        y = x.new_empty(x.shape[0], w2.shape[1])
        gate, up = h.chunk(2, -1)
        a = 0
        for e, n in enumerate(counts):
            if n:
                torch.mm(x[a:a + n], w1[e].t(), out=h[a:a + n])
            a += n
        act = F.gelu(gate, approximate="tanh")
        z = act * up
        a = 0
        for e, n in enumerate(counts):
            if n:
                torch.mm(z[a:a + n], w2[e].t(), out=y[a:a + n])
            a += n
        ctx.save_for_backward(x, w1, w2, h, act, z)
        ctx.counts = counts
        return y

    @staticmethod
    def backward(ctx, gy):
        x, w1, w2, h, act, z = ctx.saved_tensors
        gate, up = h.chunk(2, -1)
        gz = torch.empty_like(z)
        gw1, gw2 = torch.zeros_like(w1), torch.zeros_like(w2)
        gy = gy.contiguous()
        a = 0
        for e, n in enumerate(ctx.counts):
            if n:
                torch.mm(gy[a:a + n], w2[e], out=gz[a:a + n])
                torch.mm(gy[a:a + n].t(), z[a:a + n], out=gw2[e])
            a += n
        gh = torch.cat((torch.ops.aten.gelu_backward(gz * up, gate, approximate="tanh"), gz * act), -1)
        gx = torch.empty_like(x)
        a = 0
        for e, n in enumerate(ctx.counts):
            if n:
                torch.mm(gh[a:a + n], w1[e], out=gx[a:a + n])
                torch.mm(gh[a:a + n].t(), x[a:a + n], out=gw1[e])
            a += n
        return gx, gw1, gw2, None


class Permute(torch.autograd.Function):
    """x[tok] where every row of x occurs k times; the backward pass is a gather too (faster than index_add)."""

    @staticmethod
    def forward(ctx, x, tok, inv, k):
        ctx.save_for_backward(inv)
        ctx.k = k
        return x[tok]

    @staticmethod
    def backward(ctx, g):
        (inv,) = ctx.saved_tensors
        return g[inv].view(-1, ctx.k, g.shape[-1]).sum(1), None, None, None


def fake_nvfp4(w):
    """w as NVFP4 would store it; the gradient passes straight through."""
    with torch.no_grad():
        s2 = w.abs().amax((-2, -1), keepdim=True) / (6 * 448)
        b = w.view(*w.shape[:-1], -1, 16)
        s = (b.abs().amax(-1, keepdim=True) / 6 / s2.unsqueeze(-1)).clamp(2 ** -9, 448)
        s = s.to(torch.float8_e4m3fn).float() * s2.unsqueeze(-1)
        q = (b / s).clamp(-6, 6)
        m = q.abs()
        step = torch.where(m < 2, 0.5, torch.where(m < 4, 1.0, 2.0))
        q = (torch.round(q / step) * step * s).view_as(w)
    return w + (q - w).detach()


def pre_moe(x, layer, cos, sin, mask, window, kvh):
    """Attention, the dense MLP's output (normed), and what router and experts need."""
    a, B, T = layer.self_attn, x.shape[0], x.shape[1]
    D = a.head_dim
    h = rms(x, layer.input_layernorm.weight).to(COMPUTE)
    q = rms(lin(h, a.q_proj.weight).view(B, T, -1, D), a.q_norm.weight)
    k0 = lin(h, a.k_proj.weight).view(B, T, kvh, D)
    v = rms(lin(h, a.v_proj.weight).view(B, T, kvh, D) if a.v_proj is not None else k0)
    k = rms(k0, a.k_norm.weight)
    cos, sin = cos.to(COMPUTE).unsqueeze(2), sin.to(COMPUTE).unsqueeze(2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    g = q.shape[2] // kvh
    if window:
        # a block of queries sees its own block of keys and the one before
        C = T // window
        q = q.view(B * C, window, -1, D)
        kv = torch.stack((k, v)).view(2, B, C, window, kvh, D)
        kv = torch.cat((F.pad(kv, (0, 0, 0, 0, 0, 0, 1, 0))[:, :, :-1], kv), 3).view(2, B * C, 2 * window, kvh, D)
        k, v = kv[0], kv[1]
    q, k, v = (t.transpose(1, 2) for t in (q, k.repeat_interleave(g, 2), v.repeat_interleave(g, 2)))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0).transpose(1, 2).reshape(B, T, -1)
    x = x + rms(lin(o, a.o_proj.weight), layer.post_attention_layernorm.weight).float()
    h = rms(x, layer.pre_feedforward_layernorm.weight).to(COMPUTE)
    m = layer.mlp
    h1 = lin(F.gelu(lin(h, m.gate_proj.weight), approximate="tanh") * lin(h, m.up_proj.weight), m.down_proj.weight)
    h1 = rms(h1, layer.post_feedforward_layernorm_1.weight)
    flat = x.reshape(B * T, -1)
    r = layer.router
    logits = F.linear(rms(flat) * r.scale * r.scalar_root_size, r.proj.weight)
    p = torch.softmax(logits, -1)
    w, idx = torch.topk(p, 2, dim=-1)
    w = w / w.sum(-1, keepdim=True) * r.per_expert_scale[idx]
    h2 = rms(flat, layer.pre_feedforward_layernorm_2.weight).to(COMPUTE)
    order = torch.argsort(idx.view(-1))
    inv = torch.argsort(order)
    counts = torch.bincount(idx.view(-1), minlength=p.shape[1])
    # load balance: share of the tokens times mean probability, 1 when even
    balance = p.shape[1] * ((counts / idx.numel()).detach() * p.mean(0)).sum()
    return x, h1, h2, w, order, inv, counts, balance


def post_moe(x, h1, y, w, inv, layer):
    y = y[inv].view(-1, 2, y.shape[-1])
    y = (y.float() * w.unsqueeze(-1)).sum(1).to(h1.dtype).view_as(h1)
    h = h1 + rms(y, layer.post_feedforward_layernorm_2.weight)
    return (x + rms(h, layer.post_feedforward_layernorm.weight).float()) * layer.layer_scalar


def head_loss(x, norm, emb, targets, weights):
    sel = weights.view(-1).nonzero().squeeze(1)         # only positions that count go through the head
    h = rms(x, norm).to(COMPUTE).view(-1, x.shape[-1])[sel]
    z = lin(h, emb).float()
    z = torch.tanh(z / 30) * 30
    wt = weights.view(-1)[sel]
    ce = F.cross_entropy(z, targets.view(-1)[sel], reduction="none")
    return (ce * wt).sum() / wt.sum()


def rope(lm, pos, kind):
    f = pos[..., None].float() * getattr(lm.rotary_emb, kind + "_inv_freq")
    f = torch.cat((f, f), -1)
    return f.cos(), f.sin()


def rope_2d(x, cos, sin):
    """The first half of each head turns with the column, the second with the row; x [B, P, heads, D], cos and sin [2, P, D / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((rotate(a, cos[0].unsqueeze(1), sin[0].unsqueeze(1)), rotate(b, cos[1].unsqueeze(1), sin[1].unsqueeze(1))), -1)


def see(model, patches, columns):
    """Soft tokens [B, P / 9, hidden] of pictures of one shape: patches [B, P, 768] in 0..1, `columns` of them side by side."""
    tower, cfg = model.model.vision_tower, model.config.vision_config
    B, P, _ = patches.shape
    i = torch.arange(P)
    at = torch.stack((i % columns, i // columns))                                  # [2, P]: column, row
    pe = tower.patch_embedder
    x = lin((2 * (patches - 0.5)).to(COMPUTE), pe.input_proj.weight).float() + pe.position_embedding_table[0][at[0]] + pe.position_embedding_table[1][at[1]]
    D = cfg.head_dim
    f = at[..., None].float() * cfg.rope_parameters["rope_theta"] ** -(torch.arange(0, D // 2, 2).float() / (D // 2))
    f = torch.cat((f, f), -1)
    cos, sin = f.cos().to(COMPUTE), f.sin().to(COMPUTE)
    for layer in tower.encoder.layers:
        a, m = layer.self_attn, layer.mlp
        h = rms(x, layer.input_layernorm.weight).to(COMPUTE)
        q, k, v = (lin(h, p.linear.weight).view(B, P, -1, D) for p in (a.q_proj, a.k_proj, a.v_proj))
        q, k = (rope_2d(rms(t, n.weight), cos, sin) for t, n in ((q, a.q_norm), (k, a.k_norm)))
        o = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, rms(v))), scale=1.0).transpose(1, 2).reshape(B, P, -1)
        x = x + rms(lin(o, a.o_proj.linear.weight), layer.post_attention_layernorm.weight).float()
        h = rms(x, layer.pre_feedforward_layernorm.weight).to(COMPUTE)
        h = lin(F.gelu(lin(h, m.gate_proj.linear.weight), approximate="tanh") * lin(h, m.up_proj.linear.weight), m.down_proj.linear.weight)
        x = x + rms(h, layer.post_feedforward_layernorm.weight).float()
    # pooling: 3 x 3 patches are one soft token
    x = x.view(B, P // columns // 3, 3, columns // 3, 3, -1).mean((2, 4)).flatten(1, 2) * x.shape[-1] ** 0.5
    x = rms((x - tower.std_bias) * tower.std_scale)
    return F.linear(x, model.model.embed_vision.embedding_projection.weight)


def trunk(model, ids, pos, doc, qat=False, pre=pre_moe, post=post_moe, soft=None):
    """The hidden states before the final norm. soft: what takes the places of the image tokens, in their order."""
    lm = model.model.language_model
    B, T = ids.shape
    W = WINDOW
    x = lm.embed_tokens.weight[ids] * lm.config.hidden_size ** 0.5
    picture = ids == model.config.image_token_id
    if soft is not None:
        x = x.masked_scatter(picture.unsqueeze(-1), soft)
    dist = torch.arange(W)[:, None] + W - torch.arange(2 * W)
    C = T // W
    d = doc.view(B, C, W)
    prev = F.pad(d, (0, 0, 1, 0), value=-1)[:, :-1]
    local = (d[..., None] == torch.cat((prev, d), -1)[:, :, None]) & (dist >= 0) & (dist < W)
    local = local.view(B * C, 1, W, 2 * W)
    i = torch.arange(T)
    same = doc[:, :, None] == doc[:, None]
    full = (same & (i[:, None] >= i)).unsqueeze(1)
    if soft is not None:
        # the tokens of a picture (one a document) see each other, over the borders of the blocks
        both = same & picture[:, :, None] & picture[:, None]
        local = full & (i[:, None] - i < W) | both.unsqueeze(1)
    balance = 0
    ropes = {k: rope(lm, pos, k) for k in ("sliding_attention", "full_attention")}
    for layer in lm.layers:
        a = layer.self_attn
        kvh = a.k_proj.weight.shape[0] // a.head_dim
        x, h1, h2, w, order, inv, counts, b = pre(
            x, layer, *ropes[a.layer_type], local if a.is_sliding else full, W if a.is_sliding and soft is None else 0, kvh)
        balance = balance + b
        e = layer.experts
        w1, w2 = e.gate_up_proj, e.down_proj
        if qat:
            w1 = torch.cat([fake_nvfp4(t) for t in w1.chunk(2, 1)], 1)
            w2 = fake_nvfp4(w2)
        y = GroupedMLP.apply(Permute.apply(h2, order // 2, inv, 2), w1.to(COMPUTE), w2.to(COMPUTE), counts.tolist())
        x = post(x, h1, y, w, inv, layer)
    return x, balance / len(lm.layers)


def fast_loss(model, ids, pos, doc, targets, weights, qat=False, pre=pre_moe, post=post_moe, head=head_loss, soft=None):
    lm = model.model.language_model
    x, balance = trunk(model, ids, pos, doc, qat, pre, post, soft)
    return head(x, lm.norm.weight, lm.embed_tokens.weight, targets, weights), balance


if __name__ == "__main__":
    names = "<pad> <eos> <bos> <unk> <mask> <|image|> <|image> <image|> <|audio|> <|audio> <audio|> <|video|> <turn|> <|tool_response>"
    model = new_model(config_dict({t: i for i, t in enumerate(names.split())}))
    n = sum(p.numel() for p in model.parameters())
    print("parameters", n)
    ids = torch.randint(32, VOCAB, (1, 256))
    patches = torch.rand(1, 6 * 9, 768)
    ids[0, 100:106] = model.config.image_token_id
    COMPUTE = torch.float32
    where = torch.stack(torch.meshgrid(torch.arange(9), torch.arange(6), indexing="xy"), -1).view(1, -1, 2)
    with torch.no_grad():
        ref = model(ids, pixel_values=patches, image_position_ids=where, mm_token_type_ids=(ids == model.config.image_token_id).long()).logits
        x, _ = trunk(model, ids, torch.arange(256)[None], torch.zeros(1, 256, dtype=torch.long), soft=see(model, patches, 9))
        lm = model.model.language_model
        z = torch.tanh(F.linear(rms(x, lm.norm.weight), lm.embed_tokens.weight) / 30) * 30
    print("largest difference of the logits", (z - ref).abs().max().item(), "range", ref.abs().max().item(),
          "mean", (z - ref).abs().mean().item(), "std", ref.std().item())
