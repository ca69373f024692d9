"""Every parser of what comes from outside, as one function over bytes: it may only say no in its own words.

A target raises nothing but AssertionError, for a promise that is broken, whatever bytes it is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.collectors.told_guests import ToldGuests
from tests.collectors.trees import TextTree
from virtpilot.actuators.command import Verifier
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.domain import Meter
from virtpilot.errors import CommandRefused, InputError, StateError
from virtpilot.hypervisor import GuestStats
from virtpilot.libvirt_limits import read_configured
from virtpilot.libvirt_tags import read_tags
from virtpilot.lineprotocol import Wanted, encode_lines, parse, parse_wanted
from virtpilot.model import Event, HostStatus, Message, Outcome, Sample, Sampling, Stored
from virtpilot.pipeline import settings
from virtpilot.pipeline.agent_config import AgentConfig
from virtpilot.pipeline.lines import split
from virtpilot.pipeline.sequences import SequenceSet
from virtpilot.pipeline.spool import Spool
from virtpilot.pipeline.store.file import FileStore
from virtpilot.rules.language import check

Target = Callable[[bytes], None]

WANTED: Final[Wanted] = {
    "vm": frozenset({"cpu_usage_ratio", "memory_used_ratio", "f"}),
    "m": frozenset({"f", "g"}),
    "host": frozenset({"load1_count"}),
}
NOW_NS: Final = 1_790_000_000_000_000_000
# What each consumer of a record counts, logs and drops.
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def line_protocol(data: bytes) -> None:
    """Full and partial parser say the same, and what they read can be written and read again."""
    found = parse(data)
    partial = parse_wanted(data, WANTED)
    assert len(found.samples) + len(found.bad) <= data.count(b"\n") + 1
    if not found.bad:
        assert partial.samples == _only(found.samples)
        assert not partial.bad
    written = encode_lines(found.samples)
    assert parse(written).samples == found.samples
    assert parse_wanted(written, WANTED).samples == _only(found.samples)
    assert b"".join(split(data, 64)).replace(b"\n", b"") == data.replace(b"\n", b"")


def _only(samples: list[Sample]) -> list[Sample]:
    kept = []
    for sample in samples:
        wanted = WANTED.get(sample.measurement, ())
        fields = {name: number for name, number in sample.fields.items() if name in wanted}
        if fields:
            kept.append(Sample(sample.measurement, sample.tags, fields, sample.time_ns))
    return kept


def command(data: bytes) -> None:
    """Nobody without a key commands anything."""
    try:
        Verifier({}, "node1").open(data, NOW_NS)
    except CommandRefused:
        return
    raise AssertionError("a command was let through")


def records(data: bytes) -> None:
    """Every record of the bus is read, or refused by what its consumers catch."""
    for kind in (Event, HostStatus, Outcome, Sampling, Stored, Message):
        try:
            record: Any = msgspec.json.decode(data, type=kind)
        except _UNREADABLE:
            continue
        assert msgspec.json.decode(msgspec.json.encode(record), type=kind) == record
        if isinstance(record, Stored):
            SequenceSet(record.ranges)


def guest_xml(data: bytes) -> None:
    """A guest's XML gives what can be read of it, and nothing else happens."""
    text = data.decode(errors="replace")
    read_configured(text, {"cpu_shares": 1024, "vcpu_quota": -1})
    for name, value in read_tags(text, frozenset({"tier", "role"})).items():
        assert name in ("tier", "role")
        assert value.isprintable()


def guest_statistics(data: bytes) -> None:
    """Whatever a hypervisor tells of a guest becomes samples that can be sent."""
    try:
        told = msgspec.json.decode(data, type=dict[str, int | float | str | bool])
    except _UNREADABLE:
        return
    meter = Meter({"cluster": "c", "host": "h"})
    for number in range(3):
        samples = meter.samples(GuestStats("uuid", "name", told), {}, NOW_NS + number * 10**10)
        assert not parse(encode_lines(samples)).bad


def host_files(data: bytes) -> None:
    """Whatever the kernel's files say, the others are read."""
    text = data.decode("ascii", "replace")
    names = ("stat", "meminfo", "loadavg", "vmstat", "diskstats", "net/dev", "pressure/cpu", "pressure/io")
    tree = TextTree({f"proc/{name}": text for name in names} | {"proc/uptime": "1.0 1.0"})
    collector = HostCollector(
        ToldGuests(), tree, {"cluster": "c", "host": "h"}, frozenset({0, 1}), monotonic_ns=lambda: 0
    )
    for number in range(2):
        samples = collector.collect(NOW_NS + number * 10**10)
        assert samples
        assert not parse(encode_lines(samples)).bad


def spool_segment(data: bytes) -> None:
    """A spool opens over any segment, and keeps what is whole in it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "000000000001.spool").write_bytes(data)
        try:
            spool = Spool(Path(folder), "boot")
            for entry in spool.pending():
                spool.payload(entry)
            kept = spool.append(b"m f=1 1\n", NOW_NS)
            assert spool.payload(kept) == b"m f=1 1\n"
            spool.close()
        except StateError:
            return


def file_store_segment(data: bytes) -> None:
    """A file store opens over any segment and takes more."""
    with tempfile.TemporaryDirectory() as folder:
        first = FileStore(Path(folder))
        first.write("a/b/1", b"m f=1 1\n")
        first.close()
        for path in Path(folder).iterdir():
            if path.is_file():
                path.write_bytes(data)
        try:
            again = FileStore(Path(folder))
            again.write("a/b/2", b"m f=1 2\n")
            again.close()
        except StateError:
            return


def config_file(data: bytes) -> None:
    """A config file is read or refused with places."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "agent.toml"
        file.write_bytes(data)
        try:
            settings.load(file, AgentConfig)
        except InputError as error:
            refusal = str(error)
        else:
            return
    assert refusal


def rule_file(data: bytes) -> None:
    """A rule file is read or told what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_bytes(data)
        for problem in check([file]):
            assert problem.message


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        line_protocol, command, records, guest_xml, guest_statistics, host_files, spool_segment, file_store_segment,
        config_file, rule_file,
    )
}  # fmt: skip
