"""What recorded guests would have measured, had they been acted upon: a simple model, and its limits said plainly.

A guest wants what it used and what it lacked (its steal). On a host whose guests have other shares, or are others, than
were recorded, the CPU is shared out anew among what they want, by their shares, as the simulator does; what the host
itself used stays. A guest gets no more than its vCPUs and its quotas let it have (`vcpus`, `vcpu_quota`,
`global_quota`); with another balloon it has so much more or less memory, and its host so much less or more. A moved
guest's samples are its new host's. Memory moves with the guest. One that was suspended or shut down uses no CPU, and
one that is off no memory; one that was started uses what was recorded, which is nothing. Nothing else responds: not
disks, networks or pressure, and a guest that gets more CPU is not done any sooner. Where the record itself shows a knob
set anew, a guest moved or in another state, the record is believed from there on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from virtpilot.model import Sample
from virtpilot.simulator.contention import share

SHARES: Final = "cpu_shares"
VCPUS: Final = "vcpus"
BALLOON: Final = "memory_balloon"
VCPU_QUOTA, VCPU_PERIOD = "vcpu_quota", "vcpu_period"
ALL_QUOTA, ALL_PERIOD = "global_quota", "global_period"
USUAL_PERIOD: Final = 100_000
_ANSWERED: Final = frozenset({SHARES, VCPUS, BALLOON, VCPU_QUOTA, ALL_QUOTA})
USUAL_SHARES: Final = 1024
# virDomainState
_RUNNING: Final = 1
_SHUT_OFF: Final = 5
Fields = Mapping[str, int | float]


class _Guest(msgspec.Struct):
    """A guest as last recorded."""

    host: str
    fields: Fields = {}
    knobs: dict[str, float] = {}


class Response:
    """Turns recorded samples into what the actions so far would have left; all three are the stand-in's."""

    def __init__(
        self, places: dict[str, str], knobs: dict[tuple[str, str], int], states: dict[str, int] | None = None
    ) -> None:
        self._places = places
        self._knobs = knobs
        self._states = {} if states is None else states
        self._guests: dict[str, _Guest] = {}
        self._hosts: dict[str, Fields] = {}
        self._touched: frozenset[str] = frozenset()
        self._shared: dict[str, tuple[dict[str, float], float]] = {}

    def respond(self, host: str, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
        """Return a host's recorded samples as they would have been, by the host that would have measured them."""
        for sample in samples:
            self._learn(host, sample)
        self._touched = self._others()
        self._shared.clear()
        given: dict[str, list[Sample]] = {host: []}
        for sample in samples:
            changed = self._changed(sample)
            given.setdefault(changed.tags["host"], []).append(changed)
        return {name: group for name, group in given.items() if group}

    def _learn(self, host: str, sample: Sample) -> None:
        if sample.measurement == "host":
            self._hosts[host] = sample.fields
            return
        guest_id = sample.tags.get("vm", "")
        guest = self._guests.setdefault(guest_id, _Guest(host))
        if guest.host != host:
            # It moved in the record: what was believed of its place is over.
            guest.host = host
            self._places.pop(guest_id, None)
        if sample.measurement == "vm":
            if guest.fields.get("state_code") != sample.fields.get("state_code"):
                self._forget_state(guest_id, guest)
            guest.fields = sample.fields
        elif sample.measurement == "knob":
            self._learn_knob(guest_id, guest, sample)

    def _forget_state(self, guest_id: str, guest: _Guest) -> None:
        if guest.fields:
            self._states.pop(guest_id, None)

    def _learn_knob(self, guest_id: str, guest: _Guest, sample: Sample) -> None:
        knob, value = sample.tags.get("knob", ""), sample.fields.get("value_count")
        if value is None:
            return
        known = guest.knobs.get(knob)
        if known is not None and known != value:
            self._knobs.pop((guest_id, knob), None)
        guest.knobs = guest.knobs | {knob: float(value)}

    def _changed(self, sample: Sample) -> Sample:
        recorded = sample.tags["host"]
        if sample.measurement == "host":
            fields = self._host_fields(recorded, sample.fields) if recorded in self._touched else sample.fields
            return msgspec.structs.replace(sample, fields=dict(fields))
        guest_id = sample.tags.get("vm", "")
        host = self._places.get(guest_id, recorded)
        fields = sample.fields
        if sample.measurement == "vm" and (host in self._touched or host != recorded):
            fields = self._guest_fields(guest_id, host, fields)
            if "state_code" in fields and guest_id in self._states:
                fields = dict(fields) | {"state_code": self._states[guest_id]}
        elif sample.measurement == "knob" and "value_count" in fields:
            set_to = self._knobs.get((guest_id, sample.tags.get("knob", "")))
            fields = fields if set_to is None else fields | {"value_count": set_to}
        return Sample(sample.measurement, sample.tags | {"host": host}, dict(fields), sample.time_ns)

    def _others(self) -> frozenset[str]:
        """Return the hosts whose guests, or their knobs or states, are others than were recorded."""
        found: set[str] = set()
        set_anew = {name for name, knob in self._knobs if knob in _ANSWERED}
        for guest_id in {*self._places, *self._states, *set_anew}:
            guest = self._guests.get(guest_id)
            if guest is not None:
                place = self._places.get(guest_id, guest.host)
                if place != guest.host or guest_id in set_anew or guest_id in self._states:
                    found |= {guest.host, place}
        return frozenset(found)

    def _on(self, host: str) -> list[str]:
        return [name for name, guest in self._guests.items() if self._places.get(name, guest.host) == host]

    def _cores(self, host: str) -> tuple[dict[str, float], float]:
        """Return what each guest on a host gets, in cores, and what the host itself uses."""
        if host not in self._shared:
            self._shared[host] = self._share(host)
        return self._shared[host]

    def _share(self, host: str) -> tuple[dict[str, float], float]:
        own = self._hosts.get(host, {})
        cpus = float(own.get("cpus_count", 0.0))
        recorded = sum(_used(guest.fields) for guest in self._guests.values() if guest.host == host)
        rest = max(float(own.get("cpu_usage_ratio", 0.0)) * cpus - recorded, 0.0)
        names = self._on(host)
        if not names or not cpus:
            return {name: _used(self._guests[name].fields) for name in names}, rest
        wanted = np.array([0.0 if self._stopped(name) else self._may_have(name) for name in names])
        shares = np.array([self._shares(name) for name in names])
        given = share(wanted, shares, np.zeros(len(names), np.intp), np.array([max(cpus - rest, 0.0)]))
        return dict(zip(names, given.tolist(), strict=True)), rest

    def _stopped(self, name: str) -> bool:
        return self._states.get(name, _RUNNING) != _RUNNING

    def _knob(self, name: str, knob: str, usual: float) -> float:
        """Return a knob's value: as it was set, else as it was recorded, else the usual one."""
        return float(self._knobs.get((name, knob), self._guests[name].knobs.get(knob, usual)))

    def _shares(self, name: str) -> float:
        return max(self._knob(name, SHARES, USUAL_SHARES), 1.0)

    def _vcpus(self, name: str) -> float:
        return max(float(self._knobs.get((name, VCPUS), self._guests[name].fields.get("vcpus_count", 1.0))), 1.0)

    def _may_have(self, name: str) -> float:
        """Return the cores that a guest wants and may have: those of its vCPUs, of its quotas."""
        cores = [_wanted(self._guests[name].fields)]
        if (name, VCPUS) in self._knobs:
            cores.append(self._vcpus(name))
        for quota, period, times in ((VCPU_QUOTA, VCPU_PERIOD, self._vcpus(name)), (ALL_QUOTA, ALL_PERIOD, 1.0)):
            # What was recorded under a limit of its own is no more than that already.
            limit = float(self._knobs.get((name, quota), 0))
            if limit > 0:
                cores.append(times * limit / max(self._knob(name, period, USUAL_PERIOD), 1.0))
        return min(cores)

    def _guest_fields(self, name: str, host: str, fields: Fields) -> Fields:
        given, _rest = self._cores(host)
        vcpus = self._vcpus(name)
        cores = given.get(name, _used(fields))
        lacking = 0.0 if self._stopped(name) else max(_wanted(fields) - cores, 0.0)
        usage = {
            "vcpus_count": vcpus,
            "cpu_usage_ratio": cores / vcpus,
            # No vCPU waits for more than all of its time.
            "cpu_steal_ratio": min(lacking / vcpus, max(1.0 - cores / vcpus, 0.0)),
        } | self._memory_fields(name, fields)
        return dict(fields) | {key: value for key, value in usage.items() if key in fields}

    def _memory_fields(self, name: str, fields: Fields) -> dict[str, float]:
        """Return what a guest's memory would be with the balloon that was set."""
        more = self._more_memory(name)
        if not more:
            return {}
        found = {
            key: max(float(fields[key]) + more, 0.0)
            for key in ("memory_balloon_bytes", "memory_available_bytes", "memory_usable_bytes", "memory_unused_bytes")
            if key in fields
        }
        usable, available = found.get("memory_usable_bytes"), found.get("memory_available_bytes")
        if usable is not None and available:
            found["memory_used_ratio"] = min(max(1.0 - usable / available, 0.0), 1.0)
        return found

    def _more_memory(self, name: str) -> float:
        """Return how much larger a guest's balloon was set than it is in the record."""
        recorded = self._guests[name].fields.get("memory_balloon_bytes")
        return float(self._knobs.get((name, BALLOON), recorded or 0.0)) - float(recorded) if recorded else 0.0

    def _host_fields(self, host: str, fields: Fields) -> Fields:
        given, rest = self._cores(host)
        found = dict(fields)
        cpus = float(fields.get("cpus_count", 0.0))
        if cpus and "cpu_usage_ratio" in fields:
            found["cpu_usage_ratio"] = min((sum(given.values()) + rest) / cpus, 1.0)
        came = self._memory(name for name in self._on(host) if self._guests[name].host != host and not self._off(name))
        here = [name for name, guest in self._guests.items() if guest.host == host]
        went = self._memory(name for name in here if self._places.get(name, host) != host or self._off(name))
        came += sum(self._more_memory(name) for name in self._on(host) if not self._off(name))
        total = float(fields.get("memory_total_bytes", 0.0))
        if total and "memory_available_bytes" in fields:
            available = float(fields["memory_available_bytes"]) + went - came
            found["memory_available_bytes"] = min(max(available, 0.0), total)
            if "memory_used_ratio" in fields:
                found["memory_used_ratio"] = 1.0 - found["memory_available_bytes"] / total
        return found

    def _off(self, name: str) -> bool:
        return self._states.get(name) == _SHUT_OFF

    def _memory(self, names: Iterable[str]) -> float:
        return sum(float(self._guests[name].fields.get("memory_balloon_bytes", 0.0)) for name in names)


def _used(fields: Fields) -> float:
    return float(fields.get("cpu_usage_ratio", 0.0)) * float(fields.get("vcpus_count", 1.0))


def _wanted(fields: Fields) -> float:
    return _used(fields) + float(fields.get("cpu_steal_ratio", 0.0)) * float(fields.get("vcpus_count", 1.0))
