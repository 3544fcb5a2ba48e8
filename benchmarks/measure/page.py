"""A result as one HTML file: what came out, how it depends on the rate, and how it went over time.

Everything is in the file: no script, no font, no address that would be asked. It follows the reader's light or dark.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from msgspec.structs import replace

from benchmarks.measure.console import answer, remarks
from benchmarks.measure.figures import Figures, Spread
from benchmarks.measure.plots import COLOURS, Axis, Mark, Point, Series, plot
from benchmarks.measure.records import OK, Record
from benchmarks.measure.result import Result, Stage, answered, measured
from benchmarks.measure.slo import Metric, Slo, shown_time
from benchmarks.simulate.measures import percentile

BUCKETS, STEPS = 60, 24
"""Of a timeline: what is seen at a time, and what is counted over one."""
LEAST_FLIGHT = 0.01
"""On an axis that has no 0."""
MOST_CURVES = COLOURS
"""Distributions in one plot; of more stages, evenly many are shown."""
_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))

Pick = Callable[[Figures], Spread | None]


def page(results: Sequence[Result]) -> str:
    """The page of one result, or of several side by side."""
    results = _told_apart(results)
    title = " · ".join(_title(one) for one in results)
    parts = [_head(title), *map(_intro, results)]
    measured_ones = [
        one for one in results if one.kind == "measured"
    ]  # a simulation's stages are policies
    if sum(len(one.stages) for one in measured_ones) > 1:
        parts.append(_section("Rate and latency", _frontier(measured_ones)))
    parts.append(_section("Distributions", _distributions(results)))
    parts.append(
        _section("Over time", "".join(_timelines(one, len(results) > 1) for one in results))
    )
    parts.append(_section("Figures", "".join(_table(one, len(results) > 1) for one in results)))
    parts += [_remarks(results), _DEFINITIONS, "</main></body></html>\n"]
    return "".join(parts)


def _head(title: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main>"
    )


def _title(result: Result) -> str:
    return result.label or f"{result.model or result.target} · {result.profile}"


def _told_apart(results: Sequence[Result]) -> Sequence[Result]:
    """``results``, those of one title labelled by their time."""
    titles = [_title(one) for one in results]
    return [
        replace(one, label=f"{title}, {one.made_at}") if titles.count(title) > 1 else one
        for one, title in zip(results, titles, strict=True)
    ]


def _intro(result: Result) -> str:
    facts = [
        ("where", result.target),
        ("model", result.model),
        ("profile", result.profile),
        ("load", result.load),
        ("objective", str(result.slo)),
        ("when", f"{result.made_at} UTC"),
        ("by", f"Nenya {result.version}" + (f" on {result.machine}" if result.machine else "")),
    ]
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts if text
    )
    told = f'<p class="answer">{escape(answer(result))}</p>' if result.capacity is not None else ""
    return (
        f'<header><p class="kind {result.kind}">{result.kind}</p><h1>{escape(_title(result))}</h1>'
        f"<dl>{listed}</dl></header>{told}{_tiles(result)}"
    )


# Tiles


def _tiles(result: Result) -> str:
    """The figures that are looked for first, of the stage that matters most."""
    stage = _best(result)
    found = stage.figures
    failed = sum(found.errors.values())
    tiles = [
        ("answers", f"{found.achieved_rate:.2f}/s", f"of {found.offered_rate:.2f}/s sent"),
        ("TTFT", _time(found.ttft, 0), f"p99 {_time(found.ttft, 2)}"),
        ("TPOT", _time(found.tpot, 0), f"p99 {_time(found.tpot, 2)}"),
        ("E2E", _time(found.e2e, 0), f"p99 {_time(found.e2e, 2)}"),
        ("output", f"{found.output_rate:,.0f}", "tokens/s"),
        ("failed", f"{failed:,}", f"of {found.requests:,} requests"),
    ]
    if result.slo.limits:
        mark = "" if stage.met is None else ("met" if stage.met else "not met")
        tiles.insert(1, ("good", f"{100 * found.good_share:.1f} %", f"objective {mark}".strip()))
    boxes = "".join(
        f'<div class="tile"><span>{name}</span><b>{escape(value)}</b><small>{escape(more)}</small></div>'
        for name, value, more in tiles
    )
    why = "the highest rate that meets the objective" if stage.met else "where most was answered"
    if result.kind == "simulated":
        why = "the best of the policies"
    which = f'<p class="which"><b>{escape(stage.name)}</b>, {why}</p>'
    if len(result.stages) == 1:
        which = ""
    return f'{which}<div class="tiles">{boxes}</div>'


def _best(result: Result) -> Stage:
    """The stage with the highest rate that meets the objective; else the one that answered most a second. Of policies
    the one with the highest rate, or else the most good requests.
    """
    if result.kind == "simulated":
        return max(result.stages, key=lambda one: (one.rate or 0.0, one.figures.good_share))
    met = [stage for stage in _open_loop(result.stages) if stage.met]
    return max(met or result.stages, key=lambda stage: stage.figures.achieved_rate)


def _open_loop(stages: Sequence[Stage]) -> Sequence[Stage]:
    """Those whose rate was asked for: a closed loop's is its server's. All where there are no others."""
    return [stage for stage in stages if stage.rate is not None] or stages


def _time(spread: Spread | None, which: int) -> str:
    return "-" if spread is None else shown_time((spread.p50, spread.p90, spread.p99)[which])


# Plots


def _frontier(results: Sequence[Result]) -> str:
    """How times, throughput and goodput go with the rate."""
    judged = [one for one in results if one.slo.limits]
    tokens = Axis("output tokens a second", _number, low=0.0)
    throughput = _throughput(results)
    flight = Axis("requests in flight, mean", _number, log=True)
    good = _goodness(judged, several=len(results) > 1)
    sent = _rate_axis(good)
    plots = (
        _by_rate(results, "ttft", lambda found: found.ttft),
        _by_rate(results, "tpot", lambda found: found.tpot),
        plot("Tokens by requests in flight", throughput, (flight, tokens)),
        plot("Requests within the objective", good, (sent, _percent("%"))),
    )
    return f'<div class="plots">{"".join(plots)}</div>'


def _by_rate(results: Sequence[Result], metric: Metric, pick: Pick) -> str:
    """The percentiles of a time; of several results each has its colour, and the higher ones are dashed."""
    series = []
    for number, result in enumerate(results):
        for which, (label, _) in enumerate(_QUANTILES):
            points = _points(result, pick, which)
            if len(results) == 1:
                series.append(Series(label, points, which))
            else:
                series.append(Series(f"{_title(result)} {label}", points, number, which > 0))
    axes = _rate_axis(series), _time_axis()
    return plot(f"{metric.upper()} by rate", series, axes, _limits(results[0].slo, metric))


def _throughput(results: Sequence[Result]) -> list[Series]:
    """Tokens a second by requests in flight; open and closed loops apart, as they fill a server differently."""
    series: list[Series] = []
    for result in results:
        loops = {"open loop": True, "closed loop": False}
        for loop, is_open in loops.items():
            found = [one.figures for one in result.stages if (one.rate is not None) is is_open]
            points = sorted((max(one.concurrency, LEAST_FLIGHT), one.output_rate) for one in found)
            name = f"{_title(result)}, {loop}" if len(results) > 1 else loop
            if points:
                series.append(Series(name, points, len(series)))
    return series


def _goodness(results: Sequence[Result], *, several: bool) -> list[Series]:
    """The share of good requests, by their rate."""
    return [
        Series(
            _title(result) if several else "",
            sorted(
                (_sent_rate(one), 100 * one.figures.good_share) for one in _open_loop(result.stages)
            ),
            number,
        )
        for number, result in enumerate(results)
    ]


def _rate_axis(series: Sequence[Series]) -> Axis:
    """From 0 on, unless that would leave half of it empty."""
    rates = [at for one in series for at, _ in one.points] or [0.0]
    return Axis("requests a second", _number, low=None if min(rates) > max(rates) / 2 else 0.0)


def _time_axis(low: float | None = None) -> Axis:
    return Axis("", _round_time, log=True, low=low)


def _round_time(seconds: float) -> str:
    """A round time with its unit: ``200 µs``, ``30 ms``, ``1 s``."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, size = next((one for one in units if seconds >= 0.999 * one[1]), units[-1])
    return f"{seconds / size:.3g} {unit}"


