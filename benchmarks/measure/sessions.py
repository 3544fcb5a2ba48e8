"""What is asked: sessions of one turn or several, made up from distributions or taken from a recorded load.

A made-up session's prompts are unlike each other but for what is shared on purpose: a prefix (a system prompt) drawn
from a few, and, turn by turn, all that was said before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

from benchmarks.measure.lengths import Lengths
from benchmarks.simulate.load import Load


class Turn(msgspec.Struct, frozen=True):
    """One request of a session."""

    key: int
    """Whence its text comes: equal keys, equal text."""
    input_tokens: int
    """What it adds to the prompt; beginnings shared with others and earlier turns come on top."""
    output_tokens: int
    """The longest answer."""
    think_s: float = 0.0
    """Between the end of the answer before and this request."""


class Session(msgspec.Struct, frozen=True):
    """Turns that follow one another."""

    turns: tuple[Turn, ...]
    prefix: int | None = None
    """Which of the shared prefixes stands first."""
    blocks: tuple[int, ...] = ()
    """A recorded load's: names of the prompt's full blocks, part of ``input_tokens``."""


class Shape(msgspec.Struct, frozen=True):
    """What made-up sessions are like."""

    input: Lengths
    output: Lengths
    prefix_tokens: int = 0
    prefixes: int = 1
    turns: int = 1
    think_s: float = 0.0
    """The mean of exponential pauses."""

    def __str__(self) -> str:
        words = [f"prompts of {self.input}", f"answers of {self.output} tokens"]
        if self.prefix_tokens:
            whose = "one prefix" if self.prefixes == 1 else f"one of {self.prefixes} prefixes"
            words.append(f"{whose} of {self.prefix_tokens}")
        if self.turns > 1:
            words.append(f"{self.turns} turns, {self.think_s:g} s apart")
        return ", ".join(words)


def made_up(shape: Shape, seed: int) -> Iterator[Session]:
    """Sessions without end; the same for a seed."""
    rng = random.Random(f"sessions {seed}")
    while True:
        prefix = rng.randrange(shape.prefixes) if shape.prefix_tokens else None
        turns = []
        for number in range(shape.turns):
            think_s = rng.expovariate(1 / shape.think_s) if number and shape.think_s else 0.0
            turns.append(
                Turn(rng.getrandbits(48), shape.input.draw(rng), shape.output.draw(rng), think_s)
            )
        yield Session(tuple(turns), prefix)


def recorded(load: Load, seed: int) -> Iterator[Session]:
    """One session of one turn for each request of ``load``, in its order."""
    rng = random.Random(f"recorded {seed}")
    for one in load.requests:
        turn = Turn(rng.getrandbits(48), one.input_tokens, one.output_tokens)
        yield Session((turn,), blocks=one.blocks)
