"""Refuse files over 600 lines and functions over 60: past that, it is two things.

python scripts/size_gate.py FOLDER ...
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60


def offences(path: Path) -> Iterator[str]:
    """What is too long in one file."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{path}: {lines} lines, at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > MAX_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {size} lines, at most {MAX_FUNCTION_LINES}"


def main(folders: list[str]) -> int:
    """Print every offence; 1 if there was one."""
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    found = [offence for path in files for offence in offences(path)]
    print("\n".join(found) if found else f"size gate: {len(files)} files pass")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
