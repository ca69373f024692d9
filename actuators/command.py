"""Signed commands: Ed25519 over the exact bytes of the inner document, as they travel.

    {"key": "<key id>", "signature": "<base64>", "command": {…the signed bytes, a model.Command…}}

The signature is over a prefix (so that nothing signed for another purpose can pass as a command) and the bytes of the
value of "command". They are taken out of the envelope as they are and never serialised again: there is one reading of
them. Replays and superseded epochs are the executor's to refuse: it has the journal.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec

from virtpilot.action import Action, Migrate, Power, Run, SetKnob, Way
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import CommandRefused, ConfigError, Problem
from virtpilot.model import Command

if TYPE_CHECKING:
    # 7 MB of memory, which an agent without keys has no use for: imported where a key is at hand.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_PAYLOAD_BYTES: Final = 64 * 1024
MAX_VALIDITY_S: Final = 3600.0
_PREFIX: Final = b"virtpilot command v1\n"
_WILDCARDS: Final = frozenset("*+#")
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_URI: Final = re.compile(r"[a-z][a-z0-9+]{0,30}://[!-~]{0,1000}")
_ACTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {
    str(kind.__struct_config__.tag): kind for kind in get_args(Action)
}
_LONGEST_S: Final = 86400.0
_MOST_CONNECTIONS: Final = 255
_MOST_FIELDS: Final = 64
_LONGEST_FIELD: Final = 1024
_INT64: Final = 2**63
_PUBLIC_PEM: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----")
# What comes before an Ed25519 key's own 32 bytes (RFC 8410, section 4).
_PUBLIC_HEAD: Final = bytes.fromhex("302a300506032b6570032100")
_PUBLIC_BYTES: Final = len(_PUBLIC_HEAD) + 32


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels: the signed bytes with the signature and the id of the key that made it."""

    key: str
    signature: str
    command: msgspec.Raw


def key_id(key: Ed25519PublicKey) -> str:
    """Return the short name of a public key: the first 16 hex digits of its SHA-256."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


class Signer:
    """Signs commands with one private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    def seal(self, command: Command) -> bytes:
        """Return the payload that carries a command."""
        inner = msgspec.json.encode(command)
        signature = base64.b64encode(self._key.sign(_PREFIX + inner)).decode()
        return msgspec.json.encode(Envelope(self.key_id, signature, msgspec.Raw(inner)))


