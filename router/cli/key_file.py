"""Keys from a file, for `nenya keys import`: a CSV with a header, or a JSON list of objects."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import msgspec

from router.cli.ledger import AskedWronglyError


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be made; ``secret`` None has one made for it."""

    id: str
    secret: str | None = None
    tier: str | None = None
    models: tuple[str, ...] | None = None
    expires: str | None = None
    budget_usd: float | None = None

    def __repr__(self) -> str:
        return f"Wanted(id={self.id!r})"


def read(path: str) -> list[Wanted]:
    """The keys in the file. Raises AskedWronglyError, which names no secret."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise AskedWronglyError(f"{path}: {why}") from error
    rows = _rows(text) if path.lower().endswith(".csv") else None
    try:
        if rows is not None:
            found = msgspec.convert(rows, list[Wanted], strict=False)
        else:
            found = msgspec.json.decode(text, type=list[Wanted])
    except msgspec.MsgspecError as error:
        raise AskedWronglyError(f"{path}: {error}") from error
    counts = Counter(wanted.id for wanted in found)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise AskedWronglyError(f"{path}: ids that are there twice: {', '.join(twice)}")
    return found


def _rows(text: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for line in csv.DictReader(io.StringIO(text)):
        row: dict[str, object] = {str(name): value for name, value in line.items() if value}
        if isinstance(models := row.get("models"), str):
            row["models"] = [model.strip() for model in models.split(";") if model.strip()]
        rows.append(row)
    return rows
