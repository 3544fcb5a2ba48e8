"""One request's times and counts, and the columns that keep many of them in a result.

    TTFT = first token - due            what a user waits, however late the client sent it
    TTFT from send = first token - sent
    E2E  = end - due
    TPOT = (end - first token) / (tokens - 1), where there are two tokens or more
    ITL  = the gaps between pieces of the answer that hold text

Source: vLLM's `bench serve` has the same TTFT, TPOT and ITL from the send on, but takes a piece without text (a role,
an empty string) for a token, too; NVIDIA's AIPerf, GenAI-Perf and LLMPerf pass it over, as here. What is TPOT here
and at vLLM, AIPerf calls inter token latency.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

OK = "ok"
UNFINISHED = "unfinished"
"""Cut off because its stage was broken off; says nothing of the server."""
RATE_LIMITED = "429"
_DIGITS = 6


class Record(msgspec.Struct):
    """One request. Times in seconds since its stage's start."""

    id: int
    due_s: float
    asked_input: int
    asked_output: int
    turn: int = 0
    sent_s: float = 0.0
    first_s: float | None = None
    end_s: float = 0.0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    """By the server's usage; without one, the pieces with text."""
    by_usage: bool = False
    """Whether the server counted the tokens."""
    pieces: int = 0
    gaps_s: list[float] = []
    """Between pieces with text."""
    outcome: str = UNFINISHED
    """`ok`, or a kind of failure: an HTTP status of 400 or more, connect, timeout, cut, malformed, error, empty."""
    finish: str | None = None
    """The answer's finish_reason."""
    blocks: tuple[int, ...] = ()

    @property
    def begun_s(self) -> float:
        """When it was sent; where it never was, when it was due."""
        return max(self.sent_s, self.due_s)

    @property
    def ttft_s(self) -> float | None:
        """Since it was due."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def e2e_s(self) -> float:
        """Since it was due."""
        return self.end_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """None below two tokens."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.output_tokens - 1)


class Columns(msgspec.Struct, kw_only=True):
    """Requests by column, in the order they were due: a result's raw data, a fifth of the size of rows."""

    due_s: list[float] = []
    sent_s: list[float] = []
    first_s: list[float | None] = []
    end_s: list[float] = []
    input_tokens: list[int] = []
    cached_tokens: list[int] = []
    output_tokens: list[int] = []
    pieces: list[int] = []
    outcome: list[str] = []


def columns(records: Iterable[Record]) -> Columns:
    """``records`` by column."""
    kept = Columns()
    for one in sorted(records, key=lambda one: one.due_s):
        kept.due_s.append(round(one.due_s, _DIGITS))
        kept.sent_s.append(round(one.sent_s, _DIGITS))
        kept.first_s.append(None if one.first_s is None else round(one.first_s, _DIGITS))
        kept.end_s.append(round(one.end_s, _DIGITS))
        kept.input_tokens.append(one.input_tokens)
        kept.cached_tokens.append(one.cached_tokens)
        kept.output_tokens.append(one.output_tokens)
        kept.pieces.append(one.pieces)
        kept.outcome.append(one.outcome)
    return kept


def rows(kept: Columns) -> Sequence[Record]:
    """The records that ``kept`` holds, without the gaps between pieces."""
    names = kept.__struct_fields__
    every = zip(*(getattr(kept, name) for name in names), strict=True)
    return [
        Record(
            id=number,
            asked_input=values["input_tokens"],
            asked_output=values["output_tokens"],
            **values,
        )
        for number, values in enumerate(dict(zip(names, row, strict=True)) for row in every)
    ]
