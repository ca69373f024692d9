"""A host in maintenance: emptied in an order that fits at every step, closed, opened again; signed orders only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from virtpilot.actuators.command import key_id
from virtpilot.actuators.order import Operators, sign
from virtpilot.clock import SECOND
from virtpilot.model import Command, Decision, Message, Mode
from virtpilot.orders import Emptying, Maintenance
from virtpilot.pipeline.demo import CLUSTER, Demo
from virtpilot.pipeline.maintenance import RULE, MaintenanceDesk
from virtpilot.pipeline.rulebook import LIBRARY, RuleOptions

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OPERATORS = Operators({key_id(KEY.public_key()): KEY.public_key()})
GUESTS = {"big": 5000, "middle": 3000, "small-1": 1000, "small-2": 1000, "there-2": 2000, "there-3": 4000}
SCENARIO = 'name = "three hosts"\n' + "".join(
    [f'[[hosts]]\nname = "host-{number}"\ncpus = 8\nmemory_mib = 16384\n' for number in (1, 2, 3)]
    + [
        f'[[guests]]\nname = "{name}"\nhost = "host-{name[-1] if "there" in name else 1}"\nvcpus = 1\n'
        f"memory_mib = {memory}\nmemory_used_mib = {memory - 200}.0\ncpu_cores = 0.3\n"
        for name, memory in GUESTS.items()
    ]
    + ['[[guests]]\nname = "off"\nhost = "host-1"\nvcpus = 1\nmemory_mib = 512\nrunning = false\n']
)


class Site:
    """A demo's whole virtpilot over three simulated hosts, and an operator."""

    def __init__(self, folder: Path) -> None:
        scenario = folder / "scenario.toml"
        scenario.write_text(SCENARIO)
        rules = RuleOptions(paths=[str(LIBRARY / "cpu.yaml")], modes={"*": Mode.OBSERVE})
        self.demo = Demo(folder / "demo", scenario, rules)
        self.demo.controller.pilot.maintenance._operators = OPERATORS
        self._bus = self.demo.broker.connect("operator")
        self._bus.subscribe(self.demo.topics.emptying("+"))
        self.told: dict[str, Emptying] = {}
        self.run(40)

    def order(self, host: str, *, on: bool) -> None:
        order = Maintenance(cluster=CLUSTER, host=host, on=on, by="ann", at_ns=self.demo.clock.now_ns(), reason="disks")
        payload = msgspec.json.encode(sign(order, KEY))
        self._bus.publish(Message(self.demo.topics.maintenance(host), payload, retain=True))

    def run(self, seconds: int) -> None:
        for _second in range(seconds):
            self.demo.step()
            while (delivery := self._bus.receive(0)) is not None:
                told = msgspec.json.decode(delivery.message.payload, type=Emptying)
                self.told[told.host] = told
                delivery.ack()

    def on(self, host: str) -> set[str]:
        return {guest.name for guest in self.demo.fleet.view().guests if guest.host == host}

    def records(self, kind: type[Decision] | type[Command]) -> list[Decision | Command]:
        found = (entry.record for entry in self.demo.controller.entries())
        return [one for one in found if isinstance(one, kind) and one.rule == RULE]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "demo").mkdir()
    made = Site(tmp_path)
    yield made
    made.demo.close()


def test_a_host_is_emptied_and_takes_guests_again(site: Site) -> None:
    site.order("host-1", on=True)
    site.run(2)
    assert set(site.told["host-1"].left) == {"big", "middle", "small-1", "small-2"}
    site.run(60)
    assert site.on("host-1") == {"off"}
    assert site.told["host-1"] == Emptying(
        host="host-1", on=True, by="ann", reason="disks", since_ns=site.told["host-1"].since_ns
    )
    first = site.records(Decision)[0]
    assert (first.subject.name if isinstance(first, Decision) else "") == "big"
    for host in site.demo.fleet.view().hosts:
        assert host.memory_used_bytes < 0.9 * host.memory_bytes
    # Nobody goes there, and nobody is moved without need.
    commands = site.records(Command)
    assert len(commands) == 4
    moved = {one.id: one.subject.id for one in site.records(Decision) if isinstance(one, Decision) and one.accepted}
    assert [moved.get(one.cause) for one in commands] == [one.action.guest for one in commands], "each by its own"  # type: ignore[union-attr]
    site.order("host-1", on=False)
    site.run(5)
    assert (site.told["host-1"].on, site.demo.controller.pilot.maintenance.closed()) == (False, {})


