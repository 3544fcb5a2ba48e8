"""What there is on this machine, asked and not judged: packages, tools, GPUs, limits, ports, models.

Nothing heavy is imported here: versions come from packages' metadata, and torch is asked in a process of its own, which
may take as long as it may take and no longer.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from msgspec import Struct

from engines.gpus import Gpu, NoAnswer, gpus
from router.cli.machine import TORCH_S, ask_python
from router.config import address

TOOL_S = 20.0
"""Longest for a tool to say its version."""

PORT_S = 1.0
"""Longest for whoever holds a port to say who it is."""

ASK_TORCH = """
import json, os, sys, importlib.util
import torch
from torch.utils import cpp_extension
cuda = torch.version.cuda
root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(
    cpp_extension.get_default_build_root(),
    "py%d%d%s_%s" % (*sys.version_info[:2], getattr(sys, "abiflags", ""),
                     "cu" + cuda.replace(".", "") if cuda else "cpu"))
def extension(name):
    spec = importlib.util.find_spec(name)
    return {"installed": bool(spec and spec.origin), "built": os.path.join(root, name, name + ".so")}
error, available = "", False
try:
    available = torch.cuda.is_available()
    if not available and cuda:
        torch.cuda.init()
except Exception as failure:
    error = " ".join(str(failure).split())
print(json.dumps({
    "version": torch.__version__, "cuda": cuda or "", "hip": torch.version.hip or "",
    "available": available, "error": error, "arches": torch.cuda.get_arch_list() if available else [],
    "cuda_home": cpp_extension.CUDA_HOME or "",
    "extensions": {name: extension(name + "_ext") for name in ("exllamav2", "exllamav3")},
}))
"""

_PACKAGES = ("nenya", "exllamav2", "exllamav3", "flash-attn", "torch", "xllamacpp")


class Extension(Struct, frozen=True):
    """A library's compiled kernels."""

    installed: bool = False
    """Whether they came ready made."""
    built: str = ""
    """Where they are, or would be, once they were compiled."""

    @property
    def is_there(self) -> bool:
        """Whether nothing is left to compile."""
        return self.installed or (self.built != "" and Path(self.built).is_file())


class Torch(Struct, frozen=True, kw_only=True):
    """What torch says of itself."""

    version: str
    cuda: str
    """That it was built for; empty for none."""
    hip: str = ""
    available: bool
    """Whether it can use a GPU."""
    error: str = ""
    """Why not, in its words."""
    arches: tuple[str, ...] = ()
    """GPUs that it has kernels for, such as ``sm_90``."""
    cuda_home: str = ""
    """Where it looks for nvcc."""
    extensions: dict[str, Extension] = {}
    """By their libraries."""


class Tool(Struct, frozen=True):
    """A program, and its version where it said one."""

    path: str
    version: str = ""


class Port(Struct, frozen=True):
    """An address that the server would take."""

    option: str
    address: str
    trouble: str = ""
    """Why it can't be had; empty where it can."""
    is_nenya: bool = False
    """Whether a Nenya has it already."""


class Facts(Struct, frozen=True, kw_only=True):
    """Everything that is judged."""

    python: tuple[int, int, int]
    executable: str
    requirements: tuple[str, ...]
    """Of this package, as its metadata has them."""
    versions: Mapping[str, str]
    """Of installed packages, by their names."""
    open_files: int
    ports: tuple[Port, ...]
    gpus: tuple[Gpu, ...] | None
    """None where there is no driver."""
    gpu_error: str = ""
    driver_cuda: str = ""
    """The newest CUDA that the driver knows."""
    cuda_home: str = ""
    """The environment's, if it names one."""
    nvcc: Tool | None = None
    compiler: Tool | None = None
    python_headers: bool = True
    ninja: Tool | None = None
    torch: Torch | None = None
    """None where it isn't installed, or wasn't asked."""
    torch_error: str = ""
    """Why it didn't answer."""
    compiled: frozenset[str] = frozenset()
    """Libraries whose kernels are there."""


