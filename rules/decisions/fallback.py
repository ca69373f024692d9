"""The small matcher behind another one, for when that fails while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from virtpilot.rules.decisions.matcher import Consequence, Fact, Matcher, MatcherFault, Production
from virtpilot.rules.decisions.small import SmallMatcher

_log = structlog.get_logger(__name__)


class FallbackMatcher:
    """A matcher that is replaced by the small one when it fails, with the facts that hold.

    After a replacement every consequence that is true is told once more: better twice than never.
    """

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._fault = ""
        self._productions: tuple[Production, ...] = ()
        self._facts: dict[Fact, None] = {}

    @property
    def name(self) -> str:
        """Which matcher runs, and why when it is not the first choice."""
        return f"{self._matcher.name} ({self._fault})" if self._fault else self._matcher.name

    def load(self, productions: Sequence[Production]) -> None:
        """Replace the productions; all facts and consequences are forgotten."""
        self._productions = tuple(productions)
        self._facts.clear()
        self._do(lambda matcher: matcher.load(self._productions))

    def assert_fact(self, fact: Fact) -> None:
        """Say that something holds."""
        self._do(lambda matcher: matcher.assert_fact(fact))
        self._facts[fact] = None

    def retract_fact(self, fact: Fact) -> None:
        """Say that it holds no longer."""
        self._do(lambda matcher: matcher.retract_fact(fact))
        self._facts.pop(fact, None)

    def consequences(self) -> list[Consequence]:
        """Return what has become true since the last call and still is, sorted."""
        return self._matcher.consequences()

    def _do(self, call: Callable[[Matcher], None]) -> None:
        try:
            call(self._matcher)
        except MatcherFault as error:
            if self._fault:
                raise
            _log.error("matcher failed, going on with the small one", matcher=self._matcher.name, error=str(error))
            self._fault = str(error)
            self._matcher = SmallMatcher()
            self._matcher.load(self._productions)
            for fact in self._facts:
                self._matcher.assert_fact(fact)
            call(self._matcher)
