"""What the controller keeps of what it saw and did: the record log, the audit log, and counts for the exporter."""

from __future__ import annotations

from virtpilot import __version__
from virtpilot.clock import Clock
from virtpilot.model import Command, Decision, Outcome
from virtpilot.pipeline.audit.log import Audit
from virtpilot.pipeline.counters import Counters
from virtpilot.pipeline.records import Record, RecordLog


class Books:
    """Each record goes into all of them, once."""

    def __init__(self, records: RecordLog, audit: Audit, clock: Clock) -> None:
        self.counters = Counters()
        self.records = records
        self._audit = audit
        self._clock = clock

    def begin(self, epoch: int) -> None:
        """Note that a controller begins."""
        self._audit.add("start", self._clock.now_ns(), {"version": __version__, "epoch": epoch})

    def rules(self, looked: dict[str, object]) -> None:
        """Note which rules are in force, or were refused."""
        self._audit.add("rules", self._clock.now_ns(), looked)

    def noted(self, kind: str, entry: object) -> None:
        """Note what people have done, or are asked."""
        self._audit.add(kind, self._clock.now_ns(), entry)

    def add(self, record: Record) -> bool:
        """Keep a record; False when it was there already."""
        if not self.records.add(record):
            return False
        self.counters.record(record)
        if isinstance(record, Decision | Command | Outcome):
            self._audit.add(type(record).__name__.lower(), self._clock.now_ns(), record)
        return True

    def flush(self) -> None:
        """Hand what is kept to the system: it survives the end of this process."""
        self.records.flush()

    def sync(self) -> None:
        """Put the audit on disk."""
        self._audit.sync()

    @property
    def audit_failures(self) -> int:
        """How often the disk did not take the audit."""
        return self._audit.failures

    def close(self) -> None:
        """Let go."""
        self.records.flush()
        self._audit.close()
