"""An answer on its way to its client: it ends whole, or with an explicit error."""

from __future__ import annotations

from collections.abc import Mapping

from router.accounts.charge import Charge
from router.backends.base import Answer, Sink
from router.dispatch.walk import CLIENT_GONE, CLIENT_GONE_STATUS, Attempt, Walk
from router.errors import Fault, api_error
from router.policy.breaker import Verdict

LIMIT_HEADERS = "x-ratelimit-"


def answer_headers(theirs: Mapping[str, str], charge: Charge | None) -> Mapping[str, str]:
    """An answer's headers: of limits only the client's own, never those that an upstream sets us."""
    ours = charge.headers if charge is not None else {}
    if ours or any(name.startswith(LIMIT_HEADERS) for name in theirs):
        kept = (
            (name, value) for name, value in theirs.items() if not name.startswith(LIMIT_HEADERS)
        )
        return {**dict(kept), **ours}
    return theirs


class Reply:
    """An answer under way to its client."""

    __slots__ = (
        "_answer",
        "_attempt",
        "_charge",
        "_first",
        "_over",
        "_walk",
        "attempts",
        "headers",
        "overhead_s",
        "streaming",
        "target",
    )

    def __init__(self, walk: Walk, attempt: Attempt, answer: Answer, first: bytes) -> None:
        self._walk = walk
        self._attempt = attempt
        self._answer = answer
        self._first = first
        self._over = False
        self._charge = walk.call.charge
        self.streaming = bool(walk.call.request.stream)
        self.attempts = walk.attempts
        self.overhead_s = walk.overhead_s
        self.headers = answer_headers(answer.headers, walk.call.charge)
        self.target = attempt.lease.target.id

    async def read(self) -> bytes:
        """The next bytes; the first call returns at once, ``b""`` comes after the last.

        A stream gives blobs of whole server-sent events, the last ends with ``[DONE]``; otherwise there is one piece,
        the JSON. Raises ApiError where the answer broke: the client must be told.
        """
        if self._first:
            first, self._first = self._first, b""
            if self._charge is not None:
                self._charge.saw(first)
            return first
        if self._over:
            return b""
        try:
            piece = await self._answer.read()
        except Fault as fault:
            error = api_error(fault)
            self._finish(fault, error.error.code or error.error.type, error.status)
            raise error from fault
        if not piece:
            self._finish(None, "ok", 200)
        elif self._charge is not None:
            self._charge.saw(piece)
        return piece

    async def pour(self, sink: Sink) -> None:
        """Hand pieces to ``sink`` as they come, without waking the caller for each; see `base.Answer`.

        Returns at once where it can't be done, and at the latest where the answer ends or breaks: `read` goes on.
        """
        if self._first or self._over:
            return
        charge = self._charge
        if charge is None:
            await self._answer.pour(sink)
            return

        def counted(piece: bytes) -> bool:
            charge.saw(piece)
            return sink(piece)

        await self._answer.pour(counted)

    def close(self) -> None:
        """Let go: what still runs is cancelled at once, everything is settled. May be called twice."""
        if self._over:
            return
        if self._answer.facts.finished:
            self._finish(None, "ok", 200)
        else:
            self._finish(None, CLIENT_GONE, CLIENT_GONE_STATUS)

    def _finish(self, fault: Fault | None, outcome: str, status: int) -> None:
        self._over = True
        self._attempt.end(fault, Verdict.GOOD if outcome == "ok" else Verdict.VOID)
        self._walk.end(outcome, status)
