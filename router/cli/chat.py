"""`nenya chat`: one answer, or a conversation, in a terminal, from any server that speaks OpenAI's API.

The answer goes to standard output and nothing else does, so that it can be piped; timings, hints and errors go to
standard error. The conversation lives here: every request sends all of it, as the API wants.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

from msgspec import Struct

from router.cli import FAILED, INTERRUPTED, OK, USAGE
from router.cli.completions import ChatFailed, Client, Message, NoServer, Request, key_in
from router.cli.terminal import clean, dim

_PROMPT = "> "
_HELP = "/model [NAME]  /reset  /quit"


class Asking(Struct, frozen=True):
    """What stays the same through a conversation."""

    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class Conversation:
    """What was said, to which model."""

    def __init__(self, client: Client, model: str, asking: Asking) -> None:
        self.client = client
        self.model = model
        self._asking = asking
        self._said: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        system = self._asking.system
        self._said = [Message("system", system)] if system is not None else []

    def ask(self, question: str) -> None:
        """Print the answer to ``question`` as it comes. Raises ChatFailed and KeyboardInterrupt.

        A question without any answer is forgotten; an answer that was stopped or cut stays as far as it came.
        """
        said = (*self._said, Message("user", question))
        request = Request(
            model=self.model,
            messages=said,
            temperature=self._asking.temperature,
            max_completion_tokens=self._asking.max_tokens,
        )
        parts: list[str] = []
        try:
            self._print(request, parts)
        finally:
            if parts:
                print(flush=True)
                self._said = [*said, Message("assistant", "".join(parts))]

    def _print(self, request: Request, parts: list[str]) -> None:
        began = time.monotonic()
        first: float | None = None
        tokens: int | None = None
        for piece in self.client.stream(request):
            if piece.text:
                first = first if first is not None else time.monotonic()
                parts.append(piece.text)
                print(clean(piece.text), end="", flush=True)
            tokens = piece.output_tokens if piece.output_tokens is not None else tokens
        if first is not None and sys.stderr.isatty():
            timing = _timing(first - began, time.monotonic() - first, tokens)
            lead = "\n" if sys.stdout.isatty() else ""
            print(f"{lead}{dim(timing, sys.stderr)}", end="", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> int:
    """One answer if there is a prompt, else a conversation."""
    asking = Asking(arguments.system, arguments.temperature, arguments.max_tokens)
    try:
        client = Client(arguments.url, key_in(arguments.key_env))
    except ChatFailed as error:
        return _fail(str(error), USAGE)
    try:
        model = arguments.model or _first_model(client)
        talk = Conversation(client, model, asking)
        if arguments.prompt is None and sys.stdin.isatty():
            return _converse(talk)
        piped = arguments.prompt is None or arguments.prompt == "-"
        talk.ask(sys.stdin.read() if piped else arguments.prompt)
    except NoServer as error:
        return _fail(f"{error}; start one with: nenya serve")
    except ChatFailed as error:
        return _fail(str(error))
    return OK


def _first_model(client: Client) -> str:
    models = client.models()
    if not models:
        raise ChatFailed(f"{client.url} has no models")
    return models[0]


def _converse(talk: Conversation) -> int:
    """Until the end of the input, /quit, or Ctrl-C twice in a row."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives `input` editing and history
    _note(f"{talk.model} at {talk.client.url}   {_HELP}")
    interrupted = False
    while True:
        try:
            line = input(_PROMPT).strip()
            interrupted = False
            if line == "/quit":
                return OK
            if line.startswith("/"):
                _command(talk, line)
            elif line:
                talk.ask(line)
        except EOFError:
            print()
            return OK
        except KeyboardInterrupt:
            print()
            if interrupted:
                return INTERRUPTED
            interrupted = True
            _note("Ctrl-C again leaves")
        except ChatFailed as error:
            _fail(str(error))


def _command(talk: Conversation, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "/reset":
        talk.reset()
        _note("forgotten")
    elif word == "/model" and rest.strip():
        talk.model = rest.strip()
        _note(f"now {talk.model}")
    elif word == "/model":
        for name in talk.client.models():
            _note(f"{'*' if name == talk.model else ' '} {clean(name)}")
    else:
        _note(_HELP)


def _timing(first_s: float, rest_s: float, tokens: int | None) -> str:
    """``12 tokens, 45.2 tokens/s, first after 0.05 s``; the rate is that of the tokens after the first."""
    parts = [] if tokens is None else [f"{tokens} {'token' if tokens == 1 else 'tokens'}"]
    if tokens is not None and tokens > 1 and rest_s > 0:
        parts.append(f"{(tokens - 1) / rest_s:.1f} tokens/s")
    return ", ".join([*parts, f"first after {first_s:.2f} s"])


def _note(text: str) -> None:
    print(dim(text, sys.stderr), file=sys.stderr, flush=True)


def _fail(message: str, code: int = FAILED) -> int:
    print(f"nenya: {clean(message)}", file=sys.stderr)
    return code
