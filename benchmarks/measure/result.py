"""The JSON that every benchmark writes, the simulator too: what was done, what came out, and every request.

A reader ignores fields it doesn't know, so that later versions may add some; `schema` changes where one changes its
meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.measure.figures import Figures
from benchmarks.measure.records import OK, Columns, Record, rows
from benchmarks.measure.slo import Slo

SCHEMA = 1


class BadResult(ValueError):  # noqa: N818 - the name says the state
    """The file is no result; says why."""


class Stage(msgspec.Struct, kw_only=True):
    """One rate, one concurrency, one policy."""

    name: str
    figures: Figures
    rate: float | None = None
    """That was asked for; requests a second. None in a closed loop."""
    workers: int | None = None
    """Of a closed loop."""
    warmup_s: float = 0.0
    ended: str = "done"
    """`done`, `saturated`, `hopeless` (the objective was out of reach) or `interrupted`."""
    met: bool | None = None
    """The objective, where there is one."""
    notes: list[str] = []
    failures: dict[str, str] = {}
    """For each kind of failure, the server's words on the first."""
    requests: Columns


class Capacity(msgspec.Struct, frozen=True):
    """The answer of a search; requests a second."""

    held: float
    """The highest rate that met the objective; 0 where none did."""
    failed: float | None
    """The lowest that didn't."""
    whole: bool = True
    """False: the search was interrupted."""


class Result(msgspec.Struct, kw_only=True):
    """One run of a benchmark."""

    schema: int = SCHEMA
    kind: Literal["measured", "simulated"]
    profile: str
    made_at: str
    """UTC."""
    version: str
    """Of Nenya."""
    target: str
    """A URL, or the engines of a simulation."""
    model: str = ""
    label: str = ""
    load: str
    slo: Slo = Slo()
    seed: int
    stages: list[Stage]
    capacity: Capacity | None = None
    notes: list[str] = []
    machine: str = ""
    """Of the client."""


def encoded(result: Result) -> bytes:
    """The JSON, to be read by people as well."""
    return msgspec.json.encode(result) + b"\n"


def read(path: Path) -> Result:
    """The result in ``path``. Raises BadResult."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except OSError as error:
        raise BadResult(f"{path}: can't be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadResult(f"{path}: is no result of nenya bench: {error}") from error
    if result.schema != SCHEMA:
        raise BadResult(f"{path}: has schema {result.schema}; this version reads {SCHEMA}")
    if not result.stages:
        raise BadResult(f"{path}: has no stages")
    return result


def measured(stage: Stage) -> list[Record]:
    """The requests of ``stage`` that its figures count."""
    return [one for one in rows(stage.requests) if one.due_s >= stage.warmup_s]


def answered(stage: Stage) -> list[Record]:
    """Those of them that ended well."""
    return [one for one in measured(stage) if one.outcome == OK]
