"""Whatever a model is asked: one of three requests, alike in what routing needs of them.

Each has ``operation``, ``model``, ``stream``, ``wants_usage``, ``n``, ``choices``, ``output_limit`` and
``output_limit_name``.
"""

from __future__ import annotations

from router.wire.chat import ChatRequest
from router.wire.embeddings import EmbeddingRequest
from router.wire.legacy import CompletionRequest

Request = ChatRequest | CompletionRequest | EmbeddingRequest
