"""InfluxDB 2's write API and what goes wrong with it: tokens, limits, partial writes, waits, lines that break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.store.influxdb2 import BUCKET, ORG, TOKEN, Answer, InfluxDB2, influxdb2
from virtpilot.clock import SECOND, VirtualClock
from virtpilot.errors import StoreRefused, StoreUnavailable
from virtpilot.model import Message
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.store.influx import InfluxStore
from virtpilot.pipeline.store.options import StoreOptions
from virtpilot.pipeline.writer import Writer
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

TOPICS = Topics("c")


@pytest.fixture
def double() -> Iterator[InfluxDB2]:
    with influxdb2() as made:
        yield made


class World:
    """A writer on the double, in virtual time."""

    def __init__(self, double: InfluxDB2, folder: Path, **options: object) -> None:
        self.clock = VirtualClock()
        self.folder = folder
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)
        given = {"org": ORG, "bucket": BUCKET, "token_file": str(folder / "token"), "timeout_s": 5.0}
        self.store = InfluxStore(StoreOptions(kind="influxdb2", url=double.url, **(given | options)), self.clock)  # type: ignore[arg-type]
        broker = MemoryBroker(self.clock)
        self.sender = broker.connect("agent")
        self.writer = Writer(broker.connect("writer"), self.store, TOPICS, self.clock, dead_letters=folder)

    def send(self, seq: int, lines: bytes) -> None:
        properties = {BOOT_PROPERTY: "b1", SEQUENCE_PROPERTY: str(seq)}
        self.sender.publish(Message(TOPICS.metrics("h1"), lines, properties)).result(1)

    def dead(self) -> list[tuple[str, str]]:
        path = self.folder / "dead-letters.jsonl"
        rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [(row["line"], row["reason"]) for row in rows]


@pytest.mark.parametrize("gzip", [False, True])
def test_lines_arrive_with_token_org_bucket_and_precision(double: InfluxDB2, tmp_path: Path, gzip: bool) -> None:
    world = World(double, tmp_path, gzip=gzip)
    lines = [b"m,host=h1 f=%d %d" % (number, number) for number in range(500)]
    world.store.write("h1/b1/1", b"\n".join(lines))
    assert list(double.lines) == lines
    ((path, size),) = double.requests
    assert path == f"/api/v2/write?org={ORG}&bucket={BUCKET}&precision=ns"
    assert (size < 5000) == gzip
    assert list(world.store.durable(0)) == ["h1/b1/1"]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"token_file": ""}, r"^401: unauthorized access .*token_file"),
        ({"org": "other"}, r'^404: organization name "other" not found .*org'),
        ({"bucket": "other"}, r'^404: bucket "other" not found .*bucket'),
    ],
)
def test_what_the_config_has_wrong_is_said_and_waited_for(
    double: InfluxDB2, tmp_path: Path, options: dict[str, str], hint: str
) -> None:
    """The config can be repaired: nothing is refused for good."""
    world = World(double, tmp_path, **options)
    with pytest.raises(StoreUnavailable, match=hint):
        world.store.write("h1/b1/1", b"m f=1 1\n")
    world.send(1, b"m f=1 1\n")
    assert world.writer.step(0) == 0
    assert (world.writer.store_takes, world.dead()) == (False, [])


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept_to(double: InfluxDB2, tmp_path: Path, status: int, form: str) -> None:
    world = World(double, tmp_path)
    given = "40" if form == "seconds" else formatdate(world.clock.now_ns() / SECOND + 40, usegmt=True)
    double.answers.append(Answer(status, {"code": "too many requests", "message": "later"}, {"Retry-After": given}))
    world.send(1, b"m f=1 1\n")
    for _ in range(38):
        assert world.writer.step(0) == 0
        world.clock.advance(1)
    assert len(double.requests) == 1
    world.clock.advance(2)
    assert world.writer.step(0) == 1
    assert list(double.lines) == [b"m f=1 1"]


@pytest.mark.parametrize("given", ["", "soon", "-5", "9" * 400, "Thu, 99 Foo 2099 99:99:99 GMT", "\u0661"])
def test_a_retry_after_that_is_none_asks_for_no_more_than_an_hour(
    double: InfluxDB2, tmp_path: Path, given: str
) -> None:
    world = World(double, tmp_path)
    double.answers.append(Answer(503, "busy", {"Retry-After": given.encode().decode("latin-1")}))
    with pytest.raises(StoreUnavailable, match="busy") as told:
        world.store.write("h1/b1/1", b"m f=1 1\n")
    assert told.value.retry_after_s in (0.0, 3600.0)


def test_broken_lines_and_slow_answers_are_waited_out(double: InfluxDB2, tmp_path: Path) -> None:
    world = World(double, tmp_path, timeout_s=0.3)
    double.answers += [
        Answer(0),
        Answer(204, hang=True),
        Answer(500, "<html>oops"),
        Answer(502, b"\xff".decode("latin-1")),
    ]
    world.send(1, b"m f=1 1\n")
    for _ in range(4):
        assert world.writer.step(0) == 0
        world.clock.advance(10)
    assert world.writer.step(0) == 1
    assert (list(double.lines), world.dead()) == ([b"m f=1 1"], [])


def test_of_a_partial_write_only_the_named_lines_are_put_aside(double: InfluxDB2, tmp_path: Path) -> None:
    """What is malformed to us never comes there: this is what only the store objects to."""
    world = World(double, tmp_path)
    lines = [b"m f=%d %d" % (number, number) for number in range(1000)]
    said = "unable to parse 'm f=3 3': conflict\nunable to parse 'm f=700 700': too bad"
    partial = Answer(400, {"code": "invalid", "message": said})
    double.answers += [partial, partial]
    world.send(1, b"\n".join(lines))
    assert world.writer.step(0) == 1
    assert world.dead() == [("m f=3 3", "conflict"), ("m f=700 700", "too bad")]
    assert set(double.lines) == set(lines) - {lines[3], lines[700]}
    assert len(double.requests) <= 5, "named lines need no search"


@pytest.mark.parametrize(
    "body",
    [
        {"code": "invalid", "message": "failed to parse line protocol: errors encountered on line(s)", "line": 2},
        {"code": "invalid", "message": "error parsing line 2 (1-based): Invalid field value"},
    ],
)
def test_a_line_that_is_named_by_its_number_is_found(double: InfluxDB2, tmp_path: Path, body: object) -> None:
    world = World(double, tmp_path)
    double.answers += [Answer(400, body), Answer(400, body)]
    world.send(1, b"m f=1 1\nm f=2 2\nm f=3 3\n")
    assert world.writer.step(0) == 1
    assert [line for line, _ in world.dead()] == ["m f=2 2"]
    assert set(double.lines) == {b"m f=1 1", b"m f=3 3"}


def test_malformed_lines_and_old_points_go_aside_with_the_reason_and_the_rest_is_stored(
    double: InfluxDB2, tmp_path: Path
) -> None:
    world = World(double, tmp_path)
    double.oldest_ns = 50
    lines = [b"m f=%d %d" % (number, number) for number in range(40, 80)] + [b"no line at all"]
    world.send(1, b"\n".join(lines))
    world.send(2, b"m f=99 99\n")
    assert world.writer.step(0) == 2
    assert set(double.lines) == {*lines[10:40], b"m f=99 99"}
    dead = dict(world.dead())
    assert set(dead) == {line.decode() for line in [*lines[:10], lines[40]]}
    assert all("retention" in dead[f"m f={number} {number}"] for number in range(40, 50))


def test_what_is_too_large_goes_in_parts_from_then_on(double: InfluxDB2, tmp_path: Path) -> None:
    world = World(double, tmp_path)
    double.max_bytes = 20_000
    lines = [b"m,series=%06d f=%d %d" % (number, number, number) for number in range(5000)]
    world.store.write("h1/b1/1", b"\n".join(lines))
    assert sorted(double.lines) == sorted(lines)
    before = len(double.requests)
    world.store.write("h1/b1/2", b"\n".join(lines))
    assert all(size <= 20_000 for _, size in double.requests[before:])
    assert list(world.store.durable(0)) == ["h1/b1/1", "h1/b1/2"]
    double.max_bytes = 10
    with pytest.raises(StoreRefused, match="413"):
        world.store.write("h1/b1/3", b"m,tag=0123456789 f=1 1\n")


def test_a_store_that_contradicts_itself_is_not_asked_for_ever(double: InfluxDB2, tmp_path: Path) -> None:
    """It takes each line and refuses all of them together."""
    world = World(double, tmp_path)
    no, yes = Answer(400, "no"), Answer(204)
    double.answers += [no, no, yes, yes, no]
    world.send(1, b"m f=1 1\nm f=2 2\n")
    assert world.writer.step(0) == 1
    assert [line for line, _ in world.dead()] == ["m f=1 1", "m f=2 2"]
    assert world.writer.reported == 1


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b'evil s="', b'",t=1 3'),  # a string goes on over line feeds
        (b'evil,t=a" s="', b'",t=1 3'),
        (b"evil,t=a\\", b"evil f=1 3"),  # a backslash takes the line feed's meaning
    ],
)
def test_no_message_takes_the_next_one_into_a_value_of_its_own(
    double: InfluxDB2, tmp_path: Path, before: bytes, behind: bytes
) -> None:
    """InfluxDB would take all three as one point, and say nothing."""
    world = World(double, tmp_path)
    stranger = TOPICS.metrics("h2")
    world.sender.publish(Message(stranger, before)).result(1)
    world.send(1, b"m f=1 1\n")
    world.sender.publish(Message(stranger, behind)).result(1)
    assert world.writer.step(0) == 3
    assert b"m f=1 1" in double.lines
    assert all(b"\n" not in line for line in double.lines)


@pytest.mark.parametrize("status", [200, 202])
def test_an_answer_that_is_no_stores_is_not_taken_for_one(double: InfluxDB2, tmp_path: Path, status: int) -> None:
    """A proxy's page for people, or a server that only queues: what nobody has stored is neither told nor forgotten."""
    world = World(double, tmp_path)
    double.answers += [Answer(status, "<html>who are you?</html>")] * 2
    world.send(1, b"m f=1 1\n")
    with pytest.raises(StoreUnavailable, match=rf"^{status}: .*answers 204 .*url, org and bucket"):
        world.store.write("h1/b1/1", b"m f=1 1\n")
    assert world.writer.step(0) == 0
    assert world.writer.reported == 0
    world.clock.advance(10)
    assert world.writer.step(0) == 1
    assert (list(double.lines), world.writer.reported) == ([b"m f=1 1"], 1)
