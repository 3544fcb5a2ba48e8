"""How long prompts and answers are: a distribution in words, such as ``512``, ``200-800`` or ``lognormal:400:0.8``."""

from __future__ import annotations

import random
import re
from typing import Literal

import msgspec

FORMS = "N, LOW-HIGH (even), exp:MEAN, normal:MEAN:SD, lognormal:MEDIAN:SIGMA"
MOST = 10_000_000
"""Tokens; no context is near."""


class BadLength(ValueError):  # noqa: N818 - the name says the state
    """The words name no distribution; says which do."""


class Lengths(msgspec.Struct, frozen=True):
    """A distribution of whole numbers of tokens, each at least 1."""

    kind: Literal["fixed", "even", "exp", "normal", "lognormal"]
    first: float
    """The number, the low end, the mean or the median."""
    second: float = 0.0
    """The high end, the standard deviation, or that of the logarithm."""

    def draw(self, rng: random.Random) -> int:
        """One length."""
        if self.kind == "fixed":
            return int(self.first)
        if self.kind == "even":
            return rng.randint(int(self.first), int(self.second))
        if self.kind == "exp":
            drawn = rng.expovariate(1 / self.first)
        elif self.kind == "normal":
            drawn = rng.gauss(self.first, self.second)
        else:
            drawn = self.first * rng.lognormvariate(0.0, self.second)
        return max(1, min(MOST, round(drawn)))

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.first:g}"
        if self.kind == "even":
            return f"{self.first:g}-{self.second:g}"
        tail = f":{self.second:g}" if self.kind != "exp" else ""
        return f"{self.kind}:{self.first:g}{tail}"


def lengths(text: str) -> Lengths:
    """The distribution that ``text`` names. Raises BadLength."""
    if re.fullmatch(r"\d+", text):
        found = Lengths("fixed", int(text))
    elif span := re.fullmatch(r"(\d+)-(\d+)", text):
        found = Lengths("even", int(span[1]), int(span[2]))
    else:
        found = _named(text)
    highest = found.second if found.kind == "even" else found.first
    if not (1 <= found.first <= highest <= MOST):
        raise BadLength(f"{text!r}: at least 1 token, the low end first, and less than {MOST:,}")
    return found


def _named(text: str) -> Lengths:
    name, *rest = text.split(":")
    try:
        numbers = [float(part) for part in rest]
    except ValueError:
        numbers = []
    if not all(0 <= number < float("inf") for number in numbers):
        numbers = []
    if name == "exp" and len(numbers) == 1:
        return Lengths("exp", numbers[0])
    if name == "normal" and len(numbers) == 2:
        return Lengths("normal", numbers[0], numbers[1])
    if name == "lognormal" and len(numbers) == 2:
        return Lengths("lognormal", numbers[0], numbers[1])
    raise BadLength(f"{text!r} is no length; write {FORMS}")
