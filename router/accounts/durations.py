"""Durations as OpenAI's headers and messages write them, which is how Go prints a time.Duration.

Source: https://pkg.go.dev/time#Duration.String.
"""

from __future__ import annotations

_HOUR_MS = 3_600_000
_MINUTE_MS = 60_000
_SECOND_MS = 1000


def go_duration(seconds: float) -> str:
    """``0s``, ``12ms``, ``1.5s``, ``6m0s``, ``23h59m3s``: rounded up to milliseconds, never a wait too short."""
    return go_ms(max(0, -int(-seconds * _SECOND_MS // 1)))


def go_ms(left: int) -> str:
    """The same of milliseconds."""
    if 0 < left < _SECOND_MS:
        return f"{left}ms"
    hours, left = divmod(left, _HOUR_MS)
    minutes, left = divmod(left, _MINUTE_MS)
    text = f"{left / _SECOND_MS:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
