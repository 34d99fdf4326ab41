"""Write ../fixtures/demo_tokenizer.jsonl: {text, ids} by sentencepiece from ../../demo/tokenizer.model.

Checks that tokenizer.json (through the tokenizers library) gives the same ids, and that decoding gives the text back."""

import json
import os
import random

import sentencepiece as spm
from tokenizers import Tokenizer

from corpus import Writer

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "../../demo")

FIXED = [
    "", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\t\t  \t", "a", " a", "a ", "  a  ", "a  b", "a   b    c", "\n  indented\n\tmore\n", "trailing newline\n",
    "Hello", "hello", "HELLO", "Hello, world!", "What is 12+34?", "1234567890", "3.14159", "-17", "1,000,000", "0x1F", "1e-5", "12 + 34 = 46.", "007", "a1b2c3",
    "gemma4 -m nvidia/Gemma-4-26B-A4B-NVFP4", "hf download nvidia/Gemma-4-26B-A4B-NVFP4\nthen run it", "--think --jsonl --temp 0.5", "/help /new /system /think /save /load /stats /quit",
    "é", "e\u0301", "Ça va ?", "Où êtes-vous né ?", "Müller, Größe, Straße", "¿Qué tal? ¡Muy bien!", "naïve café", "Ærøskøbing", "Łódź", "Žluťoučký kůň", "İstanbul", "ﬁ ligature", "ß ẞ",
    "日本語", "こんにちは世界", "中文字符", "한국어 텍스트", "Привет, мир!", "Γειά σου", "שלום", "مرحبا بالعالم", "नमस्ते", "ไทย", "ქართული", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈",
    "😀", "😀😀😀", "🙂 👍 ❤ 🎉", "👨‍👩‍👧‍👦", "🇫🇷🇩🇪", "👍🏽", "❤️", "☃", "→ ← ↑ ↓", "∑∫√∞≠≈", "€ $ £ ¥ ₿", "“quoted” ‘single’ „unten“ «guillemets»", "…", "–—-", "• bullet", "½ ¼ ²", "°C",
    "\u00a0nbsp\u00a0", "\u2003em space", "\u200bzero width", "\ufeffbom", "\u2028line sep", "\u3000ideographic space", "\u0000", "a\u0000b", "\u0001\u0002\u0003", "\u001b[31mred\u001b[0m", "\u007f", "\u0080\u009f", "\ufffd", "\uffff", "\U0010ffff",
    "▁", "▁▁", "a▁b", " ▁ ", "<0x0A>", "<0xFF>", "<", ">", "<>", "<|", "|>", "<b>bold</b>", "<turn", "turn|>", "|channel", "[INST]", "</s>", "<s>", "<unused1>",
    "a" * 50, "a" * 200, "ab" * 60, "la" * 77, "ha" * 33 + "!", " " * 33, "\n" * 20, "\t" * 9, "." * 40, "-" * 64, "=" * 31, "!" * 17, "?!" * 12, "0" * 30, "1" * 101, "abc " * 40, "the the the the the", "AAAA", "zzzzzzzzzz",
    "aaaabbbbccccdddd", "mississippi", "bookkeeper", "Donaudampfschifffahrtsgesellschaft", "Pneumonoultramicroscopicsilicovolcanoconiosis", "anticonstitutionnellement", "supercalifragilisticexpialidocious",
    "{\"key\": [1, 2.5, null, true], \"s\": \"a\\nb\"}", "int main(void) { return 0; }", "for (int i = 0; i < n; i++)\n\tsum += x[i];", "https://example.org/a?b=c&d=e#f", "user@example.org", "C:\\path\\to\\file", "$HOME/.config/*", "`code` **bold** _it_", "| a | b |\n|---|---|\n| 1 | 2 |", "# Title\n\n- one\n- two\n",
    "ThisIsCamelCase", "snake_case_name", "kebab-case-name", "UPPER lower Title", "don't won't it's", "x=y;z", "100%", "50°", "#hashtag @name", "\\n is not a newline", "tab\tseparated\tvalues", "line one\nline two\r\nline three", "end with space ",
]


def main():
    sp = spm.SentencePieceProcessor(model_file=f"{DEMO}/tokenizer.model")
    tk = Tokenizer.from_file(f"{DEMO}/tokenizer.json")
    rng = random.Random(4)
    texts = list(FIXED)
    writer = Writer(123)
    for _ in range(12):
        texts += [rng.choice(rng.choice(writer.dialogue()["turns"]))]
    alphabets = ["abcdefghij ", "aeiou  nrst\n", "0123456789+-= ", "▁ \t\n.", "éüñ¿ßç ab", "日本語世界 a", "".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(60)), "".join(chr(rng.randrange(0x10000, 0x1ffff)) for _ in range(40)) + " x"]
    for a in alphabets:
        for n in (7, 40, 150):
            texts.append("".join(rng.choice(a) for _ in range(n)))
    texts.append(" ".join("".join(rng.choice("etaoinshrdlu") for _ in range(rng.randrange(1, 12))) for _ in range(300)))
    with open(os.path.join(HERE, "../fixtures/demo_tokenizer.jsonl"), "w") as f:
        for t in texts:
            ids = sp.encode(t)
            assert ids == tk.encode(t, add_special_tokens=False).ids, repr(t)
            back = t.replace("▁", " ")            # the one character that does not survive: it stands for the space
            assert sp.decode(ids) == back and tk.decode(ids, skip_special_tokens=False) == back, repr(t)
            f.write(json.dumps(dict(text=t, ids=ids)) + "\n")
    # control tokens: whole in tokenizer.json
    tok = {t.content: i for i, t in tk.get_added_tokens_decoder().items()}
    assert tk.encode("<|turn>user\nHi<turn|>", add_special_tokens=False).ids == [tok["<|turn>"]] + sp.encode("user\nHi") + [tok["<turn|>"]]
    print(len(texts), "cases")


if __name__ == "__main__":
    main()
