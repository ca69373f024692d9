"""Every parser of what comes from outside, as one function over bytes: it may only say no in its own words.

A target raises nothing but AssertionError, for a promise that is broken, whatever bytes it is given.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.collectors.told_guests import ToldGuests
from tests.collectors.trees import TextTree
from virtpilot.actuators.command import Verifier, key_id
from virtpilot.collectors.cgroup import FILES
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.domain import Meter
from virtpilot.collectors.guest_groups import GuestGroups
from virtpilot.collectors.hierarchy import UNIFIED, group_id
from virtpilot.errors import CommandRefused, InputError, StateError
from virtpilot.events import Event
from virtpilot.hypervisor import GuestStats
from virtpilot.libvirt_limits import read_configured
from virtpilot.libvirt_tags import read_tags
from virtpilot.lineprotocol import Wanted, encode_lines, parse, parse_wanted
from virtpilot.model import HostStatus, Message, Outcome, Sample, Sampling, Stored
from virtpilot.pipeline import settings
from virtpilot.pipeline.agent_config import AgentConfig
from virtpilot.pipeline.bus.mqtt_options import MqttOptions, new_client
from virtpilot.pipeline.bus.packets import read_publish
from virtpilot.pipeline.bus.paho_words import message_of
from virtpilot.pipeline.lines import split
from virtpilot.pipeline.sequences import SequenceSet
from virtpilot.pipeline.spool import Spool
from virtpilot.pipeline.store.file import FileStore
from virtpilot.pipeline.writer import Writer
from virtpilot.rules.language import check
from virtpilot.topics import Topics

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


def signed_command(data: bytes) -> None:
    """A key's owner commands what it signed, in a form that this version knows, and nobody in its name."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    name = key_id(key.public_key())
    verifier = Verifier({name: key.public_key()}, "node1")
    good = base64.b64encode(key.sign(b"virtpilot command v1\n" + data)).decode()
    bad = base64.b64encode(key.sign(data)).decode()
    for signature in (good, bad, data.decode("latin-1")):
        head = msgspec.json.encode({"key": name, "signature": signature})[:-1]
        try:
            found = verifier.open(head + b', "command": ' + data + b"}", NOW_NS)
        except CommandRefused:
            continue
        assert signature == good
        assert found.host == "node1"
        assert found.issued_ns < found.not_after_ns


def groups(data: bytes) -> None:
    """Whatever the kernel's files say of a guest's control group, what is told of it can be sent."""
    text = data.decode("ascii", "replace")
    mounts = "1 1 0:1 / /cg rw - cgroup2 c rw\n"
    mounts += "".join(f"2 1 0:2 / /{name} rw - cgroup c rw,{name}\n" for name in ("memory", "blkio"))
    folder = "machine/qemu-1-web.libvirt-qemu"
    places = {UNIFIED: "cg", "memory": "memory", "blkio": "blkio"}
    files = {f"{places[file.hierarchy]}/{folder}/{file.name}": text for file in FILES}
    for mounted in (mounts, text):
        found = GuestGroups(TextTree({"proc/self/mountinfo": mounted} | files))
        for number in range(2):
            found.begin()
            fields = found.collect(1, NOW_NS + number * 10**10)
            sample = Sample("vm", {"vm": "u"}, {"state_code": 1} | fields, NOW_NS)
            assert not parse(encode_lines([sample])).bad
    group_id(text)


def properties(data: bytes) -> None:
    """Whatever properties a message bears, a writer gives it an id that its report can take apart."""
    packed = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho's own gap
    pairs = [line.partition("=") for line in data.decode("utf-8", "surrogateescape").split("\n")]
    packed.UserProperty = [(name, value) for name, _, value in pairs]
    topic = next((value for name, _, value in pairs if name == "topic"), "virtpilot/c/metrics/h")
    received = MQTTMessage(topic=topic.encode("utf-8", "surrogateescape"))
    received.payload, received.properties = data, packed
    message = message_of(received)
    if message is None:
        return
    writer = Writer.__new__(Writer)
    writer._topics = Topics("c")
    found = writer._id(message)
    assert found
    if found.count("/") == 2:
        assert int(found.split("/")[2]) >= 0


def packet(data: bytes) -> None:
    """What is read of a PUBLISH packet without paho is what paho reads of it."""
    command, rest = 0x30 | (data[0] if data else 0) & 0x0F, bytearray(data[1:])
    # What lies around a packet is of others, and changes nothing.
    found = read_publish(command, data[:1] + rest + data, min(len(data), 1), len(data))
    assert found == read_publish(command, rest, 0, len(rest))
    if found is None:
        return
    read: list[MQTTMessage] = []
    client = new_client(MqttOptions(), "fuzz")
    client.on_message = lambda _client, _data, message: read.append(message)
    client._in_packet |= {"command": command, "packet": rest}
    assert client._handle_publish() == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert [(message_of(message), message.mid) for message in read] == [found]


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
    meter = Meter({"cluster": "c", "host": "h"}, lambda guest, knob: False)
    for number in range(3):
        samples = meter.samples(GuestStats("uuid", "name", told), NOW_NS + number * 10**10)
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
        line_protocol, command, signed_command, groups, properties, packet,
        records, guest_xml, guest_statistics, host_files, spool_segment, file_store_segment,
        config_file, rule_file,
    )
}  # fmt: skip
