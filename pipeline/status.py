"""What the end of a command tells its caller: 0 done, 1 the thing asked about failed, 2 the input is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from virtpilot.errors import InputError, VirtpilotError


def status_of(work: Callable[[], object]) -> int:
    """Do the work, and turn what went wrong into a message on standard error and an exit status."""
    try:
        work()
        sys.stdout.flush()
    except InputError as error:
        return _told(str(error), 2)
    except VirtpilotError as error:
        return _told(f"virtpilot: {error}", 1)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing left to say, and no traceback at exit.
        sys.stderr.close()
        return 1
    return 0


def _told(message: str, status: int) -> int:
    sys.stderr.write(f"{message}\n")
    return status
