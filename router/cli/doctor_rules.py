"""What the facts of a machine mean: a line for each, whether it is well, and what to do where it isn't. Pure.

Source: https://docs.nvidia.com/deploy/cuda-compatibility/ (a driver runs what any CUDA of its major version built),
https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/ (which nvcc knows which GPU),
https://github.com/turboderp-org/exllamav2 at 0.3.2 (setup.py, ext.py)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import takewhile
from typing import Literal

from msgspec import Struct

from engines.exl2.memory import GIB
from router.cli.doctor_facts import Facts, Torch, name_of

State = Literal["ok", "missing", "wrong"]

_LIBRARIES = {
    "exllamav2": (  # the project is archived, there will be no other
        "==0.3.2",
        "pip install 'nenya[exllamav2]' && pip install --no-deps exllamav2==0.3.2",
    ),
    "exllamav3": (
        ">=1.6.5",
        "pip install 'nenya[exllamav2]' && pip install exllamav3==1.6.5",
    ),
}
"""What computes on GPUs: the releases that the engines are written for, and how they are installed."""

LEAST_PYTHON = (3, 11)
LEAST_FILES = 1024
"""Open files with which some hundred requests can be served at a time."""

FLASH_ATTENTION = "2.5.7"
"""The first with paged attention."""

_NVCC_SINCE: dict[tuple[int, ...], tuple[int, int]] = {
    (8, 9): (11, 8), (9, 0): (11, 8), (10, 0): (12, 8), (10, 3): (12, 9), (12, 0): (12, 8), (12, 1): (12, 9)
}  # fmt: skip
"""The first CUDA whose compiler knows a GPU; older ones were known before."""


class Need(Struct, frozen=True):
    """What a config asks of a machine."""

    kinds: frozenset[str] = frozenset({"llamacpp"})
    """Of its engines."""
    gpus: frozenset[int] = frozenset()
    """That its engines name."""
    tensor_parallel: bool = False
    connections: int = 10_000
    """``server.max_connections``."""
    everything: bool = False
    """Whether to tell of what isn't needed, too."""

    @property
    def asks_gpu(self) -> bool:
        """Whether anybody wants to know of GPUs."""
        return self.everything or bool(_LIBRARIES.keys() & self.kinds)


class Check(Struct, frozen=True):
    """One line."""

    name: str
    state: State
    detail: str
    fix: str = ""
    """What to do; empty where all is well."""
    needed: bool = True
    """Whether the config can't be served without it."""


def judge(facts: Facts, need: Need) -> Iterator[Check]:
    """Every line but those about models."""
    yield _python(facts)
    yield from _packages(facts)
    yield _open_files(facts, need)
    yield from _ports(facts)
    yield from _llamacpp(facts, need)
    if not need.asks_gpu:
        return
    yield from _gpu_lines(facts, need)


def _gpu_lines(facts: Facts, need: Need) -> Iterator[Check]:
    wanted = _LIBRARIES.keys() & need.kinds
    installed = _LIBRARIES.keys() & facts.versions.keys()
    told = wanted | ({"exllamav2"} | installed if need.everything else set())
    needed = bool(wanted)
    yield _driver(facts, need, needed=needed)
    yield _torch(facts, needed=needed)
    tools = []
    if not told <= facts.compiled:
        tools = [tool(facts, needed=needed) for tool in (_nvcc, _compiler, _ninja)]
        yield from tools
    able = all(tool.state == "ok" for tool in tools)
    for library in sorted(told):
        yield _library(facts, library, needed=library in wanted)
        yield _kernels(facts, library, able=able, needed=library in wanted)
    # torch and ninja have lines of their own.
    beside = [one for one in _extra(facts, "exllamav2") if name_of(one) not in {"torch", "ninja"}]
    yield _all_of("GPU packages", facts, beside, "pip install 'nenya[exllamav2]'", needed=needed)
    if "exllamav2" in told:
        yield _flash_attention(facts, need, needed="exllamav2" in wanted)


