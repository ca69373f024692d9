"""Operators' orders, signed: Ed25519 over a prefix that names the kind of order, and the exact bytes as they travel.

    {"key": "<key id>", "signature": "<base64>", "order": {…the signed bytes…}}

An operator's key is none of the controller's: what signs commands must not approve of them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from virtpilot.actuators.command import MAX_PAYLOAD_BYTES, key_id
from virtpilot.errors import CommandRefused

if TYPE_CHECKING:
    # 7 MB of memory, which an agent without keys has no use for: imported where a key is at hand.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

T = TypeVar("T", bound=msgspec.Struct)
_PREFIX: Final = b"virtpilot order v1 "


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels: the signed bytes with the signature and the id of the key that made it."""

    key: str
    signature: str
    order: msgspec.Raw


def sign(order: msgspec.Struct, key: Ed25519PrivateKey) -> Signed:
    """Return an order, signed."""
    inner = msgspec.json.encode(order)
    signature = base64.b64encode(key.sign(_prefix(type(order)) + inner)).decode()
    return Signed(key_id(key.public_key()), signature, msgspec.Raw(inner))


class Operators:
    """Those whose orders are obeyed, by their public keys."""

    def __init__(self, public_keys: Mapping[str, Ed25519PublicKey]) -> None:
        self._keys = dict(public_keys)

    def open(self, signed: Signed, kind: type[T]) -> T:
        """Return the order of a kind in an envelope; raises CommandRefused with the guard that it failed."""
        inner = bytes(signed.order)
        if len(inner) > MAX_PAYLOAD_BYTES:
            raise CommandRefused("size", f"{len(inner)} bytes, {MAX_PAYLOAD_BYTES} at most")
        key = self._keys.get(signed.key)
        if key is None:
            raise CommandRefused("key", f"no operator's public key {signed.key[:32]!r} here")
        from cryptography.exceptions import InvalidSignature

        try:
            signature = base64.b64decode(signed.signature.encode(), validate=True)
            key.verify(signature, _prefix(kind) + inner)
        except (InvalidSignature, binascii.Error, ValueError):
            raise CommandRefused("signature", f"not signed by key {signed.key}") from None
        try:
            return msgspec.json.decode(inner, type=kind)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise CommandRefused("malformed", str(error)[:200]) from None


def _prefix(kind: type[msgspec.Struct]) -> bytes:
    """Return what is signed with it, so that no order passes for one of another kind."""
    return _PREFIX + kind.__name__.lower().encode() + b"\n"
