"""A webhook under way: one POST, no redirects followed, no proxies, ended at its deadline."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from virtpilot.actuators.hooks.ending import Ending

_GOOD: Final = range(200, 300)


class Post:
    """Runs in a thread of its own; `ending` is there when it is over."""

    def __init__(self, url: str, body: bytes, *, token_file: str, deadline_s: float, output_max: int) -> None:
        self._ending: Ending | None = None
        self._late = threading.Event()
        self._output_max = output_max
        self._deadline_s = deadline_s
        # What trickles in slower than any timeout of a socket is not waited for.
        self._timer = threading.Timer(deadline_s, self._late.set)
        self._timer.daemon = True
        try:
            self._timer.start()
            threading.Thread(target=self._run, args=(url, body, token_file), name="hook-post", daemon=True).start()
        except RuntimeError as error:  # this machine has no thread to give
            self._ending = Ending(False, f"not delivered: {error}")

    @property
    def ending(self) -> Ending | None:
        """How it ended, None while it goes on."""
        if self._ending is None and self._late.is_set():
            return Ending(False, f"no answer within {self._deadline_s:g} s")
        return self._ending

    def stop(self) -> None:
        """Wait for it no longer."""
        self._late.set()
        self._timer.cancel()

    def _run(self, url: str, body: bytes, token_file: str) -> None:
        import http.client  # memory that an agent without hooks has a better use for

        try:
            headers = {"Content-Type": "application/json", "User-Agent": "virtpilot"}
            if token_file:
                headers["Authorization"] = f"Bearer {Path(token_file).read_text(encoding='ascii').strip()}"
            self._ending = self._post(url, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._ending = Ending(False, f"not delivered: {error}")
        self._timer.cancel()

    def _post(self, url: str, body: bytes, headers: dict[str, str]) -> Ending:
        import http.client
        import ssl

        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=self._deadline_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._deadline_s)
        try:
            connection.request("POST", parts._replace(scheme="", netloc="", fragment="").geturl() or "/", body, headers)
            answer = connection.getresponse()
            said = answer.read(self._output_max)
            numbers = {"http_status": float(answer.status)}
            return Ending(answer.status in _GOOD, f"HTTP status {answer.status}", said, numbers)
        finally:
            connection.close()
