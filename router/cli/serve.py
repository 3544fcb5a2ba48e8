"""`nenya serve [FILE]`: read the config, set the log up, run the server, and say in one line why it can't.

What can go wrong before the first request has a sentence of its own here: a port in use, an address this machine
doesn't have, a package that an engine needs. Anything else is a bug and may show its traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import errno
import socket
import sys
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engines.base import EngineError
from engines.specs import EngineSpec, ExLlamaV2Spec, ExLlamaV3Spec, LlamaCppSpec
from router import __version__, tracing
from router.cli import FAILED, INTERRUPTED, USAGE
from router.cli.banner import banner
from router.cli.terminal import bold
from router.config import address
from router.config.address import Address
from router.config.reader import OFF, Options, Reading, embedded, examine
from router.config.schema import Config
from router.errors import ConfigError, NenyaError
from router.log import install

if TYPE_CHECKING:
    from router.server.serving import Serving

MMAP_FROM_BYTES = 32 * 1024 * 1024
"""Below it a buffer comes from the heap, where the next one finds its memory; as much as glibc chooses by itself."""
KEPT_BYTES = 32 * 1024 * 1024
"""So much free memory at the heap's end isn't given back: a prompt of 8 MiB, its text, and what is between."""


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped; the server's own exit code."""
    if complaint := _bad_address(arguments):
        return _fail(complaint, USAGE)
    try:
        reading = _reading(arguments)
    except ConfigError as error:
        return _fail(str(error), USAGE)
    for warning in reading.warnings:
        print(f"{arguments.file}: warning: {warning}", file=sys.stderr)
    for name, spec in reading.config.engines.items():
        if lacking := _lacking(spec):
            return _fail(f"the engine `{name}` needs a package that is not installed: {lacking}")
    if reading.config.tracing is not None and not tracing.is_installed():
        return _fail(f"`tracing` {tracing.LACKING}")
    if complaint := _occupied(reading.config):
        return _fail(complaint)
    install(arguments.log_level, arguments.log_format, sys.stderr)
    return _serve(reading.config)


def _bad_address(arguments: argparse.Namespace) -> str | None:
    for option, text in (("--listen", arguments.listen), ("--admin", arguments.admin)):
        is_off = option == "--admin" and text == OFF
        if text is not None and not is_off and address.split(text) is None:
            return f"{option} must be host:port, such as 127.0.0.1:8080"
    return None


def _reading(arguments: argparse.Namespace) -> Reading:
    options = Options(listen=arguments.listen, admin=arguments.admin)
    if arguments.file is None:
        return Reading(embedded(options))
    return examine(arguments.file, options)


def _lacking(spec: EngineSpec) -> str | None:
    """How to install what the engine needs and this Python doesn't have."""
    if isinstance(spec, LlamaCppSpec) and find_spec("xllamacpp") is None:
        return "pip install 'nenya[llamacpp]'"
    if isinstance(spec, ExLlamaV2Spec) and find_spec("exllamav2") is None:
        return "docs/exllamav2.md says how to install it, `nenya doctor` what is missing"
    if isinstance(spec, ExLlamaV3Spec) and find_spec("exllamav3") is None:
        return "pip install exllamav3"
    return None


def _serve(config: Config) -> int:
    from router.server.run import serve_until_stopped

    def on_ready(serving: Serving) -> None:
        print(bold(f"Nenya {__version__} is ready", sys.stdout), end="\n\n")
        print(banner(config, serving.url, serving.admin_url), flush=True)

    keep_freed_memory()
    try:
        return _runner()(serve_until_stopped(config, on_ready=on_ready))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (NenyaError, EngineError) as error:
        return _fail(str(error))


def keep_freed_memory() -> None:
    """Have glibc's allocator keep what long prompts free; other C libraries stay as they are.

    It gives a free buffer back to the system and gets the next one from there, a page fault each 4 KiB: 0.4 of 2 ms
    for a body of 1 MiB. Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, KEPT_BYTES)
        mallopt(-3, MMAP_FROM_BYTES)


def _runner() -> Callable[[Coroutine[None, None, int]], int]:
    """Run on uvloop where it is, for its speed; else on asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    run_with: Callable[[Coroutine[None, None, int]], int] = uvloop.run
    return run_with


def _occupied(config: Config) -> str | None:
    """Why an address can't be listened on, and what to do; asked before anything is loaded."""
    for option, text in (("--listen", config.server.listen), ("--admin", config.server.admin)):
        found = address.split(text) if text is not None else None
        if found is not None:
            try:
                _bind(found)
            except OSError as error:
                return f"can't listen on {text}: {_explained(error, option)}"
    return None


def _bind(found: Address) -> None:
    """Take the address and let it go again. Raises OSError."""
    infos = socket.getaddrinfo(found.host, found.port, type=socket.SOCK_STREAM)
    family, _, _, _, where = infos[0]
    socket.create_server(where[:2], family=family).close()


def _explained(error: OSError, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"the port is in use; choose another with {option}"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"ports below 1024 need permission; choose another with {option}"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    if isinstance(error, socket.gaierror):
        return "the name can't be resolved"
    return error.strerror or "the system does not say why"


def _fail(message: str, code: int = FAILED) -> int:
    print(f"nenya: {message}", file=sys.stderr)
    return code
