"""Results for programs: a line of CSV for each stage, a line of JSON for each request.

A line of a request is one of Mooncake's traces, too (timestamp, input_length, output_length, hash_ids), so that
`nenya bench replay` and `nenya bench simulate` can take what was measured for a load.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import msgspec

from benchmarks.measure.figures import Figures, Spread
from benchmarks.measure.records import Record
from benchmarks.measure.result import Result

_PLAIN = (
    "requests", "ok", "unfinished", "offered_rate", "achieved_rate", "goodput_rate", "good_share", "input_rate",
    "output_rate", "input_tokens", "cached_tokens", "output_tokens", "cached_share", "concurrency",
)  # fmt: skip
_SPREADS = ("ttft", "ttft_sent", "tpot", "itl", "e2e")
_POINTS = ("mean", "half", "p50", "p90", "p99", "most")


def csv_of(result: Result) -> str:
    """A heading, and a line for each stage; times in seconds, empty where there are none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spreads = [f"{name}_{point}_s" for name in _SPREADS for point in _POINTS]
    writer.writerow(
        ["target", "model", "stage", "rate", "workers", "ended", "met", *_PLAIN, "errors", *spreads]
    )
    for stage in result.stages:
        found = stage.figures
        writer.writerow(
            [
                result.target, result.model, stage.name, stage.rate, stage.workers, stage.ended, stage.met,
                *(getattr(found, name) for name in _PLAIN),
                " ".join(f"{kind}:{count}" for kind, count in found.errors.items()),
                *_points(found),
            ]
        )  # fmt: skip
    return out.getvalue()


def _points(found: Figures) -> Iterable[float | None]:
    for name in _SPREADS:
        spread: Spread | None = getattr(found, name)
        for point in _POINTS:
            yield None if spread is None else getattr(spread, point)


class _Line(msgspec.Struct, kw_only=True):
    timestamp: float
    """Milliseconds since its stage's start."""
    input_length: int
    output_length: int
    hash_ids: Sequence[int]
    stage: str
    outcome: str
    finish: str | None
    turn: int
    due_s: float
    sent_s: float
    first_s: float | None
    end_s: float
    ttft_s: float | None
    tpot_s: float | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    counted_by: str
    pieces: int
    gaps_s: list[float]


def lines(stages: Iterable[tuple[str, Sequence[Record]]]) -> Iterable[bytes]:
    """A line of JSON for each request, stage by stage, in the order they were due."""
    for name, records in stages:
        for one in sorted(records, key=lambda one: one.due_s):
            line = _Line(
                timestamp=round(1000 * one.due_s, 3),
                input_length=max(1, one.input_tokens or one.asked_input),
                output_length=max(1, one.output_tokens or one.asked_output),
                hash_ids=one.blocks,
                stage=name,
                outcome=one.outcome,
                finish=one.finish,
                turn=one.turn,
                due_s=round(one.due_s, 6),
                sent_s=round(one.begun_s, 6),
                first_s=_round(one.first_s),
                end_s=round(one.end_s, 6),
                ttft_s=_round(one.ttft_s),
                tpot_s=_round(one.tpot_s),
                input_tokens=one.input_tokens,
                cached_tokens=one.cached_tokens,
                output_tokens=one.output_tokens,
                counted_by="usage" if one.by_usage else "pieces",
                pieces=one.pieces,
                gaps_s=[round(gap, 6) for gap in one.gaps_s],
            )
            yield msgspec.json.encode(line) + b"\n"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
