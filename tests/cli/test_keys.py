"""`nenya keys` and `nenya usage`, in this process."""

from __future__ import annotations

import json

import msgspec
import pytest

from router.accounts.secrets import key_hash
from router.accounts.store import Entry, Store
from router.cli import main
from tests.accounts.test_store import DONE

PEPPER = "a-pepper-of-many-characters"
CONFIG = """
accounts: {database: %s, pepper: "${NENYA_PEPPER}"}
tiers: {free: {rpm: 60}}
keys: [{id: bob, secret: secret-of-bob}]
models: {m: {aliases: [x], targets: [{engine: e}]}}
engines: {e: {kind: simulated}}
"""
DAY = 86_400


@pytest.fixture(autouse=True)
def pepper(monkeypatch):
    monkeypatch.setenv("NENYA_PEPPER", PEPPER)


@pytest.fixture
def database(tmp_path):
    return str(tmp_path / "nenya.db")


@pytest.fixture
def config(tmp_path, database):
    path = tmp_path / "nenya.yaml"
    path.write_text(CONFIG % database)
    return str(path)


@pytest.fixture
def nenya(capsys):
    def call(*arguments):
        code = main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def stored(database):
    with Store(database) as store:
        return store.keys()


def test_a_key_is_made_shown_once_and_listed(nenya, config, database):
    code, out, err = nenya(
        "keys", "create", "alice", "--config", config, "--tier", "free", "--models", "m,X", "--expires", "2030-01-31",
        "--budget-usd", "2.5",
    )  # fmt: skip
    assert code == 0
    assert "not shown again" in err
    secret = out.split()[-1]
    assert secret.startswith("sk-nenya-alice-")
    key = stored(database)["alice"]
    assert key.hash == key_hash(PEPPER.encode(), secret)
    assert (key.tier, key.models, key.budget_nanos) == ("free", ("m", "X"), 2_500_000_000)
    code, out, _ = nenya("keys", "list", "--config", config)
    assert (code, secret in out) == (0, False)
    head, line = out.splitlines()
    assert head.split() == [
        "id",
        "key",
        "state",
        "tier",
        "models",
        "expires",
        "budget_usd",
        "spent_usd",
    ]
    assert line.split() == [
        "alice", secret[:19] + "…", "active", "free", "m,X", "2030-02-01T00:00:00Z", "2.5", "0",
    ]  # fmt: skip
    assert head.index("state") == line.index("active")


def test_terms_change_and_the_secret_stays(nenya, config, database):
    nenya(
        "keys",
        "create",
        "alice",
        "--config",
        config,
        "--tier",
        "free",
        "--expires",
        "2030-01-31",
        "--models",
        "m",
    )
    before = stored(database)["alice"]
    code, out, _ = nenya(
        "keys",
        "update",
        "alice",
        "--config",
        config,
        "--budget-usd",
        "7",
        "--expires",
        "none",
        "--models",
        "x",
    )
    after = stored(database)["alice"]
    assert (code, out) == (0, "alice is changed\n")
    assert (after.hash, after.tier, after.models) == (before.hash, "free", ("x",))
    assert (after.budget_nanos, after.expires_at) == (7_000_000_000, None)
    nenya("keys", "update", "alice", "--config", config, "--tier", "none")
    assert stored(database)["alice"].tier is None


def test_an_id_is_made_where_none_is_given(nenya, database):
    _, out, _ = nenya("keys", "create", "--database", database, "--json")
    (made,) = json.loads(out)
    assert list(stored(database)) == [made["id"]]
    assert made["id"].startswith("key_")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create", "bob"], "in the config already"),
        (["create", "a b"], "1 to 64 letters"),
        (["create", "alice", "--tier", "fre"], "no tier `fre`"),
        (["create", "alice", "--models", "m,y"], "no model `y`"),
        (["create", "alice", "--expires", "2030-02-31"], "must be a date"),
        (["create", "alice", "--budget-usd", "-1"], "between 0"),
        (["create", "alice", "--budget-usd", "nan"], "between 0"),
        (["create", "alice", "--budget-usd", "much"], "must be a number"),
        (["update", "nobody", "--tier", "free"], "no key `nobody`"),
        (["revoke", "nobody"], "no key `nobody`"),
        (["rotate", "nobody"], "no key `nobody`"),
        (["rotate", "nobody", "--grace", "soon"], "24h"),
        (["import", "/no/such.csv"], "No such file"),
    ],
)
def test_what_cannot_be_is_told_and_changes_nothing(nenya, config, database, arguments, told):
    Store(database).close()
    code, out, err = nenya("keys", *arguments, "--config", config)
    assert (code, out) == (2, "")
    assert told in err
    assert stored(database) == {}


def test_the_same_id_twice_fails(nenya, database):
    assert nenya("keys", "create", "alice", "--database", database)[0] == 0
    code, _, err = nenya("keys", "create", "alice", "--database", database)
    assert code == 1
    assert "there is a key `alice` already" in err


