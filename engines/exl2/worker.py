"""The one thread that owns the generator: starts choices, cancels them, iterates, and says what came.

Nothing else touches the library. Orders come in by a queue and are obeyed between two iterations; what an iteration
brought goes to the event loop in one piece, however many requests it is for. An idle worker sleeps on its queue.

An iteration that fails (out of memory, an illegal address) leaves the generator's tables and perhaps the whole CUDA
context in no known state. So the worker ends with it: all requests hear of it, and the process is to be started again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from engines.exl2.loading import Machine
from engines.exl2.memory import PAGE_TOKENS
from engines.exl2.steering import Noted


class Choice(Struct, eq=False, kw_only=True):
    """One answer to write: a job of the generator."""

    owner: Any
    """Whom it is for; the worker only hands it back."""
    index: int
    ids: Sequence[int]
    new_tokens: int
    """Most to write, guesses not counted."""
    seed: int | None
    settings: dict[str, Any]
    """Of the library's sampler."""
    ends: tuple[int, ...]
    steering: Any = None
    job: Any = None
    begun: bool = False
    over: bool = False


class Step(Struct, frozen=True):
    """What one iteration brought to one choice."""

    choice: Choice
    tokens: list[int]
    noted: list[Noted]
    cached_tokens: int
    ended: str | None = None
    """``stop`` by an end token, which is the last of ``tokens``; ``length``; or ``cancelled``."""


class Figures(Struct, frozen=True):
    """Where the generator stands; replaced as a whole."""

    iterations: int = 0
    running: int = 0
    pages_used: int = 0
    prompt_tokens_left: int = 0
    cached_tokens: int = 0


class Refused(Struct, frozen=True):
    """A choice that the library didn't take."""

    choice: Choice
    reason: str


class Worker:
    """A thread and its generator. Other threads use its public methods and read its figures."""

    def __init__(
        self,
        load: Callable[[], Machine],
        ready: Callable[[Machine], None],
        deliver: Callable[[list[Step | Refused]], None],
        lost: Callable[[str], None],
    ) -> None:
        """All are called on the thread; ``lost`` once and last, with why nothing more will come."""
        self.figures = Figures()
        self.error: str | None = None
        """Why the worker ended, where it wasn't asked to."""
        self._load = load
        self._ready = ready
        self._deliver = deliver
        self._lost = lost
        self._orders: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._cached_tokens = 0
        self._generator: Any = None
        self._machine: Any = None
        self._thread = threading.Thread(target=self._run, name="exllamav2", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def submit(self, choices: Sequence[Choice]) -> None:
        """Write these answers, which share a prompt."""
        self._orders.put(("start", choices))

    def cancel(self, choice: Choice) -> None:
        """Stop it, running or waiting; its pages are free after the iteration under way."""
        self._orders.put(("cancel", choice))

    def stop(self) -> None:
        """End after the iteration under way."""
        self._orders.put(("stop", None))

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # The thread.

    def _run(self) -> None:
        reason = "the engine was closed"
        try:
            machine = self._machine = self._load()
            self._generator = machine.generator
            self._ready(machine)
            while self._obey():
                self._iterate()
        except BaseException as error:  # noqa: BLE001 - a thread's last words
            reason = self.error = _said(error)
        self._generator = self._machine = None
        self._lost(reason)

    def _obey(self) -> bool:
        """Carry out what was ordered, waiting for an order where nothing else is to do; False at the end."""
        while True:
            idle = not self._generator.num_remaining_jobs()
            if idle:
                self._note()
            try:
                order, about = self._orders.get(block=idle)
            except queue.Empty:
                return True
            if order == "stop":
                return False
            if order == "start":
                self._start(about)
            else:
                self._cancel(about)

    def _start(self, choices: Sequence[Choice]) -> None:
        for choice in choices:
            try:
                choice.job = self._machine.job(choice)
                self._generator.enqueue(choice.job)
            except Exception as error:  # noqa: BLE001 - the library asserts; its queue is unharmed
                choice.job, choice.over = None, True
                self._deliver([Refused(choice, _said(error))])

    def _cancel(self, choice: Choice) -> None:
        if choice.over:
            return
        choice.over = True
        if choice.job is not None:
            self._generator.cancel(choice.job)
        self._deliver([Step(choice, [], [], 0, "cancelled")])

    def _iterate(self) -> None:
        if not self._generator.num_remaining_jobs():
            return
        steps: list[Step | Refused] = []
        for result in self._generator.iterate():
            if result["stage"] == "error":  # exllamav3 catches what fails in a prompt
                raise result["error"]
            if result["stage"] == "streaming":
                step = self._step(result)
                if step is not None:
                    steps.append(step)
        self._note(1)
        if steps:
            self._deliver(steps)

    def _step(self, result: dict[str, Any]) -> Step | None:
        """Read one result. Tokens of unfinished characters are held by the library until it has their last one."""
        choice: Choice = result["identifier"]
        held = result.get("held") or {}
        tokens = [
            token
            for ids in (result.get("token_ids"), held.get("token_ids"))
            if ids is not None
            for token in ids[0].tolist()
        ]
        ended = None
        if result["eos"]:
            choice.over = True
            ended = "length" if result["eos_reason"] == "max_new_tokens" else "stop"
        elif not tokens:
            return None
        job = choice.job
        cached = job.cached_pages * PAGE_TOKENS + job.cached_tokens
        if not choice.begun:
            choice.begun = True
            self._cached_tokens += cached
        noted: list[Noted] = []
        if choice.steering is not None:  # with guesses, one iteration has several results
            said = choice.steering.noted
            noted, choice.steering.noted = said[: len(tokens)], said[len(tokens) :]
        return Step(choice, tokens, noted, cached, ended)

    def _note(self, iterations: int = 0) -> None:
        generator = self._generator
        left = 0
        owners = set()
        for job in generator.active_jobs:
            owners.add(id(job.identifier.owner))
            sequence = job.sequences[0]
            left += max(0, len(sequence.sequence_ids) - 1 - sequence.kv_position)
        self.figures = Figures(
            iterations=self.figures.iterations + iterations,
            running=len(owners),
            pages_used=self._machine.pages_used(),
            prompt_tokens_left=left,
            cached_tokens=self._cached_tokens,
        )


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:1000]
