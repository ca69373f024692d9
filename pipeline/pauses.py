"""The interpreter's own pauses, kept short in a process that must answer soon.

A full collection of cyclic garbage looks at every object there is (0.2 s with 10,000 guests), while nothing else runs.
What has lived for a while is put out of its sight, so that it looks only at what is new; once an hour it sees all.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from virtpilot.clock import seconds

_FREEZE_NS: Final = seconds(10)
_WHOLE_NS: Final = seconds(3600)
# The young are looked at by themselves; when the old ones are, is said here.
_THRESHOLDS: Final = (5_000, 10, 1_000_000)
# A thread that has something to send waits so long for one that calculates; the default is 5 ms, for each of its calls.
_SWITCH_S: Final = 0.0005


class Pauses:
    """Says when the collector looks at what."""

    def __init__(self) -> None:
        self._freeze_ns = 0
        self._whole_ns: int | None = None

    @contextmanager
    def short(self) -> Iterator[None]:
        """Keep pauses short until this ends."""
        thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
        gc.set_threshold(*_THRESHOLDS)
        sys.setswitchinterval(_SWITCH_S)
        try:
            yield
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
            sys.setswitchinterval(interval)

    def look_at_all_soon(self) -> None:
        """Let the next look be at everything: much has been replaced."""
        self._whole_ns = None

    def tick(self, monotonic_ns: int) -> None:
        """Collect what is new, and now and then everything; what is left after it is looked at no more."""
        if self._whole_ns is None or monotonic_ns >= self._whole_ns:
            gc.unfreeze()
            self._whole_ns = monotonic_ns + _WHOLE_NS
        elif monotonic_ns < self._freeze_ns:
            return
        self._freeze_ns = monotonic_ns + _FREEZE_NS
        gc.collect()
        gc.freeze()
