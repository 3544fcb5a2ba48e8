"""What a provider's refusal means: its status and error body as a `Fault`.

Statuses say who is to blame, but not reliably: a wrong key of ours comes as 401, 403 or 400, an unknown model as
404 or 400. So the error object is read too. Whatever concerns our account at the provider never reaches a client;
other texts may, shortened, with our secrets and all that looks like one taken out.

Source: RFC 9110, sections 15 (statuses) and 10.2.3 (retry-after); error bodies quoted in providers' documentation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from router.errors import BLAMELESS, ApiError, ErrorObject, Fault, FaultKind

MAX_MESSAGE = 300
"""Characters of a provider's text in ours: its first sentence or two."""

MAX_RETRY_AFTER_S = 86_400.0
"""A day; whoever names more means "no"."""

_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk|gsk|xai|key|org|proj|Bearer)[-_ ][A-Za-z0-9_*.\-]{6,}")
_ABOUT_KEY = re.compile(
    r"api[ _-]?key|unauthori[sz]ed|authentication|credential|billing|credit", re.IGNORECASE
)
_NO_MODEL = re.compile(
    r"model\b.{0,200}\b(?:not exist|not found|not supported|decommissioned)",
    re.IGNORECASE | re.DOTALL,
)
_KEY_CODES = frozenset(
    {"invalid_api_key", "authentication_error", "permission_denied", "insufficient_quota"}
)
_MODEL_CODES = frozenset({"model_not_found", "model_decommissioned", "model_not_available"})
_LIMIT_CODES = frozenset(
    {"rate_limit_exceeded", "rate_limit_error", "too_many_requests", "tokens", "requests"}
)
_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_TOO_LONG = re.compile(
    r"context (?:length|window|size)|(?:prompt|input) is too long|longer than the (?:maximum )?model"
    r"|token count\b.{0,60}\bexceeds|tokens \+ `?max_new_tokens|reduce the length of",
    re.IGNORECASE | re.DOTALL,
)
"""In the words of OpenAI, vLLM, SGLang, llama.cpp and Mistral; of Anthropic and Bedrock; of vLLM; of Google and SGLang;
of Text Generation Inference; of Groq.
"""
_FILTER_CODES = frozenset(
    {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}
)
"""OpenAI's and Azure's."""
_CLIENT_STATUSES = frozenset({400, 404, 413, 422})


class Told(msgspec.Struct, frozen=True):
    """What an error body says."""

    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | None = None
    status: int | None = None
    exact: bool = False
    """It is OpenAI's error object with all four keys."""


def read(body: bytes) -> Told | None:
    """What ``body`` says, in any of the shapes that providers use; None if it is no JSON object with an error."""
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(tree, list) and len(tree) == 1:  # Google wraps its error in an array.
        tree = tree[0]
    if not isinstance(tree, dict):
        return None
    error = tree.get("error")
    if isinstance(error, dict):
        return _told(
            error, exact=error.keys() >= {"message", "type", "param", "code"} and len(tree) == 1
        )
    for text in (error, tree.get("message"), tree.get("detail")):
        if isinstance(text, str) and text:
            return _told({**tree, "message": text}, exact=False)
    return None


def of_status(
    status: int, headers: Mapping[str, str], body: bytes, *, wall: float, secrets: tuple[str, ...]
) -> Fault:
    """The fault that an answer of ``status`` (not 2xx) is. ``wall``: seconds since the epoch, for dates."""
    told = read(body) or Told()
    text = scrub(told.message or body[: 4 * MAX_MESSAGE].decode("utf-8", "replace"), secrets)
    if 300 <= status < 400:
        return Fault(
            FaultKind.MALFORMED,
            "the provider answered with a redirect; none is followed",
            status=status,
        )
    if status == 429 and told.code != "insufficient_quota":
        after = retry_after_s(headers, wall)
        message = "the provider's rate limit is reached"
        return Fault(FaultKind.RATE_LIMITED, message, status=status, retry_after_s=after)
    kind = _kind(status, told)
    if kind is FaultKind.REFUSED_CREDENTIALS:
        return Fault(kind, "the provider refused the router's account", status=status)
    if kind is FaultKind.UNKNOWN_MODEL:
        return Fault(kind, "the provider doesn't serve this model", status=status)
    if kind in BLAMELESS:
        return Fault(
            kind, text, status=status, answer=_passed_on(status, told, text, body, secrets)
        )
    message = f"the provider answered {status}" + (f": {text}" if told.message else "")
    return Fault(kind, message, status=status, retry_after_s=retry_after_s(headers, wall))


