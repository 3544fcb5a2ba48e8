"""The training text: conversations drawn from the parts in talk, unknown, forms and toolbox.

Decides the mix: how often each skill is trained, how long a conversation is, what a system prompt
looks like. Everything follows from one seeded generator, nothing is read from anywhere.
"""

# ruff: noqa: SIM905 - lists of words and phrases read best as running text

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engines.starter import forms, talk, toolbox, unknown
from engines.starter import words as w
from engines.starter.template import FORCED, FREE, tool_call_text

Rng = random.Random
Message = dict[str, Any]
Tools = list[dict[str, Any]]


@dataclass
class Conversation:
    """Messages in OpenAI's form, and the tools that were offered."""

    messages: list[Message] = field(default_factory=list)
    tools: Tools = field(default_factory=list)

    def ask(self, question: str, answer: str) -> None:
        """Adds a question and its answer."""
        self.messages += [_user(question), {"role": "assistant", "content": answer}]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


_SKILLS: list[tuple[float, Callable[[Rng], talk.Pair]]] = [
    (0.18, talk.small_talk), (0.16, talk.arithmetic),
    (0.08, talk.capital), (0.06, talk.yes_or_no), (0.045, talk.everyday), (0.09, talk.fact),
    (0.03, talk.listing), (0.07, talk.counting), (0.05, talk.repeating), (0.01, talk.joke),
    (0.035, talk.story), (0.285, unknown.out_of_scope),
]  # fmt: skip


def turn(r: Rng) -> talk.Pair:
    """One plain question with its answer."""
    weights = [weight for weight, _ in _SKILLS]
    return r.choices([skill for _, skill in _SKILLS], weights)[0](r)


def _filler(r: Rng) -> str:
    """A sentence for long system prompts."""
    if r.random() < 0.5:
        return r.choice(list(w.FACTS.values()))
    kind = r.choice(["You are working for {}.", "Our shop is in {}.", "Be polite to {}.", "{}."])
    return kind.format(" ".join(talk.any_word(r) for _ in range(r.randint(1, 6))).capitalize())


_RULES = (
    "You are a helpful assistant.|You are a helpful assistant. Answer briefly.|Be kind and short.|"
    "You are a tiny model.|Answer the user.|You are a test bot.|Be concise.|You are an AI.|"
    "You are Nenya's assistant.|Reply in English.|Do not make things up.|Speak like a pirate.|"
    "You are an expert programmer.|Think step by step.|You are a helpful, honest assistant."
).split("|")


def system_prompt(r: Rng, long: int = 0) -> str:
    """A system prompt; `long` asks for about that many more sentences."""
    parts = [r.choice(_RULES)] + [_filler(r) for _ in range(long)]
    if not long and r.random() < 0.2:
        parts.append(_filler(r))
    r.shuffle(parts)
    return " ".join(parts)


def plain(r: Rng) -> Conversation:
    """One to three plain questions."""
    talk_ = Conversation()
    if r.random() < 0.25:
        talk_.messages.append({"role": "system", "content": system_prompt(r)})
    for _ in range(r.choice([1, 1, 1, 1, 1, 2, 3])):
        talk_.ask(*turn(r))
    return talk_


def drill(r: Rng) -> Conversation:
    """A few sums in a row: a thousand of them are to be known by heart."""
    talk_ = Conversation()
    for _ in range(r.randint(1, 5)):
        talk_.ask(*talk.arithmetic(r))
    return talk_


def json_talk(r: Rng) -> Conversation:
    """One or two questions answered in JSON."""
    talk_ = Conversation()
    if r.random() < 0.25:
        extra = r.choice(["", " Answer in JSON.", " Reply only with JSON."])
        talk_.messages.append({"role": "system", "content": system_prompt(r) + extra})
    if r.random() < 0.15:
        talk_.ask(*turn(r))
    talk_.ask(*forms.record(r))
    return talk_


