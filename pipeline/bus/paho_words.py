"""Messages and options in paho's own words."""

from __future__ import annotations

from typing import Any

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from virtpilot.model import Message
from virtpilot.pipeline.bus.filters import MAX_PAYLOAD_BYTES
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.bus.packets import MAX_PACKET_BYTES


def session(options: MqttOptions) -> dict[str, Any]:
    """Return what is asked of the broker with each connection."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's own gap
    properties.SessionExpiryInterval = options.session_expiry_s
    properties.ReceiveMaximum = options.receive_maximum
    # What is larger the broker keeps to itself.
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return {"clean_start": False, "properties": properties}


def properties_of(message: Message, packet: int) -> Properties | None:
    """Return a message's properties for a packet of paho's, None where it has none."""
    if not message.properties and message.expiry_s is None:
        return None
    properties = Properties(packet)  # type: ignore[no-untyped-call] # paho's own gap
    if message.properties:
        properties.UserProperty = list(message.properties.items())
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    return properties


def message_of(received: MQTTMessage) -> Message | None:
    """Return what came as a message, None where it is too large or its topic is no text."""
    if len(received.payload) > MAX_PAYLOAD_BYTES:
        return None
    try:
        topic = received.topic
    except UnicodeDecodeError:
        return None
    given = received.properties
    return Message(
        topic,
        bytes(received.payload),
        properties=dict(getattr(given, "UserProperty", ())),
        retain=bool(received.retain),
        expiry_s=getattr(given, "MessageExpiryInterval", None),
    )
