"""What an engine is asked: OpenAI's requests as the engine's own.

What only the engine reads (messages, tools, schemas) goes through as the client's own bytes. What no engine here can
do is refused by name, with a 400, before anything is sent; a parameter is ignored only where the answer is as right
without it. IGNORED and REFUSED list those of chat; of the completions endpoint `wire.legacy` says what engines lack.
Samplers that OpenAI doesn't have are read here, and only of requests that have some (see `eligible`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from msgspec import Raw, Struct

from engines.base import GenerateRequest, Samplers, Sampling
from router.backends.base import Order
from router.errors import ApiError, invalid_request
from router.wire import violations
from router.wire.chat import ChatRequest
from router.wire.continuation import with_message
from router.wire.legacy import CompletionRequest, beyond_engines
from router.wire.messages import Message, RefusalPart, TextPart
from router.wire.options import CustomTool, NamedFunction

IGNORED: Mapping[str, str] = MappingProxyType(
    {
        "user": "book-keeping at OpenAI's; nothing in the answer depends on it",
        "metadata": "book-keeping",
        "store": "book-keeping",
        "safety_identifier": "book-keeping",
        "prompt_cache_key": "prefixes are cached without being asked",
        "prompt_cache_retention": "for as long as there is room",
        "prompt_cache_options": "likewise",
        "prediction": "makes an answer come sooner, not differently",
        "reasoning_effort": "a wish; an answer without it still answers the question",
        "verbosity": "a wish",
    }
)
"""Parameters that an engine is not told of, and why the answer is right all the same."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "audio": "This model answers with text only.",
        "web_search_options": "This model does not search the web.",
        "moderation": "This model does not moderate.",
        "functions": "'functions' is deprecated; use 'tools' instead.",
        "function_call": "'function_call' is deprecated; use 'tool_choice' instead.",
    }
)
"""Parameters without which the client would get something else than it asked for, and what it is told.

Likewise ``modalities`` beyond text, parts of messages that aren't text, tools that aren't functions. Every
parameter that stands in neither table is honoured.
"""


class _Spliced(Struct, frozen=True):
    """The parts of a body that go to the engine as they came."""

    messages: Raw
    tools: Raw = Raw()
    tool_choice: Raw = Raw()
    response_format: Raw = Raw()


_splice = msgspec.json.Decoder(_Spliced).decode
_samplers = msgspec.json.Decoder(Samplers).decode


def engine_requests(order: Order) -> tuple[GenerateRequest, ...]:
    """The engine's form of a request: one for each prompt.

    Raises ApiError for what no engine here can do, naming the parameter.
    """
    request = order.request
    if isinstance(request, ChatRequest):
        return (_of_chat(request, order.body, order.said),)
    if isinstance(request, CompletionRequest):
        return _of_completion(request, order.body)
    raise invalid_request("This model writes text only.", param="model", status=404)


def _of_chat(request: ChatRequest, body: bytes, said: str) -> GenerateRequest:
    _refuse(request)
    parts = _splice(body)
    messages = bytes(parts.messages)
    return GenerateRequest(
        messages=with_message(messages, said) if said else messages,
        continue_final=bool(said),
        sampling=_sampling(request, body),
        max_tokens=request.output_limit,
        n=request.n or 1,
        stop=_stops(request),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        tools=_given(parts.tools) if request.tools else None,
        tool_choice=_given(parts.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_given(parts.response_format),
    )


def _of_completion(request: CompletionRequest, body: bytes) -> tuple[GenerateRequest, ...]:
    refusal = beyond_engines(request)
    if refusal is not None:
        raise refusal
    sampling = _sampling(request, body)
    return tuple(
        GenerateRequest(
            messages=b"[]",
            prompt=prompt,
            sampling=sampling,
            max_tokens=request.output_limit,
            n=request.n or 1,
            stop=_stops(request),
            logprobs=request.logprobs is not None,
            top_logprobs=request.logprobs or 0,
        )
        for prompt in request.texts or ()
    )


def _sampling(request: ChatRequest | CompletionRequest, body: bytes) -> Sampling:
    sampling = Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias,
        seed=request.seed,
    )
    if request.__struct_config__.forbid_unknown_fields:  # it has no other fields than OpenAI's
        return sampling
    try:
        samplers = _samplers(body)
    except msgspec.ValidationError as error:
        raise violations.translate(error, body) from error
    return msgspec.structs.replace(sampling, **msgspec.structs.asdict(samplers))


def _stops(request: ChatRequest | CompletionRequest) -> tuple[str, ...]:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or ()
    return tuple(text for text in stop if text)


def _given(raw: Raw) -> bytes | None:
    value = bytes(raw)
    return None if value in {b"", b"null"} else value


def _refuse(request: ChatRequest) -> None:
    for name, why in REFUSED.items():
        if getattr(request, name) is not None:
            raise _unsupported(name, why)
    if request.modalities is not None and set(request.modalities) - {"text"}:
        raise _unsupported("modalities", "This model answers with text only.")
    _refuse_parts(request.messages)
    _refuse_tools(request)


def _refuse_parts(messages: list[Message]) -> None:
    for i, message in enumerate(messages):
        if message.content is None or isinstance(message.content, str):
            continue
        for j, part in enumerate(message.content):
            if not isinstance(part, TextPart | RefusalPart):
                kind = part.__struct_config__.tag
                text = f"Invalid content type. {kind} is only supported by certain models."
                raise _unsupported(f"messages[{i}].content[{j}].type", text)


def _refuse_tools(request: ChatRequest) -> None:
    for i, tool in enumerate(request.tools or ()):
        if isinstance(tool, CustomTool):
            raise _unsupported(f"tools[{i}].type", "This model calls functions only.")
    choice = request.tool_choice
    if choice is not None and not isinstance(choice, str | NamedFunction):
        message = "This model takes 'none', 'auto', 'required' or a function's name."
        raise _unsupported("tool_choice.type", message)


def _unsupported(param: str, message: str) -> ApiError:
    return invalid_request(message, param=param, code="invalid_value")
