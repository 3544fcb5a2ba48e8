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

from collections import deque
from collections.abc import Iterable
from math import floor

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
"""Past outputs kept for each kind of request: enough for a percentile, small for ten thousand keys."""
LEAST_SAMPLES = 5
"""Below it the percentile is one answer's luck."""
LOOK_EVERY = 8
"""Answers from one look for the percentile to the next: it hardly moves with fewer, and a look sorts all samples."""
MOST_OUTPUT = 1_000_000
"""More than any model writes; an upstream that says more is wrong."""
MOST_MAGNITUDE = MOST_OUTPUT.bit_length()
"""Larger limits are alike, too: so a key on a model has some twenty kinds of requests at most."""


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
    messages = request.messages if isinstance(request, ChatRequest) else ()
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


class Ratio:
    """Tokens a byte, of one model: sums that forget, so that a short prompt weighs little."""

    __slots__ = ("bytes", "tokens", "value")

    def __init__(self) -> None:
        self.bytes = float(PRIOR_BYTES)
        self.tokens = PRIOR_BYTES / BYTES_PER_TOKEN
        self.value = 1 / BYTES_PER_TOKEN

    def learn(self, size: Size, given: int) -> None:
        """A request of that size had so many tokens of input."""
        sent = size.text_bytes
        of_text = given - size.overhead_tokens
        if of_text > sent:
            of_text = sent
        elif of_text < 0:
            of_text = 0
        self.bytes = weight = self.bytes * MEMORY + sent
        self.tokens = tokens = self.tokens * MEMORY + of_text
        self.value = tokens / weight if weight > 1 else 1 / BYTES_PER_TOKEN


class Outputs:
    """Past outputs of one key's requests to one model, of those with a like limit."""

    __slots__ = ("_left", "_samples", "high")

    def __init__(self) -> None:
        self._samples: deque[int] = deque(maxlen=SAMPLES)
        self._left = LEAST_SAMPLES
        """Answers until the percentile is looked for again."""
        self.high = 0
        """Their percentile, at least 1; 0 while too few are known."""

    def learn(self, tokens: int) -> None:
        """A request had so many tokens of output, in all choices."""
        self._samples.append(tokens)
        self._left -= 1
        if not self._left:
            self._left = LOOK_EVERY
            ordered = sorted(self._samples)
            self.high = max(1, min(ordered[int(PERCENTILE * len(ordered))], MOST_OUTPUT))


Guess = tuple[int, int, Outputs]
"""Tokens of input, at least 1; of output in all choices, at most what the limit allows; what learns of the answer."""


class Estimator:
    """What was learned of one key on one model."""

    __slots__ = ("_cap", "_outputs", "ratio")

    def __init__(self, ratio: Ratio, cap: int | None) -> None:
        """``ratio``: the model's; ``cap``: most tokens of a choice, where the client sets no limit."""
        self.ratio = ratio
        self._cap = cap
        self._outputs: dict[int, Outputs] = {}
        """By the magnitude of the limit, for limits of the same power of two are alike; 0 is none."""

    def guess(self, size: Size) -> Guess:
        """What a request of that size will take."""
        given = floor(size.text_bytes * self.ratio.value + 0.5) + size.overhead_tokens or 1
        limit, magnitude = size.output_limit, 0
        if limit is None:
            limit = self._cap
        if limit is not None:
            limit *= size.choices
            magnitude = min(limit.bit_length(), MOST_MAGNITUDE)
        past = self._outputs.get(magnitude) or self._outputs.setdefault(magnitude, Outputs())
        likely = past.high or PRIOR_OUTPUT * size.choices
        return given, likely if limit is None or likely < limit else limit, past


def most_output(size: Size) -> int | None:
    """Most tokens that all choices can have; None where the client set no limit."""
    return None if size.output_limit is None else size.output_limit * size.choices
