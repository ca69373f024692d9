"""The lab's errors. They stay apart from virtpilot's own, so that a bare Python can bring the lab up.

LabError
├── LabMissing     this machine lacks something: a package, root, a second CPU
├── LabBusy        a lab of this name is there already
└── GuestAway      no host runs the guest: not started, ended, or just changing over
"""

from __future__ import annotations


class LabError(Exception):
    """The lab could not do what was asked; the text is for the person at the terminal."""


class LabMissing(LabError):
    """What the lab needs is not on this machine; the text names it."""


class LabBusy(LabError):
    """A lab of this name is up already."""


class GuestAway(LabError):
    """No host runs the guest just now."""
