"""Bad requests and the whole error each hears: the contract's table as data.

``V`` rows are quoted from answers of OpenAI's API, ``P`` rows follow their pattern. A row is what changes in a good
request, and the error's message, param and code.
"""

from __future__ import annotations

GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DROP = object()
"""A value that takes the parameter out."""

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER = {"role": "user", "content": "hi"}


def tool(**changes):
    return {"type": "function", "function": {**TOOL["function"], **changes}}


def schema(**changes):
    wanted = {"name": "x", "schema": {"type": "object"}, **changes}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def strict(tree):
    return schema(strict=True, schema=tree)


def closed(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def above(name, word, bound, got):
    message = f"Invalid '{name}': {word} above maximum value. Expected a value <= {bound}, but got {got} instead."
    return message, name, f"{word}_above_max_value"


def below(name, word, bound, got):
    message = f"Invalid '{name}': {word} below minimum value. Expected a value >= {bound}, but got {got} instead."
    return message, name, f"{word}_below_min_value"


def wrong_type(name, want, got):
    return (
        f"Invalid type for '{name}': expected {want}, but got {got} instead.",
        name,
        "invalid_type",
    )


def missing(name):
    return f"Missing required parameter: '{name}'.", name, "missing_required_parameter"


def empty(name):
    message = f"Invalid '{name}': empty array. Expected an array with minimum length 1, but got an empty array instead."
    return message, name, "empty_array"


def too_many(name, bound, got):
    message = (
        f"Invalid '{name}': array too long. Expected an array with maximum length {bound}, but got an array with "
        f"length {got} instead."
    )
    return message, name, "array_above_max_length"


def too_long(name, bound, got):
    message = (
        f"Invalid '{name}': string too long. Expected a string with maximum length {bound}, but got a string with "
        f"length {got} instead."
    )
    return message, name, "string_above_max_length"


def no_match(name, pattern="^[a-zA-Z0-9_-]+$"):
    expected = f"Expected a string that matches the pattern '{pattern}'."
    message = f"Invalid '{name}': string does not match pattern. {expected}"
    return message, name, "invalid_value"


def unsupported(name, got, values):
    return f"Invalid value: {got}. Supported values are: {values}.", name, "invalid_value"


def messages(*given):
    return {"messages": list(given)}


NULL_CONTENT = "Invalid value for 'content': expected a string, got null."
NO_CALL = "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
NO_ANSWER = (
    "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
    "The following tool_call_ids did not have response messages: {}"
)
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWERS = {"role": "tool", "tool_call_id": "call_1", "content": "12"}
ROLES = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"
PARTS = "'text', 'image_url', 'input_audio', 'refusal', and 'file'"
FORMATS = "'json_object', 'json_schema', and 'text'"
EFFORTS = "'none', 'minimal', 'low', 'medium', 'high', 'xhigh', and 'max'"
TIERS = "'auto', 'default', 'flex', 'scale', 'priority', and 'fast'"

MESSAGES = [
    ("P", {"messages": DROP}, missing("messages")),
    ("P", {"messages": None}, wrong_type("messages", "an array", "null")),
    ("P", {"messages": "hi"}, wrong_type("messages", "an array", "a string")),
    ("V", {"messages": []}, empty("messages")),
    ("P", {"messages": ["hi"]}, wrong_type("messages[0]", "an object", "a string")),
    ("P", messages({"content": "hi"}), missing("messages[0].role")),
    ("V", messages({"role": "robot", "content": "hi"}), unsupported("messages[0].role", "'robot'", ROLES)),
    ("P", messages({"role": 3, "content": "hi"}), wrong_type("messages[0].role", "a string", "an integer")),
    (
        "V", messages(USER, {"role": "user", "content": {"a": 1}}),
        wrong_type("messages[1].content", "one of a string or array of objects", "an object"),
    ),
    (
        "V", messages(USER, {"role": "user", "content": 3}),
        wrong_type("messages[1].content", "one of a string or array of objects", "an integer"),
    ),
    ("V", messages({"role": "user", "content": None}), (NULL_CONTENT, "messages.[0].content", None)),
    ("P", messages({"role": "user"}), (NULL_CONTENT, "messages.[0].content", None)),
    ("V", messages(USER, {"role": "assistant"}), (NULL_CONTENT, "messages.[1].content", None)),
    ("P", messages({"role": "user", "content": []}), empty("messages[0].content")),
    (
        "V", messages({"role": "user", "content": ["hi"]}),
        wrong_type("messages[0].content[0]", "an object", "a string"),
    ),
    (
        "P", messages({"role": "user", "content": [{"type": "smell"}]}),
        unsupported("messages[0].content[0].type", "'smell'", PARTS),
    ),
    ("P", messages({"role": "user", "content": [{"text": "a"}]}), missing("messages[0].content[0].type")),
    ("P", messages({"role": "user", "content": [{"type": "text"}]}), missing("messages[0].content[0].text")),
    (
        "P", messages({"role": "user", "content": [{"type": "image_url", "image_url": "http://x.test"}]}),
        wrong_type("messages[0].content[0].image_url", "an object", "a string"),
    ),
    (
        "P", messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
        missing("messages[0].content[0].image_url.url"),
    ),
    (
        "P",
        messages({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "ogg"}}]}),
        unsupported("messages[0].content[0].input_audio.format", "'ogg'", "'wav' and 'mp3'"),
    ),
    (
        "V", messages({"role": "user", "name": "Ada Lovelace", "content": "hi"}),
        no_match("messages[0].name", r"^[^\s<|\\/>]+$"),
    ),
    ("P", messages({"role": "user", "name": "a" * 65, "content": "hi"}), too_long("messages[0].name", 64, 65)),
    ("P", messages({"role": "function", "content": "12"}), missing("messages[0].name")),
    (
        "V", messages(USER, USER, USER, {"role": "tool", "tool_call_id": "call_1", "content": "12"}),
        (NO_CALL, "messages.[3].role", None),
    ),
    ("P", messages(USER, ASKS, {**ANSWERS, "tool_call_id": "other"}), (NO_CALL, "messages.[2].role", None)),
    ("P", messages(USER, ASKS, {"role": "tool", "content": "12"}), missing("messages[2].tool_call_id")),
    ("P", messages(USER, ASKS, {**ANSWERS, "content": None}), (NULL_CONTENT, "messages.[2].content", None)),
    ("V", messages(USER, ASKS), (NO_ANSWER.format("call_1"), "messages.[2].role", None)),
    ("V", messages(USER, ASKS, USER), (NO_ANSWER.format("call_1"), "messages.[2].role", None)),
    (
        "V", messages(USER, {**ASKS, "tool_calls": [CALL, {**CALL, "id": "b"}, {**CALL, "id": "c"}]}, ANSWERS, USER),
        (NO_ANSWER.format("b, c"), "messages.[3].role", None),
    ),
    ("P", messages(USER, {**ASKS, "tool_calls": []}), empty("messages[1].tool_calls")),
    (
        "P", messages(USER, {**ASKS, "tool_calls": [{"type": "function", "function": CALL["function"]}]}),
        missing("messages[1].tool_calls[0].id"),
    ),
    (
        "V", messages(USER, {**ASKS, "tool_calls": [{"id": "1", "function": CALL["function"]}]}),
        missing("messages[1].tool_calls[0].type"),
    ),
    (
        "P", messages(USER, {**ASKS, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}),
        wrong_type("messages[1].tool_calls[0].function.arguments", "a string", "an object"),
    ),
    (
        "P", messages(USER, {**ASKS, "tool_calls": [{**CALL, "function": {"name": "a b", "arguments": ""}}]}),
        no_match("messages[1].tool_calls[0].function.name"),
    ),
]  # fmt: skip

