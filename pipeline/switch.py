"""The kill switch as one process knows it: stopped or not, on disk before it counts as told.

Whatever is said on the switch's topic stops, signed or not; a signed resume alone ends it. What is retained there is
read by a process that starts; what it has read once it remembers, also when the broker has forgotten.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

from virtpilot.actuators.order import Operators, Signed
from virtpilot.clock import seconds
from virtpilot.errors import CommandRefused, StateError
from virtpilot.orders import Resume, Stop
from virtpilot.pipeline.state import replace_file

log = structlog.get_logger(__name__)

SWITCH: Final = "switch.json"
# A resume may bear the time of a clock that goes behind ours by so much.
_SKEW_NS: Final = seconds(5)


class OperatorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may end a stop, and approve of actions."""

    public_key_files: Annotated[
        list[str],
        msgspec.Meta(description="Operators' public keys; without one a stop ends by hand alone: `rm switch.json`."),
    ] = []


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels on the switch's topic: one of the two."""

    stop: Stop | None = None
    resume: Signed | None = None


class _Known(msgspec.Struct, frozen=True):
    """What is on disk: the stop in force with its digest and when it was first heard, and what ended the last one."""

    stop: Stop | None = None
    digest: str = ""
    heard_ns: int = 0
    ended: str = ""
    """The digest of the stop that was ended last: it may be delivered again."""


class Switch:
    """Raises StateError when made where what is on disk cannot be read: stopped or not is not to be guessed."""

    def __init__(self, path: Path | None, operators: Operators, cluster: str) -> None:
        self._path = path
        self._operators = operators
        self._cluster = cluster
        self._known = self._load()

    @property
    def stop(self) -> Stop | None:
        """The stop in force."""
        return self._known.stop

    @property
    def why(self) -> str:
        """Who has stopped all and why, "" where nobody has."""
        stop = self._known.stop
        if stop is None:
            return ""
        return f"stopped by {stop.by or 'an operator'}" + (f": {stop.reason}" if stop.reason else "")

    def take(self, payload: bytes, now_ns: int) -> bool:
        """Take what was said; True where that stops or resumes. An emptied topic says nothing: a stop stays."""
        if not payload:
            return False
        try:
            said = msgspec.json.decode(payload, type=Said)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            # Somebody in a hurry: `mosquitto_pub -r -t … -m stop`.
            said = Said(stop=Stop(reason=payload[:200].decode(errors="replace")))
        if said.resume is not None:
            return self._resume(said.resume, now_ns)
        return self._stop(said.stop or Stop(), blake2b(payload, digest_size=16).hexdigest(), now_ns)

    def _stop(self, stop: Stop, digest: str, now_ns: int) -> bool:
        again = bool(stop.id) and digest == self._known.ended
        if again or (self._known.stop is not None and digest == self._known.digest):
            return False
        self._keep(_Known(stop, digest, now_ns, self._known.ended))
        log.error("stopped", by=stop.by, reason=stop.reason, abort_migrations=stop.abort_migrations)
        return True

    def _resume(self, signed: Signed, now_ns: int) -> bool:
        if self._known.stop is None:
            return False
        try:
            resume = self._operators.open(signed, Resume)
            if resume.cluster != self._cluster:
                raise CommandRefused("cluster", f"it is for {resume.cluster[:128]!r}")
            if not self._known.heard_ns - _SKEW_NS <= resume.at_ns <= now_ns + _SKEW_NS:
                raise CommandRefused("time", "it is older than the stop, or from the future: is a clock wrong?")
        except CommandRefused as refused:
            log.error("resume refused, all stays stopped", guard=refused.guard, reason=refused.reason)
            return False
        self._keep(_Known(ended=self._known.digest))
        log.warning("resumed", by=resume.by, reason=resume.reason)
        return True

    def _load(self) -> _Known:
        if self._path is None or not self._path.exists():
            return _Known()
        try:
            known = msgspec.json.decode(self._path.read_bytes(), type=_Known)
        except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise StateError(f"cannot read {self._path}: {error}") from error
        if known.stop is not None:
            log.error("stopped since an earlier run", by=known.stop.by, reason=known.stop.reason)
        return known

    def _keep(self, known: _Known) -> None:
        self._known = known
        if self._path is None:
            return
        try:
            replace_file(self._path, msgspec.json.encode(known))
        except OSError as error:
            # In force all the same; after a restart the retained message says it again.
            log.error("the switch is not on disk", error=str(error))
