"""`nenya doctor [CONFIG]`: a line for everything that a machine needs, and what to do where it lacks it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby

import msgspec

from engines.base import EngineError
from engines.exl2 import memory
from engines.exl2.loading import Model
from engines.exl2.loading import examine as examine_model
from engines.probe import probe
from engines.specs import ExLlamaSpec, LlamaCppSpec, SimulatedSpec
from router.cli import FAILED, OK, USAGE
from router.cli.doctor_facts import Facts, collect
from router.cli.doctor_rules import Check, Need, judge
from router.cli.terminal import bold, clean
from router.config.reader import Options, embedded, examine
from router.config.schema import Config
from router.errors import ConfigError

_MARKS = {"ok": "ok     ", "missing": "missing", "wrong": "wrong  "}


def run(arguments: argparse.Namespace) -> int:
    """Print a line for everything; 0 where the config can be served."""
    try:
        given = arguments.file is not None
        config = examine(arguments.file, Options(files=False)).config if given else embedded()
    except ConfigError as error:
        print(f"nenya: {error}", file=sys.stderr)
        return USAGE
    need = need_of(config, everything=not given)
    addresses = {"--listen": config.server.listen, "--admin": config.server.admin}
    # A config without the GPU engine doesn't pay for importing torch; whoever asks about the machine does.
    facts = collect(
        {option: text for option, text in addresses.items() if text is not None},
        ask_torch=need.asks_gpu,
    )
    checks = [*judge(facts, need), *of_models(config, facts)]
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(checks), indent=2).decode())
    else:
        _print(checks)
    return FAILED if any(one.needed and one.state != "ok" for one in checks) else OK


def need_of(config: Config, *, everything: bool) -> Need:
    """What ``config`` asks of a machine; ``everything``: tell of what it doesn't need, too."""
    specs = [spec for spec in config.engines.values() if isinstance(spec, ExLlamaSpec)]
    return Need(
        kinds=frozenset(str(spec.__struct_config__.tag) for spec in config.engines.values()),
        gpus=frozenset(index for spec in specs for index in spec.gpus),
        tensor_parallel=any(spec.tensor_parallel for spec in specs),
        connections=config.server.max_connections,
        everything=everything,
    )


def of_models(config: Config, facts: Facts) -> Iterator[Check]:
    """A line for each engine's model, and one for GPUs that several engines share."""
    models: dict[str, Model] = {}
    for name, spec in config.engines.items():
        if isinstance(spec, SimulatedSpec):
            continue
        title = f"engine {name}"
        try:
            if isinstance(spec, ExLlamaSpec):
                models[name] = examine_model(spec)
                yield _fits(title, models[name], facts)
            else:
                yield _of_file(title, spec)
        except EngineError as error:
            yield Check(title, "wrong", error.message, f"nenya engines probe {spec.model}")
    yield from _shared(models, facts)


def _of_file(title: str, spec: LlamaCppSpec) -> Check:
    """Raises EngineError."""
    found = probe(spec.model).report
    problems = list(found.problems)
    if found.engine != "llamacpp":
        problems.insert(0, f"it is {found.kind}, and llama.cpp reads GGUF files")
    if problems:
        raise EngineError("invalid", f"{spec.model} can't be served: {'; '.join(problems)}")
    return Check(title, "ok", f"{found.name}, {found.kind}")


def _fits(title: str, model: Model, facts: Facts) -> Check:
    spec, folder = model.spec, model.folder
    said = f"{folder.name}, {folder.format}"
    there = {one.index: one.free_bytes for one in facts.gpus or () if one.index in spec.gpus}
    if len(there) < len(spec.gpus):
        return Check(title, "ok", f"{said}; whether it fits can't be told")
    if any(port.is_nenya for port in facts.ports):
        return Check(title, "ok", f"{said}; whether it fits isn't asked while a Nenya runs")
    verdict = memory.judge(folder, spec, sum(there.values()), model.draft)
    if verdict.room == "fits":
        takes = f"{memory.gib(verdict.needed.total)} of {memory.gib(verdict.free)} free"
        return Check(title, "ok", f"{said}; takes {takes}")
    needs, _, fix = verdict.advice.partition(": ")
    return Check(title, "wrong", f"{said}: {needs}", fix, needed=verdict.room == "too big")


def _shared(models: Mapping[str, Model], facts: Facts) -> Iterator[Check]:
    """Engines on the same GPUs must fit there together."""
    total = {one.index: one.total_bytes for one in facts.gpus or ()}

    def gpus_of(name: str) -> tuple[int, ...]:
        return tuple(sorted(models[name].spec.gpus))

    for gpus, group in groupby(sorted(models, key=gpus_of), gpus_of):
        names = list(group)
        there = sum(total.get(index, 0) for index in gpus)
        needed = sum(
            memory.estimate(one.folder, one.spec, one.draft).total
            for one in map(models.__getitem__, names)
        )
        if len(names) > 1 and there and needed > there:
            said = f"{', '.join(names)} take {memory.gib(needed)} of {memory.gib(there)} together"
            yield Check(
                "engines", "wrong", said, "give them other `gpus`, or smaller `cache_tokens`"
            )


def _print(checks: list[Check]) -> None:
    width = max(len(one.name) for one in checks)
    for one in checks:
        mark = _MARKS[one.state]
        mark = bold(mark, sys.stdout) if one.needed and one.state != "ok" else mark
        rest = "" if one.needed or one.state == "ok" else " (not needed here)"
        print(f"{mark}  {clean(f'{one.name:<{width}}  {one.detail}{rest}')}")
        if one.fix:
            print(f"{'':<{width + 11}}{clean(one.fix)}")
    lacking = sum(one.needed and one.state != "ok" for one in checks)
    print("\nAll that is needed is there." if not lacking else f"\n{lacking} to mend.")
