"""What `virtpilot rules check` and `virtpilot rules test` do and say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from virtpilot.errors import InputError, Problem
from virtpilot.pipeline import starting
from virtpilot.pipeline.output import print_json, quiet_logs


def check(paths: Sequence[Path], history: str = "", *, strict: bool = False) -> None:
    """Tell what is hardly meant in rule files; raises RuleError with every mistake, ends with 1 where asked to."""
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
        sys.stderr.write(f"{warning}\n")
    sys.stdout.write(f"{len(ruleset.rules)} rules: {f'{len(warnings)} warnings' if warnings else 'fine'}\n")
    if strict and warnings:
        sys.exit(1)


def run_tests(paths: Sequence[Path], junit: Path | None = None, *, json: bool = False) -> None:
    """Run the tests beside rules and tell what came of them; ends with 1 where one fails."""
    starting.import_spared("structlog")
    from virtpilot.clock import SystemClock
    from virtpilot.pipeline import rule_tests
    from virtpilot.rules.testing import report

    quiet_logs()
    loaded = rule_tests.load_all(paths)
    # Rules and tests stay to the end: nobody need look for garbage among them.
    starting.over()
    files = rule_tests.play(loaded, SystemClock())
    if junit is not None:
        write(junit, report.junit(files))
    if json:
        print_json(report.document(files))
    else:
        sys.stdout.write("\n".join(report.lines(files)) + "\n")
    if any(file.failed for file in files):
        sys.exit(1)


def write(path: Path, content: bytes) -> None:
    """Write a file; raises InputError where that cannot be."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError([Problem(str(path), 0, 0, f"cannot be written: {error.strerror}")]) from error