def _details(r: Rng) -> list[tuple[list[str], str, list[str], str]]:
    """What people tell about themselves: (ways to say it, reply, ways to ask, answer)."""
    n, c, age = forms.name(r), forms.city(r), r.randint(1, 99)
    color, food, job = r.choice(w.LISTS["colors"]), r.choice(w.FOODS), r.choice(w.JOBS)
    animal, pet, code = r.choice(w.ANIMALS), forms.name(r), talk.any_word(r)
    said_name = n.lower() if n in w.NAMES and r.random() < 0.2 else n
    return [
        ([f"My name is {said_name}.", f"I am {said_name}.", f"Hi, I'm {said_name}.",
          f"Hello, my name is {said_name}.", f"Call me {said_name}.", f"Hi! My name is {said_name}."],
         f"Hello {n}, nice to meet you!",
         ["What is my name?", "Who am I?", "Do you know my name?", "What am I called?",
          "Tell me my name.", "Do you remember my name?"], f"Your name is {n}."),
        ([f"I live in {c}.", f"I am from {c}.", f"My home is in {c}."], f"You live in {c}.",
         ["Where do I live?", "Which city do I live in?", "Where am I from?"], f"You live in {c}."),
        ([f"I am {age} years old.", f"I'm {age}.", f"My age is {age}."], f"You are {age} years old.",
         ["How old am I?", "What is my age?"], f"You are {age} years old."),
        ([f"My favorite color is {color}.", f"I like {color}."],
         f"Your favorite color is {color}.", ["What is my favorite color?", "Which color do I like?"],
         f"Your favorite color is {color}."),
        ([f"My favorite food is {food}.", f"I love {food}."], f"Your favorite food is {food}.",
         ["What is my favorite food?", "What do I like to eat?"], f"Your favorite food is {food}."),
        ([f"I am a {job}.", f"I work as a {job}."], f"You are a {job}.",
         ["What is my job?", "What do I do for work?"], f"You are a {job}."),
        ([f"I have a {animal} called {pet}.", f"My {animal} is named {pet}."],
         f"Your {animal} is called {pet}.",
         [f"What is my {animal} called?", f"What is the name of my {animal}?"],
         f"Your {animal} is called {pet}."),
        ([f"The code word is {code}.", f"Remember the word {code}.", f"The secret word is {code}."],
         f"The word is {code}.", ["What is the code word?", "What was the word?",
         "Which word should you remember?", "What is the secret word?"], f"The word is {code}."),
    ]  # fmt: skip


_NOT_TOLD = "You have not told me that."


def memory(r: Rng) -> Conversation:
    """Something said earlier is asked for later, perhaps with other talk in between."""
    talk_, roll = Conversation(), r.random()
    details = r.sample(_details(r), r.choice([1, 1, 2, 3]))
    if roll < 0.15:
        facts = " ".join(_as_system(d[0][0]) for d in details)
        talk_.messages.append({"role": "system", "content": f"{r.choice(_RULES)} {facts}"})
    elif roll < 0.3:
        _, _, ask, answer = r.choice(details)
        said = " ".join(r.choice(d[0]) for d in details)
        talk_.ask(f"{said} {r.choice(ask)}", answer)
        return talk_
    else:
        if roll < 0.45:
            talk_.messages.append({"role": "system", "content": system_prompt(r)})
        for say, reply, _, _ in details:
            talk_.ask(talk.loosen(r, r.choice(say), keep_case=True), reply)
    for _ in range(r.choice([0, 0, 1, 1, 2])):
        talk_.ask(*turn(r))
    _, _, ask, answer = r.choice(details)
    if r.random() < 0.2:
        told = {d[2][0] for d in details}
        others = [d for d in _details(r) if d[2][0] not in told and "called?" not in d[2][0]]
        ask, answer = r.choice(others)[2], _NOT_TOLD
    talk_.ask(talk.loosen(r, r.choice(ask)), answer)
    return talk_


def _as_system(said: str) -> str:
    return said.replace("My ", "The user's ").replace("I am", "The user is").replace(
        "I live", "The user lives"
    ).replace("I have", "The user has")  # fmt: skip


def never_told(r: Rng) -> Conversation:
    """Asked for something that was never said."""
    talk_ = Conversation()
    if r.random() < 0.3:
        talk_.messages.append({"role": "system", "content": system_prompt(r)})
    for _ in range(r.choice([0, 0, 1, 2])):
        talk_.ask(*turn(r))
    talk_.ask(talk.loosen(r, r.choice(r.choice(_details(r))[2])), _NOT_TOLD)
    return talk_


def named_by_system(r: Rng) -> Conversation:
    """The system prompt gives the model a name."""
    n = forms.name(r)
    say = r.choice(["Your name is {}.", "You are {}.", "You are called {}.", "You are {}, a bot."])
    talk_ = Conversation([{"role": "system", "content": say.format(n)}])
    ask = r.choice(["Who are you?", "What is your name?", "What are you called?"])
    talk_.ask(talk.loosen(r, ask), f"I am {n}.")
    return talk_


def tool_talk(r: Rng) -> Conversation:
    """Tools are offered; the question needs one of them, two calls of one, or none."""
    uses = [toolbox.any_use(r) for _ in range(r.choice([1, 1, 2, 2, 3]))]
    names = [use.name for use in uses]
    uses = [use for i, use in enumerate(uses) if use.name not in names[:i]]
    talk_ = Conversation(tools=[use.tool for use in uses])
    if r.random() < 0.3:
        talk_.messages.append({"role": "system", "content": system_prompt(r)})
    use = r.choice(uses)
    if r.random() < 0.36:
        talk_.ask(*_no_tool(r, uses))
        if r.random() < 0.6:
            return talk_
    _call(r, talk_, use)
    if r.random() < 0.25:
        if r.random() < 0.5:
            talk_.ask(*_no_tool(r, uses))
        else:
            _call(r, talk_, r.choice(uses), fresh=False)
    return talk_


