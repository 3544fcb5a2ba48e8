"""From msgspec's words to OpenAI's: the one place where a refused parameter becomes an error object.

msgspec says what it expected and where (``Expected `float` <= 2.0 - at `$.temperature` ``); OpenAI also says what it
got, so the body is decoded once more, loosely, on this path alone. The sentences that `rules` needs are made here too,
so that each stands once.

Source: error bodies quoted in public issues of OpenAI's SDKs; see docs/openai.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
from msgspec import Raw

from router.errors import ApiError, invalid_request
from router.wire import jsontext

MAX_ECHO = 64
"""Characters of a client's value that an error repeats: enough to find it by."""

_AT = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_BOUND = re.compile(r"Expected `(?P<type>int|float)` (?P<sign><=|>=) (?P<bound>-?[\d.]+)")
_LENGTH = re.compile(
    r"Expected `(?P<type>array|str|object)` of length (?P<sign><=|>=) (?P<bound>\d+)"
)
_PATTERN = re.compile(r"Expected `str` matching regex '(?P<pattern>.*)'$")
_TYPE = re.compile(r"Expected `(?P<want>[^`]*)`(?:, got `(?P<got>[^`]*)`)?")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")

_objects = msgspec.json.Decoder(dict[str, Raw])
_arrays = msgspec.json.Decoder(list[Raw])
_strings = msgspec.json.Decoder(str)

_FIRST: Mapping[bytes, str] = MappingProxyType(
    {b'"': "str", b"{": "object", b"[": "array", b"t": "bool", b"f": "bool", b"n": "null"}
)
"""A JSON value's kind, by its first byte."""

_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "str": "a string",
        "int": "an integer",
        "float": "a decimal",
        "bool": "a boolean",
        "array": "an array",
        "object": "an object",
        "null": "null",
    }
)
_KIND_OF: Mapping[type, str] = MappingProxyType({str: "str", int: "int", list: "array"})
_ITEMS: Mapping[str, str] = MappingProxyType(
    {"content": "objects", "stop": "strings", "prompt": "strings", "input": "strings"}
)
"""What the array holds where a string or an array may stand, by the parameter's last name."""

SUPPORTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "messages[].role": ("system", "assistant", "user", "function", "tool", "developer"),
        "messages[].content[].type": ("text", "image_url", "input_audio", "refusal", "file"),
        "messages[].content[].input_audio.format": ("wav", "mp3"),
        "messages[].tool_calls[].type": ("function", "custom"),
        "tools[].type": ("function", "custom"),
        "tool_choice": ("none", "auto", "required"),
        "tool_choice.type": ("function", "custom", "allowed_tools"),
        "tool_choice.allowed_tools.mode": ("auto", "required"),
        "response_format.type": ("json_object", "json_schema", "text"),
        "service_tier": ("auto", "default", "flex", "scale", "priority", "fast"),
        "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
        "verbosity": ("low", "medium", "high"),
        "modalities[]": ("text", "audio"),
        "audio.format": ("wav", "aac", "mp3", "flac", "opus", "pcm16"),
        "prediction.type": ("content",),
        "prediction.content[].type": ("text",),
        "prompt_cache_retention": ("in_memory", "24h"),
        "web_search_options.search_context_size": ("low", "medium", "high"),
        "web_search_options.user_location.type": ("approximate",),
        "function_call": ("none", "auto"),
        "encoding_format": ("float", "base64"),
    }
)
"""What a parameter may be, in the order in which OpenAI lists it; indexes left out of the names."""


def not_json() -> ApiError:
    """The body can't be read; constant, so that it never echoes what was sent."""
    return invalid_request(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
        "library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
    )


def missing(name: str) -> ApiError:
    """A parameter that must be there isn't."""
    message = f"Missing required parameter: '{name}'."
    return invalid_request(message, param=name, code="missing_required_parameter")


def unknown_field(name: str) -> ApiError:
    """A parameter that OpenAI doesn't have."""
    return invalid_request(f"Unrecognized request argument supplied: {shown(name)}")


