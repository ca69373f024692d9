"""Who may command a host: what the verifier lets through, what it refuses and under which guard."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.actuators.one_host import GUEST, HOST, START, abort, at, command, move, power, release, set_to
from tests.thoroughness import examples
from virtpilot.action import Abort, Action, Run, Stuck, Verb, Way
from virtpilot.actuators.command import (
    MAX_PAYLOAD_BYTES,
    MAX_VALIDITY_S,
    Signer,
    Verifier,
    generate,
    key_id,
    load_private,
    load_public,
)
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import CommandRefused, ConfigError
from virtpilot.model import Command

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SIGNER = Signer(KEY)
VERIFIER = Verifier({SIGNER.key_id: KEY.public_key()}, HOST, max_clock_skew_s=5)
GOOD = command(set_to(2048))


def signed(inner: bytes, prefix: bytes = b"virtpilot command v1\n", key: Ed25519PrivateKey = KEY) -> bytes:
    """Seal any bytes with the right key: what a faulty controller could send."""
    signature = base64.b64encode(key.sign(prefix + inner)).decode()
    head = json.dumps({"key": key_id(key.public_key()), "signature": signature})[:-1]
    return head.encode() + b', "command": ' + inner + b"}"


def altered(**changes: Any) -> bytes:
    """Sign the good command with some of its keys changed."""
    return signed(json.dumps(json.loads(msgspec.json.encode(GOOD)) | changes).encode())


def action(**changes: Any) -> bytes:
    return altered(action=json.loads(msgspec.json.encode(GOOD))["action"] | changes)


def envelope(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(SIGNER.seal(GOOD))
    change(document)
    return json.dumps(document, separators=(",", ":")).encode()


def resealed(**changes: Any) -> bytes:
    return SIGNER.seal(replace(GOOD, **changes))


def opened(payload: bytes) -> Command | str:
    """Return what a payload opens as, or the guard that refused it."""
    try:
        return VERIFIER.open(payload, START)
    except CommandRefused as refused:
        return refused.guard


def other_signature() -> str:
    return base64.b64encode(KEY.sign(b"virtpilot command v1\nsomething else")).decode()


REFUSED = [
    ("oversize", b"{" + b" " * MAX_PAYLOAD_BYTES, "size"),
    ("empty", b"", "malformed"),
    ("not JSON", b"restart everything", "malformed"),
    ("broken UTF-8", SIGNER.seal(GOOD).replace(b"starved", b"starv\xff\xfe"), "signature"),
    ("broken UTF-8 in the envelope", b'{"key":"\xff\xfe","signature":"","command":{}}', "malformed"),
    ("broken UTF-8, signed", signed(b'{"id":"\xff\xfe"}'), "malformed"),
    ("nested without end", b"[" * 60_000, "envelope"),
    ("nested without end in the command", b'{"key":"","signature":"","command":' + b"[" * 60_000, "malformed"),
    ("nested without end, signed", signed(b"[" * 20_000 + b"]" * 20_000), "malformed"),
    ("action nested without end, signed", signed(b'{"action":' + b"[" * 20_000 + b"]" * 20_000 + b"}"), "malformed"),
    ("not an object", b"[]", "envelope"),
    ("unknown envelope key", envelope(lambda d: d.update(debug=True)), "envelope"),
    ("envelope key missing", envelope(lambda d: d.pop("signature")), "envelope"),
    ("unknown key id", Signer(STRANGER).seal(GOOD), "key"),
    ("a stranger under a known key id", envelope(lambda d: d.update(
        signature=json.loads(Signer(STRANGER).seal(GOOD))["signature"])), "signature"),
    ("signature of something else", envelope(lambda d: d.update(signature=other_signature())), "signature"),
    ("signature is not base64", envelope(lambda d: d.update(signature="!!!")), "signature"),
    ("signature is not ASCII", envelope(lambda d: d.update(signature="é")), "signature"),
    ("no signature", envelope(lambda d: d.update(signature="")), "signature"),
    ("a byte added", SIGNER.seal(GOOD).replace(b'"value":2048', b'"value":20480'), "signature"),
    ("a blank added", SIGNER.seal(GOOD).replace(b'"value":2048', b'"value": 2048'), "signature"),
    ("signed for another purpose", signed(msgspec.json.encode(GOOD), prefix=b""), "signature"),
    ("another host's", resealed(host="host-2"), "host"),
    ("for all hosts", resealed(host="*"), "wildcard-host"),
    ("for one level of hosts", resealed(host="+"), "wildcard-host"),
    ("for every topic", resealed(host="#"), "wildcard-host"),
    ("for a pattern of hosts", resealed(host="host-*"), "wildcard-host"),
    ("for no host", resealed(host=""), "wildcard-host"),
    ("expired", resealed(issued_ns=at(-30), not_after_ns=at(0) - 1), "expired"),
    ("issued in the future", resealed(issued_ns=at(5) + 1, not_after_ns=at(30)), "future"),
    ("valid for too long", resealed(not_after_ns=START + seconds(MAX_VALIDITY_S) + 1), "value"),
    ("valid for no time", resealed(issued_ns=at(1), not_after_ns=at(1)), "value"),
    ("unknown action", action(type="format_disk"), "action"),
    ("no action", altered(action=None), "action"),
    ("action without a type", altered(action={"guest": "g"}), "action"),
    ("action's type is no text", action(type=["set_knob"]), "action"),
    ("value is a text", action(value="2048"), "value"),
    ("value is a bool", action(value=True), "value"),
    ("value beyond 64 bits", action(value=2**63), "value"),
    ("expected below 64 bits", action(expected=-(2**63) - 1), "value"),
    ("lease of no time", action(lease_s=0), "value"),
    ("lease back in time", action(lease_s=-1), "value"),
    ("guest is a path", action(guest="../../etc"), "value"),
    ("guest is empty", action(guest=""), "value"),
    ("unknown key in the action", action(force=True), "value"),
    ("unknown key in the command", altered(dry_run=True), "value"),
    ("a key missing", altered(rule=None), "value"),
    ("id is empty", resealed(id=""), "value"),
    ("epoch below zero", resealed(epoch=-1), "value"),
    ("epoch beyond 64 bits", resealed(epoch=2**63), "value"),
    ("target is a pattern", resealed(action=msgspec.structs.replace(move(), target="host-*")), "value"),
    ("URI is none", resealed(action=msgspec.structs.replace(move(), uri="host-2; reboot")), "value"),
    ("URI with a line break", resealed(action=msgspec.structs.replace(move(), uri="qemu+tcp://a/\nb")), "value"),
    ("URI is empty", resealed(action=msgspec.structs.replace(move(), uri="")), "value"),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "guard"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused(payload: bytes, guard: str) -> None:
    """Each way in which a payload can be wrong is refused by the guard that names it."""
    with pytest.raises(CommandRefused) as refused:
        VERIFIER.open(payload, START)
    assert refused.value.guard == guard
    assert len(refused.value.reason) < 400


SOUND: list[Action] = [
    set_to(2048),
    release(),
    move(way=Way(bandwidth_bytes_s=2**40, connections=16, downtime_s=0.3, within_s=600, when_stuck=Stuck.POST_COPY)),
    abort(),
    power(Verb.SHUTDOWN, within_s=3600),
    Run(guest=GUEST, hook="page", fields={"name": "web-1", "tags.tier": "; rm -rf /"}),
]


@pytest.mark.parametrize(
    "wanted",
    [
        power(Verb.REBOOT, within_s=0),
        power(Verb.REBOOT, within_s=float("nan")),
        power(Verb.REBOOT, within_s=3601),
        move(way=Way(bandwidth_bytes_s=-1)),
        move(way=Way(connections=256)),
        move(way=Way(downtime_s=-0.1)),
        move(way=Way(stall_s=float("inf"))),
        move(way=Way(within_s=1e9)),
        Run(guest=GUEST, hook="/bin/sh"),
        Run(guest=GUEST, hook="page", fields={"a b": ""}),
        Run(guest=GUEST, hook="page", fields={"name": "x" * 1025}),
        Run(guest=GUEST, hook="page", fields={f"tags.{number}": "" for number in range(65)}),
        Abort(guest="*"),
    ],
)
def test_a_signed_command_that_makes_no_sense_is_refused(wanted: Action) -> None:
    with pytest.raises(CommandRefused) as refused:
        VERIFIER.open(SIGNER.seal(command(wanted)), START)
    assert refused.value.guard == "value"


@pytest.mark.parametrize("wanted", SOUND, ids=lambda one: type(one).__name__)
def test_what_is_sealed_opens(wanted: Any) -> None:
    """Each action comes out as it went in."""
    sent = command(wanted)
    assert VERIFIER.open(SIGNER.seal(sent), START) == sent


@pytest.mark.parametrize("now_ns", [at(-5), at(0), at(30)], ids=["at the skew's edge", "at once", "at its end"])
def test_times_that_are_let_through(now_ns: int) -> None:
    """The skew and the end are inclusive."""
    assert VERIFIER.open(SIGNER.seal(GOOD), now_ns) == GOOD


def test_two_keys_are_valid_while_keys_are_exchanged() -> None:
    """Old and new key both open; once the old one is dropped, only the new one does."""
    new = Signer(STRANGER)
    both = Verifier({SIGNER.key_id: KEY.public_key(), new.key_id: STRANGER.public_key()}, HOST)
    assert both.open(SIGNER.seal(GOOD), START) == both.open(new.seal(GOOD), START) == GOOD
    with pytest.raises(CommandRefused, match="no public key"):
        Verifier({new.key_id: STRANGER.public_key()}, HOST).open(SIGNER.seal(GOOD), START)


def test_the_signed_bytes_are_read_where_they_stand() -> None:
    """Of two values for "command" the one that is read is the one whose signature was checked."""
    forged = msgspec.json.encode(replace(GOOD, action=set_to(2)))
    payload = SIGNER.seal(GOOD)
    forged_last = payload[:-1] + b',"command":' + forged + b"}"
    forged_first = b'{"command":' + forged + b"," + payload[1:]
    assert [opened(forged_last), opened(forged_first)] == ["signature", GOOD]


@settings(derandomize=True, deadline=None, max_examples=examples(300))
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(CommandRefused):
        VERIFIER.open(payload, START)


@settings(derandomize=True, deadline=None, max_examples=examples(300))
@given(st.integers(0, len(SIGNER.seal(GOOD)) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_no_altered_payload_opens_as_something_else(place: int, put: bytes, cut: int) -> None:
    """Wherever a payload is altered: it is refused, or it still says exactly what was signed."""
    payload = SIGNER.seal(GOOD)
    hostile = payload[:place] + put + payload[place + cut :]
    result = opened(hostile)
    assert isinstance(result, str) or result == GOOD


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*Command.__struct_fields__, "type", "guest", "knob", "lease_s"]), inner, max_size=6
        )
    ),
    max_leaves=12,
)


@settings(derandomize=True, deadline=None, max_examples=examples(300))
@given(documents)
def test_a_faulty_controller_is_refused(document: object) -> None:
    """Arbitrary JSON under the right signature is refused like anything else, never an error of another kind."""
    with pytest.raises(CommandRefused):
        VERIFIER.open(signed(json.dumps(document).encode()), START)


def test_generated_keys_sign_and_verify(tmp_path: Path) -> None:
    private, public = generate(tmp_path / "keys")
    assert private.stat().st_mode & 0o777 == 0o600
    signer = Signer(load_private(private))
    keys = load_public([public])
    assert list(keys) == [signer.key_id]
    assert Verifier(keys, HOST).open(signer.seal(GOOD), START) == GOOD


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    private, public = generate(tmp_path)
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(ConfigError, match=r"controller\.pub:.*never overwritten"):
        generate(tmp_path)
    public.unlink()
    with pytest.raises(ConfigError, match=r"controller\.key:.*exists"):
        generate(tmp_path)
    assert private.read_bytes() == before[0]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777, 0o610])
def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    private, _public = generate(tmp_path)
    private.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o} .*chmod 600"):
        load_private(private)


def pem(key: Any, secret: bytes | None = None) -> bytes:
    how = BestAvailableEncryption(secret) if secret else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an unencrypted private key"),
        (b"hunter2", "not an unencrypted private key"),
        (pem(KEY, b"secret"), "not an unencrypted private key"),
        (pem(generate_private_key(SECP256R1())), "not an Ed25519 key"),
    ],
    ids=["empty", "text", "encrypted", "another kind"],
)
def test_what_is_no_private_key_is_said_without_its_content(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        load_private(path)
    assert "hunter2" not in str(raised.value)


def test_every_wrong_public_key_is_named(tmp_path: Path) -> None:
    """All mistakes at once: a missing file, a private key in place of a public one, and the good one is no matter."""
    private, public = generate(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_public([tmp_path / "nowhere", private, public])
    assert [problem.file for problem in raised.value.problems] == [str(private), str(tmp_path / "nowhere")]


def test_a_missing_private_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*No such file"):
        load_private(tmp_path / "nowhere")


def test_the_time_left_is_told_in_seconds() -> None:
    with pytest.raises(CommandRefused, match=r"expired 2\.5 s ago"):
        VERIFIER.open(SIGNER.seal(GOOD), GOOD.not_after_ns + 5 * SECOND // 2)
