"""Recorded measurements in order of time: from a file store, files of line protocol, or a VictoriaMetrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec
import structlog
import urllib3

from virtpilot.clock import SECOND
from virtpilot.errors import InputError, Problem, StoreUnavailable
from virtpilot.fields import FIELDS
from virtpilot.lineprotocol import parse_wanted
from virtpilot.model import Sample
from virtpilot.pipeline.moment import zoned
from virtpilot.pipeline.store.file import messages

log = structlog.get_logger(__name__)

Wanted = Mapping[str, frozenset[str]]
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
_MILLISECOND: Final = 1_000_000
_TIMEOUT_S: Final = 120.0
_MARK: Final = b"# virtpilot "
# Hosts before their guests, as an agent tells them.
_ORDER: Final = {"host": 0, "vm": 1}
# What the store adds to the tags of what it takes.
_ADDED_TAGS: Final = frozenset({"__name__", "db"})


class Batch(msgspec.Struct, frozen=True):
    """What one host measured at one time."""

    host: str
    time_ns: int
    samples: list[Sample]


class Span(msgspec.Struct, frozen=True):
    """Which part of a history is meant; None: from its begin, to its end. Cluster "": whichever is in it."""

    start_ns: int | None = None
    end_ns: int | None = None
    cluster: str = ""

    def holds(self, sample: Sample) -> bool:
        """Tell whether a sample is meant."""
        return (
            (self.start_ns is None or sample.time_ns >= self.start_ns)
            and (self.end_ns is None or sample.time_ns <= self.end_ns)
            and self.cluster in {"", sample.tags.get("cluster", "")}
        )


class _Series(msgspec.Struct):
    """A line of what `/api/v1/export` answers."""

    metric: dict[str, str]
    values: list[float | None]
    timestamps: list[int]


def read(source: str, wanted: Wanted, span: Span) -> list[Batch]:
    """Return the wanted fields of a history; raises InputError where there is none, StoreUnavailable for a store."""
    if span.start_ns is not None and span.end_ns is not None and span.start_ns > span.end_ns:
        raise _unread(source, "the time from which it is read is after the one up to which it is")
    if source.startswith(("http://", "https://")):
        samples = _of_store(source, wanted, span)
    else:
        samples = _of_files(Path(source), wanted)
    batches = in_order(sample for sample in samples if span.holds(sample))
    if not batches:
        raise _unread(source, f"no sample of a host or guest in it{_meant(span)}")
    clusters = sorted({sample.tags.get("cluster", "") for batch in batches for sample in batch.samples})
    if len(clusters) > 1:
        raise _unread(source, f"it holds several clusters, say which one: {', '.join(clusters)}")
    return batches


def _meant(span: Span) -> str:
    """Return which part of a history is meant, in words."""
    parts = (
        (" from ", span.start_ns is not None and zoned(span.start_ns)),
        (" to ", span.end_ns is not None and zoned(span.end_ns)),
        (" of the cluster ", span.cluster),
    )
    return "".join(f"{word}{value}" for word, value in parts if value)


def in_order(samples: Iterable[Sample]) -> list[Batch]:
    """Return samples by time and host; what an agent had to send late stands where it was measured."""
    found: dict[tuple[int, str], list[Sample]] = {}
    for sample in samples:
        host = sample.tags.get("host", "")
        if host:
            found.setdefault((sample.time_ns, host), []).append(sample)
    return [
        Batch(host, time_ns, sorted(group, key=lambda sample: _ORDER.get(sample.measurement, 2)))
        for (time_ns, host), group in sorted(found.items(), key=lambda item: item[0])
    ]


def _unread(source: str, message: str) -> InputError:
    return InputError([Problem(source, 0, 0, message)])


def _of_files(path: Path, wanted: Wanted) -> Iterator[Sample]:
    """Yield the samples of a file store's folder, of a folder of line protocol, or of one such file; writes nothing."""
    try:
        files = sorted(file for file in path.rglob("*") if file.suffix in {".lp", ".line"}) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as opened:
                framed = opened.read(len(_MARK)) == _MARK
            bodies = (body for _id, body in messages(file)) if framed else _chunks(file)
            yield from _of_bodies(file, bodies, wanted)
    except OSError as error:
        raise _unread(str(error.filename or path), f"cannot be read: {error.strerror}") from error


