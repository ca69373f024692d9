"""The manual's generated pages: `python -m virtpilot.pipeline.reference FOLDER` writes them."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from virtpilot.fields import FIELDS
from virtpilot.pipeline.config import PROCESSES
from virtpilot.pipeline.settings_page import reference

_CONFIGURATION = """# Configuration

Each process reads one TOML file. `virtpilot config sample PROCESS` prints one with every option, `virtpilot config
check FILE` tells every mistake at once, each as `file:line:col: message`, without touching the network. An option
whose name ends in `_file` names a file; secrets are in files alone, readable by their owner only, and never printed.
"""

_FIELDS = """# Measurements and fields

Every message on `virtpilot/<cluster>/metrics/<host>` is InfluxDB line protocol with these measurements and fields. In
VictoriaMetrics a series is named `<measurement>_<field>`, e.g. `vm_cpu_steal_ratio`. A field that a host, a driver or
a guest does not tell is absent, never 0. Rules use the field's name alone (`cpu_steal_ratio`); the rule of a guest
names its host's fields with `host.`.
"""


def configuration() -> str:
    """Return the page of every option of every process."""
    tables = [f"## virtpilot {name}\n\n{reference(type_)}" for name, type_ in PROCESSES.items()]
    return "\n".join([_CONFIGURATION, *tables])


def fields() -> str:
    """Return the page of every field, measurement by measurement."""
    parts = [_FIELDS]
    for measurement, group in groupby(FIELDS.values(), key=lambda field: field.measurement):
        rows = [f"| `{one.name}` | {one.type} | {one.meaning} | {one.source} |" for one in group]
        parts.append(
            "\n".join([f"## {measurement}\n", "| field | type | meaning | source |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


PAGES = {"configuration.md": configuration, "fields.md": fields}


def main() -> None:
    """Write the pages into the folder named on the command line."""
    folder = Path(sys.argv[1])
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
