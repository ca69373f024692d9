"""The field table: every field that virtpilot measures, declared once.

Collectors, the rule checker, the dashboards' checks and the docs page read it. Names are `<noun>_<unit>` in base units;
counters end in `_total`; ratios are 0 to 1.
"""

from __future__ import annotations

from typing import Final

from virtpilot.field import Field, Type, Unit, rows
from virtpilot.host_fields import HOST_FIELDS

__all__ = ["FIELDS", "Field", "Type", "Unit", "names"]

_G, _C = Type.GAUGE, Type.COUNTER
_STATS = "virConnectGetAllDomainStats"
_JOB = "virDomainGetJobStats"

_ALL: Final = [
    *HOST_FIELDS,
    *rows(
        "vm",
        ("state_code", Unit.COUNT, _G, "virDomainState: 1 running, 3 paused, 5 shut off", f"{_STATS} state.state"),
        ("cpu_usage_ratio", Unit.RATIO, _G, "CPU time used per vCPU and second", f"{_STATS} cpu.time"),
        (
            "cpu_steal_ratio",
            Unit.RATIO,
            _G,
            "time vCPUs were runnable without a CPU, per vCPU",
            f"{_STATS} vcpu.N.delay",
        ),
        ("cpu_time_seconds_total", Unit.SECONDS, _C, "CPU time of the whole domain", f"{_STATS} cpu.time"),
        ("cpu_user_seconds_total", Unit.SECONDS, _C, "user part of the CPU time", f"{_STATS} cpu.user"),
        ("cpu_system_seconds_total", Unit.SECONDS, _C, "system part of the CPU time", f"{_STATS} cpu.system"),
        ("vcpus_count", Unit.COUNT, _G, "online vCPUs", f"{_STATS} vcpu.current"),
        ("vcpus_max_count", Unit.COUNT, _G, "vCPUs that can be online", f"{_STATS} vcpu.maximum"),
        ("memory_balloon_bytes", Unit.BYTES, _G, "current balloon: memory the guest has", f"{_STATS} balloon.current"),
        ("memory_max_bytes", Unit.BYTES, _G, "memory the guest can have", f"{_STATS} balloon.maximum"),
        ("memory_usable_bytes", Unit.BYTES, _G, "memory reclaimable without swapping", f"{_STATS} balloon.usable"),
        ("memory_unused_bytes", Unit.BYTES, _G, "memory the guest leaves unused", f"{_STATS} balloon.unused"),
        ("memory_available_bytes", Unit.BYTES, _G, "memory the guest's kernel sees", f"{_STATS} balloon.available"),
        ("memory_rss_bytes", Unit.BYTES, _G, "resident set of the QEMU process", f"{_STATS} balloon.rss"),
        ("memory_used_ratio", Unit.RATIO, _G, "1 - usable / available", f"{_STATS} balloon.*"),
        ("swap_in_bytes_total", Unit.BYTES, _C, "swapped in by the guest", f"{_STATS} balloon.swap_in"),
        ("swap_out_bytes_total", Unit.BYTES, _C, "swapped out by the guest", f"{_STATS} balloon.swap_out"),
        ("major_faults_total", Unit.COUNT, _C, "page faults that needed I/O", f"{_STATS} balloon.major_fault"),
    ),
    *rows(
        "vm_vcpu",
        ("state_code", Unit.COUNT, _G, "virVcpuState: 0 offline, 1 running, 2 blocked", f"{_STATS} vcpu.N.state"),
        ("time_seconds_total", Unit.SECONDS, _C, "CPU time of this vCPU", f"{_STATS} vcpu.N.time"),
        ("wait_seconds_total", Unit.SECONDS, _C, "time this vCPU waited on I/O", f"{_STATS} vcpu.N.wait"),
        (
            "delay_seconds_total",
            Unit.SECONDS,
            _C,
            "time this vCPU was runnable without a CPU",
            f"{_STATS} vcpu.N.delay",
        ),
    ),
    *rows(
        "vm_disk",
        ("read_requests_total", Unit.COUNT, _C, "read requests", f"{_STATS} block.N.rd.reqs"),
        ("read_bytes_total", Unit.BYTES, _C, "bytes read", f"{_STATS} block.N.rd.bytes"),
        ("read_seconds_total", Unit.SECONDS, _C, "time spent reading", f"{_STATS} block.N.rd.times"),
        ("write_requests_total", Unit.COUNT, _C, "write requests", f"{_STATS} block.N.wr.reqs"),
        ("write_bytes_total", Unit.BYTES, _C, "bytes written", f"{_STATS} block.N.wr.bytes"),
        ("write_seconds_total", Unit.SECONDS, _C, "time spent writing", f"{_STATS} block.N.wr.times"),
        ("flush_requests_total", Unit.COUNT, _C, "flush requests", f"{_STATS} block.N.fl.reqs"),
        ("flush_seconds_total", Unit.SECONDS, _C, "time spent flushing", f"{_STATS} block.N.fl.times"),
        ("errors_total", Unit.COUNT, _C, "failed requests", f"{_STATS} block.N.errors"),
        ("allocation_bytes", Unit.BYTES, _G, "highest written offset", f"{_STATS} block.N.allocation"),
        ("capacity_bytes", Unit.BYTES, _G, "logical size", f"{_STATS} block.N.capacity"),
        ("physical_bytes", Unit.BYTES, _G, "size on the host", f"{_STATS} block.N.physical"),
        ("read_bytes_per_second", Unit.BYTES_PER_SECOND, _G, "read rate", f"{_STATS} block.N.rd.bytes"),
        ("write_bytes_per_second", Unit.BYTES_PER_SECOND, _G, "write rate", f"{_STATS} block.N.wr.bytes"),
    ),
    *rows(
        "vm_net",
        ("receive_bytes_total", Unit.BYTES, _C, "bytes received", f"{_STATS} net.N.rx.bytes"),
        ("receive_packets_total", Unit.COUNT, _C, "packets received", f"{_STATS} net.N.rx.pkts"),
        ("receive_errors_total", Unit.COUNT, _C, "receive errors", f"{_STATS} net.N.rx.errs"),
        ("receive_drops_total", Unit.COUNT, _C, "received packets dropped", f"{_STATS} net.N.rx.drop"),
        ("transmit_bytes_total", Unit.BYTES, _C, "bytes sent", f"{_STATS} net.N.tx.bytes"),
        ("transmit_packets_total", Unit.COUNT, _C, "packets sent", f"{_STATS} net.N.tx.pkts"),
        ("transmit_errors_total", Unit.COUNT, _C, "transmit errors", f"{_STATS} net.N.tx.errs"),
        ("transmit_drops_total", Unit.COUNT, _C, "sent packets dropped", f"{_STATS} net.N.tx.drop"),
        ("receive_bytes_per_second", Unit.BYTES_PER_SECOND, _G, "receive rate", f"{_STATS} net.N.rx.bytes"),
        ("transmit_bytes_per_second", Unit.BYTES_PER_SECOND, _G, "transmit rate", f"{_STATS} net.N.tx.bytes"),
    ),
    *rows(
        "vm_job",
        ("running_count", Unit.COUNT, _G, "1 while a job runs on the guest, 0 in its last sample", _JOB),
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
    *rows(
        "knob",
        (
            "value_count",
            Unit.COUNT,
            _G,
            "the knob's live value (its name is the tag `knob`)",
            "virDomainGetSchedulerParameters",
        ),
        ("leased_count", Unit.COUNT, _G, "1 while virtpilot holds a lease on it, else 0", "agent journal"),
    ),
]

FIELDS: Final[dict[tuple[str, str], Field]] = {(field.measurement, field.name): field for field in _ALL}


def names(measurement: str) -> list[str]:
    """Return the field names of a measurement, sorted."""
    return sorted(name for owner, name in FIELDS if owner == measurement)
