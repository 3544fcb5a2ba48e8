"""A provider's event stream as its client gets it: whole events, checked at their edges, otherwise as they came.

Every event is checked to be a JSON object, by a decoder that keeps nothing and stumbles over an ``error``, which costs
no more than looking for its edges would; the events of one blob are checked as one array. The common blob, one-line
events without an error, is passed on as it is; anything else goes through `Relay._sort`, event by event. What else the
router must see is found by searching bytes from the end, which is safe because JSON escapes every quote inside a
string: ``"usage"`` between bare quotes is always a key or a whole value. Usage is decoded once, from the last blobs.

It waits for nothing and knows no clock.

Source: WHATWG HTML 9.2.6 (event streams); the shapes were read in recorded answers of eleven providers.
"""

from __future__ import annotations

import re
import secrets as randomness
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from router.backends.base import Facts
from router.backends.http import refusal
from router.errors import Fault, FaultKind
from router.wire import sse
from router.wire.alike import UNREADABLE, Form, form_of, is_text, unlike
from router.wire.record import FOLD, Around, Record

LESSONS = 4
"""How often a stream's form is learnt: it has one after its first event, another where it thought before it spoke."""

MANY = 16
"""Events from which on it pays to look whether they are alike."""

TAIL_BLOBS = 64
"""The finish_reason and the usage are in the last chunk with text or in the two behind it, and a blob holds at least
one chunk; the others are for what some providers add, such as Azure the verdicts of a filter that runs behind."""

_NO_ERROR = frozenset({b"", b"null", b"false", b"{}", b'""'})
"""Values of an ``error`` key that clients take for none, as the SDKs do."""

_FIELDS = (b"data:", b":", b"event:", b"id:", b"retry:")
"""How the lines of an event begin; clients would pass over one that begins otherwise, but it is a torn one."""

_NO_CHOICES = (b'"choices":[]', b'"choices": []')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')


class Details(Struct, frozen=True):
    """OpenAI's place for tokens that came from a cache."""

    cached_tokens: int | None = None


class Thoughts(Struct, frozen=True):
    """OpenAI's place for tokens that a model thought with."""

    reasoning_tokens: int | None = None


class Usage(Struct, frozen=True):
    """Tokens as providers count them; DeepSeek has its own name for the cached ones."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Thoughts | None = None
    prompt_cache_hit_tokens: int | None = None

    def note(self, facts: Facts) -> None:
        """Write what is known into ``facts``."""
        facts.input_tokens = self.prompt_tokens
        facts.output_tokens = self.completion_tokens
        details = self.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        if cached is None:
            cached = self.prompt_cache_hit_tokens
        if cached is not None:
            facts.cached_input_tokens = cached
        thoughts = self.completion_tokens_details
        if thoughts is not None:
            facts.reasoning_tokens = thoughts.reasoning_tokens


class _Groq(Struct, frozen=True):
    usage: Usage | None = None


class _Choice(Struct, frozen=True):
    index: int = 0
    finish_reason: str | None = None


class Author(Struct, frozen=True):
    """Who wrote a chunk or a whole answer, and why its choices ended."""

    model: str | None = None
    choices: list[_Choice] | None = None

    @property
    def reasons(self) -> dict[int, str]:
        """By choice."""
        choices = self.choices or ()
        return {one.index: one.finish_reason for one in choices if one.finish_reason is not None}


class _Chunk(Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    x_groq: _Groq | None = None


_NO_KEY = Raw()


class _Error(Struct, frozen=True, gc=False):
    error: Raw = _NO_KEY  # msgspec reads Raw | None as null alone.


class _Plain(Struct, frozen=True, gc=False):
    """An event that isn't decoded any further; one with an error is none."""

    error: None = None


_MARK = randomness.randbits(62)
"""Stands between two events where many are checked as one array. Nobody outside can know it: events that are no objects
by themselves, but would be one with what follows, can't pretend to be two."""

_BETWEEN = b"}\n\ndata: {"
_MARKED = b"},%d,{" % _MARK

_chunks = msgspec.json.Decoder(_Chunk)
_authors = msgspec.json.Decoder(Author)
_plain_one = msgspec.json.Decoder(_Plain)
_plain_many = msgspec.json.Decoder(list[_Plain | Literal[_MARK]])  # type: ignore[valid-type]
_errors = msgspec.json.Decoder(_Error)


