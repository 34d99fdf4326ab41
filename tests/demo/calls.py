"""Conversations in which the demo calls a tool and uses its result, as the chat template writes them.

`call(writer)` gives [(text, weight)] like corpus.render: a declaration or two, a question, and either the call up to
<|tool_response>, or the call with its result and the answer, or (no tool fits) a plain answer. `python calls.py` prints a few.
"""

import sys

from corpus import made_up_name, scruffy, Writer
from topics import CAPITALS, FOODS, LIKABLE

Q = '<|"|>'
CITIES = [c for _, c in CAPITALS] + ["Hamburg", "Lyon", "Boston", "Munich", "Sydney", "Mumbai", "Chicago", "Porto", "Zurich", "Leeds", "Oslo", "Bergen", "Milan", "Kyoto"]
WEATHER = ["sunny", "cloudy", "rainy", "windy", "snow", "fog", "clear", "stormy", "hot", "cold", "light rain", "clear and cold"]


def weather_result(rng):
    t = f"{rng.randrange(-15, 38)} degrees"
    w = rng.choice(WEATHER)
    return rng.choice([t, w, f"{w}, {t}", f"{t}, {w}", f"{w} and {t}"])


# names and about: what it may be called and how described; parameters {name: (descriptions, type)}, of which a single one may be `called`
# otherwise too; make: what is asked for; result: what the tool prints.
TOOLS = dict(
    weather=dict(names=["get_weather", "get_weather", "weather", "current_weather", "forecast"],
                 about=["Get the current weather in a city.", "The weather in a city.", "Weather of a city", "Gives the weather."],
                 parameters=dict(city=(["City name", "The city", "city", ""], "STRING")), called=["city", "city", "place", "location"],
                 ask=["[What is|What's|How is] the weather [like|] in {x} [today|now|]?", "Weather in {x}?", "[Is it|Will it be] [cold|warm|sunny|raining] in {x}?",
                      "[Tell me|I need|Give me] the weather [in|of|for] {x} [please|].", "How [warm|cold|hot] is it in {x}?", "Do I need an umbrella in {x}?"],
                 make=lambda rng: rng.choice(CITIES) if rng.random() < 0.7 else made_up_name(rng), result=weather_result,
                 answer=["The weather in {x}: {r}.", "The weather in {x}: {r}.", "In {x}: {r}."], thought="I need the weather in {x}. I call {n}."),
    time=dict(names=["get_time", "now", "clock", "current_time"], about=["The current time.", "Get the time.", "Current time.", "Tells the time."], parameters={},
              ask=["What time is it [now|]?", "[Tell me|Do you know|What is] the time [please|]?", "How late is it?", "time?"], make=lambda rng: "",
              result=lambda rng: f"{rng.randrange(24):02}:{rng.randrange(60):02}", answer=["It is {r}."], thought="I need the time. I call {n}."),
    price=dict(names=["get_price", "price", "price_of", "find_price"], about=["The price of a product.", "Get the price of something.", "Price of an item"],
               parameters=dict(item=(["The product", "What to buy", "item", ""], "STRING")), called=["item", "item", "product", "name"],
               ask=["How much [is|are|do I pay for] {x}?", "What [does|do] {x} cost?", "[What is the|The|Tell me the] price of {x} [please|] ?"],
               make=lambda rng: rng.choice(FOODS + LIKABLE), result=lambda rng: f"{rng.randrange(1, 90)}" + rng.choice([" euros", " dollars", f".{rng.randrange(10, 99)} euros", ""]),
               answer=["The price of {x}: {r}."], thought="I need the price of {x}. I call {n}."),
    phone=dict(names=["find_phone", "phone_number", "phone_book", "look_up"], about=["Find a phone number.", "Phone number of a person", "The phone book."],
               parameters=dict(name=(["Name of the person", "Who", "name", ""], "STRING")), called=["name", "name", "person", "who"],
               ask=["What is [the phone number of {x}|{x}'s phone number]?", "[Find|Get|Tell me|I need] the [phone|] number of {x}.", "How can I call {x}?", "Phone number of {x}?"],
               make=made_up_name, result=lambda rng: str(rng.randrange(100000, 9999999)), answer=["The number of {x} is {r}."], thought="I need the number of {x}. I call {n}."),
    product=dict(names=["multiply", "times", "product"], about=["Multiply two numbers.", "The product of two numbers.", "a times b"],
                 parameters=dict(a=(["First number", "", "a number"], "INTEGER"), b=(["Second number", "", "a number"], "INTEGER")),
                 ask=["What is {a} [times|*|x] {b}?", "{a} [times|*|x] {b}", "Multiply {a} by {b}.", "How much is {a} times {b}?"],
                 make=lambda rng: (rng.randrange(2, 1000), rng.randrange(2, 1000)), result=lambda rng, x: str(x[0] * x[1]), answer=["{a} * {b} = {r}."],
                 thought="I multiply {a} and {b} with {n}."),
    dice=dict(names=["roll_dice", "dice", "roll", "random_number"], about=["Roll a dice.", "A random number.", "Roll dice with some sides."],
              parameters=dict(sides=(["How many sides", "", "sides"], "INTEGER")), called=["sides", "sides", "n"],
              ask=["Roll a dice with {x} sides.", "[Roll|Throw] a {x} sided dice [please|].", "Give me a random number up to {x}."],
              make=lambda rng: rng.choice([2, 4, 6, 8, 10, 12, 20, 100]), result=lambda rng, x: str(rng.randrange(1, x + 1)), answer=["You got {r}.", "The dice says {r}."],
              thought="I roll a dice with {n}."))


