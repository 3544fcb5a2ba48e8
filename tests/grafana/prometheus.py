"""A real Prometheus that scrapes one router with our recording rules and alerts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

FOLDER = Path(__file__).parents[2] / "grafana"
EVERY_S = 0.4
"""Between scrapes."""

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed"
)
CONFIG = """
global: {{scrape_interval: 400ms, scrape_timeout: 400ms, evaluation_interval: 1s}}
rule_files: [{folder}/prometheus/rules.yml, {folder}/prometheus/alerts.yml]
scrape_configs:
  - job_name: nenya
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def get(self, path: str, **parameters: str) -> Any:
        """An answer's data."""
        async with self._session.get(f"{self._url}/api/v1/{path}", params=parameters) as answer:
            told = await answer.json()
        assert told["status"] == "success", told
        return told["data"]

    async def query(self, expr: str) -> list[float]:
        """The values of an instant query."""
        data = await self.get("query", query=expr)
        assert data["resultType"] == "vector"
        return [float(one["value"][1]) for one in data["result"]]

    async def scraped(self, times: int = 1) -> None:
        """Return when the router has been scraped so many times more."""
        await asyncio.sleep(times * EVERY_S + 0.1)


@contextlib.asynccontextmanager
async def prometheus(admin_url: str, folder: Path) -> AsyncIterator[Prometheus]:
    """One that scrapes ``admin_url`` and keeps its data in ``folder``."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(folder=FOLDER, target=urlsplit(admin_url).netloc))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session:
            found = Prometheus(f"http://127.0.0.1:{port}", session)
            async with asyncio.timeout(15):
                while True:
                    with contextlib.suppress(aiohttp.ClientError, AssertionError):
                        if 1.0 in await found.query('up{job="nenya"}'):
                            break
                    assert process.returncode is None, (folder / "log").read_text()
                    await asyncio.sleep(0.05)
            yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def boards() -> dict[str, Any]:
    """The dashboards as they are committed, by the names of their files."""
    return {
        path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "json").glob("*.json"))
    }


def panels(board: Any) -> list[Any]:
    """A dashboard's, without the headings."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]
