"""From a tree to typed parts: names looked up, units and kinds checked, every mistake at its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, cast

import lark

from virtpilot.fields import FIELDS, Type, Unit
from virtpilot.model import Kind
from virtpilot.rules.language import devices, functions, known, typed
from virtpilot.rules.language.devices import Device, Of
from virtpilot.rules.language.grammar import Tree
from virtpilot.rules.language.known import samples_of, unknown_field
from virtpilot.rules.language.syntax import ExpressionError
from virtpilot.rules.language.typed import Aggregate, Columns, Masks, Part, Reads, Window
from virtpilot.rules.language.units import added, multiplied, quantity

_Combine = Callable[[str, Unit | None, Unit | None], Unit | None]
_ANY_OWNER: Final = re.compile(r"\b(?:hosts?|vms)\.")
_GUEST_OWNER: Final = re.compile(r"\bvms\.")
_DEVICE_OWNER: Final = re.compile(rf"\b(?:{'|'.join(devices.WORDS)})\.")


class Compiler:
    """Turns a tree into parts; `reads` has what they read. `members` names whose members' world this is.

    `current` is what a knob's value counts in, where there is one.
    """

    def __init__(
        self,
        text: str,
        on: Of,
        *,
        current: Unit | None = None,
        members: str = "",
        bare: bool = True,
        inside: bool = False,
    ) -> None:
        self.reads = Reads()
        self._source = text
        self._on = on
        self._current = current
        self._members = members
        self._bare = bare
        self._inside = inside

    def part(self, tree: Tree) -> Part:
        """Return a tree's part; raises ExpressionError."""
        made: Part = getattr(self, f"_make_{tree.data}")(tree)
        made.owner = self._on.value
        return made

    def _parts(self, tree: Tree) -> list[Part]:
        return [self.part(child) for child in tree.children if isinstance(child, lark.Tree)]

    def _make_quantity(self, tree: Tree) -> Part:
        try:
            found = quantity(str(tree.children[0]))
        except ValueError as error:
            raise ExpressionError(tree.meta.start_pos, str(error)) from None
        part = typed.number(found.unit, lambda _columns, _current: found.value)
        part.literal = found
        return part

    def _make_text(self, tree: Tree) -> Part:
        written = str(tree.children[0])[1:-1]
        return typed.text(lambda _columns, _current: written)

    def _make_current(self, tree: Tree) -> Part:
        if self._current is None:
            raise ExpressionError(tree.meta.start_pos, "`current` is the knob's value: only in `set`")
        return typed.number(self._current, lambda _columns, current: current)

    def _make_field(self, tree: Tree) -> Part:
        token = cast("lark.Token", tree.children[0])
        if self._on is Kind.CLUSTER:
            hint = "write an aggregate such as `avg(hosts.cpu_usage_ratio)`"
            raise ExpressionError(token.start_pos or 0, f"the cluster has no field `{str(token)[:80]}`; {hint}")
        if not self._bare:
            hint = f"write `{self._members}.{str(token)[:80]}`"
            raise ExpressionError(token.start_pos or 0, f"`{str(token)[:80]}` of whom? {hint}")
        return self._read(self._on, token)

    def _make_host_field(self, tree: Tree) -> Part:
        if isinstance(self._on, Device):
            raise ExpressionError(tree.meta.start_pos, "`host.` is not a device's: it stands outside")
        if self._on is not Kind.VM:
            raise ExpressionError(tree.meta.start_pos, "`host.` is for rules on a vm")
        return self._read(Kind.HOST, cast("lark.Token", tree.children[0]))

    def _make_single_field(self, tree: Tree) -> Part:
        """Read a field of what a guest has one of at most, such as its job."""
        word, token = cast("list[lark.Token]", tree.children)
        single = devices.SINGLE[str(word)]
        if self._on is not single.owner or self._current is not None:
            what = (
                "`set` has the guest's own fields, and its host's" if self._current is not None else "it is a guest's"
            )
            raise ExpressionError(tree.meta.start_pos, f"`{word}.` cannot stand here: {what}")
        self.reads.every |= samples_of(self._on)
        if not single.text or str(token) != single.text:
            return self._read(single.device, token)
        self.reads.tags.add(f"{word}.{single.text}")
        self.reads.every |= samples_of(single.device)
        return typed.text(lambda columns, _current: columns.single_tag(single.device, single.text))

    def _make_member_field(self, tree: Tree) -> Part:
        owner, token = cast("list[lark.Token]", tree.children)
        if str(owner) != self._members:
            field = str(token)[:80]
            hint = f"such as `max({owner}.{field})` or `count({owner} where {field} …)`"
            raise ExpressionError(tree.meta.start_pos, f"`{owner}.` stands in an aggregate, {hint}")
        return self._read(self._on, token)

    def _read(self, of: Of, token: lark.Token) -> Part:
        measurement, name = of.value, str(token)
        declared = FIELDS.get((measurement, name))
        if declared is None:
            message = unknown_field(name, of, current=self._current is not None)
            raise ExpressionError(token.start_pos or 0, message)
        self.reads.fields.add((measurement, name))
        self.reads.every.add((measurement, name))
        part = typed.number(declared.unit, lambda columns, _current: columns.field(measurement, name))
        part.source = (measurement, name)
        part.most = 1.0 if declared.unit is Unit.RATIO else None
        part.counter = declared.type is Type.COUNTER
        return part

    def _make_tag(self, tree: Tree) -> Part:
        name = str(tree.children[0]).removeprefix("tags.")
        if name == "cluster" or self._on is Kind.CLUSTER or (name == "vm" and self._on is not Kind.VM):
            raise ExpressionError(tree.meta.start_pos, f"`tags.{name}` tells nothing apart on a {self._on}")
        self.reads.tags.add(name)
        self.reads.every |= samples_of(self._on)
        return typed.text(lambda columns, _current: columns.tag(name))

    def _make_signal(self, tree: Tree) -> Part:
        return self._signal(tree, 0)

    def _signal(self, tree: Tree, within_ns: int) -> Part:
        rule = str(tree.children[0]).removeprefix("signals.")
        if isinstance(self._on, Device):
            raise ExpressionError(tree.meta.start_pos, "signals are of guests, hosts and the cluster, not of a device")
        if self._current is not None or self._inside:
            raise ExpressionError(tree.meta.start_pos, "a signal's past is asked for with `recent(signals.<rule>, 2m)`")
        self.reads.recall({rule: within_ns})
        self.reads.asked.add(rule)
        self.reads.refers.append((rule, self._on, tree.meta.start_pos))
        self.reads.every |= samples_of(self._on)

        def evaluate(columns: Columns) -> Masks:
            fires = columns.signal(rule, within_ns)
            return fires == 1, fires == 0

        return typed.truth("signal", (), evaluate)

    def _override(self, inner: Tree, spans: Sequence[lark.Token], at: int) -> Part:
        """Read a number from a guest's own tag, checked like any other, with what holds where it has none."""
        if inner.data != "field" or len(spans) != 1 or self._on not in {Kind.VM, Kind.HOST}:
            raise ExpressionError(at, "`override` is written `override(cpu_steal_max, 10%)`, on a vm or host")
        tag, default = f"{functions.OVERRIDE}{inner.children[0]}", quantity(str(spans[0]))
        self.reads.tags.add(tag)
        part = typed.number(default.unit, lambda columns, _current: typed.overridden(columns.tag(tag), default))
        part.most = 1.0 if default.unit is Unit.RATIO else None
        return part

    def _recent(self, inner: Tree, spans: Sequence[lark.Token], at: int) -> Part:
        if inner.data != "signal" or len(spans) != 1:
            raise ExpressionError(at, "`recent` is written `recent(signals.<rule>, 2m)`")
        return self._signal(inner, _span(spans[0]))

    def _make_minus(self, tree: Tree) -> Part:
        (inner,) = self._parts(tree)
        self._must(inner, "number", tree)
        part = typed.number(inner.unit, lambda columns, current: -inner.value(columns, current))
        part.sign, part.parts = "-", (inner,)
        return part

    def _make_sum(self, tree: Tree) -> Part:
        return self._fold(tree, added)

    def _make_product(self, tree: Tree) -> Part:
        return self._fold(tree, multiplied)

    def _fold(self, tree: Tree, combine: _Combine) -> Part:
        left = self.part(cast("Tree", tree.children[0]))
        self._must(left, "number", tree)
        for token, child in zip(tree.children[1::2], tree.children[2::2], strict=True):
            right = self.part(cast("Tree", child))
            self._must(right, "number", tree)
            try:
                unit = combine(str(token), left.unit, right.unit)
            except ValueError as error:
                raise ExpressionError(cast("lark.Token", token).start_pos or 0, str(error)) from None
            left = typed.arithmetic(str(token), left, right, unit)
        return left

    def _make_comparison(self, tree: Tree) -> Part:
        first, token, second = tree.children
        left, right = self.part(cast("Tree", first)), self.part(cast("Tree", second))
        sign, at = str(token), cast("lark.Token", token).start_pos or 0
        if left.kind == right.kind == "text":
            if sign not in {"==", "!="}:
                raise ExpressionError(at, f"texts are compared with == and !=, not {sign}")
            return typed.same_text(sign, left, right)
        if "number" not in {left.kind} & {right.kind}:
            raise ExpressionError(at, f"cannot compare a {left.kind} with a {right.kind}")
        _check_units(left, right, at)
        return typed.compared(sign, left, right)

    def _make_both(self, tree: Tree) -> Part:
        return self._logic("and", tree)

    def _make_either(self, tree: Tree) -> Part:
        return self._logic("or", tree)

    def _logic(self, sign: str, tree: Tree) -> Part:
        parts = self._parts(tree)
        for part in parts:
            self._must(part, "truth", tree)
        return typed.logic(sign, parts)

    def _make_negation(self, tree: Tree) -> Part:
        (inner,) = self._parts(tree)
        self._must(inner, "truth", tree)
        return typed.negation(inner)

    def _must(self, part: Part, kind: str, tree: Tree) -> None:
        if part.kind != kind:
            needed = "a condition" if kind == "truth" else "a number"
            raise ExpressionError(tree.meta.start_pos, f"{needed} is needed here, this is a {part.kind}")

    def _make_members(self, tree: Tree) -> Part:
        name, owner = cast("list[lark.Token]", tree.children[:2])
        where = cast("Tree", tree.children[2]) if len(tree.children) > 2 else None
        wrong = known.over_whom(str(name), str(owner), chosen=where is not None)
        if wrong:
            raise ExpressionError(tree.meta.start_pos, wrong)
        counted = self._aggregate(tree, "count", str(owner), None, where)
        return typed.some(counted) if str(name) == functions.ANY else counted

    def _make_call(self, tree: Tree) -> Part:
        name, inner = str(tree.children[0]), cast("Tree", tree.children[1])
        spans = [child for child in tree.children[2:] if isinstance(child, lark.Token)]
        where = next((child for child in tree.children[2:] if isinstance(child, lark.Tree)), None)
        if name in {"override", "recent"}:
            return (self._recent if name == "recent" else self._override)(inner, spans, tree.meta.start_pos)
        if spans and where is not None:
            raise ExpressionError(where.meta.start_pos, "`where` goes with members such as `vms`, not with a window")
        owners = _owners(inner) - {self._members}
        wrong = known.call(name, self._slice(inner), owners, str(spans[0]) if spans else "")
        if self._current is not None:
            wrong = functions.unknown(name) or f"`{name}(…)`: `set` has no functions, only fields and `current`"
        if wrong or (spans and self._inside):
            raise ExpressionError(tree.meta.start_pos, wrong or "a window within a window")
        return (
            self._window(tree, name, inner, spans) if spans else self._aggregate(tree, name, owners.pop(), inner, where)
        )

    def _slice(self, tree: Tree) -> str:
        return " ".join(self._source[tree.meta.start_pos : tree.meta.end_pos].split())

    def _window(self, tree: Tree, name: str, inner: Tree, spans: Sequence[lark.Token]) -> Part:
        function = cast("functions.Function", functions.window(name))
        compiler = Compiler(self._source, self._on, inside=True, members=self._members, bare=self._bare)
        series = compiler.part(inner)
        what = "counter" if series.counter else {"number": "gauge"}.get(series.kind, series.kind)
        if what not in function.of:
            raise ExpressionError(inner.meta.start_pos, functions.wrong_input(name, what))
        if not compiler.reads.every:
            raise ExpressionError(inner.meta.start_pos, "this reads no field: it never changes")
        if len(spans) > function.spans:
            most = {1: "one span", 2: "two spans"}[function.spans]
            raise ExpressionError(spans[-1].start_pos or 0, f"`{name}` takes {most} of time")
        on = Kind.HOST if _hosts_alone(compiler.reads) else self._on
        window = Window(
            self._slice(tree), on, name, function.merge, [_span(one) for one in spans], typed.as_number(series)
        )
        window.over, window.series_text, window.what = series, self._slice(inner), what
        if not compiler.reads.aggregates:
            own = _DEVICE_OWNER if isinstance(on, Device) else {Kind.HOST: _ANY_OWNER, Kind.VM: _GUEST_OWNER}[on]
            window.series_text = own.sub("", window.series_text)
            window.key = (on, own.sub("", window.text))
        self.reads.beneath(compiler.reads)
        self.reads.aggregates |= compiler.reads.aggregates
        return self._over_time(window, name, series, tree)

    def _over_time(self, window: Window, name: str, series: Part, tree: Tree) -> Part:
        try:
            unit = Unit.RATIO if series.kind == "truth" and name == "avg" else functions.unit_of(name, series.unit)
        except ValueError as error:
            raise ExpressionError(tree.meta.start_pos, str(error)) from None
        known = self.reads.every_window.setdefault(window.key, window)
        self.reads.windows[window.key] = known
        part = typed.number(unit, lambda columns, _current: columns.window(known))
        part.source = known
        if unit is Unit.RATIO and name not in {"rate", "slope", "forecast"}:
            part.most = 1.0 if series.kind == "truth" else series.most
        return part

    def _aggregate(self, tree: Tree, name: str, owner: str, inner: Tree | None, where: Tree | None) -> Part:
        try:
            members = known.members(owner, self._on)
        except ValueError as error:
            raise ExpressionError(tree.meta.start_pos, str(error)) from None
        if self._members and isinstance(members, Kind):
            raise ExpressionError(tree.meta.start_pos, "an aggregate within an aggregate")
        aggregate = Aggregate(self._slice(tree), name, members, self._scope(members), owner)
        part = typed.number(Unit.COUNT, lambda columns, _current: columns.aggregate(aggregate))
        if inner is not None:
            value = self._of_members(aggregate, inner, "number", bare=False)
            aggregate.value = value.value
            part.unit = functions.unit_of(name, value.unit)
            part.most = value.most if name not in {"sum", "count"} else None
        if where is not None:
            aggregate.chosen = self._of_members(aggregate, cast("Tree", where.children[0]), "truth", bare=True)
            aggregate.where = aggregate.chosen.truth
        if isinstance(members, Device):
            self.reads.every |= samples_of(self._on)
        if not aggregate.reads.every:
            # Of a subject that no wanted field is read of, no sample would come.
            self.reads.every |= samples_of(members)
        part.source = self.reads.aggregates.setdefault(aggregate.key, aggregate)
        return part

    def _scope(self, members: Of) -> Kind:
        """Return whose members are meant."""
        if isinstance(members, Device):
            return devices.DECLARED[members].owner
        return Kind.CLUSTER if members is Kind.HOST or self._on is Kind.CLUSTER else Kind.HOST

    def _of_members(self, aggregate: Aggregate, tree: Tree, kind: str, *, bare: bool) -> Part:
        compiler = Compiler(self._source, aggregate.members, members=aggregate.word, bare=bare)
        part = compiler.part(tree)
        compiler._must(part, kind, tree)
        self.reads.beneath(compiler.reads)
        aggregate.reads.add(compiler.reads)
        return part


