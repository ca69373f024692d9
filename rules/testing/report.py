"""What tests showed: as lines for a person, as JUnit XML and as a JSON document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as Xml

import msgspec

from virtpilot.rules.testing.coverage import Coverage

_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An expectation that did not come true, with what happened around it."""

    file: str
    line: int
    column: int
    expected: str
    happened: str
    trace: list[str]


class Tested(msgspec.Struct, frozen=True, kw_only=True):
    """One test that was run; `seconds` is how long that took."""

    name: str
    line: int
    seconds: float
    failures: list[Failure]


class TestedFile(msgspec.Struct, frozen=True, kw_only=True):
    """All tests of one file, and what they showed of its rules."""

    __test__ = False

    path: Path
    tests: list[Tested]
    coverage: Coverage

    @property
    def failed(self) -> int:
        """How many tests failed."""
        return sum(1 for test in self.tests if test.failures)


def lines(files: Sequence[TestedFile]) -> Iterator[str]:
    """Yield the report for a person."""
    for file in files:
        fired, rules, both, clauses = file.coverage.counts()
        verdict = (
            f"{file.failed} of {len(file.tests)} tests FAILED" if file.failed else f"{len(file.tests)} tests passed"
        )
        yield f"{file.path}: {verdict}; {fired} of {rules} rules fired, {both} of {clauses} comparisons both ways"
        for test in file.tests:
            for failure in test.failures:
                yield f"\n{failure.file}:{failure.line}:{failure.column}: {test.name}"
                yield f"  expected  {failure.expected}"
                yield f"  happened  {failure.happened}"
                yield from (f"    {line}" for line in failure.trace)
        yield from (f"  not shown: {gap}" for gap in file.coverage.gaps())
    if len(files) > 1:
        failed, tests = sum(file.failed for file in files), sum(len(file.tests) for file in files)
        took_s = sum(test.seconds for file in files for test in file.tests)
        verdict = f"{failed} of {tests} tests FAILED" if failed else f"{tests} tests passed"
        yield f"{verdict} in {len(files)} files, {took_s:.1f} s"


def document(files: Sequence[TestedFile]) -> dict[str, Any]:
    """Return the report as JSON-able values."""
    return {
        "passed": sum(len(file.tests) - file.failed for file in files),
        "failed": sum(file.failed for file in files),
        "files": [
            {
                "path": str(file.path),
                "tests": msgspec.to_builtins(file.tests),
                "rules": [_rule(file.coverage, name) for name in file.coverage.rules],
            }
            for file in files
        ],
    }


def _rule(coverage: Coverage, name: str) -> dict[str, Any]:
    clauses = [
        {"key": one.key, "text": one.condition.text, "true": one.true, "false": one.false}
        for one in coverage.clauses[name]
    ]
    return {"name": name, "tested": name in coverage.tested, "fired": name in coverage.fired, "clauses": clauses}


def junit(files: Sequence[TestedFile]) -> bytes:
    """Return the report as the XML that build servers read."""
    root = Xml.Element("testsuites", name="virtpilot rules test")
    for file in files:
        suite = Xml.SubElement(
            root,
            "testsuite",
            name=_clean(str(file.path)),
            tests=str(len(file.tests)),
            failures=str(file.failed),
            errors="0",
            skipped="0",
            time=f"{sum(test.seconds for test in file.tests):.3f}",
        )
        for test in file.tests:
            case = Xml.SubElement(
                suite,
                "testcase",
                classname=_clean(str(file.path)),
                name=_clean(test.name),
                file=_clean(str(file.path)),
                line=str(test.line),
                time=f"{test.seconds:.3f}",
            )
            for failure in test.failures:
                told = Xml.SubElement(case, "failure", message=_clean(f"{failure.expected}: {failure.happened}"))
                told.text = _clean("\n".join([f"{failure.file}:{failure.line}:{failure.column}", *failure.trace]))
    Xml.indent(root)
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True))


def _clean(text: str) -> str:
    """Leave out what XML cannot hold."""
    return _NO_XML.sub("?", text)
