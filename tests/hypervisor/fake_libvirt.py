"""A stand-in for libvirt-python with faults on order: what a real libvirtd cannot be made to do at a chosen moment."""

# ruff: noqa: N802, N815 - the names are libvirt's
from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

WEB: Final = "00000000-0000-4000-8000-000000000001"
DB: Final = "00000000-0000-4000-8000-000000000002"


class FakeLibvirtError(Exception):
    """libvirt.libvirtError."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self._code = code

    def get_error_code(self) -> int:
        return self._code


class FakeDomain:
    """virDomain."""

    def __init__(self, owner: FakeLibvirt, uuid: str, name: str, stats: Mapping[str, Any]) -> None:
        self._owner = owner
        self._uuid = uuid
        self._name = name
        self.stats = dict(stats)
        self.run = 1
        self.shares: int | None = 1024
        self.metadata_text: str | None = None
        self.persistent = True
        self.job: dict[str, Any] = {"type": 0}
        self.xml = XML
        self.inside: dict[str, Any] = {}
        self.schedule: dict[str, int] = {}
        self.stuck: Hang | None = None
        self.stuck_state: Hang | None = None
        self._job = threading.Lock()

    def told(self, wanted: int) -> dict[str, Any]:
        """Return the statistics as the bulk call tells them with NOWAIT: who is asked already is passed over."""
        if not wanted & FakeLibvirt.VIR_DOMAIN_STATS_BALLOON:
            return _chosen(self.stats, wanted)
        if not self._job.acquire(blocking=False):
            return {name: value for name, value in _chosen(self.stats, wanted).items() if name not in ASKED_OF_QEMU}
        try:
            if self.stuck is not None:
                self.stuck()
            return _chosen(self.stats, wanted)
        finally:
            self._job.release()

    def UUIDString(self) -> str:
        return self._uuid

    def name(self) -> str:
        return self._name

    def ID(self) -> int:
        return self.run

    def state(self) -> list[int]:
        self._owner.called("state")
        if self.stuck_state is not None:
            self.stuck_state()
        return [self.stats["state.state"], 1]

    def isActive(self) -> int:
        return int(self.run >= 0)

    def schedulerParametersFlags(self, _flags: int) -> dict[str, int]:
        self._owner.called("schedulerParametersFlags")
        return self.schedule if self.shares is None else {"cpu_shares": self.shares, **self.schedule}

    def setSchedulerParametersFlags(self, values: dict[str, int], _flags: int) -> None:
        self._owner.called("setSchedulerParametersFlags")
        self.shares = values["cpu_shares"]

    def metadata(self, _kind: int, _namespace: str) -> str:
        self._owner.called("metadata")
        if self.metadata_text is None:
            raise FakeLibvirtError("no metadata", FakeLibvirt.VIR_ERR_NO_DOMAIN_METADATA)
        return self.metadata_text

    def isPersistent(self) -> bool:
        self._owner.called("isPersistent")
        return self.persistent

    def migrateToURI3(self, uri: str, params: dict[str, Any], flags: int) -> None:
        self._owner.migrations.append((self._uuid, uri, flags))
        self._owner.params.append(params)
        self._owner.called("migrateToURI3")
        self._owner.elsewhere[self._uuid] = self._owner.domains.pop(self._uuid)

    def migrate3(self, target: FakeConnection, params: dict[str, Any], flags: int) -> FakeDomain:
        self._owner.migrations.append((self._uuid, target.uri, flags))
        self._owner.params.append(params)
        self._owner.called("migrate3")
        self._owner.elsewhere[self._uuid] = self._owner.domains.pop(self._uuid)
        return self

    def migrateSetMaxDowntime(self, milliseconds: int, _flags: int) -> None:
        self._owner.called(f"migrateSetMaxDowntime {milliseconds}")

    def migrateStartPostCopy(self, _flags: int) -> None:
        self._owner.called("migrateStartPostCopy")

    def jobStats(self) -> dict[str, Any]:
        self._owner.called("jobStats")
        return self.job

    def jobInfo(self) -> list[int]:
        self._owner.called("jobInfo")
        return [self.job["type"]]

    def startDirtyRateCalc(self, seconds: int, _flags: int) -> None:
        self._owner.called(f"startDirtyRateCalc {self._name}")
        self.stats |= {"dirtyrate.calc_status": 1, "dirtyrate.calc_period": seconds}

    def guestInfo(self, wanted: int, _flags: int) -> dict[str, Any]:
        self._owner.called(f"guestInfo {self._name}")
        self._owner.wanted_inside.append(wanted)
        return self.inside

    def abortJob(self) -> None:
        self._owner.called("abortJob")

    def info(self) -> list[int]:
        self._owner.called("info")
        return [self.stats["state.state"], 2048, 1024, 1, 5_000_000_000]

    def getCPUStats(self, _total: bool) -> list[dict[str, int]]:
        self._owner.called("getCPUStats")
        return [{"cpu_time": 6_000_000_000, "user_time": 4, "system_time": 2}]

    def memoryStats(self) -> dict[str, int]:
        self._owner.called("memoryStats")
        return {"actual": 1024, "rss": 99}

    def XMLDesc(self) -> str:
        self._owner.called("XMLDesc")
        if self._uuid not in self._owner.domains:
            raise FakeLibvirtError("no domain with matching uuid", FakeLibvirt.VIR_ERR_NO_DOMAIN)
        return self.xml

    def interfaceStats(self, _target: str) -> list[int]:
        self._owner.called("interfaceStats")
        return [1, 2, 3, 4, 5, 6, 7, -1]

    def blockStats(self, _target: str) -> list[int]:
        self._owner.called("blockStats")
        return [1, 2, 3, 4, -1]


class FakeConnection:
    """virConnect."""

    def __init__(self, owner: FakeLibvirt, uri: str) -> None:
        self._owner = owner
        self.uri = uri
        self.alive = True
        self.closed = False

    def isAlive(self) -> int:
        return int(self.alive)

    def setKeepAlive(self, _interval: int, _count: int) -> None:
        self._owner.called("setKeepAlive")

    def close(self) -> None:
        self.closed = True

    def getAllDomainStats(self, wanted: int, _flags: int) -> list[tuple[FakeDomain, dict[str, Any]]]:
        self._owner.called("getAllDomainStats")
        self._owner.wanted.append(wanted)
        if wanted & FakeLibvirt.VIR_DOMAIN_STATS_BALLOON:
            self._owner.called("getAllDomainStats of QEMU")
        return [(domain, domain.told(wanted)) for domain in list(self._owner.domains.values())]

    def domainListGetStats(
        self, domains: list[FakeDomain], wanted: int, _flags: int
    ) -> list[tuple[FakeDomain, dict[str, Any]]]:
        (domain,) = domains
        self._owner.called(f"domainListGetStats {domain.name()}")
        there = domain.UUIDString() in self._owner.domains
        return [(domain, domain.told(wanted))] if there else []

    def listAllDomains(self, _flags: int = 0) -> list[FakeDomain]:
        self._owner.called("listAllDomains")
        return list(self._owner.domains.values())

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:
        self._owner.called("lookupByUUIDString")
        try:
            return (self._owner.domains if self.uri.startswith("fake:") else self._owner.elsewhere)[uuid]
        except KeyError:
            raise FakeLibvirtError("no domain with matching uuid", FakeLibvirt.VIR_ERR_NO_DOMAIN) from None

    def domainEventRegisterAny(
        self, domain: FakeDomain | None, event: int, callback: Callable[..., None], _opaque: object
    ) -> int:
        self._owner.called("domainEventRegisterAny")
        if domain is None:
            self._owner.called(f"domainEventRegisterAny {event}")
            self._owner.listeners.append((self, event, callback))
        else:
            self._owner.tell_completed = lambda told: callback(self, domain, told, None)
        return 1

    def getInfo(self) -> list[Any]:
        self._owner.called("getInfo")
        return ["x86_64", 4096, 4, 2000, 1, 1, 4, 1]

    def getCapabilities(self) -> str:
        return "<capabilities><host><migration_features><live/></migration_features></host></capabilities>"

    def getType(self) -> str:
        return self._owner.driver

    def getLibVersion(self) -> int:
        return 9_000_000

    def getVersion(self) -> int:
        return 7_002_012


class FakeLibvirt:
    """The module `libvirt`: `on[call]` runs at the start of that call, to hang it or to raise."""

    libvirtError = FakeLibvirtError
    VIR_ERR_NO_SUPPORT = 3
    VIR_ERR_INVALID_ARG = 8
    VIR_ERR_CONFIG_UNSUPPORTED = 67
    VIR_ERR_OPERATION_TIMEOUT = 68
    VIR_ERR_ARGUMENT_UNSUPPORTED = 74
    VIR_ERR_OPERATION_UNSUPPORTED = 84
    VIR_ERR_AGENT_UNRESPONSIVE = 86
    VIR_ERR_NO_DOMAIN = 42
    VIR_ERR_NO_DOMAIN_METADATA = 80
    VIR_ERR_SYSTEM_ERROR = 38
    VIR_DOMAIN_STATS_STATE = 1
    VIR_DOMAIN_STATS_CPU_TOTAL = 2
    VIR_DOMAIN_STATS_BALLOON = 4
    VIR_DOMAIN_STATS_VCPU = 8
    VIR_DOMAIN_STATS_INTERFACE = 16
    VIR_DOMAIN_STATS_BLOCK = 32
    VIR_DOMAIN_STATS_PERF = 64
    VIR_DOMAIN_STATS_IOTHREAD = 128
    VIR_DOMAIN_STATS_DIRTYRATE = 512
    VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT = 2**29
    VIR_DOMAIN_AFFECT_LIVE = 1
    VIR_DOMAIN_VCPU_GUEST = 8
    VIR_ERR_INTERNAL_ERROR = 1
    VIR_DOMAIN_METADATA_ELEMENT = 2
    VIR_DOMAIN_DIRTYRATE_MEASURED = 2
    VIR_DOMAIN_GUEST_INFO_FILESYSTEM = 16
    VIR_DOMAIN_JOB_NONE = 0
    VIR_DOMAIN_JOB_BOUNDED = 1
    VIR_DOMAIN_JOB_UNBOUNDED = 2
    VIR_CONNECT_LIST_DOMAINS_ACTIVE = 1
    VIR_DOMAIN_EVENT_ID_LIFECYCLE = 0
    VIR_DOMAIN_EVENT_ID_TUNABLE = 17
    VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION = 20
    VIR_DOMAIN_EVENT_ID_JOB_COMPLETED = 21
    VIR_MIGRATE_LIVE = 1
    VIR_MIGRATE_PEER2PEER = 2
    VIR_MIGRATE_PERSIST_DEST = 8
    VIR_MIGRATE_UNDEFINE_SOURCE = 16
    VIR_MIGRATE_NON_SHARED_DISK = 64
    VIR_MIGRATE_ABORT_ON_ERROR = 4096
    VIR_MIGRATE_POSTCOPY = 32768
    VIR_MIGRATE_PARALLEL = 131072
    VIR_MIGRATE_PARAM_BANDWIDTH = "bandwidth"
    VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY = "bandwidth.postcopy"
    VIR_MIGRATE_PARAM_MIGRATE_DISKS = "migrate_disks"
    VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS = "parallel.connections"
    VIR_MIGRATE_AUTO_CONVERGE = 8192

    def __init__(self) -> None:
        self.driver = "QEMU"
        self.on: dict[str, Callable[[], None]] = {}
        self.calls: Counter[str] = Counter()
        self.wanted: list[int] = []
        self.wanted_inside: list[int] = []
        self.migrations: list[tuple[str, str, int]] = []
        self.params: list[dict[str, Any]] = []
        self.elsewhere: dict[str, FakeDomain] = {}
        self.connections: list[FakeConnection] = []
        self.listeners: list[tuple[FakeConnection, int, Callable[..., None]]] = []
        self.tell_completed: Callable[[dict[str, Any]], None] = lambda _told: None
        self.domains = {
            uuid: FakeDomain(self, uuid, name, STATS) for uuid, name in ((WEB, "web-1"), (DB, "db-1"))
        }  # fmt: skip

    def open(self, uri: str) -> FakeConnection:
        self.called("open")
        self.called(f"open {uri}")
        self.connections.append(FakeConnection(self, uri))
        return self.connections[-1]

    def called(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.on:
            self.on[name]()

    def tell(self, event: int, uuid: str, *words: Any) -> None:
        """Tell everybody who listens of an event of a guest, as libvirt's event loop does."""
        for connection, wanted, callback in tuple(self.listeners):
            if wanted == event and connection.alive and not connection.closed:
                callback(connection, self.domains[uuid], *words, None)

    def cut(self) -> None:
        """Break every connection, as a libvirtd that ends does."""
        for connection in self.connections:
            connection.alive = False


