"""Write the example config files beside this one: `python -m deploy.config`; a test keeps them in step.

Every option with its meaning comes from its declaration; here is only what a real host sets other than by default.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from virtpilot.pipeline import settings
from virtpilot.pipeline.config import CONFIGS

_FOLDER: Final = Path(__file__).resolve().parent
_OPTION: Final = re.compile(r"#?([a-z][a-z0-9_]*) = .*")
_SECTION: Final = re.compile(r"#?\[+([a-z0-9_.]+)\]+")

_BUS: Final = {
    "bus.host": '"broker.example.net"',
    "bus.port": "8883",
    "bus.tls": "true",
    "bus.ca_file": '"/etc/virtpilot/ca.crt"',
}


def _login(process: str, user: str) -> dict[str, str]:
    """Return a process's name and password at the broker; systemd puts the password there (LoadCredential)."""
    return _BUS | {
        "bus.username": f'"{user}"',
        "bus.password_file": f'"/run/credentials/virtpilot-{process}.service/bus-password"',
    }


SET: Final[dict[str, dict[str, str]]] = {
    "agent": {
        "cluster": '"production"',
        "host": '"host-1"',
        "hypervisor.migration_uri": '"qemu+tls://host-1.example.net/system"',
        "commands.public_key_files": '["/etc/virtpilot/controller.pub"]',
        "operators.public_key_files": '["/etc/virtpilot/operator.pub"]',
        "exporter.port": "9751",
        **_login("agent", "host-1"),
    },
    "controller": {
        "cluster": '"production"',
        "commands.private_key_file": '"/run/virtpilot-controller/controller.key"',
        "operators.public_key_files": '["/etc/virtpilot/operator.pub"]',
        "exporter.port": "9752",
        **_login("controller", "controller"),
    },
    "writer": {
        "cluster": '"production"',
        "store.url": '"http://127.0.0.1:8428"',
        "exporter.port": "9753",
        **_login("writer", "writer"),
    },
    "fleet": {
        "cluster": '"example"',
        "commands.public_key_files": '["/etc/virtpilot/controller.pub"]',
        "operators.public_key_files": '["/etc/virtpilot/operator.pub"]',
        "exporter.port": "9754",
        **_login("fleet", "fleet"),
    },
    "operator": {
        "cluster": '"production"',
        **_BUS,
        "bus.username": '"operator"',
        "bus.password_file": '"/etc/virtpilot/operator.password"',
    },
}
_NOTES: Final = {
    "host": "Also this agent's user name at the broker: its access list binds the one to the other.",
    "rules.modes": 'To let one rule act: modes = { vm-cpu-starved = "act" }',
}


def example(process: str) -> str:
    """Return the example config file of a process; raises KeyError where it sets an option that is not there."""
    chosen, section, lines = dict(SET[process]), "", []
    for line in settings.sample(CONFIGS[process]).splitlines():
        heading, option = _SECTION.fullmatch(line), _OPTION.fullmatch(line)
        if heading:
            section = heading[1]
        name = f"{section}.{option[1]}" if option and section else option[1] if option else ""
        if name in _NOTES:
            lines.append(f"# {_NOTES[name]}")
        value = chosen.pop(name, None) if name else None
        lines.append(line if value is None or option is None else f"{option[1]} = {value}")
    if chosen:
        raise KeyError(f"{process} has no option {', '.join(sorted(chosen))}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write every example."""
    for process in SET:
        path = _FOLDER / f"{process}.toml"
        path.write_text(example(process), encoding="utf-8")
        sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
