"""The dialogues the demo learns from: all of them are made here, none are copied.

A topic is a set of ways to ask and a set of ways to answer, written with alternatives in square brackets:
`[hi|hello] [there|]`. `Writer(seed).dialogue()` strings topics together into conversations, with or without a
system prompt, with or without thinking; `Writer(seed, held_out=True)` uses only questions and sums that training
never sees (chosen by a hash of the question). `python corpus.py` prints a few.
"""

import random
import re
import sys
import zlib

from topics import ANIMALS, CAPITALS, COLOURS, COMMAND_Q, COMMANDS, FACTS, FOODS, JOBS, JOKES, LANG_AGREE, LANG_SUM, LANG_SYSTEM, LANG_UNKNOWN, \
    LIKABLE, NAMES, NOUNS, OPPOSITES, POEMS, QA, RHYMES, SOUNDS, STORIES, TOPICS, UNKNOWN_A, UNKNOWN_Q, WANT, WANT_Q, WORDS


def spin(rng, s):
    """Expand `[a|b]` alternatives, innermost first."""
    while True:
        m = re.search(r"\[([^\[\]]*)\]", s)
        if not m:
            break
        s = s[:m.start()] + rng.choice(m.group(1).split("|")) + s[m.end():]
    s = re.sub(r"  +", " ", s)
    return re.sub(r" ([,.?!])(?=\s|$)", r"\1", s).strip()


def key(q):
    return re.sub(r"[^a-z0-9]", "", q.lower())


def is_held_out(q, share=40):
    return zlib.crc32(key(q).encode()) % share == 0


SHORT = {"you": "u", "are": "r", "please": "pls", "what is": "whats", "i am": "im", "do not": "dont", "because": "cuz",
         "what's": "whats", "who's": "whos", "i'm": "im", "don't": "dont", "can't": "cant", "tell me": "tell me"}


def scruffy(rng, q):
    """A question as people type it: lower case, no punctuation, a slip of the finger."""
    m = re.match(r"(What|Who|Where) (is|are) ([^,?]+)\?$", q)
    if m and rng.random() < 0.15 and " or " not in q:
        q = spin(rng, "[Do you know|Tell me|Can you tell me|I want to know|Please tell me|I wonder] ") + f" {m[1].lower()} {m[3]} {m[2]}" + rng.choice(["?", ".", ""])
    elif rng.random() < 0.05 and q[0].isupper():
        low = q if q.startswith(("I ", "I'", "/", "-")) or q[1:2].isupper() else q[0].lower() + q[1:]
        q = spin(rng, "[Hi,|Hello,|Hey,|Ok,|So,|And|Please,|Now|Well,|Tell me,|One question:]") + " " + low if rng.random() < 0.7 else \
            spin(rng, "[Hi|Hello|Good morning|Good evening|Hey][!|.|,|!] ") + " " + q
    r = rng.random()
    if r < 0.45:
        return q
    if rng.random() < 0.75:
        q = q[0].lower() + q[1:] if rng.random() < 0.4 else q.lower()
    if rng.random() < 0.6:
        q = q.rstrip("?.!")
    elif rng.random() < 0.1:
        q = q + rng.choice(["!!", "??", " ?", " :)", "...", "!"])
    if rng.random() < 0.12:
        for a, b in SHORT.items():
            q = re.sub(r"\b%s\b" % re.escape(a), b, q)
    if rng.random() < 0.2:
        words = q.split(" ")
        i = rng.randrange(len(words))
        w = words[i]
        if len(w) > 3 and w.isalpha():
            j = rng.randrange(1, len(w) - 1)
            w = rng.choice([w[:j] + w[j + 1:], w[:j] + w[j + 1] + w[j] + w[j + 2:], w[:j] + w[j] + w[j:]])
            words[i] = w
            q = " ".join(words)
    return q or "?"


def made_up_name(rng):
    if rng.random() < 0.6:
        return rng.choice(NAMES)
    s = "".join(rng.choice(["b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br", "ch", "st", "th", "tr", "", "l", "m"]) +
                rng.choice(["a", "e", "i", "o", "u", "ei", "ia", "ou", "an", "el", "in", "or", "er", "y"]) for _ in range(rng.choice([1, 2, 2, 3])))
    return (s + rng.choice(["", "", "n", "r", "s", "l", "x", "m", "da", "na", "ta", "ette", "ard", "bert", "son", "ey"])).capitalize()


def digits(n):
    return [int(c) for c in str(n)][::-1]


NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
PLACES = ["Ones", "Tens", "Hundreds", "Thousands"]


def steps_add(a, b):
    out, carry, x, y = [], 0, digits(a), digits(b)
    for i in range(max(len(x), len(y))):
        p, q = x[i] if i < len(x) else 0, y[i] if i < len(y) else 0
        s = p + q + carry
        out.append(f"{PLACES[i]}: {p} + {q}" + (" + 1" if carry else "") + f" = {s}" +
                   (f", write {s - 10}, carry 1." if s > 9 else "."))
        carry = s > 9
    if carry:
        out.append("Carry 1 in front.")
    return out + [f"So {a} + {b} = {a + b}."]


def steps_sub(a, b):
    if a < b:
        return [f"{b} is larger than {a}, so the answer is negative."] + steps_sub(b, a) + [f"So {a} - {b} = {a - b}."]
    out, borrow, x, y = [], 0, digits(a), digits(b)
    for i in range(len(x)):
        p, q = x[i], y[i] if i < len(y) else 0
        d = p - q - borrow
        line = f"{PLACES[i]}: {p} - {q}" + (" - 1" if borrow else "")
        out.append(line + (f" is below 0, borrow: {p + 10} - {q}" + (" - 1" if borrow else "") + f" = {d + 10}." if d < 0 else f" = {d}."))
        borrow = d < 0
    return out + [f"So {a} - {b} = {a - b}."]


