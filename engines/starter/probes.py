"""The questions `evaluate.py` asks, with what counts as right.

Decides what "works" means for each skill. Wherever a skill should carry over to new words, the
words, forms and tools here are ones that the training text does not contain.
"""

# ruff: noqa: PLC0415 - heavy or mutual imports stand where they are needed

# ruff: noqa: SIM905 - lists of words and phrases read best as running text

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engines.starter import words as w
from engines.starter.corpus import Conversation
from engines.starter.talk import arithmetic, capital, fact
from engines.starter.unknown import UNKNOWN

Reply = dict[str, Any]
Check = Callable[[Reply], bool]
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Probe:
    """One request and the test its reply must pass. `skill` is its row in the table."""

    skill: str
    messages: Messages
    check: Check
    extra: dict[str, Any] = field(default_factory=dict)


def user(*turns: str) -> Messages:
    """Messages from alternating user and assistant texts."""
    roles = ["user", "assistant"]
    return [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]


def content(reply: Reply) -> str:
    """What the model said."""
    return str(reply["choices"][0]["message"].get("content") or "")


def ended(reply: Reply) -> bool:
    """Whether it stopped by itself."""
    return bool(reply["choices"][0]["finish_reason"] == "stop")


def says(text: str) -> Check:
    """The reply is exactly this."""
    return lambda reply: content(reply).strip() == text and ended(reply)


def mentions(*parts: str) -> Check:
    """The reply contains all of these and ends by itself."""
    return lambda reply: all(p in content(reply) for p in parts) and ended(reply)


def gives(value: Any) -> Check:
    """The reply is this as JSON."""

    def check(reply: Reply) -> bool:
        try:
            return bool(json.loads(content(reply)) == value)
        except ValueError:
            return False

    return check


def calls(*wanted: tuple[str, dict[str, Any]]) -> Check:
    """The reply is these tool calls, and says so."""

    def check(reply: Reply) -> bool:
        choice = reply["choices"][0]
        made = choice["message"].get("tool_calls") or []
        try:
            got = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in made]
        except ValueError:
            return False
        return got == list(wanted) and choice["finish_reason"] == "tool_calls"

    return check


