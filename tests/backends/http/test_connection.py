from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.backends.http import connection as module
from router.backends.http.connection import State
from router.ending import Ending
from router.errors import Fault, FaultKind, IllegalMove
from tests import upstream as up
from tests.backends.http.fakes import Wire, drain

OK = up.http(200, b"hello", headers={"X-Request-ID": "r1", "set-cookie": "a=b"})
CHUNKED = up.http(200, b"hello", framing="chunked")


async def fault_of(wire: Wire, data: bytes, *, eof: bool = False) -> Fault:
    exchange = wire.send()
    wire.answer(data)
    if eof:
        wire.connection.connection_lost(None)
    with pytest.raises(Fault) as caught:
        await drain(exchange)
    return caught.value


@pytest.mark.parametrize("pieces", [up.whole, up.by_byte, up.at_random(1, 7), up.at_random(2, 30)])
@pytest.mark.parametrize(
    "data",
    [
        OK,
        CHUNKED,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
        CHUNKED.replace(b"0\r\n\r\n", b"0\r\nx-ratelimit-trailer: 1\r\nb: 2\r\n\r\n"),
        CHUNKED.replace(b"5\r\n", b"05;ext=1\r\n"),
        OK.replace(b"content-length", b"CONTENT-LENGTH"),
        OK.replace(b" X\r\n", b"\r\n"),
    ],
)
async def test_any_segmentation_gives_the_same(data: bytes, pieces: up.Segments) -> None:
    wire = Wire()
    for _ in range(2):
        status, headers, body = await wire.exchange(data, pieces)
        assert (status, body) == (200, b"hello")
        assert "set-cookie" not in headers
        assert "x-ratelimit-trailer" not in headers
    assert wire.owner.said == ["released", "released"]
    assert wire.connection.state is State.IDLE


@given(
    st.binary(max_size=300), st.integers(0, 2**32), st.sampled_from(["length", "chunked", "close"])
)
@settings(max_examples=60, deadline=None)
def test_bodies_survive_segmentation(body: bytes, seed: int, framing: str) -> None:
    async def run() -> None:
        wire = Wire()
        exchange = wire.send()
        wire.answer(up.http(200, body, framing=framing), up.at_random(seed))
        if framing == "close":
            wire.connection.connection_lost(None)
        assert (await drain(exchange))[2] == body

    asyncio.run(run())


async def test_only_allowed_headers_are_kept() -> None:
    headers = {
        "X-RateLimit-Remaining-Tokens": "12",
        "Retry-After": "3",
        "openai-processing-ms": "9",
        "server": "x",
        "x-request-id": "r" * 2000,
        "authorization": "no",
    }
    _, kept, _ = await Wire().exchange(up.http(200, b"", headers=headers))
    assert kept == {
        "content-type": "application/json",
        "retry-after": "3",
        "openai-processing-ms": "9",
    }


async def test_limits_are_kept_apart_with_the_date_that_they_may_be_told_by() -> None:
    wire = Wire()
    exchange = wire.send()
    headers = {"X-RateLimit-Remaining-Tokens": "12", "Date": "Thu, 21 Aug 2025 12:41:00 GMT"}
    wire.answer(up.http(200, b"", headers=headers))
    assert exchange.limits == {
        "x-ratelimit-remaining-tokens": "12",
        "date": "Thu, 21 Aug 2025 12:41:00 GMT",
    }
    _, kept, _ = await Wire().exchange(up.http(200, b"", headers={"Date": "now"}))
    assert kept == {"content-type": "application/json"}


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"<html>",
        OK.replace(b"x-request", b"x-re\x00quest").replace(b"X-Request", b"X\x00"),
        OK.replace(b"r1\r\n", b"r1\rSet-Cookie: x\r\n"),
        OK.replace(b"r1\r\n", b"r1\nSet-Cookie: x\r\n"),
        OK.replace(b"r1\r\n", b"r1\r\n folded\r\n"),
        OK.replace(b"content-length: 5", b"content-length: +5"),
        OK.replace(b"content-length: 5", b"content-length: 5\r\ncontent-length: 6"),
        OK.replace(b"content-length: 5", b"content-length: 5\r\ntransfer-encoding: chunked"),
        OK.replace(b"content-length: 5", b"transfer-encoding: gzip, chunked"),
        OK.replace(b"content-length: 5", b"content-encoding: gzip\r\ncontent-length: 5"),
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 9999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3000,
        CHUNKED.replace(b"5\r\n", b"zz\r\n"),
    ],
)
async def test_junk_is_malformed_and_costs_the_connection(data: bytes) -> None:
    wire = Wire()
    fault = await fault_of(wire, data)
    assert fault.kind is FaultKind.MALFORMED
    assert wire.transport.aborted
    assert wire.owner.said == ["closed"]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\na: ",
        CHUNKED[:-5] + b"0\r\na: ",
        CHUNKED[:-5] + b"5;",
    ],
    ids=["head", "trailer", "extension"],
)
async def test_what_drips_without_being_body_is_refused_early(data: bytes) -> None:
    wire = Wire()
    wire.send()
    wire.answer(data)
    sent = 0
    while not wire.transport.aborted:
        wire.answer(b"b" * 1000)
        sent += 1000
    assert sent <= module.MAX_HEAD_BYTES + 2000


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", FaultKind.RESET),
        (b"HTTP/1.1 200 O", FaultKind.RESET),
        (b"HTTP/1.1 100 Continue\r\n\r\n", FaultKind.RESET),
        (OK[:-1], FaultKind.CUT),
        (CHUNKED[:-1], FaultKind.CUT),
        (CHUNKED[:-5], FaultKind.CUT),
    ],
)
async def test_an_early_close_is_a_fault(data: bytes, kind: FaultKind) -> None:
    wire = Wire()
    fault = await fault_of(wire, data, eof=True)
    assert fault.kind is kind
    assert wire.owner.said == ["gone", "closed"]


