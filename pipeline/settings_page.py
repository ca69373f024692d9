"""What the options' declarations tell people: a commented sample config file and a reference table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def sample(type_: type[msgspec.Struct]) -> str:
    """Return a TOML file with every option: meaning and default as comments, required ones to be filled in."""
    lines: list[str] = []
    if type_.__doc__ and not type_.__doc__.startswith(type_.__name__):
        lines += [f"# {type_.__doc__.strip().splitlines()[0]}", ""]
    lines += _section(type_, "", commented=False)
    return "\n".join(lines).strip("\n") + "\n"


def reference(type_: type[msgspec.Struct]) -> str:
    """Return a Markdown table with every option: name, type, default and meaning."""
    head = "| option | type | default | meaning |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{name}` | {kind} | {default} | {meaning} |\n" for name, kind, default, meaning in _rows(type_, "")
    )


def _rows(type_: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for field in msgspec.structs.fields(type_):
        known, meaning, _ = _described(field.type)
        name = f"{prefix}{field.encode_name}"
        nested, mark = _nested(known)
        if nested is not None:
            yield from _rows(nested, f"{name}{mark}.")
        else:
            default = _default(field)
            shown = (
                "required" if default is msgspec.NODEFAULT else "not set" if default is None else f"`{_toml(default)}`"
            )
            yield name, _cell(_type_text(known)), _cell(shown), _cell(meaning)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _section(type_: type[msgspec.Struct], name: str, *, commented: bool) -> list[str]:
    """Return a section's own options first, then its sub-sections: TOML wants that order."""
    own: list[str] = []
    below: list[str] = []
    for field in msgspec.structs.fields(type_):
        known, meaning, examples = _described(field.type)
        nested, mark = _nested(known)
        if nested is None:
            own += _option(field, known, meaning, examples, commented=commented)
            continue
        inner = f"{name}.{_key(field.encode_name)}" if name else _key(field.encode_name)
        inner += ".NAME" if mark == ".NAME" else ""
        off = commented or bool(mark) or _default(field) is None
        header = f"[[{inner}]]" if mark == "[]" else f"[{inner}]"
        about = meaning or _first_line(nested)
        below += ["", *([f"# {about}"] if about else []), f"#{header}" if off else header]
        below += _section(nested, inner, commented=off)
    return own + below


def _first_line(type_: type[msgspec.Struct]) -> str:
    doc = type_.__doc__ or ""
    return "" if doc.startswith(f"{type_.__name__}(") else doc.strip().split("\n")[0]


def _option(
    field: msgspec.structs.FieldInfo, known: inspect.Type, meaning: str, examples: list[Any], *, commented: bool
) -> list[str]:
    default = _default(field)
    notes = {msgspec.NODEFAULT: "Required.", None: "Not set by default."}
    note = notes.get(default, "") if default is None or default is msgspec.NODEFAULT else ""
    about = " ".join(part for part in (meaning, f"({_type_text(known)})", note) if part)
    value = default
    if note:
        value = examples[0] if examples else _placeholder(known)
    off = commented or default is not msgspec.NODEFAULT
    return [f"# {about}", f"{'#' if off else ''}{_key(field.encode_name)} = {_toml(value)}"]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _described(type_: Any) -> tuple[inspect.Type, str, list[Any]]:
    """Return a type without its wrapping, its meaning and its examples."""
    known = inspect.type_info(type_)
    meaning = ""
    examples: list[Any] = []
    while isinstance(known, inspect.Metadata):
        extra = known.extra_json_schema or {}
        meaning = meaning or str(extra.get("description", ""))
        examples = examples or list(extra.get("examples", []))
        known = known.type
    return known, meaning, examples


def _unwrapped(known: inspect.Type) -> inspect.Type:
    """Strip what describes a type, and the None of an optional one."""
    while True:
        if isinstance(known, inspect.Metadata):
            known = known.type
        elif isinstance(known, inspect.UnionType):
            rest = [part for part in known.types if not isinstance(part, inspect.NoneType)]
            if len(rest) != 1:
                return known
            known = rest[0]
        else:
            return known


def _nested(known: inspect.Type) -> tuple[type[msgspec.Struct] | None, str]:
    """Return the Struct of a section, a list of sections (mark "[]") or named sections (mark ".NAME")."""
    known = _unwrapped(known)
    mark = ""
    if isinstance(known, inspect.ListType):
        known, mark = _unwrapped(known.item_type), "[]"
    elif isinstance(known, inspect.DictType):
        known, mark = _unwrapped(known.value_type), ".NAME"
    return (known.cls, mark) if isinstance(known, inspect.StructType) else (None, "")


def _type_text(known: inspect.Type) -> str:
    known = _unwrapped(known)
    if isinstance(known, (inspect.IntType, inspect.FloatType)):
        return _range_text(known)
    choices = _choices(known)
    if choices:
        return "one of " + ", ".join(map(str, choices))
    if isinstance(known, inspect.ListType):
        return f"list of {_type_text(known.item_type)}"
    if isinstance(known, inspect.DictType):
        return f"table of {_type_text(known.value_type)}"
    if isinstance(known, inspect.UnionType):
        return " or ".join(_type_text(part) for part in known.types)
    return _PLAIN.get(type(known), known.cls.__name__.lower() if isinstance(known, inspect.CustomType) else "value")


def _choices(known: inspect.Type) -> list[Any]:
    if isinstance(known, inspect.EnumType):
        return [member.value for member in known.cls]
    return list(known.values) if isinstance(known, inspect.LiteralType) else []


_PLAIN: Final[dict[type, str]] = {inspect.StrType: "string", inspect.BoolType: "true or false"}


def _range_text(known: inspect.IntType | inspect.FloatType) -> str:
    word = "integer" if isinstance(known, inspect.IntType) else "number"
    if known.ge is not None and known.le is not None:
        return f"{word} {known.ge}..{known.le}"
    bounds = [("≥", known.ge), (">", known.gt), ("≤", known.le), ("<", known.lt)]
    return " ".join([word, *(f"{sign} {bound}" for sign, bound in bounds if bound is not None)])


def _placeholder(known: inspect.Type) -> Any:
    """Return a value of the type, for an option that has no default."""
    known = _unwrapped(known)
    if isinstance(known, (inspect.IntType, inspect.FloatType)):
        return _number_in_range(known)
    choices = _choices(known)
    if choices:
        return choices[0]
    if isinstance(known, inspect.CustomType):
        return Path("/path/to/file")
    empty: dict[type, Any] = {inspect.ListType: [], inspect.DictType: {}, inspect.BoolType: False}
    return empty.get(type(known), "…")


def _number_in_range(known: inspect.IntType | inspect.FloatType) -> float:
    if known.ge is not None:
        return known.ge
    if known.gt is not None:
        return known.gt + 1
    return min(bound for bound in (known.le, None if known.lt is None else known.lt - 1, 1) if bound is not None)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)


def _toml(value: Any) -> str:
    """Write a plain value as TOML."""
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, (bool, int, float)):
        return repr(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, (str, Path)):
        # JSON's escapes are TOML's, all but DEL
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
