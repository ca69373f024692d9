"""Which core each host of a lab has: labs that are up at once share the cores evenly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle


def placed(guests: Mapping[str, int], cores: Sequence[int], taken: Mapping[int, int]) -> dict[str, int]:
    """Return a core for each host, given how many guests it begins with and how many begin on each core already.

    In the order of the hosts' names each takes what is taken least of the cores that its lab has not: of a lab alone
    that is the first core, the second, and so on. Where there are more hosts than cores the first ones share theirs.
    """
    load, free, order = Counter(taken), sorted(cores), list[int]()
    for host in sorted(guests)[: len(free)]:
        order.append(min(free, key=lambda core: (load[core], core)))
        free.remove(order[-1])
        load[order[-1]] += guests[host]
    return dict(zip(sorted(guests), cycle(order), strict=False))
