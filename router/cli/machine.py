"""What this machine has free for models, as far as anybody says."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from engines.gpus import Gpu, NoAnswer, gpus

TORCH_S = 60.0
"""Importing torch for the first time after a start reads gigabytes from disk."""

_MEMORY = Path("/proc/meminfo")

ASK_TORCH = """
import json, torch
print(json.dumps([
    [at, torch.cuda.get_device_name(at), *reversed(torch.cuda.mem_get_info(at)),
     "%d.%d" % torch.cuda.get_device_capability(at)]
    for at in range(torch.cuda.device_count())
]))
"""


def found_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs by nvidia-smi, else by torch in a process of its own; and why there are none, where somebody says."""
    try:
        found = gpus()
    except NoAnswer as error:
        return (), str(error)
    if found is not None:
        return found, "" if found else "nvidia-smi sees no GPU"
    return _by_torch(), ""


def _by_torch() -> tuple[Gpu, ...]:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ()
    if version.endswith("+cpu"):
        return ()
    output = ask_python(ASK_TORCH, TORCH_S)
    try:
        rows = json.loads(output)
        return tuple(
            Gpu(at, name, total, free, "", capability) for at, name, total, free, capability in rows
        )
    except (TypeError, ValueError):
        return ()


def ask_python(code: str, timeout_s: float, on_error: Callable[[str], str] = lambda _: "") -> str:
    """What a program prints in a Python of its own, or what ``on_error`` makes of its last words."""
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and code that is written here
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return on_error(str(error))
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return on_error(lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout


def free_memory(file: Path = _MEMORY) -> int | None:
    """Bytes of this machine's memory that can be had; None where it isn't Linux."""
    try:
        for line in file.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        return None
    return None
