"""What forward passes do, counted: the terms of which a law of serving is a sum.

Prefill reads all tokens of its prompts in one pass, decoding one token of each sequence in a pass.
Of a model that multiplies each token with W values in L layers of width w, and keeps K values of
each token in its cache, the passes of a run cost

    prefill   a P + l (L + 1) P + b P (W - C)+         + c (W' T + H Q)  + d L w S   + e L T
              + g L P (w T/P - C)+
    decode    a P + l (L + 1) P + b P (W + K X/P - C)+ + c W T           + d K X     + e L T
              + g L P (w T/P - C)+ + m P (W - C)+ min(1, T/P - 1)

P passes of T tokens that were read, for Q requests; W' and H are the values within the layers and
of the output, which a prefill computes for the last token alone; S the pairs of tokens that attend
to each other, X the tokens that decoding sequences held, summed over passes.

    l      launches: what the host and the device's kernels take by layer, and what stands around
           the layers (embedding, last norm, output) at least as much as one of them: models that
           are much alike do not tell the two apart, and without that floor the smallest model that
           was not served is foretold by the sign of the others' noise
    a      launches of a pass beyond that
    b      values that are read once a pass, weights and cache, beyond the C that the device's own
           cache holds on the way (0 where that does not matter)
    c      arithmetic, a multiply-add each
    d      attention: in a prefill by pairs, in decoding by values of the cache
    e      what each token costs each layer whatever its width: norms, activations, kernels' tails
    g      activations, of a pass and layer, beyond those that stay in the device's own cache from
           one kernel to the next
    m      weights that are rearranged when they meet more than one row (a matrix product where one
           row alone is a product with a vector)

It is the additive form of a roofline (Williams, Waterman and Patterson 2009; of energy Choi et al.,
A roofline model of energy, 2013, where energy adds while time overlaps). Weights that are read and
products that are computed, b W + c W T, are a rate that saturates with the rows of a product:
(1/c) T / (T + b/c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

PREFILL, DECODE, TOGETHER = "prefill", "decode", "together"
PHASES = (PREFILL, DECODE)

# What each term is of and what its coefficient is per, in the order in which terms stay where the
# runs cannot tell two apart.
TERMS: dict[str, tuple[str, str]] = {
    "arithmetic": ("c W T", "per value and token"),
    "weights": ("b P (W + K X/P - C)+", "per value read in a pass"),
    "pass": ("a P", "per pass"),
    "cache": ("d K X", "per value of the KV cache and pass"),
    "attention": ("d L w S", "per width, layer and pair of tokens"),
    "layer": ("l (L + 1) P", "per layer and pass"),
    "row": ("e L T", "per layer and token"),
    "activations": ("g L P (w T/P - C)+", "per width, layer and token"),
    "packing": ("m P (W - C)+", "per value and pass of several rows"),
}
OF_PHASE: dict[str, tuple[str, ...]] = {
    PREFILL: ("arithmetic", "weights", "pass", "attention", "layer", "row", "activations"),
    DECODE: ("arithmetic", "weights", "pass", "cache", "layer", "row", "activations", "packing"),
    TOGETHER: tuple(TERMS),
}


@dataclass(frozen=True)
class Models:
    """The models of runs, columns of one shape: all parameters, the values that a token of decoding
    is multiplied with (`multiplied`, output included), those of the output, layers, layers times
    width (`spread`), and values that the KV cache keeps of a token."""

    params: FloatArray
    multiplied: FloatArray
    head: FloatArray
    layers: FloatArray
    spread: FloatArray
    kv: FloatArray

    @classmethod
    def of(
        cls,
        params: ArrayLike,
        *,
        multiplied: ArrayLike | None = None,
        head: ArrayLike | None = None,
        layers: ArrayLike | None = None,
        width: ArrayLike | None = None,
        kv: ArrayLike | None = None,
    ) -> Models:
        """From columns in which NaN is what is not known: then all parameters are multiplied with,
        the model is one layer without a width, the output none of it, and no cache is told apart.
        """
        n = np.asarray(params, dtype=np.float64)

        def column(values: ArrayLike | None, unknown: ArrayLike) -> FloatArray:
            found = np.full(n.shape, np.nan) if values is None else np.asarray(values, dtype=float)
            return np.asarray(np.where(np.isfinite(found), found, unknown), dtype=np.float64)

        layers_ = column(layers, 1.0)
        return cls(
            params=n,
            multiplied=column(multiplied, n),
            head=column(head, 0.0),
            layers=layers_,
            spread=column(width, 0.0) * layers_,
            kv=column(kv, 0.0),
        )

    def take(self, kept: NDArray[np.bool_]) -> Models:
        return Models(*(getattr(self, f.name)[kept] for f in fields(self)))


@dataclass(frozen=True)
class Counts:
    """What runs did, columns: passes that prefilled, the requests whose prompts they read, with so
    many tokens and pairs of tokens that attend to each other; passes that decoded, the tokens that
    they read (`rows`), and what their sequences held, summed over passes (`context`)."""

    prefills: FloatArray
    requests: FloatArray
    tokens_in: FloatArray
    pairs: FloatArray
    decodes: FloatArray
    rows: FloatArray
    context: FloatArray

    def take(self, kept: NDArray[np.bool_]) -> Counts:
        return Counts(*(getattr(self, f.name)[kept] for f in fields(self)))


def columns(
    models: Models, counts: Counts, phase: str, names: Sequence[str], *, cached: FloatArray | float
) -> FloatArray:
    """(..., m) of the terms `names` in a phase; together they are the sum of both. Columns and
    `cached` are broadcast."""
    if phase == TOGETHER:
        every = [_of(models, counts, each, cached) for each in PHASES]
        terms = [np.asarray(sum(e[name] for e in every if name in e)) for name in names]
    else:
        found = _of(models, counts, phase, cached)
        terms = [found[name] for name in names]
    return np.stack(np.broadcast_arrays(*terms), axis=-1)


def _of(
    models: Models, counts: Counts, phase: str, cached: FloatArray | float
) -> dict[str, FloatArray]:
    if phase == PREFILL:
        passes, tokens = counts.prefills, counts.tokens_in
        inner = models.multiplied - models.head
        return {
            **_around(models, passes, tokens, cached),
            "weights": passes * np.maximum(0.0, models.multiplied - cached),
            "arithmetic": inner * tokens + models.head * counts.requests,
            "attention": models.spread * counts.pairs,
        }
    passes, rows = counts.decodes, counts.rows
    some = np.where(passes > 0, passes, 1.0)
    read = models.kv * counts.context
    weights = models.multiplied
    return {
        **_around(models, passes, rows, cached),
        "weights": passes * np.maximum(0.0, weights + read / some - cached),
        "packing": passes
        * np.maximum(0.0, weights - cached)
        * np.clip(rows / some - 1.0, 0.0, 1.0),
        "arithmetic": weights * rows,
        "cache": read,
    }


def _around(
    models: Models, passes: FloatArray, tokens: FloatArray, cached: FloatArray | float
) -> dict[str, FloatArray]:
    """The terms that passes of both phases have alike."""
    return {
        "pass": passes,
        "layer": (models.layers + 1.0) * passes,
        "row": models.layers * tokens,
        "activations": np.maximum(0.0, models.spread * tokens - models.layers * passes * cached),
    }


# Of models of one shape layers and width grow as N^(1/3) each.
USUAL = {"multiplied": 1.0, "head": 1 / 3, "layers": 1 / 3, "spread": 2 / 3, "kv": 2 / 3}


@dataclass(frozen=True)
class Family:
    """What models of N parameters look like, as powers of N through those that were served:
    (scale, exponent) of each field of `Models` but `params`."""

    powers: dict[str, tuple[float, float]]

    @classmethod
    def through(cls, models: Models) -> Family:
        """Least squares of the logarithms over distinct models; of one alone by `USUAL`."""
        x = np.log(models.params)
        powers = {}
        for name, usual in USUAL.items():
            values = getattr(models, name)
            good = values > 0
            if not good.any():
                powers[name] = (0.0, usual)
                continue
            seen = np.unique(np.stack([x[good], np.log(values[good])], axis=1), axis=0)
            a, b = seen.T
            slope = float(np.polyfit(a, b, 1)[0]) if np.ptp(a) > 0.1 else usual
            powers[name] = (float(np.exp(np.mean(b - slope * a))), slope)
        return cls(powers)

    def of(self, params: ArrayLike) -> Models:
        """The models of so many parameters; shapes as `params`."""
        n = np.asarray(params, dtype=np.float64)
        found = {name: scale * n**power for name, (scale, power) in self.powers.items()}
        # No model multiplies with more than it has, nor with nothing but its output.
        found["multiplied"] = np.minimum(found["multiplied"], n)
        found["head"] = np.minimum(found["head"], 0.9 * found["multiplied"])
        return Models(params=n, **found)
