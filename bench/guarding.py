"""What a command costs before it leaves: the chain of guards, their memory's changes for the disk, the signature."""

from __future__ import annotations

from time import process_time
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.measure import Figure, figure
from virtpilot.action import SetKnob
from virtpilot.actuators.command import Signer
from virtpilot.actuators.guards.chain import Guards
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import GuardRequest
from virtpilot.clock import SECOND, seconds
from virtpilot.model import Command, Mode

COMMANDS: Final = 2_000
_START: Final = 1_700_000_000 * SECOND
_EVERY_NS: Final = seconds(0.001)


def measure(runs: int) -> dict[str, Figure]:
    """Measure CPU time a command, 1,000 of them a second, each on another guest."""
    each = [_run() / 1000 for _ in range(runs + 1)][1:]
    what = "guards checked, command begun and ended, changes of their memory told, command signed"
    return {"command_ms": figure(each, "ms", what, at_most=2)}


def _run() -> float:
    limits = GuardOptions(
        guest_actions_per_hour=3600, host_actions_per_hour=100_000, cluster_actions_per_hour=1_000_000
    )
    guards, signer = Guards(limits), Signer(Ed25519PrivateKey.generate())
    began = process_time()
    for number in range(COMMANDS):
        _command(guards, signer, number, _START + number * _EVERY_NS)
    return (process_time() - began) / COMMANDS * 1e6


def _command(guards: Guards, signer: Signer, number: int, now_ns: int) -> None:
    request = GuardRequest(
        mode=Mode.ACT,
        rule="starved",
        cooldown_ns=seconds(600),
        guest=f"guest-{number}",
        host=f"host-{number % 50}",
        sample_ns=now_ns,
        first_seen_ns=now_ns - seconds(3600),
        state_code=1,
        knob="cpu_shares",
        value=2048,
        current=1024,
    )
    if (refusal := guards.check(request, now_ns)) is not None:
        raise AssertionError(refusal.reason)
    action = SetKnob(guest=request.guest, knob="cpu_shares", value=2048, expected=1024, lease_s=900.0)
    command = Command(
        id=f"cm-{number}",
        cause="dc-1",
        host=request.host,
        action=action,
        rule="starved",
        issued_ns=now_ns,
        not_after_ns=now_ns + seconds(30),
        epoch=1,
    )
    guards.started(request, command.id, now_ns)
    list(guards.changes())
    signer.seal(command)
    guards.finished(command.id, now_ns)
    list(guards.changes())
