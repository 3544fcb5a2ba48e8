from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from router.backends.base import Facts
from router.backends.http.relay import Relay
from router.errors import Fault, FaultKind
from router.wire import sse
from router.wire.record import Record
from tests import upstream as up


def relayed(
    data: bytes,
    pieces: up.Segments = up.whole,
    *,
    hide: bool = False,
    n: int = 1,
    cut: Fault | None = None,
) -> tuple[bytes, Fault | None, Facts]:
    relay = Relay(hide_usage=hide, choices=n)
    out = b""
    for piece in pieces(data):
        blob = relay.feed(piece)
        if not out and blob:
            assert sse.has_data(blob)
        out += blob
    out += relay.end(cut)
    facts = Facts()
    relay.note(facts)
    assert relay.done == (relay.fault is None)
    assert out.endswith(sse.DONE) == relay.done
    return out, relay.fault, facts


SEGMENTS = [up.whole, up.by_byte, up.at_random(3), up.at_random(4, 200)]


@pytest.mark.parametrize("pieces", SEGMENTS)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("usage", ["chunk", "last", "every", "groq"])
def test_a_stream_passes_untouched_and_its_usage_is_read(
    pieces: up.Segments, newline: bytes, usage: str
) -> None:
    data = b"".join(up.events(5, usage=usage))
    out, fault, facts = relayed(data.replace(b"\n", newline), pieces)
    assert (out, fault) == (data, None)
    assert facts.finished
    assert (facts.input_tokens, facts.output_tokens, facts.cached_input_tokens) == (10, 3, 4)


@pytest.mark.parametrize("pieces", SEGMENTS)
def test_usage_that_nobody_asked_for_is_hidden(pieces: up.Segments) -> None:
    out, _, facts = relayed(b"".join(up.events(5, usage="chunk")), pieces, hide=True)
    assert out == b"".join(up.events(5))
    assert facts.input_tokens == 10


def test_hidden_usage_with_spaces() -> None:
    data = b"".join(up.events(2, usage="chunk"))
    spaced = data.replace(b'":', b'": ').replace(b',"', b', "')
    out, _, facts = relayed(spaced, hide=True)
    plain = b"".join(up.events(2)).replace(b'":', b'": ').replace(b',"', b', "')
    assert out == plain
    assert facts.output_tokens == 3


def test_deepseeks_cached_tokens() -> None:
    last = up.chunk({}, finish="stop", usage={"prompt_tokens": 9, "prompt_cache_hit_tokens": 8})
    _, _, facts = relayed(up.event(last) + up.DONE)
    assert (facts.input_tokens, facts.cached_input_tokens, facts.output_tokens) == (9, 8, None)


def test_nothing_in_a_text_is_taken_for_structure() -> None:
    texts = [
        ',"usage":null', '"choices":[]', "data: [DONE]\n\n", '{"error": {"message": "no"}}', "}\n\ndata: {",
        '"finish_reason":"stop"', "event: error", "\u00e9\u4e2d\U0001f600", '\\"error\\"',
    ]  # fmt: skip
    data = b"".join(up.events(texts=texts, usage="chunk"))
    for pieces in SEGMENTS:
        out, fault, _ = relayed(data, pieces, hide=True)
        assert fault is None
        assert out == b"".join(up.events(texts=texts))


def test_azures_first_chunk_stays() -> None:
    first = up.event({"id": "", "choices": [], "prompt_filter_results": [{}]})
    data = first + b"".join(up.events(1, usage="chunk"))
    out, _, _ = relayed(data, hide=True)
    assert out == first + b"".join(up.events(1))


@pytest.mark.parametrize("pieces", SEGMENTS)
def test_comments_before_the_first_data_are_dropped(pieces: up.Segments) -> None:
    data = b"".join(up.events(2))
    out, _, _ = relayed(b"\xef\xbb\xbf: hi\n\n: again\n\nretry: 5\n\n" + data, pieces)
    assert out == data


def test_later_comments_pass_and_are_not_heard() -> None:
    relay = Relay(hide_usage=False)
    relay.feed(b": one\n\n")
    assert not relay.heard
    relay.feed(up.events(1)[0])
    assert relay.heard
    assert relay.feed(b": two\n\n") == b": two\n\n"
    assert not relay.heard


