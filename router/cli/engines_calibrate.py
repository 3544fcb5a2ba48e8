"""`nenya engines calibrate CONFIG`: start engines one after another, measure what work costs on them, and keep it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from engines import measured
from engines.base import Engine, EngineError, EngineInfo, SlowLoader, WorkCosts
from engines.calibration import Unmeasurable
from engines.cores import described
from engines.gpus import NoAnswer, gpus
from engines.measured import Measured
from engines.registry import make
from engines.specs import EngineSpec, ExLlamaSpec, LlamaCppSpec, SimulatedSpec
from router.cli import FAILED, INTERRUPTED, OK, USAGE
from router.cli.terminal import clean
from router.cli.yaml_text import flow
from router.config.reader import Options, examine
from router.errors import ConfigError

UNMEASURED = WorkCosts(prefill_token_s=1.0, step_s=1.0)
"""Given to an engine so that it doesn't measure itself at its start."""

LOADING_S = 2.0
"""Between two words on how far a model is loaded."""

State = Literal["measured", "known", "config", "simulated", "failed"]
_MEANING = {
    "prefill_token_s": "for each token of a prompt",
    "attention_s": "for each token of a prompt and each before it",
    "step_s": "for a step of all answers",
    "request_s": "for each answer in it",
    "context_s": "for each token of context in it",
}
Say = Callable[[str], None]


class Outcome(Struct, frozen=True):
    """What became of one engine, as ``--json`` prints it."""

    engine: str
    kind: str
    state: State
    costs: WorkCosts | None = None
    found: Measured | None = None
    file: str | None = None
    """Where it is kept."""
    error: str | None = None


def run(arguments: argparse.Namespace) -> int:
    """Calibrate. Progress and failures go to standard error, costs to standard output."""
    try:
        engines = examine(arguments.file, Options()).config.engines
    except ConfigError as error:
        print(f"nenya: {error}", file=sys.stderr)
        return USAGE
    if complaint := _unknown(arguments.engine or (), engines):
        print(f"nenya: {complaint}", file=sys.stderr)
        return USAGE
    outcomes = []
    try:
        for name in arguments.engine or engines:
            work = calibrated(name, engines[name], _teller(name), again=arguments.again)
            with contextlib.redirect_stdout(sys.stderr):  # libraries print there
                outcomes.append(asyncio.run(work))
            if not arguments.json:
                _print(outcomes[-1])
    except KeyboardInterrupt:
        return INTERRUPTED
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(outcomes), indent=2).decode())
    return FAILED if any(one.state == "failed" for one in outcomes) else OK


def _unknown(names: Collection[str], engines: Collection[str]) -> str:
    if not engines:
        return "the config has no engines"
    missing = [name for name in names if name not in engines]
    return f"there is no engine {missing[0]!r}; there are {', '.join(engines)}" if missing else ""


def _teller(name: str) -> Say:
    return lambda text: print(clean(f"{name}: {text}"), file=sys.stderr, flush=True)


async def calibrated(name: str, spec: EngineSpec, say: Say, *, again: bool) -> Outcome:
    """Measure one engine, or say why it needn't or can't be."""
    kind = str(spec.__struct_config__.tag)
    if spec.costs is not None and not again:
        return Outcome(name, kind, "config", spec.costs)
    device = device_of(spec)
    before = measured.remembered(spec, device) if device is not None and not again else None
    if before is not None:
        return _known(name, kind, before)
    try:
        engine = make(replace(spec, costs=UNMEASURED))
        async with started(engine, say) as info:
            before = None if again else measured.remembered(spec, info.device)
            if before is not None:
                return _known(name, kind, before)
            found = await measured.anew(engine, info, spec, say)
    except (EngineError, Unmeasurable) as error:
        return Outcome(name, kind, "failed", error=str(error))
    if isinstance(spec, SimulatedSpec):
        return Outcome(name, kind, "simulated", found.costs, found)
    file = measured.remember(found)
    if file is None:
        say("its costs can't be kept: there is no folder for them that can be written to")
    return Outcome(name, kind, "measured", found.costs, found, None if file is None else str(file))


def _known(name: str, kind: str, found: Measured) -> Outcome:
    file = str(measured.file_of(found.settings, found.device))
    return Outcome(name, kind, "known", found.costs, found, file)


def device_of(spec: EngineSpec) -> str | None:
    """What an engine will say that it computes on, where it can be known before; else None."""
    if isinstance(spec, LlamaCppSpec):
        return described(spec.threads)
    if isinstance(spec, ExLlamaSpec):
        with contextlib.suppress(NoAnswer):
            return next((one.name for one in gpus() or () if one.index == spec.gpus[0]), None)
    return None


@contextlib.asynccontextmanager
async def started(engine: Engine, say: Say) -> AsyncIterator[EngineInfo]:
    """The engine, loaded; closed at the end, and where it can't be loaded. Raises EngineError."""
    say("starts")
    telling = asyncio.create_task(_tell_loading(engine, say))
    try:
        try:
            info = await engine.start()
        finally:
            telling.cancel()
        yield info
    finally:
        await engine.close()


async def _tell_loading(engine: Engine, say: Say) -> None:
    told = None
    while True:
        await asyncio.sleep(LOADING_S)
        done = engine.loaded if isinstance(engine, SlowLoader) else None
        if done is not None and done != told:
            told = done
            say(f"{done:.0%} loaded")


def _print(one: Outcome) -> None:
    if one.error is not None:
        print(clean(f"nenya: {one.engine} can't be measured: {one.error}"), file=sys.stderr)
        return
    print(clean(f"{one.engine} ({one.kind}){_where(one)}: {_state(one)}"))
    for line in _lines(one):
        print(clean(f"  {line}"))


def _where(one: Outcome) -> str:
    return f", {one.found.model} on {one.found.device}" if one.found and one.found.device else ""


def _state(one: Outcome) -> str:
    if one.state == "known" and one.found is not None:
        when = time.strftime("%Y-%m-%d", time.gmtime(one.found.at))
        return f"measured on {when}; --again measures anew"
    return {
        "measured": "measured now",
        "config": "the config says its costs; --again measures, to compare",
        "simulated": "measured to compare; its costs are the figures of the config, so nothing is kept",
    }[one.state]


def _lines(one: Outcome) -> Iterator[str]:
    assert one.costs is not None, "only failures have none"
    costs: dict[str, float] = asdict(one.costs)
    for name, seconds in costs.items():
        yield f"{name:<16}{seconds * 1e6:>12.6g} µs  {_MEANING[name]}"
    if one.found is not None:
        yield f"the worst of what was timed is off by {one.found.error:.1%}"
    said = {name: float(f"{seconds:.4g}") for name, seconds in costs.items() if seconds}
    yield f"costs: {flow(said)}"
    if one.file is not None:
        yield f"kept in {one.file}"
