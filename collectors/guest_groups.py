"""The control groups of all guests of a host, each found once by the guest's run and kept until it ends."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from virtpilot.clock import seconds
from virtpilot.collectors.cgroup import REFRESH_NS, Group
from virtpilot.collectors.hierarchy import find_groups, find_mounts
from virtpilot.collectors.source import Fields
from virtpilot.collectors.tree import Tree

_STEP_NS: Final = seconds(0.7)


class GuestGroups:
    """Finds and reads guests' groups; looks around at most once a tick, and only for a guest whose group is unknown."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._groups: dict[int, Group] = {}
        self._looked = False

    def begin(self) -> None:
        """Start a tick."""
        self._looked = False

    def keep(self, runs: Collection[int]) -> None:
        """Let go of the groups of guests that run no more."""
        for run in self._groups.keys() - set(runs):
            self._groups.pop(run).close()

    def collect(self, run: int, now_ns: int) -> Fields:
        """Return what the group of the guest with this run tells, nothing where it has none; raises OSError."""
        if run < 0:
            return {}
        if run not in self._groups and not self._looked:
            self._looked = True
            self._look()
        group = self._groups.get(run)
        if group is None:
            return {}
        fields = group.collect(now_ns)
        if fields is None:
            self._groups.pop(run).close()
        return fields or {}

    def _look(self) -> None:
        for run, paths in find_groups(self._tree, find_mounts(self._tree)).items():
            if run not in self._groups:
                self._groups[run] = Group(self._tree, paths, run * _STEP_NS % REFRESH_NS)
