"""`nenya bench` on servers: a scripted one and a router with a simulated engine, on real sockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.measure.client import Asking, BadUrl, Endpoint
from benchmarks.measure.drive import Drive, Stage
from benchmarks.measure.lengths import lengths
from benchmarks.measure.preflight import Found, Unusable, look
from benchmarks.measure.profiles import Plan, Run
from benchmarks.measure.prompts import Ruler, Writer
from benchmarks.measure.result import read
from benchmarks.measure.sessions import Shape, made_up
from benchmarks.measure.slo import slo
from router.cli import main
from tests.e2e.serving import SECRET, site
from tests.upstream import (
    Upstream,
    cut,
    error_event,
    flapping,
    json_answer,
    malformed,
    no_done,
    normal,
    rate_limited,
    silent,
    status,
    stream,
)

SHAPE = Shape(lengths("20"), lengths("5"))
ENGINE = """\
engines: {e: {kind: simulated, ttft_ms: 5, tokens_per_s: 500, slots: 8}}
models: {m: {targets: [{engine: e}]}}
"""
CANARY = "sk-canary-4711"


class Silent:
    def begins(self, doing):
        pass

    def __call__(self, drive, now_s):
        pass

    def ends(self, stage):
        pass


async def driven(url, *, shape=SHAPE, patience_s=5.0, stop=None, requests=6, workers=2, **more):
    """What a small closed loop saw at ``url``; ``more`` is the stage's."""
    endpoint = Endpoint(url, None)
    stage = Stage(
        name="s",
        sessions=made_up(shape, 1),
        requests=requests,
        workers=workers,
        patience_s=patience_s,
        **more,
    )
    writer = Writer(Ruler(), prefix_tokens=shape.prefix_tokens)
    try:
        return await Drive(endpoint, Asking("m"), writer, stage, stop or asyncio.Event()).run()
    finally:
        await endpoint.close()


# One request and what is made of it


async def test_an_answer_is_measured():
    async with Upstream(default=stream(4, usage="chunk")) as upstream:
        ran = await driven(upstream.url)
    assert len(ran.records) == 6
    for one in ran.records:
        assert (one.outcome, one.pieces, one.finish) == ("ok", 4, "stop")
        assert (one.input_tokens, one.cached_tokens, one.output_tokens) == (10, 4, 3)
        assert one.by_usage
        assert one.due_s <= one.sent_s <= one.first_s <= one.end_s
        assert len(one.gaps_s) == 3
    body = upstream.requests[0].json
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 5, True)
    assert body["stream_options"] == {"include_usage": True}
    assert ran.ended == "done"


async def test_without_usage_pieces_are_counted():
    async with Upstream(default=stream(4)) as upstream:
        ran = await driven(upstream.url)
    assert {(one.output_tokens, one.by_usage) for one in ran.records} == {(4, False)}


async def test_text_may_be_cut_anywhere():
    async with Upstream(
        default=stream(
            4, usage="chunk", pieces=lambda data: [data[i : i + 1] for i in range(len(data))]
        )
    ) as upstream:
        ran = await driven(upstream.url, requests=2)
    assert {(one.outcome, one.pieces) for one in ran.records} == {("ok", 4)}


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (rate_limited(), "429"),
        (status(500), "500"),
        (cut(2), "cut"),
        (malformed(), "malformed"),
        (error_event(1), "error"),
        (json_answer(b"<html>hello</html>", kind="text/html"), "malformed"),
        (stream(0), "empty"),
        (no_done(2), "ok"),
        (no_done(2, finish=None), "cut"),
    ],
    ids=["429", "500", "cut", "malformed", "error", "html", "empty", "no done", "no finish"],
)
async def test_failures_have_their_kind(script, outcome):
    async with Upstream(default=script) as upstream:
        ran = await driven(upstream.url, requests=2)
    assert [one.outcome for one in ran.records] == [outcome] * 2
    assert set(ran.failures) <= {outcome}


async def test_an_answer_that_never_comes_is_a_timeout():
    async with Upstream(default=silent()) as upstream:
        ran = await driven(upstream.url, requests=1, workers=1, patience_s=0.05)
    assert ran.records[0].outcome == "timeout"


async def test_nobody_there_is_a_failed_connection():
    async with Upstream() as upstream:
        url = upstream.url
    ran = await driven(url, requests=2)
    assert [one.outcome for one in ran.records] == ["connect"] * 2


