"""Tools to train on: a few realistic ones under many names, and any number of made-up ones.

Decides what the model can learn about tools. Names and parameters vary so much that they can only
be copied out of the tools block, and values only out of the question. The tools that
`evaluate.py` asks for as "never seen" are not here.
"""

# ruff: noqa: SIM905, RUF005, ISC004 - lists of words and phrases read best as running text

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from engines.starter import words as w
from engines.starter.forms import city, name
from engines.starter.talk import any_word, nonsense

Rng = random.Random

_TYPES = {"num": "integer", "small": "integer"}
_ENUMS = {
    "unit": ["celsius", "fahrenheit"], "size": ["small", "medium", "large"],
    "state": ["on", "off"], "level": ["low", "high"], "dir": ["left", "right"],
    "mode": ["fast", "slow"], "lang": ["french", "german", "spanish"],
}  # fmt: skip

# names | parameter names and kinds | what people say. `{0}` is the first parameter's value.
_REAL = [
    ("get_weather weather current_weather get_current_weather fetch_weather weather_report "
     "get_forecast lookup_weather",
     "city/location/place/town:city",
     "What is the weather in {0}?|What is the weather like in {0}?|How is the weather in {0}?|"
     "Weather in {0}|Is it raining in {0}?|Tell me the weather in {0}.|Is it cold in {0} today?|"
     "What is the weather in {0} today?|Will it rain in {0}?|Get the weather for {0}."),
    ("get_weather weather current_weather", "city/location/place:city unit/units:unit",
     "What is the weather in {0} in {1}?|Weather in {0}, in {1}|How warm is it in {0} in {1}?"),
    ("add add_numbers sum calculate_sum plus addition",
     "a/x/first/num1/left:num b/y/second/num2/right:num",
     "Add {0} and {1}.|What is {0} + {1}?|What is {0} plus {1}?|Sum {0} and {1}.|{0} + {1}|"
     "What is the sum of {0} and {1}?|Please add {0} and {1}.|How much is {0} + {1}?"),
    ("multiply times product mul", "a/x/first:num b/y/second:num",
     "Multiply {0} by {1}.|What is {0} * {1}?|What is {0} times {1}?|What is {0} x {1}?"),
    ("subtract minus difference", "a/x:num b/y:num",
     "What is {0} - {1}?|What is {0} minus {1}?|How much is {0} - {1}?"),
    ("get_time current_time time_in get_local_time clock", "city/location/timezone:city",
     "What time is it in {0}?|Time in {0}|Tell me the time in {0}.|What is the local time in {0}?"),
    ("search web_search search_web find_online", "query/q/text/term:words",
     "Search for {0}.|Search the web for {0}.|Look up {0}.|Find {0} online.|Google {0}"),
    ("send_message message text_user", "to/user/recipient:name text/message/body:words",
     "Send a message to {0}: {1}|Tell {0}: {1}|Message {0}: {1}|Text {0} this: {1}"),
    ("set_timer timer start_timer", "minutes/duration/time:small",
     "Set a timer for {0} minutes.|Start a timer of {0} minutes.|Timer for {0} minutes"),
    ("set_light switch_light light", "room/place:word state/power:state",
     "Turn {1} the light in the {0}.|Switch {1} the {0} light.|Turn the {0} light {1}."),
    ("play_song play_music play", "title/song/track:words",
     "Play {0}.|Play the song {0}.|Put on {0}.|I want to hear {0}."),
    ("order_food order_pizza order", "dish/item/food:food count/amount/quantity:small",
     "Order {1} {0}.|I want {1} {0}.|Please order {1} {0}.|Buy {1} {0}."),
    ("find_flights search_flights book_train find_route", "from/origin/start:city to/target/end:city",
     "Find a way from {0} to {1}.|Find flights from {0} to {1}.|I want to go from {0} to {1}.|"
     "How do I get from {0} to {1}?|Book from {0} to {1}."),
    ("translate translate_text", "text/phrase:words language/to/target:lang",
     "Translate {0} into {1}.|How do you say {0} in {1}?|Translate: {0} to {1}"),
    ("create_user add_user new_user register", "name/username/user:name age/years:small",
     "Create a user named {0}, {1} years old.|Add user {0}, age {1}.|Register {0}, {1}."),
    ("remind set_reminder remind_me add_reminder", "text/what/task:words",
     "Remind me to {0}.|Remind me of {0}.|Set a reminder: {0}"),
    ("roll_dice roll dice", "sides/faces/n:small", "Roll a dice with {0} sides.|Roll a d{0}."),
    ("list_files ls show_files", "path/folder/dir:word", "List the files in {0}.|Show me {0}."),
    ("get_news news headlines", "topic/subject:word", "What is the news about {0}?|News on {0}"),
    ("find_person lookup_user get_user find_contact", "name/user/person:name",
     "Who is {0}?|Find {0}.|Look up the user {0}.|Find the number of {0}."),
]  # fmt: skip
_SUMS = "add multiply subtract"
_VERBS = (
    "get find set create delete update check show start stop open close move copy convert count "
    "remove read write fetch save load print draw cancel book rent buy sell track measure scan "
    "sort lock pause share publish verify reset rename upload archive import export query compute"
).split()
_PARAMS = (
    "name id city date size color amount price query text title user email path count level type "
    "from to start end language item unit target topic speed width height label message code key "
    "value number place owner kind version format source order account symbol limit mode tag"
).split()
_NUMERIC = "id amount price count level speed width height number limit version".split()


