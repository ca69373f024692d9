"""The notation of series: what promtool's users expect, with units and a clear word where it is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtpilot.fields import Unit
from virtpilot.rules.testing.series import MAX_TICKS, Series, SeriesError, series

GIVEN = {
    "0.3": [0.3],
    "0.2x3": [0.2] * 4,
    "0.05+0.01x3": [0.05, 0.06, 0.07, 0.08],
    "1-0.5x4": [1.0, 0.5, 0.0, -0.5, -1.0],
    "-2+4x3": [-2.0, 2.0, 6.0, 10.0],
    "1 _x3 stale 2": [1.0, None, None, None, None, 2.0],
    "95% 5%x0": [0.95, 0.05],
    "64MiB-32MiBx1": [2.0**26, 2.0**25],
    "  1\n 2 ": [1.0, 2.0],
}
REST = {
    "0.3": 0.3,
    "0.3 _": 0.3,
    "0.3 _x9": 0.3,
    "0.3 stale": None,
    "_ stale 4": 4.0,
    "_": None,
    "1+1x2": 3.0,
    "_x0 1": 1,
}
WRONG = {
    "": (0, "a series has at least one item, such as `0.3x10`"),
    "1 2y": (2, "'2y' has a unit that is not known"),
    "1 two": (2, "'two' is no item of a series: write 0.3, 0.3x4, 0.1+0.05x4, _, _x4 or stale"),
    "0.1 3s": (4, "'3s' is seconds, the field is ratio"),
    "1x99999999999": (0, f"a series has {MAX_TICKS} ticks at most"),
    f"1 1x{MAX_TICKS - 1}": (2, f"a series has {MAX_TICKS} ticks at most"),
    f"_x{MAX_TICKS} stale": (len(f"_x{MAX_TICKS} "), f"a series has {MAX_TICKS} ticks at most"),
    "1" * 30: (0, "a number is 1e+18 at most"),
}

number = st.integers(-9_999, 9_999).map(lambda n: n / 100)
step = st.integers(-999, 999).map(lambda n: n / 100)
item = st.one_of(
    number.map(lambda n: (f"{n:g}", [n])),
    st.tuples(number, st.integers(0, 9)).map(lambda p: (f"{p[0]:g}x{p[1]}", [p[0]] * (p[1] + 1))),
    st.tuples(number, step, st.integers(0, 9)).map(
        lambda p: (f"{p[0]:g}{p[1]:+g}x{p[2]}", [p[0] + p[1] * k for k in range(p[2] + 1)])
    ),
    st.integers(1, 9).map(lambda n: (f"_x{n}", [None] * n)),
    st.sampled_from([("_", [None]), ("stale", [None])]),
)


@pytest.mark.parametrize("text", GIVEN)
def test_what_is_written_is_what_is_measured(text: str) -> None:
    found = series(text)
    assert list(found.values) == GIVEN[text]
    assert [found.at(tick) for tick in range(len(found.values))] == GIVEN[text]


@pytest.mark.parametrize("text", REST)
def test_the_last_value_stays_unless_the_series_has_ended(text: str) -> None:
    assert series(text).at(1_000) == REST[text]


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_are_told_with_their_place(text: str) -> None:
    with pytest.raises(SeriesError) as raised:
        series(text, Unit.RATIO)
    assert (raised.value.column, raised.value.message) == WRONG[text]


@settings(deadline=None)
@given(st.lists(item, min_size=1, max_size=12), st.sampled_from([" ", "  ", "\n"]))
def test_items_stand_one_after_the_other(items: list[tuple[str, list[float | None]]], between: str) -> None:
    found = series(between.join(text for text, _values in items))
    wanted = [value for _text, values in items for value in values]
    assert len(found.values) == len(wanted)
    for one, other in zip(found.values, wanted, strict=True):
        assert one == (None if other is None else pytest.approx(other, abs=1e-9))
    known = [value for value in wanted if value is not None]
    ended = [text for text, values in items if text == "stale" or any(value is not None for value in values)]
    after = None if ended[-1:] in ([], ["stale"]) else pytest.approx(known[-1], abs=1e-9)
    assert found.at(len(wanted)) == after


@settings(deadline=None)
@given(st.text(alphabet="0123456789.x+-_ %aleMiBst\n", max_size=60) | st.text(max_size=60))
def test_no_text_does_anything_but_be_read_or_refused(text: str) -> None:
    found: Series | SeriesError
    try:
        found = series(text, Unit.BYTES)
    except SeriesError as error:
        found = error
    if isinstance(found, Series):
        assert 1 <= len(found.values) <= MAX_TICKS
    else:
        assert 0 <= found.column <= len(text)
        assert found.message
