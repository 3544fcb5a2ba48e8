"""The arguments and help of `nenya engines` and `nenya doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # argparse has no public name for it, and only type checkers may subscript it.
    _Parsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

Command = Callable[["_Parsers", str, str, str], argparse.ArgumentParser]

_ENGINES = """\
examples:
  nenya engines probe /models/llama-3.1-8b-exl2-5.0bpw     what it is, what it needs, a config for it
  nenya engines list nenya.yaml                            the engines of a config, and what is known of them
  nenya engines calibrate nenya.yaml --engine gpu0         what work costs on it, measured and kept
"""

_PROBE = """\
examples:
  nenya engines probe /models/llama-3.1-8b-exl2-5.0bpw
  nenya engines probe /models/*                            every folder and .gguf file there
  nenya engines probe DIR --context 16384 --parallel 8 --cache q8
  nenya engines probe DIR --json | jq -r '.[0].config' > nenya.yaml && nenya check nenya.yaml

Reads config.json, tokenizer and the heads of the files, never a weight; needs neither torch nor a GPU.
Where nvidia-smi or torch says what GPUs have free, the config is made to fit that: first a smaller cache,
then more GPUs, then fewer tokens. Stop what runs on them before, or it counts as taken.

exit codes: 0 all can be served, 1 one can't: damaged, of a kind no engine here reads, or too big
"""

_CALIBRATE = """\
examples:
  nenya engines calibrate nenya.yaml                       every engine of the config that lacks costs
  nenya engines calibrate nenya.yaml --engine gpu0 --again after a new driver, or on doubt
  nenya engines calibrate nenya.yaml --json

Starts each engine by itself, times prompts and answers, and keeps what they cost under
~/.cache/nenya/costs (or $XDG_CACHE_HOME), by model, device, settings and versions, where the engine
finds it at its next start. Stop the server first: another load, or a full GPU, spoils the measure.

  a prompt of n tokens after c cached ones takes
    prefill_token_s n + attention_s n (c + n / 2)
  a step of r answers over t tokens of context takes
    step_s + request_s r + context_s t

exllamav2 also measures itself at its first start; llamacpp does so only here. A simulated engine
says its costs in the config: it is measured for comparison, and nothing is kept.

exit codes: 0 all were measured or known, 1 one could not be
"""

_LIST = """\
examples:
  nenya engines list nenya.yaml
  nenya engines list nenya.yaml --json

costs: `config` are the config's own, `measured` were kept by a start or by `nenya engines calibrate`,
`model` follow from a simulated engine's figures; `guess` is the router's.
"""

_DOCTOR = """\
examples:
  nenya doctor                 can this machine run Nenya, and which of its engines?
  nenya doctor nenya.yaml      does it have what this config needs?
  nenya doctor nenya.yaml --json | jq '.[] | select(.state != "ok")'

Each line is ok, missing or wrong, with what to do about it. Only what the config needs (without one:
what the starter model needs) counts for the exit code; the rest is for your information.

exit codes: 0 what is needed is there, 1 something isn't, 2 the config has problems of its own
"""


def add_engines(commands: _Parsers, command: Command) -> None:
    """Add `engines`; ``command`` makes one."""
    one = command(commands, "engines", "what models are, need and cost on this machine", _ENGINES)
    actions = one.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, summary, epilog, fill in (
        ("probe", "say what a model is, what it needs and how to serve it", _PROBE, _probe),
        ("list", "show a config's engines and what is known of them", _LIST, _list),
        ("calibrate", "measure what work costs on a config's engines", _CALIBRATE, _calibrate),
    ):
        action = command(actions, name, summary, epilog)
        action.prog = f"nenya engines {name}"
        action.set_defaults(module=f"router.cli.engines_{name}")
        fill(action)
        action.add_argument("--json", action="store_true", help="JSON on standard output")


def _probe(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "paths", nargs="+", metavar="DIR", help="a model's folder, a .gguf file, or `starter`"
    )
    one.add_argument(
        "--context", type=int, metavar="N", help="tokens of a request; default: the model's, up to 8192"
    )  # fmt: skip
    one.add_argument(
        "--parallel", type=int, default=4, metavar="N", help="requests at the same time; default: 4"
    )
    one.add_argument(
        "--cache",
        choices=("fp16", "q8", "q6", "q4"),
        default="fp16",
        help="how keys and values are kept on GPUs; default: fp16",
    )


def _list(one: argparse.ArgumentParser) -> None:
    one.add_argument("file", metavar="CONFIG", help="a config")


def _calibrate(one: argparse.ArgumentParser) -> None:
    one.add_argument("file", metavar="CONFIG", help="a config")
    one.add_argument(
        "--engine", action="append", metavar="NAME", help="only this one; may be given several times"
    )  # fmt: skip
    one.add_argument("--again", action="store_true", help="also where costs are known already")


def add_doctor(commands: _Parsers, command: Command) -> None:
    """Add `doctor`; ``command`` makes it."""
    one = command(commands, "doctor", "say what this machine has and what it lacks", _DOCTOR)
    one.add_argument("file", nargs="?", metavar="CONFIG", help="a config; without one, the starter")
    one.add_argument("--json", action="store_true", help="JSON on standard output")
