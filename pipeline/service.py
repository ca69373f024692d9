"""What every long-running process is: its part, its exporter, and an orderly end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from virtpilot import __version__
from virtpilot.model import Bus
from virtpilot.pipeline import starting
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.exporter_options import ExporterOptions
from virtpilot.pipeline.process import LogOptions, set_up_logs, sole_user, stopping

log = structlog.get_logger(__name__)


class Settings(Protocol):
    """What every process's config has."""

    @property
    def cluster(self) -> str:
        """The cluster's name."""

    @property
    def state_folder(self) -> str:
        """What this process has for itself."""

    @property
    def exporter(self) -> ExporterOptions:
        """Where its page is."""

    @property
    def log(self) -> LogOptions:
        """How it logs."""


class Service(Protocol):
    """What a process runs; its counters are exported."""

    @property
    def bus(self) -> Bus:
        """Its session on the bus."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then close."""


_Made = TypeVar("_Made", bound=Service)


def run(
    config: Settings,
    make: Callable[[threading.Event], _Made],
    watch: Callable[[Exporter, _Made], Exporter],
) -> None:
    """Make and run a part; what can be wrong with its surroundings is found before it speaks to anybody."""
    set_up_logs(config.log)
    hangup = threading.Event()
    with stopping(hangup) as stop, sole_user(Path(config.state_folder)), closing(Exporter(config.exporter)) as exporter:
        made = make(hangup)
        watch(exporter, made)
        _watch_bus(exporter, made.bus)
        log.info("started", version=__version__, cluster=config.cluster, exporter_port=exporter.port)
        starting.over()
        made.run(stop)
    log.info("ended")


def _watch_bus(exporter: Exporter, bus: Bus) -> None:
    exporter.check("bus", lambda: bus.generation > 0)
    if isinstance(bus, MqttBus):
        exporter.watch("virtpilot_bus_refused_total", "Messages not taken.", "counter", lambda: bus.refused)
        exporter.watch(
            "virtpilot_bus_takeovers_total",
            "Times another client came by our name, it seems.",
            "counter",
            lambda: bus.takeovers,
        )
