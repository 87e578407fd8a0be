"""The loss of one run, step by step: where it comes from, how it gets there, and where it strays.

The end is the law's word times the seed's luck; the way there is the law at the tokens so far,
lifted by what a high learning rate costs (which the decay gives back), begun at the loss of a model
that knows nothing, and shaken by the noise of batches and by rare spikes that recover.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llem.campaign import Recipe, Run
from llem.rehearsal.planted import Planted
from llem.training.divergence import DivergenceWatch
from llem.training.schedule import learning_rate, phase

Floats = NDArray[np.float64]

# What training at the peak rate costs over the decayed model, as a part of the reducible loss
# (arXiv 2404.06395 and 2405.18392 show drops of a few percent in the decay).
RATE_COST = 0.035
# Noise of a token's loss, nats; tokens of a sequence are alike, which makes it so many times worse.
TOKEN_SD, ALIKE = 1.1, 4.0
# Spikes: how often in a step at the peak rate, how high, and in how many steps they are gone.
SPIKES, SPIKE_NATS, SPIKE_STEPS = 1 / 3000, (0.08, 0.5), (8.0, 40.0)
# A gradient's norm: where it begins and ends, how it scatters, and what a spike does to it.
NORM_FIRST, NORM_LAST, NORM_SD, NORM_SPIKE = 3.2, 0.42, 0.12, 9.0
# How fast a training that diverges does: its loss grows by this factor in a step.
DIVERGING = 1.06


@dataclass(frozen=True)
class Curve:
    """A whole run, one entry a step: mean training loss of all ranks before each update (nats per
    token), norm of the gradient before clipping, learning rate, and phase as in the records.

    `diverged` is (steps that were finished, reason) where it does.
    """

    loss: Floats
    grad_norm: Floats
    learning_rate: Floats
    phase: NDArray[np.uint8]
    diverged: tuple[int, str] | None = None


@lru_cache(maxsize=64)
def schedule_of(recipe: Recipe, steps: int) -> tuple[Floats, NDArray[np.uint8]]:
    """Learning rate and phase of every step; runs that differ in their seed share them."""
    rate = np.array([learning_rate(recipe, step=i, steps=steps) for i in range(steps)])
    kind = np.array([phase(recipe, step=i, steps=steps) for i in range(steps)], dtype=np.uint8)
    rate.flags.writeable = kind.flags.writeable = False
    return rate, kind


def initial_loss(run: Run) -> float:
    """Of a model that knows nothing: all of the vocabulary alike."""
    return math.log(max(2, int(getattr(run.model, "vocabulary", 0) or 2)))


def held_out_loss(planted: Planted, run: Run, *, step: int, final: float) -> float:
    """The evaluation after `step` steps: `final` at the end, above the law before the decay."""
    if step >= run.steps:
        return final
    return float(_expected(planted, run, np.array([step]), final)[0])


def make_curve(
    planted: Planted,
    run: Run,
    *,
    final: float,
    seed: int,
    diverges: bool = False,
    trunk: Curve | None = None,
) -> Curve:
    """The run's steps, the same for the same seed; `final` is its loss on held-out tokens.

    The first `run.trunk_steps` are those of `trunk`, where the run branches off that one.
    """
    rng = np.random.default_rng([seed, 2, int(run.run_id, 16) % 2**63])
    steps, recipe = run.steps, run.recipe
    rate, kind = schedule_of(recipe, steps)
    mean = _expected(planted, run, np.arange(steps), final)
    noise_sd = TOKEN_SD * math.sqrt(ALIKE / recipe.batch_tokens)
    loss = mean + noise_sd * rng.standard_normal(steps)
    spikes = _spikes(rng, rate / max(rate.max(), 1e-300))
    loss += spikes
    done = np.linspace(0.0, 1.0, steps) if steps > 1 else np.zeros(steps)
    settled = NORM_LAST + (NORM_FIRST - NORM_LAST) * np.exp(-done * 40.0)
    norm = settled * np.exp(NORM_SD * rng.standard_normal(steps)) * (1.0 + NORM_SPIKE * spikes)
    if trunk is not None:
        own = slice(0, run.trunk_steps)
        loss[own], norm[own] = trunk.loss[own], trunk.grad_norm[own]
        if trunk.diverged is not None and trunk.diverged[0] <= run.trunk_steps:
            return Curve(loss, norm, rate, kind, diverged=trunk.diverged)
    if not diverges:
        return Curve(loss, norm, rate, kind)
    return _diverging(rng, run, Curve(loss, norm, rate, kind))


def _expected(planted: Planted, run: Run, step: NDArray[np.int_], final: float) -> Floats:
    """The loss without noise at the beginning of each of `step`."""
    recipe, floor = run.recipe, _floor(planted)
    tokens = np.maximum(1.0, np.asarray(step, dtype=np.float64)) * recipe.batch_tokens
    # The seed's luck is there from the beginning.
    luck = final / planted.loss(run)
    law = luck * np.asarray(planted.at(float(run.params), tokens, run=run), dtype=np.float64)
    peak = recipe.learning_rate
    rate = schedule_of(recipe, run.steps)[0][step] / peak
    reached = law + RATE_COST * (law - floor) * np.sqrt(np.clip(rate, 0.0, 1.0))
    first = max(initial_loss(run), 1.1 * final)
    # Of two losses the lesser, without a corner: what few tokens cannot teach is bounded.
    power = 8.0
    out: Floats = (reached**-power + first**-power) ** (-1.0 / power)
    return out


def _floor(planted: Planted) -> float:
    return float(planted.params.get("E", 0.0))


def _spikes(rng: np.random.Generator, rate: Floats) -> Floats:
    """Nats above the curve: a jump, and an exponential return."""
    out = np.zeros(len(rate))
    for at in np.flatnonzero(rng.random(len(rate)) < SPIKES * rate).tolist():
        height, steps = rng.uniform(*SPIKE_NATS), rng.uniform(*SPIKE_STEPS)
        length = min(len(rate) - at, int(6 * steps))
        out[at : at + length] += height * np.exp(-np.arange(length) / steps)
    return out


def _diverging(rng: np.random.Generator, run: Run, curve: Curve) -> Curve:
    """The same curve, which runs away at some step after the warm-up (and after it has left its
    trunk), until it is given up."""
    least = min(run.steps - 1, max(run.recipe.warmup_steps, run.trunk_steps))
    begin = int(rng.integers(least, max(least + 1, run.steps * 3 // 4)))
    growth = DIVERGING ** np.minimum(np.arange(run.steps - begin), 400)
    curve.loss[begin:] *= growth
    curve.grad_norm[begin:] *= growth**2
    watch = DivergenceWatch(run.recipe)
    for step, loss in enumerate(curve.loss.tolist()):
        if reason := watch.check(step, loss):
            return Curve(
                curve.loss, curve.grad_norm, curve.learning_rate, curve.phase,
                diverged=(step + 1, reason),
            )  # fmt: skip
    return curve
