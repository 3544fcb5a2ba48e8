"""What a good file becomes; files on the disk, overrides and warnings."""

from pathlib import Path

import msgspec
import pytest

from engines.specs import ExLlamaV2Spec, LlamaCppSpec, SimulatedSpec
from router.config.reader import Options, Reading, embedded, examine, parse, read
from router.config.schema import Config, Key, Model, Provider, Server, Target
from router.errors import ConfigError

MIXED = """\
server: {listen: "127.0.0.1:8080", admin: "127.0.0.1:9090"}
keys: [{id: dev, secret: "${NENYA_KEY}"}]
providers:
  together: {kind: openai, base_url: "https://api.together.xyz/v1", api_key: "${TOGETHER_API_KEY}"}
engines:
  starter: {kind: llamacpp, model: starter, slots: 4, context_tokens: 4096}
  gpu0: {kind: exllamav2, model: /models/llama-3.1-8b-exl2, gpus: [0], cache_tokens: 65536}
  fake: {kind: simulated, ttft_ms: 50, tokens_per_s: 100}
models:
  llama3.1:8b:
    aliases: [llama3.1, llama3.1-8b]
    context_tokens: 8192
    policy: least_inflight
    targets:
      - {engine: gpu0}
      - {provider: together, model: meta-llama/Llama-3.1-8B-Instruct-Turbo, weight: 1}
"""
ENVIRON = {"NENYA_KEY": "a-client-key", "TOGETHER_API_KEY": "a-provider-key"}
LITTLE = "engines: {e: {kind: simulated}}\nmodels: {m: {targets: [{engine: e}]}}\n"


def little(more: str, environ: dict[str, str] | None = None) -> Config:
    return parse(LITTLE + more, "a test", environ or {})


def in_file(folder: Path, text: str) -> Path:
    path = folder / "nenya.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaints(path: Path, options: Options | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        examine(path, options or Options(), {})
    assert caught.value.source == str(path)
    return [str(problem) for problem in caught.value.problems]


def test_the_whole_shape() -> None:
    turbo = "meta-llama/Llama-3.1-8B-Instruct-Turbo"
    assert parse(MIXED, "a test", ENVIRON) == Config(
        server=Server(listen="127.0.0.1:8080", admin="127.0.0.1:9090"),
        keys=[Key(id="dev", secret="a-client-key")],
        providers={
            "together": Provider(base_url="https://api.together.xyz/v1", api_key="a-provider-key")
        },
        engines={
            "starter": LlamaCppSpec(model="starter", slots=4, context_tokens=4096),
            "gpu0": ExLlamaV2Spec(model="/models/llama-3.1-8b-exl2", cache_tokens=65536),
            "fake": SimulatedSpec(ttft_ms=50, tokens_per_s=100),
        },
        models={
            "llama3.1:8b": Model(
                aliases=["llama3.1", "llama3.1-8b"],
                context_tokens=8192,
                targets=[Target(engine="gpu0"), Target(provider="together", model=turbo)],
                policy="least_inflight",
            )
        },
    )


TEXTS = ["on", "yes", "true", "1.5", "0123", "1:30", "0x10", "2026-01-01", "1e3", ".inf", "=", "<<"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_text_stays_as_it_is_typed(text: str, quote: str) -> None:
    models = f"models: {{{quote}{text}{quote}: {{targets: [{{engine: e}}], owned_by: {quote}{text}{quote}}}}}"
    config = parse(f"engines: {{e: {{kind: simulated}}}}\n{models}\n", "a test", {})
    assert {name: model.owned_by for name, model in config.models.items()} == {text: text}


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("+7", 7), ("2.5", 2.5), (".5", 0.5), ("1e3", 1000), ("3.", 3)]
)
def test_numbers(text: str, value: float) -> None:
    assert little(f"timeouts: {{total_s: {text}}}").timeouts.total_s == value


@pytest.mark.parametrize("text", ["null", "~", "", "Null"])
def test_null_switches_the_admin_port_off(text: str) -> None:
    assert little(f"server: {{admin: {text}}}").server.admin is None


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("auto", "auto")])
def test_a_knob_may_be_a_yes_a_no_or_a_word(text: str, value: object) -> None:
    config = little(f"providers: {{p: {{base_url: 'https://x.test/v1', continues: {text}}}}}\n")
    assert config.providers["p"].continues is value


def test_sections_whose_lines_are_all_comments_are_the_default() -> None:
    config = little("server:\nkeys:\nproviders:\n  # together: {}\ntimeouts:\n")
    assert (config.server, config.keys, config.providers) == (Server(), [], {})


def test_variables_are_filled_and_escaped_ones_are_not() -> None:
    config = little("keys: [{id: a, secret: 'x${A}-$${B}-$C-${A}'}]", {"A": "12345678"})
    assert config.keys[0].secret == "x12345678-${B}-$C-12345678"