async def test_connections_are_kept():
    async with Upstream(default=stream(2)) as upstream:
        await driven(upstream.url, requests=10, workers=2)
        assert upstream.connections == 2
        assert len(upstream.requests) == 10


# Loops


async def test_an_open_loop_waits_for_nobody():
    """Six are due at once, the server answers none: all are sent."""
    async with Upstream(default=silent()) as upstream:
        stop = asyncio.Event()
        running = asyncio.create_task(
            driven(
                upstream.url,
                dues=iter([0.0] * 6),
                workers=0,
                requests=None,
                duration_s=60.0,
                stop=stop,
            )
        )
        await upstream.until_requests(6)
        stop.set()
        ran = await running
    assert ran.ended == "interrupted"
    assert {one.outcome for one in ran.records} == {"unfinished"}


async def test_a_closed_loop_has_no_more_than_its_workers():
    gate = asyncio.Semaphore(0)
    async with Upstream(default=stream(1, gate=gate)) as upstream:
        running = asyncio.create_task(driven(upstream.url, requests=5, workers=3))
        await upstream.until_requests(3)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert len(upstream.requests) == 3
        for _ in range(100):
            gate.release()
        assert len((await running).records) == 5


async def test_lateness_is_the_clients_and_counts():
    """Due in the past: TTFT from due is longer than from send."""
    async with Upstream(default=stream(1)) as upstream:
        ran = await driven(upstream.url, dues=iter([-1.0]), workers=0, requests=1)
    one = ran.records[0]
    assert one.ttft_s >= 1.0
    assert one.first_s - one.begun_s < 1.0


async def test_turns_carry_the_answers():
    shape = Shape(lengths("20"), lengths("5"), prefix_tokens=30, turns=3)
    async with Upstream(default=stream(2)) as upstream:
        ran = await driven(upstream.url, shape=shape, requests=3, workers=1)
    said = [[one["role"] for one in seen.json["messages"]] for seen in upstream.requests]
    assert said[0] == ["system", "user"]
    assert said[2] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert upstream.requests[1].json["messages"][2]["content"] == "word0 word1 "
    assert [one.turn for one in ran.records] == [0, 1, 2]


async def test_a_stage_in_vain_is_broken_off(monkeypatch):
    monkeypatch.setattr("benchmarks.measure.drive.LOOK_S", 0.01)
    async with Upstream(default=silent()) as upstream:
        ran = await driven(
            upstream.url, requests=2, hopeless=lambda records, now: len(records) == 2
        )
    assert ran.ended == "hopeless"


async def test_a_bug_in_here_is_not_a_quiet_server():
    def broken():
        yield from itertools.islice(made_up(SHAPE, 1), 1)
        raise ZeroDivisionError

    async with Upstream(default=stream(1)) as upstream:
        with pytest.raises(ZeroDivisionError):
            endpoint = Endpoint(upstream.url, None)
            stage = Stage(name="s", sessions=broken(), workers=1)
            try:
                await Drive(endpoint, Asking("m"), Writer(Ruler()), stage, asyncio.Event()).run()
            finally:
                await endpoint.close()


# Runs


async def ran(plan, url, key=None):
    endpoint = Endpoint(url, key)
    try:
        found = await look(endpoint, None, Asking(""))
        return found, await Run(plan, endpoint, Asking(found.model), found, Silent()).go("0")
    finally:
        await endpoint.close()


async def test_a_router_is_looked_at_and_measured():
    plan = Plan(
        profile="poisson", shape=Shape(lengths("64-256"), lengths("8")), rates=(40.0,), requests=30, duration_s=None,
        slo=slo("ttft=5s"),
    )  # fmt: skip
    async with site(ENGINE) as served:
        found, result = await ran(plan, served.url, SECRET)
    assert found.model == "m"
    assert found.ruler.measured
    assert found.counts_tokens
    (stage,) = result.stages
    assert stage.figures.ok == 30
    assert stage.met
    assert stage.figures.output_tokens == 240
    for asked, got in zip(
        itertools.islice(made_up(plan.shape, 1), 30), stage.requests.input_tokens, strict=True
    ):
        assert got == pytest.approx(asked.turns[0].input_tokens, rel=0.1, abs=8)


async def test_stages_have_the_same_lengths_and_other_words():
    plan = Plan(
        profile="concurrent",
        shape=Shape(lengths("exp:60"), lengths("4")),
        workers=(1, 2),
        requests=5,
    )
    async with Upstream(default=normal()) as upstream:
        upstream.scripts = [json_answer(b'{"data": [{"id": "up"}]}')]
        await ran(plan, upstream.url)
        asked = [seen.json["messages"][0]["content"] for seen in upstream.requests[4:]]
    sizes = [len(text.split()) for text in asked]
    assert sorted(sizes[:5]) == sorted(sizes[5:])
    assert len(set(asked)) == 10


