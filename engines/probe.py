"""What lies at a path: which kind of model, which engine serves it, its sizes, and what is wrong with it.

Reads heads and JSON, never a weight, and needs no package but msgspec: neither torch nor llama.cpp nor a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from engines import starter
from engines.base import EngineError
from engines.exl2.folder import Library, ModelFolder, read_folder
from engines.exl2.memory import CACHE_BYTES, token_bytes
from engines.gguf import GgufError, GgufFile, read_gguf
from engines.thoughts import START as THOUGHT_START

STARTER = "starter"
_HALF_BYTES = 2
_TOOLS = re.compile(r"\btools\b")
_FIRST_PART = re.compile(r"-0*1-of-\d+\.gguf$")
_ANY_PART = re.compile(r"-(\d+)-of-(\d+)\.gguf$")
_KINDS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


class End(Struct, frozen=True):
    """A token that ends an answer; its name is empty where nobody says it."""

    id: int
    name: str


class Report(Struct, frozen=True, kw_only=True):
    """What a model is. Numbers are 0 and texts empty where its files don't say."""

    path: str
    name: str
    kind: str
    """``exl2``, ``gptq``, ``fp16``, ``bf16``, ``fp32``, ``exl3``, ``gguf``, or another way to quantise by its name."""
    engine: Literal["exllamav2", "exllamav3", "llamacpp"] | None
    """Who serves it; None for nobody here."""
    architecture: str
    parameters: int
    bits: float
    """Of a weight on average."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    rope_theta: float
    rope_theta_from: str
    rope_scaling: str
    tied_embeddings: bool | None
    template_from: str
    tools: bool
    """Whether the template has a place for tools."""
    calls: bool
    """Whether calls that the model makes by its own choice can be read."""
    thinks: bool
    ends: tuple[End, ...]
    file_bytes: int
    weight_bytes: int
    """Where the engine computes: on GPUs, or in memory for llamacpp."""
    token_bytes: dict[str, int]
    """Of a token's keys and values, by the form of the cache."""
    problems: tuple[str, ...] = ()
    """Why it can't be served."""
    warnings: tuple[str, ...] = ()


class Probed(Struct, frozen=True):
    """A report, and what it was read from."""

    report: Report
    folder: ModelFolder | None = None
    gguf: GgufFile | None = None


def probe(given: str) -> Probed:
    """Look at a folder, at a file, or at ``starter``. Raises EngineError("invalid") where no model is there."""
    path = starter.gguf_path() if given == STARTER else Path(given).expanduser()
    if path.is_file() or path.suffix == ".gguf":
        return _file(path)
    if path.is_dir() and not (path / "config.json").is_file():
        files = _models(path)
        if len(files) == 1:
            return _file(files[0])
        if files:
            names = ", ".join(file.name for file in files)
            raise EngineError("invalid", f"{path} has several models, name one of them: {names}")
    return _folder(*_read(path))


def _read(path: Path) -> tuple[ModelFolder, Library]:
    """A folder as the library reads it that serves it: exllamav2, unless only the later one can."""
    second = read_folder(path)
    if second.format != "exl3" and (second.format != "fp16" or not second.problems):
        return second, "exllamav2"
    third = read_folder(path, library="exllamav3")
    if second.format == "exl3":
        return third, "exllamav3"
    if third.problems:
        return second, "exllamav2"
    why = f"exllamav2 can't serve it: {second.problems[0]}"
    return replace(third, warnings=(*third.warnings, why)), "exllamav3"


def _models(path: Path) -> list[Path]:
    """The GGUF files with a model, of a model in parts the first."""
    return [
        file
        for file in sorted(path.glob("*.gguf"))
        if not file.name.startswith("mmproj")
        and (_FIRST_PART.search(file.name) or not _ANY_PART.search(file.name))
    ]


def _folder(folder: ModelFolder, library: Library) -> Probed:
    plain = _KINDS.get(folder.dtype, "fp16")
    kind = {"fp16": plain, "other": folder.method or "unknown"}.get(folder.format, folder.format)
    report = Report(
        path=str(folder.path.resolve()),
        name=folder.name,
        kind=kind,
        engine=None if folder.format == "other" else library,
        architecture=folder.architecture,
        parameters=folder.parameters,
        bits=32 if kind == "fp32" else round(folder.bits, 2),
        layers=folder.layers,
        heads=folder.heads,
        kv_heads=folder.kv_heads,
        head_dim=folder.head_dim,
        vocabulary=folder.vocabulary,
        context_tokens=folder.context_tokens,
        rope_theta=folder.rope_theta,
        rope_theta_from=folder.rope.found_at,
        rope_scaling=folder.rope.scaling,
        tied_embeddings=folder.tied,
        template_from=folder.template_from,
        tools=bool(_TOOLS.search(folder.template)),
        calls=folder.calls,
        thinks=THOUGHT_START in folder.template,
        ends=tuple(map(End, folder.ends, folder.end_names)),
        file_bytes=folder.weight_bytes,
        weight_bytes=folder.gpu_bytes,
        token_bytes={form: token_bytes(folder, form) for form in CACHE_BYTES},
        problems=folder.problems,
        warnings=folder.warnings,
    )
    return Probed(report, folder=folder)


def _file(path: Path) -> Probed:
    try:
        found = read_gguf(path)
    except GgufError as error:
        raise EngineError("invalid", str(error)) from error
    head = found.head
    heads = head.figure("attention.head_count")
    kv_heads = head.figure("attention.head_count_kv") or heads
    key = head.figure("attention.key_length") or head.figure("embedding_length") // max(1, heads)
    value = head.figure("attention.value_length") or key
    problems = [] if head.architecture else ["it doesn't say its architecture"]
    if found.parameters and not head.vocabulary:
        problems.append("it has no vocabulary: it is a part of a model, or an adapter")
    warnings = [] if head.template else ["it has no chat template: llama.cpp takes ChatML's"]
    whole = _with_parts(path, found)
    if whole is None:
        problems.append(f"it is one of {found.parts} files, and not all of them are beside it")
    found = whole or found
    report = Report(
        path=str(path.resolve()),
        name=path.stem,
        kind="gguf",
        engine="llamacpp",
        architecture=head.architecture,
        parameters=found.parameters,
        bits=round(8 * found.weight_bytes / found.parameters, 2) if found.parameters else 0.0,
        layers=head.figure("block_count"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=key,
        vocabulary=head.vocabulary,
        context_tokens=head.context_tokens or 0,
        rope_theta=float(head.figure("rope.freq_base")),
        rope_theta_from="rope.freq_base" if head.figure("rope.freq_base") else "default",
        rope_scaling="",
        tied_embeddings=None,
        template_from="tokenizer.chat_template" if head.template else "",
        tools=bool(_TOOLS.search(head.template)),
        calls=bool(_TOOLS.search(head.template)),  # llama.cpp reads calls of many forms
        thinks=THOUGHT_START in head.template,
        ends=() if head.end_id is None else (End(head.end_id, head.end_token),),
        file_bytes=found.size,
        weight_bytes=found.weight_bytes,
        token_bytes={"fp16": head.figure("block_count") * kv_heads * (key + value) * _HALF_BYTES},
        problems=tuple(problems),
        warnings=tuple(warnings),
    )
    return Probed(report, gguf=found)


def _with_parts(path: Path, found: GgufFile) -> GgufFile | None:
    """A file and the others of its model, counted together; None where one is missing."""
    if found.parts == 1:
        return found
    part = _ANY_PART.search(path.name)
    if part is None:
        return None
    size = parameters = weight_bytes = 0
    for at in range(1, found.parts + 1):
        name = f"{path.name[: part.start()]}-{at:0{len(part[1])}}-of-{part[2]}.gguf"
        try:
            one = read_gguf(path.with_name(name))
        except GgufError:
            return None
        size += one.size
        parameters += one.parameters
        weight_bytes += one.weight_bytes
    return GgufFile(found.head, size, parameters, weight_bytes, found.parts)
