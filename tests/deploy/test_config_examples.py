"""The config files in deploy/: taken by the check, complete, in step with the declared options, free of secrets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from typer.testing import CliRunner

from deploy.config.__main__ import SET, example
from tests.deploy.broker_site import DEPLOY
from virtpilot.pipeline import settings
from virtpilot.pipeline.commands import app
from virtpilot.pipeline.config import CONFIGS, PROCESSES

EXAMPLES: Final = sorted((DEPLOY / "config").glob("*.toml"))
COMPOSE: Final = sorted((DEPLOY / "config/compose").glob("*.toml"))
COMMENTED_OPTION: Final = re.compile(r"^#(\[|[a-z][a-z0-9_]* = )", re.MULTILINE)
SECRET: Final = re.compile(r"(?i)\b(password|token|secret|passphrase)\s*=|BEGIN [A-Z ]*PRIVATE KEY")


def declared(type_: type[msgspec.Struct]) -> set[str]:
    """Return every option of a process, dotted, as its sample file names them."""
    return dotted(tomllib.loads(COMMENTED_OPTION.sub(r"\1", settings.sample(type_))))


def dotted(table: dict[str, Any], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name, value in table.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        is_section = isinstance(inner, dict) and inner
        names |= dotted(inner, f"{prefix}{name}.") if is_section else {f"{prefix}{name}"}
    return names


def test_each_process_has_its_examples() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(CONFIGS)
    assert {path.stem for path in COMPOSE} == set(PROCESSES) - {"agent"}


@pytest.mark.parametrize("path", [*EXAMPLES, *COMPOSE], ids=lambda path: str(path.relative_to(DEPLOY)))
def test_the_check_takes_it_as_it_is(path: Path) -> None:
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 0, result.output
    assert settings.check(path, CONFIGS[path.stem]) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_option_is_in_it_and_every_commented_line_is_taken_too(path: Path) -> None:
    """With all comment marks before options removed, it still loads, and nothing declared is missing."""
    text = COMMENTED_OPTION.sub(r"\1", path.read_text())
    settings.loads(text, str(path), CONFIGS[path.stem])
    assert dotted(tomllib.loads(text)) == declared(CONFIGS[path.stem])


@pytest.mark.parametrize("process", sorted(CONFIGS))
def test_it_is_what_the_declarations_make(process: str) -> None:
    path = DEPLOY / f"config/{process}.toml"
    assert path.read_text() == example(process), "options have changed: python -m deploy.config"


def test_an_example_cannot_set_an_option_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SET["writer"], "bus.former_option", "1")
    with pytest.raises(KeyError, match="former_option"):
        example("writer")


@pytest.mark.parametrize("path", [*EXAMPLES, *COMPOSE], ids=lambda path: str(path.relative_to(DEPLOY)))
def test_it_holds_no_secret_but_names_files(path: Path) -> None:
    text = path.read_text()
    assert not SECRET.search(text)
    assert re.search(r"^password_file = ", text, re.MULTILINE)


@pytest.mark.parametrize("process", sorted(CONFIGS))
def test_the_sample_shows_what_is_required_uncommented(process: str) -> None:
    """A sample is a file to be filled in: what must be given stands there as an option, all else as a comment."""
    required = {field.encode_name for field in msgspec.structs.fields(CONFIGS[process]) if field.required}
    given = {name for name, value in tomllib.loads(settings.sample(CONFIGS[process])).items() if value != {}}
    assert required == given == {"cluster"}


@pytest.mark.parametrize("process", sorted(CONFIGS))
def test_without_what_is_required_the_check_says_so(process: str, tmp_path: Path) -> None:
    path = tmp_path / f"{process}.toml"
    path.write_text((DEPLOY / f"config/{process}.toml").read_text().replace("\ncluster = ", "\n#cluster = "))
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert result.exit_code != 0
    assert "cluster" in str(result.exception)