async def test_a_rate_has_the_gap_behind_its_last_request_in_it():
    plan = Plan(
        profile="constant", spacing="even", shape=SHAPE, rates=(50.0,), requests=4, duration_s=None,
    )  # fmt: skip
    async with Upstream(json_answer(b'{"data": [{"id": "up"}]}'), default=normal()) as upstream:
        _, result = await ran(plan, upstream.url)
    (stage,) = result.stages
    assert stage.figures.requests == 4
    assert stage.figures.window_s >= 4 / 50
    assert stage.figures.offered_rate <= 50


async def test_a_search_finds_a_rate():
    plan = Plan(
        profile="goodput", shape=SHAPE, rates=(200.0,), requests=10, duration_s=None, slo=slo("ttft=0.0001ms"),
    )  # fmt: skip
    async with Upstream(json_answer(b'{"data": [{"id": "up"}]}'), default=normal()) as upstream:
        _, result = await ran(plan, upstream.url)
    assert result.capacity.held == 0
    assert {stage.met for stage in result.stages} == {False}


# The look


async def looked(upstream, asking=None):
    endpoint = Endpoint(upstream.url, None)
    try:
        return await look(endpoint, asking, Asking(""))
    finally:
        await endpoint.close()


async def test_a_server_that_doesnt_count_prompts_has_no_ruler():
    async with Upstream(default=normal()) as upstream:
        found = await looked(upstream, Asking("m"))
    assert isinstance(found, Found)
    assert not found.ruler.measured  # the same usage for every length


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (status(401), "401: It went wrong.; the key comes from the environment"),
        (status(404), "answered 404: It went wrong"),
        (json_answer(b"<html>hi</html>", kind="text/html"), "does not speak OpenAI's API"),
        (json_answer(b"not found", status=404, kind="text/plain"), "does not speak OpenAI's API"),
        (json_answer(b'{"data": []}'), "has no models"),
    ],
)
async def test_what_is_no_server_is_told(script, why):
    async with Upstream(default=script) as upstream:
        with pytest.raises(Unusable, match=why.replace("(", "\\(")):
            await looked(upstream)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://h", "http://", "http://h:x", "http://u:p@h"]
)
async def test_bad_urls(url):
    with pytest.raises(BadUrl):
        Endpoint(url, None)


# The command


async def command(*arguments):
    return await asyncio.to_thread(main, ["bench", *arguments])


async def test_the_command_writes_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NENYA_KEY", SECRET)
    paths = {name: tmp_path / f"run.{name}" for name in ("json", "jsonl", "csv", "html")}
    files = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    async with site(ENGINE) as served:
        code = await command(
            "poisson", served.url, "--rate", "50", "--requests", "20", "--input", "exp:50", "--output", "6", "--slo",
            "ttft_p99=5s", *files,
        )  # fmt: skip
    told = capsys.readouterr()
    assert code == 0
    assert "50/s" in told.out
    assert "✓" in told.out
    assert "20 answered" in told.err
    result = read(paths["json"])
    assert result.stages[0].figures.ok == 20
    assert len(paths["jsonl"].read_text().splitlines()) == 20
    assert "TTFT" in paths["html"].read_text()
    for text in (told.out, told.err, *(path.read_text() for path in paths.values())):
        assert SECRET not in text


async def test_a_run_can_be_replayed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NENYA_KEY", SECRET)
    path = tmp_path / "run.jsonl"
    async with site(ENGINE) as served:
        base = [
            "concurrent",
            served.base_url,
            "--concurrency",
            "2",
            "--requests",
            "8",
            "--input",
            "40",
            "--output",
            "4",
        ]
        assert await command(*base, "--jsonl", str(path)) == 0
        assert (
            await command(
                "replay", served.url, str(path), "--faster", "0.5", "--json", str(tmp_path / "r")
            )
            == 0
        )
    assert read(tmp_path / "r").stages[0].figures.ok == 8


