"""The rest of an answer, written by somebody else, as chunks of the answer that the client already has a part of. Pure.

Every chunk gets the first answer's identity; the role is not said again, what the seam leaves out is gone, and the
usage is that of the one answer that the client sees. It costs a decode and an encode a chunk, of these streams alone.
"""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from router.wire import sse
from router.wire.said import IDENTITY, THOUGHTS, Chunk, Said, joined, load, text_of
from router.wire.seam import Seam


class Unreadable(Exception):  # noqa: N818 - names the event
    """A chunk that is none."""


class Tally(Struct, frozen=True):
    """What the first part took, to be added to what the rest takes."""

    written: int = 0
    """Tokens of the text so far."""
    input: int | None = None
    """Tokens of the client's own prompt, where the first answer told them."""

    def prompt(self, told: int) -> int:
        """Tokens of the client's prompt, where that of the rest, which has the text so far at its end, had ``told``."""
        return self.input if self.input is not None else max(0, told - self.written)

    def output(self, told: int, repeated: int) -> int:
        """Tokens of the whole answer, of whose rest ``told``, ``repeated`` were left out."""
        return self.written + max(0, told - repeated)


class Splicer:
    """One continuation on its way."""

    __slots__ = (
        "_carry", "_cut", "_guard", "_held", "_identity", "_left_out", "_said", "_seam", "_tally", "_text", "done",
        "stopped",
    )  # fmt: skip

    def __init__(self, said: Said, seam: Seam, tally: Tally, stops: tuple[str, ...] = ()) -> None:
        self._said = said
        self._seam = seam
        self._tally = tally
        self._identity = said.identity
        self._guard = StopGuard(said.text, stops)
        self._held: list[Chunk] = []
        """Chunks whose text is not judged yet."""
        self._text = ""
        self._carry = ""
        """Half a character."""
        self._cut: int | None = None
        """Characters still to be left out; None before the seam is judged."""
        self._left_out = 0
        self.stopped = False
        """A stop string that began in the first part is complete: nothing but the answer's `ending` is to come."""
        self.done = False
        """Nothing is to come from the other target."""

    @property
    def repeated(self) -> int:
        """About how many tokens were left out, at the first part's tokens a character."""
        size = len(self._said.text)
        return round(self._tally.written * min(1.0, self._left_out / size)) if size else 0

    def feed(self, blob: bytes) -> bytes:
        """What the client gets of ``blob``, whole events; maybe nothing. Raises Diverges and Unreadable."""
        out: list[bytes] = []
        for event in sse.split(blob):
            data = sse.data_of(event)
            if data is None or self.done:
                continue
            if data.strip() == b"[DONE]":
                self._judge(out, ended=True)
                out.append(sse.DONE)
                self.done = True
                continue
            chunk = load(data)
            if chunk is None:
                raise Unreadable
            self._take(chunk, out)
        return b"".join(out)

    def _take(self, chunk: Chunk, out: list[bytes]) -> None:
        choice = _choice(chunk)
        delta = choice.get("delta") or {}
        text = text_of(choice) or ""
        if not isinstance(text, str):
            raise Unreadable
        ended = bool(choice.get("finish_reason") is not None or (not choice and chunk.get("usage")))
        if text:
            text = self._whole_characters(text, ended=ended)
            _set_text(choice, text)
        if self._cut is not None:
            self._write(chunk, out)
            return
        self._held.append(chunk)
        self._text += text
        calls = any(delta.get(key) for key in delta.keys() - {"role", "content", *THOUGHTS})
        if text or ended or calls:
            self._judge(out, ended=ended or calls)

    def _judge(self, out: list[bytes], *, ended: bool) -> None:
        if self._cut is not None:
            return
        self._cut = self._seam.judge(self._text, ended=ended)
        if self._cut is not None:
            self._left_out = self._cut
            held, self._held = self._held, []
            for chunk in held:
                self._write(chunk, out)

    def _write(self, chunk: Chunk, out: list[bytes]) -> None:
        if self.done:
            return
        choice = _choice(chunk)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            if self._said.role:
                delta.pop("role", None)
                delta.pop("refusal", None) if not delta.get("refusal") else None
            if self._said.text:
                for key in THOUGHTS & delta.keys():
                    del delta[key]
        self._write_text(choice)
        if chunk.get("usage"):
            chunk["usage"] = self.usage(chunk["usage"])
        if choice and not _says(choice) and not chunk.get("usage"):
            return
        own = {key: value for key, value in chunk.items() if key not in IDENTITY}
        out.append(event_of({**self._identity, **own} if self._identity else chunk))
        self.done = self.stopped

    def _write_text(self, choice: Chunk) -> None:
        text = text_of(choice) or ""
        if self._cut and text:
            self._cut, text = max(0, self._cut - len(text)), text[self._cut :]
        kept = self._guard.feed(text) if text else ""
        if self._guard.complete:
            self.stopped = True
            choice["finish_reason"] = "stop"
        elif choice.get("finish_reason") is not None:
            kept += self._guard.flush()
        if kept or text_of(choice):
            _set_text(choice, kept)

    def _whole_characters(self, text: str, *, ended: bool) -> str:
        text, self._carry = self._carry + text, ""
        if not ended and "\ud800" <= text[-1:] <= "\udbff":
            text, self._carry = text[:-1], text[-1]
        whole = joined(text)
        return text if whole is None else whole

    def usage(self, told: Chunk) -> Chunk:
        """The whole answer's usage, where that of the rest is ``told``."""
        given, wrote = told.get("prompt_tokens"), told.get("completion_tokens")
        if not isinstance(given, int) or not isinstance(wrote, int):
            return told
        prompt = self._tally.prompt(given)
        output = self._tally.output(wrote, self.repeated)
        usage = {
            **told,
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }
        details = told.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            cached = min(details["cached_tokens"], prompt)
            usage["prompt_tokens_details"] = {**details, "cached_tokens": cached}
        return usage


