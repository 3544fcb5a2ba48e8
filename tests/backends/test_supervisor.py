"""Owning a node's process: the decisions on a clock by hand, the rest with real processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

import engines
from engines.base import EngineError, GenerateRequest, Health
from engines.protocol import VERSION, Status
from engines.specs import ExLlamaV2Spec, SimulatedSpec
from router.backends.base import Limits, Order
from router.backends.engine import EngineBackend
from router.backends.lifecycle import (
    TICK_S,
    TRANSITIONS,
    Lifecycle,
    Move,
    Settings,
    State,
    Watch,
)
from router.backends.supervisor import LocalNode
from router.errors import Fault, FaultKind, IllegalMove
from router.events import NodeState
from router.wire import sse
from router.wire.chat import decode_chat

ROOT = str(Path(engines.__path__[0]).parent)
FAST = SimulatedSpec(ttft_ms=1, tokens_per_s=1000, faults={"hang": 0})
SLOW = SimulatedSpec(ttft_ms=1, tokens_per_s=50, answer_tokens=1000)


# Decisions.


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Move)
def test_the_table_is_all_there_is(state, event):
    life = Lifecycle("e", Settings())
    life.state = state
    if event in TRANSITIONS[state]:
        assert life.move(event, 0.0) is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalMove, match=f"engine e: {event.value} .* {state.value}"):
            life.move(event, 0.0)
        assert life.state is state


def crash(life: Lifecycle, now: float, *, ready: bool) -> float:
    life.move(Move.START if life.state is State.STOPPED else Move.RETRY, now)
    if ready:
        life.move(Move.DIALLED, now)
        life.move(Move.LOADED, now)
    return now


def test_pauses_double_up_to_the_most():
    life = Lifecycle("e", Settings(backoff_s=0.2, max_backoff_s=3))
    pauses = []
    for _ in range(7):
        crash(life, 0.0, ready=False)
        life.move(Move.CRASHED, 0.0)
        pauses.append(life.pause_s)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3, 3, 3]
    assert not life.was_ready


@pytest.mark.parametrize(("ready_s", "pause_s"), [(59.9, 0.8), (60.0, 0.2)])
def test_calm_forgets_crashes(ready_s, pause_s):
    life = Lifecycle("e", Settings())
    for _ in range(2):
        crash(life, 0.0, ready=True)
        life.move(Move.CRASHED, 1.0)
    crash(life, 10.0, ready=True)
    life.move(Move.CRASHED, 10.0 + ready_s)
    assert life.pause_s == pytest.approx(pause_s)
    assert life.was_ready


@given(st.lists(st.sampled_from(Move), max_size=200))
def test_no_walk_leaves_the_table(events):
    life = Lifecycle("e", Settings())
    for now, event in enumerate(events):
        with contextlib.suppress(IllegalMove):
            life.move(event, float(now))
        if life.state is State.BACKOFF:
            assert 0.2 <= life.pause_s <= 30


class Watched:
    """A Watch that is asked every tick."""

    def __init__(self):
        self.now = 100.0
        self.watch = Watch(Settings(silence_s=3, hang_s=30), self.now)

    def run(self, seconds, status=None, step=0):
        """The first complaint within that time; a status is heard every tick, its iterations growing."""
        iterations = status.health.iterations if status is not None else 0
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            if status is not None:
                iterations += step
                health = msgspec.structs.replace(status.health, iterations=iterations)
                self.watch.hear(Status(health), self.now)
            if complaint := self.watch.complaint(self.now):
                return complaint
        return None


def test_silence_is_a_hang():
    watched = Watched()
    assert watched.run(10, Status(Health())) is None
    assert watched.run(3) is None
    assert watched.run(0.25) == "no heartbeat for 3 s"


@pytest.mark.parametrize("health", [Health(5, running=1), Health(5, waiting=1)])
def test_work_that_stands_still_is_a_hang(health):
    watched = Watched()
    assert watched.run(100, Status(health), step=1) is None
    watched = Watched()
    assert watched.run(30, Status(health)) is None
    assert "nothing moved for 30 s" in watched.run(0.5, Status(health))


def test_rest_is_no_hang():
    watched = Watched()
    assert watched.run(100, Status(Health(5))) is None
    assert watched.run(29, Status(Health(5, running=1))) is None


def test_a_router_that_stood_still_blames_nobody():
    watched = Watched()
    busy = Status(Health(5, running=1))
    assert watched.run(20, busy) is None
    watched.now += 3600
    assert watched.watch.complaint(watched.now) is None
    assert watched.run(9, busy) is None
    assert watched.run(2, busy) is not None


# Processes.


class RushedClock:
    """The machine's time; long sleeps are noted and cut short."""

    def __init__(self):
        self.slept = []

    def now(self):
        return time.monotonic()

    def wall(self):
        return time.time()

    async def sleep(self, seconds):
        if seconds > 0.05:
            self.slept.append(seconds)
        await asyncio.sleep(min(seconds, 0.02))


