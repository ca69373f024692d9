"""The Fleet dashboard: how the hosts are, which guests suffer, what virtpilot does about it."""

from __future__ import annotations

from typing import Final

from virtpilot.grafana.moves import arrivals
from virtpilot.grafana.view import Board, Note, Section, Source, Variable, fresh, graph, number, ranking, stack

_CLUSTER: Final = '{cluster=~"$cluster"}'
_HOSTS: Final = '{cluster=~"$cluster",host=~"$host"}'
_JOBS: Final = '{job=~".+"}'
_GUEST: Final = "{{name}} on {{host}}"


def _now(metric: str) -> str:
    return fresh(metric, _HOSTS)


def _top(values: str, how: str = "sum") -> str:
    return f"topk(10, {how} by (name, host, vm) ({values}))"


_NOW: Final = Section(
    "Now",
    (
        number("Hosts", "Hosts that report.", "none", f"count({_now('host_cpus_count')})", nothing="none"),
        number("Running guests", "Guests that run on them.", "none", f"sum({_now('host_guests_running_count')})"),
        number(
            "vCPUs per CPU",
            "vCPUs of the running guests per CPU of their hosts.",
            "none",
            f"sum({_now('host_vcpus_allocated_count')}) / sum({_now('host_cpus_count')})",
            warn=4,
            bad=8,
            decimals=1,
        ),
        number(
            "Memory given to guests",
            "Current balloons of the running guests as a share of the hosts' memory.",
            "percentunit",
            f"sum({_now('host_memory_allocated_bytes')}) / sum({_now('host_memory_total_bytes')})",
            warn=0.9,
            bad=1.2,
        ),
        number(
            "Starved guests",
            "Guests whose vCPUs wait for a CPU more than a tenth of the time.",
            "none",
            f"sum({_now('vm_cpu_steal_ratio')} > bool 0.1)",
            warn=1,
            bad=5,
        ),
        number(
            "Leased knobs", "Knobs that virtpilot holds changed.", "none", f"sum({_now('knob_leased_count')})", warn=1
        ),
    ),
)

_PILOT: Final = Section(
    "What virtpilot does",
    (
        stack(
            "Moves",
            "Guests that have just come from another host, by the host that they came to; whoever moved them.",
            "none",
            (arrivals(_HOSTS, _CLUSTER, "host"), "to {{host}}"),
            width=6,
            decimals=0,
        ),
        stack(
            "Leases",
            "Knobs that virtpilot holds changed, until their lease ends.",
            "none",
            (f"sum by (knob) (knob_leased_count{_HOSTS})", "{{knob}}"),
            width=6,
            decimals=0,
        ),
        stack(
            "Firing signals",
            "Subjects for which a rule's condition holds, or has ceased to a moment ago.",
            "none",
            (f"sum by (rule) (virtpilot_signals_firing_count{_JOBS})", "{{rule}}"),
            width=6,
            decimals=0,
            source=Source.EXPORTERS,
        ),
        stack(
            "Decisions",
            "What rules wanted: accepted, or refused and by which guard.",
            "none",
            (f"sum(increase(virtpilot_decisions_accepted_total{_JOBS}[$__rate_interval]))", "accepted"),
            (
                f"sum by (guard) (increase(virtpilot_decisions_refused_total{_JOBS}[$__rate_interval]))",
                "refused: {{guard}}",
            ),
            width=6,
            source=Source.EXPORTERS,
        ),
    ),
)

_GUESTS: Final = Section(
    "Guests",
    (
        ranking(
            "Most starved guests",
            "Share of time that a guest's vCPUs were runnable without a CPU (steal), now.",
            "percentunit",
            _top(_now("vm_cpu_steal_ratio"), "max"),
            _GUEST,
            high=1,
            warn=0.05,
            bad=0.1,
            to_guest=True,
        ),
        graph(
            "Steal of the most starved",
            "The ten guests that were short of a CPU the most at each moment.",
            "percentunit",
            (_top(f"vm_cpu_steal_ratio{_HOSTS}", "max"), _GUEST),
            warn=0.05,
            bad=0.1,
            height=10,
            to_guest=True,
        ),
        ranking(
            "Busiest guests",
            "CPU time used per vCPU, now; QEMU's own threads count too.",
            "percentunit",
            _top(_now("vm_cpu_usage_ratio"), "max"),
            _GUEST,
            to_guest=True,
        ),
        ranking(
            "Fullest guests",
            "Memory that a guest's kernel could not give back without swapping, now.",
            "percentunit",
            _top(_now("vm_memory_used_ratio"), "max"),
            _GUEST,
            high=1,
            warn=0.85,
            bad=0.95,
            to_guest=True,
        ),
        ranking(
            "Disk traffic",
            "Bytes per second read and written by a guest's disks, now.",
            "Bps",
            _top(f"{_now('vm_disk_read_bytes_per_second')} + {_now('vm_disk_write_bytes_per_second')}"),
            _GUEST,
            to_guest=True,
        ),
        ranking(
            "Network traffic",
            "Bytes per second received and sent by a guest's NICs, now.",
            "Bps",
            _top(f"{_now('vm_net_receive_bytes_per_second')} + {_now('vm_net_transmit_bytes_per_second')}"),
            _GUEST,
            to_guest=True,
        ),
    ),
)

