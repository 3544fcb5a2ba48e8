"""Admission and settlement in virtual time: exact, balanced, and free for keys without limits."""

from __future__ import annotations

import asyncio
import random
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.accounts import limits, pairs
from router.accounts.accounts import Accounts
from router.accounts.budgets import Budgets
from router.accounts.estimate import Size
from router.accounts.prices import Tokens, cost_nanos
from router.accounts.terms import Account, Tiers
from router.config.reader import parse
from router.config.schema import Price
from router.errors import ApiError, Fault, FaultKind, IllegalMove
from router.events import Admitted, LimitDecision, RequestDone
from tests.clocks import ManualClock
from tests.test_dispatch import Script, World

CONFIG = """
tiers:
  slow: {rpm: 60, rpd: 1000, tpm: 40000}
  tokens: {tpm: 1000, tpd: 100000}
  mixed: {rpm: 5, tpm: 100, models: {N2: {rpd: 2}}}
keys:
  - {id: slow, secret: secret-slow, tier: slow}
  - {id: tokens, secret: secret-tokens, tier: tokens}
  - {id: mixed, secret: secret-mixed, tier: mixed}
  - {id: rich, secret: secret-rich, budget_usd: 0.001}
  - {id: few, secret: secret-few, models: [N2]}
  - {id: free, secret: secret-free}
models:
  m: {targets: [{engine: e}], price: {input: 1, output: 2}}
  n: {aliases: [n2], targets: [{engine: e}]}
engines: {e: {kind: simulated}}
"""
SMALL = Size(40, 0, 10)
"""Ten tokens in, ten out."""


class Gate:
    """Accounts under a clock that is turned by hand."""

    def __init__(self, text=CONFIG):
        self.clock = ManualClock()
        self.events = []
        config = parse(text, "test.yaml", {})
        names = {"m": "m", "n": "n", "n2": "n"}
        self.accounts = Accounts(
            config, lambda name: names.get(name.lower()), clock=self.clock, emit=self.events.append
        )

    def admit(self, key_id, model="m", size=SMALL):
        return self.accounts.admit(self.accounts.pair(key_id, model), size)

    def settle(self, charge, told):
        return charge.settle(told, self.clock.now())

    def refused(self, key_id, model="m", size=SMALL):
        with pytest.raises(ApiError) as caught:
            self.admit(key_id, model, size)
        assert caught.value.status == 429
        return caught.value

    def remaining(self, key_id, resource="tokens"):
        """What the next request would be told, which takes none."""
        windows = self.accounts.pair(key_id, "m").windows
        headers = limits.headers_of(windows.lines(self.clock.now()))
        return int(headers[f"x-ratelimit-remaining-{resource}"])


def test_one_event_tells_all_that_admitted_a_request():
    gate = Gate()
    gate.admit("mixed")
    gate.admit("rich")
    assert gate.events == [
        Admitted("mixed", "m", "key", ("requests", "tokens")),
        Admitted("rich", "m", "key", ("usd",)),
    ]


async def test_two_hundred_tasks_against_sixty_a_minute_admit_sixty():
    gate = Gate()

    async def one():
        await asyncio.sleep(0)
        try:
            charge = gate.admit("slow")
        except ApiError:
            return False
        await asyncio.sleep(0)
        gate.settle(charge, Tokens(5, 0, 5))
        return True

    admitted = await asyncio.gather(*(one() for _ in range(200)))
    assert admitted.count(True) == 60
    gate.clock.advance(30)
    assert (await asyncio.gather(*(one() for _ in range(200)))).count(True) == 30


def test_tokens_in_flight_count():
    gate = Gate()
    charges = [gate.admit("tokens") for _ in range(50)]
    error = gate.refused("tokens")
    assert "tokens per min (TPM): Limit 1000, Used 1000, Requested 20." in error.error.message
    assert error.error.type == "tokens"
    gate.settle(charges[0], Tokens(5, 0, 0))
    gate.refused("tokens")
    gate.settle(charges[1], Tokens(5, 0, 0))
    gate.admit("tokens")


