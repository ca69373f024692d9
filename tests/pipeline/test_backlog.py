"""Messages of metrics that wait are handled some at a time, and none of them is lost or handled out of turn."""

from __future__ import annotations

from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Delivery, Message, Sample
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.hearing import waiting
from virtpilot.rules.signals.sources import Sources
from virtpilot.topics import BOOT_PROPERTY, Topics

TOPICS = Topics("c")
AGENT = {BOOT_PROPERTY: "b"}


def metrics(host: str, properties: dict[str, str]) -> Message:
    line = encode_lines([Sample("host", {"host": host}, {"cpu_usage_ratio": 0.5}, 1)])
    return Message(TOPICS.metrics(host), line, properties)


def taken(messages: list[Message], sources: Sources) -> list[list[str]]:
    """What comes together, by the last part of each topic."""
    broker = MemoryBroker()
    bus, publisher = broker.connect("reads"), broker.connect("writes")
    for topic in (TOPICS.metrics("+"), TOPICS.status("+")):
        bus.subscribe(topic)
    for message in messages:
        publisher.publish(message)
    found: list[list[str]] = []
    delivery: Delivery | None = bus.receive(0)
    while delivery is not None:
        together, delivery = waiting(bus, TOPICS, delivery, sources)
        found.append([TOPICS.host_of(one.message.topic) for one in together])
        delivery = delivery or bus.receive(0)
    return found


def test_agents_metrics_come_four_at_a_time_and_others_alone_in_their_turn() -> None:
    status = Message(TOPICS.status("s"), b"{}", AGENT)
    sent = [*(metrics(f"h{at}", AGENT) for at in range(6)), status, metrics("h6", AGENT), metrics("t", {}), status]
    found = taken(sent, Sources(lambda _kind, _name: None))
    assert found == [["h0", "h1", "h2", "h3"], ["h4", "h5"], ["s"], ["h6"], ["t"], ["s"]]


def test_while_others_tell_of_subjects_too_messages_come_one_by_one() -> None:
    sources = Sources(lambda _kind, _name: None)
    sources.join([Sample("host", {"host": "h1"}, {"load1_count": 1}, 1)], "telegraf", 1, agent=False)
    assert taken([metrics(f"h{at}", AGENT) for at in range(3)], sources) == [["h0"], ["h1"], ["h2"]]