async def test_a_sweep_finds_its_rates(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NENYA_KEY", SECRET)
    async with site(ENGINE) as served:
        code = await command(
            "sweep", served.url, "--requests", "8", "--steps", "4", "--most", "4", "--input", "40", "--output", "4",
        )  # fmt: skip
    assert code == 0
    rows = capsys.readouterr().out.splitlines()[4:]
    assert rows[0].startswith("lone")
    assert rows[1].startswith("4 at a time")
    assert len([row for row in rows if row and row[0].isdigit() and "bottleneck" not in row]) == 3


async def test_failures_are_counted_and_explained(capsys):
    mixed = flapping(normal(), status(503), rate_limited())
    scripts = [normal()] * 3
    async with Upstream(*scripts, default=mixed) as upstream:
        code = await command(
            "constant", upstream.url, "--model", "m", "--rate", "100", "--requests", "9"
        )
    told = capsys.readouterr().out
    assert code == 0
    assert "3 of 503: It went wrong." in told
    assert "3 of 429: Rate limit reached." in told
    assert "this measures the limit" in told


async def test_nothing_answered_is_a_failure(capsys):
    async with Upstream(*[normal()] * 3, default=status(500)) as upstream:
        assert (
            await command(
                "constant", upstream.url, "--model", "m", "--rate", "100", "--requests", "3"
            )
            == 1
        )


@pytest.mark.parametrize(
    ("script", "code", "why"),
    [
        (status(401), 1, "401: It went wrong.; the key comes from the environment"),
        (status(404), 1, "answered 404: It went wrong"),
        (json_answer(b"<html>hi</html>", kind="text/html"), 1, "does not speak OpenAI's API"),
    ],
)
async def test_errors_are_one_line(script, code, why, capsys, monkeypatch):
    monkeypatch.setenv("NENYA_KEY", CANARY)
    async with Upstream(default=script) as upstream:
        assert await command("poisson", upstream.url, "--rate", "1", "--model", "m") == code
    told = capsys.readouterr()
    assert why in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert CANARY not in told.err + told.out


async def test_a_refused_connection_is_one_line(capsys):
    async with Upstream() as upstream:
        url = upstream.url
    assert await command("poisson", url, "--rate", "1") == 1
    told = capsys.readouterr().err
    assert "nothing answers at http://127.0.0.1" in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["poisson", "URL", "--rate", "x"], "'x' is no number"),
        (["poisson", "URL", "--rate", "0"], "above 0"),
        (["concurrent", "URL", "--concurrency", "1.5"], "whole numbers"),
        (["constant", "URL", "--rate", "1", "--input", "many"], "is no length"),
        (["constant", "URL", "--rate", "1", "--slo", "fast"], "ttft=2s"),
        (["constant", "URL", "--rate", "1", "--duration", "long"], "is no time"),
        (["constant", "URL", "--rate", "1", "--body", "[]"], "a JSON object"),
        (["constant", "URL", "--rate", "1", "--turns", "0"], "--turns: at least 1"),
        (["constant", "URL", "--rate", "1"], "no http or https URL"),
        (["goodput", "URL"], "a search needs an objective"),
        (["ramp", "URL", "--from", "5", "--to", "2"], "below --to"),
        (["replay", "URL", "nowhere.jsonl"], "No such file"),
        (["constant", "URL", "--rate", "1", "--json", "/no/such/run.json"], "is no such folder"),
        (["constant", "URL", "--rate", "1", "--html", "/"], "is a folder"),
    ],
)
def test_misuse_is_explained(arguments, why, capsys):
    assert main(["bench", *arguments]) == 2
    told = capsys.readouterr().err
    assert why in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "constant",
        "poisson",
        "concurrent",
        "ramp",
        "sweep",
        "replay",
        "goodput",
        "compare",
        "calibrate",
        "report",
    ],
)
def test_the_help_teaches(name, capsys):
    assert main(["bench", name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"nenya bench {name}" in text
    assert "example" in text


async def test_ctrl_c_ends_with_what_was_measured(tmp_path):
    out = tmp_path / "run.json"
    async with Upstream(default=normal()) as upstream:
        words = [
            "constant",
            upstream.url,
            "--model",
            "m",
            "--rate",
            "50",
            "--duration",
            "60s",
            "--json",
            str(out),
        ]
        script = "import sys; from router.cli import main; sys.exit(main(sys.argv[1:]))"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, "bench", *words, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        await upstream.until_requests(10, timeout_s=20)
        process.send_signal(signal.SIGINT)
        told, errors = await process.communicate()
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert b"50/s" in told
    result = json.loads(out.read_text())
    assert result["stages"][0]["ended"] == "interrupted"
    assert result["stages"][0]["figures"]["ok"] >= 1
