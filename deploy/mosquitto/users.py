"""Give users of the broker random passwords: `python3 deploy/mosquitto/users.py FOLDER NAME...`.

Each user gets FOLDER/NAME.password (mode 0600); FOLDER/virtpilot.passwd holds all of them hashed, for mosquitto 2.
A password that is there stays, and so do users not named in this call: adding a host is naming it. Needs Python alone.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Final

# Topics and mosquitto's patterns take no more; `virtpilot config check` holds hosts' names to the same.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SUFFIX: Final = ".password"
_SALT_BYTES: Final = 12
# mosquitto's own default; the passwords are random, so guessing them is hopeless at any count.
_ITERATIONS: Final = 101
HASHED: Final = "virtpilot.passwd"


def make_users(folder: Path, names: list[str]) -> list[Path]:
    """Return the new password files after writing them and the hashed file; raises ValueError for a bad name."""
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"no names for users: {', '.join(map(repr, wrong))}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = [path for name in names if _make_password(path := folder / f"{name}{_SUFFIX}")]
    known = sorted(path for path in folder.glob(f"*{_SUFFIX}") if _NAME.fullmatch(path.name.removesuffix(_SUFFIX)))
    lines = [f"{path.name.removesuffix(_SUFFIX)}:{hashed(path.read_text().rstrip())}\n" for path in known]
    _replace(folder / HASHED, "".join(lines))
    return made


def _make_password(path: Path) -> bool:
    if path.exists() and path.stat().st_size:
        return False
    _replace(path, secrets.token_urlsafe(32) + "\n")
    return True


def hashed(password: str) -> str:
    """Return a password as mosquitto keeps it: PBKDF2 with SHA-512, `$7$iterations$salt$hash`."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all: a broker may read the file at any time."""
    fresh = path.with_name(f"{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


def main() -> None:
    """Make the users that the command line names and say where their passwords are."""
    parser = argparse.ArgumentParser(description="Give users of the broker random passwords.")
    parser.add_argument("folder", type=Path, help="where to; made if need be, for its owner only")
    parser.add_argument("names", nargs="+", metavar="name", help="controller, writer, dashboards, or a host's name")
    arguments = parser.parse_args()
    try:
        made = make_users(arguments.folder, arguments.names)
    except (ValueError, OSError) as error:
        print(f"users.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    for path in made:
        print(f"{path}: for this user alone")
    print(f"{arguments.folder / HASHED}: for the broker")


if __name__ == "__main__":
    main()
