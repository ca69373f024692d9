"""All dashboards, by the name of their file."""

from __future__ import annotations

from typing import Final

from virtpilot.grafana import fleet, guest, pilot
from virtpilot.grafana.view import Board

BOARDS: Final[dict[str, Board]] = {"fleet": fleet.BOARD, "guest": guest.BOARD, "pilot": pilot.BOARD}
