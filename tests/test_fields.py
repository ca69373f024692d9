"""The field table as a whole."""

from __future__ import annotations

from collections import Counter

from virtpilot.fields import FIELDS
from virtpilot.host_fields import GROUP_FIELDS, HOST_FIELDS


def test_every_field_is_a_series_of_its_own_in_a_store_that_joins_measurement_and_field() -> None:
    """VictoriaMetrics does: a host's sum and its devices' fields must not meet in one name."""
    joined = Counter(f"{measurement}_{field}" for measurement, field in FIELDS)
    assert [name for name, times in joined.items() if times > 1] == []


def test_no_field_is_declared_twice() -> None:
    declared = [(field.measurement, field.name) for field in (*HOST_FIELDS, *GROUP_FIELDS)]
    assert len(declared) == len(set(declared))
    assert set(declared) <= FIELDS.keys()
