"""What happens to a token's logits between the model and ExLlamaV2's sampler, and what is learned from them.

The library takes filters, objects that change logits before sampling. One of them does everything that OpenAI's
parameters ask for, since only there are the logits still the model's own: log-probabilities before anything else, then
penalties, the client's bias, the grammar, and last the truncation that the library doesn't do rightly (see samplers).
The library's own penalties count the prompt, its own bias changes the logits it hands out, and its own
log-probabilities are those of what was sampled.

An error in here would end every request of the batch, so none gets out: the choice ends at its next token, and
``error`` says why.

Duck-typed: ``exllamav2.generator.filters.base.ExLlamaV2Filter`` says what is called when.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import torch
from msgspec import Struct

from engines.exl2.samplers import Dry, Repeats, Truncation, repetition, truncate

BITS = 32
"""Of one word of llguidance's mask."""


class Steer(Struct, frozen=True):
    """What a request asks of its tokens' logits."""

    bias: Mapping[int, float] = {}
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    dry: Dry | None = None
    truncation: Truncation | None = None
    """Done here; None where it is the library's."""
    top_logprobs: int | None = None
    """Alternatives to note beside each token; None notes nothing, 0 the token alone."""

    @property
    def idle(self) -> bool:
        """Whether nothing of it is wanted."""
        return not self.changes and self.top_logprobs is None

    @property
    def changes(self) -> bool:
        """Whether it changes logits."""
        return bool(
            self.bias
            or self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1
            or self.dry
            or self.truncation
        )


