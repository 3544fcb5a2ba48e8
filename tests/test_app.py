"""The library: Routers in anybody's loop, without a server."""

from __future__ import annotations

import asyncio

import pytest

from engines.base import EngineError
from engines.registry import make
from engines.specs import SimulatedSpec
from router import ApiError, ChatRequest, Router, parse
from router.events import Generated, RequestDone, TargetState
from router.wire.chat import Message
from tests.upstream import Upstream, cut, normal, stream

HELLO = [{"role": "user", "content": "hello"}]
QUICK = SimulatedSpec(ttft_ms=0, tokens_per_s=5000, answer_tokens=20)
ENGINE = "engines: {s: {kind: simulated, ttft_ms: 0, tokens_per_s: 5000, answer_tokens: 20}}\n"
MODEL = "models: {m: {aliases: [em], max_completion_tokens: 100, targets: [{engine: s}]}}\n"


def upstream_router(url, name="m"):
    return Router(
        parse(
            f"providers: {{a: {{base_url: {url!r}}}}}\nmodels: {{{name}: {{targets: [{{provider: a}}]}}}}"
        )
    )


@pytest.fixture
async def router():
    async with Router(parse(ENGINE + MODEL), engines={"s": make(QUICK)}) as router:
        yield router
        assert router.inflight == 0


async def test_chat_gives_the_whole_answer(router):
    answer = await router.chat({"model": "m", "messages": HELLO})
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 20


async def test_stream_gives_the_same_in_chunks(router):
    asked = {"model": "EM", "messages": HELLO, "seed": 1, "temperature": 0}
    whole = await router.chat(asked)
    chunks = [chunk async for chunk in router.stream(asked)]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


async def test_a_request_may_be_a_struct(router):
    request = ChatRequest(model="m", messages=[Message("user", "hi")], max_tokens=3)
    assert (await router.chat(request)).usage.completion_tokens == 3
    assert len([chunk async for chunk in router.stream(request)]) == 5


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "nope"}, 404, "model_not_found"),
        ({"temperature": 9}, 400, "decimal_above_max_value"),
        ({"max_tokens": 101}, 400, "invalid_value"),
        ({"user": object()}, 400, None),
    ],
)
async def test_what_is_wrong_is_an_api_error(router, change, status, code):
    with pytest.raises(ApiError) as caught:
        await router.chat({"model": "m", "messages": HELLO, **change})
    assert (caught.value.status, caught.value.error.code) == (status, code)


async def test_leaving_the_loop_early_cancels_the_answer():
    async with (
        Upstream(stream(50, gate=asyncio.Semaphore(2))) as up,
        upstream_router(up.url) as router,
    ):
        chunks = router.stream({"model": "m", "messages": HELLO})
        await anext(chunks)
        await chunks.aclose()
        await up.until_gone()
        assert router.inflight == 0


async def test_a_break_midway_is_raised_where_the_chunks_are_read():
    async with Upstream(default=cut(2)) as up, upstream_router(up.url) as router:
        texts = []
        with pytest.raises(ApiError) as caught:
            async for chunk in router.stream({"model": "m", "messages": HELLO}):
                texts.append(chunk.choices[0].delta.content)
    assert "".join(texts) == "word0 word1 "
    assert caught.value.error.code == "stream_cut"


async def test_several_routers_live_side_by_side():
    async with (
        Upstream(default=normal("one")) as one,
        Upstream(default=normal("two")) as two,
        upstream_router(one.url) as first,
        upstream_router(two.url) as second,
    ):
        answers = await asyncio.gather(
            *(router.chat({"model": "m", "messages": HELLO}) for router in (first, second) * 5)
        )
        assert [answer.choices[0].message.content for answer in answers] == ["one", "two"] * 5
        assert (len(one.requests), len(two.requests)) == (5, 5)


async def test_listeners_hear_what_happens_and_a_broken_one_costs_nothing(router, caplog):
    heard = []

    def broken(event):
        raise RuntimeError("listener")

    router.listen(broken)
    router.listen(heard.append)
    await router.chat({"model": "m", "messages": HELLO}, key_id="me")
    (done,) = [event for event in heard if isinstance(event, RequestDone)]
    assert (done.outcome, done.key_id, done.model) == ("ok", "me", "m")
    assert "a listener failed on RequestDone" in caplog.text


async def test_models_are_listed_by_their_names(router):
    (card,) = router.models()
    assert (card.id, card.max_completion_tokens) == ("m", 100)
    assert router.model("em") == card
    with pytest.raises(ApiError):
        router.model("nope")


async def test_an_engine_says_what_it_wrote(router):
    heard = []
    router.listen(heard.append)
    await router.chat({"model": "m", "messages": HELLO})
    (written,) = [event for event in heard if isinstance(event, Generated)]
    assert (written.engine, written.output_tokens) == ("s", 20)
    assert router.stats().engines == tuple(router.engines())


async def test_routes_say_how_they_chose(router):
    await router.chat({"model": "m", "messages": HELLO})
    (route,) = router.stats().routes
    assert (route.model, route.policy) == ("m", "least_inflight")
    assert {reason: count for reason, count in route.decisions.items() if count} == {"only": 1}


async def test_a_node_makes_its_targets_available_when_it_is_ready():
    router = Router(parse(ENGINE + MODEL))
    heard = []
    router.listen(heard.append)
    assert not router.ready()
    with pytest.raises(ApiError) as caught:
        await router.chat({"model": "m", "messages": HELLO})
    assert caught.value.status == 503
    async with router:
        assert router.ready()
        assert (await router.chat({"model": "m", "messages": HELLO})).choices
    states = [event.state for event in heard if isinstance(event, TargetState)]
    assert states == ["admitting", "unavailable"]


async def test_an_engine_that_cannot_load_fails_the_start(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"no model")
    config = f"engines: {{s: {{kind: llamacpp, model: {tmp_path}/x.gguf}}}}\n{MODEL}"
    with pytest.raises(EngineError, match=r"x\.gguf"):
        async with Router(parse(config)):
            raise AssertionError("not reached")