async def test_a_cut_comes_after_what_came_before_it() -> None:
    wire = Wire()
    exchange = wire.send()
    wire.answer(OK[:-1])
    wire.connection.connection_lost(ConnectionResetError())
    until = asyncio.get_running_loop().time() + 5
    await exchange.head(until)
    assert await exchange.take(until) == [b"hell"]
    with pytest.raises(Fault):
        await exchange.take(until)


@pytest.mark.parametrize(
    "data",
    [
        up.http(200, b"hello", headers={"connection": "close"}),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
async def test_close_and_http_1_0_end_the_connection(data: bytes) -> None:
    wire = Wire()
    assert (await wire.exchange(data))[2] == b"hello"
    assert wire.owner.said == ["closed"]


async def test_http_1_0_with_keep_alive_is_kept() -> None:
    wire = Wire()
    data = OK.replace(b"HTTP/1.1", b"HTTP/1.0").replace(
        b"set-cookie", b"connection: keep-alive\r\nx"
    )
    assert (await wire.exchange(data))[2] == b"hello"
    assert wire.owner.said == ["released"]


async def test_a_body_until_close_ends_with_the_connection_unless_that_broke() -> None:
    for broke in (None, ConnectionResetError()):
        wire = Wire()
        exchange = wire.send()
        wire.answer(up.http(200, b"hello", framing="close"))
        wire.connection.connection_lost(broke)
        if broke is None:
            assert (await drain(exchange))[2] == b"hello"
        else:
            with pytest.raises(Fault) as caught:
                await drain(exchange)
            assert caught.value.kind is FaultKind.CUT


@pytest.mark.parametrize("junk", [b"HTTP", OK, b"garbage", b"\r\nx"])
@pytest.mark.parametrize("data", [OK, CHUNKED])
async def test_bytes_behind_an_answer_cost_the_connection_not_the_answer(
    data: bytes, junk: bytes
) -> None:
    wire = Wire()
    assert (await wire.exchange(data + junk))[2] == b"hello"
    if wire.connection.state is not State.CLOSED:
        wire.connection.data_received(junk)
    assert wire.owner.said[-1] == "closed"
    assert not wire.connection.usable()


async def test_an_unsolicited_answer_costs_the_connection() -> None:
    wire = Wire()
    wire.connection.data_received(OK)
    assert wire.owner.said == ["closed"]
    with pytest.raises(IllegalMove):
        wire.send()


async def test_one_request_at_a_time() -> None:
    wire = Wire()
    wire.send()
    with pytest.raises(IllegalMove):
        wire.send()


async def test_a_small_request_is_one_write() -> None:
    wire = Wire()
    wire.send(b"{}")
    assert wire.transport.written == [b"POST / HTTP/1.1\r\n\r\n{}"]


async def test_a_request_goes_out_at_the_end_of_the_turn() -> None:
    wire = Wire()
    wire.owner.ending = Ending()
    exchange = wire.send(b"{}")
    assert not wire.transport.written
    await asyncio.sleep(0)
    assert wire.transport.written == [b"POST / HTTP/1.1\r\n\r\n{}"]
    wire.answer(OK)
    assert (await drain(exchange))[2] == b"hello"
    assert wire.owner.said == ["released"]


async def test_a_request_that_is_given_up_in_its_turn_never_goes_out() -> None:
    wire = Wire()
    wire.owner.ending = Ending()
    wire.send().leave()
    await asyncio.sleep(0)
    assert not wire.transport.written
    assert wire.transport.aborted


async def test_what_comes_before_the_request_went_out_is_no_answer_to_it() -> None:
    wire = Wire()
    wire.owner.ending = Ending()
    exchange = wire.send()
    wire.connection.data_received(OK)
    await asyncio.sleep(0)
    assert not wire.transport.written
    assert wire.transport.aborted
    with pytest.raises(Fault):
        await drain(exchange)


@pytest.mark.parametrize(
    ("extra", "most"),
    [({}, module.PIECE_BYTES), ({"sslcontext": object()}, module.ENCRYPTED_PIECE_BYTES)],
)
async def test_a_large_body_waits_for_the_network(
    monkeypatch: pytest.MonkeyPatch, extra: dict[str, object], most: int
) -> None:
    wire = Wire()
    monkeypatch.setattr(wire.transport, "get_extra_info", extra.get)
    wire.transport.pause_after = 2
    body = bytes(range(256)) * (most // 256 * 4)
    wire.send(body)
    assert len(wire.transport.written) == 2
    while len(b"".join(wire.transport.written)) < len(body):
        before = len(wire.transport.written)
        wire.connection.resume_writing()
        assert len(wire.transport.written) <= before + 2
    assert b"".join(wire.transport.written).endswith(body)
    assert max(map(len, wire.transport.written)) <= most


async def test_an_answer_before_the_request_is_out_costs_the_connection() -> None:
    wire = Wire()
    wire.transport.pause_after = 1
    exchange = wire.send(b"x" * 1_000_000)
    wire.answer(up.http(413, b"too large"))
    assert (await drain(exchange))[::2] == (413, b"too large")
    assert wire.owner.said == ["closed"]
    wire.connection.resume_writing()
    assert len(b"".join(wire.transport.written)) < 200_000


async def test_back_pressure_stops_the_network_and_starts_it_again() -> None:
    wire = Wire()
    exchange = wire.send()
    wire.answer(up.stream_head())
    piece = up.chunked(b"x" * 100_000)
    for _ in range(3):
        wire.answer(piece)
    assert not wire.transport.reading
    until = asyncio.get_running_loop().time() + 5
    await exchange.head(until)
    assert len(b"".join(await exchange.take(until))) == 300_000
    await_more = asyncio.ensure_future(exchange.take(until))
    await asyncio.sleep(0)
    wire.transport.reading = wire.transport.reading or pytest.fail("still paused")
    wire.answer(b"0\r\n\r\n")
    assert await await_more == []
    assert wire.owner.said == ["released"]


async def test_a_whole_answer_that_nobody_takes_is_not_overtaken() -> None:
    wire = Wire()
    exchange = wire.send()
    wire.answer(up.http(200, b"x" * 400_000))
    assert wire.connection.state is State.HOLDING
    assert not wire.transport.reading
    assert len((await drain(exchange))[2]) == 400_000
    assert wire.connection.state is State.IDLE
    assert wire.transport.reading


async def test_leaving_a_held_answer_frees_the_connection() -> None:
    wire = Wire()
    exchange = wire.send()
    wire.answer(up.http(200, b"x" * 400_000))
    exchange.leave()
    exchange.leave()
    assert wire.owner.said == ["released"]
    assert wire.transport.reading


@pytest.mark.parametrize("data", [b"", OK[:-1], CHUNKED[:-1]])
async def test_leaving_early_closes_at_once(data: bytes) -> None:
    wire = Wire()
    exchange = wire.send()
    wire.answer(data)
    exchange.leave()
    exchange.leave()
    assert wire.transport.aborted
    assert wire.owner.said == ["closed"]


async def test_the_end_mark_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    exchange = wire.send()
    wire.answer(CHUNKED[:-5])
    exchange.leave(whole=True)
    assert wire.connection.state is State.LINGERING
    exchange.leave()
    wire.answer(b"0\r\n\r\n")
    assert wire.owner.said == ["released"]


async def test_the_end_mark_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.01)
    wire = Wire()
    exchange = wire.send()
    wire.answer(CHUNKED[:-5])
    exchange.leave(whole=True)
    async with asyncio.timeout(1):
        while not wire.transport.aborted:
            await asyncio.sleep(0.002)
    assert wire.owner.said == ["closed"]


async def test_stale_means_reused_silent_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*, served: bool, heard: bytes = b"", patience: float = 1.0) -> bool:
        monkeypatch.setattr(module, "STALE_S", patience)
        wire = Wire()
        if served:
            await wire.exchange(OK)
        exchange = wire.send()
        wire.answer(heard)
        wire.connection.connection_lost(None)
        with pytest.raises(Fault):
            await drain(exchange)
        return exchange.stale

    assert await lost(served=True)
    assert not await lost(served=False)
    assert not await lost(served=True, heard=b"H")
    assert not await lost(served=True, patience=-1.0)
