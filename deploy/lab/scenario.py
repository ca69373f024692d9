"""The main job on real hosts, each step seen through libvirt and the store, not through virtpilot's own log."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from deploy.lab.errors import LabError
from deploy.lab.lab import Lab
from deploy.lab.pilot import RULES, LabPilot
from virtpilot.model import Signal, SignalState
from virtpilot.pipeline.records import Entry, read
from virtpilot.pipeline.screen import line
from virtpilot.pipeline.trail import Trail, trails

GUEST = "web-1"
# Percent of a CPU: more than twice its shares among two busy guests, and less than the other host has to give.
_LOAD = 60
_now = time.monotonic  # noqa: TID251 - the lab waits for real processes
_pause = threading.Event()


def run(lab: Lab, say: Callable[[str], None], *, rules: Path = RULES, patience: float = 1.0) -> Trail:
    """Play the whole story; raises LabError for a step that did not happen in its time, times `patience`."""
    pilot = LabPilot(lab, rules)
    pilot.start()
    try:
        return _story(lab, pilot, say, patience)
    except LabError as error:
        entries = _entries(pilot.records)
        names = {one.record.subject.id: one.record.subject.name for one in entries if isinstance(one.record, Signal)}
        told = "\n".join(line(entry, names) for entry in entries)
        raise LabError(f"{error}\n{pilot.logs()}\n--- records\n{told}") from error


def _story(lab: Lab, pilot: LabPilot, say: Callable[[str], None], patience: float) -> Trail:
    def until(what: str, timeout_s: float, holds: Callable[[], bool]) -> None:
        _until(what, timeout_s * patience, holds)

    start = lab.where(GUEST)
    until("all hosts' samples in the store", 60, lambda: _hosts_measured(lab) == len(lab.hosts))
    say(f"{GUEST} gets busy on {start}")
    lab.guest(GUEST).set_load(_LOAD)
    until(f"libvirt shows {GUEST} waiting for its CPU", 60, lambda: _steal(lab) > 0.15)
    until("a remedy raised its CPU shares", 60, lambda: _shares(lab) == 2048)
    say("libvirt: cpu_shares of web-1 are 2048")
    until(f"libvirt runs {GUEST} on another host", 120, lambda: lab.where(GUEST) != start)
    target = lab.where(GUEST)
    say(f"libvirt: {GUEST} runs on {target}")
    until("its CPU shares are its own again", 30, lambda: _shares(lab) == 1024)
    until(f"libvirt shows {GUEST} undisturbed", 60, lambda: _steal(lab) < 0.10)
    until("the store has it undisturbed there", 60, lambda: _stored_steal(lab, target) < 0.10)
    until("the store has seen the raised shares", 30, lambda: _most_shares(lab) == 2048)
    until("the signal cleared", 60, lambda: _cleared(pilot.records))
    found = [trail for trail in trails(_entries(pilot.records)) if trail.name == GUEST]
    if not found or not found[0].helped:
        raise LabError("the trail does not tell of a measured effect")
    return found[0]


def _until(what: str, timeout_s: float, holds: Callable[[], bool]) -> None:
    """Wait for real processes to get there; raises LabError when they did not in time."""
    deadline = _now() + timeout_s
    while not holds():
        if _now() > deadline:
            raise LabError(f"did not happen within {timeout_s:g} s: {what}")
        _pause.wait(0.5)


def _steal(lab: Lab) -> float:
    """Return the share of the next two seconds that the guest's vCPU waits for a CPU, by libvirt."""
    before, began = int(lab.domstats(GUEST)["vcpu.0.delay"]), _now()
    _pause.wait(2.0)
    after = int(lab.domstats(GUEST)["vcpu.0.delay"])
    return (after - before) / 1e9 / (_now() - began)


def _shares(lab: Lab) -> int:
    host = lab.hosts[lab.where(GUEST)]
    for text in host.virsh("schedinfo", GUEST).splitlines():
        name, _, value = text.partition(":")
        if name.strip() == "cpu_shares":
            return int(value)
    raise LabError(f"libvirt does not tell the cpu_shares of {GUEST}")


def query(lab: Lab, expression: str) -> list[tuple[dict[str, str], float]]:
    """Ask the store; return (labels, value) of each series."""
    url = f"{lab.store_url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the lab's own store
        result = json.load(answer)["data"]["result"]
    return [(series["metric"], float(series["value"][1])) for series in result]


def _hosts_measured(lab: Lab) -> int:
    return len(query(lab, 'count by (host) (host_cpu_usage_ratio{cluster="lab"})'))


def _stored_steal(lab: Lab, host: str) -> float:
    found = query(lab, f'vm_cpu_steal_ratio{{name="{GUEST}",host="{host}"}}')
    return found[0][1] if found else 1.0


def _most_shares(lab: Lab) -> float:
    found = query(lab, f'max_over_time(knob_value_count{{name="{GUEST}",knob="cpu_shares"}}[10m])')
    return max((value for _, value in found), default=0.0)


def _entries(path: Path) -> list[Entry]:
    return list(read(path)) if path.exists() else []


def _cleared(path: Path) -> bool:
    return any(
        isinstance(record := entry.record, Signal)
        and record.subject.name == GUEST
        and record.previous is SignalState.CLEARING
        and record.state is SignalState.INACTIVE
        for entry in _entries(path)
    )
