"""One request on its way through llama.cpp, on a thread of its own.

A call of llama.cpp blocks its thread until the answer is complete. Before it the prompt is prepared here, too, since
that may ask the server (see llamacpp_side) and try a grammar (see grammar). Events gather in a list and the
loop is woken once for all that came since it last looked.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec
from msgspec import Struct

from engines import grammar as grammars
from engines import llamacpp_wire
from engines.answer_plan import Plan, read_here
from engines.base import EngineError, Event, Usage
from engines.control_text import Masked, Vocabulary, mask
from engines.final_message import split
from engines.grammar import PROBE, Shape
from engines.llamacpp_chunks import ChunkReader, Reading, refusal
from engines.llamacpp_side import SideDoor
from engines.llamacpp_wire import Part, Prompt

THOUGHT_START, THOUGHT_END = "<think>", "</think>"
"""Of every open model that thinks in its answer."""

MAX_TRIED_GRAMMARS = 256
"""Remembered so as not to be tried again; an application has a handful."""


class Server(Protocol):
    """The part of ``xllamacpp.Server`` that is used."""

    def handle_chat_completions(self, body: bytes, callback: Callable[[bytes], bool]) -> None:
        """Answer; the callback gets each chunk and returns True to cancel."""

    def handle_completions(self, body: bytes, callback: Callable[[bytes], bool]) -> None:
        """Go on from a prompt; likewise."""


class Words(Struct, frozen=True):
    """What of a model's vocabulary and template its requests depend on."""

    vocabulary: Vocabulary
    native: bool
    """Whether it writes tool calls in tags."""
    end: str
    """The token that ends its turns."""


class Model:
    """A loaded model, as its requests need it. Used from their threads."""

    def __init__(self, server: Server, side: SideDoor, words: Words, *, grammars: bool) -> None:
        """``grammars``: llama.cpp was built with llguidance."""
        self.server = server
        self.side = side
        self.words = words
        self._grammars = grammars
        self._tried: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def grammar(self, shape: Shape) -> str:
        """Return a grammar that is known to work. Raises EngineError."""
        if not self._grammars:
            raise EngineError("unsupported", "this build of xllamacpp has no llguidance")
        key = grammars.grammar(shape)
        with self._lock:
            if key in self._tried:
                self._tried.move_to_end(key)
                return self._tried[key]
        for end in (self.words.end, ""):  # not every control token can stand in a grammar
            if self._works(grammars.grammar(shape, end=end, probe=True)):
                return self._remember(key, grammars.grammar(shape, end=end))
        raise EngineError(
            "invalid",
            "the JSON schema is invalid, has no value that fits it, or goes beyond what can be kept",
        )

    def _remember(self, key: str, text: str) -> str:
        with self._lock:
            self._tried[key] = text
            if len(self._tried) > MAX_TRIED_GRAMMARS:
                self._tried.popitem(last=False)
        return text

    def _works(self, grammar: str) -> bool:
        body = {"prompt": PROBE * 2, "grammar": grammar, "max_tokens": 1, "temperature": 0}
        chunks: list[bytes] = []

        def on_chunk(data: bytes) -> bool:
            chunks.append(data)
            return False

        stream = msgspec.json.encode({**body, "stream": True, "cache_prompt": False})
        self.server.handle_completions(stream, on_chunk)
        reader = ChunkReader(Reading())
        events = [event for data in chunks for event in reader.read(data)]
        return any(getattr(event, "text", "").startswith(PROBE) for event in events)


