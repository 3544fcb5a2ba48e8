"""The simulator: its engine against the step-by-step one, its runs, and its words."""

from __future__ import annotations

import json
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulate.capacity import PRECISION, capacity
from benchmarks.simulate.engine import Job, SimulatedEngine
from benchmarks.simulate.gpu import GPUS, Gpu
from benchmarks.simulate.load import Load, Request, arrivals
from benchmarks.simulate.measures import Interval, Slo, interval, measure, percentile
from benchmarks.simulate.run import NEVER, Fleet, Served, Simulation, simulate
from benchmarks.simulate.synthetic import poisson, sessions
from benchmarks.simulate.traces import BadTrace, read
from engines.simulated.model import Costs as StepCosts
from engines.simulated.model import Finished, Prompt, Started, StepModel
from router.cli import main
from router.load import Costs

PAGE = 16
SMALL = Gpu("small", Costs(1e-3, 0.0, 0.0, 0.01, 0.0), kv_tokens=640, chunk_tokens=64, slots=4)


def by_steps(jobs):
    """When requests begin and end in the step model, whose steps cost the same with these numbers."""
    costs = StepCosts(
        prefill_step_s=0.0, prefill_token_s=1e-3, decode_step_s=0.01, batch_penalty=1.0, slots=4,
        context_tokens=10_000, kv_tokens=640, prefill_chunk_tokens=64, page_tokens=PAGE,
    )  # fmt: skip
    model, now, began, ended = StepModel(costs), 0.0, {}, {}
    left = list(enumerate(jobs))
    while left or model.busy:
        while left and (left[0][1][0] <= now or not model.busy):
            id_, (at, tokens, output, pages) = left.pop(0)
            now = max(now, at)
            model.submit(id_, Prompt(tokens, pages), output, output)
        done = model.step()
        now += done.duration_s
        for event in done.events:
            if isinstance(event, Started):
                began[event.id] = (now, event.cached_tokens)
            elif isinstance(event, Finished):
                ended[event.id] = now
    return began, ended


def by_jumps(jobs, gpu):
    engine, began, ended = SimulatedEngine(gpu, PAGE), {}, {}

    def advance(until):
        while engine.next_at < until:
            at = engine.next_at
            happened = engine.advance()
            began.update((job.id, (at, job.cached)) for job in happened.begun)
            ended.update((job.id, at) for job in happened.finished)

    for id_, (at, tokens, output, pages) in enumerate(jobs):
        advance(at)
        assert engine.submit(Job(id_, tokens, output, pages), at)
    advance(NEVER)
    assert (engine.running, engine.waiting) == (0, 0)
    return began, ended


