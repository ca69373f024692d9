"""MQTT topic filters: which topics a subscription takes, how a group is written, and what can be published."""

from __future__ import annotations

from typing import Final

from virtpilot.model import Message

MAX_PAYLOAD_BYTES: Final = 1 << 20
_MAX_BYTES: Final = 65_535


def check_filter(pattern: str) -> str:
    """Return `pattern` when it is a topic filter of MQTT 5 section 4.7; raises ValueError."""
    levels = pattern.split("/")
    if not pattern or "\0" in pattern or len(pattern.encode()) > _MAX_BYTES:
        raise ValueError(f"{pattern[:100]!r} is no topic filter: empty, too long or with a NUL")
    for position, level in enumerate(levels):
        if "#" in level and (level != "#" or position != len(levels) - 1):
            raise ValueError(f"{pattern!r}: '#' must be the whole last level")
        if "+" in level and level != "+":
            raise ValueError(f"{pattern!r}: '+' must be a whole level")
    return pattern


def check_message(message: Message) -> str:
    """Return why a message cannot be published, "" where it can."""
    topic = message.topic
    if not topic or any(char in topic for char in "+#\0") or len(topic.encode()) > _MAX_BYTES:
        return f"{topic[:100]!r} cannot be published on: empty, too long, or with a wildcard or NUL"
    if len(message.payload) > MAX_PAYLOAD_BYTES:
        return f"{len(message.payload)} bytes on {topic}: {MAX_PAYLOAD_BYTES} at most"
    return ""


def packet_bytes(message: Message) -> int:
    """Return how large a message is on its way, a little more rather than less."""
    properties = sum(5 + len(key.encode()) + len(value.encode()) for key, value in message.properties.items())
    return 32 + len(message.topic.encode()) + properties + len(message.payload)


def matches(pattern: str, topic: str) -> bool:
    """Return whether the filter takes the topic; wildcards never take topics that begin with `$`."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


def shared(pattern: str, group: str | None) -> str:
    """Return the filter as a broker wants it: `$share/<group>/<pattern>` for a group."""
    check_filter(pattern)
    if group is None:
        return pattern
    if not group or any(char in group for char in "/+#"):
        raise ValueError(f"{group!r} cannot name a group: not empty, no '/', '+' or '#'")
    return f"$share/{group}/{pattern}"
