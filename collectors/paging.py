"""What the host's memory management did, from /proc/vmstat: swapping, faults that needed I/O, processes killed."""

from __future__ import annotations

import re
from typing import Final

from virtpilot.collectors.source import Fields, Found, Look

# The file has some 200 lines: these are looked for, not all of them read; from a line feed on, which is four times as
# fast as from a line's start.
_LINE: Final = re.compile(r"\n(pswpin|pswpout|pgmajfault|oom_kill) ([0-9]{1,20})$", re.MULTILINE)


def parse(text: str) -> dict[str, int]:
    """Return the wanted counters of vmstat."""
    return {name: int(number) for name, number in _LINE.findall(f"\n{text}")}


def collect(look: Look) -> Found:
    """Return counters and rates; what the kernel does not tell is absent."""
    given = parse(look.tree.read("proc/vmstat"))
    fields: Fields = {}
    for name, ours in (("pswpin", "swap_in"), ("pswpout", "swap_out")):
        if name in given:
            value = given[name] * look.page_bytes
            fields[f"{ours}_bytes_total"] = value
            rate = look.rates.rate(("paging", name), value, look.now_ns)
            if rate is not None:
                fields[f"{ours}_bytes_per_second"] = rate
    if "pgmajfault" in given:
        rate = look.rates.rate(("paging", "pgmajfault"), given["pgmajfault"], look.now_ns)
        if rate is not None:
            fields["major_faults_per_second"] = rate
    if "oom_kill" in given:
        fields["oom_kills_total"] = given["oom_kill"]
    return Found(fields)