def test_a_refused_request_takes_nothing_of_any_window():
    gate = Gate()
    for _ in range(60):
        gate.admit("slow")
    before = gate.remaining("slow"), gate.remaining("slow", "requests")
    for _ in range(100):
        gate.refused("slow")
    assert (gate.remaining("slow"), gate.remaining("slow", "requests")) == before
    gate.clock.advance(1)
    gate.admit("slow")


def test_the_longest_wait_is_told():
    gate = Gate()
    for _ in range(5):
        gate.admit("mixed", size=Size(40, 0, 10))
    error = gate.refused("mixed")
    assert error.headers["retry-after"] == "12"
    assert error.headers["retry-after-ms"] == "12000"
    assert "Please try again in 12s." in error.error.message
    gate.clock.advance(12)
    gate.admit("mixed")


def test_larger_than_the_whole_limit_is_refused_for_good():
    gate = Gate()
    error = gate.refused("mixed", size=Size(40, 0, 200))
    assert error.error.message.startswith(
        "Request too large for m in organization mixed on tokens per min (TPM): Limit 100, Requested 210."
    )
    assert (error.error.type, error.error.code) == ("tokens", "rate_limit_exceeded")
    assert "retry-after" not in error.headers
    assert gate.events[-1] == LimitDecision("mixed", "m", "key", "tokens", "too_large")


def test_a_models_own_limits_replace_the_tiers_and_aliases_are_the_model():
    gate = Gate()
    for _ in range(2):
        charge = gate.admit("mixed", "n", Size(4000, 0, 4000))
    assert charge.headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "24h0m0s",
    }
    assert "requests per day (RPD): Limit 2, Used 2" in gate.refused("mixed", "n").error.message


def test_headers_speak_of_requests_a_day_and_tokens_a_minute():
    gate = Gate()
    assert gate.admit("slow").headers == {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "999",
        "x-ratelimit-reset-requests": "1m26.4s",
        "x-ratelimit-limit-tokens": "40000",
        "x-ratelimit-remaining-tokens": "39980",
        "x-ratelimit-reset-tokens": "30ms",
    }


def test_a_jump_of_the_wall_clock_changes_nothing():
    gate = Gate()
    for _ in range(60):
        gate.admit("slow")
    for jump in (400 * 86_400, -800 * 86_400):
        gate.clock._wall += jump
        assert gate.refused("slow").headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("told", "taken"),
    [(Tokens(10, 0, 10), 20), (Tokens(10, 0, 3), 13), (Tokens(10, 0, 90), 100), (Tokens(), 0)],
)
def test_what_was_used_is_charged(told, taken):
    gate = Gate()
    gate.settle(gate.admit("tokens"), told)
    assert gate.remaining("tokens") == 1000 - taken


def test_an_answer_that_broke_off_is_charged_by_its_events():
    gate = Gate()
    charge = gate.admit("tokens", size=Size(40, 0, 500))
    for _ in range(32):
        charge.saw(b'data: {"choices":[]}\n\n')
    took = gate.settle(charge, Tokens())
    assert (took.tokens, took.estimated) == (Tokens(10, None, 30), True)
    assert gate.remaining("tokens") == 960


def test_a_whole_answer_without_usage_is_charged_by_its_length():
    gate = Gate()
    charge = gate.admit("tokens", size=Size(40, 0, 500))
    charge.saw(b"x" * 400)
    assert gate.settle(charge, Tokens()).tokens.output == 100


def test_embeddings_write_nothing():
    gate = Gate()
    charge = gate.admit("tokens", size=Size(40, 0, 0))
    assert gate.remaining("tokens") == 990
    charge.saw(b"x" * 4000)
    took = gate.settle(charge, Tokens(12))
    assert (took.tokens, took.estimated) == (Tokens(12, None, 0), False)
    assert gate.remaining("tokens") == 988


