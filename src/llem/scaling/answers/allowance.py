"""What an extrapolation adds to an interval: the law's own error, which no bootstrap sees.

A bootstrap moves the parameters of a law and never doubts its form. Far beyond the data the form
is what fails first, so a target more than EXTRAPOLATION_LIMIT times the largest compute observed
gets an allowance: beyond the data the exponent of N* may be another than that of the fit, by
`exponent_error` (a standard deviation), hence

    sd(log N*) = exponent_error ln(10) x,   x = log10(target/largest compute).

The exponent of the reducible loss is in doubt by the same share of itself as that of N* is (about
exponent_error/.5): with a = beta/(alpha + beta) and gamma = alpha beta/(alpha + beta), independent
equal shares of error e in alpha and beta move a near .5 by .35 e and gamma by .7 gamma e, hence
gamma by 2 gamma for every unit that a moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

EXTRAPOLATION_LIMIT = 10.0
# Standard deviation of N*'s exponent beyond the data, rounded from what two published campaigns
# show. In the runs of arXiv 2203.15556 (digitised in arXiv 2404.10102) laws fitted up to 1/30,
# 1/100 and 1/300 of the largest compute miss the N* of the whole by exponents of .12, .13 and .15
# beyond their bootstrap; the isoFLOP minima of arXiv 2406.19146 keep theirs within .05 or so over
# three decades.
EXPONENT_ERROR = 0.1
TYPICAL_EXPONENT = 0.5

Interval = tuple[float, float]


def sd_of_log_params(exponent_error: float, ratio: float) -> float:
    """sd of log N* at `ratio` times the largest compute; 0 within EXTRAPOLATION_LIMIT."""
    if not ratio > EXTRAPOLATION_LIMIT:
        return 0.0
    return exponent_error * math.log(ratio)


def sd_of_log_loss(exponent_error: float, ratio: float, exponent: float) -> float:
    """sd of the log of the reducible loss, which falls as C^-exponent."""
    return sd_of_log_params(exponent_error, ratio) * exponent / TYPICAL_EXPONENT


@dataclass(frozen=True)
class Widening:
    """Widens intervals at one level; see `log` and `loss`."""

    level: float

    @property
    def quantile(self) -> float:
        """How many standard deviations a side of an interval has."""
        return NormalDist().inv_cdf(0.5 + 0.5 * self.level)

    def log(self, interval: Interval, estimate: float, sd: float) -> Interval:
        """Each side of a positive figure's interval, in quadrature on the log scale."""
        low, high = interval
        if sd == 0 or not (low > 0 and high > 0 and estimate > 0):
            return interval
        extra = self.quantile * sd
        down = math.hypot(max(math.log(estimate / low), 0.0), extra)
        up = math.hypot(max(math.log(high / estimate), 0.0), extra)
        return min(low, estimate * math.exp(-down)), max(high, estimate * math.exp(up))

    def loss(self, interval: Interval, estimate: float, floor: float, sd: float) -> Interval:
        """The same for a loss whose part above `floor` has the allowance sd (of its log)."""
        low, high = interval
        if sd == 0 or not (math.isfinite(low) and math.isfinite(high)):
            return interval
        reducible = estimate - floor
        down = -reducible * math.expm1(-self.quantile * sd)
        up = reducible * math.expm1(self.quantile * sd)
        lower = estimate - math.hypot(max(estimate - low, 0.0), down)
        upper = estimate + math.hypot(max(high - estimate, 0.0), up)
        return min(low, lower), max(high, upper)
