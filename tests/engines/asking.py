"""Asking an engine, and reading what it said."""

from __future__ import annotations

import json

from engines.base import Delta, Finish, GenerateRequest, Sampling

GREEDY = Sampling(temperature=0)
STORY = b'[{"role":"user","content":"Tell me a story about a bear."}]'
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"$ref": "#/$defs/city"}},
                    "required": ["city"],
                    "additionalProperties": False,
                    "$defs": {"city": {"enum": ["Paris", "Rome"]}},
                },
            },
        }
        for name in ("weather", "time")
    ]
).encode()


async def ask(engine, **request):
    request.setdefault("messages", STORY)
    return [event async for event in engine.generate(GenerateRequest(**request))]


def text_of(events, choice=0):
    return "".join(e.text for e in events if isinstance(e, Delta) and e.choice == choice)


def reason_of(events, choice=0):
    (reason,) = [e.reason for e in events if isinstance(e, Finish) and e.choice == choice]
    return reason


def call_of(events):
    calls = [c for e in events if isinstance(e, Delta) for c in e.tool_calls]
    assert calls[0].id
    assert all(call.id is None and call.name is None for call in calls[1:])
    return calls[0].name, "".join(call.arguments for call in calls)


def calls_of(events, choice=0):
    """Every call as (id, name, arguments), in the order of their indexes."""
    calls: dict[int, list[str]] = {}
    for event in events:
        if isinstance(event, Delta) and event.choice == choice:
            for call in event.tool_calls:
                if call.index not in calls:
                    calls[call.index] = [call.id, call.name, ""]
                else:
                    assert (call.id, call.name) == (None, None)
                calls[call.index][2] += call.arguments
    assert sorted(calls) == list(range(len(calls)))
    return [tuple(calls[index]) for index in sorted(calls)]


def tokens_of(events, choice=0):
    return [
        token
        for event in events
        if isinstance(event, Delta) and event.choice == choice
        for token in event.logprobs
    ]


def format_of(schema, **fields):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **fields}}
    return json.dumps(wanted).encode()


def saying(*contents):
    """Messages of a user and an assistant in turn."""
    roles = ("user", "assistant")
    return json.dumps(
        [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    ).encode()
