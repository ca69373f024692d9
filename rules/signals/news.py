"""What samples say to the windows of one kind of subjects: read once, and kept until somebody reads a window.

Samples of several messages cost little more than one's when they are put into histories at once. Bounds are kept up
with each sample, but those of a series of which nothing is new stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.typed import Columns, Numbers
from virtpilot.rules.signals.table import Where, whereabouts

if TYPE_CHECKING:
    from virtpilot.rules.signals.windows import Track

_AT_MOST: Final = 16
NOTHING: Final = -1
"""The bits of a number that is no sample's."""


class _Kept(NamedTuple):
    """A sample of each of some rows: a row of numbers a series, and which series know anything."""

    where: Where
    times: NDArray[np.int64]
    told: Numbers
    known: list[bool]


class News:
    """The newest samples of all tracks of a kind, each of which has some of the series."""

    def __init__(self, tracks: Sequence[Track], capacity: int) -> None:
        self._own: dict[Track, slice] = {}
        count = 0
        for track in tracks:
            self._own[track] = slice(count, count + len(track.series))
            count += len(track.series)
        self._reads = [read for track in tracks for read in track.reads]
        self._bounds = [(own.start + place, one) for track, own in self._own.items() for place, one in track.placed()]
        self._kept: list[_Kept] = []
        self._put: dict[Track, int] = dict.fromkeys(tracks, 0)
        self._joined: dict[tuple[int, int], _Kept] = {}
        self._has: NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self._stale: NDArray[np.bool_] = np.zeros((count, capacity), np.bool_)
        self._last: NDArray[np.int64] = np.full((count, capacity), NOTHING, np.int64)
        self._share()

    def _share(self) -> None:
        """Give each track what is its own."""
        for track, own in self._own.items():
            track.share(self, self._stale[own], self._last[own])

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""
        more = capacity - len(self._has)
        self._has = np.pad(self._has, (0, more))
        self._stale = np.pad(self._stale, ((0, 0), (0, more)))
        self._last = np.pad(self._last, ((0, 0), (0, more)), constant_values=NOTHING)
        self._share()

    def take(self, columns: Columns, where: Where, times: NDArray[np.int64]) -> None:
        """Take a sample of each row."""
        if len(self._kept) >= _AT_MOST or np.count_nonzero(self._has[where]):
            self._put_all()
        told = np.empty((len(self._reads), len(times)))
        for place, read in enumerate(self._reads):
            told[place] = read(columns, np.nan)
        known: Any = np.isfinite(told).any(axis=1).tolist()
        self._kept.append(_Kept(where, times, told, known))
        self._has[where] = True
        self._age(where, times, told)
        bits = told.view(np.int64)
        other = (bits != self._last[:, where]).any(axis=1).tolist()
        self._last[:, where] = bits
        for place, one in self._bounds:
            if other[place] or one.restless:
                one.take(where, told[place])

    def _age(self, where: Where, times: NDArray[np.int64], told: Numbers) -> None:
        """Note that windows must be worked out anew, but those of which it is certain what they are."""
        doubts = [
            (own.start + place, self._stale[own.start + place, where] | new)
            for track, own in self._own.items()
            for place, new in track.doubts(where, times, told[own])
        ]
        self._stale[:, where] = True
        for place, stale in doubts:
            self._stale[place, where] = stale

    def _put_all(self) -> None:
        for track in self._own:
            self.settle(track)
        self._kept, self._joined, self._put = [], {}, dict.fromkeys(self._own, 0)
        self._has[:] = False

    def settle(self, track: Track) -> None:
        """Put what waits for a track, as few at once as may be: what knows nothing is not put with what does."""
        first, self._put[track] = self._put[track], len(self._kept)
        if first < len(self._kept):
            own = self._own[track]
            with np.errstate(all="ignore"):
                for where, times, told, _known in self._runs(first, own):
                    track.push(where, times, list(told[own]))

    def _runs(self, first: int, own: slice) -> Iterator[_Kept]:
        known = [any(one.known[own]) for one in self._kept]
        while first < len(known):
            end = next((at for at in range(first, len(known)) if known[at] is not known[first]), len(known))
            yield self._together(first, end)
            first = end

    def _together(self, first: int, end: int) -> _Kept:
        some = self._kept[first:end]
        if len(some) == 1:
            return some[0]
        found = self._joined.get((first, end))
        if found is None:
            every = np.arange(len(self._has))
            where = whereabouts(np.concatenate([every[one.where] for one in some]))
            times = np.concatenate([one.times for one in some])
            found = _Kept(where, times, np.concatenate([one.told for one in some], axis=1), [])
            self._joined[first, end] = found
        return found
