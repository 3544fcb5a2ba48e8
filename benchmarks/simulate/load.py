"""A load: requests with their arrivals, lengths and beginnings, as data."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec


class Request(msgspec.Struct, frozen=True):
    """One request of a load."""

    at: float
    """Seconds since the load's start."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """A hash per full block: equal hashes are equal beginnings."""


class Load(msgspec.Struct, frozen=True):
    """Requests in the order of their arrival."""

    name: str
    requests: tuple[Request, ...]
    block_tokens: int = 512
    bucket_s: float = 0.0
    """How coarse the recorded times are."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        span = self.requests[-1].at - self.requests[0].at + self.bucket_s
        return len(self.requests) / span if span > 0 else float(len(self.requests))


def arrivals(load: Load, faster: float, seed: int) -> Sequence[Request]:
    """The requests at ``faster`` times the recorded rate; recorded buckets are spread evenly, by ``seed``."""
    rng = random.Random(seed)
    replace, bucket = msgspec.structs.replace, load.bucket_s
    moved = [replace(one, at=(one.at + bucket * rng.random()) / faster) for one in load.requests]
    return sorted(moved, key=lambda one: one.at)