def _of_bodies(file: Path, bodies: Iterable[bytes], wanted: Wanted) -> Iterator[Sample]:
    """Yield a file's samples, and tell of its lines that are none."""
    count, first = 0, None
    for body in bodies:
        parsed = parse_wanted(body, wanted)
        yield from parsed.samples
        count += len(parsed.bad)
        first = first or next(iter(parsed.bad), None)
    if first is not None:
        log.error(
            "lines of a history are no line protocol, they are left out",
            file=str(file), lines=count, first=first.text, reason=first.reason,
        )  # fmt: skip


def _chunks(file: Path, size: int = 4 << 20) -> Iterator[bytes]:
    """Yield a file in pieces of whole lines."""
    rest = b""
    with file.open("rb") as opened:
        while piece := opened.read(size):
            head, cut, tail = (rest + piece).rpartition(b"\n")
            rest = tail
            if cut:
                yield head
            elif len(rest) > MAX_LINE_BYTES:
                raise _unread(str(file), "no line protocol: a line without an end")
    yield rest


def _of_store(url: str, wanted: Wanted, span: Span) -> Iterator[Sample]:
    """Yield a store's samples; a value of each field stands in a series of its own, times are in ms."""
    split = {f"{measurement}_{field}": (measurement, field) for measurement, field in FIELDS}
    names = [f"{measurement}_{field}" for measurement, fields in sorted(wanted.items()) for field in sorted(fields)]
    found: dict[tuple[str, tuple[tuple[str, str], ...], int], dict[str, int | float]] = {}
    for line in _export(url, names, span):
        try:
            series = msgspec.json.decode(line, type=_Series)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StoreUnavailable(f"{url}: its export is not readable: {error}") from error
        measurement, field = split.get(series.metric.get("__name__", ""), ("", ""))
        if not measurement:
            continue
        tags = tuple(sorted((name, value) for name, value in series.metric.items() if name not in _ADDED_TAGS))
        for value, time_ms in zip(series.values, series.timestamps, strict=False):
            if value is not None:
                found.setdefault((measurement, tags, time_ms * _MILLISECOND), {})[field] = value
    # A store has no order: the same history shall be the same replay.
    for (measurement, tags, time_ns), fields in sorted(found.items(), key=lambda item: item[0]):
        yield Sample(measurement, dict(tags), fields, time_ns)


def _export(url: str, names: Iterable[str], span: Span) -> Iterator[bytes]:
    matcher = f'{{__name__=~"{"|".join(names)}"{f",cluster={_quoted(span.cluster)}" if span.cluster else ""}}}'
    query = {"match[]": matcher}
    for key, time_ns in (("start", span.start_ns), ("end", span.end_ns)):
        if time_ns is not None:
            query[key] = f"{time_ns / SECOND:.3f}"
    http = urllib3.PoolManager(timeout=urllib3.Timeout(_TIMEOUT_S), retries=False)
    try:
        address = f"{url.rstrip('/')}/api/v1/export"
        answer = http.request("POST", address, fields=query, encode_multipart=False, preload_content=False)
        if answer.status != 200:
            raise StoreUnavailable(f"{url}: {answer.status}: {answer.read(300).decode(errors='replace').strip()}")
        rest = b""
        for piece in answer.stream(1 << 20):
            *lines, rest = (rest + piece).split(b"\n")
            yield from filter(None, lines)
        if rest.strip():
            yield rest
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreUnavailable(f"{url}: {error}") from error
    finally:
        http.clear()


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def wanted_by(*sets: Wanted) -> Wanted:
    """Return the fields that any of these wants."""
    found: dict[str, frozenset[str]] = {}
    for each in sets:
        for measurement, fields in each.items():
            found[measurement] = found.get(measurement, frozenset()) | fields
    return found


def bounds(batches: list[Batch]) -> tuple[int, int]:
    """Return the first and the last time of a history."""
    times = list(map(attrgetter("time_ns"), batches))
    return min(times), max(times)
