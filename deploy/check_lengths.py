"""Fails where a Python file is over 400 lines or a function over 40; run by `make check`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE = 400
MAX_FUNCTION = 40


def too_long(path: Path) -> Iterator[str]:
    """Yield a line for whatever is too long in one file."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > MAX_FILE:
        yield f"{path}:1: {lines} lines, {MAX_FILE} at most"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, {MAX_FUNCTION} at most"


def main() -> int:
    """Check what git tracks and what it would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        check=True,
        capture_output=True,
        text=True,
    )
    paths = [Path(name) for name in listed.stdout.splitlines()]
    found = [line for path in paths if path.is_file() and not path.is_symlink() for line in too_long(path)]
    print("\n".join(found) or f"lengths: {len(paths)} files fine")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
