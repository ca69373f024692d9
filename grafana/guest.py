"""The Guest dashboard: one guest wherever it lives, what it gets and lacks, and what virtpilot has set on it."""

from __future__ import annotations

from typing import Final

from virtpilot.grafana.moves import arrivals
from virtpilot.grafana.view import Board, Note, Section, Variable, fresh, graph, number, text, timeline

_VM: Final = '{cluster=~"$cluster",vm=~"$guest"}'
_STATES: Final = (
    (0, "no state", "text"),
    (1, "running", "green"),
    (2, "blocked", "yellow"),
    (3, "paused", "blue"),
    (4, "shutting down", "orange"),
    (5, "shut off", "text"),
    (6, "crashed", "red"),
    (7, "suspended", "purple"),
)


# The newest sample tells where it runs: right after a move the old host's series is still within reach of a query.
_HERE: Final = f"topk(1, max by (host) (timestamp(vm_state_code{_VM}) and vm_state_code{_VM} == 1))"


def _now(metric: str) -> str:
    return fresh(metric, _VM)


def _rate(counter: str, by: str) -> str:
    """Return a rate that goes on across a move: the old host's series and the new one's are one line."""
    return f"max by ({by}) (rate({counter}{_VM}[$__rate_interval]))"


def _gauge(metric: str, by: str) -> str:
    return f"max by ({by}) ({metric}{_VM})"


def _latency(kind: str) -> str:
    """Return seconds per request; 0 while there is none."""
    spent = _rate(f"vm_disk_{kind}_seconds_total", "disk")
    return f"{spent} / clamp_min({_rate(f'vm_disk_{kind}_requests_total', 'disk')}, 0.001)"


_NOW: Final = Section(
    "Now",
    (
        text(
            "Host",
            "Where it runs.",
            _HERE,
            "host",
            nothing="not running",
        ),
        number(
            "State",
            "Its state as its host tells it.",
            "none",
            f"min({_now('vm_state_code')})",
            names=_STATES,
            nothing="not seen",
        ),
        number(
            "Told in whole",
            "How long ago its statistics were last told in whole; grows while its QEMU does not answer.",
            "s",
            f"min({_now('vm_age_seconds')})",
            width=3,
            warn=30,
            bad=120,
        ),
        number("vCPUs", "Online vCPUs.", "none", f"max({_now('vm_vcpus_count')})", width=3),
        number("Memory given", "Its current balloon.", "bytes", f"max({_now('vm_memory_balloon_bytes')})", width=3),
        number(
            "Steal",
            "Share of time that its vCPUs were runnable without a CPU.",
            "percentunit",
            f"max({_now('vm_cpu_steal_ratio')} and on (host) {_HERE})",
            warn=0.05,
            bad=0.1,
        ),
        number(
            "Leased knobs",
            "Knobs that virtpilot holds changed.",
            "none",
            f"sum({_now('knob_leased_count')} and on (host) {_HERE})",
            width=3,
            warn=1,
        ),
    ),
)

_PILOT: Final = Section(
    "Where it lives and what virtpilot has set",
    (
        timeline(
            "Host over time",
            "A band while it runs on that host; a move is the change from one band to another.",
            f"count by (host) (vm_state_code{_VM} == 1)",
            "{{host}}",
            names=((1, "runs here", "green"),),
        ),
        timeline(
            "State on each host",
            "Its state as each host tells it: during a move it is paused on the one that takes it.",
            _gauge("vm_state_code", "host"),
            "{{host}}",
            names=_STATES,
        ),
        timeline(
            "Leases",
            "Knobs that virtpilot holds changed, until their lease ends.",
            _gauge("knob_leased_count", "knob"),
            "{{knob}}",
            names=((0, "free", "text"), (1, "held", "orange")),
        ),
        graph(
            "Knobs",
            "The live value of each knob, whoever set it.",
            "none",
            (_gauge("knob_value_count", "knob"), "{{knob}}"),
            decimals=0,
        ),
    ),
)

