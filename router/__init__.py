"""Nenya: one OpenAI-shaped endpoint in front of the GPUs you own and the providers you rent.

    from router import Router

    async with Router(config) as router:
        answer = await router.chat({"model": "starter", "messages": [{"role": "user", "content": "Hi"}]})

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.app import ModelCard, Router, Stats
    from router.config.reader import parse, read
    from router.config.schema import Config
    from router.dispatch import Reply
    from router.errors import ApiError, ConfigError, Fault, NenyaError
    from router.wire.chat import ChatRequest
    from router.wire.completion import ChatCompletion, ChatCompletionChunk

__version__ = "0.1.0"

_HOME = {
    "ApiError": "router.errors",
    "ChatCompletion": "router.wire.completion",
    "ChatCompletionChunk": "router.wire.completion",
    "ChatRequest": "router.wire.chat",
    "Config": "router.config.schema",
    "ConfigError": "router.errors",
    "Fault": "router.errors",
    "ModelCard": "router.app",
    "NenyaError": "router.errors",
    "Reply": "router.dispatch",
    "Router": "router.app",
    "Stats": "router.app",
    "parse": "router.config.reader",
    "read": "router.config.reader",
}

__all__ = [
    "ApiError", "ChatCompletion", "ChatCompletionChunk", "ChatRequest", "Config", "ConfigError", "Fault", "ModelCard",
    "NenyaError", "Reply", "Router", "Stats", "__version__", "parse", "read",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'router' has no attribute {name!r}")
