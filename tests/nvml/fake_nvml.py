"""The stand-in's truth in Python: the formula that fake_nvml.c counts by, and its settings."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

ORIGIN_S = 1_700_000_000.0
BURST_SLOTS = 4096
MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class FakeGpus:
    """Settings of the stand-in. A GPU draws base + index * step, and what varies above that.

    What varies is `trace`, a file of `seconds,watts` that is played over and over; else, with
    `burst_s`, bursts: each slot of that length is on by the chance of `duty`, at an even chance
    between 0 and `amp_w`; else a square wave that is `amp_w` high in the first `duty` of every
    `period_s`. GPU i is i * `shift_s` ahead in it. `module_w` makes each a part of a module that
    draws so much beside it.
    """

    gpus: int = 1
    base_w: float = 300.0
    amp_w: float = 0.0
    period_s: float = 1.0
    duty: float = 0.5
    step_w: float = 0.0
    shift_s: float = 0.0
    burst_s: float = 0.0
    seed: int = 1
    trace: Path | None = None
    module_w: float = 0.0

    def settings(self, **more: object) -> dict[str, str]:
        """The FAKE_NVML_ variables of these GPUs; `more` by their names (no_energy=1)."""
        values = {
            "GPUS": self.gpus,
            "BASE_W": self.base_w,
            "AMP_W": self.amp_w,
            "PERIOD_S": self.period_s,
            "DUTY": self.duty,
            "STEP_W": self.step_w,
            "SHIFT_S": self.shift_s,
            "BURST_S": self.burst_s,
            "SEED": self.seed,
            "TRACE": self.trace or "",
            "MODULE_W": self.module_w,
            **{key.upper(): value for key, value in more.items()},
        }
        return {f"FAKE_NVML_{key}": str(value) for key, value in values.items()}

    def environ(self, library: Path, **more: object) -> dict[str, str]:
        """What to add to a process' environment for it to find these GPUs."""
        return {"LD_LIBRARY_PATH": str(library.parent), **self.settings(**more)}

    def energy_j(self, gpu: int, t0_s: float, t1_s: float) -> float:
        """The true energy of one GPU (module) between two moments of the wall clock, in joules."""
        steady_w = self.base_w + gpu * self.step_w + self.module_w
        ahead_s = gpu * self.shift_s - ORIGIN_S
        varying_j = self._varying_j(t1_s + ahead_s) - self._varying_j(t0_s + ahead_s)
        return steady_w * (t1_s - t0_s) + varying_j

    def most_w(self, gpu: int) -> float:
        """The highest power of one GPU (module)."""
        varying_w = max(self._cycle[1]) if self._cycle else self.amp_w
        return self.base_w + gpu * self.step_w + self.module_w + varying_w

    def _varying_j(self, x_s: float) -> float:
        """Joules of what varies until so many seconds after the origin."""
        if self._cycle is None:
            periods = math.floor(x_s / self.period_s)
            high = self.duty * self.period_s
            return self.amp_w * (periods * high + min(x_s - periods * self.period_s, high))
        at_s, watts, joules = self._cycle
        periods = math.floor(x_s / at_s[-1])
        rest = x_s - periods * at_s[-1]
        row = min(bisect_right(at_s, rest), len(watts)) - 1
        return periods * joules[-1] + joules[row] + watts[row] * (rest - at_s[row])

    @cached_property
    def _cycle(self) -> tuple[list[float], list[float], list[float]] | None:
        """Moments (one more than the watts between them) and the joules until each."""
        if self.trace is not None:
            return _cycle_of(_read_trace(self.trace))
        if self.burst_s > 0:
            slots = range(BURST_SLOTS + 1)
            return _cycle_of((k * self.burst_s, self._burst_w(k)) for k in slots)
        return None

    def _burst_w(self, slot: int) -> float:
        on = _chance(self.seed, 2 * slot) < self.duty
        return self.amp_w * _chance(self.seed, 2 * slot + 1) if on else 0.0


def parent_uuid(node: str, gpu: int) -> str:
    """The UUID of a stand-in GPU of that node."""
    return f"GPU-{_hash(node):08x}-fa4e-4e76-9a01-{gpu:012x}"


def instance_uuid(node: str, gpu: int, instance: int) -> str:
    """The UUID of a MIG instance of it."""
    return f"MIG-{_hash(node):08x}-fa4e-4e76-9a02-{gpu:08x}{instance:04x}"


def _hash(text: str) -> int:
    """FNV-1a, 32 bits."""
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


def _read_trace(path: Path) -> Iterable[tuple[float, float]]:
    for line in path.read_text().splitlines():
        at_s, _, watts = line.partition(",")
        try:
            yield float(at_s), float(watts)
        except ValueError:
            continue  # a heading


def _cycle_of(rows: Iterable[tuple[float, float]]) -> tuple[list[float], list[float], list[float]]:
    at_s, watts = map(list, zip(*rows, strict=True))
    steps = ((b - a) * w for (a, b), w in zip(pairwise(at_s), watts, strict=False))
    return at_s, watts[:-1], list(accumulate(steps, initial=0.0))


def _chance(seed: int, place: int) -> float:
    """A number in [0, 1) from a seed and a place; splitmix64's mixing."""
    z = (seed * 0x9E3779B97F4A7C15 + (place + 1) * 0xD1B54A32D192ED03) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return ((z ^ (z >> 31)) >> 11) / 9007199254740992.0
