"""Several policies on one load, over several seeds; either at one rate or each at its own capacity."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from benchmarks.simulate.capacity import capacity
from benchmarks.simulate.load import Load
from benchmarks.simulate.measures import Interval, Measures, Slo, interval, measure
from benchmarks.simulate.run import Fleet, simulate
from router.config.schema import Policy


class Plan(msgspec.Struct, frozen=True):
    """What is compared."""

    load: Load
    fleet: Fleet
    policies: tuple[Policy, ...]
    seeds: tuple[int, ...]
    slo: Slo
    rate: float
    """Requests a second; for a search of the capacity, where it begins."""
    search: bool = False


class Row(msgspec.Struct, frozen=True):
    """One policy's results over all seeds."""

    policy: str
    rate: Interval
    """Requests a second: the given one, or the highest that meets the objective."""
    goodput: Interval
    ttft_p50_s: Interval
    ttft_p99_s: Interval
    tpot_p99_s: Interval
    cached_share: Interval


Tell = Callable[[str], None]


def compare(plan: Plan, tell: Tell) -> list[Row]:
    """A row for each policy. ``tell`` hears of progress."""
    rows = []
    for number, policy in enumerate(plan.policies, 1):
        rates, measured = [], []
        for seed in plan.seeds:
            tell(f"[{number}/{len(plan.policies)}] {policy}, seed {seed}")
            rate = _capacity(plan, policy, seed) if plan.search else plan.rate
            rates.append(rate)
            measured.append(_measures(plan, policy, rate or plan.rate, seed))
        rows.append(_row(policy, rates, measured))
    return rows


def _measures(plan: Plan, policy: Policy, rate: float, seed: int) -> Measures:
    faster = rate / plan.load.rate
    return measure(simulate(plan.fleet, plan.load, policy, faster=faster, seed=seed), plan.slo)


def _capacity(plan: Plan, policy: Policy, seed: int) -> float:
    return capacity(lambda rate: _measures(plan, policy, rate, seed).goodput, plan.rate)


def _row(policy: str, rates: list[float], measured: list[Measures]) -> Row:
    return Row(
        policy=policy,
        rate=interval(rates),
        goodput=interval([one.goodput for one in measured]),
        ttft_p50_s=interval([one.ttft_p50_s for one in measured]),
        ttft_p99_s=interval([one.ttft_p99_s for one in measured]),
        tpot_p99_s=interval([one.tpot_p99_s for one in measured]),
        cached_share=interval([one.cached_share for one in measured]),
    )
