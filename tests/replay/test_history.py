"""Where recorded measurements are read from: a file store, line protocol, a real VictoriaMetrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing

from tests.replay.recorded import START_NS, guest, host, starved, written
from tests.services import VictoriaMetrics, http
from virtpilot.clock import SECOND, SystemClock
from virtpilot.errors import InputError, StoreUnavailable
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Sample
from virtpilot.pipeline.history import Span, in_order, read
from virtpilot.pipeline.store.file import FileStore

WANTED = {"host": frozenset({"cpu_usage_ratio"}), "vm": frozenset({"cpu_steal_ratio", "state_code"})}


def kept(samples: list[Sample]) -> list[Sample]:
    """The wanted part of samples."""
    found = []
    for one in samples:
        fields = {name: value for name, value in one.fields.items() if name in WANTED.get(one.measurement, ())}
        if fields:
            found.append(Sample(one.measurement, one.tags, fields, one.time_ns))
    return found


def test_a_file_store_and_its_lines_tell_the_same(tmp_path: Path) -> None:
    samples = starved(60)
    store = FileStore(tmp_path / "store")
    for number, start in enumerate(range(0, len(samples), 5)):
        store.write(f"h/b/{number}", encode_lines(samples[start : start + 5]))
    store.close()
    (tmp_path / "plain").mkdir()
    written(tmp_path / "plain" / "a.line", samples[:20])
    written(tmp_path / "plain" / "b.line", samples[20:])
    wanted = in_order(kept(samples))
    assert read(str(tmp_path / "store"), WANTED, Span()) == wanted
    assert read(str(tmp_path / "plain"), WANTED, Span()) == wanted
    assert read(str(written(tmp_path / "one.txt", samples)), WANTED, Span()) == wanted
    before = sorted((tmp_path / "store").iterdir())
    assert sorted((tmp_path / "store").iterdir()) == before


def test_lines_that_are_none_are_left_out_and_told(tmp_path: Path) -> None:
    """Of each file with any: how many, and the first with what is wrong with it."""
    samples = starved(20)
    whole = written(tmp_path / "whole.lp", samples)
    broken = tmp_path / "broken.lp"
    broken.write_bytes(b"nonsense\n" + whole.read_bytes() + b"host,host=h1 cpu_usage_ratio=much 17\n")
    with structlog.testing.capture_logs() as logs:
        assert read(str(broken), WANTED, Span()) == read(str(whole), WANTED, Span())
    (told,) = logs
    assert (told["file"], told["lines"], told["first"]) == (str(broken), 2, "nonsense")
    assert told["reason"] == "column 9: expected fields"


def test_what_was_sent_late_stands_where_it_was_measured(tmp_path: Path) -> None:
    late = [host("h1", 10, 0.5), host("h1", 0, 0.4), guest("a", "h1", 10, 0.1, 0.2), host("h2", 10, 0.3)]
    found = read(str(written(tmp_path / "a.lp", late)), WANTED, Span())
    assert [(batch.host, batch.time_ns - START_NS, [one.measurement for one in batch.samples]) for batch in found] == [
        ("h1", 0, ["host"]),
        ("h1", 10 * SECOND, ["host", "vm"]),
        ("h2", 10 * SECOND, ["host"]),
    ]


def test_a_part_of_it_is_read_where_a_part_is_meant(tmp_path: Path) -> None:
    file = written(tmp_path / "a.lp", [host("h1", at, 0.5, cluster) for cluster in ("x", "y") for at in range(5)])
    with pytest.raises(InputError, match="it holds several clusters, say which one: x, y"):
        read(str(file), WANTED, Span())
    found = read(str(file), WANTED, Span(START_NS + SECOND, START_NS + 3 * SECOND, "x"))
    assert [batch.time_ns - START_NS for batch in found] == [SECOND, 2 * SECOND, 3 * SECOND]
    with pytest.raises(InputError, match="no sample"):
        read(str(file), WANTED, Span(cluster="z"))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.lp:0:0: cannot be read: No such file or directory"):
        read(str(tmp_path / "none.lp"), WANTED, Span())
    with pytest.raises(InputError, match="no sample"):
        read(str(tmp_path), WANTED, Span())
    with pytest.raises(StoreUnavailable):
        read("http://127.0.0.1:9", WANTED, Span())


@pytest.mark.server
def test_a_real_store_gives_back_what_it_took(victoriametrics: VictoriaMetrics, tmp_path: Path) -> None:
    # The store drops what lies beyond its retention, and keeps milliseconds.
    shift_ns = SystemClock().now_ns() // SECOND * SECOND - 3600 * SECOND - START_NS
    samples = [Sample(one.measurement, one.tags, one.fields, one.time_ns + shift_ns) for one in starved(120)]
    http(f"{victoriametrics.url}/api/v2/write?bucket=virtpilot", body=encode_lines(samples))
    http(f"{victoriametrics.url}/internal/force_flush")
    span = Span(START_NS + shift_ns, START_NS + shift_ns + 200 * SECOND, "c")
    found = read(victoriametrics.url, WANTED, span)
    assert found == in_order(sorted(kept(samples), key=lambda one: (one.measurement, sorted(one.tags.items()))))
    with pytest.raises(InputError, match="no sample"):
        read(victoriametrics.url, WANTED, Span(span.start_ns, span.end_ns, 'x"} or {a="'))
