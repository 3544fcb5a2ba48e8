"""The profiles: which stages a run has, one after the other, and what is made of them.

    constant, poisson   stages of one rate each, evenly or randomly spaced
    concurrent          stages of so many requests at a time
    ramp                one stage whose rate rises
    sweep               several rates or concurrencies; by itself, from a lone request to as much as goes through
    replay              one stage, due as recorded
    goodput             stages at the rates of a search

All stages of a run have the same sessions at the same points of the same random pattern, with other words.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal, Protocol

import msgspec

from benchmarks.measure.client import Asking, Endpoint
from benchmarks.measure.drive import Drive, Ran
from benchmarks.measure.drive import Stage as Doing
from benchmarks.measure.figures import client_of, figures, warnings
from benchmarks.measure.preflight import Found
from benchmarks.measure.prompts import Writer
from benchmarks.measure.records import Record, columns
from benchmarks.measure.result import Capacity, Result, Stage
from benchmarks.measure.saturation import LEAST_S, Saturation
from benchmarks.measure.schedule import Rising, Spacing, dues, steady
from benchmarks.measure.search import search
from benchmarks.measure.sessions import Session, Shape, made_up, recorded
from benchmarks.measure.slo import Slo
from benchmarks.simulate.load import Load, arrivals

Profile = Literal["constant", "poisson", "concurrent", "ramp", "sweep", "replay", "goodput"]
LONE_REQUESTS = 5
"""Of the first stage of a sweep or a search: enough for a median."""


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """What is asked for."""

    profile: Profile
    shape: Shape | None
    """What sessions are like, unless they come from ``trace``."""
    trace: Load | None = None
    rates: tuple[float, ...] = ()
    workers: tuple[int, ...] = ()
    spacing: Spacing = "poisson"
    ramp: tuple[float, float] = (0.0, 0.0)
    faster: float = 1.0
    """Than recorded, of a replay."""
    steps: int = 6
    """Of a sweep by itself."""
    most_workers: int = 128
    """What a sweep takes for everything at once."""
    precision: float = 0.05
    """Of a search."""
    duration_s: float | None = 30.0
    """Of a stage."""
    requests: int | None = None
    warmup_s: float = 0.0
    patience_s: float = 600.0
    slo: Slo = Slo()
    stops_saturated: bool = True
    seed: int = 1
    same_text: bool = False
    label: str = ""


class Shown(Protocol):
    """Whoever shows a run to the user."""

    def begins(self, doing: Doing) -> None:
        """A stage begins."""

    def __call__(self, drive: Drive, now_s: float) -> None:
        """It goes on."""

    def ends(self, stage: Stage) -> None:
        """It has ended."""


class Run:
    """One run of a plan."""

    def __init__(
        self, plan: Plan, endpoint: Endpoint, asking: Asking, found: Found, shown: Shown
    ) -> None:
        self.plan = plan
        self.stop = asyncio.Event()
        """Set it to end early, with what there is."""
        self.records: list[tuple[str, list[Record]]] = []
        """Every request, by stage."""
        self._endpoint = endpoint
        self._asking = asking
        self._found = found
        self._shown = shown
        self._stages: list[Stage] = []
        self._notes: list[str] = []
        self._salt = "" if plan.same_text else f"{random.SystemRandom().getrandbits(64):x}"

    async def go(self, version: str) -> Result:
        """Do all of it, or as much as there is time for until ``stop``."""
        plan = self.plan
        capacity = None
        if plan.profile == "goodput":
            capacity = await self._search()
        elif plan.profile == "sweep" and not (plan.rates or plan.workers):
            await self._sweep()
        else:
            for doing in self._given():
                if self.stop.is_set():
                    break
                await self._do(doing)
        if not self._found.ruler.measured:
            self._notes.append("the server doesn't count prompts: 1.25 tokens a word are assumed")
        return Result(
            kind="measured", profile=plan.profile, made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            version=version, target=self._endpoint.url, model=self._asking.model, label=plan.label,
            load=_described(plan), slo=plan.slo, seed=plan.seed, stages=self._stages, capacity=capacity,
            notes=self._notes, machine=_machine(),
        )  # fmt: skip

    # Profiles

    def _given(self) -> Iterator[Doing]:
        plan = self.plan
        if plan.profile == "replay":
            assert plan.trace is not None
            name = f"{plan.trace.name} at {plan.trace.rate * plan.faster:.3g}/s"
            yield self._recorded(name, plan.trace, plan.faster)
        elif plan.profile == "ramp":
            low, high = plan.ramp
            rising = Rising(low, high, plan.duration_s or 60.0)
            yield self._open(f"{low:g} to {high:g}/s", rising)
        for rate in plan.rates:
            yield self._open(f"{rate:g}/s", steady(rate))
        for workers in plan.workers:
            yield self._closed(workers)

    async def _sweep(self) -> None:
        """A lone request at a time, as many as go through, and even steps between."""
        plan = self.plan
        lone = await self._do(self._closed(1))
        if self.stop.is_set() or not lone.figures.ok:
            return
        full = await self._do(self._closed(plan.most_workers))
        low, high = lone.figures.achieved_rate, full.figures.achieved_rate
        steps = max(1, plan.steps - 2)
        for number in range(1, steps + 1):
            if self.stop.is_set() or high <= low:
                return
            rate = _rounded(low + (high - low) * number / steps)
            stage = await self._do(self._open(f"{rate:g}/s", steady(rate)))
            if stage.ended == "saturated":
                return

    async def _search(self) -> Capacity | None:
        lone = await self._do(self._closed(1, LONE_REQUESTS))
        if self.stop.is_set() or lone.figures.e2e is None:
            return None
        guess = self.plan.rates[0] if self.plan.rates else 2 / max(lone.figures.e2e.p50, 1e-3)

        async def probe(rate: float) -> bool | None:
            rate = _rounded(rate)
            doing = self._probe(rate)
            planned = self._planned(rate)
            slo = self.plan.slo
            doing.hopeless = lambda records, now: slo.hopeless(records, planned, now)
            stage = await self._do(doing)
            return stage.met if stage.ended != "interrupted" else None

        found = await search(probe, guess, self.plan.precision)
        failed = _rounded(found.failed) if found.failed is not None else None
        return Capacity(_rounded(found.held), failed, found.whole)

    def _probe(self, rate: float) -> Doing:
        """A stage at ``rate``; a recorded load keeps its own pattern, only faster."""
        trace = self.plan.trace
        if trace is None:
            return self._open(f"{rate:g}/s", steady(rate))
        return self._recorded(f"{rate:g}/s", trace, rate / trace.rate)

    def _planned(self, rate: float) -> int:
        """How many requests a probe at ``rate`` will send, at most but for one chance in a thousand."""
        plan = self.plan
        limits = [plan.requests] if plan.requests is not None else []
        if plan.trace is not None:
            limits.append(len(plan.trace.requests))
        if plan.duration_s is not None:
            turns = plan.shape.turns if plan.shape is not None else 1
            begun = rate / turns * plan.duration_s
            limits.append(math.ceil(begun + 3 * math.sqrt(begun)) * turns)
        return min(limits)

    # Stages

    def _sessions(self) -> Iterator[Session]:
        plan = self.plan
        if plan.trace is not None:
            return recorded(plan.trace, plan.seed)
        assert plan.shape is not None
        return made_up(plan.shape, plan.seed)

    def _doing(self, name: str) -> Doing:
        plan = self.plan
        return Doing(
            name=name, sessions=self._sessions(), duration_s=plan.duration_s, requests=plan.requests,
            patience_s=plan.patience_s,
        )  # fmt: skip

    def _open(self, name: str, rate: Rising) -> Doing:
        plan = self.plan
        doing = self._doing(name)
        turns = plan.shape.turns if plan.shape is not None else 1
        begins = Rising(rate.start / turns, rate.end / turns, rate.over_s)
        doing.dues = dues(begins, plan.spacing, random.Random(f"dues {plan.seed}"))
        doing.rate_at = rate.at
        doing.saturation = self._saturation()
        return doing

    def _saturation(self) -> Saturation | None:
        least_s = LEAST_S
        if self.plan.duration_s is not None:
            least_s = max(5.0, min(LEAST_S, self.plan.duration_s / 3))
        return Saturation(least_s) if self.plan.stops_saturated else None

    def _closed(self, workers: int, requests: int | None = None) -> Doing:
        doing = self._doing("lone" if workers == 1 else f"{workers} at a time")
        doing.workers = workers
        if requests is not None:
            doing.requests, doing.duration_s = requests, None
        return doing

    def _recorded(self, name: str, trace: Load, faster: float) -> Doing:
        requests = arrivals(trace, faster, self.plan.seed)
        ordered = msgspec.structs.replace(trace, requests=tuple(requests))
        doing = self._doing(name)
        doing.sessions = recorded(ordered, self.plan.seed)
        doing.dues = iter([one.at for one in requests])
        doing.rate_at = _rate_of([one.at for one in requests])
        doing.saturation = self._saturation()
        return doing

    async def _do(self, doing: Doing) -> Stage:
        plan = self.plan
        writer = Writer(
            self._found.ruler,
            prefix_tokens=plan.shape.prefix_tokens if plan.shape is not None else 0,
            block_tokens=plan.trace.block_tokens if plan.trace is not None else 512,
            salt=f"{self._salt} {len(self._stages)}",
        )
        self._shown.begins(doing)
        drive = Drive(self._endpoint, self._asking, writer, doing, self.stop)
        ran = await drive.run(self._shown)
        stage = _stage(plan, doing, ran)
        self.records.append((doing.name, ran.records))
        self._stages.append(stage)
        self._shown.ends(stage)
        return stage


def _stage(plan: Plan, doing: Doing, ran: Ran) -> Stage:
    warmup_s = plan.warmup_s if plan.warmup_s < ran.duration_s / 2 else 0.0
    found = figures(
        ran.records, plan.slo, duration_s=ran.duration_s, warmup_s=warmup_s,
        client=client_of(ran.records, ran.lags_s, ran.cpu_share),
    )  # fmt: skip
    met = None
    if plan.slo.limits and ran.ended != "interrupted":
        counted = [one for one in ran.records if one.due_s >= warmup_s]
        met = ran.ended == "done" and plan.slo.met(counted)
    notes = [ran.note] if ran.note else []
    return Stage(
        name=doing.name,
        figures=found,
        rate=doing.rate_at(0.0) if doing.dues is not None else None,
        workers=doing.workers or None,
        warmup_s=warmup_s,
        ended=ran.ended,
        met=met,
        notes=[*notes, *warnings(found)],
        failures=ran.failures,
        requests=columns(ran.records),
    )


def _rate_of(dues_s: list[float]) -> Callable[[float], float]:
    """The mean rate of a recorded load: its bursts are what requests in the server should be held against."""
    span = max(dues_s[-1] - dues_s[0], 1e-9)
    return lambda _: len(dues_s) / span


def _rounded(rate: float) -> float:
    """Three digits: a rate is said to people, too."""
    return float(f"{rate:.3g}")


def _described(plan: Plan) -> str:
    if plan.trace is not None:
        return f"{plan.trace.name}: {len(plan.trace.requests)} requests"
    return str(plan.shape)


def _machine() -> str:
    system = f"{platform.system()} {platform.machine()}"
    return f"{system}, {os.cpu_count()} cores, Python {platform.python_version()}"
