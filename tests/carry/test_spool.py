"""The spool: order, bounds, trimming, and whatever a crash leaves behind."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.services import until
from tests.thoroughness import examples
from virtpilot.errors import StateError
from virtpilot.pipeline.sequences import SequenceSet
from virtpilot.pipeline.spool import Spool, SpoolOptions

FAST = SpoolOptions(fsync=False)


def kept(spool: Spool) -> list[tuple[str, int, bytes]]:
    return [(entry.boot, entry.seq, spool.payload(entry)) for entry in spool.pending()]


def test_entries_come_back_in_order_after_a_restart(tmp_path: Path) -> None:
    first = Spool(tmp_path, "b1", FAST)
    for number in range(5):
        assert first.append(b"p%d" % number, number).seq == number + 1
    first.close()
    second = Spool(tmp_path, "b2", FAST)
    assert second.append(b"later", 9).key == ("b2", 1)
    expected = [("b1", number + 1, b"p%d" % number) for number in range(5)]
    assert kept(second) == [*expected, ("b2", 1, b"later")]
    assert [entry.time_ns for entry in second.pending()] == [0, 1, 2, 3, 4, 9]


def test_the_same_boot_goes_on_counting(tmp_path: Path) -> None:
    Spool(tmp_path, "b", FAST).append(b"one")
    assert Spool(tmp_path, "b", FAST).append(b"two").seq == 2


def test_trim_takes_ranges_of_one_boot_only(tmp_path: Path) -> None:
    old = Spool(tmp_path, "old", FAST)
    for _ in range(3):
        old.append(b"x")
    old.close()
    spool = Spool(tmp_path, "new", FAST)
    for _ in range(6):
        spool.append(b"x")
    gone = spool.trim("new", [(2, 3), (5, 2**62), (9, 1)])
    assert [entry.seq for entry in gone] == [2, 3, 5, 6]
    assert [entry.key for entry in spool.pending()] == [("old", 1), ("old", 2), ("old", 3), ("new", 1), ("new", 4)]
    assert spool.trim("other", [(0, 2**80)]) == []


def test_reported_segments_leave_the_disk_and_reported_entries_do_not_come_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "b", SpoolOptions(max_bytes=1 << 16, fsync=False))
    for _ in range(30):
        spool.append(bytes(1500))
    assert len(list(tmp_path.iterdir())) > 1
    spool.trim("b", [(1, 30)])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
    spool.append(b"again")
    spool.close()
    assert kept(Spool(tmp_path, "c", FAST)) == [("b", 31, b"again")]


def test_a_full_spool_loses_the_oldest_and_counts_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "b", SpoolOptions(max_bytes=1 << 16, fsync=False))
    for _ in range(200):
        spool.append(bytes(1000))
    assert spool.size <= 1 << 16
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 16
    seqs = [entry.seq for entry in spool.pending()]
    assert seqs == list(range(seqs[0], 201))
    assert spool.dropped == seqs[0] - 1 > 0
    assert all(len(spool.payload(entry)) == 1000 for entry in spool.pending())


@settings(derandomize=True, deadline=None, max_examples=examples(150))
@given(cut=st.integers(0, 400), flipped=st.none() | st.integers(0, 399))
def test_whatever_is_torn_the_whole_entries_before_it_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flipped: int | None
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, "boot", FAST)
    ends = []
    for number in range(6):
        spool.append(b"%d" % number * 30)
        ends.append(spool.size)
    spool.close()
    (path,) = folder.iterdir()
    raw = bytearray(path.read_bytes()[:cut])
    if flipped is not None and flipped < len(raw):
        raw[flipped] ^= 0xFF
    path.write_bytes(raw)
    good_bytes = len(raw) if flipped is None else min(flipped, len(raw))
    whole = sum(end <= good_bytes for end in ends)
    again = Spool(folder, "next", FAST)
    assert kept(again) == [("boot", number + 1, b"%d" % number * 30) for number in range(whole)]
    assert again.torn == (1 if len(raw) not in (0, *ends) or len(raw) > ([0, *ends])[whole] else 0)
    again.append(b"new")
    assert kept(Spool(folder, "third", FAST))[-1] == ("next", 1, b"new")


def _write_for_ever(folder: Path) -> None:
    spool = Spool(folder, "b", FAST)
    while True:
        spool.append(os.urandom(20_000))


def test_kill_9_in_the_middle_of_writing_loses_no_whole_entry(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path,))
    child.start()
    assert until(lambda: sum(path.stat().st_size for path in tmp_path.glob("*")) > 2_000_000)
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    spool = Spool(tmp_path, "next", FAST)
    seqs = [entry.seq for entry in spool.pending()]
    assert len(seqs) > 90
    assert seqs == list(range(1, len(seqs) + 1))
    assert all(len(spool.payload(entry)) == 20_000 for entry in spool.pending())


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError):
        Spool(tmp_path / "file", "b")


def test_a_full_disk_is_told_and_leaves_no_torn_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "b", FAST)
    spool.append(b"before")
    real = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real(file, bytes(data)[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StateError, match="No space"):
        spool.append(bytes(1000))
    monkeypatch.undo()
    assert spool.append(b"after").seq == 2
    spool.close()
    again = Spool(tmp_path, "c", FAST)
    assert (kept(again), again.torn) == ([("b", 1, b"before"), ("b", 2, b"after")], 0)


class SpoolMachine(RuleBasedStateMachine):
    """Against a plain dict: append, trim and restart in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.folders.mktemp("machine")
        self.boots = 1
        self.model: dict[tuple[str, int], bytes] = {}
        self.spool = Spool(self.folder, "b1", SpoolOptions(max_bytes=1 << 22, fsync=False))

    folders: pytest.TempPathFactory

    @rule(size=st.integers(0, 3000))
    def append(self, size: int) -> None:
        payload = bytes(size)
        self.model[self.spool.append(payload).key] = payload

    @rule(boot=st.integers(1, 5), first=st.integers(0, 20), count=st.integers(0, 20))
    def trim(self, boot: int, first: int, count: int) -> None:
        gone = {entry.key for entry in self.spool.trim(f"b{boot}", [(first, first + count)])}
        wanted = {key for key in self.model if key[0] == f"b{boot}" and first <= key[1] <= first + count}
        assert gone == wanted
        for key in gone:
            del self.model[key]

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.boots += 1
        self.spool = Spool(self.folder, f"b{self.boots}", SpoolOptions(max_bytes=1 << 22, fsync=False))
        # What was reported may come back with its segment, and is reported again; what was not must be there.
        known = {entry.key for entry in self.spool.pending()}
        assert known >= set(self.model)
        for boot, seq in known - set(self.model):
            self.spool.trim(boot, [(seq, seq)])

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert {entry.key: self.spool.payload(entry) for entry in self.spool.pending()} == self.model


def test_any_order_of_calls(tmp_path_factory: pytest.TempPathFactory) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    SpoolMachine.folders = tmp_path_factory
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(derandomize=True, deadline=None, max_examples=examples(40), stateful_step_count=30),
    )


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12))
def test_sequence_sets_hold_what_plain_sets_hold(ranges: list[tuple[int, int]]) -> None:
    found = SequenceSet(ranges)
    plain = {number for first, last in ranges for number in range(first, last + 1)}
    assert {number for number in range(50) if number in found} == plain
    assert found.count == len(plain)
    borders = found.ranges()
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(borders))