@dataclass(frozen=True)
class Use:
    """A tool, a question that calls for it, and the arguments the call must have."""

    tool: dict[str, Any]
    question: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The tool's name."""
        return str(self.tool["function"]["name"])

    @property
    def call(self) -> dict[str, Any]:
        """The call as an OpenAI `tool_calls` entry (arguments as an object)."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def make_tool(tool_name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """A tool as OpenAI's API has it."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": tool_name, "parameters": schema}}


def _phrase(r: Rng) -> str:
    return " ".join(any_word(r) for _ in range(r.choice([1, 1, 2, 2, 3])))


def _value(r: Rng, kind: str) -> Any:
    if kind in _ENUMS:
        return r.choice(_ENUMS[kind])
    if kind == "num":
        return r.randint(0, 20) if r.random() < 0.5 else r.randint(0, 10 ** r.randint(2, 4))
    makers = {"city": city, "name": name, "words": _phrase, "word": any_word}
    if kind in makers:
        return makers[kind](r)
    return r.choice(w.FOODS) if kind == "food" else r.randint(1, 60)


def _schema(kind: str) -> dict[str, Any]:
    if kind in _ENUMS:
        return {"type": "string", "enum": _ENUMS[kind]}
    return {"type": _TYPES.get(kind, "string")}


def real_use(r: Rng) -> Use:
    """One of the realistic tools, under one of its names."""
    names, params, forms = r.choice(_REAL if r.random() < 0.7 else _REAL[:4])
    fields = [p.split(":") for p in params.split()]
    keys = [r.choice(options.split("/")[:1] * 2 + options.split("/")) for options, _ in fields]
    values = [_value(r, kind) for _, kind in fields]
    tool = make_tool(
        r.choice(names.split()), {k: _schema(f[1]) for k, f in zip(keys, fields, strict=True)}
    )
    question = _careless(r, r.choice(forms.split("|")).format(*values), values)
    return Use(tool, question, dict(zip(keys, values, strict=True)))


def _careless(r: Rng, text: str, values: list[Any]) -> str:
    """Lower-case first letters, lost marks, politeness; never a changed value."""
    start = str(values[0]) if values else ""
    if r.random() < 0.25 and not text.startswith(start or "\0"):
        text = text[0].lower() + text[1:]
    if r.random() < 0.25:
        text = text.rstrip("?.")
    if r.random() < 0.08:
        text = r.choice(["Please: ", "Hi! ", "Can you help? ", "Hello, "]) + text
    return text


def _tool_name(r: Rng, verb: str, noun: str) -> str:
    roll = r.random()
    if roll < 0.65:
        return f"{verb}_{noun}"
    if roll < 0.75:
        return verb + noun.capitalize()
    if roll < 0.85:
        return f"{noun}_{verb}"
    return r.choice([noun, f"{verb}-{noun}", f"{verb}_{noun}_{r.choice(_PARAMS)}", f"do_{verb}"])


def made_up_use(r: Rng) -> Use:
    """A tool nobody has heard of: some verb, some noun, some parameters."""
    verb = r.choice(_VERBS) if r.random() < 0.85 else nonsense(r)
    noun = nonsense(r) if r.random() < 0.3 else r.choice(w.UNKNOWN_NOUNS + w.THINGS + w.FOODS)
    if r.random() < 0.15:
        noun = f"{noun} {r.choice(w.UNKNOWN_NOUNS)}"
    keys = r.sample([*_PARAMS, nonsense(r)], r.choice([0, 1, 1, 1, 2, 2, 3]))
    properties, values = {}, []
    for key in keys:
        number = key in _NUMERIC
        kind = "num" if number else r.choice(["word", "word", "words", "name", "city"])
        properties[key] = {"type": "integer" if number else "string"}
        values.append(_value(r, kind))
    tool = make_tool(_tool_name(r, verb, noun.replace(" ", "_")), properties)
    text = _made_up_question(r, tool["function"]["name"], verb, noun, keys, values)
    return Use(tool, _careless(r, text, values), dict(zip(keys, values, strict=True)))


