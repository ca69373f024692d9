"""Reading files: whole, whatever is in them, and kept open where this process may have that many."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.collectors.trees import TextTree
from virtpilot.collectors import tree as tree_module
from virtpilot.collectors.tree import FileTree, Kept, KeptTree, OpenFile, Reread


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Fewer descriptors than would be kept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_long_files_are_read_whole_and_what_is_not_ascii_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"0123456789" * 20_000 + b"\xff")
    text = FileTree(tmp_path).read("long")
    assert (len(text), text[:10], text[-1]) == (200_001, "0123456789", "\N{REPLACEMENT CHARACTER}")
    assert FileTree(tmp_path).names("") == ["long"]


def test_a_file_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MAX_BYTES", 50_000)
    (tmp_path / "long").write_bytes(b"x" * 100_000)
    with pytest.raises(OSError, match="too long"):
        FileTree(tmp_path).read("long")


class Noting(TextTree):
    """Notes what is to be kept."""

    def __init__(self, files: dict[str, str]) -> None:
        super().__init__(files)
        self.kept: list[str] = []

    def keep(self, path: str) -> Kept:
        self.kept.append(path)
        return super().keep(path)


def test_a_file_of_proc_stays_open_until_it_fails() -> None:
    texts = Noting({"proc/stat": "one", "sys/speed": "1"})
    tree = KeptTree(texts)
    assert (tree.read("proc/stat"), tree.read("sys/speed")) == ("one", "1")
    texts.files["proc/stat"] = "two"
    assert tree.read("proc/stat") == "two"
    assert texts.kept == ["proc/stat"]
    del texts.files["proc/stat"]
    with pytest.raises(FileNotFoundError):
        tree.read("proc/stat")
    texts.files["proc/stat"] = "three"
    assert tree.read("proc/stat") == "three"
    assert texts.kept == ["proc/stat"] * 2


@pytest.mark.parametrize("path", ["absent", "absent/file", "file/below"])
def test_what_is_not_there_is_an_os_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    tree = FileTree(tmp_path)
    for call in (tree.read, tree.names, tree.keep):
        with pytest.raises(OSError, match=r"(?i)no such file|not a directory"):
            call(path)


def test_a_kept_file_says_what_it_says_now(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    kept = FileTree(tmp_path).keep("file")
    assert isinstance(kept, OpenFile)
    assert kept.read() == "one"
    (tmp_path / "file").write_text("and two")
    assert kept.read() == "and two"
    kept.close()
    kept.close()
    with pytest.raises(OSError, match=r"(?i)bad file descriptor"):
        kept.read()


def test_where_descriptors_are_few_the_file_is_opened_for_each_reading(tmp_path: Path, few_descriptors: None) -> None:
    (tmp_path / "file").write_text("one")
    kept = FileTree(tmp_path).keep("file")
    assert isinstance(kept, Reread)
    (tmp_path / "file").write_text("two")
    assert kept.read() == "two"
