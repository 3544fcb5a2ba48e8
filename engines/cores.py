"""How many threads a computation may keep busy.

llama.cpp counts the machine's cores. In a container, or bound to some of them, it then runs more threads than cores;
they wait for each other at every layer, and an answer takes several times as long.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
CPUINFO = Path("/proc/cpuinfo")


def limited_threads(quota: Path = QUOTA) -> int | None:
    """Threads this process may keep busy, None where all of the machine is its own."""
    cores = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    usable = min(bound, _quota_cores(quota) or cores)
    return usable if usable < cores else None


def _quota_cores(quota: Path) -> int | None:
    try:
        share, period = quota.read_text().split()
        return max(1, int(share) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # not Linux, no cgroup, or "max"
        return None


def described(threads: int | None) -> str:
    """The processor and how many threads of it a computation has: what its speed depends on."""
    count = threads or limited_threads() or os.cpu_count() or 1
    try:
        rows = (line.partition(":") for line in CPUINFO.read_text().splitlines())
        name = next((value.strip() for key, _, value in rows if key.strip() == "model name"), "")
    except OSError:
        name = ""
    unit = "thread" if count == 1 else "threads"
    return f"{count} {unit} of {name or platform.processor() or platform.machine()}"
