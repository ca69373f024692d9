"""The manual's generated pages are in step with the declarations they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtpilot.fields import FIELDS
from virtpilot.pipeline.config import CONFIGS
from virtpilot.pipeline.reference import PAGES, configuration, fields

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_in_step(name: str) -> None:
    """`make docs` writes them."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_process_and_every_field_is_told() -> None:
    page = configuration()
    assert all(f"## virtpilot {process}" in page for process in CONFIGS)
    told = fields()
    assert all(f"| `{name}` |" in told for _, name in FIELDS)
