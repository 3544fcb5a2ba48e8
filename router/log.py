"""Logging: lines for people in a terminal, JSON lines for machines, and one line for every request.

The standard library's logging does the work; here are its two formatters, its one setup and `RequestLog`, which
turns events into lines. A line never has a prompt, an answer, a key or a secret: events don't carry them. Whatever
a value says, it can't start a new line or move a terminal's cursor (CWE-117).

Off costs nothing but one comparison: `RequestLog` asks for the level before it builds anything.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, TextIO

import msgspec

from router.events import (
    AttemptDone,
    Event,
    LimitDecision,
    NodeState,
    Recovery,
    RequestDone,
    TargetState,
)

Format = Literal["auto", "human", "json"]
Value = str | int | float | bool | None

LEVELS = ("debug", "info", "warning", "error")
_OURS = ("nenya", "router", "engines")
"""Loggers that follow the level; other libraries stay at warnings unless it is debug."""
_MOST_CHARS = 500
"""Of one value: an upstream's error page must not fill the log."""
_SHORT_CHARS = 1000
"""Of a JSON line: one that is longer is looked at value by value, and what is too long in it is cut."""
_ROUND_DIGITS = 6
"""Of a second: microseconds are the finest that a clock here means."""

_requests = logging.getLogger("nenya.requests")


def install(level: str, format: Format, stream: TextIO) -> None:  # noqa: A002 - the option's name
    """Send what is logged to ``stream``, in place of what an earlier call set up.

    ``level`` is one of LEVELS. ``auto`` is human in a terminal and JSON elsewhere.
    """
    human = format == "human" or (format == "auto" and stream.isatty())
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, _Ours)]:
        root.removeHandler(old)
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


class _Ours(logging.Formatter):
    """Marks the formatters of this module, so that a second `install` finds the first one's."""


class HumanFormatter(_Ours):
    """``12:30:01.123 info    request  model=starter status=200``; a traceback follows, indented.

    Fields without a value are left out.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line, and one for each line of a traceback."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        shown = (
            (name, value) for name, value in _fields(record).items() if value not in {None, ""}
        )
        fields = " ".join(f"{name}={_word(value)}" for name, value in shown)
        level = record.levelname.lower()
        line = f"{clock}.{int(record.msecs):03d} {level:<7} {plain(record.getMessage())}"
        lines = [f"{line}  {fields}" if fields else line]
        lines += [f"    {plain(text)}" for text in _traceback(self, record).splitlines()]
        return "\n".join(lines)


class JsonFormatter(_Ours):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message`` and the fields beside them."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; its values are only looked at one by one where something in it must be escaped."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Value] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line = {
            **line,
            **_fields(record),
            **line,
        }  # the first four keep their place and their value
        if text := _traceback(self, record):
            line["traceback"] = text
        return _quick(line) or _careful(line)


class RequestLog:
    """A listener for events: one line per request, failed attempt, and change of a target's or a node's state."""

    def __init__(self, logger: logging.Logger = _requests) -> None:
        self._logger = logger

    def __call__(self, event: Event) -> None:
        """Write the line of ``event``, if it has one and the level wants it."""
        level, message = _line(event)
        logger = self._logger
        if message and logger.isEnabledFor(level):
            # Not `logger.log`: it looks for its caller in the stack, a fifth of the line's cost.
            extra = {"fields": _shown(event)}
            record = logger.makeRecord(logger.name, level, "", 0, message, (), None, None, extra)
            logger.handle(record)


_LINES: Mapping[type, tuple[int, str]] = MappingProxyType(
    {
        Recovery: (logging.WARNING, "recovery"),
        TargetState: (logging.INFO, "target"),
        NodeState: (logging.INFO, "node"),
    }
)


def _line(event: Event) -> tuple[int, str]:
    """An event's level and message; no message is no line."""
    if isinstance(event, RequestDone):
        return (logging.INFO if event.status < 500 else logging.WARNING), "request"
    if isinstance(event, AttemptDone):
        return logging.WARNING, "attempt failed" if event.fault is not None else ""
    if isinstance(event, LimitDecision):
        return logging.INFO, "" if event.outcome == "admitted" else "limit"
    return _LINES.get(type(event), (logging.DEBUG, ""))


def _shown(event: Event) -> dict[str, Value]:
    fields: dict[str, Value] = {}
    for name, value in msgspec.structs.asdict(event).items():
        if isinstance(value, float):
            fields[name] = round(value, _ROUND_DIGITS)
        elif value is None or isinstance(value, str | int):
            fields[name] = value
        else:
            fields[name] = str(value.value)  # an enum: FaultKind
    return fields


def _quick(line: Mapping[str, Value]) -> str:
    """The line as JSON, if nothing in it must be escaped or cut; else empty."""
    try:
        text = msgspec.json.encode(line).decode()
    except UnicodeEncodeError:  # a lone surrogate
        return ""
    is_plain = "\\" not in text and text.isprintable()  # JSON escapes with a backslash
    return text if is_plain and len(text) <= _SHORT_CHARS else ""


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


def _fields(record: logging.LogRecord) -> Mapping[str, Value]:
    fields: Mapping[str, Value] = getattr(record, "fields", {})
    return fields


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


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
