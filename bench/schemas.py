#!/usr/bin/env python3
"""What structured output costs over many schemas: this program's engine beside others.

    make build/bench_schemas
    bench/schemas.py --bench build/bench_schemas DIR_WITH_TOKENIZER_JSON SCHEMAS.jsonl

A line of SCHEMAS.jsonl is {"name", "schema", "valid": [texts], "invalid": [texts]}.  Prints a
table in Markdown with a row for this program, and for llguidance and xgrammar where Python has
them (`pip install tokenizers numpy llguidance`; xgrammar itself wants torch and transformers, but
nothing of them is used here: where they are missing, empty modules stand in for them, and
`pip install --no-deps xgrammar; pip install apache-tvm-ffi pydantic` is enough).

All follow the same tokens, one thread each, with their defaults, and get a mask before each token
of a valid text and one at its end.  Times are CPU time of that thread; those of compiling, of the
process.  A schema has a process of its own, which is ended after --limit seconds of CPU time; it
then counts as one that is not accepted.  --plain undoes the escapes in texts that JSON does not
need, as in "\\u0061", which llguidance does not write.  With --keep DIR the lines of each engine
are kept there, see bench/schemas.c for what they hold.
"""
import argparse
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import types

TEXTS = 10                              # of each kind, at most, for each schema
END = "<turn|>"


class Llguidance:
    """The engine of guidance, in Rust: derivatives of regular expressions and an Earley parser."""

    def __init__(self, path, tokenizer):
        import llguidance
        import llguidance.numpy
        self.lib, self.fill = llguidance, llguidance.numpy.fill_next_token_bitmask
        self.end = tokenizer.token_to_id(END)
        self.tokenizer = llguidance.LLTokenizer(path, eos_token=self.end,
                                                slices=llguidance.LLTokenizer.json_slices())
        self.bits = llguidance.numpy.allocate_token_bitmask(1, self.tokenizer.vocab_size)

    def compile(self, schema):
        grammar = self.lib.LLMatcher.grammar_from_json_schema(schema)
        self.first = self.lib.LLMatcher(self.tokenizer, grammar, log_level=0)
        return self.first.get_error()

    def begin(self):
        self.matcher = self.first.deep_copy()

    def mask(self):
        self.fill(self.matcher, self.bits, 0)

    def step(self, token):
        return self.matcher.consume_token(token)

    def may_end(self):
        return self.matcher.is_accepting()


