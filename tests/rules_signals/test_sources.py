"""Several publishers of one subject: nobody blanks what another one tells, and nobody's clock disturbs another's."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.clock import SECOND
from virtpilot.model import Sample
from virtpilot.rules.language.records import RuleSet
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.sources import Sources

T0 = 1_700_000_000 * SECOND
GUEST = "5f0a1b5e-0000-4000-8000-000000000001"


class Joining(Sources):
    """Sources before an evaluator, as in the controller."""

    def __init__(self) -> None:
        fields = ["cpu", "steal", "queue", "depth", "state_code", "a", "b", "c"]
        self.evaluator = Evaluator(RuleSet(()), also={"vm": fields, "host": fields})
        super().__init__(self.evaluator.row)

    def join(self, samples: list[Sample], source: str, now_ns: int, *, agent: bool) -> list[Sample]:
        joined = super().join(samples, source, now_ns, agent=agent)
        self.evaluator.feed(joined, "c")
        return joined


def vm(at_s: float, host: str = "h1", **fields: float) -> Sample:
    return Sample("vm", {"host": host, "vm": GUEST, "name": "web-1"}, dict(fields), T0 + round(at_s * SECOND))


def from_agent(sources: Joining, *samples: Sample) -> Sequence[Sample]:
    return sources.join(list(samples), samples[-1].tags["host"], samples[-1].time_ns, agent=True)


def from_script(sources: Joining, sample: Sample, now_s: float | None = None, name: str = "script") -> Sample:
    now_ns = sample.time_ns if now_s is None else T0 + round(now_s * SECOND)
    (joined,) = sources.join([sample], name, now_ns, agent=False)
    return joined


def test_what_has_one_source_passes_as_it_is() -> None:
    sources = Joining()
    samples = [vm(1, cpu=0.5), vm(2, cpu=0.6), Sample("host", {"host": "h1"}, {"cpu": 0.1}, T0)]
    assert all(joined is given for joined, given in zip(from_agent(sources, *samples), samples, strict=True))
    other = Sample("knob", {"vm": GUEST}, {"value_count": 1}, T0)
    assert from_script(sources, other) is other
    nobody = Sample("vm", {"host": "h1"}, {"queue": 1}, T0)
    assert from_script(sources, nobody) is nobody


def test_a_foreign_field_stays_beside_the_agents_until_its_own_source_lacks_it() -> None:
    sources = Joining()
    from_agent(sources, vm(0, cpu=0.5, steal=0.1))
    assert from_script(sources, vm(1, queue=7, depth=3)).fields == {"cpu": 0.5, "steal": 0.1, "queue": 7, "depth": 3}
    (joined,) = from_agent(sources, vm(10, cpu=0.6))
    assert joined.fields == {"cpu": 0.6, "queue": 7, "depth": 3}
    assert from_script(sources, vm(11, depth=4)).fields == {"cpu": 0.6, "depth": 4}


def test_who_claims_to_be_an_agent_speaks_for_its_own_host_alone() -> None:
    sources = Joining()
    from_agent(sources, vm(0, cpu=0.5))
    (joined,) = sources.join([vm(1, cpu=0.9)], "h2", T0 + SECOND, agent=True)
    assert joined.fields == {"cpu": 0.5}


def test_a_guest_that_no_agent_measures_is_where_the_newest_sample_says() -> None:
    sources = Joining()
    from_script(sources, vm(0, "h1", cpu=0.5, queue=3), name="one")
    joined = from_script(sources, vm(1, "h2", cpu=0.6), name="two")
    assert (joined.fields, joined.tags["host"]) == ({"cpu": 0.6}, "h2")


def test_two_scripts_do_not_blank_each_other() -> None:
    sources = Joining()
    from_script(sources, vm(1, queue=7), name="one")
    assert from_script(sources, vm(2, depth=3), name="two").fields == {"queue": 7, "depth": 3}


def test_the_agents_word_goes_first_and_it_says_who_the_guest_is() -> None:
    sources = Joining()
    from_agent(sources, vm(0, cpu=0.5))
    wrong = Sample("vm", {"vm": GUEST, "host": "elsewhere", "name": "x"}, {"cpu": 0.9, "queue": 1}, T0 + SECOND)
    joined = from_script(sources, wrong)
    assert (joined.fields, joined.tags) == ({"cpu": 0.5, "queue": 1}, {"host": "h1", "vm": GUEST, "name": "web-1"})


def test_a_source_that_is_silent_for_a_minute_counts_no_more() -> None:
    sources = Joining()
    from_agent(sources, vm(0, cpu=0.5))
    from_script(sources, vm(1, queue=7))
    (joined,) = from_agent(sources, vm(62, cpu=0.6))
    assert joined.fields == {"cpu": 0.6}
    assert from_script(sources, vm(130, "h2", queue=8)).fields == {"queue": 8}


def test_a_scripts_clock_that_runs_ahead_makes_nothing_of_the_agents_late() -> None:
    sources = Joining()
    (first,) = from_agent(sources, vm(0, cpu=0.5))
    ahead = from_script(sources, vm(250, queue=7), now_s=5)
    (second,) = from_agent(sources, vm(4.9, cpu=0.6))
    (third,) = from_agent(sources, vm(10, cpu=0.7))
    assert [joined.time_ns - T0 for joined in (first, ahead, second, third)] == [
        0, 5 * SECOND, 5 * SECOND + 1, 10 * SECOND,
    ]  # fmt: skip


def test_what_is_late_in_its_own_source_changes_nothing() -> None:
    sources = Joining()
    from_agent(sources, vm(10, cpu=0.5))
    newest = from_script(sources, vm(11, queue=7))
    assert from_script(sources, vm(9, queue=1)).time_ns <= newest.time_ns
    late = vm(8, cpu=0.1)
    assert from_agent(sources, late) == [late]
    (joined,) = from_agent(sources, vm(20, cpu=0.6))
    assert joined.fields == {"cpu": 0.6, "queue": 7}


def test_a_definition_left_on_another_host_is_not_taken_for_the_guest() -> None:
    sources = Joining()
    from_agent(sources, vm(0, state_code=1, cpu=0.5))
    left = vm(1, "h2", state_code=5)
    assert from_agent(sources, left) == [left]
    assert from_script(sources, vm(2, queue=7)).fields == {"state_code": 1, "cpu": 0.5, "queue": 7}


def test_a_guest_that_has_moved_takes_its_foreign_fields_along() -> None:
    sources = Joining()
    from_agent(sources, vm(0, state_code=1))
    from_script(sources, vm(1, queue=7))
    (joined,) = from_agent(sources, vm(5, "h2", state_code=1))
    assert (joined.fields, joined.tags["host"]) == ({"state_code": 1, "queue": 7}, "h2")


steps = st.lists(
    st.tuples(st.sampled_from(["agent", "one", "two"]), st.integers(0, 40), st.sampled_from(["a", "b", "c"])),
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(steps)
def test_each_joined_sample_is_newer_and_holds_what_its_own_source_just_said(
    steps: list[tuple[str, int, str]],
) -> None:
    sources = Joining()
    now_s, newest_ns = 0.0, 0
    for number, (source, step_s, field) in enumerate(steps):
        now_s += step_s + 0.001
        sample = msgspec.structs.replace(vm(now_s), fields={field: number})
        now_ns = sample.time_ns
        (joined,) = sources.join([sample], "h1" if source == "agent" else source, now_ns, agent=source == "agent")
        assert joined.time_ns > newest_ns
        newest_ns = joined.time_ns
        if source == "agent":
            assert joined.fields[field] == number
        assert field in joined.fields
        assert len(joined.fields) <= 3


def test_after_a_restart_a_script_is_not_overruled_by_what_it_said_before() -> None:
    """The restored row holds what agent and script said together."""
    before = Joining()
    from_agent(before, vm(0, cpu=0.5, steal=0.1))
    from_script(before, vm(1, queue=7))
    after = Joining()
    after.evaluator.restore(before.evaluator.snapshot())
    after.restored(T0 + 2 * SECOND)
    assert from_script(after, vm(3, queue=9)).fields == {"cpu": 0.5, "steal": 0.1, "queue": 9}
    assert from_script(after, vm(4, queue=8, cpu=0.9)).fields == {"cpu": 0.9, "steal": 0.1, "queue": 8}
    (joined,) = from_agent(after, vm(5, cpu=0.6, steal=0.2))
    assert joined.fields == {"cpu": 0.6, "steal": 0.2, "queue": 8}, "what its agent says goes before it again"
    assert joined.tags["name"] == "web-1"
    late = from_script(after, vm(70, host="elsewhere", depth=1), name="other")
    assert late.fields == {"depth": 1}, "nothing of before is left after a minute"


def test_after_a_restart_the_agent_says_where_a_guest_is() -> None:
    before = Joining()
    from_agent(before, vm(0, cpu=0.5))
    after = Joining()
    after.evaluator.restore(before.evaluator.snapshot())
    after.restored(T0 + 2 * SECOND)
    joined = from_script(after, vm(3, host="elsewhere", queue=9))
    assert (joined.tags["host"], joined.fields) == ("h1", {"cpu": 0.5, "queue": 9})


def test_what_is_delivered_again_after_a_restart_is_late() -> None:
    """Taken for news, a moment after itself, it would make each usual gap after it look far too long for a `for`."""
    before = Joining()
    from_script(before, vm(1, queue=7))
    after = Joining()
    after.evaluator.restore(before.evaluator.snapshot())
    after.restored(T0 + 2 * SECOND)
    assert from_script(after, vm(1, queue=7)).time_ns == T0 + SECOND
    assert from_script(after, vm(0, queue=6)).time_ns <= T0 + SECOND
    again = from_script(after, vm(3, queue=9))
    assert (again.time_ns, again.fields) == (T0 + 3 * SECOND, {"queue": 9})
