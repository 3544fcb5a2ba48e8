"""What a simulated engine says: words from a seed and the request, the same every time.

The whole answer is known before its first token is written, so that limits, stop strings and
formats are kept by cutting it, and the steps of the model only decide when its pieces come out. A
piece is a token: a word of prose, or up to four characters of JSON. Prompts are counted by size
alone, four bytes of their JSON a token: no tokenizer, no model, and close enough to English in any
of them.

A tool is called only where ``tool_choice`` forces it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Raw, Struct

from engines import schemas
from engines.base import (
    Delta,
    EngineError,
    FinishReason,
    GenerateRequest,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from engines.final_message import split
from engines.forced_tools import force, new_call_id
from engines.simulated.instances import smallest
from engines.simulated.model import Prompt, chained

BYTES_PER_TOKEN = 4
"""OpenAI's rule of thumb for English; JSON's quotes and keys stand for a template's control tokens."""

WORDS = (  # noqa: SIM905  # a hundred lines of list would hide the module
    "able air all and apple back bird blue boat book bread bright call calm city clear cloud "
    "cold day deep door each early earth field fire first fish flower free garden glass gold "
    "good grass green hand hill home house island key lake last leaf letter light long map "
    "moon morning mountain music near new night north ocean old open paper path quiet rain "
    "red river road round salt sand sea season seed ship shore silver sky small snow song "
    "soon south star stone summer sun table tall tree valley voice warm water west wide wind "
    "window winter wood word yellow young"
).split()

SENTENCE_WORDS = 12


class Limit(Struct, frozen=True):
    """How long an answer may be."""

    tokens: int
    cuts: bool
    """Whether prose would go on beyond it; else it ends there by itself."""


class Script(Struct, frozen=True):
    """One choice, complete: what is sent with each token and how it ends."""

    deltas: tuple[Delta, ...]
    """One a token; a delta may be empty, where its token was part of a stop string."""
    reason: FinishReason


