"""`nenya engines probe DIR ...`: what each model is, what it needs, whether that is there, and a config for it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from engines import sizing
from engines.base import EngineError
from engines.gpus import Gpu
from engines.probe import Probed, Report, probe
from engines.sizing import Plan, Wish
from engines.specs import ExLlamaV2Spec, ExLlamaV3Spec
from router.cli import FAILED, OK, USAGE
from router.cli.machine import found_gpus, free_memory
from router.cli.table import aligned, parameters, sized
from router.cli.terminal import clean
from router.cli.yaml_text import flow, scalar

_MADE_FOR = {
    "fp16": "half precision",
    "bf16": "bfloat16, taken as half precision",
    "fp32": "single precision, taken as half",
}
MOST_SLOTS = 256
"""Of exllamav2, as a config may have it."""

_ALWAYS = frozenset({"model", "cache_tokens", "context_tokens", "slots"})


class Failure(Struct, frozen=True):
    """Why a path can't be read as a model."""

    kind: str
    message: str


class Found(Struct, frozen=True):
    """One path's answer, as ``--json`` prints it."""

    path: str
    error: Failure | None = None
    model: Report | None = None
    plan: Plan | None = None
    gpus: tuple[Gpu, ...] = ()
    config: str | None = None
    """Where it can be served."""


def run(arguments: argparse.Namespace) -> int:
    """Probe every path. Reports go to standard output, what can't be read to standard error."""
    wish = Wish(arguments.parallel, arguments.context, arguments.cache)
    if not 1 <= wish.parallel <= MOST_SLOTS or (arguments.context or 1) < 1:
        complaint = f"--parallel must be 1 to {MOST_SLOTS}, --context 1 or more"
        print(f"nenya: {complaint}", file=sys.stderr)
        return USAGE
    looks = [(path, _look(path)) for path in arguments.paths]
    asks = any(isinstance(one, Probed) and one.folder is not None for _, one in looks)
    gpus, why = found_gpus() if asks else ((), "")
    answers = [_answer(path, one, wish, gpus) for path, one in looks]
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(answers), indent=2).decode())
    else:
        for at, one in enumerate(answers):
            _print(one, why, first=at == 0)
    return OK if all(one.config is not None for one in answers) else FAILED


def _look(path: str) -> Probed | EngineError:
    try:
        return probe(path)
    except EngineError as error:
        return error


def _answer(path: str, one: Probed | EngineError, wish: Wish, gpus: tuple[Gpu, ...]) -> Found:
    if isinstance(one, EngineError):
        return Found(path, Failure(one.kind, one.message))
    report, plan = one.report, _planned(one, wish, gpus)
    usable = plan is not None and not report.problems and plan.room != "too big"
    config = config_of(report, plan) if usable and plan is not None else None
    return Found(path, None, report, plan, gpus if one.folder is not None else (), config)


def _planned(probed: Probed, wish: Wish, gpus: Sequence[Gpu]) -> Plan | None:
    if probed.report.engine is None:
        return None
    if probed.folder is None:
        return sizing.in_memory(probed.report, wish, free_memory())
    kind = ExLlamaV3Spec if probed.report.engine == "exllamav3" else ExLlamaV2Spec
    return sizing.on_gpus(probed.folder, wish, gpus, kind)


def config_of(report: Report, plan: Plan) -> str:
    """A config with this one model, as `nenya check` takes it."""
    name = slug(report.name)
    spec = msgspec.structs.asdict(plan.spec)
    defaults = msgspec.structs.asdict(type(plan.spec)(model=""))
    settings = {
        key: value
        for key, value in spec.items()
        if key in _ALWAYS or (key != "costs" and value != defaults[key])
    }
    kind = {"kind": report.engine, **settings}
    model: Mapping[str, object] = {"targets": [{"engine": name}]}
    return f"engines:\n  {scalar(name)}: {flow(kind)}\nmodels:\n  {scalar(name)}: {flow(model)}\n"


