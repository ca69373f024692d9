"""Makes what the services of deploy/compose.yaml must not share, once: passwords and the controller's key.

    python -m deploy.compose_secrets FOLDER UID [VOLUME...]

FOLDER holds a folder for each service, each a volume of its own, so that a service sees its own secrets only. What is
there stays; a second run changes nothing but restores owners and modes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from deploy.mosquitto.users import HASHED, make_users
from virtpilot.actuators.command import generate
from virtpilot.errors import VirtpilotError

# Whom the images of mosquitto and Grafana run as.
BROKER_UID: Final = 1883
GRAFANA_UID: Final = 472
SERVICES: Final = ("controller", "writer", "fleet")
# The broker's health check comes in as this user, who may do nothing; mosquitto's clients read a file of this name.
HEALTH: Final = "health"
HEALTH_FILE: Final = "mosquitto_pub"


def make_secrets(folder: Path, uid: int) -> None:
    """Fill the folders; raises OSError, ValueError or VirtpilotError."""
    made = folder / "made"
    make_users(made, [*SERVICES, HEALTH])
    if not (made / "controller.key").exists():
        generate(made)
    (made / HEALTH_FILE).touch(mode=0o600)
    (made / HEALTH_FILE).write_text(f"-u {HEALTH}\n-P {(made / f'{HEALTH}.password').read_text()}")
    for name in (HASHED, HEALTH_FILE):
        _give(made / name, folder / "broker" / name, BROKER_UID)
    for service in SERVICES:
        _give(made / f"{service}.password", folder / service / "bus-password", uid)
    make_users(made / "grafana", ["admin"])
    _give(made / "grafana/admin.password", folder / "grafana/admin-password", GRAFANA_UID)
    _give(made / "controller.key", folder / "controller" / "controller.key", uid)
    _give(made / "controller.pub", folder / "fleet" / "controller.pub", uid)


def _give(source: Path, target: Path, uid: int) -> None:
    """Copy a file for its new owner alone, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    shutil.copyfile(source, fresh)
    os.chown(fresh, uid, uid)
    fresh.replace(target)


def main() -> None:
    """Make them and take over the folders named after them for the services' user."""
    parser = argparse.ArgumentParser(description="Make the secrets of deploy/compose.yaml's services.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("uid", type=int, help="the user that virtpilot's services run as")
    parser.add_argument("volumes", type=Path, nargs="*", help="empty volumes to give to that user")
    arguments = parser.parse_args()
    try:
        make_secrets(arguments.folder, arguments.uid)
        for volume in arguments.volumes:
            os.chown(volume, arguments.uid, arguments.uid)
    except (OSError, ValueError, VirtpilotError) as error:
        print(f"compose_secrets: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
