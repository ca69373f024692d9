"""The kill switch as one process knows it: whatever is said stops, a signed resume alone ends it, and it is kept."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.actuators.command import key_id
from virtpilot.actuators.order import Operators, sign
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import StateError
from virtpilot.orders import Resume, Stop, Verdict
from virtpilot.pipeline.switch import Said, Switch

KEY, FORGER = Ed25519PrivateKey.from_private_bytes(bytes(32)), Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
OPERATORS = Operators({key_id(KEY.public_key()): KEY.public_key()})
START = 1_700_000_000 * SECOND


def at(second: float) -> int:
    return START + seconds(second)


def stop(number: int = 1, *, abort: bool = False) -> bytes:
    said = Stop(id=f"s{number}", by="ann", reason="fire", at_ns=at(0), abort_migrations=abort)
    return msgspec.json.encode(Said(stop=said))


def resume(second: float, key: Ed25519PrivateKey = KEY, cluster: str = "c1") -> bytes:
    order = Resume(cluster=cluster, by="ann", at_ns=at(second))
    return msgspec.json.encode(Said(resume=sign(order, key)))


def switch(folder: Path) -> Switch:
    return Switch(folder / "switch.json", OPERATORS, "c1")


def test_a_stop_is_kept_until_a_signed_resume(tmp_path: Path) -> None:
    first = switch(tmp_path)
    assert (first.why, first.stop) == ("", None)
    assert first.take(stop(), at(0))
    assert first.why == "stopped by ann: fire"
    again = switch(tmp_path)
    assert again.why == "stopped by ann: fire", "also after a restart, whatever the broker remembers"
    assert again.take(resume(10), at(10))
    assert again.why == ""
    assert switch(tmp_path).why == ""


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"stop", "stopped by an operator: stop"),
        (b"{}", "stopped by an operator"),
        (b'{"stop": {}}', "stopped by an operator"),
        (b"\xff\xfe", "stopped by an operator: \ufffd\ufffd"),
        (b'{"stop": {"by": 7}}', 'stopped by an operator: {"stop": {"by": 7}}'),
        (b"[" * 5000, f"stopped by an operator: {'[' * 200}"),
    ],
)
def test_whatever_is_said_stops(payload: bytes, why: str, tmp_path: Path) -> None:
    """Somebody in a hurry must not have to know the format."""
    made = switch(tmp_path)
    assert made.take(payload, at(0))
    assert made.why == why


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        resume(10, FORGER),
        resume(10, cluster="c2"),
        resume(-6),
        resume(100),
        resume(10).replace(b"ann", b"bob"),
        msgspec.json.encode({"resume": msgspec.to_builtins(sign(Stop(by="ann"), KEY), builtin_types=(msgspec.Raw,))}),
        msgspec.json.encode(
            Said(
                resume=sign(
                    Verdict(cluster="c1", approval="a", accepted=True, by="a", at_ns=at(9), not_after_ns=0), KEY
                )
            )
        ),
    ],
    ids=["emptied", "forged", "other cluster", "older", "from the future", "changed", "a stop", "a verdict"],
)
def test_what_does_not_end_a_stop(payload: bytes, tmp_path: Path) -> None:
    made = switch(tmp_path)
    made.take(stop(), at(0))
    assert not made.take(payload, at(20))
    assert made.why == "stopped by ann: fire"
    assert made.take(resume(20), at(20)), "and the right word still does"


def test_nothing_that_is_signed_wrongly_stops_what_runs(tmp_path: Path) -> None:
    """A resume is retained after its stop; who cannot verify it goes on as before."""
    made = Switch(tmp_path / "switch.json", Operators({}), "c1")
    assert not made.take(resume(10), at(10))
    assert made.why == ""


def test_a_resume_is_no_pass_for_later_stops(tmp_path: Path) -> None:
    made, word = switch(tmp_path), resume(10)
    made.take(stop(1), at(0))
    assert made.take(word, at(10))
    made.take(stop(2), at(60))
    assert not made.take(word, at(61)), "replayed"
    assert made.why


def test_a_second_stop_moves_the_time_on(tmp_path: Path) -> None:
    made, word = switch(tmp_path), resume(10)
    made.take(stop(1), at(0))
    made.take(stop(2), at(60))
    assert not made.take(word, at(61))


def test_what_is_delivered_twice_changes_nothing(tmp_path: Path) -> None:
    made = switch(tmp_path)
    assert [made.take(stop(1), at(second)) for second in (0, 1)] == [True, False]
    assert made.take(resume(2), at(2))
    assert not made.take(stop(1), at(3)), "the broker gives it again, after a reconnect"
    assert made.why == ""
    assert made.take(stop(2), at(4)), "another one is another one"


def test_a_stop_in_a_hurry_stops_each_time(tmp_path: Path) -> None:
    made = switch(tmp_path)
    made.take(b"stop", at(0))
    made.take(resume(2), at(2))
    assert made.take(b"stop", at(10))


def test_what_cannot_be_read_is_no_guess(tmp_path: Path) -> None:
    (tmp_path / "switch.json").write_bytes(b"{torn")
    with pytest.raises(StateError, match=r"switch\.json"):
        switch(tmp_path)


def test_a_full_disk_stops_all_the_same(tmp_path: Path) -> None:
    made = Switch(tmp_path / "gone" / "switch.json", OPERATORS, "c1")
    assert made.take(stop(), at(0))
    assert made.why


@settings(derandomize=True, deadline=None, max_examples=examples(300))
@given(st.binary(max_size=300))
def test_no_noise_ever_ends_a_stop(noise: bytes) -> None:
    made = Switch(None, OPERATORS, "c1")
    made.take(stop(), at(0))
    made.take(noise, at(10))
    assert made.why
