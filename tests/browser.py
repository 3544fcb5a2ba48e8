"""A headless Chromium, driven over its DevTools protocol: what a test of the page needs of a browser, and no more.

    with chromium() as endpoint:
        async with open_page(endpoint, url) as page:
            await page.until("document.title === 'Nenya'")
            await page.press("Tab")

Every page has a profile of its own and notes what it asked the network for, and what its console and its security
policy complained about.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

FOUND = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_chromium = pytest.mark.skipif(FOUND is None, reason="no Chromium on this machine")
START_S = 40.0
"""A cold start on a busy machine."""
WAIT_S = 20.0
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-default-browser-check", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
_KEYS = {
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    "Space": ("Space", 32, " "),
    "Escape": ("Escape", 27, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
}


@contextlib.contextmanager
def chromium() -> Iterator[str]:
    """A browser's endpoint; the browser ends with the block."""
    assert FOUND is not None, "tests that need it are skipped"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [FOUND, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield _endpoint(Path(profile) / "DevToolsActivePort", process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _endpoint(file: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        lines = file.read_text().split() if file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        if process.poll() is not None:
            pytest.fail(f"Chromium ended with {process.returncode}")
        time.sleep(0.02)
    pytest.fail("Chromium didn't start")


@contextlib.asynccontextmanager
async def open_page(
    endpoint: str, url: str, *, size: tuple[int, int] = (1280, 800), dark: bool = False
) -> AsyncIterator[Page]:
    """A page of its own profile at ``url``."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(endpoint, max_msg_size=64 * 1024 * 1024) as socket,
    ):
        page = Page(socket)
        reader = asyncio.ensure_future(page.read())
        try:
            await page.begin(url, size, dark=dark)
            yield page
        finally:
            await page.end()
            reader.cancel()
            await asyncio.wait([reader])


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        """Of the console, of scripts that threw, of the security policy."""
        self.requests: list[str] = []
        """URLs that the network was asked for."""
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict]] = {}
        self._session: str | None = None
        self._context = ""
        self._loaded = asyncio.Event()

    # Looking

    async def js(self, expression: str):
        """The value of ``expression``, awaited where it is a promise."""
        result = await self._ask(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, expression: str, within_s: float = WAIT_S):
        """The value of ``expression`` once it is true."""
        deadline = time.monotonic() + within_s
        while not (value := await self.js(expression)):
            assert time.monotonic() < deadline, f"never: {expression}\n{await self.text()}"
            await asyncio.sleep(0.02)
        return value

    async def text(self, selector: str = "body") -> str:
        """What somebody reads there."""
        return await self.js(f"document.querySelector({selector!r})?.innerText ?? ''")

    async def focused(self) -> str:
        """The id or the words of what has the focus."""
        return await self.js("document.activeElement.id || document.activeElement.innerText.trim()")

    async def screenshot(self, path: Path | str, *, whole: bool = False) -> None:
        shot = await self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    # Acting

    async def press(self, key: str, *, shift: bool = False) -> None:
        """A key, as a keyboard sends it."""
        code, number, text = _KEYS[key]
        fields = {
            "key": " " if key == "Space" else key, "code": code, "windowsVirtualKeyCode": number,
            "modifiers": 8 if shift else 0,
        }  # fmt: skip
        await self._ask("Input.dispatchKeyEvent", type="keyDown", text=text, **fields)
        await self._ask("Input.dispatchKeyEvent", type="keyUp", **fields)

    async def write(self, text: str) -> None:
        """Type ``text`` where the focus is."""
        await self._ask("Input.insertText", text=text)

    async def go(self, url: str) -> None:
        """Open ``url`` and wait until it is loaded."""
        await self._loading("Page.navigate", url=url)

    async def reload(self) -> None:
        await self._loading("Page.reload")

    async def _loading(self, method: str, **params) -> None:
        self._loaded.clear()
        await self._ask(method, **params)
        await asyncio.wait_for(self._loaded.wait(), WAIT_S)

    async def accessible(self) -> list[dict]:
        """The nodes of the accessibility tree that aren't ignored."""
        await self._ask("Accessibility.enable")
        nodes = (await self._ask("Accessibility.getFullAXTree"))["nodes"]
        return [node for node in nodes if not node["ignored"]]

    async def resize(self, width: int, height: int) -> None:
        await self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def scheme(self, *, dark: bool, reduced: bool = False) -> None:
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced else "no-preference"},
        ]
        await self._ask("Emulation.setEmulatedMedia", features=features)

    # The protocol

    async def begin(self, url: str, size: tuple[int, int], *, dark: bool) -> None:
        self._context = (await self._ask("Target.createBrowserContext"))["browserContextId"]
        target = await self._ask(
            "Target.createTarget", url="about:blank", browserContextId=self._context
        )
        attached = await self._ask(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            await self._ask(f"{domain}.enable")
        await self.resize(*size)
        await self.scheme(dark=dark)
        await self.go(url)

    async def end(self) -> None:
        self._session = None
        await self._ask("Target.disposeBrowserContext", browserContextId=self._context)

    async def read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if not answer.done():
                    answer.set_result(said)
            else:
                self._hear(said["method"], said["params"])

    async def _ask(self, method: str, **params) -> dict:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        said = await asyncio.wait_for(answer, WAIT_S)
        assert "error" not in said, (method, said["error"])
        return said["result"]

    def _hear(self, method: str, params: dict) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"console.{params['type']}: {params['args']}")
        elif method == "Log.entryAdded":
            entry = params["entry"]
            self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
        elif method == "Audits.issueAdded":
            self.complaints.append(str(params["issue"]))
