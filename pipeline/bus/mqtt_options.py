"""How to reach an MQTT 5 broker: the options, and a paho client made of them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from virtpilot.errors import ConfigError, Problem
from virtpilot.pipeline.settings import read_secret

if TYPE_CHECKING:
    import ssl

    from paho.mqtt.client import Client

    from virtpilot.pipeline.bus.sender import Sender


class MqttOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker and how to speak to it."""

    host: Annotated[str, Meta(description="The broker's name or address.", min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(description="The broker's port; with TLS usually 8883.", ge=1, le=65535)] = 1883
    tls: Annotated[bool, Meta(description="Speak TLS and check the broker's certificate.")] = False
    ca_file: Annotated[str, Meta(description="Authorities to trust, PEM; empty: those of the system.")] = ""
    cert_file: Annotated[str, Meta(description="This client's certificate, PEM; empty: none.")] = ""
    key_file: Annotated[str, Meta(description="The key of that certificate, PEM.")] = ""
    username: Annotated[str, Meta(description="User name; empty: none.")] = ""
    password_file: Annotated[str, Meta(description="A file that holds the password alone.")] = ""
    keepalive_s: Annotated[int, Meta(description="Seconds of silence after which a ping is due.", ge=5, le=3600)] = 20
    session_expiry_s: Annotated[
        int,
        Meta(
            description="Seconds that the broker keeps the session of a client that is gone; a dead writer's share of "
            "the metrics goes there for so long.",
            ge=0,
            le=0xFFFFFFFF,
        ),
    ] = 600
    receive_maximum: Annotated[
        int, Meta(description="Messages that may be here unacknowledged: the broker waits beyond.", ge=1, le=65_535)
    ] = 200
    max_inflight: Annotated[
        int,
        Meta(description="Messages that may be at the broker unacknowledged.", ge=1, le=65_535),
    ] = 20
    max_outgoing: Annotated[
        int, Meta(description="Messages that may wait for the broker here; more are refused.", ge=1, le=60_000)
    ] = 10_000
    connect_timeout_s: Annotated[float, Meta(description="Seconds for a connection to come about.", gt=0, le=600)] = 5.0
    reconnect_min_s: Annotated[float, Meta(description="Seconds before the first new try.", gt=0, le=600)] = 0.5
    reconnect_max_s: Annotated[float, Meta(description="Seconds between tries at most.", gt=0, le=3600)] = 30.0
    takeover_wait_s: Annotated[
        float,
        Meta(
            description="Seconds to stay away when the broker says that another client has come by the same name: "
            "two processes must not throw each other out at full speed.",
            gt=0,
            le=3600,
        ),
    ] = 60.0
    close_timeout_s: Annotated[float, Meta(description="Seconds to send the rest at the end.", gt=0, le=60)] = 2.0


def new_client(options: MqttOptions, client_id: str) -> Sender:
    """Return a paho client that is not connected yet; raises ConfigError for keys or secrets that are not there."""
    # Not before now: who only has these options, or checks them, has no use for it.
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    from virtpilot.pipeline.bus.sender import Sender

    client = Sender(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=MQTTProtocolVersion.MQTTv5,
        manual_ack=True,
        reconnect_on_failure=False,
    )
    client.connect_timeout = options.connect_timeout_s
    client.max_inflight_messages = options.max_inflight
    client.max_queued_messages = options.max_outgoing
    client.on_socket_open = _without_delay
    if options.username:
        password = Path(options.password_file) if options.password_file else None
        client.username_pw_set(options.username, read_secret(password, None, name="password_file"))
    if options.tls:
        client.tls_set_context(_tls(options))
    return client


def _without_delay(_client: Client, _data: Any, connection: Any) -> None:
    """Let small packets leave at once: by default each waits for the acknowledgement of the one before, up to 40 ms."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _tls(options: MqttOptions) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=options.ca_file or None)
        if options.cert_file:
            context.load_cert_chain(options.cert_file, options.key_file or None)
    except (OSError, ssl.SSLError) as error:
        files = " ".join(filter(None, (options.ca_file, options.cert_file, options.key_file)))
        raise ConfigError([Problem(files, 0, 0, f"TLS: {error}")]) from error
    return context
