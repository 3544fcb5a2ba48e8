"""Every kind of problem, with its line and its words."""

import pytest

from router.config.reader import parse
from router.errors import ConfigError

ENGINES = "engines: {e: {kind: simulated}}\n"
MODELS = "models: {m: {targets: [{engine: e}]}}\n"
REST = ENGINES + MODELS
SECRET = "canary-secret"


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "a test", environ or {})
    return [str(problem) for problem in caught.value.problems]


SYNTAX = [
    ("", "the file is empty; `models:` is missing"),
    ("# nothing\n", "the file is empty; `models:` is missing"),
    ("- a\n- b\n", "line 1: must be a mapping, not a list"),
    ("just words\n", "line 1: must be a mapping, not text"),
    (
        f"keys: [{{id: a, secret: {SECRET}}}\n{REST}",
        "line 1: not valid YAML: a `[` without its `]`, or a missing `,`",
    ),
    (
        f"{REST}server: {{listen: x\n",
        "line 3: not valid YAML: a `{` without its `}`, or a missing `,`",
    ),
    (
        f"{REST}server:\n\tlisten: x\n",
        "line 4: not valid YAML: a tab; YAML is indented with spaces",
    ),
    (
        f"{REST}server: @x\n",
        "line 3: not valid YAML: a value that starts with a special character needs quotes",
    ),
    (
        f"{REST}server: *{SECRET}\n",
        (
            "line 3: not valid YAML: `*` starts an alias, and no anchor has its name; "
            "a value needs quotes"
        ),
    ),
    (
        f"{REST}server: a: b\n",
        "line 3: not valid YAML: `: ` inside a value; put the value in quotes",
    ),
    (f"{REST}server\nkeys: []\n", "line 3: not valid YAML: a key without its `:`"),
    (
        f"{REST}---\nserver: {{}}\n",
        "line 3: not valid YAML: the file has more than one document (`---`)",
    ),
    (f'{REST}server: "{SECRET}\n', "line 3: not valid YAML: a quote that never closes"),
    (
        f"server:\n  listen: a\n admin: b\n{REST}",
        "line 3: not valid YAML: the indentation does not fit the lines above",
    ),
    (
        f'{REST}server: "\\q"\n',
        "line 3: not valid YAML: an unknown `\\` escape in a double-quoted string",
    ),
    (f"{REST}\x07", "line 3: not valid YAML: an unprintable character"),
    (f"{REST}x: {'[' * 500}", "not valid YAML: nested too deeply"),
    ("#" * (256 * 1024 + 1), "the file is larger than 256 KiB"),
    (
        f"{REST}server: !!python/object:os.system {{}}\n",
        "line 3: server: the tag `tag:yaml.org,2002:python/object:os.system` is not known here",
    ),
]


@pytest.mark.parametrize(("text", "problem"), SYNTAX)
def test_what_is_not_yaml_is_told_without_showing_the_line(text: str, problem: str) -> None:
    assert problems(text) == [problem]


SHAPE = [
    ("listen: x", ("line 3: unknown key `listen`; possible here: `models`, `server`, `keys`, "
      "`tiers`, `accounts`, `providers`, `engines`, `timeouts`, `retry`, `recovery`, `queue`, `health`, `tracing`")),
    ("sever: {}", "line 3: unknown key `sever`; did you mean `server`?"),
    ("server: {lisen: x}", "line 3: server: unknown key `lisen`; did you mean `listen`?"),
    ("<<: {}", "line 3: unknown key `<<`; merge keys are not part of YAML 1.2"),
    ("server: []", "line 3: server: must be a mapping, not a list"),
    ("server: on", "line 3: server: must be a mapping, not text"),
    ("server: null", "line 3: server: must be a mapping, not null"),
    ("keys: {}", "line 3: keys: must be a list, not a mapping"),
    ("server:\n  drain_s: 1:30", "line 4: server.drain_s: must be a number, not `1:30`"),
    ('server: {drain_s: "30"}', "line 3: server.drain_s: must be a number, not the text `30`"),
    ("server: {drain_s: .inf}", "line 3: server.drain_s: must be a number, not `.inf`"),
    ("server: {drain_s: 1e999}", "line 3: server.drain_s: is too large a number: `1e999`"),
    ("server: {drain_s: 0}", "line 3: server.drain_s: must be more than 0, not `0`"),
    ("server: {drain_s: }", "line 3: server.drain_s: must be a number, not empty"),
    ("server: {drain_s: []}", "line 3: server.drain_s: must be a number, not a list"),
    ("retry: {attempts: 0}", "line 3: retry.attempts: must be at least 1, not `0`"),
    ("retry: {attempts: 1.5}", "line 3: retry.attempts: must be a whole number, not `1.5`"),
    ("retry: {attempts: 010}", ("line 3: retry.attempts: must be a whole number, not `010`; "
     "a leading 0 means different numbers to different readers")),
    ("retry: {attempts: 0x10}", "line 3: retry.attempts: must be a whole number, not `0x10`"),
    ("retry: {attempts: 1_000}", "line 3: retry.attempts: must be a whole number, not `1_000`"),
    ('retry: {attempts: "${N}"}', ("line 3: retry.attempts: must be a whole number, "
     "not the text `${N}`; the environment fills text only")),
    ("retry: {attempts: 9999999999999999999}",
     "line 3: retry.attempts: is too large a number: `9999999999999999999`"),
    ("? [a]\n: b", "line 3: a key must be text"),
    ('"": b', "line 3: a key is empty"),
    ("${A}: b", "line 3: the environment fills values, not keys"),
    ('"a\\x1bb": b', "line 3: a key has an unprintable character"),
    ("retry: {attempts: 1, attempts: 2}",
     "line 3: retry.attempts: is there twice; first on line 3"),
    ("engines: {}", "line 3: engines: is there twice; first on line 1"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), SHAPE)
