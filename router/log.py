"""Logging: lines for people in a terminal, JSON lines for machines, and one line for every request.

The standard library's logging does the work; here are its two formatters, its handler, its one setup and
`RequestLog`, which turns events into lines. A line never has a prompt, an answer, a key or a secret: events don't
carry them. Whatever a value says, it can't start a new line or move a terminal's cursor (CWE-117).

Off costs nothing but one comparison: `RequestLog` asks for the level before it builds anything. On, lines wait a
moment and are written together, for a write is a system call and costs more than the line. Warnings and errors don't
wait, nor does what is said where no event loop runs, nor the end of the process; only a crash of the interpreter or
a kill -9 can lose lines, those of the last FLUSH_S at most.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache, partial
from math import floor
from typing import Any, Literal, TextIO, get_args

import msgspec
from msgspec.structs import astuple

from router.events import (
    AttemptDone,
    Event,
    Hearer,
    LimitDecision,
    NodeState,
    Recovery,
    RequestDone,
    TargetState,
)

Format = Literal["auto", "human", "json"]
Value = str | int | float | bool | None

LEVELS = ("debug", "info", "warning", "error")
_INFO = logging.INFO
_OURS = ("nenya", "router", "engines")
"""Loggers that follow the level; other libraries stay at warnings unless it is debug."""
_MOST_CHARS = 500
"""Of one value: an upstream's error page must not fill the log."""
_SHORT_BYTES = 1000
"""Of a JSON line: one that is longer is looked at value by value, and what is too long in it is cut."""
_ROUND_DIGITS = 6
_ROUND = 10.0**_ROUND_DIGITS
"""Of a second: microseconds are the finest that a clock here means."""
_WHOLE = 1.5 * 2.0**52
"""Added and taken away again, it leaves the nearest whole number: a double that large has no room for a fraction."""
FLUSH_S = 0.1
"""How long a line may wait to be written; who watches a log doesn't notice it."""
MOST_HELD = 128
"""Lines that wait together: to make them takes about a quarter of a millisecond of the loop's time."""

_LEVEL_NAMES = {logging.INFO: "info", logging.WARNING: "warning"}
"""Of events' lines."""
_encoder = msgspec.json.Encoder()
_requests = logging.getLogger("nenya.requests")


def install(level: str, format: Format, stream: TextIO) -> None:  # noqa: A002 - the option's name
    """Send what is logged to ``stream``, in place of what an earlier call set up.

    ``level`` is one of LEVELS. ``auto`` is human in a terminal and JSON elsewhere.
    """
    human = format == "human" or (format == "auto" and stream.isatty())
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    handler = Lines(stream, HumanFormatter() if human else JsonFormatter())
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, Lines)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(number if number <= logging.DEBUG else max(number, logging.WARNING))
    for name in _OURS:
        logging.getLogger(name).setLevel(number)


def plain(text: str) -> str:
    """``text`` on one line: whatever a terminal or a line reader could act on is escaped, and it is cut to length."""
    cut = text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 1]}…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


class Line(msgspec.Struct, frozen=True, gc=False):
    """What a line says, before it is written out."""

    at: float
    """Seconds since the epoch."""
    level: int
    logger: str
    message: str
    fields: Event | Mapping[str, Value]
    traceback: str = ""


class LineFormatter(logging.Formatter):
    """What the two formats have alike."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as a line."""
        return self.write(self.line_of(record))

    def line_of(self, record: logging.LogRecord) -> Line:
        """What is kept of a record, which may change once it was logged."""
        return Line(
            at=record.created,
            level=record.levelno,
            logger=record.name,
            message=record.getMessage(),
            fields=getattr(record, "fields", {}),
            traceback=self.formatException(record.exc_info) if record.exc_info else "",
        )

    def write(self, line: Line) -> str:
        """The line, without its end."""
        raise NotImplementedError

    def write_all(self, lines: Iterable[Line]) -> str:
        """The lines, with their ends."""
        return "".join([f"{self.write(line)}\n" for line in lines])


class HumanFormatter(LineFormatter):
    """``12:30:01.123 info    request  model=starter status=200``; a traceback follows, indented.

    Fields without a value are left out.
    """

    def write(self, line: Line) -> str:
        """One line, and one for each line of a traceback."""
        clock = time.strftime("%H:%M:%S", time.localtime(line.at))
        shown = (
            (name, value) for name, value in _shown(line.fields).items() if value not in {None, ""}
        )
        fields = " ".join(f"{name}={_word(value)}" for name, value in shown)
        text = f"{clock}.{_ms(line.at):03d} {_level(line.level):<7} {plain(line.message)}"
        lines = [f"{text}  {fields}" if fields else text]
        lines += [f"    {plain(text)}" for text in line.traceback.splitlines()]
        return "\n".join(lines)


