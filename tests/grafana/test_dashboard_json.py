"""The committed dashboards: in step with the code, valid by Grafana's schema and by our own checks."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from tests.grafana.piloted_fleet import PilotedFleet, exported_names
from virtpilot import fields
from virtpilot.fields import Unit
from virtpilot.grafana.__main__ import main
from virtpilot.grafana.boards import BOARDS
from virtpilot.grafana.queries import Choice, Query, choices, notes, panels, queries, substitute, targets
from virtpilot.grafana.view import SOURCE_NAME, SOURCE_UID, Source
from virtpilot.pipeline.store.file import FileStore

ROOT: Final = Path(__file__).parents[2]
_SCHEMA: Final = Path(__file__).parent / "grafana-dashboard.jsonschema.json"
_METRIC: Final = re.compile(r"\b(?:host|vm|vm_vcpu|vm_disk|vm_net|knob)_[a-z0-9_]+\b(?=\{)")
_SELECTOR: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=\{)")
_SERIES: Final = {f"{measurement}_{name}": field for (measurement, name), field in fields.FIELDS.items()}
_GAUGE_UNITS: Final = {
    Unit.PER_SECOND: {"ops", "pps"},
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
    validator = jsonschema.Draft7Validator(json.loads(_SCHEMA.read_text()))
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
def test_every_panel_target_note_and_variable_goes_by_a_data_source_variable(name: str) -> None:
    board = _board(name)
    variables = board["templating"]["list"]
    sources = [{"type": "prometheus", "uid": f"${{{one['name']}}}"} for one in variables if one["type"] == "datasource"]
    assert sources
    shown = [panel for panel in panels(board) if panel["type"] != "row"]
    asked = [one for one in variables if one["type"] == "query"] + shown
    asked += notes(board) + [note["target"] for note in notes(board)]
    assert all(one["datasource"] in sources for one in asked)
    assert all(target["datasource"] == panel["datasource"] for panel, target in targets(board))


@each_board
def test_data_source_variables_open_with_the_provisioned_one(name: str) -> None:
    for variable in _board(name)["templating"]["list"]:
        if variable["type"] == "datasource":
            assert variable["query"] == "prometheus"
            assert variable["current"] == {"text": SOURCE_NAME, "value": SOURCE_UID}


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
def test_numbers_and_rankings_ask_for_the_present_and_graphs_for_the_range(name: str) -> None:
    for panel, target in targets(_board(name)):
        present = panel["type"] in {"stat", "bargauge"}
        assert (bool(target.get("instant")), bool(target.get("range"))) == (present, not present), panel["title"]


@each_board
def test_every_variable_in_a_query_is_one_of_the_boards(name: str) -> None:
    board = _board(name)
    known = {variable["name"]: "x" for variable in board["templating"]["list"]}
    known |= {"__rate_interval": "1m", "__range": "1h"}
    for _, target in targets(board):
        substitute(target["expr"], known)
    for note in notes(board):
        assert note["expr"] == note["target"]["expr"]
        substitute(note["expr"], known)
    for variable in board["templating"]["list"]:
        substitute(variable["query"], known)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """The names that the processes' own exporters give."""
    folder = tmp_path_factory.mktemp("exported")
    chain = PilotedFleet(folder, "names", lambda _clock: FileStore(folder / "store"))
    exporters = chain.exporters()
    try:
        return frozenset().union(*map(exported_names, exporters))
    finally:
        chain.close()


@each_board
def test_queries_name_declared_fields_and_exported_metrics_only(name: str, exported: frozenset[str]) -> None:
    board = _board(name)
    every: list[Query | Choice] = [*queries(board), *choices(board)]
    for asked in every:
        known = frozenset(_SERIES) if asked.source is Source.STORE else exported
        used = _SELECTOR.findall(asked.expression) or [asked.expression]  # label_values takes a bare metric too
        assert set(used) <= known, asked.owner


@each_board
def test_counters_are_asked_for_rates_and_gauges_are_not(name: str) -> None:
    for asked in queries(_board(name)):
        for metric in _SELECTOR.findall(asked.expression):
            rated = re.search(rf"(?:rate|increase)\({metric}\{{", asked.expression) is not None
            declared = _SERIES.get(metric)
            counter = declared.type is fields.Type.COUNTER if declared else metric.endswith("_total")
            assert rated == counter, (asked.owner, metric)


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
    target = {"refId": "A", "expr": "a{b='$x'}[${y:raw}]", "datasource": {"uid": "${exporters}"}, "instant": True}
    board = {"panels": [{"title": "t", "panels": [{"title": "in", "targets": [target]}]}]}
    (found,) = queries(board, {"x": "1", "y": "2m"})
    assert (found.owner, found.expression) == ("in / A", "a{b='1'}[2m]")
    assert (found.source, found.instant) == (Source.EXPORTERS, True)
    with pytest.raises(KeyError, match="y"):
        queries(board, {"x": "1"})


@pytest.mark.parametrize("query", ["", "metrics(a)", "label_values(a)", "query_result"])
def test_variables_of_another_form_are_refused(query: str) -> None:
    variable = {"name": "v", "type": "query", "query": query, "datasource": {"uid": "${datasource}"}}
    with pytest.raises(ValueError, match="variable v"):
        choices({"templating": {"list": [variable]}})
