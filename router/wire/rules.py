"""What one parameter of a chat request means for another, and what a type can't say of one.

Each rule raises ApiError with OpenAI's words, param and code. The request was decoded before, so every rule may
trust the types. The usual request passes through `check` alone.

Source: error bodies of OpenAI's API quoted in public issues; docs/openai.md says which are quoted and which inferred.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from router.errors import ApiError, invalid_request
from router.wire import jsontext, strict_schema, violations
from router.wire.messages import NAME_PATTERN, FunctionCall, Message, TextPart
from router.wire.options import (
    CustomTool,
    Function,
    FunctionTool,
    JsonFormat,
    NamedCustom,
    NamedFunction,
    SchemaFormat,
)

if TYPE_CHECKING:
    from router.wire.chat import ChatRequest
    from router.wire.legacy import CompletionRequest

MAX_BIAS = 100
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
"""OpenAI's numbers."""

_ANSWERING = frozenset({"tool", "function"})
"""Roles that answer a call."""

QUOTES_PER_MESSAGE = 8
"""Of a message with a role and a text: two names, two values."""


def check(request: ChatRequest, body: bytes) -> None:
    """All rules. Raises ApiError."""
    if not request.model:
        raise invalid_request("you must provide a model parameter")
    messages = request.messages
    for message in messages:
        if message.content is None or message.tool_calls is not None or message.role in _ANSWERING:
            _check_conversation(messages)
            _check_thoroughly(request, body)
            return
    # One look for most requests. Each parameter here has at least these quotes, so where there are no more, nothing
    # else is in the body: no other parameter, none of these twice.
    quotes = 6 + QUOTES_PER_MESSAGE * len(messages)
    if request.stream is not None:
        quotes += 2
    if request.temperature is not None:
        quotes += 2
    if request.max_tokens is not None:
        quotes += 2
    if request.stream and request.wants_usage:
        quotes += 4
    if body.count(b'"') != quotes:
        _check_thoroughly(request, body)


def check_long(request: ChatRequest, body: bytes, around: bytes) -> None:
    """All rules, for a request whose messages are left out of ``around``. Raises ApiError, and UnicodeDecodeError for
    what is no UTF-8.
    """
    if not request.model:
        raise invalid_request("you must provide a model parameter")
    messages = request.messages
    for message in messages:
        if message.content is None or message.tool_calls is not None or message.role in _ANSWERING:
            _check_conversation(messages)
            break
    decoded = QUOTES_PER_MESSAGE * len(messages)
    if not body.isascii() and body.count(b'"') - around.count(b'"') != decoded:
        body.decode()  # Something is in the messages that wasn't decoded.
    _check_thoroughly(request, around)


def _check_thoroughly(request: ChatRequest, body: bytes) -> None:
    check_body(body)
    _check_companions(request)
    if request.tools is not None:
        _check_tools(request.tools)
    if request.tool_choice is not None:
        _check_tool_choice(request)
    if request.response_format is not None:
        _check_format(request)
    if request.logit_bias:
        check_logit_bias(request.logit_bias)
    if request.metadata:
        _check_metadata(request.metadata)
    if request.functions is not None or request.function_call is not None:
        _check_functions(request)


def check_body(body: bytes) -> None:
    """Raises ApiError for a parameter given twice, UnicodeDecodeError for what is no UTF-8."""
    if not body.isascii():
        body.decode()
    name = jsontext.repeated(body)
    if name is not None:
        raise violations.repeated(name)


def check_stream_options(request: ChatRequest | CompletionRequest) -> None:
    """Raises ApiError for options of a stream that isn't one."""
    if request.stream_options is not None and not request.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise invalid_request(message, param="stream_options")


def _check_companions(request: ChatRequest) -> None:
    """Parameters that need another, or exclude it."""
    check_stream_options(request)
    if request.top_logprobs is not None and not request.logprobs:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise invalid_request(message, param="top_logprobs")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        message = (
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        )
        raise invalid_request(message, param="max_tokens", code="invalid_parameter_combination")
    if request.modalities is not None and "audio" in request.modalities and request.audio is None:
        raise violations.missing("audio")


# Messages.


def _check_conversation(messages: list[Message]) -> None:
    """Contents that must be there; tool messages that answer the calls before them, all of them."""
    open_calls: list[str] = []
    answered: set[str] = set()
    for i, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id is None:
                raise violations.missing(f"messages[{i}].tool_call_id")
            if message.tool_call_id not in open_calls:
                raise _no_call(i)
            answered.add(message.tool_call_id)
        elif open_calls:
            _expect_answers(open_calls, answered, i)
            open_calls, answered = [], set()
        if message.role == "function" and message.name is None:
            raise violations.missing(f"messages[{i}].name")
        if message.content is None:
            _expect_content(message, i)
        if message.role == "assistant" and message.tool_calls is not None:
            open_calls, answered = [call.id for call in message.tool_calls], set()
    _expect_answers(open_calls, answered, len(messages))


