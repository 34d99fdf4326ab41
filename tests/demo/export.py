"""Export a training checkpoint through nvidia-modelopt as NVFP4, in the form of the published checkpoint.

  python export.py --ckpt WORK/last.pt --out ../../demo

The experts become NVFP4, everything else BF16, the KV cache is announced as FP8. modelopt's fake quantisation is a
CUDA kernel; `emulate` stands in for it, so that this runs on a CPU. Calibration, packing and writing are modelopt's.
"""

import argparse
import json
import os
import shutil

import torch
from torch import nn

import model as M
from corpus import Writer, render
from tokenizer import Tokenizer

GENERATION = dict(do_sample=True, temperature=0.3, top_k=64, top_p=0.95)


def emulate(inputs, block_size, amax, num_bits, exponent_bits, scale_num_bits, scale_exponent_bits):
    """What modelopt's kernel computes for NVFP4: blocks of 16 with an e4m3 scale, all under one float scale."""
    assert block_size == 16 and num_bits == 4 and exponent_bits == 2
    x = inputs.float()
    s2 = amax.float().max().clamp(min=1e-12) / (6 * 448)
    b = x.reshape(*x.shape[:-1], -1, 16)
    s = (b.abs().amax(-1, keepdim=True) / 6 / s2).clamp(0, 448).to(torch.float8_e4m3fn).float() * s2
    q = torch.where(s > 0, b / s, 0.0).clamp(-6, 6)
    m = q.abs()
    step = torch.where(m < 2, 0.5, torch.where(m < 4, 1.0, 2.0))
    return (torch.round(q / step) * step * s).reshape(x.shape).to(inputs.dtype)


def register_experts():
    """modelopt 0.43 does not know Gemma 4's fused experts; those of Qwen 3.5 have the same layout."""
    from modelopt.torch.quantization.nn import QuantModuleRegistry
    from modelopt.torch.quantization.plugins.huggingface import _QuantQwen35MoeExperts
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextExperts

    class _QuantGemma4Experts(_QuantQwen35MoeExperts):
        pass

    QuantModuleRegistry.register({Gemma4TextExperts: "hf.Gemma4TextExperts"})(_QuantGemma4Experts)


def tokenizer_config(tok):
    names = dict(boi_token="<|image>", eoi_token="<image|>", image_token="<|image|>", boa_token="<|audio>", eoa_token="<audio|>",
                 audio_token="<|audio|>", sot_token="<|turn>", eot_token="<turn|>", soc_token="<|channel>", eoc_token="<channel|>",
                 think_token="<|think|>", std_token="<|tool>", etd_token="<tool|>", stc_token="<|tool_call>", etc_token="<tool_call|>",
                 str_token="<|tool_response>", etr_token="<tool_response|>", escape_token='<|"|>')
    extra = ["<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|image>", "<image|>",
             "<|image|>", "<|video|>", "<|audio>", "<audio|>", "<|audio|>", "<turn|>", "<|turn>", "<|channel>", "<channel|>", "<|think|>"]
    return dict(backend="tokenizers", bos_token="<bos>", eos_token="<eos>", extra_special_tokens=extra, mask_token="<mask>",
                model_max_length=1000000000000000019884624838656, pad_token="<pad>", tokenizer_class="GemmaTokenizer", unk_token="<unk>",
                **names, padding_side="left")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--ckpt", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--tokenizer", help="folder of tokenizer.model and tokenizer.json; by default that of the checkpoint")
    args = ap.parse_args()
    torch.set_num_threads(1)
    folder = args.tokenizer or os.path.dirname(args.ckpt)
    tok = Tokenizer(folder)
    cfg = M.config_dict(tok.control)
    model = M.new_model(cfg)
    model.load_state_dict(torch.load(args.ckpt)["model"])
    model = model.to(torch.bfloat16).eval()
    model.config.dtype = torch.bfloat16
    model.generation_config = type(model.generation_config)()

    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.quantization import tensor_quant
    from modelopt.torch.quantization.qtensor import nvfp4_tensor
    tensor_quant.dynamic_block_quantize_op = emulate
    nvfp4_tensor.fp4_compatible = lambda: False          # it asks the GPU, without looking whether there is one
    register_experts()
    nvfp4 = dict(num_bits=(2, 1), block_sizes={-1: 16, "type": "dynamic", "scale_bits": (4, 3)}, axis=None, enable=True)
    quant = {"quant_cfg": {"default": {"enable": False}, "*experts.*weight_quantizer": nvfp4, "*experts.*input_quantizer": nvfp4,
                           "*[kv]_bmm_quantizer": dict(num_bits=(4, 3), axis=None, enable=True), "*vision*": {"enable": False}}, "algorithm": "max"}
    writer = Writer(99)
    texts = ["".join(t for t, _ in render(writer.dialogue())) for _ in range(80)]

    def calibrate(m):
        with torch.no_grad():
            for t in texts:
                m(torch.tensor([tok.encode(t)[:1024]]))

    model = mtq.quantize(model, quant, calibrate)
    # in float32 no value of the model changes by the export; what modelopt writes besides the weights is replaced below
    tmp = args.out.rstrip("/") + ".tmp"
    export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=tmp)
    made = json.load(open(f"{tmp}/config.json"))
    os.makedirs(args.out, exist_ok=True)
    cfg["quantization_config"] = made["quantization_config"]

    def write(name, obj, indent=2):
        with open(f"{args.out}/{name}", "w") as f:
            json.dump(obj, f, indent=indent, sort_keys=indent == 2, ensure_ascii=False)
            f.write("\n")

    write("config.json", cfg)
    write("hf_quant_config.json", json.load(open(f"{tmp}/hf_quant_config.json")), 4)
    write("generation_config.json", dict(bos_token_id=tok.control["<bos>"], eos_token_id=cfg["eos_token_id"], pad_token_id=tok.control["<pad>"],
                                         transformers_version=cfg["transformers_version"], **GENERATION))
    write("tokenizer_config.json", tokenizer_config(tok))
    for name in ("tokenizer.json", "tokenizer.model"):
        shutil.copy(f"{folder}/{name}", f"{args.out}/{name}")
    shutil.move(f"{tmp}/model.safetensors", f"{args.out}/model.safetensors")
    os.chmod(f"{args.out}/model.safetensors", 0o644)
    shutil.rmtree(tmp)


if __name__ == "__main__":
    main()
