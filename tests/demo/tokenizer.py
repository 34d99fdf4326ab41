"""The demo's tokenizer: a SentencePiece BPE model and the same thing as tokenizer.json."""

import contextlib
import functools
import json
import re

import sentencepiece as spm

BASE = ["<pad>", "<eos>", "<bos>", "<unk>"]
CONTROL = ["<mask>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
           "<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>", "<|image>", "<|audio>", "<|image|>", "<|audio|>",
           "<image|>", "<audio|>", "<|video|>"]
EXTRA = "".join(map(chr, range(33, 127))) + "äöüÄÖÜßàâçéèêëîïôùûÀÇÉÈÊñáíóúÑÁÍÓÚ¿¡°€…–—’“”«»×÷😀🙂👍❤🎉😂"


def texts(n=30000):
    from corpus import Writer
    w = Writer(5)
    for _ in range(n):
        d = w.dialogue()
        for part in [d["system"] or ""] + [p for t in d["turns"] for p in t]:
            yield from (s for s in part.split("\n") if s)
    for _ in range(200):
        yield from ("system", "user", "model", "thought")


def make_tokenizer(out, vocab):
    with contextlib.chdir(out):          # the model remembers its prefix: no path in it
        spm.SentencePieceTrainer.train(
            sentence_iterator=texts(), model_prefix="tokenizer", model_type="bpe", vocab_size=vocab,
            pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
            control_symbols=CONTROL, user_defined_symbols=["\n", "\t"], byte_fallback=True, split_digits=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            required_chars=EXTRA, character_coverage=1.0, num_threads=1, max_sentence_length=100000, minloglevel=2)
    write_json(out)


def write_json(out):
    sp = spm.SentencePieceProcessor(model_file=f"{out}/tokenizer.model")
    n = sp.get_piece_size()
    vocab = {sp.id_to_piece(i): i for i in range(n)}
    score = {p: sp.get_score(i) for p, i in vocab.items() if not (sp.is_control(i) or sp.is_byte(i) or sp.is_unknown(i))}
    # every way to make a piece of two others is a merge, in the order of the piece's score, as SentencePiece has it
    merges = []
    for p in score:
        for k in range(1, len(p)):
            if p[:k] in score and p[k:] in score:
                merges.append((-score[p], vocab[p[:k]], vocab[p[k:]], [p[:k], p[k:]]))
    merges.sort(key=lambda m: m[:3])
    special = BASE + CONTROL
    added = [dict(id=vocab[t], content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for t in sorted(special, key=vocab.get)]
    js = dict(
        version="1.0", truncation=None, padding=None, added_tokens=added,
        normalizer=dict(type="Replace", pattern=dict(String=" "), content="▁"),
        pre_tokenizer=dict(type="Split", pattern=dict(String=" "), behavior="MergedWithPrevious", invert=False),
        post_processor=dict(type="TemplateProcessing", single=[dict(Sequence=dict(id="A", type_id=0))],
                            pair=[dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))], special_tokens={}),
        decoder=dict(type="Sequence", decoders=[dict(type="Replace", pattern=dict(String="▁"), content=" "), dict(type="ByteFallback"), dict(type="Fuse")]),
        model=dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=True, byte_fallback=True, ignore_merges=False, vocab=vocab, merges=[m[3] for m in merges]))
    with open(f"{out}/tokenizer.json", "w") as f:
        json.dump(js, f, ensure_ascii=False, indent=1)


class Tokenizer:
    """Text with control tokens to ids and back."""

    def __init__(self, folder):
        self.sp = spm.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")
        self.control = {t: self.sp.piece_to_id(t) for t in BASE + CONTROL}
        self.split = re.compile("(" + "|".join(re.escape(t) for t in BASE + CONTROL) + ")")
        self.encode_piece = functools.lru_cache(200000)(self._encode_piece)

    def _encode_piece(self, text):
        return [self.control[text]] if text in self.control else self.sp.encode(text)

    def encode(self, text):
        return [i for part in self.split.split(text) if part for i in self._encode_piece(part)]

    def decode(self, ids):
        names = {i: t for t, i in self.control.items()}
        out, run = "", []
        for i in list(ids) + [None]:
            if i is None or i in names:
                out += self.sp.decode(run) if run else ""
                out += names.get(i, "")
                run = []
            else:
                run.append(int(i))
        return out
