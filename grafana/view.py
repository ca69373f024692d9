"""What a dashboard shows, as plain records; `build.py` turns them into Grafana's JSON."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

WIDTH: Final = 24
# How old a value in "Now" may be: a host that fell silent, or a guest that has moved away, is not shown as it was.
FRESH: Final = "2m"
# The provisioned data source (provisioning/datasources) that the boards open with.
SOURCE_UID: Final = "virtpilot"
SOURCE_NAME: Final = "virtpilot"


class Source(StrEnum):
    """The dashboard variable that names where a query goes."""

    STORE = "datasource"
    EXPORTERS = "exporters"

    @property
    def label(self) -> str:
        """What stands beside the variable's field."""
        return {"datasource": "Store", "exporters": "Exporters"}[self]


class Shape(StrEnum):
    """How a panel draws."""

    GRAPH = "timeseries"
    STACK = "stack"
    NUMBER = "stat"
    TEXT = "text"
    RANKING = "bargauge"
    TIMELINE = "state-timeline"


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One panel: its queries as (PromQL, legend), its unit in Grafana's names, its place by size and order.

    `warn` and `bad` are the values from which it turns yellow and red; `names` gives values words; `to_guest` links
    each series to its guest's dashboard; `nothing` is what it says where its query finds nothing.
    """

    title: str
    meaning: str
    shape: Shape
    unit: str
    queries: tuple[tuple[str, str], ...]
    width: int = 8
    height: int = 8
    low: float | None = 0
    high: float | None = None
    warn: float | None = None
    bad: float | None = None
    names: tuple[tuple[int, str, str], ...] = ()
    to_guest: bool = False
    decimals: int | None = None
    nothing: str = ""
    source: Source = Source.STORE


class Section(msgspec.Struct, frozen=True):
    """A row of the dashboard with its panels."""

    title: str
    panels: tuple[Panel, ...]


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """A choice at the dashboard's head, filled by a query; `regex` picks text and value out of its answer."""

    name: str
    label: str
    query: str
    regex: str = ""
    many: bool = False
    source: Source = Source.STORE


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is marked across all graphs while its query is above 0; `text` may hold {{labels}}."""

    name: str
    query: str
    text: str
    color: str


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A dashboard; `uid` is its address, for ever."""

    uid: str
    title: str
    meaning: str
    variables: tuple[Variable, ...]
    sections: tuple[Section, ...]
    notes: tuple[Note, ...] = ()

    @property
    def sources(self) -> list[Source]:
        """Where its queries go, the store first."""
        used = {panel.source for section in self.sections for panel in section.panels}
        return [source for source in Source if source in used]


def fresh(metric: str, where: str) -> str:
    """Return the PromQL of a gauge's newest value, nothing where that is old."""
    return f"last_over_time({metric}{where}[{FRESH}])"


def graph(title: str, meaning: str, unit: str, *queries: tuple[str, str], **more: object) -> Panel:
    """Return a panel of lines over time."""
    return _panel(Shape.GRAPH, title, meaning, unit, queries, {"width": 12} | more)


def stack(title: str, meaning: str, unit: str, *queries: tuple[str, str], **more: object) -> Panel:
    """Return a panel of areas upon each other."""
    return _panel(Shape.STACK, title, meaning, unit, queries, {"width": 12} | more)


def number(title: str, meaning: str, unit: str, query: str, **more: object) -> Panel:
    """Return a panel with the present value."""
    return _panel(Shape.NUMBER, title, meaning, unit, ((query, ""),), {"width": 4, "height": 4} | more)


def text(title: str, meaning: str, query: str, label: str, **more: object) -> Panel:
    """Return a panel with the value of a label of the series that are there."""
    legend = "{{" + label + "}}"
    return _panel(Shape.TEXT, title, meaning, "none", ((query, legend),), {"width": 4, "height": 4} | more)


def ranking(title: str, meaning: str, unit: str, query: str, legend: str, **more: object) -> Panel:
    """Return a panel with the greatest of many."""
    return _panel(Shape.RANKING, title, meaning, unit, ((query, legend),), {"width": 12, "height": 10} | more)


def timeline(title: str, meaning: str, query: str, legend: str, **more: object) -> Panel:
    """Return a panel with a band per series that shows its states over time."""
    return _panel(Shape.TIMELINE, title, meaning, "none", ((query, legend),), {"width": 12} | more)


def _panel(
    shape: Shape, title: str, meaning: str, unit: str, queries: tuple[tuple[str, str], ...], more: dict[str, object]
) -> Panel:
    given = {"title": title, "meaning": meaning, "shape": shape, "unit": unit, "queries": queries} | more
    return msgspec.convert(given, Panel)
