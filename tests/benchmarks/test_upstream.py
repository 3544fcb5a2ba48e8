"""Accounts at providers in the simulator, several routers before one fleet, and what predicting limits is worth."""

from __future__ import annotations

import json
import random
import statistics

import pytest

from benchmarks.simulate.gpu import GPUS
from benchmarks.simulate.load import Load, Request, arrivals
from benchmarks.simulate.provider import Account, SimulatedProvider
from benchmarks.simulate.replicas import COUNTED, Replicas, Synchronised
from benchmarks.simulate.run import Fleet, Simulation
from benchmarks.simulate.synthetic import poisson
from benchmarks.simulate.upstream import Accounts, UpstreamSimulation, simulate
from benchmarks.simulate.upstream_report import full_rate
from router.cli import main
from router.config.schema import Config, Model, Provider, Target
from router.load import Facts
from router.policy.breaker import Verdict
from router.pool import build

UNEQUAL = tuple(Account(tpm=limit, burst_s=5) for limit in (1_000_000, 300_000, 100_000))
SIZES = 2000 + 200
"""Tokens of a mean request of the made-up load."""


def at_95_percent(count, seed, accounts=UNEQUAL):
    rate = 0.95 * sum(one.tpm for one in accounts) / 60 / SIZES
    return poisson(count, rate, seed)


def run(policy, seed, count=2000, accounts=UNEQUAL, **fields):
    fleet = Accounts(accounts, size_error=0.3, **fields)
    return simulate(fleet, at_95_percent(count, seed, accounts), policy, faster=1, seed=seed)


def refusals(outcomes):
    return statistics.fmean(one.refusals for one in outcomes)


# What it is worth


@pytest.mark.parametrize("counts", ["max_tokens", "usage"])
def test_heeding_headers_at_95_percent_refusals_are_rare_and_waits_short(counts):
    for seed in (1, 2, 3):
        outcomes = run("headroom", seed, counts=counts)
        assert all(one.answered for one in outcomes)
        assert refusals(outcomes) < 0.01
        assert statistics.fmean(one.wait_s for one in outcomes) < 0.6


def test_round_robin_whose_requests_heed_their_own_retry_after_meets_many():
    for seed in (1, 2, 3):
        assert refusals(run("round_robin", seed, heeds="own-retry-after")) > 0.3


def test_a_retry_after_that_everybody_heeds_helps_and_headers_help_more():
    alone, shared, told = (
        refusals(run("round_robin", 1, heeds=heeds))
        for heeds in ("own-retry-after", "retry-after", "headers")
    )
    assert told < shared / 5 < alone / 5


# A provider


def account(**fields):
    return SimulatedProvider(Account(**fields), random.Random(1), counts="max_tokens", tells=True)


def test_an_account_lets_its_burst_through_and_then_its_rate():
    provider = account(tpm=6000, burst_s=10)
    answers = [provider.ask(90, 10, 0.0).status for _ in range(12)]
    assert answers == [200] * 10 + [429] * 2
    refused = provider.ask(400, 100, 0.0)
    assert refused.headers == {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "10s",
        "retry-after": "5",
    }
    assert provider.ask(400, 100, 4.9).status == 429
    assert provider.ask(400, 100, 5.0).status == 200


def test_the_scarcer_limit_decides():
    provider = account(tpm=10**6, rpm=60)
    assert [provider.ask(1, 1, 0.0).status for _ in range(61)].count(200) == 60
    assert provider.ask(1, 1, 1.0).status == 200


def test_latencies_have_the_medians_of_the_account():
    provider = account(ttft_s=0.4, token_s=0.02)
    heard = [provider.ask(10, 101, 0.0) for _ in range(2000)]
    assert statistics.median(one.after_s for one in heard) == pytest.approx(0.4, rel=0.05)
    assert statistics.median(one.rest_s for one in heard) == pytest.approx(2.0, rel=0.05)


# A run


@pytest.mark.parametrize("heeds", ["headers", "retry-after", "own-retry-after"])
@pytest.mark.parametrize("counts", ["max_tokens", "usage"])
def test_a_run_leaves_nothing_and_is_repeatable(heeds, counts):
    fleet = Accounts(UNEQUAL, counts=counts, heeds=heeds, size_error=0.3)
    load = at_95_percent(600, 4)
    simulation = UpstreamSimulation(fleet, "headroom", seed=4)
    outcomes = simulation.run(arrivals(load, 1.0, 4))
    assert len(outcomes) == 600
    assert outcomes == simulate(fleet, load, "headroom", faster=1, seed=4)
    for target in simulation.pools[0].targets.values():
        assert [getattr(target.load, name) for name in COUNTED] == [0] * len(COUNTED)
        assert not target.quota._open
        assert target.quota._unknown == [0, 0, 0, 0]


def test_an_outage_is_ejected_and_the_others_serve():
    accounts = tuple(Account(tpm=3_000_000) for _ in range(3))
    load = poisson(1500, 10.0, 1)
    outcomes = simulate(Accounts(accounts, outage_s=30.0), load, "headroom", faster=1, seed=1)
    assert all(one.answered for one in outcomes)
    assert any(one.wait_s > 0 for one in outcomes), "somebody had to go elsewhere"


