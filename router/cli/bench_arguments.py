"""The arguments and help of `nenya bench`, but for `simulate`: a command a profile, and what all profiles share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # argparse has no public name for it, and only type checkers may subscript it.
    _Parsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

KEY_VARIABLE = "NENYA_KEY"

_READING = """\
reading the table:
  sent/s, done/s  requests due, and answers that ended well, a second
  good            share of requests within --slo; ✓ where the objective is met
  TTFT            time to the first token, from when the request was due
  TPOT            (end - first token) / (tokens - 1)       E2E  from due to the last token
"""

_CONSTANT = """\
examples:
  nenya bench constant http://127.0.0.1:8080 --rate 5
  nenya bench constant http://127.0.0.1:8080 --rate 1,2,4 --input 512 --output 128 --html report.html

Requests are due at even times, whether or not earlier ones were answered (an open loop).

"""

_POISSON = """\
examples:
  nenya bench poisson http://127.0.0.1:8080 --rate 5 --duration 2m
  nenya bench poisson URL --rate 5 --input lognormal:400:0.8 --output exp:150 --slo ttft=2s,tpot=80ms
  nenya bench poisson URL --rate 2 --prefix 1024 --prefixes 4 --turns 5 --think 10s

Requests come independently of each other, as those of many users do. It is the load to plan with.

"""

_CONCURRENT = """\
examples:
  nenya bench concurrent http://127.0.0.1:8080 --concurrency 16
  nenya bench concurrent URL --concurrency 1,2,4,8,16 --duration 20s --csv batch.csv

Each of N workers sends its next request when its last was answered (a closed loop): a server that gets
slow gets fewer requests, so this measures throughput, and waiting times only as N users have them.

"""

_RAMP = """\
example:
  nenya bench ramp http://127.0.0.1:8080 --from 1 --to 20 --duration 3m --html ramp.html

The rate rises in a straight line until the server is saturated or the time is over.

"""

_SWEEP = """\
examples:
  nenya bench sweep http://127.0.0.1:8080 --html sweep.html
  nenya bench sweep URL --rate 1,2,4,8 --slo ttft_p99=2s
  nenya bench sweep URL --concurrency 1,4,16,64

Without rates it finds them: a lone request at a time, as many as go through, and even steps between.

"""

_REPLAY = """\
examples:
  nenya bench replay http://127.0.0.1:8080 trace.jsonl --faster 0.5
  nenya bench replay URL nenya.db --requests 500      what a router recorded of its own requests
  nenya bench replay URL requests.jsonl               what an earlier run wrote with --jsonl

Takes Mooncake's JSONL (its blocks become shared beginnings), Azure's CSV, and a router's database.

"""

_GOODPUT = """\
examples:
  nenya bench goodput http://127.0.0.1:8080 --slo ttft_p99=2s,tpot_p99=80ms
  nenya bench goodput URL --slo ttft=2s,tpot=80ms --duration 1m --precision 0.03 --json capacity.json

Finds the highest rate that meets the objective: doubles until it isn't met, then halves what is left.
  ttft=2s       nine in ten requests have their first token within 2 s (and meet all other such limits)
  ttft_p99=2s   the 99th percentile does, a failed request counting as infinite
Limits are for ttft, tpot and e2e, in ms, s or m.

"""

_COMPARE = """\
examples:
  nenya bench compare before.json after.json
  nenya bench compare measured.json simulated.json --json changes.json

`differs` where the 95 % interval of the ratio leaves 1 out: a bootstrap over batches of consecutive
requests, as requests of one run wait for each other. p is Mann-Whitney's, as if each were alone: smaller
than it should be, so a large one says noise. One in twenty intervals misses by chance.
"""

_CALIBRATE = """\
examples:
  nenya bench sweep URL --input 50-1500 --output 20-200 --json run.json
  nenya bench calibrate run.json --kv-tokens 131072 -o costs.json
  nenya bench simulate trace.jsonl --costs costs.json --engines 4 --capacity

