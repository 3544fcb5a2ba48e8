"""The database: what is written is there, in this process and in others, whatever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from router.accounts.secrets import StoredKey
from router.accounts.store import Entry, KeyTakenError, Store, StoreError
from router.accounts.usage import Question, usage
from router.events import RequestDone

ROOT = Path(__file__).parents[2]
DONE = RequestDone(
    request_id="r", key_id="alice", model="m", target="t", provider="p", streaming=False, outcome="ok", status=200,
    attempts=1, duration_s=0.5, first_token_s=0.1, input_tokens=10, cached_input_tokens=4, output_tokens=3,
    overhead_s=0.001, cost_usd=0.000001,
)  # fmt: skip
DAY = 86_400


def key(id_="alice", **fields):
    return StoredKey(id=id_, hash=b"h" * 32, shown="sk-nenya-alice-abcd…", created_at=1.0, **fields)


def entry(at=0.0, cost_nanos=1000, **fields):
    return Entry(at, msgspec.structs.replace(DONE, **fields), cost_nanos)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "nenya.db")


@pytest.fixture
def store(path):
    with Store(path) as opened:
        yield opened


def test_keys_come_back_as_they_went(store, path):
    full = key(
        tier="free", models=("m", "n"), expires_at=5.5, budget_nanos=7, previous_hash=b"p", previous_until=9.5,
    )  # fmt: skip
    store.add([full, key("bob")])
    with Store(path) as other:
        assert other.keys() == {"alice": full, "bob": key("bob")}
    revoked = msgspec.structs.replace(full, revoked_at=3.0)
    store.replace(revoked)
    assert store.keys()["alice"] == revoked


def test_all_keys_are_added_or_none(store):
    store.add([key("bob")])
    with pytest.raises(KeyTakenError, match="`bob`"):
        store.add([key("alice"), key("bob")])
    assert list(store.keys()) == ["bob"]


def test_only_the_owner_reads_the_file(store, path):
    for name in (path, f"{path}-wal"):
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600


def test_anothers_commit_is_seen_and_ones_own_is_not(store, path):
    before = store.data_version(), store.generation()
    store.book([entry()], usage=True)
    assert (store.data_version(), store.generation()) == before
    with Store(path) as other:
        other.add([key()])
    assert store.data_version() != before[0]
    assert store.generation() == before[1] + 1


def test_spending_adds_up_without_usage_too(store):
    store.book([entry(), entry(cost_nanos=5), entry(key_id="bob", cost_nanos=0)], usage=True)
    store.book([entry()], usage=False)
    assert store.spent() == {"alice": 2005}
    (row,) = usage(store, Question(by=()))
    assert (row["requests"], row["input_tokens"], row["cost_usd"]) == (3, 30, 1005e-9)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_every_record_of_a_batch_is_written_once_in_its_order(store, count):
    store.book([entry(at=number, request_id=f"r{number}") for number in range(count)], usage=True)
    written = store.select("SELECT at, request_id FROM usage ORDER BY rowid", ())
    assert written == [(number, f"r{number}") for number in range(count)]
    assert store.spent() == {"alice": 1000 * count}


def test_usage_by_key_model_and_day(store):
    store.book(
        [
            entry(at=0), entry(at=DAY - 1), entry(at=DAY, status=502, output_tokens=None),
            entry(at=DAY, key_id="bob", model="n"),
        ],
        usage=True,
    )  # fmt: skip
    rows = usage(store, Question(by=("key", "day")))
    assert [(row["key"], row["day"], row["requests"], row["errors"]) for row in rows] == [
        ("alice", "1970-01-01", 2, 0),
        ("alice", "1970-01-02", 1, 1),
        ("bob", "1970-01-02", 1, 0),
    ]
    assert [row["requests"] for row in usage(store, Question(by=(), since=DAY))] == [2]
    assert [row["requests"] for row in usage(store, Question(by=(), until=DAY))] == [2]
    assert usage(store, Question(by=("model",), key_id="bob"))[0]["model"] == "n"
    assert usage(store, Question(by=("model",), key_id="' OR 1=1 --")) == []
    assert usage(store, Question(by=(), model="zz")) == []


def test_nonsense_of_an_upstream_costs_no_record(store):
    store.book([entry(output_tokens=2**70, cost_nanos=2**70)], usage=True)
    store.book([entry(cost_nanos=2**70, key_id="rich")] * 10_000, usage=False)
    assert usage(store, Question(by=()))[0]["cost_usd"] == 1_000_000


def test_half_a_character_costs_no_record(store):
    odd = [entry(request_id="\ud800"), entry(outcome="x\ud800"), entry(key_id="\ud800")]
    assert store.book([entry(), *odd], usage=True) == {"alice": 3000, "?": 1000}
    assert usage(store, Question(by=()))[0]["requests"] == 4
    assert store.spent() == {"alice": 3000, "?": 1000}


def test_what_is_unknown_is_null_and_nothing_else_is(store):
    unknown = dict.fromkeys(
        ["input_tokens", "cached_input_tokens", "output_tokens", "first_token_s", "overhead_s"]
    )
    known = {"input_tokens": 0, "cached_input_tokens": 0, "output_tokens": 0, "overhead_s": 0.0}
    records = [entry(**unknown), entry(**known), entry(**known, burnt_output_tokens=0)]
    store.book(records * 40, usage=True)
    names = (*unknown, "burnt_input_tokens", "burnt_output_tokens")
    found = store.select(f"SELECT DISTINCT {', '.join(names)} FROM usage ORDER BY rowid", ())
    assert found == [
        (None,) * 7,
        (0, 0, 0, 0.1, 0.0, None, None),
        (0, 0, 0, 0.1, 0.0, None, 0),
    ]


def test_a_failed_transaction_leaves_nothing(store):
    good, bad = entry(), entry(model=None)
    with pytest.raises(StoreError, match="NOT NULL"):
        store.book([good, bad], usage=True)
    assert store.spent() == {}
    store.book([good], usage=True)
    assert store.spent() == {"alice": 1000}


def test_a_database_that_cannot_be_used_says_why(tmp_path, path):
    with pytest.raises(StoreError, match="no such file"):
        Store(path, must_exist=True)
    with pytest.raises(StoreError, match="No such file"):
        Store(str(tmp_path / "no" / "nenya.db"))
    (tmp_path / "text.db").write_text(
        "certainly not a database, and long enough to be read as one" * 20
    )
    with pytest.raises(StoreError, match="not a database"):
        Store(str(tmp_path / "text.db"))
    Store(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    with pytest.raises(StoreError, match="another version"):
        Store(path)


WRITER = """
import sys, time, msgspec
from router.accounts.store import Entry, Store
from router.events import RequestDone
done = msgspec.convert(msgspec.json.decode(sys.argv[2]), RequestDone)
with Store(sys.argv[1]) as store:
    for number in range(100000):
        store.book([Entry(time.time(), done, 1)], usage=True)
        print(number, flush=True)
