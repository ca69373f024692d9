"""Tags that a guest carries in its libvirt metadata.

<metadata><vp:tags xmlns:vp="https://virtpilot.dev/tags/1" tier="batch" virtpilot_cpu_steal_max="5%"
>plb_affinity_web;plb_ignore_vm</vp:tags></metadata>

Attributes are tags with values. Words in the text are tags as other managers have them: ProxLB's are read. Tags that
begin with `virtpilot_` or `plb_` speak to virtpilot and need no leave.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

TAGS_NAMESPACE: Final = "https://virtpilot.dev/tags/1"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SEPARATOR: Final = re.compile(r"[;,\s]+")
_OWN: Final = "virtpilot_"
_FOREIGN: Final = "plb_"
_MAX_TAGS: Final = 16
_MAX_VALUE: Final = 128
_MAX_XML: Final = 16_384


def read_tags(text: str, allowed: frozenset[str]) -> dict[str, str]:
    """Return the element's attributes that are allowed and well formed; anything else is no tag."""
    if not text or len(text) > _MAX_XML:
        return {}
    try:
        element = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError):
        return {}
    words = {word: "true" for word in _SEPARATOR.split(element.text or "") if word.startswith(_FOREIGN)}
    found = {
        name: value
        for name, value in {**words, **element.attrib}.items()
        if (name in allowed or name.startswith((_OWN, _FOREIGN)))
        and _NAME.fullmatch(name)
        and 0 < len(value) <= _MAX_VALUE
        and value.isprintable()
    }
    return dict(sorted(found.items())[:_MAX_TAGS])
