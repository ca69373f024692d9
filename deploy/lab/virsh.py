"""Talking to a host's libvirtd through virsh: no binding needed, and checks do not go through virtpilot's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deploy.lab.command import output
from deploy.lab.errors import LabError


def parse_domstats(text: str) -> dict[str, int | str]:
    """Return the `name=value` lines of `virsh domstats` of one domain; whole numbers as int."""
    found: dict[str, int | str] = {}
    for line in text.splitlines():
        name, separator, value = line.strip().partition("=")
        if separator:
            found[name] = int(value) if value.lstrip("-").isdigit() else value
    return found


class Virsh:
    """One libvirt connection URI; raises LabError with what virsh said."""

    def __init__(self, uri: str, run: Callable[..., str] = output) -> None:
        self.uri = uri
        self._run = run

    def __call__(self, *words: str, timeout_s: float = 30.0) -> str:
        """Run one virsh command and return what it printed."""
        return self._run(["virsh", "--quiet", "--connect", self.uri, *words], timeout_s=timeout_s).strip()

    def running(self) -> list[str]:
        """Return the names of the running guests; one that is just arriving runs still on its source."""
        return self("list", "--state-running", "--name").split()

    def define(self, xml: Path) -> None:
        """Define a guest from its XML file."""
        self("define", str(xml))

    def domstats(self, guest: str) -> dict[str, int | str]:
        """Return the statistics of one guest under libvirt's own names (times in ns, memory in KiB)."""
        return parse_domstats(self("domstats", guest))

    def migrate(self, guest: str, uri: str, timeout_s: float = 120.0) -> None:
        """Live-migrate a guest to the libvirtd at `uri`, its definition too; returns when it runs there.

        Now and then the two libvirtd stop talking before anything is sent, and after half a minute one of them gives
        the other up: the guest stays, and a second attempt succeeds.
        """
        flags = ("--live", "--p2p", "--persistent", "--undefinesource")
        try:
            self("migrate", *flags, guest, uri, timeout_s=timeout_s)
        except LabError as error:
            if "client socket is closed" not in str(error) or guest not in self.running():
                raise
            self("migrate", *flags, guest, uri, timeout_s=timeout_s)
