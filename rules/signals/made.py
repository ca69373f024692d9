"""A transition of a rule's state on a subject, made into a signal."""

from __future__ import annotations

from virtpilot.model import Signal, Subject, record_id
from virtpilot.rules.language.records import Rule
from virtpilot.rules.signals.machine import STATES


def signal_of(
    rule: Rule, subject: Subject, cause: str, inputs: dict[str, float], states: tuple[int, int], at_ns: int
) -> Signal:
    """Return the signal of a transition; `states` are the former and the new one, `inputs` what the condition read."""
    old, new = states
    texts = {name: one.text(subject, rule.name, rule.severity, inputs) for name, one in rule.annotations.items()}
    return Signal(
        id=record_id("sg", rule.name, subject.id, STATES[new], at_ns),
        cause=cause,
        rule=rule.name,
        subject=subject,
        previous=STATES[old],
        state=STATES[new],
        at_ns=at_ns,
        severity=rule.severity,
        about=rule.about,
        inputs=inputs,
        notify=list(rule.notify),
        annotations=texts,
    )
