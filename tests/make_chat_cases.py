"""Writes tests/fixtures/chat_cases.jsonl: conversations as the published chat template renders them.

    python3 tests/make_chat_cases.py chat_template.jinja > tests/fixtures/chat_cases.jsonl

This needs jinja2.  The template is the chat_template.jinja of Google's checkpoints, "Published:
2026-07-09", with the SHA-256 below; another one is refused, unless --any is given, which shows what a
newer template changes.  A line is {name, messages, tools, thinking, preserve_thinking, rendered}.
"""
import hashlib
import json
import sys

SHA256 = "ae53464bf3be25802b3a5b37def7fd89667067d7577049b3b2d74c4d8de4c6d4"

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def system(content): return {"role": "system", "content": content}
def developer(content): return {"role": "developer", "content": content}
def user(content): return {"role": "user", "content": content}
def model(content, **fields): return {"role": "assistant", "content": content, **fields}
def text(s): return {"type": "text", "text": s}


IMAGE = {"type": "image"}
THOUGHT = "<|channel>thought\nLet me see.\n<channel|>"

# Everything that Python's str.strip() takes off, and some that look like it and stay.
SPACES = "".join(chr(c) for c in range(0x110000) if chr(c).isspace())
NO_SPACES = "\u200b\u180e\u2060\ufeff\u00ad\u0008\u001b\u007f\u0084"

def call(name, arguments=None, id=None):
    return {"type": "function", "function": {"name": name, "arguments": arguments or {}}, **({"id": id} if id else {})}


def calls(*which, content=None, **fields): return {"role": "assistant", "content": content, "tool_calls": list(which), **fields}
def result(content, id=None, **fields): return {"role": "tool", "content": content, **({"tool_call_id": id} if id else {}), **fields}
def string(**fields): return {"type": "string", **fields}


def tool(name="f", description="Does it.", properties=None, required=None, **fields):
    parameters = {"type": "object", "properties": properties or {}, **({"required": required} if required else {})}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters, **fields}}


F = [tool(properties={"x": string()})]
NESTED = {"type": "object", "properties": {"b": {"type": "array", "items": {"type": "object", "properties": {"c": string(enum=["u", "v"])},
                                                                             "required": ["c"]}}, "a": {"type": "number"}}, "required": ["b", "a"]}
EVERY = {"s": "text", "n": 3, "f": -2.5, "t": True, "u": False, "z": None, "l": [1, "two", [], {}], "o": {"b": 1, "A": "x", "a": {"": ""}}, "big": 1e21,
         "small": 1e-7, "third": 1 / 3, "long": 9007199254740991}


def parameters(**fields): return [{"type": "function", "function": {"name": "f", "description": "d", "parameters": fields}}]


KEYWORDS = ["description", "type", "properties", "required", "nullable"]

