"""What a request comes to before its prompt is looked at: free text, text under a grammar, calls, or either. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct

from engines import schemas
from engines.base import EngineError, GenerateRequest
from engines.forced_tools import ForcedCall, call_of_any, force, offered
from engines.grammar import Shape


class Plan(Struct, frozen=True):
    """What a request comes to, before its prompt is looked at."""

    request: GenerateRequest
    shape: Shape | None = None
    """What holds the answer, None where nothing does."""
    forced: ForcedCall | None = None
    with_tools: bool = False
    tagged: bool = False
    """The answer may call, and the calls are read here."""

    @property
    def rendered(self) -> bool:
        """Whether its prompt is rendered here, not by a library that reads calls and thoughts, too."""
        request = self.request
        return request.prompt is not None or request.continue_final or self.shape is not None

    @property
    def penalised(self) -> bool:
        """Whether the prompt's tokens must be known."""
        sampling = self.request.sampling
        return bool(sampling.frequency_penalty or sampling.presence_penalty)


def plan(request: GenerateRequest, *, native: bool) -> Plan:
    """Return the plan. ``native``: the model writes calls in tags. Raises EngineError for what can't be served."""
    if request.max_tokens is not None and request.max_tokens < 1:
        raise EngineError("invalid", f"max_tokens must be at least 1, not {request.max_tokens}")
    if request.prompt is not None and (request.tools is not None or not request.prompt):
        raise EngineError("invalid", "a bare prompt must not be empty, and takes no tools")
    tools = request.tools if offered(request.tools, request.tool_choice) else None
    forced = force(tools, request.tool_choice, parallel=request.parallel_tool_calls)
    if forced is not None:
        if request.continue_final:
            raise EngineError("unsupported", "a grammar can't begin in the middle of an answer")
        shape = Shape(call=forced.schema, must_call=True, several=forced.several, native=native)
        return Plan(request, shape, forced, with_tools=True)
    answer = _answer_schema(request.response_format)
    if request.continue_final and answer is not None:
        raise EngineError("unsupported", "a grammar can't begin in the middle of an answer")
    if tools is None:
        return Plan(request, None if answer is None else Shape(answer=answer))
    if answer is not None or request.continue_final or (request.logprobs and native):
        return read_here(Plan(request, with_tools=True), answer, native=native)
    return Plan(request, with_tools=True)


def read_here(plan: Plan, answer: dict[str, Any] | None = None, *, native: bool) -> Plan:
    """Return the plan with its optional calls under a grammar and read by this package. Raises EngineError."""
    request = plan.request
    if request.tools is None or not plan.with_tools or plan.shape is not None:
        return plan
    if not native:
        raise EngineError(
            "unsupported",
            "this model's template has no tags for tool calls, so calls that are its own choice can't be "
            "told from text here: set tool_choice, or leave out response_format, control tokens in the "
            "text, the answer's beginning, or the tools",
        )
    shape = Shape(
        answer=answer,
        call=call_of_any(request.tools),
        several=request.parallel_tool_calls,
        native=native,
    )
    return Plan(request, shape, with_tools=True, tagged=True)


class _JsonSchema(Struct):
    schema: Any = UNSET


class _Format(Struct):
    type: str
    json_schema: _JsonSchema | None = None


def _answer_schema(response_format: bytes | None) -> dict[str, Any] | None:
    if response_format is None:
        return None
    try:
        wanted = msgspec.json.decode(response_format, type=_Format)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EngineError("invalid", f"response_format: {error}") from error
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.type == "json_schema" and wanted.json_schema is not None:
        schema = wanted.json_schema.schema
        return {"type": "object"} if schema is UNSET else schemas.checked(schema)
    raise EngineError("unsupported", f"response_format {wanted.type!r}")
