"""Modules that are read late are whole to whoever asks for something of them."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import sys
from virtpilot.pipeline.late import import_late
assert "asyncio" not in sys.modules
import_late(["asyncio", "colorsys", "no_such_module_anywhere"])
import asyncio, colorsys
print(type(colorsys).__name__, "asyncio.events" in sys.modules, "no_such_module_anywhere" in sys.modules)
from colorsys import rgb_to_hsv
assert rgb_to_hsv(0, 0, 0) == (0.0, 0, 0)
async def answer():
    await asyncio.sleep(0)
    return 42
print(type(colorsys).__name__, asyncio.run(answer()), hasattr(asyncio, "nothing_of_it"))
"""


def test_a_module_is_read_when_something_of_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.splitlines() == ["_Late False False", "module 42 False"]


FORETOLD = """
import sys
from virtpilot.pipeline.late import import_late
import_late(["colorsys"], {"rgb_to_hsv": "foretold"})
import_late(["xml.dom.minicompat"], {"NodeList": "foretold"})
from colorsys import rgb_to_hsv
import xml.dom.minicompat
print(rgb_to_hsv, type(sys.modules["colorsys"]).__name__, xml.dom.minicompat.NodeList)
from colorsys import hsv_to_rgb, rgb_to_hsv
print(rgb_to_hsv(0, 0, 0), type(sys.modules["colorsys"]).__name__, xml.dom.minicompat.EmptyNodeList.__name__)
"""


def test_what_is_foretold_of_a_module_is_had_without_reading_it() -> None:
    done = subprocess.run([sys.executable, "-c", FORETOLD], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.splitlines() == ["foretold _Late foretold", "(0.0, 0.0, 0) module EmptyNodeList"]
