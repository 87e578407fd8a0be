"""How long a step takes: work / (ranks * peak * utilisation) + overhead * micro-steps seconds.

Work is the FLOPs of a step; the overhead is what a micro-step costs however small the model is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Columns of steps that all cost alike tell nothing of work and overhead apart.
ALIKE = 1e-4
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

    `scatter` is the root mean square of (predicted - measured) / measured over the steps it rests
    on, `time_error` the standard error of the mean of what it predicts; all errors are relative
    but that of the overhead.
    """

    utilisation: float
    utilisation_error: float
    step_overhead_s: float
    step_overhead_error_s: float
    scatter: float
    time_error: float

    def step_s(self, work_s: float, micro_steps: float) -> float:
        return work_s / self.utilisation + self.step_overhead_s * micro_steps


def fit_steps(times: Sequence[StepTime], *, utilisation: float) -> StepLaw:
    """Least squares of step time in relative error, both coefficients 0 or more.

    Steps that all do alike (or one alone) tell one coefficient: all of it is taken for work.
    Where overhead hides the work, the `utilisation` that is given is kept, and NaN returned for it.
    Raises ValueError without a step.
    """
    if not times:
        raise ValueError("no step was timed")
    x = [t.work_s / t.step_s for t in times]
    y = [t.micro_steps / t.step_s for t in times]
    floor = _median([t.error for t in times])
    xx, yy, xy = _dot(x, x), _dot(y, y), _dot(x, y)
    count = len(times)
    determinant = xx * yy - xy * xy
    if determinant > ALIKE * xx * yy:
        slope = (sum(x) * yy - sum(y) * xy) / determinant
        overhead = (sum(y) * xx - sum(x) * xy) / determinant
        spread = _spread(x, y, slope, overhead, parameters=2, floor=floor)
        slope_error = spread * math.sqrt(yy / determinant)
        if overhead > 0 and slope > slope_error:
            return StepLaw(
                utilisation=1 / slope, utilisation_error=slope_error / slope,
                step_overhead_s=overhead,
                step_overhead_error_s=spread * math.sqrt(xx / determinant),
                scatter=_rms(x, y, slope, overhead), time_error=spread * math.sqrt(2 / count),
            )  # fmt: skip
        if overhead > 0:
            # Work is lost in the overhead: what is known of it beforehand has to do.
            rest = [1 - u / utilisation for u in x]
            overhead = max(0.0, _dot(y, rest) / yy)
            spread = _spread(x, y, 1 / utilisation, overhead, parameters=1, floor=floor)
            return StepLaw(
                utilisation=math.nan, utilisation_error=math.nan, step_overhead_s=overhead,
                step_overhead_error_s=spread / math.sqrt(yy),
                scatter=_rms(x, y, 1 / utilisation, overhead), time_error=spread / math.sqrt(count),
            )  # fmt: skip
    slope = sum(x) / xx
    spread = _spread(x, y, slope, 0.0, parameters=1, floor=floor)
    error = spread / math.sqrt(xx)
    return StepLaw(
        utilisation=1 / slope, utilisation_error=error / slope, step_overhead_s=0.0,
        step_overhead_error_s=math.nan, scatter=_rms(x, y, slope, 0.0),
        time_error=spread / math.sqrt(count),
    )  # fmt: skip


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(p * q for p, q in zip(a, b, strict=True))


def _rms(x: Sequence[float], y: Sequence[float], slope: float, overhead: float) -> float:
    residuals = [slope * p + overhead * q - 1 for p, q in zip(x, y, strict=True)]
    return math.sqrt(_dot(residuals, residuals) / len(residuals))


def _spread(
    x: Sequence[float], y: Sequence[float], slope: float, overhead: float,
    *, parameters: int, floor: float,
) -> float:  # fmt: skip
    """Standard deviation of one step time's relative error: never below its own measurement's.

    Where as many steps as coefficients leave no residual, a machine's usual scatter is taken.
    """
    free = len(x) - parameters
    if free < 1:
        return max(USUAL_SCATTER, floor)
    return max(_rms(x, y, slope, overhead) * math.sqrt(len(x) / free), floor)


def _median(values: Sequence[float]) -> float:
    known = sorted(v for v in values if math.isfinite(v))
    return known[len(known) // 2] if known else 0.0
