from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import EngineError
from engines.forced_tools import CallWriter, force, offered


def tool(name, **parameters):
    return {"type": "function", "function": {"name": name, **parameters}}


SCHEMA = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {}}}
ONE = json.dumps([tool("f", parameters=SCHEMA)]).encode()
TWO = json.dumps([tool("f", parameters=SCHEMA), tool("g")]).encode()
NAMED = b'{"type":"function","function":{"name":"g"}}'


@pytest.mark.parametrize("choice", [None, b'"auto"', b'"none"'])
def test_nothing_is_forced_unless_demanded(choice):
    assert force(ONE, choice) is None


def test_tools_are_offered_unless_none():
    assert offered(ONE, None)
    assert offered(ONE, b'"required"')
    assert not offered(ONE, b'"none"')
    assert not offered(None, None)


def names(forced):
    return [call["properties"]["name"]["const"] for call in forced.schema["anyOf"]]


def test_a_named_function_without_parameters_takes_none():
    forced = force(TWO, NAMED)
    assert names(forced) == ["g"]
    assert forced.schema["$defs"]["arguments0"]["properties"] == {}
    assert (forced.named, forced.several, forced.reason) == (True, False, "stop")


def test_a_choice_of_functions_keeps_their_references():
    forced = force(TWO, b'"required"')
    moved = forced.schema["$defs"]["arguments0"]
    assert moved["properties"]["a"]["$ref"] == "#/$defs/arguments0/$defs/n"
    assert names(forced) == ["f", "g"]
    assert (forced.several, forced.reason) == (True, "tool_calls")
    assert not force(TWO, b'"required"', parallel=False).several


def test_only_strict_functions_are_held_to_every_keyword():
    parameters = {"type": "object", "properties": {"a": {"uniqueItems": True}}}
    loose = json.dumps([tool("f", parameters=parameters)]).encode()
    assert "uniqueItems" not in json.dumps(force(loose, b'"required"').schema)
    strict = json.dumps([tool("f", parameters=parameters, strict=True)]).encode()
    with pytest.raises(EngineError, match="uniqueItems"):
        force(strict, b'"required"')


@pytest.mark.parametrize(
    ("tools", "choice", "kind"),
    [
        (ONE, NAMED, "invalid"),
        (b"[]", b'"required"', "invalid"),
        (ONE, b'"perhaps"', "invalid"),
        (ONE, b'{"type":"allowed_tools"}', "unsupported"),
        (b'[{"type":"custom","custom":{"name":"f"}}]', b'"required"', "unsupported"),
    ],
)
def test_what_cannot_be_forced_is_refused(tools, choice, kind):
    with pytest.raises(EngineError) as raised:
        force(tools, choice)
    assert raised.value.kind == kind


def written(text, size):
    """What comes of an answer cut into pieces: index, name and arguments of each call."""
    writer = CallWriter()
    found: dict[int, list] = {}
    for at in range(0, len(text), size):
        for call in writer.feed(text[at : at + size]):
            if call.id is not None:
                assert call.index not in found
                found[call.index] = [call.name, ""]
            found[call.index][1] += call.arguments
    return [found[index] for index in sorted(found)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=25)
@given(
    st.lists(st.dictionaries(st.text(), values), min_size=1, max_size=3),
    st.integers(1, 9),
    st.sampled_from(["json", "tags"]),
)
def test_calls_come_out_whole_however_cut(calls, size, form):
    made = [json.dumps({"name": 'g"}', "arguments": arguments}) for arguments in calls]
    tagged = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in made)
    text = tagged if form == "tags" else f"[{', '.join(made)}]"
    got = written(text, size)
    assert [(name, json.loads(arguments)) for name, arguments in got] == [
        ('g"}', arguments) for arguments in calls
    ]
