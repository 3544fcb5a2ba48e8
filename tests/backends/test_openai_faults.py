from __future__ import annotations

import asyncio

import pytest

from router.backends.base import Limits
from router.backends.openai import OpenAIBackend
from router.errors import Fault, FaultKind, api_error
from tests import upstream as up
from tests.backends.orders import CANARY, ask, backend, order
from tests.upstream import Upstream

QUICK = Limits(connect_s=1, first_token_s=0.05, idle_s=0.05)
GOOD = b"".join(up.events(2, finish=None, done=False))


async def outcome(script: up.Script, **how) -> tuple[bytes, Fault]:
    """What the client had got, and the fault."""
    async with Upstream(script) as upstream:
        target: OpenAIBackend = backend(upstream)
        out = b""
        with pytest.raises(Fault) as caught:
            answer = await target.open(order(**how))
            try:
                while piece := await answer.read():
                    out += piece
            finally:
                answer.close()
        async with asyncio.timeout(1.5):
            while target.in_use:
                await asyncio.sleep(0)
        await target.close()
        fault = caught.value
        for text in (str(fault), repr(fault), fault.message, str(api_error(fault).body)):
            assert "canary" not in text
        return out, fault


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (up.reset(), FaultKind.RESET),
        (up.hang_up(), FaultKind.RESET),
        (up.silent(), FaultKind.TIMEOUT_FIRST_BYTE),
        (up.status(500), FaultKind.SERVER_ERROR),
        (up.status(503, up.error_body(f"bad {CANARY}")), FaultKind.SERVER_ERROR),
        (
            up.status(401, up.error_body(f"Incorrect API key: {CANARY}")),
            FaultKind.REFUSED_CREDENTIALS,
        ),
        (up.status(404, up.error_body(code="model_not_found")), FaultKind.UNKNOWN_MODEL),
        (up.rate_limited(), FaultKind.RATE_LIMITED),
        (up.rate_limited(None), FaultKind.RATE_LIMITED),
        (up.context_too_long(), FaultKind.CONTEXT_LENGTH),
        (up.refuses_prefix(), FaultKind.CLIENT_ERROR),
        (up.status(302, b"", headers={"location": "http://127.0.0.1:1/"}), FaultKind.MALFORMED),
        (up.raw(b"SSH-2.0-x\r\n"), FaultKind.MALFORMED),
        (up.json_answer(up.error_body("no", code="rate_limit_exceeded")), FaultKind.RATE_LIMITED),
        (
            up.json_answer(up.encode({"error": {"message": "no", "code": 503}})),
            FaultKind.SERVER_ERROR,
        ),
        (up.json_answer(b"<html>", kind="text/html"), FaultKind.MALFORMED),
        (up.json_answer(b""), FaultKind.MALFORMED),
        (up.status(500, b"x" * 500_000), FaultKind.SERVER_ERROR),
        (up.raw(up.http(503, b"x" * 100)[:-50], then=up.silent()), FaultKind.SERVER_ERROR),
    ],
)
async def test_faults_before_the_first_byte(
    script: up.Script, kind: FaultKind, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.backends.openai.ERROR_BODY_S", 0.05)
    limits = QUICK if kind is FaultKind.TIMEOUT_FIRST_BYTE else Limits(1, 1, 1)
    out, fault = await outcome(script, stream=stream, limits=limits)
    assert (out, fault.kind) == (b"", kind)
    if script is up.rate_limited():
        assert fault.retry_after_s == 1


async def test_retry_after_is_read() -> None:
    _, fault = await outcome(up.rate_limited("7"))
    assert fault.retry_after_s == 7
    _, fault = await outcome(up.rate_limited(None))
    assert fault.retry_after_s is None


async def test_a_context_error_reaches_the_client_unchanged() -> None:
    _, fault = await outcome(up.context_too_long(), stream=True)
    answer = api_error(fault)
    assert (answer.status, answer.error.code) == (400, "context_length_exceeded")
    assert b'"param":"messages"' in answer.body


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (up.cut(2), FaultKind.CUT),
        (up.cut(2, rst=True), FaultKind.CUT),
        (up.stall(2), FaultKind.TIMEOUT_IDLE),
        (up.stall(2, heartbeat_s=0.01), FaultKind.TIMEOUT_IDLE),
        (up.malformed(2), FaultKind.MALFORMED),
        (up.malformed(2, b"data: <html>\n\n"), FaultKind.MALFORMED),
        (up.error_event(2), FaultKind.SERVER_ERROR),
        (up.no_done(2, finish=None), FaultKind.CUT),
        (
            up.stream_of(up.events(2, finish=None, done=False), then=up.raw(b"zz\r\n")),
            FaultKind.MALFORMED,
        ),
    ],
)
async def test_faults_after_the_first_byte(script: up.Script, kind: FaultKind) -> None:
    limits = Limits(1, 1, 0.06) if kind is FaultKind.TIMEOUT_IDLE else Limits(1, 1, 1)
    out, fault = await outcome(script, stream=True, limits=limits)
    assert sans_comments(out) == GOOD
    assert fault.kind is kind


