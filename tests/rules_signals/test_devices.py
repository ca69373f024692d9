"""What rules say of a guest's or host's devices: looked at with its own samples, each with a past of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import FIRING, INACTIVE, START_NS, changes, host, ruleset, vm
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.expression import condition
from virtpilot.rules.signals.devices import MAX_OF_ONE
from virtpilot.rules.signals.evaluator import Evaluator

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(60))
FUNCTIONS = ["sum", "avg", "min", "max", "count", "stddev", "p50", "p90"]
TEXTS = [
    f"{name}(disks.read_latency_seconds{where}) >= 0"
    for name in FUNCTIONS
    for where in ("", " where errors_total > 2 and tags.disk != 'c'".replace("'", '"'))
]
RULES = ruleset(
    "virtpilot: 1\nrules:\n" + "".join(f"  - {{name: r{n}, on: vm, when: '{text}'}}\n" for n, text in enumerate(TEXTS))
)


def at(time_s: float) -> int:
    return START_NS + seconds(time_s)


def device(
    measurement: str, named: tuple[str, str], time_s: float, on: str = "h1", guest: str = "g", **fields: float
) -> Sample:
    tags = {"cluster": "c", "host": on, "vm": guest, "name": f"name-{guest}"} | dict([named])
    return Sample(measurement, tags, dict(fields), at(time_s))


def disk(
    name: str, time_s: float, latency: float | None, errors: float = 0.0, on: str = "h1", guest: str = "g"
) -> Sample:
    fields = {"errors_total": errors} | ({} if latency is None else {"read_latency_seconds": latency})
    return device("vm_disk", ("disk", name), time_s, on, guest, **fields)


def said(evaluator: Evaluator, text: str, subject_id: str = "g", on: Kind = Kind.VM) -> dict[str, float]:
    return evaluator.inputs(condition(text, on), subject_id)


def fed(text: str, *messages: Iterable[Sample], on: str = "vm") -> Evaluator:
    evaluator = Evaluator(ruleset(f"virtpilot: 1\nrules:\n  - {{name: r, on: {on}, when: '{text}'}}\n"))
    for number, message in enumerate(messages):
        evaluator.feed(message, f"h1/{number}")
    return evaluator


_disks = st.dictionaries(
    st.sampled_from("abcde"),
    st.tuples(st.sampled_from([None, 0.0, 0.01, 1 / 3, 2.0]), st.sampled_from([0.0, 3.0])),
)


@REPEATABLE
@given(_disks, _disks, st.booleans())
def test_they_say_of_each_guest_what_a_plain_reading_says(
    first: dict[str, tuple[float | None, float]], second: dict[str, tuple[float | None, float]], mixed: bool
) -> None:
    guests = {"g": first, "g2": second}
    found = [disk(name, 0, *values, guest=guest) for guest, own in guests.items() for name, values in own.items()]
    evaluator = Evaluator(RULES)
    evaluator.feed([*(reversed(found) if mixed else found), vm("g", 0, 0.1), vm("g2", 0, 0.1)], "h1/1")
    for text in TEXTS:
        for guest, own in guests.items():
            chosen = {name: one for name, one in own.items() if "where" not in text or (one[1] > 2 and name != "c")}
            values = [latency for _name, (latency, _errors) in sorted(chosen.items()) if latency is not None]
            told = said(evaluator, text, guest).get(text.removesuffix(" >= 0"))
            assert told == _expected(text.partition("(")[0], values, len(chosen))


def _expected(name: str, values: list[float], meant: int) -> float | None:
    if name == "count":
        return float(len(values))
    if not values:
        return 0.0 if name == "sum" and not meant else None
    total = 0.0
    for value in values:
        total += value
    mean, squares = total / len(values), 0.0
    for value in values:
        squares += (value - mean) * (value - mean)
    rank = {"min": 0, "p50": 50, "p90": 90, "max": 100}.get(name, 0)
    plain = {"sum": total, "avg": mean, "stddev": math.sqrt(squares / len(values))}
    return plain.get(name, sorted(values)[max(math.ceil(len(values) * rank / 100) - 1, 0)])


def test_of_the_greatest_and_of_those_that_are_meant_it_is_told_which_they_are() -> None:
    several = [disk("vda", 0, 0.01), disk("vdb", 0, 0.2), disk("vdc", 0, 0.1), vm("g", 0, 0.1)]
    greatest = "max(disks.read_latency_seconds) > 50ms"
    assert said(fed(greatest, several), greatest) == {
        "max(disks.read_latency_seconds)": 0.2,
        "disks[vdb].read_latency_seconds": 0.2,
    }
    some = "any(disks where read_latency_seconds > 50ms)"
    assert said(fed(some, several), some) == {
        "any(disks where read_latency_seconds > 50ms)": 2.0,
        "disks[vdb].read_latency_seconds": 0.2,
        "disks[vdc].read_latency_seconds": 0.1,
    }


def test_a_device_is_looked_at_with_its_guests_next_sample() -> None:
    rules = ruleset("virtpilot: 1\nrules:\n  - {name: r, on: vm, when: max(disks.read_latency_seconds) > 50ms}\n")
    evaluator = Evaluator(rules)
    assert evaluator.feed([disk("vda", 0, 0.01), vm("g", 0)], "h1/1") == []
    assert evaluator.feed([vm("g", 10), disk("vda", 10, 0.2)], "h1/2") == []
    # What came after the guest's sample counts with its next one.
    assert changes(evaluator.feed([vm("g", 20)], "h1/3")) == [("r", "g", INACTIVE, FIRING, at(20))]


def test_each_file_system_has_a_past_of_its_own() -> None:
    text = "any(filesystems where forecast(used_ratio, 10m, 5m) > 95%)"

    def message(time_s: float) -> list[Sample]:
        full = {"/": 0.5, "/var": 0.6 + 0.0005 * time_s}
        mounts = [
            device("vm_filesystem", ("mountpoint", name), time_s, used_ratio=ratio) for name, ratio in full.items()
        ]
        return [*mounts, vm("g", time_s)]

    evaluator = fed(text, *(message(10.0 * tick) for tick in range(31)))
    told = said(evaluator, text)
    assert told.keys() == {text, "filesystems[/var].forecast(used_ratio, 10m, 5m)"}
    assert told[text] == 1.0
    assert math.isclose(told["filesystems[/var].forecast(used_ratio, 10m, 5m)"], 0.6 + 0.0005 * 900)


def test_an_aggregate_of_devices_has_a_past_too() -> None:
    text = "avg(max(disks.read_latency_seconds), 1m) > 50ms"
    evaluator = fed(text, *([disk("vda", 10 * n, 0.01 * n), vm("g", 10 * n)] for n in range(7)))
    assert math.isclose(said(evaluator, text)["avg(max(disks.read_latency_seconds), 1m)"], 0.035)


def job(time_s: float, *, running: int = 1, elapsed: float = 0.0) -> Sample:
    named = ("operation", "outgoing migration")
    return device("vm_job", named, time_s, running_count=running, elapsed_seconds=elapsed)


def test_a_guest_has_a_job_or_none() -> None:
    text = 'job.running_count == 1 and job.elapsed_seconds > 30m and job.operation == "outgoing migration"'
    evaluator = fed(text, [vm("g", 0)])
    when = condition(text, Kind.VM)
    assert said(evaluator, text) == {"job.running_count": 0.0}
    assert evaluator.holds(when, "g", 0) is False
    evaluator.feed([job(10, elapsed=1900), vm("g", 10)], "h1/1")
    assert said(evaluator, text) == {"job.running_count": 1.0, "job.elapsed_seconds": 1900.0}
    assert evaluator.holds(when, "g", 0) is True
    evaluator.feed([job(20, running=0, elapsed=1910), vm("g", 20)], "h1/2")
    assert evaluator.holds(when, "g", 0) is False
    # Of a job of which nobody has told for long nothing is known but that none runs.
    for time_s in (60, 90, 120):
        evaluator.feed([vm("g", time_s)], "h1/3")
    assert said(evaluator, text) == {"job.running_count": 0.0}


def test_a_device_that_is_not_measured_any_more_has_gone() -> None:
    text = "count(disks) == 2"
    evaluator = fed(text, [disk("vda", 0, 0.1), disk("vdb", 0, 0.1), vm("g", 0)])
    found = []
    for time_s in range(10, 110, 10):
        evaluator.feed([disk("vda", time_s, 0.1), vm("g", time_s)], "h1/2")
        found.append(said(evaluator, text)["count(disks)"])
    assert found == [2.0] * 6 + [1.0] * 4


def test_what_another_host_says_of_a_moved_guests_devices_is_not_taken() -> None:
    text = "max(disks.read_latency_seconds) > 1s"
    evaluator = fed(text, [disk("vda", 0, 0.1), vm("g", 0)], [vm("g", 10, on="h2"), disk("vda", 10, 0.2, on="h2")])
    evaluator.feed([disk("vda", 11, 0.9)], "h1/9")
    assert said(evaluator, text)["max(disks.read_latency_seconds)"] == 0.2


def test_a_host_has_devices_of_its_own() -> None:
    text = "any(disks where utilisation_ratio > 95% and latency_seconds > 50ms)"
    tags = {"cluster": "c", "host": "h1", "disk": "sda"}
    sample = Sample("host_disk", tags, {"utilisation_ratio": 0.99, "latency_seconds": 0.1}, at(0))
    evaluator = fed(text, [sample, host("h1", 0)], on="host")
    assert evaluator.holds(condition(text, Kind.HOST), "h1", 0) is True


def test_guests_are_counted_by_their_devices() -> None:
    text = "count(vms where any(disks where read_latency_seconds > 50ms)) >= 2"
    guests = [sample for name in ("a", "b") for sample in (disk("vda", 0, 0.2, guest=name), vm(name, 0))]
    evaluator = fed(text, [host("h1", 0), *guests], on="host")
    evaluator.tick(at(1))
    assert said(evaluator, text, "h1", Kind.HOST)[text.removesuffix(" >= 2")] == 2.0


def test_devices_of_a_guest_that_has_gone_are_forgotten_and_so_are_those_that_nobody_tells_of() -> None:
    text = "max(avg(disks.read_latency_seconds, 1m)) > 1s"
    evaluator = fed(text, [disk("vda", 0, 0.1), disk("vda", 0, 0.1, guest="stranger"), vm("g", 0)])
    table = evaluator.world.devices[next(iter(evaluator.world.devices))]
    assert len(table.row_of) == 2
    evaluator.tick(at(3700))
    assert (evaluator.known(Kind.VM), len(table.row_of)) == ([], 0)


def test_a_guest_of_countless_devices_costs_no_more_than_the_limit() -> None:
    text = "count(disks) > 1"
    evaluator = fed(text, [*(disk(f"d{n}", 0, 0.1) for n in range(MAX_OF_ONE + 50)), vm("g", 0)])
    assert said(evaluator, text)["count(disks)"] == MAX_OF_ONE


def test_samples_of_devices_that_no_rule_reads_are_left_alone() -> None:
    evaluator = fed("cpu_steal_ratio > 10%", [disk("vda", 0, 0.1), vm("g", 0, 0.2)])
    assert evaluator.known(Kind.VM) == ["g"]
    assert evaluator.world.devices == {}
