"""A night of a simulated fleet in which everything is killed by chance, and what must be true in the morning.

The agents, their journals, the controller and its state are real, each agent in a folder of its own; hosts and guests
are simulated, the bus is in memory, and time is virtual. A kill takes all that a process has in memory: at a named
point of an action's life cycle, at a message on its way, or between two steps.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.chaos.mortals import Fuse, Killed, MortalBus, WatchedHypervisor
from tests.chaos.troubles import DAWN_S, ENOUGH, HOSTS, LONGEST_NIGHT_S, NIGHT_S, scenario
from virtpilot.action import Migrate, SetKnob
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.command import Signer, Verifier
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.ledger import LeaseState
from virtpilot.clock import VirtualClock
from virtpilot.errors import CommandRefused, HypervisorError
from virtpilot.hypervisor import GuestState
from virtpilot.model import Outcome, Result
from virtpilot.pipeline import agent_assembly, assembly
from virtpilot.pipeline.agent import Agent, AgentTiming, last_will
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.cadence import CadenceOptions
from virtpilot.pipeline.controller import Controller
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.pipeline.spool import SpoolOptions
from virtpilot.pipeline.steering import SteeringOptions
from virtpilot.pipeline.timing import ControllerTiming
from virtpilot.planner.placement import Reserve
from virtpilot.simulator.fleet import Fleet
from virtpilot.topics import Topics

CLUSTER: Final = "night"
SHARES: Final = "cpu_shares"
_ENDINGS: Final = frozenset({Result.DONE, Result.FAILED, Result.REFUSED})
_RULES: Final = Path(__file__).with_name("rules.yaml")


class Night:
    """The fleet, its agents and controllers, and the chance that rules them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.clock = VirtualClock()
        self.broker = MemoryBroker(self.clock)
        self.fleet = Fleet(scenario(self.chance), self.clock.now_ns())
        self.key = Ed25519PrivateKey.generate()
        self.signer = Signer(self.key)
        self.asked: Counter[tuple[str, object]] = Counter()
        self.theirs = {guest.uuid: guest.cpu_shares for guest in self.fleet._world.scenario.guests}
        self._watch_boots()
        self.ear = self.broker.connect("ear")
        self.ear.subscribe(Topics(CLUSTER).commands("+"))
        self.ear.subscribe(Topics(CLUSTER).outcomes("+"))
        self.commanded: dict[str, SetKnob | Migrate] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.fuses = {name: Fuse() for name in (*HOSTS, "one", "two")}
        self.agents: dict[str, Agent] = {}
        self.controllers: dict[str, Controller] = {}
        self.back_at: dict[str, float] = {}
        self.boots = self.kills = 0
        self.twice: Counter[str] = Counter()
        self.longest_twice = 0
        self.second = 0.0
        for host in HOSTS:
            self.start_agent(host)
        self.start_controller("one")

    def _watch_boots(self) -> None:
        """Know when a guest starts anew: it has its own values then."""
        world = self.fleet._world
        start = world.start

        def started(guest: int, reason: int = 1) -> None:
            start(guest, reason)
            if reason == 1:
                spec = world.scenario.guests[guest]
                self.theirs[spec.uuid] = spec.cpu_shares

        world.start = started  # type: ignore[method-assign]

    def start_agent(self, host: str) -> None:
        """Start a host's agent on the journal that the last one left; it may be killed even then."""
        self.boots += 1
        boot, fuse, fleet = f"b{self.boots}", self.fuses[host], self.fleet
        parts = (fleet._world, fleet._knobs, fleet._migrations, fleet._faults)
        hypervisor = WatchedHypervisor(*parts, HOSTS.index(host))
        hypervisor.asked = self.asked
        will = last_will(Topics(CLUSTER), host, boot, self.clock.now_ns())
        agent = agent_assembly.agent(
            cluster=CLUSTER,
            host=host,
            boot=boot,
            bus=lambda: MortalBus(self.broker.connect(f"agent-{host}", will), fuse),
            clock=self.clock,
            hypervisor=hypervisor,
            tree=self.fleet.tree(host),
            cpus=frozenset(range(4)),
            folder=self.folder / host,
            verifier=Verifier({self.signer.key_id: self.key.public_key()}, host),
            migration_uri=self.fleet.migration_uri(host),
            timing=AgentTiming(tick_s=5.0),
            sampling=CadenceOptions(fast_guests=0),
            spool=SpoolOptions(fsync=False),
            caps=Caps(controller_grace_s=60.0, migration_timeout_s=60.0),
        )
        agent.executor._site.reached = lambda _point: fuse.burn()
        self.agents[host] = agent
        with self._mortal(host):
            agent.start()

    def start_controller(self, name: str) -> None:
        """Start a controller on what it had saved; another one beside it is a mistake that must do no harm."""
        fuse = self.fuses[name]
        made = assembly.controller(
            ControllerConfig(
                cluster=CLUSTER,
                rules=RuleOptions(paths=[str(_RULES)]),
                guards=GuardOptions(warm_up_s=5, guest_cooldown_s=5, guest_cooldown_down_s=5, foreign_backoff_s=20),
                reserve=Reserve(cpu_ratio=0.0, memory_bytes=0),
                timing=ControllerTiming(save_s=20.0),
                sampling=SteeringOptions(every_s=0),
            ),
            bus=lambda will: MortalBus(self.broker.connect(f"controller-{name}", will), fuse),
            clock=self.clock,
            signer=self.signer,
            folder=self.folder / name,
        )
        self.controllers[name] = made
        with self._mortal(name):
            made.start()

    def _mortal(self, name: str) -> _Mortal:
        return _Mortal(self, name)

    def kill(self, name: str) -> None:
        """Take away all that a process has in memory; what it wrote stays, its locks go, its last will is told."""
        self.kills += 1
        self.fuses[name].left = None
        self.back_at[name] = self.second + self.chance.choice([0, 1, 3, 10, 40])
        if name in self.agents:
            agent = self.agents.pop(name)
            agent.executor._journal._unlock()
            agent.bus.drop()  # type: ignore[attr-defined]
        elif name in self.controllers:
            controller = self.controllers.pop(name)
            if (file := controller._keeper._file) is not None:
                file.close()
            controller.bus.drop()  # type: ignore[attr-defined]

    def step(self, seconds: float = 1.0) -> None:
        """Let some time pass, and everybody who lives do what is due."""
        self.second += seconds
        self.fleet.advance(seconds)
        self.clock.advance(seconds)
        for name in [name for name, at_s in self.back_at.items() if at_s <= self.second]:
            del self.back_at[name]
            self.start_agent(name) if name in HOSTS else self.start_controller(name)
        for host, agent in list(self.agents.items()):
            if self.fleet.online(host):
                with self._mortal(host):
                    agent.step(0)
            else:
                self.kill(host)
        for name, controller in list(self.controllers.items()):
            with self._mortal(name):
                controller.step(0)
        self._hear()
        self._count_holders()

    def _count_holders(self) -> None:
        """Count for how long two agents hold a lease on one guest: until both have looked, no longer."""
        holders: Counter[str] = Counter()
        for host, agent in self.agents.items():
            reachable = self.fleet._faults.hypervisor_up(HOSTS.index(host))
            slow = self.fleet._faults.answer_s[HOSTS.index(host)] > 0
            if reachable and not slow:
                holders.update({lease.guest for lease in agent.executor.leases()})
        self.twice = Counter({guest: self.twice[guest] + 1 for guest, count in holders.items() if count > 1})
        self.longest_twice = max([self.longest_twice, *self.twice.values()])

    def _hear(self) -> None:
        topics = Topics(CLUSTER)
        while (delivery := self.ear.receive(0)) is not None:
            message = delivery.message
            if topics.family_of(message.topic) == "outcomes":
                outcome = msgspec.json.decode(message.payload, type=Outcome)
                self.outcomes[outcome.id] = outcome
            else:
                verifier = Verifier({self.signer.key_id: self.key.public_key()}, topics.host_of(message.topic))
                with suppress(CommandRefused):  # too late for anybody
                    command = verifier.open(message.payload, self.clock.now_ns())
                    if isinstance(command.action, SetKnob | Migrate):
                        self.commanded[command.id] = command.action
            delivery.ack()

    def mischief(self) -> None:
        """Do one thing to somebody, by chance."""
        acts: list[Callable[[], None]] = [
            *[self._light_a_fuse] * 3, *[self._move_by_hand] * 3, self._kill_somebody, self._set_by_hand,
            self._second_controller, self._break_the_broker,
        ]  # fmt: skip
        self.chance.choice(acts)()

    def _light_a_fuse(self) -> None:
        self.fuses[self.chance.choice([*HOSTS, *HOSTS, "one", "two"])].left = self.chance.randrange(12)

    def _kill_somebody(self) -> None:
        self.kill(self.chance.choice([*self.agents, *self.controllers] or ["one"]))

    def _second_controller(self) -> None:
        name = self.chance.choice(["one", "two"])
        if name not in self.controllers:
            self.back_at[name] = self.second

    def _break_the_broker(self) -> None:
        self.broker.down(forget=self.chance.random() < 0.5)
        for _second in range(self.chance.choice([0, 2, 8])):
            self.step()
        self.broker.up()

    def _set_by_hand(self) -> None:
        """A person sets an odd value; not one that a change cut short just now would be taken for."""
        guest = self.chance.choice(sorted(self.theirs))
        host = self.fleet.guest_host(guest) or ""
        agent = self.agents.get(host)
        if agent is None or any(
            lease.guest == guest and lease.state is not LeaseState.HELD for lease in agent.executor.leases()
        ):
            return
        value = 301 + 2 * self.chance.randrange(200)
        with suppress(HypervisorError):
            self.fleet.hypervisor(host).set_knob(guest, SHARES, value)
            self.theirs[guest] = value

    def _move_by_hand(self) -> None:
        """Somebody moves a guest, mostly one of which something is leased."""
        leased = sorted({lease.guest for agent in self.agents.values() for lease in agent.executor.leases()})
        guest = self.chance.choice((leased if self.chance.random() < 0.8 else []) or sorted(self.theirs))
        host, target = self.fleet.guest_host(guest), self.chance.choice(HOSTS)
        if host is not None and host != target:
            with suppress(HypervisorError):
                self.fleet.hypervisor(host).migrate(guest, self.fleet.migration_uri(target))

    def play(self) -> None:
        """Let the night pass, and then the time in which everything comes right by itself.

        A night in which chance left nearly all in peace, or nobody busy, goes on with what was lost: too little would
        have been tried.
        """
        while self.second < NIGHT_S or (self.tried() < ENOUGH and self.second < LONGEST_NIGHT_S):
            self._power_on(NIGHT_S)
            if self.chance.random() < 0.12:
                self.mischief()
            self.step()
        self.broker.up()
        for fuse in self.fuses.values():
            fuse.left = None
        for migration in list(self.fleet._migrations.active):
            # Somebody ends what will never end by itself, and what its agent has lost sight of.
            self.fleet._migrations.abort(migration, "operation aborted: migration job: canceled by client")
        for name in list(self.controllers):
            self.kill(name)
        self.back_at = {host: 0 for host in HOSTS if host not in self.agents}
        dawn = self.second
        while self.second < dawn + DAWN_S:
            self._power_on(dawn + 60)
            self.step(2.0)

    def tried(self) -> int:
        """Return how much of this there was at least: kills, commands, and changes asked of libvirt."""
        return min(self.kills, len(self.commanded), sum(self.asked.values()))

    def _power_on(self, at_s: float) -> None:
        """Somebody starts what a dead host has lost."""
        world = self.fleet._world
        for number, spec in enumerate(world.scenario.guests):
            if not world.running[number] and self.second > at_s:
                world.start(number)
            assert self.fleet.guest_host(spec.uuid) is not None

    def faults(self) -> list[str]:
        """Return what is not as it must be in the morning; empty when all is well."""
        found = [f"{host} has no agent" for host in HOSTS if host not in self.agents]
        for host, agent in self.agents.items():
            found += [f"{host} still holds {lease}" for lease in agent.executor.leases()]
            found += [f"{host} has not told {outcome}" for outcome in agent.executor.unpublished()]
        if self.longest_twice > 40:
            found.append(f"a lease had two holders for {self.longest_twice} seconds")
        return found + self._knobs_left() + self._done_twice() + self._told_twice()

    def _knobs_left(self) -> list[str]:
        found = []
        for guest, own in self.theirs.items():
            host = self.fleet.guest_host(guest) or ""
            connection = self.fleet.hypervisor(host)
            if connection.state(guest) is not GuestState.RUNNING:
                found.append(f"{guest} does not run")
            elif (live := connection.get_knob(guest, SHARES)) != own:
                found.append(f"{guest} on {host} has {live} shares, its own are {own}")
            elif connection.read_note(guest):
                found.append(f"{guest} still carries {connection.read_note(guest)}")
        return found

    def _done_twice(self) -> list[str]:
        """Compare what was asked of libvirt with what was commanded; a later change taken back sets a value anew."""
        wanted: Counter[tuple[str, object]] = Counter()
        for action in self.commanded.values():
            wanted[action.guest, action.value if isinstance(action, SetKnob) else "migrate"] += 1
        undone: Counter[str] = Counter()
        for outcome in self.outcomes.values():
            undone[outcome.guest] += outcome.result is Result.FAILED
        return [
            f"{what} was asked of {guest} {count} times, commanded {wanted[guest, what]} times"
            for (guest, what), count in self.asked.items()
            if (what == "migrate" or (isinstance(what, int) and what % 2 == 0 and what != 1024))
            and count > wanted[guest, what] + (undone[guest] if what != "migrate" else 0)
        ]

    def _told_twice(self) -> list[str]:
        """Each command comes to one end, as its agent tells; a controller that hears nothing takes it for failed."""
        endings: defaultdict[str, set[str]] = defaultdict(set)
        for outcome in self.outcomes.values():
            if outcome.result in _ENDINGS and not outcome.reason.startswith("no outcome from"):
                endings[outcome.command].add(outcome.result)
        return [f"{command} ended as {sorted(ends)}" for command, ends in endings.items() if len(ends) > 1]


class _Mortal:
    """A stretch of somebody's work in which it may be killed."""

    def __init__(self, night: Night, name: str) -> None:
        self._night, self._name = night, name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> bool:
        if kind is Killed:
            self._night.kill(self._name)
        return kind is Killed