@pytest.mark.parametrize("pieces", SEGMENTS)
def test_odd_but_good_events(pieces: up.Segments) -> None:
    data = (
        b'data:{"choices":[{"delta":{}}]}\n\n'
        b'id: 3\nevent: message\ndata: {"choices":[{"delta":{},\ndata: "finish_reason":"stop"}]}\n\n'
        b'data: {"error":null,"choices":[]}\n\n\n\ndata: \n\n'
        b"data:[DONE]\n\n"
    )
    out, fault, facts = relayed(data, pieces)
    assert fault is None
    assert facts.finished
    assert len(sse.split(out)) == 4


@pytest.mark.parametrize("pieces", SEGMENTS)
@pytest.mark.parametrize(
    "bad",
    [
        b'data: {"choices":[{"del\n\n', b"data: <html>\n\n", b"data: null\n\n", b'data: ["x"]\n\n',
        b"{broken\n\n", b'data: {"a":1}{\n\n', b'data: {"choices":[{"delta":{"content":"x"}\n\n',
        b'data: {"choices":[{"delta":{"content":"x}"}}}\n\n', b"data: {choices}\n\n",
        b'data: {"a":1},{"b":2}\n\n', b'data: {"a":[{"b":1}\n\ndata: {"c":2}]}\n\n', b'data: {"a":\n1}\n\n',
        b'data: {"a":1},7,{"b":[{"c":1}\n\ndata: {"d":2}]}\n\n', b'data: {"a":1}}\n\ndata: {{"b":2}\n\n',
        b"dat\n\n", b"data\n\n", b"id: 3\nda\n\n", b'ata: {"choices":[]}\n\n', b'\x00\xff\ndata: {"choices":[]}\n\n',
    ],
)  # fmt: skip
def test_a_malformed_chunk_is_never_passed_on(pieces: up.Segments, bad: bytes) -> None:
    good = b"".join(up.events(2, finish=None, done=False))
    out, fault, _ = relayed(good + bad + b"".join(up.events(2)), pieces)
    assert out == good
    assert fault is not None
    assert fault.kind is FaultKind.MALFORMED


@pytest.mark.parametrize("pieces", SEGMENTS)
@pytest.mark.parametrize(
    "shape",
    [b"data: %b\n\n", b"event: error\ndata: %b\n\n", b"data:%b\n\n", b"%b\n\n"],
)
def test_an_error_event(pieces: up.Segments, shape: bytes) -> None:
    bad = shape % up.error_body("Overloaded.", code="rate_limit_exceeded")
    out, fault, _ = relayed(bad, pieces)
    assert (out, fault and fault.kind) == (b"", FaultKind.RATE_LIMITED)
    good = b"".join(up.events(2, finish=None, done=False))
    out, fault, _ = relayed(good + bad, pieces)
    assert (out, fault and fault.kind) == (good, FaultKind.SERVER_ERROR)
    assert fault is not None
    assert "Overloaded." in fault.message


def test_an_error_event_that_says_so_only_in_its_name() -> None:
    _, fault, _ = relayed(b'event: error\ndata: {"message":"m","type":"overloaded_error"}\n\n')
    assert fault is not None
    assert fault.kind is FaultKind.SERVER_ERROR


@pytest.mark.parametrize("pieces", SEGMENTS)
@pytest.mark.parametrize("cut", [None, Fault(FaultKind.CUT, "x")])
def test_no_done(pieces: up.Segments, cut: Fault | None) -> None:
    finished = b"".join(up.events(2, done=False))
    out, fault, facts = relayed(finished, pieces, cut=cut)
    assert (out, fault) == (finished + sse.DONE, None)
    assert facts.finished
    unfinished = b"".join(up.events(2, done=False, finish=None))
    out, fault, facts = relayed(unfinished, pieces, cut=cut)
    assert (out, fault and fault.kind) == (unfinished, FaultKind.CUT)
    assert not facts.finished


@pytest.mark.parametrize("pieces", SEGMENTS)
def test_done_without_a_finish_is_no_end(pieces: up.Segments) -> None:
    data = b"".join(up.events(2, finish=None, done=False))
    out, fault, facts = relayed(data + up.DONE, pieces)
    assert (out, fault and fault.kind) == (data, FaultKind.CUT)
    assert not facts.finished


@pytest.mark.parametrize("pieces", SEGMENTS)
def test_a_finish_is_seen_however_it_is_spaced_and_whatever_comes_behind(
    pieces: up.Segments,
) -> None:
    finish = up.event(up.chunk({}, finish="stop")).replace(b'":', b'" :  ')
    verdicts = up.event(up.chunk({}, content_filter_offsets={"start": 0})) * 40
    data = b"".join(up.events(2, finish=None, done=False)) + finish + verdicts + up.DONE
    assert relayed(data, pieces)[:2] == (data, None)


