"""`virtpilot audit`: is the log whole, and what does it say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from virtpilot.pipeline.output import print_json, quiet_logs

app = typer.Typer(help="The audit log: what was decided, commanded and done.", no_args_is_help=True)

Where = Annotated[
    Path, typer.Argument(help="A controller's or agent's state folder, or a file of its audit log.", show_default=False)
]


@app.command()
def verify(
    path: Where,
    since: Annotated[int, typer.Option(min=1, help="The first line that must be there: older ones are archived.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Prove that no line was changed, removed, added or moved; 1 with every place where one was."""
    from virtpilot.pipeline.audit import verify

    quiet_logs()
    found = verify.verify(path, since)
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        for problem in found.problems:
            typer.echo(str(problem), err=True)
        state = "whole" if not found.problems else f"{len(found.problems)} places are wrong"
        typer.echo(f"{path}: {found.lines} lines, {found.first} to {found.last}: {state}")
    if found.problems:
        raise typer.Exit(1)


@app.command()
def show(
    path: Where = Path("/var/lib/virtpilot/controller"),
    guest: Annotated[str, typer.Option(help="Of this guest: its name or UUID.")] = "",
    host: Annotated[str, typer.Option(help="Of this host.")] = "",
    rule: Annotated[str, typer.Option(help="Of this rule.")] = "",
    kind: Annotated[str, typer.Option(help="Only decisions, commands, outcomes, …")] = "",
    record: Annotated[str, typer.Option("--id", help="What led to this record, and what followed from it.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print what the log says, oldest first."""
    from virtpilot.pipeline.audit import show

    quiet_logs()
    found = show.chosen(show.lines(path), show.Asked(guest, host, rule, kind, record))
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        typer.echo("\n".join(map(show.text, found)) if found else "nothing fits")
