"""The exllamav2 engine beside ExLlamaV2's bare loop, on the same weights: tokens per second and time to first token.

    python -m benchmarks.gpu --json bench.json     on a GPU: a random model of a billion weights, in half precision and
                                                   converted to EXL2 at 4 bits
    python -m benchmarks.gpu --tiny                on the CPU harness: shows that it runs, says nothing of speed

Both sides have the same weights, cache, attention, prompts, seeds and sampler settings, each in a process of its own.
The bare loop is what a script would do: all jobs into the generator's queue, ``iterate`` until it is empty. Ours is
what a router does: a node behind its socket, with tokenizing, text and events. A figure is the median of several turns,
and no prompt is one that was there before. ``ratio`` is ours to the bare loop's; below 0.97 is a failure on a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct

from engines.base import Event, GenerateRequest, Sampling, Usage, WorkCosts
from engines.specs import ExLlamaV2Spec
from router.backends.supervisor import LocalNode
from router.clock import SystemClock

LEAST_RATIO = 0.97
HARNESS = "tests.engines.exl2.harness"
WORDS = ("fox", "bear", "river", "lamp", "red", "small", "story", "seven", "Paris", "count")
SPARE_S = 150.0
"""Time that must be left for a model to be measured at all."""


class Load(Struct, frozen=True):
    """What is asked of both sides."""

    jobs: tuple[int, ...] = (1, 8, 32, 64)
    """At the same time."""
    prompt_words: int = 200
    tokens: int = 384
    """Of each answer."""
    turns: int = 3


class Measured(Struct, frozen=True):
    """One side at one number of jobs."""

    tokens_per_s: float
    ttft_p50_s: float
    ttft_max_s: float
    tokens: int


class Row(Struct, frozen=True):
    """Both sides at one number of jobs."""

    model: str
    jobs: int
    bare: Measured
    ours: Measured

    @property
    def ratio(self) -> float:
        """Our throughput to the bare loop's."""
        return self.ours.tokens_per_s / self.bare.tokens_per_s


class Turn(Struct, frozen=True):
    """One turn of one side: seconds, tokens, and when each job's first token came."""

    seconds: float
    tokens: int
    first_s: tuple[float, ...]


def requests(load: Load, jobs: int, turn: int) -> list[GenerateRequest]:
    """Return a turn's requests: alike for both sides, unlike any before."""
    made = []
    for job in range(jobs):
        words = random.Random(f"{jobs} {turn} {job}").choices(WORDS, k=load.prompt_words)
        made.append(
            GenerateRequest(
                messages=b"[]",
                prompt=f"{jobs} {turn} {job} {' '.join(words)}",
                max_tokens=load.tokens,
                sampling=Sampling(seed=job),
            )
        )
    return made


def summary(turns: Sequence[Turn]) -> Measured:
    """Return the medians of several turns."""
    return Measured(
        tokens_per_s=round(median(turn.tokens / turn.seconds for turn in turns), 1),
        ttft_p50_s=round(median(median(turn.first_s) for turn in turns), 4),
        ttft_max_s=round(median(max(turn.first_s) for turn in turns), 4),
        tokens=sum(turn.tokens for turn in turns),
    )


# The bare loop, in a process of its own.


def bare(spec: ExLlamaV2Spec, load: Load) -> list[Measured]:
    """Measure ExLlamaV2's own loop."""
    loading: Any = importlib.import_module("engines.exl2.loading")
    prompt: Any = importlib.import_module("engines.exl2.prompt")
    loader: Any = importlib.import_module(
        os.environ.get("NENYA_EXLLAMAV2_LOADER", loading.__name__)
    )
    model = loading.examine(spec)
    machine = loader.load(model, lambda _: None)
    preparer = prompt.Preparer(model)

    def jobs(count: int, turn: int) -> list[Any]:
        return [
            _job(preparer.prepare(request), request.sampling.seed, preparer.tokens.ends)
            for request in requests(load, count, turn)
        ]

    _bare_turn(machine.generator, jobs(1, -1))  # what is made at first use is there
    return [
        summary([_bare_turn(machine.generator, jobs(count, turn)) for turn in range(load.turns)])
        for count in load.jobs
    ]


