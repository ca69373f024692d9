"""What knobs hold the guests down to: one array a resource, infinite where nothing is limited."""

from __future__ import annotations

import numpy as np


class Caps:
    """Cores, and bytes per second; the weight shares a busy disk."""

    def __init__(self, guests: int) -> None:
        self.cpu = np.full(guests, np.inf)
        self.read = np.full(guests, np.inf)
        self.write = np.full(guests, np.inf)
        self.disk = np.full(guests, np.inf)
        self.receive = np.full(guests, np.inf)
        self.transmit = np.full(guests, np.inf)
        self.disk_weight = np.full(guests, 100.0)
