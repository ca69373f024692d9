"""The field table: every field that virtpilot measures, declared once.

Collectors, the rule checker, the dashboards' checks and the docs page read it. Names are `<noun>_<unit>` in base units;
counters end in `_total`; ratios are 0 to 1.
"""

from __future__ import annotations

from typing import Final

from virtpilot.field import Field, Type, Unit, rows
from virtpilot.guest_fields import GUEST_FIELDS, KNOB_FIELDS
from virtpilot.host_fields import GROUP_FIELDS, HOST_FIELDS

__all__ = ["FIELDS", "Field", "Type", "Unit", "names"]

_G = Type.GAUGE
_JOB = "virDomainGetJobStats"

_ALL: Final = [
    *HOST_FIELDS,
    *GUEST_FIELDS,
    *GROUP_FIELDS,
    *rows(
        "vm_job",
        ("running_count", Unit.COUNT, _G, "1 while a job runs on the guest, 0 in its last sample", _JOB),
        ("failed_count", Unit.COUNT, _G, "1 in the last sample of a job that was aborted or failed, else 0", _JOB),
        ("data_total_bytes", Unit.BYTES, _G, "what the job has to carry, as it is known now", _JOB),
        ("data_processed_bytes", Unit.BYTES, _G, "carried so far", _JOB),
        ("data_remaining_bytes", Unit.BYTES, _G, "still to be carried in this round", _JOB),
        ("dirty_bytes_per_second", Unit.BYTES_PER_SECOND, _G, "how fast the guest changes its memory", _JOB),
        ("bandwidth_bytes_per_second", Unit.BYTES_PER_SECOND, _G, "how fast it is carried", _JOB),
        ("iterations_count", Unit.COUNT, _G, "rounds over the memory", _JOB),
        ("throttle_ratio", Unit.RATIO, _G, "share of its CPU that auto-converge takes from the guest", _JOB),
        ("elapsed_seconds", Unit.SECONDS, _G, "since the job began", _JOB),
        ("downtime_seconds", Unit.SECONDS, _G, "how long the guest stands still, expected or, at the end, found", _JOB),
    ),
    *KNOB_FIELDS,
]

FIELDS: Final[dict[tuple[str, str], Field]] = {(field.measurement, field.name): field for field in _ALL}


def names(measurement: str) -> list[str]:
    """Return the field names of a measurement, sorted."""
    return sorted(name for owner, name in FIELDS if owner == measurement)