def _expect_content(message: Message, at: int) -> None:
    """Only what calls, refuses or speaks needs no text."""
    if message.role == "function":
        return
    if message.role == "assistant" and (
        message.tool_calls is not None
        or message.function_call is not None
        or message.refusal is not None
        or message.audio is not None
    ):
        return
    text = "Invalid value for 'content': expected a string, got null."
    raise invalid_request(text, param=f"messages.[{at}].content")


def _expect_answers(calls: Iterable[str], answered: set[str], at: int) -> None:
    left = [call for call in calls if call not in answered]
    if left:
        text = (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(left)}"
        )
        raise invalid_request(text, param=f"messages.[{at}].role")


def _no_call(at: int) -> ApiError:
    text = (
        "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
        "'tool_calls'."
    )
    return invalid_request(text, param=f"messages.[{at}].role")


# Tools.


def _check_tools(tools: list[FunctionTool | CustomTool]) -> None:
    for i, tool in enumerate(tools):
        if isinstance(tool, FunctionTool):
            _check_function(tool.function, "tools[{}].function", i)


def _check_function(function: Function, where: str, at: int) -> None:
    if function.name.endswith("\n"):
        raise violations.wrong_pattern(f"{where.format(at)}.name", NAME_PATTERN)
    if function.parameters is None:
        return
    wrong = strict_schema.problem(function.parameters, strict=bool(function.strict))
    if wrong is not None:
        message = f"Invalid schema for function '{function.name}': {wrong}"
        param = f"{where.format(at)}.parameters"
        raise invalid_request(message, param=param, code="invalid_function_parameters")


def _check_tool_choice(request: ChatRequest) -> None:
    if not request.tools:
        message = "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        raise invalid_request(message, param="tool_choice")
    choice = request.tool_choice
    known: set[str]
    if isinstance(choice, NamedFunction):
        name = choice.function.name
        known = {tool.function.name for tool in request.tools if isinstance(tool, FunctionTool)}
    elif isinstance(choice, NamedCustom):
        name = choice.custom.name
        known = {tool.custom.name for tool in request.tools if isinstance(tool, CustomTool)}
    else:
        return
    if name not in known:
        message = f"Tool choice '{violations.shown(name)}' not found in 'tools' parameter."
        raise invalid_request(message, param="tool_choice")


def _check_functions(request: ChatRequest) -> None:
    """The parameters that tools have replaced."""
    call = request.function_call
    if call is not None and request.functions is None:
        message = (
            "Invalid value for 'function_call': 'function_call' is only allowed when 'functions' are "
            "specified."
        )
        raise invalid_request(message, param="function_call")
    for i, function in enumerate(request.functions or ()):
        _check_function(function, "functions[{}]", i)
    if call is None or isinstance(call, str):
        return
    if call.name not in {function.name for function in request.functions or ()}:
        name = violations.shown(call.name)
        message = (
            f"Invalid value for 'function_call': no function named '{name}' was specified in the "
            "'functions' parameter."
        )
        raise invalid_request(message, param="function_call")


# The rest.


def _check_format(request: ChatRequest) -> None:
    form = request.response_format
    if isinstance(form, JsonFormat) and not _says_json(request.messages):
        message = (
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
            "'json_object'."
        )
        raise invalid_request(message, param="messages")
    if isinstance(form, SchemaFormat):
        wanted = form.json_schema
        if wanted.name.endswith("\n"):
            raise violations.wrong_pattern("response_format.json_schema.name", NAME_PATTERN)
        if wanted.schema is None:
            if wanted.strict:
                raise violations.missing("response_format.json_schema.schema")
            return
        wrong = strict_schema.problem(wanted.schema, strict=bool(wanted.strict))
        if wrong is not None:
            message = f"Invalid schema for response_format '{wanted.name}': {wrong}"
            raise invalid_request(message, param="response_format")


def _says_json(messages: list[Message]) -> bool:
    for message in messages:
        content = message.content
        if isinstance(content, str):
            texts = [content]
        else:
            texts = [part.text for part in content or () if isinstance(part, TextPart)]
        for call in message.tool_calls or ():
            if isinstance(call, FunctionCall):
                texts.append(call.function.arguments)
        if any("json" in text.lower() for text in texts):
            return True
    return False


def check_logit_bias(bias: dict[str, float]) -> None:
    """Raises ApiError for what is no token id, and for a bias out of range."""
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit()):
            message = (
                f"Invalid key in 'logit_bias': {violations.shown(key)}. "
                "You should only be submitting non-negative integers."
            )
            raise invalid_request(message, param="logit_bias")
        if not -MAX_BIAS <= value <= MAX_BIAS:
            bound = MAX_BIAS if value > 0 else -MAX_BIAS
            raise violations.out_of_range(
                f"logit_bias.{violations.shown(key)}",
                "decimal",
                bound,
                f"{value:.17g}",
                above=value > 0,
            )


def _check_metadata(metadata: dict[str, str]) -> None:
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY:
            raise violations.too_long("metadata", MAX_METADATA_KEY, len(key), what="key")
        if len(value) > MAX_METADATA_VALUE:
            raise violations.too_long(f"metadata.{key}", MAX_METADATA_VALUE, len(value))
