"""The committed dashboards: in step with the code, valid by Grafana's schema and by our own checks."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from virtpilot import fields
from virtpilot.fields import Unit
from virtpilot.grafana.__main__ import main
from virtpilot.grafana.boards import BOARDS
from virtpilot.grafana.queries import panels, queries, substitute, targets
from virtpilot.grafana.view import Source

ROOT: Final = Path(__file__).parents[2]
_SCHEMA: Final = Path(__file__).parent / "grafana-dashboard.jsonschema.json"
_METRIC: Final = re.compile(r"\b(?:host|vm|vm_vcpu|vm_disk|vm_net|knob)_[a-z0-9_]+\b(?=\{)")
_SERIES: Final = {f"{measurement}_{name}": field for (measurement, name), field in fields.FIELDS.items()}
_GAUGE_UNITS: Final = {
    Unit.RATIO: {"percentunit"},
    Unit.BYTES: {"bytes", "percentunit"},
    Unit.SECONDS: {"s"},
    Unit.COUNT: {"none"},
    Unit.BYTES_PER_SECOND: {"Bps"},
}
_RATE_UNITS: Final = {
    Unit.BYTES: {"Bps"},
    Unit.SECONDS: {"percentunit", "none", "s"},
    Unit.COUNT: {"iops", "ops", "pps", "s"},
}
_REDUCED: Final = {"Starved guests"}  # a count of ratios that are too high


def _board(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "grafana" / "json" / f"{name}.json").read_text())
    return loaded


each_board = pytest.mark.parametrize("name", sorted(BOARDS))


def test_the_committed_json_is_what_the_code_makes(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new")]) == 0
    made = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "grafana" / "json").iterdir()}
    assert made == committed, "run: make dashboards"


def test_without_a_folder_it_tells_its_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m virtpilot.grafana FOLDER" in capsys.readouterr().err


@each_board
def test_grafanas_own_schema_takes_it(name: str) -> None:
    if not _SCHEMA.exists():
        reason = f"no {_SCHEMA.name} beside the repository"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    schema = json.loads(_SCHEMA.read_text())
    validator = jsonschema.Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(_board(name))] == []
    broken = _board(name) | {"panels": [{"type": 3}]}
    assert list(validator.iter_errors(broken))


def test_boards_have_addresses_of_their_own() -> None:
    assert len({_board(name)["uid"] for name in BOARDS}) == len(BOARDS)
    assert len({_board(name)["title"] for name in BOARDS}) == len(BOARDS)


@each_board
def test_panel_ids_and_titles_are_unique_and_every_panel_says_what_it_means(name: str) -> None:
    found = list(panels(_board(name)))
    ids = [panel["id"] for panel in found]
    titles = [panel["title"] for panel in found]
    assert len(set(ids)) == len(ids)
    assert min(ids) > 0
    assert len(set(titles)) == len(titles)
    assert all(panel["description"].endswith(".") for panel in found if panel["type"] != "row")


@each_board
def test_no_panel_lies_over_another_or_outside_the_grid(name: str) -> None:
    places = [panel["gridPos"] for panel in panels(_board(name))]
    for place in places:
        assert min(place["x"], place["w"] - 1, place["h"] - 1) >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


@each_board
def test_every_panel_target_and_variable_uses_the_data_source_variable(name: str) -> None:
    board = _board(name)
    variables = board["templating"]["list"]
    sources = [{"type": "prometheus", "uid": f"${{{one['name']}}}"} for one in variables if one["type"] == "datasource"]
    assert sources
    assert all(one["datasource"] in sources for one in variables if one["type"] == "query")
    assert all(panel["datasource"] in sources for panel in panels(board) if panel["type"] != "row")
    assert all(target["datasource"] in sources for _, target in targets(board))


@each_board
def test_every_panel_has_a_unit_and_a_query_with_a_reference_of_its_own(name: str) -> None:
    for panel in panels(_board(name)):
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)


@each_board
def test_every_variable_in_a_query_is_one_of_the_boards(name: str) -> None:
    board = _board(name)
    own = {variable["name"]: "x" for variable in board["templating"]["list"]}
    grafanas = {"__rate_interval": "1m", "__range": "1h"}
    for _, target in targets(board):
        substitute(target["expr"], own | grafanas)
    for variable in board["templating"]["list"]:
        substitute(variable["query"], own | grafanas)


@pytest.mark.parametrize("name", ["fleet", "guest"])
def test_queries_name_declared_fields_only(name: str) -> None:
    for query in queries(_board(name)):
        if query.source is Source.EXPORTERS:
            continue
        used = _METRIC.findall(query.expression)
        assert used, query.owner
        assert set(used) <= set(_SERIES), query.owner
        # Nothing that looks like a metric has escaped the pattern above.
        selectors = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=\{)", query.expression)
        assert selectors == used, query.owner


@pytest.mark.parametrize("name", ["fleet", "guest"])
def test_counters_are_asked_for_rates_and_gauges_are_not(name: str) -> None:
    for query in queries(_board(name)):
        for metric in _METRIC.findall(query.expression):
            rated = re.search(rf"(?:rate|increase)\({metric}\{{", query.expression) is not None
            assert rated == (_SERIES[metric].type is fields.Type.COUNTER), (query.owner, metric)


@pytest.mark.parametrize("name", ["fleet", "guest"])
def test_units_agree_with_the_fields(name: str) -> None:
    for panel, target in targets(_board(name)):
        if panel["title"] in _REDUCED:
            continue
        for metric in _METRIC.findall(target["expr"]):
            if metric == "vm_state_code":
                continue  # it says which guests are meant, beside what is shown of them
            field = _SERIES[metric]
            table = _RATE_UNITS if field.type is fields.Type.COUNTER else _GAUGE_UNITS
            assert panel["fieldConfig"]["defaults"]["unit"] in table[field.unit], (panel["title"], metric)


def test_queries_fill_in_variables_and_refuse_unknown_ones() -> None:
    target = {"refId": "A", "expr": "a{b='$x'}[${y:raw}]", "datasource": {"uid": "${datasource}"}}
    board = {"panels": [{"title": "t", "panels": [{"title": "in", "targets": [target]}]}]}
    assert [query.expression for query in queries(board, {"x": "1", "y": "2m"})] == ["a{b='1'}[2m]"]
    with pytest.raises(KeyError, match="y"):
        queries(board, {"x": "1"})
