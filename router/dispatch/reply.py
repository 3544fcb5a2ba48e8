"""An answer on its way to its client: it ends whole, or with an explicit error."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from router.accounts.charge import Charge
from router.backends.base import Answer, Sink
from router.dispatch.recovery import Open, Recovery, room
from router.dispatch.walk import CLIENT_GONE, CLIENT_GONE_STATUS, Attempt, Walk
from router.errors import Fault, api_error
from router.policy.breaker import Verdict
from router.wire.record import Record

# Reading them through their class takes longer than a call.
_GOOD, _VOID = Verdict.GOOD, Verdict.VOID


def answer_headers(theirs: Mapping[str, str], charge: Charge | None) -> Mapping[str, str]:
    """An answer's headers, with the client's own limits."""
    ours = charge.headers if charge is not None else {}
    return {**theirs, **ours} if ours else theirs


def reply(walk: Walk, attempt: Attempt, open_: Open) -> Reply:
    """The reply of ``walk`` that begins with the answer of ``attempt``. ``open_`` makes further attempts, where the
    answer breaks and somebody else may write the rest.
    """
    call, answer = walk.call, attempt.answer
    assert answer is not None, "it has its first piece"
    if walk.latest is not attempt:
        walk.latest = attempt
    charge = call.charge
    return Reply(
        walk,
        attempt,
        answer,
        attempt.first,
        open_,
        call.request.stream or False,
        attempt.lease.target.id,
        walk.attempts,
        walk.overhead_s,
        "" if charge is None else charge.lines,
        answer.headers,
    )


class Reply(Struct, eq=False):
    """An answer under way to its client."""

    _walk: Walk
    _attempt: Attempt | None
    """Whose answer it is; None while nobody's, because it broke."""
    _answer: Answer
    _first: bytes
    """Its first piece."""
    _open: Open
    streaming: bool
    target: str
    attempts: int
    overhead_s: float | None
    limits: str
    """What the client hears of its own limits, as lines of the answer's head."""
    upstream_headers: Mapping[str, str]
    _given: bool = False
    """The client has got the first piece, by `read`."""
    _whole: bool = False
    """It has got all there is, by `whole`."""
    _over: bool = False
    _record: Record | None = None
    """What the client got of a stream that didn't come in one piece: to go on from, and to be counted."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's, with the client's own limits."""
        return answer_headers(self.upstream_headers, self._walk.call.charge)

    def whole(self) -> bytes:
        """All of an answer that isn't a stream: it is one piece, and with it all is said. Instead of `read`."""
        assert not self.streaming, "a stream is read"
        self._whole = True
        return self._first

    async def read(self) -> bytes:
        """The next bytes; the first call returns at once, ``b""`` comes after the last.

        A stream gives blobs of whole server-sent events, the last ends with ``[DONE]``; otherwise there is one piece,
        the JSON. Raises ApiError where the answer broke and nobody wrote the rest: the client must be told.
        """
        if self._over:
            return b""
        if not self._given:
            self._given = True
            return self._first
        try:
            piece = await self._answer.read()
        except Fault as fault:
            piece = await self._mended(fault)
        if piece:
            (self._record or self._begin_record()).add(piece)
        elif not self._over:
            self._finish(None, "ok", 200)
        return piece

    async def pour(self, sink: Sink) -> None:
        """Hand pieces to ``sink`` as they come, without waking the caller for each; see `base.Answer`.

        Returns at once where it can't be done, and at the latest where the answer ends or breaks: `read` goes on.
        """
        if self._given and not self._over:
            await self._answer.pour(sink, self._record or self._begin_record())

    def close(self) -> None:
        """Let go: what still runs is cancelled at once, everything is settled. May be called twice."""
        if self._over:
            return
        if self._whole or self._answer.facts.finished:
            self._finish(None, "ok", 200)
        else:
            self._finish(None, CLIENT_GONE, CLIENT_GONE_STATUS)

    def _begin_record(self) -> Record:
        """Keep what the client gets, from its first piece on."""
        charge = self._walk.call.charge
        self._record = record = Record(room(self._walk), None if charge is None else charge.saw)
        record.add(self._first)
        return record

    async def _mended(self, fault: Fault) -> bytes:
        """The answer broke: the first bytes of its rest; none where the reply was closed meanwhile. Raises ApiError."""
        broken, self._attempt = self._attempt, None
        rest = None
        if broken is not None:
            broken.end(fault, _VOID, self._walk.clock.now())
            record = self._record or self._begin_record()
            if record.whole and fault.retryable:
                rest = await Recovery(self._walk, self._open).mend(record, broken)
        if self._over:
            if rest is not None and rest.attempt is not None:
                rest.attempt.waste(None, _VOID, self._walk.clock.now())
            return b""
        if rest is None:
            error = api_error(fault)
            self._finish(fault, error.error.code or error.error.type, error.status)
            raise error from fault
        self._answer, self._attempt = rest, rest.attempt
        return await rest.read()

    def _finish(self, fault: Fault | None, outcome: str, status: int) -> None:
        self._over = True
        walk, attempt = self._walk, self._attempt
        charge, now = walk.call.charge, walk.clock.now()
        if charge is not None and self._answer.facts.output_tokens is None:
            given = (self._first,) if self._given or self._whole else ()
            charge.unread = self._record or given
        if attempt is not None:
            attempt.end(fault, _GOOD if outcome == "ok" else _VOID, now)
        walk.end(outcome, status, now)