class Stage:
    """A LocalNode and what it says; afterwards nothing may be left of it."""

    def __init__(self, spec=FAST, **settings):
        self.events = []
        self.seen = 0
        self.available = []
        self.clock = RushedClock()
        self.folder = tempfile.TemporaryDirectory(prefix="nenya-")
        self.node = LocalNode(
            "e",
            spec,
            runtime_dir=Path(self.folder.name),
            emit=self.events.append,
            on_available=self.available.append,
            clock=self.clock,
            settings=Settings(**{"grace_s": 0.3, **settings}),
        )
        self.backend = EngineBackend("e", self.node.engine)

    async def __aenter__(self):
        await self.node.start()
        return self

    async def __aexit__(self, *_):
        pid = self.node.pid
        await self.node.close()
        await self.node.close()
        self.check_gone(pid)
        self.folder.cleanup()

    def check_gone(self, pid):
        assert self.node.state is State.STOPPED
        assert self.node.pid is None
        assert not any(Path(self.folder.name).iterdir())
        assert not self.available or self.available[-1] is False
        assert len(asyncio.all_tasks()) == 1
        if pid is not None:
            assert not alive(pid)

    @property
    def states(self):
        return [event.state for event in self.events]

    async def reach(self, state):
        async with asyncio.timeout(10):
            while state.value not in self.states[self.seen :]:
                await self.node._changed.wait()
        self.seen = self.states.index(state.value, self.seen) + 1


