"""Lines of the log: their words, what can't get into them, and that silence is free."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import FaultKind
from router.events import (
    Admitted,
    AttemptDone,
    Event,
    LimitDecision,
    NodeState,
    RequestDone,
    Retry,
    TargetState,
)
from router.log import (
    FLUSH_S,
    LEVELS,
    MOST_HELD,
    HumanFormatter,
    JsonFormatter,
    Line,
    RequestLog,
    install,
    plain,
)

REQUEST = RequestDone(
    request_id="req_1", key_id="dev", model="starter", target="starter", provider="local",
    streaming=True, outcome="ok", status=200, attempts=1, duration_s=0.123456789,
    first_token_s=0.05, input_tokens=12, cached_input_tokens=0, output_tokens=34, overhead_s=None,
)  # fmt: skip
FAILED = AttemptDone("starter", "gpu0", "local", 0.5, FaultKind.CONNECT)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "nenya", "router", "engines")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def lines(event: Event, level: str = "info", style: str = "json") -> list[str]:
    stream = io.StringIO()
    install(level, style, stream)  # type: ignore[arg-type]
    RequestLog()(event)
    return stream.getvalue().splitlines()


def test_a_request_in_json() -> None:
    (line,) = lines(REQUEST)
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "level": "info", "logger": "nenya.requests", "message": "request", "request_id": "req_1",
        "key_id": "dev", "model": "starter", "target": "starter", "provider": "local",
        "streaming": True, "outcome": "ok", "status": 200, "attempts": 1, "duration_s": 0.123457,
        "first_token_s": 0.05, "input_tokens": 12, "cached_input_tokens": 0, "output_tokens": 34,
        "overhead_s": None, "cost_usd": None, "tokens_estimated": None,
        "burnt_input_tokens": None, "burnt_output_tokens": None, "reasoning_tokens": None,
        "operation": "chat", "trace_id": None,
    }  # fmt: skip


def test_a_request_for_people() -> None:
    (line,) = lines(REQUEST, style="human")
    assert line[12:] == (
        " info    request  request_id=req_1 key_id=dev model=starter target=starter provider=local "
        "streaming=yes outcome=ok status=200 attempts=1 duration_s=0.123457 first_token_s=0.05 "
        "input_tokens=12 cached_input_tokens=0 output_tokens=34 operation=chat"
    )


@pytest.mark.parametrize(
    ("event", "end"),
    [
        (FAILED, ("warning attempt failed  model=starter target=gpu0 provider=local duration_s=0.5 "
         "fault=connect_failed operation=chat")),
        (TargetState("gpu0", "ejected", "5 failures"),
         'info    target  target=gpu0 state=ejected reason="5 failures"'),
        (NodeState("gpu0", "ready"), "info    node  engine=gpu0 state=ready"),
        (LimitDecision("dev", "m", "key", "tokens", "refused"),
         "info    limit  key_id=dev model=m scope=key resource=tokens outcome=refused"),
        (msgspec.structs.replace(REQUEST, status=502, key_id=""), None),
    ],
)  # fmt: skip
def test_lines_of_other_events(event: Event, end: str | None) -> None:
    (line,) = lines(event, style="human")
    assert line[13:] == end if end is not None else "warning request" in line


@pytest.mark.parametrize(
    "event",
    [
        Retry("gpu0", FaultKind.CONNECT),
        AttemptDone("starter", "gpu0", "local", 0.5, None),
        Admitted("dev", "m", "key", ("requests", "tokens")),
    ],
)
def test_what_has_no_line(event: Event) -> None:
    assert lines(event, "debug") == []


def test_a_level_that_is_off_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.log.Line", lambda *_: pytest.fail("built a line for nobody"))
    assert lines(REQUEST, "warning") == []
    assert lines(FAILED, "error") == []


EVIL = 'a\nlevel=error\r\x1b[2J\x00\x85\u2028\u202e\ud800" b'


@pytest.mark.parametrize("style", ["human", "json"])
def test_no_value_can_start_a_line_or_move_a_cursor(style: str) -> None:
    event = msgspec.structs.replace(REQUEST, model=EVIL, key_id="x\n" * 5000)
    (line,) = lines(event, style=style)
    assert line.isprintable()
    assert len(line) < 6000


def test_the_message_itself_is_escaped() -> None:
    stream = io.StringIO()
    install("info", "human", stream)
    logging.getLogger("router.x").info("a %s", "b\nc")
    assert stream.getvalue().endswith("info    a b\\nc\n")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("style", ["human", "json"])
def test_tracebacks(style: str) -> None:
    class ToldError(ValueError):
        def __str__(self) -> str:
            return "one\n12:00:00.000 error   forged\x1b[2J"

    def breaks() -> None:
        raise ToldError

    stream = io.StringIO()
    install("info", style, stream)  # type: ignore[arg-type]
    try:
        breaks()
    except ValueError:
        logging.getLogger("nenya").exception("it broke")
    text = stream.getvalue()
    if style == "json":
        assert "ToldError" in json.loads(text)["traceback"]
    else:
        first, *rest = text.splitlines()
        assert first.endswith("error   it broke")
        assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_auto_is_human_in_a_terminal_and_json_elsewhere() -> None:
    for stream, is_json in ((Terminal(), False), (io.StringIO(), True)):
        install("info", "auto", stream)
        RequestLog()(REQUEST)
        assert stream.getvalue().startswith("{") is is_json


def test_a_second_install_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    install("info", "json", first)
    install("info", "json", second)
    RequestLog()(REQUEST)
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


@pytest.mark.parametrize("level", LEVELS)
def test_other_libraries_stay_quiet_unless_it_is_debug(level: str) -> None:
    install(level, "json", io.StringIO())
    ours, others = logging.getLogger("router.server"), logging.getLogger("asyncio.x")
    assert ours.isEnabledFor(logging.INFO) is (level in {"debug", "info"})
    assert others.isEnabledFor(logging.INFO) is (level == "debug")
    assert others.isEnabledFor(logging.WARNING) is (level != "error")


def test_a_stream_that_cannot_write_every_letter() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    install("info", "human", stream)
    RequestLog()(msgspec.structs.replace(REQUEST, model="é"))
    stream.flush()
    assert b"model=\\xe9" in raw.getvalue()


@given(st.text(max_size=700))
@settings(max_examples=200, deadline=None)
def test_any_text_is_one_plain_line(text: str) -> None:
    assert plain(text).isprintable()
    record = logging.LogRecord("nenya", logging.INFO, "", 0, "%s", (text,), None)
    record.fields = {"model": text}
    assert HumanFormatter().format(record).isprintable()
    line = JsonFormatter().format(record)
    assert json.loads(line)["model"] == plain(text)
    assert line.isprintable()


@pytest.mark.parametrize("odd", [EVIL, "\x7f", "é\u2028", "x" * 400, 'a "word"', "é"])
async def test_an_odd_line_among_plain_ones_changes_none_of_them(odd):
    """Lines that are written together say what each says alone."""
    stream = io.StringIO()
    install("info", "json", stream)
    log = RequestLog()
    events = [
        REQUEST,
        msgspec.structs.replace(REQUEST, model=odd, key_id=odd, outcome=odd),
        REQUEST,
    ]
    for event in events:
        log(event)
    logging.getLogger("nenya").info("said %s", odd)
    await asyncio.sleep(FLUSH_S * 1.5)
    written = stream.getvalue()
    assert written.count("\n") == 4
    assert all(line.isprintable() for line in written.splitlines())
    said = [json.loads(line) for line in written.splitlines()]
    assert [one.get("model") for one in said] == ["starter", plain(odd), "starter", None]
    assert said[3]["message"] == plain(f"said {odd}")
    first, second = (msgspec.structs.asdict(event) for event in events[:2])
    assert list(said[0]) == list(said[1]) == ["time", "level", "logger", "message", *first]
    assert second["model"] == odd
    for one in said[:3]:
        assert one["duration_s"] == 0.123457


def test_no_event_has_a_field_that_every_line_has():
    for kind in get_args(Event):
        names = {field.name for field in msgspec.structs.fields(kind)}
        assert names, kind
        assert not names & {"time", "level", "logger", "message"}, kind


async def test_who_takes_lines_is_looked_for_again_after_each_batch(caplog):
    first, log = io.StringIO(), RequestLog()
    install("info", "json", first)
    log(REQUEST)
    log(REQUEST)
    await asyncio.sleep(FLUSH_S * 1.5)
    install("warning", "json", second := io.StringIO())
    log(REQUEST)
    log(msgspec.structs.replace(REQUEST, status=502))
    log(REQUEST)
    assert first.getvalue().count("\n") == 2
    assert [json.loads(line)["status"] for line in second.getvalue().splitlines()] == [502]
    install("info", "json", third := io.StringIO())
    log(REQUEST)
    await asyncio.sleep(FLUSH_S * 1.5)
    assert third.getvalue().count("\n") == 1


async def test_lines_of_a_moment_are_written_together():
    stream = io.StringIO()
    install("info", "json", stream)
    log = RequestLog()
    log(REQUEST)
    log(REQUEST)
    assert stream.getvalue() == ""
    await asyncio.sleep(FLUSH_S * 1.5)
    assert stream.getvalue().count("\n") == 2
    log(REQUEST)
    await asyncio.sleep(FLUSH_S * 1.5)
    assert stream.getvalue().count("\n") == 3


async def test_a_warning_takes_the_lines_before_it_along_in_their_order():
    stream = io.StringIO()
    install("info", "json", stream)
    RequestLog()(REQUEST)
    RequestLog()(FAILED)
    said = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert said == ["request", "attempt failed"]


async def test_only_so_many_lines_wait():
    stream = io.StringIO()
    install("info", "json", stream)
    for _ in range(MOST_HELD):
        RequestLog()(REQUEST)
    assert stream.getvalue().count("\n") == MOST_HELD


async def test_a_thread_without_a_loop_writes_at_once():
    stream = io.StringIO()
    install("info", "json", stream)
    await asyncio.to_thread(logging.getLogger("nenya").info, "from a thread")
    assert stream.getvalue().count("\n") == 1


def test_lines_held_for_a_loop_that_ended_are_written():
    async def say() -> None:
        RequestLog()(REQUEST)

    stream = io.StringIO()
    install("info", "json", stream)
    asyncio.run(say())
    asyncio.run(say())
    logging.getLogger("nenya").info("after it")
    assert stream.getvalue().count("\n") == 3


async def test_a_second_install_writes_what_the_first_held():
    first = io.StringIO()
    install("info", "json", first)
    RequestLog()(REQUEST)
    install("info", "json", io.StringIO())
    assert first.getvalue().count("\n") == 1


def test_a_process_that_ends_writes_what_it_held():
    code = (
        "import asyncio, logging, sys\n"
        "from router.log import install\n"
        "install('info', 'human', sys.stderr)\n"
        "async def main(): logging.getLogger('nenya').info('the last word')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.endswith("the last word\n")


def test_a_handler_beside_ours_hears_requests_too(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    install("info", "human", stream)
    caplog.set_level(logging.INFO, "nenya.requests")
    RequestLog()(REQUEST)
    (record,) = caplog.records
    assert record.getMessage() == "request"
    assert record.fields["model"] == "starter"
    assert "model=starter" in stream.getvalue()


def test_requests_alone_and_with_others_make_the_same_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line() -> str:
        stream = io.StringIO()
        install("info", "json", stream)
        RequestLog()(REQUEST)
        return stream.getvalue()[len('{"time":"2026-11-25T06:42:02.077Z"') :]

    with_others = line()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    assert line() == with_others


def test_lines_of_a_moment_say_what_each_says_alone() -> None:
    costs = [None, 0.0, 1.23456789, 2e-7]
    held = [
        Line(
            1e9 + number / 700,
            logging.INFO,
            "nenya.requests",
            "request",
            msgspec.structs.replace(REQUEST, overhead_s=number / 3e5, cost_usd=cost),
        )
        for number, cost in enumerate(costs)
    ]
    odd = Line(1e9, logging.INFO, "nenya", "odd", msgspec.structs.replace(REQUEST, model="\ud800"))
    for together in (held, [*held, odd], [*held, Line(1e9, 20, "nenya", "target", {"a": 1})]):
        alone = [JsonFormatter().write(line) for line in together]
        assert JsonFormatter().write_all(together).splitlines() == alone


def test_every_fraction_of_a_request_is_rounded():
    names = [f.name for f in msgspec.structs.fields(RequestDone) if "float" in str(f.type)]
    assert "duration_s" in names
    event = msgspec.structs.replace(REQUEST, **dict.fromkeys(names, 1.23456789))
    line = json.loads(JsonFormatter().write(Line(1e9, logging.INFO, "nenya", "request", event)))
    assert {name: line[name] for name in names} == dict.fromkeys(names, 1.234568)


@given(st.floats(0, 1e6))
def test_fractions_are_rounded_to_microseconds(seconds: float) -> None:
    event = msgspec.structs.replace(REQUEST, duration_s=seconds)
    line = json.loads(JsonFormatter().write(Line(1e9, logging.INFO, "nenya", "request", event)))
    assert abs(line["duration_s"] - seconds) < 0.501e-6
    assert line["duration_s"] == round(line["duration_s"], 6)


@pytest.mark.parametrize(("length", "cut"), [(100, False), (499, False), (501, True), (5000, True)])
def test_a_long_line_among_short_ones_is_cut(length: int, *, cut: bool) -> None:
    held = [
        Line(1e9, logging.INFO, "nenya", "request", msgspec.structs.replace(REQUEST, outcome=text))
        for text in ("ok", "x" * length, "ok", "ok")
    ]
    said = [json.loads(line) for line in JsonFormatter().write_all(held).splitlines()]
    assert [one["outcome"] for one in said] == ["ok", plain("x" * length), "ok", "ok"]
    assert said[1]["outcome"].endswith("…") == cut