def sans_comments(out: bytes) -> bytes:
    return out.replace(b": keep-alive\n\n", b"")


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (up.cut(), FaultKind.CUT),
        (up.cut(rst=True), FaultKind.CUT),
        (up.stall(), FaultKind.TIMEOUT_IDLE),
        (up.malformed(), FaultKind.MALFORMED),
        (up.json_answer(up.encode({"choices": []})), FaultKind.MALFORMED),
        (up.json_answer(up.encode([1])), FaultKind.MALFORMED),
        (up.stream(2), FaultKind.MALFORMED),
    ],
)
async def test_faults_of_whole_answers(script: up.Script, kind: FaultKind) -> None:
    limits = Limits(1, 1, 0.05) if kind is FaultKind.TIMEOUT_IDLE else Limits(1, 1, 1)
    out, fault = await outcome(script, limits=limits)
    assert (out, fault.kind) == (b"", kind)


@pytest.mark.parametrize(
    "body", [up.error_body("no", code=429), up.error_body("no", code="rate_limit_exceeded")]
)
async def test_an_error_as_the_first_event(body: bytes) -> None:
    out, fault = await outcome(up.error_event(0, body), stream=True)
    assert (out, fault.kind) == (b"", FaultKind.RATE_LIMITED)


async def test_heartbeats_before_the_first_token_do_not_count() -> None:
    async def only_comments(call: up.Call) -> None:
        await call.write(up.stream_head())
        while not call.gone.is_set():
            await call.write(up.chunked(b": keep-alive\n\n"))
            await asyncio.sleep(0.005)

    out, fault = await outcome(only_comments, stream=True, limits=QUICK)
    assert (out, fault.kind) == (b"", FaultKind.TIMEOUT_FIRST_BYTE)


async def test_blank_lines_before_a_whole_answer_do_not_count_and_do_not_hurt() -> None:
    blank = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        + up.chunked(b"\n\n")
    )
    _, fault = await outcome(up.raw(blank, then=up.silent()), limits=QUICK)
    assert fault.kind is FaultKind.TIMEOUT_FIRST_BYTE
    rest = up.raw(up.chunked(up.completion()) + b"0\r\n\r\n")
    async with Upstream(up.raw(blank, then=rest)) as upstream:
        target = backend(upstream)
        assert (await ask(target, order())).strip() == up.completion()
        await target.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [up.silent(), up.stall(1)])
async def test_the_deadline_wins(script: up.Script, stream: bool) -> None:
    _, fault = await outcome(script, stream=stream, wait_s=0.05)
    assert fault.kind is FaultKind.DEADLINE


@pytest.mark.parametrize("after", [up.hang_up(), up.reset()])
async def test_a_finish_without_done_is_whole(after: up.Script) -> None:
    async def later(call: up.Call) -> None:
        await asyncio.sleep(0.02)
        await after(call)

    finished = up.events(2, done=False)
    stalls = up.stream_of(finished, then=up.silent())
    for script in (up.no_done(2), up.stream_of(finished, then=later), stalls):
        async with Upstream(script) as upstream:
            target = backend(upstream)
            answer = await target.open(order(stream=True, limits=Limits(1, 1, 0.05)))
            out = b""
            while piece := await answer.read():
                out += piece
            assert out == b"".join(up.events(2))
            assert answer.facts.finished
            answer.close()
            await target.close()


async def test_an_endless_whole_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.backends.openai.MAX_ANSWER_BYTES", 1_000_000)

    async def endless(call: up.Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not call.gone.is_set():
            await call.write(up.chunked(b"x" * 65536))

    _, fault = await outcome(endless)
    assert fault.kind is FaultKind.MALFORMED


async def test_content_filter_is_passed_on() -> None:
    async with Upstream(default=up.content_filtered()) as upstream:
        target = backend(upstream)
        for stream in (True, False):
            assert b'"finish_reason":"content_filter"' in await ask(target, order(stream=stream))
        await target.close()


async def test_connect_limit(unused_tcp_port: int) -> None:
    from router.config.schema import Provider

    target = OpenAIBackend("p", Provider(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1"))
    with pytest.raises(Fault) as caught:
        await target.open(order())
    assert caught.value.kind is FaultKind.CONNECT
    assert target.in_use == 0
    await target.close()
