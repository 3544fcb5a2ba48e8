"""`nenya serve` with the GPU engine as a whole: a process, its node, HTTP. Only the kernels are a CPU's.

By hand, from the repository's root after `make exl2-deps`, with CONFIG in nenya.yaml:

    export PYTHONPATH=$PWD/.exl2 NENYA_EXLLAMAV2_LOADER=tests.engines.exl2.harness
    .venv/bin/python -m router.cli serve nenya.yaml
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines import starter

ROOT = Path(__file__).parents[3]
CONFIG = f"""
server: {{listen: "127.0.0.1:0", admin: "127.0.0.1:0", drain_s: 5}}
engines:
  gpu: {{kind: exllamav2, model: {starter.hf_path()}, slots: 4, cache_tokens: 16384,
        costs: {{prefill_token_s: 1.0e-4, step_s: 0.003}}}}
models:
  starter: {{targets: [{{engine: gpu}}]}}
"""
SUM = [{"role": "user", "content": "What is 12 + 7?"}]
STORY = [{"role": "user", "content": "Tell me a story about a bear."}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Server:
    """The process, and where it is."""

    def __init__(self, process, folder):
        self.process = process
        self.said = folder / "said"
        self.log = folder / "log"
        self.host, self.admin = self._addresses()

    def _addresses(self):
        deadline = time.monotonic() + 50
        while time.monotonic() < deadline:
            said = self.said.read_text()
            if "Ctrl-C stops it." in said:
                found = re.findall(r"(?:API|Page) +http://([\d.:]+)", said)
                return found[0], found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def open(self, **body):
        """Ask; the answer's head is there, its body isn't read."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        body = json.dumps({"model": "starter", "temperature": 0, **body})
        connection.request(
            "POST", "/v1/chat/completions", body, {"content-type": "application/json"}
        )
        return connection, connection.getresponse()

    def ask(self, **body):
        connection, response = self.open(**body)
        try:
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def choice(self, **body):
        status, answer = self.ask(**body)
        assert status == 200, answer
        return answer["choices"][0]

    def chunks(self, **body):
        connection, response = self.open(stream=True, **body)
        try:
            lines = [line.strip() for line in response if line.strip()]
        finally:
            connection.close()
        assert response.status == 200
        assert lines[-1] == b"data: [DONE]"
        return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]

    def metric(self, name):
        connection = http.client.HTTPConnection(self.admin, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if re.match(rf"{name}[{{ ]", line)
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    for package in ("torch", "exllamav2", "llguidance", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make exl2-deps, then scripts/check")
    folder = tmp_path_factory.mktemp("serving")
    config = folder / "nenya.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    # Slow steps: an answer that nobody cancels then outlasts the time that a test has for the next one.
    environ = {
        **os.environ,
        "NENYA_EXLLAMAV2_LOADER": "tests.engines.exl2.harness",
        "HARNESS_FAULT": "slow:5",
    }
    with (folder / "said").open("w") as said, (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "router.cli", "serve", str(config)],
            cwd=ROOT, env=environ, stdout=said, stderr=log,
        )  # fmt: skip
    try:
        yield Server(process, folder)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def text_of(chunks):
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
    )


def test_a_whole_answer(server):
    status, answer = server.ask(messages=SUM)
    (choice,) = answer["choices"]
    assert status == 200
    assert "19" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 0


def test_a_stream_says_the_same(server):
    whole = server.choice(messages=STORY)["message"]["content"]
    chunks = server.chunks(messages=STORY, stream_options={"include_usage": True})
    assert len(chunks) > 10
    assert text_of(chunks) == whole
    assert chunks[-1]["usage"]["completion_tokens"] > 10


def test_an_answer_under_a_schema(server):
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    choice = server.choice(messages=STORY, response_format=wanted)
    trip = json.loads(choice["message"]["content"])
    assert trip["city"] in {"Paris", "Rome"}
    assert trip["days"] >= 1


def test_a_tool_that_must_be_called(server):
    choice = server.choice(messages=STORY, tools=[TOOL], tool_choice="required")
    assert choice["finish_reason"] == "tool_calls"
    for call in choice["message"]["tool_calls"]:
        assert call["function"]["name"] == "weather"
        assert set(json.loads(call["function"]["arguments"])) == {"city"}


def test_a_tool_that_it_calls_by_itself(server):
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    chunks = server.chunks(messages=asked, tools=[TOOL])
    calls = [
        call
        for chunk in chunks
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls") or []
    ]
    assert calls[0]["function"]["name"] == "weather"
    arguments = "".join(call["function"].get("arguments") or "" for call in calls)
    assert set(json.loads(arguments)) == {"city"}


def test_what_the_model_cannot_have_is_a_400(server):
    status, answer = server.ask(messages=[{"role": "user", "content": "word " * 9000}])
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    not_held = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    status, answer = server.ask(messages=SUM, response_format=not_held)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_who_leaves_is_cancelled_in_the_engine(server):
    endless = {"logit_bias": {"2": -100, "0": -100}, "max_tokens": 4000}
    connections = [server.open(messages=STORY, stream=True, **endless) for _ in range(4)]
    for _, response in connections:
        assert response.readline().startswith(b"data: ")
    assert server.metric("nenya_target_inflight_requests") == 4
    for connection, response in connections:
        response.close()
        connection.close()
    deadline = time.monotonic() + 20
    while server.metric("nenya_target_inflight_requests") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("nenya_target_inflight_requests") == 0
    # All slots and pages are free again, or these would wait for the 4000 tokens of the others.
    began = [server.open(messages=SUM) for _ in range(4)]
    for connection, response in began:
        assert "19" in json.loads(response.read())["choices"][0]["message"]["content"]
        connection.close()


def test_it_ends_when_it_is_told_to(server):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.log.read_text()
