"""An answer that goes on where another stopped: the text is the same as if nobody had stopped."""

from __future__ import annotations

import json

import pytest

from engines.base import Delta, EngineError, Sampling
from engines.final_message import split
from tests.engines.asking import STORY, TOOLS, ask, format_of, reason_of, saying, text_of

GREEDY = Sampling(temperature=0)


def begun(messages, text):
    return messages[:-1] + b"," + json.dumps({"role": "assistant", "content": text}).encode() + b"]"


async def test_an_answer_goes_on_from_every_token_of_its_text(engine):
    events = await ask(engine, sampling=GREEDY, max_tokens=24)
    whole = text_of(events)
    pieces = [event.text for event in events if isinstance(event, Delta) and event.text]
    for count in range(1, len(pieces), 3):
        said = "".join(pieces[:count])
        rest = await ask(
            engine,
            messages=begun(STORY, said),
            sampling=GREEDY,
            max_tokens=24 - count,
            continue_final=True,
        )
        assert said + text_of(rest) == whole
        assert reason_of(rest) == reason_of(events)


async def test_stop_strings_hold_in_the_rest(engine):
    events = await ask(engine, sampling=GREEDY, max_tokens=20)
    whole, said = text_of(events), text_of(events[:3])
    stop = whole[-9:-4]
    rest = await ask(
        engine, messages=begun(STORY, said), sampling=GREEDY, continue_final=True, stop=(stop,)
    )
    assert (said + text_of(rest)).startswith(whole[: whole.index(stop, len(said))])
    assert stop not in text_of(rest)


async def test_a_constrained_answer_is_not_gone_on_with(engine):
    for how in (
        {"response_format": format_of({"type": "object"})},
        {"tools": TOOLS, "tool_choice": b'"required"'},
    ):
        with pytest.raises(EngineError) as error:
            await ask(engine, messages=begun(STORY, "{"), continue_final=True, **how)
        assert error.value.kind == "unsupported"


async def test_an_answer_beside_tools_goes_on(engine):
    rest = await ask(
        engine,
        messages=begun(saying("What is 12 + 7?"), "12 + 7 is"),
        tools=TOOLS,
        max_tokens=8,
        sampling=GREEDY,
        continue_final=True,
    )
    assert text_of(rest)


@pytest.mark.parametrize("messages", [b"[]", STORY, b"{", b'[{"role":"assistant","content":null}]'])
async def test_only_an_assistants_text_is_gone_on_from(engine, messages):
    with pytest.raises(EngineError) as error:
        await ask(engine, messages=messages, continue_final=True)
    assert error.value.kind == "invalid"


@pytest.mark.parametrize("messages", [STORY, b'[ {"role": "user", "content": "a"} ]', b"[\n]"])
def test_what_came_before_stays_as_it_was(messages):
    if messages != b"[\n]":
        assert split(begun(messages, "x")) == (messages, "x")
