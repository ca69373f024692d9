"""Scenario files: what a simulated fleet is made of and what happens to it; TOML, decoded strictly.

`load` raises InputError with every mistake at once, `check` returns them. Sizes are MiB, rates MiB/s, times seconds
after the start.
"""

from __future__ import annotations

import re
import tomllib
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from virtpilot.errors import InputError, Problem
from virtpilot.simulator.demand import Signal, signal_mistake
from virtpilot.simulator.position import Positions
from virtpilot.topics import check_name

_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "simulator.virtpilot.invalid")
_TOML_PLACE: Final = re.compile(r"\(at line (\d+), column (\d+)\)$")

# the upper ends keep infinities and absurd sizes out of the arithmetic
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
Cores = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]
Shares = Annotated[int, msgspec.Meta(ge=2, le=262144)]


def guest_uuid(name: str) -> str:
    """Return the UUID that a guest of this name has in every scenario."""
    return str(uuid.uuid5(_NAMESPACE, name))


class HostSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A host: what it has, and what itself takes of it."""

    name: str
    cpus: Cores
    memory_mib: Count
    overhead_cores: NotNegative = 0.2
    overhead_mib: NotNegative = 1024.0
    link_mib_s: Positive = 1100.0
    disk_mib_s: Positive = 1000.0
    net_mib_s: Positive = 1100.0
    networks: list[str] = []  # that its libvirt has


class GuestSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A guest: its size, its place and what it wants over time."""

    name: str
    host: str
    vcpus: Cores
    memory_mib: Count
    tags: dict[str, str] = {}
    cpu_shares: Shares = 1024
    running: bool = True
    networks: list[str] = []  # that its NICs are on
    listens: bool = True  # to its power button: shuts down and reboots when asked
    noise: Ratio = 0.0
    cpu_cores: Signal = 0.0
    memory_used_mib: Signal = 128.0
    disk_read_mib_s: Signal = 0.0
    disk_write_mib_s: Signal = 0.0
    net_receive_mib_s: Signal = 0.0
    net_transmit_mib_s: Signal = 0.0
    dirty_mib_s: Signal = 0.0

    @property
    def uuid(self) -> str:
        """The guest's UUID, made of its name."""
        return guest_uuid(self.name)


class MigrationSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How live migration behaves: pre-copy rounds until the rest fits into the allowed downtime."""

    setup_s: NotNegative = 0.3
    downtime_s: Positive = 0.3
    switchover_s: NotNegative = 0.05
    max_rounds: Count = 30
    guest_speed_ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    auto_converge: bool = True
    throttle_initial_ratio: Ratio = 0.2
    throttle_step_ratio: Ratio = 0.1
    throttle_max_ratio: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.99


class HypervisorDown(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="hypervisor_down", tag_field="kind"
):
    """The host's libvirt daemon cannot be reached from `at_s` on, `for_s` seconds long (0: for ever)."""

    at_s: NotNegative
    host: str
    for_s: NotNegative = 0.0


class HypervisorSlow(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="hypervisor_slow", tag_field="kind"
):
    """The host's libvirt takes `answer_s` for each answer; beyond the caller's deadline: HypervisorTimeout."""

    at_s: NotNegative
    host: str
    answer_s: Positive
    for_s: NotNegative = 0.0


class LinkDown(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="link_down", tag_field="kind"
):
    """The host's migration link fails: migrations in flight fail, new ones cannot connect."""

    at_s: NotNegative
    host: str
    for_s: NotNegative = 0.0


class HostDeath(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="host_death", tag_field="kind"
):
    """The host loses power; back after `for_s` seconds (0: never), freshly booted, its guests shut off."""

    at_s: NotNegative
    host: str
    for_s: NotNegative = 0.0


class GuestVanish(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="guest_vanish", tag_field="kind"
):
    """Somebody destroys and undefines the guest."""

    at_s: NotNegative
    guest: str


class GuestStop(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="guest_stop", tag_field="kind"
):
    """Somebody shuts the guest down; it stays defined, and starts again after `for_s` seconds (0: never)."""

    at_s: NotNegative
    guest: str
    for_s: NotNegative = 0.0


class SharesSet(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="shares_set", tag_field="kind"
):
    """Somebody sets the running guest's CPU shares by hand."""

    at_s: NotNegative
    guest: str
    cpu_shares: Shares


