"""All windows that the rules in force read, kept up to date sample by sample."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.devices import Of
from virtpilot.rules.language.typed import Columns, Numbers, Window
from virtpilot.rules.signals.bounds import Bound, bound
from virtpilot.rules.signals.certain import Certain, certain
from virtpilot.rules.signals.history import History, Series
from virtpilot.rules.signals.news import NOTHING, News
from virtpilot.rules.signals.over_time import evaluate
from virtpilot.rules.signals.saved import SavedHistory, SavedSeries, kind_of
from virtpilot.rules.signals.table import Table, Where, whereabouts

Key = tuple[Of, int]
"""Whose histories, and how long they are (ns)."""
_ROWS_AT_ONCE: Final = 250
_NEWS_AT_ONCE: Final = 2000


class Told:
    """Up to when the points of each row were dumped, as long as they have the same past (see `Windows.past`)."""

    def __init__(self, past: object) -> None:
        self.past = past
        self.units: NDArray[np.int64] = np.zeros(0, np.int64)


class Track:
    """The histories of one kind and span, and the windows that are read from them, each with its newest values."""

    def __init__(self, windows: list[Window], asked: Collection[tuple[tuple[Of, str], bool]], capacity: int) -> None:
        first = {_series(window): window for window in reversed(windows)}
        self.series = sorted(first)
        self.reads = [first[series].series for series in self.series]
        """What tells the number of each series."""
        kept = [Series(merge, first[text, merge].what == "counter") for text, merge in self.series]
        self._history = History(windows[0].span_ns, kept, capacity)
        self.values: list[dict[Window, NDArray[np.float64]]] = [{} for _ in self.series]
        """The newest values of the windows over each series."""
        for window in windows:
            self.values[self.place(window)][window] = np.full(capacity, np.nan)
        self.bounds: dict[tuple[Window, bool], Bound] = {
            (window, upper): found
            for window in windows
            for upper in (True, False)
            if (window.key, upper) in asked
            and (found := bound(window, capacity, lambda: self.history, self.place(window), upper=upper)) is not None
        }
        self._bounds = [(self.place(window), window, one) for (window, _upper), one in self.bounds.items()]
        self._certain = [certain(own, capacity) for own in self.values]
        self._all: list[Bound | Certain] = [*self.bounds.values(), *self._certain]
        self.past = object()
        """Another one whenever some row's past becomes another one."""

    def share(self, news: News, stale: NDArray[np.bool_], last: NDArray[np.int64]) -> None:
        """Know where samples come from, and what is kept for all tracks of the kind together."""
        self._news = news
        self.stale = stale
        """The rows that have had a sample since a series' values were looked at."""
        self._last = last

    @property
    def history(self) -> History:
        """What samples have made so far."""
        self._news.settle(self)
        return self._history

    @property
    def nbytes(self) -> int:
        """How much memory the histories take once all their places are taken; any thread may ask."""
        return self._history.nbytes

    def take_over(self, former: Track, rows: NDArray[np.int64]) -> None:
        """Go on with the past that a track of the same span and rows has of some of them."""
        places = {series: place for place, series in enumerate(former.series)}
        self.history.take_over(former.history, [places.get(series) for series in self.series])
        self.stale[:, rows] = True
        self.forget(rows)

    def place(self, window: Window) -> int:
        """Return the place of a window's series."""
        return self.series.index(_series(window))

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""
        self.history.grow(capacity)
        for one in self._all:
            one.grow(capacity)
        for series in self.values:
            for window, values in series.items():
                series[window] = np.pad(values, (0, capacity - len(values)), constant_values=np.nan)

    def clear(self, row: int) -> None:
        """Forget a row."""
        self.history.clear(row)
        self.stale[:, row] = False
        self._last[:, row] = NOTHING
        self.past = object()
        for one in self.bounds.values():
            one.begin(row)
        for sure in self._certain:
            sure.forget(row)
        for values in (values for series in self.values for values in series.values()):
            values[row] = np.nan

    def forget(self, rows: Where | int) -> None:
        """Know no bounds of rows any more: they have another past."""
        self.past = object()
        self._last[:, rows] = NOTHING
        for one in self._all:
            one.forget(rows)

    def placed(self) -> Iterator[tuple[int, Bound]]:
        """Yield the bounds, each with the place of its window's series."""
        return ((place, one) for place, _window, one in self._bounds)

    def doubts(
        self, where: Where, times: NDArray[np.int64], told: NDArray[np.float64]
    ) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Take a sample of each row into what is certain; yield where nothing is, by places of series."""
        for place, sure in enumerate(self._certain):
            if sure.some:
                yield place, sure.take(self.values[place], where, times, self._history.kept(place, told[place]))

    def push(self, where: Where, times: NDArray[np.int64], values: Sequence[NDArray[np.float64]]) -> None:
        """Put a sample of each row that bounds know of already."""
        self._history.push(where, times, values)

    def read(self, columns: Columns, count: int) -> list[NDArray[np.float64]]:
        """Return the number of each series for each row."""
        return [self.read_one(place, columns, count) for place in range(len(self.reads))]

    def read_one(self, place: int, columns: Columns, count: int) -> NDArray[np.float64]:
        """Return the number of one series for each row."""
        read = np.atleast_1d(np.asarray(self.reads[place](columns, np.nan), np.float64))
        return read if len(read) == count else np.broadcast_to(read, count)

    def push_all(self, where: Where, times: NDArray[np.int64], values: Sequence[NDArray[np.float64]]) -> None:
        """Take several samples of each row, one after another; bounds begin anew."""
        self.history.push_all(where, times, values)
        self.stale[:, where] = True
        self.forget(where)

    def look(self, series: int, where: Where, times: NDArray[np.int64]) -> None:
        """Work out the windows over a series."""
        self.stale[series, where] = False
        if self.history.young(where, times):
            for values in self.values[series].values():
                values[where] = np.nan
            self._certain[series].forget(where)
            return
        for some, at_ns, points in self.history.points(where, times, series):
            for window, values in self.values[series].items():
                values[some] = evaluate(window, points, at_ns)
            for place, window, one in self._bounds:
                if place == series:
                    one.looked(some, points, self.values[series][window][some])
                    # The same number again may be more than the point that it is part of.
                    self._last[series, some] = NOTHING
            self._certain[series].looked(self.values[series], some, at_ns, points)


class Windows:
    """Histories shared by the windows of one kind and span; values as of a subject's last sample.

    `asked` are the windows of which a bound from above (True) or below is asked for.
    """

    def __init__(
        self, windows: Iterable[Window], tables: dict[Of, Table], asked: Iterable[tuple[Window, bool]] = ()
    ) -> None:
        self._tables = tables
        every: dict[tuple[Of, str], Window] = {}
        for window in windows:
            every.setdefault(window.key, window)
        tracks: dict[Key, list[Window]] = {}
        for window in every.values():
            tracks.setdefault((window.on, window.span_ns), []).append(window)
        keys = {(window.key, upper) for window, upper in asked}
        self._tracks = {key: Track(own, keys, tables[key[0]].capacity) for key, own in tracks.items()}
        self._of = {key: (self._tracks[window.on, window.span_ns], window) for key, window in every.items()}
        self._about = {kind: [track for (on, _), track in self._tracks.items() if on is kind] for kind in tables}
        self._news = {kind: News(tracks, tables[kind].capacity) for kind, tracks in self._about.items() if tracks}

    def __len__(self) -> int:
        return len(self._of)

    @property
    def nbytes(self) -> int:
        """How much memory all histories take once all their places are taken."""
        return sum(track.nbytes for track in self._tracks.values())

    def track(self, window: Window) -> tuple[Track, Window]:
        """Return where a window is kept, and the first of its text."""
        return self._of[window.key]

    def about(self, kind: Of) -> Sequence[Track]:
        """Return what is kept of a kind's subjects."""
        return self._about[kind]

    def value(self, window: Window, rows: Where) -> NDArray[np.float64]:
        """Return a window's value of rows, NaN where it is not known and for rows below 0.

        Looked at only now: most windows are read by rules that another condition rules out for a whole message.
        """
        track, first = self._of[window.key]
        series = track.place(first)
        table, values = self._tables[first.on], track.values[series]
        if isinstance(rows, slice):
            stale = track.stale[series, rows]
            count = np.count_nonzero(stale)
            if count:
                where = rows if count == len(stale) else np.flatnonzero(stale) + rows.start
                self._look(track, series, where, table)
            return values[first][rows]
        mine = rows[rows >= 0]
        stale_rows = mine[track.stale[series, mine]]
        if len(stale_rows):
            self._look(track, series, whereabouts(np.flatnonzero(np.bincount(stale_rows))), table)
        return gather(values[first], rows)

    def bound(self, window: Window, rows: Where, *, upper: bool) -> NDArray[np.float64]:
        """Return what a window's value of rows does not exceed, or fall below; NaN for what has none, else infinite."""
        track, first = self._of[window.key]
        found, times = track.bounds.get((first, upper)), self._tables[first.on].time
        if found is None:
            return np.full(1, np.inf if upper else -np.inf)
        if isinstance(rows, slice):
            return found.now(rows, times[rows])
        own = np.maximum(rows, 0)
        return np.where(rows >= 0, found.now(own, times[own]), np.nan)

    def ahead(
        self, window: Window, columns: Columns, where: Where, times: NDArray[np.int64], *, upper: bool
    ) -> NDArray[np.float64]:
        """Return what `bound` would tell of rows, or more, once the samples that `columns` offers have been taken."""
        track, first = self._of[window.key]
        found = track.bounds.get((first, upper))
        if found is None:
            return np.full(1, np.inf if upper else -np.inf)
        return found.ahead(where, times, track.read_one(track.place(first), columns, len(times)))

    @staticmethod
    def _look(track: Track, series: int, where: Where, table: Table) -> None:
        with np.errstate(all="ignore"):
            track.look(series, where, table.time[where])

    def take(self, kind: Of, columns: Columns, where: Where, times: NDArray[np.int64]) -> None:
        """Take a sample of each row of a kind."""
        news = self._news.get(kind)
        if news is not None:
            with np.errstate(all="ignore"):
                news.take(columns, where, times)

    def grow(self, kind: Of, capacity: int) -> None:
        """Make room for more rows of a kind."""
        for track in self._about[kind]:
            track.grow(capacity)
        if kind in self._news:
            self._news[kind].grow(capacity)

    def move(self, by_ns: int) -> None:
        """Move the times of all points; what was worked out from them stays."""
        for track in self._tracks.values():
            track.history.move(by_ns)
            track.forget(slice(None))

    def clear(self, kind: Of, row: int) -> None:
        """Forget a row of a kind."""
        for track in self._about[kind]:
            track.clear(row)

    def histories(self) -> list[Key]:
        """Return what histories there are."""
        return list(self._tracks)

    def past(self, key: Key) -> object:
        """Return what is the same as long as histories only go on: nobody has gone, nothing was moved or loaded."""
        return self._tracks[key].past

    def pasts(self, kind: Of) -> tuple[object, ...]:
        """Return what is the same as long as all histories of a kind only go on."""
        return tuple(track.past for track in self._about[kind])

    def dump(self, key: Key, told: Told | None = None) -> Iterator[SavedHistory]:
        """Yield histories as they are saved, those of some subjects at a time; with `told` only what is new since."""
        table, history = self._tables[key[0]], self._tracks[key].history
        rows = table.taken()
        told = Told(None) if told is None else told
        adds = len(told.units) > 0
        each = _NEWS_AT_ONCE if adds else _ROWS_AT_ONCE
        told.units = np.pad(told.units, (0, history.slots - len(told.units)))
        for first in range(0, len(rows), each):
            some = rows[first : first + each]
            # Who is there now: others may have gone since the dump began.
            some = some[table.used[some]]
            if adds:
                some = some[history.newest[some] > told.units[some]]
            if len(some):
                made = self._slice(key, some, told.units[some])
                told.units[some] = history.newest[some]
                yield made

    def _slice(self, key: Key, rows: NDArray[np.int64], after: NDArray[np.int64]) -> SavedHistory:
        track, subjects = self._tracks[key], self._tables[key[0]].subjects
        position, place, units = track.history.taken(rows, after)
        at = (place, rows[position])
        columns = zip(track.series, track.history.values(at), track.history.weights(at), strict=True)
        return SavedHistory(
            kind=key[0],
            span_ns=key[1],
            subjects=[subject.id for row in rows.tolist() if (subject := subjects[row]) is not None],
            counts=np.bincount(position, minlength=len(rows)).tolist(),
            times=units.astype("<i8").tobytes(),
            series=[
                SavedSeries(
                    text,
                    merge,
                    values.astype("<f8").tobytes(),
                    b"" if counts is None else counts.astype("<u2").tobytes(),
                )
                for (text, merge), values, counts in columns
            ],
        )

    def take_over(self, former: Windows) -> None:
        """Go on with the histories of windows that nobody uses any more, over tables of the same rows."""
        for key, track in self._tracks.items():
            if key in former._tracks:
                track.take_over(former._tracks[key], self._tables[key[0]].taken())

    def load(self, saved: Iterable[SavedHistory]) -> None:
        """Take up histories that `dump` gave; those that no rule reads any more are left out."""
        for one in saved:
            kind = kind_of(one.kind)
            track = None if kind is None else self._tracks.get((kind, one.span_ns))
            if kind is not None and track is not None:
                with np.errstate(all="ignore"):
                    self._load(one, track, self._tables[kind])

    def _load(self, saved: SavedHistory, track: Track, table: Table) -> None:
        known = np.array([table.row_of.get(one, -1) for one in saved.subjects], np.int64)
        rows = np.repeat(known, saved.counts)
        here = rows >= 0
        rows, units = rows[here], np.frombuffer(saved.times, "<i8")[here]
        if not len(rows):
            return
        of = {(one.text, one.merge): one for one in saved.series}
        values, weights = [], []
        for series in track.series:
            found = of.get(series)
            values.append(np.full(len(rows), np.nan) if found is None else found.numbers()[here])
            weights.append(None if found is None or not found.weights else found.counts()[here])
        track.history.load(rows, units, values, weights)
        track.stale[:, np.unique(rows)] = True
        track.forget(np.unique(rows))


def _series(window: Window) -> tuple[str, str]:
    return window.series_text, window.merge


def gather(values: Numbers, rows: NDArray[np.int64]) -> Numbers:
    """Return the values of rows, NaN for those below 0."""
    found: Numbers = np.where(rows >= 0, values[np.maximum(rows, 0)], np.nan)
    return found
