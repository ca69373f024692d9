"""What commands print on standard output for programs; logs and words for people go elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import msgspec


def print_json(document: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def quiet_logs() -> None:
    """Let only errors be logged: what a command that answers and ends has to say is its answer."""
    from virtpilot.pipeline.process import LogOptions, set_up_logs

    set_up_logs(LogOptions(level="error"))
