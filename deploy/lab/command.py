"""Running the system's tools: argument lists, deadlines, and errors that say what was tried."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from deploy.lab.errors import LabError

# messages are parsed and shown: one language
ENVIRONMENT = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def output(argv: Sequence[str], *, timeout_s: float = 30.0, stdin: str | None = None) -> str:
    """Run a tool and return its standard output; raises LabError with what it said."""
    try:
        done = subprocess.run(
            list(argv), input=stdin, capture_output=True, text=True, timeout=timeout_s, env=ENVIRONMENT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)}: no answer within {timeout_s:g} s") from error
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed") from error
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout
