"""Frames survive any content and any segmentation; junk is refused."""

from __future__ import annotations

import typing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import base, protocol

text = st.text(max_size=20)
number = st.integers(0, 2**31)
rate = st.floats(-100, 100)
octets = st.none() | st.lists(st.integers(0, 255), max_size=4).map(tuple)
top = st.builds(base.TopLogprob, text, rate, octets)
logprob = st.builds(base.TokenLogprob, text, rate, octets, st.lists(top, max_size=2).map(tuple))
call = st.builds(base.ToolCallDelta, number, st.none() | text, st.none() | text, text)
delta = st.builds(
    base.Delta, number, text, st.lists(call, max_size=2).map(tuple),
    st.lists(logprob, max_size=2).map(tuple),
)  # fmt: skip
finish = st.builds(base.Finish, number, st.sampled_from(typing.get_args(base.FinishReason)))
event = st.one_of(delta, finish, st.builds(base.Usage, number, number, number))
kind = st.sampled_from(typing.get_args(base.ErrorKind))
health = st.builds(base.Health, number, number, number, number)
info = st.builds(base.EngineInfo, text, text, number, number, number)
sampling = st.builds(
    base.Sampling,
    temperature=st.none() | rate,
    logit_bias=st.none() | st.dictionaries(text, rate, max_size=2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
request = st.builds(
    base.GenerateRequest,
    messages=st.binary(max_size=50),
    sampling=sampling,
    max_tokens=st.none() | number,
    stop=st.lists(text, max_size=4).map(tuple),
    tools=st.none() | st.binary(max_size=20),
)

to_router = st.one_of(
    st.builds(protocol.Loading, st.none() | st.floats(0, 1)),
    st.builds(protocol.Ready, number, info),
    st.builds(protocol.Events, number, st.lists(event, max_size=3).map(tuple)),
    st.builds(protocol.Failed, number, kind, text),
    st.builds(protocol.Status, health, st.booleans()),
)
to_node = st.one_of(
    st.builds(protocol.Hello, number),
    st.builds(protocol.Generate, number, request),
    st.builds(protocol.Cancel, number),
    st.just(protocol.Drain()),
)


def cut(data, points):
    edges = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def read(decoder, pieces):
    return [message for piece in pieces for message in decoder.feed(piece)]


points = st.lists(number, max_size=8)


@given(st.lists(to_router, max_size=4), points)
def test_what_a_node_says_arrives(messages, points):
    pieces = cut(b"".join(map(protocol.encode, messages)), points)
    assert read(protocol.FrameDecoder(protocol.ToRouter), pieces) == messages


@given(st.lists(to_node, max_size=4), points)
def test_what_a_router_says_arrives(messages, points):
    pieces = cut(b"".join(map(protocol.encode, messages)), points)
    assert read(protocol.FrameDecoder(protocol.ToNode), pieces) == messages


@given(st.lists(to_router, min_size=1, max_size=3))
def test_byte_by_byte(messages):
    data = b"".join(map(protocol.encode, messages))
    pieces = [data[at : at + 1] for at in range(len(data))]
    assert read(protocol.FrameDecoder(protocol.ToRouter), pieces) == messages


@given(st.binary(max_size=100))
def test_junk_is_refused_or_waits_for_more(junk):
    decoder = protocol.FrameDecoder(protocol.ToNode)
    try:
        messages = decoder.feed(junk)
    except protocol.FrameError:
        return
    assert all(isinstance(message, typing.get_args(protocol.ToNode)) for message in messages)


def test_a_frame_over_the_limit():
    decoder = protocol.FrameDecoder(protocol.ToNode)
    with pytest.raises(protocol.FrameError, match="over the limit"):
        decoder.feed((protocol.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def test_the_other_direction_is_refused():
    decoder = protocol.FrameDecoder(protocol.ToRouter)
    with pytest.raises(protocol.FrameError, match="not a message"):
        decoder.feed(protocol.encode(protocol.Drain()))
