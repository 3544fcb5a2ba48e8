"""What a client asks for: one of the API's calls that a model answers."""

from __future__ import annotations

import enum

_GENAI = {
    "chat/completions": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}


class Operation(enum.Enum):
    """A call. The value is its path under ``/v1/``, here and at providers."""

    __hash__ = object.__hash__  # each is one of a kind, and Enum's own is a call in Python

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    def __init__(self, path: str) -> None:
        self.genai = _GENAI[path]
        """OpenTelemetry's word for it."""
