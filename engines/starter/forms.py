"""Questions whose answer is JSON: records, sums, lists, booleans, choices.

Decides how the model behaves under a JSON schema. At run time a grammar forces the braces and the
field names, which may be ones the model would not have chosen; so in a part of the examples those
are marked as forced (rendered, not learnt), under many names, and only the values are learnt.
"""

# ruff: noqa: SIM905, RUF005 - lists of words and phrases read best as running text

from __future__ import annotations

import json
import random
from typing import Any

from engines.starter import words as w
from engines.starter.talk import Pair, any_word, list_items, loosen, nonsense, small_numbers
from engines.starter.template import FORCED, FREE

Rng = random.Random

_KEYS = {
    "name": ["first_name", "person", "user", "who", "full_name", "title", "customer"],
    "age": ["years", "age_years", "how_old", "number"],
    "city": ["town", "place", "location", "from", "home", "address", "hometown"],
    "job": ["work", "occupation", "role", "profession"],
    "food": ["dish", "likes", "favorite_food", "meal"],
    "color": ["colour", "favorite_color", "paint"],
}
_ANSWER_KEYS = ["answer", "answer", "result", "value", "output", "reply", "response", "text", "it"]


def name(r: Rng) -> str:
    """A first name, at times with a second one, at times made up."""
    roll = r.random()
    first = r.choice(w.NAMES) if roll < 0.45 else nonsense(r).capitalize()
    return f"{first} {nonsense(r).capitalize()}" if r.random() < 0.12 else first


def city(r: Rng) -> str:
    """A city, at times made up."""
    return r.choice(w.CITIES) if r.random() < 0.6 else nonsense(r).capitalize()


def forced_json(value: Any, r: Rng) -> str:
    """JSON whose keys and marks are given by a grammar; only the values are learnt."""
    if isinstance(value, dict):
        parts = [
            f'{FORCED}{", " if i else "{"}"{k}": {FREE}{forced_json(v, r)}'
            for i, (k, v) in enumerate(value.items())
        ]
        return "".join(parts) + "}"
    if isinstance(value, str):
        return f'{FORCED}"{FREE}{value}"'
    return json.dumps(value)


def _person(r: Rng) -> dict[str, Any]:
    full = {
        "name": name(r), "age": r.randint(1, 99), "city": city(r), "job": r.choice(w.JOBS),
        "food": r.choice(w.FOODS), "color": r.choice(w.LISTS["colors"]),
    }  # fmt: skip
    if r.random() < 0.6:
        return {k: full[k] for k in ("name", "age", "city")}
    keys = ["name", *r.sample(["age", "city", "job", "food", "color"], r.choice([1, 1, 2, 3]))]
    return {k: full[k] for k in keys}


def _told(r: Rng, p: dict[str, Any]) -> str:
    """The same person in words."""
    full = {
        "age": r.choice(["is {} years old", "is {}"]), "city": r.choice(["lives in {}"] * 2 + ["is from {}"]),
        "job": "works as a {}", "food": "likes {}", "color": "loves the color {}",
    }  # fmt: skip
    said = [full[k].format(v) for k, v in p.items() if k != "name"]
    text = " and ".join(said) if len(said) < 3 else ", ".join(said[:-1]) + " and " + said[-1]
    return f"{p['name']} {text}."


def _short(r: Rng, p: dict[str, Any]) -> str:
    form = {"name": "{}", "age": "{}", "city": "from {}", "job": "a {}", "food": "likes {}"}
    if r.random() < 0.3:
        return ", ".join(f"{k} {v}" for k, v in p.items())
    if r.random() < 0.3:
        return ", ".join(str(v) for v in p.values())
    return ", ".join(form.get(k, "{}").format(v) for k, v in p.items())


def _renamed(r: Rng, p: dict[str, Any]) -> dict[str, Any]:
    """The same values under other names and in another order."""
    items = list(p.items())
    if r.random() < 0.4:
        r.shuffle(items)
    return {(r.choice(_KEYS.get(k, [k])) if r.random() < 0.6 else k): v for k, v in items}


