"""Every command's arguments and help: one function each, and the table that names them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from router import __version__
from router.cli import bench_arguments, engines_arguments

SERVER_URL = "http://127.0.0.1:8080"
KEY_VARIABLE = "NENYA_KEY"
ADMIN_URL = "http://127.0.0.1:9090"
ADMIN_KEY_VARIABLE = "NENYA_ADMIN_KEY"
_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOG_FORMATS = ("auto", "human", "json")

_MAIN = """\
start here:
  nenya serve                        the starter model on this machine, port 8080
  nenya chat "What is 12 + 7?"       ask it, from another terminal

then:
  nenya check nenya.yaml             every problem of a config, with its line
  nenya serve nenya.yaml             your GPUs and providers behind one endpoint
  nenya status --watch               what it does now
  nenya schema > nenya.schema.json   completion for your editor
  nenya keys create alice --config nenya.yaml
  nenya usage --by key,day --config nenya.yaml
  nenya bench simulate TRACE         which policy serves your load best, without a GPU
  nenya engines probe DIR            what a model is, what it needs, and a config for it
  nenya doctor                       what this machine has and what it lacks

exit codes:
  0 it worked   1 it failed while it ran   2 usage or config   130 interrupted
"""

_SERVE = """\
examples:
  nenya serve                              no config: the starter model, for this machine alone
  nenya serve nenya.yaml                   what the file says
  nenya serve nenya.yaml --listen 127.0.0.1:9000 --admin off
  nenya serve nenya.yaml --log-format json --log-level warning 2> nenya.log

Ctrl-C or SIGTERM stops it: no new requests, running answers may end, then it exits.
Beyond this machine it listens only with keys; see `keys:` in examples/providers.yaml.
"""

_CHECK = """\
examples:
  nenya check nenya.yaml
  nenya check nenya.yaml --no-files        on a machine without the models
  nenya check nenya.yaml --json | jq .problems

exit codes: 0 it can be used (there may be warnings), 2 it has problems
"""

_SCHEMA = """\
example, for editors with a YAML language server:
  nenya schema > nenya.schema.json
  then, as the first line of the config:
  # yaml-language-server: $schema=./nenya.schema.json
"""

_CHAT = """\
examples:
  nenya chat                               a conversation
  nenya chat "What is 12 + 7?"             one answer
  nenya chat --system "Answer in French." "Hello"
  git diff | nenya chat -                  the prompt from standard input
  nenya chat --url https://llm.example.com --model llama3.1:8b

in a conversation:
  /model [NAME]   show the models, or change to one
  /reset          forget what was said
  /quit           leave (Ctrl-D does too)
  Ctrl-C          stop the answer; once more, leave

The key comes from the environment, never from the command line, where others could read it.
"""

_STATUS = """\
examples:
  nenya status                             once
  nenya status --watch                     every 2 seconds, until Ctrl-C
  nenya status --json | jq '.targets[] | {id, state}'
  nenya status --url http://gpu1:9090      with its admin key in NENYA_ADMIN_KEY

The rates are those of the last minute. The same as a page with plots: the admin port in a browser.
"""

_KEYS = """\
examples:
  nenya keys create alice --config nenya.yaml --tier free --models llama3.1:8b --expires 2027-01-31
  nenya keys list --config nenya.yaml
  nenya keys update alice --config nenya.yaml --budget-usd 50 --expires none
  nenya keys rotate alice --config nenya.yaml --grace 24h
  nenya keys revoke alice --config nenya.yaml
  nenya keys import keys.csv --database nenya.db

A running server sees a change within a second. A secret is shown once, when it is made.
With --database the pepper comes from the environment variable NENYA_PEPPER.

import reads a CSV with a header or a JSON list of objects:
  id, secret, tier, models (a;b in a CSV), expires, budget_usd; all but id may be missing
"""

_USAGE = """\
examples:
  nenya usage --config nenya.yaml
  nenya usage --by key,day --since 2026-11-01 --until 2026-11-30 --config nenya.yaml
  nenya usage --by model --key alice --format csv --database nenya.db > alice.csv

