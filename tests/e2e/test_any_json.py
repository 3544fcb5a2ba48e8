"""Whatever JSON arrives, the answer is whole or OpenAI's error object, and never a 5xx.

The server, its engine and its upstream run in a thread of their own; the examples come over one connection.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.simulated.engine import SimulatedEngine
from engines.specs import SimulatedSpec
from router.wire.chat import ChatRequest
from router.wire.embeddings import EmbeddingRequest
from router.wire.legacy import CompletionRequest
from router.wire.violations import SUPPORTED
from tests.e2e.serving import SECRET, site
from tests.operations import any_operation
from tests.upstream import Upstream
from tests.wire.refusals import ANSWERS, ASKS, CALL, TOOL, USER, closed, schema

FAST = SimulatedSpec(
    ttft_ms=0, tokens_per_s=1e5, prefill_tokens_per_s=1e9, context_tokens=512, answer_tokens=3, slots=256,
)  # fmt: skip
GOOD = {
    "chat/completions": {"model": "m", "messages": [USER]},
    "completions": {"model": "up", "prompt": "Hi"},
    "embeddings": {"model": "up", "input": "Hi"},
}
NAMES = sorted(
    {
        *ChatRequest.__struct_fields__,
        *CompletionRequest.__struct_fields__,
        *EmbeddingRequest.__struct_fields__,
    }
)
LIKELY = [
    "m", "up", "M", "json", "call_1", True, False, None, 0, 1, 2, 3, -1, 0.5, 2.5, 10**30, [], {}, "", "auto",
    "none", "required", ["a"], [None], {"50256": 5}, {"include_usage": True}, [TOOL], [USER, ASKS, ANSWERS],
    [USER, ASKS], [ANSWERS], [CALL], {"type": "json_object"}, schema()["response_format"],
    schema(strict=True, schema=closed(a={"type": "string"}))["response_format"], TOOL,
    {"type": "function", "function": {"name": "f"}}, ["text"], ["text", "audio"],
    [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    *(value for values in SUPPORTED.values() for value in values[:2]),
]  # fmt: skip

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
any_json = st.recursive(
    scalars | st.sampled_from(LIKELY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*NAMES, "type", "role", "content"]) | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
fields = st.dictionaries(
    st.sampled_from(NAMES) | st.text(max_size=6), st.sampled_from(LIKELY) | any_json, max_size=4
)


NESTED = [
    *NAMES,
    "type",
    "role",
    "content",
    "function",
    "name",
    "text",
    "json_schema",
    "schema",
    "tool_calls",
    "id",
]
pairs = st.tuples(st.sampled_from(NESTED).map(json.dumps), st.sampled_from(LIKELY).map(json.dumps))
any_text = st.recursive(
    (scalars | st.sampled_from(LIKELY)).map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(
            st.tuples(st.sampled_from(NESTED).map(json.dumps), inner) | pairs, max_size=4
        ).map(lambda items: "{" + ",".join(f"{name}:{value}" for name, value in items) + "}")
    ),
    max_leaves=8,
)
"""JSON whose objects may have a name twice, which no dict can."""


class Running:
    """The server in its thread, and a connection to it."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(20)
        self.connection = http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=20)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with Upstream(default=any_operation()) as up:
            config = (
                f"providers: {{p: {{base_url: {up.url!r}, extra_fields: [top_k]}}}}\n"
                "engines: {s: {kind: simulated}}\n"
                "models: {m: {targets: [{engine: s}]}, up: {targets: [{provider: p}]}}\n"
            )
            async with site(config, {"s": SimulatedEngine(FAST)}) as served:
                self._url = served.url
                self._ready.set()
                await self._over.wait()

    def close(self) -> None:
        self.connection.close()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def post(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        self.connection.request("POST", f"/v1/{path}", body, {"Authorization": f"Bearer {SECRET}"})
        answer = self.connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read()


@pytest.fixture(scope="module")
def server():
    running = Running()
    yield running
    running.close()


def assert_an_answer(status: int, kind: str, body: bytes) -> None:
    assert status < 500, body
    if status == 200 and kind.startswith("text/event-stream"):
        assert body.endswith(b"data: [DONE]\n\n")
        return
    assert kind == "application/json"
    value = json.loads(body)
    if status == 200:
        assert value["object"] in {"chat.completion", "text_completion", "list"}
        return
    assert list(value) == ["error"]
    assert list(value["error"]) == ["message", "type", "param", "code"]
    assert isinstance(value["error"]["message"], str)
    assert isinstance(value["error"]["type"], str)


@pytest.mark.timeout(600)
@settings(deadline=None)
@given(
    path=st.sampled_from(sorted(GOOD)),
    changes=fields,
    dropped=st.sampled_from(["", "", "", *NAMES]),
)
def test_any_fields(server, path, changes, dropped):
    body = {**GOOD[path], **changes}
    body.pop(dropped, None)
    assert_an_answer(*server.post(path, json.dumps(body).encode("utf-8", "surrogatepass")))


@pytest.mark.timeout(600)
@settings(deadline=None)
@given(
    path=st.sampled_from(sorted(GOOD)),
    value=any_json | st.text(max_size=20),
    spoil=st.binary(max_size=3),
)
def test_any_json_and_nearly_json(server, path, value, spoil):
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + spoil
    assert_an_answer(*server.post(path, body))


@settings(deadline=None, max_examples=50)
@given(
    path=st.sampled_from(sorted(GOOD)),
    at=st.integers(0, 200),
    bytes_=st.binary(min_size=1, max_size=4),
)
def test_a_good_body_with_some_bytes_changed(server, path, at, bytes_):
    body = json.dumps(GOOD[path]).encode()
    at %= len(body)
    assert_an_answer(*server.post(path, body[:at] + bytes_ + body[at + 1 :]))


@pytest.mark.timeout(600)
@settings(deadline=None)
@given(
    path=st.sampled_from(sorted(GOOD)),
    more=st.lists(st.tuples(st.sampled_from(NAMES).map(json.dumps), any_text), max_size=3),
)
def test_names_that_stand_there_twice(server, path, more):
    fields_ = [json.dumps(GOOD[path])[1:-1], *(f"{name}:{value}" for name, value in more)]
    assert_an_answer(
        *server.post(path, ("{" + ",".join(fields_) + "}").encode("utf-8", "surrogatepass"))
    )