NUMBERS = [
    ("V", {"temperature": 200}, above("temperature", "decimal", 2, 200)),
    ("P", {"temperature": -0.5}, below("temperature", "decimal", 0, -0.5)),
    ("P", {"temperature": "1"}, wrong_type("temperature", "a decimal", "a string")),
    ("P", {"temperature": True}, wrong_type("temperature", "a decimal", "a boolean")),
    ("V", {"top_p": 2}, above("top_p", "decimal", 1, 2)),
    ("P", {"top_p": -1}, below("top_p", "decimal", 0, -1)),
    ("P", {"frequency_penalty": 2.1}, above("frequency_penalty", "decimal", 2, 2.1)),
    ("P", {"frequency_penalty": -3}, below("frequency_penalty", "decimal", -2, -3)),
    ("P", {"presence_penalty": 3}, above("presence_penalty", "decimal", 2, 3)),
    ("P", {"presence_penalty": -2.5}, below("presence_penalty", "decimal", -2, -2.5)),
    ("P", {"n": 129}, above("n", "integer", 128, 129)),
    ("P", {"n": 0}, below("n", "integer", 1, 0)),
    ("P", {"n": "3"}, wrong_type("n", "an integer", "a string")),
    ("P", {"n": 1.5}, wrong_type("n", "an integer", "a decimal")),
    ("P", {"max_tokens": 0}, below("max_tokens", "integer", 1, 0)),
    ("P", {"max_tokens": 1.5}, wrong_type("max_tokens", "an integer", "a decimal")),
    ("P", {"max_completion_tokens": -1}, below("max_completion_tokens", "integer", 1, -1)),
    (
        "V", {"max_tokens": 5, "max_completion_tokens": 5},
        (
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", "max_tokens",
            "invalid_parameter_combination",
        ),
    ),
    ("P", {"seed": "1"}, wrong_type("seed", "an integer", "a string")),
    ("P", {"seed": 2**63}, above("seed", "integer", 2**63 - 1, 2**63)),
    ("P", {"seed": -(2**63) - 1}, below("seed", "integer", -(2**63), -(2**63) - 1)),
    ("P", {"logprobs": 1}, wrong_type("logprobs", "a boolean", "an integer")),
    ("P", {"logprobs": True, "top_logprobs": 21}, above("top_logprobs", "integer", 20, 21)),
    ("P", {"logprobs": True, "top_logprobs": -1}, below("top_logprobs", "integer", 0, -1)),
    (
        "V", {"top_logprobs": 3},
        ("The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs", None),
    ),
    (
        "V", {"logit_bias": {"AI": 1}},
        (
            "Invalid key in 'logit_bias': AI. You should only be submitting non-negative integers.",
            "logit_bias", None,
        ),
    ),
    (
        "P", {"logit_bias": {"-1": 1}},
        (
            "Invalid key in 'logit_bias': -1. You should only be submitting non-negative integers.",
            "logit_bias", None,
        ),
    ),
    ("P", {"logit_bias": {"7": 1, "50256": 101.5}}, above("logit_bias.50256", "decimal", 100, 101.5)),
    ("P", {"logit_bias": {"50256": -101}}, below("logit_bias.50256", "decimal", -100, -101)),
    ("P", {"logit_bias": {"7": 1, "50256": "x"}}, wrong_type("logit_bias.50256", "a decimal", "a string")),
    ("P", {"logit_bias": [1]}, wrong_type("logit_bias", "an object", "an array")),
]  # fmt: skip