"""


def test_a_writer_killed_at_once_loses_nothing_that_it_had_committed(path):
    Store(path).close()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, msgspec.json.encode(DONE)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in writer.stdout:
        if int(line) >= 50:
            break
    writer.send_signal(signal.SIGKILL)
    said = [int(line) for line in (writer.communicate()[0] or "").split()]
    last = said[-1] if said else 50
    with Store(path) as store:
        written = usage(store, Question(by=()))[0]["requests"]
        assert last + 1 <= written <= last + 2
        assert store.spent() == {"alice": written}
        assert [row[0] for row in store.select("PRAGMA integrity_check", ())] == ["ok"]


def test_two_processes_write_side_by_side(path):
    Store(path).close()
    code = WRITER.replace("100000", "100")
    command = [sys.executable, "-c", code, path, msgspec.json.encode(DONE)]
    writers = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    start = time.monotonic()
    assert [writer.wait(20) for writer in writers] == [0, 0]
    assert time.monotonic() - start < 15
    with Store(path) as store:
        assert store.spent() == {"alice": 200}


def test_a_file_of_the_first_version_gets_what_came_since(path):
    with Store(path) as opened:
        opened.book([entry(burnt_input_tokens=5)], usage=True)
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("ALTER TABLE usage DROP COLUMN burnt_input_tokens")
        raw.execute("ALTER TABLE usage DROP COLUMN burnt_output_tokens")
        raw.execute("PRAGMA user_version=1")
    with Store(path) as opened:
        opened.book([entry(burnt_input_tokens=7, burnt_output_tokens=2)], usage=True)
        query = "SELECT burnt_input_tokens, burnt_output_tokens FROM usage"
        assert opened.select(query, ()) == [(None, None), (7, 2)]