def alive(pid):
    """Also true of a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def order(text="hi", **fields):
    body = msgspec.json.encode(
        {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    )
    deadline = asyncio.get_running_loop().time() + 10
    return Order(decode_chat(body), body, "m", "req", deadline, Limits(5, 5, 5), 1)


async def read_all(answer):
    blobs = []
    while blob := await answer.read():
        blobs.append(blob)
    return b"".join(blobs)


async def test_ready_killed_in_the_middle_and_ready_again():
    async with Stage(SLOW) as stage:
        info = await stage.node.wait_ready()
        assert info.kind == "simulated"
        assert stage.available == [True]
        answer = await stage.backend.open(order(stream=True))
        assert await answer.read()
        os.kill(stage.node.pid, signal.SIGKILL)
        with pytest.raises(Fault) as caught:
            await read_all(answer)
        assert caught.value.kind is FaultKind.ENGINE_DIED
        assert stage.available == [True, False]
        with pytest.raises(Fault) as caught:
            await stage.backend.open(order())
        assert caught.value.kind is FaultKind.ENGINE_DIED
        await stage.reach(State.BACKOFF)
        assert stage.node.detail == "its process was killed by SIGKILL"
        assert await stage.node.engine.start() == info
        assert stage.clock.slept == [0.2]
        assert stage.available == [True, False, True]
        answer = await stage.backend.open(order(stream=True, max_tokens=3))
        assert (await read_all(answer)).endswith(sse.DONE)
        life = ["starting", "loading", "ready"]
        assert stage.states == [*life, "backoff", *life]
        assert stage.events[3] == NodeState("e", "backoff", "its process was killed by SIGKILL")
    assert stage.states[-2:] == ["draining", "stopped"]


async def test_draining_lets_requests_end():
    async with Stage(SLOW) as stage:
        await stage.node.wait_ready()
        answer = await stage.backend.open(order(stream=True, max_tokens=10))
        pid = stage.node.pid
        closing = asyncio.create_task(stage.node.close(5))
        await asyncio.sleep(0)
        assert stage.available == [True, False]
        with pytest.raises(EngineError, match="draining"):
            stage.node.engine.begin(GenerateRequest(messages=b"[]"))
        assert (await read_all(answer)).endswith(sse.DONE)
        await closing
        assert not alive(pid)
        assert stage.node.state is State.STOPPED
        with pytest.raises(EngineError, match="stopped"):
            await stage.node.wait_ready()


async def test_an_overlong_drain_is_cut():
    async with Stage(SLOW) as stage:
        await stage.node.wait_ready()
        answer = await stage.backend.open(order(stream=True))
        await asyncio.gather(stage.node.close(0.05), stage.node.close(0.05))
        with pytest.raises(Fault):
            await read_all(answer)


async def test_what_hangs_is_killed():
    async with Stage(hang_s=0.2) as stage:
        await stage.node.wait_ready()
        answer = await stage.backend.open(order("[[fault:hang]]"))
        with pytest.raises(Fault) as caught:
            await answer.read()
        assert caught.value.kind is FaultKind.ENGINE_DIED
        await stage.reach(State.BACKOFF)
        assert "nothing moved" in stage.node.detail
        await stage.node.wait_ready()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (SimulatedSpec(faults={"nope": 1}), "the faults are"),
        (ExLlamaV2Spec(model="/nowhere"), "exllamav2"),
    ],
)
async def test_what_can_not_be_loaded_is_not_tried_again(spec, reason):
    async with Stage(spec) as stage:
        with pytest.raises(EngineError, match=reason):
            await stage.node.wait_ready()
        assert stage.node.state is State.FAILED
        assert reason in stage.node.detail
        assert stage.events[-1].detail == stage.node.detail
        assert stage.clock.slept == []
        assert stage.available == []
        with pytest.raises(EngineError, match=reason):
            stage.node.engine.begin(GenerateRequest(messages=b"[]"))


async def test_a_python_that_is_not_there():
    async with Stage(python="/nowhere/python") as stage:
        with pytest.raises(EngineError, match="/nowhere/python"):
            await stage.node.wait_ready()


@pytest.mark.parametrize("delay_s", [None, 0, 0.001, 0.003, 0.03, 0.3])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_closing_at_any_time_leaves_nothing(delay_s, factory):
    async def walk():
        async with Stage():
            if delay_s is not None:
                await asyncio.sleep(delay_s)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(walk())


async def test_a_long_runtime_dir_is_replaced():
    stage = Stage()
    stage.node._runtime_dir = Path(stage.folder.name) / ("x" * 90)
    async with stage:
        await stage.node.wait_ready()


async def test_a_second_start_is_illegal():
    async with Stage() as stage:
        with pytest.raises(IllegalMove):
            await stage.node.start()


async def test_start_after_close():
    async with Stage() as stage:
        await stage.node.close()
        await stage.node.start()
        await stage.node.wait_ready()


def test_no_orphan_when_the_router_is_killed():
    script = """
import asyncio, os, sys, tempfile
from pathlib import Path
from engines.specs import SimulatedSpec
from router.backends.supervisor import LocalNode
from router.clock import SystemClock
async def main():
    node = LocalNode("e", SimulatedSpec(), runtime_dir=Path(sys.argv[1]), emit=lambda e: None,
                     on_available=lambda a: None, clock=SystemClock())
    await node.start()
    await node.wait_ready()
    print(node.pid, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    with tempfile.TemporaryDirectory(prefix="nenya-") as folder:
        command = [sys.executable, "-c", script, folder]
        environment = {**os.environ, "PYTHONPATH": ROOT}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, env=environment, timeout=20, check=False
        )
        assert done.returncode == -signal.SIGKILL
        pid = int(done.stdout)
        until = time.monotonic() + 5
        while running(pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert not running(pid)


def running(pid):
    """False of a zombie: whoever adopted the process may be slow to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Processes that misbehave.

PRELUDE = f"""#!{sys.executable}
import signal, socket, sys, time
sys.path.insert(0, {ROOT!r})
from engines.base import EngineInfo, Health
from engines.protocol import VERSION, Failed, Ready, Status, encode
line = sys.stdin.readline()
def accept():
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[-1])
    server.listen()
    return server.accept()[0]
