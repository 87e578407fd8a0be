"""The laws that can be fitted: what they predict, and where their optimum lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.scaling.errors import UnknownLawError
from llem.scaling.flops import FlopsModel

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """Loss as a function of parameters N (count) and training tokens D (count).

    The one form so far is L(N, D) = E + A/N^alpha + B/D^beta (arXiv 2203.15556, eq. 2), L in nats
    per token. Methods on `natural` take arrays (..., 5) of (log A, log B, log E, alpha, beta): the
    logs of A and B do not overflow where their values would.
    """

    name: str
    parameter_names: tuple[str, ...]
    formula: str
    source: str

    def parameters(self, natural: FloatArray) -> dict[str, float]:
        """Named parameters of one vector (5,)."""
        values = self.parameter_table(natural[None, :])[0]
        return {name: float(v) for name, v in zip(self.parameter_names, values, strict=True)}

    def parameter_table(self, natural: FloatArray) -> FloatArray:
        """(k, 5) of (log A, log B, log E, alpha, beta) to (k, 5) in the order of the names."""
        log_a, log_b, log_e, alpha, beta = np.moveaxis(natural, -1, 0)
        with np.errstate(over="ignore"):
            return np.stack([np.exp(log_e), np.exp(log_a), np.exp(log_b), alpha, beta], axis=-1)

    def natural(self, parameters: Mapping[str, float]) -> FloatArray:
        """Named parameters to (log A, log B, log E, alpha, beta)."""
        e, a, b, alpha, beta = (float(parameters[name]) for name in self.parameter_names)
        with np.errstate(divide="ignore"):
            return np.array([np.log(a), np.log(b), np.log(e), alpha, beta])

    def predict(
        self,
        parameters: Mapping[str, float],
        params: FloatArray | float,
        tokens: FloatArray | float,
    ) -> FloatArray:
        """Loss in nats per token at sizes `params` and `tokens` (broadcast together)."""
        return self.loss(self.natural(parameters), np.log(params), np.log(tokens))

    def loss(
        self, natural: FloatArray, log_params: FloatArray | float, log_tokens: FloatArray | float
    ) -> FloatArray:
        """Loss at logs of N and D; `natural` (..., 5) broadcasts against them."""
        log_a, log_b, log_e, alpha, beta = np.moveaxis(natural, -1, 0)
        return np.asarray(
            np.exp(log_e) + np.exp(log_a - alpha * log_params) + np.exp(log_b - beta * log_tokens)
        )

    def exponents(self, natural: FloatArray, model: FlopsModel) -> tuple[FloatArray, FloatArray]:
        """(a, b) of N* ~ C^a and D* ~ C^b: a = beta/(alpha + g beta), b = alpha/(alpha + g beta).

        g is the exponent of the FLOPs model, so g a + b = 1, and a + b = 1 for C = 6ND.
        """
        alpha, beta = natural[..., 3], natural[..., 4]
        total = alpha + model.exponent * beta
        return beta / total, alpha / total

    def optimum(
        self, natural: FloatArray, flops: FloatArray | float, model: FlopsModel
    ) -> tuple[FloatArray, FloatArray]:
        """log N* and log D* that minimise the loss under k N^g D = C.

        With D = C/(k N^g) the loss is E + A N^-alpha + B (C/k)^-beta N^(g beta). Its derivative
        in log N vanishes where alpha A N^-alpha = g beta B (C/k)^-beta N^(g beta), hence

            log N* = [ log(alpha A / (g beta B)) + beta log(C/k) ] / (alpha + g beta)

        and D* = C/(k N*^g). The second derivative is positive, so it is the only minimum.
        For g = 1, k = 6 this is eq. 4 of arXiv 2203.15556.
        """
        log_a, log_b, _, alpha, beta = np.moveaxis(natural, -1, 0)
        g = model.exponent
        log_c = np.log(np.asarray(flops, dtype=np.float64) / model.coefficient)
        head = np.log(alpha) + log_a - np.log(g * beta) - log_b
        log_n = (head + beta * log_c) / (alpha + g * beta)
        return log_n, log_c - g * log_n


CHINCHILLA = Law(
    name="chinchilla",
    parameter_names=("E", "A", "B", "alpha", "beta"),
    formula="L(N, D) = E + A/N^alpha + B/D^beta",
    source="arXiv 2203.15556",
)
LAWS: dict[str, Law] = {law.name: law for law in (CHINCHILLA,)}


def get_law(name: str) -> Law:
    """The law of that name, or UnknownLawError naming those that exist."""
    try:
        return LAWS[name]
    except KeyError:
        raise UnknownLawError(name, tuple(LAWS)) from None
