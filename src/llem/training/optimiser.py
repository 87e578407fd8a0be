"""The optimisers by name, and which parameters each has at what rate and decay.

`adamw`: AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), its decoupled decay on matrices only,
vectors (norms) being scale-free.

`muon`: matrices of the blocks by Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) at
Moonlight's scale of its update, 0.2 sqrt(max(rows, columns)), at which AdamW's rate and decay hold
for both (arXiv 2502.16982, eq. 4); embedding, output layer and norms by AdamW. Queries, keys and
values are one matrix here, and made orthogonal as such. It needs each matrix whole: data
parallelism alone, no ZeRO, no FSDP2.

With `mup` (Yang et al. 2022, arXiv 2203.03466, table 8, the form with a multiplier on the output)
matrices of the blocks have the rate times base_width / width, and their decay times its inverse,
so that rate x decay, the time over which weights are forgotten, is the same at every width
(arXiv 2405.13698); all else has the rate as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from llem.campaign import Recipe
from llem.errors import Fault, InputError
from llem.training.model import Decoder

Optimisers = list[torch.optim.Optimizer]


def optimisers(model: nn.Module, recipe: Recipe) -> Optimisers:
    """What trains `model`, in the order in which checkpoints have them.

    Raises InputError where the recipe's names are made for the reference decoder, and it is none.
    """
    if recipe.optimiser != "muon":
        return [adamw(model, recipe)]
    hidden = _hidden(model, "optimiser", recipe.optimiser)
    if not hasattr(torch.optim, "Muon"):
        text = f"torch {torch.__version__} has no Muon"
        raise InputError("recipe", [Fault("optimiser", text, "torch 2.9 or newer, or adamw")])
    muon = torch.optim.Muon(
        hidden,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, _adamw(_by_decay(_others(model, hidden), recipe), recipe)]


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over all of `model`."""
    if recipe.parametrisation != "mup":
        return _adamw(_by_decay(model.parameters(), recipe), recipe)
    hidden = _hidden(model, "parametrisation", recipe.parametrisation)
    assert isinstance(model, Decoder)
    scale = recipe.base_width / model.width
    group = {"params": hidden, "weight_decay": recipe.weight_decay / scale, "rate_scale": scale}
    return _adamw([group, *_by_decay(_others(model, hidden), recipe)], recipe)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, for every group at its own scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


def _hidden(model: nn.Module, field: str, name: str) -> list[nn.Parameter]:
    if not isinstance(model, Decoder):
        text = f"{name} is made for the llama family: of another model llem does not know the parts"
        raise InputError("recipe", [Fault(field, text)])
    return [parameter for parameter in model.blocks.parameters() if parameter.ndim >= 2]


def _others(model: nn.Module, hidden: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    known = {id(parameter) for parameter in hidden}
    return [parameter for parameter in model.parameters() if id(parameter) not in known]


def _by_decay(parameters: Iterable[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.AdamW:
    # Fused is one call for all parameters, on the CPU too: 0.4 ms a step against 0.9 (foreach).
    return torch.optim.AdamW(
        groups,
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        fused=True,
    )
