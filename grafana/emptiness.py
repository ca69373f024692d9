"""Asks a live store every query of the dashboards and names those that would leave a person before an empty panel."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any, Final

import msgspec

from virtpilot.grafana.queries import Choice, Query, choices, queries
from virtpilot.grafana.view import Source

BOARDS: Final = ("fleet", "guest", "pilot")
_TIMEOUT_S: Final = 30.0
_MAX_ANSWER_BYTES: Final = 64 << 20
_POINTS: Final = 240
_MAX_REASON_CHARS: Final = 300
# A series is always chosen by labels: all of them are of a cluster.
_SELECTOR: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=\{)")


class Series(msgspec.Struct, frozen=True):
    """One series of an answer; `value` of an instant query, `values` of a range query."""

    metric: dict[str, str] = {}
    value: tuple[float, str] | None = None
    values: list[tuple[float, str]] = []


class _Data(msgspec.Struct, frozen=True):
    result: list[Series]


class _Answer(msgspec.Struct, frozen=True):
    data: _Data


class _Labels(msgspec.Struct, frozen=True):
    data: list[str]


def board(name: str) -> dict[str, Any]:
    """Return a dashboard's JSON as it is shipped."""
    loaded: dict[str, Any] = json.loads(files("virtpilot.grafana").joinpath("json", f"{name}.json").read_text("utf-8"))
    return loaded


def empty_panels(
    url: str,
    variables: Mapping[str, str],
    start_s: float,
    end_s: float,
    *,
    exporters_url: str = "",
    boards: Iterable[str] = BOARDS,
) -> list[str]:
    """Return the queries that find nothing between two times (seconds since the epoch), as `board: owner: PromQL`.

    `url` is the store's address and `variables` what a person chose, e.g. `{"cluster": "lab", "guest": uuid}`. What
    asks the exporters' metrics is asked at `exporters_url` and left out without one. Raises OSError where a server is
    not there; a query that a server refuses is named with its reason.
    """
    urls = {Source.STORE: url, Source.EXPORTERS: exporters_url}
    shown = {"__range": f"{max(int(end_s - start_s), 1)}s"} | dict(variables)
    found = []
    for name in boards:
        loaded = board(name)
        wanted: list[Query | Choice] = [*choices(loaded, shown), *queries(loaded, shown)]
        for asked in wanted:
            server = urls[asked.source]
            if server and (reason := _nothing(server, asked, start_s, end_s)):
                found.append(f"{name}: {asked.owner}: {reason}")
    return found


def reads_only(named: str, prefix: str) -> bool:
    """Tell whether a query that `empty_panels` named reads no other series than those whose names begin so."""
    series = _SELECTOR.findall(named)
    return bool(series) and all(one.startswith(prefix) for one in series)


def _nothing(url: str, asked: Query | Choice, start_s: float, end_s: float) -> str:
    """Return why there is nothing to show, "" where there is something."""
    try:
        any_there = any(True for _ in _found(url, asked, start_s, end_s))
    except urllib.error.HTTPError as error:
        return f"{asked.expression}: {error.code} {error.read(_MAX_REASON_CHARS).decode(errors='replace')}"
    except msgspec.DecodeError as error:
        return f"{asked.expression}: not an answer of Prometheus's API: {error}"
    return "" if any_there else asked.expression


def _found(url: str, asked: Query | Choice, start_s: float, end_s: float) -> Iterator[object]:
    if isinstance(asked, Choice):
        yield from options(url, asked, start_s, end_s)
    else:
        yield from ask(url, asked, start_s, end_s)


def ask(url: str, query: Query, start_s: float, end_s: float) -> list[Series]:
    """Return the series of a query that hold a value; raises OSError, msgspec.DecodeError."""
    if query.instant:
        arguments = {"query": query.expression, "time": str(end_s)}
        body = _get(f"{url}/api/v1/query", arguments)
    else:
        step_s = max((end_s - start_s) / _POINTS, 1.0)
        arguments = {"query": query.expression, "start": str(start_s), "end": str(end_s), "step": str(step_s)}
        body = _get(f"{url}/api/v1/query_range", arguments)
    series = msgspec.json.decode(body, type=_Answer).data.result
    return [one for one in series if one.value is not None or one.values]


def options(url: str, choice: Choice, start_s: float, end_s: float) -> dict[str, str]:
    """Return what a variable offers: value and the text shown; raises OSError, msgspec.DecodeError."""
    if choice.label:
        arguments = {"match[]": choice.expression, "start": str(start_s), "end": str(end_s)}
        body = _get(f"{url}/api/v1/label/{choice.label}/values", arguments)
        return {value: value for value in msgspec.json.decode(body, type=_Labels).data}
    query = Query(owner=choice.owner, expression=choice.expression, source=choice.source, instant=True)
    # JavaScript's named groups, which Grafana takes for a variable's text and value.
    pattern = re.compile(choice.regex.strip("/").replace("(?<", "(?P<"))
    matches = (pattern.search(_written(series)) for series in ask(url, query, start_s, end_s))
    return {match["value"]: match["text"] for match in matches if match is not None}


def _written(series: Series) -> str:
    """Return a series as Grafana writes it before it lets a variable's regex look at it."""
    labels = ",".join(f'{key}="{value}"' for key, value in series.metric.items())
    at, value = series.value if series.value is not None else (0.0, "")
    return f"{{{labels}}} {value} {round(at * 1000)}"


def _get(url: str, arguments: Mapping[str, str]) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address of an HTTP server")
    asked = f"{url}?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:  # noqa: S310 # http and https only, see above
        return bytes(answer.read(_MAX_ANSWER_BYTES))
