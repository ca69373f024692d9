"""Scenario files: good ones are read, of bad ones every mistake is told with its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.errors import InputError
from virtpilot.simulator.demand import Sine, Steps, Trace
from virtpilot.simulator.fleet import Fleet
from virtpilot.simulator.scenario import (
    GuestSpec,
    HostSpec,
    LinkDown,
    Scenario,
    check,
    demo_path,
    guest_uuid,
    load,
    parse,
)

GOOD = """\
name = "small"
seed = 3

[migration]
auto_converge = false

[[hosts]]
name = "a"
cpus = 4
memory_mib = 8192

[[hosts]]
name = "b"   # the other one
cpus = 4
memory_mib = 8192

[[guests]]
name = "web"
host = "a"
vcpus = 2
memory_mib = 1024
tags = { tier = "web" }
cpu_cores = { shape = "steps", points = [[0, 1], [10, 2.5]] }
disk_read_mib_s = { shape = "trace", values = [1, 2], interval_s = 60 }
net_receive_mib_s = { shape = "sine", mean = 1, amplitude = 1, period_s = 60 }

[[events]]
kind = "link_down"
at_s = 5
host = "b"
"""


def test_a_good_file_is_read_whole() -> None:
    scenario = parse(GOOD)
    assert (scenario.name, scenario.seed, scenario.migration.auto_converge) == ("small", 3, False)
    assert [host.name for host in scenario.hosts] == ["a", "b"]
    guest = scenario.guests[0]
    assert guest.cpu_cores == Steps(points=[(0, 1), (10, 2.5)])
    assert guest.disk_read_mib_s == Trace(values=[1, 2], interval_s=60)
    assert guest.net_receive_mib_s == Sine(mean=1, amplitude=1, period_s=60)
    assert guest.uuid == guest_uuid("web") != guest_uuid("web-2")
    assert scenario.events == [LinkDown(at_s=5, host="b")]


BAD = [
    ("cpus = 4", "cpus = 0", ["s:9:1: hosts[0].cpus: expected `int` >= 1"]),
    ("cpus = 4", "cpus = true", ["s:9:1: hosts[0].cpus: expected `int`, got `bool`"]),
    ("cpus = 4", "cpu = 4", ["s:7:1: hosts[0]: cpus is missing", "s:9:1: hosts[0].cpu: unknown key"]),
    ("seed = 3", "sed = 3", ["s:2:1: sed: unknown key"]),
    ("auto_converge = false", "auto = 1", ["s:5:1: migration.auto: unknown key"]),
    ('host = "a"', 'host = "c"', ["s:19:1: guests[0].host: there is no host 'c'"]),
    ('host = "b"', 'host = "c"', ["s:30:1: events[0].host: there is no host 'c'"]),
    (
        '"b"   #',
        '"a"   #',
        ["s:13:1: hosts[1].name: 'a' is there already", "s:30:1: events[0].host: there is no host 'b'"],
    ),
    ('name = "web"', 'name = "we b"', ["s:18:1: guests[0].name: 'we b' cannot be part of a topic"]),
    ("[10, 2.5]", "[0, 2.5]", ["s:23:1: guests[0].cpu_cores: the points' times do not rise"]),
    ("[10, 2.5]", "[10, -1]", ["s:23:1: guests[0].cpu_cores: less than 0"]),
    ("[10, 2.5]", "[10, nan]", ["s:23:1: guests[0].cpu_cores: not a finite number"]),
    ("[10, 2.5]", "[10, 1e300]", ["s:23:1: guests[0].cpu_cores: more than 1e+09"]),
    ("[10, 2.5]]", "[10, 2]], repeat_s = 5", ["s:23:1: guests[0].cpu_cores: the last point, 10 s, lies beyond"]),
    ("values = [1, 2]", "values = []", ["s:24:1: guests[0].disk_read_mib_s.values: expected `array` of length >= 1"]),
    ('shape = "sine"', 'shape = "saw"', ["s:25:1: guests[0].net_receive_mib_s.shape: invalid value 'saw'"]),
    ("amplitude = 1", "amplitude = inf", ["s:25:1: guests[0].net_receive_mib_s: not a finite number"]),
    ('kind = "link_down"', 'kind = "quake"', ["s:28:1: events[0].kind: invalid value 'quake'"]),
    ("at_s = 5", "at_s = inf", ["s:29:1: events[0].at_s: expected `float` <= "]),
    ("at_s = 5", "at_s = nan", ["s:29:1: events[0].at_s: "]),
    ("seed = 3", "seed = = 3", ["s:2:8: Invalid value"]),
    ("memory_mib = 8192", "memory_mib = 1000", ["s:7:1: hosts[0].overhead_mib: takes all of the 1000 MiB"]),
    ("cpus = 4", "cpus = 4\noverhead_cores = 4", ["s:10:1: hosts[0].overhead_cores: takes all of the 4 CPUs"]),
]


@pytest.mark.parametrize(("found", "put", "told"), BAD, ids=[put for _, put, _ in BAD])
def test_a_bad_file_is_refused_with_the_place(found: str, put: str, told: list[str]) -> None:
    assert found in GOOD
    with pytest.raises(InputError) as caught:
        parse(GOOD.replace(found, put, 1), "s")
    problems = [str(problem) for problem in caught.value.problems]
    assert len(problems) == len(told)
    assert all(problem.startswith(start) for problem, start in zip(problems, told, strict=True)), problems


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace("cpus = 4", "cpus = 0").replace("vcpus = 2", 'vcpus = "2"').replace("seed", "sed"))
    assert [(problem.line, problem.file) for problem in check(path)] == [(n, str(path)) for n in (2, 9, 14, 20)]


def test_a_file_that_is_not_there_or_not_text_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in check(tmp_path / "none.toml")[0].message
    assert "cannot be read" in check(tmp_path / "binary.toml")[0].message


def test_a_scenario_made_in_code_is_checked_as_well() -> None:
    hosts = [HostSpec(name="a", cpus=1, memory_mib=2048)]
    with pytest.raises(InputError, match="there is no host 'b'"):
        Fleet(Scenario(name="s", hosts=hosts, guests=[GuestSpec(name="g", host="b", vcpus=1, memory_mib=64)]))


def test_the_shipped_scenarios_are_good() -> None:
    shipped = sorted(demo_path().parent.glob("*.toml"))
    assert demo_path() in shipped
    assert [problem for path in shipped for problem in check(path)] == []
    assert load(demo_path()).name == "demo"


lines = st.lists(
    st.sampled_from(GOOD.splitlines())
    | st.sampled_from(
        ["[[hosts]]", "hosts = 3", "guests = {}", "[migration", "events = [[]]", "hosts = [1]", "[guests]"]
    )
    | st.text(max_size=12),
    max_size=30,
)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(lines)
def test_whatever_the_text_it_is_a_scenario_or_an_input_error(found: list[str]) -> None:
    try:
        told: Sequence[object] = parse("\n".join(found)).hosts
    except InputError as error:
        told = error.problems
    assert told