Dates are UTC, and --until counts to its day's end. Costs are at the prices of the time.
"""

_BENCH = """\
examples:
  nenya bench poisson http://127.0.0.1:8080 --rate 5 --html report.html
                                           a load on a running server, and what it measured there
  nenya bench goodput URL --slo ttft_p99=2s,tpot_p99=80ms
                                           the highest rate that meets an objective
  nenya bench compare before.json after.json
  nenya bench simulate sessions            all policies on a made-up load
  nenya bench simulate trace.jsonl         on a recorded one, at its recorded rate
  nenya bench simulate --help              how to ask for more
"""

_SIMULATE = """\
A load is a file or a made-up one:
  trace.jsonl   Mooncake's format: timestamp (ms), input_length, output_length, hash_ids
                (one id for each 512 tokens; equal ids are equal beginnings)
  trace.csv     Azure's format: TIMESTAMP, ContextTokens, GeneratedTokens
  nenya.db      what a router recorded of its own requests
  poisson       unrelated requests; sessions: conversations that share a system prompt

examples:
  nenya bench simulate sessions --engines 4
  nenya bench simulate trace.jsonl --rate 6 --seeds 5 --json result.json
  nenya bench simulate trace.jsonl --capacity --policies round_robin,lmetric,expected_cost
  nenya bench simulate trace.jsonl --speed 1,1,1,1,.4,.4,.4,.4 --gpu 80gb --slo ttft=2,tpot=0.04
  nenya bench simulate trace.jsonl --rate 5 --replicas 4 --sync-ms 500
  nenya bench simulate poisson --providers 3 --tpm 1000000,300000,100000 --burst 5

reading the table:
  goodput   share of requests that met the objective of --slo
  TTFT      time to the first token        TPOT   time for each token after it
  cached    prompt tokens that were found in an engine's cache
  429       refusals a request met         wait   from its arrival until it was sent where it was answered
  ±         half a 95 % confidence interval over seeds

