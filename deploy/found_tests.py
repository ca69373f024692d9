"""A plugin of pytest: writes down which tests were found, each with its file and its marks, for `deploy.testing`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import pytest

FOUND_TESTS: Final = "VIRTPILOT_FOUND_TESTS"
"""The variable that names the file; it takes a JSON list of [file, [mark, …]]."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write down what is left once all hooks have looked at the tests."""
    found = [
        (item.nodeid.partition("::")[0], sorted({mark.name for mark in item.iter_markers()})) for item in session.items
    ]
    Path(os.environ[FOUND_TESTS]).write_text(json.dumps(found), encoding="utf-8")
