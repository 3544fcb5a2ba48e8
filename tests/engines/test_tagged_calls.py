from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from engines.tagged_calls import TaggedCalls


def read(text, cuts):
    tagged = TaggedCalls()
    said, arguments, names = "", "", []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        more, calls = tagged.feed(text[begin:end])
        said += more
        for call in calls:
            names += [call.name] if call.name else []
            arguments += call.arguments
    return said + tagged.flush(), names, arguments


@given(st.text("a<tol_c>\n"), st.booleans(), st.data())
def test_text_and_calls_come_apart_however_cut(said, calls, data):
    said = said.replace("<tool_call>", "").rstrip("\n")
    call = (
        f"<tool_call>\n{json.dumps({'name': 'f', 'arguments': {'t': '<tool_call>'}})}\n</tool_call>"
    )
    text = said + call if calls and "<tool_call>" not in said else said
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    got, names, arguments = read(text, cuts)
    assert got.rstrip("\n") == said
    assert names == ["f"] * (text != said)
    assert arguments == ('{"t": "<tool_call>"}' if names else "")
