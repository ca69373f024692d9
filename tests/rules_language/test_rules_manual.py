"""What the manual tells authors of rules holds: its examples are right, its table has every key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from virtpilot.model import Kind
from virtpilot.rules.language import check
from virtpilot.rules.language.devices import DECLARED, Device
from virtpilot.rules.language.document import RULE_KEYS
from virtpilot.rules.language.expression import condition

ROOT: Final = Path(__file__).resolve().parents[2]
MANUAL: Final = (ROOT / "docs/rules.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/rules.md", "docs/stores.md"])
def test_every_rule_shown_is_right(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(virtpilot: 1\n.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        assert check([file]) == []


def test_the_table_has_every_key_and_no_other() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", MANUAL, re.MULTILINE)) == set(RULE_KEYS)


def test_the_condition_shown_compiles(tmp_path: Path) -> None:
    (shown,) = re.findall(r"## Conditions\n\n`([^`]+)`", MANUAL)
    file = tmp_path / "rule.yaml"
    file.write_text(f"virtpilot: 1\nrules:\n  - {{name: shown, on: vm, when: '{shown}'}}\n")
    assert check([file]) == []


def test_the_conditions_on_devices_compile() -> None:
    _head, _, section = MANUAL.partition("### Devices")
    shown = re.findall(r"`([^`]+)`", section.splitlines()[2])
    assert len(shown) == 3
    for text in shown:
        condition(text, Kind.VM)


def test_the_manual_names_every_device() -> None:
    _head, _, section = MANUAL.partition("### Devices")
    table = section.partition("\n* ")[0]
    assert set(re.findall(r"`((?:vm|host)_\w+)`", table)) == {device.value for device in Device}
    assert {one.word for one in DECLARED.values()} <= set(re.findall(r"`(\w+)`", table))
