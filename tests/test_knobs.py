"""The table of knobs: names, bounds, sets of CPUs; every name is one of its family on both hypervisors."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.knobs import DEVICE_KNOBS, KNOBS, MAX_NUMBER_IN_SET, Family, find, list_of, names, numbers_in
from virtpilot.libvirt_limits import read_configured

DEVICES = {"disk": ["vda", "sdb", "hdc12"], "nic": ["nic0", "nic12"], "memory": ["virtiomem0"]}
ALL = [*KNOBS, *(f"{device}.{name}" for name, one in DEVICE_KNOBS.items() for device in DEVICES[one.device])]


@pytest.mark.parametrize("name", ALL)
def test_every_knob_is_found_by_its_name_and_has_sound_bounds(name: str) -> None:
    knob = find(name)
    assert knob is not None
    assert knob.name == name
    assert knob.low <= knob.high
    assert knob.allows(-(-knob.low // knob.step) * knob.step)
    assert not knob.allows(knob.high + knob.step)
    assert knob.allows(0) is (knob.limit or knob.low == 0)
    assert knob.about
    assert knob.source
    assert name.rpartition(".")[2] in names()


@pytest.mark.parametrize(
    "name", ["", ".", "vda", "vda.", "vda.inbound_average", "nic0.total_iops_sec", "VDA.total_iops_sec", "a b.plugged",
             "nic.inbound_average", "nic100.inbound_average", "virtiomem0.total_iops_sec", "vcpu_quota.x",
             "../x.plugged", "nic0", "nic0."],
)  # fmt: skip
def test_what_is_no_knob_is_not_found(name: str) -> None:
    assert find(name) is None


@given(st.sampled_from(ALL), st.floats(allow_nan=False, allow_infinity=False))
@settings(derandomize=True, max_examples=examples(300))
def test_what_is_fitted_is_allowed_and_never_lifts_a_limit(name: str, value: float) -> None:
    knob = find(name)
    assert knob is not None
    fitted = knob.fit(value)
    assert knob.allows(fitted)
    assert fitted >= knob.low
    if knob.low + knob.step <= value <= knob.high - knob.step:
        assert abs(fitted - value) <= knob.step


@given(st.integers(1, 2 ** (MAX_NUMBER_IN_SET + 1) - 1))
@settings(derandomize=True, max_examples=examples(300))
def test_a_list_names_its_set(numbers: int) -> None:
    assert numbers_in(list_of(numbers)) == numbers
    assert int(float(numbers)) == numbers  # as every measurement carries it


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "52", "0-9999", "1 2", "٣", "1" * 5000])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"no list|numbers rise"):
        numbers_in(text)


def test_no_limit_is_higher_than_any() -> None:
    quota, shares = KNOBS["vcpu_quota"], KNOBS["cpu_shares"]
    assert quota.height(0) > quota.height(quota.high) > quota.height(1000)
    assert shares.height(0) < shares.height(2)


def test_pins_and_plugged_memory_are_read_from_the_description() -> None:
    text = """<domain><vcpu current='1'>2</vcpu><cputune><emulatorpin cpuset='3'/>
    <vcpupin vcpu='0' cpuset='0-1'/><vcpupin vcpu='1' cpuset='0-1'/></cputune>
    <devices><memory model='virtio-mem'><target><current unit='KiB'>2048</current></target>
    <alias name='virtiomem0'/></memory><memory model='dimm'/></devices></domain>"""
    told = read_configured(text, {}).knobs
    assert told == {"vcpupin": 0b11, "emulatorpin": 0b1000, "virtiomem0.plugged": 2048 * 1024}
    single = text.replace("<vcpupin vcpu='1' cpuset='0-1'/>", "<vcpupin vcpu='1' cpuset='2'/>")
    assert "vcpupin" not in read_configured(single, {}).knobs
    assert "emulatorpin" not in read_configured(text.replace("'3'", "'3-x'"), {}).knobs


def test_every_family_has_a_knob() -> None:
    assert {knob.family for knob in [*KNOBS.values(), *DEVICE_KNOBS.values()]} == set(Family)
