"""What is wrong with a config, collected while it is read: every problem with its line and its path.

A path is the keys and indexes that lead to a value. The report also knows the line of everything that stands in
the file, so that a rule which looks at finished Structs can still say where.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from router.errors import Problem

Path = tuple[str | int, ...]

_MOST_PROBLEMS = 100
"""Nobody reads more at once; a broken file could make tens of thousands."""
_SHOWN_CHARS = 60
"""Of a name or value that a message quotes."""


def quoted(text: str) -> str:
    """``text`` in backticks: cut to length, and nothing in it can move a terminal's cursor."""
    cut = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return f"`{shown}`"


def listed(names: Iterable[str]) -> str:
    """Names in backticks with commas."""
    return ", ".join(quoted(name) for name in names)


def nearest(name: str, options: Iterable[str]) -> str:
    """``; did you mean `x`?``, or nothing where no option is near."""
    by_fold = {option.casefold(): option for option in options}
    near = difflib.get_close_matches(name[:_SHOWN_CHARS].casefold(), by_fold, n=1)
    return f"; did you mean {quoted(by_fold[near[0]])}?" if near else ""


def spelled(path: Path) -> str:
    """``models.starter.targets[0]``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = quoted(step)[1:-1]
            text += f".{name}" if text else name
    return text


class Report:
    """Problems and warnings so far, and where things stand."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._lines: dict[Path, int] = {}
        self._names: dict[Path, list[str]] = {}
        self._broken: set[Path] = set()
        self._written: dict[Path, str] = {}

    def place(self, path: Path, line: int) -> None:
        """What ``path`` leads to stands on ``line``."""
        if path and path not in self._lines and isinstance(path[-1], str):
            self._names.setdefault(path[:-1], []).append(path[-1])
        self._lines[path] = line

    def fill(self, path: Path, written: str) -> None:
        """The text at ``path`` was filled from the environment; the file says ``written``."""
        self._written[path] = written

    def shown(self, path: Path, text: str) -> str:
        """``text``, which stands at ``path``, in backticks, but never what came from the environment."""
        return quoted(self._written.get(path, text))

    def line(self, path: Path) -> int | None:
        """The line of ``path``, or of the nearest thing around it that stands in the file."""
        for length in range(len(path), -1, -1):
            if path[:length] in self._lines:
                return self._lines[path[:length]]
        return None

    def names(self, *path: str) -> list[str]:
        """The keys that stand in the file under ``path``, broken or not, in order."""
        return self._names.get(path, [])

    def problem(self, path: Path, message: str, line: int | None = None) -> None:
        """Something is wrong at ``path``."""
        self._broken.update(path[:length] for length in range(len(path) + 1))
        at = line if line is not None else self.line(path)
        self.problems.append(Problem(message, spelled(path), at))

    def warn(self, path: Path, message: str) -> None:
        """Something at ``path`` works and is hardly meant so."""
        self.warnings.append(Problem(message, spelled(path), self.line(path)))

    def is_broken(self, path: Path) -> bool:
        """A problem was found at ``path`` or inside it."""
        return path in self._broken

    def sorted_problems(self) -> list[Problem]:
        """Problems in the order of the file, the first hundred."""
        ordered = sorted(self.problems, key=lambda problem: problem.line or 0)
        more = len(ordered) - _MOST_PROBLEMS
        if more > 0:
            return [*ordered[:_MOST_PROBLEMS], Problem(f"and {more} more problems")]
        return ordered
