"""What llama.cpp's server does and xllamacpp has no function for: render a conversation, and make tokens of text.

Both are asked over the server's own HTTP, on a Unix socket in a folder that only this user can enter, with a random
key. Blocking, a connection a question: it is asked on a request's own thread, about once, and only by requests that
need it. For answers this road is not taken; their pieces would cross it one by one.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import http.client
import socket
from typing import TypeVar

import msgspec
from msgspec import Struct

from engines.base import EngineError

TIMEOUT_S = 60.0
"""The answer comes within milliseconds; longer means that the server is gone."""

T = TypeVar("T")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Rendered(Struct):
    prompt: str


class _Tokens(Struct):
    tokens: list[int]


class _Text(Struct):
    content: str
    add_special: bool
    parse_special: bool = True


class _Why(Struct, frozen=True):
    message: str = "no reason given"


class _Refused(Struct):
    error: _Why = _Why()


class SideDoor:
    """The server's socket and key."""

    def __init__(self, path: str, key: str) -> None:
        self._path = path
        self._key = key

    def render(self, body: bytes) -> str:
        """Return the prompt that the chat template makes of ``body``, a request's JSON. Raises EngineError."""
        return self._ask("/apply-template", body, _Rendered).prompt

    def tokens(self, pieces: list[str]) -> list[int]:
        """Return the tokens of a prompt, its pieces read apart. Raises EngineError."""
        found: list[int] = []
        for at, piece in enumerate(pieces):
            body = msgspec.json.encode(_Text(piece, add_special=at == 0))
            found += self._ask("/tokenize", body, _Tokens).tokens
        return found

    def _ask(self, path: str, body: bytes, kind: type[T]) -> T:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        connection = _Connection(self._path)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError("died", f"llama.cpp's socket: {error}") from error
        finally:
            connection.close()
        try:
            if response.status < 300:
                return msgspec.json.decode(data, type=kind)
            message = msgspec.json.decode(data, type=_Refused).error.message
        except msgspec.MsgspecError as error:
            raise EngineError("internal", f"llama.cpp's {path}: {error}") from error
        raise EngineError("invalid", message)
