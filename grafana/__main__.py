"""`python -m virtpilot.grafana FOLDER` writes the dashboards' JSON there."""

from __future__ import annotations

import sys
from pathlib import Path

from virtpilot.grafana.boards import BOARDS


def main(arguments: list[str]) -> int:
    """Write one file per dashboard; 2 where it was not told the folder or has no builder library."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m virtpilot.grafana FOLDER\n")
        return 2
    try:
        from virtpilot.grafana.build import render
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error.name} is missing: install virtpilot with the extra `dashboards`\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, board in BOARDS.items():
        (folder / f"{name}.json").write_text(render(board), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
