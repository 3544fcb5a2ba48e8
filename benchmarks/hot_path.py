"""What a decision costs: choosing among 8 and 1,000 targets, decoding a request, a lease and its settling.

    python -m benchmarks.hot_path [--json FILE]

Microseconds on one core, the best of several rounds: noise only adds. ``pick`` is a choice by itself, ``lease``
all that the pool does for a request: look-up of the prefix, admission, choice, bookkeeping and settling.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import msgspec

from benchmarks.running import keep, options
from engines.specs import SimulatedSpec
from router.config.schema import Config, Model, Policy, Provider, Target
from router.facts import facts_of
from router.load import Demand, Facts
from router.policy import Rotation
from router.policy.breaker import Verdict
from router.pool import Refusal, Route, build
from router.ratelimits import Reading as Told
from router.ratelimits import Readings, Spent
from router.wire.chat import decode_chat

ROUNDS = 5
ROUND_S = 0.05
"""Long enough that reading the clock doesn't show."""
BLOCKS = tuple(range(125))
"""A prompt of 8,000 tokens, in blocks of 64."""
TOLD: Readings = (
    Told("requests", 10**6, 10**6 - 10, 0.001),
    Told("tokens", 10**9, 10**9 - 10**5, 0.006),
)
SPENT = Spent(8000, 200)


class Choosing(msgspec.Struct, frozen=True):
    """Microseconds among so many targets."""

    policy: str
    targets: int
    pick_us: float
    lease_us: float


class Reading(msgspec.Struct, frozen=True):
    """Microseconds for a request of that size."""

    kilobytes: int
    decode_us: float
    facts_us: float


class Figures(msgspec.Struct, frozen=True):
    """All of them."""

    choosing: list[Choosing]
    reading: list[Reading]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = options("hot_path", __doc__)
    arguments = parser.parse_args(argv)
    figures = Figures([], [])
    print(f"{'µs':24}{'pick 8':>10}{'lease 8':>10}{'pick 1000':>11}{'lease 1000':>12}")
    limited = ("headroom, with limits", "headroom", TOLD)
    for name, policy, told in (*((one, one, ()) for one in get_args(Policy)), limited):
        few, many = (Choosing(name, count, *_choosing(policy, count, told)) for count in (8, 1000))
        figures.choosing.extend((few, many))
        print(f"{name:24}{few.pick_us:10.1f}{few.lease_us:10.1f}{many.pick_us:11.1f}{many.lease_us:12.1f}")  # fmt: skip
    for kilobytes in (1, 50):
        body = _body(kilobytes)
        decode_us = _best(partial(decode_chat, body))
        facts_us = _best(partial(facts_of, decode_chat(body)))
        figures.reading.append(Reading(kilobytes, decode_us, facts_us))
        print(f"{f'decode, {kilobytes} KB':24}{decode_us:10.1f}")
        print(f"{f'facts, {kilobytes} KB':24}{facts_us:10.1f}")
    keep(figures, arguments.json)
    return 0


def _choosing(policy: Policy, count: int, told: Readings) -> tuple[float, float]:
    """Microseconds of the choice alone, and of a lease with its first token and its settling; providers ``told`` of
    their limits with every response.
    """
    route = _route(policy, count)
    rng = random.Random(1)
    for member in route.members:
        member.load.inflight = rng.randrange(20)
        member.load.pending_tokens = rng.randrange(20_000)
        member.load.pending_us = rng.randrange(10**6)
        member.load.context_tokens = rng.randrange(10**5)
    pick = _best(_pick(route, rng))
    facts = (
        Facts(8000, BLOCKS) if route.wants_facts else Facts(8000) if route.wants_size() else None
    )
    for member in route.members:
        if told and member.target.quota is not None:
            member.target.quota.hear(told, 0.0)

    def lease() -> None:
        one = route.lease(0.0, (), facts)
        assert not isinstance(one, Refusal)
        one.hear(told, 1.0)
        one.first_token(1.0)
        one.settle(Verdict.GOOD, 2.0, None, 200, SPENT)

    return pick, _best(lease)


def _pick(route: Route, rng: random.Random) -> Callable[[], object]:
    policy, members = route.policy, route.members
    if isinstance(policy, Rotation):
        return lambda: policy.next(members, lambda one: one.target.admits(0.0), rng)
    shown = tuple(route._sample([])) if route._samples else members  # noqa: SLF001 - what the pool would show it
    demand = Demand(8000, 200.0, {shown[1].load.slot: 2048, shown[2].load.slot: 64})
    return lambda: policy.pick(shown, demand, 0.0, rng)


def _route(policy: Policy, count: int) -> Route:
    names = [f"e{i}" for i in range(count)]
    if policy == "headroom":
        model = Model(targets=[Target(provider=name) for name in names], policy=policy)
        provider = Provider(base_url="http://provider.test/v1")
        config = Config(providers=dict.fromkeys(names, provider), models={"m": model})
    else:
        model = Model(targets=[Target(engine=name) for name in names], policy=policy)
        config = Config(engines=dict.fromkeys(names, SimulatedSpec()), models={"m": model})
    route = build(config, random.Random(1)).route("m")
    assert route is not None
    return route


def _body(kilobytes: int) -> bytes:
    message = {"role": "user", "content": "word " * (205 * kilobytes)}
    return json.dumps({"model": "m", "messages": [message], "stream": True}).encode()


def _best(act: Callable[[], object]) -> float:
    """Microseconds of one call, in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        calls, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < ROUND_S:
            for _ in range(100):
                act()
            calls += 100
        best = min(best, spent / calls)
    return 1e6 * best


if __name__ == "__main__":
    sys.exit(main())
