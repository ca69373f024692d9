"""The benchmarks: one document on standard output, each figure alone or all, whatever the machine's speed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.__main__ import BENCHES, measured
from bench.material import FIELDS, WANTED, messages
from bench.measure import Figure, Unmeasured, figure, interleaved

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.parametrize("module", sorted(set(BENCHES.values())))
def test_each_module_of_the_table_measures(module: str) -> None:
    pytest.importorskip("line_protocol_parser") if module == "bench.parsing" else None
    assert callable(importlib.import_module(module).measure)


def test_one_figure_alone_is_one_document_on_standard_output() -> None:
    done = run("encode_vs_point")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document) == ["encode_vs_point"]
    found = document["encode_vs_point"]
    assert {"value", "unit", "yardstick", "runs", "at_least"} <= found.keys()
    assert found["runs"] == len(found["each"]) >= 5
    assert found["value"] == sorted(found["each"])[len(found["each"]) // 2]
    assert "encode_vs_point" in done.stderr


def test_what_this_machine_cannot_give_is_left_out_of_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(runs: int) -> dict[str, Figure]:
        raise Unmeasured(f"no root for {runs} runs")

    monkeypatch.setattr("bench.collecting_lab.measure", lacking)
    assert list(measured(["collect_vs_bare", "encode_vs_point"], 5)) == ["encode_vs_point"]


@pytest.mark.parametrize(("arguments", "told"), [(["nonsense"], "nonsense"), (["--runs", "4"], "5 runs")])
def test_what_cannot_be_measured_is_refused(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert not done.stdout
    assert told in done.stderr


@pytest.mark.parametrize(
    ("each", "at_least", "at_most", "ok"),
    [
        ([1.0, 9.0, 3.0], 3, None, True),
        ([1.0, 9.0, 2.9], 3, None, False),
        ([1.0, 9.0, 3.1], None, 3, False),
        ([1.0, 9.0, 3.0], None, 3, True),
    ],
)
def test_the_median_decides(each: list[float], at_least: float | None, at_most: float | None, ok: bool) -> None:
    found: Figure = figure(each, "x", "something", at_least=at_least, at_most=at_most)
    assert (found.ok, found.runs, found.value) == (ok, 3, sorted(each)[1])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Figure) == found


def test_runs_alternate_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def part(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleaved(2, a=lambda: part("a"), b=lambda: part("b"))
    assert order == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_the_material_is_what_the_figures_say() -> None:
    (samples,) = messages(1)
    assert len(samples) == 50
    assert len(FIELDS) == len(set(FIELDS)) == 40
    assert all(list(sample.fields) == FIELDS for sample in samples)
    assert len(WANTED["vm"]) == 6
    assert messages(1) == [samples]
