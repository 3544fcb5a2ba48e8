"""Costs that were measured before, kept in files: one for an engine's settings on a device.

They depend on the model, the settings, the device, and the versions of what computes; each change of these has a file
of its own. They don't depend on where the model lies, so that a model that is moved isn't measured again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from engines import starter
from engines.base import Engine, EngineError, EngineInfo, WorkCosts
from engines.calibration import Prefill, Steps, Told, Unmeasurable, measure
from engines.specs import EngineSpec, ExLlamaSpec, ExLlamaV2Spec, ExLlamaV3Spec, LlamaCppSpec

_PACKAGES = {
    ExLlamaV2Spec: ("exllamav2", "torch", "flash-attn"),
    ExLlamaV3Spec: ("exllamav3", "torch"),
    LlamaCppSpec: ("xllamacpp",),
}
"""Whose versions change what work costs."""


class Measured(Struct, frozen=True, kw_only=True):
    """What a file holds."""

    costs: WorkCosts
    model: str
    device: str
    settings: str
    """See settings_of."""
    at: float
    """When, in seconds since 1970."""
    error: float
    """The share by which the worst of what was timed is off."""
    prefills: tuple[Prefill, ...] = ()
    steps: tuple[Steps, ...] = ()


def settings_of(spec: EngineSpec) -> str:
    """A name for all that costs depend on but for the device."""
    plain = replace(spec, costs=None)
    sizes: list[int] = []
    if isinstance(plain, LlamaCppSpec | ExLlamaSpec):
        sizes.append(_weight_bytes(plain.model))
        plain = replace(plain, model=Path(plain.model).name)
    if isinstance(plain, ExLlamaSpec) and plain.draft_model is not None:
        sizes.append(_weight_bytes(plain.draft_model))
        plain = replace(plain, draft_model=Path(plain.draft_model).name)
    versions = [_version(package) for package in _PACKAGES.get(type(spec), ())]
    return _hash(msgspec.json.encode(plain), sizes, versions)


def _weight_bytes(model: str) -> int:
    path = starter.gguf_path() if model == "starter" else Path(model).expanduser()
    try:
        files = path.glob("*.safetensors") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _hash(*parts: object) -> str:
    return hashlib.blake2s(repr(parts).encode(), digest_size=10).hexdigest()


def folder() -> Path:
    """Where costs are kept. Raises RuntimeError where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nenya" / "costs"


def file_of(settings: str, device: str) -> Path:
    """The file of these settings on this device. Raises RuntimeError where there is no home."""
    return folder() / f"{_hash(settings, device)}.json"


def remembered(spec: EngineSpec, device: str) -> Measured | None:
    """What was measured of ``spec`` on that device; None where nothing was, or nothing can be read."""
    settings = settings_of(spec)
    try:
        found = _read(file_of(settings, device))
    except RuntimeError:
        return None
    return found if found is not None and found.settings == settings else None


def anywhere(spec: EngineSpec) -> Iterator[Measured]:
    """What was measured of ``spec`` on any device, the latest first."""
    settings = settings_of(spec)
    try:
        found = [one for file in folder().glob("*.json") if (one := _read(file)) is not None]
    except (OSError, RuntimeError):
        return
    yield from sorted(
        (one for one in found if one.settings == settings), key=lambda one: one.at, reverse=True
    )


def _read(file: Path) -> Measured | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Measured)
    except (OSError, msgspec.MsgspecError):
        return None


def remember(found: Measured) -> Path | None:
    """Keep it; returns where. None for a folder that can't be written to, which costs a measurement, nothing else."""
    try:
        file = file_of(found.settings, found.device)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.stem}.{os.getpid()}")
        draft.write_bytes(msgspec.json.encode(found))
        draft.replace(file)
    except (OSError, RuntimeError):
        return None
    return file


async def anew(
    engine: Engine, info: EngineInfo, spec: EngineSpec, told: Told = lambda _: None
) -> Measured:
    """Measure an idle engine now. Raises EngineError, or Unmeasurable."""
    found = await measure(engine, info, told)
    return Measured(
        costs=found.costs,
        model=info.model,
        device=info.device,
        settings=settings_of(spec),
        at=time.time(),
        error=found.error,
        prefills=found.prefills,
        steps=found.steps,
    )


async def known(engine: Engine, info: EngineInfo, spec: EngineSpec) -> WorkCosts | None:
    """What is remembered, or measured and remembered now; None where it can't be measured.

    Raises EngineError("died") where measuring was too much for it.
    """
    before = remembered(spec, info.device)
    if before is not None:
        return before.costs
    try:
        found = await anew(engine, info, spec)
    except Unmeasurable:
        return None
    except EngineError as error:
        if error.kind == "died":
            raise
        return None
    remember(found)
    return found.costs
