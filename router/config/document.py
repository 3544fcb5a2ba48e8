"""From YAML text to a tree of nodes that know their lines; nothing is interpreted yet.

Plain scalars stay text here: whether ``on``, ``1:30`` or ``0123`` is a string is for the type that is wanted to say,
which is why YAML 1.1's guesses (a boolean, 90, 83) never happen. Nodes are composed, never constructed, so no tag
can make an object. A message never shows a line of the file, since a secret may stand there.

Source: YAML 1.2.2, section 10.3 (core schema); PyYAML's `compose` and its marks.
"""

from __future__ import annotations

import yaml

from router.errors import Problem

MOST_CHARS = 256 * 1024
"""Thousands of models fit; PyYAML reads about 100 kB a second, so more would only make a start slow."""

TEXT_TAG = "tag:yaml.org,2002:str"
_OWN_TAGS = {TEXT_TAG, "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}

_WORDS = (
    ("'\\t' that cannot start any token", "a tab; YAML is indented with spaces"),
    ("that cannot start any token", "a value that starts with a special character needs quotes"),
    ("undefined alias", "`*` starts an alias, and no anchor has its name; a value needs quotes"),
    ("duplicate anchor", "an anchor is defined twice"),
    ("mapping values are not allowed here", "`: ` inside a value; put the value in quotes"),
    ("could not find expected ':'", "a key without its `:`"),
    ("expected ',' or ']'", "a `[` without its `]`, or a missing `,`"),
    ("expected ',' or '}'", "a `{` without its `}`, or a missing `,`"),
    ("but found another document", "the file has more than one document (`---`)"),
    ("unexpected end of stream", "a quote that never closes"),
    ("expected <block end>", "the indentation does not fit the lines above"),
    ("unknown escape character", "an unknown `\\` escape in a double-quoted string"),
)
"""What PyYAML says, and what it means to somebody who wrote a config."""

_OPENED = ("could not find expected ':'", "expected ',' or", "unexpected end of stream")
"""Said where the reader gave up; what is wrong began where the key, bracket or quote stands."""


def compose(text: str) -> yaml.Node | Problem | None:
    """The root of the document in ``text``, None if there is nothing in it, or the problem that stopped it."""
    if len(text) > MOST_CHARS:
        return Problem(f"the file is larger than {MOST_CHARS // 1024} KiB")
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        return Problem(f"not valid YAML: {_plain(error)}", line=_line_of_error(error))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Problem("not valid YAML: an unprintable character", line=line)
    except RecursionError:
        return Problem("not valid YAML: nested too deeply")
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError):
        return Problem("not valid YAML")


def line_of(node: yaml.Node) -> int:
    """Where ``node`` starts, counted from 1."""
    line: int = node.start_mark.line
    return line + 1


def is_plain(node: yaml.ScalarNode) -> bool:
    """Written without quotes, so that ``null``, ``true`` and numbers mean what they say."""
    return node.style is None and node.tag == TEXT_TAG


def foreign_tag(node: yaml.Node) -> bool:
    """``node`` has a tag such as ``!!python/object`` or ``!secret``."""
    return node.tag not in _OWN_TAGS


def _line_of_error(error: yaml.MarkedYAMLError) -> int | None:
    marks = [error.problem_mark, error.context_mark]
    if any(word in (error.problem or "") for word in _OPENED):
        marks.reverse()
    mark = marks[0] or marks[1]
    return mark.line + 1 if mark is not None else None


def _plain(error: yaml.MarkedYAMLError) -> str:
    said = error.problem or error.context or ""
    for word, meaning in _WORDS:
        if word in said:
            return meaning
    return "the line can't be read"
