"""A result for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure.compare import Change
from benchmarks.measure.figures import Spread
from benchmarks.measure.records import UNFINISHED
from benchmarks.measure.result import Result, Stage
from benchmarks.measure.slo import shown_time
from benchmarks.tables import aligned

_HEAD = (
    "stage", "sent/s", "done/s", "good %", "TTFT p50", "p90", "p99", "TPOT p50", "p99", "E2E p50", "p99", "tokens/s",
    "in flight", "cached %", "failed",
)  # fmt: skip
MOST_KINDS = 4
"""Of failures in a line."""


def table(result: Result) -> str:
    """A heading, a line a stage, the answer of a search, and what to be wary of."""
    parts = [
        heading(result),
        "",
        aligned(_HEAD, [_cells(stage, result) for stage in result.stages]),
    ]
    told = [f"{stage.name}: {line}" for stage in result.stages for line in remarks(stage)]
    if result.capacity is not None:
        parts += ["", answer(result)]
    if told or result.notes:
        parts += ["", *told, *result.notes]
    return "\n".join(parts)


def heading(result: Result) -> str:
    """What was measured, in two lines."""
    which = f"{result.profile}: {result.load}"
    if result.slo.limits:
        which += f"; good: {result.slo}"
    return f"{result.target}  {result.model}\n{which}"


def answer(result: Result) -> str:
    """The answer of a search in a sentence."""
    found = result.capacity
    assert found is not None
    if not found.held:
        text = "no rate that was tried meets the objective"
    else:
        text = f"highest rate that meets {result.slo}: {found.held:g} requests/s"
    if found.failed is not None:
        text += f" ({found.failed:g}/s does not)"
    return text if found.whole else text + "; the search was interrupted"


def remarks(stage: Stage) -> list[str]:
    """What a line of the table can't say."""
    found = stage.figures
    lines = list(stage.notes)
    kinds = sorted(found.errors.items(), key=lambda one: -one[1])
    for kind, count in kinds[:MOST_KINDS]:
        words = stage.failures.get(kind, "")
        lines.append(f"{count} of {kind}" + (f": {words}" if words else ""))
    if found.unfinished:
        lines.append(f"{found.unfinished} requests {UNFINISHED}")
    return lines


def _cells(stage: Stage, result: Result) -> tuple[str, ...]:
    found = stage.figures
    good = f"{100 * found.good_share:.1f}" if result.slo.limits else "-"
    if stage.met is not None:
        good += " ✓" if stage.met else " ✗"
    return (
        stage.name,
        f"{found.offered_rate:.2f}",
        f"{found.achieved_rate:.2f}",
        good,
        *_times(found.ttft, (0.5, 0.9, 0.99)),
        *_times(found.tpot, (0.5, 0.99)),
        *_times(found.e2e, (0.5, 0.99)),
        f"{found.output_rate:.0f}",
        f"{found.concurrency:.1f}",
        f"{100 * found.cached_share:.1f}",
        str(sum(found.errors.values())),
    )


def _times(spread: Spread | None, shares: Sequence[float]) -> list[str]:
    if spread is None:
        return ["-"] * len(shares)
    points = {0.5: spread.p50, 0.9: spread.p90, 0.99: spread.p99}
    return [shown_time(points[share]) for share in shares]


def changes_table(changes: Sequence[Change], one: str, other: str) -> str:
    """A line for each change."""
    head = ("stage", "figure", one, other, "ratio", "95 % of it", "p", "")
    rows = []
    for change in changes:
        found = change.ratio
        rows.append(
            (
                change.stage,
                change.figure,
                _shown(change.one, change.unit),
                _shown(change.other, change.unit),
                f"{found.value:.3f}" if found else _plain_ratio(change),
                f"{found.low:.3f}-{found.high:.3f}" if found else "-",
                f"{change.p:.2g}" if change.p is not None else "-",
                change.verdict,
            )
        )
    return aligned(head, rows, left=2)


def _plain_ratio(change: Change) -> str:
    return f"{change.other / change.one:.3f}" if change.one else "-"


def _shown(value: float, unit: str) -> str:
    return shown_time(value) if unit == "s" else f"{value:.4g} {unit}"