Fits what a step costs to a run of ONE engine, measured from outside, and checks the fit: the simulator
replays the run's arrivals with these costs, and its percentiles are printed beside the measured ones.
The run must vary: prompts of many lengths, and both lone requests and many at a time (a sweep has that).
"""

_REPORT = """\
examples:
  nenya bench report run.json                     the table again
  nenya bench report run.json --html run.html     and the page
  nenya bench report monday.json friday.json --html both.html
"""


def add(
    kinds: _Parsers, command: Callable[[_Parsers, str, str, str], argparse.ArgumentParser]
) -> None:
    """Add every benchmark but the simulator to ``kinds``; ``command`` makes one."""

    def profile(name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
        one = command(kinds, name, summary, epilog + _READING)
        one.prog = f"nenya bench {name}"
        one.set_defaults(module="router.cli.bench_run", profile=name)
        _target(one)
        return one

    _measured(profile)
    for name, summary, epilog, fill in (
        ("compare", "say what changed between two results, and what is noise", _COMPARE, _compare),
        ("calibrate", "fit the simulator's costs to a measured run", _CALIBRATE, _calibrate),
        ("report", "show results again, as a table or a page", _REPORT, _report),
    ):
        one = command(kinds, name, summary, epilog)
        one.prog = f"nenya bench {name}"
        one.set_defaults(module=f"router.cli.bench_{name}")
        fill(one)


def _measured(profile: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    one = profile("constant", "send requests at an even rate", _CONSTANT)
    one.add_argument("--rate", required=True, metavar="R,...", help="requests a second")
    _load(one)
    one = profile("poisson", "send requests at random times, at a rate", _POISSON)
    one.add_argument("--rate", required=True, metavar="R,...", help="requests a second")
    _load(one)
    one = profile("concurrent", "keep so many requests under way", _CONCURRENT)
    one.add_argument("--concurrency", required=True, metavar="N,...", help="at a time")
    _load(one)
    one = profile("ramp", "raise the rate until it is too much", _RAMP)
    one.add_argument("--from", type=float, default=0.0, dest="low", metavar="R", help="default: 0")
    one.add_argument("--to", type=float, required=True, dest="high", metavar="R", help="a second")
    _load(one, duration="60s")
    one = profile("sweep", "measure at several rates or concurrencies", _SWEEP)
    which = one.add_mutually_exclusive_group()
    which.add_argument("--rate", metavar="R,...", help="requests a second")
    which.add_argument("--concurrency", metavar="N,...", help="at a time")
    one.add_argument(
        "--steps", type=int, default=6, metavar="N", help="stages it finds; default: 6"
    )
    one.add_argument(
        "--most",
        type=int,
        default=128,
        metavar="N",
        help="at a time, to find the top; default: 128",
    )
    _load(one)
    one = profile("replay", "send requests as they were recorded", _REPLAY)
    one.add_argument("trace", metavar="TRACE", help="a trace, or a router's database")
    how = one.add_mutually_exclusive_group()
    how.add_argument("--faster", type=float, default=1.0, metavar="X", help="default: 1")
    how.add_argument("--rate", metavar="R", help="requests a second, instead of the recorded")
    _extent(one, duration=None)
    one = profile("goodput", "find the highest rate that meets an objective", _GOODPUT)
    one.add_argument("--rate", metavar="R", help="to begin with; default: by a lone request")
    one.add_argument(
        "--precision", type=float, default=0.05, metavar="P", help="of the rate; default: 0.05"
    )
    _load(one)


def _target(one: argparse.ArgumentParser) -> None:
    one.add_argument("url", metavar="URL", help="any server that speaks OpenAI's API")
    what = one.add_argument_group("the server")
    what.add_argument("--model", metavar="M", help="default: the first that the server lists")
    what.add_argument(
        "--key-env",
        metavar="NAME",
        default=KEY_VARIABLE,
        help=f"the environment variable with the key; default: {KEY_VARIABLE}",
    )
    what.add_argument(
        "--body",
        metavar="JSON",
        help='fields for every request: {"ignore_eos": true, "temperature": 0}',
    )
    what.add_argument(
        "--limit-field",
        choices=("max_tokens", "max_completion_tokens"),
        default="max_tokens",
        help="what the answer's limit is called; default: max_tokens",
    )
    what.add_argument("--timeout", default="600s", metavar="T", help="of a request; default: 600s")
    out = one.add_argument_group("results")
    out.add_argument("--slo", default="", metavar="S", help="an objective: ttft=2s,tpot_p99=80ms")
    out.add_argument("--label", default="", metavar="TEXT", help="what to call this run")
    _outputs(out)
    out.add_argument("--jsonl", metavar="FILE", help="a line for each request; a trace, too")


def _outputs(out: argparse._ActionsContainer) -> None:
    out.add_argument("--json", metavar="FILE", help="everything, for compare, calibrate, report")
    out.add_argument("--csv", metavar="FILE", help="a line for each stage")
    out.add_argument("--html", metavar="FILE", help="a page with plots that needs no network")


def _load(one: argparse.ArgumentParser, duration: str = "30s") -> None:
    load = one.add_argument_group(
        "the load",
        "lengths in tokens: N, LOW-HIGH, exp:MEAN, normal:MEAN:SD, lognormal:MEDIAN:SIGMA",
    )
    load.add_argument("--input", default="256", metavar="L", help="prompts; default: 256")
    load.add_argument("--output", default="64", metavar="L", help="answers, at most; default: 64")
    load.add_argument("--prefix", type=int, default=0, metavar="N", help="tokens shared by prompts")
    load.add_argument("--prefixes", type=int, default=1, metavar="N", help="how many; default: 1")
    load.add_argument("--turns", type=int, default=1, metavar="N", help="of a session; default: 1")
    load.add_argument("--think", default="0s", metavar="T", help="mean pause between turns")
    load.add_argument("--trace", metavar="FILE", help="lengths and prefixes from a trace, instead")
    _extent(one, duration)


def _extent(one: argparse.ArgumentParser, duration: str | None) -> None:
    extent = one.add_argument_group("how long")
    said = f"of a stage; default: {duration}, or all of a --trace" if duration else "default: all"
    extent.add_argument("--duration", metavar="T", help=said)
    extent.set_defaults(usual_duration=duration)
    extent.add_argument("--requests", type=int, metavar="N", help="no more than this, of a stage")
    extent.add_argument("--warmup", default="0s", metavar="T", help="of a stage; isn't counted")
    extent.add_argument(
        "--keep-going", action="store_true", help="even where the server is saturated"
    )
    extent.add_argument("--seed", type=int, default=1, metavar="N", help="of lengths and times")
    extent.add_argument(
        "--same-text",
        action="store_true",
        help="the same words in every run; the server may know them by heart",
    )


def _compare(one: argparse.ArgumentParser) -> None:
    one.add_argument("one", metavar="A.json", help="a result")
    one.add_argument("other", metavar="B.json", help="another")
    one.add_argument("--json", metavar="FILE", help="write the changes there, too")


def _calibrate(one: argparse.ArgumentParser) -> None:
    one.add_argument("run", metavar="RUN.json", help="a result of one engine, measured")
    one.add_argument("-o", "--output", metavar="FILE", help="the costs; default: print them")
    one.add_argument("--name", metavar="TEXT", help="what to call the engine")
    one.add_argument("--kv-tokens", type=int, metavar="N", help="its memory; default: no limit")
    one.add_argument("--slots", type=int, metavar="N", help="its batch; default: as seen, or 256")
    one.add_argument(
        "--chunk-tokens",
        type=int,
        default=8192,
        metavar="N",
        help="prompt tokens a step; default: 8192",
    )


def _report(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "results", nargs="+", metavar="RUN.json", help="results, measured or simulated"
    )
    one.add_argument("--csv", metavar="FILE", help="a line for each stage")
    one.add_argument("--html", metavar="FILE", help="a page with plots that needs no network")
