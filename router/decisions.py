"""How a model's requests were given their targets, counted where it is decided.

    policy    the policy chose among several that admit
    only      there was one
    spill     a provider was chosen for a model that has engines, too
    probe     the target was ejected, and this request finds out how it is
    panic     nobody serves, and this was the least bad

and why a request had to wait: the reasons of a refusal (`router.pool.Refusal`).

Counted here and read when somebody asks, instead of said as events: a choice takes a few microseconds, and an event
would be a good part of that.
"""

from __future__ import annotations

from typing import Literal, get_args

from router.counters import Spread

Choice = Literal["policy", "only", "spill", "probe", "panic"]
Wait = Literal["full", "quota", "resting", "all_tried", "unavailable"]
Reason = Choice | Wait
REASONS: tuple[Reason, ...] = (*get_args(Choice), *get_args(Wait))
MATCH_BUCKETS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


class Decisions:
    """Counts of one model."""

    __slots__ = ("counts", "matches")

    def __init__(self) -> None:
        self.counts: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        """By reason; from 0, so that the first of a kind shows as a rise."""
        self.matches = Spread(MATCH_BUCKETS)
        """Shares of prompts that their targets are thought to have had in their caches."""
