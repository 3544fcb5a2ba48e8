"""The client behind `nenya chat`: one request at a time over the standard library's HTTP, and its streamed answer.

It knows OpenAI's wire format and nothing of the router, so it talks to any such server. What goes wrong becomes a
ChatFailed whose text is for people; a stream that ends without ``[DONE]`` is one of them, never a short answer.
"""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

_CONNECT_TIMEOUT_S = 10
_SILENCE_TIMEOUT_S = 600
"""Between two pieces; the router's own longest wait."""
_MOST_LINE_BYTES = 4 * 1024 * 1024
"""Of one event: far above any delta, so that a broken server can't fill the memory."""
_MOST_BODY_BYTES = 4 * 1024 * 1024


class ChatFailed(Exception):  # noqa: N818 - read as a sentence where it is caught
    """No answer, or not all of it; the text says why."""


class NoServer(ChatFailed):
    """Nothing answers at the URL."""


class Message(Struct, frozen=True):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class _StreamOptions(Struct, frozen=True):
    include_usage: bool


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is asked; always as a stream, with its usage at the end."""

    model: str
    messages: tuple[Message, ...]
    temperature: float | None = None
    max_completion_tokens: int | None = None


class _Body(Request, frozen=True, kw_only=True, omit_defaults=True):
    stream: bool
    stream_options: _StreamOptions


class Piece(Struct, frozen=True):
    """A piece of the answer; the last may say how many tokens the whole has."""

    text: str = ""
    output_tokens: int | None = None


class _Delta(Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct, frozen=True):
    delta: _Delta = _Delta()


class _Usage(Struct, frozen=True):
    completion_tokens: int | None = None


class _Error(Struct, frozen=True):
    message: str
    code: str | int | None = None


class _Chunk(Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: _Error | None = None


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: tuple[_Model, ...]


def key_in(variable: str) -> str | None:
    """The key in that environment variable, if it has one. Raises ChatFailed where a header can't have it."""
    key = os.environ.get(variable) or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ChatFailed(f"the key in {variable} has characters that a header can't have")
    return key


class Client:
    """A server and the key for it."""

    def __init__(self, url: str, key: str | None) -> None:
        """``url`` with or without ``/v1``. Raises ChatFailed where it is none."""
        base = url.rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(base)
            self._port = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ChatFailed(f"--url must be like http://127.0.0.1:8080, not {url}")
        self._host = parts.hostname
        self._secure = parts.scheme == "https"
        self._prefix = parts.path
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self.url = base

    def models(self) -> list[str]:
        """The names of the server's models. Raises ChatFailed."""
        try:
            return [
                model.id for model in msgspec.json.decode(self.get("/v1/models"), type=_Models).data
            ]
        except msgspec.MsgspecError as error:
            raise ChatFailed(f"{self.url} does not speak OpenAI's API") from error

    def get(self, path: str) -> bytes:
        """What the server answers there. Raises ChatFailed."""
        with self._sent("GET", path, None) as response:
            return response.read(_MOST_BODY_BYTES)

    def stream(self, request: Request) -> Iterator[Piece]:
        """The answer, piece by piece as it comes. Raises ChatFailed."""
        fields = {name: getattr(request, name) for name in request.__struct_fields__}
        body = _Body(**fields, stream=True, stream_options=_StreamOptions(include_usage=True))
        with self._sent("POST", "/v1/chat/completions", msgspec.json.encode(body)) as response:
            for data in _events(response):
                if data == b"[DONE]":
                    return
                yield _piece(data)
        raise ChatFailed("the answer was cut off")

    @contextmanager
    def _sent(
        self, method: str, path: str, body: bytes | None
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to one request, its status checked; the connection closes with the block."""
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(_SILENCE_TIMEOUT_S)
        except (OSError, UnicodeError) as error:
            connection.close()
            why = "" if isinstance(error, ConnectionRefusedError) else f" ({error})"
            raise NoServer(f"nothing answers at {self.url}{why}") from error
        try:
            connection.request(method, self._prefix + path, body, self._headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise _refused(response)
            yield response
        except TimeoutError as error:
            raise ChatFailed(f"no word from {self.url} for {_SILENCE_TIMEOUT_S} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ChatFailed(f"the connection to {self.url} broke") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=_CONNECT_TIMEOUT_S, context=context
        )


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of each server-sent event; OpenAI's are one line each."""
    while line := response.readline(_MOST_LINE_BYTES):
        if line.startswith(b"data:"):
            yield line.removeprefix(b"data:").strip()


def _piece(data: bytes) -> Piece:
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except msgspec.MsgspecError as error:
        raise ChatFailed("the server sent something that is not OpenAI's format") from error
    if chunk.error is not None:
        raise ChatFailed(_told(chunk.error))
    texts = (choice.delta.content or choice.delta.refusal or "" for choice in chunk.choices)
    tokens = chunk.usage.completion_tokens if chunk.usage is not None else None
    return Piece("".join(texts), tokens)


def _refused(response: http.client.HTTPResponse) -> ChatFailed:
    """What the error object of a response says."""
    body = response.read(_MOST_BODY_BYTES)
    try:
        error = msgspec.json.decode(body, type=_Chunk).error
    except msgspec.MsgspecError:
        error = None
    said = _told(error) if error is not None else response.reason
    hint = ""
    if response.status == http.client.UNAUTHORIZED:
        hint = "; the key comes from the environment, see --key-env"
    return ChatFailed(f"{response.status}: {said}{hint}")


def _told(error: _Error) -> str:
    return f"{error.message} ({error.code})" if error.code is not None else error.message
