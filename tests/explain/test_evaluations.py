"""Which evaluations are kept: those that changed a signal, and near misses each time they change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virtpilot.clock import SECOND
from virtpilot.model import Kind, Sample, SignalState, Subject
from virtpilot.pipeline import evaluations
from virtpilot.pipeline.evaluations import Evaluation, EvaluationLog, Tracer, older, read
from virtpilot.pipeline.rulebook import Rulebook, RuleOptions

RULES = """\
virtpilot: 1
rules:
  - name: starved
    on: vm
    where: tags.tier != "batch"
    when: avg(cpu_steal_ratio, 20s) > 10% and host.cpu_usage_ratio > 85%
    for: 20s
"""
START = 1_767_225_600


class Watched:
    """A rulebook with a tracer, fed by hand: the host's usage and the guest's steal every ten seconds."""

    def __init__(self, folder: Path) -> None:
        (folder / "rules.yaml").write_text(RULES)
        self.path = folder / "evaluations.jsonl"
        self.book = Rulebook(RuleOptions(paths=[str(folder / "rules.yaml")]))
        self.tracer = Tracer(self.book, EvaluationLog(self.path))
        self.at_s = START

    def measure(self, usage: float, *steals: float) -> None:
        self.at_s += 10
        now_ns = self.at_s * SECOND
        samples = [Sample("host", {"host": "h"}, {"cpu_usage_ratio": usage}, now_ns)]
        for number, steal in enumerate(steals):
            tags = {"host": "h", "vm": f"g{number}", "name": f"guest-{number}"}
            samples.append(Sample("vm", tags, {"cpu_steal_ratio": steal}, now_ns))
        signals = self.book.evaluator.feed(samples, "m")
        self.tracer.signals(signals)
        for _ in self.tracer.look(now_ns):
            pass

    def rules(self, text: str) -> None:
        (self.path.parent / "rules.yaml").write_text(text)
        self.book.reload()

    def kept(self) -> list[Evaluation]:
        return list(read(self.path))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def held(one: Evaluation) -> dict[str, bool | None]:
    return {clause.text: clause.held for clause in one.clauses}


def test_what_is_never_near_leaves_nothing(watched: Watched) -> None:
    for _ in range(5):
        watched.measure(0.5, 0.02)
    assert watched.kept() == []


def test_a_near_miss_is_kept_once_until_it_changes(watched: Watched) -> None:
    for usage in (0.9, 0.91, 0.92, 0.5, 0.5, 0.95):
        watched.measure(usage, 0.02)
    kept = watched.kept()
    assert [held(one)["host.cpu_usage_ratio > 85%"] for one in kept] == [True, True, False, True]
    # The window is not known before it has been measured long enough.
    assert [held(one)["avg(cpu_steal_ratio, 20s) > 10%"] for one in kept] == [None, False, False, False]
    assert kept[1].values == pytest.approx(
        {"avg(cpu_steal_ratio, 20s)": 0.02, "host.cpu_usage_ratio": kept[1].values["host.cpu_usage_ratio"]}
    )
    assert [one.state for one in kept] == [None] * 4


def test_every_change_of_a_signal_is_kept_with_its_comparisons(watched: Watched) -> None:
    for steal in (0.3, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0):
        watched.measure(0.9, steal)
    changes = [one for one in watched.kept() if one.state is not None]
    assert [one.state for one in changes] == [SignalState.PENDING, SignalState.FIRING, SignalState.INACTIVE]
    assert set(held(changes[1]).values()) == {True}
    assert changes[1].signal.startswith("sg-")
    assert changes[1].subject.name == "guest-0"


def test_one_look_keeps_so_many_at_most(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "MAX_A_LOOK", 3)
    watched.measure(0.9, *[0.0] * 5)
    assert len(watched.kept()) == 3
    assert watched.tracer.left_out == 2


def test_who_takes_the_place_of_one_that_has_gone_is_somebody_else(watched: Watched) -> None:
    world = watched.book.evaluator.world
    watched.measure(0.9, 0.0, 0.0, 0.0)
    row, before = world.tables[Kind.VM].row_of["g1"], len(watched.kept())
    world.remove(Kind.VM, "g1")
    newcomer = {"host": "h", "vm": "new", "name": "new"}
    watched.book.evaluator.feed([Sample("vm", newcomer, {"cpu_steal_ratio": 0.0}, watched.at_s * SECOND)], "m")
    assert world.tables[Kind.VM].row_of["new"] == row
    watched.measure(0.9, 0.0)
    assert [one.subject.id for one in watched.kept()[before:]] == ["g0", "new"]  # g0's window is known by now


def test_many_are_looked_at_some_at_a_time(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "_AT_ONCE", 2)
    watched.measure(0.9, *[0.0] * 5)
    steps = list(watched.tracer.look((watched.at_s + 30) * SECOND))
    assert len(steps) == 3
    assert [one.subject.id for one in watched.kept()] == ["g0", "g1", "g2", "g3", "g4"]


def test_a_rule_that_is_loaded_anew_says_again_what_it_sees_only_where_it_has_changed(watched: Watched) -> None:
    for _ in range(3):
        watched.measure(0.9, 0.0)
    before = len(watched.kept())
    watched.rules(RULES.replace("tier", "class") + RULES.split("rules:\n")[1].replace("name: starved", "name: other"))
    watched.measure(0.9, 0.0)
    watched.measure(0.9, 0.0)
    assert [one.rule for one in watched.kept()[before:]] == ["other"]
    watched.rules(RULES.replace("> 85%", "> 85% and cpu_steal_ratio < 50%"))
    watched.measure(0.9, 0.0)
    watched.measure(0.9, 0.0)
    assert [len(one.clauses) for one in watched.kept()[before:]] == [3, 4]


def test_more_comparisons_than_fit_a_number_are_told_apart() -> None:
    truths = np.zeros((200, 3), np.uint8)
    truths[0, 1] = truths[199, 2] = 1
    assert len(set(evaluations._in_one(truths).tolist())) == 3


def test_the_file_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "MAX_FILE_BYTES", 5_000)
    watched = Watched(tmp_path)
    for turn in range(200):
        watched.measure(0.9 if turn % 2 else 0.5, 0.02)
    assert watched.path.stat().st_size < 6_000
    assert older(watched.path).stat().st_size < 6_000
    times = [one.at_ns for one in watched.kept()]
    assert times == sorted(times)
    assert times[-1] == watched.at_s * SECOND


def test_torn_lines_are_left_out(watched: Watched) -> None:
    watched.measure(0.9, 0.02)
    with watched.path.open("ab") as file:
        file.write(b'{"rule": "starv\n\xff\xfe\n')
    watched.measure(0.5, 0.02)
    assert len(watched.kept()) == 2


def test_a_full_disk_loses_this_log_and_nothing_else(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path / "none" / "log")
    log.add([Evaluation(rule="r", subject=Subject(Kind.VM, "g"), at_ns=1)])
    assert list(read(tmp_path / "none" / "log")) == []
