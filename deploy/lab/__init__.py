"""The lab: two real libvirt hosts with real QEMU guests, a broker and a store on one machine (docs/lab.md)."""

from deploy.lab.errors import LabBusy, LabError, LabMissing
from deploy.lab.guest import Guest, GuestPlan
from deploy.lab.host import Host
from deploy.lab.lab import GUESTS, Lab, attach, bring_up, ended_by_signals, missing
from deploy.lab.state import leftovers, tear_down

__all__ = [
    "GUESTS",
    "Guest",
    "GuestPlan",
    "Host",
    "Lab",
    "LabBusy",
    "LabError",
    "LabMissing",
    "attach",
    "bring_up",
    "ended_by_signals",
    "leftovers",
    "missing",
    "tear_down",
]
