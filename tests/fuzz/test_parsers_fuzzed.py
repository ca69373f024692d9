"""A short fuzz run over every parser of what comes from outside: first what was kept, then what was made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS
from tests.thoroughness import examples
from virtpilot.model import Message, Stored
from virtpilot.pipeline.agent import Agent
from virtpilot.pipeline.counters import Counters
from virtpilot.pipeline.hearing import decoded

CORPUS: Final = Path(__file__).parent / "corpus"
TOKENS: Final = [
    b",", b"=", b" ", b"\n", b'"', b"\\", b"#", b"i", b"u", b"-", b"1e999", b"nan", b"9223372036854775808", b"[", b"]",
    b"{", b"}", b":", b"\x00", b"\xff", b"\xed\xa0\x80", b"<", b">", b"&", b"'", b"%", b"\t", b"\r",
    b" 1790000000000000000", b"null", b"true", b"*a", b"&a", b"!!", b"[" * 200,
]  # fmt: skip


def kept(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with some places changed: flipped, cut, doubled, filled with what parsers stumble over."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(at + draw(st.integers(0, 40)), len(data))
        match draw(st.sampled_from(["flip", "cut", "double", "token", "bytes", "other"])):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "cut":
                data = data[:at] + data[end:]
            case "double":
                data = data[:end] + data[at:end] * draw(st.integers(1, 4)) + data[end:]
            case "token":
                data = data[:at] + draw(st.sampled_from(TOKENS)) + data[end:]
            case "bytes":
                data = data[:at] + draw(st.binary(max_size=8)) + data[end:]
            case _:
                data = data[:at] + draw(st.sampled_from(seeds))[at:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_is_survived(name: str) -> None:
    assert kept(name)
    for data in kept(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_made_of_it_is_survived(name: str) -> None:
    @settings(max_examples=examples(120), deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(kept(name)))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


def test_a_record_nested_without_end_ends_no_process() -> None:
    """It is no DecodeError that deep nesting gives."""
    payload = (CORPUS / "records" / "deep").read_bytes()
    agent = Agent.__new__(Agent)
    agent._on_stored(Message("virtpilot/c/stored/h", payload))
    counters = Counters()
    assert decoded(Message("virtpilot/c/events/h", payload), Stored, counters) is None
    assert counters.bad_messages == 1


def test_each_folder_of_the_corpus_has_its_parser() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
