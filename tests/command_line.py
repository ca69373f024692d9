"""`virtpilot` as its `main` runs it, in this process: for what a command says, where how it starts is not the point."""

from __future__ import annotations

import contextlib
import io
import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest

from virtpilot.pipeline import cli


def said(*words: str | Path, within: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Return the exit status of `virtpilot WORDS` in a folder, and what it wrote to standard output and error."""
    out, err, line = io.StringIO(), io.StringIO(), ["virtpilot", *map(str, words)]
    with (
        contextlib.chdir(within or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch("sys.argv", line),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    return subprocess.CompletedProcess(line, int(end.value.code or 0), out.getvalue(), err.getvalue())
