"""Two hosts in memory, each with an executor of its own, between which guests move with all that they have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.actuators.one_host import GUEST, OTHER, SHARES, OneHost
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.lifecycle import Point, nowhere
from virtpilot.hypervisor import GuestState

HOSTS: Final = ("host-1", "host-2")


class TwoHosts:
    """The hosts, the journals' folders, and the executors that run just now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts = {name: OneHost() for name in HOSTS}
        for guest in (GUEST, OTHER):
            self.hosts["host-2"].remove(guest)
        self.executors: dict[str, Executor] = {}

    def start(self, name: str, now_ns: int, reached: Callable[[Point], None] = nowhere) -> Executor:
        """Start a host's agent, in place of one that was killed."""
        former = self.executors.pop(name, None)
        if former is not None:
            former._journal._unlock()  # as the kernel does for a process that is no more
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        made = Executor(self.hosts[name], Journal(folder / "journal.jsonl"), host=name, reached=reached)
        self.executors[name] = made
        made.recover(now_ns)
        return made

    def where(self, guest: str) -> str:
        """Return the host on which a guest is, running or off; "" for none."""
        return next((name for name, host in self.hosts.items() if guest in host.states), "")

    def value(self, guest: str) -> int:
        """Return the guest's CPU shares, wherever it is."""
        return self.hosts[self.where(guest)].knobs[guest, SHARES]

    def move(self, guest: str, target: str) -> None:
        """Let a guest be on another host, with its knobs and its note, as libvirt does."""
        source, goal = self.hosts[self.where(guest)], self.hosts[target]
        state, shares, note = source.states[guest], source.knobs[guest, SHARES], source.notes.get(guest, "")
        source.remove(guest)
        goal.states[guest], goal.knobs[guest, SHARES], goal.notes[guest] = state, shares, note

    def start_anew(self, guest: str, shares: int = 1024) -> None:
        """Let a guest end and start: it has what its definition says."""
        host = self.hosts[self.where(guest)]
        host.states[guest], host.knobs[guest, SHARES] = GuestState.RUNNING, shares
        host.notes.pop(guest, None)

    def holders(self, guest: str) -> list[str]:
        """Return the hosts whose agents hold a lease on the guest."""
        return [name for name, made in self.executors.items() if made.leased(guest, SHARES)]
