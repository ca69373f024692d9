"""The shipped broker config on the real mosquitto: each role may publish and read its own topics and no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.deploy.broker_site import OBSERVER, DeployedMosquitto
from tests.services import until
from virtpilot.errors import BusError
from virtpilot.model import Message
from virtpilot.pipeline.bus.mqtt import MqttBus

pytestmark = pytest.mark.server

HOST, OTHER = "host-1", "host-2"
ROLES: Final = ("controller", "writer", "dashboards", "operator", "fleet")
USERS: Final = (HOST, *ROLES)
FAMILIES: Final = ("metrics", "events", "status", "outcomes", "commands", "stored", "sampling", "signals")
# Families of one topic for the cluster.
SINGLE: Final = ("decisions", "switch", "approvals", "verdicts", "controller")
NAMES: Final = (HOST, OTHER, *ROLES)
TOPICS: Final = (
    *(f"virtpilot/c1/{family}/{name}" for family in FAMILIES for name in NAMES),
    *(f"virtpilot/c1/{family}" for family in SINGLE),
    "virtpilot/c1/metrics/host-1/deeper",
    "virtpilot/c1/status",
    "virtpilot/host-1",
    "elsewhere/metrics/host-1",
    "host-1",
)
# Family → whose topics, for each user.
MAY_PUBLISH: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    HOST: dict.fromkeys(("metrics", "events", "status", "outcomes"), (HOST,)),
    "controller": dict.fromkeys(("outcomes", "commands", "sampling", "signals"), NAMES)
    | dict.fromkeys(("decisions", "approvals", "controller"), ()),
    "writer": {"stored": NAMES},
    "dashboards": {},
    "operator": dict.fromkeys(("switch", "verdicts"), ()),
    "fleet": dict.fromkeys(("metrics", "events", "status", "outcomes"), NAMES),
}
# For everybody to hear: a stop, and whether a controller lives.
HEARD: Final = dict.fromkeys(("switch", "controller"), tuple[str, ...]())
MAY_READ: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    HOST: dict.fromkeys(("commands", "stored", "sampling"), (HOST,)) | HEARD,
    "controller": dict.fromkeys(("metrics", "events", "status", "outcomes"), NAMES) | {"verdicts": ()} | HEARD,
    "writer": {"metrics": NAMES, "commands": ("writer",), "stored": ("writer",)} | HEARD,
    "dashboards": dict.fromkeys(("metrics", "events", "status", "outcomes", "signals"), NAMES)
    | dict.fromkeys(("decisions", "approvals"), ())
    | HEARD,
    "operator": {"status": NAMES, "approvals": ()} | HEARD,
    "fleet": dict.fromkeys(("commands", "stored", "sampling"), NAMES) | HEARD,
}
# The patterns' reading side, under a role's own name, where no host can be: nothing is ever published there. The denied
# lines make a role blind on the topics of such a host as well.
HARMLESS: Final = {
    *((role, f"virtpilot/c1/{family}/{role}") for role in ROLES for family in ("commands", "stored", "sampling")),
    *((role, f"virtpilot/c1/{family}/{role}") for role in ROLES for family in ("metrics", "events", "status")),
    *((role, f"virtpilot/c1/outcomes/{role}") for role in ROLES),
}
for _user in USERS:
    MAY_READ[_user]["controller"] = ()
Seen = set[tuple[str, str]]


def allowed(table: dict[str, dict[str, tuple[str, ...]]], user: str, topic: str) -> bool:
    """Return what a table says of a user and a topic."""
    parts = topic.split("/")
    if parts[:2] != ["virtpilot", "c1"] or parts[2] not in table[user]:
        return False
    return tuple(parts[3:]) in {(name,) for name in table[user][parts[2]]} or parts[2:] in [
        [family] for family in SINGLE
    ]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedMosquitto]:
    """The broker of deploy/mosquitto/mosquitto.conf."""
    server = DeployedMosquitto(tmp_path_factory.mktemp("broker"), "mosquitto.conf", list(USERS))
    server.start()
    yield server
    server.stop()


def connected(broker: DeployedMosquitto, user: str, *, tls: bool = False, suffix: str = "") -> MqttBus:
    """Return a user's session, once the broker has let it in."""
    bus = MqttBus(broker.options(user, tls=tls), f"test-{user}{suffix}")
    assert until(lambda: bus.generation > 0), f"{user} is not let in"
    return bus


def received_until(bus: MqttBus, end: bytes) -> set[str]:
    """Return the topics of all messages up to the one with the payload `end`, which must come."""
    topics: set[str] = set()
    while True:
        delivery = bus.receive(10.0)
        assert delivery is not None, "the last message did not come"
        delivery.ack()
        if delivery.message.payload == end:
            return topics
        topics.add(delivery.message.topic)


@pytest.fixture(scope="module")
def published(broker: DeployedMosquitto) -> Seen:
    """Who got through with which topic, seen by somebody who reads everything."""
    seen: Seen = set()
    with closing(connected(broker, OBSERVER, suffix="-eye")) as observer:
        observer.subscribe("#")
        for user in USERS:
            with closing(connected(broker, user)) as bus:
                futures = [bus.publish(Message(topic, user.encode())) for topic in TOPICS]
                accepted = {topic for topic, future in zip(TOPICS, futures, strict=True) if not future.exception(10)}
            observer.publish(Message("end", f"end {user}".encode())).result(10)
            came = received_until(observer, f"end {user}".encode())
            assert came == accepted, "the broker says the same to the sender"
            seen |= {(user, topic) for topic in came}
    return seen


