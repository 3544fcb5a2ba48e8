"""`nenya bench constant|poisson|concurrent|ramp|sweep|replay|goodput URL`: a load on a running server.

The figures are `benchmarks.measure`'s; here its words are read, its progress shown and its results written. The table
goes to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.measure.books import read
from benchmarks.measure.client import Asking, BadUrl, Endpoint
from benchmarks.measure.console import table
from benchmarks.measure.lengths import BadLength, lengths
from benchmarks.measure.preflight import Unusable, look
from benchmarks.measure.profiles import Plan, Run
from benchmarks.measure.result import Result
from benchmarks.measure.sessions import Shape
from benchmarks.measure.sheets import lines
from benchmarks.measure.slo import BadSlo, slo, span
from benchmarks.simulate.load import Load
from benchmarks.simulate.traces import BadTrace
from router import __version__
from router.cli import FAILED, INTERRUPTED, OK, USAGE
from router.cli.bench_progress import Progress
from router.cli.bench_results import Unwritable, look_at, write
from router.cli.terminal import clean


class Misuse(ValueError):  # noqa: N818 - the name says the state
    """An argument that can't be; says which and why."""


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    try:
        plan, asking = planned(arguments), asked(arguments)
        look_at(arguments)
    except (Unwritable, BadTrace, BadLength, BadSlo, Misuse) as error:
        return _fail(arguments, str(error), USAGE)
    _many_files()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            result, run_ = runner.run(_measure(arguments, plan, asking))
    except BadUrl as error:
        return _fail(arguments, str(error), USAGE)
    except Unusable as error:
        return _fail(arguments, str(error), FAILED)
    return _concluded(arguments, result, run_)


def _concluded(arguments: argparse.Namespace, result: Result, run_: Run) -> int:
    """Print and write what was measured; the exit code."""
    if not result.stages:
        return INTERRUPTED
    print(clean(table(result)), flush=True)
    try:
        write(arguments, [result])
        if arguments.jsonl is not None:
            _lines(arguments.jsonl, run_)
    except Unwritable as error:
        return _fail(arguments, str(error), FAILED)
    if run_.stop.is_set():
        return INTERRUPTED
    return OK if any(stage.figures.ok for stage in result.stages) else FAILED


async def _measure(arguments: argparse.Namespace, plan: Plan, asking: Asking) -> tuple[Result, Run]:
    """Raises BadUrl, Unusable."""
    endpoint = Endpoint(arguments.url, os.environ.get(arguments.key_env))
    loop = asyncio.get_running_loop()
    try:
        found = await look(endpoint, asking if asking.model else None, asking)
        asking = msgspec.structs.replace(asking, model=found.model)
        with Progress(sys.stderr) as progress:
            measuring = Run(plan, endpoint, asking, found, progress)
            # Some event loops have no signals, and only the main thread has any.
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(signal.SIGINT, _interrupt, loop, measuring, progress)
            return await measuring.go(__version__), measuring
    finally:
        await endpoint.close()


def _interrupt(loop: asyncio.AbstractEventLoop, measuring: Run, progress: Progress) -> None:
    """Ctrl-C: end with what there is. The second time, end at once."""
    loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    progress.say("interrupted: what was measured follows")
    measuring.stop.set()


def planned(arguments: argparse.Namespace) -> Plan:
    """What the command line asks for. Raises BadTrace, BadLength, BadSlo, Misuse."""
    trace = _trace(arguments)
    objective = slo(arguments.slo)
    profile = arguments.profile
    if profile == "goodput" and not objective.limits:
        raise Misuse("--slo: a search needs an objective, such as ttft_p99=2s,tpot_p99=80ms")
    rates = _rates(arguments)
    faster = getattr(arguments, "faster", 1.0)
    if profile == "replay":
        assert trace is not None
        _positive("--faster", faster)
        faster = rates[0] / trace.rate if rates else faster
        rates = ()
    _positive("--requests", arguments.requests)
    if trace is None and arguments.duration is None and arguments.usual_duration is None:
        raise Misuse("--duration: how long?")
    return Plan(
        profile=profile,
        shape=_shape(arguments) if trace is None else None,
        trace=trace,
        rates=rates,
        workers=_workers(arguments),
        spacing="even" if profile == "constant" else "poisson",
        ramp=_ramp(arguments),
        faster=faster,
        steps=_least("--steps", getattr(arguments, "steps", 6), 3),
        most_workers=_least("--most", getattr(arguments, "most", 128), 2),
        precision=_share("--precision", getattr(arguments, "precision", 0.05)),
        duration_s=_duration(arguments, trace),
        requests=arguments.requests,
        warmup_s=_time("--warmup", arguments.warmup),
        patience_s=_time("--timeout", arguments.timeout) or 600.0,
        slo=objective,
        stops_saturated=not arguments.keep_going,
        seed=arguments.seed,
        same_text=arguments.same_text,
        label=arguments.label,
    )