def collect(addresses: Mapping[str, str], *, ask_torch: bool) -> Facts:
    """Ask everybody, at the same time. ``addresses``: those of the server, by their options."""
    with ThreadPoolExecutor(5) as threads:
        cards = threads.submit(_gpus)
        newest = threads.submit(_driver_cuda)
        told = threads.submit(_torch) if ask_torch else None
        nvcc = threads.submit(_nvcc)
        compiler = threads.submit(_tool, os.environ.get("CXX", ""), "c++", "g++")
        requirements = _requirements()
        names = {*_PACKAGES, *map(name_of, requirements)}
        torch, torch_error = (None, "") if told is None else told.result()
        found, gpu_error = cards.result()
        return Facts(
            python=sys.version_info[:3],
            executable=sys.executable,
            requirements=requirements,
            versions=_versions(names),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ports=tuple(_port(option, text) for option, text in addresses.items()),
            gpus=found,
            gpu_error=gpu_error,
            driver_cuda=newest.result(),
            cuda_home=_cuda_home(),
            nvcc=nvcc.result(),
            compiler=compiler.result(),
            python_headers=(Path(sysconfig.get_path("include")) / "Python.h").is_file(),
            ninja=_tool(str(Path(sys.executable).parent / "ninja"), "ninja"),
            torch=torch,
            torch_error=torch_error,
            compiled=_compiled(torch),
        )


def _compiled(torch: Torch | None) -> frozenset[str]:
    found = {} if torch is None else torch.extensions
    return frozenset(name for name, extension in found.items() if extension.is_there)


def name_of(requirement: str) -> str:
    """The package that a requirement is about."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0].casefold() if found is not None else ""


def _requirements() -> tuple[str, ...]:
    try:
        return tuple(importlib.metadata.requires("nenya") or ())
    except importlib.metadata.PackageNotFoundError:
        return ()


def _versions(names: Collection[str]) -> dict[str, str]:
    found = {}
    for name in sorted(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpus() -> tuple[tuple[Gpu, ...] | None, str]:
    try:
        return gpus(), ""
    except NoAnswer as error:
        return (), str(error)


def _output(*command: str) -> str:
    """What a tool says; nothing where it can't be run."""
    try:
        done = subprocess.run(  # noqa: S603 - tools by their own paths
            command, capture_output=True, text=True, timeout=TOOL_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _driver_cuda() -> str:
    tool = shutil.which("nvidia-smi")
    found = re.search(r"CUDA Version:\s*([0-9.]+)", _output(tool)) if tool is not None else None
    return found[1] if found is not None else ""


def _cuda_home() -> str:
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or ""


def _nvcc() -> Tool | None:
    """Where torch looks for it: in the folder that the environment names and nowhere else, where it names one."""
    home = _cuda_home()
    if home:
        return _tool(str(Path(home) / "bin" / "nvcc"))
    return _tool("nvcc", "/usr/local/cuda/bin/nvcc")


def _tool(*places: str) -> Tool | None:
    path = next((found for place in places if place and (found := shutil.which(place))), None)
    if path is None:
        return None
    said = _output(path, "--version")
    version = re.search(r"release (\d+\.\d+)", said) or re.search(r"\d+\.\d+(\.\d+)?", said)
    return Tool(path, "" if version is None else version[1 if "release" in version[0] else 0])


def _torch() -> tuple[Torch | None, str]:
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None, ""
    errors: list[str] = []

    def note(error: str) -> str:
        errors.append(error)
        return ""

    said = ask_python(ASK_TORCH, TORCH_S, note)
    if errors:
        return None, errors[0]
    lines = said.strip().splitlines() or [""]
    try:
        return msgspec.json.decode(lines[-1], type=Torch), ""
    except msgspec.MsgspecError:
        return None, f"it said {lines[-1][:100]!r}"


def _port(option: str, text: str) -> Port:
    where = address.split(text)
    if where is None:
        return Port(option, text, "it is no host:port")
    try:
        infos = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
        family, _, _, _, place = infos[0]
        socket.create_server(place[:2], family=family).close()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        return Port(option, text, why, _is_nenya(where.host, where.port))
    return Port(option, text)


def _is_nenya(host: str, port: int) -> bool:
    """Whether the admin port of a Nenya answers there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    try:
        with socket.create_connection((host, port), PORT_S) as connection:
            connection.settimeout(PORT_S)
            connection.sendall(
                f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
            )
            said = b""
            while (data := connection.recv(4096)) and len(said) < 4096:
                said += data
    except OSError:
        return False
    return b"<title>Nenya</title>" in said