CAPS = ["sum", "hello", "hello", "how_are_you", "thanks", "bye", "who", "who", "what_program", "what_can", "name_of_bot", "fine", "weather", "yes", "praise"]
REWARDS = {  # ways to ask, what to give, thought
    "joke": (["[Tell|Give] me a joke [please|].", "[Can|Could] you tell [me|us] a joke?", "Do you know [a|any] [joke|jokes|good joke]?", "Make me laugh [please|].", "[A joke|Joke], please.", "[Say|Tell me] something funny.", "I [want|need|would like] a joke.",
              "Tell me another joke.", "Do you have another joke?", "Can you make me laugh?", "[Be|Can you be] funny?", "[Another|One more] joke [please|].", "joke", "[Got|Have you got] any [good|] jokes?"],
             JOKES, "They want a joke. I pick a short one."),
    "poem": (["[Write|Tell|Give] me a [short|little|] poem [please|].", "[Can|Could] you [write|make] a poem [for me|]?", "[A poem|Poem], please.", "Do you know a poem?", "[Write|Say] a [little|short] [poem|rhyme|verse].", "I [want|would like] a poem.",
              "[Write|Give me] a poem about [love|the sea|cats|spring|me]."], POEMS, "They want a poem. I write a small one."),
    "story": (["Tell me a [short|little|] story [please|].", "[Can|Could] you tell [me|us] a [story|tale]?", "[A story|Story], please.", "Do you know a story?", "[Write|Tell] a [little|short] [story|tale] [for me|].", "I [want|would like] [to hear|] a story.",
               "[Tell me|Write] a story about [a mouse|a robot|a dragon|a king]."], STORIES, "They want a story. I tell a short one."),
    "fact": (["Tell me [a|an interesting|a fun|a short] fact.", "[Do you know|Give me] [a|an interesting|a fun] fact?", "Tell me something [interesting|new|cool].", "[Teach|Tell] me something.", "What is something [interesting|I do not know]?", "I am bored.",
              "I'm bored, tell me something.", "Surprise me [please|].", "[Another|One more] fact [please|].", "[Say|Tell me] something [interesting|clever|smart]."], FACTS, "They want a fact. I know some."),
}


