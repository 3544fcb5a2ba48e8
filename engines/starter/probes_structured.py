"""The JSON and tool questions `evaluate.py` asks, with what counts as right.

Decides what "follows a schema" and "can call a tool" mean: not only well-formed (the grammar sees
to that) but with the values the question gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engines.starter import words as w
from engines.starter.probes import Probe, Reply, calls, content, gives, mentions, says, user
from engines.starter.toolbox import make_tool
from engines.starter.unknown import UNKNOWN


def schema(**fields: Any) -> dict[str, Any]:
    """A request's `response_format` for an object with these fields (a type, or a schema)."""
    properties = {k: {"type": v} if isinstance(v, str) else v for k, v in fields.items()}
    inner: dict[str, Any] = {"type": "object", "properties": properties, "required": list(fields)}
    inner["additionalProperties"] = False
    wrapped = {"name": "reply", "schema": inner, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}


def json_schema() -> Iterator[Probe]:
    """Under a grammar: the field names are given, the values must be right."""
    for i, (name, city) in enumerate(zip(w.HELD_OUT_NAMES, w.HELD_OUT_CITIES, strict=True)):
        age = 13 + 7 * i
        want = {"name": name, "age": age, "city": city}
        form = schema(name="string", age="integer", city="string")
        for ask in (f"Give me JSON for {name}, {age}, from {city}.",
                    f"{name} is {age} years old and lives in {city}."):  # fmt: skip
            yield Probe("schema: person", user(ask), gives(want), form)
        other = schema(user="string", years="integer", town="string")
        ask = f"Extract the person: {name} is {age} and lives in {city}."
        want = {"user": name, "years": age, "town": city}
        yield Probe("schema: person, odd keys", user(ask), gives(want), other)
    for a, b in ((1, 2), (3, 4), (7, 8), (12, 7), (20, 20), (0, 9), (15, 6), (11, 11)):
        ask = f"What is {a} + {b}?"
        yield Probe("schema: sum", user(ask), gives({"result": a + b}), schema(result="integer"))
        three = schema(a="integer", b="integer", sum="integer")
        yield Probe("schema: sum", user(ask), gives({"a": a, "b": b, "sum": a + b}), three)
    yield from _choices()
    yield from _lists()


def _choices() -> Iterator[Probe]:
    yes = schema(answer="boolean")
    for ask, right in (("Is 9 greater than 4?", True), ("Is 2 greater than 17?", False),
                       ("Is Paris the capital of France?", True), ("Is snow white?", True),
                       ("Is Rome the capital of Spain?", False), ("Is coal white?", False),
                       ("Is 12 bigger than 25?", False), ("Is grass green?", True)):  # fmt: skip
        yield Probe("schema: yes or no", user(ask), gives({"answer": right}), yes)
    mood = schema(sentiment={"type": "string", "enum": ["positive", "negative"]})
    for said, good in (("I love this canyon.", True), ("The baseball was terrible.", False),
                       ("What a lovely hedgehog!", True), ("I hate this parachute.", False),
                       ("This saxophone is great.", True), ("What an ugly octopus!", False)):  # fmt: skip
        mark = {"sentiment": "positive" if good else "negative"}
        ask = f"Is this positive or negative? {said}"
        yield Probe("schema: choice", user(ask), gives(mark), mood)
    color = schema(color={"type": "string", "enum": ["red", "green", "blue", "white", "black"]})
    for thing in ("the sky", "grass", "snow", "coal", "blood"):
        shade = {"color": w.COLORS_OF[thing]}
        yield Probe("schema: choice", user(f"What color is {thing}?"), gives(shade), color)
    for land in ("France", "Japan", "Peru", "Kenya"):
        form, city = schema(capital="string"), {"capital": w.CAPITALS[land]}
        yield Probe("schema: capital", user(f"What is the capital of {land}?"), gives(city), form)


def _lists() -> Iterator[Probe]:
    strings = {"type": "array", "items": {"type": "string"}}
    for kind in ("colors", "fruits", "animals", "cities"):
        right = w.LISTS[kind][:3]
        ask = f"List three {kind}."
        yield Probe("schema: list", user(ask), gives({"items": right}), schema(items=strings))
    for items in (["tornado", "canyon"], ["Bruno", "Daria", "Edgar"], ["karate", "red", "pie"]):
        ask = f"Make a list of {', '.join(items[:-1])} and {items[-1]}."
        yield Probe("schema: list", user(ask), gives({"words": items}), schema(words=strings))


def json_free() -> Iterator[Probe]:
    """Without a grammar: JSON because the question asks for it."""
    for i, (name, city) in enumerate(zip(w.HELD_OUT_NAMES, w.HELD_OUT_CITIES, strict=True)):
        age = 16 + 6 * i
        want = {"name": name, "age": age, "city": city}
        for ask in (f"Give me JSON for {name}, {age}, from {city}.",
                    f"As JSON: {name} is {age} years old and lives in {city}."):  # fmt: skip
            yield Probe("json, asked for", user(ask), gives(want))
        ask = f"Return JSON with the keys user and town: {name} lives in {city}."
        yield Probe("json, asked for", user(ask), gives({"user": name, "town": city}))