def test_a_revoked_key_stays_so(nenya, database):
    nenya("keys", "create", "alice", "--database", database)
    assert nenya("keys", "revoke", "alice", "--database", database)[1] == "alice is revoked\n"
    assert nenya("keys", "revoke", "alice", "--database", database)[0] == 0
    code, _, err = nenya("keys", "rotate", "alice", "--database", database)
    assert code == 2
    assert "is revoked" in err
    assert "revoked" in nenya("keys", "list", "--database", database)[1]


def test_making_a_key_needs_the_pepper_and_listing_does_not(nenya, database, monkeypatch):
    Store(database).close()
    monkeypatch.delenv("NENYA_PEPPER")
    code, _, err = nenya("keys", "create", "alice", "--database", database)
    assert code == 2
    assert "NENYA_PEPPER" in err
    assert nenya("keys", "list", "--database", database)[0] == 0


def test_another_pepper_makes_no_keys(nenya, database, monkeypatch):
    nenya("keys", "create", "alice", "--database", database)
    monkeypatch.setenv("NENYA_PEPPER", "quite-another-pepper")
    code, _, err = nenya("keys", "create", "bob", "--database", database)
    assert code == 1
    assert "the pepper is not the one" in err
    assert list(stored(database)) == ["alice"]
    assert nenya("keys", "revoke", "alice", "--database", database)[0] == 0


def test_a_database_or_a_config_that_is_not_there(nenya, tmp_path):
    assert nenya("keys", "list", "--database", str(tmp_path / "no.db"))[0] == 1
    assert nenya("usage", "--database", str(tmp_path / "no.db"))[0] == 1
    assert nenya("keys", "list", "--config", str(tmp_path / "no.yaml"))[0] == 2
    plain = tmp_path / "plain.yaml"
    plain.write_text("models: {m: {targets: [{engine: e}]}}\nengines: {e: {kind: simulated}}\n")
    code, _, err = nenya("keys", "list", "--config", str(plain))
    assert code == 2
    assert "has no `accounts:" in err
    assert not (tmp_path / "no.db").exists()


def test_keys_come_from_a_csv(nenya, config, database, tmp_path):
    path = tmp_path / "keys.csv"
    path.write_text(
        "id,secret,tier,models,expires,budget_usd\n"
        "alice,elsewhere-made-1,free,m;x,2030-01-31,5\ncarol,,,,,\n"
    )
    code, out, err = nenya("keys", "import", str(path), "--config", config)
    assert (code, err.splitlines()[-1]) == (0, "2 keys imported")
    assert "sk-nenya-carol-" in out
    assert "elsewhere" not in out + err
    found = stored(database)
    assert found["alice"].hash == key_hash(PEPPER.encode(), "elsewhere-made-1")
    assert found["alice"].models == ("m", "x")
    assert (found["alice"].shown, found["carol"].tier) == ("else…", None)


def test_keys_come_from_a_json_all_or_none(nenya, config, database, tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([{"id": "alice"}, {"id": "carol", "tier": "nope"}]))
    assert nenya("keys", "import", str(path), "--config", config)[0] == 2
    path.write_text(json.dumps([{"id": "alice"}, {"id": "alice"}]))
    assert "twice: alice" in nenya("keys", "import", str(path), "--config", config)[2]
    path.write_text(json.dumps([{"id": "alice", "sekret": "canary-canary"}]))
    code, out, err = nenya("keys", "import", str(path), "--config", config)
    assert (code, "canary" in out + err) == (2, False)
    assert stored(database) == {}
    path.write_text(json.dumps([{"id": "alice"}, {"id": "carol", "tier": "free"}]))
    assert nenya("keys", "import", str(path), "--config", config)[0] == 0
    assert sorted(stored(database)) == ["alice", "carol"]


def test_usage_in_three_forms(nenya, config, database):
    def entry(at, key_id):
        done = msgspec.structs.replace(DONE, key_id=key_id)
        return Entry(at, done, 2_000_000)

    with Store(database) as store:
        store.book([entry(0, "alice"), entry(DAY, "alice"), entry(DAY, "bob")], usage=True)
    code, out, _ = nenya("usage", "--by", "key,day", "--config", config)
    head, *rows = out.splitlines()
    assert code == 0
    assert head.split()[:3] == ["key", "day", "requests"]
    assert rows[0].split() == ["alice", "1970-01-01", "1", "0", "10", "4", "3", "0.002"]
    assert len(rows) == 3
    _, out, _ = nenya("usage", "--format", "json", "--since", "1970-01-02", "--database", database)
    assert [(row["key"], row["requests"]) for row in json.loads(out)] == [("alice", 1), ("bob", 1)]
    _, out, _ = nenya("usage", "--format", "csv", "--until", "1970-01-01", "--database", database)
    assert out.splitlines()[1] == "alice,1,0,10,4,3,0.002"
    _, out, _ = nenya(
        "usage", "--key", "bob", "--format", "csv", "--by", "model", "--database", database
    )
    assert out.splitlines()[1] == "m,1,0,10,4,3,0.002"


@pytest.mark.parametrize(
    "option", [["--by", "secret"], ["--since", "soon"], ["--until", "2026-13-01"]]
)
def test_a_wrong_question(nenya, database, option):
    assert nenya("usage", *option, "--database", database)[0] == 2