def _job(prepared: Any, seed: int | None, ends: Sequence[int]) -> Any:
    library: Any = importlib.import_module("exllamav2.generator")
    torch: Any = importlib.import_module("torch")
    return library.ExLlamaV2DynamicJob(
        input_ids=torch.tensor([prepared.ids], dtype=torch.long),
        max_new_tokens=prepared.new_tokens,
        seed=seed,
        gen_settings=library.ExLlamaV2Sampler.Settings(**prepared.settings),
        stop_conditions=list(ends),
    )


def _bare_turn(generator: Any, jobs: list[Any]) -> Turn:
    begun = time.perf_counter()
    tokens = 0
    first: dict[int, float] = {}
    for at, job in enumerate(jobs):
        job.identifier = at
    generator.enqueue(jobs)
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if result["stage"] != "streaming":
                continue
            first.setdefault(result["identifier"], time.perf_counter() - begun)
            if result["eos"]:
                tokens += result["new_tokens"]
    return Turn(time.perf_counter() - begun, tokens, tuple(first.values()))


# Ours: a node behind its socket.


async def ours(spec: ExLlamaV2Spec, load: Load) -> list[Measured]:
    """Measure the engine as a router has it."""
    with tempfile.TemporaryDirectory(prefix="nenya-") as folder:
        node = LocalNode(
            "bench",
            spec,
            runtime_dir=Path(folder),
            emit=lambda _: None,
            on_available=lambda _: None,
            clock=SystemClock(),
        )
        await node.start()
        try:
            await node.wait_ready()
            await _our_turn(node, requests(load, 1, -1))
            return [
                summary(
                    [
                        await _our_turn(node, requests(load, count, turn))
                        for turn in range(load.turns)
                    ]
                )
                for count in load.jobs
            ]
        finally:
            await node.close()


async def _our_turn(node: LocalNode, asked: Sequence[GenerateRequest]) -> Turn:
    begun = time.perf_counter()

    async def one(request: GenerateRequest) -> tuple[float, int]:
        generation = node.engine.begin(request)
        first, last = math.nan, None
        while events := await generation.take(math.inf):
            if math.isnan(first):
                first = time.perf_counter() - begun
            last = events[-1]
            if isinstance(last, Usage):
                break
        return first, _output(last)

    answers = await asyncio.gather(*(one(request) for request in asked))
    seconds = time.perf_counter() - begun
    return Turn(seconds, sum(tokens for _, tokens in answers), tuple(first for first, _ in answers))


def _output(last: Event | None) -> int:
    if not isinstance(last, Usage):
        raise TypeError("an answer ended without its usage")
    return last.output_tokens


# Both.


def measure(name: str, spec: ExLlamaV2Spec, load: Load) -> list[Row]:
    """Measure both sides with one model."""
    order = msgspec.json.encode({"spec": spec, "load": load}).decode()
    command = [sys.executable, "-m", "benchmarks.gpu", "--bare", order]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    theirs = msgspec.json.decode(done.stdout.splitlines()[-1], type=list[Measured])
    mine = asyncio.run(ours(spec, load))
    return [
        Row(name, jobs, bare, our) for jobs, bare, our in zip(load.jobs, theirs, mine, strict=True)
    ]


def spec_of(folder: Path, load: Load) -> ExLlamaV2Spec:
    """Return a spec with room for all jobs at once; everything else is as users have it."""
    most = max(load.jobs)
    pages = 1 + (2 * load.prompt_words + load.tokens) // 256
    return ExLlamaV2Spec(
        model=str(folder),
        slots=most,
        cache_tokens=256 * (most + 1) * (pages + 1),
        costs=WorkCosts(prefill_token_s=1e-5, step_s=1e-3),
    )


def convert(folder: Path, limit_s: float) -> Path:
    """Convert to EXL2 at 4 bits, going on where an earlier call was cut. Raises subprocess.SubprocessError."""
    made, work = folder.with_name(f"{folder.name}-4.0bpw"), folder.with_name(f"{folder.name}-work")
    if (made / "config.json").exists():
        return made
    work.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_convert", "-i", str(folder), "-o", str(work)]
    command += ["-cf", str(made), "-b", "4.0", "-hb", "6", "-l", "512", "-ml", "512"]
    with (work / "convert.log").open("ab") as log:
        subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=max(1.0, limit_s)
        )
    return made


