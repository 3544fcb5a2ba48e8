"""How many tokens a request will take, guessed before it is sent.

A tokenizer would know the input exactly and would hold the loop for milliseconds; the guess is corrected when the
request is settled, so it need only be fair. Input: bytes of the request times what a byte of this model's past ones
had in tokens; where images or sounds are in it, only its text counts by the byte. Output: the 80th percentile of
what the same key got from the same model for a like limit, so that four in five reservations suffice and a client
that always sends ``max_tokens: 4096`` for short answers isn't held to it.

Source: OpenAI's help, "What are tokens and how to count them?" (four characters a token in English), and its guide to
vision (an image is 85 to 1,105 tokens).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

import msgspec

from router.wire.chat import ChatRequest
from router.wire.request import Request

BYTES_PER_TOKEN = 4
"""Of English, before anything is known of a model."""
TEXTS = ("text", "refusal")
"""Parts of a message that are text, under their own name."""
TOKENS_PER_PART = 1000
"""An image, a sound, a file: their bytes say nothing, this is a large image's."""
PRIOR_BYTES = 4096
"""The weight of the first guess: some requests' worth."""
MEMORY = 0.98
"""Of a model's ratio, per request: the last fifty count."""
PRIOR_OUTPUT = 256
"""Tokens of a usual answer, while a key's own aren't known."""
PERCENTILE = 0.8
SAMPLES = 32
"""Past outputs kept for each kind of request: enough for a percentile, small for ten thousand kinds."""
LEAST_SAMPLES = 5
"""Below it the percentile is one answer's luck."""
MOST_OUTPUT = 1_000_000
"""More than any model writes; an upstream that says more is wrong."""
MOST_KINDS = 4096
"""Kinds remembered; the oldest goes. About 2 MiB."""


class Size(msgspec.Struct, frozen=True, gc=False):
    """What can be seen of a request at a glance."""

    text_bytes: int
    overhead_tokens: int = 0
    """Of what isn't text."""
    output_limit: int | None = None
    """Most tokens of one choice, as far as the client said; 0 where nothing is written, as for embeddings."""
    choices: int = 1


def request_size(request: Request, body: bytes) -> Size:
    """The size of a request that was decoded from ``body``."""
    messages = request.messages if isinstance(request, ChatRequest) else []
    others = 0
    for message in messages:
        content = message.content
        if content is not None and not isinstance(content, str):
            others += sum(part.__struct_config__.tag not in TEXTS for part in content)
    if not others:
        return Size(len(body), 0, request.output_limit, request.choices)
    text = sum(_text_bytes(message.content) for message in messages)
    return Size(text, others * TOKENS_PER_PART, request.output_limit, request.choices)


def _text_bytes(content: str | Iterable[msgspec.Struct] | None) -> int:
    if content is None or isinstance(content, str):
        return _length(content or "")
    tagged = ((part, part.__struct_config__.tag) for part in content)
    return sum(_length(getattr(part, str(tag))) for part, tag in tagged if tag in TEXTS)


def _length(text: str) -> int:
    """Bytes in UTF-8; whether a text is ASCII is a flag of it, not a scan."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class _Ratio:
    """Tokens a byte, of one model: sums that forget, so that a short prompt weighs little."""

    __slots__ = ("bytes", "tokens", "value")

    def __init__(self) -> None:
        self.bytes = float(PRIOR_BYTES)
        self.tokens = PRIOR_BYTES / BYTES_PER_TOKEN
        self.value = 1 / BYTES_PER_TOKEN


class _Outputs:
    """Past outputs of one kind of request."""

    __slots__ = ("_ordered", "high", "samples")

    def __init__(self) -> None:
        self.samples: deque[int] = deque()
        self._ordered: list[int] = []
        """The same by their size."""
        self.high = 0
        """Their percentile."""

    def learn(self, tokens: int) -> None:
        tokens = min(tokens, MOST_OUTPUT)
        samples, ordered = self.samples, self._ordered
        samples.append(tokens)
        insort(ordered, tokens)
        count = len(ordered)
        if count > SAMPLES:
            del ordered[bisect_left(ordered, samples.popleft())]
            count = SAMPLES
        self.high = ordered[int(PERCENTILE * count)]


Kind = tuple[str, str, int]
"""A model, a key and the magnitude of the limit on the output: limits of the same power of two are alike."""


class Guess(msgspec.Struct, frozen=True):
    """What a request will take."""

    input: int
    """At least 1."""
    output: int
    """Of all choices, at most what the limit allows."""
    kind: Kind


class Estimator:
    """What was learned of all models and keys."""

    def __init__(self) -> None:
        self._ratios: dict[str, _Ratio] = {}
        self._outputs: dict[Kind, _Outputs] = {}
        """Whoever learned last is the last."""

    def guess(self, model: str, key_id: str, size: Size, cap: int | None) -> Guess:
        """What a key's request of that size to a model will take; ``cap``: most tokens of a choice, where the client
        sets no limit.
        """
        ratio = self._ratios.get(model)
        share = ratio.value if ratio is not None else 1 / BYTES_PER_TOKEN
        given = round(size.text_bytes * share) + size.overhead_tokens or 1
        limit = size.output_limit
        if limit is not None or cap is not None:
            limit = most_output(size, cap)
        kind = (model, key_id, limit.bit_length() if limit else 0)
        if limit == 0:
            return Guess(given, 0, kind)
        past = self._outputs.get(kind)
        likely = PRIOR_OUTPUT * size.choices
        if past is not None and len(past.samples) >= LEAST_SAMPLES:
            likely = past.high
        return Guess(given, max(1, likely if limit is None else min(likely, limit)), kind)

    def learn(self, kind: Kind, size: Size, given: int | None, wrote: int | None) -> None:
        """A request of that kind and size had so many tokens of input, and of output in all choices; None: unknown."""
        if given is not None:
            ratio = self._ratios.get(kind[0])
            if ratio is None:
                ratio = self._ratios[kind[0]] = _Ratio()
            sent = size.text_bytes
            of_text = max(0, min(given - size.overhead_tokens, sent))
            ratio.bytes = weight = ratio.bytes * MEMORY + sent
            ratio.tokens = tokens = ratio.tokens * MEMORY + of_text
            ratio.value = tokens / weight if weight > 1 else 1 / BYTES_PER_TOKEN
        if wrote is not None:
            outputs = self._outputs
            past = outputs.pop(kind, None) or _Outputs()
            outputs[kind] = past
            past.learn(wrote)
            if len(outputs) > MOST_KINDS:
                del outputs[next(iter(outputs))]


def most_output(size: Size, cap: int | None) -> int | None:
    """Most tokens that all choices can have; None where nobody set a limit."""
    limit = size.output_limit if size.output_limit is not None else cap
    return None if limit is None else limit * size.choices
