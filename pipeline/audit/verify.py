"""Verifying a chain: every changed, removed, added or reordered line is found, by its file and number."""

from __future__ import annotations

from pathlib import Path

import msgspec

from virtpilot.errors import InputError, Problem
from virtpilot.pipeline.audit.chain import CURRENT, FIRST_BEFORE, Head, Line, files, opened, raw_lines, read_head


class Verified(msgspec.Struct, frozen=True):
    """What was found: the lines looked at, the numbers of the first and the last, and all that is wrong."""

    lines: int
    first: int
    last: int
    problems: list[Problem]


def verify(path: Path, since: int = 1) -> Verified:
    """Verify a state folder, a folder of audit files, or one file; raises InputError where there is no audit log.

    The chain must begin with line `since`: say so where older files were archived. A single older file is verified as
    a piece, from its own first line on.
    """
    folder = path.parent if path.is_file() else path
    whole = path.is_dir() or path.name == CURRENT
    chain = files(folder) if whole else [path]
    if not chain or not all(one.is_file() for one in chain):
        raise InputError([Problem(str(path), 0, 0, "there is no audit log")])
    walk = _Walk(since if whole else None)
    try:
        for file in chain:
            walk.file(file)
        if whole:
            walk.end(folder)
    except OSError as error:
        raise InputError([Problem(str(path), 0, 0, f"cannot be read: {error.strerror}")]) from error
    return Verified(walk.lines, walk.first, walk.head.n, walk.problems)


class _Walk:
    """Line by line, each held to the one before it."""

    def __init__(self, since: int | None) -> None:
        self.problems: list[Problem] = []
        self.lines = 0
        self.first = 0
        self.head = Head()
        self._since = since
        self._hashes: dict[int, str] = {}
        self._place = ("", 0)

    def file(self, path: Path) -> None:
        for number, raw in raw_lines(path):
            self._place = (str(path), number)
            self.lines += 1
            if not raw.endswith(b"\n"):
                self._wrong("is not whole: the last write was cut off, or the line is too long")
                continue
            try:
                line, digest = opened(raw)
            except ValueError as error:
                self._wrong(str(error))
            else:
                self._follow(line, digest)

    def _follow(self, line: Line, digest: str) -> None:
        before = self.head
        if not self.first:
            self.first = line.n
            self._begin(line)
        elif line.n <= before.n:
            self._wrong(f"is line {line.n}, and comes after line {before.n}: repeated, or not in order")
        elif line.n > before.n + 1:
            missing = f"line {before.n + 1}" if line.n == before.n + 2 else f"lines {before.n + 1} to {line.n - 1}"
            self._wrong(f"is line {line.n}: {missing} before it cannot be read or was removed")
        elif line.before != before.hash:
            self._wrong(f"does not follow line {before.n} as that stands here")
        if line.n > before.n:
            self.head = Head(line.n, digest)
            self._hashes[line.n] = digest

    def _begin(self, line: Line) -> None:
        if self._since is None:
            return
        if line.n != self._since:
            hint = f" (where older files were archived: --since {line.n})" if line.n > self._since else ""
            self._wrong(f"is line {line.n}, the first here, and should be line {self._since}{hint}")
        elif line.n == 1 and line.before != FIRST_BEFORE:
            self._wrong("is line 1, and something stood before it")

    def end(self, folder: Path) -> None:
        """Hold the end to what was known to be on disk."""
        self._place = (str(folder), 0)
        try:
            head = read_head(folder)
        except ValueError as error:
            self._wrong(str(error))
            return
        if head is None or not head.n:
            return
        if head.n > self.head.n:
            self._wrong(f"ends with line {self.head.n}; line {head.n} was on disk: lines were cut off at the end")
        elif head.n in self._hashes and self._hashes[head.n] != head.hash:
            self._wrong(f"line {head.n} is not the one that was on disk: the lines up to it were written anew")

    def _wrong(self, message: str) -> None:
        file, number = self._place
        self.problems.append(Problem(file, number, 1 if number else 0, message))
