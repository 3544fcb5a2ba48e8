"""Whatever stands in a file: a Config or a ConfigError, and nothing else."""

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.config.reader import parse
from router.config.schema import Config
from router.errors import ConfigError

GOOD = """\
server: {listen: "127.0.0.1:8080", admin: null}
keys: [{id: dev, secret: "${KEY}"}]
providers:
  p: {kind: openai, base_url: "https://h/v1", headers: {a: b}}
engines:
  e: {kind: simulated, ttft_ms: 50}
  g: {kind: exllamav2, model: x, gpus: [0]}
models:
  m:8b:
    aliases: [a, b]
    targets: [{engine: e}, {provider: p, weight: 1.5}]
"""
PIECES = [
    "models", "server", "engines", "providers", "keys", "targets", "engine", "kind", "simulated",
    "id", "secret", "listen", ":", ": ", "- ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ", ",
    "'", '"', "&a ", "*a", "!!str ", "!x ", "? ", "| ", "> ", "%YAML 1.1\n", "---\n", "...", "#",
    "${", "}", "${K}", "$${", "null", "~", "1", "0x1", "1:30", "\t", "\\", "\x07", "\ufeff", "<<",
    "\u2028", "\ud800", "@", "`", "%", "\\U7fffffff", "m",
]  # fmt: skip
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(PIECES[:12]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(PIECES[:12]) | st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def outcome_of(text: str) -> Config | ConfigError:
    try:
        return parse(text, "a test", {"K": "12345678"})
    except ConfigError as error:
        return error


def only_config_errors(text: str) -> None:
    outcome = outcome_of(text)
    if isinstance(outcome, ConfigError):
        assert outcome.problems
        assert all(problem.message.isprintable() for problem in outcome.problems)
        assert all(problem.path.isprintable() for problem in outcome.problems)


@given(st.text(max_size=200))
@example("\x00")
@example('"\\UFFFFFFFF"')
@example("%YAML 1" + "1" * 5000 + ".1\n---\na: b")
@example("!<tag:yaml.org,2002:%ff> a")
@example("a: &a {b: *a}")
@example("? {a: b}\n: c")
@settings(max_examples=100, deadline=None)
def test_any_text(text: str) -> None:
    only_config_errors(text)


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@settings(max_examples=150, deadline=None)
def test_any_text_of_what_yaml_is_made_of(text: str) -> None:
    only_config_errors(text)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_good_file_that_was_damaged(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD)))
    cut = data.draw(st.integers(0, 12))
    put = data.draw(st.lists(st.sampled_from(PIECES), max_size=3).map("".join))
    only_config_errors(GOOD[:at] + put + GOOD[at + cut :])


@given(TREES)
@settings(max_examples=100, deadline=None)
def test_any_tree(tree: object) -> None:
    only_config_errors(yaml.safe_dump(tree, allow_unicode=True))