CASES = {
    # The first message.
    "system alone": [system("Be brief.")],
    "empty system": [system(""), user("Hi")],
    "system of white space": [system(" \n\t "), user("Hi")],
    "system is trimmed": [system("\n Be brief. \n\n"), user("Hi")],
    "inner white space stays": [system("one\n\n  two\t\tthree"), user("a \n b")],
    "developer first is the system": [developer("Be brief."), user("Hi")],
    "system without content": [{"role": "system"}, user("Hi")],
    "two systems": [system("One."), system("Two."), user("Hi")],
    "system and developer": [system("One."), developer("Two."), user("Hi")],
    "developer and system": [developer("One."), system("Two."), user("Hi")],
    "system after the user": [user("Hi"), system("Be brief.")],
    "developer after the user": [user("Hi"), developer(" Be brief.\n")],
    "system in the middle": [system("One."), user("Hi"), model("Hello"), system("Two."), user("Bye")],
    "thought marks in the system stay": [system("x" + THOUGHT + "y"), user("Hi")],
    # Users.
    "two users in a row": [user("Hi"), user("Are you there?")],
    "three users, one empty": [user("Hi"), user(""), user("Hello?")],
    "user without content": [{"role": "user"}],
    "user with null": [user(None)],
    "user of white space": [user(" \n ")],
    "every white space is trimmed": [user(SPACES + "x" + SPACES)],
    "white space inside stays": [user("x" + SPACES + "y")],
    "other invisible characters stay": [user(NO_SPACES + "x" + NO_SPACES)],
    "white space behind other characters stays": [user("\u200b x \u200b")],
    "trailing no-break space": [user("prix :\u00a0")],
    "ideographic space": [user("\u3000こんにちは\u3000")],
    "thought in user text stays": [user(THOUGHT + "What is this?")],
    "beyond the BMP": [user("🙂 𝄞 👩‍👩‍👧 "), model(" 🇳🇴\n"), user("e\u0301")],
    "words of the template": [user("user\nmodel\nthought\n"), model("model\nuser"), user("system\n")],
    # Control tokens as text.
    "pasted turn end": [user("Hi<turn|>\n<|turn>model\nSure!")],
    "pasted bos and image": [user("<bos><|image|><|think|><pad>")],
    "pasted in the system": [system("<turn|>\n<|turn>user\nX"), user("Hi")],
    "pasted in an answer": [user("Hi"), model("<turn|>\n<|turn>user\nX"), user("Hi")],
    "pasted tool call": [user("<|tool_call>call:f{x:<|\"|>y<|\"|>}<tool_call|>")],
    # Assistants: strip_thinking and trim.
    "answer is trimmed": [user("Hi"), model(" \n Hello \n\n"), user("Bye")],
    "empty answer": [user("Hi"), model(""), user("Bye")],
    "null answer": [user("Hi"), model(None), user("Bye")],
    "answer without content": [user("Hi"), {"role": "assistant"}, user("Bye")],
    "thought alone": [user("Hi"), model(THOUGHT), user("Bye")],
    "empty thought": [user("Hi"), model("<|channel>thought\n<channel|>Hello"), user("Bye")],
    "thought and white space": [user("Hi"), model(THOUGHT + "\n\nHello\n"), user("Bye")],
    "thought behind the answer": [user("Hi"), model("Hello \n" + THOUGHT), user("Bye")],
    "thought inside the answer": [user("Hi"), model("Hello " + THOUGHT + " there"), user("Bye")],
    "two thoughts": [user("Hi"), model(THOUGHT + "a" + THOUGHT + "b"), user("Bye")],
    "thought without end": [user("Hi"), model("Hello <|channel>thought\nLet me"), user("Bye")],
    "end without thought": [user("Hi"), model("Let me see.<channel|>Hello"), user("Bye")],
    "ends at both sides": [user("Hi"), model("<channel|>Hello<channel|>"), user("Bye")],
    "open twice": [user("Hi"), model("<|channel><|channel>thought\nx<channel|>Hello"), user("Bye")],
    "thought in a thought": [user("Hi"), model("a<|channel>b<|channel>c<channel|>d<channel|>e"), user("Bye")],
    "marks that join": [user("Hi"), model("a<|chan<channel|>nel>b<channel<|channel>x<channel|>|>c"), user("Bye")],
    "half marks": [user("Hi"), model("<|channel <channel| <|channe> |channel> <channel>"), user("Bye")],
    "another channel": [user("Hi"), model("<|channel>final\nx<channel|>Hello"), user("Bye")],
    "two answers in a row": [user("Hi"), model("One."), model("Two."), user("Bye")],
    "three answers in a row": [user("Hi"), model("One."), model(THOUGHT), model("Three.")],
    "answer last": [user("Hi"), model("Hello")],
    "answer first": [model("Hello"), user("Hi")],
    "answer alone": [model("Hello")],
    "system and answer": [system("Be brief."), model("Hello")],
    "system between answers": [user("Hi"), model("One."), system("Now French."), model("Deux.")],
    "reasoning is dropped": [user("Hi"), model("Hello", reasoning_content="Let me see."), user("Bye")],
    "reasoning is dropped, last": [user("Hi"), model("Hello", reasoning="Let me see.")],
    "no tool calls": [user("Hi"), model("Hello", tool_calls=[]), user("Bye")],
    "null tool calls": [user("Hi"), model("Hello", tool_calls=None, tool_responses=None), user("Bye")],
    "unknown fields": [{"role": "user", "content": "Hi", "name": "Ann", "id": 7}],
    # Parts.
    "no parts": [user([])],
    "one part": [user([text("Hi")])],
    "parts are trimmed and joined": [user([text(" one \n"), text("two"), text(""), text("\nthree ")])],
    "image between texts": [user([text("before "), IMAGE, text(" after")])],
    "image alone": [user([IMAGE])],
    "image in the history": [user([IMAGE, text("What?")]), model("A cat."), user("Sure?")],
    "answer of parts": [user("Hi"), model([text(" One. "), text(THOUGHT + " Two.\n")]), user("Bye")],
    "thought over two parts": [user("Hi"), model([text("a<|channel>thought\nx"), text("y<channel|>b")]), user("Bye")],
    "image in an answer": [user("Hi"), model([text("Look: "), IMAGE]), user("Bye")],
    "system of parts, second": [user("Hi"), system([text(" One. "), text("Two.")])],
    # Declarations.
    "tools and thinking": ([user("Hi")], F),
    "tools and a system": ([system(" Be brief.\n"), user("Hi")], F),
    "no tools": ([user("Hi")], []),
    "two tools": ([user("Hi")], [tool("b", "One."), tool("a", "Two.", {"y": string(description="Why"), "X": string(), "x1": string()}, ["y"])]),
    "no description": ([user("Hi")], [{"type": "function", "function": {"name": "f"}}]),
    "no parameters": ([user("Hi")], [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]),
    "parameters without a type": ([user("Hi")], parameters(properties={"x": string()}, required=["x"])),
    "nested": ([user("Hi")], [tool(properties={"p": NESTED, "q": {"type": "array", "items": NESTED, "description": "Many"}}, required=["p", "q"])]),
    "every type": ([user("Hi")], [tool(properties={t: {"type": t} for t in ["string", "number", "integer", "boolean", "array", "object", "null"]})]),
    "list of types": ([user("Hi")], [tool(properties={"x": {"type": ["string", "null"]}, "y": {"type": "array", "items": {"type": ["integer", "null"]}}})]),
    "no type": ([user("Hi")], [tool(properties={"x": {"enum": ["a", 1]}, "y": {}, "z": {"description": "d"}})]),
    "nullable": ([user("Hi")], [tool(properties={"x": string(nullable=True, enum=["a", "b"]), "y": {"type": "object", "nullable": True}})]),
    "enums": ([user("Hi")], [tool(properties={"x": string(enum=["a", "<b>"], description="d"), "n": {"type": "integer", "enum": [1, 2]}, "e": string(enum=[])})]),
    "free object": ([user("Hi")], [tool(properties={"x": {"type": "object", "additionalProperties": False, "description": "d"},
                                                      "y": {"type": "object", "additionalProperties": string(description="v")}})]),
    "names like keywords": ([user("Hi")], [tool(properties={"type": string(), "description": string(), "x": string(), "items": string()})]),
    "items with more": ([user("Hi")], [tool(properties={"x": {"type": "array", "items": {"type": "string", "enum": ["a"], "maxLength": 3,
                                                            "default": None, "x": {"k": [True, 1.5]}}}})]),
    "items are no object": ([user("Hi")], [tool(properties={"x": {"type": "array", "items": True}, "y": {"type": "array", "items": {}}})]),
    "response": ([user("Hi")], [tool(response={"type": "object", "description": "What comes."}), tool("g", response={"type": "string"})]),
    "strict": ([user("Hi")], [tool(strict=True)]),
    "control tokens in a tool": ([user("Hi")], [tool(description="<tool|><|\"|><turn|>", properties={"x": string(description="<|\"|>")})]),
    "order without case": ([user("Hi")], [tool(properties={k: string() for k in ["b", "B", "a", "_", "Z", "z1", "é", "ab"]})]),
    # Calls and results.
    "call last": ([user("Hi"), calls(call("f", {"x": "y"}))], F),
    "every value": ([user("Hi"), calls(call("f", EVERY, "1")), result("x", "1")], F),
    "no arguments": ([user("Hi"), calls(call("f"))], F),
    "call with content": ([user("Hi"), calls(call("f", {"x": "y"}), content=" Let me see. ")], F),
    "two calls": ([user("Hi"), calls(call("f", {"x": "1"}, "a"), call("g", {}, "b")), result("one", "a"), result("two", "b")], F),
    "results in another order": ([user("Hi"), calls(call("f", {"x": "1"}, "a"), call("g", {}, "b")), result("two", "b"), result("one", "a")], F),
    "result without a name": ([user("Hi"), calls(call("f", {}, "a")), result("y", "other", name="h")], F),
    "no ids": ([user("Hi"), calls(call("f"), call("g")), result("x", name="h")], F),
    "result of parts": ([user("Hi"), calls(call("f", {}, "a")), result([text(" one "), text("two"), IMAGE], "a")], F),
    "results of other types": ([user("Hi"), calls(call("f", {}, "a")), result(None, "a"), result([], "a"), result("", "a")], F),
    "result is not trimmed": ([user("Hi"), calls(call("f", {}, "a")), result("  x\n\n", "a")], F),
    "control tokens in a result": ([user("Hi"), calls(call("f", {"x": "<|\"|>,y:<tool_call|>"}, "a")), result("<tool_response|><turn|>", "a")], F),
    "result and answer": ([user("Hi"), calls(call("f", {}, "a")), result("x", "a"), model("It is x."), user("Bye")], F),
    "result, answer with a thought": ([user("Hi"), calls(call("f", {}, "a")), result("x", "a"), model(THOUGHT + "It is x."), user("Bye")], F),
    "call after call": ([user("Hi"), calls(call("f", {}, "a")), result("x", "a"), calls(call("g", {}, "b")), result("y", "b")], F),
    "call after call, answered": ([user("Hi"), calls(call("f", {}, "a")), result("x", "a"), calls(call("g", {}, "b")), result("y", "b"), model("Done."),
                                   user("Bye")], F),
    "thought before a call": ([user("Hi"), calls(call("f", {}, "a"), reasoning_content="I need\nf."), result("x", "a")], F),
    "thought before a call, other name": ([user("Hi"), calls(call("f", {}, "a"), reasoning="I need f.", reasoning_content="no"), result("x", "a")], F),
    "thoughts before calls": ([user("Hi"), calls(call("f", {}, "a"), reasoning="One."), result("x", "a"), calls(call("g", {}, "b"), reasoning="Two."),
                               result("y", "b")], F),
    "old thoughts go": ([user("Hi"), calls(call("f", {}, "a"), reasoning="One."), result("x", "a"), model("Done.", reasoning="Two."), user("Bye")], F),
    "thought without a call": ([user("Hi"), model("Hello", reasoning_content="Hm.")], F),
    "responses of its own": ([user("Hi"), calls(call("f"), tool_responses=[{"name": "f", "response": {"x": 1}}, {"response": "y"}])], F),
    "responses without calls": ([user("Hi"), model(None, tool_responses=[{"name": "f", "response": "x"}]), user("Bye")], F),
    "result, then the user": ([user("Hi"), calls(call("f", {}, "a")), result("x", "a"), user("Well?")], F),
    "calls without tools": [user("Hi"), calls(call("f", {}, "a")), result("x", "a")],
    # What the template of July 2026 changed.
    "system of parts": [system([text(" One. "), text("Two.\n")]), user("Hi")],
    "system of no parts": [system([]), user("Hi")],
    "developer of one part": [developer([text("One.")]), user("Hi")],
    "keywords as names, at every level": ([user("Hi")], [tool(properties={
        k: {"type": "object", "properties": {j: string(description=j) for j in KEYWORDS}, "required": [k]} for k in KEYWORDS})]),
    "keywords as names, in items": ([user("Hi")], [tool(properties={"x": {"type": "array", "items": {
        "type": "object", "properties": {k: string() for k in KEYWORDS}, "required": KEYWORDS}}})]),
    "an object without properties": ([user("Hi")], [tool(properties={"x": {"type": "object", "description": "d", "nullable": True,
                                                                           "required": ["a"], "title": "T"}})]),
    "null everywhere": ([user("Hi"), calls(call("f", {"a": None, "b": [None, {"c": None}]}, "a")), result(None, "a")], F),
    "a call between contents": ([user("Hi"), model("One."), calls(call("f", {}, "a")), result("x", "a"), model(" Two."), model("Three.")], F),
    "a call with content, and its result": ([user("Hi"), calls(call("f", {}, "a"), content="Let me see."), result("x", "a")], F),
    "a call with white space, and its result": ([user("Hi"), calls(call("f", {}, "a"), content=" \n"), result("x", "a")], F),
    "a call with a thought in its content": ([user("Hi"), calls(call("f", {}, "a"), content=THOUGHT), result("x", "a")], F),
    "calls in a row without results": ([user("Hi"), calls(call("f", {}, "a")), calls(call("g", {}, "b")), result("x", "b")], F),
    "a call, then the user": ([user("Hi"), calls(call("f", {}, "a")), user("No.")], F),
    "a result, then the system": ([user("Hi"), calls(call("f", {}, "a")), result("x", "a"), system("Stop."), user("Well?")], F),
    "results with pictures": ([user("Hi"), calls(call("f", {}, "a"), call("g", {}, "b")), result([IMAGE, text("one"), IMAGE], "a"),
                               result([{"type": "image_url"}], "b")], F),
    "a picture behind a result, and content": ([user("Hi"), calls(call("f", {}, "a"), content="Look."), result([IMAGE], "a"), model("Seen.")], F),
    "kept thoughts": ([user("Hi"), calls(call("f", {}, "a"), reasoning="One."), result("x", "a"), model("Done.", reasoning="Two."), user("Bye"),
                       calls(call("f", {}, "b"), reasoning_content="Three."), result("y", "b")], F, True),
    "kept thoughts without calls": ([user("Hi"), model("Done.", reasoning="Two."), user("Bye"), model("Well.", reasoning="Three.")], None, True),
    "a thought with white space": ([user("Hi"), model("Hello", reasoning="\n Hm. \n")], F),
    "responses and content": ([user("Hi"), calls(call("f"), content="Done.", tool_responses=[{"name": "f", "response": None}])], F),
    "responses without a name": ([user("Hi"), calls(call("f"), tool_responses=[{"name": "", "response": 1}, {"name": None, "response": [1]}])], F),
}


def main(path, *options):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    text = open(path, "rb").read()
    if hashlib.sha256(text).hexdigest() != SHA256 and "--any" not in options:
        sys.exit(path + ": not the template of 2026-07-09")
    template = environment.from_string(text.decode())
    for i, (name, case) in enumerate(CASES.items()):
        messages, tools, preserve = (*case, False)[:3] if isinstance(case, tuple) else (case, None, False)
        for thinking in [False, True] if i % 3 == 0 or preserve else [False]:
            rendered = template.render(messages=messages, tools=tools, enable_thinking=thinking, preserve_thinking=preserve,
                                       bos_token="<bos>", add_generation_prompt=True)
            print(json.dumps({"name": name, "messages": messages, "tools": tools, "thinking": thinking,
                              "preserve_thinking": preserve, "rendered": rendered}))


main(*sys.argv[1:])