@pytest.mark.parametrize("pieces", SEGMENTS)
@pytest.mark.parametrize("bad", [b"data: [DO\n\n", b"data: " + up.error_body() + b"\n\n"])
def test_what_goes_wrong_behind_the_finish_costs_nobody_the_answer(
    pieces: up.Segments, bad: bytes
) -> None:
    data = b"".join(up.events(2, done=False))
    assert relayed(data + bad, pieces)[:2] == (data + up.DONE, None)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_last_event_without_its_blank_line(missing: int) -> None:
    data = b"".join(up.events(2))
    assert relayed(data[:-missing])[:2] == (data, None)


def test_half_an_event_is_never_passed_on() -> None:
    data = b"".join(up.events(2, finish=None, done=False))
    out, fault, _ = relayed(data + up.events(1)[0][:-20])
    assert (out, fault and fault.kind) == (data, FaultKind.CUT)


def test_n_choices_are_finished_when_all_are() -> None:
    one = up.event(up.chunk({}, finish="stop", index=0))
    two = up.event(up.chunk({}, finish="length", index=1))
    content = up.event(up.chunk({"content": "x"}, index=1))
    _, fault, _ = relayed(one + content, n=2)
    assert fault is not None
    assert relayed(one + content + two, n=2)[1] is None
    assert relayed(one + content + two, up.by_byte, n=2)[1] is None


@pytest.mark.parametrize("pieces", SEGMENTS)
def test_what_follows_done_is_ignored(pieces: up.Segments) -> None:
    data = b"".join(up.events(2))
    assert relayed(data + b"".join(up.events(1)), pieces)[:2] == (data, None)


def test_a_stream_of_nothing_is_malformed() -> None:
    _, fault, _ = relayed(b": hi\n\ndata: [DONE]\n\n")
    assert fault is not None
    assert fault.kind is FaultKind.MALFORMED
    _, fault, _ = relayed(up.DONE)
    assert fault is not None
    _, fault, _ = relayed(b"")
    assert fault is not None
    assert fault.kind is FaultKind.CUT


def test_an_endless_event_is_malformed() -> None:
    relay = Relay(hide_usage=False)
    for _ in range(17):
        relay.feed(b"x" * 1024 * 1024)
    assert relay.fault is not None
    assert relay.fault.kind is FaultKind.MALFORMED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["choices", "usage", "x", "id"]), json_values, max_size=3),
        max_size=6,
    ),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
@settings(max_examples=150, deadline=None)
def test_segmentation_never_matters(
    chunks: list[dict[str, object]], seed: int, hide: bool, newline: bytes
) -> None:
    finish = [up.chunk({}, finish="stop")]
    data = b"".join(up.event(chunk) for chunk in [*chunks, *finish]).replace(b"\n", newline)
    data += b"data: [DONE]" + newline * 2
    one, two = relayed(data, hide=hide), relayed(data, up.at_random(seed), hide=hide)
    assert one[0] == two[0]
    assert (one[1] and str(one[1])) == (two[1] and str(two[1]))
    for line in one[0].split(b"\n\n"):
        if line.startswith(b"data: {"):
            json.loads(line[6:])


def relayed_by_event(pieces: list[bytes], *, hide: bool, lessons: int) -> tuple[object, ...]:
    relay, record = Relay(hide_usage=hide), Record(1 << 20)
    relay._lessons = lessons
    relay.record(record)
    out = [(relay.feed(piece), relay.heard) for piece in pieces]
    fed = b"".join(blob for blob, _ in out)
    assert b"".join(record) == fed
    relay.record(None)
    fault, finished = relay.fault, relay.finished
    rest, facts = relay.end(), Facts()
    relay.note(facts)
    ended = relay.done, str(fault), str(relay.fault), finished
    return out, rest, ended, facts.finished, facts.input_tokens, facts.output_tokens, relay.told()


ODD = [
    b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}],"error":{"message":"no"}}\n\n',
    b'data: {"choices":[{"delta":{"content":"a\\"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"b"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
    b": a comment\n\n",
    b"\r\n",
    b"\n",
    b"data: {",
    b"event: error\ndata: {}\n\n",
]


