"""The commands about rule files: `virtpilot rules …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from virtpilot.errors import InputError, Problem
from virtpilot.pipeline import rule_answers
from virtpilot.pipeline.output import print_json

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
    rule_answers.check(paths, history, strict=strict)


@app.command("test")
def rules_test(
    paths: Annotated[list[Path], typer.Argument(help="Test files, rule files that have one, folders.")],
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML to this file.")] = None,
    json: Json = False,
) -> None:
    """Run the tests beside rules, in virtual time; 1 where one fails."""
    rule_answers.run_tests(paths, junit, json=json)


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
        rule_answers.write(path, text.encode())
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
            rule_answers.write(path, text.encode())
    if problems:
        raise InputError(problems)
    if check and changed:
        raise typer.Exit(1)
