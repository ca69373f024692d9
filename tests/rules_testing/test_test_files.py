"""Test files with mistakes: all of them at once, each at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtpilot.rules.testing.document import load_tests

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.name)
def test_every_mistake_is_told_at_its_place(path: Path) -> None:
    found = load_tests(path)
    assert isinstance(found, list)
    told = "".join(f"{problem}\n" for problem in found).replace(f"{path.parent}/", "")
    assert told == path.with_suffix(".txt").read_text()


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "good").glob("*.yaml")), ids=lambda path: path.name)
def test_what_is_right_is_taken(path: Path) -> None:
    found = load_tests(path)
    assert not isinstance(found, list), "\n".join(map(str, found))


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    found = load_tests(tmp_path / "a.test.yaml")
    assert isinstance(found, list)
    assert [problem.message for problem in found] == ["cannot be read: No such file or directory"]
