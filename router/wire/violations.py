"""From msgspec's words to OpenAI's: the one place where a validation error becomes an error object.

msgspec says what it expected and where (``Expected `float` <= 2.0 - at `$.temperature` ``); OpenAI also says what it
got, so the body is decoded once more, loosely, on this path alone.

Source: error bodies quoted in public issues of OpenAI's SDKs; see docs/openai.md.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from router.errors import ApiError, invalid_request

_AT = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_BOUND = re.compile(r"Expected `(?P<type>int|float)` (?P<sign><=|>=) (?P<bound>-?[\d.]+)")
_LENGTH = re.compile(r"Expected `array` of length (?P<sign><=|>=) (?P<bound>\d+)")
_ENUM = re.compile(r"Invalid enum value '?(?P<value>.*?)'?$|Invalid value '(?P<tag>.*)'$")
_TYPE = re.compile(r"Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`")

_WORDS = {
    "str": "a string", "int": "an integer", "float": "a decimal", "bool": "a boolean", "array": "an array",
    "object": "an object", "null": "null",
}  # fmt: skip


def not_json() -> ApiError:
    """The body can't be read; constant, so that it never echoes what was sent."""
    return invalid_request(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
        "library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
    )


def translate(error: msgspec.ValidationError, body: bytes) -> ApiError:
    """The error object for a body that msgspec refused."""
    text = str(error)
    at = _AT.search(text)
    path = at["path"] if at else ""
    what = text[: at.start()] if at else text
    param = path.lstrip(".") or None
    if found := _UNKNOWN.match(what):
        return invalid_request(f"Unrecognized request argument supplied: {found['name']}")
    if found := _MISSING.match(what):
        name = f"{param}.{found['name']}" if param else found["name"]
        message = f"Missing required parameter: '{name}'."
        return invalid_request(message, param=name, code="missing_required_parameter")
    if param is None:
        return not_json()
    try:
        got = _value_at(body, path)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return not_json()  # it isn't even JSON, behind the place where its schema was wrong
    return _about_value(what, param, got)


def _about_value(what: str, param: str, got: Any) -> ApiError:
    if found := _BOUND.match(what):
        return _out_of_range(param, found, got)
    if found := _LENGTH.match(what):
        return _wrong_length(param, found, got)
    if _ENUM.match(what):
        message = f"Invalid value: {_quoted(got)}."
        return invalid_request(message, param=param, code="invalid_value")
    if found := _TYPE.match(what):
        want = " or ".join(
            _WORDS.get(word.strip(), word.strip())
            for word in found["want"].split("|")
            if word.strip() != "null" or "|" not in found["want"]
        )
        got_word = _WORDS.get(found["got"], found["got"])
        message = f"Invalid type for '{param}': expected {want}, but got {got_word} instead."
        return invalid_request(message, param=param, code="invalid_type")
    return invalid_request(f"Invalid value for '{param}'.", param=param, code="invalid_value")


def _out_of_range(param: str, found: re.Match[str], got: Any) -> ApiError:
    word = "integer" if found["type"] == "int" else "decimal"
    bound = found["bound"].removesuffix(".0")
    above = found["sign"] == "<="
    side = "above maximum" if above else "below minimum"
    message = (
        f"Invalid '{param}': {word} {side} value. "
        f"Expected a value {found['sign']} {bound}, but got {_quoted(got)} instead."
    )
    code = f"{word}_{'above_max' if above else 'below_min'}_value"
    return invalid_request(message, param=param, code=code)


def _wrong_length(param: str, found: re.Match[str], got: Any) -> ApiError:
    size = len(got) if isinstance(got, list) else 0
    bound = int(found["bound"])
    if found["sign"] == ">=":
        message = (
            f"Invalid '{param}': empty array. Expected an array with minimum length {bound}, "
            "but got an empty array instead."
        )
        return invalid_request(message, param=param, code="empty_array")
    message = (
        f"Invalid '{param}': array too long. Expected an array with maximum length {bound}, "
        f"but got an array with length {size} instead."
    )
    return invalid_request(message, param=param, code="array_above_max_length")


def _value_at(body: bytes, path: str) -> Any:
    value: Any = msgspec.json.decode(body)
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
        if index and isinstance(value, list) and int(index) < len(value):
            value = value[int(index)]
        elif name and isinstance(value, dict):
            value = value.get(name)
        else:
            return None
    return value


def _quoted(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value[:64]}'"
    return msgspec.json.encode(value).decode()[:64]
