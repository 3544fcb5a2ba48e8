"""The contract between the dispatcher and whoever answers.

A backend opens one attempt and gives back an Answer: OpenAI-shaped bytes as they come, and beside them the few
facts that the router needs. Every failure is a `Fault`, raised by ``open`` or ``read``; nothing is retried in
here, except a request that a kept-alive connection lost before the server can have seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from router.ratelimits import Readings
from router.wire.record import Record
from router.wire.request import Request


class Limits(msgspec.Struct, frozen=True):
    """The clocks of one attempt, in seconds."""

    connect_s: float
    first_token_s: float
    idle_s: float


class Order(msgspec.Struct, frozen=True):
    """One attempt, as a backend hears of it."""

    request: Request
    body: bytes
    """What the client sent, byte for byte; ``request`` was decoded from it."""
    model: str
    """The model's name at the target."""
    request_id: str
    deadline: float
    """Monotonic seconds (the loop's time): the whole request's, whatever is retried."""
    limits: Limits
    created: int
    """Seconds since the epoch, for answers that are made here; 0 for a provider."""
    said: str = ""
    """How a chat's answer begins: what is asked for is what follows it. Limits in ``request`` and ``body`` are those of
    the rest already."""
    headers: bytes = b""
    """Lines for the head of what is sent, each with its end: what `router.tracing` tells a provider."""


class Facts(msgspec.Struct, eq=False):
    """What is known of an answer so far; filled by the backend, read by the dispatcher after the end."""

    first_token_at: float | None = None
    """Monotonic seconds."""
    finished: bool = False
    """The answer is whole: its finish reason and, in a stream, its [DONE] were seen."""
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    """Of the output."""
    readings: Readings = ()
    """What the response's head told of the provider's limits; there from the start."""


class Told(msgspec.Struct, frozen=True):
    """What a target told of its answer, for whoever traces it."""

    facts: Facts
    model: str | None = None
    """Who wrote it, by the target's own words."""
    finish_reasons: tuple[str, ...] = ()
    """Of its choices, in order, as far as it came."""


Sink = Callable[[bytes], bool]
"""Takes a piece of an answer; False where it can't take another now, or nobody is there."""


class Answer(Protocol):
    """An answer under way."""

    facts: Facts
    headers: Mapping[str, str]
    """Headers of the upstream that clients may see, lower case; engines have none."""

    async def read(self) -> bytes:
        """The next bytes, ``b""`` after the last.

        A stream gives blobs of whole events, the last of them ends with ``data: [DONE]``; it gives no blob
        without data before the first that has some, so that a heartbeat never commits an answer. Without
        streaming there is one piece, the whole JSON. Raises Fault, once; cancelling it cancels nothing but the wait.
        """

    async def pour(self, sink: Sink, record: Record | None = None) -> None:
        """Hand what `read` would give to ``sink`` as it comes, without waking a task for each piece, and keep it in
        ``record``.

        Returns when the sink says stop, or where only `read` can go on: at the end, at a fault, where something is
        there already. An answer that can't do it returns at once. Cancelling it cancels nothing but the wait.
        """

    def close(self) -> None:
        """Let go: what still runs is cancelled at once, what is over returns to its pool. May be called twice."""

    def told(self) -> Told:
        """What its target told of it, looked up for who asks; right once it is closed."""


class Backend(Protocol):
    """One engine or one provider."""

    async def open(self, order: Order) -> Answer:
        """Send the request; returns once the answer's head is there.

        Raises Fault. Cancelling it leaves nothing behind.
        """

    async def close(self) -> None:
        """Close what is idle and cancel what runs."""
