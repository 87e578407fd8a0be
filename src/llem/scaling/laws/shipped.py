"""The laws that come with llem beside Chinchilla's, each written as a formula."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.scaling.flops import FlopsModel
from llem.scaling.laws.formula import FormulaLaw
from llem.scaling.laws.law import Law

FloatArray = NDArray[np.float64]

# Bounds of the numbers of repetitions that wear data or parameters out. Published values are 15.4
# and 5.3; at the lesser bound a first repetition is worth nothing, at the greater the hundredth is
# worth as much as the first.
REPETITION_BOUNDS = (0.05, 1000.0)


@dataclass(frozen=True)
class TiedChinchilla(FormulaLaw):
    """E + A/N^alpha + B/D^alpha: one exponent for size and tokens, made to be extrapolated.

    arXiv 2403.08540 writes it, with M = D/N tokens per parameter, as

        E + a N^b + c 6^(b/2) (M N)^b,      a = A, b = -alpha, c = B 6^(alpha/2),

    or with C = 6ND as E + (a' M^e + b' M^-e) C^-e, e = alpha/2, a' = A 6^e, b' = B 6^e. The authors
    fit by least squares of the loss itself, not of its log.
    """

    def optimum(
        self,
        natural: FloatArray,
        flops: FloatArray | float,
        model: FlopsModel,
        *,
        log_unique: float | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """log N* and log D* under k N^g D = C.

        alpha A N^-alpha = g alpha B D^-alpha at the optimum, so N*/D* = (A/(g B))^(1/alpha): for
        g = 1 the best number of tokens per parameter is the same at every compute.
        """
        _, log_a, log_b, alpha = np.moveaxis(natural, -1, 0)
        g = model.exponent
        log_c = np.log(np.asarray(flops, dtype=np.float64) / model.coefficient)
        log_ratio = (log_a - log_b - np.log(g)) / alpha
        log_n = (log_ratio + log_c) / (1.0 + g)
        return log_n, log_c - g * log_n

    def exponents(
        self, natural: FloatArray, model: FlopsModel, *, flops: float
    ) -> tuple[FloatArray, FloatArray]:
        """a = b = 1/(1 + g), whatever the parameters: one half for C = 6ND."""
        half = np.full(natural.shape[:-1], 1.0 / (1.0 + model.exponent))
        return half, half.copy()


CHINCHILLA_TIED = TiedChinchilla.parse(
    "E + A/N^alpha + B/D^alpha", name="chinchilla_tied", source="arXiv 2403.08540"
)

COMPUTE_POWER_LAW = FormulaLaw.parse(
    "E + K/C^gamma",
    name="compute_power_law",
    source="a power law of compute with an offset, as in arXiv 2001.08361 and 2010.14701",
)

# Repeated tokens are worth less and less: R = D/U - 1 repetitions of U unique tokens count as
# Rd (1 - exp(-R/Rd)) new ones for each. Without repetition it is Chinchilla's law exactly, and Rd
# is not identified.
REPEATED_TOKENS = FormulaLaw.parse(
    "E + A/N^alpha + B/D_eff^beta"
    " where U_D = min(U, D); D_eff = U_D * (1 + Rd * (1 - exp((1 - D/U_D)/Rd)))",
    name="repeated_tokens",
    source="arXiv 2305.16264, without its decay of parameters",
    positive={"Rd": REPETITION_BOUNDS},
)

# The same for parameters: U_N are those that the unique tokens can use, the compute-optimal size
# for them (alpha A/N^alpha = beta B/D^beta at D = U_D), and parameters in excess count less and
# less. So the law differs from Chinchilla's for models larger than U_N even where no token is
# repeated, and equals it below.
DATA_CONSTRAINED = FormulaLaw.parse(
    "E + A/N_eff^alpha + B/D_eff^beta"
    " where U_D = min(U, D); D_eff = U_D * (1 + Rd * (1 - exp((1 - D/U_D)/Rd)));"
    " U_N = min(N, (alpha*A/(beta*B))^(1/alpha) * U_D^(beta/alpha));"
    " N_eff = U_N * (1 + Rn * (1 - exp((1 - N/U_N)/Rn)))",
    name="data_constrained",
    source="arXiv 2305.16264",
    positive={"Rd": REPETITION_BOUNDS, "Rn": REPETITION_BOUNDS},
    centring={"A": "N^-alpha", "B": "D^-beta"},
)

SHIPPED: tuple[Law, ...] = (
    CHINCHILLA_TIED,
    COMPUTE_POWER_LAW,
    REPEATED_TOKENS,
    DATA_CONSTRAINED,
)
