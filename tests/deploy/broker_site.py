"""The broker as deploy/mosquitto sets it up, on free ports and in a folder of its own."""

from __future__ import annotations

import datetime as dt
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from deploy.mosquitto.users import HASHED, make_users
from tests.services import Mosquitto, free_port
from virtpilot.pipeline.bus.mqtt_options import MqttOptions

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
# May do everything: not a role of ours, but the test's own eye and hand.
OBSERVER: Final = "observer"


class DeployedMosquitto(Mosquitto):
    """mosquitto with the shipped config and access list; only paths, ports and the system's user are put in place."""

    def __init__(self, folder: Path, config: str, names: list[str]) -> None:
        super().__init__(folder)
        self.tls_port = free_port()
        self.users = folder / "users"
        make_users(self.users, [*names, OBSERVER])
        self._config = config

    def command(self) -> list[str]:
        """Return the arguments after the binary, having written config, access list and certificates."""
        acl = self.folder / "virtpilot.acl"
        acl.write_text((DEPLOY / "mosquitto/virtpilot.acl").read_text() + f"\nuser {OBSERVER}\ntopic readwrite #\n")
        if not (self.folder / "server.crt").exists():
            make_certificate(self.folder)
        config = self.folder / "mosquitto.conf"
        config.write_text(self._placed((DEPLOY / "mosquitto" / self._config).read_text()) + "\nuser root\n")
        return ["-c", str(config)]

    def _placed(self, text: str) -> str:
        for shipped, here in {
            "/etc/mosquitto/virtpilot.passwd": f"{self.users}/{HASHED}",
            "/secrets/broker/virtpilot.passwd": f"{self.users}/{HASHED}",
            "/mosquitto/config/": f"{self.folder}/",
            "/etc/mosquitto/certs/": f"{self.folder}/",
            "/etc/mosquitto/": f"{self.folder}/",
            "/var/lib/mosquitto/": f"{self.folder}/",
            "/mosquitto/data/": f"{self.folder}/",
            "listener 8883": f"listener {self.tls_port} 127.0.0.1",
            "listener 1883 127.0.0.1": "listener 1883",
            "listener 1883": f"listener {self.port} 127.0.0.1",
        }.items():
            text = text.replace(shipped, here)
        return text

    def options(self, user: str, *, tls: bool = False) -> MqttOptions:
        """Return how a user comes in."""
        return MqttOptions(
            host="127.0.0.1",
            port=self.tls_port if tls else self.port,
            tls=tls,
            ca_file=str(self.folder / "server.crt") if tls else "",
            username=user,
            password_file=str(self.users / f"{user}.password"),
            reconnect_max_s=1.0,
        )


def make_certificate(folder: Path) -> None:
    """Make a self-signed certificate for 127.0.0.1: server.crt and server.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=365 * 30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
