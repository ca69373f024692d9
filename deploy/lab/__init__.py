"""The lab: real libvirt hosts with real QEMU guests, a broker and a store on one machine (docs/lab.md)."""

from deploy.lab.errors import LabBusy, LabError, LabMissing
from deploy.lab.guest import Guest, GuestPlan
from deploy.lab.host import Host
from deploy.lab.lab import Lab, attach, bring_up, ended_by_signals, missing
from deploy.lab.plan import PLANS, THREE, TWO
from deploy.lab.state import leftovers, tear_down

__all__ = [
    "PLANS",
    "THREE",
    "TWO",
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
