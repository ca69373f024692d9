"""What rules hear of a metrics message: an agent's as columns, somebody else's joined with what is known already."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from virtpilot.lineblocks import Lines
from virtpilot.lineprotocol import Parsed
from virtpilot.model import Bus, Delivery, Message
from virtpilot.pipeline import foreign
from virtpilot.pipeline.counters import Counters
from virtpilot.pipeline.rulebook import Rulebook
from virtpilot.pipeline.timeline import Timeline
from virtpilot.rules.signals.sources import Sources
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

# So many hosts' metrics that wait are evaluated at once.
_AT_ONCE: Final = 4


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


def hear_all(
    messages: Iterable[Message], topics: Topics, book: Rulebook, sources: Sources, time: Timeline, counters: Counters
) -> list[tuple[Lines, str]]:
    """Return what the rules in force read of messages, each with its id; agents' times are compared with ours."""
    found = []
    for message in messages:
        host = topics.host_of(message.topic)
        lines = hear(message, host, book, sources, time.now_ns())
        if BOOT_PROPERTY in message.properties and lines:
            time.hear(host, lines.time_ns())
        counters.heard(message.topic, lines)
        found.append((lines, message_id(message, host)))
    return found


def message_id(message: Message, host: str) -> str:
    """Return the id of a message of measurements: its host, boot and number, where its sender has any."""
    properties = message.properties
    return f"{host}/{properties.get(BOOT_PROPERTY, '-')}/{properties.get(SEQUENCE_PROPERTY, '-')}"
