"""`nenya doctor [CONFIG]`: a line for everything that a machine needs, and what to do where it lacks it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby

import msgspec

from engines.base import EngineError
from engines.exl2 import memory
from engines.probe import Probed, probe
from engines.specs import ExLlamaV2Spec, LlamaCppSpec
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
    specs = [spec for spec in config.engines.values() if isinstance(spec, ExLlamaV2Spec)]
    return Need(
        kinds=frozenset(str(spec.__struct_config__.tag) for spec in config.engines.values()),
        gpus=frozenset(index for spec in specs for index in spec.gpus),
        tensor_parallel=any(spec.tensor_parallel for spec in specs),
        connections=config.server.max_connections,
        everything=everything,
    )


def of_models(config: Config, facts: Facts) -> Iterator[Check]:
    """A line for each engine's model, and one for GPUs that several engines share."""
    gpu_models: dict[str, tuple[ExLlamaV2Spec, int]] = {}
    for name, spec in config.engines.items():
        if not isinstance(spec, LlamaCppSpec | ExLlamaV2Spec):
            continue
        title = f"engine {name}"
        try:
            found = probe(spec.model)
            draft = None
            if isinstance(spec, ExLlamaV2Spec) and spec.draft_model is not None:
                draft = probe(spec.draft_model)
        except EngineError as error:
            yield Check(title, "missing", error.message, "see its `model`")
            continue
        problems = [*found.report.problems, *(draft.report.problems if draft is not None else ())]
        if found.report.engine != spec.__struct_config__.tag:
            served = found.report.engine or "no engine here"
            problems.insert(0, f"it is {found.report.kind}, for {served}")
        if problems:
            yield Check(title, "wrong", problems[0], f"nenya engines probe {spec.model}")
        elif isinstance(spec, ExLlamaV2Spec) and found.folder is not None:
            yield _fits(title, spec, found, draft, facts)
            needed = memory.estimate(found.folder, spec, None if draft is None else draft.folder)
            gpu_models[name] = (spec, needed.total)
        else:
            yield Check(title, "ok", f"{found.report.name}, {found.report.kind}")
    yield from _shared(gpu_models, facts)


def _fits(
    title: str, spec: ExLlamaV2Spec, found: Probed, draft: Probed | None, facts: Facts
) -> Check:
    assert found.folder is not None, "of a GPU's engine"
    said = f"{found.report.name}, {found.report.kind}"
    there = {one.index: one.free_bytes for one in facts.gpus or () if one.index in spec.gpus}
    if len(there) < len(spec.gpus):
        return Check(title, "ok", f"{said}; whether it fits can't be told")
    if any(port.is_nenya for port in facts.ports):
        return Check(title, "ok", f"{said}; whether it fits isn't asked while a Nenya runs")
    verdict = memory.judge(
        found.folder, spec, sum(there.values()), None if draft is None else draft.folder
    )
    if verdict.room == "fits":
        takes = f"{memory.gib(verdict.needed.total)} of {memory.gib(verdict.free)} free"
        return Check(title, "ok", f"{said}; takes {takes}")
    needs, _, fix = verdict.advice.partition(": ")
    return Check(title, "wrong", f"{said}: {needs}", fix, needed=verdict.room == "too big")


def _shared(models: Mapping[str, tuple[ExLlamaV2Spec, int]], facts: Facts) -> Iterator[Check]:
    """Engines on the same GPUs must fit there together."""
    total = {one.index: one.total_bytes for one in facts.gpus or ()}

    def gpus_of(name: str) -> tuple[int, ...]:
        return tuple(sorted(models[name][0].gpus))

    for gpus, group in groupby(sorted(models, key=gpus_of), gpus_of):
        names = list(group)
        there = sum(total.get(index, 0) for index in gpus)
        needed = sum(models[name][1] for name in names)
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