def _percent(label: str) -> Axis:
    return Axis(label, _number, low=0.0, high=100.0)


def _points(result: Result, pick: Pick, which: int) -> list[Point]:
    """By the rate that was sent: a saturated server may answer fewer of more."""
    found = []
    for stage in _open_loop(result.stages):
        spread = pick(stage.figures)
        if spread is not None:
            value = (spread.p50, spread.p90, spread.p99)[which]
            found.append((_sent_rate(stage), max(value, 1e-6)))
    return sorted(found)


def _sent_rate(stage: Stage) -> float:
    """Requests a second. A closed loop's first ones, which all come at once, are no part of its rate."""
    found = stage.figures
    return found.offered_rate if stage.rate is not None else found.achieved_rate


def _limits(slo: Slo, metric: Metric, *, upright: bool = False) -> list[Mark]:
    return [Mark(one.seconds, str(one), upright) for one in slo.limits if one.metric == metric]


def _distributions(results: Sequence[Result]) -> str:
    stages = [(result, stage) for result in results for stage in result.stages]
    if len(stages) > MOST_CURVES:
        stages = [stages[at * (len(stages) - 1) // (MOST_CURVES - 1)] for at in range(MOST_CURVES)]
    values: tuple[tuple[Metric, Callable[[Record], float | None]], ...] = (
        ("ttft", lambda one: one.ttft_s),
        ("tpot", lambda one: one.tpot_s),
        ("e2e", lambda one: one.e2e_s),
    )
    plots = []
    for metric, value in values:
        series = []
        for number, (result, stage) in enumerate(stages):
            name = stage.name if len(results) == 1 else f"{_title(result)}: {stage.name}"
            found = sorted(v for v in map(value, answered(stage)) if v is not None)
            series.append(Series(name, _cdf(found), number, dots=False))
        limits = _limits(results[0].slo, metric, upright=True)
        # What comes in one segment has no time between its tokens: some such must not stretch the axis by decades.
        low = min((one.points[len(one.points) // 50][0] for one in series if one.points), default=1)
        axes = _time_axis(low), _percent("% of answers")
        plots.append(plot(metric.upper(), series, axes, limits, narrow=True))
    return f'<div class="plots three">{"".join(plots)}</div>'


def _cdf(ordered: Sequence[float]) -> list[Point]:
    count = len(ordered)
    return [(max(value, 1e-6), 100 * (at + 1) / count) for at, value in enumerate(ordered)]


# Time


def _timelines(result: Result, several: bool) -> str:  # noqa: FBT001
    best = _best(result)
    parts = []
    for stage in result.stages:
        plots = _timeline(stage, result.slo)
        if not plots:
            continue
        name = f"{_title(result)}: {stage.name}" if several else stage.name
        mark = " open" if stage is best else ""
        ended = f" <em>{escape(stage.ended)}</em>" if stage.ended != "done" else ""
        parts.append(
            f'<details{mark}><summary>{escape(name)}{ended}</summary><div class="plots three">{plots}</div></details>'
        )
    return "".join(parts)


def _timeline(stage: Stage, slo: Slo) -> str:
    records = measured(stage)
    if len(records) < 2:
        return ""
    span = max(one.end_s for one in records)
    if span <= 0:
        return ""
    width = span / BUCKETS
    middles = [(at + 0.5) * width for at in range(BUCKETS)]
    begun = sorted(one.begun_s for one in records)
    ended = sorted(one.end_s for one in records)
    inside = [(at, float(bisect_right(begun, at) - bisect_right(ended, at))) for at in middles]
    time = Axis("seconds since the stage began", _number, low=0.0, high=span)
    sent = _rates(begun, span)
    done = _rates(sorted(one.end_s for one in records if one.outcome == OK), span)
    failed = sorted(one.end_s for one in records if one.outcome in stage.figures.errors)
    rates = [Series("sent", sent, 0, steps=True), Series("answered", done, 2, steps=True)]
    if failed:
        rates.append(Series("failed", _rates(failed, span), 3, steps=True))
    waits: list[list[float]] = [[] for _ in range(BUCKETS)]
    for one in records:
        if one.ttft_s is not None:
            waits[min(BUCKETS - 1, int(one.due_s / width))].append(one.ttft_s)
    series = [
        Series(label, _percentiles(middles, waits, share), colour, dots=False)
        for label, share, colour in (("p50", 0.5, 0), ("p99", 0.99, 2))
    ]
    level = [Series("", inside, 1, dots=False)]
    often, count = Axis("a second", _number, low=0.0), Axis("requests", _number, low=0.0)
    plots = (
        plot("Requests a second", rates, (time, often), narrow=True),
        plot("In flight", level, (time, count), narrow=True),
        plot("TTFT by due time", series, (time, _time_axis()), _limits(slo, "ttft"), narrow=True),
    )
    return "".join(plots)


def _percentiles(times: Sequence[float], waits: Sequence[list[float]], share: float) -> list[Point]:
    return [
        (at, max(1e-6, percentile(sorted(few), share)))
        for at, few in zip(times, waits, strict=True)
        if few
    ]


def _rates(ordered: Sequence[float], span: float) -> list[Point]:
    """Events a second, as steps."""
    width = span / STEPS
    edges = [bisect_left(ordered, at * width) for at in range(STEPS)] + [len(ordered)]
    found = [(at * width, (edges[at + 1] - edges[at]) / width) for at in range(STEPS)]
    return [*found, (span, found[-1][1])]


def _number(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


# Tables


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


_COLUMNS = (
    "stage", "sent/s", "done/s", "good %", "requests", "failed", "in flight", "tokens/s", "cached %",
)  # fmt: skip
_SPREADS: tuple[tuple[str, Pick], ...] = (
    ("TTFT", lambda found: found.ttft),
    ("from send", lambda found: found.ttft_sent),
    ("TPOT", lambda found: found.tpot),
    ("ITL", lambda found: found.itl),
    ("E2E", lambda found: found.e2e),
)


def _table(result: Result, several: bool) -> str:  # noqa: FBT001
    title = f"<h3>{escape(_title(result))}</h3>" if several else ""
    over = "".join(f'<th colspan="3" class="group">{name}</th>' for name, _ in _SPREADS)
    under = "<th>p50</th><th>p90</th><th>p99</th>" * len(_SPREADS)
    first = "".join(f'<th rowspan="2">{name}</th>' for name in _COLUMNS)
    rows = "".join(_row(stage, result) for stage in result.stages)
    return (
        f'{title}<div class="wide"><table><thead><tr>{first}{over}</tr><tr>{under}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(stage: Stage, result: Result) -> str:
    found = stage.figures
    good = f"{100 * found.good_share:.1f}" if result.slo.limits else "-"
    if stage.met is not None:
        good += f' <b class="{"yes" if stage.met else "no"}">{"✓" if stage.met else "✗"}</b>'
    cells = [
        escape(stage.name), f"{found.offered_rate:.2f}", f"{found.achieved_rate:.2f}", good, f"{found.requests:,}",
        f"{sum(found.errors.values()):,}", f"{found.concurrency:.1f}", f"{found.output_rate:,.0f}",
        f"{100 * found.cached_share:.1f}",
    ]  # fmt: skip
    for _, pick in _SPREADS:
        spread = pick(found)
        hint = (
            "" if spread is None else f"mean {shown_time(spread.mean)} ± {shown_time(spread.half)}"
        )
        cells += [f'<span title="{hint}">{_time(spread, which)}</span>' for which in range(3)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _remarks(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        named = f"{_title(result)}, " if len(results) > 1 else ""
        for stage in result.stages:
            lines += [f"{named}{stage.name}: {line}" for line in remarks(stage)]
        lines += [f"{named}{line}" if named else line for line in result.notes]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return _section("To be wary of", f"<ul>{items}</ul>" if items else "")


_WORDS = (
    (
        "TTFT",
        "time to the first token, from when the request was due; “from send” from when it was sent",
    ),
    ("TPOT", "time per output token after the first: (end - first token) / (tokens - 1)"),
    ("ITL", "time between two pieces of an answer, of all pieces of all answers"),
    ("E2E", "from when the request was due to its last token"),
    ("good", "requests that ended well within every limit of the objective, of all that ended"),
    (
        "p99",
        "the value that 99 % of answers don't exceed; failed requests count against the objective alone",
    ),
)
_DEFINITIONS = (
    '<section class="words"><h2>What the words mean</h2><dl>'
    + "".join(f"<div><dt>{word}</dt><dd>{meaning}</dd></div>" for word, meaning in _WORDS)
    + "</dl></section>"
)
