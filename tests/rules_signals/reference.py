"""The state machine sample by sample, one rule and one subject at a time, as plainly as it can be written.

Beside it the streams on which it and the columnar evaluator are compared.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
from hypothesis import strategies as st

from virtpilot.clock import SECOND, seconds
from virtpilot.model import Kind, Sample, Signal, SignalState
from virtpilot.rules.language import NoData, Rule, RuleSet, load
from virtpilot.rules.signals.tolerance import Tolerance

START_NS: Final = 1_700_000_000 * SECOND
INACTIVE, PENDING = SignalState.INACTIVE, SignalState.PENDING
FIRING, CLEARING = SignalState.FIRING, SignalState.CLEARING

RULES: Final = """
virtpilot: 1
rules:
  - {name: at-once, on: vm, when: cpu_steal_ratio > 50%}
  - {name: waits, on: vm, when: cpu_steal_ratio > 50%, for: 30s, clear_for: 20s}
  - {name: hysteresis, on: vm, when: cpu_steal_ratio > 50%, for: 10s, clear: cpu_steal_ratio < 20%, clear_for: 30s}
  - {name: other-clear, on: vm, when: cpu_steal_ratio > 50%, clear: cpu_usage_ratio < 20%, clear_for: 20s}
  - {name: clears, on: vm, when: cpu_steal_ratio > 50%, for: 20s, clear_for: 20s, no_data: clear}
  - {name: clears-other, on: vm, when: cpu_steal_ratio > 50%, clear: cpu_usage_ratio < 20%, no_data: clear}
  - {name: fires, on: vm, when: cpu_steal_ratio > 50%, for: 20s, clear_for: 20s, no_data: fire}
  - {name: with-host, on: vm, when: cpu_steal_ratio > 20% and host.cpu_usage_ratio > 50%, for: 20s}
  - {name: gold, on: vm, where: tags.tier == "gold", when: cpu_steal_ratio > 20%, for: 10s, clear_for: 10s}
  - {name: gold-fires, on: vm, where: tags.tier == "gold", when: cpu_steal_ratio > 50%, for: 10s, no_data: fire}
  - {name: big, on: vm, where: cpu_usage_ratio > 20%, when: cpu_steal_ratio > 20%, clear_for: 20s}
  - {name: big-clears, on: vm, where: cpu_usage_ratio > 20%, when: cpu_steal_ratio > 20%, no_data: clear}
  - {name: busy, on: host, when: cpu_usage_ratio > 50%, for: 20s, clear_for: 20s, no_data: fire}
"""


def ruleset(text: str) -> RuleSet:
    """Return rules as the language reads them."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_text(text, encoding="utf-8")
        return load([file])


Values = Mapping[str, float]
Test = Callable[[Values], bool | None]


def _over(field: str, sign: Callable[[float, float], bool], limit: float) -> Test:
    def test(values: Values) -> bool | None:
        return None if field not in values else sign(values[field], limit)

    return test


def _both(first: Test, second: Test) -> Test:
    def test(values: Values) -> bool | None:
        found = [first(values), second(values)]
        return False if False in found else None if None in found else True

    return test


STEAL_50, STEAL_20 = _over("cpu_steal_ratio", operator.gt, 0.5), _over("cpu_steal_ratio", operator.gt, 0.2)
USAGE_50, USAGE_20 = _over("cpu_usage_ratio", operator.gt, 0.5), _over("cpu_usage_ratio", operator.gt, 0.2)
# What the rules' texts above say, by hand.
WHEN: Final[dict[str, Test]] = {
    **dict.fromkeys(("at-once", "waits", "hysteresis", "other-clear", "clears", "clears-other", "fires"), STEAL_50),
    **dict.fromkeys(("gold", "big", "big-clears"), STEAL_20),
    "gold-fires": STEAL_50,
    "with-host": _both(STEAL_20, _over("host.cpu_usage_ratio", operator.gt, 0.5)),
    "busy": USAGE_50,
}
CLEAR: Final[dict[str, Test]] = {
    "hysteresis": _over("cpu_steal_ratio", operator.lt, 0.2),
    "other-clear": _over("cpu_usage_ratio", operator.lt, 0.2),
    "clears-other": _over("cpu_usage_ratio", operator.lt, 0.2),
}
GOLD: Final = {"gold", "gold-fires"}
BIG: Final = {"big", "big-clears"}