The router in it is the server's own code; engines and providers are models, so trust the order of the
policies more than the numbers, unless the engines' costs were measured (nenya bench calibrate, --costs).
"""

if TYPE_CHECKING:
    # argparse has no public name for it, and only type checkers may subscript it.
    _Parsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help whose subcommands stand on one line each: argparse forgets that they are indented once more."""

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for ``action``."""
        super().add_argument(action)
        if action.nargs == argparse.PARSER and action.choices:
            longest = max(len(str(name)) for name in action.choices)
            room = self._current_indent + self._indent_increment + longest
            self._action_max_length = max(self._action_max_length, room)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each command names the module whose ``run`` it is."""
    whole = argparse.ArgumentParser(
        prog="nenya",
        description="One OpenAI-shaped endpoint in front of your GPUs and the providers you rent.",
        epilog=_MAIN,
        formatter_class=_Help,
    )
    whole.add_argument("--version", action="version", version=f"nenya {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(commands)
    return whole


def _command(commands: _Parsers, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=_Help,
    )
    one.set_defaults(module=f"router.cli.{name}")
    return one


def _serve(commands: _Parsers) -> None:
    one = _command(commands, "serve", "serve models over HTTP until stopped", _SERVE)
    one.add_argument("file", nargs="?", metavar="FILE", help="a config; without one, the starter")
    one.add_argument("--listen", metavar="HOST:PORT", help="instead of server.listen")
    one.add_argument("--admin", metavar="HOST:PORT", help="instead of server.admin; `off` for none")
    one.add_argument("--log-level", choices=_LOG_LEVELS, default="info", help="default: info")
    one.add_argument(
        "--log-format",
        choices=_LOG_FORMATS,
        default="auto",
        help="default: auto, which is human in a terminal and json elsewhere",
    )


def _check(commands: _Parsers) -> None:
    one = _command(commands, "check", "read a config and tell everything wrong with it", _CHECK)
    one.add_argument("file", metavar="FILE", help="a config")
    one.add_argument("--json", action="store_true", help="one JSON object on standard output")
    one.add_argument(
        "--no-files", action="store_true", help="don't look whether models and certificates exist"
    )


def _schema(commands: _Parsers) -> None:
    _command(commands, "schema", "print the JSON Schema of a config, for editors", _SCHEMA)


def _chat(commands: _Parsers) -> None:
    one = _command(commands, "chat", "talk to a running server", _CHAT)
    one.add_argument("prompt", nargs="?", metavar="PROMPT", help="one question; `-` reads it")
    one.add_argument("--url", default=SERVER_URL, help=f"the server; default: {SERVER_URL}")
    one.add_argument("--model", metavar="M", help="default: the first that the server has")
    one.add_argument(
        "--key-env",
        metavar="NAME",
        default=KEY_VARIABLE,
        help=f"the environment variable with the key; default: {KEY_VARIABLE}",
    )
    one.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    one.add_argument("--temperature", type=float, metavar="T", help="0 to 2")
    one.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")


def _status(commands: _Parsers) -> None:
    one = _command(commands, "status", "show what a running router does now", _STATUS)
    one.add_argument("--url", default=ADMIN_URL, help=f"its admin port; default: {ADMIN_URL}")
    one.add_argument(
        "--key-env",
        metavar="NAME",
        default=ADMIN_KEY_VARIABLE,
        help=f"the environment variable with the admin key; default: {ADMIN_KEY_VARIABLE}",
    )
    one.add_argument(
        "--watch", metavar="S", nargs="?", type=_interval, const=2.0, help="again every S seconds; default: 2"
    )  # fmt: skip
    one.add_argument("--json", action="store_true", help="the document as the server sends it")


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("0.1 to 3600 seconds")
    return seconds


def _keys(commands: _Parsers) -> None:
    one = _command(commands, "keys", "make, list, rotate and revoke keys in the database", _KEYS)
    actions = one.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    create = actions.add_parser("create", help="a new key; prints its secret, once")
    create.add_argument(
        "id", nargs="?", metavar="ID", help="its name in logs; default: a random one"
    )
    _terms(create, default="none")
    update = actions.add_parser("update", help="other terms for a key, whose secret stays")
    update.add_argument("id", metavar="ID")
    _terms(update, default="as it is; `none` takes it away")
    rotate = actions.add_parser("rotate", help="a new secret for a key; prints it, once")
    rotate.add_argument("id", metavar="ID")
    rotate.add_argument(
        "--grace",
        default="0s",
        metavar="D",
        help="the old secret's time left: 90s, 30m, 24h, 7d; default: none",
    )
    revoke = actions.add_parser("revoke", help="refuse a key from now on, for good")
    revoke.add_argument("id", metavar="ID")
    bring = actions.add_parser("import", help="keys from a file, all of them or none")
    bring.add_argument("file", metavar="FILE", help="a .csv or a .json")
    every = actions.add_parser("list", help="all keys, never a secret")
    for action in (create, update, rotate, revoke, bring, every):
        _database(action)
        action.add_argument("--json", action="store_true", help="JSON on standard output")


def _terms(action: argparse.ArgumentParser, *, default: str) -> None:
    tier = f"a tier of the config, whose limits it has; default: {default}"
    action.add_argument("--tier", metavar="T", help=tier)
    action.add_argument("--models", metavar="A,B", help="what it may ask for, if not everything")
    action.add_argument("--expires", metavar="WHEN", help="a date, or a time in UTC")
    action.add_argument("--budget-usd", metavar="USD", help="what it may spend in all")


def _usage(commands: _Parsers) -> None:
    one = _command(commands, "usage", "what was used and what it cost", _USAGE)
    one.add_argument(
        "--by", default="key", metavar="A,B", help="key, model, target, day; default: key"
    )
    one.add_argument("--since", metavar="DATE", help="from this day or time on")
    one.add_argument("--until", metavar="DATE", help="to this day's end, or before this time")
    one.add_argument("--key", metavar="ID", help="of one key only")
    one.add_argument("--model", metavar="M", help="of one model only")
    one.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="default: table"
    )
    _database(one)


def _database(action: argparse.ArgumentParser) -> None:
    where = action.add_mutually_exclusive_group(required=True)
    where.add_argument("--config", metavar="FILE", help="a config with accounts.database")
    where.add_argument("--database", metavar="PATH", help="the database itself")