def repeated(name: str) -> ApiError:
    """A parameter that stands there twice: whoever reads on might take the other one."""
    name = shown(name)
    return invalid_request(f"Duplicate parameter: '{name}'.", param=name, code="invalid_value")


def out_of_range(param: str, word: str, bound: object, got: str, *, above: bool) -> ApiError:
    """A number above its maximum or below its minimum; ``word`` is integer or decimal."""
    message = (
        f"Invalid '{param}': {word} {'above maximum' if above else 'below minimum'} value. "
        f"Expected a value {'<=' if above else '>='} {bound}, but got {got} instead."
    )
    code = f"{word}_{'above_max' if above else 'below_min'}_value"
    return invalid_request(message, param=param, code=code)


def too_long(param: str, bound: int, size: int, *, what: str = "string") -> ApiError:
    """A string beyond its limit."""
    named = "string" if what == "string" else f"{what}: string"
    message = (
        f"Invalid '{param}': {named} too long. Expected a string with maximum length {bound}, "
        f"but got a string with length {size} instead."
    )
    return invalid_request(message, param=param, code="string_above_max_length")


def wrong_pattern(param: str, pattern: str) -> ApiError:
    """A string of other characters than it may have."""
    message = (
        f"Invalid '{param}': string does not match pattern. "
        f"Expected a string that matches the pattern '{pattern}'."
    )
    return invalid_request(message, param=param, code="invalid_value")


def check_alike(param: str, items: Sequence[object]) -> None:
    """Raises ApiError where an array of prompts mixes texts, tokens and lists of tokens."""
    first = type(items[0])
    for at, item in enumerate(items):
        if type(item) is not first:
            got = _KINDS[_KIND_OF[type(item)]]
            raise wrong_type(f"{param}[{at}]", _KINDS[_KIND_OF[first]], got)
        if isinstance(item, list) and not item:
            raise empty(f"{param}[{at}]", "array", 1)


def wrong_type(param: str, want: str, got: str) -> ApiError:
    """A value of another kind; both are words with their article."""
    message = f"Invalid type for '{param}': expected {want}, but got {got} instead."
    return invalid_request(message, param=param, code="invalid_type")


def empty(param: str, noun: str, bound: int) -> ApiError:
    """An array or a string with nothing in it."""
    article = "an" if noun == "array" else "a"
    message = (
        f"Invalid '{param}': empty {noun}. Expected {article} {noun} with minimum length {bound}, "
        f"but got an empty {noun} instead."
    )
    return invalid_request(message, param=param, code=f"empty_{noun}")


def shown(text: str) -> str:
    """As much of a client's words as an error repeats."""
    return text[:MAX_ECHO]


def is_unknown_field(error: msgspec.ValidationError) -> bool:
    """Whether ``error`` is about a parameter that OpenAI doesn't have."""
    return _UNKNOWN.match(str(error)) is not None


def translate(error: msgspec.ValidationError, body: bytes) -> ApiError:
    """The error object for a body that msgspec refused."""
    text = str(error)
    if found := _UNKNOWN.match(text):
        return unknown_field(found["name"])
    at = _AT.search(text)
    path = at["path"] if at else ""
    what = text[: at.start()] if at else text
    if found := _MISSING.match(what):
        return missing(f"{path}.{found['name']}".lstrip("."))
    if not path:
        return not_json()
    try:
        name = jsontext.repeated(body)
        if name is not None:
            return repeated(name)
        param, got = _resolve(body, path, what)
        return _about_value(what, param, got)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError):
        # What follows the bad parameter is no JSON, or an object inside has a name twice.
        return not_json()


def _about_value(what: str, param: str, got: bytes) -> ApiError:
    if found := _BOUND.match(what):
        word = "integer" if found["type"] == "int" else "decimal"
        bound = found["bound"].removesuffix(".0")
        return out_of_range(param, word, bound, _quoted(got), above=found["sign"] == "<=")
    if found := _LENGTH.match(what):
        return _wrong_length(param, found, got)
    if found := _PATTERN.match(what):
        return wrong_pattern(param, found["pattern"].replace("\\\\", "\\"))
    if found := _TYPE.match(what):
        return _wrong_type(param, found, got)
    if "out of range" in what:
        message = f"Invalid '{param}': number out of range."
        return invalid_request(message, param=param, code="invalid_value")
    return _unsupported(param, got)