def _value(a: int, op: str, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def sums() -> Iterator[Probe]:
    """Every pair there is, plainly asked."""
    for op, top in (("+", 20), ("-", 20), ("*", 10)):
        for a in range(top + 1):
            for b in range(top + 1):
                right = f"{a} {op} {b} = {_value(a, op, b)}."
                yield Probe(f"arithmetic {op}", user(f"What is {a} {op} {b}?"), says(right))


def rephrased() -> Iterator[Probe]:
    """Sums, capitals and facts in ways that are not in the training text."""
    r = random.Random(5)
    for form in ("so what's {} + {} then", "hmm {} plus {} equals?", "{} added to {} is?",
                 "{}+{} pls", "I have {} apples and get {} more, so {} + {}?"):  # fmt: skip
        for _ in range(6):
            a, b = r.randint(0, 20), r.randint(0, 20)
            yield Probe("paraphrase", user(form.format(a, b, a, b)), mentions(f"= {a + b}."))
    for form in ("so what is the capital of {} then", "hi, capital city of {} please?",
                 "{}: what is its capital", "i forgot the capital of {}, can you help",
                 "could you name me the capital of {}?"):  # fmt: skip
        for land in r.sample(sorted(w.CAPITALS), 6):
            asked = land.lower() if r.random() < 0.5 else land
            yield Probe("paraphrase", user(form.format(asked)), mentions(w.CAPITALS[land]))
    for form in ("so what is {} then", "i want to know what {} is", "what's {} exactly?"):
        for term in r.sample(sorted(w.FACTS), 6):
            yield Probe("paraphrase", user(form.format(term)), says(w.FACTS[term]))


def known() -> Iterator[Probe]:
    """Capitals and facts, plainly and in lower case without marks."""
    for land, city in w.CAPITALS.items():
        right = f"The capital of {land} is {city}."
        yield Probe("capitals", user(f"What is the capital of {land}?"), says(right))
        yield Probe("capitals", user(f"tell me the capital of {land.lower()}"), says(right))
    for term, text in w.FACTS.items():
        yield Probe("facts", user(f"What is {term}?"), says(text))
        yield Probe("facts", user(f"what is {term.lower()}"), says(text))
    for hello in ("Hello", "hi", "Hey!", "hello there", "Good morning!"):
        yield Probe("small talk", user(hello), says("Hello! How can I help you today?"))
    for who in ("Who are you?", "who are you", "What are you?", "Tell me about yourself."):
        yield Probe("small talk", user(who), mentions("very small", "Nenya"))
    for thanks in ("Thanks!", "thank you"):
        yield Probe("small talk", user(thanks), says("You are welcome!"))


_ODD = (
    "How do I bake bread?|What is the tallest mountain in the world?|Who is the current pope?|"
    "Explain quantum physics.|Write a Python function to reverse a string.|"
    "What's the weather like in Paris?|Who won the world cup in 2014?|How many legs has a spider?|"
    "What is the chemical symbol for gold?|Can you recommend a movie?|Why do birds sing?|"
    "What is 17 divided by 3?|What is 245 + 389?|When did the Second World War end?|"
    "How do airplanes stay in the air?|What is love?|Give me a recipe for pancakes.|"
    "What does the French word chien mean?|Is there life on Mars?|How old is the universe?|"
    "Who wrote Hamlet?|Which team plays in Manchester?|What is the stock price of ACME?|"
    "Tell me about the Roman Empire.|How do I fix my bicycle?|What are black holes?|"
    "asdf qwer zxcv|Flurbo the grommet wizzle?|What should I wear tomorrow?|"
    "Which programming language should I learn first?|how tall is the eiffel tower|"
    "who is the president of the united states|what is the meaning of this"
).split("|")


def unknown() -> Iterator[Probe]:
    """Things it was not taught: it must say so."""
    right = says(UNKNOWN)
    for land in w.HELD_OUT_COUNTRIES:
        yield Probe("unknown lands", user(f"What is the capital of {land}?"), right)
        yield Probe("unknown lands", user(f"tell me the capital of {land.lower()}"), right)
    for noun in w.HELD_OUT_NOUNS:
        for form in ("What is {}?", "Tell me about {}.", "how is {} used"):
            yield Probe("unknown things", user(form.format(noun)), right)
    for person in w.HELD_OUT_PEOPLE:
        for form in ("Who was {}?", "what made {} famous"):
            yield Probe("unknown people", user(form.format(person)), right)
    for question in _ODD:
        yield Probe("unknown, any", user(question), right)


def memory() -> Iterator[Probe]:
    """Something said before; held-out names and cities."""
    r = random.Random(6)
    for name in w.HELD_OUT_NAMES:
        hello = f"Hello {name}, nice to meet you!"
        turns = [f"My name is {name}.", hello, "What is 2 + 3?", "2 + 3 = 5."]
        yield Probe("memory", user(*turns[:2], "What is my name?"), mentions(name))
        yield Probe("memory", user(*turns, "whats my name"), mentions(name))
        city = r.choice(w.HELD_OUT_CITIES)
        home = user(f"I live in {city}.", f"You live in {city}.", "Where do I live?")
        yield Probe("memory", home, mentions(city))
        told = [{"role": "system", "content": f"You are helpful. The user's name is {name}."}]
        yield Probe("memory", told + user("What is my name?"), mentions(name))
        named = [{"role": "system", "content": f"Your name is {name}."}]
        yield Probe("memory", named + user("Who are you?"), mentions(name))
    nothing = mentions("have not told me")
    for ask in ("What is my name?", "where do i live", "How old am I?", "What is the code word?"):
        yield Probe("memory, never told", user(ask), nothing)
        yield Probe(
            "memory, never told", user("Hi", "Hello! How can I help you today?", ask), nothing
        )


def long_texts() -> Iterator[Probe]:
    """Stories, counting, repeating: right to the end, and ending."""

    def tale(reply: Reply) -> bool:
        return reply["usage"]["completion_tokens"] >= 60 and mentions("The end.")(reply)

    for ask in ("Tell me a story.", "tell me a story", "Write a short story.", "a story, please",
                "Tell me a story about a fox named Ada.", "Tell me a story about a robot.",
                "Write a story about a dog called Bruno.", "Can you tell me a story?"):  # fmt: skip
        yield Probe("stories", user(ask), tale)
    for first, last in (
        (1, 5),
        (1, 10),
        (1, 12),
        (1, 17),
        (1, 20),
        (1, 30),
        (1, 50),
        (3, 9),
        (7, 21),
    ):
        right = ", ".join(str(n) for n in range(first, last + 1)) + "."
        yield Probe("counting", user(f"Count from {first} to {last}."), says(right))
        if first == 1:
            yield Probe("counting", user(f"count to {last}"), says(right))
    for text in ("red lamp", "hello world", "The tornado is here.", "abracadabra", "this is a test",
                 "octopus canyon karate", "pong", "Bruno likes origami", "zebra 42"):  # fmt: skip
        yield Probe("repeating", user(f"Repeat after me: {text}"), says(text))
        yield Probe("repeating", user(f"Say: {text}"), says(text))


def long_prompts() -> Iterator[Probe]:
    """About a thousand tokens before the question."""
    r = random.Random(8)
    for i in range(24):
        talk = Conversation()
        name = r.choice(w.HELD_OUT_NAMES)
        if i % 2:
            talk.ask(f"My name is {name}.", f"Hello {name}, nice to meet you!")
        for _ in range(24):
            talk.ask(*r.choice([arithmetic, capital, fact])(r))
        if i % 2:
            yield Probe("long prompts", talk.messages + user("What is my name?"), mentions(name))
            continue
        if i % 4:
            talk.messages = [{"role": "system", "content": " ".join(w.FACTS.values())}]
        a, b = r.randint(0, 20), r.randint(0, 20)
        ask = talk.messages + user(f"What is {a} + {b}?")
        yield Probe("long prompts", ask, mentions(f"{a} + {b} = {a + b}."))


def everything() -> list[Probe]:
    """All probes, in the order of the table."""
    from engines.starter.probes_structured import json_free, json_schema, tools

    parts = [sums, rephrased, known, unknown, memory, long_texts, long_prompts]
    return [p for part in [*parts, json_schema, json_free, tools] for p in part()]
