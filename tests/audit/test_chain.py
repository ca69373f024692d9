"""The audit log: whatever is changed in it is found, and whatever happens to its process breaks nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.errors import InputError
from virtpilot.pipeline.audit import log as log_module
from virtpilot.pipeline.audit.chain import CURRENT, HEAD, MAX_LINE, Line, files, opened, sealed
from virtpilot.pipeline.audit.log import AuditLog
from virtpilot.pipeline.audit.show import lines
from virtpilot.pipeline.audit.verify import verify

NOW = 1_700_000_000_000_000_000


def written(folder: Path, count: int = 6, rotate_bytes: int = 1 << 20) -> None:
    made = AuditLog(folder, rotate_bytes=rotate_bytes)
    for number in range(count):
        made.add("decision", NOW + number, {"id": f"dc-{made.head.n + 1}", "rule": "r", "reason": "é" * number})
    made.close()


def wrong(folder: Path, since: int = 1) -> list[str]:
    return [problem.message for problem in verify(folder, since).problems]


def test_a_log_is_whole_also_over_restarts_and_rotation(tmp_path: Path) -> None:
    for _ in range(3):
        written(tmp_path, 5, rotate_bytes=700)
    found = verify(tmp_path)
    assert (found.lines, found.first, found.last, found.problems) == (15, 1, 15, [])
    assert len(files(tmp_path)) > 3
    assert [line.entry["id"] for line in lines(tmp_path)] == [f"dc-{n}" for n in range(1, 16)]
    assert {oct(path.stat().st_mode & 0o777) for path in files(tmp_path)} == {"0o600"}


@pytest.fixture(scope="module")
def good() -> Iterator[bytes]:
    with TemporaryDirectory() as folder:
        written(Path(folder))
        yield (Path(folder) / CURRENT).read_bytes()


def _verified(raw: bytes, head: bytes | None = None) -> list[str]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CURRENT).write_bytes(raw)
        if head is not None:
            (folder / HEAD).write_bytes(head)
        return wrong(folder)


@given(data=st.data())
@settings(max_examples=examples(150), deadline=None)
def test_whichever_byte_is_changed_is_found(good: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[place]))
    assert _verified(good[:place] + bytes([byte]) + good[place + 1 :])


@given(data=st.data())
@settings(max_examples=examples(100), deadline=None)
def test_whichever_lines_are_removed_repeated_or_moved_is_found(good: bytes, data: st.DataObject) -> None:
    all_of_it = good.splitlines(keepends=True)
    order = data.draw(st.lists(st.integers(0, len(all_of_it) - 1), max_size=9))
    changed = b"".join(all_of_it[index] for index in order)
    prefix = order == list(range(len(order)))
    head = msgspec.json.encode({"n": 6, "hash": opened(all_of_it[-1])[1]})
    assert bool(_verified(changed, head)) == (changed != good)
    if changed:
        # Without the head, lines cut off at the end are all that is not seen.
        assert bool(_verified(changed)) == (not prefix)


def test_a_chain_written_anew_is_told_from_the_one_that_was_on_disk(tmp_path: Path) -> None:
    written(tmp_path)
    before, forged = "0" * 64, b""
    for number in range(1, 7):
        raw, before = sealed(Line(number, before, NOW, "decision", {"id": f"dc-{number}"}))
        forged += raw
    (tmp_path / CURRENT).write_bytes(forged)
    assert wrong(tmp_path) == ["line 6 is not the one that was on disk: the lines up to it were written anew"]


def test_each_problem_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / CURRENT
    first, second, third, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, third, second.replace(b"dc-2", b"dc-9"), b"{}\n", *rest[:-1]]))
    assert [(problem.line, problem.message) for problem in verify(path).problems] == [
        (2, "is line 3: line 2 before it cannot be read or was removed"),
        (3, "was changed: its hash is another one"),
        (4, "is no line of an audit log"),
        (0, "ends with line 5; line 6 was on disk: lines were cut off at the end"),
    ]


def test_older_files_may_be_archived_when_that_is_said(tmp_path: Path) -> None:
    written(tmp_path, 12, rotate_bytes=700)
    oldest, second, *_rest = files(tmp_path)
    begins = opened(second.read_bytes().splitlines(keepends=True)[0])[0].n
    archived = tmp_path / "archive"
    archived.mkdir()
    oldest.rename(archived / oldest.name)
    assert wrong(tmp_path) == [
        f"is line {begins}, the first here, and should be line 1 (where older files were archived: --since {begins})"
    ]
    assert wrong(tmp_path, begins) == []
    assert verify(archived / oldest.name).problems == []


def test_a_file_that_is_removed_from_the_middle_is_found(tmp_path: Path) -> None:
    written(tmp_path, 12, rotate_bytes=700)
    files(tmp_path)[1].unlink()
    assert any("cannot be read or was removed" in message for message in wrong(tmp_path))


def test_a_torn_last_line_is_cut_said_and_the_chain_goes_on(tmp_path: Path) -> None:
    written(tmp_path, 3)
    path = tmp_path / CURRENT
    path.write_bytes(path.read_bytes() + b'{"hash":"12')
    assert wrong(tmp_path) == ["is not whole: the last write was cut off, or the line is too long"]
    written(tmp_path, 1)
    assert wrong(tmp_path) == []
    assert [line.kind for line in lines(tmp_path)] == ["decision"] * 3 + ["torn", "decision"]


def test_a_restart_after_somebody_changed_the_last_line_hides_nothing(tmp_path: Path) -> None:
    written(tmp_path, 3)
    path = tmp_path / CURRENT
    path.write_bytes(path.read_bytes().replace(b"dc-3", b"dc-X"))
    written(tmp_path, 2)
    assert "was changed: its hash is another one" in wrong(tmp_path)


def test_what_a_full_disk_does_not_take_is_written_later_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = os.write, [True]

    def write(handle: int, raw: bytes) -> int:
        if full[0]:
            real(handle, raw[:10])  # some of it went in
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, raw)

    made = AuditLog(tmp_path)
    monkeypatch.setattr(os, "write", write)
    for number in range(3):
        made.add("outcome", NOW, {"id": f"oc-{number}"})
    assert (made.waiting, made.failures, (tmp_path / CURRENT).stat().st_size) == (3, 3, 0)
    full[0] = False
    made.sync()
    assert made.waiting == 0
    made.close()
    assert wrong(tmp_path) == []
    assert [line.entry["id"] for line in lines(tmp_path)] == ["oc-0", "oc-1", "oc-2"]


def test_a_rotation_that_fails_half_way_is_done_with_the_next_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full file has its new name already when no new one can be opened."""

    def no_more(*_anything: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    made = AuditLog(tmp_path, rotate_bytes=1)
    made.add("outcome", NOW, {"id": "oc-0"})
    with monkeypatch.context() as crowded:
        crowded.setattr(os, "open", no_more)
        for number in (1, 2):
            made.add("outcome", NOW, {"id": f"oc-{number}"})
    assert (made.waiting, (tmp_path / CURRENT).exists()) == (2, False)
    made.add("outcome", NOW, {"id": "oc-3"})
    assert made.waiting == 0
    made.close()
    assert [line.entry["id"] for line in lines(tmp_path)] == ["oc-0", "oc-1", "oc-2", "oc-3"]
    assert (wrong(tmp_path), len(files(tmp_path))) == ([], 4)


def test_what_is_lost_is_counted_in_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_handle: int, _raw: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_module, "MAX_WAITING", 2)
    made = AuditLog(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        for number in range(5):
            made.add("outcome", NOW, {"id": f"oc-{number}"})
    made.close()
    assert [(line.kind, line.entry) for line in lines(tmp_path)][-1] == ("lost", {"entries": 3})
    assert wrong(tmp_path) == []


def test_an_entry_that_is_too_long_leaves_its_digest(tmp_path: Path) -> None:
    made = AuditLog(tmp_path)
    made.add("refused", NOW, {"reason": "x" * (MAX_LINE + 10)})
    made.close()
    (line,) = lines(tmp_path)
    assert line.entry["too_long"]["bytes"] > MAX_LINE
    assert wrong(tmp_path) == []


@pytest.mark.parametrize("head", [b"", b"{", b"\xff", b'{"n":"x"}'])
def test_an_unreadable_head_is_told_and_stops_nobody(tmp_path: Path, head: bytes) -> None:
    written(tmp_path, 2)
    (tmp_path / HEAD).write_bytes(head)
    assert [message.startswith(f"{HEAD} is not readable") for message in wrong(tmp_path)] == [True]
    written(tmp_path, 1)
    assert wrong(tmp_path) == []


def test_where_there_is_no_log_that_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / CURRENT, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="there is no audit log"):
            verify(path)
        with pytest.raises(InputError):
            list(lines(path))


@given(raw=st.binary(max_size=400))
@settings(max_examples=examples(200), deadline=None)
def test_no_bytes_at_all_break_the_reading_or_pass_for_a_log(raw: bytes) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CURRENT).write_bytes(raw)
        assert bool(verify(folder).problems) == bool(raw)
        assert list(lines(folder)) == []
        written(folder, 1)