def numbers(version: str) -> tuple[int, ...]:
    """The numbers at a version's start: 2.9.0+cu128 is (2, 9, 0)."""
    parts = (re.match(r"\d+", part) for part in version.partition("+")[0].split("."))
    return tuple(int(part[0]) for part in takewhile(bool, parts) if part is not None)


def meets(version: str, requirement: str) -> bool:
    """Whether a version is within a requirement such as ``aiohttp<3.15,>=3.14.5``."""
    bounds = requirement.partition(";")[0].strip()[len(name_of(requirement)) :]
    have = numbers(version)
    for sign, bound in re.findall(r"(>=|<=|==|!=|<|>)\s*([0-9.]+)", bounds):
        want = numbers(bound)
        size = max(len(have), len(want))
        a, b = (one + (0,) * (size - len(one)) for one in (have, want))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}[
            sign
        ]:
            return False
    return True


def _python(facts: Facts) -> Check:
    version = ".".join(map(str, facts.python))
    if facts.python[:2] < LEAST_PYTHON:
        return Check(
            "Python", "wrong", f"{version} at {facts.executable}", "install Python 3.11 or newer"
        )
    return Check("Python", "ok", f"{version} at {facts.executable}")


def _packages(facts: Facts) -> Iterator[Check]:
    if "nenya" not in facts.versions:
        said = "runs from a folder: what it requires is unknown"
        yield Check("nenya", "missing", said, "pip install -e .", needed=False)
    else:
        yield Check("nenya", "ok", facts.versions["nenya"])
        core = [one for one in facts.requirements if "extra ==" not in one]
        yield _all_of("core packages", facts, core, "pip install --upgrade nenya")


def _all_of(
    name: str, facts: Facts, requirements: Collection[str], fix: str, *, needed: bool = True
) -> Check:
    """One line for several packages: those that are lacking, or all of them."""
    checks = [_package(facts, one, fix) for one in requirements]
    bad = [one for one in checks if one.state != "ok"]
    said = ", ".join(f"{one.name} {one.detail}" for one in bad or checks)
    state: State = "ok" if not bad else "wrong" if bad[0].state == "wrong" else "missing"
    return Check(name, state, said, fix if bad else "", needed)


def _package(facts: Facts, requirement: str, fix: str, *, needed: bool = True) -> Check:
    name = name_of(requirement)
    version = facts.versions.get(name)
    bounds = requirement.partition(";")[0].strip()[len(name) :]
    if version is None:
        return Check(name, "missing", "not installed", fix, needed)
    if not meets(version, requirement):
        return Check(name, "wrong", f"{version}, and {bounds} is required", fix, needed)
    return Check(name, "ok", version, needed=needed)


def _open_files(facts: Facts, need: Need) -> Check:
    if facts.open_files < need.connections:
        return Check(
            "open files",
            "wrong",
            f"{facts.open_files} for up to {need.connections} connections (server.max_connections)",
            f"ulimit -n {max(65_536, 2 * need.connections)}, or LimitNOFILE= in its systemd unit",
            needed=facts.open_files < LEAST_FILES,
        )
    return Check("open files", "ok", str(facts.open_files))


def _ports(facts: Facts) -> Iterator[Check]:
    runs = any(port.is_nenya for port in facts.ports)
    for port in facts.ports:
        name = f"port {port.address}"
        if not port.trouble:
            yield Check(name, "ok", "free")
        elif runs:
            yield Check(name, "ok", "in use, by a Nenya that runs")
        else:
            yield Check(
                name,
                "wrong",
                port.trouble,
                f"choose another with {port.option}, or stop what has it",
            )


def _llamacpp(facts: Facts, need: Need) -> Iterator[Check]:
    needed = "llamacpp" in need.kinds
    if not needed and not need.everything:
        return
    for requirement in _extra(facts, "llamacpp"):
        yield _package(facts, requirement, "pip install 'nenya[llamacpp]'", needed=needed)


def _extra(facts: Facts, name: str) -> list[str]:
    return [one for one in facts.requirements if re.search(rf"extra == ['\"]{name}['\"]", one)]