def test_a_charge_is_settled_once():
    gate = Gate()
    charge = gate.admit("tokens")
    gate.settle(charge, Tokens())
    with pytest.raises(IllegalMove):
        gate.settle(charge, Tokens())


PARSED = parse(CONFIG, "t", {})


def on_tier(name):
    return Account("k", PARSED.tiers[name])


def made_pairs():
    return pairs.Pairs(PARSED.models, Tiers(PARSED.tiers, lambda name: name), Budgets())


def test_pairs_are_forgotten_when_they_are_full_and_idle(monkeypatch):
    monkeypatch.setattr(pairs, "SWEEP_FLOOR", 8)
    found, account = made_pairs(), on_tier("tokens")
    held = found.prepare("held", "m", account, 0.0)
    held.windows.admit(10, 0.0)
    for number in range(500):
        now = number * 120.0
        windows = found.prepare(f"k{number}", "m", account, now).windows
        for gcra, hold in windows.admit(5, now)[0]:
            gcra.settle(hold, 5, now)
        found.prepare(f"unlimited{number}", "m", None, now)
    assert len(found.known) <= 20
    assert found.known["held", "m"] is held, "something of it is under way"


def test_other_limits_are_other_windows():
    found, slow = made_pairs(), on_tier("slow")
    first = found.prepare("k", "m", slow, 0.0)
    assert found.known["k", "m"] is first
    same = found.prepare("k", "m", Account("k", slow.tier, frozenset({"n"})), 0.0)
    assert (same.allowed, same.windows) == (False, first.windows), "what was taken stays taken"
    assert found.prepare("k", "m", on_tier("tokens"), 0.0).windows is not first.windows


# Budgets


def test_a_budget_is_reserved_and_settled():
    gate = Gate()
    charges = [gate.admit("rich") for _ in range(33)]
    assert gate.accounts.budgets.reserved == 33 * 30_000
    error = gate.refused("rich", size=Size(40, 0, 10))
    assert (error.error.code, error.error.type) == ("insufficient_quota", "insufficient_quota")
    assert error.headers["x-should-retry"] == "false"
    for charge in charges:
        gate.settle(charge, Tokens(10, 0, 2))
    assert gate.accounts.budgets.reserved == 0
    assert gate.accounts.budgets.spent("rich") == 33 * 14_000
    gate.admit("rich")


def test_a_budget_holds_nothing_for_a_model_without_a_price():
    gate = Gate()
    charges = [gate.admit("rich", "n") for _ in range(3)]
    for charge in charges:
        gate.settle(charge, Tokens(10, 0, 2))
    assert gate.accounts.budgets.reserved == gate.accounts.budgets.spent("rich") == 0


def test_a_refusal_by_budget_takes_nothing_of_the_limits():
    gate = Gate(CONFIG.replace("budget_usd: 0.001", "budget_usd: 0, tier: slow"))
    gate.refused("rich")
    assert gate.remaining("rich", "requests") == 1000


def test_a_refusal_by_limits_takes_nothing_of_the_budget():
    gate = Gate(CONFIG.replace("budget_usd: 0.001", "budget_usd: 5, tier: mixed"))
    gate.refused("rich", size=Size(40, 0, 500))
    assert gate.accounts.budgets.reserved == 0


@pytest.mark.parametrize(
    ("price", "tokens", "nanos"),
    [
        (None, Tokens(5, 0, 5), 0),
        (Price(input=0.08, output=0.08), Tokens(1_000_000, 0, 0), 80_000_000),
        (Price(input=3.5, output=3.5), Tokens(1, None, 1), 7000),
        (Price(input=1, output=2, cached_input=0.5), Tokens(10, 4, 3), 6000 + 2000 + 6000),
        (Price(input=1, output=2), Tokens(10, 40, 0), 10_000),
        (Price(input=0.000001, output=0), Tokens(1, 0, 0), 1),
        (Price(input=1, output=1), Tokens(), 0),
    ],
)
def test_costs_are_whole_billionths(price, tokens, nanos):
    assert cost_nanos(price, tokens) == nanos