class Writer:
    def __init__(self, seed, held_out=False):
        self.rng = random.Random(seed)
        self.held_out = held_out
        self.by_name = {t["name"]: t for t in TOPICS}
        self.weights = [t.get("w", 1.0) for t in TOPICS]

    # ---- single questions: each returns (question, thought, answer, topic name)

    def ask(self, patterns, **slots):
        """A question from the patterns on the right side of the held-out split (where there are enough of them)."""
        q = ""
        for _ in range(60 if self.held_out else 20):
            q = spin(self.rng, self.rng.choice(patterns))
            for k, v in slots.items():
                q = q.replace("{" + k + "}", v)
            if is_held_out(q) == self.held_out:
                break
        return q

    def say(self, patterns, **slots):
        s = spin(self.rng, self.rng.choice(patterns))
        for k, v in slots.items():
            s = s.replace("{" + k + "}", v)
        return s

    def numbers(self, thinking):
        rng = self.rng
        while True:
            r = rng.random()
            if thinking:
                hi = 10 if r < 0.1 else 100 if r < 0.5 else 1000
            else:
                hi = 10 if r < 0.35 else 20 if r < 0.55 else 100 if r < 0.95 else 1000
            a, b = rng.randrange(hi), rng.randrange(hi if rng.random() < 0.6 else max(10, hi // 10))
            if rng.random() < 0.3:
                a, b = b, a
            op = "+" if rng.random() < 0.55 else "-"
            if op == "-" and a < b and rng.random() < 0.8:
                a, b = b, a
            small = a < 10 and b < 10
            if small and not self.held_out or not small and is_held_out(f"{a}plus{b}" if op == "+" else f"{a}minus{b}", 20) == self.held_out:
                return a, b, op

    def sum(self, thinking):
        rng = self.rng
        a, b, op = self.numbers(thinking)
        c = a + b if op == "+" else a - b
        if op == "+":
            q = rng.choice(["What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a}+{b}=", "What is {a} plus {b}?",
                            "How much is {a} + {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.", "{a} plus {b}",
                            "Can you add {a} and {b}?", "Calculate {a} + {b}.", "Compute {a} + {b}", "What's {a}+{b}?",
                            "Please add {a} to {b}.", "And {a} + {b}?", "what about {a} plus {b}?", "Sum of {a} and {b}?",
                            "Do you know what {a} plus {b} is?", "Tell me {a} + {b}."])
        else:
            q = rng.choice(["What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "{a}-{b}=", "What is {a} minus {b}?",
                            "How much is {a} - {b}?", "How much is {a} minus {b}?", "Subtract {b} from {a}.", "{a} minus {b}",
                            "Calculate {a} - {b}.", "Compute {a} - {b}", "What's {a}-{b}?", "Take {b} from {a}.", "And {a} - {b}?",
                            "what about {a} minus {b}?", "Can you subtract {b} from {a}?", "Tell me {a} - {b}."])
        story = None
        if rng.random() < 0.08 and max(a, b) <= 20:
            q = self.say(["[What is|How much is|What's|] {a} {w} {b} [?|]"], a=NUMBER_WORDS[a], b=NUMBER_WORDS[b], w=self.say(["plus"] if op == "+" else ["minus"]))
        elif rng.random() < 0.08 and a < 100 and 0 <= c:
            thing = rng.choice(["apples", "books", "coins", "cats", "eggs", "pens", "stones", "cakes"])
            if op == "+":
                q = rng.choice([f"I have {a} {thing} and get {b} more. How many {thing} do I have?",
                                f"There are {a} {thing} here and {b} there. How many are there in all?"])
                story = f"That makes {c} {thing}."
            else:
                q = rng.choice([f"I have {a} {thing} and give away {b}. How many are left?",
                                f"I have {a} {thing} and lose {b} of them. How many {thing} do I have?"])
                story = f"That leaves {c} {thing}."
        q = q.replace("{a}", str(a)).replace("{b}", str(b))
        thought = "\n".join(steps_add(a, b) if op == "+" else steps_sub(a, b))
        if story:
            thought = f"This is {a} {op} {b}.\n" + thought
        answer = story or (f"{a} {op} {b} = {c}." if rng.random() < 0.97 else f"The answer is {c}.")
        return q, thought, answer, "sum"

    def times(self):
        rng = self.rng
        a, b = rng.randrange(0, 13), rng.randrange(0, 13)
        big = rng.random() < 0.25
        if big:
            a, b = rng.randrange(13, 100), rng.randrange(7, 100)
        q = rng.choice(["What is {a} times {b}?", "{a} * {b}", "{a}*{b}", "What is {a} * {b}?", "{a} x {b}", "Multiply {a} by {b}.",
                        "How much is {a} times {b}?", "{a} times {b}"]).replace("{a}", str(a)).replace("{b}", str(b))
        if big:
            return q, "That is beyond my times table.", "I only know the times table up to 12 times 12. That one is too big for me, sorry.", "times"
        return q, f"From the times table: {a} times {b} is {a * b}.", f"{a} * {b} = {a * b}.", "times"

    def sums(self):
        """Several sums at once; mostly of single digits, on which all others rest."""
        rng = self.rng
        todo = []
        for _ in range(rng.randrange(3, 13)):
            a, b, op = self.numbers(False)
            if a + b > 20 and rng.random() < 0.7:
                a, b, op = rng.randrange(10), rng.randrange(10), rng.choice("+-")
            if op == "-" and a < b:
                a, b = b, a
            todo.append((f"{a} {op} {b}", f"{a} {op} {b} = {a + b if op == '+' else a - b}"))
        q = rng.choice(["", "Compute ", "What are ", "Solve ", "Do these sums: ", "Calculate "]) + ", ".join(x for x, _ in todo)
        return q, "I do one after the other.", ", ".join(x for _, x in todo) + ".", "sums"

    def divide(self):
        rng = self.rng
        a, b = rng.randrange(0, 13), rng.randrange(1, 13)
        if rng.random() < 0.25:
            n = rng.randrange(20, 1000)
            b = rng.randrange(13, 60)
            return self.say([f"What is {n} / {b}?", f"{n} / {b}", f"Divide {n} by {b}.", f"{n} divided by {b}"]), "I cannot divide such numbers.", "I can only divide small numbers without a rest. That one is too hard for me, sorry.", "divide"
        return self.say([f"What is {a * b} / {b}?", f"{a * b} / {b}", f"{a * b}/{b}", f"Divide {a * b} by {b}.", f"{a * b} divided by {b}", f"How much is {a * b} divided by {b}?"]), \
            f"{b} times {a} is {a * b}.", f"{a * b} / {b} = {a}.", "divide"

    def garbage(self):
        """Text that means nothing to the demo."""
        rng = self.rng
        r = rng.random()
        if r < 0.25:
            e = rng.choice(["🙂", "😀", "👍", "❤", "🎉", "😂", ":)", ":-)", ";)", ":("])
            return e, "A smiley. I answer with one.", self.say([e + " [Nice to see you.|What would you like to talk about?|]"]), "garbage"
        if r < 0.5:
            q = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(4, 14)))
        elif r < 0.65:
            q = "".join(rng.choice(rng.choice(["日本語中文字", "привет мир ", "αβγδ ", "한국어 ", "!?#$%&", "<>{}()=;"])) for _ in range(rng.randrange(3, 25)))
        elif r < 0.85:
            q = " ".join(rng.choice(NOUNS + LIKABLE) for _ in range(rng.randrange(3, 40)))
        else:
            q = rng.choice(["int main(void) { return 0; }", "{\"key\": [1, 2, 3]}", "https://example.org/a?b=c", "x = y + z;", "SELECT * FROM t;", "for i in range(10): print(i)", "def f(x): return x", "<html></html>", "git push", "ls -l", "sudo make", "cat file.txt"])
        return q, self.say(["I cannot make sense of this. I say so."]), self.say(["I do not understand that. [I am only a small demo.|Ask me something simple.|]", "That makes no sense to me, sorry. [I only learned short questions.|Ask me for a joke or a sum.]"]), "garbage"

    def compare(self):
        rng = self.rng
        hi = rng.choice([10, 100, 1000])
        a, b = rng.randrange(hi), rng.randrange(hi)
        if a == b:
            b += 1
        if rng.random() < 0.6:
            q = self.say([f"Which is [bigger|larger|more], {a} or {b}?", f"What is [bigger|larger], {a} or {b}?"])
            return q, f"I compare {a} and {b}. {max(a, b)} is larger.", f"{max(a, b)} is larger than {min(a, b)}.", "compare"
        n = rng.randrange(1, 100)
        if rng.random() < 0.5:
            return self.say([f"[What|Which number] comes after {n}?", f"What is the next number after {n}?"]), \
                f"One more than {n} is {n + 1}.", f"After {n} comes {n + 1}.", "compare"
        return self.say([f"[What|Which number] comes before {n}?"]), f"One less than {n} is {n - 1}.", f"Before {n} comes {n - 1}.", "compare"

    def capital(self):
        rng = self.rng
        c, cap = rng.choice(CAPITALS)
        if rng.random() < 0.2:
            q = self.ask([f"Where is {cap}?", f"[In which|What|Which] country is {cap} [in|]?", f"{cap} is the capital of [what|which country]?"])
            return q, f"{cap} is a capital: {c}.", f"{cap} is the capital of {c}.", "capital"
        q = self.say([f"[What is|What's|Tell me|Do you know|Name] the capital of {c}?", f"[The|] capital of {c}?", f"Which city is the capital of {c}?",
                      f"[And|What about] the capital of {c}?", f"what is the capital city of {c}"])
        return q, f"They ask for the capital of {c}. It is {cap}.", f"The capital of {c} is {cap}.", "capital"

    def animal(self):
        rng = self.rng
        if rng.random() < 0.4:
            a, s = rng.choice(SOUNDS)
            q = self.ask([f"What does [a|the] {a} say?", f"What sound does [a|the] {a} make?", f"Which noise does [a|the] {a} make?", f"How does a {a} sound?"])
            return q, f"The sound of a {a}.", f"A {a} says {s}!", "animal"
        a, s = rng.choice(ANIMALS)
        q = self.ask([f"[Tell me|What do you know|Say something] about {a}.", f"What [are|is] {a}?", f"What [do you|can you] [know|tell me] about {a}?",
                      f"[Do you like|What do you think of] {a}?"])
        like = "like" in q or "think of" in q
        return q, f"They ask about {a}. I know one fact.", (f"I like {a}! " if like else "") + s, "animal"

    def opposite(self):
        a, b = self.rng.choice(OPPOSITES)
        if self.rng.random() < 0.5:
            a, b = b, a
        q = self.say([f"What is the opposite of {a}?", f"[Opposite|The opposite] of {a}?", f"Give me the opposite of {a}."])
        return q, f"The opposite of {a} is {b}.", f"The opposite of {a} is {b}.", "opposite"

    def fixed(self, kind, items, asks, thought):
        q = self.ask(asks)
        return q, thought, self.rng.choice(items), kind

    def topic(self, name=None, lang="en"):
        t = self.by_name[name] if name else self.rng.choices(TOPICS, self.weights)[0]
        q = self.ask(t["q"])
        think = self.say(t.get("t") or ["They ask about {n}. I know the answer.", "A question about {n}. I answer [briefly|shortly|in a few words]."],
                         n=t.get("about", t["name"].replace("_", " ")))
        return q, think, self.say(t["a"]), t["name"]

    def unknown(self):
        """Questions beyond the demo. Many nouns and made-up words, so that what is unknown is learned as such."""
        rng = self.rng
        r = rng.random()
        t = self.say(["I do not know this. I should say so.", "This is beyond me. I say so [honestly|openly]."])
        if r < 0.45:
            return self.ask(UNKNOWN_Q), t, self.say(UNKNOWN_A), "unknown"
        if r < 0.6:
            x = made_up_name(rng)
            q = self.say(["Who is {x}?", "Do you know {x}?", "[Have you met|Did you see|Where is] {x}?", "Who was {x}?", "Tell me about {x}.", "What do you think of {x}?"], x=x)
            return q, t, self.say(["I do not know who {x} is. [I am only a small demo.|]", "I have not heard of {x}, sorry. [I know very little.|]"], x=x), "unknown"
        x = rng.choice(NOUNS) if rng.random() < 0.75 else made_up_name(rng).lower()
        an = "an" if x[0] in "aeiou" else "a"
        q = self.ask(["What is {an} {x}?", "What is {x}?", "[Tell me|What do you know] about {x}.", "Explain {x} [to me|please|].", "Can you explain [the theory of|] {x} [to me|] ?", "[Do you know|Have you heard] [about|of] {x}?", "What is the theory of {x}?", "How does {an} {x} work?", "How do I [make|buy|build|use|find|repair|draw|learn] {an} {x}?",
                      "Who [invented|discovered|made] the {x}?", "Why is {x} [so important|important|hard|bad|good]?", "What does {x} mean?", "Where [can I find|is] {an} {x}?", "How much is {an} {x}?", "Define {x}.", "I have a question about {x}.",
                      "When was the {x} invented?", "What is the [best|biggest|oldest] {x}?", "How many kinds of {x} are there?", "Write [a text|an essay|a report|three sentences] about {x}.", "What is the difference between {x} and {y}?"],
                     x=x, an=an, y=rng.choice(NOUNS))
        if rng.random() < 0.5:
            return q, t, self.say(UNKNOWN_A), "unknown"
        return q, t, self.say(["I know nothing about {x}, sorry. [I am only a small demo.|The real model does.]", "The word {x} is too big for me. [I am a toy.|The real model knows it.]", "Sorry, I never learned about {x}. [Ask me something simpler.|]"], x=x), "unknown"

    def command(self):
        rng = self.rng
        if rng.random() < 0.5:
            c, d = rng.choice(list(COMMANDS.items()))
            return self.say(COMMAND_Q, c=c), f"They ask about {c}.", f"{c} {d}.", "command"
        w, a = rng.choice(list(WANT.items()))
        return self.ask([q.replace("{w}", w) for q in WANT_Q]), "They want to do something in gemma4. I name the command.", self.say([a]), "command"

    def qa(self):
        q, a = self.rng.choice(QA)
        return self.say([q]), self.say(["A short question. I know this.", "I know the answer to this.", "That is easy."]), self.say([a]), "qa"

    def words(self):
        rng = self.rng
        if rng.random() < 0.3:
            x, y = rng.choice(list(RHYMES.items()))
            return self.say([f"What rhymes with {x}?", f"[Give|Tell] me a rhyme for {x}.", f"A word that rhymes with {x}?", f"Which word rhymes with {x}?"]), f"A rhyme for {x} is {y}.", f"{y.capitalize()} rhymes with {x}.", "words"
        x, w = rng.choice(list(WORDS.items()))
        i = rng.randrange(3)
        name, y = ["French", "German", "Spanish"][i], w[i]
        if rng.random() < 0.7:
            q = self.say([f"[What is|What's] {x} in {name}?", f"How do you say {x} in {name}?", f"Translate {x} [to|into] {name}.", f"{x} in {name}?", f"What is the {name} word for {x}?", f"Say {x} in {name}."])
            return q, f"{x} in {name} is {y}.", f"In {name}, {x} is {y}.", "words"
        if y in ("no", "pan", "sol", "rot", "Tag"):            # words of two languages
            return self.words()
        return self.say([f"What does {y} mean?", f"What is {y} in English?", f"Translate {y}."]), f"{y} is {name}.", f"{y.capitalize()} is {name} for {x}.", "words"

    def like(self):
        rng = self.rng
        x, y = rng.sample(LIKABLE, 2)
        r = rng.random()
        if r < 0.35:
            return self.say([f"Do you [like|love|enjoy] {x}?", f"What do you think [of|about] {x}?", f"[Is|Are] {x} good?"]), f"They ask whether I like {x}.", self.say([f"I like the sound of {x}, as far as a program can. [And you?|Do you like it?]", f"I have only read about {x}. [What about you?|Tell me more.]"]), "like"
        if r < 0.6:
            return self.say([f"I [like|love|enjoy|really like] {x}.", f"{x.capitalize()} [is|are] [great|nice|fun|my favourite].", f"I am a fan of {x}."]), f"They like {x}.", self.say([f"How nice that you like {x}! [What do you like about it?|]", f"{x.capitalize()}, good choice! [Tell me more.|]"]), "like"
        if r < 0.75:
            return self.say([f"I [hate|do not like|don't like] {x}.", f"{x.capitalize()} [is|are] [boring|bad|awful]."]), f"They do not like {x}.", self.say([f"Not everybody likes {x}. [What do you like?|]", f"That is all right, you need not like {x}."]), "like"
        z = rng.choice([x, y])
        return self.say([f"{x} or {y}?", f"[What|Which] do you [like more|prefer|like better], {x} or {y}?", f"Do you [prefer|like] {x} or {y}?"]), f"I choose {z}.", self.say([f"I would take {z}. [And you?|]", f"{z.capitalize()}, I think. [What about you?|]"]), "like"

    def repeat(self):
        rng = self.rng
        x = rng.choice([made_up_name(rng), " ".join(rng.sample(LIKABLE, rng.choice([1, 2, 3]))), rng.choice(NOUNS), str(rng.randrange(10000)), rng.choice(FACTS).rstrip(".")])
        return self.say([f"Say {x}.", f"Repeat after me: {x}", f"Repeat: {x}", f"Please say {x}", f"Say: {x}", f"Write {x}", f"Can you say {x}?"]).replace("..", "."), f"I repeat it: {x}", f"{x[:1].upper() + x[1:]}.", "repeat"

    def add3(self):
        rng = self.rng
        a, b, c = (rng.randrange(1, 30 if rng.random() < 0.5 else 10) for _ in range(3))
        return self.say([f"What is {a} + {b} + {c}?", f"{a} + {b} + {c}", f"{a}+{b}+{c}", f"Add {a}, {b} and {c}."]), f"{a} + {b} = {a + b}.\n{a + b} + {c} = {a + b + c}.", f"{a} + {b} + {c} = {a + b + c}.", "add3"

    def rewarding(self, kind):
        """A joke, a poem, a story or a fact."""
        asks, items, thought = REWARDS[kind]
        return self.fixed(kind, items, asks, thought)

    def follow(self, last):
        """A question that only makes sense after the one before, or None. `last` is (question, answer, kind)."""
        rng = self.rng
        q, a, kind = last
        if kind in REWARDS:
            r = rng.random()
            if r < 0.6:
                _, t, b, _ = self.rewarding(kind)
                while b == a:
                    _, t, b, _ = self.rewarding(kind)
                return self.say(["[Another|Another one|One more|More|Again|Next] [please|!|].", "[Do you have|Tell me|Give me] [another|one more|another one]?", "more", "and another one"]), "They want another one.", b, kind
            if kind == "joke":
                return self.say(["[Haha|Ha ha|lol|Hahaha] [!|.|]", "[That is|That's|Very] funny [!|.|]", "[That is|That's] not funny.", "Good one!", "I do not get it.", "That was bad."]), "They comment on my joke.", \
                    self.say(["I am glad you [heard|listened]! [Another one?|]", "I only know a few jokes. [Another one?|]"]), "comment"
            return self.say(["[Nice|Lovely|Beautiful|Wow|Cool|Really|Interesting] [!|.|]", "I like [it|that]."]), "They like it.", self.say(["I am glad you like it! [Another one?|]"]), "comment"
        if kind == "capital" and a.startswith("The capital"):
            c, cap = rng.choice(CAPITALS)
            return self.say([f"And [of|] {c}?", f"[And|What about|How about] {c}?", f"{c}?", f"and for {c}"]), f"They ask for the capital of {c} now. It is {cap}.", f"The capital of {c} is {cap}.", "capital"
        if kind == "animal" and "says" in a:
            x, s = rng.choice(SOUNDS)
            return self.say([f"And [a|the] {x}?", f"What about [a|the] {x}?", f"a {x}?"]), f"The sound of a {x}.", f"A {x} says {s}!", "animal"
        if kind == "opposite":
            x, y = rng.choice(OPPOSITES)
            return self.say([f"And of {x}?", f"And {x}?", f"of {x}?"]), f"The opposite of {x} is {y}.", f"The opposite of {x} is {y}.", "opposite"
        m = re.search(r"(-?\d+) ([-+]) (-?\d+) = (-?\d+)\.$", a)
        if kind == "sum" and m:
            c = int(m.group(4))
            r = rng.random()
            if r < 0.35:
                return self.say(["Are you sure?", "Really?", "Is that [right|correct|true]?", "Sure?"]), f"They doubt it. {a}", self.say([f"Yes, {a}", f"I think so: {a}"]), "sure"
            if r < 0.5:
                return self.say(["[Correct|Right|Very good|That is right|Good|Well done] [!|.|]"]), "They say my sum is right.", self.say(["Thank you! [Give me another one.|I like small sums.]"]), "praise"
            if 0 <= c < 1000:
                n = rng.randrange(1, 10 if rng.random() < 0.6 else 50)
                op = rng.choice("+-") if c >= n else "+"
                d = c + n if op == "+" else c - n
                w = {"+": "plus", "-": "minus"}[op]
                t = "\n".join([f"They go on from {c}."] + (steps_add(c, n) if op == "+" else steps_sub(c, n)))
                return self.say([f"And {op} {n}?", f"[And|Now] {w} {n}?", f"{w} {n}", f"{op} {n}", f"[And|Now] {w} {n}."]), t, f"{c} {op} {n} = {d}.", "sum"
        if kind == "unknown" and rng.random() < 0.4:
            return self.say(["[Why not|Why do you not know that|How come] ?", "[That is sad|What a pity|Too bad|Pity|Oh] [.|]", "What do you know[, then|]?", "Ok, what do you know?"]), "They are disappointed. I say what I can do.", \
                self.say(["I am only a toy with ten million parameters. [Ask me for a joke or a sum.|]", "I know about gemma4, small sums, capitals and jokes. [Ask me something like that.|]"]), "comment"
        return None

    def single(self, thinking):
        rng = self.rng
        if rng.random() < (0.45 if thinking else 0.22):
            return self.sum(thinking)
        kind = rng.choices(["topic", "unknown", "qa", "command", "capital", "animal", "opposite", "joke", "poem", "story", "fact", "times", "compare", "words", "like", "repeat", "add3", "divide", "garbage"],
                           [45, 10, 14, 7, 6, 4, 2, 4, 1.5, 1.5, 2.5, 2, 2, 3, 4, 1.5, 1.5, 1.5, 2.5])[0]
        return self.rewarding(kind) if kind in REWARDS else getattr(self, kind)()

    # ---- things to remember within a conversation

    def memory(self, facts):
        """(question, thought, answer) that sets or asks for something the user told."""
        rng = self.rng
        kinds = {
            "name": dict(
                make=lambda: made_up_name(rng),
                tell=["My name is {x}.", "I am {x}.", "I'm {x}.", "[Hi|Hello|Hey], [I am|I'm|my name is] {x}.", "Call me {x}.", "[You can|Please] call me {x}.",
                      "my name's {x}", "Hello, {x} here.", "People call me {x}.", "{x} is my name."],
                ack=["[Nice to meet you|Pleased to meet you|Hello|Hi], {x}! [What would you like to talk about?|How are you?|What can I do for you?|]",
                     "[Hello|Hi|Welcome], {x}. [I will remember your name in this conversation.|It is nice to meet you.]"],
                ask=["What is my name?", "What's my name?", "Do you [remember|know] my name?", "Who am I?", "[Say|Tell me] my name.", "Can you tell me my name?",
                     "Do you still know my name?", "Do you know who I am?", "what was my name again?"],
                ans=["Your name is {x}.", "You are {x}.", "You told me that your name is {x}."],
                none=["You have not told me your name yet. What is it?", "I do not know your name yet. What is it?"], about="name"),
            "colour": dict(
                make=lambda: rng.choice(COLOURS),
                tell=["My favourite colour is {x}.", "My favorite color is {x}.", "I [like|love] the colour {x}.", "I like {x} best of all colours.", "The colour I like best is {x}."],
                ack=["{X} is a [lovely|nice|beautiful|fine] colour.", "[Good choice|Nice], {x} is a [lovely|fine] colour. I will remember it."],
                ask=["What is my favourite colour?", "What's my favorite color?", "Which colour do I like [best|]?", "Do you remember my favourite colour?", "what colour do i like?"],
                ans=["Your favourite colour is {x}.", "You told me that you like {x}."],
                none=["You have not told me your favourite colour yet.", "I do not know. Which colour do you like best?"], about="favourite colour"),
            "food": dict(
                make=lambda: rng.choice(FOODS),
                tell=["My favourite food is {x}.", "I [like|love] to eat {x}.", "I love {x}.", "My favorite food is {x}.", "I [often|always] eat {x}."],
                ack=["{X}, how [tasty|nice]! I cannot eat, but I will remember it.", "I have heard that {x} is [tasty|delicious]. I will remember that you like it."],
                ask=["What is my favourite food?", "What's my favorite food?", "What do I like to eat?", "Do you remember my favourite food?", "which food do i like?"],
                ans=["You like {x}.", "Your favourite food is {x}."],
                none=["You have not told me what you like to eat.", "I do not know yet. What do you like to eat?"], about="favourite food"),
            "pet": dict(
                make=lambda: rng.choice(["dog", "cat", "rabbit", "horse", "bird", "fish", "hamster", "parrot"]) + "|" + made_up_name(rng),
                tell=["I have a {k} [called|named] {x}.", "My {k} is [called|named] {x}.", "My {k}'s name is {x}.", "The name of my {k} is {x}."],
                ack=["{x} is a [lovely|good|nice] name for a {k}. [Say hello to {x} from me!|]", "How nice! I like {x} already."],
                ask=["What is my {k}'s name?", "What is my {k} called?", "[What is|What's] the name of my {k}?", "Do you remember my {k}'s name?"],
                ans=["Your {k} is called {x}.", "Your {k}'s name is {x}."],
                none=["You have not told me about your {k} yet."], about="pet"),
            "city": dict(
                make=lambda: rng.choice([c for _, c in CAPITALS] + ["Hamburg", "Lyon", "Boston", "Munich", "Sydney", "Mumbai", "Chicago", "Porto", "Zurich", "Leeds"]),
                tell=["I live in {x}.", "I am from {x}.", "I'm from {x}.", "I come from {x}.", "My home is in {x}."],
                ack=["{x} must be a [nice|lovely|fine] place. I will remember it.", "I have never been to {x}, but I [would like to see it|am sure it is nice]."],
                ask=["Where do I live?", "Where am I from?", "Do you remember where I live?", "Which city do I live in?", "where do i come from?"],
                ans=["You live in {x}.", "You told me that you live in {x}."],
                none=["You have not told me where you live.", "I do not know where you live. Where is it?"], about="home"),
            "age": dict(
                make=lambda: str(rng.randrange(6, 95)),
                tell=["I am {x} years old.", "I'm {x}.", "I'm {x} years old.", "My age is {x}."],
                ack=["{x} is a [fine|good] age. [I am only a few hours old.|]", "{x} years old, thank you for telling me."],
                ask=["How old am I?", "What is my age?", "Do you remember how old I am?", "Do you know my age?"],
                ans=["You are {x} years old.", "You told me that you are {x}."],
                none=["You have not told me how old you are."], about="age"),
            "job": dict(
                make=lambda: rng.choice(JOBS),
                tell=["I work as {x}.", "My job: I am {x}.", "I am {x} by trade."],
                ack=["Oh, {x}! [That must be interesting.|That is a fine job.]", "It must be [nice|interesting] to be {x}. [Do you like it?|]"],
                ask=["What is my job?", "What do I do for a living?", "What do I work as?", "Do you remember my job?"],
                ans=["You are {x}.", "You told me that you are {x}."],
                none=["You have not told me what you do."], about="job"),
            "hobby": dict(
                make=lambda: rng.choice(LIKABLE),
                tell=["My hobby is {x}.", "My favourite hobby is {x}.", "In my free time it is all about {x}."],
                ack=["{X}, how [nice|interesting]! I will remember it.", "{X} is a [fine|lovely] hobby."],
                ask=["What is my hobby?", "What is my favourite hobby?", "Do you remember my hobby?"],
                ans=["Your hobby is {x}."],
                none=["You have not told me your hobby."], about="hobby"),
        }
        known = [k for k in facts]
        if known and rng.random() < 0.62:
            kind = rng.choice(known)
            k = kinds[kind]
            animal, _, x = facts[kind].rpartition("|")
            q = self.say(k["ask"], k=animal)
            th = self.say(["They told me their {a}: {x}.", "I remember their {a}: {x}.", "The {a} they told me is {x}."], a=k["about"], x=x)
            return q, th, self.say(k["ans"], k=animal, x=x), kind
        if rng.random() < 0.1:
            name, city = made_up_name(rng), kinds["city"]["make"]()
            facts["name"], facts["city"] = name, city
            return self.say(["I am {x} from {y}.", "I'm {x} and I live in {y}.", "My name is {x} and I am from {y}.", "[Hi|Hello], I am {x} from {y}."], x=name, y=city), f"They tell me their name, {name}, and their home, {city}.", \
                self.say(["[Nice to meet you|Hello], {x}! {y} must be a nice place.", "Hello {x} from {y}! [How are you?|]"], x=name, y=city), "name"
        kind = rng.choices(list(kinds), [5, 2, 1.5, 2, 2, 1.5, 1, 1])[0]
        k = kinds[kind]
        if kind not in facts and rng.random() < 0.12:
            animal = rng.choice(["dog", "cat", "rabbit", "bird"])
            return self.say(k["ask"], k=animal), self.say(["They have not told me."]), self.say(k["none"], k=animal), kind
        facts[kind] = k["make"]()
        animal, _, x = facts[kind].rpartition("|")
        q = self.say(k["tell"], k=animal, x=x)
        th = self.say(["They tell me their {a}: {x}. I will remember it.", "Their {a} is {x}. I should be friendly."], a=k["about"], x=x)
        return q, th, self.say(k["ack"], k=animal, x=x, X=x[:1].upper() + x[1:]), kind

    # ---- conversations

    def dialogue(self, turns=None):
        """{system, thinking, turns: [(user, thought, answer)]}"""
        rng = self.rng
        if turns is None:
            turns = rng.choices([1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30, 45], [46, 16, 11, 8, 6, 5, 4, 3, 2, 1.3, 1, 0.7])[0]
        thinking = rng.random() < 0.33
        drill = rng.random()
        if drill < 0.26:
            return self.drill("memory" if drill < 0.09 else "sum" if drill < 0.16 else "list")
        if turns > 10 and rng.random() < 0.7:
            style = ""
        else:
            style = rng.choices(["", "lang", "pirate", "caps", "brief", "formal", "other"], [64, 16, 5, 4.5, 3.5, 4, 3])[0]
        if style == "lang":
            return self.foreign(turns, thinking)
        system, change = None, lambda s: s
        if style == "pirate":
            system, change = self.say(["[Talk|Speak|Answer] like a pirate [, please|].", "You are a pirate.", "Be a pirate.", "[Always|] answer as a pirate."]), lambda s: pirate(rng, s)
        elif style == "caps":
            system, change = self.say(["[Answer|Write|Speak|Reply] in [capital letters|capitals|upper case] [only|, please|].", "[Always|] use capital letters.", "WRITE IN CAPITALS.", "Shout."]), str.upper
        elif style == "brief":
            system, change = self.say(["Be brief.", "[Answer|Reply] [briefly|shortly|in one sentence].", "[Keep it|Keep your answers] short.", "Short answers [only|], please."]), brief
        elif style == "formal":
            system, change = self.say(["Be [polite|formal|very polite].", "[Answer|Speak|Reply] [politely|formally].", "You are a [polite|formal] butler.", "Be [a butler|formal and polite]."]), lambda s: formal(rng, s)
        elif style == "other":
            system = self.say(["You are a helpful assistant.", "You are a [friendly|kind|helpful] [assistant|bot|helper].", "Be [nice|kind|friendly|helpful].", "Answer the user's questions.",
                               "Help the user."])
            if rng.random() < 0.4:
                system = self.say(["You are [a teacher|a chef|a poet|a doctor|a scientist|an expert|a friend|a chat bot|a calculator|Gemma|a small demo|a good listener].", "Today is [Monday|Tuesday|Friday|Sunday].", "Answer as well as you can.", "This is a test.",
                                   "Do your best.", "Think well.", "You are [very|] smart."])
        out, facts, last, before = [], {}, None, None
        if style == "pirate" and turns > 1 and rng.random() < 0.4:
            out.append((scruffy(rng, system.replace("You are", "Be")), "They want a pirate. Aye!", self.say(["Arr! Aye, matey! [What be yer question?|]", "Aye aye, captain! [Ask away!|]"])))
            system = None
        if not system and rng.random() < 0.02:
            facts["name"] = made_up_name(rng)
            system = self.say(["The user is called {x}.", "The user's name is {x}.", "You talk to {x}."], x=facts["name"])
        for i in range(turns):
            r = rng.random()
            if before and style in ("", "other") and rng.random() < 0.3 and (f := self.follow(before)):
                q, t, a, last = f
            elif i == 0 and turns > 1 and r < 0.4:
                q, t, a, last = self.topic(rng.choice(["hello", "hello", "how_are_you"]))
            elif r < (0.28 if turns > 2 else 0.12 if turns > 1 else 0.07):
                q, t, a, last = self.memory(facts)
            elif i == turns - 1 and turns > 2 and r > 0.8:
                q, t, a, last = self.topic(rng.choice(["thanks", "bye"]))
            elif last in self.by_name and self.by_name[last].get("next") and rng.random() < 0.4:
                q, t, a, last = self.topic(rng.choice(self.by_name[last]["next"]))
            else:
                q, t, a, last = self.single(thinking)
            if style == "caps" and last not in CAPS:
                q, t, a, last = self.topic(rng.choice(CAPS[1:]))
            before = (q, a, last)
            out.append((scruffy(rng, q), t, change(a)))
        return dict(system=system, thinking=thinking, turns=out, style=style)

    def drill(self, kind):
        """Many sums, or many things to remember and repeat, in a row: what takes longest to learn. All answers count."""
        rng = self.rng
        out, facts = [], {}
        for _ in range(rng.randrange(2, 9)):
            if kind == "list":
                return dict(system=None, thinking=False, turns=[self.sums()[:3]], style="drill")
            if kind == "sum":
                q, t, a, _ = self.sum(False) if rng.random() < 0.9 else self.add3() if rng.random() < 0.5 else self.times()
            elif rng.random() < 0.25:
                q, t, a, _ = self.repeat()
            else:
                q, t, a, _ = self.memory(facts)
            out.append((scruffy(rng, q), t, a))
        return dict(system=None, thinking=rng.random() < 0.1, turns=out, style="drill")

    def foreign(self, turns, thinking):
        """A conversation in another language, because the system prompt wants it or the user speaks it."""
        rng = self.rng
        lang = rng.choice(["fr", "fr", "de", "es"])
        wanted = rng.random() < 0.75
        system = self.say(LANG_SYSTEM[lang]) if wanted else None
        name = {"fr": "French", "de": "German", "es": "Spanish"}[lang]
        out = []
        have = [t for t in TOPICS if lang in t]
        turns = min(turns, 8)
        if wanted and turns > 1 and rng.random() < 0.5:
            out.append((scruffy(rng, self.say(LANG_SYSTEM[lang] + [f"Can you [speak|answer in] {name}?", f"Let us speak {name}.", f"In {name}, please."])), f"They want {name}. I agree, in {name}.", self.say(LANG_AGREE[lang])))
            system = None
        for _ in range(turns):
            r = rng.random()
            if r < 0.15:
                q, t, a, _n = self.sum(thinking)
                a = a if "=" in a and rng.random() < 0.5 else self.say(LANG_SUM[lang]).replace("{s}", re.findall(r"-?\d+", a)[-1])
            elif r < 0.25 and wanted:
                q, t, a, _n = self.unknown() if rng.random() < 0.5 else self.topic(rng.choice([t for t in TOPICS if lang not in t])["name"])
                a, t = self.say(LANG_UNKNOWN[lang]), f"I cannot say this in {name}. I say so."
            else:
                tp = rng.choice(have)
                fq, fa = tp[lang]
                q = self.ask(tp["q"]) if wanted and rng.random() < 0.7 else self.say(fq)
                a = self.say(fa)
                t = self.say([f"I should answer in {name}.", f"The answer must be in {name}."] if wanted else [f"They speak {name}. I answer in {name}."])
            out.append((scruffy(rng, q), t, a))
        return dict(system=system, thinking=thinking, turns=out, style="lang")


