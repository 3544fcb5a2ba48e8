"""LangChain's own integration tests of a chat model, through a router to the starter model.

Skipped where its packages aren't (they bring 200 MB): pip install langchain-openai langchain-tests. What needs a model
that knows more than the starter does is expected to fail.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from engines.starter import gguf_path
from tests.e2e.serving import SECRET

pytest.importorskip("langchain_tests", reason="langchain-tests isn't installed")
pytest.importorskip("langchain_openai", reason="langchain-openai isn't installed")
pytest.importorskip("xllamacpp")
if not gguf_path().exists():
    pytest.skip("the starter model isn't built", allow_module_level=True)

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.asyncio(loop_scope="module"),  # its client outlives a test
]
knows_too_little = pytest.mark.xfail(reason="the starter model is too small for it", strict=False)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def router_url(tmp_path_factory):
    """A router in a process of its own: the tests block."""
    port = free_port()
    config = tmp_path_factory.mktemp("router") / "nenya.yaml"
    config.write_text(
        f'server: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:0"}}\n'
        f"keys: [{{id: dev, secret: {SECRET}}}]\n"
        "engines: {s: {kind: llamacpp, model: starter, threads: 1}}\n"
        "models: {m: {targets: [{engine: s}]}}\n"
    )
    command = [sys.executable, "-m", "router.cli", "serve", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_for(f"http://127.0.0.1:{port}/v1")
        yield f"http://127.0.0.1:{port}/v1"
        server.terminate()


def wait_for(url):
    """Ask until there is an answer: the socket is open before the engine is up."""
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":1}'
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    until = time.monotonic() + 20
    while True:
        try:
            request = urllib.request.Request(f"{url}/chat/completions", body, headers)
            urllib.request.urlopen(request, timeout=5).close()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            return


class TestStarter(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _router(self, router_url):
        type(self).url = router_url

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "m",
            "base_url": self.url,
            "api_key": SECRET,
            "max_retries": 0,
            "temperature": 0,
            "max_completion_tokens": 400,
            "stream_usage": True,
        }

    @property
    def supports_image_inputs(self):
        return False

    @property
    def supports_json_mode(self):
        return True

    @knows_too_little
    def test_tool_calling(self, model):
        super().test_tool_calling(model)

    @knows_too_little
    async def test_tool_calling_async(self, model):
        await super().test_tool_calling_async(model)

    @knows_too_little
    def test_json_mode(self, model):
        super().test_json_mode(model)

    @knows_too_little
    def test_unicode_tool_call_integration(self, model):
        super().test_unicode_tool_call_integration(model)
