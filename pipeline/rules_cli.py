"""The commands about rule files: `virtpilot rules …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from virtpilot.errors import InputError, Problem
from virtpilot.pipeline.output import print_json, quiet_logs

app = typer.Typer(help="Rule files.", no_args_is_help=True)

RuleFiles = Annotated[list[Path], typer.Argument(help="Rule files and folders.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("check")
def rules_check(
    paths: RuleFiles,
    history: Annotated[str, typer.Option(help="Warn of what chatters on this history (see `replay`).")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 where there is a warning.")] = False,
) -> None:
    """Check rule files; 2 with every mistake in them, each with its place; warnings of what is hardly meant."""
    from virtpilot.rules.language.load import load_placed

    ruleset, places = load_placed(paths)
    # Not before now: what is refused waits for none of this.
    from virtpilot.rules.testing.lint import at, lint

    warnings = lint(ruleset, places, paths)
    if history:
        from virtpilot.pipeline.chatter import chatter

        quiet_logs()
        warnings += [at(places, *found) for found in chatter(ruleset, history)]
    for warning in sorted(warnings):
        typer.echo(warning, err=True)
    typer.echo(f"{len(ruleset.rules)} rules: {f'{len(warnings)} warnings' if warnings else 'fine'}")
    if strict and warnings:
        raise typer.Exit(1)


@app.command("test")
def rules_test(
    paths: Annotated[list[Path], typer.Argument(help="Test files, rule files that have one, folders.")],
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML to this file.")] = None,
    json: Json = False,
) -> None:
    """Run the tests beside rules, in virtual time; 1 where one fails."""
    from virtpilot.clock import SystemClock
    from virtpilot.pipeline import rule_tests
    from virtpilot.rules.testing import report

    quiet_logs()
    files = rule_tests.run(paths, SystemClock())
    if junit is not None:
        _write(junit, report.junit(files))
    if json:
        print_json(report.document(files))
    else:
        typer.echo("\n".join(report.lines(files)))
    if any(file.failed for file in files):
        raise typer.Exit(1)


@app.command("schema")
def rules_schema() -> None:
    """Print the JSON Schema of rule files, for editors that complete and check."""
    from virtpilot.rules.language.schema import rule_schema

    print_json(rule_schema())


@app.command("new")
def rules_new(
    name: Annotated[str, typer.Argument(help="The rule's name, and its file's.", show_default=False)],
    folder: Annotated[Path, typer.Option(help="Where to.")] = Path(),
) -> None:
    """Write a rule file to start from, with a test beside it that passes."""
    from virtpilot.rules.language.starter import starter

    try:
        files = {folder / file: text for file, text in starter(name).items()}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    standing = [path for path in files if path.exists()]
    if standing:
        raise InputError([Problem(str(path), 0, 0, "is there already and stays as it is") for path in standing])
    for path, text in files.items():
        _write(path, text.encode())
        typer.echo(path)


@app.command("fmt")
def rules_fmt(
    paths: Annotated[list[Path], typer.Argument(help="Rule and test files, folders.", show_default=False)],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; 1 where a file would be changed.")] = False,
) -> None:
    """Lay rule and test files out in the one way, comments kept; prints the files that it changes."""
    from virtpilot.rules.language.layout import laid_out

    problems: list[Problem] = []
    changed = False
    for path, text in laid_out(paths, problems):
        changed = True
        typer.echo(path)
        if not check:
            _write(path, text.encode())
    if problems:
        raise InputError(problems)
    if check and changed:
        raise typer.Exit(1)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError([Problem(str(path), 0, 0, f"cannot be written: {error.strerror}")]) from error