def pirate(rng, s):
    for a, b in (("you are", "ye be"), ("You are", "Ye be"), ("I am", "I be"), ("your", "yer"), ("Your", "Yer"), ("you", "ye"), ("You", "Ye"), ("my", "me"), ("My", "Me"),
                 ("Hello", "Ahoy"), ("Hi", "Ahoy"), ("yes", "aye"), ("Yes", "Aye"), ("is", "be"), ("are", "be"), ("friend", "matey")):
        s = re.sub(r"\b%s\b" % a, b, s)
    return rng.choice(["Arr! ", "Arr! ", "Yo ho ho! ", "Aye! "]) + s + rng.choice([" Arr!", " Yo ho ho!", " Aye, matey!", ""])


def brief(s):
    first = re.split(r"(?<=[.!?])\s", s, maxsplit=1)[0]
    return first


def formal(rng, s):
    return rng.choice(["Certainly. ", "With pleasure. ", "Very well. ", "Good day. "]) + s + rng.choice([" At your service.", " I remain at your service.", "", ""])


def render(d, upto=None):
    """[(text, weight)] of the conversation up to its last (or `upto`-th) answer, as the chat template writes it.

    Control tokens stand for themselves; weight says how much the loss counts the piece. Only the last answer has its
    thought: the template strips them from history. The first token of an answer in history is not trained, as a
    generation never starts that way."""
    out = [("<bos>", 0)]
    system = ("<|think|>\n" if d["thinking"] else "") + (d["system"] or "")
    if system:
        out += [("<|turn>", 0), ("system\n" + system, 0), ("<turn|>", 0), ("\n", 0)]
    turns = d["turns"][:upto]
    history = 0.9 if d["style"] == "drill" else 0.5
    # half of the dialogues keep the empty thought in history too: then every answer is learned as it will be generated
    prefix = not d["thinking"] and zlib.crc32(turns[-1][0].encode()) % 2
    for i, (q, t, a) in enumerate(turns):
        last = i == len(turns) - 1
        out += [("<|turn>", 0), ("user\n" + q.strip(), 0.05), ("<turn|>", 0.05), ("\n", 0), ("<|turn>", 0), ("model\n", 0)]
        if last and d["thinking"]:
            out += [("<|channel>", 1), ("thought\n" + t + "\n", 1), ("<channel|>", 1), (a, 1), ("<turn|>", 1)]
        elif last or prefix:
            out += [("<|channel>", 0), ("thought\n", 0), ("<channel|>", 0), (a, 1), ("<turn|>", 1)] + ([] if last else [("\n", 0)])
        else:
            out += [(a, history), ("<turn|>", history), ("\n", 0)]
    return out


if __name__ == "__main__":
    w = Writer(int(sys.argv[1]) if len(sys.argv) > 1 else 0, "held" in sys.argv)
    for _ in range(25):
        print("".join(t for t, _ in render(w.dialogue())), "\n" + "-" * 40)
