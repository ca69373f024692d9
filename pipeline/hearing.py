"""What rules hear of a metrics message: an agent's as columns, somebody else's joined with what is known already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

import msgspec
import structlog

from virtpilot.lineblocks import Lines
from virtpilot.lineprotocol import Parsed
from virtpilot.model import Bus, Delivery, Message
from virtpilot.pipeline import foreign
from virtpilot.pipeline.counters import Counters
from virtpilot.pipeline.gathering import Gathering, Heard
from virtpilot.pipeline.rulebook import Rulebook
from virtpilot.pipeline.timeline import Timeline
from virtpilot.rules.signals.sources import Sources
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

log = structlog.get_logger(__name__)

# So many hosts' metrics that wait are evaluated at once.
_AT_ONCE: Final = 4
T = TypeVar("T")


class Hearing:
    """Reads messages of measurements, and says which are to be evaluated together."""

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        book: Rulebook,
        sources: Sources,
        time: Timeline,
        counters: Counters,
        gathering: Gathering,
    ) -> None:
        self._bus, self._topics = bus, topics
        self._book, self._sources, self._time, self._counters = book, sources, time, counters
        self._gathering = gathering

    def together(self, first: Delivery) -> tuple[list[Delivery], Delivery | None]:
        """Do as `waiting` does."""
        return waiting(self._bus, self._topics, first, self._sources)

    def hear(self, deliveries: Sequence[Delivery], *, gather: bool) -> Iterator[list[Heard]]:
        """Yield what is to be evaluated now; some may wait where `gather` says so and agents alone tell of anything."""
        if gather and self._sources.quiet and all(_is_metrics(self._topics, one) for one in deliveries):
            yield from self._gathering.sift(self._read(deliveries), self._book.evaluator.haste.of)
        else:
            yield from self._gathering.take()
            yield self._read(deliveries)

    def _read(self, deliveries: Iterable[Delivery]) -> list[Heard]:
        """Return what the rules in force read of messages; agents' times are compared with ours."""
        found = []
        for delivery in deliveries:
            message = delivery.message
            host = self._topics.host_of(message.topic)
            lines = hear(message, host, self._book, self._sources, self._time.now_ns())
            if BOOT_PROPERTY in message.properties and lines:
                self._time.hear(host, lines.time_ns())
            self._counters.heard(message.topic, lines)
            found.append(Heard(delivery, lines, message_id(message, host), host))
        return found


def decoded(message: Message, type_: type[T], counters: Counters) -> T | None:
    """Return what a message of JSON says; None for one that is not readable, which is counted."""
    try:
        return msgspec.json.decode(message.payload, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        counters.bad_messages += 1
        log.warning("message is not readable", topic=message.topic, error=str(error))
        return None


def waiting(bus: Bus, topics: Topics, first: Delivery, sources: Sources) -> tuple[list[Delivery], Delivery | None]:
    """Return a message, an agent's metrics with those that wait behind it, and the first other one behind them.

    A backlog is evaluated some hosts at a time, which costs less than one by one. What others than agents tell of is
    looked at message by message: it is joined with what is known by then.
    """
    found = [first]
    while len(found) < _AT_ONCE and sources.quiet and _is_metrics(topics, found[-1]):
        delivery = bus.receive(0)
        if delivery is None or not _is_metrics(topics, delivery):
            return found, delivery
        found.append(delivery)
    return found, None


def _is_metrics(topics: Topics, delivery: Delivery) -> bool:
    message = delivery.message
    return BOOT_PROPERTY in message.properties and topics.family_of(message.topic) == "metrics"


def hear(message: Message, host: str, book: Rulebook, sources: Sources, now_ns: int) -> Lines:
    """Return what the rules in force read of a message; `host` is whose topic it came on."""
    numbered = BOOT_PROPERTY in message.properties
    if numbered:
        lines = book.reader.read(message.payload)
    else:
        lines = Lines.of(foreign.read(message.payload, book.wanted, now_ns))
    if sources.lets_pass(lines.hosts(), host, now_ns, agent=numbered):
        return lines
    return Lines.of(Parsed(sources.join(lines.samples(), host, now_ns, agent=numbered), lines.bad))


def message_id(message: Message, host: str) -> str:
    """Return the id of a message of measurements: its host, boot and number, where its sender has any."""
    properties = message.properties
    return f"{host}/{properties.get(BOOT_PROPERTY, '-')}/{properties.get(SEQUENCE_PROPERTY, '-')}"
