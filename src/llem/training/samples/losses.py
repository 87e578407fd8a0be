"""What a loss is: one convention, found by looking at the function.

`loss_fn(output, target)`   the output of the model on the inputs of a batch, and its target
`loss_fn(model, batch)`     where the first parameter is called so (MODEL_NAMES)
None                        the model returns its loss (Hugging Face); on pairs of token ids, the
                            cross-entropy of the logits that it returns

A batch (a, b, target) is `model(a, b)`; a mapping is `model(**rest)` with the target under one of
`llem.training.samples.batches.TARGETS`, or `model(**batch)` where the model returns its loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llem.errors import Fault, InputError
from llem.training.samples.batches import next_token_pair, split_target

MODEL_NAMES = ("model", "module", "net", "network")

Kind = Literal["output", "model", "own"]
Autocast = Callable[[], torch.autocast]


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, a scalar: mean over what D counts. `function` is None for "own"."""

    function: Callable[..., Any] | None
    kind: Kind

    def __call__(self, module: nn.Module, batch: Any, *, autocast: Autocast) -> Tensor:
        """Forward in `autocast`, the loss of a floating output in fp32. Raises ValueError."""
        if self.kind == "model":
            assert self.function is not None
            with autocast():
                return scalar(self.function(module, batch))
        if self.kind == "output":
            assert self.function is not None
            positional, named, target = split_target(batch)
            with autocast():
                output = module(*positional, **named)
            return scalar(self.function(_full(output), target))
        if next_token_pair(batch):
            with autocast():
                output = module(batch[0])
            logits = _logits(output)
            return F.cross_entropy(logits.flatten(0, 1).float(), batch[1].long().flatten())
        with autocast():
            if isinstance(batch, Mapping):
                output = module(**batch)
            else:
                output = module(*(batch if isinstance(batch, (tuple, list)) else (batch,)))
        return scalar(_own_loss(output))


def loss_of(function: Any) -> Loss:
    """The loss that a user gave. Raises InputError that says what to change."""
    if function is None:
        return Loss(None, "own")
    if isinstance(function, type):
        hint = f"give an instance: {function.__name__}()"
        raise _fault(f"{function.__name__} is a class", hint)
    if not callable(function):
        raise _fault(f"{function!r} cannot be called", "give loss_fn(output, target)")
    looked_at = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(looked_at).parameters.values())
    except (TypeError, ValueError):
        return Loss(function, "output")
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    more = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 2 or more or (len(places) < 2 and not any_number):
        taken = ", ".join([p.name for p in needed] + more) or "nothing"
        raise _fault(
            f"it takes ({taken})", "loss_fn(output, target) or loss_fn(model, batch) is expected"
        )
    first = places[0].name if places else ""
    return Loss(function, "model" if first in MODEL_NAMES else "output")


def scalar(value: Any) -> Tensor:
    """The loss as a scalar tensor. Raises ValueError where it is none."""
    if not isinstance(value, Tensor):
        raise ValueError(f"the loss is {type(value).__name__}, not a tensor")
    if value.numel() != 1:
        shape = tuple(value.shape)
        raise ValueError(f"the loss has shape {shape}: reduce it to its mean (reduction='mean')")
    if not value.is_floating_point():
        raise ValueError(f"the loss is of {value.dtype}, which has no gradient")
    return value.reshape(())


def _full(output: Any) -> Any:
    if isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16):
        return output.float()
    return output


def _logits(output: Any) -> Tensor:
    found = output.get("logits") if isinstance(output, Mapping) else output
    found = getattr(found, "logits", found)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if isinstance(found, Tensor) and found.ndim == 3:
        return found
    said = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise ValueError(
        f"on token ids the model returned {said}: logits of (samples, tokens, vocabulary) are "
        "expected, or give loss_fn"
    )


def _own_loss(output: Any) -> Tensor:
    if isinstance(output, Mapping) and isinstance(output.get("loss"), Tensor):
        return output["loss"]
    found = getattr(output, "loss", None)
    if isinstance(found, Tensor):
        return found
    if isinstance(output, Tensor) and output.numel() == 1:
        return output
    first = output[0] if isinstance(output, (tuple, list)) and output else None
    if isinstance(first, Tensor) and first.numel() == 1:
        return first
    shown = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(f"without loss_fn the model must return its loss; it returned {shown}")


def _fault(text: str, hint: str) -> InputError:
    return InputError("find_optimal", [Fault("loss_fn", text, hint)])