def test_what_a_variable_holds_is_not_read_again() -> None:
    config = little("keys: [{id: a, secret: '${A}'}]", {"A": "${B}${B}"})
    assert config.keys[0].secret == "${B}${B}"


def test_anchors_may_be_used() -> None:
    text = "engines:\n  a: &sim {kind: simulated, slots: 3}\n  b: *sim\n"
    text += "models: {m: {targets: [{engine: a}, {engine: b}]}}"
    config = parse(text, "a test", {})
    assert config.engines["a"] == config.engines["b"] == SimulatedSpec(slots=3)


def test_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = tmp_path / "nenya.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + LITTLE.replace("\n", "\r\n").encode())
    assert list(read(path).models) == ["m"]


def test_names_of_engines_and_models_differ_from_fields() -> None:
    config = parse(
        "engines: {kind: {kind: simulated}}\nmodels: {models: {targets: [{engine: kind}]}}", "a", {}
    )
    assert list(config.models) == ["models"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert complaints(tmp_path / "none.yaml") == ["there is no such file"]
    assert complaints(tmp_path) == ["this is a folder, not a file"]
    assert complaints(Path("a\0b")) == ["can't be read: not a file's name"]
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"# one\n# caf\xe9\n")
    assert complaints(path) == ["line 2: is not UTF-8 text"]
    path.write_bytes(b"#" * 2_000_000)
    assert complaints(path) == ["the file is larger than 256 KiB"]


def test_models_that_do_not_exist(tmp_path: Path) -> None:
    here = tmp_path / "here.gguf"
    here.write_bytes(b"")
    text = f"""\
engines:
  a: {{kind: llamacpp, model: /nowhere/canary.gguf}}
  b: {{kind: exllamav2, model: /nowhere/canary}}
  c: {{kind: llamacpp, model: {here}}}
  d: {{kind: exllamav2, model: {tmp_path}}}
  e: {{kind: exllamav2, model: {here}}}
  f: {{kind: llamacpp, model: {tmp_path}}}
  g: {{kind: llamacpp, model: starter}}
providers: {{p: {{base_url: 'http://h', ca_file: /nowhere}}}}
models: {{m: {{targets: [{{engine: a}}, {{provider: p}}]}}}}
"""
    path = in_file(tmp_path, text)
    assert complaints(path) == [
        "line 2: engines.a.model: there is no such file",
        "line 3: engines.b.model: there is no such folder",
        "line 6: engines.e.model: there is no such folder",
        "line 7: engines.f.model: there is no such file",
        "line 9: providers.p.ca_file: there is no such file",
    ]
    assert isinstance(examine(path, Options(files=False), {}), Reading)


def test_what_nobody_uses_is_a_warning(tmp_path: Path) -> None:
    text = LITTLE.replace("}}\n", "},\n  idle: {kind: simulated}}\n", 1)
    path = in_file(tmp_path, text + "providers:\n  p: {base_url: 'http://h'}\n")
    warnings = examine(path, Options(), {}).warnings
    assert [str(warning) for warning in warnings] == [
        "line 2: engines.idle: no model uses it",
        "line 5: providers.p: no model uses it",
    ]


def test_overrides_come_before_the_rules(tmp_path: Path) -> None:
    path = in_file(tmp_path, f"{LITTLE}server: {{listen: 0.0.0.0:80, admin: 0.0.0.0:81}}")
    config = examine(path, Options(listen="[::1]:1", admin="off"), {}).config
    assert config.server == Server(listen="[::1]:1", admin=None)
    path = in_file(tmp_path, LITTLE)
    assert "refuses to start" in complaints(path, Options(listen="0.0.0.0:80"))[0]


def test_keys_open_the_way_beyond_this_machine() -> None:
    config = little(
        "keys: [{id: a, secret: 12345678}]\nserver: {listen: 0.0.0.0:80, admin: '[::]:81'}"
    )
    assert config.server.admin == "[::]:81"


def test_the_built_in_config() -> None:
    config = embedded()
    assert config.models == {
        "starter": Model(targets=[Target(engine="starter")], aliases=["nenya-starter"])
    }
    assert config.engines == {"starter": LlamaCppSpec(model="starter", threads=1)}
    assert (config.server.listen, config.server.admin) == ("127.0.0.1:8080", "127.0.0.1:9090")
    assert embedded(Options(listen="127.0.0.1:1", admin="off")).server.admin is None
    assert msgspec.convert(msgspec.to_builtins(config), Config) == config


def test_the_built_in_config_stays_on_this_machine() -> None:
    with pytest.raises(ConfigError, match="refuses to start"):
        embedded(Options(listen="0.0.0.0:8080"))