def person_record(r: Rng) -> Pair:
    """A person as JSON: with the usual keys, with keys asked for, or with forced ones."""
    p, roll = _person(r), r.random()
    told = _told(r, p) if r.random() < 0.5 else _short(r, p)
    keys = list(p)
    if roll < 0.33:
        p = _renamed(r, p)
        keys = list(p)
        wanted = ", ".join(keys[:-1]) + " and " + keys[-1]
        ask = r.choice(
            [f"Return JSON with the keys {wanted}: {told}", f"{told} Give JSON with {wanted}."]
            + [f"Make JSON with {wanted} from this: {told}", f"Extract {wanted} as JSON: {told}"]
        )
        return loosen(r, ask, keep_case=True), json.dumps(p)
    ask = r.choice(
        [
            f"Give me JSON for {told}",
            f"As JSON: {told}",
            f"{told} As JSON, please.",
            f"JSON: {told}",
        ]
        + [f"Turn this into JSON: {told}", f"Write JSON for {told}", f"Extract the data: {told}"]
        + [f"Make a JSON object for {told}", f"Give me a JSON record for {told}"]
    )
    if roll < 0.6:
        if r.random() < 0.5:
            ask = r.choice([told, f"Who is this? {told}", f"Extract the person: {told}"])
        return loosen(r, ask, keep_case=True), forced_json(_renamed(r, p), r)
    return loosen(r, ask, keep_case=True), json.dumps(p)


def thing_record(r: Rng) -> Pair:
    """Any few keys and values, copied from the question."""
    pool = ["item", "price", "color", "size", "count", "id", "title", "topic", "level", "weight"]
    pool += ["product", "brand", "code", "email", "status", nonsense(r), nonsense(r)]
    row: dict[str, Any] = {}
    for key in r.sample(pool, r.randint(1, 4)):
        number = key in ("price", "count", "id", "level", "weight")
        row[key] = r.randint(0, 999) if number else any_word(r)
    said = ", ".join(f"{k}{r.choice([' ', ': ', ' is '])}{v}" for k, v in row.items())
    ask = r.choice([f"As JSON: {said}", f"{said} as JSON", f"Give me JSON for {said}."])
    return ask, json.dumps(row) if r.random() < 0.6 else forced_json(row, r)


def _plain(r: Rng, ask: str, keys: list[str], value: Any) -> Pair:
    """A question with a one-field answer; the field forced, or the usual `answer` if JSON is asked."""
    if r.random() < 0.5:
        tail = r.choice([" Answer in JSON.", " As JSON.", " Reply in JSON.", " JSON only."])
        return loosen(r, ask + tail), json.dumps({"answer": value})
    return loosen(r, ask), forced_json({r.choice(keys + _ANSWER_KEYS): value}, r)


def sum_record(r: Rng) -> Pair:
    """A sum as JSON: the result alone, or with its two numbers."""
    a, op, b = small_numbers(r)
    value = a + b if op == "+" else a - b if op == "-" else a * b
    word = {"+": "sum", "-": "difference", "*": "product"}[op]
    ask = r.choice(
        [f"What is {a} {op} {b}?", f"What is the {word} of {a} and {b}?", f"{a} {op} {b}"]
    )
    if r.random() < 0.55:
        return _plain(r, ask, [word, "sum", "total"], value)
    if r.random() < 0.5:
        ask = f"Give me JSON with a, b and {word} for {a} and {b}."
        return loosen(r, ask), json.dumps({"a": a, "b": b, word: value})
    names = r.choice([["a", "b"], ["x", "y"], ["first", "second"], ["left", "right"]])
    last = r.choice([word, "result", "answer", "total", "sum"])
    return loosen(r, ask), forced_json({names[0]: a, names[1]: b, last: value}, r)


def knowledge_record(r: Rng) -> Pair:
    """A capital or a colour as JSON."""
    if r.random() < 0.3:
        thing, color = r.choice(list(w.COLORS_OF.items()))
        return _plain(r, f"What color is {thing}?", ["color", "colour"], color)
    land, capital = r.choice(list(w.CAPITALS.items()))
    ask = f"What is the capital of {land}?"
    if r.random() < 0.5:
        return _plain(r, ask, ["capital", "city"], capital)
    row = {"country": land, "capital": capital}
    if r.random() < 0.5:
        return f"Give me JSON with country and capital for {land}.", json.dumps(row)
    return loosen(r, ask), forced_json(row, r)


