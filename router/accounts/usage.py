"""Sums over the records of usage: by key, model, target and day, in a span of time."""

from __future__ import annotations

from typing import Literal

import msgspec

from router.accounts.prices import NANOS
from router.accounts.store import Store

Group = Literal["key", "model", "target", "day"]

_COLUMNS: dict[Group, str] = {
    "key": "key_id",
    "model": "model",
    "target": "target",
    "day": "date(at, 'unixepoch')",
}
"""The only texts of a caller's choice that come into a query, and the caller chooses by name."""
_SUMS = (
    "count(*), sum(status >= 400), coalesce(sum(input_tokens), 0), coalesce(sum(cached_input_tokens), 0), "
    "coalesce(sum(output_tokens), 0), sum(cost_nanos)"
)
FIELDS = ("requests", "errors", "input_tokens", "cached_input_tokens", "output_tokens", "cost_usd")


class Question(msgspec.Struct, frozen=True):
    """Which records, and how they are summed up. Times are seconds since the epoch."""

    by: tuple[Group, ...]
    since: float | None = None
    until: float | None = None
    """Not included."""
    key_id: str | None = None
    model: str | None = None


Row = dict[str, str | int | float]


def usage(store: Store, question: Question) -> list[Row]:
    """One row for each group, in the groups' order: its names and FIELDS. Raises StoreError."""
    columns = [_COLUMNS[group] for group in question.by]
    conditions, values = _conditions(question)
    query = f"SELECT {', '.join([*columns, _SUMS])} FROM usage"  # noqa: S608 - closed sets, see above
    if conditions:
        query += f" WHERE {' AND '.join(conditions)}"
    places = ", ".join(str(place + 1) for place in range(len(columns)))
    query += f" GROUP BY {places} ORDER BY {places}" if columns else " HAVING count(*) > 0"
    names = (*question.by, *FIELDS)
    return [_row(names, found) for found in store.select(query, values)]


def _row(names: tuple[str, ...], found: tuple[object, ...]) -> Row:
    row = msgspec.convert(dict(zip(names, found, strict=True)), Row)
    row["cost_usd"] = int(row["cost_usd"]) / NANOS
    return row


def _conditions(question: Question) -> tuple[list[str], list[float | str]]:
    wanted: tuple[tuple[str, float | str | None], ...] = (
        ("at >= ?", question.since),
        ("at < ?", question.until),
        ("key_id = ?", question.key_id),
        ("model = ?", question.model),
    )
    given = [(condition, value) for condition, value in wanted if value is not None]
    return [condition for condition, _ in given], [value for _, value in given]