@given(st.integers(0, 10**6), st.floats(0, 1000).map(lambda p: round(p, 4)))
def test_costs_are_rounded_up_by_less_than_a_billionth(tokens, price):
    exact = Fraction(tokens * round(price * 10_000), 10)
    assert 0 <= cost_nanos(Price(input=price, output=0), Tokens(tokens)) - exact < 1


# Rights


def test_a_key_without_terms_concerns_nobody():
    gate = Gate()
    assert gate.accounts.pair("free", "m") is None
    assert gate.accounts.pair("library", "m") is None
    assert gate.accounts.pair("few", "m") is not None
    assert gate.admit("few", "n").headers == {}
    assert (gate.accounts.allows("few", "m"), gate.accounts.allows("few", "n")) == (False, True)
    assert gate.accounts.allows("free", "m")


# In the walk


class Walked(World):
    """A dispatcher whose requests belong to a key with limits."""

    def __init__(self, *scripts):
        super().__init__(*scripts)
        self.gate = Gate()
        self.gate.clock = self.clock
        self.gate.accounts._clock = self.clock
        self.gate.admit("tokens")  # so that there is something to look at
        self.free = self.gate.remaining("tokens")

    def call(self, **fields):
        charge = self.gate.admit("tokens")
        return msgspec.structs.replace(super().call(**fields), charge=charge)


CHUNK = b"data: {}\n\n"


async def test_the_walk_settles_with_the_answers_usage():
    world = Walked(Script([CHUNK] * 3))
    await world.ask()
    (done,) = world.seen(RequestDone)
    assert (done.output_tokens, done.tokens_estimated) == (7, None)
    assert world.gate.remaining("tokens") == world.free - 7


async def test_a_request_that_never_began_gives_its_tokens_back():
    world = Walked(Script(Fault(FaultKind.CLIENT_ERROR, "no")))
    with pytest.raises(ApiError) as caught:
        await world.ask()
    assert world.gate.remaining("tokens") == world.free
    assert caught.value.headers["x-ratelimit-limit-tokens"] == "1000"


async def test_an_answer_that_broke_pays_for_what_came():
    world = Walked(Script([CHUNK, CHUNK, CHUNK, CHUNK, Fault(FaultKind.CUT, "cut")]))
    with pytest.raises(ApiError):
        await world.ask()
    (done,) = world.seen(RequestDone)
    assert (done.output_tokens, done.tokens_estimated) == (2, True)
    assert world.gate.remaining("tokens") == world.free - 12


async def test_cancelled_at_every_await_it_is_settled_once():
    for steps in range(30):
        world = Walked(Script(Fault(FaultKind.SERVER_ERROR, "x"), [CHUNK] * 5))
        task = asyncio.create_task(world.ask())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world.assert_balanced()
        if world.seen(RequestDone):
            assert len(world.seen(RequestDone)) == 1
            assert world.gate.accounts.budgets.reserved == 0
        windows = world.gate.accounts.pair("tokens", "m").windows
        held = [len(window.gcra._holds) for window in windows._all]
        assert held == [1, 1] or steps == 0, "only the one from the beginning is held"


async def test_reservations_balance_whatever_happens():
    rng = random.Random(7)
    gate = Gate()
    for _ in range(300):
        gate.clock.advance(rng.random())
        try:
            charge = gate.admit(
                rng.choice(["slow", "tokens", "mixed", "rich", "few"]), rng.choice("mn")
            )
        except ApiError:
            continue
        for _ in range(rng.randrange(4)):
            charge.saw(CHUNK)
        told = Tokens() if rng.random() < 0.5 else Tokens(rng.randrange(50), 0, rng.randrange(50))
        gate.settle(charge, told)
    assert gate.accounts.budgets.reserved == 0
    gate.clock.advance(10 * 86_400)
    now = gate.clock.now()
    limited = [pair.windows for pair in gate.accounts._pairs.known.values() if pair.windows]
    assert limited
    assert all(windows.is_idle(now) for windows in limited)
