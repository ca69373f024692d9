"""The inputs of an expression at chosen moments of chosen subjects: as `RowColumns` offers them of the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind, Subject
from virtpilot.rules.language.devices import NO_JOB, Device, Of
from virtpilot.rules.language.typed import Aggregate, Numbers, Window
from virtpilot.rules.signals.aggregates import Members, evaluate, over
from virtpilot.rules.signals.columns import SINGLE, tag_of

if TYPE_CHECKING:
    from virtpilot.rules.signals.film.film import Film


class FilmColumns:
    """All moments of a kind's subjects, moment by moment; what is said of many is as of the tick before each.

    Without `delay` it is as of the tick after.
    """

    def __init__(self, film: Film, kind: Of, delay: int = 1) -> None:
        self._film = film
        self._kind = kind
        self._delay = delay
        self._reel = reel = film.reels[kind]
        self._table = film.world.tables[kind]
        moments, rows = len(reel.times), len(reel.rows)
        self._count = moments * rows
        self._frame = np.repeat(reel.frames, rows)
        self._place = np.tile(np.arange(rows), moments)
        self._host = np.tile(reel.owners, moments)
        self._tags: dict[str, NDArray[np.object_]] = {}
        self._aggregates: dict[tuple[Kind, str], Numbers] = {}

    def _of_host(self, values: Numbers, frame: NDArray[np.int64]) -> Numbers:
        """Return what is said of hosts (frames by hosts) for each row's host; NaN for rows that have none."""
        if not values.shape[1] or isinstance(self._kind, Device):
            return np.full(self._count, np.nan)
        found: Numbers = np.where(self._host >= 0, values[frame, np.maximum(self._host, 0)], np.nan)
        return found

    def field(self, measurement: str, name: str) -> Numbers:
        """Return a field of each subject, or of its host; NaN where it is missing."""
        film = self._film
        if measurement in SINGLE:
            return self._single(SINGLE[measurement], name)
        if measurement == self._kind.value:
            own: Numbers = self._reel.values[self._table.column[name]].ravel()
            return own
        hosts = film.world.tables[Kind.HOST]
        return self._of_host(film.reels[Kind.HOST].values[hosts.column[name]], self._frame)

    def several(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        """Return fields of each subject, or of its host, a row a field; NaN where one is missing."""
        own, film = measurement == self._kind.value, self._film
        kind = self._kind if own else Kind.HOST
        values = film.reels[kind].values[film.world.tables[kind].places(names)]
        if own:
            return values.reshape(len(names), -1)
        found: Numbers = np.where(self._host >= 0, values[:, self._frame, np.maximum(self._host, 0)], np.nan)
        return found

    def _single(self, device: Device, name: str) -> Numbers:
        found = np.full(self._count, np.nan)
        reel = self._film.reels.get(device)
        if reel is not None:
            column = self._film.world.tables[device].column[name]
            found[self.devices(device).groups] = reel.values[column].ravel()
        return np.where(np.isnan(found), 0.0, found) if device is Device.JOB and name == NO_JOB else found

    def single_tag(self, device: Device, name: str) -> NDArray[np.object_]:
        """Return a tag of each subject's one device, "" where it has none."""
        found = np.full(self._count, "", np.object_)
        members = self.devices(device)
        if device in self._film.reels:
            found[members.groups] = members.columns.tag(name)
        return found

    def devices(self, device: Device) -> Members:
        """Return the devices of a kind that the subjects have at each moment."""
        reel = self._film.reels.get(device)
        if reel is None:
            return Members(self, np.zeros(0, np.int64), self._count, np.zeros(0, np.int64))
        moments, rows = len(reel.times), len(self._reel.rows)
        groups = (np.arange(moments)[:, None] * rows + reel.owners).ravel()
        return Members(self._film.columns(device), groups, self._count, np.tile(reel.rows, moments))

    def tag(self, name: str) -> NDArray[np.object_]:
        """Return a tag of each subject, "" where it has none."""
        found = self._tags.get(name)
        if found is None:
            subjects: list[Subject | None] = [self._table.subjects[row] for row in self._reel.rows.tolist()]
            own = np.array([tag_of(one, name) if one else "" for one in subjects], np.object_)
            found = self._tags[name] = own[self._place]
        return found

    def window(self, window: Window) -> Numbers:
        """Return what a window says of each subject, or of its host, at each moment."""
        values = self._film.window(window)
        return values.ravel() if window.on is self._kind else self._of_host(values, self._frame)

    def aggregate(self, aggregate: Aggregate) -> Numbers:
        """Return what is said of each subject's devices; of its host's guests, or all, as of a tick."""
        found = self._aggregates.get(aggregate.key)
        if found is None:
            found = self._aggregates[aggregate.key] = self._aggregated(aggregate)
        return found

    def _aggregated(self, aggregate: Aggregate) -> Numbers:
        if isinstance(aggregate.members, Device):
            if aggregate.members not in self._film.reels:
                return self._of_none(aggregate)
            return evaluate(aggregate, self.devices(aggregate.members))
        values, before = self._film.aggregate(aggregate), np.maximum(self._frame - self._delay, 0)
        if aggregate.scope is Kind.CLUSTER:
            found: Numbers = values[before, 0]
            return found
        if self._kind is Kind.HOST:
            return values[before, self._place]
        return self._of_host(values, before)

    def _of_none(self, aggregate: Aggregate) -> Numbers:
        """Return what is said where nobody has any."""
        return over(np.zeros(0, np.int64), np.zeros(0), aggregate.function, self._count) + 0.0

    def signal(self, rule: str, within_ns: int) -> Numbers:
        """Tell (1, 0) whether a rule's signal fires at each moment, as long as none changes."""
        world, times = self._film.world, np.repeat(self._reel.times, len(self._reel.rows))
        rows = np.tile(self._reel.rows, len(self._reel.times))
        machine = world.bank.machine(rule)
        if machine is not None and machine.rule.on is not self._kind:
            if machine.rule.on is Kind.HOST:
                rows = np.tile(self._table.host_row[self._reel.rows], len(self._reel.times))
            else:
                rows = np.full(len(rows), world.tables[Kind.CLUSTER].row_of.get(world.cluster, -1))
        return world.bank.fires(rule, rows, times, within_ns)
