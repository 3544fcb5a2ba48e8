"""How providers count a request against their limits of tokens.

    usage       the prompt when it comes, the answer when it is written: most of them
    uncached    the same, but what comes from their cache is free: Groq, Anthropic
    max_tokens  prompt and the longest possible answer when the request comes, and nothing is given back: OpenAI, Azure
    input       the prompt alone

Limits of input or of output alone count just that, whatever ``counts`` says.

Source: OpenAI, "Rate limits" ("the maximum of max_tokens and the estimated number of tokens"); Microsoft, "Manage Azure
OpenAI quota" (prompt and max_tokens, at admission); Groq and Anthropic, "Rate limits" (cached tokens don't count).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from msgspec import Struct

from router.config.schema import Counts, Provider
from router.ratelimits import Resource

RESOURCES: tuple[Resource, ...] = ("requests", "tokens", "input_tokens", "output_tokens")
"""In the order of a charge's numbers."""
Units = tuple[int, int, int, int]

_BY_HOST: tuple[tuple[str, Counts], ...] = (
    ("openai.com", "max_tokens"),
    ("azure.com", "max_tokens"),
    ("groq.com", "uncached"),
    ("anthropic.com", "uncached"),
)


class Charge(Struct, frozen=True):
    """Units of each resource that one request takes of its provider's limits."""

    at_once: Units
    """When it comes."""
    later: Units
    """While it is answered."""


class Need:
    """What a request is thought to take, whoever counts it."""

    __slots__ = ("_charges", "input_tokens", "limit", "output_tokens")

    def __init__(self, input_tokens: int, output_tokens: int, limit: int | None = None) -> None:
        """``limit``: the longest answer it allows, if it says."""
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.limit = limit
        self._charges: dict[Counts, Charge] = {}

    def charge(self, counts: Counts) -> Charge:
        """The same to a provider that counts so."""
        found = self._charges.get(counts)
        if found is None:
            found = charge(counts, self.input_tokens, self.output_tokens, self.limit)
            self._charges[counts] = found
        return found


def counts_of(provider: Provider) -> Counts:
    """How that provider counts: what its config says, or what its host is known for."""
    if provider.counts is not None:
        return provider.counts
    host = urlsplit(provider.base_url).hostname or ""
    for known, counts in _BY_HOST:
        if host == known or host.endswith(f".{known}"):
            return counts
    return "usage"


def charge(
    counts: Counts, input_tokens: int, output_tokens: int, limit: int | None, cached: int = 0
) -> Charge:
    """What a request is charged. ``limit``: the longest answer it allows, if it says; ``cached``: of its input."""
    if counts == "uncached":
        input_tokens -= cached
    tokens, written = input_tokens, output_tokens
    if counts == "max_tokens":
        tokens += output_tokens if limit is None else limit
    if counts in {"max_tokens", "input"}:
        written = 0
    return Charge((1, tokens, input_tokens, 0), (0, written, 0, output_tokens))
