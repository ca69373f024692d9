"""Modules that are read when something of them is asked for, whoever asks: memory for what may never be needed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, Final

_UNREAD: Final = "__unread__"
_READING: Final = threading.RLock()
NOTHING: Final[Mapping[str, Any]] = {}


class _Late(ModuleType):
    # importlib's LazyLoader will not do: there the `import` statement itself asks for something, up to Python 3.11.

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # `from` asks whether this is a package; then it would be there
            raise AttributeError(name)
        with _READING:
            if self.__dict__.pop(_UNREAD, False):
                self.__loader__.exec_module(self)  # type: ignore[union-attr] # `import_late` looks whether there is one
                ModuleType.__setattr__(self, "__class__", ModuleType)
        return ModuleType.__getattribute__(self, name)


def import_late(names: Iterable[str], foretold: Mapping[str, Any] = NOTHING) -> None:
    """Import modules by name without reading them yet; those that are there already stay, as do unknown ones away.

    What of them is `foretold` can be had without reading them.
    """
    for name in names:
        spec = None if name in sys.modules else find_spec(name)
        if spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            module.__dict__.update(foretold, **{_UNREAD: True})
            module.__class__ = _Late
            sys.modules[name] = module
            folder, _, last = name.rpartition(".")
            if folder:
                setattr(sys.modules[folder], last, module)