Event = HypervisorDown | HypervisorSlow | LinkDown | HostDeath | GuestVanish | GuestStop | SharesSet


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole simulated fleet: the same scenario gives the same bytes, whatever the machine."""

    name: str
    hosts: Annotated[list[HostSpec], msgspec.Meta(min_length=1)]
    guests: list[GuestSpec] = []
    events: list[Event] = []
    migration: MigrationSpec = MigrationSpec()
    seed: Annotated[int, msgspec.Meta(ge=0)] = 1


def demo_path() -> Path:
    """Return the scenario that `virtpilot demo` runs."""
    return Path(__file__).parent / "scenarios" / "demo.toml"


def load(path: Path) -> Scenario:
    """Return the scenario in a file; raises InputError with every mistake in it."""
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem(name, 0, 0, f"cannot be read: {error}")]) from error
    return parse(text, name)


def check(path: Path) -> list[Problem]:
    """Return every mistake in a scenario file; an empty list when there is none."""
    try:
        load(path)
    except InputError as error:
        return list(error.problems)
    return []


def parse(text: str, file: str = "<scenario>") -> Scenario:
    """Return the scenario in `text`; raises InputError with every mistake in it."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        line, column = (int(place[1]), int(place[2])) if place else (0, 0)
        message = _TOML_PLACE.sub("", str(error)).strip()
        raise InputError([Problem(file, line, column, message)]) from error
    positions = Positions(text)
    found = sorted(set(_mistakes(raw)))
    if found:
        raise InputError([Problem(file, *positions.find(path), f"{path}: {message}") for path, message in found])
    return msgspec.convert(raw, Scenario)


_TABLES: Final[dict[str, Any]] = {"hosts": HostSpec, "guests": GuestSpec, "events": Event}
_S = TypeVar("_S", bound=msgspec.Struct)


def _mistakes(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (path, message) for each mistake: form first, then what the records say about each other."""
    form = list(_form_mistakes(raw))
    yield from form
    if form:
        return
    yield from mistakes(msgspec.convert(raw, Scenario))


def _form_mistakes(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rest = {key: value for key, value in raw.items() if key not in _TABLES}
    yield from _record_mistakes(rest | {"hosts": [{"name": "x", "cpus": 1, "memory_mib": 1}]}, Scenario, "")
    if not raw.get("hosts"):
        yield "hosts", "at least one host is needed"
    for table, record in _TABLES.items():
        entries = raw.get(table, [])
        if not isinstance(entries, list):
            yield table, f"expected a list of tables, [[{table}]]"
            continue
        for number, entry in enumerate(entries):
            yield from _record_mistakes(entry, record, f"{table}[{number}]")


def _record_mistakes(raw: object, record: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every mistake of one record, key by key, since a strict decoder stops at the first."""
    if not isinstance(raw, dict) or not (isinstance(record, type) and issubclass(record, msgspec.Struct)):
        yield from _convert_mistake(raw, record, path)
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(record)}
    prefix = f"{path}." if path else ""
    for key, value in raw.items():
        if key not in fields:
            yield prefix + key, "unknown key"
        else:
            yield from _record_mistakes(value, fields[key].type, prefix + key)
    for key, field in fields.items():
        if field.required and key not in raw:
            yield path or key, f"{key} is missing"


def _convert_mistake(raw: object, wanted: Any, path: str) -> Iterator[tuple[str, str]]:
    try:
        msgspec.convert(raw, wanted)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        yield path + where.rstrip("`"), message[:1].lower() + message[1:]


def mistakes(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yield (path, message) for what a well-formed scenario gets wrong: names, places, sizes, signals."""
    yield from _names(scenario)
    yield from _networks(scenario)
    hosts = {host.name for host in scenario.hosts}
    guests = {guest.name for guest in scenario.guests}
    for number, host in enumerate(scenario.hosts):
        if host.overhead_cores >= host.cpus:
            yield f"hosts[{number}].overhead_cores", f"takes all of the {host.cpus} CPUs"
        if host.overhead_mib >= host.memory_mib:
            yield f"hosts[{number}].overhead_mib", f"takes all of the {host.memory_mib} MiB"
    for number, guest in enumerate(scenario.guests):
        if guest.host not in hosts:
            yield f"guests[{number}].host", f"there is no host {guest.host!r}"
        for signal in SIGNALS:
            if wrong := signal_mistake(getattr(guest, signal)):
                yield f"guests[{number}].{signal}", wrong
    for number, event in enumerate(scenario.events):
        kind, known = ("guest", guests) if isinstance(event, GuestVanish | GuestStop | SharesSet) else ("host", hosts)
        if (named := getattr(event, kind)) not in known:
            yield f"events[{number}].{kind}", f"there is no {kind} {named!r}"


def _networks(scenario: Scenario) -> Iterator[tuple[str, str]]:
    offered = {host.name: frozenset(host.networks) for host in scenario.hosts}
    for number, guest in enumerate(scenario.guests):
        for name in sorted(set(guest.networks) - offered.get(guest.host, frozenset(guest.networks))):
            yield f"guests[{number}].networks", f"{guest.host} has no network {name!r}"


def _names(scenario: Scenario) -> Iterator[tuple[str, str]]:
    for table, names in (
        ("hosts", [host.name for host in scenario.hosts]),
        ("guests", [guest.name for guest in scenario.guests]),
    ):
        seen: Counter[str] = Counter()
        for number, name in enumerate(names):
            seen[name] += 1
            if seen[name] > 1:
                yield f"{table}[{number}].name", f"{name!r} is there already"
            try:
                check_name(name)
            except ValueError as error:
                yield f"{table}[{number}].name", str(error)


SIGNALS: Final = (
    "cpu_cores",
    "memory_used_mib",
    "disk_read_mib_s",
    "disk_write_mib_s",
    "net_receive_mib_s",
    "net_transmit_mib_s",
    "dirty_mib_s",
)