def _span(token: lark.Token) -> int:
    at = token.start_pos or 0
    found = quantity(str(token))
    if found.unit is not Unit.SECONDS:
        raise ExpressionError(at, f"{str(token)!r} is not a span of time such as 30s, 5m or 1h")
    span_ns = round(found.value * 1e9)
    if not functions.MIN_SPAN_NS <= span_ns <= functions.MAX_SPAN_NS:
        raise ExpressionError(at, "a window is from 1s to 24h long")
    return span_ns


def _owners(tree: Tree) -> set[str]:
    """Return whose fields stand in a tree, but within aggregates of its own: vms, hosts, disks, several, none."""
    if tree.data == "member_field":
        return {str(tree.children[0])}
    inner = [child for child in tree.children if isinstance(child, lark.Tree)]
    over_time = any(isinstance(child, lark.Token) and child.type == "QUANTITY" for child in tree.children)
    if tree.data == "members" or (tree.data == "call" and not over_time):
        return set()
    return {owner for child in inner for owner in _owners(child)}


def _hosts_alone(reads: Reads) -> bool:
    """Tell whether a guest's window is about its host only: then it is the host's own."""
    return bool(reads.fields) and not reads.tags and not reads.aggregates and {m for m, _ in reads.fields} == {"host"}


def _check_units(left: Part, right: Part, at: int) -> None:
    for value, other in ((left, right), (right, left)):
        literal = other.literal
        if value.most is None or literal is None or literal.value <= value.most:
            continue
        if literal.unit is None:
            number = f"{literal.value:g}"
            raise ExpressionError(at, f"a ratio is between 0 and 1: write {number}% for {number} percent")
        if literal.unit is Unit.RATIO:
            raise ExpressionError(at, f"this is never over {value.most:.0%}: a ratio is between 0 and 1")
    if left.unit is not None and right.unit is not None and left.unit is not right.unit:
        raise ExpressionError(at, f"cannot compare {left.unit} with {right.unit}")
