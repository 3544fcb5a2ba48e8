"""Engines first, providers when the wait grows."""

from __future__ import annotations

from engines.specs import LlamaCppSpec, SimulatedSpec
from router.config.schema import Config, Model, Provider, Target
from router.load import Facts, FirstTokens
from router.policy.local_first import USUAL_S
from router.pool import build, policy_of

MIXED = (Target(engine="gpu"), Target(provider="rented"), Target(engine="gpu2"))
PREFILL = 1000
"""Tokens a second: a prompt of 500 takes half a second."""


def pool(*targets, engine=None, **fields):
    engine = engine or SimulatedSpec(prefill_tokens_per_s=PREFILL, slots=32)
    return build(
        Config(
            engines={"gpu": engine, "gpu2": engine},
            providers={"rented": Provider(base_url="http://rented.test/v1")},
            models={"m": Model(targets=list(targets or MIXED), **fields)},
        )
    )


def serve(route, count, tokens=500, now=0.0):
    """Who takes so many requests at once."""
    return [route.lease(now, facts=Facts(tokens)).target.backend for _ in range(count)]


def test_it_is_the_default_of_mixed_pools_alone():
    assert policy_of(Model(targets=list(MIXED))) == "local_first"
    assert policy_of(Model(targets=[MIXED[0], MIXED[2]])) == "expected_cost"
    assert policy_of(Model(targets=[MIXED[1]])) == "headroom"


def test_requests_spill_when_engines_are_later_than_a_provider_by_more_than_the_knob():
    taken = serve(pool().route("m"), 12)
    assert USUAL_S == 1
    assert taken[:8] == ["gpu", "gpu2"] * 4, "the fourth on each has its first token after 2 s"
    assert set(taken[8:]) == {"rented"}
    assert serve(pool(spill_s=0).route("m"), 6)[:5] == ["gpu", "gpu2", "gpu", "gpu2", "rented"]


def test_what_the_provider_usually_takes_is_learned():
    route = pool(spill_s=0).route("m")
    rented = next(one for one in route.members if one.target.backend == "rented")
    for _ in range(FirstTokens.FEW):
        rented.load.first_tokens.saw(500, 2.1)
    assert serve(route, 9) == ["gpu", "gpu2"] * 4 + ["rented"]


def test_full_slots_are_a_wait_too():
    engine = LlamaCppSpec(model="m.gguf", slots=2, context_tokens=1 << 20)
    taken = serve(pool(engine=engine, spill_s=0).route("m"), 40, tokens=4)
    first = taken.index("rented")
    assert 4 <= first < 40
    assert set(taken[:first]) == {"gpu", "gpu2"}


def test_nobody_rented_waits_here_and_nobody_here_is_rented():
    p = pool()
    p.targets["rented/m"].available = False
    assert set(serve(p.route("m"), 30)) == {"gpu", "gpu2"}
    p = pool()
    for name in ("gpu", "gpu2"):
        p.targets[name].available = False
    assert serve(p.route("m"), 3) == ["rented"] * 3
