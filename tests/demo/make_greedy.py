"""Write ../fixtures/demo_greedy.json: greedy continuations of ../../demo by stock transformers.

float32, experts dequantised, no KV quantisation. For each prompt: ids, the new ids (64 at most, the end
token included), the gap between the two largest logits at each step, and the text."""

import json
import os

import torch

from evaluate import load, prompt

HERE = os.path.dirname(os.path.abspath(__file__))

LONG = [("hi", "Hello! How can I help you?"), ("My name is Rosa.", "Nice to meet you, Rosa! How are you?"), ("I am fine, thanks.", "I am glad to hear that! What would you like to talk about?"),
        ("what is gemma4?", "gemma4 is one binary in C with CUDA kernels. It runs Gemma 4 26B-A4B from the published safetensors, in NVFP4 or BF16."),
        ("how do i use it", "Get the model with: hf download nvidia/Gemma-4-26B-A4B-NVFP4\nThen run: gemma4 -m nvidia/Gemma-4-26B-A4B-NVFP4"),
        ("tell me a story", "There was a small model in a big computer. It knew only a few words, but it used them kindly, and so it had many friends."), ("that was nice", "Thank you, that is kind! I do my best.")]
# name, earlier turns, questions (the first one whose continuation has no near-tie is taken), system, thinking
CASES = [
    ("greeting", [], ["Hello", "Hi!", "Good morning!"], None, False),
    ("about the program", [], ["What is this program?", "What is gemma4?"], None, False),
    ("how to use it", [], ["How do I run the real model?", "How do I use gemma4?"], None, False),
    ("small sum", [], ["What is 7 + 5?", "What is 8 + 3?"], None, False),
    ("sum with thinking", [], ["What is 348 + 275?", "What is 236 + 547?", "521 + 164"], None, True),
    ("difference with thinking", [], ["83 - 47", "92 - 35", "What is 74 - 28?"], None, True),
    ("French", [], ["How are you?", "Who are you?", "Hello"], "Answer in French.", False),
    ("German with thinking", [], ["Who are you?", "How are you?", "What can you do?"], "Answer in German.", True),
    ("pirate", [], ["Who are you?", "How are you?", "What is your name?", "Hello", "Tell me a fact"], "Talk like a pirate.", False),
    ("multi turn", [("Hi", "Hello! How are you today?"), ("My name is Leo.", "Nice to meet you, Leo!")], ["What is my name?", "Who am I?", "Do you know my name?", "Tell me my name."], None, False),
    ("longer than the window", LONG, ["what is my name?", "do you know my name?", "tell me my name", "who am i?", "thanks"], None, False),
    ("unknown", [], ["Who was Napoleon?", "What is a saxophone?", "Explain chemistry."], None, False),
    ("poem", [], ["Write me a poem", "Tell me a short poem.", "Do you know a poem?"], None, False),
    ("odd text", [], ["日本 😀  ¿qué?\t...", "🎉 中文 \t ???", "привет"], None, False),
]


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    model, tok = load(os.path.join(HERE, "../../demo"))
    gen = json.load(open(os.path.join(HERE, "../../demo/generation_config.json")))
    ends = gen["eos_token_id"]
    out = []
    for name, turns, questions, system, thinking in CASES:
        best = None
        for q in questions:
            text = prompt(turns + [(q, None)], system, thinking)
            ids = tok.encode(text)
            g = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=ends, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
            new = g.sequences[0, len(ids):].tolist()
            top = torch.stack(g.logits)[:, 0].float().topk(2).values
            margins = (top[:, 0] - top[:, 1]).tolist()
            if best is None or min(margins) > min(best["margins"]):
                best = dict(name=name, prompt_text=text, prompt_ids=ids, greedy_ids=new, margins=[round(m, 5) for m in margins], greedy_text=tok.decode(new))
            if min(margins) >= 0.1:
                break
        out.append(best)
        print(f"{name}: {len(best['prompt_ids'])} + {len(best['greedy_ids'])} ids, smallest margin {min(best['margins']):.4f}: {best['greedy_text']!r}")
    assert max(len(c["prompt_ids"]) for c in out) > model.config.text_config.sliding_window
    with open(os.path.join(HERE, "../fixtures/demo_greedy.json"), "w") as f:
        json.dump(dict(sliding_window=model.config.text_config.sliding_window, end_ids=ends, cases=out), f, ensure_ascii=False, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
