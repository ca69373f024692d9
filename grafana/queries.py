"""The queries of a dashboard as a server would get them: its panels', its annotations' and its variables'."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from virtpilot.grafana.view import Source

_VARIABLE: Final = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")
_LABEL_VALUES: Final = re.compile(r"label_values\((.+), *(\w+)\)", re.DOTALL)
_QUERY_RESULT: Final = re.compile(r"query_result\((.+)\)", re.DOTALL)
DEFAULTS: Final[dict[str, str]] = {
    "__rate_interval": "1m",
    "__interval": "15s",
    "__range": "1h",
    "cluster": ".+",
    "host": ".+",
    "guest": ".+",
    "job": ".+",
}


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """PromQL with its variables filled in; `owner` says whose it is, `instant` that it asks for the present only."""

    owner: str
    expression: str
    source: Source
    instant: bool = False


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What fills a dashboard variable: the values of `label` of the series selected, or what `regex` finds in each."""

    owner: str
    expression: str
    source: Source
    label: str = ""
    regex: str = ""


def queries(dashboard: Mapping[str, Any], values: Mapping[str, str] | None = None) -> list[Query]:
    """Return each query of a dashboard's JSON, panels' first, then annotations', its variables replaced by `values`.

    Without a value a variable is everything, and intervals are a minute; raises KeyError for an unknown variable.
    """
    known = DEFAULTS | dict(values or {})
    found = [
        Query(
            owner=f"{panel['title']} / {target['refId']}",
            expression=substitute(str(target["expr"]), known),
            source=_source(target),
            instant=bool(target.get("instant")),
        )
        for panel, target in targets(dashboard)
    ]
    return found + [
        Query(
            owner=f"annotation {note['name']}",
            expression=substitute(str(note["target"]["expr"]), known),
            source=_source(note),
        )
        for note in notes(dashboard)
    ]


def choices(dashboard: Mapping[str, Any], values: Mapping[str, str] | None = None) -> list[Choice]:
    """Return what fills each variable that a query fills; raises KeyError as `queries`, ValueError for another form."""
    known = DEFAULTS | dict(values or {})
    return [
        _choice(variable, substitute(str(variable["query"]), known))
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]


def _choice(variable: Mapping[str, Any], query: str) -> Choice:
    owner, source = f"variable {variable['name']}", _source(variable)
    if match := _LABEL_VALUES.fullmatch(query):
        return Choice(owner=owner, expression=match[1], source=source, label=match[2])
    if match := _QUERY_RESULT.fullmatch(query):
        return Choice(owner=owner, expression=match[1], source=source, regex=str(variable.get("regex", "")))
    raise ValueError(f"{owner}: neither label_values nor query_result: {query}")


def _source(asked: Mapping[str, Any]) -> Source:
    return Source(substitute(asked["datasource"]["uid"], {source: source for source in Source}))


def targets(dashboard: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each panel with each of its targets, those within collapsed rows too."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield panel, target


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel and row."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def notes(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the annotations."""
    found: list[dict[str, Any]] = dashboard.get("annotations", {}).get("list", [])
    return found


def substitute(expression: str, values: Mapping[str, str]) -> str:
    """Return PromQL with its variables replaced; raises KeyError for an unknown one."""
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], expression)
