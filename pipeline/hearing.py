"""What rules hear of a metrics message: an agent's as columns, somebody else's joined with what is known already."""

from __future__ import annotations

from virtpilot.lineblocks import Lines
from virtpilot.lineprotocol import Parsed
from virtpilot.model import Message
from virtpilot.pipeline import foreign
from virtpilot.pipeline.rulebook import Rulebook
from virtpilot.rules.signals.sources import Sources
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY


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
