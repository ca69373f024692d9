"""The operators' commands: `virtpilot stop`, `resume`, `maintenance` and `approvals …`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from virtpilot.clock import SECOND, SystemClock
from virtpilot.errors import BusError
from virtpilot.orders import Approvals, Emptying, Pending, Settled
from virtpilot.pipeline.output import print_json, quiet_logs
from virtpilot.pipeline.plain import FILES

if TYPE_CHECKING:
    from virtpilot.pipeline.operating import Operating

app = typer.Typer(help="What waits for a person's approval.", no_args_is_help=True)

Config = Annotated[Path, typer.Option("--config", help="The operator's TOML file.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept and shown.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Id = Annotated[str, typer.Argument(help="The id that `virtpilot approvals ls` shows.", show_default=False)]
OPERATOR = FILES["operator"]


def _desk(config: Path) -> AbstractContextManager[Operating]:
    # Not before now: the other commands wait for none of this.
    from virtpilot.pipeline import settings
    from virtpilot.pipeline.operating import operating
    from virtpilot.pipeline.operator_config import OperatorConfig

    return operating(settings.load(config, OperatorConfig), SystemClock())


class NotObeyed(BusError):
    """Not everybody has answered as asked."""


def stop(
    reason: Reason = "",
    abort_migrations: Annotated[bool, typer.Option(help="Abort the migrations under way too.")] = False,
    config: Config = OPERATOR,
    json: Json = False,
) -> None:
    """Stop everything: no host and no controller begins anything new until `virtpilot resume`.

    Needs no key. Leases run to their end and are given back then; migrations go on unless they are to be aborted. 1
    where a host that is there does not answer.
    """
    quiet_logs()
    with _desk(config) as desk:
        _tell_hosts(desk.stop(reason, abort_migrations=abort_migrations), json=json)


def resume(reason: Reason = "", config: Config = OPERATOR, json: Json = False) -> None:
    """End a stop; signed with the operator's key. 1 where a host that is there does not answer."""
    quiet_logs()
    with _desk(config) as desk:
        _tell_hosts(desk.resume(reason), json=json)


def _tell_hosts(hosts: Mapping[str, str], *, json: bool) -> None:
    if json:
        print_json({"hosts": hosts})
    else:
        typer.echo("\n".join(f"{name}: {said}" for name, said in hosts.items()) or "no host is known here")
    silent = [name for name, said in hosts.items() if said.isupper()]
    if silent:
        raise NotObeyed(f"no answer from {', '.join(silent)}")


class Way(StrEnum):
    """Into maintenance, or out of it."""

    ON = "on"
    OFF = "off"


def maintenance(
    host: Annotated[str, typer.Argument(help="The host's name.", show_default=False)],
    way: Annotated[Way, typer.Argument(help="`on`: empty it, no guests go there; `off`: it takes guests again.")],
    reason: Reason = "",
    config: Config = OPERATOR,
    json: Json = False,
) -> None:
    """Have a host emptied, the largest guest first, or opened again; signed with the operator's key.

    Again with `on` it tells who is left. 1 where no controller answers.
    """
    quiet_logs()
    with _desk(config) as desk:
        told = desk.maintain(host, reason, on=way is Way.ON)
    if told is None:
        raise NotObeyed("no answer: the controller is not there, or does not know this key")
    if json:
        print_json(msgspec.to_builtins(told))
    else:
        typer.echo("\n".join(_emptying(told)))


def _emptying(told: Emptying) -> list[str]:
    if not told.on:
        return [f"{told.host} takes guests again"]
    lines = [f"  {name}: {told.refused.get(name, 'is to leave')}" for name in told.left]
    return [f"{told.host} is in maintenance, {len(lines)} guests run there", *lines]


@app.command("ls")
def approvals_ls(config: Config = OPERATOR, json: Json = False) -> None:
    """Show what waits, and what was settled last."""
    quiet_logs()
    with _desk(config) as desk:
        known = desk.approvals
    if known is None:
        raise BusError("no controller has said anything of approvals here")
    if json:
        print_json(msgspec.to_builtins(known))
    else:
        typer.echo("\n".join(_lines(known, SystemClock().now_ns())))


def _lines(known: Approvals, now_ns: int) -> list[str]:
    lines = [_pending(one, now_ns) for one in known.pending] or ["nothing waits for approval"]
    return lines + [_settled(one) for one in known.settled]


def _pending(one: Pending, now_ns: int) -> str:
    left = f"{max(one.until_ns - now_ns, 0) // SECOND} s left"
    if one.accepted_by:
        left = f"accepted by {one.accepted_by}, waits for its turn, {left}"
    who = one.subject.name or one.subject.id
    from virtpilot.pipeline.trail import describe

    return f"{one.id}  {who}: {describe(one.action)}  (rule {one.rule}, {left})  {one.reason}"


def _settled(one: Settled) -> str:
    return f"{one.id}  {one.result}" + (f" by {one.by}" if one.by else "") + (f": {one.reason}" if one.reason else "")


@app.command("accept")
def approvals_accept(approval: Id, reason: Reason = "", config: Config = OPERATOR, json: Json = False) -> None:
    """Let it be done, when its turn comes; all guards are asked once more. 1 where one refuses, or nobody answers."""
    _decide(approval, reason, config, accepted=True, json=json)


@app.command("reject")
def approvals_reject(approval: Id, reason: Reason = "", config: Config = OPERATOR, json: Json = False) -> None:
    """Let it be; the rule wants it no more until its signal has ended."""
    _decide(approval, reason, config, accepted=False, json=json)


def _decide(approval: str, reason: str, config: Path, *, accepted: bool, json: bool) -> None:
    quiet_logs()
    with _desk(config) as desk:
        settled = desk.decide(approval, reason, accepted=accepted)
    if settled is None:
        raise NotObeyed(f"no answer: the controller is not there, knows no {approval}, or not this key")
    if isinstance(settled, Pending):
        _tell_waiting(settled, json=json)
        return
    document: dict[str, Any] = msgspec.to_builtins(settled)
    if json:
        print_json(document)
    else:
        typer.echo(_settled(settled))
    if settled.result != ("accepted" if accepted else "rejected"):
        raise NotObeyed(f"{approval} is {settled.result}")


def _tell_waiting(one: Pending, *, json: bool) -> None:
    if json:
        print_json({"id": one.id, "result": "waiting", "by": one.accepted_by})
    else:
        typer.echo(f"{one.id}  accepted by {one.accepted_by}: it waits for its turn")