def test_shapes(text: str, problem: str) -> None:
    assert problems(f"{REST}{text}\n") == [problem]


ENGINE = [
    ("{}", "line 1: engines.x: `kind` is missing: one of `exllamav2`, `exllamav3`, `llamacpp`, `simulated`"),
    ("llamacpp", "line 1: engines.x: must be a mapping, not text"),
    ("{kind: vllm}", ("line 1: engines.x.kind: must be one of `exllamav2`, `exllamav3`, `llamacpp`, `simulated`, "
     "not `vllm`")),
    ("{kind: lamacpp}", ("line 1: engines.x.kind: must be one of `exllamav2`, `exllamav3`, `llamacpp`, "
     "`simulated`, not `lamacpp`; did you mean `llamacpp`?")),
    ("{kind: []}", ("line 1: engines.x.kind: must be one of `exllamav2`, `exllamav3`, `llamacpp`, `simulated`, "
     "not a list")),
    ("{kind: llamacpp}", "line 1: engines.x: `model` is missing"),
    ("{kind: llamacpp, model: }", "line 1: engines.x.model: is empty"),
    ('{kind: llamacpp, model: ""}', "line 1: engines.x.model: is empty"),
    ("{kind: llamacpp, model: ~}", "line 1: engines.x.model: must be text, not `~`"),
    ("{kind: llamacpp, model: a, gpus: [0]}", ("line 1: engines.x: unknown key `gpus`; possible "
     "here: `model`, `slots`, `context_tokens`, `threads`, `costs`")),
    ("{kind: exllamav2, model: a, gpus: [a]}",
     "line 1: engines.x.gpus[0]: must be a whole number, not `a`"),
    ("{kind: simulated, seed: yes}", "line 1: engines.x.seed: must be a whole number, not `yes`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), ENGINE)
def test_engines(text: str, problem: str) -> None:
    models = "models: {m: {targets: [{engine: x}]}}"
    assert problems(f"engines: {{x: {text}}}\n{models}\n") == [problem]


PROVIDER = [
    ("{}", "line 1: providers.p: `base_url` is missing"),
    ("{base_url: x}", ("line 1: providers.p.base_url: must be a URL such as "
     "https://api.together.xyz/v1, without user, query or fragment")),
    ("{base_url: 'https://u:canary-secret@h/v1'}", ("line 1: providers.p.base_url: must be a URL "
     "such as https://api.together.xyz/v1, without user, query or fragment")),
    ("{base_url: 'http://h:99999/'}",
     "line 1: providers.p.base_url: is not a URL: see its host and port"),
    ("{kind: anthropic, base_url: 'http://h'}",
     "line 1: providers.p.kind: must be `openai`, not `anthropic`"),
    ("{base_url: 'http://h', private_network: yes}",
     "line 1: providers.p.private_network: must be true or false, not `yes`"),
    ("{base_url: 'http://h', api_key: 'canary-secret x'}", ("line 1: providers.p.api_key: "
     "may only have visible ASCII characters, without spaces")),
    ('{base_url: "http://h", api_key: "canary-secret\\n"}',
     "line 1: providers.p.api_key: has a line break or another unprintable character"),
    ("{base_url: 'http://h', headers: {'a b': canary-secret}}",
     "line 1: providers.p.headers.a b: is not a header's name"),
    ("{base_url: 'http://h', headers: {a: canary-secret-é}}",
     "line 1: providers.p.headers.a: may only have ASCII characters"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), PROVIDER)
def test_providers(text: str, problem: str) -> None:
    models = "models: {m: {targets: [{provider: p}]}}"
    assert problems(f"providers: {{p: {text}}}\n{models}\n") == [problem]


TRACING = [
    ("yes", "line 3: tracing: must be a mapping, not text"),
    ("{endpoint: collector}",
     "line 3: tracing.endpoint: must be a URL such as http://127.0.0.1:4318/v1/traces"),
    ("{endpoint: 'http://h:99999/'}", "line 3: tracing.endpoint: is not a URL: see its host and port"),
    ("{headers: {'a b': canary-secret}}", "line 3: tracing.headers.a b: is not a header's name"),
    ("{sample_ratio: 2}", "line 3: tracing.sample_ratio: must be at most 1, not `2`"),
    ("{service: x}", "line 3: tracing: unknown key `service`; did you mean `service_name`?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), TRACING)
def test_tracing(text: str, problem: str) -> None:
    assert problems(f"{REST}tracing: {text}\n") == [problem]


TARGET = [
    ("{}", "line 3: models.m.targets[0]: needs `engine` or `provider`"),
    ("{weight: 2}", "line 3: models.m.targets[0]: needs `engine` or `provider`"),
    ("{engine: e, provider: p}",
     "line 3: models.m.targets[0]: names an engine and a provider; a target is one of them"),
    ("{engine: fat}", ("line 3: models.m.targets[0].engine: there is no engine `fat`; "
     "did you mean `fast`?")),
    ("{engine: zzz}", "line 3: models.m.targets[0].engine: there is no engine `zzz`"),
    ("{provider: e}", ("line 3: models.m.targets[0].provider: there is no provider `e`; "
     "`e` is one of the engines: write `engine: e`")),
    ("{engine: p}", ("line 3: models.m.targets[0].engine: there is no engine `p`; "
     "`p` is one of the providers: write `provider: p`")),
    ("{engine: e, weight: -1}",
     "line 3: models.m.targets[0].weight: must be more than 0, not `-1`"),
    ("e", "line 3: models.m.targets[0]: must be a mapping, not text"),
    ("{engin: e}", "line 3: models.m.targets[0]: unknown key `engin`; did you mean `engine`?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), TARGET)
def test_targets(text: str, problem: str) -> None:
    parts = "engines: {e: {kind: simulated}, fast: {kind: simulated}}\n"
    parts += "providers: {p: {base_url: 'http://h'}}\n"
    assert problems(f"{parts}models: {{m: {{targets: [{text}]}}}}\n") == [problem]


def test_a_target_where_there_are_no_providers() -> None:
    text = "models: {m: {targets: [{provider: together}]}}"
    assert problems(text) == [
        (
            "line 1: models.m.targets[0].provider: there is no provider `together`; "
            "there are no providers"
        )
    ]


MODEL = [
    ("models:\n  m: {}", ["line 3: models.m: `targets` is missing"]),
    ("models:\n  m:", ["line 3: models.m: `targets` is missing"]),
    ("models:\n  m: {targets: }",
     ["line 3: models.m.targets: must have at least 1 entry"]),
    ("models: {}", ["line 2: models: must have at least 1 entry"]),
    ("models:", ["line 2: models: must have at least 1 entry"]),
    ("server: {}", ["line 1: `models` is missing"]),
    ("models:\n  m: {targets: [{engine: e}], policy: leastinflight}",
     [("line 3: models.m.policy: must be one of `cache_aware`, `expected_cost`, "
      "`headroom`, `least_inflight`, `least_tokens`, `lmetric`, `local_first`, `power_of_two`, `round_robin`, "
      "`weighted`, not "
      "`leastinflight`; did you mean `least_inflight`?")]),
    ("models:\n  m:\n    targets: [{engine: e}]\n    aliases:\n      - a\n      - A",
     ["line 7: models.m.aliases[1]: `A` is already a name of this model; case is ignored"]),
    ("models:\n  m:\n    targets: [{engine: e}]\n    aliases: [M]",
     ["line 5: models.m.aliases[0]: `M` is already a name of this model; case is ignored"]),
    ("models:\n  m: {targets: [{engine: e}], aliases: [n]}\n  N: {targets: [{engine: e}]}",
     ["line 3: models.m.aliases[0]: `n` is already a name of `N`; case is ignored"]),
    ("models:\n  m: {targets: [{engine: e}]}\n  M: {targets: [{engine: e}]}",
     ["line 4: models.M: `M` is already a name of `m`; case is ignored"]),
    ("models:\n  m: {targets: [{engine: e}], fallback: [n, mm]}\n  mn: {targets: [{engine: e}]}",
     ["line 3: models.m.fallback[0]: there is no model `n`; did you mean `mn`?",
      "line 3: models.m.fallback[1]: there is no model `mm`; did you mean `m`?"]),
    ("models:\n  m: {targets: [{engine: e}], aliases: [n], context_fallback: [N]}",
     ["line 3: models.m.context_fallback[0]: is this model itself"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MODEL)
def test_models(text: str, expected: list[str]) -> None:
    assert problems(ENGINES + text) == expected


KEY = [
    ("{id: a}", "line 4: keys[0]: `secret` is missing"),
    ("{id: a b, secret: canary-secret}", ("line 4: keys[0].id: must be "
     "1 to 64 letters, digits, dots, hyphens or underscores")),
    ("{id: a, secret: canary}", "line 4: keys[0].secret: must have at least 8 characters"),
    ("{id: a, secret: 0123}", "line 4: keys[0].secret: must have at least 8 characters"),
    ("{id: a, secret: canary secret}",
     "line 4: keys[0].secret: may only have visible ASCII characters, without spaces"),
    ("{id: a, secret: canary-one}\n  - {id: a, secret: canary-two}",
     "line 5: keys[1].id: `a` is used twice; first on line 4"),
    ("{id: a, secret: canary-one}\n  - {id: b, secret: canary-one}",
     "line 5: keys[1].secret: is the same secret as on line 4"),
    ('{id: a, secret: "${MISSING}"}',
     "line 4: keys[0].secret: the environment variable `MISSING` is not set"),
    ('{id: a, secret: "${EMPTY}"}',
     "line 4: keys[0].secret: the environment variable `EMPTY` is empty"),
    ('{id: a, secret: "${BROKEN}"}', ("line 4: keys[0].secret: the environment variable `BROKEN` "
     "has a line break or another unprintable character")),
    ('{id: a, secret: "${canary secret"}',
     "line 4: keys[0].secret: `${` must be followed by a name and `}`; write `$${` for the text"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), KEY)
def test_keys(text: str, problem: str) -> None:
    environ = {"EMPTY": " ", "BROKEN": "canary\nsecret"}
    (found,) = problems(f"{REST}keys:\n  - {text}\n", environ)
    assert found == problem
    assert "canary" not in found


def test_all_missing_variables_are_named() -> None:
    text = (
        f'{REST}keys:\n  - {{id: a, secret: "${{A}}${{B}}${{A}}"}}\n  - {{id: "${{C}}", secret: x}}'
    )
    assert problems(text) == [
        "line 4: keys[0].secret: the environment variable `A` is not set",
        "line 4: keys[0].secret: the environment variable `B` is not set",
        "line 5: keys[1].id: the environment variable `C` is not set",
        "line 5: keys[1].secret: must have at least 8 characters",
    ]


OPEN = (
    "refuses to start: other machines could connect, and there are no keys; "
    "add `keys:` (each an `id` and a `secret`) or use 127.0.0.1"
)
SHAPE_OF_ADDRESS = "must be host:port, such as 127.0.0.1:8080 or [::1]:8080"
LISTEN = [
    ("listen: 8080", [f"line 4: server.listen: {SHAPE_OF_ADDRESS}"]),
    ("listen: ':8080'", [f"line 4: server.listen: {SHAPE_OF_ADDRESS}"]),
    ("listen: localhost:99999", [f"line 4: server.listen: {SHAPE_OF_ADDRESS}"]),
    ("listen: '[zz]:80'", [f"line 4: server.listen: {SHAPE_OF_ADDRESS}"]),
    ("listen: '::1:80'", [f"line 4: server.listen: {SHAPE_OF_ADDRESS}"]),
    ("listen: 0.0.0.0:80", [f"line 4: server.listen: {OPEN}"]),
    ("listen: '[::]:80'", [f"line 4: server.listen: {OPEN}"]),
    ("listen: example.com:80", [f"line 4: server.listen: {OPEN}"]),
    ("admin: 10.0.0.1:80", [f"line 4: server.admin: {OPEN}"]),
    ("admin: 127.0.0.1:8080", ["line 4: server.admin: is the same address as `listen`"]),
]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("too-short", ["line 3: server.admin_key: must have at least 16 characters"]),
        (
            "sixteen and spaces",
            ["line 3: server.admin_key: may only have visible ASCII characters, without spaces"],
        ),
        (
            "sk-of-a-client-0001",
            [
                "line 3: server.admin_key: is the secret of a client's key, which must not open the status"
            ],
        ),
    ],
)
def test_an_admin_key(key: str, expected: list[str]) -> None:
    text = f"{REST}server: {{admin_key: {key}}}\nkeys: [{{id: a, secret: sk-of-a-client-0001}}]\n"
    assert problems(text) == expected


@pytest.mark.parametrize(("text", "expected"), LISTEN)
def test_listening(text: str, expected: list[str]) -> None:
    assert problems(f"{REST}server:\n  {text}\n") == expected


def test_everything_is_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
server: {lisen: x}
keys: [{id: a}]
engines:
  e: {kind: simulatd}
models:
  m:
    polcy: x
    targets: [{engine: e}, {engine: f}, {}]
providers: {p: {base_url: 'http://h', api_key: '${K}'}}
"""
    assert problems(text) == [
        "line 1: server: unknown key `lisen`; did you mean `listen`?",
        "line 2: keys[0]: `secret` is missing",
        (
            "line 4: engines.e.kind: must be one of `exllamav2`, `exllamav3`, `llamacpp`, `simulated`, "
            "not `simulatd`; did you mean `simulated`?"
        ),
        "line 7: models.m: unknown key `polcy`; did you mean `policy`?",
        "line 8: models.m.targets[1].engine: there is no engine `f`",
        "line 8: models.m.targets[2]: needs `engine` or `provider`",
        "line 9: providers.p.api_key: the environment variable `K` is not set",
    ]


def test_aliases_that_multiply_are_refused() -> None:
    model = "{targets: &t [" + "{engine: e}, " * 1000 + "]}"
    models = "".join(f"  m{n}: {{targets: *t}}\n" for n in range(1000))
    text = f"{ENGINES}models:\n  m: {model}\n{models}"
    assert problems(text) == ["too many values; aliases (`*name`) multiply them"]


def test_a_structure_that_contains_itself_is_no_trap() -> None:
    assert "must be a mapping" in problems("models: &m {m: {targets: &t [*t]}}")[0]


def test_at_most_a_hundred_problems_are_told() -> None:
    text = REST + "".join(f"unknown{n}: 1\n" for n in range(250))
    found = problems(text)
    assert len(found) == 101
    assert found[-1] == "and 150 more problems"


ACCOUNTS = [
    ("tiers: {a: {models: {mm: {rpm: 1}}}}", "tiers.a.models.mm: there is no model `mm`; did you mean `m`?"),
    ("tiers: {a: {models: {m: {rpm: 1}, M: {rpm: 2}}}}", "tiers.a.models.M: is the model `m`, which is there already"),
    ("tiers: {a: {rpm: 0}}", "tiers.a.rpm: must be at least 1, not `0`"),
    ("keys: [{id: k, secret: 12345678, tier: free}]", "keys[0].tier: there is no tier `free`; there are no tiers"),
    ("keys: [{id: k, secret: 12345678, tier: fre}]\ntiers: {free: {}}",
     "keys[0].tier: there is no tier `fre`; did you mean `free`?"),
    ("keys: [{id: k, secret: 12345678, models: [zz]}]", "keys[0].models[0]: there is no model `zz`"),
    ("keys: [{id: k, secret: 12345678, models: []}]", "keys[0].models: must have at least 1 entry"),
    ("keys: [{id: k, secret: 12345678, expires: 2027-02-30}]", "keys[0].expires: there is no such day or time"),
    ("keys: [{id: k, secret: 12345678, expires: soon}]",
     "keys[0].expires: must be a date or a time in UTC: 2027-01-31 or 2027-01-31T12:00:00Z"),
    ("keys: [{id: k, secret: 12345678, budget_usd: -1}]", "keys[0].budget_usd: must be at least 0, not `-1`"),
    ("accounts: {database: x.db}",
     "accounts.database: a database needs `pepper`: a long random secret, such as `pepper: ${NENYA_PEPPER}`"),
    ("accounts: {database: x.db, pepper: short}", "accounts.pepper: must have at least 16 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), ACCOUNTS)
def test_accounts(text: str, problem: str) -> None:
    (found,) = problems(f"{REST}{text}\n")
    assert found.partition(": ")[2] == problem