class Noted(Struct, frozen=True, array_like=True):
    """A token's log-probability under the model, and the most probable ones at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Steering:
    """One choice's filter. The library calls it from its sampling threads, one call at a time."""

    allow_return_type_list = True

    def __init__(
        self,
        steer: Steer,
        vocabulary: int,
        ends: Sequence[int],
        matcher: Any = None,
        *,
        prompt: Sequence[int] = (),
        seed: int | None = None,
    ) -> None:
        """``matcher``: an llguidance.LLMatcher at its beginning, of this choice alone. ``ends``: end-of-turn tokens."""
        self.noted: list[Noted] = []
        """In the order of the tokens; whoever reads them takes them away."""
        self.error: str | None = None
        self._steer = steer
        self._vocabulary = vocabulary
        self._ends = frozenset(ends)
        self._matcher = matcher
        self._words = np.zeros(-(-vocabulary // BITS), dtype=np.int32)
        self._bias = _vector(steer.bias, vocabulary) if steer.bias else None
        penalised = bool(steer.frequency_penalty or steer.presence_penalty)
        self._counts = torch.zeros(vocabulary) if penalised else None
        self._prompt = prompt
        self._seen: Any = None
        """Tokens that the repetition penalty charges, each once."""
        self._repeats: Repeats | None = None
        self._random = random.Random(seed)  # noqa: S311 - draws tokens
        self._logprobs: Any = None
        self._future: Future[bool] | None = None

    # What the library calls, in this order, for each token.

    def begin(self, prefix: str) -> None:
        """Start: read the prompt where it matters, which takes too long for whoever made the object."""
        del prefix
        if self._steer.repetition_penalty != 1:
            known = {id_ for id_ in self._prompt if id_ < self._vocabulary}
            self._seen = torch.tensor(sorted(known), dtype=torch.long)
        if self._steer.dry is not None:
            self._repeats = Repeats(self._steer.dry, self._prompt)

    def can_mask_logits(self) -> bool:
        """Say that logits are changed directly."""
        return True

    def use_background_worker(self) -> bool:
        """Say whether something can be computed while the GPU works."""
        return self._matcher is not None

    def background_prepare_logit_mask(self, pool: Executor) -> None:
        """Compute the grammar's mask on a thread."""
        self._future = pool.submit(self.prepare_logit_mask)

    def background_drop(self) -> None:
        """Forget a mask that was computed ahead."""
        if self._future is not None:
            self._future.result()
            self._future = None

    def get_next(self, mask: bool = False) -> bool:  # noqa: FBT001, FBT002 - the library's signature
        """Wait for the mask."""
        del mask
        if self._future is None:
            return self.prepare_logit_mask()
        self.background_drop()
        return True

    def prepare_logit_mask(self) -> bool:
        """Compute the grammar's mask. Always true: the library asserts it."""
        matcher = self._matcher
        try:
            if matcher is not None and self.error is None and not matcher.is_stopped():
                matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
            if matcher is not None and matcher.is_error():
                self.error = self.error or f"the grammar gave up: {matcher.get_error()}"
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self.error = self.error or f"{type(error).__name__}: {error}"
        return True

    def mask_logits(self, logits: Any) -> Any:
        """Return the logits to sample from; ``logits`` itself stays as it is."""
        try:
            return self._changed(logits)
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self.error = self.error or f"{type(error).__name__}: {error}"
            return self._only_ends(logits)

    def feed(self, token: Any) -> None:
        """Take the token that was sampled."""
        id_ = int(token.reshape(-1)[0])
        try:
            self._fed(id_)
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self.error = self.error or f"{type(error).__name__}: {error}"

    # What is done.

    def _changed(self, logits: Any) -> Any:
        own = logits[: self._vocabulary]
        if self._steer.top_logprobs is not None:
            self._logprobs = torch.log_softmax(own.float(), -1)
        if self.error is not None:
            return self._only_ends(logits)
        if self._matcher is None and not self._steer.changes:
            return logits
        changed = logits.clone()
        self._steered(changed[: self._vocabulary])
        if self._matcher is not None:
            changed.masked_fill_(~self._allowed(logits.shape[-1]), float("-inf"))
        if self._steer.truncation is not None:
            truncate(changed[: self._vocabulary], self._steer.truncation, self._random.random)
        return changed

    def _steered(self, logits: Any) -> None:
        """Penalties and bias, in place."""
        steer = self._steer
        if self._seen is not None:
            repetition(logits, self._seen, steer.repetition_penalty)
        if self._counts is not None:
            logits -= self._counts * steer.frequency_penalty
            if steer.presence_penalty:
                logits -= (self._counts > 0) * steer.presence_penalty
        if self._bias is not None:
            logits += self._bias
        if self._repeats is not None:
            self._repeats.charge(logits)

    def _allowed(self, width: int) -> Any:
        """Which tokens the grammar lets come next; an end where it may end, nothing else where it must."""
        matcher = self._matcher
        allowed = torch.zeros(width, dtype=torch.bool)
        stopped = matcher.is_stopped()
        if not stopped:
            bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
            allowed[: self._vocabulary] = torch.from_numpy(bits[: self._vocabulary].astype(bool))
        allowed[list(self._ends)] = stopped or matcher.is_accepting()
        if not allowed.any():
            raise ValueError("the grammar lets no token come next")
        return allowed

    def _only_ends(self, logits: Any) -> Any:
        forced = torch.full_like(logits, float("-inf"))
        forced[list(self._ends)] = 0.0
        return forced

    def _fed(self, id_: int) -> None:
        if self._logprobs is not None:
            self.noted.append(self._note(id_))
        if self._counts is not None and id_ < self._vocabulary:
            self._counts[id_] += 1
        if self._seen is not None and id_ < self._vocabulary:
            self._seen = torch.cat((self._seen, torch.tensor([id_]))).unique()
        if self._repeats is not None:
            self._repeats.append(id_)
        matcher = self._matcher
        if matcher is None or id_ in self._ends or self.error is not None:
            return
        if matcher.is_stopped() or not matcher.consume_token(id_):
            self.error = f"the grammar refused its own token: {matcher.get_error()}"

    def _note(self, id_: int) -> Noted:
        logprobs, self._logprobs = self._logprobs, None
        count = self._steer.top_logprobs
        top: tuple[tuple[int, float], ...] = ()
        if count:
            values, ids = torch.topk(logprobs, min(count, self._vocabulary))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Noted(id_, float(logprobs[id_]), top)


def _vector(bias: Mapping[int, float], vocabulary: int) -> Any:
    vector = torch.zeros(vocabulary)
    for token, value in bias.items():
        if 0 <= token < vocabulary:
            vector[token] = value
    return vector
