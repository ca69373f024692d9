"""Several publishers of one subject joined: an agent, and whoever else measures something about its host or guests.

A field keeps its own source's value until that source's next sample lacks it, or the source has been silent for too
long. What the agent tells goes before what others tell of the same field, and who a subject is, the agent says.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Final

import msgspec

from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.signals.table import Row

STALE_NS: Final = seconds(60)
_FORGET_NS: Final = seconds(3600)
_PRUNE_NS: Final = seconds(600)
_MAX_SOURCES: Final = 16
_OFF: Final = frozenset({5, 6})  # virDomainState: shut off, crashed
# What was known of a subject before a restart: whoever said it, what is said since goes before it.
_BEFORE: Final = ""
_NAMED_BY: Final = {"host": "host", "vm": "vm"}


class _Said(msgspec.Struct):
    """What is said of one subject: the agent's newest sample, the others' by source, and the newest time passed on."""

    agent: Sample | None = None
    others: dict[str, Sample] = {}
    passed_ns: int = 0


class Sources:
    """Turns samples as they come into whole ones; of a subject that agents alone measure nothing is kept here.

    `known` tells what rules know of a subject just now.
    """

    def __init__(self, known: Callable[[Kind, str], Row | None]) -> None:
        self.foreign = 0
        self._known = known
        self._said: dict[tuple[str, str], _Said] = {}
        self._next_prune_ns = 0
        self._restored_ns = 0

    def restored(self, now_ns: int) -> None:
        """Take note that what is known was restored: who said what of it is not known any more."""
        self._restored_ns = now_ns

    @property
    def quiet(self) -> bool:
        """Whether agents alone have told of anything lately."""
        return not self._said

    def lets_pass(self, hosts: Set[str], source: str, now_ns: int, *, agent: bool) -> bool:
        """Tell whether samples of these hosts are whole as they come, as an agent's mostly are; else `join` them."""
        if self._said and now_ns >= self._next_prune_ns:
            self._prune(now_ns)
        return agent and not self._said and hosts <= {source}

    def join(self, samples: list[Sample], source: str, now_ns: int, *, agent: bool) -> list[Sample]:
        """Return samples of one message with what others say of the same subjects.

        `source` is whose topic it came on; an agent's message bears a boot id, and speaks for its own host alone. A
        foreign sample from the future counts as of now: it must not make the agent's own ones look late.
        """
        if self.lets_pass({sample.tags.get("host", "") for sample in samples}, source, now_ns, agent=agent):
            return samples
        return [self._one(sample, source, now_ns, agent=agent) for sample in samples]

    def forget(self) -> None:
        """Forget who said what: times are others by now."""
        self._said.clear()

    def _one(self, sample: Sample, source: str, now_ns: int, *, agent: bool) -> Sample:
        name = sample.tags.get(_NAMED_BY.get(sample.measurement, ""), "")
        if not name:
            return sample
        said = self._said.get((sample.measurement, name))
        if agent and sample.tags.get("host") == source:
            return sample if said is None else self._agents(said, sample)
        self.foreign += 1
        if said is None:
            said = self._said[sample.measurement, name] = self._begin(Kind(sample.measurement), name)
        return self._foreign(said, sample, source, now_ns)

    def _begin(self, kind: Kind, name: str) -> _Said:
        """Return what is known of a subject before somebody else speaks of it: what its agent has told.

        What dates from before a restart may be others' word too: then its agent has told no more than who it is.
        """
        row = self._known(kind, name)
        if row is None:
            return _Said()
        subject = row.subject
        tags = {**subject.tags, "name": subject.name, "host": subject.host, _NAMED_BY[kind.value]: name}
        fields: dict[str, int | float] = {key: value for key, value in row.values.items() if "." not in key}
        told = Sample(kind.value, tags, fields, row.time_ns)
        if row.time_ns > self._restored_ns:
            return _Said(told, passed_ns=row.time_ns)
        return _Said(Sample(kind.value, tags, {}, row.time_ns), {_BEFORE: told}, passed_ns=row.time_ns)

    def _agents(self, said: _Said, sample: Sample) -> Sample:
        former = said.agent
        if former is not None and sample.time_ns <= former.time_ns:
            return sample  # late: the evaluator counts it
        if former is not None and sample.fields.get("state_code") in _OFF and _elsewhere(sample, former):
            return sample  # a mere definition that a migration may have left on another host
        said.agent = sample
        return self._whole(said, sample)

    def _foreign(self, said: _Said, sample: Sample, source: str, now_ns: int) -> Sample:
        if sample.time_ns > now_ns:
            sample = Sample(sample.measurement, sample.tags, sample.fields, now_ns)
        former = said.others.get(source, said.others.get(_BEFORE))
        if former is not None and sample.time_ns <= former.time_ns:
            return former  # late: as the one before, it is late for the evaluator too
        if source not in said.others and len(said.others) >= _MAX_SOURCES:
            del said.others[min(said.others, key=lambda other: said.others[other].time_ns)]
        said.others[source] = sample
        return self._whole(said, sample)

    def _whole(self, said: _Said, sample: Sample) -> Sample:
        """Return a sample with all that is known and fresh; each is newer than the one before, whoever's it is."""
        newest_ns = max(sample.time_ns, said.passed_ns)
        said.others = {name: one for name, one in said.others.items() if newest_ns - one.time_ns <= _FORGET_NS}
        agent = said.agent if said.agent is not None and newest_ns - said.agent.time_ns <= STALE_NS else None
        tags = sample.tags if agent is None else agent.tags
        fresh = [
            one
            for one in said.others.values()
            # Without an agent the newest sample says where a guest is; who told of it elsewhere has lost it.
            if newest_ns - one.time_ns <= STALE_NS and (agent is not None or one.tags.get("host") == tags.get("host"))
        ]
        fields: dict[str, int | float] = {}
        for one in sorted(fresh, key=lambda one: one.time_ns):
            fields |= one.fields
        if agent is not None:
            fields |= agent.fields
        time_ns = sample.time_ns if sample.time_ns > said.passed_ns else said.passed_ns + 1
        said.passed_ns = time_ns
        return Sample(sample.measurement, tags, fields, time_ns)

    def _prune(self, now_ns: int) -> None:
        """Forget the subjects of which none but agents speak any more."""
        self._next_prune_ns = now_ns + _PRUNE_NS
        self._said = {
            key: said
            for key, said in self._said.items()
            if any(abs(now_ns - one.time_ns) <= _FORGET_NS for one in said.others.values())
        }


def _elsewhere(sample: Sample, former: Sample) -> bool:
    """Tell whether a sample comes from another host than the former one, which still speaks."""
    return sample.tags.get("host") != former.tags.get("host") and sample.time_ns - former.time_ns < STALE_NS
