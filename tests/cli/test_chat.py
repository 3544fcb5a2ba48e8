"""`nenya chat` against a small server that speaks OpenAI's format, well and badly."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from router.cli import chat, main
from router.cli.completions import Client
from router.cli.terminal import clean

CANARY = "sk-canary-4711"


def event(delta: dict[str, Any], **more: Any) -> bytes:
    chunk = {"id": "c", "choices": [{"index": 0, "delta": delta}], **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"
ANSWER = (
    event({"role": "assistant", "content": ""})
    + event({"content": "It "})
    + event({"content": "is 19."})
)
WHOLE = b": a comment\n\n" + ANSWER + event({}) + USAGE + DONE


class Stub:
    """What the server answers, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.body = WHOLE
        self.models = ["first", "second"]
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []

    def failing(self, status: int, error: dict[str, Any] | str) -> None:
        self.status = status
        self.body = (json.dumps({"error": error}) if isinstance(error, dict) else error).encode()


@pytest.fixture
def stub() -> Iterator[Stub]:
    state = Stub()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._note()
            self._send(200, json.dumps({"data": [{"id": name} for name in state.models]}).encode())

        def do_POST(self) -> None:
            self._note()
            length = int(self.headers["content-length"])
            state.asked.append(json.loads(self.rfile.read(length)))
            self._send(state.status, state.body)

        def _note(self) -> None:
            state.paths.append(self.path)
            state.keys.append(self.headers["authorization"])

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NENYA_KEY", raising=False)


Captured = pytest.CaptureFixture[str]
Typed = Callable[..., None]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """What somebody types at the prompt; an exception stands for Ctrl-C or Ctrl-D."""

    def types(*lines: str | type[BaseException]) -> None:
        left = list(lines)

        def ask(_: str) -> str:
            line = left.pop(0)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

    return types


