"""The host's disks: those that come and go."""

from __future__ import annotations

from tests.collectors.trees import TextTree
from virtpilot.clock import seconds
from virtpilot.collectors.disk import Disks
from virtpilot.collectors.rates import Rates
from virtpilot.collectors.source import Look


def stats(*names: str) -> str:
    return "".join([f"8 0 {name} 1 2 3 4 5 6 7 8 9 10 11\n" for name in names])


def test_what_went_is_forgotten_and_looked_for_again_when_it_comes_back() -> None:
    """One that was there before its folder was, or that has become a whole disk: it is measured from then on."""
    tree, rates, disks = TextTree({"sys/block/sda/size": "1"}), Rates(), Disks()

    def told(*names: str) -> list[str]:
        tree.files["proc/diskstats"] = stats(*names)
        return [device.name for device in disks(Look(tree, rates, frozenset({0}), seconds(len(tree.reads)))).devices]

    assert told("sda", "vdb") == ["sda"]
    tree.files["sys/block/vdb/size"] = "1"
    assert told("sda", "vdb") == ["sda"], "looked at once while it is there"
    assert told("sda") == ["sda"]
    assert told("sda", "vdb") == ["sda", "vdb"]


def test_disks_that_come_and_go_leave_nothing_behind() -> None:
    disks, rates = Disks(), Rates()
    for number in range(500):
        name = f"dm-{number}"
        tree = TextTree({f"sys/block/{name}/size": "1", "proc/diskstats": stats(name)})
        assert len(disks(Look(tree, rates, frozenset({0}), seconds(10 * number))).devices) == 1
    assert len(disks._whole) == 1
