"""Where two halves of an answer meet: nothing twice, nothing lost, nothing of another answer."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from router.wire.seam import Diverges, Seam, overlap

WORDS = [f"w{i}x{i * 7919 % 997}" for i in range(60)]
"""All different, so that no end of a text is one of its beginnings by chance."""
TEXT = " ".join(WORDS)


def met(said, text, *, exact=False, trimmed=False, step=1):
    """What is written after ``said`` where ``text`` comes in pieces of ``step`` characters."""
    seam = Seam(said, exact=exact, trimmed=trimmed)
    for end in range(step, len(text) + step, step):
        cut = seam.judge(text[:end], ended=end >= len(text))
        if cut is not None:
            return said + text[cut:]
    return said


@given(st.text(max_size=40), st.text(max_size=40), st.integers(1, 9))
def test_who_goes_on_exactly_loses_nothing(said, rest, step):
    assert met(said, rest, exact=True, step=step) == said + rest


@given(st.integers(20, len(TEXT) - 20), st.integers(1, 40))
def test_who_goes_on_from_the_trimmed_text_is_joined(at, step):
    said = TEXT[:at]
    rest = TEXT[len(said.rstrip()) :]
    assert met(said, rest, trimmed=True, step=step) == TEXT


@given(st.integers(20, len(TEXT) - 20), st.integers(4, 400), st.integers(1, 40))
def test_a_repeated_end_is_left_out_however_long(at, size, step):
    said = TEXT[:at]
    shown = said.rstrip()
    rest = TEXT[max(0, len(shown) - size) :]
    assert met(said, rest, trimmed=True, step=step) == TEXT


@given(st.integers(1, len(TEXT) - 1), st.integers(1, 40))
def test_an_answer_begun_anew_is_left_out_as_far_as_it_was_said(at, step):
    assert met(TEXT[:at], TEXT, trimmed=True, step=step) == TEXT


@given(st.integers(20, len(TEXT) - 1), st.integers(16, 200), st.integers(1, 40))
def test_one_begun_anew_that_goes_another_way_is_no_rest(at, same, step):
    assume(same < at - 1)
    with pytest.raises(Diverges):
        met(TEXT[:at], TEXT[:same] + "~ and so on, quite differently", trimmed=True, step=step)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("the quick brown", "Sure! Here is"),
        ("the quick ", "Sure"),
        ("It ended.", "The end"),
        ("first, ", "# Title"),
        ("a list:", "**Item**"),
    ],
)
def test_a_capital_where_no_sentence_begins_is_another_answer(said, text):
    with pytest.raises(Diverges):
        met(said, text, trimmed=True)


@pytest.mark.parametrize(
    ("said", "text", "whole"),
    [
        ("hel", "lo", "hello"),
        ("ha ha ha", " ha ha!", "ha ha ha ha ha!"),
        ("-----", "----|", "---------|"),
        ("the US", "A is", "the USA is"),
        ("see (", "Note", "see (Note"),
        ("It ended.", " The end", "It ended. The end"),
        ("a\n\n", "\n\nThen", "a\n\nThen"),
        ("a\n", "\n    b", "a\n    b"),
        ("a ", "b", "a b"),
        ("a\n", " b", "a\nb"),
        ("  ", "Hello", "  Hello"),
        ("done", "", "done"),
    ],
)
def test_seams(said, text, whole):
    assert met(said, text, trimmed=True) == whole


@given(st.text("ab ", max_size=12), st.text("ab ", max_size=12))
def test_the_longest_overlap(said, text):
    sizes = range(min(len(said), len(text)) + 1)
    assert overlap(said, text) == max(k for k in sizes if said.endswith(text[:k]))


def test_a_long_text_is_judged_in_little_time():
    """A quadratic search would run for minutes."""
    said = "ab" * 100_000 + "c"
    assert met(said, said + " and more", step=len(said) + 1) == said + " and more"