def _driver(facts: Facts, need: Need, *, needed: bool) -> Check:
    if facts.gpu_error:
        fix = "restart, or reinstall the NVIDIA driver; in a container, start it with --gpus all"
        return Check("GPU", "wrong", facts.gpu_error, fix, needed)
    if not facts.gpus:
        why = (
            "no NVIDIA driver (there is no nvidia-smi)"
            if facts.gpus is None
            else "the driver sees no GPU"
        )
        fix = "install NVIDIA's driver; in a container, start it with --gpus all"
        return Check("GPU", "missing", why, fix, needed)
    names = ", ".join(
        f"{one.index} {one.name} ({one.free_bytes / GIB:.1f} of {one.total_bytes / GIB:.1f} GiB free)"
        for one in facts.gpus
    )
    newest = f", for CUDA up to {facts.driver_cuda}" if facts.driver_cuda else ""
    absent = sorted(need.gpus - {one.index for one in facts.gpus})
    if absent:
        fix = f"set `gpus` to what there is: {', '.join(str(one.index) for one in facts.gpus)}"
        return Check(
            "GPU", "wrong", f"the config names GPU {absent[0]}, and there are {names}", fix, needed
        )
    return Check("GPU", "ok", f"{names}; driver {facts.gpus[0].driver}{newest}", needed=needed)


def _torch(facts: Facts, *, needed: bool) -> Check:
    version = facts.versions.get("torch")
    if version is None:
        fix = "pip install torch, built for your driver's CUDA: docs/exllamav2.md"
        return Check("torch", "missing", "not installed", fix, needed)
    required = next((one for one in _extra(facts, "exllamav2") if name_of(one) == "torch"), "torch")
    if not meets(version, required):
        return _package(facts, required, "pip install --upgrade torch", needed=needed)
    told = facts.torch
    if told is None:
        why = facts.torch_error or "not asked"
        said = f"{version} can't be imported: {why}"
        return Check("torch", "wrong", said, "pip install --force-reinstall torch", needed)
    trouble = _torch_trouble(facts, told)
    if trouble is not None:
        return Check("torch", "wrong", f"{version}: {trouble[0]}", trouble[1], needed)
    return Check("torch", "ok", f"{version}, for CUDA {told.cuda}", needed=needed)


def _torch_trouble(facts: Facts, told: Torch) -> tuple[str, str] | None:
    """What keeps it from the GPU, and what to do."""
    if not told.cuda:
        built = "ROCm" if told.hip else "CPUs"
        return (
            f"built for {built} alone",
            "pip install --force-reinstall torch, built for CUDA: docs/exllamav2.md",
        )
    if not told.available:
        if facts.driver_cuda and numbers(told.cuda)[:1] > numbers(facts.driver_cuda)[:1]:
            fix = (
                f"update the driver, or take a torch built for CUDA {numbers(facts.driver_cuda)[0]}"
            )
            return f"built for CUDA {told.cuda}, the driver knows {facts.driver_cuda}", fix
        return f"sees no GPU{f': {told.error}' if told.error else ''}", "see the line about the GPU"
    for gpu in facts.gpus or ():
        if gpu.capability and told.arches and not _has_kernels(told.arches, gpu.capability):
            return (
                f"has no kernels for {gpu.name} (capability {gpu.capability})",
                "take a newer torch, or for an old GPU an older one",
            )
    return None


def _has_kernels(arches: Collection[str], capability: str) -> bool:
    """Whether kernels of these names run there: of the same major version and not newer, or as PTX."""
    major, minor = numbers(capability)[:2]
    for arch in arches:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", arch)
        if found is not None:
            for_major, for_minor = int(found[2]), int(found[3])
            same = for_major == major and for_minor <= minor
            if same or (found[1] == "compute" and (for_major, for_minor) <= (major, minor)):
                return True
    return False


