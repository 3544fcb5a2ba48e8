from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.wire.alike import UNREADABLE, form_of, is_text, unlike
from router.wire.record import FOLD, Record

texts = st.lists(st.text(max_size=6), min_size=1, max_size=40)
wrong = st.sampled_from(
    [
        b'a"', b"\\", b'","b":"c', b'"},"error":{"message":"no', b"\xe2\x82", b"\\u12", b"\\ud83d", b"a\nb", b"\x00",
        b'x\\","y":"\\', b'"', b"\n\ndata: {", b'\\\\"', b"\\x",
    ]
)  # fmt: skip


def event(inside: bytes, *, key: str = "content", spaced: bool = False) -> bytes:
    space = b" " if spaced else b""
    return b'{"id":"x","choices":[{"delta":{"%b":%b"%b"},"finish_reason":null}],"usage":null}' % (
        key.encode(), space, inside,
    )  # fmt: skip


def inside(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()[1:-1]


def good(one: bytes) -> bool:
    """What the strict way says of one event."""
    try:
        found = json.loads(one)
    except ValueError:
        return False
    return isinstance(found, dict) and "error" not in found and b"\n" not in one


@given(
    st.text(max_size=9), st.sampled_from(["content", "reasoning_content", "text"]), st.booleans()
)
def test_a_form_stands_around_the_text(text, key, spaced):
    one = event(inside(text), key=key, spaced=spaced)
    form = form_of(one)
    if "\\" in inside(text).decode():
        assert form is None
    else:
        assert form.head + inside(text) + form.tail == one
        assert json.loads(one[form.quoted]) == text


def test_no_form_without_a_text():
    for one in (
        b"",
        b"{}",
        event(b"x", key="arguments"),
        b'{"content":"',
        b'{"content":null,"role":"x"}',
    ):
        assert form_of(one) is None


@given(texts, st.lists(st.tuples(st.integers(0, 40), wrong), max_size=3))
@example(["a"] * 20, [(3, b"\\"), (4, b",")])
@example(["a"] * 20, [(3, b'a\\"'), (5, b'"')])
@settings(max_examples=400)
def test_what_is_left_out_is_good_where_what_is_left_is(said, bad):
    insides = [inside(text) for text in said]
    for at, one in bad:
        insides.insert(at, one)
    events = [b'{"role":"x"}', *map(event, insides), b'{"usage":{}}']
    left = unlike(events, b"".join(events))
    assert set(left) <= set(events)
    if all(map(good, left)):
        assert all(map(good, events))
    if not bad and not any(b"\\" in one for one in insides[:1]):
        assert len(left) <= 3


@given(st.binary(max_size=12))
def test_an_event_of_a_form_is_good_by_its_text(raw):
    form = form_of(event(b"x"))
    one = form.head + raw + form.tail
    try:
        is_text(one[form.quoted])
    except UNREADABLE:
        return
    assert good(one)


@given(
    st.lists(
        st.one_of(st.binary(min_size=1, max_size=9), st.tuples(st.booleans(), texts)), max_size=9
    ),
    st.integers(0, 400),
)
def test_a_record_gives_back_or_drops_all(said, limit):
    dropped: list[bytes] = []
    record, told = Record(limit, dropped.append), b""
    for one in said:
        if isinstance(one, bytes):
            record.add(one)
            told += one
            continue
        head, tail = (b"<", b">\n\n") if one[0] else (b"[[", b"]")
        record.begin(head, tail)
        for text in one[1]:
            quoted = json.dumps(text).encode()
            record.texts.append(quoted)
            if len(record.texts) == FOLD:
                record.fold()
            told += head + quoted + tail
    assert record.whole == (len(told) <= limit)
    assert b"".join(dropped) + b"".join(record) == told
    assert bool(dropped) <= (not record.whole)
