"""A hook as the host's config has it: a program or a webhook, with gaps for what is known of the guest.

Gaps are `{guest}` (its UUID), `{name}`, `{host}`, `{rule}`, `{command}` (the command's id) and `{tags.…}`. There is no
shell: each argument stays one argument. A value that could be taken for an option, a path or anything but a name is
refused before anything is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta

from virtpilot.errors import CommandRefused

NAME: Final = r"^[a-z][a-z0-9_-]{0,62}$"
_GAP: Final = re.compile(r"\{([^{}]*)\}")
_KNOWN: Final = frozenset({"guest", "name", "host", "rule", "command"})
_TAG: Final = re.compile(r"tags\.[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_VALUE: Final = re.compile(r"\w[\w .:@+=,-]{0,254}")


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program or a webhook that rules may have run."""

    name: Annotated[str, Meta(description="The name that rules use in `run`.", pattern=NAME, examples=["page"])]
    command: Annotated[
        Annotated[list[str], Meta(min_length=1, max_length=64)] | None,
        Meta(
            description="A program's absolute path and its arguments, with gaps such as {name}; without it: a webhook.",
            examples=[["/usr/local/bin/page", "{name}"]],
        ),
    ] = None
    url: Annotated[
        str, Meta(description="Where a webhook is posted, with gaps in its path or query only; empty: a program.")
    ] = ""
    token_file: Annotated[str, Meta(description="A file with the webhook's bearer token; empty: none is sent.")] = ""
    deadline_s: Annotated[float, Meta(description="It is ended after this, and has failed.", gt=0, le=3600)] = 30.0
    output_max: Annotated[
        int, Meta(description="So many bytes of what it says are kept, the rest is read and dropped.", ge=0, le=65536)
    ] = 4096

    def __post_init__(self) -> None:
        """Refuse what is neither or both, and gaps that nothing fills."""
        if bool(self.command) == bool(self.url):
            raise ValueError("a hook has either `command` or `url`")
        for text in (*(self.command or []), self.url):
            for gap in _GAP.findall(text):
                if gap not in _KNOWN and not _TAG.fullmatch(gap):
                    raise ValueError(f"nothing fills the gap {{{gap}}}: {', '.join(sorted(_KNOWN))}, tags.…")
            if set(_GAP.sub("", text)) & set("{}\0"):
                raise ValueError(f"{text[:80]!r} has a brace that is no gap")
        if self.command and (not self.command[0].startswith("/") or _GAP.search(self.command[0])):
            raise ValueError("a program is named by its absolute path, without gaps")
        if self.url:
            _check_url(self.url)


class HookOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What rules may have run on this host."""

    allowed: Annotated[list[Hook], Meta(description="All of them; a command can name no other.")] = []
    at_once: Annotated[int, Meta(description="So many run at the same time; more are refused.", ge=1, le=100)] = 4

    def __post_init__(self) -> None:
        """Refuse two of one name."""
        names = [hook.name for hook in self.allowed]
        if len(set(names)) < len(names):
            raise ValueError("two hooks have the same name")


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError where it is no number
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the url is no http or https address")
    if "{" in parts.netloc or parts.username is not None or parts.password is not None:
        raise ValueError("the url's host has no gaps, user name or password")
    if not url.isascii() or any(char.isspace() or char < "!" for char in url):
        raise ValueError("the url has blanks or characters that must be escaped")


def arguments(hook: Hook, fields: Mapping[str, str]) -> Sequence[str]:
    """Return a program's arguments with their gaps filled; raises CommandRefused."""
    return [_GAP.sub(lambda gap: _value(gap[1], fields), text) for text in hook.command or []]


def address(hook: Hook, fields: Mapping[str, str]) -> str:
    """Return a webhook's address with its gaps filled; raises CommandRefused."""
    return _GAP.sub(lambda gap: quote(_value(gap[1], fields), safe=""), hook.url)


def _value(gap: str, fields: Mapping[str, str]) -> str:
    value = fields.get(gap, "")
    if not _VALUE.fullmatch(value) or ".." in value:
        raise CommandRefused("value", f"{{{gap}}} would be {value[:80]!r}: that is no name to hand on")
    return value