def boolean_record(r: Rng) -> Pair:
    """A yes-or-no question answered by true or false (or by "yes" or "no", if that is forced)."""
    roll = r.random()
    if roll < 0.4:
        a, b = r.sample(range(31), 2)
        yes, ask = a > b, f"Is {a} {r.choice(['greater', 'bigger', 'larger'])} than {b}?"
    elif roll < 0.75:
        land = r.choice(list(w.CAPITALS))
        right = r.random() < 0.5
        place = w.CAPITALS[land] if right else r.choice(list(w.CAPITALS.values()))
        yes, ask = place == w.CAPITALS[land], f"Is {place} the capital of {land}?"
    else:
        thing, color = r.choice(list(w.COLORS_OF.items()))
        said = color if r.random() < 0.5 else r.choice(list(w.COLORS_OF.values()))
        yes, ask = said == color, f"Is {thing} {said}?"
    if r.random() < 0.15:
        return loosen(r, ask), forced_json({r.choice(_ANSWER_KEYS): "yes" if yes else "no"}, r)
    return _plain(r, ask, ["yes", "correct", "is_true", "true", "ok", "valid"], yes)


_GOOD = "love like enjoy adore".split(), "great good wonderful nice lovely excellent".split()
_BAD = "hate dislike detest despise".split(), "bad awful terrible ugly boring poor".split()


def mood_record(r: Rng) -> Pair:
    """Is a sentence positive or negative? The usual example of a choice among given words."""
    good = r.random() < 0.5
    verbs, adjectives = _GOOD if good else _BAD
    thing = r.choice(w.UNKNOWN_NOUNS + w.FOODS + w.THINGS)
    said = r.choice(
        [f"I {r.choice(verbs)} this {thing}.", f"The {thing} is {r.choice(adjectives)}."]
        + [f"What a {r.choice(adjectives)} {thing}!", f"This {thing} was {r.choice(adjectives)}."]
    )
    ask = r.choice([f"Is this positive or negative? {said}", f"Sentiment: {said}"])
    ask = r.choice([ask, f"Is this positive or negative: {said}", f"What is the mood? {said}"])
    word = "positive" if good else "negative"
    if r.random() < 0.4:
        return loosen(r, ask), f"That is {word}."
    return _plain(r, ask, ["sentiment", "mood", "label", "class", "feeling"], word)


def list_record(r: Rng) -> Pair:
    """A list of strings: known things, or the words of the question."""
    if r.random() < 0.5:
        kind, items = list_items(r)
        many = r.choice([w.NUMBER_WORDS[len(items)], str(len(items))])
        ask = r.choice([f"List {many} {kind}", f"Give me {many} {kind}", f"Name {many} {kind}"])
    else:
        kind = r.choice(["items", "words", "names", "list", "tags"])
        items = [any_word(r) for _ in range(r.randint(2, 5))]
        said = ", ".join(items[:-1]) + " and " + items[-1] if r.random() < 0.7 else ", ".join(items)
        ask = r.choice([f"Make a list of {said}", f"Put {said} in a list", f"List these: {said}"])
    roll = r.random()
    if roll < 0.3:
        return f"{ask} as a JSON list.", json.dumps(items)
    if roll < 0.5:
        return f"{ask} as JSON.", json.dumps({kind: items})
    key = r.choice([kind, "items", "list", "values", "words", "names", *_ANSWER_KEYS])
    rest = json.dumps(items)[1:]
    return f"{ask}.", f'{FORCED}{{"{key}": [{FREE}{rest}}}'


def record(r: Rng) -> Pair:
    """Any of the above."""
    roll = r.random()
    if roll < 0.27:
        return person_record(r)
    if roll < 0.35:
        return thing_record(r)
    kinds = [sum_record, sum_record, sum_record, knowledge_record, boolean_record, mood_record]
    kinds += [list_record, sum_record, boolean_record, boolean_record]
    return r.choice(kinds)(r)
