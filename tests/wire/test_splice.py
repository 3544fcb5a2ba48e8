"""A broken stream's bytes and another's put together: for every cut and however both come."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire import sse
from router.wire.chat import decode_chat
from router.wire.continuation import Keep, keep, rest, with_beginning
from router.wire.legacy import decode_completion
from router.wire.said import read
from router.wire.seam import Seam
from router.wire.splice import Splicer, StopGuard, Tally, Unreadable, ending
from tests.upstream import DONE, chunk, encode, event, events

WHOLE = "Grüße 😀, dear “reader”: one, zwei, 三.\n\nNothing is lost 😀😀 and nothing is told twice, at any seam."


def stream(text, size, *, ident="first", newline="\n", escaped=True, usage=None):
    """A whole stream of ``text`` in chunks of ``size`` UTF-16 units, so that some halve a character."""
    units = text.encode("utf-16-le")
    parts = [
        units[at : at + 2 * size].decode("utf-16-le", "surrogatepass")
        for at in range(0, len(units), 2 * size)
    ]
    found = [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": part}) for part in parts),
    ]
    found.append(chunk({}, finish="stop"))
    if usage is not None:
        found.append(chunk(None, usage=usage))
    out = []
    for one in found:
        value = json.dumps({**one, "id": ident}, ensure_ascii=escaped)
        out.append(b"data: " + value.encode() + (newline * 2).encode())
    return [*out, b"data: [DONE]" + (newline * 2).encode()]


def blobs(data, cuts):
    """``data`` as a splitter gives it, segmented at ``cuts``."""
    splitter = sse.Splitter()
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found = [splitter.feed(data[a:b]) for a, b in pairwise(at)]
    return [one for one in [*found, splitter.flush()] if one]


def chunks_of(data):
    found = [sse.data_of(one) for one in sse.split(data)]
    assert found[-1] == b"[DONE]"
    return [json.loads(one) for one in found[:-1]]


@given(
    cut=st.integers(2, len(WHOLE)),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    back=st.integers(0, 80),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    segments=st.lists(st.integers(0, 20_000), max_size=12),
)
def test_every_cut_every_overlap_every_segment(cut, sizes, back, newline, segments):
    first = stream(WHOLE, sizes[0])[:cut]
    said = read(blobs(b"".join(first), segments))
    if said is None or said.finished:
        return  # cut within a character, or behind the end
    assert WHOLE.startswith(said.text)
    assert said.pieces == max(0, len(first) - 1)
    shown = said.text.rstrip()
    back = 0 if back < 4 else back
    second = stream(WHOLE[max(0, len(shown) - back) :], sizes[1], ident="other", newline=newline)
    seam = Seam(said.text, exact=back == 0, trimmed=True)
    splicer = Splicer(said, seam, Tally(said.written))
    out = b"".join(splicer.feed(one) for one in blobs(b"".join(second), segments))
    found = chunks_of(out)
    text = "".join(one["choices"][0]["delta"].get("content") or "" for one in found)
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    assert said.text + text == WHOLE
    assert {one["id"] for one in found} == {"first"}
    assert not any("role" in one["choices"][0]["delta"] for one in found)
    assert [one["choices"][0]["finish_reason"] for one in found][-1] == "stop"
    assert splicer.done


def test_usage_adds_up_and_what_was_repeated_does_not_count():
    said = read([b"".join(stream("one two three four", 5)[:4])])
    told = {
        "prompt_tokens": 23,
        "completion_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 40},
    }
    splicer = Splicer(said, Seam(said.text, exact=False, trimmed=True), Tally(3, None))
    out = splicer.feed(b"".join(stream("one two three four", 3, usage=told)))
    assert splicer.repeated == 3
    assert chunks_of(out)[-1]["usage"] == {
        "prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29, "prompt_tokens_details": {"cached_tokens": 20},
    }  # fmt: skip
    assert splicer.usage({"prompt_tokens": None}) == {"prompt_tokens": None}


def test_thoughts_of_the_second_are_not_told_and_its_calls_are():
    said = read(events(1, finish=None, done=False))
    call = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}
    parts = [event(chunk(delta)) for delta in ({"reasoning_content": "Hm"}, {"content": "x"}, call)]
    splicer = Splicer(said, Seam(said.text, exact=True, trimmed=False), Tally())
    out = splicer.feed(b"".join([*parts, event(chunk({}, finish="tool_calls")), DONE]))
    deltas = [one["choices"][0]["delta"] for one in chunks_of(out)]
    assert deltas == [{"content": "x"}, call, {}]


@pytest.mark.parametrize(
    "bad", [b"data: {\n\n", b"data: [1]\n\n", event({"choices": [1]}), event({"choices": [{}, {}]})]
)
def test_a_chunk_that_is_none(bad):
    said = read(events(1, finish=None, done=False))
    with pytest.raises(Unreadable):
        Splicer(said, Seam(said.text, exact=True, trimmed=False), Tally()).feed(bad)


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0}]},
        {"function_call": {"name": "f"}},
        {"refusal": "No"},
        {"audio": {"id": "a"}},
        {"reasoning": "Hm"},
        {"content": ["part"]},
    ],
)
def test_what_no_text_goes_on_from(delta):
    assert read([event(chunk({"role": "assistant"})), event(chunk(delta))]).beyond


def test_thoughts_that_were_over_are_no_hindrance():
    said = read([event(chunk({"reasoning_content": "Hm"})), event(chunk({"content": "So"}))])
    assert (said.beyond, said.text) == (False, "So")


@pytest.mark.parametrize(
    "blob",
    [
        b": nothing\n\n",
        b"data: {\n\n",
        event(chunk({"content": "a"}, index=1)),
        b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n',
    ],
)
def test_what_cannot_be_read(blob):
    assert read([blob]) is None


@given(st.integers(1, 7), st.integers(1, 5))
def test_a_stop_string_across_the_seam(at, step):
    stop, tail = "STOPHERE", " never sent"
    guard = StopGuard("so far " + stop[:at], ("xx", stop))
    text = stop[at:] + tail
    sent = ""
    for start in range(0, len(text), step):
        sent += guard.feed(text[start : start + step])
        if guard.complete:
            break
    assert (sent, guard.complete) == ("", True)
    other = StopGuard("so far " + stop[:at], (stop,))
    assert other.feed("~go on") + other.flush() == "~go on"


def test_an_ending():
    said = read(events(2, finish=None, done=False))
    found = chunks_of(ending(said, "length", (5, 2)))
    assert found[0]["choices"][0]["finish_reason"] == "length"
    assert found[1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert ending(said, None, None) == DONE


CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "json"}]}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, Keep.ALL),
        ({"stream": False}, Keep.NOTHING),
        ({"n": 2}, Keep.NOTHING),
        ({"response_format": {"type": "text"}}, Keep.ALL),
        ({"response_format": {"type": "json_object"}}, Keep.START),
        ({"logprobs": True}, Keep.START),
        ({"tools": [TOOL]}, Keep.ALL),
        ({"tools": [TOOL], "tool_choice": "auto"}, Keep.ALL),
        ({"tools": [TOOL], "tool_choice": "required"}, Keep.START),
        ({"messages": [*CHAT["messages"], {"role": "assistant", "content": "a"}]}, Keep.START),
    ],
)
def test_what_is_kept_of_chat(fields, kept):
    assert keep(decode_chat(encode({**CHAT, **fields}))) is kept


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, Keep.ALL),
        ({"prompt": ["a", "b"]}, Keep.NOTHING),
        ({"prompt": [1, 2]}, Keep.START),
        ({"echo": True}, Keep.START),
        ({"logprobs": 1}, Keep.START),
        ({"suffix": "b"}, Keep.START),
    ],
)
def test_what_is_kept_of_completions(fields, kept):
    assert (
        keep(decode_completion(encode({"model": "m", "stream": True, "prompt": "a", **fields})))
        is kept
    )


def test_the_request_for_the_rest():
    body = encode({**CHAT, "max_completion_tokens": 9, "top_k": 3})
    request, new = rest(decode_chat(body, ("top_k",)), body, "so far", 4)
    assert request.max_completion_tokens == 5
    assert json.loads(new) == {**CHAT, "max_completion_tokens": 5, "top_k": 3}
    older = encode({"model": "m", "stream": True, "prompt": "a"})
    request, new = rest(decode_completion(older), older, " b", 1)
    assert (request.prompt, request.max_tokens) == ("a b", 15)
    assert json.loads(new) == {"model": "m", "stream": True, "prompt": "a b", "max_tokens": 15}


@pytest.mark.parametrize("form", ["continue_final_message", "prefix", "message"])
def test_how_a_provider_is_asked(form):
    asked = json.loads(with_beginning(encode(CHAT), 'so "far"', form))
    last = {"role": "assistant", "content": 'so "far"'}
    assert asked["messages"] == [
        *CHAT["messages"],
        {**last, "prefix": True} if form == "prefix" else last,
    ]
    assert asked.get("continue_final_message") is (
        True if form == "continue_final_message" else None
    )
    assert asked.get("add_generation_prompt") is (
        False if form == "continue_final_message" else None
    )