def asked(arguments: argparse.Namespace) -> Asking:
    """The fields of every request; the model may be missing. Raises Misuse."""
    extra: dict[str, object] = {}
    if arguments.body is not None:
        try:
            extra = msgspec.json.decode(arguments.body, type=dict[str, object])
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise Misuse(f"--body: a JSON object is needed: {error}") from None
    return Asking(arguments.model or "", arguments.limit_field, extra)


def _trace(arguments: argparse.Namespace) -> Load | None:
    if arguments.trace is None:
        return None
    return read(Path(arguments.trace), arguments.requests)


def _shape(arguments: argparse.Namespace) -> Shape:
    if arguments.prefix < 0:
        raise Misuse("--prefix: at least 0")
    return Shape(
        input=lengths(arguments.input),
        output=lengths(arguments.output),
        prefix_tokens=arguments.prefix,
        prefixes=_least("--prefixes", arguments.prefixes, 1),
        turns=_least("--turns", arguments.turns, 1),
        think_s=_time("--think", arguments.think),
    )


def _ramp(arguments: argparse.Namespace) -> tuple[float, float]:
    if arguments.profile != "ramp":
        return 0.0, 0.0
    _positive("--to", arguments.high)
    if not 0 <= arguments.low < arguments.high:
        raise Misuse("--from: at least 0 and below --to")
    return arguments.low, arguments.high


def _duration(arguments: argparse.Namespace, trace: Load | None) -> float | None:
    if arguments.duration is not None:
        found = _time("--duration", arguments.duration)
        _positive("--duration", found)
        return found
    if trace is not None:
        return None  # all of it
    if arguments.requests is not None and arguments.profile != "ramp":
        return None
    return _time("--duration", arguments.usual_duration)


def _rates(arguments: argparse.Namespace) -> tuple[float, ...]:
    return tuple(_numbers("--rate", getattr(arguments, "rate", None)))


def _workers(arguments: argparse.Namespace) -> tuple[int, ...]:
    found = _numbers("--concurrency", getattr(arguments, "concurrency", None))
    if any(number != int(number) for number in found):
        raise Misuse("--concurrency: whole numbers")
    return tuple(map(int, found))


def _numbers(option: str, text: str | None) -> list[float]:
    found = []
    for part in text.split(",") if text is not None else ():
        try:
            found.append(float(part))
        except ValueError:
            raise Misuse(f"{option}: {part!r} is no number") from None
        _positive(option, found[-1])
    return found


def _time(option: str, text: str) -> float:
    found = span(text)
    if found is None:
        raise Misuse(f"{option}: {text!r} is no time; write such as 500ms, 30s, 2m")
    return found


def _positive(option: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise Misuse(f"{option}: must be above 0")


def _least(option: str, value: int, least: int) -> int:
    if value < least:
        raise Misuse(f"{option}: at least {least}")
    return value


def _share(option: str, value: float) -> float:
    if not 0 < value < 1:
        raise Misuse(f"{option}: must be above 0 and below 1")
    return value


def _lines(path: str, run_: Run) -> None:
    try:
        with Path(path).open("wb") as file:
            file.writelines(lines(run_.records))
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error


def _many_files() -> None:
    """Let every request have its connection, as far as the system allows."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Run on uvloop where it is, for its speed; else on asyncio."""
    try:
        import uvloop
    except ImportError:
        return None
    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return make


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    print(f"nenya bench {arguments.profile}: {clean(message)}", file=sys.stderr)
    return code
