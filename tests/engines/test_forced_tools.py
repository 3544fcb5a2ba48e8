from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import EngineError
from engines.forced_tools import CallWriter, ForcedCall, force, offered


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


def test_one_function_needs_only_its_arguments():
    assert force(ONE, b'"required"') == ForcedCall(SCHEMA, "f")


def test_a_named_function_without_parameters_takes_none():
    forced = force(TWO, NAMED)
    assert forced.name == "g"
    assert forced.schema["properties"] == {}


def test_a_choice_of_functions_keeps_their_references():
    forced = force(TWO, b'"required"')
    assert forced.name is None
    moved = forced.schema["$defs"]["arguments0"]
    assert moved["properties"]["a"]["$ref"] == "#/$defs/arguments0/$defs/n"
    assert [call["properties"]["name"]["const"] for call in forced.schema["anyOf"]] == ["f", "g"]


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


def written(forced, text, size):
    writer = CallWriter(forced)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    calls = [call for piece in pieces for call in writer.feed(piece)]
    assert all(call.id is None and call.name is None for call in calls[1:])
    return calls[0].name, "".join(call.arguments for call in calls)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=25)
@given(st.dictionaries(st.text(), values), st.integers(1, 9), st.sampled_from([None, 2]))
def test_arguments_come_out_whole_however_cut(arguments, size, indent):
    text = json.dumps(arguments, indent=indent)
    assert written(ForcedCall({}, "f"), f" {text} \n", size) == ("f", text)
    whole = json.dumps({"name": 'g"}', "arguments": arguments}, indent=indent)
    name, got = written(ForcedCall({}, None), whole + "\n", size)
    assert (name, json.loads(got)) == ('g"}', arguments)
