"""Fallbacks: another model answers where the one that was asked for can't."""

from __future__ import annotations

import pytest

from router.config.schema import Model, Target
from router.errors import ApiError, FaultKind, invalid_request
from router.events import Fallback, RequestDone
from tests.walks import Script, World, fault

TOO_LONG = fault(
    FaultKind.CONTEXT_LENGTH,
    answer=invalid_request("too long", param="messages", code="context_length_exceeded"),
)
FILTERED = fault(FaultKind.CONTENT_FILTER, answer=invalid_request("no", code="content_filter"))


def model(*providers, **fields):
    return Model(targets=[Target(provider=name) for name in providers], **fields)


def world(a, b, c=None, *, attempts=1, **fields):
    """m at a, with the fallbacks of ``fields``; n at b, o at c."""
    models = {"m": model("a", **fields), "n": model("b"), "o": model("c")}
    return World(a, b, c or Script([b"c"]), attempts=attempts, models=models)


async def test_where_all_attempts_failed_the_fallback_answers_under_its_own_name():
    w = world(Script(fault()), Script([b"b"]), fallback=["n"])
    assert await w.clock.run(w.ask()) == [b"b"]
    w.assert_balanced()
    assert w.seen(Fallback) == [Fallback("m", "n", "server_error")]
    (done,) = w.seen(RequestDone)
    assert (done.model, done.target, done.attempts, done.outcome) == ("m", "b/n", 2, "ok")
    (order,) = w.scripts["b"].orders
    assert (order.model, order.request.model) == ("n", "n")


async def test_each_model_has_its_own_attempts_and_the_list_is_in_order():
    w = world(Script(fault()), Script(fault()), attempts=2, fallback=["n", "o"])
    assert await w.clock.run(w.ask()) == [b"c"]
    assert [len(w.scripts[name].orders) for name in "abc"] == [2, 2, 1]
    assert [event.to for event in w.seen(Fallback)] == ["n", "o"]


async def test_where_every_model_fails_the_error_is_the_one_of_the_model_asked_for():
    w = world(Script(fault(FaultKind.CUT)), Script(fault()), fallback=["n"])
    with pytest.raises(ApiError) as caught:
        await w.clock.run(w.ask())
    assert caught.value.error.code == "stream_cut"
    w.assert_balanced()


async def test_a_mistake_of_the_client_is_told_whoever_found_it():
    mistake = fault(FaultKind.CLIENT_ERROR, answer=invalid_request("bad tool", param="tools"))
    w = world(Script(fault()), Script(mistake), fallback=["n", "o"])
    with pytest.raises(ApiError) as caught:
        await w.clock.run(w.ask())
    assert caught.value.error.param == "tools"
    w = world(Script(mistake), Script([b"b"]), fallback=["n"])
    with pytest.raises(ApiError):
        await w.clock.run(w.ask())
    assert w.scripts["b"].orders == []


async def test_nobody_up_falls_back():
    w = world(Script([b"a"]), Script([b"b"]), fallback=["n"])
    w.pool.targets["a/m"].available = False
    assert await w.clock.run(w.ask()) == [b"b"]
    assert w.seen(Fallback) == [Fallback("m", "n", "model_unavailable")]


async def test_a_short_rest_is_waited_for_and_a_long_one_is_not():
    for rest, answer in ((0.5, b"a"), (20, b"b")):
        limited = fault(FaultKind.RATE_LIMITED, retry_after_s=rest)
        w = world(Script(limited, [b"a"]), Script([b"b"]), attempts=3, fallback=["n"])
        began = w.clock.now()
        assert await w.clock.run(w.ask()) == [answer]
        assert w.clock.now() - began == (rest if answer == b"a" else 0)


async def test_without_a_fallback_a_long_rest_is_waited_for():
    w = world(
        Script(fault(FaultKind.RATE_LIMITED, retry_after_s=20), [b"a"]), Script([b"b"]), attempts=2
    )
    assert await w.clock.run(w.ask()) == [b"a"]


async def test_the_last_fallback_is_waited_for_as_the_model_itself_would_be():
    limited = fault(FaultKind.RATE_LIMITED, retry_after_s=20)
    w = world(Script(fault()), Script(limited, [b"b"]), attempts=2, fallback=["n"])
    assert await w.clock.run(w.ask()) == [b"b"]


async def test_a_request_too_long_goes_to_the_larger_model_alone():
    w = world(Script(TOO_LONG), Script([b"b"]), fallback=["n"], context_fallback=["o"])
    assert await w.clock.run(w.ask()) == [b"c"]
    assert w.seen(Fallback) == [Fallback("m", "o", "context_length_exceeded")]
    assert w.scripts["b"].orders == []
    assert w.pool.targets["a/m"].state == "admitting"


async def test_too_long_for_everybody_is_the_400_unchanged():
    w = world(Script(TOO_LONG), Script(TOO_LONG), fallback=["o"], context_fallback=["n"])
    with pytest.raises(ApiError) as caught:
        await w.clock.run(w.ask())
    assert caught.value.status == 400
    assert caught.value.error.code == "context_length_exceeded"
    assert w.scripts["c"].orders == []


async def test_filtered_content_goes_elsewhere_only_where_the_config_says_so():
    w = world(Script(FILTERED), Script([b"b"]), fallback=["n"])
    with pytest.raises(ApiError) as caught:
        await w.clock.run(w.ask())
    assert caught.value.error.code == "content_filter"
    w = world(Script(FILTERED), Script([b"b"]), content_filter_fallback=["n"])
    assert await w.clock.run(w.ask()) == [b"b"]


async def test_a_fallback_that_writes_less_than_was_asked_for_is_passed_over():
    w = world(Script(fault()), Script([b"b"]), fallback=["n", "o"])
    w.pool.routes["n"].model = model("b", max_completion_tokens=10)
    assert await w.clock.run(w.ask(max_completion_tokens=20)) == [b"c"]
