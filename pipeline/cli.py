"""The command line. Exit status: 0 done, 1 the thing asked about failed, 2 the input is wrong."""

from __future__ import annotations

import sys

from virtpilot.pipeline import starting


def main() -> None:
    """Run a command and turn what went wrong into a message and an exit status."""
    with starting.soon():
        starting.import_spared("msgspec")
        from virtpilot.pipeline.status import status_of

        sys.exit(status_of(_command))


def _command() -> None:
    # What is begun often, or stays, waits for no library that reads command lines, if its words are plain.
    from virtpilot.pipeline import plain

    if not plain.done(sys.argv[1:]):
        starting.import_spared("structlog")
        from virtpilot.pipeline.commands import app

        starting.over()
        app()
