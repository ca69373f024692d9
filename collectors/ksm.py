"""Same pages of guests merged by the kernel, from /sys/kernel/mm/ksm (Documentation/admin-guide/mm/ksm.rst)."""

from __future__ import annotations

from typing import Final

from virtpilot.collectors.number import count
from virtpilot.collectors.source import Fields, Found, Look

_ROOT: Final = "sys/kernel/mm/ksm"
_PAGES: Final = {
    "pages_shared": "ksm_shared_bytes",
    "pages_sharing": "ksm_sharing_bytes",
    "pages_unshared": "ksm_unshared_bytes",
    "pages_volatile": "ksm_volatile_bytes",
}
_PLAIN: Final = {"run": "ksm_run_code", "full_scans": "ksm_full_scans_total"}


def collect(look: Look) -> Found:
    """Return what is merged; nothing where the kernel cannot."""
    fields: Fields = {}
    for names, factor in ((_PAGES, look.page_bytes), (_PLAIN, 1)):
        for name, ours in names.items():
            try:
                value = count(look.tree.read(f"{_ROOT}/{name}").strip())
            except FileNotFoundError:
                return Found({})
            if value is not None:
                fields[ours] = value * factor
    return Found(fields)