class JsonFormatter(LineFormatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message`` and the fields beside them."""

    def __init__(self) -> None:
        super().__init__()
        self._at_ms = -1
        """The millisecond of the last line, since the epoch."""
        self._time = ""
        """The same as it is written."""
        self._shapes: dict[type, Shape] = {}

    def write(self, line: Line) -> str:
        """One line; its values are only looked at one by one where something in it must be escaped or cut."""
        try:
            raw = _encoder.encode(self._whole(line))
        except UnicodeEncodeError:  # a lone surrogate
            return _careful(self._values(line))
        if b"\\" not in raw and len(raw) <= _SHORT_BYTES and (text := raw.decode()).isprintable():
            return text
        return _careful(self._values(line))

    def write_all(self, lines: Iterable[Line]) -> str:
        """All lines; each is only looked at where something in one of them is not plain ASCII, or long."""
        lines = list(lines)
        try:
            raw = _encoder.encode_lines([self._whole(line) for line in lines])
        except UnicodeEncodeError:
            return super().write_all(lines)
        escapes = b"\\" in raw or b"\x7f" in raw  # the one that JSON doesn't escape
        if escapes or max(map(len, io.BytesIO(raw)), default=0) > _SHORT_BYTES + 1:
            return super().write_all(lines)
        try:
            return raw.decode("ascii")
        except UnicodeDecodeError:
            return super().write_all(lines)

    def _whole(self, line: Line) -> msgspec.Struct | Mapping[str, Value]:
        """The line as what is encoded. A backslash in its JSON says that something was escaped, or must be."""
        fields = line.fields
        kind = type(fields)
        found = self._shapes.get(kind)
        if found is None:
            if not isinstance(fields, msgspec.Struct):
                return self._values(line)
            found = self._shapes[kind] = _shape(kind)
        if line.traceback:
            return self._values(line)
        at_ms = floor(line.at * 1000.0)
        if at_ms != self._at_ms:
            self._at_ms, self._time = at_ms, _time(at_ms)
        shape, fractions = found
        level = _LEVEL_NAMES.get(line.level) or _level(line.level)
        values = [self._time, level, line.logger, line.message, *astuple(fields)]  # type: ignore[arg-type]
        for place in fractions:
            if (value := values[place]) is not None:
                values[place] = (value * _ROUND + _WHOLE - _WHOLE) / _ROUND
        return shape(*values)

    def _values(self, line: Line) -> dict[str, Value]:
        """The line's names and values; the first four keep their place and their value."""
        first: dict[str, Value] = {
            "time": _time(floor(line.at * 1000.0)),
            "level": _level(line.level),
            "logger": line.logger,
            "message": line.message,
        }
        whole = {**first, **_shown(line.fields), **first}
        if line.traceback:
            whole["traceback"] = line.traceback
        return whole


class Lines(logging.Handler):
    """Writes lines to a stream, those of a moment together; see the module's text for what waits and what doesn't."""

    def __init__(self, stream: TextIO, formatter: LineFormatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._formatter = formatter
        self._held: list[Line] = []
        self.batch = 0
        """The number of times that lines were written."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """Which will write what is held."""

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        try:
            self.hold(self._formatter.line_of(record))
        except Exception:  # noqa: BLE001 - logging's way: what can't be logged is told on stderr
            self.handleError(record)

    def hold(self, line: Line) -> None:
        """Take a line. It is made into text when it is written: many in a row cost half of one now and then."""
        self._held.append(line)
        if line.level > _INFO or len(self._held) >= MOST_HELD:
            self.flush()
        elif self._loop is None or self._loop.is_closed():
            self._flush_soon()

    def flush(self) -> None:
        """Write what is held."""
        self.acquire()
        try:
            self._loop = None
            self.batch += 1
            held = self._held[:]  # another thread may add to it meanwhile
            text = self._formatter.write_all(held)
            del self._held[: len(held)]
            if text:
                self._stream.write(text)
                self._stream.flush()
        finally:
            self.release()

    def close(self) -> None:
        """Write what is held; the stream stays open."""
        self.flush()
        super().close()

    def _flush_soon(self) -> None:
        try:
            self._loop = loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
        else:
            loop.call_later(FLUSH_S, self.flush)


def only_lines(logger: logging.Logger) -> Lines | None:
    """The handler of this module, if what ``logger`` is told goes to it and to nobody else."""
    found: Lines | None = None
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            if found is not None or not isinstance(handler, Lines):
                return None
            found = handler
        at = at.parent if at.propagate else None
    return found


class RequestLog(Hearer):
    """A listener for events: one line per request, failed attempt, and change of a target's or a node's state."""

    def __init__(self, logger: logging.Logger = _requests) -> None:
        self._logger = logger
        self._lines: Lines | None = None
        """Who takes the lines of requests; looked for with the first of a batch."""
        self._batch = 0
        self.hears = {
            RequestDone: self._request,
            AttemptDone: self._attempt,
            LimitDecision: partial(self._write, logging.INFO, "limit"),
            Recovery: partial(self._write, logging.WARNING, "recovery"),
            TargetState: partial(self._write, logging.INFO, "target"),
            NodeState: partial(self._write, logging.INFO, "node"),
        }

    def _request(self, event: RequestDone) -> None:
        lines = self._lines
        if event.status >= 500:
            self._write(logging.WARNING, "request", event)
        elif lines is None or lines.batch != self._batch:
            self._write(logging.INFO, "request", event)
        else:
            lines.hold(Line(time.time(), _INFO, self._logger.name, "request", event))

    def _attempt(self, event: AttemptDone) -> None:
        if event.fault is not None:
            self._write(logging.WARNING, "attempt failed", event)

    def _write(self, level: int, message: str, event: Event) -> None:
        """Write the line of ``event``, if the level wants it."""
        logger = self._logger
        if not logger.isEnabledFor(level):
            return
        lines = only_lines(logger)
        if level == logging.INFO:
            self._lines, self._batch = lines, 0 if lines is None else lines.batch
        if lines is not None:
            # Not a record: logging's look for files, threads and callers costs more than the line.
            lines.hold(Line(time.time(), level, logger.name, message, event))
        else:
            logger.log(level, message, extra={"fields": _shown(event)})


Shape = tuple[type[msgspec.Struct], tuple[int, ...]]
"""What is encoded as the JSON line of an event, and the places in it that hold a fraction."""


def _shape(kind: type[Any]) -> Shape:
    """That of a kind of events."""
    alike = [(name, str) for name in ("time", "level", "logger", "message")]
    own = [(field.name, field.type) for field in msgspec.structs.fields(kind)]
    fractions = [
        place
        for place, (_, type_) in enumerate([*alike, *own])
        if float in {type_, *get_args(type_)}
    ]
    return msgspec.defstruct(f"{kind.__name__}Line", [*alike, *own], gc=False), tuple(fractions)


def _shown(fields: Event | Mapping[str, Value]) -> Mapping[str, Value]:
    if isinstance(fields, Mapping):
        return fields
    shown: dict[str, Value] = msgspec.structs.asdict(fields)
    for name, value in shown.items():
        kind = type(value)
        if kind is float:
            shown[name] = round(value, _ROUND_DIGITS)  # type: ignore[arg-type]
        elif kind not in _PLAIN:
            shown[name] = str(value.value)  # type: ignore[union-attr]  # an enum: FaultKind
    return shown


_PLAIN = frozenset({str, int, bool, type(None)})


def _time(at_ms: int) -> str:
    """A millisecond since the epoch in UTC, as ISO 8601 wants it."""
    return f"{_second(at_ms // 1000)}.{at_ms % 1000:03d}Z"


@lru_cache(maxsize=1)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _ms(at: float) -> int:
    return int(at * 1000) % 1000


@cache
def _level(number: int) -> str:
    return logging.getLevelName(number).lower()


def _careful(line: Mapping[str, Value]) -> str:
    """The line as JSON, every text in it made plain; a traceback keeps its lines, as JSON escapes them."""
    safe: dict[str, Value] = {}
    for name, value in line.items():
        if not isinstance(value, str):
            safe[name] = value
        elif name == "traceback":
            safe[name] = "\n".join(plain(part) for part in value.splitlines())
        else:
            safe[name] = plain(value)
    return msgspec.json.encode(safe).decode()


def _word(value: Value) -> str:
    """One word of a human's line: quoted where a space or a quote would make it two."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str):
        return f"{value:g}" if isinstance(value, float) else str(value)
    word = plain(value)
    if word and not any(c in ' "=\\' for c in word):
        return word
    return msgspec.json.encode(word).decode()
