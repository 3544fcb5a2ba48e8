"""Results of `nenya bench`: written, read, shown, compared, calibrated; all without a server."""

from __future__ import annotations

import csv
import io
import json
import random
import re

import msgspec
import pytest

from benchmarks.measure.books import read as read_load
from benchmarks.measure.calibrate import Settings, TooLittle, calibrate
from benchmarks.measure.check import check
from benchmarks.measure.client import Asking
from benchmarks.measure.compare import Unlike, compare
from benchmarks.measure.console import table
from benchmarks.measure.figures import figures
from benchmarks.measure.page import _round_time, page
from benchmarks.measure.plots import Axis, Series, log_ticks, plot, ticks
from benchmarks.measure.prompts import Message
from benchmarks.measure.records import columns
from benchmarks.measure.result import BadResult, Capacity, Result, Stage, encoded, read
from benchmarks.measure.sheets import csv_of, lines
from benchmarks.measure.simulated import records_of
from benchmarks.measure.slo import slo
from benchmarks.simulate.gpu import Gpu
from benchmarks.simulate.load import Load, Request
from benchmarks.simulate.run import Fleet, simulate
from router.accounts.store import Entry, Store
from router.cli import main
from router.events import RequestDone
from router.load import Costs

ENGINE = Gpu(
    "e", Costs(1 / 8000, 2e-9, 0.015, 8e-4, 5e-8), kv_tokens=200_000, chunk_tokens=8192, slots=16,
    prompt_step_s=0.02, overhead_s=0.004,
)  # fmt: skip
OBJECTIVE = slo("ttft=1s,tpot=60ms")


def run_of(engine, rate, seed, count=200):
    """What a client sees of ``engine`` at ``rate``."""
    rng, at, requests = random.Random(seed), 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        requests.append(Request(at, rng.randint(50, 3000), rng.randint(20, 120)))
    load = Load("l", tuple(requests), 16)
    return records_of(simulate(Fleet(engine, (1.0,)), load, "round_robin", faster=1.0, seed=1))


def stage_of(name, records, rate):
    span = max(one.due_s for one in records)
    found = figures(records, OBJECTIVE, duration_s=span)
    return Stage(
        name=name, figures=found, rate=rate, met=OBJECTIVE.met(records), requests=columns(records)
    )


def result_of(engine=ENGINE, seed=1, rates=(0.2, 2.0), count=200, **more):
    stages = [stage_of(f"{rate:g}/s", run_of(engine, rate, seed, count), rate) for rate in rates]
    fields = {"label": "", "profile": "poisson", **more}
    return Result(
        kind="measured", made_at="2026-11-25 08:00:00", version="0", target="http://h", model="m", load="l",
        slo=OBJECTIVE, seed=seed, stages=stages, **fields,
    )  # fmt: skip


def slower(engine, by):
    costs = msgspec.structs.asdict(engine.costs)
    return msgspec.structs.replace(
        engine, costs=Costs(**{name: by * cost for name, cost in costs.items()})
    )


@pytest.fixture
def file(tmp_path):
    def write(result, name="run.json"):
        path = tmp_path / name
        path.write_bytes(encoded(result))
        return path

    return write


# Formats


def test_a_result_is_read_as_it_was_written(file):
    result = result_of(capacity=Capacity(2.0, 2.2))
    assert read(file(result)) == result


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "is no result"),
        (b"[]", "is no result"),
        (b"\xff", "is no result"),
        (None, "can't be read"),
    ],
)
def test_what_is_no_result_is_told(tmp_path, content, why):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadResult, match=why):
        read(path)


def test_another_schema_is_told(file):
    with pytest.raises(BadResult, match="schema 9"):
        read(file(msgspec.structs.replace(result_of(), schema=9)))


def test_the_csv_has_a_line_a_stage():
    rows = list(csv.DictReader(io.StringIO(csv_of(result_of()))))
    assert [row["stage"] for row in rows] == ["0.2/s", "2/s"]
    assert float(rows[1]["ttft_p99_s"]) > float(rows[0]["ttft_p50_s"]) > 0


def test_lines_of_requests_are_a_trace(tmp_path):
    records = run_of(ENGINE, 1.0, 1, count=30)
    records[3].outcome, records[3].output_tokens = "429", 0
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"".join(lines([("1/s", records)])))
    load = read_load(path)
    assert len(load.requests) == 30
    assert [one.input_tokens for one in load.requests] == [one.input_tokens for one in records]
    one = json.loads(path.read_text().splitlines()[0])
    assert one["ttft_s"] == pytest.approx(records[0].ttft_s, abs=1e-5)
    assert one["counted_by"] == "usage"


def test_a_routers_own_records_are_a_load(tmp_path):
    path = tmp_path / "nenya.db"
    with Store(str(path)) as store:
        store.book(
            [booked(1010.0, 100, 20), booked(1003.0, 50, 10), booked(1004.0, None, None)],
            usage=True,
        )
    load = read_load(path)
    assert load.name == "nenya.db"
    assert [(one.at, one.input_tokens, one.output_tokens) for one in load.requests] == [
        (0.0, 50, 10),
        (7.0, 100, 20),
    ]
    assert len(read_load(path, 1).requests) == 1


