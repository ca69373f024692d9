"""The manual's generated pages: `python -m virtpilot.pipeline.reference FOLDER` writes them."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import msgspec

from virtpilot.events import MEANINGS
from virtpilot.fields import FIELDS
from virtpilot.pipeline.config import CONFIGS
from virtpilot.pipeline.settings_page import reference
from virtpilot.rules.language.schema import rule_schema

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


_EVENTS = """# Events

What happens on a host is told on `virtpilot/<cluster>/events/<host>` (QoS 1) as it happens, one JSON object a message:

```json
{"id": "ev-6f0c0a4be2fc1d07", "cause": "", "host": "host-1", "guest": "6e0b0d3c-…", "name": "web-1",
 "at_ns": 1764115277118000000, "kind": "knob_changed", "detail": "cputune", "by": "other",
 "numbers": {"cpu_shares": 500}}
```

`by` is `virtpilot` where a command that this host's agent executed led to it, and `cause` is then that command's id.
All else is `other`: a person, the guest, the hardware, and on the host where a guest arrives also a migration of
virtpilot's, which its source tells of. Readers know an event that comes twice by its `id`. While the broker is away up
to 2,000 wait. Where some are lost, or libvirtd was away, `events_lost` says so. A driver tells what it can: QEMU all
of these, LXC and others fewer.

While a job runs on a guest (a migration, a save, a dump, a backup), whoever started it, its statistics come once a
second both as `job_progress` and as the measurement `vm_job`, which the store keeps.

The controller counts all events by kind. It keeps in its record log those that explain something: what befell guests,
the ends of jobs, errors, and the knobs that somebody else has changed.
"""


def configuration() -> str:
    """Return the page of every option of every process."""
    tables = [f"## virtpilot {name}\n\n{reference(type_)}" for name, type_ in CONFIGS.items()]
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


def events() -> str:
    """Return the page of every kind of event."""
    rows = [f"| `{kind}` | {meaning} | {holds} | {source} |" for kind, (meaning, holds, source) in MEANINGS.items()]
    return "\n".join([_EVENTS, "| kind | what happened | detail; numbers | source |", "|---|---|---|---|", *rows, ""])


def schema() -> str:
    """Return the JSON Schema of rule files."""
    return msgspec.json.format(msgspec.json.encode(rule_schema()), indent=2).decode() + "\n"


PAGES = {
    "configuration.md": configuration,
    "fields.md": fields,
    "events.md": events,
    "rules.schema.json": schema,
}


def main() -> None:
    """Write the pages into the folder named on the command line."""
    folder = Path(sys.argv[1])
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