def slug(name: str) -> str:
    """A model's name that is easy to type."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.casefold()).strip("-.") or "model"


def _print(one: Found, why: str, *, first: bool) -> None:
    if not first:
        print()
    if one.model is None or one.error is not None:
        message = one.error.message if one.error is not None else ""
        print(clean(f"nenya: {message}"), file=sys.stderr)
        return
    print(clean(one.model.path))
    rows = [*_said(one.model), *_needed(one, why)]
    for name, text in rows:
        print(clean(f"  {name:<10}{text}"))
    for problem in one.model.problems:
        print(clean(f"  problem   {problem}"))
    for warning in one.model.warnings:
        print(clean(f"  note      {warning}"))
    if one.config is not None:
        print(f"\n{clean(one.config)}", end="")


def _said(model: Report) -> Iterator[tuple[str, str]]:
    yield "what", _what(model)
    yield "shape", ", ".join(_shape(model))
    scaled = f", scaled ({model.rope_scaling})" if model.rope_scaling not in {"", "default"} else ""
    theta = f"; rope_theta {model.rope_theta:g} ({model.rope_theta_from})"
    theta = theta + scaled if model.rope_theta else ""
    yield "context", f"{model.context_tokens or 'unknown'} tokens{theta}"
    yield "template", _template(model)
    ends = ", ".join(f"{end.id} {end.name}".strip() for end in model.ends)
    yield "ends", ends or "no token that ends an answer is named"


def _what(model: Report) -> str:
    kind = _MADE_FOR.get(model.kind, model.kind.upper())
    bits = f", {model.bits:g} bits a weight" if model.kind not in _MADE_FOR and model.bits else ""
    size = f", {parameters(model.parameters)} parameters" if model.parameters else ""
    return f"{kind}{bits}{size}, {model.architecture or 'no architecture named'}"


def _shape(model: Report) -> Iterator[str]:
    yield f"{model.layers} layers"
    yield f"{model.heads} heads of {model.head_dim} over {model.kv_heads} of keys and values"
    yield f"{model.vocabulary} tokens"
    if model.tied_embeddings is not None:
        yield "embedding and head are one" if model.tied_embeddings else "a head of its own"


def _template(model: Report) -> str:
    if not model.template_from:
        return "none: completions only"
    parts = [model.template_from, "tools" if model.tools else "no tools"]
    if model.tools and not model.calls:
        parts.append("tool_choice `auto` is refused: its calls aren't in <tool_call>")
    if model.thinks:
        parts.append("thoughts")
    return "; ".join(parts)


def _needed(one: Found, why: str) -> Iterator[tuple[str, str]]:
    model, plan = one.model, one.plan
    assert model is not None, "the caller has seen"
    where = "in memory" if model.engine == "llamacpp" else "on GPUs"
    yield "weights", f"{sized(model.weight_bytes)} {where}, {sized(model.file_bytes)} of files"
    forms = ", ".join(f"{size / 1024:g} KiB {form}" for form, size in model.token_bytes.items())
    yield "a token", f"{forms} of cache"
    if plan is None:
        return
    yield "wished", f"{plan.parallel} requests of {plan.wished_tokens} tokens at the same time:"
    head = ("cache", "weights", "keys, values", "beside", "in all")
    for line in aligned(head, _rows(plan)).splitlines():
        yield "", line
    yield from _there(one.gpus, plan, why)


def _rows(plan: Plan) -> list[Sequence[str]]:
    return [
        (need.cache, *map(sized, (need.weights, need.keys_and_values, need.beside, need.total)))
        for need in plan.needs
    ]


def _there(gpus: Sequence[Gpu], plan: Plan, why: str) -> Iterator[tuple[str, str]]:
    for gpu in gpus:
        yield (
            "GPU",
            f"{gpu.index} {gpu.name}: {sized(gpu.free_bytes)} of {sized(gpu.total_bytes)} free",
        )
    if plan.free is None:
        yield (
            "room",
            f"nobody here says what is free{f': {why}' if why else ''}; the config is as wished",
        )
        return
    if plan.room == "too big":
        yield (
            "room",
            f"too big: {sized(plan.free)} are free; take a model with fewer bits, or a larger GPU",
        )
        return
    how = f", with {' and '.join(plan.changes)}" if plan.changes else ""
    yield "room", f"fits{how}: {sized(plan.total)} of {sized(plan.free)} free"
