"""What the minimiser asks of a law bound to its data: values and derivatives, many at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.estimator import Estimator

FloatArray = NDArray[np.float64]

PARTS = ("value", "gradient", "hessian", "metric")
# Elements of one (problems x rows) block in numpy: about 128 kB, so that the dozen work arrays of a
# block stay in the processor's cache.
BLOCK_ELEMENTS = 16384
# An amplitude ends at a term of exp(-30) of the typical loss, which is zero to rounding; below
# exp(-9) = 1.2e-4 the data cannot tell it from zero.
FLOOR_LOG_SHARE = 30.0
NEGLIGIBLE_LOG_SHARE = 9.0


@dataclass
class Local:
    """One evaluation of k problems with p parameters each.

    value (k,): the weighted Huber sum. gradient (k, p) and hessian (k, p, p): its exact
    derivatives. metric (k, p, p): the reweighted Gauss-Newton matrix, sum of w psi(r)/r J J' with
    J the gradient of log Lhat; positive semidefinite, it is the scale of damping.
    """

    value: FloatArray
    gradient: FloatArray
    hessian: FloatArray
    metric: FloatArray

    def replace(self, where: NDArray[np.bool_], other: Local) -> None:
        """Take the problems marked in `where` (k,) from `other`."""
        for name in PARTS:
            getattr(self, name)[where] = getattr(other, name)[where]

    def put(self, rows: NDArray[np.intp], other: Local) -> None:
        """Write the problems of `other` in the places `rows`."""
        for name in PARTS:
            getattr(self, name)[rows] = getattr(other, name)

    def take(self, keep: NDArray[np.bool_]) -> Local:
        """The problems marked in `keep` (k,)."""
        return Local(*(getattr(self, name)[keep] for name in PARTS))

    def join(self, other: Local) -> Local:
        """These problems, followed by those of `other`."""
        return Local(
            *(np.concatenate([getattr(self, name), getattr(other, name)]) for name in PARTS)
        )


class Problem(Protocol):
    """A law bound to n observations, in p coordinates theta that suit these data.

    Bounds are infinite where there are none. An amplitude's lower bound is FLOOR_LOG_SHARE below
    the mean of z.
    """

    @property
    def z(self) -> FloatArray:
        """Log of the observed loss, (n,)."""

    @property
    def lower(self) -> FloatArray:
        """Lower bounds of theta, (p,)."""

    @property
    def upper(self) -> FloatArray:
        """Upper bounds of theta, (p,)."""

    @property
    def rows(self) -> int:
        """n."""

    @property
    def dimension(self) -> int:
        """p."""

    def evaluate(
        self, theta: FloatArray, weight: FloatArray, delta: FloatArray, rows: slice
    ) -> Local:
        """Huber sums over `rows` and their exact derivatives.

        theta (k, p); weight (k, m) or (1, m), m = the length of `rows`; delta (k,), inf for least
        squares.
        """

    def residuals(self, theta: FloatArray) -> FloatArray:
        """log L - log Lhat for theta (k, p): shape (k, n)."""

    def jacobian(self, theta: FloatArray) -> FloatArray:
        """Gradient of log Lhat of each row at one theta (p,): shape (n, p)."""

    def only(self, rows: NDArray[np.intp]) -> Problem:
        """The same law in the same coordinates on some of the rows."""

    def natural(self, theta: FloatArray) -> FloatArray:
        """theta (..., p) to the law's own coordinates (`Law.parameters`)."""

    def centred(self, natural: FloatArray) -> FloatArray:
        """The inverse of `natural`."""

    def seeds(self, weight: FloatArray, estimator: Estimator, *, count: int) -> FloatArray:
        """The `count` most promising starts (count, p), best first. weight: (n,)."""
