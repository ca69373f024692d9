"""The state on disk: a document and the changes since, whatever moment a crash chooses."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.errors import StateError
from virtpilot.pipeline import state
from virtpilot.pipeline.state import Change, StateLog, load


def parts(document: Mapping[str, object]) -> dict[str, tuple[bytes, ...]]:
    """Return a document's parts as they are written: of each the first letter apart."""
    texts = {name: msgspec.json.encode(part) for name, part in document.items()}
    return {name: (text[:1], text[1:]) for name, text in texts.items()}


def begun(folder: Path, document: dict[str, Any]) -> StateLog:
    """Return a log that holds a document."""
    file = StateLog(folder / "state.json")
    file.replace(lambda: parts(document))
    return file


def copied(folder: Path, copy: Path) -> Path:
    """Return a copy of a folder as it was at one moment, whatever a thread does to it."""
    while True:
        shutil.rmtree(copy, ignore_errors=True)
        with contextlib.suppress(shutil.Error, FileNotFoundError):
            before = sorted((one.name, one.stat().st_mtime_ns, one.stat().st_ino) for one in folder.iterdir())
            shutil.copytree(folder, copy)
            if before == sorted((one.name, one.stat().st_mtime_ns, one.stat().st_ino) for one in folder.iterdir()):
                return copy


def after_a_crash(folder: Path) -> dict[str, Any] | None:
    """Return what a new process would find just now: what is on disk, looked at apart."""
    return load(copied(folder, folder.parent / "copy") / "state.json")


def test_where_nothing_was_saved_there_is_nothing(tmp_path: Path) -> None:
    assert load(tmp_path / "state.json") is None


