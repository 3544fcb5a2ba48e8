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

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    def __init__(self, path: str) -> None:
        self.genai = _GENAI[path]
        """OpenTelemetry's word for it."""
