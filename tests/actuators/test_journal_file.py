"""The journal on disk: torn ends, damage, full disks, compaction, two agents at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.actuators.one_host import GUEST, SHARES, START, at, command, move
from tests.thoroughness import examples
from virtpilot.actuators.journal import Journal, line, parse
from virtpilot.actuators.ledger import (
    CommandSeen,
    Entry,
    EpochReached,
    Lease,
    LeaseDropped,
    LeaseKept,
    LeaseState,
    Opened,
    Operation,
    OperationDropped,
    OperationKept,
    OperationState,
    OutcomeKept,
    OutcomePublished,
)
from virtpilot.errors import StateError
from virtpilot.model import Outcome, Result

LEASE = Lease(
    guest=GUEST,
    knob=SHARES,
    baseline=1024,
    value=2048,
    rule="starved",
    command="cm-1",
    end_ns=at(60),
    state=LeaseState.HELD,
)
OPERATION = Operation(
    command=command(move(), "cm-2"), started_ns=START, deadline_ns=at(60), state=OperationState.PLANNED
)
OUTCOME = Outcome(id="oc-1", cause="cm-1", command="cm-1", host="host-1", guest=GUEST, result=Result.DONE, at_ns=START)
ALL: list[Entry] = [
    CommandSeen("cm-1", at(100)),
    EpochReached(7),
    LeaseKept(LEASE),
    OperationKept(OPERATION),
    OutcomeKept(OUTCOME),
]


def content(journal: Journal) -> tuple[object, ...]:
    return (
        journal.epoch,
        journal.seen("cm-1"),
        journal.leases(),
        journal.operations(),
        journal.outcomes("cm-1"),
        journal.unpublished(),
    )


FULL = (7, True, [LEASE], [OPERATION], [OUTCOME], [OUTCOME])


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """What was committed is read back, close or no close."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.commit(*ALL)
    del journal  # killed: nothing is flushed or closed in order
    again = Journal(path)
    assert content(again) == FULL
    assert (again.torn_bytes, again.damaged) == (0, 0)
    again.commit(LeaseDropped(GUEST, SHARES), OperationDropped("cm-2"), OutcomePublished("oc-1"))
    again.close()
    assert content(Journal(path)) == (7, True, [], [], [OUTCOME], [])


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", range(1, len(line([LeaseKept(LEASE)])) + 1, 7))
def test_a_torn_end_is_cut_and_reported(tmp_path: Path, cut: int) -> None:
    """Wherever the last write was torn: what was whole before it counts, and the next writes are sound."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.commit(EpochReached(3))
    journal.close()
    last = line([LeaseKept(LEASE)])
    torn = last[: len(last) - cut]
    with path.open("ab") as file:
        file.write(torn)
    again = Journal(path)
    assert (again.epoch, again.leases(), again.torn_bytes, again.damaged) == (3, [], len(torn), 0)
    again.commit(LeaseKept(LEASE))
    again.close()
    whole = Journal(path)
    assert (whole.leases(), whole.torn_bytes) == ([LEASE], 0)


def test_damage_in_the_middle_is_set_aside(tmp_path: Path) -> None:
    """A line that rotted loses its own entries only; the file as it was is kept beside."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.commit(EpochReached(3))
    journal.commit(CommandSeen("cm-1", at(100)))
    journal.commit(LeaseKept(LEASE))
    journal.close()
    rotten = path.read_bytes().replace(b'"cm-1","keep', b'"cm-9","keep')
    path.write_bytes(rotten)
    again = Journal(path)
    assert (again.epoch, again.seen("cm-1"), again.leases(), again.damaged) == (3, False, [LEASE], 1)
    assert path.with_name("journal.jsonl.damaged").read_bytes() == rotten


@pytest.mark.parametrize(
    "raw", [b"root:x:0:0:root\n", b"\0" * 4096, b"[]", b"\n"], ids=["passwd", "zeros", "JSON", "line"]
)
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(raw)
    with pytest.raises(StateError, match="not a journal"):
        Journal(path)
    assert path.read_bytes() == raw


def test_a_newer_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(line([Opened(99)]))
    with pytest.raises(StateError, match="newer virtpilot"):
        Journal(path)


def test_one_agent_at_a_time(tmp_path: Path) -> None:
    """A second agent on the same journal would do everything twice."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    with pytest.raises(StateError, match=r"journal\.jsonl: another agent uses it"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_an_unusable_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        Journal(tmp_path / "nowhere" / "journal.jsonl")


class Disk:
    """os.write and os.fsync of a disk that can be full, or take a part of a write only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.takes = 0
        self.sync_fails = False
        self._write, self._fsync = os.write, os.fsync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def write(self, descriptor: int, content: memoryview) -> int:
        if not self.full:
            return self._write(descriptor, content)
        if not self.takes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken, self.takes = self._write(descriptor, content[: self.takes]), 0
        return taken

    def fsync(self, descriptor: int) -> None:
        if self.sync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fsync(descriptor)


@pytest.mark.parametrize("takes", [0, 1, 20])
def test_a_full_disk_refuses_a_commit_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    """A commit that fails has not happened, in memory and on disk, and the next one works when there is room again."""
    path = tmp_path / "journal.jsonl"
    journal, disk = Journal(path), Disk(monkeypatch)
    journal.commit(EpochReached(3))
    disk.full, disk.takes = True, takes
    for _again in range(2):
        with pytest.raises(StateError, match="No space left"):
            journal.commit(LeaseKept(LEASE))
    assert journal.leases() == []
    assert [entry for entry in parse(path.read_bytes()).entries if isinstance(entry, LeaseKept)] == []
    disk.full = False
    journal.commit(OperationKept(OPERATION))
    del journal
    again = Journal(path)
    assert (again.epoch, again.leases(), again.operations(), again.torn_bytes) == (3, [], [OPERATION], 0)