_CPU: Final = Section(
    "CPU",
    (
        graph(
            "CPU usage and steal",
            "CPU time used, and time runnable without a CPU, both per vCPU.",
            "percentunit",
            (f"vm_cpu_usage_ratio{_VM}", "usage on {{host}}"),
            (f"vm_cpu_steal_ratio{_VM}", "steal on {{host}}"),
        ),
        graph(
            "CPUs used",
            "CPU seconds per second of the whole domain, QEMU's own threads included, and the vCPUs that it has.",
            "none",
            (_rate("vm_cpu_time_seconds_total", "vm"), "all"),
            (_rate("vm_cpu_user_seconds_total", "vm"), "user"),
            (_rate("vm_cpu_system_seconds_total", "vm"), "system"),
            (_gauge("vm_vcpus_count", "vm"), "vCPUs online"),
            decimals=2,
        ),
        graph(
            "Usage by vCPU",
            "Share of time that each vCPU ran.",
            "percentunit",
            (_rate("vm_vcpu_time_seconds_total", "vcpu"), "vCPU {{vcpu}}"),
        ),
        graph(
            "Steal by vCPU",
            "Share of time that each vCPU was runnable without a CPU.",
            "percentunit",
            (_rate("vm_vcpu_delay_seconds_total", "vcpu"), "vCPU {{vcpu}}"),
            warn=0.05,
            bad=0.1,
        ),
        graph(
            "Pressure (PSI)",
            "Share of time that some thread of the guest's process waited for a CPU, for memory or for a disk.",
            "percentunit",
            *((_gauge(f"vm_psi_{kind}_some_ratio", "vm"), kind) for kind in ("cpu", "memory", "io")),
            high=1,
        ),
        graph(
            "Stopped by a quota",
            "Share of the periods of its CPU quota in which it was stopped; 0 without a quota.",
            "percentunit",
            (_gauge("vm_cpu_throttled_ratio", "vm"), "stopped"),
            high=1,
            warn=0.1,
            bad=0.5,
        ),
    ),
)

_MEMORY: Final = Section(
    "Memory",
    (
        graph(
            "Memory and balloon",
            "What it can have, what it has, what its kernel sees and could give back, and what it takes on its host.",
            "bytes",
            (_gauge("vm_memory_max_bytes", "vm"), "most"),
            (_gauge("vm_memory_balloon_bytes", "vm"), "balloon"),
            (_gauge("vm_memory_available_bytes", "vm"), "seen by its kernel"),
            (_gauge("vm_memory_usable_bytes", "vm"), "usable"),
            (_gauge("vm_memory_rss_bytes", "vm"), "resident on the host"),
        ),
        graph(
            "Memory used",
            "Share that its kernel could not give back without swapping, as its balloon driver tells.",
            "percentunit",
            (_gauge("vm_memory_used_ratio", "vm"), "used"),
            high=1,
            warn=0.85,
            bad=0.95,
        ),
        graph(
            "Swap traffic",
            "Bytes that the guest itself swaps in and out.",
            "Bps",
            (_rate("vm_swap_in_bytes_total", "vm"), "in"),
            (_rate("vm_swap_out_bytes_total", "vm"), "out"),
        ),
        graph(
            "Major faults",
            "Page faults of the guest that needed I/O.",
            "ops",
            (_rate("vm_major_faults_total", "vm"), "faults"),
        ),
    ),
)

_DISK: Final = Section(
    "Disks",
    (
        graph(
            "Disk bytes",
            "Bytes per second read and written.",
            "Bps",
            (_gauge("vm_disk_read_bytes_per_second", "disk"), "{{disk}} read"),
            (_gauge("vm_disk_write_bytes_per_second", "disk"), "{{disk}} write"),
        ),
        graph(
            "Disk requests",
            "Requests per second.",
            "iops",
            (_rate("vm_disk_read_requests_total", "disk"), "{{disk}} read"),
            (_rate("vm_disk_write_requests_total", "disk"), "{{disk}} write"),
            (_rate("vm_disk_flush_requests_total", "disk"), "{{disk}} flush"),
        ),
        graph(
            "Disk latency",
            "Mean time of a request; 0 while there is none.",
            "s",
            (_latency("read"), "{{disk}} read"),
            (_latency("write"), "{{disk}} write"),
        ),
        graph(
            "Disk space",
            "Size that the guest sees, and size on the host.",
            "bytes",
            (_gauge("vm_disk_capacity_bytes", "disk"), "{{disk}} capacity"),
            (_gauge("vm_disk_physical_bytes", "disk"), "{{disk}} on the host"),
        ),
    ),
)

