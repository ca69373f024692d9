"""The agent of one host, stepped.

    libvirt, /proc → collector → uplink (spool → bus metrics/<host>)     trimmed by bus stored/<host>
    libvirt's events → event desk → bus events/<host>
    bus controller → attention: leases end when no controller lives
    bus sampling/<host> → cadence: some guests more often, some less, for a while
    bus switch → nothing new is begun, for as long as it says so
    bus commands/<host> → verifier → executor (journal, knobs, migration) → bus outcomes/<host>

Metrics need no controller: a lost broker fills the spool. Leases end by themselves, at their end or when the controller
was lost for too long.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Annotated, Final

import msgspec
import structlog

from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.collectors.collector import HostCollector
from virtpilot.errors import HypervisorError
from virtpilot.hypervisor import EventSource, HostFacts, Hypervisor
from virtpilot.lineencoding import encode_lines
from virtpilot.model import Bus, Delivery, HostStatus, Message, Outcome, Sample, Stored
from virtpilot.pipeline.cadence import Cadence, CadenceOptions
from virtpilot.pipeline.command_desk import CommandDesk
from virtpilot.pipeline.event_desk import EventDesk
from virtpilot.pipeline.lines import is_subject
from virtpilot.pipeline.uplink import Uplink
from virtpilot.topics import Topics

log = structlog.get_logger(__name__)

_POLL_S: Final = 0.2


class AgentTiming(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often the agent measures, and how long that may take."""

    tick_s: Annotated[float, msgspec.Meta(description="Seconds between two measurements.", ge=0.2, le=3600)] = 10.0
    budget_ratio: Annotated[
        float,
        msgspec.Meta(description="The share of a tick after which what can wait is left out of it.", gt=0, le=1),
    ] = 0.5
    settle_s: Annotated[
        float,
        msgspec.Meta(
            description="On a new connection commands wait so long for what the kill switch says.", ge=0, le=10
        ),
    ] = 0.5

    @property
    def settle_ns(self) -> int:
        """How long commands wait on a new connection."""
        return seconds(self.settle_s)

    @property
    def budget_s(self) -> float:
        """How long one measurement may take."""
        return self.tick_s * self.budget_ratio


