"""What can go wrong with an engine, on demand.

A spec gives each fault a probability per request: ``faults: {hang: 0.01}``. A request can also ask
for one by name, with ``[[fault:hang]]`` anywhere in its last message; only faults that the spec
names, be it with probability 0, can be asked for, so that nobody breaks an engine that wasn't set
up to be broken.

Says which fault strikes; what it does is the engine's part.
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Mapping

from engines.base import EngineError


class Fault(enum.Enum):
    """A way to fail, by the name that specs and requests use."""

    DIE = "die"
    """The process ends, hard, in the middle of the answer."""
    HANG = "hang"
    """No further step for any request: iterations stand still, the loop lives."""
    SLOW_FIRST_TOKEN = "slow_first_token"  # noqa: S105  # no password
    """The first token comes SLOW_FIRST_TOKEN_S late."""
    STALL = "stall"
    """The answer stops in its middle and never goes on; others do."""
    FAIL_BEFORE = "fail_before"
    """An error instead of the first token."""
    FAIL_MID = "fail_mid"
    """An error in the middle of the answer."""
    OOM = "oom"
    """Memory runs out during the prompt."""


SLOW_FIRST_TOKEN_S = 2.0
"""Well over any first token a healthy engine needs, well under a client's patience."""

_ASKED = re.compile(r"\[\[fault:([a-z_]+)\]\]")


class Faults:
    """Decides which requests fail and how; the same seed decides the same."""

    def __init__(self, chances: Mapping[str, float], random_: random.Random) -> None:
        """Take fault names to probabilities. Raises EngineError for a name or number out of range."""
        try:
            self._chances = {Fault(name): chance for name, chance in chances.items()}
        except ValueError as error:
            names = ", ".join(fault.value for fault in Fault)
            raise EngineError("invalid", f"{error}; the faults are {names}") from error
        if not all(0 <= chance <= 1 for chance in self._chances.values()):
            raise EngineError("invalid", "a fault's probability is from 0 to 1")
        self._random = random_

    def strike(self, last_message: str) -> Fault | None:
        """Return the fault of one request, if any: the one it asks for, else one by chance."""
        asked = _ASKED.search(last_message)
        if asked is not None:
            for fault in self._chances:
                if fault.value == asked[1]:
                    return fault
        for fault, chance in self._chances.items():
            if chance and self._random.random() < chance:
                return fault
        return None