class StopGuard:
    """Looks for stop strings that began in the first part: nobody else sees both of their halves."""

    __slots__ = ("_rests", "_text", "complete")

    def __init__(self, said: str, stops: tuple[str, ...]) -> None:
        self._rests = [
            stop[size:]
            for stop in stops
            for size in range(1, len(stop))
            if said.endswith(stop[:size])
        ]
        self._text = ""
        self.complete = False

    def feed(self, text: str) -> str:
        """What of ``text`` can be sent."""
        if not self._rests:
            return text
        self._text += text
        if any(self._text.startswith(rest) for rest in self._rests):
            self.complete = True
            return ""
        self._rests = [rest for rest in self._rests if rest.startswith(self._text)]
        return "" if self._rests else self.flush()

    def flush(self) -> str:
        """What was held back: no stop string came of it."""
        text, self._text = self._text, ""
        return text


def ending(said: Said, reason: str | None, usage: tuple[int, int] | None) -> bytes:
    """The end of an answer that is whole but for it. ``reason``: its finish_reason, if that was not sent; ``usage``:
    tokens in and out, if they are to be told.
    """
    out: list[bytes] = []
    if reason is not None:
        older = said.identity.get("object") == "text_completion"
        body: Chunk = {"text": ""} if older else {"delta": {}}
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": reason}
        out.append(event_of({**said.identity, "choices": [choice]}))
    if usage is not None:
        given, wrote = usage
        told = {"prompt_tokens": given, "completion_tokens": wrote, "total_tokens": given + wrote}
        out.append(event_of({**said.identity, "choices": [], "usage": told}))
    return b"".join([*out, sse.DONE])


def event_of(chunk: Chunk) -> bytes:
    """A chunk as an event of a stream."""
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    try:
        return b"data: " + text.encode() + b"\n\n"
    except UnicodeEncodeError:  # half a character, which only an escape can say
        return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _choice(chunk: Chunk) -> dict[str, Any]:
    choices = chunk.get("choices")
    if not choices:
        return {}
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Unreadable
    return choices[0]


def _set_text(choice: Chunk, text: str) -> None:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        delta["content"] = text
    else:
        choice["text"] = text


def _says(choice: Chunk) -> bool:
    """Whether a chunk's choice tells its reader anything."""
    delta = choice.get("delta") or {}
    return bool(
        choice.get("finish_reason") is not None or choice.get("text") or any(delta.values())
    )
