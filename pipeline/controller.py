"""The controller, stepped.

    bus metrics/+ → wanted fields → evaluator → signals → bus signals/<rule>, alerts
    signals, nearness to thresholds → steering → bus sampling/<host>
    signals, outcomes → decider → pilot (planner, guards) → bus decisions, commands/<host>
    bus switch → the guards let nothing through; bus maintenance/+ → a host is emptied → bus emptying/<host>
    bus events/+ → the record log, where they explain something
    bus outcomes/+ → decider: effect measured, next rung → bus outcomes/<host>

State is saved before anything leaves (keeping.py), and on disk before a command does (outbox.py), so that a restart
neither forgets nor repeats one.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from virtpilot.actuators.command import Signer
from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.events import Event
from virtpilot.lineblocks import Lines
from virtpilot.model import Bus, Command, Decision, Delivery, HostStatus, Message, Outcome, Signal
from virtpilot.pipeline.alarms import Alarms
from virtpilot.pipeline.alerts import Alerts
from virtpilot.pipeline.books import Books
from virtpilot.pipeline.evaluations import Tracer
from virtpilot.pipeline.gathering import Gathering, Heard
from virtpilot.pipeline.hearing import Hearing, decoded
from virtpilot.pipeline.keeping import Entries, Keeper, Large, Part, Recent, Small
from virtpilot.pipeline.operations.page import OperationsPage
from virtpilot.pipeline.outbox import Outbox
from virtpilot.pipeline.pauses import Pauses
from virtpilot.pipeline.pilot import Pilot
from virtpilot.pipeline.presence import Heartbeat
from virtpilot.pipeline.records import Entry, Record
from virtpilot.pipeline.rulebook import REFUSED, Rulebook
from virtpilot.pipeline.state import StateLog
from virtpilot.pipeline.steering import Steering, SteeringOptions, sent
from virtpilot.pipeline.switch import Switch
from virtpilot.pipeline.timeline import Timeline
from virtpilot.pipeline.timing import ControllerTiming
from virtpilot.pipeline.upkeep import Upkeep
from virtpilot.pipeline.window_files import WindowFiles
from virtpilot.rules.language.records import RuleSet
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.saved import SavedHistory, Turn
from virtpilot.rules.signals.sources import Sources
from virtpilot.topics import Topics

_POLL_S: Final = 0.2
_DISK_POLL_S: Final = 0.01
# Where messages never cease to come, a slice of upkeep is done after so many.
_IN_A_ROW: Final = 8


class Controller:
    """Turns the stream into signals, decisions and commands."""

    def __init__(
        self,
        *,
        topics: Topics,
        bus: Bus,
        rulebook: Rulebook,
        pilot: Pilot,
        signer: Signer,
        operations: OperationsPage,
        alerts: Alerts,
        books: Books,
        tracer: Tracer,
        clock: Clock,
        timing: ControllerTiming,
        state: StateLog | None,
        windows: WindowFiles,
        sampling: SteeringOptions,
        switch: Switch,
    ) -> None:
        self.books, self.counters = books, books.counters
        self.tracer = tracer
        self.pilot, self.rulebook = pilot, rulebook
        self.sources = Sources(rulebook.row)
        self.steering = Steering(sampling)
        self.reload_asked = threading.Event()
        rulebook.on_reload, rulebook.on_look = self._on_reload, books.rules
        self._topics, self.bus = topics, bus
        self._operations, self._switch = operations, switch
        self._alerts, self._alarms = alerts, Alarms(topics.cluster)
        self._clock, self._time, self._timing = clock, Timeline(clock, self._on_moved), timing
        self._outbox = Outbox(bus, topics, signer)
        self._gathering = Gathering(seconds(timing.gather_s), clock)
        self._hearing = Hearing(bus, topics, rulebook, self.sources, self._time, self.counters, self._gathering)
        self._turns: Recent[Turn] = Recent()
        self._keeper = Keeper(state, self._parts(), clock, seconds(timing.save_s))
        self._windows, self._upkeep, self._pauses = windows, Upkeep(), Pauses()
        self._heartbeat = Heartbeat(bus, topics, pilot.epoch, clock)
        self._next_tick_ns = 0

    def entries(self) -> Iterable[Entry]:
        """Return the newest records, oldest first."""
        return self.books.records.entries()

    @property
    def save_failures(self) -> int:
        """How often the state could not be saved."""
        return self._keeper.failures + self._windows.failures

    def start(self) -> None:
        """Subscribe to what hosts say, and operators."""
        self.books.begin(self.pilot.epoch)
        self.books.rules(self.rulebook.looked())
        self.pilot.guards.stopped.why = self._switch.why
        topics = self._topics
        of_hosts = (topics.metrics("+"), topics.events("+"), topics.status("+"), topics.outcomes("+"))
        for topic in (topics.switch, *of_hosts, topics.verdicts, topics.maintenance("+")):
            self.bus.subscribe(topic)

    def restore(self, document: dict[str, Any], windows: Iterable[SavedHistory]) -> None:
        """Take up where an earlier run ended; its commands that were not sent go out now, if still in time."""
        self.rulebook.evaluator.restore(document["signals"], windows)
        self.sources.restored(self._time.now_ns())
        self.rulebook.evaluator.resume(document["turns"])
        self.pilot.decider.restore(document["decisions"])
        self.pilot.guards.restore(document["guards"])
        self.pilot.approvals.restore(document.get("approvals", {}))
        self.pilot.desk.restore(document.get("operations", {}))
        firing = msgspec.convert(list(document["alerts"].values()), list[Signal])
        self._alerts.resume(firing)
        self.rulebook.told_refused = any(signal.rule == REFUSED for signal in firing)
        self._alarms.resume(firing)
        for status in msgspec.convert(list(document["statuses"].values()), list[HostStatus]):
            self.pilot.fleet.on_status(status)
        self.pilot.maintenance.restore(document.get("maintenance", {}))
        self._outbox.restore(msgspec.convert(document["outbox"], dict[str, Command]))

    def _parts(self) -> dict[str, Part]:
        """Return all that a restart must not lose."""
        return {
            "epoch": Small(lambda: self.pilot.epoch),
            "signals": Large(self.rulebook.fragments),
            "turns": self._turns,
            "decisions": self.pilot.decider,
            "guards": self.pilot.guards,
            "approvals": self.pilot.approvals,
            "operations": self.pilot.desk,
            "alerts": self._alerts.part,
            "statuses": Entries(self.pilot.fleet.statuses, str),
            "maintenance": Entries(self.pilot.maintenance.orders, str),
            "outbox": self._outbox.part,
        }

    def _on_reload(self, ruleset: RuleSet, evaluator: Evaluator) -> None:
        self.pilot.reload(ruleset, evaluator)
        self._upkeep.drop()
        self._pauses.look_at_all_soon()
        self._keeper.save_all_soon()

    def _on_moved(self, by_ns: int) -> None:
        """Let all that is remembered move along with the hosts' clocks; what waits has the time of before."""
        self._settle(by_ns)
        self.rulebook.evaluator.move(by_ns)
        self.pilot.move(by_ns)
        self.sources.forget()
        self._keeper.save_all_soon()

    def step(self, timeout_s: float) -> None:
        """Do what is due, handle the messages that are there, waiting `timeout_s` seconds at most, and some upkeep.

        With 0 nothing is left for the next step: it waits for the disk.
        """
        if self._is_time():
            self._settle()
            self._next_tick_ns = self._clock.monotonic_ns() + seconds(self._timing.tick_s)
            self.tick(self._time.now_ns())
        delivery, handled = self.bus.receive(self._patience_s(timeout_s)), 0
        while delivery is not None:
            together, delivery = self._hearing.together(delivery) if timeout_s else ([delivery], None)
            self._handle(together, self._time.now_ns(), gather=timeout_s > 0)
            self._outbox.send(self._keeper, self._time.now_ns())
            handled += len(together)
            if delivery is None:
                if timeout_s and (handled >= _IN_A_ROW or self._is_time()):
                    break
                delivery = self.bus.receive(0)
        if not timeout_s or self._gathering.left_ns() == 0:
            self._settle()
        self._serve_requests(self._time.now_ns())
        self._upkeep.work()
        if not timeout_s:
            self._upkeep.finish()
            self._keeper.settle()
        self._outbox.send(self._keeper, self._time.now_ns())

    def _serve_requests(self, now_ns: int) -> None:
        """Answer what people ask; what they are told survives a restart."""
        while (asked := self._operations.next()) is not None:
            self._settle()
            answer = self._operations.answer(asked.request, now_ns)
            self._keeper.save()
            asked.tell(answer)

    def slept(self) -> None:
        """Take it that a tick just now would change nothing: the next is due after a whole span."""
        self._next_tick_ns = self._clock.monotonic_ns() + seconds(self._timing.tick_s)

    def _is_time(self) -> bool:
        return self._clock.monotonic_ns() >= self._next_tick_ns

    def _patience_s(self, timeout_s: float) -> float:
        """Return how long a message may be waited for, with what else there is to do."""
        if self._upkeep.waits():
            return 0.0
        left_ns = self._gathering.left_ns()
        timeout_s = timeout_s if left_ns is None else min(timeout_s, left_ns / SECOND)
        return min(timeout_s, _DISK_POLL_S) if self._outbox.waits() else timeout_s

    def tick(self, now_ns: int) -> None:
        """Notice what did not come, measure effects, decide; begin what may take longer."""
        self._heartbeat.tick()
        if self.reload_asked.is_set():
            self.reload_asked.clear()
            self.rulebook.reload()
        self.rulebook.watch(now_ns)
        news = [
            *self.rulebook.news(now_ns, self._topics.cluster),
            *self._alarms.news(now_ns, self._alarms.of_guards(self.pilot.guards, self.pilot.fleet)),
            *self.rulebook.evaluator.tick(now_ns),
        ]
        with self.bus.together():
            self._on_signals(news)
            self._advance(now_ns)
        self.pilot.maintenance.tell(self.bus, self._topics, self.pilot.fleet)
        self._log_signals(news)
        self._alerts.tick(now_ns)
        self.books.sync()
        self._keeper.tick()
        self._upkeep.begin("near misses", self.tracer.look(now_ns))
        self._upkeep.begin("steering", self._steer(now_ns))
        self._upkeep.begin("state", self._keeper.pieces())
        self._upkeep.begin("windows", self._windows.slices(self.rulebook.evaluator.world.windows))

    def _steer(self, now_ns: int) -> Iterator[None]:
        pilot, book = self.pilot, self.rulebook
        there = {status.host for status in pilot.fleet.statuses.values() if status.online}
        orders = self.steering.look(book.evaluator, book.ruleset.rules, pilot.decider.awaited(), there, now_ns)
        return sent(orders, self.bus, self._topics)

    def _handle(self, deliveries: Sequence[Delivery], now_ns: int, *, gather: bool) -> None:
        """Handle a message, or several of metrics."""
        self.counters.messages += len(deliveries)
        self._gathering.came(deliveries)
        message = deliveries[0].message
        family = self._topics.family_of(message.topic)
        if family == "metrics":
            for some in self._hearing.hear(deliveries, gather=gather):
                self._evaluate(some, self._time.now_ns())
            return
        if self._gathering.has(self._topics.host_of(message.topic)):
            self._settle()
        match family:
            case "status":
                self._on_status(message)
            case "outcomes":
                self._on_outcome(message, now_ns)
            case "events":
                self._on_event(message, now_ns)
            case "maintenance":
                self.pilot.maintenance.take(self._topics.host_of(message.topic), message.payload, now_ns)
            case "switch":
                self._on_switch(message, now_ns)
            case "verdicts":
                self._on_verdict(message, now_ns)
        self._done(deliveries)

    def _done(self, deliveries: Iterable[Delivery]) -> None:
        self.books.flush()
        with self.bus.together():
            for delivery in self._gathering.done(deliveries):
                self._outbox.acknowledge(delivery, self._keeper)

    def _on_switch(self, message: Message, now_ns: int) -> None:
        if self._switch.take(message.payload, now_ns):
            self.pilot.guards.stopped.why = self._switch.why
            self.books.noted("switch", {"stopped": self._switch.why})

    def _on_verdict(self, message: Message, now_ns: int) -> None:
        """Take a person's word, and do at once what it allows."""
        subject = self.pilot.approvals.take(message.payload, now_ns)
        self._advance(now_ns, [subject] if subject else [])

    def _settle(self, ahead_ns: int = 0) -> None:
        """Evaluate what waits, by a time that was so far behind."""
        for some in self._gathering.take():
            self._evaluate(some, self._time.now_ns() - ahead_ns)

    def _evaluate(self, heard: Sequence[Heard], now_ns: int) -> None:
        self.follow(self.rulebook.evaluator.feed_messages([(one.lines, one.id) for one in heard]), now_ns)
        self._done(one.delivery for one in heard)

    def take(self, heard: Sequence[tuple[Lines, str]]) -> None:
        """Take what the rules read of metrics messages, each with its id."""
        self.follow(self.rulebook.evaluator.feed_messages(heard), self._time.now_ns())

    def follow(self, signals: list[Signal], now_ns: int) -> None:
        """Do what follows from signals that have changed."""
        if signals:
            with self.bus.together():
                self._on_signals(signals)
                self._advance(now_ns, list(dict.fromkeys(signal.subject.id for signal in signals)))
            self._log_signals(signals)

    def _on_status(self, message: Message) -> None:
        status = decoded(message, HostStatus, self.counters)
        if status is not None and status.host == self._topics.host_of(message.topic):
            self.pilot.fleet.on_status(status)

    def _on_outcome(self, message: Message, now_ns: int) -> None:
        outcome = decoded(message, Outcome, self.counters)
        # Own measurements come back on the same topic; the record log knows them, as it knows duplicates.
        if outcome is None or not self.books.add(outcome):
            return
        self.pilot.on_outcome(outcome, now_ns)
        self._advance(now_ns, [outcome.guest])

    def _on_event(self, message: Message, now_ns: int) -> None:
        """Count an event and keep it where it explains what was measured or done; the guards heed what others did."""
        event = decoded(message, Event, self.counters)
        if event is None or event.host != self._topics.host_of(message.topic):
            return
        if self.counters.event(event):
            self.books.add(event)
        self.pilot.guards.foreign.heard(event, now_ns)
        self._keeper.save()

    def _on_signals(self, signals: list[Signal]) -> None:
        for signal in signals:
            # A signal that the record log knows was raised just before a crash: the restored state knows nothing of it.
            self.books.add(signal)
            self._turns.add(f"{signal.rule} {signal.subject.id}", self.rulebook.evaluator.turn(signal))
            self.pilot.decider.on_signal(signal)
            self._alerts.signal(signal)
            self._publish(self._topics.signals(signal.rule), signal)

    def _log_signals(self, signals: list[Signal]) -> None:
        """Write down what explains signals, once what follows from them is on its way."""
        if signals:
            self.tracer.signals(signals)
        self.books.flush()

    def _advance(self, now_ns: int, about: Collection[str] | None = None) -> None:
        """Measure effects and decide, for the subjects that have news or for all; nothing leaves before it is saved."""
        found = self.pilot.decider.measure(now_ns, self.rulebook.evaluator, about)
        effects = [outcome for outcome in found if self.books.add(outcome)]
        for outcome in effects:
            self.pilot.on_effect(outcome, now_ns)
        records = [record for record in self.pilot.decide(now_ns, about) if self.books.add(record)]
        self._outbox.add(record for record in records if isinstance(record, Command))
        self._keeper.save()
        for outcome in effects:
            self._publish(self._topics.outcomes(outcome.host), outcome)
        for record in records:
            if isinstance(record, Decision):
                self._publish(self._topics.decisions, record)
        for news in self.pilot.approvals.tell(self.bus, self._topics, now_ns):
            self.books.noted("approval", news)

    def _publish(self, topic: str, record: Record) -> None:
        self.bus.publish(Message(topic, msgspec.json.encode(record)))

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set, then close."""
        self.start()
        try:
            with self._pauses.short():
                while not stop.is_set():
                    self.step(_POLL_S)
                    self._pauses.tick(self._clock.monotonic_ns())
        finally:
            self.close()

    def close(self) -> None:
        """Save, send what is in hand and leave in order."""
        self._settle()
        self.books.flush()
        self._upkeep.drop()
        self._keeper.save()
        self._keeper.settle()
        self._outbox.send(self._keeper, self._time.now_ns())
        self._keeper.close()
        self._windows.close(self.rulebook.evaluator.world.windows)
        self._alerts.close(2.0)
        self.books.close()
        self._operations.close()
        self._heartbeat.stop()
        self.bus.close()
