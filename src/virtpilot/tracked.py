"""A mapping that remembers which of its keys have changed, so that saving it costs as much as has changed."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import Generic, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class Tracked(MutableMapping[K, V], Generic[K, V]):
    """Keeps the order of insertion, as a dict does."""

    def __init__(self) -> None:
        self._items: dict[K, V] = {}
        self._changed: dict[K, None] = {}

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __setitem__(self, key: K, value: V) -> None:
        self._items[key] = value
        self._changed[key] = None

    def __delitem__(self, key: K) -> None:
        del self._items[key]
        self._changed[key] = None

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    # What a mapping would do by one look at each key; some hold thousands and are looked through each second.

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | T) -> V | T: ...
    def get(self, key: K, /, default: V | T | None = None) -> V | T | None:
        """Return a key's value, or the default."""
        return self._items.get(key, default)

    def items(self) -> ItemsView[K, V]:
        """Return all keys with their values."""
        return self._items.items()

    def values(self) -> ValuesView[V]:
        """Return all values."""
        return self._items.values()

    def changes(self) -> dict[K, V | None]:
        """Return what is new and, as None, what is gone since the last call, in order of the first change."""
        if not self._changed:
            return {}
        changed, self._changed = self._changed, {}
        return {key: self._items.get(key) for key in changed}
