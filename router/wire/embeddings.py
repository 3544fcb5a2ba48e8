"""A request for embeddings.

Source: OpenAI's published API specification, CreateEmbeddingRequest.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from router.errors import invalid_request
from router.wire import rules, violations
from router.wire.chat import decode
from router.wire.legacy import Token
from router.wire.operation import Operation

MAX_INPUTS = 2048
"""OpenAI's number of texts, or of tokens of one text."""


class EmbeddingRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole request. Names, ranges and defaults are OpenAI's."""

    operation: ClassVar[Operation] = Operation.EMBEDDINGS
    stream: ClassVar[bool | None] = None
    wants_usage: ClassVar[bool] = False
    n: ClassVar[int | None] = None
    choices: ClassVar[int] = 1
    output_limit: ClassVar[int] = 0
    """Nothing is written."""
    output_limit_name: ClassVar[str] = ""

    model: str | None = None
    input: (
        str | Annotated[list[str | Token | list[Token]], Meta(min_length=1, max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class LooseEmbeddingRequest(EmbeddingRequest, frozen=True, forbid_unknown_fields=False):
    """A request with fields of other dialects, which some provider takes."""


_strict: msgspec.json.Decoder[EmbeddingRequest] = msgspec.json.Decoder(EmbeddingRequest)
_loose: msgspec.json.Decoder[EmbeddingRequest] = msgspec.json.Decoder(LooseEmbeddingRequest)


def decode_embedding(body: bytes, extra_fields: Collection[str] = ()) -> EmbeddingRequest:
    """The request in ``body``. Raises ApiError with OpenAI's status, message, param and code."""
    return decode(body, _strict, _loose if extra_fields else None, _check, extra_fields)


def _check(request: EmbeddingRequest, body: bytes) -> None:
    if not request.model:
        raise invalid_request("you must provide a model parameter")
    rules.check_body(body)
    if isinstance(request.input, list):
        violations.check_alike("input", request.input)