def prompt_of(request: GenerateRequest, page_tokens: int) -> Prompt:
    """Return the request's prompt as the model sees it: tools first, as templates have them."""
    text = (request.tools or b"") + _said(request)
    page_bytes = page_tokens * BYTES_PER_TOKEN
    full = len(text) // page_bytes
    pages = chained(text[at * page_bytes : (at + 1) * page_bytes] for at in range(full))
    return Prompt(max(1, -(-len(text) // BYTES_PER_TOKEN)), pages)


def _said(request: GenerateRequest) -> bytes:
    return request.messages if request.prompt is None else request.prompt.encode()


def last_message(request: GenerateRequest) -> str:
    """Return the last message's JSON, or the prompt. Raises EngineError where the messages are no array."""
    if request.prompt is not None:
        return request.prompt
    try:
        messages = msgspec.json.decode(request.messages, type=list[Raw])
    except msgspec.MsgspecError as error:
        raise EngineError("invalid", f"messages: {error}") from error
    return bytes(messages[-1]).decode(errors="replace") if messages else ""


def write(request: GenerateRequest, choice: int, limit: Limit, default_seed: int) -> Script:
    """Write choice number ``choice``; prose has exactly as many tokens as the limit.

    Raises EngineError for formats and tools that can't be served.
    """
    random_ = _random(request, choice, default_seed)
    forced = force(request.tools, request.tool_choice)
    if request.continue_final and (forced is not None or _is_formatted(request)):
        raise EngineError("unsupported", "a format can't begin in the middle of an answer")
    if forced is not None:
        value = smallest(forced.schema)
        pieces = _json_pieces(value["arguments"])
        reason: FinishReason = forced.reason if len(pieces) <= limit.tokens else "length"
        call = ToolCallDelta(0, new_call_id(), value["name"])
        return Script(tuple(_call_deltas(choice, call, pieces[: limit.tokens])), reason)
    if request.continue_final:
        pieces, reason = _rest(request, choice, limit, default_seed)
    else:
        pieces, reason = _pieces(request, random_, limit)
    if any(stop in "".join(pieces) for stop in request.stop):
        pieces, reason = _until_stop(pieces, request.stop), "stop"
    return Script(tuple(_text_deltas(request, choice, random_, pieces)), reason)


def _rest(
    request: GenerateRequest, choice: int, limit: Limit, default_seed: int
) -> tuple[list[str], FinishReason]:
    """What follows the text so far: the rest of what this engine had said, if the text is its own; else other prose."""
    before, begun = split(request.messages)
    same = msgspec.structs.replace(request, messages=before)
    words = begun.count(" ") + 1 if begun else 0
    total = words + limit.tokens if limit.cuts else max(words, limit.tokens)
    prose = list(_prose(_random(same, choice, default_seed), total))
    said = "".join(prose[:words])
    if said.startswith(begun):
        pieces = [said[len(begun) :], *prose[words:]]
    else:
        pieces = ["", *_prose(_random(request, choice, default_seed), total - words)]
    pieces = [piece for piece in pieces if piece][: limit.tokens]
    return pieces or [""], "length" if limit.cuts else "stop"


def _random(request: GenerateRequest, choice: int, default_seed: int) -> random.Random:
    seed = default_seed if request.sampling.seed is None else request.sampling.seed
    digest = hashlib.sha256(_said(request)).hexdigest()
    return random.Random(f"{seed + choice} {digest}")  # noqa: S311  # words, not secrets


def _pieces(
    request: GenerateRequest, random_: random.Random, limit: Limit
) -> tuple[list[str], FinishReason]:
    value = _formatted(request.response_format, random_)
    if value is None:
        return list(_prose(random_, limit.tokens)), "length" if limit.cuts else "stop"
    pieces = _json_pieces(value[0])
    return pieces[: limit.tokens], "stop" if len(pieces) <= limit.tokens else "length"


class _JsonSchema(Struct):
    schema: Any = msgspec.field(default_factory=lambda: {"type": "object"})


class _Format(Struct):
    type: str
    json_schema: _JsonSchema | None = None


def _formatted(response_format: bytes | None, random_: random.Random) -> tuple[Any] | None:
    """Return the JSON value that the format asks for, in a tuple; None for prose."""
    if response_format is None:
        return None
    try:
        wanted = msgspec.json.decode(response_format, type=_Format)
    except msgspec.MsgspecError as error:
        raise EngineError("invalid", f"response_format: {error}") from error
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ({"answer": "".join(_prose(random_, 4))},)
    if wanted.type == "json_schema" and wanted.json_schema is not None:
        return (smallest(schemas.checked(wanted.json_schema.schema)),)
    raise EngineError("unsupported", f"response_format {wanted.type!r}")


def _is_formatted(request: GenerateRequest) -> bool:
    return _formatted(request.response_format, random.Random(0)) is not None  # noqa: S311  # no secret


def _prose(random_: random.Random, tokens: int) -> Iterator[str]:
    for at in range(tokens):
        word = random_.choice(WORDS)
        first, last = at % SENTENCE_WORDS == 0, at % SENTENCE_WORDS == SENTENCE_WORDS - 1
        word = word.capitalize() if first else word
        yield ("" if at == 0 else " ") + word + ("." if last else "")


def _json_pieces(value: object) -> list[str]:
    text = msgspec.json.encode(value).decode()
    return [text[at : at + 4] for at in range(0, len(text), 4)]


def _until_stop(pieces: list[str], stops: tuple[str, ...]) -> list[str]:
    """Cut the pieces where the first stop string begins; those it takes up are empty, later ones gone."""
    text = "".join(pieces)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    complete, begin = min(ends)
    kept: list[str] = []
    for piece, end in zip(pieces, accumulate(map(len, pieces)), strict=True):
        kept.append(piece[: max(0, begin - (end - len(piece)))])
        if end >= complete:
            break
    return kept


def _call_deltas(choice: int, call: ToolCallDelta, pieces: list[str]) -> Iterator[Delta]:
    for at, piece in enumerate(pieces):
        opening = call if at == 0 else ToolCallDelta(0)
        yield Delta(choice, tool_calls=(msgspec.structs.replace(opening, arguments=piece),))


def _text_deltas(
    request: GenerateRequest, choice: int, random_: random.Random, pieces: list[str]
) -> Iterator[Delta]:
    for piece in pieces:
        if request.logprobs and piece:
            yield Delta(choice, piece, (), (_logprob(random_, piece, request.top_logprobs),))
        else:
            yield Delta(choice, piece)


def _logprob(random_: random.Random, piece: str, top: int) -> TokenLogprob:
    """Invent a likely token and others, each half as likely as the one before."""
    likelihood = 0.5 + random_.random() / 2
    left = (1 - likelihood) * 0.999
    chances = [likelihood, *(left / 2**place for place in range(1, top + 1))]
    falling = [math.log(chance) for chance in chances]
    logprob = falling[0]
    others = [" " + word for word in random_.sample(WORDS, top)]
    likely = [piece, *others][:top]
    return TokenLogprob(
        piece,
        logprob,
        tuple(piece.encode()),
        tuple(
            TopLogprob(token, chance, tuple(token.encode()))
            for token, chance in zip(likely, falling, strict=False)
        ),
    )
