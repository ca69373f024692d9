"""VictoriaMetrics and InfluxDB 2 through influxdb-client: prebuilt lines, mapped errors, and what is really on disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

import msgspec
import structlog
import urllib3
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException
from msgspec import Meta

from virtpilot.clock import Clock, seconds
from virtpilot.errors import StoreRefused, StoreUnavailable
from virtpilot.pipeline.settings import read_secret

log = structlog.get_logger(__name__)

# VictoriaMetrics tells when it was started; another time means that it has forgotten what was not on disk.
_STARTED: Final = re.compile(rb"^vm_app_start_timestamp(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_CHECK_NS: Final = seconds(2)
_REFUSED: Final = frozenset({400, 413, 422})


class StoreOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time-series store."""

    kind: Annotated[Literal["victoriametrics", "influxdb2"], Meta(description="Which store it is.")] = "victoriametrics"
    url: Annotated[str, Meta(description="Its address.", pattern="^https?://")] = "http://127.0.0.1:8428"
    org: Annotated[str, Meta(description="InfluxDB's organisation.")] = "virtpilot"
    bucket: Annotated[str, Meta(description="InfluxDB's bucket.")] = "virtpilot"
    token_file: Annotated[str, Meta(description="A file that holds InfluxDB's token alone.")] = ""
    token_env: Annotated[str, Meta(description="Or the environment variable that does.")] = ""
    timeout_s: Annotated[float, Meta(description="A request without an answer ends after this.", gt=0, le=300)] = 10.0
    gzip: Annotated[bool, Meta(description="Compress what is sent.")] = False
    hold_s: Annotated[
        float,
        Meta(
            description="VictoriaMetrics keeps what it takes in memory for seconds: reported stored after this.", ge=0
        ),
    ] = 15.0


class InfluxStore:
    """Writes line protocol through `/api/v2/write`."""

    def __init__(self, options: StoreOptions, clock: Clock) -> None:
        token = read_secret(
            Path(options.token_file) if options.token_file else None, options.token_env or None, name="token"
        )
        self._options = options
        self._clock = clock
        self._client: Any = InfluxDBClient(
            url=options.url,
            token=token or "",
            org=options.org,
            timeout=int(options.timeout_s * 1000),
            enable_gzip=options.gzip,
            retries=urllib3.Retry(0),
        )
        self._writes = self._client.write_api(write_options=SYNCHRONOUS)
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(options.timeout_s), retries=False)
        self._held: dict[str, int] = {}
        self._started = b""
        self._checked_ns = -_CHECK_NS
        self.restarts = 0

    def write(self, message_id: str, lines: bytes) -> None:
        """Write one message; raises StoreUnavailable or StoreRefused."""
        try:
            self._writes.write(
                bucket=self._options.bucket,
                org=self._options.org,
                record=lines,
                write_precision=cast("WritePrecision", WritePrecision.NS),
            )
        except ApiException as error:
            reason = str(error.reason or error.body or error)[:300]
            if error.status in _REFUSED:
                raise StoreRefused(f"{error.status}: {reason}") from error
            raise StoreUnavailable(f"{error.status}: {reason}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"{self._options.url}: {error}") from error
        self._held[message_id] = self._clock.monotonic_ns()

    def durable(self, now_ns: int) -> Sequence[str]:  # noqa: ARG002 - the wall clock may step: this counts its own time
        """Return what is known to be on disk; what a restarted store has forgotten is never reported."""
        if self._options.kind == "influxdb2":
            # InfluxDB 2 acknowledges after its write-ahead log.
            found = list(self._held)
            self._held.clear()
            return found
        present_ns = self._clock.monotonic_ns()
        if not self._held or present_ns - self._checked_ns < _CHECK_NS:
            return []
        self._checked_ns = present_ns
        if not self._same_store():
            return []
        old_ns = present_ns - seconds(self._options.hold_s)
        ready = [message_id for message_id, at_ns in self._held.items() if at_ns <= old_ns]
        for message_id in ready:
            del self._held[message_id]
        return ready

    def _same_store(self) -> bool:
        """Ask whether the store has run on since it took what is held; forget that where it has not."""
        try:
            answer = self._http.request("GET", f"{self._options.url.rstrip('/')}/metrics")
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        found = _STARTED.search(answer.data)
        if answer.status != 200 or found is None:
            return False
        if self._started and found[1] != self._started:
            self.restarts += 1
            log.warning("store was restarted: agents send again what it had not reported", messages=len(self._held))
            self._held.clear()
        self._started = found[1]
        return True

    def close(self) -> None:
        """Let go of the connections."""
        self._writes.close()
        self._client.close()
        self._http.clear()  # type: ignore[no-untyped-call]
