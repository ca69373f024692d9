"""What is remembered of texts is bounded by how long they are together."""

from __future__ import annotations

from virtpilot.remembered import Remembered


def test_texts_are_remembered_until_they_are_too_long_together() -> None:
    known = Remembered[int](10)
    known.put(b"aaaa", 1)
    known.put(b"bbbb", 2)
    assert (known.get(b"aaaa"), known.get(b"bbbb"), known.get(b"c")) == (1, 2, None)
    known.put(b"ccc", 3)
    assert [known.get(one) for one in (b"aaaa", b"bbbb", b"ccc")] == [None, None, 3]


def test_another_value_for_a_text_takes_no_more_room() -> None:
    known = Remembered[int](10)
    known.put(b"bbbb", 0)
    for number in range(9):
        known.put(b"aaaa", number)
    assert (known.get(b"aaaa"), known.get(b"bbbb"), len(known)) == (8, 0, 2)


def test_a_text_that_is_too_long_alone_is_not_remembered() -> None:
    known = Remembered[int](10)
    known.put(b"a" * 11, 1)
    known.put(b"bb", 2)
    assert (known.get(b"a" * 11), known.get(b"bb"), len(known)) == (None, 2, 1)
