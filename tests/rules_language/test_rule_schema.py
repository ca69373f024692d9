"""The JSON Schema of rule files agrees with the loader: what is right is valid, what is built wrongly is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from virtpilot.pipeline.rulebook import LIBRARY
from virtpilot.rules.language import check
from virtpilot.rules.language.document import RULE_KEYS
from virtpilot.rules.language.schema import rule_schema
from virtpilot.rules.language.starter import starter

HERE = Path(__file__).parent
GOOD = [*sorted((HERE / "good").glob("*.yaml")), *(p for p in sorted(LIBRARY.glob("*.yaml")) if ".test." not in p.name)]
BAD = sorted((HERE / "bad").glob("*.yaml"))
# What of the loader's messages speaks of structure, words and shapes, which a schema knows too.
STRUCTURE = re.compile(
    r"is not known in|`\w+` is missing|`\w+` is a list|is a mapping of keys|is not one of|a single value is needed"
    r"|is not a duration|a priority is|is not a name|a list of names|a remedy has one of|has one knob"
    r"|is written `<condition>|`lease` goes with"
)
VALIDATOR = Draft202012Validator(rule_schema())


def data(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8-sig"))


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(rule_schema())
    assert set(rule_schema()["$defs"]["rule"]["properties"]) == set(RULE_KEYS)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_what_the_loader_takes_is_valid(path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(data(path))] == []


def structural() -> list[Path]:
    # A merge key is YAML's own and gone before a schema looks.
    looked_at = [path for path in BAD if path.stem != "merge-key"]
    return [path for path in looked_at if any(STRUCTURE.search(problem.message) for problem in check([path]))]


def test_what_is_built_wrongly_is_not_valid() -> None:
    looked_at, valid = 0, []
    for path in structural():
        try:
            document = data(path)
        except (YAMLError, ValueError):
            continue  # no document that a schema could look at
        looked_at += 1
        valid += [path.stem] if not list(VALIDATOR.iter_errors(document)) else []
    assert valid == []
    assert looked_at > 30


def test_a_rule_to_start_from_is_valid(tmp_path: Path) -> None:
    for name, text in starter("mine").items():
        (tmp_path / name).write_text(text)
    assert list(VALIDATOR.iter_errors(data(tmp_path / "mine.yaml"))) == []


def test_the_command_prints_it() -> None:
    command = [sys.executable, "-m", "virtpilot.pipeline", "rules", "schema"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=600)
    assert json.loads(done.stdout) == rule_schema()