def test_a_failed_sync_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync nobody knows what is on the disk: it does not count, and the file is made anew."""
    path = tmp_path / "journal.jsonl"
    journal, disk = Journal(path), Disk(monkeypatch)
    disk.sync_fails = True
    with pytest.raises(StateError, match="Input/output error"):
        journal.commit(LeaseKept(LEASE))
    assert (journal.leases(), journal.stale) == ([], True)
    disk.sync_fails = False
    inode = path.stat().st_ino
    journal.commit(EpochReached(3))
    assert not journal.stale
    assert path.stat().st_ino != inode


def test_what_has_been_done_is_kept_in_memory_until_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    journal, disk = Journal(path), Disk(monkeypatch)
    disk.full = True
    journal.note(OutcomeKept(OUTCOME))
    journal.retry()
    assert (journal.unpublished(), journal.stale) == ([OUTCOME], True)
    disk.full = False
    journal.retry()
    assert not journal.stale
    del journal
    assert Journal(path).unpublished() == [OUTCOME]


def test_the_file_shrinks_by_itself(tmp_path: Path) -> None:
    """A thousand leases later the file holds the present, not the past."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, compact_bytes=10_000)
    for number in range(200):
        journal.commit(LeaseKept(replace(LEASE, value=number)))
        assert path.stat().st_size < 11_000
    journal.close()
    again = Journal(path)
    assert again.leases() == [replace(LEASE, value=199)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["journal.jsonl", "journal.jsonl.lock"]


def test_a_compaction_that_fails_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long file does as well: commits go on, and no half file stays."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, compact_bytes=500)

    def refuse(_self: Path, _target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", refuse)
    for number in range(20):
        journal.commit(LeaseKept(replace(LEASE, value=number)))
    monkeypatch.undo()
    del journal
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["journal.jsonl", "journal.jsonl.lock"]
    assert Journal(path).leases() == [replace(LEASE, value=19)]


@pytest.mark.parametrize(
    ("published", "now_ns", "known", "kept"),
    [
        (False, at(1000), False, True),
        (True, at(1000), False, False),
        (True, at(99), True, True),
    ],
    ids=["not published yet", "published and past", "still to be known"],
)
def test_what_is_forgotten(tmp_path: Path, published: bool, now_ns: int, known: bool, kept: bool) -> None:
    """A command is forgotten after its time; its outcome not before the broker has it."""
    journal = Journal(tmp_path / "journal.jsonl")
    journal.commit(CommandSeen("cm-1", at(100)), OutcomeKept(OUTCOME, published))
    journal.prune(now_ns)
    assert (journal.seen("cm-1"), bool(journal.outcomes("cm-1"))) == (known, kept)


def test_a_command_with_a_lease_is_never_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.commit(*ALL)
    journal.prune(at(10**6))
    assert journal.seen("cm-1")


def test_the_first_word_on_a_command_stays(tmp_path: Path) -> None:
    """The same outcome noted again neither changes nor is published again."""
    journal = Journal(tmp_path / "journal.jsonl")
    journal.commit(OutcomeKept(OUTCOME))
    journal.published("oc-1")
    journal.note(OutcomeKept(replace(OUTCOME, reason="told otherwise")))
    assert (journal.outcomes("cm-1"), journal.unpublished()) == ([OUTCOME], [])
    journal.republish([OUTCOME])
    assert journal.unpublished() == [OUTCOME]


@settings(derandomize=True, deadline=None, max_examples=examples(300))
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_read_as_nothing(raw: bytes) -> None:
    """The parser never raises, and accounts for every byte."""
    parsed = parse(raw)
    assert parsed.entries == []
    assert (parsed.good_bytes, parsed.torn_bytes) == (0, len(raw))


lines = st.lists(st.lists(st.sampled_from(ALL), min_size=1, max_size=3), max_size=6)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(lines, st.data())
def test_what_is_before_a_cut_is_read(transactions: list[list[Entry]], data: st.DataObject) -> None:
    """A file cut anywhere gives exactly the transactions that are whole: all of one or nothing of it."""
    written = [line(entries) for entries in transactions]
    raw = b"".join(written)
    cut = data.draw(st.integers(0, len(raw)))
    parsed = parse(raw[:cut])
    ends = [sum(map(len, written[: count + 1])) for count in range(len(written))]
    whole = sum(end <= cut for end in ends)
    assert parsed.entries == [entry for entries in transactions[:whole] for entry in entries]
    assert parsed.torn_bytes == cut - (ends[whole - 1] if whole else 0)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(lines, st.data())
def test_a_flipped_bit_is_noticed(transactions: list[list[Entry]], data: st.DataObject) -> None:
    """One flipped bit never changes an entry: its line is dropped, no other one is."""
    raw = bytearray(b"".join(map(line, transactions)))
    if not raw:
        return
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    entries = parse(bytes(raw)).entries
    expected = [entry for transaction in transactions for entry in transaction]
    remaining = iter(expected)
    assert all(entry in remaining for entry in entries)
    assert len(expected) - len(entries) <= 6


def test_a_sound_line_of_another_kind_is_damage() -> None:
    """A checksum alone does not make an entry."""
    from zlib import crc32

    body = msgspec.json.encode([{"entry": "lease", "lease": {"guest": 1}}])
    raw = line(ALL) + b"%08x " % crc32(body) + body + b"\n" + line(ALL)
    parsed = parse(raw)
    assert (len(parsed.entries), parsed.damaged, parsed.torn_bytes) == (2 * len(ALL), 1, 0)
