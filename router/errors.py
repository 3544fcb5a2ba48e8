"""Everything that goes wrong, in one tree.

    NenyaError
    ├── ConfigError      a config that can't be used; every problem in it at once
    ├── ApiError         what a client is told: a status and OpenAI's error object
    ├── Fault            what went wrong with one attempt at one target; the dispatcher decides what follows
    └── IllegalMove      a state machine was asked for a move it doesn't have: a bug of ours

Foreign exceptions become one of these at the boundary where they appear, once, with ``from``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import msgspec

from router.ratelimits import Readings


class NenyaError(Exception):
    """The root."""


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong in a config file, and where."""

    message: str
    path: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        what = f"{self.path}: " if self.path else ""
        return f"{where}{what}{self.message}"


class ConfigError(NenyaError):
    """A config that can't be used."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join([source, *(f"  {problem}" for problem in problems)]))
        self.source = source
        self.problems = tuple(problems)


class IllegalMove(NenyaError):  # noqa: N818 - names the event, as a log reader would
    """An event that the object's present state has no transition for."""

    def __init__(self, owner: str, state: object, event: object) -> None:
        super().__init__(f"{owner}: {event} is not possible in state {state}")


class ErrorObject(msgspec.Struct, frozen=True):
    """OpenAI's error object; all four keys are always there."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class _Envelope(msgspec.Struct, frozen=True):
    error: ErrorObject


class ApiError(NenyaError):
    """What a client is told.

    ``body`` is the exact JSON where an upstream's own answer is passed on; otherwise it is made of ``error``.
    """

    def __init__(
        self,
        status: int,
        error: ErrorObject,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        super().__init__(f"{status} {error.code or error.type}: {error.message}")
        self.status = status
        self.error = error
        self.headers: Mapping[str, str] = headers or {}
        self.body = body if body is not None else msgspec.json.encode(_Envelope(error))


def invalid_request(
    message: str, *, param: str | None = None, code: str | None = None, status: int = 400
) -> ApiError:
    """The client's mistake, in OpenAI's words."""
    return ApiError(status, ErrorObject(message, "invalid_request_error", param, code))


def unauthorized(message: str) -> ApiError:
    """No key, or a wrong one."""
    error = ErrorObject(message, "invalid_request_error", None, "invalid_api_key")
    return ApiError(401, error, headers={"www-authenticate": "Bearer"})


def overloaded(message: str, code: str, retry_after_s: float) -> ApiError:
    """503: nobody can take the request now; ``retry_after_s`` says when somebody may."""
    headers = retry_after_headers(retry_after_s)
    return ApiError(503, ErrorObject(message, "server_error", None, code), headers=headers)


def shutting_down() -> ApiError:
    """What requests get while the process is on its way out."""
    return overloaded("The server is shutting down.", "shutting_down", 1.0)


def retry_after_headers(seconds: float) -> dict[str, str]:
    """Both forms that SDKs read: whole seconds, at least one, and milliseconds; rounded up, never too early."""
    whole = max(1, int(-(-seconds // 1)))
    return {"retry-after": str(whole), "retry-after-ms": str(max(1, -int(-seconds * 1000 // 1)))}


class FaultKind(enum.Enum):
    """What an attempt died of. The value is the label in metrics and the code in a client's error."""

    LOCAL = "router_fault"
    """The router's own network, resolver or descriptors: no target was asked."""
    CONNECT = "connect_failed"
    TIMEOUT_CONNECT = "connect_timeout"
    TIMEOUT_FIRST_BYTE = "first_token_timeout"
    TIMEOUT_IDLE = "stream_stalled"
    DEADLINE = "deadline_exceeded"
    RESET = "connection_reset"
    CUT = "stream_cut"
    MALFORMED = "malformed_answer"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    REFUSED_CREDENTIALS = "credentials_refused"
    UNKNOWN_MODEL = "unknown_model"
    CLIENT_ERROR = "client_error"
    CONTEXT_LENGTH = "context_length_exceeded"
    CONTENT_FILTER = "content_filter"
    CLIENT_SLOW = "client_too_slow"
    ENGINE_BUSY = "engine_busy"
    ENGINE_DIED = "engine_died"
    ENGINE_ERROR = "engine_error"


FINAL = frozenset({
    FaultKind.CLIENT_ERROR, FaultKind.CONTEXT_LENGTH, FaultKind.CONTENT_FILTER, FaultKind.CLIENT_SLOW,
    FaultKind.DEADLINE,
})  # fmt: skip
"""Kinds that another target of the same model would not mend: the request was wrong, nobody read its answer, or its
time was up.
"""

BLAMELESS = FINAL | {FaultKind.LOCAL}
"""Kinds that say nothing about the target."""

BUSY = frozenset({FaultKind.RATE_LIMITED, FaultKind.ENGINE_BUSY})
"""Kinds that say the target is well but has enough to do."""

OVERLOADED = frozenset({FaultKind.ENGINE_BUSY, FaultKind.TIMEOUT_CONNECT})
"""Kinds that are what too many requests look like: a full queue, or one of connections that nobody takes from."""
OVERLOADED_STATUSES = frozenset({503, 529})
"""RFC 9110's for an overload, and Anthropic's."""


class Fault(NenyaError):  # noqa: N818 - the domain's word
    """One attempt at one target went wrong.

    ``answer`` is the error the client gets if nothing better comes of the request; None makes one from the kind.
    """

    def __init__(
        self,
        kind: FaultKind,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        answer: ApiError | None = None,
    ) -> None:
        super().__init__(f"{kind.value}: {message}")
        self.kind = kind
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.answer = answer
        self.readings: Readings = ()
        """What the provider's refusal told of its limits."""

    @property
    def retryable(self) -> bool:
        """Another attempt could end better."""
        return self.kind not in FINAL

    @property
    def overloads(self) -> bool:
        """The target refused because it has too much to do, and didn't say when it will not."""
        if self.kind is FaultKind.RATE_LIMITED:
            return self.retry_after_s is None and not self.readings
        return self.kind in OVERLOADED or self.status in OVERLOADED_STATUSES

    @property
    def blames_target(self) -> bool:
        """The target's health should know."""
        return self.kind not in BLAMELESS


_STATUS = {
    FaultKind.LOCAL: 503,
    FaultKind.TIMEOUT_CONNECT: 504,
    FaultKind.TIMEOUT_FIRST_BYTE: 504,
    FaultKind.TIMEOUT_IDLE: 504,
    FaultKind.DEADLINE: 504,
    FaultKind.CLIENT_SLOW: 408,
    FaultKind.RATE_LIMITED: 429,
    FaultKind.ENGINE_BUSY: 503,
    FaultKind.ENGINE_DIED: 503,
    FaultKind.ENGINE_ERROR: 500,
}


def api_error(fault: Fault) -> ApiError:
    """What the client hears when ``fault`` was the last word on its request; the one place that decides it."""
    if fault.answer is not None:
        return fault.answer
    status = _STATUS.get(fault.kind, 502)
    kind = "requests" if status == 429 else "upstream_error"
    code = "rate_limit_exceeded" if status == 429 else fault.kind.value
    headers = None
    if status in {429, 503}:
        headers = retry_after_headers(
            fault.retry_after_s if fault.retry_after_s is not None else 1.0
        )
    return ApiError(status, ErrorObject(fault.message, kind, None, code), headers=headers)
