"""The writer as a process; it imports what a writer needs: neither rules nor the controller."""

from __future__ import annotations

from pathlib import Path

from virtpilot.clock import Clock, SystemClock
from virtpilot.model import Store
from virtpilot.pipeline import settings
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.service import run
from virtpilot.pipeline.writer import Writer
from virtpilot.pipeline.writer_config import WriterConfig
from virtpilot.topics import Topics


def writer(path: Path) -> None:
    """Run a writer until it is told to stop."""
    config = settings.load(path, WriterConfig)
    run(config, lambda _hangup: writer_from(config, SystemClock()), watch_writer)


def store_from(config: WriterConfig, clock: Clock) -> Store:
    """Return the store that a writer's config names."""
    if config.file_store:
        from virtpilot.pipeline.store.file import FileStore

        return FileStore(Path(config.file_store))
    # Not before now: clients of HTTP take as long to load as all the rest.
    from virtpilot.pipeline.store.influx import InfluxStore

    return InfluxStore(config.store, clock)


def writer_from(config: WriterConfig, clock: Clock) -> Writer:
    """Put a writer together."""
    folder = Path(config.state_folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = store_from(config, clock)
    bus = MqttBus(config.bus, f"virtpilot-{config.cluster}-writer-{config.name}")
    return Writer(bus, store, Topics(config.cluster), clock, dead_letters=folder / "dead-letters", limits=config.limits)


def watch_writer(exporter: Exporter, made: Writer) -> Exporter:
    """Export what a writer knows of itself."""
    exporter.watch("virtpilot_writer_messages_total", "Messages stored.", "counter", lambda: made.written)
    exporter.watch(
        "virtpilot_writer_retries_total", "Attempts that the store did not take.", "counter", lambda: made.retries
    )
    exporter.watch("virtpilot_writer_dead_lines_total", "Lines put aside.", "counter", lambda: made.dead_lines)
    exporter.watch("virtpilot_writer_series_count", "Series of each host.", "gauge", made.series.counts, "host")
    exporter.watch(
        "virtpilot_writer_series_refused_total",
        "Lines put aside: series beyond the host's limit.",
        "counter",
        made.series.refused,
        "host",
    )
    exporter.watch("virtpilot_writer_reported_total", "Messages reported stored.", "counter", lambda: made.reported)
    exporter.check("store", lambda: made.store_takes)
    return exporter
