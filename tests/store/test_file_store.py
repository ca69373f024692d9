"""The file store: each message once, in order, through restarts, torn tails and hostile payloads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.errors import StoreRefused, StoreUnavailable
from virtpilot.lineprotocol import parse
from virtpilot.pipeline.store.file import FileStore


def test_messages_are_read_back_in_order_and_each_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.write("h/b/1", b"m f=1 1\n")
    store.write_all([("h/b/2", b"m f=2 2"), ("h/b/1", b"m f=1 1\n"), ("other", b"m f=3 3\nm f=4 4\n")])
    assert list(store.durable(0)) == ["h/b/1", "h/b/2", "h/b/1", "other"]
    assert list(store.durable(0)) == []
    store.close()
    again = FileStore(tmp_path)
    again.write("h/b/2", b"m f=2 2\n")
    again.write("other", b"m f=3 3\nm f=4 4\n")
    assert list(again.durable(0)) == ["h/b/2", "other"]
    again.write("h/b/3", b"m f=5 5\n")
    again.write("h/c/2", b"m f=6 6\n")
    assert [message_id for message_id, _ in again.read()] == ["h/b/1", "h/b/2", "other", "h/b/3", "h/c/2"]
    assert [sample.time_ns for sample in again.samples_in_order()] == [1, 2, 3, 4, 5, 6]
    assert (again.samples, again.messages) == (6, 5)
    again.close()


def test_segments_are_line_protocol_and_bounded(tmp_path: Path) -> None:
    store = FileStore(tmp_path, segment_bytes=500)
    for number in range(50):
        store.write(f"h/b/{number}", b"m,a=b f=1 %d\n" % number)
    assert len(store.segments()) > 3
    assert all(path.stat().st_size < 600 for path in store.segments())
    parsed = [parse(path.read_bytes()) for path in store.segments()]
    assert [sample.time_ns for one in parsed for sample in one.samples] == list(range(50))
    assert not any(one.bad for one in parsed)
    store.close()


def test_a_payload_cannot_pass_for_another_message(tmp_path: Path) -> None:
    """A publisher that writes our marks into its lines must not make us believe that we have what we have not."""
    forged = b"# virtpilot victim/b/1 8 00000000\nm f=9 9\n# virtpilot victim/b/2 0 00000000\n"
    store = FileStore(tmp_path)
    store.write("forger/b/1", forged)
    store.close()
    again = FileStore(tmp_path)
    again.write("victim/b/1", b"m f=1 1\n")
    assert dict(again.read()) == {"forger/b/1": forged, "victim/b/1": b"m f=1 1\n"}
    again.close()


@settings(derandomize=True, deadline=None, max_examples=examples(60))
@given(cut=st.integers(0, 330), flipped=st.none() | st.integers(0, 329))
def test_what_is_torn_is_cut_off_and_can_be_written_again(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flipped: int | None
) -> None:
    folder = tmp_path_factory.mktemp("store")
    messages = [(f"h/b/{number}", b"m,a=b f=%d %d\n" % (number, number)) for number in range(6)]
    store = FileStore(folder)
    ends = [0]
    for message_id, lines in messages:
        store.write(message_id, lines)
        ends.append(store.segments()[0].stat().st_size)
    store.close()
    (path,) = store.segments()
    raw = bytearray(path.read_bytes()[:cut])
    if flipped is not None and flipped < len(raw):
        raw[flipped] ^= 0x01
    path.write_bytes(raw)
    torn = FileStore(folder)
    whole = sum(end <= (len(raw) if flipped is None else min(flipped, len(raw))) for end in ends) - 1
    assert list(torn.read()) == messages[:whole]
    torn.write_all(messages)
    assert list(torn.durable(0)) == [message_id for message_id, _ in messages]
    stored = dict(torn.read())
    assert stored == dict(messages)
    torn.close()


@pytest.mark.parametrize("message_id", ["", "with space", "line\nfeed", "x" * 5000])
def test_an_id_that_is_none_is_refused(tmp_path: Path, message_id: str) -> None:
    store = FileStore(tmp_path)
    with pytest.raises(StoreRefused):
        store.write(message_id, b"m f=1 1\n")
    assert list(store.read()) == []


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        FileStore(tmp_path / "file")


def test_a_long_run_keeps_the_index_small(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.write_all([(f"h/b/{number}", b"") for number in range(20_000)])
    assert [len(numbers.ranges()) for numbers in store._known._sequences.values()] == [1]
    store.close()
