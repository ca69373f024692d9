"""Runs hooks from the host's list: looked up, filled in, written down, run once, told of at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from virtpilot.action import Run, action_name
from virtpilot.actuators.hooks.ending import Ending
from virtpilot.actuators.hooks.hook import Hook, HookOptions, address, arguments
from virtpilot.actuators.ledger import Operation, OperationDropped, OperationKept, OperationState, OutcomeKept
from virtpilot.actuators.lifecycle import Point, Site, outcome, seen
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import CommandRefused
from virtpilot.model import Command, Outcome, Result


class Running(Protocol):
    """A hook under way."""

    @property
    def ending(self) -> Ending | None:
        """How it ended, None while it goes on."""

    def stop(self) -> None:
        """End it now."""


class Hooks:
    """The hooks of this host."""

    def __init__(self, site: Site, options: HookOptions) -> None:
        self._site = site
        self._journal = site.journal
        self._allowed = {hook.name: hook for hook in options.allowed}
        self._at_once = options.at_once
        self._running: dict[str, Running] = {}

    def start(self, command: Command, action: Run, now_ns: int) -> list[Outcome]:
        """Run a hook once; `poll` tells how it ended. Raises CommandRefused and HypervisorError."""
        hook = self._allowed.get(action.hook)
        if hook is None:
            there = ", ".join(sorted(self._allowed)) or "none"
            raise CommandRefused("hook", f"{action.hook!r} is not on the list of {self._site.host}: {there}")
        if len(self._running) >= self._at_once:
            raise CommandRefused("busy", f"{self._at_once} hooks run already")
        self._site.state(action.guest)
        begin = self._prepared(hook, _fields(command, action))
        operation = Operation(
            command=command,
            started_ns=now_ns,
            deadline_ns=now_ns + seconds(hook.deadline_s),
            state=OperationState.STARTED,
        )
        self._site.reached(Point.BEFORE_HOOK)
        self._site.commit(*seen(command), OperationKept(operation))
        self._running[command.id] = begin()
        self._site.reached(Point.AFTER_HOOK)
        return []

    def _prepared(self, hook: Hook, fields: Mapping[str, str]) -> Callable[[], Running]:
        """Return what begins the hook, all gaps filled; raises CommandRefused."""
        if hook.command:
            from virtpilot.actuators.hooks.program import Program  # memory that an agent without hooks can do without

            argv = arguments(hook, fields)
            return lambda: Program(argv, deadline_s=hook.deadline_s, output_max=hook.output_max)
        from virtpilot.actuators.hooks.web import Post

        url, body = address(hook, fields), msgspec.json.encode(fields)
        return lambda: Post(
            url, body, token_file=hook.token_file, deadline_s=hook.deadline_s, output_max=hook.output_max
        )

    def poll(self, operation: Operation, action: Run, now_ns: int) -> list[Outcome]:
        """Look whether a hook is over; one that an earlier process began is not run again."""
        command = operation.command
        running = self._running.get(command.id)
        if running is None:
            reason = "the agent stopped while it ran: whether it was done is not known"
            return [self._end(command, action, Result.FAILED, reason, now_ns)]
        ending = running.ending
        if ending is None:
            return []
        running.stop()
        after = {"took_seconds": (now_ns - operation.started_ns) / SECOND, **ending.numbers}
        result = Result.DONE if ending.worked else Result.FAILED
        return [self._end(command, action, result, ending.reason, now_ns, after)]

    def close(self) -> None:
        """End what runs."""
        for running in self._running.values():
            running.stop()

    def _end(
        self,
        command: Command,
        action: Run,
        result: Result,
        reason: str,
        now_ns: int,
        after: Mapping[str, float] | None = None,
    ) -> Outcome:
        made = outcome(
            command.id,
            result,
            now_ns,
            host=self._site.host,
            guest=action.guest,
            action=action_name(action),
            rule=command.rule,
            reason=reason,
            after=after,
        )
        self._site.reached(Point.BEFORE_HOOK_END)
        self._journal.note(OperationDropped(command.id), OutcomeKept(made))
        self._running.pop(command.id, None)
        return made


def _fields(command: Command, action: Run) -> dict[str, str]:
    """Return what gaps are filled with, and what a webhook is told; the command's own words go before any other."""
    own = {"guest": action.guest, "host": command.host, "rule": command.rule, "command": command.id}
    return dict(action.fields) | own
