"""The bus's topics, in one place (MQTT 5; all QoS 1)."""

from __future__ import annotations

import re
from typing import Final

BOOT_PROPERTY: Final = "virtpilot-boot"
SEQUENCE_PROPERTY: Final = "virtpilot-seq"
MAX_METRICS_BYTES: Final = 256 * 1024

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_name(name: str) -> bool:
    """Return whether `name` can be one level of our topics."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return `name` when it can be one level of a topic; raises ValueError."""
    if not is_name(name):
        raise ValueError(f"{name!r} cannot be part of a topic: letters, digits, '.', '_' and '-' only, 128 at most")
    return name


class Topics:
    """The topics of one cluster; `"+"` for a host or rule gives the subscription to all of them."""

    def __init__(self, cluster: str) -> None:
        self.cluster = check_name(cluster)
        self._root = f"virtpilot/{cluster}"

    def _of(self, family: str, name: str) -> str:
        return f"{self._root}/{family}/{name if name == '+' else check_name(name)}"

    def metrics(self, host: str) -> str:
        """Line protocol, one message a host and tick."""
        return self._of("metrics", host)

    def events(self, host: str) -> str:
        """JSON `Event`: lifecycle, progress of jobs, knobs changed by someone else."""
        return self._of("events", host)

    def status(self, host: str) -> str:
        """JSON `HostStatus`, retained, and the agent's last will."""
        return self._of("status", host)

    def signals(self, rule: str) -> str:
        """JSON `Signal`, one per transition."""
        return self._of("signals", rule)

    @property
    def decisions(self) -> str:
        """JSON `Decision`, accepted and refused."""
        return f"{self._root}/decisions"

    @property
    def controller(self) -> str:
        """JSON `Presence`, every ten seconds, retained, and the controller's last will."""
        return f"{self._root}/controller"

    def commands(self, host: str) -> str:
        """JSON, a signed `Command`, with message expiry."""
        return self._of("commands", host)

    def outcomes(self, host: str) -> str:
        """JSON `Outcome`."""
        return self._of("outcomes", host)

    def stored(self, host: str) -> str:
        """JSON `Stored`."""
        return self._of("stored", host)

    def sampling(self, host: str) -> str:
        """JSON `Sampling`, repeated while it holds."""
        return self._of("sampling", host)

    @property
    def switch(self) -> str:
        """JSON `Said` (pipeline/switch.py), retained: a stop of all, or its signed end."""
        return f"{self._root}/switch"

    @property
    def approvals(self) -> str:
        """JSON `Approvals`, retained: what waits for a person's approval."""
        return f"{self._root}/approvals"

    @property
    def verdicts(self) -> str:
        """JSON, a signed `Verdict`, with message expiry."""
        return f"{self._root}/verdicts"

    def maintenance(self, host: str) -> str:
        """JSON, a signed `Maintenance`, retained: a host that is to be emptied, or takes guests again."""
        return self._of("maintenance", host)

    def emptying(self, host: str) -> str:
        """JSON `Emptying`, retained: how far a host's maintenance is."""
        return self._of("emptying", host)

    def host_of(self, topic: str) -> str:
        """Return the last level of a topic: the host or rule that it is about."""
        return topic.rpartition("/")[2]

    def family_of(self, topic: str) -> str:
        """Return which kind of topic it is: metrics, status, commands …, or "" where it is none of ours."""
        parts = topic.split("/")
        return parts[2] if len(parts) >= 3 and parts[:2] == ["virtpilot", self.cluster] else ""
