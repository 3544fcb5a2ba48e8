"""The tokenizer: byte-level BPE, made so that a very small model finds copying easy.

Decides three things. Digits stand alone (Qwen2's pattern, which llama.cpp reproduces exactly under
the name `qwen2`), so that any number can be copied and added digit by digit. A word has the same
tokens with and without a space before it, because the space stays a token of its own: "Oslo" in a
question and "Oslo" in JSON are then one and the same thing. Only the most common words that are
never copied ("the", "is", ...) are merged with their space, to keep texts short.
"""

# ruff: noqa: PLC0415 - heavy or mutual imports stand where they are needed

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engines.starter.template import SPECIAL, TAGS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Qwen2's pattern: llama.cpp knows it as the pre-tokenizer "qwen2".
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same for learning the merges, with the mark or space before a word cut off.
LEARN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SPACE = "Ġ"
_COMMON = 120


def _parts(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def common_words(texts: Iterable[str], copied: set[str], limit: int = _COMMON) -> list[str]:
    """The most frequent words that stand after a space and are never to be copied."""
    count = Counter(word for text in texts for word in re.findall(r"(?<= )[A-Za-z]+", text))
    return [word for word, _ in count.most_common(limit * 6) if word not in copied][:limit]


def _merge(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def learn(texts: Sequence[str], size: int, copied: set[str]) -> Tokenizer:
    """A tokenizer of exactly `size` tokens from these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    first = Tokenizer(models.BPE())
    first.pre_tokenizer = _parts(LEARN_PATTERN)
    first.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size - len(SPECIAL) - len(TAGS) - _COMMON,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    plain = json.loads(first.to_str())["model"]
    vocab = {token: i for i, token in enumerate(SPECIAL)}
    for token in sorted(plain["vocab"], key=plain["vocab"].__getitem__):
        vocab[token] = len(vocab)
    merges = [_merge(m) for m in plain["merges"]]
    for word in common_words(texts, copied):
        if word in vocab and len(vocab) < size - len(TAGS):
            merges.append((_SPACE, word))
            vocab[_SPACE + word] = len(vocab)
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = _parts(PATTERN)
    tok.decoder = decoders.ByteLevel()
    _add_tokens(tok, size)
    return tok


def _add_tokens(tok: Tokenizer, size: int) -> None:
    """Control tokens, the tool tags (ordinary text, but one token each), and padding."""
    from tokenizers import AddedToken

    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tok.add_tokens([AddedToken(t, normalized=False, special=False) for t in TAGS])
    spare = [f"<|unused{i}|>" for i in range(size - tok.get_vocab_size(with_added_tokens=True))]
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in spare])
