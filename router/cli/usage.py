"""`nenya usage`: what was used and what it cost, summed up from the database's records."""

from __future__ import annotations

import argparse
import csv
import sys
from typing import get_args

import msgspec

from router.accounts.store import Store, StoreError
from router.accounts.usage import FIELDS, Group, Question, Row, usage
from router.cli import FAILED, OK, USAGE
from router.cli.ledger import AskedWronglyError, ledger
from router.cli.table import aligned
from router.config.moment import moment

_DAY_S = 86_400
_DATE_CHARS = len("2026-11-30")


def run(arguments: argparse.Namespace) -> int:
    """Print the sums."""
    try:
        question = _question(arguments)
        with Store(ledger(arguments).path, must_exist=True) as store:
            rows = usage(store, question)
    except AskedWronglyError as error:
        print(f"nenya: {error}", file=sys.stderr)
        return USAGE
    except StoreError as error:
        print(f"nenya: {error}", file=sys.stderr)
        return FAILED
    _print(arguments.format, (*question.by, *FIELDS), rows)
    return OK


def _question(arguments: argparse.Namespace) -> Question:
    groups = [name.strip() for name in arguments.by.split(",") if name.strip()]
    known = get_args(Group)
    for name in groups:
        if name not in known:
            raise AskedWronglyError(f"--by takes {', '.join(known)}, not {name}")
    since = _when("--since", arguments.since)
    if since is not None and len(arguments.since) == _DATE_CHARS:
        since -= _DAY_S  # a date counts to its end, and this is a beginning
    return Question(
        by=msgspec.convert(tuple(dict.fromkeys(groups)), tuple[Group, ...]),
        since=since,
        until=_when("--until", arguments.until),
        key_id=arguments.key,
        model=arguments.model,
    )


def _when(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    found = moment(text)
    if found is None:
        raise AskedWronglyError(f"{option} must be a date or a time in UTC: 2026-11-30")
    return found


def _print(form: str, names: tuple[str, ...], rows: list[Row]) -> None:
    if form == "json":
        print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([row[name] for name in names] for row in rows)
    else:
        print(aligned(names, [[row[name] for name in names] for row in rows]))
