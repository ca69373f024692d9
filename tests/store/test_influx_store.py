"""The store through influxdb-client, against a real VictoriaMetrics that is killed, and a server that refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import MakeVictoriaMetrics
from tests.services import VictoriaMetrics, free_port, until
from virtpilot.clock import SECOND, SystemClock, VirtualClock
from virtpilot.errors import ConfigError, StoreRefused, StoreUnavailable
from virtpilot.pipeline.store.influx import InfluxStore
from virtpilot.pipeline.store.options import StoreOptions
from virtpilot.pipeline.store.victoriametrics import read_page


def values(server: VictoriaMetrics, name: str, now_ns: int) -> list[float]:
    rows = server.export(name, now_ns / SECOND - 60, now_ns / SECOND + 60).splitlines()
    return sorted(value for row in rows for value in json.loads(row)["values"])


@pytest.mark.server
@pytest.mark.parametrize("gzip", [False, True])
def test_what_is_written_is_in_the_store_and_twice_is_once(victoriametrics: VictoriaMetrics, gzip: bool) -> None:
    now_ns = SystemClock().now_ns()
    store = InfluxStore(StoreOptions(url=victoriametrics.url, gzip=gzip), SystemClock())
    for _ in range(2):
        lines = [
            b"probe_%d,cluster=c,name=a\\ b f=%d %d" % (gzip, number, now_ns + number * SECOND) for number in range(5)
        ]
        store.write("h/b/1", b"\n".join(lines))
    store.write_all([("h/b/2", b"probe_%d f=5i %d\n" % (gzip, now_ns)), ("h/b/3", b"")])
    store.close()
    assert values(victoriametrics, f"probe_{gzip:d}_f", now_ns) == [0, 1, 2, 3, 4, 5]


@pytest.mark.server
def test_stored_is_reported_after_the_hold_and_not_before(victoriametrics: VictoriaMetrics) -> None:
    clock = VirtualClock(SystemClock().now_ns())
    store = InfluxStore(StoreOptions(url=victoriametrics.url, hold_s=12), clock)
    store.write("h/b/1", b"hold f=1 %d\n" % clock.now_ns())
    clock.advance(6)
    store.write("h/b/2", b"hold f=2 %d\n" % clock.now_ns())
    for by_s in (3600, -7200):
        clock.step(by_s)
        assert list(store.durable(clock.now_ns())) == [], "the wall clock says nothing of what is on disk"
    clock.advance(6)
    assert list(store.durable(clock.now_ns())) == ["h/b/1"]
    clock.advance(6)
    assert list(store.durable(clock.now_ns())) == ["h/b/2"]
    assert list(store.durable(clock.now_ns())) == []
    store.close()


@pytest.mark.server
def test_what_a_killed_store_forgot_is_never_reported(make_victoriametrics: MakeVictoriaMetrics) -> None:
    """The kill comes before the store was ever asked: its start must be known from the first write on."""
    server = make_victoriametrics()
    clock = VirtualClock(SystemClock().now_ns())
    store = InfluxStore(StoreOptions(url=server.url, hold_s=12), clock)
    store.write("h/b/1", b"killed f=1 %d\n" % clock.now_ns())
    started = store._read_page().started
    server.kill()
    clock.advance(60)
    assert list(store.durable(clock.now_ns())) == []
    with pytest.raises(StoreUnavailable):
        store.write("h/b/2", b"killed f=2 %d\n" % clock.now_ns())
    # It tells its start in whole seconds.
    assert until(lambda: SystemClock().now_ns() // SECOND > int(started.split()[0]))
    server.start()
    clock.advance(60)
    assert list(store.durable(clock.now_ns())) == []
    assert store.restarts == 1
    store.write("h/b/1", b"killed f=1 %d\n" % clock.now_ns())
    clock.advance(60)
    assert list(store.durable(clock.now_ns())) == ["h/b/1"]
    store.close()


def test_a_store_that_is_not_there_is_unavailable() -> None:
    for kind in ("victoriametrics", "influxdb2"):
        options = StoreOptions(url=f"http://127.0.0.1:{free_port()}", timeout_s=1.0, kind=kind)
        store = InfluxStore(options, VirtualClock())
        with pytest.raises(StoreUnavailable):
            store.write("h/b/1", b"m f=1 1\n")
        assert list(store.durable(0)) == []
        store.close()


@contextmanager
def answering(status: int, body: bytes = b"{}") -> Iterator[tuple[str, list[str]]]:
    """A server that answers every write so: for what no server here answers."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, StoreRefused),
        (413, StoreRefused),
        (422, StoreRefused),
        (401, StoreUnavailable),
        (404, StoreUnavailable),
        (429, StoreUnavailable),
        (500, StoreUnavailable),
        (503, StoreUnavailable),
    ],
)
def test_answers_become_our_errors(status: int, error: type[Exception]) -> None:
    with answering(status, b'{"message": "why not"}') as (url, seen):
        store = InfluxStore(StoreOptions(url=url, kind="influxdb2"), VirtualClock())
        with pytest.raises(error, match="why not"):
            store.write("h/b/1", b"m f=1 1\n")
        assert len(seen) == 1, "the writer tries again, not the client"
        assert list(store.durable(0)) == []
        store.close()


