from __future__ import annotations

import json

import pytest

from router.backends.http import refusal
from router.errors import Fault, FaultKind, api_error
from tests.upstream import encode, error_body

CANARY = "sk-canary-0123456789"


def of(status: int, body: bytes = b"", **headers: str) -> Fault:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return refusal.of_status(status, names, body, wall=1_700_000_000.0, secrets=(CANARY,))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (301, b"", FaultKind.MALFORMED),
        (307, b"", FaultKind.MALFORMED),
        (400, error_body(kind="invalid_request_error"), FaultKind.CLIENT_ERROR),
        (400, b"nonsense", FaultKind.CLIENT_ERROR),
        (400, error_body("Incorrect API key provided: xa***."), FaultKind.REFUSED_CREDENTIALS),
        (400, error_body(code="model_not_found"), FaultKind.UNKNOWN_MODEL),
        (401, error_body(code="invalid_api_key"), FaultKind.REFUSED_CREDENTIALS),
        (402, b'{"error":"Insufficient credits"}', FaultKind.REFUSED_CREDENTIALS),
        (403, b"", FaultKind.REFUSED_CREDENTIALS),
        (404, error_body(code="model_not_found"), FaultKind.UNKNOWN_MODEL),
        (404, b"<html>", FaultKind.UNKNOWN_MODEL),
        (
            404,
            error_body(kind="invalid_request_error", code="context_length_exceeded"),
            FaultKind.CONTEXT_LENGTH,
        ),
        (400, error_body(kind="exceed_context_size_error"), FaultKind.CONTEXT_LENGTH),
        (
            400,
            error_body("prompt is too long: 210000 tokens > 200000 maximum"),
            FaultKind.CONTEXT_LENGTH,
        ),
        (
            400,
            error_body("This model's maximum context length is 4096 tokens."),
            FaultKind.CONTEXT_LENGTH,
        ),
        (
            400,
            error_body(
                "The input token count (9) exceeds the maximum number of tokens allowed (8)."
            ),
            FaultKind.CONTEXT_LENGTH,
        ),
        (
            422,
            b'{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097"}',
            FaultKind.CONTEXT_LENGTH,
        ),
        (400, error_body(code="content_filter"), FaultKind.CONTENT_FILTER),
        (400, error_body(code="content_policy_violation"), FaultKind.CONTENT_FILTER),
        (404, b'{"detail":"Not Found"}', FaultKind.UNKNOWN_MODEL),
        (408, b"", FaultKind.SERVER_ERROR),
        (409, b"", FaultKind.SERVER_ERROR),
        (413, b"", FaultKind.CLIENT_ERROR),
        (422, b'{"detail":[{"msg":"x"}]}', FaultKind.CLIENT_ERROR),
        (425, b"", FaultKind.SERVER_ERROR),
        (429, b"", FaultKind.RATE_LIMITED),
        (429, error_body(code="insufficient_quota"), FaultKind.REFUSED_CREDENTIALS),
        (500, error_body("authentication backend down"), FaultKind.SERVER_ERROR),
        (503, b"", FaultKind.SERVER_ERROR),
        (529, b"", FaultKind.SERVER_ERROR),
    ],
)
def test_each_status_has_its_kind(status: int, body: bytes, kind: FaultKind) -> None:
    fault = of(status, body)
    assert (fault.kind, fault.status) == (kind, status)


def test_an_exact_error_is_passed_on_unchanged() -> None:
    body = error_body(
        "Too long.", kind="invalid_request_error", param="messages", code="context_length_exceeded"
    )
    answer = api_error(of(400, body))
    assert (answer.status, answer.body) == (400, body)
    assert answer.error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"Too long."}}',
        b'{"error":"Too long."}',
        b'{"object":"error","message":"Too long.","type":"BadRequestError","code":400}',
        b'[{"error":{"code":400,"message":"Too long.","status":"INVALID_ARGUMENT"}}]',
        b'{"detail":"Too long."}',
        b"Too long.",
    ],
)
def test_any_other_error_is_wrapped(body: bytes) -> None:
    answer = api_error(of(400, body))
    assert answer.status == 400
    assert json.loads(answer.body) == {
        "error": {
            "message": "Too long.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }


def test_an_empty_refusal_still_says_something() -> None:
    assert "413" in json.loads(api_error(of(413)).body)["error"]["message"]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 500, 503])
@pytest.mark.parametrize(
    "body",
    [
        error_body(f"bad {CANARY}", kind="invalid_request_error"),
        error_body("bad sk-proj-abc*****wxyz", kind="invalid_request_error"),
        f"bad {CANARY}".encode(),
        encode({"error": {"message": f"bad {CANARY}"}}),
    ],
)
def test_secrets_never_come_out(status: int, body: bytes) -> None:
    fault = of(status, body)
    answer = api_error(fault)
    for text in (str(fault), repr(fault), fault.message, repr(answer), answer.body.decode()):
        assert "canary" not in text
        assert "wxyz" not in text


def test_a_refused_key_is_a_502_without_the_providers_text() -> None:
    answer = api_error(
        of(401, error_body("Incorrect API key provided: abcd", code="invalid_api_key"))
    )
    assert answer.status == 502
    assert b"abcd" not in answer.body
    assert b"API key" not in answer.body


def test_long_texts_are_cut() -> None:
    assert len(of(500, error_body("x" * 10_000)).message) < 400


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after_ms": "soon", "retry_after": "9"}, 9.0),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:00 GMT"}, 0.0),
        ({"retry_after": "later"}, None),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "9" * 14}, refusal.MAX_RETRY_AFTER_S),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert of(429, b"", **headers).retry_after_s == seconds


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "m", "code": 429}, FaultKind.RATE_LIMITED),
        ({"message": "m", "code": "429"}, FaultKind.RATE_LIMITED),
        ({"message": "m", "code": "rate_limit_exceeded"}, FaultKind.RATE_LIMITED),
        ({"message": "m", "code": 502}, FaultKind.SERVER_ERROR),
        ({"message": "m", "type": "server_error"}, FaultKind.SERVER_ERROR),
        ({"message": "m", "code": "context_length_exceeded"}, FaultKind.CONTEXT_LENGTH),
        ({"message": "m", "code": "model_not_found"}, FaultKind.UNKNOWN_MODEL),
        ({"message": "m", "code": "invalid_api_key"}, FaultKind.REFUSED_CREDENTIALS),
        ({}, FaultKind.SERVER_ERROR),
    ],
)
def test_an_error_inside_a_200(error: dict[str, object], kind: FaultKind) -> None:
    body = encode({"error": error})
    assert refusal.in_answer(body, started=False, secrets=()).kind is kind
    assert refusal.in_answer(body, started=True, secrets=()).kind is FaultKind.SERVER_ERROR


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b"{}", b"\xff", b"[" * 100_000, b'{"error":null}', b'{"error":5}']
)
def test_what_says_nothing(body: bytes) -> None:
    assert refusal.read(body) is None
