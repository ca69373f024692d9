"""Whom samples are about is remembered once for the same tags, in whatever dictionaries they come."""

from __future__ import annotations

import pytest

from virtpilot.model import Sample
from virtpilot.rules.signals import subjects as subjects_module
from virtpilot.rules.signals.subjects import Subjects


def guest(**tags: str) -> Sample:
    return Sample("vm", {"host": "h1", "vm": "g1", **tags}, {}, 0)


def remembered(subjects: Subjects) -> int:
    return max(len(subjects._known), len(subjects._alike))


def test_the_same_tags_in_ever_new_dictionaries_are_one_subject() -> None:
    """As those are that the full parser makes, of a guest with a space in its name."""
    subjects = Subjects()
    first = guest(name="web 1")
    every = [guest(name="web 1") for _ in range(100)]
    assert all(subjects.of(one) is subjects.of(first) for one in every)
    assert remembered(subjects) == 1
    assert subjects.of(first) != subjects.of(guest(name="web 2"))


def test_another_measurement_with_the_same_tags_is_about_something_else() -> None:
    subjects = Subjects()
    tags = {"host": "h1", "vm": "g1", "mountpoint": "/"}
    owner, device = Sample("vm", tags, {}, 0), Sample("vm_filesystem", tags, {}, 0)
    for _ in range(2):
        found = subjects.of(owner), subjects.device(device)
        assert found[0] is not None
        assert found[1] is not None
        assert found[0].id == "g1" != found[1].id
    assert len(subjects._known) <= 2


@pytest.mark.parametrize(("bound", "value"), [("_REMEMBERED", 10), ("_MOST_CHARS", 150)])
def test_ever_other_tags_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch, bound: str, value: int) -> None:
    monkeypatch.setattr(subjects_module, bound, value)
    subjects, most = Subjects(), 0
    for number in range(100):
        subject = subjects.of(guest(name=f"{number:03}"))
        assert subject is not None
        assert subject.name == f"{number:03}"
        most = max(most, remembered(subjects))
    assert 1 < most <= 10