@example(["", "", ""], [(2, ODD[4]), (4, ODD[0])], [], False, 0)  # what came last tells no model
@given(
    st.lists(st.text(max_size=5), min_size=2, max_size=30),
    st.lists(st.tuples(st.integers(0, 32), st.sampled_from(ODD)), max_size=3),
    st.lists(st.tuples(st.integers(0, 31), st.integers(1, 200)), max_size=3),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_what_is_learnt_of_a_stream_changes_nothing(
    texts: list[str],
    odd: list[tuple[int, bytes]],
    splits: list[tuple[int, int]],
    hide: bool,
    joined: int,
) -> None:
    pieces = [up.event(up.chunk({"content": text}) | {"usage": None}) for text in texts]
    pieces += [up.event(up.chunk({}, finish="stop")), ODD[4], up.DONE]
    for at, one in odd:
        pieces.insert(at, one)
    for at, size in splits:
        if at < len(pieces):
            pieces[at : at + 1] = [part for part in (pieces[at][:size], pieces[at][size:]) if part]
    pieces = [b"".join(pieces[at : at + joined + 1]) for at in range(0, len(pieces), joined + 1)]
    learnt = relayed_by_event(pieces, hide=hide, lessons=4)
    assert learnt == relayed_by_event(pieces, hide=hide, lessons=0)


@given(
    st.lists(st.sampled_from(["a", "b ", "é", '"', "\\", "\n"]), min_size=20, max_size=40),
    st.integers(0, 39),
)
@settings(deadline=None)
def test_many_events_at_once_are_checked_as_one_by_one(texts: list[str], at: int) -> None:
    pieces = [up.event(up.chunk({"content": text})) for text in texts]
    for bad in (None, *ODD[:3]):
        data = b"".join(
            [*pieces[:at], bad or b"", *pieces[at:], up.event(up.chunk({}, finish="stop")), up.DONE]
        )
        one, two = relayed(data), relayed(data, up.at_random(at, 50))
        assert one[0] == two[0]
        assert (one[1] is None) == (two[1] is None) == (bad is None)


CUT = [
    b"\n", b"\r\n", b": hi\n\n", b'data: {"error":{"message":"no"}}\n\n', b'data: {"a":1}', b'data: {"a":[',
    b'data: {"choices":[{"delta":{"content":"x', b'"}}]}\n\n', b"data: [DONE]\n\n", b"data: [DO", b'{"b":2}\n\n',
    b"}\n\n", up.event(up.chunk({"content": "x"})) * 2, up.event(up.chunk({"content": '"'})),
    up.event(up.chunk({}, finish="stop")), up.event(up.chunk({"content": "x"}))[:-1],
    up.event(up.chunk({"content": "x"})).replace(b'"x"', b'"\\"'),
    up.event({"error": {"message": "no" * 200}}), b'data: {"a":"' + b"x" * 400 + b"\n\n", b"x" * 400,
]  # fmt: skip


def ended(data: bytes, pieces: list[bytes] | None, *, hide: bool) -> list[object]:
    relay = Relay(hide_usage=hide)
    out = relay.feed(data) if pieces is None else relay.feed_all(pieces)
    heard, out = relay.heard, out + relay.end()
    facts = Facts()
    relay.note(facts)
    return [out, heard, relay.fault and str(relay.fault), relay.done, asdict(facts)]


@given(
    st.lists(st.text(max_size=3), min_size=17, max_size=24),
    st.lists(st.tuples(st.integers(0, 26), st.sampled_from(CUT)), max_size=3),
    st.lists(st.integers(0, 4000), max_size=3),
    st.booleans(),
)
@example(["a"] * 20, [(1, CUT[11])], [], False)
@example(["a"] * 20, [(1, CUT[12]), (2, CUT[12])], [], False)
@example(["a"] * 20, [(0, CUT[5])], [], False)
@example(["a"] * 20, [(5, CUT[-3])], [], False)
@example(["a"] * 20, [(5, CUT[-2])], [], False)
@example(["a"] * 20, [(5, CUT[-1])], [], False)
@example(["a"] * 20, [(0, CUT[6]), (19, CUT[7])], [], True)
@settings(max_examples=300, deadline=None)
def test_how_a_framing_cuts_never_matters(texts, odd, cuts, hide) -> None:
    pieces = up.events(texts=texts, usage="chunk")
    for at, one in odd:
        pieces.insert(at, one)
    data = b"".join(pieces)
    for size in cuts:  # one piece of it is cut in two, or joined with the next
        at = size % len(pieces)
        if size % 2:
            pieces[at : at + 2] = [b"".join(pieces[at : at + 2])]
        elif half := len(pieces[at]) // 2:
            pieces[at : at + 1] = [pieces[at][:half], pieces[at][half:]]
    assert ended(data, pieces, hide=hide) == ended(data, None, hide=hide)
