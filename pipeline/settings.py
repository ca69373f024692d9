"""Config files: one TOML file into nested frozen Structs, every mistake in it at its place, and secrets from elsewhere.

Each part declares its options as a frozen msgspec Struct beside its code; a nested Struct is a section. The check, the
defaults, the sample file and the reference table all come from that one declaration. A check opens this file only.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from datetime import date, time
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from virtpilot.errors import ConfigError, Problem
from virtpilot.pipeline import toml_positions
from virtpilot.pipeline.settings_page import reference, sample

__all__ = ["check", "load", "loads", "read_secret", "reference", "sample"]

T = TypeVar("T", bound=msgspec.Struct)

_MAX_BYTES: Final = 1 << 20
_MAX_SECRET_BYTES: Final = 1 << 16
_MAX_SYNTAX_ERRORS: Final = 20
_AT: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_WHERE: Final = re.compile(r" - at `(?:key in )?\$([^`]*)`$")
_NO_CHOICE: Final = "Invalid enum value "
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")


def load(path: Path, type_: type[T]) -> T:
    """Return the options in a TOML file; raises ConfigError with every problem in it."""
    return loads(_read(path), str(path), type_)


def loads(text: str, file: str, type_: type[T]) -> T:
    """Return the options in TOML text, named `file` in the problems; raises ConfigError with every one."""
    document, problems, remaining = _parse(text, file)
    walk = _Walk(file, toml_positions.scan(remaining), requires=not problems)
    walk.struct(document, type_, ())
    problems += walk.problems
    if problems:
        raise ConfigError(problems)
    return msgspec.convert(document, type_, dec_hook=_decode_foreign)


def check(path: Path, type_: type[msgspec.Struct]) -> list[Problem]:
    """Return every problem in a config file, none when `load` would take it."""
    try:
        load(path, type_)
    except ConfigError as error:
        return list(error.problems)
    return []


def read_secret(
    file: Path | None,
    env: str | None,
    *,
    name: str = "secret",
    environ: Mapping[str, str] | None = None,
) -> str | None:
    """Return the secret in a file or an environment variable, None where neither is named.

    The file must be a regular one that not everybody may read; one newline at its end is not part of the secret.
    Raises ConfigError that never holds the secret itself.
    """
    if file and env:
        raise _trouble(str(file), f"{name}: give a file or an environment variable, not both")
    if file:
        return _secret_in_file(Path(file), name)
    if env:
        return _secret_in_environment(env, name, os.environ if environ is None else environ)
    return None


def _secret_in_environment(variable: str, name: str, environ: Mapping[str, str]) -> str:
    secret = environ.get(variable)
    if not secret:
        raise _trouble(f"${variable}", f"{name}: the environment variable is not set, or empty")
    return secret


def _secret_in_file(path: Path, name: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(_MAX_SECRET_BYTES + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise _trouble(str(path), f"{name}: cannot read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise _trouble(str(path), f"{name}: not a regular file")
    if mode & stat.S_IRWXO:
        raise _trouble(str(path), f"{name}: everybody on this machine may use it; chmod o= it")
    return _secret_text(raw, path, name)


def _secret_text(raw: bytes, path: Path, name: str) -> str:
    try:
        secret = raw.decode()
    except UnicodeDecodeError:
        raise _trouble(str(path), f"{name}: not UTF-8") from None
    secret = secret.removesuffix("\n").removesuffix("\r")
    if not secret or len(raw) > _MAX_SECRET_BYTES:
        raise _trouble(str(path), f"{name}: " + ("longer than any secret" if secret else "empty"))
    return secret


def _trouble(file: str, message: str) -> ConfigError:
    return ConfigError([Problem(file, 0, 0, message)])


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _trouble(str(path), f"cannot read: {error.strerror}") from error
    if len(raw) > _MAX_BYTES:
        raise _trouble(str(path), f"longer than {_MAX_BYTES} bytes: not a config file")
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise ConfigError([Problem(str(path), line, column, "not UTF-8")]) from None


def _parse(text: str, file: str) -> tuple[dict[str, Any], list[Problem], str]:
    """Return the document, its syntax errors, and the text that was left when their lines were blanked.

    Blanking a bad line and going on shows the other mistakes too; what never closes (a string, an array) would make
    nonsense of all that follows, so nothing is said after it.
    """
    problems: list[Problem] = []
    lines = text.replace("\r\n", "\n").split("\n")
    while True:
        remaining = "\n".join(lines)
        try:
            return tomllib.loads(remaining), problems, remaining
        except RecursionError:
            return {}, [*problems, Problem(file, 1, 1, "nested too deeply")], ""
        except ValueError as error:
            problem = _syntax_problem(error, file, lines)
        last = problems[-1].line if problems else 0
        if problem.line <= last:
            return {}, problems, ""
        problems.append(problem)
        if _hides_the_rest(problem.message) or len(problems) == _MAX_SYNTAX_ERRORS:
            return {}, problems, ""
        lines[problem.line - 1] = ""


def _hides_the_rest(message: str) -> bool:
    return message.startswith(("Unclosed", "Unterminated")) or "end of document" in message


def _syntax_problem(error: ValueError, file: str, lines: list[str]) -> Problem:
    message = str(error)
    found = _AT.search(message)
    if found is None:
        return Problem(file, 1, 1, message)
    message = message[: found.start()]
    if found[1] is None:
        line = max((number for number, content in enumerate(lines, 1) if content.strip()), default=1)
        return Problem(file, line, len(lines[line - 1]) + 1, f"{message} (at the end of document)")
    line, column = int(found[1]), int(found[2])
    if message == "Cannot overwrite a value":
        content = lines[line - 1]
        return Problem(file, line, len(content) - len(content.lstrip()) + 1, "Duplicate key: it is set above")
    return Problem(file, line, column, message)


class _Walk:
    """Checks a parsed document against Structs and gathers every problem."""

    def __init__(self, file: str, positions: toml_positions.Positions, *, requires: bool) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._positions = positions
        self._requires = requires

    def struct(self, table: Any, type_: type[msgspec.Struct], path: toml_positions.Path) -> None:
        """Check a section: unknown options, missing ones, each value, then what the Struct itself demands."""
        if not isinstance(table, dict):
            self._add(self._positions.of_value(path), f"{_dotted(path)}: expected a table, got {_kind(table)}")
            return
        before = len(self.problems)
        fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
        self._unknown(table, list(fields), path)
        for name, field in fields.items():
            if name in table:
                self._value(table[name], field.type, (*path, name))
            elif field.required:
                self._missing(field.type, (*path, name))
        if len(self.problems) == before and self._requires:
            self._convert(table, type_, path)

    def _unknown(self, table: dict[str, Any], known: list[str], path: toml_positions.Path) -> None:
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(known)) or 'none'}"
                place = self._positions.of_key((*path, name))
                self._add(place, f"unknown option {_dotted((*path, name))}{hint}")

    def _missing(self, type_: Any, path: toml_positions.Path) -> None:
        section = _struct_in(type_)
        if section is not None:
            self.struct({}, section, path)
        elif self._requires:
            self._add(self._positions.of_value(path[:-1]), f"missing required option {_dotted(path)}")

    def _value(self, value: Any, type_: Any, path: toml_positions.Path) -> None:
        section = _struct_in(type_)
        if section is not None:
            self.struct(value, section, path)
            return
        before = len(self.problems)
        element, items = _elements(value, type_)
        for step, item in items:
            self._value(item, element, (*path, step))
        if len(self.problems) == before:
            self._convert(value, type_, path)

    def _convert(self, value: Any, type_: Any, path: toml_positions.Path) -> None:
        endless = _not_finite(value, path)
        if endless is not None:
            self._add(self._positions.of_value(endless), f"{_dotted(endless)}: expected a finite number")
            return
        try:
            msgspec.convert(value, type_, dec_hook=_decode_foreign)
        except msgspec.ValidationError as error:
            message = str(error)
            found = _WHERE.search(message)
            deeper = (*path, *_steps(found[1])) if found else path
            message = message[: found.start()] if found else message
            message = _choices(message, type_)
            prefix = f"{_dotted(deeper)}: " if deeper else ""
            self._add(self._positions.of_value(deeper), f"{prefix}{message}")

    def _add(self, place: toml_positions.Place, message: str) -> None:
        self.problems.append(Problem(self._file, *place, message))


def _choices(message: str, type_: Any) -> str:
    """Name what may be said, where something else was."""
    bare = _bare(type_)
    words: tuple[Any, ...] = ()
    if get_origin(bare) is Literal:
        words = get_args(bare)
    elif isinstance(bare, type) and issubclass(bare, Enum):
        words = tuple(member.value for member in bare)
    if not words or not message.startswith(_NO_CHOICE):
        return message
    return f"{message.removeprefix(_NO_CHOICE)} is none of {', '.join(map(str, words))}"


def _steps(trail: str) -> list[str | int]:
    steps: list[str | int] = []
    for name, index in _STEP.findall(trail):
        if not name and not index:
            break  # msgspec writes [...] for a mapping's key: the table's own place is the nearest
        steps.append(name or int(index))
    return steps


def _not_finite(value: Any, path: toml_positions.Path) -> toml_positions.Path | None:
    """Return the path of a nan or infinity below `value`: no option means one."""
    if isinstance(value, float) and not math.isfinite(value):
        return path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return next((found for step, item in items if (found := _not_finite(item, (*path, step))) is not None), None)


def _bare(type_: Any) -> Any:
    """Strip Annotated and Optional from a type."""
    while True:
        origin = get_origin(type_)
        if origin is Annotated:
            type_ = get_args(type_)[0]
        elif (
            origin in {Union, UnionType} and len(rest := [arg for arg in get_args(type_) if arg is not type(None)]) == 1
        ):
            type_ = rest[0]
        else:
            return type_


def _struct_in(type_: Any) -> type[msgspec.Struct] | None:
    bare = _bare(type_)
    is_struct = isinstance(bare, type) and issubclass(bare, msgspec.Struct)
    return cast("type[msgspec.Struct]", bare) if is_struct else None


def _elements(value: Any, type_: Any) -> tuple[Any, list[tuple[str | int, Any]]]:
    """Return the declared type of a list's or mapping's elements, and those of `value` with their step in the path."""
    bare = _bare(type_)
    if get_origin(bare) is list and isinstance(value, list):
        return get_args(bare)[0], list(enumerate(value))
    if get_origin(bare) is dict and isinstance(value, dict):
        return get_args(bare)[1], list(value.items())
    return None, []


def _decode_foreign(type_: type, value: Any) -> Any:
    if type_ is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("Expected a path, got " + _kind(value) if type_ is Path else f"Expected {type_.__name__}")


def _kind(value: Any) -> str:
    names: dict[type, str] = {
        bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array", dict: "a table",
    }  # fmt: skip
    return (
        "an empty string"
        if value == ""
        else names.get(type(value), "a date or time" if isinstance(value, (date, time)) else "nothing")
    )


def _dotted(path: toml_positions.Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
