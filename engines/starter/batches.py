"""From conversations to batches of token numbers.

Decides how training rows are laid out: one conversation a row, rows of about equal length together,
a fixed number of tokens per batch. No conversation sees another one (so "You have not told me" can
be learnt) and little is wasted on padding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.starter.corpus import Conversation, conversations
from engines.starter.template import FORCED, FREE, render

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Row = tuple[list[int], list[float]]
Batch = tuple[NDArray[np.int64], NDArray[np.float32]]

_POOL = 4096


def full_text(conversation: Conversation) -> str:
    """The conversation as the model sees it."""
    pieces = render(conversation.messages, conversation.tools)
    return "".join(text for text, _ in pieces).replace(FORCED, "").replace(FREE, "")


def encode(tok: Tokenizer, many: Sequence[Conversation]) -> list[Row]:
    """Token numbers, and for each whether it is to be learnt."""
    pieces = [render(c.messages, c.tools) for c in many]
    encoded = tok.encode_batch(["".join(t for t, _ in p) for p in pieces], add_special_tokens=False)
    rows: list[Row] = []
    for part, code in zip(pieces, encoded, strict=True):
        by_char = [weight for text, weight in part for _ in text]
        rows.append((code.ids, [by_char[start] for start, _ in code.offsets]))
    return rows


def pad(rows: Sequence[Row]) -> Batch:
    """Rows of about equal length as two arrays; padding is not learnt."""
    width = max(len(ids) for ids, _ in rows)
    tokens: NDArray[np.int64] = np.zeros((len(rows), width), np.int64)
    weights: NDArray[np.float32] = np.zeros((len(rows), width), np.float32)
    for i, (ids, weight) in enumerate(rows):
        tokens[i, : len(ids)] = ids
        weights[i, : len(weight)] = weight
    return tokens, weights


@dataclass(frozen=True)
class Phase:
    """A part of the training: until which share of the time, and on what."""

    until: float
    longest: int
    long_share: float
    copy_share: float


def batches(tok: Tokenizer, seed: int, size: int, phase: Phase) -> Iterator[list[Batch]]:
    """An endless stream of steps of about `size` tokens, each of two batches of unlike length."""
    r = random.Random(seed)
    source = conversations(seed + 1, phase.long_share, phase.copy_share)
    while True:
        rows = [x for x in encode(tok, list(islice(source, _POOL))) if len(x[0]) <= phase.longest]
        rows.sort(key=lambda row: len(row[0]) * r.uniform(0.85, 1.0))
        groups: list[list[Row]] = [[]]
        for row in rows:
            width = max([len(row[0])] + [len(x[0]) for x in groups[-1]])
            if groups[-1] and width * (len(groups[-1]) + 1) > size // 2:
                groups.append([])
            groups[-1].append(row)
        r.shuffle(groups)
        for one, two in zip(groups[::2], groups[1::2], strict=False):
            yield [pad(one), pad(two)]
