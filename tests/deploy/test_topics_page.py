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
    return set(re.findall(rf"^(?:topic|pattern) (?:read)?{way} virtpilot/\+/(\w+)", part, re.MULTILINE)) | (
        set(re.findall(r"^topic readwrite virtpilot/\+/(\w+)", part, re.MULTILINE))
    )


def test_the_table_is_the_access_list() -> None:
    rows = _ROW.findall((ROOT / "docs/topics.md").read_text(encoding="utf-8"))
    assert len(rows) == 10
    for role, name in (("agent", "host's agent"), ("controller", "controller"), ("writer", "writers")):
        assert {family for family, writes, _reads in rows if name in writes} == listed(role, "write"), role
        assert {family for family, _writes, reads in rows if name in reads} == listed(role, "read"), role
    assert {family for family, _writes, reads in rows if "dashboards" in reads} == listed("dashboards", "read")