def test_on_a_new_connection_it_is_told_again_for_the_broker_may_have_lost_it(site: Site) -> None:
    site.order("host-1", on=True)
    site.run(60)
    told = site.told.pop("host-1")
    site.run(2)
    assert "host-1" not in site.told, "no news"
    site.demo.broker.down(forget=True)
    site.demo.broker.up()
    site.run(2)
    assert site.told["host-1"] == told


def test_of_each_guest_it_is_said_why_it_stays(site: Site) -> None:
    """All are refused by one guard, at one time, with one cause."""
    site.demo.controller.pilot.guards.stopped.why = "stopped by ann"
    site.order("host-1", on=True)
    site.run(2)
    said = {one.subject.name for one in site.records(Decision) if isinstance(one, Decision) and not one.accepted}
    assert said == {"big", "middle", "small-1", "small-2"}


def test_nobody_is_sent_to_a_host_in_maintenance(site: Site) -> None:
    """Two hosts at once: the third takes what fits, the rest stays and the reason is told."""
    site.order("host-1", on=True)
    site.order("host-2", on=True)
    site.run(60)
    assert site.on("host-1") | site.on("host-2") >= {"off"}
    targets = {one.action.target for one in site.records(Command) if isinstance(one, Command)}  # type: ignore[union-attr]
    assert targets == {"host-3"}
    left = {**site.told["host-1"].refused, **site.told["host-2"].refused}
    assert left
    assert all("in maintenance by ann" in why and "host-3" in why for why in left.values())


def test_a_restart_goes_on_with_it(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    site = Site(tmp_path)
    site.order("host-1", on=True)
    site.run(30)
    controller = site.demo.controller
    saved = controller.pilot.maintenance.orders
    fresh = MaintenanceDesk(OPERATORS, CLUSTER)
    fresh.restore(msgspec.to_builtins(dict(saved.items())))
    assert fresh.closed() == {"host-1": "in maintenance by ann"}
    site.demo.close()


def desk() -> MaintenanceDesk:
    return MaintenanceDesk(OPERATORS, CLUSTER)


def said(order: Maintenance, key: Ed25519PrivateKey = KEY) -> bytes:
    return msgspec.json.encode(sign(order, key))


ORDER = Maintenance(cluster=CLUSTER, host="host-1", on=True, by="ann", at_ns=1000 * SECOND)


def test_what_comes_again_or_late_changes_nothing() -> None:
    made, off = desk(), msgspec.structs.replace(ORDER, on=False, at_ns=1001 * SECOND)
    assert made.take("host-1", said(ORDER), 1000 * SECOND)
    assert not made.take("host-1", said(ORDER), 1000 * SECOND)
    assert made.take("host-1", said(off), 1001 * SECOND)
    assert not made.take("host-1", said(ORDER), 1002 * SECOND)
    assert made.closed() == {}


@pytest.mark.parametrize(
    ("host", "payload"),
    [
        ("host-2", said(ORDER)),
        ("host-1", said(msgspec.structs.replace(ORDER, cluster="other"))),
        ("host-1", said(msgspec.structs.replace(ORDER, at_ns=9000 * SECOND))),
        ("host-1", said(ORDER, Ed25519PrivateKey.generate())),
        ("host-1", msgspec.json.encode(ORDER)),
        ("host-1", b"\xff{"),
        ("host-1", b""),
        ("host-1", said(ORDER).replace(b"ann", b"bob")),
    ],
)
def test_only_what_an_operator_has_signed_for_this_host_counts(host: str, payload: bytes) -> None:
    made = desk()
    assert not made.take(host, payload, 1000 * SECOND)
    assert made.closed() == {}