class _Watch(msgspec.Struct):
    """One rule on one subject."""

    state: SignalState = INACTIVE
    since: int = 0
    seen: int = 0


class _Known(msgspec.Struct):
    """One subject."""

    time: int
    values: dict[str, float]
    tags: dict[str, str]
    host: str
    interval: float = 0.0


Change = tuple[str, str, SignalState, SignalState, int]


class Reference:
    """The same answers as the evaluator's, with none of its arrays."""

    def __init__(self, rules: RuleSet, tolerance: Tolerance) -> None:
        self.rules = rules.rules
        self.tolerance = tolerance
        self.known: dict[tuple[Kind, str], _Known] = {}
        self.watches: dict[tuple[str, str], _Watch] = {}
        self.now_ns = 0

    def feed(self, sample: Sample) -> list[Change]:
        kind = Kind(sample.measurement)
        key = (kind, sample.tags["host"] if kind is Kind.HOST else sample.tags["vm"])
        old = self.known.get(key)
        if old is not None and sample.time_ns <= old.time:
            return []
        if self.now_ns and sample.time_ns > self.now_ns + self.tolerance.ahead_ns:
            return []
        interval, patience = 0.0, self.tolerance.stale_ns
        if old is not None:
            patience = int(self.tolerance.gap_intervals * old.interval) or patience
            step = sample.time_ns - old.time
            if old.host == sample.tags["host"]:
                interval = old.interval + 0.2 * (step - old.interval) if old.interval else float(step)
        fields = {name: value for name, value in sample.fields.items() if value == value}  # noqa: PLR0124 - NaN
        self.known[key] = _Known(sample.time_ns, fields, sample.tags, sample.tags["host"], interval)
        return self._look(key, sample.time_ns, patience, silent=False)

    def tick(self, now_ns: int) -> list[Change]:
        self.now_ns = now_ns
        changes = []
        for kind in (Kind.HOST, Kind.VM):
            subjects = sorted(key for key in self.known if key[0] is kind)
            silence = {key: now_ns - self.known[key].time for key in subjects}
            for key in subjects:
                if silence[key] > self.tolerance.forget_ns or silence[key] < -self.tolerance.ahead_ns:
                    changes += self._forget(key, now_ns)
            for key in subjects:
                known = self.known.get(key)
                if known is not None and silence[key] > max(
                    self.tolerance.stale_ns, self.tolerance.gap_intervals * known.interval
                ):
                    changes += self._look(key, now_ns, 2**63, silent=True)
        return changes

    def _forget(self, key: tuple[Kind, str], now_ns: int) -> list[Change]:
        del self.known[key]
        changes = []
        for rule in self.rules:
            watch = self.watches.pop((rule.name, key[1]), None)
            if watch is not None and watch.state is not INACTIVE:
                changes.append((rule.name, key[1], watch.state, INACTIVE, now_ns))
        return changes

    def _look(self, key: tuple[Kind, str], now_ns: int, patience: int, *, silent: bool) -> list[Change]:
        changes = []
        for rule in self.rules:
            if rule.on is key[0]:
                watch = self.watches.setdefault((rule.name, key[1]), _Watch())
                old = watch.state
                self._step(rule, watch, self.known[key], now_ns, patience, silent)
                if watch.state is not old:
                    changes.append((rule.name, key[1], old, watch.state, now_ns))
        return changes

    def _applies(self, rule: Rule, known: _Known) -> bool | None:
        if rule.name in GOLD:
            return known.tags.get("tier") == "gold"
        return USAGE_20(known.values) if rule.name in BIG else True

    def _answers(self, rule: Rule, known: _Known, silent: bool) -> tuple[bool | None, bool | None]:
        """Whether the rule's condition holds, and whether its signal may clear; None where nobody knows."""
        values = dict(known.values)
        host = self.known.get((Kind.HOST, known.host))
        if host is not None:
            values |= {f"host.{name}": value for name, value in host.values.items()}
        when = None if silent else WHEN[rule.name](values)
        if rule.name in CLEAR:
            clear = None if silent else CLEAR[rule.name](values)
        else:
            clear = None if when is None else not when
        if when is None and rule.no_data is NoData.FIRE:
            return True, False
        if rule.no_data is NoData.CLEAR:
            if when is None:
                return False, True
            if clear is None:
                clear = not when or None
        return when, clear

    def _step(self, rule: Rule, watch: _Watch, known: _Known, now_ns: int, patience: int, silent: bool) -> None:
        applies = self._applies(rule, known)
        if applies is None and rule.no_data is NoData.CLEAR:
            applies = False
        when, clear = self._answers(rule, known, silent)
        if applies is None:
            when = clear = None
        if applies is False:
            watch.state = INACTIVE
            return
        old = watch.state
        if old in {INACTIVE, PENDING}:
            watch.state = {True: PENDING, False: INACTIVE, None: old}[when]
        else:
            watch.state = {True: CLEARING, False: FIRING, None: old}[clear]
        if watch.state is not old or now_ns - watch.seen > patience:
            watch.since = now_ns
        self._end_waiting(rule, watch, now_ns, when, clear)

    @staticmethod
    def _end_waiting(rule: Rule, watch: _Watch, now_ns: int, when: bool | None, clear: bool | None) -> None:
        if watch.state is PENDING and when:
            watch.seen = now_ns
            if now_ns - watch.since >= rule.for_ns:
                watch.state = FIRING
        elif watch.state is CLEARING and clear:
            watch.seen = now_ns
            if now_ns - watch.since >= rule.clear_for_ns:
                watch.state = INACTIVE


