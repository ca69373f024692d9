"""The host itself: its sources, each read when it is due; what cannot be read stops nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from virtpilot.clock import seconds
from virtpilot.collectors.budget import Budget
from virtpilot.collectors.source import Collect, Device, Fields, Found, Look, Source
from virtpilot.collectors.sources import SOURCES

# A tick may come a little early: what is due within that is read now.
_EARLY_NS: Final = seconds(0.5)


class Host:
    """Reads the registered sources of one host."""

    def __init__(self, budget: Budget, failed: Callable[[str, Exception], None], sound: Callable[[str], None]) -> None:
        self._budget = budget
        self._failed, self._sound = failed, sound
        self._readers = {name: Reader(source) for name, source in SOURCES.items()}

    def collect(self, look: Look) -> Found:
        """Return what all sources tell of the host, and its devices."""
        fields: Fields = {}
        devices: list[Device] = []
        for name, reader in self._readers.items():
            found = self._read(name, reader, look)
            fields |= found.fields
            devices += found.devices
        return Found(fields, devices)

    def _read(self, name: str, reader: Reader, look: Look) -> Found:
        if not reader.due(look.now_ns):
            return reader.again()
        if reader.seldom and self._budget.skips():
            return reader.again()
        try:
            found = reader.read(look)
        except (OSError, ValueError) as error:
            self._failed(name, error)
            return Found({})
        self._sound(name)
        return found


class Reader:
    """One source and what it told last."""

    def __init__(self, source: Source) -> None:
        self.seldom = source.every_s > 0
        self._collect: Collect = source.make()
        self._every_ns = seconds(source.every_s)
        self._fields: Fields = {}
        self._read_ns: int | None = None

    def due(self, now_ns: int) -> bool:
        """Tell whether it is to be read anew."""
        return self._read_ns is None or abs(now_ns - self._read_ns) >= self._every_ns - _EARLY_NS

    def read(self, look: Look) -> Found:
        """Return what it tells now; raises OSError or ValueError, and then has nothing to tell again."""
        self._fields, self._read_ns = {}, None
        found = self._collect(look)
        self._fields, self._read_ns = found.fields, look.now_ns
        return found

    def again(self) -> Found:
        """Return what it told last of the host."""
        return Found(self._fields)
