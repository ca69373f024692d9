"""The note that a running guest carries, in its live libvirt metadata.

Source: virDomainGetMetadata and virDomainSetMetadata with VIR_DOMAIN_AFFECT_LIVE. Live metadata travels with a
migration and a saved state, and is gone when the guest starts anew: just as a knob that was set live.
"""

from __future__ import annotations

from typing import Any, Final

NOTE_NAMESPACE: Final = "https://virtpilot.dev/leases/1"
_PREFIX: Final = "virtpilot"


def read_note(binding: Any, domain: Any) -> str:
    """Return a guest's note, "" where it has none; raises libvirt's error."""
    try:
        text = domain.metadata(binding.VIR_DOMAIN_METADATA_ELEMENT, NOTE_NAMESPACE, binding.VIR_DOMAIN_AFFECT_LIVE)
    except binding.libvirtError as error:
        if error.get_error_code() == binding.VIR_ERR_NO_DOMAIN_METADATA:
            return ""
        raise
    return str(text)


def write_note(binding: Any, domain: Any, note: str) -> None:
    """Give a guest another note; raises libvirt's error."""
    element = binding.VIR_DOMAIN_METADATA_ELEMENT
    live = binding.VIR_DOMAIN_AFFECT_LIVE
    try:
        domain.setMetadata(element, note or None, _PREFIX, NOTE_NAMESPACE, live)
    except binding.libvirtError as error:
        if note or error.get_error_code() != binding.VIR_ERR_NO_DOMAIN_METADATA:
            raise