class Relay:
    """One stream. `feed` and `end` give what the client gets; `fault` is what comes after it."""

    __slots__ = (
        "_choices", "_finished", "_form", "_hide_usage", "_learnt", "_lessons", "_record", "_secrets", "_shown",
        "_splitter", "_tail", "_texts", "done", "fault", "heard", "started",
    )  # fmt: skip

    def __init__(
        self, *, hide_usage: bool, choices: int = 1, secrets: tuple[str, ...] = ()
    ) -> None:
        """``hide_usage``: the client did not ask for it, the router did. ``choices``: the request's n."""
        self._splitter = sse.Splitter()
        self._hide_usage = hide_usage
        self._choices = choices
        self._secrets = secrets
        self._finished: frozenset[int] = frozenset()
        self._learnt: Form | None = None
        """Of the events with text; None behind the answer's finish."""
        self._form: Form | None = None
        """The same where what comes next begins a line: an event of it is good, and tells nothing but its text."""
        self._shown: Around | None = None
        """What the client gets around the texts; None: all that came."""
        self._lessons = LESSONS if choices == 1 else 0
        self._record: Record | None = None
        self._texts: list[bytes] | None = None
        """The record's."""
        self._tail: list[bytes] = []
        """The last `TAIL_BLOBS` blobs with data that are of no form, or some more."""
        self.heard = False
        """The last call saw a data event; comments are none."""
        self.started = False
        """A data event has been seen."""
        self.done = False
        """The answer is whole, the last blob ended with [DONE]."""
        self.fault: Fault | None = None

    @property
    def ended(self) -> bool:
        """Nothing more will come of it: `done`, or a `fault`."""
        return self.done or self.fault is not None

    @property
    def finished(self) -> bool:
        """Every choice has its finish_reason. Of a single one it stands near the end; several end anywhere."""
        if self._choices > 1:
            return len(self._finished) >= self._choices
        return any(map(_has_finish, reversed(self._tail)))

    def feed(self, data: bytes) -> bytes:
        """What the client gets of ``data``: whole events, or ``b""``. After `done` or `fault`: nothing."""
        form = self._form
        if form is not None and data.startswith(form.head) and data.endswith(form.tail):
            text = data[form.quoted]
            try:
                is_text(text)
            except UNREADABLE:
                pass
            else:
                self.heard = True
                texts = self._texts
                if texts is not None:
                    texts.append(text)
                    if len(texts) == FOLD:
                        assert self._record is not None, "whose texts they are"
                        self._record.fold()
                shown = self._shown
                return data if shown is None else shown[0] + text + shown[1]
        return self._feed(data)

    def record(self, record: Record | None) -> None:
        """Keep what `feed` gives from now on in ``record``; None: no longer."""
        self._record = record
        self._texts = None if record is None else record.texts
        if record is not None and self._learnt is not None:
            record.begin(*self._around(self._learnt))

    def _feed(self, data: bytes) -> bytes:
        """`feed`, of what is not known to be of the stream's form."""
        self.heard = False
        if self.done or self.fault is not None:
            return b""
        splitter = self._splitter
        if splitter.clean and _one_event(data):
            blob = self._note_data(data)
            if self._lessons and len(self._tail) > 1:
                self._learn(data)
        else:
            try:
                blob = splitter.feed(data)
            except sse.EventTooLong:
                self.fault = Fault(FaultKind.MALFORMED, "the provider sent an endless event")
                return b""
            if blob:
                blob = self._pass(blob)
        if self._record is not None and blob:
            self._record.add(blob)
        if self._learnt is not None:
            if self.ended or _has_finish(blob):
                self._learnt = None
            self._form = self._learnt if splitter.clean else None
        return blob

    def end(self, cut: Fault | None = None) -> bytes:
        """The body is over, or was ``cut``. What the client still gets; sets `done` or `fault`."""
        self.heard = False
        if self.ended:
            return b""
        rest = self._splitter.flush()
        data = sse.data_of(rest.strip(b"\n")) if rest else None
        blob = self._pass(rest) if data is not None and _whole(data.strip()) else b""
        return blob if self.done or self.fault is not None else blob + self._close(cut)

    def _close(self, cut: Fault | None) -> bytes:
        """No more is read. Whoever has seen every finish_reason has the whole answer, whatever came after it."""
        if self.finished:
            self.done = True
            return sse.DONE
        if cut is None:
            cut = Fault(FaultKind.CUT, "the provider's stream ended before its answer was whole")
        self.fault = cut
        return b""

    def note(self, facts: Facts) -> None:
        """Write usage and end into ``facts``; for once, after the end."""
        facts.finished = self.done
        for blob in reversed(self._tail):
            usage = _last_usage(blob)
            if usage is not None:
                usage.note(facts)
                return

    def told(self) -> tuple[str | None, tuple[str, ...]]:
        """The model and the choices' finish reasons, by what came last of those that tell them."""
        model: str | None = None
        reasons: dict[int, str] = {}
        for blob in self._tail:
            if model is None or blob is self._tail[-1] or _FINISHED.search(blob):
                for event in sse.split(blob):
                    author = author_of(sse.data_of(event) or b"")
                    model = author.model or model
                    reasons |= author.reasons
        return model, tuple(reasons[index] for index in sorted(reasons))

    def _pass(self, blob: bytes) -> bytes:
        ended = blob.endswith(sse.DONE)
        end = len(blob) - len(sse.DONE) if ended else len(blob)
        if end and _plain(blob, end):
            shown = self._note_data(blob)
            if ended and not self._close(None):
                return shown[: -len(sse.DONE)]
            return shown
        events = blob[:end]
        wrong: Fault | None = None
        if events or not self.started:
            events, ended, wrong = self._sort(blob)
            if sse.has_data(events):
                events = self._note_data(events)
        self.heard = self.heard or ended
        return events + self._close(wrong) if ended or wrong is not None else events

    def _note_data(self, events: bytes) -> bytes:
        self.heard = self.started = True
        if self._choices > 1:
            self._note_finish(events)
        if self._hide_usage and b'"usage"' in events:
            shown = _without_nulls(events)
            if times := shown.count(b'"usage"'):
                self._keep(events)
                return _without_usage(shown, times)
            events = shown
        self._keep(events)  # mostly the very bytes that are kept elsewhere, to go on from
        return events

    def _learn(self, event: bytes) -> None:
        """Take the form of ``event``, which is good, unless it has more to tell than a text."""
        self._lessons -= 1
        form = form_of(event)
        if form is None or _FINISHED.search(event):
            return
        head, tail = _without_nulls(form.head), _without_nulls(form.tail)
        if b'"usage"' in head or b'"usage"' in tail:
            return
        self._learnt = form
        hides = self._hide_usage and len(head) + len(tail) < len(event)
        self._shown = (head[:-1], tail[1:]) if hides else None
        if self._record is not None:
            self._record.begin(*self._around(form))

    def _around(self, form: Form) -> Around:
        """What the client gets around the texts of events of ``form``."""
        return self._shown or (form.head[:-1], form.tail[1:])

    def _keep(self, events: bytes) -> None:
        self._tail.append(events)
        if len(self._tail) > 2 * TAIL_BLOBS:
            del self._tail[:-TAIL_BLOBS]

    def _note_finish(self, events: bytes) -> None:
        for event in sse.split(events):
            chunk = _decode(event) if _FINISHED.search(event) else None
            for choice in chunk.choices or () if chunk is not None else ():
                if choice.finish_reason is not None:
                    self._finished |= {choice.index}

    def _sort(self, blob: bytes) -> tuple[bytes, bool, Fault | None]:
        """The good events of a blob that isn't plain, whether [DONE] ended them, and what was wrong with the next."""
        good: list[bytes] = []
        started = self.started
        for event in sse.split(blob):
            data = sse.data_of(event)
            text = data.strip() if data is not None else None
            if text == b"[DONE]":
                if started:
                    return _joined(good), True, None
                empty = Fault(FaultKind.MALFORMED, "the provider's stream has no answer in it")
                return _joined(good), False, empty
            wrong = self._wrong(event, text, started=started)
            if wrong is not None:
                return _joined(good), False, wrong
            if text or (text is None and started):
                good.append(event.strip(b"\n"))
            started = started or bool(text)
        return _joined(good), False, None

    def _wrong(self, event: bytes, text: bytes | None, *, started: bool) -> Fault | None:
        proper = all(line.startswith(_FIELDS) for line in event.strip(b"\n").split(b"\n"))
        if text is None:
            if proper:
                return None
            text = event.strip()
        elif text:
            proper = proper and _whole(text)
        is_error = event.startswith(b"event: error") or b"\nevent: error" in event
        if is_error or b'"error"' in text:
            fault = self._error_in(text, always=is_error, started=started)
            if fault is not None:
                return fault
        return (
            None
            if proper
            else Fault(FaultKind.MALFORMED, "the provider sent a chunk that is no JSON object")
        )

    def _error_in(self, text: bytes, *, always: bool, started: bool) -> Fault | None:
        try:
            error = bytes(_errors.decode(text).error)
        except msgspec.MsgspecError:
            error = b""
        if not always and error in _NO_ERROR:
            return None
        return refusal.in_answer(text, started=started, secrets=self._secrets)