def _made_up_question(
    r: Rng, tool_name: str, verb: str, noun: str, keys: list[str], values: list[Any]
) -> str:
    act = verb.capitalize()
    if not keys:
        return r.choice([f"{act} the {noun}.", f"{act} {noun} now.", f"Please {verb} the {noun}."])
    if len(keys) == 1:
        v = values[0]
        forms = [
            f"{act} the {noun} for {v}.", f"{act} the {noun} of {v}.", f"{act} {noun} {v}.",
            f"What is the {noun} of {v}?", f"What is the {noun} for {v}?", f"{act} {noun}: {v}",
            f"Can you {verb} the {noun} {v}?", f"I want to {verb} a {noun} in {v}.",
            f"Use {tool_name} with {v}.", f"{act} the {noun} with {keys[0]} {v}.",
            f"{act} a {noun} named {v}.", f"What {noun} is in {v}?", f"{act} {v}.",
            f"How much is the {noun} of {v}?",
        ]  # fmt: skip
        return r.choice(forms)
    joint = r.choice([" ", " ", " is ", ": ", " = ", "="])
    said = [f"{k}{joint}{v}" for k, v in zip(keys, values, strict=True)]
    if r.random() < 0.25:
        said = [str(v) for v in values]
    order = r.sample(said, len(said)) if r.random() < 0.3 and joint in said[0] else said
    text = ", ".join(order[:-1]) + r.choice([" and ", ", "]) + order[-1]
    lead = r.choice([f"{act} the {noun} with ", f"{act} {noun}: ", f"{act} a {noun} for "])
    return lead + text + "." if r.random() < 0.9 else f"Call {tool_name} with {text}."


def any_use(r: Rng) -> Use:
    """A realistic or a made-up tool."""
    return real_use(r) if r.random() < 0.42 else made_up_use(r)


def is_sum(use: Use) -> bool:
    """Whether the tool calculates, so that a sum asked for beside it belongs to it."""
    return any(
        part in use.name for part in [*_SUMS.split(), "sum", "plus", "times", "minus", "product"]
    )


_SKIES = "sunny rainy cloudy windy snowy foggy clear stormy".split()


def outcome(r: Rng, use: Use) -> tuple[str, str]:
    """What the tool gives back, and what the model says then."""
    values = list(use.arguments.values())
    if "weather" in use.name or "forecast" in use.name:
        return _weather(r, values[0])
    if is_sum(use) and [type(v) for v in values] == [int, int] and r.random() < 0.7:
        n = values[0] + values[1] if r.random() < 0.7 else values[0] * values[1]
        return r.choice([str(n), json.dumps({"result": n})]), f"The result is {n}."
    roll = r.random()
    if roll < 0.12:
        why = " ".join([r.choice(["no", "bad", "missing", "unknown"]), any_word(r)])
        return json.dumps({"error": why}), f"That did not work: {why}."
    if roll < 0.24:
        done = r.choice(['{"ok": true}', '{"status": "ok"}', "ok", "done", '{"success": true}'])
        return done, "It is done."
    if roll < 0.34:
        text = _phrase(r)
        return text, f"The result is {text}."
    keys = r.sample(_PARAMS + ["result", "total", "status", "time"], r.choice([1, 1, 2]))
    row = {k: r.randint(0, 999) if r.random() < 0.5 else any_word(r) for k in keys}
    said = " and ".join(f"the {k} is {v}" for k, v in row.items())
    return json.dumps(row), said[0].upper() + said[1:] + "."


def _weather(r: Rng, place: str) -> tuple[str, str]:
    sky, degrees = r.choice(_SKIES), r.randint(-15, 40)
    row: dict[str, Any] = {
        r.choice(["condition", "sky", "weather", "conditions", "summary"]): sky,
        r.choice(["temperature", "temp", "degrees", "temperature", "temp_c"]): degrees,
    }
    if r.random() < 0.4:
        row = {r.choice(["city", "location", "place"]): place, **row}
    if r.random() < 0.2:
        row = dict(reversed(row.items()))
    text = json.dumps(row) if r.random() < 0.85 else f"{sky}, {degrees} degrees"
    return text, f"The weather in {place} is {sky}, {degrees} degrees."
