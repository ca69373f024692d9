"""What an agent writes down of the commands that reach it: refused or taken, and what came of them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from virtpilot.clock import seconds
from virtpilot.errors import CommandRefused
from virtpilot.model import Command, Outcome
from virtpilot.pipeline.audit.log import Audit

# Who floods an agent with forged commands must not fill its disk.
_REFUSED_IN_SPAN: Final = 100
_SPAN_NS: Final = seconds(60)


class CommandAudit:
    """Writes each thing once; of more than 100 refusals in a minute only the number."""

    def __init__(self, audit: Audit) -> None:
        self.log = audit
        self._span_ns = 0
        self._refused = 0

    def refused(self, payload: bytes, refused: CommandRefused, now_ns: int) -> None:
        """Note what was not even a command for this host; who sent it is not known."""
        if not 0 <= now_ns - self._span_ns < _SPAN_NS:
            self._tell_more(now_ns)
            self._span_ns, self._refused = now_ns, 0
        self._refused += 1
        if self._refused <= _REFUSED_IN_SPAN:
            digest = sha256(payload).hexdigest()
            entry = {"guard": refused.guard, "reason": refused.reason, "bytes": len(payload), "sha256": digest}
            self.log.add("refused", now_ns, entry)

    def _tell_more(self, now_ns: int) -> None:
        more = self._refused - _REFUSED_IN_SPAN
        if more > 0:
            self.log.add("refused", now_ns, {"reason": f"{more} more within a minute"})

    def taken(self, command: Command, now_ns: int, *, again: bool) -> None:
        """Note a command that was signed for this host; one that came before changes nothing."""
        self.log.add("repeated" if again else "command", now_ns, {"id": command.id} if again else command)

    def outcomes(self, made: Iterable[Outcome]) -> None:
        """Note what came of commands, and what was given back."""
        for outcome in made:
            self.log.add("outcome", outcome.at_ns, outcome)

    def close(self, now_ns: int) -> None:
        """Put all on disk and let go."""
        self._tell_more(now_ns)
        self.log.close()
