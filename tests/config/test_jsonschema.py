"""The schema says what the reader says, about shapes."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from router.config.jsonschema import config_schema

SCHEMA = config_schema()
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
GOOD = {
    "keys": [{"id": "dev", "secret": "${K}"}],
    "providers": {"p": {"base_url": "${URL}"}},
    "engines": {"e": {"kind": "llamacpp", "model": "starter"}},
    "models": {"m": {"targets": [{"engine": "e"}]}},
}


def is_valid(tree: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(tree)


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"] == "Nenya config"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA)


def test_there_are_examples() -> None:
    assert {path.name for path in EXAMPLES} >= {"local.yaml", "mixed.yaml", "providers.yaml"}


def test_a_variable_may_stand_for_a_text() -> None:
    assert is_valid(GOOD)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("models",), {}),
        (("models", "m", "targets"), []),
        (("models", "m", "polcy"), "weighted"),
        (("models", "m", "policy"), "wheighted"),
        (("keys", 0, "secret"), "short"),
        (("providers", "p", "base_url"), "not a url"),
        (("engines", "e", "kind"), "vllm"),
        (("engines", "e", "slots"), 0),
        (("server",), {"drain_s": 0}),
        (("tracing",), {"endpoint": "collector"}),
    ],
)
def test_wrong_shapes_are_not(path: tuple[Any, ...], value: Any) -> None:
    tree: Any = copy.deepcopy(GOOD)
    inner = tree
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    assert not is_valid(tree)


def test_fields_are_described() -> None:
    definitions = SCHEMA["$defs"]
    admin = definitions["Server"]["properties"]["admin"]
    assert admin["description"] == (
        "The status page with its playground, /status, /metrics, /healthz, /readyz; null switches the port off."
    )
    model = definitions["LlamaCppSpec"]["properties"]["model"]
    assert model["description"].startswith("A .gguf file")
    assert all(definition["description"] for definition in definitions.values())
