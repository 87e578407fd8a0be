"""The stand-in's truth in Python: the formula that fake_nvml.c counts by, and its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ORIGIN_S = 1_700_000_000.0


@dataclass(frozen=True, kw_only=True)
class FakeGpus:
    """Settings of the stand-in. Power: base + index * step, and amp more in the square's high."""

    gpus: int = 1
    base_w: float = 300.0
    amp_w: float = 0.0
    period_s: float = 1.0
    duty: float = 0.5
    step_w: float = 0.0

    def environ(self, library: Path, **more: object) -> dict[str, str]:
        """What to add to a process' environment; `more` as FAKE_NVML_<NAME> (no_energy=1)."""
        settings = {
            "GPUS": self.gpus,
            "BASE_W": self.base_w,
            "AMP_W": self.amp_w,
            "PERIOD_S": self.period_s,
            "DUTY": self.duty,
            "STEP_W": self.step_w,
            **{key.upper(): value for key, value in more.items()},
        }
        named: Mapping[str, str] = {f"FAKE_NVML_{k}": str(v) for k, v in settings.items()}
        return {"LD_LIBRARY_PATH": str(library.parent), **named}

    def energy_j(self, gpu: int, t0_s: float, t1_s: float) -> float:
        """The true energy of one GPU between two moments of the wall clock, in joules."""
        steady_w = self.base_w + gpu * self.step_w
        return steady_w * (t1_s - t0_s) + self.amp_w * (self._high_s(t1_s) - self._high_s(t0_s))

    def _high_s(self, t_s: float) -> float:
        x = t_s - ORIGIN_S
        periods = math.floor(x / self.period_s)
        high = self.duty * self.period_s
        return periods * high + min(x - periods * self.period_s, high)