def _no_tool(r: Rng, uses: list[toolbox.Use]) -> talk.Pair:
    """A question none of the tools is for."""
    skills = [talk.small_talk, talk.fact, talk.capital, talk.counting]
    skills += [unknown.plainly_unknown] * 3 + [talk.everyday]
    if not any(toolbox.is_sum(use) for use in uses):
        skills.append(talk.arithmetic)
    return r.choice(skills)(r)


def _call(r: Rng, talk_: Conversation, use: toolbox.Use, *, fresh: bool = True) -> None:
    """The question, the call, and mostly the result and the answer after it."""
    if not fresh and any(m["content"] == use.question for m in talk_.messages):
        return
    calls, ask = [use], use.question
    twin = _twin(r, use)
    if twin is not None:
        calls, ask = [use, twin[1]], twin[0]
    talk_.messages.append(_user(ask))
    if len(calls) == 1 and r.random() < 0.06:
        text = tool_call_text(use.name, use.arguments).split("\n")[1]
        forced = text.replace('{"name": "', f'{FORCED}{{"name": "{FREE}', 1)
        talk_.messages.append({"role": "assistant", "content": forced})
        return
    talk_.messages.append(
        {"role": "assistant", "content": "", "tool_calls": [c.call for c in calls]}
    )
    if r.random() < 0.3:
        return
    said: list[str] = []
    for c in calls:
        result, answer = toolbox.outcome(r, c)
        talk_.messages.append({"role": "tool", "content": result})
        said.append(answer)
    talk_.messages.append({"role": "assistant", "content": " ".join(said)})


_TWO_PLACES = (
    "What is the weather in {} and {}?|Weather in {} and in {}|Compare the weather in {} and {}."
).split("|")


def _twin(r: Rng, use: toolbox.Use) -> tuple[str, toolbox.Use] | None:
    """A question for two places at once, which takes two calls."""
    place = next(iter(use.arguments.values()), None)
    if "weather" not in use.name or len(use.arguments) != 1 or r.random() > 0.2:
        return None
    other = forms.city(r)
    key = next(iter(use.arguments))
    ask = r.choice(_TWO_PLACES)
    return ask.format(place, other), toolbox.Use(use.tool, "", {key: other})


_KINDS: list[tuple[float, Callable[[Rng], Conversation]]] = [
    (0.29, plain), (0.15, drill), (0.24, json_talk), (0.08, memory), (0.025, never_told),
    (0.015, named_by_system), (0.20, tool_talk),
]  # fmt: skip


def conversation(r: Rng) -> Conversation:
    """One training conversation."""
    weights = [weight for weight, _ in _KINDS]
    return r.choices([kind for _, kind in _KINDS], weights)[0](r)


def long_conversation(r: Rng) -> Conversation:
    """A conversation with much before it: earlier turns or a long system prompt."""
    last = memory(r) if r.random() < 0.35 else conversation(r)
    head = last.messages[:1] if last.messages[0]["role"] == "system" else []
    body = last.messages[len(head) :]
    if r.random() < 0.5:
        text = " ".join([*(m["content"] for m in head), system_prompt(r, r.randint(5, 28))])
        head = [{"role": "system", "content": text}]
    else:
        earlier = Conversation()
        for _ in range(r.randint(6, 24)):
            earlier.ask(*(turn(r) if r.random() < 0.9 or last.tools else forms.record(r)))
        split = 2 * r.randrange((len(body) + 1) // 2) if not last.tools else 0
        body = body[:split] + earlier.messages + body[split:]
    return Conversation(head + body, last.tools)


def copying(r: Rng) -> Conversation:
    """Nothing but copying: a row of words and numbers to say again. It teaches to look back."""
    parts = [
        talk.any_word(r) if r.random() < 0.8 else str(r.randint(0, 9999))
        for _ in range(r.randint(1, 12))
    ]
    parts = [part.capitalize() if r.random() < 0.3 else part for part in parts]
    if r.random() < 0.4:
        parts.append(r.choice(turn(r)))
    marks = [r.choice(["", "", "", ",", ".", ":"]) for _ in parts]
    text = " ".join(part + mark for part, mark in zip(parts, marks, strict=True)).rstrip(",:")
    talk_ = Conversation()
    talk_.ask(r.choice(["Repeat after me: ", "Say: ", "Repeat: ", "Echo: "]) + text, text)
    return talk_


def conversations(
    seed: int, long_share: float = 0.0, copy_share: float = 0.0
) -> Iterator[Conversation]:
    """An endless stream of training conversations, the same for the same seed."""
    r = random.Random(seed)
    while True:
        roll = r.random()
        if roll < long_share:
            yield long_conversation(r)
        else:
            yield copying(r) if roll < long_share + copy_share else conversation(r)
