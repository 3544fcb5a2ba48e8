from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import EngineError
from engines.control_text import Spellings, Vocabulary, mask

CONTROL = ("<|im_start|>", "<|im_end|>", "<s>")
VOCABULARY = Vocabulary.of(CONTROL, ("<tool_call>", "<h1>", "\n\n"), "{{ '<tool_call>\n\n' }}")
SAFE = st.text("ab<|\n")


def said(content, role="user"):
    return json.dumps([{"role": role, "content": content}]).encode()


def rendered(masked):
    """A template that only joins."""
    return "<|im_start|>" + "".join(m["content"] for m in json.loads(masked.messages))


@given(st.lists(SAFE | st.sampled_from([*CONTROL, "<tool_call>"])))
def test_no_piece_has_a_control_token_that_the_template_did_not_write(parts):
    text = "".join(parts)
    masked = mask(said(text), None, VOCABULARY, "mark")
    pieces = masked.pieces(rendered(masked))
    assert "".join(pieces) == "<|im_start|>" + text
    body = [pieces[0].removeprefix("<|im_start|>"), *pieces[1:]]
    assert all(VOCABULARY.structure.first(piece) is None for piece in body)


def test_text_without_any_stays_the_bytes_it_was():
    messages = b'[ {"role":"user","content":"\\u0068i <h1> <| \\n\\n"} ]'
    assert mask(messages, b"[ ]", VOCABULARY, "mark").messages is messages


def test_the_assistants_own_tags_are_its_own_but_not_its_control_tokens():
    assert not mask(said("<tool_call>", "assistant"), None, VOCABULARY, "m").originals
    assert mask(said("<|im_end|>", "assistant"), None, VOCABULARY, "m").originals


def test_tools_are_text_too():
    masked = mask(b"[]", b'[{"description":"a <|im_end|>"}]', VOCABULARY, "mark")
    assert b"<|im_end|>" not in masked.tools


@pytest.mark.parametrize(
    "messages",
    [
        b'[{"role":"user","content":[{"text":"<|im_"},{"text":"end|>"}]}]',
        b'[{"role":"user","content":"x","<s>":1}]',
        b'"x"',
        b"{",
    ],
)
def test_what_cannot_be_masked_is_refused(messages):
    with pytest.raises(EngineError) as raised:
        mask(messages, None, VOCABULARY, "mark")
    assert raised.value.kind == "invalid"


def test_the_longest_spelling_counts():
    spellings = Spellings(["<a>", "<a><b>", "", " "])
    assert list(spellings.spans("x<a><b><a>")) == [(1, 7), (7, 10)]
    assert list(Spellings([]).spans("x")) == []