def booked(at, input_tokens, output_tokens):
    done = RequestDone(
        request_id="r", key_id="k", model="m", target="t", provider="p", streaming=True, outcome="ok", status=200,
        attempts=1, duration_s=2.0, first_token_s=0.1, input_tokens=input_tokens, cached_input_tokens=None,
        output_tokens=output_tokens, overhead_s=None,
    )  # fmt: skip
    return Entry(at, done, 0)


# Pages


def test_the_page_needs_nobody():
    text = page([result_of(label="<b>night</b>", capacity=Capacity(2.0, 2.2))])
    assert "<b>night</b>" not in text
    assert "&lt;b&gt;night" in text
    assert not re.search(r"<script|<link|<img|@import|url\(", text)
    assert set(re.findall(r"https?://[^\s<\"]+", text)) == {"http://h"}
    for part in [
        "Rate and latency",
        "Distributions",
        "Over time",
        "highest rate that meets",
        "prefers-color-scheme",
    ]:
        assert part in text
    assert text.count("<svg") == text.count("</svg>") >= 10


def test_the_page_of_two_results_names_both():
    text = page([result_of(label="before"), result_of(slower(ENGINE, 1.3), label="after")])
    assert text.count("<h1>") == 2
    assert "before: 2/s" in text
    assert "after p99" in text


def test_two_results_of_one_name_are_told_apart_by_their_time():
    one, other = result_of(), result_of(seed=2)
    other.made_at = "2026-11-25 09:00:00"
    text = page([one, other])
    assert "m · poisson, 2026-11-25 08:00:00 p50" in text
    assert "m · poisson, 2026-11-25 09:00:00 p50" in text


def test_the_headline_is_of_a_rate_that_was_asked_for():
    """A closed loop's rate is its server's: a lone client's may be higher than the load that is carried."""
    result = result_of(rates=(0.2, 1.0, 40.0))
    lone = stage_of("lone", run_of(ENGINE, 2.0, 1), None)
    lone.met = True
    result.stages.insert(0, lone)
    assert [stage.met for stage in result.stages] == [True, True, True, False]
    assert "<b>1/s</b>, the highest rate that meets the objective" in page([result])


def test_a_simulations_policies_are_no_rates():
    result = result_of(rates=(2.0, 2.0))
    result.kind = "simulated"
    assert "Rate and latency" not in page([result])
    assert "the best of the policies" in page([result])


def test_axes_say_round_times():
    assert [_round_time(one) for one in (2e-6, 1e-4, 0.003, 0.03, 0.3, 3.0)] == [
        "2 µs", "100 µs", "3 ms", "30 ms", "300 ms", "3 s",
    ]  # fmt: skip


def test_a_page_of_one_request():
    assert "<svg" in page([result_of(rates=(1.0,), count=2)])


def test_a_page_of_failures_only():
    records = run_of(ENGINE, 1.0, 1, count=5)
    for one in records:
        one.outcome, one.first_s = "500", None
    result = result_of(rates=(1.0,))
    result.stages = [stage_of("1/s", records, 1.0)]
    assert "5 of 500" in page([result])
    assert "5 of 500" in table(result)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7.3), (0, 0.004), (3, 1234), (0.2, 0.9)])
def test_ticks_are_round_and_reach_over(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 3 <= len(found) <= 12
    assert all(float(f"{tick:.2g}") == pytest.approx(tick) for tick in found)


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.02), (0.001, 100), (0.5, 0.6), (1, 1000)])
def test_log_ticks_reach_over(low, high):
    found = log_ticks(low, high)
    assert found[0] <= low * 1.001
    assert found[-1] >= high * 0.999
    assert len(found) <= 14


def test_a_plot_of_nothing_is_nothing():
    axis = Axis("x", str)
    assert plot("t", [Series("a", [])], (axis, axis)) == ""
    assert "nan" not in plot("t", [Series("a", [(1.0, 1.0)])], (axis, axis))


# Compare


def test_the_same_engine_twice_is_noise():
    found = compare(result_of(seed=1, count=400), result_of(seed=1, count=400))
    assert {change.verdict for change in found} <= {"noise", ""}
    times = [change for change in found if change.figure == "TTFT p50"]
    assert [change.ratio.value for change in times] == [1.0, 1.0]
    assert [change.p for change in times] == [1.0, 1.0]


def test_a_slower_engine_differs():
    changed = {
        (one.stage, one.figure): one
        for one in compare(
            result_of(seed=1, count=400), result_of(slower(ENGINE, 1.2), seed=1, count=400)
        )
    }
    tpot = changed["0.2/s", "TPOT p50"]
    assert tpot.verdict == "differs"
    assert tpot.ratio.value == pytest.approx(1.2, rel=0.03)
    assert tpot.p < 0.001


