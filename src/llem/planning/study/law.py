"""How long a forward pass takes on a device: host time, traffic to memory and arithmetic.

A pass takes the host's time for its layers, and the device's for reading weights and cache, for
passing activations between kernels, and for its products (the terms of a roofline: Williams,
Waterman and Patterson, Commun. ACM 52(4), 65, 2009). The device's terms are added, not the longest
of them taken: so a batch of a few rows, whose products wait for the weights, uses the device less
than a large one. On a CPU host and device are the same and add up; a GPU computes while its host
prepares what follows, and the longer of the two counts.

The constants of the CPU are the geometric mean of those that fit forward passes of transformers
5.24 and torch 2.13 on one core of an AMD EPYC of family 1Ah, in processor seconds beside other work
(`tests/benchmarks/serving_time.py`) and by the clock where there was little of it
(`tests/benchmarks/serving_law.py`): beside others products took 1.1 times as long, and the host's
work, whose code and data they drive out of the caches, 2.7 times. Those of GPUs follow from data
sheets and two public measurements, and `fit_passes` fits either to a site's own runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llem.planning.hardware import (
    ACCELERATORS,
    LEAST_ERROR,
    Accelerator,
    bandwidth_of,
    fp32_flops_of,
)
from llem.scaling.laws.huber import noise_of, weights

FloatArray = NDArray[np.float64]

# Of a GPU: what large products reach of its peak in a prefill, and attention; what a stream of
# weights gets of its memory's bandwidth. Host seconds of a pass and of a layer, kernel by kernel,
# and with CUDA graphs. A compromise between public measurements of decoding at batch 1, which
# `tests/unit/planning/test_servinglaw.py` lists: llem has measured none of it, and the error is how
# far they lie from this.
GPU_UTILISATION, GPU_ATTENTION, GPU_BANDWIDTH = 0.6, 0.3, 0.75
GPU_FORWARD_S, GPU_LAYER_S = 2e-3, 7e-4
GRAPH_FORWARD_S, GRAPH_LAYER_S = 1e-3, 3e-5
GPU_TIME_ERROR = 0.7
# Of a backend on the CPU that was not measured there.
OTHER_TIME_ERROR = 0.7
# Values that pass between memory and kernels, for each of the residual stream and by layer.
PASSED = 40.0
# Seconds to start a backend in an element, and bytes of weights that it reads a second.
START_S = {"transformers": 15.0, "vllm": 90.0, "tensorrt-llm": 120.0, "openai": 90.0}
OTHER_START_S = 60.0
LOAD_BYTES_PER_S = 1e9
# One standard error of the logarithm of a peak of memory: on the CPU by the same benchmark, on
# GPUs a guess.
CPU_MEMORY_ERROR, GPU_MEMORY_ERROR = 0.2, 0.15
# Rounds of warm-up until a window of them take equally long.
WARMUP_ROUNDS = 5.0
# How sure the starting values are that a calibration corrects, where its runs do not tell.
PRIOR_SPREAD = 0.7
ROUNDS = 30
STEP = 1e-4
# Groups that are left out together, of many.
FOLDS = 20


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What forward passes do, on one rank: how many, the layers they go through, bytes of weights
    and cache that they read, FLOPs of their products and of attention, and values that pass
    between kernels (bytes of the residual stream, by layer)."""

    passes: float
    layers: float
    weights: float
    cache: float
    flops: float
    attention: float
    activations: float

    def __mul__(self, times: float) -> Passes:
        return Passes(**{name: times * value for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class ServingLaw:
    """A device and what serves on it, as `seconds` of passes; all rates are a second.

    `rates` are FLOPs by precision. `start_s` is the start of a backend, once in an element,
    `load_s` what a run takes besides loading, warm-up and requests, `load_bytes` the weights read.
    `load` and `memory` are what measured times of loading and peaks of memory are of predicted
    ones.
    Each `_error` is one standard error of a logarithm: `time_error` of a deployment's time.
    """

    forward_s: float
    layer_s: float
    graph_forward_s: float
    graph_layer_s: float
    bandwidth: float
    cache_bandwidth: float
    activation_bandwidth: float
    rates: Mapping[str, float]
    attention_rate: float
    overlap: bool
    start_s: float
    load_s: float
    load_bytes: float
    power_w: float
    time_error: float
    power_error: float
    load: float = 1.0
    warmup_rounds: float = WARMUP_ROUNDS
    memory: float = 1.0
    memory_error: float = GPU_MEMORY_ERROR
    source: str = ""
    power_source: str = ""

    def parts_s(
        self, work: Passes, *, precision: str, graphs: bool = False
    ) -> tuple[float, float, float]:
        """Seconds of the host, of traffic and of arithmetic. `graphs`: the kernels of a pass are
        launched together."""
        layer = self.graph_layer_s if graphs else self.layer_s
        forward = self.graph_forward_s if graphs else self.forward_s
        rate = self.rates[precision]
        return (
            work.passes * forward + work.layers * layer,
            work.weights / self.bandwidth
            + work.cache / self.cache_bandwidth
            + work.activations / self.activation_bandwidth,
            work.flops / rate + work.attention / min(rate, self.attention_rate),
        )

    def seconds(self, work: Passes, *, precision: str, graphs: bool = False) -> float:
        """Seconds of passes that are all alike."""
        host, traffic, products = self.parts_s(work, precision=precision, graphs=graphs)
        device = traffic + products
        return max(host, device) if self.overlap else host + device


CPU = ServingLaw(
    forward_s=4.0e-4,
    layer_s=1.8e-4,
    graph_forward_s=4.0e-4,
    graph_layer_s=1.8e-4,
    bandwidth=1.47e10,
    cache_bandwidth=4.9e9,
    activation_bandwidth=1.37e8,
    rates={"fp32": 1.29e11, "bf16": 3.98e11, "fp16": 1.29e11},
    attention_rate=4.23e10,
    overlap=False,
    start_s=5.0,
    load_s=0.8,
    load_bytes=LOAD_BYTES_PER_S,
    power_w=math.nan,
    time_error=0.45,
    power_error=math.nan,
    memory_error=CPU_MEMORY_ERROR,
    source="prior: transformers measured on a core of an AMD EPYC, idle and beside other work",
)


def law_of(device: Accelerator, backend: str) -> ServingLaw:
    """The prior: what is known of a device before anything was served on it with a backend."""
    start_s = START_S.get(backend, OTHER_START_S)
    if device.cpu:
        # The site may say that its cores do more, or less, than those of the table.
        share = device.peak_flops / ACCELERATORS["cpu"].peak_flops
        return replace(
            CPU,
            rates={name: share * rate for name, rate in CPU.rates.items()},
            attention_rate=share * CPU.attention_rate,
            start_s=CPU.start_s if backend == "transformers" else start_s,
            time_error=CPU.time_error if backend == "transformers" else OTHER_TIME_ERROR,
            power_w=device.power_w,
            power_error=device.power_error,
            power_source=device.power_source,
        )
    bandwidth = bandwidth_of(device) * GPU_BANDWIDTH
    peak = device.peak_flops * GPU_UTILISATION
    return ServingLaw(
        forward_s=GPU_FORWARD_S,
        layer_s=GPU_LAYER_S,
        graph_forward_s=GRAPH_FORWARD_S,
        graph_layer_s=GRAPH_LAYER_S,
        bandwidth=bandwidth,
        cache_bandwidth=bandwidth,
        activation_bandwidth=bandwidth / PASSED,
        rates={"bf16": peak, "fp16": peak, "fp32": fp32_flops_of(device) * GPU_UTILISATION},
        attention_rate=device.peak_flops * GPU_ATTENTION,
        overlap=True,
        start_s=start_s,
        load_s=2.0,
        load_bytes=LOAD_BYTES_PER_S,
        power_w=device.power_w,
        time_error=GPU_TIME_ERROR,
        power_error=device.power_error,
        source="prior: data sheets and public measurements of decoding",
        power_source=device.power_source,
    )


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What was measured: `seconds` of so many passes of a kind, each kind with how it was served.

    `parts` are (passes, precision, graphs). `group` names what is left out together when the error
    of a prediction is looked for: a deployment.
    """

    parts: tuple[tuple[Passes, str, bool], ...]
    seconds: float
    group: str


@dataclass(frozen=True)
class Fitted:
    """A law that fits what was timed; `error` is the root mean square of ln(predicted / measured)
    of groups that were left out, `groups` how many there were."""

    law: ServingLaw
    error: float
    groups: int


def fit_passes(timed: Sequence[Timed], prior: ServingLaw) -> Fitted:
    """The host's time, traffic and arithmetic of `prior`, each times a factor of its own.

    Least squares of the logarithms (of what lies far off, less), with the prior's own values as one
    more, uncertain, measurement of each factor. Raises ValueError where nothing was timed.
    """
    if not timed:
        raise ValueError("no pass was timed")
    system = _System.of_times(timed, prior)
    whole = system.factors(np.ones(len(timed), dtype=np.bool_), np.zeros(3))
    count = int(system.group.max()) + 1
    misses = np.zeros(len(timed))
    folds = min(count, FOLDS)
    for fold in range(folds) if count > 1 else ():
        left = system.group % folds == fold
        misses[left] = system.misses(system.factors(~left, whole))[left]
    # One deployment tells nothing of another: half of what was not known stays so.
    error = 0.5 * prior.time_error
    if count > 1:
        error = math.sqrt(float(np.sum(system.share * misses**2)) / count)
    return Fitted(_scaled(prior, whole), max(LEAST_ERROR, error), count)


@dataclass(frozen=True)
class _System:
    """What was timed, as arrays: `terms` (parts, 3) seconds of host, traffic and arithmetic by the
    prior, `of` (parts,) the number of their time; of each time the logarithm `measured`, the number
    of its `group`, and its `share` of it."""

    terms: FloatArray
    of: NDArray[np.intp]
    measured: FloatArray
    group: NDArray[np.intp]
    share: FloatArray
    overlap: bool

    @classmethod
    def of_times(cls, timed: Sequence[Timed], prior: ServingLaw) -> _System:
        parts = [(i, part) for i, item in enumerate(timed) for part in item.parts]
        group = np.unique([t.group for t in timed], return_inverse=True)[1]
        return cls(
            terms=np.array(
                [prior.parts_s(work, precision=p, graphs=g) for _, (work, p, g) in parts]
            ),
            of=np.array([i for i, _ in parts]),
            measured=np.log([t.seconds for t in timed]),
            group=group,
            share=1.0 / np.bincount(group)[group],
            overlap=prior.overlap,
        )

    def misses(self, factors: FloatArray) -> FloatArray:
        """ln(predicted / measured) of each time."""
        host, traffic, work = (self.terms * np.exp(factors)).T
        device = traffic + work
        seconds = np.maximum(host, device) if self.overlap else host + device
        return np.asarray(np.log(np.bincount(self.of, seconds, len(self.measured))) - self.measured)

    def factors(self, kept: NDArray[np.bool_], start: FloatArray) -> FloatArray:
        """Logarithms (3,) of the factors of host, traffic and arithmetic, from those that are kept.

        Times of one group share their error: each group counts once.
        """
        at = start.copy()
        for _ in range(ROUNDS):
            miss = self.misses(at)
            # What differs by chance weighs as it scatters, and not below a percent; a run that
            # something else held up lies far outside of that, and weighs less the farther (Huber).
            noise = noise_of(miss[kept])
            weight = weights(miss, noise=noise) * kept * self.share / noise**2
            slope = np.stack(
                [(self.misses(at + STEP * axis) - miss) / STEP for axis in np.eye(3)], axis=1
            )
            normal = slope.T @ (weight[:, None] * slope) + np.eye(3) / PRIOR_SPREAD**2
            toward = slope.T @ (weight * miss) + at / PRIOR_SPREAD**2
            change = -np.linalg.solve(normal, toward)
            at = at + np.clip(change, -1.0, 1.0)
            if float(np.abs(change).max()) < 1e-6:
                break
        return at


def _scaled(law: ServingLaw, factors: FloatArray) -> ServingLaw:
    """The law with times of host, traffic and arithmetic multiplied by e^factors."""
    host, traffic, work = (math.exp(value) for value in factors)
    return replace(
        law,
        forward_s=law.forward_s * host,
        layer_s=law.layer_s * host,
        graph_forward_s=law.graph_forward_s * host,
        graph_layer_s=law.graph_layer_s * host,
        bandwidth=law.bandwidth / traffic,
        cache_bandwidth=law.cache_bandwidth / traffic,
        activation_bandwidth=law.activation_bandwidth / traffic,
        rates={name: rate / work for name, rate in law.rates.items()},
        attention_rate=law.attention_rate / work,
    )