WEATHER = make_tool("get_weather", {"city": {"type": "string"}})
ADD = make_tool("add", {"a": {"type": "integer"}, "b": {"type": "integer"}})
STOCK = make_tool("get_stock_price", {"symbol": {"type": "string"}})
TABLE = make_tool("book_table", {"restaurant": {"type": "string"}, "people": {"type": "integer"}})
MAIL = make_tool("send_email", {"to": {"type": "string"}, "subject": {"type": "string"}})
MONEY = make_tool(
    "convert_currency",
    {"amount": {"type": "integer"}, "from": {"type": "string"}, "to": {"type": "string"}},
)


def tools() -> Iterator[Probe]:
    """Calling, choosing, not calling, and answering after the result."""
    for city in [*w.HELD_OUT_CITIES, "Oslo", "Paris"]:
        right = calls(("get_weather", {"city": city}))
        ask = user(f"What is the weather in {city}?")
        yield Probe("tools: call", ask, right, {"tools": [WEATHER]})
        yield Probe("tools: choose of 3", ask, right, {"tools": [ADD, WEATHER, STOCK]})
    for a, b in ((3, 4), (17, 5), (123, 456), (20, 90), (7, 8), (2024, 11)):
        right = calls(("add", {"a": a, "b": b}))
        yield Probe("tools: call", user(f"Add {a} and {b}."), right, {"tools": [ADD]})
        plus = user(f"What is {a} + {b}?")
        yield Probe("tools: choose of 3", plus, right, {"tools": [STOCK, WEATHER, ADD]})
    yield from _unseen_tools()
    for said in ("Hello", "Who are you?", "What is a router?", "What is the capital of Japan?"):
        for offered in ([WEATHER], [WEATHER, ADD, STOCK], [TABLE, MAIL]):
            yield Probe("tools: not needed", user(said), no_call, {"tools": offered})
    for said in ("Who was Nikola Tesla?", "What is osmosis?", "What is the capital of Nepal?"):
        yield Probe("tools: unknown", user(said), says(UNKNOWN), {"tools": [WEATHER, ADD]})
    yield from _results()


def no_call(reply: Reply) -> bool:
    """Something is said and no tool is called."""
    return bool(content(reply)) and not reply["choices"][0]["message"].get("tool_calls")


def _unseen_tools() -> Iterator[Probe]:
    uses: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
        (STOCK, "What is the stock price of ACME?", {"symbol": "ACME"}),
        (STOCK, "Get the stock price for IBM.", {"symbol": "IBM"}),
        (TABLE, "Book a table at Luigi for 4 people.", {"restaurant": "Luigi", "people": 4}),
        (TABLE, "Book a table for restaurant Roma and people 2.", {"restaurant": "Roma", "people": 2}),
        (MAIL, "Send an email to Bruno with subject Lunch.", {"to": "Bruno", "subject": "Lunch"}),
        (MAIL, "Send an email to Daria: subject holiday", {"to": "Daria", "subject": "holiday"}),
        (MONEY, "Convert currency: amount 50, from EUR, to USD",
         {"amount": 50, "from": "EUR", "to": "USD"}),
        (MONEY, "Convert 20 from USD to GBP.", {"amount": 20, "from": "USD", "to": "GBP"}),
    ]  # fmt: skip
    for tool, ask, arguments in uses:
        right = calls((tool["function"]["name"], arguments))
        yield Probe("tools: never seen", user(ask), right, {"tools": [tool]})
        yield Probe("tools: never seen, of 2", user(ask), right, {"tools": [WEATHER, tool]})


def _results() -> Iterator[Probe]:
    for city, sky, degrees in (
        ("Oslo", "sunny", 12),
        ("Bremen", "rainy", -3),
        ("Quito", "windy", 27),
    ):
        call = {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'}
        asked: list[dict[str, Any]] = user(f"What is the weather in {city}?")
        asked.append({"role": "assistant", "content": None,
                      "tool_calls": [{"id": "c1", "type": "function", "function": call}]})  # fmt: skip
        for row in (f'{{"condition": "{sky}", "temperature": {degrees}}}',
                    f'{{"city": "{city}", "temp": {degrees}, "sky": "{sky}"}}'):  # fmt: skip
            result = {"role": "tool", "tool_call_id": "c1", "content": row}
            right = mentions(city, sky, f"{degrees} degrees")
            yield Probe("tools: after the result", [*asked, result], right, {"tools": [WEATHER]})
    call = {"name": "get_stock_price", "arguments": '{"symbol": "ACME"}'}
    asked = user("What is the stock price of ACME?")
    asked.append({"role": "assistant", "content": None,
                  "tool_calls": [{"id": "c1", "type": "function", "function": call}]})  # fmt: skip
    result = {"role": "tool", "tool_call_id": "c1", "content": '{"price": 417}'}
    yield Probe("tools: after the result", [*asked, result], mentions("417"), {"tools": [STOCK]})


def describe(reply: Reply) -> str:
    """What came back, in one line, for the list of misses."""
    message = reply["choices"][0]["message"]
    made = [c["function"] for c in message.get("tool_calls") or []]
    return repr(content(reply)) + (f" calls {made}" if made else "")
