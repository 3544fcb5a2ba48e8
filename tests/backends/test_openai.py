from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl

import pytest
import trustme
import uvloop

from router.backends.base import Limits
from router.backends.http import connection as wire
from router.backends.openai import OpenAIBackend
from router.config.schema import Provider
from router.errors import ConfigError, Fault, FaultKind
from router.ratelimits import Reading
from tests import upstream as up
from tests.backends.orders import CANARY, ask, backend, order, read_all
from tests.upstream import Upstream


@contextlib.asynccontextmanager
async def both(*scripts: up.Script, **settings):
    async with Upstream(*scripts) as upstream:
        target = backend(upstream, **settings)
        try:
            yield upstream, target
        finally:
            await target.close()
            assert target.in_use == 0


async def test_a_whole_answer_passes_untouched() -> None:
    async with both() as (upstream, target):
        answer = await target.open(order())
        assert await read_all(answer) == up.completion()
        assert await answer.read() == b""
        facts = answer.facts
        assert facts.finished
        assert (facts.input_tokens, facts.output_tokens, facts.cached_input_tokens) == (10, 3, 4)
        assert facts.first_token_at is not None


@pytest.mark.parametrize("details", [{"reasoning_tokens": 7}, {}, None])
async def test_thoughts_are_told(details) -> None:
    usage = {**up.USAGE, "completion_tokens_details": details}
    body = json.dumps({**json.loads(up.completion()), "usage": usage}).encode()
    last = up.event(up.chunk(None, usage=usage))
    stream = up.stream_of([*up.events(done=False), last, up.DONE])
    async with both(up.json_answer(body), stream) as (upstream, target):
        for fields in ({}, {"stream": True}):
            answer = await target.open(order(**fields))
            await read_all(answer)
            assert answer.facts.reasoning_tokens == (details or {}).get("reasoning_tokens")
            assert answer.facts.output_tokens == 3


async def test_what_goes_out() -> None:
    async with both(headers={"X-Org": "acme-corp", "User-Agent": "other"}) as (upstream, target):
        await ask(target, order(temperature=0.5))
        seen = upstream.requests[0]
        assert seen.line == "POST /v1/chat/completions HTTP/1.1"
        assert seen.headers == {
            "host": f"127.0.0.1:{upstream.port}",
            "user-agent": "other",
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",
            "authorization": f"Bearer {CANARY}",
            "x-org": "acme-corp",
            "x-request-id": "req-1",
            "content-length": str(len(seen.body)),
        }
        assert seen.json["model"] == "up"
        assert seen.json["temperature"] == 0.5


async def test_streams_ask_for_usage_and_hide_what_the_client_did_not_ask_for() -> None:
    async with both() as (upstream, target):
        plain = await ask(target, order(stream=True))
        assert plain == b"".join(up.events(3))
        answer = await target.open(order(stream=True, usage=True))
        assert await read_all(answer) == b"".join(up.events(3, usage="chunk"))
        for seen in upstream.requests:
            assert seen.json["stream_options"] == {"include_usage": True}
            assert seen.headers["accept"] == "text/event-stream"
        assert answer.facts.finished
        assert answer.facts.output_tokens == 3
        assert upstream.connections == 1


async def test_a_request_id_cannot_break_the_head() -> None:
    async with both() as (upstream, target):
        import msgspec

        await ask(target, msgspec.structs.replace(order(), request_id="a\r\nx-evil: 1"))
        assert "x-evil" not in upstream.requests[0].headers
        assert "x-request-id" not in upstream.requests[0].headers


