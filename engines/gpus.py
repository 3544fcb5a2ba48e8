"""The NVIDIA GPUs of this machine, as its driver tells them: no torch, and no error where there are none.

Source: https://docs.nvidia.com/deploy/nvidia-smi/
"""

from __future__ import annotations

import shutil
import subprocess

from msgspec import Struct

TIMEOUT_S = 20.0
"""A driver whose daemon doesn't run takes seconds to wake a GPU."""

_FIELDS = "index,name,memory.total,memory.free,driver_version,compute_cap"


class Gpu(Struct, frozen=True):
    """One GPU."""

    index: int
    """As nvidia-smi numbers them."""
    name: str
    total_bytes: int
    free_bytes: int
    driver: str
    """The driver's version."""
    capability: str
    """Of its kernels, such as ``9.0``; empty where the driver doesn't say."""


class NoAnswer(Exception):  # noqa: N818 - the name says the state
    """There is a driver's tool, and it doesn't say what GPUs there are; the message says why."""


def gpus() -> tuple[Gpu, ...] | None:
    """Return them, none where there is no driver. Raises NoAnswer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603 - the driver's tool
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoAnswer(f"nvidia-smi can't be asked: {error}") from error
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        raise NoAnswer(f"nvidia-smi says: {said[:200] or f'exit code {done.returncode}'}")
    return parse(done.stdout)


def parse(text: str) -> tuple[Gpu, ...]:
    """Read nvidia-smi's rows. Raises NoAnswer."""
    return tuple(_row(line) for line in text.splitlines() if line.strip())


def _row(line: str) -> Gpu:
    try:
        index, name, total, free, driver, capability = (cell.strip() for cell in line.split(","))
        return Gpu(
            index=int(index),
            name=name,
            total_bytes=int(total) << 20,
            free_bytes=int(free) << 20,
            driver=driver,
            capability=capability if capability[:1].isdigit() else "",
        )
    except ValueError as error:
        raise NoAnswer(f"nvidia-smi says {line.strip()[:100]!r}") from error
