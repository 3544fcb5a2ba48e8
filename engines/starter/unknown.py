"""Questions the model must decline, so that it says it does not know instead of making things up.

Decides where its knowledge ends: unknown countries, people, ideas, numbers too big, tasks beyond
it, and nonsense. Many forms and many nouns, because a small model learns the border only from
examples close to it on both sides. The held-out words and forms stay out of training.
"""

# ruff: noqa: SIM905, RUF005 - lists of words and phrases read best as running text

from __future__ import annotations

import random

from engines.starter import words as w
from engines.starter.talk import Pair, loosen, nonsense

Rng = random.Random

UNKNOWN = "I don't know that. I am a very small model."

_NOUN_FORMS = (
    "What is {n}?|What is a {n}?|What is the {n}?|Explain {n}.|Tell me about {n}.|Define {n}.|"
    "What does {n} mean?|How does {n} work?|How does a {n} work?|Why is {n} important?|"
    "Who invented {n}?|Who invented the {n}?|When was {n} invented?|What is the history of {n}?|"
    "Write a poem about {n}.|Write an essay about {n}.|Where can I find {n}?|Describe a {n}.|"
    "How do I learn {n}?|What causes {n}?|What is the price of {n}?|How big is a {n}?|"
    "How old is a {n}?|What do you think about {n}?|Is {n} good?|Do you like {n}?|"
    "What is the difference between {n} and {m}?|Compare {n} and {m}.|Why do we need {n}?|"
    "What color is a {n}?|What is the opposite of {n}?|What does a {n} say?|{n}?|"
    "How do you spell {n}?|Give me three facts about {n}.|What is the best {n}?|"
    "How many {n} are there?|How much does a {n} cost?|Can you explain {n} to me?|"
    "What is the meaning of {n}?|What is {n} made of?|Which {n} is the best?|Who has a {n}?|"
    "How can I make a {n}?|What are the types of {n}?|Name three {n}.|List five {n}.|"
    "Is {n} a {m}?|Is {n} bigger than {m}?|Are {n} and {m} the same?|Tell me more about {n}"
).split("|")
_LAND_FORMS = (
    "What is the capital of {c}?|What is the capital of {c}?|What is the capital of {c}?|"
    "Name the capital of {c}.|{c} capital?|Capital of {c}|Tell me the capital of {c}.|"
    "Which city is the capital of {c}?|What is {c}'s capital?|Do you know the capital of {c}?|"
    "What is the capital city of {c}?|Give me the capital of {c}.|The capital of {c} is"
).split("|")
_ANY_LAND_FORMS = (
    "What is the population of {c}?|How many people live in {c}?|Where is {c}?|"
    "What language do they speak in {c}?|Who is the president of {c}?|Who is the king of {c}?|"
    "What is the weather in {c}?|Tell me about {c}.|How big is {c}?|What is the flag of {c}?|"
    "What is the currency of {c}?|What is the largest city in {c}?|When was {c} founded?|"
    "What should I see in {c}?|How do I get to {c}?|What time is it in {c}?|Is {c} in Europe?|"
    "Which river flows through {c}?|What is the weather like in {c}?|How is the weather in {c}?|"
    "Is it raining in {c}?|How do I get to {c} from {c}?|What food do people eat in {c}?|Who rules {c}?"
).split("|")
_PERSON_FORMS = (
    "Who is {p}?|Who was {p}?|Tell me about {p}.|When was {p} born?|Where was {p} born?|"
    "What did {p} do?|How old is {p}?|Where does {p} live?|When did {p} die?|"
    "Why is {p} famous?|What did {p} write?|Do you know {p}?|What is {p} known for?|"
    "Is {p} alive?|Who is the wife of {p}?|What does {p} look like?|Did {p} win?"
).split("|")
_TASKS = (
    "Write a Python function that sorts a list.|Write code.|Fix this bug.|Write a program in {n}.|"
    "Translate this into {n}.|Translate {n} into French.|How do you say {n} in German?|"
    "Summarize this text.|Summarize the book {n}.|What is today's date?|What time is it?|"
    "What day is it today?|What year is it?|What is the news?|What is the weather like?|"
    "Will it rain tomorrow?|Who won the game yesterday?|Who will win the election?|"
    "What is the meaning of life?|Why is the sky blue?|Why is {n} {n2}?|Why do cats {v}?|"
    "How do I {v} a {n}?|How can I {v} faster?|Should I {v} the {n}?|When will the {n} {v}?|"
    "Where did the {n} {v}?|How many {n} can {v} in a day?|What happens when you {v} a {n}?|"
    "Recommend a good {n}.|Plan a trip to {c}.|Write an email to my boss.|Write a letter to {p}.|"
    "Write a haiku.|Write a song about {n}.|Sing a song.|Draw a picture of a {n}.|"
    "Play some music.|Book a flight to {c}.|Send an email to {p}.|Turn on the {n}.|"
    "What is the square root of {k}?|What is {k} divided by {k}?|What is {k} percent of {k}?|"
    "Is {k} a prime number?|Solve x + {k} = {k}.|How far is the moon?|How tall is the {n}?|"
    "What is the speed of light?|How many planets are there?|What is the largest ocean?|"
    "How long is the {n}?|What is the boiling point of {n}?|What is the formula of {n}?|"
    "Who wrote the book about {n}?|Who painted the {n}?|Who discovered {n}?|Who is the best {n}?|"
    "What is the best way to {v}?|Give me advice about {n}.|Help me {v} my {n}.|"
    "What did I eat yesterday?|Where are my keys?|What am I thinking?|Do you love me?|"
    "Can you {v}?|Did you {v} the {n}?|Prove that {n} is {n2}.|What is your favorite {n}?|"
    "How do {n} {v}?|Who uses {n}?|Is {n} used in {n2}?|Give me a {n} for {n2}.|Give me a {n}.|"
    "how are {n} made|where is the {n}|Show me the {n}.|Make me a {n}.|I need a {n}.|"
    "What should I {v} today?|Which {n} should I buy?|Can I {v} a {n} in {c}?"
).split("|")
_VERBS = (
    "build buy sell cook drive fly swim dance paint repair clean wash grow plant invest vote "
    "travel sleep dream fight win lose travel run jump climb study teach hide steal break melt "
    "freeze burn explode fall move change improve remove install compile deploy debug encrypt"
).split()


