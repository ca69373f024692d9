"""The field table's rows of a guest: what libvirt tells of it, what is configured, what its agent tells."""

from __future__ import annotations

from typing import Final

from virtpilot.field import Field, named

_STATS: Final = "virConnectGetAllDomainStats"
_XML: Final = "virDomainGetXMLDesc"
_SCHEDULE: Final = "virDomainGetSchedulerParametersFlags"
_AGENT: Final = "virDomainGetGuestInfo"

PERF_COUNTERS: Final = (
    "cpu_cycles",
    "ref_cpu_cycles",
    "bus_cycles",
    "stalled_cycles_frontend",
    "stalled_cycles_backend",
    "instructions",
    "branch_instructions",
    "branch_misses",
    "cache_references",
    "cache_misses",
    "page_faults",
    "context_switches",
    "cpu_migrations",
    "alignment_faults",
    "emulation_faults",
)
"""The performance events whose field is their libvirt name."""

GUEST_FIELDS: Final[list[Field]] = [
    *named(
        "vm",
        _STATS,
        ("state_code", "virDomainState: 1 running, 3 paused, 5 shut off", "state.state"),
        ("state_reason_code", "why it is in that state: virDomainRunningReason and its like", "state.reason"),
        ("age_seconds", "since what QEMU itself answers was last told in whole; 0 when fresh", "by NOWAIT"),
        ("cpu_usage_ratio", "CPU time used per vCPU and second", "cpu.time"),
        ("cpu_steal_ratio", "time vCPUs were runnable without a CPU, per vCPU", "vcpu.N.delay"),
        ("cpu_time_seconds_total", "CPU time of the whole domain", "cpu.time"),
        ("cpu_user_seconds_total", "user part of the CPU time", "cpu.user"),
        ("cpu_system_seconds_total", "system part of the CPU time", "cpu.system"),
        ("cpu_halt_poll_success_seconds_total", "halt polling that ended in work", "cpu.haltpoll.success.time"),
        ("cpu_halt_poll_fail_seconds_total", "halt polling in vain", "cpu.haltpoll.fail.time"),
        ("vcpus_count", "online vCPUs", "vcpu.current"),
        ("vcpus_max_count", "vCPUs that can be online", "vcpu.maximum"),
        ("memory_balloon_bytes", "current balloon: memory the guest has", "balloon.current"),
        ("memory_max_bytes", "memory the guest can have", "balloon.maximum"),
        ("memory_usable_bytes", "memory reclaimable without swapping", "balloon.usable"),
        ("memory_unused_bytes", "memory the guest leaves unused", "balloon.unused"),
        ("memory_available_bytes", "memory the guest's kernel sees", "balloon.available"),
        ("memory_disk_caches_bytes", "caches that can be dropped without I/O", "balloon.disk_caches"),
        ("memory_rss_bytes", "resident set of the QEMU process", "balloon.rss"),
        ("memory_used_ratio", "1 - usable / available", "balloon.*"),
        ("memory_stats_age_seconds", "since the guest's balloon driver last reported", "balloon.last-update"),
        ("swap_in_bytes_total", "swapped in by the guest", "balloon.swap_in"),
        ("swap_out_bytes_total", "swapped out by the guest", "balloon.swap_out"),
        ("major_faults_total", "page faults that needed I/O", "balloon.major_fault"),
        ("minor_faults_total", "other page faults", "balloon.minor_fault"),
        ("hugepage_allocations_total", "huge pages allocated inside the guest", "balloon.hugetlb_pgalloc"),
        ("hugepage_failures_total", "huge pages that could not be allocated", "balloon.hugetlb_pgfail"),
        ("memory_dirty_bytes_per_second", "how fast the guest changes its memory", "dirtyrate.megabytes_per_second"),
        ("memory_dirty_age_seconds", "since that was measured", "dirtyrate.calc_status"),
        ("disks_read_bytes_per_second", "read rate of all disks", "block.*.rd.bytes"),
        ("disks_write_bytes_per_second", "write rate of all disks", "block.*.wr.bytes"),
        ("disks_read_requests_per_second", "read requests of all disks", "block.*.rd.reqs"),
        ("disks_write_requests_per_second", "write requests of all disks", "block.*.wr.reqs"),
        ("disks_flush_requests_per_second", "flushes of all disks", "block.*.fl.reqs"),
        ("disks_read_latency_seconds", "time per read over all disks", "block.*.rd.times"),
        ("disks_write_latency_seconds", "time per write over all disks", "block.*.wr.times"),
        ("disks_flush_latency_seconds", "time per flush over all disks", "block.*.fl.times"),
        ("nics_receive_bytes_per_second", "receive rate of all NICs", "net.*.rx.bytes"),
        ("nics_transmit_bytes_per_second", "transmit rate of all NICs", "net.*.tx.bytes"),
        ("nics_receive_packets_per_second", "packets received by all NICs", "net.*.rx.pkts"),
        ("nics_transmit_packets_per_second", "packets sent by all NICs", "net.*.tx.pkts"),
        ("nics_receive_drops_per_second", "received packets dropped by all NICs", "net.*.rx.drop"),
        ("nics_transmit_drops_per_second", "sent packets dropped by all NICs", "net.*.tx.drop"),
    ),
    *named(
        "vm",
        _SCHEDULE,
        ("cpu_shares_count", "weight against other guests when CPUs are short", "cpu_shares"),
        ("cpu_limit_ratio", "quota / period: CPUs that a vCPU may use", "vcpu_quota"),
        ("cpu_guest_limit_count", "CPUs that the whole guest may use", "global_quota"),
        ("cpu_emulator_limit_count", "CPUs that QEMU's own threads may use", "emulator_quota"),
        ("cpu_iothread_limit_count", "CPUs that an I/O thread may use", "iothread_quota"),
    ),
    *named(
        "vm",
        _XML,
        ("memory_balloon_target_bytes", "where the balloon is set to", "currentMemory"),
        ("memory_hard_limit_bytes", "host memory that the guest's processes may use", "memtune/hard_limit"),
        ("memory_soft_limit_bytes", "the same when host memory is short", "memtune/soft_limit"),
        ("memory_swap_hard_limit_bytes", "host memory and swap together", "memtune/swap_hard_limit"),
        ("blkio_weight_count", "weight against other guests when a disk is busy", "blkiotune/weight"),
        ("disks_limit_bytes_per_second", "sum of the disks' limits, where each has one", "iotune"),
        ("disks_limit_requests_per_second", "sum of the disks' limits, where each has one", "iotune"),
        ("disks_limit_used_ratio", "use of the most used limit of any disk; above 1 in a burst", "iotune"),
        ("nics_receive_limit_bytes_per_second", "sum of the NICs' limits, where each has one", "bandwidth"),
        ("nics_transmit_limit_bytes_per_second", "sum of the NICs' limits, where each has one", "bandwidth"),
        ("nics_limit_used_ratio", "use of the most used limit of any NIC; above 1 in a burst", "bandwidth"),
    ),
    *named(
        "vm",
        _AGENT,
        ("guest_load1_count", "load average over 1 minute inside the guest", "load.1m"),
        ("guest_load5_count", "load average over 5 minutes inside the guest", "load.5m"),
        ("guest_load15_count", "load average over 15 minutes inside the guest", "load.15m"),
    ),
    *named("vm", "agent", ("sample_interval_seconds", "how often this guest is sampled just now", "")),
    *named(
        "vm_vcpu",
        _STATS,
        ("state_code", "virVcpuState: 0 offline, 1 running, 2 blocked", "vcpu.N.state"),
        ("time_seconds_total", "CPU time of this vCPU", "vcpu.N.time"),
        ("wait_seconds_total", "time this vCPU waited, as the kernel's scheduler tells it", "vcpu.N.wait"),
        ("delay_seconds_total", "time this vCPU was runnable without a CPU", "vcpu.N.delay"),
        ("halted_count", "1 while the vCPU is halted, else 0", "vcpu.N.halted"),
    ),
    *named(
        "vm_disk",
        _STATS,
        ("read_requests_total", "read requests", "block.N.rd.reqs"),
        ("read_bytes_total", "bytes read", "block.N.rd.bytes"),
        ("read_seconds_total", "time spent reading", "block.N.rd.times"),
        ("write_requests_total", "write requests", "block.N.wr.reqs"),
        ("write_bytes_total", "bytes written", "block.N.wr.bytes"),
        ("write_seconds_total", "time spent writing", "block.N.wr.times"),
        ("flush_requests_total", "flush requests", "block.N.fl.reqs"),
        ("flush_seconds_total", "time spent flushing", "block.N.fl.times"),
        ("errors_total", "failed requests", "block.N.errors"),
        ("allocation_bytes", "highest written offset", "block.N.allocation"),
        ("capacity_bytes", "logical size", "block.N.capacity"),
        ("physical_bytes", "size on the host", "block.N.physical"),
        ("threshold_bytes", "write offset that raises an event", "block.N.threshold"),
        ("read_bytes_per_second", "read rate", "block.N.rd.bytes"),
        ("write_bytes_per_second", "write rate", "block.N.wr.bytes"),
        ("read_requests_per_second", "read requests", "block.N.rd.reqs"),
        ("write_requests_per_second", "write requests", "block.N.wr.reqs"),
        ("flush_requests_per_second", "flush requests", "block.N.fl.reqs"),
        ("read_latency_seconds", "time per read", "block.N.rd.times"),
        ("write_latency_seconds", "time per write", "block.N.wr.times"),
        ("flush_latency_seconds", "time per flush", "block.N.fl.times"),
    ),
    *named(
        "vm_disk",
        f"{_XML} iotune",
        *(
            (
                f"{way}{burst}_limit_{what}_per_second",
                f"{'burst of the limit' if burst else 'limit'} of {what} {verb}",
                f"{way}_{theirs}_sec{'_max' if burst else ''}",
            )
            for way, verb in (("read", "read"), ("write", "written"), ("total", "either way"))
            for what, theirs in (("bytes", "bytes"), ("requests", "iops"))
            for burst in ("", "_burst")
        ),
        ("limit_used_ratio", "use of the most used of these limits; above 1 in a burst", "*"),
    ),
    *named(
        "vm_net",
        _STATS,
        *(
            row
            for way, short, what in (("receive", "rx", "received"), ("transmit", "tx", "sent"))
            for row in (
                (f"{way}_bytes_total", f"bytes {what}", f"net.N.{short}.bytes"),
                (f"{way}_packets_total", f"packets {what}", f"net.N.{short}.pkts"),
                (f"{way}_errors_total", f"errors of packets {what}", f"net.N.{short}.errs"),
                (f"{way}_drops_total", f"packets {what} and dropped", f"net.N.{short}.drop"),
                (f"{way}_bytes_per_second", f"bytes {what}", f"net.N.{short}.bytes"),
                (f"{way}_packets_per_second", f"packets {what}", f"net.N.{short}.pkts"),
                (f"{way}_drops_per_second", f"packets {what} and dropped", f"net.N.{short}.drop"),
            )
        ),
    ),
    *named(
        "vm_net",
        f"{_XML} bandwidth",
        *(
            row
            for way, theirs in (("receive", "inbound"), ("transmit", "outbound"))
            for row in (
                (f"{way}_limit_bytes_per_second", "average that it may have", f"{theirs} average"),
                (f"{way}_peak_limit_bytes_per_second", "most that it may have in a burst", f"{theirs} peak"),
                (f"{way}_burst_limit_bytes", "how much a burst may carry at the peak", f"{theirs} burst"),
            )
        ),
        ("limit_used_ratio", "use of the more used of the averages; above 1 in a burst", "*"),
    ),
    *named(
        "vm_perf",
        _STATS,
        ("cache_occupancy_bytes", "last-level cache in use", "perf.cmt"),
        ("memory_traffic_total", "memory bandwidth used, as the kernel counts it", "perf.mbmt"),
        ("memory_traffic_local_total", "the same through the local memory controller", "perf.mbml"),
        ("cpu_clock_seconds_total", "CPU clock", "perf.cpu_clock"),
        ("task_clock_seconds_total", "task clock", "perf.task_clock"),
        *((f"{name}_total", name.replace("_", " "), f"perf.{name}") for name in PERF_COUNTERS),
        ("page_faults_minor_total", "minor page faults", "perf.page_faults_min"),
        ("page_faults_major_total", "major page faults", "perf.page_faults_maj"),
    ),
    *named(
        "vm_iothread",
        _STATS,
        ("poll_max_seconds", "longest time that the I/O thread polls", "iothread.N.poll-max-ns"),
        ("poll_grow_count", "factor that polling grows by; 0: QEMU's own", "iothread.N.poll-grow"),
        ("poll_shrink_count", "divisor that polling shrinks by; 0: QEMU's own", "iothread.N.poll-shrink"),
    ),
    *named(
        "vm_filesystem",
        _AGENT,
        ("total_bytes", "size of the file system", "fs.N.total-bytes"),
        ("used_bytes", "bytes in use", "fs.N.used-bytes"),
        ("used_ratio", "used / total", "fs.N.*"),
    ),
]
KNOB_FIELDS: Final[list[Field]] = [
    *named(
        "knob",
        "virDomainGetSchedulerParametersFlags, virDomainGetXMLDesc",
        ("value_count", "the knob's live value in base units (its name is the tag `knob`)", ""),
    ),
    *named("knob", "agent journal", ("leased_count", "1 while virtpilot holds a lease on it, else 0", "")),
]
