"""What a provider's headers tell of its limits, in whichever words it uses.

    x-ratelimit-remaining-tokens: 149984         OpenAI, Azure, Groq, and most that speak their dialect
    x-ratelimit-remaining-tokens-minute: 4999911 Mistral (-req-minute), Cerebras, SambaNova (-requests-day)
    x-ratelimit-remaining-tokens-generated: 8    Fireworks; -tokens-prompt beside it
    x-ratelimit-remaining: 57                    OpenRouter, Together: requests
    x-tokenlimit-remaining: 98500                Together: tokens a second
    anthropic-ratelimit-input-tokens-reset: 2026-01-27T12:00:30Z
    ratelimit: "default";r=50;t=30               the IETF's draft; ratelimit-policy: "default";q=100;w=60
    ratelimit-remaining: 50                      its older forms, which proxies send

A name is taken as words: which field it is, what it counts, of which window. One with a word that isn't known is of
another limit (images, audio, a project) and left alone. A reset is a duration (``6m0s``, ``20ms``, ``7.66``), seconds
or milliseconds since 1970, or an RFC 3339 time; times are compared with the response's own date, not with our clock.
Nothing raises: what can't be read is None.

Source: the providers' documentation of their headers, and recorded responses; draft-ietf-httpapi-ratelimit-headers, 03
to 10; Go's time.ParseDuration.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from msgspec import Struct

from router.ratelimits import Reading, Readings, Resource

Field = Literal["limit", "remaining", "reset"]

_FIELDS: dict[str, Field] = {"limit": "limit", "remaining": "remaining", "reset": "reset"}
_REQUESTS = frozenset({"req", "requests"})
_TOKENS = frozenset({"token", "tokens"})
_INPUT = frozenset({"input", "prompt"})
_OUTPUT = frozenset({"output", "generated", "completion"})
_WINDOWS = {
    "second": "second", "1s": "second", "minute": "", "1m": "", "hour": "hour", "1h": "hour", "day": "day",
    "1d": "day", "month": "month",
}  # fmt: skip
_PREFIXES = (
    "x-ratelimitbysize-",
    "ratelimitbysize-",
    "x-tokenlimit-",
    "x-ratelimit-",
    "anthropic-ratelimit-",
    "ratelimit-",
)
_SIZES = _PREFIXES[:3]
"""Prefixes of limits on tokens."""
_IETF, _IETF_POLICY = "ratelimit", "ratelimit-policy"

_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?")
_PARTS = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(ns|us|µs|ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PARTS.pattern})+")
_UNITS_S = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0,
}  # fmt: skip
_EPOCH_S, _EPOCH_MS = 1e9, 1e12
"""From here on a number is no duration but a time: 31 years, or the year 2001."""
_WORDS = re.compile(r"[-_]")
_ITEM = re.compile(r'\s*(?:"?([^";,=]*)"?)((?:\s*;\s*[a-z]+\s*=\s*(?:"[^"]*"|[^;,]*))*)')
_PARAMETER = re.compile(r';\s*([a-z]+)\s*=\s*"?([^";,]*)"?')
_PAIR = re.compile(r"(limit|remaining|reset)\s*=\s*(\d{1,15})")
"""Of draft 07: ``limit=100, remaining=50, reset=5``."""


class _Name(Struct, frozen=True):
    """What a header's name says."""

    field: Field
    resource: Resource
    window: str


def read(headers: Mapping[str, str], wall: float) -> Readings:
    """What ``headers`` (names in lower case) say of limits. ``wall``: seconds since 1970, where they have no date."""
    found: dict[tuple[Resource, str], dict[str, float]] = {}
    for header, value in headers.items():
        name = _name(header)
        if name is None:
            continue
        number = _reset_s(value, headers, wall) if name.field == "reset" else _count(value)
        if number is not None:
            found.setdefault((name.resource, name.window), {})[name.field] = number
    if _IETF in headers or _IETF_POLICY in headers:
        _read_ietf(headers, found)
    return tuple(
        Reading(resource, _whole(one.get("limit")), _whole(one.get("remaining")), one.get("reset"), window)
        for (resource, window), one in found.items()
    )  # fmt: skip


@functools.lru_cache(maxsize=512)
def _name(header: str) -> _Name | None:
    """What a header's name says; a provider's few names are the same in every answer."""
    prefix = next((one for one in _PREFIXES if header.startswith(one)), None)
    if prefix is None or header == _IETF_POLICY:
        return None
    field: Field | None = None
    resource: set[Resource] = set()
    window = "second" if prefix == "x-tokenlimit-" else ""
    tokens = prefix in _SIZES
    for word in _WORDS.split(header.removeprefix(prefix)):
        if word in _FIELDS and field is None:
            field = _FIELDS[word]
        elif word in _REQUESTS:
            resource.add("requests")
        elif word in _TOKENS:
            tokens = True
        elif word in _INPUT:
            resource.add("input_tokens")
        elif word in _OUTPUT:
            resource.add("output_tokens")
        elif word in _WINDOWS:
            window = _WINDOWS[word]
        else:
            return None
    if field is None or len(resource) > 1 or (tokens and "requests" in resource):
        return None
    plain: Resource = "tokens" if tokens else "requests"
    return _Name(field, next(iter(resource), plain), window)


def _count(text: str) -> float | None:
    """A number of units; of several (``100, 100;w=60``) the first."""
    match = _NUMBER.match(text.strip())
    return float(match.group()) if match else None


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _reset_s(text: str, headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds until a limit is whole again."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number < _EPOCH_S:
            return number
        return max(0.0, (number / 1000 if number >= _EPOCH_MS else number) - _now(headers, wall))
    if _DURATION.fullmatch(text):
        return sum(float(count) * _UNITS_S[unit] for count, unit in _PARTS.findall(text))
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - _now(headers, wall))
    except (ValueError, OverflowError, OSError):
        return None


def _now(headers: Mapping[str, str], wall: float) -> float:
    """The provider's time of its response, else ours."""
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, OverflowError, OSError, TypeError, IndexError):
        return wall


def _read_ietf(
    headers: Mapping[str, str], found: dict[tuple[Resource, str], dict[str, float]]
) -> None:
    """The draft's two fields; what an older form of it told besides stays."""
    text = headers.get(_IETF, "")
    pairs = _PAIR.findall(text)
    if pairs:
        told = found.setdefault(("requests", ""), {})
        told.update({name: float(number) for name, number in pairs})
        return
    policies = dict(_items(headers.get(_IETF_POLICY, "")))
    for name, parameters in _items(text):
        policy = policies.get(name, {})
        resource: Resource = "tokens" if "token" in name.lower() else "requests"
        told = found.setdefault((resource, _window(policy.get("w"))), {})
        numbers = zip(
            _FIELDS, (policy.get("q"), parameters.get("r"), parameters.get("t")), strict=True
        )
        told.update({field: number for field, number in numbers if number is not None})


def _items(text: str) -> Iterator[tuple[str, dict[str, float]]]:
    """A structured field's items and their numbers."""
    for item in text.split(","):
        match = _ITEM.match(item)
        if match is None:
            continue
        numbers = ((name, _count(value)) for name, value in _PARAMETER.findall(match.group(2)))
        yield match.group(1).strip(), {name: number for name, number in numbers if number is not None}  # fmt: skip


def _window(seconds: float | None) -> str:
    """The name of the window that is nearest to ``seconds``."""
    if seconds is None:
        return ""
    for most, name in ((8, "second"), (500, ""), (10_000, "hour"), (500_000, "day")):
        if seconds < most:
            return name
    return "month"