def test_a_rate_that_fell_differs_and_one_that_didnt_is_noise():
    def answers(one, other):
        found = {change.figure: change for change in compare(one, other)}
        return found["answers"], found["output"]

    full = result_of(seed=1, rates=(20.0,), count=400)
    for change in answers(full, result_of(slower(ENGINE, 1.3), seed=1, rates=(20.0,), count=400)):
        assert change.verdict == "differs"
        assert change.ratio.value == pytest.approx(1 / 1.3, rel=0.05)
    for change in answers(full, result_of(seed=2, rates=(20.0,), count=400)):
        assert change.verdict == "noise"


def test_single_stages_are_compared_whatever_their_names():
    one, other = result_of(rates=(1.0,)), result_of(rates=(1.5,))
    assert compare(one, other)[0].stage == "1/s → 1.5/s"
    with pytest.raises(Unlike):
        compare(result_of(rates=(1.0, 2.0)), result_of(rates=(3.0, 4.0)))


def test_few_requests_have_no_verdict():
    found = compare(result_of(count=5, rates=(1.0,)), result_of(count=5, rates=(1.0,)))
    assert {change.verdict for change in found} == {""}


# Calibrate


def test_calibration_finds_the_costs():
    result = result_of(rates=(0.1, 1.0, 2.0, 3.0), count=300)
    fit = calibrate(result, Settings(), "e")
    found, true = fit.gpu.costs, ENGINE.costs
    assert found.step_s == pytest.approx(true.step_s, rel=0.05)
    assert found.prefill_token_s == pytest.approx(true.prefill_token_s, rel=0.1)
    assert found.request_s == pytest.approx(true.request_s, rel=0.15)
    assert fit.tpot_error < 0.03
    assert fit.ttft_error < 0.03
    for one in check(result, fit.gpu):
        for measured, simulated in zip(one.measured, one.simulated, strict=True):
            assert simulated == pytest.approx(measured, rel=0.1, abs=0.005)


def test_calibration_sees_the_slots():
    result = result_of(rates=(0.1, 12.0), count=300)
    assert calibrate(result, Settings(), "e").gpu.slots == 16
    assert calibrate(result, Settings(slots=7), "e").gpu.slots == 7


def test_calibration_says_what_a_run_doesnt_tell():
    fit = calibrate(result_of(rates=(20.0,), count=100), Settings(), "e")
    assert any("found the server empty" in note for note in fit.notes)
    with pytest.raises(TooLittle, match="at least 20"):
        calibrate(result_of(rates=(1.0,), count=10), Settings(), "e")


# Commands


def test_compare_prints_both(file, capsys):
    one, other = file(result_of(), "a.json"), file(result_of(slower(ENGINE, 1.5)), "b.json")
    assert main(["bench", "compare", str(one), str(other), "--json", str(one) + ".c"]) == 0
    told = capsys.readouterr().out
    assert "differs" in told
    assert "TPOT p50" in told
    assert json.loads((one.parent / "a.json.c").read_text())[0]["stage"] == "0.2/s"


def test_report_shows_again(file, tmp_path, capsys):
    run = file(result_of())
    assert (
        main(
            [
                "bench",
                "report",
                str(run),
                "--html",
                str(tmp_path / "r.html"),
                "--csv",
                str(tmp_path / "r.csv"),
            ]
        )
        == 0
    )
    assert "TTFT p50" in capsys.readouterr().out
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "r.csv").read_text().startswith("target,")


def test_calibrate_writes_what_simulate_reads(file, tmp_path, capsys):
    run, costs = file(result_of(rates=(0.1, 1.0, 3.0))), tmp_path / "costs.json"
    assert main(["bench", "calibrate", str(run), "--kv-tokens", "200000", "-o", str(costs)]) == 0
    assert "the simulator's replay" in capsys.readouterr().err
    out, html = tmp_path / "sim.json", tmp_path / "sim.html"
    arguments = ["--engines", "2", "--requests", "50", "--seeds", "1", "--costs", str(costs)]
    arguments += ["--policies", "round_robin,lmetric", "--json", str(out), "--html", str(html)]
    assert main(["bench", "simulate", "poisson", *arguments]) == 0
    assert "m, calibrated" in capsys.readouterr().out
    simulated = read(out)
    assert simulated.kind == "simulated"
    assert [stage.name for stage in simulated.stages] == ["round_robin", "lmetric"]
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert "simulated" in html.read_text()
    assert main(["bench", "compare", str(out), str(out)]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "nowhere.json", "nowhere.json"],
        ["calibrate", "nowhere.json"],
        ["report", "nowhere.json"],
        ["simulate", "poisson", "--costs", "nowhere.json"],
    ],
)
def test_a_missing_file_is_one_line(arguments, capsys):
    assert main(["bench", *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "nowhere.json" in told[0]


def test_a_body_has_the_users_fields():
    asking = Asking("m", "max_completion_tokens", {"temperature": 0, "ignore_eos": True})
    body = json.loads(asking.body([Message("user", "Hi")], 7))
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 7, "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