def test_one_question(stub: Stub, capsys: Captured) -> None:
    assert main(["chat", "--url", stub.url, "What is 12 + 7?"]) == 0
    assert capsys.readouterr() == ("It is 19.\n", "")
    assert stub.asked == [
        {
            "model": "first",
            "messages": [{"role": "user", "content": "What is 12 + 7?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert stub.paths == ["/v1/models", "/v1/chat/completions"]
    assert stub.keys == [None, None]


def test_options(stub: Stub, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", CANARY)
    options = ["--model", "m", "--system", "Be kind.", "--temperature", "0", "--max-tokens", "5"]
    code = main(["chat", "--url", f"{stub.url}/v1/", "--key-env", "OTHER", *options, "Hi"])
    assert code == 0
    (asked,) = stub.asked
    assert asked["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (asked["model"], asked["temperature"], asked["max_completion_tokens"]) == ("m", 0, 5)
    assert stub.keys == [f"Bearer {CANARY}"]
    assert stub.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("arguments", [["-"], []])
def test_a_question_from_standard_input(
    stub: Stub, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "read", lambda: "From a pipe")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert main(["chat", "--url", stub.url, *arguments]) == 0
    assert stub.asked[0]["messages"] == [{"role": "user", "content": "From a pipe"}]


def test_timings_are_for_a_terminal(
    stub: Stub, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["chat", "--url", stub.url, "Hi"]) == 0
    told = capsys.readouterr()
    assert told.out == "It is 19.\n"
    assert told.err.startswith("\x1b[2m3 tokens, ")
    assert "tokens/s, first after 0." in told.err


def test_timing_in_words() -> None:
    assert chat._timing(0.051, 2.0, 101) == "101 tokens, 50.0 tokens/s, first after 0.05 s"
    assert chat._timing(0.051, 2.0, 1) == "1 token, first after 0.05 s"
    assert chat._timing(0.051, 2.0, None) == "first after 0.05 s"


NOT_OPENAI = "the server sent something that is not OpenAI's format"
BAD = [
    (404, {"message": "No such model.", "code": "model_not_found"}, "404: No such model. (model_not_found)"),
    (401, {"message": "No key.", "code": None}, "401: No key.; the key comes from the environment, see --key-env"),
    (502, "<html>", "502: Bad Gateway"),
    (500, {"message": "a\x1b[2Jb\x07"}, "500: a\ufffd[2Jb\ufffd"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "error", "words"), BAD)
def test_errors_of_the_server(
    stub: Stub, status: int, error: dict[str, Any] | str, words: str, capsys: Captured
) -> None:
    stub.failing(status, error)
    assert main(["chat", "--url", stub.url, "--model", "m", "Hi"]) == 1
    assert capsys.readouterr() == ("", f"nenya: {words}\n")


@pytest.mark.parametrize(
    ("body", "out", "words"),
    [
        (ANSWER, "It is 19.\n", "the answer was cut off"),
        (b"", "", "the answer was cut off"),
        (ANSWER + b'data: {"error": {"message": "Gone.", "code": "stream_cut"}}\n\n',
         "It is 19.\n", "Gone. (stream_cut)"),
        (b"data: what\n\n", "", NOT_OPENAI),
        (b'data: {"choices": 1}\n\n', "", NOT_OPENAI),
    ],
)  # fmt: skip
def test_streams_that_end_badly(
    stub: Stub, body: bytes, out: str, words: str, capsys: Captured
) -> None:
    stub.body = body
    assert main(["chat", "--url", stub.url, "--model", "m", "Hi"]) == 1
    assert capsys.readouterr() == (out, f"nenya: {words}\n")


def test_an_answer_cannot_move_the_cursor(stub: Stub, capsys: Captured) -> None:
    stub.body = (
        event({"content": "a\x1b]0;title\x07\r\n\tb\x9b2J"}) + event({"refusal": "No."}) + DONE
    )
    assert main(["chat", "--url", stub.url, "--model", "m", "Hi"]) == 0
    assert capsys.readouterr().out == "a\ufffd]0;title\ufffd\ufffd\n\tb\ufffd2JNo.\n"
    assert clean("plain é 漢") == "plain é 漢"


def test_no_server_says_how_to_start_one(stub: Stub, capsys: Captured) -> None:
    url = "http://127.0.0.1:1"
    assert main(["chat", "--url", url, "Hi"]) == 1
    assert (
        capsys.readouterr().err == f"nenya: nothing answers at {url}; start one with: nenya serve\n"
    )


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8080", "ftp://a", "http://", "http://a:b", "http://[a"]
)
def test_what_is_no_url_is_2(url: str, capsys: Captured) -> None:
    assert main(["chat", "--url", url, "Hi"]) == 2
    assert "--url must be like http://127.0.0.1:8080" in capsys.readouterr().err


def test_a_key_that_no_header_can_have(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NENYA_KEY", f"{CANARY}\r\nx: y")
    assert main(["chat", "Hi"]) == 2
    assert CANARY not in capsys.readouterr().err


def test_a_server_without_models(stub: Stub, capsys: Captured) -> None:
    stub.models = []
    assert main(["chat", "--url", stub.url, "Hi"]) == 1
    assert capsys.readouterr().err == f"nenya: {stub.url} has no models\n"


def test_a_conversation_remembers_until_reset(stub: Stub, typed: Typed, capsys: Captured) -> None:
    typed("One", "", "Two", "/reset", "Three", "/quit")
    assert main(["chat", "--url", stub.url, "--system", "S"]) == 0
    said = [[message["content"] for message in asked["messages"]] for asked in stub.asked]
    assert said == [["S", "One"], ["S", "One", "It is 19.", "Two"], ["S", "Three"]]
    assert capsys.readouterr().out == "It is 19.\n" * 3


def test_a_conversation_changes_its_model(stub: Stub, typed: Typed, capsys: Captured) -> None:
    typed("/model", "/model second", "Hi", "/what", EOFError)
    assert main(["chat", "--url", stub.url]) == 0
    assert stub.asked[0]["model"] == "second"
    told = capsys.readouterr().err.splitlines()
    assert told[1:] == ["* first", "  second", "now second", "/model [NAME]  /reset  /quit"]


def test_a_conversation_goes_on_after_an_error(stub: Stub, typed: Typed, capsys: Captured) -> None:
    stub.failing(500, {"message": "Oh."})
    typed("One", "/quit")
    assert main(["chat", "--url", stub.url]) == 0
    assert "nenya: 500: Oh." in capsys.readouterr().err


def test_a_question_that_failed_is_forgotten(stub: Stub) -> None:
    talk = chat.Conversation(Client(stub.url, None), "m", chat.Asking())
    stub.failing(500, {"message": "Oh."})
    with pytest.raises(chat.ChatFailed):
        talk.ask("One")
    stub.status, stub.body = 200, WHOLE
    talk.ask("Two")
    assert [message["content"] for message in stub.asked[1]["messages"]] == ["Two"]


def test_ctrl_c_twice_leaves(stub: Stub, typed: Typed, capsys: Captured) -> None:
    typed(KeyboardInterrupt, "Hi", KeyboardInterrupt, KeyboardInterrupt)
    assert main(["chat", "--url", stub.url]) == 130
    assert len(stub.asked) == 1
    assert capsys.readouterr().err.count("Ctrl-C again leaves") == 2


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(
    stub: Stub, typed: Typed, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    whole = Client.stream

    def interrupted(self: Client, request: Any) -> Iterator[Any]:
        for count, piece in enumerate(whole(self, request)):
            if count == 2 and len(stub.asked) == 1:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(Client, "stream", interrupted)
    typed("One", "Two", "/quit")
    assert main(["chat", "--url", stub.url]) == 0
    said = [message["content"] for message in stub.asked[1]["messages"]]
    assert said == ["One", "It ", "Two"]


def test_ctrl_c_in_one_question_is_130(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "stream", interrupted)
    assert main(["chat", "--url", stub.url, "Hi"]) == 130
