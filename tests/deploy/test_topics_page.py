"""The manual's table of topics says of the agents and the controller what the broker's access list lets them do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_ROW: Final = re.compile(r"^\| `virtpilot/<cluster>/(\w+)[^|]*\|[^|]*\| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


def listed(user: str, way: str) -> set[str]:
    """Return the families that the access list lets a role write or read; agents are those of the patterns."""
    text = (ROOT / "deploy/mosquitto/virtpilot.acl").read_text(encoding="utf-8")
    part = text.partition("user controller")[0] if user == "agent" else text.partition(f"user {user}\n")[2]
    part = part.partition("\nuser ")[0]
    everybody = set(re.findall(rf"^pattern {way} virtpilot/\+/(\w+)$", text, re.MULTILINE))
    named = set(re.findall(rf"^(?:topic|pattern) (?:read)?{way} virtpilot/\+/(\w+)", part, re.MULTILINE))
    return everybody | named | set(re.findall(r"^topic readwrite virtpilot/\+/(\w+)", part, re.MULTILINE))


def test_the_table_is_the_access_list() -> None:
    rows = _ROW.findall((ROOT / "docs/topics.md").read_text(encoding="utf-8"))
    assert len(rows) == 15
    for role, name in (
        ("agent", "the host's agent"),
        ("controller", "controller"),
        ("writer", "writers"),
        ("operator", "operators"),
    ):
        assert {family for family, writes, _reads in rows if name in writes} == listed(role, "write"), role
        assert {family for family, _writes, reads in rows if name in _readers(reads)} == listed(role, "read"), role
    shown = {family for family, _writes, reads in rows if "dashboards" in _readers(reads)}
    assert shown == listed("dashboards", "read")


def _readers(text: str) -> str:
    return "the host's agent, controller, writers, dashboards, operators" if text == "everybody" else text
