"""What the events of a stream have alike: nearly all of them differ in one text alone. Pure.

A form is taken from an event that is known to be good, one line of data with a JSON object. It is split at both quotes
of its text: JSON escapes every quote inside a string, so ``content":"`` ends with one that opens a string wherever it
stands in a good event, and the next quote closes it unless a backslash stands before it. So whatever begins and ends
alike and has the inside of a JSON string between is good, too, and has the same keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import msgspec
from msgspec import Struct

_MARKS = (b'content":"', b'content": "', b'"text":"', b'"text": "')
"""What stands before the text: ``content``, ``reasoning_content``, and the older endpoint's."""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoders raise for JSON that is none, or none of the kind."""

is_text = msgspec.json.Decoder(str).decode
"""Raises one of `UNREADABLE` where its argument is no JSON string."""


class Form(Struct, frozen=True):
    """What an event has before and behind its text, both with the text's quote."""

    head: bytes
    tail: bytes
    quoted: slice
    """Where the text stands in an event of this form, with its quotes."""


def form_of(event: bytes) -> Form | None:
    """The form of ``event``, which is good; None where it has no text, or one that doesn't show where it ends."""
    for mark in _MARKS:
        at = event.rfind(mark)
        if at >= 0:
            at += len(mark)
            quote = event.find(b'"', at)
            if quote < 0 or event.find(b"\\", at, quote) >= 0:
                return None
            tail = event[quote:]
            return Form(event[:at], tail, slice(at - 1, 1 - len(tail) or None))
    return None


def unlike(events: Sequence[bytes], joined: bytes) -> Sequence[bytes]:
    """Those of ``events`` that must be looked at: if they are good, the others are, too. ``joined``: all of them."""
    form = form_of(events[1]) if len(events) > 2 else None
    if form is None:
        return events
    head, tail = form.head, form.tail
    end = len(events)
    while end > 2 and not (events[end - 1].startswith(head) and events[end - 1].endswith(tail)):
        end -= 1
    texts = list(map(itemgetter(slice(len(head), -len(tail))), events[1:end]))
    # What is put together again from the form and the texts is what came: each event is of this form. The first begins
    # and the last ends like it, so what is from the first text to the last has to be compared.
    start = len(events[0]) + len(head)
    stop = len(joined) - sum(map(len, events[end:])) - len(tail)
    between = (tail + head).join(texts)
    if len(between) != stop - start or not joined.startswith(between, start):
        return events
    try:
        # With spaces between, what isn't whole in one text is wrong: an escape, a character, a string's end.
        is_text(b'"%b"' % b" ".join(texts))
    except UNREADABLE:
        return events
    return [*events[:2], *events[end:]]
