"""Whatever the segmentation and the line ends, the same events come out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.sse import EventTooLong, Splitter, data_of, has_data, split

EVENTS = [
    b'data: {"a":1}',
    b": comment",
    'data: {"é":"漢"}'.encode(),
    b"event: x\ndata: 1\ndata: 2",
    b"data: [DONE]",
]
STREAM = b"".join(event + b"\n\n" for event in EVENTS)


def feed(pieces):
    splitter = Splitter()
    blobs = [splitter.feed(piece) for piece in pieces]
    assert all(blob.endswith(b"\n\n") for blob in blobs if blob)
    return b"".join(blobs) + splitter.flush()


def cuts(stream, at):
    edges = [0, *sorted(set(at)), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@given(at=st.lists(st.integers(0, len(STREAM) * 2), max_size=20))
def test_any_segmentation_and_line_end(end, mark, at):
    stream = mark + STREAM.replace(b"\n", end)
    assert split(feed(cuts(stream, [a for a in at if a < len(stream)]))) == EVENTS


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_byte_by_byte(end):
    stream = b"\xef\xbb\xbf" + STREAM.replace(b"\n", end)
    assert split(feed([stream[i : i + 1] for i in range(len(stream))])) == EVENTS


def test_an_event_goes_out_as_soon_as_it_is_whole():
    splitter = Splitter()
    assert splitter.feed(b"data: 1\n") == b""
    assert splitter.feed(b"\ndata: 2") == b"data: 1\n\n"
    assert splitter.flush() == b"data: 2\n\n"


def test_an_endless_event_is_refused():
    splitter = Splitter(max_event_bytes=100)
    with pytest.raises(EventTooLong):
        for _ in range(20):
            splitter.feed(b"data: ..........")


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}", b"{}"), (b"data:{}", b"{}"), (b"data:  {}", b" {}"), (b": hi", None), (b"event: x", None),
        (b"event: x\ndata: 1\ndata:2", b"1\n2"),
    ],
)  # fmt: skip
def test_data_of(event, data):
    assert data_of(event) == data


def test_comments_are_no_data():
    assert not has_data(b": ping\n\n: data: no\n\n")
    assert has_data(b": ping\n\ndata: 1\n\n")
