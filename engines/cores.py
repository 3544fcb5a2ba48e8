"""How many threads a computation may keep busy.

llama.cpp counts the machine's cores. In a container, or bound to some of them, it then runs more threads than cores;
they wait for each other at every layer, and an answer takes several times as long.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
"""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


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
