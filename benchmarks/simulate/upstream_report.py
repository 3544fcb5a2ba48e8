"""Several policies on accounts at providers, over several seeds: compared, for people and for programs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from msgspec import Struct

from benchmarks.simulate.load import Load
from benchmarks.simulate.measures import Interval, interval, percentile
from benchmarks.simulate.provider import MINUTE_S
from benchmarks.simulate.report import Column, by_policy, told
from benchmarks.simulate.upstream import Accounts, Outcome, simulate
from router.config.schema import Policy

_COLUMNS = (
    Column("429 a request", "refusals", 1, 4),
    Column("wait s", "wait_s", 1, 2),
    Column("wait p99 s", "wait_p99_s", 1, 1),
    Column("TTFT p50 s", "ttft_p50_s", 1, 2),
    Column("TTFT p99 s", "ttft_p99_s", 1, 1),
    Column("failed %", "failed", 100, 2),
)
NEVER = float("inf")


class UpstreamPlan(Struct, frozen=True):
    """What is compared."""

    loads: tuple[Load, ...]
    """One a seed."""
    fleet: Accounts
    policies: tuple[Policy, ...]
    seeds: tuple[int, ...]
    rate: float
    """Requests a second."""


class UpstreamRow(Struct, frozen=True):
    """One policy's results over all seeds. Waits and times are of those that were answered."""

    policy: str
    refusals: Interval
    """429s for each request."""
    wait_s: Interval
    wait_p99_s: Interval
    ttft_p50_s: Interval
    ttft_p99_s: Interval
    failed: Interval
    """Share of requests that no attempt answered."""


class UpstreamReport(Struct, frozen=True):
    """Everything that makes a result repeatable, and the result."""

    load: str
    requests: int
    rate: float
    fleet: Accounts
    seeds: tuple[int, ...]
    rows: list[UpstreamRow]


def full_rate(fleet: Accounts, load: Load) -> float:
    """Requests a second of that load's mean size which the accounts' limits let through together; infinite where they
    have none.
    """
    tokens = statistics.fmean(one.input_tokens + one.output_tokens for one in load.requests)
    by_tokens = sum(one.tpm if one.tpm is not None else NEVER for one in fleet.accounts) / tokens
    by_requests = sum(one.rpm if one.rpm is not None else NEVER for one in fleet.accounts)
    return min(by_tokens, by_requests) / MINUTE_S


def compare_upstreams(plan: UpstreamPlan, tell: Callable[[str], None]) -> UpstreamReport:
    """A row for each policy. ``tell`` hears of progress."""
    rows = []
    for number, policy in enumerate(plan.policies, 1):
        runs = []
        for seed, load in zip(plan.seeds, plan.loads, strict=True):
            tell(f"[{number}/{len(plan.policies)}] {policy}, seed {seed}")
            faster = plan.rate / load.rate
            runs.append(simulate(plan.fleet, load, policy, faster=faster, seed=seed))
        rows.append(_row(policy, runs))
    load = plan.loads[0]
    return UpstreamReport(load.name, len(load.requests), plan.rate, plan.fleet, plan.seeds, rows)


def _row(policy: str, runs: Sequence[Sequence[Outcome]]) -> UpstreamRow:
    served = [[one for one in run if one.answered] for run in runs]
    waits = [sorted(one.wait_s for one in run) or [NEVER] for run in served]
    firsts = [sorted(one.ttft_s for one in run) or [NEVER] for run in served]
    return UpstreamRow(
        policy=policy,
        refusals=interval([statistics.fmean(one.refusals for one in run) for run in runs]),
        wait_s=interval([statistics.fmean(one) for one in waits]),
        wait_p99_s=interval([percentile(one, 0.99) for one in waits]),
        ttft_p50_s=interval([percentile(one, 0.5) for one in firsts]),
        ttft_p99_s=interval([percentile(one, 0.99) for one in firsts]),
        failed=interval([statistics.fmean(not one.answered for one in run) for run in runs]),
    )


def upstream_table(done: UpstreamReport) -> str:
    """A heading and one line a policy, the fewest refusals first; ± is half a 95 % interval over seeds."""
    best = sorted(done.rows, key=lambda row: (row.refusals.mean, row.wait_s.mean))
    fleet = done.fleet
    limits = ", ".join(
        f"{one.tpm if one.tpm is not None else 'any'} tokens and "
        f"{one.rpm if one.rpm is not None else 'any number of'} requests a minute"
        for one in fleet.accounts
    )
    return (
        f"{done.load}: {done.requests} requests at {done.rate:.2f}/s; seeds {', '.join(map(str, done.seeds))}\n"
        f"{len(fleet.accounts)} accounts, each limit kept over {fleet.accounts[0].burst_s:g} s: {limits}\n"
        f"heeded: {fleet.heeds}; sizes known within {100 * fleet.size_error:g} %, counted as {fleet.counts}"
        f"{told(fleet.replicas)}\n\n{by_policy(best, _COLUMNS)}"
    )
