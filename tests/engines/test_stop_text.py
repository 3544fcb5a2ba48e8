"""Stop strings against the obvious way: the whole answer, cut at the first one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.base import TokenLogprob
from engines.stop_text import StopText

LETTERS = st.text("ab¢", max_size=12)
STOPS = st.lists(st.text("ab¢", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple)


def token(text):
    return TokenLogprob(text, -1.0, tuple(text.encode()))


def run(pieces, stops):
    """Feed the pieces; returns text, tokens and whether it stopped."""
    stop = StopText(stops)
    text, tokens = "", []
    for piece in pieces:
        kept = stop.feed(piece, (token(piece),))
        text += kept.text
        tokens += kept.tokens
        assert not any(s in text for s in stops)
    if not stop.stopped:
        kept = stop.flush()
        text += kept.text
        tokens += kept.tokens
    return text, tokens, stop.stopped


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_however_it_is_cut_it_ends_at_the_first_stop_string_to_complete(pieces, stops):
    text, tokens, stopped = run(pieces, stops)
    whole = "".join(pieces)
    assert whole.startswith(text)
    assert stopped == any(stop in whole for stop in stops)
    if not stopped:
        assert text == whole
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == text


@given(st.text("ab¢", max_size=30), STOPS, st.data())
def test_one_letter_at_a_time_and_all_at_once_agree_where_no_stop_string_holds_another(
    whole, stops, data
):
    stops = tuple(s for s in stops if not any(s in other for other in stops if other != s))[:1]
    if not stops:
        return
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = whole.split(stops[0])[0]
    assert run(pieces, stops)[0] == run(list(whole), stops)[0] == expected


def test_a_token_that_the_stop_string_begins_within_is_kept_up_to_there():
    text, tokens, stopped = run(["The", " capital", " of"], ("tal o",))
    assert (text, stopped) == ("The capi", True)
    assert [t.token for t in tokens] == ["The", " capi"]


def test_nothing_comes_after_a_stop_string():
    stop = StopText(("x",))
    assert stop.feed("ax").text == "a"
    assert stop.feed("b").text == ""
