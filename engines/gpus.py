"""The NVIDIA GPUs of this machine, as its driver tells them: no torch, and no error where there are none.

Source: https://docs.nvidia.com/deploy/nvidia-smi/
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

log = logging.getLogger(__name__)

TIMEOUT_S = 20.0
"""A driver whose daemon doesn't run takes seconds to wake a GPU."""

ASK_AGAIN_S = 0.1

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


@contextlib.contextmanager
def turn(numbers: Sequence[int]) -> Iterator[None]:
    """Load onto GPUs of those numbers while no other engine of this user does: two that look at once both see the same
    memory as free. Blocks; a process that dies gives its turn back. Where no lock can be had it goes on without one.
    """
    with contextlib.ExitStack() as locks:
        for number in sorted(set(numbers)):
            locks.enter_context(_turn(number))
        yield


@contextlib.contextmanager
def _turn(number: int) -> Iterator[None]:
    path = Path(tempfile.gettempdir(), f"nenya-{os.getuid()}-gpu-{number}.lock")
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        log.warning("engines may load onto GPU %d at once: %s", number, error)
        yield
        return
    try:
        waits = False
        while not _locked(file):
            if not waits:
                log.info("waiting for another engine that loads onto GPU %d", number)
            waits = True
            time.sleep(ASK_AGAIN_S)
        yield
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
