"""`nenya bench calibrate RUN.json`: what an engine's steps cost, for `nenya bench simulate --costs`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from benchmarks.measure.calibrate import Fit, Settings, TooLittle, calibrate
from benchmarks.measure.check import Checked, check
from benchmarks.measure.result import BadResult, read
from benchmarks.measure.slo import shown_time
from benchmarks.simulate.gpu import Gpu
from benchmarks.tables import aligned
from router.cli import FAILED, OK, USAGE
from router.cli.bench_results import Unwritable, put
from router.cli.terminal import clean


def run(arguments: argparse.Namespace) -> int:
    """Fit and check. The costs go to the file or standard output, the check to standard error."""
    settings = Settings(
        kv_tokens=arguments.kv_tokens or Settings().kv_tokens,
        chunk_tokens=arguments.chunk_tokens,
        slots=arguments.slots,
    )
    try:
        result = read(Path(arguments.run))
        fit = calibrate(result, settings, arguments.name or f"{result.model}, calibrated")
        costs = msgspec.json.format(msgspec.json.encode(fit.gpu), indent=2) + b"\n"
        if arguments.output is not None:
            put(arguments.output, costs)
    except (BadResult, TooLittle) as error:
        print(f"nenya bench calibrate: {clean(str(error))}", file=sys.stderr)
        return USAGE
    except Unwritable as error:
        print(f"nenya bench calibrate: {clean(str(error))}", file=sys.stderr)
        return FAILED
    if arguments.output is None:
        print(costs.decode(), end="")
    print(clean(_told(fit, check(result, fit.gpu))), file=sys.stderr)
    return OK


def _told(fit: Fit, checked: list[Checked]) -> str:
    costs = fit.gpu.costs
    step = f"{_tiny(costs.step_s)} + {_tiny(costs.request_s)} an answer"
    step += f" + {_tiny(costs.context_s)} a token in memory"
    prompt = f"{_tiny(fit.gpu.prompt_step_s)} a step + {_tiny(costs.prefill_token_s)} a token"
    prompt += f" + {_tiny(1000 * costs.attention_s)} for every thousand before it"
    lines = [
        f"answers      {fit.answers}; half of their TPOT are within {fit.tpot_error:.1%} of the fit",
        f"lone ones    {fit.lone}; half of their TTFT are within {fit.ttft_error:.1%}",
        f"a step       {step}",
        f"a prompt     {prompt}",
        f"around it    {_tiny(fit.gpu.overhead_s)}",
        f"slots        {fit.gpu.slots}",
        *fit.notes,
    ]
    if checked:
        head = ("the simulator's replay", "TTFT p50", "p90", "TPOT p50", "p90", "E2E p50", "p90")
        rows = [line for one in checked for line in _rows(one)]
        lines += ["", aligned(head, rows)]
    return "\n".join(lines)


def _rows(one: Checked) -> list[tuple[str, ...]]:
    return [
        (f"{one.stage}, measured", *map(shown_time, one.measured)),
        (f"{one.stage}, simulated", *map(shown_time, one.simulated)),
    ]


def _tiny(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs"


def engine(path: Path) -> Gpu:
    """The engine whose costs ``path`` has. Raises BadResult."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Gpu)
    except OSError as error:
        raise BadResult(f"{path}: can't be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadResult(f"{path}: has no costs of `nenya bench calibrate`: {error}") from error
