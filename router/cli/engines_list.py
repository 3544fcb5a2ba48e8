"""`nenya engines list CONFIG`: a config's engines, what they hold, and whether their costs are known."""

from __future__ import annotations

import argparse
import sys
import time

import msgspec
from msgspec import Struct

from engines.base import EngineError, WorkCosts
from engines.exl2.loading import examine as examine_model
from engines.measured import anywhere
from engines.probe import probe
from engines.specs import EngineSpec, LlamaCppSpec, SimulatedSpec
from router.cli import OK, USAGE
from router.cli.table import aligned, parameters
from router.config.reader import Options, examine
from router.config.schema import Config
from router.errors import ConfigError
from router.pool import cache_tokens


class Row(Struct, frozen=True):
    """One engine, as ``--json`` prints it."""

    engine: str
    kind: str
    model: str
    what: str
    """Of the model's files, or why they can't be served."""
    slots: int
    context_tokens: int | None
    """Of a request; None: the model's own."""
    cache_tokens: int | None
    serves: tuple[str, ...]
    """The config's models that it is a target of."""
    costs_from: str
    """``config``, ``measured DATE``, ``model`` or ``guess``."""
    costs: WorkCosts | None


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    try:
        config = examine(arguments.file, Options(files=False)).config
    except ConfigError as error:
        print(f"nenya: {error}", file=sys.stderr)
        return USAGE
    rows = [row_of(config, name, spec) for name, spec in config.engines.items()]
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
    elif rows:
        names = ("engine", "kind", "what", "slots", "context", "cache", "serves", "costs")
        print(aligned(names, [_cells(row) for row in rows]))
    else:
        print("the config has no engines")
    return OK


def row_of(config: Config, name: str, spec: EngineSpec) -> Row:
    """What is known of one engine without starting it."""
    costs_from, costs = _costs(spec)
    return Row(
        engine=name,
        kind=str(spec.__struct_config__.tag),
        model="" if isinstance(spec, SimulatedSpec) else spec.model,
        what=_what(spec),
        slots=spec.slots,
        context_tokens=spec.context_tokens,
        cache_tokens=cache_tokens(spec),
        serves=tuple(
            model
            for model, settings in config.models.items()
            if any(target.engine == name for target in settings.targets)
        ),
        costs_from=costs_from,
        costs=costs,
    )


def _what(spec: EngineSpec) -> str:
    if isinstance(spec, SimulatedSpec):
        return "made-up answers"
    try:
        if isinstance(spec, LlamaCppSpec):
            found = probe(spec.model).report
            name, kind, count = found.name, found.kind, found.parameters
            problems = found.problems
        else:
            folder = examine_model(spec).folder
            name, kind, count = folder.name, folder.format, folder.parameters
            problems = ()
    except EngineError as error:
        return f"can't be served: {error}"
    if problems:
        return f"can't be served: {problems[0]}"
    return f"{name}, {kind}, {parameters(count)} parameters"


def _costs(spec: EngineSpec) -> tuple[str, WorkCosts | None]:
    if spec.costs is not None:
        return "config", spec.costs
    if isinstance(spec, SimulatedSpec):
        return "model", None
    found = next(anywhere(spec), None)
    if found is None:
        return "guess", None
    return f"measured {time.strftime('%Y-%m-%d', time.gmtime(found.at))}", found.costs


def _cells(row: Row) -> tuple[str | int | None, ...]:
    serves = ", ".join(row.serves) or None
    return (
        row.engine, row.kind, row.what, row.slots, row.context_tokens, row.cache_tokens, serves, row.costs_from
    )  # fmt: skip