def _bench(commands: _Parsers) -> None:
    one = _command(commands, "bench", "measure servers, compare policies, plan capacity", _BENCH)
    kinds = one.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    bench_arguments.add(kinds, _command)
    _simulate(
        _command(
            kinds, "simulate", "replay a load against models of engines or of providers", _SIMULATE
        )
    )


def _simulate(one: argparse.ArgumentParser) -> None:
    one.prog = "nenya bench simulate"
    one.set_defaults(module="router.cli.bench")
    one.add_argument("load", metavar="LOAD", help="a trace's file, `poisson` or `sessions`")
    one.add_argument("--engines", type=int, default=8, metavar="N", help="default: 8")
    one.add_argument("--speed", metavar="A,B,...", help="each engine's; default: 1 for all")
    one.add_argument("--gpu", choices=("80gb", "24gb"), default="80gb", help="default: 80gb")
    one.add_argument("--policies", metavar="P,Q,...", help="default: all")
    one.add_argument("--rate", type=float, metavar="R", help="requests a second")
    one.add_argument(
        "--faster", type=float, default=1.0, metavar="X", help="times the recorded rate; default: 1"
    )
    one.add_argument("--requests", type=int, metavar="N", help="only the first N")
    one.add_argument("--seeds", type=int, default=3, metavar="N", help="runs each; default: 3")
    one.add_argument(
        "--slo", default="ttft=5,tpot=0.06", metavar="S", help="default: ttft=5,tpot=0.06 (seconds)"
    )
    one.add_argument(
        "--capacity",
        action="store_true",
        help="search the highest rate at which 90 %% of requests meet the objective",
    )
    one.add_argument(
        "--costs", metavar="FILE", help="the engines' costs, from `nenya bench calibrate`"
    )
    one.add_argument("--json", metavar="FILE", help="write everything there, too")
    one.add_argument("--csv", metavar="FILE", help="a line for each policy")
    one.add_argument("--html", metavar="FILE", help="a page with plots that needs no network")
    one.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="routers in front; default: 1"
    )
    one.add_argument(
        "--sync-ms", metavar="T", help="how often they tell each other their load; default: never"
    )
    _simulated_providers(one.add_argument_group("accounts at providers instead of engines"))


def _simulated_providers(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--providers", type=int, metavar="N", help="how many accounts")
    group.add_argument(
        "--tpm", metavar="A,B,...", help="each one's tokens a minute; one number is everybody's"
    )
    group.add_argument("--rpm", metavar="A,B,...", help="each one's requests a minute")
    group.add_argument(
        "--burst", default="60", metavar="S", help="seconds' worth of a limit that may come at once; default: 60"
    )  # fmt: skip
    group.add_argument(
        "--share", default="0.95", metavar="X", help="load, as a share of all limits, unless --rate; default: 0.95"
    )  # fmt: skip
    group.add_argument(
        "--heed",
        choices=("headers", "retry-after", "own-retry-after"),
        default="headers",
        help="what the router goes by: headers of limits; a 429's retry-after alone; each request its own alone; "
        "default: headers",
    )
    group.add_argument(
        "--size-error", type=float, default=0.3, metavar="X", help="how wrong sizes are guessed, at most; default: 0.3"
    )  # fmt: skip
    group.add_argument(
        "--counts",
        choices=("max_tokens", "usage"),
        default="max_tokens",
        help="providers count an answer's tokens at admission, or as they are written; default: max_tokens",
    )
    group.add_argument(
        "--outage", type=float, default=0.0, metavar="S", help="each account fails once for S seconds; default: 0"
    )  # fmt: skip


def _engines(commands: _Parsers) -> None:
    engines_arguments.add_engines(commands, _command)


def _doctor(commands: _Parsers) -> None:
    engines_arguments.add_doctor(commands, _command)


_COMMANDS: tuple[Callable[[_Parsers], None], ...] = (
    _serve,
    _check,
    _chat,
    _status,
    _schema,
    _keys,
    _usage,
    _bench,
    _engines,
    _doctor,
)