XML: Final = """<domain><devices>
<interface><target dev='vnet0'/></interface><disk><target dev='vda'/></disk>
</devices></domain>"""
STATS: Final = {
    "state.state": 1,
    "state.reason": 1,
    "cpu.time": 5,
    "balloon.current": 1024,
    "balloon.rss": 2048,
    "vcpu.current": 1,
    "block.count": 0,
    "net.count": 0,
}
ASKED_OF_QEMU: Final = frozenset({"balloon.rss"})
_GROUPS: Final = {
    "state": 1,
    "cpu": 2,
    "balloon": 4,
    "vcpu": 8,
    "net": 16,
    "block": 32,
    "perf": 64,
    "iothread": 128,
    "dirtyrate": 512,
}


def _chosen(stats: Mapping[str, Any], wanted: int) -> dict[str, Any]:
    return {name: value for name, value in stats.items() if wanted & _GROUPS[name.partition(".")[0]]}


WITH_AGENT: Final = XML.replace(
    "</devices>", "<channel><target name='org.qemu.guest_agent.0' state='connected'/></channel></devices>"
)


class Hang:
    """Holds whoever calls until it is let go; `begun` tells that somebody is held. Once only, or each time."""

    def __init__(self, times: int = 1_000) -> None:
        self.begun = threading.Event()
        self._free = threading.Event()
        self._times = times

    def __call__(self) -> None:
        if self._times > 0:
            self._times -= 1
            self.begun.set()
            self._free.wait(30)

    def wait(self, seconds: float) -> None:
        """Hold whoever calls for so long."""
        self._free.wait(seconds)

    def let_go(self) -> None:
        self._free.set()


def fail(text: str, code: int = 1, times: int = 1_000) -> Callable[[], None]:
    """Return a fault that raises `times` times."""
    left = [times]

    def fault() -> None:
        if left[0] > 0:
            left[0] -= 1
            raise FakeLibvirtError(text, code)

    return fault
