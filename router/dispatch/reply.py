"""An answer on its way to its client: it ends whole, or with an explicit error."""

from __future__ import annotations

from collections.abc import Mapping

from router.accounts.charge import Charge
from router.backends.base import Sink
from router.dispatch.recovery import Open, Recovery, room
from router.dispatch.walk import CLIENT_GONE, CLIENT_GONE_STATUS, Attempt, Walk
from router.errors import Fault, api_error
from router.policy.breaker import Verdict
from router.wire.record import Record


def answer_headers(theirs: Mapping[str, str], charge: Charge | None) -> Mapping[str, str]:
    """An answer's headers, with the client's own limits."""
    ours = charge.headers if charge is not None else {}
    return {**theirs, **ours} if ours else theirs


class Reply:
    """An answer under way to its client."""

    __slots__ = (
        "_answer",
        "_attempt",
        "_begun",
        "_charge",
        "_first",
        "_given",
        "_open",
        "_over",
        "_record",
        "_walk",
        "attempts",
        "limits",
        "overhead_s",
        "streaming",
        "target",
        "upstream_headers",
    )

    def __init__(self, walk: Walk, attempt: Attempt, open_: Open) -> None:
        """``open_`` makes further attempts, where the answer breaks and somebody else may write the rest."""
        answer = attempt.answer
        assert answer is not None, "it has its first piece"
        walk.latest = attempt
        self._walk = walk
        self._open = open_
        self._attempt: Attempt | None = attempt
        self._answer = answer
        self._first = attempt.first
        self._begun = b""
        """The same, when the client has got it."""
        self._given = self._over = False
        call = walk.call
        self._charge = call.charge
        self.streaming = bool(call.request.stream)
        self._record: Record | None = None
        """What the client got of a stream that didn't come in one piece: to go on from, and to be counted."""
        attempt.used = True
        self.attempts = walk.attempts
        self.overhead_s = walk.overhead_s
        self.upstream_headers = answer.headers
        self.limits = "" if self._charge is None else self._charge.lines
        """What the client hears of its own limits, as lines of the answer's head."""
        self.target = attempt.lease.target.id

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's, with the client's own limits."""
        return answer_headers(self.upstream_headers, self._charge)

    def whole(self) -> bytes:
        """All of an answer that isn't a stream: it is one piece, and with it all is said. Instead of `read`."""
        assert not self.streaming, "a stream is read"
        self._given = True
        self._begun = self._first
        return self._first

    async def read(self) -> bytes:
        """The next bytes; the first call returns at once, ``b""`` comes after the last.

        A stream gives blobs of whole server-sent events, the last ends with ``[DONE]``; otherwise there is one piece,
        the JSON. Raises ApiError where the answer broke and nobody wrote the rest: the client must be told.
        """
        if self._over:
            return b""
        if self._first:
            piece, self._first = self._first, b""
            self._begun = piece
            return piece
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
        if not (self._first or self._over):
            await self._answer.pour(sink, self._record or self._begin_record())

    def close(self) -> None:
        """Let go: what still runs is cancelled at once, everything is settled. May be called twice."""
        if self._over:
            return
        if self._given or self._answer.facts.finished:
            self._finish(None, "ok", 200)
        else:
            self._finish(None, CLIENT_GONE, CLIENT_GONE_STATUS)

    def _begin_record(self) -> Record:
        """Keep what the client gets, from its first piece on."""
        charge = self._charge
        self._record = record = Record(room(self._walk), None if charge is None else charge.saw)
        record.add(self._begun)
        return record

    async def _mended(self, fault: Fault) -> bytes:
        """The answer broke: the first bytes of its rest; none where the reply was closed meanwhile. Raises ApiError."""
        broken, self._attempt = self._attempt, None
        rest = None
        if broken is not None:
            broken.end(fault, Verdict.VOID)
            record = self._record or self._begin_record()
            if record.whole and fault.retryable:
                rest = await Recovery(self._walk, self._open).mend(record, broken)
        if self._over:
            if rest is not None and rest.attempt is not None:
                rest.attempt.end(None, Verdict.VOID)
            return b""
        if rest is None:
            error = api_error(fault)
            self._finish(fault, error.error.code or error.error.type, error.status)
            raise error from fault
        self._answer, self._attempt = rest, rest.attempt
        if rest.attempt is not None:
            rest.attempt.used = True
        return await rest.read()

    def _finish(self, fault: Fault | None, outcome: str, status: int) -> None:
        self._over = True
        if self._charge is not None and self._begun:
            self._charge.unread = self._record or (self._begun,)
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end(fault, Verdict.GOOD if outcome == "ok" else Verdict.VOID)
        self._walk.end(outcome, status)
