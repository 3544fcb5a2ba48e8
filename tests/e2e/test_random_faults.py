"""Ten thousand requests while everything goes wrong at random: each ends whole or with an explicit error.

`pytest --hypothesis-profile=nightly` does it for more seeds than the gate has time for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import aiohttp
import pytest
from hypothesis import settings
from prometheus_client.parser import text_string_to_metric_families

from router.app import Router
from router.config.reader import parse
from router.events import AttemptDone
from tests.e2e.chaos import INPUT_TOKENS, Chaos, body_of, pieces_of, text_of
from tests.e2e.faulty import KEYS, SECRET, until
from tests.e2e.judging import Wire
from tests.e2e.serving import PORTS, served_by
from tests.upstream import Upstream

NIGHTLY = settings.default.max_examples > 1000
SEEDS = range(10 if NIGHTLY else 1)
REQUESTS = 10_000
AT_ONCE = 50
LEAVING = 0.03
"""The share of clients that don't wait for the end."""
MODELS = ["two", "three", "four"]
CONFIG = """
providers:
  a: {{base_url: {0!r}}}
  b: {{base_url: {1!r}}}
  c: {{base_url: {2!r}}}
  d: {{base_url: {3!r}, max_connections: 8}}
models:
  two: {{policy: round_robin, fallback: [four], targets: [{{provider: a}}, {{provider: b}}]}}
  three: {{policy: least_inflight, targets: [{{provider: a}}, {{provider: b}}, {{provider: c}}]}}
  four:
    policy: power_of_two
    price: {{input: 1, output: 1}}
    targets: [{{provider: a}}, {{provider: b}}, {{provider: c}}, {{provider: d}}]
timeouts: {{total_s: 5, first_token_s: 0.2, answer_s: 0.2, idle_s: 0.15}}
retry: {{backoff_s: 0.002, hedge_share: 0.1}}
health: {{failures: 5, eject_s: 0.05}}
"""


class Clients:
    """They take numbers from one heap and judge what they get."""

    def __init__(self, url, seed):
        self.url = url
        self.seed = seed
        self.numbers = iter(range(REQUESTS))
        self.outcomes = {}
        """What each was told: ``ok``, an error's code, or ``left``."""
        self.statuses = {}

    async def work(self):
        async with Wire(self.url, SECRET) as wire:
            for number in self.numbers:
                rng = random.Random(f"{self.seed}/client/{number}")
                body = body_of(number, rng.choice(MODELS), streaming=rng.random() < 0.6)
                if rng.random() < LEAVING:
                    await self.leave(wire, number, body, rng)
                else:
                    await self.stay(wire, number, body)

    async def stay(self, wire, number, body):
        got = await wire.ask(body, request_id=f"n{number}")
        self.statuses[number] = got.status
        if got.is_whole():
            assert got.text == text_of(number), got.body
            self.outcomes[number] = "ok"
            return
        self.outcomes[number] = got.error["code"] or got.error["type"]
        if got.streamed:
            assert text_of(number).startswith(got.text), got.body

    async def leave(self, wire, number, body, rng):
        """Read some bytes, or none, and go."""
        self.outcomes[number] = "left"
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(rng.choice([0, 0.001, 0.01, 0.05])):
                reader = await wire.send(body, request_id=f"n{number}")
                await reader.readexactly(rng.randrange(2000))
        await wire.leave()


async def disturb(upstreams, seed):
    """Now and then one of them restarts."""
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(0.1)
        rng.choice(upstreams).close_idle()


async def metrics_of(served):
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{served.admin_url}/metrics") as page,
    ):
        return list(text_string_to_metric_families(await page.text()))


def total(families, name):
    return sum(one.value for family in families for one in family.samples if one.name == name)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_request_ends_whole_or_with_an_explicit_error(seed):
    tasks = asyncio.all_tasks()
    scripts = [Chaos(seed, name, flaps=name == "d") for name in "abcd"]
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(default=one)) for one in scripts]
        config = CONFIG.format(*(one.url for one in upstreams))
        router = Router(parse(PORTS + KEYS + config, "test.yaml", {}))
        async with served_by(router) as served:
            clients = Clients(served.url, seed)
            disturber = asyncio.create_task(disturb(upstreams, seed))
            await asyncio.gather(*(clients.work() for _ in range(AT_ONCE)))
            disturber.cancel()
            backends = router._backends.values()
            await until(lambda: not router.inflight and not any(one.in_use for one in backends))
            assert_settled(router)
            assert_told(served, clients, {n for one in scripts for n in one.continued})
            assert_counted(served, await metrics_of(served))
        await until(lambda: not any(one.open_connections for one in upstreams))
    await until(lambda: not asyncio.all_tasks() - tasks)
    counted = Counter(clients.outcomes.values())
    assert counted["ok"] > REQUESTS // 2
    assert len(counted) > 5, "many kinds of errors were seen"
    assert min(sum((one.faults for one in scripts), Counter()).values()) > REQUESTS / 500


def assert_settled(router):
    assert all(one.inflight == 0 for one in router.stats().targets)
    assert router.accounts.budgets.reserved == 0


def assert_told(served, clients, continued):
    """Each request was told once, with the outcome that its client saw and the tokens of its answer."""
    done = {int(one.request_id[1:]): one for one in served.done}
    assert len(done) == len(served.done)
    left = {number for number, outcome in clients.outcomes.items() if outcome == "left"}
    assert set(clients.outcomes) - left <= set(done) <= set(range(REQUESTS))
    for number, told in done.items():
        if number not in left:
            assert told.outcome == clients.outcomes[number], number
            assert told.status == clients.statuses[number] or told.streaming, number
        if told.outcome == "ok" and not told.tokens_estimated and number not in continued:
            pieces = pieces_of(text_of(number))
            assert (told.input_tokens, told.output_tokens) == (INPUT_TOKENS, len(pieces)), number


def assert_counted(served, families):
    """The page of metrics says the same as the events."""
    attempts = [event for event in served.events if isinstance(event, AttemptDone)]
    done = served.done
    assert total(families, "nenya_requests_total") == len(done)
    assert total(families, "gen_ai_server_request_duration_seconds_count") == len(done)
    assert total(families, "gen_ai_client_operation_duration_seconds_count") == len(attempts)
    assert len(attempts) == sum(one.attempts for one in done)
    assert total(families, "nenya_target_inflight_requests") == 0
