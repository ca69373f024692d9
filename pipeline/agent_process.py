"""`python -m virtpilot.pipeline.agent_process FILE`: what `virtpilot agent` becomes once its arguments are read.

There is an agent on each host, and it stays: so the command line's libraries do not stay with it.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NoReturn

from virtpilot.pipeline import starting
from virtpilot.pipeline.late import import_late

if TYPE_CHECKING:
    from pathlib import Path

# glibc's mallopt(3): one arena, for threads of their own make libvirt's calls and each one's arena would keep what was
# freed in it; and what is large (a tick's lines) goes back to the system at once.
_MEMORY: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(128 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024),
}
# What is read late too, though something of it is named where it is taken in, as a default, a base or what may be
# caught: ssl with its OpenSSL where there is no TLS, servers and clients of prometheus-client beside our own, how
# loggers are copied.
_FORETOLD: Final[dict[str, dict[str, object]]] = {
    "ssl": {
        "PROTOCOL_TLS_CLIENT": 16, "PROTOCOL_TLS_SERVER": 17, "SSLContext": object, "TLSVersion": int,
        "SSLWantReadError": type("SSLWantReadError", (OSError,), {}),
        "SSLWantWriteError": type("SSLWantWriteError", (OSError,), {}),
    },
    "urllib.request": dict.fromkeys(
        ("BaseHandler", "HTTPHandler", "HTTPRedirectHandler", "HTTPSHandler", "Request", "build_opener"), object
    ),
    "urllib.error": {"HTTPError": type("HTTPError", (OSError,), {})},
    "wsgiref.simple_server": dict.fromkeys(("WSGIRequestHandler", "WSGIServer", "make_server"), object),
    "ast": {"NodeVisitor": object},
    "pickle": {"PicklingError": type("PicklingError", (Exception,), {})},
}  # fmt: skip
# Python's own, which serve in place of OpenSSL's; some distributions leave them out.
_HASHES: Final = (
    "_blake2",
    "_md5",
    "_sha1",
    "_sha3",
    *(("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")),
)


def become(config: Path) -> NoReturn:
    """Turn this process into the agent, under the same process id."""
    # Without the columns of each instruction, which serve to underline in tracebacks.
    options = ["-X", "no_debug_ranges", "-m", "virtpilot.pipeline.agent_process"]
    # What the process's owner has set is left as it is.
    environment = _MEMORY | dict(os.environ)
    os.execve(sys.executable, [sys.executable, *options, str(config)], environment)  # noqa: S606 # a list of arguments


def main() -> None:
    """Run the agent until it is told to stop."""
    # What libraries do as well without: structlog colours no tracebacks then, msgspec takes the standard library's.
    for name in ("rich", "typing_extensions"):
        _leave_out(name)
    if all(map(find_spec, _HASHES)):
        _leave_out("_hashlib")
    with starting.soon():
        for name, foretold in _FORETOLD.items():
            import_late([name], foretold)
        from pathlib import Path

        from virtpilot.pipeline import agent_service
        from virtpilot.pipeline.status import status_of

        sys.exit(status_of(lambda: agent_service.agent(Path(sys.argv[1]))))


def _leave_out(name: str) -> None:
    sys.modules.setdefault(name, None)  # type: ignore[arg-type] # the import system's sign for "not there"


if __name__ == "__main__":
    main()
