"""Whether what was expected happened, and if not, what did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from virtpilot.action import Decided, Migrate, SetKnob, action_name
from virtpilot.clock import SECOND
from virtpilot.model import Command, Decision, Outcome, Signal, SignalState
from virtpilot.rules.testing.records import NONE, Expectation

Record = Signal | Decision | Command | Outcome
_TYPES: Mapping[str, type[Record]] = {"signal": Signal, "decision": Decision, "command": Command, "outcome": Outcome}
_SHOWN = 8


class History:
    """What came to be in a test: the records in order, the names of the subjects, the time that it began."""

    def __init__(self, records: Iterable[Record], names: Mapping[str, str], start_ns: int) -> None:
        self.records: Sequence[Record] = tuple(records)
        self._names = names
        self._start_ns = start_ns

    def about(self, rule: str, name: str) -> list[Record]:
        """Return the records of one rule on one subject."""
        return [record for record in self.records if record.rule == rule and self._name(record) == name]

    def _name(self, record: Record) -> str:
        match record:
            case Signal() | Decision():
                unique = record.subject.id
            case Command():
                unique = record.action.guest
            case Outcome():
                unique = record.guest
        return self._names.get(unique, unique)

    def at_ns(self, record: Record) -> int:
        """Return a record's time from the test's start."""
        return (record.issued_ns if isinstance(record, Command) else record.at_ns) - self._start_ns

    def judge(self, expected: Expectation) -> str:
        """Return what happened in place of what was expected, "" where it is as expected."""
        found = self.about(expected.rule, expected.of)
        if expected.what == "signal":
            return self._judge_signal(expected, found)
        of_kind = [record for record in found if isinstance(record, _TYPES[expected.what])]
        fitting = [record for record in of_kind if _fits(record, expected)]
        within = [record for record in fitting if expected.from_ns <= self.at_ns(record) <= expected.until_ns]
        if bool(within) is not (expected.state == NONE):
            return ""
        if within:
            return f"there was one: {self.told(within[0])}"
        told = "; ".join(self.told(record) for record in of_kind[:_SHOWN])
        return f"no such {expected.what} by {span(expected.until_ns)}; there were: {told or 'none'}"

    def _judge_signal(self, expected: Expectation, found: Sequence[Record]) -> str:
        changes = [one for one in found if isinstance(one, Signal) and self.at_ns(one) <= expected.until_ns]
        state = changes[-1].state if changes else SignalState.INACTIVE
        if state == expected.state:
            return ""
        since = f" since {span(self.at_ns(changes[-1]))}" if changes else ", as it was all the time"
        return f"it is {state}{since}"

    def told(self, record: Record) -> str:
        """Return a record in a few words, its time first."""
        match record:
            case Signal():
                what = f"signal {record.previous} → {record.state}"
            case Decision():
                by = "accepted" if record.accepted else f"refused by {record.guard}"
                what = f"decision {by}{_action(record.action)}: {record.reason}"
            case Command():
                what = f"command {words(record.action)}"
            case Outcome():
                what = f"outcome {record.result} of {record.action}{f': {record.reason}' if record.reason else ''}"
        return f"{span(self.at_ns(record))} {what}"


def _fits(record: Record, expected: Expectation) -> bool:
    """Tell whether a record says what is expected; for `none`, whether it is one of those that must not be."""
    any_state = expected.state == NONE
    match record:
        case Signal():
            return False
        case Decision():
            state = any_state or record.accepted is (expected.state == "accepted")
            action, guard, reason = words(record.action), record.guard, record.reason
        case Command():
            state, action, guard, reason = True, words(record.action), "", ""
        case Outcome():
            state = any_state or record.result == expected.state
            action, guard, reason = record.action, record.guard, record.reason
    return (
        state and expected.action in action and expected.guard in {"", guard} and expected.reason in reason
    )  # parts of a text are enough: numbers in reasons change


def words(action: Decided | None) -> str:
    """Return an action as tests name it: `set cpu_shares 2048`, `migrate to host-2`, `suspend`."""
    match action:
        case None:
            return ""
        case SetKnob(value=value):
            return f"{action_name(action)} {value}"
        case Migrate(target=target):
            return f"migrate to {target}"
        case _:
            return action_name(action)


def _action(action: Decided | None) -> str:
    return f" ({words(action)})" if action is not None else ""


def span(time_ns: int) -> str:
    """Return a time from the start as in a rule file, `1m30s`."""
    whole, rest = divmod(time_ns, SECOND)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    tail = f"{second + rest / SECOND:g}s"
    parts = [f"{hours}h" if hours else "", f"{minute}m" if minute else "", tail if tail != "0s" else ""]
    return "".join(parts) or "0s"
