"""Keys of the database in a running router: made, rotated, revoked and expired while it runs; spending that stays."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest

from router.accounts import bookkeeper
from router.accounts.secrets import id_of, key_hash, shown
from router.accounts.store import Store, StoreError
from router.app import Router
from router.cli import main
from router.config.reader import parse
from router.errors import ApiError
from router.events import UsageLost
from tests.e2e.serving import PORTS, served_by, upstream_config
from tests.upstream import Upstream

ROOT = Path(__file__).parents[2]
PEPPER = "a-pepper-of-many-characters"
QUESTION = [{"role": "user", "content": "hi"}]
REVOKED_WITHIN_S = 1.0


@pytest.fixture(autouse=True)
def pepper(monkeypatch):
    monkeypatch.setenv("NENYA_PEPPER", PEPPER)


@pytest.fixture
def database(tmp_path):
    return str(tmp_path / "nenya.db")


def config_of(database, extra="", url="http://127.0.0.1:9"):
    return (
        f"accounts: {{database: {database}, pepper: '${{NENYA_PEPPER}}'}}\n"
        f"tiers: {{free: {{rpm: 60, tpm: 40000}}}}\n{extra}"
        + upstream_config(url, extra="    price: {input: 1, output: 1}\n")
    )


def router_of(database, extra="", url="http://127.0.0.1:9"):
    return Router(parse(PORTS + config_of(database, extra, url), "test.yaml"))


def keys(capsys, *arguments):
    """What `nenya keys ... --json` says."""
    capsys.readouterr()
    assert main(["keys", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def secret_of(capsys, *arguments):
    return keys(capsys, *arguments)[0]["secret"]


async def until(holds, within_s=3.0):
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


def passes(router, secret):
    """The key's id; None where it is refused."""
    try:
        return router.authenticate(f"Bearer {secret}")
    except ApiError as error:
        told = (error.status, secret in f"{error}{error.body!r}")
    return None if told == (401, False) else told


def test_a_secret_names_its_key_and_is_kept_as_a_hash(capsys, database):
    secret = secret_of(capsys, "create", "a-b.c_d", "--database", database)
    assert id_of(secret) == "a-b.c_d"
    with Store(database) as store:
        key = store.keys()["a-b.c_d"]
    assert key.hash == key_hash(PEPPER.encode(), secret)
    assert secret.encode() not in Path(database).read_bytes() + Path(f"{database}").read_bytes()
    assert secret[-20:] not in shown(secret)
    assert id_of("sk-nenya-x") is None
    assert id_of(f"sk-nenya-' OR 1=1 ---{'a' * 32}") is None