class Agent:
    """Collects, publishes, executes commands and keeps leases for one host."""

    def __init__(
        self,
        *,
        host: str,
        boot: str,
        topics: Topics,
        bus: Bus,
        uplink: Uplink,
        collector: HostCollector,
        hypervisor: Hypervisor,
        commands: CommandDesk,
        clock: Clock,
        migration_uri: str,
        timing: AgentTiming,
        sampling: CadenceOptions,
    ) -> None:
        self.host = host
        self.uplink = uplink
        self.collector = collector
        self.commands = commands
        source = hypervisor if isinstance(hypervisor, EventSource) else None
        self.attention = attention = commands.attention
        self.executor = executor = attention.executor
        told = attention.told
        self.desk = EventDesk(bus=bus, topics=topics, host=host, source=source, moves=executor, told=told)
        self.cadence = Cadence(host, sampling, timing.tick_s)
        self.samples = self.ticks = 0
        self._boot = boot
        self._topics = topics
        self.bus = bus
        self._hypervisor = hypervisor
        self._clock = clock
        self._migration_uri = migration_uri
        self._tick_ns = seconds(timing.tick_s)
        self._next_tick_ns = self._announced = 0
        self._facts: HostFacts | None = None
        self._publishing: dict[str, Future[None]] = {}

    def start(self) -> None:
        """Subscribe and put right what an earlier run left: leases that have ended, operations cut short."""
        # Before the commands: what is retained there comes with the subscription.
        self.bus.subscribe(self._topics.switch)
        self.bus.subscribe(self._topics.commands(self.host))
        self.bus.subscribe(self._topics.stored(self.host))
        self.bus.subscribe(self._topics.sampling(self.host))
        self.bus.subscribe(self._topics.controller)
        now_ns = self._clock.now_ns()
        self._own(self.executor.recover(now_ns), now_ns)
        self._next_tick_ns = self._clock.monotonic_ns()

    def step(self, timeout_s: float) -> None:
        """Do what is due, then wait for a message for `timeout_s` seconds at most."""
        now_ns = self._clock.now_ns()
        if self._clock.monotonic_ns() >= self._next_tick_ns:
            self._schedule()
            self.tick(now_ns)
        elif self.cadence.due(self._clock.monotonic_ns()):
            self._look_closer(now_ns)
        self.attention.tick()
        self._own(self.executor.poll(now_ns), now_ns)
        self._take_events(now_ns)
        self.uplink.tick()
        self.commands.audit.log.sync()
        self._announce(now_ns)
        self._publish_outcomes()
        delivery = self.bus.receive(timeout_s)
        while delivery is not None:
            self._handle(delivery, self._clock.now_ns())
            delivery = self.bus.receive(0)
        self.desk.own(self.commands.due(self.bus.generation), self._clock.now_ns())
        self._take_events(self._clock.now_ns())
        self._publish_outcomes()

    def _schedule(self) -> None:
        """Keep the beat; ticks that were missed are left out, not made up for."""
        behind = self._clock.monotonic_ns() - self._next_tick_ns
        self._next_tick_ns += (behind // self._tick_ns + 1) * self._tick_ns

    def tick(self, now_ns: int) -> None:
        """Measure once and hand the samples to the uplink."""
        self.cadence.expire(self._clock.monotonic_ns())
        self.cadence.beat()
        self._send(self.cadence.told(self._measure(now_ns, None)), now_ns)
        self.ticks += 1
        self.cadence.sampled(self._clock.monotonic_ns(), 0.0)

    def _look_closer(self, now_ns: int) -> None:
        """Measure the guests that are sampled faster, between two ticks."""
        began_ns = self._clock.monotonic_ns()
        self._send(self._measure(now_ns, self.cadence.fast), now_ns)
        ended_ns = self._clock.monotonic_ns()
        self.cadence.sampled(ended_ns, (ended_ns - began_ns) / SECOND)

    def _measure(self, now_ns: int, only: frozenset[str] | None) -> list[Sample]:
        samples = self.collector.collect(now_ns, only)
        for sample in samples:
            self._add_own(sample)
        # What an event told of is no news in the samples.
        self._take_events(now_ns)
        self.desk.see(samples)
        self.attention.see(samples, whole=only is None)
        return samples

    def _send(self, samples: list[Sample], now_ns: int) -> None:
        if samples:
            self.samples += len(samples)
            samples.sort(key=is_subject)
            lines = encode_lines(samples)
            samples.clear()  # memory for the messages
            self.uplink.send(lines, now_ns)

    def _add_own(self, sample: Sample) -> None:
        """Add to a sample what the agent itself knows of the host or the guest."""
        match sample.measurement:
            case "host":
                counts = {"guests_fast_count": len(self.cadence.fast), "guests_calm_count": len(self.cadence.calm)}
                sample.fields.update(self.uplink.fields() | counts | self.desk.fields(sample.time_ns))
            case "vm":
                sample.fields["sample_interval_seconds"] = self.cadence.interval_s(sample.tags["vm"])

    def _take_events(self, now_ns: int) -> None:
        """Pass on what has happened meanwhile, and the statistics of the jobs that run."""
        self._send(self.desk.collect(), now_ns)
        for told, command in self.executor.news():
            self.desk.tell(told, command)
        self.desk.flush(now_ns)

    def _handle(self, delivery: Delivery, now_ns: int) -> None:
        message = delivery.message
        match self._topics.family_of(message.topic):
            case "stored":
                self._on_stored(message)
            case "switch":
                if self.commands.said(message.payload):
                    # Say so: who has stopped all waits for it.
                    self._announced = 0
            case "commands":
                self.desk.own(self.commands.take(delivery, self.bus.generation), now_ns)
                return
            case "controller":
                self.attention.on_controller(message)
            case "sampling":
                self.cadence.take(message.payload, now_ns, self._clock.monotonic_ns())
        delivery.ack()

    def _on_stored(self, message: Message) -> None:
        try:
            report = msgspec.json.decode(message.payload, type=Stored)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("report of stored samples is not readable", error=str(error))
            return
        if report.host == self.host:
            self.uplink.on_stored(report)

    def _own(self, outcomes: list[Outcome], now_ns: int) -> None:
        """Take what the executor did by itself: leases that ended, operations that came to their end."""
        self.commands.audit.outcomes(outcomes)
        self.desk.own(outcomes, now_ns)

    def _announce(self, now_ns: int) -> None:
        """Say that this host is here after each new connection: the last will may have said otherwise."""
        generation = self.bus.generation
        if generation in (0, self._announced):
            return
        facts = self._read_facts()
        if facts is not None:
            self._announced = generation
            self.bus.publish(self._status(facts, now_ns))

    def _read_facts(self) -> HostFacts | None:
        if self._facts is None:
            try:
                self._facts = self._hypervisor.facts()
            except HypervisorError as error:
                log.info("hypervisor not there yet", error=str(error))
        return self._facts

    def _status(self, facts: HostFacts, now_ns: int) -> Message:
        status = HostStatus(
            host=self.host,
            online=True,
            at_ns=now_ns,
            boot=self._boot,
            cpus=facts.cpus,
            memory_bytes=facts.memory_bytes,
            migration_uri=self._migration_uri,
            driver=facts.driver,
            versions=facts.versions,
            stopped=self.commands.stopped,
        )
        return Message(self._topics.status(self.host), msgspec.json.encode(status), retain=True)

    def _publish_outcomes(self) -> None:
        """Send each outcome until the broker has it; the journal remembers which ones it has not."""
        for outcome_id, future in list(self._publishing.items()):
            if future.done():
                del self._publishing[outcome_id]
                if future.exception() is None:
                    self.executor.published(outcome_id)
        if self.bus.generation == 0:
            return
        for outcome in self.executor.unpublished():
            if outcome.id not in self._publishing:
                self._publishing[outcome.id] = self.bus.publish(self._outcome(outcome))

    def _outcome(self, outcome: Outcome) -> Message:
        log.info("outcome", action=outcome.action, result=outcome.result, guest=outcome.guest, reason=outcome.reason)
        return Message(self._topics.outcomes(self.host), msgspec.json.encode(outcome))

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set, then close."""
        self.start()
        try:
            while not stop.is_set():
                now_ns = self._clock.monotonic_ns()
                until_tick = (self._next_tick_ns - now_ns) / SECOND
                self.step(min(max(until_tick, 0.0), self.cadence.wait_s(now_ns), _POLL_S))
        finally:
            self.close()

    def close(self) -> None:
        """Say goodbye in order; what is not sent stays in the spool and the journal."""
        now_ns = self._clock.now_ns()
        self._take_events(now_ns)
        self._publish_outcomes()
        gone = HostStatus(host=self.host, online=False, at_ns=now_ns, boot=self._boot)
        self.bus.publish(Message(self._topics.status(self.host), msgspec.json.encode(gone), retain=True))
        self.bus.close()
        self.uplink.close()
        self.executor.close()
        self.commands.audit.close(now_ns)
        self._hypervisor.close()


def last_will(topics: Topics, host: str, boot: str, now_ns: int) -> Message:
    """Return what the broker says for a host whose agent vanished."""
    status = HostStatus(host=host, online=False, at_ns=now_ns, boot=boot)
    return Message(topics.status(host), msgspec.json.encode(status), retain=True)
