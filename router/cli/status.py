"""`nenya status`: what a running router does now, in a terminal; the admin port's page as text."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import msgspec

from router.cli import FAILED, OK, USAGE
from router.cli.completions import ChatFailed, Client, NoServer, key_in
from router.cli.table import Cell, aligned
from router.cli.terminal import bold, clean
from router.recent import Error, Rates
from router.status import EngineStatus, ModelStatus, Status, TargetStatus

_CLEAR = "\x1b[H\x1b[2J"
_MOST_ERRORS = 5
_MOST_CHARS = 80
"""Of an engine's reason; the whole is in the log and on the page."""


def run(arguments: argparse.Namespace) -> int:
    """Print it once; or again and again, whatever happens to the router, until Ctrl-C."""
    try:
        client = Client(arguments.url, key_in(arguments.key_env))
    except ChatFailed as error:
        print(f"nenya: {error}", file=sys.stderr)
        return USAGE
    while True:
        try:
            _show(client, arguments)
        except ChatFailed as error:
            where = "; `server.admin` of its config says where it is"
            print(f"nenya: {error}{where if isinstance(error, NoServer) else ''}", file=sys.stderr)
            if not arguments.watch:
                return FAILED
        if not arguments.watch:
            return OK
        time.sleep(arguments.watch)


def _show(client: Client, arguments: argparse.Namespace) -> None:
    """Raises ChatFailed."""
    body = client.get("/status")
    if arguments.json:
        print(body.decode(), flush=True)
        return
    try:
        status = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError as error:
        raise ChatFailed(f"{client.url} is no admin port of a Nenya like this one") from error
    clears = arguments.watch and sys.stdout.isatty()
    title, *rest = report(status)
    print(f"{_CLEAR if clears else ''}{bold(title, sys.stdout)}", *rest, sep="\n", flush=True)
    if arguments.watch and not clears:
        print(flush=True)


def report(status: Status) -> Iterator[str]:
    """The lines for people."""
    yield (
        f"Nenya {clean(status.version)}, {status.health} for {_span(status.uptime_s)}: "
        f"{_many(status.inflight, 'request')} under way, {status.waiting} waiting"
    )
    rates, totals = status.rates, status.totals
    yield (
        f"last minute  {rates.requests_per_s:.3g} requests/s, {rates.errors_per_s:.3g} errors/s, "
        f"tokens/s: {rates.input_tokens_per_s:.4g} in, {rates.output_tokens_per_s:.4g} out"
    )
    yield (
        f"since start  {totals.requests:,} requests, {totals.errors:,} errors, {totals.client_gone:,} clients left, "
        f"{totals.limited:,} refused by limits; tokens: {totals.input_tokens:,} in, {totals.output_tokens:,} out; "
        f"{totals.cost_usd:,.2f} USD"
    )
    tables = (_models(status.models), _targets(status.targets), _engines(status.engines))
    for table in (*tables, _errors(status.errors)):
        if table:
            yield ""
            yield table


_RATES = ("requests/s", "errors/s", "tokens/s", "first token")


def _rates(rates: Rates) -> tuple[str, ...]:
    first = rates.first_token_s
    return (
        f"{rates.requests_per_s:.3g}",
        f"{rates.errors_per_s:.3g}",
        f"{rates.output_tokens_per_s:.4g}",
        "-" if first is None else f"{first:.3g} s",
    )


def _models(models: tuple[ModelStatus, ...]) -> str:
    rows: list[tuple[Cell, ...]] = [
        (one.name, one.policy, f"{one.admitting}/{len(one.targets)}", one.waiting, *_rates(one.rates))
        for one in models
    ]  # fmt: skip
    return aligned(("model", "policy", "targets up", "waiting", *_RATES), rows) if rows else ""


def _targets(targets: tuple[TargetStatus, ...]) -> str:
    rows: list[tuple[Cell, ...]] = [
        (
            one.id,
            _state(one),
            f"{one.inflight}/{'∞' if one.most_inflight is None else one.most_inflight}",
            *_rates(one.rates),
            ", ".join(f"{g.remaining:,} of {g.limit:,} {g.resource}" for g in one.quota) or None,
        )
        for one in targets
    ]
    names = ["target", "state", "in flight", *_RATES, "left of its limits"]
    if not any(one.quota for one in targets):
        del names[-1]
    return aligned(names, [row[: len(names)] for row in rows]) if rows else ""


def _state(one: TargetStatus) -> str:
    if one.until_s is None:
        return one.state
    return f"{one.state}, {_span(one.until_s)} left" if one.until_s > 0 else f"{one.state}, due"


def _engines(engines: tuple[EngineStatus, ...]) -> str:
    rows = [
        (
            one.name,
            one.kind,
            one.state if one.loaded is None else f"{one.state} {one.loaded:.0%}",
            None if one.slots is None else f"{one.running}/{one.slots}",
            one.waiting,
            None if not one.kv_tokens else f"{one.kv_tokens_used / one.kv_tokens:.0%}",
            one.restarts,
            _short(one.detail) or one.model,
        )
        for one in engines
    ]
    names = ("engine", "kind", "state", "slots", "waiting", "cache used", "restarts", "model")
    return aligned(names, rows) if rows else ""


def _errors(errors: tuple[Error, ...]) -> str:
    rows = [
        (
            time.strftime("%H:%M:%S", time.localtime(one.at)),
            one.what,
            one.kind,
            one.count,
            one.model or None,
            one.target or None,
            one.request_id or None,
        )
        for one in errors[:_MOST_ERRORS]
    ]
    names = ("latest errors", "of", "kind", "times", "model", "target", "request")
    return aligned(names, rows) if rows else ""


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _MOST_CHARS else f"{line[: _MOST_CHARS - 1]}…"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _span(seconds: float) -> str:
    """A time in its two largest units."""
    whole = round(seconds)
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for at, (unit, size) in enumerate(units[:-1]):
        if whole >= size:
            lesser, less = units[at + 1]
            return f"{whole // size} {unit} {whole % size // less} {lesser}"
    return f"{whole} s"