OPTIONS = [
    ("V", {"stop": list("abcde")}, too_many("stop", 4, 5)),
    ("P", {"stop": []}, empty("stop")),
    ("P", {"stop": ["a", None]}, wrong_type("stop[1]", "a string", "null")),
    ("P", {"stop": 3}, wrong_type("stop", "one of a string or array of strings", "an integer")),
    ("P", {"stream": "yes"}, wrong_type("stream", "a boolean", "a string")),
    (
        "V", {"stream_options": {"include_usage": True}},
        ("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options", None),
    ),
    (
        "V", {"stream": False, "stream_options": {}},
        ("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options", None),
    ),
    (
        "P", {"stream": True, "stream_options": {"include_usage": 1}},
        wrong_type("stream_options.include_usage", "a boolean", "an integer"),
    ),
    ("V", {"parallel_tool_calls": None}, wrong_type("parallel_tool_calls", "a boolean", "null")),
    ("P", {"service_tier": "gold"}, unsupported("service_tier", "'gold'", TIERS)),
    ("P", {"reasoning_effort": "enormous"}, unsupported("reasoning_effort", "'enormous'", EFFORTS)),
    ("P", {"verbosity": "loud"}, unsupported("verbosity", "'loud'", "'low', 'medium', and 'high'")),
    ("P", {"user": 3}, wrong_type("user", "a string", "an integer")),
    ("P", {"store": "yes"}, wrong_type("store", "a boolean", "a string")),
    ("P", {"safety_identifier": "a" * 65}, too_long("safety_identifier", 64, 65)),
    ("P", {"prompt_cache_key": 3}, wrong_type("prompt_cache_key", "a string", "an integer")),
    (
        "P", {"prompt_cache_retention": "1h"},
        unsupported("prompt_cache_retention", "'1h'", "'in_memory' and '24h'"),
    ),
    ("P", {"prompt_cache_options": "x"}, wrong_type("prompt_cache_options", "an object", "a string")),
    ("P", {"moderation": 3}, wrong_type("moderation", "an object", "an integer")),
    (
        "V", {"metadata": {f"k{i}": "" for i in range(17)}},
        (
            ("Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an "
            "object with 17 properties instead."), "metadata", "object_above_max_properties",
        ),
    ),
    ("V", {"metadata": {"actual": "a" * 695}}, too_long("metadata.actual", 512, 695)),
    (
        "P", {"metadata": {"k" * 65: ""}},
        (
            ("Invalid 'metadata': key: string too long. Expected a string with maximum length 64, but got a string "
            "with length 65 instead."), "metadata", "string_above_max_length",
        ),
    ),
    ("P", {"metadata": {"a": "", "b": 3}}, wrong_type("metadata.b", "a string", "an integer")),
    ("P", {"modalities": ["text", "smell"]}, unsupported("modalities[1]", "'smell'", "'text' and 'audio'")),
    ("P", {"modalities": []}, empty("modalities")),
    ("P", {"modalities": ["audio"]}, missing("audio")),
    ("P", {"audio": {"format": "wav"}}, missing("audio.voice")),
    (
        "P", {"audio": {"voice": "alloy", "format": "ogg"}},
        unsupported("audio.format", "'ogg'", "'wav', 'aac', 'mp3', 'flac', 'opus', and 'pcm16'"),
    ),
    ("P", {"prediction": {"type": "guess"}}, unsupported("prediction.type", "'guess'", "'content'")),
    ("P", {"prediction": {"type": "content"}}, missing("prediction.content")),
    (
        "P", {"web_search_options": {"search_context_size": "huge"}},
        unsupported("web_search_options.search_context_size", "'huge'", "'low', 'medium', and 'high'"),
    ),
    ("P", {"model": DROP}, ("you must provide a model parameter", None, None)),
    ("V", {"model": None}, ("you must provide a model parameter", None, None)),
    ("P", {"model": ""}, ("you must provide a model parameter", None, None)),
    ("P", {"model": 3}, wrong_type("model", "a string", "an integer")),
    ("V", {"colour": "red"}, ("Unrecognized request argument supplied: colour", None, None)),
    ("P", {"api_base": "http://evil.test"}, ("Unrecognized request argument supplied: api_base", None, None)),
    ("P", {"two\nlines": 1}, ("Unrecognized request argument supplied: two\nlines", None, None)),
]  # fmt: skip