@pytest.fixture(scope="module")
def read(broker: DeployedMosquitto) -> Seen:
    """Who was given which topic, having subscribed to everything and to each topic by name."""
    seen: Seen = set()
    own_end = {HOST: "stored/host-1", "fleet": "stored/x", "operator": "status/x"}
    with closing(connected(broker, OBSERVER, suffix="-hand")) as hand:
        for user in USERS:
            with closing(connected(broker, user, suffix="-reader")) as bus:
                for pattern in ("#", "virtpilot/#", *TOPICS):
                    bus.subscribe(pattern)
                for topic in TOPICS:
                    hand.publish(Message(topic, b"x")).result(10)
                end = f"virtpilot/c1/{own_end.get(user, 'metrics/x')}"
                hand.publish(Message(end, b"end")).result(10)
                seen |= {(user, topic) for topic in received_until(bus, b"end")}
    return seen


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("user", USERS)
def test_each_role_publishes_its_own_topics_only(user: str, topic: str, published: Seen) -> None:
    assert ((user, topic) in published) == allowed(MAY_PUBLISH, user, topic)


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("user", USERS)
def test_each_role_is_given_its_own_topics_only(user: str, topic: str, read: Seen) -> None:
    if (user, topic) not in HARMLESS:
        assert ((user, topic) in read) == allowed(MAY_READ, user, topic)


def test_a_retained_message_for_another_host_is_not_given(broker: DeployedMosquitto) -> None:
    with closing(connected(broker, OBSERVER)) as hand, closing(connected(broker, HOST)) as agent:
        hand.publish(Message("virtpilot/c1/commands/host-2", b"for host-2", retain=True)).result(10)
        agent.subscribe("virtpilot/c1/commands/+")
        hand.publish(Message("virtpilot/c1/commands/host-1", b"end")).result(10)
        assert received_until(agent, b"end") == set()
        hand.publish(Message("virtpilot/c1/commands/host-2", b"", retain=True)).result(10)


def test_writers_share_the_metrics_at_qos_1(broker: DeployedMosquitto) -> None:
    """Each message goes to one of two writers, and comes again where it was not acknowledged."""
    one, two = (connected(broker, "writer", suffix=f"-{number}") for number in (1, 2))
    with closing(connected(broker, HOST)) as agent, closing(one), closing(two):
        for bus in (one, two):
            bus.subscribe("virtpilot/c2/metrics/+", group="writers")
        for number in range(20):
            agent.publish(Message("virtpilot/c2/metrics/host-1", b"%d" % number)).result(10)
        got = {one: set[bytes](), two: set[bytes]()}

        def take() -> bool:
            for bus, payloads in got.items():
                delivery = bus.receive(0.05)
                if delivery is not None:
                    payloads.add(delivery.message.payload)
                    delivery.ack()
            return sum(map(len, got.values())) == 20

        assert until(take)
        assert got[one]
        assert got[two]
        assert not got[one] & got[two]


def test_a_host_comes_in_over_tls(broker: DeployedMosquitto) -> None:
    with closing(connected(broker, HOST, tls=True)) as bus:
        bus.publish(Message("virtpilot/c1/metrics/host-1", b"m")).result(10)


@pytest.mark.parametrize(("user", "password"), [(None, None), (HOST, "wrong"), ("nobody", "x"), (HOST, None)])
def test_who_is_not_known_is_not_let_in(broker: DeployedMosquitto, user: str | None, password: str | None) -> None:
    answers: list[str] = []
    client = Client(CallbackAPIVersion.VERSION2, "stranger", protocol=MQTTProtocolVersion.MQTTv5)
    if user is not None:
        client.username_pw_set(user, password)
    client.on_connect = lambda _client, _data, _flags, reason, _properties: answers.append(str(reason))
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        assert until(lambda: answers)
    finally:
        client.loop_stop()
        client.disconnect()
    assert answers[0] == "Not authorized"


def test_sessions_and_retained_messages_outlive_a_restart(tmp_path: Path) -> None:
    """The compose file's broker keeps what waits for a writer that is away."""
    server = DeployedMosquitto(tmp_path / "broker", "compose.conf", list(USERS))
    server.start()
    try:
        with closing(connected(server, "writer")) as writer:
            writer.subscribe("virtpilot/c1/metrics/+", group="writers")
        with closing(connected(server, HOST)) as agent:
            agent.publish(Message("virtpilot/c1/metrics/host-1", b"kept")).result(10)
            agent.publish(Message("virtpilot/c1/status/host-1", b"there", retain=True)).result(10)
        server.stop()
        server.start()
        with closing(connected(server, "writer")) as writer:
            delivery = writer.receive(10)
            assert delivery is not None
            assert delivery.message.payload == b"kept"
            delivery.ack()
        with closing(connected(server, "controller")) as controller:
            controller.subscribe("virtpilot/c1/status/+")
            status = controller.receive(10)
            assert status is not None
            assert status.message.payload == b"there"
            status.ack()
    finally:
        server.stop()


def test_a_refused_publish_is_an_error_at_the_sender(broker: DeployedMosquitto) -> None:
    with closing(connected(broker, "dashboards")) as bus, pytest.raises(BusError, match="Not authorized"):
        bus.publish(Message("virtpilot/c1/commands/host-1", b"x")).result(10)
