"""A first rule file with the test beside it, to be filled in."""

from __future__ import annotations

from typing import Final

from virtpilot.rules.language.nodes import NAME

_RULES: Final = """\
# Check it with `virtpilot rules check {name}.yaml`, run its tests with `virtpilot rules test {name}.yaml`.
virtpilot: 1
rules:
  - name: {name}
    about: A guest waits for a physical CPU while its host is busy. # alerts carry it
    on: vm # vm or host
    # where: tags.tier != "batch" # only those for which this holds
    when: cpu_steal_ratio > 10% and host.cpu_usage_ratio > 85%
    for: 30s # it must hold for so long; one lost sample does not begin it again
    clear: cpu_steal_ratio < 4% # between `when` and `clear` nothing changes
    clear_for: 1m
    priority: 50 # 0 to 100: of two rules that want the same guest the higher wins
    severity: warning # info, warning or critical
    mode: observe # observe: decide and tell, do nothing; act: do it
    cooldown: 10m # no new attempt on the same guest for so long
    remedies: # in order; the next only where the effect of the one before did not come
      - set: {{cpu_shares: current * 2}}
        lease: 15m # then it is given back
        expect: cpu_steal_ratio < 8% within 2m
      - migrate: {{to: best}}
        expect: cpu_steal_ratio < 5% within 5m
"""

_TESTS: Final = """\
virtpilot: 1
tests:
  - name: a starved guest is given shares, and that is enough
    mode: act # in place of the rule's own: what it would do
    every: 10s # between samples; in a series `0x2 30%` is three samples of 0, then 30 %
    hosts:
      busy: {{series: {{cpu_usage_ratio: 95%}}}}
    guests:
      web: {{host: busy, series: {{cpu_steal_ratio: 0x2 30%}}}}
    answers: # what becomes of its commands, and what is measured then
      - {{to: set cpu_shares, of: web, then: {{cpu_steal_ratio: 2%}}}}
    expect:
      - {{signal: {name}, of: web, at: 50s, is: pending}}
      - {{signal: {name}, of: web, at: 1m, is: firing}}
      - {{command: {name}, of: web, by: 70s, is: given, action: set cpu_shares 2048}}
      - {{outcome: {name}, of: web, by: 2m, is: effective}}
      - {{signal: {name}, of: web, at: 3m, is: inactive}}

  - name: a guest of a host that has room is left alone
    mode: act
    hosts:
      roomy: {{series: {{cpu_usage_ratio: 40%}}}}
    guests:
      web: {{host: roomy, series: {{cpu_steal_ratio: 30%}}}}
    expect:
      - {{signal: {name}, of: web, at: 5m, is: inactive}}
"""


def starter(name: str) -> dict[str, str]:
    """Return the texts of a new rule's files by their names; raises ValueError where the name cannot be a rule's."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a name: letters, digits, '.', '_' and '-', 64 at most")
    return {f"{name}.yaml": _RULES.format(name=name), f"{name}.test.yaml": _TESTS.format(name=name)}
