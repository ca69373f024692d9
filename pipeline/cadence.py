"""How often an agent samples each guest: a controller asks for more or less, the agent's own bounds hold.

An order is a loan of time: it ends by itself, so that without a controller every guest is back at the agent's tick.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final
from zlib import crc32

import msgspec
import structlog

from virtpilot.clock import SECOND, seconds
from virtpilot.model import Sample, Sampling

# No guest is silent for longer: rules take a subject that is silent for a minute for one without data.
MAX_SILENCE_S: Final = 30.0
MAX_LOAN_NS: Final = seconds(120)
_MAX_GUESTS: Final = 10_000
log = structlog.get_logger(__name__)


class CadenceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a controller may change how often guests are sampled."""

    fastest_s: Annotated[
        float, msgspec.Meta(description="No guest is sampled more often than each so many seconds.", ge=1, le=3600)
    ] = 1.0
    fast_guests: Annotated[
        int,
        msgspec.Meta(description="At most so many guests are sampled faster at the same time; 0: none.", ge=0, le=1000),
    ] = 20
    busy_ratio: Annotated[
        float,
        msgspec.Meta(description="Faster samples take no more than this share of the time.", gt=0, le=1),
    ] = 0.2
    slowest_ticks: Annotated[
        int,
        msgspec.Meta(
            description="A calm guest is left out of all but one of so many ticks at most (never for over 30 s); 1: of "
            "none.",
            ge=1,
            le=100,
        ),
    ] = 3


class Cadence:
    """What was asked for and still holds; all times are monotonic but those in a message."""

    def __init__(self, host: str, options: CadenceOptions, tick_s: float) -> None:
        self.orders = 0
        self.refused = 0
        self.fast: frozenset[str] = frozenset()
        self.calm: frozenset[str] = frozenset()
        self._host = host
        self._options = options
        self._tick_s = tick_s
        self._ends_ns = 0
        self._fast_s = tick_s
        self._every = 1
        self._next_ns = 0
        self._round = 0

    def take(self, payload: bytes, now_ns: int, monotonic_ns: int) -> None:
        """Take an order within this agent's bounds; one that is malformed, late or another host's changes nothing."""
        try:
            order = msgspec.json.decode(payload, type=Sampling)
            left_ns = self._check(order, now_ns)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            self.refused += 1
            log.warning("order to sample refused", error=str(error))
            return
        self.orders += 1
        options = self._options
        self._ends_ns = monotonic_ns + min(left_ns, MAX_LOAN_NS)
        self._fast_s = min(max(order.fast_s, options.fastest_s), self._tick_s)
        # A guest that the tick serves as often needs no samples of its own.
        self.fast = frozenset(order.fast[: options.fast_guests] if self._fast_s < self._tick_s else ())
        ticks = min(order.calm_s, MAX_SILENCE_S) / self._tick_s
        self._every = max(min(int(ticks), options.slowest_ticks), 1)
        self.calm = frozenset(order.calm if self._every > 1 else ()) - self.fast
        self._next_ns = min(self._next_ns or monotonic_ns, monotonic_ns + seconds(self._fast_s))
        if not (self.fast or self.calm):
            self._ends_ns = self._next_ns = 0

    def _check(self, order: Sampling, now_ns: int) -> int:
        """Return how long an order holds still; raises ValueError where it is not to be obeyed."""
        if order.host != self._host:
            raise ValueError(f"it is for {order.host[:128]!r}")
        if not (order.fast_s > 0 and order.calm_s > 0):
            raise ValueError("its intervals are no intervals")
        if len(order.fast) + len(order.calm) > _MAX_GUESTS:
            raise ValueError("it names too many guests")
        if now_ns >= order.until_ns:
            raise ValueError("it has ended")
        return order.until_ns - now_ns

    def expire(self, monotonic_ns: int) -> None:
        """Go back to the agent's own tick where no order holds any more."""
        if self._ends_ns and monotonic_ns >= self._ends_ns:
            log.info("sampling as usual again: nobody asks for anything else")
            self.fast = self.calm = frozenset()
            self._ends_ns = self._next_ns = 0

    def wait_s(self, monotonic_ns: int) -> float:
        """Return how long it is until the next faster sample, a long time where there is none."""
        return max((self._next_ns - monotonic_ns) / SECOND, 0.0) if self.fast else self._tick_s

    def due(self, monotonic_ns: int) -> bool:
        """Tell whether the fast guests are to be sampled now."""
        self.expire(monotonic_ns)
        return bool(self.fast) and monotonic_ns >= self._next_ns

    def sampled(self, monotonic_ns: int, took_s: float) -> None:
        """Note that the fast guests were sampled, in so many seconds of their own; what takes long comes less often."""
        self._next_ns = monotonic_ns + seconds(
            max(self._fast_s - took_s, took_s / self._options.busy_ratio - took_s, 0)
        )

    def beat(self) -> None:
        """Begin a tick."""
        self._round += 1

    def told(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return a tick's samples without those of the calm guests whose turn it is not."""
        if not self.calm:
            return list(samples)
        return [sample for sample in samples if self._has_its_turn(sample.tags.get("vm", ""))]

    def _has_its_turn(self, guest: str) -> bool:
        return guest not in self.calm or (self._round + crc32(guest.encode())) % self._every == 0

    def interval_s(self, guest: str) -> float:
        """Return how often a guest is sampled now."""
        if guest in self.fast:
            return self._fast_s
        return self._tick_s * self._every if guest in self.calm else self._tick_s
