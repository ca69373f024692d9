"""A writer in a process of its own, for tests that kill it: PORT URL CLUSTER NAME HOLD_S FOLDER as arguments."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from virtpilot.clock import SystemClock
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.pipeline.store.influx import InfluxStore, StoreOptions
from virtpilot.pipeline.writer import Writer
from virtpilot.topics import Topics


def main(port: str, url: str, cluster: str, name: str, hold_s: str, folder: str) -> None:
    """Run until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    clock = SystemClock()
    bus = MqttBus(MqttOptions(port=int(port), reconnect_max_s=1.0, session_expiry_s=4), name)
    store = InfluxStore(StoreOptions(url=url, hold_s=float(hold_s)), clock)
    Writer(bus, store, Topics(cluster), clock, dead_letters=Path(folder)).run(stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
