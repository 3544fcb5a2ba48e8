"""Who is likely to hold which beginning of a prompt: a guess from what was sent where.

A prompt is cut into blocks and each block is hashed together with all before it, so that one hash stands for a whole
beginning. Every target keeps its blocks in order of use and loses the oldest when its cache is full, as the engine
does; a block is recorded when a request is sent, not when it is answered, so that siblings that come at once land
together. A beginning is always younger than what continues it, so a target that holds a block holds all before it:
that makes the search binary.

For each block one integer says who holds it, a bit a target. Finding out costs a few look-ups per distinct depth,
however many targets there are.

Source: block hashes as in vLLM's automatic prefix caching; recording at dispatch as in SGLang's router.
"""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 64
"""Long enough that a prompt of 8,000 tokens has 125, short enough to find most of a system prompt."""
BLOCK_CHARS = 4 * BLOCK_TOKENS
"""Where tokens aren't known: English has about four characters a token."""
UNKNOWN_CACHE_TOKENS = 131_072
"""What a target is thought to hold that doesn't say: about what fits beside an 8 B model on a 24 GB GPU."""


def blocks_of(text: str, most: int = sys.maxsize) -> tuple[int, ...]:
    """The hashes of the full blocks of ``text``, at most so many, each together with all before it. Of this process
    only: Python's hashes are salted, so that no client can make two prompts look alike.
    """
    before = begin = 0
    blocks = []
    for _ in range(min(len(text) // BLOCK_CHARS, most)):
        end = begin + BLOCK_CHARS
        before = hash((before, text[begin:end]))
        blocks.append(before)
        begin = end
    return tuple(blocks)


class PrefixIndex:
    """The blocks of all targets."""

    def __init__(self, block_tokens: int = BLOCK_TOKENS) -> None:
        self.block_tokens = block_tokens
        self._holders: dict[int, int] = {}
        self._used: list[OrderedDict[int, None]] = []
        self._capacity: list[int] = []

    def add(self, cache_tokens: int | None) -> int:
        """Make room for a target whose cache holds so many tokens; returns its slot."""
        capacity = UNKNOWN_CACHE_TOKENS if cache_tokens is None else cache_tokens
        self._used.append(OrderedDict())
        self._capacity.append(max(1, capacity // self.block_tokens))
        return len(self._used) - 1

    def capacity(self, slot: int) -> int:
        """How many blocks a target's cache holds."""
        return self._capacity[slot]

    def blocks(self, slot: int) -> int:
        """How many a target is thought to hold."""
        return len(self._used[slot])

    def depths(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        """How far targets hold a prompt: (tokens, bits of the targets), the deepest last."""
        holders = self._holders
        mask = holders.get(blocks[0], 0) if blocks else 0
        if not mask:
            return []
        if holders.get(blocks[-1], 0) == mask:  # many prompts were sent whole before
            return [(len(blocks) * self.block_tokens, mask)]
        found: list[tuple[int, int]] = []
        low = 1
        while mask:
            high = len(blocks)
            middle = high
            while low < high:  # the last block that all of mask hold
                if holders.get(blocks[middle - 1], 0) & mask == mask:
                    low = middle
                else:
                    high = middle - 1
                middle = (low + high + 1) // 2
            further = holders.get(blocks[low], 0) & mask if low < len(blocks) else 0
            found.append((low * self.block_tokens, mask & ~further))
            mask = further
            low += 1
        return found

    def record(self, slot: int, blocks: Sequence[int]) -> None:
        """A prompt was sent to that target."""
        used, holders, bit = self._used[slot], self._holders, 1 << slot
        capacity = self._capacity[slot]
        for block in reversed(blocks[:capacity]):
            if block in used:
                used.move_to_end(block)
            else:
                used[block] = None
                holders[block] = holders.get(block, 0) | bit
        while len(used) > capacity:
            self._drop(used.popitem(last=False)[0], bit)

    def forget(self, slot: int) -> None:
        """That target left, and its cache with it."""
        for block in self._used[slot]:
            self._drop(block, 1 << slot)
        self._used[slot].clear()

    def _drop(self, block: int, bit: int) -> None:
        rest = self._holders[block] & ~bit
        if rest:
            self._holders[block] = rest
        else:
            del self._holders[block]


def by_slot(depths: Sequence[tuple[int, int]], among: int) -> dict[int, int]:
    """The tokens that each target of the bits ``among`` holds, where it holds any."""
    found: dict[int, int] = {}
    for tokens, mask in depths:
        for slot in _slots(mask & among):
            found[slot] = tokens
    return found


@functools.lru_cache(maxsize=1024)
def _slots(mask: int) -> tuple[int, ...]:
    """The targets of a mask; the same few masks come again and again."""
    slots = []
    while mask:
        bit = mask & -mask
        slots.append(bit.bit_length() - 1)
        mask ^= bit
    return tuple(slots)
