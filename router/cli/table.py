"""Rows for people: columns under their names, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence

from router.cli.terminal import clean

Cell = str | int | float | None
_GAP = "  "


def aligned(names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The table, without a last newline; what is None is a hyphen."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *texts, strict=True)]
    rights = [
        bool(rows) and all(isinstance(row[at], int | float | None) for row in rows)
        for at in range(len(names))
    ]
    lines = []
    for line in (names, *texts):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, rights, strict=True)
        )
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.6f}".rstrip("0").rstrip(".") or "0"
    return clean(str(cell))


def sized(count: int) -> str:
    """Bytes in the unit that leaves few digits."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.1f} KiB"


def parameters(count: int) -> str:
    """How many parameters a model has, as people say it."""
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"
