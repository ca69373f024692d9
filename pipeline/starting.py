"""How a process comes up, and ends, at little cost: for most of what libraries do then it has no use."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Final

from virtpilot.pipeline.late import import_late

LATE: Final = (
    "asyncio", "bz2", "calendar", "difflib", "gzip", "html", "ipaddress", "lzma", "mimetypes", "shutil",
)  # fmt: skip
"""What libraries take in for work that is seldom or never done: coroutines, pages of errors, downloads."""
# What these do as well without: structlog colours no tracebacks then, msgspec takes the standard library's.
_SPARED: Final = {"structlog": ("attr", "better_exceptions", "rich"), "msgspec": ("typing_extensions",)}


@contextmanager
def soon() -> Iterator[None]:
    """Come up soon until `over`, and end soon.

    Until then nearly all that is made stays, so that nobody looks for cyclic garbage; nor does anybody at the end,
    where the interpreter would look at everything three times over just before the system takes it all.
    """
    import_late(LATE)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def over() -> None:
    """Look for garbage from now on, but not at what is there: that stays."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def import_spared(name: str) -> None:
    """Import a library without what it takes in and does as well without; others have that as ever."""
    absent = [other for other in _SPARED[name] if name not in sys.modules and other not in sys.modules]
    for other in absent:
        sys.modules[other] = None  # type: ignore[assignment] # the import system's sign for "not there"
    import_module(name)
    for other in absent:
        del sys.modules[other]
