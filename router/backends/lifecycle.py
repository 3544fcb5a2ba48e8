"""The states of one local engine's process, when it is started again, and whether it makes progress. Pure.

              START          DIALLED         LOADED
    STOPPED --------> STARTING -----> LOADING -----> READY
                        ^  |             |             |
                  RETRY |  +------+------+----- CRASHED, from any of the three
                        |         v      |
                        +----- BACKOFF   +-- REFUSED --> FAILED    (STARTING and LOADING only)

    CLOSE leads from every state but STOPPED to DRAINING, and GONE from there to STOPPED.

Source: systemd's RestartSec and RestartMaxDelaySec for the pauses.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from engines.protocol import Status
from router.errors import IllegalMove

TICK_S = 0.25
"""How often a node's health is looked at: as often as its heartbeat comes."""


class State(enum.Enum):
    """Where a node stands. The value is the name in events."""

    STOPPED = "stopped"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"


class Move(enum.Enum):
    """What happens to a node."""

    START = "start"
    DIALLED = "dialled"
    LOADED = "loaded"
    CRASHED = "crashed"
    REFUSED = "refused"
    RETRY = "retry"
    CLOSE = "close"
    GONE = "gone"


TRANSITIONS: Mapping[State, Mapping[Move, State]] = MappingProxyType(
    {
        State.STOPPED: {Move.START: State.STARTING},
        State.STARTING: {
            Move.DIALLED: State.LOADING,
            Move.CRASHED: State.BACKOFF,
            Move.REFUSED: State.FAILED,
            Move.CLOSE: State.DRAINING,
        },
        State.LOADING: {
            Move.LOADED: State.READY,
            Move.CRASHED: State.BACKOFF,
            Move.REFUSED: State.FAILED,
            Move.CLOSE: State.DRAINING,
        },
        State.READY: {Move.CRASHED: State.BACKOFF, Move.CLOSE: State.DRAINING},
        State.BACKOFF: {Move.RETRY: State.STARTING, Move.CLOSE: State.DRAINING},
        State.FAILED: {Move.CLOSE: State.DRAINING},
        State.DRAINING: {Move.GONE: State.STOPPED},
    }
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a node is started, and how long it is waited for. Seconds."""

    python: str = sys.executable
    start_s: float = 60.0
    """From the process to its socket: imports, from a cold disk."""
    load_s: float = 1800.0
    """From the socket to a loaded model; hundreds of gigabytes from a network disk take this long."""
    silence_s: float = 3.0
    """Twelve heartbeats."""
    hang_s: float = 30.0
    """One prefill step of a long prompt on a CPU takes seconds; nothing takes this long."""
    backoff_s: float = 0.2
    max_backoff_s: float = 30.0
    calm_s: float = 60.0
    """Ready for this long, and earlier crashes are forgotten."""
    grace_s: float = 2.0
    """Between asking a process to end, or its hanging up, and killing it."""


class Lifecycle:
    """A node's state and its pauses. Pure."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._settings = settings
        self._crashes = 0
        self._ready_at: float | None = None
        self.state = State.STOPPED
        self.was_ready = False

    def move(self, event: Move, now: float) -> State:
        """The state after ``event``. Raises IllegalMove."""
        state = TRANSITIONS[self.state].get(event)
        if state is None:
            raise IllegalMove(f"engine {self._name}", self.state.value, event.value)
        if state is State.READY:
            self._ready_at = now
            self.was_ready = True
        elif event is Move.CRASHED:
            self._count_crash(now)
        self.state = state
        return state

    @property
    def pause_s(self) -> float:
        """How long to wait after the last crash."""
        settings = self._settings
        doublings = min(self._crashes - 1, 30)  # past any sensible maximum, before floats overflow
        return float(min(settings.max_backoff_s, settings.backoff_s * 2**doublings))

    def _count_crash(self, now: float) -> None:
        if self._ready_at is not None and now - self._ready_at >= self._settings.calm_s:
            self._crashes = 0
        self._ready_at = None
        self._crashes += 1


class Watch:
    """Whether a ready node makes progress. Pure."""

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._heard_at = now
        self._progress_at = now
        self._looked_at = now
        self._iterations = -1

    def hear(self, status: Status, now: float) -> None:
        """A heartbeat came."""
        self._heard_at = now
        health = status.health
        idle = not health.running and not health.waiting
        if idle or health.iterations != self._iterations:
            self._progress_at = now
            self._iterations = health.iterations

    def complaint(self, now: float) -> str | None:
        """What is wrong with the node, or None. To be asked every TICK_S.

        Where the question itself comes late, this process stood still (stopped, or starved of CPU), and the node is
        not to blame for what went unheard meanwhile.
        """
        late = now - self._looked_at - 4 * TICK_S
        self._looked_at = now
        if late > 0:
            self._heard_at = now
            self._progress_at = min(now, self._progress_at + late)
        settings = self._settings
        if now - self._heard_at > settings.silence_s:
            return f"no heartbeat for {settings.silence_s:g} s"
        if now - self._progress_at > settings.hang_s:
            return f"requests run, but nothing moved for {settings.hang_s:g} s"
        return None