def run(folder: Path, load: Load, limit_s: float, *, tiny: bool) -> dict[str, Any]:
    """Make the models, measure, and return everything that is to be written down."""
    begun = time.monotonic()
    making: Any = importlib.import_module("benchmarks.random_model")
    torch: Any = importlib.import_module("torch")
    shape = making.TINY if tiny else making.BILLION
    plain = folder / ("tiny" if tiny else "billion")
    if not (plain / "model.safetensors").exists():
        making.make(plain, shape, device="cpu" if tiny else "cuda")
        if not tiny:
            torch.cuda.empty_cache()
    rows, remarks = measure("fp16", spec_of(plain, load), load), []
    if tiny:
        remarks.append("no EXL2: there are no kernels to convert with")
    else:
        left = limit_s - (time.monotonic() - begun) - SPARE_S
        try:
            rows += measure("exl2 4.0 bpw", spec_of(convert(plain, left), load), load)
        except subprocess.TimeoutExpired:
            remarks.append("the conversion was cut short; it goes on in the next call")
        except subprocess.SubprocessError as error:
            remarks.append(f"the conversion failed: {error}; see {plain}-work/convert.log")
    device = "the CPU harness" if tiny else torch.cuda.get_device_name(0)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "device": device,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "parameters": shape.parameters,
        "load": msgspec.to_builtins(load),
        "rows": [{**msgspec.to_builtins(row), "ratio": round(row.ratio, 3)} for row in rows],
        "remarks": remarks,
        "verdict": verdict(rows, remarks, tiny=tiny),
    }


def verdict(rows: Sequence[Row], remarks: Sequence[str], *, tiny: bool) -> str:
    """Return the sentence about the ratios."""
    lowest = min(rows, key=lambda row: row.ratio)
    said = f"lowest ratio {lowest.ratio:.3f} ({lowest.model}, {lowest.jobs} jobs)"
    if tiny:
        return f"{said}; a rehearsal, says nothing of speed"
    state = "right" if lowest.ratio >= LEAST_RATIO and not remarks else "not right"
    return "; ".join([f"{state}: {said}, {LEAST_RATIO} is demanded", *remarks])


def table(found: dict[str, Any]) -> str:
    """Return the rows for people."""
    lines = [
        "| model | jobs | bare tokens/s | ours | ratio | bare TTFT p50 / max s | ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        bare, our = row["bare"], row["ours"]
        lines.append(
            f"| {row['model']} | {row['jobs']} | {bare['tokens_per_s']} | {our['tokens_per_s']} | "
            f"{row['ratio']:.3f} | {bare['ttft_p50_s']} / {bare['ttft_max_s']} | "
            f"{our['ttft_p50_s']} / {our['ttft_max_s']} |"
        )
    load = found["load"]
    facts = (
        f"{found['device']}, {found['cores']} cores, torch {found['torch']}, {found['date']}; "
        f"{found['parameters'] / 1e9:.2f} billion random weights, about {load['prompt_words']} words of prompt, "
        f"{load['tokens']} tokens of answer, medians of {load['turns']} turns"
    )
    return "\n".join([*lines, "", facts, "", found["verdict"]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where the ratio on a GPU is too low or something is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="on the CPU harness")
    parser.add_argument("--json", type=Path, help="also write everything there")
    parser.add_argument("--folder", type=Path, help="where models are kept from call to call")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for all of it")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tiny:
        os.environ["NENYA_EXLLAMAV2_LOADER"] = HARNESS
    if options.bare is not None:
        order = json.loads(options.bare)
        spec = msgspec.convert(order["spec"], ExLlamaV2Spec)
        print(msgspec.json.encode(bare(spec, msgspec.convert(order["load"], Load))).decode())
        return 0
    load = Load(jobs=(1, 4), prompt_words=12, tokens=6, turns=1) if options.tiny else Load()
    folder = options.folder or Path(tempfile.gettempdir()) / "nenya-gpu-models"
    folder.mkdir(parents=True, exist_ok=True)
    found = run(folder, load, options.limit, tiny=options.tiny)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))
    return int(found["verdict"].startswith("not right"))


if __name__ == "__main__":
    sys.exit(main())
