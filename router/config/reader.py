"""The one reader: YAML in, `Config` out, or one ConfigError that holds every problem with its line.

Three steps: `document` composes nodes that know their lines, `walk` turns them into Structs by the types of
`schema`, and `rules` checks what one part means for another. All three go on after a problem, so that one run
tells everything. In the end msgspec has the last word: what it would refuse is a problem too.

    config = read("nenya.yaml")                       # to start with; looks for model files too
    reading = examine("nenya.yaml", Options())        # the same and the warnings
    config = parse("models: ...", "a test", {})       # no file, no look at the disk

Nothing of a message comes out of the environment or out of a field that may hold a secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path as File

import msgspec
from msgspec import Struct, inspect

from engines.specs import LlamaCppSpec
from router.config import document, rules
from router.config.report import Report
from router.config.schema import Config, Model, Server, Target
from router.config.walk import TooManyValues, Walk
from router.errors import ConfigError, Problem

_EMBEDDED = "the built-in config"
OFF = "off"
"""As an override of ``admin``: no admin port."""


class Options(Struct, frozen=True):
    """How a config is read. ``listen`` and ``admin`` take the place of what the file says, before any rule."""

    files: bool = True
    """Whether models and certificates that the config names must exist."""
    listen: str | None = None
    admin: str | None = None


class Reading(Struct, frozen=True):
    """A config that can be used, and what in it is hardly meant so."""

    config: Config
    warnings: tuple[Problem, ...] = ()


def read(path: str | os.PathLike[str]) -> Config:
    """The config in the file at ``path``, with secrets from the environment. Raises ConfigError."""
    return examine(path, Options()).config


def parse(text: str, source: str = "config", environ: Mapping[str, str] | None = None) -> Config:
    """The config in ``text``; messages call it ``source``, ``environ`` None is the process's own.

    Doesn't look at the disk. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    return _examine_text(text, source, environ, Options(files=False)).config


def examine(
    path: str | os.PathLike[str], options: Options, environ: Mapping[str, str] | None = None
) -> Reading:
    """The config at ``path`` and its warnings; ``environ`` None is the process's own. Raises ConfigError."""
    text = _text_of(File(path))
    return _examine_text(text, str(path), os.environ if environ is None else environ, options)


def embedded(options: Options | None = None) -> Config:
    """What runs where no file is given: the starter model on this machine, for this machine alone.

    Raises ConfigError where the options ask for addresses that it can't have.
    """
    starter = rules.STARTER
    config = Config(
        engines={
            starter: LlamaCppSpec(model=starter, threads=1)
        },  # so small that a second one only waits
        models={
            starter: Model(targets=[Target(engine=starter)], aliases=["nenya-starter"]),
        },
        server=Server(listen="127.0.0.1:8080", admin="127.0.0.1:9090"),
    )
    report = Report()
    report.place((), 1)
    report.place(("engines", starter), 1)
    config = _overridden(config, options or Options())
    rules.check(config, report)
    if report.problems:
        problems = [msgspec.structs.replace(problem, line=None) for problem in report.problems]
        raise ConfigError(_EMBEDDED, problems)
    return config


@cache
def _shape() -> inspect.Type:
    return inspect.type_info(Config)


def _text_of(path: File) -> str:
    try:
        with path.open("rb") as file:
            # UTF-8 takes up to four bytes a character; the bound in characters is the document's.
            body = file.read(4 * document.MOST_CHARS + 1)
    except FileNotFoundError as error:
        raise ConfigError(str(path), [Problem("there is no such file")]) from error
    except IsADirectoryError as error:
        raise ConfigError(str(path), [Problem("this is a folder, not a file")]) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a file's name"
        raise ConfigError(str(path), [Problem(f"can't be read: {why}")]) from error
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise ConfigError(str(path), [Problem("is not UTF-8 text", line=line)]) from error


def _examine_text(text: str, source: str, environ: Mapping[str, str], options: Options) -> Reading:
    root = document.compose(text)
    if root is None:
        raise ConfigError(source, [Problem("the file is empty; `models:` is missing")])
    if isinstance(root, Problem):
        raise ConfigError(source, [root])
    report = Report()
    report.place((), document.line_of(root))
    try:
        config = Walk(report, environ).value(root, _shape(), ())
    except TooManyValues as error:
        problem = Problem("too many values; aliases (`*name`) multiply them")
        raise ConfigError(source, [problem]) from error
    if isinstance(config, Config):
        config = _overridden(config, options)
        rules.check(config, report)
        if options.files:
            rules.missing_files(config, report)
    if report.problems:
        raise ConfigError(source, report.sorted_problems())
    return Reading(_last_word(config, source), tuple(report.warnings))


def _overridden(config: Config, options: Options) -> Config:
    server = config.server
    if options.listen is not None:
        server = msgspec.structs.replace(server, listen=options.listen)
    if options.admin is not None:
        admin = None if options.admin == OFF else options.admin
        server = msgspec.structs.replace(server, admin=admin)
    return msgspec.structs.replace(config, server=server)


def _last_word(config: Config, source: str) -> Config:
    """What msgspec makes of ``config``, checked by the same annotations. Raises ConfigError."""
    try:
        return msgspec.convert(msgspec.to_builtins(config), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(source, [Problem(str(error))]) from None