_CPU: Final = Section(
    "Hosts: CPU",
    (
        graph(
            "CPU usage",
            "Busy share of the CPUs that each host may use.",
            "percentunit",
            (f"host_cpu_usage_ratio{_HOSTS}", "{{host}}"),
            high=1,
            warn=0.85,
            bad=0.95,
        ),
        graph(
            "CPU pressure (PSI)",
            "Share of time that some task waited for a CPU.",
            "percentunit",
            (f"host_psi_cpu_some_ratio{_HOSTS}", "{{host}}"),
            high=1,
        ),
        graph(
            "Load per CPU",
            "Load average over one minute, per CPU.",
            "none",
            (f"host_load1_count{_HOSTS} / host_cpus_count{_HOSTS}", "{{host}}"),
            warn=1,
            bad=2,
            decimals=2,
        ),
        graph(
            "CPU time lost",
            "Idle time that waited for I/O, and time taken by a hypervisor below the host.",
            "percentunit",
            (f"host_cpu_iowait_ratio{_HOSTS}", "{{host}} I/O wait"),
            (f"host_cpu_steal_ratio{_HOSTS}", "{{host}} steal"),
        ),
    ),
)

_MEMORY: Final = Section(
    "Hosts: memory and I/O",
    (
        graph(
            "Memory used",
            "Share of the memory that new work cannot have.",
            "percentunit",
            (f"host_memory_used_ratio{_HOSTS}", "{{host}}"),
            high=1,
            warn=0.85,
            bad=0.95,
        ),
        graph(
            "Memory available",
            "What new work can have, and the swap in use.",
            "bytes",
            (f"host_memory_available_bytes{_HOSTS}", "{{host}} available"),
            (f"host_swap_used_bytes{_HOSTS}", "{{host}} swap"),
        ),
        graph(
            "Memory pressure (PSI)",
            "Share of time that some task, or all tasks, waited for memory.",
            "percentunit",
            (f"host_psi_memory_some_ratio{_HOSTS}", "{{host}} some"),
            (f"host_psi_memory_full_ratio{_HOSTS}", "{{host}} all"),
        ),
        graph(
            "I/O pressure (PSI)",
            "Share of time that some task, or all tasks, waited for I/O.",
            "percentunit",
            (f"host_psi_io_some_ratio{_HOSTS}", "{{host}} some"),
            (f"host_psi_io_full_ratio{_HOSTS}", "{{host}} all"),
        ),
        graph(
            "Disks",
            "Share of time that each host's busiest disk was busy.",
            "percentunit",
            (f"host_disks_utilisation_ratio{_HOSTS}", "{{host}}"),
            high=1,
            warn=0.8,
            bad=0.95,
        ),
        graph(
            "Disk latency",
            "Mean time of a request, over all disks of each host.",
            "s",
            (f"host_disks_latency_seconds{_HOSTS}", "{{host}}"),
        ),
        graph(
            "Network",
            "Bytes per second that each host's NICs receive and send.",
            "Bps",
            (f"host_nics_receive_bytes_per_second{_HOSTS}", "{{host}} received"),
            (f"host_nics_transmit_bytes_per_second{_HOSTS}", "{{host}} sent"),
        ),
        graph(
            "Packets dropped",
            "Packets per second that each host's NICs dropped.",
            "pps",
            (f"host_nics_receive_drops_per_second{_HOSTS} + host_nics_transmit_drops_per_second{_HOSTS}", "{{host}}"),
        ),
    ),
)

_COLLECTION: Final = Section(
    "Hosts: guests and collection",
    (
        stack(
            "Guests per host",
            "Running guests on each host: a move shows as a step.",
            "none",
            (f"host_guests_running_count{_HOSTS}", "{{host}}"),
            decimals=0,
        ),
        graph(
            "Time to collect",
            "How long each host's measurement takes; compare it with the agent's tick.",
            "s",
            (f"host_tick_duration_seconds{_HOSTS}", "{{host}}"),
        ),
    ),
)

BOARD: Final = Board(
    uid="virtpilot-fleet",
    title="virtpilot: Fleet",
    meaning="Hosts, pressure, the guests that suffer, and what virtpilot does about it.",
    variables=(
        Variable(name="cluster", label="Cluster", query="label_values(host_cpus_count, cluster)"),
        Variable(
            name="host", label="Host", query='label_values(host_cpus_count{cluster=~"$cluster"}, host)', many=True
        ),
    ),
    sections=(_NOW, _PILOT, _GUESTS, _CPU, _MEMORY, _COLLECTION),
    notes=(
        Note(
            name="Moves",
            query=arrivals(_HOSTS, _CLUSTER, "name, host"),
            text="{{name}} moved to {{host}}",
            color="purple",
        ),
    ),
)
