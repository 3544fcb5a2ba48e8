"""What an upstream answers to each of the API's operations."""

from __future__ import annotations

from typing import Any

from tests.upstream import (
    DONE,
    USAGE,
    Call,
    Script,
    encode,
    event,
    http,
    json_answer,
    normal,
    stream_of,
)

EMBEDDED = {
    "object": "list", "model": "up", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}],
    "usage": {"prompt_tokens": 4, "total_tokens": 4},
}  # fmt: skip


def text_completion(**choice: Any) -> dict[str, Any]:
    """One object of the older endpoint: whole, or a chunk."""
    choice = {"text": " there", "index": 0, "logprobs": None, "finish_reason": "stop", **choice}
    return {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "up", "choices": [choice], "usage": USAGE,
    }  # fmt: skip


def text_events() -> list[bytes]:
    """A stream of the older endpoint, with usage."""
    first = event({**text_completion(finish_reason=None), "usage": None})
    last = event({**text_completion(text=""), "usage": None})
    return [first, last, event({**text_completion(), "choices": []}), DONE]


def embeddings() -> Script:
    return json_answer(encode(EMBEDDED))


def completions() -> Script:
    """A choice for each that was asked for."""

    async def answer(call: Call) -> None:
        asked = call.seen.json
        if call.seen.streams:
            await stream_of(text_events())(call)
            return
        prompts = asked.get("prompt")
        several = isinstance(prompts, list) and not isinstance(prompts[0], int)
        count = (asked.get("n") or 1) * (len(prompts) if several else 1)
        choices = [text_completion(index=i)["choices"][0] for i in range(count)]
        await call.write(http(200, encode({**text_completion(), "choices": choices})))

    return answer


def any_operation() -> Script:
    """The right answer to whatever is asked."""
    by_path = {"/v1/embeddings": embeddings(), "/v1/completions": completions()}

    async def answer(call: Call) -> None:
        await by_path.get(call.seen.line.split(" ")[1], normal())(call)

    return answer
