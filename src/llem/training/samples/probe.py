"""A look at one size of a user's model before anything is planned: parameters, FLOPs, faults.

On torch's meta device, which takes no memory and no time; a class that cannot be built or run there
is built for real, small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llem.errors import Fault, InputError
from llem.training.samples.batches import map_tensors, shapes_of
from llem.training.samples.samples import Objects, params_of
from llem.training.samples.sampleset import generators_kept

# Models of more parameters are not built for real, only to look at them.
MOST_REAL = 300_000_000
# A model that multiplies less than this share of 6 N per sample is one that torch cannot count.
LEAST_COUNTED = 0.01


@dataclass(frozen=True)
class Probe:
    """One size: its parameters, and training FLOPs of one token or sample.

    `unused` names parameters without a gradient; `note` says how it was found, where not on meta.
    """

    value: int
    params: int
    flops: float
    unused: tuple[str, ...] = ()
    note: str = ""


def probe(
    objects: Objects,
    *,
    size: str,
    value: int,
    arguments: Mapping[str, Any],
    batch: Any,
    samples: int,
    units: int,
) -> Probe:
    """Forward and backward of `batch`, of `samples` samples of `units` each.

    Raises InputError with what the model, or the loss, said.
    """

    def work(device: str) -> Probe:
        with generators_kept(), torch.device(device):
            model = objects.build(size, value, arguments)
        if device == "cpu":
            here = batch
        else:
            here = map_tensors(lambda t: t.to(device), batch)
        params = params_of(model)
        if params < 1:
            raise _fault("model", f"{size}={value} has no parameters to train", "")
        flops, unused = _count(objects, model, here)
        return _probed(value, params, flops / (samples * units), unused)

    try:
        return work("meta")
    except InputError:
        raise
    except Exception as error:
        on_meta = _said(error)
    try:
        found = work("cpu")
    except InputError:
        raise
    except Exception as error:
        shapes = shapes_of(batch)
        raise _fault("model", f"{size}={value}: {_said(error)}", f"a batch is {shapes}") from error
    note = f"{size}={value} was built for real to be looked at: on torch's meta device {on_meta}"
    return Probe(found.value, found.params, found.flops, found.unused, note)


def built(objects: Objects, *, size: str, value: int, arguments: Mapping[str, Any]) -> int:
    """Parameters of one size. Raises InputError with what the class said."""
    try:
        with generators_kept(), torch.device("meta"):
            return params_of(objects.build(size, value, arguments))
    except InputError:
        raise
    except Exception as error:
        said = _said(error)
    try:
        with generators_kept():
            return params_of(objects.build(size, value, arguments))
    except Exception as error:
        raise _fault("model", f"{size}={value}: {_said(error)}", said) from error


def _count(objects: Objects, model: nn.Module, batch: Any) -> tuple[float, tuple[str, ...]]:
    counter = FlopCounterMode(display=False)
    # Fused attention has names that the counter does not know on every device: products it does.
    with generators_kept(), sdpa_kernel(SDPBackend.MATH), counter:
        loss = objects.loss(model, batch, autocast=_no_autocast)
        loss.backward()
    unused = tuple(n for n, p in model.named_parameters() if p.requires_grad and p.grad is None)
    return float(counter.get_total_flops()), unused


def _no_autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def _probed(value: int, params: int, flops: float, unused: tuple[str, ...]) -> Probe:
    if flops >= LEAST_COUNTED * 6 * params and math.isfinite(flops):
        return Probe(value, params, flops, unused)
    note = "torch counts hardly a FLOP of this model: 6 per parameter and sample are taken"
    return Probe(value, params, 6.0 * params, unused, note)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _fault(key: str, text: str, hint: str) -> InputError:
    return InputError("find_optimal", [Fault(key, text, hint or None)])
