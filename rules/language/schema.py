"""The format of rule files as JSON Schema (draft 2020-12), so that editors complete and check while one writes.

It knows structure, words and shapes; what expressions mean is left to the loader.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from virtpilot.action import AllocationPolicy, Resource, Verb
from virtpilot.calendar import MAX_CHARS
from virtpilot.knobs import DEVICE_KNOBS, DEVICES, KNOBS
from virtpilot.model import Kind, Mode
from virtpilot.rules.language.attributes import BUDGET, BUDGET_SCOPES, MAX_ANNOTATIONS, MAX_CALENDARS, MAX_WORDING
from virtpilot.rules.language.document import AT_LEAST, MAX_REMEDIES, PATIENT, RULE_KEYS
from virtpilot.rules.language.nodes import MAX_ABOUT, MAX_NAMES, NAME
from virtpilot.rules.language.outline import (
    FILE_KEYS,
    MAX_GROUPS,
    MAX_INCLUDES,
    MAX_PARAMETERS,
    MAX_RULES,
    MAX_TEMPLATES,
    OWN,
    PARAMETER,
)
from virtpilot.rules.language.records import NoData, Severity

Schema = dict[str, Any]

_SPAN: Final = r"([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+"
_NAME: Final = f"^{NAME.pattern}$"
_EXPRESSION: Final = (
    "Fields with units, windows and tags, such as `cpu_steal_ratio > 10% and host.cpu_usage_ratio > 85%`."
)


_POWER: Final[dict[Verb, str]] = {
    Verb.SUSPEND: "Stop the guest's CPUs; it stays in memory.",
    Verb.RESUME: "Let a suspended guest go on.",
    Verb.START: "Start a guest that is off.",
    Verb.SHUTDOWN: "Ask the guest to shut down; nothing harsher is done where it does not.",
    Verb.REBOOT: "Ask the guest to reboot.",
    Verb.DESTROY: "Pull the guest's plug, where its host's caps permit that.",
}


def _words(kind: type[StrEnum], about: str, default: str | None = None) -> Schema:
    found: Schema = {"enum": [member.value for member in kind], "description": about}
    return found if default is None else found | {"default": default}


def _duration(about: str) -> Schema:
    return {"type": "string", "pattern": f"^{_SPAN}$", "maxLength": 64, "description": f"{about} Such as 30s or 1h30m."}


def _condition(about: str) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": 2000, "description": f"{about} {_EXPRESSION}"}


def _object(properties: Schema, required: list[str], about: str = "") -> Schema:
    found: Schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return found | {"description": about} if about else found


def _names(about: str) -> Schema:
    name = {"type": "string", "pattern": _NAME}
    return {"type": "array", "items": name, "maxItems": MAX_NAMES, "uniqueItems": True, "description": about}


def _named(about: str) -> Schema:
    name = {"type": "string", "pattern": _NAME}
    names = {"type": "array", "items": name, "minItems": 1, "maxItems": MAX_NAMES}
    return {"oneOf": [name, names], "description": about}


def _when(about: str) -> Schema:
    """Return a condition, or signals that must come together."""
    signals = _named("The rules whose signals are meant.")
    together = {
        "type": "object",
        "properties": {"all": signals, "any": signals},
        "patternProperties": {AT_LEAST.pattern: signals},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"oneOf": [_condition(about), together], "description": about}


def _times(about: str) -> Schema:
    time = {"type": "string", "minLength": 1, "maxLength": MAX_CHARS}
    times = {"type": "array", "items": time, "minItems": 1, "maxItems": MAX_CALENDARS}
    return {"oneOf": [time, times], "description": f"{about} Such as `Mon-Fri 08:00-18:00 Europe/Berlin`."}


def _cooldown() -> Schema:
    about = "No new attempt on the same subject for so long after the last one."
    sides = {"up": _duration("After the knob went up."), "down": _duration("After it went down.")}
    return {"oneOf": [_duration(about), _object(sides, ["up", "down"])], "description": about}


def _budget() -> Schema:
    about = "How many actions the rule may want in a span, such as `4 per 1h`: in all, on one guest, on one host's."
    one = {"type": "string", "pattern": f"^{BUDGET.pattern}$"}
    return {"oneOf": [one, _object(dict.fromkeys(BUDGET_SCOPES, one), [])], "description": about}


def _rule() -> Schema:
    whole = _object(_signal() | _action(), ["name"])
    return whole | {"anyOf": [{"required": ["on", "when"]}, {"required": ["template"]}]}


def _signal() -> Schema:
    return {
        "name": {"type": "string", "pattern": _NAME, "description": "Unlike any other rule's."},
        "template": {"type": "string", "pattern": _NAME, "description": "The template that has the other keys."},
        "with": {"type": "object", "description": "What fills the template's gaps."},
        "about": {"type": ["string", "null"], "maxLength": MAX_ABOUT, "description": "A sentence for people."},
        "on": _words(Kind, "Whom the rule is about: each has a signal of its own."),
        "where": _condition("Only those for which this holds."),
        "unless": _named("While one of these rules' signals fires on it, on its host or on the cluster, all rests."),
        "when": _when("The condition."),
        "for": _duration("`when` holds for so long before the signal fires."),
        "clear": _when("What ends the signal; without it: not `when`."),
        "clear_for": _duration("`clear` holds for so long before the signal ends."),
        "no_data": _words(NoData, "What silence means.", NoData.HOLD),
        "during": _times("The rule speaks only then."),
        "not_during": _times("The rule rests then."),
        "severity": _words(Severity, "A label of alerts.", Severity.WARNING),
        "notify": _names("The names of the alert targets that are told; all where there is none."),
        "annotations": {
            "type": "object",
            "propertyNames": {"pattern": _NAME},
            "additionalProperties": {"type": ["string", "null"], "maxLength": MAX_WORDING},
            "maxProperties": MAX_ANNOTATIONS,
            "description": "Texts for people, with `{{ name }}`, `{{ value }}` and what `when` reads.",
        },
    }


def _action() -> Schema:
    return {
        "priority": {
            "type": "integer",
            "minimum": 0,
            "maximum": 100,
            "default": 50,
            "description": "Of two rules that want the same guest the higher wins.",
        },
        "mode": _words(Mode, "How far the rule may go by itself.", Mode.OBSERVE),
        "cooldown": _cooldown(),
        "budget": _budget(),
        "remedies": {
            "type": "array",
            "maxItems": MAX_REMEDIES,
            "items": {"oneOf": [_set(), _allocate(), _migrate(), _run(), *map(_power, Verb)]},
            "description": "What to try, in order; the next only where the effect of the one before did not come.",
        },
    }


_EXPECT: Final[Schema] = {
    "type": "string",
    "pattern": rf"\S\s+within\s+{_SPAN}\s*$",
    "description": "The effect it must have: `<condition> within <duration>`.",
}


def _of_device(device: str) -> str:
    names = "|".join(name for name, knob in DEVICE_KNOBS.items() if knob.device == device)
    return rf"^{DEVICES[device].pattern}\.({names})$"


def _set() -> Schema:
    kinds = {"type": ["string", "integer", "number"]}
    value = kinds | {"description": "A number; `current` is the knob's value now. Of CPUs or nodes a list, 0-3,6."}
    knobs = _object(dict.fromkeys(KNOBS, value), [], "The knob and what it is set to.")
    knobs |= {"patternProperties": {_of_device(device): value for device in DEVICES}}
    lease = _duration("How long the knob stays changed.")
    return _object(
        {"set": knobs | {"minProperties": 1, "maxProperties": 1}, "lease": lease, "expect": _EXPECT}, ["set", "lease"]
    )


def _allocate() -> Schema:
    parts = {
        "policy": {"enum": list(AllocationPolicy), "description": "By what each guest's part is measured."},
        "resource": {"enum": list(Resource)},
        "by": {"enum": ["shares", "quota"], "description": "The knob of CPUs; shares where nothing is said."},
        "reserve": {"type": "string", "pattern": r"^[0-9]{1,2}(\.[0-9]{1,3})?\s*%$"},
    }
    divided = _object(parts, ["policy", "resource"], "Divide the host's resource among its guests.")
    lease = _duration("How long the knobs stay changed.")
    return _object({"allocate": divided, "lease": lease, "expect": _EXPECT}, ["allocate", "lease"])


def _migrate() -> Schema:
    to = _object({"to": {"const": "best"}}, ["to"], "Live-migrate the guest to the host with the most headroom.")
    return _object({"migrate": to, "expect": _EXPECT}, ["migrate"])


def _run() -> Schema:
    name = {"type": "string", "pattern": _NAME, "description": "A program or webhook on the list of the guest's host."}
    return _object({"run": name, "expect": _EXPECT}, ["run"])


def _power(verb: Verb) -> Schema:
    within = {"within": _duration("How long the guest may take, 1h at most; 60s where nothing is said.")}
    what = _object(within if verb in PATIENT else {}, [], _POWER[verb])
    return _object({str(verb): what, "expect": _EXPECT}, [str(verb)])


def _group() -> Schema:
    grouped = _object(_signal() | _action(), ["name"])
    defaults = {name: value for name, value in (_signal() | _action()).items() if name not in OWN}
    name = {"type": "string", "pattern": _NAME}
    return _object(
        {
            "name": name,
            "about": {"type": ["string", "null"]},
            "defaults": _object(defaults, [], "What its rules have in common; a rule's own keys go before."),
            "rules": {"type": "array", "maxItems": MAX_RULES, "items": grouped},
        },
        ["name", "rules"],
        "Rules that have something in common.",
    )


def _templates() -> Schema:
    # What stands in a template may have gaps, and only filled it is a rule.
    rule = _object({name: {} for name in RULE_KEYS if name not in OWN}, [], "A rule's keys, with gaps `{{ limit }}`.")
    value = {"type": ["string", "number", "boolean", "null"]}
    parameters = {
        "type": "object",
        "propertyNames": {"pattern": f"^{PARAMETER.pattern}$"},
        "additionalProperties": value,
        "maxProperties": MAX_PARAMETERS,
        "description": "What fills the gaps where a rule does not; nothing: the rule must.",
    }
    return {
        "type": "object",
        "propertyNames": {"pattern": _NAME},
        "additionalProperties": _object({"parameters": parameters, "rule": rule}, ["rule"]),
        "maxProperties": MAX_TEMPLATES,
        "description": "Rules with gaps, by name.",
    }


def rule_schema() -> Schema:
    """Return the schema of a rule file."""
    include = {"type": "array", "items": {"type": "string", "pattern": r"\.yaml$"}, "maxItems": MAX_INCLUDES}
    top = _object(
        {
            "virtpilot": {"const": 1, "description": "The version of the format."},
            "include": include | {"description": "Files below this one's folder, read first, templates too."},
            "templates": _templates(),
            "groups": {"type": "array", "maxItems": MAX_GROUPS, "items": _group()},
            "rules": {"type": "array", "maxItems": MAX_RULES, "items": {"$ref": "#/$defs/rule"}},
        },
        ["virtpilot"],
        "A rule file of virtpilot.",
    )
    some = {"anyOf": [{"required": [key]} for key in FILE_KEYS[1:]]}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://virtpilot.dev/schema/rules-1.json",
    }
    return head | {"title": "virtpilot rules"} | top | some | {"$defs": {"rule": _rule()}}