def _unsupported(param: str, got: bytes) -> ApiError:
    values = SUPPORTED.get(re.sub(r"\[\d+\]", "[]", param))
    message = f"Invalid value: {_quoted(got)}."
    if values is not None:
        message += f" Supported values are: {_listed(values)}."
    return invalid_request(message, param=param, code="invalid_value")


def _listed(values: tuple[str, ...]) -> str:
    quoted = [f"'{value}'" for value in values]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def _wrong_type(param: str, found: re.Match[str], got: bytes) -> ApiError:
    words = found["want"].split(" | ")
    names = [word for word in words if word != "null"] or words
    if len(names) == 1:
        want = _KINDS.get(names[0], names[0])
    else:
        want = "one of " + " or ".join(_among(name, param, i) for i, name in enumerate(names))
    return wrong_type(param, want, _KINDS[_kind(got)])


def _among(kind: str, param: str, place: int) -> str:
    """A kind among several: the first has its article, an array says what it holds."""
    if kind == "array":
        kind = f"an array of {_ITEMS.get(param.rpartition('.')[2], 'objects')}"
    else:
        kind = _KINDS.get(kind, kind)
    return kind if place == 0 else kind.split(" ", 1)[1]


def _wrong_length(param: str, found: re.Match[str], got: bytes) -> ApiError:
    size = _size(got)
    bound = int(found["bound"])
    if found["type"] == "object":
        message = (
            f"Invalid '{param}': too many properties. Expected an object with at most {bound} properties, "
            f"but got an object with {size} properties instead."
        )
        return invalid_request(message, param=param, code="object_above_max_properties")
    if found["sign"] == ">=":
        return empty(param, _KINDS[found["type"]].split(" ", 1)[1], bound)
    if found["type"] == "str":
        return too_long(param, bound, size)
    message = (
        f"Invalid '{param}': array too long. Expected an array with maximum length {bound}, "
        f"but got an array with length {size} instead."
    )
    return invalid_request(message, param=param, code="array_above_max_length")


def _resolve(body: bytes, path: str, what: str) -> tuple[str, bytes]:
    """The parameter's name and its value's JSON. Raises msgspec.DecodeError for a body that is none.

    msgspec writes ``[...]`` where a map's key should stand; it is found again by what was wrong with its value.
    """
    param = ""
    value: bytes | Raw = body
    for name, index in _STEP.findall(path):
        if index and index != "...":
            param += f"[{index}]"
            value = _arrays.decode(value)[int(index)]
            continue
        values = _objects.decode(value)
        key = name or _offender(values, what)
        param += f".{shown(key)}" if param else shown(key)
        value = values[key]
    return param, bytes(value)


def _offender(values: Mapping[str, Raw], what: str) -> str:
    found = _TYPE.match(what)
    got = found["got"] if found else None
    offenders = [key for key, value in values.items() if got is None or _kind(bytes(value)) == got]
    return offenders[0] if offenders else next(iter(values), "")


def _kind(value: bytes) -> str:
    """A JSON value's kind, in msgspec's words."""
    kind = _FIRST.get(value[:1], "int")
    return "float" if kind == "int" and not value.removeprefix(b"-").isdigit() else kind


def _size(value: bytes) -> int:
    """How long an array, a string or an object is."""
    if value.startswith(b"["):
        return len(_arrays.decode(value))
    if value.startswith(b"{"):
        return len(_objects.decode(value))
    return len(_strings.decode(value))


def _quoted(value: bytes) -> str:
    """A JSON value as an error repeats it."""
    if value.startswith(b'"'):
        return f"'{shown(_strings.decode(value))}'"
    return value[:MAX_ECHO].decode(errors="replace")
