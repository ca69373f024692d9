"""The manual's generated pages: `python -m virtpilot.pipeline.reference FOLDER` writes them."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import msgspec

from virtpilot.events import MEANINGS
from virtpilot.fields import FIELDS, Unit
from virtpilot.knobs import DEVICE_KNOBS, KNOBS, Knob
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

`by` is `virtpilot` where a command of virtpilot's led to it, and `cause` is then that command's id. On the host where
a guest arrives its agent knows that by a note that the source's agent has the guest carry (`<move>` in its live
metadata, beside its leases); where the source has no agent, or nothing could be written, it is `other`, as is all
else: a person, the guest, the hardware. Readers know an event that comes twice by its `id`. While the broker is away up
to 2,000 wait. Where some are lost, or libvirtd was away, `events_lost` says so. A driver tells what it can: QEMU all
of these, LXC and others fewer.

While a job runs on a guest (a migration, a save, a dump, a backup), whoever started it, its statistics come once a
second both as `job_progress` and as the measurement `vm_job`, which the store keeps.

The controller counts all events by kind. It keeps in its record log those that explain something: what befell guests,
the ends of jobs, errors, and the knobs that somebody else has changed.
"""

_KNOBS = """# Knobs

What virtpilot sets on a running guest or its host. A rule sets one with `set: {<knob>: <value>}` and a `lease`; at the
lease's end, after a crash of the agent and when the controller is gone the agent gives it back.

* `current` is where the knob stands. A value is fitted between the bounds below and to a multiple of the step; a
  plain number is in the knob's own unit, and where a unit is named a quantity of it is taken: `vcpu_quota: 50ms`,
  `memory_balloon: current - 512MiB`, `nic0.inbound_average: 20MB/s`.
* Of a limit 0 means none: `vda.total_iops_sec: 0` lifts it, for the lease. A computed value never lifts a limit, and
  `current / 2` of no limit is refused: there is nothing to halve.
* CPUs and NUMA nodes are a list, `vcpupin: 0-3,6`; numbers above 51 cannot be named. No pin and all CPUs are the same.
* A disk is named by its target (`vda`), NICs by their order in the guest's definition (`nic0`), for their targets are
  others on each host, and a virtio-mem by its alias (`virtiomem0`).
* What the driver, the guest or the kernel does not have is refused by guard `knob`, with the reason.

Before it sets anything the agent checks, whatever the command says:

* `caps`: no value outside of the table's bounds, or of `[[caps.knobs]]` in the agent's config; no knob that is not
  `allowed` there.
* `value`: no value that is no multiple of the step; no CPUs and nodes that the host does not have; no vCPUs that are
  not plugged in.
* `floor`: no quota that leaves a vCPU less than 0.05 CPUs, or QEMU's own threads or an I/O thread less than
  `cpu_headroom_ratio`; of the whole guest's quota the sum of these. No hard limit on memory below what the guest has
  and its processes use, plus `memory_limit_headroom_bytes`.
* `working-set`: no balloon that would leave the guest less than it works with (what it has less what its kernel could
  give back without swapping) plus `balloon_floor_bytes`; none at all that takes while the guest's kernel has not told
  that within `balloon_told_s`.
* `step`: no balloon that takes more than `balloon_step_ratio` of what the guest has at a time.
* `knob`: no vCPUs of a guest that could not be unplugged again: emulated ones (QEMU without KVM loses track of them),
  and those that are there from the start (`guest_vcpus` takes these from the guest's kernel).

A guest whose balloon was blown up and that falls short of memory (less than half of `balloon_floor_bytes` to give back)
gets it back at once, before the lease ends. After plugging in vCPUs the guest's agent, where it is connected, is asked
to use them. Reads of a knob that the guest has to follow (balloon, plugged memory) wait up to 3 s for it.

`ksm_…` are the host's: a rule on a host sets them. Where the scan's pace stands is not measured, so a rule can set
`ksm_run` alone; a command, which names the host in place of a guest, the others too. A weight or a period that
nobody has set is taken to be where libvirt has it from the start.

A guest that is moved takes its leases along; what it is pinned to is given back before it leaves.
"""


def knobs() -> str:
    """Return the page of every knob."""
    head = "| knob | values | what it is | set by |\n|---|---|---|---|"
    rows = [_knob_row(name, knob) for name, knob in KNOBS.items()]
    placed = {"disk": "<disk>.", "nic": "nic<N>.", "memory": "virtiomem<N>."}
    rows += [_knob_row(placed[knob.device] + name, knob) for name, knob in DEVICE_KNOBS.items()]
    return "\n".join([_KNOBS, head, *rows, ""])


def _knob_row(name: str, knob: Knob) -> str:
    if knob.is_set:
        values = "a list"
    else:
        step = f", step {knob.step}" if knob.step > 1 else ""
        lifted = "0 (no limit), " if knob.limit else ""
        unit = "" if knob.unit is Unit.COUNT else f", or {knob.unit}" if knob.per_unit > 1 else f" {knob.unit}"
        values = f"{lifted}{knob.low}..{knob.high}{step}{unit}"
    return f"| `{name}` | {values} | {knob.about} | {knob.source} |"


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
    "knobs.md": knobs,
    "rules.schema.json": schema,
}


def main() -> None:
    """Write the pages into the folder named on the command line."""
    folder = Path(sys.argv[1])
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