def author_of(data: bytes) -> Author:
    """Who wrote it; an empty one where that can't be read."""
    try:
        return _authors.decode(data)
    except UNREADABLE:
        return Author()


def _one_event(data: bytes) -> bool:
    """Whether it is one line of data, with a JSON object in it and no error, and a blank line."""
    end = len(data) - 2
    if data.find(b"\n") != end or data.find(b"\r") >= 0 or not data.startswith(b"data: "):
        return False
    try:
        _plain_one.decode(data[6:end])
    except UNREADABLE:
        return False
    return data.endswith(b"\n")


def _plain(blob: bytes, end: int) -> bool:
    """Whether each event before ``end`` is one line of data with a JSON object in it, and no error."""
    if not blob.startswith(b"data: {") or not blob.endswith(b"}\n\n", 0, end):
        return False
    try:
        objects = blob[7 : end - 3].split(_BETWEEN)
        if len(objects) >= MANY:
            objects = unlike(objects)
        array = b"[{%b}]" % _MARKED.join(objects)
        found = _plain_many.decode(array)
    except UNREADABLE:
        return False
    # All marks are where they belong, so each object is one by itself; a line end that is left is inside of an event.
    marks = len(objects) - 1
    return len(found) == 2 * marks + 1 and found[1::2] == [_MARK] * marks and b"\n" not in array