def _noun(r: Rng) -> str:
    roll = r.random()
    if roll < 0.25:
        return nonsense(r)
    if roll < 0.40:
        return r.choice(w.UNKNOWN_NOUNS) + " " + r.choice(w.UNKNOWN_NOUNS)
    if roll < 0.48:
        return (
            r.choice(["quantum", "dark", "modern", "ancient", "global", "digital"])
            + " "
            + (r.choice(w.UNKNOWN_NOUNS))
        )
    return r.choice(w.UNKNOWN_NOUNS)


def _land(r: Rng) -> str:
    return nonsense(r).capitalize() if r.random() < 0.3 else r.choice(w.OTHER_COUNTRIES)


def _person(r: Rng) -> str:
    if r.random() < 0.35:
        return r.choice(w.NAMES) + " " + nonsense(r).capitalize()
    return r.choice(w.UNKNOWN_PEOPLE)


def _big_sum(r: Rng) -> str:
    a, b = r.randint(21, 10 ** r.randint(2, 5)), r.randint(0, 10 ** r.randint(2, 5))
    if r.random() < 0.5:
        a, b = b, a
    sign = r.choice(["+", "-", "*", "/", "plus", "minus", "times", "divided by"])
    return r.choice(["What is {}?", "{} =", "{}", "Calculate {}.", "How much is {}?"]).format(
        f"{a} {sign} {b}"
    )


def _noise(r: Rng) -> str:
    parts = [nonsense(r) for _ in range(r.randint(1, 5))]
    if r.random() < 0.4:
        parts = [r.choice(w.UNKNOWN_NOUNS + _VERBS + w.STORY_WORDS) for _ in range(r.randint(2, 7))]
    return " ".join(parts) + r.choice(["", "?", ".", "!"])


def out_of_scope(r: Rng) -> Pair:
    """A question with the one fixed answer."""
    roll = r.random()
    if roll < 0.32:
        text = r.choice(_NOUN_FORMS).format(n=_noun(r), m=_noun(r))
    elif roll < 0.50:
        text = r.choice(_LAND_FORMS).format(c=_land(r))
    elif roll < 0.58:
        land = _land(r) if r.random() < 0.4 else r.choice([*w.CAPITALS, *w.CITIES])
        text = r.choice(_ANY_LAND_FORMS).format(c=land)
    elif roll < 0.69:
        text = r.choice(_PERSON_FORMS).format(p=_person(r))
    elif roll < 0.87:
        text = r.choice(_TASKS).format(
            n=_noun(r), n2=r.choice(w.UNKNOWN_NOUNS), v=r.choice(_VERBS), c=_land(r),
            p=_person(r), k=r.randint(2, 999),
        )  # fmt: skip
    elif roll < 0.94:
        text = _big_sum(r)
    else:
        return _noise(r), UNKNOWN
    return loosen(r, text), UNKNOWN


def plainly_unknown(r: Rng) -> Pair:
    """An unknown thing, land or person, asked for in a way that no usual tool is for."""
    ask = r.choice(
        [f"What is the capital of {_land(r)}?", f"Explain {_noun(r)}.", f"Who invented {_noun(r)}?"]
        + [
            f"What is {_noun(r)}?",
            f"When was {_person(r)} born?",
            f"Write a poem about {_noun(r)}.",
        ]
        + [f"Why is {_noun(r)} important?", f"How does {_noun(r)} work?", _noise(r)]
    )
    return loosen(r, ask), UNKNOWN