def test_influxdb_has_on_disk_what_it_takes_and_gets_its_token(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    with answering(204, b"") as (url, seen):
        options = StoreOptions(url=url, kind="influxdb2", token_file=str(secret), org="o", bucket="k")
        store = InfluxStore(options, VirtualClock())
        store.write("h/b/1", b"m f=1 1\n")
        assert list(store.durable(0)) == ["h/b/1"]
        store.close()
    assert seen == ["/api/v2/write?org=o&bucket=k&precision=ns Token s3cret"]


def test_a_token_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token"):
        InfluxStore(StoreOptions(token_file=str(tmp_path / "none")), VirtualClock())


@pytest.mark.server
def test_lines_that_victoriametrics_drops_without_a_word_are_found(victoriametrics: VictoriaMetrics) -> None:
    now_ns = SystemClock().now_ns()
    store = InfluxStore(StoreOptions(url=victoriametrics.url, hold_s=0), SystemClock())
    day_ns = 24 * 3600 * SECOND
    good = b"silent,n=%d f=1 %d\n"
    bad = [
        (b"no line at all", "expected ="),
        (b"silent,n=old f=1 %d" % (now_ns - 400 * day_ns), "400.0 days old"),
        (b"silent,n=ahead f=1 %d" % (now_ns + 3 * day_ns), "3.0 days ahead"),
        (b"silent,n=huge f=1 %d" % 10**19, "64 bits"),
        (b'silent,n=open f=1,s="two', "not closed"),
        (b'lines" %d' % now_ns, "expected"),
    ]
    store.write("h/b/1", good % (1, now_ns))
    for seq, (line, _) in enumerate(bad, 2):
        store.write(f"h/b/{seq}", good % (seq, now_ns) + line + b"\nsilent,n=none f=1\n")
    safe: list[str] = []

    def all_safe() -> bool:
        safe.extend(store.durable(SystemClock().now_ns()))
        return len(safe) == 1 + len(bad)

    assert until(all_safe)
    found = {refused.message_id: refused for refused in store.refused()}
    assert sorted(found) == [f"h/b/{seq}" for seq in range(2, 2 + len(bad))]
    for seq, (line, reason) in enumerate(bad, 2):
        assert found[f"h/b/{seq}"].line == line
        assert reason in found[f"h/b/{seq}"].reason
    assert store.refused() == []
    whole = b'silent,n=open f=1,s="two\nlines" %d\n' % now_ns  # one line to us, and none to it
    store.write("h/b/9", whole)
    assert until(lambda: list(store.durable(SystemClock().now_ns())) == ["h/b/9"])
    assert [refused.line for refused in store.refused()] == whole.splitlines()
    assert values(victoriametrics, 'silent_f{n!="none"}', now_ns) == [1] * (1 + len(bad))
    assert values(victoriametrics, 'silent_f{n="none"}', now_ns), "a line without a time is none of the bad ones"
    store.close()


def test_victoriametrics_page_is_read() -> None:
    text = b'flag{name="retentionPeriod", value="%s", is_set="true"} 1\nvm_app_start_timestamp 17\n'
    for given, days in {b"12": 372, b"30d": 30, b"1.5y": 547.5, b"2w": 14, b"36h": 1.5}.items():
        page = read_page(text % given)
        assert page is not None
        assert page.retention_ns == days * 24 * 3600 * SECOND
    assert read_page(b"go_goroutines 4\n") is None
