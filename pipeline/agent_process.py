"""`python -m virtpilot.pipeline.agent_process FILE`: what `virtpilot agent` becomes once its arguments are read.

There is an agent on each host, and it stays: so the command line's libraries do not stay with it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Final, NoReturn

from virtpilot.pipeline.status import status_of

# glibc's mallopt(3): one arena, for threads of their own make libvirt's calls and each one's arena would keep what was
# freed in it; and what is large (a tick's lines) goes back to the system at once.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE_BYTES: Final = 128 * 1024


def become(config: Path) -> NoReturn:
    """Turn this process into the agent, under the same process id."""
    os.execv(sys.executable, [sys.executable, "-m", "virtpilot.pipeline.agent_process", str(config)])  # noqa: S606 # a list of arguments


def main() -> None:
    """Run the agent until it is told to stop."""
    # structlog takes these in: rich for coloured tracebacks (the agent has plain ones), and asyncio (it has none).
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # the import system's sign for "not there"
    sys.modules.setdefault("asyncio", ModuleType("asyncio"))
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
