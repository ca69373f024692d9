"""What was sent and what is stored, counted: each message once, none missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.services import VictoriaMetrics, until
from virtpilot.lineprotocol import parse
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.pipeline.store.file import FileStore
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

Sequences = dict[str, list[int]]


def in_file_store(folder: Path) -> Sequences:
    """Return the sequence numbers of each boot that a file store holds, repeated ones repeated."""
    found: Sequences = {}
    store = FileStore(folder)
    for message_id, _lines in store.read():
        source, _, sequence = message_id.rpartition("/")
        found.setdefault(source, []).append(int(sequence))
    store.close()
    return found


def each_once(found: Sequences) -> None:
    """Every number of every boot from 1 to its last is there, once."""
    for boot, numbers in found.items():
        twice = [number for number, times in Counter(numbers).items() if times > 1]
        assert not twice, (boot, "stored twice", twice)
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), (boot, "missing", numbers)


class Listener:
    """Hears all metrics of a cluster through a session that the broker keeps while it is away itself."""

    def __init__(self, port: int, cluster: str) -> None:
        options = MqttOptions(port=port, reconnect_min_s=0.1, reconnect_max_s=0.5, receive_maximum=60_000)
        self._bus = MqttBus(options, "listener")
        self._bus.subscribe(Topics(cluster).metrics("+"))
        self.heard: dict[tuple[str, int], int] = {}
        assert until(lambda: self._bus.generation)

    def listen(self) -> None:
        """Take what has come: the time in ns of the host's sample, by boot and sequence number."""
        while (delivery := self._bus.receive(0)) is not None:
            properties, samples = delivery.message.properties, parse(delivery.message.payload).samples
            (host,) = (sample for sample in samples if sample.measurement == "host")
            self.heard[properties[BOOT_PROPERTY], int(properties[SEQUENCE_PROPERTY])] = host.time_ns
            delivery.ack()

    def sequences(self) -> Sequences:
        """Return the numbers heard of each boot."""
        found: Sequences = {}
        for boot, sequence in self.heard:
            found.setdefault(boot, []).append(sequence)
        return found

    def close(self) -> None:
        """Leave."""
        self._bus.close()


def in_victoriametrics(store: VictoriaMetrics, host: str, times_ns: Iterable[int]) -> None:
    """The store has one point of a host's memory for each of these times and no other."""
    wanted = sorted(time_ns // 1_000_000 for time_ns in times_ns)
    match = f'host_memory_total_bytes{{host="{host}"}}'
    rows = store.export(match, wanted[0] / 1000 - 60, wanted[-1] / 1000 + 60).splitlines()
    stored = sorted(time_ms for row in rows for time_ms in json.loads(row)["timestamps"])
    assert stored == wanted, (len(stored), len(wanted))
