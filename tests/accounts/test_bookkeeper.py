"""The thread that keeps the books: what it writes, what it notices, and what it survives."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest

from router.accounts import bookkeeper
from router.accounts.bookkeeper import Bookkeeper
from router.accounts.store import Store, StoreError
from router.accounts.usage import Question, usage
from tests.accounts.test_store import entry, key

TICK_S = 0.02
PEPPER = b"a-pepper-of-many-characters"


async def until(holds, within_s=3.0):
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "nenya.db")


def keeper(path, seen=None, *, use=True):
    seen = [] if seen is None else seen
    return Bookkeeper(path, PEPPER, usage=use, on_change=seen.append, tick_s=TICK_S)


def written(path):
    with Store(path) as store:
        rows = usage(store, Question(by=()))
    return rows[0]["requests"] if rows else 0


async def test_entries_are_written_within_a_tick_and_the_rest_at_the_end(path):
    books = keeper(path)
    await books.start()
    books.book(entry())
    await until(lambda: written(path) == 1)
    for _ in range(100):
        books.book(entry())
    await books.stop()
    await books.stop()
    assert written(path) == 101
    assert not [t for t in threading.enumerate() if t.name == "nenya-accounts"]


async def test_a_full_batch_waits_for_no_tick(path):
    books = Bookkeeper(path, PEPPER, usage=True, on_change=lambda _: None, tick_s=60.0)
    await books.start()
    for _ in range(2 * bookkeeper.BATCH + 1):
        books.book(entry())
    await until(lambda: books.waiting == 1)
    assert written(path) == 2 * bookkeeper.BATCH
    await books.stop()
    assert written(path) == 2 * bookkeeper.BATCH + 1


async def test_no_load_keeps_a_change_from_being_noticed(path):
    seen = []
    books = keeper(path, seen)
    await books.start()
    with Store(path) as other:
        other.add([key("bob")])

    def noticed():
        for _ in range(bookkeeper.BATCH):
            books.book(entry())
        return len(seen) == 2

    await until(noticed)
    await books.stop()


async def test_changes_of_others_are_noticed_and_ones_own_are_not(path):
    seen = []
    books = keeper(path, seen)
    await books.start()
    assert [dict(snapshot.keys) for snapshot in seen] == [{}]
    books.book(entry())
    await until(lambda: books.waiting == 0)
    await asyncio.sleep(3 * TICK_S)
    assert len(seen) == 1
    with Store(path) as other:
        other.add([key("bob")])
    await until(lambda: len(seen) == 2)
    assert list(seen[1].keys) == ["bob"]
    assert seen[1].spent_by_others == {"alice": 0}
    with Store(path) as other:
        other.book([entry(cost_nanos=7)], usage=False)
    await until(lambda: len(seen) == 3)
    assert seen[2].spent_by_others == {"alice": 7}
    assert seen[2].keys is seen[1].keys, "keys that didn't change aren't read again"
    await books.stop()


async def test_a_locked_database_costs_nothing_but_time(path, caplog, monkeypatch):
    monkeypatch.setattr("router.accounts.store.BUSY_S", 0.01)
    books = keeper(path)
    await books.start()
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for _ in range(5):
        assert books.book(entry())
        await asyncio.sleep(2 * TICK_S)
    await until(lambda: "can't be used" in caplog.text)
    assert books.waiting == 5
    blocker.execute("ROLLBACK")
    blocker.close()
    await until(lambda: books.waiting == 0)
    await books.stop()
    assert written(path) == 5
    assert caplog.text.count("can't be used") == 1
    assert caplog.text.count("can be used again") == 1


async def test_a_full_disk_keeps_a_bounded_backlog(path, caplog, monkeypatch):
    monkeypatch.setattr(bookkeeper, "MOST_BACKLOG", 10)

    def full(self, entries, *, usage):
        raise StoreError("database or disk is full")

    books = keeper(path)
    await books.start()
    monkeypatch.setattr(Store, "book", full)
    taken = [books.book(entry()) for _ in range(25)]
    await until(lambda: "disk is full" in caplog.text)
    assert (taken.count(True), books.waiting) == (10, 10)
    await books.stop()
    assert "10 records of usage were never written" in caplog.text


async def test_a_disk_that_fills_up_and_is_made_room_on(path, caplog, monkeypatch):
    class Small(Store):
        """A file that can't grow, which SQLite tells as it tells of a full disk."""

        def __init__(self, path):
            super().__init__(path)
            self._db.execute("PRAGMA max_page_count=1")

    monkeypatch.setattr(bookkeeper, "Store", Small)
    books = keeper(path)
    await books.start()
    for _ in range(2000):
        assert books.book(entry())
    await until(lambda: "disk is full" in caplog.text)
    assert books.waiting == 2000
    monkeypatch.setattr(Store, "book", _with_room(Store.book))
    await until(lambda: books.waiting == 0)
    await books.stop()
    assert written(path) == 2000


def _with_room(book):
    def roomy(self, entries, *, usage):
        self._db.execute("PRAGMA max_page_count=100000")
        return book(self, entries, usage=usage)

    return roomy


async def test_a_database_that_cannot_be_opened_ends_the_start(tmp_path):
    books = keeper(str(tmp_path / "no" / "nenya.db"))
    with pytest.raises(StoreError, match="No such file"):
        await books.start()
    await books.stop()


async def test_a_row_that_is_no_key_ends_the_start(path):
    with Store(path) as store:
        store._db.execute(
            "INSERT INTO keys (id, hash, shown, created_at, models) VALUES ('a', x'00', '', 0, 'what')"
        )
    books = keeper(path)
    with pytest.raises(StoreError, match="malformed"):
        await books.start()
    await books.stop()


async def test_without_usage_only_the_spending_is_written(path):
    books = keeper(path, use=False)
    await books.start()
    books.book(entry())
    await books.stop()
    assert written(path) == 0
    with Store(path) as store:
        assert store.spent() == {"alice": 1000}