def ready(version=VERSION):
    peer = accept()
    peer.sendall(encode(Ready(version, EngineInfo("fake", "m", 1, 1, 1))))
    return peer
"""


@pytest.fixture
def python(tmp_path):
    def make(body):
        path = tmp_path / "python"
        path.write_text(PRELUDE + body)
        path.chmod(0o700)
        return str(path)

    return make


async def test_a_node_without_a_heartbeat_is_killed(python):
    async with Stage(python=python("peer = ready(); time.sleep(60)"), silence_s=0.1) as stage:
        await stage.reach(State.BACKOFF)
        assert stage.node.detail == "no heartbeat for 0.1 s"


async def test_a_node_that_speaks_another_version(python):
    async with Stage(python=python("peer = ready(VERSION + 1); time.sleep(60)")) as stage:
        with pytest.raises(EngineError, match=f"version {VERSION + 1}"):
            await stage.node.wait_ready()


async def test_exit_codes_before_the_first_load(python):
    async with Stage(python=python("print('no such spec', file=sys.stderr); sys.exit(2)")) as stage:
        with pytest.raises(EngineError, match="exit code 2: no such spec"):
            await stage.node.wait_ready()
        assert stage.node.state is State.FAILED


async def test_a_crash_while_loading_is_tried_again(python):
    async with Stage(python=python("sys.exit(1)")) as stage:
        while len(stage.clock.slept) < 3:
            await stage.reach(State.BACKOFF)
            await stage.reach(State.STARTING)
        assert stage.clock.slept[:3] == [0.2, 0.4, 0.8]


async def test_a_load_that_fails_later_is_tried_again(python, tmp_path):
    body = f"""
import pathlib
mark = pathlib.Path({str(tmp_path / "mark")!r})
if mark.exists():
    sys.exit(3)
mark.touch()
ready()
"""
    async with Stage(python=python(body)) as stage:
        for _ in range(3):
            await stage.reach(State.BACKOFF)
            await stage.reach(State.STARTING)
        assert "ready" in stage.states
        assert "exit code 3" in stage.events[-2].detail


NONSENSE = "peer = ready(); time.sleep(0.05); peer.sendall(b'\\xff' * 8); time.sleep(60)"


async def test_nonsense_is_a_crash(python):
    async with Stage(python=python(NONSENSE)) as stage:
        await stage.reach(State.READY)
        await stage.reach(State.BACKOFF)
        assert "nonsense" in stage.node.detail


async def test_never_listening_is_a_crash(python):
    async with Stage(python=python("time.sleep(60)"), start_s=0.3) as stage:
        await stage.reach(State.BACKOFF)
        assert "in time" in stage.node.detail


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); peer = ready(); time.sleep(60)"


@pytest.mark.parametrize("drain_s", [0.0, 5.0])
async def test_cancelling_close_kills_at_once(python, drain_s):
    async with Stage(python=python(STUBBORN)) as stage:
        await stage.node.wait_ready()
        pid = stage.node.pid
        closing = asyncio.create_task(stage.node.close(drain_s))
        await asyncio.sleep(0.02)
        begun = time.monotonic()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert time.monotonic() - begun < 1
        stage.check_gone(pid)


async def test_stderr_goes_to_the_log_in_bounded_lines(python, caplog):
    caplog.set_level("INFO", logger="nenya.engine.e")
    body = "sys.stderr.write('one\\n\\ntwo\\n' + 'x' * 10000); sys.exit(2)"
    async with Stage(python=python(body)) as stage:
        with pytest.raises(EngineError):
            await stage.node.wait_ready()
    lines = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
    assert lines[:2] == ["one", "two"]
    assert "".join(lines[2:]) == "x" * 10000
    assert max(map(len, lines)) <= 8192