def in_answer(body: bytes, *, started: bool, secrets: tuple[str, ...]) -> Fault:
    """The fault that an error object inside a 200 is; once data came (``started``), it is the provider's."""
    told = read(body) or Told()
    text = scrub(told.message, secrets) or "an error without a message"
    status = told.status
    if not started:
        if status is None:
            status = _guess(told)
        if status is not None and status >= 300:
            return of_status(status, {}, body, wall=0.0, secrets=secrets)
    if _kind(status or 500, told) is FaultKind.REFUSED_CREDENTIALS:
        text = "it refused the router's account"
    return Fault(FaultKind.SERVER_ERROR, f"the provider broke off: {text}", status=status)


def retry_after_s(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds to wait, from retry-after-ms or retry-after (seconds or a date); None if neither can be read."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,15}(\.\d{1,15})?", text):
            return min(float(text) / unit, MAX_RETRY_AFTER_S)
    try:
        date = parsedate_to_datetime(headers["retry-after"])
        return min(max(0.0, date.timestamp() - wall), MAX_RETRY_AFTER_S)
    except (KeyError, ValueError, OverflowError):
        return None


def scrub(text: str, secrets: tuple[str, ...]) -> str:
    """``text`` on one line, short, without our secrets and without what looks like one."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _KEY_LIKE.sub("***", text)
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def _told(error: dict[str, Any], *, exact: bool) -> Told:
    code, status = error.get("code"), error.get("status")
    for number in (code, status, error.get("status_code")):
        if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) == 3:
            number = int(number)  # noqa: PLW2901 - the same number
        if isinstance(number, int) and 300 <= number < 600:
            status = number
            break
    return Told(
        message=_text(error.get("message")) or "",
        type=_text(error.get("type")),
        param=_text(error.get("param")),
        code=_text(code),
        status=status if isinstance(status, int) and not isinstance(status, bool) else None,
        exact=exact
        and _text(error.get("message")) is not None
        and _text(error.get("type")) is not None,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _kind(status: int, told: Told) -> FaultKind:
    names = {told.code, told.type}
    about_key = names & _KEY_CODES or (status == 400 and _ABOUT_KEY.search(told.message))
    if status in {401, 402, 403} or (about_key and status < 500):
        return FaultKind.REFUSED_CREDENTIALS
    if status in {400, 404}:
        if names & _MODEL_CODES or _NO_MODEL.search(told.message):
            return FaultKind.UNKNOWN_MODEL
        if status == 404 and told.code is None and told.type != "invalid_request_error":
            return FaultKind.UNKNOWN_MODEL  # A path that isn't there: this provider can't serve it.
    if status not in _CLIENT_STATUSES:
        return FaultKind.SERVER_ERROR
    if names & _CONTEXT_CODES or _TOO_LONG.search(told.message):
        return FaultKind.CONTEXT_LENGTH
    return FaultKind.CONTENT_FILTER if names & _FILTER_CODES else FaultKind.CLIENT_ERROR


def _guess(told: Told) -> int | None:
    names = {told.code, told.type}
    if names & _LIMIT_CODES:
        return 429
    if names & _KEY_CODES:
        return 401
    if names & _MODEL_CODES:
        return 404
    return (
        400
        if told.type == "invalid_request_error" or told.code == "context_length_exceeded"
        else None
    )


def _passed_on(
    status: int, told: Told, text: str, body: bytes, secrets: tuple[str, ...]
) -> ApiError:
    if told.exact:
        for secret in secrets:
            body = body.replace(secret.encode(), b"***")
        error = ErrorObject(text, told.type or "invalid_request_error", told.param, told.code)
        if not _KEY_LIKE.search(told.message):
            return ApiError(status, error, body=body)
    kind = (
        told.type
        if told.type is not None and told.type.endswith("_error")
        else "invalid_request_error"
    )
    return ApiError(
        status, ErrorObject(text or f"the provider answered {status}", kind, told.param, told.code)
    )
