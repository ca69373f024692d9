"""VictoriaMetrics and InfluxDB 2 through influxdb-client: prebuilt lines, mapped errors, and what is really on disk.

VictoriaMetrics answers before its data is on disk and loses seconds of it on `kill -9`. So what it took counts as
stored after `hold_s`, and only where it has not been started anew since.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import structlog
import urllib3
from msgspec import Meta

from virtpilot.clock import Clock, seconds
from virtpilot.errors import StoreRefused, StoreUnavailable
from virtpilot.pipeline.settings import read_secret

# When the store was started: another time means that it has forgotten what was not on disk.
_STARTED: Final = re.compile(
    rb"^(?:vm_app_start_timestamp|process_start_time_seconds)(?:\{[^}]*\})? (\S+)$", re.MULTILINE
)
_CHECK_NS: Final = seconds(1)
_REFUSED: Final = frozenset({400, 413, 422})
_MAX_REASON_CHARS: Final = 300
log = structlog.get_logger(__name__)


class StoreOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time-series store."""

    kind: Annotated[
        Literal["victoriametrics", "influxdb2"],
        Meta(description="Which store it is; InfluxDB has on disk what it takes, VictoriaMetrics after `hold_s`."),
    ] = "victoriametrics"
    url: Annotated[str, Meta(description="Its address.", pattern="^https?://")] = "http://127.0.0.1:8428"
    org: Annotated[str, Meta(description="InfluxDB's organisation.")] = "virtpilot"
    bucket: Annotated[str, Meta(description="InfluxDB's bucket.")] = "virtpilot"
    token_file: Annotated[str, Meta(description="A file that holds InfluxDB's token alone.")] = ""
    token_env: Annotated[str, Meta(description="Or the environment variable that does.")] = ""
    timeout_s: Annotated[float, Meta(description="A request without an answer ends after this.", gt=0, le=300)] = 4.0
    gzip: Annotated[bool, Meta(description="Compress what is sent.")] = False
    hold_s: Annotated[
        float,
        Meta(description="Seconds that VictoriaMetrics has what it takes in memory only: stored after this.", ge=0),
    ] = 12.0


class InfluxStore:
    """Writes line protocol through `/api/v2/write`."""

    def __init__(self, options: StoreOptions, clock: Clock) -> None:
        self.restarts = 0
        self._options = options
        self._clock = clock
        self._client = _client(options)
        self._writes = _write_api(self._client)
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(options.timeout_s), retries=False)
        self._held: OrderedDict[str, int] = OrderedDict()
        self._started: bytes | None = None
        self._checked_ns: int | None = None

    def write(self, message_id: str, lines: bytes) -> None:
        """Write one message."""
        self.write_all([(message_id, lines)])

    def write_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Write several messages as one; raises StoreUnavailable or StoreRefused, then the store has any of them."""
        self._know_its_start()
        body = b"\n".join([lines.rstrip(b"\n") for _, lines in messages])
        if body.strip():
            self._post(body)
        now_ns = self._clock.monotonic_ns()
        for message_id, _ in messages:
            self._held.pop(message_id, None)
            self._held[message_id] = now_ns

    def _post(self, body: bytes) -> None:
        from influxdb_client.rest import ApiException

        try:
            self._writes.write(bucket=self._options.bucket, org=self._options.org, record=body, write_precision="ns")
        except ApiException as error:
            reason = f"{error.status}: {str(error.body or error.reason or error)[:_MAX_REASON_CHARS]}"
            if error.status in _REFUSED:
                raise StoreRefused(reason) from error
            raise StoreUnavailable(reason) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"{self._options.url}: {error}") from error

    def durable(self, now_ns: int) -> Sequence[str]:  # noqa: ARG002 # the wall clock may step: this has a clock of its own
        """Return what is known to be on disk; what a restarted store has forgotten is never reported."""
        hold_ns = 0 if self._at_once else seconds(self._options.hold_s)
        present_ns = self._clock.monotonic_ns()
        old_ns = present_ns - hold_ns
        if not self._held or next(iter(self._held.values())) > old_ns:
            return []
        if not self._at_once:
            if self._checked_ns is not None and present_ns - self._checked_ns < _CHECK_NS:
                return []
            self._checked_ns = present_ns
            if not self._runs_on():
                return []
        ready = []
        while self._held and next(iter(self._held.values())) <= old_ns:
            ready.append(self._held.popitem(last=False)[0])
        return ready

    @property
    def _at_once(self) -> bool:
        return self._options.kind == "influxdb2"

    def _know_its_start(self) -> None:
        """Learn when the store was started before it takes anything: only so is a restart noticed."""
        if self._started is None and not self._at_once:
            self._started = self._read_start()

    def _runs_on(self) -> bool:
        """Return whether the store can be asked; forget what is held where it was started anew."""
        try:
            started = self._read_start()
        except StoreUnavailable as error:
            log.info("store cannot be asked whether it was restarted", error=str(error))
            return False
        if started != self._started:
            self.restarts += 1
            log.warning("store was restarted: agents send again what is not reported", messages=len(self._held))
            self._held.clear()
            self._started = started
        return True

    def _read_start(self) -> bytes:
        url = f"{self._options.url.rstrip('/')}/metrics"
        try:
            answer = self._http.request("GET", url)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"{url}: {error}") from error
        found = _STARTED.findall(answer.data)
        if answer.status != 200 or not found:
            raise StoreUnavailable(f"{url}: {answer.status}, does not tell when the store was started")
        return b" ".join(found)

    def close(self) -> None:
        """Let go of the connections."""
        self._writes.close()
        self._client.close()
        self._http.clear()


def _client(options: StoreOptions) -> Any:
    from influxdb_client.client.influxdb_client import InfluxDBClient

    file = Path(options.token_file) if options.token_file else None
    return InfluxDBClient(
        url=options.url,
        token=read_secret(file, options.token_env or None, name="token") or "",
        org=options.org,
        timeout=int(options.timeout_s * 1000),
        enable_gzip=options.gzip,
        # The writer tries again, with its own waits.
        retries=urllib3.Retry(0),
    )


def _write_api(client: Any) -> Any:
    from influxdb_client.client.write_api import SYNCHRONOUS

    return client.write_api(write_options=SYNCHRONOUS)
