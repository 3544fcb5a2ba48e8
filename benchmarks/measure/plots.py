"""Plots as SVG text: lines over two axes, that need nothing but the page's colours.

Colours are classes (`c0` to `c7`), so that the page decides them for light and dark. What a pointer rests on says its
values in a `title`, which every browser shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import msgspec

WIDE, NARROW, HEIGHT = 520, 380, 300
"""Two or three plots beside each other: letters then have the same size."""
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 22, 44
COLOURS = 8
TICKS = 6
"""At most so many on an axis, about."""
MOST_POINTS = 400
"""Of a line: more can't be seen."""
MOST_DOTS = 60
"""Above, a line has no dots of its own."""

Point = tuple[float, float]
Shown = Callable[[float], str]


class Series(msgspec.Struct, frozen=True):
    """One line."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False
    steps: bool = False
    """Level between points."""
    dots: bool = True
    """A dot on each point, where they are few."""


class Axis(msgspec.Struct, frozen=True):
    """One axis."""

    label: str
    shown: Shown
    """How a value is written."""
    log: bool = False
    low: float | None = None
    """Where it begins; None: by the values."""
    high: float | None = None


class Mark(msgspec.Struct, frozen=True):
    """A limit: a line across."""

    value: float
    label: str
    upright: bool = False


class _Scale:
    """From values to places."""

    def __init__(self, axis: Axis, values: Sequence[float], begin: float, end: float) -> None:
        self._log = axis.log
        low = axis.low if axis.low is not None else min(values)
        high = axis.high if axis.high is not None else max(values)
        if axis.log:
            low = max(low, 1e-9)
            high = max(high, low * 1.001)
            self.ticks = log_ticks(low, high)
            low, high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        else:
            high = high if high > low else low + 1
            self.ticks = ticks(low, high)
            if axis.low is None:
                low = min(low, self.ticks[0])
            if axis.high is None:
                high = max(high, self.ticks[-1])
        self._low, self._high = self._on(low), self._on(high)
        self._begin, self._end = begin, end

    def _on(self, value: float) -> float:
        return math.log10(max(value, 1e-9)) if self._log else value

    def __call__(self, value: float) -> float:
        share = (self._on(value) - self._low) / (self._high - self._low)
        return self._begin + (self._end - self._begin) * min(1.02, max(-0.02, share))

    def holds(self, value: float) -> bool:
        return self._low <= self._on(value) <= self._high


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to the first that is not below ``high``."""
    rough = (high - low) / TICKS
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * times for times in (1, 2, 5, 10) if size * times >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, fewer over many powers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    times = (1, 2, 5) if last - first <= 1 else (1, 3) if last - first <= 3 else (1,)
    every = [time * 10.0**power for power in range(first - 1, last + 1) for time in times]
    begin = max((at for at, tick in enumerate(every) if tick <= low * 1.0001), default=0)
    end = min(
        (at for at, tick in enumerate(every) if tick >= high * 0.9999), default=len(every) - 1
    )
    return every[begin : end + 1]


def plot(
    title: str,
    series: Sequence[Series],
    axes: tuple[Axis, Axis],
    marks: Sequence[Mark] = (),
    *,
    narrow: bool = False,
) -> str:
    """A figure with its legend; empty where there is nothing to show. ``axes``: across and up."""
    x, y = axes
    right = (NARROW if narrow else WIDE) - RIGHT
    series = [one for one in series if one.points]
    if not series:
        return ""
    across = _Scale(x, [at for one in series for at, _ in one.points], LEFT, right)
    up = _Scale(y, [value for one in series for _, value in one.points], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(across, up, axes, right)]
    parts += [text for mark in marks for text in _mark(mark, across, up, right)]
    parts += [text for one in series for text in _line(one, across, up, x, y)]
    legend = "".join(
        f'<span class="key"><i class="{_style(one)}"></i>{escape(one.name)}</span>'
        for one in series
        if one.name
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {right + RIGHT} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="keys">{legend}</div></figure>'
    )


def _grid(across: _Scale, up: _Scale, axes: tuple[Axis, Axis], right: int) -> list[str]:
    (x, y), bottom = axes, HEIGHT - BOTTOM
    parts = []
    for tick in up.ticks:
        if up.holds(tick):
            at = f"{up(tick):.1f}"
            parts.append(f'<path class="grid" d="M{LEFT} {at}H{right}"/>')
            parts.append(
                f'<text x="{LEFT - 7}" y="{at}" class="tick y">{escape(y.shown(tick))}</text>'
            )
    for tick in across.ticks:
        if across.holds(tick):
            at = f"{across(tick):.1f}"
            parts.append(f'<path class="grid" d="M{at} {TOP}V{bottom}"/>')
            parts.append(
                f'<text x="{at}" y="{bottom + 16}" class="tick x">{escape(x.shown(tick))}</text>'
            )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    parts.append(
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 6}" class="label x">{escape(x.label)}</text>'
    )
    parts.append(
        f'<text transform="translate(12 {(TOP + bottom) / 2:.0f}) rotate(-90)" class="label x">{escape(y.label)}</text>'
    )
    return parts


def _mark(mark: Mark, across: _Scale, up: _Scale, right: int) -> list[str]:
    bottom = HEIGHT - BOTTOM
    scale = across if mark.upright else up
    if not scale.holds(mark.value):
        return []
    at = scale(mark.value)
    if mark.upright:
        # Above the plot, where no line is; on the side with more room.
        side = "tick marked" if at < (LEFT + right) / 2 else "tick y marked"
        return [
            f'<path class="mark" d="M{at:.1f} {TOP}V{bottom}"/>',
            f'<text x="{at:.1f}" y="{TOP - 7}" class="{side}">{escape(mark.label)}</text>',
        ]
    return [
        f'<path class="mark" d="M{LEFT} {at:.1f}H{right}"/>',
        f'<text x="{LEFT + 5}" y="{at - 5:.1f}" class="tick marked">{escape(mark.label)}</text>',
    ]


def _style(one: Series) -> str:
    return f"c{one.colour % COLOURS}{' dash' if one.dashed else ''}"


def _line(one: Series, across: _Scale, up: _Scale, x: Axis, y: Axis) -> list[str]:
    points = one.points
    if len(points) > MOST_POINTS:
        points = [points[at * (len(points) - 1) // (MOST_POINTS - 1)] for at in range(MOST_POINTS)]
    places = [(across(at), up(value)) for at, value in points]
    path = [f"M{places[0][0]:.1f} {places[0][1]:.1f}"]
    for at, value in places[1:]:
        path.append(f"H{at:.1f}V{value:.1f}" if one.steps else f"L{at:.1f} {value:.1f}")
    style = _style(one)
    parts = [
        f'<path class="line {style}" d="{"".join(path)}"><title>{escape(one.name)}</title></path>'
    ]
    if one.dots and len(points) <= MOST_DOTS and not one.steps:
        for (at, value), (left, top) in zip(points, places, strict=True):
            words = f"{one.name}: {y.shown(value)} at {x.shown(at)}"
            parts.append(
                f'<circle class="dot {style}" cx="{left:.1f}" cy="{top:.1f}" r="3">'
                f"<title>{escape(words)}</title></circle>"
            )
    return parts
