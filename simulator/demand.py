"""What guests want over time: signal shapes of scenario files, and their values for all guests at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

_LARGEST: Final = 1e9
Floats = NDArray[np.float64]


class Steps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="steps", tag_field="shape"):
    """A value that holds from each [second, value] point to the next; 0 before the first; repeats if asked."""

    points: Annotated[list[tuple[float, float]], msgspec.Meta(min_length=1)]
    repeat_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Sine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sine", tag_field="shape"):
    """mean + amplitude · sin(2π · (t / period + phase)), never below 0; phase 0 to 1."""

    mean: float
    amplitude: float
    period_s: Annotated[float, msgspec.Meta(gt=0)]
    phase: float = 0.0


class Trace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="trace", tag_field="shape"):
    """A recorded series, one value each `interval_s`, times `scale`; starts again at its end, or holds the last."""

    values: Annotated[list[float], msgspec.Meta(min_length=1)]
    interval_s: Annotated[float, msgspec.Meta(gt=0)]
    scale: float = 1.0
    repeat: bool = True


Signal = float | Steps | Sine | Trace


def signal_mistake(signal: Signal) -> str:
    """Say what is wrong with a well-formed signal, or ""."""
    numbers: list[float]
    if isinstance(signal, Steps):
        times = [time for time, _ in signal.points]
        numbers = [*times, *(value for _, value in signal.points), signal.repeat_s]
        if any(later <= earlier for earlier, later in pairwise(times)):
            return "the points' times do not rise"
        if signal.repeat_s and times[-1] >= signal.repeat_s:
            return f"the last point, {times[-1]:g} s, lies beyond repeat_s"
    elif isinstance(signal, Sine):
        numbers = [signal.mean]
        if not math.isfinite(signal.amplitude + signal.period_s + signal.phase):
            return "not a finite number"
    elif isinstance(signal, Trace):
        numbers = [*signal.values, signal.interval_s, signal.scale]
    else:
        numbers = [signal]
    if not all(map(math.isfinite, numbers)):
        return "not a finite number"
    if max(numbers) > _LARGEST:
        return f"more than {_LARGEST:g}"
    return "less than 0" if min(numbers) < 0 else ""


class Demand:
    """One signal for each of n guests, evaluated together: the values stand until `at` is asked a later time."""

    def __init__(self, signals: Sequence[Signal]) -> None:
        self._values: Floats = np.zeros(len(signals))
        self._stepped = [index for index, signal in enumerate(signals) if isinstance(signal, Steps | Trace)]
        self._next: Floats = np.zeros(len(self._stepped))
        self._signals = signals
        sines = [(index, signal) for index, signal in enumerate(signals) if isinstance(signal, Sine)]
        self._sines = np.array([index for index, _ in sines], dtype=np.intp)
        self._mean, self._amplitude, self._period, self._phase = (
            np.array([getattr(sine, name) for _, sine in sines], dtype=np.float64)
            for name in ("mean", "amplitude", "period_s", "phase")
        )
        for index, signal in enumerate(signals):
            if isinstance(signal, float | int):
                self._values[index] = signal

    @property
    def next_s(self) -> float:
        """From when on the values may be others than those that `at` returned last, seconds after the start."""
        return 0.0 if self._sines.size else float(self._next.min(initial=math.inf))

    def at(self, time_s: float) -> Floats:
        """Return all values at `time_s` seconds after the start; times must not fall. The array is reused."""
        for place in np.flatnonzero(self._next <= time_s).tolist():
            index = self._stepped[place]
            signal = self._signals[index]
            if isinstance(signal, Steps):
                self._values[index], self._next[place] = _step(signal, time_s)
            elif isinstance(signal, Trace):
                self._values[index], self._next[place] = _trace(signal, time_s)
        if self._sines.size:
            wave = self._mean + self._amplitude * np.sin(2 * np.pi * (time_s / self._period + self._phase))
            self._values[self._sines] = np.maximum(wave, 0.0)
        return self._values


def _step(signal: Steps, time_s: float) -> tuple[float, float]:
    """Return the value at a time and when the next one comes."""
    lap = math.floor(time_s / signal.repeat_s) * signal.repeat_s if signal.repeat_s else 0.0
    # the last point of a lap carries over into the next one until its first point
    value = signal.points[-1][1] if lap else 0.0
    for at_s, level in signal.points:
        if lap + at_s > time_s:
            return value, lap + at_s
        value = level
    return value, lap + signal.repeat_s if signal.repeat_s else math.inf


def _trace(signal: Trace, time_s: float) -> tuple[float, float]:
    """Return the value at a time and when the next one comes."""
    number = math.floor(time_s / signal.interval_s)
    if not signal.repeat and number >= len(signal.values):
        return signal.values[-1] * signal.scale, math.inf
    return signal.values[number % len(signal.values)] * signal.scale, (number + 1) * signal.interval_s
