"""VictoriaMetrics and InfluxDB 2 through influxdb-client: prebuilt lines, mapped errors, and what is really on disk.

VictoriaMetrics answers before its data is on disk and loses seconds of it on `kill -9`. So what it took counts as
stored after `hold_s`, and only where it has not been started anew since: another start means that it has forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
import urllib3

from virtpilot.clock import Clock, seconds
from virtpilot.errors import StoreUnavailable
from virtpilot.pipeline.lines import split
from virtpilot.pipeline.settings import read_secret
from virtpilot.pipeline.store.answers import TAKEN, TOO_LARGE, error_from
from virtpilot.pipeline.store.batch import Refused
from virtpilot.pipeline.store.options import StoreOptions
from virtpilot.pipeline.store.victoriametrics import SETTLED_NS, Page, Watch, read_page

_CHECK_NS: Final = seconds(1)
_LINES: Final = "text/plain; charset=utf-8"
_MAX_BODY_BYTES: Final = 16 << 20
_MIN_BODY_BYTES: Final = 1 << 10
log = structlog.get_logger(__name__)


class InfluxStore:
    """Writes line protocol through `/api/v2/write`."""

    def __init__(self, options: StoreOptions, clock: Clock) -> None:
        self.restarts = 0
        self._options = options
        self._clock = clock
        self._client = _client(options)
        self._writes = _write_service(self._client)
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(options.timeout_s), retries=False)
        self._held: OrderedDict[str, int] = OrderedDict()
        self._started: bytes | None = None
        self._watch = Watch()
        self._max_bytes = _MAX_BODY_BYTES
        self._asked_ns: int | None = None

    def write(self, message_id: str, lines: bytes) -> None:
        """Write one message."""
        self.write_all([(message_id, lines)])

    def write_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Write several messages as one; raises StoreUnavailable or StoreRefused, then the store has any of them."""
        self._know_its_start()
        for body in _bodies([lines.rstrip(b"\n") for _, lines in messages]):
            for part in split(body, self._max_bytes):
                self._post(part)
        now_ns = self._clock.monotonic_ns()
        for message_id, lines in messages:
            self._held.pop(message_id, None)
            self._held[message_id] = now_ns
            if not self._at_once:
                self._watch.written(message_id, lines, now_ns)

    def _post(self, body: bytes) -> None:
        from influxdb_client.rest import ApiException

        try:
            answer = self._writes.post_write_with_http_info(
                self._options.org, self._options.bucket, body, precision="ns", content_type=_LINES
            )
        except ApiException as error:
            if error.status == TOO_LARGE and self._max_bytes > _MIN_BODY_BYTES and body.count(b"\n") > 1:
                self._max_bytes = max(len(body) // 2, _MIN_BODY_BYTES)
                for part in split(body, self._max_bytes):
                    self._post(part)
                return
            said = error.body if isinstance(error.body, str) else (error.body or b"").decode(errors="replace")
            said = said or str(error.reason or "")
            raise error_from(error.status or 0, said, error.headers, body, self._clock.now_ns()) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"{self._options.url}: {error}") from error
        if (status := answer[1]) != TAKEN:
            said = f"a store that has taken it answers {TAKEN}"
            raise error_from(status, said, answer[2], body, self._clock.now_ns())

    def durable(self, now_ns: int) -> Sequence[str]:
        """Return what is known to be on disk; what a restarted store has forgotten is never reported."""
        present_ns = self._clock.monotonic_ns()
        old_ns = present_ns if self._at_once else present_ns - max(seconds(self._options.hold_s), SETTLED_NS)
        if not self._at_once and not (self._is_time(present_ns) and self._runs_on(present_ns, now_ns)):
            return []
        ready = []
        while self._held and next(iter(self._held.values())) <= old_ns:
            ready.append(self._held.popitem(last=False)[0])
        return ready

    def _is_time(self, present_ns: int) -> bool:
        """Return whether the store is to be asked how it is: once a second while there is anything to know."""
        if not self._held or (self._asked_ns is not None and present_ns - self._asked_ns < _CHECK_NS):
            return False
        self._asked_ns = present_ns
        return True

    def refused(self) -> Sequence[Refused]:
        """Return the lines that VictoriaMetrics has dropped although it said nothing."""
        return self._watch.refused()

    @property
    def _at_once(self) -> bool:
        return self._options.kind == "influxdb2"

    def _know_its_start(self) -> None:
        """Learn when the store was started before it takes anything: only so is a restart noticed."""
        if self._started is None and not self._at_once:
            page = self._read_page()
            self._started = page.started
            self._watch.begin(page)

    def _runs_on(self, present_ns: int, now_ns: int) -> bool:
        """Return whether the store can be asked; forget what is held where it was started anew."""
        try:
            page = self._read_page()
        except StoreUnavailable as error:
            log.info("store cannot be asked whether it was restarted", error=str(error))
            return False
        self._watch.look(page, present_ns, now_ns)
        if page.started != self._started:
            self.restarts += 1
            log.warning("store was restarted: agents send again what is not reported", messages=len(self._held))
            self._held.clear()
            self._started = page.started
        return True

    def _read_page(self) -> Page:
        url = f"{self._options.url.rstrip('/')}/metrics"
        try:
            answer = self._http.request("GET", url)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"{url}: {error}") from error
        page = read_page(answer.data) if answer.status == 200 else None
        if page is None:
            raise StoreUnavailable(f"{url}: {answer.status}, does not tell when the store was started")
        return page

    def close(self) -> None:
        """Let go of the connections."""
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


def _write_service(client: Any) -> Any:
    """Return what makes one request of a body as it is; the API above it keeps a success's status to itself."""
    from influxdb_client.service.write_service import WriteService

    return WriteService(client.api_client)  # type: ignore[no-untyped-call]


def _bodies(messages: Sequence[bytes]) -> Iterator[bytes]:
    """Yield what may go in one request: many messages, but each alone that could take those behind it into a string.

    For InfluxDB a line feed within quotes, or behind a backslash, ends no line.
    """
    together: list[bytes] = []
    for lines in messages:
        if b'"' in lines or lines.endswith(b"\\"):
            yield lines
        elif lines:
            together.append(lines)
    if together:
        yield b"\n".join(together)