def changes(signals: Iterable[Signal]) -> list[Change]:
    """Return what the reference says of signals."""
    return [(one.rule, one.subject.id, one.previous, one.state, one.at_ns) for one in signals]


def host(name: str, time_s: float, usage: float | None = None) -> Sample:
    """A host's sample."""
    fields = {} if usage is None else {"cpu_usage_ratio": usage}
    return Sample("host", {"cluster": "c", "host": name}, fields, START_NS + seconds(time_s))


def vm(
    guest: str, time_s: float, steal: float | None = None, usage: float | None = None, on: str = "h1", tier: str = ""
) -> Sample:
    """A guest's sample; a field that is None is absent."""
    fields = {name: v for name, v in (("cpu_steal_ratio", steal), ("cpu_usage_ratio", usage)) if v is not None}
    tags = {"cluster": "c", "host": on, "vm": guest, "name": f"name-{guest}"} | ({"tier": tier} if tier else {})
    return Sample("vm", tags, fields, START_NS + seconds(time_s))


Event = Sample | int
_levels = st.sampled_from([None, 0.1, 0.3, 0.9, 0.9, float("nan")])
# Steps of time: mostly the usual interval, a double sample, one missed, a long silence, a late one, an early one.
_steps = st.sampled_from([10, 10, 10, 10, 10, 11, 0, 20, 30, 70, 250, -15, 0.001])


@st.composite
def streams(draw: st.DrawFn, moves: bool = True, ticks: bool = True, size: int = 60) -> list[Event]:
    """Samples of some hosts and guests, with ticks (int, ns) among them."""
    time_s, found = 100.0, list[Event]()
    for _ in range(draw(st.integers(1, size))):
        time_s = max(time_s + draw(_steps), 1)
        what = draw(st.integers(0, 9))
        guest = draw(st.sampled_from(["g1", "g2", "g3"]))
        on = draw(st.sampled_from(["h1", "h2"])) if moves else {"g1": "h1", "g2": "h1", "g3": "h2"}[guest]
        if what == 0 and ticks:
            found.append(START_NS + seconds(time_s + draw(st.sampled_from([0, 5, 65, 100]))))
        elif what <= 2:
            found.append(host(draw(st.sampled_from(["h1", "h2"])), time_s, draw(_levels)))
        else:
            found.append(vm(guest, time_s, draw(_levels), draw(_levels), on, draw(st.sampled_from(["gold", ""]))))
    return found
