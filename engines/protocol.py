"""The frames between a router and a node: msgpack, each behind its length in four bytes, big-endian.

    router -> node   Hello, Generate, Cancel, Drain
    node -> router   Loading, Ready, Events, Failed, Status

The router dials, says Hello with the version it speaks, and hears Loading until Ready. Each Generate carries a
number of the router's choosing; every later frame about it carries the same. A request ends with an Events frame
whose last event is Usage, or with Failed; after a Cancel the node may send either, or nothing, and the router
drops what comes late. Status comes every STATUS_INTERVAL_S while the node's loop is alive: after Ready, silence means a
hang, and iterations that stand still while requests run mean one too. Before Ready it means nothing: a library
that loads a model may hold the interpreter's lock all the while. Drain lets running requests end and
refuses new ones.

Pure: bytes in, messages out. Sockets belong to the two ends.
"""

from __future__ import annotations

import struct
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from engines.base import EngineInfo, ErrorKind, Event, GenerateRequest, Health

VERSION = 3
"""Grows with any change that an older end would misread; both ends must say the same."""

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""No request or answer comes near; a larger length is a broken peer."""

STATUS_INTERVAL_S = 0.25
"""Often enough to see a hang within a second, rare enough to cost nothing."""


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """The router's first frame."""

    version: int = VERSION


class Generate(Struct, frozen=True, array_like=True, tag="generate"):
    """Start request ``id``."""

    id: int
    request: GenerateRequest


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Stop request ``id``; unknown ids are ignored."""

    id: int


class Drain(Struct, frozen=True, array_like=True, tag="drain"):
    """Take no new request, finish the running ones, then exit."""


class Loading(Struct, frozen=True, array_like=True, tag="loading"):
    """The model is being loaded: share done from 0 to 1, None where unknown."""

    done: float | None = None


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    """Requests can be taken."""

    version: int
    info: EngineInfo


class Events(Struct, frozen=True, array_like=True, tag="events"):
    """What request ``id`` produced since its last frame, in order."""

    id: int
    events: tuple[Event, ...]


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """Request ``id`` ended without an answer; id 0 speaks of the node itself (a model that can't load)."""

    id: int
    kind: ErrorKind
    message: str


class Status(Struct, frozen=True, array_like=True, tag="status"):
    """The heartbeat."""

    health: Health
    draining: bool = False


ToNode = Hello | Generate | Cancel | Drain
ToRouter = Loading | Ready | Events | Failed | Status

T = TypeVar("T")
_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


class FrameError(ValueError):
    """Bytes that are no frame of this protocol; the connection can't go on."""


def encode(message: ToNode | ToRouter) -> bytes:
    """One message as one frame."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class FrameDecoder(Generic[T]):
    """Cuts a byte stream, however segmented, into messages of one direction."""

    def __init__(self, messages: object) -> None:
        """``messages`` is ToNode or ToRouter."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(messages)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that ``data`` completes. Raises FrameError; the decoder is unusable after it."""
        buffer = self._buffer
        buffer += data
        messages: list[T] = []
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, at)
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = at + _LENGTH.size + size
            if len(buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(bytes(buffer[at + _LENGTH.size : end])))
            except msgspec.MsgspecError as error:
                raise FrameError(f"not a message of this protocol: {error}") from error
            at = end
        del buffer[:at]
        return messages
