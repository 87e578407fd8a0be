"""How long a step takes: work / (ranks * peak * utilisation) + overhead * micro-steps seconds.

Work is the FLOPs of a step; the overhead is what a micro-step costs however small the model is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Columns of steps that all cost alike tell nothing of work and overhead apart.
ALIKE = 1e-4
# Rounds in which the scale of the errors settles: each brings them nearer tenfold and more.
ROUNDS = 8
# The scatter of a step's time where there are too few to show one, as a relative error.
USUAL_SCATTER = 0.15


@dataclass(frozen=True)
class StepTime:
    """How long a step took: `work_s` is its FLOPs / (ranks * peak), `micro_steps` its number of
    micro-batches on each rank; `error` is one standard error of the time's logarithm."""

    work_s: float
    micro_steps: float
    step_s: float
    error: float = 0.0


@dataclass(frozen=True)
class StepLaw:
    """Utilisation and overhead of steps; NaN for a utilisation that the steps do not tell.

    `scatter` is the root mean square of (predicted - measured) / predicted over the steps it rests
    on, `time_error` the standard error of the mean of what it predicts; all errors are relative
    but that of the overhead.
    """

    utilisation: float
    utilisation_error: float
    step_overhead_s: float
    step_overhead_error_s: float
    scatter: float
    time_error: float

    def step_s(self, work_s: float, micro_steps: float, *, prior: float = math.nan) -> float:
        """Seconds of a step; `prior` is the utilisation where the steps did not tell one."""
        utilisation = self.utilisation if self.utilisation > 0 else prior
        return work_s / utilisation + self.step_overhead_s * micro_steps


def fit_steps(times: Sequence[StepTime], *, utilisation: float) -> StepLaw:
    """Least squares of step time in relative error, both coefficients 0 or more.

    Errors are relative to what is predicted, found in a few rounds: relative to what was measured,
    a time that came out short would count more than one that came out long, and all be told short.
    A step that was measured badly counts less: weights are 1 / (USUAL_SCATTER^2 + its error^2).
    Steps that all do alike (or one alone) tell one coefficient: all of it is taken for work.
    Where overhead hides the work, the `utilisation` that is given is kept, and NaN returned for it.
    Raises ValueError without a step.
    """
    if not times:
        raise ValueError("no step was timed")
    law = _fit(_System.of(times, [t.step_s for t in times]), utilisation)
    for _ in range(ROUNDS):
        told = [law.step_s(t.work_s, t.micro_steps, prior=utilisation) for t in times]
        law = _fit(_System.of(times, told), utilisation)
    return law


def _fit(system: _System, utilisation: float) -> StepLaw:
    slope, overhead = system.both()
    if overhead > 0:
        slope_error, overhead_error, spread = system.errors_of_both(slope, overhead)
        if slope > slope_error:
            return StepLaw(
                utilisation=1 / slope, utilisation_error=slope_error / slope,
                step_overhead_s=overhead, step_overhead_error_s=overhead_error,
                scatter=system.rms(slope, overhead), time_error=spread * system.share(2),
            )  # fmt: skip
        # Work is lost in the overhead: what is known of it beforehand has to do.
        slope = 1 / utilisation
        overhead = max(0.0, (system.yz - slope * system.xy) / system.yy)
        spread = system.spread(slope, overhead, parameters=1)
        return StepLaw(
            utilisation=math.nan, utilisation_error=math.nan,
            step_overhead_s=overhead, step_overhead_error_s=spread / math.sqrt(system.yy),
            scatter=system.rms(slope, overhead), time_error=spread * system.share(1),
        )  # fmt: skip
    slope = system.xz / system.xx
    spread = system.spread(slope, 0.0, parameters=1)
    return StepLaw(
        utilisation=1 / slope, utilisation_error=spread / math.sqrt(system.xx) / slope,
        step_overhead_s=0.0, step_overhead_error_s=math.nan,
        scatter=system.rms(slope, 0.0), time_error=spread * system.share(1),
    )  # fmt: skip


@dataclass(frozen=True)
class _System:
    """Normal equations of slope * x + overhead * y = z: work, micro-steps and time of each step,
    divided by its scale, with weights w whose mean is 1; `floor` is the median of the times' own
    errors."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    z: tuple[float, ...]
    w: tuple[float, ...]
    floor: float

    @classmethod
    def of(cls, times: Sequence[StepTime], scale: Sequence[float]) -> _System:
        raw = [1 / (USUAL_SCATTER**2 + t.error**2) for t in times]
        mean = math.fsum(raw) / len(raw)
        return cls(
            x=tuple(t.work_s / s for t, s in zip(times, scale, strict=True)),
            y=tuple(t.micro_steps / s for t, s in zip(times, scale, strict=True)),
            z=tuple(t.step_s / s for t, s in zip(times, scale, strict=True)),
            w=tuple(weight / mean for weight in raw),
            floor=sorted(t.error for t in times)[len(times) // 2],
        )

    def _sum(self, *columns: Sequence[float]) -> float:
        return math.fsum(math.prod(row) for row in zip(self.w, *columns, strict=True))

    @property
    def xx(self) -> float:
        return self._sum(self.x, self.x)

    @property
    def yy(self) -> float:
        return self._sum(self.y, self.y)

    @property
    def xy(self) -> float:
        return self._sum(self.x, self.y)

    @property
    def xz(self) -> float:
        return self._sum(self.x, self.z)

    @property
    def yz(self) -> float:
        return self._sum(self.y, self.z)

    @property
    def determinant(self) -> float:
        return self.xx * self.yy - self.xy**2

    def both(self) -> tuple[float, float]:
        """Slope and overhead without a bound; an overhead of 0 where they cannot be told apart."""
        if self.determinant <= ALIKE * self.xx * self.yy:
            return self.xz / self.xx, 0.0
        slope = (self.xz * self.yy - self.yz * self.xy) / self.determinant
        return slope, (self.yz * self.xx - self.xz * self.xy) / self.determinant

    def errors_of_both(self, slope: float, overhead: float) -> tuple[float, float, float]:
        """Standard errors of slope and overhead, and the spread that they follow from."""
        spread = self.spread(slope, overhead, parameters=2)
        return (
            spread * math.sqrt(self.yy / self.determinant),
            spread * math.sqrt(self.xx / self.determinant),
            spread,
        )

    def rms(self, slope: float, overhead: float) -> float:
        """Root mean square of the relative errors, weighted."""
        rows = zip(self.x, self.y, self.z, strict=True)
        residuals = [slope * p + overhead * q - r for p, q, r in rows]
        return math.sqrt(self._sum(residuals, residuals) / len(self.x))

    def spread(self, slope: float, overhead: float, *, parameters: int) -> float:
        """Standard deviation of one time's relative error: never below its own measurement's.

        Where as many times as coefficients leave no residual, the usual scatter is taken.
        """
        free = len(self.x) - parameters
        if free < 1:
            return max(USUAL_SCATTER, self.floor)
        return max(self.rms(slope, overhead) * math.sqrt(len(self.x) / free), self.floor)

    def share(self, parameters: int) -> float:
        """What a mean over the measured steps keeps of the spread of one."""
        return math.sqrt(parameters / len(self.x))
