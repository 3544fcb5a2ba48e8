"""Text of a wanted number of tokens, without the model's tokenizer: plain words, and a ruler laid on the server.

The ruler comes from the server's own count of two prompts (`preflight`): so many tokens a word, so many for the
template. Texts are cuts out of one long run of random words behind a few words of their own, so that making a prompt
costs next to nothing and no two share a beginning unless they are meant to.
"""

from __future__ import annotations

import random

import msgspec

from benchmarks.measure.sessions import Session
from engines.simulated.text import WORDS

POOL_WORDS = 1 << 15
"""Longer than most prompts; a longer one goes round."""
KEY_WORDS = 5
"""A hundred words to the fifth: no two of a run's prompts begin alike by chance."""


class Ruler(msgspec.Struct, frozen=True):
    """How words become tokens at this server."""

    tokens_per_word: float = 1.25
    """Before anything was measured: a word and its space are five to six characters of four a token."""
    overhead_tokens: float = 0.0
    """What the template adds to every prompt."""
    measured: bool = False

    def words(self, tokens: float) -> int:
        """How many words make so many tokens; at least one."""
        return max(1, round(tokens / self.tokens_per_word))


class Message(msgspec.Struct, frozen=True):
    """One message of a prompt."""

    role: str
    content: str


class Writer:
    """Makes prompts."""

    def __init__(
        self, ruler: Ruler, *, prefix_tokens: int = 0, block_tokens: int = 512, salt: str = ""
    ) -> None:
        """``prefix_tokens``: the length of shared prefixes; ``block_tokens``: of a recorded load's blocks.

        Another ``salt`` makes other texts: a server that remembers prompts mustn't know those of the last run.
        """
        self.ruler = ruler
        self._salt = salt
        self._prefix_tokens = prefix_tokens
        self._block_tokens = block_tokens
        rng = random.Random("pool")
        words = rng.choices(WORDS, k=POOL_WORDS)
        self._pool = " ".join(words)
        self._starts = [0]
        for word in words:
            self._starts.append(self._starts[-1] + len(word) + 1)

    def opening(self, session: Session) -> list[Message]:
        """The messages of a session's first request."""
        first = session.turns[0]
        messages = []
        overhead = self.ruler.overhead_tokens
        if session.prefix is not None:
            shared = self.text(f"prefix {session.prefix}", self._prefix_tokens)
            messages.append(Message("system", shared))
        full = len(session.blocks)
        parts = [self.text(f"block {name}", self._block_tokens) for name in session.blocks]
        rest = first.input_tokens - full * self._block_tokens - overhead
        if rest > 0 or not parts:
            parts.append(self.text(first.key, rest))
        return [*messages, Message("user", " ".join(parts))]

    def reply(
        self, session: Session, number: int, said: list[Message], answer: str
    ) -> list[Message]:
        """The messages of turn ``number``, after ``said`` got ``answer``."""
        turn = session.turns[number]
        question = Message("user", self.text(turn.key, turn.input_tokens))
        return [*said, Message("assistant", answer), question]

    def length(self, session: Session, number: int) -> int:
        """The tokens that the prompt of turn ``number`` should have."""
        before = sum(turn.input_tokens + turn.output_tokens for turn in session.turns[:number])
        shared = self._prefix_tokens if session.prefix is not None else 0
        return shared + before + session.turns[number].input_tokens

    def blocks(self, session: Session) -> tuple[int, ...]:
        """Names of the full blocks with which a session's prompts begin, and others' do, too."""
        if session.prefix is None:
            return session.blocks
        full = self._prefix_tokens // self._block_tokens
        return tuple(range(session.prefix * full, (session.prefix + 1) * full))

    def text(self, key: str | int, tokens: float) -> str:
        """Words of about so many tokens; equal keys and lengths, equal text."""
        count = self.ruler.words(tokens)
        rng = random.Random(f"{self._salt} {key}")
        own = min(count, KEY_WORDS)
        parts = rng.choices(WORDS, k=own)
        left, start = count - own, rng.randrange(POOL_WORDS)
        while left:
            taken = min(left, POOL_WORDS - start)
            parts.append(self._pool[self._starts[start] : self._starts[start + taken] - 1])
            left, start = left - taken, 0
        return " ".join(parts)
