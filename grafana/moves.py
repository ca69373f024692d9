"""Moves, read from the measurements themselves: a guest runs where it did not and ran elsewhere a moment ago."""

from __future__ import annotations


def arrivals(where: str, anywhere: str, by: str) -> str:
    """Return PromQL that counts the guests that have just come to the hosts that `where` selects, by labels.

    `anywhere` selects all hosts of the cluster: what comes from one that is not shown is a move too. A point covers
    `$__rate_interval`, so that each move shows in one at least, whatever the dashboard's time range.
    """
    before = "offset $__rate_interval == 1"
    return (
        f"count by ({by}) (vm_state_code{where} == 1"
        f" unless on (vm, host) (vm_state_code{anywhere} {before})"
        f" and on (vm) (vm_state_code{anywhere} {before}))"
    )
