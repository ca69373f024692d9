"""`python -m virtpilot.pipeline.agent_process FILE`: what `virtpilot agent` becomes once its arguments are read.

There is an agent on each host, and it stays: so the command line's libraries do not stay with it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from virtpilot.pipeline.late import import_late
from virtpilot.pipeline.status import status_of

# glibc's mallopt(3): one arena, for threads of their own make libvirt's calls and each one's arena would keep what was
# freed in it; and what is large (a tick's lines) goes back to the system at once.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE_BYTES: Final = 128 * 1024
# What libraries take in for work that an agent seldom or never has: coroutines, TLS, pages of errors, downloads.
_LATE: Final = (
    "ast", "asyncio", "bz2", "calendar", "difflib", "gzip", "html", "ipaddress", "lzma", "mimetypes", "shutil",
)  # fmt: skip


def become(config: Path) -> NoReturn:
    """Turn this process into the agent, under the same process id."""
    # Without the columns of each instruction, which serve to underline in tracebacks.
    options = ["-X", "no_debug_ranges", "-m", "virtpilot.pipeline.agent_process"]
    os.execv(sys.executable, [sys.executable, *options, str(config)])  # noqa: S606 # a list of arguments


def main() -> None:
    """Run the agent until it is told to stop."""
    # What libraries do as well without: structlog colours no tracebacks then, msgspec takes the standard library's.
    for name in ("rich", "typing_extensions"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type] # the import system's sign for "not there"
    import_late(_LATE)
    _keep_little()
    from virtpilot.pipeline import agent_service

    sys.exit(status_of(lambda: agent_service.agent(Path(sys.argv[1]))))


def _keep_little() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


if __name__ == "__main__":
    main()