def _kernels(facts: Facts, library: str, *, able: bool, needed: bool) -> Check:
    """Whether a library's kernels are there, or can be compiled: ``able`` where the tools for it are."""
    name = f"{library} kernels"
    if library in facts.compiled and facts.torch is not None:
        extension = facts.torch.extensions[library]
        where = "installed" if extension.installed else f"at {extension.built}"
        return Check(name, "ok", f"compiled, {where}", needed=needed)
    if facts.torch is None or not facts.torch.cuda:
        said = "not compiled, and torch for CUDA is needed to"
        return Check(name, "missing", said, "see the line about torch", needed)
    if not able:
        return Check(name, "missing", "not compiled, and can't be", "see the lines before", needed)
    said = f"not compiled yet: the first start does it, or python -c 'import {library}.ext'"
    return Check(name, "ok", said, needed=needed)


def _nvcc(facts: Facts, *, needed: bool) -> Check:
    torch_cuda = facts.torch.cuda if facts.torch is not None else ""
    if facts.nvcc is None and facts.cuda_home:
        said = f"not in {facts.cuda_home}, which CUDA_HOME names"
        return Check("nvcc", "wrong", said, "set CUDA_HOME to the folder that has bin/nvcc", needed)
    if facts.nvcc is None:
        fix = f"install the CUDA toolkit {torch_cuda}".rstrip()
        fix += "; set CUDA_HOME where it isn't /usr/local/cuda"
        return Check("nvcc", "missing", "not found", fix, needed)
    said = f"{facts.nvcc.version} at {facts.nvcc.path}"
    have = numbers(facts.nvcc.version)
    if torch_cuda and have[:1] != numbers(torch_cuda)[:1]:
        fix = f"install the CUDA toolkit {torch_cuda}, and set CUDA_HOME to it"
        return Check("nvcc", "wrong", f"{said}, torch is built for CUDA {torch_cuda}", fix, needed)
    for gpu in facts.gpus or ():
        since = _NVCC_SINCE.get(numbers(gpu.capability)[:2])
        if since is not None and have[:2] < since:
            fix = f"install a CUDA toolkit of {since[0]}.{since[1]} or newer"
            return Check("nvcc", "wrong", f"{said} doesn't know {gpu.name}", fix, needed)
    return Check("nvcc", "ok", said, needed=needed)


def _compiler(facts: Facts, *, needed: bool) -> Check:
    if facts.compiler is None:
        fix = "apt install g++, or name one by the variable CXX"
        return Check("C++ compiler", "missing", "not found", fix, needed)
    said = f"{facts.compiler.version} at {facts.compiler.path}"
    if not facts.python_headers:
        fix = "apt install python3-dev, of the same version of Python"
        return Check("C++ compiler", "wrong", f"{said}, without Python.h", fix, needed)
    return Check("C++ compiler", "ok", said, needed=needed)


def _ninja(facts: Facts, *, needed: bool) -> Check:
    if facts.ninja is None:
        return Check("ninja", "missing", "not found", "pip install ninja", needed)
    return Check("ninja", "ok", f"{facts.ninja.version} at {facts.ninja.path}", needed=needed)


def _library(facts: Facts, name: str, *, needed: bool) -> Check:
    wanted, fix = _LIBRARIES[name]
    version = facts.versions.get(name)
    if version is None:
        return Check(name, "missing", "not installed", fix, needed)
    if not meets(version, f"{name}{wanted}"):
        return Check(name, "wrong", f"{version}, and {wanted} is required", fix, needed)
    return Check(name, "ok", version, needed=needed)


def _flash_attention(facts: Facts, need: Need, *, needed: bool) -> Check:
    version = facts.versions.get("flash-attn")
    needed = needed and need.tensor_parallel
    fix = f"pip install 'flash-attn>={FLASH_ATTENTION}' --no-build-isolation"
    if version is not None and numbers(version) >= numbers(FLASH_ATTENTION):
        return Check("flash-attn", "ok", version, needed=needed)
    if needed:
        said = "not installed" if version is None else f"{version} is too old"
        return Check("flash-attn", "missing", f"{said}, and tensor_parallel needs it", fix)
    return Check(
        "flash-attn", "ok", "not installed: torch's own attention takes its place", needed=False
    )
