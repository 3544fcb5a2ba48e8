"""Which database a command means, and what goes with it: `--config FILE` or `--database PATH`."""

from __future__ import annotations

import argparse
import os

from msgspec import Struct

from router.config.reader import Options, examine
from router.config.schema import Config
from router.errors import ConfigError

PEPPER_VARIABLE = "NENYA_PEPPER"
_LEAST_PEPPER_CHARS = 16
"""As in a config."""


class AskedWronglyError(Exception):
    """The command can't do what it was asked; the text says why."""


class Ledger(Struct, frozen=True):
    """A database, its pepper if it is known, and the config that names it, if one does."""

    path: str
    pepper: bytes | None
    config: Config | None

    def __repr__(self) -> str:
        return f"Ledger(path={self.path!r})"

    def needed_pepper(self) -> bytes:
        """The pepper. Raises AskedWronglyError where nobody said it."""
        if self.pepper is None or len(self.pepper) < _LEAST_PEPPER_CHARS:
            message = (
                f"the pepper must be in the environment variable {PEPPER_VARIABLE}, as the server "
                f"has it: at least {_LEAST_PEPPER_CHARS} characters"
            )
            raise AskedWronglyError(message)
        return self.pepper


def ledger(arguments: argparse.Namespace) -> Ledger:
    """What the arguments name. Raises AskedWronglyError."""
    if arguments.database is not None:
        pepper = os.environ.get(PEPPER_VARIABLE)
        return Ledger(arguments.database, None if pepper is None else pepper.encode(), None)
    try:
        config = examine(arguments.config, Options(files=False)).config
    except ConfigError as error:
        raise AskedWronglyError(str(error)) from error
    kept = config.accounts
    if kept.database is None:
        raise AskedWronglyError(f"{arguments.config} has no `accounts: {{database: …}}`")
    return Ledger(kept.database, (kept.pepper or "").encode(), config)
