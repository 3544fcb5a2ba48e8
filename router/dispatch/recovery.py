"""A stream that broke after its first byte: who writes the rest, and the rest as a part of the same answer.

The next target is asked for what follows the text so far, under the same deadline and the same number of attempts.
What it writes goes to the client from where the seam says on (`wire.seam`), under the first answer's name
(`wire.splice`). If it breaks, too, all of it is done again with the longer text. Nothing is promised: where nobody goes
on, the client hears the error of the target that broke off first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from msgspec.structs import replace

from router.accounts.estimate import BYTES_PER_TOKEN
from router.backends.base import Answer, Facts, Sink, Told
from router.dispatch.call import Call
from router.dispatch.walk import Attempt, Walk
from router.errors import Fault, FaultKind
from router.events import Recovery as Recovered
from router.facts import facts_of
from router.policy.breaker import Verdict
from router.pool import Refusal
from router.target import Lease, Target
from router.wire import continuation
from router.wire.continuation import Keep
from router.wire.legacy import CompletionRequest
from router.wire.record import Record
from router.wire.request import Request
from router.wire.said import Said, read
from router.wire.seam import Diverges, Seam
from router.wire.splice import Splicer, Tally, Unreadable, ending

START_BYTES = 4096
"""Kept of an answer that nobody can go on with: a role and little more, after which it can be begun anew."""

NOT_CONTINUING_S = 600.0
"""How long a target that was found not to go on is not asked to; as long as it takes to roll out another server."""


Open = Callable[[Walk, Lease, Call], Awaitable[Attempt]]
"""Makes one attempt up to its first piece. Raises Fault; then, as on cancellation, the lease is settled."""


def room(walk: Walk) -> int:
    """How many bytes of the request's answer are to be kept; 0 where they would be of no use."""
    rules = walk.terms.recovery
    kept = continuation.keep(walk.call.request) if rules.enabled else Keep.NOTHING
    if kept is Keep.NOTHING:
        return 0
    return rules.keep_bytes if kept is Keep.ALL else min(START_BYTES, rules.keep_bytes)


class Rest:
    """The rest of an answer, by another target: an Answer."""

    __slots__ = (
        "_burn",
        "_inner",
        "_parts",
        "_pieces",
        "_splicer",
        "_tally",
        "_whole",
        "attempt",
        "facts",
        "headers",
    )

    def __init__(self, walk: Walk, attempt: Attempt, parts: Parts) -> None:
        answer = attempt.answer
        assert answer is not None, "it has its first piece"
        self.attempt: Attempt | None = attempt
        self.headers: Mapping[str, str] = answer.headers
        self.facts = Facts()
        self._whole = answer
        self._inner: Answer | None = answer
        self._parts = parts
        self._splicer = parts.splicer(attempt.lease.target)
        self._pieces = [attempt.first]
        self._burn = walk.burn

    async def begin(self) -> None:
        """Read on until it is known to be the rest. Raises Diverges and Fault."""
        self._pieces = [await self._next(self._pieces.pop())]

    async def read(self) -> bytes:
        """See `Answer.read`."""
        if self._pieces:
            return self._pieces.pop()
        if self._splicer.done or self._inner is None:
            return b""
        return await self._next(await self._inner.read())

    async def pour(self, sink: Sink, record: Record | None = None) -> None:
        """Nothing: every piece is read; see `Answer.pour`."""

    def told(self) -> Told:
        """See `Answer.told`: of the rest alone."""
        return self._whole.told()

    def close(self) -> None:
        """See `Answer.close`."""
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.close()
            self._note(inner.facts)

    async def _next(self, piece: bytes) -> bytes:
        """What the client gets of ``piece``, or of the first one behind it that has something for it."""
        while piece and self._inner is not None:
            try:
                blob = self._splicer.feed(piece)
            except Unreadable as error:
                raise Fault(FaultKind.MALFORMED, "a chunk of the rest is none") from error
            if self._splicer.stopped:
                blob += self._parts.ending(None)
            self.facts.finished = self._splicer.done
            if blob:
                return blob
            piece = await self._inner.read()
        raise Fault(FaultKind.CUT, "the rest of the answer ended before it was whole")

    def _note(self, told: Facts) -> None:
        """The whole answer's usage; what was read and written twice is burnt."""
        tally, repeated = self._parts.tally, self._splicer.repeated
        if told.input_tokens is not None:
            self.facts.input_tokens = tally.prompt(told.input_tokens)
        if told.cached_input_tokens is not None and self.facts.input_tokens is not None:
            self.facts.cached_input_tokens = min(told.cached_input_tokens, self.facts.input_tokens)
        if told.output_tokens is not None:
            self.facts.output_tokens = tally.output(told.output_tokens, repeated)
        self.facts.reasoning_tokens = told.reasoning_tokens
        if not self._parts.said.nothing:
            self._burn(told.input_tokens, repeated if told.output_tokens is not None else None)


class Ended:
    """An answer of which nothing but the end was missing: an Answer, of nobody's."""

    __slots__ = ("_pieces", "attempt", "facts", "headers")

    def __init__(self, blob: bytes) -> None:
        self.attempt: Attempt | None = None
        self.headers: Mapping[str, str] = {}
        self.facts = Facts()
        self.facts.finished = True
        self._pieces = [blob]

    async def read(self) -> bytes:
        """See `Answer.read`."""
        return self._pieces.pop() if self._pieces else b""

    async def pour(self, sink: Sink, record: Record | None = None) -> None:
        """Nothing: every piece is read; see `Answer.pour`."""

    def close(self) -> None:
        """See `Answer.close`."""

    def told(self) -> Told:
        """See `Answer.told`: nobody did."""
        return Told(self.facts)