class Call:
    """One request on its thread, and the way of its events to the loop."""

    def __init__(self, plan: Plan, slots: int, context_tokens: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._plan = plan
        self._limits = (slots, context_tokens)
        self._readers: list[ChunkReader] = []
        self._lock = threading.Lock()
        self._pending: list[Event] = []
        self._woken = False
        self._ready = asyncio.Event()
        self._cancelled = False
        self._ended = False
        self._error: EngineError | None = None
        self.iterations = 0
        """Chunks so far; written by the thread alone."""

    @property
    def kv_tokens(self) -> int:
        """Roughly, tokens held in the cache."""
        readers = self._readers
        return readers[-1].kv_tokens if readers else 0

    def run(self, model: Model) -> None:
        """Prepare and make the calls; on the thread, blocking. Never raises."""
        try:
            for part in prepared(self._plan, model, *self._limits):
                reader = ChunkReader(part.reading)
                self._readers.append(reader)
                self._ask(model.server, part, reader)
                if self._error is None and not self._cancelled and not reader.complete:
                    self._error = EngineError("died", "llama.cpp stopped within an answer")
                if self._error is not None or self._cancelled:
                    return
            self._post([self._usage()])
        except EngineError as error:
            self._error = error
        except (ValueError, RuntimeError) as error:
            self._error = refusal(str(error))

    def _ask(self, server: Server, part: Part, reader: ChunkReader) -> None:
        def on_chunk(data: bytes) -> bool:
            if self._cancelled:
                return True
            self.iterations += 1
            try:
                events = reader.read(data)
                if events:
                    self._post(events)
            except EngineError as error:
                self._error = error
            except Exception as error:  # noqa: BLE001  # Cython would swallow it, and the answer with it
                self._error = EngineError("internal", f"{type(error).__name__}: {error}")
            own_end = bool(part.reading.stop) and reader.complete
            return self._error is not None or own_end

        ask = server.handle_chat_completions if part.chat else server.handle_completions
        ask(part.body, on_chunk)

    def _usage(self) -> Usage:
        usages = [reader.usage for reader in self._readers]
        return Usage(
            input_tokens=usages[0].input_tokens,
            output_tokens=sum(usage.output_tokens for usage in usages),
            cached_input_tokens=usages[0].cached_input_tokens,
        )

    def _post(self, events: list[Event]) -> None:
        with self._lock:
            self._pending += events
            if self._woken:
                return
            self._woken = True
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._woken = False
        self._ready.set()

    async def batch(self) -> list[Event]:
        """Wait for the events since the last look; none when all is said. Raises EngineError."""
        while True:
            with self._lock:
                events, self._pending = self._pending, []
            if events:
                return events
            if self._ended:
                if self._error is not None:
                    raise self._error
                return []
            self._ready.clear()
            await self._ready.wait()

    def cancel(self) -> None:
        """Stop at the next chunk."""
        self._cancelled = True

    def end(self, error: EngineError | None = None) -> None:
        """No more events will come; on the loop."""
        self._cancelled = self._ended = True
        self._error = self._error or error
        self._ready.set()


def prepared(plan: Plan, model: Model, slots: int, context_tokens: int) -> list[Part]:
    """Return the calls that a plan comes to; may ask the server. Raises EngineError, ValueError or RuntimeError."""
    request = plan.request
    if plan.penalised and (request.sampling.repetition_penalty or 1) != 1:
        raise EngineError(
            "unsupported",
            "repetition_penalty scales what keeps the prompt free of frequency_penalty and "
            "presence_penalty here: set one or the others",
        )
    if request.prompt is not None:
        pieces = [request.prompt]
        prompt = Prompt(request.messages, None, [*pieces])
    else:
        mark = f"nenya{secrets.token_hex(8)}"
        masked = mask(request.messages, request.tools, model.words.vocabulary, mark)
        if masked.originals:
            plan = read_here(plan, native=model.words.native)
        rendered = plan.rendered or bool(masked.originals)
        pieces = masked.pieces(_rendered(plan, model, masked)) if rendered or plan.penalised else []
        whole = _one_prompt(model, pieces) if rendered else None
        prompt = Prompt(request.messages, request.tools, whole)
    if plan.penalised:
        prompt = msgspec.structs.replace(prompt, tokens=model.side.tokens(pieces))
    grammar = None if plan.shape is None else model.grammar(plan.shape)
    return llamacpp_wire.parts(plan, prompt, grammar, slots, context_tokens)


def _rendered(plan: Plan, model: Model, masked: Masked) -> str:
    """The conversation up to where the answer begins or, where its beginning is there, goes on.

    A beginning is put behind the rendered text as it is, which is where the model had written it.
    """
    messages, begun = masked.messages, ""
    if plan.request.continue_final:
        messages, begun = split(messages)
    text = model.side.render(llamacpp_wire.conversation(plan, messages, masked.tools))
    if plan.shape is not None or plan.request.continue_final:
        text = _thought_over(text)
    return text + begun


def _thought_over(prompt: str) -> str:
    """Close a thought that the template opens: under a grammar, or in an answer that has begun, is no room for one."""
    open_ = prompt.rstrip().endswith(THOUGHT_START)
    return f"{prompt.rstrip()}\n\n{THOUGHT_END}\n\n" if open_ else prompt


def _one_prompt(model: Model, pieces: list[str]) -> list[str | int]:
    """Return the pieces so that llama.cpp takes them for one prompt: an array of strings would be several."""
    return [*pieces] if len(pieces) == 1 else [*model.side.tokens(pieces[:1]), *pieces[1:]]