def test_changes_come_back_with_the_document(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    file = begun(folder, {"a": {"x": 1, "y": {"z": 2}}, "b": 3})
    file.commit([(("a", "x"), None), (("a", "y"), {"w": 1})])
    file.commit([(("b",), 4), (("c", "d"), "new")])
    assert after_a_crash(folder) == {"a": {"y": {"w": 1}}, "b": 4, "c": {"d": "new"}}
    file.replace(lambda: parts({"all": "new"}))
    assert after_a_crash(folder) == {"all": "new"}
    file.close()


def test_while_a_document_is_written_nothing_waits_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes its time: changes go on, and wherever the crash comes, all that was committed is found."""
    folder, may_go, really = tmp_path / "state", threading.Event(), state.replace_file
    file = begun(folder, {"base": 0})

    def slowly(path: Path, *texts: bytes) -> None:
        assert may_go.wait(30)
        really(path, *texts)

    monkeypatch.setattr(state, "replace_file", slowly)
    file.commit([(("n",), 1)])
    assert file.begin()
    file.commit([(("n",), 2)])
    file.finish(parts({"base": 1, "n": 2}))
    file.commit([(("n",), 3)])
    assert not file.begin(), "the last is still being written"
    assert after_a_crash(folder) == {"base": 0, "n": 3}
    may_go.set()
    file.close()
    assert after_a_crash(folder) == {"base": 1, "n": 3}
    assert len(list(folder.glob("*.jsonl"))) == 2, "the former journal is gone, the next one is ready"


def test_a_document_that_comes_into_place_never_takes_back_what_a_journal_has_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = begun(tmp_path, {"a": 1}), threading.Event()

    def interrupted(*numbers: int) -> int:
        """Return the greatest; the thread that writes documents is interrupted right behind it."""
        found = max(numbers)
        if threading.current_thread().name.startswith("state-writer"):
            assert synced.wait(60)
        return found

    monkeypatch.setattr(state, "max", interrupted, raising=False)
    assert file.begin()
    file.finish(parts({"a": 2}))
    file.commit([(("a",), 3)])
    file.settle()
    synced.set()
    file.close()
    assert file.synced == file.written == 1


def test_what_changes_while_a_document_is_made_is_found_whether_its_piece_knew_it_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    file = begun(folder, {"early": {}, "late": {}})
    file.begin()
    pieces = parts({"early": {}})
    file.commit([(("early", "k"), 1), (("late", "k"), 1)])
    file.commit([(("late", "k"), 2)])
    pieces |= parts({"late": {"k": 2}})
    assert after_a_crash(folder) == {"early": {"k": 1}, "late": {"k": 2}}
    file.finish(pieces, wait=True)
    assert after_a_crash(folder) == {"early": {"k": 1}, "late": {"k": 2}}


def test_a_document_that_was_begun_and_given_up_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    file = begun(folder, {"n": 0})
    file.commit([(("n",), 1)])
    file.begin()
    file.commit([(("m",), 2)])
    file.begin()
    file.commit([(("n",), 3)])
    assert after_a_crash(folder) == {"n": 3, "m": 2}


def test_another_run_goes_on_where_the_last_ended(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    begun(folder, {"run": 1}).commit([(("n",), 1)])
    second = begun(folder, {"run": 2, "n": 1})
    second.commit([(("n",), 2)])
    assert after_a_crash(folder) == {"run": 2, "n": 2}


def test_a_torn_commit_never_was(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    begun(folder, {"n": 0}).commit([(("n",), 1)])
    (journal,) = (one for one in folder.glob("*.jsonl") if one.stat().st_size)
    whole = journal.read_bytes()
    for cut in range(1, len(whole)):
        journal.write_bytes(whole + whole[:-cut])
        assert after_a_crash(folder) == {"n": 1}


@pytest.mark.parametrize("damage", [b"[[[]]]\n", b'[[["n","m"],1]]\n', b"{}\n", b"nothing\n", b"[[[1],2]]\n"])
def test_damage_is_said_and_not_guessed_at(tmp_path: Path, damage: bytes) -> None:
    begun(tmp_path, {"n": 0}).commit([(("n",), 1)])
    (journal,) = (one for one in tmp_path.glob("*.jsonl") if one.stat().st_size)
    journal.write_bytes(journal.read_bytes() + damage + b'[[["n"],3]]\n')
    with pytest.raises(StateError, match="damaged"):
        load(tmp_path / "state.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"number": "one"}'])
def test_what_is_no_state_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StateError):
        load(tmp_path / "state.json")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    file = begun(folder, {"n": 0})
    file.commit([(("n",), 1)])
    with monkeypatch.context() as full:
        really = os.write

        def half(handle: int, raw: memoryview) -> int:
            really(handle, raw[: len(raw) // 2])
            raise OSError(errno.ENOSPC, "no space left")

        full.setattr(os, "write", half)
        with pytest.raises(StateError, match="no space left"):
            file.commit([(("n",), 2)])
    assert after_a_crash(folder) == {"n": 1}
    file.commit([(("m",), 3)])
    assert after_a_crash(folder) == {"n": 1, "m": 3}


names = st.sampled_from(["a", "b", "c"])
documents = st.dictionaries(names, st.dictionaries(names, st.integers(0, 9)))
commits = st.lists(st.lists(st.tuples(st.tuples(names, names), st.none() | st.integers(0, 9)), max_size=3), max_size=6)


@settings(derandomize=True, deadline=None, max_examples=examples(40))
@given(documents, commits, st.sets(st.integers(0, 5)))
def test_it_holds_what_a_dict_would(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any], story: list[list[Change]], anew: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("story") / "state"
    expected: dict[str, dict[str, object]] = {name: dict(inner) for name, inner in document.items()}
    file = begun(folder, document)
    for number, changes in enumerate(story):
        file.commit(changes)
        for (outer, inner), value in changes:
            there = expected.setdefault(outer, {})
            there.pop(inner, None)
            if value is not None:
                there[inner] = value
        if number in anew and file.begin():
            file.finish(parts(expected), wait=number % 2 == 0)
    assert after_a_crash(folder) == expected
    file.close()
    assert after_a_crash(folder) == expected