async def test_a_key_made_by_another_process_works_within_a_second_and_revoked_is_refused(database):
    async with router_of(database) as router:

        def nenya(*arguments):
            done = subprocess.run(
                [sys.executable, "-m", "router.cli", "keys", *arguments, "--database", database, "--json"],
                cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            return json.loads(done.stdout)

        (made,) = await asyncio.to_thread(nenya, "create", "alice", "--tier", "free")
        await until(lambda: passes(router, made["secret"]) == "alice", REVOKED_WITHIN_S)
        await asyncio.to_thread(nenya, "revoke", "alice")
        await until(lambda: passes(router, made["secret"]) is None, REVOKED_WITHIN_S)


async def test_a_rotated_secret_lives_for_its_grace(database, capsys):
    old = secret_of(capsys, "create", "alice", "--database", database)
    async with router_of(database) as router:
        new = secret_of(capsys, "rotate", "alice", "--grace", "1h", "--database", database)
        await until(lambda: passes(router, new) == "alice")
        assert passes(router, old) == "alice"
        newer = secret_of(capsys, "rotate", "alice", "--database", database)
        await until(lambda: passes(router, newer) == "alice")
        assert (passes(router, old), passes(router, new)) == (None, None)


async def test_grace_and_expiry_end_by_the_wall_clock(database, capsys):
    old = secret_of(capsys, "create", "alice", "--expires", "2030-01-31", "--database", database)
    new = secret_of(capsys, "rotate", "alice", "--grace", "1h", "--database", database)
    async with router_of(database) as router:
        start = router._clock.wall()
        router.accounts._ring._wall = lambda: start + 3599
        assert passes(router, old) == "alice"
        router.accounts._ring._wall = lambda: start + 3700
        assert (passes(router, old), passes(router, new)) == (None, "alice")
        router.accounts._ring._wall = lambda: 1_896_134_399.0  # 2030-01-31T23:59:59Z
        assert passes(router, new) == "alice"
        router.accounts._ring._wall = lambda: 1_896_134_400.0
        assert passes(router, new) is None


@pytest.mark.parametrize(
    "secret",
    [
        "' OR 1=1 --",
        "sk-nenya-alice-' OR '1'='1",
        "sk-nenya-alice-",
        "sk-nenya-%-" + "a" * 32,
        "\udcff" * 20,
    ],
)
async def test_sql_in_a_key_is_a_wrong_key(database, capsys, secret):
    secret_of(capsys, "create", "alice", "--database", database)
    async with router_of(database) as router:
        assert passes(router, secret) is None


async def test_keys_of_both_kinds_side_by_side_and_never_nobody(database, capsys):
    made = secret_of(capsys, "create", "alice", "--database", database)
    async with router_of(database, "keys: [{id: bob, secret: secret-of-bob}]\n") as router:
        assert (passes(router, made), passes(router, "secret-of-bob")) == ("alice", "bob")
    async with router_of(database) as router:
        with pytest.raises(ApiError) as caught:
            router.authenticate(None)
        assert caught.value.status == 401


async def test_one_id_in_both_is_an_error(database, capsys, caplog):
    config = "keys: [{id: alice, secret: secret-of-alice}]\n"
    async with router_of(database, config) as router:
        secret_of(capsys, "create", "alice", "--database", database)
        await until(lambda: "is ignored" in caplog.text)
        assert passes(router, "secret-of-alice") == "alice"
    with pytest.raises(StoreError, match="in the database too: alice"):
        async with router_of(database, config):
            pass


async def test_before_the_database_is_read_the_answer_is_try_again(database, capsys):
    made = secret_of(capsys, "create", "alice", "--database", database)
    with pytest.raises(ApiError) as caught:
        router_of(database).authenticate(f"Bearer {made}")
    assert (caught.value.status, caught.value.error.code) == (503, "starting")


async def test_another_pepper_is_told_at_the_start(database, capsys, monkeypatch):
    secret_of(capsys, "create", "alice", "--database", database)
    monkeypatch.setenv("NENYA_PEPPER", "quite-another-pepper")
    with pytest.raises(StoreError, match="the pepper is not the one"):
        async with router_of(database):
            pass


async def test_a_tier_that_the_config_lost_refuses_the_key(database, capsys, caplog):
    made = secret_of(capsys, "create", "alice", "--tier", "gold", "--database", database)
    async with router_of(database) as router:
        assert passes(router, made) is None
        assert "there is no tier `gold`" in caplog.text


async def test_limits_models_and_headers_of_a_stored_key(database, capsys):
    made = secret_of(
        capsys, "create", "alice", "--tier", "free", "--models", "M", "--database", database
    )
    async with Upstream() as up, served_by(router_of(database, url=up.url)) as served:
        async with openai.AsyncOpenAI(base_url=served.base_url, api_key=made, max_retries=0) as sdk:
            answer = await sdk.chat.completions.with_raw_response.create(
                model="m", messages=QUESTION
            )
            assert [model.id for model in (await sdk.models.list()).data] == ["m"]
    assert answer.headers["x-ratelimit-remaining-requests"] == "59"


async def test_spending_and_usage_survive_a_restart(database, capsys):
    made = secret_of(capsys, "create", "alice", "--budget-usd", "0.00003", "--database", database)
    async with Upstream() as up:
        for _ in range(2):
            async with served_by(router_of(database, url=up.url)) as served:
                async with openai.AsyncOpenAI(
                    base_url=served.base_url, api_key=made, max_retries=0
                ) as sdk:
                    try:
                        await sdk.chat.completions.create(
                            model="m", messages=QUESTION, max_tokens=10
                        )
                        outcome = "ok"
                    except openai.RateLimitError as error:
                        outcome = error.code
    assert outcome == "insufficient_quota"
    assert len(up.requests) == 1
    capsys.readouterr()
    assert main(["usage", "--by", "key,model", "--format", "csv", "--database", database]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row == {
        "key": "alice", "model": "m", "requests": "1", "errors": "0", "input_tokens": "10",
        "cached_input_tokens": "4", "output_tokens": "3", "cost_usd": "1.3e-05",
    }  # fmt: skip
    (listed,) = keys(capsys, "list", "--database", database)
    assert listed["spent_usd"] == 1.3e-05


async def test_a_database_that_is_locked_and_full_of_waiting_costs_no_request(
    database, capsys, monkeypatch
):
    made = secret_of(capsys, "create", "alice", "--database", database)
    monkeypatch.setattr(bookkeeper, "MOST_BACKLOG", 3)
    monkeypatch.setattr("router.accounts.store.BUSY_S", 0.01)
    async with Upstream() as up, served_by(router_of(database, url=up.url)) as served:
        blocker = sqlite3.connect(database, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        async with openai.AsyncOpenAI(base_url=served.base_url, api_key=made, max_retries=0) as sdk:
            for _ in range(5):
                await sdk.chat.completions.create(model="m", messages=QUESTION)
        blocker.execute("ROLLBACK")
        blocker.close()
        assert [event for event in served.events if isinstance(event, UsageLost)] == [
            UsageLost("alice")
        ] * 2
    with Store(database) as store:
        assert store.spent() == {"alice": 3 * 13_000}


async def test_without_a_database_there_is_no_thread():
    before = threading.active_count()
    async with Router(parse("engines: {}\n" + upstream_config("http://127.0.0.1:9"), "t", {})):
        assert threading.active_count() == before


SERVER = """
import asyncio, sys
from router.app import Router
from router.config.reader import parse
from router.events import RequestDone
from router.accounts.store import Entry
from tests.accounts.test_store import DONE

async def main():
    router = Router(parse(sys.argv[1], "t"))
    await router.start()
    number = 0
    while True:
        router._emit(DONE)
        number += 1
        print(number, flush=True)
        await asyncio.sleep(0.005)

asyncio.run(main())
"""


def test_a_router_killed_loses_the_last_second_at_most(database):
    running = subprocess.Popen(
        [sys.executable, "-c", SERVER, config_of(database)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: list[tuple[float, int]] = []
    for line in running.stdout:
        said.append((time.monotonic(), int(line)))
        if said[-1][0] - said[0][0] > 2.0:
            break
    running.kill()
    killed = time.monotonic()
    running.communicate()
    owed = max(number for at, number in said if at < killed - 1.0)
    with Store(database) as store:
        ((count,),) = store.select("SELECT count(*) FROM usage", ())
    assert count >= owed > 1