class Parts:
    """A broken answer, and what is to be put to it."""

    def __init__(self, request: Request, body: bytes, said: Said, facts: Facts) -> None:
        """``facts``: what the part that broke off has told."""
        self.said = said
        self._client = (request, body)
        self._older = isinstance(request, CompletionRequest)
        written = facts.output_tokens if facts.output_tokens is not None else said.written
        self.tally = Tally() if said.nothing else Tally(written, facts.input_tokens)
        self.left = continuation.left_of(request, self.tally.written)

    def call(self, call: Call, target: Target) -> Call:
        """What ``target`` is asked."""
        request, body = self._client
        if self.said.nothing:
            return call
        text = self.said.text
        request, body = continuation.rest(request, body, text, self.tally.written)
        shown = "" if self._older else text.rstrip() if self._trims(target) else text
        return replace(call, request=request, body=body, said=shown)

    def splicer(self, target: Target) -> Splicer:
        """What takes in the answer of ``target``."""
        exact = self._older or target.continues is True or self.said.nothing
        seam = Seam(self.said.text, exact=exact, trimmed=self._trims(target))
        return Splicer(self.said, seam, self.tally, continuation.stops(self._client[0]))

    def ending(self, reason: str | None) -> bytes:
        """The end of the answer, with its usage, as far as it can be guessed, if the client wants it."""
        request, body = self._client
        usage = None
        if request.wants_usage:
            given = self.tally.input
            usage = (len(body) // BYTES_PER_TOKEN if given is None else given, self.tally.written)
        return ending(self.said, reason, usage)

    def _trims(self, target: Target) -> bool:
        """Whether it isn't shown the white space at the text's end: templates drop it, some providers refuse it."""
        return self.said.nothing or (target.kind == "provider" and not self._older)


class Recovery:
    """What mends the stream of one walk."""

    __slots__ = ("_open", "_walk")

    def __init__(self, walk: Walk, open_: Open) -> None:
        self._walk = walk
        self._open = open_

    async def mend(self, kept: Iterable[bytes], broken: Attempt) -> Rest | Ended | None:
        """The rest of the answer that began with ``kept`` and that ``broken``, settled, didn't end; its first piece is
        in hand. None where nobody has one. Cancelling it leaves nothing behind.
        """
        walk = self._walk
        request, body = walk.sent.request, walk.sent.body
        said = read(kept)
        whole = said is not None and continuation.keep(request) is Keep.ALL
        if said is None or said.beyond or not (whole or said.nothing or said.finished):
            self._say(broken.lease.target, "impossible")
            return None
        parts = Parts(request, body, said, broken.facts)
        if said.finished or (parts.left is not None and parts.left < 1):
            self._say(broken.lease.target, "completed")
            return Ended(parts.ending(None if said.finished else "length"))
        if said.nothing:
            walk.burn(broken.facts.input_tokens, broken.facts.output_tokens)
        rest = await self._ask_around(parts, broken.lease.target)
        if rest is None:
            walk.latest = broken
        return rest

    async def _ask_around(self, parts: Parts, broken: Target) -> Rest | None:
        walk = self._walk
        tried: set[Target] = {broken}
        asked = False
        while walk.tries < walk.terms.retry.attempts:
            lease = self._lease(parts, tried, broken)
            if lease is None:
                break
            tried.add(lease.target)
            asked = True
            rest = await self._ask(parts, lease)
            if rest is not None:
                return rest
        if not asked:
            self._say(broken, "impossible")
        return None

    def _lease(self, parts: Parts, tried: set[Target], broken: Target) -> Lease | None:
        """On somebody who wasn't asked yet; where nobody is left who may be, once more on who broke off."""
        walk = self._walk
        now, route = walk.clock.now(), walk.route
        if now >= walk.call.deadline:
            return None
        everybody = {member.target for member in route.members}
        able = everybody if parts.said.nothing else {t for t in everybody if t.may_continue(now)}
        call = parts.call(walk.sent, broken)
        facts = facts_of(call.request, route.most_blocks) if route.wants_facts else None
        lease = route.lease(now, tried | (everybody - able), facts)
        if (
            isinstance(lease, Refusal)
            and tried == {broken}
            and broken in able
            and broken.admits(now)
        ):
            lease = route.lease(now, everybody - {broken}, facts)
        return None if isinstance(lease, Refusal) else lease

    async def _ask(self, parts: Parts, lease: Lease) -> Rest | None:
        """One attempt; what came of it is said. None where another may be made."""
        walk, target = self._walk, lease.target
        try:
            attempt = await self._open(walk, lease, parts.call(walk.sent, target))
        except Fault as fault:
            self._note(fault, target)
            return None
        rest = Rest(walk, attempt, parts)
        attempt.answer = rest
        try:
            await rest.begin()
        except Diverges:
            now = walk.clock.now()
            attempt.waste(None, Verdict.VOID, now)
            target.not_continuing_until = now + NOT_CONTINUING_S
            self._say(target, "diverged")
            return None
        except Fault as fault:
            attempt.waste(fault, Verdict.VOID, walk.clock.now())
            self._note(fault, target)
            return None
        except BaseException:
            attempt.waste(None, Verdict.VOID, walk.clock.now())
            raise
        self._say(target, "restarted" if parts.said.nothing else "continued")
        return rest

    def _note(self, fault: Fault, target: Target) -> None:
        """The rest failed. A refusal of the request is one of its last message, which was not in the first."""
        rejected = fault.kind is FaultKind.CLIENT_ERROR
        if rejected:
            target.not_continuing_until = self._walk.clock.now() + NOT_CONTINUING_S
        self._say(target, "rejected" if rejected else "failed")

    def _say(self, target: Target, outcome: str) -> None:
        self._walk.say(Recovered(target.id, outcome))