@pytest.mark.parametrize(
    "settings",
    [
        {"headers": {"x": "a\r\nb: c"}},
        {"headers": {"x y": "a"}},
        {"headers": {"Host": "a"}},
        {"headers": {"Content-Length": "3"}},
        {"api_key": "a\nb"},
        {"base_url": "http://x/v 1"},
    ],
)
def test_settings_that_cannot_be_sent(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        OpenAIBackend("p", Provider(**{"base_url": "http://x/v1", **settings}))


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize("pieces", [None, up.by_byte, up.at_random(7)])
def test_segmentation_on_a_real_socket(loop, framing: str, pieces: up.Segments | None) -> None:
    async def run() -> None:
        answers = [
            up.stream(4, usage="chunk", framing=framing, pieces=pieces),
            up.json_answer(framing=framing, pieces=pieces),
        ]
        async with both(*answers) as (_, target):
            assert await ask(target, order(stream=True)) == b"".join(up.events(4))
            assert await ask(target, order()) == up.completion()

    loop(run())


async def test_a_stream_is_relayed_as_it_comes() -> None:
    gate = asyncio.Semaphore(0)
    async with both(up.stream(2, gate=gate)) as (_, target):
        answer = await target.open(order(stream=True))
        for event in up.events(2)[:-1]:
            gate.release()
            assert await answer.read() == event
        assert not answer.facts.finished
        gate.release()
        assert await answer.read() == up.DONE
        assert answer.facts.finished
        assert await answer.read() == b""
        answer.close()


async def test_headers_that_clients_may_see() -> None:
    headers = {"openai-processing-ms": "5", "set-cookie": "a=b", "server": "x"}
    async with both(up.stream(1, headers=headers)) as (_, target):
        answer = await target.open(order(stream=True))
        assert answer.headers["openai-processing-ms"] == "5"
        assert not {"set-cookie", "server"} & set(answer.headers)
        assert answer.facts.readings == ()
        await read_all(answer)


async def test_limits_are_read_for_us_and_kept_from_clients() -> None:
    headers = {"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "1s"}
    told = (Reading("requests", remaining=5, reset_s=1.0),)
    scripts = (
        up.stream(1, headers=headers),
        up.json_answer(headers=headers),
        up.status(429, headers=headers),
    )
    async with both(*scripts) as (_, target):
        for stream in (True, False):
            answer = await target.open(order(stream=stream))
            assert answer.facts.readings == told
            assert not any(name.startswith("x-ratelimit") for name in answer.headers)
            await read_all(answer)
        with pytest.raises(Fault) as caught:
            await target.open(order())
        assert caught.value.kind is FaultKind.RATE_LIMITED
        assert caught.value.readings == told


# Connections.


async def test_connections_are_reused_and_bounded() -> None:
    async with both(max_connections=4) as (upstream, target):
        await asyncio.gather(*(ask(target, order(stream=bool(i % 2))) for i in range(40)))
        assert upstream.connections <= 4
        assert len(upstream.requests) == 40
        assert target.in_use == 0


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_a_connection_that_the_server_closed_is_replaced_once(loop) -> None:
    async def run() -> None:
        async with both() as (upstream, target):
            await ask(target, order())
            # It dies on the request itself: the case that no check beforehand can see.
            upstream.script(up.hang_up())
            assert await ask(target, order()) == up.completion()
            assert (upstream.connections, len(upstream.requests)) == (2, 3)
            upstream.script(up.reset(), up.reset())
            with pytest.raises(Fault) as caught:
                await ask(target, order())
            assert caught.value.kind is FaultKind.RESET
            assert len(upstream.requests) == 5

    loop(run())


async def test_a_connection_closed_while_idle_is_not_used() -> None:
    async with both() as (upstream, target):
        await ask(target, order())
        upstream.close_idle()
        await upstream.until_gone()
        await asyncio.sleep(0.01)
        assert await ask(target, order()) == up.completion()
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("script", [up.reset(), up.hang_up()])
async def test_a_fresh_connection_that_breaks_is_never_retried(script: up.Script) -> None:
    async with both(script) as (upstream, target):
        with pytest.raises(Fault) as caught:
            await ask(target, order())
        assert caught.value.kind is FaultKind.RESET
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_seen_upstream_within_100_ms(loop, stream: bool) -> None:
    """The best of five: a busy machine may delay one, a timer in the way would delay all."""

    async def run() -> None:
        delays = []
        async with both(*[up.stall(2)] * 5) as (upstream, target):
            for count in range(1, 6):
                answer = await target.open(order(stream=stream))
                if stream:
                    await answer.read()
                left = asyncio.get_running_loop().time()
                answer.close()
                answer.close()
                delays.append(await upstream.until_gone(count) - left)
                assert target.in_use == 0
        assert min(delays) < 0.1

    loop(run())


async def test_the_end_mark_may_come_a_little_later() -> None:
    mark = asyncio.Event()

    async def later(call: up.Call) -> None:
        await mark.wait()
        await call.write(b"0\r\n\r\n")

    async with both(up.stream_of(up.events(2), then=later)) as (upstream, target):
        assert await ask(target, order(stream=True)) == b"".join(up.events(2))
        assert target.in_use == 1
        mark.set()
        async with asyncio.timeout(0.5):
            while target.in_use:
                await asyncio.sleep(0.001)
        await ask(target, order())
        assert upstream.connections == 1


async def test_the_end_mark_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LINGER_S", 0.02)
    async with both(up.stream_of(up.events(2), then=up.silent())) as (upstream, target):
        await ask(target, order(stream=True))
        await upstream.until_gone(timeout_s=1)
        assert target.in_use == 0


async def test_a_slow_reader_holds_the_provider_back() -> None:
    flood = [up.event(up.chunk({"content": "x" * 10_000}))] * 1000  # 10 MB
    async with both(up.stream_of([*flood, *up.events(1)])) as (_, target):
        answer = await target.open(order(stream=True))
        mailbox = answer.exchange
        async with asyncio.timeout(2):
            while mailbox.size < mailbox.high_water:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert mailbox.size < 2 * 1024 * 1024
        assert len(await read_all(answer)) > 10_000_000


async def test_a_large_request_arrives_whole() -> None:
    text = "x" * 5_000_000
    async with both() as (upstream, target):
        await ask(target, order(messages=[{"role": "user", "content": text}]))
        assert upstream.requests[0].json["messages"][0]["content"] == text


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_nothing_that_is_sent_waits_for_more(loop) -> None:
    async def run() -> None:
        async with both() as (_, target):
            answer = await target.open(order(stream=True))
            transport = answer.exchange.connection._transport
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await read_all(answer)

    loop(run())


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_tls(loop, tmp_path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def run() -> None:
        async with Upstream(tls=context) as upstream:
            target = backend(upstream, ca_file=str(tmp_path / "ca.pem"))
            for stream in (False, True):
                assert await ask(target, order(stream=stream, max_tokens=5))
            assert upstream.connections == 1
            await ask(target, order(messages=[{"role": "user", "content": "x" * 2_000_000}]))
            upstream.script(up.stall(1))
            answer = await target.open(order(stream=True))
            await answer.read()
            answer.close()
            await upstream.until_gone()
            await target.close()
            stranger = backend(upstream)
            with pytest.raises(Fault, match="TLS") as caught:
                await ask(stranger, order())
            assert caught.value.kind is FaultKind.CONNECT
            await stranger.close()

    loop(run())


# Cancelling, at every await.


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("stream", [True, False])
def test_cancel_anywhere(loop, stream: bool) -> None:
    async def run() -> None:
        slow = (
            up.stream(3, pieces=up.at_random(1))
            if stream
            else up.json_answer(pieces=up.at_random(1))
        )
        async with Upstream(default=slow) as upstream:
            target = backend(upstream, max_connections=2)
            whole = False
            turns = 0
            while not whole:
                tasks = [asyncio.ensure_future(ask(target, order(stream=stream))) for _ in range(3)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                whole = all(task.done() for task in tasks)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert target._pool is None or target._pool.queued == 0
                async with asyncio.timeout(1):
                    while target.in_use:
                        await asyncio.sleep(0)
                turns += 1 if turns < 12 else 7
            await target.close()

    loop(run())


async def test_cancelling_a_read_cancels_nothing_but_the_wait() -> None:
    gate = asyncio.Semaphore(1)
    async with both(up.stream(2, gate=gate)) as (_, target):
        answer = await target.open(order(stream=True))
        out = await answer.read()
        reading = asyncio.ensure_future(answer.read())
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        for _ in range(10):
            gate.release()
        assert out + await read_all(answer) == b"".join(up.events(2))


async def test_closing_the_backend_ends_what_runs() -> None:
    async with both(up.stall(1)) as (_, target):
        answer = await target.open(order(stream=True))
        await answer.read()
        reading = asyncio.ensure_future(answer.read())
        await asyncio.sleep(0.01)
        await target.close()
        with contextlib.suppress(Fault):
            while await reading:
                reading = asyncio.ensure_future(answer.read())
        with pytest.raises(Fault):
            await target.open(order())


def test_repr_has_no_secret() -> None:
    target = OpenAIBackend("p", Provider(base_url="http://x/v1", api_key=CANARY))
    assert CANARY not in repr(target)


async def test_the_body_is_valid_json_upstream_whatever_the_clients_stream_options() -> None:
    async with both() as (upstream, target):
        body = order(stream=True, stream_options={"include_usage": False})
        out = await ask(target, body)
        assert b"usage" not in out
        assert json.loads(upstream.requests[0].body)["stream_options"] == {"include_usage": True}


async def test_limits_are_used_with_a_pool_that_is_full() -> None:
    async with both(up.stall(1), max_connections=1) as (_, target):
        answer = await target.open(order(stream=True))
        with pytest.raises(Fault) as caught:
            await target.open(order(limits=Limits(0.02, 5, 5)))
        assert caught.value.kind is FaultKind.TIMEOUT_CONNECT
        with pytest.raises(Fault) as caught:
            await target.open(order(wait_s=0.02))
        assert caught.value.kind is FaultKind.DEADLINE
        answer.close()