_NET: Final = Section(
    "Network",
    (
        graph(
            "Network bytes",
            "Bytes per second received and sent.",
            "Bps",
            (_gauge("vm_net_receive_bytes_per_second", "nic"), "{{nic}} in"),
            (_gauge("vm_net_transmit_bytes_per_second", "nic"), "{{nic}} out"),
        ),
        graph(
            "Network packets",
            "Packets per second received and sent.",
            "pps",
            (_rate("vm_net_receive_packets_total", "nic"), "{{nic}} in"),
            (_rate("vm_net_transmit_packets_total", "nic"), "{{nic}} out"),
        ),
        graph(
            "Packets lost",
            "Errors and drops, as the host's end of the NIC counts them.",
            "pps",
            (_rate("vm_net_receive_errors_total", "nic"), "{{nic}} in, errors"),
            (_rate("vm_net_receive_drops_total", "nic"), "{{nic}} in, drops"),
            (_rate("vm_net_transmit_errors_total", "nic"), "{{nic}} out, errors"),
            (_rate("vm_net_transmit_drops_total", "nic"), "{{nic}} out, drops"),
            width=24,
        ),
    ),
)

_JOBS: Final = Section(
    "Jobs and sampling",
    (
        graph(
            "Carried by a job",
            "While a migration, a save, a dump or a backup runs, whoever started it: what is carried and what is left.",
            "bytes",
            (_gauge("vm_job_data_processed_bytes", "operation"), "{{operation}} carried"),
            (_gauge("vm_job_data_remaining_bytes", "operation"), "{{operation}} left"),
        ),
        graph(
            "A job's pace",
            "How fast it carries, and how fast the guest changes its memory meanwhile: above it, it never ends.",
            "Bps",
            (_gauge("vm_job_bandwidth_bytes_per_second", "operation"), "{{operation}} bandwidth"),
            (_gauge("vm_job_dirty_bytes_per_second", "operation"), "{{operation}} dirtied"),
        ),
        graph(
            "Sampled each",
            "Seconds between its samples: fewer while it is near a threshold, more when it has been calm for long.",
            "s",
            (_gauge("vm_sample_interval_seconds", "host"), "{{host}}"),
            width=24,
        ),
    ),
)

BOARD: Final = Board(
    uid="virtpilot-guest",
    title="virtpilot: Guest",
    meaning="One guest wherever it lives: what it gets and lacks, and what virtpilot did for it.",
    variables=(
        Variable(name="cluster", label="Cluster", query="label_values(host_cpus_count, cluster)"),
        Variable(
            name="guest",
            label="Guest",
            # Chosen by name, kept by UUID; gone guests stay to be looked at within the dashboard's time range.
            query='query_result(max by (name, vm) (last_over_time(vm_state_code{cluster=~"$cluster"}[$__range])))',
            regex='/(?=.*\\bname="(?<text>[^"]*)")(?=.*\\bvm="(?<value>[^"]*)")/',
        ),
    ),
    sections=(_NOW, _PILOT, _CPU, _MEMORY, _DISK, _NET, _JOBS),
    notes=(
        Note(name="Moves", query=arrivals(_VM, _VM, "name, host"), text="{{name}} moved to {{host}}", color="purple"),
        Note(
            name="Leases",
            query=f"max by (knob, host) (knob_leased_count{_VM}) > 0",
            text="virtpilot holds {{knob}} on {{host}}",
            color="orange",
        ),
        Note(
            name="Knobs set",
            query=f"max by (knob, host) (changes(knob_value_count{_VM}[$__rate_interval])) > 0",
            text="{{knob}} was set on {{host}}",
            color="blue",
        ),
    ),
)
