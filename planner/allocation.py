"""Dividing one resource of a host among its guests: CPU in cores, or memory in bytes, by one of four policies.

Each policy is a weighted max-min division (water-filling): guest i gets min(cap, max(floor, λ · weight)), with the one
λ at which nothing is left over. What differs is the weight:

| policy        | weight                        | asks                                               |
|---------------|-------------------------------|----------------------------------------------------|
| `demand`      | what it used and lacked       | who needs it now?                                  |
| `utilisation` | what it used                  | who has put it to use?                             |
| `capacity`    | its size: vCPUs, most memory  | who was sold more?                                 |
| `max-min`     | its weight, up to its demand  | is the smallest as large as it can be?             |

Source: Bertsekas and Gallager, Data Networks, section 6.5.2 (max-min flow control); Radunović and Le Boudec, A Unified
Framework for Max-Min and Min-Max Fairness (2007) for floors and caps.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from virtpilot.action import AllocationPolicy
from virtpilot.errors import CannotDivide


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One guest's claim to a resource, in the resource's unit; `used` and `lacked` are measured, `size` is configured.

    It gets `floor` at least and `cap` at most, whatever the policy.
    """

    guest: str
    used: float
    lacked: float = 0.0
    size: float = 1.0
    weight: float = 1.0
    floor: float = 0.0
    cap: float = math.inf

    @property
    def demand(self) -> float:
        """What it would use, had it all that it wants."""
        return self.used + self.lacked


_WEIGHTS: Final[Mapping[AllocationPolicy, Callable[[Claim], float]]] = {
    AllocationPolicy.DEMAND: lambda claim: claim.demand,
    AllocationPolicy.UTILISATION: lambda claim: claim.used,
    AllocationPolicy.CAPACITY: lambda claim: claim.size,
    AllocationPolicy.MAX_MIN: lambda claim: claim.weight,
}


def divide(
    policy: AllocationPolicy, claims: Sequence[Claim], capacity: float, reserve: float = 0.0
) -> dict[str, float]:
    """Return each guest's part of `capacity` less `reserve`, in the order of the claims' guests by name.

    The parts never exceed what there is to divide, and use it up unless every guest is at its cap. Raises CannotDivide
    where the floors alone are more, or a claim is no claim.
    """
    claims = sorted(claims, key=lambda claim: claim.guest)
    _check(claims, capacity, reserve)
    room = max(capacity - reserve, 0.0)
    floors = math.fsum(claim.floor for claim in claims)
    if floors > room:
        raise CannotDivide(f"the floors of {len(claims)} guests are {floors:g}, and {room:g} is there to divide")
    weights = [_WEIGHTS[policy](claim) for claim in claims]
    parts = [claim.floor for claim in claims]
    if policy is AllocationPolicy.MAX_MIN:
        # First what they can use; only what nobody needs goes beyond that.
        sated = [min(claim.cap, max(claim.floor, claim.demand)) for claim in claims]
        parts = _fill(weights, parts, sated, room)
    caps = [claim.cap for claim in claims]
    parts = _fill(weights, parts, caps, room)
    # Guests of weight 0 take, in equal parts, what all others have no room for.
    parts = _fill([1.0 if weight <= 0 else 0.0 for weight in weights], parts, caps, room)
    return {claim.guest: part for claim, part in zip(claims, parts, strict=True)}


def _check(claims: Sequence[Claim], capacity: float, reserve: float) -> None:
    if not (math.isfinite(capacity) and math.isfinite(reserve) and capacity >= 0 and reserve >= 0):
        raise CannotDivide(f"{capacity:g} less {reserve:g} is nothing that can be divided")
    if len({claim.guest for claim in claims}) < len(claims):
        raise CannotDivide("a guest claims twice")
    for claim in claims:
        numbers = (claim.used, claim.lacked, claim.size, claim.weight, claim.floor)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise CannotDivide(f"the claim of {claim.guest} is not measured")
        if not claim.cap >= claim.floor:
            raise CannotDivide(f"the cap of {claim.guest} ({claim.cap:g}) is below its floor ({claim.floor:g})")


def _fill(weights: Sequence[float], floors: Sequence[float], caps: Sequence[float], room: float) -> list[float]:
    """Return min(cap, max(floor, λ · weight)) for each, with the largest λ at which the sum is at most `room`.

    λ is found exactly: between two of the levels at which some part leaves its floor or reaches its cap, the sum is a
    line. Parts of weight 0 stay at their floors.
    """
    ends = {end / weight for weight, *both in zip(weights, floors, caps, strict=True) if weight > 0 for end in both}
    levels = [0.0, *sorted(end for end in ends if 0 < end < math.inf)]

    def sum_at(level: float) -> float:
        return math.fsum(_parts(weights, floors, caps, level))

    fitting = bisect_right(levels, room, key=sum_at)
    level = levels[max(fitting - 1, 0)]
    parts = _parts(weights, floors, caps, level)
    rising = [
        weight if weight > 0 and floor / weight <= level < cap / weight else 0.0
        for weight, floor, cap in zip(weights, floors, caps, strict=True)
    ]
    total, left = math.fsum(rising), room - math.fsum(parts)
    if total <= 0 or left <= 0:
        return parts
    step = left / total
    risen = [min(part + step * weight, cap) for part, weight, cap in zip(parts, rising, caps, strict=True)]
    if math.fsum(risen) > room:  # by rounding: each is up to half a unit in the last place too large
        return [max(part, math.nextafter(more, 0.0)) for part, more in zip(parts, risen, strict=True)]
    return risen


def _parts(weights: Sequence[float], floors: Sequence[float], caps: Sequence[float], level: float) -> list[float]:
    return [
        min(cap, max(floor, level * weight)) if weight > 0 else floor
        for weight, floor, cap in zip(weights, floors, caps, strict=True)
    ]