@st.composite
def stories(draw):
    jobs, now = [], 0.0
    for _ in range(draw(st.integers(1, 12))):
        now += draw(st.integers(1, 40)) * 0.01370007  # never just when a step ends
        tokens, family = draw(st.integers(1, 200)), draw(st.integers(0, 1))
        pages = tuple(1000 * family + i for i in range(tokens // PAGE))
        jobs.append((now, tokens, draw(st.integers(1, 60)), pages))
    return jobs


@settings(max_examples=60)
@given(stories())
def test_jumps_come_out_where_steps_do(jobs):
    """One price for a step in both, so that time is a count: prompts cost tokens, decode steps 0.01 a request."""
    gpu = msgspec.structs.replace(SMALL, costs=Costs(1e-3, 0.0, 0.0, 0.01, 0.0))
    (began, ended), (jumped, landed) = by_steps(jobs), by_jumps(jobs, gpu)
    assert {id_: cached for id_, (_, cached) in began.items()} == {
        id_: cached for id_, (_, cached) in jumped.items()
    }
    for id_, (at, _) in began.items():
        assert jumped[id_][0] == pytest.approx(at, abs=1e-6)
    assert landed == pytest.approx(ended, abs=1e-6)


def test_a_decode_step_grows_with_the_memory_it_reads():
    gpu = Gpu("g", Costs(0.0, 0.0, 1.0, 0.5, 0.25), kv_tokens=640, chunk_tokens=64, slots=4)
    began, ended = by_jumps([(0.0, 10, 4, ())], gpu)
    assert began[0][0] == 1.0
    steps = [1 + 0.5 + 0.25 * (10 + written) for written in (1, 2, 3)]
    assert ended[0] == pytest.approx(1.0 + sum(steps))


def test_what_could_never_fit_is_refused_and_counts_as_never_served():
    load = Load("l", (Request(0.0, 700, 10), Request(0.1, 10, 10)), PAGE)
    served = simulate(Fleet(SMALL, (1.0,)), load, "round_robin", faster=1, seed=1)
    assert sorted(one.ttft_s == NEVER for one in served) == [False, True]
    assert measure(served, Slo()).goodput == 0.5


@pytest.mark.parametrize("policy", ["round_robin", "power_of_two", "lmetric", "expected_cost"])
def test_a_run_leaves_nothing_and_is_repeatable(policy):
    load = sessions(200, 4.0, seed=3)
    fleet = Fleet(GPUS["24gb"], (1.0, 0.5, 1.0))
    simulation = Simulation(fleet, load, policy, seed=5)
    served = simulation.run(list(arrivals(load, 2.0, 5)))
    assert len(served) == 200
    assert served == simulate(fleet, load, policy, faster=2.0, seed=5)
    for target in simulation.pools[0].targets.values():
        one = target.load
        assert (one.inflight, one.pending_tokens, one.pending_us) == (0, 0, 0)
        assert (one.context_tokens, one.reserved_tokens) == (0, 0)


def test_the_rate_finds_the_slow_engines():
    load = poisson(600, 20.0, seed=1)
    simulation = Simulation(Fleet(GPUS["24gb"], (1.0, 0.4)), load, "expected_cost", seed=1)
    simulation.run(list(arrivals(load, 0.2, 1)))
    fast, slow = (target.load.rate.value for target in simulation.pools[0].targets.values())
    assert slow / fast == pytest.approx(0.4, rel=0.25)


def test_sessions_stay_where_their_cache_is():
    load = sessions(400, 8.0, seed=1)
    fleet = Fleet(GPUS["24gb"], (1.0,) * 4)
    shares = {
        policy: measure(simulate(fleet, load, policy, faster=1, seed=1), Slo()).cached_share
        for policy in ("round_robin", "expected_cost")
    }
    assert shares["expected_cost"] > 1.1 * shares["round_robin"]


def test_arrivals_keep_their_order_and_spread_over_their_bucket():
    load = Load("l", tuple(Request(3.0 * (i // 10), 10, 10) for i in range(100)), bucket_s=3.0)
    moved = arrivals(load, 2.0, seed=1)
    assert [one.at for one in moved] == sorted(one.at for one in moved)
    assert len({one.at for one in moved}) == 100
    assert moved == arrivals(load, 2.0, seed=1) != arrivals(load, 2.0, seed=2)
    assert moved[-1].at <= 15.0


def test_measures():
    served = [Served(100, 10, 50, float(i), 0.01 * i, 0) for i in range(1, 11)]
    found = measure(served, Slo(5.0, 0.04))
    assert (found.goodput, found.ttft_p50_s, found.ttft_p99_s) == (0.4, 5.0, 10.0)
    assert found.cached_share == 0.5
    assert percentile([1.0, 2.0], 0.5) == 1.0
    assert interval([3.0]) == Interval(3.0, 0.0)
    assert interval([1.0, 3.0]).half == pytest.approx(12.71)


@pytest.mark.parametrize("limit", [0.07, 0.9, 5.3, 300.0])
def test_the_capacity_is_where_goodput_crosses(limit):
    found = capacity(lambda rate: 1.0 if rate <= limit else 0.5, 5.0)
    assert limit * (1 - 2 * PRECISION) <= found <= limit


def test_no_capacity_where_nothing_is_good_enough():
    assert capacity(lambda _: 0.0, 5.0) == 0


MOONCAKE = [
    {"timestamp": 0, "input_length": 1100, "output_length": 20, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 600, "output_length": 1, "hash_ids": [0, 9]},
]


@pytest.fixture
def mooncake(tmp_path):
    rng = random.Random(1)
    rows = [{**rng.choice(MOONCAKE), "timestamp": 3000 * (i // 5)} for i in range(60)]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_a_mooncake_trace(mooncake):
    load = read(mooncake)
    assert (len(load.requests), load.bucket_s, load.block_tokens) == (60, 3.0, 512)
    assert {one.blocks for one in load.requests} == {(0, 1), (0,)}
    assert load.rate == pytest.approx(60 / 36)
    assert len(read(mooncake, 7).requests) == 7


def test_an_azure_trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
        "2023-11-16 18:17:04.4799600,3180,8\r\n"
    )
    load = read(path)
    assert [(one.at, one.input_tokens, one.output_tokens) for one in load.requests] == [
        (0.0, 4808, 10),
        (pytest.approx(0.5), 3180, 8),
    ]
    assert load.bucket_s == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "TIMESTAMP"),
        ("a,b\n1,2\n", "line 1: neither a Mooncake trace"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n", "line 2"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,0,2\n",
            "at least one token",
        ),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,7\n", "line 2"),
        ('{"timestamp": 0, "input_length": 5}\n', "line 1: .*output_length"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1}\n{"times\n', "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
    ],
)
def test_a_bad_trace_says_where(tmp_path, text, why):
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(BadTrace, match=why):
        read(path)


def test_the_command_prints_a_table_and_writes_json(mooncake, tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--engines", "2", "--speed", "1,.5", "--seeds", "2", "--json", str(out)]
    assert main(["bench", "simulate", str(mooncake), *arguments]) == 0
    told = capsys.readouterr()
    assert "expected_cost" in told.out
    assert "goodput %" in told.out
    assert "seed 2" in told.err
    result = json.loads(out.read_text())
    assert len(result["rows"]) == 9
    assert result["speeds"] == [1.0, 0.5]


def test_the_command_searches_capacities(capsys):
    few = [
        "--requests",
        "60",
        "--engines",
        "2",
        "--seeds",
        "1",
        "--policies",
        "round_robin,lmetric",
    ]
    assert main(["bench", "simulate", "sessions", "--capacity", *few]) == 0
    assert "highest rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nowhere.jsonl"], "No such file"),
        (["poisson", "--engines", "0"], "--engines"),
        (["poisson", "--speed", "1,2"], "2 speeds for 8 engines"),
        (["poisson", "--speed", "1,x", "--engines", "2"], "'x' is not a number"),
        (["poisson", "--policies", "fastest"], "there is no 'fastest'"),
        (["poisson", "--slo", "p99=3"], "ttft=SECONDS"),
        (["poisson", "--slo", "ttft=-1"], "above 0"),
        (["poisson", "--requests", "0"], "--requests"),
        (["poisson", "--seeds", "0"], "--seeds"),
        (["sessions", "--rate", "-1"], "above 0"),
    ],
)
def test_misuse_is_explained(arguments, why, capsys):
    assert main(["bench", "simulate", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_the_help_teaches(capsys):
    assert main(["bench", "simulate", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ["nenya bench simulate", "--capacity", "goodput", "Mooncake", "poisson"]:
        assert word in text