class Verifier:
    """Opens what arrives for one host; several public keys may be valid while keys are exchanged."""

    def __init__(
        self, public_keys: Mapping[str, Ed25519PublicKey], host: str, *, max_clock_skew_s: float = 5.0
    ) -> None:
        self._keys = dict(public_keys)
        self._host = host
        self._skew_ns = seconds(max_clock_skew_s)

    def open(self, payload: bytes, now_ns: int) -> Command:
        """Return the command in a payload; raises CommandRefused with the guard that it failed."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise CommandRefused("size", f"{len(payload)} bytes, {MAX_PAYLOAD_BYTES} at most")
        envelope = _envelope(payload)
        inner = bytes(envelope.command)
        self._check_signature(envelope, inner)
        # From here on the sender is known; still, a faulty one must not get through.
        command = _command(inner)
        self._check_host(command)
        self._check_time(command, now_ns)
        _check_values(command)
        return command

    def _check_signature(self, envelope: Envelope, inner: bytes) -> None:
        key = self._keys.get(envelope.key)
        if key is None:
            raise CommandRefused("key", f"no public key {envelope.key[:32]!r} here")
        from cryptography.exceptions import InvalidSignature

        try:
            signature = base64.b64decode(envelope.signature.encode(), validate=True)
            key.verify(signature, _PREFIX + inner)
        except (InvalidSignature, binascii.Error, ValueError):
            raise CommandRefused("signature", f"not signed by key {envelope.key}") from None

    def _check_host(self, command: Command) -> None:
        if not command.host or _WILDCARDS & set(command.host):
            raise CommandRefused("wildcard-host", f"a command is for one host, not for {command.host!r}")
        if command.host != self._host:
            raise CommandRefused("host", f"it is for {command.host[:128]!r}, this is {self._host}")

    def _check_time(self, command: Command, now_ns: int) -> None:
        if command.not_after_ns < now_ns:
            late_s = (now_ns - command.not_after_ns) / SECOND
            raise CommandRefused("expired", f"it expired {late_s:.1f} s ago")
        if command.issued_ns > now_ns + self._skew_ns:
            ahead_s = (command.issued_ns - now_ns) / SECOND
            limit_s = self._skew_ns / SECOND
            raise CommandRefused(
                "future", f"it was issued {ahead_s:.1f} s in the future, {limit_s:g} s are let through"
            )
        if not 0 < command.not_after_ns - command.issued_ns <= seconds(MAX_VALIDITY_S):
            raise CommandRefused("value", f"a command is valid for more than 0 and at most {MAX_VALIDITY_S:g} s")


def _envelope(payload: bytes) -> Envelope:
    try:
        return msgspec.json.decode(payload, type=Envelope)
    except msgspec.ValidationError as error:
        raise CommandRefused("envelope", str(error)[:200]) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CommandRefused("malformed", str(error)[:200]) from None


def _command(inner: bytes) -> Command:
    try:
        document = msgspec.json.decode(inner, type=dict[str, Any])
        action = document.get("action")
        kind = _ACTIONS.get(str(action.get("type"))) if isinstance(action, dict) else None
        if kind is None or not isinstance(action, dict):
            raise CommandRefused("action", "it asks for no action that this agent knows")
        _check_keys(document, Command, "command")
        _check_keys(action, kind, "action")
        return msgspec.json.decode(inner, type=Command)
    except msgspec.ValidationError as error:
        raise CommandRefused("value", str(error)[:200]) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CommandRefused("malformed", str(error)[:200]) from None


def _check_keys(document: Mapping[str, Any], kind: type[msgspec.Struct], what: str) -> None:
    """Refuse what this version does not know: an unread key may be the one that forbids."""
    unknown = document.keys() - set(kind.__struct_fields__) - ({"type"} if what == "action" else set())
    if unknown:
        raise CommandRefused("value", f"unknown key {min(unknown)[:64]!r} in the {what}")


def _check_values(command: Command) -> None:
    action = command.action
    for what, text in (("id", command.id), ("guest", action.guest)):
        if not _IDENTIFIER.fullmatch(text):
            raise CommandRefused("value", f"{what} {text[:128]!r} is no identifier")
    if command.epoch < 0 or command.epoch >= _INT64:
        raise CommandRefused("value", f"epoch {command.epoch} is out of range")
    match action:
        case SetKnob():
            _check_set(action)
        case Power() if not (math.isfinite(action.within_s) and 0 < action.within_s <= MAX_VALIDITY_S):
            raise CommandRefused("value", f"{action.within_s} s for a guest to {action.verb}")
        case Migrate() if not _IDENTIFIER.fullmatch(action.target):
            raise CommandRefused("value", f"target {action.target[:128]!r} is no host")
        case Migrate() if not _URI.fullmatch(action.uri):
            raise CommandRefused("value", f"migration URI {action.uri[:128]!r} is none")
        case Run() if not _plain(action):
            raise CommandRefused("value", "a hook's name or a field of it is none")
        case Migrate() if not _sound(action.way):
            raise CommandRefused("value", "a number of the way to migrate is out of range")


def _plain(action: Run) -> bool:
    fields = action.fields
    return (
        bool(_IDENTIFIER.fullmatch(action.hook))
        and len(fields) <= _MOST_FIELDS
        and all(_IDENTIFIER.fullmatch(key) and len(value) <= _LONGEST_FIELD for key, value in fields.items())
    )


def _sound(way: Way) -> bool:
    times = (way.downtime_s, way.stall_s, way.within_s)
    return (
        all(math.isfinite(value) and 0 <= value <= _LONGEST_S for value in times)
        and 0 <= way.bandwidth_bytes_s < _INT64
        and 0 <= way.connections <= _MOST_CONNECTIONS
    )


def _check_set(action: SetKnob) -> None:
    if not (math.isfinite(action.lease_s) and action.lease_s > 0):
        raise CommandRefused("value", f"a lease of {action.lease_s} s")
    if not all(-_INT64 <= value < _INT64 for value in (action.value, action.expected)):
        raise CommandRefused("value", "a knob's value does not fit into 64 bits")


def generate(folder: Path, name: str = "controller") -> tuple[Path, Path]:
    """Make a key pair in `folder`, return NAME.key and NAME.pub; raises ConfigError, overwrites nothing."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public_pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if public.exists():
            raise _wrong(public, "is there already; a key is never overwritten")
        _create(private, pem, 0o600)
        _create(public, public_pem, 0o644)
    except OSError as error:
        raise _wrong(Path(error.filename or folder), error.strerror or str(error)) from error
    return private, public


def _create(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def load_private(path: Path) -> Ed25519PrivateKey:
    """Return the private key in a PEM file; raises ConfigError, also when others than its owner can read it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise _wrong(path, f"mode {mode:04o} lets group or others at the private key; chmod 600 it")
            key = load_pem_private_key(file.read(MAX_PAYLOAD_BYTES), password=None)
    except OSError as error:
        raise _wrong(path, error.strerror or str(error)) from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The parser's own words are left out: they may quote what is in the file.
        raise _wrong(path, "not an unencrypted private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _wrong(path, "not an Ed25519 key")
    return key


def load_public(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """Return the public keys in PEM files by their ids; raises ConfigError with every file that is none."""
    keys: dict[str, Ed25519PublicKey] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            key = _load_public(path)
            keys[key_id(key)] = key
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return keys


def _load_public(path: Path) -> Ed25519PublicKey:
    # Read by hand, as all such keys look alike: cryptography's own readers take 1 MB of memory more, on each host.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        with path.open("rb") as file:
            found = _PUBLIC_PEM.search(file.read(MAX_PAYLOAD_BYTES))
        if found is None:
            raise _wrong(path, "not a public key in PEM")
        written = base64.b64decode(b"".join(found[1].split()), validate=True)
        if len(written) != _PUBLIC_BYTES or not written.startswith(_PUBLIC_HEAD):
            raise _wrong(path, "not an Ed25519 key")
        return Ed25519PublicKey.from_public_bytes(written[len(_PUBLIC_HEAD) :])
    except OSError as error:
        raise _wrong(path, error.strerror or str(error)) from error
    except ValueError:
        raise _wrong(path, "not a public key in PEM") from None


def _wrong(path: Path, message: str) -> ConfigError:
    return ConfigError([Problem(str(path), 0, 0, message)])
