r"""InfluxDB line protocol in both directions, for numeric samples with a nanosecond timestamp.

Escaping as the reference parser has it: a backslash escapes a comma or space in a measurement, and an equals sign too
in tag keys, tag values and field keys; before anything else it is itself. Hence no name and no tag value can end in a
backslash, and none can hold a line feed: `encode` refuses both. In string field values only `\"` and `\\` are escapes.
Source: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

from virtpilot.linecolumns import Wanted, parse_wanted
from virtpilot.lineencoding import MAX_LINE_CHARS, MAX_SHOWN_CHARS, encode, encode_lines
from virtpilot.lineparsing import MAX_ITEMS, BadLine, Parsed, parse, parse_line

__all__ = [
    "MAX_ITEMS",
    "MAX_LINE_CHARS",
    "MAX_SHOWN_CHARS",
    "BadLine",
    "Parsed",
    "Wanted",
    "encode",
    "encode_lines",
    "parse",
    "parse_line",
    "parse_wanted",
]
