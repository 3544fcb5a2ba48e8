"""A model's chat template, rendered as Hugging Face renders it.

Templates come with the model and are programs, so they run in Jinja's sandbox, which lets them reach nothing but what
they are given and change none of it. They may still take long; they are as much to be trusted as the weights.

Source: https://huggingface.co/docs/transformers/chat_templating_writing, transformers/utils/chat_template_utils.py
"""

from __future__ import annotations

import importlib
import json
from datetime import datetime
from typing import Any

import msgspec

from engines.base import EngineError


class ChatTemplate:
    """A compiled template. Thread-safe."""

    def __init__(self, source: str, names: dict[str, str]) -> None:
        """``names``: bos_token and its like. Raises EngineError("invalid")."""
        sandbox: Any = importlib.import_module("jinja2.sandbox")
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self.source = source
        self._names = names
        try:
            self._template = environment.from_string(source)
        except Exception as error:
            raise EngineError(
                "invalid", f"the chat template can't be read: {_said(error)}"
            ) from error

    def render(self, messages: bytes, tools: bytes | None, **given: Any) -> str:
        """Return the prompt. Raises EngineError("invalid") with the template's reason."""
        try:
            said = [_plain(message) for message in msgspec.json.decode(messages)]
            offered = None if tools is None else msgspec.json.decode(tools)
            text: str = self._template.render(messages=said, tools=offered, **self._names, **given)
        except Exception as error:
            raise EngineError(
                "invalid", f"the model's chat template refuses this conversation: {_said(error)}"
            ) from error
        return text


def _plain(message: Any) -> Any:
    """Bring a message to the shape that templates expect: text as a string, arguments of calls as objects."""
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text", part.get("refusal")) for part in content]
        message = {**message, "content": "".join(text for text in texts if text)}
    elif content is None:
        message = {**message, "content": ""}
    calls = message.get("tool_calls")
    if calls:
        message = {**message, "tool_calls": [_opened(call) for call in calls]}
    return message


def _opened(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"])
    except msgspec.MsgspecError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:  # noqa: FBT001, FBT002 - the filter's signature
    """Jinja's own escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
