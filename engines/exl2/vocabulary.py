"""A model's tokens: text to ids, ids to bytes, and the same vocabulary for grammars.

Ids become bytes, not text: a token may end within a character, and log-probabilities have to say which bytes are whose.

A conversation is tokenised in pieces (see engines.control_text): within a piece the spelling of a control token is the
control token, across two it is text.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.base import EngineError
from engines.tagged_calls import START as CALL_START

VISIBLE = frozenset({CALL_START, "</tool_call>", "<think>", "</think>"})
"""What a template reads of an answer, should a vocabulary count it among its control tokens."""


class Tokens:
    """A vocabulary. Thread-safe after its making."""

    def __init__(self, folder: Path, size: int, ends: Sequence[int]) -> None:
        """``size``: rows of the model's head. ``ends``: what ends a turn. Raises EngineError("invalid")."""
        tokenizers: Any = importlib.import_module("tokenizers")
        guidance: Any = importlib.import_module("llguidance")
        path = folder / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:
            raise EngineError("invalid", f"{path} is no tokenizer: {error}") from error
        added = json.loads(text).get("added_tokens") or []
        special = [token["id"] for token in added if token.get("special")]
        self.size = size
        self.ends = tuple(ends)
        self.control = tuple(token["content"] for token in added if token.get("special"))
        self.added = tuple(token["content"] for token in added if not token.get("special"))
        known = min(size, self._tokenizer.get_vocab_size(with_added_tokens=True))
        plain = guidance.LLTokenizer(text, n_vocab=max(size, known), eos_token=list(ends))
        self.bytes: list[bytes] = [plain.decode_bytes([id_]) for id_ in range(size)]
        """Of each token, control tokens by their names."""
        self.hidden = frozenset(
            id_ for id_ in special if id_ < size and self.bytes[id_].decode() not in VISIBLE
        )
        """Control tokens, which are no text of an answer."""
        # llguidance takes every added token for a control token, and then "<tool_call>" in a grammar isn't the token.
        wrapped = guidance.TokenizerWrapper(_Wrapped(self, sorted(self.hidden)))
        self.grammars = guidance.LLTokenizer(wrapped, n_vocab=size, eos_token=list(ends))

    def encode(self, pieces: Sequence[str], *, begin: bool) -> list[int]:
        """Return the ids of pieces, each read apart; ``begin`` adds what the tokenizer begins a text with."""
        ids: list[int] = []
        for at, piece in enumerate(pieces):
            if piece or at == 0:
                ids += self._tokenizer.encode(piece, add_special_tokens=begin and at == 0).ids
        return ids

    def having(self, texts: Sequence[str]) -> frozenset[int]:
        """Return the tokens in which one of ``texts`` stands, and all control tokens.

        A text that stands in no token has the last of its own.
        """
        found = set(self.hidden)
        for text in texts:
            data = text.encode()
            among = [id_ for id_, token in enumerate(self.bytes) if data in token]
            found.update(among or self.encode([text], begin=False)[-1:])
        return frozenset(found)

    def name(self, token: int) -> str:
        """Return a token as log-probabilities show it."""
        return self.bytes[token].decode(errors="replace")


class _Wrapped:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: Tokens, special: list[int]) -> None:
        self.eos_token_id = tokens.ends[0]
        self.tokens = tokens.bytes
        self.special_token_ids = special
        self._encode = tokens.encode

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the ids of a text."""
        given = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._encode([given], begin=False)