def test_what_all_limits_let_through_together():
    load = Load("l", (Request(0.0, 900, 100), Request(1.0, 900, 100)))
    assert full_rate(Accounts((Account(tpm=60_000), Account(tpm=30_000))), load) == 1.5
    assert full_rate(Accounts((Account(tpm=60_000, rpm=30),)), load) == 0.5
    assert full_rate(Accounts((Account(),)), load) == float("inf")


# Several routers


def pools(count):
    providers = {name: Provider(base_url=f"http://{name}.test/v1") for name in "ab"}
    model = Model(targets=[Target(provider=name, model="m") for name in "ab"])
    return [build(Config(providers=providers, models={"m": model})) for _ in range(count)]


def test_routers_see_their_own_leases_at_once_and_the_others_after_a_synchronisation():
    three = pools(3)
    together = Synchronised(three, Replicas(3, sync_s=0.5))

    def inflight():
        return [[target.inflight for target in pool.targets.values()] for pool in three]

    leases = [three[0].route("m").lease(0.0, (), Facts(100)) for _ in range(4)]
    seen = sum(inflight()[0]), sum(inflight()[1])
    assert seen == (4, 0)
    assert together.due(0.4) is None
    assert together.due(1.7) == 1.5, "the one at 0.5 would be outdated anyway"
    together.sync()
    assert inflight()[0] == inflight()[1] == inflight()[2]
    assert together.due(1.9) is None
    for lease in leases:
        lease.settle(Verdict.GOOD, 2.0)
    assert sum(inflight()[0]) == 0
    assert sum(inflight()[1]) == 4, "until the next"
    together.sync()
    assert inflight() == [[0, 0]] * 3


def test_four_routers_told_of_each_other_in_time_serve_nearly_as_well_as_one():
    loads = {seed: poisson(1500, 6.0, seed) for seed in (1, 2)}

    def mean_ttft(replicas):
        fleet = Fleet(GPUS["24gb"], (1.0,) * 4, replicas)
        runs = (
            Simulation(fleet, load, "least_tokens", seed).run(list(arrivals(load, 1.0, seed)))
            for seed, load in loads.items()
        )
        return statistics.fmean(one.ttft_s for run in runs for one in run)

    one, apart, told = map(mean_ttft, (Replicas(), Replicas(4), Replicas(4, 0.02)))
    assert one < told < apart


def test_many_routers_meet_more_refusals_than_one_but_few():
    four = refusals(run("headroom", 1, replicas=Replicas(4)))
    assert refusals(run("headroom", 1)) < four < 0.1


# The command


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--providers", "3", "--tpm", "1000000,300000,none", "--rpm", "600", "--rate", "8",
                 "--requests", "200", "--seeds", "2", "--json", str(out)]  # fmt: skip
    assert main(["bench", "simulate", "poisson", *arguments]) == 0
    told = capsys.readouterr()
    assert "429 a request" in told.out
    assert "headroom" in told.out
    result = json.loads(out.read_text())
    assert [one["tpm"] for one in result["fleet"]["accounts"]] == [1_000_000, 300_000, None]
    assert {row["policy"] for row in result["rows"]} == {
        "round_robin", "least_inflight", "power_of_two", "headroom",
    }  # fmt: skip


def test_the_command_takes_replicas_of_both_kinds(capsys):
    few = ["--requests", "60", "--seeds", "1", "--replicas", "3", "--sync-ms", "250"]
    engines = ["--engines", "2", "--policies", "round_robin"]
    assert main(["bench", "simulate", "sessions", *engines, *few]) == 0
    assert "3 routers, told of each other every 250 ms" in capsys.readouterr().out
    assert main(["bench", "simulate", "poisson", "--providers", "2", "--tpm", "9e5", *few]) == 0
    assert "3 routers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--providers", "0"], "--providers"),
        (["--providers", "2"], "--rate"),
        (["--providers", "2", "--tpm", "1,2,3"], "3 limits for 2 providers"),
        (["--providers", "2", "--tpm", "x"], "'x' is not a number"),
        (["--providers", "1", "--tpm", "9e5", "--burst", "0"], "--burst"),
        (["--providers", "1", "--tpm", "9e5", "--share", "no"], "--share"),
        (["--providers", "1", "--tpm", "9e5", "--size-error", "1"], "--size-error"),
        (["--providers", "1", "--tpm", "9e5", "--outage", "-1"], "--outage"),
        (["--providers", "1", "--tpm", "9e5", "--capacity"], "--capacity"),
        (["--replicas", "0"], "--replicas"),
        (["--replicas", "2", "--sync-ms", "-1"], "--sync-ms"),
    ],
)
def test_misuse_is_explained(arguments, why, capsys):
    assert main(["bench", "simulate", "poisson", *arguments]) == 2
    assert why in capsys.readouterr().err