class Xgrammar:
    """The engine of vLLM and SGLang, in C++: masks of a pushdown automaton, mostly precomputed."""

    def __init__(self, path, tokenizer):
        import numpy
        self.lib = import_xgrammar()
        self.end = tokenizer.token_to_id(END)
        size = tokenizer.get_vocab_size()
        words = [tokenizer.id_to_token(i) or "" for i in range(size)]
        self.info = self.lib.TokenizerInfo(words, self.lib.VocabType.BYTE_FALLBACK,
                                           stop_token_ids=[self.end])
        self.bits = numpy.full((1, (size + 31) // 32), -1, dtype=numpy.int32)

    def compile(self, schema):
        compiler = self.lib.GrammarCompiler(self.info, max_threads=1, cache_enabled=False)
        self.grammar = compiler.compile_json_schema(schema, any_whitespace=True)
        return ""

    def begin(self):
        self.matcher = self.lib.GrammarMatcher(self.grammar)

    def mask(self):
        if not self.matcher.fill_next_token_bitmask(self.bits):
            self.bits.fill(-1)

    def step(self, token):
        return self.matcher.accept_token(token)

    def may_end(self):
        return self.matcher.accept_token(self.end)


ENGINES = {"llguidance": Llguidance, "xgrammar": Xgrammar}


def import_xgrammar():
    """xgrammar, with empty modules in place of torch and transformers where they are missing."""
    if importlib.util.find_spec("torch") is None:
        import tvm_ffi  # noqa: F401    # before there seems to be a torch, which it looks for
        torch = types.ModuleType("torch")
        torch.__getattr__ = lambda name: type(name, (), {"__init__": lambda *a, **k: None})
        torch.int32, torch.tensor = None, lambda *a, **k: None
        sys.modules["torch"] = torch
    if importlib.util.find_spec("transformers") is None:
        other = types.ModuleType("transformers")
        other.__getattr__ = lambda name: type(name, (), {})
        sys.modules["transformers"] = other
    import xgrammar
    return xgrammar


def has(bits, token):
    return bits[0, token >> 5] >> (token & 31) & 1


def is_taken(engine, tokens, result, timed):
    """Whether a text is taken, to its end; when timed, by the masks and with their times."""
    engine.begin()
    for token in [*tokens, None]:
        if timed:
            start = time.thread_time_ns()
            engine.mask()
            result["mask_us"].append((time.thread_time_ns() - start) / 1000)
        if token is None:
            return bool(has(engine.bits, engine.end)) if timed else engine.may_end()
        if timed and not has(engine.bits, token):
            return False
        start = time.thread_time_ns()
        stepped = engine.step(token)
        if timed:
            result["next_us"] += (time.thread_time_ns() - start) / 1000
            result["tokens"] += 1
        if not stepped:
            return False


def measure(engine, tokenizer, line):
    """The same as a line that build/bench_schemas prints."""
    texts = [line["valid"][:TEXTS], line["invalid"][:TEXTS]]
    result = {"name": line["name"], "error": "", "mask_us": [], "first": 0, "next_us": 0,
              "tokens": 0, "valid_taken": 0, "valid": len(texts[0]), "invalid_refused": 0,
              "invalid": len(texts[1]), "not_taken": [], "not_refused": []}
    text = json.dumps(line["schema"])
    start = time.process_time()
    try:
        result["error"] = engine.compile(text)
    except Exception as error:          # whatever the library's own kind is
        result["error"] = str(error) or type(error).__name__
    result["compile_ms"] = 1000 * (time.process_time() - start)
    result["compiled"] = not result["error"]
    if not result["compiled"]:
        return result
    for invalid in range(2):
        for number, text in enumerate(texts[invalid]):
            tokens = tokenizer.encode(text, add_special_tokens=False).ids
            taken = is_taken(engine, tokens, result, not invalid)
            if invalid:
                result["invalid_refused"] += not taken
                if taken:
                    result["not_refused"].append(number)
            else:
                result["valid_taken"] += taken
                if not taken:
                    result["not_taken"].append(number)
                if number == 0:
                    result["first"] = len(result["mask_us"])
    return result


def in_child(engine, tokenizer, line, limit):
    """measure() in a process of its own."""
    get, put = os.pipe()
    child = os.fork()
    if child == 0:
        used = int(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + limit, used + limit + 1))
        with os.fdopen(put, "w") as out:
            out.write(json.dumps(measure(engine, tokenizer, line)))
        os._exit(0)
    os.close(put)
    with os.fdopen(get) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if status == 0:
        return json.loads(text)
    return {"name": line["name"], "compiled": False, "mask_us": [],
            "error": f"ended by signal {os.WTERMSIG(status)}"}


def plain(text):
    """The JSON text without the escapes that it does not need."""
    def undo(match):
        escape = match.group(1)
        if escape == "/":
            return "/"
        code = int(escape[1:], 16) if escape[0] == "u" else 0
        needed = code < 0x20 or code in (0x22, 0x5c, 0x7f) or 0xd800 <= code < 0xe000
        return match.group() if needed else chr(code)
    return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", undo, text)


def part(sorted_values, share):
    if not sorted_values:
        return float("nan")
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def row(name, results):
    done = [r for r in results if r["compiled"]]
    compiled = sorted(r["compile_ms"] for r in done)
    masks = sorted(us for r in done for us in r["mask_us"])
    first = sorted(sum(r["mask_us"][:r["first"]]) / r["first"] for r in done if r["first"])
    total = {key: sum(r[key] for r in done)
             for key in ("valid_taken", "valid", "invalid_refused", "invalid", "next_us", "tokens")}

    def percent(a, b):
        return f"{100 * total[a] / max(1, total[b]):.1f} %"

    cells = [name, f"{len(done)} of {len(results)}"]
    cells += [f"{part(compiled, share):.2f}" for share in (0.5, 0.95, 1)]
    cells += [f"{part(masks, share):.1f}" for share in (0.5, 0.99, 1)]
    cells += [f"{sum(masks) / max(1, len(masks)):.1f}", f"{part(first, 0.5):.1f}"]
    cells += [f"{total['next_us'] / max(1, total['tokens']):.1f}"]
    cells += [percent("valid_taken", "valid"), percent("invalid_refused", "invalid")]
    return "| " + " | ".join(cells) + " |"


HEAD = """\
| engine | schemas accepted | compile ms: median | p95 | worst | mask µs: median | p99 | worst | \
mean | mean of the first answer, median | step µs: mean | valid taken | invalid refused |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", help="with tokenizer.json")
    parser.add_argument("schemas", help="a file of lines of JSON")
    parser.add_argument("--bench", default="build/bench_schemas", help="this program's side")
    parser.add_argument("--engines", default="gemma4," + ",".join(ENGINES))
    parser.add_argument("--limit", type=int, default=60, help="seconds for each schema")
    parser.add_argument("--plain", action="store_true", help="without superfluous escapes")
    parser.add_argument("--keep", help="a directory for the lines of each engine")
    args = parser.parse_args()
    path = os.path.join(args.directory, "tokenizer.json")
    with open(args.schemas) as file:
        lines = [json.loads(line) for line in file]
    for line in lines if args.plain else []:
        for kind in ("valid", "invalid"):
            line[kind] = [plain(text) for text in line[kind][:TEXTS]]
    schemas = tempfile.NamedTemporaryFile("w", suffix=".jsonl")     # removed at the end
    schemas.writelines(json.dumps(line) + "\n" for line in lines)
    schemas.flush()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    results = {}
    for name in args.engines.split(","):
        if name == "gemma4":
            run = subprocess.run([args.bench, args.directory, schemas.name], check=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            results[name] = [json.loads(line) for line in run.stdout.splitlines()]
        else:
            try:
                import tokenizers
                tokenizer = tokenizers.Tokenizer.from_file(path)
                engine = ENGINES[name](path, tokenizer)
            except ImportError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            results[name] = [in_child(engine, tokenizer, line, args.limit) for line in lines]
        if args.keep:
            with open(os.path.join(args.keep, name + ".jsonl"), "w") as out:
                out.writelines(json.dumps(result) + "\n" for result in results[name])
    print(HEAD)
    for name in results:
        print(row(name, results[name]))
    common = set.intersection(*({r["name"] for r in rs if r["compiled"]}
                                for rs in results.values()))
    print(f"\nOver the {len(common)} schemas that all of them accept:\n\n" + HEAD)
    for name, rs in results.items():
        print(row(name, [r for r in rs if r["name"] in common]))


if __name__ == "__main__":
    main()
