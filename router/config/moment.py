"""When a key expires, as a config or a command line writes it: a date or a time, in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

_DATE_CHARS = len("2027-01-31")


def moment(text: str) -> float | None:
    """Seconds since the epoch of ``text``; a date counts to its end. None if there is no such day or time."""
    try:
        if len(text) == _DATE_CHARS:
            day = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
            return (day + timedelta(days=1)).timestamp()
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        return None
    zoned = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    return zoned.timestamp()
