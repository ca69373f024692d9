"""The commands about rule files: `virtpilot rules …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from virtpilot.errors import InputError, Problem
from virtpilot.pipeline.output import print_json

app = typer.Typer(help="Rule files.", no_args_is_help=True)

RuleFiles = Annotated[list[Path], typer.Argument(help="Rule files and folders.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("check")
def rules_check(paths: RuleFiles) -> None:
    """Check rule files; 2 with every mistake in them, each with its place."""
    from virtpilot.rules.language import load

    ruleset = load(paths)
    typer.echo(f"{len(ruleset.rules)} rules: fine")


@app.command("test")
def rules_test(
    paths: Annotated[list[Path], typer.Argument(help="Test files, rule files that have one, folders.")],
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML to this file.")] = None,
    json: Json = False,
) -> None:
    """Run the tests beside rules, in virtual time; 1 where one fails."""
    from virtpilot.clock import SystemClock
    from virtpilot.pipeline import rule_tests
    from virtpilot.pipeline.config import LogOptions
    from virtpilot.pipeline.process import set_up_logs
    from virtpilot.rules.testing import report

    set_up_logs(LogOptions(level="error"))
    files = rule_tests.run(paths, SystemClock())
    if junit is not None:
        _write(junit, report.junit(files))
    if json:
        print_json(report.document(files))
    else:
        typer.echo("\n".join(report.lines(files)))
    if any(file.failed for file in files):
        raise typer.Exit(1)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError([Problem(str(path), 0, 0, f"cannot be written: {error.strerror}")]) from error