def declare(name, about, parameters):
    """A tool's declaration: keys in alphabetical order, as the template has them."""
    props = ",".join(f"{k}:{{" + (f"description:{Q}{d}{Q}," if d else "") + f"type:{Q}{t}{Q}}}" for k, (d, t) in sorted(parameters.items()))
    required = ",".join(f"{Q}{k}{Q}" for k in parameters)
    inner = f"properties:{{{props}}},required:[{required}],type:{Q}OBJECT{Q}" if parameters else f"type:{Q}OBJECT{Q}"
    return f"<|tool>declaration:{name}{{description:{Q}{about}{Q},parameters:{{{inner}}}}}<tool|>"


def call(w, thinking=None):
    """[(text, weight)] of one conversation with tools; `w` is a corpus.Writer. Each text is one control token or plain text."""
    rng = w.rng
    thinking = rng.random() < 0.25 if thinking is None else thinking
    kinds = rng.sample(list(TOOLS), rng.choice([1, 1, 1, 2]))
    made = []
    for kind in kinds:
        t = TOOLS[kind]
        names = {p: rng.choice(t.get("called", [p])) for p in t["parameters"]}
        made.append((t, rng.choice(t["names"]), names,
                     {names[p]: (rng.choice(d), ty) for p, (d, ty) in t["parameters"].items()}))
    system = ("<|think|>\n" if thinking else "") + (w.say(["You are a helpful assistant.", "Use tools.", "[Be brief.|Help the user.]"]) if rng.random() < 0.2 else "")
    text = "<bos><|turn>system\n" + system + "".join(declare(n, rng.choice(t["about"]), p) for t, n, _, p in made) + "<turn|>\n"
    out = [(text, 0)]
    quiet = "" if thinking else "<|channel>thought\n<channel|>"
    if rng.random() < 0.25:                                                        # a turn that needs no tool
        q, th, a, _ = w.topic(rng.choice(["hello", "how_are_you", "thanks", "who", "what_can", "bye"])) if rng.random() < 0.7 else w.single(thinking)
        last = rng.random() < 0.6
        out += [(f"<|turn>user\n{scruffy(rng, q)}<turn|>\n<|turn>model\n", 0)]
        if last:
            return out + ([(f"<|channel>thought\n{th}\n<channel|>", 1)] if thinking else [(quiet, 0)]) + [(f"{a}<turn|>", 1)]
        out += [(f"{a}<turn|>\n", 0.5)]
    t, name, names, _ = made[0]
    x = t["make"](rng)
    r = t["result"](rng, x) if t["result"].__code__.co_argcount == 2 else t["result"](rng)
    slots = dict(a=str(x[0]), b=str(x[1])) if isinstance(x, tuple) else dict(x=str(x))
    q = scruffy(rng, w.say(t["ask"], **slots))
    values = {names[p]: (slots[p] if p in slots else slots["x"], ty) for p, (_, ty) in t["parameters"].items()}
    args = ",".join(f"{k}:" + (f"{Q}{v}{Q}" if ty == "STRING" else v) for k, (v, ty) in sorted(values.items()))
    thought = t["thought"].replace("{n}", name)
    for k, v in slots.items():
        thought = thought.replace("{" + k + "}", v)
    made_call = f"<|tool_call>call:{name}{{{args}}}<tool_call|><|tool_response>"
    out += [(f"<|turn>user\n{q}<turn|>\n<|turn>model\n", 0)]
    think = f"<|channel>thought\n{thought}\n<channel|>"
    if rng.random() < 0.4:
        return out + ([(think, 1)] if thinking else [(quiet, 0)]) + [(made_call, 1)]
    answer = w.say(t["answer"], r=r, **slots)
    return out + ([(think, 0)] if thinking else []) + [(made_call, 0.2), (f"response:{name}{{value:{Q}{r}{Q}}}<tool_response|>", 0), (f"{answer}<turn|>", 1)]


if __name__ == "__main__":
    w = Writer(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(12):
        print("".join(f"{t}" for t, _ in call(w)), "\n" + "-" * 40)