def _whole(data: bytes) -> bool:
    """Whether it is [DONE] or a JSON object."""
    if data == b"[DONE]":
        return True
    try:
        _errors.decode(data)
    except UNREADABLE:
        return False
    return True


def _has_finish(blob: bytes) -> bool:
    at = len(blob)
    while (at := blob.rfind(b'"finish_reason"', 0, at)) >= 0:
        if _FINISHED.match(blob, at):
            return True
    return False


def _joined(events: list[bytes]) -> bytes:
    return b"\n\n".join([*events, b""]) if events else b""


def _decode(event: bytes) -> _Chunk | None:
    data = sse.data_of(event)
    if data is None:
        return None
    try:
        return _chunks.decode(data)
    except msgspec.MsgspecError:
        return None


def _around(blob: bytes, at: int) -> tuple[int, int]:
    start = blob.rfind(b"\n\n", 0, at)
    return (start + 2 if start >= 0 else 0), blob.find(b"\n\n", at) + 2


def _last_usage(blob: bytes) -> Usage | None:
    end = len(blob)
    while (at := blob.rfind(b'"usage"', 0, end)) >= 0:
        start, stop = _around(blob, at)
        chunk = _decode(blob[start : stop - 2])
        if chunk is not None:
            usage = chunk.usage
            if usage is None and chunk.x_groq is not None:
                usage = chunk.x_groq.usage
            if usage is not None:
                return usage
        end = start
    return None


def _without_nulls(events: bytes) -> bytes:
    """``events`` without the null that chunks have for usage where it was asked for."""
    events = b"".join(events.split(b',"usage":null'))  # which reads it once, replace() twice
    if b', "usage": null' in events:
        events = events.replace(b', "usage": null', b"")
    return events


def _without_usage(events: bytes, times: int) -> bytes:
    """``events`` without the chunk that is there for usage alone; ``times``: how often usage stands in them."""
    start = len(events)
    while times > 0:
        at = events.rfind(b'"usage"', 0, start)
        start, stop = _around(events, at)
        times -= events.count(b'"usage"', start, stop)
        event = events[start : stop - 2]
        chunk = _decode(event) if any(mark in event for mark in _NO_CHOICES) else None
        if chunk is not None and chunk.usage is not None and not chunk.choices:
            events = events[:start] + events[stop:]
    return events