FORMATS_AND_TOOLS = [
    ("V", {"response_format": {"type": "xml"}}, unsupported("response_format.type", "'xml'", FORMATS)),
    ("P", {"response_format": {}}, missing("response_format.type")),
    ("P", {"response_format": "json"}, wrong_type("response_format", "an object", "a string")),
    (
        "V", {"response_format": {"type": "json_object"}},
        (
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            "messages", None,
        ),
    ),
    ("V", {"response_format": {"type": "json_schema"}}, missing("response_format.json_schema")),
    (
        "P", {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        missing("response_format.json_schema.name"),
    ),
    ("P", schema(name="a b"), no_match("response_format.json_schema.name")),
    ("P", schema(name="a\n"), no_match("response_format.json_schema.name")),
    ("P", schema(name=""), no_match("response_format.json_schema.name")),
    ("P", schema(name="a" * 65), too_long("response_format.json_schema.name", 64, 65)),
    ("P", schema(schema=[]), wrong_type("response_format.json_schema.schema", "an object", "an array")),
    ("P", schema(strict=True, schema=None), missing("response_format.json_schema.schema")),
    (
        "V", strict({"type": "object", "properties": {}}),
        (
            ("Invalid schema for response_format 'x': In context=(), 'additionalProperties' is required to be "
            "supplied and to be false."), "response_format", None,
        ),
    ),
    (
        "V", strict(closed(o={"type": "array", "items": {**closed(roles={"type": "string"}), "required": []}})),
        (
            ("Invalid schema for response_format 'x': In context=('properties', 'o', 'items'), 'required' is "
            "required to be supplied and to be an array including every key in properties. Missing 'roles'."),
            "response_format", None,
        ),
    ),
    (
        "V", strict({"type": "array", "items": {"type": "string"}}),
        (
            ("Invalid schema for response_format 'x': schema must be a JSON Schema of 'type: \"object\"', got "
            "'type: \"array\"'."), "response_format", None,
        ),
    ),
    (
        "V", strict(closed(a={"oneOf": []})),
        (
            "Invalid schema for response_format 'x': In context=('properties', 'a'), 'oneOf' is not permitted.",
            "response_format", None,
        ),
    ),
    (
        "V", strict(closed(a={})),
        (
            "Invalid schema for response_format 'x': In context=('properties', 'a'), schema must have a 'type' key.",
            "response_format", None,
        ),
    ),
    (
        "V", strict(closed(a={"type": "array"})),
        (
            "Invalid schema for response_format 'x': In context=('properties', 'a'), array schema missing items.",
            "response_format", None,
        ),
    ),
    ("V", {"tools": [TOOL] * 129}, too_many("tools", 128, 129)),
    ("V", {"tools": []}, empty("tools")),
    ("P", {"tools": {}}, wrong_type("tools", "an array", "an object")),
    ("P", {"tools": [{"function": TOOL["function"]}]}, missing("tools[0].type")),
    ("P", {"tools": [{"type": "hammer"}]}, unsupported("tools[0].type", "'hammer'", "'function' and 'custom'")),
    ("V", {"tools": [{"type": "function"}]}, missing("tools[0].function")),
    ("P", {"tools": [{"type": "function", "function": {}}]}, missing("tools[0].function.name")),
    ("V", {"tools": [tool(name="get weather")]}, no_match("tools[0].function.name")),
    ("P", {"tools": [TOOL, tool(name="f\n")]}, no_match("tools[1].function.name")),
    ("V", {"tools": [tool(name="a" * 65)]}, too_long("tools[0].function.name", 64, 65)),
    (
        "V", {"tools": [tool(parameters={"type": "string"})]},
        (
            ("Invalid schema for function 'f': schema must be a JSON Schema of 'type: \"object\"', got 'type: "
            "\"string\"'."), "tools[0].function.parameters", "invalid_function_parameters",
        ),
    ),
    (
        "V", {"tools": [tool(strict=True)]},
        (
            ("Invalid schema for function 'f': In context=(), 'additionalProperties' is required to be supplied and "
            "to be false."), "tools[0].function.parameters", "invalid_function_parameters",
        ),
    ),
    (
        "V", {"tool_choice": "auto"},
        (
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            "tool_choice", None,
        ),
    ),
    (
        "V", {"tools": [TOOL], "tool_choice": "any"},
        unsupported("tool_choice", "'any'", "'none', 'auto', and 'required'"),
    ),
    ("P", {"tools": [TOOL], "tool_choice": 3}, wrong_type("tool_choice", "one of a string or object", "an integer")),
    ("P", {"tools": [TOOL], "tool_choice": {"type": "function"}}, missing("tool_choice.function")),
    (
        "P", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        ("Tool choice 'g' not found in 'tools' parameter.", "tool_choice", None),
    ),
    (
        "P", {"function_call": "auto"},
        (
            "Invalid value for 'function_call': 'function_call' is only allowed when 'functions' are specified.",
            "function_call", None,
        ),
    ),
    ("P", {"functions": []}, empty("functions")),
    ("P", {"functions": [{"name": "a b"}]}, no_match("functions[0].name")),
    (
        "P", {"functions": [{"name": "f"}], "function_call": {"name": "g"}},
        (
            "Invalid value for 'function_call': no function named 'g' was specified in the 'functions' parameter.",
            "function_call", None,
        ),
    ),
]  # fmt: skip

REFUSALS = [*MESSAGES, *NUMBERS, *OPTIONS, *FORMATS_AND_TOOLS]
