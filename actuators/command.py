"""Commands that nobody can forge: Ed25519 (RFC 8032) over the exact bytes that travel, bound to one host and a time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from virtpilot.clock import SECOND, seconds
from virtpilot.errors import CommandRefused, ConfigError, Problem
from virtpilot.model import Command

MAX_BYTES: Final = 64 * 1024
MAX_CLOCK_SKEW_S: Final = 5.0
# What is signed for one purpose must never pass for another.
_DOMAIN: Final = b"virtpilot command 1\x00"


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: Annotated[str, msgspec.Meta(max_length=64)]
    body: str
    signature: Annotated[str, msgspec.Meta(max_length=128)]


class Signer:
    """Seals commands with a controller's private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    def seal(self, command: Command) -> bytes:
        """Return a command as it travels."""
        body = msgspec.json.encode(command)
        signature = base64.b64encode(self._key.sign(_DOMAIN + body)).decode()
        return msgspec.json.encode(_Envelope(self.key_id, body.decode(), signature))


class Verifier:
    """Opens what is for this host, signed by a known key and still in time."""

    def __init__(
        self, keys: Mapping[str, Ed25519PublicKey], host: str, max_clock_skew_s: float = MAX_CLOCK_SKEW_S
    ) -> None:
        self._keys = dict(keys)
        self._host = host
        self._skew_ns = seconds(max_clock_skew_s)

    def open(self, payload: bytes, now_ns: int) -> Command:
        """Return the command in a payload; raises CommandRefused with the guard that stopped it."""
        if len(payload) > MAX_BYTES:
            raise CommandRefused("size", f"{len(payload)} bytes, {MAX_BYTES} at most")
        body = self._verified(payload)
        try:
            command = msgspec.json.decode(body, type=Command)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CommandRefused("form", f"not a command: {error}") from None
        if command.host != self._host:
            raise CommandRefused("host", f"for {command.host[:128]!r}, this is {self._host!r}")
        if now_ns > command.not_after_ns:
            raise CommandRefused("expired", f"{(now_ns - command.not_after_ns) / SECOND:.1f} s too late")
        if command.issued_ns - now_ns > self._skew_ns:
            raise CommandRefused("clock", f"issued {(command.issued_ns - now_ns) / SECOND:.1f} s in the future")
        return command

    def _verified(self, payload: bytes) -> bytes:
        try:
            envelope = msgspec.json.decode(payload, type=_Envelope)
            signature = base64.b64decode(envelope.signature, validate=True)
        except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error) as error:
            raise CommandRefused("form", f"not an envelope: {error}") from None
        key = self._keys.get(envelope.key)
        if key is None:
            raise CommandRefused("key", "signed with a key that is not known here")
        body = envelope.body.encode("utf-8", "surrogatepass")
        try:
            key.verify(signature, _DOMAIN + body)
        except InvalidSignature:
            raise CommandRefused("signature", "the signature does not fit the command") from None
        return body


def key_id(key: Ed25519PublicKey) -> str:
    """Return a public key's name: the start of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def load_private(path: Path) -> Ed25519PrivateKey:
    """Read a private key in PEM; raises ConfigError, also when others than its owner may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_BYTES)
    except OSError as error:
        raise _trouble(path, f"cannot be read: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _trouble(path, "others than its owner may use this private key: chmod 600 it")
    try:
        key = serialization.load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _trouble(path, "not a private key in PEM without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _trouble(path, "not an Ed25519 key")
    return key


def load_public(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """Read public keys in PEM, by name; raises ConfigError."""
    found = {}
    for path in paths:
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except OSError as error:
            raise _trouble(path, f"cannot be read: {error.strerror}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise _trouble(path, "not a public key in PEM") from None
        if not isinstance(key, Ed25519PublicKey):
            raise _trouble(path, "not an Ed25519 key")
        found[key_id(key)] = key
    return found


def generate(folder: Path) -> tuple[Path, Path]:
    """Make a pair in a folder, never over an existing one; raises ConfigError."""
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / "controller.key", folder / "controller.pub"
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise _trouble(private, "there is a key already, and it is left alone") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def _trouble(path: Path, message: str) -> ConfigError:
    return ConfigError([Problem(str(path), 0, 0, message)])
