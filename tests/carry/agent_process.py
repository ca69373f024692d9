"""The carrying half of an agent in a process of its own, for tests that kill it: PORT CLUSTER HOST RESEND_S FOLDER.

Each tenth of a second it spools and sends a numbered sample, and says so on standard output once it has: a line
`BOOT NUMBER`. A line `pending COUNT` tells what is not reported stored yet. After SIGUSR1 it measures no more.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import msgspec

from virtpilot.clock import SECOND, SystemClock, seconds
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Sample, Stored
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.pipeline.process import LogOptions, boot_id, set_up_logs
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.uplink import Uplink
from virtpilot.topics import Topics

TICK_S = 0.1


def say(*words: object) -> None:
    """Say a line, whole and at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(port: str, cluster: str, host: str, resend_s: str, folder: str) -> None:
    """Run until it is killed."""
    set_up_logs(LogOptions())
    quiet = threading.Event()
    signal.signal(signal.SIGUSR1, lambda _number, _frame: quiet.set())
    clock, topics, boot = SystemClock(), Topics(cluster), boot_id()
    bus = MqttBus(MqttOptions(port=int(port), reconnect_min_s=0.1, reconnect_max_s=0.5), f"agent-{host}")
    bus.subscribe(topics.stored(host))
    options = SpoolOptions(resend_after_s=float(resend_s), fsync=False)
    uplink = Uplink(bus, Spool(Path(folder) / host, boot, options), topics, host, clock)
    number, said = 0, -1
    while True:
        if not quiet.is_set():
            now_ns = clock.now_ns()
            tags = {"cluster": cluster, "host": host, "boot": boot}
            uplink.send(encode_lines([Sample("carry", tags, {"number": number}, now_ns)]), now_ns)
            say(boot, number)
            number += 1
        uplink.tick()
        until_ns = clock.monotonic_ns() + seconds(TICK_S)
        while (left_ns := until_ns - clock.monotonic_ns()) > 0:
            delivery = bus.receive(left_ns / SECOND)
            if delivery is not None:
                uplink.on_stored(msgspec.json.decode(delivery.message.payload, type=Stored))
                delivery.ack()
        if uplink.pending != said:
            said = uplink.pending
            say("pending", said)


if __name__ == "__main__":
    main(*sys.argv[1:])
