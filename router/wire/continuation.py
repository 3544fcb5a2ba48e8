"""A request for the rest of an answer: what may be gone on with, what is left of the limits, how it is asked for.

Pure. Bodies are taken apart one level deep; what isn't changed stays as the client wrote it.

Source: vLLM, SGLang and TGI (``continue_final_message``), Mistral and DeepSeek (``prefix``), Anthropic and OpenRouter
(a last message of the assistant's): their documentation of chat completions.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from router.wire.chat import ChatRequest, LongChatRequest
from router.wire.embeddings import EmbeddingRequest
from router.wire.legacy import CompletionRequest
from router.wire.request import Request

Form = Literal["continue_final_message", "prefix", "message"]
"""How a provider is asked to go on: by vLLM's parameter, Mistral's flag in the message, or the message alone."""

_decoder = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.encode
_TRUE, _FALSE = Raw(b"true"), Raw(b"false")


class Keep(enum.Enum):
    """How far a request's answer can be written on by somebody else."""

    NOTHING = 0
    START = 1
    """While nothing was said: by starting over."""
    ALL = 2


def keep(request: Request) -> Keep:
    """What is to be kept of the answer to ``request``."""
    if not request.stream or request.choices != 1:
        return Keep.NOTHING
    if isinstance(request, ChatRequest):
        return Keep.ALL if _plain_chat(request) else Keep.START
    if isinstance(request, CompletionRequest):
        return Keep.ALL if _plain_completion(request) else Keep.START
    return Keep.NOTHING


def _plain_chat(request: ChatRequest) -> bool:
    shape = request.response_format
    free = shape is None or shape.__struct_config__.tag == "text"
    called = request.tool_choice not in {None, "none", "auto"}
    voiced = request.audio is not None or "audio" in (request.modalities or ())
    begun = request.messages[-1].role == "assistant"
    return free and not (called or voiced or begun or request.logprobs or request.function_call)


def _plain_completion(request: CompletionRequest) -> bool:
    beside = request.suffix or request.echo or request.logprobs is not None
    return isinstance(request.prompt, str) and not beside and (request.best_of or 1) == 1


def left_of(request: Request, written: int) -> int | None:
    """Tokens that may still be written after ``written``; None without a limit."""
    limit = request.output_limit
    return None if limit is None else limit - written


def stops(request: Request) -> tuple[str, ...]:
    """The request's stop strings."""
    if isinstance(request, EmbeddingRequest):
        return ()
    stop = request.stop
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def rest(request: Request, body: bytes, text: str, written: int) -> tuple[Request, bytes]:
    """``request`` and its ``body`` for what follows ``text``, which took ``written`` tokens: its limits are as much
    lower, and the older endpoint's prompt has the text at its end. Of chat the backend makes the last message.
    """
    if not text:
        return request, body
    fields = _decoder.decode(body)
    left = left_of(request, written)
    if isinstance(request, CompletionRequest):
        request = replace(request, prompt=f"{request.prompt}{text}", max_tokens=left)
        fields["prompt"] = Raw(_encode(request.prompt))
        fields["max_tokens"] = Raw(_encode(left))
    elif isinstance(request, ChatRequest):
        if isinstance(request, LongChatRequest):
            request = replace(request, messages_at=msgspec.UNSET)
        for name in ("max_tokens", "max_completion_tokens"):
            if getattr(request, name) is not None:
                request = replace(request, **{name: left})
                fields[name] = Raw(_encode(left))
    return request, _encode(fields)


def with_beginning(body: bytes, text: str, form: Form) -> bytes:
    """A chat request's ``body`` so that a provider goes on from ``text``."""
    fields = _decoder.decode(body)
    fields["messages"] = Raw(with_message(bytes(fields["messages"]), text, flag=form == "prefix"))
    if form == "continue_final_message":
        fields["continue_final_message"] = _TRUE
        fields["add_generation_prompt"] = _FALSE
    return _encode(fields)


def with_message(messages: bytes, text: str, *, flag: bool = False) -> bytes:
    """The JSON of ``messages``, not empty, and of one more, the assistant's. ``flag``: it says that it is a prefix."""
    message = {"role": "assistant", "content": text}
    last = _encode({**message, "prefix": True} if flag else message)
    return b"%b,%b]" % (messages.rstrip().removesuffix(b"]"), last)
