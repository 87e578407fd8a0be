"""Synthetic campaigns with a known truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.scaling import CHINCHILLA, FlopsModel

FloatArray = NDArray[np.float64]
TRUTH = {"E": 1.82, "A": 480.0, "B": 2100.0, "alpha": 0.348, "beta": 0.366}


@dataclass(frozen=True)
class Campaign:
    params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    flops: FloatArray


def campaign(
    *, levels: int = 4, sizes: int = 5, noise: float = 0.0, seed: int = 0, low: float = 1e13
) -> Campaign:
    """IsoFLOP runs around the true optimum; noise is the relative standard deviation of loss."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(low, low * 100, levels), sizes)
    log_n, _ = CHINCHILLA.optimum(CHINCHILLA.natural(TRUTH), flops, FlopsModel())
    params = np.exp(log_n) * np.tile(np.geomspace(0.3, 3.0, sizes), levels)
    tokens = flops / 6 / params
    loss = CHINCHILLA.predict(TRUTH, params, tokens)
    return Campaign(params, tokens, loss * np.exp(noise * rng.standard_normal(flops.size)), flops)
