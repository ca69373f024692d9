"""The windows' files: whole or not there, each as old as its window bears, and nothing of windows that are no more."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from virtpilot.clock import SECOND, VirtualClock, seconds
from virtpilot.errors import StateError
from virtpilot.model import Kind, Sample
from virtpilot.pipeline.window_files import WindowFiles, load
from virtpilot.rules.language.expression import condition
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.saved import SavedHistory

GUESTS = 7_000
"""More than one slice holds."""
LONG, SHORT = "max(cpu_usage_ratio, 20m) > 90%", "avg(cpu_steal_ratio, 1m) > 10%"


def watching(*texts: str) -> Evaluator:
    rules = [
        Rule(name=f"r{at}", on=Kind.VM, when=condition(text, Kind.VM), digest=text) for at, text in enumerate(texts)
    ]
    return Evaluator(RuleSet(tuple(rules)))


def measured(evaluator: Evaluator, clock: VirtualClock, guests: int = 3) -> None:
    fields = {"cpu_usage_ratio": 0.5, "cpu_steal_ratio": 0.01}
    samples = [Sample("vm", {"host": "h", "vm": f"g{at}"}, dict(fields), clock.now_ns()) for at in range(guests)]
    evaluator.feed(samples, "c")


def points(histories: Iterable[SavedHistory]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for one in histories:
        for guest, count in zip(one.subjects, one.counts, strict=True):
            found.update({(series.text, guest): count for series in one.series})
    return found


def read_again(folder: Path, evaluator: Evaluator) -> Evaluator:
    """Return an evaluator of both rules that begins with what is on disk."""
    again = watching(LONG, SHORT)
    again.restore({**evaluator.snapshot(), "rules": [], "windows": []}, load(folder))
    return again


def written(files: WindowFiles, evaluator: Evaluator) -> int:
    return sum(1 for _ in files.slices(evaluator.world.windows))


def test_what_was_written_slice_by_slice_is_taken_up_whole(tmp_path: Path) -> None:
    clock, evaluator = VirtualClock(), watching(SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    for _ in range(8):
        measured(evaluator, clock, GUESTS)
        clock.advance(10)
    assert written(files, evaluator) > 1
    files.close(evaluator.world.windows)
    again, state = watching(SHORT), evaluator.snapshot()
    again.restore({**state, "windows": []}, load(tmp_path))
    found = again.inputs(condition(SHORT, Kind.VM), f"g{GUESTS - 1}")
    assert found == {"avg(cpu_steal_ratio, 1m)": pytest.approx(0.01)}
    assert again.snapshot()["windows"] == state["windows"]


def test_a_long_window_is_written_less_often(tmp_path: Path) -> None:
    clock, evaluator = VirtualClock(), watching(LONG, SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    counts: dict[str, set[int]] = {"cpu_usage_ratio": set(), "cpu_steal_ratio": set()}
    for _ in range(12):
        measured(evaluator, clock, 1)
        written(files, evaluator)
        files._wait()
        windows = read_again(tmp_path, evaluator).world.windows
        for (series, _guest), count in points(one for key in windows.histories() for one in windows.dump(key)).items():
            counts[series].add(count)
        clock.advance(10)
    assert counts == {"cpu_usage_ratio": {1, 5, 9}, "cpu_steal_ratio": {1, 2, 3, 4, 5, 6}}
    files.close(evaluator.world.windows)
    assert points(load(tmp_path))["cpu_usage_ratio", "g0"] == 12, "at an orderly end nothing is missing"


def test_a_window_that_no_rule_reads_leaves_no_file(tmp_path: Path) -> None:
    clock, both, one = VirtualClock(), watching(LONG, SHORT), watching(SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    for evaluator, count in ((both, 2), (one, 1)):
        measured(evaluator, clock)
        clock.advance(10)
        written(files, evaluator)
        files._wait()
        assert len(list(tmp_path.iterdir())) == count


def test_a_write_that_is_broken_off_leaves_the_file_before_it(tmp_path: Path) -> None:
    clock, evaluator = VirtualClock(), watching(SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    measured(evaluator, clock, GUESTS)
    written(files, evaluator)
    files._wait()
    before = points(load(tmp_path))
    clock.advance(60)
    measured(evaluator, clock, GUESTS)
    slices = files.slices(evaluator.world.windows)
    next(slices)
    del slices
    assert points(load(tmp_path)) == before


@pytest.fixture
def slow_disk() -> Iterator[Callable[[WindowFiles], threading.Event]]:
    """What lets nothing be put in its place until the event that it returns is set, or for 20 s."""
    released: list[threading.Event] = []

    def hold(files: WindowFiles) -> threading.Event:
        released.append(threading.Event())
        files._writer.submit(released[-1].wait, 20)
        return released[-1]

    yield hold
    for event in released:
        event.set()


def test_a_file_on_its_way_to_its_place_is_not_written_over(
    tmp_path: Path, slow_disk: Callable[[WindowFiles], threading.Event]
) -> None:
    """Neither by the next write, which is left out while the disk is slow, nor by the last one, which waits."""
    clock, evaluator = VirtualClock(), watching(SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    released = slow_disk(files)
    measured(evaluator, clock)
    assert written(files, evaluator) == 1
    on_its_way = next(tmp_path.glob("*.part")).read_bytes()
    clock.advance(10)
    measured(evaluator, clock)
    assert written(files, evaluator) == 0
    assert next(tmp_path.glob("*.part")).read_bytes() == on_its_way
    ending = threading.Thread(target=files.close, args=(evaluator.world.windows,))
    ending.start()
    released.set()
    ending.join(60)
    assert (files.failures, set(points(load(tmp_path)).values())) == (0, {2})


def test_a_reload_in_the_middle_of_a_write_leaves_nothing_of_what_is_no_more(
    tmp_path: Path, slow_disk: Callable[[WindowFiles], threading.Event]
) -> None:
    """One window's file is on its way to its place, another's is half written; neither is read any more."""
    clock, both, none = VirtualClock(), watching(LONG, SHORT), watching()
    files = WindowFiles(tmp_path, clock, seconds(10))
    released = slow_disk(files)
    measured(both, clock)
    slices = files.slices(both.world.windows)
    for _ in range(2):
        next(slices)
    assert len(list(tmp_path.glob("*.part"))) == 2
    del slices
    tidying = threading.Thread(target=written, args=(files, none))
    tidying.start()
    released.set()
    tidying.join(60)
    files._wait()
    assert list(tmp_path.iterdir()) == []
    assert files.failures == 0


def test_rules_that_came_for_a_moment_leave_nothing(tmp_path: Path) -> None:
    """Their window's file was begun, and before anything else was looked for they were no more."""
    clock, one, both = VirtualClock(), watching(SHORT), watching(LONG, SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    measured(one, clock)
    written(files, one)
    files._wait()
    (own,) = tmp_path.iterdir()
    measured(both, clock)
    slices = files.slices(both.world.windows)
    next(slices)
    del slices
    assert len(list(tmp_path.iterdir())) == 2
    written(files, one)
    files._wait()
    assert list(tmp_path.iterdir()) == [own]


def test_damage_is_not_guessed_at(tmp_path: Path) -> None:
    clock, evaluator = VirtualClock(), watching(SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    measured(evaluator, clock)
    files.close(evaluator.world.windows)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StateError, match="damaged"):
        list(load(tmp_path))


def test_between_two_whole_writes_only_what_is_new_is_written_and_nothing_is_missing(tmp_path: Path) -> None:
    """Samples of one step become one point after they were written; some guests fall silent, some come later."""
    clock, evaluator = VirtualClock(), watching(LONG, SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    sizes = []
    for step in range(60):
        measured(evaluator, clock, 5 if step % 7 else 9)
        if step % 3 == 0:
            files._due_ns.clear()
            written(files, evaluator)
            files._wait()
            assert read_again(tmp_path, evaluator).snapshot()["windows"] == evaluator.snapshot()["windows"]
            sizes.append(sum(one.stat().st_size for one in tmp_path.glob("*.jsonl")))
        clock.advance(4)
    assert len(set(sizes[1:14])) < 8, "the whole is written once in its window"
    assert list(tmp_path.glob("*.more"))


def test_who_was_forgotten_and_comes_again_has_no_past_on_disk(tmp_path: Path) -> None:
    clock, evaluator = VirtualClock(), watching(LONG, SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    for _ in range(3):
        measured(evaluator, clock)
        written(files, evaluator)
        files._wait()
        clock.advance(10)
    evaluator.world.remove(Kind.VM, "g1")
    measured(evaluator, clock)
    files._due_ns.clear()
    written(files, evaluator)
    files._wait()
    for series in ("cpu_usage_ratio", "cpu_steal_ratio"):
        assert [points(load(tmp_path))[series, guest] for guest in ("g0", "g1", "g2")] == [4, 1, 4]


def test_a_line_that_was_torn_by_a_crash_is_left_out(tmp_path: Path) -> None:
    clock, evaluator = VirtualClock(), watching(SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    for _ in range(3):
        measured(evaluator, clock)
        written(files, evaluator)
        files._wait()
        clock.advance(10)
    (more,) = tmp_path.glob("*.more")
    more.write_bytes(more.read_bytes()[:-20])
    assert set(points(load(tmp_path)).values()) == {2}
    more.write_bytes(more.read_bytes()[:20] + b"\n")
    with pytest.raises(StateError, match="damaged"):
        list(load(tmp_path))


def test_what_the_whole_holds_already_is_not_taken_twice(tmp_path: Path) -> None:
    """So a crash leaves it between the whole's coming to its place and the going of what was newer than the last."""
    clock, evaluator = VirtualClock(), watching(LONG, SHORT)
    files, stale = WindowFiles(tmp_path, clock, seconds(10)), dict[Path, bytes]()
    for _ in range(6):
        measured(evaluator, clock)
        written(files, evaluator)
        files._wait()
        stale |= {one: one.read_bytes() for one in tmp_path.glob("*.more")}
        clock.advance(10)
    files.close(evaluator.world.windows)
    assert stale
    for path, content in stale.items():
        assert not path.exists()
        path.write_bytes(content)
    assert read_again(tmp_path, evaluator).snapshot()["windows"] == evaluator.snapshot()["windows"]


def test_what_could_not_be_added_is_written_with_the_whole(tmp_path: Path) -> None:
    clock, evaluator = VirtualClock(), watching(SHORT)
    files = WindowFiles(tmp_path, clock, seconds(10))
    measured(evaluator, clock)
    written(files, evaluator)
    files._wait()
    (path,) = tmp_path.iterdir()
    path.with_suffix(".more").mkdir()
    clock.advance(10)
    measured(evaluator, clock)
    written(files, evaluator)
    assert files.failures == 1
    path.with_suffix(".more").rmdir()
    clock.advance(10)
    written(files, evaluator)
    files._wait()
    assert set(points(load(tmp_path)).values()) == {2}


def test_a_folder_that_takes_nothing_is_counted_and_harms_nothing(tmp_path: Path) -> None:
    clock, evaluator = VirtualClock(), watching(SHORT)
    files = WindowFiles(tmp_path / "none", clock, seconds(10))
    measured(evaluator, clock)
    written(files, evaluator)
    assert files.failures == 1
    assert written(files, evaluator) == 0, "tried again when it is due"


def test_without_a_folder_nothing_is_kept() -> None:
    clock, evaluator = VirtualClock(), watching(SHORT)
    measured(evaluator, clock, 1)
    assert clock.now_ns() > SECOND
    files = WindowFiles(None, clock, seconds(10))
    assert written(files, evaluator) == 0
    files.close(evaluator.world.windows)
