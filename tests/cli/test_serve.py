"""`nenya serve` up to the server: what it starts, what it prints, and why it doesn't start."""

import logging
import platform
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.base import EngineError
from router import __version__
from router.cli import main, serve
from router.cli.banner import banner
from router.config.reader import embedded, parse
from router.config.schema import Config
from router.errors import ConfigError, NenyaError

CANARY = "sk-canary-4711"
KEYED = """\
keys: [{id: dev, secret: "${NENYA_KEY}"}]
providers: {p: {base_url: "http://h/v1"}}
models: {"it's \\"big\\"": {targets: [{provider: p}]}}
"""
OPEN = "engines: {e: {kind: simulated}}\nmodels: {m: {targets: [{engine: e}]}}\n"


class Serving:
    url = "http://127.0.0.1:8080"
    admin_url: str | None = "http://127.0.0.1:9090"


class Server:
    """Stands for `router.server.run`."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.ends: Callable[[], int] = lambda: 0

    async def serve_until_stopped(
        self, config: Config, *, on_ready: Callable[[Serving], None]
    ) -> int:
        self.configs.append(config)
        on_ready(Serving())
        return self.ends()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    stub = Server()
    module = types.ModuleType("router.server.run")
    module.serve_until_stopped = stub.serve_until_stopped  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "router.server.run", module)
    monkeypatch.setattr(serve, "_bind", lambda _: None)
    monkeypatch.setattr(serve, "_lacking", lambda _: None)
    return stub


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "nenya.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_no_file_is_the_starter(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 0
    assert server.configs == [embedded()]
    assert (
        capsys.readouterr().out
        == f"""\
Nenya {__version__} is ready

  API    http://127.0.0.1:8080/v1
  Page   http://127.0.0.1:9090/  status and playground; /metrics for Prometheus
  Models starter

Try it:

  curl -N http://127.0.0.1:8080/v1/chat/completions \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "starter", "stream": true, "messages": [{{"role": "user", "content": "What is 12 + 7?"}}]}}'

From Python (pip install openai):

  from openai import OpenAI

  client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
  answer = client.chat.completions.create(
      model="starter",
      messages=[{{"role": "user", "content": "What is 12 + 7?"}}],
  )
  print(answer.choices[0].message.content)

Ctrl-C stops it.

"""
    )


def test_a_banner_names_the_key_and_never_shows_it() -> None:
    config = parse(KEYED, "a test", {"NENYA_KEY": CANARY})
    text = banner(config, "http://0.0.0.0:8080", None)
    assert CANARY not in text
    assert '-H "Authorization: Bearer $NENYA_KEY"' in text
    assert 'api_key=os.environ["NENYA_KEY"]' in text
    assert "curl -N http://127.0.0.1:8080/v1/chat/completions" in text
    assert "Page   off" in text


@pytest.mark.parametrize("text", [OPEN, KEYED])
def test_the_python_of_a_banner_compiles(text: str) -> None:
    config = parse(text, "a test", {"NENYA_KEY": CANARY})
    lines = banner(config, "http://h:1", None).splitlines()
    start = lines.index("From Python (pip install openai):") + 2
    code = "\n".join(
        line.removeprefix("  ") for line in lines[start : lines.index("Ctrl-C stops it.")]
    )
    compile(code, "the banner", "exec")
    assert repr(next(iter(config.models)))[1:-1] in code or "it's" in code


def test_a_banner_with_many_models_stays_short() -> None:
    models = ", ".join(f"m{n}: {{targets: [{{engine: e}}]}}" for n in range(9))
    config = parse(f"engines: {{e: {{kind: simulated}}}}\nmodels: {{{models}}}", "a test", {})
    assert "Models m0, m1, m2, m3, m4, m5 and 3 more\n" in banner(config, "http://h:1", None)


def test_addresses_of_the_command_line_win(
    server: Server, file: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(f"{OPEN}server: {{listen: 0.0.0.0:80}}\n")
    assert main(["serve", path, "--listen", "127.0.0.1:1", "--admin", "off"]) == 0
    assert server.configs[0].server.listen == "127.0.0.1:1"
    assert server.configs[0].server.admin is None


def test_warnings_are_told(
    server: Server, file: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(f"{OPEN}providers: {{p: {{base_url: 'http://h'}}}}\n")
    assert main(["serve", path]) == 0
    assert capsys.readouterr().err == f"{path}: warning: line 3: providers.p: no model uses it\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "8080"], "nenya: --listen must be host:port, such as 127.0.0.1:8080\n"),
        (["--listen", "off"], "nenya: --listen must be host:port, such as 127.0.0.1:8080\n"),
        (["--admin", "x"], "nenya: --admin must be host:port, such as 127.0.0.1:8080\n"),
        (["/nowhere.yaml"], "nenya: /nowhere.yaml\n  there is no such file\n"),
    ],
)
def test_what_was_asked_wrongly_is_2(
    server: Server, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert capsys.readouterr().err == words
    assert server.configs == []


def test_it_refuses_to_be_open_to_everybody(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--listen", "0.0.0.0:8080"]) == 2
    assert "server.listen: refuses to start" in capsys.readouterr().err
    assert server.configs == []


def test_a_port_in_use(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(serve, "_lacking", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--listen", f"127.0.0.1:{port}", "--admin", "off"]) == 1
        told = capsys.readouterr().err
        where = f"127.0.0.1:{port}"
        assert (
            told
            == f"nenya: can't listen on {where}: the port is in use; choose another with --listen\n"
        )
        arguments = ["--listen", "127.0.0.1:0", "--admin", where]
        assert main(["serve", *arguments]) == 1
        assert capsys.readouterr().err.endswith("choose another with --admin\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(13, "x"),
            "ports below 1024 need permission; choose another with --listen",
        ),
        (OSError(99, "x"), "this machine does not have that address"),
        (socket.gaierror(-2, "x"), "the name can't be resolved"),
        (OSError(24, "Too many open files"), "Too many open files"),
    ],
)
def test_other_addresses_that_cannot_be_had(
    server: Server,
    error: OSError,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def bind(_: object) -> None:
        raise error

    monkeypatch.setattr(serve, "_bind", bind)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == f"nenya: can't listen on 127.0.0.1:8080: {words}\n"


def test_a_package_that_is_not_installed(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(serve, "find_spec", lambda _: None)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == (
        "nenya: the engine `starter` needs a package that is not installed: "
        "pip install 'nenya[llamacpp]'\n"
    )


def raising(error: BaseException) -> Callable[[], int]:
    def end() -> int:
        raise error

    return end


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda: 0, 0),
        (lambda: 1, 1),
        (raising(EngineError("internal", "no GPU")), 1),
        (raising(NenyaError("no GPU")), 1),
        (raising(ConfigError("x", [])), 1),
        (raising(KeyboardInterrupt()), 130),
    ],
)
def test_the_end_is_the_exit_code(
    server: Server, end: Callable[[], int], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.ends = end
    assert main(["serve"]) == code
    assert "Traceback" not in capsys.readouterr().err


FREED = """
import resource
from router.cli import serve
serve.keep_freed_memory()
def prompt():
    return [bytes(2**20).decode() for _ in range(3)]
prompt()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    prompt()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_what_long_prompts_free_is_kept() -> None:
    run = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1000  # else 1,200 a prompt
