"""Server-sent events as bytes: cut at event boundaries, looked into only where somebody must.

A stream is relayed in blobs of whole events. Upstreams end lines with LF, CRLF or CR, put a byte order mark in
front, and segment anywhere, even inside a character; the blobs always use LF, and what is inside an event is left
as it came.

Source: WHATWG HTML, section 9.2.6 (parsing an event stream).
"""

# Of bytes `find` is asked here and in `http.relay`, not `in`: that makes an error and drops it, ten times the work.

from __future__ import annotations

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_BOM = b"\xef\xbb\xbf"


class EventTooLong(ValueError):  # noqa: N818 - names the event
    """One event is larger than the limit."""


class Splitter:
    """Cuts a stream into blobs of whole events."""

    __slots__ = ("_carry_cr", "_rest", "_started", "clean", "max_event_bytes")

    def __init__(self, max_event_bytes: int = 16 * 1024 * 1024) -> None:
        """An event above ``max_event_bytes`` is refused, so that an endless line can't fill memory."""
        self._rest = b""
        self._started = False
        self._carry_cr = False
        self.max_event_bytes = max_event_bytes
        self.clean = False
        """What comes next begins a line: data of whole events without a CR would come out as it is."""

    def feed(self, data: bytes) -> bytes:
        """The events that ``data`` completes, as one blob, or ``b""``. Raises EventTooLong."""
        if not self._started:
            if self._rest or not data or data[0] == _BOM[0]:
                data = self._strip_bom(data)
            else:
                self._started = True
        if data.find(b"\r") >= 0 or self._carry_cr:
            data = self._unify_line_ends(data)
        rest = self._rest
        if rest:
            data = rest + data
        end = data.rfind(b"\n\n")
        self.clean = False
        if end < 0:
            if len(data) > self.max_event_bytes:
                raise EventTooLong(f"an event is longer than {self.max_event_bytes} bytes")
            self._rest = data
            return b""
        end += 2
        if end == len(data):
            self._rest = b""
            self.clean = not self._carry_cr
            return data
        self._rest = data[end:]
        return data[:end]

    def flush(self) -> bytes:
        """What is left when the stream ends: an event whose blank line never came, completed; or ``b""``."""
        rest, self._rest = self._rest.strip(b"\n"), b""
        return rest + b"\n\n" if rest else b""

    def _strip_bom(self, data: bytes) -> bytes:
        data = self._rest + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._rest = data
            return b""
        self._rest = b""
        self._started = True
        return data.removeprefix(_BOM)

    def _unify_line_ends(self, data: bytes) -> bytes:
        if self._carry_cr:
            # A CR ended the last segment and was taken for a line end: the LF of a CRLF adds none.
            data = data.removeprefix(b"\n") if data else data
        self._carry_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def split(blob: bytes) -> list[bytes]:
    """The events of a blob, without their blank lines."""
    return [event for event in blob.split(b"\n\n") if event.strip(b"\n")]


def data_of(event: bytes) -> bytes | None:
    """An event's data: its data lines joined by LF; None for comments and other fields alone."""
    if event.startswith(b"data: ") and event.find(b"\n") < 0:
        return event[6:]
    lines = [
        line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None


def has_data(blob: bytes) -> bool:
    """Whether a blob says anything: comments and heartbeats don't."""
    return blob.startswith(b"data:") or b"\ndata:" in blob
