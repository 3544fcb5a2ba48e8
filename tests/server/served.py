"""A process that serves one simulated engine, for tests of signals: prints its addresses when it is ready."""

import asyncio
import logging
import sys

from engines.specs import LlamaCppSpec, SimulatedSpec
from router.app import Router
from router.config.schema import Config, Key, Model, Server, Target
from router.server.run import serve_until_stopped
from router.server.serving import Serving


def ready(serving: Serving) -> None:
    sys.stdout.write(f"{serving.url} {serving.admin_url}\n")
    sys.stdout.flush()


async def load_for_ever(_router: Router) -> None:
    await asyncio.Event().wait()


def main() -> int:
    drain_s, kind = float(sys.argv[1]), sys.argv[2]
    engine = (
        SimulatedSpec(ttft_ms=1, tokens_per_s=40)
        if kind != "missing"
        else LlamaCppSpec(model="/no/such/file")
    )
    config = Config(
        models={"m": Model(targets=[Target(engine="e")])},
        engines={"e": engine},
        keys=[Key(id="me", secret="sk-canary-0123456789")],
        server=Server(listen="127.0.0.1:0", admin="127.0.0.1:0", drain_s=drain_s),
    )
    if kind == "loading":
        Router.wait_ready = load_for_ever
    logging.basicConfig(level=logging.INFO)
    return asyncio.run(serve_until_stopped(config, on_ready=ready))


if __name__ == "__main__":
    sys.exit(main())
