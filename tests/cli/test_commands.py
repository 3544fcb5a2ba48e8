"""The command as a shell sees it, and what each command prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from router import __version__
from router.cli import main
from router.config.reader import OFF

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
CANARY = "sk-canary-4711"
SECRETS = {
    "NENYA_KEY": CANARY,
    "TOGETHER_API_KEY": f"{CANARY}-1",
    "FIREWORKS_API_KEY": f"{CANARY}-2",
    "NENYA_PEPPER": f"{CANARY}-pepper",
}
LITTLE = "engines: {e: {kind: simulated}}\nmodels: {m: {targets: [{engine: e}]}}\n"


def nenya(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "router.cli", *arguments]
    environ = {**os.environ, **SECRETS}
    return subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def little(tmp_path: Path) -> str:
    path = tmp_path / "little.yaml"
    path.write_text(LITTLE, encoding="utf-8")
    return str(path)


def test_help_teaches() -> None:
    done = nenya("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ["nenya serve", "nenya chat", "nenya check", "nenya schema", "exit codes"]:
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("command", ["serve", "check", "chat", "schema", "engines", "doctor"])
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"nenya {command}" in text
    assert "example" in text


def test_help_imports_only_what_it_needs() -> None:
    check = (
        "import sys; from router.cli import main; assert main(['--help']) == 0;"
        "sys.exit(str(sorted({'msgspec', 'aiohttp', 'yaml', 'asyncio'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == "[]"


def test_the_version() -> None:
    done = nenya("--version")
    assert (done.returncode, done.stdout) == (0, f"nenya {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["sing"], ["check"], ["serve", "--log-level", "loud"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_check_in_a_shell() -> None:
    done = nenya("check", "examples/mixed.yaml", "--no-files")
    assert done.returncode == 0
    assert (
        done.stdout
        == "examples/mixed.yaml: ok: 3 models, 4 targets, 3 engines, 1 provider, 1 key\n"
    )
    assert done.stderr == ""


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_ok(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path), "--no-files"]) == 0
    told = capsys.readouterr()
    assert ": ok: " in told.out
    assert told.err == ""


@pytest.mark.usefixtures("secrets")
def test_check_tells_missing_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "examples/mixed.yaml")]) == 2
    assert "engines.gpu0.model: there is no such folder\n1 problem\n" in capsys.readouterr().err


def test_check_tells_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{LITTLE}providers: {{p: {{base_url: 'http://h'}}}}\n", encoding="utf-8")
    assert main(["check", str(path)]) == 0
    told = capsys.readouterr()
    assert told.err == f"{path}: warning: line 3: providers.p: no model uses it\n"
    assert told.out == f"{path}: ok: 1 model, 1 target, 1 engine, 1 provider, 0 keys\n"


def test_check_in_json(tmp_path: Path, little: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", little]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["ok"] is True
    assert verdict["summary"] == {
        "models": 1, "targets": 1, "engines": 1, "providers": 0, "keys": 0
    }  # fmt: skip
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"{LITTLE}sever: {{}}\n", encoding="utf-8")
    assert main(["check", "--json", str(bad)]) == 2
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["problems"] == [
        {"message": "unknown key `sever`; did you mean `server`?", "path": "", "line": 3}
    ]


def test_the_schema_in_a_shell() -> None:
    done = nenya("schema")
    assert (done.returncode, done.stderr) == (0, "")
    jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))


def test_a_reader_that_went_away_is_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "router.cli", "schema"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


def test_the_word_that_switches_admin_off_is_the_documented_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["serve", "--help"])
    assert f"`{OFF}` for none" in capsys.readouterr().out
