"""A request of the older completions endpoint: a text to be continued instead of messages.

Source: OpenAI's published API specification, CreateCompletionRequest.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta, Struct

from router.errors import ApiError, invalid_request
from router.wire import rules, violations
from router.wire.chat import (
    Choices,
    LogitBias,
    Penalty,
    Seed,
    Stop,
    Temperature,
    Unit,
    decode,
)
from router.wire.operation import Operation
from router.wire.options import StreamOptions

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, and a surprise to whoever comes from chat."""

Token = Annotated[int, Meta(ge=0)]
Prompt = str | Annotated[list[str | Token | list[Token]], Meta(min_length=1)]


class CompletionRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole request. Names, ranges and defaults are OpenAI's."""

    operation: ClassVar[Operation] = Operation.COMPLETIONS

    model: str | None = None
    prompt: Prompt | None = None
    suffix: str | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: Temperature | None = None
    top_p: Unit | None = None
    n: Choices | None = None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    stop: Stop | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    user: str | None = None

    @property
    def wants_usage(self) -> bool:
        """A stream whose client asked for the usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def output_limit(self) -> int:
        """Most tokens written, per choice."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def output_limit_name(self) -> str:
        """The parameter that sets it."""
        return "max_tokens"

    @property
    def choices(self) -> int:
        """How many answers come: n for each prompt."""
        prompt = self.prompt
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        return (self.n or 1) * (len(prompt) if several and prompt is not None else 1)

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The prompts; None where they are tokens, or none was given."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt or []
        texts = tuple(prompt for prompt in prompts if isinstance(prompt, str))
        return texts if texts and len(texts) == len(prompts) else None


class LooseCompletionRequest(CompletionRequest, frozen=True, forbid_unknown_fields=False):
    """A request with fields of other dialects, which some provider takes."""


_strict: msgspec.json.Decoder[CompletionRequest] = msgspec.json.Decoder(CompletionRequest)
_loose: msgspec.json.Decoder[CompletionRequest] = msgspec.json.Decoder(LooseCompletionRequest)


def decode_completion(body: bytes, extra_fields: Collection[str] = ()) -> CompletionRequest:
    """The request in ``body``. Raises ApiError with OpenAI's status, message, param and code."""
    return decode(body, _strict, _loose if extra_fields else None, _check, extra_fields)


def _check(request: CompletionRequest, body: bytes) -> None:
    if not request.model:
        raise invalid_request("you must provide a model parameter")
    rules.check_body(body)
    rules.check_stream_options(request)
    if request.logit_bias:
        rules.check_logit_bias(request.logit_bias)
    if isinstance(request.prompt, list):
        violations.check_alike("prompt", request.prompt)
    n, best_of = request.n or 1, request.best_of or 1
    if request.best_of is not None and n > best_of:
        message = (
            "You requested that the server return more choices than it will generate (HINT: must set 'n' "
            f"(currently {n}) to be at most 'best_of' (currently {best_of}), or omit either parameter if you "
            "don't specifically want to use them.)"
        )
        raise invalid_request(message)
    if request.stream and best_of > n:
        message = "You cannot stream results with 'best_of' greater than 'n'."
        raise invalid_request(message, param="best_of")


def beyond_engines(request: CompletionRequest) -> ApiError | None:
    """Why no engine here can serve ``request``, naming the parameter; None if one can."""
    if request.suffix:
        return _unsupported("suffix", "This model does not support suffix.")
    if (request.best_of or 1) > (request.n or 1):
        message = "This model makes no more choices than it returns: 'best_of' must be at most 'n'."
        return _unsupported("best_of", message)
    if request.echo and request.logprobs is not None:
        message = (
            "This model can't tell the prompt's logprobs: 'echo' and 'logprobs' exclude each other."
        )
        return _unsupported("logprobs", message)
    if request.max_tokens == 0:
        return violations.out_of_range("max_tokens", "integer", 1, "0", above=False)
    return _beyond_in_prompt(request)


def _beyond_in_prompt(request: CompletionRequest) -> ApiError | None:
    if request.prompt is None:
        return violations.missing("prompt")
    texts = request.texts
    if texts is None:
        return _unsupported("prompt", "This model takes prompts as text, not as tokens.")
    if "" in texts:
        one = isinstance(request.prompt, str)
        name = "prompt" if one else f"prompt[{texts.index('')}]"
        return violations.empty(name, "string", 1)
    return None


def _unsupported(param: str, message: str) -> ApiError:
    return invalid_request(message, param=param, code="invalid_value")
